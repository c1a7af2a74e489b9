/* The loop, and what feeds it beside connections: work, collectives, signals, the link to rank 0.
 */
#include "server/io/listener.h"
#include "server/io/signals.h"
#include "tests/support/peer.h"
#include "tests/support/scripted_engine.h"

#include <check.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void sleep_ms(long ms)
{
    const struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    (void)nanosleep(&pause, NULL);
}

/* ---- Work ---- */

enum { PING_COUNT = 20 };

/* Works without end until the peer has had its answers. */
static void react_work(struct pd_engine *engine, const struct pd_event *event,
                       struct pd_actions *actions)
{
    const struct pd_message ping = {.kind = PD_MESSAGE_PING};
    (void)engine;
    if (event->kind == PD_EVENT_OPENED) {
        pd_actions_simple(actions, PD_ACTION_WORK);
        pd_actions_simple(actions, PD_ACTION_WORK);
    } else if (event->kind == PD_EVENT_WORK) {
        sleep_ms(2);
        pd_actions_simple(actions, PD_ACTION_WORK);
    } else if (event->kind == PD_EVENT_MESSAGE) {
        pd_actions_send(actions, event->connection, &ping, NULL, 0, false);
    } else if (event->kind == PD_EVENT_CLOSED) {
        pd_actions_exit(actions, 0);
    }
}

static void converse_pings(struct scripted_rank *rank)
{
    const struct pd_message ping = {.kind = PD_MESSAGE_PING};
    struct peer *peer = peer_connect(rank->address);
    for (int i = 0; i < PING_COUNT; i++) {
        peer_send(peer, &ping, NULL, 0);
        (void)peer_expect(peer, PD_MESSAGE_PING);
    }
    peer_close(peer);
}

START_TEST(sockets_have_their_turn_between_two_turns_of_work)
{
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_work);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_pings), 0);

    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_MESSAGE], PING_COUNT);
    ck_assert_uint_gt(rank.engine.counts[PD_EVENT_WORK], 1);
    ck_assert_uint_lt(rank.engine.counts[PD_EVENT_WORK], 20 * PING_COUNT);
}
END_TEST

static void react_one_work(struct pd_engine *engine, const struct pd_event *event,
                           struct pd_actions *actions)
{
    if (event->kind != PD_EVENT_TICK) {
        return;
    }
    if (engine->counts[PD_EVENT_TICK] == 1) {
        pd_actions_simple(actions, PD_ACTION_WORK);
    } else if (engine->counts[PD_EVENT_TICK] == 4) {
        pd_actions_exit(actions, 5);
    }
}

START_TEST(work_is_fed_once_for_an_action_and_ticks_four_times_a_second)
{
    struct scripted_rank rank;
    struct timespec begin;
    struct timespec end;
    scripted_rank_init(&rank, react_one_work);
    (void)clock_gettime(CLOCK_MONOTONIC, &begin);

    ck_assert_int_eq(scripted_rank_run(&rank, NULL), 5);

    (void)clock_gettime(CLOCK_MONOTONIC, &end);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_WORK], 1);
    double elapsed_s =
        (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) * 1e-9;
    /* The first comes at once. */
    ck_assert_double_ge(elapsed_s, 0.7);
    ck_assert_double_lt(elapsed_s, 2.0);
}
END_TEST

enum { ENTROPY_MESSAGES = 1000 };

static uint64_t last_entropy;
static uint32_t entropy_repeated;

static void react_entropy(struct pd_engine *engine, const struct pd_event *event,
                          struct pd_actions *actions)
{
    if (event->kind == PD_EVENT_MESSAGE) {
        entropy_repeated += event->entropy == last_entropy ? 1 : 0;
        last_entropy = event->entropy;
    }
    if (engine->counts[PD_EVENT_MESSAGE] == ENTROPY_MESSAGES) {
        pd_actions_exit(actions, 0);
    }
}

