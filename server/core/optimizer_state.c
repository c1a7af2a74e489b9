#include "server/core/optimizer_state.h"

#include "common/assert.h"
#include "common/heap.h"

#include <inttypes.h>
#include <string.h>

/* Note which elements of which tensors are in the shard. */
static void find_parts(struct pd_optimizer_state *state, const struct pd_tensor_list *model,
                       const struct pd_shard_plan *plan, const struct pd_range *shard)
{
    for (uint64_t i = 0; i < shard->block_count; i++) {
        const struct pd_block *block = &plan->blocks[shard->block_begin + i];
        struct pd_tensor_state *part = pd_optimizer_state_of(state, block->tensor_index);
        if (part->tensor == NULL) {
            part->tensor = &model->tensors[block->tensor_index];
            part->begin = block->element_begin - part->tensor->element_begin;
        }
        part->count += block->element_count;
    }
}

static bool allocate_part(struct pd_tensor_state *part)
{
    uint64_t vector_count = 0;

    part->array_count = part->optimizer->state_count(part->hyper, part->tensor);
    PD_ASSERT(part->array_count <= PD_OPTIMIZER_STATE_COUNT_MAX);
    for (uint32_t i = 0; i < part->array_count; i++) {
        part->arrays[i] = pd_heap_zalloc(part->count, sizeof(float));
        if (part->arrays[i] == NULL) {
            return false;
        }
    }
    if (part->optimizer->vector_count != NULL) {
        vector_count = part->optimizer->vector_count(part->hyper, part->tensor);
    }
    if (vector_count > 0) {
        part->vectors = pd_heap_zalloc(vector_count, sizeof(float));
    }
    return vector_count == 0 || part->vectors != NULL;
}

enum pd_status pd_optimizer_state_init(struct pd_optimizer_state *state,
                                       const struct pd_config *config,
                                       const struct pd_tensor_list *model,
                                       const struct pd_shard_plan *plan,
                                       const struct pd_range *shard, const uint32_t *tensor_groups,
                                       struct pd_error *error)
{
    memset(state, 0, sizeof *state);
    if (shard->block_count > 0) {
        uint64_t last = shard->block_begin + shard->block_count - 1;
        state->tensor_begin = plan->blocks[shard->block_begin].tensor_index;
        state->tensor_end = plan->blocks[last].tensor_index + 1;
    }
    uint32_t count = state->tensor_end - state->tensor_begin;
    state->tensors = pd_heap_zalloc(count, sizeof *state->tensors);
    if (state->tensors == NULL) {
        state->tensor_end = state->tensor_begin;
        goto fail;
    }
    find_parts(state, model, plan, shard);
    for (uint32_t i = 0; i < count; i++) {
        struct pd_tensor_state *part = &state->tensors[i];
        part->optimizer = config->optimizer;
        part->hyper = &config->groups[tensor_groups[state->tensor_begin + i]].hyper;
        if (!allocate_part(part)) {
            goto fail;
        }
    }
    return PD_OK;

fail:
    pd_optimizer_state_finish(state);
    return pd_error_set(error, PD_ENOMEM,
                        "out of memory for the optimizer state of %" PRIu64 " parameters",
                        shard->element_count);
}

void pd_optimizer_state_finish(struct pd_optimizer_state *state)
{
    for (uint32_t i = 0; i < state->tensor_end - state->tensor_begin; i++) {
        for (uint32_t k = 0; k < PD_OPTIMIZER_STATE_COUNT_MAX; k++) {
            pd_heap_free(state->tensors[i].arrays[k]);
        }
        pd_heap_free(state->tensors[i].vectors);
    }
    pd_heap_free(state->tensors);
    memset(state, 0, sizeof *state);
}

struct pd_tensor_state *pd_optimizer_state_of(const struct pd_optimizer_state *state,
                                              uint32_t tensor_index)
{
    PD_ASSERT(tensor_index >= state->tensor_begin && tensor_index < state->tensor_end);
    return &state->tensors[tensor_index - state->tensor_begin];
}

static bool is_needed(const struct pd_tensor_state *state, uint32_t pass)
{
    return pass < pd_optimizer_pass_count(state->optimizer, state->hyper);
}

void pd_optimizer_state_begin(struct pd_tensor_state *state, uint32_t pass,
                              const struct pd_optimizer_step *step, const double *sums)
{
    if (is_needed(state, pass) && state->optimizer->passes[pass].begin != NULL) {
        state->optimizer->passes[pass].begin(step, state->tensor, sums, state->vectors);
    }
}

void pd_optimizer_state_run(struct pd_tensor_state *state, uint32_t pass,
                            const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    if (!is_needed(state, pass)) {
        return;
    }
    block->tensor = state->tensor;
    block->vectors = state->vectors;
    for (uint32_t i = 0; i < state->array_count; i++) {
        block->state[i] = state->arrays[i] + (block->begin - state->begin);
    }
    state->optimizer->passes[pass].run(step, block);
}
