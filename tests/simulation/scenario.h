/* Help for scenarios: a calm cluster, stopped at a moment of the test's choice, and questions to
 * the ledger. test -> [scenario] -> simulation. */
#ifndef PD_TESTS_SIMULATION_SCENARIO_H
#define PD_TESTS_SIMULATION_SCENARIO_H

#include "tests/simulation/simulation.h"

/* A plan and its run. */
struct scenario {
    struct sim_plan plan;
    struct sim_simulation simulation;
};

/* A calm plan, to be changed before scenario_start. */
struct scenario *scenario_create(uint64_t seed, uint32_t rank_count, uint32_t worker_count,
                                 uint64_t steps, const char *config);
void scenario_start(struct scenario *scenario);
/* Run to the end, check and free. */
void scenario_finish(struct scenario *scenario);
/* Check the memory and free, without an end. */
void scenario_destroy(struct scenario *scenario);

/* Run until the worker is in that phase at that step. */
void scenario_run_to(struct scenario *scenario, uint32_t worker, enum sim_phase phase,
                     uint64_t step);
/* Run until so many steps have closed. */
void scenario_run_to_step(struct scenario *scenario, uint64_t step);
void scenario_run_for(struct scenario *scenario, uint64_t duration_us);

/* Steps that the workers of that name had a part in; and those to which they gave an estimate of
 * the Hessian that counted. */
uint32_t scenario_counted(const struct scenario *scenario, const char *name);
uint32_t scenario_estimates(const struct scenario *scenario, const char *name);
/* Steps closed so far. */
uint64_t scenario_steps(const struct scenario *scenario);

/* Ask rank 0 something and run until the answer is there: its JSON, or what the error says. */
const char *scenario_ask(struct scenario *scenario, const char *command, const char *target,
                         const double *value);

/* A peer without manners: says what the test tells it to, and keeps what comes last. */
struct scenario_peer {
    struct sim_simulation *simulation;
    struct sim_link *link;
    bool opened;
    bool closed;
    bool stalls; /* never says where a payload goes */
    uint32_t answer_count;
    enum pd_message_kind kind; /* of the last answer */
    enum pd_status status;     /* of the last Error */
    char text[PD_ERROR_BYTES_MAX];
    struct pd_joined joined;
    struct pd_welcome welcome;
    uint8_t *payload;
};

/* Connected to a rank; welcomed when `greets`. */
struct scenario_peer *scenario_peer_create(struct scenario *scenario, uint32_t rank, bool greets);
void scenario_peer_destroy(struct scenario_peer *peer);
/* Say something and run until an answer is there or the connection is closed. */
void scenario_peer_ask(struct scenario *scenario, struct scenario_peer *peer,
                       const struct pd_message *message, const void *payload,
                       uint64_t payload_bytes);

#endif
