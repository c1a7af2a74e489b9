/* Who is read when there is room for one worker's gradient at a time. */
#include "engine_fixture.h"

#include "server/core/step_state.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>

#define A 3u
#define B 4u
#define C 5u
/* One place on a lone rank that has all of the model. */
#define ONE "optimizer: {name: sgd, lr: 1}\nworkers: {expected: 2, staging_limit: 32}\n"

static struct engine_fixture f;

static void teardown(void)
{
    fixture_finish(&f);
}

static void begin_push(pd_connection_id connection, uint64_t step)
{
    const struct pd_message push = {
        .kind = PD_MESSAGE_PUSH,
        .push = {.step = step, .last = true, .samples = 1, .element_count = FIXTURE_ELEMENTS}};
    f.placed[connection] = NULL;
    f.was_placed[connection] = false;
    fixture_say(&f, connection, &push, FIXTURE_ELEMENTS * sizeof(float));
}

static bool is_read(pd_connection_id connection)
{
    return f.was_placed[connection];
}

static void end_push(pd_connection_id connection, float element)
{
    float elements[FIXTURE_ELEMENTS];

    for (uint32_t i = 0; i < FIXTURE_ELEMENTS; i++) {
        elements[i] = element;
    }
    fixture_payload(&f, connection, elements, sizeof elements, true);
    fixture_work(&f);
}

static float first_parameter(void)
{
    return pd_param_store_served(&f.engine->store)[0];
}

START_TEST(first_in_order_is_read_first_and_makes_room_once_it_is_whole)
{
    fixture_init(&f, 0, 1, ONE);
    (void)fixture_enlist(&f, A, "a");
    (void)fixture_enlist(&f, B, "b");
    begin_push(B, 0);
    ck_assert(!is_read(B));
    begin_push(A, 0);
    ck_assert(is_read(A));
    ck_assert(!is_read(B));
    end_push(A, 1);
    ck_assert(is_read(B));
    ck_assert_uint_eq(f.engine->store.version, 0);
    end_push(B, 5);
    ck_assert_uint_eq(f.engine->store.version, 1);
    ck_assert_float_eq(first_parameter(), 1 - (1.0f + 5.0f) / 2);
    ck_assert_uint_eq(f.engine->roster->staging.buffer_count, 1);
}
END_TEST

START_TEST(nobody_is_read_before_the_workers_that_are_expected_are_there)
{
    fixture_init(&f, 0, 1, ONE);
    (void)fixture_enlist(&f, B, "b");
    begin_push(B, 0);
    ck_assert(!is_read(B));
    (void)fixture_enlist(&f, A, "a");
    ck_assert(!is_read(B));
    begin_push(A, 0);
    end_push(A, 1);
    ck_assert(is_read(B));
}
END_TEST

START_TEST(worker_that_comes_late_waits_for_the_next_step_only_if_it_comes_before_one_read)
{
    fixture_init(&f, 0, 1, ONE);
    (void)fixture_enlist(&f, B, "b");
    (void)fixture_enlist(&f, C, "c");
    struct pd_message offer = {.kind = PD_MESSAGE_REGISTER, .registration = {.tensors = f.model}};
    (void)fixture_join(&f, A, "a");
    fixture_say(&f, A, &offer, 0);
    ck_assert_int_eq(fixture_last(&f, A)->kind, PD_MESSAGE_JOINED);
    (void)fixture_enlist(&f, 6, "d");
    for (pd_connection_id connection = 6; connection >= B; connection--) {
        begin_push(connection, 0);
    }
    for (pd_connection_id connection = B; connection <= 6; connection++) {
        ck_assert(is_read(connection));
        ck_assert_int_eq(fixture_last(&f, A)->kind, PD_MESSAGE_JOINED);
        end_push(connection, 1);
    }
    ck_assert_uint_eq(f.engine->store.version, 1);
    ck_assert_int_eq(fixture_last(&f, A)->kind, PD_MESSAGE_REGISTERED);
    ck_assert_uint_eq(fixture_last(&f, A)->registered.step, 1);
    begin_push(A, 1);
    ck_assert(is_read(A));
}
END_TEST

START_TEST(place_of_a_worker_that_is_gone_is_the_next_ones)
{
    fixture_init(&f, 0, 1, ONE);
    (void)fixture_enlist(&f, A, "a");
    (void)fixture_enlist(&f, B, "b");
    begin_push(B, 0);
    begin_push(A, 0);
    fixture_receive(&f, A, "abcdefgh", 0, 8);
    fixture_close(&f, A);
    ck_assert(!is_read(B));
    fixture_wait(&f, 16000);
    ck_assert(is_read(B));
    end_push(B, 5);
    ck_assert_uint_eq(f.engine->store.version, 1);
    ck_assert_float_eq(first_parameter(), 1 - 5.0f);
}
END_TEST

START_TEST(gradient_that_is_not_finite_is_told_of_though_it_is_given_up)
{
    fixture_init(&f, 0, 1, ONE);
    (void)fixture_enlist(&f, A, "a");
    (void)fixture_enlist(&f, B, "b");
    begin_push(B, 0);
    begin_push(A, 0);
    end_push(A, NAN);
    end_push(B, 1);
    ck_assert_uint_eq(f.engine->skipped_steps, 1);
    ck_assert_str_eq(f.engine->leader->last_skip_reason,
                     "step 0: the gradient of worker 0 'a' is not finite: tensor 'w', element 0");
    begin_push(A, 1);
    end_push(A, 1);
    begin_push(B, 1);
    end_push(B, 1);
    ck_assert_uint_eq(f.engine->store.version, 2);
    ck_assert_float_eq(first_parameter(), 0);
}
END_TEST

