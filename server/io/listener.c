#include "server/io/listener.h"

#include "common/heap.h"
#include "server/io/log.h"

#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    BACKLOG = 1024,
    ACCEPT_COUNT_MAX = 64, /* a turn of the loop; the others have theirs too */
    PROBE_COUNT = 3,       /* that a host leaves unanswered before it is taken for gone */
    PROBE_S_MAX = 32767,   /* the kernel's */
};

/* Owner: the loop thread. */
struct pd_listener {
    uv_poll_t poll;
    struct pd_loop *loop;
    int fd;
    bool paused;
};

bool pd_listener_is_wildcard(const char *host)
{
    return strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0 || strcmp(host, "*") == 0;
}

static enum pd_status resolve(struct addrinfo **out, const char *host, uint32_t port,
                              struct pd_error *error)
{
    char service[16];
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    (void)snprintf(service, sizeof service, "%" PRIu32, port);

    if (port > UINT16_MAX) {
        return pd_error_set(error, PD_ECONFIG, "listen: port %" PRIu32 " is over 65535", port);
    }
    int result = getaddrinfo(strcmp(host, "*") == 0 ? "0.0.0.0" : host, service, &hints, out);
    if (result != 0) {
        return pd_error_set(error, PD_ECONFIG, "listen: host %s: %s", host, gai_strerror(result));
    }
    return PD_OK;
}

static enum pd_status bind_and_listen(int fd, const struct addrinfo *address)
{
    const int on = 1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(fd, address->ai_addr, address->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
        return PD_EIO;
    }
    return PD_OK;
}

static uint32_t port_of(int fd)
{
    struct sockaddr_storage address = {0};
    socklen_t address_bytes = sizeof address;
    struct sockaddr_in ip4;
    struct sockaddr_in6 ip6;
    (void)getsockname(fd, (struct sockaddr *)&address, &address_bytes);
    if (address.ss_family == AF_INET) {
        memcpy(&ip4, &address, sizeof ip4);
        return ntohs(ip4.sin_port);
    }
    memcpy(&ip6, &address, sizeof ip6);
    return ntohs(ip6.sin6_port);
}

enum pd_status pd_listener_open(int *fd_out, uint32_t *port_out, const char *host, uint32_t port,
                                struct pd_error *error)
{
    struct addrinfo *address = NULL;
    int fd = -1;
    *fd_out = -1;
    enum pd_status status = resolve(&address, host, port, error);
    if (status != PD_OK) {
        return status;
    }
    fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        status = pd_error_set(error, PD_EIO, "listen: socket: %s", strerror(errno));
        goto done_address;
    }
    status = bind_and_listen(fd, address);
    if (status != PD_OK) {
        status = pd_error_set(error, status, "listen: %s port %" PRIu32 ": %s", host, port,
                              strerror(errno));
        (void)close(fd);
        goto done_address;
    }
    *fd_out = fd;
    *port_out = port_of(fd);

done_address:
    freeaddrinfo(address);
    return status;
}

/* Whether accept failed for want of something that others may give back. */
static bool is_shortage(int error_number)
{
    return error_number == EMFILE || error_number == ENFILE || error_number == ENOBUFS ||
           error_number == ENOMEM;
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct pd_listener *listener = poll->data;
    struct pd_loop *loop = listener->loop;
    (void)events;

    for (int i = 0; status == 0 && i < ACCEPT_COUNT_MAX && !uv_is_closing((uv_handle_t *)poll);
         i++) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            pd_loop_adopt(loop, fd, false);
        } else if (is_shortage(errno)) {
            pd_log("accepting no connections for the moment: %s", strerror(errno));
            listener->paused = true;
            (void)uv_poll_stop(poll);
            break;
        } else if (errno != ECONNABORTED && errno != EINTR) {
            break;
        }
    }
    pd_loop_settle(loop);
}

void pd_listener_tick(struct pd_listener *listener)
{
    if (listener->paused) {
        listener->paused = false;
        (void)uv_poll_start(&listener->poll, UV_READABLE, on_readable);
    }
}

static int probe_s(uint64_t ms)
{
    uint64_t seconds = ms / 1000;

    if (seconds < 1) {
        return 1;
    }
    return seconds < PROBE_S_MAX ? (int)seconds : PROBE_S_MAX;
}

/* Where a peer is not read, no lease tells that its host is gone: probes of the kernel's do, within
 * the lease. What is accepted has this from what listens. Best effort, as all options of sockets.
 */
static void probe_hosts(int fd, uint64_t lease_ms)
{
    const int on = 1;
    const int idle_s = probe_s(lease_ms / 3);
    const int interval_s = probe_s(lease_ms / (2 * PROBE_COUNT));
    const int count = PROBE_COUNT;

    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

enum pd_status pd_listener_create(struct pd_listener **out, struct pd_loop *loop, int fd,
                                  uint64_t lease_ms, struct pd_error *error)
{
    *out = NULL;
    struct pd_listener *listener = pd_heap_zalloc(1, sizeof *listener);
    if (listener == NULL) {
        return pd_error_set(error, PD_ENOMEM, "listener: out of memory");
    }
    listener->loop = loop;
    listener->fd = fd;
    int result = uv_poll_init(pd_loop_uv(loop), &listener->poll, fd);
    if (result != 0) {
        pd_heap_free(listener);
        return pd_error_set(error, PD_EIO, "listener: %s", uv_strerror(result));
    }
    probe_hosts(fd, lease_ms);
    listener->poll.data = listener;
    (void)uv_poll_start(&listener->poll, UV_READABLE, on_readable);
    *out = listener;
    return PD_OK;
}

static void on_closed(uv_handle_t *handle)
{
    pd_heap_free(handle->data);
}

void pd_listener_destroy(struct pd_listener *listener)
{
    if (listener == NULL) {
        return;
    }
    uv_close((uv_handle_t *)&listener->poll, on_closed);
    (void)close(listener->fd);
}
