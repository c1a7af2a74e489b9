/* Every command of paramctl against a daemon with workers, as text and as JSON; what changes the
 * training changes it at the step that was named. */
#include "tests/support/cluster.h"
#include "tests/support/suite.h"
#include "tests/support/training.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOLERANCE 2e-5
#define STEP_COUNT 10u
#define CHANGE_STEP 4u
#define OTHER 2u

#define WORDS(...)                                                                                 \
    (const char *const[])                                                                          \
    {                                                                                              \
        __VA_ARGS__, NULL                                                                          \
    }

static struct cluster cluster;
static struct training *training;

/* Two workers, which have done CHANGE_STEP steps and wait. The tests loop over 1 and 2 ranks. */
static void start(int which)
{
    static const char *addresses[2];
    struct training_options options;

    cluster_start(&cluster, (uint32_t)which + 1,
                  "aggregation: direct\nblock_size: 64\nworkers: {expected: 2}\n"
                  "optimizer: {name: sgd, lr: 0.1}\nclip: {norm: 100}\n"
                  "schedule: {name: linear, start_factor: 0.5, steps: 100}\n"
                  "groups: [{name: vectors, match: [\"*.bias\", \"norm.*\"], lr: 0.2,"
                  " weight_decay: 0.001}]\n");
    addresses[0] = cluster.addresses[0];
    addresses[1] = cluster.addresses[cluster.rank_count - 1];
    training_options_init(&options, addresses, 2, STEP_COUNT);
    options.address_count = 2;
    training = training_start(&options);
    training_advance(training, CHANGE_STEP);
}

static void end(void)
{
    training_finish(training, NULL);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
}

static json_t *ask(const char *const *words)
{
    char *text = cluster_ask(&cluster, words);
    json_t *answer = json_loads(text, 0, NULL);

    ck_assert_msg(json_is_object(answer), "%s: %s", words[0], text);
    free(text);
    return answer;
}

static long long integer_of(const json_t *object, const char *key)
{
    ck_assert_msg(json_is_integer(json_object_get(object, key)), "%s", key);
    return (long long)json_integer_value(json_object_get(object, key));
}

static double real_of(const json_t *object, const char *key)
{
    ck_assert_msg(json_is_number(json_object_get(object, key)), "%s", key);
    return json_number_value(json_object_get(object, key));
}

static const char *text_of(const json_t *object, const char *key)
{
    ck_assert_msg(json_is_string(json_object_get(object, key)), "%s", key);
    return json_string_value(json_object_get(object, key));
}

/* Run paramctl as a person would; the output must hold every one of `texts`. */
static void expect_text_at(uint32_t rank, const char *const *words, const char *const *texts)
{
    struct process_result result = cluster_paramctl(cluster.addresses[rank], words);

    ck_assert_msg(result.code == 0, "%s: %s", words[0], result.errors);
    ck_assert_str_eq(result.errors, "");
    for (const char *const *text = texts; *text != NULL; text++) {
        ck_assert_msg(strstr(result.output, *text) != NULL, "no '%s' in '%s'", *text,
                      result.output);
    }
    process_result_finish(&result);
}

/* Any rank will do as the server: it names rank 0, and paramctl goes there. */
static void expect_text(const char *const *words, const char *const *texts)
{
    expect_text_at(cluster.rank_count - 1, words, texts);
}

/* It must fail with that code and one line that says `text`. */
static void expect_refused(const char *const *words, int code, const char *text)
{
    struct process_result result = cluster_paramctl(cluster.addresses[0], words);

    ck_assert_msg(result.code == code, "%s: exit code %d", words[0], result.code);
    ck_assert_msg(strstr(result.errors, text) != NULL, "no '%s' in '%s'", text, result.errors);
    const char *line_end = strchr(result.errors, '\n');
    ck_assert_msg(line_end != NULL && line_end[1] == '\0', "not one line: '%s'", result.errors);
    ck_assert_str_eq(result.output, "");
    process_result_finish(&result);
}

