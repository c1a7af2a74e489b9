#include "common/copy.h"

#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>

#define VECTOR_FLOATS (sizeof(__m128i) / sizeof(float))

void pd_copy_past_cache(float *restrict to, const float *restrict from, size_t count)
{
    size_t head = (VECTOR_FLOATS - (uintptr_t)to / sizeof(float) % VECTOR_FLOATS) % VECTOR_FLOATS;
    head = head < count ? head : count;
    memcpy(to, from, head * sizeof(float));

    size_t i = head;
    for (; i + VECTOR_FLOATS <= count; i += VECTOR_FLOATS) {
        _mm_stream_si128((__m128i *)(void *)(to + i),
                         _mm_loadu_si128((const __m128i *)(const void *)(from + i)));
    }
    memcpy(to + i, from + i, (count - i) * sizeof(float));
    _mm_sfence();
}

#else

void pd_copy_past_cache(float *restrict to, const float *restrict from, size_t count)
{
    memcpy(to, from, count * sizeof(float));
}

#endif
