#include "tests/bench/limit.h"

#include "common/heap.h"
#include "common/kernel.h"
#include "tests/bench/loopback.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* What is read, summed, stepped and sent at a time: fits the second-level cache with the parameters
 * and the state beside it. */
#define BLOCK_ELEMENTS 65536u
#define BLOCK_BYTES (BLOCK_ELEMENTS * sizeof(float))
/* Blocks a worker may be ahead of the slowest. */
#define STAGED_BLOCKS 2u
/* No wait of a step takes longer, unless somebody is gone. */
#define WAIT_MS 30000

/* ---- Sockets ---- */

static enum pd_status socket_fault(struct pd_error *error, const char *call)
{
    return pd_error_set(error, PD_ECONNECTION, "limit: %s: %s", call, strerror(errno));
}

enum pd_status limit_servers_listen(struct limit_servers *servers, enum bench_limit kind,
                                    uint32_t worker_count, uint64_t element_count,
                                    struct pd_error *error)
{
    enum pd_status status = PD_OK;

    *servers = (struct limit_servers){
        .kind = kind,
        .count = kind == BENCH_LIMIT_PAIR ? 2 : (kind == BENCH_LIMIT_ECHO ? 1 : 0),
        .worker_count = worker_count,
        .element_count = element_count,
    };
    for (uint32_t i = 0; i < servers->count && status == PD_OK; i++) {
        status = loopback_listen(&servers->listening[i], &servers->ports[i], error);
    }
    return status;
}

/* First element of server `index`. */
static uint64_t part_begin(const struct limit_servers *servers, uint32_t index)
{
    return servers->element_count * index / servers->count;
}

/* Bytes a call moved; 0 when there is nothing to do now. A peer that is gone is a fault. */
static enum pd_status moved(ssize_t result, const char *call, uint64_t *bytes,
                            struct pd_error *error)
{
    *bytes = result > 0 ? (uint64_t)result : 0;
    if (result > 0 || (result < 0 && (errno == EAGAIN || errno == EINTR))) {
        return PD_OK;
    }
    if (result == 0) {
        return pd_error_set(error, PD_ECONNECTION, "limit: the connection was closed");
    }
    return socket_fault(error, call);
}

static enum pd_status wait_for_any(struct pollfd *polls, uint32_t count, struct pd_error *error)
{
    int found = poll(polls, count, WAIT_MS);

    if (found > 0 || (found < 0 && errno == EINTR)) {
        return PD_OK;
    }
    return found == 0
               ? pd_error_set(error, PD_ETIMEOUT, "limit: nothing came within %d s", WAIT_MS / 1000)
               : socket_fault(error, "poll");
}

/* ---- Server ---- */

/* One worker's connection within one step. */
struct peer {
    int fd;
    char *staged;      /* STAGED_BLOCKS blocks, one after the other */
    uint64_t received; /* bytes */
    uint64_t sent;
};

struct server {
    enum bench_limit kind;
    uint32_t peer_count;
    struct peer *peers;
    struct pollfd *polls;
    float *parameters, *m, *v;
    uint64_t byte_count; /* of the parameters */
    uint64_t stepped;    /* bytes of them that are new */
    uint64_t step;
};

PD_KERNEL
static void add(float *restrict sum, const float *restrict from, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        sum[i] += from[i];
    }
}

struct scalars {
    float scale, kept, beta1, beta2, one_minus_beta1, one_minus_beta2;
    float step_size, root_unbiasing, eps;
};

/* AdamW, in place. */
PD_KERNEL
static void take_step(float *restrict p, const float *restrict grad, float *restrict m,
                      float *restrict v, uint32_t count, struct scalars c)
{
    for (uint32_t i = 0; i < count; i++) {
        float g = grad[i] * c.scale;
        m[i] = c.beta1 * m[i] + c.one_minus_beta1 * g;
        v[i] = c.beta2 * v[i] + c.one_minus_beta2 * g * g;
        p[i] = c.kept * p[i] - c.step_size * (m[i] / (sqrtf(v[i]) * c.root_unbiasing + c.eps));
    }
}

static struct scalars scalars_of(const struct server *server)
{
    double number = (double)server->step + 1;
    return (struct scalars){
        .scale = 1.0f / (float)server->peer_count,
        .kept = (float)(1 - 1e-3 * 0.01),
        .beta1 = 0.9f,
        .beta2 = 0.999f,
        .one_minus_beta1 = 0.1f,
        .one_minus_beta2 = 0.001f,
        .step_size = (float)(1e-3 / (1 - pow(0.9, number))),
        .root_unbiasing = (float)(1 / sqrt(1 - pow(0.999, number))),
        .eps = 1e-8f,
    };
}

static float *staged_at(const struct peer *peer, uint64_t offset)
{
    return (float *)(peer->staged + offset % (STAGED_BLOCKS * BLOCK_BYTES));
}

/* Where the block that begins at `begin` ends, in bytes. */
static uint64_t block_end(const struct server *server, uint64_t begin)
{
    uint64_t left = server->byte_count - begin;
    return begin + (left < BLOCK_BYTES ? left : BLOCK_BYTES);
}

