/* What a request asks, what it takes for its answer, and what it asks after a lost connection. */
#include "client/request.h"

#include "common/heap.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static struct pd_tensor_list model;
static float array[6];
static const float *const sources[] = {array};
static float *const targets[] = {array};
static struct pd_request_arrays arrays;
static struct pd_lane lane;
static struct pd_request request;
static struct pd_message message;
static struct pd_payload payload;
static struct pd_error error;

static void setup(void)
{
    uint64_t shape = 6;

    ck_assert_int_eq(pd_tensor_list_init(&model, 1, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(&model, "t", 1, 1, &shape, &error), PD_OK);
    arrays = (struct pd_request_arrays){.model = &model, .sources = sources, .targets = targets};
    lane = (struct pd_lane){.rank = 1, .element_begin = 2, .element_count = 4};
    memset(&message, 0, sizeof message);
}

static void teardown(void)
{
    pd_tensor_list_finish(&model);
}

static void init_push(uint64_t step, uint32_t micro_batch, bool pull)
{
    struct pd_push push = {.step = step,
                           .micro_batch = micro_batch,
                           .last = pull,
                           .samples = 5,
                           .pull = pull,
                           .pull_dtype = PD_DTYPE_BFLOAT16};
    pd_request_init_push(&request, &lane, &arrays, &push, (struct pd_position){0, 0});
}

/* A connection that was lost after the request had been sent, and its successor's Welcome. */
static void reconnect(uint64_t next_step, uint32_t next_micro_batch)
{
    struct pd_welcome welcome = {
        .run_id = 7, .next_step = next_step, .next_micro_batch = next_micro_batch};

    pd_request_send(&request, &message, &payload);
    ck_assert_int_eq(request.state, PD_REQUEST_WAITING);
    pd_request_lost(&request);
    ck_assert_int_eq(request.state, PD_REQUEST_ASKING);
    ck_assert_int_eq(pd_request_welcomed(&request, &welcome, 7, &error), PD_OK);
}

START_TEST(a_push_carries_its_lane_and_the_lanes_part_of_the_arrays)
{
    init_push(3, 1, false);
    pd_request_send(&request, &message, &payload);
    ck_assert_int_eq(message.kind, PD_MESSAGE_PUSH);
    ck_assert_uint_eq(message.push.step, 3);
    ck_assert_uint_eq(message.push.micro_batch, 1);
    ck_assert_uint_eq(message.push.samples, 5);
    ck_assert_uint_eq(message.push.element_begin, 2);
    ck_assert_uint_eq(message.push.element_count, 4);
    ck_assert_uint_eq(payload.byte_count, 16);
    size_t bytes;
    ck_assert_ptr_eq(pd_payload_piece(&payload, 0, 100, &bytes), array + 2);
    ck_assert_uint_eq(bytes, 16);
}
END_TEST

START_TEST(a_push_the_rank_has_not_seen_is_asked_again)
{
    init_push(3, 1, false);
    reconnect(3, 1);
    ck_assert_int_eq(request.state, PD_REQUEST_ASKING);
    pd_request_send(&request, &message, &payload);
    ck_assert_int_eq(message.kind, PD_MESSAGE_PUSH);
    ck_assert_uint_eq(payload.byte_count, 16);
}
END_TEST

/* What a Welcome says is of gradients: the estimate of a step comes before them. */
START_TEST(an_estimate_is_asked_again_whatever_a_welcome_says)
{
    struct pd_push push = {.hessian = true, .step = 3, .last = true, .samples = 5};
    struct pd_message answer = {.kind = PD_MESSAGE_PUSHED, .pushed = {.step = 3}};
    pd_request_init_push(&request, &lane, &arrays, &push, (struct pd_position){0, 0});
    reconnect(4, 0);
    ck_assert_int_eq(request.state, PD_REQUEST_ASKING);
    pd_request_send(&request, &message, &payload);
    ck_assert_int_eq(message.kind, PD_MESSAGE_HESSIAN);
    ck_assert_uint_eq(payload.byte_count, 16);
    ck_assert_int_eq(pd_request_answered(&request, &answer, 0, &error), PD_EPROTOCOL);
    answer.pushed.hessian = true;
    ck_assert_int_eq(pd_request_answered(&request, &answer, 0, &error), PD_OK);
    ck_assert_int_eq(request.state, PD_REQUEST_DONE);
}
END_TEST

/* The next push expected is of a later micro-batch, or of a later step. */
START_TEST(a_push_the_rank_accepted_is_done)
{
    init_push(3, 1, false);
    reconnect(_i == 0 ? 3 : 4, _i == 0 ? 2 : 0);
    ck_assert_int_eq(request.state, PD_REQUEST_DONE);
    ck_assert(request.accepted);
}
END_TEST

START_TEST(a_push_and_pull_the_rank_accepted_only_pulls)
{
    init_push(3, 0, true);
    reconnect(4, 0);
    ck_assert_int_eq(request.state, PD_REQUEST_ASKING);
    memset(&message, 0, sizeof message);
    pd_request_send(&request, &message, &payload);
    ck_assert_int_eq(message.kind, PD_MESSAGE_PULL);
    ck_assert_uint_eq(message.pull.min_version, 4);
    ck_assert_uint_eq(message.pull.dtype, PD_DTYPE_BFLOAT16);
    ck_assert_uint_eq(payload.byte_count, 0);
}
END_TEST

START_TEST(a_push_acknowledged_in_an_earlier_call_is_not_sent)
{
    struct pd_push push = {.step = 3, .micro_batch = 1, .samples = 5};
    pd_request_init_push(&request, &lane, &arrays, &push, (struct pd_position){3, 2});
    ck_assert_int_eq(request.state, PD_REQUEST_DONE);
    pd_request_init_push(&request, &lane, &arrays, &push, (struct pd_position){3, 1});
    ck_assert_int_eq(request.state, PD_REQUEST_ASKING);
}
END_TEST

START_TEST(another_run_ends_the_session)
{
    struct pd_welcome welcome = {.run_id = 8};
    init_push(3, 0, false);
    ck_assert_int_eq(pd_request_welcomed(&request, &welcome, 7, &error), PD_EIDENTITY);
    ck_assert_int_eq(pd_request_welcomed(&request, &welcome, 0, &error), PD_OK);
}
END_TEST

START_TEST(values_already_published_are_not_sent_again)
{
    struct pd_welcome welcome = {.run_id = 7, .has_version = true};
    pd_request_init_values(&request, &lane, &arrays);
    ck_assert_int_eq(pd_request_welcomed(&request, &welcome, 7, &error), PD_OK);
    ck_assert_int_eq(request.state, PD_REQUEST_ASKING);
    pd_request_send(&request, &message, &payload);
    ck_assert_int_eq(message.kind, PD_MESSAGE_VALUES);
    pd_request_lost(&request);
    ck_assert_int_eq(pd_request_welcomed(&request, &welcome, 7, &error), PD_OK);
    ck_assert_int_eq(request.state, PD_REQUEST_DONE);
}
END_TEST

START_TEST(only_the_answer_that_was_asked_for_is_taken)
{
    struct pd_message answer = {.kind = PD_MESSAGE_PUSHED, .pushed = {.step = 3}};
    init_push(3, 0, false);
    pd_request_send(&request, &message, &payload);
    answer.pushed.micro_batch = 1;
    ck_assert_int_eq(pd_request_answered(&request, &answer, 0, &error), PD_EPROTOCOL);
    answer.pushed.micro_batch = 0;
    ck_assert_int_eq(pd_request_answered(&request, &answer, 8, &error), PD_EPROTOCOL);
    answer.kind = PD_MESSAGE_JOINED;
    ck_assert_int_eq(pd_request_answered(&request, &answer, 0, &error), PD_EPROTOCOL);
    ck_assert_str_eq(error.message, "an answer that was not asked for: joined");
    answer.kind = PD_MESSAGE_PUSHED;
    ck_assert_int_eq(pd_request_answered(&request, &answer, 0, &error), PD_OK);
    ck_assert_int_eq(request.state, PD_REQUEST_DONE);
    ck_assert_int_eq(pd_request_answered(&request, &answer, 0, &error), PD_EPROTOCOL);
}
END_TEST

/* Right, then a wrong version, type, begin, count, length of payload and kind. */
START_TEST(parameters_must_be_those_asked_for)
{
    struct pd_message answer = {
        .kind = PD_MESSAGE_PULLED,
        .pulled = {
            .version = 4, .dtype = PD_DTYPE_BFLOAT16, .element_begin = 2, .element_count = 4}};
    init_push(3, 0, true);
    pd_request_send(&request, &message, &payload);
    answer.pulled.version -= _i == 1;
    answer.pulled.dtype += _i == 2;
    answer.pulled.element_begin += _i == 3;
    answer.pulled.element_count += _i == 4;
    answer.pulled.averaged = _i == 6;
    enum pd_status status = pd_request_answered(&request, &answer, _i == 5 ? 16 : 8, &error);
    ck_assert_int_eq(status, _i == 0 ? PD_OK : PD_EPROTOCOL);
    if (_i == 0) {
        ck_assert_int_eq(request.state, PD_REQUEST_RECEIVING);
        ck_assert_int_eq(pd_request_place(&request, &payload, &error), PD_OK);
        ck_assert_uint_eq(payload.byte_count, 8);
        ck_assert_int_eq(pd_request_received(&request, true, &error), PD_OK);
        ck_assert_int_eq(request.state, PD_REQUEST_DONE);
    }
}
END_TEST

/* A push whose answer comes ahead of its step, as far as its payload. */
static void receive_ahead(bool intact)
{
    init_push(3, 0, true);
    request.push.ahead = true;
    pd_request_send(&request, &message, &payload);
    message.kind = PD_MESSAGE_PULLED;
    message.pulled = (struct pd_pulled){.version = 4,
                                        .dtype = PD_DTYPE_BFLOAT16,
                                        .element_begin = 2,
                                        .element_count = 4,
                                        .ahead = true};
    ck_assert_int_eq(pd_request_answered(&request, &message, 8, &error), PD_OK);
    ck_assert_int_eq(request.state, PD_REQUEST_RECEIVING);
    ck_assert_int_eq(pd_request_received(&request, intact, &error), PD_OK);
    ck_assert_int_eq(request.state, PD_REQUEST_SETTLING);
    ck_assert(!request.accepted);
    message.kind = PD_MESSAGE_SETTLED;
    message.settled = (struct pd_settled){
        .applied = true, .pulled = {.version = 4, .lr_count = 1, .lrs = {0.5}, .stop = true}};
}

START_TEST(parameters_ahead_count_once_they_are_settled)
{
    receive_ahead(true);
    ck_assert_int_eq(pd_request_answered(&request, &message, 0, &error), PD_OK);
    ck_assert_int_eq(request.state, PD_REQUEST_DONE);
    ck_assert(request.accepted);
    ck_assert_double_eq(request.pulled.lrs[0], 0.5);
    ck_assert(request.pulled.stop);
}
END_TEST

START_TEST(parameters_ahead_that_are_void_are_waited_for_again)
{
    receive_ahead(true);
    message.settled.applied = false;
    ck_assert_int_eq(pd_request_answered(&request, &message, 0, &error), PD_OK);
    ck_assert_int_eq(request.state, PD_REQUEST_WAITING);
    ck_assert(!request.accepted);
    message.kind = PD_MESSAGE_PULLED;
    message.pulled = (struct pd_pulled){
        .version = 4, .dtype = PD_DTYPE_BFLOAT16, .element_begin = 2, .element_count = 4};
    ck_assert_int_eq(pd_request_answered(&request, &message, 8, &error), PD_OK);
    ck_assert_int_eq(pd_request_received(&request, true, &error), PD_OK);
    ck_assert_int_eq(request.state, PD_REQUEST_DONE);
}
END_TEST

/* Whether it was known to be accepted or not, and whether anything had come ahead or not. */
START_TEST(push_that_is_void_is_sent_again)
{
    const struct pd_welcome welcome = {.run_id = 7, .next_step = 4};
    receive_ahead(true);
    if (_i > 0) {
        pd_request_lost(&request);
        ck_assert_int_eq(pd_request_welcomed(&request, &welcome, 7, &error), PD_OK);
        ck_assert(request.accepted);
        pd_request_send(&request, &message, &payload);
        ck_assert_int_eq(message.kind, PD_MESSAGE_PULL);
    }
    message.kind = PD_MESSAGE_SETTLED;
    message.settled = (struct pd_settled){.again = true, .pulled = {.version = 4}};
    ck_assert_int_eq(pd_request_answered(&request, &message, 0, &error), PD_OK);
    ck_assert_int_eq(request.state, PD_REQUEST_ASKING);
    ck_assert(!request.accepted);
    pd_request_send(&request, &message, &payload);
    ck_assert_int_eq(message.kind, PD_MESSAGE_PUSH);

    message.kind = PD_MESSAGE_SETTLED;
    message.settled = (struct pd_settled){.pulled = {.version = 4}};
    ck_assert_int_eq(pd_request_answered(&request, &message, 0, &error), PD_EPROTOCOL);
}
END_TEST

/* It comes in one read with the Welcome that said so; or nobody was there to be told, and another
 * Welcome says so. */
START_TEST(push_that_was_accepted_may_be_taken_back)
{
    struct pd_welcome welcome = {.run_id = 7, .next_step = 4};
    receive_ahead(true);
    pd_request_lost(&request);
    ck_assert_int_eq(pd_request_welcomed(&request, &welcome, 7, &error), PD_OK);
    ck_assert(request.accepted);
    ck_assert_int_eq(request.state, PD_REQUEST_ASKING);
    if (_i == 0) {
        message.kind = PD_MESSAGE_SETTLED;
        message.settled = (struct pd_settled){.again = true, .pulled = {.version = 4}};
        ck_assert_int_eq(pd_request_answered(&request, &message, 0, &error), PD_OK);
    } else {
        welcome.next_step = 3;
        pd_request_lost(&request);
        ck_assert_int_eq(pd_request_welcomed(&request, &welcome, 7, &error), PD_OK);
    }
    ck_assert(!request.accepted);
    pd_request_send(&request, &message, &payload);
    ck_assert_int_eq(message.kind, PD_MESSAGE_PUSH);
}
END_TEST

START_TEST(parameters_ahead_that_were_damaged_are_pulled_once_they_are_settled)
{
    receive_ahead(false);
    ck_assert_int_eq(pd_request_answered(&request, &message, 0, &error), PD_OK);
    ck_assert_int_eq(request.state, PD_REQUEST_ASKING);
    pd_request_send(&request, &message, &payload);
    ck_assert_int_eq(message.kind, PD_MESSAGE_PULL);
    ck_assert_uint_eq(message.pull.min_version, 4);
}
END_TEST

START_TEST(a_push_whose_answer_was_not_settled_is_in_doubt)
{
    const struct pd_welcome welcome = {.run_id = 7, .next_step = 3};

    receive_ahead(true);
    pd_request_lost(&request);
    ck_assert_int_eq(pd_request_welcomed(&request, &welcome, 7, &error), PD_OK);
    pd_request_send(&request, &message, &payload);
    ck_assert_int_eq(message.kind, PD_MESSAGE_PUSH);
}
END_TEST

START_TEST(what_is_settled_is_the_version_that_was_sent)
{
    receive_ahead(true);
    message.settled.pulled.version = 5;
    ck_assert_int_eq(pd_request_answered(&request, &message, 0, &error), PD_EPROTOCOL);
    ck_assert_str_eq(error.message, "settled was version 5, pushed for was version 4");
}
END_TEST

START_TEST(parameters_ahead_come_only_when_asked_for)
{
    init_push(3, 0, true);
    pd_request_send(&request, &message, &payload);
    message.kind = PD_MESSAGE_PULLED;
    message.pulled = (struct pd_pulled){.version = 4,
                                        .dtype = PD_DTYPE_BFLOAT16,
                                        .element_begin = 2,
                                        .element_count = 4,
                                        .ahead = true};
    ck_assert_int_eq(pd_request_answered(&request, &message, 8, &error), PD_EPROTOCOL);
    ck_assert_str_eq(error.message, "got parameters ahead of their step, which was not asked for");
}
END_TEST

START_TEST(damage_is_asked_for_again_twice_and_no_more)
{
    struct pd_message answer = {.kind = PD_MESSAGE_ERROR, .error = {.status = PD_ECHECKSUM}};
    init_push(3, 0, false);
    for (int i = 0; i < 2; i++) {
        pd_request_send(&request, &message, &payload);
        ck_assert_int_eq(pd_request_answered(&request, &answer, 0, &error), PD_OK);
        ck_assert_int_eq(request.state, PD_REQUEST_ASKING);
    }
    pd_request_send(&request, &message, &payload);
    ck_assert_int_eq(pd_request_answered(&request, &answer, 0, &error), PD_ECHECKSUM);
}
END_TEST

START_TEST(an_error_passes_on_what_the_rank_says)
{
    struct pd_message answer = {.kind = PD_MESSAGE_ERROR,
                                .error = {.status = PD_EMODEL, .text = "no such tensor"}};
    init_push(3, 0, false);
    pd_request_send(&request, &message, &payload);
    ck_assert_int_eq(pd_request_answered(&request, &answer, 0, &error), PD_EMODEL);
    ck_assert_str_eq(error.message, "no such tensor");
}
END_TEST

START_TEST(leaving_twice_is_leaving)
{
    struct pd_message answer = {.kind = PD_MESSAGE_ERROR, .error = {.status = PD_EIDENTITY}};
    pd_request_init_leave(&request, (struct pd_position){5, 1});
    pd_request_send(&request, &message, &payload);
    ck_assert_uint_eq(message.leave.step, 5);
    ck_assert_uint_eq(message.leave.micro_batch, 1);
    ck_assert_int_eq(pd_request_answered(&request, &answer, 0, &error), PD_EIDENTITY);
    pd_request_init_leave(&request, (struct pd_position){5, 1});
    pd_request_send(&request, &message, &payload);
    pd_request_lost(&request);
    ck_assert_int_eq(pd_request_answered(&request, &answer, 0, &error), PD_OK);
    ck_assert_int_eq(request.state, PD_REQUEST_DONE);
}
END_TEST

/* Covering, with a gap, too short, and a rank beyond the limit. */
START_TEST(a_shard_map_must_cover_the_model_in_order)
{
    static struct pd_registered registered;
    static struct pd_message answer;
    answer.kind = PD_MESSAGE_REGISTERED;
    answer.registered.lane_count = 2;
    answer.registered.lanes[0] = (struct pd_lane){.rank = 0, .element_count = 2};
    answer.registered.lanes[1] =
        (struct pd_lane){.rank = 1, .element_begin = 2, .element_count = 4};
    answer.registered.lanes[1].element_begin += _i == 1;
    answer.registered.lanes[1].element_count -= _i == 2;
    answer.registered.lanes[1].rank = _i == 3 ? PD_RANK_COUNT_MAX : 1;
    pd_request_init_register(&request, &model, &registered);
    pd_request_send(&request, &message, &payload);
    ck_assert_uint_eq(message.registration.tensors.count, 1);
    ck_assert_int_eq(pd_request_answered(&request, &answer, 0, &error),
                     _i == 0 ? PD_OK : PD_EPROTOCOL);
    ck_assert_uint_eq(registered.lane_count, _i == 0 ? 2 : 0);
}
END_TEST

START_TEST(older_parts_are_pulled_again_until_all_are_the_newest)
{
    struct pd_request parts[3];
    for (uint32_t i = 0; i < 3; i++) {
        pd_request_init_pull(&parts[i], &lane, &arrays, 0, PD_DTYPE_FLOAT32);
        parts[i].state = PD_REQUEST_DONE;
        parts[i].pulled.version = i == 1 ? 6 : 5;
    }
    ck_assert_uint_eq(pd_requests_settle(parts, 3), 2);
    for (uint32_t i = 0; i < 3; i++) {
        ck_assert_int_eq(parts[i].state, i == 1 ? PD_REQUEST_DONE : PD_REQUEST_ASKING);
    }
    pd_request_send(&parts[0], &message, &payload);
    ck_assert_uint_eq(message.pull.min_version, 6);
    parts[0].state = parts[2].state = PD_REQUEST_DONE;
    parts[0].pulled.version = parts[2].pulled.version = 6;
    ck_assert_uint_eq(pd_requests_settle(parts, 3), 0);
}
END_TEST

START_TEST(an_admin_reply_is_placed_with_a_terminator)
{
    struct pd_admin admin = {.command = "status"};
    struct pd_message answer = {.kind = PD_MESSAGE_ADMIN_REPLY};
    pd_request_init_admin(&request, &admin);
    pd_request_send(&request, &message, &payload);
    ck_assert_str_eq(message.admin.command, "status");
    ck_assert_int_eq(pd_request_answered(&request, &answer, 2, &error), PD_OK);
    pd_heap_fail_at(0);
    ck_assert_int_eq(pd_request_place(&request, &payload, &error), PD_ENOMEM);
    pd_heap_fail_at(-1);
    ck_assert_int_eq(pd_request_place(&request, &payload, &error), PD_OK);
    memcpy(payload.bytes, "{}", 2);
    ck_assert_int_eq(pd_request_received(&request, true, &error), PD_OK);
    ck_assert_str_eq(request.reply, "{}");
    pd_heap_free(request.reply);
}
END_TEST

START_TEST(an_admin_reply_over_the_limit_is_refused)
{
    struct pd_admin admin = {.command = "status"};
    struct pd_message answer = {.kind = PD_MESSAGE_ADMIN_REPLY};
    pd_request_init_admin(&request, &admin);
    pd_request_send(&request, &message, &payload);
    ck_assert_int_eq(
        pd_request_answered(&request, &answer, PD_ADMIN_PAYLOAD_BYTES_MAX + 1ull, &error),
        PD_ELIMIT);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("request");
    TCase *tests = tcase_create("request");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, a_push_carries_its_lane_and_the_lanes_part_of_the_arrays);
    tcase_add_test(tests, a_push_the_rank_has_not_seen_is_asked_again);
    tcase_add_test(tests, an_estimate_is_asked_again_whatever_a_welcome_says);
    tcase_add_loop_test(tests, a_push_the_rank_accepted_is_done, 0, 2);
    tcase_add_test(tests, a_push_and_pull_the_rank_accepted_only_pulls);
    tcase_add_test(tests, a_push_acknowledged_in_an_earlier_call_is_not_sent);
    tcase_add_test(tests, another_run_ends_the_session);
    tcase_add_test(tests, values_already_published_are_not_sent_again);
    tcase_add_test(tests, only_the_answer_that_was_asked_for_is_taken);
    tcase_add_loop_test(tests, parameters_must_be_those_asked_for, 0, 7);
    tcase_add_test(tests, parameters_ahead_count_once_they_are_settled);
    tcase_add_test(tests, parameters_ahead_that_are_void_are_waited_for_again);
    tcase_add_loop_test(tests, push_that_is_void_is_sent_again, 0, 2);
    tcase_add_loop_test(tests, push_that_was_accepted_may_be_taken_back, 0, 2);
    tcase_add_test(tests, parameters_ahead_that_were_damaged_are_pulled_once_they_are_settled);
    tcase_add_test(tests, a_push_whose_answer_was_not_settled_is_in_doubt);
    tcase_add_test(tests, what_is_settled_is_the_version_that_was_sent);
    tcase_add_test(tests, parameters_ahead_come_only_when_asked_for);
    tcase_add_test(tests, damage_is_asked_for_again_twice_and_no_more);
    tcase_add_test(tests, an_error_passes_on_what_the_rank_says);
    tcase_add_test(tests, leaving_twice_is_leaving);
    tcase_add_loop_test(tests, a_shard_map_must_cover_the_model_in_order, 0, 4);
    tcase_add_test(tests, older_parts_are_pulled_again_until_all_are_the_newest);
    tcase_add_test(tests, an_admin_reply_is_placed_with_a_terminator);
    tcase_add_test(tests, an_admin_reply_over_the_limit_is_refused);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
