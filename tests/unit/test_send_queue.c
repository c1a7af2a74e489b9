#include "server/io/send_queue.h"

#include "common/heap.h"

#include <check.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { HEADER_BYTES = 40, PAYLOAD_BYTES = 3 * 1024 * 1024 + 5, ROOM_BYTES = 4098 };

static uint8_t header[HEADER_BYTES];
static uint8_t payload[PAYLOAD_BYTES];
static uint16_t room_bytes[ROOM_BYTES / 2];
static struct pd_send_room room = {.bytes = (uint8_t *)room_bytes, .capacity_bytes = ROOM_BYTES};

static void fill(void)
{
    for (size_t i = 0; i < HEADER_BYTES; i++) {
        header[i] = (uint8_t)(i + 1);
    }
    for (size_t i = 0; i < PAYLOAD_BYTES; i++) {
        payload[i] = (uint8_t)(i * 7 + i / 251);
    }
}

static void push(struct pd_send_queue *queue, uint64_t payload_bytes, bool checksum)
{
    struct pd_error error = {0};
    const struct pd_send_frame frame = {.frame_bytes = HEADER_BYTES,
                                        .payload = payload_bytes > 0 ? payload : NULL,
                                        .payload_bytes = payload_bytes,
                                        .payload_ready = payload_bytes,
                                        .checksum = checksum};
    ck_assert_int_eq(pd_send_queue_push(queue, &frame, header, &error), PD_OK);
}

/* Write up to `step` bytes of what peek offers to `out`; returns the bytes written. */
static size_t write_once(struct pd_send_queue *queue, uint8_t *out, size_t step, uint32_t *payloads)
{
    struct pd_send_pieces pieces;
    pd_send_queue_peek(queue, &room, &pieces);
    const uint8_t *starts[3] = {pieces.header, pieces.payload, pieces.trailer};
    const size_t counts[3] = {pieces.header_bytes, pieces.payload_bytes, pieces.trailer_bytes};
    size_t written = 0;
    for (int i = 0; i < 3 && written < step; i++) {
        size_t count = counts[i] < step - written ? counts[i] : step - written;
        if (count > 0) {
            memcpy(out + written, starts[i], count);
        }
        written += count;
    }
    ck_assert_uint_le(pieces.payload_bytes, PD_WRITE_BYTES_MAX);
    ck_assert_uint_gt(written, 0);
    *payloads += pd_send_queue_advance(queue, written) ? 1 : 0;
    return written;
}

/* Write up to `step` bytes at a time of what peek offers to `out`; returns the bytes written. */
static size_t drain(struct pd_send_queue *queue, uint8_t *out, size_t step, uint32_t *payloads)
{
    size_t total = 0;
    while (!pd_send_queue_blocked(queue)) {
        total += write_once(queue, out + total, step, payloads);
    }
    return total;
}

/* The header, a payload of those bytes, and the sum of both without the prefix. */
static void expect_frame(const uint8_t *out, size_t byte_count, const uint8_t *bytes,
                         size_t payload_bytes)
{
    ck_assert_uint_eq(byte_count, HEADER_BYTES + payload_bytes + 8);
    ck_assert_mem_eq(out, header, HEADER_BYTES);
    ck_assert_mem_eq(out + HEADER_BYTES, bytes, payload_bytes);
    uint64_t sum = pd_checksum_add(PD_CHECKSUM_EMPTY, out + PD_PREFIX_BYTES,
                                   HEADER_BYTES - PD_PREFIX_BYTES + payload_bytes);
    for (int i = 0; i < 8; i++) {
        ck_assert_uint_eq(out[HEADER_BYTES + payload_bytes + i], (uint8_t)(sum >> (8 * i)));
    }
}

