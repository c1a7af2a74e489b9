/* The client library against ranks that lose connections, damage bytes, drain, restart or say
 * nothing. */
#include "client/include/paramd.h"
#include "common/assert.h"
#include "common/heap.h"
#include "tests/support/fake_rank.h"

#include <check.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Two tensors, 6 elements; lane 0 has the first 3, lane 1 the others, which span both. */
#define ELEMENT_COUNT 6u
#define LONG_COUNT 4000000u

static const uint64_t weight_shape[] = {2, 2};
static const uint64_t bias_shape[] = {2};
static const struct paramd_tensor tensors[] = {{"weight", 2, weight_shape},
                                               {"bias", 1, bias_shape}};
static const float served[ELEMENT_COUNT] = {1, 2, 3, 4, 5, 6};

static float weight[4];
static float bias[2];
static float *values[] = {weight, bias};
static const float weight_gradient[4] = {10, 20, 30, 40};
static const float bias_gradient[2] = {50, 60};
static const float *const gradients[] = {weight_gradient, bias_gradient};

static struct fake_rank leader;
static struct fake_rank second;
static struct pd_lane lanes[2];
static uint32_t lane_count;
static struct paramd_client *client;
static struct paramd_options options;
static struct paramd_error error;

static void set_lane(struct pd_lane *lane, const struct fake_rank *rank, uint64_t begin,
                     uint64_t count)
{
    memset(lane, 0, sizeof *lane);
    lane->rank = rank->rank;
    lane->element_begin = begin;
    lane->element_count = count;
    snprintf(lane->address, sizeof lane->address, "%s", rank->address);
}

static void setup(void)
{
    fake_rank_init(&leader, 0);
    fake_rank_init(&second, 1);
    memcpy(second.leader, leader.address, sizeof second.leader);
    set_lane(&lanes[0], &leader, 0, ELEMENT_COUNT);
    lane_count = 1;
    paramd_options_init(&options);
    options.address = leader.address;
    options.name = "w";
    options.timeout_ms = 10000;
}

static void use_two_lanes(void)
{
    set_lane(&lanes[0], &leader, 0, 3);
    set_lane(&lanes[1], &second, 3, 3);
    lane_count = 2;
}

static void teardown(void)
{
    paramd_close(client);
    client = NULL;
    fake_rank_finish(&leader);
    fake_rank_finish(&second);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

/* Everything up to a registered worker that has version `step`. */
static void serve_start(struct fake_rank *fake, uint64_t step)
{
    fake_welcome(fake, 0, 0);
    fake_join(fake, 1);
    fake_register(fake, lanes, lane_count, false, step);
    ck_assert_uint_eq(fake_receive(fake, PD_MESSAGE_PULL)->pull.min_version, step);
    fake_send_pulled(fake, &lanes[0], step, served, 0);
}

static void start(void)
{
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_register(client, tensors, 2, values, &error), PARAMD_OK);
}

/* Close the client, which the script waits for, so that what it counted can be looked at. */
static void end_scripts(void)
{
    paramd_close(client);
    client = NULL;
    pthread_join(leader.thread, NULL);
    leader.script = NULL;
}

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- Pushes in doubt ---- */

static void lose_acknowledgement(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake, 4);
    fake_receive(fake, PD_MESSAGE_PUSH);
    struct pd_hello hello = fake_welcome(fake, 5, 0);
    ck_assert(hello.has_worker_id);
    ck_assert_uint_eq(hello.worker_id, 9);
    ck_assert_uint_eq(hello.token, 4711);
    ck_assert_uint_eq(hello.run_id, 77);
    fake_expect_end(fake);
}

START_TEST(a_lost_acknowledgement_costs_no_second_payload)
{
    fake_rank_run(&leader, lose_acknowledgement, NULL);
    start();
    ck_assert_int_eq(paramd_push(client, gradients, 8, NULL, 0, &error), PARAMD_OK);
    ck_assert_uint_eq(paramd_next_step(client), 5);
    end_scripts();
    ck_assert_uint_eq(leader.payload_bytes_total, sizeof served);
}
END_TEST

static void lose_push(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake, 4);
    fake_swallow(fake, 30);
    fake_welcome(fake, 4, 0);
    const struct pd_push *push = &fake_receive(fake, PD_MESSAGE_PUSH)->push;
    ck_assert_uint_eq(push->step, 4);
    ck_assert_uint_eq(push->samples, 8);
    ck_assert_mem_eq(fake->payload, weight_gradient, sizeof weight_gradient);
    fake_send_pushed(fake, false);
    fake_expect_end(fake);
}

