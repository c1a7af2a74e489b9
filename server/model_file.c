#include "server/model_file.h"

#include "common/heap.h"
#include "server/core/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CHUNK_ELEMENTS = 64 * 1024 }; /* converted at a time */

/* Read exactly `byte_count` bytes. */
static enum pd_status read_at(int fd, void *bytes, size_t byte_count, uint64_t offset,
                              struct pd_error *error)
{
    uint8_t *to = bytes;
    while (byte_count > 0) {
        ssize_t got = pread(fd, to, byte_count, (off_t)offset);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return pd_error_set(error, PD_EIO, "byte %" PRIu64 ": %s", offset,
                                got == 0 ? "the file ends" : strerror(errno));
        }
        to += got;
        byte_count -= (size_t)got;
        offset += (uint64_t)got;
    }
    return PD_OK;
}

static enum pd_status read_header(int fd, struct pd_safetensors *out, struct pd_error *error)
{
    uint8_t prefix[PD_SAFETENSORS_PREFIX_BYTES];
    size_t header_bytes = 0;
    struct stat file;

    if (fstat(fd, &file) != 0) {
        return pd_error_set(error, PD_EIO, "%s", strerror(errno));
    }
    enum pd_status status = read_at(fd, prefix, sizeof prefix, 0, error);
    if (status == PD_OK) {
        status = pd_safetensors_header_bytes(prefix, (uint64_t)file.st_size, &header_bytes, error);
    }
    if (status != PD_OK) {
        return status;
    }
    char *header = pd_heap_zalloc(header_bytes, 1);
    if (header == NULL) {
        return pd_error_set(error, PD_ENOMEM, "header of %zu bytes", header_bytes);
    }
    status = read_at(fd, header, header_bytes, sizeof prefix, error);
    if (status == PD_OK) {
        status = pd_safetensors_parse(out, header, header_bytes, (uint64_t)file.st_size, error);
    }
    pd_heap_free(header);
    return status;
}

/* Read `count` values of a type from `offset` on as float32, by way of `chunk`. */
static enum pd_status read_values(int fd, float *values, enum pd_dtype dtype, uint64_t offset,
                                  uint64_t count, void *chunk, struct pd_error *error)
{
    const size_t bytes = pd_dtype_bytes(dtype);
    while (count > 0) {
        size_t part = count < CHUNK_ELEMENTS ? (size_t)count : CHUNK_ELEMENTS;
        enum pd_status status = read_at(fd, chunk, part * bytes, offset, error);
        if (status != PD_OK) {
            return status;
        }
        pd_convert_to_float32(values, chunk, dtype, part);
        values += part;
        offset += part * bytes;
        count -= part;
    }
    return PD_OK;
}

/* Read what of the flat model lies in [begin, begin + count). */
static enum pd_status read_lane(int fd, const struct pd_safetensors *file, float *values,
                                uint64_t begin, uint64_t count, struct pd_error *error)
{
    enum pd_status status = PD_OK;
    void *chunk = pd_heap_zalloc(CHUNK_ELEMENTS, sizeof(float));
    if (chunk == NULL) {
        return pd_error_set(error, PD_ENOMEM, "out of memory");
    }
    for (uint32_t i = 0; i < file->tensors.count && status == PD_OK; i++) {
        const struct pd_tensor *tensor = &file->tensors.tensors[i];
        const struct pd_safetensors_place *place = &file->places[i];
        uint64_t from = tensor->element_begin > begin ? tensor->element_begin : begin;
        uint64_t end = tensor->element_begin + tensor->element_count;
        if (end > begin + count) {
            end = begin + count;
        }
        if (from < end) {
            status = read_values(fd, values + (from - begin), place->dtype,
                                 place->file_offset +
                                     (from - tensor->element_begin) * pd_dtype_bytes(place->dtype),
                                 end - from, chunk, error);
        }
    }
    pd_heap_free(chunk);
    return status;
}

enum pd_status pd_model_file_load(struct pd_engine *engine, const char *path,
                                  struct pd_error *error)
{
    struct pd_safetensors file = {0};
    uint64_t element_begin = 0;
    uint64_t element_count = 0;

    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return pd_error_set(error, PD_EIO, "model: %s: %s", path, strerror(errno));
    }
    enum pd_status status = read_header(fd, &file, error);
    if (status == PD_OK) {
        status = pd_engine_load_model(engine, &file.tensors, error);
    }
    if (status == PD_OK) {
        float *values = pd_engine_values(engine, &element_begin, &element_count);
        status = read_lane(fd, &file, values, element_begin, element_count, error);
    }
    if (status != PD_OK) {
        (void)pd_error_prefix(error, "model: %s", path);
    }
    pd_safetensors_finish(&file);
    (void)close(fd);
    return status;
}
