/* A decision of sample-wise planning in one call; the Python twin is in meedge_ray.search.decisions. */
#include "_kernels.h"
#include <math.h>
#include <string.h>

/* What all inferences share, of `results` results on `slots` slots; the arrays follow it in memory. */
typedef struct {
    Py_ssize_t results, slots, widths[PREDICTOR_LAYERS + 1];
    double horizon_ms, replan_ms;
    double *conv_ms, *branch_ms, *slope, *bias, *offset, *accuracy;
    int64_t *slot;
    MeedgeLaw law; /* without points it is the uniform one */
    float *parameters;
} Decider;

/* What one inference has seen: how many slots are passed, which result is the answer so far, counted from 1, and the
 * confidence of every slot. */
typedef struct {
    double known, answer;
    float seen[];
} State;

#define SUREST 1e-3 /* as in the twin */

static const char capsule_name[] = "meedge_ray.search.decider";

enum { CONV, BRANCH, SLOPE, BIAS, OFFSET, ACCURACY, SLOT, VIEWS };
enum { PARAMETERS = VIEWS, CHANCE, SLOTS, HIDDEN0, HIDDEN1, HORIZON, REPLAN, STEEPNESS, ARGUMENTS };

static void forget(PyObject *capsule)
{
    PyMem_RawFree(PyCapsule_GetPointer(capsule, capsule_name));
}

