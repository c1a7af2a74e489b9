/* Rank 0's members: names, homes, registrations, leaving and eviction. Other ranks are played by
 * the test, so that their reports come when it says. */
#include "engine_fixture.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG "workers: {expected: 1, lease_s: 60, resume_s: 5}\nblock_size: 1\n"
#define DIRECT "aggregation: direct\n" CONFIG
#define RANK_1 41u

static struct engine_fixture f;

static void teardown(void)
{
    fixture_finish(&f);
}

static void join(pd_connection_id connection, const char *name, uint64_t nonce)
{
    struct pd_message message = {.kind = PD_MESSAGE_JOIN, .join = {.nonce = nonce}};
    snprintf(message.join.name, sizeof message.join.name, "%s", name);
    fixture_say(&f, connection, &message, 0);
}

static void offer(pd_connection_id connection)
{
    struct pd_message message = {.kind = PD_MESSAGE_REGISTER, .registration = {.tensors = f.model}};
    fixture_say(&f, connection, &message, 0);
}

/* What rank 1 saw of a worker. */
static void report(enum pd_report_kind kind, uint32_t worker_id, uint64_t step)
{
    struct pd_message message = {.kind = PD_MESSAGE_REPORT,
                                 .report = {.kind = kind,
                                            .worker_id = worker_id,
                                            .step = step,
                                            .last = true,
                                            .samples = 2,
                                            .text = "connection reset"}};
    fixture_say(&f, RANK_1, &message, 0);
}

/* The last order that went to rank 1; of that kind, unless that is 0. */
static const struct pd_order *last_order_of(uint32_t kind)
{
    const struct pd_message *message = NULL;
    for (uint32_t i = 0; i < f.sent_count; i++) {
        const struct fixture_sent *sent = &f.sent[i];
        if (sent->connection == RANK_1 && sent->message->kind == PD_MESSAGE_ORDER &&
            (kind == 0 || sent->message->order.kind == kind)) {
            message = sent->message;
        }
    }
    ck_assert_ptr_nonnull(message);
    return &message->order;
}

static const struct pd_order *last_order(void)
{
    return last_order_of(0);
}

/* Two ranks in direct aggregation with one worker that takes part; lane 1 is on rank 1. */
static uint32_t begin(const char *config)
{
    fixture_init(&f, 0, 2, config);
    fixture_link_ranks(&f);
    uint32_t id = fixture_join(&f, 3, "a");
    offer(3);
    fixture_ranks_execute(&f);
    ck_assert(fixture_last(&f, 3)->registered.values_needed);
    struct pd_message values = {
        .kind = PD_MESSAGE_VALUES,
        .values = {.element_count = fixture_last(&f, 3)->registered.lanes[0].element_count}};
    fixture_say(&f, 3, &values, values.values.element_count * sizeof(float));
    fixture_payload(&f, 3, NULL, 0, true);
    report(PD_REPORT_FOUND, id, 0);
    report(PD_REPORT_VALUES, id, 0);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_PUBLISH);
    fixture_ranks_execute(&f);
    fixture_forget(&f);
    return id;
}

static uint32_t begin_direct(void)
{
    return begin(DIRECT);
}

/* Push a micro-batch whole on lane 0, which is rank 0's. */
static void push_batch_lane_0(pd_connection_id connection, uint64_t step, uint32_t micro_batch,
                              bool last)
{
    uint64_t count = f.engine->store.lane.element_count;
    struct pd_message push = {.kind = PD_MESSAGE_PUSH,
                              .push = {.step = step,
                                       .micro_batch = micro_batch,
                                       .last = last,
                                       .samples = 2,
                                       .element_count = count}};
    fixture_say(&f, connection, &push, count * sizeof(float));
    ck_assert_ptr_nonnull(f.placed[connection]);
    fixture_payload(&f, connection, NULL, 0, true);
    fixture_work(&f);
}

static void push_lane_0(pd_connection_id connection, uint64_t step)
{
    push_batch_lane_0(connection, step, 0, true);
}

