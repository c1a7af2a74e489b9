/* The client library against ranks that behave: joining, registering, training, asking, leaving. */
#include "client/include/paramd.h"
#include "client/socket.h"
#include "common/heap.h"
#include "tests/support/fake_rank.h"

#include <check.h>
#include <netinet/in.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define LARGE_COUNT 3000000u

static const uint64_t weight_shape[] = {2, 2};
static const uint64_t bias_shape[] = {2};
static const struct paramd_tensor tensors[] = {{"weight", 2, weight_shape},
                                               {"bias", 1, bias_shape}};
static const float served[] = {1, 2, 3, 4, 5, 6};
static const float offered[] = {7, 8, 9, 10, 11, 12};

static float weight[4];
static float bias[2];
static float *values[] = {weight, bias};
static const float weight_gradient[4] = {10, 20, 30, 40};
static const float bias_gradient[2] = {50, 60};
static const float *const gradients[] = {weight_gradient, bias_gradient};

static struct fake_rank leader;
static struct fake_rank second;
static struct pd_lane lanes[2];
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
    set_lane(&lanes[0], &leader, 0, 3);
    set_lane(&lanes[1], &second, 3, 3);
    memcpy(weight, offered, sizeof weight);
    memcpy(bias, offered + 4, sizeof bias);
    paramd_options_init(&options);
    options.address = leader.address;
    options.timeout_ms = 10000;
}

static void teardown(void)
{
    paramd_close(client);
    client = NULL;
    fake_rank_finish(&leader);
    fake_rank_finish(&second);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

static void connect_and_register(void)
{
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_register(client, tensors, 2, values, &error), PARAMD_OK);
}

/* ---- Joining and registering ---- */

static void lead_and_take_values(struct fake_rank *fake, void *context)
{
    (void)context;
    struct pd_hello hello = fake_welcome(fake, 0, 0);
    ck_assert(!hello.has_worker_id);
    fake_join(fake, 2);
    fake_register(fake, lanes, 2, true, 0);
    const struct pd_values *sent = &fake_receive(fake, PD_MESSAGE_VALUES)->values;
    ck_assert_uint_eq(sent->element_begin, 0);
    ck_assert_uint_eq(sent->element_count, 3);
    ck_assert_mem_eq(fake->payload, offered, 12);
    fake_send_kind(fake, PD_MESSAGE_VALUES_STORED);
    ck_assert_uint_eq(fake_receive(fake, PD_MESSAGE_PULL)->pull.min_version, 0);
    fake_send_pulled(fake, &lanes[0], 0, served, 0);
    fake_expect_end(fake);
}

static void redirect_and_take_values(struct fake_rank *fake, void *context)
{
    (void)context;
    fake_welcome(fake, 0, 0);
    fake_expect_end(fake);
    struct pd_hello hello = fake_welcome(fake, 0, 0);
    ck_assert_uint_eq(hello.worker_id, 9);
    fake_receive(fake, PD_MESSAGE_VALUES);
    ck_assert_mem_eq(fake->payload, offered + 3, 12);
    fake_send_kind(fake, PD_MESSAGE_VALUES_STORED);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[1], 0, served + 3, 0);
    fake_expect_end(fake);
}

START_TEST(any_rank_leads_to_rank_0_and_every_lane_gets_its_values)
{
    options.address = second.address;
    fake_rank_run(&leader, lead_and_take_values, NULL);
    fake_rank_run(&second, redirect_and_take_values, NULL);
    connect_and_register();
    ck_assert_mem_eq(weight, served, sizeof weight);
    ck_assert_mem_eq(bias, served + 4, sizeof bias);
    ck_assert_uint_eq(paramd_worker_id(client), 9);
    ck_assert_str_eq(paramd_worker_name(client), "worker-9");
    ck_assert_uint_eq(paramd_run_id(client), 77);
    ck_assert_uint_eq(paramd_rank_count(client), 2);
    ck_assert_uint_eq(paramd_accumulation_steps(client), 2);
    ck_assert_uint_eq(paramd_tensor_count(client), 2);
    ck_assert_str_eq(paramd_tensor_at(client, 1).name, "bias");
    ck_assert_uint_eq(paramd_tensor_at(client, 0).shape[1], 2);
    ck_assert_uint_eq(paramd_lane_count(client), 2);
    ck_assert_uint_eq(paramd_lane_at(client, 1).element_begin, 3);
    ck_assert_str_eq(paramd_lane_at(client, 1).address, second.address);
}
END_TEST

