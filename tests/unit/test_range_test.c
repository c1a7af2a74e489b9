/* Rates, smoothing, divergence and suggestions. The numbers are those of the reference loop
 * (losses smoothed from the first, numpy.gradient(...).argmin()) and of fastai's debiased one. */
#include "common/heap.h"
#include "server/core/range_test.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TOLERANCE 1e-12

/* Falls steepest at the sixth, and blows up at the last. */
static const double losses[] = {2.5, 2.4, 2.45, 2.3, 2.0, 1.2, 0.9, 0.85, 0.8, 1.1, 3.0, 40.0};
#define LOSS_COUNT (sizeof losses / sizeof losses[0])

static struct pd_range_test test;
static struct pd_range_options options;
static struct pd_error error;

static void setup(void)
{
    ck_assert_int_eq(pd_range_read(&options, NULL, 0, &error), PD_OK);
    options.start = 1e-6;
    options.end = 1;
    options.steps = LOSS_COUNT;
}

static void teardown(void)
{
    pd_range_finish(&test);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

/* Give it the losses until it diverges; the number of points. */
static uint64_t run(void)
{
    ck_assert_int_eq(pd_range_init(&test, &options, &error), PD_OK);
    for (size_t i = 0; i < LOSS_COUNT && pd_range_take(&test, losses[i]); i++) {
        ck_assert_double_eq(test.points[i].loss, losses[i]);
    }
    return test.point_count;
}

static enum pd_status read(const char *setting)
{
    return pd_range_read(&options, &setting, 1, &error);
}

START_TEST(defaults_are_those_of_the_reference)
{
    ck_assert_int_eq(pd_range_read(&options, NULL, 0, &error), PD_OK);
    ck_assert_double_eq(options.start, 1e-7);
    ck_assert_double_eq(options.end, 10);
    ck_assert_uint_eq(options.steps, 100);
    ck_assert_double_eq(options.smooth_f, 0.05);
    ck_assert_double_eq(options.diverge_th, 4);
    ck_assert_uint_eq(options.skip_start, 10);
    ck_assert_uint_eq(options.skip_end, 5);
    ck_assert(!options.debias && !options.exclude_end);
}
END_TEST

START_TEST(settings_are_read)
{
    static const char *const settings[] = {"start=1e-5", "end=0.5",      "steps=20",
                                           "smooth_f=1", "diverge_th=9", "skip_start=0",
                                           "skip_end=2", "debias=true",  "exclude_end=true"};
    ck_assert_int_eq(pd_range_read(&options, settings, 9, &error), PD_OK);
    ck_assert_double_eq(options.start, 1e-5);
    ck_assert_double_eq(options.end, 0.5);
    ck_assert_uint_eq(options.steps, 20);
    ck_assert_double_eq(options.smooth_f, 1);
    ck_assert_double_eq(options.diverge_th, 9);
    ck_assert_uint_eq(options.skip_start, 0);
    ck_assert_uint_eq(options.skip_end, 2);
    ck_assert(options.debias && options.exclude_end);
}
END_TEST

START_TEST(wrong_setting_is_named_with_what_is_allowed)
{
    static const char *const wrong[][2] = {
        {"start=0", "lr-find start=0: start: 0: out of range; allowed: a number > 0"},
        {"end=inf", "end: inf: out of range; allowed: a number > 0"},
        {"end=1e-9", "lr-find: end: 1e-09 with start 1e-07; allowed: a number > start"},
        {"steps=1", "steps: 1: out of range; allowed: a whole number from 2 to 10000"},
        {"steps=many", "steps: many: not a whole number; allowed: a whole number from 2"},
        {"smooth_f=0", "smooth_f: 0: out of range; allowed: a number > 0 and <= 1"},
        {"diverge_th=1", "diverge_th: 1: out of range; allowed: a number > 1"},
        {"skip_end=-1", "skip_end: -1: out of range; allowed: a whole number from 0"},
        {"debias=2", "debias: 2: neither true nor false; allowed: true or false"},
        {"smooth=1", "smooth: unknown key; allowed: start, end, steps, smooth_f, diverge_th, "},
        {"steps", "lr-find steps: not a setting; allowed: key=value"},
        {"start.x=[1", "lr-find start.x=[1"},
    };
    ck_assert_int_eq(read(wrong[_i][0]), PD_EINVALID);
    ck_assert_int_eq(error.status, PD_EINVALID);
    ck_assert_msg(strstr(error.message, wrong[_i][1]) != NULL, "%s", error.message);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(rates_are_geometric_and_end_where_they_should)
{
    options.exclude_end = _i == 1;
    options.diverge_th = 1e9;
    ck_assert_uint_eq(run(), LOSS_COUNT);
    for (size_t i = 0; i < LOSS_COUNT; i++) {
        double share = (double)i / (double)(LOSS_COUNT - (_i == 0));
        ck_assert_double_eq_tol(test.points[i].lr / pow(1e-6, 1 - share), 1, TOLERANCE);
    }
}
END_TEST

/* Not smoothed; by half; as fastai does, which holds out longer; by half from 0. */
static const struct {
    double smooth_f;
    bool debias;
    bool exclude_end;
    uint64_t point_count;
    double below_least;
    double steepest;
    double second; /* some of the smoothed losses */
    double tenth;
} references[] = {
    {1, false, false, 11, 0.00231012970008316, 0.0005336699231206309, 2.4, 1.1},
    {0.5, false, true, 11, 0.001, 0.000316227766016838, 2.45, 1.0183593750000002},
    {0.02, true, false, 12, 0.008111308307896876, 0.0005336699231206309, 2.4494949494949445,
     1.612952303761009},
    {0.5, true, false, 11, 0.00231012970008316, 0.0005336699231206309, 2.433333333333333,
     1.0169110459433042},
};

START_TEST(points_and_suggestions_are_those_of_the_reference)
{
    options.smooth_f = references[_i].smooth_f;
    options.debias = references[_i].debias;
    options.exclude_end = references[_i].exclude_end;
    options.skip_start = 2;
    options.skip_end = 1;
    ck_assert_uint_eq(run(), references[_i].point_count);
    ck_assert_double_eq_tol(test.points[1].smoothed, references[_i].second, TOLERANCE);
    ck_assert_double_eq_tol(test.points[9].smoothed, references[_i].tenth, TOLERANCE);
    ck_assert_double_eq_tol(pd_range_steepest(&test), references[_i].steepest, TOLERANCE);
    ck_assert_double_eq_tol(pd_range_below_least(&test), references[_i].below_least, TOLERANCE);
}
END_TEST

START_TEST(steepest_leaves_out_the_ends_and_is_none_without_descent)
{
    options.smooth_f = 1;
    options.skip_start = 6;
    options.skip_end = 0;
    run();
    ck_assert_double_eq(pd_range_steepest(&test), test.points[6].lr); /* one-sided at the edge */
    test.options.skip_start = 9;
    ck_assert(isnan(pd_range_steepest(&test))); /* it only climbs there */
    test.options.skip_start = 10;
    ck_assert(isnan(pd_range_steepest(&test))); /* one point has no gradient */
    test.options.skip_start = 0;
    test.options.skip_end = 10;
    ck_assert(isnan(pd_range_steepest(&test)));
}
END_TEST

START_TEST(what_is_no_finite_number_has_diverged)
{
    static const double ends[] = {NAN, INFINITY, -INFINITY};
    ck_assert_int_eq(pd_range_init(&test, &options, &error), PD_OK);
    ck_assert(pd_range_take(&test, 1));
    ck_assert(!pd_range_take(&test, ends[_i]));
    ck_assert_uint_eq(test.point_count, 1);
}
END_TEST

START_TEST(first_loss_may_be_the_end)
{
    ck_assert_int_eq(pd_range_init(&test, &options, &error), PD_OK);
    ck_assert(!pd_range_take(&test, NAN));
    ck_assert_uint_eq(test.point_count, 0);
    ck_assert(isnan(pd_range_below_least(&test)));
    ck_assert(isnan(pd_range_steepest(&test)));
}
END_TEST

START_TEST(losses_below_0_diverge_when_they_have_climbed_as_far)
{
    options.smooth_f = 1;
    ck_assert_int_eq(pd_range_init(&test, &options, &error), PD_OK);
    ck_assert(pd_range_take(&test, -2));
    ck_assert(pd_range_take(&test, 3.9));
    ck_assert(!pd_range_take(&test, 4.1));
}
END_TEST

START_TEST(each_failed_allocation_is_survived)
{
    bool made = false;

    for (long at = 0; !made; at++) {
        const char *setting = "steps=5";
        pd_heap_fail_at(at);
        enum pd_status status = pd_range_read(&options, &setting, 1, &error);
        if (status == PD_OK) {
            status = pd_range_init(&test, &options, &error);
        }
        pd_heap_fail_at(-1);
        made = status == PD_OK;
        ck_assert(made || status == PD_ENOMEM);
        ck_assert_uint_eq(pd_heap_blocks_live(), made);
        ck_assert_int_lt(at, 1000);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("range_test");
    TCase *tests = tcase_create("range_test");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, defaults_are_those_of_the_reference);
    tcase_add_test(tests, settings_are_read);
    tcase_add_loop_test(tests, wrong_setting_is_named_with_what_is_allowed, 0, 12);
    tcase_add_loop_test(tests, rates_are_geometric_and_end_where_they_should, 0, 2);
    tcase_add_loop_test(tests, points_and_suggestions_are_those_of_the_reference, 0, 4);
    tcase_add_test(tests, steepest_leaves_out_the_ends_and_is_none_without_descent);
    tcase_add_loop_test(tests, what_is_no_finite_number_has_diverged, 0, 3);
    tcase_add_test(tests, first_loss_may_be_the_end);
    tcase_add_test(tests, losses_below_0_diverge_when_they_have_climbed_as_far);
    tcase_add_test(tests, each_failed_allocation_is_survived);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
