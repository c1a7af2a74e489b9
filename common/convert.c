#include "common/assert.h"
#include "common/kernel.h"
#include "common/tensor.h"

#include <string.h>

/* Elements as bits, wherever they stand and whatever type they were written as. */
typedef uint16_t bits16 __attribute__((may_alias, aligned(1)));
typedef uint32_t bits32 __attribute__((may_alias));

#define FLOAT32_SIGN 0x80000000u
#define FLOAT32_INFINITY 0x7f800000u
/* Moves a float16 exponent (bias 15) to float32 (bias 127). */
#define EXPONENT_SHIFT (112u << 23)
/* 2^-14, the least normal float16. */
#define FLOAT16_NORMAL_MIN 0x38800000u
/* 65520, half-way between the largest float16 and the next: rounds to infinity. */
#define FLOAT16_OVERFLOW 0x477ff000u

/* Elements fetched and converted in turn, and those of a cache line. */
#define FETCHED_COUNT 256u
#define FETCHED_LINE_COUNT 16u

static inline float as_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t as_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Round to nearest even at bit 16; a NaN keeps its upper bits and becomes quiet, because cutting
 * its lower bits off could leave an infinity. */
static inline uint32_t to_bfloat16(uint32_t bits)
{
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t quiet = (bits >> 16) | 0x40u;
    return (bits & ~FLOAT32_SIGN) > FLOAT32_INFINITY ? quiet : rounded;
}

static inline uint32_t to_float16(uint32_t bits)
{
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & ~FLOAT32_SIGN;
    uint32_t normal = (magnitude - EXPONENT_SHIFT + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    /* Next to 0.5 a float32 has steps of 2^-24, those of a subnormal float16: the addition rounds.
     */
    uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);
    uint32_t quiet = 0x7e00u | ((magnitude >> 13) & 0x3ffu);

    uint32_t result = magnitude < FLOAT16_NORMAL_MIN ? subnormal : normal;
    result = magnitude >= FLOAT16_OVERFLOW ? 0x7c00u : result;
    result = magnitude > FLOAT32_INFINITY ? quiet : result;
    return sign | result;
}

static inline uint32_t from_bfloat16(uint32_t bits)
{
    return bits << 16;
}

static inline uint32_t from_float16(uint32_t bits)
{
    uint32_t sign = (bits & 0x8000u) << 16;
    uint32_t magnitude = (bits & 0x7fffu) << 13;
    uint32_t normal = magnitude + EXPONENT_SHIFT;
    uint32_t special = normal + EXPONENT_SHIFT; /* infinity and NaN have the largest exponent */
    uint32_t subnormal =
        as_bits(as_float(magnitude + FLOAT16_NORMAL_MIN) - as_float(FLOAT16_NORMAL_MIN));

    uint32_t result = magnitude < (0x400u << 13) ? subnormal : normal;
    result = magnitude >= (0x7c00u << 13) ? special : result;
    return sign | result;
}

/* Fetch the float32 that are converted, or written, two runs later: most of these loops' time is
 * waiting for memory. They may be beyond the end of the array: nothing happens there. */
static inline void fetch_ahead(const bits32 *elements, bool written)
{
    uintptr_t begin = (uintptr_t)elements + 2 * FETCHED_COUNT * sizeof *elements;

    for (uint32_t i = 0; i < FETCHED_COUNT; i += FETCHED_LINE_COUNT) {
        const void *line = (const void *)(begin + i * sizeof *elements);
        if (written) {
            __builtin_prefetch(line, 1);
        } else {
            __builtin_prefetch(line, 0);
        }
    }
}

/* A loop `name` that puts `convert` of each element of `from` into `to`; `float32s` is the one of
 * the two arrays that is float32, `written` whether that is `to`. */
#define CONVERSION(name, to_type, from_type, convert, float32s, written)                           \
    PD_KERNEL                                                                                      \
    static void name(to_type *restrict to, const from_type *restrict from, size_t count)           \
    {                                                                                              \
        for (size_t begin = 0; begin < count; begin += FETCHED_COUNT) {                            \
            size_t end = count - begin < FETCHED_COUNT ? count : begin + FETCHED_COUNT;            \
            fetch_ahead((float32s) + begin, written);                                              \
            for (size_t i = begin; i < end; i++) {                                                 \
                to[i] = (to_type)convert(from[i]);                                                 \
            }                                                                                      \
        }                                                                                          \
    }

