/* Byte-pair encoding, trained fast: words of a text are counted, then merges are learned.

   The same arithmetic as the trainer of the `tokenizers` package, tie by tie, so that both give the
   same merges; tests/text/test_bpe_training.py compares them. Nothing here knows files or formats:
   bpe_training.py does. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_bpe_table.h"
#include "_bpe_pairs.h"
#include "_bpe_count.h"
#include "_bpe_learner.h"

/* ---- the input */

static int load_tokens(Learner *learner, const Packed *tokens)
{
    const uint32_t *lengths = tokens->lengths.buf;
    const char *bytes = tokens->content.buf;
    for (size_t id = 0; id < tokens->words; bytes += lengths[id++]) {
        size_t known = learner->tokens.used;
        Entry *entry = table_find(&learner->tokens, bytes, lengths[id]);
        if (add_id(learner, entry) < 0)
            return -1;
        if (learner->tokens.used != known)
            entry->count = (int64_t)id;
    }
    return 0;
}

static int load_merges(Learner *learner, const Py_buffer *known)
{
    const uint32_t *merges = known->buf;
    for (size_t rank = 0; rank < (size_t)known->len / 12; rank++) {
        Pair *pair = pair_make(&learner->known, KEY(merges[3 * rank], merges[3 * rank + 1]));
        if (!pair)
            return -1;
        pair->value = (int64_t)KEY(rank, merges[3 * rank + 2]) + 1;
    }
    return 0;
}

static int load_words(Learner *learner, const Packed *words, int has_merges)
{
    const uint32_t *lengths = words->lengths.buf;
    const unsigned char *bytes = words->content.buf;
    uint32_t of_byte[256], longest = 0, start = 0;
    for (int byte = 0; byte < 256; byte++) {
        char one = (char)byte;
        of_byte[byte] = (uint32_t)table_find(&learner->tokens, &one, 1)->count;
    }
    learner->frequencies = words->counts.buf;
    learner->words = words->words;
    learner->symbols = malloc((size_t)words->content.len * sizeof(uint32_t) + 1);
    learner->starts = malloc(words->words * sizeof(uint32_t) + 1);
    learner->sizes = malloc(words->words * sizeof(uint32_t) + 1);
    if (!learner->symbols || !learner->starts || !learner->sizes)
        return -1;
    for (size_t word = 0; word < words->words; start += lengths[word++]) {
        learner->starts[word] = start;
        learner->sizes[word] = lengths[word];
        if (lengths[word] > longest)
            longest = lengths[word];
    }
    for (size_t i = 0; i < (size_t)words->content.len; i++)
        learner->symbols[i] = of_byte[bytes[i]];
    uint32_t *ranks = malloc(((size_t)longest + 1) * sizeof(uint32_t));
    if (!ranks)
        return -1;
    for (size_t word = 0; has_merges && word < words->words; word++)
        merge_known(learner, word, ranks);
    free(ranks);
    return 0;
}

static int count_pairs(Learner *learner)
{
    for (size_t word = 0; word < learner->words; word++) {
        const uint32_t *symbols = learner->symbols + learner->starts[word];
        for (uint32_t i = 0; i + 1 < learner->sizes[word]; i++)
            if (change(learner, symbols[i], symbols[i + 1], 1, (uint32_t)word) < 0)
                return -1;
    }
    return offer_fresh(learner);
}

/* ---- learning */

static int make_merge(Learner *learner, Candidate *top, uint32_t token)
{
    uint32_t *merges = realloc(learner->merges, (learner->merged + 3) * sizeof(uint32_t));
    if (!merges)
        return -1;
    learner->merges = merges;
    merges[learner->merged++] = (uint32_t)(top->key >> 32);
    merges[learner->merged++] = (uint32_t)top->key;
    merges[learner->merged++] = token;
    const uint32_t *words = list_items(&top->words);
    for (uint32_t i = 0; i < top->words.used; i++)
        if (merge_in_word(learner, top->key, token, words[i]) < 0)
            return -1;
    return offer_fresh(learner);
}

/* One step: 1 to go on, 0 when nothing is left to merge, -1 when memory is out.
   With `unique`, a pair that spells an entry already there is passed over. */
static int merge_best(Learner *learner, int unique)
{
    if (!learner->heap.used)
        return 0;
    Candidate top = heap_pop(&learner->heap);
    int64_t count = pair_value(&learner->counts, top.key);
    uint32_t token = 0;
    int is_new = 0, result = count < 1 && top.count == count ? 0 : 1;
    if (top.count != count) {
        top.count = count;
        if (heap_push(&learner->heap, top) == 0)
            return 1;
        result = -1;
    }
    if (result == 1 && joined_id(learner, top.key, &token, &is_new) < 0)
        result = -1;
    if (result == 1 && (is_new || !unique) && make_merge(learner, &top, token) < 0)
        result = -1;
    list_free(&top.words);
    return result;
}

