/* From contributions to the average gradient of every block, and its norms. */
#include "server/core/step_state.h"

#include "common/assert.h"

#include <math.h>
#include <string.h>

struct pd_worker *pd_step_contributor(const struct pd_step_machine *machine,
                                      const struct pd_order *order, uint32_t index)
{
    struct pd_worker *worker = pd_roster_find(machine->roster, order->contributors[index]);

    if (worker == NULL) {
        return NULL;
    }
    bool here = is_estimate(order) ? worker->has_hessian : worker->has_contribution;
    bool taken = pd_roster_contribution(worker, is_estimate(order))->taken;
    return here && !taken ? worker : NULL;
}

/* Whether the rule takes the norms of all gradients by the way: it then reads 16 bits, too. */
static bool reads_narrow(const struct pd_step_machine *machine)
{
    const struct pd_optimizer_state *state = &machine->optimizer_state;
    bool reads = true;

    for (uint32_t tensor = state->tensor_begin; reads && tensor < state->tensor_end; tensor++) {
        reads = pd_step_updates_give_squares(machine, tensor);
    }
    return reads;
}

/* A gradient that is the average as it came is not copied, unless something has to be made of it
 * before the step is decided. */
static const struct pd_contribution *find_lone(struct pd_step_machine *machine)
{
    const struct pd_source *source = &machine->sources[0];

    if (machine->plan->replica_count > 1 || machine->source_count != 1 ||
        pd_step_taken(machine, machine->order)->samples > 0.0 || source->weight != 1.0f ||
        machine->scale != 1.0f || machine->config->outer) {
        return NULL;
    }
    for (uint32_t group = 0; group < machine->config->group_count; group++) {
        if (!isnan(machine->config->groups[group].clip.value)) {
            return NULL;
        }
    }
    if (source->dtype != PD_DTYPE_FLOAT32 && !reads_narrow(machine)) {
        return NULL;
    }
    return machine->contributions[0];
}

/* The type in which all contributors are answered that are answered with parameters; float32 where
 * they differ. */
static enum pd_dtype answer_dtype(const struct pd_step_machine *machine)
{
    enum pd_dtype dtype = PD_DTYPE_FLOAT32;
    bool any = false;

    for (uint32_t i = 0; i < machine->source_count; i++) {
        const struct pd_push *push = &machine->contributions[i]->push;
        if (push->pull && any && push->pull_dtype != dtype) {
            return PD_DTYPE_FLOAT32;
        }
        dtype = push->pull ? (enum pd_dtype)push->pull_dtype : dtype;
        any = any || push->pull;
    }
    return dtype;
}

void pd_step_collect(struct pd_step_machine *machine)
{
    double unit = pd_step_taken(machine, machine->order)->samples;

    machine->source_count = 0;
    for (uint32_t i = 0; i < machine->order->contributor_count; i++) {
        struct pd_worker *worker = pd_step_contributor(machine, machine->order, i);
        if (worker == NULL || !(machine->order->weights[i] > 0.0)) {
            continue;
        }
        struct pd_contribution *contribution =
            pd_roster_contribution(worker, is_estimate(machine->order));
        unit = unit > 0.0 ? unit : machine->order->weights[i];
        machine->contributions[machine->source_count] = contribution;
        machine->source_workers[machine->source_count] = worker->id;
        machine->sources[machine->source_count++] =
            pd_contribution_source(contribution, machine->order->weights[i] / unit);
    }
    /* An order that is no step's has no samples: what it adds up is scaled with the rest. */
    bool averages = machine->order->samples > 0;
    machine->scale = averages ? (float)(unit / (double)machine->order->samples) : 1.0f;
    machine->lone = averages ? find_lone(machine) : NULL;
    machine->fresh_dtype = answer_dtype(machine);
}

bool pd_step_collect_ahead(struct pd_step_machine *machine)
{
    if (!machine->collected && pd_roster_count_begun(machine->roster, machine->order->step) <
                                   machine->order->contributor_count) {
        return false;
    }
    for (uint32_t i = 0; !machine->collected && i < machine->order->contributor_count; i++) {
        const struct pd_worker *worker = pd_step_contributor(machine, machine->order, i);
        if (worker == NULL ||
            !pd_contribution_is_single(&worker->contribution, machine->order->step)) {
            return false;
        }
    }
    if (!machine->collected) {
        pd_step_collect(machine);
        machine->collected = true;
        machine->by_gradient &= machine->lone == NULL;
    }
    return true;
}

void pd_step_add_sources(struct pd_step_machine *machine, const struct pd_block *block, float *out,
                         bool first, float scale)
{
    struct pd_source *sources = machine->sources;
    uint64_t begin = in_lane(machine, block);

    for (uint32_t i = 0; i < machine->source_count; i++) {
        sources[i].elements = pd_contribution_elements(machine->contributions[i], begin);
    }
    pd_reduce_scaled(out, first, sources, machine->source_count, scale, block->element_count);
}

void pd_step_sum_block(struct pd_step_machine *machine, const struct pd_block *block, float *out)
{
    const float *before = lane_sums(machine) + in_lane(machine, block);
    bool first = !(pd_step_taken(machine, machine->order)->samples > 0.0);

    if (!first && out != before) {
        memcpy(out, before, block->element_count * sizeof *out);
    }
    pd_step_add_sources(machine, block, out, first, machine->scale);
}

