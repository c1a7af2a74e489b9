/* A simulated worker: it follows the protocol as a client does, reconnects, retries, and misbehaves
 * as its plan says. plan -> [worker] -> network, ledger, oracle.
 *
 *   OUT -> JOINING -> REGISTERING -> (FEEDING ->) FETCHING -> COMPUTING -> PUSHING -+-> LEAVING ->
 * DONE ^                                               ^                              |
 *    `-- evicted, crashed: comes back as a new one   `---- the next micro-batch ----'
 * Where a step has an estimate of the Hessian, its micro-batches come before those of the gradient.
 */
#ifndef PD_TESTS_SIMULATION_WORKER_H
#define PD_TESTS_SIMULATION_WORKER_H

#include "tests/simulation/cluster.h"
#include "tests/simulation/oracle.h"

/* What a worker does; zeros are a well-behaved one that does nothing special. */
struct sim_worker_plan {
    char name[PD_NAME_BYTES_MAX + 1];
    char host[16];
    uint64_t start_us;
    uint64_t compute_us;    /* of a micro-batch, on average */
    uint64_t last_step;     /* it leaves when this one has closed */
    uint64_t stay_steps;    /* before that, it leaves after so many, and comes back; 0: it stays */
    uint32_t leave_batches; /* it leaves with so many micro-batches of the next step pushed */
    bool hasty;             /* it leaves while its last push is still under way */
    enum pd_dtype push_dtype;
    enum pd_dtype pull_dtype;
    bool combined; /* pushes and pulls in one round trip */
    bool ahead;    /* takes parameters before their step has closed */
    bool checksum;
    uint64_t short_one_in;   /* contributions of fewer micro-batches than there might be */
    uint64_t empty_one_in;   /* micro-batches without samples */
    uint64_t poison_one_in;  /* micro-batches with a NaN or an infinity */
    uint64_t absent_one_in;  /* tensors that a micro-batch has no gradient for */
    uint64_t hessian_one_in; /* steps with an estimate of the Hessian, if the optimizer uses it */
    uint64_t repeat_one_in;  /* pushes that are sent twice */
    uint64_t crash_us;       /* it dies then; 0: never */
    uint64_t crash_after_us; /* it dies so long after its first push; 0: never */
    uint64_t hang_us;        /* it goes silent then; 0: never */
    uint64_t hang_for_us;
    uint64_t return_us; /* after it died, was evicted or left early, it comes back; 0: never */
    uint32_t slow;      /* reads that many times slower */
};

enum sim_phase {
    SIM_PHASE_OUT,
    SIM_PHASE_JOINING,
    SIM_PHASE_REGISTERING,
    SIM_PHASE_FEEDING,
    SIM_PHASE_FETCHING,
    SIM_PHASE_COMPUTING,
    SIM_PHASE_PUSHING,
    SIM_PHASE_LEAVING,
    SIM_PHASE_DONE,
};

enum sim_contact_state {
    SIM_CONTACT_CLOSED,
    SIM_CONTACT_OPENING,
    SIM_CONTACT_GREETING,
    SIM_CONTACT_READY,
};

/* What one rank is asked for in the present phase. */
enum sim_request {
    SIM_REQUEST_NONE,
    SIM_REQUEST_JOIN,
    SIM_REQUEST_REGISTER,
    SIM_REQUEST_VALUES,
    SIM_REQUEST_PUSH,
    SIM_REQUEST_PULL,
    SIM_REQUEST_LEAVE,
};

struct sim_contact {
    struct sim_worker *worker;
    uint32_t rank;
    enum sim_contact_state state;
    struct sim_link *link;
    enum sim_request request;
    bool asked;        /* on this connection */
    bool asked_before; /* on one that was lost */
    bool repeated;     /* a second copy of the push has been sent: one more answer comes */
    bool done;
    uint64_t said_us; /* when something was sent last */
    uint32_t lane;
    uint64_t element_begin;
    uint64_t element_count;
    struct pd_pulled pulled;
    bool intact;       /* what came ahead matches its checksum */
    uint8_t *received; /* element_count at up to 4 bytes */
};

struct sim_worker {
    struct sim_agenda *agenda;
    struct sim_network *network;
    struct sim_cluster *cluster;
    struct sim_ledger *ledger;
    struct sim_oracle *oracle;
    const struct sim_worker_plan *plan;
    const float *initial; /* what it would initialise the model with */
    bool *drained;        /* somebody has asked the daemon to drain */

    enum sim_phase phase;
    uint64_t incarnation; /* of the process: timers of an earlier one mean nothing */
    uint64_t wake_us;     /* silent until then */
    bool has_crashed;
    bool has_pushed;
    bool tolerant; /* takes no offence at errors: the test provokes them */
    bool draining; /* the daemon said so */
    bool joined;
    uint64_t nonce; /* of its Join; 0: none */
    uint32_t worker_id;
    uint64_t token;
    uint64_t run_id;
    uint32_t accumulation_steps;
    uint32_t lease_ms;
    struct pd_registered registered;
    bool values_needed;
    uint64_t step;
    uint64_t leave_step; /* it leaves when this one has closed */
    uint32_t micro_batch;
    bool estimating; /* the micro-batch being pushed is of an estimate of the Hessian */
    uint32_t hessian_micro_batch;
    struct sim_batch batch; /* the one being pushed */
    float *gradient;
    uint8_t *wire;
    struct sim_contact contacts[PD_RANK_COUNT_MAX];
    uint32_t contact_count;
    uint64_t progress_us; /* when something last happened to it */

    /* For the test to look at. */
    uint32_t evictions; /* times it was told that it is gone */
    uint32_t applied;   /* payloads that came ahead and counted, and those that were void */
    uint32_t voided;
    uint32_t undone;     /* pushes that had to come again */
    uint32_t duplicates; /* answers to second copies of a push */
    uint32_t refusals;   /* of any other kind */
    uint64_t steps_done;
    char last_error[PD_ERROR_BYTES_MAX];
};

void sim_worker_init(struct sim_worker *worker, struct sim_agenda *agenda,
                     struct sim_network *network, struct sim_cluster *cluster,
                     struct sim_ledger *ledger, struct sim_oracle *oracle,
                     const struct sim_worker_plan *plan, const float *initial, bool *drained);
void sim_worker_finish(struct sim_worker *worker);

/* Enter its beginning, and its misfortunes, into the agenda. */
void sim_worker_start(struct sim_worker *worker);

/* Die now. */
void sim_worker_crash(struct sim_worker *worker);
/* Do and say nothing for a while, with all connections open. */
void sim_worker_hang(struct sim_worker *worker, uint64_t duration_us);

const char *sim_phase_name(enum sim_phase phase);

/* Whether an open connection of this worker has that number; the rank's lane goes to `lane`. */
bool sim_worker_owns(const struct sim_worker *worker, const struct sim_link *link, uint32_t *lane);

#endif
