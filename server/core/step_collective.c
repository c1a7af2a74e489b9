/* What ranks exchange in a step: slices of gradients, parts of norms and sums, parameters. */
#include "server/core/step_state.h"

#include "common/assert.h"

#include <string.h>

static struct pd_collective *ask(struct pd_step_machine *machine, enum pd_collective_kind kind)
{
    PD_ASSERT(machine->collectives_asked - machine->collectives_done < PD_STEP_COLLECTIVE_COUNT);
    struct pd_collective *collective =
        &machine->collectives[machine->collectives_asked++ % PD_STEP_COLLECTIVE_COUNT];
    memset(collective, 0, sizeof *collective);
    collective->kind = kind;
    collective->order_index = machine->order->index;
    return collective;
}

bool pd_step_awaits(const struct pd_step_machine *machine)
{
    return machine->collectives_done < machine->collectives_asked;
}

const struct pd_collective *pd_step_take_collective(struct pd_step_machine *machine)
{
    if (machine->collectives_taken == machine->collectives_asked) {
        return NULL;
    }
    return &machine->collectives[machine->collectives_taken++ % PD_STEP_COLLECTIVE_COUNT];
}

void pd_step_collective_done(struct pd_step_machine *machine)
{
    PD_ASSERT(machine->collectives_done < machine->collectives_taken);
    machine->collectives_done++;
}

void pd_step_ask_exchange(struct pd_step_machine *machine, uint64_t bucket)
{
    struct pd_step_slot *slot = &machine->buckets.slots[bucket % PD_STEP_SLOT_COUNT];
    struct pd_range own = pd_step_piece(machine, machine->replica, bucket);

    slot->exchange = machine->collectives_asked;
    struct pd_collective *collective = ask(machine, PD_COLLECTIVE_EXCHANGE_FLOATS);
    collective->send = slot->given;
    collective->receive = slot->taken;
    for (uint32_t i = 0; i < machine->plan->replica_count; i++) {
        uint64_t given = pd_step_piece(machine, i, bucket).element_count;
        bool self = i == machine->replica;
        collective->send_counts[i] = self ? 0 : (int)given;
        collective->send_offsets[i] = (int)(i * machine->buckets.piece_max);
        collective->receive_counts[i] = self ? 0 : (int)own.element_count;
        collective->receive_offsets[i] = (int)(i * machine->buckets.piece_max);
    }
}

/* A gather of doubles, in block order. */
static struct pd_collective *ask_doubles(struct pd_step_machine *machine)
{
    struct pd_collective *collective = ask(machine, PD_COLLECTIVE_GATHER_DOUBLES);

    collective->send = machine->partials;
    collective->receive = machine->gathered;
    return collective;
}

void pd_step_ask_norms(struct pd_step_machine *machine)
{
    struct pd_collective *collective = ask_doubles(machine);

    for (uint32_t i = 0; i < machine->plan->rank_count; i++) {
        const struct pd_range *theirs = &machine->plan->shards[i];
        collective->receive_counts[i] = (int)(PD_NORM_PART_COUNT * theirs->block_count);
        collective->receive_offsets[i] = (int)(PD_NORM_PART_COUNT * theirs->block_begin);
        collective->send_counts[i] = (int)(PD_NORM_PART_COUNT * machine->store->shard.block_count);
    }
}

void pd_step_ask_tensor_sums(struct pd_step_machine *machine)
{
    struct pd_collective *collective = ask_doubles(machine);

    for (uint32_t i = 0; i < machine->plan->rank_count; i++) {
        struct pd_optimizer_span theirs = parts_of(machine, &machine->plan->shards[i]);
        collective->receive_counts[i] = (int)theirs.count;
        collective->receive_offsets[i] = (int)theirs.begin;
        collective->send_counts[i] = (int)parts_of(machine, &machine->store->shard).count;
    }
}

void pd_step_ask_parameters(struct pd_step_machine *machine, uint64_t bucket)
{
    struct pd_collective *collective = ask(machine, PD_COLLECTIVE_GATHER_FLOATS);

    collective->receive = pd_param_store_spare(machine->store);
    for (uint32_t i = 0; i < machine->plan->replica_count; i++) {
        struct pd_range theirs = pd_step_piece(machine, i, bucket);
        collective->receive_counts[i] = (int)theirs.element_count;
        collective->receive_offsets[i] =
            (int)(theirs.element_begin - machine->store->lane.element_begin);
    }
}
