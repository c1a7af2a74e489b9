/* Rules that step beside: to the bit what they do in place of the state, or of the gradient,
 * however their results are written and into whatever copy, and nothing else they read has changed.
 */
#include "common/kernel.h"
#include "server/core/optimizer.h"
#include "server/core/reduce.h"

#include <check.h>
#include <math.h>
#include <stdalign.h>
#include <string.h>

#define COUNT 75u /* four cache lines and a rest */
#define ROOM (COUNT + 16u)
#define FORM_COUNT 4

/* What a step reads, or what it has written. */
struct numbers {
    alignas(64) float gradient[ROOM];
    alignas(64) float parameters[ROOM];
    alignas(64) float state[PD_OPTIMIZER_STATE_COUNT_MAX][ROOM];
    alignas(64) float fresh[ROOM]; /* the parameters once more, of a streamed step */
};

static void fill(struct numbers *numbers)
{
    for (uint32_t i = 0; i < ROOM; i++) {
        numbers->gradient[i] = cosf((float)i) * 0.1f;
        numbers->fresh[i] = 0;
        numbers->parameters[i] = sinf((float)i);
        for (uint32_t k = 0; k < PD_OPTIMIZER_STATE_COUNT_MAX; k++) {
            numbers->state[k][i] = 0.01f * (float)(i + k + 1);
        }
    }
}

/* Options that choose another loop of a rule, where it has them. */
static void choose_form(const struct pd_optimizer *rule, int form, struct pd_hyper *hyper)
{
    struct pd_error error = {0};

    memset(hyper, 0, sizeof *hyper);
    ck_assert_int_eq(pd_option_defaults(rule->options, rule->option_count, hyper, &error), PD_OK);
    for (uint32_t i = 0; i < rule->option_count; i++) {
        size_t offset = rule->options[i].offset;
        if (offset == offsetof(struct pd_hyper, momentum)) {
            hyper->momentum = form % 2 == 1 ? 0.9 : 0;
        } else if (offset == offsetof(struct pd_hyper, nesterov)) {
            hyper->nesterov = form == 3;
        } else if (offset == offsetof(struct pd_hyper, centered)) {
            hyper->centered = form >= 2;
        } else if (offset == offsetof(struct pd_hyper, amsgrad)) {
            hyper->amsgrad = form >= 2;
        }
    }
}

/* One step of a block that begins `shift` elements into the arrays. The parameters go to `next`,
 * which may be the gradient before, and the state to `state_after`, which may be `before`. */
static void take_step(const struct pd_optimizer *rule, const struct pd_hyper *hyper,
                      struct numbers *before, float *next, struct numbers *after,
                      struct numbers *state_after, uint32_t shift, bool streamed)
{
    const struct pd_optimizer_step step = {
        .hyper = hyper,
        .lr = 1e-2,
        .initial_lr = 1e-2,
        .number = 7,
        .group_number = 7,
        .gradient_scale = 0.5,
        .gradient_norm = 1,
    };
    struct pd_optimizer_block block = {
        .count = COUNT,
        .gradient = before->gradient + shift,
        .parameters = before->parameters + shift,
        .parameters_next = next + shift,
        .streamed = streamed,
        .fresh = streamed ? after->fresh + shift : NULL,
    };
    for (uint32_t k = 0; k < rule->state_count(hyper, NULL); k++) {
        block.state[k] = before->state[k] + shift;
        block.state_next[k] = state_after->state[k] + shift;
    }
    rule->passes[0].run(&step, &block);
}

static void compare(const struct pd_optimizer *rule, const struct pd_hyper *hyper, uint32_t shift,
                    bool streamed)
{
    struct numbers before;
    struct numbers kept;
    struct numbers beside;
    struct numbers in_place;

    fill(&before);
    kept = before;
    beside = before;
    in_place = before;
    take_step(rule, hyper, &before, beside.parameters, &beside, &beside, shift, streamed);
    ck_assert_msg(memcmp(&before, &kept, sizeof kept) == 0, "%s changes what it reads", rule->name);
    if (streamed && pd_kernel_streams()) {
        ck_assert_msg(
            memcmp(beside.fresh + shift, beside.parameters + shift, COUNT * sizeof(float)) == 0,
            "%s from element %u: other parameters in the copy", rule->name, shift);
    }
    take_step(rule, hyper, &before, in_place.parameters, &in_place, &before, shift, streamed);
    memcpy(in_place.state, before.state, sizeof in_place.state);
    ck_assert_msg(memcmp(&beside, &in_place, sizeof in_place) == 0,
                  "%s from element %u%s is another step beside than in place", rule->name, shift,
                  streamed ? ", streamed," : "");
    before = kept;
    in_place = kept;
    take_step(rule, hyper, &before, before.gradient, &in_place, &in_place, shift, streamed);
    memcpy(in_place.parameters + shift, before.gradient + shift, COUNT * sizeof(float));
    ck_assert_msg(memcmp(&beside, &in_place, sizeof in_place) == 0,
                  "%s from element %u%s is another step in the place of the gradient", rule->name,
                  shift, streamed ? ", streamed," : "");
}

START_TEST(a_step_beside_is_the_step_in_place_to_the_bit)
{
    const struct pd_optimizer *rule = pd_optimizer_at((size_t)_i / FORM_COUNT);
    struct pd_hyper hyper;

    if (rule == NULL || !rule->beside) {
        return;
    }
    choose_form(rule, _i % FORM_COUNT, &hyper);
    compare(rule, &hyper, 0, false);
    compare(rule, &hyper, 0, true);
    compare(rule, &hyper, 3, true); /* not at the beginning of a cache line */
}
END_TEST

