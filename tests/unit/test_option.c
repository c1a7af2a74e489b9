/* Values: what each type of option takes and what it says to the rest. */
#include "common/heap.h"
#include "server/core/option.h"

#include <check.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const char *const words[] = {"first", "second", NULL};

struct fields {
    bool truth;
    uint64_t whole;
    double real;
    double reals[3];
    char text[9];
    struct {
        uint32_t count;
        char texts[2][5];
    } list;
    int choice;
};

#define FIELD(name) .offset = offsetof(struct fields, name)

static const struct pd_option truth = {
    .key = "k", .type = PD_OPTION_BOOL, FIELD(truth), .default_text = "true"};
static const struct pd_option whole = {
    .key = "k", .type = PD_OPTION_UINT, FIELD(whole), .default_text = "7", .low = 1, .high = 100};
static const struct pd_option whole_or_null = {.key = "k",
                                               .type = PD_OPTION_UINT,
                                               FIELD(whole),
                                               .default_text = "null",
                                               .low = 1,
                                               .high = 9007199254740992.0,
                                               .nullable = 1};
static const struct pd_option real = {.key = "k",
                                      .type = PD_OPTION_REAL,
                                      FIELD(real),
                                      .default_text = "1e-3",
                                      .low = 0,
                                      .high = INFINITY,
                                      .high_open = 1};
static const struct pd_option real_or_inf = {.key = "k",
                                             .type = PD_OPTION_REAL,
                                             FIELD(real),
                                             .default_text = "2",
                                             .low = 0,
                                             .low_open = 1,
                                             .high = INFINITY,
                                             .nullable = 1};
static const struct pd_option pair = {.key = "k",
                                      .type = PD_OPTION_REALS2,
                                      FIELD(reals),
                                      .default_text = "[0.9, 0.999]",
                                      .low = 0,
                                      .high = 1,
                                      .high_open = 1};
static const struct pd_option triple = {.key = "k",
                                        .type = PD_OPTION_REALS3,
                                        FIELD(reals),
                                        .default_text = "[0.1, 0.2, 0.3]",
                                        .low = -1,
                                        .high = 1};
static const struct pd_option text = {
    .key = "k", .type = PD_OPTION_TEXT, FIELD(text), .default_text = "eight", .high = 8};
static const struct pd_option text_or_null = {.key = "k",
                                              .type = PD_OPTION_TEXT,
                                              FIELD(text),
                                              .default_text = "null",
                                              .high = 8,
                                              .nullable = 1};
static const struct pd_option list = {.key = "k",
                                      .type = PD_OPTION_TEXTS,
                                      FIELD(list),
                                      .default_text = "null",
                                      .low = 2,
                                      .high = 4,
                                      .nullable = 1};
static const struct pd_option choice = {.key = "k",
                                        .type = PD_OPTION_CHOICE,
                                        FIELD(choice),
                                        .default_text = "second",
                                        .choices = words};

/* Read one value as YAML, as if it stood in the line 1 of a file called "f". */
static enum pd_status read_value(const struct pd_option *option, const char *value,
                                 struct fields *fields, struct pd_error *error)
{
    struct pd_config_source source = {.file = "f"};
    struct pd_node *node;

    ck_assert_int_eq(pd_node_parse(&node, &source, value, error), PD_OK);
    enum pd_status status = pd_option_read(option, "k", node, fields, error);
    pd_node_destroy(node);
    return status;
}

static const struct {
    const char *value;
    double expected;
} numbers[] = {
    {"0", 0},  {"1e-3", 1e-3},   {"1.5", 1.5},       {".5", 0.5}, {"5.", 5},
    {"+2", 2}, {"1E+2", 100},    {"2.5e1", 25},      {"0.0", 0},  {"00.5", 0.5},
    {"-0", 0}, {"1e300", 1e300}, {"1e-300", 1e-300},
};

