/* The engine as a whole: its life, and a model that comes from a file. */
#include "engine_fixture.h"

#include "common/heap.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static struct engine_fixture f;

static struct pd_config *parse(const char *text)
{
    struct pd_config *config;
    struct pd_error error = {0};
    enum pd_status status = pd_config_create(&config, "test", text, NULL, 0, &error);
    ck_assert_msg(status == PD_OK, "%s", error.message);
    return config;
}

static void make_model(struct pd_tensor_list *model)
{
    struct pd_error error = {0};
    ck_assert_int_eq(pd_tensor_list_init(model, 2, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(model, "w", 1, 2, (const uint64_t[]){3, 2}, &error),
                     PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(model, "b", 1, 0, NULL, &error), PD_OK);
}

START_TEST(create_survives_each_failed_allocation)
{
    struct pd_config *config = parse("lanes: 1\n");
    struct pd_topology topology = {.rank = 0, .rank_count = 4};
    size_t live = pd_heap_blocks_live();
    bool created = false;

    for (long at = 0; !created; at++) {
        struct pd_engine *engine;
        struct pd_error error = {0};
        pd_heap_fail_at(at);
        enum pd_status status = pd_engine_create(&engine, config, &topology, &error);
        pd_heap_fail_at(-1);
        created = status == PD_OK;
        ck_assert(created || (status == PD_ENOMEM && error.message[0] != '\0'));
        ck_assert(created || engine == NULL);
        pd_engine_destroy(engine);
        ck_assert_uint_eq(pd_heap_blocks_live(), live);
        ck_assert_int_lt(at, 100);
    }
    pd_config_destroy(config);
}
END_TEST

START_TEST(lanes_that_do_not_divide_the_ranks_are_refused)
{
    struct pd_config *config = parse("lanes: 2\n");
    struct pd_topology topology = {.rank = 0, .rank_count = 3};
    struct pd_engine *engine = NULL;
    struct pd_error error = {0};

    ck_assert_int_eq(pd_engine_create(&engine, config, &topology, &error), PD_ECONFIG);
    ck_assert_ptr_null(engine);
    pd_config_destroy(config);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(adopting_a_model_survives_each_failed_allocation)
{
    static const char *const configs[] = {
        "optimizer: {name: lamb}\n",
        "optimizer: {name: adamw}\naggregation: direct\n",
    };
    struct pd_config *config = parse(configs[_i]);
    struct pd_topology topology = {.rank = 0, .rank_count = 2};
    struct pd_tensor_list model;
    struct pd_error error = {0};
    bool adopted = false;

    make_model(&model);
    size_t live = pd_heap_blocks_live();
    for (long at = 0; !adopted; at++) {
        struct pd_engine *engine;
        ck_assert_int_eq(pd_engine_create(&engine, config, &topology, &error), PD_OK);
        pd_heap_fail_at(at);
        enum pd_status status = pd_engine_load_model(engine, &model, &error);
        pd_heap_fail_at(-1);
        adopted = status == PD_OK;
        ck_assert(adopted || status == PD_ENOMEM);
        pd_engine_destroy(engine);
        ck_assert_uint_eq(pd_heap_blocks_live(), live);
        ck_assert_int_lt(at, 100);
    }
    pd_tensor_list_finish(&model);
    pd_config_destroy(config);
}
END_TEST

START_TEST(model_from_a_file_is_served_and_workers_agree_with_it)
{
    struct pd_error error = {0};
    uint64_t begin;
    uint64_t count;
    uint64_t version;
    fixture_init(&f, 0, 1, "optimizer: {name: sgd, lr: 1}\n");
    ck_assert_int_eq(pd_engine_load_model(f.engine, &f.model, &error), PD_OK);
    float *values = pd_engine_values(f.engine, &begin, &count);
    ck_assert_uint_eq(count, FIXTURE_ELEMENTS);
    for (uint32_t i = 0; i < FIXTURE_ELEMENTS; i++) {
        values[i] = 50;
    }
    fixture_enlist(&f, 3, "a");
    ck_assert_uint_eq(fixture_count(&f, 3, PD_MESSAGE_VALUES_STORED), 0);
    struct pd_message stray = {.kind = PD_MESSAGE_VALUES,
                               .values = {.element_count = FIXTURE_ELEMENTS}};
    fixture_say(&f, 3, &stray, FIXTURE_ELEMENTS * sizeof(float));
    ck_assert_ptr_null(f.placed[3]);
    fixture_payload(&f, 3, NULL, 0, true);
    fixture_push(&f, 3, 0, 2, 1);
    ck_assert_float_eq(pd_engine_parameters(f.engine, &version, &begin, &count)[0], 48);
    ck_assert_uint_eq(version, 1);
    fixture_finish(&f);
}
END_TEST

START_TEST(there_are_no_parameters_before_version_0)
{
    uint64_t number;
    fixture_init(&f, 0, 1, "{}\n");
    ck_assert_ptr_null(pd_engine_parameters(f.engine, &number, &number, &number));
    fixture_finish(&f);
}
END_TEST

START_TEST(rank_introduces_itself_to_rank_0_and_does_as_it_is_ordered)
{
    struct pd_event event = {.kind = PD_EVENT_OPENED, .outgoing = true, .peer = "a:1"};
    struct pd_message order = {.kind = PD_MESSAGE_ORDER,
                               .order = {.kind = PD_ORDER_JOIN, .worker_id = 4, .name = "a"}};
    fixture_init(&f, 1, 2, "{}\n");
    event.now_ms = f.now_ms;
    pd_engine_step(f.engine, &event, &f.actions);
    ck_assert_uint_eq(f.actions.count, 1);
    ck_assert_int_eq(f.actions.items[0].kind, PD_ACTION_SEND);
    fixture_say(&f, 0, &order, 0);
    ck_assert_ptr_nonnull(pd_roster_find(f.engine->roster, 4));
    ck_assert_int_eq(fixture_last(&f, 0)->kind, PD_MESSAGE_REPORT);
    ck_assert_int_eq(fixture_last(&f, 0)->report.kind, PD_REPORT_EXECUTED);
    ck_assert_uint_eq(fixture_last(&f, 0)->report.order_index, 0);
    order.order = (struct pd_order){.index = 1, .kind = PD_ORDER_STOP, .reason = "enough"};
    fixture_say(&f, 0, &order, 0);
    ck_assert(f.exited);
    ck_assert_str_eq(f.logged, "stopped at step 0: enough");
    fixture_finish(&f);
}
END_TEST

START_TEST(drain_asked_for_before_the_ranks_are_linked_is_told_when_they_are)
{
    struct pd_event event = {.kind = PD_EVENT_DRAIN, .text = "signal 15"};
    fixture_init(&f, 1, 2, "{}\n");
    event.now_ms = f.now_ms;
    pd_engine_step(f.engine, &event, &f.actions);
    ck_assert_uint_eq(f.actions.count, 0);
    event = (struct pd_event){
        .kind = PD_EVENT_OPENED, .now_ms = f.now_ms, .outgoing = true, .peer = "a:1"};
    pd_engine_step(f.engine, &event, &f.actions);
    ck_assert_uint_eq(f.actions.count, 2);
    fixture_note(&f);
    ck_assert_int_eq(fixture_last(&f, 0)->report.kind, PD_REPORT_DRAIN);
    ck_assert_str_eq(fixture_last(&f, 0)->report.text, "signal 15");
    fixture_finish(&f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("engine");
    TCase *tests = tcase_create("engine");

    tcase_add_test(tests, create_survives_each_failed_allocation);
    tcase_add_test(tests, lanes_that_do_not_divide_the_ranks_are_refused);
    tcase_add_loop_test(tests, adopting_a_model_survives_each_failed_allocation, 0, 2);
    tcase_add_test(tests, model_from_a_file_is_served_and_workers_agree_with_it);
    tcase_add_test(tests, there_are_no_parameters_before_version_0);
    tcase_add_test(tests, rank_introduces_itself_to_rank_0_and_does_as_it_is_ordered);
    tcase_add_test(tests, drain_asked_for_before_the_ranks_are_linked_is_told_when_they_are);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
