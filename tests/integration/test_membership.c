/* Workers come late, leave early, run out of batches and die; the steps close without them, and
 * what they gave whole counts. */
#include "tests/support/cluster.h"
#include "tests/support/peer.h"
#include "tests/support/suite.h"
#include "tests/support/training.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOLERANCE 2e-5
#define RANK_COUNT 2u
#define STEP_COUNT 12u
#define CHANGE_STEP 5u /* when somebody comes or goes */
#define OTHER 2u       /* number of the worker beside 0 and 1 */

#define OPTIMIZER "optimizer: {name: sgd, lr: 0.1, momentum: 0.9}\nblock_size: 64\n"

static const char *const aggregations[] = {"aggregation: direct\n", "aggregation: allreduce\n"};

static struct cluster cluster;
static struct training *training;

static void start(int which, uint32_t micro_batch_count, const char *config)
{
    static const char *addresses[RANK_COUNT];
    struct training_options options;

    cluster_start(&cluster, RANK_COUNT, OPTIMIZER "%saccumulation_steps: %u\n%s",
                  aggregations[which], micro_batch_count, config);
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        addresses[rank] = cluster.addresses[rank];
    }
    training_options_init(&options, addresses, 2, STEP_COUNT);
    options.address_count = RANK_COUNT;
    options.micro_batch_count = micro_batch_count;
    training = training_start(&options);
}

/* Workers 0 and 1 finish; the parameters must be those of what every worker gave. */
static void finish(uint32_t micro_batch_count,
                   uint32_t (*micro_batches_of)(uint32_t worker, uint64_t step))
{
    static double expected[REFERENCE_ELEMENT_COUNT];
    float values[REFERENCE_ELEMENT_COUNT];
    struct reference_training reference = {
        .rule = REFERENCE_SGD,
        .lr = 0.1,
        .momentum = 0.9,
        .clip_norm_type = 2.0,
        .worker_count = 3,
        .micro_batch_count = micro_batch_count,
        .micro_batches_of = micro_batches_of,
        .step_count = STEP_COUNT,
    };

    training_finish(training, values);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
    reference_train(&reference, expected);
    double error = reference_error(values, expected);
    ck_assert_msg(error < TOLERANCE, "off by %g", error);
}

static struct training *start_other(uint64_t step_count, uint32_t micro_batch_count)
{
    static const char *address;
    struct training_options options;

    address = cluster.addresses[1];
    training_options_init(&options, &address, 1, step_count);
    options.worker_begin = OTHER;
    options.micro_batch_count = micro_batch_count;
    return training_start(&options);
}

/* ---- Coming and leaving ---- */

static uint32_t from_change_on(uint32_t worker, uint64_t step)
{
    return worker != OTHER || step >= CHANGE_STEP ? 1 : 0;
}

START_TEST(late_joiner_gets_the_current_parameters_and_counts_from_then_on)
{
    float current[REFERENCE_ELEMENT_COUNT];
    float values[REFERENCE_ELEMENT_COUNT];

    start(_i, 1, "");
    training_advance(training, CHANGE_STEP);
    struct training *late = start_other(STEP_COUNT, 1);
    training_values(training, 0, current);
    training_values(late, 0, values);
    ck_assert_mem_eq(values, current, sizeof values);
    training_allow(training, STEP_COUNT);
    training_finish(late, NULL);
    finish(1, from_change_on);
}
END_TEST

static uint32_t until_change(uint32_t worker, uint64_t step)
{
    return worker != OTHER || step < CHANGE_STEP ? 1 : 0;
}

START_TEST(worker_that_leaves_early_lets_the_others_go_on)
{
    start(_i, 1, "");
    struct training *early = start_other(CHANGE_STEP, 1);
    training_allow(training, STEP_COUNT);
    training_finish(early, NULL);
    finish(1, until_change);
}
END_TEST

/* ---- Peers that stop at a chosen byte ---- */

static struct pd_tensor_list model;

