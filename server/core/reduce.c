#include "server/core/reduce.h"

#include "common/assert.h"
#include "common/kernel.h"

#include <math.h>
#include <string.h>

/* Elements converted or summed at a time, so that a chunk stays in the first-level cache. */
#define CHUNK_COUNT 1024u

/* Elements searched at a time for a non-finite one, before looking at single ones. */
#define SEARCH_COUNT 1024u

/* Elements as bits, whatever type they were written as. */
typedef uint32_t bits32 __attribute__((may_alias));
typedef uint16_t bits16 __attribute__((may_alias, aligned(1)));

/* Elements of a few sources as float32, and what their sum is multiplied by. */
struct terms {
    const float *elements[PD_REDUCE_TERM_COUNT];
    float weights[PD_REDUCE_TERM_COUNT];
    float scale;
};

/* Add `count` terms in order to what is in `out`, or, if they are the first, put their sum there.
 * With constant numbers the branches and the inner loop vanish. */
static inline __attribute__((always_inline)) void weigh(float *restrict out, bool first,
                                                        const struct terms *terms,
                                                        uint32_t term_count, bool scaled,
                                                        uint32_t count)
{
    const struct terms t = *terms;

    for (uint32_t i = 0; i < count; i++) {
        float sum = t.weights[0] * t.elements[0][i];
        sum = first ? sum : out[i] + sum;
        for (uint32_t k = 1; k < term_count; k++) {
            sum += t.weights[k] * t.elements[k][i];
        }
        out[i] = scaled ? sum * t.scale : sum;
    }
}

#define WEIGH(name, first, term_count, scaled)                                                     \
    PD_KERNEL                                                                                      \
    static void name(float *restrict out, const struct terms *terms, uint32_t count)               \
    {                                                                                              \
        weigh(out, first, terms, term_count, scaled, count);                                       \
    }
