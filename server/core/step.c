#include "server/core/step.h"

#include "common/assert.h"
#include "common/heap.h"
#include "server/core/gradient_norms.h"
#include "server/core/optimizer_state.h"
#include "server/core/reduce.h"
#include "server/core/tensor_sums.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* One turn: as much as stays in the second-level cache, and is over before a socket minds. */
#define TURN_ELEMENTS (256u * 1024u)

struct pd_step_machine {
    enum pd_step_state state;
    const struct pd_config *config;
    const struct pd_tensor_list *model;
    const struct pd_shard_plan *plan;
    struct pd_param_store *store;
    struct pd_roster *roster;
    uint32_t rank;
    uint32_t lane;
    uint32_t *tensor_groups; /* model.count */
    double *lr_factors;      /* model.count: of its group's rate */
    uint64_t *tensor_misses; /* model.count: steps applied that the tensor had no gradient in */

    const struct pd_order *order;
    /* SUM brings parameters and state on: the rule needs no sum over tensors and no norm, so a
     * block can go all the way while it is in cache. Its state is kept twice. */
    bool fused;
    bool ahead;     /* SUM, without an order yet */
    bool collected; /* ahead: every contributor has begun to push here, so the sources are known */
    uint64_t turn_elements; /* worked on in this turn */
    uint64_t next_block;    /* of the lane in SUM and AVERAGE, else of the shard */
    uint32_t pass;          /* of the rule, in UPDATE and TENSOR_SUMS */
    uint32_t source_count;
    struct pd_source *sources; /* PD_WORKER_COUNT_MAX: their elements at the lane's beginning */
    const struct pd_contribution **contributions; /* what the sources are of */

    struct pd_gradient_norms norms;
    struct pd_optimizer_state optimizer_state;
    struct pd_tensor_sums sums;
    float *block_sum; /* fused: one block */
    float *lane_sum;  /* lane elements; with one replica it is the gradient of the shard too */
    float *slices;    /* replicas > 1: replica_count x shard elements */
    float *gradient;  /* shard elements; aliases lane_sum with one replica */
    double *partials; /* norms, then sums, of the shard's blocks: what this rank gives */
    double *gathered; /* those of all blocks in order; a lone rank's partials */
    struct pd_hyper group_hypers[PD_GROUP_COUNT_MAX + 1]; /* with the momenta of the order */
    struct pd_optimizer_step group_steps[PD_GROUP_COUNT_MAX + 1];
    struct pd_collective collective;
    struct pd_step_outcome outcome;
};

/* ---- Life ---- */

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Which group every tensor is in. */
static bool find_groups(struct pd_step_machine *machine)
{
    const struct pd_tensor_list *model = machine->model;

    machine->tensor_groups = pd_heap_zalloc(model->count, sizeof(uint32_t));
    for (uint32_t i = 0; machine->tensor_groups != NULL && i < model->count; i++) {
        machine->tensor_groups[i] = pd_config_group_of(machine->config, model->tensors[i].name,
                                                       model->tensors[i].dimension_count);
    }
    return machine->tensor_groups != NULL;
}

static bool allocate(struct pd_step_machine *machine)
{
    const struct pd_shard_plan *plan = machine->plan;
    const struct pd_param_store *store = machine->store;

    machine->tensor_misses = pd_heap_zalloc(machine->model->count, sizeof(uint64_t));
    machine->sources = pd_heap_zalloc(PD_WORKER_COUNT_MAX, sizeof *machine->sources);
    machine->contributions = pd_heap_zalloc(PD_WORKER_COUNT_MAX, sizeof *machine->contributions);
    machine->lane_sum = pd_heap_zalloc(store->lane.element_count, sizeof(float));
    if (machine->fused) {
        machine->block_sum = pd_heap_zalloc(machine->config->block_size, sizeof(float));
        if (machine->block_sum == NULL) {
            return false;
        }
    }
    machine->partials = pd_heap_zalloc(
        larger(PD_NORM_PART_COUNT * store->shard.block_count, machine->sums.shard_count_max),
        sizeof(double));
    machine->gathered = machine->partials;
    if (plan->rank_count > 1) {
        machine->gathered = pd_heap_zalloc(
            larger(PD_NORM_PART_COUNT * plan->block_count, machine->sums.all_count_max),
            sizeof(double));
    }
    machine->gradient = machine->lane_sum;
    if (plan->replica_count > 1) {
        machine->gradient = pd_heap_zalloc(store->shard.element_count, sizeof(float));
        machine->slices =
            pd_heap_zalloc(store->shard.element_count, plan->replica_count * sizeof(float));
        if (machine->slices == NULL) {
            return false;
        }
    }
    return machine->tensor_misses != NULL && machine->sources != NULL &&
           machine->contributions != NULL && machine->lane_sum != NULL &&
           machine->partials != NULL && machine->gathered != NULL && machine->gradient != NULL;
}

