/* Tests of common/assert.c. */
#include "common/assert.h"

#include <check.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static void exit_if_told_where(const char *condition, const char *file, int line)
{
    bool told =
        strcmp(condition, "1 > 2") == 0 && strstr(file, "test_assert.c") != NULL && line > 0;
    exit(told ? 42 : 1);
}

static void return_wrongly(const char *condition, const char *file, int line)
{
    (void)condition;
    (void)file;
    (void)line;
}

START_TEST(a_true_condition_does_nothing)
{
    PD_ASSERT(2 > 1);
}
END_TEST

START_TEST(a_false_condition_aborts)
{
    PD_ASSERT(1 > 2);
}
END_TEST

START_TEST(the_hook_is_told_what_and_where)
{
    pd_assert_set_hook(exit_if_told_where);
    PD_ASSERT(1 > 2);
}
END_TEST

START_TEST(a_hook_that_returns_does_not_let_the_program_go_on)
{
    pd_assert_set_hook(return_wrongly);
    PD_ASSERT(1 > 2);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("assert");
    TCase *cases = tcase_create("assert");
    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, a_true_condition_does_nothing);
    tcase_add_test_raise_signal(cases, a_false_condition_aborts, SIGABRT);
    tcase_add_exit_test(cases, the_hook_is_told_what_and_where, 42);
    tcase_add_test_raise_signal(cases, a_hook_that_returns_does_not_let_the_program_go_on, SIGABRT);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
