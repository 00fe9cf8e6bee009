/* The passes themselves. Included once for each set of instructions, with TARGET and NAME. */

#define INLINE static inline __attribute__((always_inline)) TARGET
#define PASS(name) static TARGET void NAME(name)

/* ---- eight numbers */

INLINE Floats NAME(every)(float value)
{
    return (Floats){value, value, value, value, value, value, value, value};
}

INLINE Floats NAME(take)(const void *from, int kind, size_t at)
{
    if (kind == FLOAT32) {
        Floats numbers;
        memcpy(&numbers, (const float *)from + at, sizeof numbers);
        return numbers;
    }
    Halves halves;
    memcpy(&halves, (const uint16_t *)from + at, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

/* To the nearest bfloat16, ties to even; not a number stays one. */
INLINE Halves NAME(narrow)(Floats numbers)
{
    Words bits = (Words)numbers, rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    Words odd = (Words)(numbers != numbers);
    return __builtin_convertvector((rounded & ~odd) | ((bits >> 16 | 0x40u) & odd), Halves);
}

INLINE void NAME(put)(void *to, int kind, size_t at, Floats numbers)
{
    if (kind == FLOAT32) {
        memcpy((float *)to + at, &numbers, sizeof numbers);
        return;
    }
    Halves halves = NAME(narrow)(numbers);
    memcpy((uint16_t *)to + at, &halves, sizeof halves);
}

/* The last `left` numbers, fewer than eight; the missing ones are `missing`. */
INLINE Floats NAME(take_last)(const void *from, int kind, size_t at, size_t left, float missing)
{
    Floats numbers = NAME(every)(missing);
    for (size_t i = 0; i < left; i++) {
        uint32_t bits = 0;
        if (kind == FLOAT32)
            memcpy(&bits, (const float *)from + at + i, 4);
        else
            bits = (uint32_t)((const uint16_t *)from)[at + i] << 16;
        float value;
        memcpy(&value, &bits, 4);
        numbers[i] = value;
    }
    return numbers;
}

INLINE void NAME(put_last)(void *to, int kind, size_t at, size_t left, Floats numbers)
{
    Halves halves = NAME(narrow)(numbers);
    for (size_t i = 0; i < left; i++) {
        if (kind == FLOAT32)
            ((float *)to)[at + i] = numbers[i];
        else
            ((uint16_t *)to)[at + i] = halves[i];
    }
}

INLINE Floats NAME(some)(const void *from, int kind, size_t at, size_t end)
{
    if (at + EIGHT <= end)
        return NAME(take)(from, kind, at);
    return NAME(take_last)(from, kind, at, end - at, 0.0f);
}

INLINE void NAME(give)(void *to, int kind, size_t at, size_t end, Floats numbers)
{
    if (at + EIGHT <= end)
        NAME(put)(to, kind, at, numbers);
    else
        NAME(put_last)(to, kind, at, end - at, numbers);
}

INLINE float NAME(total)(Floats n)
{
    return ((n[0] + n[4]) + (n[2] + n[6])) + ((n[1] + n[5]) + (n[3] + n[7]));
}

INLINE Floats NAME(choose)(Ints which, Floats yes, Floats no)
{
    return (Floats)(((Words)which & (Words)yes) | (~(Words)which & (Words)no));
}

/* e to the x within two units in the last place; zero below -87.3, finite up to 88.3. */
INLINE Floats NAME(power)(Floats x)
{
    const Floats high = NAME(every)(88.3f);
    const float magic = 12582912.0f; /* 1.5 times 2 to the 23: adding it rounds to an integer */
    Ints under = x < NAME(every)(-87.3f);
    x = NAME(choose)(x > high, high, x);
    Floats whole = x * 1.44269504f + magic;
    Words power = ((Words)whole << 23) + 0x3f800000u;
    whole = whole - magic;
    Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats sum = NAME(every)(1.9875691500e-4f);
    sum = sum * r + 1.3981999507e-3f;
    sum = sum * r + 8.3334519073e-3f;
    sum = sum * r + 4.1665795894e-2f;
    sum = sum * r + 1.6666665459e-1f;
    sum = sum * r + 5.0000001201e-1f;
    sum = sum * r * r + r + 1.0f;
    return (Floats)((Words)(sum * (Floats)power) & ~(Words)under);
}

/* ---- RMSNorm: out = x · scale · weight */

INLINE float NAME(inverse_root)(const void *x, int kind, size_t at, size_t width, float eps)
{
    Floats squares = NAME(every)(0.0f);
    for (size_t i = 0; i < width; i += EIGHT) {
        Floats n = NAME(some)(x, kind, at + i, at + width);
        squares += n * n;
    }
    return 1.0f / sqrtf(NAME(total)(squares) / (float)width + eps);
}

INLINE void NAME(norm_rows)(const Job *job, int kind, size_t begin, size_t end)
{
    size_t width = job->width;
    for (size_t row = begin; row < end; row++) {
        size_t at = row * width;
        float scale = NAME(inverse_root)(job->x, kind, at, width, job->eps);
        job->scale[row] = scale;
        for (size_t i = 0; i < width; i += EIGHT)
            NAME(give)(job->out, kind, at + i, at + width,
                       NAME(some)(job->x, kind, at + i, at + width) * scale
                           * NAME(some)(job->weight, kind, i, width));
    }
}

/* begin and end count blocks of rows. */
INLINE void NAME(norm_back_rows)(const Job *job, int kind, size_t begin, size_t end)
{
    size_t width = job->width;
    for (size_t block = begin; block < end; block++) {
        float *share = job->shares + block * width;
        memset(share, 0, width * sizeof *share);
        size_t last = (block + 1) * BLOCK_ROWS < job->rows ? (block + 1) * BLOCK_ROWS : job->rows;
        for (size_t row = block * BLOCK_ROWS; row < last; row++) {
            size_t at = row * width, stop = at + width;
            float scale = job->scale[row];
            Floats along = NAME(every)(0.0f);
            for (size_t i = 0; i < width; i += EIGHT) {
                Floats seen = NAME(some)(job->x, kind, at + i, stop);
                Floats told = NAME(some)(job->upstream, kind, at + i, stop) * seen * scale;
                NAME(give)(share, FLOAT32, i, width, NAME(some)(share, FLOAT32, i, width) + told);
                along += told * NAME(some)(job->weight, kind, i, width);
            }
            float mean = NAME(total)(along) / (float)width;
            for (size_t i = 0; i < width; i += EIGHT) {
                Floats seen = NAME(some)(job->x, kind, at + i, stop);
                Floats told = NAME(some)(job->upstream, kind, at + i, stop)
                              * NAME(some)(job->weight, kind, i, width);
                NAME(give)(job->out, kind, at + i, stop, (told - seen * scale * mean) * scale);
            }
        }
    }
}

/* ---- SwiGLU: out = x · sigmoid(x) · second */

INLINE void NAME(gate_numbers)(const Job *job, int kind, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i += EIGHT) {
        Floats x = NAME(some)(job->x, kind, i, end);
        Floats open = 1.0f / (1.0f + NAME(power)(-x));
        NAME(give)(job->out, kind, i, end, x * open * NAME(some)(job->second, kind, i, end));
    }
}

INLINE void NAME(gate_back_numbers)(const Job *job, int kind, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i += EIGHT) {
        Floats x = NAME(some)(job->x, kind, i, end), up = NAME(some)(job->second, kind, i, end);
        Floats told = NAME(some)(job->upstream, kind, i, end);
        Floats open = 1.0f / (1.0f + NAME(power)(-x));
        NAME(give)(job->out, kind, i, end, told * up * open * (1.0f + x * (1.0f - open)));
        NAME(give)(job->out_second, kind, i, end, told * x * open);
    }
}

