#include "server/io/send_queue.h"

#include "common/assert.h"
#include "common/heap.h"

#include <inttypes.h>
#include <string.h>

enum {
    FRAME_CAPACITY_FIRST = 8,
    BYTES_CAPACITY_FIRST = 1024,
    RUN_BYTES_MAX = 32 * 1024, /* of headers that leave together */
};

void pd_send_room_init(struct pd_send_room *room, void *bytes, size_t capacity_bytes)
{
    PD_ASSERT(capacity_bytes >= sizeof(uint16_t));
    memset(room, 0, sizeof *room);
    room->bytes = bytes;
    room->capacity_bytes = capacity_bytes;
}

void pd_send_room_clear(struct pd_send_room *room)
{
    room->end = room->begin;
}

void pd_send_room_freshen(struct pd_send_room *room, const struct pd_fresh *fresh)
{
    room->fresh = fresh != NULL ? *fresh : (struct pd_fresh){.payload = NULL};
}

/* Where the payload's bytes from `begin` on, as `dtype`, are fresh: up to `*end`, or to where they
 * are not. NULL: not there, and up to `*end`, or to where they are. */
static const void *find_fresh(const struct pd_fresh *fresh, const void *payload,
                              enum pd_dtype dtype, uint64_t begin, uint64_t *end)
{
    bool meets = fresh->payload == payload && fresh->dtype == dtype && begin < fresh->end &&
                 fresh->begin < *end;

    if (meets && begin < fresh->begin) {
        *end = fresh->begin;
        return NULL;
    }
    if (!meets) {
        return NULL;
    }
    *end = fresh->end < *end ? fresh->end : *end;
    return (const char *)fresh->bytes + (begin - fresh->begin);
}

/* Where to read float32: up to `*end`, or to where they are somewhere else. */
static const void *source(const struct pd_fresh *fresh, const void *payload, uint64_t begin,
                          uint64_t *end)
{
    const void *found = find_fresh(fresh, payload, PD_DTYPE_FLOAT32, begin, end);

    return found != NULL ? found : (const char *)payload + begin;
}

static bool holds(const struct pd_send_room *room, const void *payload, enum pd_dtype dtype,
                  uint64_t byte)
{
    return room->payload == payload && room->dtype == dtype && room->begin <= byte &&
           byte < room->end;
}

const uint8_t *pd_send_room_convert(struct pd_send_room *room, const void *payload,
                                    enum pd_dtype dtype, uint64_t begin, uint64_t *end)
{
    PD_ASSERT(begin < *end);
    if (dtype == PD_DTYPE_FLOAT32) {
        return source(&room->fresh, payload, begin, end);
    }
    const void *found = find_fresh(&room->fresh, payload, dtype, begin, end);
    if (found != NULL) {
        return found;
    }
    if (!holds(room, payload, dtype, begin)) {
        size_t element_bytes = pd_dtype_bytes(dtype);
        uint64_t first = begin / element_bytes;
        uint64_t count = (*end + element_bytes - 1) / element_bytes - first;
        if (count > room->capacity_bytes / element_bytes) {
            count = room->capacity_bytes / element_bytes;
        }
        uint64_t source_end = (first + count) * sizeof(float);
        const void *elements = source(&room->fresh, payload, first * sizeof(float), &source_end);
        count = source_end / sizeof(float) - first;
        pd_convert_from_float32(room->bytes, dtype, elements, count);
        room->payload = payload;
        room->dtype = dtype;
        room->begin = first * element_bytes;
        room->end = (first + count) * element_bytes;
    }
    *end = room->end < *end ? room->end : *end;
    return room->bytes + (begin - room->begin);
}

enum pd_status pd_send_queue_init(struct pd_send_queue *queue, struct pd_error *error)
{
    memset(queue, 0, sizeof *queue);
    queue->frames = pd_heap_zalloc(FRAME_CAPACITY_FIRST, sizeof *queue->frames);
    if (queue->frames == NULL) {
        goto fail;
    }
    queue->frame_capacity = FRAME_CAPACITY_FIRST;
    queue->bytes = pd_heap_zalloc(BYTES_CAPACITY_FIRST, 1);
    if (queue->bytes == NULL) {
        goto fail_frames;
    }
    queue->bytes_capacity = BYTES_CAPACITY_FIRST;
    return PD_OK;

fail_frames:
    pd_heap_free(queue->frames);
fail:
    memset(queue, 0, sizeof *queue);
    return pd_error_set(error, PD_ENOMEM, "send queue: out of memory");
}

void pd_send_queue_finish(struct pd_send_queue *queue)
{
    pd_heap_free(queue->bytes);
    pd_heap_free(queue->frames);
    memset(queue, 0, sizeof *queue);
}