static void refuse_model(struct fake_rank *fake, void *context)
{
    (void)context;
    fake_welcome(fake, 0, 0);
    fake_join(fake, 1);
    fake_receive(fake, PD_MESSAGE_REGISTER);
    fake_send_error(fake, PD_EMODEL, "tensor 1 is \"b\", offered \"bias\"", false);
    fake_register(fake, lanes, 1, false, 0);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[0], 0, served, 0);
    fake_expect_end(fake);
}

START_TEST(a_refused_model_can_be_offered_again)
{
    set_lane(&lanes[0], &leader, 0, 6);
    fake_rank_run(&leader, refuse_model, NULL);
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_register(client, tensors, 2, values, &error), PARAMD_EMODEL);
    ck_assert_ptr_nonnull(strstr(error.message, "register: rank 0 at "));
    ck_assert_ptr_nonnull(strstr(error.message, "tensor 1 is \"b\", offered \"bias\""));
    ck_assert_int_eq(paramd_register(client, tensors, 2, values, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_register(client, tensors, 2, values, &error), PARAMD_EINVALID);
}
END_TEST

static void take_name(struct fake_rank *fake, void *context)
{
    (void)context;
    fake_welcome(fake, 0, 0);
    ck_assert_str_eq(fake_receive(fake, PD_MESSAGE_JOIN)->join.name, "twin");
    fake_send_error(fake, PD_EIDENTITY, "the name \"twin\" is taken by worker 3", false);
    fake_expect_end(fake);
}

START_TEST(a_name_that_is_taken_ends_the_connect)
{
    options.name = "twin";
    fake_rank_run(&leader, take_name, NULL);
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_EIDENTITY);
    ck_assert_ptr_null(client);
    ck_assert_ptr_nonnull(strstr(error.message, "join: rank 0 at "));
}
END_TEST

/* ---- Training ---- */

static void serve_start(struct fake_rank *fake, uint32_t accumulation_steps, uint32_t lane_count)
{
    fake_welcome(fake, 0, 0);
    fake_join(fake, accumulation_steps);
    fake_register(fake, lanes, lane_count, false, 0);
    fake_receive(fake, PD_MESSAGE_PULL);
}

static void expect_push(struct fake_rank *fake, uint64_t step, uint32_t micro_batch, bool last)
{
    const struct pd_push *push = &fake_receive(fake, PD_MESSAGE_PUSH)->push;
    ck_assert_uint_eq(push->step, step);
    ck_assert_uint_eq(push->micro_batch, micro_batch);
    ck_assert_int_eq(push->last, last);
}

static void accumulate_three(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake, 3, 1);
    fake_send_pulled(fake, &lanes[0], 0, served, 0);
    for (uint32_t i = 0; i < 3; i++) {
        expect_push(fake, 0, i, i == 2);
        fake_send_pushed(fake, false);
    }
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[0], 1, served, 0);
    expect_push(fake, 1, 0, false);
    fake_send_pushed(fake, false);
    expect_push(fake, 1, 1, true);
    fake_send_pulled(fake, &lanes[0], 2, served, 0);
    const struct pd_leave *leave = &fake_receive(fake, PD_MESSAGE_LEAVE)->leave;
    ck_assert_uint_eq(leave->step, 2);
    ck_assert_uint_eq(leave->micro_batch, 0);
    fake_send_kind(fake, PD_MESSAGE_LEFT);
    fake_expect_end(fake);
}

