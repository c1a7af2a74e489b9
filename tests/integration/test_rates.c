/* What schedules say reaches the parameters of every shard. */
#include "tests/support/suite.h"
#include "tests/support/trial.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* float32 arithmetic over a few steps. */
#define TOLERANCE 1e-5

#define ELEMENT_COUNT 8u
#define STEP_COUNT 12u

static const struct trial_tensor model = {"w", 1, {ELEMENT_COUNT}};

/* One worker that trains ELEMENT_COUNT numbers, all from 1 with the gradient 1. */
static void begin(struct trial *trial, uint32_t rank_count, const char *config)
{
    trial_begin(trial, rank_count, "direct", config, &model, 1);
}

static struct paramd_step_info step(struct trial *trial)
{
    return trial_step_all(trial, 1);
}

static void check_values(const struct trial *trial, double expected)
{
    for (uint32_t i = 0; i < ELEMENT_COUNT; i++) {
        ck_assert_float_eq_tol(trial->values[i], (float)expected, TOLERANCE);
    }
}

/* Up for 3 steps and down for 3, from the formulas of CyclicLR. */
static double cycle_share(uint64_t at)
{
    return 1 - fabs((double)(at % 6) / 3 - 1);
}

#define CYCLIC                                                                                     \
    "schedule: {name: cyclic, base_lr: 0.1, max_lr: 0.4, step_size_up: 3, base_momentum: 0.5, "    \
    "max_momentum: 0.8}\n"

START_TEST(the_momentum_of_sgd_follows_the_schedule_even_from_none)
{
    struct trial trial;
    double value = 1;
    double buffer = 0;

    begin(&trial, 1 + (uint32_t)_i, "optimizer: {name: sgd, lr: 0.1}\n" CYCLIC);
    for (uint64_t at = 0; at < STEP_COUNT; at++) {
        double momentum = 0.8 - 0.3 * cycle_share(at);
        step(&trial);
        buffer = at == 0 ? 1 : momentum * buffer + 1;
        value -= (0.1 + 0.3 * cycle_share(at)) * buffer;
        check_values(&trial, value);
    }
    trial_end(&trial);
}
END_TEST

START_TEST(beta1_of_adam_follows_the_schedule)
{
    struct trial trial;
    double value = 1;
    double average = 0;

    begin(&trial, 2, "optimizer: {name: adam, lr: 0.1, eps: 0}\n" CYCLIC);
    for (uint64_t at = 0; at < STEP_COUNT; at++) {
        double beta1 = 0.8 - 0.3 * cycle_share(at);
        step(&trial);
        average = beta1 * average + (1 - beta1);
        value -= (0.1 + 0.3 * cycle_share(at)) * average / (1 - pow(beta1, (double)at + 1));
        check_values(&trial, value);
    }
    trial_end(&trial);
}
END_TEST

START_TEST(coming_rates_and_momenta_can_be_asked_for)
{
    struct trial trial;

    begin(&trial, 1, "optimizer: {name: sgd, lr: 0.1}\n" CYCLIC);
    json_t *reply = trial_ask(&trial, "schedule", 0, STEP_COUNT);
    for (uint64_t at = 0; at < STEP_COUNT; at++) {
        const json_t *lrs = json_array_get(json_object_get(reply, "lrs"), at);
        const json_t *momenta = json_array_get(json_object_get(reply, "momenta"), at);
        ck_assert_double_eq_tol(json_number_value(json_array_get(lrs, 0)),
                                0.1 + 0.3 * cycle_share(at), 1e-12);
        ck_assert_double_eq_tol(json_number_value(json_array_get(momenta, 0)),
                                0.8 - 0.3 * cycle_share(at), 1e-12);
    }
    json_decref(reply);
    trial_end(&trial);
}
END_TEST

static enum paramd_status report(struct trial *trial, const char *name, double value, uint64_t at,
                                 struct paramd_error *error)
{
    return paramd_report_metric(trial->client, name, value, at, error);
}

/* Reports of each step: better, worse, worse, which is one too many, and then better again. */
START_TEST(a_plateau_reduces_the_rate_from_the_next_step_on)
{
    static const double losses[] = {1, 2, 3, 0.5, 0.4};
    static const double rates[] = {0.5, 0.5, 0.5, 0.05, 0.05};
    struct trial trial;
    struct paramd_error error = {0};
    double value = 1;

    begin(
        &trial, 1 + (uint32_t)_i,
        "optimizer: {name: sgd, lr: 0.5}\nschedule: {name: plateau, metric: loss, patience: 1}\n");
    for (uint64_t at = 0; at < 5; at++) {
        struct paramd_step_info info = step(&trial);
        ck_assert_double_eq_tol(info.lr, rates[at], 1e-15);
        value -= rates[at];
        check_values(&trial, value);
        ck_assert_int_eq(report(&trial, "other", 9, at, &error), PARAMD_OK);
        ck_assert_int_eq(report(&trial, "loss", losses[at], at + 1, &error), PARAMD_OK);
    }
    trial_end(&trial);
}
END_TEST

