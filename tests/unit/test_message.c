/* Tests of common/message.c, message_decode.c and message_encode.c. */
#include "common/message.h"

#include "common/heap.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct pd_error error;
static struct pd_message message; /* too large for comfort on the stack */
static struct pd_message decoded;
static uint8_t header[PD_CONTROL_HEADER_BYTES_MAX + 1];

/* Encode `message` and decode it again; gives the length of the header. What decoding leaves alone
 * is zero, as it is in `message`. */
static size_t go_round(void)
{
    memset(&decoded, 0, sizeof decoded);
    size_t header_bytes = pd_message_header_bytes(&message);
    ck_assert_uint_le(header_bytes, sizeof header);
    ck_assert_int_eq(pd_message_encode(&message, header, header_bytes, &error), PD_OK);
    ck_assert_msg(pd_message_decode(&decoded, message.kind, header, header_bytes, &error) == PD_OK,
                  "%s", error.message);
    return header_bytes;
}

static enum pd_status decode(enum pd_message_kind kind, const void *bytes, size_t byte_count)
{
    return pd_message_decode(&decoded, kind, bytes, byte_count, &error);
}

/* Of each kind, with something that is not its zero in every text and number. Static, so that their
 * padding is zero and they compare as bytes. */
static const struct pd_message examples[] = {
    [PD_MESSAGE_HELLO] = {.hello = {"client 1", "host", true, 0, UINT64_MAX, 5}},
    [PD_MESSAGE_WELCOME] = {.welcome = {1, 2, 3, "host:7070", 4, "paramd", 5, 6, true, UINT64_MAX}},
    [PD_MESSAGE_JOIN] = {.join = {.name = "w\xc3\xb6rker", .nonce = 10}},
    [PD_MESSAGE_JOINED] = {.joined = {7, 8, "w", 9}},
    [PD_MESSAGE_REGISTERED] = {.registered = {.lane_count = 2,
                                              .lanes = {{0, "a:1", 0, 10}, {3, "b:2", 10, 0}},
                                              .values_needed = true,
                                              .block_elements = 64,
                                              .step = 11}},
    [PD_MESSAGE_VALUES] = {.values = {1, 2}},
    [PD_MESSAGE_PUSH] = {.push = {.step = 1,
                                  .micro_batch = 2,
                                  .last = true,
                                  .samples = 3,
                                  .has_loss = true,
                                  .loss = -0.5,
                                  .dtype = 99,
                                  .element_begin = 4,
                                  .element_count = 5,
                                  .pull = true,
                                  .pull_dtype = 98,
                                  .scale = 1024}},
    [PD_MESSAGE_PUSHED] = {.pushed = {1, 2, true, true}},
    [PD_MESSAGE_PULL] = {.pull = {.min_version = 1, .dtype = 2, .averaged = true}},
    [PD_MESSAGE_PULLED] = {.pulled = {.version = 1,
                                      .dtype = 2,
                                      .element_begin = 3,
                                      .element_count = 4,
                                      .lr_count = 2,
                                      .lrs = {1e-3, 1e-4},
                                      .stop = true,
                                      .skipped_steps = 6,
                                      .loss_scale = 0.5,
                                      .host_workers = 7,
                                      .averaged = true}},
    [PD_MESSAGE_LEAVE] = {.leave = {1, 2}},
    [PD_MESSAGE_ERROR] = {.error = {PD_ESTEP, "step 3 is closed", true}},
    [PD_MESSAGE_ADMIN] = {.admin = {"set-lr", true, 0, "head", 1, 2, 2, {"start=1e-7", "end=10"}}},
    [PD_MESSAGE_DRAINING] = {.draining = {12}},
    [PD_MESSAGE_METRIC] = {.metric = {"val_loss", -0.5, 7}},
    [PD_MESSAGE_METRIC_STORED] = {.metric_stored = {true}},
    [PD_MESSAGE_HESSIAN] = {.push = {.hessian = true,
                                     .step = 1,
                                     .micro_batch = 2,
                                     .last = true,
                                     .samples = 3,
                                     .dtype = 99,
                                     .element_begin = 4,
                                     .element_count = 5,
                                     .scale = 1024}},
    [PD_MESSAGE_RANK_HELLO] = {.rank_hello = {63, 2}},
    [PD_MESSAGE_ORDER] = {.order = {.index = 1,
                                    .kind = PD_ORDER_STEP,
                                    .step = 2,
                                    .worker_id = 3,
                                    .token = 4,
                                    .name = "n",
                                    .replica = 5,
                                    .contributor_count = 2,
                                    .contributors = {8, 7},
                                    .weights = {2, 6},
                                    .samples = 10,
                                    .lr_count = 1,
                                    .lrs = {0.1},
                                    .momentum_count = 1,
                                    .momenta = {0.95},
                                    .optimizer_step = 6,
                                    .skip = true,
                                    .stop = true,
                                    .trial = true,
                                    .reason = "why"}},
    [PD_MESSAGE_REPORT] = {.report = {.kind = PD_REPORT_CONTRIBUTED,
                                      .order_index = 1,
                                      .worker_id = 2,
                                      .step = 3,
                                      .micro_batch = 4,
                                      .last = true,
                                      .samples = 5,
                                      .has_loss = true,
                                      .loss = 0,
                                      .expired = true,
                                      .text = "where",
                                      .hessian = true}},
    [PD_MESSAGE_BEAT] = {.kind = PD_MESSAGE_BEAT},
};