bool pd_step_may_go_ahead(const struct pd_config *config, const struct pd_shard_plan *plan,
                          uint64_t element_count)
{
    /* What an estimate of the Hessian changes of the state, a step begun before would not have. */
    return config->compute_ahead > 0 && element_count >= config->compute_ahead &&
           plan->replica_count == 1 && config->optimizer->estimate == NULL;
}

static bool may_fuse(const struct pd_config *config)
{
    for (uint32_t group = 0; group < config->group_count; group++) {
        if (!isnan(config->groups[group].clip.norm)) {
            return false;
        }
    }
    return isnan(config->clip.norm) && config->lookahead.k == 0 &&
           pd_optimizer_state_allows_twice(config);
}

enum pd_status pd_step_create(struct pd_step_machine **out, const struct pd_config *config,
                              const struct pd_tensor_list *model, const struct pd_shard_plan *plan,
                              struct pd_param_store *store, struct pd_roster *roster, uint32_t rank,
                              struct pd_error *error)
{
    *out = NULL;
    struct pd_step_machine *machine = pd_heap_zalloc(1, sizeof *machine);
    if (machine == NULL) {
        goto fail;
    }
    machine->config = config;
    machine->model = model;
    machine->plan = plan;
    machine->store = store;
    machine->roster = roster;
    machine->rank = rank;
    machine->lane = pd_shard_plan_lane_of(plan, rank);
    machine->fused =
        pd_step_may_go_ahead(config, plan, store->lane.element_count) && may_fuse(config);
    if (!find_groups(machine)) {
        goto fail_machine;
    }
    enum pd_status status =
        pd_layer_decay_factors(&machine->lr_factors, &config->layer_decay, model, error);
    if (status == PD_OK) {
        status = pd_gradient_norms_init(&machine->norms, config, plan, model->count,
                                        machine->tensor_groups, error);
    }
    if (status == PD_OK) {
        status =
            pd_optimizer_state_init(&machine->optimizer_state, config, model, plan, &store->shard,
                                    machine->tensor_groups, machine->fused, error);
    }
    if (status == PD_OK) {
        status = pd_tensor_sums_init(&machine->sums, config, model, plan, &store->shard,
                                     machine->tensor_groups, error);
    }
    if (status != PD_OK) {
        pd_step_destroy(machine);
        return status;
    }
    if (!allocate(machine)) {
        goto fail_machine;
    }
    *out = machine;
    return PD_OK;

fail_machine:
    pd_step_destroy(machine);
fail:
    return pd_error_set(error, PD_ENOMEM, "out of memory for the gradients of %" PRIu64 " elements",
                        store->lane.element_count);
}

void pd_step_destroy(struct pd_step_machine *machine)
{
    if (machine == NULL) {
        return;
    }
    if (machine->gradient != machine->lane_sum) {
        pd_heap_free(machine->gradient);
    }
    if (machine->gathered != machine->partials) {
        pd_heap_free(machine->gathered);
    }
    pd_heap_free(machine->slices);
    pd_heap_free(machine->partials);
    pd_heap_free(machine->block_sum);
    pd_heap_free(machine->lane_sum);
    pd_heap_free(machine->contributions);
    pd_heap_free(machine->sources);
    pd_heap_free(machine->tensor_misses);
    pd_tensor_sums_finish(&machine->sums);
    pd_optimizer_state_finish(&machine->optimizer_state);
    pd_gradient_norms_finish(&machine->norms);
    pd_heap_free(machine->lr_factors);
    pd_heap_free(machine->tensor_groups);
    pd_heap_free(machine);
}

void pd_step_list_state(struct pd_step_machine *machine, struct pd_snapshot *snapshot)
{
    pd_snapshot_add(snapshot, machine->tensor_misses,
                    machine->model->count * sizeof machine->tensor_misses[0]);
    pd_optimizer_state_list(&machine->optimizer_state, snapshot);
    pd_gradient_norms_list(&machine->norms, snapshot);
}

enum pd_step_state pd_step_state(const struct pd_step_machine *machine)
{
    return machine->state;
}

/* ---- Blocks ---- */

static const struct pd_block *shard_block(const struct pd_step_machine *machine, uint64_t index)
{
    return &machine->plan->blocks[machine->store->shard.block_begin + index];
}

/* Element of a block within the rank's lane. */
static uint64_t in_lane(const struct pd_step_machine *machine, const struct pd_block *block)
{
    return block->element_begin - machine->store->lane.element_begin;
}

/* Element of a block within the rank's shard. */
static uint64_t in_shard(const struct pd_step_machine *machine, const struct pd_block *block)
{
    return block->element_begin - machine->store->shard.element_begin;
}

/* Where the gradient of a block of the shard is, or goes. */
static float *block_gradient(const struct pd_step_machine *machine, const struct pd_block *block)
{
    return machine->fused ? machine->block_sum : machine->gradient + in_shard(machine, block);
}

/* Whether the tensor has no part in this step. */
static bool rests(const struct pd_step_machine *machine, uint32_t tensor)
{
    return pd_gradient_norms_rests(&machine->norms, tensor, &machine->order->absent);
}

/* ---- Sum ---- */

static bool is_hessian(const struct pd_order *order)
{
    return order->kind == PD_ORDER_HESSIAN;
}

