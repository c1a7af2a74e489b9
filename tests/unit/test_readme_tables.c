/* The tables of optimizers, schedules and what goes around them in the README are those of the
 * tables of options. With --write this program writes them anew (target readme_tables). */
#include "server/core/config_options.h"

#include <check.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define README_BYTES_MAX 262144u
#define BEGIN_MARK "<!-- the tables below are written by tests/unit/test_readme_tables.c -->\n"
#define END_MARK "<!-- the tables above are written by tests/unit/test_readme_tables.c -->\n"

/* Sections and plain keys of the configuration that go around any optimizer. */
static const char *const around[] = {
    "clip", "lr_scaling", "layer_decay", "accumulation_steps", "lookahead",
    "ema",  "swa",        "outer",       "loss_scale",         "early_stop"};

/* Runs outside tests too, where Check cannot report. */
static void require(bool condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "%s: %s\n", PD_README_FILE, what);
        exit(EXIT_FAILURE);
    }
}

/* `key: default`, in code. */
static void write_key(FILE *out, const char *key, const struct pd_option *option, bool first)
{
    fprintf(out, "%s`%s: %s`", first ? "" : ", ", key, option->default_text);
}

static void write_keys(FILE *out, const struct pd_option *options, size_t count)
{
    bool first = true;

    for (size_t i = 0; i < count; i++) {
        if (options[i].type != PD_OPTION_SECTION) {
            write_key(out, options[i].key, &options[i], first);
            first = false;
        }
    }
}

static void write_optimizers(FILE *out)
{
    fputs("| `optimizer.name` | as | keys and defaults |\n|---|---|---|\n", out);
    for (size_t i = 0; pd_optimizer_at(i) != NULL; i++) {
        const struct pd_optimizer *optimizer = pd_optimizer_at(i);
        fprintf(out, "| `%s` | %s | ", optimizer->name, optimizer->help);
        write_keys(out, optimizer->options, optimizer->option_count);
        fputs(" |\n", out);
    }
}

static void write_schedules(FILE *out)
{
    fputs("| schedule `name` | as | keys and defaults |\n|---|---|---|\n", out);
    for (size_t i = 0; pd_schedule_at(i) != NULL; i++) {
        const struct pd_schedule_rule *rule = pd_schedule_at(i);
        fprintf(out, "| `%s` | %s | ", rule->name, rule->help);
        write_keys(out, rule->options, rule->option_count);
        fputs(" |\n", out);
    }
    fputs("| any of them | | ", out);
    write_keys(out, pd_schedule_common_options, pd_schedule_common_option_count);
    fputs(" |\n", out);
}

/* What goes around: a section with its keys, or a key alone. */
static void write_around(FILE *out)
{
    fputs("| around any optimizer | what for | keys and defaults |\n|---|---|---|\n", out);
    for (size_t k = 0; k < sizeof around / sizeof around[0]; k++) {
        size_t bytes = strlen(around[k]);
        bool first = true;
        for (size_t i = 0; i < pd_config_options.count; i++) {
            const struct pd_option *option = &pd_config_options.options[i];
            bool inside = strncmp(option->key, around[k], bytes) == 0 && option->key[bytes] == '.';
            if (strcmp(option->key, around[k]) == 0) {
                fprintf(out, "| `%s` | %s | ", option->key, option->help);
            }
            if (inside ||
                (strcmp(option->key, around[k]) == 0 && option->type != PD_OPTION_SECTION)) {
                write_key(out, option->key + (inside ? bytes + 1 : 0), option, first);
                first = false;
            }
        }
        require(!first, around[k]);
        fputs(" |\n", out);
    }
    fputs("| each of `groups` | any key of the optimizer, and | ", out);
    write_keys(out, pd_group_options.options, pd_group_options.count);
    fputs(", ", out);
    write_keys(out, pd_group_settings_options.options, pd_group_settings_options.count);
    fputs(" |\n", out);
}

/* All tables; for free. */
static char *tables(void)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);

    require(out != NULL, "out of memory");
    fputs("\n", out);
    write_optimizers(out);
    fputs("\n", out);
    write_schedules(out);
    fputs("\n", out);
    write_around(out);
    fputs("\n", out);
    (void)fclose(out);
    return text;
}

/* The README; for free. The marks' places go to `begin` and `end`. */
static char *read_readme(char **begin, char **end)
{
    char *text = calloc(1, README_BYTES_MAX);
    FILE *file = fopen(PD_README_FILE, "r");

    require(text != NULL && file != NULL, "cannot be read");
    require(fread(text, 1, README_BYTES_MAX - 1, file) < README_BYTES_MAX - 1, "too long");
    (void)fclose(file);
    *begin = strstr(text, BEGIN_MARK);
    *end = strstr(text, END_MARK);
    require(*begin != NULL && *end != NULL && *begin < *end, "no marks around the tables");
    *begin += strlen(BEGIN_MARK);
    return text;
}

START_TEST(the_readme_has_the_keys_and_defaults_of_every_rule)
{
    char *begin;
    char *end;
    char *readme = read_readme(&begin, &end);
    char *expected = tables();

    *end = '\0';
    ck_assert_msg(strcmp(begin, expected) == 0,
                  "the tables of %s differ from the options; build the target readme_tables",
                  PD_README_FILE);
    free(expected);
    free(readme);
}
END_TEST

START_TEST(every_rule_says_whose_it_is)
{
    for (size_t i = 0; pd_optimizer_at(i) != NULL; i++) {
        ck_assert_msg(pd_optimizer_at(i)->help != NULL, "%s", pd_optimizer_at(i)->name);
    }
    for (size_t i = 0; pd_schedule_at(i) != NULL; i++) {
        ck_assert_msg(pd_schedule_at(i)->help != NULL, "%s", pd_schedule_at(i)->name);
    }
}
END_TEST

static int write_tables(void)
{
    char *begin;
    char *end;
    char *readme = read_readme(&begin, &end);
    char *rest = strdup(end);
    char *text = tables();
    FILE *file = fopen(PD_README_FILE, "w");

    *begin = '\0';
    if (file == NULL || rest == NULL || fprintf(file, "%s%s%s", readme, text, rest) < 0 ||
        fclose(file) != 0) {
        perror(PD_README_FILE);
        return EXIT_FAILURE;
    }
    free(text);
    free(rest);
    free(readme);
    return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--write") == 0) {
        return write_tables();
    }

    Suite *suite = suite_create("readme_tables");
    TCase *tests = tcase_create("readme_tables");

    tcase_add_test(tests, the_readme_has_the_keys_and_defaults_of_every_rule);
    tcase_add_test(tests, every_rule_says_whose_it_is);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
