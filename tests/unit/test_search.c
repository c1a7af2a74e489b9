/* Searches for a learning rate: what they do to the training, which is nothing, and how they end.
 * Connection 3 is a worker's, 4 an administrator's, 5 another one's. */
#include "engine_fixture.h"

#include "common/heap.h"
#include "server/core/gradient_norms.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKER 3u
#define ADMIN 4u
#define OTHER 5u
#define RANK_1 41u

static struct engine_fixture f;
static json_t *curve;

static void begin(const char *config)
{
    fixture_init(&f, 0, 1, config);
    fixture_enlist(&f, WORKER, "a");
    fixture_greet(&f, ADMIN);
    fixture_greet(&f, OTHER);
}

static void teardown(void)
{
    json_decref(curve);
    curve = NULL;
    fixture_finish(&f);
}

/* ---- Commands ---- */

/* The JSON of the last reply, or the text of the last error, on that connection. */
static const char *say(pd_connection_id connection, const struct pd_admin *admin)
{
    static char text[65536];
    struct pd_message message = {.kind = PD_MESSAGE_ADMIN, .admin = *admin};

    fixture_say(&f, connection, &message, 0);
    const struct pd_message *last = fixture_last(&f, connection);
    if (last->kind == PD_MESSAGE_ERROR) {
        return last->error.text;
    }
    for (uint32_t i = 0; i < f.sent_count; i++) {
        const struct fixture_sent *sent = &f.sent[i];
        if (sent->connection == connection && sent->payload_bytes > 0) {
            ck_assert_uint_lt(sent->payload_bytes, sizeof text);
            memcpy(text, sent->payload, sent->payload_bytes);
            text[sent->payload_bytes] = '\0';
        }
    }
    fixture_forget(&f);
    fixture_sent_event(&f, connection);
    return text;
}

static const char *command(pd_connection_id connection, const char *name)
{
    struct pd_admin admin = {0};
    snprintf(admin.command, sizeof admin.command, "%s", name);
    return say(connection, &admin);
}

/* Ask for a search of so many rates from 0.001 to 1, not smoothed. */
static const char *find(uint32_t steps, const char *group)
{
    struct pd_admin admin = {.command = "lr-find", .setting_count = 6};

    snprintf(admin.target, sizeof admin.target, "%s", group);
    snprintf(admin.settings[0], sizeof admin.settings[0], "start=0.001");
    snprintf(admin.settings[1], sizeof admin.settings[1], "end=1");
    snprintf(admin.settings[2], sizeof admin.settings[2], "steps=%u", steps);
    snprintf(admin.settings[3], sizeof admin.settings[3], "smooth_f=1");
    snprintf(admin.settings[4], sizeof admin.settings[4], "skip_start=0");
    snprintf(admin.settings[5], sizeof admin.settings[5], "skip_end=0");
    const char *answer = say(ADMIN, &admin);
    fixture_work(&f);
    return answer;
}

/* The answer to lr-curve, kept until the end of the test. */
static const json_t *ask_curve(void)
{
    json_decref(curve);
    curve = json_loads(command(OTHER, "lr-curve"), 0, NULL);
    ck_assert_ptr_nonnull(curve);
    return curve;
}

static void expect_end(const char *end, const char *reason, size_t point_count)
{
    const json_t *answer = ask_curve();

    ck_assert(json_is_true(json_object_get(answer, "over")));
    ck_assert_str_eq(json_string_value(json_object_get(answer, "end")), end);
    ck_assert_msg(strstr(json_string_value(json_object_get(answer, "reason")), reason) != NULL,
                  "%s", json_string_value(json_object_get(answer, "reason")));
    ck_assert_uint_eq(json_array_size(json_object_get(answer, "rows")), point_count);
    ck_assert_int_eq(f.engine->leader->search.state, PD_SEARCH_OVER);
    ck_assert_ptr_null(f.engine->kept.snapshot.copy);
}

static double served(uint32_t element)
{
    return (double)pd_param_store_served(&f.engine->store)[element];
}

static uint64_t version(void)
{
    return f.engine->store.version;
}