/* Workers are told with the step after the last straw, and may go on all the same. */
START_TEST(early_stop_tells_workers_of_every_rank_and_forces_nobody)
{
    static const double losses[] = {1, 0.95, 0.8, 0.85, 0.75, 0.1};
    struct trial trial;
    struct paramd_error error = {0};

    double sign = _i / 2 == 0 ? 1 : -1;

    begin(&trial, 1 + (uint32_t)_i % 2,
          _i / 2 == 0 ? "optimizer: {name: sgd, lr: 0.5}\n"
                        "early_stop: {metric: loss, patience: 2, min_delta: 0.1}\n"
                      : "optimizer: {name: sgd, lr: 0.5}\n"
                        "early_stop: {metric: loss, mode: max, patience: 2, min_delta: 0.1}\n");
    for (uint64_t at = 0; at < 6; at++) {
        ck_assert_int_eq(step(&trial).stop, at > 4);
        ck_assert_int_eq(report(&trial, "loss", sign * losses[at], at + 1, &error), PARAMD_OK);
    }
    ck_assert_int_eq(step(&trial).stop, 1);
    json_t *reply = trial_ask(&trial, "status", 0, 0);
    ck_assert(json_is_true(json_object_get(reply, "stop_advised")));
    json_decref(reply);
    trial_end(&trial);
}
END_TEST

/* Four steps with the gradient 1 in 8 elements, clipped to a norm of 1. */
START_TEST(history_says_what_the_last_steps_came_to)
{
    struct trial trial;
    struct paramd_error error = {0};

    begin(&trial, 2,
          "optimizer: {name: sgd, lr: 0.5}\nclip: {norm: 1}\nhistory: 3\n"
          "schedule: {name: step, step_size: 2, gamma: 0.5}\n");
    for (uint64_t at = 0; at < 4; at++) {
        step(&trial);
        if (at == 2) {
            ck_assert_int_eq(report(&trial, "val_loss", 0.25, at + 1, &error), PARAMD_OK);
        }
    }
    json_t *reply = trial_ask(&trial, "history", 0, 0);
    const json_t *rows = json_object_get(reply, "rows");
    ck_assert_uint_eq(json_array_size(rows), 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *row = json_array_get(rows, i);
        const json_t *metric = json_object_get(json_object_get(row, "metrics"), "val_loss");
        ck_assert_int_eq(json_integer_value(json_object_get(row, "step")), (json_int_t)i + 1);
        ck_assert_double_eq(json_number_value(json_object_get(row, "lr")), i == 0 ? 0.5 : 0.25);
        ck_assert_double_eq_tol(json_number_value(json_object_get(row, "grad_norm")), sqrt(8),
                                1e-6);
        ck_assert_double_eq_tol(json_number_value(json_object_get(row, "clipped_norm")), 1, 1e-6);
        ck_assert_int_eq(json_integer_value(json_object_get(row, "effective_batch")), 1);
        ck_assert(json_is_false(json_object_get(row, "skipped")));
        ck_assert(json_is_null(json_object_get(row, "loss")));
        ck_assert_int_eq(metric != NULL, i == 1);
    }
    json_decref(reply);
    reply = trial_ask(&trial, "history", 2, 1);
    rows = json_object_get(reply, "rows");
    ck_assert_uint_eq(json_array_size(rows), 1);
    ck_assert_int_eq(json_integer_value(json_object_get(json_array_get(rows, 0), "step")), 2);
    json_decref(reply);
    trial_end(&trial);
}
END_TEST

START_TEST(a_metric_counts_once_for_each_step)
{
    struct trial trial;
    struct paramd_error error = {0};

    begin(
        &trial, 1,
        "optimizer: {name: sgd, lr: 0.5}\nschedule: {name: plateau, metric: loss, patience: 1}\n");
    step(&trial);
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(report(&trial, "loss", 1 + i, 1, &error), PARAMD_OK);
        ck_assert_int_eq(report(&trial, "loss", 1 + i, 0, &error), PARAMD_OK);
    }
    ck_assert_double_eq(step(&trial).lr, 0.5);
    json_t *reply = trial_ask(&trial, "status", 0, 0);
    const json_t *metric = json_array_get(json_object_get(reply, "metrics"), 0);
    ck_assert_double_eq(json_number_value(json_object_get(metric, "value")), 1);
    ck_assert_int_eq(json_integer_value(json_object_get(metric, "step")), 1);
    json_decref(reply);
    trial_end(&trial);
}
END_TEST

START_TEST(a_wrong_metric_is_refused_with_what_is_allowed)
{
    struct trial trial;
    struct paramd_error error = {0};
    char name[16];

    begin(&trial, 1, "optimizer: {name: sgd}\n");
    ck_assert_int_eq(report(&trial, "", 1, 0, &error), PARAMD_EINVALID);
    ck_assert_int_eq(report(&trial, "loss", 1, 1, &error), PARAMD_ESTEP);
    ck_assert_ptr_nonnull(strstr(error.message, "'loss': of version 1, the newest is 0"));
    for (unsigned i = 0; i < PD_METRIC_COUNT_MAX; i++) {
        snprintf(name, sizeof name, "metric%u", i);
        ck_assert_int_eq(report(&trial, name, NAN, 0, &error), PARAMD_OK);
    }
    ck_assert_int_eq(report(&trial, "one more", 1, 0, &error), PARAMD_ELIMIT);
    step(&trial);
    trial_end(&trial);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rates");

    suite_add_loop(suite, the_momentum_of_sgd_follows_the_schedule_even_from_none, 3);
    suite_add(suite, beta1_of_adam_follows_the_schedule);
    suite_add_loop(suite, a_plateau_reduces_the_rate_from_the_next_step_on, 2);
    suite_add_loop(suite, early_stop_tells_workers_of_every_rank_and_forces_nobody, 4);
    suite_add(suite, history_says_what_the_last_steps_came_to);
    suite_add(suite, a_metric_counts_once_for_each_step);
    suite_add(suite, a_wrong_metric_is_refused_with_what_is_allowed);
    suite_add(suite, coming_rates_and_momenta_can_be_asked_for);
    return suite_run(suite);
}
