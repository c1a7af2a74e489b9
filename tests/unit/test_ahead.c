/* Steps begun while their gradients arrive: what leaves ahead, when it counts, and all that makes
 * it void. */
#include "ahead_fixture.h"

#include "common/heap.h"
#include "common/kernel.h"
#include "server/core/step_state.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- What leaves ahead ---- */

START_TEST(parameters_leave_block_by_block_as_gradients_arrive)
{
    announce(A, 0);
    fixture_receive(&f, A, gradient_a, 0, BYTES);
    ck_assert_ptr_null(f.engine->foreseen);
    announce(B, 0);
    ck_assert_ptr_nonnull(f.engine->foreseen);
    ck_assert_uint_eq(fixture_count(&f, A, PD_MESSAGE_PULLED), 0);

    fixture_receive(&f, B, gradient_b, 0, FIRST_BLOCK - 1);
    ck_assert_uint_eq(fixture_count(&f, A, PD_MESSAGE_PULLED), 0);
    fixture_receive(&f, B, gradient_b, 0, FIRST_BLOCK);
    expect_ahead(A, FIRST_BLOCK);
    expect_ahead(B, FIRST_BLOCK);
    ck_assert_mem_eq(last_payload(A)->payload, together, FIRST_BLOCK);
    fixture_receive(&f, B, gradient_b, FIRST_BLOCK, SECOND_BLOCK + 1);
    expect_ahead(A, SECOND_BLOCK);
    ck_assert_mem_eq(last_payload(A)->payload, together, SECOND_BLOCK);
    expect_parameters(0, initial());
}
END_TEST

START_TEST(what_came_ahead_counts_once_the_step_is_closed)
{
    begin_both();
    end(A, gradient_a);
    ck_assert_uint_eq(fixture_count(&f, A, PD_MESSAGE_SETTLED), 0);
    end(B, gradient_b);
    expect_parameters(1, together);
    for (pd_connection_id connection = A; connection <= B; connection++) {
        const struct pd_message *settled = fixture_last(&f, connection);
        ck_assert_int_eq(settled->kind, PD_MESSAGE_SETTLED);
        ck_assert(settled->settled.applied);
        ck_assert_uint_eq(settled->settled.pulled.version, 1);
        ck_assert_uint_eq(settled->settled.pulled.lr_count, 1);
        ck_assert_double_eq(settled->settled.pulled.lrs[0], 1.0);
        ck_assert_uint_eq(fixture_count(&f, connection, PD_MESSAGE_PULLED), 1);
        ck_assert_uint_eq(fixture_count(&f, connection, PD_MESSAGE_PUSHED), 0);
        ck_assert_uint_eq(f.may_leave[connection], BYTES);
        ck_assert_ptr_eq(last_payload(connection)->payload,
                         pd_param_store_served(&f.engine->store));
    }
}
END_TEST

START_TEST(two_byte_types_leave_ahead_in_as_many_bytes)
{
    struct pd_message push = push_of(0, true);
    push.push.pull_dtype = PD_DTYPE_BFLOAT16;
    fixture_say(&f, A, &push, BYTES);
    announce(B, 0);
    fixture_receive(&f, A, gradient_a, 0, BYTES);
    fixture_receive(&f, B, gradient_b, 0, SECOND_BLOCK);
    expect_ahead(A, SECOND_BLOCK / 2);
    expect_ahead(B, SECOND_BLOCK);
    end(A, gradient_a);
    end(B, gradient_b);
    expect_parameters(1, together);
    ck_assert_uint_eq(f.may_leave[A], BYTES / 2);
    ck_assert_ptr_eq(last_payload(A)->payload, pd_param_store_served(&f.engine->store));
    ck_assert_uint_eq(last_payload(A)->payload_dtype, PD_DTYPE_BFLOAT16);
    ck_assert(fixture_last(&f, A)->settled.applied);
    ck_assert_uint_eq(fixture_last(&f, A)->settled.pulled.dtype, PD_DTYPE_BFLOAT16);
}
END_TEST

