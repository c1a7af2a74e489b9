/* What a rank wants done: the engine's only output.
 * engine -> [action] -> shells. Actions are carried out in order. Pure. */
#ifndef PD_SERVER_CORE_ACTION_H
#define PD_SERVER_CORE_ACTION_H

#include "server/core/collective.h"
#include "server/core/event.h"
#include "server/core/fresh.h"

enum pd_action_kind {
    PD_ACTION_SEND,    /* a frame, then payload from `payload`; SENT follows if it has a payload */
    PD_ACTION_RELEASE, /* more of a payload that a SEND held back may leave: its first
                        * `payload_ready`
                        */
    PD_ACTION_PLACE,   /* the next `place_bytes` of the payload that comes on `connection` go to
                        * `destination` */
    PD_ACTION_DROP,    /* what is not in yet of that payload is read and dropped */
    PD_ACTION_CLOSE,   /* stop reading, send what is queued if `flush`, close; CLOSED follows */
    PD_ACTION_COLLECTIVE, /* enter `collective` on the MPI thread; COLLECTIVE follows */
    PD_ACTION_WORK,       /* a WORK event, once sockets have had their turn */
    PD_ACTION_LOG,        /* one line for the log: `text` */
    PD_ACTION_READY,      /* rank 0: every rank is linked; say where they listen */
    PD_ACTION_EXIT,       /* leave the loop with `exit_code` once everything queued has been sent */
    PD_ACTION_ABORT,      /* end the whole job at once: `text` says why */
};

/* One entry. `frame` and `text` are offsets into the list's bytes: pd_actions_bytes. */
struct pd_action {
    enum pd_action_kind kind;
    pd_connection_id connection;
    size_t frame_offset; /* SEND: prefix and header, ready for the wire */
    size_t frame_bytes;
    const void *payload;         /* SEND: untouched by the engine until SENT or CLOSED */
    enum pd_dtype payload_dtype; /* SEND: the shell converts a payload of float32 to this as it goes
                                    out; float32: it goes as it is */
    uint64_t payload_bytes;      /* SEND: on the wire */
    uint64_t payload_ready; /* SEND, RELEASE: bytes of the payload that may leave; at most one SEND
                               of a connection holds any back */
    bool checksum; /* SEND: the shell appends CRC-64 of header and payload (prefix has the flag) */
    void *destination;                      /* PLACE */
    uint64_t place_bytes;                   /* PLACE: a PROGRESS says when they are in */
    bool flush;                             /* CLOSE */
    const struct pd_collective *collective; /* COLLECTIVE: the engine's until done */
    size_t text_offset;                     /* LOG, ABORT: NUL-terminated */
    int exit_code;                          /* EXIT */
};

/* A list that is filled by one step and carried out before the next; its memory is kept. */
struct pd_actions {
    /* Of what it lets go; `bytes` are the engine's, which overwrites them in its next step: only
     * what leaves while the list is carried out may be taken from there. */
    struct pd_fresh fresh;
    struct pd_action *items;
    size_t count;
    size_t capacity;
    uint8_t *bytes;
    size_t bytes_used;
    size_t bytes_capacity;
};

void pd_actions_init(struct pd_actions *actions);
void pd_actions_finish(struct pd_actions *actions);
/* Empty it; memory is kept. */
void pd_actions_reset(struct pd_actions *actions);
/* The bytes at an offset of one of its actions; valid until the next change of the list. */
const uint8_t *pd_actions_bytes(const struct pd_actions *actions, size_t offset);

/* Builders, for the engine. Growing fails only when memory is out, which is asserted: no rank can
 * go on without its actions. */
void pd_actions_send(struct pd_actions *actions, pd_connection_id connection,
                     const struct pd_message *message, const void *payload, uint64_t payload_bytes,
                     bool checksum);
/* The payload of the last SEND is float32 and goes out as `dtype`. */
void pd_actions_convert(struct pd_actions *actions, enum pd_dtype dtype);
/* The last SEND holds back what is beyond `payload_ready` bytes of its payload. */
void pd_actions_hold_back(struct pd_actions *actions, uint64_t payload_ready);
void pd_actions_release(struct pd_actions *actions, pd_connection_id connection,
                        uint64_t payload_ready);
void pd_actions_place(struct pd_actions *actions, pd_connection_id connection, void *destination,
                      uint64_t byte_count);
/* The payload is dropped, or what is left of it. */
void pd_actions_drop(struct pd_actions *actions, pd_connection_id connection);
void pd_actions_close(struct pd_actions *actions, pd_connection_id connection, bool flush);
void pd_actions_collective(struct pd_actions *actions, const struct pd_collective *collective);
void pd_actions_simple(struct pd_actions *actions, enum pd_action_kind kind);
void pd_actions_exit(struct pd_actions *actions, int exit_code);
void pd_actions_log(struct pd_actions *actions, const char *format, ...) PD_PRINTF(2, 3);
void pd_actions_abort(struct pd_actions *actions, const char *format, ...) PD_PRINTF(2, 3);

#endif
