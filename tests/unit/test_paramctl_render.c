/* What paramctl shows people of the daemon's answers. */
#include "client/paramctl.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static char *shown;
static size_t shown_bytes;

static void teardown(void)
{
    free(shown);
    shown = NULL;
}

/* Render into `shown`; returns what paramctl_render does. */
static int render(const char *command, const char *text, const char *group)
{
    json_error_t fault;
    json_t *answer = json_loads(text, 0, &fault);
    FILE *out = open_memstream(&shown, &shown_bytes);

    ck_assert_ptr_nonnull(answer);
    int rendered = paramctl_render(out, command, answer, group);
    fclose(out);
    json_decref(answer);
    return rendered;
}

#define LONG_TENSOR                                                                                \
    "step 4: the gradient of worker 0 'w0' is not finite: tensor "                                 \
    "'encoder.layer.11.attention.output.dense.weight', element 7"

START_TEST(status_shows_texts_in_full_where_there_are_any)
{
    ck_assert_int_eq(render("status",
                            "{\"state\":\"running\",\"waiting\":\"step 7 waits for 'b'\","
                            "\"step\":7,\"last_skip_reason\":\"" LONG_TENSOR "\"}",
                            NULL),
                     1);
    ck_assert_str_eq(shown, "state           running\n"
                            "waiting         step 7 waits for 'b'\n"
                            "step            7 (version -)\n"
                            "last skip       " LONG_TENSOR "\n");
    free(shown);
    ck_assert_int_eq(render("status", "{\"state\":\"running\",\"waiting\":null,\"step\":7}", NULL),
                     1);
    ck_assert_str_eq(shown, "state           running\nstep            7 (version -)\n");
}
END_TEST

START_TEST(status_is_aligned_with_units_and_a_dash_for_nothing)
{
    ck_assert_int_eq(
        render("status",
               "{\"state\":\"running\",\"step\":12,\"version\":12,\"lr\":0.001,"
               "\"groups\":[{\"name\":\"default\",\"lr\":0.001,\"weight_decay\":0.01}],"
               "\"shards\":2,\"aggregation\":\"direct\",\"mode\":\"sync\",\"workers\":[{\"id\":0,"
               "\"name\":\"w0\",\"state\":\"active\",\"step\":12,\"samples\":384}],"
               "\"effective_batch\":64,\"grad_norm\":null,\"clip_scale\":1.0,\"loss\":0.25,"
               "\"loss_scale\":null,\"skipped_steps\":0,\"last_skip_reason\":null,"
               "\"checkpoint\":null,\"uptime_s\":3725.5}",
               NULL),
        1);
    ck_assert_str_eq(shown, "state           running\n"
                            "step            12 (version 12)\n"
                            "learning rate   0.001\n"
                            "loss            0.25\n"
                            "gradient norm   -\n"
                            "clip scale      1\n"
                            "loss scale      -\n"
                            "batch           64 samples\n"
                            "skipped steps   0\n"
                            "shards          2\n"
                            "aggregation     direct\n"
                            "mode            sync\n"
                            "checkpoint      -\n"
                            "up              1 h 02 min\n"
                            "\n"
                            "id  name  state   step  samples\n"
                            " 0  w0    active    12      384\n");
}
END_TEST

START_TEST(several_groups_are_shown_each)
{
    ck_assert_int_eq(render("lr",
                            "{\"step\":3,\"lr\":0.1,\"groups\":[{\"name\":\"head\",\"lr\":0.1},"
                            "{\"name\":\"backbone\",\"lr\":1e-05}]}",
                            NULL),
                     1);
    ck_assert_str_eq(shown, "step            3\n"
                            "learning rate   0.1\n"
                            "\n"
                            "group        lr\n"
                            "head        0.1\n"
                            "backbone  1e-05\n");
}
END_TEST