START_TEST(worker_that_does_not_ask_is_answered_once_the_step_is_closed)
{
    const struct pd_message push = push_of(0, false);
    fixture_say(&f, A, &push, BYTES);
    announce(B, 0);
    fixture_receive(&f, A, gradient_a, 0, FIRST_BLOCK);
    fixture_receive(&f, B, gradient_b, 0, FIRST_BLOCK);
    expect_ahead(B, FIRST_BLOCK);
    end(A, gradient_a);
    ck_assert_uint_eq(fixture_count(&f, A, PD_MESSAGE_PULLED), 0);
    end(B, gradient_b);
    expect_plain_answer(A, 1);
    ck_assert_uint_eq(fixture_count(&f, A, PD_MESSAGE_SETTLED), 0);
    expect_parameters(1, together);
}
END_TEST

START_TEST(nothing_is_ahead_where_it_is_not_allowed)
{
    static const char *const configs[] = {
        PLAIN "compute_ahead: 0\n",
        PLAIN "compute_ahead: 9\n",
        CONFIG "accumulation_steps: 2\n",
    };
    fixture_finish(&f);
    begin(configs[_i]);
    struct pd_message push = push_of(0, true);
    if (_i == 2) {
        push.push.last = false;
        push.push.pull = false;
    }
    fixture_say(&f, A, &push, BYTES);
    fixture_say(&f, B, &push, BYTES);
    fixture_receive(&f, A, gradient_a, 0, FIRST_BLOCK);
    fixture_receive(&f, B, gradient_b, 0, FIRST_BLOCK);
    ck_assert_ptr_null(f.engine->foreseen);
    end(A, gradient_a);
    end(B, gradient_b);
    if (_i < 2) {
        expect_plain_answer(A, 1);
        expect_parameters(1, together);
    }
}
END_TEST

/* Have the engine stream as it does what is large. */
static void stream(void)
{
    struct pd_step_machine *step = f.engine->step;

    step->fresh_elements = pd_heap_zalloc(PD_STEP_TURN_ELEMENTS, sizeof(float));
    for (uint32_t i = 0; i < f.model.count; i++) {
        pd_optimizer_state_of(&step->optimizer_state, i)->streamed = true;
    }
}

/* What all are let go at once is in the caches once more, of what they are sent. */
START_TEST(what_leaves_as_it_is_computed_is_fresh)
{
    const struct pd_fresh *fresh = &f.actions.fresh;

    if (!pd_kernel_streams()) {
        return;
    }
    stream();
    begin_both();
    fixture_receive(&f, A, gradient_a, FIRST_BLOCK, BYTES);
    fixture_receive(&f, B, gradient_b, FIRST_BLOCK, SECOND_BLOCK);
    expect_ahead(A, SECOND_BLOCK);
    expect_ahead(B, SECOND_BLOCK);
    ck_assert_uint_eq(f.actions.count, 3); /* what B sends next gets its place, too */
    ck_assert_ptr_eq(fresh->payload, last_payload(A)->payload);
    ck_assert_ptr_eq(fresh->payload, last_payload(B)->payload);
    ck_assert_uint_eq(fresh->begin, FIRST_BLOCK);
    ck_assert_uint_eq(fresh->end, SECOND_BLOCK);
    ck_assert_mem_eq(fresh->bytes, (const char *)together + FIRST_BLOCK,
                     SECOND_BLOCK - FIRST_BLOCK);
    ck_assert_ptr_ne(fresh->bytes, (const char *)fresh->payload + FIRST_BLOCK);
    end(A, gradient_a);
    end(B, gradient_b);
    expect_parameters(1, together);
}
END_TEST

/* ---- What makes it void ---- */

START_TEST(worker_lost_midway_makes_it_void)
{
    begin_both();
    end(A, gradient_a);
    fixture_close(&f, B);
    expect_void_and_again(A, 1);
    expect_parameters(0, initial());
    ck_assert_uint_eq(f.engine->store.buffers[1 - f.engine->store.served].users, 0);

    /* The worker still gets the rest of the void payload: its answer comes after that. */
    announce(A, 0);
    end(A, gradient_a);
    fixture_wait(&f, 3000);
    ck_assert(!f.closed[A]);
    ck_assert_uint_eq(f.engine->store.version, 1);
    ck_assert_uint_eq(fixture_count(&f, A, PD_MESSAGE_PULLED), 1);
    fixture_sent_event(&f, A);
    fixture_work(&f);
    expect_only_a(1);
    expect_plain_answer(A, 1);
}
END_TEST