START_TEST(a_push_that_was_not_accepted_is_sent_again)
{
    fake_rank_run(&leader, lose_push, NULL);
    start();
    ck_assert_int_eq(paramd_push(client, gradients, 8, NULL, 0, &error), PARAMD_OK);
    ck_assert_uint_eq(paramd_next_step(client), 5);
}
END_TEST

/* The Welcome of a rank that has the estimate says nothing of it. */
static void lose_acknowledgement_of_estimate(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake, 4);
    fake_receive(fake, PD_MESSAGE_HESSIAN);
    fake_welcome(fake, 4, 0);
    const struct pd_push *push = &fake_receive(fake, PD_MESSAGE_HESSIAN)->push;
    ck_assert_uint_eq(push->step, 4);
    ck_assert_uint_eq(push->micro_batch, 0);
    ck_assert(push->last && !push->pull && !push->has_loss);
    ck_assert_mem_eq(fake->payload, weight_gradient, sizeof weight_gradient);
    fake_send_pushed(fake, true);
    push = &fake_receive(fake, PD_MESSAGE_PUSH)->push;
    ck_assert_uint_eq(push->step, 4);
    ck_assert_uint_eq(push->micro_batch, 0);
    fake_send_pushed(fake, false);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[0], 5, served, 0);
    ck_assert_uint_eq(fake_receive(fake, PD_MESSAGE_HESSIAN)->push.step, 5);
    fake_send_pushed(fake, false);
    fake_expect_end(fake);
}

START_TEST(an_estimate_in_doubt_is_sent_again_and_one_to_a_step_is_all)
{
    fake_rank_run(&leader, lose_acknowledgement_of_estimate, NULL);
    start();
    ck_assert_int_eq(paramd_push_hessian(client, gradients, 8, 0, &error), PARAMD_OK);
    ck_assert_uint_eq(paramd_next_step(client), 4);
    ck_assert_int_eq(paramd_push_hessian(client, gradients, 8, 0, &error), PARAMD_ESTEP);
    ck_assert_str_eq(error.message, "push_hessian: the estimate for step 4 is complete; the next "
                                    "is for the next step");
    ck_assert_int_eq(paramd_push(client, gradients, 8, NULL, 0, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_pull(client, PARAMD_NEXT, values, NULL, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_push_hessian(client, gradients, 8, 0, &error), PARAMD_OK);
}
END_TEST

static void lose_parameters(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake, 4);
    ck_assert(fake_receive(fake, PD_MESSAGE_PUSH)->push.pull);
    fake_welcome(fake, 5, 0);
    ck_assert_uint_eq(fake_receive(fake, PD_MESSAGE_PULL)->pull.min_version, 5);
    fake_send_pulled(fake, &lanes[0], 5, served, 0);
    fake_expect_end(fake);
}

START_TEST(a_step_whose_push_was_accepted_only_pulls_after_a_reconnect)
{
    struct paramd_step_info info;
    fake_rank_run(&leader, lose_parameters, NULL);
    start();
    memset(weight, 0, sizeof weight);
    ck_assert_int_eq(paramd_step(client, gradients, 8, NULL, 0, values, &info, &error), PARAMD_OK);
    ck_assert_int_eq(info.pulled, 1);
    ck_assert_uint_eq(info.version, 5);
    ck_assert_uint_eq(info.skipped_steps, 3);
    ck_assert(info.lr == 0.5);
    ck_assert_mem_eq(weight, served, sizeof weight);
}
END_TEST

/* Takes the push and says nothing, until the client gives up; then it resumes. */
static void keep_silent(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake, 4);
    fake_receive(fake, PD_MESSAGE_PUSH);
    fake_expect_end(fake);
    fake_welcome(fake, 5, 0);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[0], 5, served, 0);
    fake_expect_end(fake);
}

START_TEST(a_step_that_ran_out_of_time_may_be_repeated)
{
    struct paramd_step_info info;
    char expected[128];
    fake_rank_run(&leader, keep_silent, NULL);
    start();
    paramd_set_timeout(client, 200);
    ck_assert_int_eq(paramd_step(client, gradients, 8, NULL, 0, values, &info, &error),
                     PARAMD_ETIMEOUT);
    snprintf(expected, sizeof expected, "step: no version 5 after 0.2 s from rank 0 at %s",
             leader.address);
    ck_assert_str_eq(error.message, expected);
    paramd_set_timeout(client, 10000);
    ck_assert_int_eq(paramd_step(client, gradients, 8, NULL, 0, values, &info, &error), PARAMD_OK);
    ck_assert_uint_eq(info.version, 5);
    end_scripts();
    ck_assert_uint_eq(leader.payload_bytes_total, sizeof served);
}
END_TEST

