/* Memory for gradients: how many workers a limit leaves room for, and buffers that go round. */
#include "common/heap.h"
#include "server/core/staging.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ELEMENTS 30u

static struct pd_staging staging;
static struct pd_config *config;
static struct pd_shard_plan *plan;
static struct pd_error error;

/* A model of 30 elements, over ranks of which each has a lane. */
static void prepare(const char *text, uint32_t rank_count)
{
    struct pd_tensor_list model;

    ck_assert_int_eq(pd_config_create(&config, "test", text, NULL, 0, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_init(&model, 1, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(&model, "w", 1, 1, (const uint64_t[]){ELEMENTS}, &error),
                     PD_OK);
    ck_assert_int_eq(pd_shard_plan_create(&plan, &model, 10, rank_count, rank_count, &error),
                     PD_OK);
    pd_tensor_list_finish(&model);
}

static void teardown(void)
{
    pd_staging_finish(&staging);
    pd_shard_plan_destroy(plan);
    pd_config_destroy(config);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

static const struct {
    const char *config;
    uint32_t rank_count;
    uint32_t place_count;
} rooms[] = {
    {"{}", 1, PD_WORKER_COUNT_MAX},
    {"workers: {staging_limit: 120}", 1, 1},
    {"workers: {staging_limit: 239}", 1, 1},
    {"workers: {staging_limit: 240}", 1, 2},
    {"workers: {staging_limit: 240}\naccumulation_steps: 2", 1, 1},
    {"workers: {staging_limit: 480}\noptimizer: {name: sophia_g}", 1, 2},
    {"workers: {staging_limit: 480}\noptimizer: {name: sophia_g}\naccumulation_steps: 2", 1, 1},
    /* The largest lane of two has 20 elements. */
    {"workers: {staging_limit: 160}", 2, 2},
    {"workers: {staging_limit: 1000000000000}", 1, PD_WORKER_COUNT_MAX},
};

START_TEST(room_is_for_as_many_workers_as_fit_whole)
{
    prepare(rooms[_i].config, rooms[_i].rank_count);
    ck_assert_int_eq(pd_staging_init(&staging, config, plan, ELEMENTS, &error), PD_OK);
    ck_assert_uint_eq(staging.place_count, rooms[_i].place_count);
}
END_TEST

START_TEST(limit_that_one_gradient_does_not_fit_in_is_refused_with_what_it_takes)
{
    prepare("workers: {staging_limit: 239}\naccumulation_steps: 4", 1);
    ck_assert_int_eq(pd_staging_check(config, plan, &error), PD_ELIMIT);
    ck_assert_str_eq(error.message,
                     "workers.staging_limit: 239 bytes; allowed: at least 240, what one worker's "
                     "gradient takes of a rank: 2 times 4 bytes for each of 30 elements");
    ck_assert_int_eq(pd_staging_init(&staging, config, plan, ELEMENTS, &error), PD_ELIMIT);
}
END_TEST

START_TEST(buffers_that_are_returned_are_taken_again)
{
    prepare("workers: {staging_limit: 240}", 1);
    ck_assert_int_eq(pd_staging_init(&staging, config, plan, ELEMENTS, &error), PD_OK);
    void *first = pd_staging_take(&staging);
    void *second = pd_staging_take(&staging);
    ck_assert_ptr_ne(first, second);
    size_t allocations = pd_heap_allocations();
    for (uint32_t i = 0; i < 10; i++) {
        pd_staging_return(&staging, second);
        ck_assert_ptr_eq(pd_staging_take(&staging), second);
    }
    ck_assert_uint_eq(pd_heap_allocations(), allocations);
    pd_staging_return(&staging, first);
    pd_staging_return(&staging, second);
    pd_staging_shrink(&staging, 1);
    ck_assert_uint_eq(staging.buffer_count, 1);
    pd_staging_shrink(&staging, 3);
    ck_assert_uint_eq(staging.buffer_count, 0);
}
END_TEST

START_TEST(take_says_when_memory_is_out)
{
    prepare("workers: {staging_limit: 120}", 1);
    ck_assert_int_eq(pd_staging_init(&staging, config, plan, ELEMENTS, &error), PD_OK);
    pd_heap_fail_at(0);
    ck_assert_ptr_null(pd_staging_take(&staging));
    pd_heap_fail_at(-1);
    ck_assert_uint_eq(staging.buffer_count, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("staging");
    TCase *tests = tcase_create("staging");

    tcase_add_checked_fixture(tests, NULL, teardown);
    tcase_add_loop_test(tests, room_is_for_as_many_workers_as_fit_whole, 0,
                        sizeof rooms / sizeof rooms[0]);
    tcase_add_test(tests, limit_that_one_gradient_does_not_fit_in_is_refused_with_what_it_takes);
    tcase_add_test(tests, buffers_that_are_returned_are_taken_again);
    tcase_add_test(tests, take_says_when_memory_is_out);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
