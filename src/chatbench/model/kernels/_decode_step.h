/* One more token of some rows, from their ids to logits, as one task for all threads.

   A step is a list of rounds (ROUNDS for each layer, then the head), each cut into pieces that
   whoever is free takes from a counter; a round begins when all pieces of the one before are done.
   Nobody waits for a thread, only for pieces: one that the system does not let run, and that holds
   none, delays nobody. Who takes a first piece of a round makes its inputs ready for himself, which
   is cheaper than to wait for another to do it. As long as he holds that piece the round cannot
   end, so nothing that he reads changes. */

#ifndef DECODE_STEP_H
#define DECODE_STEP_H

#include "_decode_look.h"
#include "_decode_pool.h"
#include "_decode_products.h"

enum { PROJECT, ATTEND, MIX, WIDEN, NARROW, ROUNDS };

/* A cache line each, so that threads do not fight for neighbours. */
typedef struct {
    atomic_size_t next, done;
    char apart[64 - 2 * sizeof(atomic_size_t)];
} Gate;

typedef struct {
    const Model *model;
    const Block *blocks;
    const Cache *caches;
    const char *ids, *lengths; /* int64 (M) */
    const float *angles; /* cos, sin (2, reach, D/2) */
    size_t rows, reach, threads;
    int fast;
    float *logits; /* (M, V) */
    void *scratch;
    /* shared by the threads, within scratch */
    float *x, *q, *k, *v, *gate, *up, *seen;
    Gate *gates;
    char *own; /* what each thread has for itself */
    atomic_size_t entered;
} Step;

/* What a thread has for itself: activations ready for the round's products. */
typedef struct {
    float *x, *steps, *sums, *look;
    int8_t *codes;
} Own;

/* The products of a round, cut into pieces. */
typedef struct {
    Job jobs[3];
    size_t size[3], count[3]; /* outputs of a piece, pieces */
    size_t products, pieces;
} Round;

static int64_t entry_of(const char *list, size_t m)
{
    int64_t value;
    memcpy(&value, list + m * sizeof value, sizeof value);
    return value;
}

/* ---- scratch */

static size_t widest(const Model *model)
{
    size_t most = (size_t)model->width, heads = (size_t)(model->heads * model->head_dim);
    most = heads > most ? heads : most;
    return (size_t)model->inner > most ? (size_t)model->inner : most;
}

