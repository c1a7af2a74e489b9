/* Memory that is kept, changed, and had back. */
#include "common/heap.h"
#include "server/core/snapshot.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 1000u

static struct pd_snapshot snapshot;
static struct pd_error error;

static void teardown(void)
{
    pd_snapshot_finish(&snapshot);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

static void fill(uint32_t *numbers, uint32_t first)
{
    for (uint32_t i = 0; i < COUNT; i++) {
        numbers[i] = first + i;
    }
}

START_TEST(parts_come_back_a_turn_at_a_time_even_to_another_place)
{
    uint32_t before[COUNT];
    uint32_t here[COUNT];
    uint32_t there[COUNT] = {0};
    double number = 0.5;
    int turns = 1;

    fill(before, 7);
    fill(here, 7);
    pd_snapshot_add(&snapshot, here, sizeof here);
    pd_snapshot_add(&snapshot, NULL, 0);
    pd_snapshot_add(&snapshot, &number, sizeof number);
    ck_assert_int_eq(pd_snapshot_keep(&snapshot, &error), PD_OK);
    while (!pd_snapshot_copy(&snapshot, 100)) {
        turns++;
    }
    ck_assert_int_eq(turns, (sizeof here + sizeof number + 99) / 100);
    fill(here, 1);
    number = 9;
    pd_snapshot_clear_parts(&snapshot);
    pd_snapshot_add(&snapshot, there, sizeof there);
    pd_snapshot_add(&snapshot, NULL, 0);
    pd_snapshot_add(&snapshot, &number, sizeof number);
    pd_snapshot_bring_back(&snapshot);
    ck_assert(!pd_snapshot_copy(&snapshot, sizeof there));
    ck_assert_mem_eq(there, before, sizeof before);
    ck_assert_double_eq(number, 9);
    ck_assert(pd_snapshot_copy(&snapshot, UINT64_MAX));
    ck_assert_double_eq(number, 0.5);
    ck_assert_uint_eq(here[0], 1);
}
END_TEST

START_TEST(many_parts_find_room)
{
    uint32_t numbers[COUNT];

    fill(numbers, 3);
    for (uint32_t i = 0; i < COUNT; i++) {
        pd_snapshot_add(&snapshot, &numbers[i], sizeof numbers[i]);
    }
    ck_assert_int_eq(pd_snapshot_keep(&snapshot, &error), PD_OK);
    ck_assert(pd_snapshot_copy(&snapshot, UINT64_MAX));
    memset(numbers, 0, sizeof numbers);
    pd_snapshot_bring_back(&snapshot);
    ck_assert(pd_snapshot_copy(&snapshot, UINT64_MAX));
    ck_assert_uint_eq(numbers[0], 3);
    ck_assert_uint_eq(numbers[COUNT - 1], 2 + COUNT);
}
END_TEST

START_TEST(each_failed_allocation_leaves_it_empty_and_says_so)
{
    uint32_t numbers[COUNT];

    fill(numbers, 3);
    pd_heap_fail_at(_i);
    for (uint32_t i = 0; i < 65; i++) {
        pd_snapshot_add(&snapshot, numbers, sizeof numbers);
    }
    ck_assert_int_eq(pd_snapshot_keep(&snapshot, &error), PD_ENOMEM);
    pd_heap_fail_at(-1);
    ck_assert_ptr_nonnull(strstr(error.message, "out of memory for a snapshot of "));
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
    ck_assert_int_eq(pd_snapshot_keep(&snapshot, &error), PD_OK);
    ck_assert(pd_snapshot_copy(&snapshot, 0));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("snapshot");
    TCase *tests = tcase_create("snapshot");

    tcase_add_checked_fixture(tests, NULL, teardown);
    tcase_add_test(tests, parts_come_back_a_turn_at_a_time_even_to_another_place);
    tcase_add_test(tests, many_parts_find_room);
    tcase_add_loop_test(tests, each_failed_allocation_leaves_it_empty_and_says_so, 0, 3);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
