/* Optimizer cases and composites: every step of the reference through a live daemon.
 *
 * One thread drives all workers, each a client of its own: all push, then all pull. Rates that the
 * configuration does not give are set by an administrator's command before the step. A case for one
 * worker that is replayed by several has the reference's gradient as its exact average: for a power
 * of two all push it with equal weight; otherwise they take turns, and the others push the opposite
 * with no samples, which must not count. */
#include "client/include/paramd.h"
#include "common/heap.h"
#include "tests/replay/case.h"
#include "tests/replay/checks.h"
#include "tests/replay/settings.h"
#include "tests/support/cluster.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct worker {
    struct paramd_client *client;
    float **values; /* by tensor, as pulled */
};

struct replay {
    const struct vectors_case *reference;
    const struct replay_options *options;
    struct replay_result *result;
    uint32_t worker_count;
    uint32_t micro_batch_count;
    bool shared; /* the case has one gradient for all workers */
    struct cluster cluster;
    struct worker *workers;
    json_t *settings;
    double *rates; /* the daemon's, of each group; NaN: not known */
};

static void *allocate(size_t count, size_t item_bytes)
{
    void *memory = pd_heap_zalloc(count, item_bytes);
    ck_assert_ptr_nonnull(memory);
    return memory;
}

/* ---- What the case asks for ---- */

/* What each worker pushes, if the case says so: gradients, or the parameters they arrived at. */
static json_t *by_worker_of(const json_t *step)
{
    json_t *gradients = json_object_get(step, "worker_grads");
    return gradients != NULL ? gradients : json_object_get(step, "worker_params");
}

/* Find the settings and the configuration they make, for free; NULL if it is skipped or refused. */
static char *prepare(struct replay *replay)
{
    const struct vectors_case *reference = replay->reference;
    const json_t *first = reference->steps[0].document;
    const json_t *by_worker = by_worker_of(first);
    const json_t *micro_grads = json_object_get(first, "micro_grads");

    replay->shared = by_worker == NULL;
    replay->worker_count =
        replay->shared ? replay->options->worker_count : (uint32_t)json_array_size(by_worker);
    replay->micro_batch_count = micro_grads != NULL ? (uint32_t)json_array_size(micro_grads) : 1;
    replay->settings = settings_create(replay->options, replay->worker_count);
    if (json_object_get(first, "worker_params") != NULL) {
        json_object_set_new(replay->settings, "outer", json_true());
    }
    return settings_add_optimizer(replay->settings, reference, replay->result)
               ? settings_text(replay->settings, replay->result)
               : NULL;
}

/* ---- Workers ---- */

static void connect_worker(struct replay *replay, uint32_t index)
{
    struct worker *worker = &replay->workers[index];
    struct paramd_options options;
    struct paramd_error error = {0};
    char name[32];

    snprintf(name, sizeof name, "worker %05u", index);
    paramd_options_init(&options);
    options.address = replay->cluster.addresses[0];
    options.name = name;
    options.timeout_ms = PROCESS_DEADLINE_MS;
    ck_assert_msg(paramd_connect(&options, &worker->client, &error) == PARAMD_OK, "%s",
                  error.message);
}

/* Offer the model with the reference's initial values. */
static void register_worker(struct replay *replay, struct worker *worker)
{
    const struct vectors_case *reference = replay->reference;
    struct paramd_tensor *tensors = allocate(reference->tensor_count, sizeof *tensors);
    uint64_t *shapes = allocate(reference->tensor_count, 8 * sizeof *shapes);
    struct paramd_error error = {0};

    worker->values = allocate(reference->tensor_count, sizeof *worker->values);
    for (uint32_t i = 0; i < reference->tensor_count; i++) {
        const struct vectors_tensor *tensor = &reference->tensors[i];
        const json_t *list = json_object_get(reference->document, "tensors");
        const json_t *shape = json_object_get(json_array_get(list, i), "shape");
        tensors[i].name = tensor->name;
        tensors[i].dimension_count = (uint32_t)json_array_size(shape);
        tensors[i].shape = &shapes[8 * i];
        for (uint32_t k = 0; k < tensors[i].dimension_count && k < 8; k++) {
            shapes[8 * i + k] = (uint64_t)json_integer_value(json_array_get(shape, k));
        }
        worker->values[i] = allocate(tensor->count, sizeof(float));
        memcpy(worker->values[i], tensor->init, tensor->count * sizeof(float));
    }
    ck_assert_msg(paramd_register(worker->client, tensors, reference->tensor_count, worker->values,
                                  &error) == PARAMD_OK,
                  "%s", error.message);
    pd_heap_free(tensors);
    pd_heap_free(shapes);
}

