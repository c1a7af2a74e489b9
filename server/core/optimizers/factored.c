#include "server/core/optimizers/factored.h"

#include "common/assert.h"
#include "server/core/optimizers/elementwise.h"

/* Elements of a sum go round this many accumulators, whatever the width of the machine's vectors.
 */
#define LANE_COUNT 8u

/* A run of elements that share all indexes but those in `second` and `inner`. */
struct line {
    uint64_t index; /* over [outer, first, middle] */
    uint64_t means; /* of its first element, among the means over `first` */
    uint64_t begin; /* elements of the line left out before the run */
    uint32_t count;
};

struct pd_factored_shape pd_factored_shape_of(const struct pd_tensor *tensor,
                                              uint32_t row_dimension, uint32_t column_dimension,
                                              uint32_t mean_dimension)
{
    bool rows_lack_first = row_dimension < column_dimension;
    uint32_t first = rows_lack_first ? row_dimension : column_dimension;
    uint32_t second = rows_lack_first ? column_dimension : row_dimension;
    struct pd_factored_shape shape = {
        .factored = true,
        .first = tensor->shape[first],
        .middle = 1,
        .second = tensor->shape[second],
        .inner = 1,
        .without_first = tensor->element_count / tensor->shape[first],
        .without_second = tensor->element_count / tensor->shape[second],
        .rows_lack_first = rows_lack_first,
        .mean_count = mean_dimension == row_dimension ? 1 : tensor->shape[mean_dimension],
        .mean_inner = 1,
    };

    PD_ASSERT(first < second && second < tensor->dimension_count);
    for (uint32_t i = first + 1; i < second; i++) {
        shape.middle *= tensor->shape[i];
    }
    for (uint32_t i = second + 1; i < tensor->dimension_count; i++) {
        shape.inner *= tensor->shape[i];
    }
    for (uint32_t i = mean_dimension + 1; i < tensor->dimension_count; i++) {
        shape.mean_inner *= i == row_dimension ? 1 : tensor->shape[i];
    }
    return shape;
}

uint64_t pd_factored_sum_count(const struct pd_factored_shape *shape)
{
    return shape->factored ? shape->without_first + shape->without_second : 0;
}

uint64_t pd_factored_vector_count(const struct pd_factored_shape *shape)
{
    /* The averages, and what they are multiplied in as. */
    return 2 * pd_factored_sum_count(shape);
}

/* The line of element `begin` of the tensor, at most to element `end`. */
static struct line line_at(const struct pd_factored_shape *shape, uint64_t begin, uint64_t end)
{
    uint64_t length = shape->second * shape->inner;
    uint64_t index = begin / length;
    uint64_t outer = index / (shape->first * shape->middle);
    uint64_t line_end = (index + 1) * length;

    return (struct line){
        .index = index,
        .means = (outer * shape->middle + index % shape->middle) * length,
        .begin = begin - index * length,
        .count = (uint32_t)((line_end < end ? line_end : end) - begin),
    };
}

uint32_t pd_factored_spans(const struct pd_factored_shape *shape, uint64_t begin, uint32_t count,
                           struct pd_optimizer_span *spans)
{
    uint64_t length = shape->second * shape->inner;
    struct line head = line_at(shape, begin, begin + count);
    struct line tail = line_at(shape, begin + count - 1, begin + count);

    if (head.index == tail.index) {
        spans[0] = (struct pd_optimizer_span){head.means + head.begin, count};
    } else if (head.index / shape->middle == tail.index / shape->middle) {
        spans[0] = (struct pd_optimizer_span){head.means, tail.means + length - head.means};
    } else {
        uint64_t slab = shape->middle * length;
        uint64_t slab_begin = head.means / slab;
        uint64_t slab_last = tail.means / slab;
        spans[0] =
            (struct pd_optimizer_span){slab_begin * slab, (slab_last + 1 - slab_begin) * slab};
    }
    spans[1] = (struct pd_optimizer_span){
        shape->without_first + head.index * shape->inner,
        (tail.index + 1 - head.index) * shape->inner,
    };
    return 2;
}

/* ---- Pass 1 ---- */

PD_KERNEL
static void add_squares(double *restrict sums, const float *restrict grad, uint32_t count,
                        float scale)
{
    for (uint32_t i = 0; i < count; i++) {
        double g = grad[i] * scale;
        sums[i] += g * g;
    }
}

