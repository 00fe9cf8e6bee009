/* What a step computes beside its products: norms, rotary positions, attention, activations, each
   for one row. Included once for each set of instructions: TARGET says which, ROWS(name) names the
   functions, TOTAL(v) sums eight lanes and TOTALS(v, to) those of four vectors. Vectors of eight
   lanes are the compiler's own, so that every processor has the same few lines. */

#define LANES static inline __attribute__((always_inline)) TARGET

LANES Eight ROWS(load)(const void *values, int narrow, size_t at)
{
    if (!narrow)
        return *(const Eight_at *)((const float *)values + at);
    Wide wide = __builtin_convertvector(*(const Half_at *)((const uint16_t *)values + at), Wide);
    return (Eight)(wide << 16);
}

LANES void ROWS(store)(float *to, Eight v)
{
    *(Eight_at *)to = v;
}

LANES Eight ROWS(all)(float value)
{
    return (Eight){value, value, value, value, value, value, value, value};
}

LANES Eight ROWS(chosen)(Mask mask, Eight yes, Eight no)
{
    return (Eight)((mask & (Mask)yes) | (~mask & (Mask)no));
}

/* e to the x, to some units in the last place; x beyond ±87 counts as ±87, not a number stays
   one. 2^n by the exponent's bits, the rest by its series (Cephes, Moshier 1992). */
LANES Eight ROWS(exponential)(Eight x)
{
    const Eight low = ROWS(all)(-87.0f), high = ROWS(all)(87.0f), magic = ROWS(all)(12582912.0f);
    x = ROWS(chosen)(x < low, low, ROWS(chosen)(x > high, high, x));
    Eight shifted = x * 1.44269504f + magic, n = shifted - magic;
    Eight rest = x - n * 0.693359375f;
    rest = rest + n * 2.12194440e-4f;
    Eight sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    return sum * (Eight)(((Mask)shifted << 23) + 0x3f800000);
}

/* ---- norms and rotary positions */

/* x (C) → its RMS norm, or its layer norm with `layer`. `out` may be x. */
TARGET static void ROWS(norm)(const float *x, size_t width, const Norm *norm, int layer,
                              float eps, float *out)
{
    size_t whole = width / 8 * 8, k;
    float mean = 0.0f, square = 0.0f;
    Eight sum = {0.0f};
    for (k = 0; layer && k < whole; k += 8)
        sum += ROWS(load)(x, 0, k);
    for (; layer && k < width; k++)
        mean += x[k];
    mean = (mean + TOTAL(sum)) / (float)width;
    sum = ROWS(all)(0.0f);
    for (k = 0; k < whole; k += 8) {
        Eight away = ROWS(load)(x, 0, k) - mean;
        sum += away * away;
    }
    for (; k < width; k++)
        square += (x[k] - mean) * (x[k] - mean);
    float factor = 1.0f / sqrtf((square + TOTAL(sum)) / (float)width + eps);
    for (k = 0; k < whole; k += 8) {
        Eight value = (ROWS(load)(x, 0, k) - mean) * factor;
        value *= ROWS(load)(norm->weight.values, (int)norm->weight.narrow, k);
        if (norm->bias.values)
            value += ROWS(load)(norm->bias.values, (int)norm->bias.narrow, k);
        ROWS(store)(out + k, value);
    }
    for (; k < width; k++)
        out[k] = (x[k] - mean) * factor * number_at(&norm->weight, k)
                 + (norm->bias.values ? number_at(&norm->bias, k) : 0.0f);
}

/* A head made ready for its dot products: normed where there is a norm, then turned. */
LANES void ROWS(head)(const Look *look, const float *from, const Numbers *norm, float *to)
{
    size_t half = look->width / 2;
    memcpy(to, from, look->width * sizeof(float));
    if (norm->values) {
        Norm whole = {*norm, {NULL, 0}};
        ROWS(norm)(to, look->width, &whole, 0, look->eps, to);
    }
    for (size_t k = 0; look->cosines && k < half; k++) {
        float first = to[k], second = to[k + half];
        to[k] = first * look->cosines[k] - second * look->sines[k];
        to[k + half] = second * look->cosines[k] + first * look->sines[k];
    }
}

/* ---- attention of the heads that share a key-value head, over some places of one row */