START_TEST(join_is_ordered_once_all_ranks_are_linked_and_answered_once_all_know)
{
    fixture_init(&f, 0, 2, DIRECT);
    fixture_greet(&f, 3);
    join(3, "a", 0);
    ck_assert_int_eq(fixture_last(&f, 3)->kind, PD_MESSAGE_WELCOME);
    ck_assert(!f.ready);
    fixture_link_ranks(&f);
    ck_assert(f.ready);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_JOIN);
    ck_assert_str_eq(last_order()->name, "a");
    ck_assert_int_eq(fixture_last(&f, 3)->kind, PD_MESSAGE_WELCOME);
    fixture_ranks_execute(&f);
    ck_assert_int_eq(fixture_last(&f, 3)->kind, PD_MESSAGE_JOINED);
    ck_assert_uint_eq(fixture_last(&f, 3)->joined.token, last_order()->token);
}
END_TEST

START_TEST(worker_without_a_name_is_given_one)
{
    fixture_init(&f, 0, 1, CONFIG);
    fixture_greet(&f, 3);
    join(3, "", 0);
    ck_assert_str_eq(fixture_last(&f, 3)->joined.name, "worker-0");
}
END_TEST

/* After so many joins the numbers of two members may agree in their last digits. */
START_TEST(members_are_told_apart_whatever_their_numbers)
{
    fixture_init(&f, 0, 1, CONFIG);
    fixture_enlist(&f, 3, "a");
    f.engine->leader->worker_id_next = PD_WORKER_COUNT_MAX;
    fixture_greet(&f, 4);
    join(4, "b", 0);
    ck_assert_uint_eq(fixture_last(&f, 4)->joined.worker_id, PD_WORKER_COUNT_MAX);
    ck_assert_str_eq(pd_member_find(f.engine->leader, 0)->name, "a");
    ck_assert_str_eq(pd_member_find(f.engine->leader, PD_WORKER_COUNT_MAX)->name, "b");
    ck_assert_ptr_null(pd_member_find(f.engine->leader, 2 * PD_WORKER_COUNT_MAX));
}
END_TEST

START_TEST(name_of_a_live_worker_is_not_given_away)
{
    fixture_init(&f, 0, 1, CONFIG);
    fixture_enlist(&f, 3, "a");
    fixture_greet(&f, 4);
    join(4, "a", 0);
    fixture_expect_error(&f, 4, PD_EIDENTITY, false, "the name 'a' belongs to worker 0");
    fixture_close(&f, 3);
    join(4, "a", 0);
    ck_assert_int_eq(fixture_last(&f, 4)->kind, PD_MESSAGE_JOINED);
    ck_assert_uint_eq(fixture_last(&f, 4)->joined.worker_id, 1);
    ck_assert_ptr_null(pd_roster_find(f.engine->roster, 0));
}
END_TEST

START_TEST(repeated_join_gets_the_first_ones_answer)
{
    fixture_init(&f, 0, 1, CONFIG);
    fixture_greet(&f, 3);
    join(3, "a", 55);
    uint64_t token = fixture_last(&f, 3)->joined.token;
    fixture_greet(&f, 4);
    join(4, "a", 55);
    ck_assert_int_eq(fixture_last(&f, 4)->kind, PD_MESSAGE_JOINED);
    ck_assert_uint_eq(fixture_last(&f, 4)->joined.token, token);
    ck_assert(f.closed[3]);
}
END_TEST

START_TEST(repeated_registration_gets_the_answer_that_was_lost)
{
    fixture_init(&f, 0, 1, CONFIG);
    fixture_enlist(&f, 3, "a");
    fixture_forget(&f);
    offer(3);
    ck_assert_int_eq(fixture_last(&f, 3)->kind, PD_MESSAGE_REGISTERED);
    ck_assert(!fixture_last(&f, 3)->registered.values_needed);
    ck_assert_uint_eq(fixture_last(&f, 3)->registered.step, 0);
}
END_TEST

