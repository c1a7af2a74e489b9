/* The step machine's state and the verbs its parts share. Private to the step's parts: step
 * (moves), step_sum, step_take, step_bucket, step_collective, step_update. Pure. Owner: the loop
 * thread.
 *
 *   contributions -> step_sum -> step_bucket (replicas) -> step_update -> param_store */
#ifndef PD_SERVER_CORE_STEP_STATE_H
#define PD_SERVER_CORE_STEP_STATE_H

#include "common/assert.h"
#include "server/core/gradient_norms.h"
#include "server/core/optimizer_state.h"
#include "server/core/reduce.h"
#include "server/core/step.h"
#include "server/core/tensor_sums.h"

/* One turn: as much as stays in the second-level cache, and is over before a socket minds. */
#define PD_STEP_TURN_ELEMENTS (256u * 1024u)

/* Collectives that may be under way: when there are more buckets to gather, they wait. */
#define PD_STEP_COLLECTIVE_COUNT 8u

/* Buckets between their sum and their combination: one is exchanged while the next is summed. */
#define PD_STEP_SLOT_COUNT 2u

/* What a bucket needs meanwhile. */
struct pd_step_slot {
    float *given;      /* replica_count x piece_max: sums of this rank for the other replicas */
    float *taken;      /* replica_count x piece_max: the others' for this rank's shard */
    uint64_t exchange; /* number of its collective */
};

/* With replicas: a bucket is a piece of the shard of each. They go through SUM one after the other,
 * each summed, exchanged and combined, and are gathered as they are updated. All ranks ask for the
 * same collectives in the same order, which depends on nothing but the number of buckets.
 * Invariant: combined <= summed <= combined + PD_STEP_SLOT_COUNT. */
struct pd_step_buckets {
    uint64_t count;
    uint64_t piece_elements; /* of a shard in a bucket, up to the end of the block */
    uint64_t piece_max;      /* the most elements that a piece has */
    uint64_t summed;         /* the exchange of so many is asked for */
    uint64_t combined;
    uint64_t gathered;    /* the gather of so many is asked for */
    uint32_t sum_replica; /* whose piece of the next bucket is summed next, */
    uint64_t sum_block;   /* and from which of its blocks on */
    float *own;           /* this rank's sum of a block of its own */
    struct pd_step_slot slots[PD_STEP_SLOT_COUNT];
};

/* What has been added up, or used by a step ahead, of the step in collection before its order. */
struct pd_taken {
    double samples; /* that weigh 1 in its sum; 0: nothing is in it */
    bool nonfinite; /* the first element that is not finite: whose, and where */
    bool absent;    /* of a tensor for which its worker gave nothing, and the others may have */
    uint32_t worker_id;
    const struct pd_block *block;
    uint32_t element; /* of the block */
};

struct pd_step_machine {
    enum pd_step_state state;
    const struct pd_config *config;
    const struct pd_tensor_list *model;
    const struct pd_shard_plan *plan;
    struct pd_param_store *store;
    struct pd_roster *roster;
    uint32_t rank;
    uint32_t lane;
    uint32_t replica;
    uint32_t *tensor_groups; /* model.count */
    double *lr_factors;      /* model.count: of its group's rate */
    uint64_t *tensor_misses; /* model.count: steps applied that the tensor had no gradient in */

    const struct pd_order *order;
    /* SUM brings parameters and state on: the rule needs no sum over tensors and no norm, so a
     * block can go all the way while it is in cache. State is kept twice. */
    bool fused;
    bool ahead;       /* SUM, without an order yet */
    bool by_gradient; /* contributions are added up one after the other, whole, before blocks are
                         taken */
    uint32_t added;   /* sources that are in the sum, by_gradient */
    bool collected; /* ahead: every contributor has begun to push here, so the sources are known */
    uint64_t turn_elements; /* worked on in this turn */
    uint64_t next_block;    /* of the lane in AVERAGE, else of the shard */
    uint32_t pass;          /* of the rule, in UPDATE and TENSOR_SUMS */
    uint32_t source_count;
    struct pd_source *sources; /* PD_WORKER_COUNT_MAX: their elements those of the last block */
    struct pd_contribution **contributions; /* what the sources are of */
    uint32_t *source_workers;               /* and whose */
    float scale; /* what their weighted sum is multiplied by: the first one weighs 1 in it */
    const struct pd_contribution *lone; /* the one that is the average as it came; else NULL */

    struct pd_taken taken[2]; /* of gradients, and of estimates of the Hessian */