/* One training step, or trial, of the worker. */
static void step(float element, double loss)
{
    fixture_push_loss(&f, WORKER, version(), element, 1, loss);
}

/* ---- The state ---- */

static const char *const configs[] = {
    "optimizer: {name: sgd, lr: 0.1, momentum: 0.9}\nlookahead: {k: 3, alpha: 0.5}\n",
    "optimizer: {name: adamw, lr: 0.1}\nema: {decay: 0.9, warmup: true}\n",
    "optimizer: {name: adam, lr: 0.1, state_bits: 8, amsgrad: false}\n",
    "optimizer: {name: lamb, lr: 0.1}\nswa: {start: 1, every: 2}\nclip: {norm: 0.5}\n",
    "optimizer: {name: adafactor, lr: 0.1, relative_step: false, beta1: 0.9}\n",
    ("optimizer: {name: sgd, lr: 0.1, momentum: 0.9}\n"
     "schedule: {name: onecycle, max_lr: 0.3, total_steps: 9}\n"),
    "optimizer: {name: nadam, lr: 0.1}\nloss_scale: {init_scale: 1024, growth_interval: 3}\n",
};
#define CONFIG_COUNT ((int)(sizeof configs / sizeof configs[0]))

#define TRAINED 8u
#define BEFORE 4u
#define TRIALS 5u

/* What each of TRAINED steps of training comes to. */
struct trained {
    float parameters[TRAINED][FIXTURE_ELEMENTS];
    float averages[TRAINED][FIXTURE_ELEMENTS];
    double lrs[TRAINED];
    double scales[TRAINED];
    uint64_t applied[TRAINED];
};

static void note(struct trained *trained, uint32_t at)
{
    const float *average = pd_param_store_average(&f.engine->store);

    memcpy(trained->parameters[at], pd_param_store_served(&f.engine->store),
           sizeof trained->parameters[at]);
    if (average != NULL) {
        memcpy(trained->averages[at], average, sizeof trained->averages[at]);
    }
    trained->lrs[at] = f.engine->lrs[0];
    trained->scales[at] = (double)f.engine->loss_scale.scale;
    trained->applied[at] = f.engine->leader->applied_steps;
}

/* The same steps, with a search after BEFORE of them, or without. */
static void train(struct trained *trained, const char *config, bool searches)
{
    memset(trained, 0, sizeof *trained);
    begin(config);
    for (uint32_t at = 0; at < TRAINED; at++) {
        if (searches && at == BEFORE) {
            ck_assert_ptr_nonnull(strstr(find(TRIALS, ""), "are tried from step 4 on"));
            for (uint32_t i = 0; i < TRIALS; i++) {
                step(3.5f + (float)i, 1);
            }
            ck_assert_int_eq(f.engine->leader->search.state, PD_SEARCH_OVER);
            ck_assert_mem_eq(pd_param_store_served(&f.engine->store),
                             trained->parameters[BEFORE - 1], sizeof trained->parameters[0]);
        }
        step(0.25f * (float)(at + 1), 1);
        note(trained, at);
    }
    ck_assert_uint_eq(version(), searches ? TRAINED + TRIALS : TRAINED);
}

START_TEST(training_goes_on_to_the_bit_as_if_there_had_been_no_search)
{
    static struct trained without;
    static struct trained with;

    train(&without, configs[_i], false);
    fixture_finish(&f);
    train(&with, configs[_i], true);
    ck_assert_mem_eq(&with, &without, sizeof with);
}
END_TEST

