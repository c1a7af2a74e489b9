/* What workers report beside gradients: rank 0 keeps the latest of each name, and its plateaus and
 * early stopping go by them. */
#include "server/core/engine_state.h"

#include <inttypes.h>
#include <string.h>

void pd_leader_watch_init(struct pd_leader *leader, const struct pd_config *config)
{
    for (uint32_t i = 0; i < config->schedule_count; i++) {
        pd_plateau_init(&leader->plateaus[i], &config->schedules[i]);
    }
    pd_watch_init(&leader->early_stop, &config->early_stop.watch);
}

/* The metric of that name, or the room for it; NULL when there are too many. */
static struct pd_metric *find_metric(struct pd_leader *leader, const char *name)
{
    for (uint32_t i = 0; i < leader->metric_count; i++) {
        if (strcmp(leader->metrics[i].name, name) == 0) {
            return &leader->metrics[i];
        }
    }
    return leader->metric_count < PD_METRIC_COUNT_MAX ? &leader->metrics[leader->metric_count]
                                                      : NULL;
}

/* Reduce the rate of a running plateau that goes by the metric, when it is time. */
static void feed_plateaus(struct pd_engine *engine, const struct pd_metric *metric)
{
    struct pd_leader *leader = engine->leader;
    const struct pd_config *config = engine->config;

    for (uint32_t i = 0; i < config->schedule_count; i++) {
        const struct pd_schedule *schedule = &config->schedules[i];
        if (schedule->kind == PD_SCHEDULE_PLATEAU &&
            strcmp(schedule->plateau.metric, metric->name) == 0 &&
            pd_schedule_runs(config->schedules, config->schedule_count, i, leader->applied_steps) &&
            pd_plateau_take(&leader->plateaus[i], schedule, metric->value)) {
            pd_actions_log(
                engine->actions,
                "plateau: %s is no better than %g for more than %" PRIu64
                " reports: the learning rate is multiplied by %g from step %" PRIu64 " on",
                metric->name, leader->plateaus[i].watch.best, schedule->plateau.watch.patience,
                schedule->plateau.factor, leader->step_next);
        }
    }
}

/* Advise to stop, once and for all, when the metric has not been better for long enough. */
static void feed_early_stop(struct pd_engine *engine, const struct pd_metric *metric)
{
    struct pd_leader *leader = engine->leader;
    const struct pd_watch_options *options = &engine->config->early_stop.watch;

    if (leader->stop_advised || strcmp(engine->config->early_stop.metric, metric->name) != 0 ||
        pd_watch_take(&leader->early_stop, options, metric->value) ||
        leader->early_stop.bad_count < options->patience) {
        return;
    }
    leader->stop_advised = true;
    pd_actions_log(engine->actions,
                   "early_stop: %s is no better than %g for %" PRIu64
                   " reports: workers are told to stop with step %" PRIu64,
                   metric->name, leader->early_stop.best, options->patience, leader->step_next);
}

enum pd_status pd_leader_metric(struct pd_engine *engine, const struct pd_metric *metric,
                                bool *duplicate, struct pd_error *error)
{
    struct pd_leader *leader = engine->leader;
    struct pd_metric *kept = find_metric(leader, metric->name);

    if (metric->name[0] == '\0') {
        return pd_error_set(error, PD_EINVALID, "metric: no name; allowed: 1 to %u bytes",
                            PD_NAME_BYTES_MAX);
    }
    if (metric->step > leader->step_next) {
        return pd_error_set(error, PD_ESTEP,
                            "metric '%s': of version %" PRIu64 ", the newest is %" PRIu64,
                            metric->name, metric->step, leader->step_next);
    }
    if (kept == NULL) {
        return pd_error_set(error, PD_ELIMIT, "metric '%s': there are %u others; allowed: %u",
                            metric->name, leader->metric_count, PD_METRIC_COUNT_MAX);
    }
    bool known = kept < &leader->metrics[leader->metric_count];
    *duplicate = (known && metric->step <= kept->step) || pd_search_made(leader, metric->step);
    if (*duplicate) {
        return PD_OK;
    }
    leader->metric_count += !known;
    *kept = *metric;
    pd_history_note(&leader->history, metric->step, (uint32_t)(kept - leader->metrics),
                    metric->value);
    feed_plateaus(engine, metric);
    feed_early_stop(engine, metric);
    return PD_OK;
}