static double lr_after(uint64_t step)
{
    return 0.1 * (0.5 + 0.5 * (double)step / 100.0);
}

/* ---- Questions ---- */

START_TEST(status_holds_every_key_of_the_contract)
{
    static const char *const keys[] = {
        "state",      "step",       "version",         "lr",
        "groups",     "shards",     "aggregation",     "mode",
        "workers",    "loss",       "effective_batch", "grad_norm",
        "clip_scale", "loss_scale", "skipped_steps",   "last_skip_reason",
        "checkpoint", "uptime_s"};

    start(_i);
    json_t *status = ask(WORDS("status"));
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        ck_assert_msg(json_object_get(status, keys[i]) != NULL, "no %s", keys[i]);
    }
    ck_assert_str_eq(text_of(status, "state"), "running");
    ck_assert_str_eq(text_of(status, "aggregation"), "direct");
    ck_assert_str_eq(text_of(status, "mode"), "sync");
    ck_assert_int_eq(integer_of(status, "step"), CHANGE_STEP);
    ck_assert_int_eq(integer_of(status, "version"), CHANGE_STEP);
    ck_assert_int_eq(integer_of(status, "shards"), _i + 1);
    ck_assert_int_eq(integer_of(status, "skipped_steps"), 0);
    ck_assert_int_eq(integer_of(status, "effective_batch"),
                     (long long)(reference_samples(0, CHANGE_STEP - 1, 0) +
                                 reference_samples(1, CHANGE_STEP - 1, 0)));
    ck_assert_double_eq_tol(real_of(status, "lr"), lr_after(CHANGE_STEP), 1e-12);
    ck_assert_double_eq_tol(real_of(status, "loss"), 1.0 / CHANGE_STEP, 1e-12);
    ck_assert_double_eq(real_of(status, "clip_scale"), 1.0);
    ck_assert_double_gt(real_of(status, "grad_norm"), 1.0);
    ck_assert_double_ge(real_of(status, "uptime_s"), 0.0);
    ck_assert(json_is_null(json_object_get(status, "last_skip_reason")));

    json_t *groups = json_object_get(status, "groups");
    ck_assert_uint_eq(json_array_size(groups), 2);
    ck_assert_str_eq(text_of(json_array_get(groups, 1), "name"), "vectors");
    ck_assert_double_eq_tol(real_of(json_array_get(groups, 1), "lr"), 2 * lr_after(CHANGE_STEP),
                            1e-12);
    ck_assert_double_eq(real_of(json_array_get(groups, 1), "weight_decay"), 0.001);
    json_t *workers = json_object_get(status, "workers");
    ck_assert_uint_eq(json_array_size(workers), 2);
    ck_assert_str_eq(text_of(json_array_get(workers, 0), "state"), "active");
    ck_assert_int_eq(integer_of(json_array_get(workers, 0), "step"), CHANGE_STEP);
    ck_assert_int_gt(integer_of(json_array_get(workers, 0), "samples"), 0);
    json_decref(status);
    end();
}
END_TEST

START_TEST(questions_are_answered_as_json)
{
    start(_i);
    json_t *answer = ask(WORDS("lr"));
    ck_assert_double_eq_tol(real_of(answer, "lr"), lr_after(CHANGE_STEP), 1e-12);
    json_decref(answer);
    answer = ask(WORDS("step"));
    ck_assert_int_eq(integer_of(answer, "step"), CHANGE_STEP);
    ck_assert_int_eq(integer_of(answer, "version"), CHANGE_STEP);
    json_decref(answer);
    answer = ask(WORDS("--begin", "7", "--count", "3", "schedule"));
    ck_assert_int_eq(integer_of(answer, "begin"), 7);
    json_t *rates = json_object_get(answer, "lrs");
    ck_assert_uint_eq(json_array_size(rates), 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *row = json_array_get(rates, i);
        ck_assert_double_eq_tol(json_real_value(json_array_get(row, 0)), lr_after(7 + i), 1e-12);
    }
    json_decref(answer);
    answer = ask(WORDS("workers"));
    ck_assert_uint_eq(json_array_size(json_object_get(answer, "workers")), 2);
    json_decref(answer);
    answer = ask(WORDS("tensors"));
    json_t *tensors = json_object_get(answer, "tensors");
    ck_assert_uint_eq(json_array_size(tensors), REFERENCE_TENSOR_COUNT);
    for (uint32_t i = 0; i < REFERENCE_TENSOR_COUNT; i++) {
        const json_t *tensor = json_array_get(tensors, i);
        ck_assert_str_eq(text_of(tensor, "name"), reference_tensors[i].name);
        ck_assert_uint_eq(json_array_size(json_object_get(tensor, "shape")),
                          reference_tensors[i].dimension_count);
        ck_assert_str_eq(text_of(tensor, "group"),
                         reference_tensors[i].dimension_count == 1 ? "vectors" : "default");
    }
    json_decref(answer);
    end();
}
END_TEST

