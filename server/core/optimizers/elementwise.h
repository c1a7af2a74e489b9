/* Rules that go over the elements once, each on its own.
 * optimizer.c <- rules <- [elementwise] <- the rules of one pass. Included nowhere else.
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
 * is. A streamed block is written past the caches, a whole cache line at a time: it need not be
 * read before, which saves a third of what a step moves; and what it reads is asked for ahead. Sums
 * of squares and a fresh copy of the parameters, where they are wanted, cost nothing by the way:
 * the loop waits for memory or, in cache, for divisions. */
#ifndef PD_SERVER_CORE_OPTIMIZERS_ELEMENTWISE_H
#define PD_SERVER_CORE_OPTIMIZERS_ELEMENTWISE_H

#include "server/core/optimizers/rules.h"
#include "server/core/reduce.h"

#include <string.h>

/* State that changes in place is the same array twice, which the compiler cannot know to be no
 * hindrance. */
#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed" /* where the checks of a sanitizer prevent it */
#define PD_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define PD_INDEPENDENT _Pragma("GCC ivdep")
#endif

#ifdef PD_KERNEL_STREAMS
_Static_assert(PD_LINE_ELEMENTS == PD_REDUCE_LANE_COUNT, "a line has an element for each lane");

#define PD_ELEMENTWISE_BY_LINE(name, element, states)                                              \
    PD_KERNEL_STREAMS                                                                              \
    static void name##_by_line(const struct pd_optimizer_block *block, struct scalars c)           \
    {                                                                                              \
        const float *from[(states) + 1];                                                           \
        float *to[(states) + 1];                                                                   \
        bool streamed[(states) + 1];                                                               \
        float *fresh = block->fresh;                                                               \
        float next[(states) + 1][PD_LINE_ELEMENTS];                                                \
        double squares[PD_LINE_ELEMENTS] = {0};                                                    \
        size_t i = 0;                                                                              \
                                                                                                   \
        to[states] = block->parameters_next;                                                       \
        streamed[states] = block->streamed && pd_kernel_begins_line(to[states]);                   \
        for (int k = 0; k < (states); k++) {                                                       \
            from[k] = block->state[k];                                                             \
            to[k] = block->state_next[k];                                                          \
            streamed[k] = block->streamed && to[k] != from[k] && pd_kernel_begins_line(to[k]);     \
        }                                                                                          \
        for (; i + PD_LINE_ELEMENTS <= block->count; i += PD_LINE_ELEMENTS) {                      \
            const float *p = block->parameters + i;                                                \
            const float *g = block->gradient + i;                                                  \
            pd_kernel_ask_ahead(p);                                                                \
            pd_kernel_ask_ahead(g);                                                                \
            for (int k = 0; k < (states); k++) {                                                   \
                pd_kernel_ask_ahead(from[k] + i);                                                  \
            }                                                                                      \
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
                pd_kernel_put_line(fresh + i, next[states], false);                                \
            }                                                                                      \
        }                                                                                          \
        if (block->streamed) {                                                                     \
            pd_kernel_end_streaming();                                                             \
        }                                                                                          \
        name##_from(block, (uint32_t)i, c);                                                        \
        if (fresh != NULL) {                                                                       \
            memcpy(fresh + i, to[states] + i, (block->count - i) * sizeof *fresh);                 \
        }                                                                                          \
        if (block->squares != NULL) {                                                              \
            for (size_t j = 0; i < block->count; i++, j++) {                                       \
                squares[j] += (double)block->gradient[i] * (double)block->gradient[i];             \
            }                                                                                      \
            memcpy(block->squares, squares, sizeof squares);                                       \
        }                                                                                          \
    }
#else
#define PD_ELEMENTWISE_BY_LINE(name, element, states)                                              \
    static void name##_by_line(const struct pd_optimizer_block *block, struct scalars c)           \
    {                                                                                              \
        name##_from(block, 0, c);                                                                  \
    }
#endif

#define PD_ELEMENTWISE(name, element, states)                                                      \
    static inline __attribute__((always_inline)) void name##_from(                                 \
        const struct pd_optimizer_block *block, uint32_t begin, struct scalars c)                  \
    {                                                                                              \
        const float *restrict p = block->parameters;                                               \
        const float *restrict g = block->gradient;                                                 \
        float *restrict p_next = block->parameters_next;                                           \
        const float *from[(states) + 1];                                                           \
        float *to[(states) + 1];                                                                   \
                                                                                                   \
        for (int k = 0; k < (states); k++) {                                                       \
            from[k] = block->state[k];                                                             \
            to[k] = block->state_next[k];                                                          \
        }                                                                                          \
        PD_INDEPENDENT                                                                             \
        for (uint32_t i = begin; i < block->count; i++) {                                          \
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
        name##_from(block, 0, c);                                                                  \
    }                                                                                              \
    PD_ELEMENTWISE_BY_LINE(name, element, states)                                                  \
    static void name(const struct pd_optimizer_block *block, struct scalars c)                     \
    {                                                                                              \
        if ((block->streamed || block->squares != NULL) && pd_kernel_streams()) {                  \
            name##_by_line(block, c);                                                              \
        } else {                                                                                   \
            name##_cached(block, c);                                                               \
        }                                                                                          \
    }

#endif
