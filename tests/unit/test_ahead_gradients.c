/* Small gradients of many workers, added up one after the other before their step is ordered: in
 * which order they are read, that they are not kept, and what has them pushed again. */
#include "engine_fixture.h"

#include "common/heap.h"
#include "server/core/step_state.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Five gradients of 8 elements are four times 9, four are not. */
#define CONFIG                                                                                     \
    "aggregation: direct\nblock_size: 4\ncompute_ahead: 9\n"                                       \
    "workers: {expected: 5, lease_s: 8, resume_s: 2}\noptimizer: {name: sgd, lr: 1}\n"

enum {
    A = 3,
    B,
    C,
    D,
    E,
    ADMIN,
    WORKER_COUNT = 5,
    BYTES = FIXTURE_ELEMENTS * sizeof(float),
};

static struct engine_fixture f;

/* They join in another order than that of their names. */
static void setup(void)
{
    fixture_init(&f, 0, 1, CONFIG);
    fixture_enlist(&f, D, "d");
    fixture_enlist(&f, B, "b");
    fixture_enlist(&f, E, "e");
    fixture_enlist(&f, A, "a");
    fixture_enlist(&f, C, "c");
    fixture_forget(&f);
}

static void teardown(void)
{
    fixture_finish(&f);
}

/* Sums of these hang on their order. */
static const float *gradient_of(pd_connection_id connection)
{
    static const float scales[WORKER_COUNT] = {1e8f, 3, -1e8f, 0.1f, 7};
    static float gradient[FIXTURE_ELEMENTS];

    for (uint32_t i = 0; i < FIXTURE_ELEMENTS; i++) {
        gradient[i] = scales[connection - A] * (float)(i + 1);
    }
    return gradient;
}

/* What those of `count` workers, by name, make of the values 1 to 8. */
static void expect_step(uint64_t version, uint32_t count, float rate)
{
    float expected[FIXTURE_ELEMENTS];

    for (uint32_t i = 0; i < FIXTURE_ELEMENTS; i++) {
        float sum = gradient_of(A)[i];
        for (uint32_t k = 1; k < count; k++) {
            sum += gradient_of(A + k)[i];
        }
        expected[i] = (float)(i + 1) - rate * (sum * (1.0f / (float)count));
    }
    ck_assert_uint_eq(f.engine->store.version, version);
    ck_assert_mem_eq(pd_param_store_served(&f.engine->store), expected, BYTES);
}

static void announce(pd_connection_id connection, uint64_t step, bool ahead)
{
    const struct pd_message push = {.kind = PD_MESSAGE_PUSH,
                                    .push = {.step = step,
                                             .last = true,
                                             .samples = 1,
                                             .element_count = FIXTURE_ELEMENTS,
                                             .pull = true,
                                             .ahead = ahead}};
    fixture_say(&f, connection, &push, BYTES);
}

/* All have begun to push, the last by name first. */
static void announce_all(void)
{
    for (pd_connection_id connection = E; connection >= A; connection--) {
        announce(connection, 0, true);
    }
    ck_assert_ptr_nonnull(f.engine->foreseen);
}

static void end(pd_connection_id connection)
{
    fixture_payload(&f, connection, gradient_of(connection), BYTES, true);
}

static void push(pd_connection_id connection, uint64_t step)
{
    announce(connection, step, true);
    fixture_work(&f);
    end(connection);
    fixture_work(&f);
}

/* The first four are added up, and the last has its place. */
static void add_four(void)
{
    announce_all();
    fixture_work(&f);
    for (pd_connection_id connection = A; connection <= D; connection++) {
        end(connection);
    }
    ck_assert_uint_eq(f.engine->step->added, 4);
}

static void expect_told_again(pd_connection_id connection, bool told)
{
    const struct pd_message *last = fixture_last(&f, connection);

    ck_assert_uint_eq(fixture_count(&f, connection, PD_MESSAGE_SETTLED), told);
    if (told) {
        ck_assert_int_eq(last->kind, PD_MESSAGE_SETTLED);
        ck_assert(!last->settled.applied && last->settled.again);
        ck_assert_uint_eq(last->settled.pulled.version, 1);
    }
}