static void converse_entropy(struct scripted_rank *rank)
{
    const struct pd_message ping = {.kind = PD_MESSAGE_PING};
    struct peer *peer = peer_connect(rank->address);
    for (int i = 0; i < ENTROPY_MESSAGES; i++) {
        peer_send(peer, &ping, NULL, 0);
    }
    peer_close(peer);
}

START_TEST(each_message_has_a_fresh_random_number)
{
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_entropy);

    ck_assert_int_eq(scripted_rank_run(&rank, converse_entropy), 0);

    ck_assert_uint_eq(entropy_repeated, 0);
}
END_TEST

/* ---- Collectives ---- */

enum { COLLECTIVE_COUNT = 500, AT_ONCE = 5 };

/* A thread that finishes each collective in turn. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    const struct pd_collective *given[COLLECTIVE_COUNT];
    uint32_t given_count;
    uint32_t done_count;
    uint32_t taken_count;
    struct pd_loop **loop;
} other = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static struct pd_collective collectives[AT_ONCE];

static void *finish_collectives(void *argument)
{
    (void)argument;
    for (uint32_t i = 0; i < COLLECTIVE_COUNT; i++) {
        (void)pthread_mutex_lock(&other.lock);
        while (other.given_count == i) {
            (void)pthread_cond_wait(&other.changed, &other.lock);
        }
        other.done_count++;
        (void)pthread_mutex_unlock(&other.lock);
        pd_loop_notify(*other.loop);
    }
    return NULL;
}

static void give(void *context, const struct pd_collective *collective)
{
    (void)context;
    (void)pthread_mutex_lock(&other.lock);
    ck_assert_ptr_eq(collective, &collectives[other.given_count % AT_ONCE]);
    other.given[other.given_count++] = collective;
    (void)pthread_cond_signal(&other.changed);
    (void)pthread_mutex_unlock(&other.lock);
}

static const struct pd_collective *take(void *context)
{
    const struct pd_collective *collective = NULL;

    (void)context;
    (void)pthread_mutex_lock(&other.lock);
    if (other.taken_count < other.done_count) {
        collective = other.given[other.taken_count++];
    }
    (void)pthread_mutex_unlock(&other.lock);
    return collective;
}

static void react_collectives(struct pd_engine *engine, const struct pd_event *event,
                              struct pd_actions *actions)
{
    static uint32_t asked;
    uint32_t done = engine->counts[PD_EVENT_COLLECTIVE];

    if (event->kind != PD_EVENT_COLLECTIVE &&
        (event->kind != PD_EVENT_TICK || engine->counts[PD_EVENT_TICK] > 1)) {
        return;
    }
    while (asked < COLLECTIVE_COUNT && asked < done + AT_ONCE) {
        pd_actions_collective(actions, &collectives[asked++ % AT_ONCE]);
    }
    if (done == COLLECTIVE_COUNT) {
        pd_actions_exit(actions, 0);
    }
}

START_TEST(each_of_several_collectives_comes_back_once)
{
    struct scripted_rank rank;
    pthread_t thread;
    scripted_rank_init(&rank, react_collectives);
    rank.options.collectives = (struct pd_loop_collectives){give, take, NULL};
    other.loop = &rank.loop;
    ck_assert_int_eq(pthread_create(&thread, NULL, finish_collectives, NULL), 0);

    ck_assert_int_eq(scripted_rank_run(&rank, NULL), 0);

    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_COLLECTIVE], COLLECTIVE_COUNT);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
}
END_TEST

/* The first of two comes back, the second does not: it is the one that is stuck. */
static const struct pd_collective *take_first(void *context)
{
    static bool taken;
    const struct pd_collective *collective = taken ? NULL : &collectives[0];

    (void)context;
    taken = true;
    return collective;
}

static void submit_and_notify(void *context, const struct pd_collective *collective)
{
    struct scripted_rank *rank = context;

    (void)collective;
    pd_loop_notify(rank->loop);
}

