/* Less room for gradients than workers: whoever pushes first, dies or comes late, steps close, and
 * what they come to is to the bit what it is with room for all. */
#include "tests/simulation/scenario.h"

#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKERS 5u
#define STEPS 12u

/* A cluster with room for the gradients of so many workers at a time on a rank; 0: for all. Those
 * that are first in the order of summation push last. */
static struct scenario *create(uint64_t seed, uint32_t rank_count, uint32_t place_count,
                               uint32_t expected, const char *config)
{
    struct scenario *scenario = scenario_create(seed, rank_count, WORKERS, STEPS, config);
    struct sim_plan *plan = &scenario->plan;
    char limit[64] = "";

    if (place_count > 0) {
        snprintf(limit, sizeof limit, ", staging_limit: %" PRIu64,
                 place_count * sim_plan_place_bytes(plan) + 3);
    }
    snprintf(plan->config, sizeof plan->config,
             "%sblock_size: 8\nworkers: {expected: %u, lease_s: 8, resume_s: 3%s}\n", config,
             expected, limit);
    plan->delay_us_max = 50 + 400 * (seed % 7);
    plan->work_us_max = 1 + 300 * (seed % 3);
    for (uint32_t i = 0; i < WORKERS; i++) {
        /* They join in the same order, which decides their homes. */
        plan->workers[i].start_us = 1000000 * (i + 1);
        plan->workers[i].compute_us = 1 + 2000 * (WORKERS - i);
        plan->workers[i].push_dtype = (enum pd_dtype)(i % 3);
    }
    return scenario;
}

static void run_to_the_end(struct scenario *scenario)
{
    for (uint32_t i = 0; i < WORKERS; i++) {
        while (scenario->simulation.workers[i].phase != SIM_PHASE_DONE) {
            scenario_run_for(scenario, 1000);
        }
    }
    scenario_run_for(scenario, 1000000);
}

/* What the ranks serve in the end; the caller frees it. Order and delay of everything hang on
 * `seed`; the data does not. */
static float *run(uint64_t seed, uint32_t rank_count, uint32_t place_count, const char *config,
                  size_t *byte_count)
{
    struct scenario *scenario = create(seed, rank_count, place_count, WORKERS, config);
    uint64_t count = scenario->plan.model.element_count;
    float *all = sim_alloc(count, sizeof *all);

    for (uint32_t i = 0; i < WORKERS; i++) {
        struct sim_worker_plan *worker = &scenario->plan.workers[i];
        worker->short_one_in = 3;
        worker->empty_one_in = 5;
        worker->absent_one_in = 2;
        worker->hessian_one_in = 2;
    }
    scenario_start(scenario);
    run_to_the_end(scenario);
    ck_assert_uint_eq(scenario_steps(scenario), STEPS);
    for (uint32_t rank = 0; rank < rank_count; rank++) {
        uint64_t version;
        uint64_t begin;
        uint64_t lane_count;
        const float *lane = pd_engine_parameters(scenario->simulation.cluster.ranks[rank].engine,
                                                 &version, &begin, &lane_count);
        memcpy(all + begin, lane, lane_count * sizeof *lane);
    }
    *byte_count = count * sizeof *all;
    if (place_count > 0) {
        ck_assert_uint_gt(scenario->simulation.ledger.taken, 0);
    } else {
        ck_assert_uint_eq(scenario->simulation.ledger.taken, 0);
    }
    scenario_finish(scenario);
    return all;
}

#define LAMB                                                                                       \
    "aggregation: direct\naccumulation_steps: 3\nclip: {norm: 0.5, value: 0.6}\n"                  \
    "optimizer: {name: lamb, lr: 0.02, weight_decay: 0.05}\n"                                      \
    "groups: [{name: flat, max_dims: 1, frozen: true}]\n"
#define SOPHIA "accumulation_steps: 2\noptimizer: {name: sophia_g, lr: 0.01, bs: 50}\n"

static const char *const kinds[] = {
    "aggregation: direct\noptimizer: {name: adamw, lr: 0.02}\n",
    LAMB,
    "aggregation: direct\n" SOPHIA,
    "aggregation: allreduce\noptimizer: {name: sgd, lr: 0.05, momentum: 0.9}\n",
    "aggregation: allreduce\nclip: {norm: 0.5}\n" SOPHIA,
};

START_TEST(results_are_to_the_bit_those_without_a_limit)
{
    size_t byte_count;

    for (uint32_t rank_count = 1; rank_count <= 3; rank_count++) {
        float *expected = run(1, rank_count, 0, kinds[_i], &byte_count);
        for (uint32_t seed = 2; seed < 8; seed++) {
            /* In `allreduce` the ranks share the five workers. */
            bool shared = strstr(kinds[_i], "allreduce") != NULL && rank_count > 1;
            float *got = run(10 * seed + rank_count, rank_count, shared ? 1 : 1 + seed % 3,
                             kinds[_i], &byte_count);
            ck_assert_mem_eq(got, expected, byte_count);
            free(got);
        }
        free(expected);
    }
}
END_TEST