START_TEST(gradients_are_read_in_the_order_of_their_sum)
{
    announce_all();
    for (pd_connection_id connection = A; connection <= E; connection++) {
        ck_assert(!f.was_placed[connection]);
    }
    fixture_work_once(&f);
    for (pd_connection_id connection = A; connection <= D; connection++) {
        ck_assert_ptr_nonnull(f.placed[connection]);
    }
    ck_assert(!f.was_placed[E]);
    fixture_work_once(&f);
    ck_assert_ptr_nonnull(f.placed[E]);
}
END_TEST

START_TEST(gradients_make_way_for_the_next_once_they_are_added_up)
{
    struct pd_staging *staging = &f.engine->roster->staging;

    announce_all();
    fixture_work_once(&f);
    for (pd_connection_id connection = D; connection > A; connection--) {
        end(connection);
        ck_assert_uint_eq(f.engine->step->added, 0);
    }
    ck_assert_uint_eq(staging->spare_count, 0);
    end(A);
    ck_assert_uint_eq(f.engine->step->added, 4);
    ck_assert_uint_eq(staging->spare_count, 4);
    push(E, 0);
    ck_assert_uint_eq(staging->buffer_count, 4);
    expect_step(1, WORKER_COUNT, 1);
    for (pd_connection_id connection = A; connection <= E; connection++) {
        const struct pd_message *answer = fixture_last(&f, connection);
        ck_assert_int_eq(answer->kind, PD_MESSAGE_PULLED);
        ck_assert(!answer->pulled.ahead);
        ck_assert_uint_eq(answer->pulled.version, 1);
    }
}
END_TEST

/* It cannot be heard while it is not read; from then on it can. */
START_TEST(push_that_waits_for_its_turn_keeps_its_lease)
{
    announce_all();
    f.work_asked = false; /* the rank is busy */
    fixture_wait(&f, 9000);
    f.work_asked = true;
    fixture_work(&f);
    fixture_wait(&f, 7000);
    for (pd_connection_id connection = A; connection <= E; connection++) {
        ck_assert_ptr_nonnull(f.placed[connection]);
        ck_assert(!f.closed[connection]);
    }
    fixture_wait(&f, 2000);
    ck_assert(f.closed[A] && f.closed[E]);
    ck_assert_ptr_nonnull(strstr(f.logged, "the lease is over"));
}
END_TEST

/* Whoever is missing: what has come is read. */
START_TEST(nobody_waits_to_be_read_for_one_that_does_not_come)
{
    for (pd_connection_id connection = E; connection > A; connection--) {
        announce(connection, 0, true);
    }
    ck_assert_ptr_null(f.engine->foreseen);
    fixture_work(&f);
    for (pd_connection_id connection = B; connection <= E; connection++) {
        end(connection);
    }
    ck_assert_uint_eq(f.engine->roster->staging.spare_count, 0);
    push(A, 0);
    expect_step(1, WORKER_COUNT, 1);
}
END_TEST

/* When the first has begun to wait, so few are left that it need not; before it is read, one more
 * comes. */
START_TEST(push_that_waits_is_read_whoever_leaves_or_joins)
{
    announce(A, 0, true);
    fixture_say(&f, E, &(struct pd_message){.kind = PD_MESSAGE_LEAVE}, 0);
    fixture_close(&f, E);
    ck_assert_uint_eq(f.engine->roster->worker_count, WORKER_COUNT - 1);
    fixture_work(&f);
    ck_assert_ptr_nonnull(f.placed[A]);
    ck_assert_uint_lt(f.place_end[A], BYTES);
    fixture_enlist(&f, E, "f");
    fixture_receive(&f, A, gradient_of(A), 0, f.place_end[A]);
    ck_assert_uint_eq(f.place_end[A], BYTES);
    end(A);
    for (pd_connection_id connection = B; connection <= E; connection++) {
        push(connection, 0);
    }
    expect_step(1, WORKER_COUNT, 1);
}
END_TEST

