/* Counter: the words of texts, by the Qwen2 split pattern, and how often each occurs. */

/* Classes of characters, as splitting.py writes them into the table. */
enum { OTHER = 0, LETTER = 1, NUMBER = 2, SPACE = 3, LINE_END = 4 };
enum { CODE_POINTS = 0x110000, LONG_S = 0x17F };

/* ---- words of a text: the Qwen2 split pattern as a matcher by hand */

typedef struct {
    const void *data;
    int kind;
    Py_ssize_t length;
    const uint8_t *classes;
} Text;

#define POINT(text, i) PyUnicode_READ((text)->kind, (text)->data, (i))

static inline int class_at(const Text *text, Py_ssize_t i)
{
    return i < text->length ? text->classes[POINT(text, i)] : -1;
}

static inline Py_ssize_t run_end(const Text *text, Py_ssize_t i, int class)
{
    while (class_at(text, i) == class)
        i++;
    return i;
}

static inline Py_UCS4 folded(const Text *text, Py_ssize_t i)
{
    Py_UCS4 point = i < text->length ? POINT(text, i) : 0;
    if (point == LONG_S)
        return 's';
    return point >= 'A' && point <= 'Z' ? point + 32 : point;
}

/* Length of the contraction such as 's or 'll after the apostrophe at i; 0 for none. */
static Py_ssize_t contraction(const Text *text, Py_ssize_t i)
{
    Py_UCS4 first = folded(text, i + 1), second = folded(text, i + 2);
    if (first == 's' || first == 't' || first == 'm' || first == 'd')
        return 2;
    if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e')
        || (first == 'l' && second == 'l'))
        return 3;
    return 0;
}

static Py_ssize_t space_end(const Text *text, Py_ssize_t i)
{
    Py_ssize_t end = i, after_line_end = 0;
    for (int class; (class = class_at(text, end)) == SPACE || class == LINE_END; end++)
        if (class == LINE_END)
            after_line_end = end + 1;
    if (after_line_end)
        return after_line_end;
    return end == text->length || end == i + 1 ? end : end - 1;
}

static Py_ssize_t word_end(const Text *text, Py_ssize_t i)
{
    int class = class_at(text, i);
    if (class == LETTER)
        return run_end(text, i, LETTER);
    if (class == NUMBER)
        return i + 1;
    Py_UCS4 point = POINT(text, i);
    if (point == '\'') {
        Py_ssize_t length = contraction(text, i);
        if (length)
            return i + length;
    }
    if (class != LINE_END && class_at(text, i + 1) == LETTER)
        return run_end(text, i + 1, LETTER);
    if (class == OTHER || (point == ' ' && class_at(text, i + 1) == OTHER))
        return run_end(text, run_end(text, i + (class != OTHER), OTHER), LINE_END);
    return space_end(text, i);
}

