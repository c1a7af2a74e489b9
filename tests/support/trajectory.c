#include "tests/support/trajectory.h"

#include "common/heap.h"
#include "server/core/clip.h"
#include "server/core/optimizer_state.h"
#include "server/core/reduce.h"
#include "server/core/tensor_sums.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct trajectory {
    const struct vectors_case *reference;
    const struct trajectory_options *options;
    struct pd_config *config; /* the optimizer and its groups */
    struct pd_tensor_list model;
    struct pd_shard_plan *plan; /* one rank has it all */
    uint32_t *groups;           /* of each tensor */
    uint64_t *step_counts;      /* of each tensor: steps in which it had a gradient */
    struct pd_optimizer_state state;
    struct pd_tensor_sums sums;
    double *parts;
    float *gradient; /* of the whole model, as the next two */
    float *parameters;
    float *parameters_next; /* or the gradient */
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
    const struct pd_optimizer *optimizer = trajectory->config->optimizer;
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
        if (option != NULL && json_is_null(value) && !option->nullable) {
            continue; /* the default */
        }
        if (option != NULL) {
            set_option(reference->name, option, value, hyper);
        } else if (!json_is_false(value) && !json_is_null(value) &&
                   !(json_is_number(value) && json_number_value(value) == 0)) {
            fail(reference->name, "the rule does not offer", key);
        }
    }
    json_decref(values);
}

static void init_model(struct trajectory *trajectory)
{
    const struct vectors_case *reference = trajectory->reference;
    struct pd_error error = {0};

    if (pd_tensor_list_init(&trajectory->model, reference->tensor_count, &error) != PD_OK) {
        fail(reference->name, "model:", error.message);
    }
    for (uint32_t i = 0; i < reference->tensor_count; i++) {
        const struct vectors_tensor *tensor = &reference->tensors[i];
        trajectory->groups[i] = tensor->group;
        if (pd_tensor_list_append(&trajectory->model, tensor->name, strlen(tensor->name),
                                  tensor->dimension_count, tensor->shape, &error) != PD_OK) {
            fail(reference->name, "model:", error.message);
        }
    }
    if (pd_shard_plan_create(&trajectory->plan, &trajectory->model, trajectory->options->block_size,
                             1, 1, &error) != PD_OK) {
        fail(reference->name, "blocks:", error.message);
    }
}

static void init_state(struct trajectory *trajectory)
{
    const struct pd_range *all = &trajectory->plan->shards[0];
    struct pd_error error = {0};

    if (pd_optimizer_state_init(&trajectory->state, trajectory->config, &trajectory->model,
                                trajectory->plan, all, trajectory->groups, false,
                                &error) != PD_OK ||
        pd_tensor_sums_init(&trajectory->sums, trajectory->config, &trajectory->model,
                            trajectory->plan, all, trajectory->groups, &error) != PD_OK) {
        fail(trajectory->reference->name, "state:", error.message);
    }
    trajectory->parts = allocate(trajectory->sums.all_count_max, sizeof(double));
}

static void trajectory_init(struct trajectory *trajectory)
{
    const struct vectors_case *reference = trajectory->reference;

    trajectory->config = allocate(1, sizeof *trajectory->config);
    trajectory->config->optimizer = pd_optimizer_find(reference->optimizer);
    trajectory->config->group_count = reference->group_count;
    if (trajectory->config->optimizer == NULL) {
        fail(reference->name, "no rule of the name", reference->optimizer);
    }
    for (uint32_t group = 0; group < reference->group_count; group++) {
        read_hyper(trajectory, group, &trajectory->config->groups[group].hyper);
        trajectory->config->groups[group].hyper.caution |= trajectory->options->cautious;
    }
    trajectory->groups = allocate(reference->tensor_count, sizeof *trajectory->groups);
    trajectory->step_counts = allocate(reference->tensor_count, sizeof *trajectory->step_counts);
    init_model(trajectory);
    init_state(trajectory);
    trajectory->gradient = allocate(trajectory->model.element_count, sizeof(float));
    trajectory->parameters = allocate(trajectory->model.element_count, sizeof(float));
    trajectory->parameters_next = trajectory->gradient;
    if (!trajectory->options->in_place) {
        trajectory->parameters_next = allocate(trajectory->model.element_count, sizeof(float));
    }
    for (uint32_t i = 0; i < reference->tensor_count; i++) {
        memcpy(trajectory->parameters + trajectory->model.tensors[i].element_begin,
               reference->tensors[i].init, reference->tensors[i].count * sizeof(float));
    }
}