START_TEST(gradient_that_cannot_come_again_is_read_at_once_and_kept)
{
    announce(B, 0, false);
    ck_assert_ptr_nonnull(f.placed[B]);
    for (pd_connection_id connection = A; connection <= E; connection++) {
        if (connection != B) {
            announce(connection, 0, true);
        }
    }
    fixture_work(&f);
    for (pd_connection_id connection = A; connection <= D; connection++) {
        end(connection);
    }
    ck_assert_uint_eq(f.engine->step->added, 4);
    ck_assert_uint_eq(f.engine->roster->staging.spare_count, 3);
    end(E);
    fixture_work(&f);
    expect_step(1, WORKER_COUNT, 1);
}
END_TEST

/* ---- What makes the sum void ---- */

START_TEST(worker_lost_midway_has_the_others_push_again)
{
    add_four();
    fixture_close(&f, E);
    ck_assert_uint_eq(f.engine->store.version, 0);
    for (pd_connection_id connection = A; connection <= D; connection++) {
        expect_told_again(connection, true);
        push(connection, 0);
    }
    fixture_wait(&f, 3000);
    expect_step(1, 4, 1);
}
END_TEST

START_TEST(damage_has_only_those_push_again_that_are_added_up)
{
    announce_all();
    fixture_work(&f);
    for (pd_connection_id connection = A; connection <= C; connection++) {
        end(connection);
    }
    fixture_payload(&f, D, gradient_of(C), BYTES, false);
    fixture_expect_error(&f, D, PD_ECHECKSUM, false, "nothing of it counts: send it again");
    for (pd_connection_id connection = A; connection <= E; connection++) {
        expect_told_again(connection, false);
    }
    push(D, 0);
    end(E);
    fixture_work(&f);
    expect_step(1, WORKER_COUNT, 1);
}
END_TEST

START_TEST(changed_rate_has_them_push_again)
{
    struct pd_message admin = {.kind = PD_MESSAGE_ADMIN,
                               .admin = {.command = "set-lr", .has_value = true, .value = 0.5}};
    fixture_greet(&f, ADMIN);
    add_four();
    fixture_say(&f, ADMIN, &admin, 0);
    end(E);
    fixture_work(&f);
    ck_assert_uint_eq(f.engine->store.version, 0);
    ck_assert_ptr_nonnull(f.engine->foreseen);
    expect_told_again(E, false);
    for (pd_connection_id connection = A; connection <= D; connection++) {
        expect_told_again(connection, true);
        push(connection, 0);
    }
    expect_step(1, WORKER_COUNT, 0.5f);
}
END_TEST

/* Its elements are given up by the time the step is found to be broken. */
START_TEST(element_that_is_not_finite_is_told_by_name)
{
    float broken[FIXTURE_ELEMENTS];

    announce_all();
    fixture_work(&f);
    for (pd_connection_id connection = A; connection <= E; connection++) {
        memcpy(broken, gradient_of(connection), sizeof broken);
        broken[5] = connection == C ? INFINITY : connection == D ? NAN : broken[5];
        fixture_payload(&f, connection, broken, BYTES, true);
    }
    fixture_work(&f);
    ck_assert_uint_eq(f.engine->store.version, 1);
    ck_assert_uint_eq(f.engine->skipped_steps, 1);
    ck_assert_ptr_nonnull(
        strstr(f.engine->leader->last_skip_reason, "'c' is not finite: tensor 'w', element 5"));

    /* It is not held against the next step. */
    for (pd_connection_id connection = A; connection <= E; connection++) {
        fixture_sent_event(&f, connection);
        push(connection, 1);
    }
    expect_step(2, WORKER_COUNT, 1);
}
END_TEST

