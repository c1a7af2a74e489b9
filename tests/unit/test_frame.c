/* Tests of common/frame.c, and of the example in proto/README.md. */
#include "common/frame.h"

#include "common/heap.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STREAM_BYTES_MAX 200000

static struct pd_error error;
static uint8_t stream[STREAM_BYTES_MAX];
static size_t stream_bytes;
static struct pd_message message;

static struct pd_frame_reader *create(void)
{
    struct pd_frame_reader *reader = NULL;
    ck_assert_int_eq(pd_frame_reader_create(&reader, &error), PD_OK);
    return reader;
}

/* Append a push of `step` with a payload of that many bytes, each its index plus step. */
static void append_push(uint64_t step, size_t payload_bytes, bool with_checksum)
{
    uint8_t *frame = NULL;
    size_t frame_bytes = 0;
    memset(&message, 0, sizeof message);
    message.kind = PD_MESSAGE_PUSH;
    message.push.step = step;
    message.push.element_count = payload_bytes / 4;
    ck_assert_int_eq(pd_frame_encode(&frame, &frame_bytes, &message,
                                     with_checksum ? PD_FRAME_FLAG_CHECKSUM : 0, payload_bytes,
                                     &error),
                     PD_OK);
    uint8_t *begin = stream + stream_bytes;
    memcpy(begin, frame, frame_bytes);
    for (size_t i = 0; i < payload_bytes; i++) {
        begin[frame_bytes + i] = (uint8_t)(i + step);
    }
    stream_bytes += frame_bytes + payload_bytes;
    if (with_checksum) {
        uint64_t value = pd_checksum_add(PD_CHECKSUM_EMPTY, begin + PD_PREFIX_BYTES,
                                         frame_bytes - PD_PREFIX_BYTES + payload_bytes);
        for (int i = 0; i < 8; i++) {
            stream[stream_bytes++] = (uint8_t)(value >> (8 * i));
        }
    }
    pd_heap_free(frame);
}

/* What a stream held. */
struct seen {
    unsigned messages;
    unsigned payloads;
    unsigned bad_checksums;
    uint64_t step_sum;
    bool failed;
};

/* Take everything that is whole. Payloads go to `place`, or nowhere. */
static void take_events(struct pd_frame_reader *reader, uint8_t *place, struct seen *seen)
{
    for (;;) {
        switch (pd_frame_reader_next(reader, &error)) {
        case PD_FRAME_MORE:
            return;
        case PD_FRAME_FAILED:
            seen->failed = true;
            return;
        case PD_FRAME_MESSAGE:
            seen->messages++;
            seen->step_sum += pd_frame_reader_message(reader)->push.step;
            if (pd_frame_reader_payload_bytes(reader) > 0) {
                ck_assert(pd_frame_reader_waits(reader));
                if (place != NULL) {
                    pd_frame_reader_place(reader, place, pd_frame_reader_payload_bytes(reader));
                } else {
                    pd_frame_reader_drop(reader);
                }
            }
            break;
        case PD_FRAME_PAYLOAD:
            seen->payloads++;
            seen->bad_checksums += !pd_frame_reader_checksum_ok(reader);
            const struct pd_push *push = &pd_frame_reader_message(reader)->push;
            for (size_t i = 0; place != NULL && i < pd_frame_reader_payload_bytes(reader); i++) {
                if (place[i] != (uint8_t)(i + push->step) && pd_frame_reader_checksum_ok(reader)) {
                    ck_abort_msg("payload byte %zu is wrong", i);
                }
            }
            break;
        }
    }
}

/* Put `byte_count` bytes of the stream, or as many as there is room for, where the reader wants
 * them; returns how many. */
static size_t put(struct pd_frame_reader *reader, size_t offset, size_t byte_count)
{
    struct iovec rooms[PD_FRAME_PIECE_COUNT_MAX];
    size_t piece_count = pd_frame_reader_gather(reader, rooms);
    size_t done = 0;

    ck_assert_uint_gt(piece_count, 0);
    for (size_t i = 0; i < piece_count; i++) {
        size_t left = byte_count - done;
        size_t now = left < rooms[i].iov_len ? left : rooms[i].iov_len;
        ck_assert_uint_gt(rooms[i].iov_len, 0);
        ck_assert_uint_le(rooms[i].iov_len, PD_READ_BYTES_MAX);
        memcpy(rooms[i].iov_base, stream + offset + done, now);
        done += now;
    }
    pd_frame_reader_filled(reader, done);
    return done;
}

