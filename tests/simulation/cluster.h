/* The ranks of a job: their engines, fed from the network and the clock, and the collectives
 * between them. network, agenda -> [cluster] -> engine -> [cluster] -> network. */
#ifndef PD_TESTS_SIMULATION_CLUSTER_H
#define PD_TESTS_SIMULATION_CLUSTER_H

#include "server/core/engine.h"
#include "tests/simulation/network.h"

#define SIM_CONNECTION_COUNT_MAX 1024u
#define SIM_COLLECTIVE_COUNT_MAX 16u

enum sim_rank_state {
    SIM_RANK_RUNNING,
    SIM_RANK_EXITED,
    SIM_RANK_ABORTED,
    SIM_RANK_KILLED,
};

struct sim_cluster;

/* A collective that a rank has asked for. */
struct sim_collective {
    const struct pd_collective *collective;
    uint64_t sent_hash; /* of what it gives: the engine must not touch it */
};

struct sim_rank {
    struct sim_cluster *cluster;
    uint32_t rank;
    enum sim_rank_state state;
    struct pd_topology topology;
    struct pd_engine *engine;
    struct pd_actions actions;
    uint64_t clock_ms;                                /* what its clock showed at the beginning */
    uint64_t wake_us;                                 /* stopped until then */
    uint64_t slow;                                    /* its work takes that many times longer */
    struct sim_link *links[SIM_CONNECTION_COUNT_MAX]; /* by the engine's connection id */
    int sides[SIM_CONNECTION_COUNT_MAX];
    struct pd_push pushes[SIM_CONNECTION_COUNT_MAX]; /* whose payload is on its way */
    bool pushing[SIM_CONNECTION_COUNT_MAX];
    uint32_t free_ids[SIM_CONNECTION_COUNT_MAX];
    uint32_t free_count;
    bool work_asked;
    bool ready;
    /* By slot, as it was before the event that is being taken in: the worker whose push is whole,
     * and used up in part; else UINT32_MAX. */
    uint32_t spent[PD_WORKER_COUNT_MAX];
    uint32_t spent_end;
    uint64_t spent_step; /* that they are for */
    /* Collectives asked for, number n at n modulo their count: data is moved one after the other,
     * and then the rank hears of each. */
    struct sim_collective collectives[SIM_COLLECTIVE_COUNT_MAX];
    uint64_t collectives_asked;
    uint64_t collectives_moved; /* their data is where it belongs */
    uint64_t collectives_done;
    uint64_t collective_us;       /* since when the first that is not moved has had its turn */
    uint64_t collectives_at_once; /* the most that were asked for and not done */
    bool has_version;
    uint64_t version;
    size_t allocations; /* made by the engine, ever */
    char end_text[2 * PD_ERROR_BYTES_MAX];
    char last_log[2 * PD_ERROR_BYTES_MAX];
};

/* What the test wants to hear. NULL members are not called. */
struct sim_observer {
    void *context;
    /* An order entered the queue of a rank. */
    void (*order)(void *context, struct sim_rank *rank, const struct pd_order *order);
    /* The rank serves a version it did not serve before. */
    void (*version)(void *context, struct sim_rank *rank);
    /* A push of that worker has arrived whole, where the engine wanted it. */
    void (*stored)(void *context, struct sim_rank *rank, uint32_t worker_id,
                   const struct pd_push *push);
    /* The rank has used up what it got of that worker's push, for nothing. */
    void (*undone)(void *context, struct sim_rank *rank, uint32_t worker_id, uint64_t step);
    void (*ended)(void *context, struct sim_rank *rank);
};

struct sim_cluster {
    struct sim_agenda *agenda;
    struct sim_network *network;
    const struct pd_config *config;
    uint32_t rank_count;
    uint32_t lane_count;
    struct sim_rank *ranks;
    struct sim_observer observer;
    uint64_t work_us_max;       /* until a WORK event comes */
    uint64_t collective_us_max; /* until a rank hears that a collective is done */
    char addresses[PD_RANK_COUNT_MAX][24];
    char hosts[PD_RANK_COUNT_MAX][16];
};

/* Create the engines; nothing runs before sim_cluster_start. */
void sim_cluster_init(struct sim_cluster *cluster, struct sim_agenda *agenda,
                      struct sim_network *network, const struct pd_config *config,
                      uint32_t rank_count);
void sim_cluster_finish(struct sim_cluster *cluster);

/* Start clocks and link the ranks to rank 0. */
void sim_cluster_start(struct sim_cluster *cluster);

/* The accepting end of a connection to a rank. */
struct sim_end sim_rank_end(struct sim_rank *rank);
/* The rank whose address this is, or NULL. */
struct sim_rank *sim_rank_at(struct sim_cluster *cluster, const char *address);

void sim_rank_kill(struct sim_rank *rank);
/* As SIGSTOP does, for a while. */
void sim_rank_stop(struct sim_rank *rank, uint64_t duration_us);
/* The operator asks for the end. */
void sim_rank_drain(struct sim_rank *rank, const char *text);

/* Ranks in that state. */
uint32_t sim_cluster_count(const struct sim_cluster *cluster, enum sim_rank_state state);

/* All ranks have performed the same orders. */
void sim_cluster_check_orders(const struct sim_cluster *cluster);

#endif
