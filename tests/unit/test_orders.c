/* Rank 0's log: when a step closes and what its order says, rates, links and the end. */
#include "engine_fixture.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RANK_1 41u

static struct engine_fixture f;

static void teardown(void)
{
    fixture_finish(&f);
}

/* The last step order, as the engine of a lone rank carries it out. */
static double last_rate(uint32_t group)
{
    return f.engine->leader->lrs[group];
}

START_TEST(step_waits_for_the_workers_that_are_expected)
{
    fixture_init(&f, 0, 1, "workers: {expected: 2}\n");
    fixture_enlist(&f, 3, "a");
    fixture_push(&f, 3, 0, 1, 1);
    ck_assert_uint_eq(f.engine->store.version, 0);
    fixture_enlist(&f, 4, "b");
    fixture_push(&f, 4, 0, 1, 1);
    ck_assert_uint_eq(f.engine->store.version, 1);
}
END_TEST

START_TEST(step_waits_for_everybody_who_takes_part)
{
    fixture_init(&f, 0, 1, "{}\n");
    fixture_enlist(&f, 3, "a");
    fixture_enlist(&f, 4, "b");
    fixture_push(&f, 3, 0, 1, 1);
    ck_assert_uint_eq(f.engine->store.version, 0);
    fixture_push(&f, 4, 0, 1, 1);
    ck_assert_uint_eq(f.engine->store.version, 1);
}
END_TEST

START_TEST(average_weighs_by_samples)
{
    fixture_init(&f, 0, 1, "optimizer: {name: sgd, lr: 1}\n");
    fixture_enlist(&f, 3, "a");
    fixture_enlist(&f, 4, "b");
    fixture_push(&f, 3, 0, 1, 3);
    fixture_push(&f, 4, 0, 5, 1);
    ck_assert_float_eq(pd_param_store_served(&f.engine->store)[0], 1 - (0.75f * 1 + 0.25f * 5));
    ck_assert_uint_eq(f.engine->leader->effective_batch, 4);
}
END_TEST

START_TEST(rate_scales_with_the_effective_batch)
{
    static const char *const configs[] = {
        "optimizer: {name: sgd, lr: 0.5}\nlr_scaling: {rule: linear, base_batch: 4}\n",
        "optimizer: {name: sgd, lr: 0.5}\nlr_scaling: {rule: sqrt, base_batch: 4}\n",
        "optimizer: {name: sgd, lr: 0.5}\nlr_scaling: {rule: none, base_batch: 4}\n",
    };
    static const double rates[] = {2.0, 1.0, 0.5};
    fixture_init(&f, 0, 1, configs[_i]);
    fixture_enlist(&f, 3, "a");
    fixture_push(&f, 3, 0, 1, 16);
    ck_assert_double_eq_tol(last_rate(0), rates[_i], 1e-15);
}
END_TEST

START_TEST(schedule_counts_applied_steps_only)
{
    fixture_init(
        &f, 0, 1,
        "optimizer: {name: sgd, lr: 1}\nschedule: {name: step, step_size: 1, gamma: 0.5}\n");
    fixture_enlist(&f, 3, "a");
    fixture_push(&f, 3, 0, NAN, 1);
    fixture_push(&f, 3, 1, 1, 1);
    ck_assert_double_eq_tol(last_rate(0), 1, 1e-15);
    fixture_push(&f, 3, 2, 1, 1);
    ck_assert_double_eq_tol(last_rate(0), 0.5, 1e-15);
    ck_assert_uint_eq(f.engine->store.version, 3);
    ck_assert_uint_eq(f.engine->leader->applied_steps, 2);
}
END_TEST

START_TEST(step_without_samples_is_skipped_with_its_reason)
{
    fixture_init(&f, 0, 1, "{}\n");
    fixture_enlist(&f, 3, "a");
    fixture_push(&f, 3, 0, NAN, 0);
    ck_assert_uint_eq(f.engine->store.version, 1);
    ck_assert_uint_eq(f.engine->skipped_steps, 1);
    ck_assert_str_eq(f.engine->leader->last_skip_reason, "step 0: no worker had samples");
}
END_TEST

/* Rank 0 of two, in direct aggregation, with a worker on connection 3; nothing was sent yet. */
static void lead_two_ranks(const char *more)
{
    char config[256];
    snprintf(config, sizeof config, "aggregation: direct\nblock_size: 4\n%s", more);
    fixture_init(&f, 0, 2, config);
    fixture_link_ranks(&f);
    (void)fixture_join(&f, 3, "a");
    struct pd_message offer = {.kind = PD_MESSAGE_REGISTER, .registration = {.tensors = f.model}};
    fixture_say(&f, 3, &offer, 0);
    fixture_ranks_execute(&f);
    struct pd_message values = {.kind = PD_MESSAGE_VALUES,
                                .values = {.element_count = f.engine->store.lane.element_count}};
    fixture_say(&f, 3, &values, values.values.element_count * sizeof(float));
    fixture_payload(&f, 3, NULL, 0, true);
    struct pd_message report = {.kind = PD_MESSAGE_REPORT, .report = {.kind = PD_REPORT_VALUES}};
    fixture_say(&f, RANK_1, &report, 0);
    fixture_ranks_execute(&f);
    ck_assert(f.engine->store.has_version);
    fixture_forget(&f);
}

