/* Frames: the 24-byte prefix, and a reader that says where the next bytes of a stream belong.
 * socket -> [frame] -> message. Pure: no sockets here; used by the server and the client.
 *
 *   offset  0  magic           "PRMD"
 *           4  version         u16, PD_PROTOCOL_VERSION
 *           6  kind            u16, enum pd_message_kind
 *           8  header_bytes    u32
 *          12  flags           u32, bit 0: a checksum follows the payload
 *          16  payload_bytes   u64
 *          24  header, payload, then with bit 0 the CRC-64/XZ of both, u64
 *
 * All integers are little-endian. */
#ifndef PD_COMMON_FRAME_H
#define PD_COMMON_FRAME_H

#include "common/checksum.h"
#include "common/message.h"

#include <sys/uio.h>

#define PD_PROTOCOL_VERSION 1u
#define PD_FRAME_FLAG_CHECKSUM 1u
#define PD_FRAME_PIECE_COUNT_MAX 2u

struct pd_prefix {
    uint32_t kind;
    uint32_t header_bytes;
    uint32_t flags;
    uint64_t payload_bytes;
};

void pd_prefix_encode(const struct pd_prefix *prefix, uint8_t bytes[PD_PREFIX_BYTES]);

/* Errors: PD_EPROTOCOL (magic, kind, flags), PD_EVERSION, PD_ELIMIT (header over its kind's limit);
 * each says the value and what is allowed. The payload's length is for the session to judge. */
PD_MUST_CHECK
enum pd_status pd_prefix_decode(struct pd_prefix *prefix, const uint8_t bytes[PD_PREFIX_BYTES],
                                struct pd_error *error);

/* What a reader found in the bytes it was given. */
enum pd_frame_event {
    PD_FRAME_MORE,    /* nothing whole yet */
    PD_FRAME_MESSAGE, /* a decoded header; if it has a payload, the reader waits for its place */
    PD_FRAME_PAYLOAD, /* the payload and checksum of the message before are in; see checksum_ok */
    PD_FRAME_FAILED,  /* the stream is no use any more; see the error */
};

/* Reads one stream. Owner: the thread of its connection.
 * Loop: pd_frame_reader_gather -> fill some of it -> pd_frame_reader_filled, then
 * pd_frame_reader_next until it says MORE or waits for a place. */
struct pd_frame_reader;

PD_MUST_CHECK
enum pd_status pd_frame_reader_create(struct pd_frame_reader **out, struct pd_error *error);
void pd_frame_reader_destroy(struct pd_frame_reader *reader);

/* Where the next bytes go, in how many pieces: a payload straight to its place, up to
 * PD_READ_BYTES_MAX of it, and what follows it, as small messages, to a buffer of the reader's.
 * None while the reader waits for a place. */
size_t pd_frame_reader_gather(struct pd_frame_reader *reader,
                              struct iovec pieces[PD_FRAME_PIECE_COUNT_MAX]);

/* Say that `byte_count` bytes have been written there, from the first piece on. */
void pd_frame_reader_filled(struct pd_frame_reader *reader, size_t byte_count);

/* What has become whole. After MESSAGE with payload_bytes > 0 call pd_frame_reader_place before the
 * next call, and again whenever the place is full before the payload is in; until then next says
 * MORE. */
PD_MUST_CHECK
enum pd_frame_event pd_frame_reader_next(struct pd_frame_reader *reader, struct pd_error *error);

/* Where the next `byte_count` bytes of the payload go: at least one, at most those that are left.
 * Ownership: written to until they are in, drop or destroy. */
void pd_frame_reader_place(struct pd_frame_reader *reader, void *destination, uint64_t byte_count);
/* Read what is not in yet of the payload, and drop it; placed or not. */
void pd_frame_reader_drop(struct pd_frame_reader *reader);

/* The message of the last MESSAGE; the reader's, valid until the next MESSAGE or destroy. */
const struct pd_message *pd_frame_reader_message(const struct pd_frame_reader *reader);
uint64_t pd_frame_reader_payload_bytes(const struct pd_frame_reader *reader);
/* Bytes of that payload that are in their place: all of it after PD_FRAME_PAYLOAD. */
uint64_t pd_frame_reader_payload_received(const struct pd_frame_reader *reader);
bool pd_frame_reader_has_checksum(const struct pd_frame_reader *reader);
bool pd_frame_reader_checksum_ok(const struct pd_frame_reader *reader);
bool pd_frame_reader_waits(const struct pd_frame_reader *reader);
/* Whether the stream stands between two frames, so that an end here cuts nothing off. */
bool pd_frame_reader_idle(const struct pd_frame_reader *reader);

/* Prefix and header of `message` in one piece of new memory; the payload and checksum follow from
 * elsewhere. `flags` go into the prefix.
 * Ownership: *out is the caller's, for pd_heap_free.
 * Errors: PD_ELIMIT, PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_frame_encode(uint8_t **out, size_t *out_bytes, const struct pd_message *message,
                               uint32_t flags, uint64_t payload_bytes, struct pd_error *error);

#endif
