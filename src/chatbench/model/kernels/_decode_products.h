/* Which kernel computes a product, and activations made ready for it. */

#ifndef DECODE_PRODUCTS_H
#define DECODE_PRODUCTS_H

#include <stdio.h>
#include <stdlib.h>

#include "_decode_avx2.h"
#include "_decode_avx512.h"
#include "_decode_job.h"
#include "_decode_neon.h"
#include "_decode_scalar.h"

/* Bytes of weights that a thread takes at a time. */
#define PIECE (48 * 1024)

static const char *const kinds[] = {"float32", "bfloat16", "int8", "int4"};
static const Kernel in_plain_c[] = {scalar_plain, scalar_plain, scalar_int8, scalar_int4};

/* Instructions that a processor may have, the best last. */
typedef struct {
    const char *name;
    int (*here)(void);
    Kernel kernels[4];
} Variant;

#ifdef HAS_AVX2
static int avx2_here(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

static int never_here(void)
{
    return 0;
}

static const Variant variants[] = {
#ifdef HAS_AVX2
    {"AVX2", avx2_here, {avx2_float32, avx2_bfloat16, avx2_int8, avx2_int4}},
#endif
#ifdef HAS_AVX512
    {"AVX-512", avx512_here, {avx512_float32, avx512_bfloat16, avx512_int8, avx512_int4}},
#endif
#ifdef HAS_NEON
    {"NEON", neon_here, {neon_plain, neon_plain, neon_int8, neon_int4}},
#endif
    {"", never_here, {NULL, NULL, NULL, NULL}},
};

/* For each kind the best variant that is here and computes what plain C does; NULL: plain C. */
static const Variant *chosen[4];
static char faults[256]; /* what is here and computes something else, in words */

static Kernel kernel_for(const Job *job, int fast)
{
    const Variant *variant = chosen[job->kind];
    if (!fast || !variant || (job->kind == INT4 && job->block % STRIP))
        return in_plain_c[job->kind];
    return variant->kernels[job->kind];
}

/* Whether what is no product may be vectorised. */
static int has_vectors(void)
{
#ifdef HAS_AVX2
    return avx2_here();
#else
    return 0;
#endif
}

static size_t padded_to_runs(size_t inputs)
{
    return (inputs + RUN - 1) / RUN * RUN;
}

/* (M, K) activations as codes (M, padded), with steps and sums (M, padded / RUN). */
static void quantize_rows(const float *x, size_t rows, size_t inputs, int fast, int8_t *codes,
                          float *steps, float *sums)
{
    fast = fast && has_vectors();
    for (size_t m = 0; m < rows; m++)
        for (size_t begin = 0; begin < inputs; begin += RUN, codes += RUN, steps++, sums++) {
            const float *run = x + m * inputs + begin;
            size_t left = inputs - begin;
#ifdef HAS_AVX2
            if (fast && left >= RUN) {
                avx2_quantize_run(run, codes, steps, sums);
                continue;
            }
#endif
            quantize_run(run, left < RUN ? left : RUN, codes, steps, sums);
        }
}

/* Outputs of one piece: whole blocks of weights, about PIECE bytes. */
static size_t piece_of(const Job *job)
{
    static const size_t bits[] = {32, 16, 8, 4};
    size_t row = job->inputs * bits[job->kind] / 8, grain = job->kind == INT4 ? job->block : 8;
    return (PIECE / (row ? row : 1) / grain + 1) * grain;
}

static int job_fits(const Job *job)
{
    if (job->kind < FLOAT32 || job->kind > INT4 || (job->kind >= INT8) != (job->scales != NULL))
        return 0;
    return job->kind != INT4
           || (job->block >= 2 && job->block % 2 == 0 && job->outputs % job->block == 0
               && job->group && job->group % RUN == 0 && job->inputs % job->group == 0);
}

/* ---- the self-test: a small product by a variant and by plain C */

#define TRIED_ROWS 3 /* kernels take rows by two and one by one */
#define TRIED_OUTPUTS 128
#define TRIED_INPUTS 192

typedef struct {
    float x[TRIED_ROWS * TRIED_INPUTS], steps[TRIED_ROWS * TRIED_INPUTS / RUN];
    float sums[TRIED_ROWS * TRIED_INPUTS / RUN], out[2][TRIED_ROWS * TRIED_OUTPUTS];
    int8_t codes[TRIED_ROWS * TRIED_INPUTS];
    uint8_t weights[TRIED_OUTPUTS * TRIED_INPUTS * sizeof(float)];
    uint16_t scales[2 * TRIED_OUTPUTS * TRIED_INPUTS / RUN];
} Trial;

static uint32_t some_bits(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static float some_number(uint32_t *state)
{
    return (float)some_bits(state) / (float)(1 << 23) - 1.0f;
}

static void fill_trial(Trial *trial, int kind)
{
    uint32_t state = 20;
    size_t weights = TRIED_OUTPUTS * TRIED_INPUTS;
    for (size_t i = 0; i < TRIED_ROWS * TRIED_INPUTS; i++)
        trial->x[i] = some_number(&state);
    for (size_t i = 0; i < sizeof trial->scales / sizeof *trial->scales; i++)
        trial->scales[i] = narrowed(some_number(&state));
    for (size_t i = 0; i < weights; i++) {
        float value = some_number(&state);
        uint16_t narrow = narrowed(value);
        if (kind == FLOAT32)
            memcpy(trial->weights + 4 * i, &value, sizeof value);
        else if (kind == BFLOAT16)
            memcpy(trial->weights + 2 * i, &narrow, sizeof narrow);
        else if (kind == INT8)
            trial->weights[i] = (uint8_t)(int8_t)(127.0f * value);
        else
            trial->weights[i] = (uint8_t)some_bits(&state);
    }
}

/* Whether a kernel computes what plain C does, but for rounding, at this shape. */
static int is_right(Trial *trial, int kind, Kernel kernel, size_t inputs, size_t outputs,
                    size_t block, size_t group)
{
    Job job = {
        .kind = kind, .rows = TRIED_ROWS, .outputs = outputs, .inputs = inputs,
        .padded = padded_to_runs(inputs), .block = block, .group = group,
        .weights = trial->weights, .scales = trial->scales, .x = trial->x, .codes = trial->codes,
        .steps = trial->steps, .sums = trial->sums,
    };
    float most = 0.0f, off = 0.0f;
    fill_trial(trial, kind);
    quantize_rows(trial->x, TRIED_ROWS, inputs, 0, trial->codes, trial->steps, trial->sums);
    job.out = trial->out[0];
    in_plain_c[kind](&job, 0, outputs);
    job.out = trial->out[1];
    kernel(&job, 0, outputs);
    for (size_t i = 0; i < TRIED_ROWS * outputs; i++) {
        float wanted = fabsf(trial->out[0][i]), away = fabsf(trial->out[0][i] - trial->out[1][i]);
        most = wanted > most ? wanted : most;
        off = away <= off ? off : away; /* not a number is kept */
    }
    return off <= 1e-4f * most;
}

static int passes(Trial *trial, const Variant *variant, int kind)
{
    Kernel kernel = variant->kernels[kind];
    if (kind == INT4)
        return is_right(trial, kind, kernel, TRIED_INPUTS, TRIED_OUTPUTS, 64, 32)
               && is_right(trial, kind, kernel, TRIED_INPUTS, TRIED_OUTPUTS, 32, 64);
    return is_right(trial, kind, kernel, TRIED_INPUTS, TRIED_OUTPUTS, 1, 0)
           && is_right(trial, kind, kernel, 101, 7, 1, 0);
}

/* Finds what is fastest here. Returns -1 when there is no memory. */
static int choose_variants(void)
{
    Trial *trial = malloc(sizeof *trial);
    if (!trial)
        return -1;
    faults[0] = 0;
    for (const Variant *variant = variants; variant->kernels[0]; variant++)
        for (int kind = 0; kind < 4 && variant->here(); kind++) {
            if (passes(trial, variant, kind)) {
                chosen[kind] = variant;
                continue;
            }
            size_t used = strlen(faults);
            snprintf(faults + used, sizeof faults - used, "%s%s %s failed its test",
                     used ? ", " : "", variant->name, kinds[kind]);
        }
    free(trial);
    return 0;
}

#endif