START_TEST(home_is_the_replica_on_the_workers_host_else_the_least_loaded)
{
    static const char *const hosts[] = {"b", "elsewhere", "b", "elsewhere", "a"};
    static const uint32_t homes[] = {2, 0, 3, 1, 0};
    fixture_init(&f, 0, 4, CONFIG);
    fixture_link_ranks(&f);
    for (uint32_t i = 0; i < 5; i++) {
        struct pd_message hello = {.kind = PD_MESSAGE_HELLO};
        char name[8];
        snprintf(hello.hello.host, sizeof hello.hello.host, "%s", hosts[i]);
        snprintf(name, sizeof name, "w%u", i);
        fixture_open(&f, 3 + i);
        fixture_say(&f, 3 + i, &hello, 0);
        join(3 + i, name, 0);
        ck_assert_uint_eq(last_order()->replica, homes[i]);
        fixture_ranks_execute(&f);
    }
}
END_TEST

START_TEST(contribution_counts_once_every_lane_has_it)
{
    uint32_t id = begin_direct();
    push_lane_0(3, 0);
    ck_assert_uint_eq(fixture_count(&f, RANK_1, PD_MESSAGE_ORDER), 0);
    report(PD_REPORT_CONTRIBUTED, id, 0);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_STEP);
    ck_assert_uint_eq(last_order()->contributor_count, 1);
    ck_assert_double_eq(last_order()->weights[0], 2.0);
    ck_assert_uint_eq(last_order()->samples, 2);
}
END_TEST

/* The gradient that comes after one that was taken back may be of another batch. */
START_TEST(what_comes_again_counts_as_it_comes)
{
    uint32_t id = begin_direct();
    struct pd_member *member = pd_member_find(f.engine->leader, id);
    struct pd_report given = {
        .kind = PD_REPORT_CONTRIBUTED, .last = true, .samples = 1, .has_loss = true, .loss = 4.0};
    pd_member_contributed(f.engine, member, 0, &given);
    pd_member_contributed(f.engine, member, 1, &given);
    ck_assert(pd_member_complete(f.engine, member));
    pd_member_undone(member, 0);
    ck_assert(!pd_member_complete(f.engine, member));
    pd_member_contributed(f.engine, member, 0, &given);
    ck_assert(pd_member_complete(f.engine, member));
    ck_assert_uint_eq(member->gradient.samples, 1);

    pd_member_undone(member, 0);
    pd_member_undone(member, 1);
    given.samples = 3;
    given.loss = 2.0;
    pd_member_contributed(f.engine, member, 1, &given);
    pd_member_contributed(f.engine, member, 0, &given);
    ck_assert(pd_member_complete(f.engine, member));
    ck_assert_uint_eq(member->gradient.samples, 3);
    ck_assert_uint_eq(member->gradient.unit_samples, 3);
    ck_assert_double_eq(member->gradient.loss_sum, 6.0);
}
END_TEST

/* It asks again on the new one: the answer to what it asked on the old one would come twice. */
START_TEST(registration_is_answered_on_the_connection_it_was_asked_on)
{
    fixture_init(&f, 0, 2, DIRECT);
    fixture_link_ranks(&f);
    uint32_t id = fixture_join(&f, 3, "a");
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO,
                               .hello = {.has_worker_id = true,
                                         .worker_id = id,
                                         .token = fixture_last(&f, 3)->joined.token,
                                         .run_id = f.topology.run_id}};
    offer(3);
    fixture_close(&f, 3);
    fixture_open(&f, 5);
    fixture_say(&f, 5, &hello, 0);
    ck_assert_int_eq(fixture_last(&f, 5)->kind, PD_MESSAGE_WELCOME);
    fixture_ranks_execute(&f);
    ck_assert_uint_eq(fixture_count(&f, 5, PD_MESSAGE_REGISTERED), 0);
    offer(5);
    ck_assert_uint_eq(fixture_count(&f, 5, PD_MESSAGE_REGISTERED), 1);
}
END_TEST

START_TEST(lost_worker_has_its_time_to_come_back)
{
    uint32_t id = begin_direct();
    report(PD_REPORT_LOST, id, 0);
    fixture_wait(&f, 4500);
    report(PD_REPORT_FOUND, id, 0);
    fixture_wait(&f, 3000);
    ck_assert_uint_eq(fixture_count(&f, RANK_1, PD_MESSAGE_ORDER), 0);
    report(PD_REPORT_LOST, id, 0);
    fixture_wait(&f, 5500);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_DEPART);
    ck_assert_str_eq(last_order()->reason, "connection reset, and it did not come back within 5 s");
}
END_TEST

