/* Searches for a learning rate with live workers, through paramctl: what they show, how they end,
 * and that the training goes on to the bit as if there had been none. */
#include "tests/support/cluster.h"
#include "tests/support/suite.h"
#include "tests/support/training.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WORKERS 2u
#define BEFORE 4u /* steps */
#define TRIALS 7u
#define STEPS 9u /* without trials */

#define WORDS(...)                                                                                 \
    (const char *const[])                                                                          \
    {                                                                                              \
        __VA_ARGS__, NULL                                                                          \
    }

static struct cluster cluster;
static struct training *training;
static struct training_options options;

/* Workers that have done BEFORE steps and wait; `config` is added. */
static void start(uint32_t rank_count, const char *aggregation, const char *config)
{
    static const char *addresses[WORKERS];
    double (*loss_of)(uint64_t) = options.loss_of;

    cluster_start(&cluster, rank_count,
                  "aggregation: %s\nblock_size: 64\nworkers: {expected: 2}\n%s", aggregation,
                  config);
    addresses[0] = cluster.addresses[0];
    addresses[1] = cluster.addresses[rank_count - 1];
    training_options_init(&options, addresses, WORKERS, STEPS + TRIALS);
    options.address_count = WORKERS;
    options.loss_of = loss_of;
    options.trial_begin = BEFORE;
    options.trial_count = TRIALS;
    training = training_start(&options);
    training_advance(training, BEFORE);
}

static void end(void)
{
    training_finish(training, NULL);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
}

/* paramctl lr-find through the last rank, with rates from 1e-3 to 1 and more `words`. */
static struct process *find(const char *const *words)
{
    const char *argv[32] = {PARAMCTL_PROGRAM, "--server", cluster.addresses[cluster.rank_count - 1],
                            "lr-find",        "--start",  "1e-3",
                            "--end",          "1"};
    size_t count = 8;

    for (; *words != NULL; words++) {
        argv[count++] = *words;
    }
    return process_start(argv);
}

static json_t *curve(void)
{
    char *text = cluster_ask(&cluster, WORDS("lr-curve"));
    json_t *answer = json_loads(text, 0, NULL);

    ck_assert_msg(json_is_object(answer), "%s", text);
    free(text);
    return answer;
}

/* Wait until the daemon's search is over, and check how it ended. */
static void await_end(const char *end)
{
    int64_t deadline_ms = process_now_ms() + PROCESS_DEADLINE_MS;
    bool over = false;

    while (!over) {
        json_t *answer = curve();
        over = json_is_true(json_object_get(answer, "over"));
        ck_assert_int_lt(process_now_ms(), deadline_ms);
        ck_assert(!over || strcmp(json_string_value(json_object_get(answer, "end")), end) == 0);
        json_decref(answer);
    }
}

/* Wait for the end of paramctl, and give its output, or its errors if it is to fail; for free. */
static char *await_exit(struct process *process, int code)
{
    struct process_result result = process_end(process);

    ck_assert_msg(result.code == code, "exit code %d: %s", result.code, result.errors);
    if (code == 0) {
        ck_assert_str_eq(result.errors, "");
        free(result.errors);
        return result.output;
    }
    free(result.output);
    return result.errors;
}

static void expect(const char *text, const char *const *parts)
{
    for (; *parts != NULL; parts++) {
        ck_assert_msg(strstr(text, *parts) != NULL, "no '%s' in '%s'", *parts, text);
    }
}

#define STATEFUL                                                                                   \
    "optimizer: {name: adamw, lr: 0.01}\nema: {decay: 0.9}\nlookahead: {k: 2}\n"                   \
    "schedule: {name: cosine, t_max: 9}\nclip: {norm: 1}\n"

/* The tests loop over 1, 2 and 3 ranks in both aggregations. */
static const char *const aggregations[] = {"direct", "allreduce"};

