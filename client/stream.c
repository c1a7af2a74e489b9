#include "client/stream.h"

#include "common/assert.h"
#include "common/heap.h"

#include <string.h>

/* Small enough that a payload which follows its header is mostly received in place. */
#define PD_STREAM_READ_AHEAD_BYTES 4096u
#define PD_STREAM_BUFFER_BYTES                                                                     \
    (PD_PREFIX_BYTES + PD_REGISTER_HEADER_BYTES_MAX + PD_STREAM_READ_AHEAD_BYTES)

/* Of a payload from the caller's arrays that is longer than the first and copied to be sent, all
 * but the last bytes are summed after they were sent: the kernel's copy waits for the socket's
 * pages anyway, and brings the payload into the cache meanwhile. */
#define PD_STREAM_SUMMED_AFTER_BYTES_MIN (128u * 1024u)
#define PD_STREAM_SUMMED_BEFORE_BYTES (16u * 1024u)

/* A payload of so many bytes is worth calls of its own; one that is summed, of so many: the sum of
 * a shorter one costs less in the cache, where the copy has left it. */
#define PD_STREAM_LENT_BYTES_MIN (128u * 1024u)
#define PD_STREAM_LENT_SUMMED_BYTES_MIN (512u * 1024u)

static uint64_t load_u64(const uint8_t bytes[8])
{
    uint64_t value = 0;

    for (int i = 7; i >= 0; i--) {
        value = value << 8 | bytes[i];
    }
    return value;
}

static void store_u64(uint8_t bytes[8], uint64_t value)
{
    for (int i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)(value >> 8 * i);
    }
}

/* ---- Sender ---- */

void pd_sender_init(struct pd_sender *sender)
{
    memset(sender, 0, sizeof *sender);
}

void pd_sender_finish(struct pd_sender *sender)
{
    pd_heap_free(sender->head);
    pd_heap_free(sender->converted);
    memset(sender, 0, sizeof *sender);
}

bool pd_sender_idle(const struct pd_sender *sender)
{
    return sender->position == sender->total;
}

bool pd_sender_in_payload(const struct pd_sender *sender, uint64_t *sent)
{
    *sent = sender->position > sender->head_bytes ? sender->position - sender->head_bytes : 0;
    return !pd_sender_idle(sender) && *sent < sender->payload.byte_count;
}

/* How many of the payload's first bytes may leave by now. */
static uint64_t ready_bytes_of(const struct pd_sender *sender)
{
    uint64_t ready_bytes = pd_payload_ready_bytes(&sender->payload);

    return ready_bytes < sender->allowed ? ready_bytes : sender->allowed;
}

bool pd_sender_blocked(const struct pd_sender *sender)
{
    uint64_t sent;

    if (sender->position < sender->head_bytes || !pd_sender_in_payload(sender, &sent)) {
        return pd_sender_idle(sender);
    }
    return sent >= ready_bytes_of(sender);
}

/* Whether the payload is handed out by itself. */
static bool lends_payload(const struct pd_sender *sender)
{
    const struct pd_payload *payload = &sender->payload;
    uint64_t least = sender->summed ? PD_STREAM_LENT_SUMMED_BYTES_MIN : PD_STREAM_LENT_BYTES_MIN;

    return !sender->copied && pd_payload_direct(payload) && payload->byte_count >= least;
}

bool pd_sender_lends(const struct pd_sender *sender)
{
    uint64_t sent;

    return lends_payload(sender) && sender->position >= sender->head_bytes &&
           pd_sender_in_payload(sender, &sent);
}

void pd_sender_reset(struct pd_sender *sender)
{
    sender->position = sender->total = 0;
}

static enum pd_status reserve_head(struct pd_sender *sender, size_t bytes, struct pd_error *error)
{
    if (bytes <= sender->head_capacity) {
        return PD_OK;
    }
    uint8_t *head = pd_heap_realloc(sender->head, bytes);
    if (head == NULL) {
        return pd_error_set(error, PD_ENOMEM, "out of memory for a message of %zu bytes", bytes);
    }
    sender->head = head;
    sender->head_capacity = bytes;
    return PD_OK;
}

