/* What the passes of a training step have in common. Numbers lie in memory as float32 or bfloat16
   and are computed in float32, eight at a time. */

#ifndef TRAIN_ROWS_H
#define TRAIN_ROWS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { FLOAT32, BFLOAT16 };
#define EIGHT 8
/* Rows whose share of a weight's gradient is summed before the shares are: always the same rows,
   so that the sum does not depend on the number of threads. */
#define BLOCK_ROWS 32
/* The widest head that is turned. */
#define MOST_HEAD 512

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(16)));

/* Strides, in numbers, of a (rows, tokens, heads, width) array whose width is contiguous. */
typedef struct {
    ptrdiff_t row, token, head;
} Strides;

typedef struct {
    int kind;
    size_t rows, width; /* what is walked over */
    const void *x, *second, *upstream; /* inputs, and the gradient of the output */
    const void *weight;
    void *out, *out_second; /* outputs, or gradients of the inputs */
    float *scale; /* (rows,): 1 / root of the mean square */
    float *shares; /* (blocks of rows, width): shares of the weight's gradient */
    float eps;
    size_t tokens, heads; /* rows are (batch, tokens, heads) */
    const void *cosine, *sine; /* (positions, width) */
    size_t position_rows; /* 1: one table for every batch row */
    Strides at, to, back; /* of x, of out, of upstream */
    const int64_t *targets;
    size_t group, before; /* of a tile of attention: rows of a query, keys before its first */
    float *losses; /* (rows,) */
} Job;

/* Computes rows (or numbers) begin to end. */
typedef void (*Pass)(const Job *job, size_t begin, size_t end);

#endif
