#include "tests/bench/stream.h"

#include "common/assert.h"
#include "common/kernel.h"

#include <stddef.h>

/* Arithmetic that changes nothing, but the compiler cannot know. */
static volatile float one = 1;
static volatile float nothing = 0;
static volatile uint32_t sink;

typedef uint32_t bits32 __attribute__((may_alias));
typedef uint16_t bits16 __attribute__((may_alias));

/* Arrays do not overlap: only so can the loops be vectorised. */
#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed" /* where the checks of a sanitizer prevent it */
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

/* What the functions below are made of: with constant numbers the inner loops vanish. */
static inline __attribute__((always_inline)) void
loop(uint32_t read, uint32_t changed, uint32_t written, float *const *arrays, uint32_t count)
{
    float kept = one;
    float added = nothing;

    INDEPENDENT
    for (uint32_t i = 0; i < count; i++) {
        float sum = 0;
        for (uint32_t k = 0; k < read; k++) {
            sum += arrays[k][i];
        }
        for (uint32_t k = read; k < read + changed; k++) {
            sum = kept * arrays[k][i] + added * sum;
            arrays[k][i] = sum;
        }
        if (written == 1) {
            arrays[read + changed][i] = sum;
        }
    }
}

#define STREAM(read, changed, written)                                                             \
    PD_KERNEL                                                                                      \
    static void stream_##read##_##changed##_##written(float *const *arrays, uint32_t count)        \
    {                                                                                              \
        loop(read, changed, written, arrays, count);                                               \
    }

STREAM(1, 0, 1)
STREAM(2, 0, 1)
STREAM(4, 0, 1)
STREAM(8, 0, 1)
STREAM(2, 1, 1)
STREAM(2, 2, 1)
STREAM(2, 3, 1)
STREAM(2, 4, 1)
STREAM(1, 3, 0)

PD_KERNEL
static void stream_0_1_0(float *const *arrays, uint32_t count)
{
    float *changed = arrays[0];
    float kept = one;

    for (uint32_t i = 0; i < count; i++) {
        changed[i] *= kept;
    }
}

PD_KERNEL
static void stream_1_0_0(float *const *arrays, uint32_t count)
{
    const bits32 *read = (const bits32 *)arrays[0];
    uint32_t found = 0;

    for (uint32_t i = 0; i < count; i++) {
        found |= read[i];
    }
    sink = found;
}

static const struct {
    struct stream_mix mix;
    void (*run)(float *const *arrays, uint32_t count);
} streams[] = {
    {{1, 0, 0}, stream_1_0_0}, {{0, 1, 0}, stream_0_1_0}, {{1, 0, 1}, stream_1_0_1},
    {{2, 0, 1}, stream_2_0_1}, {{4, 0, 1}, stream_4_0_1}, {{8, 0, 1}, stream_8_0_1},
    {{2, 1, 1}, stream_2_1_1}, {{2, 2, 1}, stream_2_2_1}, {{2, 3, 1}, stream_2_3_1},
    {{2, 4, 1}, stream_2_4_1}, {{1, 3, 0}, stream_1_3_0},
};

void stream_run(struct stream_mix mix, float *const *arrays, uint32_t count)
{
    for (size_t i = 0; i < sizeof streams / sizeof streams[0]; i++) {
        if (streams[i].mix.read == mix.read && streams[i].mix.changed == mix.changed &&
            streams[i].mix.written == mix.written) {
            streams[i].run(arrays, count);
            return;
        }
    }
    PD_ASSERT(!"a mix of the table");
}

PD_KERNEL
static void widen(bits32 *restrict to, const bits16 *restrict from, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        to[i] = from[i];
    }
}

PD_KERNEL
static void narrow(bits16 *restrict to, const bits32 *restrict from, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        to[i] = (uint16_t)from[i];
    }
}

void stream_widen(void *to, const void *from, uint32_t count)
{
    widen(to, from, count);
}

void stream_narrow(void *to, const void *from, uint32_t count)
{
    narrow(to, from, count);
}

uint32_t stream_bytes(struct stream_mix mix)
{
    return (mix.read + 2 * mix.changed + mix.written) * (uint32_t)sizeof(float);
}
