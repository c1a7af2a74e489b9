/* How a model is cut into blocks and the blocks are dealt to ranks.
 * tensor -> [shard_plan] -> contribution, step, serve, and the client's routing. Pure.
 *
 * A block is a run of at most `block_elements` elements of one tensor; the blocks of a model depend
 * on its tensors alone, never on the number of ranks, so sums taken block by block are the same for
 * any number. Those of a small model are smaller, so that a few ranks can share it evenly. The S
 * ranks form a grid of `lane_count` x replicas: rank = replica * lane_count + lane. A lane is a
 * contiguous run of blocks; within a lane each replica owns a contiguous run. */
#ifndef PD_COMMON_SHARD_PLAN_H
#define PD_COMMON_SHARD_PLAN_H

#include "common/tensor.h"

struct pd_block {
    uint32_t tensor_index;
    uint32_t element_count;
    uint64_t element_begin; /* in the flat model */
};

/* A run of blocks and of the elements they hold; both may be empty. */
struct pd_range {
    uint64_t block_begin;
    uint64_t block_count;
    uint64_t element_begin;
    uint64_t element_count;
};

struct pd_shard_plan {
    uint32_t rank_count;
    uint32_t lane_count;    /* divides rank_count */
    uint32_t replica_count; /* rank_count / lane_count */
    uint32_t block_elements;
    uint64_t block_count;
    struct pd_block *blocks; /* block_count of them, by element_begin */
    uint64_t *tensor_blocks; /* tensor_count + 1: blocks [i]..[i+1]-1 are those of tensor i */
    struct pd_range *lanes;  /* lane_count: what a worker pushes to that lane */
    struct pd_range *shards; /* rank_count, by rank: what that rank owns and steps */
};

/* Cut the model into blocks of at most `block_elements_max` and deal it. The boundary between two
 * neighbouring lanes (and replicas of a lane) is the block boundary nearest to the even split, so
 * each holds its even share within one block. Errors: PD_EINVALID if lane_count does not divide
 * rank_count; PD_ELIMIT if a lane exceeds PD_LANE_ELEMENT_COUNT_MAX elements (says how many ranks
 * would do); PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_shard_plan_create(struct pd_shard_plan **out, const struct pd_tensor_list *model,
                                    uint32_t block_elements_max, uint32_t rank_count,
                                    uint32_t lane_count, struct pd_error *error);
void pd_shard_plan_destroy(struct pd_shard_plan *plan);

/* Elements of the whole blocks from `element_begin` on, which is a block's, as many as are in
 * `element_max` and before `element_end`, but at least one block. */
uint64_t pd_shard_plan_run(const struct pd_shard_plan *plan, uint64_t element_begin,
                           uint64_t element_end, uint64_t element_max);

uint32_t pd_shard_plan_lane_of(const struct pd_shard_plan *plan, uint32_t rank);
uint32_t pd_shard_plan_replica_of(const struct pd_shard_plan *plan, uint32_t rank);

#endif
