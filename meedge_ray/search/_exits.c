/* Exit plans under the uniform law; the Python twins are in meedge_ray.search.exit_loops.
 *
 * Inside, times are fractions of the horizon, so the chance of no kill before t is max(0, 1 - t).
 */
#include "_kernels.h"
#include <math.h>
#include <string.h>

#define LEAST_GAIN 1e-12

typedef struct {
    /* From the first exit ahead on: when its conv part ends if no branch runs, what its branch takes. */
    double *reach, *cost;
    const double *confidence;
    Py_ssize_t count;
    double left, best; /* of the horizon, and the best confidence at hand */
} Exits;

/* ---- what a plan is worth ---------------------------------------------------------------------------- */

/* What branches come to that have run. */
typedef struct {
    double spent, confidence, value;
} Sum;

static inline Sum nothing_run(const Exits *exits)
{
    const Sum sum = {0.0, exits->best, exits->best * (exits->left > 0.0 ? exits->left : 0.0)};
    return sum;
}

static inline Sum run_branch(const Exits *exits, Sum sum, Py_ssize_t exit)
{
    sum.spent += exits->cost[exit];
    const double confidence = exits->confidence[exit];
    if (confidence > sum.confidence) {
        const double left = 1.0 - (exits->reach[exit] + sum.spent);
        if (left > 0.0) {
            sum.value += (confidence - sum.confidence) * left;
            sum.confidence = confidence;
        }
    }
    return sum;
}

static double value_of(const Exits *exits, const unsigned char *execute)
{
    Sum sum = nothing_run(exits);
    for (Py_ssize_t exit = 0; exit < exits->count; exit++) {
        if (execute[exit]) {
            sum = run_branch(exits, sum, exit);
        }
    }
    return sum.value;
}

/* Skips what raises nothing: each such branch only delays others. */
static double stripped(const Exits *exits, unsigned char *execute)
{
    Sum sum = nothing_run(exits);
    for (Py_ssize_t exit = 0; exit < exits->count; exit++) {
        if (execute[exit]) {
            const Sum run = run_branch(exits, sum, exit);
            execute[exit] = run.confidence > sum.confidence;
            sum = execute[exit] ? run : sum;
        }
    }
    return sum.value;
}

/* ---- the best plan ------------------------------------------------------------------------------------- */

typedef struct {
    double *at, *worth; /* of running a branch: when it ends if it is the first, what it is worth from then on */
    int64_t *next;
} Table;

/* The first of the best branches to run after `confidence` is at hand, of those up to `last`; its worth in `best`. */
static inline int64_t best_next(const Table *table, Py_ssize_t from, Py_ssize_t last, double confidence, double *best)
{
    enum { LANES = 4 }; /* independent of each other, so that they fill vector registers */
    double highest[LANES] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    Py_ssize_t exit = from;
    for (; exit + LANES <= last + 1; exit += LANES) {
        for (int lane = 0; lane < LANES; lane++) {
            const double worth = confidence * table->at[exit + lane] + table->worth[exit + lane];
            highest[lane] = worth > highest[lane] ? worth : highest[lane];
        }
    }
    for (; exit <= last; exit++) {
        const double worth = confidence * table->at[exit] + table->worth[exit];
        highest[0] = worth > highest[0] ? worth : highest[0];
    }
    *best = highest[0];
    for (int lane = 1; lane < LANES; lane++) {
        *best = highest[lane] > *best ? highest[lane] : *best;
    }
    for (exit = from; confidence * table->at[exit] + table->worth[exit] != *best;) {
        exit++;
    }
    return exit;
}

