/* Steps begun while their gradients arrive, in a real daemon and a model large enough for it: the
 * same parameters to the bit as without, and none of a step whose worker is killed midway. */
#include "tests/support/cluster.h"
#include "tests/support/peer.h"
#include "tests/support/proxy.h"
#include "tests/support/suite.h"
#include "tests/support/training.h"

#include "client/include/paramd.h"

#include <check.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* On three ranks the last one holds less than compute_ahead asks for, the others more. */
#define WEIGHTS 900000u
#define BIASES 1000u
#define ELEMENTS (WEIGHTS + BIASES)
#define WORKERS 2u
#define STEPS 4u

static float initial_of(uint32_t element)
{
    return (float)(element % 1013) / 1013.0f - 0.5f;
}

static float gradient_of(uint32_t worker, uint64_t step, uint32_t element)
{
    return (float)((element * 7u + worker * 131u + (uint32_t)step * 977u) % 2003) / 2003.0f - 0.4f;
}

static float *allocate(void)
{
    float *array = calloc(ELEMENTS, sizeof *array);
    ck_assert_ptr_nonnull(array);
    return array;
}

/* ---- The same bits ---- */

struct worker {
    pthread_t thread;
    struct paramd_client *client;
    int pull_dtype;
    float *values;
    float *gradient;
    struct paramd_error error;
};

static enum paramd_status train(struct worker *worker, uint32_t number)
{
    const uint64_t weights = WEIGHTS;
    const uint64_t biases = BIASES;
    const struct paramd_tensor tensors[] = {{"w", 1, &weights}, {"b", 1, &biases}};
    float *const values[] = {worker->values, worker->values + WEIGHTS};
    const float *const gradients[] = {worker->gradient, worker->gradient + WEIGHTS};
    enum paramd_status status = paramd_register(worker->client, tensors, 2, values, &worker->error);

    for (uint64_t step = 0; status == PARAMD_OK && step < STEPS; step++) {
        for (uint32_t i = 0; i < ELEMENTS; i++) {
            worker->gradient[i] = gradient_of(number, step, i);
        }
        status = paramd_step(worker->client, gradients, number + 1, NULL, 0, values, NULL,
                             &worker->error);
    }
    return status;
}

static void *run_first(void *argument)
{
    (void)train(argument, 0);
    return NULL;
}

static void *run_second(void *argument)
{
    (void)train(argument, 1);
    return NULL;
}

static void join(struct worker *worker, const char *address, const char *name, int pull_dtype)
{
    struct paramd_options options;

    paramd_options_init(&options);
    options.address = address;
    options.name = name;
    options.pull_dtype = pull_dtype;
    options.timeout_ms = PROCESS_DEADLINE_MS;
    memset(worker, 0, sizeof *worker);
    worker->values = allocate();
    worker->gradient = allocate();
    for (uint32_t i = 0; i < ELEMENTS; i++) {
        worker->values[i] = initial_of(i);
    }
    ck_assert_msg(paramd_connect(&options, &worker->client, &worker->error) == PARAMD_OK, "%s",
                  worker->error.message);
}

/* What the workers have in the end, the average behind it if there is one; and how many answers
 * came ahead. The caller's, for free. */
