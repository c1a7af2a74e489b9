/* Non-blocking TCP sockets of the client, and its clock.
 * stream -> [socket] -> the daemon. Shell: the only part of the library, with the loop over it in
 * exchange.c, that makes system calls. */
#ifndef PD_CLIENT_SOCKET_H
#define PD_CLIENT_SOCKET_H

#include "common/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Monotonic time. */
uint64_t pd_clock_ms(void);
uint64_t pd_clock_ns(void);

/* Begin connecting to the address number `address_index` that "host:port" or "[host]:port" stands
 * for; *address_count gets how many there are. The socket is non-blocking, without delay of small
 * frames, and among loopback peers asks for the congestion control that is fast there.
 * Ownership: *out is the caller's, for pd_socket_close.
 * Errors: PD_EINVALID (no host:port), PD_ECONNECTION (no such host, refused at once). */
PD_MUST_CHECK
enum pd_status pd_socket_open(int *out, const char *address, uint32_t address_index,
                              uint32_t *address_count, struct pd_error *error);

/* How a connect that was begun has ended, once the socket is writable.
 * Errors: PD_ECONNECTION says why. */
PD_MUST_CHECK
enum pd_status pd_socket_connected(int socket, struct pd_error *error);

/* Send or receive what goes without waiting; *byte_count is 0 when nothing does.
 * Errors: PD_ECONNECTION when the connection is lost; an end of the stream is one. */
PD_MUST_CHECK
enum pd_status pd_socket_send(int socket, struct iovec *pieces, size_t piece_count,
                              size_t *byte_count, struct pd_error *error);
PD_MUST_CHECK
enum pd_status pd_socket_receive(int socket, struct iovec *pieces, size_t piece_count,
                                 size_t *byte_count, struct pd_error *error);

/* Whether the peer of a connected socket has the same address, and is so on this host. */
bool pd_socket_is_local(int fd);

/* Send no more; what the peer has said can still be received, and its end. */
void pd_socket_shut(int fd);

/* Close it in good order, or as the death of the process would: what has not been sent is thrown
 * away, and the peer is told at once. -1 is allowed. */
void pd_socket_close(int fd);
void pd_socket_abort(int fd);

#endif
