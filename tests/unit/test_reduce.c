/* Sums over blocks: conversion, weights, order, partial norms and the search for non-finite
 * elements. */
#include "server/core/reduce.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 5003u /* more than two chunks, and no multiple of anything */
#define LANE_COUNT 16u

static float elements[3][COUNT];
static float sum[COUNT];

/* Repeatable numbers of both signs and many magnitudes. */
static float number_at(uint32_t seed)
{
    uint32_t bits = seed * 2654435761u;
    bits ^= bits >> 15;
    bits *= 2246822519u;
    bits ^= bits >> 13;
    return ((float)(bits & 0xffffu) / 65536.0f - 0.5f) * exp2f((float)(bits >> 28) - 8.0f);
}

static void setup(void)
{
    for (uint32_t k = 0; k < 3; k++) {
        for (uint32_t i = 0; i < COUNT; i++) {
            elements[k][i] = number_at(k * COUNT + i);
        }
    }
}

START_TEST(a_block_is_the_weighted_sum_in_the_order_of_its_sources)
{
    static const float weights[] = {0.25f, 0.7f, 0.05f};
    struct pd_source sources[3];
    float expected[COUNT];

    for (uint32_t k = 0; k < 3; k++) {
        sources[k] = (struct pd_source){elements[k], PD_DTYPE_FLOAT32, weights[k]};
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        volatile float partial = weights[0] * elements[0][i];
        partial += (volatile float){weights[1] * elements[1][i]};
        partial += (volatile float){weights[2] * elements[2][i]};
        expected[i] = partial;
    }
    pd_reduce_block(sum, sources, 3, COUNT);
    ck_assert_mem_eq(sum, expected, sizeof expected);
}
END_TEST

/* Sources are added a few at a time; that must not be seen. */
START_TEST(any_number_of_sources_of_any_type_is_summed_one_after_the_other)
{
    static uint16_t halves[9][COUNT];
    static float widened[COUNT];
    static float expected[COUNT];
    struct pd_source sources[9];

    for (uint32_t k = 0; k < (uint32_t)_i; k++) {
        const float *from = elements[k % 3];
        sources[k] = (struct pd_source){from, PD_DTYPE_FLOAT32, 0.1f + 0.07f * (float)k};
        if (k % 2 == 1) {
            pd_convert_from_float32(halves[k], PD_DTYPE_BFLOAT16, from, COUNT);
            sources[k].elements = halves[k];
            sources[k].dtype = PD_DTYPE_BFLOAT16;
        }
        pd_convert_to_float32(widened, sources[k].elements, sources[k].dtype, COUNT);
        for (uint32_t i = 0; i < COUNT; i++) {
            volatile float term = sources[k].weight * widened[i];
            expected[i] = k == 0 ? term : expected[i] + term;
        }
    }
    pd_reduce_block(sum, sources, (uint32_t)_i, COUNT);
    ck_assert_mem_eq(sum, expected, sizeof expected);
}
END_TEST

/* As a step whose gradients come one by one has it, and one that has them all at once. */
START_TEST(a_scaled_sum_is_the_same_in_however_many_calls)
{
    static float at_once[COUNT];
    struct pd_source sources[7];

    for (uint32_t k = 0; k < 7; k++) {
        sources[k] = (struct pd_source){elements[k % 3], PD_DTYPE_FLOAT32, 1.0f + 0.07f * (float)k};
    }
    pd_reduce_block(at_once, sources, 7, COUNT);
    for (uint32_t i = 0; i < COUNT; i++) {
        at_once[i] *= 0.3f;
    }
    pd_reduce_scaled(sum, true, sources, 7, 0.3f, COUNT);
    ck_assert_mem_eq(sum, at_once, sizeof at_once);

    for (uint32_t k = 0; k < (uint32_t)_i; k++) {
        pd_reduce_scaled(sum, k == 0, &sources[k], 1, 1.0f, COUNT);
    }
    pd_reduce_scaled(sum, false, &sources[_i], 7 - (uint32_t)_i, 0.3f, COUNT);
    ck_assert_mem_eq(sum, at_once, sizeof at_once);
}
END_TEST

