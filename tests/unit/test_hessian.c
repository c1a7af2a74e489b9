/* Estimates of the Hessian, from the push to the parameters: one engine with sophia_g. */
#include "engine_fixture.h"

#include "common/heap.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* With rho * bs = 4 and the first beta 0, a step is lr * min(|g| / (4 h), 1) against the gradient's
 * sign, and an estimate e makes h = 0.75 h + 0.25 e^2. */
#define CONFIG                                                                                     \
    "workers: {lease_s: 20, resume_s: 5}\naccumulation_steps: 2\nblock_size: 4\n"                  \
    "clip: {value: 1.5}\n"                                                                         \
    "optimizer: {name: sophia_g, lr: 0.1, betas: [0, 0.75], rho: 0.04, bs: 100, weight_decay: "    \
    "0}\n"
#define RATE 0.1f
#define ESTIMATE_BYTES (FIXTURE_ELEMENTS * sizeof(float))

static struct engine_fixture f;

static void setup(void)
{
    fixture_init(&f, 0, 1, CONFIG);
}

static void teardown(void)
{
    fixture_finish(&f);
}

static struct pd_message estimate_of(uint64_t step, uint32_t micro_batch, bool last)
{
    return (struct pd_message){.kind = PD_MESSAGE_HESSIAN,
                               .push = {.hessian = true,
                                        .step = step,
                                        .micro_batch = micro_batch,
                                        .last = last,
                                        .samples = 1,
                                        .element_count = FIXTURE_ELEMENTS}};
}

/* Give a micro-batch of equal elements, whole, and let it be added up. */
static void give(pd_connection_id connection, struct pd_message message, float element)
{
    float elements[FIXTURE_ELEMENTS];

    for (size_t i = 0; i < FIXTURE_ELEMENTS; i++) {
        elements[i] = element;
    }
    fixture_say(&f, connection, &message, ESTIMATE_BYTES);
    ck_assert_ptr_nonnull(f.placed[connection]);
    fixture_payload(&f, connection, elements, sizeof elements, true);
    fixture_work(&f);
}

/* How far the parameter at `index` has gone down from its initial value, index + 1. */
static float moved(size_t index)
{
    return (float)(index + 1) - pd_param_store_served(&f.engine->store)[index];
}

/* That version is served, and all its parameters have gone down as far. */
static void expect(uint64_t version, float distance)
{
    ck_assert_uint_eq(f.engine->store.version, version);
    for (size_t i = 0; i < FIXTURE_ELEMENTS; i++) {
        ck_assert_float_eq_tol(moved(i), distance, 3e-6f);
    }
}

START_TEST(estimate_goes_into_the_step_it_comes_with)
{
    fixture_enlist(&f, 3, "a");
    give(3, estimate_of(0, 0, true), 2);
    ck_assert_int_eq(fixture_last(&f, 3)->kind, PD_MESSAGE_PUSHED);
    ck_assert(fixture_last(&f, 3)->pushed.hessian);
    ck_assert_uint_eq(f.engine->store.version, 0);
    fixture_push(&f, 3, 0, 1, 1);
    expect(1, RATE / 4); /* h is 0.25 * 4; the estimate is not clipped by value */
}
END_TEST

START_TEST(step_without_an_estimate_goes_on_with_the_last_one)
{
    fixture_enlist(&f, 3, "a");
    fixture_push(&f, 3, 0, 1, 1);
    expect(1, RATE); /* without any, every element is cut */
    give(3, estimate_of(1, 0, true), 2);
    fixture_push(&f, 3, 1, 1, 1);
    expect(2, RATE + RATE / 4);
    fixture_push(&f, 3, 2, 1, 1);
    expect(3, RATE + RATE / 4 + RATE / 4);
    give(3, estimate_of(3, 0, true), 0);
    fixture_push(&f, 3, 3, 1, 1);
    expect(4, RATE + RATE / 4 + RATE / 4 + RATE / 3);
}
END_TEST

START_TEST(estimates_are_averaged_by_samples_over_micro_batches_and_workers)
{
    struct pd_message more = estimate_of(0, 1, true);
    struct pd_message other = estimate_of(0, 0, true);
    fixture_enlist(&f, 3, "a");
    fixture_enlist(&f, 4, "b");
    give(3, estimate_of(0, 0, false), 1);
    more.push.samples = 2;
    give(3, more, 4);
    other.push.samples = 3;
    give(4, other, 1);
    fixture_push(&f, 3, 0, 1, 1);
    fixture_push(&f, 4, 0, 1, 1);
    expect(1, RATE / 4); /* (1 + 2 * 4 + 3 * 1) / 6 is 2 */
}
END_TEST

