/* What the last steps came to, as many as `history` says: for admin queries and pictures.
 * orders, metrics -> [history] -> status. Pure. Owner: the loop thread of rank 0. */
#ifndef PD_SERVER_CORE_HISTORY_H
#define PD_SERVER_CORE_HISTORY_H

#include "common/error.h"

#include <stdbool.h>
#include <stdint.h>

struct pd_history_row {
    uint64_t step;
    double lr;            /* of the first group */
    double gradient_norm; /* before clipping; NaN when not computed */
    double clipped_norm;  /* after it */
    double loss;          /* NaN when nobody said */
    uint64_t effective_batch;
    bool skipped;
    uint32_t metrics_known;              /* bit i: metrics[i] was reported of the step's version */
    double metrics[PD_METRIC_COUNT_MAX]; /* by the leader's number of the metric */
};

_Static_assert(PD_METRIC_COUNT_MAX <= 32, "metrics_known has a bit for each");

/* A ring. */
struct pd_history {
    struct pd_history_row *rows;
    uint64_t capacity;
    uint64_t begin;
    uint64_t count;
};

/* Errors: PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_history_init(struct pd_history *history, uint64_t capacity,
                               struct pd_error *error);
void pd_history_finish(struct pd_history *history);

/* Add a step, the oldest making room for it; steps rise. Its metrics are not known yet. */
void pd_history_add(struct pd_history *history, const struct pd_history_row *row);

/* Note a metric of `version`, which the step before that number made; none if it is gone. */
void pd_history_note(struct pd_history *history, uint64_t version, uint32_t metric, double value);

/* The row at `index` < count, from the oldest. */
const struct pd_history_row *pd_history_at(const struct pd_history *history, uint64_t index);

/* Index of the first row of step `step` or later; count if there is none. */
uint64_t pd_history_find(const struct pd_history *history, uint64_t step);

#endif
