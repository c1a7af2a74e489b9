#include "tests/support/trajectory.h"

#include "common/heap.h"
#include "server/core/clip.h"
#include "server/core/reduce.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One tensor on its way. */
struct flight {
    float *gradient;
    float *parameters;
    float *parameters_next;
    float *state[PD_OPTIMIZER_STATE_COUNT_MAX];
    uint64_t step_count; /* steps in which it had a gradient */
};

struct trajectory {
    const struct vectors_case *reference;
    const struct trajectory_options *options;
    const struct pd_optimizer *optimizer;
    struct pd_hyper *hypers; /* of each group */
    struct flight *flights;  /* of each tensor */
    double worst_error;
};

static _Noreturn void fail(const char *case_name, const char *what, const char *value)
{
    fprintf(stderr, "trajectory: %s: %s %s\n", case_name, what, value);
    exit(EXIT_FAILURE);
}

static void *allocate(size_t count, size_t item_bytes)
{
    void *memory = pd_heap_zalloc(count, item_bytes);
    if (memory == NULL) {
        fail("allocation", "out of memory", "");
    }
    return memory;
}

static const struct pd_option *find_option(const struct pd_optimizer *optimizer, const char *key)
{
    for (uint32_t i = 0; i < optimizer->option_count; i++) {
        if (strcmp(optimizer->options[i].key, key) == 0) {
            return &optimizer->options[i];
        }
    }
    return NULL;
}

/* Set one option to a JSON value, which is YAML as well. */
static void set_option(const char *case_name, const struct pd_option *option, const json_t *value,
                       struct pd_hyper *hyper)
{
    struct pd_error error = {0};
    struct pd_node *node = NULL;
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));

    if (pd_node_parse(&node, &(struct pd_config_source){.file = case_name}, text, &error) !=
            PD_OK ||
        pd_option_read(option, option->key, node, hyper, &error) != PD_OK) {
        fail(case_name, option->key, error.message);
    }
    pd_node_destroy(node);
    free(text);
}

/* The rule's defaults, then what the case says. A key the rule lacks may only be off. */
static void read_hyper(const struct trajectory *trajectory, uint32_t group, struct pd_hyper *hyper)
{
    const struct vectors_case *reference = trajectory->reference;
    const struct pd_optimizer *optimizer = trajectory->optimizer;
    json_t *values = vectors_case_options(reference, group);
    struct pd_error error = {0};
    const char *key = NULL;
    json_t *value = NULL;

    if (pd_option_defaults(optimizer->options, optimizer->option_count, hyper, &error) != PD_OK) {
        fail(reference->name, "defaults:", error.message);
    }
    json_object_foreach(values, key, value)
    {
        const struct pd_option *option = find_option(optimizer, key);
        if (option != NULL) {
            set_option(reference->name, option, value, hyper);
        } else if (!json_is_false(value) && !json_is_null(value)) {
            fail(reference->name, "the rule does not offer", key);
        }
    }
    json_decref(values);
}

static void trajectory_init(struct trajectory *trajectory)
{
    const struct vectors_case *reference = trajectory->reference;

    trajectory->optimizer = pd_optimizer_find(reference->optimizer);
    if (trajectory->optimizer == NULL) {
        fail(reference->name, "no rule of the name", reference->optimizer);
    }
    trajectory->hypers = allocate(reference->group_count, sizeof *trajectory->hypers);
    for (uint32_t group = 0; group < reference->group_count; group++) {
        read_hyper(trajectory, group, &trajectory->hypers[group]);
    }
    trajectory->flights = allocate(reference->tensor_count, sizeof *trajectory->flights);
    for (uint32_t i = 0; i < reference->tensor_count; i++) {
        const struct vectors_tensor *tensor = &reference->tensors[i];
        struct flight *flight = &trajectory->flights[i];
        uint32_t states = trajectory->optimizer->state_count(&trajectory->hypers[tensor->group]);
        flight->gradient = allocate(tensor->count, sizeof(float));
        flight->parameters = allocate(tensor->count, sizeof(float));
        flight->parameters_next = allocate(tensor->count, sizeof(float));
        memcpy(flight->parameters, tensor->init, tensor->count * sizeof(float));
        for (uint32_t k = 0; k < states; k++) {
            flight->state[k] = allocate(tensor->count, sizeof(float));
        }
    }
}

static void trajectory_finish(struct trajectory *trajectory)
{
    for (uint32_t i = 0; i < trajectory->reference->tensor_count; i++) {
        struct flight *flight = &trajectory->flights[i];
        pd_heap_free(flight->gradient);
        pd_heap_free(flight->parameters);
        pd_heap_free(flight->parameters_next);
        for (uint32_t k = 0; k < PD_OPTIMIZER_STATE_COUNT_MAX; k++) {
            pd_heap_free(flight->state[k]);
        }
    }
    pd_heap_free(trajectory->flights);
    pd_heap_free(trajectory->hypers);
}

static uint32_t block_count(const struct trajectory *trajectory, uint32_t begin, uint32_t count)
{
    uint32_t left = count - begin;
    return left < trajectory->options->block_size ? left : trajectory->options->block_size;
}