/* ---- heads: RMSNorm of each head (where there is a weight), then its rotary position */

INLINE size_t NAME(place)(const Job *job, Strides strides, size_t row)
{
    size_t head = row % job->heads, token = row / job->heads % job->tokens;
    size_t batch = row / job->heads / job->tokens;
    return batch * (size_t)strides.row + token * (size_t)strides.token + head * (size_t)strides.head;
}

INLINE size_t NAME(table_row)(const Job *job, size_t row)
{
    size_t place = row / job->heads;
    return (job->position_rows == 1 ? place % job->tokens : place) * job->width;
}

INLINE void NAME(turn_rows)(const Job *job, int kind, size_t begin, size_t end)
{
    size_t width = job->width, half = width / 2;
    for (size_t row = begin; row < end; row++) {
        size_t x = NAME(place)(job, job->at, row), y = NAME(place)(job, job->to, row);
        size_t table = NAME(table_row)(job, row);
        float scale = 1.0f;
        if (job->weight)
            scale = job->scale[row] = NAME(inverse_root)(job->x, kind, x, width, job->eps);
        for (size_t i = 0; i < half; i += EIGHT) {
            Floats first = NAME(some)(job->x, kind, x + i, x + half) * scale;
            Floats second = NAME(some)(job->x, kind, x + half + i, x + width) * scale;
            if (job->weight) {
                first *= NAME(some)(job->weight, kind, i, half);
                second *= NAME(some)(job->weight, kind, half + i, width);
            }
            Floats c = NAME(some)(job->cosine, kind, table + i, table + half);
            Floats s = NAME(some)(job->sine, kind, table + i, table + half);
            NAME(give)(job->out, kind, y + i, y + half, first * c - second * s);
            NAME(give)(job->out, kind, y + half + i, y + width, second * c + first * s);
        }
    }
}

