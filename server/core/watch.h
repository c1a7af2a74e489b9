/* Whether a metric gets better, and how many reports it has not: what plateaus and early stopping
 * go by. metrics -> [watch] -> schedule, orders. Pure. Source:
 * torch.optim.lr_scheduler.ReduceLROnPlateau. */
#ifndef PD_SERVER_CORE_WATCH_H
#define PD_SERVER_CORE_WATCH_H

#include <stdbool.h>
#include <stdint.h>

/* Words of CHOICE options, in their order. */
enum pd_watch_mode { PD_WATCH_MIN, PD_WATCH_MAX };
enum pd_watch_threshold { PD_WATCH_REL, PD_WATCH_ABS };
extern const char *const pd_watch_modes[];
extern const char *const pd_watch_threshold_modes[];

struct pd_watch_options {
    int mode; /* enum pd_watch_mode: whether less or more is better */
    double threshold;
    int threshold_mode; /* enum pd_watch_threshold: a share of the best, or a difference */
    uint64_t patience;  /* reports that are not better which are put up with */
};

struct pd_watch {
    double best;
    uint64_t bad_count; /* reports since the best */
};

void pd_watch_init(struct pd_watch *watch, const struct pd_watch_options *options);

/* Take a report; true if it is better than the best by more than the threshold. NaN never is. */
bool pd_watch_take(struct pd_watch *watch, const struct pd_watch_options *options, double value);

#endif