START_TEST(micro_batches_are_counted_and_a_contribution_can_be_closed_early)
{
    struct paramd_step_info info;
    double loss = 0.25;
    set_lane(&lanes[0], &leader, 0, 6);
    fake_rank_run(&leader, accumulate_three, NULL);
    connect_and_register();
    for (uint32_t i = 0; i < 3; i++) {
        ck_assert_uint_eq(paramd_next_micro_batch(client), i);
        ck_assert_int_eq(paramd_push(client, gradients, 8, &loss, 0, &error), PARAMD_OK);
    }
    ck_assert_uint_eq(paramd_next_step(client), 1);
    ck_assert_int_eq(paramd_pull(client, PARAMD_NEXT, values, NULL, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_step(client, gradients, 8, &loss, 0, values, &info, &error), PARAMD_OK);
    ck_assert_int_eq(info.pulled, 0);
    ck_assert_uint_eq(info.version, 1);
    ck_assert_int_eq(paramd_step(client, gradients, 8, &loss, PARAMD_LAST, values, &info, &error),
                     PARAMD_OK);
    ck_assert_int_eq(info.pulled, 1);
    ck_assert_uint_eq(info.version, 2);
    ck_assert(info.lr == 0.5);
    ck_assert_uint_eq(paramd_group_count(client), 2);
    ck_assert(paramd_group_lr(client, 1) == 0.25);
    ck_assert_int_eq(paramd_leave(client, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_push(client, gradients, 8, NULL, 0, &error), PARAMD_EINVALID);
}
END_TEST

/* Reads its push only once the other lane has read its own, then the other way round. */
struct turns {
    sem_t first_read;
    sem_t second_read;
};

static float *large;

static void read_after_second(struct fake_rank *fake, void *context)
{
    struct turns *turns = context;
    serve_start(fake, 1, 2);
    fake_send_pulled(fake, &lanes[0], 0, large, 0);
    sem_wait(&turns->second_read);
    fake_receive(fake, PD_MESSAGE_PUSH);
    fake_send_pulled(fake, &lanes[0], 1, large, 0);
    fake_receive(fake, PD_MESSAGE_PUSH);
    sem_post(&turns->first_read);
    fake_send_pulled(fake, &lanes[0], 2, large, 0);
    fake_expect_end(fake);
}

static void read_after_first(struct fake_rank *fake, void *context)
{
    struct turns *turns = context;
    fake_welcome(fake, 0, 0);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[1], 0, large, 0);
    fake_receive(fake, PD_MESSAGE_PUSH);
    sem_post(&turns->second_read);
    fake_send_pulled(fake, &lanes[1], 1, large, 0);
    sem_wait(&turns->first_read);
    fake_receive(fake, PD_MESSAGE_PUSH);
    fake_send_pulled(fake, &lanes[1], 2, large, 0);
    fake_expect_end(fake);
}

START_TEST(a_lane_that_does_not_read_holds_up_no_other)
{
    const uint64_t shape[] = {2 * LARGE_COUNT};
    const struct paramd_tensor tensor = {"large", 1, shape};
    float *array = pd_heap_zalloc(2 * LARGE_COUNT, sizeof *array);
    const float *const sources[] = {array};
    struct turns turns;
    large = pd_heap_zalloc(LARGE_COUNT, sizeof *large);
    large[LARGE_COUNT - 1] = 42;
    sem_init(&turns.first_read, 0, 0);
    sem_init(&turns.second_read, 0, 0);
    set_lane(&lanes[0], &leader, 0, LARGE_COUNT);
    set_lane(&lanes[1], &second, LARGE_COUNT, LARGE_COUNT);
    fake_rank_run(&leader, read_after_second, &turns);
    fake_rank_run(&second, read_after_first, &turns);
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_register(client, &tensor, 1, &array, &error), PARAMD_OK);
    for (int i = 0; i < 2; i++) {
        array[LARGE_COUNT - 1] = array[2 * LARGE_COUNT - 1] = 0;
        ck_assert_int_eq(paramd_step(client, sources, 8, NULL, 0, &array, NULL, &error), PARAMD_OK);
        ck_assert(array[LARGE_COUNT - 1] == 42 && array[2 * LARGE_COUNT - 1] == 42);
    }
    pd_heap_free(array);
    paramd_close(client);
    client = NULL;
    fake_rank_finish(&leader);
    fake_rank_finish(&second);
    pd_heap_free(large);
    fake_rank_init(&leader, 0);
    fake_rank_init(&second, 1);
}
END_TEST

/* Where pushes went first, and then (linked with --wrap). */
static char sent_to[2][PD_ADDRESS_BYTES_MAX + 1];
static uint32_t sent_count;

enum pd_status __real_pd_socket_send(int fd, struct iovec *pieces, size_t piece_count,
                                     size_t *byte_count, struct pd_error *fault);
enum pd_status __wrap_pd_socket_send(int fd, struct iovec *pieces, size_t piece_count,
                                     size_t *byte_count, struct pd_error *fault);

enum pd_status __wrap_pd_socket_send(int fd, struct iovec *pieces, size_t piece_count,
                                     size_t *byte_count, struct pd_error *fault)
{
    struct sockaddr_in peer = {0};
    socklen_t peer_bytes = sizeof peer;

    if (sent_count < 2) {
        ck_assert_int_eq(getpeername(fd, (struct sockaddr *)&peer, &peer_bytes), 0);
        (void)snprintf(sent_to[sent_count++], sizeof sent_to[0], "127.0.0.1:%d",
                       ntohs(peer.sin_port));
    }
    return __real_pd_socket_send(fd, pieces, piece_count, byte_count, fault);
}

