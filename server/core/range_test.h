/* The learning-rate range test: rates from low to high, a step each, and what the loss says of
 * them. lr-find command -> [range_test] -> search. Pure.
 *
 * Source: Smith 2015 (https://arxiv.org/abs/1506.01186); names and defaults are those of
 * torch-lr-finder, `debias` and `exclude_end` make it fastai's.
 *
 *   lr_i = start * (end / start)^(i / (steps - 1)), or ^(i / steps) with exclude_end
 *   smoothed_0 = loss_0, smoothed_i = smooth_f * loss_i + (1 - smooth_f) * smoothed_(i-1)
 *   with debias: average_i = smooth_f * loss_i + (1 - smooth_f) * average_(i-1) from 0, and
 *                smoothed_i = average_i / (1 - (1 - smooth_f)^(i+1))
 *   over when smoothed_i > diverge_th * (the least so far), or the loss is no finite number
 *   suggestion: the rate with the least gradient of the smoothed losses, central differences
 *               (numpy.gradient), without the first skip_start and the last skip_end points
 *
 * loss_i is that of the parameters before the step at lr_i, as everywhere in the field. */
#ifndef PD_SERVER_CORE_RANGE_TEST_H
#define PD_SERVER_CORE_RANGE_TEST_H

#include "server/core/option.h"

#define PD_RANGE_STEPS_MAX 10000u

struct pd_range_options {
    double start;
    double end;
    uint64_t steps;
    double smooth_f;
    double diverge_th;
    uint64_t skip_start;
    uint64_t skip_end;
    bool debias;
    bool exclude_end;
};

struct pd_range_point {
    double lr;
    double loss;
    double smoothed;
};

struct pd_range_test {
    struct pd_range_options options;
    struct pd_range_point *points; /* options.steps */
    uint64_t point_count;
    double average; /* before it is made up for its beginning at 0 */
    double best;    /* least of the smoothed losses */
};

/* Take "key=value" settings, the rest being defaults.
 * Errors: PD_EINVALID says the key, the value and what is allowed; PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_range_read(struct pd_range_options *options, const char *const *settings,
                             size_t setting_count, struct pd_error *error);

/* Errors: PD_ENOMEM; nothing to finish then. */
PD_MUST_CHECK
enum pd_status pd_range_init(struct pd_range_test *test, const struct pd_range_options *options,
                             struct pd_error *error);
/* A zeroed one is allowed. */
void pd_range_finish(struct pd_range_test *test);

/* The rate whose turn it is. */
double pd_range_lr(const struct pd_range_test *test);

/* Take the loss of the parameters that the step at that rate begins with; false if it has diverged,
 * and is no point then. Not after options.steps points. */
PD_MUST_CHECK
bool pd_range_take(struct pd_range_test *test, double loss);

/* The rates to suggest; NaN: too few points are left, or the loss never falls. */
double pd_range_steepest(const struct pd_range_test *test);
/* A tenth of the rate with the least smoothed loss, which is on the safe side of it. */
double pd_range_below_least(const struct pd_range_test *test);

#endif
