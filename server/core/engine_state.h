/* The engine's state and the verbs its parts share. Private to the engine's parts: engine, session,
 * push, serve, restore, orders, search, membership, admin, status. Pure. Owner: the loop thread.
 *
 *   event -> session (who may say what) -> push -> contribution
 *         -> leader: orders, membership, admin (rank 0 decides) -> order -> every rank's engine
 *   order -> engine (carries it out) -> step -> serve (waiting pulls) */
#ifndef PD_SERVER_CORE_ENGINE_STATE_H
#define PD_SERVER_CORE_ENGINE_STATE_H

#include "common/checksum.h"
#include "server/core/engine.h"
#include "server/core/leader.h"
#include "server/core/loss_scale.h"
#include "server/core/param_store.h"
#include "server/core/roster.h"
#include "server/core/session.h"
#include "server/core/step.h"

/* Orders received and not yet carried out, oldest first; entries are used again. */
struct pd_order_queue {
    struct pd_order **items; /* ring of `capacity` */
    size_t capacity;
    size_t begin;
    size_t count;
    struct pd_order **spare; /* `spare_count` of at most `capacity` */
    size_t spare_count;
};

/* What a snapshot order has this rank keep, until a restore or forget order. */
struct pd_kept_state {
    struct pd_snapshot snapshot;
    uint32_t lr_count;
    double lrs[PD_GROUP_COUNT_MAX + 1];
    struct pd_loss_scale loss_scale;
    char fault[PD_ERROR_BYTES_MAX]; /* why the last snapshot could not be made; empty: it was */
};

struct pd_engine {
    const struct pd_config *config;
    const struct pd_topology *topology;
    uint32_t lane_count;
    uint32_t replica_count;
    uint32_t replica; /* of this rank */

    /* Of the event being taken in. */
    uint64_t now_ms;
    uint64_t entropy;
    pd_connection_id connection;
    struct pd_actions *actions;
    bool issued; /* orders, which the other ranks get when it is over */

    struct pd_session *sessions; /* PD_CONNECTION_COUNT_MAX */
    uint32_t session_end;        /* one beyond the last ever used */
    uint64_t session_serial;     /* of the last one opened */
    struct pd_roster *roster;

    bool has_model;
    struct pd_tensor_list model;
    struct pd_shard_plan *plan;
    struct pd_param_store store;
    struct pd_step_machine *step;
    uint32_t initializer; /* worker whose values become version 0 */
    bool values_stored;   /* its values for this lane are here, whole */

    struct pd_order_queue queue;
    struct pd_order *running;  /* a step, publish, snapshot or restore order under way */
    struct pd_order *foreseen; /* an order ahead that the step machine works on */
    bool ahead_holds;          /* pushes wait for others that are behind */
    uint64_t ahead_elements;   /* as far as that was when one last had to */
    uint64_t ahead_ms;         /* and since when it is as far as that */
    struct pd_collective broadcast;
    uint64_t orders_executed;
    uint64_t order_hash;

    uint32_t lr_count;                  /* 0 before the first step */
    double lrs[PD_GROUP_COUNT_MAX + 1]; /* by group, in the last step closed */
    uint64_t skipped_steps;
    bool stop_advised;               /* by the last step */
    struct pd_loss_scale loss_scale; /* for the step in collection */
    struct pd_kept_state kept;

    bool work_asked;            /* a WORK event is on its way */
    uint32_t collectives_asked; /* so many COLLECTIVE events are on their way */
    bool drained;               /* workers have been told: what they still push is not taken */
    bool exiting;               /* EXIT or ABORT was asked for: nothing matters any more */
    uint64_t started_ms;
    uint64_t tick_ms; /* time of the last tick */
    uint64_t beat_ms; /* when the last Beat was sent */

    pd_connection_id leader_connection; /* ranks > 0: the one to rank 0 */
    uint64_t leader_heard_ms;
    struct pd_report early_drain; /* ranks > 0: asked for before there was a link to tell rank 0 */
    struct pd_leader *leader;     /* rank 0 only */
};

/* ---- engine: what the parts ask of it ---- */

/* Ask for a WORK event, once. */
void pd_engine_want_work(struct pd_engine *engine);

/* End the job: every rank is told by the closing of its connections. */
void pd_engine_abort(struct pd_engine *engine, const char *format, ...) PD_PRINTF(2, 3);

/* Send a message without payload. */
void pd_engine_send(struct pd_engine *engine, pd_connection_id connection,
                    const struct pd_message *message);

/* Put an order at the end of this rank's queue; it is copied. */
void pd_engine_enqueue(struct pd_engine *engine, const struct pd_order *order);

/* Tell rank 0 what this rank saw. */
void pd_engine_report(struct pd_engine *engine, const struct pd_report *report);

/* The order is carried out, or not needed any more: its memory is for another. */
void pd_engine_recycle(struct pd_engine *engine, struct pd_order *order);

/* ---- push ---- */

/* A Push or Hessian has come, and its payload follows: say where it goes, or let it wait. */
void pd_push_announced(struct pd_engine *engine, const struct pd_event *event);
/* Its payload is in. */
void pd_push_arrived(struct pd_engine *engine, pd_connection_id connection, bool checksum_ok);
/* What a push that is parked waits for may have come: take it, or refuse it when the daemon drains.
 */