START_TEST(damaged_gradient_makes_it_void_and_is_sent_again)
{
    begin_both();
    fixture_payload(&f, B, gradient_a, BYTES, false);
    fixture_work(&f);
    expect_void_and_again(A, 1);
    expect_void(B, 1);
    fixture_expect_error(&f, B, PD_ECHECKSUM, false, "nothing of it counts: send it again");
    expect_parameters(0, initial());

    /* What A was sending when it was told is dropped. */
    ck_assert_ptr_null(f.placed[A]);
    end(A, gradient_a);
    fixture_sent_event(&f, B);
    announce(B, 0);
    end(B, gradient_b);
    push_again(A, gradient_a);
    expect_parameters(1, together);
    ck_assert_uint_eq(last_payload(B)->message->pulled.version, 1);
}
END_TEST

START_TEST(nan_in_the_last_block_makes_it_void)
{
    float broken[FIXTURE_ELEMENTS];
    memcpy(broken, gradient_b, sizeof broken);
    broken[FIXTURE_ELEMENTS - 1] = NAN;
    begin_both();
    end(A, gradient_a);
    end(B, broken);
    expect_void(A, 1);
    expect_void(B, 1);
    expect_parameters(1, initial());
    ck_assert_uint_eq(f.engine->skipped_steps, 1);
    fixture_sent_event(&f, A);
    fixture_sent_event(&f, B);
    expect_plain_answer(A, 1);
    expect_plain_answer(B, 1);
    ck_assert_ptr_eq(last_payload(A)->payload, pd_param_store_served(&f.engine->store));
}
END_TEST

/* Its elements are given up by the time the step is found to be broken. */
START_TEST(nan_in_the_first_block_is_told_by_name)
{
    float broken[FIXTURE_ELEMENTS];
    memcpy(broken, gradient_b, sizeof broken);
    broken[1] = NAN;
    announce(A, 0);
    announce(B, 0);
    fixture_receive(&f, A, gradient_a, 0, SECOND_BLOCK);
    fixture_receive(&f, B, broken, 0, SECOND_BLOCK);
    ck_assert_uint_gt(contribution_of(B)->spent, 0);
    end(A, gradient_a);
    end(B, broken);
    expect_void(A, 1);
    ck_assert_ptr_nonnull(
        strstr(f.engine->leader->last_skip_reason, "'b' is not finite: tensor 'w', element 1"));

    /* It is not held against the next step. */
    fixture_sent_event(&f, A);
    fixture_sent_event(&f, B);
    announce(A, 1);
    announce(B, 1);
    end(A, gradient_a);
    end(B, gradient_b);
    expect_parameters(2, together);
}
END_TEST

START_TEST(changed_rate_makes_it_void)
{
    struct pd_message admin = {.kind = PD_MESSAGE_ADMIN,
                               .admin = {.command = "set-lr", .has_value = true, .value = 0.5}};
    fixture_greet(&f, ADMIN);
    begin_both();
    end(A, gradient_a);
    fixture_say(&f, ADMIN, &admin, 0);
    ck_assert_int_eq(fixture_last(&f, ADMIN)->kind, PD_MESSAGE_ADMIN_REPLY);
    ck_assert_uint_eq(fixture_count(&f, A, PD_MESSAGE_SETTLED), 0);
    end(B, gradient_b);
    expect_void_and_again(A, 1);
    expect_void_and_again(B, 1);
    ck_assert_uint_eq(f.engine->store.version, 0);

    /* It is foreseen anew, at the new rate. */
    ck_assert_ptr_nonnull(f.engine->foreseen);
    push_again(A, gradient_a);
    push_again(B, gradient_b);
    ck_assert_uint_eq(f.engine->store.version, 1);
    ck_assert_float_eq(pd_param_store_served(&f.engine->store)[0], 0);
    ck_assert(fixture_last(&f, A)->settled.applied);
    ck_assert_double_eq(fixture_last(&f, A)->settled.pulled.lrs[0], 0.5);
}
END_TEST

