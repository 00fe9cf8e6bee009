/* A model and its caches as step.py describes them: all fields are of 8 bytes, in this order. */

#ifndef DECODE_MODEL_H
#define DECODE_MODEL_H

#include "_decode_job.h"

_Static_assert(sizeof(void *) == 8, "addresses of 8 bytes are described");

/* Some numbers, float32 or (narrow) bfloat16; none where `values` is NULL. */
typedef struct {
    const void *values;
    int64_t narrow;
} Numbers;

/* Outputs = inputs · weightsᵀ + bias; fields as those of Job. */
typedef struct {
    int64_t kind, outputs, inputs, block, group;
    const void *weights;
    const uint16_t *scales;
    Numbers bias;
} Layer;

typedef struct {
    Numbers weight, bias;
} Norm;

/* `gate` without weights: the feed-forward part has no gate. */
typedef struct {
    Norm before, between;
    Numbers q_norm, k_norm;
    Layer q, k, v, out, gate, up, down;
    double scale; /* of q·k */
    int64_t window; /* tokens that one sees, itself included; 0: all */
} Block;

enum { SILU, GELU, GELU_TANH, QUICK_GELU, RELU, RELU2, TANH };

typedef struct {
    int64_t layers, width, heads, kv_heads, head_dim, inner, vocabulary, context;
    int64_t activation, layer_norm; /* layer_norm: LayerNorm, else RMSNorm */
    double eps;
    Numbers embeddings, positions; /* (V, C), (context, C); positions are rotary without */
    Norm last;
    Layer head;
} Model;

/* Keys and values of one layer, (rows, capacity, K, D). */
typedef struct {
    void *keys, *values;
    int64_t narrow, capacity;
} Cache;

static inline float number_at(const Numbers *numbers, size_t at)
{
    return numbers->narrow ? widen(((const uint16_t *)numbers->values)[at])
                           : ((const float *)numbers->values)[at];
}

#endif