/* Load the step's gradients, divided by the scale, and give their global norm after it. */
static double load_gradients(struct trajectory *trajectory, const struct vectors_step *step)
{
    const struct vectors_case *reference = trajectory->reference;
    double powers[2];
    double total = 0;

    for (uint32_t i = 0; i < reference->tensor_count; i++) {
        if (step->gradients[i] == NULL) {
            continue;
        }
        struct flight *flight = &trajectory->flights[i];
        uint32_t count = reference->tensors[i].count;
        for (uint32_t k = 0; k < count; k++) {
            flight->gradient[k] =
                step->gradients[i][k] / (float)trajectory->options->gradient_scale;
        }
        for (uint32_t begin = 0; begin < count; begin += trajectory->options->block_size) {
            pd_reduce_norms(flight->gradient + begin, block_count(trajectory, begin, count), 2,
                            powers);
            total += powers[1];
        }
    }
    return sqrt(total) * trajectory->options->gradient_scale;
}

static struct pd_optimizer_block block_at(const struct trajectory *trajectory, uint32_t tensor,
                                          uint32_t begin)
{
    const struct flight *flight = &trajectory->flights[tensor];
    struct pd_optimizer_block block = {
        .count = block_count(trajectory, begin, trajectory->reference->tensors[tensor].count),
        .gradient = flight->gradient + begin,
        .parameters = flight->parameters + begin,
        .parameters_next = flight->parameters_next + begin,
    };
    for (uint32_t k = 0; k < PD_OPTIMIZER_STATE_COUNT_MAX; k++) {
        block.state[k] = flight->state[k] != NULL ? flight->state[k] + begin : NULL;
    }
    return block;
}

/* Both passes over one tensor, its blocks in order. */
static void step_tensor(struct trajectory *trajectory, uint32_t tensor,
                        const struct pd_optimizer_step *step)
{
    const struct pd_optimizer *optimizer = trajectory->optimizer;
    uint32_t count = trajectory->reference->tensors[tensor].count;
    struct flight *flight = &trajectory->flights[tensor];
    double totals[PD_OPTIMIZER_SUM_COUNT] = {0};

    for (uint32_t begin = 0; begin < count; begin += trajectory->options->block_size) {
        double sums[PD_OPTIMIZER_SUM_COUNT] = {0};
        struct pd_optimizer_block block = block_at(trajectory, tensor, begin);
        optimizer->update(step, &block, sums);
        for (uint32_t k = 0; k < PD_OPTIMIZER_SUM_COUNT; k++) {
            totals[k] += sums[k];
        }
    }
    for (uint32_t begin = 0; optimizer->apply != NULL && begin < count;
         begin += trajectory->options->block_size) {
        struct pd_optimizer_block block = block_at(trajectory, tensor, begin);
        optimizer->apply(step, &block, totals);
    }
    float *parameters = flight->parameters;
    flight->parameters = flight->parameters_next;
    flight->parameters_next = parameters;
}

/* Take in the largest error of one step. */
static void compare(struct trajectory *trajectory, uint32_t step)
{
    for (uint32_t i = 0; i < trajectory->reference->tensor_count; i++) {
        uint32_t worst;
        double error = vectors_case_error(trajectory->reference, step, i,
                                          trajectory->flights[i].parameters, &worst);
        trajectory->worst_error = fmax(trajectory->worst_error, error);
    }
}

static void trajectory_run(struct trajectory *trajectory)
{
    const struct vectors_case *reference = trajectory->reference;

    for (uint32_t s = 0; s < reference->step_count; s++) {
        const struct vectors_step *now = &reference->steps[s];
        double norm = load_gradients(trajectory, now);
        for (uint32_t i = 0; i < reference->tensor_count; i++) {
            if (now->gradients[i] == NULL) {
                continue;
            }
            struct flight *flight = &trajectory->flights[i];
            uint32_t group = reference->tensors[i].group;
            flight->step_count++;
            struct pd_optimizer_step step = {
                .hyper = &trajectory->hypers[group],
                .lr = now->lr[group],
                .number = flight->step_count,
                .group_number = s + 1,
                .gradient_scale = trajectory->options->gradient_scale,
                .gradient_norm = norm,
            };
            step_tensor(trajectory, i, &step);
        }
        compare(trajectory, s);
    }
}

double trajectory_worst_error(const struct vectors_case *reference,
                              const struct trajectory_options *options)
{
    struct trajectory trajectory = {.reference = reference, .options = options};

    trajectory_init(&trajectory);
    trajectory_run(&trajectory);
    trajectory_finish(&trajectory);
    return trajectory.worst_error;
}

float *trajectory_last_parameters(const struct vectors_case *reference,
                                  const struct trajectory_options *options, size_t *count)
{
    struct trajectory trajectory = {.reference = reference, .options = options};

    *count = 0;
    for (uint32_t i = 0; i < reference->tensor_count; i++) {
        *count += reference->tensors[i].count;
    }
    float *flat = allocate(*count, sizeof *flat);
    float *next = flat;
    trajectory_init(&trajectory);
    trajectory_run(&trajectory);
    for (uint32_t i = 0; i < reference->tensor_count; i++) {
        memcpy(next, trajectory.flights[i].parameters, reference->tensors[i].count * sizeof *next);
        next += reference->tensors[i].count;
    }
    trajectory_finish(&trajectory);
    return flat;
}