static void begin_push(uint64_t samples)
{
    struct pd_message push = {.kind = PD_MESSAGE_PUSH,
                              .push = {.last = true,
                                       .samples = samples,
                                       .element_count = f.engine->store.lane.element_count}};
    fixture_say(&f, 3, &push, push.push.element_count * sizeof(float));
}

/* The push is whole on both ranks; the other one says it was of so many samples. */
static void end_push(uint64_t samples)
{
    struct pd_message report = {
        .kind = PD_MESSAGE_REPORT,
        .report = {.kind = PD_REPORT_CONTRIBUTED, .last = true, .samples = samples}};
    fixture_payload(&f, 3, NULL, 0, true);
    fixture_say(&f, RANK_1, &report, 0);
    fixture_ranks_execute(&f);
}

/* The last order of that kind that rank 1 was sent. */
static const struct pd_order *order_sent(enum pd_order_kind kind)
{
    const struct pd_order *order = NULL;
    for (uint32_t i = 0; i < f.sent_count; i++) {
        const struct pd_message *message = f.sent[i].message;
        if (f.sent[i].connection == RANK_1 && message->kind == PD_MESSAGE_ORDER &&
            message->order.kind == kind) {
            order = &message->order;
        }
    }
    return order;
}

START_TEST(step_is_foreseen_as_soon_as_everybody_has_begun_to_push)
{
    lead_two_ranks("compute_ahead: 1\noptimizer: {name: sgd, lr: 0.5}\n");
    begin_push(3);
    const struct pd_order *ahead = order_sent(PD_ORDER_AHEAD);
    ck_assert_ptr_nonnull(ahead);
    ck_assert_uint_eq(ahead->step, 0);
    ck_assert_uint_eq(ahead->contributor_count, 1);
    ck_assert_double_eq(ahead->weights[0], 3.0);
    ck_assert_uint_eq(ahead->samples, 3);
    ck_assert_double_eq(ahead->lrs[0], 0.5);
    ck_assert_ptr_null(order_sent(PD_ORDER_STEP));
    fixture_ranks_execute(&f);
    end_push(3);
    ck_assert_uint_eq(fixture_count(&f, RANK_1, PD_MESSAGE_ORDER), 2);
    ck_assert_ptr_nonnull(order_sent(PD_ORDER_STEP));
    ck_assert(order_sent(PD_ORDER_STEP)->foreseen);
}
END_TEST

START_TEST(step_is_foreseen_anew_when_anything_it_takes_has_changed)
{
    struct pd_message admin = {.kind = PD_MESSAGE_ADMIN,
                               .admin = {.command = "set-lr", .has_value = true, .value = 0.25}};
    const struct pd_message contributed = {
        .kind = PD_MESSAGE_REPORT,
        .report = {.kind = PD_REPORT_CONTRIBUTED, .last = true, .samples = 3}};
    const struct pd_message undone = {.kind = PD_MESSAGE_REPORT,
                                      .report = {.kind = PD_REPORT_UNDONE}};
    lead_two_ranks("compute_ahead: 1\noptimizer: {name: sgd, lr: 0.5}\n");
    fixture_greet(&f, 4);
    begin_push(3);
    ck_assert_ptr_nonnull(order_sent(PD_ORDER_AHEAD));
    fixture_ranks_execute(&f);
    fixture_say(&f, 4, &admin, 0);
    ck_assert_int_eq(fixture_last(&f, 4)->kind, PD_MESSAGE_ADMIN_REPLY);
    fixture_payload(&f, 3, NULL, 0, true);
    fixture_say(&f, RANK_1, &contributed, 0);

    /* Ranks may have used up what is needed again. */
    ck_assert_ptr_null(order_sent(PD_ORDER_STEP));
    ck_assert_double_eq(order_sent(PD_ORDER_AHEAD)->lrs[0], 0.25);
    fixture_say(&f, RANK_1, &undone, 0);
    fixture_ranks_execute(&f);
    ck_assert_ptr_null(order_sent(PD_ORDER_STEP));
    fixture_say(&f, RANK_1, &contributed, 0);
    ck_assert(order_sent(PD_ORDER_STEP)->foreseen);
    ck_assert_double_eq(order_sent(PD_ORDER_STEP)->lrs[0], 0.25);
}
END_TEST

