/* The answers to an administrator's questions, as JSON objects. Keys are a contract: see
 * proto/README.md. A number that does not exist yet is null. */
#include "common/heap.h"
#include "server/core/engine_state.h"
#include "server/core/gradient_norms.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

/* JSON has no NaN: null stands for what does not exist. */
static json_t *real_or_null(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

/* The text of `object`, which is given up. */
static char *dump(json_t *object)
{
    char *text = object != NULL ? json_dumps(object, JSON_COMPACT) : NULL;
    char *copy = text != NULL ? pd_heap_strdup(text) : NULL;

    free(text);
    json_decref(object);
    return copy;
}

/* The rates of optimizer step `applied`, a rule's own where it sets them. */
static void shown_lrs(const struct pd_engine *engine, uint64_t applied, double *lrs)
{
    const struct pd_config *config = engine->config;

    pd_leader_lrs(engine, applied, engine->leader->effective_batch, lrs);
    for (uint32_t i = 0; i < config->group_count; i++) {
        lrs[i] =
            pd_optimizer_shown_lr(config->optimizer, &config->groups[i].hyper, lrs[i], applied + 1);
    }
}

/* What the next step will use; before the first, the batch is not known. */
static void current_lrs(const struct pd_engine *engine, double *lrs)
{
    if (pd_search_sweeps(engine->leader)) {
        pd_search_lrs(engine, engine->leader->effective_batch, lrs);
        return;
    }
    shown_lrs(engine, engine->leader->applied_steps, lrs);
}

/* The norms of the last step; NULL before there is a model. */
static const struct pd_gradient_norms *last_norms(const struct pd_engine *engine)
{
    return engine->step != NULL ? pd_step_norms(engine->step) : NULL;
}

static json_t *groups(const struct pd_engine *engine)
{
    double lrs[PD_GROUP_COUNT_MAX + 1];
    const struct pd_gradient_norms *norms = last_norms(engine);
    json_t *list = json_array();

    current_lrs(engine, lrs);
    for (uint32_t i = 0; i < engine->config->group_count; i++) {
        const struct pd_group *group = &engine->config->groups[i];
        json_array_append_new(
            list, json_pack("{s:s, s:o, s:f, s:o, s:o, s:b}", "name", group->name, "lr",
                            real_or_null(lrs[i]), "weight_decay", group->hyper.weight_decay,
                            "grad_norm", real_or_null(norms != NULL ? norms->groups[i] : NAN),
                            "clip_scale", json_real(norms != NULL ? norms->scales[i] : 1), "frozen",
                            (int)group->frozen));
    }
    return list;
}

static json_t *workers(const struct pd_engine *engine)
{
    const struct pd_leader *leader = engine->leader;
    json_t *list = json_array();

    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        const struct pd_member *member = &leader->members[slot];
        if (member->state == PD_MEMBER_NONE) {
            continue;
        }
        json_array_append_new(
            list, json_pack("{s:i, s:s, s:s, s:I, s:I, s:i}", "id", (int)member->id, "name",
                            member->name, "state", pd_member_state_name(engine, member), "step",
                            (json_int_t)member->step_next, "samples",
                            (json_int_t)member->samples_total, "home", (int)member->replica));
    }
    return list;
}

static json_t *metrics(const struct pd_engine *engine)
{
    const struct pd_leader *leader = engine->leader;
    json_t *list = json_array();

    for (uint32_t i = 0; i < leader->metric_count; i++) {
        const struct pd_metric *metric = &leader->metrics[i];
        json_array_append_new(list, json_pack("{s:s, s:o, s:I}", "name", metric->name, "value",
                                              real_or_null(metric->value), "step",
                                              (json_int_t)metric->step));
    }
    return list;
}

static json_t *loss_scale(const struct pd_engine *engine)
{
    return isnan(engine->config->loss_scale.init_scale)
               ? json_null()
               : json_real((double)engine->loss_scale.scale);
}

static const char *state_name(const struct pd_engine *engine)
{
    const struct pd_leader *leader = engine->leader;

    if (leader->drain != PD_DRAIN_NONE) {
        return "draining";
    }
    if (leader->paused) {
        return "paused";
    }
    if (pd_search_active(leader)) {
        return "finding lr";
    }
    if (!engine->store.has_version) {
        return "waiting for a model";
    }
    return leader->started ? "running" : "waiting for workers";
}

static uint64_t version_of(const struct pd_engine *engine)
{
    return engine->store.has_version ? engine->store.version : 0;
}

