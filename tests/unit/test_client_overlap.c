/* Steps that send gradients while the program computes the rest of them. */
#include "client/include/paramd.h"
#include "common/heap.h"
#include "tests/support/fake_rank.h"

#include <check.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FIRST_COUNT 3000u
#define LAST_COUNT 2u
#define COUNT (FIRST_COUNT + LAST_COUNT)
/* Of the frame of a push: less than its header and the first tensor. */
#define EARLY_BYTES (FIRST_COUNT * sizeof(float))

static const uint64_t first_shape[] = {FIRST_COUNT};
static const uint64_t last_shape[] = {LAST_COUNT};
static const struct paramd_tensor tensors[] = {{"first", 1, first_shape}, {"last", 1, last_shape}};
static const float zeros[COUNT];

static float first[FIRST_COUNT];
static float last[LAST_COUNT];
static float *values[] = {first, last};
static float first_gradient[FIRST_COUNT];
static float last_gradient[LAST_COUNT];
static float other_gradient[LAST_COUNT];
static float new_values[COUNT];

static struct fake_rank leader;
static struct pd_lane lane;
static struct paramd_client *client;
static struct paramd_options options;
static struct paramd_step_info info;
static struct paramd_error error;
static sem_t arrived;
static sem_t cancelled;
static sem_t ended;

static void setup(void)
{
    fake_rank_init(&leader, 0);
    lane = (struct pd_lane){.element_count = COUNT};
    snprintf(lane.address, sizeof lane.address, "%s", leader.address);
    for (uint32_t i = 0; i < COUNT; i++) {
        new_values[i] = 1000.0F + (float)i;
    }
    for (uint32_t i = 0; i < FIRST_COUNT; i++) {
        first_gradient[i] = (float)i;
    }
    last_gradient[0] = last_gradient[1] = -1;
    other_gradient[0] = other_gradient[1] = 5;
    sem_init(&arrived, 0, 0);
    sem_init(&cancelled, 0, 0);
    sem_init(&ended, 0, 0);
    paramd_options_init(&options);
    options.address = leader.address;
    options.timeout_ms = 10000;
}

static void teardown(void)
{
    paramd_close(client);
    client = NULL;
    sem_post(&ended);
    fake_rank_finish(&leader);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

static void start(fake_script *script)
{
    fake_rank_run(&leader, script, NULL);
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_register(client, tensors, 2, values, &error), PARAMD_OK);
}

static void serve_start(struct fake_rank *fake)
{
    fake_welcome(fake, 0, 0);
    fake_join(fake, 1);
    fake_register(fake, &lane, 1, false, 0);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lane, 0, zeros, 0);
}

/* Take a whole push of step 0 and answer it. */
static void serve_push(struct fake_rank *fake, const float *last_expected)
{
    const struct pd_push *push = &fake_receive(fake, PD_MESSAGE_PUSH)->push;
    ck_assert_uint_eq(push->step, 0);
    ck_assert_uint_eq(push->samples, 8);
    ck_assert(push->has_loss && push->loss == 0.25);
    ck_assert(fake->checksum_ok);
    ck_assert_mem_eq(fake->payload, first_gradient, sizeof first_gradient);
    ck_assert_mem_eq(fake->payload + sizeof first_gradient, last_expected, sizeof last_gradient);
    fake_send_pulled(fake, &lane, 1, new_values, 0);
}

/* Read what leaves early, lose the connection, and take the whole push on the next. */
static void read_early(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake);
    fake_swallow(fake, EARLY_BYTES);
    sem_post(&arrived);
    fake_hang_up(fake);
    fake_welcome(fake, 0, 0);
    serve_push(fake, last_gradient);
    fake_expect_end(fake);
}

START_TEST(what_is_ready_leaves_before_the_end)
{
    double loss = 0.25;
    const float *gradients[] = {first_gradient, other_gradient};
    start(read_early);
    ck_assert_int_eq(paramd_step_begin(client, gradients, 8, &loss, 0, values, &error), PARAMD_OK);
    loss = 0;
    paramd_step_ready(client, 1);
    sem_wait(&arrived);
    gradients[1] = last_gradient;
    ck_assert_int_eq(paramd_step_end(client, &info, &error), PARAMD_OK);
    ck_assert_int_eq(info.pulled, 1);
    ck_assert_uint_eq(info.version, 1);
    ck_assert_mem_eq(first, new_values, sizeof first);
    ck_assert_mem_eq(last, new_values + FIRST_COUNT, sizeof last);
    ck_assert_uint_eq(paramd_next_step(client), 1);
}
END_TEST

/* Send the new parameters before the push has come, and settle them after it. */
static void answer_early(struct fake_rank *fake, void *context)
{
    struct pd_message pulled = {.kind = PD_MESSAGE_PULLED,
                                .pulled = {.version = 1, .element_count = COUNT, .ahead = true}};
    struct pd_message settled = {.kind = PD_MESSAGE_SETTLED,
                                 .settled = {.applied = true, .pulled = {.version = 1}}};
    (void)context;
    serve_start(fake);
    fake_await(fake);
    fake_send(fake, &pulled, new_values, sizeof new_values, 0);
    sem_post(&arrived);
    ck_assert(fake_receive(fake, PD_MESSAGE_PUSH)->push.ahead);
    ck_assert_mem_eq(fake->payload, first_gradient, sizeof first_gradient);
    fake_send(fake, &settled, NULL, 0, 0);
    fake_expect_end(fake);
}