    struct pd_gradient_norms norms;
    struct pd_optimizer_state optimizer_state;
    struct pd_tensor_sums sums;
    float *gradient;  /* fused: the sum of a block */
    float *estimates; /* see lane_sums: lane elements, or NULL */
    /* Where steps that go ahead are written past the caches: the new parameters of this turn's
     * blocks once more, PD_STEP_TURN_ELEMENTS at most, in the type that those who are sent them
     * ask for, or else float32, and what they are; else NULL. */
    float *fresh_elements;
    enum pd_dtype fresh_dtype;
    struct pd_fresh fresh;
    double *partials; /* norms, then sums, of the shard's blocks: what this rank gives */
    double *gathered; /* those of all blocks in order; a lone rank's partials */
    struct pd_hyper group_hypers[PD_GROUP_COUNT_MAX + 1]; /* with the momenta of the order */
    struct pd_optimizer_step group_steps[PD_GROUP_COUNT_MAX + 1];
    struct pd_step_buckets buckets;
    /* Collectives are numbered as they are asked for: number n is entry n % their count. */
    struct pd_collective collectives[PD_STEP_COLLECTIVE_COUNT];
    uint64_t collectives_asked;
    uint64_t collectives_taken; /* by the engine */
    uint64_t collectives_done;
    struct pd_step_outcome outcome;
};

static inline const struct pd_block *shard_block(const struct pd_step_machine *machine,
                                                 uint64_t index)
{
    return &machine->plan->blocks[machine->store->shard.block_begin + index];
}

/* Whether what is summed are estimates of the Hessian, not gradients. */
static inline bool is_estimate(const struct pd_order *order)
{
    return order->kind == PD_ORDER_HESSIAN || (order->kind == PD_ORDER_TAKE && order->hessian);
}

/* Element of a block within the rank's lane. */
static inline uint64_t in_lane(const struct pd_step_machine *machine, const struct pd_block *block)
{
    return block->element_begin - machine->store->lane.element_begin;
}

/* Element of a block within the rank's shard. */
static inline uint64_t in_shard(const struct pd_step_machine *machine, const struct pd_block *block)
{
    return block->element_begin - machine->store->shard.element_begin;
}

/* Whether the gradient is a lone one in 16 bits: the rule reads it as it came. */
static inline bool is_narrow(const struct pd_step_machine *machine)
{
    return machine->lone != NULL && machine->sources[0].dtype != PD_DTYPE_FLOAT32;
}

/* Where what the order sums goes, by elements of the lane, unless blocks are fused: where the next
 * parameters go, as nothing else is there before they come. Estimates of the Hessian that are taken
 * may have gradients beside them that are taken, too, so with workers.staging_limit they have a
 * place of their own. */
static inline float *lane_sums(const struct pd_step_machine *machine)
{
    return is_estimate(machine->order) && machine->estimates != NULL
               ? machine->estimates
               : pd_param_store_spare(machine->store);
}

/* Where the gradient of a block of the shard is, or goes; it is not narrow. */
static inline float *block_gradient(const struct pd_step_machine *machine,
                                    const struct pd_block *block)
{
    PD_ASSERT(!is_narrow(machine));
    if (machine->lone != NULL) {
        return pd_contribution_elements(machine->lone, in_lane(machine, block));
    }
    return machine->fused && !machine->by_gradient ? machine->gradient
                                                   : lane_sums(machine) + in_lane(machine, block);
}

/* Whether the tensor has no part in this step. */
static inline bool rests(const struct pd_step_machine *machine, uint32_t tensor)
{
    return pd_gradient_norms_rests(&machine->norms, tensor, &machine->order->absent);
}

static inline struct pd_optimizer_span parts_of(const struct pd_step_machine *machine,
                                                const struct pd_range *shard)
{
    return pd_tensor_sums_parts(&machine->sums, machine->pass, shard->block_begin,
                                shard->block_count);
}

/* ---- step ---- */

/* The first element of a block that is not finite in that contribution; the number of its elements
 * when all are, or when the tensor rests in a step with those absent. */
uint32_t pd_step_find_in_block(const struct pd_step_machine *machine,
                               const struct pd_tensor_set *absent,
                               const struct pd_contribution *contribution,
                               const struct pd_block *block);

/* ---- step_sum ---- */

/* The contributor at `index` of the order if what is summed of it is here, else NULL. One that has
 * left is kept only where it has pushed something. */
struct pd_worker *pd_step_contributor(const struct pd_step_machine *machine,
                                      const struct pd_order *order, uint32_t index);
/* The contributions that are here, in the order of summation. Those without weight stay out: their
 * elements may be anything. */