char *pd_status_json(struct pd_engine *engine)
{
    const struct pd_leader *leader = engine->leader;
    const struct pd_config *config = engine->config;
    double lrs[PD_GROUP_COUNT_MAX + 1];
    char waiting[PD_ERROR_BYTES_MAX];
    bool waits = pd_waiting_describe(engine, waiting, sizeof waiting);

    current_lrs(engine, lrs);
    return dump(json_pack(
        "{s:s, s:s?, s:I, s:I, s:o, s:o, s:i, s:s, s:s, s:o, s:I, s:o, s:o, s:o, s:o, s:I, s:s?, "
        "s:n, "
        "s:f, s:s, s:b, s:I, s:o, s:b}",
        "state", state_name(engine), "waiting", waits ? waiting : NULL, "step",
        (json_int_t)version_of(engine), "version", (json_int_t)version_of(engine), "lr",
        real_or_null(lrs[0]), "groups", groups(engine), "shards", (int)engine->topology->rank_count,
        "aggregation", config->aggregation == PD_AGGREGATION_DIRECT ? "direct" : "allreduce",
        "mode", "sync", "workers", workers(engine), "effective_batch",
        (json_int_t)leader->effective_batch, "grad_norm",
        real_or_null(leader->outcome.gradient_norm), "clip_scale",
        real_or_null(leader->outcome.clip_scale), "loss", real_or_null(leader->loss), "loss_scale",
        loss_scale(engine), "skipped_steps", (json_int_t)engine->skipped_steps, "last_skip_reason",
        leader->last_skip_reason[0] != '\0' ? leader->last_skip_reason : NULL, "checkpoint",
        "uptime_s", (double)(engine->now_ms - engine->started_ms) / 1000.0, "optimizer",
        config->optimizer->name, "paused", (int)leader->paused, "parameters",
        (json_int_t)engine->model.element_count, "metrics", metrics(engine), "stop_advised",
        (int)leader->stop_advised));
}

char *pd_status_lr_json(struct pd_engine *engine)
{
    double lrs[PD_GROUP_COUNT_MAX + 1];

    current_lrs(engine, lrs);
    return dump(json_pack("{s:I, s:o, s:o}", "step", (json_int_t)version_of(engine), "lr",
                          real_or_null(lrs[0]), "groups", groups(engine)));
}

char *pd_status_step_json(struct pd_engine *engine)
{
    return dump(json_pack("{s:I, s:I, s:I}", "step", (json_int_t)version_of(engine), "version",
                          (json_int_t)version_of(engine), "skipped_steps",
                          (json_int_t)engine->skipped_steps));
}

/* The momentum of each group at that step: the scheduled one, the configured one or null. */
static json_t *momenta(const struct pd_engine *engine, uint64_t step)
{
    const struct pd_config *config = engine->config;
    json_t *row = json_array();

    for (uint32_t i = 0; i < config->group_count; i++) {
        struct pd_hyper hyper = config->groups[i].hyper;
        const double *configured = pd_optimizer_momentum(config->optimizer, &hyper);
        double otherwise = configured != NULL ? *configured : NAN;
        double scheduled = pd_leader_momentum(engine, step, i);
        json_array_append_new(row, real_or_null(isnan(scheduled) ? otherwise : scheduled));
    }
    return row;
}

char *pd_status_schedule_json(struct pd_engine *engine, uint64_t begin, uint64_t count)
{
    const struct pd_leader *leader = engine->leader;
    json_t *names = json_array();
    json_t *rates = json_array();
    json_t *momentum_rows = json_array();

    if (begin == 0) {
        begin = leader->applied_steps;
    }
    for (uint32_t i = 0; i < engine->config->group_count; i++) {
        json_array_append_new(names, json_string(engine->config->groups[i].name));
    }
    for (uint64_t step = begin; step < begin + count; step++) {
        double lrs[PD_GROUP_COUNT_MAX + 1];
        json_t *row = json_array();
        shown_lrs(engine, step, lrs);
        for (uint32_t i = 0; i < engine->config->group_count; i++) {
            json_array_append_new(row, real_or_null(lrs[i]));
        }
        json_array_append_new(rates, row);
        json_array_append_new(momentum_rows, momenta(engine, step));
    }
    return dump(json_pack("{s:I, s:o, s:o, s:o}", "begin", (json_int_t)begin, "groups", names,
                          "lrs", rates, "momenta", momentum_rows));
}

static json_t *history_row(const struct pd_leader *leader, const struct pd_history_row *row)
{
    json_t *named = json_object();

    for (uint32_t i = 0; i < leader->metric_count; i++) {
        if ((row->metrics_known >> i & 1) != 0) {
            json_object_set_new(named, leader->metrics[i].name, real_or_null(row->metrics[i]));
        }
    }
    return json_pack("{s:I, s:o, s:o, s:o, s:o, s:I, s:b, s:o}", "step", (json_int_t)row->step,
                     "lr", real_or_null(row->lr), "grad_norm", real_or_null(row->gradient_norm),
                     "clipped_norm", real_or_null(row->clipped_norm), "loss",
                     real_or_null(row->loss), "effective_batch", (json_int_t)row->effective_batch,
                     "skipped", (int)row->skipped, "metrics", named);
}

