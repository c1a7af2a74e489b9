/* Ranks of a job that take steps together in one process: workers push to their rosters, and the
 * collectives that all have come to are carried out. test -> [step_job] -> step. Failures end the
 * running Check test. */
#ifndef PD_TESTS_UNIT_STEP_JOB_H
#define PD_TESTS_UNIT_STEP_JOB_H

#include "server/core/step.h"

#define RANK_COUNT_MAX 7u
#define WORKER_COUNT 2u
#define STEP_COUNT 6u
#define UNDER_WAY_MAX 16u
#define ABSENT_STEP 3u /* in which the second tensor has no gradient */

/* Rules of every kind: of one pass and of several, with 8-bit state, with estimates. */
#define STEP_JOB_RULE_COUNT 15
extern const char *const step_job_rules[STEP_JOB_RULE_COUNT];

/* Clips for every group: frozen, alone in another norm, by value, alone without limit. */
#define STEP_JOB_GROUPS                                                                            \
    "groups: [{match: fc, frozen: true}, {match: embed, clip: {norm: 0.3, norm_type: 3}}, "        \
    "{match: \"[bs]*\", clip: {value: 0.1}}, {match: wide, clip: {norm: null}}]"

struct step_rank {
    struct pd_param_store store;
    struct pd_roster *roster;
    struct pd_step_machine *step;
    uint32_t lane;
    uint32_t replica;
    /* Collectives asked for and not done, first to last. */
    const struct pd_collective *under_way[UNDER_WAY_MAX];
    uint64_t given[UNDER_WAY_MAX]; /* hashes of what it gives, which stays as it is until then */
    uint32_t under_way_count;
};

struct step_job {
    struct pd_config *config;
    struct pd_tensor_list model;
    struct pd_shard_plan *plan;
    uint32_t rank_count;
    uint32_t worker_count; /* WORKER_COUNT, but for more that are enlisted */
    struct step_rank ranks[RANK_COUNT_MAX];
    uint32_t gather_count;     /* of numbers, in the last step */
    uint32_t exchange_count;   /* of gradients */
    uint32_t early_count;      /* gathers of parameters that were asked for in UPDATE */
    uint32_t at_once;          /* the most collectives under way */
    bool ahead;                /* steps are begun before their order */
    bool forgets;              /* every second of them for nothing */
    uint32_t nan_step;         /* in which the last element is no number */
    uint64_t ahead_count;      /* elements brought on while gradients were coming in */
    uint64_t added_count;      /* gradients added up before the order */
    struct pd_order *foreseen; /* lent to the ranks until they have the step's order */
};

/* Ranks in so many lanes; in direct aggregation every rank is one. With `large`, the model is one
 * tensor of so many elements, else a few of odd shapes. */
void step_job_init_grid(struct step_job *job, const char *text, uint32_t rank_count,
                        uint32_t lane_count, uint64_t large);
void step_job_init_lanes(struct step_job *job, const char *text, uint32_t rank_count,
                         uint32_t lane_count);
void step_job_init(struct step_job *job, const char *text, uint32_t rank_count);
/* So many workers instead, before the first step. */
void step_job_enlist(struct step_job *job, uint32_t worker_count);
void step_job_finish(struct step_job *job);

/* The workers begin to push to one rank: what is not in yet may be anything. */
void step_job_announce(const struct step_job *job, struct step_rank *rank, uint32_t step,
                       bool hessian);
/* All of the pushes is in: gradients, or estimates of the Hessian. */
void step_job_end_pushes(const struct step_job *job, struct step_rank *rank, uint32_t step,
                         bool hessian);

/* A step; every second one with estimates of the Hessian, where the rule takes them. */
void step_job_step(struct step_job *job, uint32_t step);

/* The parameters after STEP_COUNT steps, of the whole model, for the caller to free; then the job
 * is over. */
float *step_job_run(struct step_job *job, uint64_t *count);
/* The same of a job of its own, every rank a lane. */
float *step_job_train(const char *text, uint32_t rank_count, uint64_t *count);

#endif
