#include "tests/simulation/plan.h"

#include "common/assert.h"
#include "server/core/staging.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHURN_ONE_IN 6u

/* ---- The model ---- */

void sim_plan_add_tensor(struct sim_plan *plan, const char *name, uint32_t dimension_count,
                         const uint64_t *shape)
{
    struct pd_error error = {0};
    enum pd_status status =
        pd_tensor_list_append(&plan->model, name, strlen(name), dimension_count, shape, &error);
    PD_ASSERT(status == PD_OK);
}

static void begin_model(struct sim_plan *plan)
{
    struct pd_error error = {0};
    enum pd_status status = pd_tensor_list_init(&plan->model, 16, &error);
    PD_ASSERT(status == PD_OK);
}

/* From a single number to some hundred in tensors of odd shapes. */
static void choose_model(struct sim_plan *plan, struct sim_agenda *chance)
{
    static const char *const endings[] = {"weight", "bias", "norm", "scale"};
    uint64_t tensor_count = sim_chance(chance, 6) ? 1 : sim_between(chance, 2, 7);

    begin_model(plan);
    for (uint64_t i = 0; i < tensor_count; i++) {
        char name[32];
        uint64_t shape[3];
        uint32_t dimension_count = (uint32_t)sim_below(chance, 4);
        for (uint32_t d = 0; d < dimension_count; d++) {
            shape[d] = sim_between(chance, 1, dimension_count == 1 ? 40 : 9);
        }
        snprintf(name, sizeof name, "layer%u.%s", (unsigned)i,
                 endings[sim_below(chance, sizeof endings / sizeof endings[0])]);
        sim_plan_add_tensor(plan, name, dimension_count, shape);
    }
}

/* ---- The configuration ---- */

static void add(struct sim_plan *plan, const char *format, ...) PD_PRINTF(2, 3);

static void add(struct sim_plan *plan, const char *format, ...)
{
    size_t used = strlen(plan->config);
    va_list arguments;

    va_start(arguments, format);
    int written = vsnprintf(plan->config + used, sizeof plan->config - used, format, arguments);
    va_end(arguments);
    PD_ASSERT(written >= 0 && (size_t)written < sizeof plan->config - used);
}

static uint64_t optimizer_count(void)
{
    uint64_t count = 0;
    while (pd_optimizer_at(count) != NULL) {
        count++;
    }
    return count;
}

/* Mostly those whose formulas the test has, too. */
static void choose_optimizer(struct sim_plan *plan, struct sim_agenda *chance)
{
    const char *name;

    switch (sim_below(chance, 10)) {
    case 0:
        add(plan, "optimizer: {name: sgd, lr: 0.05, weight_decay: 0.01}\n");
        break;
    case 1:
        add(plan, "optimizer: {name: sgd, lr: 0.02, momentum: 0.9, dampening: 0.1}\n");
        break;
    case 2:
        add(plan, "optimizer: {name: sgd, lr: 0.02, momentum: 0.9, nesterov: true}\n");
        break;
    case 3:
        add(plan, "optimizer: {name: adam, lr: 0.01, weight_decay: 0.02}\n");
        break;
    case 4:
        add(plan, "optimizer: {name: adamw, lr: 0.01, betas: [0.8, 0.95], weight_decay: 0.1}\n");
        break;
    case 5:
        name = pd_optimizer_at(sim_below(chance, optimizer_count()))->name;
        add(plan, "optimizer: {name: %s, lr: 0.01%s}\n", name,
            strcmp(name, "adafactor") == 0 ? ", relative_step: false" : "");
        break;
    case 6:
    case 7:
        add(plan, "optimizer: {name: sophia_g, lr: 0.01, bs: 50}\n");
        break;
    default:
        add(plan, "optimizer: {name: lamb, lr: 0.01, weight_decay: 0.02, max_grad_norm: %s}\n",
            sim_chance(chance, 2) ? "1.5" : "null");
        break;
    }
}

static void choose_schedule(struct sim_plan *plan, struct sim_agenda *chance)
{
    switch (sim_below(chance, 4)) {
    case 0:
        add(plan, "schedule:\n"
                  "  - {name: linear, start_factor: 0.1, steps: 3}\n"
                  "  - {name: cosine, t_max: 6, eta_min: 1e-4}\n");
        break;
    case 1:
        add(plan, "schedule: {name: step, step_size: 2, gamma: 0.5}\n");
        break;
    case 2:
        add(plan, "schedule: {name: constant, factor: 0.5, steps: 4}\n");
        break;
    default:
        break;
    }
}

