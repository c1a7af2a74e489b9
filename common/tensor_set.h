/* A set of tensors of a model, by index: which ones a push has no gradient for.
 * Push -> [tensor_set] -> contribution -> step order -> step. Pure.
 *
 * On the wire it is its bytes: bit i % 8 of byte i / 8 is tensor i, and trailing zero bytes are
 * left off, so that the empty set is no bytes. */
#ifndef PD_COMMON_TENSOR_SET_H
#define PD_COMMON_TENSOR_SET_H

#include "common/limits.h"

#include <stdbool.h>
#include <stdint.h>

#define PD_TENSOR_SET_BYTES_MAX (PD_TENSOR_COUNT_MAX / 8u)

/* Invariant: bytes beyond byte_count are not in use, and tensors there are not in the set. */
struct pd_tensor_set {
    uint32_t byte_count;
    uint8_t bytes[PD_TENSOR_SET_BYTES_MAX];
};

bool pd_tensor_set_has(const struct pd_tensor_set *set, uint32_t tensor_index);

/* Add tensor `tensor_index`, which is below PD_TENSOR_COUNT_MAX. */
void pd_tensor_set_add(struct pd_tensor_set *set, uint32_t tensor_index);

/* Keep what is in `other` too. */
void pd_tensor_set_intersect(struct pd_tensor_set *set, const struct pd_tensor_set *other);

/* Copy what is in use of `from`. */
void pd_tensor_set_copy(struct pd_tensor_set *to, const struct pd_tensor_set *from);

#endif
