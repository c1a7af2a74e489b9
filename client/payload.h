/* Where the bytes of a payload lie in the caller's arrays.
 * request -> [payload] -> stream. Pure.
 *
 * A payload is a contiguous range of the flat model, whose elements lie in one array per tensor;
 * or, for an answer that is no tensor data, plain bytes in one place. */
#ifndef PD_CLIENT_PAYLOAD_H
#define PD_CLIENT_PAYLOAD_H

#include "common/tensor.h"

#include <stdatomic.h>

/* How much of arrays that are still being filled may leave: the first `elements` of the flat model,
 * and the last element of a payload only once all is final, so that what is taken back before has
 * arrived whole nowhere. The program's thread raises it, the one that sends reads it. */
struct pd_gate {
    _Atomic uint64_t elements;
    _Atomic uint64_t opened_ms; /* when all became final; 0: not yet */
};

/* Exactly one of `sources`, `targets` and `bytes` is set, unless byte_count is 0. */
struct pd_payload {
    uint64_t byte_count;
    uint8_t *bytes; /* receiving: byte_count of them */

    const struct pd_tensor_list *model;
    const float *const *sources; /* sending: one array per tensor, NULL for zeros */
    float *const *targets;       /* receiving: one array per tensor */
    enum pd_dtype dtype;         /* on the wire */
    uint64_t element_begin;
    uint64_t element_count;
    const struct pd_gate *gate; /* sending: NULL if all is final */
    bool streamed; /* receiving: more than the caches keep until the program reads it */
};

/* A payload that is sent from, or received into, arrays of float32. */
void pd_payload_init_sources(struct pd_payload *payload, const struct pd_tensor_list *model,
                             const float *const *sources, enum pd_dtype dtype,
                             uint64_t element_begin, uint64_t element_count);
void pd_payload_init_targets(struct pd_payload *payload, const struct pd_tensor_list *model,
                             float *const *targets, enum pd_dtype dtype, uint64_t element_begin,
                             uint64_t element_count);
void pd_payload_init_bytes(struct pd_payload *payload, uint8_t *bytes, uint64_t byte_count);

/* Whether wire bytes and memory are the same, so that no conversion is needed. */
bool pd_payload_direct(const struct pd_payload *payload);

/* How many of a payload's first bytes may leave by now. */
uint64_t pd_payload_ready_bytes(const struct pd_payload *payload);

/* The longest run of a direct payload's bytes that starts at `offset` < byte_count and lies in one
 * piece, at most `byte_count_max` long; its length goes to `byte_count`.
 * The result is only written to when receiving. */
uint8_t *pd_payload_piece(const struct pd_payload *payload, uint64_t offset,
                          uint64_t byte_count_max, size_t *byte_count);

/* Convert `count` elements from `index` (in the payload) on, from the arrays to wire bytes at `to`.
 */
void pd_payload_convert_out(const struct pd_payload *payload, uint64_t index, size_t count,
                            void *to);
/* Convert `count` elements of wire bytes at `from` into the arrays. */
void pd_payload_convert_in(const struct pd_payload *payload, uint64_t index, size_t count,
                           const void *from);

#endif
