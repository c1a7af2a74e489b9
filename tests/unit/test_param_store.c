/* What a rank serves: two buffers, and versions. */
#include "common/heap.h"
#include "server/core/param_store.h"

#include <check.h>
#include <stdlib.h>

#define COUNT 10u

static struct pd_config *config;
static struct pd_tensor_list model;
static struct pd_shard_plan *plan;
static struct pd_param_store store;
static struct pd_error error;

static void setup(void)
{
    ck_assert_int_eq(pd_config_create(&config, "test", "block_size: 4\n", NULL, 0, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_init(&model, 1, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(&model, "w", 1, 1, (const uint64_t[]){COUNT}, &error),
                     PD_OK);
    ck_assert_int_eq(pd_shard_plan_create(&plan, &model, 4, 2, 1, &error), PD_OK);
    ck_assert_int_eq(pd_param_store_init(&store, plan, 1, config, &error), PD_OK);
    for (uint32_t i = 0; i < COUNT; i++) {
        pd_param_store_served(&store)[i] = (float)i;
        pd_param_store_spare(&store)[i] = (float)(100 + i);
    }
}

static void teardown(void)
{
    pd_param_store_finish(&store);
    pd_shard_plan_destroy(plan);
    pd_tensor_list_finish(&model);
    pd_config_destroy(config);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

START_TEST(buffers_hold_the_lane_and_the_shard_is_a_part_of_it)
{
    ck_assert_uint_eq(store.lane.element_count, COUNT);
    ck_assert_uint_gt(store.shard.element_begin, 0);
    ck_assert_uint_lt(store.shard.element_count, COUNT);
    ck_assert(!store.has_version);
}
END_TEST

START_TEST(published_spare_becomes_the_next_version_and_the_served_the_spare)
{
    const float *first = pd_param_store_served(&store);
    pd_param_store_publish_first(&store);
    ck_assert_uint_eq(store.version, 0);
    pd_param_store_publish_spare(&store);
    ck_assert_uint_eq(store.version, 1);
    ck_assert_float_eq(pd_param_store_served(&store)[3], 103);
    ck_assert_ptr_eq(pd_param_store_spare(&store), first);
}
END_TEST

START_TEST(skipped_step_makes_a_version_of_the_same_parameters)
{
    pd_param_store_publish_first(&store);
    const float *served = pd_param_store_served(&store);
    pd_param_store_publish_same(&store);
    ck_assert_uint_eq(store.version, 1);
    ck_assert_ptr_eq(pd_param_store_served(&store), served);
}
END_TEST

START_TEST(spare_is_free_while_only_the_served_buffer_is_sent)
{
    pd_param_store_publish_first(&store);
    store.buffers[store.served].users = 2;
    ck_assert(pd_param_store_spare_free(&store));
    pd_param_store_publish_spare(&store);
    ck_assert(!pd_param_store_spare_free(&store));
    store.buffers[1 - store.served].users = 0;
    ck_assert(pd_param_store_spare_free(&store));
}
END_TEST

START_TEST(init_survives_each_failed_allocation)
{
    struct pd_param_store failed;
    size_t live = pd_heap_blocks_live();
    pd_heap_fail_at(_i);
    enum pd_status status = pd_param_store_init(&failed, plan, 1, config, &error);
    pd_heap_fail_at(-1);
    ck_assert_int_eq(status, PD_ENOMEM);
    ck_assert_uint_eq(pd_heap_blocks_live(), live);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("param_store");
    TCase *tests = tcase_create("param_store");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, buffers_hold_the_lane_and_the_shard_is_a_part_of_it);
    tcase_add_test(tests, published_spare_becomes_the_next_version_and_the_served_the_spare);
    tcase_add_test(tests, skipped_step_makes_a_version_of_the_same_parameters);
    tcase_add_test(tests, spare_is_free_while_only_the_served_buffer_is_sent);
    tcase_add_loop_test(tests, init_survives_each_failed_allocation, 0, 2);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