START_TEST(pause_keeps_it_open_until_the_step_closes)
{
    struct pd_message admin = {.kind = PD_MESSAGE_ADMIN, .admin = {.command = "pause"}};
    fixture_greet(&f, ADMIN);
    begin_both();
    fixture_say(&f, ADMIN, &admin, 0);
    fixture_sent_event(&f, ADMIN);
    end(A, gradient_a);
    end(B, gradient_b);
    expect_ahead(A, BYTES);
    expect_parameters(0, initial());
    admin = (struct pd_message){.kind = PD_MESSAGE_ADMIN, .admin = {.command = "resume"}};
    fixture_say(&f, ADMIN, &admin, 0);
    fixture_work(&f);
    expect_parameters(1, together);
    ck_assert(fixture_last(&f, A)->settled.applied);
}
END_TEST

START_TEST(drain_makes_it_void)
{
    struct pd_event drain = {.kind = PD_EVENT_DRAIN, .now_ms = f.now_ms, .text = "SIGTERM"};
    begin_both();
    pd_actions_reset(&f.actions);
    pd_engine_step(f.engine, &drain, &f.actions);
    fixture_note(&f);
    expect_void(A, 1);
    ck_assert_int_eq(fixture_last(&f, A)->kind, PD_MESSAGE_DRAINING);
    ck_assert(f.exited);
}
END_TEST

/* With the newcomer's gradient the step is another one, and it is sent nothing of the one that was
 * foreseen. */
START_TEST(worker_that_joins_midway_makes_it_void)
{
    begin_both();
    fixture_enlist(&f, C, "c");
    announce(C, 0);
    fixture_receive(&f, C, gradient_a, 0, BYTES);
    ck_assert_uint_eq(fixture_count(&f, C, PD_MESSAGE_PULLED), 0);
    end(A, gradient_a);
    end(B, gradient_b);
    expect_parameters(0, initial());
    end(C, gradient_a);
    expect_void_and_again(A, 1);
    expect_void_and_again(B, 1);
    ck_assert_uint_eq(fixture_count(&f, C, PD_MESSAGE_SETTLED), 0);
    push_again(A, gradient_a);
    ck_assert_uint_eq(f.engine->store.version, 0);
    push_again(B, gradient_b);
    ck_assert_uint_eq(f.engine->store.version, 1);
    ck_assert_float_eq_tol(pd_param_store_served(&f.engine->store)[0], 1.0f - 5.0f / 3.0f, 1e-6f);
}
END_TEST

/* ---- What its connection may do meanwhile ---- */

START_TEST(reconnected_worker_is_sent_all_of_it_anew)
{
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO,
                               .hello = {.has_worker_id = true, .run_id = 99}};
    hello.hello.worker_id = f.engine->sessions[A].worker_id;
    hello.hello.token = pd_roster_find(f.engine->roster, hello.hello.worker_id)->token;
    begin_both();
    end(A, gradient_a);
    fixture_close(&f, A);
    ck_assert_uint_eq(fixture_count(&f, B, PD_MESSAGE_SETTLED), 0);
    ck_assert_uint_eq(f.engine->store.buffers[1 - f.engine->store.served].users, 1);

    fixture_open(&f, C);
    fixture_say(&f, C, &hello, 0);
    ck_assert_uint_eq(fixture_last(&f, C)->welcome.next_step, 1);
    struct pd_message push = push_of(0, true);
    push.push.pull_dtype = PD_DTYPE_FLOAT16; /* it may have changed its mind */
    fixture_say(&f, C, &push, BYTES);
    expect_ahead(C, FIRST_BLOCK / 2);
    fixture_payload(&f, C, NULL, 0, true);
    end(B, gradient_b);
    expect_parameters(1, together);
    ck_assert(fixture_last(&f, C)->settled.applied);
    ck_assert(fixture_last(&f, B)->settled.applied);
    ck_assert_uint_eq(f.may_leave[C], BYTES / 2);
}
END_TEST

/* It had come back, was told that its push counts, and has asked for what that makes. */
START_TEST(pull_that_crosses_the_word_to_push_again_is_void)
{
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO,
                               .hello = {.has_worker_id = true, .run_id = 99}};
    const struct pd_message pull = {.kind = PD_MESSAGE_PULL, .pull = {.min_version = 1}};
    hello.hello.worker_id = f.engine->sessions[A].worker_id;
    hello.hello.token = pd_roster_find(f.engine->roster, hello.hello.worker_id)->token;
    begin_both();
    end(A, gradient_a);
    fixture_close(&f, A);
    fixture_open(&f, C);
    fixture_say(&f, C, &hello, 0);
    ck_assert_uint_eq(fixture_last(&f, C)->welcome.next_step, 1);
    fixture_payload(&f, B, gradient_a, BYTES, false);
    ck_assert_int_eq(fixture_last(&f, C)->kind, PD_MESSAGE_SETTLED);
    ck_assert(fixture_last(&f, C)->settled.again);
    fixture_say(&f, C, &pull, 0);

    fixture_sent_event(&f, B);
    announce(B, 0);
    end(B, gradient_b);
    announce(C, 0);
    end(C, gradient_a);
    ck_assert(!f.closed[C]);
    expect_parameters(1, together);
    ck_assert_uint_eq(fixture_count(&f, C, PD_MESSAGE_PULLED), 1);
}
END_TEST

