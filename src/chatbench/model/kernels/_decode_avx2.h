/* The products with AVX2 and FMA. Every output is summed in the same order whatever the other rows
   of activations, the other outputs of a tile and the number of threads. */

#ifndef DECODE_AVX2_H
#define DECODE_AVX2_H

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_AVX2 1
#include <immintrin.h>

#include "_decode_job.h"
#include "_decode_scalar.h"

#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline, target("avx2,fma")))
#define TILE 4 /* outputs computed together: as many streams as the prefetchers follow */

INLINE float total_of(__m256 lanes)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE __m256 widen8(__m128i narrow)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
}

/* Asks for the lines of the next tile, a share of them with each step: `begin` is where this tile's
   weights begin, `size` are its bytes, `at` and `step` the bytes done and to be done. The rows of a
   tile lie side by side, so the lines come in order and each once. Asking for what does not exist
   does no harm. */
INLINE void ask_ahead(const void *begin, size_t size, size_t at, size_t step)
{
    for (size_t line = 0; line < step; line += 64)
        _mm_prefetch((const char *)begin + size + at + line, _MM_HINT_T0);
}

/* ---- float32 and bfloat16 weights */

INLINE __m256 eight_weights(const Job *job, int kind, size_t at)
{
    if (kind == FLOAT32)
        return _mm256_loadu_ps((const float *)job->weights + at);
    return widen8(_mm_loadu_si128((const __m128i *)((const uint16_t *)job->weights + at)));
}

/* The last inputs, fewer than eight; the missing ones are zero. */
INLINE __m256 last_weights(const Job *job, int kind, size_t at, size_t count)
{
    float some[8] = {0.0f};
    for (size_t k = 0; k < count; k++)
        some[k] = kind == FLOAT32 ? ((const float *)job->weights)[at + k]
                                  : widen(((const uint16_t *)job->weights)[at + k]);
    return _mm256_loadu_ps(some);
}

/* `tall` outputs from n on for `wide` rows from m on. */
INLINE void plain_tile(const Job *job, int kind, size_t n, int tall, size_t m, int wide)
{
    size_t inputs = job->inputs, whole = inputs / 8 * 8;
    size_t size = kind == FLOAT32 ? 4 : 2, bytes = (size_t)tall * size;
    const char *begin = (const char *)job->weights + n * inputs * size;
    __m256 sums[TILE][2];
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < wide; j++)
            sums[i][j] = _mm256_setzero_ps();
    const float *x = job->x + m * inputs;
    for (size_t k = 0; k < whole; k += 8) {
        __m256 seen[2];
        for (int j = 0; j < wide; j++)
            seen[j] = _mm256_loadu_ps(x + (size_t)j * inputs + k);
        ask_ahead(begin, inputs * bytes, k * bytes, 8 * bytes);
        for (int i = 0; i < tall; i++) {
            __m256 weights = eight_weights(job, kind, (n + (size_t)i) * inputs + k);
            for (int j = 0; j < wide; j++)
                sums[i][j] = _mm256_fmadd_ps(weights, seen[j], sums[i][j]);
        }
    }
    for (int j = 0; j < wide && whole < inputs; j++) {
        float some[8] = {0.0f};
        memcpy(some, x + (size_t)j * inputs + whole, (inputs - whole) * sizeof(float));
        for (int i = 0; i < tall; i++) {
            size_t at = (n + (size_t)i) * inputs + whole;
            __m256 weights = last_weights(job, kind, at, inputs - whole);
            sums[i][j] = _mm256_fmadd_ps(weights, _mm256_loadu_ps(some), sums[i][j]);
        }
    }
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < wide; j++)
            put(job, m + (size_t)j, n + (size_t)i, total_of(sums[i][j]));
}

INLINE void plain_rows(const Job *job, int kind, size_t n, int tall)
{
    size_t m = 0;
    for (; m + 2 <= job->rows; m += 2)
        plain_tile(job, kind, n, tall, m, 2);
    if (m < job->rows)
        plain_tile(job, kind, n, tall, m, 1);
}

INLINE void plain(const Job *job, int kind, size_t begin, size_t end)
{
    for (; begin + TILE <= end; begin += TILE)
        plain_rows(job, kind, begin, TILE);
    for (; begin < end; begin++)
        plain_rows(job, kind, begin, 1);
}

AVX2 static void avx2_float32(const Job *job, size_t begin, size_t end)
{
    plain(job, FLOAT32, begin, end);
}

AVX2 static void avx2_bfloat16(const Job *job, size_t begin, size_t end)
{
    plain(job, BFLOAT16, begin, end);
}

/* ---- activations as codes */