/* What is held back stays until it is released; the bytes and their sum are the same then. */
START_TEST(payload_leaves_as_far_as_it_is_released)
{
    static const uint64_t released[] = {1, 70000, 70000, PAYLOAD_BYTES - 1, PAYLOAD_BYTES};
    struct pd_send_queue queue;
    struct pd_error error = {0};
    struct pd_send_frame frame = {.frame_bytes = HEADER_BYTES,
                                  .payload = payload,
                                  .payload_bytes = PAYLOAD_BYTES,
                                  .checksum = true};
    uint8_t *at_once = malloc(PAYLOAD_BYTES + HEADER_BYTES + 8);
    uint8_t *in_parts = malloc(PAYLOAD_BYTES + 2 * HEADER_BYTES + 8);
    uint32_t payloads = 0;
    fill();
    ck_assert_int_eq(pd_send_queue_init(&queue, &error), PD_OK);
    push(&queue, PAYLOAD_BYTES, true);
    size_t total = drain(&queue, at_once, 65536, &payloads);

    ck_assert_int_eq(pd_send_queue_push(&queue, &frame, header, &error), PD_OK);
    push(&queue, 0, false);
    size_t sent = drain(&queue, in_parts, 65536, &payloads);
    ck_assert_uint_eq(sent, HEADER_BYTES);
    for (size_t i = 0; i < sizeof released / sizeof released[0]; i++) {
        ck_assert(pd_send_queue_blocked(&queue));
        ck_assert(!pd_send_queue_empty(&queue));
        ck_assert_uint_eq(payloads, 1);
        pd_send_queue_release(&queue, released[i]);
        sent += drain(&queue, in_parts + sent, 65536, &payloads);
    }
    ck_assert_uint_eq(payloads, 2);
    ck_assert_uint_eq(sent, total + HEADER_BYTES);
    ck_assert_mem_eq(in_parts, at_once, total);
    pd_send_queue_release(&queue, PAYLOAD_BYTES);
    pd_send_queue_finish(&queue);
    free(at_once);
    free(in_parts);
}
END_TEST

/* Whatever the socket takes at a time, the bytes are the same and the sum is that of header and
 * payload without the prefix. */
START_TEST(any_pieces_make_the_same_frame)
{
    static const size_t steps[] = {1u << 30, 1000003, 65536, 4099};
    struct pd_send_queue queue;
    struct pd_error error = {0};
    uint8_t *out = malloc(PAYLOAD_BYTES + HEADER_BYTES + 8);
    uint32_t payloads = 0;
    fill();
    ck_assert_int_eq(pd_send_queue_init(&queue, &error), PD_OK);

    push(&queue, PAYLOAD_BYTES, true);
    size_t total = drain(&queue, out, steps[_i], &payloads);

    ck_assert_uint_eq(payloads, 1);
    expect_frame(out, total, payload, PAYLOAD_BYTES);
    pd_send_queue_finish(&queue);
    free(out);
}
END_TEST

/* ---- Converted ---- */

enum { ELEMENT_COUNT = 50001, CONVERTED_BYTES = 2 * ELEMENT_COUNT };

static float elements[ELEMENT_COUNT];
static uint8_t converted[CONVERTED_BYTES];

static void fill_elements(enum pd_dtype dtype)
{
    for (size_t i = 0; i < ELEMENT_COUNT; i++) {
        elements[i] = (float)(i % 1009) * 0.3f - 100;
    }
    pd_convert_from_float32(converted, dtype, elements, ELEMENT_COUNT);
    pd_send_room_clear(&room);
}

static const struct pd_send_frame *frame_of_elements(enum pd_dtype dtype, uint64_t payload_ready)
{
    static struct pd_send_frame frame;
    frame = (struct pd_send_frame){.frame_bytes = HEADER_BYTES,
                                   .payload = elements,
                                   .payload_dtype = dtype,
                                   .payload_bytes = CONVERTED_BYTES,
                                   .payload_ready = payload_ready,
                                   .checksum = true};
    return &frame;
}

/* Whatever the socket takes at a time, an odd number of bytes, too, and whatever part of the
 * payload is final. */
