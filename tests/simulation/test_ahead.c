/* Steps begun while their gradients arrive, in whole clusters: whatever comes between, what workers
 * hold in the end is what the oracle has, which knows nothing of all this. */
#include "server/core/engine_state.h"
#include "server/core/step_state.h"
#include "tests/simulation/scenario.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEPS 40u
#define WORKERS 3u
#define DIRECT                                                                                     \
    "aggregation: direct\nblock_size: 8\ncompute_ahead: 1\n"                                       \
    "workers: {expected: 3, lease_s: 8, resume_s: 3}\n"                                            \
    "optimizer: {name: adamw, lr: 0.02, amsgrad: true}\n"

/* A cluster in which pushes are long under way; one worker takes two-byte parameters. */
static struct scenario *create(uint64_t seed, uint32_t rank_count)
{
    struct scenario *scenario = scenario_create(seed, rank_count, WORKERS, STEPS, DIRECT);

    scenario->plan.delay_us_max = 2000;
    scenario->plan.workers[2].pull_dtype = PD_DTYPE_BFLOAT16;
    return scenario;
}

/* Payloads that came ahead, over all workers, and counted or not. */
static uint32_t count_ahead(const struct scenario *scenario, bool applied)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < WORKERS; i++) {
        const struct sim_worker *worker = &scenario->simulation.workers[i];
        count += applied ? worker->applied : worker->voided;
    }
    return count;
}

/* The contact through which a worker is being sent parameters ahead of their step; NULL: none. */
static struct sim_contact *open_answer(struct scenario *scenario, uint32_t worker)
{
    struct sim_worker *asked = &scenario->simulation.workers[worker];

    for (uint32_t i = 0; asked->phase == SIM_PHASE_PUSHING && i < asked->contact_count; i++) {
        struct sim_contact *contact = &asked->contacts[i];
        if (contact->request == SIM_REQUEST_PUSH && contact->state == SIM_CONTACT_READY &&
            contact->asked && !contact->done && contact->pulled.ahead) {
            return contact;
        }
    }
    return NULL;
}

static bool is_in_mid_push(struct scenario *scenario, uint32_t worker)
{
    struct sim_ledger *ledger = &scenario->simulation.ledger;
    const struct sim_worker *pushing = &scenario->simulation.workers[worker];
    const struct sim_contribution *contribution =
        sim_ledger_find(ledger, pushing->worker_id, pushing->step, false);

    return pushing->phase == SIM_PHASE_PUSHING && contribution != NULL &&
           !sim_batch_whole(ledger, &contribution->batches[0]);
}

/* Run until blocks of a step have come to worker 0 while worker 1 still pushes for it, from step
 * `from` on. */
static void run_to_open_answer(struct scenario *scenario, uint64_t from)
{
    while (scenario_steps(scenario) < from || open_answer(scenario, 0) == NULL ||
           !is_in_mid_push(scenario, 1)) {
        ck_assert_uint_lt(scenario_steps(scenario), STEPS);
        scenario_run_for(scenario, 10);
    }
}

/* Cut all connections of a worker. */
static void cut_off(struct scenario *scenario, uint32_t worker)
{
    const struct sim_worker *cut = &scenario->simulation.workers[worker];

    for (uint32_t i = 0; i < cut->contact_count; i++) {
        if (cut->contacts[i].link != NULL) {
            sim_link_cut(cut->contacts[i].link);
        }
    }
}

/* To the end; returns how many answers ahead counted. */
static void finish(struct scenario *scenario, uint32_t void_min)
{
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, STEPS);
    ck_assert_uint_ge(count_ahead(scenario, false), void_min);
    ck_assert_uint_gt(count_ahead(scenario, true), STEPS);
    scenario_finish(scenario);
}

/* Its gradient may still have been on its way, and whole: then it counts, and nothing is void. */
START_TEST(worker_that_dies_while_it_pushes_makes_void_what_others_have_got)
{
    uint32_t voided = 0;

    for (uint64_t seed = 10; seed < 18; seed++) {
        struct scenario *scenario = create(seed, (uint32_t)_i);
        struct sim_worker *workers = scenario->simulation.workers;
        scenario->plan.workers[1].return_us = 1000;
        scenario_start(scenario);
        run_to_open_answer(scenario, 5);
        uint64_t step = workers[0].step;
        uint32_t dead = workers[1].worker_id;
        uint32_t before = workers[0].voided;
        sim_worker_crash(&workers[1]);
        scenario_run_to(scenario, 0, SIM_PHASE_COMPUTING, step + 1);
        ck_assert(workers[0].voided > before ||
                  sim_ledger_find(&scenario->simulation.ledger, dead, step, false)->counted);
        voided += workers[0].voided - before;
        scenario_run_to(scenario, 0, SIM_PHASE_DONE, STEPS);
        ck_assert_uint_eq(scenario->simulation.ledger.evicted, 1);
        ck_assert_uint_eq(scenario_counted(scenario, "worker0"), STEPS);
        finish(scenario, 0);
    }
    ck_assert_uint_gt(voided, 0);
}
END_TEST

