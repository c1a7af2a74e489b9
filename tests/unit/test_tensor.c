/* Tests of common/tensor.c. */
#include "common/tensor.h"

#include "common/heap.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct pd_error error;

static enum pd_status append(struct pd_tensor_list *list, const char *name,
                             uint32_t dimension_count, const uint64_t *shape)
{
    return pd_tensor_list_append(list, name, strlen(name), dimension_count, shape, &error);
}

/* weight [3, 4], bias [4], scale []. */
static void make_model(struct pd_tensor_list *list)
{
    ck_assert_int_eq(pd_tensor_list_init(list, 8, &error), PD_OK);
    ck_assert_int_eq(append(list, "weight", 2, (uint64_t[]){3, 4}), PD_OK);
    ck_assert_int_eq(append(list, "bias", 1, (uint64_t[]){4}), PD_OK);
    ck_assert_int_eq(append(list, "scale", 0, NULL), PD_OK);
}

START_TEST(tensors_follow_each_other_without_gaps)
{
    struct pd_tensor_list list;
    make_model(&list);
    ck_assert_uint_eq(list.count, 3);
    ck_assert_uint_eq(list.element_count, 17);
    ck_assert_uint_eq(list.tensors[1].element_begin, 12);
    ck_assert_uint_eq(list.tensors[2].element_begin, 16);
    ck_assert_uint_eq(list.tensors[2].element_count, 1);
    ck_assert_str_eq(list.tensors[0].name, "weight");
    pd_tensor_list_finish(&list);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

static const struct {
    const char *name;
    uint32_t dimension_count;
    uint64_t shape[9];
    enum pd_status status;
    const char *message;
} refusals[] = {
    {"", 1, {1}, PD_EMODEL, "tensor 3: name of 0 bytes, allowed are 1 to 255"},
    {"bias", 1, {1}, PD_EMODEL, "tensor 3: \"bias\" is the name of tensor 1 already"},
    {"a\nb", 1, {1}, PD_EMODEL, "tensor 3: name is not printable utf-8 text"},
    {"x", 2, {2, 0}, PD_EMODEL, "tensor \"x\": dimension 1 is 0"},
    {"x", 9, {1, 1, 1, 1, 1, 1, 1, 1, 1}, PD_ELIMIT, "tensor \"x\": 9 dimensions, at most 8"},
    {"x",
     2,
     {1ull << 40, 1ull << 40},
     PD_ELIMIT,
     "tensor \"x\": the model would exceed 137438953472 elements"},
    {"x",
     1,
     {(1ull << 37) - 16},
     PD_ELIMIT,
     "tensor \"x\": the model would exceed 137438953472 elements"},
};

START_TEST(append_refuses_and_leaves_the_list_as_it_was)
{
    struct pd_tensor_list list;
    make_model(&list);
    size_t blocks = pd_heap_blocks_live();
    enum pd_status status =
        append(&list, refusals[_i].name, refusals[_i].dimension_count, refusals[_i].shape);
    ck_assert_int_eq(status, refusals[_i].status);
    ck_assert_str_eq(error.message, refusals[_i].message);
    ck_assert_uint_eq(list.count, 3);
    ck_assert_uint_eq(list.element_count, 17);
    ck_assert_uint_eq(pd_heap_blocks_live(), blocks);
    pd_tensor_list_finish(&list);
}
END_TEST

START_TEST(a_name_of_256_bytes_is_too_long)
{
    struct pd_tensor_list list;
    char name[257];
    memset(name, 'n', 256);
    name[256] = '\0';
    make_model(&list);
    ck_assert_int_eq(append(&list, name, 0, NULL), PD_EMODEL);
    name[255] = '\0';
    ck_assert_int_eq(append(&list, name, 0, NULL), PD_OK);
    pd_tensor_list_finish(&list);
}
END_TEST

START_TEST(the_model_may_have_exactly_the_largest_count)
{
    struct pd_tensor_list list;
    make_model(&list);
    ck_assert_int_eq(append(&list, "x", 1, (uint64_t[]){(1ull << 37) - 17}), PD_OK);
    ck_assert_int_eq(append(&list, "y", 0, NULL), PD_ELIMIT);
    pd_tensor_list_finish(&list);
}
END_TEST

START_TEST(a_repeated_name_is_found_among_thousands)
{
    struct pd_tensor_list list;
    char name[32];
    ck_assert_int_eq(pd_tensor_list_init(&list, PD_TENSOR_COUNT_MAX, &error), PD_OK);
    for (uint32_t i = 0; i < PD_TENSOR_COUNT_MAX - 1; i++) {
        (void)snprintf(name, sizeof name, "layer.%u", i);
        ck_assert_int_eq(append(&list, name, 0, NULL), PD_OK);
    }
    for (uint32_t i = 0; i < PD_TENSOR_COUNT_MAX - 1; i += 97) {
        (void)snprintf(name, sizeof name, "layer.%u", i);
        ck_assert_int_eq(append(&list, name, 0, NULL), PD_EMODEL);
    }
    pd_tensor_list_finish(&list);
    ck_assert_int_eq(pd_tensor_list_init(&list, PD_TENSOR_COUNT_MAX + 1, &error), PD_ELIMIT);
}
END_TEST

START_TEST(a_copy_equals_and_owns_its_memory)
{
    struct pd_tensor_list list;
    struct pd_tensor_list copy;
    make_model(&list);
    ck_assert_int_eq(pd_tensor_list_copy(&copy, &list, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_compare(&list, &copy, &error), PD_OK);
    pd_tensor_list_finish(&list);
    ck_assert_str_eq(copy.tensors[2].name, "scale");
    pd_tensor_list_finish(&copy);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(copy_survives_each_failed_allocation)
{
    struct pd_tensor_list list;
    struct pd_tensor_list copy;
    make_model(&list);
    size_t blocks = pd_heap_blocks_live();
    pd_heap_fail_at(_i);
    ck_assert_int_eq(pd_tensor_list_copy(&copy, &list, &error), PD_ENOMEM);
    ck_assert_uint_eq(pd_heap_blocks_live(), blocks);
    pd_tensor_list_finish(&list);
}
END_TEST

START_TEST(compare_names_the_first_difference)
{
    struct pd_tensor_list model;
    struct pd_tensor_list offered;
    make_model(&model);
    ck_assert_int_eq(pd_tensor_list_init(&offered, 3, &error), PD_OK);
    ck_assert_int_eq(append(&offered, "weight", 2, (uint64_t[]){3, 4}), PD_OK);
    ck_assert_int_eq(pd_tensor_list_compare(&model, &offered, &error), PD_EMODEL);
    ck_assert_str_eq(error.message, "offered 1 tensors, the model has 3");
    ck_assert_int_eq(append(&offered, "bias", 2, (uint64_t[]){2, 2}), PD_OK);
    ck_assert_int_eq(pd_tensor_list_compare(&model, &offered, &error), PD_EMODEL);
    ck_assert_str_eq(error.message,
                     "tensor 1: offered \"bias\" [2, 2], the model has \"bias\" [4]");
    pd_tensor_list_finish(&model);
    pd_tensor_list_finish(&offered);
}
END_TEST

START_TEST(element_types_parse_by_their_names)
{
    for (uint32_t i = PD_DTYPE_FLOAT32; i <= PD_DTYPE_FLOAT16; i++) {
        enum pd_dtype dtype = PD_DTYPE_FLOAT32;
        ck_assert(pd_dtype_valid(i));
        ck_assert_int_eq(pd_dtype_parse(pd_dtype_name((enum pd_dtype)i), &dtype, &error), PD_OK);
        ck_assert_uint_eq(dtype, i);
        ck_assert_uint_eq(pd_dtype_bytes(dtype), i == PD_DTYPE_FLOAT32 ? 4 : 2);
    }
    enum pd_dtype dtype = PD_DTYPE_FLOAT32;
    ck_assert(!pd_dtype_valid(3));
    ck_assert_int_eq(pd_dtype_parse("float64", &dtype, &error), PD_EINVALID);
}
END_TEST

START_TEST(a_shape_is_written_within_its_room)
{
    struct pd_tensor tensor = {.dimension_count = 2, .shape = {3, 4}};
    char text[16];
    ck_assert_str_eq(pd_tensor_shape_text(&tensor, text, sizeof text), "[3, 4]");
    ck_assert_str_eq(pd_tensor_shape_text(&tensor, text, 5), "[3, ");
    tensor.dimension_count = 0;
    ck_assert_str_eq(pd_tensor_shape_text(&tensor, text, sizeof text), "[]");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tensor");
    TCase *cases = tcase_create("tensor");
    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, tensors_follow_each_other_without_gaps);
    tcase_add_loop_test(cases, append_refuses_and_leaves_the_list_as_it_was, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_test(cases, a_name_of_256_bytes_is_too_long);
    tcase_add_test(cases, the_model_may_have_exactly_the_largest_count);
    tcase_add_test(cases, a_repeated_name_is_found_among_thousands);
    tcase_add_test(cases, a_copy_equals_and_owns_its_memory);
    tcase_add_loop_test(cases, copy_survives_each_failed_allocation, 0, 5);
    tcase_add_test(cases, compare_names_the_first_difference);
    tcase_add_test(cases, element_types_parse_by_their_names);
    tcase_add_test(cases, a_shape_is_written_within_its_room);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
