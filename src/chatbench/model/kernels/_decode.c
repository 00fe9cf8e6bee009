/* Matrix times few rows, for replies being written: float32, bfloat16, int8 and int4 weights.

   Rows of activations are computed each by itself, every output is summed in one fixed order:
   results do not depend on the number of threads nor on the other rows. Weights of 8 and 4 bits
   meet activations rounded to 8 bits by runs of 32. The vectorised kernel is chosen when the
   module is loaded. Addresses come from compiled.py, which has checked shapes and formats. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_decode_job.h"
#include "_decode_scalar.h"
#include "_decode_avx2.h"
#include "_decode_pool.h"

/* Bytes of weights below which waking a thread costs more than it saves, and those of a piece. */
#define WORTH_SHARING (64 * 1024)
#define PIECE (48 * 1024)

static const char *const names[] = {"float32", "bfloat16", "int8", "int4"};

static int has_avx2(void)
{
#ifdef HAS_AVX2
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

static Kernel kernel_for(const Job *job, int fast)
{
    static const Kernel plain[] = {scalar_plain, scalar_plain, scalar_int8, scalar_int4};
#ifdef HAS_AVX2
    static const Kernel vectors[] = {avx2_float32, avx2_bfloat16, avx2_int8, avx2_int4};
    if (fast && (job->kind != INT4 || job->block % STRIP == 0))
        return vectors[job->kind];
#endif
    (void)fast;
    return plain[job->kind];
}

/* ---- activations, made ready once for all outputs */

static size_t scratch_size(const Job *job)
{
    size_t runs = job->padded / RUN, wide = job->narrow ? job->rows * job->inputs : 0;
    if (job->kind == FLOAT32 || job->kind == BFLOAT16)
        return wide * sizeof(float) + 1;
    return (wide + 2 * job->rows * runs) * sizeof(float) + job->rows * job->padded;
}

static void quantize_row(const Job *job, const float *x, size_t m, int fast)
{
    size_t runs = job->padded / RUN;
    for (size_t run = 0; run < runs; run++) {
        size_t begin = run * RUN, left = job->inputs - begin;
        int8_t *codes = job->codes + m * job->padded + begin;
        float *step = job->steps + m * runs + run, *sum = job->sums + m * runs + run;
#ifdef HAS_AVX2
        if (fast && left >= RUN)
            avx2_quantize_run(x + begin, codes, step, sum);
        else
#endif
            quantize_run(x + begin, left < RUN ? left : RUN, codes, step, sum);
        for (size_t k = 0; job->kind == INT4 && k < RUN; k += 4) {
            int8_t second = codes[k + 1];
            codes[k + 1] = codes[k + 2];
            codes[k + 2] = second;
        }
    }
    (void)fast;
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
    for (size_t m = 0; m < job->rows; m++)
        quantize_row(job, x + m * job->inputs, m, fast);
}

/* ---- binding */

static size_t bytes_of(const Job *job)
{
    static const size_t eighths[] = {32, 16, 8, 4};
    return job->inputs * eighths[job->kind] / 8;
}

static int compute(Job *job, const void *x, int threads, int fast)
{
    void *scratch = malloc(scratch_size(job));
    if (!scratch)
        return -1;
    prepare(job, x, scratch, fast);
    Work work = {job, kernel_for(job, fast), 0};
    size_t row = bytes_of(job), grain = job->kind == INT4 ? job->block : 8;
    work.piece = (PIECE / (row ? row : 1) / grain + 1) * grain;
    work_together(&work, row * job->outputs < WORTH_SHARING ? 1 : threads);
    free(scratch);
    return 0;
}

static int job_fits(const Job *job)
{
    if (job->kind < FLOAT32 || job->kind > INT4 || (job->kind >= INT8) != (job->scales != NULL))
        return 0;
    return job->kind != INT4
           || (job->block >= 2 && job->block % 2 == 0 && job->outputs % job->block == 0
               && job->group && job->group % RUN == 0 && job->inputs % job->group == 0);
}

static PyObject *product(PyObject *module, PyObject *args)
{
    Job job;
    memset(&job, 0, sizeof job);
    unsigned long long x, weights, scales, bias, out;
    Py_ssize_t rows, outputs, inputs, block, group;
    int threads, fast;
    if (!PyArg_ParseTuple(args, "iKKKKKnnnnnpip", &job.kind, &x, &weights, &scales, &bias, &out,
                          &rows, &outputs, &inputs, &block, &group, &job.narrow, &threads, &fast))
        return NULL;
    job.rows = (size_t)rows, job.outputs = (size_t)outputs, job.inputs = (size_t)inputs;
    job.block = (size_t)block, job.group = (size_t)group;
    job.padded = (job.inputs + RUN - 1) / RUN * RUN;
    job.weights = (const void *)(uintptr_t)weights, job.bias = (const void *)(uintptr_t)bias;
    job.scales = (const uint16_t *)(uintptr_t)scales, job.out = (void *)(uintptr_t)out;
    if (rows < 0 || outputs < 0 || inputs < 0 || block < 0 || group < 0 || !job_fits(&job)) {
        PyErr_SetString(PyExc_ValueError, "these shapes do not belong together");
        return NULL;
    }
    int failed;
    fast = fast && has_avx2();
    Py_BEGIN_ALLOW_THREADS
    failed = compute(&job, (const void *)(uintptr_t)x, threads, fast);
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_NoMemory();
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
    use_openmp((uintptr_t)address);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"product", product, METH_VARARGS,
     "product(kind, x, weights, scales, bias, out, rows, outputs, inputs, block, group, narrow, "
     "threads, fast): out = x · weightsᵀ + bias, all of them addresses."},
    {"share_threads", share_threads, METH_VARARGS,
     "share_threads(address): compute with the threads of GNU's OpenMP, whose GOMP_parallel lies "
     "there; 0: with threads of our own."},
    {"vectors", vectors, METH_NOARGS,
     "vectors() -> the vector instructions that are used here, or an empty string."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_decode", "Matrix times few rows.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__decode(void)
{
    if (pool_init() < 0)
        return PyErr_NoMemory();
    PyObject *module = PyModule_Create(&definition);
    PyObject *kinds = module ? PyTuple_New(4) : NULL;
    for (int kind = 0; kinds && kind < 4; kind++)
        PyTuple_SET_ITEM(kinds, kind, PyUnicode_FromString(names[kind]));
    if (!kinds || PyModule_AddObject(module, "KINDS", kinds) < 0) {
        Py_XDECREF(kinds);
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
