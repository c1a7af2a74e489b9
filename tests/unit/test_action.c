/* The list of what a rank wants done. */
#include "common/frame.h"
#include "common/heap.h"
#include "server/core/action.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct pd_actions actions;

static void setup(void)
{
    pd_actions_init(&actions);
}

static void teardown(void)
{
    pd_actions_finish(&actions);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

START_TEST(sent_message_is_a_frame_that_decodes)
{
    static const char payload[12];
    struct pd_message message = {.kind = PD_MESSAGE_PULLED,
                                 .pulled = {.version = 5, .element_count = 3}};
    struct pd_message decoded;
    struct pd_prefix prefix;
    struct pd_error error = {0};

    pd_actions_log(&actions, "something before");
    pd_actions_send(&actions, 17, &message, payload, sizeof payload, true);
    const struct pd_action *action = &actions.items[1];
    const uint8_t *frame = pd_actions_bytes(&actions, action->frame_offset);
    ck_assert_int_eq(action->kind, PD_ACTION_SEND);
    ck_assert_uint_eq(action->connection, 17);
    ck_assert_ptr_eq(action->payload, payload);
    ck_assert(action->checksum);
    ck_assert_int_eq(pd_prefix_decode(&prefix, frame, &error), PD_OK);
    ck_assert_uint_eq(prefix.payload_bytes, sizeof payload);
    ck_assert_uint_eq(prefix.flags, PD_FRAME_FLAG_CHECKSUM);
    ck_assert_uint_eq(prefix.header_bytes + PD_PREFIX_BYTES, action->frame_bytes);
    ck_assert_int_eq(pd_message_decode(&decoded, prefix.kind, frame + PD_PREFIX_BYTES,
                                       prefix.header_bytes, &error),
                     PD_OK);
    ck_assert_uint_eq(decoded.pulled.version, 5);
    pd_message_finish(&decoded);
}
END_TEST

START_TEST(list_grows_and_keeps_its_order_and_texts)
{
    for (int i = 0; i < 1000; i++) {
        pd_actions_log(&actions, "line %d", i);
    }
    ck_assert_uint_eq(actions.count, 1000);
    for (int i = 0; i < 1000; i += 333) {
        char expected[16];
        snprintf(expected, sizeof expected, "line %d", i);
        ck_assert_str_eq((const char *)pd_actions_bytes(&actions, actions.items[i].text_offset),
                         expected);
    }
}
END_TEST

START_TEST(memory_is_kept_from_one_list_to_the_next)
{
    for (int i = 0; i < 100; i++) {
        pd_actions_log(&actions, "line %d", i);
    }
    size_t allocations = pd_heap_allocations();
    pd_actions_reset(&actions);
    ck_assert_uint_eq(actions.count, 0);
    for (int i = 0; i < 100; i++) {
        pd_actions_log(&actions, "line %d", i);
    }
    ck_assert_uint_eq(pd_heap_allocations(), allocations);
}
END_TEST

START_TEST(long_text_is_cut)
{
    static char text[4 * PD_ERROR_BYTES_MAX];
    memset(text, 'x', sizeof text - 1);
    pd_actions_abort(&actions, "%s", text);
    ck_assert_uint_eq(
        strlen((const char *)pd_actions_bytes(&actions, actions.items[0].text_offset)),
        2 * PD_ERROR_BYTES_MAX - 1);
}
END_TEST

START_TEST(each_builder_says_what_it_was_told)
{
    struct pd_collective collective = {.order_index = 4};
    const struct pd_message ping = {.kind = PD_MESSAGE_PING};
    pd_actions_place(&actions, 1, &collective, 8);
    pd_actions_close(&actions, 2, true);
    pd_actions_collective(&actions, &collective);
    pd_actions_simple(&actions, PD_ACTION_WORK);
    pd_actions_exit(&actions, 3);
    pd_actions_send(&actions, 4, &ping, &collective, 8, false);
    pd_actions_convert(&actions, PD_DTYPE_FLOAT16);
    pd_actions_hold_back(&actions, 6);
    ck_assert_ptr_eq(actions.items[0].destination, &collective);
    ck_assert_uint_eq(actions.items[0].place_bytes, 8);
    ck_assert_uint_eq(actions.items[1].connection, 2);
    ck_assert(actions.items[1].flush);
    ck_assert_ptr_eq(actions.items[2].collective, &collective);
    ck_assert_int_eq(actions.items[3].kind, PD_ACTION_WORK);
    ck_assert_int_eq(actions.items[4].exit_code, 3);
    ck_assert_ptr_eq(actions.items[5].payload, &collective);
    ck_assert_int_eq(actions.items[5].payload_dtype, PD_DTYPE_FLOAT16);
    ck_assert_uint_eq(actions.items[5].payload_bytes, 8);
    ck_assert_uint_eq(actions.items[5].payload_ready, 6);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("action");
    TCase *tests = tcase_create("action");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, sent_message_is_a_frame_that_decodes);
    tcase_add_test(tests, list_grows_and_keeps_its_order_and_texts);
    tcase_add_test(tests, memory_is_kept_from_one_list_to_the_next);
    tcase_add_test(tests, long_text_is_cut);
    tcase_add_test(tests, each_builder_says_what_it_was_told);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
