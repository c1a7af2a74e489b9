/* Ranks that have not room for the gradients of all workers at a time: what comes out is the same
 * to the bit, what they hold is bounded, and nobody waits for ever. */
#include "tests/support/cluster.h"
#include "tests/support/peer.h"
#include "tests/support/proc.h"
#include "tests/support/suite.h"
#include "tests/support/training.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TOLERANCE 2e-5
#define RANK_COUNT 2u
#define STEP_COUNT 8u
#define CHANGE_STEP 4u

#define OPTIMIZER "optimizer: {name: sgd, lr: 0.1, momentum: 0.9}\nblock_size: 64\n"
#define GRADIENT_BYTES (4u * REFERENCE_ELEMENT_COUNT)

static struct cluster cluster;

/* ---- Results ---- */

static const struct {
    uint32_t rank_count;
    uint32_t micro_batch_count;
    enum pd_dtype dtype;
    const char *config;
} runs[] = {
    {CLUSTER_ALONE, 1, PD_DTYPE_FLOAT32, ""},
    {2, 1, PD_DTYPE_BFLOAT16, "aggregation: direct\nclip: {norm: 0.5}\n"},
    {2, 1, PD_DTYPE_FLOAT32, "aggregation: allreduce\n"},
    {3, 2, PD_DTYPE_FLOAT16, "aggregation: direct\n"},
    {2, 3, PD_DTYPE_FLOAT32, "aggregation: allreduce\nclip: {norm: 0.5}\n"},
};

/* Train five workers, which begin in reverse order; a limit of 0 is none. */
static void train(int which, uint32_t limit, float *values)
{
    struct training_options options;
    const char *addresses[PD_RANK_COUNT_MAX];
    char number[32] = "null";

    if (limit > 0) {
        snprintf(number, sizeof number, "%u", limit);
    }
    cluster_start(&cluster, runs[which].rank_count,
                  OPTIMIZER "workers: {expected: 5, staging_limit: %s}\naccumulation_steps: %u\n%s",
                  number, runs[which].micro_batch_count, runs[which].config);
    for (uint32_t rank = 0; rank < cluster.rank_count; rank++) {
        addresses[rank] = cluster.addresses[rank];
    }
    training_options_init(&options, addresses, 5, STEP_COUNT);
    options.address_count = cluster.rank_count;
    options.micro_batch_count = runs[which].micro_batch_count;
    options.push_dtype = (int)runs[which].dtype;
    options.backwards = true;
    training_run(&options, values);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
}

START_TEST(results_are_to_the_bit_those_without_a_limit)
{
    float expected[REFERENCE_ELEMENT_COUNT];
    float values[REFERENCE_ELEMENT_COUNT];

    train(_i, 0, expected);
    train(_i, 2 * GRADIENT_BYTES, values);
    ck_assert_mem_eq(values, expected, sizeof values);
}
END_TEST

/* ---- Order ---- */

static void push(struct peer_worker *worker, uint32_t number, uint64_t step)
{
    float gradient[REFERENCE_ELEMENT_COUNT];

    reference_gradient(gradient, number, step, 0);
    peer_worker_push(worker, step, reference_samples(number, step, 0), gradient, false);
}

/* All is sent before anybody looks for an answer; the one that goes first sends last. */
START_TEST(pushes_in_reverse_order_are_all_taken)
{
    struct peer_worker workers[4];
    struct pd_tensor_list model;
    float values[REFERENCE_ELEMENT_COUNT];

    cluster_start(&cluster, RANK_COUNT,
                  OPTIMIZER "aggregation: direct\nworkers: {expected: 4, staging_limit: %u}\n",
                  GRADIENT_BYTES / 2 + 1000);
    reference_model_init(&model);
    reference_values(values);
    for (uint32_t i = 0; i < 4; i++) {
        char name[32];
        training_worker_name(name, i);
        peer_worker_init(&workers[i], cluster.addresses[0], name, &model, values);
    }
    for (uint64_t step = 0; step < 3; step++) {
        for (uint32_t i = 4; i-- > 0;) {
            push(&workers[i], i, step);
        }
        for (uint32_t i = 0; i < 4; i++) {
            for (uint32_t lane = 0; lane < RANK_COUNT; lane++) {
                (void)peer_expect(workers[i].lanes[lane], PD_MESSAGE_PUSHED);
            }
        }
        struct pd_message pull = {.kind = PD_MESSAGE_PULL, .pull = {.min_version = step + 1}};
        for (uint32_t lane = 0; lane < RANK_COUNT; lane++) {
            peer_send(workers[0].lanes[lane], &pull, NULL, 0);
            (void)peer_expect(workers[0].lanes[lane], PD_MESSAGE_PULLED);
        }
    }
    for (uint32_t i = 0; i < 4; i++) {
        peer_worker_finish(&workers[i]);
    }
    pd_tensor_list_finish(&model);
    cluster_stop(&cluster);
}
END_TEST

