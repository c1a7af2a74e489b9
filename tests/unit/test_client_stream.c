/* Frames with scattered payloads: what goes into a sender comes out of a receiver, however the
 * bytes are cut on the way. */
#include "client/stream.h"

#include "common/heap.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tensors of awkward lengths, so that pieces end in all places; one longer than a read. */
static const uint64_t lengths[] = {1, 3, 70001, 2, 1, 7, 130000, 5};
#define TENSOR_COUNT (sizeof lengths / sizeof lengths[0])
#define ELEMENT_COUNT_MAX 200100u

static struct pd_tensor_list model;
static float *sources[TENSOR_COUNT];
static float *targets[TENSOR_COUNT];
static uint8_t wire[ELEMENT_COUNT_MAX * 4 + 4096];
static size_t wire_bytes;
static struct pd_sender sender;
static struct pd_receiver receiver;
static struct pd_error error;
static uint64_t random_state;
static bool lent;     /* whether any of what was sent could be */
static bool streamed; /* whether what is received is written past the caches */

static uint32_t random_below(uint32_t limit)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % limit;
}

static void setup(void)
{
    random_state = 1;
    streamed = false;
    ck_assert_int_eq(pd_tensor_list_init(&model, TENSOR_COUNT, &error), PD_OK);
    for (uint32_t t = 0; t < TENSOR_COUNT; t++) {
        char name[8];
        int bytes = snprintf(name, sizeof name, "t%u", t);
        ck_assert_int_eq(pd_tensor_list_append(&model, name, (size_t)bytes, 1, &lengths[t], &error),
                         PD_OK);
        sources[t] = pd_heap_zalloc(lengths[t], sizeof(float));
        targets[t] = pd_heap_zalloc(lengths[t], sizeof(float));
        for (uint64_t i = 0; i < lengths[t]; i++) {
            /* Exact in all types. */
            sources[t][i] = (float)((int)random_below(255) - 127);
        }
    }
    ck_assert_uint_le(model.element_count, ELEMENT_COUNT_MAX);
    pd_sender_init(&sender);
    ck_assert_int_eq(pd_receiver_init(&receiver, &error), PD_OK);
    wire_bytes = 0;
}

