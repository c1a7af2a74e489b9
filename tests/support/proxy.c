#include "tests/support/proxy.h"

#include "common/cursor.h"

#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define DAEMON_HOST "127.0.0.1"

/* Ports below those the kernel hands out, so that only another proxy may want the same. */
enum { PORT_FIRST = 12000, PORT_COUNT = 18000, PORT_ATTEMPTS = 64 };
enum { CONNECTION_COUNT_MAX = 512, KIND_COUNT = 64, COPY_BYTES = 65536, KIND_RANK_HELLO = 32 };

struct connection;

/* One direction of a connection. Owner: its thread. */
struct flow {
    struct connection *connection;
    bool to_rank;
    int from;
    int to;
    pthread_t thread;
};

struct connection {
    struct proxy *proxy;
    uint32_t rank;
    bool between_ranks; /* under the proxy's lock */
    int peer_fd;
    int rank_fd;
    struct flow flows[2];
};

struct listener {
    struct proxy *proxy;
    uint32_t rank;
    int fd;
    pthread_t thread;
};

struct proxy {
    uint32_t rank_count;
    uint16_t port; /* of rank 0 */
    char listen[64];
    proxy_judge *judge;
    void *context;
    struct listener listeners[PD_RANK_COUNT_MAX];
    pthread_mutex_t lock; /* of everything below, and of calls of `judge` */
    uint32_t connection_count;
    struct connection *connections[CONNECTION_COUNT_MAX];
    uint32_t seen[2][PD_RANK_COUNT_MAX][KIND_COUNT];
    struct proxy_count counts[2][KIND_COUNT];
};

/* ---- Bytes ---- */

static bool read_all(int fd, void *bytes, size_t byte_count)
{
    char *next = bytes;

    while (byte_count > 0) {
        ssize_t count = recv(fd, next, byte_count, 0);
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count <= 0) {
            return false;
        }
        next += count;
        byte_count -= (size_t)count;
    }
    return true;
}

static bool write_all(int fd, const void *bytes, size_t byte_count)
{
    const char *next = bytes;

    while (byte_count > 0) {
        ssize_t count = send(fd, next, byte_count, MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count < 0) {
            return false;
        }
        next += count;
        byte_count -= (size_t)count;
    }
    return true;
}

static bool copy(const struct flow *flow, uint64_t byte_count)
{
    char bytes[COPY_BYTES];

    while (byte_count > 0) {
        size_t part = byte_count < sizeof bytes ? (size_t)byte_count : sizeof bytes;
        if (!read_all(flow->from, bytes, part) || !write_all(flow->to, bytes, part)) {
            return false;
        }
        byte_count -= part;
    }
    return true;
}

/* ---- Frames ---- */

struct prefix {
    uint16_t kind;
    uint64_t rest_bytes; /* behind the prefix */
    uint64_t payload_bytes;
};

static struct prefix read_prefix(const uint8_t bytes[PD_PREFIX_BYTES])
{
    struct pd_read_cursor cursor;
    struct prefix prefix = {0};

    pd_read_cursor_init(&cursor, bytes, PD_PREFIX_BYTES);
    (void)pd_cursor_read_u32(&cursor);
    (void)pd_cursor_read_u16(&cursor);
    prefix.kind = pd_cursor_read_u16(&cursor) % KIND_COUNT;
    uint32_t header_bytes = pd_cursor_read_u32(&cursor);
    bool summed = (pd_cursor_read_u32(&cursor) & 1u) != 0;
    prefix.payload_bytes = pd_cursor_read_u64(&cursor);
    prefix.rest_bytes = header_bytes + prefix.payload_bytes + (summed ? PD_CHECKSUM_BYTES : 0);
    return prefix;
}

static enum proxy_verdict judge(const struct flow *flow, const struct prefix *prefix)
{
    struct proxy *proxy = flow->connection->proxy;
    struct proxy_frame frame = {.rank = flow->connection->rank,
                                .to_rank = flow->to_rank,
                                .kind = (enum pd_message_kind)prefix->kind,
                                .payload_bytes = prefix->payload_bytes};

