/* Who takes part, and what of it counts: one scenario for each promise. */
#include "tests/simulation/scenario.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIRECT                                                                                     \
    "aggregation: direct\nblock_size: 8\nworkers: {expected: 2, lease_s: 8, resume_s: 3}\n"
#define ALLREDUCE                                                                                  \
    "aggregation: allreduce\nblock_size: 2\nworkers: {expected: 2, lease_s: 8, resume_s: 3}\n"

/* Elements of the calm model, and the lane of rank 0 when it has two lanes. */
static struct pd_range lane_of(const struct scenario *scenario, uint32_t lane)
{
    struct pd_shard_plan *shards;
    struct pd_error error = {0};
    enum pd_status status = pd_shard_plan_create(
        &shards, &scenario->plan.model, (uint32_t)scenario->simulation.config->block_size,
        scenario->plan.rank_count, scenario->simulation.cluster.lane_count, &error);

    ck_assert_int_eq(status, PD_OK);
    struct pd_range range = shards->lanes[lane];
    pd_shard_plan_destroy(shards);
    return range;
}

START_TEST(worker_that_runs_out_of_batches_lets_the_others_go_on)
{
    struct scenario *scenario = scenario_create(1, 2, 2, 8, DIRECT);
    scenario->plan.workers[1].last_step = 3;
    scenario_start(scenario);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 8);
    ck_assert_uint_eq(scenario_steps(scenario), 8);
    ck_assert_uint_eq(scenario_counted(scenario, "worker0"), 8);
    ck_assert_uint_eq(scenario_counted(scenario, "worker1"), 3);
    ck_assert_uint_eq(scenario->simulation.ledger.evicted, 0);
    scenario_finish(scenario);
}
END_TEST

START_TEST(acknowledged_micro_batches_of_a_leaver_count)
{
    struct scenario *scenario = scenario_create(2, 3, 2, 5, DIRECT "accumulation_steps: 3\n");
    scenario->plan.workers[1].last_step = 2;
    scenario->plan.workers[1].leave_batches = 2;
    scenario_start(scenario);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 5);
    ck_assert_uint_eq(scenario_counted(scenario, "worker1"), 3);
    scenario_finish(scenario);
}
END_TEST

START_TEST(worker_that_dies_incomplete_counts_nowhere_and_is_waited_for_as_configured)
{
    struct scenario *scenario = scenario_create(3, 2, 2, 4, DIRECT "accumulation_steps: 2\n");
    scenario->plan.workers[1].compute_us = 1000000;
    scenario->plan.workers[1].return_us = 0;
    scenario_start(scenario);
    struct sim_worker *dying = &scenario->simulation.workers[1];
    while (dying->phase != SIM_PHASE_COMPUTING || dying->step != 1 || dying->micro_batch != 1) {
        scenario_run_for(scenario, 100);
    }
    sim_worker_crash(dying);
    uint64_t crashed_us = scenario->simulation.agenda.now_us;
    ck_assert_uint_eq(scenario_steps(scenario), 1);
    scenario_run_to_step(scenario, 2);
    uint64_t waited_us = scenario->simulation.agenda.now_us - crashed_us;
    ck_assert_uint_ge(waited_us, 3000000);
    ck_assert_uint_le(waited_us, 3600000);
    ck_assert_uint_eq(scenario->simulation.ledger.evicted, 1);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 4);
    ck_assert_uint_eq(scenario_counted(scenario, "worker1"), 1);
    ck_assert_uint_eq(scenario_counted(scenario, "worker0"), 4);
    scenario_finish(scenario);
}
END_TEST

START_TEST(worker_that_dies_complete_still_counts)
{
    struct scenario *scenario = scenario_create(4, 2, 2, 3, DIRECT);
    scenario->plan.workers[0].compute_us = 2000000;
    scenario_start(scenario);
    while (scenario->simulation.workers[1].phase != SIM_PHASE_PUSHING) {
        scenario_run_for(scenario, 100);
    }
    scenario_run_for(scenario, 20000);
    ck_assert_uint_eq(scenario_steps(scenario), 0);
    sim_worker_crash(&scenario->simulation.workers[1]);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 3);
    ck_assert_uint_eq(scenario_counted(scenario, "worker1"), 1);
    ck_assert_uint_eq(scenario->simulation.ledger.evicted, 1);
    scenario_finish(scenario);
}
END_TEST

