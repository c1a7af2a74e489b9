/* One connection: what may be said on it, and what is answered when it may not. */
#include "engine_fixture.h"

#include "common/heap.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG                                                                                     \
    "workers: {lease_s: 20, resume_s: 5}\nhandshake_s: 2\nsend_timeout_s: 4\n"                     \
    "accumulation_steps: 2\nblock_size: 4\n"

static struct engine_fixture f;

static void setup(void)
{
    fixture_init(&f, 0, 1, CONFIG);
}

static void teardown(void)
{
    fixture_finish(&f);
}

static struct pd_message push_of(uint64_t step, uint32_t micro_batch, bool last)
{
    return (struct pd_message){.kind = PD_MESSAGE_PUSH,
                               .push = {.step = step,
                                        .micro_batch = micro_batch,
                                        .last = last,
                                        .samples = 1,
                                        .element_count = FIXTURE_ELEMENTS}};
}

#define PUSH_BYTES (FIXTURE_ELEMENTS * sizeof(float))

START_TEST(hello_comes_first)
{
    struct pd_message join = {.kind = PD_MESSAGE_JOIN};
    fixture_open(&f, 3);
    fixture_say(&f, 3, &join, 0);
    fixture_expect_error(&f, 3, PD_EPROTOCOL, true, "join before hello is out of order");
}
END_TEST

START_TEST(message_of_a_rank_to_a_peer_is_refused)
{
    struct pd_message welcome = {.kind = PD_MESSAGE_WELCOME};
    fixture_greet(&f, 3);
    fixture_say(&f, 3, &welcome, 0);
    fixture_expect_error(&f, 3, PD_EPROTOCOL, true, "welcome is a message from a rank");
}
END_TEST

START_TEST(guest_may_not_do_what_workers_do)
{
    static const enum pd_message_kind kinds[] = {PD_MESSAGE_REGISTER, PD_MESSAGE_LEAVE,
                                                 PD_MESSAGE_VALUES, PD_MESSAGE_PUSH};
    struct pd_message message = {.kind = kinds[_i]};
    fixture_greet(&f, 3);
    fixture_say(&f, 3, &message, 0);
    fixture_expect_error(&f, 3, PD_EPROTOCOL, true, "from a peer that has not joined");
}
END_TEST

START_TEST(payload_where_none_belongs_is_refused)
{
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO};
    fixture_open(&f, 3);
    fixture_say(&f, 3, &hello, 1000);
    fixture_expect_error(&f, 3, PD_ELIMIT, true, "hello: payload of 1000 bytes; allowed: 0");
}
END_TEST

START_TEST(stream_that_holds_no_frames_gets_a_line)
{
    struct pd_error error = {.status = PD_EPROTOCOL, .message = "bad magic"};
    struct pd_event event = {
        .kind = PD_EVENT_FAILED, .connection = 3, .now_ms = f.now_ms, .error = &error};
    fixture_open(&f, 3);
    pd_actions_reset(&f.actions);
    pd_engine_step(f.engine, &event, &f.actions);
    ck_assert_uint_eq(f.actions.items[f.actions.count - 1].kind, PD_ACTION_CLOSE);
    ck_assert(f.actions.items[f.actions.count - 1].flush);
    event.kind = PD_EVENT_CLOSED;
    pd_actions_reset(&f.actions);
    pd_engine_step(f.engine, &event, &f.actions);
    fixture_open(&f, 3);
    fixture_close(&f, 3);
}
END_TEST

START_TEST(connection_that_says_nothing_is_closed_in_time)
{
    fixture_open(&f, 3);
    fixture_wait(&f, 2000);
    ck_assert(!f.closed[3]);
    fixture_wait(&f, 500);
    fixture_expect_error(&f, 3, PD_ETIMEOUT, true, "no hello within 2 s");
}
END_TEST

START_TEST(silent_guest_is_closed_and_one_that_pings_is_not)
{
    struct pd_message ping = {.kind = PD_MESSAGE_PING};
    fixture_greet(&f, 3);
    fixture_greet(&f, 4);
    fixture_wait(&f, 19000);
    fixture_say(&f, 4, &ping, 0);
    fixture_wait(&f, 1500);
    ck_assert(f.closed[3]);
    ck_assert(!f.closed[4]);
}
END_TEST