static void take_one_push(struct fake_rank *fake, void *context)
{
    (void)context;
    if (fake == &leader) {
        serve_start(fake, 1, 2);
    } else {
        fake_welcome(fake, 0, 0);
        fake_receive(fake, PD_MESSAGE_PULL);
    }
    for (uint64_t version = 0; version < 2; version++) {
        fake_send_pulled(fake, &lanes[fake->rank], version, served, 0);
        if (version == 0) {
            expect_push(fake, 0, 0, true);
        }
    }
    fake_expect_end(fake);
}

/* Worker 9 of two ranks. */
START_TEST(workers_begin_with_different_ranks)
{
    fake_rank_run(&leader, take_one_push, NULL);
    fake_rank_run(&second, take_one_push, NULL);
    connect_and_register();
    sent_count = 0;
    ck_assert_int_eq(paramd_step(client, gradients, 8, NULL, 0, values, NULL, &error), PARAMD_OK);
    ck_assert_str_eq(sent_to[0], second.address);
    ck_assert_str_eq(sent_to[1], leader.address);
}
END_TEST

static void speak_halves(struct fake_rank *fake, void *context)
{
    struct pd_message message = {.kind = PD_MESSAGE_PULLED,
                                 .pulled = {.dtype = PD_DTYPE_FLOAT16, .element_count = 6}};
    uint16_t halves[6];
    (void)context;
    serve_start(fake, 1, 1);
    pd_convert_from_float32(halves, PD_DTYPE_FLOAT16, served, 6);
    fake_send(fake, &message, halves, sizeof halves, 0);
    const struct pd_push *push = &fake_receive(fake, PD_MESSAGE_PUSH)->push;
    ck_assert_uint_eq(push->dtype, PD_DTYPE_BFLOAT16);
    ck_assert_uint_eq(push->pull_dtype, PD_DTYPE_FLOAT16);
    ck_assert_uint_eq(fake->payload_bytes, 12);
    pd_convert_from_float32(halves, PD_DTYPE_BFLOAT16, weight_gradient, 4);
    ck_assert_mem_eq(fake->payload, halves, 8);
    message.pulled.version = 1;
    pd_convert_from_float32(halves, PD_DTYPE_FLOAT16, offered, 6);
    fake_send(fake, &message, halves, sizeof halves, 0);
    fake_expect_end(fake);
}

START_TEST(two_byte_types_are_converted_on_the_way)
{
    set_lane(&lanes[0], &leader, 0, 6);
    options.push_dtype = PARAMD_BFLOAT16;
    options.pull_dtype = PARAMD_FLOAT16;
    fake_rank_run(&leader, speak_halves, NULL);
    connect_and_register();
    ck_assert_mem_eq(weight, served, sizeof weight);
    ck_assert_int_eq(paramd_step(client, gradients, 8, NULL, 0, values, NULL, &error), PARAMD_OK);
    ck_assert_mem_eq(weight, offered, sizeof weight);
    ck_assert_mem_eq(bias, offered + 4, sizeof bias);
}
END_TEST

/* ---- What a step takes from the heap ---- */

/* Numbers grow by a byte on the wire at 128. */
enum { STEP_BEGIN = 120, STEP_SETTLED = 122, STEP_END = 135 };

/* The fake rank takes two pieces a step: a place for the payload, and its frame. */
enum { FAKE_ALLOCATIONS = 2 };

static void serve_steps(struct fake_rank *fake, void *context)
{
    (void)context;
    fake_welcome(fake, 0, 0);
    fake_join(fake, 1);
    fake_register(fake, lanes, 1, false, STEP_BEGIN);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lanes[0], STEP_BEGIN, served, 0);
    for (uint64_t step = STEP_BEGIN; step < STEP_END; step++) {
        expect_push(fake, step, 0, true);
        fake_send_pulled(fake, &lanes[0], step + 1, served, 0);
    }
    fake_expect_end(fake);
}

START_TEST(a_step_takes_nothing_from_the_heap)
{
    size_t before = 0;
    set_lane(&lanes[0], &leader, 0, 6);
    fake_rank_run(&leader, serve_steps, NULL);
    connect_and_register();
    for (uint64_t step = STEP_BEGIN; step < STEP_END; step++) {
        before = step == STEP_SETTLED ? pd_heap_allocations() : before;
        ck_assert_int_eq(paramd_step(client, gradients, 8, NULL, 0, values, NULL, &error),
                         PARAMD_OK);
    }
    ck_assert_uint_eq(pd_heap_allocations() - before, (STEP_END - STEP_SETTLED) * FAKE_ALLOCATIONS);
}
END_TEST

