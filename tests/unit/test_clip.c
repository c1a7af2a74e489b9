/* Clipping against the reference's calls: total norm, scale, and what the gradients become. */
#include "common/heap.h"
#include "server/core/clip.h"
#include "server/core/reduce.h"
#include "tests/support/vectors.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>

#define BLOCK_SIZE 16u
#define TOLERANCE (16 * 0x1p-23)

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* The total norm of all tensors of one call, from partials of small blocks. */
static double total_norm(json_t *gradients, double norm_type)
{
    double power = 0;
    const char *name = NULL;
    json_t *list = NULL;

    json_object_foreach(gradients, name, list)
    {
        uint32_t count = 0;
        float *gradient = vectors_floats(list, &count);
        for (uint32_t begin = 0; begin < count; begin += BLOCK_SIZE) {
            double parts[2];
            pd_reduce_norms(gradient + begin, smaller(BLOCK_SIZE, count - begin), norm_type, parts);
            power = pd_clip_add(power, parts[0], norm_type);
        }
        pd_heap_free(gradient);
    }
    return pd_clip_root(power, norm_type);
}

/* Compare what `scale` makes of each gradient with the reference. */
static void check_clipped(const json_t *call, double scale)
{
    const json_t *clipped = json_object_get(call, "clipped");
    const char *name = NULL;
    json_t *list = NULL;

    json_object_foreach(json_object_get(call, "grads"), name, list)
    {
        uint32_t count = 0;
        float *gradient = vectors_floats(list, &count);
        float *expected = vectors_floats(json_object_get(clipped, name), &count);
        for (uint32_t i = 0; i < count; i++) {
            double error = fabs(gradient[i] * (float)scale - (double)expected[i]);
            ck_assert_double_le(error, TOLERANCE * fabs((double)expected[i]));
        }
        pd_heap_free(gradient);
        pd_heap_free(expected);
    }
}

START_TEST(the_norm_and_the_clipped_gradients_are_the_references)
{
    static const char *const cases[] = {"clip_norm_l1", "clip_norm_l2", "clip_norm_inf"};
    json_t *document = vectors_load(PD_VECTORS, cases[_i]);
    const json_t *hyper = json_object_get(document, "hyperparameters");
    double norm_type = vectors_number(json_object_get(hyper, "norm_type"));
    double max_norm = vectors_number(json_object_get(hyper, "max_norm"));
    size_t index = 0;
    json_t *call = NULL;

    ck_assert_uint_gt(json_array_size(json_object_get(document, "calls")), 0);
    json_array_foreach(json_object_get(document, "calls"), index, call)
    {
        double expected = vectors_number(json_object_get(call, "total_norm"));
        double norm = total_norm(json_object_get(call, "grads"), norm_type);
        ck_assert_double_le(fabs(norm - expected), TOLERANCE * expected);
        check_clipped(call, pd_clip_scale(norm, max_norm));
    }
    json_decref(document);
}
END_TEST

/* The reference lets infinite norms zero the gradients; here the step is skipped, which needs NaN.
 */
START_TEST(a_nonfinite_gradient_has_norm_nan)
{
    json_t *document = vectors_load(PD_VECTORS, "clip_norm_l2_nonfinite");
    size_t index = 0;
    json_t *call = NULL;

    json_array_foreach(json_object_get(document, "calls"), index, call)
    {
        double expected = vectors_number(json_object_get(call, "total_norm"));
        double norm = total_norm(json_object_get(call, "grads"), 2);
        ck_assert_int_eq(isnan(norm), !isfinite(expected));
    }
    json_decref(document);
}
END_TEST

START_TEST(clipping_by_value_is_exact)
{
    json_t *document = vectors_load(PD_VECTORS, "clip_value");
    const json_t *hyper = json_object_get(document, "hyperparameters");
    float value = (float)vectors_number(json_object_get(hyper, "clip_value"));
    size_t index = 0;
    json_t *call = NULL;

    json_array_foreach(json_object_get(document, "calls"), index, call)
    {
        const char *name = NULL;
        json_t *list = NULL;
        json_object_foreach(json_object_get(call, "grads"), name, list)
        {
            uint32_t count = 0;
            float *gradient = vectors_floats(list, &count);
            const json_t *clipped = json_object_get(json_object_get(call, "clipped"), name);
            float *expected = vectors_floats(clipped, &count);
            pd_reduce_clamp(gradient, value, count);
            for (uint32_t i = 0; i < count; i++) {
                ck_assert(gradient[i] == expected[i] || (isnan(gradient[i]) && isnan(expected[i])));
            }
            pd_heap_free(gradient);
            pd_heap_free(expected);
        }
    }
    json_decref(document);
}
END_TEST

START_TEST(parts_of_blocks_combine_to_the_norm_of_any_type)
{
    static const double norm_types[] = {1, 2, 3, INFINITY};
    static const double expected[] = {27, 27, 27, 19};
    double norm_type = norm_types[_i];
    double power = pd_clip_add(pd_clip_add(0, 8, norm_type), 19, norm_type);
    double norm = pd_clip_root(power, norm_type);

    ck_assert_double_eq(power, expected[_i]);
    ck_assert_double_eq(norm, norm_type == 3 || norm_type == 2 ? pow(27, 1 / norm_type) : power);
    ck_assert_double_eq_tol(pd_clip_power(norm, norm_type), power, 1e-14 * power);
}
END_TEST

START_TEST(one_nan_part_makes_the_norm_nan)
{
    static const double norm_types[] = {1, 2, 3, INFINITY};
    double norm_type = norm_types[_i];
    double power =
        pd_clip_add(pd_clip_add(pd_clip_add(0, 8, norm_type), NAN, norm_type), 19, norm_type);

    ck_assert(isnan(pd_clip_root(power, norm_type)));
}
END_TEST

START_TEST(the_scale_never_enlarges_and_is_one_without_a_limit)
{
    ck_assert_double_eq(pd_clip_scale(0.5, 1), 1);
    ck_assert_double_eq(pd_clip_scale(0, 1), 1);
    ck_assert_double_eq(pd_clip_scale(4, 1), 1 / (4 + 1e-6));
    ck_assert_double_eq(pd_clip_scale(1e30, NAN), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("clip");
    TCase *tests = tcase_create("clip");

    tcase_add_loop_test(tests, the_norm_and_the_clipped_gradients_are_the_references, 0, 3);
    tcase_add_test(tests, a_nonfinite_gradient_has_norm_nan);
    tcase_add_test(tests, clipping_by_value_is_exact);
    tcase_add_loop_test(tests, parts_of_blocks_combine_to_the_norm_of_any_type, 0, 4);
    tcase_add_loop_test(tests, one_nan_part_makes_the_norm_nan, 0, 4);
    tcase_add_test(tests, the_scale_never_enlarges_and_is_one_without_a_limit);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
