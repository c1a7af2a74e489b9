/* Pulls: answered with one whole version, as soon as it exists. */
#include "engine_fixture.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static struct engine_fixture f;

static void setup(void)
{
    fixture_init(&f, 0, 1, "block_size: 4\nsend_timeout_s: 100\n");
    fixture_enlist(&f, 3, "a");
}

static void teardown(void)
{
    fixture_finish(&f);
}

static void pull(pd_connection_id connection, uint64_t min_version, uint32_t dtype)
{
    struct pd_message message = {.kind = PD_MESSAGE_PULL,
                                 .pull = {.min_version = min_version, .dtype = dtype}};
    fixture_say(&f, connection, &message, 0);
}

START_TEST(version_that_exists_is_sent_at_once)
{
    fixture_greet(&f, 4);
    pull(4, 0, PD_DTYPE_FLOAT32);
    ck_assert_int_eq(fixture_last(&f, 4)->kind, PD_MESSAGE_PULLED);
    ck_assert_uint_eq(fixture_last(&f, 4)->pulled.version, 0);
    ck_assert_uint_eq(fixture_last(&f, 4)->pulled.host_workers, 0);
    ck_assert_uint_eq(fixture_last(&f, 4)->pulled.element_count, FIXTURE_ELEMENTS);
    const struct fixture_sent *sent = &f.sent[f.sent_count - 1];
    ck_assert_uint_eq(sent->payload_bytes, FIXTURE_ELEMENTS * sizeof(float));
    ck_assert_ptr_eq(sent->payload, pd_param_store_served(&f.engine->store));
}
END_TEST

static uint32_t host_workers_of(pd_connection_id connection)
{
    pull(connection, 0, PD_DTYPE_FLOAT32);
    fixture_sent_event(&f, connection);
    return fixture_last(&f, connection)->pulled.host_workers;
}

START_TEST(worker_is_told_how_many_share_its_host)
{
    ck_assert_uint_eq(host_workers_of(3), 1);
    fixture_enlist(&f, 5, "second");
    fixture_enlist(&f, 6, "third");
    fixture_greet(&f, 7);
    ck_assert_uint_eq(host_workers_of(3), 3);
    ck_assert_uint_eq(host_workers_of(6), 3);
    ck_assert_uint_eq(host_workers_of(7), 0);
    fixture_close(&f, 5);
    ck_assert_uint_eq(host_workers_of(3), 2);
    struct pd_message leave = {.kind = PD_MESSAGE_LEAVE};
    fixture_say(&f, 6, &leave, 0);
    fixture_work(&f);
    ck_assert_uint_eq(host_workers_of(6), 0);
    ck_assert_uint_eq(host_workers_of(3), 1);
}
END_TEST

START_TEST(next_version_is_sent_when_it_is_made)
{
    fixture_greet(&f, 4);
    pull(4, 1, PD_DTYPE_FLOAT32);
    ck_assert_uint_eq(fixture_count(&f, 4, PD_MESSAGE_PULLED), 0);
    fixture_push(&f, 3, 0, 1, 1);
    ck_assert_uint_eq(fixture_last(&f, 4)->pulled.version, 1);
}
END_TEST

/* A rank may lag a step behind what rank 0 tells a worker to begin with, and no more. */
START_TEST(version_two_ahead_waits_and_three_ahead_is_refused)
{
    fixture_greet(&f, 4);
    fixture_greet(&f, 5);
    pull(4, 2, PD_DTYPE_FLOAT32);
    ck_assert_int_eq(fixture_last(&f, 4)->kind, PD_MESSAGE_WELCOME);
    pull(5, 3, PD_DTYPE_FLOAT32);
    fixture_expect_error(&f, 5, PD_ESTEP, false, "version 3 is from the future: the next is 1");
    fixture_push(&f, 3, 0, 1, 1);
    ck_assert_int_eq(fixture_last(&f, 4)->kind, PD_MESSAGE_WELCOME);
    fixture_push(&f, 3, 1, 1, 1);
    ck_assert_uint_eq(fixture_last(&f, 4)->pulled.version, 2);
}
END_TEST

/* The same buffer for all: it is converted on its way out, and read until then. */
START_TEST(each_type_is_sent_of_the_one_buffer)
{
    struct pd_param_store *store = &f.engine->store;
    for (uint32_t dtype = PD_DTYPE_FLOAT32; dtype <= PD_DTYPE_FLOAT16; dtype++) {
        pd_connection_id connection = 4 + dtype;
        fixture_greet(&f, connection);
        pull(connection, 0, dtype);
        const struct fixture_sent *sent = &f.sent[f.sent_count - 1];
        ck_assert_int_eq(sent->message->kind, PD_MESSAGE_PULLED);
        ck_assert_uint_eq(sent->message->pulled.dtype, dtype);
        ck_assert_uint_eq(sent->payload_dtype, dtype);
        ck_assert_uint_eq(sent->payload_bytes,
                          FIXTURE_ELEMENTS * pd_dtype_bytes((enum pd_dtype)dtype));
        ck_assert_ptr_eq(sent->payload, pd_param_store_served(store));
        ck_assert_uint_eq(store->buffers[store->served].users, 1 + dtype);
    }
}
END_TEST