static void other_init(struct peer_worker *other)
{
    char name[32];

    training_worker_name(name, OTHER);
    reference_model_init(&model);
    peer_worker_init(other, cluster.addresses[0], name, &model, NULL);
}

/* Push a micro-batch of step CHANGE_STEP to one lane and await the answer. */
static void other_push(struct peer_worker *other, uint32_t lane, uint32_t micro_batch, bool last)
{
    float gradient[REFERENCE_ELEMENT_COUNT];
    uint64_t samples = reference_samples(OTHER, CHANGE_STEP, micro_batch);
    struct pd_message push = peer_worker_push_message(other, lane, CHANGE_STEP, samples);

    push.push.micro_batch = micro_batch;
    push.push.last = last;
    reference_gradient(gradient, OTHER, CHANGE_STEP, micro_batch);
    peer_send(other->lanes[lane], &push, gradient + push.push.element_begin,
              push.push.element_count * sizeof gradient[0]);
    ck_assert(!peer_expect(other->lanes[lane], PD_MESSAGE_PUSHED)->pushed.duplicate);
}

static uint32_t in_change_only(uint32_t worker, uint64_t step)
{
    return worker != OTHER || step == CHANGE_STEP ? 1 : 0;
}

START_TEST(complete_contribution_counts_though_its_worker_dies)
{
    struct peer_worker other;

    start(_i, 1, "workers: {resume_s: 5}");
    training_advance(training, CHANGE_STEP);
    other_init(&other);
    for (uint32_t lane = 0; lane < other.registered.lane_count; lane++) {
        other_push(&other, lane, 0, true);
    }
    peer_worker_finish(&other);
    training_advance(training, STEP_COUNT);
    process_await_error(cluster.process, "'worker 00002' evicted at step 6");
    finish(1, in_change_only);
}
END_TEST

static uint32_t others_only(uint32_t worker, uint64_t step)
{
    (void)step;
    return worker != OTHER ? 1 : 0;
}

START_TEST(contribution_of_the_dead_that_misses_a_lane_counts_nowhere)
{
    struct peer_worker other;

    start(0, 1, "workers: {resume_s: 5}");
    training_advance(training, CHANGE_STEP);
    other_init(&other);
    ck_assert_uint_eq(other.registered.lane_count, RANK_COUNT);
    other_push(&other, (uint32_t)_i, 0, true);
    peer_worker_finish(&other);
    training_advance(training, STEP_COUNT);
    process_await_error(cluster.process, "'worker 00002' evicted at step 5");
    finish(1, others_only);
}
END_TEST

static uint32_t two_of_three(uint32_t worker, uint64_t step)
{
    if (worker == OTHER) {
        return step == CHANGE_STEP ? 2 : 0;
    }
    return 3;
}

static void leave(struct peer_worker *other, uint64_t step, uint32_t micro_batch)
{
    struct pd_message message = {.kind = PD_MESSAGE_LEAVE,
                                 .leave = {.step = step, .micro_batch = micro_batch}};

    peer_send(other->leader, &message, NULL, 0);
    (void)peer_expect(other->leader, PD_MESSAGE_LEFT);
    peer_worker_finish(other);
}

START_TEST(micro_batches_of_a_worker_that_leaves_within_a_step_count)
{
    struct peer_worker other;

    start(_i, 3, "");
    training_advance(training, CHANGE_STEP);
    other_init(&other);
    for (uint32_t lane = 0; lane < other.registered.lane_count; lane++) {
        other_push(&other, lane, 0, false);
        other_push(&other, lane, 1, false);
    }
    leave(&other, CHANGE_STEP, 2);
    finish(3, two_of_three);
}
END_TEST

START_TEST(worker_with_fewer_batches_closes_its_contribution_early)
{
    struct peer_worker other;

    start(_i, 3, "");
    training_advance(training, CHANGE_STEP);
    other_init(&other);
    for (uint32_t lane = 0; lane < other.registered.lane_count; lane++) {
        other_push(&other, lane, 0, false);
        other_push(&other, lane, 1, true);
    }
    training_advance(training, CHANGE_STEP + 1);
    leave(&other, CHANGE_STEP + 1, 0);
    finish(3, two_of_three);
}
END_TEST