START_TEST(training_goes_on_to_the_bit_as_if_there_had_been_no_search)
{
    float expected[REFERENCE_ELEMENT_COUNT];
    float values[REFERENCE_ELEMENT_COUNT];
    float before[REFERENCE_ELEMENT_COUNT];
    struct training_options plain;

    start(1 + (uint32_t)_i / 2, aggregations[_i % 2], STATEFUL);
    training_values(training, 0, before);
    struct process *paramctl =
        find(WORDS("--steps", "7", "--smooth-f", "1", "--skip-start", "0", "--skip-end", "0"));
    process_await_output(paramctl, "7 learning rates from 0.001 to 1 are tried from step 4 on");
    training_advance(training, BEFORE + TRIALS - 1);
    training_values(training, 0, values);
    ck_assert_mem_ne(values, before, sizeof values);
    training_advance(training, BEFORE + TRIALS);
    char *output = await_exit(paramctl, 0);
    expect(output, WORDS("finished: every learning rate had its turn",
                         "version 11 has the state of version 4 again", "suggestion      0.001 ("));
    free(output);
    training_values(training, 0, values);
    ck_assert_mem_eq(values, before, sizeof values);
    training_finish(training, values);
    cluster_drain(&cluster);
    cluster_stop(&cluster);

    cluster_start(&cluster, 1 + (uint32_t)_i / 2,
                  "aggregation: %s\nblock_size: 64\nworkers: {expected: 2}\n" STATEFUL,
                  aggregations[_i % 2]);
    const char *addresses[] = {cluster.addresses[0], cluster.addresses[cluster.rank_count - 1]};
    training_options_init(&plain, addresses, WORKERS, STEPS);
    plain.address_count = WORKERS;
    training_run(&plain, expected);
    ck_assert_mem_eq(values, expected, sizeof values);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
}
END_TEST

START_TEST(curve_is_shown_as_text_json_csv_and_picture)
{
    char file[] = "/tmp/paramd-curve-XXXXXX";
    unsigned char signature[8] = {0};
    char *line;
    int fd = mkstemp(file);

    start(2, "direct", "optimizer: {name: sgd, lr: 0.1}\n");
    struct process *paramctl = find(WORDS("--steps", "7", "--smooth-f", "1", "--skip-start", "1",
                                          "--skip-end", "1", "--diverge-th", "9", "--plot", file));
    process_await_output(paramctl, "are tried");
    training_advance(training, BEFORE + TRIALS);
    char *output = await_exit(paramctl, 0);
    expect(output, WORDS("          lr          loss      smoothed\n",
                         "       0.001           0.2           0.2\n",
                         "    0.316228           0.1           0.1\n", "suggestion      0.00316228",
                         "or              0.1"));
    free(output);
    ck_assert_int_eq(read(fd, signature, sizeof signature), sizeof signature);
    ck_assert_mem_eq(signature, "\x89PNG\r\n\x1a\n", sizeof signature);
    close(fd);
    unlink(file);
    struct process_result result =
        cluster_paramctl(cluster.addresses[0], WORDS("--csv", "lr-curve"));
    ck_assert_int_eq(result.code, 0);
    line = strtok(result.output, "\n");
    ck_assert_str_eq(line, "lr,loss,smoothed");
    line = strtok(NULL, "\n");
    ck_assert_str_eq(line, "0.001,0.20000000000000001,0.20000000000000001");
    process_result_finish(&result);
    json_t *answer = curve();
    ck_assert_uint_eq(json_array_size(json_object_get(answer, "rows")), 7);
    json_decref(answer);
    end();
}
END_TEST

/* It explodes after two trials. */
static double exploding(uint64_t step)
{
    return step < BEFORE + 2 ? 1 : 100;
}

