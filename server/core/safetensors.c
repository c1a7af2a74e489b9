#include "server/core/safetensors.h"

#include "common/assert.h"
#include "common/heap.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* One entry of the header on its way into the list. */
struct entry {
    const char *name;
    json_t *shape;
    enum pd_dtype dtype;
    uint64_t begin; /* of the values, in bytes behind the header */
    uint64_t end;
};

/* Set when an allocation for jansson fails: its lexer drops the byte and goes on, so its own
 * result cannot be trusted then. Owner: the thread that parses. */
static bool out_of_memory;

static void *allocate(size_t bytes)
{
    void *memory = pd_heap_zalloc(bytes, 1);

    out_of_memory = out_of_memory || memory == NULL;
    return memory;
}

enum pd_status pd_safetensors_header_bytes(const uint8_t prefix[PD_SAFETENSORS_PREFIX_BYTES],
                                           uint64_t file_bytes, size_t *header_bytes,
                                           struct pd_error *error)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < PD_SAFETENSORS_PREFIX_BYTES; i++) {
        bytes |= (uint64_t)prefix[i] << (8 * i);
    }
    if (bytes > PD_SAFETENSORS_HEADER_BYTES_MAX) {
        return pd_error_set(error, PD_ELIMIT,
                            "safetensors: header of %" PRIu64 " bytes; allowed: at most %u", bytes,
                            PD_SAFETENSORS_HEADER_BYTES_MAX);
    }
    if (bytes < 2 || file_bytes < PD_SAFETENSORS_PREFIX_BYTES ||
        bytes > file_bytes - PD_SAFETENSORS_PREFIX_BYTES) {
        return pd_error_set(error, PD_EINVALID,
                            "safetensors: header of %" PRIu64 " bytes in a file of %" PRIu64, bytes,
                            file_bytes);
    }
    *header_bytes = (size_t)bytes;
    return PD_OK;
}

static enum pd_status check_metadata(json_t *metadata, struct pd_error *error)
{
    const char *key;
    json_t *value;

    if (!json_is_object(metadata)) {
        return pd_error_set(error, PD_EINVALID, "safetensors: __metadata__ is not an object");
    }
    json_object_foreach(metadata, key, value)
    {
        if (!json_is_string(value)) {
            return pd_error_set(error, PD_EINVALID,
                                "safetensors: __metadata__ \"%.60s\" is not a string", key);
        }
    }
    return PD_OK;
}

static enum pd_status read_dtype(struct entry *entry, json_t *dtype, struct pd_error *error)
{
    static const struct {
        const char *name;
        enum pd_dtype dtype;
    } names[] = {{"F32", PD_DTYPE_FLOAT32}, {"BF16", PD_DTYPE_BFLOAT16}, {"F16", PD_DTYPE_FLOAT16}};
    const char *name = json_string_value(dtype);

    for (size_t i = 0; name != NULL && i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(name, names[i].name) == 0) {
            entry->dtype = names[i].dtype;
            return PD_OK;
        }
    }
    return pd_error_set(error, PD_EMODEL,
                        "safetensors: tensor \"%.100s\": dtype %.20s; allowed: F32, BF16, F16",
                        entry->name, name != NULL ? name : "is not a string");
}

/* A whole number that is not negative, or false. */
static bool read_count(const json_t *value, uint64_t *count)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0) {
        return false;
    }
    *count = (uint64_t)json_integer_value(value);
    return true;
}

static enum pd_status read_entry(struct entry *entry, const char *name, json_t *value,
                                 struct pd_error *error)
{
    json_t *offsets = json_object_get(value, "data_offsets");