/* As quantize_run, bit by bit, for a whole run. */
AVX2 static void avx2_quantize_run(const float *x, int8_t *codes, float *step, float *sum)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 parts[4], most = _mm256_setzero_ps(), finite = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) {
        parts[i] = _mm256_loadu_ps(x + 8 * i);
        most = _mm256_max_ps(_mm256_andnot_ps(sign, parts[i]), most);
        finite = _mm256_fmadd_ps(parts[i], _mm256_setzero_ps(), finite);
    }
    float sizes[8], largest = 0.0f;
    _mm256_storeu_ps(sizes, most);
    for (int i = 0; i < 8; i++)
        largest = sizes[i] > largest ? sizes[i] : largest;
    float inverse = code_inverse(largest, total_of(finite));
    int32_t total[8];
    __m256i all = _mm256_setzero_si256(), wide[4];
    for (int i = 0; i < 4; i++) {
        __m256 scaled = _mm256_mul_ps(parts[i], _mm256_set1_ps(inverse));
        __m256 half = _mm256_or_ps(_mm256_and_ps(sign, scaled), _mm256_set1_ps(0.5f));
        wide[i] = inverse > 0.0f ? _mm256_cvttps_epi32(_mm256_add_ps(scaled, half))
                                 : _mm256_setzero_si256();
        all = _mm256_add_epi32(all, wide[i]);
    }
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(wide[0], wide[1]),
                                       _mm256_packs_epi32(wide[2], wide[3]));
    /* Packing works lane by lane; this puts the fours back in their order. */
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)codes, bytes);
    _mm256_storeu_si256((__m256i *)total, all);
    for (int i = 1; i < 8; i++)
        total[0] += total[i];
    *step = code_step(largest, total_of(finite));
    *sum = *step * (float)total[0];
}

/* ---- int8 weights */

/* sums += the products of one run; pairs of products stay below 2·127² and so within 16 bits. */
INLINE __m256 add_run(__m256 sums, __m256i weights, __m256i sizes, __m256i codes, __m256 step)
{
    __m256i pairs = _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(weights, codes));
    __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(fours), step, sums);
}

INLINE void int8_tile(const Job *job, size_t n, int tall, size_t m)
{
    size_t inputs = job->inputs, whole = inputs / RUN * RUN, runs = job->padded / RUN;
    const int8_t *weights = (const int8_t *)job->weights + n * inputs;
    const int8_t *x = job->codes + m * job->padded;
    const float *steps = job->steps + m * runs;
    __m256 sums[TILE];
    for (int i = 0; i < tall; i++)
        sums[i] = _mm256_setzero_ps();
    for (size_t k = 0; k < whole; k += RUN) {
        __m256i codes = _mm256_loadu_si256((const __m256i *)(x + k));
        __m256i sizes = _mm256_abs_epi8(codes);
        __m256 step = _mm256_broadcast_ss(steps + k / RUN);
        ask_ahead(weights, (size_t)tall * inputs, (size_t)tall * k, (size_t)tall * RUN);
        for (int i = 0; i < tall; i++) {
            const int8_t *at = weights + (size_t)i * inputs + k;
            __m256i row = _mm256_loadu_si256((const __m256i *)at);
            sums[i] = add_run(sums[i], row, sizes, codes, step);
        }
    }
    if (whole < inputs) {
        __m256i codes = _mm256_loadu_si256((const __m256i *)(x + whole));
        __m256 step = _mm256_broadcast_ss(steps + whole / RUN);
        for (int i = 0; i < tall; i++) {
            int8_t some[RUN] = {0};
            memcpy(some, weights + (size_t)i * inputs + whole, inputs - whole);
            __m256i row = _mm256_loadu_si256((const __m256i *)some);
            sums[i] = add_run(sums[i], row, _mm256_abs_epi8(codes), codes, step);
        }
    }
    for (int i = 0; i < tall; i++)
        put(job, m, n + (size_t)i, total_of(sums[i]) * widen(job->scales[n + (size_t)i]));
}

AVX2 static void avx2_int8(const Job *job, size_t begin, size_t end)
{
    for (; begin + TILE <= end; begin += TILE)
        for (size_t m = 0; m < job->rows; m++)
            int8_tile(job, begin, TILE, m);
    for (; begin < end; begin++)
        for (size_t m = 0; m < job->rows; m++)
            int8_tile(job, begin, 1, m);
}

/* ---- int4 weights */

/* A strip: for each input 16 bytes, whose low half-bytes are the weights of 16 rows and whose high
   ones those of 16 other rows. Two inputs are interleaved so that one instruction multiplies both
   by the activations: no sum across lanes is needed but one, at the end of a run. */
typedef struct {
    const uint8_t *bytes; /* of input 0 */
    size_t stride; /* bytes from one input to the next */
    const uint16_t *scales[2]; /* (scale, zero) of the low rows and of the high rows, group 0 */
} Strip;

