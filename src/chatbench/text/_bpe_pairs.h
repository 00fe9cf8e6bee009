/* Pairs of entries: how often each stands in the words, where, and which comes next. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FREE UINT64_MAX
#define KEY(left, right) ((uint64_t)(left) << 32 | (right))

/* ---- words, ascending; two of them need no memory of their own */

typedef struct {
    union {
        uint32_t *items;
        uint32_t two[2];
    } at;
    uint32_t used, room; /* room 0: in place */
} List;

static inline uint32_t *list_items(List *list)
{
    return list->room ? list->at.items : list->at.two;
}

static void list_free(List *list)
{
    if (list->room)
        free(list->at.items);
    *list = (List){.used = 0, .room = 0};
}

static int list_resize(List *list, uint32_t room)
{
    uint32_t *items = realloc(list->room ? list->at.items : NULL, room * sizeof(uint32_t));
    if (!items)
        return -1;
    if (!list->room)
        memcpy(items, list->at.two, sizeof list->at.two);
    list->at.items = items;
    list->room = room;
    return 0;
}

static int list_add(List *list, uint32_t item)
{
    if (list->used && list_items(list)[list->used - 1] == item)
        return 0;
    uint32_t room = list->room ? list->room : 2;
    if (list->used == room && list_resize(list, room + room / 2 + 1) < 0)
        return -1;
    list_items(list)[list->used++] = item;
    return 0;
}

/* ---- pair → number */

typedef struct {
    uint64_t key;
    int64_t value;
} Pair;

typedef struct {
    Pair *slots;
    size_t mask, used;
} Pairs;

static inline Pair *pair_seek(const Pairs *pairs, uint64_t key)
{
    size_t slot = mixed(key) & pairs->mask;
    while (pairs->slots[slot].key != key && pairs->slots[slot].key != FREE)
        slot = (slot + 1) & pairs->mask;
    return &pairs->slots[slot];
}

static int pairs_init(Pairs *pairs, size_t size)
{
    *pairs = (Pairs){malloc(size * sizeof(Pair)), size - 1, 0};
    for (size_t i = 0; pairs->slots && i < size; i++)
        pairs->slots[i].key = FREE;
    return pairs->slots ? 0 : -1;
}

/* Makes room for one more. Pairs whose number is 0 are left out: absent means 0. */
static int pairs_grow(Pairs *pairs)
{
    if (pairs->used * 4 < pairs->mask * 3)
        return 0;
    size_t living = 0;
    for (size_t i = 0; i <= pairs->mask; i++)
        living += pairs->slots[i].key != FREE && pairs->slots[i].value != 0;
    Pairs next;
    if (pairs_init(&next, (pairs->mask + 1) << (living * 2 > pairs->mask)) < 0)
        return -1;
    for (size_t i = 0; i <= pairs->mask; i++)
        if (pairs->slots[i].key != FREE && pairs->slots[i].value != 0)
            *pair_seek(&next, pairs->slots[i].key) = pairs->slots[i];
    next.used = living;
    free(pairs->slots);
    *pairs = next;
    return 0;
}

static inline Pair *pair_make(Pairs *pairs, uint64_t key)
{
    Pair *pair = pair_seek(pairs, key);
    if (pair->key == key)
        return pair;
    if (pairs_grow(pairs) < 0)
        return NULL;
    pair = pair_seek(pairs, key);
    *pair = (Pair){key, 0};
    pairs->used++;
    return pair;
}

static inline int64_t pair_value(const Pairs *pairs, uint64_t key)
{
    const Pair *pair = pair_seek(pairs, key);
    return pair->key == key ? pair->value : 0;
}

/* ---- candidates: more frequent first; among equals the pair with the smaller ids */

typedef struct {
    uint64_t key;
    int64_t count;
    List words;
} Candidate;

typedef struct {
    Candidate *items;
    size_t used, room;
} Heap;

static inline int before(const Candidate *a, const Candidate *b)
{
    return a->count != b->count ? a->count > b->count : a->key < b->key;
}

static int heap_push(Heap *heap, Candidate item)
{
    if (heap->used == heap->room) {
        size_t room = heap->room ? heap->room + heap->room / 2 : 1024;
        Candidate *items = realloc(heap->items, room * sizeof(Candidate));
        if (!items)
            return -1;
        heap->items = items;
        heap->room = room;
    }
    size_t place = heap->used++;
    for (; place && before(&item, &heap->items[(place - 1) / 2]); place = (place - 1) / 2)
        heap->items[place] = heap->items[(place - 1) / 2];
    heap->items[place] = item;
    return 0;
}

static void heap_sink(Heap *heap, size_t place)
{
    Candidate item = heap->items[place];
    for (size_t child; (child = 2 * place + 1) < heap->used; place = child) {
        if (child + 1 < heap->used && before(&heap->items[child + 1], &heap->items[child]))
            child++;
        if (!before(&heap->items[child], &item))
            break;
        heap->items[place] = heap->items[child];
    }
    heap->items[place] = item;
}

static Candidate heap_pop(Heap *heap)
{
    Candidate top = heap->items[0];
    heap->items[0] = heap->items[--heap->used];
    if (heap->used)
        heap_sink(heap, 0);
    return top;
}

/* Lets go of the candidates that no word holds any more. */
static void heap_purge(Heap *heap, const Pairs *counts)
{
    size_t kept = 0;
    for (size_t i = 0; i < heap->used; i++) {
        if (pair_value(counts, heap->items[i].key) > 0)
            heap->items[kept++] = heap->items[i];
        else
            list_free(&heap->items[i].words);
    }
    heap->used = kept;
    for (size_t place = kept / 2; place-- > 0;)
        heap_sink(heap, place);
}
