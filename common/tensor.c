#include "common/tensor.h"

#include "common/assert.h"
#include "common/heap.h"
#include "common/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
    [PD_DTYPE_FLOAT32] = {"float32", 4},
    [PD_DTYPE_BFLOAT16] = {"bfloat16", 2},
    [PD_DTYPE_FLOAT16] = {"float16", 2},
};

#define DTYPE_COUNT (sizeof dtypes / sizeof dtypes[0])
/* Room for a whole shape as text: 8 numbers of at most 20 digits. */
#define SHAPE_TEXT_BYTES 192
#define SLOT_EMPTY UINT32_MAX

bool pd_dtype_valid(uint32_t dtype)
{
    return dtype < DTYPE_COUNT;
}

size_t pd_dtype_bytes(enum pd_dtype dtype)
{
    PD_ASSERT(pd_dtype_valid(dtype));
    return dtypes[dtype].bytes;
}

const char *pd_dtype_name(enum pd_dtype dtype)
{
    PD_ASSERT(pd_dtype_valid(dtype));
    return dtypes[dtype].name;
}

enum pd_status pd_dtype_parse(const char *name, enum pd_dtype *out, struct pd_error *error)
{
    for (uint32_t i = 0; i < DTYPE_COUNT; i++) {
        if (strcmp(name, dtypes[i].name) == 0) {
            *out = (enum pd_dtype)i;
            return PD_OK;
        }
    }
    return pd_error_set(error, PD_EINVALID,
                        "element type \"%.32s\" is not one of float32, bfloat16, float16", name);
}

enum pd_status pd_tensor_list_init(struct pd_tensor_list *list, uint32_t capacity,
                                   struct pd_error *error)
{
    *list = (struct pd_tensor_list){0};
    if (capacity > PD_TENSOR_COUNT_MAX) {
        return pd_error_set(error, PD_ELIMIT, "model: %" PRIu32 " tensors, at most %u", capacity,
                            PD_TENSOR_COUNT_MAX);
    }

    /* At most half full, so that a search soon meets an empty slot. */
    uint32_t slot_count = 2;
    while (slot_count < 2 * capacity) {
        slot_count *= 2;
    }
    list->tensors = pd_heap_zalloc(capacity, sizeof *list->tensors);
    if (list->tensors == NULL) {
        goto fail;
    }
    list->slots = pd_heap_zalloc(slot_count, sizeof *list->slots);
    if (list->slots == NULL) {
        goto fail_tensors;
    }
    memset(list->slots, 0xff, slot_count * sizeof *list->slots);
    list->slot_count = slot_count;
    list->capacity = capacity;
    return PD_OK;

fail_tensors:
    pd_heap_free(list->tensors);
    list->tensors = NULL;
fail:
    return pd_error_set(error, PD_ENOMEM, "model: list of %" PRIu32 " tensors", capacity);
}

/* The slot that holds the tensor of that name, or the empty one where it would go. */
static uint32_t find_slot(const struct pd_tensor_list *list, const char *name, size_t name_bytes)
{
    uint64_t hash = 0xcbf29ce484222325ull; /* FNV-1a */
    for (size_t i = 0; i < name_bytes; i++) {
        hash = (hash ^ (uint8_t)name[i]) * 0x100000001b3ull;
    }

    uint32_t slot = (uint32_t)(hash ^ (hash >> 32)) & (list->slot_count - 1);
    while (list->slots[slot] != SLOT_EMPTY) {
        const char *other = list->tensors[list->slots[slot]].name;
        if (strncmp(other, name, name_bytes) == 0 && other[name_bytes] == '\0') {
            break;
        }
        slot = (slot + 1) & (list->slot_count - 1);
    }
    return slot;
}

/* Multiply the shape out into tensor->element_count. */
static enum pd_status count_elements(struct pd_tensor *tensor, uint64_t elements_before,
                                     struct pd_error *error)
{
    uint64_t element_count = 1;
    for (uint32_t i = 0; i < tensor->dimension_count; i++) {
        if (tensor->shape[i] == 0) {
            return pd_error_set(error, PD_EMODEL, "tensor \"%s\": dimension %" PRIu32 " is 0",
                                tensor->name, i);
        }
        if (__builtin_mul_overflow(element_count, tensor->shape[i], &element_count) ||
            element_count > PD_MODEL_ELEMENT_COUNT_MAX - elements_before) {
            return pd_error_set(error, PD_ELIMIT,
                                "tensor \"%s\": the model would exceed %llu elements", tensor->name,
                                PD_MODEL_ELEMENT_COUNT_MAX);
        }
    }
    if (element_count > PD_MODEL_ELEMENT_COUNT_MAX - elements_before) {
        return pd_error_set(error, PD_ELIMIT, "tensor \"%s\": the model would exceed %llu elements",
                            tensor->name, PD_MODEL_ELEMENT_COUNT_MAX);
    }
    tensor->element_count = element_count;
    return PD_OK;
}

