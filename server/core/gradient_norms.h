/* The norms of one step's gradient - of every tensor, every group and the whole - and the scale
 * that each group is clipped by. reduce (parts of blocks) -> [gradient_norms] -> optimizer, status.
 * Pure.
 *
 * Every tensor is clipped once: with those of its group if the group has a norm of its own, else
 * with all tensors of groups that have none. Parts are combined in block order, so the results are
 * the same for any number of shards. */
#ifndef PD_SERVER_CORE_GRADIENT_NORMS_H
#define PD_SERVER_CORE_GRADIENT_NORMS_H

#include "common/shard_plan.h"
#include "common/tensor_set.h"
#include "server/core/config.h"
#include "server/core/reduce.h"
#include "server/core/snapshot.h"

/* Parts of a block: the power of the whole's norm, squares, the power of its group's norm. */
#define PD_NORM_PART_COUNT 3u

struct pd_gradient_norms {
    const struct pd_config *config;
    const struct pd_shard_plan *plan;
    const uint32_t *tensor_groups;
    uint32_t tensor_count;
    double *tensors; /* norms before clipping, of the whole's type; NaN: no gradient */
    /* By group; the norm is of the type it is clipped by, and NaN without any gradient. */
    double groups[PD_GROUP_COUNT_MAX + 1];
    double scales[PD_GROUP_COUNT_MAX + 1];
    double whole;         /* before clipping; NaN: something is not finite, and no scale counts */
    double clipped;       /* the same after it */
    double clipped_norm2; /* its L2 norm */
};

/* Everything is borrowed until finish. Errors: PD_ENOMEM; nothing to finish then. */
PD_MUST_CHECK
enum pd_status pd_gradient_norms_init(struct pd_gradient_norms *norms,
                                      const struct pd_config *config,
                                      const struct pd_shard_plan *plan, uint32_t tensor_count,
                                      const uint32_t *tensor_groups, struct pd_error *error);
void pd_gradient_norms_finish(struct pd_gradient_norms *norms);

/* Add all of them to what a snapshot keeps. */
void pd_gradient_norms_list(struct pd_gradient_norms *norms, struct pd_snapshot *snapshot);

/* The parts of a block of `count` elements of a tensor. */
void pd_gradient_norms_measure(const struct pd_gradient_norms *norms, uint32_t tensor,
                               const float *gradient, uint32_t count,
                               double parts[PD_NORM_PART_COUNT]);

/* Whether those of a tensor follow from the sums of squares alone; then they are these. */
bool pd_gradient_norms_need_squares(const struct pd_gradient_norms *norms, uint32_t tensor);
void pd_gradient_norms_take_squares(const double squares[PD_REDUCE_LANE_COUNT],
                                    double parts[PD_NORM_PART_COUNT]);

/* A step without a gradient: there are no norms. */
void pd_gradient_norms_clear(struct pd_gradient_norms *norms);

/* Combine the parts of all blocks, in their order; those of tensors that rest are zeros. */
void pd_gradient_norms_take(struct pd_gradient_norms *norms, const double *parts,
                            const struct pd_tensor_set *absent);

/* Whether a tensor has no part in a step with those absent: nobody has a gradient for it, or it is
 * frozen. */
bool pd_gradient_norms_rests(const struct pd_gradient_norms *norms, uint32_t tensor,
                             const struct pd_tensor_set *absent);

#endif
