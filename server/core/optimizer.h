/* Optimizers: from an averaged gradient to new parameters, a block at a time.
 * clip -> [optimizer] -> param_store. One rule per file in optimizers/. Pure.
 *
 * Scalars are computed in double once per block call, tensors in float32. A rule goes over the
 * blocks in one pass or several. Between two passes come sums over whole tensors (trust ratios,
 * rows and columns of squares): each block gives its part, the engine adds the parts of all ranks
 * in block order, and the next pass has the sums. So a step is the same arithmetic for any number
 * of shards. */
#ifndef PD_SERVER_CORE_OPTIMIZER_H
#define PD_SERVER_CORE_OPTIMIZER_H

#include "common/tensor.h"
#include "server/core/option.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PD_OPTIMIZER_STATE_COUNT_MAX 4
#define PD_OPTIMIZER_PASS_COUNT_MAX 4
#define PD_OPTIMIZER_SPAN_COUNT_MAX 2

/* How a rule's state is kept: the words of its option. */
enum pd_state_bits { PD_STATE_BITS_32, PD_STATE_BITS_8 };

/* Hyperparameters of one group, under the field's names. A rule reads those its options name. */
struct pd_hyper {
    double lr;
    double weight_decay;
    double momentum;
    double dampening;
    double betas[3];
    double eps;
    double alpha;                     /* rmsprop */
    double rho;                       /* adadelta, sophia_g */
    double bs;                        /* sophia_g */
    double lr_decay;                  /* adagrad */
    double initial_accumulator_value; /* adagrad, yogi */
    double momentum_decay;            /* nadam */
    double trust_coeff;               /* lars */
    double max_grad_norm;             /* lamb; NaN: none */
    double max_weight_norm;           /* lamb; NaN: none */
    double eps_pair[2];               /* adafactor: of squares and of the parameters' scale */
    double eps_scale;                 /* adafactor_timm */
    double clip_threshold;            /* adafactor and its kin; NaN: none */
    double decay_rate;                /* adafactor and its kin */
    double beta1;                     /* adafactor, adafactor_timm; NaN: none */
    double beta2_cap;                 /* adafactor_bv */
    uint64_t min_dim_size_to_factor;  /* adafactor_timm, adafactor_bv */
    int state_bits;                   /* enum pd_state_bits */
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
    bool adam; /* lamb */
    bool caution;
    bool eps_inside_root;
    bool eps_before_correction;
    bool lr_in_momentum;
    bool scale_parameter;
    bool relative_step;
    bool warmup_init;
    bool unscaled_wd;
};

/* One group's numbers for one step. */
struct pd_optimizer_step {
    const struct pd_hyper *hyper;
    double lr;         /* scheduled, scaled; NaN: the rule's own */
    double initial_lr; /* before any schedule */
    /* This optimizer step, counted from 1 (t of the papers): among those in which the tensor had a
     * gradient, and among those of its group. Which one a rule counts by, its reference decides. */
    uint64_t number;
    uint64_t group_number;
    double gradient_scale; /* clip and loss scale, multiplied into the gradient on the fly */
    double gradient_norm;  /* global L2 norm of the averaged gradient after that scale */
};

/* One block. All arrays have `count` elements, unless they say otherwise, and do not overlap, but
 * that the next parameters may go where the gradient is: element i of it is read for the last time
 * before parameter i is written. */
struct pd_optimizer_block {
    const struct pd_tensor *tensor;
    uint64_t begin; /* of its first element in the tensor */
    uint32_t count;
    float *gradient;         /* averaged, unscaled; a pass may leave something else for the next */
    const float *parameters; /* of the version before */
    float *parameters_next;  /* written by the last pass, and by no other; may be `gradient` */
    float *state[PD_OPTIMIZER_STATE_COUNT_MAX]; /* read and written; zero before the first step */
    /* Of rules that step beside: where the state goes, which may be `state`. */
    float *state_next[PD_OPTIMIZER_STATE_COUNT_MAX];
    bool streamed; /* what is written is more than the caches hold until somebody wants it */
    /* Of rules that step beside, where pd_kernel_streams(): a gradient as it was pushed, in the
     * place of `gradient`; NULL: it is there. */
    const void *pushed;
    enum pd_dtype pushed_dtype;
    /* Of rules that step beside, where pd_kernel_streams(): written are the sums of squares of the
     * gradient, element i's in number i modulo PD_REDUCE_LANE_COUNT; NULL: not wanted. */
    double *squares;
    /* Of a streamed block, where pd_kernel_streams(): written are the next parameters once more,
     * into the caches, as `fresh_dtype`; NULL: not wanted. */
    void *fresh;
    enum pd_dtype fresh_dtype;
    float *vectors; /* state of the whole tensor, vector_count elements: only `begin` writes it */
    const double *sums; /* over the whole tensor, of the pass before; NULL in the first */
    double *partial;    /* written: the block's part of this pass's sums; NULL in the last */
};

