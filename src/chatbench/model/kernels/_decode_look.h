/* The rows' part of a step (_decode_rows.h) for plain processors and for those with AVX2. */

#ifndef DECODE_LOOK_H
#define DECODE_LOOK_H

#include <float.h>
#include <math.h>

#include "_decode_model.h"
#include "_decode_products.h"

/* A row's places are looked at in parts of at least LOOK, at most MOST_LOOKS of them, which depend
   on its length alone: so do the bits of the sum. */
#define LOOK 256
#define MOST_LOOKS 16

/* One part of one row, for the heads that share a key-value head. */
typedef struct {
    size_t heads, width; /* heads that share, D */
    size_t begin, end; /* places that are looked at */
    size_t stride; /* numbers from one place of the cache to the next */
    int narrow, append; /* cache in bfloat16; the last place is the new token's */
    const float *q, *k, *v; /* (heads, D), (D), (D), as projected */
    const Numbers *q_norm, *k_norm;
    const float *cosines, *sines; /* (D/2) of the new token, or NULL */
    void *keys, *values; /* of this row and key-value head, place 0 */
    float scale, eps;
    float *found; /* (largest score, sum of powers, D columns) of the first head */
    size_t apart; /* numbers from one head's to the next */
    float *scratch; /* look_room() numbers */
} Look;

typedef float Eight __attribute__((vector_size(32)));
typedef float Eight_at __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t Mask __attribute__((vector_size(32)));
typedef uint32_t Wide __attribute__((vector_size(32)));
typedef uint16_t Half_at __attribute__((vector_size(16), aligned(2), may_alias));

static size_t looks_of(size_t places)
{
    size_t looks = (places + LOOK - 1) / LOOK;
    return looks < MOST_LOOKS ? looks : MOST_LOOKS;
}

/* Numbers of a look's scratch. */
static size_t look_room(size_t heads, size_t width, size_t places)
{
    size_t most = (places + MOST_LOOKS - 1) / MOST_LOOKS;
    return heads * (width + (most > LOOK ? most : LOOK) + 8) + 8;
}

static inline float total_of_eight(Eight v)
{
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

static inline void totals_of_four(const Eight *v, float *to)
{
    for (int i = 0; i < 4; i++)
        to[i] = total_of_eight(v[i]);
}

#ifdef HAS_AVX2
INLINE void avx2_totals_of_four(const Eight *v, float *to)
{
    __m256 first = _mm256_hadd_ps((__m256)v[0], (__m256)v[1]);
    __m256 all = _mm256_hadd_ps(first, _mm256_hadd_ps((__m256)v[2], (__m256)v[3]));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}
#endif

#define TARGET
#define ROWS(name) plain_##name
#define TOTAL(v) total_of_eight(v)
#define TOTALS(v, to) totals_of_four(v, to)
#include "_decode_rows.h"

#ifdef HAS_AVX2
#define TARGET AVX2
#define ROWS(name) avx2_##name
#define TOTAL(v) total_of((__m256)(v))
#define TOTALS(v, to) avx2_totals_of_four(v, to)
#include "_decode_rows.h"
#endif

/* What is called in plain C and by vectors. */
typedef struct {
    void (*norm)(const float *, size_t, const Norm *, int, float, float *);
    void (*attend)(const Look *);
    void (*join)(const float *, size_t, size_t, float *);
    void (*activate)(int64_t, float *, const float *, size_t);
} Rows;

static const Rows *rows_for(int fast)
{
    static const Rows plain = {plain_norm, plain_attend, plain_join, plain_activate};
#ifdef HAS_AVX2
    static const Rows vectors = {avx2_norm, avx2_attend, avx2_join, avx2_activate};
    if (fast && avx2_here())
        return &vectors;
#endif
    (void)fast;
    return &plain;
}

#endif
