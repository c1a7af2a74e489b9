/* How a job ends: drained in good order, or by the death of one of its parts, with a message that
 * names it and nothing left behind. */
#include "tests/support/cluster.h"
#include "tests/support/peer.h"
#include "tests/support/suite.h"
#include "tests/support/training.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define RANK_COUNT 2u
#define STEP_COUNT 1000000u

/* The survivors of a killed rank are gone in 3 s on a machine that is not busy. */
#define RANK_DEATH_MS_MAX 30000

static struct cluster cluster;
static struct training *training;
static pid_t ranks[PD_RANK_COUNT_MAX];

static void note_ranks(void)
{
    for (uint32_t rank = 0; rank < cluster.rank_count; rank++) {
        ranks[rank] = cluster_rank_pid(&cluster, rank);
    }
}

static void await_no_rank(void)
{
    for (uint32_t rank = 0; rank < cluster.rank_count; rank++) {
        process_await_gone(ranks[rank]);
    }
}

/* Two workers, which have done some steps and go on to do more. */
static void start_training(void)
{
    static const char *address;
    struct training_options options;

    address = cluster.addresses[0];
    training_options_init(&options, &address, 2, STEP_COUNT);
    options.timeout_ms = 2000;
    training = training_start(&options);
    training_advance(training, 3);
}

/* ---- In good order ---- */

START_TEST(drain_ends_the_running_step_and_tells_the_workers)
{
    struct pd_tensor_list model;
    struct peer_worker workers[2];
    float values[REFERENCE_ELEMENT_COUNT] = {0};
    float gradient[REFERENCE_ELEMENT_COUNT] = {0};
    struct pd_message admin = {.kind = PD_MESSAGE_ADMIN, .admin = {.command = "step"}};
    struct pd_message pull = {.kind = PD_MESSAGE_PULL, .pull = {.min_version = 1}};

    /* One lane: the home of the first worker is rank 0, that of the second rank 1. */
    cluster_start(&cluster, RANK_COUNT, "workers: {expected: 2}\ndrain_timeout_s: 1000\n");
    note_ranks();
    reference_model_init(&model);
    peer_worker_init(&workers[0], cluster.addresses[0], "a", &model, values);
    peer_worker_init(&workers[1], cluster.addresses[0], "b", &model, values);
    ck_assert_ptr_eq(workers[0].lanes[0], workers[0].leader);
    ck_assert_ptr_ne(workers[1].lanes[0], workers[1].leader);
    struct pd_message push = peer_worker_push_message(&workers[0], 0, 0, 1);
    peer_send(workers[0].leader, &push, gradient, sizeof gradient);
    (void)peer_expect(workers[0].leader, PD_MESSAGE_PUSHED);
    /* The answer shows that what came before the question has been taken in. */
    peer_send(workers[0].leader, &admin, NULL, 0);
    (void)peer_expect(workers[0].leader, PD_MESSAGE_ADMIN_REPLY);
    peer_send(workers[0].leader, &pull, NULL, 0);

    process_signal(cluster.process, SIGUSR1);
    process_await_error(cluster.process, "draining at step 0");
    push.push.pull = true;
    peer_send(workers[1].lanes[0], &push, gradient, sizeof gradient);
    for (int i = 0; i < 2; i++) {
        ck_assert_uint_eq(peer_expect(workers[i].lanes[0], PD_MESSAGE_PULLED)->pulled.version, 1);
        ck_assert_uint_eq(peer_expect(workers[i].leader, PD_MESSAGE_DRAINING)->draining.step, 1);
    }
    ck_assert_int_eq(process_wait(cluster.process), 0);
    await_no_rank();
    peer_worker_finish(&workers[0]);
    peer_worker_finish(&workers[1]);
    pd_tensor_list_finish(&model);
    cluster_stop(&cluster);
}
END_TEST