START_TEST(nothing_is_foreseen_when_it_may_not_or_would_be_skipped)
{
    lead_two_ranks(_i == 0 ? "compute_ahead: 0\n" : "compute_ahead: 1\n");
    begin_push(_i == 0 ? 3 : 0);
    ck_assert_ptr_null(order_sent(PD_ORDER_AHEAD));
    end_push(_i == 0 ? 3 : 0);
    ck_assert(!order_sent(PD_ORDER_STEP)->foreseen);
}
END_TEST

START_TEST(paused_step_closes_on_resume)
{
    struct pd_message admin = {.kind = PD_MESSAGE_ADMIN, .admin = {.command = "pause"}};
    fixture_init(&f, 0, 1, "{}\n");
    fixture_enlist(&f, 3, "a");
    fixture_greet(&f, 4);
    fixture_say(&f, 4, &admin, 0);
    fixture_sent_event(&f, 4);
    fixture_push(&f, 3, 0, 1, 1);
    ck_assert_uint_eq(f.engine->store.version, 0);
    admin = (struct pd_message){.kind = PD_MESSAGE_ADMIN, .admin = {.command = "resume"}};
    fixture_say(&f, 4, &admin, 0);
    fixture_work(&f);
    ck_assert_uint_eq(f.engine->store.version, 1);
}
END_TEST

/* This rank's own turn of work may be long. */
START_TEST(other_ranks_have_an_order_before_this_one_works_on_it)
{
    struct pd_error error = {0};
    struct pd_message push = {.kind = PD_MESSAGE_PUSH,
                              .push = {.last = true, .samples = 1, .element_count = 6}};
    struct pd_message report = {
        .kind = PD_MESSAGE_REPORT,
        .report = {.kind = PD_REPORT_CONTRIBUTED, .last = true, .samples = 1}};
    const float gradient[6] = {0};

    fixture_init(&f, 0, 2, "aggregation: direct\nblock_size: 6\ncompute_ahead: 0\n");
    ck_assert_int_eq(pd_engine_load_model(f.engine, &f.model, &error), PD_OK);
    fixture_link_ranks(&f);
    report.report.worker_id = fixture_enlist(&f, 3, "a");
    fixture_ranks_execute(&f);
    fixture_say(&f, 3, &push, sizeof gradient);
    fixture_payload(&f, 3, gradient, sizeof gradient, true);
    fixture_say(&f, RANK_1, &report, 0);
    ck_assert_int_eq(fixture_last(&f, RANK_1)->order.kind, PD_ORDER_STEP);
    ck_assert_int_eq(pd_step_state(f.engine->step), PD_STEP_BUFFER);
    fixture_work(&f);
    ck_assert_ptr_nonnull(f.collective);
}
END_TEST

START_TEST(start_says_which_ranks_it_waits_for)
{
    struct pd_message hello = {.kind = PD_MESSAGE_RANK_HELLO,
                               .rank_hello = {.rank = 2, .secret = 77}};
    fixture_init(&f, 0, 4, "rank_timeout_s: 9\n");
    fixture_open(&f, 40);
    fixture_say(&f, 40, &hello, 0);
    fixture_wait(&f, 2500);
    ck_assert_str_eq(f.logged, "waiting for ranks 1, 3 to connect");
    fixture_wait(&f, 7500);
    ck_assert_ptr_nonnull(strstr(f.aborted, "ranks 1, 3 have not connected within 9 s"));
}
END_TEST

START_TEST(rank_that_is_gone_ends_the_job)
{
    fixture_init(&f, 0, 2, "{}\n");
    fixture_link_ranks(&f);
    fixture_close(&f, RANK_1);
    ck_assert_str_eq(f.aborted, "rank 1 at a:2 is gone (connection reset): ending the job");
}
END_TEST

START_TEST(rank_that_is_silent_ends_the_job)
{
    fixture_init(&f, 0, 2, "rank_timeout_s: 3\n");
    fixture_link_ranks(&f);
    fixture_wait(&f, 2500);
    fixture_say(&f, RANK_1, &(struct pd_message){.kind = PD_MESSAGE_BEAT}, 0);
    fixture_wait(&f, 2500);
    ck_assert_str_eq(f.aborted, "");
    fixture_wait(&f, 1000);
    ck_assert_ptr_nonnull(strstr(f.aborted, "rank 1 at a:2 has not been heard for 3."));
}
END_TEST