static enum pd_status reserve_window(uint8_t **window, const struct pd_payload *payload,
                                     struct pd_error *error)
{
    if (*window != NULL || payload->byte_count == 0 || pd_payload_direct(payload)) {
        return PD_OK;
    }
    *window = pd_heap_zalloc(PD_READ_BYTES_MAX, 1);
    if (*window == NULL) {
        return pd_error_set(error, PD_ENOMEM, "out of memory for a buffer of %u bytes",
                            PD_READ_BYTES_MAX);
    }
    return PD_OK;
}

enum pd_status pd_sender_start(struct pd_sender *sender, const struct pd_message *message,
                               const struct pd_payload *payload, bool checksum,
                               struct pd_error *error)
{
    static const struct pd_payload none;

    PD_ASSERT(pd_sender_idle(sender));
    if (payload == NULL) {
        payload = &none;
    }
    size_t header_bytes = pd_message_header_bytes(message);
    enum pd_status status = reserve_head(sender, PD_PREFIX_BYTES + header_bytes, error);
    if (status == PD_OK) {
        status = reserve_window(&sender->converted, payload, error);
    }
    if (status == PD_OK) {
        status = pd_message_encode(message, sender->head + PD_PREFIX_BYTES, header_bytes, error);
    }
    if (status != PD_OK) {
        return status;
    }
    struct pd_prefix prefix = {
        .kind = message->kind,
        .header_bytes = (uint32_t)header_bytes,
        .flags = checksum ? PD_FRAME_FLAG_CHECKSUM : 0,
        .payload_bytes = payload->byte_count,
    };
    pd_prefix_encode(&prefix, sender->head);
    sender->head_bytes = PD_PREFIX_BYTES + header_bytes;
    sender->payload = *payload;
    sender->allowed = UINT64_MAX;
    sender->summed = checksum;
    sender->sum_end = 0;
    sender->window_begin = sender->window_end = 0;
    sender->position = 0;
    sender->total = sender->head_bytes + payload->byte_count + (checksum ? PD_CHECKSUM_BYTES : 0);
    if (checksum) {
        sender->sum =
            pd_checksum_add(PD_CHECKSUM_EMPTY, sender->head + PD_PREFIX_BYTES, header_bytes);
    }
    return PD_OK;
}

/* Wire bytes from `offset` to at most `ready_bytes` of a payload that needs converting, a window at
 * a time. */
static uint8_t *converted_piece(struct pd_sender *sender, uint64_t offset, uint64_t ready_bytes,
                                size_t *byte_count)
{
    const struct pd_payload *payload = &sender->payload;

    if (offset >= sender->window_end) {
        size_t element_bytes = pd_dtype_bytes(payload->dtype);
        uint64_t left = ready_bytes - offset;
        size_t window_bytes = left < PD_READ_BYTES_MAX ? (size_t)left : PD_READ_BYTES_MAX;
        PD_ASSERT(offset == sender->window_end);
        pd_payload_convert_out(payload, offset / element_bytes, window_bytes / element_bytes,
                               sender->converted);
        sender->window_begin = offset;
        sender->window_end = offset + window_bytes;
    }
    *byte_count = (size_t)(sender->window_end - offset);
    return sender->converted + (offset - sender->window_begin);
}

/* Add to the checksum what of a piece at `offset` is not in it yet: a piece is handed out again
 * when the socket took only part of it. */
static void sum_piece(struct pd_sender *sender, uint64_t offset, const uint8_t *bytes,
                      size_t byte_count)
{
    uint64_t end = offset + byte_count;

    if (!sender->summed || end <= sender->sum_end) {
        return;
    }
    PD_ASSERT(sender->sum_end >= offset);
    uint64_t skip = sender->sum_end - offset;
    size_t count = (size_t)(byte_count - skip);
    sender->sum = lends_payload(sender)
                      ? pd_checksum_add_from_memory(sender->sum, bytes + skip, count)
                      : pd_checksum_add(sender->sum, bytes + skip, count);
    sender->sum_end = end;
}

