/* What goes around a step: buckets, batches, loss scales, epochs, networks in turn, pictures. */
#include "tests/support/suite.h"
#include "tests/support/trial.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOLERANCE 1e-6

static const struct trial_tensor model[] = {{"generator.w", 2, {2, 3}},
                                            {"discriminator.w", 1, {5}}};
#define ELEMENT_COUNT 11u
enum { GENERATOR, DISCRIMINATOR };

static void begin(struct trial *trial, int aggregation, const char *config)
{
    trial_begin(trial, 2, aggregation == 0 ? "direct" : "allreduce", config, model, 2);
}

static double first(const struct trial *trial, uint32_t tensor)
{
    return (double)trial->values[trial->begins[tensor]];
}

/* ---- Buckets ---- */

/* Parameters after three steps of a model with 1,020 elements, in blocks of one. */
static void train_large(uint32_t rank_count, const char *aggregation, float *values)
{
    static const struct trial_tensor large[] = {{"w", 2, {30, 34}}};
    float gradient[1020];
    struct trial trial;

    trial_begin(&trial, rank_count, aggregation,
                "block_size: 1\noptimizer: {name: adamw, lr: 0.1}\nclip: {norm: 1}\n", large, 1);
    for (uint32_t step = 0; step < 3; step++) {
        for (uint32_t i = 0; i < 1020; i++) {
            gradient[i] = (i % 3 == 0 ? -1.0f : 1.0f) / (float)(1 + (i + 7 * step) % 50);
        }
        trial_step(&trial, gradient, 0);
    }
    memcpy(values, trial.values, sizeof gradient);
    trial_end(&trial);
}

/* 68 buckets, exchanged by MPI while others are summed and gathered while others are stepped. */
START_TEST(ranks_that_exchange_many_buckets_make_the_bits_of_one)
{
    float one[1020];
    float three[1020];

    train_large(1, "direct", one);
    train_large(3, "allreduce", three);
    ck_assert_mem_eq(three, one, sizeof one);
}
END_TEST

/* ---- Batches ---- */

/* By the samples of each step, and of all micro-batches in it; during the warmup too. */
START_TEST(the_rate_follows_the_effective_batch)
{
    static const char *const rules[] = {"linear", "sqrt"};
    static const uint64_t batches[] = {4, 8, 2, 8, 16, 4};
    struct trial trial;
    char config[256];
    double value = 1;

    snprintf(config, sizeof config,
             "optimizer: {name: sgd, lr: 0.1}\naccumulation_steps: 2\n"
             "lr_scaling: {rule: %s, base_batch: 4}\n"
             "schedule: {name: linear, start_factor: 0.25, steps: 3}\n",
             rules[_i / 2]);
    begin(&trial, _i % 2, config);
    for (uint32_t step = 0; step < 6; step++) {
        double ratio = (double)batches[step] / 4;
        double rate = 0.1 * (step < 3 ? 0.25 * (step + 1) : 1);
        trial.samples = batches[step] / 2;
        ck_assert_int_eq(trial_step_all(&trial, 0.5f).pulled, 0);
        struct paramd_step_info info = trial_step_all(&trial, 1.5f);
        rate *= _i / 2 == 0 ? ratio : sqrt(ratio);
        value -= rate;
        ck_assert_double_eq_tol(info.lr, rate, 1e-12);
        ck_assert_double_eq_tol(first(&trial, GENERATOR), value, TOLERANCE);
    }
    trial_end(&trial);
}
END_TEST

/* One micro-batch of three, closed early, weighs what it has: its mean is the gradient. */
START_TEST(the_last_group_of_micro_batches_may_be_a_part)
{
    struct trial trial;

    begin(&trial, _i, "optimizer: {name: sgd, lr: 1}\naccumulation_steps: 3\n");
    trial.samples = 2;
    trial_step_all(&trial, 0.1f);
    trial_step_all(&trial, 0.2f);
    trial.samples = 4;
    trial_step_all(&trial, 0.3f);
    ck_assert_double_eq_tol(first(&trial, GENERATOR), 1 - (0.2 + 0.4 + 1.2) / 8, TOLERANCE);
    trial.flags = PARAMD_LAST;
    ck_assert_int_eq(trial_step_all(&trial, 0.5f).pulled, 1);
    ck_assert_double_eq_tol(first(&trial, GENERATOR), 1 - 1.8 / 8 - 0.5, TOLERANCE);
    json_t *status = trial_ask(&trial, "status", 0, 0);
    ck_assert_int_eq(json_integer_value(json_object_get(status, "effective_batch")), 4);
    json_decref(status);
    trial_end(&trial);
}
END_TEST

/* ---- Epochs ---- */