static void choose_clip(struct sim_plan *plan, struct sim_agenda *chance)
{
    static const char *const types[] = {"2", "1", ".inf", "3"};

    if (sim_chance(chance, 2)) {
        add(plan, "clip: {norm: 0.7, norm_type: %s%s}\n", types[sim_below(chance, 4)],
            sim_chance(chance, 3) ? ", value: 0.4" : "");
    }
}

/* A divisor of the ranks. */
static uint32_t choose_lanes(struct sim_agenda *chance, uint32_t rank_count)
{
    uint32_t lanes = 0;
    while (lanes == 0 || rank_count % lanes != 0) {
        lanes = (uint32_t)sim_between(chance, 1, rank_count);
    }
    return lanes;
}

static void choose_config(struct sim_plan *plan, struct sim_agenda *chance)
{
    static const char *const rules[] = {"none", "linear", "sqrt"};
    bool direct = sim_chance(chance, 2);

    add(plan, "aggregation: %s\n", direct ? "direct" : "allreduce");
    if (sim_chance(chance, 2)) {
        add(plan, "lanes: %u\n",
            direct ? plan->rank_count : choose_lanes(chance, plan->rank_count));
    }
    add(plan, "accumulation_steps: %u\n",
        sim_chance(chance, 2) ? 1u : (unsigned)sim_between(chance, 2, 4));
    add(plan, "block_size: %u\n", 1u << sim_below(chance, 7));
    add(plan, "lr_scaling: {rule: %s, base_batch: 64}\n", rules[sim_below(chance, 3)]);
    if (sim_chance(chance, 2)) {
        add(plan,
            "groups:\n"
            "  - {match: [\"*.bias\", \"*norm*\"], weight_decay: 0%s}\n"
            "  - {name: flat, max_dims: 1, lr: 0.005%s}\n",
            sim_chance(chance, 2) ? ", clip: {norm: 0.1, norm_type: 1}" : "",
            sim_chance(chance, 3) ? ", frozen: true" : "");
    }
    choose_optimizer(plan, chance);
    choose_schedule(plan, chance);
    choose_clip(plan, chance);
}

/* ---- The workers ---- */

static void choose_worker(struct sim_worker_plan *worker, struct sim_agenda *chance, uint32_t index,
                          uint32_t rank_count, uint64_t steps, bool steady, bool stormy,
                          uint64_t absent_one_in)
{
    worker->start_us = sim_below(chance, 2000000);
    worker->compute_us = sim_between(chance, 100, sim_chance(chance, 4) ? 900000 : 30000);
    worker->push_dtype = (enum pd_dtype)sim_below(chance, 3);
    worker->pull_dtype = (enum pd_dtype)sim_below(chance, 3);
    worker->combined = sim_chance(chance, 2);
    worker->checksum = sim_chance(chance, 2);
    worker->last_step = steady ? steps : sim_between(chance, 1, steps);
    worker->leave_batches = (uint32_t)sim_below(chance, 3);
    worker->hasty = sim_chance(chance, 4);
    worker->short_one_in = sim_chance(chance, 3) ? 3 : 0;
    worker->empty_one_in = sim_chance(chance, 4) ? 4 : 0;
    worker->poison_one_in = sim_chance(chance, 5) ? 8 : 0;
    worker->absent_one_in = absent_one_in;
    worker->hessian_one_in = sim_chance(chance, 4) ? 0 : sim_between(chance, 1, 3);
    worker->repeat_one_in = sim_chance(chance, 3) ? 3 : 0;
    worker->slow = sim_chance(chance, 5) ? (uint32_t)sim_between(chance, 2, 30) : 1;
    snprintf(worker->name, sizeof worker->name, "%c%u", (char)('a' + (char)sim_below(chance, 26)),
             index);
    snprintf(worker->host, sizeof worker->host, "host%u", (unsigned)sim_below(chance, rank_count));
    if (!stormy) {
        return;
    }
    if (sim_chance(chance, 3)) {
        worker->crash_us = worker->start_us + sim_below(chance, 5000000);
    } else if (sim_chance(chance, 2)) {
        worker->crash_after_us = 1 + sim_below(chance, 30000);
    }
    if (sim_chance(chance, 4)) {
        worker->hang_us = worker->start_us + sim_below(chance, 6000000);
        worker->hang_for_us = sim_between(chance, 1000000, 20000000);
    }
    worker->return_us = steady || sim_chance(chance, 2) ? sim_between(chance, 1000, 9000000) : 0;
}

