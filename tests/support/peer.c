#include "tests/support/peer.h"

#include "common/cursor.h"
#include "common/heap.h"
#include "tests/support/process.h"

#include <check.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct peer {
    int fd;
    struct pd_frame_reader *reader;
    void *payload;
    size_t payload_bytes;
};

/* ---- Connection ---- */

static int open_socket(const char *address, bool narrow)
{
    char host[PD_ADDRESS_BYTES_MAX + 1];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;

    snprintf(host, sizeof host, "%s", address);
    char *colon = strrchr(host, ':');
    ck_assert_msg(colon != NULL, "address '%s'", address);
    *colon = '\0';
    ck_assert_msg(getaddrinfo(host, colon + 1, &hints, &found) == 0, "address '%s'", address);
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(fd, 0);
    if (narrow) {
        int least = 1;
        ck_assert_int_eq(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &least, sizeof least), 0);
    }
    ck_assert_msg(connect(fd, found->ai_addr, found->ai_addrlen) == 0, "connect to %s: %s", address,
                  strerror(errno));
    freeaddrinfo(found);
    return fd;
}

static struct peer *connect_to(const char *address, bool narrow)
{
    struct peer *peer = calloc(1, sizeof *peer);
    struct pd_error error = {0};

    ck_assert_ptr_nonnull(peer);
    peer->fd = open_socket(address, narrow);
    ck_assert_msg(pd_frame_reader_create(&peer->reader, &error) == PD_OK, "%s", error.message);
    return peer;
}

struct peer *peer_connect(const char *address)
{
    return connect_to(address, false);
}

struct peer *peer_connect_narrow(const char *address)
{
    return connect_to(address, true);
}

void peer_close(struct peer *peer)
{
    if (peer == NULL) {
        return;
    }
    close(peer->fd);
    pd_frame_reader_destroy(peer->reader);
    free(peer->payload);
    free(peer);
}

