/* Connections through a running loop, with a scripted engine on one side and a peer on the other:
 * how they end, how many there may be, and peers that send what they should not or do not read.
 * Payloads are in test_connection_payload.c. */
#include "tests/support/peer.h"
#include "tests/support/process.h"
#include "tests/support/scripted_engine.h"

#include <check.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER_BYTES = 32 << 20 };

static uint8_t *answer;
static uint32_t asked_count;
static uint64_t closing_since_ms;
static uint64_t closed_after_ms;

static const struct pd_message push_message = {
    .kind = PD_MESSAGE_PUSH, .push = {.samples = 1, .element_count = 1, .last = true}};

static struct pd_message text_message(const char *text)
{
    struct pd_message message = {.kind = PD_MESSAGE_ERROR, .error = {.status = PD_EPROTOCOL}};
    (void)snprintf(message.error.text, sizeof message.error.text, "%s", text);
    return message;
}

static void sleep_ms(long ms)
{
    const struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    (void)nanosleep(&pause, NULL);
}

/* ---- Ends ---- */

static void react_place(struct pd_engine *engine, const struct pd_event *event,
                        struct pd_actions *actions)
{
    (void)engine;
    if (event->kind == PD_EVENT_MESSAGE && event->payload_bytes > 0) {
        pd_actions_drop(actions, event->connection);
    }
    scripted_exit_when_closed(event, actions);
}

static void converse_half_a_frame(struct scripted_rank *rank)
{
    struct peer *peer = peer_connect(rank->address);
    peer_send_head(peer, &push_message, 1000);
    peer_send_bytes(peer, "some of it", 10);
    peer_close(peer);
}

START_TEST(an_end_in_the_middle_of_a_frame_is_told)
{
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_place);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_half_a_frame), 7);

    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_CLOSED], 1);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_PAYLOAD], 0);
    ck_assert_int_eq(rank.engine.closed_error.status, PD_ECONNECTION);
    ck_assert_str_eq(rank.engine.closed_error.message,
                     "connection closed in the middle of a frame");
}
END_TEST

static void converse_reset(struct scripted_rank *rank)
{
    struct peer *peer = peer_connect(rank->address);
    peer_send_head(peer, &push_message, 1000);
    sleep_ms(50);
    peer_reset(peer);
}

START_TEST(a_reset_closes_with_the_systems_reason)
{
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_place);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_reset), 7);

    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_CLOSED], 1);
    ck_assert_str_eq(rank.engine.closed_error.message, "connection reset by peer");
}
END_TEST

/* ---- Bad streams, and closing in good order ---- */

static void react_refuse(struct pd_engine *engine, const struct pd_event *event,
                         struct pd_actions *actions)
{
    (void)engine;
    if (event->kind == PD_EVENT_FAILED) {
        struct pd_message message = text_message(event->error->message);
        pd_actions_send(actions, event->connection, &message, NULL, 0, false);
        pd_actions_close(actions, event->connection, true);
    }
    scripted_exit_when_closed(event, actions);
}

/* The peer goes on and on; what it is told must not get lost with what nobody reads. */
static void converse_garbage(struct scripted_rank *rank)
{
    static const uint8_t garbage[1 << 20];
    struct peer *peer = peer_connect(rank->address);
    for (int i = 0; i < 8; i++) {
        if (send(peer_fd(peer), garbage, sizeof garbage, MSG_NOSIGNAL) < 0) {
            break;
        }
    }
    peer_expect_error(peer, PD_EPROTOCOL, false, "starts with 00 00 00 00");
    peer_expect_closed(peer);
    peer_close(peer);
}

START_TEST(garbage_is_answered_though_more_of_it_follows)
{
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_refuse);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_garbage), 7);

    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_FAILED], 1);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_CLOSED], 1);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_MESSAGE], 0);
    ck_assert_str_eq(rank.engine.closed_error.message,
                     "frame: starts with 00 00 00 00, not with 50 52 4d 44 (PRMD)");
}
END_TEST

