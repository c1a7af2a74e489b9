#include "common/frame.h"

#include "common/assert.h"
#include "common/cursor.h"
#include "common/heap.h"

#include <inttypes.h>
#include <string.h>

static const uint8_t magic[4] = {'P', 'R', 'M', 'D'};

/* A whole frame without payload, of any kind but those with long headers. */
#define BUFFER_BYTES (PD_PREFIX_BYTES + PD_HEADER_BYTES_MAX + PD_CHECKSUM_BYTES)

/*            prefix, header                 place                     all bytes
 *   HEADER ------------------> WAIT_PLACE ---------> PAYLOAD ---------------------+
 *     ^  \                         ^------------------/   the place is full       |
 *     |   +-- no payload: stays                                        checksum   v
 *     +-----------------------------------------------------------------------  TRAILER
 *   FAILED from HEADER, for good. drop: from WAIT_PLACE to PAYLOAD, which then goes to its end. */
enum state {
    STATE_HEADER,
    STATE_WAIT_PLACE,
    STATE_PAYLOAD,
    STATE_TRAILER,
    STATE_FAILED,
};

struct pd_frame_reader {
    enum state state;
    bool checksum_ok;
    struct pd_prefix prefix; /* of the last message */
    struct pd_message message;
    uint64_t sum;         /* of header and payload so far */
    uint8_t *destination; /* of the payload's next byte; NULL: it is dropped */
    uint64_t placed;      /* bytes of the payload that have a place, or are dropped */
    uint64_t payload_received;
    uint8_t *buffer; /* bytes [begin, end) are in and not yet used */
    size_t capacity;
    size_t begin;
    size_t end;
    size_t offered_payload_bytes; /* of the last pieces: in the payload's place, and in all */
    size_t offered_bytes;
    struct pd_error error; /* when FAILED */
};

void pd_prefix_encode(const struct pd_prefix *prefix, uint8_t bytes[PD_PREFIX_BYTES])
{
    struct pd_write_cursor cursor;
    pd_write_cursor_init(&cursor, bytes, PD_PREFIX_BYTES);
    pd_cursor_write_bytes(&cursor, magic, sizeof magic);
    pd_cursor_write_u16(&cursor, PD_PROTOCOL_VERSION);
    pd_cursor_write_u16(&cursor, (uint16_t)prefix->kind);
    pd_cursor_write_u32(&cursor, prefix->header_bytes);
    pd_cursor_write_u32(&cursor, prefix->flags);
    pd_cursor_write_u64(&cursor, prefix->payload_bytes);
    PD_ASSERT(cursor.status == PD_OK);
    PD_ASSERT(cursor.offset == PD_PREFIX_BYTES);
}

enum pd_status pd_prefix_decode(struct pd_prefix *prefix, const uint8_t bytes[PD_PREFIX_BYTES],
                                struct pd_error *error)
{
    struct pd_read_cursor cursor;
    uint8_t start[sizeof magic];
    pd_read_cursor_init(&cursor, bytes, PD_PREFIX_BYTES);
    pd_cursor_read_bytes(&cursor, start, sizeof start);
    uint32_t version = pd_cursor_read_u16(&cursor);
    *prefix = (struct pd_prefix){.kind = pd_cursor_read_u16(&cursor)};
    prefix->header_bytes = pd_cursor_read_u32(&cursor);
    prefix->flags = pd_cursor_read_u32(&cursor);
    prefix->payload_bytes = pd_cursor_read_u64(&cursor);
    PD_ASSERT(cursor.status == PD_OK);

    if (memcmp(start, magic, sizeof magic) != 0) {
        return pd_error_set(error, PD_EPROTOCOL,
                            "frame: starts with %02x %02x %02x %02x, not with 50 52 4d 44 (PRMD)",
                            start[0], start[1], start[2], start[3]);
    }
    if (version != PD_PROTOCOL_VERSION) {
        return pd_error_set(error, PD_EVERSION,
                            "frame: protocol version %" PRIu32 ", this side speaks %u", version,
                            PD_PROTOCOL_VERSION);
    }
    if (!pd_message_kind_valid(prefix->kind)) {
        return pd_error_set(error, PD_EPROTOCOL, "frame: message kind %" PRIu32 " is unknown",
                            prefix->kind);
    }
    if ((prefix->flags & ~PD_FRAME_FLAG_CHECKSUM) != 0) {
        return pd_error_set(error, PD_EPROTOCOL, "frame: flags 0x%" PRIx32 ", allowed are 0x%x",
                            prefix->flags, PD_FRAME_FLAG_CHECKSUM);
    }
    uint32_t header_bytes_max = pd_message_header_bytes_max((enum pd_message_kind)prefix->kind);
    if (prefix->header_bytes > header_bytes_max) {
        return pd_error_set(error, PD_ELIMIT, "%s: header of %" PRIu32 " bytes, at most %" PRIu32,
                            pd_message_kind_name(prefix->kind), prefix->header_bytes,
                            header_bytes_max);
    }
    return PD_OK;
}