START_TEST(parameters_are_not_written_while_the_program_computes)
{
    const float *gradients[] = {first_gradient, last_gradient};
    start(answer_early);
    ck_assert_int_eq(paramd_step_begin(client, gradients, 8, NULL, 0, values, &error), PARAMD_OK);
    paramd_step_ready(client, 1);
    sem_wait(&arrived);
    ck_assert_mem_eq(first, zeros, sizeof first);
    ck_assert_int_eq(paramd_step_end(client, &info, &error), PARAMD_OK);
    ck_assert_mem_eq(first, new_values, sizeof first);
    ck_assert_mem_eq(last, new_values + FIRST_COUNT, sizeof last);
}
END_TEST

static void read_whole(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake);
    serve_push(fake, last_gradient);
    fake_expect_end(fake);
}

START_TEST(the_end_makes_everything_ready)
{
    const double loss = 0.25;
    const float *const gradients[] = {first_gradient, last_gradient};
    start(read_whole);
    ck_assert_int_eq(paramd_step_begin(client, gradients, 8, &loss, 0, values, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_step_end(client, NULL, &error), PARAMD_OK);
    ck_assert_mem_eq(first, new_values, sizeof first);
}
END_TEST

static void read_taken_back(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake);
    fake_swallow(fake, EARLY_BYTES);
    sem_post(&arrived);
    sem_wait(&cancelled);
    /* What is left of that frame is not a whole push; then the other one comes. */
    fake_hang_up(fake);
    fake_welcome(fake, 0, 0);
    serve_push(fake, other_gradient);
    fake_expect_end(fake);
}

START_TEST(a_step_that_is_cancelled_can_be_made_with_other_gradients)
{
    const double loss = 0.25;
    const float *const gradients[] = {first_gradient, last_gradient};
    const float *const others[] = {first_gradient, other_gradient};
    start(read_taken_back);
    ck_assert_int_eq(paramd_step_begin(client, gradients, 8, &loss, 0, values, &error), PARAMD_OK);
    paramd_step_ready(client, 2);
    sem_wait(&arrived);
    paramd_step_cancel(client);
    sem_post(&cancelled);
    ck_assert_uint_eq(paramd_next_step(client), 0);
    ck_assert_int_eq(paramd_step(client, others, 8, &loss, 0, values, &info, &error), PARAMD_OK);
    ck_assert_uint_eq(info.version, 1);
}
END_TEST

static void swallow_and_wait(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake);
    fake_swallow(fake, EARLY_BYTES);
    sem_post(&arrived);
    sem_wait(&ended);
}

static int calls;

static int third_time(void *context)
{
    (void)context;
    return ++calls >= 3;
}

START_TEST(the_program_can_interrupt_the_end)
{
    const float *const gradients[] = {first_gradient, last_gradient};
    options.interrupted = third_time;
    start(swallow_and_wait);
    ck_assert_int_eq(paramd_step_begin(client, gradients, 8, NULL, 0, values, &error), PARAMD_OK);
    paramd_step_ready(client, 1);
    sem_wait(&arrived);
    calls = 0;
    ck_assert_int_eq(paramd_step_end(client, NULL, &error), PARAMD_EINTERRUPTED);
    ck_assert_str_eq(error.message, "step: interrupted");
    ck_assert_int_ge(calls, 3);
}
END_TEST

START_TEST(the_deadline_runs_from_the_end)
{
    const float *const gradients[] = {first_gradient, last_gradient};
    start(swallow_and_wait);
    paramd_set_timeout(client, 100);
    ck_assert_int_eq(paramd_step_begin(client, gradients, 8, NULL, 0, values, &error), PARAMD_OK);
    paramd_step_ready(client, 1);
    sem_wait(&arrived);
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    ck_assert_int_eq(paramd_step_end(client, NULL, &error), PARAMD_ETIMEOUT);
    ck_assert_ptr_nonnull(strstr(error.message, "after 0.1 s"));
}
END_TEST

static void serve_nothing(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake);
    sem_wait(&ended);
}

START_TEST(other_calls_are_refused_until_the_end_and_closing_ends_all)
{
    const float *const gradients[] = {first_gradient, last_gradient};
    const struct paramd_command command = {.command = "status"};
    const char *expected = "a step has begun: end or cancel it first";
    char *json;
    start(serve_nothing);
    ck_assert_int_eq(paramd_step_end(client, &info, &error), PARAMD_EINVALID);
    ck_assert_str_eq(error.message, "step: none has begun");
    ck_assert_int_eq(paramd_step_begin(client, gradients, 8, NULL, 0, NULL, &error),
                     PARAMD_EINVALID);
    ck_assert_int_eq(paramd_step_begin(client, gradients, 8, NULL, 0, values, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_step_begin(client, gradients, 8, NULL, 0, values, &error),
                     PARAMD_EINVALID);
    ck_assert_int_eq(paramd_push(client, gradients, 8, NULL, 0, &error), PARAMD_EINVALID);
    ck_assert_ptr_nonnull(strstr(error.message, expected));
    ck_assert_int_eq(paramd_pull(client, 0, values, NULL, &error), PARAMD_EINVALID);
    ck_assert_int_eq(paramd_admin(client, &command, &json, &error), PARAMD_EINVALID);
    ck_assert_int_eq(paramd_leave(client, &error), PARAMD_EINVALID);
    ck_assert_ptr_nonnull(strstr(error.message, expected));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client_overlap");
    TCase *tests = tcase_create("client_overlap");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_set_timeout(tests, 30);
    tcase_add_test(tests, parameters_are_not_written_while_the_program_computes);
    tcase_add_test(tests, what_is_ready_leaves_before_the_end);
    tcase_add_test(tests, the_end_makes_everything_ready);
    tcase_add_test(tests, a_step_that_is_cancelled_can_be_made_with_other_gradients);
    tcase_add_test(tests, the_program_can_interrupt_the_end);
    tcase_add_test(tests, the_deadline_runs_from_the_end);
    tcase_add_test(tests, other_calls_are_refused_until_the_end_and_closing_ends_all);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
