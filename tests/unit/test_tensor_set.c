/* Sets of tensors: members, intersections, and the shortest form on the wire. */
#include "common/tensor_set.h"

#include <check.h>
#include <stdlib.h>

START_TEST(a_new_set_has_no_tensor)
{
    struct pd_tensor_set set = {0};

    for (uint32_t i = 0; i < PD_TENSOR_COUNT_MAX; i++) {
        ck_assert(!pd_tensor_set_has(&set, i));
    }
    ck_assert_uint_eq(set.byte_count, 0);
}
END_TEST

START_TEST(a_set_has_what_was_added_and_nothing_else)
{
    struct pd_tensor_set set = {0};

    pd_tensor_set_add(&set, 3);
    pd_tensor_set_add(&set, 17);
    pd_tensor_set_add(&set, PD_TENSOR_COUNT_MAX - 1);
    for (uint32_t i = 0; i < PD_TENSOR_COUNT_MAX; i++) {
        ck_assert_int_eq(pd_tensor_set_has(&set, i),
                         i == 3 || i == 17 || i == PD_TENSOR_COUNT_MAX - 1);
    }
}
END_TEST

START_TEST(an_intersection_keeps_what_both_have_and_drops_trailing_zeros)
{
    struct pd_tensor_set set = {0};
    struct pd_tensor_set other = {0};

    pd_tensor_set_add(&set, 1);
    pd_tensor_set_add(&set, 9);
    pd_tensor_set_add(&set, 40);
    pd_tensor_set_add(&other, 1);
    pd_tensor_set_add(&other, 8);
    pd_tensor_set_intersect(&set, &other);
    ck_assert(pd_tensor_set_has(&set, 1));
    ck_assert(!pd_tensor_set_has(&set, 9));
    ck_assert(!pd_tensor_set_has(&set, 40));
    ck_assert_uint_eq(set.byte_count, 1);
}
END_TEST

START_TEST(bytes_grown_into_again_start_empty)
{
    struct pd_tensor_set set = {0};
    struct pd_tensor_set none = {0};

    pd_tensor_set_add(&set, 30);
    pd_tensor_set_intersect(&set, &none);
    pd_tensor_set_add(&set, 31);
    ck_assert(!pd_tensor_set_has(&set, 30));
    ck_assert(pd_tensor_set_has(&set, 31));
}
END_TEST

START_TEST(a_copy_has_the_same_members)
{
    struct pd_tensor_set set = {0};
    struct pd_tensor_set copy = {.byte_count = 9};

    pd_tensor_set_add(&set, 12);
    pd_tensor_set_copy(&copy, &set);
    ck_assert_uint_eq(copy.byte_count, set.byte_count);
    ck_assert(pd_tensor_set_has(&copy, 12));
    ck_assert(!pd_tensor_set_has(&copy, 13));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tensor_set");
    TCase *cases = tcase_create("tensor_set");
    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, a_new_set_has_no_tensor);
    tcase_add_test(cases, a_set_has_what_was_added_and_nothing_else);
    tcase_add_test(cases, an_intersection_keeps_what_both_have_and_drops_trailing_zeros);
    tcase_add_test(cases, bytes_grown_into_again_start_empty);
    tcase_add_test(cases, a_copy_has_the_same_members);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
