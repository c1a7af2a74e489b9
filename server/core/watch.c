#include "server/core/watch.h"

#include <math.h>
#include <stddef.h>

const char *const pd_watch_modes[] = {"min", "max", NULL};
const char *const pd_watch_threshold_modes[] = {"rel", "abs", NULL};

void pd_watch_init(struct pd_watch *watch, const struct pd_watch_options *options)
{
    watch->best = options->mode == PD_WATCH_MAX ? -INFINITY : INFINITY;
    watch->bad_count = 0;
}

/* What a report has to beat. */
static double mark(const struct pd_watch *watch, const struct pd_watch_options *options)
{
    double sign = options->mode == PD_WATCH_MAX ? 1 : -1;

    return options->threshold_mode == PD_WATCH_REL ? watch->best * (1 + sign * options->threshold)
                                                   : watch->best + sign * options->threshold;
}

bool pd_watch_take(struct pd_watch *watch, const struct pd_watch_options *options, double value)
{
    bool better =
        options->mode == PD_WATCH_MAX ? value > mark(watch, options) : value < mark(watch, options);

    watch->bad_count = better ? 0 : watch->bad_count + 1;
    watch->best = better ? value : watch->best;
    return better;
}