#define DIRECT "aggregation: direct\noptimizer: {name: adamw, lr: 0.02}\n"
#define ALLREDUCE "aggregation: allreduce\noptimizer: {name: adamw, lr: 0.02}\n"

static bool is_taken(struct scenario *scenario, uint32_t worker_id, uint64_t step)
{
    const struct sim_contribution *contribution =
        sim_ledger_find(&scenario->simulation.ledger, worker_id, step, false);
    return contribution != NULL && contribution->taken;
}

/* Run until the worker's gradient of that step is added up, and the step is open. */
static void run_to_taken(struct scenario *scenario, uint32_t worker, uint64_t step)
{
    while (!is_taken(scenario, scenario->simulation.workers[worker].worker_id, step)) {
        ck_assert_uint_le(scenario_steps(scenario), step);
        scenario_run_for(scenario, 10);
    }
    ck_assert_uint_eq(scenario_steps(scenario), step);
}

START_TEST(worker_first_in_order_that_dies_lets_the_others_go_on)
{
    struct scenario *scenario =
        create((uint64_t)_i, 1 + (uint32_t)_i % 3, 1, WORKERS, _i % 2 ? DIRECT : ALLREDUCE);

    scenario->plan.workers[0].compute_us = 900000;
    scenario_start(scenario);
    scenario_run_to(scenario, 0, SIM_PHASE_COMPUTING, 4);
    sim_worker_hang(&scenario->simulation.workers[0], 5000000);
    scenario_run_for(scenario, 60000);
    sim_worker_crash(&scenario->simulation.workers[0]);
    run_to_the_end(scenario);
    ck_assert_uint_eq(scenario->simulation.ledger.evicted, 1);
    ck_assert_uint_eq(scenario_counted(scenario, "worker0"), 4);
    ck_assert_uint_eq(scenario_counted(scenario, "worker4"), STEPS);
    scenario_finish(scenario);
}
END_TEST

/* Its successor, of the same name, is let in while those before it still have the places. */
START_TEST(worker_that_waits_for_room_and_dies_makes_way_before_its_turn)
{
    struct scenario *scenario = create((uint64_t)_i, 2, 1, WORKERS, DIRECT);
    struct pd_message join = {.kind = PD_MESSAGE_JOIN, .join = {.name = "worker3"}};

    scenario->plan.workers[0].compute_us = 200000;
    scenario_start(scenario);
    scenario_run_to(scenario, 0, SIM_PHASE_COMPUTING, 4);
    sim_worker_hang(&scenario->simulation.workers[0], 5000000);
    scenario_run_to(scenario, 3, SIM_PHASE_PUSHING, 4);
    scenario_run_for(scenario, 100000);
    sim_worker_crash(&scenario->simulation.workers[3]);
    scenario_run_for(scenario, 10000);
    struct scenario_peer *successor = scenario_peer_create(scenario, 0, true);
    scenario_peer_ask(scenario, successor, &join, NULL, 0);
    ck_assert_int_eq(successor->kind, PD_MESSAGE_JOINED);
    ck_assert_uint_eq(scenario_steps(scenario), 4);
    scenario_peer_destroy(successor);
    run_to_the_end(scenario);
    ck_assert_uint_eq(scenario_counted(scenario, "worker3"), 4);
    ck_assert_uint_eq(scenario_counted(scenario, "worker4"), STEPS);
    scenario_finish(scenario);
}
END_TEST

START_TEST(gradient_that_is_whole_on_one_lane_only_counts_on_none)
{
    struct scenario *scenario = create((uint64_t)_i, 3, 1, WORKERS, DIRECT);
    struct sim_ledger *ledger = &scenario->simulation.ledger;
    struct sim_worker *dying = &scenario->simulation.workers[1];
    const struct sim_contribution *contribution = NULL;

    scenario_start(scenario);
    scenario->simulation.network.straggle_one_in = 3;
    while (contribution == NULL || contribution->batches[0].stored_lanes == 0 ||
           sim_batch_whole(ledger, &contribution->batches[0])) {
        scenario_run_for(scenario, 10);
        contribution = sim_ledger_find(ledger, dying->worker_id, dying->step, false);
    }
    uint64_t step = dying->step;
    uint32_t worker_id = dying->worker_id;
    for (uint32_t i = 0; i < dying->contact_count; i++) {
        sim_link_cut(dying->contacts[i].link);
    }
    sim_worker_crash(dying);
    run_to_the_end(scenario);
    contribution = sim_ledger_find(ledger, worker_id, step, false);
    ck_assert(contribution->counted == sim_batch_whole(ledger, &contribution->batches[0]));
    ck_assert_uint_eq(scenario_counted(scenario, "worker0"), STEPS);
    scenario_finish(scenario);
}
END_TEST