#define WEIGH_ALL(term_count)                                                                      \
    WEIGH(put_##term_count, true, term_count, false)                                               \
    WEIGH(put_scaled_##term_count, true, term_count, true)                                         \
    WEIGH(add_##term_count, false, term_count, false)                                              \
    WEIGH(add_scaled_##term_count, false, term_count, true)
#define CHOOSE(term_count)                                                                         \
    (scaled ? (first ? put_scaled_##term_count : add_scaled_##term_count)                          \
            : (first ? put_##term_count : add_##term_count))

WEIGH_ALL(1)
WEIGH_ALL(2)
WEIGH_ALL(4)

static void weigh_terms(float *out, bool first, const struct terms *terms, uint32_t term_count,
                        uint32_t count)
{
    bool scaled = terms->scale < 1.0f || terms->scale > 1.0f;

    switch (term_count) {
    case 4:
        CHOOSE(4)(out, terms, count);
        break;
    case 2:
        CHOOSE(2)(out, terms, count);
        break;
    default:
        CHOOSE(1)(out, terms, count);
        break;
    }
}

/* Add the elements from `begin` on of 1, 2 or 4 sources, at most CHUNK_COUNT of each. */
static void add_chunk(float *out, bool first, const struct pd_source *sources,
                      uint32_t source_count, float scale, uint32_t begin, uint32_t count)
{
    float converted[PD_REDUCE_TERM_COUNT][CHUNK_COUNT];
    struct terms terms = {.scale = scale};

    for (uint32_t k = 0; k < source_count; k++) {
        const struct pd_source *source = &sources[k];
        terms.weights[k] = source->weight;
        if (source->dtype == PD_DTYPE_FLOAT32) {
            terms.elements[k] = (const float *)source->elements + begin;
        } else {
            const char *bytes = source->elements;
            pd_convert_to_float32(converted[k], bytes + begin * pd_dtype_bytes(source->dtype),
                                  source->dtype, count);
            terms.elements[k] = converted[k];
        }
    }
    weigh_terms(out, first, &terms, source_count, count);
}

/* Sources to add at once when `left` are left. */
static uint32_t together(uint32_t left)
{
    return left >= PD_REDUCE_TERM_COUNT ? PD_REDUCE_TERM_COUNT : (left >= 2 ? 2 : 1);
}

PD_KERNEL
static void scale_elements(float *elements, float scale, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        elements[i] *= scale;
    }
}

static bool is_one(float factor)
{
    return factor >= 1.0f && factor <= 1.0f;
}

void pd_reduce_scaled(float *out, bool first, const struct pd_source *sources,
                      uint32_t source_count, float scale, uint32_t count)
{
    if (first && source_count == 1 && is_one(sources[0].weight) && is_one(scale)) {
        pd_convert_to_float32(out, sources[0].elements, sources[0].dtype, count);
        return;
    }
    if (source_count == 0 && first) {
        memset(out, 0, count * sizeof *out);
    } else if (source_count == 0) {
        scale_elements(out, scale, count);
    }
    for (uint32_t begin = 0; begin < count; begin += CHUNK_COUNT) {
        uint32_t chunk = count - begin < CHUNK_COUNT ? count - begin : CHUNK_COUNT;
        uint32_t step = 0;
        for (uint32_t k = 0; k < source_count; k += step) {
            step = together(source_count - k);
            add_chunk(out + begin, first && k == 0, &sources[k], step,
                      k + step == source_count ? scale : 1.0f, begin, chunk);
        }
    }
}

void pd_reduce_block(float *out, const struct pd_source *sources, uint32_t source_count,
                     uint32_t count)
{
    pd_reduce_scaled(out, true, sources, source_count, 1.0f, count);
}

void pd_reduce_add(float *sum, const struct pd_source *source, bool first, uint32_t count)
{
    for (uint32_t begin = 0; begin < count; begin += CHUNK_COUNT) {
        uint32_t chunk = count - begin < CHUNK_COUNT ? count - begin : CHUNK_COUNT;
        add_chunk(sum + begin, first, source, 1, 1.0f, begin, chunk);
    }
}

PD_KERNEL
void pd_reduce_subtract_from(float *elements, const float *from, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        elements[i] = from[i] - elements[i];
    }
}

PD_KERNEL
void pd_reduce_clamp(float *elements, float value, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        float element = elements[i];
        element = element > value ? value : element;
        element = element < -value ? -value : element;
        elements[i] = element;
    }
}

/* The lanes in order, so that there is one order for the whole sum. */
static double sum_lanes(const double lanes[PD_REDUCE_LANE_COUNT])
{
    double sum = lanes[0];
    for (uint32_t lane = 1; lane < PD_REDUCE_LANE_COUNT; lane++) {
        sum += lanes[lane];
    }
    return sum;
}

PD_KERNEL
static void sum_squares(const float *elements, uint32_t count, double out[PD_REDUCE_LANE_COUNT])
{
    double lanes[PD_REDUCE_LANE_COUNT] = {0};
    uint32_t i = 0;

    for (; i + PD_REDUCE_LANE_COUNT <= count; i += PD_REDUCE_LANE_COUNT) {
        for (uint32_t lane = 0; lane < PD_REDUCE_LANE_COUNT; lane++) {
            double element = elements[i + lane];
            lanes[lane] += element * element;
        }
    }
    for (uint32_t lane = 0; i < count; i++, lane++) {
        double element = elements[i];
        lanes[lane] += element * element;
    }
    memcpy(out, lanes, sizeof lanes);
}

PD_KERNEL
static void sum_magnitudes(const float *elements, uint32_t count, double out[PD_REDUCE_LANE_COUNT])
{
    double lanes[PD_REDUCE_LANE_COUNT] = {0};
    uint32_t i = 0;

    for (; i + PD_REDUCE_LANE_COUNT <= count; i += PD_REDUCE_LANE_COUNT) {
        for (uint32_t lane = 0; lane < PD_REDUCE_LANE_COUNT; lane++) {
            lanes[lane] += (double)fabsf(elements[i + lane]);
        }
    }
    for (uint32_t lane = 0; i < count; i++, lane++) {
        lanes[lane] += (double)fabsf(elements[i]);
    }
    memcpy(out, lanes, sizeof lanes);
}

/* The largest magnitude of finite elements. As bits, because magnitudes order like theirs, and
 * whole numbers have no NaN that would keep the loop from being vectorised. */
PD_KERNEL
static uint32_t max_magnitude_bits(const bits32 *elements, uint32_t count)
{
    uint32_t largest = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t magnitude = elements[i] & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

static float max_magnitude(const float *elements, uint32_t count)
{
    uint32_t bits = max_magnitude_bits((const bits32 *)elements, count);
    float magnitude = 0;
    memcpy(&magnitude, &bits, sizeof magnitude);
    return magnitude;
}

static double sum_powers(const float *elements, uint32_t count, double norm_type)
{
    double lanes[PD_REDUCE_LANE_COUNT] = {0};
    for (uint32_t i = 0; i < count; i++) {
        lanes[i % PD_REDUCE_LANE_COUNT] += pow(fabs((double)elements[i]), norm_type);
    }
    return sum_lanes(lanes);
}

double pd_reduce_squares(const double squares[PD_REDUCE_LANE_COUNT])
{
    double sum = sum_lanes(squares);

    /* The square of a finite float32 and any sum of them in a block is far below the largest
     * double, so this sum is finite exactly if every element is. */
    return isfinite(sum) ? sum : NAN;
}

void pd_reduce_norms(const float *elements, uint32_t count, double norm_type, double powers[2])
{
    double lanes[PD_REDUCE_LANE_COUNT];

    PD_ASSERT(norm_type > 0);
    sum_squares(elements, count, lanes);
    powers[1] = pd_reduce_squares(lanes);
    if (isnan(powers[1])) {
        powers[0] = NAN;
    } else if (norm_type == 2) {
        powers[0] = powers[1];
    } else if (norm_type == 1) {
        sum_magnitudes(elements, count, lanes);
        powers[0] = sum_lanes(lanes);
    } else if (isinf(norm_type)) {
        powers[0] = max_magnitude(elements, count);
    } else {
        powers[0] = sum_powers(elements, count, norm_type);
    }
}

/* Whether any of `count` elements has an exponent of ones only: infinity or NaN. */
PD_KERNEL
static bool any_nonfinite32(const bits32 *bits, uint32_t count)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i++) {
        found |= (bits[i] & 0x7f800000u) == 0x7f800000u;
    }
    return found != 0;
}

PD_KERNEL
static bool any_nonfinite16(const bits16 *bits, uint16_t exponent, uint32_t count)
{
    uint16_t found = 0;
    for (uint32_t i = 0; i < count; i++) {
        found |= (bits[i] & exponent) == exponent;
    }
    return found != 0;
}

static bool any_nonfinite(const void *elements, enum pd_dtype dtype, uint32_t count)
{
    switch (dtype) {
    case PD_DTYPE_BFLOAT16:
        return any_nonfinite16(elements, 0x7f80u, count);
    case PD_DTYPE_FLOAT16:
        return any_nonfinite16(elements, 0x7c00u, count);
    case PD_DTYPE_FLOAT32:
        break;
    }
    return any_nonfinite32(elements, count);
}

uint32_t pd_reduce_find_nonfinite(const void *elements, enum pd_dtype dtype, uint32_t count)
{
    const char *bytes = elements;
    size_t element_bytes = pd_dtype_bytes(dtype);
    uint32_t begin = 0;
    uint32_t chunk = 0;

    for (begin = 0; begin < count; begin += chunk) {
        chunk = count - begin < SEARCH_COUNT ? count - begin : SEARCH_COUNT;
        if (any_nonfinite(bytes + begin * element_bytes, dtype, chunk)) {
            break;
        }
    }
    while (begin < count && !any_nonfinite(bytes + begin * element_bytes, dtype, 1)) {
        begin++;
    }
    return begin;
}
