/* What the log says when the training waits for somebody. */
#include "engine_fixture.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define A 3u
#define B 4u
#define C 5u

static struct engine_fixture f;

static void teardown(void)
{
    fixture_finish(&f);
}

/* Let time pass in which these keep their leases; the log must say that line first after about ten
 * seconds, or nothing. */
static void expect_said(const char *line)
{
    f.logged[0] = '\0';
    fixture_wait(&f, 9500);
    ck_assert_str_eq(f.logged, "");
    fixture_wait(&f, 1000);
    ck_assert_str_eq(f.logged, line);
}

static void offer(pd_connection_id connection)
{
    const struct pd_message message = {.kind = PD_MESSAGE_REGISTER,
                                       .registration = {.tensors = f.model}};
    fixture_say(&f, connection, &message, 0);
}

START_TEST(nothing_is_said_when_nobody_waits)
{
    fixture_init(&f, 0, 1, "workers: {expected: 1}\n");
    expect_said("");
    (void)fixture_enlist(&f, A, "a");
    (void)fixture_enlist(&f, B, "b");
    expect_said("");
}
END_TEST

START_TEST(model_waits_for_whoever_registers_it)
{
    fixture_init(&f, 0, 1, "workers: {expected: 1}\n");
    (void)fixture_join(&f, A, "a");
    expect_said("the model waits for the registration of 'a': 10 s so far");
}
END_TEST

START_TEST(model_waits_for_its_initial_values)
{
    fixture_init(&f, 0, 1, "workers: {expected: 1}\n");
    (void)fixture_join(&f, A, "a");
    (void)fixture_join(&f, B, "b");
    offer(A);
    offer(B);
    expect_said("the model waits for the initial values of 'a': 10 s so far");
}
END_TEST

START_TEST(first_step_waits_for_those_that_are_expected)
{
    fixture_init(&f, 0, 1, "workers: {expected: 3}\n");
    (void)fixture_enlist(&f, A, "a");
    expect_said("step 0 waits for 3 workers (workers.expected): 1 registered: 10 s so far");
    (void)fixture_join(&f, B, "b");
    expect_said("step 0 waits for 3 workers (workers.expected): 1 registered, only joined: 'b': "
                "10 s so far");
}
END_TEST

START_TEST(step_waits_for_those_that_have_not_pushed)
{
    static const char *const names[] = {"c", "d", "e", "f"};
    fixture_init(&f, 0, 1, "workers: {expected: 2}\n");
    (void)fixture_enlist(&f, A, "a");
    (void)fixture_enlist(&f, B, "b");
    fixture_push(&f, A, 0, 1, 1);
    expect_said("step 0 waits for 'b': 10 s so far");
    for (uint32_t i = 0; i < 4; i++) {
        (void)fixture_enlist(&f, C + i, names[i]);
    }
    expect_said("step 0 waits for 'b', 'c', 'd' and 2 more: 10 s so far");
}
END_TEST

START_TEST(long_wait_is_said_again_each_minute)
{
    const struct pd_message ping = {.kind = PD_MESSAGE_PING};
    fixture_init(&f, 0, 1, "workers: {expected: 2}\n");
    (void)fixture_enlist(&f, A, "a");
    (void)fixture_enlist(&f, B, "b");
    fixture_push(&f, A, 0, 1, 1);
    expect_said("step 0 waits for 'b': 10 s so far");
    fixture_say(&f, A, &ping, 0);
    fixture_say(&f, B, &ping, 0);
    fixture_wait(&f, 59000);
    ck_assert_str_eq(f.logged, "step 0 waits for 'b': 10 s so far");
    fixture_wait(&f, 1000);
    ck_assert_str_eq(f.logged, "step 0 waits for 'b': 70 s so far");
}
END_TEST

/* Those without a place wait for the one that has it. */
START_TEST(step_waits_for_whoever_has_the_place)
{
    const struct pd_message push = {
        .kind = PD_MESSAGE_PUSH,
        .push = {.last = true, .samples = 1, .element_count = FIXTURE_ELEMENTS}};
    fixture_init(&f, 0, 1, "workers: {expected: 3, staging_limit: 32}\n");
    (void)fixture_enlist(&f, A, "a");
    (void)fixture_enlist(&f, B, "b");
    (void)fixture_enlist(&f, C, "c");
    expect_said("");
    fixture_say(&f, C, &push, FIXTURE_ELEMENTS * sizeof(float));
    expect_said("step 0 waits for 'a': 10 s so far");
}
END_TEST

START_TEST(pause_is_no_wait)
{
    const struct pd_message pause = {.kind = PD_MESSAGE_ADMIN, .admin = {.command = "pause"}};
    fixture_init(&f, 0, 1, "workers: {expected: 2}\n");
    (void)fixture_enlist(&f, A, "a");
    (void)fixture_enlist(&f, B, "b");
    fixture_push(&f, A, 0, 1, 1);
    fixture_greet(&f, C);
    fixture_say(&f, C, &pause, 0);
    expect_said("");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("waiting");
    TCase *tests = tcase_create("waiting");

    tcase_add_checked_fixture(tests, NULL, teardown);
    tcase_add_test(tests, nothing_is_said_when_nobody_waits);
    tcase_add_test(tests, model_waits_for_whoever_registers_it);
    tcase_add_test(tests, model_waits_for_its_initial_values);
    tcase_add_test(tests, first_step_waits_for_those_that_are_expected);
    tcase_add_test(tests, step_waits_for_those_that_have_not_pushed);
    tcase_add_test(tests, long_wait_is_said_again_each_minute);
    tcase_add_test(tests, step_waits_for_whoever_has_the_place);
    tcase_add_test(tests, pause_is_no_wait);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
