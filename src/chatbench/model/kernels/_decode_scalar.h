/* The products in plain C: for every processor, and the twin of the vectorised ones. */

#ifndef DECODE_SCALAR_H
#define DECODE_SCALAR_H

#include <math.h>

#include "_decode_job.h"

/* The factor from activations to codes -127 to 127; 0 where all codes are to be 0. `finite` is 0,
   or not a number when some activation is not finite. */
static float code_inverse(float most, float finite)
{
    float inverse = most > 0.0f && finite == 0.0f ? 127.0f / most : 0.0f;
    /* The inverse of the smallest numbers is not finite. */
    return inverse <= 3e38f ? inverse : 0.0f;
}

/* What a code is worth: not a number when some activation is not finite, and so is every result. */
static float code_step(float most, float finite)
{
    return finite == 0.0f ? most / 127.0f : NAN;
}

/* One run of at most RUN activations as codes; the missing ones are 0. */
static void quantize_run(const float *x, size_t count, int8_t *codes, float *step, float *sum)
{
    float most = 0.0f, finite = 0.0f;
    for (size_t k = 0; k < count; k++) {
        float size = fabsf(x[k]);
        most = size > most ? size : most;
        finite += x[k] * 0.0f;
    }
    float inverse = code_inverse(most, finite);
    int32_t total = 0;
    for (size_t k = 0; k < RUN; k++) {
        float scaled = k < count && inverse > 0.0f ? x[k] * inverse : 0.0f;
        codes[k] = (int8_t)(int)(scaled + copysignf(0.5f, scaled));
        total += codes[k];
    }
    *step = code_step(most, finite);
    *sum = *step * (float)total;
}

static void scalar_plain(const Job *job, size_t begin, size_t end)
{
    const float *wide = job->weights;
    const uint16_t *narrow = job->weights;
    for (size_t m = 0; m < job->rows; m++)
        for (size_t n = begin; n < end; n++) {
            const float *x = job->x + m * job->inputs;
            float lanes[8] = {0.0f};
            for (size_t k = 0; k < job->inputs; k++) {
                size_t at = n * job->inputs + k;
                lanes[k % 8] += x[k] * (job->kind == FLOAT32 ? wide[at] : widen(narrow[at]));
            }
            float total = 0.0f;
            for (size_t lane = 0; lane < 8; lane++)
                total += lanes[lane];
            put(job, m, n, total);
        }
}

static void scalar_int8(const Job *job, size_t begin, size_t end)
{
    const int8_t *weights = job->weights;
    size_t runs = job->padded / RUN;
    for (size_t m = 0; m < job->rows; m++)
        for (size_t n = begin; n < end; n++) {
            float total = 0.0f;
            for (size_t run = 0; run < runs; run++) {
                int32_t sum = 0;
                for (size_t k = run * RUN; k < job->inputs && k < (run + 1) * RUN; k++)
                    sum += job->codes[m * job->padded + k] * weights[n * job->inputs + k];
                total += (float)sum * job->steps[m * runs + run];
            }
            put(job, m, n, total * widen(job->scales[n]));
        }
}

static void scalar_int4(const Job *job, size_t begin, size_t end)
{
    const uint8_t *weights = job->weights;
    size_t runs = job->padded / RUN, half = job->block / 2;
    for (size_t m = 0; m < job->rows; m++)
        for (size_t n = begin; n < end; n++) {
            const uint8_t *block = weights + n / job->block * job->inputs * half;
            size_t column = n % job->block % half;
            int shift = n % job->block >= half ? 4 : 0;
            float total = 0.0f;
            for (size_t run = 0; run < runs; run++) {
                int32_t sum = 0;
                for (size_t k = 0; k < RUN; k++) {
                    size_t at = run * RUN + k;
                    int code = block[at * half + column] >> shift & 15;
                    sum += job->codes[m * job->padded + at] * code;
                }
                size_t place = run * RUN / job->group * job->outputs + n;
                const uint16_t *pair = job->scales + place * 2;
                float scale = widen(pair[0]), zero = widen(pair[1]);
                total += (float)sum * (scale * job->steps[m * runs + run]);
                total += (zero - 8.0f * scale) * job->sums[m * runs + run];
            }
            put(job, m, n, total);
        }
}

#endif