START_TEST(what_a_resumed_session_says_of_a_push_in_doubt_is_remembered)
{
    struct paramd_step_info info;
    leader.lease_ms = 150;
    fake_rank_run(&leader, keep_silent, NULL);
    start();
    paramd_set_timeout(client, 100);
    ck_assert_int_eq(paramd_step(client, gradients, 8, NULL, 0, values, &info, &error),
                     PARAMD_ETIMEOUT);
    usleep(300000);
    paramd_set_timeout(client, 10000);
    ck_assert_int_eq(paramd_step(client, gradients, 8, NULL, 0, values, &info, &error), PARAMD_OK);
    end_scripts();
    ck_assert_uint_eq(leader.payload_bytes_total, sizeof served);
}
END_TEST

static void acknowledge_then_serve(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake, 4);
    fake_receive(fake, PD_MESSAGE_PUSH);
    fake_send_pushed(fake, false);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[0], 5, served, 0);
    fake_expect_end(fake);
}

static void refuse_then_take(struct fake_rank *fake, void *context)
{
    (void)context;
    fake_welcome(fake, 0, 0);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[1], 4, served + 3, 0);
    fake_receive(fake, PD_MESSAGE_PUSH);
    fake_expect_end(fake);
    fake_welcome(fake, 4, 0);
    fake_receive(fake, PD_MESSAGE_PUSH);
    fake_send_pushed(fake, false);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[1], 5, served + 3, 0);
    fake_expect_end(fake);
}

START_TEST(a_repeated_push_goes_only_to_the_lanes_that_have_not_acknowledged_it)
{
    uint64_t version = 0;
    use_two_lanes();
    fake_rank_run(&leader, acknowledge_then_serve, NULL);
    fake_rank_run(&second, refuse_then_take, NULL);
    start();
    paramd_set_timeout(client, 300);
    ck_assert_int_eq(paramd_push(client, gradients, 8, NULL, 0, &error), PARAMD_ETIMEOUT);
    ck_assert_uint_eq(paramd_next_step(client), 4);
    paramd_set_timeout(client, 10000);
    ck_assert_int_eq(paramd_push(client, gradients, 8, NULL, 0, &error), PARAMD_OK);
    ck_assert_uint_eq(paramd_next_step(client), 5);
    ck_assert_int_eq(paramd_pull(client, PARAMD_NEXT, values, &version, &error), PARAMD_OK);
    ck_assert_uint_eq(version, 5);
}
END_TEST

/* ---- Versions ---- */

static void serve_older_first(struct fake_rank *fake, void *context)
{
    static const float newer[3] = {-1, -2, -3};
    (void)context;
    serve_start(fake, 4);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[0], 4, served, 0);
    ck_assert_uint_eq(fake_receive(fake, PD_MESSAGE_PULL)->pull.min_version, 5);
    fake_send_pulled(fake, &lanes[0], 5, newer, 0);
    fake_expect_end(fake);
}

static void serve_newer(struct fake_rank *fake, void *context)
{
    static const float newer[3] = {-4, -5, -6};
    (void)context;
    fake_welcome(fake, 0, 0);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[1], 4, served + 3, 0);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[1], 5, newer, 0);
    fake_expect_end(fake);
}

START_TEST(lanes_of_different_versions_are_pulled_until_they_agree)
{
    static const float expected_weight[] = {-1, -2, -3, -4};
    static const float expected_bias[] = {-5, -6};
    uint64_t version = 0;
    use_two_lanes();
    fake_rank_run(&leader, serve_older_first, NULL);
    fake_rank_run(&second, serve_newer, NULL);
    start();
    ck_assert_int_eq(paramd_pull(client, PARAMD_CURRENT, values, &version, &error), PARAMD_OK);
    ck_assert_uint_eq(version, 5);
    ck_assert_mem_eq(weight, expected_weight, sizeof weight);
    ck_assert_mem_eq(bias, expected_bias, sizeof bias);
}
END_TEST

/* ---- Damage ---- */