START_TEST(questions_are_answered_as_text_through_any_rank)
{
    start(_i);
    expect_text(WORDS("status"), WORDS("state", "running", "step", "4 (version 4)", "learning rate",
                                       "0.052", "vectors", "worker 00001", "active"));
    expect_text(WORDS("lr"), WORDS("learning rate", "0.052", "vectors", "0.104"));
    expect_text(WORDS("step"), WORDS("step", "4"));
    expect_text(WORDS("--count", "2", "schedule"), WORDS("default", "vectors", "0.0525"));
    expect_text(WORDS("workers"), WORDS("worker 00000", "worker 00001", "active"));
    expect_text(WORDS("tensors"), WORDS("hidden.weight", "[41, 37]", "1517"));
    end();
}
END_TEST

/* ---- Commands ---- */

static double changed_lr(uint64_t step, uint64_t element)
{
    uint64_t begin = 0;
    uint32_t tensor = 0;

    while (element >= begin + reference_tensors[tensor].element_count) {
        begin += reference_tensors[tensor++].element_count;
    }
    double base = reference_tensors[tensor].dimension_count == 1 ? 0.2 : 0.1;
    if (step < CHANGE_STEP) {
        return base / 0.1 * lr_after(step);
    }
    if (step < CHANGE_STEP + 2) {
        return base == 0.2 ? 0.06 : 0.03;
    }
    if (step < CHANGE_STEP + 4) {
        return base == 0.2 ? 0.5 : 0.03;
    }
    return base / 0.1 * lr_after(step);
}

START_TEST(set_lr_takes_effect_at_the_step_it_names)
{
    static double expected[REFERENCE_ELEMENT_COUNT];
    float values[REFERENCE_ELEMENT_COUNT];
    struct reference_training reference = {.rule = REFERENCE_SGD,
                                           .clip_norm_type = 2.0,
                                           .lr_of = changed_lr,
                                           .worker_count = 2,
                                           .micro_batch_count = 1,
                                           .step_count = STEP_COUNT};

    start(_i);
    expect_text(WORDS("set-lr", "0.03"), WORDS("0.03 from step 4 on"));
    training_advance(training, CHANGE_STEP + 2);
    json_t *answer = ask(WORDS("--group", "vectors", "set-lr", "0.5"));
    ck_assert_int_eq(integer_of(answer, "step"), CHANGE_STEP + 2);
    json_decref(answer);
    answer = ask(WORDS("lr"));
    ck_assert_double_eq(real_of(answer, "lr"), 0.03);
    json_decref(answer);
    training_advance(training, CHANGE_STEP + 4);
    expect_text(WORDS("set-lr", "schedule"), WORDS("schedule", "from step 8 on"));
    training_finish(training, values);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
    reference_train(&reference, expected);
    /* The decay of the vectors, a thousandth of their value, is beyond the plain computation. */
    ck_assert_double_lt(reference_error(values, expected), 5e-3);
    for (uint64_t i = 0; i < reference_tensors[0].element_count; i++) {
        ck_assert_double_eq_tol(values[i], expected[i], TOLERANCE);
    }
}
END_TEST

