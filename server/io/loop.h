/* The event loop of a rank: owns the connections, feeds events to the engine and carries out its
 * actions. listener, control, connection, signals, MPI -> [loop] <-> engine.
 * Owner: the loop thread, for everything except pd_loop_notify.
 *
 * No event is fed while another is being carried out: what an action brings about at once (a frame
 * that left in one call, a message that was already buffered) is owed by its connection, which
 * waits in a list until pd_loop_settle. */
#ifndef PD_SERVER_IO_LOOP_H
#define PD_SERVER_IO_LOOP_H

#include "server/core/engine.h"
#include "server/io/send_queue.h"

#include <uv.h>

struct pd_loop;
struct pd_connection;

/* How collectives leave the loop and come back; `context` is passed on. */
struct pd_loop_collectives {
    void (*submit)(void *context, const struct pd_collective *collective);
    /* The next that is done, in order; NULL if none is. */
    const struct pd_collective *(*take_done)(void *context);
    void *context;
};

struct pd_loop_options {
    struct pd_engine *engine;
    struct pd_loop_collectives collectives;
    int listen_fd;                 /* listening; the loop's from now on; -1 for none */
    const char *leader;            /* "host:port" of rank 0 to link to; NULL on rank 0 itself */
    const char *ready_line;        /* what READY prints, without the newline */
    uint64_t rank_timeout_ms;      /* to link to rank 0, and for each collective to end */
    uint64_t lease_ms;             /* hosts of peers that answer nothing for so long are gone */
    uint32_t connection_count_max; /* at most PD_CONNECTION_COUNT_MAX */
    bool launched;                 /* under mpirun: end when it is gone */
};

/* Ownership: what the options point to is borrowed until destroy.
 * Errors: PD_ENOMEM, PD_EIO; listen_fd is then still the caller's. */
PD_MUST_CHECK
enum pd_status pd_loop_create(struct pd_loop **out, const struct pd_loop_options *options,
                              struct pd_error *error);
void pd_loop_destroy(struct pd_loop *loop);

/* Run until the engine's EXIT; returns its exit code. */
int pd_loop_run(struct pd_loop *loop);

/* Any thread: collectives may be done. */
void pd_loop_notify(struct pd_loop *loop);

/* Take over a connected socket and feed OPENED. `fd` is closed when that is not possible. */
void pd_loop_adopt(struct pd_loop *loop, int fd, bool outgoing);

/* For the parts of the shell. */

/* Feed an event, completed by clock and entropy, and carry out the actions. */
void pd_loop_emit(struct pd_loop *loop, struct pd_event *event);
/* Have pd_connection_advance called by the next settle. */
void pd_loop_owe(struct pd_loop *loop, struct pd_connection *connection);
/* Feed everything owed. Every callback of libuv ends with it. */
void pd_loop_settle(struct pd_loop *loop);
/* Have pd_connection_flush called before the loop next waits. Only one connection asks for it. */
void pd_loop_delay(struct pd_loop *loop, struct pd_connection *connection);
/* The connection is gone; its number is free again. */
void pd_loop_forget(struct pd_loop *loop, pd_connection_id id);
uint64_t pd_loop_now_ms(void);
uv_loop_t *pd_loop_uv(struct pd_loop *loop);
/* Where bytes go that nobody wants. */
uv_buf_t pd_loop_scratch(struct pd_loop *loop);
/* Where payloads are converted: one at a time. It is cleared whenever the engine may change them.
 */
struct pd_send_room *pd_loop_room(struct pd_loop *loop);
/* Log why and end the job: exit code 3, without returning to anything. */
_Noreturn void pd_loop_abort(const char *text);

#endif