enum pd_status pd_frame_reader_create(struct pd_frame_reader **out, struct pd_error *error)
{
    *out = NULL;
    struct pd_frame_reader *reader = pd_heap_zalloc(1, sizeof *reader);
    if (reader == NULL) {
        goto fail;
    }
    reader->buffer = pd_heap_zalloc(BUFFER_BYTES, 1);
    if (reader->buffer == NULL) {
        goto fail_reader;
    }
    reader->capacity = BUFFER_BYTES;
    reader->checksum_ok = true;
    *out = reader;
    return PD_OK;

fail_reader:
    pd_heap_free(reader);
fail:
    return pd_error_set(error, PD_ENOMEM, "frame reader: %zu bytes", sizeof *reader + BUFFER_BYTES);
}

void pd_frame_reader_destroy(struct pd_frame_reader *reader)
{
    if (reader == NULL) {
        return;
    }
    pd_message_finish(&reader->message);
    pd_heap_free(reader->buffer);
    pd_heap_free(reader);
}

/* Bytes that the payload's place still takes. */
static uint64_t place_left(const struct pd_frame_reader *reader)
{
    return reader->placed - reader->payload_received;
}

/* All that is free of the buffer, with what is in it at the front. */
static struct iovec buffer_space(struct pd_frame_reader *reader)
{
    size_t buffered = reader->end - reader->begin;

    if (reader->begin > 0) {
        memmove(reader->buffer, reader->buffer + reader->begin, buffered);
        reader->begin = 0;
        reader->end = buffered;
    }
    return (struct iovec){.iov_base = reader->buffer + buffered,
                          .iov_len = reader->capacity - buffered};
}

size_t pd_frame_reader_gather(struct pd_frame_reader *reader,
                              struct iovec pieces[PD_FRAME_PIECE_COUNT_MAX])
{
    size_t piece_count = 0;

    reader->offered_payload_bytes = 0;
    reader->offered_bytes = 0;
    if (reader->state == STATE_WAIT_PLACE || reader->state == STATE_FAILED) {
        return 0;
    }
    if (reader->state == STATE_PAYLOAD && reader->destination != NULL) {
        uint64_t left = place_left(reader);
        size_t byte_count = left < PD_READ_BYTES_MAX ? (size_t)left : PD_READ_BYTES_MAX;
        pieces[piece_count++] =
            (struct iovec){.iov_base = reader->destination, .iov_len = byte_count};
        reader->offered_payload_bytes = byte_count;
        reader->offered_bytes = byte_count;
        if (reader->payload_received + byte_count < reader->prefix.payload_bytes) {
            return piece_count;
        }
    }
    pieces[piece_count] = buffer_space(reader);
    reader->offered_bytes += pieces[piece_count].iov_len;
    return piece_count + 1;
}

/* Count payload bytes that are in their place, or dropped. */
static void receive_payload(struct pd_frame_reader *reader, const uint8_t *bytes, size_t byte_count)
{
    if ((reader->prefix.flags & PD_FRAME_FLAG_CHECKSUM) != 0) {
        reader->sum = pd_checksum_add(reader->sum, bytes, byte_count);
    }
    reader->payload_received += byte_count;
    if (reader->destination != NULL) {
        reader->destination += byte_count;
    }
    if (reader->payload_received == reader->prefix.payload_bytes) {
        reader->state = STATE_TRAILER;
    } else if (place_left(reader) == 0) {
        reader->state = STATE_WAIT_PLACE;
    }
}

/* Move payload bytes that came in with the header, or that nobody wants, out of the buffer. */
static void drain_buffer(struct pd_frame_reader *reader)
{
    size_t byte_count = reader->end - reader->begin;
    if (byte_count > place_left(reader)) {
        byte_count = (size_t)place_left(reader);
    }
    if (byte_count == 0) {
        return;
    }
    if (reader->destination != NULL) {
        memcpy(reader->destination, reader->buffer + reader->begin, byte_count);
    }
    receive_payload(reader, reader->buffer + reader->begin, byte_count);
    reader->begin += byte_count;
}