START_TEST(trials_leave_status_history_and_counts_alone)
{
    begin("optimizer: {name: sgd, lr: 0.1}\nclip: {norm: 1}\n");
    step(NAN, 5);
    step(1, 5);
    struct pd_leader before = *f.engine->leader;
    double norm = pd_step_norms(f.engine->step)->tensors[0];
    find(3, "");
    step(9, 1);
    ck_assert_ptr_nonnull(strstr(command(OTHER, "status"), "\"state\":\"finding lr\""));
    fixture_push_loss(&f, WORKER, version(), NAN, 1, 1);
    step(1, 1);
    const struct pd_leader *after = f.engine->leader;
    ck_assert_int_eq(after->search.state, PD_SEARCH_OVER);
    ck_assert_double_eq(after->loss, before.loss);
    ck_assert_uint_eq(after->effective_batch, before.effective_batch);
    ck_assert_uint_eq(after->applied_steps, before.applied_steps);
    ck_assert_str_eq(after->last_skip_reason, before.last_skip_reason);
    ck_assert_mem_eq(&after->outcome, &before.outcome, sizeof before.outcome);
    ck_assert_mem_eq(after->lrs, before.lrs, sizeof before.lrs);
    ck_assert_mem_eq(&pd_step_norms(f.engine->step)->tensors[0], &norm, sizeof norm);
    ck_assert_uint_eq(after->history.count, 2);
    ck_assert_uint_eq(f.engine->skipped_steps, 1);
    ck_assert_ptr_nonnull(strstr(command(OTHER, "status"), "\"state\":\"running\""));
    step(1, 4);
    ck_assert_uint_eq(after->history.count, 3);
    ck_assert_uint_eq(pd_history_at(&after->history, 2)->step, version() - 1);
}
END_TEST

/* ---- Rates ---- */

#define GROUPS                                                                                     \
    "optimizer: {name: sgd, lr: 0.5}\ngroups: [{name: flat, max_dims: 1, lr: 0.25}]\n"             \
    "lr_scaling: {rule: linear, base_batch: 2}\n"

/* "w" of group 0 has elements 0 to 5, "b" of the group has 6 and 7; the batch of 1 would halve the
 * rates of the training. */
START_TEST(groups_keep_their_ratio_or_one_is_swept_alone)
{
    static const char *const swept[] = {"", "default", "flat"};
    double w = 1;
    double b = 7;

    begin(GROUPS);
    find(4, swept[_i]);
    for (uint32_t i = 0; i < 3; i++) {
        double lr = 0.001 * pow(10, i);
        step(1, 1);
        w -= _i == 2 ? 0.25 : lr;
        b -= _i == 0 ? lr / 2 : _i == 1 ? 0.125 : lr;
        ck_assert_double_eq_tol(served(0), w, 1e-5);
        ck_assert_double_eq_tol(served(7), b + 1, 1e-5);
    }
    step(1, 1);
    ck_assert_double_eq(served(0), 1);
    ck_assert_double_eq(served(7), 8);
    const char *group = json_string_value(json_object_get(ask_curve(), "group"));
    ck_assert(_i == 0 ? group == NULL : strcmp(group, swept[_i]) == 0);
}
END_TEST

START_TEST(rates_are_told_while_they_are_tried)
{
    begin("optimizer: {name: sgd, lr: 0.5}\n");
    step(1, 1);
    find(4, "");
    for (uint32_t i = 0; i < 4; i++) {
        json_t *answer = json_loads(command(OTHER, "lr"), 0, NULL);
        double lr = json_real_value(json_object_get(answer, "lr"));
        ck_assert_double_eq_tol(lr, 0.001 * pow(10, i), 1e-12);
        json_decref(answer);
        step(1, 1);
        ck_assert_double_eq_tol(f.engine->lrs[0], i < 3 ? lr : 0.5, 1e-12);
    }
    ck_assert_ptr_nonnull(strstr(command(OTHER, "lr"), "\"lr\":0.5,"));
}
END_TEST

