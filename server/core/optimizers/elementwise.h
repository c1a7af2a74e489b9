/* Passes of rules that go over the elements, each on its own.
 * optimizer.c <- rules <- [elementwise] <- rules that have such a pass, and what they share in
 * optimizer.c and factored.c. Included nowhere else.
 *
 *   PD_ELEMENTWISE(name, element, states)
 *
 * makes of
 *
 *   static inline float element(float p, float g, float *s, struct scalars c)
 *
 * which brings the `states` numbers in `s` on and returns the next parameter,
 *
 *   static void name(const struct pd_optimizer_block *block, struct scalars c)
 *
 * which takes the state from the block's `state` to its `state_next`, and leaves the gradient as it
 * is, unless the next parameters go there. A streamed block is written past the caches, a whole
 * cache line at a time, where nothing is that it reads: so that need not be read before, which
 * saves a third of what a step moves. What it reads is asked for ahead. Sums of squares and a fresh
 * copy of the parameters, where they are wanted, cost nothing by the way, nor do a gradient or a
 * copy in 16 bits: the loop waits for memory or, in cache, for divisions. */
#ifndef PD_SERVER_CORE_OPTIMIZERS_ELEMENTWISE_H
#define PD_SERVER_CORE_OPTIMIZERS_ELEMENTWISE_H

#include "server/core/optimizers/rules.h"
#include "server/core/reduce.h"

#include <string.h>

#ifdef PD_KERNEL_STREAMS
_Static_assert(PD_LINE_ELEMENTS == PD_REDUCE_LANE_COUNT, "a line has an element for each lane");

/* Put the line of an array that begins with element `index` there. */
PD_KERNEL_STREAMS
static inline void put_line(void *to, enum pd_dtype dtype, size_t index,
                            const float line[PD_LINE_ELEMENTS])
{
    switch (dtype) {
    case PD_DTYPE_FLOAT32:
        pd_kernel_put_line((float *)to + index, line, false);
        break;
    case PD_DTYPE_BFLOAT16:
        pd_kernel_round_to_bfloat16((uint16_t *)to + index, line);
        break;
    case PD_DTYPE_FLOAT16:
        pd_kernel_round_to_float16((uint16_t *)to + index, line);
        break;
    }
}