static void choose_commands(struct sim_plan *plan, struct sim_agenda *chance)
{
    static const char *const queries[] = {"status", "lr", "step", "schedule", "workers", "tensors"};
    plan->command_count = (uint32_t)sim_below(chance, 5);
    for (uint32_t i = 0; i < plan->command_count; i++) {
        struct sim_command *command = &plan->commands[i];
        command->time_us = 1500000 + sim_below(chance, 6000000);
        switch (sim_below(chance, 6)) {
        case 0:
            snprintf(command->command, sizeof command->command, "set-lr");
            command->has_value = !sim_chance(chance, 4);
            command->value = 0.001 * (double)sim_between(chance, 1, 30);
            snprintf(command->target, sizeof command->target, "%s",
                     sim_chance(chance, 3) ? "default" : "");
            break;
        case 1:
            snprintf(command->command, sizeof command->command, "pause");
            break;
        case 2:
            snprintf(command->command, sizeof command->command, "lr-find");
            command->steps = sim_between(chance, 2, 6);
            command->after_us = sim_below(chance, 4000000);
            break;
        default:
            snprintf(command->command, sizeof command->command, "%s",
                     queries[sim_below(chance, 6)]);
            break;
        }
    }
    /* What is paused goes on in the end. */
    if (plan->command_count > 0) {
        struct sim_command *last = &plan->commands[plan->command_count++];
        last->time_us = 9000000;
        snprintf(last->command, sizeof last->command, "resume");
    }
}

/* Whether steps begin while their gradients arrive, and who takes parameters then. */
static void choose_ahead(struct sim_plan *plan, struct sim_agenda *chance)
{
    uint64_t lane = plan->model.element_count / plan->rank_count;
    uint64_t elements = sim_chance(chance, 4) ? 0 : sim_between(chance, 1, 60);

    /* A lane holds less, and those of a few workers four times as much. */
    if (elements > 30) {
        elements = lane + 1 + lane * (elements - 30) / 60;
    }
    add(plan, "compute_ahead: %" PRIu64 "\n", elements);
    for (uint32_t i = 0; i < plan->worker_count; i++) {
        plan->workers[i].ahead = !sim_chance(chance, 4);
    }
}

uint64_t sim_plan_place_bytes(const struct sim_plan *plan)
{
    struct pd_config *config = NULL;
    struct pd_shard_plan *shards = NULL;
    struct pd_staging *staging = sim_alloc(1, sizeof *staging);
    struct pd_error error = {0};
    uint32_t lane_count = 0;

    enum pd_status status = pd_config_create(&config, "plan", plan->config, NULL, 0, &error);
    PD_ASSERT(status == PD_OK);
    status = pd_config_lanes(config, plan->rank_count, &lane_count, &error);
    PD_ASSERT(status == PD_OK);
    status = pd_shard_plan_create(&shards, &plan->model, (uint32_t)config->block_size,
                                  plan->rank_count, lane_count, &error);
    PD_ASSERT(status == PD_OK);
    status = pd_staging_init(staging, config, shards, 0, &error);
    PD_ASSERT(status == PD_OK);
    uint64_t bytes = staging->place_bytes;
    free(staging);
    pd_shard_plan_destroy(shards);
    pd_config_destroy(config);
    return bytes;
}

/* Who trains; sometimes there is not room for all of them at a time. */
static void choose_places(struct sim_plan *plan, struct sim_agenda *chance, uint64_t expected)
{
    char limit[64] = "";

    if (sim_chance(chance, 3)) {
        uint64_t place_bytes = sim_plan_place_bytes(plan);
        snprintf(limit, sizeof limit, ", staging_limit: %" PRIu64,
                 place_bytes * sim_between(chance, 1, 3) + sim_below(chance, place_bytes));
    }
    add(plan, "workers: {expected: %u, lease_s: 8, resume_s: 3%s}\n", (unsigned)expected, limit);
}

