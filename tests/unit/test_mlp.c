/* The network: its gradient against differences, its repeatability, and what it learns. */
#include "client/worker/mlp.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HIDDEN 16u
#define TRAINED_HIDDEN 128u
#define BATCH 64u

static struct digits train;
static struct digits test;
static struct mlp mlp;

static void setup(void)
{
    char message[256];
    ck_assert_int_eq(digits_load(&train, &test, PD_DIGITS_FILE, message, sizeof message), 1);
}

static void teardown(void)
{
    mlp_finish(&mlp);
    digits_finish(&train);
    digits_finish(&test);
}

static double loss_of_five(void)
{
    static const uint32_t indices[] = {3, 14, 15, 92, 65};
    return mlp_gradient(&mlp, &train, indices, 5);
}

/* Central differences of the loss; each of some parameters of each tensor. */
START_TEST(the_gradient_is_the_slope_of_the_loss)
{
    ck_assert_int_eq(mlp_init(&mlp, HIDDEN, 5), 1);
    float *gradient = malloc(mlp.counts[_i] * sizeof *gradient);
    loss_of_five();
    memcpy(gradient, mlp.gradients[_i], mlp.counts[_i] * sizeof *gradient);
    size_t stride = mlp.counts[_i] / 10 + 1;
    double largest = 0.0;
    for (size_t k = stride / 2; k < mlp.counts[_i]; k += stride) {
        float kept = mlp.values[_i][k];
        const float h = 0x1p-7f;
        mlp.values[_i][k] = kept + h;
        double above = loss_of_five();
        mlp.values[_i][k] = kept - h;
        double below = loss_of_five();
        mlp.values[_i][k] = kept;
        double slope = (above - below) / (2.0 * (double)h);
        largest = fmax(largest, fabs(slope));
        ck_assert_double_le(fabs(slope - (double)gradient[k]), 1e-3 + 2e-2 * fabs(slope));
    }
    ck_assert_double_gt(largest, 1e-3);
    free(gradient);
}
END_TEST

START_TEST(a_seed_determines_the_initial_values_and_the_gradient)
{
    struct mlp other;
    ck_assert_int_eq(mlp_init(&mlp, HIDDEN, 5), 1);
    ck_assert_int_eq(mlp_init(&other, HIDDEN, 5 + (unsigned)_i), 1);
    double loss = loss_of_five();
    struct mlp kept = mlp;
    mlp = other;
    double other_loss = loss_of_five();
    mlp = kept;
    int same = memcmp(mlp.gradients[MLP_HIDDEN_WEIGHT], other.gradients[MLP_HIDDEN_WEIGHT],
                      mlp.counts[MLP_HIDDEN_WEIGHT] * sizeof(float)) == 0;
    ck_assert_int_eq(same, _i == 0);
    ck_assert_int_eq(memcmp(&loss, &other_loss, sizeof loss) == 0, _i == 0);
    mlp_finish(&other);
}
END_TEST

START_TEST(an_untrained_network_loses_about_the_logarithm_of_ten)
{
    uint32_t indices[200];
    for (uint32_t i = 0; i < 200; i++) {
        indices[i] = i;
    }
    ck_assert_int_eq(mlp_init(&mlp, 64, 1), 1);
    double loss = mlp_gradient(&mlp, &train, indices, 200);
    ck_assert_double_gt(loss, 2.0);
    ck_assert_double_lt(loss, 3.2);
}
END_TEST

/* AdamW of step `t` (from 1), in the place of the daemon. */
static void adamw(float **m, float **v, double lr, uint32_t t)
{
    for (int k = 0; k < MLP_TENSOR_COUNT; k++) {
        for (size_t i = 0; i < mlp.counts[k]; i++) {
            float g = mlp.gradients[k][i];
            m[k][i] = 0.9f * m[k][i] + 0.1f * g;
            v[k][i] = 0.999f * v[k][i] + 0.001f * g * g;
            double step = lr * (m[k][i] / (1.0 - pow(0.9, t))) /
                          (sqrt(v[k][i] / (1.0 - pow(0.999, t))) + 1e-8);
            mlp.values[k][i] -= (float)(step + lr * 0.01 * (double)mlp.values[k][i]);
        }
    }
}

START_TEST(five_hundred_steps_teach_it_to_read)
{
    float *m[MLP_TENSOR_COUNT];
    float *v[MLP_TENSOR_COUNT];
    uint64_t state = 1;
    ck_assert_int_eq(mlp_init(&mlp, TRAINED_HIDDEN, 1), 1);
    for (int k = 0; k < MLP_TENSOR_COUNT; k++) {
        m[k] = calloc(mlp.counts[k], sizeof(float));
        v[k] = calloc(mlp.counts[k], sizeof(float));
    }
    for (uint32_t t = 1; t <= 500; t++) {
        uint32_t indices[BATCH];
        for (uint32_t i = 0; i < BATCH; i++) {
            indices[i] = (uint32_t)(mlp_random(&state) % train.count);
        }
        mlp_gradient(&mlp, &train, indices, BATCH);
        adamw(m, v, 3e-3 * (1.0 - t / 501.0), t);
    }
    ck_assert_uint_ge(mlp_count_right(&mlp, &test), 348);
    ck_assert_uint_ge(mlp_count_right(&mlp, &train), 1420);
    for (int k = 0; k < MLP_TENSOR_COUNT; k++) {
        free(m[k]);
        free(v[k]);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mlp");
    TCase *tests = tcase_create("mlp");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, the_gradient_is_the_slope_of_the_loss, 0, MLP_TENSOR_COUNT);
    tcase_add_loop_test(tests, a_seed_determines_the_initial_values_and_the_gradient, 0, 2);
    tcase_add_test(tests, an_untrained_network_loses_about_the_logarithm_of_ten);
    tcase_add_test(tests, five_hundred_steps_teach_it_to_read);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
