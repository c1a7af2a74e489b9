/* Tests of server/core/loss_scale.c against GradScaler's own traces. */
#include "server/core/loss_scale.h"

#include "tests/support/scaler_trace.h"
#include "tests/support/vectors.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>

START_TEST(the_scale_follows_each_trace_of_gradscaler)
{
    static const char *const names[] = {"gradscaler_growth20", "gradscaler_nondefault",
                                        "gradscaler_underflow", "gradscaler_default_long"};
    json_t *document = vectors_load(PD_VECTORS, names[_i]);
    char text[256];

    ck_assert_msg(scaler_trace_holds(document, text, sizeof text), "%s: %s", names[_i], text);
    json_decref(document);
}
END_TEST

START_TEST(a_static_scale_stays)
{
    struct pd_loss_scale_options options = {
        .init_scale = 128.0, .growth_factor = 2.0, .backoff_factor = 0.5, .growth_interval = 1};
    struct pd_loss_scale state;

    pd_loss_scale_init(&state, &options);
    pd_loss_scale_update(&state, &options, true);
    pd_loss_scale_update(&state, &options, false);
    ck_assert_double_eq((double)state.scale, 128.0);
}
END_TEST

START_TEST(without_loss_scaling_the_scale_is_one)
{
    struct pd_loss_scale_options options = {.init_scale = NAN, .dynamic = true};
    struct pd_loss_scale state;

    pd_loss_scale_init(&state, &options);
    pd_loss_scale_update(&state, &options, true);
    ck_assert_double_eq((double)state.scale, 1.0);
}
END_TEST

START_TEST(a_scale_that_would_overflow_does_not_grow)
{
    struct pd_loss_scale_options options = {.init_scale = 3e38,
                                            .growth_factor = 2.0,
                                            .backoff_factor = 0.5,
                                            .growth_interval = 1,
                                            .dynamic = true};
    struct pd_loss_scale state;

    pd_loss_scale_init(&state, &options);
    pd_loss_scale_update(&state, &options, false);
    ck_assert_double_eq((double)state.scale, (double)3e38f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("loss_scale");
    TCase *cases = tcase_create("loss_scale");
    tcase_add_loop_test(cases, the_scale_follows_each_trace_of_gradscaler, 0, 4);
    tcase_add_test(cases, a_static_scale_stays);
    tcase_add_test(cases, without_loss_scaling_the_scale_is_one);
    tcase_add_test(cases, a_scale_that_would_overflow_does_not_grow);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
