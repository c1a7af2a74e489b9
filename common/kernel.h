/* How loops over tensors are compiled: PD_KERNEL before a function makes a version of it for each
 * instruction set, and the machine picks one when the program starts. The results are the same to
 * the bit, because floating-point contraction is off everywhere.
 *
 * Empty where the compiler has no function versions, and under sanitizers, whose run-time is not up
 * yet when the versions are picked. */
#ifndef PD_COMMON_KERNEL_H
#define PD_COMMON_KERNEL_H

#ifdef PD_KERNEL
/* Given by a test that compares the versions with plain code. */
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) &&                           \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define PD_KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
/* Before a function for machines where pd_kernel_streams(). */
#define PD_KERNEL_STREAMS __attribute__((target("arch=x86-64-v4")))
/* Before a function for machines where pd_kernel_has_float16(). */
#define PD_KERNEL_FLOAT16 __attribute__((target("f16c")))
#else
#define PD_KERNEL
#endif

#include "common/tensor.h"

#include <stdbool.h>
#include <stdint.h>

/* A cache line of float32, which is also a register of the only instruction set that streams: a
 * line that is written past the caches in parts costs more than it saves. */
#define PD_LINE_ELEMENTS 16u

/* How far ahead a loop over lines asks for them. */
#define PD_LINE_AHEAD_BYTES 1024

/* Whether this machine writes past the caches. */
static inline bool pd_kernel_streams(void)
{
#ifdef PD_KERNEL_STREAMS
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512cd");
#else
    return false;
#endif
}

/* Whether this machine has an instruction that rounds to float16. */
static inline bool pd_kernel_has_float16(void)
{
#ifdef PD_KERNEL_FLOAT16
    return __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
#else
    return false;
#endif
}

/* Whether an array can be streamed to from there on. */
static inline bool pd_kernel_begins_line(const float *to)
{
    return (uintptr_t)to % (PD_LINE_ELEMENTS * sizeof *to) == 0;
}

/* Ask for the line PD_LINE_AHEAD_BYTES behind this one; where there is no memory nothing happens.
 * By itself the processor follows as many arrays as a rule has too late. */
static inline void pd_kernel_ask_ahead(const void *line)
{
    __builtin_prefetch((const void *)((uintptr_t)line + PD_LINE_AHEAD_BYTES));
}

#ifdef PD_KERNEL_STREAMS
#include <immintrin.h>

/* Write a line, past the caches if `streamed`. */
PD_KERNEL_STREAMS
static inline void pd_kernel_put_line(float *to, const float *line, bool streamed)
{
    if (streamed) {
        _mm512_stream_ps(to, _mm512_loadu_ps(line));
    } else {
        _mm512_storeu_ps(to, _mm512_loadu_ps(line));
    }
}

/* A line of 16-bit numbers to float32, and back: to the bit what common/convert.c does. */
PD_KERNEL_STREAMS
static inline void pd_kernel_widen_bfloat16(float *line, const void *from)
{
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)from));
    _mm512_storeu_ps(line, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
}

PD_KERNEL_STREAMS
static inline void pd_kernel_widen_float16(float *line, const void *from)
{
    const __m512i exponent = _mm512_set1_epi32(0x7c00);
    __m256i packed = _mm256_loadu_si256((const __m256i_u *)from);
    __m512i bits = _mm512_cvtepu16_epi32(packed);
    /* The instruction would make signalling NaNs quiet. */
    __mmask16 special = _mm512_cmpeq_epi32_mask(_mm512_and_si512(bits, exponent), exponent);
    __m512i fraction = _mm512_and_si512(bits, _mm512_set1_epi32(0x3ff));
    __m512i sign = _mm512_and_si512(bits, _mm512_set1_epi32(0x8000));
    __m512i kept = _mm512_or_si512(_mm512_slli_epi32(fraction, 13), _mm512_set1_epi32(0x7f800000));
    kept = _mm512_or_si512(kept, _mm512_slli_epi32(sign, 16));
    __m512i widened = _mm512_castps_si512(_mm512_cvtph_ps(packed));
    widened = _mm512_mask_mov_epi32(widened, special, kept);
    _mm512_storeu_ps(line, _mm512_castsi512_ps(widened));
}

/* A line of any type, to float32. */
PD_KERNEL_STREAMS
static inline void pd_kernel_widen(float *line, const void *from, enum pd_dtype dtype)
{
    if (dtype == PD_DTYPE_FLOAT32) {
        pd_kernel_put_line(line, from, false);
    } else if (dtype == PD_DTYPE_BFLOAT16) {
        pd_kernel_widen_bfloat16(line, from);
    } else {
        pd_kernel_widen_float16(line, from);
    }
}

PD_KERNEL_STREAMS
static inline void pd_kernel_round_to_bfloat16(void *to, const float *line)
{
    const __m512i infinity = _mm512_set1_epi32(0x7f800000);
    __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(line));
    __m512i upper = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
    __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    __mmask16 nan = _mm512_cmpgt_epi32_mask(magnitude, infinity);
    rounded = _mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256((__m256i_u *)to, _mm512_cvtepi32_epi16(rounded));
}

PD_KERNEL_STREAMS
static inline void pd_kernel_round_to_float16(void *to, const float *line)
{
    __m256i rounded = _mm512_cvtps_ph(_mm512_loadu_ps(line), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256((__m256i_u *)to, rounded);
}

/* Eight elements: machines without AVX-512 can, too. */
PD_KERNEL_FLOAT16
static inline void pd_kernel_round_eight_to_float16(void *to, const float *from)
{
    __m128i rounded = _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128((__m128i_u *)to, rounded);
}

/* After the last line: what other threads read next is there. */
PD_KERNEL_STREAMS
static inline void pd_kernel_end_streaming(void)
{
    _mm_sfence();
}
#endif

#endif
