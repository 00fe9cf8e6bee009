/* The state of learning: words as ids, counts of their pairs, candidates, and a merge. */

typedef struct {
    uint64_t key;
    List words;
} Fresh;

typedef struct {
    Table tokens;     /* bytes → id */
    size_t *spelling; /* id → its place in tokens */
    size_t ids, id_room;
    Pairs known;  /* merges from before: rank << 32 | id, plus one */
    Pairs counts; /* pair → occurrences */
    Heap heap;
    Fresh *fresh; /* pairs that the present merge makes, with their words */
    size_t made, made_room;
    Pairs places; /* pair → 1 + its place in fresh */
    uint32_t *symbols, *starts, *sizes;
    const int64_t *frequencies;
    size_t words, purge_at;
    uint32_t *merges;
    size_t merged;
} Learner;

/* ---- changes of counts */

static int note_fresh(Learner *learner, uint64_t key, uint32_t word)
{
    Pair *place = pair_make(&learner->places, key);
    if (!place)
        return -1;
    if (!place->value) {
        if (learner->made == learner->made_room) {
            size_t room = learner->made_room ? learner->made_room * 2 : 64;
            Fresh *fresh = realloc(learner->fresh, room * sizeof(Fresh));
            if (!fresh)
                return -1;
            learner->fresh = fresh;
            learner->made_room = room;
        }
        learner->fresh[learner->made++] = (Fresh){key, {.used = 0, .room = 0}};
        place->value = (int64_t)learner->made;
    }
    return list_add(&learner->fresh[place->value - 1].words, word);
}

/* The pair's count goes up or down; a pair that was made is noted with its word. */
static int change(Learner *learner, uint32_t left, uint32_t right, int sign, uint32_t word)
{
    Pair *pair = pair_make(&learner->counts, KEY(left, right));
    if (!pair)
        return -1;
    pair->value += sign * learner->frequencies[word];
    return sign < 0 ? 0 : note_fresh(learner, KEY(left, right), word);
}

static int offer(Learner *learner, Fresh *fresh)
{
    int64_t count = pair_value(&learner->counts, fresh->key);
    if (count > 0) {
        if (fresh->words.room && fresh->words.room > fresh->words.used)
            list_resize(&fresh->words, fresh->words.used); /* failing only wastes memory */
        if (heap_push(&learner->heap, (Candidate){fresh->key, count, fresh->words}) < 0)
            return -1;
        fresh->words = (List){.used = 0, .room = 0};
    }
    list_free(&fresh->words);
    return 0;
}

/* Lets go of dead candidates, and of the room that merged symbols have left. */
static void tidy(Learner *learner)
{
    uint32_t end = 0;
    heap_purge(&learner->heap, &learner->counts);
    learner->purge_at = learner->heap.used + learner->heap.used / 8 + (1 << 16);
    for (size_t word = 0; word < learner->words; word++) {
        memmove(learner->symbols + end, learner->symbols + learner->starts[word],
                learner->sizes[word] * sizeof(uint32_t));
        learner->starts[word] = end;
        end += learner->sizes[word];
    }
    uint32_t *fitted = realloc(learner->symbols, ((size_t)end + 1) * sizeof(uint32_t));
    if (fitted)
        learner->symbols = fitted;
}

/* Pairs made since the last call become candidates. */
static int offer_fresh(Learner *learner)
{
    for (size_t i = 0; i < learner->made; i++)
        if (offer(learner, &learner->fresh[i]) < 0)
            return -1;
    learner->made = 0;
    for (size_t i = 0; i <= learner->places.mask; i++)
        learner->places.slots[i].key = FREE;
    learner->places.used = 0;
    if (learner->places.mask >= 1 << 12) {
        free(learner->places.slots);
        if (pairs_init(&learner->places, 1 << 8) < 0)
            return -1;
    }
    if (learner->heap.used >= learner->purge_at)
        tidy(learner);
    return 0;
}

/* ---- merging in one word */

