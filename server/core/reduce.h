/* Sums over blocks: the weighted average of contributions, and the partial sums of norms.
 * contribution -> [reduce] -> clip. Pure; deterministic to the bit on every instruction set. */
#ifndef PD_SERVER_CORE_REDUCE_H
#define PD_SERVER_CORE_REDUCE_H

#include "common/tensor.h"

/* Independent accumulators of a sum: element i goes to number i modulo this on every instruction
 * set, so the order of additions never depends on how wide the machine's vectors are. */
#define PD_REDUCE_LANE_COUNT 16u

/* Sources that are added in one pass over their elements. */
#define PD_REDUCE_TERM_COUNT 4u

/* One contribution's elements of one block. */
struct pd_source {
    const void *elements;
    enum pd_dtype dtype;
    float weight;
};

/* out[i] = sum over k, in order, of weight[k] * source[k][i]; no fused multiply-add. With no
 * source, zeros. `out` overlaps none of them. */
void pd_reduce_block(float *out, const struct pd_source *sources, uint32_t source_count,
                     uint32_t count);

/* out[i] = scale * that sum, begun with what `out` holds unless `first`. With no source, what it
 * holds is scaled, or zeros. To the bit the same in however many calls sources come, with the scale
 * 1 in all but the last. */
void pd_reduce_scaled(float *out, bool first, const struct pd_source *sources,
                      uint32_t source_count, float scale, uint32_t count);

/* sum[i] += weight * source[i], or = when `first`: a micro-batch added to its contribution. */
void pd_reduce_add(float *sum, const struct pd_source *source, bool first, uint32_t count);

/* Clamp to [-value, value]; NaN stays NaN. */
void pd_reduce_clamp(float *elements, float value, uint32_t count);

/* elements[i] = from[i] - elements[i]: how far averaged parameters have moved away from `from`. */
void pd_reduce_subtract_from(float *elements, const float *from, uint32_t count);

/* Partial sums of one block: powers[0] = sum |g|^p (for p = infinity: max |g|), powers[1] = sum
 * g^2. Summed in double. Any non-finite element makes both NaN. */
void pd_reduce_norms(const float *elements, uint32_t count, double norm_type, double powers[2]);

/* The sum of squares of a block from its accumulators; NaN where an element is not finite. */
double pd_reduce_squares(const double squares[PD_REDUCE_LANE_COUNT]);

/* Index of the first non-finite element, or `count`. */
uint32_t pd_reduce_find_nonfinite(const void *elements, enum pd_dtype dtype, uint32_t count);

#endif