START_TEST(a_block_without_sources_is_zero)
{
    static const float zeros[COUNT];

    memset(sum, 0x7f, sizeof sum);
    pd_reduce_block(sum, NULL, 0, COUNT);
    ck_assert_mem_eq(sum, zeros, sizeof zeros);
    memset(sum, 0x7f, sizeof sum);
    pd_reduce_scaled(sum, true, NULL, 0, 0.3f, COUNT);
    ck_assert_mem_eq(sum, zeros, sizeof zeros);
}
END_TEST

START_TEST(half_width_sources_count_as_their_float32_values)
{
    static const enum pd_dtype dtypes[] = {PD_DTYPE_BFLOAT16, PD_DTYPE_FLOAT16};
    static uint16_t halves[COUNT];
    static float widened[COUNT];
    static float expected[COUNT];
    struct pd_source narrow = {halves, dtypes[_i], 0.3f};
    struct pd_source wide = {widened, PD_DTYPE_FLOAT32, 0.3f};

    pd_convert_from_float32(halves, dtypes[_i], elements[0], COUNT);
    pd_convert_to_float32(widened, halves, dtypes[_i], COUNT);
    pd_reduce_block(expected, &wide, 1, COUNT);
    pd_reduce_block(sum, &narrow, 1, COUNT);
    ck_assert_mem_eq(sum, expected, sizeof expected);

    pd_reduce_add(expected, &wide, false, COUNT);
    pd_reduce_add(sum, &narrow, false, COUNT);
    ck_assert_mem_eq(sum, expected, sizeof expected);
}
END_TEST

START_TEST(micro_batches_added_one_by_one_give_the_block_sum)
{
    static float expected[COUNT];
    struct pd_source sources[3];

    for (uint32_t k = 0; k < 3; k++) {
        sources[k] = (struct pd_source){elements[k], PD_DTYPE_FLOAT32, 0.5f + (float)k};
    }
    pd_reduce_block(expected, sources, 3, COUNT);
    memset(sum, 0x7f, sizeof sum);
    for (uint32_t k = 0; k < 3; k++) {
        pd_reduce_add(sum, &sources[k], k == 0, COUNT);
    }
    ck_assert_mem_eq(sum, expected, sizeof expected);
}
END_TEST

START_TEST(clamping_keeps_nan_and_what_is_within)
{
    float values[] = {-INFINITY, -0.3f, -0.25f, -0.0f, 0.1f, 0.25f, 9.0f, INFINITY, NAN};
    const float expected[] = {-0.25f, -0.25f, -0.25f, -0.0f, 0.1f, 0.25f, 0.25f, 0.25f};

    pd_reduce_clamp(values, 0.25f, 9);
    ck_assert_mem_eq(values, expected, sizeof expected);
    ck_assert(isnan(values[8]));
}
END_TEST

START_TEST(partial_norms_are_summed_in_sixteen_interleaved_lanes)
{
    volatile double lanes[LANE_COUNT] = {0};
    double powers[2];

    for (uint32_t i = 0; i < COUNT; i++) {
        lanes[i % LANE_COUNT] += (double)elements[0][i] * (double)elements[0][i];
    }
    double expected = lanes[0];
    for (uint32_t lane = 1; lane < LANE_COUNT; lane++) {
        expected += lanes[lane];
    }
    pd_reduce_norms(elements[0], COUNT, 2, powers);
    ck_assert_mem_eq(&powers[0], &expected, sizeof expected);
    ck_assert_mem_eq(&powers[1], &expected, sizeof expected);
}
END_TEST

START_TEST(the_first_power_follows_the_norm_type_and_the_second_is_squares)
{
    const float values[] = {3, -4, 0, 2};
    double powers[2];

    pd_reduce_norms(values, 4, 1, powers);
    ck_assert_double_eq(powers[0], 9);
    ck_assert_double_eq(powers[1], 29);
    pd_reduce_norms(values, 4, 3, powers);
    ck_assert_double_eq_tol(powers[0], 99, 1e-12);
    ck_assert_double_eq(powers[1], 29);
    pd_reduce_norms(values, 4, INFINITY, powers);
    ck_assert_double_eq(powers[0], 4);
    ck_assert_double_eq(powers[1], 29);
    pd_reduce_norms(values, 4, 0.5, powers);
    ck_assert_double_eq_tol(powers[0], sqrt(3) + 2 + sqrt(2), 1e-12);
}
END_TEST

