/* What a safetensors file holds and where: the bytes of its header -> [safetensors] -> daemon,
 * which reads the values. Pure.
 *
 * A file is u64 little-endian N, N bytes of JSON, then the values; in use: read 8 bytes,
 * pd_safetensors_header_bytes, read that many, pd_safetensors_parse, then read the ranges wanted.
 * Source: https://github.com/huggingface/safetensors#format */
#ifndef PD_SERVER_CORE_SAFETENSORS_H
#define PD_SERVER_CORE_SAFETENSORS_H

#include "common/tensor.h"

#define PD_SAFETENSORS_PREFIX_BYTES 8u

/* Where the values of a tensor are: element_count of them, little-endian, nothing between them. */
struct pd_safetensors_place {
    enum pd_dtype dtype;
    uint64_t file_offset;
};

/* Invariant: places[i] is that of tensors.tensors[i], in the order of the file offsets; the values
 * begin right behind the header and end with the file. */
struct pd_safetensors {
    struct pd_tensor_list tensors;
    struct pd_safetensors_place *places;
};

/* The length of the header, from the first bytes of a file of `file_bytes`.
 * Errors: PD_EINVALID if the file is too short for it; PD_ELIMIT. */
PD_MUST_CHECK
enum pd_status pd_safetensors_header_bytes(const uint8_t prefix[PD_SAFETENSORS_PREFIX_BYTES],
                                           uint64_t file_bytes, size_t *header_bytes,
                                           struct pd_error *error);

/* Parse a header. *out is finished by the caller; it is empty on error. Not for two threads at
 * once. Errors: PD_EINVALID for bytes that are no such header, PD_EMODEL or PD_ELIMIT for tensors
 * that a model cannot have, PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_safetensors_parse(struct pd_safetensors *out, const char *header,
                                    size_t header_bytes, uint64_t file_bytes,
                                    struct pd_error *error);

/* Free what the struct owns; a zeroed one is allowed. */
void pd_safetensors_finish(struct pd_safetensors *safetensors);

#endif