#define EXAMPLE_COUNT ((int)(sizeof examples / sizeof examples[0]))

static void fill(enum pd_message_kind kind)
{
    memcpy(&message, &examples[kind], sizeof message);
    message.kind = kind;
}

static void fill_tensors(struct pd_tensor_list *list, uint32_t count)
{
    ck_assert_int_eq(pd_tensor_list_init(list, count, &error), PD_OK);
    for (uint32_t i = 0; i < count; i++) {
        char name[16];
        int name_bytes = snprintf(name, sizeof name, "%x", i);
        uint64_t shape[2] = {i + 1, 3};
        ck_assert_int_eq(
            pd_tensor_list_append(list, name, (size_t)name_bytes, i % 3, shape, &error), PD_OK);
    }
}

START_TEST(every_field_survives_the_way_over_the_wire)
{
    enum pd_message_kind kind = (enum pd_message_kind)_i;
    if (!pd_message_kind_valid((uint32_t)_i) || kind == PD_MESSAGE_REGISTER) {
        return;
    }
    fill(kind);
    (void)go_round();
    ck_assert_mem_eq(&decoded, &message, sizeof message);
}
END_TEST

/* Decode into memory full of ones, and encode what that gives. */
static size_t decode_and_encode(enum pd_message_kind kind, size_t header_bytes, uint8_t *to)
{
    memset(&decoded, 0xff, sizeof decoded);
    if (pd_message_decode(&decoded, kind, header, header_bytes, &error) != PD_OK) {
        ck_assert_int_eq(decoded.kind, PD_MESSAGE_NONE);
        return SIZE_MAX;
    }
    size_t to_bytes = pd_message_header_bytes(&decoded);
    ck_assert_uint_le(to_bytes, PD_HEADER_BYTES_MAX);
    ck_assert_int_eq(pd_message_encode(&decoded, to, to_bytes, &error), PD_OK);
    return to_bytes;
}

START_TEST(decoding_sets_every_field_whatever_was_there)
{
    static uint8_t again[PD_HEADER_BYTES_MAX];
    enum pd_message_kind kind = (enum pd_message_kind)_i;
    if (!pd_message_kind_valid((uint32_t)_i) || kind == PD_MESSAGE_REGISTER) {
        return;
    }
    fill(kind);
    size_t header_bytes = go_round();
    ck_assert_uint_eq(decode_and_encode(kind, header_bytes, again), header_bytes);
    ck_assert_mem_eq(again, header, header_bytes);

    /* A header of no bytes says that every field is zero, where that is allowed. */
    size_t empty_bytes = decode_and_encode(kind, 0, again);
    ck_assert(empty_bytes == 0 || empty_bytes == SIZE_MAX);
}
END_TEST