/* How much of the payload, from its beginning, is summed after it was sent. */
static uint64_t summed_after(const struct pd_sender *sender)
{
    const struct pd_payload *payload = &sender->payload;

    if (!sender->summed || !pd_payload_direct(payload) || lends_payload(sender) ||
        payload->byte_count < PD_STREAM_SUMMED_AFTER_BYTES_MIN) {
        return 0;
    }
    return payload->byte_count - PD_STREAM_SUMMED_BEFORE_BYTES;
}

/* Sum what has been sent before it was summed. */
static void sum_sent(struct pd_sender *sender)
{
    uint64_t end;
    uint64_t most = summed_after(sender);

    (void)pd_sender_in_payload(sender, &end);
    end = end < most ? end : most;
    while (sender->sum_end < end) {
        size_t byte_count;
        const uint8_t *bytes =
            pd_payload_piece(&sender->payload, sender->sum_end, end - sender->sum_end, &byte_count);
        sum_piece(sender, sender->sum_end, bytes, byte_count);
    }
}

static size_t gather_payload(struct pd_sender *sender, uint64_t *position, size_t piece_count,
                             struct iovec pieces[PD_STREAM_PIECE_COUNT_MAX])
{
    const struct pd_payload *payload = &sender->payload;
    uint64_t ready_bytes = ready_bytes_of(sender);
    bool direct = pd_payload_direct(payload);
    size_t budget = PD_READ_BYTES_MAX;
    bool after = *position - sender->head_bytes < summed_after(sender);

    if (after && ready_bytes > summed_after(sender)) {
        ready_bytes = summed_after(sender);
    }
    /* The last piece is the checksum's. */
    while (piece_count < PD_STREAM_PIECE_COUNT_MAX - 1 && budget > 0) {
        uint64_t offset = *position - sender->head_bytes;
        size_t byte_count;
        if (offset == ready_bytes || (!direct && budget < PD_READ_BYTES_MAX)) {
            break;
        }
        size_t most = ready_bytes - offset < budget ? (size_t)(ready_bytes - offset) : budget;
        uint8_t *bytes = direct ? pd_payload_piece(payload, offset, most, &byte_count)
                                : converted_piece(sender, offset, ready_bytes, &byte_count);
        if (!after) {
            sum_piece(sender, offset, bytes, byte_count);
        }
        pieces[piece_count].iov_base = bytes;
        pieces[piece_count].iov_len = byte_count;
        piece_count++;
        budget -= byte_count;
        *position += byte_count;
    }
    return piece_count;
}

size_t pd_sender_gather(struct pd_sender *sender, struct iovec pieces[PD_STREAM_PIECE_COUNT_MAX])
{
    uint64_t position = sender->position;
    uint64_t payload_end = sender->head_bytes + sender->payload.byte_count;
    bool lends = lends_payload(sender);
    size_t piece_count = 0;

    if (pd_sender_blocked(sender)) {
        return 0;
    }
    if (position < sender->head_bytes) {
        pieces[0].iov_base = sender->head + position;
        pieces[0].iov_len = (size_t)(sender->head_bytes - position);
        piece_count = 1;
        position = sender->head_bytes;
        if (lends) {
            return piece_count;
        }
    }
    if (position < payload_end) {
        piece_count = gather_payload(sender, &position, piece_count, pieces);
        if (lends) {
            return piece_count;
        }
    }
    if (position >= payload_end && sender->summed) {
        size_t skip = (size_t)(position - payload_end);
        store_u64(sender->tail, sender->sum);
        pieces[piece_count].iov_base = sender->tail + skip;
        pieces[piece_count].iov_len = PD_CHECKSUM_BYTES - skip;
        piece_count++;
    }
    return piece_count;
}

