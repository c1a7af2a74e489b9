/* Cases that are no trajectory, against the core: casts, clipping, loss scales and state in 8 bits.
 */
#include "common/heap.h"
#include "server/core/clip.h"
#include "server/core/quantize.h"
#include "server/core/reduce.h"
#include "tests/replay/case.h"
#include "tests/support/scaler_trace.h"
#include "tests/support/vectors.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Of the largest magnitude of a tensor. */
#define TOLERANCE (16 * 0x1p-23)

/* ---- Casts ---- */

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Both ways, to the bit; any NaN will do for a NaN. */
static void cast(const json_t *document, enum pd_dtype dtype, const char *bits_key,
                 const char *back_key, struct replay_result *result)
{
    uint32_t count = 0;
    float *values = vectors_floats(json_object_get(document, "x"), &count);
    float *backs = vectors_floats(json_object_get(document, back_key), &count);

    for (uint32_t i = 0; i < count; i++) {
        const json_t *expected = json_array_get(json_object_get(document, bits_key), i);
        uint16_t bits = 0;
        float back = 0;
        pd_convert_from_float32(&bits, dtype, &values[i], 1);
        pd_convert_to_float32(&back, &bits, dtype, 1);
        bool same = isnan(backs[i]) ? isnan(back)
                                    : bits == json_integer_value(expected) &&
                                          bits_of(back) == bits_of(backs[i]);
        if (replay_take_error(result, same ? 0 : INFINITY)) {
            replay_say(result, REPLAY_FAILED, "%s of x[%u] = %.9g: %#x, not %#x",
                       pd_dtype_name(dtype), i, (double)values[i], bits,
                       (unsigned)json_integer_value(expected));
        }
    }
    pd_heap_free(values);
    pd_heap_free(backs);
}

static void replay_cast(const json_t *document, struct replay_result *result)
{
    cast(document, PD_DTYPE_BFLOAT16, "bf16_bits", "bf16_back", result);
    cast(document, PD_DTYPE_FLOAT16, "fp16_bits", "fp16_back", result);
}

/* ---- Clipping ---- */

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* The norm over all tensors of a call, from parts of blocks as ranks take them. */
static double total_norm(json_t *gradients, double norm_type)
{
    double power = 0;
    const char *name = NULL;
    json_t *list = NULL;

    json_object_foreach(gradients, name, list)
    {
        uint32_t count = 0;
        float *gradient = vectors_floats(list, &count);
        for (uint32_t begin = 0; begin < count; begin += REPLAY_BLOCK_SIZE) {
            double parts[2];
            pd_reduce_norms(gradient + begin, smaller(REPLAY_BLOCK_SIZE, count - begin), norm_type,
                            parts);
            power = pd_clip_add(power, parts[0], norm_type);
        }
        pd_heap_free(gradient);
    }
    return pd_clip_root(power, norm_type);
}

static double largest_of(const float *elements, uint32_t count)
{
    double largest = 0;
    for (uint32_t i = 0; i < count; i++) {
        largest = fmax(largest, fabs((double)elements[i]));
    }
    return largest;
}

static void take(struct replay_result *result, double actual, double expected, double allowed,
                 size_t call, const char *what)
{
    double error = actual == expected ? 0 : fabs(actual - expected) / allowed;

    error = isnan(error) ? (isnan(actual) && isnan(expected) ? 0 : INFINITY) : error;
    if (replay_take_error(result, error)) {
        replay_say(result, REPLAY_FAILED, "call %zu, %s: %.9g, not %.9g", call, what, actual,
                   expected);
    }
}

/* Compare the gradients of a call, scaled (value NaN) or cut at a value, with the reference's. */
static void compare_clipped(json_t *call, size_t index, double scale, double value,
                            struct replay_result *result)
{
    const char *name = NULL;
    json_t *list = NULL;

    json_object_foreach(json_object_get(call, "clipped"), name, list)
    {
        uint32_t count = 0;
        float *expected = vectors_floats(list, &count);
        float *gradient =
            vectors_floats(json_object_get(json_object_get(call, "grads"), name), &count);
        double allowed = isnan(value) ? TOLERANCE * largest_of(expected, count) : 0;
        if (!isnan(value)) {
            pd_reduce_clamp(gradient, (float)value, count);
        }
        for (uint32_t i = 0; i < count; i++) {
            float clipped = isnan(value) ? gradient[i] * (float)scale : gradient[i];
            take(result, (double)clipped, (double)expected[i], allowed, index, name);
        }
        pd_heap_free(expected);
        pd_heap_free(gradient);
    }
}

static bool is_finite(const json_t *calls)
{
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *norm = json_object_get(json_array_get(calls, i), "total_norm");
        if (norm != NULL && !isfinite(vectors_number(norm))) {
            return false;
        }
    }
    return true;
}