    entry->name = name;
    entry->shape = json_object_get(value, "shape");
    if (!json_is_object(value) || json_object_size(value) != 3 || offsets == NULL ||
        entry->shape == NULL || json_object_get(value, "dtype") == NULL) {
        return pd_error_set(error, PD_EINVALID,
                            "safetensors: tensor \"%.100s\": not an object of dtype, shape and "
                            "data_offsets alone",
                            name);
    }
    if (!json_is_array(entry->shape)) {
        return pd_error_set(error, PD_EINVALID, "safetensors: tensor \"%.100s\": shape is no list",
                            name);
    }
    if (json_array_size(offsets) != 2 || !read_count(json_array_get(offsets, 0), &entry->begin) ||
        !read_count(json_array_get(offsets, 1), &entry->end) || entry->begin > entry->end) {
        return pd_error_set(error, PD_EINVALID,
                            "safetensors: tensor \"%.100s\": data_offsets are not [begin, end]",
                            name);
    }
    return read_dtype(entry, json_object_get(value, "dtype"), error);
}

/* Append the tensor and check that its values fill its range and begin where the last ended. */
static enum pd_status append_entry(struct pd_safetensors *out, const struct entry *entry,
                                   uint64_t values_offset, uint64_t begin, struct pd_error *error)
{
    uint64_t shape[PD_TENSOR_DIMENSION_COUNT_MAX];
    size_t dimension_count = json_array_size(entry->shape);

    if (dimension_count > PD_TENSOR_DIMENSION_COUNT_MAX) {
        return pd_error_set(error, PD_ELIMIT,
                            "safetensors: tensor \"%.100s\": %zu dimensions; allowed: at most %u",
                            entry->name, dimension_count, PD_TENSOR_DIMENSION_COUNT_MAX);
    }
    for (size_t i = 0; i < dimension_count; i++) {
        if (!read_count(json_array_get(entry->shape, i), &shape[i])) {
            return pd_error_set(error, PD_EINVALID,
                                "safetensors: tensor \"%.100s\": shape is no list of whole numbers",
                                entry->name);
        }
    }
    if (entry->begin != begin) {
        return pd_error_set(error, PD_EINVALID,
                            "safetensors: tensor \"%.100s\": begins at byte %" PRIu64
                            " of the values; allowed: %" PRIu64 ", where the one before it ends",
                            entry->name, entry->begin, begin);
    }
    uint32_t index = out->tensors.count;
    enum pd_status status = pd_tensor_list_append(&out->tensors, entry->name, strlen(entry->name),
                                                  (uint32_t)dimension_count, shape, error);
    if (status != PD_OK) {
        return pd_error_prefix(error, "safetensors");
    }
    /* At most 2^37 elements, so the product does not overflow. */
    uint64_t bytes = out->tensors.tensors[index].element_count * pd_dtype_bytes(entry->dtype);
    if (entry->end - entry->begin != bytes) {
        return pd_error_set(error, PD_EINVALID,
                            "safetensors: tensor \"%.100s\": %" PRIu64
                            " bytes of values, but its shape and dtype need %" PRIu64,
                            entry->name, entry->end - entry->begin, bytes);
    }
    out->places[index] = (struct pd_safetensors_place){
        .dtype = entry->dtype,
        .file_offset = values_offset + entry->begin,
    };
    return PD_OK;
}