START_TEST(any_pieces_make_the_same_converted_frame)
{
    static const size_t steps[] = {1u << 30, 65536, 4099, 333};
    static const uint64_t released[] = {2, 5000, 5000, CONVERTED_BYTES - 2, CONVERTED_BYTES};
    static uint8_t out[HEADER_BYTES + CONVERTED_BYTES + 8];
    enum pd_dtype dtype = _i % 2 == 0 ? PD_DTYPE_BFLOAT16 : PD_DTYPE_FLOAT16;
    struct pd_send_queue queue;
    struct pd_error error = {0};
    uint32_t payloads = 0;
    fill();
    fill_elements(dtype);
    ck_assert_int_eq(pd_send_queue_init(&queue, &error), PD_OK);
    ck_assert_int_eq(pd_send_queue_push(&queue, frame_of_elements(dtype, 0), header, &error),
                     PD_OK);
    size_t sent = drain(&queue, out, steps[_i / 2], &payloads);
    ck_assert_uint_eq(sent, HEADER_BYTES);
    for (size_t i = 0; i < sizeof released / sizeof released[0]; i++) {
        pd_send_queue_release(&queue, released[i]);
        sent += drain(&queue, out + sent, steps[_i / 2], &payloads);
    }
    ck_assert_uint_eq(payloads, 1);
    expect_frame(out, sent, converted, CONVERTED_BYTES);
    pd_send_queue_finish(&queue);
}
END_TEST

/* Two queues take turns with one room, at different places of the payload and in different types.
 */
START_TEST(queues_share_a_room)
{
    static uint8_t outs[2][HEADER_BYTES + CONVERTED_BYTES + 8];
    static const enum pd_dtype dtypes[] = {PD_DTYPE_BFLOAT16, PD_DTYPE_FLOAT16};
    struct pd_send_queue queues[2];
    struct pd_error error = {0};
    size_t sent[2] = {0};
    uint32_t payloads = 0;
    fill();
    for (int i = 0; i < 2; i++) {
        const struct pd_send_frame *frame = frame_of_elements(dtypes[i], CONVERTED_BYTES);
        ck_assert_int_eq(pd_send_queue_init(&queues[i], &error), PD_OK);
        ck_assert_int_eq(pd_send_queue_push(&queues[i], frame, header, &error), PD_OK);
    }
    fill_elements(PD_DTYPE_BFLOAT16);
    for (size_t turn = 0; !pd_send_queue_empty(&queues[0]) || !pd_send_queue_empty(&queues[1]);
         turn++) {
        size_t which = turn % 3 == 0 ? 0 : 1;
        if (!pd_send_queue_empty(&queues[which])) {
            size_t step = turn % 2 == 0 ? 1001 : 4000;
            sent[which] += write_once(&queues[which], outs[which] + sent[which], step, &payloads);
        }
    }
    for (int i = 0; i < 2; i++) {
        pd_convert_from_float32(converted, dtypes[i], elements, ELEMENT_COUNT);
        expect_frame(outs[i], sent[i], converted, CONVERTED_BYTES);
        pd_send_queue_finish(&queues[i]);
    }
}
END_TEST

/* What the room holds is not converted again, until it is cleared. */
START_TEST(what_several_are_sent_alike_is_converted_once)
{
    uint64_t ends[3] = {CONVERTED_BYTES, CONVERTED_BYTES, CONVERTED_BYTES};
    fill_elements(PD_DTYPE_BFLOAT16);

    (void)pd_send_room_convert(&room, elements, PD_DTYPE_BFLOAT16, 1001, &ends[0]);
    elements[501] = 42;
    const uint8_t *again = pd_send_room_convert(&room, elements, PD_DTYPE_BFLOAT16, 1002, &ends[1]);
    ck_assert_mem_eq(again, converted + 1002, ends[1] - 1002);
    pd_send_room_clear(&room);
    again = pd_send_room_convert(&room, elements, PD_DTYPE_BFLOAT16, 1002, &ends[2]);
    pd_convert_from_float32(converted, PD_DTYPE_BFLOAT16, elements, ELEMENT_COUNT);
    ck_assert_mem_eq(again, converted + 1002, ends[2] - 1002);

    ck_assert_uint_eq(ends[0], 1000 + ROOM_BYTES);
    ck_assert_uint_eq(ends[1], ends[0]);
    ck_assert_uint_eq(ends[2], 1002 + ROOM_BYTES);
}
END_TEST

