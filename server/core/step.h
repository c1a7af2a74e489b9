/* One optimizer step on one rank: from a step order to the next version; and, of a hessian order,
 * from estimates of the Hessian to the optimizer's state.
 * contribution, orders -> [step] -> param_store. Pure: works a few blocks at a time and asks for
 * collectives; the engine feeds it turns. Owner: the loop thread.
 *
 *   IDLE -> BUFFER -> SUM -> NORMS -> UPDATE -> GATHER -> AVERAGE -> DONE
 *                             |  ^  |                                ^
 *                             |  `-TENSOR_SUMS <- more passes        |
 *                             `-> ESTIMATE: a hessian order ---------'
 *
 * With workers.staging_limit contributions may be added up before the step's order, each by a take
 * order of its own: IDLE -> BUFFER -> TAKE -> DONE. SUM goes on from there.
 *
 * A step may begin ahead of its order, while contributions still arrive: IDLE -> SUM on what an
 * order AHEAD says the step will be; blocks are taken as they are in from everybody. If the step's
 * order then says the same, SUM goes on from there, else it is forgotten. Where the rule allows it
 * (see may_fuse in step.c), SUM brings parameters and state on too, beside the old ones: they count
 * once NORMS has found the step finite. Contributions that their workers can push again are used up
 * ahead, block by block, as they are stepped or, if there are several, are in the sum. In small
 * lanes it brings on without going ahead. Where small
 * gradients of many workers come to much, SUM first adds them up ahead one by one, each when it is
 * whole, and so uses them up; blocks then wait for the order.
 *
 * With replicas SUM adds up across them, too, bucket by bucket: while one is exchanged the next is
 * summed, and then the first is combined. The new parameters of a bucket are gathered while those
 * of the next are computed; GATHER waits for the last. Several collectives may so be under way.
 * NORMS and TENSOR_SUMS have no collective on a lone rank. UPDATE runs once for every pass of the
 * rule that some hyperparameters need, with TENSOR_SUMS between two when the first gives sums. A
 * non-finite sum anywhere goes from NORMS to DONE on every rank, and leaves parameters and state
 * alone. BUFFER waits until nobody is sent the spare buffer any more: unless steps are fused, it is
 * there that sums are, until the next parameters take their place. A take that writes nothing there
 * does not wait. */
#ifndef PD_SERVER_CORE_STEP_H
#define PD_SERVER_CORE_STEP_H

#include "server/core/collective.h"
#include "server/core/config.h"
#include "server/core/fresh.h"
#include "server/core/param_store.h"
#include "server/core/roster.h"
#include "server/core/snapshot.h"

enum pd_step_state {
    PD_STEP_IDLE,
    PD_STEP_BUFFER,
    PD_STEP_TAKE,
    PD_STEP_SUM,
    PD_STEP_NORMS,
    PD_STEP_ESTIMATE,
    PD_STEP_UPDATE,
    PD_STEP_TENSOR_SUMS,
    PD_STEP_GATHER,
    PD_STEP_AVERAGE,
    PD_STEP_DONE,
};

/* What a step came to; the same on every rank. */
struct pd_step_outcome {
    bool skipped;
    bool nonfinite;       /* skipped because of the gradient */
    double gradient_norm; /* before clipping; NaN when non-finite or not computed */
    double clipped_norm;  /* after it */
    double clip_scale;    /* of groups without a norm of their own; 1 when not clipped */
};

struct pd_gradient_norms;
struct pd_step_machine;

/* `config`, `model`, `plan`, `store` and `roster` are borrowed until destroy; all that a step needs
 * is allocated here. Errors: PD_ENOMEM, PD_EMODEL (layer_decay does not suit the model). */
PD_MUST_CHECK
enum pd_status pd_step_create(struct pd_step_machine **out, const struct pd_config *config,
                              const struct pd_tensor_list *model, const struct pd_shard_plan *plan,
                              struct pd_param_store *store, struct pd_roster *roster, uint32_t rank,
                              struct pd_error *error);
void pd_step_destroy(struct pd_step_machine *machine);

/* Add what it keeps between steps: the optimizer's state, its counts and the norms. */
void pd_step_list_state(struct pd_step_machine *machine, struct pd_snapshot *snapshot);

enum pd_step_state pd_step_state(const struct pd_step_machine *machine);

/* Begin the step, hessian or take order, which is borrowed until finish. IDLE only. */
void pd_step_begin(struct pd_step_machine *machine, const struct pd_order *order);

