/* Every option of the configuration, wherever it may stand: a value of another type or out of
 * bounds is answered with file, line, key, the value and what is allowed. */
#include "common/heap.h"
#include "server/core/config_options.h"

#include <check.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_BYTES 16384u

/* Where options of a table stand: the lines before them, how far in, and their path. */
struct place {
    char before[256];
    int indent;
    char path[64]; /* with its dot; empty at the top */
};

/* Values tried so far, so that a table that is walked in vain is noticed. */
static unsigned tried;

static unsigned lines_in(const char *text)
{
    unsigned count = 0;

    for (; *text != '\0'; text++) {
        count += *text == '\n';
    }
    return count;
}

static void expect(const char *message, const char *text, const char *begin, const char *end)
{
    size_t bytes = strlen(message);

    ck_assert_msg(strncmp(message, begin, strlen(begin)) == 0, "%s\n%.400s\nnot as: %s", message,
                  text, begin);
    ck_assert_msg(bytes >= strlen(end) && strcmp(message + bytes - strlen(end), end) == 0,
                  "%s\n%.400s\nends not in: %s", message, text, end);
}

/* The value in a file, and once more as a setting. */
static void try(const struct place *place, const struct pd_option *option, const char *value,
                const char *shown, const char *allowed)
{
    static char text[TEXT_BYTES];
    static char setting[TEXT_BYTES];
    static char begin[TEXT_BYTES];
    const char *const settings[] = {setting};
    const char *dot = strrchr(option->key, '.');
    const char *local = dot != NULL ? dot + 1 : option->key;
    struct pd_config *config = NULL;
    struct pd_error error = {0};
    char end[400];

    snprintf(end, sizeof end, "; allowed: %s", allowed);
    snprintf(text, sizeof text, "%s%*s%s: %s\n", place->before, place->indent, "", local, value);
    ck_assert_msg(pd_config_create(&config, "f", text, NULL, 0, &error) == PD_ECONFIG,
                  "taken: %.400s", text);
    snprintf(begin, sizeof begin, "f:%u: %s%s: %s", lines_in(place->before) + 1, place->path, local,
             shown);
    expect(error.message, text, begin, end);

    snprintf(setting, sizeof setting, "%s%s=%s", place->path, local, value);
    ck_assert_int_eq(pd_config_create(&config, "f", place->before, settings, 1, &error),
                     PD_ECONFIG);
    snprintf(begin, sizeof begin, "%s%s: %s", place->path, local, shown);
    const char *key = strstr(error.message, begin);
    ck_assert_msg(strncmp(error.message, "--set ", 6) == 0 && key != NULL, "%s\n%.400s",
                  error.message, setting);
    expect(key, setting, begin, end);
    tried++;
}

static void try_number(const struct place *place, const struct pd_option *option,
                       const char *allowed, const char *format, double number)
{
    char scalar[64];
    char value[256];

    snprintf(scalar, sizeof scalar, "%.17g", number);
    snprintf(value, sizeof value, format, scalar);
    try(place, option, value, scalar, allowed);
}

/* The nearest numbers that are out of bounds, in a list if the format makes one. */
static void try_bounds(const struct place *place, const struct pd_option *option,
                       const char *allowed, const char *format)
{
    bool whole = option->type == PD_OPTION_UINT;
    double below = whole ? option->low - 1 : nextafter(option->low, -INFINITY);
    double above = whole ? option->high + 1 : nextafter(option->high, INFINITY);

    try_number(place, option, allowed, format, option->low_open ? option->low : below);
    if (isfinite(option->high) && (!whole || option->high < 9007199254740992.0)) {
        try_number(place, option, allowed, format, option->high_open ? option->high : above);
    } else if (isinf(option->high) && option->high_open) {
        try_number(place, option, allowed, format, INFINITY);
    }
}

static const struct {
    const char *value;
    const char *shown;
} no_numbers[] = {
    {"many", "many"},       {"\"1\"", "\"1\""},      {".nan", ".nan"},
    {"[1]", "a list of 1"}, {"{a: 1}", "a mapping"},
};