    enum proxy_verdict verdict = PROXY_PASS;

    pthread_mutex_lock(&proxy->lock);
    if (flow->to_rank && prefix->kind == KIND_RANK_HELLO) {
        flow->connection->between_ranks = true;
    }
    if (!flow->connection->between_ranks) {
        frame.index = proxy->seen[flow->to_rank][frame.rank][prefix->kind]++;
        verdict = proxy->judge != NULL ? proxy->judge(proxy->context, &frame) : PROXY_PASS;
    }
    pthread_mutex_unlock(&proxy->lock);
    return verdict;
}

static void count_frame(const struct flow *flow, const struct prefix *prefix)
{
    struct proxy *proxy = flow->connection->proxy;

    pthread_mutex_lock(&proxy->lock);
    proxy->counts[flow->to_rank][prefix->kind].frames++;
    proxy->counts[flow->to_rank][prefix->kind].payload_bytes += prefix->payload_bytes;
    pthread_mutex_unlock(&proxy->lock);
}

/* Pass on one frame; false when the connection is at its end. */
static bool pass_frame(const struct flow *flow)
{
    uint8_t bytes[PD_PREFIX_BYTES];

    if (!read_all(flow->from, bytes, sizeof bytes)) {
        return false;
    }
    struct prefix prefix = read_prefix(bytes);
    enum proxy_verdict verdict = judge(flow, &prefix);
    if (verdict == PROXY_CUT || !write_all(flow->to, bytes, sizeof bytes)) {
        return false;
    }
    if (verdict == PROXY_CUT_MIDDLE) {
        (void)copy(flow, prefix.rest_bytes / 2);
        return false;
    }
    if (!copy(flow, prefix.rest_bytes)) {
        return false;
    }
    count_frame(flow, &prefix);
    return verdict == PROXY_PASS;
}

static void *run_flow(void *argument)
{
    struct flow *flow = argument;

    while (pass_frame(flow)) {
    }
    (void)shutdown(flow->from, SHUT_RDWR);
    (void)shutdown(flow->to, SHUT_RDWR);
    return NULL;
}

/* ---- Connections ---- */

static int open_socket(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1;

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), 0);
    ck_assert_int_eq(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), 0);
    return fd;
}

static struct sockaddr_in address_of(const char *host, uint32_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};

    ck_assert_int_eq(inet_pton(AF_INET, host, &address.sin_addr), 1);
    return address;
}

static void start_flow(struct connection *connection, bool to_rank)
{
    struct flow *flow = &connection->flows[to_rank];

    flow->connection = connection;
    flow->to_rank = to_rank;
    flow->from = to_rank ? connection->peer_fd : connection->rank_fd;
    flow->to = to_rank ? connection->rank_fd : connection->peer_fd;
    ck_assert_int_eq(pthread_create(&flow->thread, NULL, run_flow, flow), 0);
}

/* Link a peer to its rank; a rank that does not answer is a peer cut off. */
static void adopt(struct listener *listener, int peer_fd)
{
    struct proxy *proxy = listener->proxy;
    struct connection *connection = calloc(1, sizeof *connection);
    struct sockaddr_in rank = address_of(DAEMON_HOST, proxy->port + listener->rank);

    ck_assert_ptr_nonnull(connection);
    connection->proxy = proxy;
    connection->rank = listener->rank;
    connection->peer_fd = peer_fd;
    connection->rank_fd = open_socket();
    if (connect(connection->rank_fd, (struct sockaddr *)&rank, sizeof rank) != 0) {
        close(connection->rank_fd);
        close(peer_fd);
        free(connection);
        return;
    }
    pthread_mutex_lock(&proxy->lock);
    ck_assert_uint_lt(proxy->connection_count, CONNECTION_COUNT_MAX);
    proxy->connections[proxy->connection_count++] = connection;
    start_flow(connection, true);
    start_flow(connection, false);
    pthread_mutex_unlock(&proxy->lock);
}

static void *run_listener(void *argument)
{
    struct listener *listener = argument;

    for (;;) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED)) {
            continue;
        }
        if (fd < 0) {
            return NULL;
        }
        adopt(listener, fd);
    }
}