static size_t lines(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static void *cut(char **place, size_t bytes)
{
    void *found = *place;
    *place += lines(bytes);
    return found;
}

static char *lay_own(const Model *model, size_t rows, char *place, Own *own)
{
    size_t most = widest(model), runs = padded_to_runs(most) / RUN;
    size_t share = (size_t)(model->heads / model->kv_heads);
    own->x = cut(&place, rows * most * sizeof(float));
    own->steps = cut(&place, rows * runs * sizeof(float));
    own->sums = cut(&place, rows * runs * sizeof(float));
    own->codes = cut(&place, rows * runs * RUN);
    own->look = cut(&place, look_room(share, (size_t)model->head_dim, (size_t)model->context)
                                * sizeof(float));
    return place;
}

static char *lay_shared(Step *step, char *place)
{
    const Model *model = step->model;
    size_t head = (size_t)model->head_dim, heads = (size_t)model->heads, m = step->rows;
    size_t inner = (size_t)model->inner, keys = (size_t)model->kv_heads * head;
    step->gates = cut(&place, (size_t)(ROUNDS * model->layers + 1) * sizeof(Gate));
    step->x = cut(&place, m * (size_t)model->width * sizeof(float));
    step->q = cut(&place, m * heads * head * sizeof(float));
    step->k = cut(&place, m * keys * sizeof(float));
    step->v = cut(&place, m * keys * sizeof(float));
    step->gate = cut(&place, m * inner * sizeof(float));
    step->up = cut(&place, m * inner * sizeof(float));
    step->seen = cut(&place, m * heads * MOST_LOOKS * (head + 2) * sizeof(float));
    return place;
}

static size_t scratch_of_step(const Model *model, size_t rows, size_t threads)
{
    Step step = {.model = model, .rows = rows};
    Own own;
    char *none = NULL;
    size_t shared = (size_t)(lay_shared(&step, none) - none);
    return 64 + shared + threads * (size_t)(lay_own(model, rows, none, &own) - none);
}

/* ---- the rounds of products */

static void add_product(Round *round, const Step *step, const Layer *layer, float *out, int add)
{
    Job *job = &round->jobs[round->products];
    memset(job, 0, sizeof *job);
    job->kind = (int)layer->kind, job->rows = step->rows;
    job->outputs = (size_t)layer->outputs, job->inputs = (size_t)layer->inputs;
    job->block = (size_t)layer->block, job->group = (size_t)layer->group;
    job->padded = padded_to_runs(job->inputs);
    job->weights = layer->weights, job->scales = layer->scales;
    job->bias = layer->bias.values, job->narrow_bias = (int)layer->bias.narrow;
    job->out = out, job->add = add;
    size_t size = piece_of(job);
    round->size[round->products] = size;
    round->count[round->products] = (job->outputs + size - 1) / size;
    round->pieces += round->count[round->products++];
}

static void plan_round(const Step *step, size_t number, Round *round)
{
    const Model *model = step->model;
    const Block *block = step->blocks + number / ROUNDS;
    round->products = round->pieces = 0;
    if (number == (size_t)(ROUNDS * model->layers)) {
        add_product(round, step, &model->head, step->logits, 0);
        return;
    }
    switch (number % ROUNDS) {
    case PROJECT:
        add_product(round, step, &block->q, step->q, 0);
        add_product(round, step, &block->k, step->k, 0);
        add_product(round, step, &block->v, step->v, 0);
        return;
    case MIX:
        add_product(round, step, &block->out, step->x, 1);
        return;
    case WIDEN:
        add_product(round, step, &block->up, block->gate.weights ? step->up : step->gate, 0);
        if (block->gate.weights) {
            /* The same outputs of both are one piece: its activation is taken at once. */
            size_t size = round->size[0];
            add_product(round, step, &block->gate, step->gate, 0);
            size = round->size[1] > size ? round->size[1] : size;
            size = (size + MOST_BLOCK - 1) / MOST_BLOCK * MOST_BLOCK;
            round->size[0] = size;
            round->pieces = round->count[0] = (round->jobs[0].outputs + size - 1) / size;
        }
        return;
    case NARROW:
        add_product(round, step, &block->down, step->x, 1);
    }
}

static void norm_rows(const Step *step, const Norm *norm, const Own *own)
{
    const Model *model = step->model;
    size_t width = (size_t)model->width;
    for (size_t m = 0; m < step->rows; m++)
        rows_for(step->fast)->norm(step->x + m * width, width, norm, (int)model->layer_norm,
                                    (float)model->eps, own->x + m * width);
}

static size_t seen_from(const Block *block, size_t end)
{
    size_t window = (size_t)block->window;
    return window && window < end ? end - window : 0;
}

/* What all heads saw, put together: (M, H·D). */
static void join_rows(const Step *step, const Block *block, const Own *own)
{
    size_t heads = (size_t)step->model->heads, width = (size_t)step->model->head_dim;
    for (size_t m = 0; m < step->rows; m++) {
        size_t end = (size_t)entry_of(step->lengths, m) + 1;
        size_t looks = looks_of(end - seen_from(block, end));
        for (size_t at = m * heads; at < (m + 1) * heads; at++)
            rows_for(step->fast)->join(step->seen + at * MOST_LOOKS * (width + 2), looks, width,
                                        own->x + at * width);
    }
}

/* The inputs of a round of products, for one thread. */
static void make_ready(const Step *step, size_t number, Round *round, const Own *own)
{
    const Block *block = step->blocks + number / ROUNDS;
    const float *x = own->x;
    int coded = 0;
    if (number == (size_t)(ROUNDS * step->model->layers))
        norm_rows(step, &step->model->last, own);
    else if (number % ROUNDS == PROJECT)
        norm_rows(step, &block->before, own);
    else if (number % ROUNDS == WIDEN)
        norm_rows(step, &block->between, own);
    else if (number % ROUNDS == MIX)
        join_rows(step, block, own);
    else
        x = step->gate;
    for (size_t i = 0; i < round->products; i++) {
        Job *job = &round->jobs[i];
        job->x = x, job->codes = own->codes, job->steps = own->steps, job->sums = own->sums;
        coded |= job->kind >= INT8;
    }
    if (coded)
        quantize_rows(x, step->rows, round->jobs[0].inputs, step->fast, own->codes, own->steps,
                      own->sums);
}

static void activate_piece(const Step *step, const Round *round, size_t begin, size_t end)
{
    size_t inner = (size_t)step->model->inner;
    for (size_t m = 0; m < step->rows; m++)
        rows_for(step->fast)->activate(step->model->activation, step->gate + m * inner + begin,
                                        round->products > 1 ? step->up + m * inner + begin : NULL,
                                        end - begin);
}

static void multiply_piece(const Step *step, size_t number, const Round *round, size_t piece)
{
    int widening = number % ROUNDS == WIDEN;
    size_t first = 0, last;
    while (piece >= round->count[first])
        piece -= round->count[first++];
    size_t begin = piece * round->size[first], end = begin + round->size[first];
    end = end < round->jobs[first].outputs ? end : round->jobs[first].outputs;
    last = widening ? round->products - 1 : first;
    for (size_t i = first; i <= last; i++)
        kernel_for(&round->jobs[i], step->fast)(&round->jobs[i], begin, end);
    if (widening)
        activate_piece(step, round, begin, end);
}

/* ---- the round of attention */

static void attend_piece(const Step *step, size_t number, size_t piece, const Own *own)
{
    const Model *model = step->model;
    const Block *block = step->blocks + number / ROUNDS;
    const Cache *cache = step->caches + number / ROUNDS;
    size_t kv_heads = (size_t)model->kv_heads, width = (size_t)model->head_dim, m = 0, looks;
    size_t share = (size_t)model->heads / kv_heads, end, from;
    for (;; m++) {
        end = (size_t)entry_of(step->lengths, m) + 1;
        from = seen_from(block, end);
        looks = looks_of(end - from);
        if (piece < looks * kv_heads)
            break;
        piece -= looks * kv_heads;
    }
    size_t part = piece / kv_heads, head = piece % kv_heads, places = end - from;
    size_t first = m * (size_t)model->heads + head * share, one = m * kv_heads + head;
    size_t at = (m * (size_t)cache->capacity * kv_heads + head) * width;
    size_t bytes = at * (cache->narrow ? 2 : 4);
    const float *cosines = model->positions.values ? NULL : step->angles + (end - 1) * (width / 2);
    Look look = {
        .heads = share, .width = width, .stride = kv_heads * width, .narrow = (int)cache->narrow,
        .begin = from + places * part / looks, .end = from + places * (part + 1) / looks,
        .append = part + 1 == looks, .q = step->q + first * width, .k = step->k + one * width,
        .v = step->v + one * width, .q_norm = &block->q_norm, .k_norm = &block->k_norm,
        .cosines = cosines, .sines = cosines ? cosines + step->reach * (width / 2) : NULL,
        .keys = (char *)cache->keys + bytes, .values = (char *)cache->values + bytes,
        .scale = (float)block->scale, .eps = (float)model->eps,
        .found = step->seen + (first * MOST_LOOKS + part) * (width + 2),
        .apart = MOST_LOOKS * (width + 2), .scratch = own->look,
    };
    rows_for(step->fast)->attend(&look);
}

static size_t looks_of_all(const Step *step, const Block *block)
{
    size_t looks = 0;
    for (size_t m = 0; m < step->rows; m++) {
        size_t end = (size_t)entry_of(step->lengths, m) + 1;
        looks += looks_of(end - seen_from(block, end));
    }
    return looks * (size_t)step->model->kv_heads;
}

/* ---- all rounds */

static void await_pieces(Gate *gate, size_t pieces)
{
    for (unsigned turn = 1; atomic_load_explicit(&gate->done, memory_order_acquire) < pieces;
         turn++) {
        relax();
        /* Whoever holds a piece may be waiting for this very processor. */
        if (turn >= 1024 && turn % 32 == 0)
            sched_yield();
    }
}

static void take_rounds(void *what)
{
    Step *step = what;
    size_t mine = atomic_fetch_add(&step->entered, 1);
    size_t rounds = (size_t)(ROUNDS * step->model->layers) + 1;
    if (mine >= step->threads)
        return;
    Own own;
    size_t size = (size_t)(lay_own(step->model, step->rows, NULL, &own) - (char *)NULL);
    lay_own(step->model, step->rows, step->own + mine * size, &own);
    for (size_t number = 0; number < rounds; number++) {
        Round round;
        Gate *gate = step->gates + number;
        int attention = number + 1 < rounds && number % ROUNDS == ATTEND, ready = 0;
        size_t piece;
        plan_round(step, number, &round);
        if (attention)
            round.pieces = looks_of_all(step, step->blocks + number / ROUNDS);
        while ((piece = atomic_fetch_add(&gate->next, 1)) < round.pieces) {
            if (attention) {
                attend_piece(step, number, piece, &own);
            } else {
                if (!ready)
                    make_ready(step, number, &round, &own);
                ready = 1;
                multiply_piece(step, number, &round, piece);
            }
            atomic_fetch_add_explicit(&gate->done, 1, memory_order_release);
        }
        await_pieces(gate, round.pieces);
    }
}

/* What is wrong with a step's inputs, or NULL. */
static const char *step_fault(const Step *step, size_t scratch)
{
    const Model *model = step->model;
    if (scratch < scratch_of_step(model, step->rows, step->threads))
        return "there is not enough room";
    for (size_t m = 0; m < step->rows; m++) {
        int64_t id = entry_of(step->ids, m), length = entry_of(step->lengths, m);
        if (id < 0 || id >= model->vocabulary)
            return "this is no token";
        if (length < 0 || length >= step->caches->capacity || length >= model->context
            || (!model->positions.values && (size_t)length >= step->reach))
            return "a row is longer than its place";
    }
    return NULL;
}

static void take_step(Step *step)
{
    const Model *model = step->model;
    size_t width = (size_t)model->width;
    char *place = (char *)(((uintptr_t)step->scratch + 63) / 64 * 64);
    step->own = lay_shared(step, place);
    memset(step->gates, 0, (size_t)(ROUNDS * model->layers + 1) * sizeof(Gate));
    for (size_t m = 0; m < step->rows; m++) {
        size_t id = (size_t)entry_of(step->ids, m) * width;
        size_t at = (size_t)entry_of(step->lengths, m) * width;
        for (size_t k = 0; k < width; k++) {
            float value = number_at(&model->embeddings, id + k);
            if (model->positions.values)
                value += number_at(&model->positions, at + k);
            step->x[m * width + k] = value;
        }
    }
    work_together(take_rounds, step, (int)step->threads);
}

#endif
