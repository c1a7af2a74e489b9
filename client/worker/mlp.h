/* A network of one hidden layer that tells digits apart, with its gradient written out.
 * digits -> [mlp] -> paramd_step.
 *
 *   h = relu(W1 x + b1)    W1: hidden x 64, b1: hidden
 *   z = W2 h + b2          W2: 10 x hidden, b2: 10
 *   loss = mean over the batch of -log softmax(z)[label] */
#ifndef WORKER_MLP_H
#define WORKER_MLP_H

#include "client/worker/digits.h"

enum {
    MLP_HIDDEN_WEIGHT,
    MLP_HIDDEN_BIAS,
    MLP_OUTPUT_WEIGHT,
    MLP_OUTPUT_BIAS,
    MLP_TENSOR_COUNT,
};

struct mlp {
    uint32_t hidden_count;
    const char *names[MLP_TENSOR_COUNT];
    uint32_t dimension_counts[MLP_TENSOR_COUNT];
    uint64_t shapes[MLP_TENSOR_COUNT][2];
    size_t counts[MLP_TENSOR_COUNT];    /* elements */
    float *values[MLP_TENSOR_COUNT];    /* parameters, row-major */
    float *gradients[MLP_TENSOR_COUNT]; /* of the loss, filled by mlp_gradient */
    float *hidden;                      /* hidden_count: h of one image */
    float *hidden_gradient;             /* hidden_count: dloss / dh of one image */
};

/* Initial weights are drawn from `seed`, uniform with the variance of He et al. 2015.
 * Errors: 0 when out of memory; nothing to finish then. */
int mlp_init(struct mlp *mlp, uint32_t hidden_count, uint64_t seed);
void mlp_finish(struct mlp *mlp);

/* Fill `gradients` with the gradient of the mean loss over the images `indices[0..count)`, count >
 * 0; returns the loss. */
double mlp_gradient(struct mlp *mlp, const struct digits *digits, const uint32_t *indices,
                    uint32_t count);

/* How many of the images it tells right. */
uint32_t mlp_count_right(struct mlp *mlp, const struct digits *digits);

/* The next number of a sequence that `state` determines (splitmix64). */
uint64_t mlp_random(uint64_t *state);

#endif
