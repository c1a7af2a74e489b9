/* Reference cases: one JSON file of tests/replay/vectors.tar.xz as numbers ready to compare with.
 * vectors -> [vectors] -> unit tests, paramd-replay. The format is described in their README. */
#ifndef PD_TESTS_SUPPORT_VECTORS_H
#define PD_TESTS_SUPPORT_VECTORS_H

#include "common/limits.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vectors_tensor {
    const char *name;
    uint32_t dimension_count;
    uint64_t shape[PD_TENSOR_DIMENSION_COUNT_MAX];
    uint32_t count;   /* elements */
    uint32_t group;   /* index in the list of groups; 0 when there is none */
    float *init;      /* initial parameters; NULL if the case has none */
    double magnitude; /* largest reference magnitude over all steps */
};

struct vectors_step {
    double *lr;             /* of each group; NaN when the optimizer computes its own */
    float **gradients;      /* by tensor; NULL for one without a gradient */
    float **parameters;     /* by tensor, after the step */
    const json_t *document; /* the step as written, for keys of special cases */
};

/* An optimizer's trajectory. */
struct vectors_case {
    const char *name;
    const char *optimizer; /* the rule's name: that of the case, or of a rule for its variant */
    const char *variant;
    /* Allowed difference as a share of a tensor's magnitude: k * 2^-23, with k = 16 where the case
     * says nothing. */
    double tolerance;
    uint32_t tensor_count;
    struct vectors_tensor *tensors;
    uint32_t group_count; /* at least 1 */
    uint32_t step_count;
    struct vectors_step *steps;
    json_t *document; /* the file; everything named above is its */
};

/* Parse one file into a tree; the process ends with a message if it cannot be read.
 * Ownership: the caller's, for json_decref. */
json_t *vectors_load(const char *directory, const char *case_name);

/* Read a trajectory, as vectors_load does. */
void vectors_case_init(struct vectors_case *reference, const char *directory,
                       const char *case_name);
void vectors_case_finish(struct vectors_case *reference);

/* The largest difference in units of `allowed`, and the element it is at. A NaN is infinitely
 * wrong. */
double vectors_error(const float *actual, const float *expected, uint32_t count, double allowed,
                     uint32_t *worst);

/* The largest error of a tensor's parameters after a step, in units of the tolerance, and the
 * element it is at. */
double vectors_case_error(const struct vectors_case *reference, uint32_t step, uint32_t tensor,
                          const float *parameters, uint32_t *worst);

/* A group's hyperparameters, its own over the case's, under the product's keys: those of variants
 * that spell them otherwise, or have them built in, are translated. An index beyond the groups
 * gives those of the case alone. New, for json_decref. */
json_t *vectors_case_options(const struct vectors_case *reference, uint32_t group);

/* A number, or one of "Infinity", "-Infinity", "NaN"; null is NaN. */
double vectors_number(const json_t *value);

/* A list of numbers as new floats, `*count` of them; the process ends if it is no list. */
float *vectors_floats(const json_t *list, uint32_t *count);

#endif
