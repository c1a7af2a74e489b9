#include "server/core/tensor_sums.h"

#include "common/assert.h"
#include "common/heap.h"

#include <inttypes.h>
#include <limits.h>
#include <string.h>

static const struct pd_group *group_of(const struct pd_tensor_sums *sums, uint32_t tensor)
{
    return &sums->config->groups[sums->tensor_groups[tensor]];
}

/* Sums that a tensor has in a pass; one that is frozen has none. */
static uint64_t sum_count_of(const struct pd_tensor_sums *sums, uint32_t pass, uint32_t tensor)
{
    const struct pd_group *group = group_of(sums, tensor);

    return group->frozen ? 0
                         : pd_optimizer_sum_count(sums->config->optimizer, &group->hyper, pass,
                                                  &sums->model->tensors[tensor]);
}

/* The runs of its tensor's sums that a block has a part in. */
static uint32_t spans_of(const struct pd_tensor_sums *sums, uint32_t pass,
                         const struct pd_block *block, struct pd_optimizer_span *spans)
{
    const struct pd_tensor *tensor = &sums->model->tensors[block->tensor_index];
    const struct pd_group *group = group_of(sums, block->tensor_index);

    return group->frozen ? 0
                         : pd_optimizer_spans(sums->config->optimizer, &group->hyper, pass, tensor,
                                              block->element_begin - tensor->element_begin,
                                              block->element_count, spans);
}

static bool gives_sums(const struct pd_tensor_sums *sums, uint32_t pass)
{
    for (uint32_t tensor = 0; tensor < sums->model->count; tensor++) {
        if (sum_count_of(sums, pass, tensor) > 0) {
            return true;
        }
    }
    return false;
}

static enum pd_status lay_out(struct pd_tensor_sums *sums, uint32_t pass,
                              const struct pd_range *shard, struct pd_error *error)
{
    struct pd_tensor_sums_pass *layout = &sums->passes[pass];
    const struct pd_shard_plan *plan = sums->plan;
    uint32_t tensor_count = sums->tensor_end - sums->tensor_begin;

    layout->block_offsets = pd_heap_zalloc(plan->block_count + 1, sizeof(uint64_t));
    layout->tensor_offsets = pd_heap_zalloc(tensor_count + 1, sizeof(uint64_t));
    if (layout->block_offsets == NULL || layout->tensor_offsets == NULL) {
        return pd_error_set(error, PD_ENOMEM, "out of memory for the sums of %" PRIu64 " blocks",
                            plan->block_count);
    }
    for (uint64_t i = 0; i < plan->block_count; i++) {
        struct pd_optimizer_span spans[PD_OPTIMIZER_SPAN_COUNT_MAX];
        uint32_t span_count = spans_of(sums, pass, &plan->blocks[i], spans);
        layout->block_offsets[i + 1] = layout->block_offsets[i];
        for (uint32_t k = 0; k < span_count; k++) {
            layout->block_offsets[i + 1] += spans[k].count;
        }
    }
    for (uint32_t i = 0; i < tensor_count; i++) {
        layout->tensor_offsets[i + 1] =
            layout->tensor_offsets[i] + sum_count_of(sums, pass, sums->tensor_begin + i);
    }
    uint64_t all = layout->block_offsets[plan->block_count];
    if (all > INT_MAX) {
        return pd_error_set(error, PD_ELIMIT,
                            "%s: %" PRIu64 " sums in %" PRIu64
                            " blocks; allowed: at most %d; a larger block_size has fewer",
                            sums->config->optimizer->name, all, plan->block_count, INT_MAX);
    }
    uint64_t own = pd_tensor_sums_parts(sums, pass, shard->block_begin, shard->block_count).count;
    sums->all_count_max = all > sums->all_count_max ? all : sums->all_count_max;
    sums->shard_count_max = own > sums->shard_count_max ? own : sums->shard_count_max;
    return PD_OK;
}

/* Passes that some tensor needs: decided from model and configuration, so every rank decides
 * alike. */
static uint32_t pass_count_of(const struct pd_tensor_sums *sums)
{
    uint32_t most = 1;

    for (uint32_t tensor = 0; tensor < sums->model->count; tensor++) {
        const struct pd_group *group = group_of(sums, tensor);
        uint32_t count =
            group->frozen ? 0 : pd_optimizer_pass_count(sums->config->optimizer, &group->hyper);
        most = count > most ? count : most;
    }
    return most;
}

