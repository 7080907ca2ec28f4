/* The hot loops of meedge_ray.search. Each has a NumPy twin, named beside it, that gives the same result
 * to the last bit: the arithmetic below follows the twin's order, and no multiply-add may be fused.
 *
 * Only the buffer protocol is used, so that building needs no NumPy. The lock is released while they run.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

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
    const int64_t *order;
    const double *spent, *value, *accuracy, *low, *high;
    const uint64_t *used;
    double *loss;
    unsigned char *keep;
    Py_ssize_t count;
    double top, steepness, allowed;
} Labels;

/* The labels still compared with, packed so that a scan reads memory in one run. `delay` is what each loses
 * per ms that it is later than the label it stands for. */
typedef struct {
    double *spent, *value, *accuracy, *low, *high, *delay;
    uint64_t *used;
    int64_t *index;
    Py_ssize_t count;
} Pool;

enum { BLOCK = 32 };

/* A label's value on one straight line: what it is worth where accuracy at hand counts `chance` less. */
static inline double worth(double value, double accuracy, double chance)
{
    return value - accuracy * chance;
}

/* A label's value, less what it loses by being later than another. */
static inline double delayed(double value, double spent, double other_spent, double delay)
{
    const double later = spent - other_spent;
    return value - (later > 0.0 ? later : 0.0) * delay;
}

/* What is lost if pool entry `x` stands for label `i`; nothing if negative. */
static inline double slack_of(const Pool *pool, Py_ssize_t x, double spent, double at_low, double at_high, double low,
                              double high)
{
    const double value = delayed(pool->value[x], pool->spent[x], spent, pool->delay[x]);
    const double first = at_low - worth(value, pool->accuracy[x], low);
    const double second = at_high - worth(value, pool->accuracy[x], high);
    return first > second ? first : second;
}

/* Returns the first pool entry that covers label `i`, or -1; its slack in `slack`. */
static Py_ssize_t find_cover(const Labels *labels, int64_t i, const Pool *pool, double *slack)
{
    const double spent = labels->spent[i], low = labels->low[i], high = labels->high[i];
    const double at_low = worth(labels->value[i], labels->accuracy[i], low);
    const double at_high = worth(labels->value[i], labels->accuracy[i], high);
    const double room = labels->allowed - labels->loss[i];
    const uint64_t unused = ~labels->used[i];
    for (Py_ssize_t start = 0; start < pool->count; start += BLOCK) {
        const Py_ssize_t end = start + BLOCK < pool->count ? start + BLOCK : pool->count;
        int any = 0; /* without branches: a block is one vector loop */
        for (Py_ssize_t x = start; x < end; x++) {
            any |= (slack_of(pool, x, spent, at_low, at_high, low, high) <= room) & ((pool->used[x] & unused) == 0);
        }
        for (Py_ssize_t x = start; any && x < end; x++) {
            *slack = slack_of(pool, x, spent, at_low, at_high, low, high);
            if (*slack <= room && (pool->used[x] & unused) == 0) {
                return x;
            }
        }
    }
    return -1;
}

/* Appends label `i` and packs away those that it covers, whatever their size. */
static void enter(const Labels *labels, int64_t i, Pool *pool)
{
    const double spent = labels->spent[i], value = labels->value[i], accuracy = labels->accuracy[i];
    const double rise = labels->top - accuracy;
    const double delay = labels->steepness * (rise > 0.0 ? rise : 0.0);
    const uint64_t used = labels->used[i];
    Py_ssize_t to = 0;
    for (Py_ssize_t x = 0; x < pool->count; x++) {
        const double low = pool->low[x], high = pool->high[x];
        const double mine = delayed(value, spent, pool->spent[x], delay);
        const int obsolete = (worth(mine, accuracy, low) >= worth(pool->value[x], pool->accuracy[x], low)) &
                             (worth(mine, accuracy, high) >= worth(pool->value[x], pool->accuracy[x], high)) &
                             ((used & ~pool->used[x]) == 0);
        if (to < x) {
            pool->spent[to] = pool->spent[x];
            pool->value[to] = pool->value[x];
            pool->accuracy[to] = pool->accuracy[x];
            pool->low[to] = low;
            pool->high[to] = high;
            pool->delay[to] = pool->delay[x];
            pool->used[to] = pool->used[x];
            pool->index[to] = pool->index[x];
        }
        to += !obsolete;
    }
    pool->spent[to] = spent;
    pool->value[to] = value;
    pool->accuracy[to] = accuracy;
    pool->low[to] = labels->low[i];
    pool->high[to] = labels->high[i];
    pool->delay[to] = delay;
    pool->used[to] = used;
    pool->index[to] = i;
    pool->count = to + 1;
}

