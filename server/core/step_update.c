/* From the average gradient to the next parameters, state and averages. */
#include "server/core/step_state.h"

#include "common/assert.h"

#include <math.h>
#include <string.h>

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

void pd_step_prepare_update(struct pd_step_machine *machine, const struct pd_gradient_norms *norms)
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

void pd_step_decide(struct pd_step_machine *machine)
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
    struct pd_optimizer_block view = {
        .begin = block->element_begin - tensor->element_begin,
        .count = block->element_count,
        .parameters = pd_param_store_served(store) + in_lane(machine, block),
        .parameters_next = pd_param_store_spare(store) + in_lane(machine, block),
    };
    if (is_narrow(machine)) {
        view.pushed = pd_contribution_elements(machine->lone, in_lane(machine, block));
        view.pushed_dtype = machine->sources[0].dtype;
    } else {
        view.gradient = block_gradient(machine, block);
    }
    return view;
}

bool pd_step_turn_estimate(struct pd_step_machine *machine)
{
    const struct pd_range *shard = &machine->store->shard;

    while (machine->turn_elements < PD_STEP_TURN_ELEMENTS &&
           machine->next_block < shard->block_count) {
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

bool pd_step_updates_give_squares(const struct pd_step_machine *machine, uint32_t tensor)
{
    return machine->fused && pd_gradient_norms_need_squares(&machine->norms, tensor) &&
           pd_optimizer_state_gives_squares(
               pd_optimizer_state_of(&machine->optimizer_state, tensor));
}

/* Where a block's new parameters go once more: behind those of the block before it, while there is
 * room. */
static void *fresh_parameters(struct pd_step_machine *machine, const struct pd_block *block)
{
    struct pd_fresh *fresh = &machine->fresh;
    uint64_t element_bytes = pd_dtype_bytes(machine->fresh_dtype);
    uint64_t begin = in_lane(machine, block) * element_bytes;
    uint64_t end = begin + block->element_count * element_bytes;

    if (machine->fresh_elements == NULL) {
        return NULL;
    }
    if (fresh->payload == NULL) {
        *fresh = (struct pd_fresh){.payload = pd_param_store_spare(machine->store),
                                   .dtype = machine->fresh_dtype,
                                   .bytes = machine->fresh_elements,
                                   .begin = begin,
                                   .end = begin};
    }
    if (begin != fresh->end || end - fresh->begin > PD_STEP_TURN_ELEMENTS * element_bytes) {
        return NULL;
    }
    fresh->end = end;
    return (char *)machine->fresh_elements + (begin - fresh->begin);
}

void pd_step_update_block(struct pd_step_machine *machine, uint64_t index)
{
    const struct pd_block *block = shard_block(machine, index);
    struct pd_optimizer_block view = optimizer_block(machine, block);
    struct pd_optimizer_span part = pd_tensor_sums_parts(
        &machine->sums, machine->pass, machine->store->shard.block_begin + index, 1);
    uint64_t own_begin = parts_of(machine, &machine->store->shard).begin;
    double squares[PD_REDUCE_LANE_COUNT];
    bool gives_squares = pd_step_updates_give_squares(machine, block->tensor_index);

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
    view.squares = gives_squares ? squares : NULL;
    view.fresh = fresh_parameters(machine, block);
    view.fresh_dtype = machine->fresh_dtype;
    pd_optimizer_state_run(pd_optimizer_state_of(&machine->optimizer_state, block->tensor_index),
                           machine->pass, &step, &view);
    if (gives_squares) {
        pd_gradient_norms_take_squares(squares, &machine->partials[PD_NORM_PART_COUNT * index]);
    }
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

bool pd_step_turn_average(struct pd_step_machine *machine)
{
    const struct pd_range *lane = &machine->store->lane;
    const struct pd_param_buffer *served = &machine->store->buffers[machine->store->served];
    struct pd_param_buffer *spare = &machine->store->buffers[1 - machine->store->served];
    double weight = pd_average_weight(&machine->config->average, machine->order->optimizer_step);

    while (machine->turn_elements < PD_STEP_TURN_ELEMENTS &&
           machine->next_block < lane->block_count) {
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

bool pd_step_turn_update(struct pd_step_machine *machine)
{
    const struct pd_range *shard = &machine->store->shard;

    while (machine->turn_elements < PD_STEP_TURN_ELEMENTS &&
           machine->next_block < shard->block_count) {
        const struct pd_block *block = shard_block(machine, machine->next_block);
        pd_step_update_block(machine, machine->next_block);
        if (machine->pass + 1 == machine->sums.pass_count) {
            finish_block(machine, block);
        }
        machine->turn_elements += block->element_count;
        machine->next_block++;
    }
    if (machine->pass + 1 == machine->sums.pass_count) {
        pd_step_gather_buckets(machine);
    }
    return machine->next_block == shard->block_count;
}

void pd_step_begin_pass(struct pd_step_machine *machine)
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

void pd_step_count_misses(struct pd_step_machine *machine)
{
    for (uint32_t tensor = 0; tensor < 8 * machine->order->absent.byte_count; tensor++) {
        if (tensor < machine->model->count && pd_tensor_set_has(&machine->order->absent, tensor)) {
            machine->tensor_misses[tensor]++;
        }
    }
}