START_TEST(divergence_ends_it_early)
{
    float before[REFERENCE_ELEMENT_COUNT];
    float values[REFERENCE_ELEMENT_COUNT];

    options.loss_of = exploding;
    start(1 + (uint32_t)_i, aggregations[_i % 2],
          "optimizer: {name: sgd, lr: 0.1, momentum: 0.9}\n");
    training_values(training, 0, before);
    struct process *paramctl = find(WORDS("--json"));
    while (true) {
        struct process_result asked = cluster_paramctl(cluster.addresses[0], WORDS("lr-curve"));
        bool begun = asked.code == 0;
        process_result_finish(&asked);
        if (begun) {
            break;
        }
    }
    training_advance(training, BEFORE + 3);
    char *output = await_exit(paramctl, 0);
    json_t *answer = json_loads(output, 0, NULL);
    ck_assert_str_eq(json_string_value(json_object_get(answer, "end")), "diverged");
    ck_assert_uint_eq(json_array_size(json_object_get(answer, "rows")), 2);
    ck_assert_int_eq(json_integer_value(json_object_get(answer, "version")), BEFORE + 3);
    json_decref(answer);
    free(output);
    training_values(training, 0, values);
    ck_assert_mem_eq(values, before, sizeof values);
    end();
    options.loss_of = NULL;
}
END_TEST

static double none(uint64_t step)
{
    (void)step;
    return NAN;
}

START_TEST(search_that_comes_to_nothing_says_why)
{
    options.loss_of = none;
    start(2, "allreduce", "optimizer: {name: sgd, lr: 0.1}\n");
    struct process *paramctl = find(WORDS("--steps", "1"));
    char *errors = await_exit(paramctl, 1);
    expect(errors, WORDS("steps: 1: out of range; allowed: a whole number from 2 to 10000\n"));
    free(errors);
    paramctl = find(WORDS("--group", "nobody"));
    errors = await_exit(paramctl, 1);
    expect(errors, WORDS("lr-find: no group is named 'nobody'"));
    free(errors);
    paramctl = find(WORDS("--steps", "50"));
    process_await_output(paramctl, "are tried");
    training_advance(training, BEFORE + 1);
    errors = await_exit(paramctl, 1);
    expect(errors, WORDS("lr-find failed: no worker gave the loss of step 4"));
    free(errors);
    end();
    options.loss_of = NULL;
}
END_TEST

/* paramctl dies, or somebody else cancels. */
START_TEST(search_ends_when_it_is_cancelled)
{
    start(2, "direct", "optimizer: {name: sgd, lr: 0.1}\n");
    struct process *paramctl = find(WORDS("--steps", "50"));
    process_await_output(paramctl, "are tried");
    training_advance(training, BEFORE + 2);
    struct process_result result = cluster_paramctl(cluster.addresses[0], WORDS("set-lr", "0.1"));
    ck_assert_int_eq(result.code, 1);
    expect(result.errors, WORDS("set-lr: lr-find sets the learning rates until it is over"));
    process_result_finish(&result);
    if (_i == 0) {
        process_stop(paramctl);
    } else {
        char *text = cluster_ask(&cluster, WORDS("lr-cancel"));
        ck_assert_ptr_nonnull(strstr(text, "the search ends with the step in collection"));
        free(text);
    }
    training_allow(training, STEPS + TRIALS);
    await_end("cancelled");
    if (_i == 1) {
        char *errors = await_exit(paramctl, 1);
        expect(errors, WORDS("lr-find cancelled: an administrator cancelled it"));
        free(errors);
    }
    end();
}
END_TEST

START_TEST(drain_in_the_middle_ends_in_good_order)
{
    struct paramd_error error;

    start(1 + (uint32_t)_i, aggregations[_i % 2], "optimizer: {name: sgd, lr: 0.1}\n");
    struct process *paramctl = find(WORDS("--steps", "50"));
    process_await_output(paramctl, "are tried");
    training_advance(training, BEFORE + 2);
    cluster_drain(&cluster);
    ck_assert_int_eq(training_finish_failed(training, 0, &error), PARAMD_EDRAINING);
    free(await_exit(paramctl, 1));
    cluster_stop(&cluster);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("lr_find");

    suite_add_loop(suite, training_goes_on_to_the_bit_as_if_there_had_been_no_search, 6);
    suite_add(suite, curve_is_shown_as_text_json_csv_and_picture);
    suite_add_loop(suite, divergence_ends_it_early, 3);
    suite_add(suite, search_that_comes_to_nothing_says_why);
    suite_add_loop(suite, search_ends_when_it_is_cancelled, 2);
    suite_add_loop(suite, drain_in_the_middle_ends_in_good_order, 3);
    return suite_run(suite);
}
