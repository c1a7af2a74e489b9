/* Replicas that exchange by buckets: the same bits as one rank, several collectives at once, and
 * nothing given or read before its time. */
#include "step_job.h"

#include "common/heap.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A replica has the gradient of one worker at most, so the order of summation is theirs. */
START_TEST(a_rule_gives_the_same_bits_for_any_number_of_replicas)
{
    static const uint32_t block_sizes[] = {10, 256};
    static const uint32_t grids[][2] = {{2, 1}, {3, 1}, {6, 2}};
    char text[512];

    for (size_t b = 0; b < sizeof block_sizes / sizeof block_sizes[0]; b++) {
        uint64_t count;
        if (strstr(step_job_rules[_i / 2], "state_bits") != NULL && block_sizes[b] % 256 != 0) {
            continue;
        }
        snprintf(text, sizeof text,
                 "{block_size: %u, compute_ahead: 1, clip: {norm: 1.0}, optimizer: %s, %s}",
                 block_sizes[b], step_job_rules[_i / 2],
                 _i % 2 == 0 ? "groups: [], ema: {decay: 0.9}, lookahead: {k: 2}"
                             : STEP_JOB_GROUPS);
        float *expected = step_job_train(text, 1, &count);
        for (size_t g = 0; g < sizeof grids / sizeof grids[0]; g++) {
            struct step_job job;
            step_job_init_lanes(&job, text, grids[g][0], grids[g][1]);
            float *actual = step_job_run(&job, &count);
            ck_assert_mem_eq(actual, expected, count * sizeof *actual);
            pd_heap_free(actual);
        }
        pd_heap_free(expected);
    }
}
END_TEST

/* 3146 elements: a bucket has 8 blocks of 10 of each of two replicas, the last may reach beyond. */
START_TEST(a_bucket_is_summed_while_the_one_before_is_exchanged)
{
    struct step_job job;

    step_job_init_lanes(&job, "{block_size: 10, optimizer: {name: adamw}}", 2, 1);
    step_job_step(&job, 0);
    ck_assert_uint_eq(job.exchange_count, 20);
    ck_assert_uint_eq(job.gather_count, 1);
    ck_assert_uint_ge(job.at_once, 2);
    step_job_finish(&job);
}
END_TEST

/* A turn ends after 63 of 80 blocks: in the middle of a bucket of 8. */
START_TEST(parameters_are_gathered_while_others_are_updated)
{
    const char *text = "{block_size: 4200, compute_ahead: 0, optimizer: {name: sgd}}";
    struct step_job one;
    struct step_job two;

    step_job_init_grid(&one, text, 1, 1, 160 * 4200);
    step_job_init_grid(&two, text, 2, 1, 160 * 4200);
    step_job_step(&one, 0);
    step_job_step(&two, 0);
    ck_assert_uint_gt(two.early_count, 0);
    for (uint32_t i = 0; i < 2; i++) {
        ck_assert_mem_eq(pd_param_store_served(&two.ranks[i].store),
                         pd_param_store_served(&one.ranks[0].store),
                         one.model.element_count * sizeof(float));
    }
    step_job_finish(&one);
    step_job_finish(&two);
}
END_TEST

START_TEST(replicas_leave_out_a_step_that_is_not_finite)
{
    struct step_job job;
    uint64_t count;
    float *expected;

    step_job_init(&job, "{block_size: 10, optimizer: {name: adamw}}", 1);
    job.nan_step = 2;
    expected = step_job_run(&job, &count);
    step_job_init_lanes(&job, "{block_size: 10, optimizer: {name: adamw}}", 4, 2);
    job.nan_step = 2;
    float *actual = step_job_run(&job, &count);
    ck_assert_mem_eq(actual, expected, count * sizeof *actual);
    pd_heap_free(actual);
    pd_heap_free(expected);
}
END_TEST

/* No sum of the whole lane, nor what the other replicas have of the shard: buckets alone. */
START_TEST(replicas_hold_the_gradient_of_their_shard_and_two_buckets)
{
    const char *text = "{block_size: 10, compute_ahead: 0, optimizer: {name: sgd}}";
    struct step_job job;
    size_t bytes[2];

    for (uint32_t lanes = 1; lanes <= 2; lanes++) {
        step_job_init_lanes(&job, text, 2, lanes);
        bytes[lanes - 1] = pd_heap_bytes_live();
        step_job_finish(&job);
    }
    /* Each of two ranks: the other half of the parameters, twice, and for two buckets two pieces of
     * 80 to 89 elements that are given, and two that are taken. It has as much of one worker as it
     * had of two. */
    size_t half = 3146 / 2 * sizeof(float);
    size_t buckets = (2 * 2 * 2 * 89 + 10) * sizeof(float);
    ck_assert_uint_ge(bytes[0] - bytes[1], 2 * 2 * half);
    ck_assert_uint_le(bytes[0] - bytes[1], 2 * (2 * half + buckets));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("step_bucket");
    TCase *tests = tcase_create("step_bucket");

    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, a_rule_gives_the_same_bits_for_any_number_of_replicas, 0,
                        2 * STEP_JOB_RULE_COUNT);
    tcase_add_test(tests, a_bucket_is_summed_while_the_one_before_is_exchanged);
    tcase_add_test(tests, parameters_are_gathered_while_others_are_updated);
    tcase_add_test(tests, replicas_leave_out_a_step_that_is_not_finite);
    tcase_add_test(tests, replicas_hold_the_gradient_of_their_shard_and_two_buckets);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
