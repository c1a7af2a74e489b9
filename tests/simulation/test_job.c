/* The life of a job: commands, drains, dead and stopped ranks, readers that lag, and what a peer's
 * mistake leads to. */
#include "tests/simulation/scenario.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIRECT "aggregation: direct\nblock_size: 8\nworkers: {expected: 2}\n"
#define ALLREDUCE "aggregation: allreduce\nblock_size: 2\nworkers: {expected: 2}\n"

/* A push of worker 0 for a step of the test's choice, on its connection to rank 0. */
static void push_out_of_turn(struct scenario *scenario, uint64_t step)
{
    const struct sim_worker *worker = &scenario->simulation.workers[0];
    const struct sim_contact *contact = &worker->contacts[0];
    float *values = sim_alloc(contact->element_count, sizeof *values);
    struct pd_message push = {.kind = PD_MESSAGE_PUSH,
                              .push = {.step = step,
                                       .last = true,
                                       .samples = 1,
                                       .element_begin = contact->element_begin,
                                       .element_count = contact->element_count}};

    ck_assert_uint_eq(contact->rank, 0);
    sim_link_say(contact->link, 0, &push, values, contact->element_count * sizeof *values, true);
    free(values);
}

START_TEST(push_for_the_past_is_a_duplicate_and_for_the_future_is_refused)
{
    struct scenario *scenario = scenario_create(1, 2, 2, 6, DIRECT);
    struct sim_worker *worker = &scenario->simulation.workers[0];
    scenario->plan.workers[0].compute_us = 20000;
    scenario_start(scenario);
    worker->tolerant = true;
    scenario_run_to(scenario, 0, SIM_PHASE_COMPUTING, 3);
    push_out_of_turn(scenario, 1);
    scenario_run_for(scenario, 1500);
    ck_assert_uint_eq(worker->duplicates, 1);
    ck_assert_uint_eq(worker->refusals, 0);
    scenario_run_to(scenario, 0, SIM_PHASE_COMPUTING, 4);
    push_out_of_turn(scenario, 9);
    scenario_run_for(scenario, 1500);
    ck_assert_uint_eq(worker->refusals, 1);
    ck_assert_ptr_nonnull(strstr(worker->last_error, "from the future"));
    ck_assert_uint_eq(worker->phase, SIM_PHASE_COMPUTING);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 6);
    scenario_finish(scenario);
}
END_TEST

START_TEST(push_for_a_step_before_the_worker_came_is_refused)
{
    struct scenario *scenario = scenario_create(2, 1, 3, 8, DIRECT);
    struct sim_worker *worker = &scenario->simulation.workers[2];
    scenario->plan.workers[0].compute_us = 20000;
    scenario->plan.workers[2].start_us = 100000;
    scenario->plan.workers[2].compute_us = 40000;
    scenario_start(scenario);
    worker->tolerant = true;
    while (worker->phase != SIM_PHASE_COMPUTING) {
        scenario_run_for(scenario, 10);
    }
    ck_assert_uint_ge(worker->step, 1);
    struct pd_message push = {.kind = PD_MESSAGE_PUSH,
                              .push = {.step = worker->step - 1,
                                       .last = true,
                                       .element_count = worker->contacts[0].element_count}};
    uint64_t payload_bytes = push.push.element_count * sizeof(float);
    float *values = sim_alloc(push.push.element_count, sizeof *values);
    sim_link_say(worker->contacts[0].link, 0, &push, values, payload_bytes, true);
    scenario_run_for(scenario, 1500);
    ck_assert_ptr_nonnull(strstr(worker->last_error, "from the past"));
    free(values);
    scenario_run_to(scenario, 2, SIM_PHASE_DONE, 8);
    scenario_finish(scenario);
}
END_TEST

START_TEST(pause_holds_steps_from_the_one_it_names_until_resume)
{
    struct scenario *scenario = scenario_create(3, 3, 2, 12, DIRECT);
    scenario_start(scenario);
    scenario_run_to_step(scenario, 4);
    const char *reply = scenario_ask(scenario, "pause", "", NULL);
    uint64_t named = strtoull(strstr(reply, "\"step\":") + 7, NULL, 10);
    scenario_run_for(scenario, 3000000);
    ck_assert_uint_eq(scenario_steps(scenario), named);
    ck_assert_ptr_nonnull(
        strstr(scenario_ask(scenario, "status", "", NULL), "\"state\":\"paused\""));
    reply = scenario_ask(scenario, "resume", "", NULL);
    ck_assert_uint_eq(strtoull(strstr(reply, "\"step\":") + 7, NULL, 10), named);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 12);
    scenario_finish(scenario);
}
END_TEST

