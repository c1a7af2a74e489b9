/* safetensors headers: what is read from good ones, and what hostile ones are told. */
#include "common/heap.h"
#include "server/core/safetensors.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENTRY(dtype, shape, offsets)                                                               \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define A_TO_16 "\"a\":" ENTRY("F32", "[2,2]", "[0,16]")

static enum pd_status parse(struct pd_safetensors *out, const char *header, uint64_t value_bytes,
                            struct pd_error *error)
{
    return pd_safetensors_parse(out, header, strlen(header), 8 + strlen(header) + value_bytes,
                                error);
}

START_TEST(tensors_come_in_the_order_of_their_offsets)
{
    static const char header[] = "{\"z\":" ENTRY(
        "BF16", "[3]", "[20,26]") ",\"__metadata__\":"
                                  "{\"format\":\"pt\"},\"b\":" ENTRY(
                                      "F32", "[]",
                                      "[16,20]") "," A_TO_16 ",\"half\":" ENTRY("F16", "[1,1,2]",
                                                                                "[26,30]") "}     ";
    struct pd_safetensors file;
    struct pd_error error = {0};
    uint64_t values = 8 + strlen(header);

    ck_assert_msg(parse(&file, header, 30, &error) == PD_OK, "%s", error.message);
    ck_assert_uint_eq(file.tensors.count, 4);
    ck_assert_uint_eq(file.tensors.element_count, 10);
    ck_assert_str_eq(file.tensors.tensors[0].name, "a");
    ck_assert_uint_eq(file.tensors.tensors[0].dimension_count, 2);
    ck_assert_uint_eq(file.tensors.tensors[0].element_count, 4);
    ck_assert_uint_eq(file.places[0].file_offset, values);
    ck_assert_int_eq(file.places[0].dtype, PD_DTYPE_FLOAT32);
    ck_assert_str_eq(file.tensors.tensors[1].name, "b");
    ck_assert_uint_eq(file.tensors.tensors[1].dimension_count, 0);
    ck_assert_uint_eq(file.places[1].file_offset, values + 16);
    ck_assert_str_eq(file.tensors.tensors[2].name, "z");
    ck_assert_int_eq(file.places[2].dtype, PD_DTYPE_BFLOAT16);
    ck_assert_uint_eq(file.tensors.tensors[2].element_begin, 5);
    ck_assert_str_eq(file.tensors.tensors[3].name, "half");
    ck_assert_int_eq(file.places[3].dtype, PD_DTYPE_FLOAT16);
    ck_assert_uint_eq(file.places[3].file_offset, values + 26);
    pd_safetensors_finish(&file);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

static const struct {
    const char *header;
    enum pd_status status;
    const char *message; /* what it begins with */
} refusals[] = {
    {"[]", PD_EINVALID, "safetensors: header does not begin with {"},
    {" {" A_TO_16 "}", PD_EINVALID, "safetensors: header does not begin with {"},
    {"{", PD_EINVALID, "safetensors: header: "},
    {"{}", PD_ELIMIT, "safetensors: 0 tensors; allowed: 1 to 8192"},
    {"{\"__metadata__\":{}}", PD_ELIMIT, "safetensors: 0 tensors; allowed: 1 to 8192"},
    {"{" A_TO_16 "}x", PD_EINVALID, "safetensors: header: end of file expected near 'x'"},
    {"{" A_TO_16 "," A_TO_16 "}", PD_EINVALID, "safetensors: header: duplicate object key"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}",
     PD_EINVALID, "safetensors: header: duplicate object key"},
    {"{\"__metadata__\":5," A_TO_16 "}", PD_EINVALID, "safetensors: __metadata__ is not an object"},
    {"{\"__metadata__\":{\"k\":5}," A_TO_16 "}", PD_EINVALID,
     "safetensors: __metadata__ \"k\" is not a string"},
    {"{\"a\":5}", PD_EINVALID,
     "safetensors: tensor \"a\": not an object of dtype, shape and data_offsets alone"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4]}}", PD_EINVALID,
     "safetensors: tensor \"a\": not an object of dtype, shape and data_offsets alone"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16],\"x\":1}}", PD_EINVALID,
     "safetensors: tensor \"a\": not an object of dtype, shape and data_offsets alone"},
    {"{\"a\":" ENTRY("F64", "[2]", "[0,16]") "}", PD_EMODEL,
     "safetensors: tensor \"a\": dtype F64; allowed: F32, BF16, F16"},
    {"{\"a\":{\"dtype\":32,\"shape\":[4],\"data_offsets\":[0,16]}}", PD_EMODEL,
     "safetensors: tensor \"a\": dtype is not a string; allowed: F32, BF16, F16"},
    {"{\"a\":" ENTRY("F32", "4", "[0,16]") "}", PD_EINVALID,
     "safetensors: tensor \"a\": shape is no list"},
    {"{\"a\":" ENTRY("F32", "[-4]", "[0,16]") "}", PD_EINVALID,
     "safetensors: tensor \"a\": shape is no list of whole numbers"},
    {"{\"a\":" ENTRY("F32", "[4.0]", "[0,16]") "}", PD_EINVALID,
     "safetensors: tensor \"a\": shape is no list of whole numbers"},
    {"{\"a\":" ENTRY("F32", "[1,1,1,1,1,1,1,1,4]", "[0,16]") "}", PD_ELIMIT,
     "safetensors: tensor \"a\": 9 dimensions; allowed: at most 8"},
    {"{\"a\":" ENTRY("F32", "[0]", "[0,0]") "}", PD_EMODEL, "safetensors: "},
    {"{\"a\":" ENTRY("F32", "[4294967296,4294967296]", "[0,16]") "}", PD_ELIMIT, "safetensors: "},
    {"{\"\":" ENTRY("F32", "[4]", "[0,16]") "}", PD_EMODEL, "safetensors: "},
    {"{\"a\\n\":" ENTRY("F32", "[4]", "[0,16]") "}", PD_EMODEL, "safetensors: "},
    {"{\"a\\u0000\":" ENTRY("F32", "[4]", "[0,16]") "}", PD_EINVALID, "safetensors: header: "},
    {"{\"a\xff\":" ENTRY("F32", "[4]", "[0,16]") "}", PD_EINVALID, "safetensors: header: "},
    {"{\"a\":" ENTRY("F32", "[99999999999999999999]", "[0,16]") "}", PD_EINVALID,
     "safetensors: header: too big integer"},
    {"{\"a\":" ENTRY("F32", "[4]", "[0]") "}", PD_EINVALID,
     "safetensors: tensor \"a\": data_offsets are not [begin, end]"},
    {"{\"a\":" ENTRY("F32", "[4]", "16") "}", PD_EINVALID,
     "safetensors: tensor \"a\": data_offsets are not [begin, end]"},
    {"{\"a\":" ENTRY("F32", "[4]", "[16,0]") "}", PD_EINVALID,
     "safetensors: tensor \"a\": data_offsets are not [begin, end]"},
    {"{\"a\":" ENTRY("F32", "[4]", "[-16,0]") "}", PD_EINVALID,
     "safetensors: tensor \"a\": data_offsets are not [begin, end]"},
    {"{\"a\":" ENTRY("F32", "[3]", "[0,16]") "}", PD_EINVALID,
     "safetensors: tensor \"a\": 16 bytes of values, but its shape and dtype need 12"},
    {"{\"a\":" ENTRY("F32", "[3]", "[4,16]") "}", PD_EINVALID,
     "safetensors: tensor \"a\": begins at byte 4 of the values; allowed: 0"},
    {"{" A_TO_16 ",\"b\":" ENTRY("F32", "[1]", "[20,24]") "}", PD_EINVALID,
     "safetensors: tensor \"b\": begins at byte 20 of the values; allowed: 16"},
    {"{" A_TO_16 ",\"b\":" ENTRY("F32", "[2]", "[12,20]") "}", PD_EINVALID,
     "safetensors: tensor \"b\": begins at byte 12 of the values; allowed: 16"},
    {"{\"a\":" ENTRY("F32", "[3]", "[0,12]") "}", PD_EINVALID,
     "safetensors: 16 bytes of values, but the tensors need 12"},
    {"{" A_TO_16 ",\"b\":" ENTRY("F32", "[1]", "[16,20]") "}", PD_EINVALID,
     "safetensors: 16 bytes of values, but the tensors need 20"},
};