START_TEST(workers_that_give_none_do_not_count)
{
    fixture_enlist(&f, 3, "a");
    fixture_enlist(&f, 4, "b");
    give(4, estimate_of(0, 0, true), 2);
    fixture_push(&f, 3, 0, 1, 1000);
    fixture_push(&f, 4, 0, 1, 1);
    expect(1, RATE / 4);
}
END_TEST

START_TEST(estimate_that_is_not_complete_does_not_count)
{
    fixture_enlist(&f, 3, "a");
    give(3, estimate_of(0, 0, false), 2);
    fixture_push(&f, 3, 0, 1, 1);
    expect(1, RATE);
    give(3, estimate_of(1, 0, true), 2);
    fixture_push(&f, 3, 1, 1, 1);
    expect(2, RATE + RATE / 4);
}
END_TEST

START_TEST(estimate_that_is_sent_again_counts_once)
{
    struct pd_message again = estimate_of(0, 0, true);
    fixture_enlist(&f, 3, "a");
    give(3, again, 2);
    fixture_say(&f, 3, &again, ESTIMATE_BYTES);
    ck_assert_ptr_null(f.placed[3]);
    ck_assert(fixture_last(&f, 3)->pushed.duplicate);
    ck_assert(fixture_last(&f, 3)->pushed.hessian);
    fixture_payload(&f, 3, NULL, 0, true);
    fixture_push(&f, 3, 0, 1, 1);
    expect(1, RATE / 4);
    fixture_say(&f, 3, &again, ESTIMATE_BYTES);
    ck_assert(fixture_last(&f, 3)->pushed.duplicate);
}
END_TEST

START_TEST(half_of_an_estimate_is_dropped_with_its_connection)
{
    uint32_t id = fixture_enlist(&f, 3, "a");
    const struct pd_worker *worker = pd_roster_find(f.engine->roster, id);
    struct pd_message estimate = estimate_of(0, 0, true);
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO,
                               .hello = {.has_worker_id = true,
                                         .worker_id = id,
                                         .token = worker->token,
                                         .run_id = f.topology.run_id}};
    fixture_say(&f, 3, &estimate, ESTIMATE_BYTES);
    fixture_close(&f, 3);
    fixture_open(&f, 4);
    fixture_say(&f, 4, &hello, 0);
    give(4, estimate, 2);
    fixture_push(&f, 4, 0, 1, 1);
    expect(1, RATE / 4);
}
END_TEST

START_TEST(damaged_estimate_is_asked_for_again)
{
    struct pd_message estimate = estimate_of(0, 0, true);
    fixture_enlist(&f, 3, "a");
    fixture_say(&f, 3, &estimate, ESTIMATE_BYTES);
    fixture_payload(&f, 3, NULL, 0, false);
    fixture_expect_error(&f, 3, PD_ECHECKSUM, false,
                         "hessian of step 0, micro-batch 0: the bytes do not match");
    give(3, estimate, 2);
    fixture_push(&f, 3, 0, 1, 1);
    expect(1, RATE / 4);
}
END_TEST

START_TEST(estimate_that_is_not_finite_is_left_out_and_the_step_taken)
{
    fixture_enlist(&f, 3, "a");
    give(3, estimate_of(0, 0, true), NAN);
    fixture_push(&f, 3, 0, 1, 1);
    expect(1, RATE);
    ck_assert_uint_eq(f.engine->skipped_steps, 0);
    ck_assert_str_eq(f.logged, "step 0: left out the estimate of the Hessian, as that of worker 0 "
                               "'a' is not finite: tensor 'w', element 0");
    give(3, estimate_of(1, 0, true), 2);
    fixture_push(&f, 3, 1, 1, 1);
    expect(2, RATE + RATE / 4);
}
END_TEST

/* As SophiaG.update_hessian() does not hang on what becomes of the step. */
START_TEST(estimate_is_taken_though_the_step_is_skipped)
{
    fixture_enlist(&f, 3, "a");
    give(3, estimate_of(0, 0, true), 2);
    fixture_push(&f, 3, 0, INFINITY, 1);
    expect(1, 0);
    fixture_push(&f, 3, 1, 1, 1);
    expect(2, RATE / 4);
}
END_TEST

START_TEST(tensor_without_an_estimate_keeps_its_own)
{
    struct pd_message estimate = estimate_of(0, 0, true);
    fixture_enlist(&f, 3, "a");
    pd_tensor_set_add(&estimate.push.absent, 1);
    give(3, estimate, 2);
    fixture_push(&f, 3, 0, 1, 1);
    ck_assert_float_eq_tol(moved(5), RATE / 4, 3e-6f);
    ck_assert_float_eq_tol(moved(6), RATE, 3e-6f);
}
END_TEST

