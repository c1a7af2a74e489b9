/* A worker's gradient on one rank: which pushes are taken, and what they add up to. */
#include "common/heap.h"
#include "server/core/contribution.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 5u
#define STEPS 3u /* micro-batches of a contribution */

static struct pd_contribution contribution;
static struct pd_staging staging;
static struct pd_error error;

static void setup(void)
{
    memset(&contribution, 0, sizeof contribution);
    staging = (struct pd_staging){.element_count = COUNT, .accumulates = true};
    ck_assert_int_eq(pd_contribution_equip(&contribution, &staging, &error), PD_OK);
}

static void teardown(void)
{
    pd_contribution_strip(&contribution, &staging);
    pd_staging_finish(&staging);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

static struct pd_push push_of(uint64_t step, uint32_t micro_batch, bool last, uint64_t samples)
{
    return (struct pd_push){
        .step = step, .micro_batch = micro_batch, .last = last, .samples = samples};
}

/* Take a push whose elements are all `element`, and add it up. */
static void take(const struct pd_push *push, float element)
{
    ck_assert_int_eq(pd_contribution_judge(&contribution, push, push->step, STEPS, &error),
                     PD_PUSH_ACCEPT);
    pd_contribution_begin(&contribution, push, false);
    float *place = pd_contribution_place(&contribution, COUNT);
    for (uint32_t i = 0; i < COUNT; i++) {
        place[i] = element;
    }
    pd_contribution_finish_payload(&contribution);
    while (contribution.state == PD_CONTRIBUTION_FOLDING) {
        (void)!pd_contribution_fold(&contribution, 2);
    }
}

static enum pd_push_verdict judge(uint64_t step, uint32_t micro_batch, bool last, uint64_t version)
{
    struct pd_push push = push_of(step, micro_batch, last, 1);
    return pd_contribution_judge(&contribution, &push, version, STEPS, &error);
}

static float element_at(uint64_t index, double weight, float *factor)
{
    struct pd_source source = pd_contribution_source(&contribution, weight);
    ck_assert_int_eq(source.dtype, PD_DTYPE_FLOAT32);
    *factor = source.weight;
    return ((const float *)pd_contribution_elements(&contribution, 0))[index];
}

START_TEST(push_of_the_step_in_collection_is_accepted)
{
    ck_assert_int_eq(judge(7, 0, false, 7), PD_PUSH_ACCEPT);
}
END_TEST

START_TEST(push_from_the_past_or_the_future_is_refused)
{
    ck_assert_int_eq(judge(6, 0, false, 7), PD_PUSH_REFUSE);
    ck_assert_int_eq(error.status, PD_ESTEP);
    ck_assert_ptr_nonnull(strstr(error.message, "from the past: the step in collection is 7"));
    ck_assert_int_eq(judge(8, 0, false, 7), PD_PUSH_REFUSE);
    ck_assert_ptr_nonnull(strstr(error.message, "from the future"));
}
END_TEST

START_TEST(micro_batch_out_of_range_or_order_is_refused)
{
    ck_assert_int_eq(judge(0, STEPS, true, 0), PD_PUSH_REFUSE);
    ck_assert_int_eq(error.status, PD_EINVALID);
    ck_assert_ptr_nonnull(strstr(error.message, "micro-batch 3; allowed: 0 to 2"));
    ck_assert_int_eq(judge(0, STEPS - 1, false, 0), PD_PUSH_REFUSE);
    ck_assert_ptr_nonnull(strstr(error.message, "must have `last` set"));
    ck_assert_int_eq(judge(0, 1, false, 0), PD_PUSH_REFUSE);
    ck_assert_int_eq(error.status, PD_ESTEP);
    ck_assert_ptr_nonnull(strstr(error.message, "1 came, 0 is the next expected"));
}
END_TEST

/* In the order of a push's life; an element counts when all of its bytes are in. */
START_TEST(elements_of_a_single_push_are_in_as_their_bytes_are)
{
    struct pd_push push = push_of(7, 0, true, 1);
    push.dtype = PD_DTYPE_BFLOAT16;
    ck_assert(!pd_contribution_is_single(&contribution, 7));
    ck_assert_uint_eq(pd_contribution_elements_in(&contribution), 0);
    pd_contribution_begin(&contribution, &push, false);
    ck_assert(pd_contribution_is_single(&contribution, 7));
    ck_assert(!pd_contribution_is_single(&contribution, 6));
    ck_assert_uint_eq(pd_contribution_elements_in(&contribution), 0);
    pd_contribution_receive(&contribution, 7);
    ck_assert_uint_eq(pd_contribution_elements_in(&contribution), 3);
    pd_contribution_drop_payload(&contribution);
    ck_assert(!pd_contribution_is_single(&contribution, 7));
    ck_assert_uint_eq(pd_contribution_elements_in(&contribution), 0);

    pd_contribution_begin(&contribution, &push, false);
    ck_assert_uint_eq(pd_contribution_elements_in(&contribution), 0);
    pd_contribution_finish_payload(&contribution);
    ck_assert(pd_contribution_is_single(&contribution, 7));
    ck_assert_uint_eq(pd_contribution_elements_in(&contribution), COUNT);
    pd_contribution_release(&contribution, &staging);
    ck_assert_int_eq(pd_contribution_equip(&contribution, &staging, &error), PD_OK);
    ck_assert(!pd_contribution_is_single(&contribution, 7));
    ck_assert_uint_eq(pd_contribution_elements_in(&contribution), 0);
}
END_TEST

START_TEST(one_of_several_micro_batches_is_no_single_push)
{
    const struct pd_push first = push_of(7, 0, false, 1);
    const struct pd_push last = push_of(7, 1, true, 1);
    pd_contribution_begin(&contribution, &first, false);
    ck_assert(!pd_contribution_is_single(&contribution, 7));
    pd_contribution_drop_payload(&contribution);
    take(&first, 1);
    take(&last, 2);
    ck_assert_int_eq(contribution.state, PD_CONTRIBUTION_HELD);
    ck_assert(!pd_contribution_is_single(&contribution, 7));
}
END_TEST

START_TEST(accepted_push_is_a_duplicate_from_then_on)
{
    struct pd_push push = push_of(4, 0, false, 1);
    take(&push, 1);
    ck_assert_int_eq(judge(4, 0, false, 4), PD_PUSH_DUPLICATE);
    ck_assert_int_eq(judge(3, 2, true, 4), PD_PUSH_DUPLICATE);
    ck_assert_int_eq(judge(4, 1, false, 4), PD_PUSH_ACCEPT);
    push = push_of(4, 1, true, 1);
    take(&push, 1);
    ck_assert_int_eq(judge(4, 2, true, 4), PD_PUSH_DUPLICATE);
    pd_contribution_release(&contribution, &staging);
    ck_assert_int_eq(pd_contribution_equip(&contribution, &staging, &error), PD_OK);
    ck_assert_int_eq(judge(4, 1, true, 5), PD_PUSH_DUPLICATE);
    ck_assert_int_eq(judge(5, 0, false, 5), PD_PUSH_ACCEPT);
}
END_TEST

START_TEST(half_received_push_leaves_no_trace)
{
    struct pd_push first = push_of(0, 0, false, 2);
    struct pd_push second = push_of(0, 1, true, 2);
    float factor;
    take(&first, 3);
    pd_contribution_begin(&contribution, &second, false);
    ((float *)contribution.payload)[0] = 1000;
    pd_contribution_drop_payload(&contribution);
    ck_assert_int_eq(judge(0, 1, true, 0), PD_PUSH_ACCEPT);
    take(&second, 5);
    ck_assert_float_eq(element_at(0, 1, &factor), 8);
}
END_TEST

START_TEST(micro_batch_waits_while_the_one_before_is_added)
{
    struct pd_push push = push_of(0, 0, false, 1);
    pd_contribution_begin(&contribution, &push, false);
    pd_contribution_finish_payload(&contribution);
    ck_assert_int_eq(contribution.state, PD_CONTRIBUTION_FOLDING);
    ck_assert_int_eq(judge(0, 1, false, 0), PD_PUSH_WAIT);
    ck_assert(!pd_contribution_fold(&contribution, COUNT - 1));
    ck_assert(pd_contribution_fold(&contribution, COUNT - 1));
    ck_assert_int_eq(judge(0, 1, false, 0), PD_PUSH_ACCEPT);
}
END_TEST

START_TEST(micro_batches_weigh_by_their_samples_in_units_of_the_first)
{
    struct pd_push pushes[STEPS] = {push_of(0, 0, false, 4), push_of(0, 1, false, 2),
                                    push_of(0, 2, true, 8)};
    float factor;
    take(&pushes[0], 1);
    take(&pushes[1], 10);
    take(&pushes[2], 100);
    ck_assert_int_eq(contribution.state, PD_CONTRIBUTION_HELD);
    ck_assert_uint_eq(contribution.unit_samples, 4);
    ck_assert_float_eq(element_at(COUNT - 1, 4.0 / 14.0, &factor), 1 + 5 + 200);
    ck_assert_float_eq(factor, (float)(4.0 / 14.0));
}
END_TEST

START_TEST(micro_batch_without_samples_adds_nothing_whatever_it_holds)
{
    struct pd_push pushes[STEPS] = {push_of(0, 0, false, 0), push_of(0, 1, false, 3),
                                    push_of(0, 2, true, 0)};
    float factor;
    take(&pushes[0], (float)(0.0 / 0.0));
    take(&pushes[1], 7);
    take(&pushes[2], (float)(1.0 / 0.0));
    ck_assert_uint_eq(contribution.unit_samples, 3);
    ck_assert_float_eq(element_at(0, 1, &factor), 7);
}
END_TEST

START_TEST(single_micro_batch_is_held_as_it_came)
{
    struct pd_push push = push_of(0, 0, true, 6);
    push.dtype = PD_DTYPE_FLOAT16;
    take(&push, 0);
    ck_assert_int_eq(contribution.state, PD_CONTRIBUTION_HELD);
    ck_assert_int_eq(pd_contribution_source(&contribution, 0.5).dtype, PD_DTYPE_FLOAT16);
    ck_assert_ptr_eq(pd_contribution_elements(&contribution, 3),
                     (const char *)contribution.payload + 6);
}
END_TEST

enum { MANY = 1000, WIDTH = 37 };

/* Elements are where they are looked up, however far what is spent stays behind what comes: two
 * places never overlap. */
START_TEST(what_is_spent_makes_room_for_what_comes)
{
    static struct pd_contribution many;
    static uint16_t buffer[MANY];
    struct pd_push push = push_of(7, 0, true, 1);
    uint64_t lag_max = (uint64_t)_i;
    uint64_t random = 12345 + (uint64_t)_i;
    push.dtype = PD_DTYPE_FLOAT16;
    many = (struct pd_contribution){.payload = buffer, .element_count = MANY};
    pd_contribution_begin(&many, &push, true);
    while (many.placed < MANY) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        uint64_t count = 1 + (random >> 33) % WIDTH;
        count = count < MANY - many.placed ? count : MANY - many.placed;
        uint64_t begin = many.placed;
        uint16_t *place = pd_contribution_place(&many, count);
        ck_assert(place >= buffer && place + count <= buffer + MANY);
        for (uint64_t i = 0; i < count; i++) {
            place[i] = (uint16_t)(begin + i);
        }
        for (uint64_t i = many.spent; i < many.placed; i++) {
            ck_assert_uint_eq(*(uint16_t *)pd_contribution_elements(&many, i), i);
        }
        uint64_t lag = lag_max > 0 ? (random >> 11) % lag_max : 0;
        if (many.placed - many.spent > lag) {
            pd_contribution_spend(&many, many.placed - lag);
        }
        ck_assert(lag_max > 0 || place == buffer);
    }
}
END_TEST