/* It is evicted by name, or dies: what has been added up of it stays. */
START_TEST(gradient_that_has_been_added_up_counts_whatever_becomes_of_its_worker)
{
    struct scenario *scenario = create((uint64_t)_i, 2, 1, WORKERS, DIRECT);

    scenario->plan.workers[1].compute_us = 500000;
    scenario_start(scenario);
    run_to_taken(scenario, 0, 3);
    if (_i % 2 == 0) {
        ck_assert_ptr_nonnull(
            strstr(scenario_ask(scenario, "evict", "worker0", NULL), "\"step\":3"));
    } else {
        sim_worker_crash(&scenario->simulation.workers[0]);
    }
    ck_assert_uint_eq(scenario_steps(scenario), 3);
    run_to_the_end(scenario);
    ck_assert_uint_eq(scenario_counted(scenario, "worker0"), 4);
    ck_assert_uint_eq(scenario_counted(scenario, "worker1"), STEPS);
    scenario_finish(scenario);
}
END_TEST

/* What is added up is in the order of names: the step that has begun is not for it. */
START_TEST(worker_that_comes_late_and_is_first_in_order_begins_with_the_next_step)
{
    struct scenario *scenario = create((uint64_t)_i, 2, 1, WORKERS - 1, DIRECT);

    scenario->plan.workers[4].compute_us = 300000;
    scenario->plan.workers[0].start_us = 6000000 + 10000 * (uint64_t)_i;
    scenario_start(scenario);
    run_to_the_end(scenario);
    ck_assert_uint_ge(scenario_counted(scenario, "worker0"), 1);
    ck_assert_uint_lt(scenario_counted(scenario, "worker0"), STEPS);
    ck_assert_uint_eq(scenario_counted(scenario, "worker1"), STEPS);
    scenario_finish(scenario);
}
END_TEST

START_TEST(status_says_who_is_held_back)
{
    struct scenario *scenario = create(1, 2, 2, WORKERS, DIRECT);

    scenario->plan.workers[0].compute_us = 500000;
    scenario_start(scenario);
    scenario_run_to(scenario, 0, SIM_PHASE_COMPUTING, 2);
    scenario_run_for(scenario, 100000);
    const char *status = scenario_ask(scenario, "status", "", NULL);
    ck_assert_ptr_nonnull(strstr(status, "\"name\":\"worker1\",\"state\":\"active\""));
    ck_assert_ptr_nonnull(strstr(status, "\"name\":\"worker2\",\"state\":\"held back\""));
    run_to_the_end(scenario);
    scenario_finish(scenario);
}
END_TEST

/* Its lease is long over by then; but nobody listened to it. */
START_TEST(worker_that_waits_for_room_is_not_taken_for_silent)
{
    struct scenario *scenario = create((uint64_t)_i, 2, 1, WORKERS, DIRECT);

    scenario->plan.workers[0].compute_us = 9000000;
    scenario->plan.workers[0].last_step = 3;
    scenario_start(scenario);
    run_to_the_end(scenario);
    ck_assert_uint_eq(scenario->simulation.ledger.evicted, 0);
    ck_assert_uint_eq(scenario_counted(scenario, "worker4"), STEPS);
    scenario_finish(scenario);
}
END_TEST

START_TEST(daemon_drains_while_workers_wait_for_room)
{
    struct scenario *scenario = create((uint64_t)_i, 2, 1, WORKERS, _i % 2 ? DIRECT : ALLREDUCE);

    scenario->plan.workers[0].compute_us = 60000000;
    scenario->plan.drained_early = true;
    scenario_start(scenario);
    scenario_run_to(scenario, 4, SIM_PHASE_PUSHING, 0);
    scenario_run_for(scenario, 10000);
    scenario_finish(scenario);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("staging");
    TCase *tests = tcase_create("scenarios");

    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, results_are_to_the_bit_those_without_a_limit, 0,
                        sizeof kinds / sizeof kinds[0]);
    tcase_add_loop_test(tests, worker_first_in_order_that_dies_lets_the_others_go_on, 1, 7);
    tcase_add_loop_test(tests, worker_that_waits_for_room_and_dies_makes_way_before_its_turn, 1, 5);
    tcase_add_loop_test(tests, gradient_that_is_whole_on_one_lane_only_counts_on_none, 1, 9);
    tcase_add_loop_test(
        tests, gradient_that_has_been_added_up_counts_whatever_becomes_of_its_worker, 1, 9);
    tcase_add_loop_test(
        tests, worker_that_comes_late_and_is_first_in_order_begins_with_the_next_step, 1, 9);
    tcase_add_test(tests, status_says_who_is_held_back);
    tcase_add_loop_test(tests, worker_that_waits_for_room_is_not_taken_for_silent, 1, 4);
    tcase_add_loop_test(tests, daemon_drains_while_workers_wait_for_room, 1, 5);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