START_TEST(worker_back_in_time_is_forgiven_its_lease)
{
    uint32_t id = begin_direct();
    f.engine->leader->paused = true;
    push_lane_0(3, 0);
    struct pd_message lost = {
        .kind = PD_MESSAGE_REPORT,
        .report = {.kind = PD_REPORT_LOST, .worker_id = id, .expired = true, .text = "silent"}};
    report(PD_REPORT_CONTRIBUTED, id, 0);
    fixture_say(&f, RANK_1, &lost, 0);
    report(PD_REPORT_FOUND, id, 0);
    f.engine->leader->paused = false;
    fixture_wait(&f, 250);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_STEP);
    report(PD_REPORT_LOST, id, 0);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_STEP);
}
END_TEST

START_TEST(time_rank_0_was_stopped_does_not_count)
{
    uint32_t id = begin_direct();
    fixture_wait(&f, 250);
    report(PD_REPORT_LOST, id, 0);
    f.now_ms += 9000;
    fixture_wait(&f, 3000);
    ck_assert_uint_eq(fixture_count(&f, RANK_1, PD_MESSAGE_ORDER), 0);
}
END_TEST

/* A report may still be on its way when the worker leaves: the step waits for rank 1's word that
 * there will be no other. */
START_TEST(leaver_is_judged_when_all_ranks_have_parted_from_it)
{
    uint32_t id = begin_direct();
    struct pd_message leave = {.kind = PD_MESSAGE_LEAVE, .leave = {.step = 1}};
    push_lane_0(3, 0);
    fixture_say(&f, 3, &leave, 0);
    ck_assert_int_eq(fixture_last(&f, 3)->kind, PD_MESSAGE_LEFT);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_DEPART);
    ck_assert_str_eq(last_order()->reason, "");
    report(PD_REPORT_CONTRIBUTED, id, 0);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_DEPART);
    struct pd_message executed = {
        .kind = PD_MESSAGE_REPORT,
        .report = {.kind = PD_REPORT_EXECUTED, .order_index = last_order()->index}};
    fixture_say(&f, RANK_1, &executed, 0);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_STEP);
    ck_assert_uint_eq(last_order()->contributors[0], id);
    ck_assert_ptr_null(pd_member_find(f.engine->leader, id));
}
END_TEST

/* It has been told that it is gone, and that its push is accepted: an eviction would lose that. */
START_TEST(leaver_is_not_evicted)
{
    uint32_t id = begin_direct();
    struct pd_message leave = {.kind = PD_MESSAGE_LEAVE, .leave = {.step = 1}};
    struct pd_message evict = {.kind = PD_MESSAGE_ADMIN,
                               .admin = {.command = "evict", .target = "a"}};
    f.engine->leader->paused = true;
    push_lane_0(3, 0);
    report(PD_REPORT_CONTRIBUTED, id, 0);
    fixture_say(&f, 3, &leave, 0);
    fixture_greet(&f, 5);
    fixture_say(&f, 5, &evict, 0);
    ck_assert_int_eq(fixture_last(&f, 5)->kind, PD_MESSAGE_ERROR);
    ck_assert_int_eq(fixture_last(&f, 5)->error.status, PD_EREFUSED);
    ck_assert_str_eq(fixture_last(&f, 5)->error.text,
                     "evict: worker 0 'a' is gone already; what it gave to step 0 stays");
    f.engine->leader->paused = false;
    fixture_ranks_execute(&f);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_STEP);
    ck_assert_uint_eq(last_order()->contributors[0], id);
}
END_TEST

START_TEST(leaver_whose_lanes_disagree_counts_nowhere)
{
    uint32_t id = begin_direct();
    struct pd_message leave = {.kind = PD_MESSAGE_LEAVE};
    push_lane_0(3, 0);
    fixture_say(&f, 3, &leave, 0);
    struct pd_message executed = {
        .kind = PD_MESSAGE_REPORT,
        .report = {.kind = PD_REPORT_EXECUTED, .order_index = last_order()->index}};
    fixture_say(&f, RANK_1, &executed, 0);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_DEPART);
    ck_assert_str_eq(last_order()->reason, "it left, and its last push did not reach every lane");
    ck_assert_ptr_null(pd_roster_find(f.engine->roster, id));
}
END_TEST