/* The decider of arguments that were read, or NULL with an exception set. */
static Decider *decider_of(const Py_buffer *views, const Py_ssize_t *widths, double horizon_ms, double replan_ms,
                           double steepness)
{
    const Py_buffer *parameters = &views[PARAMETERS], *chance = &views[CHANCE];
    const Py_ssize_t results = views[CONV].shape[0];
    if (meedge_parameters_of(widths) != parameters->shape[0]) {
        PyErr_SetString(PyExc_ValueError, "parameters: not as many as the widths make");
        return NULL;
    }
    const int64_t *slot = views[SLOT].buf;
    for (Py_ssize_t result = 0; result < results; result++) {
        if (slot[result] < (result ? slot[result - 1] : 0) || slot[result] >= widths[0]) {
            PyErr_SetString(PyExc_ValueError, "slot: not ascending within the slots");
            return NULL;
        }
    }
    const size_t column = (size_t)results * 8;
    char *memory = PyMem_RawMalloc(sizeof(Decider) + VIEWS * column + (size_t)(chance->len + parameters->len));
    if (memory == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    Decider *decider = (Decider *)memory;
    memory += sizeof(Decider);
    *decider = (Decider){
        .results = results,
        .slots = widths[0],
        .horizon_ms = horizon_ms,
        .replan_ms = replan_ms,
        .conv_ms = (double *)memory,
        .branch_ms = (double *)(memory + BRANCH * column),
        .slope = (double *)(memory + SLOPE * column),
        .bias = (double *)(memory + BIAS * column),
        .offset = (double *)(memory + OFFSET * column),
        .accuracy = (double *)(memory + ACCURACY * column),
        .slot = (int64_t *)(memory + SLOT * column),
        .law = {(double *)(memory + VIEWS * column), chance->shape[0], steepness},
        .parameters = (float *)(memory + VIEWS * column + (size_t)chance->len),
    };
    memcpy(decider->widths, widths, sizeof decider->widths);
    for (int view = 0; view < VIEWS; view++) {
        memcpy(memory + (size_t)view * column, views[view].buf, column);
    }
    memcpy(memory + VIEWS * column, chance->buf, (size_t)chance->len);
    memcpy(decider->parameters, parameters->buf, (size_t)parameters->len);
    return decider;
}

const char meedge_decider_doc[] =
    "decider(conv_ms, branch_ms, slope, bias, offset, accuracy, slot, parameters, chance, slots, hidden0, hidden1, "
    "horizon_ms, replan_ms, steepness)\n"
    "--\n\nReturn what `decide` needs; see meedge_ray.search.decisions.";

PyObject *meedge_decider(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    static const Wanted wanted[] = {
        {"conv_ms", "d", 8, 0, 0}, {"branch_ms", "d", 8, 0, 0}, {"slope", "d", 8, 0, 0}, {"bias", "d", 8, 0, 0},
        {"offset", "d", 8, 0, 0},  {"accuracy", "d", 8, 0, 0},  {"slot", "lq", 8, 0, 0},
    };
    static const Wanted wanted_parameters[] = {{"parameters", "f", 4, 0, 0}}, wanted_law[] = {{"chance", "d", 8, 0, 0}};
    if (nargs != ARGUMENTS) {
        return PyErr_Format(PyExc_TypeError, "decider() takes %d arguments, got %zd", ARGUMENTS, nargs);
    }
    const Py_ssize_t slots = PyLong_AsSsize_t(args[SLOTS]);
    const Py_ssize_t widths[] = {slots, PyLong_AsSsize_t(args[HIDDEN0]), PyLong_AsSsize_t(args[HIDDEN1]), slots};
    const double horizon_ms = PyFloat_AsDouble(args[HORIZON]), replan_ms = PyFloat_AsDouble(args[REPLAN]);
    const double steepness = PyFloat_AsDouble(args[STEEPNESS]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_buffer views[VIEWS + 2];
    if (meedge_borrow(args, views, wanted, VIEWS) < 0) {
        return NULL;
    }
    if (meedge_borrow(args + PARAMETERS, views + PARAMETERS, wanted_parameters, 1) < 0) {
        meedge_release(views, VIEWS);
        return NULL;
    }
    if (meedge_borrow(args + CHANCE, views + CHANCE, wanted_law, 1) < 0) {
        meedge_release(views, VIEWS + 1);
        return NULL;
    }
    Decider *decider = decider_of(views, widths, horizon_ms, replan_ms, steepness);
    meedge_release(views, VIEWS + 2);
    PyObject *capsule = decider ? PyCapsule_New(decider, capsule_name, forget) : NULL;
    if (capsule == NULL) {
        PyMem_RawFree(decider);
    }
    return capsule;
}

/* The highest of the softmax of logits, or -1 with an exception set; 0 of what is no number. */
static double confidence_of(PyObject *given)
{
    double confidence = 0.0;
    if (PyFloat_Check(given)) {
        confidence = PyFloat_AS_DOUBLE(given);
    }
    else {
        Py_buffer view;
        if (PyObject_GetBuffer(given, &view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) < 0) {
            return -1.0;
        }
        if (view.itemsize != 4 || view.format == NULL || strcmp(view.format, "f") != 0 || view.len == 0) {
            PyErr_SetString(PyExc_ValueError, "logits: wrong type or length");
            PyBuffer_Release(&view);
            return -1.0;
        }
        const float *logits = view.buf;
        const Py_ssize_t count = view.len / 4;
        float top = logits[0];
        for (Py_ssize_t i = 1; i < count; i++) {
            top = logits[i] > top ? logits[i] : top;
        }
        double sum = 0.0;
        for (Py_ssize_t i = 0; i < count; i++) {
            sum += exp((double)logits[i] - (double)top);
        }
        confidence = 1.0 / sum;
        PyBuffer_Release(&view);
    }
    return confidence >= 0.0 && confidence <= 1.0 ? confidence : 0.0;
}

/* The chance that a result of this confidence is right. */
static double calibrated(const Decider *decider, Py_ssize_t result, double confidence)
{
    const double inside = fmin(fmax(confidence, SUREST), 1.0 - SUREST);
    return 1.0 / (1.0 + exp(-(decider->slope[result] * log(inside / (1.0 - inside)) + decider->bias[result])));
}

static double chance_of(const Decider *decider, const double *predicted, Py_ssize_t result)
{
    return fmin(fmax(predicted[decider->slot[result]] + decider->offset[result], 0.0), 1.0);
}

/* Takes a result into the state, and fills `execute` behind it; 0 with an exception set. */
static int decide(const Decider *decider, State *state, Py_ssize_t result, double confidence, double elapsed_ms,
                  unsigned char *execute)
{
    const Py_ssize_t results = decider->results, slots = decider->slots, *widths = decider->widths;
    const size_t layers = (size_t)(widths[1] + widths[2] + slots);
    double *space = PyMem_RawMalloc((size_t)((PLAN_COLUMNS + 1) * results + slots) * sizeof(double) +
                                    layers * sizeof(float));
    if (space == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    double *predicted = space + PLAN_COLUMNS * results, *ahead = predicted + slots;
    Py_ssize_t known = (Py_ssize_t)state->known;
    const Py_ssize_t slot = decider->slot[result];
    /* Slots passed over have the confidence before them (EINet IV-C). */
    for (const float last = known > 0 ? state->seen[known - 1] : 0.0f; known < slot; known++) {
        state->seen[known] = last;
    }
    state->seen[slot] = (float)(calibrated(decider, result, confidence) - decider->offset[result]);
    state->known = (double)(slot + 1);
    Py_ssize_t answer = (Py_ssize_t)state->answer - 1;
    answer = answer < 0 || decider->accuracy[result] > decider->accuracy[answer] ? result : answer;
    state->answer = (double)(answer + 1);
    meedge_predict(decider->parameters, widths, state->seen, slot + 1, (float *)(ahead + results), predicted);
    for (Py_ssize_t later = result + 1; later < results; later++) {
        ahead[later] = chance_of(decider, predicted, later);
    }
    const double best = chance_of(decider, predicted, answer);
    const double numbers[] = {decider->horizon_ms, (double)(result + 1), elapsed_ms, best, decider->replan_ms};
    int done = 1;
    if (decider->law.points > 0) {
        done = meedge_plan_ahead_by_law(decider->conv_ms, decider->branch_ms, ahead, results, numbers, &decider->law,
                                        space, execute);
    }
    else {
        meedge_plan_ahead(decider->conv_ms, decider->branch_ms, ahead, results, numbers, space, execute);
    }
    PyMem_RawFree(space);
    return done;
}

const char meedge_decide_doc[] =
    "decide(decider, state, wanted, result, logits, elapsed_ms)\n"
    "--\n\nChange `state` and `wanted`; see meedge_ray.search.decisions.Decisions.after.";

PyObject *meedge_decide(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    enum { DECIDER, STATE, EXECUTE, RESULT, LOGITS, ELAPSED, WANTED };
    static const Wanted bytes[] = {{"state", "B", 1, 0, 1}}, flags[] = {{"wanted", "B", 1, 0, 1}};
    if (nargs != WANTED) {
        return PyErr_Format(PyExc_TypeError, "decide() takes %d arguments, got %zd", WANTED, nargs);
    }
    const Decider *decider = PyCapsule_GetPointer(args[DECIDER], capsule_name);
    if (decider == NULL) {
        return NULL;
    }
    const Py_ssize_t result = PyLong_AsSsize_t(args[RESULT]);
    const double elapsed_ms = PyFloat_AsDouble(args[ELAPSED]);
    const double confidence = confidence_of(args[LOGITS]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_buffer state, execute;
    if (meedge_borrow(args + STATE, &state, bytes, 1) < 0) {
        return NULL;
    }
    if (meedge_borrow(args + EXECUTE, &execute, flags, 1) < 0) {
        meedge_release(&state, 1);
        return NULL;
    }
    int done = 0;
    if (result < 0 || result >= decider->results || execute.len != decider->results ||
        state.len != (Py_ssize_t)sizeof(State) + 4 * decider->slots ||
        !(((State *)state.buf)->known >= 0.0 && ((State *)state.buf)->known <= (double)decider->slot[result] + 1.0) ||
        !(((State *)state.buf)->answer >= 0.0 && ((State *)state.buf)->answer <= (double)result) ||
        !(elapsed_ms >= 0.0)) {
        PyErr_SetString(PyExc_ValueError, "no result that can come now");
    }
    else {
        done = decide(decider, state.buf, result, confidence, elapsed_ms, execute.buf);
    }
    meedge_release(&execute, 1);
    meedge_release(&state, 1);
    if (!done) {
        return NULL;
    }
    Py_RETURN_NONE;
}