/* ---- Life ---- */

static int try_bind(const char *host, uint32_t port)
{
    struct sockaddr_in address = address_of(host, port);
    int fd = open_socket();

    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void close_listeners(struct proxy *proxy)
{
    for (uint32_t rank = 0; rank < proxy->rank_count; rank++) {
        if (proxy->listeners[rank].fd >= 0) {
            close(proxy->listeners[rank].fd);
        }
        proxy->listeners[rank].fd = -1;
    }
}

/* Take a run of ports at the proxy's address that is free at the daemon's, too. */
static bool take_ports(struct proxy *proxy, uint32_t port)
{
    for (uint32_t rank = 0; rank < proxy->rank_count; rank++) {
        int probe = try_bind(DAEMON_HOST, port + rank);
        if (probe >= 0) {
            close(probe);
            proxy->listeners[rank].fd = try_bind(PROXY_HOST, port + rank);
        }
        if (proxy->listeners[rank].fd < 0) {
            close_listeners(proxy);
            return false;
        }
    }
    proxy->port = (uint16_t)port;
    return true;
}

struct proxy *proxy_start(uint32_t rank_count, proxy_judge *judge_frame, void *context)
{
    struct proxy *proxy = calloc(1, sizeof *proxy);
    unsigned seed = (unsigned)getpid();

    ck_assert_ptr_nonnull(proxy);
    proxy->rank_count = rank_count;
    proxy->judge = judge_frame;
    proxy->context = context;
    pthread_mutex_init(&proxy->lock, NULL);
    for (uint32_t rank = 0; rank < rank_count; rank++) {
        proxy->listeners[rank] = (struct listener){.proxy = proxy, .rank = rank, .fd = -1};
    }
    for (int attempt = 0; proxy->port == 0; attempt++) {
        ck_assert_int_lt(attempt, PORT_ATTEMPTS);
        (void)take_ports(proxy, PORT_FIRST + (uint32_t)rand_r(&seed) % PORT_COUNT);
    }
    snprintf(proxy->listen, sizeof proxy->listen, "%s:%u", DAEMON_HOST, proxy->port);
    for (uint32_t rank = 0; rank < rank_count; rank++) {
        struct listener *listener = &proxy->listeners[rank];
        ck_assert_int_eq(listen(listener->fd, SOMAXCONN), 0);
        ck_assert_int_eq(pthread_create(&listener->thread, NULL, run_listener, listener), 0);
    }
    return proxy;
}

void proxy_stop(struct proxy *proxy)
{
    for (uint32_t rank = 0; rank < proxy->rank_count; rank++) {
        (void)shutdown(proxy->listeners[rank].fd, SHUT_RDWR);
        ck_assert_int_eq(pthread_join(proxy->listeners[rank].thread, NULL), 0);
    }
    close_listeners(proxy);
    for (uint32_t i = 0; i < proxy->connection_count; i++) {
        struct connection *connection = proxy->connections[i];
        (void)shutdown(connection->peer_fd, SHUT_RDWR);
        (void)shutdown(connection->rank_fd, SHUT_RDWR);
        ck_assert_int_eq(pthread_join(connection->flows[0].thread, NULL), 0);
        ck_assert_int_eq(pthread_join(connection->flows[1].thread, NULL), 0);
        close(connection->peer_fd);
        close(connection->rank_fd);
        free(connection);
    }
    pthread_mutex_destroy(&proxy->lock);
    free(proxy);
}

const char *proxy_listen(const struct proxy *proxy)
{
    return proxy->listen;
}

struct proxy_count proxy_counted(struct proxy *proxy, bool to_rank, enum pd_message_kind kind)
{
    pthread_mutex_lock(&proxy->lock);
    struct proxy_count count = proxy->counts[to_rank][kind];
    pthread_mutex_unlock(&proxy->lock);
    return count;
}

uint32_t proxy_connection_count(struct proxy *proxy)
{
    pthread_mutex_lock(&proxy->lock);
    uint32_t count = proxy->connection_count;
    pthread_mutex_unlock(&proxy->lock);
    return count;
}
