/* Norms and scales of tensors, groups and the whole, as PyTorch would take them. */
#include "common/heap.h"
#include "server/core/gradient_norms.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Four tensors of 3, 5, 2 and 4 elements, in blocks of 2. */
#define TENSOR_COUNT 4u
#define ELEMENT_COUNT 14u
static const char *const names[] = {"a", "b", "c", "d"};
static const uint64_t counts[] = {3, 5, 2, 4};
static const float gradient[ELEMENT_COUNT] = {3, -4, 1, 2, 2, -1, 0.5f, 7, -8, 6, 1, -1, 2, 0.25f};

static struct pd_config *config;
static struct pd_tensor_list model;
static struct pd_shard_plan *plan;
static uint32_t tensor_groups[TENSOR_COUNT];
static struct pd_gradient_norms norms;
static struct pd_tensor_set absent;

static void begin(const char *text)
{
    struct pd_error error = {0};

    memset(&absent, 0, sizeof absent);
    ck_assert_msg(pd_config_create(&config, "test", text, NULL, 0, &error) == PD_OK, "%s",
                  error.message);
    ck_assert_int_eq(pd_tensor_list_init(&model, TENSOR_COUNT, &error), PD_OK);
    for (uint32_t i = 0; i < TENSOR_COUNT; i++) {
        ck_assert_int_eq(pd_tensor_list_append(&model, names[i], 1, 1, &counts[i], &error), PD_OK);
        tensor_groups[i] = pd_config_group_of(config, names[i], 1);
    }
    ck_assert_int_eq(pd_shard_plan_create(&plan, &model, 2, 1, 1, &error), PD_OK);
    ck_assert_int_eq(
        pd_gradient_norms_init(&norms, config, plan, TENSOR_COUNT, tensor_groups, &error), PD_OK);
}

static void end(void)
{
    pd_gradient_norms_finish(&norms);
    pd_shard_plan_destroy(plan);
    pd_tensor_list_finish(&model);
    pd_config_destroy(config);
}

/* Take the norms of `elements`, block by block. */
static void take(const float *elements)
{
    double parts[ELEMENT_COUNT][PD_NORM_PART_COUNT];

    for (uint64_t i = 0; i < plan->block_count; i++) {
        const struct pd_block *block = &plan->blocks[i];
        memset(parts[i], 0, sizeof parts[i]);
        if (!pd_gradient_norms_rests(&norms, block->tensor_index, &absent)) {
            pd_gradient_norms_measure(&norms, block->tensor_index, elements + block->element_begin,
                                      block->element_count, parts[i]);
        }
    }
    pd_gradient_norms_take(&norms, parts[0], &absent);
}

/* The p-norm of the tensors whose bit is set, each scaled by its number. */
static double norm_of(uint32_t tensors, const double *scales, double p)
{
    double sum = 0;

    for (uint32_t i = 0; i < TENSOR_COUNT; i++) {
        const struct pd_tensor *tensor = &model.tensors[i];
        for (uint64_t k = 0; (tensors >> i & 1) != 0 && k < tensor->element_count; k++) {
            double element = fabs((double)gradient[tensor->element_begin + k]);
            element *= scales != NULL ? scales[i] : 1;
            sum = isinf(p) ? fmax(sum, element) : sum + pow(element, p);
        }
    }
    return isinf(p) ? sum : pow(sum, 1 / p);
}

#define ck_assert_near(actual, expected)                                                           \
    ck_assert_double_eq_tol((actual), (expected), 1e-14 * fabs(expected))

START_TEST(every_tensor_has_its_norm_and_the_whole_is_of_all)
{
    static const double types[] = {1, 2, 2.5, INFINITY};
    static const char *const words[] = {"1", "2", "2.5", "inf"};
    char text[64];

    snprintf(text, sizeof text, "clip: {norm_type: %s}", words[_i]);
    begin(text);
    take(gradient);
    for (uint32_t i = 0; i < TENSOR_COUNT; i++) {
        ck_assert_near(norms.tensors[i], norm_of(1u << i, NULL, types[_i]));
    }
    ck_assert_near(norms.whole, norm_of(15, NULL, types[_i]));
    ck_assert_near(norms.clipped, norms.whole);
    ck_assert_near(norms.clipped_norm2, norm_of(15, NULL, 2));
    ck_assert_double_eq(norms.scales[0], 1);
    end();
}
END_TEST