/* The loss of a step is that of the parameters before it; the last rate's step is not made. */
START_TEST(curve_has_a_point_for_each_rate_and_a_suggestion)
{
    static const double losses[] = {4, 3.9, 2, 1.5};

    begin("optimizer: {name: sgd, lr: 0.5}\n");
    step(1, 9);
    find(4, "");
    for (uint32_t i = 0; i < 4; i++) {
        ck_assert(json_is_false(json_object_get(ask_curve(), "over")));
        ck_assert_int_eq(json_integer_value(json_object_get(curve, "done")), i);
        ck_assert(json_is_null(json_object_get(curve, "version")));
        step(1, losses[i]);
    }
    expect_end("finished", "every learning rate had its turn", 4);
    for (uint32_t i = 0; i < 4; i++) {
        const json_t *row = json_array_get(json_object_get(curve, "rows"), i);
        ck_assert_double_eq(json_real_value(json_object_get(row, "loss")), losses[i]);
        ck_assert_double_eq_tol(json_real_value(json_object_get(row, "lr")), 0.001 * pow(10, i),
                                1e-12);
    }
    ck_assert_int_eq(json_integer_value(json_object_get(curve, "step")), 1);
    ck_assert_int_eq(json_integer_value(json_object_get(curve, "version")), 5);
    ck_assert_double_eq_tol(json_real_value(json_object_get(curve, "suggestion")), 0.1, 1e-12);
    ck_assert_double_eq_tol(json_real_value(json_object_get(curve, "lr_min")), 0.1, 1e-12);
    struct pd_admin admin = {.command = "lr-curve", .begin = 3};
    json_t *rest = json_loads(say(OTHER, &admin), 0, NULL);
    ck_assert_uint_eq(json_array_size(json_object_get(rest, "rows")), 1);
    json_decref(rest);
}
END_TEST

START_TEST(step_without_samples_uses_up_no_rate)
{
    begin("optimizer: {name: sgd, lr: 0.5}\n");
    find(3, "");
    step(1, 1);
    fixture_push(&f, WORKER, 1, 1, 0);
    ck_assert_uint_eq(f.engine->skipped_steps, 0);
    step(1, 1);
    step(1, 1);
    expect_end("finished", "", 3);
    ck_assert_uint_eq(version(), 4);
}
END_TEST

/* ---- Ends ---- */

START_TEST(divergence_ends_it_and_the_state_is_back)
{
    static const double losses[] = {8.1, NAN, INFINITY};
    static const char *const reasons[] = {
        "the loss is 8.1 at the learning rate 0.00464159, and smoothed over 4 times its least, 2",
        "the loss is nan at the learning rate 0.00464159",
        "the loss is inf at the learning rate 0.00464159"};

    begin("optimizer: {name: sgd, lr: 0.5}\n");
    find(10, "");
    step(1, 2);
    step(1, 7.9);
    ck_assert_double_lt(served(0), 1);
    step(1, losses[_i]);
    ck_assert_double_eq(served(0), 1);
    expect_end("diverged", reasons[_i], 2);
    step(1, 1);
    ck_assert_double_eq(served(0), 0.5);
}
END_TEST

START_TEST(gradient_that_is_not_finite_ends_it_unless_losses_are_scaled)
{
    begin(_i == 0 ? "optimizer: {name: sgd, lr: 0.5}\n"
                  : "optimizer: {name: sgd, lr: 0.5}\nloss_scale: {init_scale: 1024}\n");
    find(3, "");
    step(INFINITY, 1);
    step(1, 1);
    if (_i == 0) {
        expect_end("diverged", "the gradient of step 0, for the learning rate 0.001, is not finite",
                   1);
        return;
    }
    ck_assert_float_eq(f.engine->loss_scale.scale, 512);
    step(1, 1);
    expect_end("finished", "", 3);
    ck_assert_float_eq(f.engine->loss_scale.scale, 1024);
}
END_TEST

START_TEST(workers_that_give_no_loss_end_it_at_once)
{
    begin("optimizer: {name: sgd, lr: 0.5}\n");
    find(3, "");
    fixture_push(&f, WORKER, 0, 1, 1);
    expect_end("failed", "no worker gave the loss of step 0", 0);
    ck_assert_double_eq(served(0), 1);
}
END_TEST

START_TEST(cancelled_before_its_first_trial_it_costs_no_step)
{
    begin("optimizer: {name: sgd, lr: 0.5}\n");
    find(3, "");
    ck_assert_ptr_nonnull(strstr(command(OTHER, "lr-cancel"), "\"step\":0"));
    fixture_work(&f);
    expect_end("cancelled", "an administrator cancelled it", 0);
    step(1, 1);
    ck_assert_double_eq(served(0), 0.5);
    ck_assert_ptr_nonnull(strstr(command(OTHER, "lr-cancel"), "no search is under way"));
}
END_TEST

