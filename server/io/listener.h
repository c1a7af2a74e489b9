/* Accepts connections: a listening socket, opened before the loop runs so that its address can be
 * exchanged, then watched by it. network -> [listener] -> loop. Owner: the loop thread. */
#ifndef PD_SERVER_IO_LISTENER_H
#define PD_SERVER_IO_LISTENER_H

#include "server/io/loop.h"

struct pd_listener;

/* Bind and listen. `port` 0 lets the kernel choose; *port_out is the one it is.
 * Ownership: *fd_out is the caller's until a loop takes it.
 * Errors: PD_ECONFIG (no such host), PD_EIO (port in use, and the like). */
PD_MUST_CHECK
enum pd_status pd_listener_open(int *fd_out, uint32_t *port_out, const char *host, uint32_t port,
                                struct pd_error *error);

/* Whether a host is a wildcard, at which nobody can be reached. */
bool pd_listener_is_wildcard(const char *host);

/* Accept on `fd` from now on; each connection goes to pd_loop_adopt. One whose host answers nothing
 * for `lease_ms` breaks.
 * Errors: PD_ENOMEM, PD_EIO; `fd` is then still the caller's. */
PD_MUST_CHECK
enum pd_status pd_listener_create(struct pd_listener **out, struct pd_loop *loop, int fd,
                                  uint64_t lease_ms, struct pd_error *error);

/* Time has passed: accept again after a pause for want of file descriptors. */
void pd_listener_tick(struct pd_listener *listener);

/* Close the socket; the listener frees itself in a later turn of the loop. NULL is allowed. */
void pd_listener_destroy(struct pd_listener *listener);

#endif
