/* What the test itself knows of every gradient: what was pushed, what arrived whole on which lane,
 * what was acknowledged, and what counted. worker, cluster -> [ledger] -> oracle. */
#ifndef PD_TESTS_SIMULATION_LEDGER_H
#define PD_TESTS_SIMULATION_LEDGER_H

#include "common/message.h"
#include "common/shard_plan.h"
#include "tests/simulation/agenda.h"

#define SIM_BATCH_COUNT_MAX 8u

enum sim_poison {
    SIM_POISON_NONE,
    SIM_POISON_NAN,
    SIM_POISON_INFINITY,
};

/* One micro-batch. */
struct sim_batch {
    uint64_t samples;
    enum pd_dtype dtype;
    bool last;
    enum sim_poison poison;
    uint64_t absent;       /* bit per tensor that it has no gradient for */
    uint64_t stored_lanes; /* bit per lane that it arrived on, whole */
    uint64_t acked_lanes;  /* bit per lane whose acknowledgement has come back */
    uint64_t undone_lanes; /* that have taken it back */
};

/* One worker's gradient for one step, or the estimate of the Hessian it gives with it. */
struct sim_contribution {
    uint32_t worker_id;
    uint64_t step;
    bool hessian;
    uint32_t batch_count;
    struct sim_batch batches[SIM_BATCH_COUNT_MAX];
    uint64_t stored_us; /* when a batch arrived last */
    bool counted;
    bool taken; /* added up before its step closed */
};

/* One worker, as the orders tell of it. */
struct sim_member {
    uint32_t id;
    char name[PD_NAME_BYTES_MAX + 1];
    uint32_t replica;
    bool left;              /* it has said that it leaves */
    uint64_t left_step;     /* all that it pushed for the steps before was acknowledged */
    bool left_ordered;      /* the ranks have been told */
    bool departed;          /* it was struck off */
    uint64_t departed_step; /* what it gave for it counts no more, unless it is taken */
};

struct sim_ledger {
    struct sim_agenda *agenda;
    const struct pd_tensor_list *model;
    uint64_t data_seed; /* of all gradients */
    uint64_t needed_lanes;
    uint64_t report_us_max; /* what rank 0 may not know yet is younger */
    struct sim_contribution *contributions;
    size_t contribution_count;
    size_t contribution_capacity;
    struct sim_member *members;
    size_t member_count;
    size_t member_capacity;
    uint64_t steps_closed;
    uint64_t drained_version; /* the newest ordered when workers were told of a drain; UINT64_MAX:
                                 they were not */
    uint64_t counted;
    uint64_t evicted;
    uint32_t taken; /* contributions, in all steps */
};

void sim_ledger_init(struct sim_ledger *ledger, struct sim_agenda *agenda,
                     const struct pd_tensor_list *model, uint64_t data_seed);
void sim_ledger_finish(struct sim_ledger *ledger);

struct sim_member *sim_ledger_member(struct sim_ledger *ledger, uint32_t worker_id);
/* NULL when there is none. */
struct sim_contribution *sim_ledger_find(struct sim_ledger *ledger, uint32_t worker_id,
                                         uint64_t step, bool hessian);
/* What a step or hessian order sums of its contributor at `index`. */
struct sim_contribution *sim_ledger_summed(struct sim_ledger *ledger, const struct pd_order *order,
                                           uint32_t index);
/* The micro-batch, entered if it is new. */
struct sim_batch *sim_ledger_batch(struct sim_ledger *ledger, uint32_t worker_id, uint64_t step,
                                   bool hessian, uint32_t micro_batch);

/* A push arrived whole on a lane, at a place the engine gave: for the first time. */
void sim_ledger_stored(struct sim_ledger *ledger, uint32_t worker_id, const struct pd_push *push,
                       uint32_t lane);

/* What a lane had of a worker's only push to a step is used up for nothing. */
void sim_ledger_undone(struct sim_ledger *ledger, uint32_t worker_id, uint64_t step, uint32_t lane);

/* A worker is about to say that it leaves; all that it pushed for steps before `step` was
 * acknowledged. */
void sim_ledger_leave(struct sim_ledger *ledger, uint32_t worker_id, uint64_t step);

/* Rank 0 has issued an order. */
void sim_ledger_order(struct sim_ledger *ledger, const struct pd_order *order);

/* Whether a worker that waits for version `awaited` may be given `version`. No step closes without
 * a worker that trains, so that is the same; but the drain of a search brings its state back at
 * once, as a newer version. */
bool sim_ledger_may_give(const struct sim_ledger *ledger, uint64_t version, uint64_t awaited);

/* The run is over: what was acknowledged has counted. */
void sim_ledger_check(struct sim_ledger *ledger);

/* Whole on every lane. */
bool sim_batch_whole(const struct sim_ledger *ledger, const struct sim_batch *batch);
uint64_t sim_contribution_samples(const struct sim_contribution *contribution);
/* Of its first micro-batch that has any. */
uint64_t sim_contribution_unit(const struct sim_contribution *contribution);

/* Tensors that nobody has given anything for in what an order sums; bit per tensor. */
uint64_t sim_ledger_absent(struct sim_ledger *ledger, const struct pd_order *order);

/* A number that depends on the data's seed and on what it is for, and on nothing else. */
uint64_t sim_ledger_draw(const struct sim_ledger *ledger, const char *name, uint64_t step,
                         bool hessian, uint32_t micro_batch);

/* What a micro-batch gives, in float32, all elements of the model. */
void sim_gradient_fill(const struct sim_ledger *ledger, const char *name, uint64_t step,
                       bool hessian, uint32_t micro_batch, const struct sim_batch *batch,
                       float *out);

#endif
