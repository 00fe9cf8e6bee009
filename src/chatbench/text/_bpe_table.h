/* A table of distinct byte strings in order of arrival, each with a number beside it. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static uint64_t mixed(uint64_t value)
{
    value ^= value >> 32;
    value *= 0xD6E8FEB86659FD93ULL;
    value ^= value >> 32;
    value *= 0xD6E8FEB86659FD93ULL;
    return value ^ (value >> 32);
}

static uint64_t hash_of(const char *bytes, size_t length)
{
    uint64_t hash = 0x9E3779B97F4A7C15ULL ^ length, chunk;
    for (; length >= 8; bytes += 8, length -= 8) {
        memcpy(&chunk, bytes, 8);
        hash = mixed(hash ^ chunk);
    }
    chunk = 0;
    memcpy(&chunk, bytes, length);
    return mixed(hash ^ chunk);
}


typedef struct {
    uint64_t offset;
    int64_t count;
    uint32_t length, hash;
} Entry;

typedef struct {
    Entry *entries;
    uint32_t *slots; /* 1 + index of an entry; 0 is free */
    char *content;
    size_t used, room, mask, filled, content_room;
} Table;

static void table_free(Table *table)
{
    free(table->entries);
    free(table->slots);
    free(table->content);
    memset(table, 0, sizeof *table);
}

static int table_init(Table *table)
{
    memset(table, 0, sizeof *table);
    table->room = 1 << 10;
    table->mask = (1 << 11) - 1;
    table->content_room = 1 << 14;
    table->entries = malloc(table->room * sizeof(Entry));
    table->slots = calloc(table->mask + 1, sizeof(uint32_t));
    table->content = malloc(table->content_room);
    if (table->entries && table->slots && table->content)
        return 0;
    table_free(table);
    return -1;
}

static int table_grow(Table *table, size_t length)
{
    while (table->filled + length > table->content_room) {
        size_t room = table->content_room + table->content_room / 2;
        char *content = realloc(table->content, room);
        if (!content)
            return -1;
        table->content = content;
        table->content_room = room;
    }
    if (table->used == table->room) {
        size_t room = table->room + table->room / 2;
        Entry *entries = realloc(table->entries, room * sizeof(Entry));
        if (!entries)
            return -1;
        table->entries = entries;
        table->room = room;
    }
    if (table->used * 3 < table->mask * 2)
        return 0;
    size_t mask = table->mask * 2 + 1;
    uint32_t *slots = calloc(mask + 1, sizeof(uint32_t));
    if (!slots)
        return -1;
    for (size_t i = 0; i < table->used; i++) {
        size_t slot = table->entries[i].hash & mask;
        while (slots[slot])
            slot = (slot + 1) & mask;
        slots[slot] = (uint32_t)i + 1;
    }
    free(table->slots);
    table->slots = slots;
    table->mask = mask;
    return 0;
}

/* The entry of these bytes, made with number 0 when new; NULL when memory is out. */
static Entry *table_find(Table *table, const char *bytes, size_t length)
{
    uint32_t hash = (uint32_t)hash_of(bytes, length);
    size_t slot = hash & table->mask;
    for (; table->slots[slot]; slot = (slot + 1) & table->mask) {
        Entry *entry = &table->entries[table->slots[slot] - 1];
        if (entry->hash == hash && entry->length == length
            && memcmp(table->content + entry->offset, bytes, length) == 0)
            return entry;
    }
    if (table->used >= UINT32_MAX - 1 || table_grow(table, length) < 0)
        return NULL;
    slot = hash & table->mask;
    while (table->slots[slot])
        slot = (slot + 1) & table->mask;
    table->slots[slot] = (uint32_t)++table->used;
    Entry *entry = &table->entries[table->used - 1];
    *entry = (Entry){table->filled, 0, (uint32_t)length, hash};
    memcpy(table->content + table->filled, bytes, length);
    table->filled += length;
    return entry;
}