static void react_second_stuck(struct pd_engine *engine, const struct pd_event *event,
                               struct pd_actions *actions)
{
    if (event->kind == PD_EVENT_TICK && engine->counts[PD_EVENT_TICK] == 1) {
        pd_actions_collective(actions, &collectives[0]);
        pd_actions_collective(actions, &collectives[1]);
    }
    ck_assert_uint_lt(engine->counts[PD_EVENT_TICK], 40);
}

START_TEST(a_collective_stuck_behind_another_ends_the_process_with_code_3)
{
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_second_stuck);
    rank.options.collectives = (struct pd_loop_collectives){submit_and_notify, take_first, &rank};
    rank.options.rank_timeout_ms = 500;

    (void)scripted_rank_run(&rank, NULL);
}
END_TEST

static void react_stuck(struct pd_engine *engine, const struct pd_event *event,
                        struct pd_actions *actions)
{
    collectives[0].order_index = 42;
    if (event->kind == PD_EVENT_TICK && engine->counts[PD_EVENT_TICK] == 1) {
        pd_actions_collective(actions, &collectives[0]);
    }
    ck_assert_uint_lt(engine->counts[PD_EVENT_TICK], 40);
}

START_TEST(a_stuck_collective_ends_the_process_with_code_3)
{
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_stuck);
    rank.options.rank_timeout_ms = 500;

    (void)scripted_rank_run(&rank, NULL);
}
END_TEST

static void react_abort(struct pd_engine *engine, const struct pd_event *event,
                        struct pd_actions *actions)
{
    (void)engine;
    (void)event;
    pd_actions_abort(actions, "rank 1 has said nothing for 30 s");
}

START_TEST(an_abort_ends_the_process_with_code_3)
{
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_abort);

    (void)scripted_rank_run(&rank, NULL);
}
END_TEST

/* ---- The link to rank 0 ---- */

static void react_link(struct pd_engine *engine, const struct pd_event *event,
                       struct pd_actions *actions)
{
    (void)engine;
    if (event->kind == PD_EVENT_OPENED) {
        ck_assert(event->outgoing);
        pd_actions_exit(actions, 9);
    }
}

static uint32_t late_port;

/* Rank 0 listens a while after this rank has begun to look for it. */
static void converse_listen_late(struct scripted_rank *rank)
{
    struct pd_error error = {0};
    int fd = -1;
    (void)rank;
    sleep_ms(400);
    ck_assert_int_eq(pd_listener_open(&fd, &late_port, "127.0.0.1", late_port, &error), PD_OK);
    sleep_ms(600);
    (void)close(fd);
}

START_TEST(a_rank_tries_until_rank_0_listens)
{
    struct scripted_rank rank;
    struct pd_error error = {0};
    char leader[PD_ADDRESS_BYTES_MAX + 1];
    int fd = -1;
    ck_assert_int_eq(pd_listener_open(&fd, &late_port, "127.0.0.1", 0, &error), PD_OK);
    (void)close(fd);
    (void)snprintf(leader, sizeof leader, "127.0.0.1:%u", (unsigned)late_port);
    scripted_rank_init(&rank, react_link);
    rank.options.leader = leader;

    ck_assert_int_eq(scripted_rank_run(&rank, converse_listen_late), 9);

    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_OPENED], 1);
    ck_assert_uint_ge(rank.engine.counts[PD_EVENT_TICK], 1);
}
END_TEST

START_TEST(a_rank_without_a_link_in_time_ends_with_code_3)
{
    struct scripted_rank rank;
    struct pd_error error = {0};
    char leader[PD_ADDRESS_BYTES_MAX + 1];
    int fd = -1;
    ck_assert_int_eq(pd_listener_open(&fd, &late_port, "127.0.0.1", 0, &error), PD_OK);
    (void)close(fd);
    (void)snprintf(leader, sizeof leader, "127.0.0.1:%u", (unsigned)late_port);
    scripted_rank_init(&rank, react_link);
    rank.options.leader = leader;
    rank.options.rank_timeout_ms = 700;

    (void)scripted_rank_run(&rank, NULL);
}
END_TEST