static size_t put_utf8(char *out, Py_UCS4 point)
{
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    if (point < 0x800) {
        out[0] = (char)(0xC0 | point >> 6);
        out[1] = (char)(0x80 | (point & 0x3F));
        return 2;
    }
    if (point < 0x10000) {
        out[0] = (char)(0xE0 | point >> 12);
        out[1] = (char)(0x80 | (point >> 6 & 0x3F));
        out[2] = (char)(0x80 | (point & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | point >> 18);
    out[1] = (char)(0x80 | (point >> 12 & 0x3F));
    out[2] = (char)(0x80 | (point >> 6 & 0x3F));
    out[3] = (char)(0x80 | (point & 0x3F));
    return 4;
}

/* first_marked(text, marks): the first place whose character has a mark other than 0, or -1. */
static PyObject *first_marked(PyObject *module, PyObject *args)
{
    PyObject *string;
    Py_buffer marks;
    if (!PyArg_ParseTuple(args, "Uy*", &string, &marks))
        return NULL;
    if (marks.len != CODE_POINTS) {
        PyBuffer_Release(&marks);
        return PyErr_Format(PyExc_ValueError, "marks need one byte a code point");
    }
    Text text = {PyUnicode_DATA(string), PyUnicode_KIND(string), PyUnicode_GET_LENGTH(string),
                 marks.buf};
    Py_ssize_t i = 0;
    while (i < text.length && !text.classes[POINT(&text, i)])
        i++;
    PyBuffer_Release(&marks);
    return PyLong_FromSsize_t(i < text.length ? i : -1);
}

/* ---- Counter */

typedef struct {
    PyObject_HEAD
    Table table;
    Py_buffer classes;
    Py_ssize_t longest;
    char *word;
} Counter;

static void counter_dealloc(PyObject *self)
{
    Counter *counter = (Counter *)self;
    PyTypeObject *type = Py_TYPE(self);
    table_free(&counter->table);
    free(counter->word);
    if (counter->classes.obj)
        PyBuffer_Release(&counter->classes);
    type->tp_free(self);
    Py_DECREF(type);
}

static int counter_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    Counter *counter = (Counter *)self;
    if (counter->word) {
        PyErr_SetString(PyExc_TypeError, "already made");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "y*n", &counter->classes, &counter->longest))
        return -1;
    if (counter->classes.len != CODE_POINTS || counter->longest < 8) {
        PyErr_SetString(PyExc_ValueError, "classes need one byte a code point, words 8 bytes");
        return -1;
    }
    counter->word = malloc((size_t)counter->longest);
    if (!counter->word || table_init(&counter->table) < 0) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static int count_bytes(Counter *counter, const char *bytes, size_t length)
{
    Entry *entry = table_find(&counter->table, bytes, length);
    if (!entry) {
        PyErr_NoMemory();
        return -1;
    }
    entry->count++;
    return 0;
}

/* Counts one word, in pieces of at most `longest` bytes. */
static int count_word(Counter *counter, const Text *text, Py_ssize_t i, Py_ssize_t end)
{
    size_t filled = 0;
    for (; i < end; i++) {
        Py_UCS4 point = POINT(text, i);
        if (point >= 0xD800 && point < 0xE000) {
            PyErr_SetString(PyExc_ValueError, "lone surrogate");
            return -1;
        }
        size_t needed = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
        if (filled + needed > (size_t)counter->longest) {
            if (count_bytes(counter, counter->word, filled) < 0)
                return -1;
            filled = 0;
        }
        filled += put_utf8(counter->word + filled, point);
    }
    return count_bytes(counter, counter->word, filled);
}

static PyObject *counter_add(PyObject *self, PyObject *string)
{
    Counter *counter = (Counter *)self;
    if (!PyUnicode_Check(string))
        return PyErr_Format(PyExc_TypeError, "a text is a str");
    Text text = {PyUnicode_DATA(string), PyUnicode_KIND(string), PyUnicode_GET_LENGTH(string),
                 counter->classes.buf};
    for (Py_ssize_t i = 0, end; i < text.length; i = end) {
        end = word_end(&text, i);
        if (count_word(counter, &text, i, end) < 0)
            return NULL;
    }
    Py_RETURN_NONE;
}

typedef struct {
    Py_buffer lengths, counts, content;
    size_t words;
} Packed;

static void packed_release(Packed *packed)
{
    PyBuffer_Release(&packed->lengths);
    PyBuffer_Release(&packed->counts);
    PyBuffer_Release(&packed->content);
}

/* Checks that the lengths (uint32), counts (int64, absent when `counted` is 0) and bytes agree. */
static int packed_check(Packed *packed, int counted)
{
    size_t words = (size_t)packed->lengths.len / 4, total = 0;
    const uint32_t *lengths = packed->lengths.buf;
    packed->words = words;
    for (size_t i = 0; i < words; i++)
        total += lengths[i];
    if (total == (size_t)packed->content.len
        && (!counted || (size_t)packed->counts.len == words * 8) && words < UINT32_MAX)
        return 0;
    PyErr_SetString(PyExc_ValueError, "lengths, counts and bytes of words do not agree");
    return -1;
}

/* add_packed(lengths, counts, content, part, parts): words whose hash falls into this part. */
static PyObject *counter_add_packed(PyObject *self, PyObject *args)
{
    Table *table = &((Counter *)self)->table;
    Packed packed;
    Py_ssize_t part, parts;
    if (!PyArg_ParseTuple(args, "y*y*y*nn", &packed.lengths, &packed.counts, &packed.content,
                          &part, &parts))
        return NULL;
    int failed = packed_check(&packed, 1);
    const uint32_t *lengths = packed.lengths.buf;
    const int64_t *counts = packed.counts.buf;
    const char *bytes = packed.content.buf;
    for (size_t i = 0; !failed && i < packed.words; bytes += lengths[i++]) {
        if (parts > 1 && (hash_of(bytes, lengths[i]) >> 40) % (uint64_t)parts != (uint64_t)part)
            continue;
        Entry *entry = table_find(table, bytes, lengths[i]);
        if (entry)
            entry->count += counts[i];
        else {
            PyErr_NoMemory();
            failed = -1;
        }
    }
    packed_release(&packed);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

typedef struct {
    const char *bytes;
    int64_t count;
    uint32_t length;
} Word;

static int by_bytes(const void *left, const void *right)
{
    const Word *a = left, *b = right;
    int order = memcmp(a->bytes, b->bytes, a->length < b->length ? a->length : b->length);
    return order ? order : (a->length > b->length) - (a->length < b->length);
}

/* pop() → (lengths, counts, content), in the order of the bytes; the counter is empty afterwards. */
static PyObject *counter_pop(PyObject *self, PyObject *unused)
{
    Table *table = &((Counter *)self)->table;
    size_t words = table->used;
    Word *sorted = malloc((words + 1) * sizeof(Word));
    if (!sorted)
        return PyErr_NoMemory();
    for (size_t i = 0; i < words; i++)
        sorted[i] = (Word){table->content + table->entries[i].offset, table->entries[i].count,
                           table->entries[i].length};
    qsort(sorted, words, sizeof(Word), by_bytes);
    PyObject *lengths = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(words * 4));
    PyObject *counts = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(words * 8));
    PyObject *content = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)table->filled);
    PyObject *result = NULL;
    if (lengths && counts && content) {
        char *length = PyBytes_AS_STRING(lengths), *count = PyBytes_AS_STRING(counts);
        char *bytes = PyBytes_AS_STRING(content);
        for (size_t i = 0; i < words; bytes += sorted[i++].length) {
            memcpy(length + 4 * i, &sorted[i].length, 4);
            memcpy(count + 8 * i, &sorted[i].count, 8);
            memcpy(bytes, sorted[i].bytes, sorted[i].length);
        }
        table_free(table);
        result = table_init(table) < 0 ? PyErr_NoMemory()
                                       : PyTuple_Pack(3, lengths, counts, content);
    }
    free(sorted);
    Py_XDECREF(lengths);
    Py_XDECREF(counts);
    Py_XDECREF(content);
    return result;
}

static Py_ssize_t counter_len(PyObject *self)
{
    return (Py_ssize_t)((Counter *)self)->table.used;
}

static PyMethodDef counter_methods[] = {
    {"add", counter_add, METH_O, "Count the words of a text in NFC."},
    {"add_packed", counter_add_packed, METH_VARARGS, "Add counted words."},
    {"pop", counter_pop, METH_NOARGS, "Give all words in order of their bytes; be empty."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot counter_slots[] = {
    {Py_tp_dealloc, counter_dealloc},
    {Py_tp_init, counter_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_methods, counter_methods},
    {Py_sq_length, counter_len},
    {Py_tp_doc, "Counter(classes, longest): how often each word occurs."},
    {0, NULL},
};

static PyType_Spec counter_spec = {
    "chatbench.text._bpe.Counter", sizeof(Counter), 0, Py_TPFLAGS_DEFAULT, counter_slots,
};
