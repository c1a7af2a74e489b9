/* Optimizers: from an averaged gradient to new parameters, a block at a time.
 * clip -> [optimizer] -> param_store. One rule per file in optimizers/. Pure.
 *
 * Scalars are computed in double once per block call, tensors in float32. A rule whose step needs
 * sums over whole tensors (trust ratios) has two passes: `update` writes the raw update over the
 * gradient and gives partial sums, the engine sums them over the tensor's blocks in block order on
 * all ranks, `apply` finishes. So a step is the same arithmetic for any number of shards. */
#ifndef PD_SERVER_CORE_OPTIMIZER_H
#define PD_SERVER_CORE_OPTIMIZER_H

#include "server/core/option.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PD_OPTIMIZER_STATE_COUNT_MAX 4
#define PD_OPTIMIZER_SUM_COUNT 2

/* Hyperparameters of one group, under the field's names. A rule reads those its options name. */
struct pd_hyper {
    double lr;
    double weight_decay;
    double momentum;
    double dampening;
    double betas[3];
    double eps;
    double alpha;                     /* rmsprop */
    double rho;                       /* adadelta */
    double lr_decay;                  /* adagrad */
    double initial_accumulator_value; /* adagrad, yogi */
    double momentum_decay;            /* nadam */
    double trust_coeff;               /* lars */
    double max_grad_norm;             /* lamb; NaN: none */
    double max_weight_norm;           /* lamb; NaN: none */
    bool nesterov;
    bool amsgrad;
    bool centered;
    bool bias_correction;
    bool grad_averaging;
    bool trust_clip;
    bool always_adapt;
    bool adam_w_mode;
    bool decoupled_decay;
    bool decoupled_weight_decay;
    bool corrected_weight_decay;
    bool decay_after_step;
    bool zero_norm_decay;
    bool no_prox;
    bool caution;
    bool eps_inside_root;
    bool eps_before_correction;
    bool lr_in_momentum;
};

/* One group's numbers for one step. */
struct pd_optimizer_step {
    const struct pd_hyper *hyper;
    double lr; /* scheduled, scaled */
    /* This optimizer step, counted from 1 (t of the papers): among those in which the tensor had a
     * gradient, and among those of its group. Which one a rule counts by, its reference decides. */
    uint64_t number;
    uint64_t group_number;
    double gradient_scale; /* clip and loss scale, multiplied into the gradient on the fly */
    double gradient_norm;  /* global L2 norm of the averaged gradient after that scale */
};

/* One block. All arrays have `count` elements and do not overlap. */
struct pd_optimizer_block {
    uint32_t count;
    float *gradient;         /* averaged, unscaled; a two-pass rule leaves its update here */
    const float *parameters; /* of the version before */
    float *parameters_next;  /* written: by update, or by apply for a two-pass rule */
    float *state[PD_OPTIMIZER_STATE_COUNT_MAX]; /* read and written; zero before the first step */
};

struct pd_optimizer {
    const char *name;
    const struct pd_option *options; /* into struct pd_hyper */
    uint32_t option_count;
    /* Whether a step's number counts the steps of the group, as timm's LAMB does, instead of those
     * in which the tensor had a gradient; the two differ only for tensors left out of some steps.
     */
    bool counts_by_group;
    /* float32 arrays of the parameters' size that this rule keeps with these hyperparameters. */
    uint32_t (*state_count)(const struct pd_hyper *hyper);
    /* First pass. `sums` (PD_OPTIMIZER_SUM_COUNT) is written by two-pass rules. */
    void (*update)(const struct pd_optimizer_step *step, struct pd_optimizer_block *block,
                   double *sums);
    /* Whether these hyperparameters need the second pass; NULL: always, if there is one. Where they
     * do not, `apply` changes nothing. */
    bool (*needs_apply)(const struct pd_hyper *hyper);
    /* Second pass, NULL for a rule of one; `sums` are over the block's whole tensor. */
    void (*apply)(const struct pd_optimizer_step *step, struct pd_optimizer_block *block,
                  const double *sums);
};

/* The rule of that name, or NULL. */
const struct pd_optimizer *pd_optimizer_find(const char *name);

/* The momentum of a rule in its hyperparameters: `momentum`, or the first of `betas`; NULL if it
 * has neither. */
double *pd_optimizer_momentum(const struct pd_optimizer *optimizer, struct pd_hyper *hyper);

/* All rules, in the order of the documentation; index from 0, NULL after the last. */
const struct pd_optimizer *pd_optimizer_at(size_t index);

#endif