static void replay_clip_norm(const json_t *document, struct replay_result *result)
{
    const json_t *hyper = json_object_get(document, "hyperparameters");
    double max_norm = vectors_number(json_object_get(hyper, "max_norm"));
    const json_t *type = json_object_get(hyper, "norm_type");
    double norm_type = type != NULL ? vectors_number(type) : 2;
    json_t *calls = json_object_get(document, "calls");
    size_t index = 0;
    json_t *call = NULL;

    if (!is_finite(calls)) {
        replay_say(result, REPLAY_SKIPPED,
                   "a step whose gradient is not finite is skipped, not clipped to zeros and NaNs");
        return;
    }
    json_array_foreach(calls, index, call)
    {
        double norm = total_norm(json_object_get(call, "grads"), norm_type);
        double expected = vectors_number(json_object_get(call, "total_norm"));
        take(result, norm, expected, TOLERANCE * expected, index, "total_norm");
        compare_clipped(call, index, pd_clip_scale(norm, max_norm), NAN, result);
    }
}

static void replay_clip_value(const json_t *document, struct replay_result *result)
{
    const json_t *hyper = json_object_get(document, "hyperparameters");
    double value = vectors_number(json_object_get(hyper, "clip_value"));
    size_t index = 0;
    json_t *call = NULL;

    json_array_foreach(json_object_get(document, "calls"), index, call)
    {
        compare_clipped(call, index, 1, value, result);
    }
}

/* ---- The loss scale ---- */

static void replay_scaler(const json_t *document, struct replay_result *result)
{
    char text[256];
    bool holds = scaler_trace_holds(document, text, sizeof text);

    if (replay_take_error(result, holds ? 0 : INFINITY)) {
        replay_say(result, REPLAY_FAILED, "%s", text);
    }
}

/* ---- State in 8 bits ---- */

static void replay_codebook(const json_t *document, struct replay_result *result)
{
    struct pd_quantize_map map;
    uint32_t count = 0;
    float *expected = vectors_floats(json_object_get(document, "code"), &count);

    pd_quantize_map_init(&map, json_is_true(json_object_get(document, "signed")));
    for (uint32_t i = 0; i < count; i++) {
        bool same = i < 256 && bits_of(map.values[i]) == bits_of(expected[i]);
        if (replay_take_error(result, same ? 0 : INFINITY)) {
            replay_say(result, REPLAY_FAILED, "code[%u], expected %.9g", i, (double)expected[i]);
        }
    }
    pd_heap_free(expected);
}

/* One run of a call, which begins with element `begin`. */
static void compare_run(const json_t *document, const struct pd_quantize_map *map,
                        const float *input, const float *restored, uint32_t begin, uint32_t count,
                        struct replay_result *result)
{
    uint8_t *codes = pd_heap_zalloc(count, sizeof *codes);
    float *own = pd_heap_zalloc(count, sizeof *own);
    float magnitude = pd_quantize_run(map, codes, input + begin, count);

    pd_quantize_restore(map, own, codes, magnitude, count);
    for (uint32_t i = 0; i < count; i++) {
        const json_t *code = json_array_get(json_object_get(document, "codes"), begin + i);
        bool same =
            codes[i] == json_integer_value(code) && bits_of(own[i]) == bits_of(restored[begin + i]);
        if (replay_take_error(result, same ? 0 : INFINITY)) {
            replay_say(result, REPLAY_FAILED, "element %u: code %u, which is %.9g", begin + i,
                       codes[i], (double)own[i]);
        }
    }
    pd_heap_free(own);
    pd_heap_free(codes);
}

static void replay_quantize(const json_t *document, struct replay_result *result)
{
    uint32_t run = (uint32_t)json_integer_value(json_object_get(document, "blocksize"));
    struct pd_quantize_map map;
    uint32_t count = 0;
    float *input = vectors_floats(json_object_get(document, "input"), &count);
    float *restored = vectors_floats(json_object_get(document, "dequantized"), &count);

    pd_quantize_map_init(&map, json_is_true(json_object_get(document, "signed")));
    for (uint32_t begin = 0; begin < count; begin += run) {
        compare_run(document, &map, input, restored, begin, smaller(run, count - begin), result);
    }
    pd_heap_free(restored);
    pd_heap_free(input);
}

/* ---- All of them ---- */

static const struct {
    const char *op;
    void (*replay)(const json_t *document, struct replay_result *result);
} ops[] = {
    {"cast", replay_cast},
    {"clip_grad_norm_", replay_clip_norm},
    {"clip_grad_value_", replay_clip_value},
    {"grad_scaler", replay_scaler},
    {"codebook", replay_codebook},
    {"quantize_blockwise", replay_quantize},
};

/* Calls are cheap, so that listing the skipped ones may as well make them. */
void replay_calls(const struct replay_options *options, const json_t *document,
                  struct replay_result *result)
{
    const char *op = json_string_value(json_object_get(document, "op"));

    (void)options;
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        if (strcmp(ops[i].op, op) == 0) {
            ops[i].replay(document, result);
            return;
        }
    }
    replay_say(result, REPLAY_SKIPPED, "the core has no %s", op);
}