/* Take the step of the next block, once every worker's part of it is there. */
static bool step_block(struct server *server)
{
    uint64_t begin = server->stepped;
    uint64_t end = block_end(server, begin);
    uint32_t count = (uint32_t)((end - begin) / sizeof(float));
    uint64_t element = begin / sizeof(float);

    if (begin == server->byte_count) {
        return false;
    }
    for (uint32_t i = 0; i < server->peer_count; i++) {
        if (server->peers[i].received < end) {
            return false;
        }
    }
    float *sum = staged_at(&server->peers[0], begin);
    if (server->kind == BENCH_LIMIT_ECHO) {
        memcpy(server->parameters + element, sum, end - begin);
    } else {
        for (uint32_t i = 1; i < server->peer_count; i++) {
            add(sum, staged_at(&server->peers[i], begin), count);
        }
        take_step(server->parameters + element, sum, server->m + element, server->v + element,
                  count, scalars_of(server));
    }
    server->stepped = end;
    return true;
}

/* Bytes a worker may have sent by now. */
static uint64_t receivable(const struct server *server)
{
    uint64_t end = server->stepped + STAGED_BLOCKS * BLOCK_BYTES;
    return end < server->byte_count ? end : server->byte_count;
}

static enum pd_status receive(struct server *server, struct peer *peer, struct pd_error *error)
{
    uint64_t in_slot = BLOCK_BYTES - peer->received % BLOCK_BYTES;
    uint64_t left = receivable(server) - peer->received;
    uint64_t bytes = left < in_slot ? left : in_slot;

    if (bytes == 0) {
        return PD_OK;
    }
    enum pd_status status =
        moved(recv(peer->fd, staged_at(peer, peer->received), bytes, 0), "recv", &bytes, error);
    peer->received += bytes;
    return status;
}

static enum pd_status send_some(struct server *server, struct peer *peer, struct pd_error *error)
{
    uint64_t bytes = server->stepped - peer->sent;

    if (bytes == 0) {
        return PD_OK;
    }
    const char *from = (const char *)server->parameters + peer->sent;
    enum pd_status status = moved(send(peer->fd, from, bytes, MSG_NOSIGNAL), "send", &bytes, error);
    peer->sent += bytes;
    return status;
}

static enum pd_status serve_peers(struct server *server, struct pd_error *error)
{
    enum pd_status status = PD_OK;

    for (uint32_t i = 0; i < server->peer_count && status == PD_OK; i++) {
        if ((server->polls[i].revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
            status = receive(server, &server->peers[i], error);
        }
    }
    while (status == PD_OK && step_block(server)) {
        for (uint32_t i = 0; i < server->peer_count && status == PD_OK; i++) {
            status = send_some(server, &server->peers[i], error);
        }
    }
    for (uint32_t i = 0; i < server->peer_count && status == PD_OK; i++) {
        if ((server->polls[i].revents & POLLOUT) != 0) {
            status = send_some(server, &server->peers[i], error);
        }
    }
    return status;
}

/* What to wait for; false once every worker has everything. */
static bool set_polls(struct server *server)
{
    bool any = false;

    for (uint32_t i = 0; i < server->peer_count; i++) {
        const struct peer *peer = &server->peers[i];
        bool readable = peer->received < receivable(server);
        bool writable = peer->sent < server->stepped;
        server->polls[i].events = (short)((readable ? POLLIN : 0) | (writable ? POLLOUT : 0));
        any = any || peer->sent < server->byte_count;
    }
    return any;
}

static enum pd_status serve_step(struct server *server, struct pd_error *error)
{
    enum pd_status status = PD_OK;

    server->stepped = 0;
    for (uint32_t i = 0; i < server->peer_count; i++) {
        server->peers[i].received = 0;
        server->peers[i].sent = 0;
    }
    while (status == PD_OK && set_polls(server)) {
        /* Between steps a server waits as long as its workers want. */
        int found = poll(server->polls, server->peer_count, -1);
        status =
            found < 0 && errno != EINTR ? socket_fault(error, "poll") : serve_peers(server, error);
    }
    server->step++;
    return status;
}

static enum pd_status accept_peers(struct server *server, int listening, struct pd_error *error)
{
    for (uint32_t i = 0; i < server->peer_count; i++) {
        struct pollfd waiting = {.fd = listening, .events = POLLIN};
        enum pd_status status = wait_for_any(&waiting, 1, error);
        if (status != PD_OK) {
            return status;
        }
        int fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            return socket_fault(error, "accept");
        }
        loopback_tune(fd);
        server->peers[i].fd = fd;
        server->polls[i].fd = fd;
    }
    return PD_OK;
}

/* Memory is written once, so that no step meets a page that is not there. */
static float *touched(uint64_t element_count)
{
    float *elements = pd_heap_zalloc(element_count, sizeof *elements);

    if (elements != NULL) {
        memset(elements, 0, element_count * sizeof *elements);
    }
    return elements;
}

