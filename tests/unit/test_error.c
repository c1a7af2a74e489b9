/* Tests of common/error.c and common/text.c. */
#include "common/error.h"
#include "common/text.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

START_TEST(set_fills_status_and_message_and_returns_the_status)
{
    struct pd_error error = {0};
    ck_assert_int_eq(pd_error_set(&error, PD_ESTEP, "step %d of %s", 7, "x"), PD_ESTEP);
    ck_assert_int_eq(error.status, PD_ESTEP);
    ck_assert_str_eq(error.message, "step 7 of x");
    ck_assert_int_eq(pd_error_set(NULL, PD_EIO, "nobody listens"), PD_EIO);
}
END_TEST

START_TEST(a_long_message_is_cut_between_characters)
{
    struct pd_error error = {0};
    char text[2 * PD_ERROR_BYTES_MAX];
    memset(text, 'a', PD_ERROR_BYTES_MAX - 2);
    /* The cut falls between the two bytes of this one. */
    memcpy(text + PD_ERROR_BYTES_MAX - 2, "\xc3\xa9 and more", 12);
    (void)pd_error_set(&error, PD_EIO, "%s", text);
    ck_assert_uint_eq(strlen(error.message), PD_ERROR_BYTES_MAX - 2);
    ck_assert(pd_text_valid(error.message, strlen(error.message)));
}
END_TEST

START_TEST(a_message_stays_one_line)
{
    struct pd_error error = {0};
    (void)pd_error_set(&error, PD_EIO, "%s", "two\nlines\x1b[31m\xff");
    ck_assert_str_eq(error.message, "two?lines?[31m?");
}
END_TEST

START_TEST(prefix_goes_before_and_keeps_the_status)
{
    struct pd_error error = {0};
    (void)pd_error_set(&error, PD_EIO, "no space");
    ck_assert_int_eq(pd_error_prefix(&error, "rank %d", 3), PD_EIO);
    ck_assert_str_eq(error.message, "rank 3: no space");
}
END_TEST

START_TEST(prefix_of_a_full_message_stays_within_bounds)
{
    struct pd_error error = {0};
    char text[PD_ERROR_BYTES_MAX];
    memset(text, 'b', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    (void)pd_error_set(&error, PD_EIO, "%s", text);
    (void)pd_error_prefix(&error, "%s", text);
    ck_assert_uint_eq(strlen(error.message), PD_ERROR_BYTES_MAX - 1);
}
END_TEST

START_TEST(every_status_has_a_name_of_its_own)
{
    for (int i = PD_OK; i <= PD_EDUPLICATE; i++) {
        ck_assert_str_ne(pd_status_name((enum pd_status)i), "unknown");
        for (int j = PD_OK; j < i; j++) {
            ck_assert_str_ne(pd_status_name((enum pd_status)i), pd_status_name((enum pd_status)j));
        }
    }
    ck_assert_str_eq(pd_status_name((enum pd_status)(PD_EDUPLICATE + 1)), "unknown");
    ck_assert_str_eq(pd_status_name((enum pd_status)9999), "unknown");
}
END_TEST

static const struct {
    const char *text;
    bool valid;
} texts[] = {
    {"", true},
    {"layer.0/weight", true},
    {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", true}, /* 2, 3 and 4 bytes */
    {"tab\there", false},
    {"delete\x7f", false},
    {"c1 \xc2\x85", false},
    {"\x80", false},             /* continuation alone */
    {"\xc0\xaf", false},         /* overlong */
    {"\xe0\x80\xaf", false},     /* overlong */
    {"\xf0\x80\x80\xaf", false}, /* overlong */
    {"\xed\xa0\x80", false},     /* surrogate */
    {"\xf4\x90\x80\x80", false}, /* beyond U+10FFFF */
    {"\xff", false},
    {"cut \xe2\x82", false},
};

START_TEST(text_is_valid_only_as_printable_utf8)
{
    ck_assert_int_eq(pd_text_valid(texts[_i].text, strlen(texts[_i].text)), texts[_i].valid);
}
END_TEST

START_TEST(a_cleaned_text_is_valid)
{
    char text[32];
    strcpy(text, texts[_i].text);
    pd_text_clean(text);
    ck_assert(pd_text_valid(text, strlen(text)));
    if (texts[_i].valid) {
        ck_assert_str_eq(text, texts[_i].text);
    }
}
END_TEST

int main(void)
{
    const int text_count = (int)(sizeof texts / sizeof texts[0]);
    Suite *suite = suite_create("error");
    TCase *cases = tcase_create("error");
    tcase_add_test(cases, set_fills_status_and_message_and_returns_the_status);
    tcase_add_test(cases, a_long_message_is_cut_between_characters);
    tcase_add_test(cases, a_message_stays_one_line);
    tcase_add_test(cases, prefix_goes_before_and_keeps_the_status);
    tcase_add_test(cases, prefix_of_a_full_message_stays_within_bounds);
    tcase_add_test(cases, every_status_has_a_name_of_its_own);
    tcase_add_loop_test(cases, text_is_valid_only_as_printable_utf8, 0, text_count);
    tcase_add_loop_test(cases, a_cleaned_text_is_valid, 0, text_count);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
