/* Any bytes as a safetensors file: either places that lie inside it in order come out or an error,
 * and no memory is kept. */
#include "common/assert.h"
#include "common/heap.h"
#include "server/core/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_places(const struct pd_safetensors *file, uint64_t values_offset,
                         uint64_t file_bytes)
{
    uint64_t offset = values_offset;

    for (uint32_t i = 0; i < file->tensors.count; i++) {
        PD_ASSERT(file->places[i].file_offset == offset);
        offset += file->tensors.tensors[i].element_count * pd_dtype_bytes(file->places[i].dtype);
    }
    PD_ASSERT(offset == file_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct pd_safetensors file;
    struct pd_error error = {0};
    size_t header_bytes = 0;

    if (size < PD_SAFETENSORS_PREFIX_BYTES ||
        pd_safetensors_header_bytes(data, size, &header_bytes, &error) != PD_OK) {
        return 0;
    }
    const char *header = (const char *)data + PD_SAFETENSORS_PREFIX_BYTES;
    if (pd_safetensors_parse(&file, header, header_bytes, size, &error) == PD_OK) {
        check_places(&file, PD_SAFETENSORS_PREFIX_BYTES + header_bytes, size);
        pd_safetensors_finish(&file);
    } else {
        PD_ASSERT(error.message[0] != '\0');
    }
    PD_ASSERT(pd_heap_blocks_live() == 0);
    return 0;
}