/* The checks at the end compare the rate of every step with what was asked. */
START_TEST(rate_set_by_hand_is_in_force_from_the_step_it_names)
{
    struct scenario *scenario = scenario_create(
        4, 3, 2, 14,
        ALLREDUCE
        "groups: [{name: flat, max_dims: 1, lr: 0.002}]\noptimizer: {name: sgd, lr: 0.01}\n"
        "schedule: {name: step, step_size: 3, gamma: 0.5}\n");
    double lr = 0.125;
    scenario_start(scenario);
    scenario_run_to_step(scenario, 4);
    ck_assert_ptr_nonnull(strstr(scenario_ask(scenario, "set-lr", "flat", &lr), "\"step\":"));
    scenario_run_to_step(scenario, 7);
    ck_assert_ptr_nonnull(strstr(scenario_ask(scenario, "set-lr", "", &lr), "\"step\":"));
    scenario_run_to_step(scenario, 10);
    ck_assert_ptr_nonnull(strstr(scenario_ask(scenario, "set-lr", "", NULL), "schedule"));
    lr = -1.0;
    ck_assert_ptr_nonnull(strstr(scenario_ask(scenario, "set-lr", "", &lr), "allowed"));
    lr = NAN;
    ck_assert_ptr_nonnull(strstr(scenario_ask(scenario, "set-lr", "", &lr), "allowed"));
    lr = 0.5;
    ck_assert_ptr_nonnull(strstr(scenario_ask(scenario, "set-lr", "no", &lr), "no group"));
    ck_assert_uint_eq(scenario->simulation.oracle.override_count, 1 + 2 + 2);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 14);
    const struct sim_step *steps = scenario->simulation.oracle.steps;
    ck_assert(fabs(steps[8].lrs[0] - 0.125) < 1e-12 && fabs(steps[8].lrs[1] - 0.025) < 1e-12);
    ck_assert(fabs(steps[12].lrs[0] - 0.01 / 16) < 1e-12);
    scenario_finish(scenario);
}
END_TEST

START_TEST(drain_ends_the_running_step_and_tells_workers)
{
    struct scenario *scenario = scenario_create(5, 2, 2, 100, DIRECT);
    struct sim_simulation *simulation = &scenario->simulation;
    scenario->plan.workers[1].compute_us = 400000;
    scenario_start(scenario);
    scenario_run_to(scenario, 0, SIM_PHASE_PUSHING, 3);
    scenario_run_for(scenario, 5000);
    uint64_t steps = scenario_steps(scenario);
    scenario->plan.drained_early = true;
    scenario_ask(scenario, "drain", "", NULL);
    while (sim_cluster_count(&simulation->cluster, SIM_RANK_RUNNING) > 0) {
        scenario_run_for(scenario, 1000);
    }
    ck_assert_uint_eq(sim_cluster_count(&simulation->cluster, SIM_RANK_EXITED), 2);
    ck_assert_uint_eq(scenario_steps(scenario), steps + 1);
    scenario_run_for(scenario, 3000000);
    ck_assert(simulation->workers[0].draining && simulation->workers[1].draining);
    ck_assert_uint_eq(simulation->workers[0].phase, SIM_PHASE_DONE);
    ck_assert_uint_eq(simulation->workers[1].phase, SIM_PHASE_DONE);
    sim_cluster_check_orders(&simulation->cluster);
    scenario_destroy(scenario);
}
END_TEST

START_TEST(drain_does_not_wait_for_a_step_for_ever)
{
    struct scenario *scenario =
        scenario_create(6, 2, 2, 100, DIRECT "drain_timeout_s: 2\nrank_timeout_s: 60\n");
    struct sim_simulation *simulation = &scenario->simulation;
    scenario->plan.workers[1].compute_us = 20000000;
    scenario_start(scenario);
    while (simulation->workers[0].phase != SIM_PHASE_PUSHING) {
        scenario_run_for(scenario, 100);
    }
    scenario_run_for(scenario, 5000);
    uint64_t asked_us = simulation->agenda.now_us;
    sim_rank_drain(&simulation->cluster.ranks[1], "signal 15");
    simulation->drained = true;
    while (sim_cluster_count(&simulation->cluster, SIM_RANK_RUNNING) > 0) {
        scenario_run_for(scenario, 1000);
    }
    ck_assert_uint_le(simulation->agenda.now_us - asked_us, 2600000);
    ck_assert_ptr_nonnull(strstr(simulation->cluster.ranks[0].end_text, "signal 15"));
    scenario_destroy(scenario);
}
END_TEST