/* The contributor at `index` of the order if what is summed of it is here, else NULL. One that has
 * left is kept only where it has pushed something. */
static struct pd_worker *contributor_here(const struct pd_step_machine *machine,
                                          const struct pd_order *order, uint32_t index)
{
    struct pd_worker *worker = pd_roster_find(machine->roster, order->contributors[index]);

    if (worker == NULL) {
        return NULL;
    }
    bool here = is_hessian(order) ? worker->has_hessian : worker->has_contribution;
    return here ? worker : NULL;
}

/* The contributions that are here, in the order of summation. Those without weight stay out: their
 * elements may be anything. */
static void collect_sources(struct pd_step_machine *machine)
{
    machine->source_count = 0;
    for (uint32_t i = 0; i < machine->order->contributor_count; i++) {
        struct pd_worker *worker = contributor_here(machine, machine->order, i);
        if (worker == NULL || !(machine->order->weights[i] > 0.0)) {
            continue;
        }
        const struct pd_contribution *contribution =
            pd_roster_contribution(worker, is_hessian(machine->order));
        machine->contributions[machine->source_count] = contribution;
        machine->sources[machine->source_count++] =
            pd_contribution_source(contribution, 0, machine->order->weights[i]);
    }
}

static void sum_block(struct pd_step_machine *machine, const struct pd_block *block)
{
    struct pd_source *sources = machine->sources;
    uint64_t begin = in_lane(machine, block);

    for (uint32_t i = 0; i < machine->source_count; i++) {
        sources[i].elements =
            (const char *)sources[i].elements + begin * pd_dtype_bytes(sources[i].dtype);
    }
    pd_reduce_block(machine->fused ? machine->block_sum : machine->lane_sum + begin, sources,
                    machine->source_count, block->element_count);
    for (uint32_t i = 0; i < machine->source_count; i++) {
        sources[i].elements =
            (const char *)sources[i].elements - begin * pd_dtype_bytes(sources[i].dtype);
    }
}

/* With the average of a block of the shard in place: clip a gradient by value, and take the partial
 * norms. An infinity must not become a large number by that: it makes the step one to skip. */
static void measure_block(struct pd_step_machine *machine, uint64_t index)
{
    const struct pd_block *block = shard_block(machine, index);
    uint32_t group = machine->tensor_groups[block->tensor_index];
    double clip_value = machine->config->groups[group].clip.value;
    double *parts = &machine->partials[PD_NORM_PART_COUNT * index];
    float *gradient = block_gradient(machine, block);

    if (rests(machine, block->tensor_index)) {
        memset(parts, 0, PD_NORM_PART_COUNT * sizeof *parts);
        return;
    }
    if (is_hessian(machine->order)) {
        pd_reduce_norms(gradient, block->element_count, 2, parts);
        return;
    }
    if (machine->config->outer) {
        pd_reduce_subtract_from(gradient,
                                pd_param_store_served(machine->store) + in_lane(machine, block),
                                block->element_count);
    }
    if (!isnan(clip_value) &&
        pd_reduce_find_nonfinite(gradient, PD_DTYPE_FLOAT32, block->element_count) ==
            block->element_count) {
        pd_reduce_clamp(gradient, (float)clip_value, block->element_count);
    }
    pd_gradient_norms_measure(&machine->norms, block->tensor_index, gradient, block->element_count,
                              parts);
}

/* Add what the replicas of the lane have sent for the shard, in their order. */
static bool turn_combine(struct pd_step_machine *machine)
{
    const struct pd_range *shard = &machine->store->shard;
    struct pd_source sources[PD_RANK_COUNT_MAX];

    while (machine->turn_elements < TURN_ELEMENTS && machine->next_block < shard->block_count) {
        const struct pd_block *block = shard_block(machine, machine->next_block);
        uint64_t begin = in_shard(machine, block);
        for (uint32_t i = 0; i < machine->plan->replica_count; i++) {
            sources[i] = (struct pd_source){
                .elements = machine->slices + i * shard->element_count + begin,
                .dtype = PD_DTYPE_FLOAT32,
                .weight = 1.0f,
            };
        }
        pd_reduce_block(machine->gradient + begin, sources, machine->plan->replica_count,
                        block->element_count);
        measure_block(machine, machine->next_block);
        machine->turn_elements += block->element_count;
        machine->next_block++;
    }
    return machine->next_block == shard->block_count;
}

/* ---- Collectives ---- */

static const struct pd_range *replica_shard(const struct pd_step_machine *machine, uint32_t replica)
{
    return &machine->plan->shards[replica * machine->plan->lane_count + machine->lane];
}

static void prepare_exchange(struct pd_step_machine *machine)
{
    struct pd_collective *collective = &machine->collective;

    collective->kind = PD_COLLECTIVE_EXCHANGE_FLOATS;
    collective->order_index = machine->order->index;
    collective->send = machine->lane_sum;
    collective->receive = machine->slices;
    for (uint32_t i = 0; i < machine->plan->replica_count; i++) {
        const struct pd_range *theirs = replica_shard(machine, i);
        collective->send_counts[i] = (int)theirs->element_count;
        collective->send_offsets[i] =
            (int)(theirs->element_begin - machine->store->lane.element_begin);
        collective->receive_counts[i] = (int)machine->store->shard.element_count;
        collective->receive_offsets[i] = (int)(i * machine->store->shard.element_count);
    }
}

