/* Sending without a copy: the pages of what is sent are lent to the socket, by way of a pipe (see
 * splice(2)), and a peer on this host reads them where they are. To other hosts, where the kernel
 * does not do that, or where pieces are so small that a copy costs less, they are copied.
 * stream -> [zero_copy] -> socket. Shell: system calls alone. Owner: that of the connection. */
#ifndef PD_CLIENT_ZERO_COPY_H
#define PD_CLIENT_ZERO_COPY_H

#include "common/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/uio.h>

/* Of one socket; zeros at first. */
struct pd_zero_copy {
    bool open;    /* there is a pipe */
    bool refused; /* the kernel does not do it */
    int pipe[2];
    size_t held; /* bytes in the pipe: those that the socket takes next */
};

/* Close the pipe. */
void pd_zero_copy_finish(struct pd_zero_copy *zero_copy);
/* The socket is gone, and another takes its place. */
void pd_zero_copy_reset(struct pd_zero_copy *zero_copy);

/* Send what goes without waiting; *byte_count is 0 when nothing does. The next call's pieces begin
 * with the first byte that did not. What has been sent must stay as it is until the peer has
 * answered that it is there, or the socket was aborted: then the rank does not count it.
 * Ownership: `pieces` is used up.
 * Errors: PD_ECONNECTION when the connection is lost. */
PD_MUST_CHECK
enum pd_status pd_zero_copy_send(struct pd_zero_copy *zero_copy, int socket, struct iovec *pieces,
                                 size_t piece_count, size_t *byte_count, struct pd_error *error);

#endif