static int merge_in_word(Learner *learner, uint64_t key, uint32_t token, uint32_t word)
{
    uint32_t left = (uint32_t)(key >> 32), right = (uint32_t)key;
    uint32_t *symbols = learner->symbols + learner->starts[word];
    uint32_t size = learner->sizes[word], kept = 0;
    for (uint32_t i = 0; i < size; kept++) {
        if (symbols[i] != left || i + 1 == size || symbols[i + 1] != right) {
            symbols[kept] = symbols[i++];
            continue;
        }
        if (kept
            && (change(learner, symbols[kept - 1], left, -1, word) < 0
                || change(learner, symbols[kept - 1], token, 1, word) < 0))
            return -1;
        i += 2;
        if (i < size
            && (change(learner, right, symbols[i], -1, word) < 0
                || change(learner, token, symbols[i], 1, word) < 0))
            return -1;
        symbols[kept] = token;
    }
    learner->sizes[word] = kept;
    return 0;
}

static inline uint32_t known_rank(const Learner *learner, const uint32_t *symbols)
{
    int64_t value = pair_value(&learner->known, KEY(symbols[0], symbols[1]));
    return value ? (uint32_t)((uint64_t)(value - 1) >> 32) : UINT32_MAX;
}

/* Makes the known merges in one word: lowest rank first, among equals the leftmost. */
static void merge_known(Learner *learner, size_t word, uint32_t *ranks)
{
    uint32_t *symbols = learner->symbols + learner->starts[word];
    uint32_t size = learner->sizes[word];
    for (uint32_t i = 0; i + 1 < size; i++)
        ranks[i] = known_rank(learner, symbols + i);
    while (size > 1) {
        uint32_t best = 0;
        for (uint32_t i = 1; i + 1 < size; i++)
            if (ranks[i] < ranks[best])
                best = i;
        if (ranks[best] == UINT32_MAX)
            break;
        uint64_t key = KEY(symbols[best], symbols[best + 1]);
        symbols[best] = (uint32_t)(pair_value(&learner->known, key) - 1);
        size--;
        memmove(symbols + best + 1, symbols + best + 2, (size - best - 1) * sizeof(uint32_t));
        memmove(ranks + best, ranks + best + 1, (size - best - 1) * sizeof(uint32_t));
        for (uint32_t i = best ? best - 1 : 0; i <= best && i + 1 < size; i++)
            ranks[i] = known_rank(learner, symbols + i);
    }
    learner->sizes[word] = size;
}

/* ---- entries */

static int add_id(Learner *learner, Entry *entry)
{
    if (!entry)
        return -1;
    if (learner->ids == learner->id_room) {
        size_t room = learner->id_room ? learner->id_room * 2 : 1024;
        size_t *spelling = realloc(learner->spelling, room * sizeof(size_t));
        if (!spelling)
            return -1;
        learner->spelling = spelling;
        learner->id_room = room;
    }
    learner->spelling[learner->ids++] = (size_t)(entry - learner->tokens.entries);
    return 0;
}

/* The id of left + right, made when new; *is_new says which. */
static int joined_id(Learner *learner, uint64_t key, uint32_t *token, int *is_new)
{
    Entry left = learner->tokens.entries[learner->spelling[key >> 32]];
    Entry right = learner->tokens.entries[learner->spelling[(uint32_t)key]];
    size_t length = (size_t)left.length + right.length, known = learner->tokens.used;
    char *bytes = malloc(length + 1);
    if (!bytes)
        return -1;
    memcpy(bytes, learner->tokens.content + left.offset, left.length);
    memcpy(bytes + left.length, learner->tokens.content + right.offset, right.length);
    Entry *entry = table_find(&learner->tokens, bytes, length);
    free(bytes);
    if (!entry)
        return -1;
    *is_new = learner->tokens.used != known;
    if (*is_new)
        entry->count = (int64_t)learner->ids;
    *token = (uint32_t)entry->count;
    return *is_new ? add_id(learner, entry) : 0;
}
