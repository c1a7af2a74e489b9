/* One thing asked of one rank: what to send, what counts as its answer, and what is left to ask
 * after a lost connection. client -> [request] -> stream. Pure: the exchange tells it what came and
 * does what it says.
 *
 *           send            answer with payload
 *   ASKING ------> WAITING ---------------------> RECEIVING
 *      ^              |  \ answer                     | payload       \ payload of a Pulled ahead
 *      |              |   `------------> DONE <-------+--- applied --- SETTLING
 *      |              | damaged on the way            | damaged          |
 *      `--------------+-------------------------------+------------------' void: WAITING, or
 *                                                                          ASKING if asked again
 *
 * After a lost connection every state but DONE goes back to ASKING, and the Welcome of the next one
 * says whether a push in doubt has been accepted: then only its parameters, if wanted, are asked
 * for. It says nothing of estimates of the Hessian: they are sent again, and known as duplicates.
 */
#ifndef PD_CLIENT_REQUEST_H
#define PD_CLIENT_REQUEST_H

#include "client/payload.h"
#include "common/message.h"

/* Times a payload that arrived damaged is sent again before the call gives up. */
#define PD_REQUEST_DAMAGED_MAX 3u

enum pd_request_kind {
    PD_REQUEST_GREET, /* only a session: Hello and Welcome */
    PD_REQUEST_JOIN,
    PD_REQUEST_REGISTER,
    PD_REQUEST_VALUES,
    PD_REQUEST_PUSH,
    PD_REQUEST_PULL,
    PD_REQUEST_LEAVE,
    PD_REQUEST_METRIC,
    PD_REQUEST_ADMIN,
};

enum pd_request_state {
    PD_REQUEST_ASKING,
    PD_REQUEST_WAITING,
    PD_REQUEST_RECEIVING,
    PD_REQUEST_SETTLING, /* the payload is in, and the rank has yet to say whether it counts */
    PD_REQUEST_DONE,
};

/* A place in the order of pushes: all before it have been accepted. */
struct pd_position {
    uint64_t step;
    uint32_t micro_batch;
};

/* Whether a push of that step and micro-batch comes before `position`. */
bool pd_position_is_after(struct pd_position position, uint64_t step, uint32_t micro_batch);

/* The model and the arrays a request reads or fills; borrowed during the call. */
struct pd_request_arrays {
    const struct pd_tensor_list *model;
    const float *const *sources; /* VALUES, PUSH */
    float *const *targets;       /* PULL, and PUSH with pull */
    const struct pd_gate *gate;  /* PUSH: NULL if the sources are final */
};

/* Filled by one of the init functions; read its results once it is DONE. */
struct pd_request {
    enum pd_request_kind kind;
    enum pd_request_state state;
    bool accepted;     /* PUSH: known to have been; only the pull is left */
    bool asked_before; /* a copy may have reached the rank on a connection that was lost */
    bool intact;       /* SETTLING: the payload matches its checksum */
    uint32_t damaged;  /* payloads so far that did not match their checksum */
    struct pd_request_arrays arrays;
    struct pd_lane lane; /* VALUES, PUSH, PULL */
    struct pd_push push;
    struct pd_pull pull;
    const char *name;               /* JOIN; borrowed */
    uint64_t nonce;                 /* JOIN: makes a repetition known as one */
    const struct pd_metric *metric; /* METRIC; borrowed */
    const struct pd_admin *admin;   /* ADMIN; borrowed */
    struct pd_position left_at;     /* LEAVE */

    /* Results. */
    struct pd_pulled pulled;          /* PULL, and PUSH with pull */
    struct pd_joined joined;          /* JOIN */
    struct pd_registered *registered; /* REGISTER: filled; borrowed */
    uint64_t reply_bytes;             /* ADMIN: announced length */
    char *reply; /* ADMIN: reply_bytes + 1; whoever made the request frees it */
};

void pd_request_init_greet(struct pd_request *request);
void pd_request_init_join(struct pd_request *request, const char *name, uint64_t nonce);
void pd_request_init_register(struct pd_request *request, const struct pd_tensor_list *model,
                              struct pd_registered *registered);
void pd_request_init_values(struct pd_request *request, const struct pd_lane *lane,
                            const struct pd_request_arrays *arrays);
/* `push` without its range, which the lane gives. `next` is what this rank has acknowledged: a push
 * before it is not sent again. */
void pd_request_init_push(struct pd_request *request, const struct pd_lane *lane,
                          const struct pd_request_arrays *arrays, const struct pd_push *push,
                          struct pd_position next);
void pd_request_init_pull(struct pd_request *request, const struct pd_lane *lane,
                          const struct pd_request_arrays *arrays, uint64_t min_version,
                          enum pd_dtype dtype);
void pd_request_init_leave(struct pd_request *request, struct pd_position position);
void pd_request_init_metric(struct pd_request *request, const struct pd_metric *metric);
void pd_request_init_admin(struct pd_request *request, const struct pd_admin *admin);

/* What to send in state ASKING, which becomes WAITING: all of `message` and `payload` is set, which
 * is empty if there is none.
 * Ownership: a registration's tensors stay the request's: do not finish the message. */
void pd_request_send(struct pd_request *request, struct pd_message *message,
                     struct pd_payload *payload);

/* The connection is gone. */
void pd_request_lost(struct pd_request *request);

/* A connection is there; `welcome` settles what was in doubt.
 * Errors: PD_EIDENTITY if the rank belongs to another run than `run_id`; 0 is any. */
PD_MUST_CHECK
enum pd_status pd_request_welcomed(struct pd_request *request, const struct pd_welcome *welcome,
                                   uint64_t run_id, struct pd_error *error);

/* Take a message that came for this request. In state RECEIVING afterwards, the caller places the
 * payload where pd_request_place says.
 * Errors: what an Error message said; PD_EPROTOCOL for an answer to something else. */
PD_MUST_CHECK
enum pd_status pd_request_answered(struct pd_request *request, const struct pd_message *message,
                                   uint64_t payload_bytes, struct pd_error *error);

/* Errors: PD_ENOMEM (an admin reply). */
PD_MUST_CHECK
enum pd_status pd_request_place(struct pd_request *request, struct pd_payload *payload,
                                struct pd_error *error);

/* The payload is in.
 * Errors: PD_ECHECKSUM once it has been damaged too often; before that it is asked for again. */
PD_MUST_CHECK
enum pd_status pd_request_received(struct pd_request *request, bool checksum_ok,
                                   struct pd_error *error);

/* What this request waits for, for the message of a deadline that passed: "no version 12". */
const char *pd_request_missing(const struct pd_request *request, char *text, size_t text_bytes);

/* Whether Draining ends it. */
bool pd_request_ends_with_draining(const struct pd_request *request);

/* Pulled parts must be of one version: reopen those that are older than the newest; returns how
 * many. Requests that pulled nothing are passed over. */
uint32_t pd_requests_settle(struct pd_request *requests, uint32_t count);

#endif