/* Of the gradient `told` behind the norm of the head at `x`, in place: the one before it. What the
   weight gets of it is added to `share`. */
INLINE void NAME(head_norm_back)(const Job *job, int kind, float *told, size_t x, float scale,
                                 float *share)
{
    size_t width = job->width;
    Floats along = NAME(every)(0.0f);
    for (size_t i = 0; i < width; i += EIGHT) {
        Floats part = NAME(take)(told, FLOAT32, i) * NAME(some)(job->x, kind, x + i, x + width) * scale;
        NAME(give)(share, FLOAT32, i, width, NAME(some)(share, FLOAT32, i, width) + part);
        along += part * NAME(some)(job->weight, kind, i, width);
    }
    float mean = NAME(total)(along) / (float)width;
    for (size_t i = 0; i < width; i += EIGHT) {
        Floats part = NAME(take)(told, FLOAT32, i) * NAME(some)(job->weight, kind, i, width);
        Floats seen = NAME(some)(job->x, kind, x + i, x + width);
        NAME(put)(told, FLOAT32, i, (part - seen * scale * mean) * scale);
    }
}

INLINE void NAME(turn_back_row)(const Job *job, int kind, size_t row, float *share)
{
    size_t width = job->width, half = width / 2, table = NAME(table_row)(job, row);
    size_t g = NAME(place)(job, job->back, row);
    float told[MOST_HEAD + EIGHT];
    memset(told + width / EIGHT * EIGHT, 0, EIGHT * sizeof *told);
    for (size_t i = 0; i < half; i += EIGHT) {
        Floats first = NAME(some)(job->upstream, kind, g + i, g + half);
        Floats second = NAME(some)(job->upstream, kind, g + half + i, g + width);
        Floats c = NAME(some)(job->cosine, kind, table + i, table + half);
        Floats s = NAME(some)(job->sine, kind, table + i, table + half);
        NAME(give)(told, FLOAT32, i, half, first * c + second * s);
        NAME(give)(told, FLOAT32, half + i, width, second * c - first * s);
    }
    if (share)
        NAME(head_norm_back)(job, kind, told, NAME(place)(job, job->at, row), job->scale[row], share);
    for (size_t i = 0; i < width; i += EIGHT)
        NAME(give)(job->out, kind, row * width + i, (row + 1) * width, NAME(take)(told, FLOAT32, i));
}

/* begin and end count blocks of rows; the gradient of x is contiguous. */
INLINE void NAME(turn_back_rows)(const Job *job, int kind, size_t begin, size_t end)
{
    for (size_t block = begin; block < end; block++) {
        float *share = job->weight ? job->shares + block * job->width : NULL;
        if (share)
            memset(share, 0, job->width * sizeof *share);
        size_t last = (block + 1) * BLOCK_ROWS < job->rows ? (block + 1) * BLOCK_ROWS : job->rows;
        for (size_t row = block * BLOCK_ROWS; row < last; row++)
            NAME(turn_back_row)(job, kind, row, share);
    }
}

