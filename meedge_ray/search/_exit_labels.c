/* Exit plans under any law; the Python twin is meedge_ray.search.exit_loops.best_by_law.
 *
 * A label is a plan of the exits up to here that may become the best one. Labels ascend in the time spent.
 */
#include "_kernels.h"
#include <string.h>

typedef struct {
    double *spent, *value, *confidence, *ahead; /* `ahead`: the chance to live until the next output */
    int64_t *node;                              /* of the tree of plans */
    Py_ssize_t count;
} Plans;

/* What holds up to `room` labels. */
typedef struct {
    Plans now, next;
    double *times, *chance; /* three of each label, see `ask` */
    int64_t *order;
    void *zero, *pool;
    unsigned char *keep;
    Py_ssize_t room;
    void *memory;
} Space;

/* Every plan tried, as the one before it and the exit it adds; node 0 is the empty one. */
typedef struct {
    int64_t *parent, *exit;
    Py_ssize_t count, room;
} Tree;

typedef struct {
    const double *reach, *cost, *confidence, *earliest, *top;
    Py_ssize_t count;
    double steepness;
} Exits;

/* A law: a function of Python's, asked through `times`, a writable array of its own; or a table where there is one. */
typedef struct {
    PyObject *function, *times;
    double *window;
    Py_ssize_t width;
    const MeedgeLaw *table;
} Law;

enum { LABEL_COLUMNS = 5, COLUMNS = 2 * LABEL_COLUMNS + 3 + 3 + 1 + 1 + POOL_COLUMNS + 1, FIRST_ROOM = 256 };

static Plans plans_in(double *columns, Py_ssize_t room)
{
    const Plans plans = {columns, columns + room, columns + 2 * room, columns + 3 * room,
                         (int64_t *)(columns + 4 * room), 0};
    return plans;
}