START_TEST(status_says_who_is_held_back)
{
    static const char *const words[] = {"workers", NULL};
    struct peer_worker workers[2];
    struct pd_tensor_list model;
    float values[REFERENCE_ELEMENT_COUNT];

    cluster_start(&cluster, CLUSTER_ALONE, OPTIMIZER "workers: {expected: 2, staging_limit: %u}\n",
                  GRADIENT_BYTES);
    reference_model_init(&model);
    reference_values(values);
    peer_worker_init(&workers[0], cluster.addresses[0], "a", &model, values);
    peer_worker_init(&workers[1], cluster.addresses[0], "b", &model, values);
    char *reply = cluster_ask(&cluster, words);
    ck_assert_ptr_nonnull(strstr(reply, "\"held back\""));
    free(reply);
    push(&workers[0], 0, 0);
    (void)peer_expect(workers[0].lanes[0], PD_MESSAGE_PUSHED);
    push(&workers[1], 1, 0);
    (void)peer_expect(workers[1].lanes[0], PD_MESSAGE_PUSHED);
    peer_worker_finish(&workers[0]);
    peer_worker_finish(&workers[1]);
    pd_tensor_list_finish(&model);
    cluster_stop(&cluster);
}
END_TEST

/* ---- A model of more than what sockets hold ---- */

#define BIG_COUNT (6u * 1024u * 1024u)
#define BIG_STEPS 3u

struct big_worker {
    pthread_t thread;
    const char *address;
    uint32_t number;
    int (*interrupted)(void *context);
    struct paramd_error error;
    float sum; /* of some parameters, after the last step */
};

static void *train_big(void *argument)
{
    struct big_worker *worker = argument;
    const uint64_t shape = BIG_COUNT;
    const struct paramd_tensor tensor = {.name = "w", .dimension_count = 1, .shape = &shape};
    struct paramd_client *client = NULL;
    struct paramd_options options;
    char name[32];
    float *values = calloc(BIG_COUNT, sizeof *values);
    float *gradient = calloc(BIG_COUNT, sizeof *gradient);

    training_worker_name(name, worker->number);
    paramd_options_init(&options);
    options.address = worker->address;
    options.name = name;
    options.interrupted = worker->interrupted;
    for (uint32_t i = 0; i < BIG_COUNT; i++) {
        gradient[i] = (float)(worker->number + 1) / (float)(1 + i % 1000);
    }
    enum paramd_status status = paramd_connect(&options, &client, &worker->error);
    if (status == PARAMD_OK) {
        status = paramd_register(client, &tensor, 1, (float *const[]){values}, &worker->error);
    }
    for (uint32_t step = 0; status == PARAMD_OK && step < BIG_STEPS; step++) {
        status = paramd_step(client, (const float *const[]){gradient}, 3 + worker->number, NULL, 0,
                             (float *const[]){values}, NULL, &worker->error);
    }
    for (uint32_t i = 0; i < BIG_COUNT; i += 1001) {
        worker->sum += values[i];
    }
    paramd_close(client);
    free(values);
    free(gradient);
    return NULL;
}

/* ---- Deaths ---- */

static uint32_t first_until_change(uint32_t worker, uint64_t step)
{
    return worker > 0 || step < CHANGE_STEP ? 1 : 0;
}

