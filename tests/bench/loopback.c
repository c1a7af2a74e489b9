#include "tests/bench/loopback.h"

#include "tests/bench/options.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

static enum pd_status socket_fault(struct pd_error *error, const char *call)
{
    return pd_error_set(error, PD_ECONNECTION, "loopback: %s: %s", call, strerror(errno));
}

void loopback_tune(int fd)
{
    int one = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", strlen("cubic"));
}

static struct sockaddr_in address_of(uint16_t port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

enum pd_status loopback_listen(int *fd, uint16_t *port, struct pd_error *error)
{
    struct sockaddr_in address = address_of(0);
    socklen_t address_bytes = sizeof address;

    *fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*fd < 0) {
        return socket_fault(error, "socket");
    }
    if (bind(*fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(*fd, (int)BENCH_WORKER_COUNT_MAX) != 0 ||
        getsockname(*fd, (struct sockaddr *)&address, &address_bytes) != 0) {
        return socket_fault(error, "listen");
    }
    *port = ntohs(address.sin_port);
    return PD_OK;
}

enum pd_status loopback_connect(int *fd, uint16_t port, struct pd_error *error)
{
    struct sockaddr_in address = address_of(port);

    *fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*fd < 0) {
        return socket_fault(error, "socket");
    }
    loopback_tune(*fd);
    if (connect(*fd, (struct sockaddr *)&address, sizeof address) != 0) {
        return socket_fault(error, "connect");
    }
    return PD_OK;
}