START_TEST(one_nonfinite_element_makes_both_partials_nan)
{
    static const double norm_types[] = {1, 2, 3.5, INFINITY};
    static const float faults[] = {NAN, INFINITY, -INFINITY};
    static const uint32_t places[] = {0, 17, COUNT - 1};

    for (size_t t = 0; t < 4; t++) {
        for (size_t k = 0; k < 3; k++) {
            double powers[2] = {0, 0};
            float kept = elements[0][places[k]];
            elements[0][places[k]] = faults[k];
            pd_reduce_norms(elements[0], COUNT, norm_types[t], powers);
            elements[0][places[k]] = kept;
            ck_assert(isnan(powers[0]));
            ck_assert(isnan(powers[1]));
        }
    }
}
END_TEST

START_TEST(the_largest_float_is_finite_in_the_sum_of_squares)
{
    const float values[] = {3.4028235e38f, -3.4028235e38f, 3.4028235e38f};
    double powers[2];

    pd_reduce_norms(values, 3, INFINITY, powers);
    ck_assert_double_eq(powers[0], (double)3.4028235e38f);
    ck_assert(isfinite(powers[1]));
}
END_TEST

START_TEST(the_first_nonfinite_element_is_found_in_every_type)
{
    static const enum pd_dtype dtypes[] = {PD_DTYPE_FLOAT32, PD_DTYPE_BFLOAT16, PD_DTYPE_FLOAT16};
    static const uint32_t places[] = {0, 1, 1023, 1024, 1025, 3000, COUNT - 1};
    static float wide[COUNT];
    static unsigned char wire[COUNT * sizeof(float)];

    for (size_t k = 0; k < sizeof places / sizeof places[0]; k++) {
        memcpy(wide, elements[0], sizeof wide);
        pd_convert_from_float32(wire, dtypes[_i], wide, COUNT);
        ck_assert_uint_eq(pd_reduce_find_nonfinite(wire, dtypes[_i], COUNT), COUNT);
        wide[places[k]] = k % 2 == 0 ? -INFINITY : NAN;
        wide[COUNT - 1] = NAN;
        pd_convert_from_float32(wire, dtypes[_i], wide, COUNT);
        ck_assert_uint_eq(pd_reduce_find_nonfinite(wire, dtypes[_i], COUNT), places[k]);
    }
    ck_assert_uint_eq(pd_reduce_find_nonfinite(wire, dtypes[_i], 0), 0);
}
END_TEST

START_TEST(subtracting_from_gives_how_far_the_average_has_moved_away)
{
    float moved[3] = {1.0f, -2.0f, 0.5f};
    const float from[3] = {1.5f, -2.0f, 0.0f};

    pd_reduce_subtract_from(moved, from, 3);
    ck_assert_float_eq(moved[0], 0.5f);
    ck_assert_float_eq(moved[1], 0.0f);
    ck_assert_float_eq(moved[2], -0.5f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("reduce");
    TCase *tests = tcase_create("reduce");

    tcase_add_checked_fixture(tests, setup, NULL);
    tcase_add_test(tests, a_block_is_the_weighted_sum_in_the_order_of_its_sources);
    tcase_add_loop_test(tests, any_number_of_sources_of_any_type_is_summed_one_after_the_other, 1,
                        10);
    tcase_add_loop_test(tests, a_scaled_sum_is_the_same_in_however_many_calls, 1, 8);
    tcase_add_test(tests, a_block_without_sources_is_zero);
    tcase_add_loop_test(tests, half_width_sources_count_as_their_float32_values, 0, 2);
    tcase_add_test(tests, micro_batches_added_one_by_one_give_the_block_sum);
    tcase_add_test(tests, clamping_keeps_nan_and_what_is_within);
    tcase_add_test(tests, partial_norms_are_summed_in_sixteen_interleaved_lanes);
    tcase_add_test(tests, the_first_power_follows_the_norm_type_and_the_second_is_squares);
    tcase_add_test(tests, one_nonfinite_element_makes_both_partials_nan);
    tcase_add_test(tests, the_largest_float_is_finite_in_the_sum_of_squares);
    tcase_add_loop_test(tests, the_first_nonfinite_element_is_found_in_every_type, 0, 3);
    tcase_add_test(tests, subtracting_from_gives_how_far_the_average_has_moved_away);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
