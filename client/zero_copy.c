#include "client/zero_copy.h"

#include "client/socket.h"
#include "common/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A page takes its place in the pipe and in the socket however little of it is sent: pieces that
 * are smaller on average are copied. */
#define PIECE_BYTES_MIN (16u * 1024u)
/* A user who has many pipes gets smaller ones, for which it does not pay. */
#define PIPE_BYTES_MIN (64 * 1024)

void pd_zero_copy_finish(struct pd_zero_copy *zero_copy)
{
    if (zero_copy->open) {
        close(zero_copy->pipe[0]);
        close(zero_copy->pipe[1]);
    }
    memset(zero_copy, 0, sizeof *zero_copy);
}

void pd_zero_copy_reset(struct pd_zero_copy *zero_copy)
{
    if (zero_copy->held > 0) {
        pd_zero_copy_finish(zero_copy);
    }
}

static void refuse(struct pd_zero_copy *zero_copy)
{
    pd_zero_copy_finish(zero_copy);
    zero_copy->refused = true;
}

static void open_pipe(struct pd_zero_copy *zero_copy, int socket)
{
    /* To another host pages may be on their way for longer than the socket knows. */
    zero_copy->open =
        pd_socket_is_local(socket) && pipe2(zero_copy->pipe, O_NONBLOCK | O_CLOEXEC) == 0;
    if (zero_copy->open) {
        /* A piece that begins within a page takes a page more than its bytes fill. */
        if (fcntl(zero_copy->pipe[1], F_SETPIPE_SZ, 2 * (int)PD_READ_BYTES_MAX) < 0) {
            (void)fcntl(zero_copy->pipe[1], F_SETPIPE_SZ, (int)PD_READ_BYTES_MAX);
        }
    }
    if (!zero_copy->open || fcntl(zero_copy->pipe[1], F_GETPIPE_SZ) < PIPE_BYTES_MIN) {
        refuse(zero_copy);
    }
}

static bool pays(const struct iovec *pieces, size_t piece_count)
{
    size_t byte_count = 0;

    for (size_t i = 0; i < piece_count; i++) {
        byte_count += pieces[i].iov_len;
    }
    return byte_count >= piece_count * PIECE_BYTES_MIN;
}

/* Leave out the first `byte_count` bytes of the pieces. */
static void skip(struct iovec **pieces, size_t *piece_count, size_t byte_count)
{
    while (byte_count > 0 && *piece_count > 0) {
        struct iovec *piece = *pieces;
        size_t now = byte_count < piece->iov_len ? byte_count : piece->iov_len;
        piece->iov_base = (char *)piece->iov_base + now;
        piece->iov_len -= now;
        byte_count -= now;
        if (piece->iov_len == 0) {
            (*pieces)++;
            (*piece_count)--;
        }
    }
}

/* Pieces into the pipe, as far as it has room. False when the kernel refuses. */
static bool fill_pipe(struct pd_zero_copy *zero_copy, struct iovec **pieces, size_t *piece_count)
{
    if (*piece_count == 0) {
        return true;
    }
    ssize_t lent = vmsplice(zero_copy->pipe[1], *pieces, *piece_count, SPLICE_F_NONBLOCK);
    if (lent < 0) {
        return errno == EAGAIN || errno == EINTR;
    }
    zero_copy->held += (size_t)lent;
    skip(pieces, piece_count, (size_t)lent);
    return true;
}

/* What the socket takes of the pieces, those in the pipe first. Returns 0, or the errno of a lost
 * connection. */
static int send_pages(struct pd_zero_copy *zero_copy, int socket, struct iovec *pieces,
                      size_t piece_count, size_t *byte_count)
{
    skip(&pieces, &piece_count, zero_copy->held);
    while (piece_count > 0 || zero_copy->held > 0) {
        bool filled = fill_pipe(zero_copy, &pieces, &piece_count);
        if (!filled && zero_copy->held == 0) {
            refuse(zero_copy);
            return 0;
        }
        ssize_t sent =
            splice(zero_copy->pipe[0], NULL, socket, NULL, zero_copy->held, SPLICE_F_NONBLOCK);
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent < 0 && (errno == EINVAL || errno == EPERM || errno == ENOSYS)) {
            refuse(zero_copy);
            return 0;
        }
        if (sent <= 0) {
            return sent == 0 || errno == EAGAIN ? 0 : errno;
        }
        zero_copy->held -= (size_t)sent;
        *byte_count += (size_t)sent;
    }
    return 0;
}

/* As send_pages. splice knows no MSG_NOSIGNAL, and what the program does with SIGPIPE is its own.
 */
static int send_pages_without_signal(struct pd_zero_copy *zero_copy, int socket,
                                     struct iovec *pieces, size_t piece_count, size_t *byte_count)
{
    static const struct timespec at_once = {0};
    sigset_t broken_pipe;
    sigset_t blocked;
    sigset_t pending;

    sigemptyset(&broken_pipe);
    sigaddset(&broken_pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &broken_pipe, &blocked);
    sigpending(&pending);
    int fault = send_pages(zero_copy, socket, pieces, piece_count, byte_count);
    if (fault == EPIPE && sigismember(&pending, SIGPIPE) == 0) {
        (void)sigtimedwait(&broken_pipe, NULL, &at_once);
    }
    pthread_sigmask(SIG_SETMASK, &blocked, NULL);
    return fault;
}

enum pd_status pd_zero_copy_send(struct pd_zero_copy *zero_copy, int socket, struct iovec *pieces,
                                 size_t piece_count, size_t *byte_count, struct pd_error *error)
{
    bool lends = zero_copy->held > 0 || pays(pieces, piece_count);

    if (lends && !zero_copy->open && !zero_copy->refused) {
        open_pipe(zero_copy, socket);
    }
    if (!lends || zero_copy->refused) {
        return pd_socket_send(socket, pieces, piece_count, byte_count, error);
    }
    *byte_count = 0;
    int fault = send_pages_without_signal(zero_copy, socket, pieces, piece_count, byte_count);
    if (fault != 0) {
        return pd_error_set(error, PD_ECONNECTION, "connection lost while sending: %s",
                            strerror(fault));
    }
    return PD_OK;
}