START_TEST(status_says_of_each_group_how_it_is_clipped)
{
    ck_assert_int_eq(render("status",
                            "{\"step\":3,\"version\":3,\"groups\":[{\"name\":\"default\","
                            "\"lr\":0.1,\"weight_decay\":0.0,\"grad_norm\":2.5,\"clip_scale\":"
                            "0.4,\"frozen\":false},{\"name\":\"embed\",\"lr\":0.1,"
                            "\"weight_decay\":0.0,\"grad_norm\":null,\"clip_scale\":1.0,"
                            "\"frozen\":true}]}",
                            NULL),
                     1);
    ck_assert_ptr_nonnull(strstr(shown,
                                 "group     lr  weight decay  gradient norm  clip scale  frozen\n"
                                 "default  0.1             0            2.5         0.4  no\n"
                                 "embed    0.1             0              -           1  yes\n"));
}
END_TEST

#define HISTORY                                                                                    \
    "{\"step\":3,\"kept\":2,\"metrics\":[\"val_loss\",\"a,b\"],\"rows\":["                         \
    "{\"step\":1,\"lr\":0.5,\"grad_norm\":2.5,\"clipped_norm\":1.0,\"loss\":null,"                 \
    "\"effective_batch\":64,\"skipped\":false,\"metrics\":{\"val_loss\":0.25}},"                   \
    "{\"step\":2,\"lr\":0.25,\"grad_norm\":null,\"clipped_norm\":null,\"loss\":0.1,"               \
    "\"effective_batch\":64,\"skipped\":true,\"metrics\":{}}]}"

START_TEST(a_history_has_a_line_a_step_and_a_column_a_metric)
{
    ck_assert_int_eq(render("history", HISTORY, NULL), 1);
    ck_assert_str_eq(shown,
                     "step    lr  loss  gradient norm  clipped  batch  skipped  val_loss  a,b\n"
                     "   1   0.5     -            2.5        1     64  no           0.25    -\n"
                     "   2  0.25   0.1              -        -     64  yes             -    -\n");
}
END_TEST

START_TEST(a_history_as_csv_has_a_heading_every_digit_and_nothing_for_null)
{
    json_t *answer = json_loads(HISTORY, 0, NULL);
    FILE *out = open_memstream(&shown, &shown_bytes);

    ck_assert_int_eq(paramctl_render_csv(out, "history", answer), 1);
    fclose(out);
    json_decref(answer);
    ck_assert_str_eq(
        shown, "step,lr,loss,grad_norm,clipped_norm,effective_batch,skipped,val_loss,\"a,b\"\n"
               "1,0.5,,2.5,1,64,0,0.25,\n"
               "2,0.25,0.10000000000000001,,,64,1,,\n");
}
END_TEST

START_TEST(a_plot_quotes_the_file_and_leaves_gaps_where_nothing_is_known)
{
    json_t *answer = json_loads(HISTORY, 0, NULL);
    FILE *out = open_memstream(&shown, &shown_bytes);

    ck_assert_int_eq(paramctl_plot(out, "history", answer, "it's.png"), 1);
    fclose(out);
    json_decref(answer);
    ck_assert_ptr_nonnull(strstr(shown, "set output 'it''s.png'\n"));
    ck_assert_ptr_nonnull(
        strstr(shown, " 1 NaN 0.5 2.5 1 0.25 NaN\n 2 0.10000000000000001 0.25 NaN NaN NaN NaN\n"));
    ck_assert_ptr_null(strstr(shown, "a,b"));
    ck_assert_ptr_nonnull(strstr(shown, "1:6 with linespoints pointsize 0.3 title 'val_loss'\n"));
}
END_TEST

#define CURVE(end, suggestion)                                                                     \
    "{\"over\":true,\"end\":" end                                                                  \
    ",\"reason\":\"why\",\"step\":4,\"version\":6,\"suggestion\":" suggestion                      \
    ",\"lr_min\":0.5,\"rows\":[{\"lr\":1e-7,\"loss\":2.5,\"smoothed\":2.25},"                      \
    "{\"lr\":0.001,\"loss\":90.0,\"smoothed\":4.0}]}"