START_TEST(silent_worker_is_evicted_when_its_lease_is_over)
{
    struct scenario *scenario = scenario_create(5, 2, 2, 4, DIRECT);
    scenario_start(scenario);
    scenario_run_to(scenario, 1, SIM_PHASE_COMPUTING, 2);
    sim_worker_hang(&scenario->simulation.workers[1], 30000000);
    uint64_t hung_us = scenario->simulation.agenda.now_us;
    scenario_run_to_step(scenario, 3);
    uint64_t waited_us = scenario->simulation.agenda.now_us - hung_us;
    ck_assert_uint_ge(waited_us, 7900000);
    ck_assert_uint_le(waited_us, 8600000);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 4);
    ck_assert_uint_eq(scenario->simulation.ledger.evicted, 1);
    while (scenario->simulation.workers[1].phase != SIM_PHASE_DONE) {
        scenario_run_for(scenario, 1000);
    }
    ck_assert_uint_eq(scenario->simulation.workers[1].evictions, 1);
    ck_assert_ptr_nonnull(strstr(scenario->simulation.workers[1].last_error, "lease is over"));
    scenario_finish(scenario);
}
END_TEST

START_TEST(evicted_worker_joins_again_under_its_name)
{
    struct scenario *scenario = scenario_create(6, 2, 2, 6, ALLREDUCE);
    scenario->plan.workers[1].return_us = 1000;
    scenario->plan.workers[0].compute_us = 3000000;
    scenario_start(scenario);
    scenario_run_to(scenario, 1, SIM_PHASE_COMPUTING, 2);
    sim_worker_hang(&scenario->simulation.workers[1], 9000000);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 6);
    ck_assert_uint_eq(scenario->simulation.ledger.evicted, 1);
    ck_assert_uint_eq(scenario->simulation.ledger.member_count, 3);
    ck_assert_uint_ge(scenario_counted(scenario, "worker1"), 2);
    scenario_finish(scenario);
}
END_TEST

START_TEST(second_worker_of_a_name_is_refused_while_the_first_lives)
{
    struct scenario *scenario = scenario_create(7, 2, 2, 5, DIRECT);
    scenario_start(scenario);
    scenario_run_to_step(scenario, 2);
    struct scenario_peer *peer = scenario_peer_create(scenario, 0, true);
    struct pd_message join = {.kind = PD_MESSAGE_JOIN, .join = {.name = "worker1"}};
    scenario_peer_ask(scenario, peer, &join, NULL, 0);
    ck_assert_int_eq(peer->kind, PD_MESSAGE_ERROR);
    ck_assert_int_eq(peer->status, PD_EIDENTITY);
    ck_assert_ptr_nonnull(strstr(peer->text, "the name 'worker1' belongs to worker"));
    scenario_peer_destroy(peer);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 5);
    ck_assert_uint_eq(scenario_counted(scenario, "worker1"), 5);
    scenario_finish(scenario);
}
END_TEST

START_TEST(token_of_another_worker_opens_no_session)
{
    struct scenario *scenario = scenario_create(8, 2, 2, 5, DIRECT);
    scenario_start(scenario);
    scenario_run_to_step(scenario, 2);
    const struct sim_worker *worker = &scenario->simulation.workers[1];
    struct scenario_peer *peer = scenario_peer_create(scenario, 0, false);
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO,
                               .hello = {.has_worker_id = true,
                                         .worker_id = worker->worker_id,
                                         .token = worker->token + 1,
                                         .run_id = worker->run_id}};
    scenario_peer_ask(scenario, peer, &hello, NULL, 0);
    ck_assert_int_eq(peer->status, PD_EIDENTITY);
    ck_assert_ptr_nonnull(strstr(peer->text, "not the token"));
    scenario_peer_destroy(peer);
    scenario_finish(scenario);
}
END_TEST

