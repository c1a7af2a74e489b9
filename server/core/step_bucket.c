/* With replicas: the sum across them, bucket by bucket, so that one is exchanged while the next is
 * summed and what is combined is still in cache. */
#include "server/core/step_state.h"

#include "common/assert.h"
#include "common/heap.h"

/* Blocks of full size in a bucket, over all replicas: 4 MB where a block has 65,536 elements.
 * Between 2 and 8 MB all are as good; 1 MB is slower by a third, because of what every collective
 * costs, and with 16 MB neither the sum nor what is taken stays in cache, and the pipeline fills
 * more slowly.
 */
#define BUCKET_BLOCKS 16u

static const struct pd_range *replica_shard(const struct pd_step_machine *machine, uint32_t replica)
{
    return &machine->plan->shards[replica * machine->plan->lane_count + machine->lane];
}

/* The first block of `range` that begins at its element `offset` or later. */
static uint64_t first_block_from(const struct pd_shard_plan *plan, const struct pd_range *range,
                                 uint64_t offset)
{
    uint64_t low = range->block_begin;
    uint64_t high = range->block_begin + range->block_count;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (plan->blocks[middle].element_begin - range->element_begin < offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static uint64_t element_of(const struct pd_shard_plan *plan, const struct pd_range *range,
                           uint64_t block)
{
    return block < range->block_begin + range->block_count
               ? plan->blocks[block].element_begin
               : range->element_begin + range->element_count;
}

struct pd_range pd_step_piece(const struct pd_step_machine *machine, uint32_t replica,
                              uint64_t bucket)
{
    const struct pd_shard_plan *plan = machine->plan;
    const struct pd_range *shard = replica_shard(machine, replica);
    uint64_t offset = bucket * machine->buckets.piece_elements;
    uint64_t begin = first_block_from(plan, shard, offset);
    uint64_t end = first_block_from(plan, shard, offset + machine->buckets.piece_elements);

    return (struct pd_range){
        .block_begin = begin,
        .block_count = end - begin,
        .element_begin = element_of(plan, shard, begin),
        .element_count = element_of(plan, shard, end) - element_of(plan, shard, begin),
    };
}

/* ---- Life ---- */

static void count_buckets(struct pd_step_machine *machine)
{
    struct pd_step_buckets *buckets = &machine->buckets;
    uint64_t block_size = machine->config->block_size;
    uint64_t blocks = BUCKET_BLOCKS / machine->plan->replica_count;

    buckets->piece_elements = (blocks > 0 ? blocks : 1) * block_size;
    for (uint32_t i = 0; i < machine->plan->replica_count; i++) {
        uint64_t elements = replica_shard(machine, i)->element_count;
        uint64_t count = (elements + buckets->piece_elements - 1) / buckets->piece_elements;
        buckets->count = count > buckets->count ? count : buckets->count;
        for (uint64_t bucket = 0; bucket < count; bucket++) {
            struct pd_range piece = pd_step_piece(machine, i, bucket);
            buckets->piece_max =
                piece.element_count > buckets->piece_max ? piece.element_count : buckets->piece_max;
        }
    }
}

bool pd_step_allocate_buckets(struct pd_step_machine *machine)
{
    struct pd_step_buckets *buckets = &machine->buckets;

    count_buckets(machine);
    buckets->own = pd_heap_zalloc(machine->plan->block_elements, sizeof(float));
    bool complete = buckets->own != NULL;
    for (uint32_t i = 0; i < PD_STEP_SLOT_COUNT; i++) {
        struct pd_step_slot *slot = &buckets->slots[i];
        slot->given =
            pd_heap_zalloc(buckets->piece_max, machine->plan->replica_count * sizeof(float));
        slot->taken =
            pd_heap_zalloc(buckets->piece_max, machine->plan->replica_count * sizeof(float));
        complete = complete && slot->given != NULL && slot->taken != NULL;
    }
    return complete;
}

void pd_step_free_buckets(struct pd_step_machine *machine)
{
    for (uint32_t i = 0; i < PD_STEP_SLOT_COUNT; i++) {
        pd_heap_free(machine->buckets.slots[i].given);
        pd_heap_free(machine->buckets.slots[i].taken);
    }
    pd_heap_free(machine->buckets.own);
}

void pd_step_begin_buckets(struct pd_step_machine *machine)
{
    struct pd_step_buckets *buckets = &machine->buckets;

    PD_ASSERT(!pd_step_awaits(machine));
    buckets->summed = 0;
    buckets->combined = 0;
    buckets->gathered = 0;
    buckets->sum_replica = 0;
    buckets->sum_block = 0;
}

/* ---- Sum, combine, gather ---- */

/* Sum for a turn what this rank has for the replica whose turn it is; false when some is left. */
static bool sum_piece(struct pd_step_machine *machine)
{
    struct pd_step_buckets *buckets = &machine->buckets;
    struct pd_range piece = pd_step_piece(machine, buckets->sum_replica, buckets->summed);
    float *sums = buckets->slots[buckets->summed % PD_STEP_SLOT_COUNT].given +
                  buckets->sum_replica * buckets->piece_max;

    while (buckets->sum_block < piece.block_count &&
           machine->turn_elements < PD_STEP_TURN_ELEMENTS) {
        const struct pd_block *block =
            &machine->plan->blocks[piece.block_begin + buckets->sum_block];
        pd_step_sum_block(machine, block, sums + (block->element_begin - piece.element_begin));
        machine->turn_elements += block->element_count;
        buckets->sum_block++;
    }
    return buckets->sum_block == piece.block_count;
}

/* Sum for a turn what this rank has for the others; then ask for the exchange. */
static void turn_sum(struct pd_step_machine *machine)
{
    struct pd_step_buckets *buckets = &machine->buckets;

    while (buckets->sum_replica < machine->plan->replica_count) {
        if (buckets->sum_replica != machine->replica && !sum_piece(machine)) {
            return;
        }
        buckets->sum_replica++;
        buckets->sum_block = 0;
    }
    pd_step_ask_exchange(machine, buckets->summed);
    buckets->sum_replica = 0;
    buckets->summed++;
}

/* What this rank has of a block of its own. The sum of one contribution that weighs 1 in it is that
 * contribution times the scale. */
static struct pd_source own_source(struct pd_step_machine *machine, const struct pd_block *block)
{
    bool alone =
        machine->source_count == 1 && !(pd_step_taken(machine, machine->order)->samples > 0.0);

    if (alone && machine->sources[0].weight >= 1.0f && machine->sources[0].weight <= 1.0f) {
        struct pd_source source = machine->sources[0];
        source.elements =
            pd_contribution_elements(machine->contributions[0], in_lane(machine, block));
        source.weight *= machine->scale;
        return source;
    }
    pd_step_sum_block(machine, block, machine->buckets.own);
    return (struct pd_source){machine->buckets.own, PD_DTYPE_FLOAT32, 1.0f};
}

/* Add up what the replicas have of a block, in their order. */
static void combine_block(struct pd_step_machine *machine, const struct pd_range *piece,
                          const struct pd_block *block)
{
    const struct pd_step_buckets *buckets = &machine->buckets;
    const float *taken = buckets->slots[buckets->combined % PD_STEP_SLOT_COUNT].taken;
    struct pd_source sources[PD_RANK_COUNT_MAX];

    for (uint32_t i = 0; i < machine->plan->replica_count; i++) {
        sources[i] = (struct pd_source){
            .elements =
                taken + i * buckets->piece_max + (block->element_begin - piece->element_begin),
            .dtype = PD_DTYPE_FLOAT32,
            .weight = 1.0f,
        };
    }
    sources[machine->replica] = own_source(machine, block);
    pd_reduce_block(block_gradient(machine, block), sources, machine->plan->replica_count,
                    block->element_count);
}

/* Combine for a turn; `next_block` is where in the shard. */
static void turn_combine(struct pd_step_machine *machine)
{
    struct pd_step_buckets *buckets = &machine->buckets;
    struct pd_range piece = pd_step_piece(machine, machine->replica, buckets->combined);
    uint64_t end = piece.block_begin + piece.block_count - machine->store->shard.block_begin;

    while (machine->next_block < end && machine->turn_elements < PD_STEP_TURN_ELEMENTS) {
        const struct pd_block *block = shard_block(machine, machine->next_block);
        combine_block(machine, &piece, block);
        pd_step_measure_block(machine, machine->next_block);
        machine->turn_elements += block->element_count;
        machine->next_block++;
    }
    if (machine->next_block == end) {
        buckets->combined++;
    }
}

enum pd_step_want pd_step_turn_buckets(struct pd_step_machine *machine)
{
    const struct pd_step_buckets *buckets = &machine->buckets;

    while (machine->turn_elements < PD_STEP_TURN_ELEMENTS) {
        if (buckets->combined == buckets->count) {
            return PD_STEP_WANTS_NOTHING;
        }
        if (buckets->summed < buckets->count &&
            buckets->summed < buckets->combined + PD_STEP_SLOT_COUNT) {
            turn_sum(machine);
            continue;
        }
        if (buckets->slots[buckets->combined % PD_STEP_SLOT_COUNT].exchange >=
            machine->collectives_done) {
            return PD_STEP_WANTS_COLLECTIVE;
        }
        turn_combine(machine);
    }
    return PD_STEP_WANTS_WORK;
}

void pd_step_gather_buckets(struct pd_step_machine *machine)
{
    struct pd_step_buckets *buckets = &machine->buckets;

    while (buckets->gathered < buckets->count &&
           machine->collectives_asked - machine->collectives_done < PD_STEP_COLLECTIVE_COUNT) {
        struct pd_range piece = pd_step_piece(machine, machine->replica, buckets->gathered);
        uint64_t end = piece.block_begin + piece.block_count - machine->store->shard.block_begin;
        if (machine->state != PD_STEP_GATHER && machine->next_block < end) {
            return;
        }
        pd_step_ask_parameters(machine, buckets->gathered);
        buckets->gathered++;
    }
}
