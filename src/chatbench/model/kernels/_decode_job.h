/* What one product needs to know. Legend: M rows of activations, N outputs, K inputs. */

#ifndef DECODE_JOB_H
#define DECODE_JOB_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { FLOAT32, BFLOAT16, INT8, INT4 };

/* Activations are quantised by runs of this many inputs; groups of int4 are multiples of it. */
#define RUN 32
/* Rows of int4 weights that are computed together: two half-bytes of 16 bytes. */
#define STRIP 32
/* Blocks of int4 weights divide this many rows. */
#define MOST_BLOCK 64

typedef struct {
    int kind;
    size_t rows, outputs, inputs;
    size_t padded; /* K, or the next multiple of RUN */
    size_t group, block; /* int4: inputs that share a scale, weight rows of one packed block */
    const void *weights;
    const uint16_t *scales; /* bfloat16 (N,), or (K/group, N, 2) */
    const void *bias; /* (N,) or NULL */
    int narrow_bias; /* the bias is bfloat16, else float32 */
    int narrow; /* activations and result are bfloat16, else float32 */
    int add; /* the result is added to what `out` holds, which is float32 */
    void *out; /* (M, N) */
    const float *x; /* (M, K), for float32 and bfloat16 weights */
    int8_t *codes; /* (M, padded) */
    float *steps; /* (M, padded / RUN): what one code is worth */
    float *sums; /* (M, padded / RUN): the sum of what the codes are worth */
} Job;

/* Computes the outputs from begin to end, for all rows. */
typedef void (*Kernel)(const Job *job, size_t begin, size_t end);

static inline float widen(uint16_t narrow)
{
    uint32_t bits = (uint32_t)narrow << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* To the nearest bfloat16, ties to even; not a number stays one. */
static inline uint16_t narrowed(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static inline float bias_at(const Job *job, size_t n)
{
    if (!job->bias)
        return 0.0f;
    if (job->narrow_bias)
        return widen(((const uint16_t *)job->bias)[n]);
    return ((const float *)job->bias)[n];
}

static inline void put(const Job *job, size_t m, size_t n, float value)
{
    if (job->bias)
        value += bias_at(job, n);
    size_t at = m * job->outputs + n;
    if (job->narrow)
        ((uint16_t *)job->out)[at] = narrowed(value);
    else
        ((float *)job->out)[at] = job->add ? ((float *)job->out)[at] + value : value;
}

#endif