/* The start of a gather of doubles, in block order. */
static void prepare_gather_doubles(struct pd_step_machine *machine)
{
    struct pd_collective *collective = &machine->collective;

    collective->kind = PD_COLLECTIVE_GATHER_DOUBLES;
    collective->order_index = machine->order->index;
    collective->send = machine->partials;
    collective->receive = machine->gathered;
}

static void prepare_gather_norms(struct pd_step_machine *machine)
{
    struct pd_collective *collective = &machine->collective;

    prepare_gather_doubles(machine);
    for (uint32_t i = 0; i < machine->plan->rank_count; i++) {
        const struct pd_range *theirs = &machine->plan->shards[i];
        collective->receive_counts[i] = (int)(PD_NORM_PART_COUNT * theirs->block_count);
        collective->receive_offsets[i] = (int)(PD_NORM_PART_COUNT * theirs->block_begin);
        collective->send_counts[i] = (int)(PD_NORM_PART_COUNT * machine->store->shard.block_count);
    }
}

static struct pd_optimizer_span parts_of(const struct pd_step_machine *machine,
                                         const struct pd_range *shard)
{
    return pd_tensor_sums_parts(&machine->sums, machine->pass, shard->block_begin,
                                shard->block_count);
}

static void prepare_gather_sums(struct pd_step_machine *machine)
{
    struct pd_collective *collective = &machine->collective;

    prepare_gather_doubles(machine);
    for (uint32_t i = 0; i < machine->plan->rank_count; i++) {
        struct pd_optimizer_span theirs = parts_of(machine, &machine->plan->shards[i]);
        collective->receive_counts[i] = (int)theirs.count;
        collective->receive_offsets[i] = (int)theirs.begin;
        collective->send_counts[i] = (int)parts_of(machine, &machine->store->shard).count;
    }
}

static void prepare_gather_parameters(struct pd_step_machine *machine)
{
    struct pd_collective *collective = &machine->collective;

    collective->kind = PD_COLLECTIVE_GATHER_FLOATS;
    collective->order_index = machine->order->index;
    collective->send = NULL;
    collective->receive = pd_param_store_spare(machine->store);
    for (uint32_t i = 0; i < machine->plan->replica_count; i++) {
        const struct pd_range *theirs = replica_shard(machine, i);
        collective->receive_counts[i] = (int)theirs->element_count;
        collective->receive_offsets[i] =
            (int)(theirs->element_begin - machine->store->lane.element_begin);
    }
}

/* ---- Update ---- */

/* Take the group's hyperparameters, and the momentum the order may set. */
static const struct pd_hyper *group_hyper(struct pd_step_machine *machine, uint32_t group)
{
    struct pd_hyper *hyper = &machine->group_hypers[group];

    *hyper = machine->config->groups[group].hyper;
    if (group < machine->order->momentum_count && !isnan(machine->order->momenta[group])) {
        double *momentum = pd_optimizer_momentum(machine->config->optimizer, hyper);
        PD_ASSERT(momentum != NULL);
        *momentum = machine->order->momenta[group];
    }
    return hyper;
}

/* The numbers of this step for every group; without `norms`, for a rule that needs none. */
static void prepare_update(struct pd_step_machine *machine, const struct pd_gradient_norms *norms)
{
    for (uint32_t group = 0; group < machine->config->group_count; group++) {
        machine->group_steps[group] = (struct pd_optimizer_step){
            .hyper = group_hyper(machine, group),
            .lr = machine->order->lrs[group],
            .initial_lr = machine->config->groups[group].hyper.lr,
            .number = machine->order->optimizer_step + 1,
            .group_number = machine->order->optimizer_step + 1,
            .gradient_scale = norms != NULL ? norms->scales[group] : 1.0,
            .gradient_norm = norms != NULL ? norms->clipped_norm2 : NAN,
        };
    }
}

/* With all ranks' partials gathered: the scales, or the decision to leave the parameters alone. */
static void decide(struct pd_step_machine *machine)
{
    struct pd_gradient_norms *norms = &machine->norms;
    struct pd_step_outcome *outcome = &machine->outcome;

    pd_gradient_norms_take(norms, machine->gathered, &machine->order->absent);
    outcome->gradient_norm = norms->whole;
    outcome->clipped_norm = norms->clipped;
    outcome->clip_scale = norms->scales[0];
    if (isnan(norms->whole)) {
        outcome->skipped = true;
        outcome->nonfinite = true;
    }
}