static void damage_pulled(struct fake_rank *fake, void *context)
{
    const int *times = context;
    serve_start(fake, 4);
    for (int i = 0; i < *times; i++) {
        fake_receive(fake, PD_MESSAGE_PULL);
        fake_send_pulled(fake, &lanes[0], 4, served, 1);
    }
    if (*times < 3) {
        fake_receive(fake, PD_MESSAGE_PULL);
        fake_send_pulled(fake, &lanes[0], 4, served, 0);
    }
    fake_expect_end(fake);
}

START_TEST(damaged_parameters_are_pulled_again)
{
    static int times = 2;
    fake_rank_run(&leader, damage_pulled, &times);
    start();
    ck_assert_int_eq(paramd_pull(client, PARAMD_CURRENT, values, NULL, &error), PARAMD_OK);
    ck_assert_mem_eq(weight, served, sizeof weight);
}
END_TEST

START_TEST(parameters_that_are_always_damaged_end_the_call)
{
    static int times = 3;
    fake_rank_run(&leader, damage_pulled, &times);
    start();
    ck_assert_int_eq(paramd_pull(client, PARAMD_CURRENT, values, NULL, &error), PARAMD_ECHECKSUM);
    ck_assert_ptr_nonnull(strstr(error.message, "3 times in a row"));
}
END_TEST

static void complain_of_damage(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake, 4);
    fake_receive(fake, PD_MESSAGE_PUSH);
    fake_send_error(fake, PD_ECHECKSUM, "send it again", false);
    fake_receive(fake, PD_MESSAGE_PUSH);
    ck_assert_mem_eq(fake->payload, weight_gradient, sizeof weight_gradient);
    fake_send_pushed(fake, false);
    fake_expect_end(fake);
}

START_TEST(a_push_that_arrived_damaged_is_sent_again)
{
    fake_rank_run(&leader, complain_of_damage, NULL);
    start();
    ck_assert_int_eq(paramd_push(client, gradients, 8, NULL, 0, &error), PARAMD_OK);
}
END_TEST

/* ---- Refusals and ends ---- */

static void refuse_push(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake, 4);
    fake_receive(fake, PD_MESSAGE_PUSH);
    fake_send_error(fake, PD_ESTEP, "push of step 4 is from the past", false);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[0], 6, served, 0);
    fake_expect_end(fake);
}

START_TEST(a_refusal_says_what_and_where_and_leaves_the_connection_usable)
{
    char expected[128];
    fake_rank_run(&leader, refuse_push, NULL);
    start();
    ck_assert_int_eq(paramd_push(client, gradients, 8, NULL, 0, &error), PARAMD_ESTEP);
    snprintf(expected, sizeof expected, "push: rank 0 at %s: push of step 4 is from the past",
             leader.address);
    ck_assert_str_eq(error.message, expected);
    ck_assert_int_eq(paramd_pull(client, PARAMD_CURRENT, values, NULL, &error), PARAMD_OK);
    ck_assert_uint_eq(paramd_next_step(client), 6);
}
END_TEST

/* Refuses at the first bytes of a long push, and closes with the others unread: a reset. */
static void refuse_at_once(struct fake_rank *fake, void *context)
{
    struct pd_message pulled = {.kind = PD_MESSAGE_PULLED, .pulled = {.element_count = LONG_COUNT}};
    static const float zeros[LONG_COUNT];
    (void)context;
    fake_welcome(fake, 0, 0);
    fake_join(fake, 1);
    fake_register(fake, lanes, 1, false, 0);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send(fake, &pulled, zeros, sizeof zeros, 0);
    fake_swallow(fake, 100);
    fake_send_error(fake, PD_EMODEL, "no such lane", true);
    fake_hang_up(fake);
}

START_TEST(a_fatal_refusal_is_heard_though_the_push_was_still_on_its_way)
{
    const uint64_t shape[] = {LONG_COUNT};
    const struct paramd_tensor tensor = {"long", 1, shape};
    float *array = pd_heap_zalloc(LONG_COUNT, sizeof *array);
    const float *const sources[] = {array};
    set_lane(&lanes[0], &leader, 0, LONG_COUNT);
    fake_rank_run(&leader, refuse_at_once, NULL);
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_register(client, &tensor, 1, &array, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_push(client, sources, 8, NULL, 0, &error), PARAMD_EMODEL);
    ck_assert_ptr_nonnull(strstr(error.message, "no such lane"));
    paramd_close(client);
    client = NULL;
    pd_heap_free(array);
}
END_TEST

