/* The products with AVX-512: twice the lanes, dot products of bytes in one instruction (VNNI), and
   for int4 four inputs laid side by side by one (VBMI). Used only where the self-test of
   _decode_products.h finds them to compute what plain C does. */

#ifndef DECODE_AVX512_H
#define DECODE_AVX512_H

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_AVX512 1
#include <immintrin.h>

#include "_decode_job.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")))
#define INLINE512 static inline __attribute__((always_inline)) AVX512
#define TILE512 4

static int avx512_here(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
           && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
           && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
}

/* ---- float32 and bfloat16 weights */

INLINE512 __m512 sixteen(const Job *job, int kind, size_t at, __mmask16 some)
{
    if (kind == FLOAT32)
        return _mm512_maskz_loadu_ps(some, (const float *)job->weights + at);
    __m256i narrow = _mm256_maskz_loadu_epi16(some, (const uint16_t *)job->weights + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

INLINE512 void plain512_tile(const Job *job, int kind, size_t n, int tall, size_t m)
{
    const float *x = job->x + m * job->inputs;
    size_t size = kind == FLOAT32 ? 4 : 2, bytes = (size_t)tall * size;
    const char *begin = (const char *)job->weights + n * job->inputs * size;
    __m512 sums[TILE512];
    for (int i = 0; i < tall; i++)
        sums[i] = _mm512_setzero_ps();
    for (size_t k = 0; k < job->inputs; k += 16) {
        size_t left = job->inputs - k;
        __mmask16 some = (__mmask16)(left < 16 ? (1u << left) - 1 : 0xffff);
        __m512 seen = _mm512_maskz_loadu_ps(some, x + k);
        for (size_t line = 0; line < 16 * bytes; line += 64)
            _mm_prefetch(begin + job->inputs * bytes + k * bytes + line, _MM_HINT_T0);
        for (int i = 0; i < tall; i++)
            sums[i] = _mm512_fmadd_ps(sixteen(job, kind, (n + (size_t)i) * job->inputs + k, some),
                                      seen, sums[i]);
    }
    for (int i = 0; i < tall; i++)
        put(job, m, n + (size_t)i, _mm512_reduce_add_ps(sums[i]));
}

INLINE512 void plain512(const Job *job, int kind, size_t begin, size_t end)
{
    for (; begin + TILE512 <= end; begin += TILE512)
        for (size_t m = 0; m < job->rows; m++)
            plain512_tile(job, kind, begin, TILE512, m);
    for (; begin < end; begin++)
        for (size_t m = 0; m < job->rows; m++)
            plain512_tile(job, kind, begin, 1, m);
}

AVX512 static void avx512_float32(const Job *job, size_t begin, size_t end)
{
    plain512(job, FLOAT32, begin, end);
}

AVX512 static void avx512_bfloat16(const Job *job, size_t begin, size_t end)
{
    plain512(job, BFLOAT16, begin, end);
}

/* ---- int8 weights: two runs at a time, the second may be missing */

INLINE512 void int8_tile512(const Job *job, size_t n, int tall, size_t m)
{
    size_t inputs = job->inputs, runs = job->padded / RUN;
    const int8_t *weights = (const int8_t *)job->weights + n * inputs;
    const float *steps = job->steps + m * runs;
    __m512 sums[TILE512];
    for (int i = 0; i < tall; i++)
        sums[i] = _mm512_setzero_ps();
    for (size_t k = 0; k < inputs; k += 64) {
        size_t left = inputs - k, run = k / RUN;
        __mmask64 some = left < 64 ? ((__mmask64)1 << left) - 1 : ~(__mmask64)0;
        __m512i codes = _mm512_maskz_loadu_epi8(some, job->codes + m * job->padded + k);
        __mmask64 negative = _mm512_movepi8_mask(codes);
        __m512i sizes = _mm512_abs_epi8(codes);
        float second = run + 1 < runs ? steps[run + 1] : 0.0f;
        __m512 step = _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(steps[run]),
                                           _mm512_set1_ps(second));
        for (size_t line = 0; line < (size_t)tall * 64; line += 64)
            _mm_prefetch((const char *)weights + (size_t)tall * (inputs + k) + line, _MM_HINT_T0);
        for (int i = 0; i < tall; i++) {
            __m512i row = _mm512_maskz_loadu_epi8(some, weights + (size_t)i * inputs + k);
            row = _mm512_mask_sub_epi8(row, negative, _mm512_setzero_si512(), row);
            __m512i fours = _mm512_dpbusd_epi32(_mm512_setzero_si512(), sizes, row);
            sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(fours), step, sums[i]);
        }
    }
    for (int i = 0; i < tall; i++)
        put(job, m, n + (size_t)i,
            _mm512_reduce_add_ps(sums[i]) * widen(job->scales[n + (size_t)i]));
}

