/* One TCP connection: bytes from the socket to the frame reader's places, frames from the send
 * queue to the socket. listener, control -> [connection] <-> loop. Owner: the loop thread.
 *
 *            FAILED frame             CLOSE                all sent, FIN
 *   OPEN ------------------> FAILED ---------> FLUSHING ----------------> LINGERING
 *     |  \                     |        flush      |                          |
 *     |   \--------------------|-- CLOSE, flush ---^                          |
 *     +---- end, fault, CLOSE without flush, deadline -----> CLOSING <--------+
 *
 * CLOSED is fed exactly once, at the end of CLOSING; nothing else is fed after the engine's CLOSE.
 */
#ifndef PD_SERVER_IO_CONNECTION_H
#define PD_SERVER_IO_CONNECTION_H

#include "server/io/loop.h"

/* Take over `fd`, set it up and start to read. The caller feeds OPENED.
 * Ownership: the connection frees itself after CLOSED; `fd` is the caller's on error.
 * Errors: PD_ENOMEM, PD_EIO. */
PD_MUST_CHECK
enum pd_status pd_connection_create(struct pd_connection **out, struct pd_loop *loop,
                                    pd_connection_id id, int fd, bool outgoing,
                                    struct pd_error *error);

/* "host:port" of the other end; the connection's. */
const char *pd_connection_peer(const struct pd_connection *connection);

/* The actions. Each only changes this connection and owes what follows from it. A frame to be
 * summed whose checksum is known comes with it in `sum`, which else is NULL. */
void pd_connection_send(struct pd_connection *connection, const struct pd_action *action,
                        const uint8_t *frame, const uint64_t *sum);
/* More of a payload that was held back may leave. */
void pd_connection_release(struct pd_connection *connection, uint64_t payload_ready);
void pd_connection_place(struct pd_connection *connection, void *destination, uint64_t byte_count);
void pd_connection_drop(struct pd_connection *connection);
void pd_connection_close(struct pd_connection *connection, bool flush);

/* Write what a connection that delays has collected. */
void pd_connection_flush(struct pd_connection *connection);

/* Feed what is owed: progress, payloads sent, messages read. Called by pd_loop_settle alone. */
void pd_connection_advance(struct pd_connection *connection);

/* Time has passed: a close that takes too long is cut short, and the end of a peer whose payload
 * waits for its place is noticed. */
void pd_connection_tick(struct pd_connection *connection, uint64_t now_ms);

/* End without another word, whatever is still to be sent. */
void pd_connection_cut(struct pd_connection *connection);

/* For the loop's table and its list of connections that owe something. */
pd_connection_id pd_connection_number(const struct pd_connection *connection);
struct pd_connection **pd_connection_owing_link(struct pd_connection *connection);

#endif
