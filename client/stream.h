/* Frames to and from the bytes of one connection, with payloads that lie scattered over arrays.
 * request -> payload -> [stream] -> socket, and back. Pure: no sockets here. Owner: whoever holds
 * the handle's lock.
 *
 * Bytes are handed out as pieces for sendmsg and recvmsg, at most PD_READ_BYTES_MAX at a time, and
 * summed as they pass, while they are in cache: pieces that were handed out stay as they are until
 * pd_sender_sent. float32 goes straight from and to the caller's
 * arrays; other types pass through a buffer of that size. */
#ifndef PD_CLIENT_STREAM_H
#define PD_CLIENT_STREAM_H

#include "client/payload.h"
#include "common/checksum.h"
#include "common/frame.h"

#include <sys/uio.h>

#define PD_STREAM_PIECE_COUNT_MAX 64u

/* One frame on its way out. Idle when position == total. */
struct pd_sender {
    uint8_t *head; /* prefix and header */
    size_t head_bytes;
    size_t head_capacity;
    struct pd_payload payload;
    uint64_t allowed; /* payload bytes, whole elements, that may leave by now: all, unless the owner
                         says less */
    bool summed;      /* a checksum follows the payload */
    bool copied;      /* said by the owner: its socket does not take pages, and none are lent */
    uint8_t tail[PD_CHECKSUM_BYTES];
    uint64_t position; /* bytes of the frame that have left */
    uint64_t total;
    uint64_t sum;
    uint64_t sum_end;   /* payload bytes in the checksum */
    uint8_t *converted; /* wire bytes of the window below; NULL until a type needs it */
    uint64_t window_begin;
    uint64_t window_end;
};

void pd_sender_init(struct pd_sender *sender);
void pd_sender_finish(struct pd_sender *sender);

/* Begin a frame; the one before must have left. `payload` may be NULL.
 * Ownership: the arrays are borrowed until the sender is idle or reset.
 * Errors: PD_ELIMIT, PD_ENOMEM; the sender stays idle. */
PD_MUST_CHECK
enum pd_status pd_sender_start(struct pd_sender *sender, const struct pd_message *message,
                               const struct pd_payload *payload, bool checksum,
                               struct pd_error *error);

bool pd_sender_idle(const struct pd_sender *sender);

/* Whether a payload is on its way, and how many bytes of it have left. */
bool pd_sender_in_payload(const struct pd_sender *sender, uint64_t *sent);

/* Whether it has nothing to send before more of the payload is ready. */
bool pd_sender_blocked(const struct pd_sender *sender);

/* Whether the next bytes lie in the caller's arrays, and need not be copied to be sent. */
bool pd_sender_lends(const struct pd_sender *sender);

/* The next bytes to send, in at most PD_STREAM_PIECE_COUNT_MAX pieces; returns how many. */
size_t pd_sender_gather(struct pd_sender *sender, struct iovec pieces[PD_STREAM_PIECE_COUNT_MAX]);
void pd_sender_sent(struct pd_sender *sender, size_t byte_count);

/* Forget the frame: its connection is gone. */
void pd_sender_reset(struct pd_sender *sender);

enum pd_receiver_state {
    PD_RECEIVER_PREFIX,
    PD_RECEIVER_HEADER,
    PD_RECEIVER_PLACE, /* waits for pd_receiver_place */
    PD_RECEIVER_PAYLOAD,
    PD_RECEIVER_TAIL,
};

/* The frames of one connection on their way in.
 *
 *   PREFIX -> HEADER -> PREFIX                       no payload, no checksum
 *                    -> TAIL -> PREFIX               no payload, checksum
 *                    -> PLACE -> PAYLOAD -> PREFIX   or, with a checksum,
 *                                PAYLOAD -> TAIL -> PREFIX */
struct pd_receiver {
    enum pd_receiver_state state;
    uint8_t *buffer; /* bytes [begin, end) have arrived and are not used yet */
    size_t begin;
    size_t end;
    struct pd_prefix prefix;
    struct pd_message message;
    struct pd_payload payload;
    uint64_t received; /* bytes of the payload in their place */
    uint64_t sum;
    bool checksum_ok;
    uint8_t *unconverted; /* wire bytes on their way into arrays; NULL until a type needs it */
    size_t carried;       /* bytes at its start: less than one element */
};

PD_MUST_CHECK
enum pd_status pd_receiver_init(struct pd_receiver *receiver, struct pd_error *error);
void pd_receiver_finish(struct pd_receiver *receiver);

/* Whether a payload that has its place is on its way. */
bool pd_receiver_in_payload(const struct pd_receiver *receiver);
/* How much of it has come, from 0 to 1; 0 if there is none. */
double pd_receiver_share(const struct pd_receiver *receiver);

/* Where the next bytes go; returns how many pieces, 0 while it waits for a place. */
size_t pd_receiver_gather(struct pd_receiver *receiver,
                          struct iovec pieces[PD_STREAM_PIECE_COUNT_MAX]);
void pd_receiver_filled(struct pd_receiver *receiver, size_t byte_count);

/* What has become whole. A message with a payload is told twice: MESSAGE, after which
 * pd_receiver_place must be called, and PAYLOAD once all has arrived; one without, once. Then
 * `message`, `prefix` and `checksum_ok` are valid until the next call. */
PD_MUST_CHECK
enum pd_frame_event pd_receiver_next(struct pd_receiver *receiver, struct pd_error *error);

/* Where the payload goes: byte_count must be the one announced in prefix.payload_bytes.
 * Errors: PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_receiver_place(struct pd_receiver *receiver, const struct pd_payload *payload,
                                 struct pd_error *error);

/* Start a new stream: the old connection is gone. */
void pd_receiver_reset(struct pd_receiver *receiver);

#endif