START_TEST(a_leader_that_cannot_be_resolved_is_told_at_once)
{
    struct scripted_rank rank;
    struct pd_error error = {0};
    struct pd_loop *loop = NULL;
    scripted_rank_init(&rank, react_link);
    rank.options.leader = "no.such.host.invalid:7070";
    ck_assert_int_eq(pd_signals_prepare(false, &error), PD_OK);

    ck_assert_int_eq(pd_loop_create(&loop, &rank.options, &error), PD_ECONNECTION);

    ck_assert_ptr_null(loop);
    ck_assert_ptr_nonnull(strstr(error.message, "rank 0: host no.such.host.invalid: "));
    (void)close(rank.options.listen_fd);
}
END_TEST

/* ---- Listening ---- */

START_TEST(a_port_in_use_is_named)
{
    struct pd_error error = {0};
    char expected[128];
    uint32_t port = 0;
    uint32_t again = 0;
    int fd = -1;
    int second_fd = -1;
    ck_assert_int_eq(pd_listener_open(&fd, &port, "127.0.0.1", 0, &error), PD_OK);
    ck_assert_uint_gt(port, 0);

    ck_assert_int_eq(pd_listener_open(&second_fd, &again, "127.0.0.1", port, &error), PD_EIO);

    ck_assert_int_eq(second_fd, -1);
    (void)snprintf(expected, sizeof expected, "listen: 127.0.0.1 port %u: Address already in use",
                   (unsigned)port);
    ck_assert_str_eq(error.message, expected);
    (void)close(fd);
}
END_TEST

START_TEST(a_port_beyond_the_last_is_refused)
{
    struct pd_error error = {0};
    uint32_t port = 0;
    int fd = -1;

    ck_assert_int_eq(pd_listener_open(&fd, &port, "127.0.0.1", 65536, &error), PD_ECONFIG);
    ck_assert_str_eq(error.message, "listen: port 65536 is over 65535");
}
END_TEST

/* ---- Signals ---- */

static int drain_signal;
static char drain_text[32];

static void react_signal(struct pd_engine *engine, const struct pd_event *event,
                         struct pd_actions *actions)
{
    if (event->kind == PD_EVENT_TICK && engine->counts[PD_EVENT_TICK] == 1) {
        (void)raise(drain_signal);
    } else if (event->kind == PD_EVENT_DRAIN) {
        (void)snprintf(drain_text, sizeof drain_text, "%s", event->text);
        pd_actions_exit(actions, 0);
    }
}

START_TEST(a_signal_asks_for_a_drain_by_its_name)
{
    static const struct {
        int number;
        const char *name;
    } cases[] = {{SIGTERM, "SIGTERM"}, {SIGINT, "SIGINT"}, {SIGUSR1, "SIGUSR1"}};
    struct scripted_rank rank;
    drain_signal = cases[_i].number;
    scripted_rank_init(&rank, react_signal);

    ck_assert_int_eq(scripted_rank_run(&rank, NULL), 0);

    ck_assert_str_eq(drain_text, cases[_i].name);
    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_DRAIN], 1);
}
END_TEST

static void react_impatience(struct pd_engine *engine, const struct pd_event *event,
                             struct pd_actions *actions)
{
    (void)actions;
    if (event->kind == PD_EVENT_TICK) {
        ck_assert_uint_lt(engine->counts[PD_EVENT_TICK], 4);
        (void)raise(engine->counts[PD_EVENT_TICK] == 1 ? SIGTERM : SIGINT);
    }
}

START_TEST(a_second_signal_ends_at_once_with_code_1)
{
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_impatience);

    (void)scripted_rank_run(&rank, NULL);
}
END_TEST

static pid_t sender;