START_TEST(what_is_kept_lies_as_it_came)
{
    struct pd_push push = push_of(7, 0, true, 1);
    pd_contribution_begin(&contribution, &push, true);
    for (uint32_t i = 0; i < COUNT; i++) {
        ck_assert_ptr_eq(pd_contribution_place(&contribution, 1),
                         (float *)contribution.payload + i);
        ck_assert(!pd_contribution_wants_place(&contribution));
        pd_contribution_receive(&contribution, (i + 1) * sizeof(float));
        ck_assert_int_eq(pd_contribution_wants_place(&contribution), i + 1 < COUNT);
    }
}
END_TEST

START_TEST(push_that_is_taken_back_may_come_again)
{
    struct pd_push push = push_of(7, 0, true, 1);
    pd_contribution_begin(&contribution, &push, true);
    (void)pd_contribution_place(&contribution, COUNT);
    ck_assert(!pd_contribution_is_spent(&contribution));
    pd_contribution_spend(&contribution, 1);
    ck_assert(pd_contribution_is_spent(&contribution));
    pd_contribution_finish_payload(&contribution);
    ck_assert(pd_contribution_is_complete(&contribution, 7));
    ck_assert_int_eq(judge(7, 0, true, 7), PD_PUSH_DUPLICATE);
    pd_contribution_take_back(&contribution);
    ck_assert(!pd_contribution_is_spent(&contribution));
    ck_assert(!pd_contribution_has_pushes(&contribution, 7));
    ck_assert_int_eq(judge(7, 0, true, 7), PD_PUSH_ACCEPT);
    take(&push, 4);
    ck_assert(pd_contribution_is_complete(&contribution, 7));
}
END_TEST

