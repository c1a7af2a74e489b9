#include "client/payload.h"

#include "common/assert.h"

#include <string.h>

/* From so many elements on, what a pull writes is no longer in the second-level cache when all has
 * come. */
#define STREAMED_COUNT_MIN (1u << 20)

void pd_payload_init_sources(struct pd_payload *payload, const struct pd_tensor_list *model,
                             const float *const *sources, enum pd_dtype dtype,
                             uint64_t element_begin, uint64_t element_count)
{
    PD_ASSERT(element_begin + element_count <= model->element_count);
    memset(payload, 0, sizeof *payload);
    payload->byte_count = element_count * pd_dtype_bytes(dtype);
    payload->model = model;
    payload->sources = sources;
    payload->dtype = dtype;
    payload->element_begin = element_begin;
    payload->element_count = element_count;
}

void pd_payload_init_targets(struct pd_payload *payload, const struct pd_tensor_list *model,
                             float *const *targets, enum pd_dtype dtype, uint64_t element_begin,
                             uint64_t element_count)
{
    pd_payload_init_sources(payload, model, NULL, dtype, element_begin, element_count);
    payload->targets = targets;
    payload->streamed = element_count >= STREAMED_COUNT_MIN;
}

void pd_payload_init_bytes(struct pd_payload *payload, uint8_t *bytes, uint64_t byte_count)
{
    memset(payload, 0, sizeof *payload);
    payload->byte_count = byte_count;
    payload->bytes = bytes;
}

bool pd_payload_direct(const struct pd_payload *payload)
{
    return payload->model == NULL || payload->dtype == PD_DTYPE_FLOAT32;
}

uint64_t pd_payload_ready_bytes(const struct pd_payload *payload)
{
    const struct pd_gate *gate = payload->gate;

    if (gate == NULL || payload->byte_count == 0 ||
        atomic_load_explicit(&gate->opened_ms, memory_order_acquire) != 0) {
        return payload->byte_count;
    }
    uint64_t elements = atomic_load_explicit(&gate->elements, memory_order_acquire);
    uint64_t ready = elements > payload->element_begin ? elements - payload->element_begin : 0;
    uint64_t most = payload->element_count - 1;
    return (ready < most ? ready : most) * pd_dtype_bytes(payload->dtype);
}

/* What a tensor without a gradient sends. */
#define ZERO_COUNT 65536u
static const float zeros[ZERO_COUNT];

/* The tensor that holds element `element` of the flat model. */
static uint32_t tensor_of(const struct pd_tensor_list *model, uint64_t element)
{
    uint32_t low = 0;
    uint32_t high = model->count - 1;

    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        if (model->tensors[middle].element_begin <= element) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

/* The elements from `index` of the payload to the end of their tensor or of the payload. Sources
 * and targets share this; sendmsg's iovec takes no const pointer either, hence the cast. */
static float *run_at(const struct pd_payload *payload, uint64_t index, uint64_t *count)
{
    uint64_t element = payload->element_begin + index;
    uint32_t tensor_index = tensor_of(payload->model, element);
    const struct pd_tensor *tensor = &payload->model->tensors[tensor_index];
    uint64_t within = element - tensor->element_begin;
    uint64_t in_tensor = tensor->element_count - within;
    uint64_t in_payload = payload->element_count - index;

    *count = in_tensor < in_payload ? in_tensor : in_payload;
    if (payload->targets != NULL) {
        return payload->targets[tensor_index] + within;
    }
    if (payload->sources[tensor_index] == NULL) {
        *count = *count < ZERO_COUNT ? *count : ZERO_COUNT;
        return (float *)(uintptr_t)zeros;
    }
    return (float *)(uintptr_t)(payload->sources[tensor_index] + within);
}

uint8_t *pd_payload_piece(const struct pd_payload *payload, uint64_t offset,
                          uint64_t byte_count_max, size_t *byte_count)
{
    PD_ASSERT(offset < payload->byte_count);
    PD_ASSERT(pd_payload_direct(payload));
    uint8_t *start;
    uint64_t run_bytes;

    if (payload->model == NULL) {
        start = payload->bytes + offset;
        run_bytes = payload->byte_count - offset;
    } else {
        uint64_t count;
        uint64_t within = offset % sizeof(float);
        start = (uint8_t *)run_at(payload, offset / sizeof(float), &count) + within;
        run_bytes = count * sizeof(float) - within;
    }
    *byte_count = (size_t)(run_bytes < byte_count_max ? run_bytes : byte_count_max);
    return start;
}

void pd_payload_convert_out(const struct pd_payload *payload, uint64_t index, size_t count,
                            void *to)
{
    uint8_t *next = to;

    while (count > 0) {
        uint64_t run;
        const float *from = run_at(payload, index, &run);
        size_t now = run < count ? (size_t)run : count;
        pd_convert_from_float32(next, payload->dtype, from, now);
        next += now * pd_dtype_bytes(payload->dtype);
        index += now;
        count -= now;
    }
}

void pd_payload_convert_in(const struct pd_payload *payload, uint64_t index, size_t count,
                           const void *from)
{
    PD_ASSERT(payload->targets != NULL);
    const uint8_t *next = from;

    while (count > 0) {
        uint64_t run;
        float *to = run_at(payload, index, &run);
        size_t now = run < count ? (size_t)run : count;
        if (payload->streamed) {
            pd_convert_to_float32_streamed(to, next, payload->dtype, now);
        } else {
            pd_convert_to_float32(to, next, payload->dtype, now);
        }
        next += now * pd_dtype_bytes(payload->dtype);
        index += now;
        count -= now;
    }
}