CONVERSION(bfloat16_to_float32, bits32, bits16, from_bfloat16, to, true)
CONVERSION(float16_to_float32, bits32, bits16, from_float16, to, true)
CONVERSION(float32_to_bfloat16, bits16, bits32, to_bfloat16, from, false)
CONVERSION(float32_to_float16, bits16, bits32, to_float16, from, false)

#ifdef PD_KERNEL_FLOAT16
/* Whole eights, by the instruction: the arithmetic of to_float16 takes longer than memory does,
 * twice as long without AVX-512. It gives the same bits, of NaN and subnormal numbers, too. */
PD_KERNEL_FLOAT16
static void round_eights(bits16 *restrict to, const float *restrict from, size_t count)
{
    for (size_t begin = 0; begin < count; begin += FETCHED_COUNT) {
        size_t end = count - begin < FETCHED_COUNT ? count : begin + FETCHED_COUNT;
        fetch_ahead((const bits32 *)from + begin, false);
        for (size_t i = begin; i < end; i += 8) {
            pd_kernel_round_eight_to_float16(to + i, from + i);
        }
    }
}
#endif

static void round_to_float16(bits16 *restrict to, const float *restrict from, size_t count)
{
    size_t rounded = 0;

#ifdef PD_KERNEL_FLOAT16
    if (pd_kernel_has_float16()) {
        rounded = count - count % 8;
        round_eights(to, from, rounded);
    }
#endif
    float32_to_float16(to + rounded, (const bits32 *)from + rounded, count - rounded);
}

void pd_convert_to_float32(float *to, const void *from, enum pd_dtype from_dtype, size_t count)
{
    PD_ASSERT(pd_dtype_valid(from_dtype));
    if (count == 0) {
        return;
    }
    switch (from_dtype) {
    case PD_DTYPE_FLOAT32:
        memcpy(to, from, count * sizeof *to);
        break;
    case PD_DTYPE_BFLOAT16:
        bfloat16_to_float32((bits32 *)to, from, count);
        break;
    case PD_DTYPE_FLOAT16:
        float16_to_float32((bits32 *)to, from, count);
        break;
    }
}

void pd_convert_from_float32(void *to, enum pd_dtype to_dtype, const float *from, size_t count)
{
    PD_ASSERT(pd_dtype_valid(to_dtype));
    if (count == 0) {
        return;
    }
    switch (to_dtype) {
    case PD_DTYPE_FLOAT32:
        memcpy(to, from, count * sizeof *from);
        break;
    case PD_DTYPE_BFLOAT16:
        float32_to_bfloat16(to, (const bits32 *)from, count);
        break;
    case PD_DTYPE_FLOAT16:
        round_to_float16(to, from, count);
        break;
    }
}

#ifdef PD_KERNEL_STREAMS
/* Whole lines, from the beginning of one on. */
PD_KERNEL_STREAMS
static void stream_lines(float *to, const char *from, enum pd_dtype from_dtype, size_t line_count)
{
    float line[PD_LINE_ELEMENTS];

    for (size_t i = 0; i < line_count; i++) {
        pd_kernel_widen(line, from, from_dtype);
        pd_kernel_put_line(to, line, true);
        to += PD_LINE_ELEMENTS;
        from += PD_LINE_ELEMENTS * sizeof(uint16_t);
    }
    pd_kernel_end_streaming();
}

/* Elements before the first line that begins in the array; all if none does. */
static size_t count_head(const float *to, size_t count)
{
    size_t head = 0;

    while (head < count && !pd_kernel_begins_line(to + head)) {
        head++;
    }
    return head;
}

void pd_convert_to_float32_streamed(float *to, const void *from, enum pd_dtype from_dtype,
                                    size_t count)
{
    const char *bytes = from;
    size_t element_bytes = pd_dtype_bytes(from_dtype);

    if (from_dtype == PD_DTYPE_FLOAT32 || !pd_kernel_streams()) {
        pd_convert_to_float32(to, from, from_dtype, count);
        return;
    }
    size_t head = count_head(to, count);
    size_t line_count = (count - head) / PD_LINE_ELEMENTS;
    size_t tail = head + line_count * PD_LINE_ELEMENTS;
    pd_convert_to_float32(to, bytes, from_dtype, head);
    stream_lines(to + head, bytes + head * element_bytes, from_dtype, line_count);
    pd_convert_to_float32(to + tail, bytes + tail * element_bytes, from_dtype, count - tail);
}
#else
void pd_convert_to_float32_streamed(float *to, const void *from, enum pd_dtype from_dtype,
                                    size_t count)
{
    pd_convert_to_float32(to, from, from_dtype, count);
}
#endif
