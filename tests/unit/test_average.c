/* Tests of server/core/average.c against the averages and Lookahead of PyTorch and timm. */
#include "server/core/average.h"

#include "common/heap.h"
#include "tests/support/vectors.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Average a case's parameters and compare with its `ema`; the tolerance is that of trajectories. */
static void follow_average(const char *name, const struct pd_average_options *options)
{
    struct vectors_case reference;
    vectors_case_init(&reference, PD_VECTORS, name);

    for (uint32_t t = 0; t < reference.tensor_count; t++) {
        const struct vectors_tensor *tensor = &reference.tensors[t];
        float *average = calloc(tensor->count, sizeof *average);
        float *next = calloc(tensor->count, sizeof *next);
        memcpy(average, tensor->init, tensor->count * sizeof *average);
        for (uint32_t s = 0; s < reference.step_count; s++) {
            const json_t *ema = json_object_get(reference.steps[s].document, "ema");
            uint32_t count;
            float *expected = vectors_floats(json_object_get(ema, tensor->name), &count);
            pd_average_block(next, average, reference.steps[s].parameters[t],
                             pd_average_weight(options, s), tensor->count);
            memcpy(average, next, tensor->count * sizeof *average);
            for (uint32_t i = 0; i < tensor->count; i++) {
                ck_assert_double_le(fabs((double)average[i] - (double)expected[i]),
                                    16 * 0x1p-23 * tensor->magnitude);
            }
            pd_heap_free(expected);
        }
        free(average);
        free(next);
    }
    vectors_case_finish(&reference);
}

START_TEST(an_ema_that_copies_first_is_torchs_averaged_model)
{
    follow_average("comp_ema_averagedmodel",
                   &(struct pd_average_options){.ema_decay = 0.9, .ema_copy_steps = 1});
}
END_TEST

START_TEST(an_ema_from_the_initial_parameters_is_timms_version_2)
{
    follow_average("comp_ema_v2", &(struct pd_average_options){.ema_decay = 0.9});
}
END_TEST

START_TEST(an_ema_with_warmup_is_timms_version_3)
{
    follow_average("comp_ema_v3_warmup", &(struct pd_average_options){.ema_decay = 0.95,
                                                                      .ema_warmup = true,
                                                                      .ema_warmup_gamma = 1,
                                                                      .ema_warmup_power = 2.0 / 3,
                                                                      .ema_copy_steps = 5});
}
END_TEST

/* timm.utils.ModelEmaV3(decay=0.9, min_decay=0.3, warmup_gamma=4, warmup_power=1).get_decay(s) */
START_TEST(the_warmup_of_an_ema_can_be_stretched_bent_and_bounded)
{
    const struct pd_average_options options = {.ema_decay = 0.9,
                                               .ema_warmup = true,
                                               .ema_warmup_gamma = 4,
                                               .ema_warmup_power = 1,
                                               .ema_min_decay = 0.3,
                                               .ema_copy_steps = 2};

    ck_assert_double_eq_tol(pd_average_weight(&options, 1), 1, 1e-15);
    ck_assert_double_eq_tol(pd_average_weight(&options, 2), 0.7, 1e-15);
    ck_assert_double_eq_tol(pd_average_weight(&options, 4), 4.0 / 7, 1e-15);
    ck_assert_double_eq_tol(pd_average_weight(&options, 13), 0.25, 1e-15);
    ck_assert_double_eq_tol(pd_average_weight(&options, 1000), 0.1, 1e-15);
}
END_TEST

START_TEST(swa_averages_every_third_step_from_the_eighth_on)
{
    follow_average("comp_swa",
                   &(struct pd_average_options){.ema_decay = NAN, .swa_start = 8, .swa_every = 3});
}
END_TEST

START_TEST(nothing_is_averaged_unless_asked)
{
    ck_assert(!pd_average_enabled(&(struct pd_average_options){.ema_decay = NAN}));
    ck_assert(pd_average_enabled(&(struct pd_average_options){.ema_decay = 0.5}));
    ck_assert(pd_average_enabled(&(struct pd_average_options){.ema_decay = NAN, .swa_every = 1}));
}
END_TEST

/* After each step the fast weight moves by 1; slow and fast as the variant says. */
static void walk(enum pd_lookahead_variant variant, const float *expected, uint32_t count)
{
    struct pd_lookahead_options options = {.k = 2, .alpha = 0.5, .variant = variant};
    float slow = 0.0f;
    float fast = 0.0f;

    for (uint32_t step = 0; step < count; step++) {
        fast += 1.0f;
        pd_lookahead_block(&slow, &fast, &options, step, 1);
        ck_assert_float_eq(fast, expected[step]);
    }
}

START_TEST(the_papers_lookahead_goes_half_way_from_the_initial_weights)
{
    walk(PD_LOOKAHEAD_PAPER, (const float[]){1.0f, 1.0f, 2.0f, 2.0f, 3.0f, 3.0f}, 6);
}
END_TEST

START_TEST(timms_lookahead_first_takes_the_weights_after_step_k)
{
    walk(PD_LOOKAHEAD_TIMM, (const float[]){1.0f, 2.0f, 3.0f, 3.0f, 4.0f, 4.0f}, 6);
}
END_TEST

START_TEST(the_third_lookahead_counts_from_the_first_step)
{
    walk(PD_LOOKAHEAD_ALPHADL, (const float[]){1.0f, 2.0f, 2.0f, 3.0f, 3.0f, 4.0f}, 6);
}
END_TEST

START_TEST(momentum_is_left_alone_reset_or_pulled_back_when_weights_are_synchronised)
{
    static const double expected[][6] = {
        {1, 1, 1, 1, 1, 1},
        {1, 0, 1, 0, 1, 0},
        {1, 0.8, 1, 0.8 * 1.2, 1, 0.8 * 1.2},
    };
    struct pd_lookahead_options options = {.k = 2, .alpha = 0.8, .pullback_momentum = _i};

    for (uint64_t step = 0; step < 6; step++) {
        ck_assert_double_eq_tol(pd_lookahead_momentum_factor(&options, step), expected[_i][step],
                                1e-15);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("average");
    TCase *cases = tcase_create("average");
    tcase_add_test(cases, an_ema_that_copies_first_is_torchs_averaged_model);
    tcase_add_test(cases, an_ema_from_the_initial_parameters_is_timms_version_2);
    tcase_add_test(cases, an_ema_with_warmup_is_timms_version_3);
    tcase_add_test(cases, the_warmup_of_an_ema_can_be_stretched_bent_and_bounded);
    tcase_add_test(cases, swa_averages_every_third_step_from_the_eighth_on);
    tcase_add_test(cases, nothing_is_averaged_unless_asked);
    tcase_add_test(cases, the_papers_lookahead_goes_half_way_from_the_initial_weights);
    tcase_add_test(cases, timms_lookahead_first_takes_the_weights_after_step_k);
    tcase_add_test(cases, the_third_lookahead_counts_from_the_first_step);
    tcase_add_loop_test(
        cases, momentum_is_left_alone_reset_or_pulled_back_when_weights_are_synchronised, 0, 3);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
