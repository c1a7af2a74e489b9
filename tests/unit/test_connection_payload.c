/* Payloads through a running loop, with a scripted engine on one side and a peer on the other. The
 * rest of server/io/connection.c is in test_connection.c. */
#include "common/heap.h"
#include "tests/support/peer.h"
#include "tests/support/process.h"
#include "tests/support/scripted_engine.h"

#include <check.h>
#include <poll.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PAYLOAD_BYTES = 5 * 1000 * 1000 + 3, ECHO_COUNT = 50 };

static uint8_t *received;
static enum pd_dtype reply_dtype; /* what is received is float32 and is sent as this */
static size_t allocations_before;
static size_t allocations_after;

static const struct pd_message push_message = {
    .kind = PD_MESSAGE_PUSH, .push = {.samples = 1, .element_count = 1, .last = true}};

/* ---- Echo ---- */

static size_t reply_bytes(void)
{
    return reply_dtype == PD_DTYPE_FLOAT32
               ? PAYLOAD_BYTES
               : PAYLOAD_BYTES / sizeof(float) * pd_dtype_bytes(reply_dtype);
}

static void react_echo(struct pd_engine *engine, const struct pd_event *event,
                       struct pd_actions *actions)
{
    struct pd_message reply = {.kind = PD_MESSAGE_ADMIN_REPLY};
    if (event->kind == PD_EVENT_MESSAGE) {
        ck_assert_int_eq(event->message->kind, PD_MESSAGE_PUSH);
        pd_actions_place(actions, event->connection, received, event->payload_bytes);
    } else if (event->kind == PD_EVENT_PAYLOAD) {
        ck_assert(event->checksum_ok);
        pd_actions_send(actions, event->connection, &reply, received, reply_bytes(), true);
        pd_actions_convert(actions, reply_dtype);
    } else if (event->kind == PD_EVENT_SENT && engine->counts[PD_EVENT_SENT] == 5) {
        allocations_before = pd_heap_allocations();
    } else if (event->kind == PD_EVENT_SENT && engine->counts[PD_EVENT_SENT] == ECHO_COUNT) {
        allocations_after = pd_heap_allocations();
    }
    scripted_exit_when_closed(event, actions);
}

static void converse_echo(struct scripted_rank *rank)
{
    struct peer *peer = peer_connect(rank->address);
    uint8_t *payload = malloc(PAYLOAD_BYTES);
    for (size_t i = 0; i < PAYLOAD_BYTES; i++) {
        payload[i] = (uint8_t)(i * 31 + i / 257);
    }
    for (int i = 0; i < ECHO_COUNT; i++) {
        payload[0] = (uint8_t)i;
        peer_send_summed(peer, &push_message, payload, PAYLOAD_BYTES, 0);
        (void)peer_expect(peer, PD_MESSAGE_ADMIN_REPLY);
        ck_assert_uint_eq(peer_payload_bytes(peer), PAYLOAD_BYTES);
        ck_assert_mem_eq(peer_payload(peer), payload, PAYLOAD_BYTES);
    }
    peer_close(peer);
    free(payload);
}

START_TEST(a_payload_arrives_and_leaves_whole_and_is_sent_once)
{
    struct scripted_rank rank;
    received = calloc(1, PAYLOAD_BYTES);
    scripted_rank_init(&rank, react_echo);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_echo), 7);

    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_OPENED], 1);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_MESSAGE], ECHO_COUNT);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_PAYLOAD], ECHO_COUNT);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_SENT], ECHO_COUNT);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_CLOSED], 1);
    ck_assert_str_eq(rank.engine.closed_error.message, "connection closed by the peer");
    free(received);
}
END_TEST

/* ---- The same to all ---- */

enum { SAME_BYTES = 100 * 1000, SAME_PEERS = 3, SAME_ROUNDS = 3 };

/* Each byte of it is the round, and so is each of what its elements are in bfloat16. */
static float same[SAME_BYTES / 2];
static enum pd_dtype same_dtype;