/* A run of a tensor's sums. */
struct pd_optimizer_span {
    uint64_t begin;
    uint64_t count;
};

/* One pass over the blocks. */
struct pd_optimizer_pass {
    /* Sums over a whole tensor that this pass gives to the next one; NULL: none. */
    uint64_t (*sum_count)(const struct pd_hyper *hyper, const struct pd_tensor *tensor);
    /* The runs of those sums that a block of `count` elements from `begin` has a part in, at most
     * PD_OPTIMIZER_SPAN_COUNT_MAX; `partial` holds them one after the other. Returns how many runs.
     * NULL: all sums. */
    uint32_t (*spans)(const struct pd_hyper *hyper, const struct pd_tensor *tensor, uint64_t begin,
                      uint32_t count, struct pd_optimizer_span *spans);
    /* Once per tensor, before its blocks: take the sums of the pass before into the vectors; NULL:
     * nothing. Every rank that holds a part of the tensor does it, alike. */
    void (*begin)(const struct pd_optimizer_step *step, const struct pd_tensor *tensor,
                  const double *sums, float *vectors);
    void (*run)(const struct pd_optimizer_step *step, struct pd_optimizer_block *block);
};

struct pd_optimizer {
    const char *name;
    const char *help;                /* one line: whose rule it is */
    const struct pd_option *options; /* into struct pd_hyper */
    uint32_t option_count;
    /* Whether its only pass, where it has no other, leaves the gradient and `state` as they are and
     * puts the new state into `state_next`. */
    bool beside;
    /* Whether a step's number counts the steps of the group, as timm's LAMB does, instead of those
     * in which the tensor had a gradient; the two differ only for tensors left out of some steps.
     */
    bool counts_by_group;
    /* What these hyperparameters leave unsaid or contradict, as one line; NULL when they are fine.
     * NULL: any will do. */
    const char *(*check)(const struct pd_hyper *hyper);
    /* The rate of a rule that sets its own, for one without any that is told; NULL: none does. */
    double (*own_lr)(const struct pd_hyper *hyper, uint64_t number);
    /* float32 arrays of the tensor's size that this rule keeps with these hyperparameters. */
    uint32_t (*state_count)(const struct pd_hyper *hyper, const struct pd_tensor *tensor);
    /* Bit per array: it holds numbers of both signs. For rules that offer state_bits, whose passes
     * beyond the first leave the state alone. */
    uint32_t signed_states;
    /* Bit per array: it is a momentum buffer, kept where `momentum` is not 0. */
    uint32_t momentum_states;
    /* Further float32 numbers it keeps of a tensor as a whole; NULL: none. */
    uint64_t (*vector_count)(const struct pd_hyper *hyper, const struct pd_tensor *tensor);
    /* Passes that these hyperparameters need, at least 1; NULL: all. */
    uint32_t (*pass_count)(const struct pd_hyper *hyper);
    /* Takes the averaged estimate of the Hessian that comes with some steps, in the place of the
     * block's gradient, into the state, before the passes of that step; NULL: the rule uses none.
     */
    void (*estimate)(const struct pd_hyper *hyper, struct pd_optimizer_block *block);
    struct pd_optimizer_pass passes[PD_OPTIMIZER_PASS_COUNT_MAX]; /* those without `run` are none */
};

/* The rate to show for `lr` in optimizer step `number`: where it is NaN, the rule's own. */
double pd_optimizer_shown_lr(const struct pd_optimizer *optimizer, const struct pd_hyper *hyper,
                             double lr, uint64_t number);

/* Passes of a rule with these hyperparameters. */
uint32_t pd_optimizer_pass_count(const struct pd_optimizer *optimizer,
                                 const struct pd_hyper *hyper);

/* Sums that one tensor has in pass `pass`; 0 where no pass follows. */
uint64_t pd_optimizer_sum_count(const struct pd_optimizer *optimizer, const struct pd_hyper *hyper,
                                uint32_t pass, const struct pd_tensor *tensor);

/* The runs of those sums that a block has a part in; returns how many runs. */
uint32_t pd_optimizer_spans(const struct pd_optimizer *optimizer, const struct pd_hyper *hyper,
                            uint32_t pass, const struct pd_tensor *tensor, uint64_t begin,
                            uint32_t count, struct pd_optimizer_span *spans);

/* The rule of that name, or NULL. */
const struct pd_optimizer *pd_optimizer_find(const char *name);

/* The momentum of a rule in its hyperparameters: `momentum`, or the first of `betas`; NULL if it
 * has neither. */
double *pd_optimizer_momentum(const struct pd_optimizer *optimizer, struct pd_hyper *hyper);

/* All rules, in the order of the documentation; index from 0, NULL after the last. */
const struct pd_optimizer *pd_optimizer_at(size_t index);

#endif