static struct pd_optimizer_block optimizer_block(struct pd_step_machine *machine,
                                                 const struct pd_block *block)
{
    struct pd_param_store *store = machine->store;
    const struct pd_tensor *tensor = &machine->model->tensors[block->tensor_index];
    return (struct pd_optimizer_block){
        .begin = block->element_begin - tensor->element_begin,
        .count = block->element_count,
        .gradient = block_gradient(machine, block),
        .parameters = pd_param_store_served(store) + in_lane(machine, block),
        .parameters_next = pd_param_store_spare(store) + in_lane(machine, block),
    };
}

/* Give the average of the estimates to the rule; a tensor nobody has one for is left alone. */
static bool turn_estimate(struct pd_step_machine *machine)
{
    const struct pd_range *shard = &machine->store->shard;

    while (machine->turn_elements < TURN_ELEMENTS && machine->next_block < shard->block_count) {
        const struct pd_block *block = shard_block(machine, machine->next_block);
        if (!rests(machine, block->tensor_index)) {
            struct pd_optimizer_block view = optimizer_block(machine, block);
            pd_optimizer_state_estimate(
                pd_optimizer_state_of(&machine->optimizer_state, block->tensor_index), &view);
        }
        machine->turn_elements += block->element_count;
        machine->next_block++;
    }
    return machine->next_block == shard->block_count;
}

/* The numbers of this step for one tensor: it has taken part in fewer than the model. */
static struct pd_optimizer_step tensor_step(const struct pd_step_machine *machine, uint32_t tensor)
{
    struct pd_optimizer_step step = machine->group_steps[machine->tensor_groups[tensor]];
    step.number -= machine->tensor_misses[tensor];
    step.lr *= machine->lr_factors[tensor];
    step.initial_lr *= machine->lr_factors[tensor];
    return step;
}

/* The sums of the pass before, over a block's tensor. */
static const double *sums_of(const struct pd_step_machine *machine, uint32_t tensor)
{
    return machine->pass == 0 ? NULL : pd_tensor_sums_of(&machine->sums, machine->pass - 1, tensor);
}

/* Run the pass over the block `index` of the shard; a tensor without a gradient stays as it is. */
static void update_block(struct pd_step_machine *machine, uint64_t index)
{
    const struct pd_block *block = shard_block(machine, index);
    struct pd_optimizer_block view = optimizer_block(machine, block);
    struct pd_optimizer_span part = pd_tensor_sums_parts(
        &machine->sums, machine->pass, machine->store->shard.block_begin + index, 1);
    uint64_t own_begin = parts_of(machine, &machine->store->shard).begin;

    if (rests(machine, block->tensor_index)) {
        if (machine->pass == 0) {
            memcpy(view.parameters_next, view.parameters, view.count * sizeof(float));
        }
        if (part.count > 0) {
            memset(machine->partials + (part.begin - own_begin), 0, part.count * sizeof(double));
        }
        return;
    }
    struct pd_optimizer_step step = tensor_step(machine, block->tensor_index);
    view.partial = part.count > 0 ? machine->partials + (part.begin - own_begin) : NULL;
    view.sums = sums_of(machine, block->tensor_index);
    pd_optimizer_state_run(pd_optimizer_state_of(&machine->optimizer_state, block->tensor_index),
                           machine->pass, &step, &view);
}

/* With the new parameters of a block of the shard in place: Lookahead. */
static void finish_block(struct pd_step_machine *machine, const struct pd_block *block)
{
    struct pd_param_store *store = machine->store;
    const struct pd_lookahead_options *options = &machine->config->lookahead;
    uint64_t step = machine->order->optimizer_step;

    if (store->slow == NULL) {
        return;
    }
    pd_lookahead_block(store->slow + in_shard(machine, block),
                       pd_param_store_spare(store) + in_lane(machine, block), options, step,
                       block->element_count);
    double factor = pd_lookahead_momentum_factor(options, step);
    if (factor != 1) {
        uint64_t begin =
            block->element_begin - machine->model->tensors[block->tensor_index].element_begin;
        pd_optimizer_state_scale_momentum(
            pd_optimizer_state_of(&machine->optimizer_state, block->tensor_index), begin,
            block->element_count, factor);
    }
}

/* Every rank averages what it serves, so that averages need no exchange. */
static bool turn_average(struct pd_step_machine *machine)
{
    const struct pd_range *lane = &machine->store->lane;
    const struct pd_param_buffer *served = &machine->store->buffers[machine->store->served];
    struct pd_param_buffer *spare = &machine->store->buffers[1 - machine->store->served];
    double weight = pd_average_weight(&machine->config->average, machine->order->optimizer_step);

    while (machine->turn_elements < TURN_ELEMENTS && machine->next_block < lane->block_count) {
        const struct pd_block *block =
            &machine->plan->blocks[lane->block_begin + machine->next_block];
        uint64_t begin = in_lane(machine, block);
        pd_average_block(spare->average + begin, served->average + begin, spare->parameters + begin,
                         weight, block->element_count);
        machine->turn_elements += block->element_count;
        machine->next_block++;
    }
    return machine->next_block == lane->block_count;
}

