#include "server/core/gradient_norms.h"

#include "common/assert.h"
#include "common/heap.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum part { WHOLE, SQUARES, GROUP };

/* What grows while parts are combined. Tensors that are clipped together are a set, under the
 * number of the group, or of group 0 for all groups without a norm of their own. */
struct powers {
    double whole;
    double groups[PD_GROUP_COUNT_MAX + 1];
    double sets[PD_GROUP_COUNT_MAX + 1];
    double sets_whole[PD_GROUP_COUNT_MAX + 1];
    double sets_squares[PD_GROUP_COUNT_MAX + 1];
};

enum pd_status pd_gradient_norms_init(struct pd_gradient_norms *norms,
                                      const struct pd_config *config,
                                      const struct pd_shard_plan *plan, uint32_t tensor_count,
                                      const uint32_t *tensor_groups, struct pd_error *error)
{
    *norms = (struct pd_gradient_norms){
        .config = config,
        .plan = plan,
        .tensor_groups = tensor_groups,
        .tensor_count = tensor_count,
        .tensors = pd_heap_zalloc(tensor_count, sizeof(double)),
    };
    if (norms->tensors == NULL) {
        return pd_error_set(error, PD_ENOMEM, "out of memory for the norms of %" PRIu32 " tensors",
                            tensor_count);
    }
    pd_gradient_norms_clear(norms);
    return PD_OK;
}

void pd_gradient_norms_finish(struct pd_gradient_norms *norms)
{
    pd_heap_free(norms->tensors);
    memset(norms, 0, sizeof *norms);
}

void pd_gradient_norms_clear(struct pd_gradient_norms *norms)
{
    for (uint32_t tensor = 0; tensor < norms->tensor_count; tensor++) {
        norms->tensors[tensor] = NAN;
    }
    for (uint32_t group = 0; group < norms->config->group_count; group++) {
        norms->groups[group] = NAN;
        norms->scales[group] = 1;
    }
    norms->whole = NAN;
    norms->clipped = NAN;
    norms->clipped_norm2 = NAN;
}

bool pd_gradient_norms_rests(const struct pd_gradient_norms *norms, uint32_t tensor,
                             const struct pd_tensor_set *absent)
{
    return norms->config->groups[norms->tensor_groups[tensor]].frozen ||
           pd_tensor_set_has(absent, tensor);
}

void pd_gradient_norms_list(struct pd_gradient_norms *norms, struct pd_snapshot *snapshot)
{
    pd_snapshot_add(snapshot, norms->tensors, norms->tensor_count * sizeof norms->tensors[0]);
    pd_snapshot_add(snapshot, norms->groups, sizeof norms->groups);
    pd_snapshot_add(snapshot, norms->scales, sizeof norms->scales);
    pd_snapshot_add(snapshot, &norms->whole, sizeof norms->whole);
    pd_snapshot_add(snapshot, &norms->clipped, sizeof norms->clipped);
    pd_snapshot_add(snapshot, &norms->clipped_norm2, sizeof norms->clipped_norm2);
}

void pd_gradient_norms_measure(const struct pd_gradient_norms *norms, uint32_t tensor,
                               const float *gradient, uint32_t count,
                               double parts[PD_NORM_PART_COUNT])
{
    double whole_type = norms->config->clip.norm_type;
    double group_type = norms->config->groups[norms->tensor_groups[tensor]].clip.norm_type;
    double others[2];

    pd_reduce_norms(gradient, count, whole_type, parts);
    parts[GROUP] = parts[WHOLE];
    if (group_type != whole_type) {
        pd_reduce_norms(gradient, count, group_type, others);
        parts[GROUP] = others[0];
    }
}

bool pd_gradient_norms_need_squares(const struct pd_gradient_norms *norms, uint32_t tensor)
{
    return norms->config->clip.norm_type == 2 &&
           norms->config->groups[norms->tensor_groups[tensor]].clip.norm_type == 2;
}

