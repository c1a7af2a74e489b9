/* Schedules against the reference's learning rates, alone and in sequence. */
#include "server/core/schedule.h"
#include "tests/support/vectors.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>

/* Of the base rate: the references step by recursion, whose rounding errors add up. */
#define TOLERANCE 1e-13

/* One reference case as a configuration would say it. */
struct schedule_case {
    const char *name;
    size_t count;
    struct pd_schedule schedules[3];
};

static const struct schedule_case cases[] = {
    {"sched_constant", 1, {{.kind = PD_SCHEDULE_CONSTANT, .factor = 0.25, .steps = 40}}},
    {"sched_step", 1, {{.kind = PD_SCHEDULE_STEP, .step_size = 30, .gamma = 0.1}}},
    {"sched_linear",
     1,
     {{.kind = PD_SCHEDULE_LINEAR, .start_factor = 0.1, .end_factor = 1, .steps = 50}}},
    {"sched_cosine", 1, {{.kind = PD_SCHEDULE_COSINE, .t_max = 200, .eta_min = 1e-4}}},
    {"sched_cosine_past_tmax", 1, {{.kind = PD_SCHEDULE_COSINE, .t_max = 60}}},
    {"sched_sequential_linear_cosine",
     2,
     {{.kind = PD_SCHEDULE_LINEAR, .start_factor = 0.01, .end_factor = 1, .steps = 20},
      {.kind = PD_SCHEDULE_COSINE, .t_max = 180, .eta_min = 1e-5}}},
};
#define CASE_COUNT ((int)(sizeof cases / sizeof cases[0]))

START_TEST(a_schedule_gives_the_rates_of_its_reference)
    {
        const struct schedule_case *schedule_case = &cases[_i];
        json_t *document = vectors_load(PD_VECTORS, schedule_case->name);
        double base_lr = json_number_value(json_object_get(document, "base_lr"));
        const json_t *rates = json_object_get(document, "lr");

        ck_assert_uint_gt(json_array_size(rates), 0);
        for (size_t step = 0; step < json_array_size(rates); step++) {
            double expected = vectors_number(json_array_get(rates, step));
            double rate =
                pd_schedule_lr(schedule_case->schedules, schedule_case->count, base_lr, step);
            ck_assert_msg(fabs(rate - expected) <= TOLERANCE * base_lr,
                          "%s step %zu: %.17g, not %.17g", schedule_case->name, step, rate,
                          expected);
        }
        json_decref(document);
    }
END_TEST

START_TEST(without_a_schedule_the_rate_stays)
    {
        ck_assert_double_eq(pd_schedule_lr(NULL, 0, 0.3, 0), 0.3);
        ck_assert_double_eq(pd_schedule_lr(NULL, 0, 0.3, 1000000), 0.3);
    }
END_TEST

START_TEST(a_sequence_counts_each_schedule_from_its_own_beginning)
    {
        const struct pd_schedule schedules[] = {
            {.kind = PD_SCHEDULE_CONSTANT, .factor = 0.5, .steps = 3},
            {.kind = PD_SCHEDULE_STEP, .step_size = 2, .gamma = 0.5, .steps = 4},
            {.kind = PD_SCHEDULE_CONSTANT, .factor = 0.125},
        };
        const double expected[] = {0.5, 0.5, 0.5, 1, 1, 0.5, 0.5, 0.125, 0.125};

        for (uint64_t step = 0; step < sizeof expected / sizeof expected[0]; step++) {
            ck_assert_double_eq(pd_schedule_lr(schedules, 3, 1, step), expected[step]);
        }
        ck_assert_double_eq(pd_schedule_lr(schedules, 3, 1, UINT64_MAX), 0.125);
    }
END_TEST

START_TEST(the_table_is_found_by_name_and_its_kinds_are_its_indices)
    {
        size_t count = 0;
        for (; pd_schedule_at(count) != NULL; count++) {
            const struct pd_schedule_rule *rule = pd_schedule_at(count);
            struct pd_schedule schedule = {.kind = rule->kind};
            struct pd_error error = {0};

            ck_assert_ptr_eq(pd_schedule_find(rule->name), rule);
            ck_assert_uint_eq(rule->kind, count);
            ck_assert_int_eq(
                pd_option_defaults(rule->options, rule->option_count, &schedule, &error), PD_OK);
            ck_assert(isfinite(pd_schedule_lr(&schedule, 1, 0.1, 0)));
            ck_assert(isfinite(pd_schedule_lr(&schedule, 1, 0.1, 1ull << 40)));
        }
        ck_assert_uint_ge(count, 4);
        ck_assert_ptr_null(pd_schedule_find("cosin"));
    }
END_TEST

int main(void)
{
    Suite *suite = suite_create("schedule");
    TCase *tests = tcase_create("schedule");

    tcase_add_loop_test(tests, a_schedule_gives_the_rates_of_its_reference, 0, CASE_COUNT);
    tcase_add_test(tests, without_a_schedule_the_rate_stays);
    tcase_add_test(tests, a_sequence_counts_each_schedule_from_its_own_beginning);
    tcase_add_test(tests, the_table_is_found_by_name_and_its_kinds_are_its_indices);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