START_TEST(a_curve_is_its_points_and_what_came_out)
{
    ck_assert_int_eq(render("lr-curve", CURVE("\"diverged\"", "0.01"), NULL), 1);
    ck_assert_str_eq(shown, "          lr          loss      smoothed\n"
                            "       1e-07           2.5          2.25\n"
                            "       0.001            90             4\n"
                            "diverged: why\n"
                            "version 6 has the state of version 4 again\n"
                            "suggestion      0.01 (where the loss falls fastest)\n"
                            "or              0.5 (a tenth of the rate with the least loss)\n");
    teardown();
    ck_assert_int_eq(render("lr-curve", CURVE("null", "null"), NULL), 1);
    ck_assert_ptr_nonnull(strstr(shown, "             4\nunder way\n"));
}
END_TEST

START_TEST(a_curve_as_csv_has_its_points)
{
    json_t *answer = json_loads(CURVE("null", "null"), 0, NULL);
    FILE *out = open_memstream(&shown, &shown_bytes);

    ck_assert_int_eq(paramctl_render_csv(out, "lr-curve", answer), 1);
    fclose(out);
    json_decref(answer);
    ck_assert_str_eq(shown, "lr,loss,smoothed\n"
                            "9.9999999999999995e-08,2.5,2.25\n"
                            "0.001,90,4\n");
}
END_TEST

START_TEST(a_plot_of_a_curve_is_logarithmic_and_marks_the_suggestion)
{
    json_t *answer = json_loads(CURVE("\"finished\"", "0.0625"), 0, NULL);
    json_t *nothing = json_loads("{\"rows\":[]}", 0, NULL);
    FILE *out = open_memstream(&shown, &shown_bytes);

    ck_assert_int_eq(paramctl_plot(out, "lr-curve", nothing, "x.png"), 0);
    ck_assert_int_eq(paramctl_plot(out, "lr-find", answer, "x.png"), 1);
    fclose(out);
    json_decref(answer);
    json_decref(nothing);
    ck_assert_ptr_nonnull(strstr(shown, "set logscale x\n"));
    ck_assert_ptr_nonnull(strstr(shown, " 0.001 90 4\nEOD\nset yrange [*:4.4000000000000004]\n"));
    ck_assert_ptr_nonnull(strstr(shown, "set arrow from first 0.0625, graph 0"));
    ck_assert_ptr_nonnull(strstr(shown, "suggestion 0.0625"));
}
END_TEST

START_TEST(a_plot_of_a_schedule_has_a_line_a_group)
{
    json_t *answer = json_loads("{\"begin\":5,\"groups\":[\"a\",\"b\"],"
                                "\"lrs\":[[0.5,1],[0.25,2]]}",
                                0, NULL);
    json_t *nothing = json_loads("{\"rows\":[]}", 0, NULL);
    FILE *out = open_memstream(&shown, &shown_bytes);

    ck_assert_int_eq(paramctl_plot(out, "history", nothing, "x.png"), 0);
    ck_assert_int_eq(ftell(out), 0);
    ck_assert_int_eq(paramctl_plot(out, "schedule", answer, "x.png"), 1);
    fclose(out);
    json_decref(answer);
    json_decref(nothing);
    ck_assert_ptr_nonnull(strstr(shown, "$data << EOD\n5 0.5 1\n6 0.25 2\nEOD\n"));
    ck_assert_ptr_nonnull(strstr(shown, "title 'a', $data using 1:3 with lines linewidth 2 "
                                        "title 'b'\n"));
}
END_TEST

START_TEST(a_schedule_has_a_line_a_step_and_a_column_a_group)
{
    const char *answer = "{\"begin\":9,\"groups\":[\"a\",\"b\"],"
                         "\"lrs\":[[0.5,0.25],[0.125,1e-06]]}";
    ck_assert_int_eq(render("schedule", answer, NULL), 1);
    ck_assert_str_eq(shown, "      step             a             b\n"
                            "         9           0.5          0.25\n"
                            "        10         0.125         1e-06\n");
    teardown();
    ck_assert_int_eq(render("schedule", answer, "b"), 1);
    ck_assert_str_eq(shown, "      step             b\n"
                            "         9          0.25\n"
                            "        10         1e-06\n");
    teardown();
    ck_assert_int_eq(render("schedule", answer, "c"), 0);
}
END_TEST

