/* Tests of common/checksum.c. */
#include "common/checksum.h"

#include "common/heap.h"

#include <check.h>
#include <stdlib.h>

static struct pd_checksum *create(void)
{
    struct pd_checksum *checksum = NULL;
    ck_assert_int_eq(pd_checksum_create(&checksum, NULL), PD_OK);
    return checksum;
}

START_TEST(the_sum_of_nothing_is_that_of_xxh3)
{
    struct pd_checksum *checksum = create();
    ck_assert_uint_eq(pd_checksum_value(checksum), 0x2d06800538d394c2ull);
    pd_checksum_destroy(checksum);
}
END_TEST

START_TEST(pieces_sum_like_the_whole)
{
    static unsigned char bytes[100000];
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (unsigned char)(i * 31 + i / 251);
    }
    struct pd_checksum *checksum = create();
    pd_checksum_update(checksum, bytes, sizeof bytes);
    uint64_t whole = pd_checksum_value(checksum);

    pd_checksum_reset(checksum);
    for (size_t i = 0, piece = 1; i < sizeof bytes; i += piece, piece = piece * 2 + 1) {
        size_t left = sizeof bytes - i;
        pd_checksum_update(checksum, bytes + i, piece < left ? piece : left);
    }
    ck_assert_uint_eq(pd_checksum_value(checksum), whole);
    for (size_t first = 0; first < sizeof bytes; first += 4999) {
        pd_checksum_reset(checksum);
        pd_checksum_update_from_memory(checksum, bytes, first);
        pd_checksum_update_from_memory(checksum, bytes + first, sizeof bytes - first);
        ck_assert_uint_eq(pd_checksum_value(checksum), whole);
    }
    pd_checksum_destroy(checksum);
}
END_TEST

/* The expected sum is that of XXH3-64 in plain C, without vectors. */
START_TEST(the_sum_is_the_same_on_every_machine)
{
    static unsigned char bytes[100000];
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (unsigned char)(i * 31 + i / 251);
    }
    struct pd_checksum *checksum = create();
    pd_checksum_update(checksum, bytes, sizeof bytes);
    ck_assert_uint_eq(pd_checksum_value(checksum), 0x6472d1b70e882fabull);
    pd_checksum_destroy(checksum);
}
END_TEST

START_TEST(one_flipped_bit_changes_the_sum)
{
    unsigned char bytes[64] = {0};
    struct pd_checksum *checksum = create();
    pd_checksum_update(checksum, bytes, sizeof bytes);
    uint64_t before = pd_checksum_value(checksum);
    bytes[63] ^= 0x80;
    pd_checksum_reset(checksum);
    pd_checksum_update(checksum, bytes, sizeof bytes);
    ck_assert_uint_ne(pd_checksum_value(checksum), before);
    pd_checksum_destroy(checksum);
}
END_TEST

START_TEST(create_survives_a_failed_allocation)
{
    struct pd_error error = {0};
    struct pd_checksum *checksum = NULL;
    pd_heap_fail_at(0);
    ck_assert_int_eq(pd_checksum_create(&checksum, &error), PD_ENOMEM);
    ck_assert_ptr_null(checksum);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("checksum");
    TCase *cases = tcase_create("checksum");
    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, the_sum_of_nothing_is_that_of_xxh3);
    tcase_add_test(cases, pieces_sum_like_the_whole);
    tcase_add_test(cases, the_sum_is_the_same_on_every_machine);
    tcase_add_test(cases, one_flipped_bit_changes_the_sum);
    tcase_add_test(cases, create_survives_a_failed_allocation);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