void pd_frame_reader_filled(struct pd_frame_reader *reader, size_t byte_count)
{
    PD_ASSERT(byte_count <= reader->offered_bytes);
    size_t payload_bytes =
        byte_count < reader->offered_payload_bytes ? byte_count : reader->offered_payload_bytes;

    if (payload_bytes > 0) {
        receive_payload(reader, reader->destination, payload_bytes);
    }
    reader->end += byte_count - payload_bytes;
    reader->offered_bytes = 0;
    reader->offered_payload_bytes = 0;
    if (reader->state == STATE_PAYLOAD && reader->destination == NULL) {
        drain_buffer(reader);
    }
}

static enum pd_frame_event fail(struct pd_frame_reader *reader)
{
    reader->state = STATE_FAILED;
    return PD_FRAME_FAILED;
}

/* Whether the checksum at `bytes` is that of the bytes so far. */
static bool checksum_matches(const struct pd_frame_reader *reader, const uint8_t *bytes)
{
    struct pd_read_cursor cursor;
    pd_read_cursor_init(&cursor, bytes, PD_CHECKSUM_BYTES);
    return pd_cursor_read_u64(&cursor) == reader->sum;
}

/* Make the buffer hold `byte_count` bytes from begin on. */
static enum pd_status reserve(struct pd_frame_reader *reader, size_t byte_count,
                              struct pd_error *error)
{
    if (byte_count <= reader->capacity) {
        return PD_OK;
    }
    uint8_t *buffer = pd_heap_realloc(reader->buffer, byte_count);
    if (buffer == NULL) {
        return pd_error_set(error, PD_ENOMEM, "frame: header of %zu bytes", byte_count);
    }
    reader->buffer = buffer;
    reader->capacity = byte_count;
    return PD_OK;
}

/* Take a prefix and header out of the buffer, if they are whole; without payload the checksum too.
 */
static enum pd_frame_event next_header(struct pd_frame_reader *reader)
{
    size_t available = reader->end - reader->begin;
    struct pd_prefix prefix;
    if (available < PD_PREFIX_BYTES) {
        return PD_FRAME_MORE;
    }
    if (pd_prefix_decode(&prefix, reader->buffer + reader->begin, &reader->error) != PD_OK) {
        return fail(reader);
    }

    bool has_checksum = (prefix.flags & PD_FRAME_FLAG_CHECKSUM) != 0;
    size_t trailer_bytes = has_checksum && prefix.payload_bytes == 0 ? PD_CHECKSUM_BYTES : 0;
    size_t needed = PD_PREFIX_BYTES + (size_t)prefix.header_bytes + trailer_bytes;
    if (reserve(reader, needed, &reader->error) != PD_OK) {
        return fail(reader);
    }
    if (available < needed) {
        return PD_FRAME_MORE;
    }

    const uint8_t *header = reader->buffer + reader->begin + PD_PREFIX_BYTES;
    if (has_checksum) {
        reader->sum = pd_checksum_add(PD_CHECKSUM_EMPTY, header, prefix.header_bytes);
    }
    if (trailer_bytes > 0 && !checksum_matches(reader, header + prefix.header_bytes)) {
        (void)pd_error_set(&reader->error, PD_ECHECKSUM, "%s: header does not match its checksum",
                           pd_message_kind_name(prefix.kind));
        return fail(reader);
    }
    pd_message_finish(&reader->message);
    if (pd_message_decode(&reader->message, (enum pd_message_kind)prefix.kind, header,
                          prefix.header_bytes, &reader->error) != PD_OK) {
        return fail(reader);
    }
    reader->prefix = prefix;
    reader->begin += needed;
    reader->payload_received = 0;
    reader->placed = 0;
    reader->checksum_ok = true;
    reader->state = prefix.payload_bytes > 0 ? STATE_WAIT_PLACE : STATE_HEADER;
    return PD_FRAME_MESSAGE;
}