START_TEST(name_of_the_dead_is_free_for_a_successor)
{
    struct peer_worker other;
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO, .hello = {.has_worker_id = true}};

    start(_i, 1, "workers: {resume_s: 1000}");
    training_advance(training, CHANGE_STEP);
    other_init(&other);
    hello.hello.worker_id = other.joined.worker_id;
    hello.hello.token = other.joined.token;
    hello.hello.run_id = other.run_id;
    uint32_t lane_count = other.registered.lane_count;
    struct peer *data = lane_count > 1 ? other.lanes[1] : NULL;
    peer_reset(other.leader);
    struct training *successor = start_other(CHANGE_STEP + 1, 1);
    training_allow(training, STEP_COUNT);
    training_finish(successor, NULL);
    peer_close(data);

    /* The one that was replaced is told so. */
    struct peer *peer = peer_connect(cluster.addresses[0]);
    peer_send(peer, &hello, NULL, 0);
    peer_expect_fatal(peer, PD_EIDENTITY, "a new worker took its name");
    peer_close(peer);
    finish(1, in_change_only);
}
END_TEST

START_TEST(name_of_a_worker_that_waits_for_its_step_is_taken)
{
    struct peer_worker other;
    struct pd_message join = {.kind = PD_MESSAGE_JOIN};

    start(_i, 1, "");
    training_advance(training, CHANGE_STEP);
    other_init(&other);
    for (uint32_t lane = 0; lane < other.registered.lane_count; lane++) {
        other_push(&other, lane, 0, true);
    }
    struct peer *peer = peer_connect(cluster.addresses[0]);
    (void)peer_hello(peer);
    training_worker_name(join.join.name, OTHER);
    peer_send(peer, &join, NULL, 0);
    peer_expect_error(peer, PD_EIDENTITY, false, "the name 'worker 00002' belongs to worker 2");
    peer_close(peer);
    training_advance(training, CHANGE_STEP + 1);
    leave(&other, CHANGE_STEP + 1, 0);
    finish(1, in_change_only);
}
END_TEST

/* ---- Waiting ---- */

START_TEST(worker_that_joins_and_does_not_register_is_told_that_its_time_is_over)
{
    const struct pd_message ping = {.kind = PD_MESSAGE_PING};

    cluster_start(&cluster, RANK_COUNT, OPTIMIZER "workers: {register_s: 1}\n");
    struct peer *peer = peer_connect(cluster.addresses[0]);
    (void)peer_join(peer, "idle", NULL);
    peer_send(peer, &ping, NULL, 0);
    peer_expect_fatal(peer, PD_EIDENTITY, "it did not register within 1 s (workers.register_s)");
    peer_close(peer);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
}
END_TEST

START_TEST(daemon_says_which_workers_it_waits_for)
{
    struct peer_worker workers[2];
    float values[REFERENCE_ELEMENT_COUNT];

    cluster_start(&cluster, RANK_COUNT, OPTIMIZER "%sworkers: {expected: 2}\n", aggregations[0]);
    reference_model_init(&model);
    reference_values(values);
    peer_worker_init(&workers[0], cluster.addresses[0], "early", &model, values);
    process_await_error(cluster.process, "step 0 waits for 2 workers (workers.expected): 1 "
                                         "registered: 10 s so far");
    peer_worker_init(&workers[1], cluster.addresses[0], "late", &model, NULL);
    peer_worker_push(&workers[0], 0, 1, values, false);
    process_await_error(cluster.process, "step 0 waits for 'late': 10 s so far");
    peer_worker_finish(&workers[0]);
    peer_worker_finish(&workers[1]);
    pd_tensor_list_finish(&model);
    cluster_stop(&cluster);
}
END_TEST

/* ---- Processes ---- */

