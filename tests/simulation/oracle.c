#include "tests/simulation/oracle.h"

#include "server/core/clip.h"
#include "server/core/reduce.h"
#include "tests/simulation/formulas.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void sim_oracle_init(struct sim_oracle *oracle, struct sim_agenda *agenda,
                     struct sim_ledger *ledger, const struct pd_config *config,
                     const struct pd_tensor_list *model, uint32_t replica_count)
{
    struct pd_error error = {0};

    memset(oracle, 0, sizeof *oracle);
    oracle->agenda = agenda;
    oracle->ledger = ledger;
    oracle->config = config;
    oracle->model = model;
    oracle->replica_count = replica_count;
    if (pd_shard_plan_create(&oracle->blocks, model, (uint32_t)config->block_size, 1, 1, &error) !=
        PD_OK) {
        sim_fail(agenda, "%s", error.message);
    }
    oracle->groups = sim_alloc(model->count, sizeof *oracle->groups);
    oracle->misses = sim_alloc(model->count, sizeof *oracle->misses);
    for (uint32_t i = 0; i < model->count; i++) {
        oracle->groups[i] =
            pd_config_group_of(config, model->tensors[i].name, model->tensors[i].dimension_count);
        oracle->frozen |= (uint64_t)config->groups[oracle->groups[i]].frozen << i;
    }
    const struct pd_range *all = &oracle->blocks->shards[0];
    if (pd_optimizer_state_init(&oracle->state, config, model, oracle->blocks, all, oracle->groups,
                                false, &error) != PD_OK ||
        pd_tensor_sums_init(&oracle->sums, config, model, oracle->blocks, all, oracle->groups,
                            &error) != PD_OK ||
        pd_gradient_norms_init(&oracle->norms, config, oracle->blocks, model->count, oracle->groups,
                               &error) != PD_OK) {
        sim_fail(agenda, "%s", error.message);
    }
    oracle->gradient = sim_alloc(model->element_count, sizeof(float));
    oracle->scratch =
        sim_alloc(model->element_count, (replica_count + PD_WORKER_COUNT_MAX) * sizeof(float));
    oracle->exact = sim_alloc(model->element_count, sizeof(double));
    oracle->average = sim_alloc(model->element_count, sizeof(double));
    oracle->first = sim_alloc(model->element_count, sizeof(double));
    oracle->second = sim_alloc(model->element_count, sizeof(double));
    oracle->update = sim_alloc(model->element_count, sizeof(double));
}

void sim_oracle_finish(struct sim_oracle *oracle)
{
    pd_snapshot_finish(&oracle->kept);
    pd_gradient_norms_finish(&oracle->norms);
    pd_tensor_sums_finish(&oracle->sums);
    pd_optimizer_state_finish(&oracle->state);
    pd_shard_plan_destroy(oracle->blocks);
    free(oracle->groups);
    free(oracle->misses);
    for (size_t i = 0; i < oracle->version_count; i++) {
        free(oracle->versions[i]);
    }
    free(oracle->versions);
    free(oracle->steps);
    free(oracle->gradient);
    free(oracle->scratch);
    free(oracle->exact);
    free(oracle->average);
    free(oracle->first);
    free(oracle->second);
    free(oracle->update);
    memset(oracle, 0, sizeof *oracle);
}

static float *add_version(struct sim_oracle *oracle)
{
    oracle->versions = sim_grow(oracle->versions, oracle->version_count, &oracle->version_capacity,
                                sizeof(float *));
    float *values = sim_alloc(oracle->model->element_count, sizeof(float));
    oracle->versions[oracle->version_count++] = values;
    return values;
}

void sim_oracle_begin(struct sim_oracle *oracle, const float *values)
{
    SIM_CHECK(oracle->agenda, oracle->version_count == 0, "a second version 0");
    memcpy(add_version(oracle), values, oracle->model->element_count * sizeof(float));
    for (uint64_t i = 0; i < oracle->model->element_count; i++) {
        oracle->exact[i] = (double)values[i];
    }
}

/* ---- The gradient, with the kernels ---- */