static void start_workers(struct replay *replay)
{
    replay->workers = allocate(replay->worker_count, sizeof *replay->workers);
    for (uint32_t i = 0; i < replay->worker_count; i++) {
        connect_worker(replay, i);
        register_worker(replay, &replay->workers[i]);
    }
}

static void stop_workers(struct replay *replay)
{
    for (uint32_t i = 0; i < replay->worker_count; i++) {
        struct worker *worker = &replay->workers[i];
        struct paramd_error error = {0};
        ck_assert_msg(paramd_leave(worker->client, &error) == PARAMD_OK, "%s", error.message);
        paramd_close(worker->client);
        for (uint32_t k = 0; k < replay->reference->tensor_count; k++) {
            pd_heap_free(worker->values[k]);
        }
        pd_heap_free(worker->values);
    }
    pd_heap_free(replay->workers);
}

/* ---- Rates ---- */

static void set_rate(struct replay *replay, const char *group, double rate)
{
    struct paramd_command command = {
        .command = "set-lr", .target = group, .has_value = 1, .value = rate};
    struct paramd_error error = {0};
    char *json = NULL;

    ck_assert_msg(paramd_admin(replay->workers[0].client, &command, &json, &error) == PARAMD_OK,
                  "%s", error.message);
    paramd_free(json);
}

/* Make the daemon use the step's rates, unless the rule computes its own. */
static void set_rates(struct replay *replay, const struct vectors_step *step)
{
    bool has_groups = json_object_get(replay->reference->document, "groups") != NULL;

    for (uint32_t group = 0; group < replay->reference->group_count; group++) {
        char name[32];
        double rate = step->lr[group];
        if (isnan(rate) || rate == replay->rates[group]) {
            continue;
        }
        snprintf(name, sizeof name, "group%u", group);
        set_rate(replay, has_groups ? name : NULL, rate);
        replay->rates[group] = rate;
    }
}

/* ---- Gradients ---- */

/* What one worker pushes for one micro-batch. */
struct gradient {
    const json_t *map; /* of tensor names; missing ones have no gradient */
    uint64_t samples;
    unsigned flags; /* of paramd_push */
    bool opposite;
    bool hessian; /* an estimate of the Hessian, not a gradient */
};

static struct gradient gradient_of(const struct replay *replay, uint32_t step, uint32_t worker,
                                   uint32_t micro_batch)
{
    const json_t *document = replay->reference->steps[step].document;
    const json_t *micro_grads = json_object_get(document, "micro_grads");
    uint32_t count = replay->worker_count;

    if (!replay->shared) {
        const json_t *samples = json_object_get(document, "worker_samples");
        return (struct gradient){
            .map = json_array_get(by_worker_of(document), worker),
            .samples =
                samples != NULL ? (uint64_t)json_integer_value(json_array_get(samples, worker)) : 1,
        };
    }
    bool all_push = (count & (count - 1)) == 0;
    bool counts = all_push || worker == step % count;
    const json_t *scaled = json_object_get(document, "scaled_grads");
    const json_t *whole = scaled != NULL ? scaled : json_object_get(document, "grads");
    return (struct gradient){
        .map = micro_grads != NULL ? json_array_get(micro_grads, micro_batch) : whole,
        .samples = counts ? 1 : 0,
        .flags = scaled != NULL ? PARAMD_SCALED : 0,
        .opposite = !counts,
    };
}