START_TEST(element_is_never_released_in_part)
{
    struct pd_send_queue queue;
    struct pd_error error = {0};
    ck_assert_int_eq(pd_send_queue_init(&queue, &error), PD_OK);
    ck_assert_int_eq(
        pd_send_queue_push(&queue, frame_of_elements(PD_DTYPE_FLOAT16, 0), header, &error), PD_OK);
    pd_send_queue_release(&queue, 3);
}
END_TEST

/* ---- Fresh ---- */

enum { FRESH_BEGIN = 70001, FRESH_END = FRESH_BEGIN + PD_WRITE_BYTES_MAX + 5000 };

static uint8_t copy[FRESH_END - FRESH_BEGIN];

/* A queue with one frame, of whose payload a part is fresh. */
static void begin_fresh(struct pd_send_queue *queue)
{
    struct pd_error error = {0};
    const struct pd_fresh fresh = {
        .payload = payload, .bytes = copy, .begin = FRESH_BEGIN, .end = FRESH_END};

    fill();
    memcpy(copy, payload + FRESH_BEGIN, sizeof copy);
    pd_send_room_freshen(&room, &fresh);
    ck_assert_int_eq(pd_send_queue_init(queue, &error), PD_OK);
    push(queue, PAYLOAD_BYTES, true);
}

/* The payload has something else there, so that nobody can have read it: whatever the socket takes
 * at a time, what leaves and is summed is the copy. */
START_TEST(what_is_fresh_leaves_from_the_copy)
{
    static const size_t steps[] = {1u << 30, 1000003, 65536, 4099};
    struct pd_send_queue queue;
    uint8_t *out = malloc(PAYLOAD_BYTES + HEADER_BYTES + 8);
    uint32_t payloads = 0;
    begin_fresh(&queue);
    memset(payload + FRESH_BEGIN, 0, sizeof copy);

    size_t total = drain(&queue, out, steps[_i], &payloads);

    ck_assert_uint_eq(payloads, 1);
    fill();
    expect_frame(out, total, payload, PAYLOAD_BYTES);
    pd_send_room_freshen(&room, NULL);
    pd_send_queue_finish(&queue);
    free(out);
}
END_TEST

/* The socket takes a part of what is fresh: once the copy is gone all of the rest leaves from the
 * payload, though the sum has gone over some of it before. */
START_TEST(what_does_not_leave_while_it_is_fresh_leaves_from_the_payload)
{
    static const size_t taken[] = {FRESH_BEGIN, FRESH_BEGIN + 12345};
    struct pd_send_queue queue;
    struct pd_send_pieces pieces;
    uint8_t *out = malloc(PAYLOAD_BYTES + HEADER_BYTES + 8);
    uint32_t payloads = 0;
    begin_fresh(&queue);

    pd_send_queue_peek(&queue, &room, &pieces);
    ck_assert(!pieces.fleeting);
    ck_assert_uint_eq(pieces.payload_bytes, FRESH_BEGIN);
    size_t total = write_once(&queue, out, 1u << 30, &payloads);
    if (taken[_i] > FRESH_BEGIN) {
        total += write_once(&queue, out + total, taken[_i] - FRESH_BEGIN, &payloads);
    }
    pd_send_queue_peek(&queue, &room, &pieces);
    ck_assert(pieces.fleeting);
    ck_assert_ptr_eq(pieces.payload, copy + taken[_i] - FRESH_BEGIN);
    pd_send_room_freshen(&room, NULL);
    memset(copy, 0, sizeof copy);
    pd_send_queue_peek(&queue, &room, &pieces);
    ck_assert(!pieces.fleeting);
    total += drain(&queue, out + total, 65536, &payloads);

    expect_frame(out, total, payload, PAYLOAD_BYTES);
    pd_send_queue_finish(&queue);
    free(out);
}
END_TEST

