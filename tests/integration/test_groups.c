/* Parameter groups reach the tensors they match, on every shard. */
#include "tests/support/suite.h"
#include "tests/support/trial.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TOLERANCE 1e-6
#define RANK_COUNT 3u

static const struct trial_tensor model[] = {
    {"body.weight", 2, {2, 3}},
    {"body.bias", 1, {3}},
    {"head.weight", 2, {3, 3}},
    {"head.bias", 1, {3}},
};
#define TENSOR_COUNT 4u
#define ELEMENT_COUNT 21u
enum { BODY_WEIGHT, BODY_BIAS, HEAD_WEIGHT, HEAD_BIAS };

static void begin(struct trial *trial, int aggregation, const char *config)
{
    trial_begin(trial, RANK_COUNT, aggregation == 0 ? "direct" : "allreduce", config, model,
                TENSOR_COUNT);
}

/* A gradient of sizes from 0.25 to 2 in both signs. */
static void fill(float *gradient, float scale)
{
    for (uint32_t i = 0; i < ELEMENT_COUNT; i++) {
        gradient[i] = scale * (i % 2 == 0 ? 1.0f : -1.0f) * 0.25f * (float)(1 + i % 8);
    }
}

/* The p-norm of the tensors whose bit is set. */
static double norm_of(const struct trial *trial, const float *gradient, unsigned tensors, double p)
{
    double sum = 0;

    for (uint32_t i = 0; i < TENSOR_COUNT; i++) {
        for (uint64_t k = trial->begins[i]; (tensors >> i & 1) != 0 && k < trial->begins[i + 1];
             k++) {
            double size = fabs((double)gradient[k]);
            sum = isinf(p) ? fmax(sum, size) : sum + pow(size, p);
        }
    }
    return isinf(p) ? sum : pow(sum, 1 / p);
}

/* Every element of the tensor is what SGD at rate 1 makes of it with its gradient times `scale`. */
static void check_moved(const struct trial *trial, const float *before, const float *gradient,
                        uint32_t tensor, double scale)
{
    for (uint64_t i = trial->begins[tensor]; i < trial->begins[tensor + 1]; i++) {
        ck_assert_double_eq_tol((double)trial->values[i],
                                (double)before[i] - scale * (double)gradient[i], TOLERANCE);
    }
}

START_TEST(each_group_is_clipped_by_its_own_norm_and_the_rest_together)
{
    struct trial trial;
    float gradient[ELEMENT_COUNT];
    float before[ELEMENT_COUNT];

    begin(&trial, _i,
          "optimizer: {name: sgd, lr: 1}\nclip: {norm: 1}\n"
          "groups:\n"
          "  - {name: body, match: body.weight, clip: {norm: 0.5, norm_type: inf}}\n"
          "  - {name: free, match: body.bias, clip: {norm: null}}\n");
    fill(gradient, 1);
    memcpy(before, trial.values, sizeof before);
    trial_step(&trial, gradient, 0);
    double rest = 1 / (norm_of(&trial, gradient, 1u << HEAD_WEIGHT | 1u << HEAD_BIAS, 2) + 1e-6);
    double body = 0.5 / (norm_of(&trial, gradient, 1u << BODY_WEIGHT, INFINITY) + 1e-6);
    check_moved(&trial, before, gradient, BODY_WEIGHT, body);
    check_moved(&trial, before, gradient, BODY_BIAS, 1);
    check_moved(&trial, before, gradient, HEAD_WEIGHT, rest);
    check_moved(&trial, before, gradient, HEAD_BIAS, rest);

    json_t *status = trial_ask(&trial, "status", 0, 0);
    json_t *tensors = trial_ask(&trial, "tensors", 0, 0);
    ck_assert_double_eq_tol(json_number_value(json_object_get(status, "grad_norm")),
                            norm_of(&trial, gradient, 15, 2), TOLERANCE);
    ck_assert_double_eq_tol(json_number_value(json_object_get(status, "clip_scale")), rest,
                            TOLERANCE);
    ck_assert_double_eq_tol(json_number_value(trial_item(status, "groups", "body", "clip_scale")),
                            body, TOLERANCE);
    ck_assert_double_eq_tol(json_number_value(trial_item(status, "groups", "body", "grad_norm")),
                            norm_of(&trial, gradient, 1u << BODY_WEIGHT, INFINITY), TOLERANCE);
    for (uint32_t i = 0; i < TENSOR_COUNT; i++) {
        ck_assert_double_eq_tol(
            json_number_value(trial_item(tensors, "tensors", model[i].name, "grad_norm")),
            norm_of(&trial, gradient, 1u << i, 2), TOLERANCE);
    }
    json_decref(tensors);
    json_decref(status);
    trial_end(&trial);
}
END_TEST

