/* One worker's gradient for one step, or the estimate of the Hessian it brings with it, as one rank
 * of its home holds it.
 * session -> [contribution] -> step. Pure. Owner: the loop thread.
 *
 *        begin            finish_payload (last, first micro-batch)
 *   IDLE ------> RECEIVING ---------------------------------------> HELD
 *    ^  ^ drop_payload |  \ finish_payload                           | release, take_back
 *    |  `--------------'   `-> FOLDING --fold, last--> HELD          v
 *    `----------------------------'  fold, not last                 IDLE
 *
 * One that is repeatable need not be kept: what a step ahead of its order has used of it is spent,
 * and if that step is void the worker has to push again.
 *
 * A micro-batch counts once its payload is whole: it is then added to the sum of the contribution
 * (or, if it is the only one, held as it came). Pushes are expected in order; `next_step` and
 * `next_micro_batch` say which, and all before it have been accepted. */
#ifndef PD_SERVER_CORE_CONTRIBUTION_H
#define PD_SERVER_CORE_CONTRIBUTION_H

#include "common/message.h"
#include "server/core/loss_scale.h"
#include "server/core/reduce.h"
#include "server/core/staging.h"

enum pd_contribution_state {
    PD_CONTRIBUTION_IDLE,
    PD_CONTRIBUTION_RECEIVING,
    PD_CONTRIBUTION_FOLDING,
    PD_CONTRIBUTION_HELD,
};

/* Of what is not used up yet; see pd_contribution_place. */
#define PD_CONTRIBUTION_RUN_COUNT_MAX 4u

/* Elements from `begin` on lie from element `offset` of the payload's buffer on. */
struct pd_contribution_run {
    uint64_t begin;
    uint64_t offset;
};

/* Embedded in the roster's entry. Invariants: unless IDLE, or without a place, or all spent, it has
 * its buffers; `sum` is one of them when accumulation_steps > 1. spent <= placed; runs have rising
 * begins, and offsets no larger. */
struct pd_contribution {
    enum pd_contribution_state state;
    uint64_t element_count; /* of the lane */
    void *payload; /* lent by staging; element_count at up to 4 bytes: the micro-batch as it came */
    float *sum;    /* lent likewise; element_count: micro-batches unscaled and weighted by samples /
                      unit_samples */
    bool started;  /* a push has been accepted: next_step means something */
    uint64_t next_step;
    uint32_t next_micro_batch;
    struct pd_push push;   /* header of the payload received, folded or held */
    uint64_t unit_samples; /* samples of the first micro-batch that has any: weight 1 in `sum` */
    bool in_sum;           /* the contribution is in `sum`; else the payload is all of it */
    bool taken;            /* it has been added up before its step closes */
    uint64_t received;     /* RECEIVING: bytes of the payload that are in */
    uint64_t placed;       /* leading elements of the payload that have a place */
    bool repeatable;       /* its worker has the gradient until the step is closed */
    uint64_t spent;        /* leading elements that are used up: their place is free */
    uint32_t run_count;
    struct pd_contribution_run runs[PD_CONTRIBUTION_RUN_COUNT_MAX];
    uint64_t folded; /* elements folded so far */
};

/* Borrow its buffers, unless it has them. Errors: PD_ENOMEM; it has none then. */
PD_MUST_CHECK
enum pd_status pd_contribution_equip(struct pd_contribution *contribution,
                                     struct pd_staging *staging, struct pd_error *error);
/* Give its buffers back, and what is in them up. */
void pd_contribution_strip(struct pd_contribution *contribution, struct pd_staging *staging);

/* What a rank does with a push, by its header alone. */
enum pd_push_verdict {
    PD_PUSH_ACCEPT,    /* receive the payload: pd_contribution_begin */
    PD_PUSH_DUPLICATE, /* accepted before: answer as then, drop the payload */
    PD_PUSH_WAIT,      /* in order, but the micro-batch before is still being added */
    PD_PUSH_REFUSE,    /* see the error; drop the payload */
};

/* Judge a push for the step in collection, which is `version`.
 * Errors: with REFUSE, PD_ESTEP or PD_EINVALID say what was expected. */
PD_MUST_CHECK
enum pd_push_verdict pd_contribution_judge(const struct pd_contribution *contribution,
                                           const struct pd_push *push, uint64_t version,
                                           uint64_t accumulation_steps, struct pd_error *error);

/* Take an accepted push. Nothing of it has a place yet: for that it has to be equipped. */
void pd_contribution_begin(struct pd_contribution *contribution, const struct pd_push *push,
                           bool repeatable);
/* Where the payload's next `element_count` elements go, in one piece: where elements were that are
 * spent, so that what comes stays in cache, or else behind all others. */
void *pd_contribution_place(struct pd_contribution *contribution, uint64_t element_count);
/* Whether all its places are full, and more of the payload comes. */
bool pd_contribution_wants_place(const struct pd_contribution *contribution);
/* The elements before `element_end` of a repeatable one are used up. */
void pd_contribution_spend(struct pd_contribution *contribution, uint64_t element_end);
/* Whether some of it is used up, so that it is no use unless the step that has done so closes. */
bool pd_contribution_is_spent(const struct pd_contribution *contribution);
/* Of one that is HELD: as if its push had never come. */
void pd_contribution_take_back(struct pd_contribution *contribution);
/* So many bytes of the payload are in. */
void pd_contribution_receive(struct pd_contribution *contribution, uint64_t byte_count);
/* Whether it is, or will be when its payload is whole, a contribution to that step in one
 * micro-batch.
 */
bool pd_contribution_is_single(const struct pd_contribution *contribution, uint64_t step);
/* Leading elements that are in, of a single one. */
uint64_t pd_contribution_elements_in(const struct pd_contribution *contribution);
/* The payload will not become whole: as if it had never begun. */
void pd_contribution_drop_payload(struct pd_contribution *contribution);
/* The payload is whole: the push is accepted. */
void pd_contribution_finish_payload(struct pd_contribution *contribution);

/* Whether any push for that step, which is the one in collection, has been accepted; and whether
 * the last one has. */
bool pd_contribution_has_pushes(const struct pd_contribution *contribution, uint64_t step);
bool pd_contribution_is_complete(const struct pd_contribution *contribution, uint64_t step);

/* While FOLDING: add up to `element_count` more elements; true when the fold is complete. */
PD_MUST_CHECK
bool pd_contribution_fold(struct pd_contribution *contribution, uint64_t element_count);

/* Where the elements of this contribution from `begin` on are, which are not spent, as far as the
 * next that was placed. */
void *pd_contribution_elements(const struct pd_contribution *contribution, uint64_t begin);
/* As a source for a sum, of elements that are yet to be set; `weight` is of one unit of samples. */
struct pd_source pd_contribution_source(const struct pd_contribution *contribution, double weight);

/* It has been added up, or its step is closed without it: it is ready for another, once equipped.
 */
void pd_contribution_release(struct pd_contribution *contribution, struct pd_staging *staging);

#endif
