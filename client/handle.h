/* What a handle is made of; shared by the files that implement paramd.h.
 * paramd.h -> [handle] -> request, exchange.
 *
 * Threads: `lock` is held for the whole of each call, and by the keep-alive thread for one round of
 * pings; so frames never interleave. Everything in the handle belongs to the holder. */
#ifndef PD_CLIENT_HANDLE_H
#define PD_CLIENT_HANDLE_H

#include "client/exchange.h"
#include "client/include/paramd.h"

#include <pthread.h>

struct paramd_client {
    pthread_mutex_t lock;
    struct pd_exchange exchange;
    int64_t timeout_ms;
    enum pd_dtype push_dtype;
    enum pd_dtype pull_dtype;
    char leader[PD_ADDRESS_BYTES_MAX + 1];
    uint64_t run_id; /* as rank 0 said at connect; here for readers without the lock */
    uint32_t rank_count;

    struct pd_tensor_list model; /* once registered */
    bool registered;
    struct pd_registered lanes;
    struct pd_position acknowledged[PD_RANK_COUNT_MAX]; /* by lane: all pushes before it */
    struct pd_position next;                            /* of the next push */
    bool has_version;
    uint64_t version; /* pulled last */
    double lr;
    uint64_t skipped_steps;
    double loss_scale;                             /* 0 before the first pull */
    struct pd_request requests[PD_RANK_COUNT_MAX]; /* of the call, by lane */

    bool keeping_alive; /* `keeper` runs */
    bool stopping;
    pthread_t keeper;
    pthread_cond_t stop;
};

/* Copy the error for the user, and return its status. */
enum paramd_status pd_client_result(const struct pd_error *fault, struct paramd_error *error);

/* Begin a call with the handle's deadline. */
struct pd_call pd_client_call(const struct paramd_client *client, const char *name);

/* Ask rank 0 one thing. */
PD_MUST_CHECK
enum pd_status pd_client_ask_leader(struct paramd_client *client, const struct pd_call *call,
                                    struct pd_request *request, struct pd_error *error);

/* Start and stop the thread that renews the lease between calls.
 * Errors: PD_ENOMEM (no thread). */
PD_MUST_CHECK
enum pd_status pd_keeper_start(struct paramd_client *client, struct pd_error *error);
void pd_keeper_stop(struct paramd_client *client);

#endif