/* With room for one. What it pushed in two micro-batches to lane 0, and in one to lane 1, is whole
 * on both; so it is added up, and nothing brings it out of the sum again. */
START_TEST(contribution_that_is_taken_counts_though_its_lanes_disagree_and_its_worker_is_evicted)
{
    struct pd_message evict = {.kind = PD_MESSAGE_ADMIN,
                               .admin = {.command = "evict", .target = "a"}};
    uint32_t first = begin("aggregation: direct\naccumulation_steps: 2\nblock_size: 1\n"
                           "workers: {expected: 2, resume_s: 5, staging_limit: 32}\n");
    uint32_t second = fixture_join(&f, 4, "b");
    offer(4);
    report(PD_REPORT_FOUND, second, 0);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_ADMIT);
    fixture_ranks_execute(&f);
    push_batch_lane_0(3, 0, 0, false);
    push_batch_lane_0(3, 0, 1, true);
    report(PD_REPORT_CONTRIBUTED, first, 0);
    ck_assert_uint_eq(last_order_of(PD_ORDER_TAKE)->contributors[0], first);
    fixture_work(&f);
    fixture_ranks_execute(&f);
    fixture_greet(&f, 5);
    fixture_say(&f, 5, &evict, 0);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_DEPART);
    fixture_ranks_execute(&f);
    fixture_forget(&f);
    fixture_wait(&f, 1000);
    fixture_ranks_execute(&f);
    ck_assert_uint_eq(fixture_count(&f, RANK_1, PD_MESSAGE_ORDER), 0);
    push_lane_0(4, 0);
    report(PD_REPORT_CONTRIBUTED, second, 0);
    const struct pd_order *step = last_order_of(PD_ORDER_STEP);
    ck_assert_uint_eq(step->contributor_count, 2);
    ck_assert_uint_eq(step->contributors[0], first);
    ck_assert_uint_eq(step->samples, 2 * 2 + 2);
}
END_TEST

START_TEST(successor_of_a_leaver_waits_until_its_gradient_is_used)
{
    uint32_t id = begin_direct();
    struct pd_message leave = {.kind = PD_MESSAGE_LEAVE, .leave = {.step = 1}};
    push_lane_0(3, 0);
    fixture_say(&f, 3, &leave, 0);
    fixture_greet(&f, 4);
    join(4, "a", 0);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_DEPART);
    report(PD_REPORT_CONTRIBUTED, id, 0);
    fixture_ranks_execute(&f);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_JOIN);
    ck_assert_str_eq(last_order()->name, "a");
}
END_TEST

/* The first answer was lost, or crossed the word said again. */
START_TEST(second_leave_is_answered_and_changes_nothing)
{
    (void)begin_direct();
    struct pd_message leave = {.kind = PD_MESSAGE_LEAVE};
    fixture_say(&f, RANK_1, &(struct pd_message){.kind = PD_MESSAGE_BEAT}, 0);
    f.engine->leader->paused = true;
    fixture_say(&f, 3, &leave, 0);
    ck_assert_uint_eq(fixture_count(&f, RANK_1, PD_MESSAGE_ORDER), 1);
    fixture_say(&f, 3, &leave, 0);
    ck_assert_uint_eq(fixture_count(&f, 3, PD_MESSAGE_LEFT), 2);
    ck_assert_uint_eq(fixture_count(&f, RANK_1, PD_MESSAGE_ORDER), 1);
    fixture_greet(&f, 4);
    fixture_say(&f, 4, &leave, 0);
    fixture_expect_error(&f, 4, PD_EPROTOCOL, true, "from a peer that has not joined");
}
END_TEST

