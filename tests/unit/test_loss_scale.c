/* Tests of server/core/loss_scale.c against GradScaler's own traces. */
#include "server/core/loss_scale.h"

#include "tests/support/vectors.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>

static struct pd_loss_scale_options read_options(const json_t *document)
{
    const json_t *hyper = json_object_get(document, "hyperparameters");
    return (struct pd_loss_scale_options){
        .init_scale = vectors_number(json_object_get(hyper, "init_scale")),
        .growth_factor = vectors_number(json_object_get(hyper, "growth_factor")),
        .backoff_factor = vectors_number(json_object_get(hyper, "backoff_factor")),
        .growth_interval = (uint64_t)json_integer_value(json_object_get(hyper, "growth_interval")),
        .dynamic = true,
    };
}

static void follow(const char *name)
{
    json_t *document = vectors_load(PD_VECTORS, name);
    struct pd_loss_scale_options options = read_options(document);
    const json_t *found = json_object_get(document, "found_inf");
    const json_t *scales = json_object_get(document, "scale");
    const json_t *trackers = json_object_get(document, "growth_tracker");
    struct pd_loss_scale state;

    pd_loss_scale_init(&state, &options);
    for (size_t i = 0; i < json_array_size(found); i++) {
        ck_assert_double_eq((double)state.scale, vectors_number(json_array_get(scales, i)));
        ck_assert_uint_eq(state.growth_tracker,
                          (uint64_t)json_integer_value(json_array_get(trackers, i)));
        pd_loss_scale_update(&state, &options, json_integer_value(json_array_get(found, i)) != 0);
    }
    json_decref(document);
}

START_TEST(the_scale_follows_each_trace_of_gradscaler)
{
    static const char *const names[] = {"gradscaler_growth20", "gradscaler_nondefault",
                                        "gradscaler_underflow"};
    follow(names[_i]);
}
END_TEST

START_TEST(the_scale_follows_the_long_trace_at_the_defaults)
{
    json_t *document = vectors_load(PD_VECTORS, "gradscaler_default_long");
    struct pd_loss_scale_options options = read_options(document);
    const json_t *found = json_object_get(document, "found_inf_steps");
    const json_t *changes = json_object_get(document, "scale_changes");
    json_int_t count = json_integer_value(json_object_get(document, "n"));
    struct pd_loss_scale state;
    size_t next_found = 0;
    size_t next_change = 0;

    pd_loss_scale_init(&state, &options);
    for (json_int_t i = 0; i < count; i++) {
        float before = state.scale;
        bool is_found = json_integer_value(json_array_get(found, next_found)) == i &&
                        next_found < json_array_size(found);
        next_found += is_found;
        pd_loss_scale_update(&state, &options, is_found);
        if (state.scale != before) {
            const json_t *change = json_array_get(changes, next_change++);
            ck_assert_int_eq(json_integer_value(json_array_get(change, 0)), i + 1);
            ck_assert_double_eq((double)state.scale, vectors_number(json_array_get(change, 1)));
        }
    }
    ck_assert_uint_eq(next_change, json_array_size(changes));
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
    tcase_add_loop_test(cases, the_scale_follows_each_trace_of_gradscaler, 0, 3);
    tcase_add_test(cases, the_scale_follows_the_long_trace_at_the_defaults);
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