/* When all have asked: the same to each, but for what one of them has to itself. */
static void react_the_same(struct pd_engine *engine, const struct pd_event *event,
                           struct pd_actions *actions)
{
    static pd_connection_id asked[SAME_PEERS];
    uint32_t count = engine->counts[PD_EVENT_MESSAGE];

    scripted_exit_when_closed(event, actions);
    if (event->kind != PD_EVENT_MESSAGE) {
        return;
    }
    asked[(count - 1) % SAME_PEERS] = event->connection;
    if (count % SAME_PEERS != 0) {
        return;
    }
    uint32_t round = count / SAME_PEERS;
    memset(same, (int)round, sizeof same);
    for (uint32_t i = 0; i < SAME_PEERS; i++) {
        /* In the first round all are alike, then the one in the middle, then the last is not. */
        struct pd_message reply = {.kind = PD_MESSAGE_PULLED, .pulled.element_count = 1};
        reply.pulled.version = round > 1 && i + 1 == round ? 2 : 1;
        pd_actions_send(actions, asked[i], &reply, same, SAME_BYTES, true);
        pd_actions_convert(actions, same_dtype);
    }
}

static void converse_the_same(struct scripted_rank *rank)
{
    const struct pd_message ping = {.kind = PD_MESSAGE_PING};
    struct peer *peers[SAME_PEERS];
    for (int i = 0; i < SAME_PEERS; i++) {
        peers[i] = peer_connect(rank->address);
    }
    for (int round = 1; round <= SAME_ROUNDS; round++) {
        uint64_t versions = 0;
        for (int i = 0; i < SAME_PEERS; i++) {
            peer_send(peers[i], &ping, NULL, 0);
        }
        for (int i = 0; i < SAME_PEERS; i++) {
            versions += peer_expect(peers[i], PD_MESSAGE_PULLED)->pulled.version;
            ck_assert_uint_eq(peer_payload_bytes(peers[i]), SAME_BYTES);
            ck_assert_uint_eq(((const uint8_t *)peer_payload(peers[i]))[SAME_BYTES / 2], round);
        }
        ck_assert_uint_eq(versions, SAME_PEERS + (round > 1));
    }
    for (int i = 0; i < SAME_PEERS; i++) {
        peer_close(peers[i]);
    }
}

/* Peers check the sums. */
START_TEST(what_several_get_alike_has_the_right_sum_for_each)
{
    struct scripted_rank rank;
    same_dtype = (enum pd_dtype)_i;
    scripted_rank_init(&rank, react_the_same);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_the_same), 7);

    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_SENT], SAME_PEERS * SAME_ROUNDS);
}
END_TEST

/* ---- Place after place ---- */

enum { PART_BYTES = 16, PARTS_BYTES = 10 * PART_BYTES };

static uint8_t parts[PARTS_BYTES];
static uint64_t parts_placed;

/* A new place whenever one is full. */
static void react_part_by_part(struct pd_engine *engine, const struct pd_event *event,
                               struct pd_actions *actions)
{
    bool full = event->kind == PD_EVENT_PROGRESS && event->received &&
                event->payload_bytes == parts_placed && parts_placed < PARTS_BYTES;
    (void)engine;

    if (event->kind == PD_EVENT_MESSAGE || (parts_placed > 0 && full)) {
        pd_actions_place(actions, event->connection, parts + parts_placed, PART_BYTES);
        parts_placed += PART_BYTES;
    }
    scripted_exit_when_closed(event, actions);
}

static void converse_parts(struct scripted_rank *rank)
{
    uint8_t payload[PARTS_BYTES];
    struct peer *peer = peer_connect(rank->address);
    memset(payload, 'z', sizeof payload);
    peer_send(peer, &push_message, payload, sizeof payload);
    peer_close(peer);
}