/* On the connection of the worker that it was before. */
START_TEST(one_that_has_joined_again_leaves_again)
{
    (void)begin_direct();
    struct pd_message leave = {.kind = PD_MESSAGE_LEAVE};
    struct pd_message join = {.kind = PD_MESSAGE_JOIN, .join = {.name = "a", .nonce = 7}};
    fixture_say(&f, 3, &leave, 0);
    fixture_ranks_execute(&f);
    fixture_say(&f, 3, &join, 0);
    fixture_ranks_execute(&f);
    ck_assert_int_eq(fixture_last(&f, 3)->kind, PD_MESSAGE_JOINED);
    fixture_say(&f, 3, &leave, 0);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_DEPART);
}
END_TEST

START_TEST(push_of_one_that_takes_no_part_gets_it_evicted)
{
    uint32_t id = begin_direct();
    uint32_t intruder = fixture_join(&f, 4, "b");
    report(PD_REPORT_CONTRIBUTED, intruder, 0);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_DEPART);
    ck_assert_uint_eq(last_order()->worker_id, intruder);
    ck_assert_ptr_nonnull(
        strstr(last_order()->reason, "it pushed for step 0 without having registered"));
    ck_assert_ptr_nonnull(pd_member_find(f.engine->leader, id));
}
END_TEST

START_TEST(values_come_from_another_when_their_supplier_is_lost)
{
    fixture_init(&f, 0, 2, DIRECT);
    fixture_link_ranks(&f);
    fixture_join(&f, 3, "a");
    offer(3);
    fixture_ranks_execute(&f);
    uint32_t second = fixture_join(&f, 4, "b");
    offer(4);
    ck_assert_int_eq(fixture_last(&f, 4)->kind, PD_MESSAGE_JOINED);
    fixture_close(&f, 3);
    fixture_wait(&f, 5500);
    fixture_ranks_execute(&f);
    ck_assert_int_eq(last_order()->kind, PD_ORDER_REGISTER);
    ck_assert_uint_eq(last_order()->worker_id, second);
    ck_assert_uint_eq(last_order()->tensors.count, 0);
    fixture_ranks_execute(&f);
    ck_assert_int_eq(fixture_last(&f, 4)->kind, PD_MESSAGE_REGISTERED);
    ck_assert(fixture_last(&f, 4)->registered.values_needed);
}
END_TEST

/* Time in which whoever is connected there keeps its lease. */
static void wait_pinging(const pd_connection_id *connections, uint32_t count, uint64_t ms)
{
    const struct pd_message ping = {.kind = PD_MESSAGE_PING};
    for (uint64_t waited = 0; waited < ms; waited += 250) {
        for (uint32_t i = 0; i < count; i++) {
            fixture_say(&f, connections[i], &ping, 0);
        }
        fixture_wait(&f, 250);
    }
}

#define IMPATIENT "workers: {expected: 1, lease_s: 60, resume_s: 5, register_s: 3}\nblock_size: 1\n"

START_TEST(worker_that_has_joined_must_register_in_time)
{
    static const pd_connection_id both[] = {3, 4};
    fixture_init(&f, 0, 1, IMPATIENT);
    (void)fixture_join(&f, 3, "a");
    (void)fixture_enlist(&f, 4, "b");
    wait_pinging(both, 2, 3000);
    ck_assert(!f.closed[3]);
    wait_pinging(both, 2, 500);
    fixture_expect_error(&f, 3, PD_EIDENTITY, true,
                         "it did not register within 3 s (workers.register_s)");
    ck_assert(!f.closed[4]);
}
END_TEST

/* It asks again for what it had asked for; and one that waits for an answer has asked. */
START_TEST(worker_that_comes_back_has_its_time_to_register_anew)
{
    static const pd_connection_id both[] = {3, 5};
    fixture_init(&f, 0, 2, "aggregation: direct\n" IMPATIENT);
    fixture_link_ranks(&f);
    uint32_t id = fixture_join(&f, 3, "a");
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO,
                               .hello = {.has_worker_id = true,
                                         .worker_id = id,
                                         .token = fixture_last(&f, 3)->joined.token,
                                         .run_id = f.topology.run_id}};
    offer(3);
    wait_pinging(both, 1, 4000);
    fixture_close(&f, 3);
    fixture_open(&f, 5);
    fixture_say(&f, 5, &hello, 0);
    wait_pinging(both + 1, 1, 2500);
    ck_assert(!f.closed[5]);
    wait_pinging(both + 1, 1, 1000);
    ck_assert_ptr_null(pd_member_find(f.engine->leader, id));
}
END_TEST

