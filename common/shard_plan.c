#include "common/shard_plan.h"

#include "common/assert.h"
#include "common/heap.h"

#include <inttypes.h>

/* A model that would be fewer blocks has smaller ones, but not below the size from which on a block
 * costs little beside its elements. */
#define FEW_BLOCKS 64u
#define SMALL_BLOCK_ELEMENTS 16384u

/* Elements of a block: the smallest size, doubled until FEW_BLOCKS of it hold the model. */
static uint32_t choose_block_elements(uint64_t element_count, uint32_t block_elements_max)
{
    uint32_t block_elements = SMALL_BLOCK_ELEMENTS;

    while (block_elements < block_elements_max &&
           (uint64_t)block_elements * FEW_BLOCKS < element_count) {
        block_elements *= 2;
    }
    return block_elements < block_elements_max ? block_elements : block_elements_max;
}

static uint64_t count_blocks(const struct pd_tensor_list *model, uint32_t block_elements)
{
    uint64_t block_count = 0;
    for (uint32_t i = 0; i < model->count; i++) {
        block_count += (model->tensors[i].element_count + block_elements - 1) / block_elements;
    }
    return block_count;
}

static void cut_blocks(struct pd_shard_plan *plan, const struct pd_tensor_list *model)
{
    uint32_t block_elements = plan->block_elements;
    uint64_t block_index = 0;
    for (uint32_t i = 0; i < model->count; i++) {
        const struct pd_tensor *tensor = &model->tensors[i];
        plan->tensor_blocks[i] = block_index;
        for (uint64_t offset = 0; offset < tensor->element_count; offset += block_elements) {
            uint64_t left = tensor->element_count - offset;
            plan->blocks[block_index++] = (struct pd_block){
                .tensor_index = i,
                .element_count = left < block_elements ? (uint32_t)left : block_elements,
                .element_begin = tensor->element_begin + offset,
            };
        }
    }
    plan->tensor_blocks[model->count] = block_index;
    PD_ASSERT(block_index == plan->block_count);
}

/* First element of block `block_index`; the end of the model for the one after the last. */
static uint64_t boundary(const struct pd_shard_plan *plan, uint64_t block_index)
{
    if (block_index < plan->block_count) {
        return plan->blocks[block_index].element_begin;
    }
    if (plan->block_count == 0) {
        return 0;
    }
    const struct pd_block *last = &plan->blocks[plan->block_count - 1];
    return last->element_begin + last->element_count;
}

/* The block boundary of `range` nearest to part_index / part_count of its elements; of two as near,
 * the lower. */
static uint64_t nearest_boundary(const struct pd_shard_plan *plan, const struct pd_range *range,
                                 uint32_t part_index, uint32_t part_count)
{
    /* All lengths times part_count, so that the even split is a whole number. */
    uint64_t target = range->element_count * part_index;
    uint64_t low = range->block_begin; /* its boundary is at or before the target */
    uint64_t high = range->block_begin + range->block_count; /* at or after it */
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        uint64_t offset = (boundary(plan, middle) - range->element_begin) * part_count;
        if (offset <= target) {
            low = middle;
        } else {
            high = middle;
        }
    }
    uint64_t below = target - (boundary(plan, low) - range->element_begin) * part_count;
    uint64_t above = (boundary(plan, high) - range->element_begin) * part_count - target;
    return below <= above ? low : high;
}

/* Cut `range` into `part_count` runs of blocks of nearly the same number of elements. */
static void split(const struct pd_shard_plan *plan, const struct pd_range *range,
                  struct pd_range *parts, uint32_t part_count)
{
    uint64_t block_begin = range->block_begin;
    for (uint32_t i = 0; i < part_count; i++) {
        uint64_t block_end = nearest_boundary(plan, range, i + 1, part_count);
        PD_ASSERT(block_end >= block_begin);
        parts[i] = (struct pd_range){
            .block_begin = block_begin,
            .block_count = block_end - block_begin,
            .element_begin = boundary(plan, block_begin),
            .element_count = boundary(plan, block_end) - boundary(plan, block_begin),
        };
        block_begin = block_end;
    }
    PD_ASSERT(block_begin == range->block_begin + range->block_count);
}

static enum pd_status deal_blocks(struct pd_shard_plan *plan, uint64_t element_count,
                                  struct pd_error *error)
{
    struct pd_range model = {.block_count = plan->block_count, .element_count = element_count};
    struct pd_range replicas[PD_RANK_COUNT_MAX];