START_TEST(wrong_estimate_is_refused_and_changes_nothing)
{
    static const struct {
        struct pd_push push;
        enum pd_status status;
        const char *text;
    } cases[] = {
        {{.step = 5, .last = true}, PD_ESTEP, "hessian of step 5 is from the future"},
        {{.micro_batch = 1, .last = true}, PD_ESTEP, "hessian of step 0: micro-batch 1 came, 0"},
        {{.micro_batch = 2}, PD_EINVALID, "hessian of step 0: micro-batch 2; allowed: 0 to 1"},
        {{.last = true, .pull = true}, PD_EINVALID, "`pull` and `loss` go with the gradient"},
        {{.last = true, .has_loss = true}, PD_EINVALID, "`pull` and `loss` go with the gradient"},
        {{.last = true, .dtype = 3}, PD_EMODEL, "hessian of step 0: dtype 3"},
    };
    struct pd_message message = {.kind = PD_MESSAGE_HESSIAN};
    fixture_enlist(&f, 3, "a");
    message.push = cases[_i].push;
    message.push.hessian = true;
    message.push.samples = 1;
    message.push.element_count = FIXTURE_ELEMENTS;
    fixture_say(&f, 3, &message, ESTIMATE_BYTES);
    fixture_expect_error(&f, 3, cases[_i].status, false, cases[_i].text);
    ck_assert_ptr_null(f.placed[3]);
    fixture_payload(&f, 3, NULL, 0, true);
    fixture_push(&f, 3, 0, 1, 1);
    expect(1, RATE);
}
END_TEST

START_TEST(estimate_comes_before_the_gradient_is_complete)
{
    struct pd_message late = estimate_of(0, 0, true);
    fixture_enlist(&f, 3, "a");
    fixture_enlist(&f, 4, "b");
    fixture_push(&f, 3, 0, 1, 1);
    fixture_say(&f, 3, &late, ESTIMATE_BYTES);
    fixture_expect_error(&f, 3, PD_ESTEP, false, "this worker's gradient of it is complete");
}
END_TEST

START_TEST(optimizer_without_a_use_for_estimates_refuses_them)
{
    struct pd_message estimate = estimate_of(0, 0, true);
    fixture_finish(&f);
    fixture_init(&f, 0, 1, "optimizer: {name: adamw}");
    fixture_enlist(&f, 3, "a");
    fixture_say(&f, 3, &estimate, ESTIMATE_BYTES);
    fixture_expect_error(&f, 3, PD_EREFUSED, false,
                         "hessian of step 0: the optimizer, adamw, makes no use of an estimate");
    ck_assert_ptr_null(f.placed[3]);
}
END_TEST

START_TEST(estimate_of_a_worker_that_goes_before_its_gradient_is_lost)
{
    struct pd_message leave = {.kind = PD_MESSAGE_LEAVE};
    fixture_enlist(&f, 3, "a");
    fixture_enlist(&f, 4, "b");
    give(3, estimate_of(0, 0, true), 2);
    if (_i == 0) {
        fixture_close(&f, 3);
        fixture_wait(&f, 5500);
    } else {
        fixture_say(&f, 3, &leave, 0);
    }
    fixture_push(&f, 4, 0, 1, 1);
    expect(1, RATE);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("hessian");
    TCase *tests = tcase_create("hessian");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, estimate_goes_into_the_step_it_comes_with);
    tcase_add_test(tests, step_without_an_estimate_goes_on_with_the_last_one);
    tcase_add_test(tests, estimates_are_averaged_by_samples_over_micro_batches_and_workers);
    tcase_add_test(tests, workers_that_give_none_do_not_count);
    tcase_add_test(tests, estimate_that_is_not_complete_does_not_count);
    tcase_add_test(tests, estimate_that_is_sent_again_counts_once);
    tcase_add_test(tests, half_of_an_estimate_is_dropped_with_its_connection);
    tcase_add_test(tests, damaged_estimate_is_asked_for_again);
    tcase_add_test(tests, estimate_that_is_not_finite_is_left_out_and_the_step_taken);
    tcase_add_test(tests, estimate_is_taken_though_the_step_is_skipped);
    tcase_add_test(tests, tensor_without_an_estimate_keeps_its_own);
    tcase_add_loop_test(tests, wrong_estimate_is_refused_and_changes_nothing, 0, 6);
    tcase_add_test(tests, estimate_comes_before_the_gradient_is_complete);
    tcase_add_test(tests, optimizer_without_a_use_for_estimates_refuses_them);
    tcase_add_loop_test(tests, estimate_of_a_worker_that_goes_before_its_gradient_is_lost, 0, 2);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