START_TEST(unknown_type_is_refused)
{
    fixture_greet(&f, 4);
    pull(4, 0, 7);
    fixture_expect_error(&f, 4, PD_EINVALID, false, "dtype 7; allowed: 0 float32");
}
END_TEST

START_TEST(second_pull_before_the_answer_is_read_ends_the_connection)
{
    fixture_greet(&f, 4);
    pull(4, 0, PD_DTYPE_FLOAT32);
    pull(4, 0, PD_DTYPE_FLOAT32);
    fixture_expect_error(&f, 4, PD_EPROTOCOL, true, "before the answer to the one before");
    fixture_close(&f, 4);
    ck_assert_uint_eq(f.engine->store.buffers[0].users + f.engine->store.buffers[1].users, 0);
}
END_TEST

START_TEST(buffer_is_in_use_until_it_is_sent_or_the_connection_is_gone)
{
    struct pd_param_store *store = &f.engine->store;
    fixture_greet(&f, 4);
    fixture_greet(&f, 5);
    pull(4, 0, PD_DTYPE_FLOAT32);
    pull(5, 0, PD_DTYPE_FLOAT32);
    ck_assert_uint_eq(store->buffers[store->served].users, 2);
    fixture_sent_event(&f, 4);
    ck_assert_uint_eq(store->buffers[store->served].users, 1);
    fixture_close(&f, 5);
    ck_assert_uint_eq(store->buffers[store->served].users, 0);
}
END_TEST

/* The reader of version 0 is still at it when step 1 needs the memory. */
START_TEST(reader_two_versions_behind_is_cut_off_and_the_step_goes_on)
{
    fixture_greet(&f, 4);
    pull(4, 0, PD_DTYPE_FLOAT32);
    fixture_push(&f, 3, 0, 1, 1);
    ck_assert(!f.closed[4]);
    fixture_push(&f, 3, 1, 1, 1);
    ck_assert(f.closed[4]);
    ck_assert_ptr_nonnull(strstr(f.logged, "still reading version 0"));
    ck_assert_uint_eq(f.engine->store.version, 1);
    fixture_close(&f, 4);
    fixture_work(&f);
    ck_assert_uint_eq(f.engine->store.version, 2);
}
END_TEST

START_TEST(pull_with_a_push_is_answered_with_what_the_push_makes)
{
    float elements[FIXTURE_ELEMENTS] = {0};
    struct pd_message push = {
        .kind = PD_MESSAGE_PUSH,
        .push = {.last = true, .samples = 1, .element_count = FIXTURE_ELEMENTS, .pull = true}};
    fixture_say(&f, 3, &push, sizeof elements);
    fixture_payload(&f, 3, elements, sizeof elements, true);
    ck_assert_uint_eq(fixture_count(&f, 3, PD_MESSAGE_PUSHED), 0);
    fixture_work(&f);
    ck_assert_int_eq(fixture_last(&f, 3)->kind, PD_MESSAGE_PULLED);
    ck_assert_uint_eq(fixture_last(&f, 3)->pulled.version, 1);
    ck_assert_uint_eq(fixture_last(&f, 3)->pulled.lr_count, 1);
    ck_assert_uint_eq(fixture_last(&f, 3)->pulled.host_workers, 1);
    ck_assert(fixture_last(&f, 3)->pulled.lrs[0] > 0);
}
END_TEST

START_TEST(guest_waits_for_the_first_version)
{
    struct engine_fixture *fresh = calloc(1, sizeof *fresh);
    fixture_init(fresh, 0, 1, "block_size: 4\n");
    struct pd_message message = {.kind = PD_MESSAGE_PULL};
    fixture_greet(fresh, 9);
    fixture_say(fresh, 9, &message, 0);
    ck_assert_uint_eq(fixture_count(fresh, 9, PD_MESSAGE_PULLED), 0);
    fixture_enlist(fresh, 3, "a");
    ck_assert_uint_eq(fixture_count(fresh, 9, PD_MESSAGE_PULLED), 1);
    fixture_close(fresh, 9);
    fixture_forget(fresh);
    pd_tensor_list_finish(&fresh->model);
    pd_actions_finish(&fresh->actions);
    pd_engine_destroy(fresh->engine);
    pd_config_destroy(fresh->config);
    free(fresh);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("serve");
    TCase *tests = tcase_create("serve");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, version_that_exists_is_sent_at_once);
    tcase_add_test(tests, worker_is_told_how_many_share_its_host);
    tcase_add_test(tests, next_version_is_sent_when_it_is_made);
    tcase_add_test(tests, version_two_ahead_waits_and_three_ahead_is_refused);
    tcase_add_test(tests, each_type_is_sent_of_the_one_buffer);
    tcase_add_test(tests, unknown_type_is_refused);
    tcase_add_test(tests, second_pull_before_the_answer_is_read_ends_the_connection);
    tcase_add_test(tests, buffer_is_in_use_until_it_is_sent_or_the_connection_is_gone);
    tcase_add_test(tests, reader_two_versions_behind_is_cut_off_and_the_step_goes_on);
    tcase_add_test(tests, pull_with_a_push_is_answered_with_what_the_push_makes);
    tcase_add_test(tests, guest_waits_for_the_first_version);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