/* All of it comes with the header, so that nothing is read that could tell of it again. */
START_TEST(a_payload_goes_on_though_what_came_fills_one_place_after_the_other)
{
    struct scripted_rank rank;
    parts_placed = 0;
    scripted_rank_init(&rank, react_part_by_part);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_parts), 7);

    ck_assert_uint_eq(parts_placed, PARTS_BYTES);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_PAYLOAD], 1);
    ck_assert_int_eq(parts[PARTS_BYTES - 1], 'z');
}
END_TEST

/* ---- Given up ---- */

static sem_t given_up;

/* The payload is read once its peer has given it up. */
static void react_late(struct pd_engine *engine, const struct pd_event *event,
                       struct pd_actions *actions)
{
    (void)engine;
    if (event->kind == PD_EVENT_MESSAGE) {
        ck_assert_int_eq(sem_wait(&given_up), 0);
        pd_actions_place(actions, event->connection, parts, sizeof parts);
    }
    scripted_exit_when_closed(event, actions);
}

static void converse_give_up(struct scripted_rank *rank, bool summed)
{
    const uint8_t payload[PARTS_BYTES] = {0};
    struct peer *peer = peer_connect(rank->address);
    if (summed) {
        peer_send_summed(peer, &push_message, payload, sizeof payload, 0);
    } else {
        peer_send(peer, &push_message, payload, sizeof payload);
    }
    peer_reset(peer);
    ck_assert_int_eq(sem_post(&given_up), 0);
}

static void converse_give_up_summed(struct scripted_rank *rank)
{
    converse_give_up(rank, true);
}

static void converse_give_up_unsummed(struct scripted_rank *rank)
{
    converse_give_up(rank, false);
}

/* Without a checksum nobody knows whether they are still the bytes that were sent. */
START_TEST(a_payload_that_was_given_up_before_it_was_read_counts_only_with_its_checksum)
{
    struct scripted_rank rank;
    bool summed = _i == 1;
    ck_assert_int_eq(sem_init(&given_up, 0, 0), 0);
    scripted_rank_init(&rank, react_late);

    ck_assert_int_eq(
        scripted_rank_run(&rank, summed ? converse_give_up_summed : converse_give_up_unsummed), 7);

    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_MESSAGE], 1);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_PAYLOAD], summed);
    ck_assert_str_eq(rank.engine.closed_error.message, "connection reset by peer");
    sem_destroy(&given_up);
}
END_TEST

/* ---- Several types of one array ---- */

enum { PULLED_COUNT = 4 * 1000 * 1000 + 1, PULL_COUNT = 5 };

static const enum pd_dtype pulled_dtypes[PULL_COUNT] = {
    PD_DTYPE_BFLOAT16, PD_DTYPE_FLOAT16, PD_DTYPE_FLOAT32, PD_DTYPE_BFLOAT16, PD_DTYPE_FLOAT16};
static float *parameters;

static void react_pull(struct pd_engine *engine, const struct pd_event *event,
                       struct pd_actions *actions)
{
    struct pd_message reply = {.kind = PD_MESSAGE_PULLED, .pulled.element_count = PULLED_COUNT};
    (void)engine;
    if (event->kind == PD_EVENT_MESSAGE) {
        enum pd_dtype dtype = (enum pd_dtype)event->message->pull.dtype;
        pd_actions_send(actions, event->connection, &reply, parameters,
                        PULLED_COUNT * pd_dtype_bytes(dtype), true);
        pd_actions_convert(actions, dtype);
    }
    scripted_exit_when_closed(event, actions);
}