static void react_answer_and_close(struct pd_engine *engine, const struct pd_event *event,
                                   struct pd_actions *actions)
{
    struct pd_message reply = {.kind = PD_MESSAGE_ADMIN_REPLY};
    (void)engine;
    if (event->kind == PD_EVENT_MESSAGE) {
        pd_actions_send(actions, event->connection, &reply, answer, ANSWER_BYTES, true);
        pd_actions_close(actions, event->connection, true);
        closing_since_ms = event->now_ms;
    }
    if (event->kind == PD_EVENT_CLOSED) {
        closed_after_ms = event->now_ms - closing_since_ms;
    }
    scripted_exit_when_closed(event, actions);
}

static void converse_read_late(struct scripted_rank *rank)
{
    const struct pd_message ping = {.kind = PD_MESSAGE_PING};
    struct peer *peer = peer_connect(rank->address);
    peer_send(peer, &ping, NULL, 0);
    sleep_ms(200);
    (void)peer_expect(peer, PD_MESSAGE_ADMIN_REPLY);
    ck_assert_uint_eq(peer_payload_bytes(peer), ANSWER_BYTES);
    ck_assert_mem_eq(peer_payload(peer), answer, ANSWER_BYTES);
    peer_expect_closed(peer);
    peer_close(peer);
}

START_TEST(what_is_queued_is_sent_before_the_close)
{
    struct scripted_rank rank;
    answer = calloc(1, ANSWER_BYTES);
    memset(answer + 1000, 'x', ANSWER_BYTES / 2);
    scripted_rank_init(&rank, react_answer_and_close);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_read_late), 7);

    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_CLOSED], 1);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_SENT], 0);
    free(answer);
}
END_TEST

static void converse_never_read(struct scripted_rank *rank)
{
    const struct pd_message ping = {.kind = PD_MESSAGE_PING};
    struct peer *peer = peer_connect(rank->address);
    char byte;
    peer_send(peer, &ping, NULL, 0);
    sleep_ms(6500);
    ck_assert_int_ne(recv(peer_fd(peer), &byte, 1, MSG_PEEK), 0);
    peer_close(peer);
}

START_TEST(a_close_waits_five_seconds_for_a_peer_that_reads_nothing)
{
    struct scripted_rank rank;
    answer = calloc(1, ANSWER_BYTES);
    scripted_rank_init(&rank, react_answer_and_close);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_never_read), 7);

    ck_assert_uint_ge(closed_after_ms, 5000);
    ck_assert_uint_lt(closed_after_ms, 6000);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_CLOSED], 1);
    free(answer);
}
END_TEST

/* ---- Back-pressure ---- */

static void react_place_late(struct pd_engine *engine, const struct pd_event *event,
                             struct pd_actions *actions)
{
    static pd_connection_id waiting;
    if (event->kind == PD_EVENT_MESSAGE) {
        waiting = event->connection;
    }
    if (event->kind == PD_EVENT_TICK && engine->counts[PD_EVENT_TICK] == 4) {
        ck_assert_uint_eq(engine->counts[PD_EVENT_MESSAGE], 1);
        asked_count = engine->counts[PD_EVENT_PROGRESS];
        pd_actions_place(actions, waiting, answer, ANSWER_BYTES);
    }
    scripted_exit_when_closed(event, actions);
}

static void converse_large_push(struct scripted_rank *rank)
{
    uint8_t *payload = malloc(ANSWER_BYTES);
    struct peer *peer = peer_connect(rank->address);
    memset(payload, 'y', ANSWER_BYTES);
    peer_send(peer, &push_message, payload, ANSWER_BYTES);
    peer_close(peer);
    free(payload);
}

START_TEST(a_payload_without_a_place_stays_in_the_socket)
{
    struct scripted_rank rank;
    answer = calloc(1, ANSWER_BYTES);
    scripted_rank_init(&rank, react_place_late);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_large_push), 7);

    ck_assert_uint_le(asked_count, 2);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_PAYLOAD], 1);
    ck_assert_int_eq(answer[0], 'y');
    ck_assert_int_eq(answer[ANSWER_BYTES - 1], 'y');
    free(answer);
}
END_TEST