/* The elements of one micro-batch after their way over the wire. */
static void fill_batch(const struct sim_oracle *oracle, const struct sim_contribution *contribution,
                       uint32_t index, float *out)
{
    const struct sim_batch *batch = &contribution->batches[index];
    const struct sim_member *member = sim_ledger_member(oracle->ledger, contribution->worker_id);
    uint64_t count = oracle->model->element_count;

    sim_gradient_fill(oracle->ledger, member->name, contribution->step, contribution->hessian,
                      index, batch, out);
    if (batch->dtype != PD_DTYPE_FLOAT32) {
        uint16_t *wire = sim_alloc(count, sizeof *wire);
        pd_convert_from_float32(wire, batch->dtype, out, count);
        pd_convert_to_float32(out, wire, batch->dtype, count);
        free(wire);
    }
}

/* Micro-batches summed with the first weighing 1. */
static void fill_contribution(const struct sim_oracle *oracle,
                              const struct sim_contribution *contribution, float *out,
                              float *scratch)
{
    uint64_t unit = sim_contribution_unit(contribution);
    uint64_t count = oracle->model->element_count;
    bool first = true;

    for (uint32_t i = 0; i < contribution->batch_count; i++) {
        const struct sim_batch *batch = &contribution->batches[i];
        if (batch->samples == 0 || batch->stored_lanes == 0) {
            continue;
        }
        struct pd_source source = {.elements = scratch,
                                   .dtype = PD_DTYPE_FLOAT32,
                                   .weight = (float)((double)batch->samples / (double)unit)};
        fill_batch(oracle, contribution, i, scratch);
        pd_reduce_add(out, &source, first, (uint32_t)count);
        first = false;
    }
}

static void sum_replica(struct sim_oracle *oracle, const struct pd_order *order, uint32_t replica,
                        float *out)
{
    struct pd_source sources[PD_WORKER_COUNT_MAX];
    uint64_t count = oracle->model->element_count;
    uint32_t source_count = 0;
    double unit = 0.0;

    for (uint32_t i = 0; i < order->contributor_count; i++) {
        const struct sim_contribution *contribution = sim_ledger_summed(oracle->ledger, order, i);
        const struct sim_member *member = sim_ledger_member(oracle->ledger, order->contributors[i]);
        if (member->replica != replica || !(order->weights[i] > 0.0)) {
            continue;
        }
        float *sum = oracle->scratch + (oracle->replica_count + source_count) * count;
        fill_contribution(oracle, contribution, sum, sum + count);
        unit = unit > 0.0 ? unit : order->weights[i];
        sources[source_count++] = (struct pd_source){.elements = sum,
                                                     .dtype = PD_DTYPE_FLOAT32,
                                                     .weight = (float)(order->weights[i] / unit)};
    }
    pd_reduce_block(out, sources, source_count, (uint32_t)count);
    for (uint64_t i = 0; i < count; i++) {
        out[i] *= (float)(unit / (double)order->samples);
    }
}

/* What is not finite in a frozen tensor is of no account. */
static void forget_frozen(struct sim_oracle *oracle)
{
    for (uint32_t i = 0; i < oracle->model->count; i++) {
        const struct pd_tensor *tensor = &oracle->model->tensors[i];
        if (oracle->frozen >> i & 1u) {
            memset(oracle->gradient + tensor->element_begin, 0,
                   tensor->element_count * sizeof(float));
        }
    }
}

static void sum_replicas(struct sim_oracle *oracle, const struct pd_order *order)
{
    struct pd_source sources[PD_RANK_COUNT_MAX];
    uint64_t count = oracle->model->element_count;

    if (oracle->replica_count == 1) {
        sum_replica(oracle, order, 0, oracle->gradient);
        return;
    }
    for (uint32_t replica = 0; replica < oracle->replica_count; replica++) {
        sources[replica] = (struct pd_source){.elements = oracle->scratch + replica * count,
                                              .dtype = PD_DTYPE_FLOAT32,
                                              .weight = 1.0f};
        sum_replica(oracle, order, replica, oracle->scratch + replica * count);
    }
    pd_reduce_block(oracle->gradient, sources, oracle->replica_count, (uint32_t)count);
}

static void average(struct sim_oracle *oracle, const struct pd_order *order)
{
    sum_replicas(oracle, order);
    forget_frozen(oracle);
}

/* ---- The step, with the kernels ---- */

static struct pd_optimizer_step tensor_step(const struct sim_oracle *oracle,
                                            const struct pd_optimizer_step *group_steps,
                                            uint32_t tensor)
{
    struct pd_optimizer_step step = group_steps[oracle->groups[tensor]];
    step.number -= oracle->misses[tensor];
    return step;
}