/* Ahead of the order the sources are known once everybody has begun to push here, too. */
static bool collect_ahead(struct pd_step_machine *machine)
{
    for (uint32_t i = 0; !machine->collected && i < machine->order->contributor_count; i++) {
        const struct pd_worker *worker = contributor_here(machine, machine->order, i);
        if (worker == NULL ||
            !pd_contribution_is_single(&worker->contribution, machine->order->step)) {
            return false;
        }
    }
    if (!machine->collected) {
        collect_sources(machine);
        machine->collected = true;
    }
    return true;
}

/* Blocks of the lane that SUM may take: all, or ahead of the order those that are in from
 * everybody. */
static uint64_t blocks_in(const struct pd_step_machine *machine)
{
    const struct pd_range *lane = &machine->store->lane;
    uint64_t elements = lane->element_count;

    for (uint32_t i = 0; machine->ahead && i < machine->source_count; i++) {
        uint64_t in = pd_contribution_elements_in(machine->contributions[i]);
        elements = in < elements ? in : elements;
    }
    uint64_t end = machine->next_block;
    while (end < lane->block_count) {
        const struct pd_block *block = &machine->plan->blocks[lane->block_begin + end];
        if (in_lane(machine, block) + block->element_count > elements) {
            break;
        }
        end++;
    }
    return end;
}

/* Take blocks as far as `end`, for a turn. */
static void turn_sum(struct pd_step_machine *machine, uint64_t end)
{
    const struct pd_range *lane = &machine->store->lane;

    while (machine->turn_elements < TURN_ELEMENTS && machine->next_block < end) {
        const struct pd_block *block =
            &machine->plan->blocks[lane->block_begin + machine->next_block];
        sum_block(machine, block);
        if (machine->plan->replica_count == 1) {
            measure_block(machine, machine->next_block);
        }
        if (machine->fused) {
            update_block(machine, machine->next_block);
        }
        machine->turn_elements += block->element_count;
        machine->next_block++;
    }
}

static bool turn_update(struct pd_step_machine *machine)
{
    const struct pd_range *shard = &machine->store->shard;

    while (machine->turn_elements < TURN_ELEMENTS && machine->next_block < shard->block_count) {
        const struct pd_block *block = shard_block(machine, machine->next_block);
        update_block(machine, machine->next_block);
        if (machine->pass + 1 == machine->sums.pass_count) {
            finish_block(machine, block);
        }
        machine->turn_elements += block->element_count;
        machine->next_block++;
    }
    return machine->next_block == shard->block_count;
}

/* With the sums of the pass before in place: have the rule take them into its vectors. */
static void begin_pass(struct pd_step_machine *machine)
{
    const struct pd_optimizer_state *state = &machine->optimizer_state;

    for (uint32_t i = state->tensor_begin; i < state->tensor_end; i++) {
        if (!rests(machine, i)) {
            struct pd_optimizer_step step = tensor_step(machine, i);
            pd_optimizer_state_begin(pd_optimizer_state_of(state, i), machine->pass, &step,
                                     sums_of(machine, i));
        }
    }
}

/* An applied step that a tensor had no part in does not count for it. */
static void count_misses(struct pd_step_machine *machine)
{
    for (uint32_t tensor = 0; tensor < 8 * machine->order->absent.byte_count; tensor++) {
        if (tensor < machine->model->count && pd_tensor_set_has(&machine->order->absent, tensor)) {
            machine->tensor_misses[tensor]++;
        }
    }
}

/* ---- Moves ---- */

static void enter(struct pd_step_machine *machine, enum pd_step_state state)
{
    machine->state = state;
    machine->next_block = 0;
}

static void enter_sum(struct pd_step_machine *machine)
{
    pd_param_store_begin_spare(machine->store);
    if (machine->fused) {
        machine->pass = 0;
        prepare_update(machine, NULL);
    }
    enter(machine, PD_STEP_SUM);
}

bool pd_step_foresee(struct pd_step_machine *machine, const struct pd_order *order)
{
    const struct pd_param_store *store = machine->store;

    PD_ASSERT(machine->state == PD_STEP_IDLE);
    PD_ASSERT(order->kind == PD_ORDER_AHEAD);
    PD_ASSERT(order->step == store->version);
    PD_ASSERT(pd_step_may_go_ahead(machine->config, machine->plan, store->lane.element_count));
    if (store->buffers[1 - store->served].users > 0) {
        return false;
    }
    machine->order = order;
    machine->ahead = true;
    machine->collected = false;
    enter_sum(machine);
    return true;
}

bool pd_step_work_ahead(struct pd_step_machine *machine)
{
    PD_ASSERT(machine->ahead);
    if (!collect_ahead(machine)) {
        return false;
    }
    uint64_t end = blocks_in(machine);
    machine->turn_elements = 0;
    turn_sum(machine, end);
    return machine->next_block < end;
}

void pd_step_forget(struct pd_step_machine *machine)
{
    PD_ASSERT(machine->ahead);
    machine->ahead = false;
    machine->order = NULL;
    machine->state = PD_STEP_IDLE;
}

const struct pd_order *pd_step_order(const struct pd_step_machine *machine)
{
    return machine->order;
}