START_TEST(drain_does_not_wait_for_a_step_that_nobody_ends)
{
    struct paramd_error error;

    cluster_start(&cluster, RANK_COUNT, "workers: {expected: 2}\naggregation: direct\n");
    note_ranks();
    start_training();
    cluster_drain(&cluster);
    ck_assert_int_eq(training_finish_failed(training, 0, &error), PARAMD_EDRAINING);
    await_no_rank();
    cluster_stop(&cluster);
}
END_TEST

static const int alone_signals[] = {SIGTERM, SIGINT, SIGUSR1};

START_TEST(daemon_without_mpirun_drains_at_a_signal)
{
    struct paramd_error error;

    cluster_start(&cluster, CLUSTER_ALONE, "workers: {expected: 2}\n");
    start_training();
    process_signal(cluster.process, alone_signals[_i]);
    ck_assert_int_eq(process_wait(cluster.process), 0);
    ck_assert_int_eq(training_finish_failed(training, 0, &error), PARAMD_EDRAINING);
    cluster_stop(&cluster);
}
END_TEST

START_TEST(launcher_drains_at_a_signal)
{
    static const char config[] = "listen: 127.0.0.1:0\n";
    char *path = suite_write_file("launch.yaml", config, strlen(config));
    const char *const words[] = {PARAMD_LAUNCH_PROGRAM, "-n", "2", "--", "--config", path, NULL};
    unsigned ports[2];
    char address[64];

    ck_assert_int_eq(setenv("PARAMD", PARAMD_PROGRAM, 1), 0);
    struct process *launcher = process_start(words);
    char *line = process_await_output_line(launcher, "paramd ready: ");
    ck_assert_int_eq(sscanf(line, "paramd ready: 2 ranks: 0 at 127.0.0.1:%u, 1 at 127.0.0.1:%u",
                            &ports[0], &ports[1]),
                     2);
    snprintf(address, sizeof address, "127.0.0.1:%u", ports[0]);
    struct peer *guest = peer_connect(address);
    (void)peer_hello(guest);
    process_signal(launcher, alone_signals[_i]);
    ck_assert_int_eq(process_wait(launcher), 0);
    process_await_error(launcher, "stopped at step 0");
    const struct pd_message *message = peer_receive(guest);
    ck_assert(message == NULL || message->kind == PD_MESSAGE_DRAINING);
    peer_close(guest);
    process_stop(launcher);
    free(line);
    free(path);
}
END_TEST

/* Ranks between their start and the first line of main, for as long as the test likes. */
START_TEST(launcher_drains_ranks_that_have_not_begun)
{
    static const char script[] = "#!/bin/sh\necho starting\nexec sleep 1000\n";
    char *path = suite_write_file("slow", script, strlen(script));
    const char *const words[] = {PARAMD_LAUNCH_PROGRAM, "-n", "2", "--", NULL};

    ck_assert_int_eq(chmod(path, 0700), 0);
    ck_assert_int_eq(setenv("PARAMD", path, 1), 0);
    struct process *launcher = process_start(words);
    process_await_output(launcher, "starting");
    process_signal(launcher, alone_signals[_i]);
    ck_assert_int_eq(process_wait(launcher), 0);
    process_await_error(launcher, "paramd-launch: drained before all ranks had begun");
    process_stop(launcher);
    free(path);
}
END_TEST

/* ---- Death ---- */

/* Rank 0 and the last rank; idle, and within a training. */
START_TEST(killed_rank_ends_the_job_and_is_named)
{
    uint32_t killed = _i % 2 == 0 ? 0 : 2;
    char text[64];

    cluster_start(&cluster, 3, "workers: {expected: 2}\n");
    note_ranks();
    if (_i >= 2) {
        start_training();
        training_allow(training, STEP_COUNT);
    }
    ck_assert_int_eq(kill(ranks[killed], SIGKILL), 0);
    int code = process_wait_for(cluster.process, RANK_DEATH_MS_MAX);
    ck_assert_msg(code > 0, "exit code %d", code);
    await_no_rank();
    snprintf(text, sizeof text, "rank %u at %s is gone", killed, cluster.addresses[killed]);
    process_await_error(cluster.process, text);
    cluster_stop(&cluster);
    if (_i >= 2) {
        struct paramd_error error;
        ck_assert_int_ne(training_finish_failed(training, 0, &error), PARAMD_OK);
        ck_assert_str_ne(error.message, "");
    }
}
END_TEST