START_TEST(a_copied_order_says_the_same_and_has_no_tensors)
{
    static struct pd_message copy;
    static uint8_t again[PD_HEADER_BYTES_MAX];
    fill(PD_MESSAGE_ORDER);
    pd_tensor_set_add(&message.order.absent, 77);
    size_t header_bytes = go_round();

    memset(&copy, 0xff, sizeof copy);
    copy.kind = PD_MESSAGE_ORDER;
    fill_tensors(&message.order.tensors, 3);
    pd_order_copy(&copy.order, &message.order);
    pd_message_finish(&message);

    ck_assert_uint_eq(pd_message_header_bytes(&copy), header_bytes);
    ck_assert_int_eq(pd_message_encode(&copy, again, header_bytes, &error), PD_OK);
    ck_assert_mem_eq(again, header, header_bytes);
    ck_assert_uint_eq(copy.order.tensors.count, 0);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(absent_and_zero_are_told_apart)
{
    fill(PD_MESSAGE_PUSH);
    message.push.loss = 0;
    (void)go_round();
    ck_assert(decoded.push.has_loss);
    message.push.has_loss = false;
    (void)go_round();
    ck_assert(!decoded.push.has_loss);

    fill(PD_MESSAGE_HELLO);
    (void)go_round();
    ck_assert(decoded.hello.has_worker_id);
    message.hello.has_worker_id = false;
    (void)go_round();
    ck_assert(!decoded.hello.has_worker_id);
}
END_TEST

START_TEST(a_loss_that_is_not_a_number_arrives_as_it_is)
{
    fill(PD_MESSAGE_PUSH);
    message.push.loss = NAN;
    (void)go_round();
    ck_assert(isnan(decoded.push.loss));
}
END_TEST

START_TEST(a_registration_survives_whatever_its_length)
{
    static const uint32_t counts[] = {1, 63, 64, 65, 200, 5000};
    memset(&message, 0, sizeof message);
    message.kind = PD_MESSAGE_REGISTER;
    fill_tensors(&message.registration.tensors, counts[_i]);
    (void)go_round();
    ck_assert_int_eq(pd_tensor_list_compare(&message.registration.tensors,
                                            &decoded.registration.tensors, &error),
                     PD_OK);
    pd_message_finish(&decoded);

    /* The same list in an order. */
    struct pd_tensor_list tensors = message.registration.tensors;
    memset(&message, 0, sizeof message);
    message.kind = PD_MESSAGE_ORDER;
    message.order.kind = PD_ORDER_REGISTER;
    message.order.tensors = tensors;
    (void)go_round();
    ck_assert_int_eq(pd_tensor_list_compare(&message.order.tensors, &decoded.order.tensors, &error),
                     PD_OK);
    pd_message_finish(&decoded);
    pd_message_finish(&message);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(a_step_takes_nothing_from_the_heap)
{
    fill(PD_MESSAGE_ORDER);
    message.order.contributor_count = PD_WORKER_COUNT_MAX;
    message.order.lr_count = PD_GROUP_COUNT_MAX + 1;
    message.order.momentum_count = PD_GROUP_COUNT_MAX + 1;
    for (uint32_t i = 0; i < PD_WORKER_COUNT_MAX; i++) {
        message.order.contributors[i] = 1000000 + i;
        message.order.weights[i] = 1e15 + i;
    }
    size_t allocations = pd_heap_allocations();
    (void)go_round();
    ck_assert_mem_eq(decoded.order.weights, message.order.weights, sizeof decoded.order.weights);
    fill(PD_MESSAGE_PUSH);
    (void)go_round();
    fill(PD_MESSAGE_PULLED);
    (void)go_round();
    fill(PD_MESSAGE_REPORT);
    (void)go_round();
    ck_assert_uint_eq(pd_heap_allocations(), allocations);
}
END_TEST

START_TEST(the_longest_lane_table_fits_its_limit)
{
    fill(PD_MESSAGE_REGISTERED);
    message.registered.lane_count = PD_RANK_COUNT_MAX;
    for (uint32_t i = 0; i < PD_RANK_COUNT_MAX; i++) {
        memset(message.registered.lanes[i].address, 'a', PD_ADDRESS_BYTES_MAX);
        message.registered.lanes[i].element_begin = i * PD_LANE_ELEMENT_COUNT_MAX;
        message.registered.lanes[i].element_count = PD_LANE_ELEMENT_COUNT_MAX;
    }
    (void)go_round();
    ck_assert_mem_eq(&decoded, &message, sizeof message);
}
END_TEST

START_TEST(a_registration_over_the_header_limit_is_not_encoded)
{
    memset(&message, 0, sizeof message);
    message.kind = PD_MESSAGE_REGISTER;
    fill_tensors(&message.registration.tensors, PD_TENSOR_COUNT_MAX);
    size_t header_bytes = pd_message_header_bytes(&message);
    ck_assert_uint_gt(header_bytes, PD_REGISTER_HEADER_BYTES_MAX);
    memset(header, 0x5a, sizeof header);
    ck_assert_int_eq(pd_message_encode(&message, header, header_bytes, &error), PD_ELIMIT);
    ck_assert_uint_eq(header[0], 0x5a);
    pd_message_finish(&message);
}
END_TEST

/* Headers by hand: key = field * 8 + wire type (0 varint, 2 bytes). */
static const struct {
    enum pd_message_kind kind;
    const char *bytes;
    size_t byte_count;
    enum pd_status status;
    const char *message;
} refusals[] = {
    {PD_MESSAGE_JOIN, "\x0a\x05zz", 4, PD_EPROTOCOL, "join: header of 4 bytes is no such message"},
    {PD_MESSAGE_JOIN,
     "\x0a\x03"
     "a\nb",
     5, PD_EPROTOCOL, "join: name is not printable utf-8 text"},
    {PD_MESSAGE_JOIN, "\x0a\x01\xff", 3, PD_EPROTOCOL, "join: name is not printable utf-8 text"},
    {PD_MESSAGE_PING, "\xff\xff", 2, PD_EPROTOCOL, "ping: header of 2 bytes is no such message"},
    {PD_MESSAGE_REGISTER, "", 0, PD_EMODEL, "register: no tensors, at least 1"},
    {PD_MESSAGE_REGISTER, "\x0a\x00", 2, PD_EMODEL,
     "tensor 0: name of 0 bytes, allowed are 1 to 255"},
    {PD_MESSAGE_REGISTER, "\x0a\x07\x0a\x01x\x12\x02\x02\x00", 9, PD_EMODEL,
     "tensor \"x\": dimension 1 is 0"},
    {PD_MESSAGE_REGISTERED, "\x18\x01", 2, PD_EPROTOCOL,
     "registered: lane count is 0, allowed are 1 to 64"},
    {PD_MESSAGE_REGISTERED, "\x0a\x02\x18\x05\x18\x01", 6, PD_EPROTOCOL,
     "registered: element_begin of a lane is 5, allowed are 0 to 0"},
    {PD_MESSAGE_WELCOME, "\x10\x02\x18\x02", 4, PD_EPROTOCOL,
     "welcome: rank is 2, allowed are 0 to 1"},
    {PD_MESSAGE_JOINED, "\x08\x01", 2, PD_EPROTOCOL,
     "joined: accumulation_steps is 0, allowed are 1 to 65536"},
    {PD_MESSAGE_ADMIN,
     "2\x01x2\x01x2\x01x2\x01x2\x01x2\x01x2\x01x2\x01x2\x01x"
     "2\x01x2\x01x2\x01x2\x01x2\x01x2\x01x2\x01x2\x01x",
     51, PD_ELIMIT, "admin: 17 settings, at most 16"},
    {PD_MESSAGE_ADMIN, "2\x02x\n", 4, PD_EPROTOCOL, "admin: setting is not printable utf-8 text"},
    {PD_MESSAGE_ORDER, "\x10\x0f", 2, PD_EPROTOCOL, "order: kind is 15, allowed are 1 to 14"},
    {PD_MESSAGE_ORDER, "\x10\x05\x48\x01", 4, PD_EPROTOCOL,
     "order: number of weights is 0, allowed are 1 to 1"},
    {PD_MESSAGE_ORDER, "\x10\x05\x82\x01\x08\0\0\0\0\0\0\0\0", 13, PD_EPROTOCOL,
     "order: number of momenta is 1, allowed are 0 to 0"},
    {PD_MESSAGE_REPORT, "", 0, PD_EPROTOCOL, "report: kind is 0, allowed are 1 to 8"},
    {PD_MESSAGE_RANK_HELLO, "\x08\x40", 2, PD_EPROTOCOL,
     "rank-hello: rank is 64, allowed are 0 to 63"},
    {(enum pd_message_kind)31, "", 0, PD_EPROTOCOL, "message of unknown kind 31"},
};

START_TEST(decode_refuses_and_says_why)
{
    ck_assert_int_eq(decode(refusals[_i].kind, refusals[_i].bytes, refusals[_i].byte_count),
                     refusals[_i].status);
    ck_assert_str_eq(error.message, refusals[_i].message);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(a_text_of_one_byte_too_many_is_refused)
{
    header[0] = 0x0a;
    header[1] = 127;
    memset(header + 2, 'n', 200);
    ck_assert_int_eq(decode(PD_MESSAGE_JOIN, header, 129), PD_OK);
    header[1] = 0x80;
    header[2] = 0x01;
    ck_assert_int_eq(decode(PD_MESSAGE_JOIN, header, 131), PD_ELIMIT);
    ck_assert_str_eq(error.message, "join: name of 128 bytes, at most 127");
}
END_TEST

START_TEST(a_header_over_its_limit_is_refused)
{
    memset(header, 0, sizeof header);
    ck_assert_int_eq(decode(PD_MESSAGE_PUSH, header, PD_HEADER_BYTES_MAX + 1), PD_ELIMIT);
    ck_assert_int_eq(decode(PD_MESSAGE_ORDER, header, PD_CONTROL_HEADER_BYTES_MAX + 1), PD_ELIMIT);
}
END_TEST

START_TEST(a_header_of_nothing_but_unknown_fields_cannot_take_much_memory)
{
    for (size_t i = 0; i < PD_REGISTER_HEADER_BYTES_MAX; i += 2) {
        header[i] = 0x78; /* field 15, varint */
        header[i + 1] = 1;
    }
    ck_assert_int_eq(decode(PD_MESSAGE_REGISTER, header, PD_REGISTER_HEADER_BYTES_MAX), PD_ELIMIT);
    ck_assert_str_eq(error.message,
                     "register: header of 65536 bytes has too many fields to decode");
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(unknown_fields_of_a_later_version_are_passed_over)
{
    ck_assert_int_eq(decode(PD_MESSAGE_PULL, "\x08\x05\x78\x01", 4), PD_OK);
    ck_assert_uint_eq(decoded.pull.min_version, 5);
}
END_TEST

START_TEST(decode_survives_each_failed_allocation)
{
    memset(&message, 0, sizeof message);
    message.kind = PD_MESSAGE_REGISTER;
    fill_tensors(&message.registration.tensors, 400);
    size_t header_bytes = pd_message_header_bytes(&message);
    ck_assert_int_eq(pd_message_encode(&message, header, header_bytes, &error), PD_OK);
    pd_message_finish(&message);

    size_t before = pd_heap_allocations();
    ck_assert_int_eq(decode(PD_MESSAGE_REGISTER, header, header_bytes), PD_OK);
    long allocations = (long)(pd_heap_allocations() - before);
    pd_message_finish(&decoded);
    for (long i = 0; i < allocations; i++) {
        pd_heap_fail_at(i);
        ck_assert_int_eq(decode(PD_MESSAGE_REGISTER, header, header_bytes), PD_ENOMEM);
        ck_assert_uint_eq(pd_heap_blocks_live(), 0);
    }
}
END_TEST

START_TEST(finish_of_a_message_of_no_kind_is_allowed)
{
    memset(&message, 0, sizeof message);
    pd_message_finish(&message);
}
END_TEST

START_TEST(kinds_have_names_and_gaps_have_none)
{
    ck_assert_str_eq(pd_message_kind_name(PD_MESSAGE_PUSH), "push");
    ck_assert_str_eq(pd_message_kind_name(31), "unknown");
    ck_assert(!pd_message_kind_valid(0));
    ck_assert(!pd_message_kind_valid(31));
    ck_assert(!pd_message_kind_valid(36));
    ck_assert(!pd_message_kind_valid(UINT32_MAX));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("message");
    TCase *cases = tcase_create("message");
    tcase_set_timeout(cases, 60);
    tcase_add_loop_test(cases, every_field_survives_the_way_over_the_wire, 0, EXAMPLE_COUNT);
    tcase_add_loop_test(cases, decoding_sets_every_field_whatever_was_there, 0, EXAMPLE_COUNT);
    tcase_add_test(cases, a_copied_order_says_the_same_and_has_no_tensors);
    tcase_add_test(cases, absent_and_zero_are_told_apart);
    tcase_add_test(cases, a_loss_that_is_not_a_number_arrives_as_it_is);
    tcase_add_loop_test(cases, a_registration_survives_whatever_its_length, 0, 6);
    tcase_add_test(cases, a_step_takes_nothing_from_the_heap);
    tcase_add_test(cases, the_longest_lane_table_fits_its_limit);
    tcase_add_test(cases, a_registration_over_the_header_limit_is_not_encoded);
    tcase_add_loop_test(cases, decode_refuses_and_says_why, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_test(cases, a_text_of_one_byte_too_many_is_refused);
    tcase_add_test(cases, a_header_over_its_limit_is_refused);
    tcase_add_test(cases, a_header_of_nothing_but_unknown_fields_cannot_take_much_memory);
    tcase_add_test(cases, unknown_fields_of_a_later_version_are_passed_over);
    tcase_add_test(cases, decode_survives_each_failed_allocation);
    tcase_add_test(cases, finish_of_a_message_of_no_kind_is_allowed);
    tcase_add_test(cases, kinds_have_names_and_gaps_have_none);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