void pd_step_collect(struct pd_step_machine *machine);
/* Ahead of the order the sources are known once everybody has begun to push here, too. */
bool pd_step_collect_ahead(struct pd_step_machine *machine);
/* The weighted sum of the contributions that are here, of one block of the lane. */
void pd_step_sum_block(struct pd_step_machine *machine, const struct pd_block *block, float *out);
/* With the average of block `index` of the shard in place: clip it by value, and measure it. */
void pd_step_measure_block(struct pd_step_machine *machine, uint64_t index);
/* Without replicas: blocks that SUM may take: all, or ahead of the order those that are in from
 * everybody. */
uint64_t pd_step_blocks_in(const struct pd_step_machine *machine);
/* Take blocks as far as `end`, for a turn. */
void pd_step_turn_sum(struct pd_step_machine *machine, uint64_t end);
/* By gradient: add those that are whole, as far as they follow each other in the order of
 * summation, for a turn; true while there are more. */
bool pd_step_add_gradients(struct pd_step_machine *machine);
/* Add the sources' elements of a block to what `out` holds, or put their sum there if `first`. */
void pd_step_add_sources(struct pd_step_machine *machine, const struct pd_block *block, float *out,
                         bool first, float scale);

/* ---- step_take ---- */

/* What is taken of what the order sums. */
struct pd_taken *pd_step_taken(struct pd_step_machine *machine, const struct pd_order *order);
/* Before elements of a source are given up: once they are, nobody can say any more whose were not
 * finite. `absent`: of a tensor that the worker gave nothing for, and others may have; that makes
 * way for what others gave. */
void pd_step_note_nonfinite(struct pd_step_machine *machine, uint32_t source,
                            const struct pd_block *block, bool absent);
/* Add the contribution of a take order to that, for a turn; true when it is added. */
bool pd_step_turn_take(struct pd_step_machine *machine);

/* ---- step_bucket: with replicas; without, there are no buckets ---- */

PD_MUST_CHECK
bool pd_step_allocate_buckets(struct pd_step_machine *machine);
void pd_step_free_buckets(struct pd_step_machine *machine);
/* A step begins: none is summed. */
void pd_step_begin_buckets(struct pd_step_machine *machine);
/* The blocks of bucket `bucket` that are in the shard of `replica`. */
struct pd_range pd_step_piece(const struct pd_step_machine *machine, uint32_t replica,
                              uint64_t bucket);
/* A turn of SUM; NOTHING when all buckets are combined. */
enum pd_step_want pd_step_turn_buckets(struct pd_step_machine *machine);
/* Ask for the gather of buckets whose blocks before `next_block`, or in GATHER all, are updated, as
 * far as there is room for collectives. */
void pd_step_gather_buckets(struct pd_step_machine *machine);

/* ---- step_collective ---- */

/* Whether any collective that was asked for is not done. */
bool pd_step_awaits(const struct pd_step_machine *machine);
/* Ask for one; there is room for it. */
void pd_step_ask_exchange(struct pd_step_machine *machine, uint64_t bucket);
void pd_step_ask_norms(struct pd_step_machine *machine);
void pd_step_ask_tensor_sums(struct pd_step_machine *machine);
void pd_step_ask_parameters(struct pd_step_machine *machine, uint64_t bucket);

/* ---- step_update ---- */

/* The numbers of this step for every group; without `norms`, for a rule that needs none. */
void pd_step_prepare_update(struct pd_step_machine *machine, const struct pd_gradient_norms *norms);
/* With all ranks' partials gathered: the scales, or the decision to leave the parameters alone. */
void pd_step_decide(struct pd_step_machine *machine);
/* Give the average of the estimates to the rule; a tensor nobody has one for is left alone. */
bool pd_step_turn_estimate(struct pd_step_machine *machine);
/* Whether the update that follows a block's sum gives the parts of its norms by the way. */
bool pd_step_updates_give_squares(const struct pd_step_machine *machine, uint32_t tensor);
/* Run the pass over the block `index` of the shard; a tensor without a gradient stays as it is. */
void pd_step_update_block(struct pd_step_machine *machine, uint64_t index);
/* Every rank averages what it serves, so that averages need no exchange. */
bool pd_step_turn_average(struct pd_step_machine *machine);
bool pd_step_turn_update(struct pd_step_machine *machine);
/* With the sums of the pass before in place: have the rule take them into its vectors. */
void pd_step_begin_pass(struct pd_step_machine *machine);
/* An applied step that a tensor had no part in does not count for it. */
void pd_step_count_misses(struct pd_step_machine *machine);

#endif