/* Makes room for `room` labels, with those of `now`; returns 0 with an exception set where there is none. */
static int grow_space(Space *space, Py_ssize_t room)
{
    double *columns = room > PY_SSIZE_T_MAX / (COLUMNS * 8) ? NULL : PyMem_RawMalloc((size_t)room * COLUMNS * 8);
    if (columns == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    const Plans old = space->now;
    Space grown = {.now = plans_in(columns, room), .room = room, .memory = columns};
    if (old.count > 0) {
        const size_t bytes = (size_t)old.count * 8;
        memcpy(grown.now.spent, old.spent, bytes);
        memcpy(grown.now.value, old.value, bytes);
        memcpy(grown.now.confidence, old.confidence, bytes);
        memcpy(grown.now.node, old.node, bytes);
        grown.now.count = old.count;
    }
    columns += LABEL_COLUMNS * room;
    grown.next = plans_in(columns, room);
    columns += LABEL_COLUMNS * room;
    grown.times = columns;
    grown.chance = columns + 3 * room;
    grown.order = (int64_t *)(columns + 6 * room);
    grown.zero = columns + 7 * room;
    grown.pool = columns + 8 * room;
    grown.keep = (unsigned char *)(columns + (8 + POOL_COLUMNS) * room);
    memset(grown.zero, 0, (size_t)room * 8);
    for (Py_ssize_t place = 0; place < room; place++) {
        grown.order[place] = place;
    }
    PyMem_RawFree(space->memory);
    *space = grown;
    return 1;
}

/* Appends a node; returns it, or -1 with an exception set. */
static int64_t add_node(Tree *tree, int64_t parent, Py_ssize_t exit)
{
    if (tree->count == tree->room) {
        const Py_ssize_t room = tree->room ? 2 * tree->room : FIRST_ROOM;
        int64_t *parents = PyMem_RawRealloc(tree->parent, (size_t)room * sizeof(int64_t));
        tree->parent = parents ? parents : tree->parent;
        int64_t *exits = parents ? PyMem_RawRealloc(tree->exit, (size_t)room * sizeof(int64_t)) : NULL;
        tree->exit = exits ? exits : tree->exit;
        if (exits == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        tree->room = room;
    }
    tree->parent[tree->count] = parent;
    tree->exit[tree->count] = exit;
    return tree->count++;
}

static double looked_up(const MeedgeLaw *law, double time)
{
    const double place = time * (double)(law->points - 1);
    const Py_ssize_t before = (Py_ssize_t)place;
    if (!(time < 1.0) || before >= law->points - 1) {
        return law->chance[law->points - 1];
    }
    return law->chance[before] + (place - (double)before) * (law->chance[before + 1] - law->chance[before]);
}

/* Fills `chance` with the law at all `times`; 0 with an exception set. */
static int ask(const Law *law, const Space *space, Py_ssize_t count)
{
    static const Wanted wanted[] = {{"survival", "d", 8, 0, 0}};
    for (Py_ssize_t place = 0; law->table != NULL && place < count; place++) {
        space->chance[place] = looked_up(law->table, space->times[place]);
    }
    for (Py_ssize_t start = 0; law->table == NULL && start < count; start += law->width) {
        const Py_ssize_t part = count - start < law->width ? count - start : law->width;
        memcpy(law->window, space->times + start, (size_t)part * 8);
        PyObject *times = PySequence_GetSlice(law->times, 0, part);
        PyObject *chance = times ? PyObject_CallOneArg(law->function, times) : NULL;
        Py_XDECREF(times);
        Py_buffer view;
        if (chance == NULL || meedge_borrow(&chance, &view, wanted, 1) < 0) {
            Py_XDECREF(chance);
            return 0;
        }
        const int fits = view.shape[0] == part;
        if (fits) {
            memcpy(space->chance + start, view.buf, (size_t)part * 8);
        }
        else {
            PyErr_SetString(PyExc_ValueError, "survival: wrong length");
        }
        meedge_release(&view, 1);
        Py_DECREF(chance);
        if (!fits) {
            return 0;
        }
    }
    return 1;
}

static inline void put(Plans *plans, double spent, double value, double confidence, double ahead, int64_t node)
{
    const Py_ssize_t place = plans->count++;
    plans->spent[place] = spent;
    plans->value[place] = value;
    plans->confidence[place] = confidence;
    plans->ahead[place] = ahead;
    plans->node[place] = node;
}

/* Merges the labels with those that run the exit besides into `next`; -1 with an exception, 0 if none is new. */
static int run_exit(const Exits *exits, Py_ssize_t exit, Space *space, Tree *tree)
{
    const Plans *now = &space->now;
    const Py_ssize_t count = now->count;
    const double cost = exits->cost[exit], confidence = exits->confidence[exit];
    const double *chance = space->chance;
    Py_ssize_t old = 0;
    int added = 0;
    space->next.count = 0;
    for (Py_ssize_t from = 0; from < count; from++) {
        const double gain = (confidence - now->confidence[from]) * chance[from];
        if (!(gain > 0.0)) {
            continue;
        }
        const double longer = now->spent[from] + cost;
        for (; old < count && now->spent[old] <= longer; old++) {
            put(&space->next, now->spent[old], now->value[old], now->confidence[old], chance[count + old],
                now->node[old]);
        }
        const int64_t node = add_node(tree, now->node[from], exit);
        if (node < 0) {
            return -1;
        }
        put(&space->next, longer, now->value[from] + gain, confidence, chance[2 * count + from], node);
        added = 1;
    }
    for (; old < count; old++) {
        put(&space->next, now->spent[old], now->value[old], now->confidence[old], chance[count + old], now->node[old]);
    }
    return added;
}

/* Moves the labels of `next` that are needed back to `now`. */
static void keep_needed(const Exits *exits, Py_ssize_t exit, Space *space)
{
    const Plans *next = &space->next;
    const MeedgeLabels labels = {
        .order = space->order,
        .spent = next->spent,
        .value = next->value,
        .accuracy = next->confidence,
        .low = space->zero,
        .high = next->ahead,
        .used = space->zero,
        .loss = space->zero, /* stays as it is, where none is allowed */
        .keep = space->keep,
        .count = next->count,
        .top = exits->top[exit],
        .steepness = exits->steepness,
        .allowed = 0.0,
    };
    MeedgePool pool = meedge_pool(space->pool, space->room);
    meedge_keep_uncovered(&labels, &pool);
    space->now.count = 0;
    for (Py_ssize_t place = 0; place < next->count; place++) {
        if (space->keep[place]) {
            put(&space->now, next->spent[place], next->value[place], next->confidence[place], next->ahead[place],
                next->node[place]);
        }
    }
}

/* Fills `execute` with the best plan; 0 with an exception set. */
static int search(const Exits *exits, const Law *law, Space *space, Tree *tree, double at_hand, unsigned char *execute)
{
    for (Py_ssize_t exit = 0; exit < exits->count; exit++) {
        if (!(exits->confidence[exit] > at_hand)) {
            continue;
        }
        const Py_ssize_t count = space->now.count;
        if (2 * count > space->room && !grow_space(space, 4 * count)) {
            return 0;
        }
        for (Py_ssize_t place = 0; place < count; place++) {
            const double spent = space->now.spent[place], longer = spent + exits->cost[exit];
            space->times[place] = exits->reach[exit] + longer;
            space->times[count + place] = exits->earliest[exit] + spent;
            space->times[2 * count + place] = exits->earliest[exit] + longer;
        }
        if (!ask(law, space, 3 * count)) {
            return 0;
        }
        const int added = run_exit(exits, exit, space, tree);
        if (added < 0) {
            return 0;
        }
        if (added) {
            keep_needed(exits, exit, space);
        }
    }
    Py_ssize_t best = 0;
    for (Py_ssize_t place = 1; place < space->now.count; place++) {
        best = space->now.value[place] > space->now.value[best] ? place : best;
    }
    memset(execute, 0, (size_t)exits->count);
    for (int64_t node = space->now.node[best]; node; node = tree->parent[node]) {
        execute[tree->exit[node]] = 1;
    }
    return 1;
}

/* The best plan where `value` is that of the confidence `at_hand` alone; 0 with an exception set. */
static int plan(const Exits *exits, const Law *law, double at_hand, double value, unsigned char *execute)
{
    Space space = {.room = 0};
    Tree tree = {.room = 0};
    int done = 0;
    if (grow_space(&space, FIRST_ROOM) && add_node(&tree, 0, 0) == 0) {
        put(&space.now, 0.0, value, at_hand, 0.0, 0);
        done = search(exits, law, &space, &tree, at_hand, execute);
    }
    PyMem_RawFree(space.memory);
    PyMem_RawFree(tree.parent);
    PyMem_RawFree(tree.exit);
    return done;
}

int meedge_plan_ahead_by_law(const double *conv_ms, const double *branch_ms, const double *confidence,
                             Py_ssize_t total, const double *numbers, const MeedgeLaw *law, double *space,
                             unsigned char *execute)
{
    enum { START = 1, BEST = 3 }; /* of the numbers */
    const Py_ssize_t start = (Py_ssize_t)numbers[START], count = total - start;
    double *reach = space, *cost = space + count, *earliest = space + 2 * count, *top = space + 3 * count;
    const double elapsed = meedge_lay_out(conv_ms, branch_ms, total, numbers, reach, cost);
    double first = 0.0, highest = 0.0; /* of the exits behind; the last has none */
    for (Py_ssize_t exit = count - 1; exit >= 0; exit--) {
        const double alone = reach[exit] + cost[exit], confidence_here = confidence[start + exit];
        earliest[exit] = first;
        top[exit] = highest;
        first = exit == count - 1 || alone < first ? alone : first;
        highest = confidence_here > highest ? confidence_here : highest;
    }
    const Exits exits = {reach, cost, confidence + start, earliest, top, count, law->steepness};
    const Law by_table = {.table = law};
    return plan(&exits, &by_table, numbers[BEST], numbers[BEST] * looked_up(law, elapsed), execute + start);
}

const char meedge_plan_by_law_doc[] =
    "plan_by_law(reach, cost, confidence, earliest, top, execute, times, law, best_confidence, value, steepness)\n"
    "--\n\nFill `execute`; see meedge_ray.search.exit_loops.best_by_law. `times` is room for what `law` is asked.";

PyObject *meedge_plan_by_law(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    static const Wanted wanted[] = {
        {"reach", "d", 8, 0, 0},    {"cost", "d", 8, 0, 0}, {"confidence", "d", 8, 0, 0},
        {"earliest", "d", 8, 0, 0}, {"top", "d", 8, 0, 0},  {"execute", "?", 1, 0, 1},
    };
    static const Wanted wanted_times[] = {{"times", "d", 8, 0, 1}};
    enum { VIEWS = 6, TIMES = VIEWS, LAW, BEST, VALUE, STEEPNESS, ARGUMENTS };
    if (nargs != ARGUMENTS) {
        return PyErr_Format(PyExc_TypeError, "%d arguments wanted, got %zd", ARGUMENTS, nargs);
    }
    const double best = PyFloat_AsDouble(args[BEST]), value = PyFloat_AsDouble(args[VALUE]);
    const double steepness = PyFloat_AsDouble(args[STEEPNESS]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_buffer views[VIEWS], times;
    if (meedge_borrow(args, views, wanted, VIEWS) < 0) {
        return NULL;
    }
    if (meedge_borrow(args + TIMES, &times, wanted_times, 1) < 0) {
        meedge_release(views, VIEWS);
        return NULL;
    }
    const Exits exits = {views[0].buf, views[1].buf, views[2].buf, views[3].buf, views[4].buf, views[0].shape[0],
                         steepness};
    const Law law = {args[LAW], args[TIMES], times.buf, times.shape[0], NULL};
    int done = 0;
    if (times.shape[0] == 0) {
        PyErr_SetString(PyExc_ValueError, "times: no room");
    }
    else {
        done = plan(&exits, &law, best, value, views[VIEWS - 1].buf);
    }
    meedge_release(&times, 1);
    meedge_release(views, VIEWS);
    if (!done) {
        return NULL;
    }
    Py_RETURN_NONE;
}