/* All have asked, and their sockets are full, before one reads; then one after the other does. */
static void converse_pull(struct scripted_rank *rank)
{
    struct peer *peers[PULL_COUNT];
    uint8_t *expected = malloc(PULLED_COUNT * sizeof(float));
    for (int i = 0; i < PULL_COUNT; i++) {
        const struct pd_message pull = {.kind = PD_MESSAGE_PULL, .pull.dtype = pulled_dtypes[i]};
        peers[i] = peer_connect(rank->address);
        peer_send(peers[i], &pull, NULL, 0);
    }
    for (int i = PULL_COUNT - 1; i >= 0; i--) {
        size_t byte_count = PULLED_COUNT * pd_dtype_bytes(pulled_dtypes[i]);
        (void)peer_expect(peers[i], PD_MESSAGE_PULLED);
        pd_convert_from_float32(expected, pulled_dtypes[i], parameters, PULLED_COUNT);
        ck_assert_uint_eq(peer_payload_bytes(peers[i]), byte_count);
        ck_assert_mem_eq(peer_payload(peers[i]), expected, byte_count);
    }
    for (int i = 0; i < PULL_COUNT; i++) {
        peer_close(peers[i]);
    }
    free(expected);
}

/* Peers check the sums. */
START_TEST(slow_readers_of_every_type_get_the_same_elements)
{
    struct scripted_rank rank;
    parameters = malloc(PULLED_COUNT * sizeof *parameters);
    for (size_t i = 0; i < PULLED_COUNT; i++) {
        parameters[i] = (float)(i % 9973) * 0.37f - 1000;
    }
    scripted_rank_init(&rank, react_pull);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_pull), 7);

    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_SENT], PULL_COUNT);
    free(parameters);
}
END_TEST

/* ---- Held back ---- */

enum { HELD_BYTES = 100 * 1000, HELD_FIRST = 37 * 1000 + 1 };

static uint64_t progress_bytes;

/* Answer with what comes in as it comes in. */
static void react_as_it_arrives(struct pd_engine *engine, const struct pd_event *event,
                                struct pd_actions *actions)
{
    struct pd_message reply = {.kind = PD_MESSAGE_ADMIN_REPLY};
    (void)engine;
    if (event->kind == PD_EVENT_MESSAGE) {
        pd_actions_place(actions, event->connection, received, event->payload_bytes);
        pd_actions_send(actions, event->connection, &reply, received, HELD_BYTES, true);
        pd_actions_hold_back(actions, 0);
    } else if (event->kind == PD_EVENT_PROGRESS && event->received) {
        ck_assert_uint_ge(event->payload_bytes, progress_bytes);
        progress_bytes = event->payload_bytes;
        pd_actions_release(actions, event->connection, progress_bytes);
    } else if (event->kind == PD_EVENT_PAYLOAD) {
        pd_actions_release(actions, event->connection, HELD_BYTES);
    }
    scripted_exit_when_closed(event, actions);
}

/* Wait until so many bytes can be read. */
static void await_readable(struct peer *peer, int byte_count)
{
    int readable = 0;
    struct pollfd more = {.fd = peer_fd(peer), .events = POLLIN};

    ck_assert_int_eq(setsockopt(more.fd, SOL_SOCKET, SO_RCVLOWAT, &byte_count, sizeof byte_count),
                     0);
    ck_assert_int_eq(poll(&more, 1, PROCESS_DEADLINE_MS), 1);
    ck_assert_int_eq(ioctl(more.fd, FIONREAD, &readable), 0);
    ck_assert_int_eq(readable, byte_count);
    byte_count = 1;
    ck_assert_int_eq(setsockopt(more.fd, SOL_SOCKET, SO_RCVLOWAT, &byte_count, sizeof byte_count),
                     0);
}

static void converse_in_two_parts(struct scripted_rank *rank)
{
    const struct pd_message reply = {.kind = PD_MESSAGE_ADMIN_REPLY};
    const int head_bytes = PD_PREFIX_BYTES + (int)pd_message_header_bytes(&reply);
    struct peer *peer = peer_connect(rank->address);
    uint8_t *payload = malloc(HELD_BYTES);
    for (size_t i = 0; i < HELD_BYTES; i++) {
        payload[i] = (uint8_t)(i * 29 + i / 251);
    }
    peer_send_head(peer, &push_message, HELD_BYTES);
    await_readable(peer, head_bytes);
    peer_send_bytes(peer, payload, HELD_FIRST);
    await_readable(peer, head_bytes + HELD_FIRST);
    peer_send_bytes(peer, payload + HELD_FIRST, HELD_BYTES - HELD_FIRST);
    (void)peer_expect(peer, PD_MESSAGE_ADMIN_REPLY);
    ck_assert_uint_eq(peer_payload_bytes(peer), HELD_BYTES);
    ck_assert_mem_eq(peer_payload(peer), payload, HELD_BYTES);
    peer_close(peer);
    free(payload);
}