/* A long text, and a list that is too long. */
static void try_texts(const struct place *place, const struct pd_option *option,
                      const char *allowed)
{
    static char value[TEXT_BYTES / 2];
    char shown[64];
    size_t bytes = (size_t)option->high + 1;

    memset(value, 'x', bytes);
    value[bytes] = '\0';
    snprintf(shown, sizeof shown, "%.60s", value);
    try(place, option, value, shown, allowed);
    try(place, option, "\"\"", "\"\"", allowed);
    try(place, option, "{a: b}", "a mapping", allowed);
    if (option->type == PD_OPTION_TEXT) {
        try(place, option, "[a]", "a list of 1", allowed);
        return;
    }
    try(place, option, "[[a]]", "a list of 1", allowed);
    snprintf(value, sizeof value, "[x");
    for (size_t i = 0; i < (size_t)option->low; i++) {
        snprintf(value + strlen(value), sizeof value - strlen(value), ", x");
    }
    snprintf(value + strlen(value), sizeof value - strlen(value), "]");
    snprintf(shown, sizeof shown, "a list of %.0f", option->low + 1);
    try(place, option, value, shown, allowed);
}

/* Lists of numbers, of a length or of any, and of points. */
static void try_list(const struct place *place, const struct pd_option *option, const char *allowed)
{
    static const char *const formats[] = {"[%s, 0.5]", "[%s, 0.5, 0.5]", "[%s]", "[[0, %s]]"};
    const char *format = formats[option->type - PD_OPTION_REALS2];
    char value[64];

    try(place, option, "0.5", "0.5", allowed);
    try(place, option, "{a: 1}", "a mapping", allowed);
    try_bounds(place, option, allowed, format);
    snprintf(value, sizeof value, format, "many");
    try(place, option, value, "many", allowed);
    if (option->type == PD_OPTION_REALS2 || option->type == PD_OPTION_REALS3) {
        try(place, option, "[0.5]", "a list of 1", allowed);
        try(place, option, "[0.5, 0.5, 0.5, 0.5]", "a list of 4", allowed);
    }
    if (option->type == PD_OPTION_POINTS) {
        try(place, option, "[[1]]", "a list of 1", allowed);
        try(place, option, "[[2, 1], [1, 1]]", "1", allowed);
        try(place, option, "[[0.5, 1]]", "0.5", allowed);
    }
}

static void try_option(const struct place *place, const struct pd_option *option)
{
    char allowed[200];

    pd_option_allowed(option, allowed, sizeof allowed);
    if (option->type != PD_OPTION_SECTION &&
        (!option->nullable || option->type == PD_OPTION_REALS2)) {
        try(place, option, "null", "no value", allowed);
    }
    switch (option->type) {
    case PD_OPTION_BOOL:
        try(place, option, "1", "1", allowed);
        try(place, option, "\"true\"", "\"true\"", allowed);
        try(place, option, "[true]", "a list of 1", allowed);
        break;
    case PD_OPTION_UINT:
        try(place, option, "1.5", "1.5", allowed);
        try(place, option, "010", "010", allowed);
        /* fall through */
    case PD_OPTION_REAL:
        for (size_t i = 0; i < sizeof no_numbers / sizeof no_numbers[0]; i++) {
            try(place, option, no_numbers[i].value, no_numbers[i].shown, allowed);
        }
        try_bounds(place, option, allowed, "%s");
        break;
    case PD_OPTION_REALS2:
    case PD_OPTION_REALS3:
    case PD_OPTION_REALS:
    case PD_OPTION_POINTS:
        try_list(place, option, allowed);
        break;
    case PD_OPTION_TEXT:
    case PD_OPTION_TEXTS:
        try_texts(place, option, allowed);
        break;
    case PD_OPTION_CHOICE:
        try(place, option, "neither", "neither", allowed);
        try(place, option, "[neither]", "a list of 1", allowed);
        break;
    case PD_OPTION_SECTION:
        break;
    }
}

/* All options of a table that stand in `section`, which ends in a dot or is empty. */
static void try_table(const struct place *place, const char *section,
                      const struct pd_option *options, size_t count)
{
    size_t bytes = strlen(section);

    for (size_t i = 0; i < count; i++) {
        if (strncmp(options[i].key, section, bytes) == 0 &&
            strchr(options[i].key + bytes, '.') == NULL) {
            try_option(place, &options[i]);
        }
    }
}