START_TEST(next_step_starts_from_nothing)
{
    struct pd_push first = push_of(0, 0, false, 5);
    struct pd_push again = push_of(1, 0, false, 1);
    struct pd_push end = push_of(1, 1, true, 1);
    float factor;
    take(&first, 100);
    pd_contribution_release(&contribution, &staging);
    ck_assert_int_eq(pd_contribution_equip(&contribution, &staging, &error), PD_OK);
    take(&again, 2);
    take(&end, 3);
    ck_assert_uint_eq(contribution.unit_samples, 1);
    ck_assert_float_eq(element_at(0, 1, &factor), 5);
}
END_TEST

START_TEST(pushes_for_the_step_in_collection_are_known)
{
    struct pd_push push = push_of(2, 0, false, 1);
    struct pd_push last = push_of(2, 1, true, 1);
    ck_assert(!pd_contribution_has_pushes(&contribution, 2));
    take(&push, 1);
    ck_assert(pd_contribution_has_pushes(&contribution, 2));
    take(&last, 1);
    ck_assert(pd_contribution_has_pushes(&contribution, 2));
    ck_assert(!pd_contribution_has_pushes(&contribution, 3));
}
END_TEST

START_TEST(equip_survives_each_failed_allocation)
{
    struct pd_contribution failed = {0};
    pd_heap_fail_at(_i);
    ck_assert_int_eq(pd_contribution_equip(&failed, &staging, &error), PD_ENOMEM);
    pd_heap_fail_at(-1);
    ck_assert_str_eq(error.message, "out of memory for a worker's gradient of 5 elements");
    ck_assert_ptr_null(failed.payload);
    ck_assert_ptr_null(failed.sum);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("contribution");
    TCase *tests = tcase_create("contribution");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, push_of_the_step_in_collection_is_accepted);
    tcase_add_test(tests, push_from_the_past_or_the_future_is_refused);
    tcase_add_test(tests, micro_batch_out_of_range_or_order_is_refused);
    tcase_add_test(tests, elements_of_a_single_push_are_in_as_their_bytes_are);
    tcase_add_test(tests, one_of_several_micro_batches_is_no_single_push);
    tcase_add_test(tests, accepted_push_is_a_duplicate_from_then_on);
    tcase_add_test(tests, half_received_push_leaves_no_trace);
    tcase_add_test(tests, micro_batch_waits_while_the_one_before_is_added);
    tcase_add_test(tests, micro_batches_weigh_by_their_samples_in_units_of_the_first);
    tcase_add_test(tests, micro_batch_without_samples_adds_nothing_whatever_it_holds);
    tcase_add_test(tests, single_micro_batch_is_held_as_it_came);
    tcase_add_loop_test(tests, what_is_spent_makes_room_for_what_comes, 0, 120);
    tcase_add_test(tests, what_is_kept_lies_as_it_came);
    tcase_add_test(tests, push_that_is_taken_back_may_come_again);
    tcase_add_test(tests, next_step_starts_from_nothing);
    tcase_add_test(tests, pushes_for_the_step_in_collection_are_known);
    tcase_add_loop_test(tests, equip_survives_each_failed_allocation, 0, 2);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