START_TEST(tensors_are_shown_with_shape_and_shards)
{
    ck_assert_int_eq(render("tensors",
                            "{\"tensors\":[{\"name\":\"w\",\"shape\":[128,64],\"elements\":8192,"
                            "\"group\":\"default\",\"lr\":0.1,\"grad_norm\":2.5,\"shards\":[0,1]},"
                            "{\"name\":\"s\",\"shape\":[],\"elements\":1,\"group\":\"flat\","
                            "\"lr\":null,\"grad_norm\":null,\"shards\":[1]}]}",
                            NULL),
                     1);
    ck_assert_str_eq(shown, "tensor  shape      elements  group     lr  gradient norm  shards\n"
                            "w       [128, 64]      8192  default  0.1            2.5  [0, 1]\n"
                            "s       []                1  flat       -              -  [1]\n");
    teardown();
    ck_assert_int_eq(render("workers", "{\"workers\":[]}", NULL), 1);
    ck_assert_str_eq(shown, "no workers\n");
}
END_TEST

START_TEST(a_long_shape_is_cut_not_overrun)
{
    char answer[2000] = "{\"tensors\":[{\"name\":\"w\",\"shape\":[1";
    for (int i = 0; i < 100; i++) {
        strcat(answer, ",123456");
    }
    strcat(answer, "]}]}");
    ck_assert_int_eq(render("tensors", answer, NULL), 1);
    ck_assert_ptr_nonnull(strstr(shown, "[1, 123456, 123456"));
    ck_assert_ptr_nonnull(strchr(shown, ']'));
}
END_TEST

START_TEST(a_command_carried_out_is_one_sentence)
{
    ck_assert_int_eq(
        render("pause", "{\"command\":\"pause\",\"step\":4,\"text\":\"paused at step 4\"}", NULL),
        1);
    ck_assert_str_eq(shown, "paused at step 4\n");
}
END_TEST

START_TEST(an_answer_that_lacks_what_was_asked_for_is_told)
{
    static const char *const commands[] = {"status",  "lr",      "step", "schedule",
                                           "workers", "tensors", "drain"};
    ck_assert_int_eq(render(commands[_i], "{\"other\":1}", NULL), 0);
    teardown();
    ck_assert_int_eq(render(commands[_i], "[1]", NULL), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("paramctl_render");
    TCase *tests = tcase_create("paramctl_render");

    tcase_add_checked_fixture(tests, NULL, teardown);
    tcase_add_test(tests, status_shows_texts_in_full_where_there_are_any);
    tcase_add_test(tests, status_is_aligned_with_units_and_a_dash_for_nothing);
    tcase_add_test(tests, several_groups_are_shown_each);
    tcase_add_test(tests, status_says_of_each_group_how_it_is_clipped);
    tcase_add_test(tests, a_history_has_a_line_a_step_and_a_column_a_metric);
    tcase_add_test(tests, a_history_as_csv_has_a_heading_every_digit_and_nothing_for_null);
    tcase_add_test(tests, a_plot_quotes_the_file_and_leaves_gaps_where_nothing_is_known);
    tcase_add_test(tests, a_plot_of_a_schedule_has_a_line_a_group);
    tcase_add_test(tests, a_curve_is_its_points_and_what_came_out);
    tcase_add_test(tests, a_curve_as_csv_has_its_points);
    tcase_add_test(tests, a_plot_of_a_curve_is_logarithmic_and_marks_the_suggestion);
    tcase_add_test(tests, a_schedule_has_a_line_a_step_and_a_column_a_group);
    tcase_add_test(tests, tensors_are_shown_with_shape_and_shards);
    tcase_add_test(tests, a_long_shape_is_cut_not_overrun);
    tcase_add_test(tests, a_command_carried_out_is_one_sentence);
    tcase_add_loop_test(tests, an_answer_that_lacks_what_was_asked_for_is_told, 0, 7);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