#define PD_ELEMENTWISE_BY_LINE(name, element, states)                                              \
    PD_KERNEL_STREAMS                                                                              \
    static void name##_by_line(const struct pd_optimizer_block *block, struct scalars c)           \
    {                                                                                              \
        const float *from[(states) + 1];                                                           \
        float *to[(states) + 1];                                                                   \
        bool streamed[(states) + 1];                                                               \
        const void *pushed = block->pushed != NULL ? block->pushed : block->gradient;              \
        enum pd_dtype pushed_dtype =                                                               \
            block->pushed != NULL ? block->pushed_dtype : PD_DTYPE_FLOAT32;                        \
        size_t pushed_bytes = pd_dtype_bytes(pushed_dtype);                                        \
        void *fresh = block->fresh;                                                                \
        float next[(states) + 1][PD_LINE_ELEMENTS];                                                \
        float g[PD_LINE_ELEMENTS];                                                                 \
        double squares[PD_LINE_ELEMENTS] = {0};                                                    \
        size_t i = 0;                                                                              \
                                                                                                   \
        to[states] = block->parameters_next;                                                       \
        streamed[states] =                                                                         \
            block->streamed && to[states] != block->gradient && pd_kernel_begins_line(to[states]); \
        for (int k = 0; k < (states); k++) {                                                       \
            from[k] = block->state[k];                                                             \
            to[k] = block->state_next[k];                                                          \
            streamed[k] = block->streamed && to[k] != from[k] && pd_kernel_begins_line(to[k]);     \
        }                                                                                          \
        for (; i + PD_LINE_ELEMENTS <= block->count; i += PD_LINE_ELEMENTS) {                      \
            const float *p = block->parameters + i;                                                \
            pd_kernel_ask_ahead(p);                                                                \
            const char *pushed_line = (const char *)pushed + i * pushed_bytes;                     \
            pd_kernel_ask_ahead(pushed_line);                                                      \
            for (int k = 0; k < (states); k++) {                                                   \
                pd_kernel_ask_ahead(from[k] + i);                                                  \
            }                                                                                      \
            pd_kernel_widen(g, pushed_line, pushed_dtype);                                         \
            for (size_t j = 0; j < PD_LINE_ELEMENTS; j++) {                                        \
                float s[(states) + 1];                                                             \
                for (int k = 0; k < (states); k++) {                                               \
                    s[k] = from[k][i + j];                                                         \
                }                                                                                  \
                next[states][j] = element(p[j], g[j], s, c);                                       \
                squares[j] += (double)g[j] * (double)g[j];                                         \
                for (int k = 0; k < (states); k++) {                                               \
                    next[k][j] = s[k];                                                             \
                }                                                                                  \
            }                                                                                      \
            for (int k = 0; k <= (states); k++) {                                                  \
                pd_kernel_put_line(to[k] + i, next[k], streamed[k]);                               \
            }                                                                                      \
            if (fresh != NULL) {                                                                   \
                put_line(fresh, block->fresh_dtype, i, next[states]);                              \
            }                                                                                      \
        }                                                                                          \
        if (block->streamed) {                                                                     \
            pd_kernel_end_streaming();                                                             \
        }                                                                                          \
        struct pd_optimizer_block rest = *block;                                                   \
        rest.count = block->count - (uint32_t)i;                                                   \
        rest.parameters += i;                                                                      \
        rest.parameters_next += i;                                                                 \
        for (int k = 0; k < (states); k++) {                                                       \
            rest.state[k] += i;                                                                    \
            rest.state_next[k] += i;                                                               \
        }                                                                                          \
        pd_convert_to_float32(g, (const char *)pushed + i * pushed_bytes, pushed_dtype,            \
                              rest.count);                                                         \
        rest.gradient = g;                                                                         \
        name##_from(&rest, c);                                                                     \
        if (fresh != NULL) {                                                                       \
            pd_convert_from_float32((char *)fresh + i * pd_dtype_bytes(block->fresh_dtype),        \
                                    block->fresh_dtype, rest.parameters_next, rest.count);         \
        }                                                                                          \
        if (block->squares != NULL) {                                                              \
            for (size_t j = 0; j < rest.count; j++) {                                              \
                squares[j] += (double)g[j] * (double)g[j];                                         \
            }                                                                                      \
            memcpy(block->squares, squares, sizeof squares);                                       \
        }                                                                                          \
    }
#else
#define PD_ELEMENTWISE_BY_LINE(name, element, states)                                              \
    static void name##_by_line(const struct pd_optimizer_block *block, struct scalars c)           \
    {                                                                                              \
        name##_from(block, c);                                                                     \
    }
#endif

#define PD_ELEMENTWISE(name, element, states)                                                      \
    static inline __attribute__((always_inline)) void name##_from(                                 \
        const struct pd_optimizer_block *block, struct scalars c)                                  \
    {                                                                                              \
        const float *restrict p = block->parameters;                                               \
        const float *g = block->gradient;                                                          \
        float *p_next = block->parameters_next;                                                    \
        const float *from[(states) + 1];                                                           \
        float *to[(states) + 1];                                                                   \
                                                                                                   \
        for (int k = 0; k < (states); k++) {                                                       \
            from[k] = block->state[k];                                                             \
            to[k] = block->state_next[k];                                                          \
        }                                                                                          \
        PD_INDEPENDENT                                                                             \
        for (uint32_t i = 0; i < block->count; i++) {                                              \
            float s[(states) + 1];                                                                 \
            for (int k = 0; k < (states); k++) {                                                   \
                s[k] = from[k][i];                                                                 \
            }                                                                                      \
            p_next[i] = element(p[i], g[i], s, c);                                                 \
            for (int k = 0; k < (states); k++) {                                                   \
                to[k][i] = s[k];                                                                   \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
    PD_KERNEL                                                                                      \
    static void name##_cached(const struct pd_optimizer_block *block, struct scalars c)            \
    {                                                                                              \
        name##_from(block, c);                                                                     \
    }                                                                                              \
    PD_ELEMENTWISE_BY_LINE(name, element, states)                                                  \
    static void name(const struct pd_optimizer_block *block, struct scalars c)                     \
    {                                                                                              \
        if ((block->streamed || block->squares != NULL || block->pushed != NULL) &&                \
            pd_kernel_streams()) {                                                                 \
            name##_by_line(block, c);                                                              \
        } else {                                                                                   \
            name##_cached(block, c);                                                               \
        }                                                                                          \
    }

#endif