/* Feed the stream in pieces of at most `piece` bytes. */
static struct seen feed(struct pd_frame_reader *reader, size_t piece, uint8_t *place)
{
    struct seen seen = {0};
    for (size_t offset = 0; offset < stream_bytes && !seen.failed;) {
        size_t left = stream_bytes - offset;
        offset += put(reader, offset, piece < left ? piece : left);
        take_events(reader, place, &seen);
    }
    return seen;
}

static const size_t pieces[] = {1, 2, 7, 23, 24, 25, 1000, 4096, 65536, STREAM_BYTES_MAX};
#define PIECE_COUNT ((int)(sizeof pieces / sizeof pieces[0]))

static void make_stream(void)
{
    stream_bytes = 0;
    append_push(1, 0, false);
    append_push(2, 0, true);
    append_push(3, 40, true);
    append_push(4, 44, false);
    append_push(5, 100000, true);
    append_push(6, 0, false);
    append_push(7, 4, true);
}

START_TEST(frames_come_out_whole_however_the_stream_is_cut)
{
    static uint8_t place[100000];
    struct pd_frame_reader *reader = create();
    make_stream();
    struct seen seen = feed(reader, pieces[_i], place);
    ck_assert(!seen.failed);
    ck_assert_uint_eq(seen.messages, 7);
    ck_assert_uint_eq(seen.payloads, 4);
    ck_assert_uint_eq(seen.bad_checksums, 0);
    ck_assert_uint_eq(seen.step_sum, 28);
    ck_assert(pd_frame_reader_idle(reader));
    pd_frame_reader_destroy(reader);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(a_dropped_payload_does_not_disturb_the_stream)
{
    struct pd_frame_reader *reader = create();
    make_stream();
    struct seen seen = feed(reader, pieces[_i], NULL);
    ck_assert(!seen.failed);
    ck_assert_uint_eq(seen.messages, 7);
    ck_assert_uint_eq(seen.bad_checksums, 0);
    ck_assert(pd_frame_reader_idle(reader));
    pd_frame_reader_destroy(reader);
}
END_TEST

START_TEST(reading_takes_nothing_from_the_heap)
{
    static uint8_t place[100000];
    struct pd_frame_reader *reader = create();
    make_stream();
    size_t allocations = pd_heap_allocations();
    (void)feed(reader, 4096, place);
    (void)feed(reader, 4096, NULL);
    ck_assert_uint_eq(pd_heap_allocations(), allocations);
    pd_frame_reader_destroy(reader);
}
END_TEST

START_TEST(a_payload_is_read_straight_into_its_place)
{
    static uint8_t place[100000];
    struct pd_frame_reader *reader = create();
    struct iovec rooms[PD_FRAME_PIECE_COUNT_MAX];
    stream_bytes = 0;
    append_push(1, 100000, true);
    append_push(2, 0, true);
    size_t header_end = stream_bytes - 100000;
    header_end -= 2 * PD_CHECKSUM_BYTES + PD_PREFIX_BYTES + pd_message_header_bytes(&message);

    (void)put(reader, 0, header_end + 10);
    ck_assert_int_eq(pd_frame_reader_next(reader, &error), PD_FRAME_MESSAGE);
    ck_assert_int_eq(pd_frame_reader_next(reader, &error), PD_FRAME_MORE);
    ck_assert_uint_eq(pd_frame_reader_gather(reader, rooms), 0);

    pd_frame_reader_place(reader, place, 100000);
    ck_assert_uint_eq(pd_frame_reader_gather(reader, rooms), 2);
    ck_assert_ptr_eq(rooms[0].iov_base, place + 10);
    ck_assert_uint_eq(rooms[0].iov_len, 100000 - 10);
    ck_assert_uint_ge(rooms[1].iov_len, PD_HEADER_BYTES_MAX);
    ck_assert(!pd_frame_reader_idle(reader));

    /* The rest, its checksum and the next message come in one read. */
    size_t rest = stream_bytes - (header_end + 10);
    ck_assert_uint_eq(put(reader, header_end + 10, rest), rest);
    ck_assert_int_eq(pd_frame_reader_next(reader, &error), PD_FRAME_PAYLOAD);
    ck_assert(pd_frame_reader_checksum_ok(reader));
    ck_assert_int_eq(pd_frame_reader_next(reader, &error), PD_FRAME_MESSAGE);
    ck_assert_uint_eq(pd_frame_reader_message(reader)->push.step, 2);
    ck_assert(pd_frame_reader_idle(reader));
    pd_frame_reader_destroy(reader);
}
END_TEST

START_TEST(a_long_payload_is_read_in_parts_that_end_with_nothing_else)
{
    struct pd_frame_reader *reader = create();
    struct iovec rooms[PD_FRAME_PIECE_COUNT_MAX];
    uint8_t *place = malloc(PD_READ_BYTES_MAX + 1);
    struct pd_prefix prefix = {.kind = PD_MESSAGE_PUSH, .payload_bytes = PD_READ_BYTES_MAX + 1};
    pd_prefix_encode(&prefix, stream);

    (void)put(reader, 0, PD_PREFIX_BYTES);
    ck_assert_int_eq(pd_frame_reader_next(reader, &error), PD_FRAME_MESSAGE);
    pd_frame_reader_place(reader, place, PD_READ_BYTES_MAX + 1);
    ck_assert_uint_eq(pd_frame_reader_gather(reader, rooms), 1);
    ck_assert_uint_eq(rooms[0].iov_len, PD_READ_BYTES_MAX);
    memset(rooms[0].iov_base, 0, rooms[0].iov_len);
    pd_frame_reader_filled(reader, PD_READ_BYTES_MAX);
    ck_assert_uint_eq(pd_frame_reader_payload_received(reader), PD_READ_BYTES_MAX);
    ck_assert_uint_eq(pd_frame_reader_gather(reader, rooms), 2);
    ck_assert_uint_eq(rooms[0].iov_len, 1);
    pd_frame_reader_destroy(reader);
    free(place);
}
END_TEST

/* Part by part, of which the first is full by what came with the header; the rest is dropped. */
START_TEST(a_payload_goes_to_one_place_after_the_other)
{
    static uint8_t parts[3][4000];
    static const size_t sizes[3] = {8, 4000, 3000};
    struct pd_frame_reader *reader = create();
    struct iovec rooms[PD_FRAME_PIECE_COUNT_MAX];
    stream_bytes = 0;
    append_push(1, 10000, true);
    size_t position = stream_bytes - PD_CHECKSUM_BYTES - 10000 + 50;
    size_t received = 0;

    (void)put(reader, 0, position);
    ck_assert_int_eq(pd_frame_reader_next(reader, &error), PD_FRAME_MESSAGE);
    for (int part = 0; part < 3; part++) {
        ck_assert(pd_frame_reader_waits(reader));
        ck_assert_uint_eq(pd_frame_reader_gather(reader, rooms), 0);
        pd_frame_reader_place(reader, parts[part], sizes[part]);
        received += sizes[part];
        if (part > 0) {
            size_t left = received - (size_t)pd_frame_reader_payload_received(reader);
            ck_assert_uint_eq(put(reader, position, 10000), left);
            position += left;
        }
        ck_assert_uint_eq(pd_frame_reader_payload_received(reader), received);
        ck_assert_int_eq(pd_frame_reader_next(reader, &error), PD_FRAME_MORE);
        for (size_t i = 0; i < sizes[part]; i++) {
            ck_assert_uint_eq(parts[part][i], (uint8_t)(received - sizes[part] + i + 1));
        }
    }
    pd_frame_reader_drop(reader);
    ck_assert(!pd_frame_reader_waits(reader));
    (void)put(reader, position, stream_bytes - position);
    ck_assert_int_eq(pd_frame_reader_next(reader, &error), PD_FRAME_PAYLOAD);
    ck_assert(pd_frame_reader_checksum_ok(reader));
    pd_frame_reader_drop(reader);
    ck_assert(pd_frame_reader_idle(reader));
    pd_frame_reader_destroy(reader);
}
END_TEST

/* What is on its way to a place does not get there any more. */
START_TEST(a_payload_can_be_dropped_at_any_time)
{
    static uint8_t place[10000];
    struct pd_frame_reader *reader = create();
    stream_bytes = 0;
    append_push(1, 10000, true);
    size_t position = stream_bytes - PD_CHECKSUM_BYTES - 5000;

    (void)put(reader, 0, stream_bytes - PD_CHECKSUM_BYTES - 10000);
    ck_assert_int_eq(pd_frame_reader_next(reader, &error), PD_FRAME_MESSAGE);
    pd_frame_reader_place(reader, place, sizeof place);
    (void)put(reader, position - 5000, 5000);
    pd_frame_reader_drop(reader);
    while (position < stream_bytes) {
        position += put(reader, position, stream_bytes - position);
    }
    ck_assert_int_eq(pd_frame_reader_next(reader, &error), PD_FRAME_PAYLOAD);
    ck_assert(pd_frame_reader_checksum_ok(reader));
    ck_assert_uint_eq(place[4999], (uint8_t)(4999 + 1));
    ck_assert_uint_eq(place[5000], 0);
    pd_frame_reader_destroy(reader);
}
END_TEST

START_TEST(a_changed_payload_is_reported_and_the_stream_goes_on)
{
    static uint8_t place[4096];
    struct pd_frame_reader *reader = create();
    stream_bytes = 0;
    append_push(1, 400, true);
    stream[stream_bytes - 20] ^= 1;
    append_push(2, 400, true);
    struct seen seen = feed(reader, pieces[_i], place);
    ck_assert(!seen.failed);
    ck_assert_uint_eq(seen.payloads, 2);
    ck_assert_uint_eq(seen.bad_checksums, 1);
    pd_frame_reader_destroy(reader);
}
END_TEST

START_TEST(a_changed_header_without_payload_ends_the_stream)
{
    struct pd_frame_reader *reader = create();
    stream_bytes = 0;
    append_push(1, 0, true);
    stream[PD_PREFIX_BYTES + 1] ^= 2;
    struct seen seen = feed(reader, pieces[_i], NULL);
    ck_assert(seen.failed);
    ck_assert_uint_eq(seen.messages, 0);
    ck_assert_int_eq(error.status, PD_ECHECKSUM);
    pd_frame_reader_destroy(reader);
}
END_TEST

START_TEST(a_stream_cut_inside_a_frame_is_not_idle)
{
    static uint8_t place[4096];
    stream_bytes = 0;
    append_push(1, 100, true);
    size_t whole_bytes = stream_bytes;
    for (stream_bytes = 1; stream_bytes < whole_bytes; stream_bytes++) {
        struct pd_frame_reader *reader = create();
        (void)feed(reader, 16, place);
        ck_assert(!pd_frame_reader_idle(reader));
        pd_frame_reader_destroy(reader);
    }
}
END_TEST

START_TEST(a_long_registration_is_read_and_the_next_frame_too)
{
    struct pd_frame_reader *reader = create();
    uint8_t *frame = NULL;
    memset(&message, 0, sizeof message);
    message.kind = PD_MESSAGE_REGISTER;
    ck_assert_int_eq(pd_tensor_list_init(&message.registration.tensors, 2000, &error), PD_OK);
    for (unsigned i = 0; i < 2000; i++) {
        char name[32];
        int name_bytes = snprintf(name, sizeof name, "a.longer.name.%u", i);
        ck_assert_int_eq(pd_tensor_list_append(&message.registration.tensors, name,
                                               (size_t)name_bytes, 0, NULL, &error),
                         PD_OK);
    }
    ck_assert_int_eq(pd_frame_encode(&frame, &stream_bytes, &message, 0, 0, &error), PD_OK);
    ck_assert_uint_gt(stream_bytes, 10 * PD_HEADER_BYTES_MAX / 2);
    memcpy(stream, frame, stream_bytes);
    pd_heap_free(frame);
    pd_message_finish(&message);
    append_push(4, 0, true);

    struct seen seen = feed(reader, pieces[_i], NULL);
    ck_assert_uint_eq(seen.messages, 2);
    ck_assert_uint_eq(pd_frame_reader_message(reader)->push.step, 4);
    pd_frame_reader_destroy(reader);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

/* A valid prefix with one byte changed. */
static const struct {
    size_t offset;
    uint8_t value;
    enum pd_status status;
    const char *message;
} refusals[] = {
    {0, 'G', PD_EPROTOCOL, "frame: starts with 47 52 4d 44, not with 50 52 4d 44 (PRMD)"},
    {4, 2, PD_EVERSION, "frame: protocol version 2, this side speaks 1"},
    {6, 31, PD_EPROTOCOL, "frame: message kind 31 is unknown"},
    {7, 1, PD_EPROTOCOL, "frame: message kind 265 is unknown"},
    {12, 3, PD_EPROTOCOL, "frame: flags 0x3, allowed are 0x1"},
    {15, 0x80, PD_EPROTOCOL, "frame: flags 0x80000000, allowed are 0x1"},
    {10, 1, PD_ELIMIT, "push: header of 65536 bytes, at most 4096"},
};

START_TEST(a_bad_prefix_ends_the_stream_and_says_why)
{
    struct pd_frame_reader *reader = create();
    struct pd_prefix prefix = {.kind = PD_MESSAGE_PUSH};
    pd_prefix_encode(&prefix, stream);
    stream[refusals[_i].offset] = refusals[_i].value;
    stream_bytes = PD_PREFIX_BYTES;
    ck_assert(feed(reader, 24, NULL).failed);
    ck_assert_int_eq(error.status, refusals[_i].status);
    ck_assert_str_eq(error.message, refusals[_i].message);

    /* And stays ended. */
    struct iovec rooms[PD_FRAME_PIECE_COUNT_MAX];
    error = (struct pd_error){0};
    ck_assert_uint_eq(pd_frame_reader_gather(reader, rooms), 0);
    ck_assert_int_eq(pd_frame_reader_next(reader, &error), PD_FRAME_FAILED);
    ck_assert_str_eq(error.message, refusals[_i].message);
    pd_frame_reader_destroy(reader);
}
END_TEST

START_TEST(a_prefix_decodes_to_what_was_encoded)
{
    struct pd_prefix prefix = {PD_MESSAGE_ORDER, 131072, 1, 0x0123456789abcdefull};
    struct pd_prefix decoded;
    uint8_t bytes[PD_PREFIX_BYTES];
    pd_prefix_encode(&prefix, bytes);
    ck_assert_int_eq(pd_prefix_decode(&decoded, bytes, &error), PD_OK);
    ck_assert_uint_eq(decoded.kind, prefix.kind);
    ck_assert_uint_eq(decoded.header_bytes, prefix.header_bytes);
    ck_assert_uint_eq(decoded.flags, prefix.flags);
    ck_assert_uint_eq(decoded.payload_bytes, prefix.payload_bytes);
}
END_TEST

START_TEST(create_survives_each_failed_allocation)
{
    struct pd_frame_reader *reader = NULL;
    pd_heap_fail_at(_i);
    ck_assert_int_eq(pd_frame_reader_create(&reader, &error), PD_ENOMEM);
    ck_assert_ptr_null(reader);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(encode_survives_a_failed_allocation)
{
    uint8_t *frame = NULL;
    size_t frame_bytes = 0;
    message = (struct pd_message){.kind = PD_MESSAGE_PING};
    pd_heap_fail_at(0);
    ck_assert_int_eq(pd_frame_encode(&frame, &frame_bytes, &message, 0, 0, &error), PD_ENOMEM);
    ck_assert_ptr_null(frame);
}
END_TEST

/* Read the bytes between the lines "```hex" and "```" of the protocol's README: hexadecimal pairs,
 * then two spaces and words. */
static void read_example(void)
{
    FILE *file = fopen(PD_PROTO_README, "r");
    ck_assert_ptr_nonnull(file);
    char line[256];
    bool inside = false;
    stream_bytes = 0;
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "```", 3) == 0) {
            inside = strncmp(line, "```hex", 6) == 0;
            continue;
        }
        unsigned byte = 0;
        int used = 0;
        const char *rest = line;
        while (inside && strncmp(rest, "  ", 2) != 0 && sscanf(rest, " %2x%n", &byte, &used) == 1) {
            stream[stream_bytes++] = (uint8_t)byte;
            rest += used;
        }
    }
    (void)fclose(file);
}

