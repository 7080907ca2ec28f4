/* The confidence predictor; its Python twin is in meedge_ray.search.predictor.
 *
 * Weights lie input-major: a layer adds one row of weights an input, so that a row is one vector loop. Inputs of 0 add
 * nothing: those of slots ahead, and about half of what a ReLU gives.
 */
#include "_kernels.h"
#include <string.h>

enum { LAYERS = PREDICTOR_LAYERS };

/* Adds inputs [inputs] x weight to `sums`; a row of `weight` has `width` items. */
INLINE void add_product(const float *input, Py_ssize_t inputs, const float *weight, float *restrict sums,
                        Py_ssize_t width)
{
    for (Py_ssize_t i = 0; i < inputs; i++, weight += width) {
        const float value = input[i];
        if (value == 0.0f) {
            continue;
        }
        for (Py_ssize_t j = 0; j < width; j++) {
            sums[j] += value * weight[j];
        }
    }
}

INLINE void relu(float *values, Py_ssize_t count)
{
    for (Py_ssize_t j = 0; j < count; j++) {
        values[j] = values[j] > 0.0f ? values[j] : 0.0f;
    }
}

WIDE
void meedge_predict(const float *parameters, const Py_ssize_t *widths, const float *seen, Py_ssize_t known, float *space,
                    double *out)
{
    const float *input = seen;
    Py_ssize_t inputs = known; /* what follows is 0 */
    for (int layer = 0; layer < LAYERS; layer++) {
        const Py_ssize_t rows = widths[layer], width = widths[layer + 1];
        const float *bias = parameters + rows * width;
        memcpy(space, bias, (size_t)width * sizeof(float));
        add_product(input, inputs, parameters, space, width);
        if (layer < LAYERS - 1) {
            relu(space, width);
        }
        input = space;
        inputs = width;
        space += width;
        parameters = bias + width;
    }
    for (Py_ssize_t j = 0; j < inputs; j++) {
        const float value = input[j];
        out[j] = value > 0.0f ? (value < 1.0f ? value : 1.0f) : 0.0f;
    }
}

/* -1 too where the number overflows. */
Py_ssize_t meedge_parameters_of(const Py_ssize_t *widths)
{
    Py_ssize_t total = 0;
    for (int layer = 0; layer < LAYERS; layer++) {
        const Py_ssize_t rows = widths[layer], width = widths[layer + 1];
        if (rows < 1 || width < 1 || rows >= (PY_SSIZE_T_MAX / 4 - total) / width - 1) {
            return -1;
        }
        total += (rows + 1) * width;
    }
    return total;
}

const char meedge_predict_confidences_doc[] =
    "predict_confidences(seen, out, parameters, known, hidden0, hidden1)\n"
    "--\n\nFill `out`; see meedge_ray.search.predictor.ConfidencePredictor.predict.";

PyObject *meedge_predict_confidences(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    enum { SEEN, OUT, PARAMETERS, VIEWS, NUMBERS = 3 };
    if (nargs != VIEWS + NUMBERS) {
        return PyErr_Format(PyExc_TypeError, "predict_confidences() takes %d arguments, got %zd", VIEWS + NUMBERS, nargs);
    }
    Py_ssize_t numbers[NUMBERS];
    for (int i = 0; i < NUMBERS; i++) {
        numbers[i] = PyLong_AsSsize_t(args[VIEWS + i]);
        if (numbers[i] == -1 && PyErr_Occurred()) {
            return NULL;
        }
    }
    Py_buffer views[VIEWS];
    static const Wanted vectors[] = {{"seen", "f", 4, 0, 0}, {"out", "d", 8, 0, 1}};
    static const Wanted matrix[] = {{"parameters", "f", 4, 0, 0}};
    if (meedge_borrow(args, views, vectors, PARAMETERS) < 0) {
        return NULL;
    }
    if (meedge_borrow(args + PARAMETERS, views + PARAMETERS, matrix, 1) < 0) {
        meedge_release(views, PARAMETERS);
        return NULL;
    }
    const Py_ssize_t slots = views[SEEN].shape[0], known = numbers[0];
    const Py_ssize_t widths[] = {slots, numbers[1], numbers[2], slots};
    const float *seen = views[SEEN].buf;
    double *out = views[OUT].buf;
    float *space = NULL;
    if (meedge_parameters_of(widths) != views[PARAMETERS].shape[0]) {
        PyErr_SetString(PyExc_ValueError, "parameters: not as many as the widths make");
    }
    else if (known < 0 || known > slots) {
        PyErr_SetString(PyExc_ValueError, "known: not between 0 and the slots");
    }
    else if ((space = PyMem_RawMalloc((size_t)(widths[1] + widths[2] + slots) * sizeof(float))) == NULL) {
        PyErr_NoMemory();
    }
    else {
        meedge_predict(views[PARAMETERS].buf, widths, seen, known, space, out);
    }
    PyMem_RawFree(space);
    meedge_release(views, VIEWS);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_RETURN_NONE;
}