START_TEST(lost_connections_make_it_void_and_change_nothing)
{
    struct scenario *scenario = create(20 + (uint64_t)_i, (uint32_t)_i);

    scenario_start(scenario);
    for (uint64_t step = 5; step <= 25; step += 4) {
        run_to_open_answer(scenario, step);
        cut_off(scenario, step / 4 % 2);
        scenario_run_to_step(scenario, scenario->simulation.workers[0].step + 1);
    }
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, STEPS);
    for (uint32_t i = 0; i < WORKERS; i++) {
        const char *name = scenario->plan.workers[i].name;
        ck_assert_uint_eq(scenario_counted(scenario, name), STEPS);
    }
    ck_assert_uint_eq(scenario->simulation.ledger.evicted, 0);
    finish(scenario, 1);
}
END_TEST

START_TEST(damaged_gradients_make_it_void_and_change_nothing)
{
    struct scenario *scenario = create(30 + (uint64_t)_i, (uint32_t)_i);

    scenario_start(scenario);
    scenario->simulation.network.damage_one_in = 8;
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, STEPS);
    ck_assert_uint_gt(scenario->simulation.network.damage_count, STEPS / 4);
    ck_assert_uint_gt(scenario->simulation.workers[0].undone, 0);
    ck_assert_uint_eq(scenario_counted(scenario, "worker1"), STEPS);
    finish(scenario, 1);
}
END_TEST

START_TEST(gradients_that_are_not_finite_make_it_void_for_everybody)
{
    struct scenario *scenario = create(40 + (uint64_t)_i, (uint32_t)_i);

    scenario->plan.workers[1].poison_one_in = 4;
    scenario_start(scenario);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, STEPS);
    ck_assert_uint_gt(scenario->simulation.oracle.skipped, 0);
    finish(scenario, (uint32_t)scenario->simulation.oracle.skipped);
}
END_TEST

/* Rank 1 stands still while the rate changes: it gets to know of it with the step's order only. */
START_TEST(rate_that_changes_in_the_middle_makes_it_void)
{
    const double rate = 0.005;
    struct scenario *scenario = create(54 + (uint64_t)_i, (uint32_t)_i);

    scenario_start(scenario);
    run_to_open_answer(scenario, 5);
    uint64_t step = scenario->simulation.workers[0].step;
    uint32_t voided = scenario->simulation.workers[0].voided;
    sim_rank_stop(&scenario->simulation.cluster.ranks[1], 500000);
    scenario_ask(scenario, "set-lr", "", &rate);
    ck_assert_uint_eq(scenario_steps(scenario), step);
    scenario_run_to_step(scenario, step + 2);
    ck_assert_uint_gt(scenario->simulation.workers[0].voided, voided);
    ck_assert_uint_gt(scenario->simulation.workers[0].undone, 0);
    finish(scenario, 1);
}
END_TEST

/* ---- Small gradients of many, added up ahead one by one ---- */

#define MANY SIM_WORKER_COUNT_MAX

/* Each lane holds less than compute_ahead, and those of half of the workers as much. */
static struct scenario *create_many(uint64_t seed, uint32_t rank_count, const char *more)
{
    char config[512];
    snprintf(config, sizeof config,
             "aggregation: direct\nblock_size: 8\ncompute_ahead: %u\n"
             "workers: {expected: %u, lease_s: 8, resume_s: 3}\n"
             "optimizer: {name: adamw, lr: 0.02, amsgrad: true}\n%s",
             172 / rank_count, MANY, more);
    struct scenario *scenario = scenario_create(seed, rank_count, MANY, STEPS, config);

    scenario->plan.delay_us_max = 2000;
    scenario->plan.workers[2].push_dtype = PD_DTYPE_FLOAT16;
    /* Its gradient cannot come again. */
    scenario->plan.workers[5].ahead = false;
    return scenario;
}

static uint32_t count_undone(const struct scenario *scenario)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < MANY; i++) {
        ck_assert_uint_eq(scenario->simulation.workers[i].applied, 0);
        count += scenario->simulation.workers[i].undone;
    }
    return count;
}

