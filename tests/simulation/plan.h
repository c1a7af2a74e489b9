/* What one run is like: the cluster, the model, the configuration, the workers and all that goes
 * wrong. seed -> [plan] -> simulation. */
#ifndef PD_TESTS_SIMULATION_PLAN_H
#define PD_TESTS_SIMULATION_PLAN_H

#include "tests/simulation/worker.h"

#define SIM_WORKER_COUNT_MAX 8u
#define SIM_COMMAND_COUNT_MAX 16u

/* Something an administrator asks. */
struct sim_command {
    uint64_t time_us;
    char command[16];
    bool has_value;
    double value;
    char target[32];
    uint64_t steps;    /* of lr-find */
    uint64_t after_us; /* lr-find: the administrator hangs up so long after the answer */
};

struct sim_plan {
    uint64_t seed;      /* of what happens when */
    uint64_t data_seed; /* of gradients, samples and initial values */
    uint32_t rank_count;
    char config[4096]; /* YAML */
    struct pd_tensor_list model;
    uint32_t worker_count;
    struct sim_worker_plan workers[SIM_WORKER_COUNT_MAX];
    uint32_t command_count;
    struct sim_command commands[SIM_COMMAND_COUNT_MAX];
    uint64_t delay_us_max;
    uint64_t straggle_one_in;
    uint64_t cut_one_in;
    uint64_t damage_one_in;
    uint64_t notice_us_max;
    uint64_t work_us_max;
    uint64_t kill_us; /* a rank dies then; 0: none */
    uint32_t kill_rank;
    uint64_t stop_us; /* a rank is stopped then; 0: none */
    uint32_t stop_rank;
    uint64_t stop_for_us;
    bool drained_early;   /* an administrator ends the job while workers are at work */
    uint64_t time_us_max; /* the run must be over by then */
};

/* Everything from one seed. */
void sim_plan_init(struct sim_plan *plan, uint64_t seed);
/* A cluster of `rank_count` with `worker_count` well-behaved workers that leave after `steps`
 * steps, and a model of odd shapes: for the scenarios to change. `config` is added to the defaults.
 */
void sim_plan_init_calm(struct sim_plan *plan, uint64_t seed, uint32_t rank_count,
                        uint32_t worker_count, uint64_t steps, const char *config);
void sim_plan_finish(struct sim_plan *plan);

/* What the contribution of a worker takes of a rank, as the configuration is. */
uint64_t sim_plan_place_bytes(const struct sim_plan *plan);

void sim_plan_add_tensor(struct sim_plan *plan, const char *name, uint32_t dimension_count,
                         const uint64_t *shape);

#endif