START_TEST(cancelled_later_it_ends_with_the_step_in_collection)
{
    begin("optimizer: {name: sgd, lr: 0.5}\n");
    find(9, "");
    step(1, 1);
    command(OTHER, "lr-cancel");
    fixture_work(&f);
    ck_assert_double_lt(served(0), 1);
    step(1, 1);
    expect_end("cancelled", "an administrator cancelled it", 1);
    ck_assert_double_eq(served(0), 1);
    ck_assert_uint_eq(version(), 2);
}
END_TEST

START_TEST(search_ends_with_the_connection_of_who_asked_and_no_other)
{
    begin("optimizer: {name: sgd, lr: 0.5}\n");
    find(9, "");
    step(1, 1);
    fixture_greet(&f, 6);
    fixture_close(&f, 6);
    step(1, 1);
    fixture_close(&f, ADMIN);
    step(1, 1);
    expect_end("cancelled", "the connection of the administrator who asked is closed", 2);
    ck_assert_double_eq(served(0), 1);
    fixture_greet(&f, ADMIN);
    find(2, "");
    step(1, 1);
    step(1, 1);
    expect_end("finished", "", 2);
}
END_TEST

/* ---- Others meanwhile ---- */

START_TEST(rates_are_not_set_by_hand_and_no_second_search_begins)
{
    struct pd_admin set_lr = {.command = "set-lr", .has_value = true, .value = 1};

    begin("optimizer: {name: sgd, lr: 0.5}\n");
    find(3, "");
    ck_assert_ptr_nonnull(strstr(say(OTHER, &set_lr), "set-lr: lr-find sets the learning rates"));
    ck_assert_ptr_nonnull(strstr(find(3, ""), "the search that began at step 0 is not over"));
    for (uint32_t i = 0; i < 3; i++) {
        step(1, 1);
    }
    expect_end("finished", "", 3);
    ck_assert_ptr_nonnull(strstr(say(OTHER, &set_lr), "\"step\":3"));
}
END_TEST

START_TEST(pause_holds_it_up)
{
    begin("optimizer: {name: sgd, lr: 0.5}\n");
    find(3, "");
    step(1, 1);
    command(OTHER, "pause");
    step(1, 1);
    ck_assert_uint_eq(version(), 1);
    command(OTHER, "resume");
    fixture_work(&f);
    ck_assert_uint_eq(version(), 2);
    step(1, 1);
    expect_end("finished", "", 3);
}
END_TEST

START_TEST(drain_has_the_state_back_first)
{
    begin("optimizer: {name: sgd, lr: 0.5}\n");
    find(9, "");
    step(1, 1);
    if (_i == 1) {
        fixture_enlist(&f, 6, "b");
        fixture_push_loss(&f, WORKER, 1, 1, 1, 1);
    }
    command(OTHER, _i == 2 ? "stop" : "drain");
    fixture_work(&f);
    if (_i == 1) {
        ck_assert(!f.exited); /* it waits for the step that runs */
        fixture_push_loss(&f, 6, 1, 1, 1, 1);
    }
    ck_assert(f.exited);
    ck_assert_double_eq(served(0), 1);
    ck_assert_uint_eq(version(), 2);
}
END_TEST

START_TEST(drain_before_the_first_trial_needs_nothing_back)
{
    begin("optimizer: {name: sgd, lr: 0.5}\n");
    find(9, "");
    command(OTHER, "drain");
    fixture_work(&f);
    ck_assert(f.exited);
    ck_assert_uint_eq(version(), 0);
}
END_TEST

