#include "common/tensor_set.h"

#include "common/assert.h"

#include <string.h>

bool pd_tensor_set_has(const struct pd_tensor_set *set, uint32_t tensor_index)
{
    uint32_t byte = tensor_index / 8;
    return byte < set->byte_count && ((set->bytes[byte] >> (tensor_index % 8)) & 1u) != 0;
}

void pd_tensor_set_add(struct pd_tensor_set *set, uint32_t tensor_index)
{
    uint32_t byte = tensor_index / 8;

    PD_ASSERT(tensor_index < PD_TENSOR_COUNT_MAX);
    while (set->byte_count <= byte) {
        set->bytes[set->byte_count++] = 0;
    }
    set->bytes[byte] = (uint8_t)(set->bytes[byte] | 1u << (tensor_index % 8));
}

void pd_tensor_set_intersect(struct pd_tensor_set *set, const struct pd_tensor_set *other)
{
    if (set->byte_count > other->byte_count) {
        set->byte_count = other->byte_count;
    }
    for (uint32_t byte = 0; byte < set->byte_count; byte++) {
        set->bytes[byte] &= other->bytes[byte];
    }
    while (set->byte_count > 0 && set->bytes[set->byte_count - 1] == 0) {
        set->byte_count--;
    }
}

void pd_tensor_set_copy(struct pd_tensor_set *to, const struct pd_tensor_set *from)
{
    to->byte_count = from->byte_count;
    memcpy(to->bytes, from->bytes, from->byte_count);
}