uint64_t pd_step_next_elements(const struct pd_step_machine *machine)
{
    const struct pd_range *lane = &machine->store->lane;
    bool last_pass = machine->state == PD_STEP_UPDATE && machine->plan->replica_count == 1 &&
                     machine->pass + 1 == machine->sums.pass_count;

    if (machine->state == PD_STEP_AVERAGE || (machine->fused && machine->state == PD_STEP_NORMS)) {
        return lane->element_count;
    }
    if (!last_pass && !(machine->fused && machine->state == PD_STEP_SUM)) {
        return 0;
    }
    return machine->next_block == lane->block_count
               ? lane->element_count
               : in_lane(machine, &machine->plan->blocks[lane->block_begin + machine->next_block]);
}

void pd_step_begin(struct pd_step_machine *machine, const struct pd_order *order)
{
    PD_ASSERT(machine->ahead ? order->foreseen : machine->state == PD_STEP_IDLE);
    PD_ASSERT(order->kind == PD_ORDER_STEP || is_hessian(order));
    PD_ASSERT(order->step == machine->store->version);
    PD_ASSERT(is_hessian(order) || order->lr_count == machine->config->group_count);
    if (machine->ahead && !collect_ahead(machine)) {
        /* A worker has pushed in one micro-batch to rank 0, and in several here. */
        pd_step_forget(machine);
    }
    machine->order = order;
    machine->outcome = (struct pd_step_outcome){
        .skipped = order->skip, .gradient_norm = NAN, .clipped_norm = NAN, .clip_scale = 1.0};
    if (machine->ahead) {
        machine->ahead = false;
        return;
    }
    collect_sources(machine);
    enter(machine, order->skip ? PD_STEP_DONE : PD_STEP_BUFFER);
    if (order->skip) {
        pd_gradient_norms_clear(&machine->norms);
        pd_param_store_publish_same(machine->store);
    }
}

static enum pd_step_want enter_norms(struct pd_step_machine *machine)
{
    enter(machine, PD_STEP_NORMS);
    if (machine->plan->rank_count == 1) {
        return PD_STEP_WANTS_WORK;
    }
    prepare_gather_norms(machine);
    return PD_STEP_WANTS_COLLECTIVE;
}

static enum pd_step_want enter_gather(struct pd_step_machine *machine)
{
    enter(machine, PD_STEP_GATHER);
    if (machine->plan->replica_count == 1) {
        return PD_STEP_WANTS_WORK;
    }
    prepare_gather_parameters(machine);
    return PD_STEP_WANTS_COLLECTIVE;
}

static enum pd_step_want leave_sum(struct pd_step_machine *machine)
{
    if (machine->plan->replica_count == 1) {
        return enter_norms(machine);
    }
    prepare_exchange(machine);
    enter(machine, PD_STEP_EXCHANGE);
    return PD_STEP_WANTS_COLLECTIVE;
}

static enum pd_step_want enter_pass(struct pd_step_machine *machine, uint32_t pass)
{
    machine->pass = pass;
    begin_pass(machine);
    enter(machine, PD_STEP_UPDATE);
    return PD_STEP_WANTS_WORK;
}

static bool parts_are_finite(const struct pd_step_machine *machine)
{
    for (uint64_t block = 0; block < machine->plan->block_count; block++) {
        if (!isfinite(machine->gathered[PD_NORM_PART_COUNT * block])) {
            return false;
        }
    }
    return true;
}

/* A sum that is not finite would stay in the state: it is left out. */
static enum pd_step_want leave_norms_of_estimate(struct pd_step_machine *machine)
{
    machine->outcome.nonfinite = !parts_are_finite(machine);
    enter(machine, machine->outcome.nonfinite ? PD_STEP_DONE : PD_STEP_ESTIMATE);
    return machine->outcome.nonfinite ? PD_STEP_WANTS_NOTHING : PD_STEP_WANTS_WORK;
}

static enum pd_step_want leave_norms(struct pd_step_machine *machine)
{
    if (is_hessian(machine->order)) {
        return leave_norms_of_estimate(machine);
    }
    decide(machine);
    if (machine->outcome.skipped) {
        pd_param_store_publish_same(machine->store);
        enter(machine, PD_STEP_DONE);
        return PD_STEP_WANTS_NOTHING;
    }
    if (machine->fused) {
        pd_optimizer_state_commit(&machine->optimizer_state, &machine->order->absent);
        return enter_gather(machine);
    }
    prepare_update(machine, &machine->norms);
    return enter_pass(machine, 0);
}

static enum pd_step_want leave_update(struct pd_step_machine *machine)
{
    if (machine->pass + 1 == machine->sums.pass_count) {
        return enter_gather(machine);
    }
    if (!pd_tensor_sums_any(&machine->sums, machine->pass)) {
        return enter_pass(machine, machine->pass + 1);
    }
    enter(machine, PD_STEP_TENSOR_SUMS);
    if (machine->plan->rank_count == 1) {
        return PD_STEP_WANTS_WORK;
    }
    prepare_gather_sums(machine);
    return PD_STEP_WANTS_COLLECTIVE;
}

