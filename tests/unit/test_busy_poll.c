/* When a wait for an answer looks for it before it sleeps, and what that costs at most. */
#include "client/busy_poll.h"

#include <check.h>
#include <stdbool.h>
#include <stdlib.h>

#define LIMIT_NS 50000u
#define SHORT_NS 20000u
#define LATE_NS (LIMIT_NS + 1)
#define LONG_NS 1000000u

static struct pd_busy_poll busy_poll;

static void setup(void)
{
    pd_busy_poll_init(&busy_poll, LIMIT_NS);
}

/* Wait once; whether it looked. */
static bool looks(uint64_t took_ns)
{
    bool looked = busy_poll.look_ns > 0;

    ck_assert(busy_poll.look_ns == 0 || busy_poll.look_ns == LIMIT_NS);
    pd_busy_poll_waited(&busy_poll, took_ns);
    return looked;
}

/* How many of these waits sleep before one looks. */
static uint32_t sleeps_until_look(uint64_t took_ns)
{
    for (uint32_t count = 0; count < 100000; count++) {
        if (looks(took_ns)) {
            return count;
        }
    }
    ck_abort_msg("no wait looked");
}

START_TEST(the_first_wait_sleeps_and_one_after_a_short_one_looks)
{
    ck_assert(!looks(SHORT_NS));
    ck_assert(looks(SHORT_NS));
}
END_TEST

START_TEST(a_wait_that_slept_may_have_been_long_for_being_woken)
{
    ck_assert(!looks(LIMIT_NS + 60000));
    ck_assert(looks(SHORT_NS));
}
END_TEST

START_TEST(a_wait_after_a_long_one_sleeps)
{
    for (int i = 0; i < 1000; i++) {
        ck_assert(!looks(LONG_NS));
    }
}
END_TEST

START_TEST(waits_look_as_long_as_they_are_told_in_time)
{
    (void)looks(SHORT_NS);
    for (int i = 0; i < 1000; i++) {
        ck_assert(looks(LIMIT_NS));
    }
}
END_TEST

START_TEST(the_pause_after_a_look_in_vain_doubles_up_to_a_limit)
{
    ck_assert_uint_eq(sleeps_until_look(LATE_NS), 1);
    for (uint32_t pause = 2; pause <= 1024; pause *= 2) {
        ck_assert_uint_eq(sleeps_until_look(LATE_NS), pause);
    }
    ck_assert_uint_eq(sleeps_until_look(LATE_NS), 1024);
    ck_assert_uint_eq(sleeps_until_look(LATE_NS), 1024);
}
END_TEST

START_TEST(each_answer_in_time_halves_the_pause_to_come)
{
    for (int i = 0; i < 5; i++) {
        (void)sleeps_until_look(LATE_NS);
    }
    ck_assert_uint_eq(sleeps_until_look(SHORT_NS), 32);
    ck_assert(looks(SHORT_NS));
    ck_assert(looks(SHORT_NS));
    ck_assert(looks(LATE_NS));
    ck_assert_uint_eq(sleeps_until_look(SHORT_NS), 8);
}
END_TEST

START_TEST(a_long_wait_at_the_end_of_a_pause_puts_the_look_off)
{
    (void)sleeps_until_look(SHORT_NS);
    ck_assert(looks(LATE_NS));
    ck_assert(!looks(SHORT_NS));
    ck_assert(!looks(LONG_NS));
    ck_assert(!looks(LONG_NS));
    ck_assert(!looks(SHORT_NS));
    ck_assert(looks(SHORT_NS));
}
END_TEST

START_TEST(looking_in_vain_costs_less_than_a_thousandth)
{
    uint64_t looked_ns = 0;
    uint64_t waited_ns = 0;

    for (int i = 0; i < 1000000; i++) {
        looked_ns += looks(LATE_NS) ? LIMIT_NS : 0;
        waited_ns += LATE_NS;
    }
    ck_assert_uint_gt(looked_ns, 0);
    ck_assert_uint_lt(looked_ns * 1000, waited_ns);
}
END_TEST

START_TEST(without_a_limit_no_wait_looks)
{
    pd_busy_poll_init(&busy_poll, 0);
    for (int i = 0; i < 1000; i++) {
        ck_assert(!looks(0));
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("busy_poll");
    TCase *tests = tcase_create("busy_poll");

    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, setup, NULL);
    tcase_add_test(tests, the_first_wait_sleeps_and_one_after_a_short_one_looks);
    tcase_add_test(tests, a_wait_that_slept_may_have_been_long_for_being_woken);
    tcase_add_test(tests, a_wait_after_a_long_one_sleeps);
    tcase_add_test(tests, waits_look_as_long_as_they_are_told_in_time);
    tcase_add_test(tests, the_pause_after_a_look_in_vain_doubles_up_to_a_limit);
    tcase_add_test(tests, each_answer_in_time_halves_the_pause_to_come);
    tcase_add_test(tests, a_long_wait_at_the_end_of_a_pause_puts_the_look_off);
    tcase_add_test(tests, looking_in_vain_costs_less_than_a_thousandth);
    tcase_add_test(tests, without_a_limit_no_wait_looks);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
