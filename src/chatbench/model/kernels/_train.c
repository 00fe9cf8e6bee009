/* The passes of a training step between its matrix products: norms, rotary positions, SwiGLU and
   softmax, each forward and backward in one walk through memory.

   Rows are computed each by itself, and what is summed over rows is summed over blocks of fixed
   size first: results do not depend on the number of threads. Addresses come from passes.py, which
   has checked shapes and formats. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdatomic.h>
#ifdef __unix__
#include <pthread.h>
#endif

#include "_train_rows.h"

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wpsabi" /* every function with such arguments is inlined */
#endif

#define TARGET
#define NAME(name) plain_##name
#include "_train_passes.h"
#undef TARGET
#undef NAME

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_AVX2 1
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(name) avx2_##name
#include "_train_passes.h"
#undef TARGET
#undef NAME
#endif

static const char *const names[] = {"norm", "norm_back", "gate", "gate_back",
                                    "turn", "turn_back", "attend", "slope"};
#define PASSES (sizeof names / sizeof *names)

static int has_avx2(void)
{
#ifdef HAS_AVX2
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

static Pass pass_for(unsigned number, int kind, int fast)
{
#ifdef HAS_AVX2
    if (fast && has_avx2())
        return avx2_passes[number][kind];
#endif
    (void)fast;
    return plain_passes[number][kind];
}

/* ---- threads: those of torch's OpenMP, or the caller's alone */

typedef void (*Parallel)(void (*run)(void *), void *what, unsigned threads, unsigned flags);
static Parallel openmp; /* GOMP_parallel, or NULL */

typedef struct {
    const Job *job;
    Pass pass;
    size_t count, piece;
    atomic_size_t next; /* the first that nobody has taken */
} Work;

static void take_pieces(void *what)
{
    Work *work = what;
    for (;;) {
        size_t begin = atomic_fetch_add(&work->next, work->piece);
        if (begin >= work->count)
            return;
        size_t left = work->count - begin;
        work->pass(work->job, begin, begin + (left < work->piece ? left : work->piece));
    }
}

static void forget_threads(void)
{
    openmp = NULL; /* they do not survive a fork */
}

static void add_shares(const Job *job, float *sum)
{
    size_t blocks = (job->rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    memset(sum, 0, job->width * sizeof *sum);
    for (size_t block = 0; block < blocks; block++)
        for (size_t i = 0; i < job->width; i++)
            sum[i] += job->shares[block * job->width + i];
}

/* ---- binding */

static int targets_fit(const Job *job)
{
    for (size_t row = 0; row < job->rows; row++)
        if (job->targets[row] < 0 || (size_t)job->targets[row] >= job->width)
            return 0;
    return 1;
}

static int fits(unsigned number, const Job *job, Py_ssize_t count, Py_ssize_t piece)
{
    int turning = number == 4 || number == 5;
    if (number >= PASSES || job->kind < FLOAT32 || job->kind > BFLOAT16 || count < 0 || piece < 1)
        return 0;
    if (turning && (job->width > MOST_HEAD || job->width % 2 || !job->heads || !job->tokens))
        return 0;
    return number != 6 || (job->tokens && job->group && job->before + job->tokens <= job->width);
}

static PyObject *run(PyObject *module, PyObject *args)
{
    Job job;
    memset(&job, 0, sizeof job);
    unsigned number;
    int threads, fast;
    Py_ssize_t count, piece, rows, width, tokens, heads, position_rows, group, before;
    unsigned long long x, second, upstream, weight, out, out_second, scale, shares, sum, cosine,
        sine, targets, losses;
    Strides *at = &job.at, *to = &job.to, *back = &job.back;
    if (!PyArg_ParseTuple(
            args, "Iiipnn(KKKKKKKKKKKKK)(nnnnnnn)f(nnn)(nnn)(nnn)", &number, &job.kind, &threads,
            &fast, &count, &piece, &x, &second, &upstream, &weight, &out, &out_second, &scale,
            &shares, &sum, &cosine, &sine, &targets, &losses, &rows, &width, &tokens, &heads,
            &position_rows, &group, &before, &job.eps, &at->row, &at->token, &at->head, &to->row,
            &to->token, &to->head, &back->row, &back->token, &back->head))
        return NULL;
    job.rows = (size_t)rows, job.width = (size_t)width, job.tokens = (size_t)tokens;
    job.heads = (size_t)heads, job.position_rows = (size_t)position_rows;
    job.group = (size_t)group, job.before = (size_t)before;
    job.x = (const void *)(uintptr_t)x, job.second = (const void *)(uintptr_t)second;
    job.upstream = (const void *)(uintptr_t)upstream;
    job.weight = (const void *)(uintptr_t)weight;
    job.out = (void *)(uintptr_t)out, job.out_second = (void *)(uintptr_t)out_second;
    job.scale = (float *)(uintptr_t)scale, job.shares = (float *)(uintptr_t)shares;
    job.cosine = (const void *)(uintptr_t)cosine, job.sine = (const void *)(uintptr_t)sine;
    job.targets = (const int64_t *)(uintptr_t)targets;
    job.losses = (float *)(uintptr_t)losses;
    if (!fits(number, &job, count, piece)) {
        PyErr_SetString(PyExc_ValueError, "these shapes do not belong together");
        return NULL;
    }
    if (job.targets && !targets_fit(&job)) {
        PyErr_Format(PyExc_IndexError, "a target lies outside the vocabulary of %zd", width);
        return NULL;
    }
    Work work = {&job, pass_for(number, job.kind, fast), (size_t)count, (size_t)piece, 0};
    Py_BEGIN_ALLOW_THREADS
    if (openmp && threads > 1 && count > piece)
        openmp(take_pieces, &work, (unsigned)threads, 0);
    else
        take_pieces(&work);
    if (sum)
        add_shares(&job, (float *)(uintptr_t)sum);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *vectors(PyObject *module, PyObject *unused)
{
    return PyUnicode_FromString(has_avx2() ? "AVX2" : "");
}

static PyObject *share_threads(PyObject *module, PyObject *args)
{
    unsigned long long address;
    if (!PyArg_ParseTuple(args, "K", &address))
        return NULL;
    openmp = (Parallel)(uintptr_t)address;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"run", run, METH_VARARGS,
     "run(pass, kind, threads, fast, count, piece, addresses, sizes, eps, strides of x, of the "
     "result, of its gradient): one pass over `count` rows or numbers, `piece` at a time."},
    {"share_threads", share_threads, METH_VARARGS,
     "share_threads(address): compute with the threads of GNU's OpenMP, whose GOMP_parallel lies "
     "there; 0: with the caller's alone."},
    {"vectors", vectors, METH_NOARGS,
     "vectors() -> the vector instructions that are used here, or an empty string."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_train", "The passes of a training step.", -1, methods, NULL, NULL,
    NULL, NULL,
};

PyMODINIT_FUNC PyInit__train(void)
{
    static int prepared;
#ifdef __unix__
    if (!prepared && pthread_atfork(NULL, NULL, forget_threads))
        return PyErr_NoMemory();
#endif
    prepared = 1;
    PyObject *module = PyModule_Create(&definition);
    PyObject *passes = module ? PyTuple_New(PASSES) : NULL;
    for (size_t number = 0; passes && number < PASSES; number++)
        PyTuple_SET_ITEM(passes, (Py_ssize_t)number, PyUnicode_FromString(names[number]));
    if (!passes || PyModule_AddObject(module, "PASSES", passes) < 0) {
        Py_XDECREF(passes);
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