static enum pd_step_want advance_once(struct pd_step_machine *machine)
{
    switch (machine->state) {
    case PD_STEP_BUFFER:
        if (machine->store->buffers[1 - machine->store->served].users > 0) {
            return PD_STEP_WANTS_BUFFER;
        }
        enter_sum(machine);
        return PD_STEP_WANTS_WORK;
    case PD_STEP_SUM:
        turn_sum(machine, machine->store->lane.block_count);
        return machine->next_block == machine->store->lane.block_count ? leave_sum(machine)
                                                                       : PD_STEP_WANTS_WORK;
    case PD_STEP_EXCHANGE:
        enter(machine, PD_STEP_COMBINE);
        return PD_STEP_WANTS_WORK;
    case PD_STEP_COMBINE:
        return turn_combine(machine) ? enter_norms(machine) : PD_STEP_WANTS_WORK;
    case PD_STEP_NORMS:
        return leave_norms(machine);
    case PD_STEP_ESTIMATE:
        if (!turn_estimate(machine)) {
            return PD_STEP_WANTS_WORK;
        }
        enter(machine, PD_STEP_DONE);
        return PD_STEP_WANTS_NOTHING;
    case PD_STEP_UPDATE:
        return turn_update(machine) ? leave_update(machine) : PD_STEP_WANTS_WORK;
    case PD_STEP_TENSOR_SUMS:
        pd_tensor_sums_add(&machine->sums, machine->pass, machine->gathered);
        return enter_pass(machine, machine->pass + 1);
    case PD_STEP_GATHER:
        enter(machine, PD_STEP_AVERAGE);
        return PD_STEP_WANTS_WORK;
    case PD_STEP_AVERAGE:
        if (pd_average_enabled(&machine->config->average) && !turn_average(machine)) {
            return PD_STEP_WANTS_WORK;
        }
        count_misses(machine);
        pd_param_store_publish_spare(machine->store);
        enter(machine, PD_STEP_DONE);
        return PD_STEP_WANTS_NOTHING;
    case PD_STEP_IDLE:
    case PD_STEP_DONE:
        break;
    }
    return PD_STEP_WANTS_NOTHING;
}

enum pd_step_want pd_step_advance(struct pd_step_machine *machine)
{
    enum pd_step_want want = PD_STEP_WANTS_WORK;

    machine->turn_elements = 0;
    while (want == PD_STEP_WANTS_WORK && machine->turn_elements < TURN_ELEMENTS) {
        want = advance_once(machine);
    }
    return want;
}

const struct pd_collective *pd_step_collective(const struct pd_step_machine *machine)
{
    return &machine->collective;
}

const struct pd_gradient_norms *pd_step_norms(const struct pd_step_machine *machine)
{
    return &machine->norms;
}

double pd_step_lr_factor(const struct pd_step_machine *machine, uint32_t tensor)
{
    return machine->lr_factors[tensor];
}

bool pd_step_nonfinite(const struct pd_step_machine *machine)
{
    PD_ASSERT(machine->state == PD_STEP_DONE);
    return machine->outcome.nonfinite;
}

struct pd_step_outcome pd_step_finish(struct pd_step_machine *machine)
{
    PD_ASSERT(machine->state == PD_STEP_DONE);
    if (!is_hessian(machine->order)) {
        pd_roster_release(machine->roster, machine->order);
    }
    machine->order = NULL;
    machine->state = PD_STEP_IDLE;
    return machine->outcome;
}

/* ---- Help with NaNs ---- */

bool pd_step_find_nonfinite(const struct pd_step_machine *machine, const struct pd_order *order,
                            uint32_t *worker_id, char *text, size_t text_bytes)
{
    const struct pd_range *lane = &machine->store->lane;

    for (uint32_t i = 0; i < order->contributor_count; i++) {
        struct pd_worker *worker = contributor_here(machine, order, i);
        if (worker == NULL || !(order->weights[i] > 0.0)) {
            continue;
        }
        const struct pd_contribution *contribution =
            pd_roster_contribution(worker, is_hessian(order));
        for (uint64_t index = 0; index < lane->block_count; index++) {
            const struct pd_block *block = &machine->plan->blocks[lane->block_begin + index];
            uint64_t begin = in_lane(machine, block);
            if (pd_gradient_norms_rests(&machine->norms, block->tensor_index, &order->absent)) {
                continue;
            }
            struct pd_source source = pd_contribution_source(contribution, 0, order->weights[i]);
            const char *elements =
                (const char *)source.elements + begin * pd_dtype_bytes(source.dtype);
            uint32_t at = pd_reduce_find_nonfinite(elements, source.dtype, block->element_count);
            if (at == block->element_count) {
                continue;
            }
            const struct pd_tensor *tensor = &machine->model->tensors[block->tensor_index];
            *worker_id = worker->id;
            snprintf(text, text_bytes, "tensor '%s', element %" PRIu64, tensor->name,
                     block->element_begin + at - tensor->element_begin);
            return true;
        }
    }
    return false;
}