START_TEST(values_come_from_another_when_their_supplier_does_not_give_them)
{
    static const pd_connection_id both[] = {3, 4};
    struct pd_message values = {.kind = PD_MESSAGE_VALUES,
                                .values = {.element_count = FIXTURE_ELEMENTS}};
    fixture_init(&f, 0, 1, IMPATIENT);
    (void)fixture_join(&f, 3, "a");
    (void)fixture_join(&f, 4, "b");
    offer(3);
    offer(4);
    ck_assert(fixture_last(&f, 3)->registered.values_needed);
    wait_pinging(both, 2, 3500);
    fixture_expect_error(&f, 3, PD_EIDENTITY, true,
                         "it did not give the initial values within 3 s (workers.register_s)");
    ck_assert(fixture_last(&f, 4)->registered.values_needed);
    /* As long as they are on their way, the lease counts. */
    fixture_say(&f, 4, &values, FIXTURE_ELEMENTS * sizeof(float));
    fixture_wait(&f, 5000);
    ck_assert(!f.closed[4]);
    fixture_payload(&f, 4, NULL, 0, true);
    ck_assert(f.engine->store.has_version);
}
END_TEST

START_TEST(struck_off_worker_is_told_before_its_rank_has_done_it)
{
    uint32_t id = begin_direct();
    struct pd_message leave = {.kind = PD_MESSAGE_LEAVE};
    struct pd_member *member = pd_member_find(f.engine->leader, id);
    member->state = PD_MEMBER_NONE;
    fixture_say(&f, 3, &leave, 0);
    fixture_expect_error(&f, 3, PD_EIDENTITY, false, "is being struck off");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("membership");
    TCase *tests = tcase_create("membership");

    tcase_add_checked_fixture(tests, NULL, teardown);
    tcase_add_test(tests, join_is_ordered_once_all_ranks_are_linked_and_answered_once_all_know);
    tcase_add_test(tests, worker_without_a_name_is_given_one);
    tcase_add_test(tests, members_are_told_apart_whatever_their_numbers);
    tcase_add_test(tests, name_of_a_live_worker_is_not_given_away);
    tcase_add_test(tests, repeated_join_gets_the_first_ones_answer);
    tcase_add_test(tests, repeated_registration_gets_the_answer_that_was_lost);
    tcase_add_test(tests, home_is_the_replica_on_the_workers_host_else_the_least_loaded);
    tcase_add_test(tests, contribution_counts_once_every_lane_has_it);
    tcase_add_test(tests, registration_is_answered_on_the_connection_it_was_asked_on);
    tcase_add_test(tests, lost_worker_has_its_time_to_come_back);
    tcase_add_test(tests, worker_back_in_time_is_forgiven_its_lease);
    tcase_add_test(tests, time_rank_0_was_stopped_does_not_count);
    tcase_add_test(tests, leaver_is_judged_when_all_ranks_have_parted_from_it);
    tcase_add_test(tests, leaver_is_not_evicted);
    tcase_add_test(tests, leaver_whose_lanes_disagree_counts_nowhere);
    tcase_add_test(
        tests,
        contribution_that_is_taken_counts_though_its_lanes_disagree_and_its_worker_is_evicted);
    tcase_add_test(tests, successor_of_a_leaver_waits_until_its_gradient_is_used);
    tcase_add_test(tests, second_leave_is_answered_and_changes_nothing);
    tcase_add_test(tests, one_that_has_joined_again_leaves_again);
    tcase_add_test(tests, push_of_one_that_takes_no_part_gets_it_evicted);
    tcase_add_test(tests, values_come_from_another_when_their_supplier_is_lost);
    tcase_add_test(tests, worker_that_has_joined_must_register_in_time);
    tcase_add_test(tests, worker_that_comes_back_has_its_time_to_register_anew);
    tcase_add_test(tests, values_come_from_another_when_their_supplier_does_not_give_them);
    tcase_add_test(tests, what_comes_again_counts_as_it_comes);
    tcase_add_test(tests, struck_off_worker_is_told_before_its_rank_has_done_it);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