START_TEST(a_payload_held_back_leaves_as_what_it_waits_for_arrives)
{
    struct scripted_rank rank;
    received = calloc(1, HELD_BYTES);
    scripted_rank_init(&rank, react_as_it_arrives);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_in_two_parts), 7);

    ck_assert_uint_eq(progress_bytes, HELD_BYTES);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_SENT], 1);
    free(received);
}
END_TEST

/* The peer of this test allocates too, so it counts the rank's own in a process of its own. */
static void converse_echo_without_heap(struct scripted_rank *rank)
{
    uint8_t *frame = malloc(PD_PREFIX_BYTES + 64 + PAYLOAD_BYTES);
    uint8_t *reply = malloc(1 << 20);
    struct pd_error error = {0};
    int fd = scripted_rank_connect(rank);
    size_t header_bytes = pd_message_header_bytes(&push_message);
    const struct pd_prefix prefix = {.kind = PD_MESSAGE_PUSH,
                                     .header_bytes = (uint32_t)header_bytes,
                                     .payload_bytes = PAYLOAD_BYTES};
    pd_prefix_encode(&prefix, frame);
    ck_assert_int_eq(
        pd_message_encode(&push_message, frame + PD_PREFIX_BYTES, header_bytes, &error), PD_OK);
    const size_t frame_bytes = PD_PREFIX_BYTES + header_bytes + PAYLOAD_BYTES;
    const size_t reply_frame_bytes = PD_PREFIX_BYTES + reply_bytes() + PD_CHECKSUM_BYTES;
    for (int i = 0; i < ECHO_COUNT; i++) {
        for (size_t sent = 0; sent < frame_bytes;) {
            ssize_t result = send(fd, frame + sent, frame_bytes - sent, 0);
            ck_assert_int_gt(result, 0);
            sent += (size_t)result;
        }
        for (size_t got = 0; got < reply_frame_bytes;) {
            ssize_t result = recv(fd, reply, 1 << 20, 0);
            ck_assert_int_gt(result, 0);
            got += (size_t)result;
        }
    }
    (void)close(fd);
    free(reply);
    free(frame);
}

START_TEST(frames_come_and_go_without_an_allocation)
{
    struct scripted_rank rank;
    received = calloc(1, PAYLOAD_BYTES);
    reply_dtype = (enum pd_dtype)_i;
    scripted_rank_init(&rank, react_echo);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_echo_without_heap), 7);

    ck_assert_uint_gt(allocations_before, 0);
    ck_assert_uint_eq(allocations_after, allocations_before);
    free(received);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("connection_payload");
    TCase *tcase = tcase_create("connection_payload");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_payload_goes_on_though_what_came_fills_one_place_after_the_other);
    tcase_add_loop_test(
        tcase, a_payload_that_was_given_up_before_it_was_read_counts_only_with_its_checksum, 0, 2);
    tcase_add_test(tcase, a_payload_arrives_and_leaves_whole_and_is_sent_once);
    tcase_add_loop_test(tcase, what_several_get_alike_has_the_right_sum_for_each, 0, 2);
    tcase_add_test(tcase, slow_readers_of_every_type_get_the_same_elements);
    tcase_add_test(tcase, a_payload_held_back_leaves_as_what_it_waits_for_arrives);
    tcase_add_loop_test(tcase, frames_come_and_go_without_an_allocation, 0, 2);
    suite_add_tcase(suite, tcase);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
