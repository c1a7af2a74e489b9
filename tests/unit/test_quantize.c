/* State in 8 bits: the maps and the rounding of the reference, whole trajectories, and the memory.
 */
#include "common/heap.h"
#include "server/core/optimizer_state.h"
#include "server/core/quantize.h"
#include "tests/support/trajectory.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

START_TEST(a_map_is_that_of_the_reference_to_the_bit)
{
    static const char *const cases[] = {"bnb_dynamic_map_unsigned", "bnb_dynamic_map_signed"};
    json_t *document = vectors_load(PD_VECTORS, cases[_i]);
    struct pd_quantize_map map;
    uint32_t count;
    float *expected = vectors_floats(json_object_get(document, "code"), &count);

    pd_quantize_map_init(&map, _i == 1);
    ck_assert_uint_eq(count, 256);
    ck_assert_mem_eq(map.values, expected, sizeof map.values);
    pd_heap_free(expected);
    json_decref(document);
}
END_TEST

static const char *const calls[] = {"bnb_quant_signed_256", "bnb_quant_signed_2048",
                                    "bnb_quant_signed_wide", "bnb_quant_signed_zero_block",
                                    "bnb_quant_unsigned_256"};

START_TEST(numbers_become_the_codes_of_the_reference_and_come_back_as_there)
{
    json_t *document = vectors_load(PD_VECTORS, calls[_i]);
    uint32_t run = (uint32_t)json_integer_value(json_object_get(document, "blocksize"));
    const json_t *codes = json_object_get(document, "codes");
    const json_t *magnitudes = json_object_get(document, "absmax");
    struct pd_quantize_map map;
    uint32_t count;
    float *input = vectors_floats(json_object_get(document, "input"), &count);
    float *restored = vectors_floats(json_object_get(document, "dequantized"), &count);
    uint8_t *own_codes = pd_heap_zalloc(run, 1);
    float *own = pd_heap_zalloc(run, sizeof *own);

    pd_quantize_map_init(&map, json_is_true(json_object_get(document, "signed")));
    for (uint32_t begin = 0; begin < count; begin += run) {
        uint32_t length = count - begin < run ? count - begin : run;
        float magnitude = pd_quantize_run(&map, own_codes, input + begin, length);
        ck_assert_float_eq(magnitude,
                           (float)vectors_number(json_array_get(magnitudes, begin / run)));
        for (uint32_t i = 0; i < length; i++) {
            ck_assert_int_eq(own_codes[i], json_integer_value(json_array_get(codes, begin + i)));
        }
        pd_quantize_restore(&map, own, own_codes, magnitude, length);
        ck_assert_mem_eq(own, restored + begin, length * sizeof *own);
    }
    pd_heap_free(own);
    pd_heap_free(own_codes);
    pd_heap_free(restored);
    pd_heap_free(input);
    json_decref(document);
}
END_TEST

static const char *const trajectories[] = {"bnb_adam8bit", "bnb_adamw8bit_wd", "bnb_lion8bit",
                                           "bnb_momentum8bit"};

START_TEST(a_rule_with_state_in_8_bits_gives_the_trajectory_of_its_reference)
{
    static const uint32_t block_sizes[] = {256, 512, 1024};
    struct vectors_case reference;

    vectors_case_init(&reference, PD_VECTORS, trajectories[_i]);
    ck_assert_uint_gt(reference.step_count, 0);
    for (size_t i = 0; i < sizeof block_sizes / sizeof block_sizes[0]; i++) {
        struct trajectory_options options = {
            .block_size = block_sizes[i], .gradient_scale = 1, .in_place = i == 1};
        double worst_error = trajectory_worst_error(&reference, &options);
        ck_assert_msg(worst_error <= 1, "%s in blocks of %u: %g times the tolerance",
                      trajectories[_i], block_sizes[i], worst_error);
    }
    vectors_case_finish(&reference);
}
END_TEST

/* Bytes of state for a million parameters. */
static size_t state_bytes(const char *text)
{
    struct pd_error error = {0};
    struct pd_config *config = NULL;
    struct pd_tensor_list model = {0};
    struct pd_shard_plan *plan = NULL;
    struct pd_optimizer_state state;
    const uint32_t group = 0;

    ck_assert_int_eq(pd_config_create(&config, "test", text, NULL, 0, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_init(&model, 1, &error), PD_OK);
    ck_assert_int_eq(
        pd_tensor_list_append(&model, "w", 1, 2, (const uint64_t[]){1000, 1000}, &error), PD_OK);
    ck_assert_int_eq(
        pd_shard_plan_create(&plan, &model, (uint32_t)config->block_size, 1, 1, &error), PD_OK);
    size_t before = pd_heap_bytes_live();
    ck_assert_int_eq(pd_optimizer_state_init(&state, config, &model, plan, &plan->shards[0], &group,
                                             false, &error),
                     PD_OK);
    size_t bytes = pd_heap_bytes_live() - before;
    pd_optimizer_state_finish(&state);
    ck_assert_uint_eq(pd_heap_bytes_live(), before);
    pd_shard_plan_destroy(plan);
    pd_tensor_list_finish(&model);
    pd_config_destroy(config);
    return bytes;
}

START_TEST(state_in_8_bits_takes_a_quarter_of_the_memory)
{
    static const struct {
        const char *plain;
        const char *quantized;
    } cases[] = {
        {"optimizer: {name: adam}", "optimizer: {name: adam, state_bits: 8}"},
        {"optimizer: {name: adamw}", "optimizer: {name: adamw, state_bits: 8}"},
        {"optimizer: {name: sgd, momentum: 0.9}",
         "optimizer: {name: sgd, momentum: 0.9, state_bits: 8}"},
        {"optimizer: {name: lion}", "optimizer: {name: lion, state_bits: 8}"},
    };
    size_t plain = state_bytes(cases[_i].plain);
    size_t quantized = state_bytes(cases[_i].quantized);

    ck_assert_uint_ge(plain, 4000000);
    ck_assert_double_le((double)quantized, 0.26 * (double)plain);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quantize");
    TCase *tests = tcase_create("quantize");

    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, a_map_is_that_of_the_reference_to_the_bit, 0, 2);
    tcase_add_loop_test(tests, numbers_become_the_codes_of_the_reference_and_come_back_as_there, 0,
                        5);
    tcase_add_loop_test(tests, a_rule_with_state_in_8_bits_gives_the_trajectory_of_its_reference, 0,
                        4);
    tcase_add_loop_test(tests, state_in_8_bits_takes_a_quarter_of_the_memory, 0, 4);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