static void trajectory_finish(struct trajectory *trajectory)
{
    if (trajectory->parameters_next != trajectory->gradient) {
        pd_heap_free(trajectory->parameters_next);
    }
    pd_heap_free(trajectory->parameters);
    pd_heap_free(trajectory->gradient);
    pd_heap_free(trajectory->parts);
    pd_tensor_sums_finish(&trajectory->sums);
    pd_optimizer_state_finish(&trajectory->state);
    pd_shard_plan_destroy(trajectory->plan);
    pd_tensor_list_finish(&trajectory->model);
    pd_heap_free(trajectory->step_counts);
    pd_heap_free(trajectory->groups);
    pd_heap_free(trajectory->config);
}

/* Load the step's gradients, divided by the scale, and give their global norm after it. */
static double load_gradients(struct trajectory *trajectory, const struct vectors_step *step)
{
    const struct pd_shard_plan *plan = trajectory->plan;
    double powers[2];
    double total = 0;

    for (uint32_t i = 0; i < trajectory->model.count; i++) {
        const struct pd_tensor *tensor = &trajectory->model.tensors[i];
        float *gradient = trajectory->gradient + tensor->element_begin;
        for (uint64_t k = 0; step->gradients[i] != NULL && k < tensor->element_count; k++) {
            gradient[k] = step->gradients[i][k] / (float)trajectory->options->gradient_scale;
        }
    }
    for (uint64_t i = 0; i < plan->block_count; i++) {
        const struct pd_block *block = &plan->blocks[i];
        if (step->gradients[block->tensor_index] != NULL) {
            pd_reduce_norms(trajectory->gradient + block->element_begin, block->element_count, 2,
                            powers);
            total += powers[1];
        }
    }
    return sqrt(total) * trajectory->options->gradient_scale;
}

static void run_block(struct trajectory *trajectory, uint32_t pass, uint64_t index,
                      const struct pd_optimizer_step *step)
{
    const struct pd_block *block = &trajectory->plan->blocks[index];
    const struct pd_tensor *tensor = &trajectory->model.tensors[block->tensor_index];
    struct pd_optimizer_span part = pd_tensor_sums_parts(&trajectory->sums, pass, index, 1);
    struct pd_optimizer_block view = {
        .begin = block->element_begin - tensor->element_begin,
        .count = block->element_count,
        .gradient = trajectory->gradient + block->element_begin,
        .parameters = trajectory->parameters + block->element_begin,
        .parameters_next = trajectory->parameters_next + block->element_begin,
        .partial = part.count > 0 ? trajectory->parts + part.begin : NULL,
    };

    if (pass > 0) {
        view.sums = pd_tensor_sums_of(&trajectory->sums, pass - 1, block->tensor_index);
    }
    pd_optimizer_state_run(pd_optimizer_state_of(&trajectory->state, block->tensor_index), pass,
                           step, &view);
}

/* One pass over the tensors that have a gradient. */
static void run_pass(struct trajectory *trajectory, uint32_t pass, const struct vectors_step *now,
                     const struct pd_optimizer_step *steps)
{
    for (uint32_t i = 0; i < trajectory->model.count; i++) {
        if (now->gradients[i] == NULL) {
            continue;
        }
        pd_optimizer_state_begin(pd_optimizer_state_of(&trajectory->state, i), pass, &steps[i],
                                 pass > 0 ? pd_tensor_sums_of(&trajectory->sums, pass - 1, i)
                                          : NULL);
        for (uint64_t block = trajectory->plan->tensor_blocks[i];
             block < trajectory->plan->tensor_blocks[i + 1]; block++) {
            run_block(trajectory, pass, block, &steps[i]);
        }
    }
    if (pd_tensor_sums_any(&trajectory->sums, pass)) {
        pd_tensor_sums_add(&trajectory->sums, pass, trajectory->parts);
    }
}

