/* Tests of common/heap.c. */
#include "common/heap.h"

#include <check.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LARGE_BYTES ((size_t)5 << 20)

static const size_t sizes[] = {0, 1, 63, 64, 4096, LARGE_BYTES};

START_TEST(zalloc_gives_aligned_zeroes)
{
    /* Leave something behind for it to find. */
    unsigned char *dirty = pd_heap_zalloc(sizes[_i], 1);
    memset(dirty, 0xa5, sizes[_i]);
    pd_heap_free(dirty);

    unsigned char *memory = pd_heap_zalloc(sizes[_i], 1);
    ck_assert_ptr_nonnull(memory);
    ck_assert_uint_eq((uintptr_t)memory % 64, 0);
    for (size_t i = 0; i < sizes[_i]; i++) {
        if (memory[i] != 0) {
            ck_abort_msg("byte %zu is not zero", i);
        }
    }
    pd_heap_free(memory);
}
END_TEST

static size_t resident_bytes(void)
{
    unsigned long all = 0;
    unsigned long resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");

    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fscanf(file, "%lu %lu", &all, &resident), 2);
    ck_assert_int_eq(fclose(file), 0);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}

/* Two huge pages full, which must not cost a third. */
START_TEST(a_large_array_takes_the_pages_it_fills_and_one_more)
{
    const size_t bytes = (size_t)4 << 20;
    size_t before = resident_bytes();
    unsigned char *memory = pd_heap_zalloc(bytes, 1);

    memset(memory, 1, bytes);
    ck_assert_uint_lt(resident_bytes() - before, bytes + bytes / 4);
    pd_heap_free(memory);
}
END_TEST

START_TEST(zalloc_refuses_a_product_that_overflows)
{
    ck_assert_ptr_null(pd_heap_zalloc(SIZE_MAX / 2, 3));
    ck_assert_ptr_null(pd_heap_zalloc(SIZE_MAX, 1));
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(realloc_keeps_the_bytes_it_has_room_for)
{
    char *memory = pd_heap_zalloc(1, 100);
    memset(memory, 'x', 100);
    memory = pd_heap_realloc(memory, LARGE_BYTES);
    ck_assert_uint_eq((uintptr_t)memory % 64, 0);
    for (size_t i = 0; i < 100; i++) {
        ck_assert_int_eq(memory[i], 'x');
    }
    memory = pd_heap_realloc(memory, 10);
    ck_assert_mem_eq(memory, "xxxxxxxxxx", 10);
    ck_assert_uint_eq(pd_heap_blocks_live(), 1);
    pd_heap_free(memory);
}
END_TEST

START_TEST(a_failed_realloc_leaves_the_old_memory)
{
    char *memory = pd_heap_strdup("still here");
    pd_heap_fail_at(0);
    ck_assert_ptr_null(pd_heap_realloc(memory, 1000));
    ck_assert_str_eq(memory, "still here");
    pd_heap_free(memory);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(fail_at_fails_that_allocation_and_no_other)
{
    pd_heap_fail_at(2);
    void *first = pd_heap_zalloc(1, 1);
    void *second = pd_heap_strdup("two");
    ck_assert_ptr_nonnull(first);
    ck_assert_ptr_nonnull(second);
    ck_assert_ptr_null(pd_heap_zalloc(1, 1));
    void *fourth = pd_heap_zalloc(1, 1);
    ck_assert_ptr_nonnull(fourth);
    pd_heap_free(first);
    pd_heap_free(second);
    pd_heap_free(fourth);
}
END_TEST

START_TEST(blocks_and_allocations_are_counted)
{
    size_t allocations = pd_heap_allocations();
    void *first = pd_heap_zalloc(3, 5);
    void *second = pd_heap_realloc(NULL, 7);
    ck_assert_uint_eq(pd_heap_blocks_live(), 2);
    ck_assert_uint_eq(pd_heap_allocations(), allocations + 2);
    pd_heap_free(first);
    ck_assert_uint_eq(pd_heap_blocks_live(), 1);
    pd_heap_free(second);
    pd_heap_free(NULL);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("heap");
    TCase *cases = tcase_create("heap");
    tcase_set_timeout(cases, 60);
    tcase_add_loop_test(cases, zalloc_gives_aligned_zeroes, 0,
                        (int)(sizeof sizes / sizeof sizes[0]));
    tcase_add_test(cases, a_large_array_takes_the_pages_it_fills_and_one_more);
    tcase_add_test(cases, zalloc_refuses_a_product_that_overflows);
    tcase_add_test(cases, realloc_keeps_the_bytes_it_has_room_for);
    tcase_add_test(cases, a_failed_realloc_leaves_the_old_memory);
    tcase_add_test(cases, fail_at_fails_that_allocation_and_no_other);
    tcase_add_test(cases, blocks_and_allocations_are_counted);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