bool sim_oracle_rests(const struct sim_oracle *oracle, uint32_t tensor)
{
    return (oracle->absent | oracle->frozen) >> tensor & 1u;
}

/* The sums of the pass before. */
static const double *sums_before(const struct sim_oracle *oracle, uint32_t pass, uint32_t tensor)
{
    return pass == 0 ? NULL : pd_tensor_sums_of(&oracle->sums, pass - 1, tensor);
}

static void run_block(struct sim_oracle *oracle, const struct pd_optimizer_step *group_steps,
                      uint32_t pass, const struct pd_block *block, float *next, double *partial)
{
    const struct pd_tensor *tensor = &oracle->model->tensors[block->tensor_index];
    struct pd_optimizer_step step = tensor_step(oracle, group_steps, block->tensor_index);
    struct pd_optimizer_block view = {
        .begin = block->element_begin - tensor->element_begin,
        .count = block->element_count,
        .gradient = oracle->gradient + block->element_begin,
        .parameters = oracle->versions[oracle->version_count - 2] + block->element_begin,
        .parameters_next = next + block->element_begin,
        .sums = sums_before(oracle, pass, block->tensor_index),
        .partial = partial,
    };

    if (sim_oracle_rests(oracle, block->tensor_index)) {
        memcpy(view.parameters_next, view.parameters, view.count * sizeof(float));
        return;
    }
    pd_optimizer_state_run(pd_optimizer_state_of(&oracle->state, block->tensor_index), pass, &step,
                           &view);
}

/* Run one pass over all blocks and add up what it gives to the next. */
static void run_pass(struct sim_oracle *oracle, const struct pd_optimizer_step *group_steps,
                     uint32_t pass, float *next)
{
    const struct pd_shard_plan *plan = oracle->blocks;
    double *parts = sim_alloc(oracle->sums.all_count_max + 1, sizeof *parts);

    for (uint32_t i = 0; i < oracle->model->count; i++) {
        struct pd_optimizer_step step = tensor_step(oracle, group_steps, i);
        if (!sim_oracle_rests(oracle, i)) {
            pd_optimizer_state_begin(pd_optimizer_state_of(&oracle->state, i), pass, &step,
                                     sums_before(oracle, pass, i));
        }
    }
    for (uint64_t i = 0; i < plan->block_count; i++) {
        struct pd_optimizer_span part = pd_tensor_sums_parts(&oracle->sums, pass, i, 1);
        run_block(oracle, group_steps, pass, &plan->blocks[i], next,
                  part.count > 0 ? parts + part.begin : NULL);
    }
    if (pd_tensor_sums_any(&oracle->sums, pass)) {
        pd_tensor_sums_add(&oracle->sums, pass, parts);
    }
    free(parts);
}

static void update(struct sim_oracle *oracle, const struct pd_optimizer_step *group_steps,
                   float *next)
{
    for (uint32_t pass = 0; pass < oracle->sums.pass_count; pass++) {
        run_pass(oracle, group_steps, pass, next);
    }
}

static bool all_finite(const float *elements, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        if (!isfinite(elements[i])) {
            return false;
        }
    }
    return true;
}

/* Clip, take the norms and step; false when the gradient is not finite. */
static bool step_with_kernels(struct sim_oracle *oracle, const struct pd_order *order, float *next)
{
    const struct pd_config *config = oracle->config;
    const struct pd_shard_plan *plan = oracle->blocks;
    struct pd_optimizer_step group_steps[PD_GROUP_COUNT_MAX + 1];
    double *parts = sim_alloc(plan->block_count, PD_NORM_PART_COUNT * sizeof(double));

    average(oracle, order);
    if (!all_finite(oracle->gradient, oracle->model->element_count)) {
        free(parts);
        return false;
    }
    for (uint64_t i = 0; i < plan->block_count; i++) {
        const struct pd_block *block = &plan->blocks[i];
        const struct pd_group *group = &config->groups[oracle->groups[block->tensor_index]];
        float *elements = oracle->gradient + block->element_begin;
        if (!isnan(group->clip.value)) {
            pd_reduce_clamp(elements, (float)group->clip.value, block->element_count);
        }
        pd_gradient_norms_measure(&oracle->norms, block->tensor_index, elements,
                                  block->element_count, &parts[PD_NORM_PART_COUNT * i]);
    }
    pd_gradient_norms_take(&oracle->norms, parts, &order->absent);
    free(parts);
    for (uint32_t group = 0; group < config->group_count; group++) {
        group_steps[group] =
            (struct pd_optimizer_step){.hyper = &config->groups[group].hyper,
                                       .lr = order->lrs[group],
                                       .initial_lr = config->groups[group].hyper.lr,
                                       .number = oracle->applied + 1,
                                       .group_number = oracle->applied + 1,
                                       .gradient_scale = oracle->norms.scales[group],
                                       .gradient_norm = oracle->norms.clipped_norm2};
    }
    update(oracle, group_steps, next);
    return true;
}

