/* The command line of paramd. */
#include "common/heap.h"
#include "server/arguments.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORD_COUNT_MAX 600

/* Split a line at its spaces and parse it. */
static enum pd_status parse(const char *line, struct pd_arguments *arguments,
                            struct pd_error *error)
{
    static char copy[4096];
    static char *words[WORD_COUNT_MAX];
    int count = 0;

    ck_assert_uint_lt(strlen(line), sizeof copy);
    snprintf(copy, sizeof copy, "%s", line);
    words[count++] = strtok(copy, " ");
    while (words[count - 1] != NULL) {
        words[count] = strtok(NULL, " ");
        count++;
    }
    return pd_arguments_parse(count - 1, words, arguments, error);
}

START_TEST(run_takes_a_file_and_settings_in_order)
{
    struct pd_arguments arguments;
    struct pd_error error = {0};

    ck_assert_int_eq(parse("paramd --config a.yaml --set x.y=1 --set=z=2", &arguments, &error),
                     PD_OK);
    ck_assert_int_eq(arguments.command, PD_COMMAND_RUN);
    ck_assert_str_eq(arguments.config_file, "a.yaml");
    ck_assert_uint_eq(arguments.setting_count, 2);
    ck_assert_str_eq(arguments.settings[0], "x.y=1");
    ck_assert_str_eq(arguments.settings[1], "z=2");
}
END_TEST

START_TEST(no_words_run_with_defaults)
{
    struct pd_arguments arguments;
    struct pd_error error = {0};

    ck_assert_int_eq(parse("paramd", &arguments, &error), PD_OK);
    ck_assert_int_eq(arguments.command, PD_COMMAND_RUN);
    ck_assert_ptr_null(arguments.config_file);
    ck_assert_uint_eq(arguments.setting_count, 0);
}
END_TEST

START_TEST(check_config_takes_a_file_and_settings)
{
    struct pd_arguments arguments;
    struct pd_error error = {0};

    ck_assert_int_eq(parse("paramd --set a=1 --check-config=a.yaml", &arguments, &error), PD_OK);
    ck_assert_int_eq(arguments.command, PD_COMMAND_CHECK_CONFIG);
    ck_assert_str_eq(arguments.config_file, "a.yaml");
    ck_assert_uint_eq(arguments.setting_count, 1);
}
END_TEST

START_TEST(help_and_version_win_over_everything)
{
    struct pd_arguments arguments;
    struct pd_error error = {0};

    ck_assert_int_eq(parse("paramd --config a --nonsense --help", &arguments, &error), PD_OK);
    ck_assert_int_eq(arguments.command, PD_COMMAND_HELP);
    ck_assert_int_eq(parse("paramd --version --set", &arguments, &error), PD_OK);
    ck_assert_int_eq(arguments.command, PD_COMMAND_VERSION);
}
END_TEST

static const struct {
    const char *line;
    const char *message;
} refusals[] = {
    {"paramd --nonsense", "--nonsense: unknown; allowed: --config FILE, --set key=value, "
                          "--check-config FILE, --help, --version"},
    {"paramd --set a=1 -x", "-x: unknown; allowed: --config FILE, --set key=value, "
                            "--check-config FILE, --help, --version"},
    {"paramd a.yaml", "a.yaml: unknown; allowed: --config FILE, --set key=value, "
                      "--check-config FILE, --help, --version"},
    {"paramd --config a.yaml b.yaml", "b.yaml: unknown; allowed: --config FILE, --set key=value, "
                                      "--check-config FILE, --help, --version"},
    {"paramd --config", "--config: needs a value; see --help"},
    {"paramd --config a --set", "--set: needs a value; see --help"},
    {"paramd --config=", "the name of the configuration file is empty"},
    {"paramd --config a --config b", "a and b; allowed: one configuration file"},
    {"paramd --config a --check-config b", "a and b; allowed: one configuration file"},
    {"paramd --set a --set b", "--set a: not a setting; allowed: key=value"},
};

START_TEST(a_wrong_word_is_refused_by_name)
{
    struct pd_arguments arguments;
    struct pd_error error = {0};

    ck_assert_int_eq(parse(refusals[_i].line, &arguments, &error), PD_EINVALID);
    ck_assert_str_eq(error.message, refusals[_i].message);
}
END_TEST

START_TEST(as_many_settings_as_the_limit_are_taken_and_no_more)
{
    static char line[4096] = "paramd";
    size_t bytes = strlen(line);
    struct pd_arguments arguments;
    struct pd_error error = {0};

    for (unsigned i = 0; i < PD_CONFIG_SETTING_COUNT_MAX; i++) {
        bytes += (size_t)snprintf(line + bytes, sizeof line - bytes, " --set a=1");
    }
    ck_assert_int_eq(parse(line, &arguments, &error), PD_OK);
    ck_assert_uint_eq(arguments.setting_count, PD_CONFIG_SETTING_COUNT_MAX);
    snprintf(line + bytes, sizeof line - bytes, " --set b=1");
    ck_assert_int_eq(parse(line, &arguments, &error), PD_EINVALID);
    ck_assert_str_eq(error.message, "--set b=1: too many; allowed: 256");
}
END_TEST

START_TEST(help_names_every_option_and_configuration_key)
{
    static const char *const words[] = {"--config", "--set",     "--check-config",
                                        "--help",   "--version", "workers.expected = 1"};
    char *help = pd_arguments_help();

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        ck_assert_msg(strstr(help, words[i]) != NULL, "%s", words[i]);
    }
    pd_heap_free(help);
}
END_TEST

START_TEST(help_without_memory_is_null)
{
    size_t begin = pd_heap_allocations();
    pd_heap_free(pd_arguments_help());
    size_t allocations = pd_heap_allocations() - begin;

    for (size_t i = 0; i < allocations; i++) {
        pd_heap_fail_at((long)i);
        ck_assert_ptr_null(pd_arguments_help());
        ck_assert_uint_eq(pd_heap_blocks_live(), 0);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("arguments");
    TCase *tcase = tcase_create("arguments");

    tcase_add_test(tcase, run_takes_a_file_and_settings_in_order);
    tcase_add_test(tcase, no_words_run_with_defaults);
    tcase_add_test(tcase, check_config_takes_a_file_and_settings);
    tcase_add_test(tcase, help_and_version_win_over_everything);
    tcase_add_loop_test(tcase, a_wrong_word_is_refused_by_name, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_test(tcase, as_many_settings_as_the_limit_are_taken_and_no_more);
    tcase_add_test(tcase, help_names_every_option_and_configuration_key);
    tcase_add_test(tcase, help_without_memory_is_null);
    suite_add_tcase(suite, tcase);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
