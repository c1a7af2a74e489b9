/* Factored averages of squares, as Adafactor keeps them: of a tensor's squared gradient only the
 * means over one dimension ("rows") and over another ("columns"), whose product estimates it.
 * rules -> [factored]: the passes that the forms of Adafactor share. Pure.
 * Source: Shazeer and Stern 2018, algorithms 4 and 5 (https://arxiv.org/abs/1804.04235).
 *
 * Pass 1 sums squares by row and by column; before pass 2 every rank that holds a part of the
 * tensor takes the sums into its copy of the averages; pass 2 leaves the update u in the place of
 * the gradient and sums p^2 and u^2; pass 3 applies it, unless with caution a pass 4 does. Squares
 * of tensors that are not factored are kept whole. */
#ifndef PD_SERVER_CORE_OPTIMIZERS_FACTORED_H
#define PD_SERVER_CORE_OPTIMIZERS_FACTORED_H

#include "server/core/optimizers/rules.h"

/* A tensor seen as [outer, first, middle, second, inner], where `first` and `second` are the two
 * dimensions that means are taken over. */
struct pd_factored_shape {
    bool factored; /* false: nothing below means anything */
    uint64_t first, middle, second, inner;
    uint64_t without_first;  /* elements of the means over `first` */
    uint64_t without_second; /* elements of the means over `second` */
    bool rows_lack_first;    /* which of the two are the rows, divided by their own mean */
    uint64_t mean_count;     /* rows are [..., mean_count, mean_inner] for that mean */
    uint64_t mean_inner;
};

/* Rows are means over `row_dimension`, columns over `column_dimension`; the mean of rows is taken
 * over `mean_dimension` of what is left, the row dimension counting as one of size 1. */
struct pd_factored_shape pd_factored_shape_of(const struct pd_tensor *tensor,
                                              uint32_t row_dimension, uint32_t column_dimension,
                                              uint32_t mean_dimension);

/* Of pass 1, and the float32 numbers kept of a tensor. */
uint64_t pd_factored_sum_count(const struct pd_factored_shape *shape);
uint32_t pd_factored_spans(const struct pd_factored_shape *shape, uint64_t begin, uint32_t count,
                           struct pd_optimizer_span *spans);
uint64_t pd_factored_vector_count(const struct pd_factored_shape *shape);

/* How squares are averaged. */
struct pd_factored_average {
    double beta2;     /* of this step */
    double eps_added; /* to every square */
    double eps_floor; /* least mean of rows, and its square the least estimate; 0: none */
};

/* Pass 1. */
void pd_factored_sum(const struct pd_factored_shape *shape, const struct pd_optimizer_step *step,
                     struct pd_optimizer_block *block);
/* Before pass 2. */
void pd_factored_begin(const struct pd_factored_shape *shape,
                       const struct pd_factored_average *average, const double *sums,
                       float *vectors);
/* Pass 2; `squares` are those of a tensor that is not factored. */
void pd_factored_update(const struct pd_factored_shape *shape,
                        const struct pd_factored_average *average,
                        const struct pd_optimizer_step *step, struct pd_optimizer_block *block,
                        float *squares);

/* How an update is applied:
 *   x <- before * u / max(1, RMS(u) / clip_threshold)
 *   m <- momentum * m + (1 - momentum) * x and x <- m, if there is momentum
 *   p <- kept * p - after * x, where caution masks x */
struct pd_factored_application {
    double clip_threshold; /* NaN: none */
    double before;
    double momentum; /* NaN: none */
    double after;
    double kept;
    bool caution;
};

/* Pass 3; m is the first of the state. */
void pd_factored_apply(const struct pd_factored_application *application,
                       struct pd_optimizer_block *block);

/* The root of the mean of the squares of a tensor's elements, which are `sum` together. */
double pd_factored_rms(const struct pd_tensor *tensor, double sum);

#endif