static void choose_network(struct sim_plan *plan, struct sim_agenda *chance, bool stormy)
{
    plan->delay_us_max = sim_between(chance, 20, 3000);
    plan->straggle_one_in = sim_chance(chance, 2) ? 50 : 0;
    plan->work_us_max = sim_between(chance, 1, 2000);
    plan->notice_us_max = sim_chance(chance, 2) ? 1000 : 2000000;
    plan->damage_one_in = sim_chance(chance, 3) ? 12 : 0;
    if (stormy || sim_chance(chance, 2)) {
        plan->cut_one_in = sim_between(chance, 60, 400);
    }
}

static void init_mixed(struct sim_plan *plan, struct sim_agenda *chance)
{
    plan->rank_count = (uint32_t)sim_between(chance, 1, 6);
    plan->worker_count = (uint32_t)sim_between(chance, 1, SIM_WORKER_COUNT_MAX);
    uint64_t steps = sim_between(chance, 3, 14);
    bool stormy = sim_chance(chance, 2);
    uint64_t steady_count = sim_between(chance, 1, plan->worker_count);
    choose_model(plan, chance);
    uint64_t expected = sim_between(chance, 1, steady_count);
    choose_config(plan, chance);
    choose_network(plan, chance, stormy);
    /* A tensor is left alone only when nobody has a gradient for it. */
    uint64_t absent_one_in = sim_chance(chance, 4) ? sim_between(chance, 1, 3) : 0;
    for (uint32_t i = 0; i < plan->worker_count; i++) {
        choose_worker(&plan->workers[i], chance, i, plan->rank_count, steps, i < steady_count,
                      stormy, absent_one_in);
    }
    choose_commands(plan, chance);
    plan->drained_early = sim_chance(chance, 6);
    choose_ahead(plan, chance);
    if (plan->rank_count > 1 && sim_chance(chance, 12)) {
        plan->kill_us = 1500000 + sim_below(chance, 6000000);
        plan->kill_rank = (uint32_t)sim_below(chance, plan->rank_count);
    } else if (plan->rank_count > 1 && sim_chance(chance, 6)) {
        plan->stop_us = 1000000 + sim_below(chance, 6000000);
        plan->stop_rank = (uint32_t)sim_below(chance, plan->rank_count);
        plan->stop_for_us = sim_between(chance, 100000, 6000000);
    }
    choose_places(plan, chance, expected);
}

/* ---- Churn: workers come and go all the time, and so do the ways in which steps begin ahead ----
 */

/* From some of the workers on, gradients are added up ahead; or blocks are, whoever is there. */
static void choose_churn_ahead(struct sim_plan *plan, struct sim_agenda *chance,
                               uint32_t block_size)
{
    struct pd_shard_plan *shards = NULL;
    struct pd_error error = {0};

    enum pd_status status = pd_shard_plan_create(&shards, &plan->model, block_size,
                                                 plan->rank_count, plan->rank_count, &error);
    PD_ASSERT(status == PD_OK);
    uint64_t lane = shards->lanes[0].element_count;
    add(plan, "compute_ahead: %" PRIu64 "\n", 1 + lane * sim_between(chance, 3, 7) / 4);
    pd_shard_plan_destroy(shards);
}

static void choose_churn_config(struct sim_plan *plan, struct sim_agenda *chance)
{
    static const char *const optimizers[] = {"{name: sgd, lr: 0.05}",
                                             "{name: adamw, lr: 0.01, weight_decay: 0.1}",
                                             "{name: lamb, lr: 0.01, weight_decay: 0.02}"};
    uint32_t block_size = 1u << sim_below(chance, 7);

    add(plan, "aggregation: direct\nblock_size: %u\noptimizer: %s\n", block_size,
        optimizers[sim_below(chance, 3)]);
    add(plan, "accumulation_steps: %u\n", sim_chance(chance, 6) ? 2u : 1u);
    add(plan, "workers: {expected: %u, lease_s: 8, resume_s: %u}\n",
        (unsigned)sim_between(chance, 1, 4), (unsigned)sim_between(chance, 1, 3));
    choose_clip(plan, chance);
    choose_churn_ahead(plan, chance, block_size);
}

