#include "client/socket.h"

#include "common/assert.h"
#include "common/limits.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

uint64_t pd_clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

uint64_t pd_clock_ms(void)
{
    return pd_clock_ns() / 1000000;
}

static enum pd_status split_address(const char *address, char host[PD_HOST_BYTES_MAX + 1],
                                    const char **port, struct pd_error *error)
{
    const char *colon = strrchr(address, ':');
    const char *begin = address;
    const char *end = colon;

    if (colon != NULL && colon > begin && begin[0] == '[' && colon[-1] == ']') {
        begin++;
        end--;
    }
    if (colon == NULL || end <= begin || (size_t)(end - begin) > PD_HOST_BYTES_MAX ||
        colon[1] == '\0') {
        return pd_error_set(error, PD_EINVALID, "address \"%s\" is not host:port", address);
    }
    memcpy(host, begin, (size_t)(end - begin));
    host[end - begin] = '\0';
    *port = colon + 1;
    return PD_OK;
}

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET) {
        struct sockaddr_in in;
        memcpy(&in, address, sizeof in);
        return ntohl(in.sin_addr.s_addr) >> 24 == 127;
    }
    if (address->sa_family == AF_INET6) {
        struct sockaddr_in6 in6;
        memcpy(&in6, address, sizeof in6);
        return IN6_IS_ADDR_LOOPBACK(&in6.sin6_addr);
    }
    return false;
}

/* Whether what has not been sent when the socket is closed is thrown away, and the peer told at
 * once, or is still sent first. */
static void set_abrupt(int fd, int abrupt)
{
    const struct linger linger = {.l_onoff = abrupt, .l_linger = 0};

    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
}

/* Best effort: a kernel without one of these still gives a working socket. If the process dies in
 * the middle of a payload, a rank that does not read it for the moment hears of it: the end of the
 * stream would wait behind the payload. */
static void tune(int fd, const struct sockaddr *address)
{
    static const char cubic[] = "cubic";
    int one = 1;

    set_abrupt(fd, 1);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (is_loopback(address)) {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, cubic, sizeof cubic - 1);
    }
}

enum pd_status pd_socket_open(int *out, const char *address, uint32_t address_index,
                              uint32_t *address_count, struct pd_error *error)
{
    char host[PD_HOST_BYTES_MAX + 1];
    const char *port = NULL;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;

    *out = -1;
    *address_count = 0;
    enum pd_status status = split_address(address, host, &port, error);
    if (status != PD_OK) {
        return status;
    }
    int lookup = getaddrinfo(host, port, &hints, &found);
    if (lookup != 0) {
        return pd_error_set(error, PD_ECONNECTION, "%s: %s", address, gai_strerror(lookup));
    }
    PD_ASSERT(found != NULL);
    struct addrinfo *chosen = found;
    for (struct addrinfo *each = found; each != NULL; each = each->ai_next) {
        if (*address_count == address_index) {
            chosen = each;
        }
        (*address_count)++;
    }

    int fd = socket(chosen->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        status = pd_error_set(error, PD_ECONNECTION, "%s: socket: %s", address, strerror(errno));
        goto done;
    }
    tune(fd, chosen->ai_addr);
    if (connect(fd, chosen->ai_addr, chosen->ai_addrlen) != 0 && errno != EINPROGRESS &&
        errno != EINTR) {
        status = pd_error_set(error, PD_ECONNECTION, "%s", strerror(errno));
        close(fd);
        goto done;
    }
    *out = fd;

done:
    freeaddrinfo(found);
    return status;
}

enum pd_status pd_socket_connected(int fd, struct pd_error *error)
{
    int fault = 0;
    socklen_t bytes = sizeof fault;

    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &fault, &bytes) != 0) {
        fault = errno;
    }
    if (fault != 0) {
        return pd_error_set(error, PD_ECONNECTION, "%s", strerror(fault));
    }
    return PD_OK;
}

enum pd_status pd_socket_send(int fd, struct iovec *pieces, size_t piece_count, size_t *byte_count,
                              struct pd_error *error)
{
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = piece_count};
    ssize_t sent;

    do {
        sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    *byte_count = sent > 0 ? (size_t)sent : 0;
    if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
        return pd_error_set(error, PD_ECONNECTION, "connection lost while sending: %s",
                            strerror(errno));
    }
    return PD_OK;
}

enum pd_status pd_socket_receive(int fd, struct iovec *pieces, size_t piece_count,
                                 size_t *byte_count, struct pd_error *error)
{
    ssize_t received;

    do {
        received = readv(fd, pieces, (int)piece_count);
    } while (received < 0 && errno == EINTR);
    *byte_count = received > 0 ? (size_t)received : 0;
    if (received == 0) {
        return pd_error_set(error, PD_ECONNECTION, "connection closed by the peer");
    }
    if (received < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
        return pd_error_set(error, PD_ECONNECTION, "connection lost while receiving: %s",
                            strerror(errno));
    }
    return PD_OK;
}

void pd_socket_shut(int fd)
{
    (void)shutdown(fd, SHUT_WR);
}

void pd_socket_close(int fd)
{
    if (fd >= 0) {
        set_abrupt(fd, 0);
        close(fd);
    }
}

/* A process that was forked may hold it open: its end is told all the same. */
void pd_socket_abort(int fd)
{
    const struct sockaddr nobody = {.sa_family = AF_UNSPEC};

    if (fd >= 0) {
        (void)connect(fd, &nobody, sizeof nobody);
        close(fd);
    }
}

/* Whether two addresses of one family are the same but for the port. */
static bool is_same_host(const struct sockaddr_storage *one, const struct sockaddr_storage *other)
{
    if (one->ss_family == AF_INET) {
        return ((const struct sockaddr_in *)one)->sin_addr.s_addr ==
               ((const struct sockaddr_in *)other)->sin_addr.s_addr;
    }
    return memcmp(&((const struct sockaddr_in6 *)one)->sin6_addr,
                  &((const struct sockaddr_in6 *)other)->sin6_addr, sizeof(struct in6_addr)) == 0;
}

bool pd_socket_is_local(int fd)
{
    struct sockaddr_storage near = {0};
    struct sockaddr_storage far = {0};
    socklen_t near_bytes = sizeof near;
    socklen_t far_bytes = sizeof far;

    return getsockname(fd, (struct sockaddr *)&near, &near_bytes) == 0 &&
           getpeername(fd, (struct sockaddr *)&far, &far_bytes) == 0 && is_same_host(&near, &far);
}