/* Halved every epoch of three steps: between epochs only, or all the way. */
START_TEST(a_schedule_may_be_given_in_epochs)
{
    struct trial trial;
    double value = 1;

    begin(&trial, 0,
          _i == 0 ? "optimizer: {name: sgd, lr: 0.1}\nsteps_per_epoch: 3\n"
                    "schedule: {name: exponential, gamma: 0.5, unit: whole_epochs}\n"
                  : "optimizer: {name: sgd, lr: 0.1}\nsteps_per_epoch: 3\n"
                    "schedule: {name: exponential, gamma: 0.5, unit: epochs}\n");
    for (uint32_t step = 0; step < 8; step++) {
        double epochs = _i == 0 ? step / 3 : step / 3.0;
        double rate = 0.1 * pow(0.5, epochs);
        ck_assert_double_eq_tol(trial_step_all(&trial, 1).lr, rate, 1e-15);
        value -= rate;
        ck_assert_double_eq_tol(first(&trial, GENERATOR), value, TOLERANCE);
    }
    trial_end(&trial);
}
END_TEST

/* ---- Networks in turn ---- */

/* Adam as each network alone would have it, with betas of its own. */
struct adam {
    double beta1, beta2, m, v, value;
    int steps;
};

static void adam_step(struct adam *adam, double gradient)
{
    adam->steps++;
    adam->m = adam->beta1 * adam->m + (1 - adam->beta1) * gradient;
    adam->v = adam->beta2 * adam->v + (1 - adam->beta2) * gradient * gradient;
    double mean = adam->m / (1 - pow(adam->beta1, adam->steps));
    double square = adam->v / (1 - pow(adam->beta2, adam->steps));
    adam->value -= 0.1 * mean / (sqrt(square) + 1e-8);
}

START_TEST(networks_trained_in_turn_do_not_touch_each_other)
{
    static const uint64_t absent[] = {1u << GENERATOR, 1u << DISCRIMINATOR};
    struct adam adams[] = {{.beta1 = 0.5, .beta2 = 0.9, .value = 1},
                           {.beta1 = 0.9, .beta2 = 0.99, .value = 1}};
    struct trial trial;

    begin(&trial, _i,
          "optimizer: {name: adam, lr: 0.1, betas: [0.5, 0.9]}\n"
          "groups: [{name: discriminator, match: \"discriminator.*\", betas: [0.9, 0.99]}]\n");
    for (int step = 0; step < 9; step++) {
        uint32_t moved = step % 3 == 2 ? GENERATOR : DISCRIMINATOR; /* two of D, one of G */
        float gradient[ELEMENT_COUNT];
        float before[ELEMENT_COUNT];
        for (uint32_t i = 0; i < ELEMENT_COUNT; i++) {
            gradient[i] = 0.25f * (float)(step % 4 + 1) - 0.3f;
        }
        memcpy(before, trial.values, sizeof before);
        trial_step(&trial, gradient, absent[moved == GENERATOR]);
        adam_step(&adams[moved], (double)gradient[0]);
        ck_assert_double_eq_tol(first(&trial, moved), adams[moved].value, 1e-5);
        ck_assert_mem_eq(trial.values + trial.begins[1 - moved], before + trial.begins[1 - moved],
                         (trial.begins[2 - moved] - trial.begins[1 - moved]) * sizeof(float));
    }
    trial_end(&trial);
}
END_TEST

/* ---- Loss scales ---- */

/* GradScaler: halved by a step with an infinity, which is skipped; doubled after two good ones. */
START_TEST(a_dynamic_loss_scale_grows_and_backs_off)
{
    static const int bad[] = {0, 0, 1, 0, 1, 1, 0, 0, 0};
    static const double scales[] = {8, 32, 16, 16, 8, 4, 4, 16, 16};
    struct trial trial;
    double scale = 8;
    double value = 1;
    uint64_t skipped = 0;

    begin(&trial, _i,
          "optimizer: {name: sgd, lr: 0.25}\n"
          "loss_scale: {init_scale: 8, growth_factor: 4, backoff_factor: 0.5, "
          "growth_interval: 2}\n");
    trial.flags = PARAMD_SCALED;
    for (int step = 0; step < 9; step++) {
        struct paramd_step_info info =
            trial_step_all(&trial, bad[step] ? INFINITY : (float)scale * 0.5f);
        value -= bad[step] ? 0 : 0.25 * 0.5;
        skipped += (uint64_t)bad[step];
        scale = info.loss_scale;
        ck_assert_double_eq(scale, scales[step]);
        ck_assert_uint_eq(info.skipped_steps, skipped);
        ck_assert_double_eq_tol(first(&trial, GENERATOR), value, TOLERANCE);
    }
    json_t *status = trial_ask(&trial, "status", 0, 0);
    ck_assert_double_eq(json_number_value(json_object_get(status, "loss_scale")), scale);
    ck_assert_double_eq_tol(json_number_value(json_object_get(status, "grad_norm")),
                            0.5 * sqrt(ELEMENT_COUNT), TOLERANCE);
    json_decref(status);
    trial_end(&trial);
}
END_TEST

