/* Which part of a rule's state Lookahead may scale. */
#include "server/core/optimizer_state.h"

#include "common/heap.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 512u
#define RUN PD_QUANTIZE_RUN

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

int main(void)
{
    Suite *suite = suite_create("optimizer_state");
    TCase *tests = tcase_create("optimizer_state");

    tcase_add_loop_test(tests, only_momentum_buffers_are_scaled_and_only_where_it_is_asked, 0,
                        CASE_COUNT);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
