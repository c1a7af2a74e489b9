/* What can happen to a rank: the engine's only input.
 * Shells (server/io, server/mpi) and the simulation turn the world into these. Pure. */
#ifndef PD_SERVER_CORE_EVENT_H
#define PD_SERVER_CORE_EVENT_H

#include "common/message.h"

/* Names a connection from OPENED to CLOSED; below PD_CONNECTION_COUNT_MAX, reused after CLOSED. */
typedef uint32_t pd_connection_id;

enum pd_event_kind {
    PD_EVENT_OPENED,   /* a connection exists: `connection`, `peer`, `outgoing` */
    PD_EVENT_MESSAGE,  /* a header arrived; if payload_bytes > 0 the connection waits for PLACE or
                        * DROP, and again whenever a place is full before the payload is in */
    PD_EVENT_PAYLOAD,  /* that payload is in, `checksum_ok` says whole or damaged */
    PD_EVENT_PROGRESS, /* bytes moved on the connection: received, or sent by the peer's reading */
    PD_EVENT_SENT,     /* the payload of the connection's last SEND has left; its buffer is free */
    PD_EVENT_FAILED,   /* the stream holds no valid frame: `error`; nothing more will be read */
    PD_EVENT_CLOSED,   /* gone, for whatever reason in `error`; all its buffers are free */
    PD_EVENT_COLLECTIVE, /* the first collective under way is done */
    PD_EVENT_WORK,       /* a turn to compute a few blocks, after a WORK action */
    PD_EVENT_TICK,       /* time has passed; about four a second */
    PD_EVENT_DRAIN, /* the operator asks this rank to end the job in good order: `text` says how */
};

/* Ownership: everything pointed to is borrowed until pd_engine_step returns. */
struct pd_event {
    enum pd_event_kind kind;
    uint64_t now_ms;  /* monotonic, the same clock in all events of one rank */
    uint64_t entropy; /* MESSAGE without a payload: a random number, fresh in each */
    pd_connection_id connection;
    bool outgoing;                    /* OPENED: this rank connected to rank 0 */
    const char *peer;                 /* OPENED: "host:port", for messages */
    const struct pd_message *message; /* MESSAGE */
    uint64_t payload_bytes; /* MESSAGE: announced; PROGRESS: of that payload, in their place */
    bool has_checksum;      /* MESSAGE: the peer checks sums, so answers carry them */
    bool checksum_ok;       /* PAYLOAD: true without a checksum, too */
    bool received;          /* PROGRESS: true received, false sent */
    const struct pd_error *error; /* FAILED, CLOSED */
    const char *text;             /* DRAIN */
};

#endif
