/* One rank of the daemon, as data to data: events in, actions out.
 * io, mpi -> [engine] -> io, mpi. Pure: no sockets, MPI, files, clocks or randomness in here, so a
 * whole cluster runs in one test process. Owner: the loop thread. */
#ifndef PD_SERVER_CORE_ENGINE_H
#define PD_SERVER_CORE_ENGINE_H

#include "server/core/action.h"
#include "server/core/config.h"
#include "server/core/event.h"

struct pd_engine;

/* Where the ranks are, agreed at start-up; kept by the caller as long as the engine. */
struct pd_topology {
    uint32_t rank;
    uint32_t rank_count;
    uint64_t run_id; /* random, the same on all ranks */
    uint64_t secret; /* random: proves to rank 0 that a connection comes from a rank */
    const char *addresses[PD_RANK_COUNT_MAX]; /* "host:port" at which workers reach each rank */
    const char *hosts[PD_RANK_COUNT_MAX];     /* host names, to match workers with their own */
};

/* Ownership: config and topology are borrowed until destroy.
 * Errors: PD_ECONFIG (lanes and ranks), PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_engine_create(struct pd_engine **out, const struct pd_config *config,
                                const struct pd_topology *topology, struct pd_error *error);
void pd_engine_destroy(struct pd_engine *engine);

/* Start from a model read from a file instead of a worker's registration: the same on all ranks,
 * before the first event. `values` is what pd_engine_values gave room for.
 * Errors: PD_EMODEL, PD_ELIMIT, PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_engine_load_model(struct pd_engine *engine, const struct pd_tensor_list *model,
                                    struct pd_error *error);

/* After load_model: this rank's lane of the initial values, to be filled by the caller before the
 * first event; element_begin and element_count in the flat model. */
float *pd_engine_values(struct pd_engine *engine, uint64_t *element_begin, uint64_t *element_count);

/* Take in one event and append what is to be done. */
void pd_engine_step(struct pd_engine *engine, const struct pd_event *event,
                    struct pd_actions *actions);

/* A hash of every order executed so far: equal on all ranks that have executed as many. */
uint64_t pd_engine_order_hash(const struct pd_engine *engine);
uint64_t pd_engine_orders_executed(const struct pd_engine *engine);

/* Tests and replay: the parameters this rank serves: its lane. NULL before version 0. */
const float *pd_engine_parameters(const struct pd_engine *engine, uint64_t *version,
                                  uint64_t *element_begin, uint64_t *element_count);

#endif