START_TEST(a_static_loss_scale_stays)
{
    struct trial trial;

    begin(&trial, _i,
          "optimizer: {name: sgd, lr: 0.25}\n"
          "loss_scale: {init_scale: 128, dynamic: false, growth_interval: 1}\n");
    trial.flags = PARAMD_SCALED;
    for (int step = 0; step < 4; step++) {
        struct paramd_step_info info = trial_step_all(&trial, step == 1 ? NAN : 128 * 0.5f);
        ck_assert_double_eq(info.loss_scale, 128);
    }
    ck_assert_double_eq_tol(first(&trial, GENERATOR), 1 - 3 * 0.125, TOLERANCE);
    trial_end(&trial);
}
END_TEST

/* ---- What went wrong ---- */

START_TEST(status_and_log_name_the_first_element_that_is_not_finite)
{
    static const char text[] = "step 1: the gradient of worker 0 'worker-0' is not finite: "
                               "tensor 'discriminator.w', element 3";
    float gradient[ELEMENT_COUNT] = {0};
    struct trial trial;

    begin(&trial, _i, "optimizer: {name: sgd}\n");
    trial_step(&trial, gradient, 0);
    gradient[trial.begins[DISCRIMINATOR] + 3] = -INFINITY;
    gradient[trial.begins[DISCRIMINATOR] + 4] = NAN;
    trial_step(&trial, gradient, 0);
    process_await_error(trial.cluster.process, text); /* the rank that found it tells rank 0 */
    json_t *status = trial_ask(&trial, "status", 0, 0);
    const char *reason = json_string_value(json_object_get(status, "last_skip_reason"));
    ck_assert_msg(reason != NULL && strcmp(reason, text) == 0, "%s", reason);
    json_decref(status);
    trial_end(&trial);
}
END_TEST

/* ---- Pictures and tables ---- */

/* Whether the file begins as a PNG does. */
static bool is_picture(const char *path)
{
    unsigned char bytes[8] = {0};
    FILE *file = fopen(path, "rb");

    if (file == NULL) {
        return false;
    }
    size_t count = fread(bytes, 1, sizeof bytes, file);
    (void)fclose(file);
    return count == sizeof bytes && memcmp(bytes, "\x89PNG\r\n\x1a\n", sizeof bytes) == 0;
}

static void draw(struct trial *trial, const char *command)
{
    char path[512];
    const char *const words[] = {"--plot", path, command, NULL};

    snprintf(path, sizeof path, "%s/it's %s.png", suite_directory(), command);
    struct process_result result = cluster_paramctl(trial->cluster.addresses[1], words);
    ck_assert_msg(result.code == 0, "%s: %s", command, result.errors);
    ck_assert_msg(is_picture(path), "%s", path);
    process_result_finish(&result);
}

START_TEST(schedule_and_history_are_drawn_and_printed)
{
    static const char *const csv[] = {"--csv", "history", NULL};
    struct trial trial;
    struct paramd_error error = {0};

    begin(&trial, _i,
          "optimizer: {name: sgd, lr: 0.5}\nclip: {norm: 1}\n"
          "groups: [{name: body, match: \"generator.*\", lr: 0.25}]\n"
          "schedule: {name: cosine, t_max: 100}\n");
    draw(&trial, "schedule");
    for (uint64_t step = 0; step < 3; step++) {
        trial_step_all(&trial, 1);
        ck_assert_int_eq(paramd_report_metric(trial.client, "val, loss", 0.5, step + 1, &error),
                         PARAMD_OK);
    }
    draw(&trial, "history");
    struct process_result result = cluster_paramctl(trial.cluster.addresses[1], csv);
    ck_assert_msg(result.code == 0, "%s", result.errors);
    ck_assert_ptr_eq(strstr(result.output, "step,lr,loss,grad_norm,clipped_norm,effective_batch,"
                                           "skipped,\"val, loss\"\n0,0.5,,3.3166247903"),
                     result.output);
    size_t lines = 0;
    for (const char *at = result.output; (at = strchr(at, '\n')) != NULL; at++) {
        lines++;
    }
    ck_assert_uint_eq(lines, 4);
    process_result_finish(&result);
    trial_end(&trial);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("techniques");

    suite_add(suite, ranks_that_exchange_many_buckets_make_the_bits_of_one);
    suite_add_loop(suite, the_rate_follows_the_effective_batch, 4);
    suite_add_loop(suite, the_last_group_of_micro_batches_may_be_a_part, 2);
    suite_add_loop(suite, a_schedule_may_be_given_in_epochs, 2);
    suite_add_loop(suite, networks_trained_in_turn_do_not_touch_each_other, 2);
    suite_add_loop(suite, a_dynamic_loss_scale_grows_and_backs_off, 2);
    suite_add_loop(suite, a_static_loss_scale_stays, 2);
    suite_add_loop(suite, status_and_log_name_the_first_element_that_is_not_finite, 2);
    suite_add_loop(suite, schedule_and_history_are_drawn_and_printed, 2);
    return suite_run(suite);
}
