/* A reference trajectory stepped by the pure rules: norms, clipping and two passes as the engine
 * would, over blocks of any size.
 * vectors -> [trajectory] -> unit tests. */
#ifndef PD_TESTS_SUPPORT_TRAJECTORY_H
#define PD_TESTS_SUPPORT_TRAJECTORY_H

#include "server/core/optimizer.h"
#include "tests/support/vectors.h"

struct trajectory_options {
    uint32_t block_size; /* elements */
    double
        gradient_scale; /* given to the rule, whose gradients are divided by it: a power of two */
    bool in_place;      /* the next parameters go where the gradient is */
    bool cautious;      /* whatever the reference says; rules without caution are what they are */
};

/* Step `reference` from its initial parameters with the rule of its name, or end the process saying
 * which key the rule does not offer. Returns the largest error in units of the tolerance. */
double trajectory_worst_error(const struct vectors_case *reference,
                              const struct trajectory_options *options);

/* The same, and give the `*count` last parameters of all tensors; the caller's, for pd_heap_free.
 */
float *trajectory_last_parameters(const struct vectors_case *reference,
                                  const struct trajectory_options *options, size_t *count);

#endif