PD_KERNEL
static double sum_squares(const float *grad, uint32_t count, float scale)
{
    double lanes[LANE_COUNT] = {0};
    double sum = 0;
    uint32_t i = 0;

    for (; i + LANE_COUNT <= count; i += LANE_COUNT) {
        for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
            double g = grad[i + lane] * scale;
            lanes[lane] += g * g;
        }
    }
    for (uint32_t lane = 0; i < count; i++, lane++) {
        double g = grad[i] * scale;
        lanes[lane] += g * g;
    }
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        sum += lanes[lane];
    }
    return sum;
}

void pd_factored_sum(const struct pd_factored_shape *shape, const struct pd_optimizer_step *step,
                     struct pd_optimizer_block *block)
{
    struct pd_optimizer_span spans[PD_OPTIMIZER_SPAN_COUNT_MAX];
    float scale = (float)step->gradient_scale;
    uint64_t end = block->begin + block->count;

    if (!shape->factored) {
        return;
    }
    pd_factored_spans(shape, block->begin, block->count, spans);
    double *over_first = block->partial;
    double *over_second = block->partial + spans[0].count;
    memset(block->partial, 0, (spans[0].count + spans[1].count) * sizeof *block->partial);
    for (uint64_t at = block->begin; at < end;) {
        struct line line = line_at(shape, at, end);
        const float *grad = block->gradient + (at - block->begin);
        double *means =
            over_second + line.index * shape->inner - (spans[1].begin - shape->without_first);
        add_squares(over_first + (line.means + line.begin - spans[0].begin), grad, line.count,
                    scale);
        if (shape->inner == 1) {
            *means += sum_squares(grad, line.count, scale);
        } else {
            for (uint64_t k = 0; k < line.count; k++) {
                double g = grad[k] * scale;
                means[(line.begin + k) % shape->inner] += g * g;
            }
        }
        at += line.count;
    }
}

/* ---- Between ---- */

static void average_means(float *averages, const double *sums, uint64_t count, uint64_t per_sum,
                          const struct pd_factored_average *average)
{
    float beta2 = (float)average->beta2;
    float one_minus_beta2 = (float)(1 - average->beta2);

    for (uint64_t i = 0; i < count; i++) {
        float mean = (float)(sums[i] / (double)per_sum + average->eps_added);
        averages[i] = beta2 * averages[i] + one_minus_beta2 * mean;
    }
}

/* factors <- rows / mean of rows. */
static void divide_by_mean(const struct pd_factored_shape *shape, float *factors, const float *rows,
                           uint64_t count, double least)
{
    uint64_t slab = shape->mean_count * shape->mean_inner;

    for (uint64_t begin = 0; begin < count; begin += slab) {
        for (uint64_t i = 0; i < shape->mean_inner; i++) {
            double sum = 0;
            for (uint64_t k = i; k < slab; k += shape->mean_inner) {
                sum += (double)rows[begin + k];
            }
            float mean = (float)fmax(sum / (double)shape->mean_count, least);
            for (uint64_t k = i; k < slab; k += shape->mean_inner) {
                factors[begin + k] = rows[begin + k] / mean;
            }
        }
    }
}

void pd_factored_begin(const struct pd_factored_shape *shape,
                       const struct pd_factored_average *average, const double *sums,
                       float *vectors)
{
    uint64_t count = pd_factored_sum_count(shape);
    uint64_t row_begin = shape->rows_lack_first ? 0 : shape->without_first;
    uint64_t row_count = shape->rows_lack_first ? shape->without_first : shape->without_second;

    if (!shape->factored) {
        return;
    }
    float *factors = vectors + count;
    average_means(vectors, sums, shape->without_first, shape->first, average);
    average_means(vectors + shape->without_first, sums + shape->without_first,
                  shape->without_second, shape->second, average);
    memcpy(factors, vectors, count * sizeof *factors);
    divide_by_mean(shape, factors + row_begin, vectors + row_begin, row_count, average->eps_floor);
    for (uint64_t i = 0; average->eps_floor == 0 && i < count; i++) {
        factors[i] = 1 / sqrtf(factors[i]);
    }
}

/* ---- Pass 2 ---- */

PD_KERNEL
static void scale_line(float *restrict grad, const float *restrict by_first, float by_second,
                       uint32_t count, float scale)
{
    for (uint32_t i = 0; i < count; i++) {
        grad[i] = grad[i] * scale * (by_first[i] * by_second);
    }
}

PD_KERNEL
static void divide_line(float *restrict grad, const float *restrict by_first, float by_second,
                        uint32_t count, float scale, float least)
{
    for (uint32_t i = 0; i < count; i++) {
        float estimate = by_first[i] * by_second;
        grad[i] = grad[i] * scale / sqrtf(estimate > least ? estimate : least);
    }
}

