/* Carrying large requests over several connections at once, a thread for each of the first ones.
 * training -> [parallel] -> exchange. One thread can not copy what two sockets carry. Shell. */
#ifndef PD_CLIENT_PARALLEL_H
#define PD_CLIENT_PARALLEL_H

#include "client/exchange.h"

/* How many threads are of use: one for each lane with much to carry, as far as there are cores for
 * them; each of `sharer_count` who share the cores has its part. */
uint32_t pd_parallel_thread_count(uint32_t lane_count, uint32_t core_count, uint32_t sharer_count);

/* As pd_exchange_run: small requests, and those of a call with a gate, in the caller's thread.
 * `host_workers` workers share this host's cores; 0: nobody knows.
 * Errors: the first connection's that failed by itself. */
PD_MUST_CHECK
enum pd_status pd_parallel_run(struct pd_exchange *exchange, const struct pd_call *call,
                               uint32_t host_workers, struct pd_error *error);

#endif
