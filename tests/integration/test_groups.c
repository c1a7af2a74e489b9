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

/* The rates of a cosine to half of the base rate and, as of every step, what each tensor moves by.
 */
START_TEST(a_multiplier_stays_the_same_whatever_the_schedule_does)
{
    struct trial trial;
    float before[ELEMENT_COUNT];
    float gradient[ELEMENT_COUNT];

    begin(&trial, _i,
          "optimizer: {name: sgd, lr: 0.5}\nschedule: {name: cosine, t_max: 4, eta_min: 0.25}\n"
          "groups: [{name: body, match: \"body.*\", lr_multiplier: 0.1}]\n");
    fill(gradient, 1);
    for (int step = 0; step < 5; step++) {
        double rate = 0.25 + 0.25 * (1 + cos(M_PI * step / 4)) / 2;
        json_t *lr = trial_ask(&trial, "lr", 0, 0);
        ck_assert_double_eq_tol(json_number_value(trial_item(lr, "groups", "body", "lr")),
                                0.1 * rate, 1e-12);
        json_decref(lr);
        memcpy(before, trial.values, sizeof before);
        trial_step(&trial, gradient, 0);
        check_moved(&trial, before, gradient, BODY_WEIGHT, 0.1 * rate);
        check_moved(&trial, before, gradient, HEAD_BIAS, rate);
    }
    trial_end(&trial);
}
END_TEST

/* With AdamW, so that the decay of the parameters is scaled too: at the first step, whose direction
 * is the sign of the gradient. */
START_TEST(rates_decay_from_layer_to_layer_within_every_group)
{
    static const struct trial_tensor layers[] = {
        {"patch_embed.weight", 2, {2, 3}}, {"blocks.0.weight", 2, {3, 3}},
        {"blocks.0.bias", 1, {3}},         {"blocks.1.weight", 2, {3, 3}},
        {"head.weight", 2, {3, 2}},
    };
    static const double factors[] = {0.125, 0.25, 0.25, 0.5, 1};
    struct trial trial;

    trial_begin(&trial, RANK_COUNT, _i == 0 ? "direct" : "allreduce",
                "optimizer: {name: adamw, lr: 0.1, weight_decay: 0.5, eps: 0}\n"
                "groups: [{name: flat, max_dims: 1, weight_decay: 0}]\n"
                "layer_decay: {decay: 0.5, layers: \"blocks.{}.*\", embeddings: \"*embed*\"}\n",
                layers, 5);
    json_t *tensors = trial_ask(&trial, "tensors", 0, 0);
    trial_step_all(&trial, 0.25f);
    for (uint32_t i = 0; i < 5; i++) {
        double rate = 0.1 * factors[i];
        double decay = layers[i].dimension_count == 1 ? 0 : 0.5;
        ck_assert_double_eq_tol(
            json_number_value(trial_item(tensors, "tensors", layers[i].name, "lr")), rate, 1e-15);
        for (uint64_t k = trial.begins[i]; k < trial.begins[i + 1]; k++) {
            ck_assert_double_eq_tol((double)trial.values[k], 1 - rate * decay - rate, TOLERANCE);
        }
    }
    json_decref(tensors);
    trial_end(&trial);
}
END_TEST

/* The worker that offers it is told; the daemon goes on for one that suits. */
START_TEST(a_model_that_layer_decay_does_not_suit_is_refused)
{
    static const uint64_t shape[] = {4};
    struct paramd_tensor tensor = {.name = "h.3.w", .dimension_count = 1, .shape = shape};
    float values[4] = {0};
    float *const arrays[] = {values};
    struct cluster cluster;
    struct paramd_options options;
    struct paramd_client *client = NULL;
    struct paramd_error error = {0};

    cluster_start(&cluster, RANK_COUNT,
                  "layer_decay: {decay: 0.5, layers: \"h.{}.*\", depth_max: 2}\n");
    paramd_options_init(&options);
    options.address = cluster.addresses[0];
    ck_assert_msg(paramd_connect(&options, &client, &error) == PARAMD_OK, "%s", error.message);
    ck_assert_int_eq(paramd_register(client, &tensor, 1, arrays, &error), PARAMD_EMODEL);
    ck_assert_ptr_nonnull(strstr(error.message, "layer_decay.depth_max: 2, but tensor 'h.3.w' has "
                                                "depth 4; allowed: at least 4"));
    tensor.name = "h.1.w";
    ck_assert_msg(paramd_register(client, &tensor, 1, arrays, &error) == PARAMD_OK, "%s",
                  error.message);
    ck_assert_int_eq(paramd_leave(client, &error), PARAMD_OK);
    paramd_close(client);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
}
END_TEST