/* The others wait for its place when it is killed. */
START_TEST(killed_worker_that_is_first_in_order_lets_the_others_go_on)
{
    static const char *const aggregations[] = {"direct", "allreduce"};
    static double expected[REFERENCE_ELEMENT_COUNT];
    const char *addresses[RANK_COUNT];
    char steps[32];
    char pause[32];
    float values[REFERENCE_ELEMENT_COUNT];
    struct training_options options;
    struct reference_training reference = {
        .rule = REFERENCE_SGD,
        .lr = 0.1,
        .momentum = 0.9,
        .clip_norm_type = 2.0,
        .worker_count = 4,
        .micro_batch_count = 1,
        .micro_batches_of = first_until_change,
        .step_count = STEP_COUNT,
    };

    cluster_start(&cluster, RANK_COUNT,
                  OPTIMIZER "aggregation: %s\n"
                            "workers: {expected: 4, resume_s: 1, staging_limit: %u}\n",
                  aggregations[_i], GRADIENT_BYTES);
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        addresses[rank] = cluster.addresses[rank];
    }
    snprintf(steps, sizeof steps, "%u", STEP_COUNT);
    snprintf(pause, sizeof pause, "%u", CHANGE_STEP);
    const char *const words[] = {WORKER_PROGRAM, addresses[0], "0", steps, pause, NULL};
    struct process *first = process_start(words);
    training_options_init(&options, addresses, 3, STEP_COUNT);
    options.address_count = RANK_COUNT;
    options.worker_begin = 1;
    struct training *training = training_start(&options);
    training_allow(training, STEP_COUNT);
    process_await_output(first, "waiting");
    process_signal(first, SIGKILL);
    ck_assert_int_eq(process_wait(first), 128 + SIGKILL);
    process_await_error(cluster.process, "'worker 00000' evicted at step 4: ");
    process_stop(first);
    training_finish(training, values);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
    reference_train(&reference, expected);
    double error = reference_error(values, expected);
    ck_assert_msg(error < TOLERANCE, "off by %g", error);
}
END_TEST

/* Called every tenth of a second of the time that a call waits. */
static int die_in_time(void *context)
{
    static uint32_t times;
    (void)context;
    return ++times < 8 ? 0 : kill(getpid(), SIGKILL);
}

/* This program again, with an address: a worker that dies in the middle of its first push. */
static void die_pushing(const char *address)
{
    struct big_worker worker = {.address = address, .number = 1, .interrupted = die_in_time};

    (void)train_big(&worker);
    fprintf(stderr, "%s\n", worker.error.message);
}

/* It is not read, as the one before it has the only place; and its end would be behind a gradient
 * of more than what sockets hold. */