static void keep_uncovered(const Labels *labels, Pool *pool)
{
    for (Py_ssize_t place = 0; place < labels->count; place++) {
        const int64_t i = labels->order[place];
        double slack = 0.0;
        const Py_ssize_t cover = find_cover(labels, i, pool, &slack);
        labels->keep[place] = cover < 0;
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

static int is_permutation(const int64_t *order, unsigned char *seen, Py_ssize_t count)
{
    memset(seen, 0, (size_t)count);
    for (Py_ssize_t place = 0; place < count; place++) {
        if (order[place] < 0 || order[place] >= count || seen[order[place]]) {
            return 0;
        }
        seen[order[place]] = 1;
    }
    return 1;
}

PyDoc_STRVAR(uncovered_doc,
             "uncovered(order, spent, value, accuracy, low, high, used, loss, keep, top, steepness, allowed)\n--\n\n"
             "Fill `keep` and raise `loss` in place; see meedge_ray.search.cover.uncovered.");

static PyObject *uncovered(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    static const struct {
        const char *name, *kinds;
        Py_ssize_t item;
        int writable;
    } wanted[] = {
        {"order", "lq", 8, 0}, {"spent", "d", 8, 0}, {"value", "d", 8, 0},
        {"accuracy", "d", 8, 0}, {"low", "d", 8, 0}, {"high", "d", 8, 0},
        {"used", "LQ", 8, 0}, {"loss", "d", 8, 1}, {"keep", "?", 1, 1},
    };
    enum { VIEWS = 9, NUMBERS = 3, COLUMNS = 8, ITEM = 8 };
    if (nargs != VIEWS + NUMBERS) {
        return PyErr_Format(PyExc_TypeError, "uncovered() takes %d arguments, got %zd", VIEWS + NUMBERS, nargs);
    }
    double numbers[NUMBERS];
    for (int i = 0; i < NUMBERS; i++) {
        numbers[i] = PyFloat_AsDouble(args[VIEWS + i]);
        if (numbers[i] == -1.0 && PyErr_Occurred()) {
            return NULL;
        }
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
    if (!is_permutation(views[0].buf, views[8].buf, count)) {
        release(views, VIEWS);
        PyErr_SetString(PyExc_ValueError, "order: not a permutation");
        return NULL;
    }
    char *space = count > PY_SSIZE_T_MAX / (COLUMNS * ITEM) ? NULL : PyMem_RawMalloc((size_t)count * COLUMNS * ITEM + 1);
    if (space == NULL) {
        release(views, VIEWS);
        return PyErr_NoMemory();
    }
    const size_t column = (size_t)count * ITEM;
    const Labels labels = {
        .order = views[0].buf,
        .spent = views[1].buf,
        .value = views[2].buf,
        .accuracy = views[3].buf,
        .low = views[4].buf,
        .high = views[5].buf,
        .used = views[6].buf,
        .loss = views[7].buf,
        .keep = views[8].buf,
        .count = count,
        .top = numbers[0],
        .steepness = numbers[1],
        .allowed = numbers[2],
    };
    Pool pool = {
        .spent = (double *)space,
        .value = (double *)(space + column),
        .accuracy = (double *)(space + 2 * column),
        .low = (double *)(space + 3 * column),
        .high = (double *)(space + 4 * column),
        .delay = (double *)(space + 5 * column),
        .used = (uint64_t *)(space + 6 * column),
        .index = (int64_t *)(space + 7 * column),
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