START_TEST(silent_worker_with_an_open_answer_is_evicted_when_its_lease_is_over)
{
    struct pd_message ping = {.kind = PD_MESSAGE_PING};
    begin_both();
    end(A, gradient_a);
    for (uint32_t s = 0; s < 9; s++) {
        ck_assert(!f.closed[B] || s == 8);
        fixture_wait(&f, 1000);
        fixture_say(&f, A, &ping, 0);
    }
    ck_assert(f.closed[B]);
    ck_assert(!f.closed[A]);
    ck_assert_ptr_nonnull(strstr(f.logged, "evicted at step 0: the lease is over"));
    expect_void_and_again(A, 1);
    push_again(A, gradient_a);
    ck_assert_uint_eq(f.engine->store.version, 1);
}
END_TEST

/* It lives, but does not read: that is held against it from when the rest is there to be read. */
START_TEST(worker_that_does_not_read_is_cut_off_once_it_is_settled)
{
    begin_both();
    fixture_wait(&f, 5000);
    fixture_receive(&f, A, gradient_a, FIRST_BLOCK, SECOND_BLOCK);
    ck_assert(!f.closed[A]);
    end(A, gradient_a);
    end(B, gradient_b);
    fixture_sent_event(&f, B);
    fixture_wait(&f, 3000);
    ck_assert(!f.closed[A]);
    fixture_wait(&f, 1500);
    ck_assert(f.closed[A]);
    ck_assert(!f.closed[B]);
    ck_assert_ptr_nonnull(strstr(f.logged, "nothing was read of an answer for 4 s"));
    fixture_close(&f, A);
    ck_assert_uint_eq(f.engine->store.buffers[0].users + f.engine->store.buffers[1].users, 0);
}
END_TEST

START_TEST(worker_that_does_not_read_what_is_void_is_cut_off)
{
    struct pd_message ping = {.kind = PD_MESSAGE_PING};
    begin_both();
    end(A, gradient_a);
    fixture_close(&f, B);
    for (uint32_t s = 0; s < 5; s++) {
        ck_assert(!f.closed[A] || s == 4);
        fixture_wait(&f, 1000);
        fixture_say(&f, A, &ping, 0);
    }
    ck_assert(f.closed[A]);
}
END_TEST

/* Its program may be computing, and need its parameters. It has to live, and to read in the end. */
START_TEST(worker_that_still_pushes_need_not_read_what_is_void)
{
    begin_both();
    fixture_close(&f, B);
    expect_void_and_again(A, 1);
    fixture_wait(&f, 5000);
    fixture_progress(&f, A, true);
    fixture_wait(&f, 5000);
    ck_assert(!f.closed[A]);
    end(A, gradient_a);
    ck_assert_uint_eq(f.engine->store.version, 0);
    fixture_wait(&f, 3500);
    ck_assert(!f.closed[A]);
    fixture_wait(&f, 1000);
    ck_assert(f.closed[A]);
    ck_assert_ptr_nonnull(strstr(f.logged, "nothing was read of an answer for 4 s"));
}
END_TEST

START_TEST(silent_worker_whose_answer_is_void_is_evicted_when_its_lease_is_over)
{
    begin_both();
    fixture_close(&f, B);
    expect_void(A, 1);
    fixture_wait(&f, 7500);
    ck_assert(!f.closed[A]);
    fixture_wait(&f, 1000);
    ck_assert(f.closed[A]);
    ck_assert_ptr_nonnull(strstr(f.logged, "evicted at step 0: the lease is over"));
}
END_TEST

