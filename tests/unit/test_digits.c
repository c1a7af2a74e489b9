/* The digits: reading, refusing, splitting. */
#include "client/worker/digits.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct digits train;
static struct digits test;
static char message[512];

static void teardown(void)
{
    digits_finish(&train);
    digits_finish(&test);
}

/* A file of `count` blank images that show 0, 1, 2, ..., with another line at the end. */
static void load_blank(uint32_t count, const char *last, int expected)
{
    char path[] = "/tmp/digits-XXXXXX";
    FILE *file = fdopen(mkstemp(path), "w");

    ck_assert_ptr_nonnull(file);
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t p = 0; p < DIGITS_PIXEL_COUNT; p++) {
            fprintf(file, "%u,", p == 0 ? 16 : 0);
        }
        fprintf(file, "%u\n", i % 10);
    }
    fputs(last, file);
    fclose(file);
    int loaded = digits_load(&train, &test, path, message, sizeof message);
    unlink(path);
    ck_assert_int_eq(loaded, expected);
}

START_TEST(the_whole_set_is_split_by_every_fifth_image)
{
    uint32_t classes[DIGITS_CLASS_COUNT] = {0};
    ck_assert_int_eq(digits_load(&train, &test, PD_DIGITS_FILE, message, sizeof message), 1);
    ck_assert_uint_eq(train.count, 1437);
    ck_assert_uint_eq(test.count, 360);
    for (uint32_t i = 0; i < test.count; i++) {
        classes[test.labels[i]]++;
    }
    for (uint32_t k = 0; k < DIGITS_CLASS_COUNT; k++) {
        ck_assert_uint_gt(classes[k], 20);
    }
}
END_TEST

START_TEST(images_keep_their_order_and_grey_values_become_fractions)
{
    load_blank(11, "", 1);
    ck_assert_uint_eq(test.count, 3);
    ck_assert_uint_eq(train.count, 8);
    ck_assert_uint_eq(test.labels[1], 5);
    ck_assert_uint_eq(train.labels[4], 6);
    ck_assert(train.pixels[7 * DIGITS_PIXEL_COUNT] == 1.0f);
    ck_assert(train.pixels[7 * DIGITS_PIXEL_COUNT + 1] == 0.0f);
}
END_TEST

START_TEST(workers_parts_are_disjoint_and_cover_the_training_images)
{
    uint32_t total = 0;
    for (uint32_t index = 0; index < 3; index++) {
        load_blank(50, "", 1);
        digits_keep_part(&train, index, 3);
        total += train.count;
        /* Training images are 1 2 3 4 6 7 8 9 11 ... */
        ck_assert_uint_eq(train.labels[0], index + 1);
        ck_assert_uint_eq(train.labels[1], index == 0 ? 4 : index == 1 ? 6 : 7);
        teardown();
    }
    ck_assert_uint_eq(total, 40);
}
END_TEST

/* Too few values, a grey value and a digit out of range, no number, one too many, a sign. */
START_TEST(a_bad_line_is_named)
{
    static const char *const lines[] = {"1,2,3\n", "", "", "x\n", "", ""};
    char line[512] = "";
    if (lines[_i][0] != '\0') {
        snprintf(line, sizeof line, "%s", lines[_i]);
    } else {
        for (uint32_t p = 0; p < DIGITS_PIXEL_COUNT; p++) {
            strcat(line, _i == 1 && p == 9 ? "17," : _i == 5 && p == 9 ? "-1," : "0,");
        }
        strcat(line, _i == 2 ? "10\n" : _i == 4 ? "1,1\n" : "1\n");
    }
    load_blank(4, line, 0);
    ck_assert_ptr_nonnull(strstr(message, "line 5: not 64 grey values"));
    ck_assert_uint_eq(train.count, 0);
    ck_assert_ptr_null(train.pixels);
}
END_TEST

START_TEST(a_missing_or_empty_file_is_told)
{
    ck_assert_int_eq(digits_load(&train, &test, "/nonexistent/x", message, sizeof message), 0);
    ck_assert_str_eq(message, "/nonexistent/x: No such file or directory");
    load_blank(0, "", 0);
    ck_assert_ptr_nonnull(strstr(message, "fewer than two images"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("digits");
    TCase *tests = tcase_create("digits");

    tcase_add_checked_fixture(tests, NULL, teardown);
    tcase_add_test(tests, the_whole_set_is_split_by_every_fifth_image);
    tcase_add_test(tests, images_keep_their_order_and_grey_values_become_fractions);
    tcase_add_test(tests, workers_parts_are_disjoint_and_cover_the_training_images);
    tcase_add_loop_test(tests, a_bad_line_is_named, 0, 6);
    tcase_add_test(tests, a_missing_or_empty_file_is_told);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