START_TEST(numbers_are_read_with_an_exponent_and_without)
{
    struct fields fields = {0};
    struct pd_error error = {0};

    ck_assert_int_eq(read_value(&real, numbers[_i].value, &fields, &error), PD_OK);
    ck_assert_double_eq(fields.real, numbers[_i].expected);
}
END_TEST

static const char *const infinities[] = {"inf", ".inf", "+.inf", ".Inf", ".INF", "+inf"};

START_TEST(infinity_is_read_where_it_is_allowed_and_only_there)
{
    struct fields fields = {0};
    struct pd_error error = {0};

    ck_assert_int_eq(read_value(&real_or_inf, infinities[_i], &fields, &error), PD_OK);
    ck_assert(isinf(fields.real));
    ck_assert_int_eq(read_value(&real, infinities[_i], &fields, &error), PD_ECONFIG);
}
END_TEST

static const struct {
    const struct pd_option *option;
    const char *value;
    const char *message;
} refusals[] = {
    {&truth, "1", "f:1: k: 1: neither true nor false; allowed: true or false"},
    {&truth, "\"true\"", "f:1: k: \"true\": neither true nor false; allowed: true or false"},
    {&truth, "~", "f:1: k: no value; allowed: true or false"},
    {&whole, "0", "f:1: k: 0: out of range; allowed: a whole number from 1 to 100"},
    {&whole, "101", "f:1: k: 101: out of range; allowed: a whole number from 1 to 100"},
    {&whole, "-1", "f:1: k: -1: out of range; allowed: a whole number from 1 to 100"},
    {&whole, "inf", "f:1: k: inf: out of range; allowed: a whole number from 1 to 100"},
    {&whole, "1.5", "f:1: k: 1.5: not a whole number; allowed: a whole number from 1 to 100"},
    {&whole, "010", "f:1: k: 010: not a whole number; allowed: a whole number from 1 to 100"},
    {&whole, "0x10", "f:1: k: 0x10: not a whole number; allowed: a whole number from 1 to 100"},
    {&whole, "1_0", "f:1: k: 1_0: not a whole number; allowed: a whole number from 1 to 100"},
    {&whole, "\"5\"", "f:1: k: \"5\": not a whole number; allowed: a whole number from 1 to 100"},
    {&whole, "[5]",
     "f:1: k: a list of 1: not a whole number; allowed: a whole number from 1 to "
     "100"},
    {&whole, "{a: 5}",
     "f:1: k: a mapping: not a whole number; allowed: a whole number from 1 to "
     "100"},
    {&whole_or_null, "0", "f:1: k: 0: out of range; allowed: a whole number >= 1, or null"},
    {&whole_or_null, "1e300", "f:1: k: 1e300: out of range; allowed: a whole number >= 1, or null"},
    {&real, "nan", "f:1: k: nan: not a number; allowed: a number >= 0"},
    {&real, ".nan", "f:1: k: .nan: not a number; allowed: a number >= 0"},
    {&real, "-1e-9", "f:1: k: -1e-9: out of range; allowed: a number >= 0"},
    {&real, "1e999", "f:1: k: 1e999: beyond what a float64 holds; allowed: a number >= 0"},
    {&real, "1e", "f:1: k: 1e: not a number; allowed: a number >= 0"},
    {&real, "e5", "f:1: k: e5: not a number; allowed: a number >= 0"},
    {&real, ".", "f:1: k: .: not a number; allowed: a number >= 0"},
    {&real, "1:30", "f:1: k: 1:30: not a number; allowed: a number >= 0"},
    {&real, "1 2", "f:1: k: 1 2: not a number; allowed: a number >= 0"},
    {&real_or_inf, "0", "f:1: k: 0: out of range; allowed: a number > 0, or inf, or null"},
    {&real_or_inf, "-inf", "f:1: k: -inf: out of range; allowed: a number > 0, or inf, or null"},
    {&pair, "[0, 1]", "f:1: k: 1: out of range; allowed: a list of 2 numbers >= 0 and < 1"},
    {&pair, "[0]",
     "f:1: k: a list of 1: not that many numbers; allowed: a list of 2 numbers >= 0 and < 1"},
    {&pair, "0.9", "f:1: k: 0.9: not that many numbers; allowed: a list of 2 numbers >= 0 and < 1"},
    {&pair, "[[0], 0]",
     "f:1: k: a list of 1: not a number; allowed: a list of 2 numbers >= 0 and < 1"},
    {&triple, "[0, 0, 2]", "f:1: k: 2: out of range; allowed: a list of 3 numbers from -1 to 1"},
    {&text, "null", "f:1: k: no value; allowed: a text of at most 8 bytes"},
    {&text, "\"\"", "f:1: k: \"\": empty; allowed: a text of at most 8 bytes"},
    {&text, "nine bytes", "f:1: k: nine bytes: too long; allowed: a text of at most 8 bytes"},
    {&text, "[a]", "f:1: k: a list of 1: not a text; allowed: a text of at most 8 bytes"},
    {&text, "\"a\\nb\"",
     "f:1: k: \"a?b\": not one line of UTF-8; allowed: a text of at most 8 bytes"},
    {&list, "[a, b, c]",
     "f:1: k: a list of 3: too many; allowed: a text, or a list of at most 2, "
     "of at most 4 bytes each, or null"},
    {&list, "[a, [b]]",
     "f:1: k: a list of 1: not a text; allowed: a text, or a list of at most "
     "2, of at most 4 bytes each, or null"},
    {&list, "{a: b}",
     "f:1: k: a mapping: not a text; allowed: a text, or a list of at most 2, of "
     "at most 4 bytes each, or null"},
    {&choice, "third", "f:1: k: third: not one of the words; allowed: first, second"},
    {&choice, "First", "f:1: k: First: not one of the words; allowed: first, second"},
    {&choice, "~", "f:1: k: no value; allowed: first, second"},
    {&choice, "[first]", "f:1: k: a list of 1: not one of the words; allowed: first, second"},
};

