/* paramd-worker: trains a small network on the digits, on the public client library alone.
 * options, digits -> [main] -> mlp, paramd. */
#include "client/include/paramd.h"
#include "client/worker/digits.h"
#include "client/worker/mlp.h"
#include "client/worker/options.h"
#include "client/worker/progress.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEAVE_TIMEOUT_MS 1000 /* to say goodbye after a signal */

static volatile sig_atomic_t signal_caught;

static void on_signal(int number)
{
    signal_caught = number;
}

static int was_interrupted(void *context)
{
    (void)context;
    return signal_caught != 0;
}

/* The images of this worker in a random order, drawn anew for each pass. */
struct order {
    uint32_t *indices;
    uint32_t count;
    uint32_t next;
    uint64_t random;
};

static int order_init(struct order *order, uint32_t count, uint64_t seed)
{
    order->indices = calloc(count, sizeof *order->indices);
    order->count = count;
    order->next = count;
    order->random = seed;
    for (uint32_t i = 0; order->indices != NULL && i < count; i++) {
        order->indices[i] = i;
    }
    return order->indices != NULL;
}

/* Up to `count` images: a pass that ends gives fewer. */
static const uint32_t *order_take(struct order *order, uint32_t *count)
{
    if (order->next == order->count) {
        for (uint32_t i = order->count - 1; i > 0; i--) {
            uint32_t j = (uint32_t)(mlp_random(&order->random) % (i + 1));
            uint32_t kept = order->indices[i];
            order->indices[i] = order->indices[j];
            order->indices[j] = kept;
        }
        order->next = 0;
    }
    uint32_t left = order->count - order->next;
    *count = *count < left ? *count : left;
    const uint32_t *taken = order->indices + order->next;
    order->next += *count;
    return taken;
}

static double norm_of(const struct mlp *mlp)
{
    double sum = 0.0;

    for (int t = 0; t < MLP_TENSOR_COUNT; t++) {
        for (size_t i = 0; i < mlp->counts[t]; i++) {
            sum += (double)mlp->gradients[t][i] * mlp->gradients[t][i];
        }
    }
    return sqrt(sum);
}

static enum paramd_status connect_worker(struct paramd_client **client,
                                         const struct worker_options *options,
                                         struct paramd_error *error)
{
    struct paramd_options connect;

    paramd_options_init(&connect);
    if (options->server != NULL) {
        connect.address = options->server;
    }
    connect.name = options->name;
    connect.push_dtype = options->wire_dtype;
    connect.pull_dtype = options->wire_dtype;
    connect.timeout_ms = options->timeout_ms;
    connect.interrupted = was_interrupted;
    return paramd_connect(&connect, client, error);
}

static enum paramd_status register_model(struct paramd_client *client, struct mlp *mlp,
                                         struct paramd_error *error)
{
    struct paramd_tensor tensors[MLP_TENSOR_COUNT];

    for (int t = 0; t < MLP_TENSOR_COUNT; t++) {
        tensors[t].name = mlp->names[t];
        tensors[t].dimension_count = mlp->dimension_counts[t];
        tensors[t].shape = mlp->shapes[t];
    }
    return paramd_register(client, tensors, MLP_TENSOR_COUNT, mlp->values, error);
}

/* One step: as many micro-batches as the daemon accumulates, then the new parameters. */
static enum paramd_status train_step(struct paramd_client *client, struct mlp *mlp,
                                     const struct digits *digits, struct order *order,
                                     uint32_t batch, struct progress_step *done,
                                     struct paramd_error *error)
{
    struct paramd_step_info info = {0};
    double loss_sum = 0.0;

    done->samples = 0;
    while (!info.pulled) {
        uint32_t count = batch;
        const uint32_t *indices = order_take(order, &count);
        double loss = mlp_gradient(mlp, digits, indices, count);
        loss_sum += loss * count;
        done->samples += count;
        done->gradient_norm = norm_of(mlp);
        enum paramd_status status = paramd_step(client, (const float *const *)mlp->gradients, count,
                                                &loss, 0, mlp->values, &info, error);
        if (status != PARAMD_OK) {
            return status;
        }
    }
    done->step = info.version;
    done->loss = loss_sum / (double)done->samples;
    done->lr = info.lr;
    done->skipped_steps = info.skipped_steps;
    return PARAMD_OK;
}

static uint64_t last_step(const struct worker_options *options, struct paramd_client *client,
                          const struct digits *digits)
{
    if (options->epochs == 0) {
        return options->steps;
    }
    uint64_t batches = (digits->count + options->batch - 1) / options->batch;
    uint64_t per_step = paramd_accumulation_steps(client);
    return paramd_next_step(client) + (options->epochs * batches + per_step - 1) / per_step;
}

