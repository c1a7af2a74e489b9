/* What the reference cases of the rules leave out: other forms of a rule, caution, first steps of
 * late tensors, and the second pass that some hyperparameters do not need. */
#include "server/core/optimizer.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 37u
#define BLOCK_SIZE 10u
#define TOLERANCE 1e-6

/* One tensor under one rule. */
struct subject {
    const struct pd_optimizer *optimizer;
    struct pd_hyper hyper;
    uint64_t step_count;
    float parameters[COUNT];
    float state[PD_OPTIMIZER_STATE_COUNT_MAX][COUNT];
};

static void subject_init(struct subject *subject, const char *name)
{
    struct pd_error error = {0};

    memset(subject, 0, sizeof *subject);
    subject->optimizer = pd_optimizer_find(name);
    ck_assert_ptr_nonnull(subject->optimizer);
    ck_assert_int_eq(pd_option_defaults(subject->optimizer->options,
                                        subject->optimizer->option_count, &subject->hyper, &error),
                     PD_OK);
}

static struct pd_optimizer_block block_at(struct subject *subject, float *gradient, float *next,
                                          uint32_t begin)
{
    struct pd_optimizer_block block = {
        .begin = begin,
        .count = COUNT - begin < BLOCK_SIZE ? COUNT - begin : BLOCK_SIZE,
        .gradient = gradient + begin,
        .parameters = subject->parameters + begin,
        .parameters_next = next + begin,
    };
    for (uint32_t k = 0; k < subject->optimizer->state_count(&subject->hyper, NULL); k++) {
        block.state[k] = subject->state[k] + begin;
        block.state_next[k] = block.state[k];
    }
    return block;
}

/* One step of all blocks, the tensor's next and the group's `group_number`. */
static void subject_step_of_group(struct subject *subject, const float *gradient, double lr,
                                  uint64_t group_number)
{
    const struct pd_optimizer_step step = {
        .hyper = &subject->hyper,
        .lr = lr,
        .initial_lr = subject->hyper.lr,
        .number = ++subject->step_count,
        .group_number = group_number,
        .gradient_scale = 1,
        .gradient_norm = 1,
    };
    double sums[2] = {0};
    float scratch[COUNT];
    float next[COUNT];

    memcpy(scratch, gradient, sizeof scratch);
    for (uint32_t pass = 0; pass < pd_optimizer_pass_count(subject->optimizer, &subject->hyper);
         pass++) {
        double totals[2] = {0};
        for (uint32_t begin = 0; begin < COUNT; begin += BLOCK_SIZE) {
            double partial[2] = {0};
            struct pd_optimizer_block block = block_at(subject, scratch, next, begin);
            block.sums = sums;
            block.partial = partial;
            subject->optimizer->passes[pass].run(&step, &block);
            totals[0] += partial[0];
            totals[1] += partial[1];
        }
        memcpy(sums, totals, sizeof sums);
    }
    memcpy(subject->parameters, next, sizeof next);
}

static void subject_step(struct subject *subject, const float *gradient, double lr)
{
    subject_step_of_group(subject, gradient, lr, subject->step_count + 1);
}

/* A step whose gradient is the same everywhere. */
static void subject_step_with(struct subject *subject, float gradient, double lr)
{
    float gradients[COUNT];

    for (uint32_t i = 0; i < COUNT; i++) {
        gradients[i] = gradient;
    }
    subject_step(subject, gradients, lr);
}

START_TEST(momentum_of_two_gradients_steps_by_0_2_then_0_36)
{
    struct subject subject;

    subject_init(&subject, "sgd");
    subject.hyper.momentum = 0.9;
    subject_step_with(&subject, 2.0f, 0.1);
    ck_assert_float_eq_tol(subject.parameters[0], -0.2f, 1e-7);
    subject_step_with(&subject, 1.8f, 0.1);
    ck_assert_float_eq_tol(subject.parameters[0], -0.2f - 0.36f, 1e-7);
}
END_TEST

START_TEST(rmsprop_of_two_gradients_steps_by_0_316_then_0_248)
{
    struct subject subject;

    subject_init(&subject, "rmsprop");
    subject.hyper.alpha = 0.9;
    subject.hyper.eps_inside_root = _i == 1;
    subject_step_with(&subject, 10.0f, 0.1);
    double first = (double)subject.parameters[0];
    ck_assert_double_eq_tol(first, -0.316, 5e-4);
    subject_step_with(&subject, 12.0f, 0.1);
    ck_assert_double_eq_tol((double)subject.parameters[0] - first, -0.248, 5e-4);
}
END_TEST