START_TEST(join_during_a_drain_is_refused)
{
    struct scenario *scenario = scenario_create(7, 1, 2, 100, DIRECT);
    scenario->plan.workers[1].compute_us = 2000000;
    scenario_start(scenario);
    while (scenario->simulation.workers[0].phase != SIM_PHASE_PUSHING) {
        scenario_run_for(scenario, 100);
    }
    scenario_run_for(scenario, 5000);
    struct scenario_peer *peer = scenario_peer_create(scenario, 0, true);
    sim_rank_drain(&scenario->simulation.cluster.ranks[0], "signal 10");
    scenario->simulation.drained = true;
    struct pd_message join = {.kind = PD_MESSAGE_JOIN, .join = {.name = "late"}};
    scenario_peer_ask(scenario, peer, &join, NULL, 0);
    ck_assert_int_eq(peer->status, PD_EDRAINING);
    while (sim_cluster_count(&scenario->simulation.cluster, SIM_RANK_RUNNING) > 0) {
        scenario_run_for(scenario, 1000);
    }
    scenario_run_for(scenario, 100000);
    scenario_peer_destroy(peer);
    scenario_destroy(scenario);
}
END_TEST

/* A guest that pulls and then does not read. */
START_TEST(reader_of_an_old_version_does_not_hold_up_a_step)
{
    struct scenario *scenario = scenario_create(8, 2, 2, 9, DIRECT "send_timeout_s: 1000\n");
    scenario_start(scenario);
    scenario_run_to_step(scenario, 2);
    struct scenario_peer *peer = scenario_peer_create(scenario, 0, true);
    struct pd_message pull = {.kind = PD_MESSAGE_PULL};
    peer->stalls = true;
    scenario_peer_ask(scenario, peer, &pull, NULL, 0);
    ck_assert_int_eq(peer->kind, PD_MESSAGE_PULLED);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 9);
    ck_assert_uint_le(scenario->simulation.agenda.now_us, 3000000);
    ck_assert(peer->closed);
    scenario_peer_destroy(peer);
    scenario_finish(scenario);
}
END_TEST

static void check_stopped(uint64_t seed, uint32_t rank, const char *config)
{
    struct scenario *scenario = scenario_create(seed, 3, 2, 1000, config);
    struct sim_simulation *simulation = &scenario->simulation;
    char name[16];

    scenario_start(scenario);
    scenario_run_to_step(scenario, 3);
    simulation->killed = true;
    uint64_t stopped_us = simulation->agenda.now_us;
    sim_rank_stop(&simulation->cluster.ranks[rank], 3600000000u);
    while (sim_cluster_count(&simulation->cluster, SIM_RANK_ABORTED) < 2) {
        scenario_run_for(scenario, 1000);
    }
    ck_assert_uint_le(simulation->agenda.now_us - stopped_us, 6500000);
    snprintf(name, sizeof name, "rank %u ", rank);
    ck_assert_msg(strstr(simulation->first_abort, name) != NULL ||
                      strstr(simulation->first_abort, "a collective is stuck") != NULL,
                  "%s", simulation->first_abort);
    scenario_destroy(scenario);
}

START_TEST(stopped_rank_ends_the_job_with_its_name)
{
    check_stopped(9, 2, DIRECT "rank_timeout_s: 4\n");
}
END_TEST

START_TEST(stopped_rank_0_ends_the_job_with_its_name)
{
    check_stopped(10, 0, ALLREDUCE "rank_timeout_s: 4\n");
}
END_TEST

START_TEST(rank_stopped_for_less_than_its_time_does_no_harm)
{
    for (uint32_t rank = 0; rank < 3; rank++) {
        struct scenario *scenario = scenario_create(11 + rank, 3, 2, 30, DIRECT);
        scenario_start(scenario);
        scenario_run_to_step(scenario, 3);
        sim_rank_stop(&scenario->simulation.cluster.ranks[rank], 6000000);
        scenario_run_to(scenario, 0, SIM_PHASE_DONE, 30);
        ck_assert_uint_eq(scenario->simulation.ledger.evicted, 0);
        scenario_finish(scenario);
    }
}
END_TEST

START_TEST(killed_rank_ends_the_job_with_its_name)
{
    for (uint32_t rank = 0; rank < 3; rank++) {
        struct scenario *scenario = scenario_create(14 + rank, 3, 2, 1000, ALLREDUCE);
        scenario->plan.kill_rank = rank;
        scenario->plan.kill_us = 2000000;
        scenario_start(scenario);
        scenario_finish(scenario);
    }
}
END_TEST