char *pd_status_history_json(struct pd_engine *engine, uint64_t begin, uint64_t count)
{
    const struct pd_leader *leader = engine->leader;
    const struct pd_history *history = &leader->history;
    json_t *names = json_array();
    json_t *rows = json_array();
    uint64_t index = pd_history_find(history, begin);

    if (begin == 0 && history->count > count) {
        index = history->count - count;
    }
    for (uint32_t i = 0; i < leader->metric_count; i++) {
        json_array_append_new(names, json_string(leader->metrics[i].name));
    }
    for (uint64_t i = 0; i < count && index + i < history->count; i++) {
        json_array_append_new(rows, history_row(leader, pd_history_at(history, index + i)));
    }
    return dump(json_pack("{s:I, s:I, s:o, s:o}", "step", (json_int_t)version_of(engine), "kept",
                          (json_int_t)history->count, "metrics", names, "rows", rows));
}

/* The points of a search from `begin` on. */
static json_t *points(const struct pd_range_test *test, uint64_t begin)
{
    json_t *rows = json_array();

    for (uint64_t i = begin; i < test->point_count; i++) {
        const struct pd_range_point *point = &test->points[i];
        json_array_append_new(rows, json_pack("{s:f, s:f, s:f}", "lr", point->lr, "loss",
                                              point->loss, "smoothed", point->smoothed));
    }
    return rows;
}

char *pd_status_lr_curve_json(struct pd_engine *engine, uint64_t begin)
{
    static const char *const ends[] = {NULL, "finished", "diverged", "cancelled", "failed"};
    const struct pd_search *search = &engine->leader->search;
    const struct pd_range_test *test = &search->test;
    bool over = search->state == PD_SEARCH_OVER;
    const char *group = search->group < engine->config->group_count
                            ? engine->config->groups[search->group].name
                            : NULL;

    return dump(json_pack("{s:b, s:s?, s:s?, s:I, s:o, s:s?, s:f, s:f, s:I, s:I, s:o, s:o, s:o}",
                          "over", (int)over, "end", over ? ends[search->end] : NULL, "reason",
                          over ? search->reason : NULL, "step", (json_int_t)search->step, "version",
                          over ? json_integer((json_int_t)search->back) : json_null(), "group",
                          group, "start_lr", test->options.start, "end_lr", test->options.end,
                          "num_iter", (json_int_t)test->options.steps, "done",
                          (json_int_t)test->point_count, "suggestion",
                          real_or_null(pd_range_steepest(test)), "lr_min",
                          real_or_null(pd_range_below_least(test)), "rows", points(test, begin)));
}

char *pd_status_workers_json(struct pd_engine *engine)
{
    return dump(json_pack("{s:I, s:o}", "step", (json_int_t)version_of(engine), "workers",
                          workers(engine)));
}

/* The ranks that own a part of a tensor. */
static json_t *shards_of(const struct pd_engine *engine, uint32_t tensor)
{
    const struct pd_shard_plan *plan = engine->plan;
    json_t *list = json_array();

    for (uint32_t rank = 0; rank < plan->rank_count; rank++) {
        const struct pd_range *shard = &plan->shards[rank];
        if (shard->block_begin < plan->tensor_blocks[tensor + 1] &&
            shard->block_begin + shard->block_count > plan->tensor_blocks[tensor]) {
            json_array_append_new(list, json_integer(rank));
        }
    }
    return list;
}

char *pd_status_tensors_json(struct pd_engine *engine)
{
    const struct pd_gradient_norms *norms = last_norms(engine);
    double lrs[PD_GROUP_COUNT_MAX + 1];
    json_t *list = json_array();

    current_lrs(engine, lrs);
    for (uint32_t i = 0; i < engine->model.count; i++) {
        const struct pd_tensor *tensor = &engine->model.tensors[i];
        uint32_t group = pd_config_group_of(engine->config, tensor->name, tensor->dimension_count);
        json_t *shape = json_array();
        for (uint32_t d = 0; d < tensor->dimension_count; d++) {
            json_array_append_new(shape, json_integer((json_int_t)tensor->shape[d]));
        }
        json_array_append_new(
            list, json_pack("{s:s, s:o, s:I, s:s, s:o, s:o, s:o}", "name", tensor->name, "shape",
                            shape, "elements", (json_int_t)tensor->element_count, "group",
                            engine->config->groups[group].name, "lr",
                            real_or_null(engine->step != NULL
                                             ? lrs[group] * pd_step_lr_factor(engine->step, i)
                                             : lrs[group]),
                            "grad_norm", real_or_null(norms != NULL ? norms->tensors[i] : NAN),
                            "shards", shards_of(engine, i)));
    }
    return dump(json_pack("{s:o}", "tensors", list));
}

char *pd_status_done_json(const char *command, uint64_t step, const char *text)
{
    return dump(
        json_pack("{s:s, s:I, s:s}", "command", command, "step", (json_int_t)step, "text", text));
}