/* A push is no answer to a pull before it. */
START_TEST(pull_that_waits_is_not_answered_ahead)
{
    struct pd_message pull = {.kind = PD_MESSAGE_PULL, .pull = {.min_version = 1}};
    fixture_say(&f, A, &pull, 0);
    begin_both();
    ck_assert_uint_eq(fixture_count(&f, A, PD_MESSAGE_PULLED), 0);
    expect_ahead(B, FIRST_BLOCK);
    end(A, gradient_a);
    fixture_expect_error(&f, A, PD_EPROTOCOL, true, "before the answer to the one before");
}
END_TEST

START_TEST(fault_of_a_connection_with_an_open_answer_lets_go_of_it)
{
    struct pd_message welcome = {.kind = PD_MESSAGE_WELCOME};
    begin_both();
    fixture_say(&f, B, &welcome, 0);
    fixture_expect_error(&f, B, PD_EPROTOCOL, true, "welcome is a message from a rank");
    ck_assert_uint_eq(f.may_leave[B], BYTES);
    expect_void(A, 1);
    fixture_sent_event(&f, B);
    fixture_close(&f, B);
    ck_assert_uint_eq(f.engine->store.buffers[1 - f.engine->store.served].users, 0);
}
END_TEST

/* ---- A rank that is told what rank 0 foresees ---- */

static void link_to_leader(void)
{
    struct pd_event event = {
        .kind = PD_EVENT_OPENED, .now_ms = f.now_ms, .outgoing = true, .peer = "a:1"};

    fixture_init(&f, 1, 2, CONFIG "accumulation_steps: 2\n");
    pd_actions_reset(&f.actions);
    pd_engine_step(f.engine, &event, &f.actions);
    fixture_note(&f);
}

static void order(uint64_t index, enum pd_order_kind kind, struct pd_order *body)
{
    struct pd_message *message = calloc(1, sizeof *message);

    body->index = index;
    body->kind = kind;
    message->kind = PD_MESSAGE_ORDER;
    message->order = *body;
    fixture_say(&f, 0, message, 0);
    free(message);
}

/* Rank 1 of two, with a worker that has joined and connected. */
static void set_up_rank_1(struct pd_order *body)
{
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO,
                               .hello = {.has_worker_id = true, .run_id = 99, .token = 5}};

    link_to_leader();
    *body = (struct pd_order){.token = 5, .name = "a"};
    order(0, PD_ORDER_JOIN, body);
    *body = (struct pd_order){.tensors = f.model};
    order(1, PD_ORDER_REGISTER, body);
    *body = (struct pd_order){0};
    order(2, PD_ORDER_PUBLISH, body);
    ck_assert_uint_eq(f.engine->store.version, 0);
    ck_assert(f.engine->store.has_version);
    fixture_open(&f, A);
    fixture_say(&f, A, &hello, 0);
    ck_assert_int_eq(fixture_last(&f, A)->kind, PD_MESSAGE_WELCOME);
    *body = (struct pd_order){
        .contributor_count = 1, .weights = {1}, .samples = 1, .lr_count = 1, .lrs = {1}};
}

static void say_push(uint32_t micro_batch, bool last)
{
    struct pd_message push = push_of(0, last);
    push.push.micro_batch = micro_batch;
    push.push.last = last;
    push.push.pull = last;
    push.push.element_begin = f.engine->store.lane.element_begin;
    push.push.element_count = f.engine->store.lane.element_count;
    uint64_t byte_count = push.push.element_count * sizeof(float);
    fixture_say(&f, A, &push, byte_count);
    fixture_payload(&f, A, gradient_a, byte_count, true);
    fixture_work(&f);
}

START_TEST(rank_begins_what_rank_0_foresees_once_its_own_gradients_come)
{
    struct pd_order *body = calloc(1, sizeof *body);
    fixture_finish(&f);
    set_up_rank_1(body);
    order(3, PD_ORDER_AHEAD, body);
    ck_assert_ptr_nonnull(f.engine->foreseen);
    ck_assert_uint_eq(pd_step_next_elements(f.engine->step), 0);
    say_push(0, true);
    ck_assert_uint_eq(pd_step_next_elements(f.engine->step), f.engine->store.lane.element_count);
    ck_assert(last_payload(A)->message->pulled.ahead);
    body->foreseen = true;
    order(4, PD_ORDER_STEP, body);
    ck_assert_ptr_null(f.engine->foreseen);
    fixture_work(&f);
    ck_assert_ptr_nonnull(f.collective);
    free(body);
}
END_TEST

