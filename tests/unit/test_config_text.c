/* The example, the help and the summary: they come from the tables and agree with the parser.
 * With --write this program writes the example file instead (target example_config). */
#include "common/heap.h"
#include "server/core/config.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct pd_config *parse(const char *file, const char *text)
{
    struct pd_config *config = NULL;
    struct pd_error error = {0};

    ck_assert_msg(pd_config_create(&config, file, text, NULL, 0, &error) == PD_OK, "%s in:\n%s",
                  error.message, text != NULL ? text : "(nothing)");
    return config;
}

START_TEST(the_example_parses_to_the_defaults)
{
    char *example = pd_config_example();
    struct pd_config *from_example = parse("example", example);
    struct pd_config *defaults = parse("defaults", NULL);

    ck_assert_mem_eq(from_example, defaults, sizeof *defaults);
    pd_config_destroy(from_example);
    pd_config_destroy(defaults);
    pd_heap_free(example);
}
END_TEST

/* Each paragraph that is commented out parses, once its lines lose their first "# ". */
START_TEST(what_the_example_has_as_comments_parses_too)
{
    char *example = pd_config_example();
    size_t parsed = 0;

    for (char *begin = strstr(example, "\n\n# "); begin != NULL;
         begin = strstr(begin + 2, "\n\n# ")) {
        char text[4096];
        size_t bytes = 0;
        const char *line = begin + 2;

        if (strncmp(line, "# optimizer:\n", 13) != 0 && strncmp(line, "# groups:\n", 10) != 0 &&
            strncmp(line, "# schedule:\n", 12) != 0) {
            continue;
        }
        while (*line == '#') {
            size_t line_bytes = strcspn(line, "\n") + 1;
            ck_assert_uint_lt(bytes + line_bytes, sizeof text);
            memcpy(text + bytes, line + 2, line_bytes - 2);
            bytes += line_bytes - 2;
            line += line_bytes;
        }
        text[bytes] = '\0';
        pd_config_destroy(parse("paragraph", text));
        parsed++;
    }
    size_t rules = 0;
    while (pd_optimizer_at(rules) != NULL) {
        rules++;
    }
    size_t schedules = 0;
    while (pd_schedule_at(schedules) != NULL) {
        schedules++;
    }
    ck_assert_uint_eq(parsed, rules - 1 + 2 + 1 + schedules);
    pd_heap_free(example);
}
END_TEST

START_TEST(the_example_file_is_the_generated_text)
{
    char *example = pd_config_example();
    size_t bytes = strlen(example);
    char *file = pd_heap_zalloc(2 * bytes, 1);
    FILE *stream = fopen(PD_EXAMPLE_FILE, "r");

    ck_assert_ptr_nonnull(stream);
    size_t read = fread(file, 1, 2 * bytes - 1, stream);
    fclose(stream);
    ck_assert_uint_eq(read, bytes);
    ck_assert_str_eq(file, example);
    pd_heap_free(file);
    pd_heap_free(example);
}
END_TEST

START_TEST(lines_of_the_example_and_the_help_fit_a_terminal)
{
    char *texts[] = {pd_config_example(), pd_config_help()};

    for (size_t i = 0; i < 2; i++) {
        for (const char *line = texts[i]; *line != '\0'; line += strcspn(line, "\n") + 1) {
            ck_assert_uint_le(strcspn(line, "\n"), 100);
        }
        pd_heap_free(texts[i]);
    }
}
END_TEST

START_TEST(help_has_every_option_of_every_rule)
{
    char *help = pd_config_help();

    for (size_t i = 0; pd_optimizer_at(i) != NULL; i++) {
        const struct pd_optimizer *optimizer = pd_optimizer_at(i);
        for (uint32_t j = 0; j < optimizer->option_count; j++) {
            char line[100];
            snprintf(line, sizeof line, "  optimizer.%s = %s\n", optimizer->options[j].key,
                     optimizer->options[j].default_text);
            ck_assert_msg(strstr(help, line) != NULL, "%s", line);
        }
    }
    for (size_t i = 0; pd_schedule_at(i) != NULL; i++) {
        const struct pd_schedule_rule *rule = pd_schedule_at(i);
        for (uint32_t j = 0; j < rule->option_count; j++) {
            char line[100];
            snprintf(line, sizeof line, "  schedule.0.%s = %s\n", rule->options[j].key,
                     rule->options[j].default_text);
            ck_assert_msg(strstr(help, line) != NULL, "%s", line);
        }
    }
    ck_assert_ptr_nonnull(strstr(help, "  workers.lease_s = 60\n      silence"));
    pd_heap_free(help);
}
END_TEST

START_TEST(the_summary_says_what_will_run)
{
    struct pd_config *config =
        parse("f", "optimizer: {name: lamb, lr: 0.02}\naggregation: direct\n"
                   "workers: {expected: 3}\naccumulation_steps: 4\nclip: {norm: 1}\n"
                   "groups: [{match: a, lr: 1}, {name: b, lr_multiplier: 2, clip: {norm: 3}}, "
                   "{name: c, frozen: true}]\n"
                   "layer_decay: {decay: 0.75, layers: \"blocks.{}.*\"}\n"
                   "schedule: [{name: linear, steps: 500}, {name: cosine}, {name: step, "
                   "chain: true}]\n");
    char *summary = pd_config_summary(config);

    ck_assert_str_eq(summary, "optimizer: lamb, lr 0.02; groups: group1 lr 1, b lr 0.04 clipped to "
                              "norm 3 of type 2, c frozen\n"
                              "layer decay: 0.75 from layer to layer of blocks.{}.*\n"
                              "schedule: linear for 500 steps, then cosine times step\n"
                              "aggregation: direct\n"
                              "workers: 3 expected, 4 micro-batches a step\n"
                              "clip: norm 1 of type 2\n"
                              "listen: 127.0.0.1:7070\n");
    pd_heap_free(summary);
    pd_config_destroy(config);
}
END_TEST

START_TEST(texts_without_memory_are_null)
{
    struct pd_config *config = parse("f", NULL);

    for (int i = 0; i < 3; i++) {
        bool failed = true;
        for (long at = 0; failed; at++) {
            pd_heap_fail_at(at);
            char *text = i == 0   ? pd_config_example()
                         : i == 1 ? pd_config_help()
                                  : pd_config_summary(config);
            pd_heap_fail_at(-1);
            failed = text == NULL;
            ck_assert(at > 0 || failed);
            pd_heap_free(text);
            ck_assert_uint_eq(pd_heap_blocks_live(), 1);
        }
    }
    pd_config_destroy(config);
}
END_TEST

static int write_example(void)
{
    FILE *stream = fopen(PD_EXAMPLE_FILE, "w");

    if (stream == NULL || fputs(pd_config_example(), stream) == EOF || fclose(stream) != 0) {
        perror(PD_EXAMPLE_FILE);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--write") == 0) {
        return write_example();
    }

    Suite *suite = suite_create("config_text");
    TCase *tcase = tcase_create("texts");

    tcase_add_test(tcase, the_example_parses_to_the_defaults);
    tcase_add_test(tcase, what_the_example_has_as_comments_parses_too);
    tcase_add_test(tcase, the_example_file_is_the_generated_text);
    tcase_add_test(tcase, lines_of_the_example_and_the_help_fit_a_terminal);
    tcase_add_test(tcase, help_has_every_option_of_every_rule);
    tcase_add_test(tcase, the_summary_says_what_will_run);
    tcase_add_test(tcase, texts_without_memory_are_null);
    suite_add_tcase(suite, tcase);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
