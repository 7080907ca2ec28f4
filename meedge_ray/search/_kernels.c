/* The hot loops of meedge_ray.search. Each has a NumPy twin, named beside it, that gives the same result
 * to the last bit: the arithmetic below follows the twin's order, and no multiply-add may be fused.
 *
 * Only the buffer protocol is used, so that building needs no NumPy. The lock is released while they run.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

/* Borrows a one-dimensional contiguous buffer of `count` items (any count if negative) of one kind. */
static int borrow(PyObject *object, Py_buffer *view, const char *name, const char *kinds, Py_ssize_t item,
                  Py_ssize_t count, int writable)
{
    int flags = PyBUF_ND | PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags) < 0) {
        return -1;
    }
    const char *format = view->format ? view->format : "B";
    int known = format[0] != '\0' && format[1] == '\0' && strchr(kinds, format[0]) != NULL;
    if (view->ndim != 1 || !known || view->itemsize != item || (count >= 0 && view->shape[0] != count)) {
        PyErr_Format(PyExc_ValueError, "%s: wrong type or length", name);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

static void release(Py_buffer *views, int count)
{
    while (count-- > 0) {
        PyBuffer_Release(&views[count]);
    }
}

/* ---- cover.uncovered ------------------------------------------------------------------------------- */

typedef struct {
    const double *spent, *value, *accuracy, *low, *high;
    const uint64_t *used;
    double *loss;
    unsigned char *keep;
    Py_ssize_t count;
    double allowed;
} Labels;

/* The labels still compared with, packed so that the scan reads memory in one run. */
typedef struct {
    double *spent, *value, *accuracy, *low, *high;
    uint64_t *used;
    Py_ssize_t *index;
    Py_ssize_t count;
} Pool;

enum { BLOCK = 32 };

/* Whether pool entry `x` covers label `i`; written without branches, so that a block is one vector loop. */
#define COVERS(pool, x, spent_i, at_low, at_high, lo, hi, unused, room)                                      \
    (((pool)->spent[x] <= (spent_i)) & ((at_low) - ((pool)->value[x] - (pool)->accuracy[x] * (lo)) <= (room)) & \
     ((at_high) - ((pool)->value[x] - (pool)->accuracy[x] * (hi)) <= (room)) &                               \
     (((pool)->used[x] & (unused)) == 0))

/* Returns the first pool entry that covers label `i`, or -1; its slack in `slack`. */
static Py_ssize_t find_cover(const Labels *labels, Py_ssize_t i, const Pool *pool, double *slack)
{
    const double spent = labels->spent[i], lo = labels->low[i], hi = labels->high[i];
    const double at_low = labels->value[i] - labels->accuracy[i] * lo;
    const double at_high = labels->value[i] - labels->accuracy[i] * hi;
    const double room = labels->allowed - labels->loss[i];
    const uint64_t unused = ~labels->used[i];
    for (Py_ssize_t start = 0; start < pool->count; start += BLOCK) {
        const Py_ssize_t end = start + BLOCK < pool->count ? start + BLOCK : pool->count;
        int any = 0;
        for (Py_ssize_t x = start; x < end; x++) {
            any |= COVERS(pool, x, spent, at_low, at_high, lo, hi, unused, room);
        }
        if (!any) {
            continue;
        }
        Py_ssize_t x = start;
        while (!COVERS(pool, x, spent, at_low, at_high, lo, hi, unused, room)) {
            x++;
        }
        const double first = at_low - (pool->value[x] - pool->accuracy[x] * lo);
        const double second = at_high - (pool->value[x] - pool->accuracy[x] * hi);
        *slack = first > second ? first : second;
        return x;
    }
    return -1;
}

/* Appends label `i` and packs away those that it covers, whatever their size. */
static void enter(const Labels *labels, Py_ssize_t i, Pool *pool)
{
    const double spent = labels->spent[i], value = labels->value[i], accuracy = labels->accuracy[i];
    const uint64_t used = labels->used[i];
    Py_ssize_t to = 0;
    for (Py_ssize_t x = 0; x < pool->count; x++) {
        const double lo = pool->low[x], hi = pool->high[x];
        const int obsolete = (spent <= pool->spent[x]) &
                             (value - accuracy * lo >= pool->value[x] - pool->accuracy[x] * lo) &
                             (value - accuracy * hi >= pool->value[x] - pool->accuracy[x] * hi) &
                             ((used & ~pool->used[x]) == 0);
        pool->spent[to] = pool->spent[x];
        pool->value[to] = pool->value[x];
        pool->accuracy[to] = pool->accuracy[x];
        pool->low[to] = lo;
        pool->high[to] = hi;
        pool->used[to] = pool->used[x];
        pool->index[to] = pool->index[x];
        to += !obsolete;
    }
    pool->spent[to] = spent;
    pool->value[to] = value;
    pool->accuracy[to] = accuracy;
    pool->low[to] = labels->low[i];
    pool->high[to] = labels->high[i];
    pool->used[to] = used;
    pool->index[to] = i;
    pool->count = to + 1;
}

static void keep_uncovered(const Labels *labels, Pool *pool)
{
    for (Py_ssize_t i = 0; i < labels->count; i++) {
        double slack = 0.0;
        const Py_ssize_t cover = find_cover(labels, i, pool, &slack);
        labels->keep[i] = cover < 0;
        if (cover < 0) {
            enter(labels, i, pool);
            continue;
        }
        const double loss = labels->loss[i] + (slack > 0.0 ? slack : 0.0);
        double *carried = &labels->loss[pool->index[cover]];
        if (loss > *carried) {
            *carried = loss;
        }
    }
}

PyDoc_STRVAR(uncovered_doc,
             "uncovered(spent, value, accuracy, low, high, used, loss, keep, allowed)\n--\n\n"
             "Fill `keep` and raise `loss` in place; see meedge_ray.search.cover.uncovered.");

static PyObject *uncovered(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    static const struct {
        const char *name, *kinds;
        Py_ssize_t item;
        int writable;
    } wanted[] = {
        {"spent", "d", 8, 0}, {"value", "d", 8, 0}, {"accuracy", "d", 8, 0}, {"low", "d", 8, 0},
        {"high", "d", 8, 0},  {"used", "LQ", 8, 0}, {"loss", "d", 8, 1},     {"keep", "?", 1, 1},
    };
    enum { VIEWS = 8, COLUMNS = 7 };
    if (nargs != VIEWS + 1) {
        return PyErr_Format(PyExc_TypeError, "uncovered() takes %d arguments, got %zd", VIEWS + 1, nargs);
    }
    const double allowed = PyFloat_AsDouble(args[VIEWS]);
    if (allowed == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    Py_buffer views[VIEWS];
    Py_ssize_t count = -1;
    for (int i = 0; i < VIEWS; i++) {
        if (borrow(args[i], &views[i], wanted[i].name, wanted[i].kinds, wanted[i].item, count,
                   wanted[i].writable) < 0) {
            release(views, i);
            return NULL;
        }
        count = views[0].shape[0];
    }
    /* Every column's items are 8 bytes on the platforms with 64-bit indices, 4 at the least elsewhere. */
    double *space = count > PY_SSIZE_T_MAX / (COLUMNS * 8) ? NULL : PyMem_RawMalloc((size_t)count * COLUMNS * 8 + 1);
    if (space == NULL) {
        release(views, VIEWS);
        return PyErr_NoMemory();
    }
    const Labels labels = {
        .spent = views[0].buf, .value = views[1].buf, .accuracy = views[2].buf, .low = views[3].buf,
        .high = views[4].buf,  .used = views[5].buf,  .loss = views[6].buf,     .keep = views[7].buf,
        .count = count,        .allowed = allowed,
    };
    Pool pool = {
        .spent = space,
        .value = space + count,
        .accuracy = space + 2 * count,
        .low = space + 3 * count,
        .high = space + 4 * count,
        .used = (uint64_t *)(space + 5 * count),
        .index = (Py_ssize_t *)(space + 6 * count),
        .count = 0,
    };
    Py_BEGIN_ALLOW_THREADS
    keep_uncovered(&labels, &pool);
    Py_END_ALLOW_THREADS
    PyMem_RawFree(space);
    release(views, VIEWS);
    Py_RETURN_NONE;
}

/* ---- the module ------------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"uncovered", (PyCFunction)(void (*)(void))uncovered, METH_FASTCALL, uncovered_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_kernels",
    .m_doc = "Compiled loops of meedge_ray.search.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    return PyModuleDef_Init(&definition);
}