static void push(struct replay *replay, const struct gradient *gradient, struct worker *worker)
{
    const struct vectors_case *reference = replay->reference;
    float **arrays = allocate(reference->tensor_count, sizeof *arrays);
    struct paramd_error error = {0};
    union {
        float *const *given;
        const float *const *taken;
    } pushed = {.given = arrays};

    for (uint32_t i = 0; i < reference->tensor_count; i++) {
        const json_t *list = json_object_get(gradient->map, reference->tensors[i].name);
        uint32_t count = 0;
        arrays[i] = list != NULL ? vectors_floats(list, &count) : NULL;
        for (uint32_t k = 0; gradient->opposite && k < count; k++) {
            arrays[i][k] = -arrays[i][k];
        }
    }
    enum paramd_status status = gradient->hessian
                                    ? paramd_push_hessian(worker->client, pushed.taken,
                                                          gradient->samples, PARAMD_LAST, &error)
                                    : paramd_push(worker->client, pushed.taken, gradient->samples,
                                                  NULL, gradient->flags, &error);
    ck_assert_msg(status == PARAMD_OK, "%s", error.message);
    for (uint32_t i = 0; i < reference->tensor_count; i++) {
        pd_heap_free(arrays[i]);
    }
    pd_heap_free(arrays);
}

/* ---- Steps ---- */

/* Take in the errors of one worker's parameters after a step. */
static void compare(struct replay *replay, uint32_t step, const struct worker *worker)
{
    const struct vectors_case *reference = replay->reference;

    for (uint32_t i = 0; i < reference->tensor_count; i++) {
        uint32_t at = 0;
        double error = vectors_case_error(reference, step, i, worker->values[i], &at);
        if (replay_take_error(replay->result, error)) {
            replay_say(replay->result, REPLAY_FAILED, "step %u, %s[%u]: %.9g, not %.9g", step + 1,
                       reference->tensors[i].name, at, (double)worker->values[i][at],
                       (double)reference->steps[step].parameters[i][at]);
        }
    }
}

/* What the reference takes in of the Hessian after the step before comes with this one. */
static void push_hessian(struct replay *replay, uint32_t step, uint32_t worker)
{
    struct gradient gradient = gradient_of(replay, step, worker, 0);

    gradient.hessian = true;
    gradient.map = step > 0 ? json_object_get(replay->reference->steps[step - 1].document,
                                              "hessian_grads_after_step")
                            : NULL;
    if (gradient.map != NULL) {
        push(replay, &gradient, &replay->workers[worker]);
    }
}

static void do_step(struct replay *replay, uint32_t step)
{
    struct paramd_error error = {0};

    set_rates(replay, &replay->reference->steps[step]);
    for (uint32_t i = 0; i < replay->worker_count; i++) {
        checks_before(replay->reference, step, replay->workers[i].client, replay->result);
        push_hessian(replay, step, i);
        for (uint32_t k = 0; k < replay->micro_batch_count; k++) {
            struct gradient gradient = gradient_of(replay, step, i, k);
            push(replay, &gradient, &replay->workers[i]);
        }
    }
    for (uint32_t i = 0; i < replay->worker_count; i++) {
        uint64_t version = 0;
        ck_assert_msg(paramd_pull(replay->workers[i].client, PARAMD_NEXT, replay->workers[i].values,
                                  &version, &error) == PARAMD_OK,
                      "%s", error.message);
        ck_assert_uint_eq(version, step + 1);
        compare(replay, step, &replay->workers[i]);
        checks_after(replay->reference, step, replay->workers[i].client, replay->result);
    }
}

static void run(struct replay *replay, const char *config)
{
    uint32_t shard_count = replay->options->shard_count;

    replay->rates = allocate(replay->reference->group_count, sizeof *replay->rates);
    for (uint32_t group = 0; group < replay->reference->group_count; group++) {
        replay->rates[group] = settings_rate(replay->settings, group);
    }
    cluster_start(&replay->cluster, shard_count == 1 ? CLUSTER_ALONE : shard_count, "%s", config);
    start_workers(replay);
    for (uint32_t step = 0; step < replay->reference->step_count; step++) {
        do_step(replay, step);
    }
    stop_workers(replay);
    cluster_drain(&replay->cluster);
    cluster_stop(&replay->cluster);
    pd_heap_free(replay->rates);
}

void replay_trajectory(const struct replay_options *options, const char *directory,
                       const char *name, struct replay_result *result)
{
    struct vectors_case reference;

    vectors_case_init(&reference, directory, name);
    struct replay replay = {.reference = &reference, .options = options, .result = result};
    if (reference.step_count == 0) {
        replay_say(result, REPLAY_FAILED, "no steps");
    } else {
        char *config = prepare(&replay);
        if (config != NULL && !options->list_skipped) {
            run(&replay, config);
        }
        free(config);
        json_decref(replay.settings);
    }
    vectors_case_finish(&reference);
}