/* 32 bytes of inputs k, k + 2 (low lane) and k + 1, k + 3 (high lane): rows 0-7 and 8-15. */
INLINE void interleaved(const Strip *strip, size_t k, __m256i *low, __m256i *high)
{
    const uint8_t *at = strip->bytes + k * strip->stride;
    __m256i first, second;
    if (strip->stride == 16) {
        first = _mm256_loadu_si256((const __m256i *)at);
        second = _mm256_loadu_si256((const __m256i *)(at + 32));
    } else {
        const size_t s = strip->stride;
        first = _mm256_loadu2_m128i((const __m128i *)(at + s), (const __m128i *)at);
        second = _mm256_loadu2_m128i((const __m128i *)(at + 3 * s), (const __m128i *)(at + 2 * s));
    }
    _mm_prefetch((const char *)at + 1024, _MM_HINT_T0);
    *low = _mm256_unpacklo_epi8(first, second);
    *high = _mm256_unpackhi_epi8(first, second);
}

/* Four codes laid so that each meets its input in `interleaved`: k, k + 2 and k + 1, k + 3. */
INLINE __m256i four_codes(const int8_t *codes)
{
    const __m256i order =
        _mm256_blend_epi32(_mm256_set1_epi16(0x0200), _mm256_set1_epi16(0x0301), 0xf0);
    int32_t four;
    memcpy(&four, codes, sizeof four);
    return _mm256_shuffle_epi8(_mm256_set1_epi32(four), order);
}

/* Adds one run to the sums of 8 rows. `pairs`: 16 sums of products in 16 bits, lane by lane. */
INLINE __m256 add_group(__m256 sums, __m256i pairs, const uint16_t *scales, float step, float sum)
{
    __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(pairs));
    __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(pairs, 1));
    __m256 products = _mm256_cvtepi32_ps(_mm256_add_epi32(low, high));
    __m256i both = _mm256_loadu_si256((const __m256i *)scales);
    __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    __m256 zero = _mm256_castsi256_ps(
        _mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000u)));
    __m256 offset = _mm256_fnmadd_ps(_mm256_set1_ps(8.0f), scale, zero);
    sums = _mm256_fmadd_ps(products, _mm256_mul_ps(scale, _mm256_set1_ps(step)), sums);
    return _mm256_fmadd_ps(offset, _mm256_set1_ps(sum), sums);
}

/* 32 rows for row m of the activations. A code is at most 15, so 8 pairs of products reach
   8·2·15·127 = 30,480 and stay within 16 bits. */
INLINE void int4_strip(const Job *job, const Strip *strip, size_t m, float *found)
{
    size_t runs = job->padded / RUN;
    const int8_t *codes = job->codes + m * job->padded;
    const __m256i mask = _mm256_set1_epi8(15);
    __m256 sums[4];
    for (int i = 0; i < 4; i++)
        sums[i] = _mm256_setzero_ps();
    for (size_t run = 0; run < runs; run++) {
        __m256i pairs[4];
        for (int i = 0; i < 4; i++)
            pairs[i] = _mm256_setzero_si256();
        for (size_t k = run * RUN; k < (run + 1) * RUN; k += 4) {
            __m256i x = four_codes(codes + k), parts[2];
            interleaved(strip, k, &parts[0], &parts[1]);
            for (int i = 0; i < 2; i++) {
                __m256i low = _mm256_and_si256(parts[i], mask);
                __m256i high = _mm256_and_si256(_mm256_srli_epi16(parts[i], 4), mask);
                pairs[i] = _mm256_add_epi16(pairs[i], _mm256_maddubs_epi16(low, x));
                pairs[2 + i] = _mm256_add_epi16(pairs[2 + i], _mm256_maddubs_epi16(high, x));
            }
        }
        size_t place = run * RUN / job->group * job->outputs * 2;
        float step = job->steps[m * runs + run], sum = job->sums[m * runs + run];
        for (int i = 0; i < 4; i++)
            sums[i] = add_group(sums[i], pairs[i], strip->scales[i / 2] + place + i % 2 * 16,
                                step, sum);
    }
    for (int i = 0; i < 4; i++)
        _mm256_storeu_ps(found + 8 * i, sums[i]);
}

/* begin and end lie on blocks, and blocks hold whole strips. */
AVX2 static void avx2_int4(const Job *job, size_t begin, size_t end)
{
    size_t half = job->block / 2;
    for (size_t n = begin; n < end; n += job->block)
        for (size_t column = 0; column < half; column += 16) {
            Strip strip;
            strip.bytes = (const uint8_t *)job->weights + n * job->inputs / 2 + column;
            strip.stride = half;
            strip.scales[0] = job->scales + (n + column) * 2;
            strip.scales[1] = strip.scales[0] + half * 2;
            for (size_t m = 0; m < job->rows; m++) {
                float found[STRIP];
                int4_strip(job, &strip, m, found);
                for (size_t i = 0; i < STRIP; i++)
                    put(job, m, n + column + i % 16 + i / 16 * half, found[i]);
            }
        }
}

#endif
#endif
