/* What a connection still has to send: frames in order, each a header that was copied in and a
 * payload that stays where it is. Piece by piece, as it goes out, a payload is converted to its
 * type on the wire and its checksum taken. action -> [send_queue] -> connection. No sockets in
 * here. Owner: the loop thread. */
#ifndef PD_SERVER_IO_SEND_QUEUE_H
#define PD_SERVER_IO_SEND_QUEUE_H

#include "common/checksum.h"
#include "common/tensor.h"
#include "server/core/fresh.h"

#include <stdbool.h>

struct pd_send_frame {
    size_t frame_bytes; /* prefix and header, copied into the queue */
    const void *payload;
    enum pd_dtype payload_dtype; /* float32 elements go out as this; float32: anything, as it is */
    uint64_t payload_bytes;      /* of what goes out, as the others */
    uint64_t payload_ready;      /* those that may leave */
    bool checksum;               /* PD_CHECKSUM_BYTES follow the payload */
    bool summed;                 /* `sum` is what they say: it need not be taken again */
    uint64_t sum;
};

/* Embedded in a connection; the fields are the queue's own.
 * Invariant: sent_bytes is less than all bytes of the first frame while there is one. */
struct pd_send_queue {
    struct pd_send_frame *frames; /* a ring */
    uint32_t frame_begin;
    uint32_t frame_count;
    uint32_t frame_capacity;
    uint8_t *bytes; /* headers of the frames, one behind the other */
    size_t bytes_begin;
    size_t bytes_end;
    size_t bytes_capacity;
    uint64_t sent_bytes;   /* of the first frame */
    uint64_t summed_bytes; /* of the first frame's header and payload */
    uint8_t trailer[PD_CHECKSUM_BYTES];
    uint64_t sum;
};

/* Where payloads are converted, and what was last: what several connections are sent alike need not
 * be converted for each. And what is fresh of a payload, which is read there. The fields are its
 * own. */
struct pd_send_room {
    struct pd_fresh fresh;
    uint8_t *bytes;
    uint64_t capacity_bytes;
    const void *payload; /* whose bytes from `begin` up to `end`, as `dtype`, it holds */
    enum pd_dtype dtype;
    uint64_t begin;
    uint64_t end;
};

/* The next bytes to write: a header's rest, then payload, then checksum; each may be empty. */
struct pd_send_pieces {
    const uint8_t *header;
    size_t header_bytes;
    const uint8_t *payload;
    size_t payload_bytes;
    bool fleeting; /* the payload is in the room or fresh: gone when that is used again */
    const uint8_t *trailer;
    size_t trailer_bytes;
};

/* `bytes` are borrowed, aligned for uint16_t, at least two. */
void pd_send_room_init(struct pd_send_room *room, void *bytes, size_t capacity_bytes);
/* Payloads may be other than they were. */
void pd_send_room_clear(struct pd_send_room *room);
/* What is fresh, as long as it is; NULL: nothing. */
void pd_send_room_freshen(struct pd_send_room *room, const struct pd_fresh *fresh);
/* The bytes from `begin` on of what goes out of `payload` as `dtype`, up to `*end`, or as many as
 * there is room for, or as are fresh or are not: `*end` is then less, and more than `begin`. They
 * stay until the next call. */
const uint8_t *pd_send_room_convert(struct pd_send_room *room, const void *payload,
                                    enum pd_dtype dtype, uint64_t begin, uint64_t *end);

/* Errors: PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_send_queue_init(struct pd_send_queue *queue, struct pd_error *error);
void pd_send_queue_finish(struct pd_send_queue *queue);

/* Append a frame. Allocates only to grow beyond what was ever queued before.
 * Ownership: `bytes` is copied; frame->payload is borrowed until it has been sent.
 * Errors: PD_ELIMIT over PD_SEND_QUEUE_BYTES_MAX of headers (the peer does not read); PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_send_queue_push(struct pd_send_queue *queue, const struct pd_send_frame *frame,
                                  const uint8_t *bytes, struct pd_error *error);

/* More of the payload that is held back may leave: its first `payload_ready` bytes. Nothing when
 * all of it has left or no frame holds any back. */
void pd_send_queue_release(struct pd_send_queue *queue, uint64_t payload_ready);

bool pd_send_queue_empty(const struct pd_send_queue *queue);
/* Bytes of headers queued: what a peer that does not read makes us hold. */
size_t pd_send_queue_bytes(const struct pd_send_queue *queue);
/* Whether nothing can be written now: the first frame's payload is held back, or there is no frame.
 */
bool pd_send_queue_blocked(const struct pd_send_queue *queue);
/* Bytes left of the first frame. */
uint64_t pd_send_queue_first_bytes(const struct pd_send_queue *queue);

/* What to write next: of the first frame, at most PD_WRITE_BYTES_MAX of its payload, or what the
 * room holds of it; or of the first frames, if they are headers alone. The queue must not be
 * blocked. The header pointer is valid until the next push, the others until advance. */
void pd_send_queue_peek(struct pd_send_queue *queue, struct pd_send_room *room,
                        struct pd_send_pieces *pieces);

/* Say that `byte_count` of the bytes last peeked have been written. Returns true if that ended the
 * frame with a payload, whose buffer is now free. */
bool pd_send_queue_advance(struct pd_send_queue *queue, size_t byte_count);

#endif
