/* Tests of common/convert.c. */
#include "common/kernel.h"
#include "common/tensor.h"

#include <check.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATTERN_COUNT 65536u

static uint16_t patterns[PATTERN_COUNT];
static uint16_t back[PATTERN_COUNT];
static float values[PATTERN_COUNT];

static uint16_t narrow(float value, enum pd_dtype dtype)
{
    uint16_t bits = 0;
    pd_convert_from_float32(&bits, dtype, &value, 1);
    return bits;
}

static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Widen every pattern and narrow it again. */
static void go_round(enum pd_dtype dtype)
{
    for (uint32_t i = 0; i < PATTERN_COUNT; i++) {
        patterns[i] = (uint16_t)i;
    }
    pd_convert_to_float32(values, patterns, dtype, PATTERN_COUNT);
    pd_convert_from_float32(back, dtype, values, PATTERN_COUNT);
}

START_TEST(every_bfloat16_survives_the_way_through_float32)
{
    go_round(PD_DTYPE_BFLOAT16);
    for (uint32_t i = 0; i < PATTERN_COUNT; i++) {
        bool is_nan = (i & 0x7fff) > 0x7f80;
        ck_assert_int_eq(isnan(values[i]) != 0, is_nan);
        ck_assert_uint_eq(back[i], is_nan ? (i | 0x40) : i);
    }
}
END_TEST

START_TEST(every_float16_survives_the_way_through_float32)
{
    go_round(PD_DTYPE_FLOAT16);
    for (uint32_t i = 0; i < PATTERN_COUNT; i++) {
        bool is_nan = (i & 0x7fff) > 0x7c00;
        ck_assert_int_eq(isnan(values[i]) != 0, is_nan);
        ck_assert_uint_eq(back[i], is_nan ? (i | 0x200) : i);
    }
}
END_TEST

START_TEST(every_finite_float16_widens_to_its_value)
{
    go_round(PD_DTYPE_FLOAT16);
    for (uint32_t i = 0; i < PATTERN_COUNT; i++) {
        int exponent = (int)(i >> 10 & 0x1f);
        double fraction = (double)(i & 0x3ff);
        double magnitude =
            exponent == 0 ? ldexp(fraction, -24) : ldexp(fraction + 1024, exponent - 25);
        if (exponent < 31) {
            ck_assert_double_eq(values[i], (i & 0x8000) != 0 ? -magnitude : magnitude);
        }
    }
}
END_TEST

/* Between each float16 and the next: below the middle, above it, and at it to the even one. */
START_TEST(float16_rounds_to_nearest_and_ties_to_even)
{
    go_round(PD_DTYPE_FLOAT16);
    for (uint32_t i = 0; i < 0x7bff; i++) {
        float middle = (float)(((double)values[i] + (double)values[i + 1]) / 2);
        ck_assert_uint_eq(narrow(nextafterf(middle, 0), PD_DTYPE_FLOAT16), i);
        ck_assert_uint_eq(narrow(nextafterf(middle, INFINITY), PD_DTYPE_FLOAT16), i + 1);
        ck_assert_uint_eq(narrow(middle, PD_DTYPE_FLOAT16), i + (i & 1));
        ck_assert_uint_eq(narrow(-middle, PD_DTYPE_FLOAT16), 0x8000 | (i + (i & 1)));
    }
}
END_TEST

START_TEST(float16_overflows_to_infinity)
{
    ck_assert_uint_eq(narrow(nextafterf(65520.0f, 0), PD_DTYPE_FLOAT16), 0x7bff);
    ck_assert_uint_eq(narrow(65520.0f, PD_DTYPE_FLOAT16), 0x7c00);
    ck_assert_uint_eq(narrow(-3e38f, PD_DTYPE_FLOAT16), 0xfc00);
    ck_assert_uint_eq(narrow(3.4e38f, PD_DTYPE_BFLOAT16), 0x7f80);
}
END_TEST

START_TEST(a_nan_stays_a_nan_whatever_its_payload)
{
    static const uint32_t nans[] = {0x7f800001, 0x7fc00000, 0xff800001, 0x7fffffff, 0xffffffff};
    for (size_t i = 0; i < sizeof nans / sizeof nans[0]; i++) {
        ck_assert_uint_gt(narrow(from_bits(nans[i]), PD_DTYPE_FLOAT16) & 0x7fff, 0x7c00);
        ck_assert_uint_gt(narrow(from_bits(nans[i]), PD_DTYPE_BFLOAT16) & 0x7fff, 0x7f80);
    }
}
END_TEST