void pd_sender_sent(struct pd_sender *sender, size_t byte_count)
{
    PD_ASSERT(byte_count <= sender->total - sender->position);
    sender->position += byte_count;
    sum_sent(sender);
}

/* ---- Receiver ---- */

enum pd_status pd_receiver_init(struct pd_receiver *receiver, struct pd_error *error)
{
    memset(receiver, 0, sizeof *receiver);
    receiver->buffer = pd_heap_zalloc(PD_STREAM_BUFFER_BYTES, 1);
    if (receiver->buffer == NULL) {
        return pd_error_set(error, PD_ENOMEM, "out of memory for a buffer of %u bytes",
                            PD_STREAM_BUFFER_BYTES);
    }
    return PD_OK;
}

void pd_receiver_finish(struct pd_receiver *receiver)
{
    pd_message_finish(&receiver->message);
    pd_heap_free(receiver->buffer);
    pd_heap_free(receiver->unconverted);
    memset(receiver, 0, sizeof *receiver);
}

void pd_receiver_reset(struct pd_receiver *receiver)
{
    pd_message_finish(&receiver->message);
    receiver->state = PD_RECEIVER_PREFIX;
    receiver->begin = receiver->end = 0;
}

static size_t buffered(const struct pd_receiver *receiver)
{
    return receiver->end - receiver->begin;
}

/* Take `byte_count` buffered bytes. */
static const uint8_t *consume(struct pd_receiver *receiver, size_t byte_count)
{
    const uint8_t *bytes = receiver->buffer + receiver->begin;

    PD_ASSERT(byte_count <= buffered(receiver));
    receiver->begin += byte_count;
    if (receiver->begin == receiver->end) {
        receiver->begin = receiver->end = 0;
    }
    return bytes;
}

/* Room at the end of the buffer, after moving what is in it to the front if that is needed: a whole
 * prefix and header always fit. */
static size_t buffer_room(struct pd_receiver *receiver, size_t wanted, uint8_t **room)
{
    if (receiver->end + wanted > PD_STREAM_BUFFER_BYTES && receiver->begin > 0) {
        memmove(receiver->buffer, receiver->buffer + receiver->begin, buffered(receiver));
        receiver->end -= receiver->begin;
        receiver->begin = 0;
    }
    size_t free_bytes = PD_STREAM_BUFFER_BYTES - receiver->end;
    *room = receiver->buffer + receiver->end;
    return wanted < free_bytes ? wanted : free_bytes;
}

/* Pieces of the payload's place, at most PD_READ_BYTES_MAX bytes of them. */
static size_t gather_place(struct pd_receiver *receiver,
                           struct iovec pieces[PD_STREAM_PIECE_COUNT_MAX], size_t *byte_count)
{
    const struct pd_payload *payload = &receiver->payload;
    uint64_t left = payload->byte_count - receiver->received;

    *byte_count = 0;
    if (!pd_payload_direct(payload)) {
        size_t room = PD_READ_BYTES_MAX - receiver->carried;
        *byte_count = left - receiver->carried < room ? (size_t)(left - receiver->carried) : room;
        pieces[0].iov_base = receiver->unconverted + receiver->carried;
        pieces[0].iov_len = *byte_count;
        return 1;
    }
    size_t piece_count = 0;
    while (piece_count < PD_STREAM_PIECE_COUNT_MAX - 1 && *byte_count < PD_READ_BYTES_MAX &&
           *byte_count < left) {
        size_t piece_bytes;
        pieces[piece_count].iov_base =
            pd_payload_piece(payload, receiver->received + *byte_count,
                             PD_READ_BYTES_MAX - *byte_count, &piece_bytes);
        pieces[piece_count].iov_len = piece_bytes;
        *byte_count += piece_bytes;
        piece_count++;
    }
    return piece_count;
}

/* Payload bytes that have not arrived: those in place and those carried have. */
static uint64_t payload_left(const struct pd_receiver *receiver)
{
    return receiver->payload.byte_count - receiver->received - receiver->carried;
}

