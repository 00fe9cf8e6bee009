/* The products with NEON, the vectors of 64-bit Arm. Used only where the self-test of
   _decode_products.h finds them to compute what plain C does. */

#ifndef DECODE_NEON_H
#define DECODE_NEON_H

#if defined(__aarch64__) && defined(__ARM_NEON)
#define HAS_NEON 1
#include <arm_neon.h>

#include "_decode_job.h"

static int neon_here(void)
{
    return 1; /* part of every processor of this kind */
}

static inline float32x4_t four_weights(const Job *job, size_t at)
{
    if (job->kind == FLOAT32)
        return vld1q_f32((const float *)job->weights + at);
    uint16x4_t narrow = vld1_u16((const uint16_t *)job->weights + at);
    return vreinterpretq_f32_u32(vshll_n_u16(narrow, 16));
}

static void neon_plain(const Job *job, size_t begin, size_t end)
{
    const float *wide = job->weights;
    const uint16_t *narrow = job->weights;
    for (size_t n = begin; n < end; n++)
        for (size_t m = 0; m < job->rows; m++) {
            const float *x = job->x + m * job->inputs;
            size_t row = n * job->inputs, k = 0;
            float32x4_t sums[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
            for (; k + 16 <= job->inputs; k += 16)
                for (size_t i = 0; i < 4; i++)
                    sums[i] = vfmaq_f32(sums[i], four_weights(job, row + k + 4 * i),
                                        vld1q_f32(x + k + 4 * i));
            float total = vaddvq_f32(
                vaddq_f32(vaddq_f32(sums[0], sums[1]), vaddq_f32(sums[2], sums[3])));
            for (; k < job->inputs; k++)
                total += x[k] * (job->kind == FLOAT32 ? wide[row + k] : widen(narrow[row + k]));
            put(job, m, n, total);
        }
}

/* Products of 8 bits stay below 127², two of them within 16 bits. */
static void neon_int8(const Job *job, size_t begin, size_t end)
{
    size_t runs = job->padded / RUN;
    for (size_t n = begin; n < end; n++)
        for (size_t m = 0; m < job->rows; m++) {
            float total = 0.0f;
            for (size_t run = 0; run < runs; run++) {
                const int8_t *weights = (const int8_t *)job->weights + n * job->inputs + run * RUN;
                const int8_t *codes = job->codes + m * job->padded + run * RUN;
                size_t left = job->inputs - run * RUN;
                int8_t some[RUN] = {0};
                if (left < RUN)
                    weights = memcpy(some, weights, left);
                int32x4_t sum = vdupq_n_s32(0);
                for (size_t k = 0; k < RUN; k += 16) {
                    int8x16_t w = vld1q_s8(weights + k), x = vld1q_s8(codes + k);
                    int16x8_t two = vmull_s8(vget_low_s8(w), vget_low_s8(x));
                    sum = vpadalq_s16(sum, vmlal_high_s8(two, w, x));
                }
                total += (float)vaddvq_s32(sum) * job->steps[m * runs + run];
            }
            put(job, m, n, total * widen(job->scales[n]));
        }
}

/* Sums of 16 products, at most 16·15·127 = 30,480, fit 16 bits; then they are made wide. */
static void neon_run(const uint8_t *bytes, size_t stride, const int8_t *codes, int32_t *found)
{
    int32x4_t wide[8];
    for (size_t i = 0; i < 8; i++)
        wide[i] = vdupq_n_s32(0);
    for (size_t half = 0; half < RUN; half += 16) {
        int16x8_t sums[4];
        for (size_t i = 0; i < 4; i++)
            sums[i] = vdupq_n_s16(0);
        for (size_t k = half; k < half + 16; k++) {
            uint8x16_t pair = vld1q_u8(bytes + k * stride);
            int8x16_t low = vreinterpretq_s8_u8(vandq_u8(pair, vdupq_n_u8(15)));
            int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(pair, 4));
            int8x16_t x = vdupq_n_s8(codes[k]);
            sums[0] = vmlal_s8(sums[0], vget_low_s8(low), vget_low_s8(x));
            sums[1] = vmlal_high_s8(sums[1], low, x);
            sums[2] = vmlal_s8(sums[2], vget_low_s8(high), vget_low_s8(x));
            sums[3] = vmlal_high_s8(sums[3], high, x);
        }
        for (size_t i = 0; i < 4; i++) {
            wide[2 * i] = vaddw_s16(wide[2 * i], vget_low_s16(sums[i]));
            wide[2 * i + 1] = vaddw_high_s16(wide[2 * i + 1], sums[i]);
        }
    }
    for (size_t i = 0; i < 8; i++)
        vst1q_s32(found + 4 * i, wide[i]);
}

static void neon_int4(const Job *job, size_t begin, size_t end)
{
    size_t half = job->block / 2, runs = job->padded / RUN;
    for (size_t n = begin; n < end; n += job->block)
        for (size_t column = 0; column < half; column += 16)
            for (size_t m = 0; m < job->rows; m++) {
                const uint8_t *bytes = (const uint8_t *)job->weights + n * job->inputs / 2 + column;
                float totals[STRIP] = {0.0f};
                for (size_t run = 0; run < runs; run++) {
                    int32_t found[STRIP];
                    neon_run(bytes + run * RUN * half, half,
                             job->codes + m * job->padded + run * RUN, found);
                    float step = job->steps[m * runs + run], sum = job->sums[m * runs + run];
                    for (size_t i = 0; i < STRIP; i++) {
                        size_t row = n + column + i % 16 + i / 16 * half;
                        size_t place = run * RUN / job->group * job->outputs + row;
                        float scale = widen(job->scales[2 * place]);
                        float zero = widen(job->scales[2 * place + 1]);
                        totals[i] += (float)found[i] * (scale * step);
                        totals[i] += (zero - 8.0f * scale) * sum;
                    }
                }
                for (size_t i = 0; i < STRIP; i++)
                    put(job, m, n + column + i % 16 + i / 16 * half, totals[i]);
            }
}

#endif
#endif
