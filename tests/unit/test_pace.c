/* Lanes of one host, held back for each other. */
#include "client/pace.h"

#include <check.h>
#include <stdlib.h>

#define MB (1024u * 1024u)

static struct pd_pace paces[3];
static struct pd_pace_lane lanes[3];
static uint64_t random_state;

static uint64_t random_below(uint64_t bound)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (random_state >> 33) % bound;
}

static void begin(size_t index, uint64_t byte_count)
{
    paces[index] = (struct pd_pace){0};
    lanes[index] = (struct pd_pace_lane){.pace = &paces[index], .byte_count = byte_count};
}

static void setup(void)
{
    for (size_t i = 0; i < 3; i++) {
        begin(i, 64 * MB);
    }
}

START_TEST(lane_waits_for_one_that_is_behind)
{
    lanes[0].sent = 10 * MB;
    lanes[1].sent = 4 * MB;
    pd_pace_lanes(lanes, 2, 1000);
    ck_assert_uint_eq(paces[0].allowed, 5 * MB);
    ck_assert_uint_eq(paces[1].allowed, 5 * MB);
    ck_assert_uint_eq(pd_pace_due_ms(&paces[0]), 1100);
    ck_assert_uint_eq(pd_pace_due_ms(&paces[1]), UINT64_MAX);

    lanes[1].sent = 10 * MB;
    pd_pace_lanes(lanes, 2, 1001);
    ck_assert_uint_eq(paces[0].allowed, 11 * MB);
    ck_assert_uint_eq(pd_pace_due_ms(&paces[0]), UINT64_MAX);
}
END_TEST

/* What has been answered says more than what the socket took. */
START_TEST(answers_show_how_far_a_rank_is)
{
    lanes[0].sent = lanes[1].sent = 16 * MB;
    lanes[0].answered = lanes[1].answered = 0.25;
    pd_pace_lanes(lanes, 2, 1000);
    ck_assert_uint_eq(paces[0].allowed, 18 * MB);
}
END_TEST

START_TEST(lanes_of_other_sizes_come_to_their_ends_together)
{
    begin(1, 8 * MB);
    lanes[0].sent = 33 * MB;
    lanes[1].sent = 5 * MB;
    pd_pace_lanes(lanes, 2, 1000);
    ck_assert_uint_eq(paces[0].allowed, 34 * MB);
    ck_assert_uint_eq(paces[1].allowed, 6 * MB);
}
END_TEST

START_TEST(lane_that_has_waited_long_goes_on)
{
    lanes[0].sent = 10 * MB;
    pd_pace_lanes(lanes, 2, 1000);
    pd_pace_lanes(lanes, 2, 1099);
    ck_assert_uint_lt(paces[0].allowed, 10 * MB);
    pd_pace_lanes(lanes, 2, 1100);
    ck_assert_uint_eq(paces[0].allowed, UINT64_MAX);
    pd_pace_lanes(lanes, 2, 1101);
    ck_assert_uint_eq(paces[0].allowed, UINT64_MAX);
    ck_assert_uint_eq(pd_pace_due_ms(&paces[0]), UINT64_MAX);
}
END_TEST

/* One that begins anew does not take back what another was allowed. */
START_TEST(what_is_allowed_never_falls)
{
    lanes[0].sent = lanes[1].sent = 30 * MB;
    pd_pace_lanes(lanes, 2, 1000);
    uint64_t before = paces[0].allowed;
    begin(1, 64 * MB);
    pd_pace_lanes(lanes, 2, 1001);
    ck_assert_uint_eq(paces[0].allowed, before);
    ck_assert_uint_eq(paces[1].allowed, 2 * MB);
}
END_TEST

static void send_some(struct pd_pace_lane *lane)
{
    uint64_t allowed = lane->pace->allowed;
    uint64_t most = (allowed < lane->byte_count ? allowed : lane->byte_count) - lane->sent;
    uint64_t piece = random_below(512u * 1024u) + 1;

    lane->sent += piece < most ? piece : most;
    if (random_below(4) == 0) {
        lane->answered = (double)lane->sent / (double)lane->byte_count;
    }
}

/* Whatever is sent and answered when, all lanes come to their end, though no time passes. */
START_TEST(no_lanes_wait_for_each_other)
{
    size_t left = 3;

    random_state = (uint64_t)_i;
    for (size_t i = 0; i < left; i++) {
        begin(i, (1 + random_below(64)) * MB);
    }
    while (left > 0) {
        uint64_t before = 0;
        uint64_t after = 0;
        pd_pace_lanes(lanes, left, 1000);
        for (size_t i = 0; i < left; i++) {
            before += lanes[i].sent;
            send_some(&lanes[i]);
            after += lanes[i].sent;
        }
        ck_assert_uint_gt(after, before);
        for (size_t i = left; i > 0; i--) {
            if (lanes[i - 1].sent == lanes[i - 1].byte_count) {
                lanes[i - 1] = lanes[--left];
            }
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("pace");
    TCase *tests = tcase_create("pace");

    tcase_add_checked_fixture(tests, setup, NULL);
    tcase_add_test(tests, lane_waits_for_one_that_is_behind);
    tcase_add_test(tests, answers_show_how_far_a_rank_is);
    tcase_add_test(tests, lanes_of_other_sizes_come_to_their_ends_together);
    tcase_add_test(tests, lane_that_has_waited_long_goes_on);
    tcase_add_test(tests, what_is_allowed_never_falls);
    tcase_add_loop_test(tests, no_lanes_wait_for_each_other, 0, 50);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
