/* Tensors as every part of paramd sees them: element types, names, shapes, and the flat order of
 * a model's elements. Registered by workers -> [tensor] -> shard_plan. Pure.
 *
 * The model is one flat run of elements: its tensors in the order of registration, each row-major,
 * nothing between them. Payloads on the wire are contiguous ranges of that run. */
#ifndef PD_COMMON_TENSOR_H
#define PD_COMMON_TENSOR_H

#include "common/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Element types on the wire; the numbers are those of the protocol. Parameters and optimizer
 * state are always float32 on the server. */
enum pd_dtype {
    PD_DTYPE_FLOAT32 = 0,
    PD_DTYPE_BFLOAT16 = 1,
    PD_DTYPE_FLOAT16 = 2,
};

bool pd_dtype_valid(uint32_t dtype);
/* Bytes per element: 4 or 2. */
size_t pd_dtype_bytes(enum pd_dtype dtype);
/* "float32", "bfloat16", "float16". */
const char *pd_dtype_name(enum pd_dtype dtype);
/* Errors: PD_EINVALID names what is allowed. */
PD_MUST_CHECK
enum pd_status pd_dtype_parse(const char *name, enum pd_dtype *out, struct pd_error *error);

struct pd_tensor {
    char *name; /* 1 to PD_TENSOR_NAME_BYTES_MAX bytes of printable UTF-8, unique in the model */
    uint32_t dimension_count; /* 0 is a scalar */
    uint64_t shape[PD_TENSOR_DIMENSION_COUNT_MAX];
    uint64_t element_count; /* product of the shape; at least 1 */
    uint64_t element_begin; /* index of its first element in the flat model */
};

/* An owned list of tensors. Invariant: element_begin of each is the sum of the counts before it. */
struct pd_tensor_list {
    uint32_t count;
    uint32_t capacity;
    uint64_t element_count;
    struct pd_tensor *tensors;
    uint32_t
        *slots; /* tensor indexes by hash of their name, so that a repeated name is found soon */
    uint32_t slot_count;
};

/* Make room for `capacity` tensors. The list starts empty. */
PD_MUST_CHECK
enum pd_status pd_tensor_list_init(struct pd_tensor_list *list, uint32_t capacity,
                                   struct pd_error *error);

/* Append a copy; the capacity given to init must not be exceeded.
 * Errors: PD_EMODEL for an empty, long or repeated name or a zero dimension; PD_ELIMIT for too many
 * dimensions or elements; PD_ENOMEM. The list is unchanged on error. */
PD_MUST_CHECK
enum pd_status pd_tensor_list_append(struct pd_tensor_list *list, const char *name,
                                     size_t name_bytes, uint32_t dimension_count,
                                     const uint64_t *shape, struct pd_error *error);

/* Deep copy. */
PD_MUST_CHECK
enum pd_status pd_tensor_list_copy(struct pd_tensor_list *to, const struct pd_tensor_list *from,
                                   struct pd_error *error);

/* Whether two lists name the same tensors of the same shapes in the same order.
 * Errors: PD_EMODEL names the first tensor that differs and both shapes. */
PD_MUST_CHECK
enum pd_status pd_tensor_list_compare(const struct pd_tensor_list *model,
                                      const struct pd_tensor_list *offered, struct pd_error *error);

/* Free what the list owns; a zeroed list is allowed. */
void pd_tensor_list_finish(struct pd_tensor_list *list);

/* Write the shape as "[3, 4]" into `text`; returns `text`. */
const char *pd_tensor_shape_text(const struct pd_tensor *tensor, char *text, size_t text_bytes);

/* Convert `count` elements. Rounding is to nearest even, as PyTorch casts; a NaN stays a NaN;
 * float16 overflows to infinity. `to` and `from` do not overlap. */
void pd_convert_to_float32(float *to, const void *from, enum pd_dtype from_dtype, size_t count);
void pd_convert_from_float32(void *to, enum pd_dtype to_dtype, const float *from, size_t count);
/* The same past the caches, for what is more than they keep until somebody reads it: what is
 * written need not be read before. Once it returns other threads may read it. */
void pd_convert_to_float32_streamed(float *to, const void *from, enum pd_dtype from_dtype,
                                    size_t count);

#endif
