/* Searches for a learning rate in whole clusters. The oracle knows every version, those of trials
 * and those after them, and compares what ranks and workers have with it. */
#include "tests/simulation/scenario.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEPS 24u /* trials and all */
#define TRIALS 6u
#define COMMON "block_size: 8\nworkers: {expected: 2}\n"

/* Start a cluster, and have an administrator ask for a search of TRIALS rates. */
static void begin_search(struct scenario *scenario)
{
    struct sim_simulation *simulation = &scenario->simulation;
    struct sim_command *find = &scenario->plan.commands[0];

    snprintf(find->command, sizeof find->command, "lr-find");
    find->steps = TRIALS;
    find->after_us = 1000000000;
    scenario_start(scenario);
    scenario_run_to_step(scenario, 5);
    const struct sim_caller *caller = sim_simulation_call(simulation, find);
    while (!caller->done) {
        scenario_run_for(scenario, 100);
    }
    ck_assert_msg(caller->reply != NULL, "%s", caller->error);
}

static struct scenario *begin(uint64_t seed, uint32_t rank_count, const char *config)
{
    struct scenario *scenario = scenario_create(seed, rank_count, 3, STEPS, config);

    begin_search(scenario);
    return scenario;
}

/* Run until the search is over; what lr-curve says then. There may be so many questions. */
static const char *await_end(struct scenario *scenario)
{
    const char *curve = "";

    for (int i = 0; i < 12 && strstr(curve, "\"over\":true") == NULL; i++) {
        scenario_run_for(scenario, 5000000);
        curve = scenario_ask(scenario, "lr-curve", "", NULL);
    }
    return curve;
}

START_TEST(every_rank_has_its_state_back_and_goes_on)
{
    static const char *const configs[] = {
        "aggregation: direct\noptimizer: {name: adamw, lr: 0.01}\n" COMMON,
        "aggregation: direct\noptimizer: {name: lamb, lr: 0.01}\naccumulation_steps: 2\n" COMMON,
        "aggregation: allreduce\noptimizer: {name: sgd, lr: 0.01, momentum: 0.9}\n" COMMON,
        "aggregation: allreduce\nlanes: 2\noptimizer: {name: adam, lr: 0.01}\n" COMMON,
    };

    for (uint32_t rank_count = 2; rank_count <= 4; rank_count += 2) {
        struct scenario *scenario = begin(30 + rank_count, rank_count, configs[_i]);
        const struct sim_oracle *oracle = &scenario->simulation.oracle;
        const char *curve = await_end(scenario);
        ck_assert_msg(strstr(curve, "\"end\":\"finished\"") != NULL, "%s", curve);
        uint64_t kept = oracle->kept_version;
        ck_assert(!oracle->steps[kept - 1].trial);
        for (uint64_t step = kept; step < kept + TRIALS; step++) {
            ck_assert(oracle->steps[step].trial);
        }
        ck_assert(!oracle->steps[kept + TRIALS].trial);
        ck_assert_mem_eq(oracle->versions[kept + TRIALS], oracle->versions[kept],
                         scenario->plan.model.element_count * sizeof(float));
        scenario_run_to(scenario, 0, SIM_PHASE_DONE, STEPS);
        scenario_finish(scenario);
    }
}
END_TEST

START_TEST(worker_that_dies_in_the_middle_does_not_end_it)
{
    struct scenario *scenario =
        begin(40, 3, "aggregation: direct\noptimizer: {name: adamw, lr: 0.01}\n" COMMON);
    scenario_run_to_step(scenario, scenario->simulation.oracle.kept_version + 2);
    sim_worker_crash(&scenario->simulation.workers[1]);
    const char *curve = await_end(scenario);
    ck_assert_msg(strstr(curve, "\"end\":\"finished\"") != NULL, "%s", curve);
    scenario_finish(scenario);
}
END_TEST

START_TEST(drain_in_the_middle_brings_the_state_back)
{
    struct scenario *scenario =
        begin(41, 3, "aggregation: allreduce\noptimizer: {name: adamw, lr: 0.01}\n" COMMON);
    struct sim_simulation *simulation = &scenario->simulation;
    const struct sim_oracle *oracle = &simulation->oracle;

    scenario_run_to_step(scenario, oracle->kept_version + 2);
    scenario_ask(scenario, "drain", "", NULL);
    while (sim_cluster_count(&simulation->cluster, SIM_RANK_RUNNING) > 0) {
        scenario_run_for(scenario, 1000);
    }
    ck_assert_uint_eq(sim_cluster_count(&simulation->cluster, SIM_RANK_EXITED), 3);
    ck_assert_mem_eq(oracle->versions[oracle->version_count - 1],
                     oracle->versions[oracle->kept_version],
                     scenario->plan.model.element_count * sizeof(float));
    ck_assert_uint_eq(simulation->cluster.ranks[2].version, oracle->version_count - 1);
    sim_cluster_check_orders(&simulation->cluster);
    scenario_destroy(scenario);
}
END_TEST

/* A drain between trials brings the state back at once. A pull that comes after that, of the
 * version before it, gets what there is, which is newer. */
START_TEST(pull_after_a_drain_is_answered_with_the_state_brought_back)
{
    struct scenario *scenario =
        scenario_create(42, 3, 1, STEPS,
                        "aggregation: direct\noptimizer: {name: adamw, lr: 0.01}\nblock_size: 8\n"
                        "workers: {expected: 1}\n");
    struct sim_simulation *simulation = &scenario->simulation;
    const struct sim_worker *worker = &simulation->workers[0];

    scenario->plan.workers[0].combined = false;
    scenario->plan.workers[0].slow = 20;
    begin_search(scenario);
    uint64_t version = simulation->oracle.kept_version + 2;
    simulation->cluster.ranks[2].slow = 500; /* it drains after the others */
    scenario_run_to_step(scenario, version);
    ck_assert_int_eq(worker->phase, SIM_PHASE_PUSHING);
    sim_rank_drain(&simulation->cluster.ranks[0], "the operator asks");
    scenario_run_to(scenario, 0, SIM_PHASE_FETCHING, version);
    while (worker->contacts[0].pulled.version < version) {
        scenario_run_for(scenario, 100);
    }
    ck_assert_uint_eq(worker->contacts[0].pulled.version, version + 1);
    while (sim_cluster_count(&simulation->cluster, SIM_RANK_RUNNING) > 0) {
        scenario_run_for(scenario, 1000);
    }
    scenario_destroy(scenario);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("search");
    TCase *tests = tcase_create("scenarios");

    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, every_rank_has_its_state_back_and_goes_on, 0, 4);
    tcase_add_test(tests, worker_that_dies_in_the_middle_does_not_end_it);
    tcase_add_test(tests, drain_in_the_middle_brings_the_state_back);
    tcase_add_test(tests, pull_after_a_drain_is_answered_with_the_state_brought_back);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