static float *outcome_of(uint32_t rank_count, const char *config, int pull_dtype, bool average,
                         uint64_t *ahead_count)
{
    static void *(*const runs[WORKERS])(void *) = {run_first, run_second};
    static const char *const names[WORKERS] = {"a", "b"};
    struct proxy *proxy = proxy_start(rank_count, NULL, NULL);
    struct cluster cluster;
    struct worker workers[WORKERS];
    float *values = calloc(2 * ELEMENTS, sizeof *values);

    cluster_start(&cluster, rank_count,
                  "listen: %s\nadvertise: " PROXY_HOST
                  "\naggregation: direct\nworkers: {expected: 2}\n%s",
                  proxy_listen(proxy), config);
    for (uint32_t i = 0; i < WORKERS; i++) {
        join(&workers[i], cluster.addresses[0], names[i], pull_dtype);
    }
    for (uint32_t i = 0; i < WORKERS; i++) {
        ck_assert_int_eq(pthread_create(&workers[i].thread, NULL, runs[i], &workers[i]), 0);
    }
    for (uint32_t i = 0; i < WORKERS; i++) {
        ck_assert_int_eq(pthread_join(workers[i].thread, NULL), 0);
        ck_assert_msg(workers[i].error.status == PARAMD_OK, "%s", workers[i].error.message);
    }
    ck_assert_mem_eq(workers[1].values, workers[0].values, ELEMENTS * sizeof *values);
    memcpy(values, workers[0].values, ELEMENTS * sizeof *values);
    if (average) {
        float *const averages[] = {values + ELEMENTS, values + ELEMENTS + WEIGHTS};
        ck_assert_msg(paramd_pull_average(workers[0].client, averages, NULL, &workers[0].error) ==
                          PARAMD_OK,
                      "%s", workers[0].error.message);
    }
    for (uint32_t i = 0; i < WORKERS; i++) {
        ck_assert_msg(paramd_leave(workers[i].client, &workers[i].error) == PARAMD_OK, "%s",
                      workers[i].error.message);
        paramd_close(workers[i].client);
        free(workers[i].values);
        free(workers[i].gradient);
    }
    *ahead_count = proxy_counted(proxy, false, PD_MESSAGE_SETTLED).frames;
    cluster_drain(&cluster);
    cluster_stop(&cluster);
    proxy_stop(proxy);
    return values;
}

START_TEST(parameters_are_the_same_to_the_bit_as_without)
{
    static const struct {
        const char *config;
        int pull_dtype;
        bool average;
    } cases[] = {
        {"optimizer: {name: adamw, lr: 0.01}\n", PARAMD_FLOAT32, false},
        {"optimizer: {name: adamw, lr: 0.01}\n", PARAMD_BFLOAT16, false},
        {"optimizer: {name: adamw, lr: 0.01}\nclip: {norm: 0.5}\n", PARAMD_BFLOAT16, false},
        {"optimizer: {name: lion, lr: 0.001}\nema: {decay: 0.9}\n", PARAMD_FLOAT32, true},
    };
    char config[256];
    uint64_t ahead_count;

    snprintf(config, sizeof config, "compute_ahead: 0\n%s", cases[_i].config);
    float *expected = outcome_of(1, config, cases[_i].pull_dtype, cases[_i].average, &ahead_count);
    ck_assert_uint_eq(ahead_count, 0);
    for (uint32_t rank_count = 1; rank_count <= 3; rank_count++) {
        float *got = outcome_of(rank_count, cases[_i].config, cases[_i].pull_dtype,
                                cases[_i].average, &ahead_count);
        ck_assert_uint_ge(ahead_count, WORKERS * STEPS);
        ck_assert_mem_eq(got, expected, 2 * ELEMENTS * sizeof *got);
        free(got);
    }
    free(expected);
}
END_TEST

/* ---- A worker killed midway ---- */