START_TEST(peer_that_reads_nothing_is_cut_off)
{
    struct pd_message admin = {.kind = PD_MESSAGE_ADMIN, .admin = {.command = "step"}};
    fixture_greet(&f, 3);
    fixture_say(&f, 3, &admin, 0);
    ck_assert_int_eq(fixture_last(&f, 3)->kind, PD_MESSAGE_ADMIN_REPLY);
    fixture_wait(&f, 3000);
    fixture_progress(&f, 3, false);
    fixture_wait(&f, 3000);
    ck_assert(!f.closed[3]);
    fixture_wait(&f, 1500);
    ck_assert(f.closed[3]);
    ck_assert_ptr_nonnull(strstr(f.logged, "nothing was read of an answer for 4 s"));
    fixture_close(&f, 3);
}
END_TEST

START_TEST(time_this_rank_was_stopped_is_not_held_against_peers)
{
    fixture_greet(&f, 3);
    fixture_wait(&f, 250);
    f.now_ms += 60000;
    fixture_wait(&f, 500);
    ck_assert(!f.closed[3]);
}
END_TEST

START_TEST(worker_takes_up_its_session_with_its_token_only)
{
    uint32_t id = fixture_enlist(&f, 3, "a");
    struct pd_message hello = {
        .kind = PD_MESSAGE_HELLO,
        .hello = {.has_worker_id = true, .worker_id = id, .token = 1, .run_id = 99}};
    fixture_open(&f, 4);
    fixture_say(&f, 4, &hello, 0);
    fixture_expect_error(&f, 4, PD_EIDENTITY, true, "this is not the token it was given");
    fixture_open(&f, 5);
    hello.hello.run_id = 98;
    fixture_say(&f, 5, &hello, 0);
    fixture_expect_error(&f, 5, PD_EIDENTITY, true, "belongs to run 0000000000000062");
    fixture_open(&f, 6);
    hello.hello.worker_id = id + 1;
    hello.hello.run_id = 99;
    fixture_say(&f, 6, &hello, 0);
    fixture_expect_error(&f, 6, PD_EIDENTITY, true, "is not known in this run");
    ck_assert(!f.closed[3]);
}
END_TEST

/* The push whose end never came is to be sent again; the one that was accepted is not. */
START_TEST(welcome_says_which_push_comes_next)
{
    uint32_t id = fixture_enlist(&f, 3, "a");
    struct pd_message push = push_of(0, 0, false);
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO,
                               .hello = {.has_worker_id = true,
                                         .worker_id = id,
                                         .token = pd_roster_find(f.engine->roster, id)->token,
                                         .run_id = 99}};
    fixture_say(&f, 3, &push, PUSH_BYTES);
    fixture_payload(&f, 3, NULL, 0, true);
    fixture_work(&f);
    push = push_of(0, 1, true);
    fixture_say(&f, 3, &push, PUSH_BYTES);
    ck_assert_ptr_nonnull(f.placed[3]);
    fixture_open(&f, 4);
    fixture_say(&f, 4, &hello, 0);
    ck_assert(f.closed[3]);
    const struct pd_message *welcome = fixture_last(&f, 4);
    ck_assert_int_eq(welcome->kind, PD_MESSAGE_WELCOME);
    ck_assert_uint_eq(welcome->welcome.next_step, 0);
    ck_assert_uint_eq(welcome->welcome.next_micro_batch, 1);
    ck_assert(welcome->welcome.has_version);
    fixture_close(&f, 3);
    fixture_say(&f, 4, &push, PUSH_BYTES);
    fixture_payload(&f, 4, NULL, 0, true);
    fixture_work(&f);
    ck_assert_uint_eq(f.engine->store.version, 1);
}
END_TEST