START_TEST(another_worker_supplies_the_values_when_the_first_dies)
{
    struct scenario *scenario = scenario_create(9, 2, 2, 4, DIRECT);
    struct sim_worker *workers = scenario->simulation.workers;
    scenario->plan.workers[0].return_us = 1000;
    scenario->plan.workers[1].return_us = 1000;
    scenario_start(scenario);
    while (workers[0].phase != SIM_PHASE_FEEDING && workers[1].phase != SIM_PHASE_FEEDING) {
        scenario_run_for(scenario, 10);
    }
    uint32_t dying = workers[0].phase == SIM_PHASE_FEEDING ? 0 : 1;
    uint32_t first = workers[dying].worker_id;
    scenario_run_for(scenario, 400);
    sim_worker_crash(&workers[dying]);
    ck_assert_uint_eq(scenario->simulation.publish_count, 0);
    scenario_run_to(scenario, 1 - dying, SIM_PHASE_DONE, 4);
    ck_assert_uint_eq(scenario->simulation.publish_count, 1);
    ck_assert_uint_ne(scenario->simulation.initializer, first);
    scenario_finish(scenario);
}
END_TEST

START_TEST(model_that_differs_is_refused_with_the_first_difference)
{
    struct scenario *scenario = scenario_create(10, 2, 2, 5, DIRECT);
    struct pd_error error = {0};
    scenario_start(scenario);
    scenario_run_to_step(scenario, 1);
    struct scenario_peer *peer = scenario_peer_create(scenario, 0, true);
    struct pd_message join = {.kind = PD_MESSAGE_JOIN};
    scenario_peer_ask(scenario, peer, &join, NULL, 0);
    ck_assert_int_eq(peer->kind, PD_MESSAGE_JOINED);
    ck_assert_ptr_nonnull(strstr(peer->joined.name, "worker-"));
    struct pd_message offer = {.kind = PD_MESSAGE_REGISTER};
    ck_assert_int_eq(pd_tensor_list_init(&offer.registration.tensors, 1, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(&offer.registration.tensors, "embed.weight", 12, 1,
                                           (const uint64_t[]){35}, &error),
                     PD_OK);
    scenario_peer_ask(scenario, peer, &offer, NULL, 0);
    ck_assert_int_eq(peer->status, PD_EMODEL);
    ck_assert_ptr_nonnull(strstr(peer->text, "embed.weight"));
    pd_message_finish(&offer);
    scenario_peer_destroy(peer);
    scenario_finish(scenario);
}
END_TEST

START_TEST(push_of_a_worker_that_takes_no_part_changes_nothing)
{
    struct scenario *scenario = scenario_create(11, 1, 2, 6, DIRECT);
    scenario->plan.workers[0].compute_us = 100000;
    scenario_start(scenario);
    scenario_run_to_step(scenario, 2);
    struct scenario_peer *peer = scenario_peer_create(scenario, 0, true);
    struct pd_message join = {.kind = PD_MESSAGE_JOIN, .join = {.name = "intruder"}};
    scenario_peer_ask(scenario, peer, &join, NULL, 0);
    struct pd_range lane = lane_of(scenario, 0);
    float *values = sim_alloc(lane.element_count, sizeof *values);
    struct pd_message push = {.kind = PD_MESSAGE_PUSH,
                              .push = {.step = scenario_steps(scenario),
                                       .last = true,
                                       .samples = 5,
                                       .element_count = lane.element_count}};
    /* The ledger must know of what it is about to see stored. */
    sim_ledger_batch(&scenario->simulation.ledger, peer->joined.worker_id, push.push.step, false, 0)
        ->samples = 5;
    scenario_peer_ask(scenario, peer, &push, values, lane.element_count * sizeof *values);
    scenario_run_for(scenario, 10000);
    ck_assert(peer->closed);
    ck_assert_int_eq(peer->status, PD_EIDENTITY);
    ck_assert_ptr_nonnull(strstr(peer->text, "without having registered"));
    free(values);
    scenario_peer_destroy(peer);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 6);
    ck_assert_uint_eq(scenario_counted(scenario, "intruder"), 0);
    scenario_finish(scenario);
}
END_TEST

