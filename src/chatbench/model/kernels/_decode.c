/* Replies being written on a CPU: matrix times few rows, and the whole step of one token.

   Rows are computed each by itself, every output is summed in one fixed order: results do not
   depend on the number of threads nor on the other rows. Weights are float32, bfloat16, int8 or
   int4; those of 8 and 4 bits meet activations rounded to 8 bits by runs of 32. What is fastest
   here is found when the module is loaded. Addresses come from compiled.py and step.py, which have
   checked shapes and formats. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_decode_pool.h"
#include "_decode_products.h"
#include "_decode_step.h"

/* Bytes of weights below which waking a thread costs more than it saves. */
#define WORTH_SHARING (64 * 1024)

/* ---- one product */

typedef struct {
    const Job *job;
    Kernel kernel;
    size_t piece; /* outputs of one piece */
    atomic_size_t next; /* the first output that nobody has taken */
} Work;

static void take_pieces(void *what)
{
    Work *work = what;
    size_t outputs = work->job->outputs, begin;
    while ((begin = atomic_fetch_add(&work->next, work->piece)) < outputs) {
        size_t left = outputs - begin;
        work->kernel(work->job, begin, begin + (left < work->piece ? left : work->piece));
    }
}

static size_t scratch_size(const Job *job)
{
    size_t runs = job->padded / RUN, wide = job->narrow ? job->rows * job->inputs : 0;
    if (job->kind == FLOAT32 || job->kind == BFLOAT16)
        return wide * sizeof(float) + 1;
    return (wide + 2 * job->rows * runs) * sizeof(float) + job->rows * job->padded;
}

static void prepare(Job *job, const void *given, void *scratch, int fast)
{
    size_t runs = job->padded / RUN, all = job->rows * job->inputs;
    float *place = scratch;
    const float *x = given;
    if (job->narrow) {
        for (size_t i = 0; i < all; i++)
            place[i] = widen(((const uint16_t *)given)[i]);
        x = place;
        place += all;
    }
    job->x = x;
    if (job->kind == FLOAT32 || job->kind == BFLOAT16)
        return;
    job->steps = place;
    job->sums = place + job->rows * runs;
    job->codes = (int8_t *)(place + 2 * job->rows * runs);
    quantize_rows(x, job->rows, job->inputs, fast, job->codes, job->steps, job->sums);
}

static int compute(Job *job, const void *x, int threads, int fast)
{
    void *scratch = malloc(scratch_size(job));
    if (!scratch)
        return -1;
    prepare(job, x, scratch, fast);
    Work work = {.job = job, .kernel = kernel_for(job, fast), .piece = piece_of(job)};
    size_t shared = job->outputs * (job->padded >> (job->kind == INT4));
    work_together(take_pieces, &work, shared < WORTH_SHARING ? 1 : threads);
    free(scratch);
    return 0;
}

