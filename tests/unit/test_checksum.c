/* Tests of common/checksum.c. */
#include "common/checksum.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static unsigned char bytes[100000];

static void fill(void)
{
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (unsigned char)(i * 31 + i / 251);
    }
}

/* Bit by bit, from the polynomial. */
static uint64_t expected(size_t byte_count)
{
    uint64_t crc = UINT64_MAX;

    for (size_t i = 0; i < byte_count; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xc96c5795d7870f42ull : 0);
        }
    }
    return ~crc;
}

START_TEST(the_sum_is_that_of_crc64_xz)
{
    ck_assert_uint_eq(pd_checksum_add(PD_CHECKSUM_EMPTY, "123456789", 9), 0x995dc9bbdf1939faull);
    ck_assert_uint_eq(pd_checksum_add(PD_CHECKSUM_EMPTY, NULL, 0), PD_CHECKSUM_EMPTY);
}
END_TEST

/* The library has other loops for short and for long runs of bytes. */
START_TEST(every_length_has_its_sum)
{
    fill();
    for (size_t count = 0; count < 1200; count++) {
        ck_assert_uint_eq(pd_checksum_add(PD_CHECKSUM_EMPTY, bytes, count), expected(count));
    }
    ck_assert_uint_eq(pd_checksum_add(PD_CHECKSUM_EMPTY, bytes, sizeof bytes),
                      expected(sizeof bytes));
}
END_TEST

START_TEST(pieces_sum_like_the_whole)
{
    fill();
    uint64_t whole = pd_checksum_add(PD_CHECKSUM_EMPTY, bytes, sizeof bytes);
    uint64_t sum = PD_CHECKSUM_EMPTY;

    for (size_t i = 0, piece = 1; i < sizeof bytes; i += piece, piece = piece * 2 + 1) {
        size_t left = sizeof bytes - i;
        sum = pd_checksum_add(sum, bytes + i, piece < left ? piece : left);
    }
    ck_assert_uint_eq(sum, whole);
    for (size_t first = 0; first < sizeof bytes; first += 4999) {
        sum = pd_checksum_add_from_memory(PD_CHECKSUM_EMPTY, bytes, first);
        sum = pd_checksum_add_from_memory(sum, bytes + first, sizeof bytes - first);
        ck_assert_uint_eq(sum, whole);
    }
}
END_TEST

START_TEST(one_flipped_bit_changes_the_sum)
{
    memset(bytes, 0, sizeof bytes);
    uint64_t before = pd_checksum_add(PD_CHECKSUM_EMPTY, bytes, sizeof bytes);
    bytes[sizeof bytes - 1] ^= 0x80;
    ck_assert_uint_ne(pd_checksum_add(PD_CHECKSUM_EMPTY, bytes, sizeof bytes), before);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("checksum");
    TCase *cases = tcase_create("checksum");
    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, the_sum_is_that_of_crc64_xz);
    tcase_add_test(cases, every_length_has_its_sum);
    tcase_add_test(cases, pieces_sum_like_the_whole);
    tcase_add_test(cases, one_flipped_bit_changes_the_sum);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