START_TEST(administrator_evicts_by_name_and_by_number)
{
    struct scenario *scenario = scenario_create(12, 2, 3, 9, ALLREDUCE);
    scenario->plan.workers[0].compute_us = 50000;
    scenario_start(scenario);
    scenario_run_to_step(scenario, 2);
    ck_assert_ptr_nonnull(strstr(scenario_ask(scenario, "evict", "worker1", NULL), "\"step\":"));
    char number[16];
    snprintf(number, sizeof number, "%u", scenario->simulation.workers[2].worker_id);
    ck_assert_ptr_nonnull(strstr(scenario_ask(scenario, "evict", number, NULL), "worker2"));
    ck_assert_ptr_nonnull(
        strstr(scenario_ask(scenario, "evict", "nobody", NULL), "no worker has the name"));
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 9);
    ck_assert_uint_eq(scenario->simulation.ledger.evicted, 2);
    ck_assert_uint_eq(scenario->simulation.workers[1].evictions, 1);
    ck_assert_uint_eq(scenario_counted(scenario, "worker0"), 9);
    scenario_finish(scenario);
}
END_TEST

START_TEST(join_waits_until_every_rank_is_linked)
{
    struct scenario *scenario = scenario_create(13, 4, 2, 3, DIRECT);
    scenario->plan.workers[0].start_us = 1;
    scenario_start(scenario);
    scenario_run_to(scenario, 0, SIM_PHASE_JOINING, 0);
    ck_assert(!scenario->simulation.cluster.ranks[0].ready);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, 3);
    scenario_finish(scenario);
}
END_TEST

/* Rank 1 has no workers and closes its steps late: a worker that comes to it is told to begin with
 * a step that rank 1 has not got to. */
START_TEST(worker_joins_a_home_that_lags)
{
    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct scenario *scenario = scenario_create(
            seed, 2, 2, 12, "aggregation: allreduce\nblock_size: 2\nworkers: {expected: 1}\n");
        scenario->plan.workers[1].start_us = 1500000;
        scenario_start(scenario);
        scenario->simulation.cluster.ranks[1].slow = 2000;
        scenario_run_to(scenario, 1, SIM_PHASE_REGISTERING, 0);
        sim_worker_hang(&scenario->simulation.workers[1], 150000 * seed);
        scenario_run_to(scenario, 1, SIM_PHASE_DONE, 12);
        scenario_finish(scenario);
    }
}
END_TEST

/* An empty step needs no collective: even so, no rank falls behind by more than one. */
START_TEST(steps_without_samples_leave_no_rank_behind)
{
    struct scenario *scenario = scenario_create(
        14, 3, 1, 30, "aggregation: allreduce\nblock_size: 2\nworkers: {expected: 1}\n");
    scenario->plan.workers[0].empty_one_in = 1;
    scenario->plan.workers[0].compute_us = 1;
    scenario_start(scenario);
    scenario->simulation.cluster.ranks[2].slow = 500;
    scenario->simulation.network.straggle_one_in = 3;
    while (scenario->simulation.workers[0].phase != SIM_PHASE_DONE) {
        scenario_run_for(scenario, 100);
        ck_assert_uint_le(scenario->simulation.cluster.ranks[0].version,
                          scenario->simulation.cluster.ranks[2].version + 1);
    }
    ck_assert_uint_eq(scenario->simulation.oracle.skipped, 30);
    scenario_finish(scenario);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("members");
    TCase *tests = tcase_create("scenarios");

    tcase_set_timeout(tests, 20);
    tcase_add_test(tests, worker_that_runs_out_of_batches_lets_the_others_go_on);
    tcase_add_test(tests, acknowledged_micro_batches_of_a_leaver_count);
    tcase_add_test(tests,
                   worker_that_dies_incomplete_counts_nowhere_and_is_waited_for_as_configured);
    tcase_add_test(tests, worker_that_dies_complete_still_counts);
    tcase_add_test(tests, silent_worker_is_evicted_when_its_lease_is_over);
    tcase_add_test(tests, evicted_worker_joins_again_under_its_name);
    tcase_add_test(tests, second_worker_of_a_name_is_refused_while_the_first_lives);
    tcase_add_test(tests, token_of_another_worker_opens_no_session);
    tcase_add_test(tests, another_worker_supplies_the_values_when_the_first_dies);
    tcase_add_test(tests, model_that_differs_is_refused_with_the_first_difference);
    tcase_add_test(tests, push_of_a_worker_that_takes_no_part_changes_nothing);
    tcase_add_test(tests, administrator_evicts_by_name_and_by_number);
    tcase_add_test(tests, join_waits_until_every_rank_is_linked);
    tcase_add_test(tests, worker_joins_a_home_that_lags);
    tcase_add_test(tests, steps_without_samples_leave_no_rank_behind);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