static void react_never_place(struct pd_engine *engine, const struct pd_event *event,
                              struct pd_actions *actions)
{
    if (event->kind == PD_EVENT_TICK && engine->counts[PD_EVENT_MESSAGE] == 1) {
        asked_count++;
    }
    if (asked_count > 12) {
        pd_actions_exit(actions, 8);
    }
    scripted_exit_when_closed(event, actions);
}

static void converse_whole_and_end(struct scripted_rank *rank)
{
    struct peer *peer = peer_connect(rank->address);
    peer_send(peer, &push_message, "abcd", 4);
    peer_close(peer);
}

/* With more behind it than the sockets hold. */
static void converse_much_and_reset(struct scripted_rank *rank)
{
    struct peer *peer = peer_connect(rank->address);
    const ssize_t left = 1 << 20;
    uint8_t *payload = calloc(1, (size_t)left);
    peer_send_head(peer, &push_message, ANSWER_BYTES);
    for (int i = 0; i < ANSWER_BYTES / left; i++) {
        if (send(peer_fd(peer), payload, (size_t)left, MSG_DONTWAIT | MSG_NOSIGNAL) < left) {
            break;
        }
    }
    peer_reset(peer);
    free(payload);
}

START_TEST(the_end_of_a_peer_is_noticed_though_its_payload_waits_for_a_place)
{
    static void (*const converse[])(struct scripted_rank *) = {converse_whole_and_end,
                                                               converse_much_and_reset};
    static const char *const words[] = {"connection closed by the peer",
                                        "connection reset by peer"};
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_never_place);

    ck_assert_int_eq(scripted_rank_run(&rank, converse[_i]), 7);

    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_MESSAGE], 1);
    ck_assert_str_eq(rank.engine.closed_error.message, words[_i]);
}
END_TEST

/* The rank's socket of this peer. */
static int accepted_of(const struct peer *peer)
{
    struct sockaddr_in own;
    socklen_t own_bytes = sizeof own;
    ck_assert_int_eq(getsockname(peer_fd(peer), (struct sockaddr *)&own, &own_bytes), 0);

    for (int fd = 3; fd < 1000; fd++) {
        struct sockaddr_in theirs;
        socklen_t theirs_bytes = sizeof theirs;
        if (getpeername(fd, (struct sockaddr *)&theirs, &theirs_bytes) == 0 &&
            theirs_bytes == own_bytes && theirs.sin_port == own.sin_port) {
            return fd;
        }
    }
    ck_abort_msg("no socket is connected to it");
}

static int number_of(int fd, int level, int name)
{
    int value = -1;
    socklen_t value_bytes = sizeof value;
    ck_assert_int_eq(getsockopt(fd, level, name, &value, &value_bytes), 0);
    return value;
}

static int probing[4];

static void converse_probed(struct scripted_rank *rank)
{
    struct peer *peer = peer_connect(rank->address);
    peer_send_head(peer, &push_message, 4);
    sleep_ms(50);
    int fd = accepted_of(peer);
    probing[0] = number_of(fd, SOL_SOCKET, SO_KEEPALIVE);
    probing[1] = number_of(fd, IPPROTO_TCP, TCP_KEEPIDLE);
    probing[2] = number_of(fd, IPPROTO_TCP, TCP_KEEPINTVL);
    probing[3] = number_of(fd, IPPROTO_TCP, TCP_KEEPCNT);
    peer_close(peer);
}

START_TEST(a_host_that_answers_nothing_is_found_out_within_the_lease)
{
    static const struct {
        uint64_t lease_ms;
        int idle_s;
        int interval_s;
    } cases[] = {{36000, 12, 6}, {200, 1, 1}, {1000000000, 32767, 32767}};
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_place);
    rank.options.lease_ms = cases[_i].lease_ms;

    ck_assert_int_eq(scripted_rank_run(&rank, converse_probed), 7);

    ck_assert_int_eq(probing[0], 1);
    ck_assert_int_eq(probing[1], cases[_i].idle_s);
    ck_assert_int_eq(probing[2], cases[_i].interval_s);
    ck_assert_int_eq(probing[3], 3);
}
END_TEST

static _Atomic uint32_t answered_count;