/* Its word to rank 0 was that there is one micro-batch. That ends nothing but its own luck. */
START_TEST(worker_that_pushes_otherwise_here_than_to_rank_0_is_not_ahead)
{
    struct pd_order *body = calloc(1, sizeof *body);
    fixture_finish(&f);
    set_up_rank_1(body);
    order(3, PD_ORDER_AHEAD, body);
    say_push(0, false);
    say_push(1, true);
    ck_assert_uint_eq(fixture_count(&f, A, PD_MESSAGE_PULLED), 0);
    body->foreseen = true;
    order(4, PD_ORDER_STEP, body);
    fixture_work(&f);
    ck_assert_str_eq(f.aborted, "");
    ck_assert_ptr_nonnull(f.collective);
    free(body);
}
END_TEST

/* It is not copied; nothing points to it once its memory may be another's. */
START_TEST(gradient_that_is_the_average_as_it_came_is_let_go)
{
    teardown();
    fixture_init(&f, 0, 1, "compute_ahead: 1\nblock_size: 4\noptimizer: {name: sgd, lr: 1}\n");
    fixture_enlist(&f, A, "a");
    announce(A, 0);
    fixture_receive(&f, A, gradient_a, 0, FIRST_BLOCK);
    ck_assert_ptr_eq(
        f.engine->step->lone,
        &pd_roster_find(f.engine->roster, f.engine->sessions[A].worker_id)->contribution);
    fixture_payload(&f, A, gradient_a, BYTES, false);
    ck_assert_ptr_null(f.engine->step->lone);
    announce(A, 0);
    end(A, gradient_a);
    ck_assert_uint_eq(f.engine->store.version, 1);
    ck_assert_ptr_null(f.engine->step->lone);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ahead");
    TCase *tests = tcase_create("ahead");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, parameters_leave_block_by_block_as_gradients_arrive);
    tcase_add_test(tests, what_came_ahead_counts_once_the_step_is_closed);
    tcase_add_test(tests, two_byte_types_leave_ahead_in_as_many_bytes);
    tcase_add_test(tests, what_leaves_as_it_is_computed_is_fresh);
    tcase_add_test(tests, worker_that_does_not_ask_is_answered_once_the_step_is_closed);
    tcase_add_loop_test(tests, nothing_is_ahead_where_it_is_not_allowed, 0, 3);
    tcase_add_test(tests, worker_lost_midway_makes_it_void);
    tcase_add_test(tests, damaged_gradient_makes_it_void_and_is_sent_again);
    tcase_add_test(tests, nan_in_the_last_block_makes_it_void);
    tcase_add_test(tests, nan_in_the_first_block_is_told_by_name);
    tcase_add_test(tests, changed_rate_makes_it_void);
    tcase_add_test(tests, pause_keeps_it_open_until_the_step_closes);
    tcase_add_test(tests, drain_makes_it_void);
    tcase_add_test(tests, worker_that_joins_midway_makes_it_void);
    tcase_add_test(tests, reconnected_worker_is_sent_all_of_it_anew);
    tcase_add_test(tests, pull_that_crosses_the_word_to_push_again_is_void);
    tcase_add_test(tests, silent_worker_with_an_open_answer_is_evicted_when_its_lease_is_over);
    tcase_add_test(tests, worker_that_does_not_read_is_cut_off_once_it_is_settled);
    tcase_add_test(tests, worker_that_does_not_read_what_is_void_is_cut_off);
    tcase_add_test(tests, worker_that_still_pushes_need_not_read_what_is_void);
    tcase_add_test(tests, silent_worker_whose_answer_is_void_is_evicted_when_its_lease_is_over);
    tcase_add_test(tests, pull_that_waits_is_not_answered_ahead);
    tcase_add_test(tests, fault_of_a_connection_with_an_open_answer_lets_go_of_it);
    tcase_add_test(tests, rank_begins_what_rank_0_foresees_once_its_own_gradients_come);
    tcase_add_test(tests, worker_that_pushes_otherwise_here_than_to_rank_0_is_not_ahead);
    tcase_add_test(tests, gradient_that_is_the_average_as_it_came_is_let_go);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