static void learner_free(Learner *learner)
{
    for (size_t i = 0; i < learner->heap.used; i++)
        list_free(&learner->heap.items[i].words);
    for (size_t i = 0; i < learner->made; i++)
        list_free(&learner->fresh[i].words);
    table_free(&learner->tokens);
    free(learner->spelling);
    free(learner->known.slots);
    free(learner->counts.slots);
    free(learner->places.slots);
    free(learner->heap.items);
    free(learner->fresh);
    free(learner->symbols);
    free(learner->starts);
    free(learner->sizes);
    free(learner->merges);
}

/* 0 when done, -1 when memory is out, -2 when a signal handler raised. */
static int learn_all(Learner *learner, const Packed *words, const Packed *tokens,
                     const Py_buffer *known, size_t entries, int unique)
{
    if (table_init(&learner->tokens) < 0 || pairs_init(&learner->known, 1 << 10) < 0
        || pairs_init(&learner->counts, 1 << 12) < 0 || pairs_init(&learner->places, 1 << 8) < 0
        || load_tokens(learner, tokens) < 0 || load_merges(learner, known) < 0
        || load_words(learner, words, known->len > 0) < 0 || count_pairs(learner) < 0)
        return -1;
    size_t wanted = learner->ids + entries;
    for (size_t step = 0; learner->ids < wanted; step++) {
        int result = merge_best(learner, unique);
        if (result <= 0)
            return result;
        if (step % 256 == 0 && PyErr_CheckSignals() < 0)
            return -2;
    }
    return 0;
}

static int known_valid(const Py_buffer *known, size_t tokens)
{
    const uint32_t *ids = known->buf;
    for (size_t i = 0; i < (size_t)known->len / 4; i++)
        if (ids[i] >= tokens)
            return 0;
    return known->len % 12 == 0;
}

static int has_all_bytes(const Packed *tokens)
{
    const uint32_t *lengths = tokens->lengths.buf;
    const unsigned char *bytes = tokens->content.buf;
    unsigned char seen[256] = {0};
    int found = 0;
    for (size_t id = 0; id < tokens->words; bytes += lengths[id++])
        if (lengths[id] == 1 && !seen[bytes[0]]++)
            found++;
    return found == 256;
}

static PyObject *learn(PyObject *module, PyObject *args)
{
    Packed words, tokens;
    Py_buffer known;
    Py_ssize_t entries;
    int unique;
    memset(&tokens, 0, sizeof tokens);
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*y*np", &words.lengths, &words.counts, &words.content,
                          &tokens.lengths, &tokens.content, &known, &entries, &unique))
        return NULL;
    Learner learner;
    memset(&learner, 0, sizeof learner);
    PyObject *result = NULL;
    if (packed_check(&words, 1) == 0 && packed_check(&tokens, 0) == 0) {
        if (!known_valid(&known, tokens.words) || !has_all_bytes(&tokens) || entries < 0
            || words.content.len >= UINT32_MAX)
            PyErr_SetString(PyExc_ValueError, "entries, merges and words do not belong together");
        else {
            int failed = learn_all(&learner, &words, &tokens, &known, (size_t)entries, unique);
            if (failed == -1)
                PyErr_NoMemory();
            else if (!failed)
                result = PyBytes_FromStringAndSize((char *)learner.merges,
                                                   (Py_ssize_t)(learner.merged * 4));
        }
    }
    learner_free(&learner);
    packed_release(&words);
    PyBuffer_Release(&tokens.lengths);
    PyBuffer_Release(&tokens.content);
    PyBuffer_Release(&known);
    return result;
}

static PyMethodDef methods[] = {
    {"first_marked", first_marked, METH_VARARGS,
     "first_marked(text, marks) -> the first place whose character is marked, or -1."},
    {"learn", learn, METH_VARARGS,
     "learn(lengths, counts, content, token_lengths, token_content, merges, entries, unique) -> "
     "uint32 triples left, right, token of the new merges."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_bpe", "Counting words and learning merges.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__bpe(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyObject *type = module ? PyType_FromSpec(&counter_spec) : NULL;
    if (!type || PyModule_AddObject(module, "Counter", type) < 0) {
        Py_XDECREF(type);
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