START_TEST(a_header_that_breaks_a_rule_is_refused)
{
    struct pd_safetensors file;
    struct pd_error error = {0};

    ck_assert_int_eq(parse(&file, refusals[_i].header, 16, &error), refusals[_i].status);
    ck_assert_msg(strncmp(error.message, refusals[_i].message, strlen(refusals[_i].message)) == 0,
                  "%s", error.message);
    ck_assert_ptr_null(file.places);
    ck_assert_uint_eq(file.tensors.count, 0);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(more_tensors_than_the_limit_are_refused)
{
    size_t room = ((size_t)PD_TENSOR_COUNT_MAX + 1) * 80;
    char *header = malloc(room);
    size_t bytes = 0;
    struct pd_safetensors file;
    struct pd_error error = {0};

    for (unsigned i = 0; i <= PD_TENSOR_COUNT_MAX; i++) {
        if (i == PD_TENSOR_COUNT_MAX) {
            snprintf(header + bytes, room - bytes, "}");
            ck_assert_int_eq(parse(&file, header, 4 * (uint64_t)i, &error), PD_OK);
            pd_safetensors_finish(&file);
        }
        bytes +=
            (size_t)snprintf(header + bytes, room - bytes,
                             "%c\"%u\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[%u,%u]}",
                             i == 0 ? '{' : ',', i, 4 * i, 4 * i + 4);
    }
    snprintf(header + bytes, room - bytes, "}");
    ck_assert_int_eq(parse(&file, header, 4 * ((uint64_t)PD_TENSOR_COUNT_MAX + 1), &error),
                     PD_ELIMIT);
    ck_assert_str_eq(error.message, "safetensors: 8193 tensors; allowed: 1 to 8192");
    free(header);
}
END_TEST

START_TEST(the_length_of_a_header_is_checked_before_it_is_read)
{
    static const struct {
        uint8_t prefix[8];
        uint64_t file_bytes;
        enum pd_status status;
        size_t header_bytes;
    } cases[] = {
        {{16, 1}, 280, PD_OK, 272},
        {{16, 1}, 279, PD_EINVALID, 0},
        {{2}, 10, PD_OK, 2},
        {{1}, 100, PD_EINVALID, 0},
        {{0}, 8, PD_EINVALID, 0},
        {{16}, 7, PD_EINVALID, 0},
        {{0x00, 0xe1, 0xf5, 0x05}, 1ull << 40, PD_OK, 100000000},
        {{0x01, 0xe1, 0xf5, 0x05}, 1ull << 40, PD_ELIMIT, 0},
        {{255, 255, 255, 255, 255, 255, 255, 255}, UINT64_MAX, PD_ELIMIT, 0},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct pd_error error = {0};
        size_t header_bytes = 0;
        ck_assert_int_eq(pd_safetensors_header_bytes(cases[i].prefix, cases[i].file_bytes,
                                                     &header_bytes, &error),
                         cases[i].status);
        ck_assert_uint_eq(header_bytes, cases[i].header_bytes);
    }
}
END_TEST

START_TEST(parse_survives_each_failed_allocation)
{
    static const char header[] =
        "{\"__metadata__\":{\"a_long_key_of_many_bytes\":\"and_a_value\"},"
        "\"a.name.longer.than.sixteen\":" ENTRY("F32", "[2,2]", "[0,16]") ",\"b\":" ENTRY(
            "F32", "[]", "[16,20]") "}";
    struct pd_safetensors file;
    size_t begin = pd_heap_allocations();

    ck_assert_int_eq(parse(&file, header, 20, NULL), PD_OK);
    size_t allocations = pd_heap_allocations() - begin;
    pd_safetensors_finish(&file);
    ck_assert_uint_gt(allocations, 20);
    for (size_t i = 0; i < allocations; i++) {
        struct pd_error error = {0};
        pd_heap_fail_at((long)i);
        ck_assert_int_eq(parse(&file, header, 20, &error), PD_ENOMEM);
        ck_assert_ptr_null(file.places);
        ck_assert_uint_eq(pd_heap_blocks_live(), 0);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("safetensors");
    TCase *tcase = tcase_create("safetensors");

    tcase_add_test(tcase, tensors_come_in_the_order_of_their_offsets);
    tcase_add_loop_test(tcase, a_header_that_breaks_a_rule_is_refused, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_test(tcase, more_tensors_than_the_limit_are_refused);
    tcase_add_test(tcase, the_length_of_a_header_is_checked_before_it_is_read);
    tcase_add_test(tcase, parse_survives_each_failed_allocation);
    tcase_set_timeout(tcase, 60);
    suite_add_tcase(suite, tcase);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
