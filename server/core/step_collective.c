/* What ranks exchange in a step: slices of gradients, parts of norms and sums, parameters. */
#include "server/core/step_state.h"

static const struct pd_range *replica_shard(const struct pd_step_machine *machine, uint32_t replica)
{
    return &machine->plan->shards[replica * machine->plan->lane_count + machine->lane];
}

void pd_step_prepare_exchange(struct pd_step_machine *machine)
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

void pd_step_prepare_gather_norms(struct pd_step_machine *machine)
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

void pd_step_prepare_gather_sums(struct pd_step_machine *machine)
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

void pd_step_prepare_gather_parameters(struct pd_step_machine *machine)
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