START_TEST(rank_0_that_is_silent_ends_the_job_elsewhere)
{
    struct pd_event event = {
        .kind = PD_EVENT_OPENED, .connection = 5, .outgoing = true, .peer = "a:1"};
    fixture_init(&f, 1, 2, "rank_timeout_s: 3\n");
    event.now_ms = f.now_ms;
    pd_actions_reset(&f.actions);
    pd_engine_step(f.engine, &event, &f.actions);
    fixture_wait(&f, 2750);
    ck_assert_uint_ge(fixture_count(&f, 5, PD_MESSAGE_BEAT), 2);
    ck_assert_str_eq(f.aborted, "");
    fixture_wait(&f, 1000);
    ck_assert_ptr_nonnull(strstr(f.aborted, "rank 0 at a:1 has not been heard for 3."));
}
END_TEST

START_TEST(drain_is_told_to_peers_and_then_ends_every_rank)
{
    struct pd_message admin = {.kind = PD_MESSAGE_ADMIN, .admin = {.command = "drain"}};
    fixture_init(&f, 0, 2, "{}\n");
    fixture_link_ranks(&f);
    fixture_greet(&f, 3);
    fixture_say(&f, 3, &admin, 0);
    ck_assert_int_eq(fixture_last(&f, RANK_1)->order.kind, PD_ORDER_DRAIN);
    ck_assert_uint_eq(fixture_count(&f, 3, PD_MESSAGE_DRAINING), 1);
    ck_assert(!f.exited);
    fixture_ranks_execute(&f);
    ck_assert_int_eq(fixture_last(&f, RANK_1)->order.kind, PD_ORDER_STOP);
    ck_assert(f.exited);
}
END_TEST

START_TEST(push_after_a_drain_is_refused_as_such)
{
    struct pd_message admin = {.kind = PD_MESSAGE_ADMIN, .admin = {.command = "drain"}};
    struct pd_message push = {.kind = PD_MESSAGE_PUSH,
                              .push = {.last = true, .element_count = FIXTURE_ELEMENTS}};
    struct pd_error error = {0};
    fixture_init(&f, 0, 2, "{}\n");
    ck_assert_int_eq(pd_engine_load_model(f.engine, &f.model, &error), PD_OK);
    fixture_link_ranks(&f);
    fixture_enlist(&f, 3, "a");
    fixture_greet(&f, 4);
    fixture_say(&f, 4, &admin, 0);
    fixture_say(&f, 3, &push, FIXTURE_ELEMENTS * sizeof(float));
    fixture_expect_error(&f, 3, PD_EDRAINING, false, "push of step 0: the daemon is draining");
}
END_TEST

START_TEST(orders_hash_alike_for_those_who_did_the_same)
{
    uint64_t hash = 0;
    for (int i = 0; i < 2; i++) {
        if (i > 0) {
            fixture_finish(&f);
        }
        fixture_init(&f, 0, 1, "{}\n");
        fixture_enlist(&f, 3, "a");
        fixture_push(&f, 3, 0, 1, 1);
        ck_assert_uint_eq(pd_engine_orders_executed(f.engine), 4);
        ck_assert(i == 0 || hash == pd_engine_order_hash(f.engine));
        hash = pd_engine_order_hash(f.engine);
    }
    fixture_push(&f, 3, 1, 1, 1);
    ck_assert(hash != pd_engine_order_hash(f.engine));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("orders");
    TCase *tests = tcase_create("orders");

    tcase_add_checked_fixture(tests, NULL, teardown);
    tcase_add_test(tests, step_waits_for_the_workers_that_are_expected);
    tcase_add_test(tests, step_waits_for_everybody_who_takes_part);
    tcase_add_test(tests, average_weighs_by_samples);
    tcase_add_loop_test(tests, rate_scales_with_the_effective_batch, 0, 3);
    tcase_add_test(tests, schedule_counts_applied_steps_only);
    tcase_add_test(tests, step_without_samples_is_skipped_with_its_reason);
    tcase_add_test(tests, step_is_foreseen_as_soon_as_everybody_has_begun_to_push);
    tcase_add_test(tests, step_is_foreseen_anew_when_anything_it_takes_has_changed);
    tcase_add_loop_test(tests, nothing_is_foreseen_when_it_may_not_or_would_be_skipped, 0, 2);
    tcase_add_test(tests, paused_step_closes_on_resume);
    tcase_add_test(tests, other_ranks_have_an_order_before_this_one_works_on_it);
    tcase_add_test(tests, start_says_which_ranks_it_waits_for);
    tcase_add_test(tests, rank_that_is_gone_ends_the_job);
    tcase_add_test(tests, rank_that_is_silent_ends_the_job);
    tcase_add_test(tests, rank_0_that_is_silent_ends_the_job_elsewhere);
    tcase_add_test(tests, drain_is_told_to_peers_and_then_ends_every_rank);
    tcase_add_test(tests, push_after_a_drain_is_refused_as_such);
    tcase_add_test(tests, orders_hash_alike_for_those_who_did_the_same);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
