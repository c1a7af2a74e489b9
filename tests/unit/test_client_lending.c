/* Long gradients, which the library lends to the socket: a rank gets what the call was given,
 * whatever becomes of the call and of the arrays afterwards. */
#include "client/include/paramd.h"
#include "common/assert.h"
#include "common/heap.h"
#include "tests/support/fake_rank.h"

#include <check.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* More than sockets hold. */
#define COUNT 4000000u
#define BYTES (COUNT * sizeof(float))

static const uint64_t shape[] = {COUNT};
static const struct paramd_tensor tensor = {"long", 1, shape};

static float *gradient;
static float *expected;
static float *values;
static struct fake_rank leader;
static struct pd_lane lane;
static struct paramd_client *client;
static struct paramd_error error;

static void fill(float *elements, int round)
{
    for (uint32_t i = 0; i < COUNT; i++) {
        elements[i] = (float)((i * 31 + i / 1021 + (uint32_t)round * 7) % 65521);
    }
}

static void setup(void)
{
    fake_rank_init(&leader, 0);
    memset(&lane, 0, sizeof lane);
    lane.element_count = COUNT;
    snprintf(lane.address, sizeof lane.address, "%s", leader.address);
    gradient = pd_heap_zalloc(COUNT, sizeof *gradient);
    expected = pd_heap_zalloc(COUNT, sizeof *expected);
    values = pd_heap_zalloc(COUNT, sizeof *values);
}

static void teardown(void)
{
    paramd_close(client);
    client = NULL;
    fake_rank_finish(&leader);
    pd_heap_free(gradient);
    pd_heap_free(expected);
    pd_heap_free(values);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

static void serve_start(struct fake_rank *fake)
{
    static const float zeros[COUNT];

    fake_welcome(fake, 0, 0);
    fake_join(fake, 1);
    fake_register(fake, &lane, 1, false, 0);
    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send_pulled(fake, &lane, 0, zeros, 0);
}

static void start(fake_script *script, int64_t timeout_ms, int checksum)
{
    struct paramd_options options;

    fake_rank_run(&leader, script, NULL);
    paramd_options_init(&options);
    options.address = leader.address;
    options.name = "w";
    options.checksum = checksum;
    options.timeout_ms = 10000;
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_register(client, &tensor, 1, &values, &error), PARAMD_OK);
    paramd_set_timeout(client, timeout_ms);
}

static enum paramd_status push(void)
{
    const float *sources[] = {gradient};

    return paramd_push(client, sources, 8, NULL, 0, &error);
}

static void take_push(struct fake_rank *fake)
{
    fake_receive(fake, PD_MESSAGE_PUSH);
    PD_ASSERT(fake->payload_bytes == BYTES);
    PD_ASSERT(memcmp(fake->payload, expected, BYTES) == 0);
}

static void take_and_acknowledge(struct fake_rank *fake)
{
    take_push(fake);
    fake_send_pushed(fake, false);
}

/* The client gives the connection up, and does not only say no more. */
static void await_reset(struct fake_rank *fake)
{
    struct pollfd given_up = {.fd = fake->socket, .events = POLLRDHUP};

    PD_ASSERT(poll(&given_up, 1, 10000) == 1 && (given_up.revents & POLLERR) != 0);
}

static void take_one(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake);
    take_and_acknowledge(fake);
    fake_expect_end(fake);
}

START_TEST(a_long_gradient_arrives_as_it_was_given)
{
    fill(gradient, 1);
    fill(expected, 1);
    start(take_one, 10000, _i);
    ck_assert_int_eq(push(), PARAMD_OK);
    memset(gradient, 'n', BYTES);
}
END_TEST

static void lose_one_in_the_middle(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake);
    fake_swallow(fake, 1000001);
    fake_hang_up(fake);
    fake_welcome(fake, 0, 0);
    take_and_acknowledge(fake);
    fake_expect_end(fake);
}

/* Nothing of what the first socket had not taken goes to the second. */
START_TEST(a_push_that_was_cut_off_is_sent_again_from_its_beginning)
{
    fill(gradient, 2);
    fill(expected, 2);
    start(lose_one_in_the_middle, 10000, _i);
    ck_assert_int_eq(push(), PARAMD_OK);
}
END_TEST

static void read_one_late(struct fake_rank *fake, void *context)
{
    (void)context;
    serve_start(fake);
    await_reset(fake);
    fake_welcome(fake, 0, 0);
    take_and_acknowledge(fake);
    fake_expect_end(fake);
}

START_TEST(after_a_push_that_ran_out_of_time_another_gradient_may_be_pushed)
{
    fill(gradient, 3);
    fill(expected, 4);
    start(read_one_late, 300, _i);
    ck_assert_int_eq(push(), PARAMD_ETIMEOUT);
    memcpy(gradient, expected, BYTES);
    paramd_set_timeout(client, 10000);
    ck_assert_int_eq(push(), PARAMD_OK);
}
END_TEST

/* Says that it has it already, as soon as it has seen the header. */
static void know_one_already(struct fake_rank *fake, void *context)
{
    const struct pd_message pushed = {.kind = PD_MESSAGE_PUSHED,
                                      .pushed = {.duplicate = true, .hessian = true}};
    (void)context;
    serve_start(fake);
    fake_swallow(fake, 1000001);
    fake_hang_up(fake);
    fake_welcome(fake, 0, 0);
    fake_swallow(fake, 100);
    fake_send(fake, &pushed, NULL, 0, 0);
    await_reset(fake);
    fake_welcome(fake, 0, 0);
    take_and_acknowledge(fake);
    fake_expect_end(fake);
}

/* The caller's again are the arrays, and the array of their addresses. */
START_TEST(what_a_rank_has_already_is_not_sent_on_after_the_call)
{
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    const float **sources =
        mmap(NULL, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(sources, MAP_FAILED);
    sources[0] = gradient;
    fill(expected, 5);
    start(know_one_already, 10000, _i);
    ck_assert_int_eq(paramd_push_hessian(client, (const float *const *)sources, 8, 0, &error),
                     PARAMD_OK);
    ck_assert_int_eq(munmap(sources, page_bytes), 0);
    fill(gradient, 5);
    ck_assert_int_eq(push(), PARAMD_OK);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client_lending");
    TCase *tcase = tcase_create("client_lending");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, a_long_gradient_arrives_as_it_was_given, 0, 2);
    tcase_add_loop_test(tcase, a_push_that_was_cut_off_is_sent_again_from_its_beginning, 0, 2);
    tcase_add_loop_test(tcase, after_a_push_that_ran_out_of_time_another_gradient_may_be_pushed, 0,
                        2);
    tcase_add_loop_test(tcase, what_a_rank_has_already_is_not_sent_on_after_the_call, 0, 2);
    suite_add_tcase(suite, tcase);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
