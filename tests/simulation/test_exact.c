/* To the bit: results that do not hang on the number of ranks, on arrival or on the run. */
#include "tests/simulation/scenario.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEPS 50u
#define LAMB                                                                                       \
    "block_size: 2\nworkers: {expected: 3}\naccumulation_steps: 2\nclip: {norm: 0.5}\n"            \
    "optimizer: {name: lamb, lr: 0.02, weight_decay: 0.05}\n"                                      \
    "schedule: {name: cosine, t_max: 60, eta_min: 1e-3}\n"

#define ADAMW                                                                                      \
    "block_size: 8\nworkers: {expected: 3}\naggregation: direct\nlr_scaling: {rule: linear, "      \
    "base_batch: 64}\n"                                                                            \
    "optimizer: {name: adamw, lr: 0.02, weight_decay: 0.05, amsgrad: true}\n"                      \
    "schedule: {name: cosine, t_max: 60, eta_min: 1e-3}\n"

/* Payloads of the last run that came ahead of their step and counted. */
static uint32_t applied;

/* What the ranks serve in the end, as they serve it, after a run of three workers. Order and delay
 * of everything hang on `seed`; the data does not. The caller frees it. */
static float *run(uint64_t seed, uint32_t rank_count, const char *config, size_t *byte_count)
{
    struct scenario *scenario = scenario_create(seed, rank_count, 3, STEPS, config);
    struct sim_simulation *simulation = &scenario->simulation;
    uint64_t count = scenario->plan.model.element_count;
    float *all = sim_alloc(count, sizeof *all);

    scenario->plan.delay_us_max = 50 + 400 * (seed % 7);
    scenario->plan.work_us_max = 1 + 300 * (seed % 3);
    scenario->plan.straggle_one_in = 20;
    for (uint32_t i = 0; i < 3; i++) {
        /* They join in the same order, which decides their homes, and then it is left to chance. */
        scenario->plan.workers[i].start_us = 1000000 * (i + 1);
        scenario->plan.workers[i].compute_us = 1 + 3000 * ((seed + i) % 3);
        scenario->plan.workers[i].push_dtype = (enum pd_dtype)i;
    }
    scenario_start(scenario);
    scenario_run_to(scenario, 0, SIM_PHASE_DONE, STEPS);
    while (scenario_steps(scenario) < STEPS) {
        scenario_run_for(scenario, 1000);
    }
    scenario_run_for(scenario, 1000000);
    for (uint32_t rank = 0; rank < rank_count; rank++) {
        uint64_t version;
        uint64_t begin;
        uint64_t lane_count;
        const float *lane = pd_engine_parameters(simulation->cluster.ranks[rank].engine, &version,
                                                 &begin, &lane_count);
        ck_assert_uint_eq(version, STEPS);
        memcpy(all + begin, lane, lane_count * sizeof *lane);
    }
    applied = 0;
    for (uint32_t i = 0; i < 3; i++) {
        applied += simulation->workers[i].applied;
    }
    *byte_count = count * sizeof *all;
    scenario_finish(scenario);
    return all;
}

START_TEST(direct_lamb_is_the_same_to_the_bit_for_any_number_of_ranks_and_order_of_arrival)
{
    size_t byte_count;
    float *expected = run(1, 1, "aggregation: direct\n" LAMB, &byte_count);

    for (uint32_t rank_count = 1; rank_count <= 4; rank_count++) {
        for (uint64_t seed = 2; seed < 6; seed++) {
            float *got =
                run(10 * seed + rank_count, rank_count, "aggregation: direct\n" LAMB, &byte_count);
            ck_assert_mem_eq(got, expected, byte_count);
            free(got);
        }
    }
    free(expected);
}
END_TEST

START_TEST(steps_begun_ahead_are_the_same_to_the_bit)
{
    size_t byte_count;
    float *expected = run(1, 1, "compute_ahead: 0\n" ADAMW, &byte_count);

    ck_assert_uint_eq(applied, 0);
    for (uint32_t rank_count = 1; rank_count <= 4; rank_count++) {
        for (uint64_t seed = 2; seed < 6; seed++) {
            float *got =
                run(10 * seed + rank_count, rank_count, "compute_ahead: 1\n" ADAMW, &byte_count);
            ck_assert_uint_gt(applied, STEPS);
            ck_assert_mem_eq(got, expected, byte_count);
            free(got);
        }
    }
    free(expected);
}
END_TEST

/* Averages of replicas are summed in another order than those of workers: the same in every run,
 * but not for every number of ranks. */
START_TEST(allreduce_is_repeatable_to_the_bit)
{
    static const char *const configs[] = {"aggregation: allreduce\n" LAMB,
                                          "aggregation: allreduce\nlanes: 2\n" LAMB};
    for (size_t i = 0; i < 2; i++) {
        size_t byte_count;
        float *expected = run(1, 4, configs[i], &byte_count);
        for (uint64_t seed = 2; seed < 8; seed++) {
            float *got = run(seed, 4, configs[i], &byte_count);
            ck_assert_mem_eq(got, expected, byte_count);
            free(got);
        }
        free(expected);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("exact");
    TCase *tests = tcase_create("scenarios");

    tcase_set_timeout(tests, 120);
    tcase_add_test(tests,
                   direct_lamb_is_the_same_to_the_bit_for_any_number_of_ranks_and_order_of_arrival);
    tcase_add_test(tests, steps_begun_ahead_are_the_same_to_the_bit);
    tcase_add_test(tests, allreduce_is_repeatable_to_the_bit);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
