/* A worker whose lanes share one thread: a rank that does not read holds the others' lanes back,
 * but not for long. */
#include "client/include/paramd.h"
#include "common/assert.h"
#include "common/heap.h"
#include "tests/support/fake_rank.h"

#include <check.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* More than sockets hold, in each of two lanes. */
#define LANE_COUNT 4000000u
#define COUNT (2 * LANE_COUNT)
#define HELD_MS 100

static float *gradient; /* zeros, as the values that the ranks give */
static float *values;
static struct fake_rank ranks[2];
static struct pd_lane lanes[2];
static sem_t first_is_in;
static struct paramd_client *client;
static struct paramd_error error;

static void setup(void)
{
    gradient = pd_heap_zalloc(COUNT, sizeof *gradient);
    values = pd_heap_zalloc(COUNT, sizeof *values);
    sem_init(&first_is_in, 0, 0);
    for (uint32_t i = 0; i < 2; i++) {
        fake_rank_init(&ranks[i], i);
        lanes[i] = (struct pd_lane){
            .rank = i, .element_begin = (uint64_t)i * LANE_COUNT, .element_count = LANE_COUNT};
        snprintf(lanes[i].address, sizeof lanes[i].address, "%s", ranks[i].address);
    }
    snprintf(ranks[1].leader, sizeof ranks[1].leader, "%s", ranks[0].address);
}

static void teardown(void)
{
    paramd_close(client);
    for (uint32_t i = 0; i < 2; i++) {
        fake_rank_finish(&ranks[i]);
    }
    sem_destroy(&first_is_in);
    pd_heap_free(gradient);
    pd_heap_free(values);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

/* So many workers are on this host that none has a core to itself. */
static void send_values(struct fake_rank *fake)
{
    const struct pd_lane *lane = &lanes[fake->rank];
    struct pd_message message = {.kind = PD_MESSAGE_PULLED,
                                 .pulled = {.element_begin = lane->element_begin,
                                            .element_count = lane->element_count,
                                            .host_workers = 100000}};

    fake_receive(fake, PD_MESSAGE_PULL);
    fake_send(fake, &message, gradient, lane->element_count * sizeof *gradient, 0);
}

static void take_push(struct fake_rank *fake)
{
    fake_receive(fake, PD_MESSAGE_PUSH);
    PD_ASSERT(fake->payload_bytes == LANE_COUNT * sizeof(float));
}

static void read_at_once(struct fake_rank *fake, void *context)
{
    (void)context;
    fake_welcome(fake, 0, 0);
    fake_join(fake, 1);
    fake_register(fake, lanes, 2, false, 0);
    send_values(fake);
    take_push(fake);
    sem_post(&first_is_in);
    fake_send_pushed(fake, false);
    fake_expect_end(fake);
}

static void read_after_the_first(struct fake_rank *fake, void *context)
{
    (void)context;
    fake_welcome(fake, 0, 0);
    send_values(fake);
    sem_wait(&first_is_in);
    take_push(fake);
    fake_send_pushed(fake, false);
    fake_expect_end(fake);
}

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

START_TEST(rank_that_does_not_read_holds_the_others_back_for_a_while)
{
    const uint64_t shape[] = {COUNT};
    const struct paramd_tensor tensor = {"long", 1, shape};
    const float *sources[] = {gradient};
    struct paramd_options options;

    fake_rank_run(&ranks[0], read_at_once, NULL);
    fake_rank_run(&ranks[1], read_after_the_first, NULL);
    paramd_options_init(&options);
    options.address = ranks[0].address;
    options.checksum = _i;
    options.timeout_ms = 10000;
    ck_assert_int_eq(paramd_connect(&options, &client, &error), PARAMD_OK);
    ck_assert_int_eq(paramd_register(client, &tensor, 1, &values, &error), PARAMD_OK);
    uint64_t begun_ms = now_ms();
    ck_assert_msg(paramd_push(client, sources, 8, NULL, 0, &error) == PARAMD_OK, "%s",
                  error.message);
    ck_assert_uint_ge(now_ms() - begun_ms, HELD_MS);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client_pace");
    TCase *tests = tcase_create("client_pace");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, rank_that_does_not_read_holds_the_others_back_for_a_while, 0, 2);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