/* The same for lines whose elements have several numbers by `second`. */
static void scale_inner(float *grad, const float *by_first, const float *by_second,
                        const struct line *line, uint64_t inner, float scale, float least)
{
    for (uint64_t i = 0; i < line->count; i++) {
        float product = by_first[i] * by_second[(line->begin + i) % inner];
        grad[i] = least == 0 ? grad[i] * scale * product
                             : grad[i] * scale / sqrtf(product > least ? product : least);
    }
}

PD_KERNEL
static void divide_by_root(float *restrict grad, float *restrict v, uint32_t count, float scale,
                           float beta2, float one_minus_beta2, float eps, float least)
{
    for (uint32_t i = 0; i < count; i++) {
        float g = grad[i] * scale;
        v[i] = beta2 * v[i] + one_minus_beta2 * (g * g + eps);
        grad[i] = g / sqrtf(v[i] > least ? v[i] : least);
    }
}

static void scale_lines(const struct pd_factored_shape *shape, float scale, float least,
                        struct pd_optimizer_block *block)
{
    const float *factors = block->vectors + pd_factored_sum_count(shape);
    uint64_t end = block->begin + block->count;

    for (uint64_t at = block->begin; at < end;) {
        struct line line = line_at(shape, at, end);
        float *grad = block->gradient + (at - block->begin);
        const float *by_first = factors + line.means + line.begin;
        const float *by_second = factors + shape->without_first + line.index * shape->inner;
        if (shape->inner > 1) {
            scale_inner(grad, by_first, by_second, &line, shape->inner, scale, least);
        } else if (least == 0) {
            scale_line(grad, by_first, *by_second, line.count, scale);
        } else {
            divide_line(grad, by_first, *by_second, line.count, scale, least);
        }
        at += line.count;
    }
}

void pd_factored_update(const struct pd_factored_shape *shape,
                        const struct pd_factored_average *average,
                        const struct pd_optimizer_step *step, struct pd_optimizer_block *block,
                        float *squares)
{
    float scale = (float)step->gradient_scale;
    float least = (float)(average->eps_floor * average->eps_floor);

    if (shape->factored) {
        scale_lines(shape, scale, least, block);
    } else {
        divide_by_root(block->gradient, squares, block->count, scale, (float)average->beta2,
                       (float)(1 - average->beta2), (float)average->eps_added, least);
    }
    pd_optimizer_sum_squares(block->parameters, block->gradient, block->count, block->partial);
}

/* ---- Pass 3 ---- */

/* The state that has momentum, in its order. */
enum { M };

struct scalars {
    float before, momentum, one_minus_momentum, after, kept;
};

static inline float plain_element(float p, float u, float *s, struct scalars c)
{
    (void)s;
    return c.kept * p - c.after * (c.before * u);
}

PD_ELEMENTWISE(plain_step, plain_element, 0)

static inline float momentum_element(float p, float u, float *s, struct scalars c)
{
    s[M] = c.momentum * s[M] + c.one_minus_momentum * (c.before * u);
    return c.kept * p - c.after * s[M];
}

PD_ELEMENTWISE(momentum_step, momentum_element, 1)

/* Leaves the masked step in `u`, whose sign is that of the gradient; returns the sum of the mask.
 */
PD_KERNEL
static uint32_t cautious_step(float *restrict u, float *restrict m, uint32_t count,
                              struct scalars c)
{
    uint32_t agreeing = 0;
    for (uint32_t i = 0; i < count; i++) {
        m[i] = c.momentum * m[i] + c.one_minus_momentum * (c.before * u[i]);
        agreeing += m[i] * u[i] > 0;
        u[i] = m[i] * u[i] > 0 ? c.after * m[i] : 0.0f;
    }
    return agreeing;
}

double pd_factored_rms(const struct pd_tensor *tensor, double sum)
{
    return sqrt(sum / (double)tensor->element_count);
}

void pd_factored_apply(const struct pd_factored_application *application,
                       struct pd_optimizer_block *block)
{
    double update_rms = pd_factored_rms(block->tensor, block->sums[1]);
    /* fmax passes over a threshold that is NaN: none. */
    double excess = fmax(1, update_rms / application->clip_threshold);
    struct scalars c = {
        .before = (float)(application->before / excess),
        .momentum = (float)application->momentum,
        .one_minus_momentum = (float)(1 - application->momentum),
        .after = (float)application->after,
        .kept = (float)application->kept,
    };

    if (isnan(application->momentum)) {
        plain_step(block, c);
    } else if (application->caution) {
        block->partial[0] = cautious_step(block->gradient, block->state[M], block->count, c);
        block->partial[1] = block->count;
    } else {
        momentum_step(block, c);
    }
}