bool pd_receiver_in_payload(const struct pd_receiver *receiver)
{
    return receiver->state == PD_RECEIVER_PAYLOAD;
}

double pd_receiver_share(const struct pd_receiver *receiver)
{
    return pd_receiver_in_payload(receiver)
               ? (double)receiver->received / (double)receiver->payload.byte_count
               : 0.0;
}

size_t pd_receiver_gather(struct pd_receiver *receiver,
                          struct iovec pieces[PD_STREAM_PIECE_COUNT_MAX])
{
    size_t piece_count = 0;
    uint8_t *room;

    if (receiver->state == PD_RECEIVER_PLACE) {
        return 0;
    }
    if (receiver->state == PD_RECEIVER_PAYLOAD) {
        size_t byte_count;
        PD_ASSERT(buffered(receiver) == 0);
        piece_count = gather_place(receiver, pieces, &byte_count);
        if (byte_count < payload_left(receiver)) {
            return piece_count;
        }
    }
    size_t wanted = PD_STREAM_READ_AHEAD_BYTES;
    if (receiver->state == PD_RECEIVER_HEADER && receiver->prefix.header_bytes > wanted) {
        wanted = receiver->prefix.header_bytes;
    }
    pieces[piece_count].iov_len = buffer_room(receiver, wanted, &room);
    pieces[piece_count].iov_base = room;
    return piece_count + 1;
}

static void sum_placed(struct pd_receiver *receiver, const void *bytes, size_t byte_count)
{
    if ((receiver->prefix.flags & PD_FRAME_FLAG_CHECKSUM) != 0) {
        receiver->sum = pd_checksum_add(receiver->sum, bytes, byte_count);
    }
}

/* `byte_count` more payload bytes are where gather_place said. */
static void placed(struct pd_receiver *receiver, size_t byte_count)
{
    const struct pd_payload *payload = &receiver->payload;

    if (!pd_payload_direct(payload)) {
        size_t element_bytes = pd_dtype_bytes(payload->dtype);
        size_t have = receiver->carried + byte_count;
        size_t count = have / element_bytes;
        sum_placed(receiver, receiver->unconverted + receiver->carried, byte_count);
        pd_payload_convert_in(payload, receiver->received / element_bytes, count,
                              receiver->unconverted);
        receiver->carried = have - count * element_bytes;
        memmove(receiver->unconverted, receiver->unconverted + count * element_bytes,
                receiver->carried);
        receiver->received += count * element_bytes;
        return;
    }
    while (byte_count > 0) {
        size_t piece_bytes;
        const uint8_t *piece =
            pd_payload_piece(payload, receiver->received, byte_count, &piece_bytes);
        sum_placed(receiver, piece, piece_bytes);
        receiver->received += piece_bytes;
        byte_count -= piece_bytes;
    }
}

void pd_receiver_filled(struct pd_receiver *receiver, size_t byte_count)
{
    if (receiver->state == PD_RECEIVER_PAYLOAD) {
        uint64_t left = payload_left(receiver);
        size_t now = byte_count < left ? byte_count : (size_t)left;
        placed(receiver, now);
        byte_count -= now;
    }
    receiver->end += byte_count;
    PD_ASSERT(receiver->end <= PD_STREAM_BUFFER_BYTES);
}

/* Move payload bytes that came along with the header to their place. */
static void place_buffered(struct pd_receiver *receiver)
{
    while (buffered(receiver) > 0 && payload_left(receiver) > 0) {
        struct iovec pieces[PD_STREAM_PIECE_COUNT_MAX];
        size_t room;
        size_t piece_count = gather_place(receiver, pieces, &room);
        size_t now = 0;
        for (size_t i = 0; i < piece_count && buffered(receiver) > 0; i++) {
            size_t take = buffered(receiver);
            take = take < pieces[i].iov_len ? take : pieces[i].iov_len;
            memcpy(pieces[i].iov_base, consume(receiver, take), take);
            now += take;
        }
        placed(receiver, now);
    }
}