START_TEST(every_plain_option_says_what_is_allowed)
{
    const struct place top = {"", 0, ""};

    tried = 0;
    try_table(&top, "", pd_config_options.options, pd_config_options.count);
    for (size_t i = 0; i < pd_config_options.count; i++) {
        const struct pd_option *section = &pd_config_options.options[i];
        struct place inside = {.indent = 2};
        char prefix[64];
        if (section->type == PD_OPTION_SECTION) {
            snprintf(inside.before, sizeof inside.before, "%s:\n", section->key);
            snprintf(inside.path, sizeof inside.path, "%s.", section->key);
            snprintf(prefix, sizeof prefix, "%s.", section->key);
            try_table(&inside, prefix, pd_config_options.options, pd_config_options.count);
        }
    }
    ck_assert_uint_gt(tried, 4 * pd_config_options.count);
}
END_TEST

START_TEST(every_option_of_every_optimizer_says_what_is_allowed)
{
    for (size_t i = 0; pd_optimizer_at(i) != NULL; i++) {
        const struct pd_optimizer *optimizer = pd_optimizer_at(i);
        struct place own = {.indent = 2, .path = "optimizer."};
        struct place of_group = {.indent = 4, .path = "groups.0."};
        snprintf(own.before, sizeof own.before, "optimizer:\n  name: %s\n", optimizer->name);
        snprintf(of_group.before, sizeof of_group.before,
                 "optimizer:\n  name: %s\ngroups:\n  - match: a\n", optimizer->name);
        tried = 0;
        try_table(&own, "", optimizer->options, optimizer->option_count);
        try_table(&of_group, "", optimizer->options, optimizer->option_count);
        ck_assert_uint_gt(tried, 4 * optimizer->option_count);
    }
}
END_TEST

START_TEST(every_option_of_a_group_says_what_is_allowed)
{
    const struct place group = {"groups:\n  - lr: 1\n", 4, "groups.0."};
    const struct place clip = {"groups:\n  - lr: 1\n    clip:\n", 6, "groups.0.clip."};

    tried = 0;
    try_table(&group, "", pd_group_options.options, pd_group_options.count);
    try_table(&clip, "clip.", pd_group_options.options, pd_group_options.count);
    try_table(&group, "", pd_group_settings_options.options, pd_group_settings_options.count);
    ck_assert_uint_gt(tried, 4 * pd_group_options.count);
}
END_TEST

START_TEST(every_option_of_every_schedule_says_what_is_allowed)
{
    for (size_t i = 0; pd_schedule_at(i) != NULL; i++) {
        const struct pd_schedule_rule *rule = pd_schedule_at(i);
        struct place place = {.indent = 4, .path = "schedule.0."};
        snprintf(place.before, sizeof place.before, "schedule:\n  - name: %s\n", rule->name);
        tried = 0;
        try_table(&place, "", rule->options, rule->option_count);
        try_table(&place, "", pd_schedule_common_options, pd_schedule_common_option_count);
        ck_assert_uint_gt(tried, 4 * rule->option_count);
    }
}
END_TEST

/* A name that no rule has, or that is no name. */
static void try_name(const struct place *place, const struct pd_option *option, const char *names)
{
    try(place, option, "novel", "novel: unknown", names);
    try(place, option, "[novel]", "a list of 1", names);
    try(place, option, "null", "no value", names);
}

START_TEST(a_wrong_name_of_a_rule_is_answered_with_all_names)
{
    const struct place optimizer = {"optimizer:\n", 2, "optimizer."};
    const struct place schedule = {"schedule:\n  - chain: false\n", 4, "schedule.0."};
    char names[384];

    try_name(&optimizer, pd_optimizer_name_options.options,
             pd_optimizer_names(names, sizeof names));
    try_name(&schedule, pd_schedule_name_options.options, pd_schedule_names(names, sizeof names));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("option_faults");
    TCase *tests = tcase_create("option_faults");

    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, every_plain_option_says_what_is_allowed);
    tcase_add_test(tests, every_option_of_every_optimizer_says_what_is_allowed);
    tcase_add_test(tests, every_option_of_a_group_says_what_is_allowed);
    tcase_add_test(tests, every_option_of_every_schedule_says_what_is_allowed);
    tcase_add_test(tests, a_wrong_name_of_a_rule_is_answered_with_all_names);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