START_TEST(workers_come_and_go_and_the_last_one_ends_it)
{
    struct pd_message leave = {.kind = PD_MESSAGE_LEAVE, .leave = {.step = 4}};
    struct pd_admin evict = {.command = "evict", .target = "b"};

    begin("optimizer: {name: sgd, lr: 0.5}\n");
    find(9, "");
    step(1, 1);
    fixture_enlist(&f, 6, "b");
    fixture_push_loss(&f, WORKER, 1, 1, 1, 1);
    ck_assert_uint_eq(version(), 1);
    fixture_push_loss(&f, 6, 1, 1, 1, 2);
    ck_assert_uint_eq(version(), 2);
    ck_assert_double_eq_tol(f.engine->leader->search.test.points[1].loss, 1.5, 1e-15);
    if (_i == 0) {
        say(OTHER, &evict);
    } else {
        fixture_close(&f, 6);
        fixture_wait(&f, 60000);
    }
    step(1, 1);
    step(1, 1);
    ck_assert_double_lt(served(0), 1);
    fixture_say(&f, WORKER, &leave, 0);
    fixture_work(&f);
    expect_end("failed", "no worker is left", 4);
    ck_assert_double_eq(served(0), 1);
    ck_assert_uint_eq(version(), 5);
    fixture_enlist(&f, 7, "c");
    ck_assert_uint_eq(fixture_last(&f, 7)->registered.step, 5);
    fixture_push(&f, 7, 5, 1, 1);
    ck_assert_double_eq(served(0), 0.5);
}
END_TEST

START_TEST(metrics_of_trials_change_nothing_and_those_of_the_training_count)
{
    struct pd_message metric = {.kind = PD_MESSAGE_METRIC, .metric = {"loss", 1, 1}};
    const struct pd_leader *leader;

    begin("optimizer: {name: sgd, lr: 0.5}\n"
          "schedule: {name: plateau, metric: loss, patience: 0}\n");
    leader = f.engine->leader;
    step(1, 1);
    fixture_say(&f, WORKER, &metric, 0);
    ck_assert(!fixture_last(&f, WORKER)->metric_stored.duplicate);
    find(3, "");
    step(1, 1);
    metric.metric = (struct pd_metric){"loss", 2, 2};
    fixture_say(&f, WORKER, &metric, 0);
    ck_assert(fixture_last(&f, WORKER)->metric_stored.duplicate);
    ck_assert_uint_eq(leader->plateaus[0].reductions, 0);
    metric.metric = (struct pd_metric){"other", 2, 1};
    fixture_say(&f, WORKER, &metric, 0);
    ck_assert(!fixture_last(&f, WORKER)->metric_stored.duplicate);
    step(1, 1);
    step(1, 1);
    metric.metric = (struct pd_metric){"loss", 2, 3};
    fixture_say(&f, WORKER, &metric, 0);
    ck_assert(fixture_last(&f, WORKER)->metric_stored.duplicate);
    metric.metric = (struct pd_metric){"loss", 2, 4};
    fixture_say(&f, WORKER, &metric, 0);
    ck_assert(!fixture_last(&f, WORKER)->metric_stored.duplicate);
    ck_assert_uint_eq(leader->plateaus[0].reductions, 1);
}
END_TEST

/* A guest is still sent version 0 when the search ends with version 2, whose memory it is. */
START_TEST(restore_waits_for_nobody_who_reads_an_old_version)
{
    struct pd_message pull = {.kind = PD_MESSAGE_PULL};

    begin("optimizer: {name: sgd, lr: 0.5}\n");
    find(2, "");
    fixture_greet(&f, 6);
    fixture_say(&f, 6, &pull, 0);
    step(1, 1);
    step(1, 1);
    ck_assert(f.closed[6]);
    ck_assert_uint_eq(version(), 1);
    fixture_close(&f, 6);
    fixture_work(&f);
    ck_assert_uint_eq(version(), 2);
    expect_end("finished", "", 2);
    ck_assert_double_eq(served(0), 1);
}
END_TEST

/* ---- Refusals ---- */