enum pd_status pd_receiver_place(struct pd_receiver *receiver, const struct pd_payload *payload,
                                 struct pd_error *error)
{
    PD_ASSERT(receiver->state == PD_RECEIVER_PLACE);
    PD_ASSERT(payload->byte_count == receiver->prefix.payload_bytes);
    enum pd_status status = reserve_window(&receiver->unconverted, payload, error);
    if (status != PD_OK) {
        return status;
    }
    receiver->payload = *payload;
    receiver->received = 0;
    receiver->carried = 0;
    receiver->state = PD_RECEIVER_PAYLOAD;
    place_buffered(receiver);
    return PD_OK;
}

static enum pd_status take_header(struct pd_receiver *receiver, struct pd_error *error)
{
    size_t header_bytes = receiver->prefix.header_bytes;
    const uint8_t *header = consume(receiver, header_bytes);

    pd_message_finish(&receiver->message);
    receiver->sum = PD_CHECKSUM_EMPTY;
    sum_placed(receiver, header, header_bytes);
    receiver->checksum_ok = true;
    return pd_message_decode(&receiver->message, receiver->prefix.kind, header, header_bytes,
                             error);
}

/* The message is told when it has no payload; else its payload is. */
static enum pd_frame_event whole(struct pd_receiver *receiver)
{
    receiver->state = PD_RECEIVER_PREFIX;
    return receiver->prefix.payload_bytes > 0 ? PD_FRAME_PAYLOAD : PD_FRAME_MESSAGE;
}

static enum pd_frame_event whole_or_tail(struct pd_receiver *receiver)
{
    if ((receiver->prefix.flags & PD_FRAME_FLAG_CHECKSUM) == 0) {
        return whole(receiver);
    }
    receiver->state = PD_RECEIVER_TAIL;
    return PD_FRAME_MORE;
}

/* One move of the state machine; MORE with an unchanged state means that bytes are missing. */
static enum pd_frame_event advance(struct pd_receiver *receiver, struct pd_error *error)
{
    switch (receiver->state) {
    case PD_RECEIVER_PREFIX:
        if (buffered(receiver) < PD_PREFIX_BYTES) {
            return PD_FRAME_MORE;
        }
        if (pd_prefix_decode(&receiver->prefix, consume(receiver, PD_PREFIX_BYTES), error) !=
            PD_OK) {
            return PD_FRAME_FAILED;
        }
        receiver->state = PD_RECEIVER_HEADER;
        return PD_FRAME_MORE;
    case PD_RECEIVER_HEADER:
        if (buffered(receiver) < receiver->prefix.header_bytes) {
            return PD_FRAME_MORE;
        }
        if (take_header(receiver, error) != PD_OK) {
            return PD_FRAME_FAILED;
        }
        if (receiver->prefix.payload_bytes > 0) {
            receiver->state = PD_RECEIVER_PLACE;
            return PD_FRAME_MESSAGE;
        }
        return whole_or_tail(receiver);
    case PD_RECEIVER_PLACE:
        return PD_FRAME_MORE;
    case PD_RECEIVER_PAYLOAD:
        return payload_left(receiver) > 0 ? PD_FRAME_MORE : whole_or_tail(receiver);
    case PD_RECEIVER_TAIL:
        if (buffered(receiver) < PD_CHECKSUM_BYTES) {
            return PD_FRAME_MORE;
        }
        receiver->checksum_ok = load_u64(consume(receiver, PD_CHECKSUM_BYTES)) == receiver->sum;
        return whole(receiver);
    }
    PD_ASSERT(false);
    return PD_FRAME_FAILED;
}

enum pd_frame_event pd_receiver_next(struct pd_receiver *receiver, struct pd_error *error)
{
    for (;;) {
        enum pd_receiver_state before = receiver->state;
        enum pd_frame_event event = advance(receiver, error);
        if (event != PD_FRAME_MORE || receiver->state == before) {
            return event;
        }
    }
}
