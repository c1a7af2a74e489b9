/* Every rule against its reference trajectories, in blocks of several sizes, and the table. */
#include "common/heap.h"
#include "server/core/optimizer.h"
#include "tests/support/trajectory.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static const char *const cases[] = {
    "sgd_plain",
    "sgd_wd",
    "sgd_momentum",
    "sgd_momentum_dampening_wd",
    "sgd_momentum_lrsaw",
    "sgd_momentum_missing",
    "sgd_momentum_zero",
    "sgd_nesterov",
    "sgd_nesterov_wd_lrsched",
    "adam",
    "adam_amsgrad",
    "adam_extreme",
    "adam_l2",
    "adam_large_eps",
    "adam_sparse",
    "adam_zero",
    "adamw",
    "adamw_amsgrad",
    "adamw_groups_lrsched",
    "adamw_large",
    "adamw_missing",
    "adamw_zero",
    "lamb",
    "lamb_decoupled",
    "lamb_gradavg_off",
    "lamb_groups",
    "lamb_large",
    "lamb_missing",
    "lamb_nobias",
    "lamb_noclip",
    "lamb_nowd_noadapt",
    "lamb_nvlamb_nowd",
    "lamb_trust_clip",
    "lamb_zero",
    "lamb_apex",
    "lamb_apex_groups",
    "lamb_apex_l2mode",
    "lamb_apex_nvlamb",
    "lamb_cyber",
    "lamb_cyber_bignorm",
    "lars",
    "lars_always_adapt_zero",
    "lars_groups",
    "lars_larc_clip",
    "lars_nesterov",
    "larc_apex_clip",
    "larc_apex_scale_zero",
    "lion",
    "lion_b95",
    "lion_cautious",
    "lion_lucid",
    "lion_lucid_decoupled",
    "lion_zero",
    "sophia_g",
    "adagrad",
    "adagrad_lrdecay_init_wd",
    "adagrad_zero_sparse",
    "rmsprop",
    "rmsprop_centered",
    "rmsprop_centered_momentum_wd",
    "rmsprop_momentum",
    "rmsprop_zero",
    "rmsprop_tf",
    "rmsprop_tf_momentum",
    "adadelta",
    "adamax",
    "adamw_hf",
    "adamw_hf_nobias",
    "nadam",
    "nadam_wd",
    "nadamw_timm",
    "radam",
    "radam_wd_b2",
    "adan",
    "adan_noprox",
    "sgdw",
    "adafactor_hf_relative",
    "adafactor_hf_warmup_init",
    "adafactor_hf_zero",
    "adafactor_hf_external",
    "adafactor_hf_external_scaled",
    "adafactor_hf_beta1",
    "adafactor_hf_conv",
    "adafactor_fairseq_relative",
    "adafactor_timm_relative",
    "adafactor_timm_external",
    "adafactor_timm_conv",
    "adafactor_bv",
    "adafactor_bv_nomom_conv",
    "adafactor_torchmain",
};
#define CASE_COUNT ((int)(sizeof cases / sizeof cases[0]))

START_TEST(a_rule_gives_the_trajectory_of_its_reference)
{
    static const uint32_t block_sizes[] = {1, 7, 24, 1024};
    struct vectors_case reference;

    vectors_case_init(&reference, PD_VECTORS, cases[_i]);
    ck_assert_uint_gt(reference.step_count, 0);
    for (size_t i = 0; i < sizeof block_sizes / sizeof block_sizes[0]; i++) {
        struct trajectory_options options = {.block_size = block_sizes[i], .gradient_scale = 1};
        double worst_error = trajectory_worst_error(&reference, &options);
        if (getenv("VERBOSE") != NULL) {
            printf("%-30s blocks of %4u: worst error %.3f of the tolerance\n", cases[_i],
                   block_sizes[i], worst_error);
        }
        ck_assert_msg(worst_error <= 1, "%s in blocks of %u: %g times the tolerance", cases[_i],
                      block_sizes[i], worst_error);
    }
    vectors_case_finish(&reference);
}
END_TEST

START_TEST(the_clip_scale_is_applied_to_the_gradient_on_the_fly)
{
    static const char *const scaled_cases[] = {"sgd_nesterov", "adam_l2", "adamw_amsgrad", "lamb"};
    struct trajectory_options plain = {.block_size = 24, .gradient_scale = 1};
    struct trajectory_options scaled = {.block_size = 24, .gradient_scale = 0.125};
    struct vectors_case reference;
    size_t count = 0;

    vectors_case_init(&reference, PD_VECTORS, scaled_cases[_i]);
    float *expected = trajectory_last_parameters(&reference, &plain, &count);
    float *actual = trajectory_last_parameters(&reference, &scaled, &count);
    ck_assert_mem_eq(actual, expected, count * sizeof(float));
    pd_heap_free(expected);
    pd_heap_free(actual);
    vectors_case_finish(&reference);
}
END_TEST

/* Element by element, the gradient is read for the last time before the next parameter is written.
 */
START_TEST(the_next_parameters_may_go_where_the_gradient_is)
{
    struct vectors_case reference;
    size_t count = 0;

    vectors_case_init(&reference, PD_VECTORS, cases[_i]);
    for (int cautious = 0; cautious < 2; cautious++) {
        struct trajectory_options options = {
            .block_size = 24, .gradient_scale = 1, .cautious = cautious == 1};
        float *expected = trajectory_last_parameters(&reference, &options, &count);
        options.in_place = true;
        float *actual = trajectory_last_parameters(&reference, &options, &count);
        ck_assert_mem_eq(actual, expected, count * sizeof(float));
        pd_heap_free(expected);
        pd_heap_free(actual);
    }
    vectors_case_finish(&reference);
}
END_TEST

START_TEST(the_table_is_found_by_name_and_ends)
{
    size_t count = 0;
    for (; pd_optimizer_at(count) != NULL; count++) {
        const struct pd_optimizer *optimizer = pd_optimizer_at(count);
        struct pd_hyper hyper = {0};
        struct pd_error error = {0};

        ck_assert_ptr_eq(pd_optimizer_find(optimizer->name), optimizer);
        ck_assert_int_eq(
            pd_option_defaults(optimizer->options, optimizer->option_count, &hyper, &error), PD_OK);
        ck_assert_uint_ge(pd_optimizer_pass_count(optimizer, &hyper), 1);
        for (uint32_t k = 0; k < pd_optimizer_pass_count(optimizer, &hyper); k++) {
            ck_assert_ptr_nonnull(optimizer->passes[k].run);
        }
    }
    ck_assert_uint_ge(count, 4);
    ck_assert_ptr_null(pd_optimizer_find("adamx"));
    ck_assert_ptr_null(pd_optimizer_find(""));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("optimizer");
    TCase *tests = tcase_create("optimizer");

    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, a_rule_gives_the_trajectory_of_its_reference, 0, CASE_COUNT);
    tcase_add_loop_test(tests, the_clip_scale_is_applied_to_the_gradient_on_the_fly, 0, 4);
    tcase_add_loop_test(tests, the_next_parameters_may_go_where_the_gradient_is, 0, CASE_COUNT);
    tcase_add_test(tests, the_table_is_found_by_name_and_ends);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
