/* The workers as a rank knows them. */
#include "common/heap.h"
#include "server/core/roster.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct pd_roster roster;
static struct pd_error error;

static struct pd_worker *add(uint32_t id, const char *name)
{
    static struct pd_order order;

    order.worker_id = id;
    order.token = 100 + id;
    order.replica = id % 2;
    snprintf(order.name, sizeof order.name, "%s", name);
    return pd_roster_add(&roster, &order);
}

static void setup(void)
{
    memset(&roster, 0, sizeof roster);
    roster.staging.element_count = 4;
    roster.staging.accumulates = true;
}

static void teardown(void)
{
    pd_roster_finish(&roster);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

START_TEST(worker_is_found_by_its_number)
{
    (void)add(3, "a");
    (void)add(9, "b");
    ck_assert_str_eq(pd_roster_find(&roster, 9)->name, "b");
    ck_assert_uint_eq(pd_roster_find(&roster, 3)->token, 103);
    ck_assert_uint_eq(pd_roster_find(&roster, 9)->replica, 1);
    ck_assert_uint_eq(pd_roster_find(&roster, 9)->connection, PD_CONNECTION_NONE);
    ck_assert_ptr_null(pd_roster_find(&roster, 4));
}
END_TEST

START_TEST(workers_whose_numbers_agree_in_their_last_digits_are_all_found)
{
    (void)add(3, "a");
    (void)add(3 + PD_WORKER_COUNT_MAX, "b");
    ck_assert_str_eq(pd_roster_find(&roster, 3)->name, "a");
    ck_assert_str_eq(pd_roster_find(&roster, 3 + PD_WORKER_COUNT_MAX)->name, "b");
    pd_roster_remove(&roster, pd_roster_find(&roster, 3 + PD_WORKER_COUNT_MAX), "it was told to");
    ck_assert_str_eq(pd_roster_find(&roster, 3)->name, "a");
    ck_assert_ptr_null(pd_roster_find(&roster, 3 + PD_WORKER_COUNT_MAX));
    ck_assert_ptr_null(pd_roster_find(&roster, 3 + 2 * PD_WORKER_COUNT_MAX));
}
END_TEST

START_TEST(slot_of_a_removed_worker_is_used_again)
{
    struct pd_worker *first = add(0, "a");
    (void)add(1, "b");
    ck_assert_int_eq(pd_roster_equip(&roster, first, false, &error), PD_OK);
    pd_roster_remove(&roster, first, "it was told to");
    ck_assert_ptr_null(pd_roster_find(&roster, 0));
    ck_assert_ptr_eq(add(2, "c"), first);
    ck_assert(!first->has_contribution);
    ck_assert_uint_eq(roster.slot_end, 2);
}
END_TEST

START_TEST(reason_of_a_departure_is_told_for_a_while)
{
    pd_roster_remove(&roster, add(7, "a"), "it was silent");
    ck_assert_int_eq(pd_roster_explain(&roster, 7, &error), PD_EIDENTITY);
    ck_assert_str_eq(error.message, "worker 7 is gone: it was silent; join again");
    ck_assert_int_eq(pd_roster_explain(&roster, 8, &error), PD_EIDENTITY);
    ck_assert_str_eq(error.message, "worker 8 is not known in this run: join again");
    for (uint32_t id = 100; id < 100 + PD_DEPARTED_COUNT; id++) {
        pd_roster_remove(&roster, add(id, "b"), "no reason");
    }
    (void)!pd_roster_explain(&roster, 7, &error);
    ck_assert_str_eq(error.message, "worker 7 is not known in this run: join again");
}
END_TEST

START_TEST(leaver_stays_until_its_step_is_closed_only_if_it_has_pushed)
{
    struct pd_worker *idle = add(1, "idle");
    struct pd_worker *busy = add(2, "busy");
    struct pd_push push = {.step = 5, .last = false, .samples = 1};
    ck_assert_int_eq(pd_roster_equip(&roster, idle, false, &error), PD_OK);
    ck_assert_int_eq(pd_roster_equip(&roster, busy, false, &error), PD_OK);
    pd_roster_begin(busy, &push, false);
    pd_contribution_finish_payload(&busy->contribution);
    pd_roster_begin(idle, &push, false);
    pd_contribution_drop_payload(&idle->contribution);
    pd_roster_leave(&roster, idle, 5);
    pd_roster_leave(&roster, busy, 5);
    ck_assert_ptr_null(pd_roster_find(&roster, 1));
    ck_assert_ptr_eq(pd_roster_find(&roster, 2), busy);
    ck_assert(busy->leaving);
    (void)!pd_roster_explain(&roster, 2, &error);
    ck_assert_str_eq(error.message, "worker 2 is gone: it left; join again");
    pd_roster_sweep(&roster);
    ck_assert_ptr_null(pd_roster_find(&roster, 2));
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(contributions_that_have_begun_are_counted_by_step)
{
    struct pd_push push = {.step = 5, .last = true, .samples = 1};
    struct pd_worker *early = add(1, "early");
    struct pd_worker *late = add(2, "late");
    (void)add(3, "idle");
    ck_assert_int_eq(pd_roster_equip(&roster, early, false, &error), PD_OK);
    ck_assert_int_eq(pd_roster_equip(&roster, late, false, &error), PD_OK);
    ck_assert_uint_eq(pd_roster_count_begun(&roster, 5), 0);
    pd_roster_begin(early, &push, false);
    pd_contribution_finish_payload(&early->contribution);
    ck_assert_uint_eq(pd_roster_count_begun(&roster, 5), 1);
    pd_roster_begin(late, &push, false);
    ck_assert_uint_eq(pd_roster_count_begun(&roster, 5), 2);
    ck_assert_uint_eq(pd_roster_count_begun(&roster, 6), 0);
    pd_contribution_drop_payload(&late->contribution);
    ck_assert_uint_eq(pd_roster_count_begun(&roster, 5), 1);
}
END_TEST

START_TEST(micro_batch_still_to_be_added_is_found_whatever_it_is_of)
{
    struct pd_push push = {.hessian = _i, .samples = 1};
    struct pd_worker *owner = NULL;
    (void)add(1, "idle");
    struct pd_worker *busy = add(2, "busy");
    ck_assert_int_eq(pd_roster_equip(&roster, busy, false, &error), PD_OK);
    ck_assert_int_eq(pd_roster_equip(&roster, busy, true, &error), PD_OK);
    ck_assert_ptr_null(pd_roster_folding(&roster, &owner));
    pd_roster_begin(busy, &push, false);
    ck_assert_ptr_null(pd_roster_folding(&roster, &owner));
    pd_contribution_finish_payload(pd_roster_contribution(busy, _i));
    ck_assert_ptr_eq(pd_roster_folding(&roster, &owner), pd_roster_contribution(busy, _i));
    ck_assert_ptr_eq(owner, busy);
}
END_TEST

/* Its estimate goes with it: what is not whole by then does not count. */
START_TEST(gradient_that_is_taken_gives_its_memory_to_the_next)
{
    static struct pd_order order = {.kind = PD_ORDER_TAKE, .contributor_count = 1};
    struct pd_push push = {.step = 5, .last = true, .samples = 1};
    struct pd_worker *first = add(1, "first");
    struct pd_worker *second = add(2, "second");
    ck_assert_int_eq(pd_roster_equip(&roster, first, true, &error), PD_OK);
    ck_assert_int_eq(pd_roster_equip(&roster, first, false, &error), PD_OK);
    pd_roster_begin(first, &push, false);
    pd_contribution_finish_payload(&first->contribution);
    order.contributors[0] = 1;
    pd_roster_take(&roster, &order);
    ck_assert(first->contribution.taken && first->hessian.taken);
    ck_assert(pd_contribution_is_complete(&first->contribution, 5));
    ck_assert_uint_eq(roster.staging.spare_count, 4);
    ck_assert_int_eq(pd_roster_equip(&roster, second, false, &error), PD_OK);
    ck_assert_uint_eq(roster.staging.buffer_count, 4);
    pd_roster_release(&roster, &order);
    ck_assert(!first->contribution.taken && !first->hessian.taken);
    order.contributors[0] = 9;
    pd_roster_take(&roster, &order);
}
END_TEST

START_TEST(who_is_admitted_is_so_for_one_step_where_room_is_limited)
{
    struct pd_worker *worker = add(1, "a");
    ck_assert(pd_roster_admits(&roster, worker));
    roster.staging.limited = true;
    ck_assert(!pd_roster_admits(&roster, worker));
    worker->admitted = true;
    ck_assert(pd_roster_admits(&roster, worker));
    pd_roster_sweep(&roster);
    ck_assert(!pd_roster_admits(&roster, worker));
}
END_TEST

START_TEST(equip_survives_each_failed_allocation)
{
    struct pd_worker *worker = add(1, "a");
    pd_heap_fail_at(_i / 2);
    ck_assert_int_eq(pd_roster_equip(&roster, worker, _i % 2, &error), PD_ENOMEM);
    pd_heap_fail_at(-1);
    ck_assert(!worker->has_contribution && !worker->has_hessian);
    ck_assert_uint_eq(pd_heap_blocks_live(), roster.staging.spare_count);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("roster");
    TCase *tests = tcase_create("roster");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, worker_is_found_by_its_number);
    tcase_add_test(tests, workers_whose_numbers_agree_in_their_last_digits_are_all_found);
    tcase_add_test(tests, slot_of_a_removed_worker_is_used_again);
    tcase_add_test(tests, reason_of_a_departure_is_told_for_a_while);
    tcase_add_test(tests, leaver_stays_until_its_step_is_closed_only_if_it_has_pushed);
    tcase_add_test(tests, contributions_that_have_begun_are_counted_by_step);
    tcase_add_loop_test(tests, micro_batch_still_to_be_added_is_found_whatever_it_is_of, 0, 2);
    tcase_add_test(tests, gradient_that_is_taken_gives_its_memory_to_the_next);
    tcase_add_test(tests, who_is_admitted_is_so_for_one_step_where_room_is_limited);
    tcase_add_loop_test(tests, equip_survives_each_failed_allocation, 0, 4);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