static struct sim_step *note_step(struct sim_oracle *oracle, const struct pd_order *order)
{
    oracle->steps =
        sim_grow(oracle->steps, order->step, &oracle->step_capacity, sizeof *oracle->steps);
    struct sim_step *step = &oracle->steps[order->step];

    step->applied = oracle->applied;
    step->trial = order->trial || order->kind == PD_ORDER_RESTORE;
    for (uint32_t i = 0; i < order->contributor_count; i++) {
        step->samples += sim_contribution_samples(sim_ledger_summed(oracle->ledger, order, i));
    }
    memcpy(step->lrs, order->lrs, order->lr_count * sizeof order->lrs[0]);
    return step;
}

static void check_formulas(const struct sim_oracle *oracle, uint64_t version, const float *values)
{
    for (uint64_t i = 0; i < oracle->model->element_count; i++) {
        double expected = oracle->exact[i];
        double off = fabs((double)values[i] - expected);
        SIM_CHECK(oracle->agenda, off <= 3e-5 * (1.0 + fabs(expected)),
                  "version %" PRIu64 ", element %" PRIu64 " is %.9g; the formulas say %.9g",
                  version, i, (double)values[i], expected);
    }
}

void sim_oracle_estimate(struct sim_oracle *oracle, const struct pd_order *order)
{
    const struct pd_shard_plan *plan = oracle->blocks;

    oracle->absent = sim_ledger_absent(oracle->ledger, order);
    average(oracle, order);
    if (!all_finite(oracle->gradient, oracle->model->element_count)) {
        return;
    }
    for (uint64_t i = 0; i < plan->block_count; i++) {
        const struct pd_block *block = &plan->blocks[i];
        const struct pd_tensor *tensor = &oracle->model->tensors[block->tensor_index];
        struct pd_optimizer_block view = {.begin = block->element_begin - tensor->element_begin,
                                          .count = block->element_count,
                                          .gradient = oracle->gradient + block->element_begin};
        if (!sim_oracle_rests(oracle, block->tensor_index)) {
            pd_optimizer_state_estimate(pd_optimizer_state_of(&oracle->state, block->tensor_index),
                                        &view);
        }
    }
    sim_formulas_estimate(oracle, order);
}

void sim_oracle_step(struct sim_oracle *oracle, const struct pd_order *order)
{
    uint64_t count = oracle->model->element_count;

    SIM_CHECK(oracle->agenda, order->step + 1 == oracle->version_count,
              "step %" PRIu64 " is ordered at version %zu", order->step, oracle->version_count - 1);
    SIM_CHECK(oracle->agenda, order->optimizer_step == oracle->applied,
              "step %" PRIu64 " is optimizer step %" PRIu64 ", should be %" PRIu64, order->step,
              order->optimizer_step, oracle->applied);
    struct sim_step *step = note_step(oracle, order);
    float *next = add_version(oracle);
    const float *now = oracle->versions[oracle->version_count - 2];

    oracle->absent = sim_ledger_absent(oracle->ledger, order);
    step->skipped = order->skip || !step_with_kernels(oracle, order, next);
    if (step->skipped) {
        memcpy(next, now, count * sizeof *next);
        oracle->skipped += !step->trial;
        return;
    }
    if (sim_formulas_known(oracle->config->optimizer)) {
        sim_formulas_step(oracle, order);
        check_formulas(oracle, order->step + 1, next);
    }
    oracle->applied++;
    for (uint32_t i = 0; i < oracle->model->count; i++) {
        oracle->misses[i] += oracle->absent >> i & 1u;
    }
}

/* ---- Searches ---- */

