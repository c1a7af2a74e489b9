/* Bounds on everything that grows with what a peer, a file or a user says.
 * Shared by the server, the client and the tests. */
#ifndef PD_COMMON_LIMITS_H
#define PD_COMMON_LIMITS_H

#include <stdint.h>

/* A job. */
#define PD_RANK_COUNT_MAX 64u
#define PD_WORKER_COUNT_MAX 1024u
#define PD_CONNECTION_COUNT_MAX 8192u

/* A model. MPI counts are int, so the elements one rank holds stay below 2^31. */
#define PD_TENSOR_COUNT_MAX 8192u
#define PD_TENSOR_NAME_BYTES_MAX 255u
#define PD_TENSOR_DIMENSION_COUNT_MAX 8u
#define PD_MODEL_ELEMENT_COUNT_MAX (1ull << 37)
#define PD_LANE_ELEMENT_COUNT_MAX 0x7fffffffull
#define PD_BLOCK_ELEMENT_COUNT_MAX (1u << 20)

/* A push. Samples of all workers and micro-batches of a step then add up without overflow. */
#define PD_SAMPLES_MAX (1ull << 32)

/* A frame. Header limits are per message kind: protobuf-c turns each two-byte field into tens
 * of bytes of memory, so a large header is an attack. */
#define PD_PREFIX_BYTES 24u
#define PD_CHECKSUM_BYTES 8u
#define PD_HEADER_BYTES_MAX 4096u
#define PD_REGISTER_HEADER_BYTES_MAX 65536u
#define PD_CONTROL_HEADER_BYTES_MAX 131072u
#define PD_ADMIN_PAYLOAD_BYTES_MAX (16u << 20)
#define PD_READ_BYTES_MAX (256u * 1024u)
#define PD_WRITE_BYTES_MAX (1024u * 1024u)
/* Headers that wait for a peer: beyond the first nothing more is read from it, beyond the second it
 * is cut off. */
#define PD_SEND_QUEUE_BYTES_PAUSE (256u * 1024u)
#define PD_SEND_QUEUE_BYTES_MAX (64u << 20)
/* Collectives that may wait for the MPI thread. */
#define PD_COLLECTIVE_QUEUE_COUNT_MAX 1024u

/* An administrator's command. */
#define PD_ADMIN_SETTING_COUNT_MAX 16u

/* Texts. */
#define PD_ERROR_BYTES_MAX 512u
#define PD_NAME_BYTES_MAX 127u
#define PD_HOST_BYTES_MAX 255u
#define PD_ADDRESS_BYTES_MAX 300u

/* A configuration. Depth counts lists and mappings inside one another. */
#define PD_CONFIG_BYTES_MAX (1u << 20)
#define PD_CONFIG_DEPTH_MAX 6u
#define PD_CONFIG_NODE_COUNT_MAX 8192u
#define PD_CONFIG_SETTING_COUNT_MAX 256u
#define PD_GROUP_COUNT_MAX 64u
#define PD_GROUP_PATTERN_COUNT_MAX 32u
#define PD_SCHEDULE_COUNT_MAX 16u
#define PD_METRIC_COUNT_MAX 32u
#define PD_HISTORY_COUNT_MAX 1000000u
#define PD_ACCUMULATION_STEPS_MAX 65536u
#define PD_PATH_BYTES_MAX 1024u
#define PD_SAFETENSORS_HEADER_BYTES_MAX 100000000u

_Static_assert(PD_HEADER_BYTES_MAX <= PD_REGISTER_HEADER_BYTES_MAX, "register is the larger one");
_Static_assert(PD_REGISTER_HEADER_BYTES_MAX < PD_CONTROL_HEADER_BYTES_MAX,
               "a register order carries a whole registration");

_Static_assert(PD_SAMPLES_MAX <= UINT64_MAX / PD_WORKER_COUNT_MAX / PD_ACCUMULATION_STEPS_MAX,
               "the samples of a step fit 64 bits");

#endif