void pd_gradient_norms_take_squares(const double squares[PD_REDUCE_LANE_COUNT],
                                    double parts[PD_NORM_PART_COUNT])
{
    parts[SQUARES] = pd_reduce_squares(squares);
    parts[WHOLE] = parts[SQUARES];
    parts[GROUP] = parts[SQUARES];
}

static uint32_t set_of(const struct pd_config *config, uint32_t group)
{
    return config->groups[group].clips_alone ? group : 0;
}

/* A power that does not exist, NaN, before its first part. */
static double grow(double power, double part, double norm_type)
{
    return pd_clip_add(isnan(power) ? 0 : power, part, norm_type);
}

static void add_block(struct pd_gradient_norms *norms, struct powers *powers, uint32_t tensor,
                      const double parts[PD_NORM_PART_COUNT])
{
    const struct pd_config *config = norms->config;
    double whole_type = config->clip.norm_type;
    uint32_t group = norms->tensor_groups[tensor];
    uint32_t set = set_of(config, group);
    double group_type = config->groups[group].clip.norm_type;
    double *own = &norms->tensors[tensor];

    *own = grow(*own, parts[WHOLE], whole_type);
    powers->whole = pd_clip_add(powers->whole, parts[WHOLE], whole_type);
    powers->groups[group] = grow(powers->groups[group], parts[GROUP], group_type);
    powers->sets[set] = pd_clip_add(powers->sets[set], parts[GROUP], group_type);
    powers->sets_whole[set] = pd_clip_add(powers->sets_whole[set], parts[WHOLE], whole_type);
    powers->sets_squares[set] += parts[SQUARES];
}

/* A power of the whole's norm by one of a part of it that is scaled. */
static double add_scaled(double power, double part, double scale, double norm_type)
{
    double norm = scale * pd_clip_root(part, norm_type);

    return pd_clip_add(power, pd_clip_power(norm, norm_type), norm_type);
}

/* With the powers complete: the norms and scales. */
static void finish(struct pd_gradient_norms *norms, const struct powers *powers)
{
    const struct pd_config *config = norms->config;
    double whole_type = config->clip.norm_type;
    double clipped = 0;
    double clipped_squares = 0;

    norms->whole = pd_clip_root(powers->whole, whole_type);
    for (uint32_t group = 0; group < config->group_count; group++) {
        const struct pd_clip_options *clip = &config->groups[group].clip;
        uint32_t set = set_of(config, group);
        norms->groups[group] = pd_clip_root(powers->groups[group], clip->norm_type);
        norms->scales[group] =
            pd_clip_scale(pd_clip_root(powers->sets[set], clip->norm_type), clip->norm);
        if (set == group) {
            double scale = norms->scales[set];
            clipped = add_scaled(clipped, powers->sets_whole[set], scale, whole_type);
            clipped_squares = add_scaled(clipped_squares, powers->sets_squares[set], scale, 2);
        }
    }
    norms->clipped = pd_clip_root(clipped, whole_type);
    norms->clipped_norm2 = sqrt(clipped_squares);
}

void pd_gradient_norms_take(struct pd_gradient_norms *norms, const double *parts,
                            const struct pd_tensor_set *absent)
{
    const struct pd_shard_plan *plan = norms->plan;
    struct powers powers = {0};

    pd_gradient_norms_clear(norms);
    for (uint32_t group = 0; group < norms->config->group_count; group++) {
        powers.groups[group] = NAN;
    }
    for (uint64_t block = 0; block < plan->block_count; block++) {
        uint32_t tensor = plan->blocks[block].tensor_index;
        if (!pd_gradient_norms_rests(norms, tensor, absent)) {
            add_block(norms, &powers, tensor, parts + PD_NORM_PART_COUNT * block);
        }
    }
    if (!isfinite(powers.whole)) {
        pd_gradient_norms_clear(norms);
        return;
    }
    for (uint32_t tensor = 0; tensor < norms->tensor_count; tensor++) {
        norms->tensors[tensor] =
            pd_clip_root(norms->tensors[tensor], norms->config->clip.norm_type);
    }
    finish(norms, &powers);
}