static void teardown(void)
{
    pd_sender_finish(&sender);
    pd_receiver_finish(&receiver);
    pd_tensor_list_finish(&model);
    for (uint32_t t = 0; t < TENSOR_COUNT; t++) {
        pd_heap_free(sources[t]);
        pd_heap_free(targets[t]);
    }
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

static size_t copy_out(const struct iovec *pieces, size_t piece_count, size_t limit)
{
    size_t taken = 0;

    for (size_t i = 0; i < piece_count && taken < limit; i++) {
        size_t now = pieces[i].iov_len < limit - taken ? pieces[i].iov_len : limit - taken;
        memcpy(wire + wire_bytes + taken, pieces[i].iov_base, now);
        taken += now;
    }
    return taken;
}

/* Whether all of these pieces lie in the sources. */
static bool in_sources(const struct iovec *pieces, size_t piece_count)
{
    for (size_t i = 0; i < piece_count; i++) {
        const char *begin = pieces[i].iov_base;
        uint32_t t = 0;
        while (t < TENSOR_COUNT && (begin < (const char *)sources[t] ||
                                    begin >= (const char *)(sources[t] + lengths[t]))) {
            t++;
        }
        if (t == TENSOR_COUNT) {
            return false;
        }
    }
    return true;
}

/* Send a push of the given range into `wire`, in portions of at most `portion` bytes. */
static void send_push(uint64_t begin, uint64_t count, enum pd_dtype dtype, bool checksum,
                      uint32_t portion)
{
    struct pd_message message = {
        .kind = PD_MESSAGE_PUSH,
        .push = {.step = 3, .dtype = dtype, .element_begin = begin, .element_count = count}};
    struct pd_payload payload;
    struct iovec pieces[PD_STREAM_PIECE_COUNT_MAX];

    pd_payload_init_sources(&payload, &model, (const float *const *)sources, dtype, begin, count);
    ck_assert_int_eq(pd_sender_start(&sender, &message, &payload, checksum, &error), PD_OK);
    while (!pd_sender_idle(&sender)) {
        size_t piece_count = pd_sender_gather(&sender, pieces);
        size_t offered = 0;
        ck_assert_uint_gt(piece_count, 0);
        ck_assert(!pd_sender_lends(&sender) || in_sources(pieces, piece_count));
        lent = lent || pd_sender_lends(&sender);
        for (size_t i = 0; i < piece_count; i++) {
            offered += pieces[i].iov_len;
        }
        ck_assert_uint_le(offered, PD_READ_BYTES_MAX + 4096);
        size_t taken = copy_out(pieces, piece_count, 1 + random_below(portion));
        pd_sender_sent(&sender, taken);
        wire_bytes += taken;
    }
}

/* Put up to `portion` bytes of the wire where the receiver wants them. */
static size_t deliver(size_t offset, uint32_t portion)
{
    struct iovec pieces[PD_STREAM_PIECE_COUNT_MAX];
    size_t piece_count = pd_receiver_gather(&receiver, pieces);
    size_t limit = 1 + random_below(portion);
    size_t given = 0;

    ck_assert_uint_gt(piece_count, 0);
    limit = limit < wire_bytes - offset ? limit : wire_bytes - offset;
    for (size_t i = 0; i < piece_count && given < limit; i++) {
        size_t now = pieces[i].iov_len < limit - given ? pieces[i].iov_len : limit - given;
        memcpy(pieces[i].iov_base, wire + offset + given, now);
        given += now;
    }
    pd_receiver_filled(&receiver, given);
    return given;
}

/* Receive all of the wire; returns how many payloads came, all sound or all damaged. */
static unsigned receive_all(uint32_t portion, bool sound)
{
    size_t offset = 0;
    unsigned payloads = 0;

    for (;;) {
        enum pd_frame_event event = pd_receiver_next(&receiver, &error);
        if (event == PD_FRAME_MESSAGE && receiver.prefix.payload_bytes > 0) {
            const struct pd_push *push = &receiver.message.push;
            struct pd_payload payload;
            ck_assert_uint_eq(push->step, 3);
            pd_payload_init_targets(&payload, &model, targets, (enum pd_dtype)push->dtype,
                                    push->element_begin, push->element_count);
            payload.streamed = streamed;
            ck_assert_int_eq(pd_receiver_place(&receiver, &payload, &error), PD_OK);
        } else if (event == PD_FRAME_PAYLOAD) {
            ck_assert_int_eq(receiver.checksum_ok, sound);
            payloads++;
        } else if (event == PD_FRAME_MORE) {
            if (offset == wire_bytes) {
                return payloads;
            }
            offset += deliver(offset, portion);
        } else {
            ck_assert_int_eq(event, PD_FRAME_MESSAGE);
        }
    }
}

/* Whether the targets hold the sources' elements in a range, and zeros elsewhere. */
static void check_targets(uint64_t begin, uint64_t count)
{
    uint64_t element = 0;

    for (uint32_t t = 0; t < TENSOR_COUNT; t++) {
        for (uint64_t i = 0; i < lengths[t]; i++, element++) {
            bool inside = element >= begin && element < begin + count;
            if (targets[t][i] != (inside ? sources[t][i] : 0.0f)) {
                ck_abort_msg("element %u of tensor %u", (unsigned)i, t);
            }
        }
    }
}

START_TEST(a_range_arrives_whole_in_every_type_and_nothing_beside_it_changes)
{
    static const uint32_t portions[] = {1, 5000, 1000000};
    static const uint64_t ranges[][2] = {{0, 0}, {2, 5}, {3, 140000}, {70004, 1}, {70012, 130005}};
    enum pd_dtype dtype = (enum pd_dtype)(_i % 3);
    uint32_t portion = portions[_i / 3 % 3];
    const uint64_t *range = ranges[_i / 9 % 5];
    uint64_t count = range[1] > 0 ? range[1] : model.element_count;
    /* Single bytes only for what is short. */
    portion = portion == 1 && count > 10 ? 300 : portion;
    streamed = _i / 90 % 2 == 1;
    sender.copied = _i / 180 == 1;
    send_push(range[0], count, dtype, _i / 45 % 2 == 1, portion);
    ck_assert_uint_eq(receive_all(portion, true), 1);
    check_targets(range[0], count);
}
END_TEST

START_TEST(a_long_payload_is_lent_if_it_is_as_on_the_wire_and_the_socket_takes_pages)
{
    static const struct {
        uint64_t count;
        enum pd_dtype dtype;
        bool checksum;
        bool copied;
        bool lent;
    } cases[] = {
        {140000, PD_DTYPE_FLOAT32, false, false, true},
        {140000, PD_DTYPE_FLOAT32, true, false, true},
        {140000, PD_DTYPE_FLOAT32, true, true, false},
        {140000, PD_DTYPE_BFLOAT16, false, false, false},
        {50000, PD_DTYPE_FLOAT32, false, false, true},
        {50000, PD_DTYPE_FLOAT32, true, false, false},
        {20000, PD_DTYPE_FLOAT32, false, false, false},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        lent = false;
        wire_bytes = 0;
        sender.copied = cases[i].copied;
        send_push(3, cases[i].count, cases[i].dtype, cases[i].checksum, 100000);
        ck_assert_int_eq(lent, cases[i].lent);
    }
}
END_TEST

START_TEST(a_pull_of_a_million_elements_is_written_past_the_caches)
{
    struct pd_tensor_list large = {.element_count = (1u << 20) + 1};
    struct pd_payload payload;

    pd_payload_init_targets(&payload, &large, targets, PD_DTYPE_BFLOAT16, 1, 1u << 20);
    ck_assert(payload.streamed);
    pd_payload_init_targets(&payload, &large, targets, PD_DTYPE_BFLOAT16, 0, (1u << 20) - 1);
    ck_assert(!payload.streamed);
}
END_TEST

/* Hand out all there is; nothing must be left then. */
static void send_what_is_ready(uint32_t portion)
{
    struct iovec pieces[PD_STREAM_PIECE_COUNT_MAX];
    size_t piece_count = pd_sender_gather(&sender, pieces);

    for (; piece_count > 0; piece_count = pd_sender_gather(&sender, pieces)) {
        ck_assert(!pd_sender_blocked(&sender));
        size_t taken = copy_out(pieces, piece_count, 1 + random_below(portion));
        pd_sender_sent(&sender, taken);
        wire_bytes += taken;
    }
    ck_assert(pd_sender_blocked(&sender));
}

/* Of a payload that begins in the third tensor; its last element waits for the whole. */
START_TEST(a_gate_lets_through_what_is_ready_and_the_last_element_only_at_the_end)
{
    static const enum pd_dtype types[] = {PD_DTYPE_FLOAT32, PD_DTYPE_BFLOAT16, PD_DTYPE_FLOAT16};
    enum pd_dtype dtype = types[_i];
    const uint64_t begin = 6;
    const uint64_t count = model.element_count - begin;
    struct pd_message message = {
        .kind = PD_MESSAGE_PUSH,
        .push = {.step = 3, .dtype = dtype, .element_begin = begin, .element_count = count}};
    struct pd_gate gate = {0};
    struct pd_payload payload;

    pd_payload_init_sources(&payload, &model, (const float *const *)sources, dtype, begin, count);
    payload.gate = &gate;
    ck_assert_int_eq(pd_sender_start(&sender, &message, &payload, true, &error), PD_OK);
    send_what_is_ready(4000);
    size_t head_bytes = wire_bytes;
    for (uint32_t t = 1; t <= TENSOR_COUNT; t++) {
        uint64_t ready = t < TENSOR_COUNT ? model.tensors[t].element_begin : model.element_count;
        uint64_t expected = ready <= begin ? 0 : ready - begin;
        expected = expected < count ? expected : count - 1;
        atomic_store(&gate.elements, ready);
        send_what_is_ready(70000);
        ck_assert_uint_eq(wire_bytes - head_bytes, expected * pd_dtype_bytes(dtype));
    }
    atomic_store(&gate.opened_ms, 1);
    ck_assert(!pd_sender_blocked(&sender));
    send_what_is_ready(4000);
    ck_assert(pd_sender_idle(&sender));
    ck_assert_uint_eq(receive_all(4000, true), 1);
    for (uint32_t t = 3; t < TENSOR_COUNT; t++) {
        ck_assert_mem_eq(targets[t], sources[t], lengths[t] * sizeof(float));
    }
}
END_TEST

START_TEST(no_more_leaves_than_is_allowed)
{
    static const enum pd_dtype types[] = {PD_DTYPE_FLOAT32, PD_DTYPE_BFLOAT16, PD_DTYPE_FLOAT16};
    static const uint64_t allowed[] = {0, 4096, 4100, 300000};
    enum pd_dtype dtype = types[_i];
    struct pd_message message = {
        .kind = PD_MESSAGE_PUSH,
        .push = {.step = 3, .dtype = dtype, .element_count = model.element_count}};
    struct pd_payload payload;
    uint64_t sent;

    pd_payload_init_sources(&payload, &model, (const float *const *)sources, dtype, 0,
                            model.element_count);
    ck_assert_int_eq(pd_sender_start(&sender, &message, &payload, true, &error), PD_OK);
    for (size_t i = 0; i < sizeof allowed / sizeof allowed[0]; i++) {
        sender.allowed = allowed[i];
        send_what_is_ready(70000);
        ck_assert(pd_sender_blocked(&sender));
        ck_assert(pd_sender_in_payload(&sender, &sent));
        ck_assert_uint_eq(sent, allowed[i]);
    }
    sender.allowed = UINT64_MAX;
    send_what_is_ready(70000);
    ck_assert(!pd_sender_in_payload(&sender, &sent));
    ck_assert_uint_eq(receive_all(4000, true), 1);
    check_targets(0, model.element_count);
}
END_TEST

START_TEST(frames_behind_one_another_are_told_apart)
{
    struct pd_message ping = {.kind = PD_MESSAGE_PING};
    send_push(0, 4, PD_DTYPE_FLOAT32, true, 100);
    struct iovec pieces[PD_STREAM_PIECE_COUNT_MAX];
    ck_assert_int_eq(pd_sender_start(&sender, &ping, NULL, true, &error), PD_OK);
    size_t taken = copy_out(pieces, pd_sender_gather(&sender, pieces), 1000);
    pd_sender_sent(&sender, taken);
    wire_bytes += taken;
    ck_assert(pd_sender_idle(&sender));
    send_push(4, 3, PD_DTYPE_BFLOAT16, true, 100);
    send_push(7, 1, PD_DTYPE_FLOAT32, false, 100);
    ck_assert_uint_eq(receive_all(1000000, true), 3);
    check_targets(0, 8);
}
END_TEST

START_TEST(a_flipped_bit_in_the_payload_is_noticed)
{
    send_push(0, 1000, (enum pd_dtype)_i, true, 1000000);
    wire[wire_bytes - 500] ^= 4;
    ck_assert_uint_eq(receive_all(1000000, false), 1);
}
END_TEST

START_TEST(bytes_that_are_no_frame_fail)
{
    memset(wire, 'x', 100);
    wire_bytes = 100;
    deliver(0, 1);
    while (receiver.end < 30) {
        deliver(receiver.end, 1000);
    }
    ck_assert_int_eq(pd_receiver_next(&receiver, &error), PD_FRAME_FAILED);
    ck_assert_int_eq(error.status, PD_EPROTOCOL);
}
END_TEST

START_TEST(a_reset_receiver_starts_a_new_stream)
{
    send_push(0, 1000, PD_DTYPE_FLOAT32, true, 1000000);
    size_t whole = wire_bytes;
    wire_bytes = 600;
    ck_assert_uint_eq(receive_all(1000, true), 0);
    pd_receiver_reset(&receiver);
    wire_bytes = whole;
    ck_assert_uint_eq(receive_all(1000, true), 1);
    check_targets(0, 1000);
}
END_TEST

START_TEST(failed_allocations_are_told_and_leave_nothing)
{
    struct pd_sender other_sender;
    struct pd_receiver other_receiver;
    size_t live = pd_heap_blocks_live();
    long index = 0;
    enum pd_status status;

    do {
        pd_heap_fail_at(index++);
        status = pd_receiver_init(&other_receiver, &error);
        pd_heap_fail_at(-1);
        ck_assert(status == PD_OK || status == PD_ENOMEM);
        ck_assert(status == PD_OK || pd_heap_blocks_live() == live);
    } while (status != PD_OK);
    ck_assert_int_ge(index, 2);
    pd_receiver_finish(&other_receiver);

    pd_sender_init(&other_sender);
    struct pd_message message = {.kind = PD_MESSAGE_PUSH};
    struct pd_payload payload;
    pd_payload_init_sources(&payload, &model, (const float *const *)sources, PD_DTYPE_FLOAT16, 0,
                            10);
    for (index = 0; index < 2; index++) {
        pd_heap_fail_at(index);
        ck_assert_int_eq(pd_sender_start(&other_sender, &message, &payload, true, &error),
                         PD_ENOMEM);
        pd_heap_fail_at(-1);
        ck_assert(pd_sender_idle(&other_sender));
        pd_sender_finish(&other_sender);
        pd_sender_init(&other_sender);
    }
    pd_sender_finish(&other_sender);
    ck_assert_uint_eq(pd_heap_blocks_live(), live);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client_stream");
    TCase *tests = tcase_create("client_stream");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, a_range_arrives_whole_in_every_type_and_nothing_beside_it_changes, 0,
                        360);
    tcase_add_test(tests,
                   a_long_payload_is_lent_if_it_is_as_on_the_wire_and_the_socket_takes_pages);
    tcase_add_test(tests, a_pull_of_a_million_elements_is_written_past_the_caches);
    tcase_add_loop_test(
        tests, a_gate_lets_through_what_is_ready_and_the_last_element_only_at_the_end, 0, 3);
    tcase_add_loop_test(tests, no_more_leaves_than_is_allowed, 0, 3);
    tcase_add_test(tests, frames_behind_one_another_are_told_apart);
    tcase_add_loop_test(tests, a_flipped_bit_in_the_payload_is_noticed, 0, 3);
    tcase_add_test(tests, bytes_that_are_no_frame_fail);
    tcase_add_test(tests, a_reset_receiver_starts_a_new_stream);
    tcase_add_test(tests, failed_allocations_are_told_and_leave_nothing);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