/* An infinity must not become a large number by clipping: it makes the step one to skip. */
void pd_step_measure_block(struct pd_step_machine *machine, uint64_t index)
{
    const struct pd_block *block = shard_block(machine, index);
    uint32_t group = machine->tensor_groups[block->tensor_index];
    double clip_value = machine->config->groups[group].clip.value;
    double *parts = &machine->partials[PD_NORM_PART_COUNT * index];

    if (rests(machine, block->tensor_index)) {
        memset(parts, 0, PD_NORM_PART_COUNT * sizeof *parts);
        return;
    }
    if (is_narrow(machine)) {
        return;
    }
    float *gradient = block_gradient(machine, block);
    if (is_estimate(machine->order)) {
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
    if (!pd_step_updates_give_squares(machine, block->tensor_index)) {
        pd_gradient_norms_measure(&machine->norms, block->tensor_index, gradient,
                                  block->element_count, parts);
    }
}

uint64_t pd_step_blocks_in(const struct pd_step_machine *machine)
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

/* Block `index` is stepped, or in the sum, ahead of the order: what it used of contributions that
 * can be pushed again need not be kept. */
static void spend(struct pd_step_machine *machine, uint64_t index)
{
    const struct pd_block *block = shard_block(machine, index);
    bool finite = isfinite(machine->partials[PD_NORM_PART_COUNT * index]);

    for (uint32_t i = 0; i < machine->source_count; i++) {
        if (!machine->contributions[i]->repeatable) {
            continue;
        }
        if (!finite) {
            pd_step_note_nonfinite(machine, i, block, false);
        }
        pd_contribution_spend(machine->contributions[i],
                              in_lane(machine, block) + block->element_count);
    }
}

void pd_step_turn_sum(struct pd_step_machine *machine, uint64_t end)
{
    const struct pd_range *lane = &machine->store->lane;

    while (machine->turn_elements < PD_STEP_TURN_ELEMENTS && machine->next_block < end) {
        const struct pd_block *block =
            &machine->plan->blocks[lane->block_begin + machine->next_block];
        if (machine->lone == NULL && !machine->by_gradient) {
            pd_step_sum_block(machine, block, block_gradient(machine, block));
        }
        pd_step_measure_block(machine, machine->next_block);
        if (machine->fused) {
            pd_step_update_block(machine, machine->next_block);
        }
        if (machine->ahead && (machine->fused || machine->lone == NULL)) {
            spend(machine, machine->next_block);
        }
        machine->turn_elements += block->element_count;
        machine->next_block++;
    }
}

/* ---- By gradient ---- */

/* Sources that are added at once: all that are left, or as many as one pass takes; 0 while one of
 * them is not whole. */
static uint32_t count_next(const struct pd_step_machine *machine)
{
    uint32_t left = machine->source_count - machine->added;
    uint32_t count = left < PD_REDUCE_TERM_COUNT ? left : PD_REDUCE_TERM_COUNT;

    for (uint32_t i = machine->added; i < machine->added + count; i++) {
        if (machine->contributions[i]->state != PD_CONTRIBUTION_HELD) {
            return 0;
        }
    }
    return count;
}

/* While the next sources are here: whose elements make the sum one that is not finite. */
static void note_nonfinite(struct pd_step_machine *machine, uint32_t count, const float *sums)
{
    const struct pd_range *lane = &machine->store->lane;

    for (uint64_t index = 0; index < lane->block_count; index++) {
        const struct pd_block *block = &machine->plan->blocks[lane->block_begin + index];
        if (rests(machine, block->tensor_index) ||
            pd_reduce_find_nonfinite(sums + in_lane(machine, block), PD_DTYPE_FLOAT32,
                                     block->element_count) == block->element_count) {
            continue;
        }
        for (uint32_t i = machine->added; i < machine->added + count; i++) {
            pd_step_note_nonfinite(machine, i, block, false);
        }
    }
}

/* They are in the sum. What can be pushed again need not be kept, and its memory is for the next:
 * so that is in cache. */
static void use_up(struct pd_step_machine *machine, uint32_t count)
{
    for (uint32_t i = machine->added; i < machine->added + count; i++) {
        struct pd_contribution *contribution = machine->contributions[i];
        if (machine->ahead && contribution->repeatable) {
            pd_contribution_spend(contribution, contribution->element_count);
            pd_contribution_strip(contribution, &machine->roster->staging);
        }
    }
    machine->added += count;
}

bool pd_step_add_gradients(struct pd_step_machine *machine)
{
    const uint64_t element_count = machine->store->lane.element_count;
    float *sums = lane_sums(machine);
    uint32_t count = count_next(machine);

    while (count > 0 && machine->turn_elements < PD_STEP_TURN_ELEMENTS) {
        bool last = machine->added + count == machine->source_count;
        for (uint32_t i = machine->added; i < machine->added + count; i++) {
            machine->sources[i].elements = pd_contribution_elements(machine->contributions[i], 0);
        }
        pd_reduce_scaled(sums, machine->added == 0, &machine->sources[machine->added], count,
                         last ? machine->scale : 1.0f, (uint32_t)element_count);
        note_nonfinite(machine, count, sums);
        use_up(machine, count);
        machine->turn_elements += count * element_count;
        count = count_next(machine);
    }
    return count > 0;
}