/* Such as the version before, which is still being sent. */
START_TEST(what_is_fresh_of_another_payload_is_left_alone)
{
    const struct pd_fresh fresh = {
        .payload = header, .bytes = copy, .begin = FRESH_BEGIN, .end = FRESH_END};
    struct pd_send_queue queue;
    uint8_t *out = malloc(PAYLOAD_BYTES + HEADER_BYTES + 8);
    uint32_t payloads = 0;
    begin_fresh(&queue);
    memset(copy, 0, sizeof copy);
    pd_send_room_freshen(&room, &fresh);

    size_t total = drain(&queue, out, 65536, &payloads);

    expect_frame(out, total, payload, PAYLOAD_BYTES);
    pd_send_room_freshen(&room, NULL);
    pd_send_queue_finish(&queue);
    free(out);
}
END_TEST

/* In the middle of what fits into the room, and again. */
START_TEST(what_is_fresh_is_converted_from_the_copy)
{
    enum { FIRST = 1000, COUNT = ROOM_BYTES };
    static uint8_t out[HEADER_BYTES + CONVERTED_BYTES + 8];
    static float fresh_elements[COUNT];
    const struct pd_fresh fresh = {.payload = elements,
                                   .bytes = fresh_elements,
                                   .begin = FIRST * sizeof(float),
                                   .end = (FIRST + COUNT) * sizeof(float)};
    struct pd_send_queue queue;
    struct pd_error error = {0};
    uint32_t payloads = 0;
    fill();
    fill_elements(PD_DTYPE_BFLOAT16);
    memcpy(fresh_elements, elements + FIRST, sizeof fresh_elements);
    memset(elements + FIRST, 0, sizeof fresh_elements);
    pd_send_room_freshen(&room, &fresh);
    ck_assert_int_eq(pd_send_queue_init(&queue, &error), PD_OK);
    ck_assert_int_eq(pd_send_queue_push(&queue,
                                        frame_of_elements(PD_DTYPE_BFLOAT16, CONVERTED_BYTES),
                                        header, &error),
                     PD_OK);

    size_t total = drain(&queue, out, _i == 0 ? sizeof out : 333, &payloads);

    expect_frame(out, total, converted, CONVERTED_BYTES);
    pd_send_room_freshen(&room, NULL);
    pd_send_queue_finish(&queue);
}
END_TEST

/* In the type it goes out in it is not converted; in another one it is not used. */
START_TEST(what_is_fresh_in_16_bits_leaves_as_that_alone)
{
    enum { FIRST = 1000, COUNT = ROOM_BYTES };
    static uint8_t out[HEADER_BYTES + CONVERTED_BYTES + 8];
    static uint16_t fresh_elements[COUNT];
    bool used = _i < 2;
    const struct pd_fresh fresh = {.payload = elements,
                                   .dtype = used ? PD_DTYPE_BFLOAT16 : PD_DTYPE_FLOAT16,
                                   .bytes = fresh_elements,
                                   .begin = FIRST * sizeof(uint16_t),
                                   .end = (FIRST + COUNT) * sizeof(uint16_t)};
    struct pd_send_queue queue;
    struct pd_error error = {0};
    uint32_t payloads = 0;
    uint64_t end = ELEMENT_COUNT * sizeof(float);
    fill();
    fill_elements(PD_DTYPE_BFLOAT16);
    memset(fresh_elements, 0, sizeof fresh_elements);
    if (used) {
        memcpy(fresh_elements, converted + fresh.begin, sizeof fresh_elements);
    }
    pd_send_room_freshen(&room, &fresh);
    ck_assert_ptr_eq(pd_send_room_convert(&room, elements, PD_DTYPE_FLOAT32, fresh.begin, &end),
                     (const uint8_t *)elements + fresh.begin);
    ck_assert_uint_eq(end, ELEMENT_COUNT * sizeof(float));
    if (used) {
        memset(elements + FIRST, 0, COUNT * sizeof *elements); /* nobody can have read it there */
    }
    ck_assert_int_eq(pd_send_queue_init(&queue, &error), PD_OK);
    ck_assert_int_eq(pd_send_queue_push(&queue,
                                        frame_of_elements(PD_DTYPE_BFLOAT16, CONVERTED_BYTES),
                                        header, &error),
                     PD_OK);

    size_t total = drain(&queue, out, _i % 2 == 0 ? sizeof out : 333, &payloads);

    expect_frame(out, total, converted, CONVERTED_BYTES);
    pd_send_room_freshen(&room, NULL);
    pd_send_queue_finish(&queue);
}
END_TEST