START_TEST(wrong_push_is_refused_and_changes_nothing)
{
    static const struct {
        struct pd_push push;
        uint64_t payload_bytes;
        enum pd_status status;
        const char *text;
    } cases[] = {
        {{.element_count = 8, .dtype = 9}, 32, PD_EMODEL, "dtype 9; allowed: 0 float32"},
        {{.element_count = 7}, 28, PD_EMODEL, "7 elements from 0; rank 0 takes 8 from 0"},
        {{.element_count = 8, .element_begin = 1}, 32, PD_EMODEL, "8 elements from 1"},
        {{.element_count = 8}, 31, PD_EMODEL, "payload of 31 bytes; 8 elements of float32 are 32"},
        {{.element_count = 8, .dtype = 2}, 32, PD_EMODEL, "8 elements of float16 are 16 bytes"},
        {{.element_count = 8, .pull = true}, 32, PD_EINVALID, "the last micro-batch only"},
        {{.element_count = 8, .pull = true, .last = true, .pull_dtype = 3},
         32,
         PD_EINVALID,
         "pull_dtype 3"},
        {{.element_count = 8, .step = 5}, 32, PD_ESTEP, "from the future"},
        {{.element_count = 8, .micro_batch = 1, .last = true}, 32, PD_ESTEP, "0 is the next"},
        {{.element_count = 8, .micro_batch = 2}, 32, PD_EINVALID, "micro-batch 2; allowed: 0 to 1"},
    };
    struct pd_message message = {.kind = PD_MESSAGE_PUSH};
    fixture_enlist(&f, 3, "a");
    message.push = cases[_i].push;
    message.push.samples = 1;
    fixture_say(&f, 3, &message, cases[_i].payload_bytes);
    fixture_expect_error(&f, 3, cases[_i].status, false, cases[_i].text);
    ck_assert_ptr_null(f.placed[3]);
    fixture_payload(&f, 3, NULL, 0, true);
    message = push_of(0, 0, true);
    fixture_say(&f, 3, &message, PUSH_BYTES);
    ck_assert_ptr_nonnull(f.placed[3]);
}
END_TEST

START_TEST(damaged_push_is_asked_for_again)
{
    struct pd_message push = push_of(0, 0, true);
    fixture_enlist(&f, 3, "a");
    fixture_say(&f, 3, &push, PUSH_BYTES);
    fixture_payload(&f, 3, NULL, 0, false);
    fixture_expect_error(&f, 3, PD_ECHECKSUM, false, "do not match their checksum");
    fixture_work(&f);
    ck_assert_uint_eq(f.engine->store.version, 0);
    fixture_push(&f, 3, 0, 1, 1);
    ck_assert_uint_eq(f.engine->store.version, 1);
}
END_TEST

START_TEST(repeated_push_is_answered_and_dropped)
{
    struct pd_message push = push_of(0, 0, true);
    fixture_enlist(&f, 3, "a");
    fixture_push(&f, 3, 0, 1, 1);
    fixture_say(&f, 3, &push, PUSH_BYTES);
    ck_assert_ptr_null(f.placed[3]);
    ck_assert_int_eq(fixture_last(&f, 3)->kind, PD_MESSAGE_PUSHED);
    ck_assert(fixture_last(&f, 3)->pushed.duplicate);
    fixture_payload(&f, 3, NULL, 0, true);
    ck_assert_uint_eq(fixture_count(&f, 3, PD_MESSAGE_PUSHED), 2);
    fixture_work(&f);
    ck_assert_uint_eq(f.engine->store.version, 1);
}
END_TEST

/* The next micro-batch may come before the one before is in the sum: it waits, and is then taken.
 */
START_TEST(push_that_comes_early_is_parked)
{
    struct pd_message push = push_of(0, 0, false);
    fixture_enlist(&f, 3, "a");
    fixture_say(&f, 3, &push, PUSH_BYTES);
    fixture_payload(&f, 3, NULL, 0, true);
    push = push_of(0, 1, true);
    fixture_say(&f, 3, &push, PUSH_BYTES);
    ck_assert(!f.was_placed[3]);
    fixture_work_once(&f);
    ck_assert(f.was_placed[3]);
    fixture_payload(&f, 3, NULL, 0, true);
    fixture_work(&f);
    ck_assert_uint_eq(f.engine->store.version, 1);
}
END_TEST

START_TEST(values_are_taken_once)
{
    static const float others[FIXTURE_ELEMENTS] = {9, 9, 9, 9, 9, 9, 9, 9};
    struct pd_message values = {.kind = PD_MESSAGE_VALUES,
                                .values = {.element_count = FIXTURE_ELEMENTS}};
    fixture_enlist(&f, 3, "a");
    fixture_say(&f, 3, &values, sizeof others);
    ck_assert_ptr_null(f.placed[3]);
    fixture_payload(&f, 3, others, sizeof others, true);
    ck_assert_uint_eq(fixture_count(&f, 3, PD_MESSAGE_VALUES_STORED), 2);
    ck_assert_float_eq(pd_param_store_served(&f.engine->store)[0], 1);
}
END_TEST

