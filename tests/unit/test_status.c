/* The answers to an administrator's questions are JSON objects with the promised keys. */
#include "engine_fixture.h"

#include "common/heap.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct engine_fixture f;

static void setup(void)
{
    fixture_init(&f, 0, 1,
                 "optimizer: {name: sgd, lr: 0.5}\nclip: {norm: 1}\n"
                 "groups: [{name: flat, max_dims: 1, lr: 0.25, weight_decay: 0.1}]\n");
}

static void teardown(void)
{
    fixture_finish(&f);
}

/* Parsed; the text is freed. */
static json_t *parse(char *text)
{
    ck_assert_ptr_nonnull(text);
    json_t *object = json_loads(text, 0, NULL);
    ck_assert_ptr_nonnull(object);
    pd_heap_free(text);
    return object;
}

/* What status.c asks for: the time of an event. */
static void tick(void)
{
    fixture_wait(&f, 250);
}

START_TEST(status_has_every_promised_key)
{
    static const char *const keys[] = {"state",
                                       "step",
                                       "version",
                                       "lr",
                                       "groups",
                                       "shards",
                                       "aggregation",
                                       "mode",
                                       "workers",
                                       "effective_batch",
                                       "loss",
                                       "grad_norm",
                                       "clip_scale",
                                       "loss_scale",
                                       "skipped_steps",
                                       "uptime_s",
                                       "last_skip_reason",
                                       "checkpoint"};
    tick();
    json_t *status = parse(pd_status_json(f.engine));
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        ck_assert_msg(json_object_get(status, keys[i]) != NULL, "%s", keys[i]);
    }
    ck_assert_str_eq(json_string_value(json_object_get(status, "state")), "waiting for a model");
    ck_assert(json_is_null(json_object_get(status, "loss")));
    ck_assert(json_is_null(json_object_get(status, "grad_norm")));
    json_decref(status);
}
END_TEST

START_TEST(status_says_who_is_waited_for)
{
    fixture_enlist(&f, 3, "first");
    fixture_enlist(&f, 4, "second");
    fixture_push(&f, 3, 0, 3, 8);
    json_t *status = parse(pd_status_json(f.engine));
    ck_assert(json_is_null(json_object_get(status, "waiting")));
    json_decref(status);
    fixture_wait(&f, 2250);
    status = parse(pd_status_json(f.engine));
    ck_assert_str_eq(json_string_value(json_object_get(status, "waiting")),
                     "step 0 waits for 'second': 2 s so far");
    json_decref(status);
}
END_TEST

START_TEST(status_follows_the_job)
{
    fixture_enlist(&f, 3, "first");
    fixture_push(&f, 3, 0, 3, 8);
    json_t *status = parse(pd_status_json(f.engine));
    ck_assert_str_eq(json_string_value(json_object_get(status, "state")), "running");
    ck_assert_int_eq(json_integer_value(json_object_get(status, "step")), 1);
    ck_assert_int_eq(json_integer_value(json_object_get(status, "effective_batch")), 8);
    double norm = json_real_value(json_object_get(status, "grad_norm"));
    ck_assert_double_eq_tol(norm, 3 * sqrt(FIXTURE_ELEMENTS), 1e-6);
    ck_assert_double_eq_tol(json_real_value(json_object_get(status, "clip_scale")), 1 / norm, 1e-6);
    json_t *worker = json_array_get(json_object_get(status, "workers"), 0);
    ck_assert_str_eq(json_string_value(json_object_get(worker, "name")), "first");
    ck_assert_str_eq(json_string_value(json_object_get(worker, "state")), "active");
    ck_assert_int_eq(json_integer_value(json_object_get(worker, "samples")), 8);
    json_decref(status);
}
END_TEST

START_TEST(skip_is_counted_and_explained)
{
    fixture_enlist(&f, 3, "first");
    fixture_push(&f, 3, 0, NAN, 8);
    json_t *status = parse(pd_status_json(f.engine));
    ck_assert_int_eq(json_integer_value(json_object_get(status, "skipped_steps")), 1);
    ck_assert_str_eq(json_string_value(json_object_get(status, "last_skip_reason")),
                     "step 0: the gradient of worker 0 'first' is not finite: tensor 'w', "
                     "element 0");
    ck_assert(json_is_null(json_object_get(status, "grad_norm")));
    json_decref(status);
}
END_TEST

