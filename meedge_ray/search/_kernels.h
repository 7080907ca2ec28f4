/* What the files of the extension meedge_ray.search._kernels share. */
#ifndef MEEDGE_SEARCH_KERNELS_H
#define MEEDGE_SEARCH_KERNELS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

/* WIDE functions are compiled for wider registers too, and the processor decides; what they call is inlined. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#define INLINE static inline __attribute__((always_inline))
#else
#define WIDE
#define INLINE static inline
#endif

/* An array that a kernel takes: its name, the formats and the bytes of an item, by how many items it is longer
 * than the first array, and whether it is written to. */
typedef struct {
    const char *name, *kinds;
    Py_ssize_t item, longer;
    int writable;
} Wanted;

/* Borrows one-dimensional contiguous buffers; on failure returns -1, with an exception set and none borrowed. */
int meedge_borrow(PyObject *const *objects, Py_buffer *views, const Wanted *wanted, int number);
void meedge_release(Py_buffer *views, int number);

/* What cover.uncovered is given. */
typedef struct {
    const int64_t *order;
    const double *spent, *value, *accuracy, *low, *high;
    const uint64_t *used;
    double *loss;
    unsigned char *keep;
    Py_ssize_t count;
    double top, steepness, allowed;
} MeedgeLabels;

/* The labels still compared with, packed so that a scan reads memory in one run. `delay` is what each loses
 * per ms that it is later than the label it stands for. */
typedef struct {
    double *spent, *value, *accuracy, *low, *high, *delay;
    uint64_t *used;
    int64_t *index;
    Py_ssize_t count;
} MeedgePool;

enum { POOL_COLUMNS = 8 }; /* of 8 bytes */

/* Defined in _kernels.c: an empty pool in a space of so many columns; cover.uncovered, which fills `keep`. */
MeedgePool meedge_pool(void *space, Py_ssize_t room);
void meedge_keep_uncovered(const MeedgeLabels *labels, MeedgePool *pool);

/* Defined in _hpf.c. */
PyObject *meedge_search_tree(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
extern const char meedge_search_tree_doc[];

/* Defined in _exits.c. */
PyObject *meedge_plan_exits(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *meedge_value_exits(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *meedge_hybrid_exits(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
extern const char meedge_plan_exits_doc[], meedge_value_exits_doc[], meedge_hybrid_exits_doc[];

/* Defined in _exits.c: fills `execute` [total] from the start on, as plan_exits() does, of numbers that are in order:
 * the horizon, the start, the time elapsed, the best confidence, the time of replanning. `space` has so many columns. */
enum { PLAN_COLUMNS = 6 };
void meedge_plan_ahead(const double *conv_ms, const double *branch_ms, const double *confidence, Py_ssize_t total,
                       const double *numbers, double *space, unsigned char *execute);

/* Also there: of numbers as above, the fractions of the horizon after which each exit from the start on is reached and
 * what its branch takes; returns the fraction that has elapsed. A horizon of 0 is the sum of all times. */
double meedge_lay_out(const double *conv_ms, const double *branch_ms, Py_ssize_t total, const double *numbers,
                      double *reach, double *cost);

/* Defined in _exit_labels.c. The chance of no kill at even distances up to the horizon, and its steepness; and what
 * meedge_plan_ahead() does under that law, or 0 with an exception set. */
typedef struct {
    const double *chance;
    Py_ssize_t points;
    double steepness;
} MeedgeLaw;
int meedge_plan_ahead_by_law(const double *conv_ms, const double *branch_ms, const double *confidence,
                             Py_ssize_t total, const double *numbers, const MeedgeLaw *law, double *space,
                             unsigned char *execute);
PyObject *meedge_plan_by_law(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
extern const char meedge_plan_by_law_doc[];

/* Defined in _predictor.c. */
PyObject *meedge_predict_confidences(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
extern const char meedge_predict_confidences_doc[];

/* Defined in _predictor.c: the number of parameters of layers between such widths, -1 where there is none; and fills
 * `out` from the `known` first of `seen`. `space` is for the outputs of all layers. */
enum { PREDICTOR_LAYERS = 3 };
Py_ssize_t meedge_parameters_of(const Py_ssize_t *widths);
void meedge_predict(const float *parameters, const Py_ssize_t *widths, const float *seen, Py_ssize_t known, float *space,
                    double *out);

/* Defined in _decisions.c. */
PyObject *meedge_decider(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *meedge_decide(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
extern const char meedge_decider_doc[], meedge_decide_doc[];

#endif
