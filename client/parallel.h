/* Carrying large requests over several connections at once, a thread for each of the first ones.
 * training -> [parallel] -> exchange. One thread can not copy what two sockets carry. Shell. */
#ifndef PD_CLIENT_PARALLEL_H
#define PD_CLIENT_PARALLEL_H

#include "client/exchange.h"

/* As pd_exchange_run: small requests, and those of a call with a gate, in the caller's thread.
 * Errors: the first connection's that failed by itself. */
PD_MUST_CHECK
enum pd_status pd_parallel_run(struct pd_exchange *exchange, const struct pd_call *call,
                               struct pd_error *error);

#endif