START_TEST(lr_lists_every_group)
{
    tick();
    json_t *lr = parse(pd_status_lr_json(f.engine));
    json_t *groups = json_object_get(lr, "groups");
    ck_assert_uint_eq(json_array_size(groups), 2);
    json_t *flat = json_array_get(groups, 1);
    ck_assert_str_eq(json_string_value(json_object_get(flat, "name")), "flat");
    ck_assert_double_eq_tol(json_real_value(json_object_get(flat, "lr")), 0.25, 1e-15);
    json_decref(lr);
}
END_TEST

START_TEST(schedule_shows_as_many_steps_as_asked)
{
    tick();
    json_t *schedule = parse(pd_status_schedule_json(f.engine, 5, 3));
    ck_assert_int_eq(json_integer_value(json_object_get(schedule, "begin")), 5);
    ck_assert_uint_eq(json_array_size(json_object_get(schedule, "lrs")), 3);
    json_decref(schedule);
}
END_TEST

START_TEST(tensors_say_group_and_shards)
{
    fixture_enlist(&f, 3, "first");
    json_t *answer = parse(pd_status_tensors_json(f.engine));
    json_t *tensors = json_object_get(answer, "tensors");
    ck_assert_uint_eq(json_array_size(tensors), 2);
    json_t *w = json_array_get(tensors, 0);
    json_t *b = json_array_get(tensors, 1);
    ck_assert_str_eq(json_string_value(json_object_get(w, "name")), "w");
    ck_assert_int_eq(json_integer_value(json_array_get(json_object_get(w, "shape"), 1)), 2);
    ck_assert_str_eq(json_string_value(json_object_get(w, "group")), "default");
    ck_assert_str_eq(json_string_value(json_object_get(b, "group")), "flat");
    ck_assert_uint_eq(json_array_size(json_object_get(b, "shards")), 1);
    ck_assert_double_eq(json_real_value(json_object_get(w, "lr")), 0.5);
    ck_assert_double_eq(json_real_value(json_object_get(b, "lr")), 0.25);
    ck_assert(json_is_null(json_object_get(w, "grad_norm")));
    json_decref(answer);
}
END_TEST

/* "w" has six elements and "b" two. */
START_TEST(norms_of_tensors_and_groups_are_those_of_the_last_step)
{
    fixture_enlist(&f, 3, "first");
    fixture_push(&f, 3, 0, 3, 8);
    json_t *answer = parse(pd_status_tensors_json(f.engine));
    json_t *status = parse(pd_status_json(f.engine));
    for (size_t i = 0; i < 2; i++) {
        double norm = 3 * sqrt(i == 0 ? 6 : 2);
        const json_t *tensor = json_array_get(json_object_get(answer, "tensors"), i);
        const json_t *group = json_array_get(json_object_get(status, "groups"), i);
        ck_assert_double_eq_tol(json_real_value(json_object_get(tensor, "grad_norm")), norm, 1e-12);
        ck_assert_double_eq_tol(json_real_value(json_object_get(group, "grad_norm")), norm, 1e-12);
        ck_assert_double_eq(json_real_value(json_object_get(group, "clip_scale")),
                            json_real_value(json_object_get(status, "clip_scale")));
        ck_assert(json_is_false(json_object_get(group, "frozen")));
    }
    json_decref(status);
    json_decref(answer);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("status");
    TCase *tests = tcase_create("status");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, status_has_every_promised_key);
    tcase_add_test(tests, status_says_who_is_waited_for);
    tcase_add_test(tests, status_follows_the_job);
    tcase_add_test(tests, skip_is_counted_and_explained);
    tcase_add_test(tests, lr_lists_every_group);
    tcase_add_test(tests, schedule_shows_as_many_steps_as_asked);
    tcase_add_test(tests, tensors_say_group_and_shards);
    tcase_add_test(tests, norms_of_tensors_and_groups_are_those_of_the_last_step);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
