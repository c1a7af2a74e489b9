/* What the parameters must be: computed twice from the ledger, by one process on its own. Once in
 * double precision from the papers' formulas, which a right result is close to; once with the
 * project's kernels in the plainest order, which a right result equals to the bit whatever the
 * number of ranks. ledger, orders -> [oracle]. */
#ifndef PD_TESTS_SIMULATION_ORACLE_H
#define PD_TESTS_SIMULATION_ORACLE_H

#include "server/core/config.h"
#include "server/core/gradient_norms.h"
#include "server/core/optimizer_state.h"
#include "server/core/tensor_sums.h"
#include "tests/simulation/ledger.h"

/* The outcome of one step, for the checks at the end. */
struct sim_step {
    uint64_t samples;
    uint64_t applied; /* steps applied before it */
    double lrs[PD_GROUP_COUNT_MAX + 1];
    bool skipped;
    bool trial; /* of a search, or its restore: the rates are not the schedule's */
};

/* A rate set by an administrator: in force from that step on. NaN: the schedule's. */
struct sim_override {
    uint64_t step;
    uint32_t group;
    double lr;
};

struct sim_oracle {
    struct sim_agenda *agenda;
    struct sim_ledger *ledger;
    const struct pd_config *config;
    const struct pd_tensor_list *model;
    struct pd_shard_plan *blocks; /* for one rank */
    uint32_t replica_count;
    uint32_t *groups; /* by tensor */
    uint64_t *misses; /* by tensor: applied steps that nobody had a gradient for it in */
    uint64_t absent;  /* in the present step; bit per tensor */
    uint64_t frozen;  /* bit per tensor */
    float **versions; /* [version]: model->element_count */
    size_t version_count;
    size_t version_capacity;
    struct sim_step *steps;
    size_t step_capacity;
    uint64_t applied;
    uint64_t skipped;
    struct pd_snapshot kept; /* what a search changes */
    uint64_t kept_version;
    uint64_t kept_applied;
    struct sim_override overrides[64];
    uint32_t override_count;

    /* With the kernels. */
    struct pd_optimizer_state state;
    struct pd_tensor_sums sums;
    struct pd_gradient_norms norms;
    float *gradient;
    float *scratch; /* replica_count + 3 models */

    /* From the formulas. */
    double *exact;   /* parameters */
    double *average; /* gradient */
    double *first;   /* momentum, m */
    double *second;  /* v, h */
    double *update;
};

void sim_oracle_init(struct sim_oracle *oracle, struct sim_agenda *agenda,
                     struct sim_ledger *ledger, const struct pd_config *config,
                     const struct pd_tensor_list *model, uint32_t replica_count);
void sim_oracle_finish(struct sim_oracle *oracle);

/* Whether a tensor has no part in the present step. */
bool sim_oracle_rests(const struct sim_oracle *oracle, uint32_t tensor);

/* Version 0. */
void sim_oracle_begin(struct sim_oracle *oracle, const float *values);

/* Take the estimates of a hessian order into the state; the ledger has taken the order in. */
void sim_oracle_estimate(struct sim_oracle *oracle, const struct pd_order *order);
/* Compute the version that a step order makes; the ledger has taken the order in. */
void sim_oracle_step(struct sim_oracle *oracle, const struct pd_order *order);

/* A search begins at the newest version; the next one has its parameters, and goes on from there.
 */
void sim_oracle_keep(struct sim_oracle *oracle);
void sim_oracle_restore(struct sim_oracle *oracle, const struct pd_order *order);

/* Elements [begin, begin + count) of that version are these, to the bit, in that type. */
void sim_oracle_check(const struct sim_oracle *oracle, uint64_t version, uint64_t begin,
                      uint64_t count, enum pd_dtype dtype, const void *values, const char *where);

/* The run is over: every order carried the rates that schedule, batch and administrator say. */
void sim_oracle_check_rates(const struct sim_oracle *oracle);

#endif
