/* The tree search of MEEdge's HPF placement; its Python twin, which says what a node is, is
 * meedge_ray.search.tree. Here the set of the deepest node is kept with what the outputs before each member
 * come to, so that a longer set is valued from the new member on and not from the start.
 */
#define _POSIX_C_SOURCE 200809L
#include "_kernels.h"
#include <string.h>
#include <time.h>

enum {
    BETWEEN_LOOKS = 8192, /* steps of work, about 10 us, between two looks at the clock */
    BETWEEN_SIGNALS_MS = 50,
};

typedef struct {
    int64_t next; /* the priority of the next child to try */
    int64_t size, fetch;
    double value;
    Py_ssize_t at; /* where in the set its own member stands */
} Node;

/* What outputs come to that have run: branch time, the best accuracy, the expectation. */
typedef struct {
    double spent, accuracy, value;
} Sum;

typedef struct {
    /* By priority, `count` each; `least` is the smallest size from there on. */
    const int64_t *rank, *size, *fetch;
    int64_t *least;
    /* By rank, which is the order in which outputs run; times are fractions of the horizon. */
    const double *base, *cost, *accuracy;
    Py_ssize_t count, depth, held;
    int64_t size_limit, fetch_limit, most_nodes, nodes;
    double least_gain;
    int greedy; /* the first path has not ended yet */
    Node *path;
    /* The deepest node's set: ranks, and what those before each come to; sum[held] is of all. */
    int64_t *set;
    Sum *sum;
    int64_t *best;
    Py_ssize_t best_held;
    double best_value;
} Search;

typedef enum { EXHAUSTED, CUT, PAUSED } Outcome;

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static inline Sum run_after(const Search *search, Sum sum, int64_t rank)
{
    sum.spent += search->cost[rank];
    const double accuracy = search->accuracy[rank];
    if (accuracy > sum.accuracy) {
        const double left = 1.0 - (search->base[rank] + sum.spent);
        if (left > 0.0) {
            sum.value += (accuracy - sum.accuracy) * left;
        }
        sum.accuracy = accuracy;
    }
    return sum;
}

/* Where in the set output `rank` would stand: halving without a branch to guess wrong. */
static inline Py_ssize_t place_in_set(const Search *search, int64_t rank)
{
    const int64_t *from = search->set;
    for (Py_ssize_t length = search->held; length > 1;) {
        const Py_ssize_t half = length / 2;
        from += from[half - 1] < rank ? half : 0;
        length -= half;
    }
    return from - search->set + (*from < rank);
}

/* The expectation with output `rank` at place `at`. Where it does not raise the accuracy it can but delay what
 * follows, also after rounding: the value is then left as it is, which is no gain. */
static inline double value_with(const Search *search, int64_t rank, Py_ssize_t at, double value)
{
    if (search->accuracy[rank] <= search->sum[at].accuracy) {
        return value;
    }
    Sum sum = run_after(search, search->sum[at], rank);
    for (Py_ssize_t member = at; member < search->held; member++) {
        sum = run_after(search, sum, search->set[member]);
    }
    return sum.value;
}

static void sum_from(Search *search, Py_ssize_t at)
{
    for (; at < search->held; at++) {
        search->sum[at + 1] = run_after(search, search->sum[at], search->set[at]);
    }
}

static void enter(Search *search, const Node *parent, int64_t place, Py_ssize_t at, double value)
{
    memmove(&search->set[at + 1], &search->set[at], (size_t)(search->held - at) * sizeof(search->set[0]));
    search->set[at] = search->rank[place];
    search->held++;
    sum_from(search, at);
    search->path[search->depth++] = (Node){
        .next = place + 1,
        .size = parent->size + search->size[place],
        .fetch = parent->fetch + search->fetch[place],
        .value = value,
        .at = at,
    };
    search->nodes++;
    if (value > search->best_value) {
        search->best_value = value;
        search->best_held = search->held;
        memcpy(search->best, search->set, (size_t)search->held * sizeof(search->set[0]));
    }
}

static void leave(Search *search)
{
    search->greedy = 0;
    const Py_ssize_t at = search->path[--search->depth].at;
    if (search->depth > 0) {
        search->held--;
        memmove(&search->set[at], &search->set[at + 1], (size_t)(search->held - at) * sizeof(search->set[0]));
        sum_from(search, at);
    }
}

/* Enters the next child of the deepest node, or leaves the node, or stops for a look at the clock. */
static int64_t step(Search *search)
{
    Node *node = &search->path[search->depth - 1];
    const int64_t size_left = search->size_limit - node->size, fetch_left = search->fetch_limit - node->fetch;
    int64_t work = 1;
    while (node->next < search->count && search->least[node->next] <= size_left) {
        if (work >= BETWEEN_LOOKS) {
            return work;
        }
        const int64_t place = node->next++;
        work++;
        if (search->size[place] > size_left || search->fetch[place] > fetch_left) {
            continue;
        }
        const Py_ssize_t at = place_in_set(search, search->rank[place]);
        const double value = value_with(search, search->rank[place], at, node->value);
        work += search->held;
        if (value > node->value + search->least_gain) {
            enter(search, node, place, at, value);
            return work;
        }
    }
    leave(search);
    return work;
}