START_TEST(search_that_cannot_be_made_now_is_refused)
{
    struct pd_admin wrong = {.command = "lr-find", .setting_count = 1, .settings = {"steps=1"}};

    fixture_init(&f, 0, 1, "workers: {expected: 2}\noptimizer: {name: sgd, lr: 0.5}\n");
    fixture_greet(&f, ADMIN);
    ck_assert_ptr_nonnull(strstr(command(ADMIN, "lr-curve"), "there was no search"));
    ck_assert_ptr_nonnull(strstr(find(3, ""), "no worker trains now"));
    fixture_enlist(&f, WORKER, "a");
    ck_assert_ptr_nonnull(strstr(find(3, ""), "no worker trains now"));
    fixture_enlist(&f, 6, "b");
    ck_assert_ptr_nonnull(strstr(find(3, "none"), "lr-find: no group is named 'none'"));
    ck_assert_ptr_nonnull(strstr(say(ADMIN, &wrong), "lr-find steps=1: steps: 1: out of range"));
    command(ADMIN, "pause");
    ck_assert_ptr_nonnull(strstr(find(3, ""), "lr-find: the daemon is paused"));
    command(ADMIN, "resume");
    fixture_push(&f, WORKER, 0, 1, 1);
    command(ADMIN, "drain");
    ck_assert_ptr_nonnull(strstr(find(3, ""), "lr-find: the daemon is draining"));
    fixture_push(&f, 6, 0, 1, 1);
    ck_assert(f.exited);
}
END_TEST

START_TEST(search_that_finds_no_memory_for_its_points_is_refused)
{
    struct pd_range_options options = {.start = 0.1, .end = 1, .steps = 10, .smooth_f = 1};
    struct pd_error error = {0};

    begin("optimizer: {name: sgd, lr: 0.5}\n");
    pd_heap_fail_at(0);
    ck_assert_int_eq(pd_search_begin(f.engine, &options, "", &error), PD_ENOMEM);
    pd_heap_fail_at(-1);
    ck_assert_str_eq(error.message, "lr-find: out of memory for 10 points");
    step(1, 1);
    ck_assert_double_eq(served(0), 0.5);
}
END_TEST

/* ---- Other ranks ---- */

static void begin_as(uint32_t rank)
{
    struct pd_error error = {0};

    fixture_init(&f, rank, 2, "optimizer: {name: sgd, lr: 0.5}\n");
    ck_assert_int_eq(pd_engine_load_model(f.engine, &f.model, &error), PD_OK);
}

/* Rank 1 has carried out the order that the search waits for, or says why it could not. */
static void report_executed(const char *text)
{
    struct pd_message report = {
        .kind = PD_MESSAGE_REPORT,
        .report = {.kind = PD_REPORT_EXECUTED, .order_index = f.engine->leader->search.wait_index}};

    snprintf(report.report.text, sizeof report.report.text, "%s", text);
    fixture_say(&f, RANK_1, &report, 0);
    fixture_work(&f);
}

START_TEST(trials_wait_until_every_rank_keeps_its_state)
{
    begin_as(0);
    fixture_link_ranks(&f);
    fixture_enlist(&f, WORKER, "a");
    fixture_greet(&f, ADMIN);
    find(3, "");
    fixture_forget(&f);
    fixture_push_loss(&f, WORKER, 0, 1, 1, 1);
    ck_assert_ptr_null(f.collective);
    ck_assert_uint_eq(fixture_count(&f, RANK_1, PD_MESSAGE_ORDER), 0);
    struct pd_message report = {
        .kind = PD_MESSAGE_REPORT,
        .report = {.kind = PD_REPORT_EXECUTED, .order_index = f.engine->leader->search.wait_index}};
    fixture_say(&f, RANK_1, &report, 0);
    fixture_work(&f);
    ck_assert_int_eq(fixture_last(&f, RANK_1)->order.kind, PD_ORDER_STEP);
    ck_assert(fixture_last(&f, RANK_1)->order.trial);
    ck_assert_double_eq(fixture_last(&f, RANK_1)->order.lrs[0], 0.001);
    ck_assert_ptr_nonnull(f.collective);
}
END_TEST

START_TEST(rank_without_memory_ends_it_before_a_step_is_lost)
{
    begin_as(0);
    fixture_link_ranks(&f);
    fixture_enlist(&f, WORKER, "a");
    fixture_greet(&f, ADMIN);
    find(3, "");
    report_executed("out of memory for a snapshot of 5 bytes");
    ck_assert_int_eq(fixture_last(&f, RANK_1)->order.kind, PD_ORDER_FORGET);
    report_executed("");
    fixture_greet(&f, OTHER);
    expect_end("failed", "rank 1 at a:2: out of memory for a snapshot of 5 bytes", 0);
    fixture_push_loss(&f, WORKER, 0, 1, 1, 1);
    ck_assert_int_eq(fixture_last(&f, RANK_1)->order.kind, PD_ORDER_STEP);
    ck_assert(!fixture_last(&f, RANK_1)->order.trial);
}
END_TEST

