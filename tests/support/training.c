#include "tests/support/training.h"

#include "tests/support/process.h"

#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct worker {
    struct training *training;
    uint32_t number;
    const char *address;
    pthread_t thread;
    uint64_t step; /* steps behind it; under the training's lock */
    bool ended;    /* under the training's lock */
    struct paramd_client *client;
    struct paramd_error error; /* of the call that ended it */
    uint64_t version;
    float values[REFERENCE_ELEMENT_COUNT];
    float gradient[REFERENCE_ELEMENT_COUNT];
};

struct training {
    struct training_options options;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t allowed; /* steps that may be done */
    uint32_t registered_count;
    struct worker *workers;
};

void training_worker_name(char name[32], uint32_t number)
{
    snprintf(name, 32, "worker %05u", number);
}

void training_options_init(struct training_options *options, const char *const *address,
                           uint32_t worker_count, uint64_t step_count)
{
    *options = (struct training_options){
        .addresses = address,
        .address_count = 1,
        .worker_count = worker_count,
        .step_count = step_count,
        .micro_batch_count = 1,
    };
}

/* ---- One worker ---- */

/* The arrays of the tensors within a flat one. */
static void split(float *flat, float *arrays[REFERENCE_TENSOR_COUNT])
{
    for (uint32_t i = 0; i < REFERENCE_TENSOR_COUNT; i++) {
        arrays[i] = flat;
        flat += reference_tensors[i].element_count;
    }
}

static int connect_worker(struct worker *worker)
{
    const struct training_options *given = &worker->training->options;
    struct paramd_options options;
    char name[32];

    training_worker_name(name, worker->number);
    paramd_options_init(&options);
    options.address = worker->address;
    options.name = name;
    options.push_dtype = given->push_dtype;
    options.pull_dtype = given->pull_dtype;
    options.timeout_ms = given->timeout_ms != 0 ? given->timeout_ms : PROCESS_DEADLINE_MS;
    options.connect_timeout_ms = options.timeout_ms;
    return (int)paramd_connect(&options, &worker->client, &worker->error);
}

static int register_worker(struct worker *worker)
{
    struct paramd_tensor tensors[REFERENCE_TENSOR_COUNT];
    float *arrays[REFERENCE_TENSOR_COUNT];

    for (uint32_t i = 0; i < REFERENCE_TENSOR_COUNT; i++) {
        tensors[i].name = reference_tensors[i].name;
        tensors[i].dimension_count = reference_tensors[i].dimension_count;
        tensors[i].shape = reference_tensors[i].shape;
    }
    reference_values(worker->values);
    split(worker->values, arrays);
    return (int)paramd_register(worker->client, tensors, REFERENCE_TENSOR_COUNT, arrays,
                                &worker->error);
}

/* The step of the training that the daemon's step `step` is. */
static uint64_t trained_step(const struct training_options *options, uint64_t step)
{
    uint64_t trial_end = options->trial_begin + options->trial_count;

    return step < trial_end ? step : step - options->trial_count;
}

static int do_micro_batch(struct worker *worker, uint64_t step, uint32_t micro_batch, bool last)
{
    const struct training_options *options = &worker->training->options;
    uint64_t trained = trained_step(options, step);
    uint64_t samples = reference_samples(worker->number, trained, micro_batch);
    float *gradients[REFERENCE_TENSOR_COUNT];
    float *values[REFERENCE_TENSOR_COUNT];
    struct paramd_step_info info = {0};
    double loss = options->loss_of != NULL ? options->loss_of(step) : 1.0 / (double)(step + 1);
    const double *given = isnan(loss) ? NULL : &loss;
    union {
        float *const *given;
        const float *const *taken;
    } pushed = {.given = gradients};

    reference_gradient(worker->gradient, worker->number, trained, micro_batch);
    split(worker->gradient, gradients);
    split(worker->values, values);
    if (!options->apart) {
        int status = (int)paramd_step(worker->client, pushed.taken, samples, given, 0, values,
                                      &info, &worker->error);
        worker->version = info.version;
        return status;
    }
    int status = (int)paramd_push(worker->client, pushed.taken, samples, given, 0, &worker->error);
    if (status == PARAMD_OK && last) {
        status =
            (int)paramd_pull(worker->client, PARAMD_NEXT, values, &worker->version, &worker->error);
    }
    return status;
}