/* Room for one more frame: a full ring is unrolled into one of twice the size. */
static enum pd_status grow_frames(struct pd_send_queue *queue, struct pd_error *error)
{
    if (queue->frame_count < queue->frame_capacity) {
        return PD_OK;
    }
    struct pd_send_frame *frames =
        pd_heap_zalloc((size_t)queue->frame_capacity * 2, sizeof *queue->frames);
    if (frames == NULL) {
        return pd_error_set(error, PD_ENOMEM, "send queue: %" PRIu32 " frames",
                            queue->frame_capacity * 2);
    }
    for (uint32_t i = 0; i < queue->frame_count; i++) {
        frames[i] = queue->frames[(queue->frame_begin + i) % queue->frame_capacity];
    }
    pd_heap_free(queue->frames);
    queue->frames = frames;
    queue->frame_begin = 0;
    queue->frame_capacity *= 2;
    return PD_OK;
}

/* Room for `byte_count` more bytes at bytes_end: what is queued moves to the front first. */
static enum pd_status grow_bytes(struct pd_send_queue *queue, size_t byte_count,
                                 struct pd_error *error)
{
    size_t used = queue->bytes_end - queue->bytes_begin;
    if (used + byte_count > PD_SEND_QUEUE_BYTES_MAX) {
        return pd_error_set(error, PD_ELIMIT, "the peer does not read: %zu bytes wait for it",
                            used);
    }
    if (queue->bytes_end + byte_count <= queue->bytes_capacity) {
        return PD_OK;
    }
    memmove(queue->bytes, queue->bytes + queue->bytes_begin, used);
    queue->bytes_begin = 0;
    queue->bytes_end = used;
    size_t capacity = queue->bytes_capacity;
    while (capacity < used + byte_count) {
        capacity *= 2;
    }
    if (capacity > queue->bytes_capacity) {
        uint8_t *bytes = pd_heap_realloc(queue->bytes, capacity);
        if (bytes == NULL) {
            return pd_error_set(error, PD_ENOMEM, "send queue: %zu bytes", capacity);
        }
        queue->bytes = bytes;
        queue->bytes_capacity = capacity;
    }
    return PD_OK;
}

/* So no element is converted before all of it may leave. */
static bool ends_with_an_element(const struct pd_send_frame *frame, uint64_t payload_bytes)
{
    return frame->payload_dtype == PD_DTYPE_FLOAT32 ||
           payload_bytes % pd_dtype_bytes(frame->payload_dtype) == 0;
}

enum pd_status pd_send_queue_push(struct pd_send_queue *queue, const struct pd_send_frame *frame,
                                  const uint8_t *bytes, struct pd_error *error)
{
    PD_ASSERT(frame->frame_bytes >= PD_PREFIX_BYTES);
    PD_ASSERT(frame->payload_bytes == 0 || frame->payload != NULL);
    PD_ASSERT(ends_with_an_element(frame, frame->payload_bytes));
    PD_ASSERT(ends_with_an_element(frame, frame->payload_ready));

    enum pd_status status = grow_frames(queue, error);
    if (status == PD_OK) {
        status = grow_bytes(queue, frame->frame_bytes, error);
    }
    if (status != PD_OK) {
        return status;
    }
    PD_ASSERT(queue->frame_count < queue->frame_capacity);
    memcpy(queue->bytes + queue->bytes_end, bytes, frame->frame_bytes);
    queue->bytes_end += frame->frame_bytes;
    queue->frames[(queue->frame_begin + queue->frame_count) % queue->frame_capacity] = *frame;
    queue->frame_count++;
    return PD_OK;
}

void pd_send_queue_release(struct pd_send_queue *queue, uint64_t payload_ready)
{
    for (uint32_t i = 0; i < queue->frame_count; i++) {
        struct pd_send_frame *frame =
            &queue->frames[(queue->frame_begin + i) % queue->frame_capacity];
        if (frame->payload_ready < frame->payload_bytes) {
            PD_ASSERT(payload_ready >= frame->payload_ready);
            PD_ASSERT(payload_ready <= frame->payload_bytes);
            PD_ASSERT(ends_with_an_element(frame, payload_ready));
            frame->payload_ready = payload_ready;
            return;
        }
    }
}

bool pd_send_queue_empty(const struct pd_send_queue *queue)
{
    return queue->frame_count == 0;
}

size_t pd_send_queue_bytes(const struct pd_send_queue *queue)
{
    return queue->bytes_end - queue->bytes_begin;
}

bool pd_send_queue_blocked(const struct pd_send_queue *queue)
{
    if (queue->frame_count == 0) {
        return true;
    }
    const struct pd_send_frame *frame = &queue->frames[queue->frame_begin];
    return frame->payload_ready < frame->payload_bytes &&
           queue->sent_bytes >= frame->frame_bytes + frame->payload_ready;
}

static uint64_t frame_bytes(const struct pd_send_frame *frame)
{
    return frame->frame_bytes + frame->payload_bytes + (frame->checksum ? PD_CHECKSUM_BYTES : 0);
}

uint64_t pd_send_queue_first_bytes(const struct pd_send_queue *queue)
{
    PD_ASSERT(queue->frame_count > 0);
    return frame_bytes(&queue->frames[queue->frame_begin]) - queue->sent_bytes;
}