/* ---- Sums and headers ---- */

/* Whatever the socket takes at a time, a checksum that comes with a frame is the one behind it. */
START_TEST(known_checksum_is_not_taken_again)
{
    struct pd_send_queue queue;
    struct pd_error error = {0};
    uint8_t out[HEADER_BYTES + 1000 + 8];
    uint32_t payloads = 0;
    const struct pd_send_frame frame = {.frame_bytes = HEADER_BYTES,
                                        .payload = payload,
                                        .payload_bytes = 1000,
                                        .payload_ready = 1000,
                                        .checksum = true,
                                        .summed = true,
                                        .sum = 0x0807060504030201u};
    ck_assert_int_eq(pd_send_queue_init(&queue, &error), PD_OK);

    ck_assert_int_eq(pd_send_queue_push(&queue, &frame, header, &error), PD_OK);
    ck_assert_uint_eq(drain(&queue, out, _i == 0 ? sizeof out : 7, &payloads), sizeof out);

    for (uint8_t i = 0; i < 8; i++) {
        ck_assert_uint_eq(out[HEADER_BYTES + 1000 + i], i + 1);
    }
    pd_send_queue_finish(&queue);
}
END_TEST

/* Headers that nothing lies between are one piece, however much of it the socket takes. */
START_TEST(headers_alone_leave_together)
{
    enum { FIRST = 3, ALL = FIRST + 2 };
    struct pd_send_queue queue;
    struct pd_error error = {0};
    struct pd_send_pieces pieces;
    uint8_t out[ALL * HEADER_BYTES + 100 + 8];
    uint32_t payloads = 0;
    fill();
    ck_assert_int_eq(pd_send_queue_init(&queue, &error), PD_OK);
    for (int i = 0; i < FIRST; i++) {
        push(&queue, 0, false);
    }
    push(&queue, 100, true);
    push(&queue, 0, false);

    pd_send_queue_peek(&queue, &room, &pieces);
    ck_assert_uint_eq(pieces.header_bytes, FIRST * HEADER_BYTES);
    ck_assert_uint_eq(pieces.payload_bytes + pieces.trailer_bytes, 0);
    ck_assert_uint_eq(drain(&queue, out, _i == 0 ? sizeof out : 2 * HEADER_BYTES + 7, &payloads),
                      sizeof out);

    ck_assert_uint_eq(payloads, 1);
    for (int i = 0; i < ALL; i++) {
        ck_assert_mem_eq(out + i * HEADER_BYTES + (i > FIRST ? 108 : 0), header, HEADER_BYTES);
    }
    pd_send_queue_finish(&queue);
}
END_TEST

/* The ring wraps and grows, headers move to the front: order and contents stay. */
START_TEST(frames_leave_in_the_order_they_came)
{
    struct pd_send_queue queue;
    struct pd_error error = {0};
    uint8_t out[HEADER_BYTES];
    uint32_t pushed = 0;
    uint32_t taken = 0;
    ck_assert_int_eq(pd_send_queue_init(&queue, &error), PD_OK);

    while (taken < 3000) {
        for (int i = 0; i < 7 && pushed < 3000; i++) {
            memset(header, (int)(pushed % 251), sizeof header);
            push(&queue, 0, false);
            pushed++;
        }
        for (int i = 0; i < 5 && !pd_send_queue_empty(&queue); i++) {
            struct pd_send_pieces pieces;
            pd_send_queue_peek(&queue, &room, &pieces);
            ck_assert_uint_ge(pieces.header_bytes, HEADER_BYTES);
            memset(out, (int)(taken % 251), sizeof out);
            ck_assert_mem_eq(pieces.header, out, HEADER_BYTES);
            ck_assert(!pd_send_queue_advance(&queue, HEADER_BYTES));
            taken++;
        }
    }
    pd_send_queue_finish(&queue);
}
END_TEST

