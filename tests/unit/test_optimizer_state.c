/* What a rule keeps between steps: which part of it Lookahead may scale; and kept twice, a step
 * leaves it alone until it counts. */
#include "server/core/optimizer_state.h"

#include "common/heap.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 512u
#define RUN PD_QUANTIZE_RUN
#define TENSOR_ELEMENTS 2500u /* more than is brought on at a time, and no multiple of it */
#define BLOCK_ELEMENTS 1500u

static struct pd_config *config;
static struct pd_tensor_list model;
static struct pd_shard_plan *plan;
static struct pd_optimizer_state state;

/* One tensor, and the state that a step along a gradient of ones makes. */
static void begin(const char *text)
{
    static const uint32_t group = 0;
    struct pd_error error = {0};
    float gradient[COUNT];
    float parameters[COUNT];
    float next[COUNT];

    ck_assert_msg(pd_config_create(&config, "test", text, NULL, 0, &error) == PD_OK, "%s",
                  error.message);
    ck_assert_int_eq(pd_tensor_list_init(&model, 1, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(&model, "w", 1, 1, (const uint64_t[]){COUNT}, &error),
                     PD_OK);
    ck_assert_int_eq(pd_shard_plan_create(&plan, &model, COUNT, 1, 1, &error), PD_OK);
    ck_assert_int_eq(pd_optimizer_state_init(&state, config, &model, plan, &plan->shards[0], &group,
                                             false, &error),
                     PD_OK);
    for (uint32_t i = 0; i < COUNT; i++) {
        gradient[i] = 1;
        parameters[i] = 1;
    }
    double sums[2] = {COUNT, COUNT};
    double partial[2];
    struct pd_optimizer_step step = {.hyper = &config->groups[0].hyper,
                                     .lr = 0.1,
                                     .initial_lr = 0.1,
                                     .number = 1,
                                     .group_number = 1,
                                     .gradient_scale = 1,
                                     .gradient_norm = 1};
    for (uint32_t pass = 0; pass < pd_optimizer_pass_count(config->optimizer, step.hyper); pass++) {
        struct pd_optimizer_block block = {.count = COUNT,
                                           .gradient = gradient,
                                           .parameters = parameters,
                                           .parameters_next = next,
                                           .sums = sums,
                                           .partial = partial};
        pd_optimizer_state_run(pd_optimizer_state_of(&state, 0), pass, &step, &block);
    }
}

static void end(void)
{
    pd_optimizer_state_finish(&state);
    pd_shard_plan_destroy(plan);
    pd_tensor_list_finish(&model);
    pd_config_destroy(config);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

/* An element of an array of the state, restored if it is in 8 bits. */
static float element(uint32_t array, uint32_t index)
{
    const struct pd_tensor_state *tensor = pd_optimizer_state_of(&state, 0);

    if (tensor->arrays[array] != NULL) {
        return tensor->arrays[array][index];
    }
    float value;
    pd_quantize_restore(tensor->maps[array], &value, tensor->codes[array] + index,
                        tensor->magnitudes[array][index / RUN], 1);
    return value;
}

static const struct {
    const char *optimizer;
    int momentum; /* which array is the momentum buffer; -1: none is */
} cases[] = {
    {"{name: sgd, momentum: 0.9}", 0},
    {"{name: sgd, momentum: 0.9, nesterov: true}", 0},
    {"{name: sgd, momentum: 0.9, state_bits: 8}", 0},
    {"{name: sgdw, momentum: 0.9}", 0},
    {"{name: lars, momentum: 0.9}", 0},
    {"{name: rmsprop, momentum: 0.9}", 1},
    {"{name: rmsprop, momentum: 0.9, centered: true}", 1},
    {"{name: rmsprop, centered: true}", -1},
    {"{name: rmsprop_tf, momentum: 0.9}", 1},
    {"{name: rmsprop_tf, centered: true}", -1},
    {"{name: adam}", -1},
    {"{name: lion}", -1},
};
#define CASE_COUNT ((int)(sizeof cases / sizeof cases[0]))

START_TEST(only_momentum_buffers_are_scaled_and_only_where_it_is_asked)
{
    char text[200];

    snprintf(text, sizeof text, "{block_size: 512, optimizer: %s}", cases[_i].optimizer);
    begin(text);
    struct pd_tensor_state *tensor = pd_optimizer_state_of(&state, 0);
    for (uint32_t array = 0; array < tensor->array_count; array++) {
        float first = element(array, 0);
        float last = element(array, COUNT - 1);
        pd_optimizer_state_scale_momentum(tensor, RUN, COUNT - RUN, 0.5);
        ck_assert_float_eq(element(array, 0), first);
        ck_assert_float_eq(element(array, COUNT - 1),
                           (int)array == cases[_i].momentum ? last / 2 : last);
        pd_optimizer_state_scale_momentum(tensor, RUN, COUNT - RUN, 2);
    }
    if (cases[_i].momentum >= 0) {
        ck_assert_float_ne(element((uint32_t)cases[_i].momentum, 0), 0);
    }
    end();
}
END_TEST

/* ---- Kept twice ---- */

static const uint32_t groups[2] = {0, 0};
static float gradient[TENSOR_ELEMENTS];
static float parameters[TENSOR_ELEMENTS];
static float parameters_next[TENSOR_ELEMENTS];

static void make_config(const char *text)
{
    struct pd_error error = {0};
    ck_assert_msg(pd_config_create(&config, "test", text, NULL, 0, &error) == PD_OK, "%s",
                  error.message);
}

static enum pd_status make_state(bool twice)
{
    struct pd_error error = {0};
    return pd_optimizer_state_init(&state, config, &model, plan, &plan->shards[0], groups, twice,
                                   &error);
}

static void setup(void)
{
    const uint64_t shape = TENSOR_ELEMENTS;
    struct pd_error error = {0};

    make_config("{optimizer: {name: adamw, lr: 0.1}}");
    ck_assert_int_eq(pd_tensor_list_init(&model, 2, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(&model, "a", 1, 1, &shape, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(&model, "b", 1, 1, &shape, &error), PD_OK);
    ck_assert_int_eq(pd_shard_plan_create(&plan, &model, BLOCK_ELEMENTS, 1, 1, &error), PD_OK);
    for (uint32_t i = 0; i < TENSOR_ELEMENTS; i++) {
        gradient[i] = 0.01f * (float)(i % 97) - 0.3f;
        parameters[i] = 0.02f * (float)(i % 89) - 0.5f;
    }
}

static void teardown(void)
{
    pd_shard_plan_destroy(plan);
    pd_tensor_list_finish(&model);
    pd_config_destroy(config);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

/* Step `number` over all blocks of a tensor. */
static void run_step(uint32_t tensor, uint64_t number)
{
    const struct pd_optimizer_step step = {.hyper = &config->groups[0].hyper,
                                           .lr = 0.1,
                                           .initial_lr = 0.1,
                                           .number = number,
                                           .group_number = number,
                                           .gradient_scale = 1.0};

    for (uint32_t begin = 0; begin < TENSOR_ELEMENTS; begin += BLOCK_ELEMENTS) {
        uint32_t left = TENSOR_ELEMENTS - begin;
        struct pd_optimizer_block block = {
            .begin = begin,
            .count = left < BLOCK_ELEMENTS ? left : BLOCK_ELEMENTS,
            .gradient = gradient + begin,
            .parameters = parameters + begin,
            .parameters_next = parameters_next + begin,
        };
        pd_optimizer_state_run(pd_optimizer_state_of(&state, tensor), 0, &step, &block);
    }
}

static void copy_array(float *to, uint32_t tensor, uint32_t array)
{
    memcpy(to, pd_optimizer_state_of(&state, tensor)->arrays[array],
           TENSOR_ELEMENTS * sizeof(float));
}

START_TEST(kept_twice_a_step_leaves_it_alone_until_it_is_committed)
{
    const struct pd_tensor_set none = {0};
    float once[2][2][TENSOR_ELEMENTS]; /* after step, by array */
    float once_parameters[2][TENSOR_ELEMENTS];
    float now[TENSOR_ELEMENTS];

    ck_assert_int_eq(make_state(false), PD_OK);
    for (uint32_t step = 0; step < 2; step++) {
        run_step(0, step + 1);
        copy_array(once[step][0], 0, 0);
        copy_array(once[step][1], 0, 1);
        memcpy(once_parameters[step], parameters_next, sizeof parameters_next);
    }
    pd_optimizer_state_finish(&state);

    ck_assert_int_eq(make_state(true), PD_OK);
    static const float zeros[TENSOR_ELEMENTS];
    run_step(0, 1);
    copy_array(now, 0, 0);
    ck_assert_mem_eq(now, zeros, sizeof now);
    run_step(0, 1); /* forgotten, and begun again */
    pd_optimizer_state_commit(&state, &none);
    for (uint32_t array = 0; array < 2; array++) {
        copy_array(now, 0, array);
        ck_assert_mem_eq(now, once[0][array], sizeof now);
    }
    ck_assert_mem_eq(parameters_next, once_parameters[0], sizeof parameters_next);
    run_step(0, 2);
    pd_optimizer_state_commit(&state, &none);
    copy_array(now, 0, 1);
    ck_assert_mem_eq(now, once[1][1], sizeof now);
    ck_assert_mem_eq(parameters_next, once_parameters[1], sizeof parameters_next);
    pd_optimizer_state_finish(&state);
}
END_TEST

START_TEST(commit_leaves_the_state_of_absent_tensors)
{
    struct pd_tensor_set absent = {0};
    float before[TENSOR_ELEMENTS];
    float now[TENSOR_ELEMENTS];

    ck_assert_int_eq(make_state(true), PD_OK);
    run_step(0, 1);
    run_step(1, 1);
    pd_optimizer_state_commit(&state, &absent);
    copy_array(before, 1, 0);
    run_step(0, 2);
    pd_tensor_set_add(&absent, 1);
    pd_optimizer_state_commit(&state, &absent);
    copy_array(now, 1, 0);
    ck_assert_mem_eq(now, before, sizeof now);
    copy_array(now, 0, 0);
    ck_assert_mem_ne(now, before, sizeof now);
    pd_optimizer_state_finish(&state);
}
END_TEST

START_TEST(only_rules_of_one_pass_in_32_bits_may_be_kept_twice)
{
    static const struct {
        const char *text;
        bool allowed;
    } rules[] = {
        {"{optimizer: {name: sgd, momentum: 0.9}}", true},
        {"{optimizer: {name: lion}}", true},
        {"{optimizer: {name: lion}, groups: [{match: a, caution: true}]}", false},
        {"{block_size: 256, optimizer: {name: adamw, state_bits: 8}}", false},
        {"{optimizer: {name: lamb}}", false},
        {"{optimizer: {name: adafactor}}", false},
    };
    pd_config_destroy(config);
    make_config(rules[_i].text);
    ck_assert_int_eq(pd_optimizer_state_allows_twice(config), rules[_i].allowed);
}
END_TEST

START_TEST(init_survives_each_failed_allocation)
{
    size_t live = pd_heap_blocks_live();
    bool made = false;

    for (long at = 0; !made; at++) {
        pd_heap_fail_at(at);
        enum pd_status status = make_state(true);
        pd_heap_fail_at(-1);
        made = status == PD_OK;
        ck_assert(made || status == PD_ENOMEM);
        ck_assert(made || pd_heap_blocks_live() == live);
        /* The tensors' states, and two arrays twice for each. */
        ck_assert_int_eq(made, at == 9);
    }
    pd_optimizer_state_finish(&state);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("optimizer_state");
    TCase *tests = tcase_create("optimizer_state");

    tcase_add_loop_test(tests, only_momentum_buffers_are_scaled_and_only_where_it_is_asked, 0,
                        CASE_COUNT);
    suite_add_tcase(suite, tests);

    TCase *twice = tcase_create("twice");
    tcase_add_checked_fixture(twice, setup, teardown);
    tcase_add_test(twice, kept_twice_a_step_leaves_it_alone_until_it_is_committed);
    tcase_add_test(twice, commit_leaves_the_state_of_absent_tensors);
    tcase_add_loop_test(twice, only_rules_of_one_pass_in_32_bits_may_be_kept_twice, 0, 6);
    tcase_add_test(twice, init_survives_each_failed_allocation);
    suite_add_tcase(suite, twice);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