AVX512 static void avx512_int8(const Job *job, size_t begin, size_t end)
{
    for (; begin + TILE512 <= end; begin += TILE512)
        for (size_t m = 0; m < job->rows; m++)
            int8_tile512(job, begin, TILE512, m);
    for (; begin < end; begin++)
        for (size_t m = 0; m < job->rows; m++)
            int8_tile512(job, begin, 1, m);
}

/* ---- int4 weights: 16 low rows and 16 high rows, four inputs at a time */

INLINE512 __m512 group512(__m512 sums, __m512i found, const uint16_t *pair, float step, float sum)
{
    __m512i both = _mm512_loadu_si512(pair);
    __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    __m512 zero = _mm512_castsi512_ps(
        _mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000u)));
    __m512 products = _mm512_mul_ps(_mm512_cvtepi32_ps(found), _mm512_set1_ps(step));
    products = _mm512_fnmadd_ps(_mm512_set1_ps(8.0f), _mm512_set1_ps(sum), products);
    sums = _mm512_fmadd_ps(products, scale, sums);
    return _mm512_fmadd_ps(zero, _mm512_set1_ps(sum), sums);
}

INLINE512 void int4_strip512(const Job *job, size_t n, size_t column, size_t m)
{
    size_t half = job->block / 2, runs = job->padded / RUN;
    const uint8_t *bytes = (const uint8_t *)job->weights + n * job->inputs / 2 + column;
    const int8_t *codes = job->codes + m * job->padded;
    const __m512i mask = _mm512_set1_epi8(15);
    /* Byte r of each of four inputs, side by side. */
    const __m512i order = _mm512_add_epi8(
        _mm512_set1_epi32(0x30201000),
        _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                           _mm512_set1_epi32(0x01010101)));
    __m512 low = _mm512_setzero_ps(), high = low;
    for (size_t run = 0; run < runs; run++) {
        __m512i few = _mm512_setzero_si512(), many = few;
        for (size_t k = run * RUN; k < (run + 1) * RUN; k += 4) {
            const uint8_t *at = bytes + k * half;
            __m512i part = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)at));
            part = _mm512_inserti32x4(part, _mm_loadu_si128((const __m128i *)(at + half)), 1);
            part = _mm512_inserti32x4(part, _mm_loadu_si128((const __m128i *)(at + 2 * half)), 2);
            part = _mm512_inserti32x4(part, _mm_loadu_si128((const __m128i *)(at + 3 * half)), 3);
            part = _mm512_permutexvar_epi8(order, part);
            int32_t four;
            memcpy(&four, codes + k, sizeof four);
            __m512i x = _mm512_set1_epi32(four);
            few = _mm512_dpbusd_epi32(few, _mm512_and_si512(part, mask), x);
            part = _mm512_and_si512(_mm512_srli_epi16(part, 4), mask);
            many = _mm512_dpbusd_epi32(many, part, x);
        }
        size_t place = run * RUN / job->group * job->outputs + n + column;
        const uint16_t *pair = job->scales + place * 2;
        float step = job->steps[m * runs + run], sum = job->sums[m * runs + run];
        low = group512(low, few, pair, step, sum);
        high = group512(high, many, pair + half * 2, step, sum);
    }
    float found[STRIP];
    _mm512_storeu_ps(found, low);
    _mm512_storeu_ps(found + 16, high);
    for (size_t i = 0; i < STRIP; i++)
        put(job, m, n + column + i % 16 + i / 16 * half, found[i]);
}

AVX512 static void avx512_int4(const Job *job, size_t begin, size_t end)
{
    for (size_t n = begin; n < end; n += job->block)
        for (size_t column = 0; column < job->block / 2; column += 16)
            for (size_t m = 0; m < job->rows; m++)
                int4_strip512(job, n, column, m);
}

#endif
#endif
