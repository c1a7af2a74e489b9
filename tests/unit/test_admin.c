/* Commands: what they do, from which step, and what is said when they may not. */
#include "engine_fixture.h"

#include "common/heap.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct engine_fixture f;

static void setup(void)
{
    fixture_init(
        &f, 0, 1,
        "optimizer: {name: sgd, lr: 0.5}\ngroups: [{name: flat, max_dims: 1, lr: 0.25}]\n");
    fixture_enlist(&f, 3, "a");
    fixture_greet(&f, 4);
}

static void teardown(void)
{
    fixture_finish(&f);
}

/* Say it on connection 4; the answer is its JSON, or the text of the error. */
static const char *run(const char *command, const char *target, const double *value)
{
    struct pd_message message = {.kind = PD_MESSAGE_ADMIN};
    snprintf(message.admin.command, sizeof message.admin.command, "%s", command);
    snprintf(message.admin.target, sizeof message.admin.target, "%s", target);
    message.admin.has_value = value != NULL;
    message.admin.value = value != NULL ? *value : 0;
    fixture_say(&f, 4, &message, 0);
    if (fixture_last(&f, 4)->kind == PD_MESSAGE_ERROR) {
        return fixture_last(&f, 4)->error.text;
    }
    static char text[4096];
    const struct fixture_sent *sent = &f.sent[f.sent_count - 1];
    for (uint32_t i = 0; i < f.sent_count; i++) {
        if (f.sent[i].connection == 4 && f.sent[i].payload_bytes > 0) {
            sent = &f.sent[i];
        }
    }
    ck_assert_uint_lt(sent->payload_bytes, sizeof text);
    memcpy(text, sent->payload, sent->payload_bytes);
    text[sent->payload_bytes] = '\0';
    fixture_forget(&f);
    fixture_sent_event(&f, 4);
    return text;
}

START_TEST(set_lr_names_its_step_and_keeps_the_groups_ratio)
{
    double lr = 2;
    ck_assert_ptr_nonnull(strstr(run("set-lr", "", &lr), "\"step\":0"));
    fixture_push(&f, 3, 0, 1, 1);
    ck_assert_double_eq_tol(f.engine->leader->lrs[0], 2, 1e-15);
    ck_assert_double_eq_tol(f.engine->leader->lrs[1], 1, 1e-15);
    ck_assert_ptr_nonnull(strstr(run("set-lr", "", NULL), "the schedule sets the learning rate"));
    fixture_push(&f, 3, 1, 1, 1);
    ck_assert_double_eq_tol(f.engine->leader->lrs[0], 0.5, 1e-15);
}
END_TEST

START_TEST(set_lr_of_one_group_leaves_the_others)
{
    double lr = 3;
    ck_assert_ptr_nonnull(strstr(run("set-lr", "flat", &lr), "\"step\":0"));
    fixture_push(&f, 3, 0, 1, 1);
    ck_assert_double_eq_tol(f.engine->leader->lrs[0], 0.5, 1e-15);
    ck_assert_double_eq_tol(f.engine->leader->lrs[1], 3, 1e-15);
}
END_TEST

START_TEST(rate_that_is_none_is_refused)
{
    static const double rates[] = {-1, NAN, INFINITY};
    ck_assert_ptr_nonnull(
        strstr(run("set-lr", "", &rates[_i]), "allowed: a finite number, at least 0"));
}
END_TEST

START_TEST(what_is_unknown_is_refused_with_what_is_known)
{
    double lr = 1;
    ck_assert_ptr_nonnull(strstr(run("set-lr", "none", &lr), "no group is named 'none'"));
    ck_assert_ptr_nonnull(strstr(run("evict", "nobody", NULL), "no worker has the name"));
    ck_assert_ptr_nonnull(strstr(run("frob", "", NULL), "unknown command 'frob'; allowed: status"));
    ck_assert_ptr_nonnull(strstr(run("checkpoint", "", NULL), "keeps no checkpoints"));
}
END_TEST

START_TEST(pause_and_resume_name_the_step)
{
    fixture_push(&f, 3, 0, 1, 1);
    ck_assert_ptr_nonnull(strstr(run("pause", "", NULL), "\"step\":1"));
    fixture_push(&f, 3, 1, 1, 1);
    ck_assert_uint_eq(f.engine->store.version, 1);
    ck_assert_ptr_nonnull(strstr(run("resume", "", NULL), "\"step\":1"));
    fixture_work(&f);
    ck_assert_uint_eq(f.engine->store.version, 2);
}
END_TEST

START_TEST(evicted_worker_is_told)
{
    ck_assert_ptr_nonnull(strstr(run("evict", "a", NULL), "is evicted at step 0"));
    fixture_greet(&f, 5);
    ck_assert(f.closed[3]);
    ck_assert_ptr_null(pd_roster_find(f.engine->roster, 0));
}
END_TEST

START_TEST(stop_ends_without_waiting_for_the_step)
{
    fixture_enlist(&f, 6, "b");
    fixture_push(&f, 3, 0, 1, 1);
    (void)run("stop", "", NULL);
    ck_assert(f.exited);
}
END_TEST

START_TEST(drain_waits_for_the_step_that_runs)
{
    fixture_enlist(&f, 6, "b");
    fixture_push(&f, 3, 0, 1, 1);
    (void)run("drain", "", NULL);
    ck_assert(!f.exited);
    fixture_push(&f, 6, 0, 1, 1);
    ck_assert_uint_eq(f.engine->store.version, 1);
    ck_assert(f.exited);
}
END_TEST

START_TEST(answer_that_finds_no_memory_says_so)
{
    struct pd_admin admin = {.command = "step"};
    struct pd_error error = {0};
    char *reply = NULL;
    pd_heap_fail_at(0);
    ck_assert_int_eq(pd_admin_run(f.engine, &admin, &reply, &error), PD_ENOMEM);
    pd_heap_fail_at(-1);
    ck_assert_ptr_null(reply);
    ck_assert_str_eq(error.message, "out of memory for the answer");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("admin");
    TCase *tests = tcase_create("admin");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, set_lr_names_its_step_and_keeps_the_groups_ratio);
    tcase_add_test(tests, set_lr_of_one_group_leaves_the_others);
    tcase_add_loop_test(tests, rate_that_is_none_is_refused, 0, 3);
    tcase_add_test(tests, what_is_unknown_is_refused_with_what_is_known);
    tcase_add_test(tests, pause_and_resume_name_the_step);
    tcase_add_test(tests, evicted_worker_is_told);
    tcase_add_test(tests, stop_ends_without_waiting_for_the_step);
    tcase_add_test(tests, drain_waits_for_the_step_that_runs);
    tcase_add_test(tests, answer_that_finds_no_memory_says_so);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