/* The best plan whose last branch is that of `last`; returns its worth, its first branch in `first`. */
static double best_until(const Exits *exits, const Table *table, Py_ssize_t last, int64_t *first)
{
    const double highest = exits->confidence[last];
    table->worth[last] = highest * (1.0 - exits->reach[last]) - highest * exits->cost[last];
    table->next[last] = -1;
    for (Py_ssize_t exit = last - 1; exit >= 0; exit--) {
        const double confidence = exits->confidence[exit];
        if (confidence <= exits->best || confidence > highest) {
            table->worth[exit] = -INFINITY;
            continue;
        }
        double best;
        table->next[exit] = best_next(table, exit + 1, last, confidence, &best);
        table->worth[exit] = best - confidence * exits->reach[exit] - highest * exits->cost[exit];
    }
    double best;
    *first = best_next(table, 0, last, exits->best, &best);
    return best - exits->best * (1.0 - exits->left);
}

static double plan(const Exits *exits, const Table *table, unsigned char *execute)
{
    double longest = 0.0, earliest = INFINITY, best = nothing_run(exits).value, highest = exits->best;
    for (Py_ssize_t exit = 0; exit < exits->count; exit++) {
        table->at[exit] = exits->reach[exit] + exits->cost[exit];
        earliest = table->at[exit] < earliest ? table->at[exit] : earliest;
        longest += exits->cost[exit];
    }
    /* Where no plan overruns the horizon, a last branch that a later one equals could be followed by that one. */
    const int overruns = exits->count > 0 && exits->reach[exits->count - 1] + longest > 1.0 + LEAST_GAIN;
    memset(execute, 0, (size_t)exits->count);
    for (Py_ssize_t last = exits->count - 1; last >= 0; last--) {
        const double confidence = exits->confidence[last];
        if (confidence <= (overruns ? exits->best : highest)) {
            continue;
        }
        highest = confidence > highest ? confidence : highest;
        /* No plan is worth more than its last result from the earliest time on. */
        if (exits->best * (earliest - (1.0 - exits->left)) + confidence * (1.0 - earliest) <= best) {
            continue;
        }
        int64_t exit;
        const double worth = best_until(exits, table, last, &exit);
        if (worth > best + LEAST_GAIN) {
            best = worth;
            memset(execute, 0, (size_t)exits->count);
            for (; exit >= 0; exit = table->next[exit]) {
                execute[exit] = 1;
            }
        }
    }
    return stripped(exits, execute);
}

/* ---- EINet's hybrid search -------------------------------------------------------------------------- */

/* Values all plans with `more` further branches from `from` on, each from its start, as Algorithm 1 does. */
static void enumerate(const Exits *exits, unsigned char *execute, Py_ssize_t from, Py_ssize_t more, double *value,
                      unsigned char *best)
{
    if (more == 0) {
        const double worth = value_of(exits, execute);
        if (worth > *value) {
            *value = worth;
            memcpy(best, execute, (size_t)exits->count);
        }
        return;
    }
    for (Py_ssize_t exit = from; exit + more <= exits->count; exit++) {
        execute[exit] = 1;
        enumerate(exits, execute, exit + 1, more - 1, value, best);
        execute[exit] = 0;
    }
}

/* Adds the best branch to `execute` until all are in; keeps the best plan on the way. */
static void add_greedily(const Exits *exits, unsigned char *execute, double *value, unsigned char *best)
{
    for (;;) {
        double highest = -INFINITY;
        Py_ssize_t chosen = -1;
        for (Py_ssize_t exit = 0; exit < exits->count; exit++) {
            if (execute[exit]) {
                continue;
            }
            execute[exit] = 1;
            const double worth = value_of(exits, execute);
            execute[exit] = 0;
            if (worth > highest) {
                highest = worth;
                chosen = exit;
            }
        }
        if (chosen < 0) {
            return;
        }
        execute[chosen] = 1;
        if (highest > *value) {
            *value = highest;
            memcpy(best, execute, (size_t)exits->count);
        }
    }
}

static double search_hybrid(const Exits *exits, Py_ssize_t outputs, unsigned char *execute, unsigned char *best)
{
    double value = nothing_run(exits).value;
    memset(execute, 0, (size_t)exits->count);
    memset(best, 0, (size_t)exits->count);
    for (Py_ssize_t chosen = 1; chosen <= outputs && chosen <= exits->count; chosen++) {
        enumerate(exits, execute, 0, chosen, &value, best);
    }
    memcpy(execute, best, (size_t)exits->count);
    add_greedily(exits, execute, &value, best);
    return value;
}