/* ---- In the middle of the buckets of a step ---- */

static uint64_t under_way(const struct scenario *scenario, uint32_t rank)
{
    const struct sim_rank *here = &scenario->simulation.cluster.ranks[rank];
    return here->collectives_asked - here->collectives_done;
}

/* Run until two collectives are under way on a rank, in the last step that is closed. */
static void run_to_buckets(struct scenario *scenario, uint32_t rank, uint64_t step)
{
    scenario_run_to_step(scenario, step);
    while (under_way(scenario, rank) < 2) {
        scenario_run_for(scenario, 1);
    }
}

START_TEST(rank_killed_between_buckets_ends_the_job_with_its_name)
{
    for (uint32_t rank = 0; rank < 3; rank++) {
        struct scenario *scenario =
            scenario_create(30 + rank, 3, 3, 1000, ALLREDUCE "rank_timeout_s: 4\n");
        struct sim_simulation *simulation = &scenario->simulation;
        char name[16];
        scenario_start(scenario);
        run_to_buckets(scenario, rank, 3);
        simulation->killed = true;
        sim_rank_kill(&simulation->cluster.ranks[rank]);
        while (sim_cluster_count(&simulation->cluster, SIM_RANK_RUNNING) > 0) {
            scenario_run_for(scenario, 1000);
        }
        snprintf(name, sizeof name, "rank %u ", rank);
        ck_assert_ptr_nonnull(strstr(simulation->first_abort, name));
        scenario_destroy(scenario);
    }
}
END_TEST

START_TEST(rank_stopped_between_buckets_ends_the_job)
{
    for (uint32_t rank = 0; rank < 3; rank++) {
        struct scenario *scenario =
            scenario_create(33 + rank, 3, 3, 1000, ALLREDUCE "rank_timeout_s: 4\n");
        struct sim_simulation *simulation = &scenario->simulation;
        scenario_start(scenario);
        run_to_buckets(scenario, rank, 3);
        simulation->killed = true;
        uint64_t stopped_us = simulation->agenda.now_us;
        sim_rank_stop(&simulation->cluster.ranks[rank], 3600000000u);
        while (sim_cluster_count(&simulation->cluster, SIM_RANK_ABORTED) < 2) {
            scenario_run_for(scenario, 1000);
        }
        ck_assert_uint_le(simulation->agenda.now_us - stopped_us, 6500000);
        scenario_destroy(scenario);
    }
}
END_TEST

/* The step goes on with what the worker has given; those after it without the worker. */
START_TEST(worker_lost_between_buckets_is_still_in_their_step)
{
    struct scenario *scenario = scenario_create(
        36, 2, 3, 12,
        "aggregation: allreduce\nblock_size: 2\nworkers: {expected: 3, resume_s: 1}\n");
    scenario_start(scenario);
    run_to_buckets(scenario, 1, 3);
    uint64_t steps = scenario_steps(scenario);
    sim_worker_crash(&scenario->simulation.workers[2]);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 12);
    ck_assert_uint_eq(scenario_counted(scenario, "worker2"), steps);
    scenario_finish(scenario);
}
END_TEST

START_TEST(drain_asked_for_between_buckets_lets_the_step_end)
{
    static const char *const commands[] = {"drain", "stop"};
    for (size_t i = 0; i < 2; i++) {
        struct scenario *scenario = scenario_create(37 + i, 2, 2, 100, ALLREDUCE);
        struct sim_simulation *simulation = &scenario->simulation;
        scenario_start(scenario);
        run_to_buckets(scenario, 1, 3);
        uint64_t steps = scenario_steps(scenario);
        scenario->plan.drained_early = true;
        scenario_ask(scenario, commands[i], "", NULL);
        while (sim_cluster_count(&simulation->cluster, SIM_RANK_RUNNING) > 0) {
            scenario_run_for(scenario, 1000);
        }
        ck_assert_uint_eq(sim_cluster_count(&simulation->cluster, SIM_RANK_EXITED), 2);
        for (uint32_t rank = 0; rank < 2; rank++) {
            ck_assert_uint_ge(simulation->cluster.ranks[rank].version, steps);
        }
        sim_cluster_check_orders(&simulation->cluster);
        scenario_destroy(scenario);
    }
}
END_TEST