START_TEST(the_learning_rate_in_the_buffer_outlives_its_step)
{
    static const char *const names[] = {"sgd", "rmsprop"};
    struct subject subject;

    subject_init(&subject, names[_i]);
    subject.hyper.momentum = 0.5;
    subject.hyper.lr_in_momentum = true;
    subject.hyper.alpha = 0; /* rmsprop: d = g / |g| */
    subject_step_with(&subject, 1.0f, 0.1);
    ck_assert_float_eq_tol(subject.parameters[0], -0.1f, TOLERANCE);
    subject_step_with(&subject, 1.0f, 0.01);
    ck_assert_float_eq_tol(subject.parameters[0], -0.1f - (0.05f + 0.01f), TOLERANCE);
}
END_TEST

START_TEST(eps_counts_under_the_root_where_asked)
{
    static const char *const names[] = {"adagrad", "rmsprop"};
    struct subject subject;

    subject_init(&subject, names[_i]);
    subject.hyper.eps = 1e-4;
    subject.hyper.alpha = 0;
    subject_step_with(&subject, 1e-2f, 1);
    ck_assert_float_eq_tol(subject.parameters[0], -1e-2f / (1e-2f + 1e-4f), TOLERANCE);

    subject_init(&subject, names[_i]);
    subject.hyper.eps = 1e-4;
    subject.hyper.alpha = 0;
    subject.hyper.eps_inside_root = true;
    subject_step_with(&subject, 1e-2f, 1);
    ck_assert_float_eq_tol(subject.parameters[0], -1e-2f / sqrtf(1e-4f + 1e-4f), TOLERANCE);
}
END_TEST

START_TEST(adam_adds_eps_before_or_after_the_correction_or_does_not_correct)
{
    static const char *const names[] = {"adam", "adamw"};
    struct subject subject;
    double average = 0.1 * 0.5;
    double root = sqrt(0.001 * 0.25);

    subject_init(&subject, names[_i]);
    subject.hyper.eps = 0.01;
    subject_step_with(&subject, 0.5f, 0.1);
    ck_assert_double_eq_tol((double)subject.parameters[0], -0.1 * 0.5 / (0.5 + 0.01), TOLERANCE);

    subject_init(&subject, names[_i]);
    subject.hyper.eps = 0.01;
    subject.hyper.eps_before_correction = true;
    subject_step_with(&subject, 0.5f, 0.1);
    ck_assert_double_eq_tol((double)subject.parameters[0],
                            -0.1 * sqrt(0.001) / 0.1 * average / (root + 0.01), TOLERANCE);

    subject_init(&subject, names[_i]);
    subject.hyper.eps = 0.01;
    subject.hyper.bias_correction = false;
    subject_step_with(&subject, 0.5f, 0.1);
    ck_assert_double_eq_tol((double)subject.parameters[0], -0.1 * average / (root + 0.01),
                            TOLERANCE);
}
END_TEST

/* Gradients of both signs that change from step to step. */
static void fill_gradient(float gradient[COUNT], uint32_t step)
{
    for (uint32_t i = 0; i < COUNT; i++) {
        gradient[i] = sinf((float)(i * 7 + step * 5) * 0.7f) + 0.1f;
    }
}

START_TEST(caution_leaves_out_what_goes_against_the_gradient_and_makes_up_for_it)
{
    static const char *const names[] = {"lion", "nadamw", "sgdw", "adan", "rmsprop_tf"};
    struct subject plain;
    struct subject cautious;
    float gradient[COUNT];
    double agreeing = 0;

    subject_init(&plain, names[_i]);
    plain.hyper.momentum = 0.9;
    plain.hyper.weight_decay = 0;
    plain.hyper.betas[1] = strcmp(names[_i], "adan") == 0 ? 0 : plain.hyper.betas[1];
    for (uint32_t step = 0; step < 4; step++) {
        fill_gradient(gradient, step);
        subject_step(&plain, gradient, 0.01);
    }
    cautious = plain;
    cautious.hyper.caution = true;
    struct subject before = plain;
    fill_gradient(gradient, 4);
    subject_step(&plain, gradient, 0.01);
    subject_step(&cautious, gradient, 0.01);

    ck_assert_mem_eq(cautious.state, plain.state, sizeof plain.state);
    for (uint32_t i = 0; i < COUNT; i++) {
        agreeing += (plain.parameters[i] - before.parameters[i]) * gradient[i] < 0;
    }
    ck_assert_double_gt(agreeing, 0);
    ck_assert_double_lt(agreeing, COUNT);
    for (uint32_t i = 0; i < COUNT; i++) {
        double change = (double)plain.parameters[i] - (double)before.parameters[i];
        double kept = change * (double)gradient[i] < 0 ? change * COUNT / agreeing : 0;
        ck_assert_double_eq_tol((double)cautious.parameters[i], (double)before.parameters[i] + kept,
                                TOLERANCE);
    }
}
END_TEST