static enum pd_status check_name(const struct pd_tensor_list *list, const char *name,
                                 size_t name_bytes, struct pd_error *error)
{
    if (name_bytes == 0 || name_bytes > PD_TENSOR_NAME_BYTES_MAX) {
        return pd_error_set(error, PD_EMODEL,
                            "tensor %" PRIu32 ": name of %zu bytes, allowed are 1 to %u",
                            list->count, name_bytes, PD_TENSOR_NAME_BYTES_MAX);
    }
    if (!pd_text_valid(name, name_bytes)) {
        return pd_error_set(error, PD_EMODEL,
                            "tensor %" PRIu32 ": name is not printable utf-8 text", list->count);
    }
    uint32_t tensor_index = list->slots[find_slot(list, name, name_bytes)];
    if (tensor_index != SLOT_EMPTY) {
        return pd_error_set(error, PD_EMODEL,
                            "tensor %" PRIu32 ": \"%s\" is the name of tensor %" PRIu32 " already",
                            list->count, list->tensors[tensor_index].name, tensor_index);
    }
    return PD_OK;
}

enum pd_status pd_tensor_list_append(struct pd_tensor_list *list, const char *name,
                                     size_t name_bytes, uint32_t dimension_count,
                                     const uint64_t *shape, struct pd_error *error)
{
    PD_ASSERT(list->count < list->capacity);
    enum pd_status status = check_name(list, name, name_bytes, error);
    if (status != PD_OK) {
        return status;
    }
    if (dimension_count > PD_TENSOR_DIMENSION_COUNT_MAX) {
        return pd_error_set(error, PD_ELIMIT, "tensor \"%.*s\": %" PRIu32 " dimensions, at most %u",
                            (int)name_bytes, name, dimension_count, PD_TENSOR_DIMENSION_COUNT_MAX);
    }

    struct pd_tensor tensor = {
        .name = pd_heap_zalloc(name_bytes + 1, 1),
        .dimension_count = dimension_count,
        .element_begin = list->element_count,
    };
    if (tensor.name == NULL) {
        return pd_error_set(error, PD_ENOMEM, "tensor %" PRIu32 ": name of %zu bytes", list->count,
                            name_bytes);
    }
    memcpy(tensor.name, name, name_bytes);
    for (uint32_t i = 0; i < dimension_count; i++) {
        tensor.shape[i] = shape[i];
    }
    status = count_elements(&tensor, list->element_count, error);
    if (status != PD_OK) {
        pd_heap_free(tensor.name);
        return status;
    }

    list->slots[find_slot(list, name, name_bytes)] = list->count;
    list->tensors[list->count++] = tensor;
    list->element_count += tensor.element_count;
    return PD_OK;
}

enum pd_status pd_tensor_list_copy(struct pd_tensor_list *to, const struct pd_tensor_list *from,
                                   struct pd_error *error)
{
    enum pd_status status = pd_tensor_list_init(to, from->count, error);
    if (status != PD_OK) {
        return status;
    }
    for (uint32_t i = 0; status == PD_OK && i < from->count; i++) {
        const struct pd_tensor *tensor = &from->tensors[i];
        status = pd_tensor_list_append(to, tensor->name, strlen(tensor->name),
                                       tensor->dimension_count, tensor->shape, error);
    }
    if (status != PD_OK) {
        pd_tensor_list_finish(to);
    }
    return status;
}

static bool shapes_equal(const struct pd_tensor *left, const struct pd_tensor *right)
{
    return left->dimension_count == right->dimension_count &&
           memcmp(left->shape, right->shape, left->dimension_count * sizeof *left->shape) == 0;
}

enum pd_status pd_tensor_list_compare(const struct pd_tensor_list *model,
                                      const struct pd_tensor_list *offered, struct pd_error *error)
{
    uint32_t both_count = model->count < offered->count ? model->count : offered->count;
    for (uint32_t i = 0; i < both_count; i++) {
        const struct pd_tensor *ours = &model->tensors[i];
        const struct pd_tensor *theirs = &offered->tensors[i];
        if (strcmp(ours->name, theirs->name) == 0 && shapes_equal(ours, theirs)) {
            continue;
        }
        char our_shape[SHAPE_TEXT_BYTES];
        char their_shape[SHAPE_TEXT_BYTES];
        return pd_error_set(
            error, PD_EMODEL,
            "tensor %" PRIu32 ": offered \"%.100s\" %s, the model has \"%.100s\" %s", i,
            theirs->name, pd_tensor_shape_text(theirs, their_shape, sizeof their_shape), ours->name,
            pd_tensor_shape_text(ours, our_shape, sizeof our_shape));
    }
    if (model->count != offered->count) {
        return pd_error_set(error, PD_EMODEL, "offered %" PRIu32 " tensors, the model has %" PRIu32,
                            offered->count, model->count);
    }
    return PD_OK;
}

void pd_tensor_list_finish(struct pd_tensor_list *list)
{
    for (uint32_t i = 0; i < list->count; i++) {
        pd_heap_free(list->tensors[i].name);
    }
    pd_heap_free(list->tensors);
    pd_heap_free(list->slots);
    *list = (struct pd_tensor_list){0};
}

const char *pd_tensor_shape_text(const struct pd_tensor *tensor, char *text, size_t text_bytes)
{
    PD_ASSERT(text_bytes >= 3);
    size_t used = (size_t)snprintf(text, text_bytes, "[");
    for (uint32_t i = 0; i < tensor->dimension_count && used < text_bytes; i++) {
        used += (size_t)snprintf(text + used, text_bytes - used, "%s%" PRIu64, i > 0 ? ", " : "",
                                 tensor->shape[i]);
    }
    if (used < text_bytes) {
        (void)snprintf(text + used, text_bytes - used, "]");
    }
    return text;
}