/* Give the rule the estimate of the Hessian that the reference takes in after a step, if any. */
static void take_estimate(struct trajectory *trajectory, const struct vectors_step *now)
{
    const json_t *estimates = json_object_get(now->document, "hessian_grads_after_step");

    for (uint64_t i = 0; i < trajectory->plan->block_count; i++) {
        const struct pd_block *block = &trajectory->plan->blocks[i];
        const struct pd_tensor *tensor = &trajectory->model.tensors[block->tensor_index];
        const json_t *list = json_object_get(estimates, tensor->name);
        uint64_t begin = block->element_begin - tensor->element_begin;
        struct pd_optimizer_block view = {.begin = begin, .count = block->element_count};
        uint32_t count = 0;
        if (list == NULL) {
            continue;
        }
        float *estimate = vectors_floats(list, &count);
        view.gradient = estimate + begin;
        pd_optimizer_state_estimate(pd_optimizer_state_of(&trajectory->state, block->tensor_index),
                                    &view);
        pd_heap_free(estimate);
    }
}

/* Whether the state of a tensor is what a case in 8 bits has after the step, if it says. */
static bool same_codes(const struct trajectory *trajectory, uint32_t step, uint32_t tensor)
{
    static const char *const names[] = {"state1", "state2"};
    const struct pd_tensor_state *state = pd_optimizer_state_of(&trajectory->state, tensor);
    const json_t *all = json_object_get(trajectory->reference->steps[step].document, "codes");
    const json_t *codes = json_object_get(all, trajectory->reference->tensors[tensor].name);

    for (uint32_t k = 0; k < 2; k++) {
        const json_t *list = json_object_get(codes, names[k]);
        for (size_t i = 0; i < json_array_size(list); i++) {
            if (state->codes[k][i] != json_integer_value(json_array_get(list, i))) {
                return false;
            }
        }
    }
    return true;
}

/* Take in the largest error of one step. */
static void compare(struct trajectory *trajectory, uint32_t step)
{
    for (uint32_t i = 0; i < trajectory->reference->tensor_count; i++) {
        const float *parameters =
            trajectory->parameters + trajectory->model.tensors[i].element_begin;
        uint32_t worst;
        double error = vectors_case_error(trajectory->reference, step, i, parameters, &worst);
        trajectory->worst_error = fmax(trajectory->worst_error, error);
        if (!same_codes(trajectory, step, i)) {
            trajectory->worst_error = INFINITY;
        }
    }
}

/* The next parameters of the tensors that had a gradient are those of the next step. */
static void publish(struct trajectory *trajectory, const struct vectors_step *now)
{
    for (uint32_t i = 0; i < trajectory->model.count; i++) {
        const struct pd_tensor *tensor = &trajectory->model.tensors[i];
        if (now->gradients[i] != NULL) {
            memcpy(trajectory->parameters + tensor->element_begin,
                   trajectory->parameters_next + tensor->element_begin,
                   tensor->element_count * sizeof(float));
        }
    }
}

static void trajectory_run(struct trajectory *trajectory)
{
    const struct vectors_case *reference = trajectory->reference;
    struct pd_optimizer_step *steps = allocate(reference->tensor_count, sizeof *steps);

    for (uint32_t s = 0; s < reference->step_count; s++) {
        const struct vectors_step *now = &reference->steps[s];
        double norm = load_gradients(trajectory, now);
        for (uint32_t i = 0; i < reference->tensor_count; i++) {
            uint32_t group = trajectory->groups[i];
            trajectory->step_counts[i] += now->gradients[i] != NULL;
            steps[i] = (struct pd_optimizer_step){
                .hyper = &trajectory->config->groups[group].hyper,
                .lr = now->lr[group],
                .initial_lr = trajectory->config->groups[group].hyper.lr,
                .number = trajectory->step_counts[i],
                .group_number = s + 1,
                .gradient_scale = trajectory->options->gradient_scale,
                .gradient_norm = norm,
            };
        }
        for (uint32_t pass = 0; pass < trajectory->sums.pass_count; pass++) {
            run_pass(trajectory, pass, now, steps);
        }
        publish(trajectory, now);
        compare(trajectory, s);
        take_estimate(trajectory, now);
    }
    pd_heap_free(steps);
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

    trajectory_init(&trajectory);
    trajectory_run(&trajectory);
    float *parameters = trajectory.parameters;
    *count = trajectory.model.element_count;
    trajectory.parameters = NULL;
    trajectory_finish(&trajectory);
    return parameters;
}