void peer_reset(struct peer *peer)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};

    ck_assert_int_eq(setsockopt(peer->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    peer_close(peer);
}

int peer_fd(const struct peer *peer)
{
    return peer->fd;
}

static void await_socket(const struct peer *peer, short events, const char *what)
{
    struct pollfd socket = {.fd = peer->fd, .events = events};
    int64_t deadline_ms = process_now_ms() + PROCESS_DEADLINE_MS;

    for (;;) {
        int64_t left_ms = deadline_ms - process_now_ms();
        ck_assert_msg(left_ms > 0, "the daemon does not let a peer %s", what);
        if (poll(&socket, 1, (int)left_ms) > 0) {
            return;
        }
    }
}

/* ---- Saying ---- */

/* A connection the daemon has closed meanwhile takes nothing more: what it said before is still to
 * be read, so that is no failure here. */
void peer_send_bytes(struct peer *peer, const void *bytes, size_t byte_count)
{
    const char *next = bytes;

    while (byte_count > 0) {
        await_socket(peer, POLLOUT, "write");
        ssize_t sent = send(peer->fd, next, byte_count, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
            continue;
        }
        if (sent < 0) {
            ck_assert_msg(errno == EPIPE || errno == ECONNRESET, "send: %s", strerror(errno));
            return;
        }
        next += sent;
        byte_count -= (size_t)sent;
    }
}

/* Send prefix, header and payload; returns the checksum of the latter two. */
static uint64_t send_frame(struct peer *peer, const struct pd_message *message, uint32_t flags,
                           const void *payload, size_t payload_bytes)
{
    struct pd_error error = {0};
    uint8_t *head;
    size_t head_bytes;

    ck_assert_msg(pd_frame_encode(&head, &head_bytes, message, flags, payload_bytes, &error) ==
                      PD_OK,
                  "%s", error.message);
    uint64_t sum =
        pd_checksum_add(PD_CHECKSUM_EMPTY, head + PD_PREFIX_BYTES, head_bytes - PD_PREFIX_BYTES);
    peer_send_bytes(peer, head, head_bytes);
    if (payload != NULL) {
        sum = pd_checksum_add(sum, payload, payload_bytes);
        peer_send_bytes(peer, payload, payload_bytes);
    }
    pd_heap_free(head);
    return sum;
}

void peer_send(struct peer *peer, const struct pd_message *message, const void *payload,
               size_t payload_bytes)
{
    (void)send_frame(peer, message, 0, payload, payload_bytes);
}

void peer_send_summed(struct peer *peer, const struct pd_message *message, const void *payload,
                      size_t payload_bytes, uint64_t damage)
{
    uint8_t bytes[PD_CHECKSUM_BYTES];
    struct pd_write_cursor cursor;
    uint64_t sum = send_frame(peer, message, PD_FRAME_FLAG_CHECKSUM, payload, payload_bytes);

    pd_write_cursor_init(&cursor, bytes, sizeof bytes);
    pd_cursor_write_u64(&cursor, sum ^ damage);
    peer_send_bytes(peer, bytes, sizeof bytes);
}

void peer_send_head(struct peer *peer, const struct pd_message *message, uint64_t payload_bytes)
{
    (void)send_frame(peer, message, 0, NULL, payload_bytes);
}

void peer_send_prefix(struct peer *peer, const char magic[4], uint16_t version, uint16_t kind,
                      uint32_t header_bytes, uint32_t flags, uint64_t payload_bytes)
{
    uint8_t bytes[PD_PREFIX_BYTES];
    struct pd_write_cursor cursor;

    pd_write_cursor_init(&cursor, bytes, sizeof bytes);
    pd_cursor_write_bytes(&cursor, magic, 4);
    pd_cursor_write_u16(&cursor, version);
    pd_cursor_write_u16(&cursor, kind);
    pd_cursor_write_u32(&cursor, header_bytes);
    pd_cursor_write_u32(&cursor, flags);
    pd_cursor_write_u64(&cursor, payload_bytes);
    peer_send_bytes(peer, bytes, sizeof bytes);
}

void peer_shut(struct peer *peer)
{
    ck_assert_int_eq(shutdown(peer->fd, SHUT_WR), 0);
}

/* ---- Hearing ---- */

static void make_room(struct peer *peer)
{
    peer->payload_bytes = (size_t)pd_frame_reader_payload_bytes(peer->reader);
    free(peer->payload);
    peer->payload = malloc(peer->payload_bytes + 1);
    ck_assert_ptr_nonnull(peer->payload);
    ((char *)peer->payload)[peer->payload_bytes] = '\0';
    if (peer->payload_bytes > 0) {
        pd_frame_reader_place(peer->reader, peer->payload, peer->payload_bytes);
    }
}

/* Read once; false at the end of the stream. */
static bool fill(struct peer *peer)
{
    struct iovec pieces[PD_FRAME_PIECE_COUNT_MAX];
    size_t piece_count = pd_frame_reader_gather(peer->reader, pieces);

    ck_assert_uint_gt(piece_count, 0);
    await_socket(peer, POLLIN, "read");
    ssize_t count = readv(peer->fd, pieces, (int)piece_count);
    if (count < 0) {
        ck_assert_msg(errno == ECONNRESET, "readv: %s", strerror(errno));
    }
    if (count <= 0) {
        return false;
    }
    pd_frame_reader_filled(peer->reader, (size_t)count);
    return true;
}

const struct pd_message *peer_receive(struct peer *peer)
{
    struct pd_error error = {0};

    for (;;) {
        switch (pd_frame_reader_next(peer->reader, &error)) {
        case PD_FRAME_MORE:
            if (!fill(peer)) {
                return NULL;
            }
            break;
        case PD_FRAME_MESSAGE:
            make_room(peer);
            if (peer->payload_bytes == 0) {
                return pd_frame_reader_message(peer->reader);
            }
            break;
        case PD_FRAME_PAYLOAD:
            ck_assert(pd_frame_reader_checksum_ok(peer->reader));
            return pd_frame_reader_message(peer->reader);
        case PD_FRAME_FAILED:
            ck_abort_msg("from the daemon: %s", error.message);
        }
    }
}

const void *peer_payload(const struct peer *peer)
{
    return peer->payload;
}

size_t peer_payload_bytes(const struct peer *peer)
{
    return peer->payload_bytes;
}

const struct pd_message *peer_expect(struct peer *peer, enum pd_message_kind kind)
{
    const struct pd_message *message = peer_receive(peer);

    ck_assert_msg(message != NULL, "closed instead of %s", pd_message_kind_name(kind));
    ck_assert_msg(message->kind == kind, "%s instead of %s%s%s",
                  pd_message_kind_name(message->kind), pd_message_kind_name(kind),
                  message->kind == PD_MESSAGE_ERROR ? ": " : "",
                  message->kind == PD_MESSAGE_ERROR ? message->error.text : "");
    return message;
}

void peer_expect_error(struct peer *peer, enum pd_status status, bool fatal, const char *text)
{
    const struct pd_message *message = peer_expect(peer, PD_MESSAGE_ERROR);

    ck_assert_msg(strstr(message->error.text, text) != NULL, "'%s' does not say '%s'",
                  message->error.text, text);
    ck_assert_msg(strchr(message->error.text, '\n') == NULL, "'%s' is not one line",
                  message->error.text);
    ck_assert_msg(message->error.status == (uint32_t)status, "status %u, not %d: %s",
                  message->error.status, (int)status, message->error.text);
    ck_assert_msg(message->error.fatal == fatal, "fatal is %d: %s", (int)message->error.fatal,
                  message->error.text);
}

void peer_expect_fatal(struct peer *peer, enum pd_status status, const char *text)
{
    peer_expect_error(peer, status, true, text);
    peer_expect_closed(peer);
}

void peer_expect_closed(struct peer *peer)
{
    const struct pd_message *message = peer_receive(peer);

    ck_assert_msg(message == NULL, "%s instead of the end of the connection",
                  pd_message_kind_name(message->kind));
}

/* ---- Conversations ---- */

static const struct pd_welcome *greet(struct peer *peer, const struct pd_message *hello)
{
    peer_send(peer, hello, NULL, 0);
    return &peer_expect(peer, PD_MESSAGE_WELCOME)->welcome;
}

const struct pd_welcome *peer_hello(struct peer *peer)
{
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO, .hello = {.client = "test peer"}};
    return greet(peer, &hello);
}

