/* Tests of common/cursor.c. */
#include "common/cursor.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t bytes[] = {1,    0x03, 0x02, 0x07, 0x06, 0x05, 0x04, 0x0f, 0x0e,
                                0x0d, 0x0c, 0x0b, 0x0a, 0x09, 0x08, 'a',  'b'};

START_TEST(integers_are_read_little_endian)
{
    struct pd_read_cursor cursor;
    char text[2];
    pd_read_cursor_init(&cursor, bytes, sizeof bytes);
    ck_assert_uint_eq(pd_cursor_read_u8(&cursor), 1);
    ck_assert_uint_eq(pd_cursor_read_u16(&cursor), 0x0203);
    ck_assert_uint_eq(pd_cursor_read_u32(&cursor), 0x04050607);
    ck_assert_uint_eq(pd_cursor_read_u64(&cursor), 0x08090a0b0c0d0e0full);
    pd_cursor_read_bytes(&cursor, text, 2);
    ck_assert_mem_eq(text, "ab", 2);
    ck_assert_int_eq(cursor.status, PD_OK);
    ck_assert_uint_eq(cursor.offset, sizeof bytes);
}
END_TEST

START_TEST(what_is_written_reads_the_same)
{
    struct pd_write_cursor cursor;
    uint8_t written[sizeof bytes];
    pd_write_cursor_init(&cursor, written, sizeof written);
    pd_cursor_write_u8(&cursor, 1);
    pd_cursor_write_u16(&cursor, 0x0203);
    pd_cursor_write_u32(&cursor, 0x04050607);
    pd_cursor_write_u64(&cursor, 0x08090a0b0c0d0e0full);
    pd_cursor_write_bytes(&cursor, "ab", 2);
    ck_assert_int_eq(cursor.status, PD_OK);
    ck_assert_mem_eq(written, bytes, sizeof bytes);
}
END_TEST

START_TEST(a_read_past_the_end_stays_the_first_fault)
{
    struct pd_read_cursor cursor;
    char text[8] = "unread";
    pd_read_cursor_init(&cursor, bytes, 3);
    (void)pd_cursor_read_u8(&cursor);
    ck_assert_uint_eq(pd_cursor_read_u32(&cursor), 0);
    ck_assert_uint_eq(pd_cursor_read_u8(&cursor), 0); /* It would fit. */
    pd_cursor_read_bytes(&cursor, text, 1);
    ck_assert_str_eq(text, "unread");
    ck_assert_int_eq(cursor.status, PD_EPROTOCOL);
    ck_assert_uint_eq(cursor.offset, 1);
}
END_TEST

START_TEST(a_write_past_the_end_writes_nothing_from_then_on)
{
    struct pd_write_cursor cursor;
    uint8_t written[4] = {9, 9, 9, 9};
    pd_write_cursor_init(&cursor, written, 3);
    pd_cursor_write_u16(&cursor, 0);
    pd_cursor_write_u32(&cursor, 0);
    pd_cursor_write_u8(&cursor, 0); /* It would fit. */
    ck_assert_int_eq(cursor.status, PD_ELIMIT);
    ck_assert_uint_eq(cursor.offset, 2);
    ck_assert_mem_eq(written, "\0\0\x09\x09", 4);
}
END_TEST

START_TEST(a_huge_length_does_not_wrap_around)
{
    struct pd_read_cursor cursor;
    char text[8];
    pd_read_cursor_init(&cursor, bytes, sizeof bytes);
    (void)pd_cursor_read_u8(&cursor);
    pd_cursor_read_bytes(&cursor, text, SIZE_MAX);
    ck_assert_int_eq(cursor.status, PD_EPROTOCOL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cursor");
    TCase *cases = tcase_create("cursor");
    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, integers_are_read_little_endian);
    tcase_add_test(cases, what_is_written_reads_the_same);
    tcase_add_test(cases, a_read_past_the_end_stays_the_first_fault);
    tcase_add_test(cases, a_write_past_the_end_writes_nothing_from_then_on);
    tcase_add_test(cases, a_huge_length_does_not_wrap_around);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