/* The step in collection closes without using its gradients: forget those that were taken. */
void pd_step_forget_taken(struct pd_step_machine *machine);

/* How steps begin before their order. */
enum pd_step_ahead {
    PD_STEP_AHEAD_NONE,
    PD_STEP_AHEAD_BLOCKS,    /* block by block, as they come in from all workers */
    PD_STEP_AHEAD_GRADIENTS, /* worker by worker, each gradient when it is whole: only the sum */
};

/* Whether this rank's steps may begin ahead by blocks, for a lane of that many elements. */
bool pd_step_may_go_ahead(const struct pd_config *config, const struct pd_shard_plan *plan,
                          uint64_t element_count);
/* How a rank with a lane of that many elements begins a step of so many workers: GRADIENTS on all
 * ranks or on none. */
enum pd_step_ahead pd_step_ahead_kind(const struct pd_config *config,
                                      const struct pd_shard_plan *plan, uint64_t element_count,
                                      uint32_t worker_count);

/* Begin ahead what `order`, of kind AHEAD, foresees; the order is borrowed until begin or forget.
 * False, and nothing has begun, when the spare buffer is still being sent. */
PD_MUST_CHECK
bool pd_step_foresee(struct pd_step_machine *machine, const struct pd_order *order);
/* Ahead of its order: one turn over what is in; false when nothing is left that is. */
bool pd_step_work_ahead(struct pd_step_machine *machine);
/* Whether all of its contributions have begun to come in here: it advances as they do. */
bool pd_step_is_collected(const struct pd_step_machine *machine);
/* How many of the lane's elements it has added up. */
uint64_t pd_step_summed_elements(const struct pd_step_machine *machine);
/* The step will not be as foreseen: as if it had not begun. */
void pd_step_forget(struct pd_step_machine *machine);

/* Whether steps of so many workers use repeatable contributions up ahead: see contribution.h. */
bool pd_step_spends(const struct pd_step_machine *machine, uint32_t worker_count);

/* The order of the step under way, or foreseen; NULL when IDLE. */
const struct pd_order *pd_step_order(const struct pd_step_machine *machine);
/* Leading elements of the lane that the spare buffer holds of the next version. */
uint64_t pd_step_next_elements(const struct pd_step_machine *machine);
/* Where steps go all the way ahead and are written past the caches: the parameters that the last
 * turn has computed, as part of the buffer they are in; in the type in which all are answered whose
 * pushes they come from, or else float32. None of a step that is forgotten or skipped.
 * `bytes` stay until the next turn. */
struct pd_fresh pd_step_fresh(const struct pd_step_machine *machine);

/* What pd_step_advance wants next. */
enum pd_step_want {
    PD_STEP_WANTS_WORK,       /* another turn */
    PD_STEP_WANTS_COLLECTIVE, /* a turn when the next collective is done */
    PD_STEP_WANTS_BUFFER,     /* a turn when the spare buffer has no users */
    PD_STEP_WANTS_NOTHING,    /* DONE: after a step, the store serves the next version */
};

/* Do one turn of work, through as many states as fit in it. */
PD_MUST_CHECK
enum pd_step_want pd_step_advance(struct pd_step_machine *machine);

/* The next collective to carry out, after those taken before; NULL when no more is asked for yet.
 * All are asked for in the same order on all ranks that take part. Ownership: the machine's, which
 * leaves it and its buffers alone until it is done. */
const struct pd_collective *pd_step_take_collective(struct pd_step_machine *machine);
/* The first of those taken that are not done is done. */
void pd_step_collective_done(struct pd_step_machine *machine);

/* The norms of the last step that took them. */
const struct pd_gradient_norms *pd_step_norms(const struct pd_step_machine *machine);

/* What a tensor's rate is in those of its group. */
double pd_step_lr_factor(const struct pd_step_machine *machine, uint32_t tensor);

/* DONE: whether the step was skipped because of its gradient. */
bool pd_step_nonfinite(const struct pd_step_machine *machine);

/* DONE -> IDLE: what came out. */
struct pd_step_outcome pd_step_finish(struct pd_step_machine *machine);

/* Where the first non-finite element of the contributions summed here is: fills `worker_id` and a
 * line such as "tensor 'fc.weight', element 12". False when all are finite: the sum overflowed. */
PD_MUST_CHECK
bool pd_step_find_nonfinite(const struct pd_step_machine *machine, const struct pd_order *order,
                            uint32_t *worker_id, char *text, size_t text_bytes);

#endif