static void react_talk(struct pd_engine *engine, const struct pd_event *event,
                       struct pd_actions *actions)
{
    static char text[501];
    (void)engine;
    if (event->kind == PD_EVENT_MESSAGE) {
        memset(text, 'z', sizeof text - 1);
        struct pd_message message = text_message(text);
        pd_actions_send(actions, event->connection, &message, NULL, 0, false);
        answered_count++;
    }
    scripted_exit_when_closed(event, actions);
}

/* The most bytes the kernel keeps for a socket that sends. */
static uint64_t send_buffer_bytes_max(void)
{
    unsigned long least;
    unsigned long usual;
    unsigned long most;
    FILE *file = fopen("/proc/sys/net/ipv4/tcp_wmem", "r");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fscanf(file, "%lu %lu %lu", &least, &usual, &most), 3);
    (void)fclose(file);
    return most;
}

/* The answers given once no more are. */
static uint32_t wait_for_last_answer(void)
{
    uint32_t before;
    uint32_t now = answered_count;
    do {
        before = now;
        sleep_ms(500);
        now = answered_count;
    } while (now != before || now == 0);
    return now;
}

enum { PING_COUNT = 200000, RECEIVE_BUFFER_BYTES = 64 << 10, HELD_BYTES_MAX = 8 << 20 };

/* Asks as long as the socket takes it, reads nothing until nobody answers, then everything. */
static void converse_ask_only(struct scripted_rank *rank)
{
    const int receive_buffer = RECEIVE_BUFFER_BYTES;
    uint8_t prefix[PD_PREFIX_BYTES];
    const struct pd_prefix ping = {.kind = PD_MESSAGE_PING};
    int fd = scripted_rank_connect(rank);
    uint8_t *buffer = malloc(1 << 20);
    uint64_t sent = 0;
    uint64_t got = 0;
    struct pollfd entry = {.fd = fd, .events = POLLOUT};
    pd_prefix_encode(&ping, prefix);
    ck_assert_int_eq(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer),
                     0);

    while (sent < PING_COUNT && poll(&entry, 1, 1000) == 1) {
        ck_assert_int_eq(send(fd, prefix, sizeof prefix, 0), sizeof prefix);
        sent++;
    }
    asked_count = wait_for_last_answer();
    ck_assert_int_eq(shutdown(fd, SHUT_WR), 0);
    struct pd_message message = text_message("");
    memset(message.error.text, 'z', 500);
    const uint64_t answer_bytes = PD_PREFIX_BYTES + pd_message_header_bytes(&message);
    ck_assert_uint_lt(asked_count * answer_bytes, send_buffer_bytes_max() + HELD_BYTES_MAX);
    while (got < sent * answer_bytes) {
        ssize_t result = recv(fd, buffer, 1 << 20, 0);
        if (result <= 0) {
            break;
        }
        got += (uint64_t)result;
    }
    /* The end of the stream may overtake the last answers; those before it are all there. */
    ck_assert_uint_gt(got, 0);
    ck_assert_uint_eq(got % answer_bytes == 0 || got < sent * answer_bytes, 1);
    (void)close(fd);
    free(buffer);
}

/* The kernel's buffers take some megabytes by themselves; beyond them and the pause nothing grows,
 * of the hundred that all the answers come to. */
START_TEST(a_peer_that_only_asks_is_not_read_any_more)
{
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_talk);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_ask_only), 7);

    ck_assert_uint_gt(rank.engine.counts[PD_EVENT_MESSAGE], asked_count);
}
END_TEST

/* ---- Many ---- */

enum { IDLE_COUNT = 1000 };

/* ThreadSanitizer keeps four bytes for each of ours. */
#ifndef __has_feature
#define __has_feature(feature) 0
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
enum { SHADOW_FACTOR = 5 };
#else
enum { SHADOW_FACTOR = 1 };
#endif