enum pd_status pd_tensor_sums_init(struct pd_tensor_sums *sums, const struct pd_config *config,
                                   const struct pd_tensor_list *model,
                                   const struct pd_shard_plan *plan, const struct pd_range *shard,
                                   const uint32_t *tensor_groups, struct pd_error *error)
{
    enum pd_status status = PD_OK;
    uint64_t total_count = 0;

    *sums = (struct pd_tensor_sums){
        .config = config, .model = model, .plan = plan, .tensor_groups = tensor_groups};
    if (shard->block_count > 0) {
        uint64_t last = shard->block_begin + shard->block_count - 1;
        sums->tensor_begin = plan->blocks[shard->block_begin].tensor_index;
        sums->tensor_end = plan->blocks[last].tensor_index + 1;
    }
    sums->pass_count = pass_count_of(sums);
    for (uint32_t pass = 0; status == PD_OK && pass < sums->pass_count; pass++) {
        if (!gives_sums(sums, pass)) {
            continue;
        }
        status = lay_out(sums, pass, shard, error);
        if (status == PD_OK) {
            uint32_t tensor_count = sums->tensor_end - sums->tensor_begin;
            uint64_t count = sums->passes[pass].tensor_offsets[tensor_count];
            total_count = count > total_count ? count : total_count;
        }
    }
    if (status == PD_OK) {
        sums->totals = pd_heap_zalloc(total_count, sizeof(double));
        if (sums->totals == NULL) {
            status =
                pd_error_set(error, PD_ENOMEM, "out of memory for %" PRIu64 " sums", total_count);
        }
    }
    if (status != PD_OK) {
        pd_tensor_sums_finish(sums);
    }
    return status;
}

void pd_tensor_sums_finish(struct pd_tensor_sums *sums)
{
    for (uint32_t pass = 0; pass < PD_OPTIMIZER_PASS_COUNT_MAX; pass++) {
        pd_heap_free(sums->passes[pass].block_offsets);
        pd_heap_free(sums->passes[pass].tensor_offsets);
    }
    pd_heap_free(sums->totals);
    memset(sums, 0, sizeof *sums);
}

bool pd_tensor_sums_any(const struct pd_tensor_sums *sums, uint32_t pass)
{
    return sums->passes[pass].block_offsets != NULL;
}

struct pd_optimizer_span pd_tensor_sums_parts(const struct pd_tensor_sums *sums, uint32_t pass,
                                              uint64_t block_begin, uint64_t block_count)
{
    const uint64_t *offsets = sums->passes[pass].block_offsets;

    if (offsets == NULL) {
        return (struct pd_optimizer_span){0, 0};
    }
    return (struct pd_optimizer_span){offsets[block_begin],
                                      offsets[block_begin + block_count] - offsets[block_begin]};
}

void pd_tensor_sums_add(struct pd_tensor_sums *sums, uint32_t pass, const double *gathered)
{
    const struct pd_tensor_sums_pass *layout = &sums->passes[pass];
    const struct pd_shard_plan *plan = sums->plan;
    uint32_t tensor_count = sums->tensor_end - sums->tensor_begin;

    memset(sums->totals, 0, layout->tensor_offsets[tensor_count] * sizeof *sums->totals);
    if (tensor_count == 0) {
        return;
    }
    for (uint64_t i = plan->tensor_blocks[sums->tensor_begin];
         i < plan->tensor_blocks[sums->tensor_end]; i++) {
        const struct pd_block *block = &plan->blocks[i];
        struct pd_optimizer_span spans[PD_OPTIMIZER_SPAN_COUNT_MAX];
        uint32_t span_count = spans_of(sums, pass, block, spans);
        const double *part = gathered + layout->block_offsets[i];
        double *totals =
            sums->totals + layout->tensor_offsets[block->tensor_index - sums->tensor_begin];
        for (uint32_t k = 0; k < span_count; k++) {
            for (uint64_t j = 0; j < spans[k].count; j++) {
                totals[spans[k].begin + j] += *part++;
            }
        }
    }
}

const double *pd_tensor_sums_of(const struct pd_tensor_sums *sums, uint32_t pass,
                                uint32_t tensor_index)
{
    const uint64_t *offsets = sums->passes[pass].tensor_offsets;

    PD_ASSERT(tensor_index >= sums->tensor_begin && tensor_index < sums->tensor_end);
    if (offsets == NULL || offsets[tensor_index - sums->tensor_begin + 1] ==
                               offsets[tensor_index - sums->tensor_begin]) {
        return NULL;
    }
    return sums->totals + offsets[tensor_index - sums->tensor_begin];
}
