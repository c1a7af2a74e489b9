/* Contributions added up before the step they are for is ordered, in the order of summation, so
 * that their memory is free for others: a take order for each. What the step's order sums then is
 * the rest. */
#include "server/core/step_state.h"

struct pd_taken *pd_step_taken(struct pd_step_machine *machine, const struct pd_order *order)
{
    return &machine->taken[is_estimate(order)];
}

void pd_step_note_nonfinite(struct pd_step_machine *machine, uint32_t source,
                            const struct pd_block *block, bool absent)
{
    static const struct pd_tensor_set none;
    struct pd_taken *taken = pd_step_taken(machine, machine->order);

    if (taken->nonfinite && (absent || !taken->absent)) {
        return;
    }
    uint32_t element = pd_step_find_in_block(machine, &none, machine->contributions[source], block);
    if (element < block->element_count) {
        taken->nonfinite = true;
        taken->absent = absent;
        taken->worker_id = machine->source_workers[source];
        taken->block = block;
        taken->element = element;
    }
}

bool pd_step_turn_take(struct pd_step_machine *machine)
{
    const struct pd_range *lane = &machine->store->lane;
    struct pd_taken *taken = pd_step_taken(machine, machine->order);
    uint64_t end = machine->source_count > 0 ? lane->block_count : 0;

    while (machine->turn_elements < PD_STEP_TURN_ELEMENTS && machine->next_block < end) {
        const struct pd_block *block =
            &machine->plan->blocks[lane->block_begin + machine->next_block];
        pd_step_add_sources(machine, block, lane_sums(machine) + in_lane(machine, block),
                            !(taken->samples > 0.0), 1.0f);
        pd_step_note_nonfinite(machine, 0, block,
                               pd_tensor_set_has(&machine->order->absent, block->tensor_index));
        machine->turn_elements += block->element_count;
        machine->next_block++;
    }
    if (machine->next_block < end) {
        return false;
    }
    if (end > 0 && !(taken->samples > 0.0)) {
        taken->samples = machine->order->weights[0];
    }
    return true;
}

void pd_step_forget_taken(struct pd_step_machine *machine)
{
    for (int estimate = 0; estimate < 2; estimate++) {
        machine->taken[estimate].samples = 0.0;
        machine->taken[estimate].nonfinite = false;
    }
}