START_TEST(values_of_another_worker_are_refused)
{
    struct pd_message values = {.kind = PD_MESSAGE_VALUES,
                                .values = {.element_count = FIXTURE_ELEMENTS}};
    fixture_enlist(&f, 3, "a");
    fixture_enlist(&f, 4, "b");
    fixture_say(&f, 4, &values, PUSH_BYTES);
    fixture_expect_error(&f, 4, PD_EREFUSED, false, "needs no values from this worker");
}
END_TEST

START_TEST(damaged_values_are_asked_for_again)
{
    struct pd_message values = {.kind = PD_MESSAGE_VALUES,
                                .values = {.element_count = FIXTURE_ELEMENTS}};
    struct pd_message offer = {.kind = PD_MESSAGE_REGISTER, .registration = {.tensors = f.model}};
    fixture_join(&f, 3, "a");
    fixture_say(&f, 3, &offer, 0);
    fixture_say(&f, 3, &values, PUSH_BYTES);
    fixture_payload(&f, 3, NULL, 0, false);
    fixture_expect_error(&f, 3, PD_ECHECKSUM, false, "send them again");
    ck_assert(!f.engine->store.has_version);
    fixture_say(&f, 3, &values, PUSH_BYTES);
    fixture_payload(&f, 3, NULL, 0, true);
    ck_assert(f.engine->store.has_version);
}
END_TEST

START_TEST(impostor_of_a_rank_is_refused)
{
    struct pd_message hello = {.kind = PD_MESSAGE_RANK_HELLO,
                               .rank_hello = {.rank = 1, .secret = 1}};
    fixture_open(&f, 3);
    fixture_say(&f, 3, &hello, 0);
    fixture_expect_error(&f, 3, PD_EIDENTITY, true, "this peer is no rank of this job");
}
END_TEST

START_TEST(second_question_before_the_answer_is_read_is_refused)
{
    struct pd_message admin = {.kind = PD_MESSAGE_ADMIN, .admin = {.command = "step"}};
    fixture_greet(&f, 3);
    fixture_say(&f, 3, &admin, 0);
    fixture_sent_event(&f, 3);
    fixture_say(&f, 3, &admin, 0);
    ck_assert_uint_eq(fixture_count(&f, 3, PD_MESSAGE_ADMIN_REPLY), 2);
    fixture_say(&f, 3, &admin, 0);
    fixture_expect_error(&f, 3, PD_EPROTOCOL, true, "before the answer to the request before");
    fixture_close(&f, 3);
}
END_TEST

START_TEST(worker_that_computes_without_a_word_is_evicted_and_told_why)
{
    uint32_t id = fixture_enlist(&f, 3, "a");
    fixture_wait(&f, 20500);
    fixture_expect_error(&f, 3, PD_ETIMEOUT, true, "the lease is over");
    ck_assert_ptr_null(pd_roster_find(f.engine->roster, id));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("session");
    TCase *tests = tcase_create("session");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, hello_comes_first);
    tcase_add_test(tests, message_of_a_rank_to_a_peer_is_refused);
    tcase_add_loop_test(tests, guest_may_not_do_what_workers_do, 0, 4);
    tcase_add_test(tests, payload_where_none_belongs_is_refused);
    tcase_add_test(tests, stream_that_holds_no_frames_gets_a_line);
    tcase_add_test(tests, connection_that_says_nothing_is_closed_in_time);
    tcase_add_test(tests, silent_guest_is_closed_and_one_that_pings_is_not);
    tcase_add_test(tests, peer_that_reads_nothing_is_cut_off);
    tcase_add_test(tests, time_this_rank_was_stopped_is_not_held_against_peers);
    tcase_add_test(tests, worker_takes_up_its_session_with_its_token_only);
    tcase_add_test(tests, welcome_says_which_push_comes_next);
    tcase_add_loop_test(tests, wrong_push_is_refused_and_changes_nothing, 0, 10);
    tcase_add_test(tests, damaged_push_is_asked_for_again);
    tcase_add_test(tests, repeated_push_is_answered_and_dropped);
    tcase_add_test(tests, push_that_comes_early_is_parked);
    tcase_add_test(tests, values_are_taken_once);
    tcase_add_test(tests, values_of_another_worker_are_refused);
    tcase_add_test(tests, damaged_values_are_asked_for_again);
    tcase_add_test(tests, impostor_of_a_rank_is_refused);
    tcase_add_test(tests, second_question_before_the_answer_is_read_is_refused);
    tcase_add_test(tests, worker_that_computes_without_a_word_is_evicted_and_told_why);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
