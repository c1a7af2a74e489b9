#include "server/core/optimizer_state.h"

#include "common/assert.h"
#include "common/heap.h"
#include "common/kernel.h"

#include <inttypes.h>
#include <string.h>

/* From so many elements of a shard on, a step writes more than what the caches keep for the next
 * one. */
#define STREAMED_COUNT_MIN (1u << 20)

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

/* Runs of a part that is kept in 8 bits. */
static uint64_t run_count(const struct pd_tensor_state *part)
{
    return (part->count + PD_QUANTIZE_RUN - 1) / PD_QUANTIZE_RUN;
}

static uint64_t vector_count(const struct pd_tensor_state *part)
{
    return part->optimizer->vector_count != NULL
               ? part->optimizer->vector_count(part->hyper, part->tensor)
               : 0;
}

/* One array of a part, in 32 bits or in 8. */
static bool allocate_array(struct pd_optimizer_state *state, struct pd_tensor_state *part,
                           uint32_t index)
{
    if (part->hyper->state_bits == PD_STATE_BITS_32) {
        part->arrays[index] = pd_heap_zalloc(part->count, sizeof(float));
        if (state->twice) {
            part->next[index] = pd_heap_zalloc(part->count, sizeof(float));
        }
        return part->arrays[index] != NULL && (!state->twice || part->next[index] != NULL);
    }
    PD_ASSERT(part->begin % PD_QUANTIZE_RUN == 0);
    part->maps[index] = &state->maps[part->optimizer->signed_states >> index & 1u];
    part->codes[index] = pd_heap_zalloc(part->count, sizeof(uint8_t));
    part->magnitudes[index] = pd_heap_zalloc(run_count(part), sizeof(float));
    return part->codes[index] != NULL && part->magnitudes[index] != NULL;
}

static bool allocate_part(struct pd_optimizer_state *state, struct pd_tensor_state *part)
{
    uint64_t vector_elements = vector_count(part);

    part->array_count = part->optimizer->state_count(part->hyper, part->tensor);
    PD_ASSERT(part->array_count <= PD_OPTIMIZER_STATE_COUNT_MAX);
    for (uint32_t i = 0; i < part->array_count; i++) {
        if (!allocate_array(state, part, i)) {
            return false;
        }
    }
    if (vector_elements > 0) {
        part->vectors = pd_heap_zalloc(vector_elements, sizeof(float));
    }
    return vector_elements == 0 || part->vectors != NULL;
}

enum pd_status pd_optimizer_state_init(struct pd_optimizer_state *state,
                                       const struct pd_config *config,
                                       const struct pd_tensor_list *model,
                                       const struct pd_shard_plan *plan,
                                       const struct pd_range *shard, const uint32_t *tensor_groups,
                                       bool twice, struct pd_error *error)
{
    PD_ASSERT(!twice || pd_optimizer_state_allows_twice(config));
    memset(state, 0, sizeof *state);
    state->twice = twice;
    pd_quantize_map_init(&state->maps[0], false);
    pd_quantize_map_init(&state->maps[1], true);
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
        const struct pd_group *group = &config->groups[tensor_groups[state->tensor_begin + i]];
        part->optimizer = config->optimizer;
        part->hyper = &group->hyper;
        part->streamed = shard->element_count >= STREAMED_COUNT_MIN;
        if (!group->frozen && !allocate_part(state, part)) {
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
            pd_heap_free(state->tensors[i].next[k]);
            pd_heap_free(state->tensors[i].codes[k]);
            pd_heap_free(state->tensors[i].magnitudes[k]);
        }
        pd_heap_free(state->tensors[i].vectors);
    }
    pd_heap_free(state->tensors);
    memset(state, 0, sizeof *state);
}

void pd_optimizer_state_list(const struct pd_optimizer_state *state, struct pd_snapshot *snapshot)
{
    for (uint32_t i = 0; i < state->tensor_end - state->tensor_begin; i++) {
        const struct pd_tensor_state *part = &state->tensors[i];
        for (uint32_t k = 0; k < part->array_count; k++) {
            if (part->arrays[k] != NULL) {
                pd_snapshot_add(snapshot, part->arrays[k], part->count * sizeof(float));
            } else {
                pd_snapshot_add(snapshot, part->codes[k], part->count);
                pd_snapshot_add(snapshot, part->magnitudes[k], run_count(part) * sizeof(float));
            }
        }
        if (part->vectors != NULL) {
            pd_snapshot_add(snapshot, part->vectors, vector_count(part) * sizeof(float));
        }
    }
}

struct pd_tensor_state *pd_optimizer_state_of(const struct pd_optimizer_state *state,
                                              uint32_t tensor_index)
{
    PD_ASSERT(tensor_index >= state->tensor_begin && tensor_index < state->tensor_end);
    return &state->tensors[tensor_index - state->tensor_begin];
}

bool pd_optimizer_state_allows_twice(const struct pd_config *config)
{
    for (uint32_t group = 0; group < config->group_count; group++) {
        const struct pd_hyper *hyper = &config->groups[group].hyper;
        if (hyper->state_bits != PD_STATE_BITS_32 ||
            pd_optimizer_pass_count(config->optimizer, hyper) > 1) {
            return false;
        }
    }
    return config->optimizer->beside;
}