/* Begins to read a long push and reads no more of it. */
static void read_no_more(struct fake_rank *fake, void *context)
{
    struct pd_message pulled = {.kind = PD_MESSAGE_PULLED, .pulled = {.element_count = LONG_COUNT}};
    static const float zeros[LONG_COUNT];
    struct pollfd gone = {.events = POLLRDHUP};
    (void)context;
    fake_welcome(fake, 0, 0);
    fake_join(fake, 1);
    fake_register(fake, lanes, 1, false, 0);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send(fake, &pulled, zeros, sizeof zeros, 0);
    fake_swallow(fake, 100);
    gone.fd = fake->socket;
    PD_ASSERT(poll(&gone, 1, 10000) == 1 && (gone.revents & POLLERR) != 0);
}

/* The end of the stream would be behind what the rank does not read. */
START_TEST(a_rank_that_does_not_read_hears_that_a_push_was_given_up)
{
    const uint64_t shape[] = {LONG_COUNT};
    const struct paramd_tensor tensor = {"long", 1, shape};
    float *array = pd_heap_zalloc(LONG_COUNT, sizeof *array);
    const float *const sources[] = {array};
    set_lane(&lanes[0], &leader, 0, LONG_COUNT);
    fake_rank_run(&leader, read_no_more, NULL);
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_register(client, &tensor, 1, &array, &error), PARAMD_OK);
    paramd_set_timeout(client, 300);
    ck_assert_int_eq(paramd_push(client, sources, 8, NULL, 0, &error), PARAMD_ETIMEOUT);
    pthread_join(leader.thread, NULL);
    leader.script = NULL;
    paramd_close(client);
    client = NULL;
    pd_heap_free(array);
}
END_TEST

static void restart(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake, 4);
    fake_receive(fake, PD_MESSAGE_PUSH);
    fake->run_id = 78;
    fake_welcome(fake, 0, 0);
    fake_expect_end(fake);
}

START_TEST(a_restarted_daemon_is_recognised)
{
    fake_rank_run(&leader, restart, NULL);
    start();
    ck_assert_int_eq(paramd_push(client, gradients, 8, NULL, 0, &error), PARAMD_EIDENTITY);
    ck_assert_ptr_nonnull(strstr(error.message, "the daemon was restarted"));
    ck_assert_ptr_nonnull(strstr(error.message, "join again"));
}
END_TEST

static void drain(struct fake_rank *fake, void *context)
{
    struct pd_message message = {.kind = PD_MESSAGE_DRAINING, .draining = {.step = 5}};
    (void)context;
    serve_start(fake, 4);
    fake_receive(fake, PD_MESSAGE_PUSH);
    fake_send(fake, &message, "", 0, 0);
    fake_hang_up(fake);
}

START_TEST(draining_ends_every_wait_and_every_later_call)
{
    fake_rank_run(&leader, drain, NULL);
    start();
    ck_assert_int_eq(paramd_step(client, gradients, 8, NULL, 0, values, NULL, &error),
                     PARAMD_EDRAINING);
    ck_assert_str_eq(error.message, "step: the daemon is draining: the last step closed was 5, "
                                    "no other will");
    ck_assert_int_eq(paramd_pull(client, PARAMD_NEXT, values, NULL, &error), PARAMD_EDRAINING);
    ck_assert_int_eq(paramd_leave(client, &error), PARAMD_EDRAINING);
}
END_TEST

static void only_start(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake, 4);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_expect_end(fake);
}

static int interrupt_soon(void *context)
{
    int *calls = context;
    return ++*calls >= 2;
}

START_TEST(a_waiting_call_can_be_interrupted)
{
    int calls = 0;
    options.interrupted = interrupt_soon;
    options.interrupted_context = &calls;
    fake_rank_run(&leader, only_start, NULL);
    start();
    calls = 0;
    uint64_t begin_ms = now_ms();
    ck_assert_int_eq(paramd_pull(client, PARAMD_NEXT, values, NULL, &error), PARAMD_EINTERRUPTED);
    ck_assert_str_eq(error.message, "pull: interrupted");
    ck_assert_uint_lt(now_ms() - begin_ms, 5000);
    ck_assert_int_eq(calls, 2);
}
END_TEST