START_TEST(a_wrong_value_is_refused_with_place_key_value_and_what_is_allowed)
{
    struct fields fields = {0};
    struct pd_error error = {0};

    ck_assert_int_eq(read_value(refusals[_i].option, refusals[_i].value, &fields, &error),
                     PD_ECONFIG);
    ck_assert_str_eq(error.message, refusals[_i].message);
}
END_TEST

START_TEST(truth_values_are_those_of_yaml)
{
    static const char *const yes[] = {"true", "True", "TRUE", "yes", "on"};
    static const char *const no[] = {"false", "False", "FALSE", "no", "off"};
    struct fields fields;
    struct pd_error error = {0};

    for (size_t i = 0; i < 5; i++) {
        fields.truth = false;
        ck_assert_int_eq(read_value(&truth, yes[i], &fields, &error), PD_OK);
        ck_assert(fields.truth);
        ck_assert_int_eq(read_value(&truth, no[i], &fields, &error), PD_OK);
        ck_assert(!fields.truth);
    }
}
END_TEST

START_TEST(whole_numbers_may_have_an_exponent_and_keep_every_digit)
{
    struct fields fields = {0};
    struct pd_error error = {0};

    ck_assert_int_eq(read_value(&whole, "1e2", &fields, &error), PD_OK);
    ck_assert_uint_eq(fields.whole, 100);
    ck_assert_int_eq(read_value(&whole_or_null, "9007199254740991", &fields, &error), PD_OK);
    ck_assert_uint_eq(fields.whole, 9007199254740991u);
}
END_TEST

START_TEST(null_clears_what_may_be_null)
{
    static const char *const nulls[] = {"null", "~", "Null", "NULL"};
    struct fields fields = {.whole = 3, .real = 4, .text = "five", .list = {.count = 2}};
    struct pd_error error = {0};

    ck_assert_int_eq(read_value(&whole_or_null, nulls[_i], &fields, &error), PD_OK);
    ck_assert_uint_eq(fields.whole, 0);
    ck_assert_int_eq(read_value(&real_or_inf, nulls[_i], &fields, &error), PD_OK);
    ck_assert(isnan(fields.real));
    ck_assert_int_eq(read_value(&text_or_null, nulls[_i], &fields, &error), PD_OK);
    ck_assert_str_eq(fields.text, "");
    ck_assert_int_eq(read_value(&list, nulls[_i], &fields, &error), PD_OK);
    ck_assert_uint_eq(fields.list.count, 0);
}
END_TEST