/* ---- Python ---------------------------------------------------------------------------------------------- */

#define LONGEST_MS 1e15

enum { CONV, BRANCH, CONFIDENCE, EXECUTE, VIEWS };
enum { HORIZON, START, ELAPSED, BEST, REPLAN, NUMBERS };

static int within(const Py_buffer *view, double most, const char *name)
{
    const double *values = view->buf;
    for (Py_ssize_t i = 0; i < view->shape[0]; i++) {
        if (!(values[i] >= 0.0 && values[i] <= most)) {
            PyErr_Format(PyExc_ValueError, "%s: out of range", name);
            return 0;
        }
    }
    return 1;
}

static int read_numbers(PyObject *const *args, double *numbers)
{
    for (int i = 0; i < NUMBERS; i++) {
        numbers[i] = PyFloat_AsDouble(args[i]);
        if (numbers[i] == -1.0 && PyErr_Occurred()) {
            return 0;
        }
        if (!(numbers[i] >= 0.0 && numbers[i] <= (i == BEST ? 1.0 : LONGEST_MS))) {
            PyErr_SetString(PyExc_ValueError, "a number is out of range");
            return 0;
        }
    }
    return 1;
}

double meedge_lay_out(const double *conv_ms, const double *branch_ms, Py_ssize_t total, const double *numbers,
                      double *reach, double *cost)
{
    double horizon_ms = numbers[HORIZON];
    if (horizon_ms == 0.0) {
        for (Py_ssize_t exit = 0; exit < total; exit++) {
            horizon_ms += conv_ms[exit] + branch_ms[exit];
        }
    }
    const double scale = horizon_ms > 0.0 ? 1.0 / horizon_ms : 0.0;
    const Py_ssize_t start = (Py_ssize_t)numbers[START];
    double reach_ms = numbers[ELAPSED];
    for (Py_ssize_t exit = start; exit < total; exit++) {
        reach_ms += conv_ms[exit];
        reach[exit - start] = reach_ms * scale;
        cost[exit - start] = (branch_ms[exit] + numbers[REPLAN]) * scale;
    }
    return numbers[ELAPSED] * scale;
}

/* Fills `exits`, whose arrays have room for all. */
static void lay_out(const double *conv_ms, const double *branch_ms, const double *confidence, Py_ssize_t total,
                    const double *numbers, Exits *exits)
{
    const Py_ssize_t start = (Py_ssize_t)numbers[START];
    exits->left = 1.0 - meedge_lay_out(conv_ms, branch_ms, total, numbers, exits->reach, exits->cost);
    exits->confidence = confidence + start;
    exits->count = total - start;
    exits->best = numbers[BEST];
}

static int read_exits(const Py_buffer *views, const double *numbers, Exits *exits)
{
    const Py_ssize_t total = views[CONV].shape[0];
    if (!within(&views[CONV], LONGEST_MS, "conv_ms") || !within(&views[BRANCH], LONGEST_MS, "branch_ms") ||
        !within(&views[CONFIDENCE], 1.0, "confidence")) {
        return 0;
    }
    if (numbers[START] > (double)total || numbers[START] != floor(numbers[START])) {
        PyErr_SetString(PyExc_ValueError, "start: out of range");
        return 0;
    }
    lay_out(views[CONV].buf, views[BRANCH].buf, views[CONFIDENCE].buf, total, numbers, exits);
    return 1;
}

/* What is done with a plan; `scratch` has room for three columns of numbers. */
typedef double (*Work)(const Exits *exits, void *scratch, unsigned char *execute, Py_ssize_t outputs);

static double work_plan(const Exits *exits, void *scratch, unsigned char *execute, Py_ssize_t outputs)
{
    (void)outputs;
    double *columns = scratch;
    const Table table = {columns, columns + exits->count, (int64_t *)(columns + 2 * exits->count)};
    return plan(exits, &table, execute);
}