START_TEST(casts_are_those_of_pytorch)
{
    FILE *file = fopen(PD_TEST_DATA_DIR "/cast_bf16_fp16.txt", "r");
    ck_assert_ptr_nonnull(file);
    char line[128];
    unsigned case_count = 0;
    while (fgets(line, sizeof line, file) != NULL) {
        uint32_t bits = 0;
        unsigned bfloat16 = 0;
        unsigned float16 = 0;
        if (line[0] == '#') {
            continue;
        }
        ck_assert_int_eq(sscanf(line, "%" SCNx32 " %x %x", &bits, &bfloat16, &float16), 3);
        ck_assert_uint_eq(narrow(from_bits(bits), PD_DTYPE_BFLOAT16), bfloat16);
        ck_assert_uint_eq(narrow(from_bits(bits), PD_DTYPE_FLOAT16), float16);
        case_count++;
    }
    (void)fclose(file);
    ck_assert_uint_gt(case_count, 1000);
}
END_TEST

/* Long runs take the vector path, single elements the scalar one. */
START_TEST(a_long_run_converts_like_its_elements)
{
    static float wide[1003];
    static uint16_t run[1003];
    uint32_t bits = 1;
    for (size_t i = 0; i < 1003; i++) {
        bits = bits * 1664525u + 1013904223u;
        wide[i] = from_bits(bits);
    }
    for (uint32_t dtype = PD_DTYPE_BFLOAT16; dtype <= PD_DTYPE_FLOAT16; dtype++) {
        pd_convert_from_float32(run, (enum pd_dtype)dtype, wide, 1003);
        for (size_t i = 0; i < 1003; i++) {
            ck_assert_uint_eq(run[i], narrow(wide[i], (enum pd_dtype)dtype));
        }
    }
}
END_TEST

/* Elements with an upper half in common, and lower ones about those where rounding changes; and
 * what each of them alone becomes. */
static void fill_line(float line[PD_LINE_ELEMENTS], uint16_t expected[PD_LINE_ELEMENTS],
                      uint32_t upper, enum pd_dtype dtype)
{
    static const uint32_t lower[PD_LINE_ELEMENTS] = {0,      1,      0x0fff, 0x1000, 0x1001, 0x2fff,
                                                     0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0xefff,
                                                     0xf000, 0xf001, 0xfffe, 0xffff};

    for (uint32_t k = 0; k < PD_LINE_ELEMENTS; k++) {
        line[k] = from_bits(upper << 16 | lower[k]);
        expected[k] = narrow(line[k], dtype);
    }
}

START_TEST(every_upper_half_rounds_in_a_run_as_alone)
{
    enum pd_dtype dtype = (enum pd_dtype)_i;
    float line[PD_LINE_ELEMENTS];
    uint16_t rounded[PD_LINE_ELEMENTS];
    uint16_t expected[PD_LINE_ELEMENTS];

    for (uint32_t upper = 0; upper < PATTERN_COUNT; upper++) {
        fill_line(line, expected, upper, dtype);
        pd_convert_from_float32(rounded, dtype, line, PD_LINE_ELEMENTS);
        ck_assert_mem_eq(rounded, expected, sizeof rounded);
    }
}
END_TEST

/* From and to places that are not aligned; what is behind stays as it is. */
START_TEST(a_run_of_any_length_is_rounded_and_no_more)
{
    enum { COUNT_MAX = 600 };
    enum pd_dtype dtype = (enum pd_dtype)_i;
    float from[COUNT_MAX + 1];
    uint16_t rounded[COUNT_MAX + 2];
    uint16_t expected[COUNT_MAX];

    for (size_t i = 0; i <= COUNT_MAX; i++) {
        from[i] = sinf((float)i) * (i % 5 == 0 ? 1e-6f : 1.0f);
    }
    for (size_t i = 0; i < COUNT_MAX; i++) {
        expected[i] = narrow(from[i + 1], dtype);
    }
    for (size_t count = 0; count <= COUNT_MAX; count++) {
        memset(rounded, 0xab, sizeof rounded);
        pd_convert_from_float32(rounded + 1, dtype, from + 1, count);
        ck_assert_mem_eq(rounded + 1, expected, count * sizeof *rounded);
        ck_assert_uint_eq(rounded[0], 0xabab);
        ck_assert_uint_eq(rounded[count + 1], 0xabab);
    }
}
END_TEST