static bool allocate(struct server *server, uint64_t element_count)
{
    server->parameters = touched(element_count);
    server->m = touched(element_count);
    server->v = touched(element_count);
    server->peers = pd_heap_zalloc(server->peer_count, sizeof *server->peers);
    server->polls = pd_heap_zalloc(server->peer_count, sizeof *server->polls);
    bool whole = server->parameters != NULL && server->m != NULL && server->v != NULL &&
                 server->peers != NULL && server->polls != NULL;
    for (uint32_t i = 0; whole && i < server->peer_count; i++) {
        server->peers[i].staged = (char *)touched(STAGED_BLOCKS * BLOCK_ELEMENTS);
        whole = server->peers[i].staged != NULL;
    }
    return whole;
}

enum pd_status limit_serve(const struct limit_servers *servers, uint32_t index,
                           struct pd_error *error)
{
    uint64_t element_count = part_begin(servers, index + 1) - part_begin(servers, index);
    struct server server = {
        .kind = servers->kind,
        .peer_count = servers->worker_count,
        .byte_count = element_count * sizeof(float),
    };

    if (!allocate(&server, element_count)) {
        return pd_error_set(error, PD_ENOMEM, "limit: %" PRIu64 " parameters", element_count);
    }
    enum pd_status status = accept_peers(&server, servers->listening[index], error);
    while (status == PD_OK) {
        status = serve_step(&server, error);
    }
    return status;
}

/* ---- Client ---- */

struct lane {
    int fd;
    const char *gradient;
    char *values;
    uint64_t byte_count;
    uint64_t sent;
    uint64_t received;
};

struct limit_client {
    uint32_t lane_count;
    struct lane lanes[LIMIT_SERVER_COUNT_MAX];
};

enum pd_status limit_client_create(struct limit_client **out, const struct limit_servers *servers,
                                   const float *gradient, float *values, struct pd_error *error)
{
    enum pd_status status = PD_OK;
    struct limit_client *client = pd_heap_zalloc(1, sizeof *client);

    *out = client;
    if (client == NULL) {
        return pd_error_set(error, PD_ENOMEM, "limit: out of memory");
    }
    for (uint32_t i = 0; i < servers->count && status == PD_OK; i++) {
        struct lane *lane = &client->lanes[client->lane_count++];
        uint64_t begin = part_begin(servers, i);
        lane->gradient = (const char *)(gradient + begin);
        lane->values = (char *)(values + begin);
        lane->byte_count = (part_begin(servers, i + 1) - begin) * sizeof(float);
        status = loopback_connect(&lane->fd, servers->ports[i], error);
    }
    return status;
}

void limit_client_destroy(struct limit_client *client)
{
    if (client == NULL) {
        return;
    }
    for (uint32_t i = 0; i < client->lane_count; i++) {
        close(client->lanes[i].fd);
    }
    pd_heap_free(client);
}

static uint64_t at_most(uint64_t bytes, uint64_t bound)
{
    return bytes < bound ? bytes : bound;
}

/* Move what can be moved now, both ways. */
static enum pd_status move(struct lane *lane, short events, struct pd_error *error)
{
    enum pd_status status = PD_OK;
    uint64_t bytes = at_most(lane->byte_count - lane->received, BLOCK_BYTES);

    if ((events & (POLLIN | POLLHUP | POLLERR)) != 0 && bytes > 0) {
        status = moved(recv(lane->fd, lane->values + lane->received, bytes, MSG_DONTWAIT), "recv",
                       &bytes, error);
        lane->received += bytes;
    }
    bytes = at_most(lane->byte_count - lane->sent, BLOCK_BYTES);
    if ((events & POLLOUT) != 0 && bytes > 0 && status == PD_OK) {
        status =
            moved(send(lane->fd, lane->gradient + lane->sent, bytes, MSG_DONTWAIT | MSG_NOSIGNAL),
                  "send", &bytes, error);
        lane->sent += bytes;
    }
    return status;
}

/* Move all of these lanes. */
static enum pd_status exchange(struct lane *lanes, uint32_t count, struct pd_error *error)
{
    struct pollfd polls[LIMIT_SERVER_COUNT_MAX];
    enum pd_status status = PD_OK;
    bool any = true;

    for (uint32_t i = 0; i < count; i++) {
        lanes[i].sent = 0;
        lanes[i].received = 0;
        polls[i] = (struct pollfd){.fd = lanes[i].fd, .revents = POLLOUT};
    }
    while (status == PD_OK) {
        any = false;
        for (uint32_t i = 0; i < count && status == PD_OK; i++) {
            status = move(&lanes[i], polls[i].revents, error);
            bool sent = lanes[i].sent == lanes[i].byte_count;
            bool received = lanes[i].received == lanes[i].byte_count;
            polls[i].events = (short)((sent ? 0 : POLLOUT) | (received ? 0 : POLLIN));
            any = any || !sent || !received;
        }
        if (!any || status != PD_OK) {
            break;
        }
        status = wait_for_any(polls, count, error);
    }
    return status;
}

enum pd_status limit_client_step(struct limit_client *client, struct pd_error *error)
{
    return exchange(client->lanes, client->lane_count, error);
}