static long resident_kb(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fscanf(file, "%*d %ld", &pages), 1);
    (void)fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static double processor_s(void)
{
    struct rusage usage;
    (void)getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static void react_idle(struct pd_engine *engine, const struct pd_event *event,
                       struct pd_actions *actions)
{
    static double processor_before_s;
    static uint32_t tick_when_full;
    if (event->kind == PD_EVENT_TICK && engine->counts[PD_EVENT_OPENED] == IDLE_COUNT) {
        if (tick_when_full == 0) {
            tick_when_full = engine->counts[PD_EVENT_TICK];
            processor_before_s = processor_s();
        } else if (engine->counts[PD_EVENT_TICK] == tick_when_full + 8) {
            ck_assert_double_lt(processor_s() - processor_before_s, 0.02);
            pd_actions_exit(actions, 7);
        }
    }
}

static int idle_fds[IDLE_COUNT];

static void converse_idle(struct scripted_rank *rank)
{
    for (int i = 0; i < IDLE_COUNT; i++) {
        idle_fds[i] = scripted_rank_connect(rank);
    }
    char byte;
    for (int i = 0; i < IDLE_COUNT; i++) {
        ck_assert_int_eq(recv(idle_fds[i], &byte, 1, 0), 0);
        (void)close(idle_fds[i]);
    }
}

START_TEST(a_thousand_idle_connections_cost_little_memory_and_no_time)
{
    struct scripted_rank rank;
    const struct rlimit limit = {.rlim_cur = 3000, .rlim_max = 3000};
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    scripted_rank_init(&rank, react_idle);
    long before_kb = resident_kb();

    ck_assert_int_eq(scripted_rank_run(&rank, converse_idle), 7);

    struct rusage usage;
    (void)getrusage(RUSAGE_SELF, &usage);
    ck_assert_int_lt(usage.ru_maxrss - before_kb, 64l * IDLE_COUNT * SHADOW_FACTOR);
}
END_TEST

static void react_full(struct pd_engine *engine, const struct pd_event *event,
                       struct pd_actions *actions)
{
    ck_assert_uint_le(engine->counts[PD_EVENT_OPENED] - engine->counts[PD_EVENT_CLOSED], 2);
    if (event->kind == PD_EVENT_MESSAGE) {
        pd_actions_exit(actions, 7);
    }
}

static void converse_three(struct scripted_rank *rank)
{
    const struct pd_message ping = {.kind = PD_MESSAGE_PING};
    struct peer *first = peer_connect(rank->address);
    struct peer *second = peer_connect(rank->address);
    struct peer *third = peer_connect(rank->address);
    peer_expect_fatal(third, PD_ELIMIT, "2 connections are open, the most allowed");
    peer_close(first);
    sleep_ms(100);
    struct peer *fourth = peer_connect(rank->address);
    peer_send(fourth, &ping, NULL, 0);
    peer_expect_closed(fourth);
    peer_close(fourth);
    peer_close(third);
    peer_close(second);
}

START_TEST(a_connection_over_the_limit_is_closed_and_room_is_given_back)
{
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_full);
    rank.options.connection_count_max = 2;

    ck_assert_int_eq(scripted_rank_run(&rank, converse_three), 7);

    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_OPENED], 3);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("connection");
    TCase *tcase = tcase_create("connection");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, an_end_in_the_middle_of_a_frame_is_told);
    tcase_add_test(tcase, a_reset_closes_with_the_systems_reason);
    tcase_add_test(tcase, garbage_is_answered_though_more_of_it_follows);
    tcase_add_test(tcase, what_is_queued_is_sent_before_the_close);
    tcase_add_test(tcase, a_close_waits_five_seconds_for_a_peer_that_reads_nothing);
    tcase_add_test(tcase, a_payload_without_a_place_stays_in_the_socket);
    tcase_add_loop_test(tcase, the_end_of_a_peer_is_noticed_though_its_payload_waits_for_a_place, 0,
                        2);
    tcase_add_loop_test(tcase, a_host_that_answers_nothing_is_found_out_within_the_lease, 0, 3);
    tcase_add_test(tcase, a_peer_that_only_asks_is_not_read_any_more);
    tcase_add_test(tcase, a_thousand_idle_connections_cost_little_memory_and_no_time);
    tcase_add_test(tcase, a_connection_over_the_limit_is_closed_and_room_is_given_back);
    suite_add_tcase(suite, tcase);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