START_TEST(null_in_quotes_is_a_text)
{
    struct fields fields = {0};
    struct pd_error error = {0};

    ck_assert_int_eq(read_value(&text_or_null, "\"null\"", &fields, &error), PD_OK);
    ck_assert_str_eq(fields.text, "null");
}
END_TEST

START_TEST(a_list_of_texts_may_be_one_text)
{
    struct fields fields = {0};
    struct pd_error error = {0};

    ck_assert_int_eq(read_value(&list, "[\"*.b\", four]", &fields, &error), PD_OK);
    ck_assert_uint_eq(fields.list.count, 2);
    ck_assert_str_eq(fields.list.texts[0], "*.b");
    ck_assert_str_eq(fields.list.texts[1], "four");
    ck_assert_int_eq(read_value(&list, "one", &fields, &error), PD_OK);
    ck_assert_uint_eq(fields.list.count, 1);
    ck_assert_str_eq(fields.list.texts[0], "one");
}
END_TEST

START_TEST(defaults_fill_every_field)
{
    const struct pd_option rows[] = {truth, whole, real, pair, text, choice};
    struct fields fields = {0};
    struct pd_error error = {0};

    ck_assert_int_eq(pd_option_defaults(rows, 6, &fields, &error), PD_OK);
    ck_assert(fields.truth);
    ck_assert_uint_eq(fields.whole, 7);
    ck_assert_double_eq(fields.real, 1e-3);
    ck_assert_double_eq(fields.reals[0], 0.9);
    ck_assert_double_eq(fields.reals[1], 0.999);
    ck_assert_str_eq(fields.text, "eight");
    ck_assert_int_eq(fields.choice, 1);
}
END_TEST

START_TEST(defaults_say_when_memory_runs_out_and_keep_none)
{
    const struct pd_option rows[] = {truth, triple};
    struct fields fields = {0};
    size_t begin = pd_heap_allocations();

    ck_assert_int_eq(pd_option_defaults(rows, 2, &fields, NULL), PD_OK);
    size_t allocations = pd_heap_allocations() - begin;
    for (size_t i = 0; i < allocations; i++) {
        struct pd_error error = {0};
        pd_heap_fail_at((long)i);
        ck_assert_int_eq(pd_option_defaults(rows, 2, &fields, &error), PD_ENOMEM);
        ck_assert_str_eq(error.message, "configuration: default");
        ck_assert_uint_eq(pd_heap_blocks_live(), 0);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("option");
    TCase *tcase = tcase_create("values");

    tcase_add_loop_test(tcase, numbers_are_read_with_an_exponent_and_without, 0,
                        (int)(sizeof numbers / sizeof numbers[0]));
    tcase_add_loop_test(tcase, infinity_is_read_where_it_is_allowed_and_only_there, 0, 6);
    tcase_add_loop_test(tcase, a_wrong_value_is_refused_with_place_key_value_and_what_is_allowed, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_test(tcase, truth_values_are_those_of_yaml);
    tcase_add_test(tcase, whole_numbers_may_have_an_exponent_and_keep_every_digit);
    tcase_add_loop_test(tcase, null_clears_what_may_be_null, 0, 4);
    tcase_add_test(tcase, null_in_quotes_is_a_text);
    tcase_add_test(tcase, a_list_of_texts_may_be_one_text);
    tcase_add_test(tcase, defaults_fill_every_field);
    tcase_add_test(tcase, defaults_say_when_memory_runs_out_and_keep_none);
    suite_add_tcase(suite, tcase);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