START_TEST(gradient_without_memory_is_refused_and_can_come_again)
{
    announce_all();
    pd_heap_fail_at(0);
    fixture_work_once(&f);
    pd_heap_fail_at(-1);
    fixture_expect_error(&f, A, PD_ENOMEM, false, "out of memory for a worker's gradient of 8");
    ck_assert_ptr_null(f.placed[A]);
    fixture_payload(&f, A, NULL, BYTES, true);
    fixture_work(&f);
    for (pd_connection_id connection = B; connection <= E; connection++) {
        end(connection);
    }
    push(A, 0);
    expect_step(1, WORKER_COUNT, 1);
}
END_TEST

/* ---- When ---- */

START_TEST(gradients_are_added_up_ahead_where_they_are_many_and_small)
{
    static const struct {
        const char *text;
        uint32_t worker_count;
        enum pd_step_ahead kind;
    } cases[] = {
        {"compute_ahead: 9", 4, PD_STEP_AHEAD_NONE},
        {"compute_ahead: 9", 5, PD_STEP_AHEAD_GRADIENTS},
        {"compute_ahead: 8", 5, PD_STEP_AHEAD_BLOCKS},
        {"compute_ahead: 0", 256, PD_STEP_AHEAD_NONE},
        {"{compute_ahead: 9, workers: {staging_limit: 64}}", 256, PD_STEP_AHEAD_NONE},
        {"{compute_ahead: 9, optimizer: {name: sophia_g}}", 256, PD_STEP_AHEAD_NONE},
        {"{compute_ahead: 9, aggregation: allreduce}", 256, PD_STEP_AHEAD_GRADIENTS},
    };
    struct pd_config *config;
    struct pd_error error = {0};

    ck_assert_msg(pd_config_create(&config, "test", cases[_i].text, NULL, 0, &error) == PD_OK, "%s",
                  error.message);
    ck_assert_int_eq(
        pd_step_ahead_kind(config, f.engine->plan, FIXTURE_ELEMENTS, cases[_i].worker_count),
        cases[_i].kind);
    pd_config_destroy(config);
}
END_TEST

/* On another rank, with a larger lane, blocks would go ahead and be used up unknown to rank 0. */
START_TEST(nothing_is_foreseen_for_contributors_that_are_too_few)
{
    fixture_say(&f, E, &(struct pd_message){.kind = PD_MESSAGE_LEAVE}, 0);
    fixture_close(&f, E);
    fixture_join(&f, E, "f");
    ck_assert_uint_eq(f.engine->roster->worker_count, WORKER_COUNT);
    for (pd_connection_id connection = A; connection <= D; connection++) {
        announce(connection, 0, true);
    }
    ck_assert(!f.engine->leader->foreseen);
    fixture_work(&f);
    for (pd_connection_id connection = A; connection <= D; connection++) {
        end(connection);
    }
    fixture_work(&f);
    expect_step(1, WORKER_COUNT - 1, 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ahead_gradients");
    TCase *tests = tcase_create("ahead_gradients");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, gradients_are_read_in_the_order_of_their_sum);
    tcase_add_test(tests, push_that_waits_for_its_turn_keeps_its_lease);
    tcase_add_test(tests, gradients_make_way_for_the_next_once_they_are_added_up);
    tcase_add_test(tests, nobody_waits_to_be_read_for_one_that_does_not_come);
    tcase_add_test(tests, push_that_waits_is_read_whoever_leaves_or_joins);
    tcase_add_test(tests, gradient_that_cannot_come_again_is_read_at_once_and_kept);
    tcase_add_test(tests, worker_lost_midway_has_the_others_push_again);
    tcase_add_test(tests, damage_has_only_those_push_again_that_are_added_up);
    tcase_add_test(tests, changed_rate_has_them_push_again);
    tcase_add_test(tests, element_that_is_not_finite_is_told_by_name);
    tcase_add_test(tests, gradient_without_memory_is_refused_and_can_come_again);
    tcase_add_loop_test(tests, gradients_are_added_up_ahead_where_they_are_many_and_small, 0, 7);
    tcase_add_test(tests, nothing_is_foreseen_for_contributors_that_are_too_few);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
