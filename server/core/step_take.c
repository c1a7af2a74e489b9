/* Contributions added up before the step they are for is ordered, in the order of summation, so
 * that their memory is free for others: a take order for each. What the step's order sums then is
 * the rest. */
#include "server/core/step_state.h"

struct pd_taken *pd_step_taken(struct pd_step_machine *machine, const struct pd_order *order)
{
    return &machine->taken[pd_step_is_estimate(order)];
}

/* Once the elements are given up, nobody can say any more whose were not finite. */
static void note_nonfinite(struct pd_step_machine *machine, const struct pd_block *block)
{
    struct pd_taken *taken = pd_step_taken(machine, machine->order);

    if (!taken->nonfinite) {
        taken->element =
            pd_step_find_in_block(machine, machine->order, machine->contributions[0], block);
        taken->nonfinite = taken->element < block->element_count;
        taken->worker_id = machine->order->contributors[0];
        taken->block = block;
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
        pd_step_add_sources(machine, block, taken->sum + in_lane(machine, block),
                            !(taken->samples > 0.0), 1.0f);
        note_nonfinite(machine, block);
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
