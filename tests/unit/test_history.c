/* The ring of past steps. */
#include "common/heap.h"
#include "server/core/history.h"

#include <check.h>
#include <stdlib.h>

static struct pd_history filled(uint64_t capacity, uint64_t steps)
{
    struct pd_history history;
    struct pd_error error = {0};

    ck_assert_int_eq(pd_history_init(&history, capacity, &error), PD_OK);
    for (uint64_t step = 0; step < steps; step++) {
        const struct pd_history_row row = {.step = step, .loss = (double)step};
        pd_history_add(&history, &row);
    }
    return history;
}

START_TEST(the_oldest_steps_make_room_for_the_newest)
{
    struct pd_history history = filled(4, 10);

    ck_assert_uint_eq(history.count, 4);
    for (uint64_t i = 0; i < 4; i++) {
        ck_assert_uint_eq(pd_history_at(&history, i)->step, 6 + i);
        ck_assert_double_eq(pd_history_at(&history, i)->loss, 6 + (double)i);
    }
    pd_history_finish(&history);
}
END_TEST

START_TEST(a_step_is_found_or_the_next_one_kept)
{
    struct pd_history history = filled(4, 10);

    ck_assert_uint_eq(pd_history_find(&history, 0), 0);
    ck_assert_uint_eq(pd_history_find(&history, 6), 0);
    ck_assert_uint_eq(pd_history_find(&history, 8), 2);
    ck_assert_uint_eq(pd_history_find(&history, 10), 4);
    pd_history_finish(&history);
}
END_TEST

START_TEST(a_metric_belongs_to_the_step_that_made_its_version)
{
    struct pd_history history = filled(4, 10);

    pd_history_note(&history, 8, 3, 0.5);
    for (uint64_t i = 0; i < 4; i++) {
        ck_assert_uint_eq(pd_history_at(&history, i)->metrics_known, i == 1 ? 8 : 0);
    }
    ck_assert_double_eq(pd_history_at(&history, 1)->metrics[3], 0.5);
    pd_history_finish(&history);
}
END_TEST

START_TEST(a_metric_of_a_step_that_is_gone_or_never_was_is_not_noted)
{
    static const uint64_t versions[] = {0, 1, 6, 11, UINT64_MAX};
    struct pd_history history = filled(4, 10);

    for (size_t i = 0; i < sizeof versions / sizeof versions[0]; i++) {
        pd_history_note(&history, versions[i], 0, 1);
    }
    for (uint64_t i = 0; i < 4; i++) {
        ck_assert_uint_eq(pd_history_at(&history, i)->metrics_known, 0);
    }
    pd_history_finish(&history);
}
END_TEST

START_TEST(a_row_taken_again_forgets_its_metrics)
{
    struct pd_history history = filled(2, 2);
    const struct pd_history_row row = {.step = 2};

    pd_history_note(&history, 1, 0, 1);
    pd_history_add(&history, &row);
    ck_assert_uint_eq(pd_history_at(&history, 1)->metrics_known, 0);
    pd_history_finish(&history);
}
END_TEST

START_TEST(without_memory_there_is_none)
{
    struct pd_history history;
    struct pd_error error = {0};

    pd_heap_fail_at(0);
    ck_assert_int_eq(pd_history_init(&history, 4, &error), PD_ENOMEM);
    ck_assert_str_eq(error.message, "history: 4 steps");
    pd_history_finish(&history);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("history");
    TCase *tests = tcase_create("history");

    tcase_add_test(tests, the_oldest_steps_make_room_for_the_newest);
    tcase_add_test(tests, a_step_is_found_or_the_next_one_kept);
    tcase_add_test(tests, a_metric_belongs_to_the_step_that_made_its_version);
    tcase_add_test(tests, a_metric_of_a_step_that_is_gone_or_never_was_is_not_noted);
    tcase_add_test(tests, a_row_taken_again_forgets_its_metrics);
    tcase_add_test(tests, without_memory_there_is_none);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
