/* One run of a whole cluster in virtual time, with everything that must hold checked as it goes.
 * plan -> [simulation] -> agenda, network, cluster, worker, ledger, oracle. */
#ifndef PD_TESTS_SIMULATION_SIMULATION_H
#define PD_TESTS_SIMULATION_SIMULATION_H

#include "tests/simulation/plan.h"

/* A caller of rank 0 that asks one thing and hangs up, later if a search goes on for it. */
struct sim_caller {
    struct sim_simulation *simulation;
    const struct sim_command *command;
    struct sim_link *link;
    char *reply;
    uint64_t reply_bytes;
    bool done;
    bool closed;
    char error[PD_ERROR_BYTES_MAX];
};

struct sim_simulation {
    const struct sim_plan *plan;
    struct pd_config *config;
    struct sim_agenda agenda;
    struct sim_network network;
    struct sim_cluster cluster;
    struct sim_ledger ledger;
    struct sim_oracle oracle;
    struct sim_worker workers[SIM_WORKER_COUNT_MAX];
    float *initial[SIM_WORKER_COUNT_MAX];
    struct sim_caller callers[SIM_COMMAND_COUNT_MAX + 1];
    uint32_t caller_count;
    struct sim_command drain;
    bool drained;
    bool killed;          /* a rank has died or stopped: all others are to abort */
    uint32_t initializer; /* worker id */
    uint64_t publish_count;
    char first_abort[2 * PD_ERROR_BYTES_MAX];
    uint64_t first_abort_us;
    size_t blocks_live;
};

void sim_simulation_init(struct sim_simulation *simulation, const struct sim_plan *plan);
void sim_simulation_finish(struct sim_simulation *simulation);

/* Run until `until_us`, or until nothing is left to happen. */
void sim_simulation_run_until(struct sim_simulation *simulation, uint64_t until_us);
/* Run until every worker is done, drain, and check what must hold at the end. */
void sim_simulation_run(struct sim_simulation *simulation);

/* Ask rank 0 something now. */
struct sim_caller *sim_simulation_call(struct sim_simulation *simulation,
                                       const struct sim_command *command);

/* Init, run, finish; and no memory is lost. Returns how many steps closed. */
uint64_t sim_simulate(const struct sim_plan *plan);

#endif