START_TEST(the_example_in_the_protocol_readme_decodes_as_it_says)
{
    float place[3] = {0};
    struct pd_frame_reader *reader = create();
    read_example();
    ck_assert_uint_gt(stream_bytes, PD_PREFIX_BYTES);
    ck_assert_uint_eq(put(reader, 0, stream_bytes), stream_bytes);

    ck_assert_int_eq(pd_frame_reader_next(reader, &error), PD_FRAME_MESSAGE);
    const struct pd_message *example = pd_frame_reader_message(reader);
    ck_assert_int_eq(example->kind, PD_MESSAGE_PUSH);
    ck_assert_uint_eq(example->push.step, 7);
    ck_assert_uint_eq(example->push.micro_batch, 1);
    ck_assert(example->push.last);
    ck_assert_uint_eq(example->push.samples, 32);
    ck_assert(example->push.has_loss);
    ck_assert_double_eq(example->push.loss, 0.5);
    ck_assert_uint_eq(example->push.dtype, PD_DTYPE_FLOAT32);
    ck_assert_uint_eq(example->push.element_count, 3);
    ck_assert(example->push.pull);

    ck_assert_uint_eq(pd_frame_reader_payload_bytes(reader), sizeof place);
    pd_frame_reader_place(reader, place, sizeof place);
    ck_assert_int_eq(pd_frame_reader_next(reader, &error), PD_FRAME_PAYLOAD);
    ck_assert(pd_frame_reader_has_checksum(reader));
    ck_assert(pd_frame_reader_checksum_ok(reader));
    ck_assert_float_eq(place[0], 1.0f);
    ck_assert_float_eq(place[1], -2.0f);
    ck_assert_float_eq(place[2], 0.5f);
    ck_assert(pd_frame_reader_idle(reader));
    pd_frame_reader_destroy(reader);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("frame");
    TCase *cases = tcase_create("frame");
    tcase_set_timeout(cases, 60);
    tcase_add_loop_test(cases, frames_come_out_whole_however_the_stream_is_cut, 0, PIECE_COUNT);
    tcase_add_loop_test(cases, a_dropped_payload_does_not_disturb_the_stream, 0, PIECE_COUNT);
    tcase_add_test(cases, a_payload_goes_to_one_place_after_the_other);
    tcase_add_test(cases, a_payload_can_be_dropped_at_any_time);
    tcase_add_test(cases, reading_takes_nothing_from_the_heap);
    tcase_add_test(cases, a_payload_is_read_straight_into_its_place);
    tcase_add_test(cases, a_long_payload_is_read_in_parts_that_end_with_nothing_else);
    tcase_add_loop_test(cases, a_changed_payload_is_reported_and_the_stream_goes_on, 0,
                        PIECE_COUNT);
    tcase_add_loop_test(cases, a_changed_header_without_payload_ends_the_stream, 0, PIECE_COUNT);
    tcase_add_test(cases, a_stream_cut_inside_a_frame_is_not_idle);
    tcase_add_loop_test(cases, a_long_registration_is_read_and_the_next_frame_too, 0, PIECE_COUNT);
    tcase_add_loop_test(cases, a_bad_prefix_ends_the_stream_and_says_why, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_test(cases, a_prefix_decodes_to_what_was_encoded);
    tcase_add_loop_test(cases, create_survives_each_failed_allocation, 0, 2);
    tcase_add_test(cases, encode_survives_a_failed_allocation);
    tcase_add_test(cases, the_example_in_the_protocol_readme_decodes_as_it_says);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