static void choose_churn_worker(struct sim_plan *plan, struct sim_agenda *chance, uint32_t index,
                                uint64_t steps)
{
    struct sim_worker_plan *worker = &plan->workers[index];

    choose_worker(worker, chance, index, plan->rank_count, steps, true, sim_chance(chance, 3), 0);
    worker->start_us = sim_below(chance, 300000);
    worker->compute_us = sim_between(chance, 100, 20000);
    worker->combined = !sim_chance(chance, 4);
    worker->ahead = !sim_chance(chance, 4);
    worker->stay_steps = sim_chance(chance, 4) ? 0 : sim_between(chance, 1, 6);
    worker->return_us = sim_between(chance, 1000, 200000);
}

static void choose_evictions(struct sim_plan *plan, struct sim_agenda *chance)
{
    plan->command_count = (uint32_t)sim_below(chance, 8);
    for (uint32_t i = 0; i < plan->command_count; i++) {
        struct sim_command *command = &plan->commands[i];
        command->time_us = 100000 + sim_below(chance, 2000000);
        snprintf(command->command, sizeof command->command, "evict");
        snprintf(command->target, sizeof command->target, "%.31s",
                 plan->workers[sim_below(chance, plan->worker_count)].name);
    }
}

static void init_churn(struct sim_plan *plan, struct sim_agenda *chance)
{
    uint64_t steps = sim_between(chance, 8, 20);

    plan->rank_count = (uint32_t)sim_between(chance, 1, 4);
    plan->worker_count = SIM_WORKER_COUNT_MAX;
    choose_model(plan, chance);
    choose_churn_config(plan, chance);
    choose_network(plan, chance, true);
    plan->cut_one_in *= 5; /* most steps are to close though that many take part */
    plan->work_us_max = sim_between(chance, 1, 8000);
    for (uint32_t i = 0; i < plan->worker_count; i++) {
        choose_churn_worker(plan, chance, i, steps);
    }
    choose_evictions(plan, chance);
}

void sim_plan_init(struct sim_plan *plan, uint64_t seed)
{
    struct sim_agenda chance;

    sim_agenda_init(&chance, sim_mix(seed, 0x91a9));
    memset(plan, 0, sizeof *plan);
    plan->seed = seed;
    plan->data_seed = seed;
    plan->time_us_max = 900000000;
    if (sim_mix(seed, 0xc4a7) % CHURN_ONE_IN == 0) {
        init_churn(plan, &chance);
    } else {
        init_mixed(plan, &chance);
    }
    sim_agenda_finish(&chance);
}

void sim_plan_init_calm(struct sim_plan *plan, uint64_t seed, uint32_t rank_count,
                        uint32_t worker_count, uint64_t steps, const char *config)
{
    memset(plan, 0, sizeof *plan);
    plan->seed = seed;
    plan->data_seed = 1;
    plan->rank_count = rank_count;
    plan->worker_count = worker_count;
    plan->delay_us_max = 300;
    plan->work_us_max = 50;
    plan->notice_us_max = 1000;
    plan->time_us_max = 900000000;
    begin_model(plan);
    sim_plan_add_tensor(plan, "embed.weight", 2, (const uint64_t[]){7, 5});
    sim_plan_add_tensor(plan, "head.weight", 3, (const uint64_t[]){3, 2, 11});
    sim_plan_add_tensor(plan, "head.bias", 1, (const uint64_t[]){13});
    sim_plan_add_tensor(plan, "temperature", 0, NULL);
    add(plan, "%s", config);
    for (uint32_t i = 0; i < worker_count; i++) {
        struct sim_worker_plan *worker = &plan->workers[i];
        snprintf(worker->name, sizeof worker->name, "worker%u", i);
        snprintf(worker->host, sizeof worker->host, "host%u", i);
        worker->start_us = 1000 + 100 * i;
        worker->compute_us = 2000;
        worker->last_step = steps;
        worker->checksum = true;
        worker->combined = true;
        worker->ahead = true;
        worker->slow = 1;
    }
}

void sim_plan_finish(struct sim_plan *plan)
{
    pd_tensor_list_finish(&plan->model);
}