/* As begin_push, but for a tensor that it has no gradient of: 0 "w", 1 "b". */
static void begin_push_without(pd_connection_id connection, uint32_t tensor)
{
    struct pd_message push = {
        .kind = PD_MESSAGE_PUSH,
        .push = {.last = true, .samples = 1, .element_count = FIXTURE_ELEMENTS}};
    pd_tensor_set_add(&push.push.absent, tensor);
    fixture_say(&f, connection, &push, FIXTURE_ELEMENTS * sizeof(float));
}

static void end_push_of(pd_connection_id connection, float in_w, float in_b)
{
    const float elements[FIXTURE_ELEMENTS] = {in_w, in_w, in_w, in_w, in_w, in_w, in_b, in_b};

    fixture_payload(&f, connection, elements, sizeof elements, true);
    fixture_work(&f);
}

#define THREE "workers: {expected: 3, staging_limit: 32}\n"

START_TEST(tensor_that_nobody_gave_does_not_hide_whose_gradient_is_not_finite)
{
    fixture_init(&f, 0, 1, THREE);
    (void)fixture_enlist(&f, A, "a");
    (void)fixture_enlist(&f, B, "b");
    (void)fixture_enlist(&f, C, "c");
    begin_push_without(A, 0);
    end_push_of(A, NAN, 1);
    begin_push_without(B, 0);
    end_push_of(B, 0, NAN);
    begin_push_without(C, 0);
    end_push_of(C, 0, 1);
    ck_assert_uint_eq(f.engine->skipped_steps, 1);
    ck_assert_str_eq(f.engine->leader->last_skip_reason,
                     "step 0: the gradient of worker 1 'b' is not finite: tensor 'b', element 0");
}
END_TEST

START_TEST(elements_without_a_gradient_that_are_not_finite_are_told_of_if_others_gave_one)
{
    fixture_init(&f, 0, 1, THREE);
    (void)fixture_enlist(&f, A, "a");
    (void)fixture_enlist(&f, B, "b");
    (void)fixture_enlist(&f, C, "c");
    begin_push(A, 0);
    end_push_of(A, 1, 1);
    begin_push_without(B, 0);
    end_push_of(B, NAN, 1);
    begin_push(C, 0);
    end_push_of(C, 1, 1);
    ck_assert_uint_eq(f.engine->skipped_steps, 1);
    ck_assert_str_eq(f.engine->leader->last_skip_reason,
                     "step 0: the gradient of worker 1 'b' is not finite: tensor 'w', element 0");
}
END_TEST

START_TEST(what_is_taken_is_not_scaled_before_its_step)
{
    fixture_init(&f, 0, 1, ONE);
    (void)fixture_enlist(&f, A, "a");
    (void)fixture_enlist(&f, B, "b");
    begin_push(A, 0);
    end_push(A, 1);
    ck_assert_float_eq(f.engine->step->scale, 1);
    ck_assert_ptr_null(f.engine->step->lone);
}
END_TEST

START_TEST(model_that_does_not_fit_is_refused_when_it_is_registered)
{
    fixture_init(&f, 0, 1, "workers: {staging_limit: 31}\n");
    struct pd_message offer = {.kind = PD_MESSAGE_REGISTER, .registration = {.tensors = f.model}};
    (void)fixture_join(&f, A, "a");
    fixture_say(&f, A, &offer, 0);
    fixture_expect_error(&f, A, PD_ELIMIT, false, "31 bytes; allowed: at least 32");
    ck_assert(!f.engine->has_model);
}
END_TEST

START_TEST(push_that_waits_is_refused_when_the_daemon_drains)
{
    fixture_init(&f, 0, 1, ONE);
    (void)fixture_enlist(&f, A, "a");
    (void)fixture_enlist(&f, B, "b");
    begin_push(B, 0);
    struct pd_event drain = {.kind = PD_EVENT_DRAIN, .text = "a test", .now_ms = f.now_ms};
    pd_engine_step(f.engine, &drain, &f.actions);
    fixture_note(&f);
    ck_assert(is_read(B));
    ck_assert_ptr_null(f.placed[B]);
    fixture_expect_error(&f, B, PD_EDRAINING, false, "push of step 0: the daemon is draining");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("admission");
    TCase *tests = tcase_create("admission");

    tcase_add_checked_fixture(tests, NULL, teardown);
    tcase_add_test(tests, first_in_order_is_read_first_and_makes_room_once_it_is_whole);
    tcase_add_test(tests, nobody_is_read_before_the_workers_that_are_expected_are_there);
    tcase_add_test(tests,
                   worker_that_comes_late_waits_for_the_next_step_only_if_it_comes_before_one_read);
    tcase_add_test(tests, place_of_a_worker_that_is_gone_is_the_next_ones);
    tcase_add_test(tests, gradient_that_is_not_finite_is_told_of_though_it_is_given_up);
    tcase_add_test(tests, tensor_that_nobody_gave_does_not_hide_whose_gradient_is_not_finite);
    tcase_add_test(tests,
                   elements_without_a_gradient_that_are_not_finite_are_told_of_if_others_gave_one);
    tcase_add_test(tests, what_is_taken_is_not_scaled_before_its_step);
    tcase_add_test(tests, model_that_does_not_fit_is_refused_when_it_is_registered);
    tcase_add_test(tests, push_that_waits_is_refused_when_the_daemon_drains);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