static void list_state(struct sim_oracle *oracle)
{
    size_t doubles_bytes = oracle->model->element_count * sizeof(double);

    pd_optimizer_state_list(&oracle->state, &oracle->kept);
    pd_snapshot_add(&oracle->kept, oracle->misses, oracle->model->count * sizeof(uint64_t));
    pd_snapshot_add(&oracle->kept, oracle->exact, doubles_bytes);
    pd_snapshot_add(&oracle->kept, oracle->first, doubles_bytes);
    pd_snapshot_add(&oracle->kept, oracle->second, doubles_bytes);
}

void sim_oracle_keep(struct sim_oracle *oracle)
{
    struct pd_error error = {0};

    pd_snapshot_finish(&oracle->kept);
    list_state(oracle);
    SIM_CHECK(oracle->agenda, pd_snapshot_keep(&oracle->kept, &error) == PD_OK, "%s",
              error.message);
    SIM_CHECK(oracle->agenda, pd_snapshot_copy(&oracle->kept, UINT64_MAX), "half a snapshot");
    oracle->kept_version = oracle->version_count - 1;
    oracle->kept_applied = oracle->applied;
}

void sim_oracle_restore(struct sim_oracle *oracle, const struct pd_order *order)
{
    SIM_CHECK(oracle->agenda, order->step + 1 == oracle->version_count,
              "step %" PRIu64 " is ordered at version %zu", order->step, oracle->version_count - 1);
    (void)note_step(oracle, order);
    memcpy(add_version(oracle), oracle->versions[oracle->kept_version],
           oracle->model->element_count * sizeof(float));
    pd_snapshot_bring_back(&oracle->kept);
    SIM_CHECK(oracle->agenda, pd_snapshot_copy(&oracle->kept, UINT64_MAX), "half a snapshot");
    oracle->applied = oracle->kept_applied;
}

/* ---- Checks ---- */

void sim_oracle_check(const struct sim_oracle *oracle, uint64_t version, uint64_t begin,
                      uint64_t count, enum pd_dtype dtype, const void *values, const char *where)
{
    SIM_CHECK(oracle->agenda, version < oracle->version_count,
              "%s has version %" PRIu64 ", which nobody ordered", where, version);
    const float *expected = oracle->versions[version] + begin;
    uint8_t *wire = sim_alloc(count, sizeof(float));
    size_t element_bytes = pd_dtype_bytes(dtype);
    pd_convert_from_float32(wire, dtype, expected, count);
    for (uint64_t i = 0; i < count; i++) {
        float got;
        pd_convert_to_float32(&got, (const uint8_t *)values + i * element_bytes, dtype, 1);
        SIM_CHECK(oracle->agenda,
                  memcmp(wire + i * element_bytes, (const uint8_t *)values + i * element_bytes,
                         element_bytes) == 0,
                  "%s: version %" PRIu64 ", element %" PRIu64 " is %.9g, should be %.9g", where,
                  version, begin + i, (double)got, (double)expected[i]);
    }
    free(wire);
}

static double expected_rate(const struct sim_oracle *oracle, uint64_t step, uint32_t group)
{
    const struct pd_config *config = oracle->config;
    const struct sim_step *taken = &oracle->steps[step];
    double lr = NAN;

    for (uint32_t i = 0; i < oracle->override_count; i++) {
        if (oracle->overrides[i].step <= step && oracle->overrides[i].group == group) {
            lr = oracle->overrides[i].lr;
        }
    }
    if (!isnan(lr)) {
        return lr;
    }
    lr = pd_schedule_lr(config->schedules, config->schedule_count, config->groups[group].hyper.lr,
                        taken->applied);
    double ratio = (double)taken->samples / (double)config->lr_scaling.base_batch;
    if (taken->samples == 0 || config->lr_scaling.rule == PD_LR_SCALING_NONE) {
        return lr;
    }
    return lr * (config->lr_scaling.rule == PD_LR_SCALING_LINEAR ? ratio : sqrt(ratio));
}

void sim_oracle_check_rates(const struct sim_oracle *oracle)
{
    for (uint64_t step = 0; step + 1 < oracle->version_count; step++) {
        for (uint32_t group = 0; group < oracle->config->group_count; group++) {
            double expected = expected_rate(oracle, step, group);
            double given = oracle->steps[step].lrs[group];
            SIM_CHECK(oracle->agenda,
                      oracle->steps[step].trial || fabs(given - expected) <= 1e-12 * fabs(expected),
                      "step %" PRIu64 " has rate %.17g for group %u, should be %.17g", step, given,
                      group, expected);
        }
    }
}
