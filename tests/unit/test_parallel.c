/* How many threads carry the lanes of a call. */
#include "client/parallel.h"

#include <check.h>
#include <stdlib.h>

START_TEST(each_large_lane_has_a_thread_as_far_as_there_are_cores)
{
    ck_assert_uint_eq(pd_parallel_thread_count(2, 2, 1), 2);
    ck_assert_uint_eq(pd_parallel_thread_count(2, 64, 1), 2);
    ck_assert_uint_eq(pd_parallel_thread_count(64, 8, 1), 8);
    ck_assert_uint_eq(pd_parallel_thread_count(1, 8, 1), 1);
    ck_assert_uint_eq(pd_parallel_thread_count(0, 8, 1), 0);
}
END_TEST

START_TEST(cores_are_shared_with_the_other_workers)
{
    ck_assert_uint_eq(pd_parallel_thread_count(2, 2, 2), 1);
    ck_assert_uint_eq(pd_parallel_thread_count(4, 8, 2), 4);
    ck_assert_uint_eq(pd_parallel_thread_count(4, 8, 3), 2);
    ck_assert_uint_eq(pd_parallel_thread_count(4, 8, 256), 1);
    ck_assert_uint_eq(pd_parallel_thread_count(2, 2, 0), 2);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("parallel");
    TCase *tests = tcase_create("parallel");

    tcase_add_test(tests, each_large_lane_has_a_thread_as_far_as_there_are_cores);
    tcase_add_test(tests, cores_are_shared_with_the_other_workers);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
