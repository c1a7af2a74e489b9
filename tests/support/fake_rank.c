#include "tests/support/fake_rank.h"

#include "common/assert.h"
#include "common/heap.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define DEADLINE_MS 20000

static void bind_to_loopback(struct fake_rank *fake, uint32_t rank)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof any;

    memset(fake, 0, sizeof *fake);
    fake->rank = rank;
    fake->run_id = 77;
    fake->lease_ms = 30000;
    fake->socket = -1;
    fake->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    PD_ASSERT(fake->listener >= 0);
    PD_ASSERT(bind(fake->listener, (struct sockaddr *)&any, sizeof any) == 0);
    PD_ASSERT(getsockname(fake->listener, (struct sockaddr *)&any, &bytes) == 0);
    snprintf(fake->address, sizeof fake->address, "127.0.0.1:%u", ntohs(any.sin_port));
    memcpy(fake->leader, fake->address, sizeof fake->leader);
}

void fake_rank_init(struct fake_rank *fake, uint32_t rank)
{
    bind_to_loopback(fake, rank);
    PD_ASSERT(listen(fake->listener, 16) == 0);
}

void fake_rank_init_deaf(struct fake_rank *fake)
{
    bind_to_loopback(fake, 0);
}

static void *run(void *argument)
{
    struct fake_rank *fake = argument;

    fake->script(fake, fake->context);
    return NULL;
}

void fake_rank_run(struct fake_rank *fake, fake_script *script, void *context)
{
    fake->script = script;
    fake->context = context;
    PD_ASSERT(pthread_create(&fake->thread, NULL, run, fake) == 0);
}

void fake_rank_finish(struct fake_rank *fake)
{
    if (fake->script != NULL) {
        pthread_join(fake->thread, NULL);
    }
    fake_hang_up(fake);
    close(fake->listener);
    pd_heap_free(fake->payload);
}

/* ---- Connections ---- */

static void await(int fd, short events)
{
    struct pollfd polled = {.fd = fd, .events = events};
    PD_ASSERT(poll(&polled, 1, DEADLINE_MS) == 1);
}

