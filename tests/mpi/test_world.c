/* What ranks tell each other at the start: run under mpirun. */
#include "server/mpi/world.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TEXT_BYTES = 64 };

static struct pd_world *world;
static uint32_t rank;
static uint32_t rank_count;

START_TEST(ranks_that_all_succeed_go_on)
{
    struct pd_error error = {0};
    ck_assert_int_eq(pd_world_agree(world, PD_OK, &error), PD_OK);
    ck_assert_str_eq(error.message, "");
}
END_TEST

/* Each rank fails in turn; all of them learn of it and of its words. */
START_TEST(the_failure_of_one_rank_is_told_to_all)
{
    for (uint32_t failing = 0; failing < rank_count; failing++) {
        struct pd_error error = {0};
        char expected[TEXT_BYTES];
        enum pd_status status = PD_OK;
        if (rank == failing) {
            status = pd_error_set(&error, PD_EIO, "port %u in use", 7070 + (unsigned)rank);
        }

        ck_assert_int_eq(pd_world_agree(world, status, &error), PD_EIO);

        (void)snprintf(expected, sizeof expected,
                       failing == 0 ? "port 7070 in use" : "rank %u: port %u in use",
                       (unsigned)failing, 7070 + (unsigned)failing);
        ck_assert_str_eq(error.message, expected);
    }
}
END_TEST

START_TEST(of_several_failures_the_first_rank_is_heard)
{
    struct pd_error error = {0};
    enum pd_status status = PD_OK;
    uint32_t first = rank_count / 2;
    if (rank >= first) {
        status =
            pd_error_set(&error, rank == first ? PD_ECONFIG : PD_ENOMEM, "from %u", (unsigned)rank);
    }

    ck_assert_int_eq(pd_world_agree(world, status, &error), PD_ECONFIG);

    char expected[TEXT_BYTES];
    (void)snprintf(expected, sizeof expected, first == 0 ? "from 0" : "rank %u: from %u",
                   (unsigned)first, (unsigned)first);
    ck_assert_str_eq(error.message, expected);
}
END_TEST

START_TEST(all_get_the_bytes_of_rank_0)
{
    char text[TEXT_BYTES] = "of another rank";
    if (rank == 0) {
        (void)snprintf(text, sizeof text, "of rank 0");
    }
    pd_world_broadcast(world, text, sizeof text);
    pd_world_broadcast(world, text, 0);
    ck_assert_str_eq(text, "of rank 0");
}
END_TEST

START_TEST(all_get_the_text_of_each)
{
    char mine[TEXT_BYTES] = "";
    char expected[TEXT_BYTES] = "";
    char *all = calloc(rank_count, TEXT_BYTES);
    (void)snprintf(mine, sizeof mine, "host%u:%u", (unsigned)rank, 7070 + (unsigned)rank);

    pd_world_gather_texts(world, mine, all, TEXT_BYTES);

    for (uint32_t i = 0; i < rank_count; i++) {
        (void)snprintf(expected, sizeof expected, "host%u:%u", (unsigned)i, 7070 + (unsigned)i);
        ck_assert_str_eq(all + (size_t)i * TEXT_BYTES, expected);
    }
    free(all);
}
END_TEST

int main(void)
{
    struct pd_error error = {0};
    if (pd_world_create(&world, &error) != PD_OK) {
        (void)fprintf(stderr, "%s\n", error.message);
        return EXIT_FAILURE;
    }
    rank = pd_world_rank(world);
    rank_count = pd_world_rank_count(world);

    Suite *suite = suite_create("world");
    TCase *tcase = tcase_create("world");
    tcase_add_test(tcase, ranks_that_all_succeed_go_on);
    tcase_add_test(tcase, the_failure_of_one_rank_is_told_to_all);
    tcase_add_test(tcase, of_several_failures_the_first_rank_is_heard);
    tcase_add_test(tcase, all_get_the_bytes_of_rank_0);
    tcase_add_test(tcase, all_get_the_text_of_each);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    if (failed > 0) {
        /* The other ranks wait for this one: only the launcher can end them. */
        _exit(EXIT_FAILURE);
    }
    pd_world_limit_end(10);
    pd_world_destroy(world);
    return EXIT_SUCCESS;
}