static int compare_entries(const void *left, const void *right)
{
    const struct entry *a = left;
    const struct entry *b = right;

    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

/* Turn the header's object into the list; what `out` holds on error is the caller's to finish. */
static enum pd_status read_root(struct pd_safetensors *out, struct entry *entries, json_t *root,
                                uint64_t values_offset, uint64_t value_bytes,
                                struct pd_error *error)
{
    const char *name;
    json_t *value;
    uint32_t count = 0;
    uint64_t begin = 0;
    enum pd_status status = PD_OK;

    json_object_foreach(root, name, value)
    {
        if (strcmp(name, "__metadata__") == 0) {
            status = check_metadata(value, error);
        } else {
            status = read_entry(&entries[count++], name, value, error);
        }
        if (status != PD_OK) {
            return status;
        }
    }
    qsort(entries, count, sizeof *entries, compare_entries);
    for (uint32_t i = 0; i < count; i++) {
        status = append_entry(out, &entries[i], values_offset, begin, error);
        if (status != PD_OK) {
            return status;
        }
        begin = entries[i].end;
    }
    if (begin != value_bytes) {
        return pd_error_set(error, PD_EINVALID,
                            "safetensors: %" PRIu64
                            " bytes of values, but the tensors need %" PRIu64,
                            value_bytes, begin);
    }
    return PD_OK;
}

/* Make room for the tensors of the header's object and read them. */
static enum pd_status read_tensors(struct pd_safetensors *out, json_t *root, uint64_t values_offset,
                                   uint64_t value_bytes, struct pd_error *error)
{
    size_t count = json_object_size(root);
    size_t metadata_count = json_object_get(root, "__metadata__") != NULL ? 1 : 0;

    count -= metadata_count;
    if (count == 0 || count > PD_TENSOR_COUNT_MAX) {
        return pd_error_set(error, PD_ELIMIT, "safetensors: %zu tensors; allowed: 1 to %u", count,
                            PD_TENSOR_COUNT_MAX);
    }
    struct entry *entries = pd_heap_zalloc(count, sizeof *entries);
    out->places = pd_heap_zalloc(count, sizeof *out->places);
    enum pd_status status = PD_OK;
    if (entries == NULL || out->places == NULL) {
        pd_error_set(error, PD_ENOMEM, "safetensors: %zu tensors", count);
        status = PD_ENOMEM;
    }
    if (status == PD_OK) {
        status = pd_tensor_list_init(&out->tensors, (uint32_t)count, error);
    }
    if (status == PD_OK) {
        status = read_root(out, entries, root, values_offset, value_bytes, error);
    }
    pd_heap_free(entries);
    if (status != PD_OK) {
        pd_safetensors_finish(out);
    }
    return status;
}

/* Load the JSON with allocations through our heap. */
static enum pd_status load_json(json_t **root, const char *header, size_t header_bytes,
                                struct pd_error *error)
{
    json_error_t fault;

    out_of_memory = false;
    *root = json_loadb(header, header_bytes, JSON_REJECT_DUPLICATES, &fault);
    if (out_of_memory) {
        json_decref(*root);
        return pd_error_set(error, PD_ENOMEM, "safetensors: header of %zu bytes", header_bytes);
    }
    if (*root == NULL) {
        return pd_error_set(error, PD_EINVALID, "safetensors: header: %.200s at byte %d",
                            fault.text, fault.position);
    }
    return PD_OK;
}

enum pd_status pd_safetensors_parse(struct pd_safetensors *out, const char *header,
                                    size_t header_bytes, uint64_t file_bytes,
                                    struct pd_error *error)
{
    json_malloc_t old_allocate;
    json_free_t old_free;
    json_t *root = NULL;
    uint64_t values_offset = PD_SAFETENSORS_PREFIX_BYTES + (uint64_t)header_bytes;

    PD_ASSERT(file_bytes >= values_offset);
    *out = (struct pd_safetensors){0};
    if (header_bytes == 0 || header[0] != '{') {
        return pd_error_set(error, PD_EINVALID, "safetensors: header does not begin with {");
    }
    json_get_alloc_funcs(&old_allocate, &old_free);
    json_set_alloc_funcs(allocate, pd_heap_free);
    enum pd_status status = load_json(&root, header, header_bytes, error);
    if (status == PD_OK) {
        status = read_tensors(out, root, values_offset, file_bytes - values_offset, error);
        json_decref(root);
    }
    json_set_alloc_funcs(old_allocate, old_free);
    return status;
}

void pd_safetensors_finish(struct pd_safetensors *safetensors)
{
    pd_tensor_list_finish(&safetensors->tensors);
    pd_heap_free(safetensors->places);
    *safetensors = (struct pd_safetensors){0};
}
