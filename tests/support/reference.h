/* A small model, gradients that anyone can work out, and what training on them must come to by
 * plain sums in double precision: no blocks, no shards, no messages. [reference] -> training,
 * integration tests. Pure. */
#ifndef PD_TESTS_SUPPORT_REFERENCE_H
#define PD_TESTS_SUPPORT_REFERENCE_H

#include "common/tensor.h"

/* Tensors of the model: matrices, vectors and a scalar, none a multiple of a block. */
#define REFERENCE_TENSOR_COUNT 6u
#define REFERENCE_ELEMENT_COUNT 2304u

struct reference_tensor {
    const char *name;
    uint32_t dimension_count;
    uint64_t shape[2];
    uint64_t element_count;
};
extern const struct reference_tensor reference_tensors[REFERENCE_TENSOR_COUNT];

/* The model as the protocol has it. Ownership: the caller's, for pd_tensor_list_finish. */
void reference_model_init(struct pd_tensor_list *model);

/* Initial values of all elements, flat. */
void reference_values(float *values);

/* The gradient a worker has for one micro-batch, flat, and how many samples it is the mean of. */
void reference_gradient(float *gradient, uint32_t worker, uint64_t step, uint32_t micro_batch);
uint64_t reference_samples(uint32_t worker, uint64_t step, uint32_t micro_batch);

enum reference_rule { REFERENCE_SGD, REFERENCE_ADAM, REFERENCE_ADAMW, REFERENCE_LAMB };

/* What is trained, with the meanings of the configuration. Workers are 0 to worker_count - 1. */
struct reference_training {
    enum reference_rule rule;
    double lr;
    double momentum;
    double dampening;
    bool nesterov;
    double betas[2];
    double eps;
    double weight_decay;
    double clip_norm;      /* 0: none */
    double clip_norm_type; /* infinity for the largest magnitude */
    double clip_value;     /* 0: none */
    uint64_t warmup_steps; /* linear from a tenth; 0: constant */
    /* For SGD, the learning rate of an element at a step; NULL: lr and warmup_steps say. */
    double (*lr_of)(uint64_t step, uint64_t element);
    uint32_t worker_count;
    uint32_t micro_batch_count;
    /* How many micro-batches a worker gives for a step; NULL: always micro_batch_count. */
    uint32_t (*micro_batches_of)(uint32_t worker, uint64_t step);
    uint64_t step_count;
    enum pd_dtype wire; /* of pushed gradients */
};

/* The parameters after the last step. */
void reference_train(const struct reference_training *training, double *parameters);

/* The largest difference of two results, as a share of the largest magnitude of its tensor. */
double reference_error(const float *actual, const double *expected);

#endif