START_TEST(a_group_may_cut_its_elements_at_a_value_of_its_own)
{
    struct trial trial;
    float gradient[ELEMENT_COUNT];
    float before[ELEMENT_COUNT];

    begin(&trial, _i,
          "optimizer: {name: sgd, lr: 1}\nclip: {value: 1}\n"
          "groups: [{match: \"head.*\", clip: {value: 0.5}}]\n");
    fill(gradient, 1);
    memcpy(before, trial.values, sizeof before);
    trial_step(&trial, gradient, 0);
    for (uint64_t i = 0; i < ELEMENT_COUNT; i++) {
        float limit = i < trial.begins[HEAD_WEIGHT] ? 1 : 0.5f;
        gradient[i] = fminf(fmaxf(gradient[i], -limit), limit);
    }
    for (uint32_t i = 0; i < TENSOR_COUNT; i++) {
        check_moved(&trial, before, gradient, i, 1);
    }
    trial_end(&trial);
}
END_TEST

/* With momentum and decay, which would move the tensor even without a gradient; a NaN in it is of
 * no account either. */
START_TEST(a_frozen_group_stays_whether_its_gradients_are_pushed_or_not)
{
    struct trial trial;
    float gradient[ELEMENT_COUNT];
    float before[ELEMENT_COUNT];

    begin(&trial, _i,
          "optimizer: {name: sgd, lr: 1, momentum: 0.9, weight_decay: 0.1}\nclip: {norm: 1}\n"
          "groups: [{name: body, match: \"body.*\", frozen: true}]\n");
    fill(gradient, 1);
    gradient[2] = NAN;
    memcpy(before, trial.values, sizeof before);
    for (int i = 0; i < 4; i++) {
        struct paramd_step_info info =
            trial_step(&trial, gradient, i % 2 == 0 ? 1u << BODY_WEIGHT | 1u << BODY_BIAS : 0);
        ck_assert_uint_eq(info.skipped_steps, 0);
        ck_assert_mem_eq(trial.values, before, trial.begins[HEAD_WEIGHT] * sizeof(float));
        ck_assert_float_ne(trial.values[trial.begins[HEAD_WEIGHT]],
                           before[trial.begins[HEAD_WEIGHT]]);
    }
    json_t *status = trial_ask(&trial, "status", 0, 0);
    json_t *tensors = trial_ask(&trial, "tensors", 0, 0);
    ck_assert_double_eq_tol(json_number_value(json_object_get(status, "grad_norm")),
                            norm_of(&trial, gradient, 1u << HEAD_WEIGHT | 1u << HEAD_BIAS, 2),
                            TOLERANCE);
    ck_assert(json_is_true(trial_item(status, "groups", "body", "frozen")));
    ck_assert(json_is_null(trial_item(tensors, "tensors", "body.weight", "grad_norm")));
    json_decref(tensors);
    json_decref(status);
    trial_end(&trial);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("groups");

    suite_add_loop(suite, each_group_is_clipped_by_its_own_norm_and_the_rest_together, 2);
    suite_add_loop(suite, a_group_may_cut_its_elements_at_a_value_of_its_own, 2);
    suite_add_loop(suite, a_frozen_group_stays_whether_its_gradients_are_pushed_or_not, 2);
    return suite_run(suite);
}