/* From the first tick on, another process sends the signal as fast as it can. */
static void react_storm(struct pd_engine *engine, const struct pd_event *event,
                        struct pd_actions *actions)
{
    (void)engine;
    if (event->kind == PD_EVENT_TICK && sender == 0) {
        const pid_t rank_pid = getpid();
        sender = fork();
        while (sender == 0 && kill(rank_pid, SIGUSR1) == 0) {
        }
    } else if (event->kind == PD_EVENT_DRAIN) {
        pd_actions_exit(actions, 0);
    }
}

START_TEST(a_signal_sent_again_and_again_does_not_disturb_the_end)
{
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_storm);

    ck_assert_int_eq(scripted_rank_run(&rank, NULL), 0);

    ck_assert_int_eq(kill(sender, SIGKILL), 0);
    ck_assert_int_eq(waitpid(sender, NULL, 0), sender);
}
END_TEST

/* Plays mpirun: starts a rank and dies; the rank's end shows in the pipe. */
static void be_a_launcher(int pipe_write)
{
    pid_t rank_pid = fork();
    ck_assert_int_ge(rank_pid, 0);
    if (rank_pid > 0) {
        sleep_ms(300);
        _exit(0);
    }
    struct scripted_rank rank;
    scripted_rank_init(&rank, react_link);
    rank.options.launched = true;
    (void)dup2(pipe_write, STDERR_FILENO);
    (void)scripted_rank_run(&rank, NULL);
    _exit(0);
}

START_TEST(a_rank_ends_when_its_launcher_is_gone)
{
    char text[256] = "";
    int ends[2];
    size_t used = 0;
    ck_assert_int_eq(pipe(ends), 0);
    pid_t launcher = fork();
    ck_assert_int_ge(launcher, 0);
    if (launcher == 0) {
        (void)close(ends[0]);
        be_a_launcher(ends[1]);
    }
    (void)close(ends[1]);

    for (ssize_t got = 1; got > 0 && used < sizeof text - 1; used += (size_t)got) {
        got = read(ends[0], text + used, sizeof text - 1 - used);
        ck_assert_int_ge(got, 0);
    }

    ck_assert_ptr_nonnull(strstr(text, "mpirun is gone: stopping"));
    (void)close(ends[0]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("loop");
    TCase *tcase = tcase_create("loop");
    tcase_set_timeout(tcase, 30);
    tcase_add_test(tcase, sockets_have_their_turn_between_two_turns_of_work);
    tcase_add_test(tcase, work_is_fed_once_for_an_action_and_ticks_four_times_a_second);
    tcase_add_test(tcase, each_message_has_a_fresh_random_number);
    tcase_add_test(tcase, each_of_several_collectives_comes_back_once);
    tcase_add_exit_test(tcase, a_stuck_collective_ends_the_process_with_code_3, 3);
    tcase_add_exit_test(tcase, a_collective_stuck_behind_another_ends_the_process_with_code_3, 3);
    tcase_add_exit_test(tcase, an_abort_ends_the_process_with_code_3, 3);
    tcase_add_test(tcase, a_rank_tries_until_rank_0_listens);
    tcase_add_exit_test(tcase, a_rank_without_a_link_in_time_ends_with_code_3, 3);
    tcase_add_test(tcase, a_leader_that_cannot_be_resolved_is_told_at_once);
    tcase_add_test(tcase, a_port_in_use_is_named);
    tcase_add_test(tcase, a_port_beyond_the_last_is_refused);
    tcase_add_loop_test(tcase, a_signal_asks_for_a_drain_by_its_name, 0, 3);
    tcase_add_exit_test(tcase, a_second_signal_ends_at_once_with_code_1, 1);
    tcase_add_loop_test(tcase, a_signal_sent_again_and_again_does_not_disturb_the_end, 0, 30);
    tcase_add_test(tcase, a_rank_ends_when_its_launcher_is_gone);
    suite_add_tcase(suite, tcase);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
