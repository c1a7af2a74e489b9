/* Sums over whole tensors between two passes of a rule: where each block's part lies among those of
 * all blocks, and adding them up in block order, alike for any number of ranks.
 * optimizer (parts of blocks) -> [tensor_sums] -> optimizer (the next pass). Pure. */
#ifndef PD_SERVER_CORE_TENSOR_SUMS_H
#define PD_SERVER_CORE_TENSOR_SUMS_H

#include "common/shard_plan.h"
#include "server/core/config.h"

/* Layout of one pass; the arrays are NULL when it has no sums anywhere. */
struct pd_tensor_sums_pass {
    uint64_t *block_offsets;  /* plan.block_count + 1: a block's part among all, by block */
    uint64_t *tensor_offsets; /* tensors of the shard + 1: a tensor's sums among `totals` */
};

struct pd_tensor_sums {
    const struct pd_config *config;
    const struct pd_tensor_list *model;
    const struct pd_shard_plan *plan;
    const uint32_t *tensor_groups;
    uint32_t tensor_begin; /* tensors that the shard has a part of */
    uint32_t tensor_end;
    uint32_t pass_count; /* the most any group in use needs */
    struct pd_tensor_sums_pass passes[PD_OPTIMIZER_PASS_COUNT_MAX];
    uint64_t shard_count_max; /* parts of the shard's blocks, in the pass with most */
    uint64_t all_count_max;   /* parts of all blocks, in the pass with most */
    double *totals;
};

/* Lay out for the shard of one rank; everything is borrowed until finish.
 * Errors: PD_ENOMEM, PD_ELIMIT for more sums than one collective gathers; nothing to finish then.
 */
PD_MUST_CHECK
enum pd_status pd_tensor_sums_init(struct pd_tensor_sums *sums, const struct pd_config *config,
                                   const struct pd_tensor_list *model,
                                   const struct pd_shard_plan *plan, const struct pd_range *shard,
                                   const uint32_t *tensor_groups, struct pd_error *error);
void pd_tensor_sums_finish(struct pd_tensor_sums *sums);

/* Whether anything is summed after that pass. */
bool pd_tensor_sums_any(const struct pd_tensor_sums *sums, uint32_t pass);

/* The parts of blocks [block_begin, block_begin + block_count): how many, and where among all. */
struct pd_optimizer_span pd_tensor_sums_parts(const struct pd_tensor_sums *sums, uint32_t pass,
                                              uint64_t block_begin, uint64_t block_count);

/* Add up the parts of all blocks, which are `gathered` in block order, for the shard's tensors. */
void pd_tensor_sums_add(struct pd_tensor_sums *sums, uint32_t pass, const double *gathered);

/* The totals of a tensor that the shard has a part of, as last added up after pass `pass`; NULL
 * when it has none. */
const double *pd_tensor_sums_of(const struct pd_tensor_sums *sums, uint32_t pass,
                                uint32_t tensor_index);

#endif