/* Adam's beta1 under a cycle that climbs for two steps: a group has a range of its own. */
START_TEST(groups_may_differ_in_what_schedules_make_of_the_momentum)
{
    struct trial trial;
    double averages[2] = {0};
    double values[2] = {1, 1};

    begin(&trial, _i,
          "optimizer: {name: adam, lr: 0.1, eps: 0}\n"
          "groups: [{name: head, match: \"head.*\", betas: [0.7, 0.5], base_momentum: 0.2, "
          "max_momentum: 0.6}]\n"
          "schedule: {name: cyclic, base_lr: 0.1, max_lr: 0.3, step_size_up: 2, "
          "base_momentum: 0.5, max_momentum: 0.8}\n");
    for (int step = 0; step < 8; step++) {
        double height = step % 4 == 0 ? 0 : step % 4 == 2 ? 1 : 0.5;
        const double betas[] = {0.8 - 0.3 * height, 0.6 - 0.4 * height};
        json_t *reply = trial_ask(&trial, "schedule", 0, 1);
        const json_t *momenta = json_array_get(json_object_get(reply, "momenta"), 0);
        trial_step_all(&trial, 1);
        for (size_t g = 0; g < 2; g++) {
            averages[g] = betas[g] * averages[g] + (1 - betas[g]);
            values[g] -= (0.1 + 0.2 * height) * averages[g] / (1 - pow(betas[g], step + 1));
            ck_assert_double_eq_tol(json_number_value(json_array_get(momenta, g)), betas[g], 1e-12);
        }
        json_decref(reply);
        ck_assert_double_eq_tol((double)trial.values[0], values[0], 1e-5);
        ck_assert_double_eq_tol((double)trial.values[ELEMENT_COUNT - 1], values[1], 1e-5);
    }
    trial_end(&trial);
}
END_TEST

/* The first group that matches a tensor has it; a list of names, a glob and dimensions say which.
 */
START_TEST(tensors_are_found_by_names_globs_and_dimensions)
{
    struct trial trial;

    begin(&trial, _i,
          "optimizer: {name: sgd, lr: 1}\n"
          "groups:\n"
          "  - {name: named, match: [head.bias, nothing, body.weight], lr: 0.5}\n"
          "  - {name: flat, match: \"*.bias\", min_dims: 1, max_dims: 1, lr: 0.25}\n"
          "  - {name: cubes, min_dims: 3, lr: 7}\n");
    trial_step_all(&trial, 1);
    ck_assert_float_eq(trial.values[trial.begins[BODY_WEIGHT]], 0.5f);
    ck_assert_float_eq(trial.values[trial.begins[BODY_BIAS]], 0.75f);
    ck_assert_float_eq(trial.values[trial.begins[HEAD_WEIGHT]], 0);
    ck_assert_float_eq(trial.values[trial.begins[HEAD_BIAS]], 0.5f);
    trial_end(&trial);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("groups");

    suite_add_loop(suite, tensors_are_found_by_names_globs_and_dimensions, 2);
    suite_add_loop(suite, each_group_is_clipped_by_its_own_norm_and_the_rest_together, 2);
    suite_add_loop(suite, a_group_may_cut_its_elements_at_a_value_of_its_own, 2);
    suite_add_loop(suite, a_frozen_group_stays_whether_its_gradients_are_pushed_or_not, 2);
    suite_add_loop(suite, a_multiplier_stays_the_same_whatever_the_schedule_does, 2);
    suite_add_loop(suite, rates_decay_from_layer_to_layer_within_every_group, 2);
    suite_add(suite, a_model_that_layer_decay_does_not_suit_is_refused);
    suite_add_loop(suite, groups_may_differ_in_what_schedules_make_of_the_momentum, 2);
    return suite_run(suite);
}