START_TEST(an_address_nobody_answers_at_is_tried_until_the_connect_timeout)
{
    struct fake_rank deaf;
    fake_rank_init_deaf(&deaf);
    options.address = deaf.address;
    options.connect_timeout_ms = 300;
    uint64_t begin_ms = now_ms();
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_ECONNECTION);
    ck_assert_uint_ge(now_ms() - begin_ms, 300);
    ck_assert_ptr_nonnull(strstr(error.message, "Connection refused"));
    ck_assert_ptr_null(client);
    options.connect_timeout_ms = 0;
    begin_ms = now_ms();
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_ECONNECTION);
    ck_assert_uint_lt(now_ms() - begin_ms, 300);
    fake_rank_finish(&deaf);
}
END_TEST

/* ---- Leases ---- */

static void count_pings(struct fake_rank *fake, void *context)
{
    uint32_t *pings = context;
    serve_start(fake, 4);
    fake_idle(fake, 500);
    pings[0] = fake->pings;
    fake_receive(fake, PD_MESSAGE_PULL);
    fake->pings = 0;
    fake_idle(fake, 500);
    pings[1] = fake->pings;
    fake_send_pulled(fake, &lanes[0], 5, served, 0);
    fake_expect_end(fake);
}

START_TEST(the_lease_is_renewed_between_calls_and_inside_them)
{
    uint32_t pings[2] = {0, 0};
    leader.lease_ms = 150;
    fake_rank_run(&leader, count_pings, pings);
    start();
    usleep(600000);
    ck_assert_int_eq(paramd_pull(client, PARAMD_NEXT, values, NULL, &error), PARAMD_OK);
    end_scripts();
    ck_assert_uint_ge(pings[0], 5);
    ck_assert_uint_le(pings[0], 11);
    ck_assert_uint_ge(pings[1], 5);
    ck_assert_uint_le(pings[1], 11);
}
END_TEST

static void hang_up_between_calls(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake, 4);
    fake_hang_up(fake);
    struct pd_hello hello = fake_welcome(fake, 4, 0);
    ck_assert_uint_eq(hello.worker_id, 9);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[0], 5, served, 0);
    fake_expect_end(fake);
}

START_TEST(a_session_lost_between_calls_is_taken_up_before_the_next)
{
    leader.lease_ms = 150;
    fake_rank_run(&leader, hang_up_between_calls, NULL);
    start();
    usleep(500000);
    ck_assert_int_eq(paramd_pull(client, PARAMD_NEXT, values, NULL, &error), PARAMD_OK);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client_recovery");
    TCase *tests = tcase_create("client_recovery");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_set_timeout(tests, 30);
    tcase_add_test(tests, a_lost_acknowledgement_costs_no_second_payload);
    tcase_add_test(tests, a_push_that_was_not_accepted_is_sent_again);
    tcase_add_test(tests, an_estimate_in_doubt_is_sent_again_and_one_to_a_step_is_all);
    tcase_add_test(tests, a_step_whose_push_was_accepted_only_pulls_after_a_reconnect);
    tcase_add_test(tests, a_step_that_ran_out_of_time_may_be_repeated);
    tcase_add_test(tests, what_a_resumed_session_says_of_a_push_in_doubt_is_remembered);
    tcase_add_test(tests, a_repeated_push_goes_only_to_the_lanes_that_have_not_acknowledged_it);
    tcase_add_test(tests, lanes_of_different_versions_are_pulled_until_they_agree);
    tcase_add_test(tests, damaged_parameters_are_pulled_again);
    tcase_add_test(tests, parameters_that_are_always_damaged_end_the_call);
    tcase_add_test(tests, a_push_that_arrived_damaged_is_sent_again);
    tcase_add_test(tests, a_refusal_says_what_and_where_and_leaves_the_connection_usable);
    tcase_add_test(tests, a_fatal_refusal_is_heard_though_the_push_was_still_on_its_way);
    tcase_add_test(tests, a_rank_that_does_not_read_hears_that_a_push_was_given_up);
    tcase_add_test(tests, a_restarted_daemon_is_recognised);
    tcase_add_test(tests, draining_ends_every_wait_and_every_later_call);
    tcase_add_test(tests, a_waiting_call_can_be_interrupted);
    tcase_add_test(tests, an_address_nobody_answers_at_is_tried_until_the_connect_timeout);
    tcase_add_test(tests, the_lease_is_renewed_between_calls_and_inside_them);
    tcase_add_test(tests, a_session_lost_between_calls_is_taken_up_before_the_next);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
