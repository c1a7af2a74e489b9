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

/* A step that was begun: the call runs in `thread`, the gate says how much of the gradients is
 * final. What is not atomic belongs to the program's thread, but push, info and fault to `thread`
 * until it has ended. */
struct pd_overlap {
    bool begun;
    pthread_t thread;
    struct pd_gate gate;
    _Atomic bool cancelled;
    int (*ask)(void *context); /* the program's `interrupted`, to be called in its own thread */
    void *ask_context;
    struct pd_call call;
    struct pd_push push;
    struct paramd_step_info info;
    struct pd_error fault;
    pthread_mutex_t lock; /* of `has_ended` */
    pthread_cond_t ended;
    bool has_ended;
};

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
    struct pd_position next;         /* of the next push */
    struct pd_position next_hessian; /* of the next estimate of the Hessian */
    bool has_version;
    uint64_t version;  /* pulled last */
    uint32_t lr_count; /* by group; 0 before the first step, when lrs[0] is 0, too */
    double lrs[PD_GROUP_COUNT_MAX + 1];
    uint64_t skipped_steps;
    uint32_t host_workers; /* on this host, as the last pull said; 0 before the first */
    bool stop_advised;     /* by early stopping */
    double loss_scale;     /* 0 before the first pull */
    struct pd_request requests[PD_RANK_COUNT_MAX]; /* of the call, by lane */

    struct pd_overlap overlap;

    bool keeping_alive; /* `keeper` runs */
    bool stopping;
    pthread_t keeper;
    pthread_cond_t stop;
};

/* Copy the error for the user, and return its status. */
enum paramd_status pd_client_result(const struct pd_error *fault, struct paramd_error *error);

/* Take the handle's lock for a call; false, with the fault, while a step has begun. */
bool pd_client_enter(struct paramd_client *client, const char *name, struct pd_error *error);

/* Begin a call with the handle's deadline. */
struct pd_call pd_client_call(const struct paramd_client *client, const char *name);

/* Ask rank 0 one thing. */
PD_MUST_CHECK
enum pd_status pd_client_ask_leader(struct paramd_client *client, const struct pd_call *call,
                                    struct pd_request *request, struct pd_error *error);

/* The parts of a push, in order; `push` is filled on the way. */
PD_MUST_CHECK
enum pd_status pd_client_check_registered(const struct paramd_client *client, const char *call,
                                          const void *arrays, struct pd_error *error);
struct pd_push pd_client_describe_push(const struct paramd_client *client, uint64_t samples,
                                       const double *loss, unsigned flags);
void pd_client_prepare_push(struct paramd_client *client, const struct pd_request_arrays *arrays,
                            struct pd_push *push);
PD_MUST_CHECK
enum pd_status pd_client_run_push(struct paramd_client *client, const struct pd_call *call,
                                  const struct pd_push *push, struct pd_error *error);
void pd_client_fill_info(const struct paramd_client *client, const struct pd_push *push,
                         struct paramd_step_info *info);

/* End what was begun, whatever it comes to, before the handle goes. */
void pd_overlap_finish(struct paramd_client *client);

/* Start and stop the thread that renews the lease between calls.
 * Errors: PD_ENOMEM (no thread). */
PD_MUST_CHECK
enum pd_status pd_keeper_start(struct paramd_client *client, struct pd_error *error);
void pd_keeper_stop(struct paramd_client *client);

#endif