START_TEST(a_peer_that_reads_nothing_is_given_up_at_the_limit)
{
    struct pd_send_queue queue;
    struct pd_error error = {0};
    const size_t big_bytes = 1u << 20;
    uint8_t *big = calloc(1, big_bytes);
    const struct pd_send_frame frame = {.frame_bytes = big_bytes};
    ck_assert_int_eq(pd_send_queue_init(&queue, &error), PD_OK);

    for (size_t i = 0; i < PD_SEND_QUEUE_BYTES_MAX / big_bytes; i++) {
        ck_assert_int_eq(pd_send_queue_push(&queue, &frame, big, &error), PD_OK);
    }

    ck_assert_int_eq(pd_send_queue_push(&queue, &frame, big, &error), PD_ELIMIT);
    ck_assert_str_eq(error.message, "the peer does not read: 67108864 bytes wait for it");
    pd_send_queue_finish(&queue);
    free(big);
}
END_TEST

START_TEST(nothing_is_allocated_once_it_has_held_as_much)
{
    struct pd_send_queue queue;
    struct pd_error error = {0};
    static uint8_t out[HEADER_BYTES * 64 + 64 * 1032];
    uint32_t payloads = 0;
    size_t allocations = 0;
    ck_assert_int_eq(pd_send_queue_init(&queue, &error), PD_OK);

    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 64; i++) {
            push(&queue, 1000, true);
        }
        (void)drain(&queue, out, 1u << 20, &payloads);
        if (round == 0) {
            allocations = pd_heap_allocations();
        }
    }

    ck_assert_uint_eq(pd_heap_allocations(), allocations);
    ck_assert_uint_eq(payloads, 640);
    pd_send_queue_finish(&queue);
}
END_TEST

START_TEST(each_failed_allocation_is_told_and_undone)
{
    struct pd_send_queue queue;
    struct pd_error error = {0};
    size_t live = pd_heap_blocks_live();

    pd_heap_fail_at(_i);

    ck_assert_int_eq(pd_send_queue_init(&queue, &error), PD_ENOMEM);
    ck_assert_str_eq(error.message, "send queue: out of memory");
    ck_assert_uint_eq(pd_heap_blocks_live(), live);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("send_queue");
    TCase *tcase = tcase_create("send_queue");
    tcase_add_test(tcase, payload_leaves_as_far_as_it_is_released);
    tcase_add_loop_test(tcase, any_pieces_make_the_same_frame, 0, 4);
    tcase_add_loop_test(tcase, any_pieces_make_the_same_converted_frame, 0, 8);
    tcase_add_test(tcase, queues_share_a_room);
    tcase_add_test(tcase, what_several_are_sent_alike_is_converted_once);
    tcase_add_test_raise_signal(tcase, element_is_never_released_in_part, SIGABRT);
    tcase_add_loop_test(tcase, what_is_fresh_leaves_from_the_copy, 0, 4);
    tcase_add_loop_test(tcase, what_does_not_leave_while_it_is_fresh_leaves_from_the_payload, 0, 2);
    tcase_add_test(tcase, what_is_fresh_of_another_payload_is_left_alone);
    tcase_add_loop_test(tcase, what_is_fresh_is_converted_from_the_copy, 0, 2);
    tcase_add_loop_test(tcase, what_is_fresh_in_16_bits_leaves_as_that_alone, 0, 4);
    tcase_add_loop_test(tcase, known_checksum_is_not_taken_again, 0, 2);
    tcase_add_loop_test(tcase, headers_alone_leave_together, 0, 2);
    tcase_add_test(tcase, frames_leave_in_the_order_they_came);
    tcase_add_test(tcase, a_peer_that_reads_nothing_is_given_up_at_the_limit);
    tcase_add_test(tcase, nothing_is_allocated_once_it_has_held_as_much);
    tcase_add_loop_test(tcase, each_failed_allocation_is_told_and_undone, 0, 2);
    suite_add_tcase(suite, tcase);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