/* MPI never notices: the other ranks must. In a training, they are stuck in a collective, too. */
START_TEST(stopped_rank_ends_the_job_with_a_message)
{
    uint32_t stopped = _i % 2 == 0 ? 0 : 1;

    cluster_start(&cluster, RANK_COUNT, "workers: {expected: 2}\nrank_timeout_s: 3\n");
    note_ranks();
    if (_i >= 2) {
        start_training();
        training_allow(training, STEP_COUNT);
    }
    ck_assert_int_eq(kill(ranks[stopped], SIGSTOP), 0);
    ck_assert_int_gt(process_wait(cluster.process), 0);
    await_no_rank();
    char *errors = process_errors(cluster.process);
    char name[32];
    snprintf(name, sizeof name, "rank %u at", stopped);
    bool named = strstr(errors, name) != NULL && strstr(errors, "has not been heard") != NULL;
    ck_assert_msg(named, "'%s'", errors);
    free(errors);
    cluster_stop(&cluster);
    if (_i >= 2) {
        struct paramd_error error;
        ck_assert_int_ne(training_finish_failed(training, 0, &error), PARAMD_OK);
    }
}
END_TEST

START_TEST(killed_mpirun_leaves_no_rank)
{
    cluster_start(&cluster, 3, "workers: {expected: 2}\n");
    note_ranks();
    if (_i == 1) {
        start_training();
        training_allow(training, STEP_COUNT);
    }
    process_signal(cluster.process, SIGKILL);
    await_no_rank();
    cluster_stop(&cluster);
    if (_i == 1) {
        struct paramd_error error;
        ck_assert_int_ne(training_finish_failed(training, 0, &error), PARAMD_OK);
    }
}
END_TEST

/* ---- Idleness ---- */

#define IDLE_S 5.0
/* Under a hundredth of a core is promised; a rank that waits busily takes all of one. */
#define IDLE_SHARE_MAX 0.05

START_TEST(silent_workers_cost_nothing)
{
    double before[PD_RANK_COUNT_MAX];

    cluster_start(&cluster, RANK_COUNT, "workers: {expected: 2}\n");
    note_ranks();
    start_training();
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        before[rank] = process_cpu_s(ranks[rank]);
    }
    ck_assert_int_eq(process_wait_for(cluster.process, (int64_t)(IDLE_S * 1000.0)), -1);
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        double used = process_cpu_s(ranks[rank]) - before[rank];
        ck_assert_msg(used < IDLE_S * IDLE_SHARE_MAX, "rank %u used %g s of %g", rank, used,
                      IDLE_S);
    }
    cluster_stop(&cluster);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("life");

    suite_add(suite, drain_ends_the_running_step_and_tells_the_workers);
    suite_add(suite, drain_does_not_wait_for_a_step_that_nobody_ends);
    suite_add_loop(suite, daemon_without_mpirun_drains_at_a_signal, 3);
    suite_add_loop(suite, launcher_drains_at_a_signal, 3);
    suite_add_loop(suite, launcher_drains_ranks_that_have_not_begun, 3);
    suite_add_loop(suite, killed_rank_ends_the_job_and_is_named, 4);
    suite_add_loop(suite, stopped_rank_ends_the_job_with_a_message, 4);
    suite_add_loop(suite, killed_mpirun_leaves_no_rank, 2);
    suite_add(suite, silent_workers_cost_nothing);
    return suite_run(suite);
}