/* An estimate is as good as any: the gradient of a worker that there is not. */
static int do_estimate(struct worker *worker, uint64_t step, uint32_t micro_batch)
{
    float *estimates[REFERENCE_TENSOR_COUNT];
    union {
        float *const *given;
        const float *const *taken;
    } pushed = {.given = estimates};

    reference_gradient(worker->gradient, worker->number + 1000, step, micro_batch);
    split(worker->gradient, estimates);
    return (int)paramd_push_hessian(worker->client, pushed.taken,
                                    reference_samples(worker->number, step, micro_batch), 0,
                                    &worker->error);
}

static int do_step(struct worker *worker, uint64_t step)
{
    const struct training_options *options = &worker->training->options;
    uint64_t trained = trained_step(options, step);
    bool estimates = options->hessian_every > 0 && trained % options->hessian_every == 0;
    int status = PARAMD_OK;

    for (uint32_t i = 0; estimates && status == PARAMD_OK && i < options->micro_batch_count; i++) {
        status = do_estimate(worker, trained, i);
    }
    for (uint32_t i = 0; status == PARAMD_OK && i < options->micro_batch_count; i++) {
        status = do_micro_batch(worker, step, i, i + 1 == options->micro_batch_count);
    }
    return status;
}

static void await_permission(struct worker *worker, uint64_t step)
{
    struct training *training = worker->training;

    pthread_mutex_lock(&training->lock);
    worker->step = step;
    pthread_cond_broadcast(&training->changed);
    while (training->allowed <= step) {
        pthread_cond_wait(&training->changed, &training->lock);
    }
    pthread_mutex_unlock(&training->lock);
}

static int train(struct worker *worker)
{
    const struct training_options *options = &worker->training->options;
    int status = register_worker(worker);

    if (status != PARAMD_OK) {
        return status;
    }
    pthread_mutex_lock(&worker->training->lock);
    worker->training->registered_count++;
    pthread_cond_broadcast(&worker->training->changed);
    pthread_mutex_unlock(&worker->training->lock);
    uint64_t begin = paramd_next_step(worker->client);
    for (uint64_t step = begin; step < options->step_count; step++) {
        await_permission(worker, step);
        status = do_step(worker, step);
        if (status != PARAMD_OK) {
            return status;
        }
    }
    return (int)paramd_leave(worker->client, &worker->error);
}

static void *run_worker(void *argument)
{
    struct worker *worker = argument;
    struct training *training = worker->training;
    int status = worker->client != NULL ? train(worker) : worker->error.status;

    paramd_close(worker->client);
    worker->client = NULL;
    pthread_mutex_lock(&training->lock);
    worker->error.status = status;
    worker->ended = true;
    if (status == PARAMD_OK) {
        worker->step = training->options.step_count;
    }
    pthread_cond_broadcast(&training->changed);
    pthread_mutex_unlock(&training->lock);
    return NULL;
}

/* ---- All workers ---- */

/* Wait for the next change, with the lock held; false when nothing has changed for too long. */
static bool await_change(struct training *training)
{
    struct timespec deadline;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += PROCESS_DEADLINE_MS / 1000;
    return pthread_cond_timedwait(&training->changed, &training->lock, &deadline) == 0;
}

/* Workers join one after the other, in the order asked for, and then run at once. */
struct training *training_start(const struct training_options *options)
{
    struct training *training = calloc(1, sizeof *training);