/* The payload is in: take the checksum behind it, if there is one. */
static enum pd_frame_event next_trailer(struct pd_frame_reader *reader)
{
    if (pd_frame_reader_has_checksum(reader)) {
        if (reader->end - reader->begin < PD_CHECKSUM_BYTES) {
            return PD_FRAME_MORE;
        }
        reader->checksum_ok = checksum_matches(reader, reader->buffer + reader->begin);
        reader->begin += PD_CHECKSUM_BYTES;
    }
    reader->destination = NULL;
    reader->state = STATE_HEADER;
    return PD_FRAME_PAYLOAD;
}

enum pd_frame_event pd_frame_reader_next(struct pd_frame_reader *reader, struct pd_error *error)
{
    enum pd_frame_event event = PD_FRAME_MORE;
    switch (reader->state) {
    case STATE_HEADER:
        event = next_header(reader);
        break;
    case STATE_TRAILER:
        event = next_trailer(reader);
        break;
    case STATE_FAILED:
        event = PD_FRAME_FAILED;
        break;
    case STATE_WAIT_PLACE:
    case STATE_PAYLOAD:
        break;
    }
    if (event == PD_FRAME_FAILED && error != NULL) {
        *error = reader->error;
    }
    return event;
}

void pd_frame_reader_place(struct pd_frame_reader *reader, void *destination, uint64_t byte_count)
{
    PD_ASSERT(reader->state == STATE_WAIT_PLACE);
    PD_ASSERT(destination != NULL && byte_count > 0);
    PD_ASSERT(byte_count <= reader->prefix.payload_bytes - reader->payload_received);
    reader->destination = destination;
    reader->placed = reader->payload_received + byte_count;
    reader->state = STATE_PAYLOAD;
    drain_buffer(reader);
}

void pd_frame_reader_drop(struct pd_frame_reader *reader)
{
    if (reader->state != STATE_WAIT_PLACE && reader->state != STATE_PAYLOAD) {
        return;
    }
    reader->destination = NULL;
    reader->placed = reader->prefix.payload_bytes;
    reader->state = STATE_PAYLOAD;
    drain_buffer(reader);
}

const struct pd_message *pd_frame_reader_message(const struct pd_frame_reader *reader)
{
    return &reader->message;
}

uint64_t pd_frame_reader_payload_bytes(const struct pd_frame_reader *reader)
{
    return reader->prefix.payload_bytes;
}

uint64_t pd_frame_reader_payload_received(const struct pd_frame_reader *reader)
{
    return reader->payload_received;
}

bool pd_frame_reader_has_checksum(const struct pd_frame_reader *reader)
{
    return (reader->prefix.flags & PD_FRAME_FLAG_CHECKSUM) != 0;
}

bool pd_frame_reader_checksum_ok(const struct pd_frame_reader *reader)
{
    return reader->checksum_ok;
}

bool pd_frame_reader_waits(const struct pd_frame_reader *reader)
{
    return reader->state == STATE_WAIT_PLACE;
}

bool pd_frame_reader_idle(const struct pd_frame_reader *reader)
{
    return reader->state == STATE_HEADER && reader->begin == reader->end;
}

enum pd_status pd_frame_encode(uint8_t **out, size_t *out_bytes, const struct pd_message *message,
                               uint32_t flags, uint64_t payload_bytes, struct pd_error *error)
{
    *out = NULL;
    *out_bytes = 0;
    size_t header_bytes = pd_message_header_bytes(message);
    uint32_t header_bytes_max = pd_message_header_bytes_max(message->kind);
    if (header_bytes > header_bytes_max) {
        return pd_error_set(error, PD_ELIMIT, "%s: header of %zu bytes, at most %" PRIu32,
                            pd_message_kind_name(message->kind), header_bytes, header_bytes_max);
    }
    uint8_t *frame = pd_heap_zalloc(PD_PREFIX_BYTES + header_bytes, 1);
    if (frame == NULL) {
        return pd_error_set(error, PD_ENOMEM, "%s: frame of %zu bytes",
                            pd_message_kind_name(message->kind), PD_PREFIX_BYTES + header_bytes);
    }

    struct pd_prefix prefix = {
        .kind = message->kind,
        .header_bytes = (uint32_t)header_bytes,
        .flags = flags,
        .payload_bytes = payload_bytes,
    };
    pd_prefix_encode(&prefix, frame);
    enum pd_status status =
        pd_message_encode(message, frame + PD_PREFIX_BYTES, header_bytes, error);
    PD_ASSERT(status == PD_OK);
    *out = frame;
    *out_bytes = PD_PREFIX_BYTES + header_bytes;
    return PD_OK;
}