/* Have the block's results written to `to`. */
static void write_to(struct pd_optimizer_block *block, struct numbers *to)
{
    block->parameters_next = to->parameters;
    for (uint32_t k = 0; k < PD_OPTIMIZER_STATE_COUNT_MAX; k++) {
        block->state_next[k] = to->state[k];
    }
}

/* From a gradient in 16 bits to a copy in them: what comes of the same numbers in float32. */
START_TEST(a_step_beside_reads_and_writes_16_bits_as_they_convert)
{
    const struct pd_optimizer *rule = pd_optimizer_at((size_t)_i / FORM_COUNT);
    enum pd_dtype dtype = _i % 2 == 0 ? PD_DTYPE_BFLOAT16 : PD_DTYPE_FLOAT16;
    const uint16_t filler = 0xabab;
    uint16_t pushed[ROOM];
    uint16_t fresh[ROOM];
    uint16_t converted[ROOM];
    struct numbers before;
    struct numbers expected;
    struct numbers actual;
    double squares[2][PD_REDUCE_LANE_COUNT];
    struct pd_hyper hyper;

    if (rule == NULL || !rule->beside || !pd_kernel_streams()) {
        return;
    }
    choose_form(rule, _i % FORM_COUNT, &hyper);
    fill(&before);
    pd_convert_from_float32(pushed, dtype, before.gradient, ROOM);
    pd_convert_to_float32(before.gradient, pushed, dtype, ROOM);
    expected = before;
    actual = before;
    const struct pd_optimizer_step step = {.hyper = &hyper,
                                           .lr = 1e-2,
                                           .initial_lr = 1e-2,
                                           .number = 7,
                                           .group_number = 7,
                                           .gradient_scale = 0.5,
                                           .gradient_norm = 1};
    struct pd_optimizer_block block = {.count = COUNT,
                                       .gradient = before.gradient,
                                       .parameters = before.parameters,
                                       .streamed = _i % 3 == 0,
                                       .squares = squares[0]};
    for (uint32_t k = 0; k < PD_OPTIMIZER_STATE_COUNT_MAX; k++) {
        block.state[k] = before.state[k];
    }
    write_to(&block, &expected);
    rule->passes[0].run(&step, &block);
    write_to(&block, &actual);
    block.gradient = NULL;
    block.pushed = pushed;
    block.pushed_dtype = dtype;
    block.fresh = fresh;
    block.fresh_dtype = dtype;
    block.squares = squares[1];
    fresh[COUNT] = filler;
    rule->passes[0].run(&step, &block);
    ck_assert_msg(memcmp(&actual, &expected, sizeof actual) == 0, "%s from %s is another step",
                  rule->name, pd_dtype_name(dtype));
    ck_assert_mem_eq(squares[1], squares[0], sizeof squares[0]);
    pd_convert_from_float32(converted, dtype, actual.parameters, COUNT);
    ck_assert_mem_eq(fresh, converted, COUNT * sizeof *fresh);
    ck_assert_uint_eq(fresh[COUNT], filler);
}
END_TEST

START_TEST(a_step_beside_gives_the_squares_of_the_gradient_by_the_way)
{
    const struct pd_optimizer *rule = pd_optimizer_find("adamw");
    struct numbers before;
    struct numbers after;
    struct pd_hyper hyper;
    double squares[PD_REDUCE_LANE_COUNT];
    double powers[2];

    if (!pd_kernel_streams()) {
        return;
    }
    choose_form(rule, 0, &hyper);
    fill(&before);
    const struct pd_optimizer_step step = {
        .hyper = &hyper, .lr = 1e-2, .number = 7, .group_number = 7, .gradient_scale = 0.5};
    struct pd_optimizer_block block = {
        .count = COUNT,
        .gradient = before.gradient,
        .parameters = before.parameters,
        .parameters_next = after.parameters,
        .state = {before.state[0], before.state[1]},
        .state_next = {after.state[0], after.state[1]},
        .streamed = _i == 1,
        .squares = squares,
    };
    rule->passes[0].run(&step, &block);
    pd_reduce_norms(before.gradient, COUNT, 2, powers);
    ck_assert_double_eq(pd_reduce_squares(squares), powers[1]);
    before.gradient[COUNT - 1] = INFINITY;
    rule->passes[0].run(&step, &block);
    ck_assert_double_nan(pd_reduce_squares(squares));
}
END_TEST

START_TEST(every_rule_of_one_loop_over_elements_steps_beside)
{
    static const char *const names[] = {"sgd",   "sgdw",    "adam",       "adamw",    "lion",
                                        "yogi",  "adagrad", "rmsprop",    "adadelta", "adamax",
                                        "nadam", "nadamw",  "rmsprop_tf", "radam",    "adan"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const struct pd_optimizer *rule = pd_optimizer_find(names[i]);
        ck_assert_msg(rule != NULL && rule->beside, "%s", names[i]);
    }
}
END_TEST

static int rule_count(void)
{
    int count = 0;
    while (pd_optimizer_at((size_t)count) != NULL) {
        count++;
    }
    return count;
}

int main(void)
{
    Suite *suite = suite_create("elementwise");
    TCase *tests = tcase_create("beside");
    tcase_add_loop_test(tests, a_step_beside_is_the_step_in_place_to_the_bit, 0,
                        rule_count() * FORM_COUNT);
    tcase_add_loop_test(tests, a_step_beside_reads_and_writes_16_bits_as_they_convert, 0,
                        rule_count() * FORM_COUNT);
    tcase_add_loop_test(tests, a_step_beside_gives_the_squares_of_the_gradient_by_the_way, 0, 2);
    tcase_add_test(tests, every_rule_of_one_loop_over_elements_steps_beside);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