#ifdef PD_KERNEL_STREAMS
START_TEST(a_line_widens_like_its_elements)
{
    enum pd_dtype dtype = (enum pd_dtype)_i;
    float line[PD_LINE_ELEMENTS];

    go_round(dtype);
    for (uint32_t i = 0; i < PATTERN_COUNT && pd_kernel_streams(); i += PD_LINE_ELEMENTS) {
        pd_kernel_widen(line, &patterns[i], dtype);
        ck_assert_mem_eq(line, &values[i], sizeof line);
        pd_kernel_widen(line, &values[i], PD_DTYPE_FLOAT32);
        ck_assert_mem_eq(line, &values[i], sizeof line);
    }
}
END_TEST

START_TEST(a_line_rounds_like_its_elements)
{
    enum pd_dtype dtype = (enum pd_dtype)_i;
    float line[PD_LINE_ELEMENTS];
    uint16_t rounded[PD_LINE_ELEMENTS];
    uint16_t expected[PD_LINE_ELEMENTS];

    for (uint32_t upper = 0; upper < PATTERN_COUNT && pd_kernel_streams(); upper++) {
        fill_line(line, expected, upper, dtype);
        if (dtype == PD_DTYPE_BFLOAT16) {
            pd_kernel_round_to_bfloat16(rounded, line);
        } else {
            pd_kernel_round_to_float16(rounded, line);
        }
        ck_assert_mem_eq(rounded, expected, sizeof rounded);
    }
}
END_TEST
#endif

/* To every place in a line; what is beside stays as it is. */
START_TEST(what_is_written_past_the_caches_is_the_same)
{
    enum { COUNT = 100, ROOM = COUNT + 40 };
    _Alignas(64) float streamed[ROOM];
    _Alignas(64) float expected[ROOM];
    enum pd_dtype dtype = (enum pd_dtype)_i;
    float from[COUNT];
    uint16_t run[COUNT];

    for (size_t i = 0; i < COUNT; i++) {
        from[i] = sinf((float)i) * (i % 5 == 0 ? 1e-6f : 1.0f);
    }
    pd_convert_from_float32(run, PD_DTYPE_BFLOAT16, from, COUNT);
    for (size_t begin = 0; begin < 20; begin++) {
        for (size_t count = 0; count <= COUNT; count++) {
            const void *source = dtype == PD_DTYPE_FLOAT32 ? (const void *)from : run;
            memset(streamed, 0xab, sizeof streamed);
            memset(expected, 0xab, sizeof expected);
            pd_convert_to_float32(expected + begin, source, dtype, count);
            pd_convert_to_float32_streamed(streamed + begin, source, dtype, count);
            ck_assert_mem_eq(streamed, expected, sizeof expected);
        }
    }
}
END_TEST

START_TEST(float32_is_copied_bit_for_bit)
{
    static const uint32_t bits[4] = {0x7f800001, 0x80000000, 1, 0x3f800000};
    uint32_t copy[4] = {0};
    float wide[4];
    pd_convert_to_float32(wide, bits, PD_DTYPE_FLOAT32, 4);
    pd_convert_from_float32(copy, PD_DTYPE_FLOAT32, wide, 4);
    ck_assert_mem_eq(copy, bits, sizeof bits);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("convert");
    TCase *cases = tcase_create("convert");
    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, every_bfloat16_survives_the_way_through_float32);
    tcase_add_test(cases, every_float16_survives_the_way_through_float32);
    tcase_add_test(cases, every_finite_float16_widens_to_its_value);
    tcase_add_test(cases, float16_rounds_to_nearest_and_ties_to_even);
    tcase_add_test(cases, float16_overflows_to_infinity);
    tcase_add_test(cases, a_nan_stays_a_nan_whatever_its_payload);
    tcase_add_test(cases, casts_are_those_of_pytorch);
    tcase_add_test(cases, a_long_run_converts_like_its_elements);
    tcase_add_loop_test(cases, every_upper_half_rounds_in_a_run_as_alone, PD_DTYPE_BFLOAT16,
                        PD_DTYPE_FLOAT16 + 1);
    tcase_add_loop_test(cases, a_run_of_any_length_is_rounded_and_no_more, PD_DTYPE_BFLOAT16,
                        PD_DTYPE_FLOAT16 + 1);
#ifdef PD_KERNEL_STREAMS
    tcase_add_loop_test(cases, a_line_widens_like_its_elements, PD_DTYPE_BFLOAT16,
                        PD_DTYPE_FLOAT16 + 1);
    tcase_add_loop_test(cases, a_line_rounds_like_its_elements, PD_DTYPE_BFLOAT16,
                        PD_DTYPE_FLOAT16 + 1);
#endif
    tcase_add_loop_test(cases, what_is_written_past_the_caches_is_the_same, PD_DTYPE_FLOAT32,
                        PD_DTYPE_FLOAT16 + 1);
    tcase_add_test(cases, float32_is_copied_bit_for_bit);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