/* Train to the end, or until the daemon drains or a signal comes. */
static enum paramd_status train(struct paramd_client *client, struct mlp *mlp,
                                const struct digits *digits, const struct worker_options *options,
                                struct progress_step *done, struct paramd_error *error)
{
    struct order order;
    struct progress progress;
    enum paramd_status status = PARAMD_OK;

    if (!order_init(&order, digits->count, options->seed + 1000003u * options->part_index)) {
        snprintf(error->message, sizeof error->message, "out of memory");
        return PARAMD_ENOMEM;
    }
    uint64_t step_end = last_step(options, client, digits);
    if (!progress_init(&progress, paramd_worker_name(client), step_end, options->line,
                       options->every, options->log_path)) {
        snprintf(error->message, sizeof error->message, "%s: %s", options->log_path,
                 strerror(errno));
        free(order.indices);
        return PARAMD_EIO;
    }
    done->step = paramd_next_step(client);
    while (status == PARAMD_OK && paramd_next_step(client) < step_end && signal_caught == 0) {
        status = train_step(client, mlp, digits, &order, options->batch, done, error);
        if (status == PARAMD_OK) {
            progress_show(&progress, done);
        }
    }
    progress_finish(&progress);
    free(order.indices);
    return signal_caught != 0 && status == PARAMD_OK ? PARAMD_EINTERRUPTED : status;
}

/* Register, train, leave and say how good it became. */
static int work(struct paramd_client *client, struct mlp *mlp, const struct digits *digits,
                const struct digits *test, const struct worker_options *options)
{
    struct paramd_error error = {0};
    struct progress_step done = {0};

    enum paramd_status status = register_model(client, mlp, &error);
    if (status == PARAMD_OK) {
        status = train(client, mlp, digits, options, &done, &error);
    }
    int caught = signal_caught;
    signal_caught = 0;
    if (caught != 0) {
        paramd_set_timeout(client, LEAVE_TIMEOUT_MS); /* The daemon may be going, too. */
    }
    if (status == PARAMD_OK || status == PARAMD_EINTERRUPTED) {
        status = paramd_leave(client, &error);
    }
    if (status != PARAMD_OK) {
        fprintf(stderr, "paramd-worker: %s\n", error.message);
    }
    if (caught != 0) {
        fprintf(stderr, "paramd-worker: %s: left at step %" PRIu64 "\n", strsignal(caught),
                paramd_next_step(client));
        return 128 + caught;
    }
    /* A daemon that drains has closed its last step: what was pulled then is the result. */
    if (status != PARAMD_OK && status != PARAMD_EDRAINING) {
        return 1;
    }
    uint32_t right = mlp_count_right(mlp, test);
    printf("accuracy %.4f (%" PRIu32 " of %" PRIu32 " test images) step %" PRIu64 " lr %.1e\n",
           (double)right / test->count, right, test->count, done.step, done.lr);
    return 0;
}

int main(int argc, char **argv)
{
    struct worker_options options;
    struct digits digits;
    struct digits test;
    struct mlp mlp;
    struct paramd_client *client = NULL;
    struct paramd_error error = {0};
    char message[WORKER_PATH_BYTES_MAX + 128];
    struct sigaction action = {.sa_handler = on_signal};
    int code = 1;

    switch (worker_options_parse(&options, argc, argv)) {
    case WORKER_OPTIONS_HELP:
        return 0;
    case WORKER_OPTIONS_MISUSED:
        return 2;
    case WORKER_OPTIONS_RUN:
        break;
    }
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (!digits_load(&digits, &test, options.data_path, message, sizeof message)) {
        fprintf(stderr, "paramd-worker: %s\n", message);
        return 1;
    }
    digits_keep_part(&digits, options.part_index, options.part_count);
    if (digits.count == 0) {
        fprintf(stderr, "paramd-worker: no images for worker %" PRIu32 " of %" PRIu32 "\n",
                options.part_index, options.part_count);
        goto done_digits;
    }
    if (!mlp_init(&mlp, options.hidden, options.seed)) {
        fprintf(stderr, "paramd-worker: out of memory for %" PRIu32 " hidden units\n",
                options.hidden);
        goto done_digits;
    }
    if (connect_worker(&client, &options, &error) != PARAMD_OK) {
        fprintf(stderr, "paramd-worker: %s\n", error.message);
        goto done_mlp;
    }
    code = work(client, &mlp, &digits, &test, &options);
    paramd_close(client);

done_mlp:
    mlp_finish(&mlp);
done_digits:
    digits_finish(&digits);
    digits_finish(&test);
    return code;
}