void meedge_plan_ahead(const double *conv_ms, const double *branch_ms, const double *confidence, Py_ssize_t total,
                       const double *numbers, double *space, unsigned char *execute)
{
    Exits exits = {.reach = space, .cost = space + total};
    lay_out(conv_ms, branch_ms, confidence, total, numbers, &exits);
    work_plan(&exits, space + 2 * total, execute + (total - exits.count), 0);
}

static double work_value(const Exits *exits, void *scratch, unsigned char *execute, Py_ssize_t outputs)
{
    (void)scratch, (void)outputs;
    return value_of(exits, execute);
}

static double work_hybrid(const Exits *exits, void *scratch, unsigned char *execute, Py_ssize_t outputs)
{
    double value;
    Py_BEGIN_ALLOW_THREADS
    value = search_hybrid(exits, outputs, scratch, execute);
    Py_END_ALLOW_THREADS
    return value;
}

/* Reads four arrays and five numbers, works, and returns the value. */
static PyObject *with_exits(PyObject *const *args, Py_ssize_t nargs, Work work, Py_ssize_t outputs)
{
    static const Wanted wanted[] = {
        {"conv_ms", "d", 8, 0, 0},
        {"branch_ms", "d", 8, 0, 0},
        {"confidence", "d", 8, 0, 0},
        {"execute", "?", 1, 0, 1},
    };
    if (nargs != VIEWS + NUMBERS) {
        return PyErr_Format(PyExc_TypeError, "%d arguments wanted, got %zd", VIEWS + NUMBERS, nargs);
    }
    double numbers[NUMBERS];
    Py_buffer views[VIEWS];
    if (!read_numbers(args + VIEWS, numbers) || meedge_borrow(args, views, wanted, VIEWS) < 0) {
        return NULL;
    }
    const Py_ssize_t total = views[CONV].shape[0];
    double *space = PyMem_RawMalloc((size_t)total * PLAN_COLUMNS * sizeof(double) + 1);
    Exits exits = {.reach = space, .cost = space + total};
    PyObject *result = NULL;
    if (space == NULL) {
        PyErr_NoMemory();
    }
    else if (read_exits(views, numbers, &exits)) {
        unsigned char *ahead = (unsigned char *)views[EXECUTE].buf + (total - exits.count);
        result = PyFloat_FromDouble(work(&exits, space + 2 * total, ahead, outputs));
    }
    PyMem_RawFree(space);
    meedge_release(views, VIEWS);
    return result;
}

const char meedge_plan_exits_doc[] =
    "plan_exits(conv_ms, branch_ms, confidence, execute, horizon_ms, start, elapsed_ms, best_confidence, replan_ms)\n"
    "--\n\nFill `execute` from `start` on, return the expectation; see meedge_ray.search.exit_plan.plan_exits.";

PyObject *meedge_plan_exits(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    return with_exits(args, nargs, work_plan, 0);
}

const char meedge_value_exits_doc[] =
    "value_exits(conv_ms, branch_ms, confidence, execute, horizon_ms, start, elapsed_ms, best_confidence, replan_ms)\n"
    "--\n\nReturn the expectation; see meedge_ray.search.exit_plan.expectation.";

PyObject *meedge_value_exits(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    return with_exits(args, nargs, work_value, 0);
}

const char meedge_hybrid_exits_doc[] =
    "hybrid_exits(outputs, conv_ms, branch_ms, confidence, execute, horizon_ms, start, elapsed_ms, best_confidence, "
    "replan_ms)\n"
    "--\n\nFill `execute` from `start` on, return the expectation; see meedge_ray.search.exit_plan.hybrid_search.";

PyObject *meedge_hybrid_exits(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    const Py_ssize_t outputs = nargs > 0 ? PyLong_AsSsize_t(args[0]) : 0;
    if (outputs == -1 && PyErr_Occurred()) {
        return NULL;
    }
    return with_exits(args + 1, nargs - 1, work_hybrid, outputs);
}