START_TEST(nonfinite_gradient_skips_the_step_and_is_explained)
{
    struct scenario *scenario = scenario_create(17, 3, 2, 6, DIRECT "clip: {value: 0.1}\n");
    scenario->plan.workers[1].poison_one_in = 2;
    scenario_start(scenario);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 6);
    ck_assert_uint_gt(scenario->simulation.oracle.skipped, 0);
    const char *status = scenario_ask(scenario, "status", "", NULL);
    char skipped[64];
    snprintf(skipped, sizeof skipped, "\"skipped_steps\":%u,",
             (unsigned)scenario->simulation.oracle.skipped);
    ck_assert_ptr_nonnull(strstr(status, skipped));
    ck_assert_ptr_nonnull(
        strstr(status, "'worker1' is not finite: tensor 'embed.weight', element 0"));
    scenario_finish(scenario);
}
END_TEST

START_TEST(steps_allocate_nothing_after_the_first_few)
{
    static const char *const configs[] = {
        DIRECT "accumulation_steps: 2\noptimizer: {name: lamb}\n",
        ALLREDUCE "accumulation_steps: 2\noptimizer: {name: adamw}\n",
        ALLREDUCE "lanes: 2\noptimizer: {name: sgd, momentum: 0.9}\n",
    };
    for (size_t i = 0; i < sizeof configs / sizeof configs[0]; i++) {
        struct scenario *scenario = scenario_create(18 + i, 4, 4, 60, configs[i]);
        size_t allocations[4];
        for (uint32_t k = 0; k < 4; k++) {
            scenario->plan.workers[k].push_dtype = (enum pd_dtype)(k % 3);
            scenario->plan.workers[k].pull_dtype = (enum pd_dtype)((k + 1) % 3);
            scenario->plan.workers[k].combined = k % 2 == 0;
        }
        scenario_start(scenario);
        scenario_run_to_step(scenario, 10);
        for (uint32_t rank = 0; rank < 4; rank++) {
            allocations[rank] = scenario->simulation.cluster.ranks[rank].allocations;
        }
        scenario_run_to_step(scenario, 55);
        for (uint32_t rank = 0; rank < 4; rank++) {
            ck_assert_uint_eq(scenario->simulation.cluster.ranks[rank].allocations,
                              allocations[rank]);
        }
        scenario_finish(scenario);
    }
}
END_TEST

START_TEST(questions_and_commands_answer_with_json_or_a_line)
{
    static const char *const questions[] = {"status",   "lr",      "step",
                                            "schedule", "workers", "tensors"};
    struct scenario *scenario = scenario_create(21, 2, 2, 40, DIRECT);
    scenario_start(scenario);
    scenario_run_to_step(scenario, 2);
    for (size_t i = 0; i < sizeof questions / sizeof questions[0]; i++) {
        ck_assert_int_eq(scenario_ask(scenario, questions[i], "", NULL)[0], '{');
    }
    ck_assert_ptr_nonnull(
        strstr(scenario_ask(scenario, "checkpoint", "", NULL), "keeps no checkpoints"));
    ck_assert_ptr_nonnull(
        strstr(scenario_ask(scenario, "dance", "", NULL), "unknown command 'dance'"));
    scenario_finish(scenario);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("job");
    TCase *tests = tcase_create("scenarios");

    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, push_for_the_past_is_a_duplicate_and_for_the_future_is_refused);
    tcase_add_test(tests, push_for_a_step_before_the_worker_came_is_refused);
    tcase_add_test(tests, pause_holds_steps_from_the_one_it_names_until_resume);
    tcase_add_test(tests, rate_set_by_hand_is_in_force_from_the_step_it_names);
    tcase_add_test(tests, drain_ends_the_running_step_and_tells_workers);
    tcase_add_test(tests, drain_does_not_wait_for_a_step_for_ever);
    tcase_add_test(tests, join_during_a_drain_is_refused);
    tcase_add_test(tests, reader_of_an_old_version_does_not_hold_up_a_step);
    tcase_add_test(tests, stopped_rank_ends_the_job_with_its_name);
    tcase_add_test(tests, stopped_rank_0_ends_the_job_with_its_name);
    tcase_add_test(tests, rank_stopped_for_less_than_its_time_does_no_harm);
    tcase_add_test(tests, killed_rank_ends_the_job_with_its_name);
    tcase_add_test(tests, rank_killed_between_buckets_ends_the_job_with_its_name);
    tcase_add_test(tests, rank_stopped_between_buckets_ends_the_job);
    tcase_add_test(tests, worker_lost_between_buckets_is_still_in_their_step);
    tcase_add_test(tests, drain_asked_for_between_buckets_lets_the_step_end);
    tcase_add_test(tests, nonfinite_gradient_skips_the_step_and_is_explained);
    tcase_add_test(tests, steps_allocate_nothing_after_the_first_few);
    tcase_add_test(tests, questions_and_commands_answer_with_json_or_a_line);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