START_TEST(corrected_weight_decay_follows_the_schedule_once_more)
{
    static const char *const names[] = {"sgdw", "nadamw", "lion", "lamb", "rmsprop_tf"};
    struct subject subject;

    subject_init(&subject, names[_i]);
    subject.hyper.lr = 0.4;
    subject.hyper.weight_decay = 0.5;
    subject.hyper.corrected_weight_decay = true;
    subject.hyper.decoupled_decay = true;
    subject.parameters[0] = 1;
    subject_step_with(&subject, 0, 0.1);
    ck_assert_double_eq_tol((double)subject.parameters[0], 1 - 0.1 * 0.1 / 0.4 * 0.5, TOLERANCE);
}
END_TEST

START_TEST(decoupled_weight_decay_of_nadam_and_radam_leaves_the_averages_alone)
{
    static const char *const names[] = {"nadam", "radam"};
    struct subject subject;

    subject_init(&subject, names[_i]);
    subject.hyper.weight_decay = 0.5;
    subject.hyper.decoupled_weight_decay = true;
    subject.parameters[0] = 1;
    subject_step_with(&subject, 0, 0.1);
    ck_assert_float_eq_tol(subject.parameters[0], 0.95f, TOLERANCE);
    ck_assert_float_eq(subject.state[0][0], 0);
    ck_assert_float_eq(subject.state[1][0], 0);
}
END_TEST

START_TEST(nadam_knows_the_product_of_all_its_momenta)
{
    static const uint64_t numbers[] = {1, 2, 50, 3000};
    static const double decays[] = {0.004, 0, 0.5};
    const double beta1 = 0.9995;
    double product = 1;
    struct subject subject;

    subject_init(&subject, "nadam");
    subject.hyper.betas[0] = beta1;
    subject.hyper.betas[1] = 0; /* sqrt(v) = |g| */
    subject.hyper.eps = 0;
    subject.hyper.momentum_decay = decays[_i / 4];
    subject.step_count = numbers[_i % 4] - 1;
    for (uint64_t t = 1; t <= numbers[_i % 4]; t++) {
        product *= beta1 * (1 - 0.5 * pow(0.96, (double)t * decays[_i / 4]));
    }
    double now = beta1 * (1 - 0.5 * pow(0.96, (double)numbers[_i % 4] * decays[_i / 4]));
    double next = beta1 * (1 - 0.5 * pow(0.96, (double)(numbers[_i % 4] + 1) * decays[_i / 4]));
    double expected = (1 - now) / (1 - product) + next / (1 - product * next) * (1 - beta1);

    subject_step_with(&subject, 1, 1);
    ck_assert_double_eq_tol((double)subject.parameters[0], -expected, TOLERANCE);
}
END_TEST

START_TEST(yogi_moves_its_average_of_squares_by_the_square_towards_it)
{
    const double gradients[] = {0.5, 0.01, -0.3};
    double m = 1e-6;
    double v = 1e-6;
    double p = 0;
    struct subject subject;

    subject_init(&subject, "yogi");
    for (int t = 1; t <= 3; t++) {
        double g = gradients[t - 1];
        m = 0.9 * m + 0.1 * g;
        v -= 0.001 * (v > g * g ? 1 : -1) * g * g;
        p -= 0.01 / (1 - pow(0.9, t)) * m / (sqrt(v / (1 - pow(0.999, t))) + 1e-3);
        subject_step_with(&subject, (float)g, 0.01);
        ck_assert_double_eq_tol((double)subject.parameters[0], p, TOLERANCE);
    }
}
END_TEST

START_TEST(adan_has_no_change_in_the_first_gradient_of_a_late_tensor)
{
    struct subject subject;
    float gradient[COUNT];

    subject_init(&subject, "adan");
    fill_gradient(gradient, 0);
    subject_step_of_group(&subject, gradient, 0.01, 5);
    for (uint32_t i = 0; i < COUNT; i++) {
        ck_assert_float_eq(subject.state[2][i], 0);
        ck_assert_float_eq(subject.state[3][i], gradient[i]);
    }
    double m = 0.02 * (double)gradient[3] / (1 - pow(0.98, 5));
    double v = 0.01 * (double)gradient[3] * (double)gradient[3] / (1 - pow(0.99, 5));
    ck_assert_double_eq_tol((double)subject.parameters[3], -0.01 * m / sqrt(v), TOLERANCE);
}
END_TEST

START_TEST(lars_without_decay_or_momentum_is_plain_descent)
{
    struct subject subject;

    subject_init(&subject, "lars");
    subject.parameters[0] = 1;
    subject_step_with(&subject, 0.5f, 0.1);
    ck_assert_float_eq_tol(subject.parameters[0], 0.95f, TOLERANCE);
}
END_TEST