/* ---- Asking ---- */

static void answer_admin(struct fake_rank *fake, void *context)
{
    struct pd_message reply = {.kind = PD_MESSAGE_ADMIN_REPLY};
    (void)context;
    fake_welcome(fake, 0, 0);
    const struct pd_admin *admin = &fake_receive(fake, PD_MESSAGE_ADMIN)->admin;
    ck_assert_str_eq(admin->command, "set-lr");
    ck_assert_str_eq(admin->target, "head");
    ck_assert(admin->has_value);
    ck_assert(admin->value == 0.125);
    ck_assert_uint_eq(admin->setting_count, 2);
    ck_assert_str_eq(admin->settings[1], "end=2");
    fake_send(fake, &reply, "{\"a\":1}", 7, 0);
    fake_receive(fake, PD_MESSAGE_ADMIN);
    fake_send_error(fake, PD_EREFUSED, "checkpoints are not offered", false);
    fake_expect_end(fake);
}

START_TEST(an_observer_asks_without_joining)
{
    const char *settings[18] = {"start=1", "end=2"};
    struct paramd_command set_lr = {.command = "set-lr",
                                    .target = "head",
                                    .has_value = 1,
                                    .value = 0.125,
                                    .settings = settings};
    struct paramd_command checkpoint = {.command = "checkpoint"};
    char *json = NULL;
    options.observer = 1;
    fake_rank_run(&leader, answer_admin, NULL);
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_admin(client, &set_lr, &json, &error), PARAMD_OK);
    ck_assert_str_eq(json, "{\"a\":1}");
    paramd_free(json);
    ck_assert_int_eq(paramd_admin(client, &checkpoint, &json, &error), PARAMD_EREFUSED);
    ck_assert_ptr_null(json);
    ck_assert_ptr_nonnull(strstr(error.message, "admin: rank 0 at "));
    for (int i = 0; i < 17; i++) {
        settings[i] = "one=too many";
    }
    ck_assert_int_eq(paramd_admin(client, &set_lr, &json, &error), PARAMD_EINVALID);
    ck_assert_str_eq(error.message, "admin: settings are at most 16 texts of at most 127 bytes");
    ck_assert_int_eq(paramd_leave(client, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_register(client, tensors, 2, values, &error), PARAMD_EINVALID);
}
END_TEST

/* ---- Looking before sleeping ---- */

#define PULLS_OF_A_ROUND 40u
#define ROUND_COUNT_MAX 100u

/* Answers come after a millisecond, in which the client either sleeps or looks for them. */
static void answer_late(struct fake_rank *fake, void *context)
{
    const _Atomic bool *enough = context;
    serve_start(fake, 1, 1);
    fake_send_pulled(fake, &lanes[0], 0, served, 0);
    do {
        fake_receive(fake, PD_MESSAGE_PULL);
        fake_idle(fake, 1);
        fake_send_pulled(fake, &lanes[0], 0, served, 0);
    } while (!atomic_load(enough));
    fake_expect_end(fake);
}

/* How often this thread goes to sleep while it pulls. */
static long sleeps_of_a_round(void)
{
    struct rusage before;
    struct rusage after;

    ck_assert_int_eq(getrusage(RUSAGE_THREAD, &before), 0);
    for (uint32_t i = 0; i < PULLS_OF_A_ROUND; i++) {
        ck_assert_int_eq(paramd_pull(client, PARAMD_CURRENT, values, NULL, &error), PARAMD_OK);
    }
    ck_assert_int_eq(getrusage(RUSAGE_THREAD, &after), 0);
    return after.ru_nvcsw - before.ru_nvcsw;
}

/* On a busy machine the thread may not run for longer than it is to look. */
START_TEST(a_call_looks_for_its_answer_as_long_as_it_may)
{
    _Atomic bool enough = false;
    uint32_t round = 1;
    options.busy_poll_us = 10000;
    set_lane(&lanes[0], &leader, 0, 6);
    fake_rank_run(&leader, answer_late, &enough);
    connect_and_register();
    while (sleeps_of_a_round() > PULLS_OF_A_ROUND / 2 && round < ROUND_COUNT_MAX) {
        round++;
    }
    ck_assert_uint_lt(round, ROUND_COUNT_MAX);
    atomic_store(&enough, true);
    ck_assert_int_eq(paramd_pull(client, PARAMD_CURRENT, values, NULL, &error), PARAMD_OK);
}
END_TEST

