/* The hot loops of meedge_ray.search. Each has a twin in Python, named beside it, that gives the same result
 * to the last bit: the arithmetic follows the twin's order, and no multiply-add may be fused.
 *
 * Only the buffer protocol is used, so that building needs no NumPy. The lock is released while they run.
 */
#include "_kernels.h"
#include <string.h>

static int borrow_one(PyObject *object, Py_buffer *view, const Wanted *wanted, Py_ssize_t count)
{
    int flags = PyBUF_ND | PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (wanted->writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags) < 0) {
        return -1;
    }
    const char *format = view->format ? view->format : "B";
    int known = format[0] != '\0' && format[1] == '\0' && strchr(wanted->kinds, format[0]) != NULL;
    if (view->ndim != 1 || !known || view->itemsize != wanted->item || (count >= 0 && view->shape[0] != count)) {
        PyErr_Format(PyExc_ValueError, "%s: wrong type or length", wanted->name);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

int meedge_borrow(PyObject *const *objects, Py_buffer *views, const Wanted *wanted, int number)
{
    for (int i = 0; i < number; i++) {
        const Py_ssize_t count = i == 0 ? -1 : views[0].shape[0] + wanted[i].longer;
        if (borrow_one(objects[i], &views[i], &wanted[i], count) < 0) {
            meedge_release(views, i);
            return -1;
        }
    }
    return 0;
}

void meedge_release(Py_buffer *views, int number)
{
    while (number-- > 0) {
        PyBuffer_Release(&views[number]);
    }
}

/* ---- cover.uncovered ------------------------------------------------------------------------------- */

typedef MeedgeLabels Labels;
typedef MeedgePool Pool;

enum { BLOCK = 32 };

/* A label's value on one straight line: what it is worth where accuracy at hand counts `chance` less. */
INLINE double worth(double value, double accuracy, double chance)
{
    return value - accuracy * chance;
}

/* A label's value, less what it loses by being later than another. */
INLINE double delayed(double value, double spent, double other_spent, double delay)
{
    const double later = spent - other_spent;
    return value - (later > 0.0 ? later : 0.0) * delay;
}

/* What is lost if pool entry `x` stands for label `i`; nothing if negative. */
INLINE double slack_of(const Pool *pool, Py_ssize_t x, double spent, double at_low, double at_high, double low,
                       double high)
{
    const double value = delayed(pool->value[x], pool->spent[x], spent, pool->delay[x]);
    const double first = at_low - worth(value, pool->accuracy[x], low);
    const double second = at_high - worth(value, pool->accuracy[x], high);
    return first > second ? first : second;
}

/* Returns the first pool entry that covers label `i`, or -1; its slack in `slack`. */
INLINE Py_ssize_t find_cover(const Labels *labels, int64_t i, const Pool *pool, double *slack)
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

/* Whether label `i`, of this value, covers pool entry `x`, whatever their size. */
INLINE int obsolete(const Pool *pool, Py_ssize_t x, double spent, double value, double accuracy, double delay,
                    uint64_t used)
{
    const double low = pool->low[x], high = pool->high[x];
    const double mine = delayed(value, spent, pool->spent[x], delay);
    return (worth(mine, accuracy, low) >= worth(pool->value[x], pool->accuracy[x], low)) &
           (worth(mine, accuracy, high) >= worth(pool->value[x], pool->accuracy[x], high)) &
           ((used & ~pool->used[x]) == 0);
}

INLINE void move(Pool *pool, Py_ssize_t to, Py_ssize_t from)
{
    pool->spent[to] = pool->spent[from];
    pool->value[to] = pool->value[from];
    pool->accuracy[to] = pool->accuracy[from];
    pool->low[to] = pool->low[from];
    pool->high[to] = pool->high[from];
    pool->delay[to] = pool->delay[from];
    pool->used[to] = pool->used[from];
    pool->index[to] = pool->index[from];
}

/* Appends label `i` and packs away those that it covers, whatever their size. */
INLINE void enter(const Labels *labels, int64_t i, Pool *pool)
{
    const double spent = labels->spent[i], value = labels->value[i], accuracy = labels->accuracy[i];
    const double rise = labels->top - accuracy;
    const double delay = labels->steepness * (rise > 0.0 ? rise : 0.0);
    const uint64_t used = labels->used[i];
    Py_ssize_t to = 0;
    for (Py_ssize_t start = 0; start < pool->count; start += BLOCK) {
        const Py_ssize_t end = start + BLOCK < pool->count ? start + BLOCK : pool->count;
        int packing = to < start || end - start < BLOCK;
        if (!packing) { /* without branches: a block is one vector loop */
            for (Py_ssize_t x = start; x < start + BLOCK; x++) {
                packing |= obsolete(pool, x, spent, value, accuracy, delay, used);
            }
        }
        if (!packing) {
            to = end;
            continue;
        }
        for (Py_ssize_t x = start; x < end; x++) {
            const int gone = obsolete(pool, x, spent, value, accuracy, delay, used);
            move(pool, to, x);
            to += !gone;
        }
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

Pool meedge_pool(void *space, Py_ssize_t room)
{
    double *columns = space;
    const Pool pool = {
        .spent = columns,
        .value = columns + room,
        .accuracy = columns + 2 * room,
        .low = columns + 3 * room,
        .high = columns + 4 * room,
        .delay = columns + 5 * room,
        .used = (uint64_t *)(columns + 6 * room),
        .index = (int64_t *)(columns + 7 * room),
        .count = 0,
    };
    return pool;
}

WIDE
void meedge_keep_uncovered(const Labels *labels, Pool *pool)
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
    static const Wanted wanted[] = {
        {"order", "lq", 8, 0, 0}, {"spent", "d", 8, 0, 0}, {"value", "d", 8, 0, 0},
        {"accuracy", "d", 8, 0, 0}, {"low", "d", 8, 0, 0}, {"high", "d", 8, 0, 0},
        {"used", "LQ", 8, 0, 0}, {"loss", "d", 8, 0, 1}, {"keep", "?", 1, 0, 1},
    };
    enum { VIEWS = 9, NUMBERS = 3, ITEM = 8 };
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
    if (meedge_borrow(args, views, wanted, VIEWS) < 0) {
        return NULL;
    }
    const Py_ssize_t count = views[0].shape[0];
    if (!is_permutation(views[0].buf, views[8].buf, count)) {
        meedge_release(views, VIEWS);
        PyErr_SetString(PyExc_ValueError, "order: not a permutation");
        return NULL;
    }
    char *space = count > PY_SSIZE_T_MAX / (POOL_COLUMNS * ITEM)
                      ? NULL
                      : PyMem_RawMalloc((size_t)count * POOL_COLUMNS * ITEM + 1);
    if (space == NULL) {
        meedge_release(views, VIEWS);
        return PyErr_NoMemory();
    }
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
    Pool pool = meedge_pool(space, count);
    Py_BEGIN_ALLOW_THREADS
    meedge_keep_uncovered(&labels, &pool);
    Py_END_ALLOW_THREADS
    PyMem_RawFree(space);
    meedge_release(views, VIEWS);
    Py_RETURN_NONE;
}

/* ---- the module ------------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"uncovered", (PyCFunction)(void (*)(void))uncovered, METH_FASTCALL, uncovered_doc},
    {"search_tree", (PyCFunction)(void (*)(void))meedge_search_tree, METH_FASTCALL, meedge_search_tree_doc},
    {"plan_exits", (PyCFunction)(void (*)(void))meedge_plan_exits, METH_FASTCALL, meedge_plan_exits_doc},
    {"value_exits", (PyCFunction)(void (*)(void))meedge_value_exits, METH_FASTCALL, meedge_value_exits_doc},
    {"hybrid_exits", (PyCFunction)(void (*)(void))meedge_hybrid_exits, METH_FASTCALL, meedge_hybrid_exits_doc},
    {"plan_by_law", (PyCFunction)(void (*)(void))meedge_plan_by_law, METH_FASTCALL, meedge_plan_by_law_doc},
    {"predict_confidences", (PyCFunction)(void (*)(void))meedge_predict_confidences, METH_FASTCALL,
     meedge_predict_confidences_doc},
    {"decider", (PyCFunction)(void (*)(void))meedge_decider, METH_FASTCALL, meedge_decider_doc},
    {"decide", (PyCFunction)(void (*)(void))meedge_decide, METH_FASTCALL, meedge_decide_doc},
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