/* ---- softmax over what is seen, in place */

INLINE float NAME(largest)(const void *x, int kind, size_t at, size_t count)
{
    Floats most = NAME(every)(-INFINITY);
    for (size_t i = 0; i < count; i += EIGHT) {
        Floats n = i + EIGHT <= count ? NAME(take)(x, kind, at + i)
                                      : NAME(take_last)(x, kind, at + i, count - i, -INFINITY);
        most = NAME(choose)(n > most, n, most);
    }
    float found = most[0];
    for (int i = 1; i < EIGHT; i++)
        found = most[i] > found ? most[i] : found;
    return found;
}

/* Leaves exp(x - most), returns the sum; both of float32. */
INLINE float NAME(powers)(float *x, size_t count, float most)
{
    Floats sum = NAME(every)(0.0f);
    size_t whole = count / EIGHT * EIGHT;
    for (size_t i = 0; i < whole; i += EIGHT) {
        Floats power = NAME(power)(NAME(take)(x, FLOAT32, i) - most);
        NAME(put)(x, FLOAT32, i, power);
        sum += power;
    }
    float rest = 0.0f;
    for (size_t i = whole; i < count; i++) {
        Floats power = NAME(power)(NAME(every)(x[i] - most));
        x[i] = power[0];
        rest += power[0];
    }
    return NAME(total)(sum) + rest;
}

/* A tile of attention: matrices of `tokens` queries, `group` rows each. A query sees the `before`
   keys before the tile's first query, and from there on those up to its own. float32 alone. */
INLINE void NAME(attend_rows)(const Job *job, int kind, size_t begin, size_t end)
{
    (void)kind;
    size_t width = job->width;
    for (size_t row = begin; row < end; row++) {
        float *x = (float *)job->out + row * width;
        size_t count = job->before + row % (job->tokens * job->group) / job->group + 1;
        float sum = NAME(powers)(x, count, NAME(largest)(x, FLOAT32, 0, count));
        float scale = 1.0f / sum;
        for (size_t i = 0; i < count; i += EIGHT)
            NAME(give)(x, FLOAT32, i, count, NAME(some)(x, FLOAT32, i, count) * scale);
        memset(x + count, 0, (width - count) * sizeof *x);
    }
}

/* In place of the logits of a row: softmax, less one at the target. float32 alone. */
INLINE void NAME(slope_rows)(const Job *job, int kind, size_t begin, size_t end)
{
    (void)kind;
    size_t width = job->width;
    for (size_t row = begin; row < end; row++) {
        float *x = (float *)job->out + row * width;
        float hit = x[job->targets[row]], most = NAME(largest)(x, FLOAT32, 0, width);
        float sum = NAME(powers)(x, width, most), scale = 1.0f / sum;
        job->losses[row] = logf(sum) + (most - hit);
        for (size_t i = 0; i < width; i += EIGHT)
            NAME(give)(x, FLOAT32, i, width, NAME(some)(x, FLOAT32, i, width) * scale);
        x[job->targets[row]] -= 1.0f;
    }
}

/* ---- one function for each number format */

#define BOTH(name)                                                                                 \
    PASS(name##_float32)(const Job *job, size_t begin, size_t end)                                 \
    {                                                                                              \
        NAME(name)(job, FLOAT32, begin, end);                                                      \
    }                                                                                              \
    PASS(name##_bfloat16)(const Job *job, size_t begin, size_t end)                                \
    {                                                                                              \
        NAME(name)(job, BFLOAT16, begin, end);                                                     \
    }

BOTH(norm_rows)
BOTH(norm_back_rows)
BOTH(gate_numbers)
BOTH(gate_back_numbers)
BOTH(turn_rows)
BOTH(turn_back_rows)
BOTH(attend_rows)
BOTH(slope_rows)

#define PAIR(name) {NAME(name##_float32), NAME(name##_bfloat16)}

static const Pass NAME(passes)[][2] = {
    PAIR(norm_rows), PAIR(norm_back_rows), PAIR(gate_numbers), PAIR(gate_back_numbers),
    PAIR(turn_rows), PAIR(turn_back_rows), PAIR(attend_rows), PAIR(slope_rows),
};

#undef BOTH
#undef PAIR
#undef PASS
#undef INLINE
