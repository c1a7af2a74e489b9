/* What a rank's rule keeps between steps: arrays of the size of the tensors, for the part of the
 * model that is the rank's shard, and whole vectors of the tensors the shard has a part of.
 * step -> [optimizer_state] -> optimizer. Pure. Owner: the loop thread. */
#ifndef PD_SERVER_CORE_OPTIMIZER_STATE_H
#define PD_SERVER_CORE_OPTIMIZER_STATE_H

#include "common/shard_plan.h"
#include "common/tensor_set.h"
#include "server/core/config.h"
#include "server/core/quantize.h"
#include "server/core/snapshot.h"

/* The state of one tensor on this rank. */
struct pd_tensor_state {
    const struct pd_optimizer *optimizer;
    const struct pd_hyper *hyper;
    const struct pd_tensor *tensor;
    uint64_t begin; /* first element of the tensor that is in the shard */
    uint64_t count; /* elements of the tensor that are in the shard */
    bool streamed;  /* a step writes more than what the caches keep for the next one */
    uint32_t array_count;
    float *arrays[PD_OPTIMIZER_STATE_COUNT_MAX]; /* `count` each; NULL with 8 bits */
    float *next[PD_OPTIMIZER_STATE_COUNT_MAX];   /* kept twice: where a step puts its arrays */
    /* With 8 bits, in runs from the tensor's first element: `count` codes each, and a magnitude for
     * each run. */
    uint8_t *codes[PD_OPTIMIZER_STATE_COUNT_MAX];
    float *magnitudes[PD_OPTIMIZER_STATE_COUNT_MAX];
    const struct pd_quantize_map *maps[PD_OPTIMIZER_STATE_COUNT_MAX];
    float *vectors; /* the rule's vector_count; NULL: none */
};

struct pd_optimizer_state {
    uint32_t tensor_begin; /* the shard's first tensor */
    uint32_t tensor_end;   /* one beyond its last */
    struct pd_tensor_state *tensors;
    bool twice;                     /* a step leaves the arrays alone until it is committed */
    struct pd_quantize_map maps[2]; /* of positive numbers, of both signs */
};

/* Allocate for the blocks of `shard`, zeroed; it stays where it is until finish. `tensor_groups`
 * gives the group of every tensor; those of frozen groups have no state. `twice` keeps the arrays
 * twice, for rules that allow it.
 * Errors: PD_ENOMEM; nothing to finish then. */
PD_MUST_CHECK
enum pd_status pd_optimizer_state_init(struct pd_optimizer_state *state,
                                       const struct pd_config *config,
                                       const struct pd_tensor_list *model,
                                       const struct pd_shard_plan *plan,
                                       const struct pd_range *shard, const uint32_t *tensor_groups,
                                       bool twice, struct pd_error *error);
void pd_optimizer_state_finish(struct pd_optimizer_state *state);

/* Add all of it to what a snapshot keeps. */
void pd_optimizer_state_list(const struct pd_optimizer_state *state, struct pd_snapshot *snapshot);

/* The state of a tensor the shard has a part of. */
struct pd_tensor_state *pd_optimizer_state_of(const struct pd_optimizer_state *state,
                                              uint32_t tensor_index);

/* Whether a rule's step can be taken back until it is committed when its arrays are kept twice: it
 * is one pass over arrays in 32 bits that steps beside, in every group. */
bool pd_optimizer_state_allows_twice(const struct pd_config *config);

/* Kept twice: the step that has run over all blocks counts, but for the tensors in `absent`, which
 * it left out. */
void pd_optimizer_state_commit(struct pd_optimizer_state *state,
                               const struct pd_tensor_set *absent);

/* Begin a pass over a tensor with the sums of the pass before (NULL: none), then run it over each
 * of its blocks, whose `tensor` and state are filled in here. A pass that the tensor's
 * hyperparameters do not need changes nothing. */
void pd_optimizer_state_begin(struct pd_tensor_state *state, uint32_t pass,
                              const struct pd_optimizer_step *step, const double *sums);
void pd_optimizer_state_run(struct pd_tensor_state *state, uint32_t pass,
                            const struct pd_optimizer_step *step, struct pd_optimizer_block *block);

/* Whether that run gives the sums of squares of the gradient, for a block that wants them. */
bool pd_optimizer_state_gives_squares(const struct pd_tensor_state *state);

/* Whether a rule's run writes the blocks of this shard past the caches, and gives a fresh copy of
 * the parameters, for a block that wants one. */
bool pd_optimizer_state_is_streamed(const struct pd_optimizer_state *state);

/* Multiply the momentum buffers of `count` elements from `begin` of the tensor on. */
void pd_optimizer_state_scale_momentum(struct pd_tensor_state *state, uint64_t begin,
                                       uint32_t count, double factor);

/* Take a block of an estimate of the Hessian, in `gradient`, into the state of a rule that has a
 * use for it. */
void pd_optimizer_state_estimate(struct pd_tensor_state *state, struct pd_optimizer_block *block);

#endif