START_TEST(worker_that_dies_while_it_is_held_back_is_found_out_before_its_turn)
{
    struct peer_worker first;
    struct pd_tensor_list model;
    struct pd_error error;
    const uint64_t shape = BIG_COUNT;
    float *values = calloc(BIG_COUNT, sizeof *values);

    cluster_start(&cluster, RANK_COUNT,
                  "aggregation: direct\noptimizer: {name: sgd, lr: 0.1}\n"
                  "workers: {expected: 2, resume_s: 1, staging_limit: %u}\n",
                  BIG_COUNT / RANK_COUNT * 4);
    ck_assert_int_eq(pd_tensor_list_init(&model, 1, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(&model, "w", 1, 1, &shape, &error), PD_OK);
    peer_worker_init(&first, cluster.addresses[0], "worker 00000", &model, values);
    const char *const words[] = {"/proc/self/exe", cluster.addresses[0], NULL};
    struct process *dying = process_start(words);
    ck_assert_int_eq(process_wait(dying), 128 + SIGKILL);
    process_stop(dying);
    process_await_error(cluster.process,
                        "'worker 00001' evicted at step 0: connection reset by peer");
    peer_worker_push(&first, 0, 1, values, true);
    for (uint32_t lane = 0; lane < RANK_COUNT; lane++) {
        ck_assert_uint_eq(peer_expect(first.lanes[lane], PD_MESSAGE_PULLED)->pulled.version, 1);
    }
    peer_worker_finish(&first);
    pd_tensor_list_finish(&model);
    free(values);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
}
END_TEST

/* ---- Too little ---- */

START_TEST(limit_too_small_for_one_gradient_is_said_when_the_model_is_registered)
{
    struct training_options options;
    struct paramd_error error;

    cluster_start(&cluster, RANK_COUNT, OPTIMIZER "workers: {staging_limit: %u}\n",
                  GRADIENT_BYTES - 1);
    const char *address = cluster.addresses[0];
    training_options_init(&options, &address, 1, 1);
    struct training *training = training_start(&options);
    ck_assert_int_eq(training_finish_failed(training, 0, &error), PARAMD_ELIMIT);
    ck_assert_ptr_nonnull(strstr(error.message, "workers.staging_limit: 9215 bytes; allowed: at "
                                                "least 9216, what one worker's gradient takes"));
    cluster_drain(&cluster);
    cluster_stop(&cluster);
}
END_TEST

/* ---- Memory: sanitizers have a share of their own in it ---- */

#ifdef MEASURES_MEMORY

#define BIG_WORKERS 8u
#define BIG_PLACES 2u

/* The most that a rank has in memory after some steps of many workers; `sum` tells results apart.
 */
static uint64_t resident_bytes(const char *limit, float *sum)
{
    struct big_worker workers[BIG_WORKERS] = {0};
    uint64_t bytes = 0;

    cluster_start(&cluster, RANK_COUNT,
                  "aggregation: direct\noptimizer: {name: sgd, lr: 0.1}\ncompute_ahead: 0\n"
                  "workers: {expected: %u, staging_limit: %s}\n",
                  BIG_WORKERS, limit);
    for (uint32_t i = 0; i < BIG_WORKERS; i++) {
        workers[i].address = cluster.addresses[0];
        workers[i].number = i;
        ck_assert_int_eq(pthread_create(&workers[i].thread, NULL, train_big, &workers[i]), 0);
    }
    for (uint32_t i = 0; i < BIG_WORKERS; i++) {
        pthread_join(workers[i].thread, NULL);
        ck_assert_msg(workers[i].error.status == PARAMD_OK, "%s", workers[i].error.message);
        ck_assert(!(workers[i].sum < workers[0].sum || workers[i].sum > workers[0].sum));
    }
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        uint64_t resident = proc_peak_bytes(cluster_rank_pid(&cluster, rank));
        bytes = resident > bytes ? resident : bytes;
    }
    *sum = workers[0].sum;
    cluster_drain(&cluster);
    cluster_stop(&cluster);
    return bytes;
}

/* Of eight gradients a rank has two at a time: parameters, those served and their gradient are
 * three more, and a rank of nothing at all takes less than 64 MB. */
START_TEST(what_a_rank_holds_is_bounded)
{
    const uint64_t lane_bytes = BIG_COUNT / RANK_COUNT * sizeof(float);
    char limit[32];
    float expected;
    float sum;

    snprintf(limit, sizeof limit, "%lu", (unsigned long)(BIG_PLACES * lane_bytes));
    uint64_t without = resident_bytes("null", &expected);
    uint64_t within = resident_bytes(limit, &sum);
    ck_assert(!(sum < expected || sum > expected));
    ck_assert_uint_ge(without, within + (BIG_WORKERS - BIG_PLACES - 1) * lane_bytes);
    ck_assert_uint_le(within, (3 + BIG_PLACES) * lane_bytes + 64000000);
}
END_TEST

#endif

int main(int argc, char **argv)
{
    if (argc == 2) {
        die_pushing(argv[1]);
        return EXIT_FAILURE;
    }
    Suite *suite = suite_create("staging");

    suite_add_loop(suite, results_are_to_the_bit_those_without_a_limit,
                   sizeof runs / sizeof runs[0]);
    suite_add(suite, pushes_in_reverse_order_are_all_taken);
    suite_add(suite, status_says_who_is_held_back);
    suite_add_loop(suite, killed_worker_that_is_first_in_order_lets_the_others_go_on, 2);
    suite_add(suite, worker_that_dies_while_it_is_held_back_is_found_out_before_its_turn);
    suite_add(suite, limit_too_small_for_one_gradient_is_said_when_the_model_is_registered);
#ifdef MEASURES_MEMORY
    suite_add(suite, what_a_rank_holds_is_bounded);
#endif
    return suite_run(suite);
}