void pd_optimizer_state_commit(struct pd_optimizer_state *state, const struct pd_tensor_set *absent)
{
    PD_ASSERT(state->twice);
    for (uint32_t i = 0; i < state->tensor_end - state->tensor_begin; i++) {
        struct pd_tensor_state *part = &state->tensors[i];
        for (uint32_t k = 0; k < part->array_count; k++) {
            if (!pd_tensor_set_has(absent, state->tensor_begin + i)) {
                float *before = part->arrays[k];
                part->arrays[k] = part->next[k];
                part->next[k] = before;
            }
        }
    }
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

/* A run of a block's elements, at most to the end of the block. */
static struct pd_optimizer_block run_of(const struct pd_optimizer_block *block, uint32_t begin,
                                        uint32_t count)
{
    struct pd_optimizer_block run = *block;
    uint32_t left = block->count - begin;

    run.begin += begin;
    run.count = left < count ? left : count;
    run.gradient += begin;
    run.parameters += begin;
    run.parameters_next += begin;
    return run;
}

/* Run the first pass over a block whose state is in 8 bits: restored, updated and quantized a run
 * at a time. The parts of the runs are added up to that of the block. */
static void run_quantized(struct pd_tensor_state *state, const struct pd_optimizer_step *step,
                          struct pd_optimizer_block *block, uint64_t sum_count)
{
    float values[PD_OPTIMIZER_STATE_COUNT_MAX][PD_QUANTIZE_RUN];
    double partial[2] = {0};

    PD_ASSERT(sum_count <= 2);
    for (uint64_t k = 0; k < sum_count; k++) {
        block->partial[k] = 0;
    }
    for (uint32_t begin = 0; begin < block->count; begin += PD_QUANTIZE_RUN) {
        struct pd_optimizer_block run = run_of(block, begin, PD_QUANTIZE_RUN);
        uint64_t at = run.begin - state->begin;
        run.partial = sum_count > 0 ? partial : NULL;
        for (uint32_t i = 0; i < state->array_count; i++) {
            run.state[i] = values[i];
            run.state_next[i] = values[i];
            pd_quantize_restore(state->maps[i], values[i], state->codes[i] + at,
                                state->magnitudes[i][at / PD_QUANTIZE_RUN], run.count);
        }
        state->optimizer->passes[0].run(step, &run);
        for (uint32_t i = 0; i < state->array_count; i++) {
            state->magnitudes[i][at / PD_QUANTIZE_RUN] =
                pd_quantize_run(state->maps[i], state->codes[i] + at, values[i], run.count);
        }
        for (uint64_t k = 0; k < sum_count; k++) {
            block->partial[k] += partial[k];
        }
    }
}

/* Say which tensor and which part of its state a block is of; state in 8 bits has no such parts. */
static void fill_block(const struct pd_tensor_state *state, struct pd_optimizer_block *block)
{
    block->tensor = state->tensor;
    block->vectors = state->vectors;
    block->streamed = state->streamed;
    for (uint32_t i = 0; state->hyper->state_bits == PD_STATE_BITS_32 && i < state->array_count;
         i++) {
        uint64_t at = block->begin - state->begin;
        block->state[i] = state->arrays[i] + at;
        block->state_next[i] = (state->next[i] != NULL ? state->next[i] : state->arrays[i]) + at;
    }
}

static void scale(float *numbers, uint64_t count, float factor)
{
    for (uint64_t i = 0; i < count; i++) {
        numbers[i] *= factor;
    }
}

void pd_optimizer_state_scale_momentum(struct pd_tensor_state *state, uint64_t begin,
                                       uint32_t count, double factor)
{
    uint64_t at = begin - state->begin;

    for (uint32_t i = 0; i < state->array_count; i++) {
        if (!(state->hyper->momentum != 0) || !(state->optimizer->momentum_states >> i & 1u)) {
            continue;
        }
        if (state->hyper->state_bits == PD_STATE_BITS_32) {
            scale(state->arrays[i] + at, count, (float)factor);
        } else {
            scale(state->magnitudes[i] + at / PD_QUANTIZE_RUN,
                  (count + PD_QUANTIZE_RUN - 1) / PD_QUANTIZE_RUN, (float)factor);
        }
    }
}

void pd_optimizer_state_estimate(struct pd_tensor_state *state, struct pd_optimizer_block *block)
{
    PD_ASSERT(state->hyper->state_bits == PD_STATE_BITS_32);
    fill_block(state, block);
    state->optimizer->estimate(state->hyper, block);
}

bool pd_optimizer_state_gives_squares(const struct pd_tensor_state *state)
{
    return state->optimizer->beside && pd_kernel_streams();
}

bool pd_optimizer_state_is_streamed(const struct pd_optimizer_state *state)
{
    return state->tensor_begin < state->tensor_end && state->tensors[0].streamed &&
           state->tensors[0].optimizer->beside && pd_kernel_streams();
}

void pd_optimizer_state_run(struct pd_tensor_state *state, uint32_t pass,
                            const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    if (!is_needed(state, pass)) {
        return;
    }
    fill_block(state, block);
    if (state->hyper->state_bits == PD_STATE_BITS_8 && pass == 0) {
        run_quantized(state, step, block,
                      pd_optimizer_sum_count(state->optimizer, state->hyper, pass, state->tensor));
        return;
    }
    state->optimizer->passes[pass].run(step, block);
}
