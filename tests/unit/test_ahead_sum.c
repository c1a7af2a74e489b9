/* What a step ahead adds up: pushes that wait for those behind, and sums that are all that is
 * ahead, as the rule or a norm needs the whole gradient first. */
#include "ahead_fixture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- What waits for the others ---- */

static void expect_place(pd_connection_id connection, uint64_t begin)
{
    ck_assert_ptr_nonnull(f.placed[connection]);
    ck_assert_uint_eq(f.place_begin[connection], begin);
}

/* A is as far ahead of B as it may be. */
static void begin_a_before_b(void)
{
    announce(A, 0);
    announce(B, 0);
    fixture_receive(&f, A, gradient_a, 0, FIRST_BLOCK);
    expect_place(A, 0);
}

START_TEST(push_that_is_ahead_is_read_on_when_the_others_have_caught_up)
{
    begin_a_before_b();
    fixture_receive(&f, B, gradient_b, 0, FIRST_BLOCK - 1);
    expect_place(A, 0);
    fixture_receive(&f, B, gradient_b, FIRST_BLOCK - 1, FIRST_BLOCK);
    expect_place(A, FIRST_BLOCK);
    expect_place(B, FIRST_BLOCK);
    fixture_receive(&f, A, gradient_a, FIRST_BLOCK, SECOND_BLOCK);
    expect_place(A, FIRST_BLOCK);
    end(B, gradient_b);
    end(A, gradient_a);
    expect_parameters(1, together);
}
END_TEST

START_TEST(push_that_is_ahead_does_not_wait_long)
{
    begin_a_before_b();
    fixture_wait(&f, 250);
    expect_place(A, FIRST_BLOCK);
    end(A, gradient_a);
    end(B, gradient_b);
    expect_parameters(1, together);
}
END_TEST

/* It waits while the others bring the step on, but its worker would be taken for dead if it was not
 * read meanwhile. */
START_TEST(push_that_is_ahead_is_read_now_and_then_while_others_are_slow)
{
    announce(A, 0);
    fixture_receive(&f, A, gradient_a, 0, FIRST_BLOCK);
    announce(B, 0);
    f.now_ms += 90;
    fixture_receive(&f, A, gradient_a, FIRST_BLOCK, SECOND_BLOCK);
    f.now_ms += 9;
    fixture_receive(&f, B, gradient_b, 0, FIRST_BLOCK);
    f.now_ms += 90;
    fixture_progress(&f, B, false);
    expect_place(A, FIRST_BLOCK);
    f.now_ms += 1;
    fixture_progress(&f, B, false);
    expect_place(A, SECOND_BLOCK);
}
END_TEST

START_TEST(push_that_is_ahead_does_not_wait_for_one_that_is_lost)
{
    begin_a_before_b();
    fixture_close(&f, B);
    expect_place(A, FIRST_BLOCK);
}
END_TEST

START_TEST(push_does_not_wait_for_one_that_has_not_begun)
{
    announce(A, 0);
    fixture_receive(&f, A, gradient_a, 0, FIRST_BLOCK);
    expect_place(A, FIRST_BLOCK);
}
END_TEST

/* ---- What only the sum of is ahead ---- */

/* With a norm to clip by no block is final before all are in: the sum is ahead, and the parameters
 * come once they are there, of a small model all at once. */
START_TEST(with_a_norm_only_the_sum_is_ahead)
{
    fixture_finish(&f);
    begin(CONFIG "clip: {norm: 1000}\n");
    begin_both();
    fixture_receive(&f, A, gradient_a, FIRST_BLOCK, BYTES);
    fixture_receive(&f, B, gradient_b, FIRST_BLOCK, BYTES);
    ck_assert_uint_eq(fixture_count(&f, A, PD_MESSAGE_PULLED), 0);
    end(A, gradient_a);
    end(B, gradient_b);
    expect_parameters(1, together);
    expect_plain_answer(A, 1);
    ck_assert_uint_eq(fixture_count(&f, A, PD_MESSAGE_SETTLED), 0);
}
END_TEST

/* What is in the sum is not kept: when that is void, it comes again. */
START_TEST(with_a_norm_a_void_sum_is_pushed_again)
{
    fixture_finish(&f);
    begin(CONFIG "clip: {norm: 1000}\n");
    begin_both();
    ck_assert_uint_eq(contribution_of(A)->spent, 4);
    end(A, gradient_a);
    fixture_close(&f, B);
    const struct pd_message *settled = fixture_last(&f, A);
    ck_assert_int_eq(settled->kind, PD_MESSAGE_SETTLED);
    ck_assert(settled->settled.again);
    expect_parameters(0, initial());

    fixture_wait(&f, 3000);
    announce(A, 0);
    end(A, gradient_a);
    expect_only_a(1);
    expect_plain_answer(A, 1);
}
END_TEST

START_TEST(with_a_norm_what_is_not_finite_is_told_by_name)
{
    float broken[FIXTURE_ELEMENTS];
    memcpy(broken, gradient_b, sizeof broken);
    broken[1] = NAN;
    fixture_finish(&f);
    begin(CONFIG "clip: {norm: 1000}\n");
    announce(A, 0);
    announce(B, 0);
    fixture_receive(&f, A, gradient_a, 0, SECOND_BLOCK);
    fixture_receive(&f, B, broken, 0, SECOND_BLOCK);
    ck_assert_uint_gt(contribution_of(B)->spent, 0);
    end(A, gradient_a);
    end(B, broken);
    expect_plain_answer(A, 1);
    expect_parameters(1, initial());
    ck_assert_ptr_nonnull(
        strstr(f.engine->leader->last_skip_reason, "'b' is not finite: tensor 'w', element 1"));
}
END_TEST

/* It is the gradient itself until the norm is known. */
START_TEST(with_a_norm_a_lone_gradient_is_kept)
{
    fixture_finish(&f);
    begin(CONFIG "clip: {norm: 1000}\n");
    struct pd_message nothing = push_of(0, true);
    nothing.push.samples = 0;
    announce(A, 0);
    fixture_say(&f, B, &nothing, BYTES);
    fixture_receive(&f, A, gradient_a, 0, SECOND_BLOCK);
    fixture_receive(&f, B, gradient_b, 0, SECOND_BLOCK);
    ck_assert_uint_eq(contribution_of(A)->spent, 0);
    end(A, gradient_a);
    end(B, gradient_b);
    expect_only_a(1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ahead_sum");
    TCase *tests = tcase_create("ahead_sum");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, push_that_is_ahead_is_read_on_when_the_others_have_caught_up);
    tcase_add_test(tests, push_that_is_ahead_does_not_wait_long);
    tcase_add_test(tests, push_that_is_ahead_is_read_now_and_then_while_others_are_slow);
    tcase_add_test(tests, push_that_is_ahead_does_not_wait_for_one_that_is_lost);
    tcase_add_test(tests, push_does_not_wait_for_one_that_has_not_begun);
    tcase_add_test(tests, with_a_norm_only_the_sum_is_ahead);
    tcase_add_test(tests, with_a_norm_a_void_sum_is_pushed_again);
    tcase_add_test(tests, with_a_norm_what_is_not_finite_is_told_by_name);
    tcase_add_test(tests, with_a_norm_a_lone_gradient_is_kept);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