void fake_accept(struct fake_rank *fake)
{
    struct pd_error error = {0};
    int one = 1;

    fake_hang_up(fake);
    await(fake->listener, POLLIN);
    fake->socket = accept(fake->listener, NULL, NULL);
    PD_ASSERT(fake->socket >= 0);
    setsockopt(fake->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    PD_ASSERT(pd_frame_reader_create(&fake->reader, &error) == PD_OK);
}

void fake_hang_up(struct fake_rank *fake)
{
    if (fake->socket >= 0) {
        close(fake->socket);
        pd_frame_reader_destroy(fake->reader);
        fake->reader = NULL;
        fake->socket = -1;
    }
}

/* ---- Hearing ---- */

/* Put what comes next into the reader; false when the client closed the connection. */
static bool fill(struct fake_rank *fake)
{
    struct iovec pieces[PD_FRAME_PIECE_COUNT_MAX];
    size_t piece_count = pd_frame_reader_gather(fake->reader, pieces);

    await(fake->socket, POLLIN);
    ssize_t received = readv(fake->socket, pieces, (int)piece_count);
    if (received <= 0) {
        return false;
    }
    pd_frame_reader_filled(fake->reader, (size_t)received);
    return true;
}

void fake_expect_end(struct fake_rank *fake)
{
    struct pd_error error = {0};

    do {
        enum pd_frame_event event = pd_frame_reader_next(fake->reader, &error);
        while (event == PD_FRAME_MESSAGE) {
            PD_ASSERT(pd_frame_reader_message(fake->reader)->kind == PD_MESSAGE_PING);
            fake->pings++;
            event = pd_frame_reader_next(fake->reader, &error);
        }
        PD_ASSERT(event == PD_FRAME_MORE);
    } while (fill(fake));
}

/* Read up to the end of the next frame. */
static const struct pd_message *receive_any(struct fake_rank *fake)
{
    struct pd_error error = {0};
    bool has_message = false;

    for (;;) {
        enum pd_frame_event event = pd_frame_reader_next(fake->reader, &error);
        PD_ASSERT(event != PD_FRAME_FAILED);
        if (event == PD_FRAME_MESSAGE) {
            has_message = true;
            fake->payload_bytes = (size_t)pd_frame_reader_payload_bytes(fake->reader);
            fake->payload_bytes_total += fake->payload_bytes;
            if (fake->payload_bytes > 0) {
                pd_heap_free(fake->payload);
                fake->payload = pd_heap_zalloc(fake->payload_bytes, 1);
                PD_ASSERT(fake->payload != NULL);
                pd_frame_reader_place(fake->reader, fake->payload, fake->payload_bytes);
            } else {
                break;
            }
        } else if (event == PD_FRAME_PAYLOAD) {
            break;
        } else {
            PD_ASSERT(fill(fake));
        }
    }
    PD_ASSERT(has_message);
    fake->checksum_ok =
        !pd_frame_reader_has_checksum(fake->reader) || pd_frame_reader_checksum_ok(fake->reader);
    return pd_frame_reader_message(fake->reader);
}

const struct pd_message *fake_receive(struct fake_rank *fake, enum pd_message_kind kind)
{
    const struct pd_message *message = receive_any(fake);

    while (message->kind == PD_MESSAGE_PING) {
        fake->pings++;
        message = receive_any(fake);
    }
    if (message->kind != kind) {
        fprintf(stderr, "fake rank %u: %s instead of %s\n", fake->rank,
                pd_message_kind_name(message->kind), pd_message_kind_name(kind));
    }
    PD_ASSERT(message->kind == kind);
    PD_ASSERT(fake->checksum_ok);
    return message;
}

void fake_await(struct fake_rank *fake)
{
    await(fake->socket, POLLIN);
}

void fake_swallow(struct fake_rank *fake, size_t byte_count)
{
    static char bytes[4096];

    while (byte_count > 0) {
        size_t now = byte_count < sizeof bytes ? byte_count : sizeof bytes;
        await(fake->socket, POLLIN);
        ssize_t received = recv(fake->socket, bytes, now, 0);
        PD_ASSERT(received > 0);
        byte_count -= (size_t)received;
    }
}

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void fake_idle(struct fake_rank *fake, uint32_t ms)
{
    uint64_t end_ms = now_ms() + ms;

    for (uint64_t at_ms = now_ms(); at_ms < end_ms; at_ms = now_ms()) {
        struct pollfd polled = {.fd = fake->socket, .events = POLLIN};
        if (poll(&polled, 1, (int)(end_ms - at_ms)) == 1) {
            PD_ASSERT(receive_any(fake)->kind == PD_MESSAGE_PING);
            fake->pings++;
        }
    }
}

/* ---- Saying ---- */

static void send_all(struct fake_rank *fake, const void *bytes, size_t byte_count)
{
    const char *next = bytes;

    while (byte_count > 0) {
        ssize_t sent = send(fake->socket, next, byte_count, MSG_NOSIGNAL);
        PD_ASSERT(sent > 0);
        next += sent;
        byte_count -= (size_t)sent;
    }
}

void fake_send(struct fake_rank *fake, const struct pd_message *message, const void *payload,
               size_t payload_bytes, uint64_t damage)
{
    struct pd_error error = {0};
    uint8_t *frame;
    size_t frame_bytes;
    uint8_t tail[PD_CHECKSUM_BYTES];

    PD_ASSERT(pd_frame_encode(&frame, &frame_bytes, message, PD_FRAME_FLAG_CHECKSUM, payload_bytes,
                              &error) == PD_OK);
    uint64_t sum =
        pd_checksum_add(PD_CHECKSUM_EMPTY, frame + PD_PREFIX_BYTES, frame_bytes - PD_PREFIX_BYTES);
    uint64_t value = pd_checksum_add(sum, payload, payload_bytes) ^ damage;
    for (int i = 0; i < 8; i++) {
        tail[i] = (uint8_t)(value >> 8 * i);
    }
    send_all(fake, frame, frame_bytes);
    send_all(fake, payload, payload_bytes);
    send_all(fake, tail, sizeof tail);
    pd_heap_free(frame);
}

void fake_send_kind(struct fake_rank *fake, enum pd_message_kind kind)
{
    struct pd_message message = {.kind = kind};
    fake_send(fake, &message, "", 0, 0);
}

void fake_send_error(struct fake_rank *fake, enum pd_status status, const char *text, bool fatal)
{
    struct pd_message message = {.kind = PD_MESSAGE_ERROR,
                                 .error = {.status = status, .fatal = fatal}};
    snprintf(message.error.text, sizeof message.error.text, "%s", text);
    fake_send(fake, &message, "", 0, 0);
}

struct pd_hello fake_welcome(struct fake_rank *fake, uint64_t next_step, uint32_t next_micro_batch)
{
    struct pd_message message = {.kind = PD_MESSAGE_WELCOME};
    struct pd_welcome *welcome = &message.welcome;

    fake_accept(fake);
    struct pd_hello hello = fake_receive(fake, PD_MESSAGE_HELLO)->hello;
    welcome->run_id = fake->run_id;
    welcome->rank = fake->rank;
    welcome->rank_count = 2;
    welcome->lease_ms = fake->lease_ms;
    welcome->next_step = next_step;
    welcome->next_micro_batch = next_micro_batch;
    snprintf(welcome->leader, sizeof welcome->leader, "%s", fake->leader);
    snprintf(welcome->server, sizeof welcome->server, "fake");
    fake_send(fake, &message, "", 0, 0);
    return hello;
}

void fake_join(struct fake_rank *fake, uint32_t accumulation_steps)
{
    struct pd_message message = {.kind = PD_MESSAGE_JOINED};
    const struct pd_join *join = &fake_receive(fake, PD_MESSAGE_JOIN)->join;

    snprintf(message.joined.name, sizeof message.joined.name, "%s",
             join->name[0] != '\0' ? join->name : "worker-9");
    message.joined.worker_id = 9;
    message.joined.token = 4711;
    message.joined.accumulation_steps = accumulation_steps;
    fake_send(fake, &message, "", 0, 0);
}

void fake_register(struct fake_rank *fake, const struct pd_lane *lanes, uint32_t lane_count,
                   bool values_needed, uint64_t step)
{
    struct pd_message message = {.kind = PD_MESSAGE_REGISTERED};

    fake_receive(fake, PD_MESSAGE_REGISTER);
    message.registered.lane_count = lane_count;
    memcpy(message.registered.lanes, lanes, lane_count * sizeof *lanes);
    message.registered.values_needed = values_needed;
    message.registered.block_elements = 1024;
    message.registered.step = step;
    fake_send(fake, &message, "", 0, 0);
}

void fake_send_pulled(struct fake_rank *fake, const struct pd_lane *lane, uint64_t version,
                      const float *values, uint64_t damage)
{
    struct pd_message message = {.kind = PD_MESSAGE_PULLED,
                                 .pulled = {.version = version,
                                            .element_begin = lane->element_begin,
                                            .element_count = lane->element_count,
                                            .lr_count = 2,
                                            .lrs = {0.5, 0.25},
                                            .skipped_steps = 3}};
    fake_send(fake, &message, values, lane->element_count * sizeof *values, damage);
}

void fake_send_pushed(struct fake_rank *fake, bool duplicate)
{
    const struct pd_push *push = &pd_frame_reader_message(fake->reader)->push;
    struct pd_message message = {.kind = PD_MESSAGE_PUSHED,
                                 .pushed = {.step = push->step,
                                            .micro_batch = push->micro_batch,
                                            .duplicate = duplicate,
                                            .hessian = push->hessian}};
    fake_send(fake, &message, "", 0, 0);
}
