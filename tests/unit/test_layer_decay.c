/* Which layer a tensor is of, and what that makes of its rate. */
#include "common/heap.h"
#include "server/core/config.h"
#include "tests/support/vectors.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct pd_config *parse(const char *text)
{
    struct pd_config *config = NULL;
    struct pd_error error = {0};

    ck_assert_msg(pd_config_create(&config, "test", text, NULL, 0, &error) == PD_OK, "%s",
                  error.message);
    return config;
}

static void add(struct pd_tensor_list *model, const char *name)
{
    static const uint64_t shape[] = {2};
    struct pd_error error = {0};

    ck_assert_int_eq(pd_tensor_list_append(model, name, strlen(name), 1, shape, &error), PD_OK);
}

/* The rates' factors of `names`, which end in NULL. */
static double *factors_of(const char *text, const char *const *names, struct pd_error *error)
{
    struct pd_config *config = parse(text);
    struct pd_tensor_list model;
    double *factors = NULL;

    ck_assert_int_eq(pd_tensor_list_init(&model, 64, error), PD_OK);
    for (size_t i = 0; names[i] != NULL; i++) {
        add(&model, names[i]);
    }
    if (pd_layer_decay_factors(&factors, &config->layer_decay, &model, error) != PD_OK) {
        ck_assert_int_eq(error->status, PD_EMODEL);
        ck_assert_ptr_null(factors);
    }
    pd_tensor_list_finish(&model);
    pd_config_destroy(config);
    return factors;
}

/* BEiT and timm: embeddings 0, blocks from 1, the rest one more than the last block. */
START_TEST(factors_are_those_of_the_reference)
{
    json_t *document = vectors_load(PD_VECTORS, "comp_layer_decay_adamw");
    const json_t *groups = json_object_get(document, "groups");
    const char *names[16] = {NULL};
    struct pd_error error = {0};
    size_t count = json_array_size(groups);

    ck_assert_uint_lt(count, 16);
    for (size_t i = 0; i < count; i++) {
        const json_t *tensors = json_object_get(json_array_get(groups, i), "tensors");
        names[i] = json_string_value(json_array_get(tensors, 0));
    }
    double *factors = factors_of("layer_decay: {decay: 0.75, layers: \"blocks.{}.*\", "
                                 "embeddings: \"embed.*\"}",
                                 names, &error);
    for (size_t i = 0; i < count; i++) {
        const json_t *hyper = json_object_get(json_array_get(groups, i), "hyperparameters");
        ck_assert_double_eq(factors[i], vectors_number(json_object_get(hyper, "lr_scale")));
    }
    pd_heap_free(factors);
    json_decref(document);
}
END_TEST

/* ELECTRA: the head lies two above the last layer, as something else has the depth between. */
START_TEST(depth_max_may_leave_room_above_the_layers)
{
    static const char *const names[] = {
        "electra.embeddings.word.weight", "electra.encoder.layer.0.output.weight",
        "electra.encoder.layer.11.output.weight", "classifier.weight", NULL};
    static const int exponents[] = {14, 13, 2, 0};
    struct pd_error error = {0};
    double *factors = factors_of("layer_decay: {decay: 0.8, layers: \"*.layer.{}.*\", "
                                 "embeddings: \"*.embeddings.*\", depth_max: 14}",
                                 names, &error);

    for (size_t i = 0; i < 4; i++) {
        ck_assert_double_eq(factors[i], pow(0.8, exponents[i]));
    }
    pd_heap_free(factors);
}
END_TEST

/* The first number that a pattern matches counts, and only a whole one. */
START_TEST(the_number_is_where_the_mark_stands)
{
    static const char *const names[] = {"s3.h.0.w",    "s3.h.7.c2.w",     "h.1234567890.w",
                                        "s3.layer1.w", "stage.2.h.3.w.5", NULL};
    static const int exponents[] = {8, 1, 0, 7, 5};
    struct pd_error error = {0};
    double *factors = factors_of(
        "layer_decay: {decay: 0.5, layers: [\"*h.{}.*\", \"s3.layer{}.*\"]}", names, &error);

    for (size_t i = 0; i < 5; i++) {
        ck_assert_double_eq(factors[i], pow(0.5, exponents[i]));
    }
    pd_heap_free(factors);
}
END_TEST

START_TEST(without_a_decay_every_factor_is_one)
{
    static const char *const names[] = {"h.0.w", "w", NULL};
    struct pd_error error = {0};
    double *factors = factors_of("layer_decay: {layers: \"h.{}.*\"}", names, &error);

    ck_assert_double_eq(factors[0], 1);
    ck_assert_double_eq(factors[1], 1);
    pd_heap_free(factors);
}
END_TEST

START_TEST(a_model_that_it_does_not_suit_is_refused)
{
    static const char *const names[] = {"h.0.w", "h.11.w", "w", NULL};
    static const struct {
        const char *text;
        const char *message;
    } cases[] = {
        {"layer_decay: {decay: 0.5, layers: \"blocks.{}.*\"}",
         "layer_decay.layers: 'blocks.{}.*' matches no tensor of the model"},
        {"layer_decay: {decay: 0.5, layers: \"h.{}.*\", depth_max: 11}",
         "layer_decay.depth_max: 11, but tensor 'h.11.w' has depth 12; allowed: at least 12"},
    };
    struct pd_error error = {0};

    ck_assert_ptr_null(factors_of(cases[_i].text, names, &error));
    ck_assert_str_eq(error.message, cases[_i].message);
}
END_TEST

START_TEST(a_failed_allocation_is_said)
{
    struct pd_config *config = parse("layer_decay: {decay: 0.5, layers: \"h.{}\"}");
    struct pd_tensor_list model;
    struct pd_error error = {0};
    double *factors = NULL;

    ck_assert_int_eq(pd_tensor_list_init(&model, 1, &error), PD_OK);
    add(&model, "h.0");
    pd_heap_fail_at(0);
    ck_assert_int_eq(pd_layer_decay_factors(&factors, &config->layer_decay, &model, &error),
                     PD_ENOMEM);
    ck_assert_ptr_null(factors);
    pd_tensor_list_finish(&model);
    pd_config_destroy(config);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("layer_decay");
    TCase *tests = tcase_create("layer_decay");

    tcase_add_test(tests, factors_are_those_of_the_reference);
    tcase_add_test(tests, depth_max_may_leave_room_above_the_layers);
    tcase_add_test(tests, the_number_is_where_the_mark_stands);
    tcase_add_test(tests, without_a_decay_every_factor_is_one);
    tcase_add_loop_test(tests, a_model_that_it_does_not_suit_is_refused, 0, 2);
    tcase_add_test(tests, a_failed_allocation_is_said);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