    split(plan, &model, plan->lanes, plan->lane_count);
    for (uint32_t lane = 0; lane < plan->lane_count; lane++) {
        if (plan->lanes[lane].element_count > PD_LANE_ELEMENT_COUNT_MAX) {
            uint64_t enough =
                element_count / (PD_LANE_ELEMENT_COUNT_MAX - PD_BLOCK_ELEMENT_COUNT_MAX) + 1;
            return pd_error_set(error, PD_ELIMIT,
                                "lane %" PRIu32 " of %" PRIu32 " would hold %" PRIu64
                                " elements, at most %llu; %" PRIu64
                                " ranks with a lane each would do",
                                lane, plan->lane_count, plan->lanes[lane].element_count,
                                PD_LANE_ELEMENT_COUNT_MAX, enough);
        }
        split(plan, &plan->lanes[lane], replicas, plan->replica_count);
        for (uint32_t replica = 0; replica < plan->replica_count; replica++) {
            plan->shards[replica * plan->lane_count + lane] = replicas[replica];
        }
    }
    return PD_OK;
}

enum pd_status pd_shard_plan_create(struct pd_shard_plan **out, const struct pd_tensor_list *model,
                                    uint32_t block_elements_max, uint32_t rank_count,
                                    uint32_t lane_count, struct pd_error *error)
{
    PD_ASSERT(block_elements_max >= 1 && block_elements_max <= PD_BLOCK_ELEMENT_COUNT_MAX);
    PD_ASSERT(rank_count >= 1 && rank_count <= PD_RANK_COUNT_MAX);
    *out = NULL;
    if (lane_count == 0 || rank_count % lane_count != 0) {
        return pd_error_set(error, PD_EINVALID, "%" PRIu32 " lanes do not divide %" PRIu32 " ranks",
                            lane_count, rank_count);
    }

    struct pd_shard_plan *plan = pd_heap_zalloc(1, sizeof *plan);
    if (plan == NULL) {
        return pd_error_set(error, PD_ENOMEM, "shard plan: %zu bytes", sizeof *plan);
    }
    plan->rank_count = rank_count;
    plan->lane_count = lane_count;
    plan->replica_count = rank_count / lane_count;
    plan->block_elements = choose_block_elements(model->element_count, block_elements_max);
    plan->block_count = count_blocks(model, plan->block_elements);
    plan->blocks = pd_heap_zalloc(plan->block_count, sizeof *plan->blocks);
    plan->tensor_blocks = pd_heap_zalloc((size_t)model->count + 1, sizeof *plan->tensor_blocks);
    plan->lanes = pd_heap_zalloc(lane_count, sizeof *plan->lanes);
    plan->shards = pd_heap_zalloc(rank_count, sizeof *plan->shards);

    enum pd_status status = PD_OK;
    if (plan->blocks == NULL || plan->tensor_blocks == NULL || plan->lanes == NULL ||
        plan->shards == NULL) {
        status =
            pd_error_set(error, PD_ENOMEM, "shard plan: %" PRIu64 " blocks", plan->block_count);
        goto fail_plan;
    }
    cut_blocks(plan, model);
    status = deal_blocks(plan, model->element_count, error);
    if (status != PD_OK) {
        goto fail_plan;
    }
    *out = plan;
    return PD_OK;

fail_plan:
    pd_shard_plan_destroy(plan);
    return status;
}

void pd_shard_plan_destroy(struct pd_shard_plan *plan)
{
    if (plan == NULL) {
        return;
    }
    pd_heap_free(plan->shards);
    pd_heap_free(plan->lanes);
    pd_heap_free(plan->tensor_blocks);
    pd_heap_free(plan->blocks);
    pd_heap_free(plan);
}

/* The block that begins with that element. */
static const struct pd_block *find_block(const struct pd_shard_plan *plan, uint64_t element_begin)
{
    uint64_t low = 0;
    uint64_t high = plan->block_count;

    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        if (plan->blocks[middle].element_begin <= element_begin) {
            low = middle;
        } else {
            high = middle;
        }
    }
    PD_ASSERT(plan->blocks[low].element_begin == element_begin);
    return &plan->blocks[low];
}

uint64_t pd_shard_plan_run(const struct pd_shard_plan *plan, uint64_t element_begin,
                           uint64_t element_end, uint64_t element_max)
{
    const struct pd_block *block = find_block(plan, element_begin);
    uint64_t count = block->element_count;

    for (block++; element_begin + count < element_end; block++) {
        if (count + block->element_count > element_max) {
            break;
        }
        count += block->element_count;
    }
    return count;
}

uint32_t pd_shard_plan_lane_of(const struct pd_shard_plan *plan, uint32_t rank)
{
    PD_ASSERT(rank < plan->rank_count);
    return rank % plan->lane_count;
}

uint32_t pd_shard_plan_replica_of(const struct pd_shard_plan *plan, uint32_t rank)
{
    PD_ASSERT(rank < plan->rank_count);
    return rank / plan->lane_count;
}