static void make_model(struct pd_tensor_list *model, uint64_t element_count)
{
    struct pd_error error = {0};
    ck_assert_int_eq(pd_tensor_list_init(model, 1, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(model, "w", 1, 1, &element_count, &error), PD_OK);
}

static void push_lane(struct peer_worker *worker, uint32_t i, uint64_t step, const float *gradient,
                      bool ahead)
{
    const struct pd_lane *lane = &worker->registered.lanes[i];
    struct pd_message message = peer_worker_push_message(worker, i, step, 1);

    message.push.pull = true;
    message.push.ahead = ahead;
    peer_send(worker->lanes[i], &message, gradient + lane->element_begin,
              lane->element_count * sizeof *gradient);
}

/* Push a whole gradient, for whose parameters an answer is wanted. */
static void push(struct peer_worker *worker, uint64_t step, const float *gradient, bool ahead)
{
    for (uint32_t i = 0; i < worker->registered.lane_count; i++) {
        push_lane(worker, i, step, gradient, ahead);
    }
}

static void fill(float *values, float *gradient, uint32_t worker)
{
    for (uint32_t i = 0; i < ELEMENTS; i++) {
        values[i] = initial_of(i);
        gradient[i] = gradient_of(worker, 0, i);
    }
}

/* A process that joins and sends half of a push to each rank; then it waits to be killed. */
static pid_t start_victim(const char *address, const struct pd_tensor_list *model)
{
    pid_t pid = fork();
    if (pid != 0) {
        ck_assert_int_gt(pid, 0);
        return pid;
    }
    struct peer_worker worker;
    float *values = allocate();
    float *gradient = allocate();
    fill(values, gradient, 1);
    peer_worker_init(&worker, address, "victim", model, values);
    for (uint32_t i = 0; i < worker.registered.lane_count; i++) {
        const struct pd_lane *lane = &worker.registered.lanes[i];
        const struct pd_message message = peer_worker_push_message(&worker, i, 0, 1);
        peer_send_head(worker.lanes[i], &message, lane->element_count * sizeof *gradient);
        peer_send_bytes(worker.lanes[i], gradient + lane->element_begin,
                        lane->element_count / 2 * sizeof *gradient);
    }
    for (;;) {
        pause();
    }
}

static void await_bytes(struct peer *peer)
{
    struct pollfd readable = {.fd = peer_fd(peer), .events = POLLIN};
    ck_assert_int_eq(poll(&readable, 1, PROCESS_DEADLINE_MS), 1);
}

/* One lane of the survivor. All are read at once: one may wait for what another needs again. */
struct survivor {
    pthread_t thread;
    struct peer_worker *worker;
    uint32_t lane;
    const float *gradient;
    float *got;
    uint32_t void_count; /* answers */
};

/* Receive version 1, and push again what the rank says is void. */
static void *receive(void *argument)
{
    struct survivor *survivor = argument;
    struct peer *lane = survivor->worker->lanes[survivor->lane];
    bool final = false;

    while (!final) {
        const struct pd_message *message = peer_receive(lane);
        ck_assert(message != NULL &&
                  (message->kind == PD_MESSAGE_PULLED || message->kind == PD_MESSAGE_SETTLED));
        if (message->kind == PD_MESSAGE_PULLED) {
            ck_assert_uint_eq(message->pulled.version, 1);
            final = !message->pulled.ahead;
            memcpy(survivor->got, peer_payload(lane), peer_payload_bytes(lane));
            continue;
        }
        final = message->settled.applied;
        survivor->void_count += !final;
        if (message->settled.again) {
            push_lane(survivor->worker, survivor->lane, 0, survivor->gradient, true);
        }
    }
    return NULL;
}

/* The survivor holds blocks that the victim had a part in. They are void, and the step is made of
 * the survivor's gradient alone. */
START_TEST(worker_killed_midway_leaves_no_trace)
{
    struct pd_tensor_list model;
    struct cluster cluster;
    struct peer_worker worker;
    float *values = allocate();
    float *gradient = allocate();
    float *got = allocate();
    make_model(&model, ELEMENTS);
    fill(values, gradient, 0);
    cluster_start(&cluster, (uint32_t)_i + 1,
                  "aggregation: direct\nworkers: {expected: 2, resume_s: 1}\n"
                  "optimizer: {name: sgd, lr: 1}\n");
    peer_worker_init(&worker, cluster.addresses[0], "survivor", &model, values);
    push(&worker, 0, gradient, true);
    pid_t victim = start_victim(cluster.addresses[0], &model);
    await_bytes(worker.lanes[0]);
    ck_assert_int_eq(kill(victim, SIGKILL), 0);
    ck_assert_int_eq(waitpid(victim, NULL, 0), victim);
    struct survivor survivors[PD_RANK_COUNT_MAX];
    for (uint32_t i = 0; i < worker.registered.lane_count; i++) {
        survivors[i] = (struct survivor){.worker = &worker,
                                         .lane = i,
                                         .gradient = gradient,
                                         .got = got + worker.registered.lanes[i].element_begin};
        ck_assert_int_eq(pthread_create(&survivors[i].thread, NULL, receive, &survivors[i]), 0);
    }
    uint32_t void_count = 0;
    for (uint32_t i = 0; i < worker.registered.lane_count; i++) {
        ck_assert_int_eq(pthread_join(survivors[i].thread, NULL), 0);
        void_count += survivors[i].void_count;
    }
    ck_assert_uint_ge(void_count, 1);
    for (uint32_t i = 0; i < ELEMENTS; i++) {
        ck_assert_float_eq(got[i], values[i] - gradient[i]);
    }
    peer_worker_finish(&worker);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
    pd_tensor_list_finish(&model);
    free(got);
    free(values);
    free(gradient);
}
END_TEST

/* ---- A worker that does not read ---- */

enum { LARGE = 4 << 20 }; /* elements: more than a socket holds */

START_TEST(worker_that_does_not_read_what_comes_ahead_is_cut_off_and_the_others_go_on)
{
    struct pd_tensor_list model;
    struct cluster cluster;
    struct peer_worker deaf;
    struct peer_worker worker;
    float *gradient = calloc(LARGE, sizeof *gradient);
    make_model(&model, LARGE);
    cluster_start(&cluster, 1,
                  "aggregation: direct\nworkers: {expected: 2, resume_s: 1}\nsend_timeout_s: 1\n");
    peer_worker_init(&deaf, cluster.addresses[0], "deaf", &model, gradient);
    peer_worker_init(&worker, cluster.addresses[0], "worker", &model, gradient);
    push(&deaf, 0, gradient, true);
    push(&worker, 0, gradient, false);
    ck_assert_uint_eq(peer_expect(worker.lanes[0], PD_MESSAGE_PULLED)->pulled.version, 1);
    process_await_error(cluster.process, "nothing was read of an answer for 1 s");
    push(&worker, 1, gradient, true);
    ck_assert_uint_eq(peer_expect(worker.lanes[0], PD_MESSAGE_PULLED)->pulled.version, 2);
    process_await_error(cluster.process, "'deaf' evicted");
    peer_worker_finish(&deaf);
    peer_worker_finish(&worker);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
    pd_tensor_list_finish(&model);
    free(gradient);
}
END_TEST

/* ---- Small gradients of many ---- */

enum { MANY = 8, MANY_STEPS = 30 };

/* The last of a step's pushes, more or less: the others' gradients are in the sum, and not kept. */
static enum proxy_verdict cut_every_eighth(void *context, const struct proxy_frame *frame)
{
    (void)context;
    return frame->to_rank && frame->kind == PD_MESSAGE_PUSH && frame->index % MANY == MANY - 1
               ? PROXY_CUT_MIDDLE
               : PROXY_PASS;
}

/* What many workers of the reference model have in the end, and how often they were told to push
 * again. */
static void train_many(uint32_t rank_count, uint32_t compute_ahead, proxy_judge *judge,
                       float *values, uint64_t *again_count)
{
    struct proxy *proxy = proxy_start(rank_count, judge, NULL);
    struct training_options options;
    struct cluster cluster;

    cluster_start(&cluster, rank_count,
                  "listen: %s\nadvertise: " PROXY_HOST "\naggregation: direct\nblock_size: 64\n"
                  "compute_ahead: %u\nworkers: {expected: 8}\n"
                  "optimizer: {name: adamw, lr: 0.01}\nclip: {norm: 1}\n",
                  proxy_listen(proxy), compute_ahead);
    const char *address = cluster.addresses[0];
    training_options_init(&options, &address, MANY, MANY_STEPS);
    training_run(&options, values);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
    *again_count = proxy_counted(proxy, false, PD_MESSAGE_SETTLED).frames;
    proxy_stop(proxy);
}

START_TEST(small_gradients_added_up_ahead_change_no_bit_also_when_they_come_again)
{
    float expected[REFERENCE_ELEMENT_COUNT];
    float got[REFERENCE_ELEMENT_COUNT];
    uint64_t again_count;
    uint64_t again_total = 0;

    train_many(1, 0, NULL, expected, &again_count);
    ck_assert_uint_eq(again_count, 0);
    for (uint32_t rank_count = 1; rank_count <= 3; rank_count++) {
        /* More than a lane holds, and less than half of what the gradients come to. */
        uint32_t compute_ahead = REFERENCE_ELEMENT_COUNT * 4 / 3 / rank_count;
        train_many(rank_count, compute_ahead, NULL, got, &again_count);
        ck_assert_uint_eq(again_count, 0);
        ck_assert_mem_eq(got, expected, sizeof got);
        train_many(rank_count, compute_ahead, cut_every_eighth, got, &again_count);
        again_total += again_count;
        ck_assert_mem_eq(got, expected, sizeof got);
    }
    ck_assert_uint_gt(again_total, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ahead");

    suite_add_loop(suite, parameters_are_the_same_to_the_bit_as_without, 4);
    suite_add_loop(suite, worker_killed_midway_leaves_no_trace, 3);
    suite_add(suite, worker_that_does_not_read_what_comes_ahead_is_cut_off_and_the_others_go_on);
    suite_add(suite, small_gradients_added_up_ahead_change_no_bit_also_when_they_come_again);
    return suite_run(suite);
}