/* Group 1 has b, with a norm of another type; group 2 has c, whose norm is left alone; a and d
 * share the clip of the whole. */
START_TEST(a_group_with_a_norm_is_clipped_alone_and_the_rest_together)
{
    begin("clip: {norm: 2}\n"
          "groups: [{match: b, clip: {norm: 0.5, norm_type: inf}}, {match: c, clip: {norm: null}},"
          " {match: d, weight_decay: 0}]");
    take(gradient);
    const double scales[] = {2 / (norm_of(9, NULL, 2) + 1e-6),
                             0.5 / (norm_of(2, NULL, INFINITY) + 1e-6), 1,
                             2 / (norm_of(9, NULL, 2) + 1e-6)};
    for (uint32_t i = 0; i < TENSOR_COUNT; i++) {
        ck_assert_near(norms.scales[i], scales[i]);
    }
    ck_assert_near(norms.groups[0], norm_of(1, NULL, 2));
    ck_assert_near(norms.groups[1], norm_of(2, NULL, INFINITY));
    ck_assert_near(norms.groups[3], norm_of(8, NULL, 2));
    ck_assert_near(norms.whole, norm_of(15, NULL, 2));
    ck_assert_near(norms.clipped, norm_of(15, scales, 2));
    ck_assert_near(norms.clipped_norm2, norm_of(15, scales, 2));
    end();
}
END_TEST

START_TEST(a_group_with_a_value_stays_in_the_clip_of_the_whole)
{
    begin("clip: {norm: 2, norm_type: 1}\ngroups: [{match: b, clip: {value: 0.5}}]");
    take(gradient);
    ck_assert_near(norms.scales[0], 2 / (norm_of(15, NULL, 1) + 1e-6));
    ck_assert_double_eq(norms.scales[1], norms.scales[0]);
    ck_assert_near(norms.clipped, norms.scales[0] * norms.whole);
    end();
}
END_TEST

START_TEST(frozen_and_absent_tensors_have_no_part)
{
    begin("clip: {norm: 2}\ngroups: [{match: b, frozen: true}]");
    pd_tensor_set_add(&absent, 2);
    take(gradient);
    ck_assert(isnan(norms.tensors[1]));
    ck_assert(isnan(norms.tensors[2]));
    ck_assert(isnan(norms.groups[1]));
    ck_assert_near(norms.whole, norm_of(9, NULL, 2));
    ck_assert_near(norms.scales[0], 2 / (norm_of(9, NULL, 2) + 1e-6));
    end();
}
END_TEST

START_TEST(one_nonfinite_element_leaves_no_norms)
{
    float broken[ELEMENT_COUNT];

    begin("groups: [{match: b, clip: {norm: 1}}]");
    take(gradient);
    memcpy(broken, gradient, sizeof broken);
    broken[5] = INFINITY;
    take(broken);
    ck_assert(isnan(norms.whole));
    ck_assert(isnan(norms.tensors[0]));
    ck_assert(isnan(norms.groups[1]));
    ck_assert_double_eq(norms.scales[1], 1);
    end();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gradient_norms");
    TCase *tests = tcase_create("gradient_norms");

    tcase_add_loop_test(tests, every_tensor_has_its_norm_and_the_whole_is_of_all, 0, 4);
    tcase_add_test(tests, a_group_with_a_norm_is_clipped_alone_and_the_rest_together);
    tcase_add_test(tests, a_group_with_a_value_stays_in_the_clip_of_the_whole);
    tcase_add_test(tests, frozen_and_absent_tensors_have_no_part);
    tcase_add_test(tests, one_nonfinite_element_leaves_no_norms);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