/* Dot products of q with `count` (at most 4) keys, the first of them at `at`. */
LANES void ROWS(dots)(const Look *look, int narrow, const float *q, size_t at, int count,
                      float *out)
{
    Eight sums[4];
    float totals[4];
    size_t width = look->width, k = 0;
    Numbers keys = {look->keys, narrow};
    for (int i = 0; i < count; i++)
        sums[i] = ROWS(all)(0.0f);
    for (; k + 8 <= width; k += 8) {
        Eight some = ROWS(load)(q, 0, k);
        for (int i = 0; i < count; i++)
            sums[i] += some * ROWS(load)(look->keys, narrow, at + (size_t)i * look->stride + k);
    }
    if (count == 4)
        TOTALS(sums, totals);
    else
        for (int i = 0; i < count; i++)
            totals[i] = TOTAL(sums[i]);
    for (; k < width; k++)
        for (int i = 0; i < count; i++)
            totals[i] += q[k] * number_at(&keys, at + (size_t)i * look->stride + k);
    for (int i = 0; i < count; i++)
        out[i] = totals[i];
}

/* Places lie apart in the cache, so that no processor fetches them ahead by itself. */
LANES void ROWS(fetch)(const void *numbers, int narrow, size_t at, size_t width)
{
    size_t size = narrow ? 2 : 4;
    for (size_t line = 0; line < width * size; line += 64)
        __builtin_prefetch((const char *)numbers + at * size + line);
}

/* scores (T, padded with the lowest number) → e^(score - most), their sum; returns `most`. */
LANES float ROWS(exponents)(float *scores, size_t count, float *total)
{
    size_t padded = (count + 7) / 8 * 8;
    for (size_t t = count; t < padded; t++)
        scores[t] = -FLT_MAX;
    Eight most = ROWS(load)(scores, 0, 0), sum = {0.0f};
    for (size_t t = 8; t < padded; t += 8) {
        Eight some = ROWS(load)(scores, 0, t);
        most = ROWS(chosen)(some > most, some, most);
    }
    float largest = most[0];
    for (int lane = 1; lane < 8; lane++)
        largest = most[lane] > largest ? most[lane] : largest;
    for (size_t t = 0; t < padded; t += 8) {
        Eight power = ROWS(exponential)(ROWS(load)(scores, 0, t) - largest);
        ROWS(store)(scores + t, power);
        sum += power;
    }
    *total = TOTAL(sum);
    return largest;
}

/* `tall` vectors of columns from k on, summed over all places. */
LANES void ROWS(columns)(const Look *look, int narrow, const float *powers, size_t k, int tall,
                         float *out)
{
    Eight sums[8];
    for (int i = 0; i < tall; i++)
        sums[i] = ROWS(all)(0.0f);
    size_t at = look->begin * look->stride + k;
    for (size_t t = 0; t < look->end - look->begin; t++, at += look->stride) {
        ROWS(fetch)(look->values, narrow, at + 4 * look->stride, 8 * (size_t)tall);
        for (int i = 0; i < tall; i++)
            sums[i] += powers[t] * ROWS(load)(look->values, narrow, at + 8 * (size_t)i);
    }
    for (int i = 0; i < tall; i++)
        ROWS(store)(out + k + 8 * (size_t)i, sums[i]);
}

LANES void ROWS(weighted)(const Look *look, int narrow, const float *powers, float *out)
{
    size_t k = 0;
    for (; k + 64 <= look->width; k += 64)
        ROWS(columns)(look, narrow, powers, k, 8, out);
    for (; k + 8 <= look->width; k += 8)
        ROWS(columns)(look, narrow, powers, k, 1, out);
    Numbers values = {look->values, narrow};
    for (; k < look->width; k++) {
        float sum = 0.0f;
        for (size_t t = look->begin; t < look->end; t++)
            sum += powers[t - look->begin] * number_at(&values, t * look->stride + k);
        out[k] = sum;
    }
}

