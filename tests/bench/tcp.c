#include "tests/bench/tcp.h"

#include "common/heap.h"
#include "tests/bench/child.h"
#include "tests/bench/loopback.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

/* At most so much at a time: what is copied stays in cache. */
#define PIECE_BYTES (256u * 1024u)
#define WAIT_S 30

/* Before the bytes of an exchange. */
struct wish {
    uint64_t sent;
    uint64_t returned;
};

static bool send_all(int fd, const char *bytes, uint64_t count)
{
    while (count > 0) {
        ssize_t sent = send(fd, bytes, count < PIECE_BYTES ? count : PIECE_BYTES, MSG_NOSIGNAL);
        if (sent <= 0) {
            return false;
        }
        bytes += sent;
        count -= (uint64_t)sent;
    }
    return true;
}

static bool receive_all(int fd, char *bytes, uint64_t count)
{
    while (count > 0) {
        ssize_t received = recv(fd, bytes, count < PIECE_BYTES ? count : PIECE_BYTES, 0);
        if (received <= 0) {
            return false;
        }
        bytes += received;
        count -= (uint64_t)received;
    }
    return true;
}

/* The far end, until the near one closes. */
static _Noreturn void answer(int listening, char *buffer)
{
    struct wish wish;
    int fd = accept(listening, NULL, NULL);

    if (fd >= 0) {
        loopback_tune(fd);
    }
    while (fd >= 0 && receive_all(fd, (char *)&wish, sizeof wish) &&
           receive_all(fd, buffer, wish.sent) && send_all(fd, buffer, wish.returned)) {
    }
    _exit(0);
}

enum pd_status tcp_start(struct tcp *tcp, uint64_t byte_count_max, struct pd_error *error)
{
    const struct timeval patience = {.tv_sec = WAIT_S};
    int listening = -1;
    uint16_t port = 0;

    *tcp = (struct tcp){.fd = -1, .buffer_bytes = byte_count_max};
    tcp->buffer = pd_heap_zalloc(byte_count_max, 1);
    if (tcp->buffer == NULL) {
        return pd_error_set(error, PD_ENOMEM, "tcp: no memory for %" PRIu64 " bytes",
                            byte_count_max);
    }
    memset(tcp->buffer, 1, byte_count_max);
    enum pd_status status = loopback_listen(&listening, &port, error);
    if (status == PD_OK) {
        status = child_fork(&tcp->pid, error);
    }
    if (status == PD_OK && tcp->pid == 0) {
        memset(tcp->buffer, 2, byte_count_max); /* pages of its own */
        answer(listening, tcp->buffer);
    }
    if (status == PD_OK) {
        status = loopback_connect(&tcp->fd, port, error);
    }
    if (status == PD_OK) {
        (void)setsockopt(tcp->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        (void)setsockopt(tcp->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    }
    if (listening >= 0) {
        close(listening);
    }
    return status;
}

void tcp_stop(struct tcp *tcp)
{
    if (tcp->fd >= 0) {
        close(tcp->fd);
    }
    if (tcp->pid > 0) {
        child_kill(tcp->pid);
    }
    pd_heap_free(tcp->buffer);
}

enum pd_status tcp_exchange(struct tcp *tcp, uint64_t sent, uint64_t returned, double *ms,
                            struct pd_error *error)
{
    const struct wish wish = {.sent = sent, .returned = returned};
    int64_t began_ns = child_now_ns();

    if (!send_all(tcp->fd, (const char *)&wish, sizeof wish) ||
        !send_all(tcp->fd, tcp->buffer, sent) || !receive_all(tcp->fd, tcp->buffer, returned)) {
        return pd_error_set(error, PD_ECONNECTION, "tcp: %s",
                            errno != 0 ? strerror(errno) : "the connection was closed");
    }
    *ms = (double)(child_now_ns() - began_ns) / 1e6;
    return PD_OK;
}
