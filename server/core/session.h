/* One connection: who is at its other end, and what that end may say now.
 * event -> [session] -> contribution, serve, leader. Pure. Owner: the loop thread.
 *
 *   GREETING -Hello-> GUEST -Join-> WORKER          GREETING -RankHello-> RANK (on rank 0)
 *      |  `-Hello with worker_id-> WORKER -depart-> GUEST     (outgoing)  LEADER (on the others)
 *      `--------- any state -- fault, close --> CLOSING -CLOSED-> gone */
#ifndef PD_SERVER_CORE_SESSION_H
#define PD_SERVER_CORE_SESSION_H

#include "server/core/event.h"

struct pd_engine;

enum pd_session_state {
    PD_SESSION_NONE, /* no such connection */
    PD_SESSION_GREETING,
    PD_SESSION_GUEST,
    PD_SESSION_WORKER,
    PD_SESSION_RANK,
    PD_SESSION_LEADER,
    PD_SESSION_CLOSING,
};

/* What the payload that is on its way is for. */
enum pd_session_payload {
    PD_SESSION_PAYLOAD_NONE,
    PD_SESSION_PAYLOAD_DROPPED,
    PD_SESSION_PAYLOAD_PUSH,
    PD_SESSION_PAYLOAD_VALUES,
};

/* What was sent to a worker of the next version before its step has closed. */
enum pd_session_ahead {
    PD_SESSION_AHEAD_NONE,
    PD_SESSION_AHEAD_OPEN, /* it comes as it is computed, and is not settled */
    PD_SESSION_AHEAD_VOID, /* settled as void; the rest of its bytes is still on its way out */
};

struct pd_session {
    enum pd_session_state state;
    char peer[PD_ADDRESS_BYTES_MAX + 1];
    char host[PD_HOST_BYTES_MAX + 1]; /* as its Hello said */
    uint32_t host_workers; /* WORKER: sessions of workers on that host, this one included */
    uint64_t serial;       /* tells it from others that had the same connection id */
    bool joining;          /* a Join waits for its answer */
    uint64_t opened_ms;
    uint64_t received_ms; /* when bytes last came */
    uint64_t sent_ms;     /* when the peer last took bytes, or had none to take */
    uint32_t worker_id;   /* WORKER */
    bool left;            /* GUEST: its worker has left */
    uint32_t rank;        /* RANK */
    bool checksum;        /* the peer sums what it sends, and gets sums */
    enum pd_session_payload payload;
    bool push_parked;    /* `push` waits for room, or for the fold of the micro-batch before */
    struct pd_push push; /* parked, or the one whose payload is on its way */
    bool pull_waiting;   /* `pull` waits for its version */
    struct pd_pull pull;
    bool pull_ahead; /* it came with a push, and may be answered ahead */
    bool told_again; /* to push: a pull of what that makes was sent before it has read that */
    bool sending;    /* a payload is on its way out */
    enum pd_session_ahead ahead;
    uint32_t ahead_dtype;   /* of that payload, not NONE */
    uint64_t ahead_ready;   /* OPEN: bytes of it that may leave */
    uint32_t sending_users; /* which buffer it reads: index + 1; 0: `reply` */
    char *reply;            /* owned: an admin reply on its way out */
};

void pd_session_opened(struct pd_engine *engine, const struct pd_event *event);
void pd_session_message(struct pd_engine *engine, const struct pd_event *event);
void pd_session_payload(struct pd_engine *engine, const struct pd_event *event);
void pd_session_progress(struct pd_engine *engine, const struct pd_event *event);
void pd_session_sent(struct pd_engine *engine, const struct pd_event *event);
void pd_session_failed(struct pd_engine *engine, const struct pd_event *event);
void pd_session_closed(struct pd_engine *engine, const struct pd_event *event);

/* A worker has come to that host, or gone: renew `host_workers` of those who are there. */
void pd_session_count_host(struct pd_engine *engine, const char *host);

/* Time has passed: greetings, leases and readers that are over their deadline. */
void pd_session_tick(struct pd_engine *engine);

/* Answer with an Error; a fatal one closes the connection once it is sent. */
void pd_session_refuse(struct pd_engine *engine, pd_connection_id connection,
                       const struct pd_error *error, bool fatal);

/* Close; what is queued is sent first if `flush`. */
void pd_session_close(struct pd_engine *engine, pd_connection_id connection, bool flush);

/* The worker that a session is of; NULL: it is no worker's. */
struct pd_worker *pd_session_worker(struct pd_engine *engine, const struct pd_session *session);
/* Nobody wants the payload that follows a message. */
void pd_session_drop_payload(struct pd_engine *engine, const struct pd_event *event);

#endif