static void set_trailer(struct pd_send_queue *queue, uint64_t sum)
{
    for (uint32_t i = 0; i < PD_CHECKSUM_BYTES; i++) {
        queue->trailer[i] = (uint8_t)(sum >> (8 * i));
    }
}

/* Add to the sum what has not been added yet of the header and of the payload up to the end of
 * `piece`, which are its bytes from `begin` up to `end`. */
static void sum_up_to(struct pd_send_queue *queue, const struct pd_send_frame *frame,
                      const uint8_t *piece, uint64_t begin, uint64_t end)
{
    const size_t header_bytes = frame->frame_bytes - PD_PREFIX_BYTES;
    if (frame->summed) {
        set_trailer(queue, frame->sum);
        return;
    }
    if (queue->sent_bytes == 0 && queue->summed_bytes == 0) {
        queue->sum = pd_checksum_add(
            PD_CHECKSUM_EMPTY, queue->bytes + queue->bytes_begin + PD_PREFIX_BYTES, header_bytes);
        queue->summed_bytes = header_bytes;
    }
    uint64_t payload_summed = queue->summed_bytes - header_bytes;
    if (end > payload_summed) {
        PD_ASSERT(payload_summed >= begin);
        queue->sum = pd_checksum_add(queue->sum, piece + (payload_summed - begin),
                                     (size_t)(end - payload_summed));
        queue->summed_bytes = header_bytes + end;
    }
    if (end == frame->payload_bytes) {
        set_trailer(queue, queue->sum);
    }
}

/* Bytes of the first frames that are headers alone; these lie one behind the other. */
static size_t run_bytes(const struct pd_send_queue *queue)
{
    size_t byte_count = 0;
    for (uint32_t i = 0; i < queue->frame_count && byte_count < RUN_BYTES_MAX; i++) {
        const struct pd_send_frame *frame =
            &queue->frames[(queue->frame_begin + i) % queue->frame_capacity];
        if (frame->payload_bytes > 0 || frame->checksum) {
            break;
        }
        byte_count += frame->frame_bytes;
    }
    return byte_count;
}

void pd_send_queue_peek(struct pd_send_queue *queue, struct pd_send_room *room,
                        struct pd_send_pieces *pieces)
{
    PD_ASSERT(!pd_send_queue_blocked(queue));
    const struct pd_send_frame *frame = &queue->frames[queue->frame_begin];
    memset(pieces, 0, sizeof *pieces);

    if (queue->sent_bytes < frame->frame_bytes) {
        size_t run = run_bytes(queue);
        pieces->header = queue->bytes + queue->bytes_begin + queue->sent_bytes;
        pieces->header_bytes = (run > 0 ? run : frame->frame_bytes) - (size_t)queue->sent_bytes;
    }
    uint64_t payload_sent =
        queue->sent_bytes > frame->frame_bytes ? queue->sent_bytes - frame->frame_bytes : 0;
    uint64_t payload_end = frame->payload_ready;
    if (payload_sent < frame->payload_ready) {
        if (payload_end - payload_sent > PD_WRITE_BYTES_MAX) {
            payload_end = payload_sent + PD_WRITE_BYTES_MAX;
        }
        pieces->payload = pd_send_room_convert(room, frame->payload, frame->payload_dtype,
                                               payload_sent, &payload_end);
        pieces->payload_bytes = (size_t)(payload_end - payload_sent);
        pieces->fleeting = pieces->payload != (const uint8_t *)frame->payload + payload_sent;
    }
    if (frame->checksum) {
        sum_up_to(queue, frame, pieces->payload, payload_sent, payload_end);
        if (payload_end == frame->payload_bytes) {
            uint64_t before = frame->frame_bytes + frame->payload_bytes;
            size_t trailer_sent =
                queue->sent_bytes > before ? (size_t)(queue->sent_bytes - before) : 0;
            pieces->trailer = queue->trailer + trailer_sent;
            pieces->trailer_bytes = PD_CHECKSUM_BYTES - trailer_sent;
        }
    }
}

/* The first frame has left. */
static void pop(struct pd_send_queue *queue)
{
    const struct pd_send_frame *frame = &queue->frames[queue->frame_begin];

    queue->sent_bytes -= frame_bytes(frame);
    queue->summed_bytes = 0;
    queue->bytes_begin += frame->frame_bytes;
    if (queue->bytes_begin == queue->bytes_end) {
        queue->bytes_begin = 0;
        queue->bytes_end = 0;
    }
    queue->frame_begin = (queue->frame_begin + 1) % queue->frame_capacity;
    queue->frame_count--;
}

bool pd_send_queue_advance(struct pd_send_queue *queue, size_t byte_count)
{
    bool had_payload = false;

    queue->sent_bytes += byte_count;
    while (queue->frame_count > 0 &&
           queue->sent_bytes >= frame_bytes(&queue->frames[queue->frame_begin])) {
        had_payload = had_payload || queue->frames[queue->frame_begin].payload_bytes > 0;
        pop(queue);
    }
    PD_ASSERT(queue->frame_count > 0 || queue->sent_bytes == 0);
    return had_payload;
}