/* Everybody has a part in every step, however often a gradient has to come again. */
static void finish_many(struct scenario *scenario, bool undone)
{
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, STEPS);
    ck_assert_int_eq(count_undone(scenario) > 0, undone);
    for (uint32_t i = 0; i < MANY; i++) {
        ck_assert_uint_eq(scenario_counted(scenario, scenario->plan.workers[i].name), STEPS);
    }
    ck_assert_uint_eq(scenario->simulation.ledger.evicted, 0);
    scenario_finish(scenario);
}

/* On some rank, the gradients of so many workers are in the sum and not kept. */
static bool has_added(const struct scenario *scenario, uint32_t count)
{
    const struct sim_cluster *cluster = &scenario->simulation.cluster;

    for (uint32_t i = 0; i < cluster->rank_count; i++) {
        const struct pd_engine *engine = cluster->ranks[i].engine;
        if (engine->foreseen != NULL && engine->step->by_gradient && engine->step->added >= count) {
            return true;
        }
    }
    return false;
}

START_TEST(gradients_are_added_up_ahead_with_any_clip)
{
    struct scenario *scenario =
        create_many(60 + (uint64_t)_i, 1 + (uint32_t)_i % 4, _i < 4 ? "" : "clip: {norm: 0.5}\n");
    uint32_t seen = 0;

    scenario_start(scenario);
    while (scenario_steps(scenario) < STEPS) {
        seen += has_added(scenario, 4);
        scenario_run_for(scenario, 100);
    }
    ck_assert_uint_gt(seen, STEPS / 4);
    finish_many(scenario, false);
}
END_TEST

START_TEST(lost_connections_have_many_push_again_and_change_nothing)
{
    struct scenario *scenario = create_many(70 + (uint64_t)_i, (uint32_t)_i, "");

    scenario_start(scenario);
    for (uint64_t step = 5; step <= 25; step += 4) {
        while (scenario_steps(scenario) < step || !has_added(scenario, 4) ||
               !is_in_mid_push(scenario, MANY - 1)) {
            ck_assert_uint_lt(scenario_steps(scenario), STEPS);
            scenario_run_for(scenario, 10);
        }
        cut_off(scenario, MANY - 1);
        scenario_run_to_step(scenario, scenario_steps(scenario) + 1);
    }
    finish_many(scenario, true);
}
END_TEST

START_TEST(damaged_gradients_have_many_push_again_and_change_nothing)
{
    struct scenario *scenario = create_many(80 + (uint64_t)_i, (uint32_t)_i, "");

    scenario_start(scenario);
    scenario->simulation.network.damage_one_in = 30;
    finish_many(scenario, true);
}
END_TEST

START_TEST(gradients_of_many_that_are_not_finite_are_told_and_skipped)
{
    struct scenario *scenario = create_many(90 + (uint64_t)_i, (uint32_t)_i, "");

    scenario->plan.workers[3].poison_one_in = 4;
    scenario_start(scenario);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, STEPS);
    ck_assert_uint_gt(scenario->simulation.oracle.skipped, 0);
    scenario_finish(scenario);
}
END_TEST

START_TEST(rate_that_changes_has_many_push_again)
{
    const double rate = 0.005;
    struct scenario *scenario = create_many(100 + (uint64_t)_i, (uint32_t)_i, "");

    scenario_start(scenario);
    while (scenario_steps(scenario) < 5 || !has_added(scenario, 4) ||
           !is_in_mid_push(scenario, MANY - 1)) {
        ck_assert_uint_lt(scenario_steps(scenario), STEPS);
        scenario_run_for(scenario, 10);
    }
    sim_rank_stop(&scenario->simulation.cluster.ranks[1], 500000);
    scenario_ask(scenario, "set-lr", "", &rate);
    finish_many(scenario, true);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ahead");
    TCase *tests = tcase_create("scenarios");

    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, worker_that_dies_while_it_pushes_makes_void_what_others_have_got, 1,
                        4);
    tcase_add_loop_test(tests, lost_connections_make_it_void_and_change_nothing, 1, 4);
    tcase_add_loop_test(tests, damaged_gradients_make_it_void_and_change_nothing, 1, 4);
    tcase_add_loop_test(tests, gradients_that_are_not_finite_make_it_void_for_everybody, 1, 4);
    tcase_add_loop_test(tests, rate_that_changes_in_the_middle_makes_it_void, 2, 4);
    tcase_add_loop_test(tests, gradients_are_added_up_ahead_with_any_clip, 0, 8);
    tcase_add_loop_test(tests, lost_connections_have_many_push_again_and_change_nothing, 1, 5);
    tcase_add_loop_test(tests, damaged_gradients_have_many_push_again_and_change_nothing, 1, 5);
    tcase_add_loop_test(tests, gradients_of_many_that_are_not_finite_are_told_and_skipped, 1, 5);
    tcase_add_loop_test(tests, rate_that_changes_has_many_push_again, 2, 5);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