START_TEST(rank_without_memory_says_so)
{
    struct pd_event event = {.kind = PD_EVENT_OPENED, .outgoing = true, .peer = "a:1"};
    struct pd_message order = {.kind = PD_MESSAGE_ORDER, .order = {.kind = PD_ORDER_SNAPSHOT}};

    begin_as(1);
    event.now_ms = f.now_ms;
    pd_engine_step(f.engine, &event, &f.actions);
    pd_heap_fail_at(_i + 1); /* the first is the order's */
    fixture_say(&f, 0, &order, 0);
    pd_heap_fail_at(-1);
    fixture_work(&f);
    ck_assert_int_eq(fixture_last(&f, 0)->report.kind, PD_REPORT_EXECUTED);
    ck_assert_ptr_nonnull(
        strstr(fixture_last(&f, 0)->report.text, "out of memory for a snapshot of"));
    order.order = (struct pd_order){.index = 1, .kind = PD_ORDER_FORGET};
    fixture_say(&f, 0, &order, 0);
    order.order = (struct pd_order){.index = 2, .kind = PD_ORDER_SNAPSHOT};
    fixture_say(&f, 0, &order, 0);
    fixture_work(&f);
    ck_assert_uint_eq(fixture_last(&f, 0)->report.order_index, 2);
    ck_assert_str_eq(fixture_last(&f, 0)->report.text, "");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("search");
    TCase *tests = tcase_create("search");

    tcase_add_checked_fixture(tests, NULL, teardown);
    tcase_add_loop_test(tests, training_goes_on_to_the_bit_as_if_there_had_been_no_search, 0,
                        CONFIG_COUNT);
    tcase_add_test(tests, trials_leave_status_history_and_counts_alone);
    tcase_add_loop_test(tests, groups_keep_their_ratio_or_one_is_swept_alone, 0, 3);
    tcase_add_test(tests, rates_are_told_while_they_are_tried);
    tcase_add_test(tests, curve_has_a_point_for_each_rate_and_a_suggestion);
    tcase_add_test(tests, step_without_samples_uses_up_no_rate);
    tcase_add_loop_test(tests, divergence_ends_it_and_the_state_is_back, 0, 3);
    tcase_add_loop_test(tests, gradient_that_is_not_finite_ends_it_unless_losses_are_scaled, 0, 2);
    tcase_add_test(tests, workers_that_give_no_loss_end_it_at_once);
    tcase_add_test(tests, cancelled_before_its_first_trial_it_costs_no_step);
    tcase_add_test(tests, cancelled_later_it_ends_with_the_step_in_collection);
    tcase_add_test(tests, search_ends_with_the_connection_of_who_asked_and_no_other);
    tcase_add_test(tests, rates_are_not_set_by_hand_and_no_second_search_begins);
    tcase_add_test(tests, pause_holds_it_up);
    tcase_add_loop_test(tests, drain_has_the_state_back_first, 0, 3);
    tcase_add_test(tests, drain_before_the_first_trial_needs_nothing_back);
    tcase_add_loop_test(tests, workers_come_and_go_and_the_last_one_ends_it, 0, 2);
    tcase_add_test(tests, metrics_of_trials_change_nothing_and_those_of_the_training_count);
    tcase_add_test(tests, restore_waits_for_nobody_who_reads_an_old_version);
    tcase_add_test(tests, search_that_cannot_be_made_now_is_refused);
    tcase_add_test(tests, search_that_finds_no_memory_for_its_points_is_refused);
    tcase_add_test(tests, trials_wait_until_every_rank_keeps_its_state);
    tcase_add_test(tests, rank_without_memory_ends_it_before_a_step_is_lost);
    tcase_add_loop_test(tests, rank_without_memory_says_so, 0, 2);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