/* Searches until the deadline, or until `pause_ms`, when Python is asked for signals. */
static Outcome run(Search *search, double deadline_ms, double pause_ms)
{
    int64_t work = BETWEEN_LOOKS;
    while (search->depth > 0) {
        if (!search->greedy) {
            if (search->nodes >= search->most_nodes) {
                return CUT;
            }
            if (work >= BETWEEN_LOOKS) {
                const double now = now_ms();
                if (now >= deadline_ms) {
                    return CUT;
                }
                if (now >= pause_ms) {
                    return PAUSED;
                }
                work = 0;
            }
        }
        work += step(search);
    }
    return EXHAUSTED;
}

/* Starts with the final exit alone. */
static void start(Search *search, int64_t final_rank)
{
    int64_t least = INT64_MAX;
    for (Py_ssize_t place = search->count; place-- > 0;) {
        least = search->size[place] < least ? search->size[place] : least;
        search->least[place] = least;
    }
    search->set[0] = search->best[0] = final_rank;
    search->held = search->best_held = 1;
    search->sum[0] = (Sum){0.0, 0.0, 0.0};
    sum_from(search, 0);
    search->best_value = search->sum[1].value;
    search->path[0] = (Node){.value = search->best_value};
    search->depth = 1;
    search->greedy = 1;
}

static Outcome run_with_signals(Search *search, double limit_ms)
{
    Outcome outcome = PAUSED;
    const double deadline_ms = now_ms() + limit_ms;
    while (outcome == PAUSED) {
        Py_BEGIN_ALLOW_THREADS
        outcome = run(search, deadline_ms, now_ms() + BETWEEN_SIGNALS_MS);
        Py_END_ALLOW_THREADS
        if (outcome == PAUSED && PyErr_CheckSignals() < 0) {
            break;
        }
    }
    return outcome;
}

static int ranks_fit(const int64_t *rank, Py_ssize_t count, int64_t final_rank)
{
    for (Py_ssize_t place = 0; place < count; place++) {
        if (rank[place] < 0 || rank[place] > count) {
            return 0;
        }
    }
    return final_rank >= 0 && final_rank <= count;
}

const char meedge_search_tree_doc[] =
    "search_tree(rank, size, fetch, base, cost, accuracy, best, final_rank, size_limit, fetch_limit, most_nodes,\n"
    "            limit_ms, least_gain)\n--\n\n"
    "Fill `best` and return how many it holds, its value, the nodes and whether the tree is exhausted; see\n"
    "meedge_ray.search.tree.search_tree.";

PyObject *meedge_search_tree(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    static const Wanted wanted[] = {
        {"rank", "lq", 8, 0, 0}, {"size", "lq", 8, 0, 0}, {"fetch", "lq", 8, 0, 0}, {"base", "d", 8, 1, 0},
        {"cost", "d", 8, 1, 0}, {"accuracy", "d", 8, 1, 0}, {"best", "lq", 8, 1, 1},
    };
    enum { VIEWS = 7, INTEGERS = 4, REALS = 2 };
    if (nargs != VIEWS + INTEGERS + REALS) {
        return PyErr_Format(PyExc_TypeError, "search_tree() takes %d arguments, got %zd", VIEWS + INTEGERS + REALS, nargs);
    }
    int64_t integers[INTEGERS];
    double reals[REALS] = {0};
    for (int i = 0; i < INTEGERS; i++) {
        integers[i] = PyLong_AsLongLong(args[VIEWS + i]);
    }
    for (int i = 0; i < REALS && !PyErr_Occurred(); i++) {
        reals[i] = PyFloat_AsDouble(args[VIEWS + INTEGERS + i]);
    }
    Py_buffer views[VIEWS];
    if (PyErr_Occurred() || meedge_borrow(args, views, wanted, VIEWS) < 0) {
        return NULL;
    }
    const Py_ssize_t count = views[0].shape[0];
    if (!ranks_fit(views[0].buf, count, integers[0])) {
        meedge_release(views, VIEWS);
        PyErr_SetString(PyExc_ValueError, "rank: not in the order of outputs");
        return NULL;
    }
    const size_t most = (size_t)count + 2;
    Search search = {
        .rank = views[0].buf,
        .size = views[1].buf,
        .fetch = views[2].buf,
        .base = views[3].buf,
        .cost = views[4].buf,
        .accuracy = views[5].buf,
        .best = views[6].buf,
        .count = count,
        .size_limit = integers[1],
        .fetch_limit = integers[2],
        .most_nodes = integers[3],
        .least_gain = reals[1],
        .path = PyMem_RawCalloc(most, sizeof(Node)),
        .sum = PyMem_RawCalloc(most, sizeof(Sum)),
        .set = PyMem_RawCalloc(most, sizeof(int64_t)),
        .least = PyMem_RawCalloc(most, sizeof(int64_t)),
    };
    PyObject *said = NULL;
    if (search.path == NULL || search.sum == NULL || search.set == NULL || search.least == NULL) {
        PyErr_NoMemory();
    } else {
        start(&search, integers[0]);
        const Outcome outcome = run_with_signals(&search, reals[0]);
        if (outcome != PAUSED) {
            said = Py_BuildValue("ndLN", search.best_held, search.best_value, (long long)search.nodes,
                                 PyBool_FromLong(outcome == EXHAUSTED));
        }
    }
    PyMem_RawFree(search.path);
    PyMem_RawFree(search.sum);
    PyMem_RawFree(search.set);
    PyMem_RawFree(search.least);
    meedge_release(views, VIEWS);
    return said;
}