/* ---- Wrong use ---- */

START_TEST(options_that_are_not_allowed_are_refused_before_anything_is_tried)
{
    char long_name[200];
    memset(long_name, 'x', sizeof long_name);
    long_name[sizeof long_name - 1] = '\0';
    options.address = _i == 0 ? NULL : _i == 1 ? "nowhere" : options.address;
    options.name = _i == 2 ? long_name : NULL;
    options.push_dtype = _i == 3 ? 3 : 0;
    options.pull_dtype = _i == 4 ? -1 : 0;
    options.busy_poll_us = _i == 5 ? -1 : _i == 6 ? 10001 : 50;
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_EINVALID);
    ck_assert_int_eq(strncmp(error.message, "connect: ", 9), 0);
    ck_assert_ptr_null(client);
}
END_TEST

static void only_join(struct fake_rank *fake, void *context)
{
    (void)context;
    fake_welcome(fake, 0, 0);
    fake_join(fake, 1);
    fake_expect_end(fake);
}

START_TEST(a_model_that_is_none_is_refused_without_asking_the_daemon)
{
    struct paramd_tensor wrong[2] = {{"a", 1, bias_shape}, {"a", 1, bias_shape}};
    fake_rank_run(&leader, only_join, NULL);
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_register(client, wrong, 2, values, &error), PARAMD_EMODEL);
    ck_assert_int_eq(paramd_register(client, wrong, 0, values, &error), PARAMD_ELIMIT);
    wrong[1].name = NULL;
    ck_assert_int_eq(paramd_register(client, wrong, 2, values, &error), PARAMD_EINVALID);
    ck_assert_int_eq(paramd_register(client, wrong, 2, NULL, &error), PARAMD_EINVALID);
    ck_assert_int_eq(paramd_push(client, gradients, 1, NULL, 0, &error), PARAMD_EINVALID);
    ck_assert_str_eq(error.message, "push: register first");
    ck_assert_int_eq(paramd_pull(client, 0, values, NULL, NULL), PARAMD_EINVALID);
}
END_TEST

START_TEST(connecting_survives_each_failed_allocation)
{
    options.connect_timeout_ms = 0;
    fake_rank_finish(&leader);
    long index = 0;
    enum paramd_status status;
    do {
        pd_heap_fail_at(index++);
        status = paramd_connect(&options, &client, &error);
        pd_heap_fail_at(-1);
        ck_assert_ptr_null(client);
        ck_assert_uint_eq(pd_heap_blocks_live(), 0);
    } while (status == PARAMD_ENOMEM);
    ck_assert_int_eq(status, PARAMD_ECONNECTION);
    ck_assert_int_ge(index, 4);
    fake_rank_init(&leader, 0);
}
END_TEST

START_TEST(statuses_have_names)
{
    ck_assert_str_eq(paramd_status_name(PARAMD_ETIMEOUT), "timeout");
    ck_assert_str_eq(paramd_status_name(PARAMD_EINTERRUPTED), "interrupted");
    ck_assert_str_eq(paramd_status_name(55), "unknown");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client_session");
    TCase *tests = tcase_create("client_session");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_set_timeout(tests, 30);
    tcase_add_test(tests, any_rank_leads_to_rank_0_and_every_lane_gets_its_values);
    tcase_add_test(tests, a_refused_model_can_be_offered_again);
    tcase_add_test(tests, a_name_that_is_taken_ends_the_connect);
    tcase_add_test(tests, micro_batches_are_counted_and_a_contribution_can_be_closed_early);
    tcase_add_test(tests, a_lane_that_does_not_read_holds_up_no_other);
    tcase_add_test(tests, workers_begin_with_different_ranks);
    tcase_add_test(tests, two_byte_types_are_converted_on_the_way);
    tcase_add_test(tests, a_step_takes_nothing_from_the_heap);
    tcase_add_test(tests, a_call_looks_for_its_answer_as_long_as_it_may);
    tcase_add_test(tests, an_observer_asks_without_joining);
    tcase_add_loop_test(tests, options_that_are_not_allowed_are_refused_before_anything_is_tried, 0,
                        7);
    tcase_add_test(tests, a_model_that_is_none_is_refused_without_asking_the_daemon);
    tcase_add_test(tests, connecting_survives_each_failed_allocation);
    tcase_add_test(tests, statuses_have_names);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