void pd_push_unpark(struct pd_engine *engine, pd_connection_id connection);
/* Whether the peer is not read because its push waits for room, for a fold, or for its turn. */
bool pd_push_is_held_back(const struct pd_engine *engine, const struct pd_session *session);
/* Work on contributions: read those that wait for their turn, add micro-batches to their sums; true
 * while there is more. */
bool pd_push_work(struct pd_engine *engine);

/* ---- push_check ---- */

/* Whether initial values are of this rank's lane.
 * Errors: PD_EMODEL. */
PD_MUST_CHECK
enum pd_status pd_push_check_values(const struct pd_engine *engine, const struct pd_values *values,
                                    uint64_t payload_bytes, struct pd_error *error);

/* Whether a worker's push or estimate is one that this rank could take at some time.
 * Errors: PD_EDRAINING, PD_EREFUSED, PD_EINVALID, PD_ESTEP, PD_EMODEL. */
PD_MUST_CHECK
enum pd_status pd_push_check(const struct pd_engine *engine, const struct pd_worker *worker,
                             const struct pd_push *push, uint64_t payload_bytes,
                             struct pd_error *error);

/* ---- ahead: a step begun while its contributions arrive ---- */

/* How a step of so many workers begins ahead on this rank. */
enum pd_step_ahead pd_ahead_kind(const struct pd_engine *engine, uint32_t worker_count);
/* An order ahead: begin what it foresees, if this rank can. */
void pd_ahead_begin(struct pd_engine *engine, struct pd_order *order);
/* Whether a step ahead may use up what this push brings: its worker stays with it until the step is
 * closed, and can be asked to push again. */
bool pd_ahead_may_spend(const struct pd_engine *engine, const struct pd_push *push);
/* Whether whole gradients are added up ahead, one after the other. */
bool pd_ahead_adds_gradients(const struct pd_engine *engine);
/* Where the next bytes of a push go, which has begun. */
void pd_ahead_place(struct pd_engine *engine, pd_connection_id connection,
                    struct pd_contribution *contribution);
/* Bytes have come in, and been used where they can be: the rest of the push may need its next
 * place. One that is ahead of the others' waits for it. */
void pd_ahead_go_on(struct pd_engine *engine, pd_connection_id connection);
/* After every event: what those wait for may have come. */
void pd_ahead_go_on_all(struct pd_engine *engine);
/* Bytes may have come in: a turn of work, and what it made to the workers that take it. */
void pd_ahead_advance(struct pd_engine *engine);
/* More of the next version may be there: begin or go on sending it to the workers whose push asked
 * for that. */
void pd_ahead_send(struct pd_engine *engine);
/* Begin the step of an order: from what was foreseen, if it says the same, else from nothing. */
void pd_ahead_confirm(struct pd_engine *engine, const struct pd_order *order);
/* What has come of this worker's push is void, or the worker is gone. */
void pd_ahead_lose(struct pd_engine *engine, const struct pd_worker *worker);
/* Forget what was foreseen; the workers are told, and those whose push it used up push again. */
void pd_ahead_forget(struct pd_engine *engine);
/* The step is closed: tell the workers that were sent its version whether it counts. */
void pd_ahead_settle(struct pd_engine *engine, bool applied);
/* The connection closes: nothing of its answer is held back any more. */
void pd_ahead_leave(struct pd_engine *engine, pd_connection_id connection);

/* ---- restore ---- */

/* Begin the running order, which is a snapshot or a restore. */
void pd_restore_begin(struct pd_engine *engine);
/* Take it on, by a turn of copying if `turn`; true when it is carried out. */
PD_MUST_CHECK
bool pd_restore_advance(struct pd_engine *engine, bool turn);
/* No restore will come. */
void pd_restore_forget(struct pd_engine *engine);

/* ---- serve ---- */

/* Answer a pull as soon as its version exists.
 * Errors: PD_EREFUSED for averaged parameters that are not kept; PD_ESTEP for a version too far
 * ahead, PD_EINVALID for a dtype, PD_EPROTOCOL for a second pull before the first is answered. */
PD_MUST_CHECK
enum pd_status pd_serve_pull(struct pd_engine *engine, pd_connection_id connection,
                             uint64_t min_version, uint32_t dtype, bool averaged,
                             struct pd_error *error);

/* Answer the pull that waits on a connection, if there is one and it can be answered. */
void pd_serve_answer(struct pd_engine *engine, pd_connection_id connection);

/* A new version is there: answer what can be answered. */
void pd_serve_answer_all(struct pd_engine *engine);

/* The answer to a pull of the version served, without its payload. */
void pd_serve_describe(const struct pd_engine *engine, const struct pd_session *session,
                       const struct pd_pull *pull, struct pd_pulled *pulled);

/* Send the parameters of the buffer on a connection that sends no payload, and count it as a user.
 * A buffer other than the served one is of the next version, ahead. */
void pd_serve_send(struct pd_engine *engine, pd_connection_id connection, uint32_t buffer_index,
                   enum pd_dtype dtype);

/* What is left of the payload on this connection may be anything. */
void pd_serve_let_go(struct pd_engine *engine, pd_connection_id connection);

/* The payload on this connection is no longer read from. */
void pd_serve_release(struct pd_engine *engine, pd_connection_id connection);

/* Close every connection that still reads the spare buffer: a step needs it. */
void pd_serve_reclaim_spare(struct pd_engine *engine);

#endif