static PyObject *product(PyObject *module, PyObject *args)
{
    Job job;
    memset(&job, 0, sizeof job);
    unsigned long long x, weights, scales, bias, out;
    Py_ssize_t rows, outputs, inputs, block, group;
    int threads, fast, failed;
    if (!PyArg_ParseTuple(args, "iKKKKKnnnnnpip", &job.kind, &x, &weights, &scales, &bias, &out,
                          &rows, &outputs, &inputs, &block, &group, &job.narrow, &threads, &fast))
        return NULL;
    job.rows = (size_t)rows, job.outputs = (size_t)outputs, job.inputs = (size_t)inputs;
    job.block = (size_t)block, job.group = (size_t)group;
    job.padded = padded_to_runs(job.inputs);
    job.narrow_bias = job.narrow;
    job.weights = (const void *)(uintptr_t)weights, job.bias = (const void *)(uintptr_t)bias;
    job.scales = (const uint16_t *)(uintptr_t)scales, job.out = (void *)(uintptr_t)out;
    if (rows < 0 || outputs < 0 || inputs < 0 || block < 0 || group < 0 || !job_fits(&job)) {
        PyErr_SetString(PyExc_ValueError, "these shapes do not belong together");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    failed = compute(&job, (const void *)(uintptr_t)x, threads, fast);
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* ---- the whole step */

static PyObject *step(PyObject *module, PyObject *args)
{
    Step step;
    memset(&step, 0, sizeof step);
    unsigned long long model, blocks, caches, angles, scratch, logits;
    Py_ssize_t reach, given, ids, lengths;
    int threads, fast;
    const char *fault;
    if (!PyArg_ParseTuple(args, "KKKy#y#KnKnKip", &model, &blocks, &caches, &step.ids, &ids,
                          &step.lengths, &lengths, &angles, &reach, &scratch, &given, &logits,
                          &threads, &fast))
        return NULL;
    step.model = (const Model *)(uintptr_t)model;
    step.blocks = (const Block *)(uintptr_t)blocks;
    step.caches = (const Cache *)(uintptr_t)caches;
    step.angles = (const float *)(uintptr_t)angles;
    step.logits = (float *)(uintptr_t)logits;
    step.scratch = (void *)(uintptr_t)scratch;
    step.fast = fast;
    step.reach = (size_t)reach;
    step.threads = threads < 1 ? 1 : (size_t)threads;
    step.rows = (size_t)ids / sizeof(int64_t);
    fault = ids != lengths ? "each row needs a length" : step_fault(&step, (size_t)given);
    if (fault) {
        PyErr_SetString(PyExc_ValueError, fault);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    take_step(&step);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *step_size(PyObject *module, PyObject *args)
{
    unsigned long long model;
    Py_ssize_t rows;
    int threads;
    if (!PyArg_ParseTuple(args, "Kni", &model, &rows, &threads))
        return NULL;
    return PyLong_FromSize_t(scratch_of_step((const Model *)(uintptr_t)model, (size_t)rows,
                                             threads < 1 ? 1 : (size_t)threads));
}

/* ---- binding */

/* The names of what is used, each once, and what failed. */
static PyObject *vectors(PyObject *module, PyObject *unused)
{
    char names[64] = "";
    for (const Variant *variant = variants; variant->kernels[0]; variant++)
        for (int kind = 0; kind < 4; kind++)
            if (chosen[kind] == variant) {
                size_t used = strlen(names);
                snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "",
                         variant->name);
                break;
            }
    return Py_BuildValue("ss", names, faults);
}

static PyObject *share_threads(PyObject *module, PyObject *args)
{
    unsigned long long address;
    if (!PyArg_ParseTuple(args, "K", &address))
        return NULL;
    use_openmp((uintptr_t)address);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"product", product, METH_VARARGS,
     "product(kind, x, weights, scales, bias, out, rows, outputs, inputs, block, group, narrow, "
     "threads, fast): out = x · weightsᵀ + bias, all of them addresses."},
    {"step", step, METH_VARARGS,
     "step(model, blocks, caches, ids, lengths, angles, reach, scratch, bytes, logits, threads, "
     "fast): one more token of each row, addresses but for ids and lengths (int64, as bytes)."},
    {"step_size", step_size, METH_VARARGS,
     "step_size(model, rows, threads) -> bytes of scratch that a step needs."},
    {"share_threads", share_threads, METH_VARARGS,
     "share_threads(address): compute with the threads of GNU's OpenMP, whose GOMP_parallel lies "
     "there; 0: with threads of our own."},
    {"vectors", vectors, METH_NOARGS,
     "vectors() -> the vector instructions that are used here, and those that failed their test."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_decode", "Replies on a CPU.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__decode(void)
{
    if (pool_init() < 0 || choose_variants() < 0)
        return PyErr_NoMemory();
    PyObject *module = PyModule_Create(&definition);
    PyObject *all = module ? PyTuple_New(4) : NULL;
    for (int kind = 0; all && kind < 4; kind++)
        PyTuple_SET_ITEM(all, kind, PyUnicode_FromString(kinds[kind]));
    if (!all || PyModule_AddObject(module, "KINDS", all) < 0) {
        Py_XDECREF(all);
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