    ck_assert_ptr_nonnull(training);
    training->options = *options;
    training->workers = calloc(options->worker_count, sizeof *training->workers);
    ck_assert_ptr_nonnull(training->workers);
    pthread_mutex_init(&training->lock, NULL);
    pthread_cond_init(&training->changed, NULL);
    for (uint32_t i = 0; i < options->worker_count; i++) {
        uint32_t index = options->backwards ? options->worker_count - 1 - i : i;
        struct worker *worker = &training->workers[index];
        worker->training = training;
        worker->number = options->worker_begin + index;
        worker->address = options->addresses[index % options->address_count];
        (void)connect_worker(worker);
        ck_assert_msg(worker->error.status == PARAMD_OK, "worker %u: %s", worker->number,
                      worker->error.message);
    }
    for (uint32_t i = 0; i < options->worker_count; i++) {
        ck_assert_int_eq(
            pthread_create(&training->workers[i].thread, NULL, run_worker, &training->workers[i]),
            0);
    }
    pthread_mutex_lock(&training->lock);
    bool ended = false;
    while (training->registered_count < options->worker_count && !ended) {
        ck_assert_msg(await_change(training), "%u of %u workers have registered",
                      training->registered_count, options->worker_count);
        for (uint32_t i = 0; i < options->worker_count; i++) {
            ended = ended || training->workers[i].ended;
        }
    }
    pthread_mutex_unlock(&training->lock);
    return training;
}

void training_allow(struct training *training, uint64_t step)
{
    pthread_mutex_lock(&training->lock);
    training->allowed = step > training->allowed ? step : training->allowed;
    pthread_cond_broadcast(&training->changed);
    pthread_mutex_unlock(&training->lock);
}

void training_advance(struct training *training, uint64_t step)
{
    training_allow(training, step);
    pthread_mutex_lock(&training->lock);
    for (uint32_t i = 0; i < training->options.worker_count; i++) {
        struct worker *worker = &training->workers[i];
        bool moving = true;
        while (worker->step < step && !worker->ended && moving) {
            moving = await_change(training);
        }
        ck_assert_msg(worker->step >= step, "worker %u is at step %lu: %s", worker->number,
                      (unsigned long)worker->step, worker->error.message);
    }
    pthread_mutex_unlock(&training->lock);
}

void training_values(struct training *training, uint32_t index, float *values)
{
    pthread_mutex_lock(&training->lock);
    memcpy(values, training->workers[index].values, sizeof training->workers[index].values);
    pthread_mutex_unlock(&training->lock);
}

static void join_all(struct training *training)
{
    training_allow(training, UINT64_MAX);
    for (uint32_t i = 0; i < training->options.worker_count; i++) {
        ck_assert_int_eq(pthread_join(training->workers[i].thread, NULL), 0);
    }
}

static void destroy(struct training *training)
{
    pthread_mutex_destroy(&training->lock);
    pthread_cond_destroy(&training->changed);
    free(training->workers);
    free(training);
}

void training_finish(struct training *training, float *values)
{
    join_all(training);
    for (uint32_t i = 0; i < training->options.worker_count; i++) {
        const struct worker *worker = &training->workers[i];
        ck_assert_msg(worker->error.status == PARAMD_OK, "worker %u at step %lu: %s",
                      worker->number, (unsigned long)worker->step, worker->error.message);
        ck_assert_uint_eq(worker->version, training->options.step_count);
        ck_assert_mem_eq(worker->values, training->workers[0].values, sizeof worker->values);
    }
    if (values != NULL) {
        memcpy(values, training->workers[0].values, sizeof training->workers[0].values);
    }
    destroy(training);
}

int training_finish_failed(struct training *training, uint32_t index, struct paramd_error *error)
{
    join_all(training);
    *error = training->workers[index].error;
    destroy(training);
    return error->status;
}

void training_run(const struct training_options *options, float *values)
{
    training_finish(training_start(options), values);
}