LANES void ROWS(look_at)(const Look *look, int narrow)
{
    size_t width = look->width;
    float *q = look->scratch, *scores = q + look->heads * width;
    size_t room = (look->end - look->begin + 7) / 8 * 8;
    for (size_t g = 0; g < look->heads; g++) {
        ROWS(head)(look, look->q + g * width, look->q_norm, q + g * width);
        for (size_t k = 0; k < width; k++)
            q[g * width + k] *= look->scale;
    }
    size_t t = look->begin;
    for (; t + 4 <= look->end; t += 4) {
        for (size_t ahead = t + 4; ahead < t + 8; ahead++)
            ROWS(fetch)(look->keys, narrow, ahead * look->stride, width);
        for (size_t g = 0; g < look->heads; g++)
            ROWS(dots)(look, narrow, q + g * width, t * look->stride, 4,
                       scores + g * room + t - look->begin);
    }
    for (; t < look->end; t++)
        for (size_t g = 0; g < look->heads; g++)
            ROWS(dots)(look, narrow, q + g * width, t * look->stride, 1,
                       scores + g * room + t - look->begin);
    for (size_t g = 0; g < look->heads; g++) {
        float *found = look->found + g * look->apart;
        found[0] = ROWS(exponents)(scores + g * room, look->end - look->begin, found + 1);
        ROWS(weighted)(look, narrow, scores + g * room, found + 2);
    }
}

/* Puts the new key and value into the cache, where they are in sight, then looks. */
TARGET static void ROWS(attend)(const Look *look)
{
    if (look->append) {
        float *key = look->scratch;
        size_t at = (look->end - 1) * look->stride;
        ROWS(head)(look, look->k, look->k_norm, key);
        for (size_t k = 0; k < look->width; k++)
            if (look->narrow) {
                ((uint16_t *)look->keys)[at + k] = narrowed(key[k]);
                ((uint16_t *)look->values)[at + k] = narrowed(look->v[k]);
            } else {
                ((float *)look->keys)[at + k] = key[k];
                ((float *)look->values)[at + k] = look->v[k];
            }
    }
    if (look->narrow)
        ROWS(look_at)(look, 1);
    else
        ROWS(look_at)(look, 0);
}

/* What one head saw in `parts` looks, each (largest score, sum, D columns) → out (D). */
TARGET static void ROWS(join)(const float *parts, size_t count, size_t width, float *out)
{
    size_t size = width + 2;
    float powers[MOST_LOOKS] = {0.0f}, all = 0.0f, ignored;
    for (size_t part = 0; part < count; part++)
        powers[part] = parts[part * size];
    ROWS(exponents)(powers, count, &ignored);
    for (size_t part = 0; part < count; part++)
        all += powers[part] * parts[part * size + 1];
    for (size_t k = 0; k < width; k++) {
        float sum = 0.0f;
        for (size_t part = 0; part < count; part++)
            sum += powers[part] * parts[part * size + 2 + k];
        out[k] = sum / all;
    }
}

/* ---- activations */

LANES Eight ROWS(active)(Eight x, int64_t kind)
{
    const Eight zero = ROWS(all)(0.0f);
    Eight slope = x;
    if (kind == RELU || kind == RELU2) {
        x = ROWS(chosen)(x < zero, zero, x);
        return kind == RELU ? x : x * x;
    }
    if (kind == QUICK_GELU)
        slope = x * 1.702f;
    if (kind == GELU_TANH) /* ½(1 + tanh u) is the logistic function of 2u */
        slope = 1.5957691216f * (x + 0.044715f * x * x * x);
    return x / (1.0f + ROWS(exponential)(-slope));
}

/* inner = act(inner)·up, or act(inner) without up; `count` numbers. */
TARGET static void ROWS(activate)(int64_t kind, float *inner, const float *up, size_t count)
{
    for (size_t k = 0; k < count; k += 8) {
        float some[8] = {0.0f};
        size_t left = count - k < 8 ? count - k : 8;
        memcpy(some, inner + k, left * sizeof(float));
        if (kind == GELU || kind == TANH)
            for (size_t i = 0; i < left; i++)
                some[i] = kind == TANH ? tanhf(some[i])
                                       : 0.5f * some[i] * (1.0f + erff(some[i] * 0.70710678f));
        else
            ROWS(store)(some, ROWS(active)(ROWS(load)(some, 0, 0), kind));
        for (size_t i = 0; up && i < left; i++)
            some[i] *= up[k + i];
        memcpy(inner + k, some, left * sizeof(float));
    }
}

#undef LANES
#undef TARGET
#undef ROWS
#undef TOTAL
#undef TOTALS