START_TEST(a_second_pass_is_made_only_with_the_hyperparameters_that_need_it)
{
    int rules = 0;

    for (size_t i = 0; pd_optimizer_at(i) != NULL; i++) {
        const struct pd_optimizer *optimizer = pd_optimizer_at(i);
        struct subject subject;

        if (optimizer->pass_count == NULL) {
            continue;
        }
        subject_init(&subject, optimizer->name);
        subject.hyper.momentum = 0.9;
        subject.hyper.beta1 = 0.9;
        uint32_t plain = pd_optimizer_pass_count(optimizer, &subject.hyper);
        ck_assert_uint_eq(pd_optimizer_sum_count(optimizer, &subject.hyper, plain - 1, NULL), 0);
        subject.hyper.caution = true;
        ck_assert_uint_eq(pd_optimizer_pass_count(optimizer, &subject.hyper), plain + 1);
        ck_assert_uint_ge(pd_optimizer_sum_count(optimizer, &subject.hyper, plain - 1, NULL), 2);
        rules++;
    }
    ck_assert_int_gt(rules, 0);
}
END_TEST

/* What timm.optim.Lamb with caution does in two steps: a coordinate whose second gradient goes
 * against its average stays, and the others make up for it before decay and trust ratio. */
START_TEST(a_cautious_lamb_leaves_out_what_goes_against_the_gradient)
{
    struct subject subject;
    float gradient[COUNT];

    subject_init(&subject, "lamb");
    subject.hyper.caution = true;
    subject.hyper.weight_decay = 0;
    subject.hyper.max_grad_norm = NAN;
    for (uint32_t i = 0; i < COUNT; i++) {
        subject.parameters[i] = 1;
        gradient[i] = 1;
    }
    subject_step(&subject, gradient, 0.01);
    float before = subject.parameters[0];
    ck_assert_float_eq_tol(before, 0.99f, TOLERANCE);
    gradient[0] = -0.1f;
    subject_step(&subject, gradient, 0.01);
    ck_assert_float_eq(subject.parameters[0], before);
    double growth = (double)COUNT / (COUNT - 1);
    ck_assert_double_eq_tol((double)subject.parameters[1], 0.99 - 0.01 * growth, TOLERANCE);
}
END_TEST

START_TEST(lamb_as_adam_takes_no_trust_ratio)
{
    struct subject subject;

    subject_init(&subject, "lamb");
    subject.hyper.adam = true;
    subject.hyper.weight_decay = 0.5;
    for (uint32_t i = 0; i < COUNT; i++) {
        subject.parameters[i] = 8;
    }
    subject_step_with(&subject, 1.0f, 0.01);
    ck_assert_float_eq_tol(subject.parameters[0], 8.0f - 0.01f * (1.0f + 0.5f * 8.0f), 1e-5f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("optimizer_forms");
    TCase *tests = tcase_create("optimizer_forms");

    tcase_add_test(tests, momentum_of_two_gradients_steps_by_0_2_then_0_36);
    tcase_add_test(tests, a_cautious_lamb_leaves_out_what_goes_against_the_gradient);
    tcase_add_test(tests, lamb_as_adam_takes_no_trust_ratio);
    tcase_add_loop_test(tests, rmsprop_of_two_gradients_steps_by_0_316_then_0_248, 0, 2);
    tcase_add_loop_test(tests, the_learning_rate_in_the_buffer_outlives_its_step, 0, 2);
    tcase_add_loop_test(tests, eps_counts_under_the_root_where_asked, 0, 2);
    tcase_add_loop_test(tests, adam_adds_eps_before_or_after_the_correction_or_does_not_correct, 0,
                        2);
    tcase_add_loop_test(
        tests, caution_leaves_out_what_goes_against_the_gradient_and_makes_up_for_it, 0, 5);
    tcase_add_loop_test(tests, corrected_weight_decay_follows_the_schedule_once_more, 0, 5);
    tcase_add_loop_test(tests, decoupled_weight_decay_of_nadam_and_radam_leaves_the_averages_alone,
                        0, 2);
    tcase_add_loop_test(tests, nadam_knows_the_product_of_all_its_momenta, 0, 12);
    tcase_add_test(tests, yogi_moves_its_average_of_squares_by_the_square_towards_it);
    tcase_add_test(tests, adan_has_no_change_in_the_first_gradient_of_a_late_tensor);
    tcase_add_test(tests, lars_without_decay_or_momentum_is_plain_descent);
    tcase_add_test(tests, a_second_pass_is_made_only_with_the_hyperparameters_that_need_it);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