START_TEST(no_step_closes_between_pause_and_resume)
{
    start(_i);
    expect_text(WORDS("pause"), WORDS("step 4"));
    training_allow(training, STEP_COUNT);
    for (int i = 0; i < 3; i++) {
        json_t *status = ask(WORDS("status"));
        ck_assert_str_eq(text_of(status, "state"), "paused");
        ck_assert_int_eq(integer_of(status, "step"), CHANGE_STEP);
        json_decref(status);
    }
    expect_text(WORDS("resume"), WORDS("step 4"));
    training_advance(training, STEP_COUNT);
    end();
}
END_TEST

START_TEST(evicted_worker_is_told_and_the_others_go_on)
{
    struct training_options options;
    struct paramd_error error;
    const char *address = cluster.addresses[0];

    start(_i);
    training_options_init(&options, &address, 1, STEP_COUNT);
    options.worker_begin = OTHER;
    struct training *other = training_start(&options);
    training_allow(training, STEP_COUNT);
    expect_refused(WORDS("evict", "worker 00009"), 1, "no worker has the name");
    json_t *answer = ask(WORDS("evict", "worker 00002"));
    ck_assert_ptr_nonnull(strstr(text_of(answer, "text"), "'worker 00002' is evicted at step 4"));
    json_decref(answer);
    training_advance(training, STEP_COUNT);
    ck_assert_int_eq(training_finish_failed(other, 0, &error), PARAMD_EIDENTITY);
    ck_assert_msg(strstr(error.message, "an administrator evicted it") != NULL, "%s",
                  error.message);
    end();
}
END_TEST

/* Workers are told, every rank exits, and the job's exit code is 0. */
START_TEST(drain_and_stop_tell_workers_and_exit_in_good_order)
{
    struct paramd_error error;

    start(_i % 2);
    expect_text(WORDS(_i < 2 ? "drain" : "stop"), WORDS("every rank exits"));
    ck_assert_int_eq(process_wait(cluster.process), 0);
    ck_assert_int_eq(training_finish_failed(training, 0, &error), PARAMD_EDRAINING);
    ck_assert_msg(strstr(error.message, "drain") != NULL, "%s", error.message);
    cluster_stop(&cluster);
}
END_TEST

/* ---- Refusals ---- */

START_TEST(what_cannot_be_done_is_refused_in_one_line)
{
    start(_i);
    expect_refused(WORDS("checkpoint"), 1, "this version keeps no checkpoints");
    expect_refused(WORDS("--group", "matrices", "set-lr", "1"), 1, "no group is named 'matrices'");
    expect_refused(WORDS("--", "set-lr", "-1"), 2, "-1");
    expect_refused(WORDS("set-lr"), 2, "needs one argument");
    expect_refused(WORDS("reboot"), 2, "no such command");
    expect_refused(WORDS("--count", "100000", "schedule"), 1, "allowed: 1 to 10000");
    end();
}
END_TEST

START_TEST(absent_daemon_is_named)
{
    struct process_result result =
        cluster_paramctl("127.0.0.1:1", WORDS("--timeout", "5", "status"));

    ck_assert_int_eq(result.code, 1);
    ck_assert_msg(strstr(result.errors, "127.0.0.1:1") != NULL, "%s", result.errors);
    process_result_finish(&result);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("admin");

    suite_add_loop(suite, status_holds_every_key_of_the_contract, 2);
    suite_add_loop(suite, questions_are_answered_as_json, 2);
    suite_add_loop(suite, questions_are_answered_as_text_through_any_rank, 2);
    suite_add_loop(suite, set_lr_takes_effect_at_the_step_it_names, 2);
    suite_add_loop(suite, no_step_closes_between_pause_and_resume, 2);
    suite_add_loop(suite, evicted_worker_is_told_and_the_others_go_on, 2);
    suite_add_loop(suite, drain_and_stop_tell_workers_and_exit_in_good_order, 4);
    suite_add_loop(suite, what_cannot_be_done_is_refused_in_one_line, 2);
    suite_add(suite, absent_daemon_is_named);
    return suite_run(suite);
}