static struct process *start_process(uint64_t pause_step)
{
    char pause[32];
    char number[32];
    char steps[32];
    const char *const words[] = {WORKER_PROGRAM, cluster.addresses[0], number, steps, pause, NULL};

    snprintf(pause, sizeof pause, "%lu", (unsigned long)pause_step);
    snprintf(number, sizeof number, "%u", OTHER);
    snprintf(steps, sizeof steps, "%u", STEP_COUNT);
    return process_start(words);
}

START_TEST(killed_worker_is_evicted_and_the_others_go_on)
{
    start(_i, 1, "workers: {resume_s: 1, expected: 3}");
    struct process *other = start_process(CHANGE_STEP);
    training_allow(training, CHANGE_STEP);
    process_await_output(other, "waiting");
    training_advance(training, CHANGE_STEP);
    process_signal(other, SIGKILL);
    ck_assert_int_eq(process_wait(other), 128 + SIGKILL);
    training_advance(training, STEP_COUNT);
    process_await_error(cluster.process, "'worker 00002' evicted at step 5: ");
    process_stop(other);
    finish(1, until_change);
}
END_TEST

START_TEST(stopped_worker_loses_its_lease_and_is_told_so)
{
    start(_i, 1, "workers: {lease_s: 3, expected: 3}");
    struct process *other = start_process(CHANGE_STEP);
    training_allow(training, CHANGE_STEP);
    process_await_output(other, "waiting");
    training_advance(training, CHANGE_STEP);
    process_signal(other, SIGSTOP);
    training_advance(training, STEP_COUNT);
    process_await_error(cluster.process, "'worker 00002' evicted at step 5: the lease is over");
    process_signal(other, SIGUSR1);
    process_signal(other, SIGCONT);
    process_await_output(other, "the lease is over");
    ck_assert_int_eq(process_wait(other), EXIT_FAILURE);
    process_stop(other);
    finish(1, until_change);
}
END_TEST

/* A worker that computes for longer than its lease keeps it: the library speaks for it. */
START_TEST(worker_that_computes_for_long_keeps_its_lease)
{
    start(_i, 1, "workers: {lease_s: 2, expected: 3}");
    struct process *other = start_process(CHANGE_STEP);
    training_allow(training, CHANGE_STEP);
    process_await_output(other, "waiting");
    training_advance(training, CHANGE_STEP);
    ck_assert_int_eq(process_wait_for(other, 5000), -1);
    process_signal(other, SIGUSR1);
    training_advance(training, STEP_COUNT);
    ck_assert_int_eq(process_wait(other), EXIT_SUCCESS);
    process_stop(other);
    finish(1, NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("membership");

    suite_add_loop(suite, late_joiner_gets_the_current_parameters_and_counts_from_then_on, 2);
    suite_add_loop(suite, worker_that_leaves_early_lets_the_others_go_on, 2);
    suite_add_loop(suite, complete_contribution_counts_though_its_worker_dies, 2);
    suite_add_loop(suite, contribution_of_the_dead_that_misses_a_lane_counts_nowhere, 2);
    suite_add_loop(suite, micro_batches_of_a_worker_that_leaves_within_a_step_count, 2);
    suite_add_loop(suite, worker_with_fewer_batches_closes_its_contribution_early, 2);
    suite_add_loop(suite, name_of_the_dead_is_free_for_a_successor, 2);
    suite_add_loop(suite, name_of_a_worker_that_waits_for_its_step_is_taken, 2);
    suite_add(suite, worker_that_joins_and_does_not_register_is_told_that_its_time_is_over);
    suite_add(suite, daemon_says_which_workers_it_waits_for);
    suite_add_loop(suite, killed_worker_is_evicted_and_the_others_go_on, 2);
    suite_add_loop(suite, stopped_worker_loses_its_lease_and_is_told_so, 2);
    suite_add_loop(suite, worker_that_computes_for_long_keeps_its_lease, 2);
    return suite_run(suite);
}