const struct pd_welcome *peer_resume(struct peer *peer, const struct pd_joined *joined,
                                     uint64_t run_id)
{
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO,
                               .hello = {.client = "test peer",
                                         .has_worker_id = true,
                                         .worker_id = joined->worker_id,
                                         .token = joined->token,
                                         .run_id = run_id}};
    return greet(peer, &hello);
}

struct pd_joined peer_join(struct peer *peer, const char *name, uint64_t *run_id)
{
    struct pd_message join = {.kind = PD_MESSAGE_JOIN};
    const struct pd_welcome *welcome = peer_hello(peer);

    if (run_id != NULL) {
        *run_id = welcome->run_id;
    }
    snprintf(join.join.name, sizeof join.join.name, "%s", name);
    peer_send(peer, &join, NULL, 0);
    return peer_expect(peer, PD_MESSAGE_JOINED)->joined;
}

static void connect_lanes(struct peer_worker *worker)
{
    for (uint32_t i = 0; i < worker->registered.lane_count; i++) {
        const struct pd_lane *lane = &worker->registered.lanes[i];
        if (lane->element_count == 0) {
            continue;
        }
        if (lane->rank == 0) {
            worker->lanes[i] = worker->leader;
            continue;
        }
        worker->lanes[i] = peer_connect(lane->address);
        (void)peer_resume(worker->lanes[i], &worker->joined, worker->run_id);
    }
}

static void supply_values(struct peer_worker *worker, const float *values)
{
    for (uint32_t i = 0; i < worker->registered.lane_count; i++) {
        const struct pd_lane *lane = &worker->registered.lanes[i];
        struct pd_message message = {
            .kind = PD_MESSAGE_VALUES,
            .values = {.element_begin = lane->element_begin, .element_count = lane->element_count}};
        if (worker->lanes[i] == NULL) {
            continue;
        }
        peer_send(worker->lanes[i], &message, values + lane->element_begin,
                  (size_t)lane->element_count * sizeof *values);
        (void)peer_expect(worker->lanes[i], PD_MESSAGE_VALUES_STORED);
    }
}

/* Pull once on each lane, which waits for the first version. */
static void await_parameters(struct peer_worker *worker)
{
    struct pd_message pull = {.kind = PD_MESSAGE_PULL};

    for (uint32_t i = 0; i < worker->registered.lane_count; i++) {
        if (worker->lanes[i] != NULL) {
            peer_send(worker->lanes[i], &pull, NULL, 0);
            (void)peer_expect(worker->lanes[i], PD_MESSAGE_PULLED);
        }
    }
}

void peer_worker_init(struct peer_worker *worker, const char *address, const char *name,
                      const struct pd_tensor_list *model, const float *values)
{
    struct pd_message message = {.kind = PD_MESSAGE_REGISTER};

    memset(worker, 0, sizeof *worker);
    worker->leader = peer_connect(address);
    worker->joined = peer_join(worker->leader, name, &worker->run_id);
    message.registration.tensors = *model;
    peer_send(worker->leader, &message, NULL, 0);
    worker->registered = peer_expect(worker->leader, PD_MESSAGE_REGISTERED)->registered;
    connect_lanes(worker);
    if (worker->registered.values_needed) {
        supply_values(worker, values);
    }
    await_parameters(worker);
}

void peer_worker_finish(struct peer_worker *worker)
{
    for (uint32_t i = 0; i < worker->registered.lane_count; i++) {
        if (worker->lanes[i] != worker->leader) {
            peer_close(worker->lanes[i]);
        }
    }
    peer_close(worker->leader);
    memset(worker, 0, sizeof *worker);
}

struct pd_message peer_worker_push_message(const struct peer_worker *worker, uint32_t lane,
                                           uint64_t step, uint64_t samples)
{
    struct pd_message message = {
        .kind = PD_MESSAGE_PUSH,
        .push = {.step = step,
                 .last = true,
                 .samples = samples,
                 .element_begin = worker->registered.lanes[lane].element_begin,
                 .element_count = worker->registered.lanes[lane].element_count},
    };
    return message;
}

void peer_worker_push(struct peer_worker *worker, uint64_t step, uint64_t samples,
                      const float *gradient, bool pull)
{
    for (uint32_t i = 0; i < worker->registered.lane_count; i++) {
        const struct pd_lane *lane = &worker->registered.lanes[i];
        struct pd_message message = peer_worker_push_message(worker, i, step, samples);
        message.push.pull = pull;
        if (worker->lanes[i] != NULL) {
            peer_send(worker->lanes[i], &message, gradient + lane->element_begin,
                      (size_t)lane->element_count * sizeof *gradient);
        }
    }
}
