/* What an administrator may ask of rank 0: queries (status.c) and commands. */
#include "common/heap.h"
#include "server/core/engine_state.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROW_COUNT_DEFAULT 20u
#define ROW_COUNT_MAX 10000u

typedef enum pd_status admin_command(struct pd_engine *engine, const struct pd_admin *admin,
                                     char **reply, struct pd_error *error);

static enum pd_status finish(char *json, char **reply, struct pd_error *error)
{
    if (json == NULL) {
        return pd_error_set(error, PD_ENOMEM, "out of memory for the answer");
    }
    *reply = json;
    return PD_OK;
}

/* The first step a command takes effect at: the one in collection, on every rank. */
static enum pd_status done(const struct pd_engine *engine, const struct pd_admin *admin,
                           char **reply, struct pd_error *error, const char *text)
{
    return finish(pd_status_done_json(admin->command, engine->leader->step_next, text), reply,
                  error);
}

/* ---- Queries ---- */

static enum pd_status ask_status(struct pd_engine *engine, const struct pd_admin *admin,
                                 char **reply, struct pd_error *error)
{
    (void)admin;
    return finish(pd_status_json(engine), reply, error);
}

static enum pd_status ask_lr(struct pd_engine *engine, const struct pd_admin *admin, char **reply,
                             struct pd_error *error)
{
    (void)admin;
    return finish(pd_status_lr_json(engine), reply, error);
}

static enum pd_status ask_step(struct pd_engine *engine, const struct pd_admin *admin, char **reply,
                               struct pd_error *error)
{
    (void)admin;
    return finish(pd_status_step_json(engine), reply, error);
}

static enum pd_status ask_schedule(struct pd_engine *engine, const struct pd_admin *admin,
                                   char **reply, struct pd_error *error)
{
    uint64_t count = admin->count == 0 ? ROW_COUNT_DEFAULT : admin->count;

    if (count > ROW_COUNT_MAX) {
        return pd_error_set(error, PD_ELIMIT, "schedule: %" PRIu64 " steps; allowed: 1 to %u",
                            count, ROW_COUNT_MAX);
    }
    return finish(pd_status_schedule_json(engine, admin->begin, count), reply, error);
}

static enum pd_status ask_history(struct pd_engine *engine, const struct pd_admin *admin,
                                  char **reply, struct pd_error *error)
{
    uint64_t count = admin->count == 0 ? ROW_COUNT_DEFAULT : admin->count;

    if (count > ROW_COUNT_MAX) {
        return pd_error_set(error, PD_ELIMIT, "history: %" PRIu64 " steps; allowed: 1 to %u", count,
                            ROW_COUNT_MAX);
    }
    return finish(pd_status_history_json(engine, admin->begin, count), reply, error);
}

static enum pd_status ask_lr_curve(struct pd_engine *engine, const struct pd_admin *admin,
                                   char **reply, struct pd_error *error)
{
    if (engine->leader->search.state == PD_SEARCH_NONE) {
        return pd_error_set(error, PD_EREFUSED,
                            "lr-curve: there was no search; lr-find begins one");
    }
    return finish(pd_status_lr_curve_json(engine, admin->begin), reply, error);
}

static enum pd_status ask_workers(struct pd_engine *engine, const struct pd_admin *admin,
                                  char **reply, struct pd_error *error)
{
    (void)admin;
    return finish(pd_status_workers_json(engine), reply, error);
}

static enum pd_status ask_tensors(struct pd_engine *engine, const struct pd_admin *admin,
                                  char **reply, struct pd_error *error)
{
    (void)admin;
    return finish(pd_status_tensors_json(engine), reply, error);
}

/* ---- Commands ---- */

enum pd_status pd_leader_find_group(const struct pd_engine *engine, const char *command,
                                    const char *name, uint32_t *group, struct pd_error *error)
{
    for (*group = 0; *group < engine->config->group_count; (*group)++) {
        if (strcmp(engine->config->groups[*group].name, name) == 0) {
            return PD_OK;
        }
    }
    return pd_error_set(error, PD_EINVALID, "%s: no group is named '%s'; status lists the groups",
                        command, name);
}

/* Without a group, the rate is group 0's, and the others keep their ratio to it. */
static enum pd_status set_lr(struct pd_engine *engine, const struct pd_admin *admin, char **reply,
                             struct pd_error *error)
{
    struct pd_leader *leader = engine->leader;
    uint32_t only = UINT32_MAX;
    char text[PD_ERROR_BYTES_MAX];

    if (admin->has_value && !(isfinite(admin->value) && admin->value >= 0.0)) {
        return pd_error_set(error, PD_EINVALID, "set-lr: %g; allowed: a finite number, at least 0",
                            admin->value);
    }
    if (admin->target[0] != '\0' &&
        pd_leader_find_group(engine, "set-lr", admin->target, &only, error) != PD_OK) {
        return error->status;
    }
    if (pd_search_active(leader)) {
        return pd_error_set(error, PD_EREFUSED,
                            "set-lr: lr-find sets the learning rates until it is over; lr-cancel "
                            "ends it");
    }
    for (uint32_t group = 0; group < engine->config->group_count; group++) {
        double ratio = only == UINT32_MAX ? pd_leader_lr_ratio(engine, group) : 1.0;
        if (only == UINT32_MAX || only == group) {
            leader->lr_overrides[group] = admin->has_value ? admin->value * ratio : NAN;
        }
    }
    if (admin->has_value) {
        snprintf(text, sizeof text, "the learning rate is %g from step %" PRIu64 " on",
                 admin->value, leader->step_next);
    } else {
        snprintf(text, sizeof text, "the schedule sets the learning rate from step %" PRIu64 " on",
                 leader->step_next);
    }
    pd_actions_log(engine->actions, "set-lr: %s", text);
    return done(engine, admin, reply, error, text);
}

static enum pd_status lr_find(struct pd_engine *engine, const struct pd_admin *admin, char **reply,
                              struct pd_error *error)
{
    const char *settings[PD_ADMIN_SETTING_COUNT_MAX];
    struct pd_range_options options;
    char text[PD_ERROR_BYTES_MAX];

    for (uint32_t i = 0; i < admin->setting_count; i++) {
        settings[i] = admin->settings[i];
    }
    if (pd_range_read(&options, settings, admin->setting_count, error) != PD_OK ||
        pd_search_begin(engine, &options, admin->target, error) != PD_OK) {
        return error->status;
    }
    snprintf(text, sizeof text,
             "%" PRIu64 " learning rates from %g to %g are tried from step %" PRIu64 " on",
             options.steps, options.start, options.end, engine->leader->step_next);
    return done(engine, admin, reply, error, text);
}

static enum pd_status lr_cancel(struct pd_engine *engine, const struct pd_admin *admin,
                                char **reply, struct pd_error *error)
{
    if (!pd_search_active(engine->leader)) {
        return pd_error_set(error, PD_EREFUSED, "lr-cancel: no search is under way");
    }
    pd_search_cancel(engine, "an administrator cancelled it");
    return done(engine, admin, reply, error,
                "the search ends with the step in collection, and the state is as before it");
}

static enum pd_status set_paused(struct pd_engine *engine, const struct pd_admin *admin,
                                 char **reply, struct pd_error *error)
{
    struct pd_leader *leader = engine->leader;
    char text[PD_ERROR_BYTES_MAX];

    leader->changed = true;
    leader->paused = strcmp(admin->command, "pause") == 0;
    snprintf(text, sizeof text,
             leader->paused ? "no step closes before resume; the next is step %" PRIu64
                            : "steps close again, from step %" PRIu64 " on",
             leader->step_next);
    pd_actions_log(engine->actions, "%s: %s", admin->command, text);
    return done(engine, admin, reply, error, text);
}

static enum pd_status checkpoint(struct pd_engine *engine, const struct pd_admin *admin,
                                 char **reply, struct pd_error *error)
{
    (void)engine;
    (void)admin;
    (void)reply;
    return pd_error_set(error, PD_EREFUSED, "checkpoint: this version keeps no checkpoints");
}

/* A worker by its name, or by its number. */
static struct pd_member *find_target(struct pd_leader *leader, const char *target)
{
    char *end;
    unsigned long id = strtoul(target, &end, 10);

    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        struct pd_member *member = &leader->members[slot];
        if (member->state != PD_MEMBER_NONE && strcmp(member->name, target) == 0) {
            return member;
        }
    }
    bool is_number = target[0] >= '0' && target[0] <= '9' && *end == '\0' && id <= UINT32_MAX;
    return is_number ? pd_member_find(leader, (uint32_t)id) : NULL;
}

static enum pd_status evict(struct pd_engine *engine, const struct pd_admin *admin, char **reply,
                            struct pd_error *error)
{
    struct pd_leader *leader = engine->leader;
    struct pd_member *member = find_target(leader, admin->target);
    char text[PD_ERROR_BYTES_MAX];

    if (member == NULL || member->state == PD_MEMBER_JOINING) {
        return pd_error_set(error, PD_EINVALID,
                            "evict: no worker has the name or number '%s'; workers lists them",
                            admin->target);
    }
    if (member->state == PD_MEMBER_LEAVING) {
        return pd_error_set(error, PD_EREFUSED,
                            "evict: worker %u '%s' is gone already; what it gave to step %" PRIu64
                            " stays",
                            member->id, member->name, leader->step_next);
    }
    snprintf(text, sizeof text, "worker %u '%s' is evicted at step %" PRIu64, member->id,
             member->name, leader->step_next);
    pd_member_depart(engine, member, "an administrator evicted it");
    return done(engine, admin, reply, error, text);
}

static enum pd_status drain(struct pd_engine *engine, const struct pd_admin *admin, char **reply,
                            struct pd_error *error)
{
    bool wait = strcmp(admin->command, "drain") == 0;

    pd_leader_drain(
        engine, wait ? "an administrator asked to drain" : "an administrator asked to stop", wait);
    return done(engine, admin, reply, error,
                wait ? "the running step ends, workers are told, then every rank exits"
                     : "workers are told, and every rank exits");
}

static const struct {
    const char *name;
    admin_command *run;
} commands[] = {
    {"status", ask_status},   {"lr", ask_lr},
    {"step", ask_step},       {"schedule", ask_schedule},
    {"history", ask_history}, {"workers", ask_workers},
    {"tensors", ask_tensors}, {"set-lr", set_lr},
    {"lr-find", lr_find},     {"lr-curve", ask_lr_curve},
    {"lr-cancel", lr_cancel}, {"pause", set_paused},
    {"resume", set_paused},   {"checkpoint", checkpoint},
    {"evict", evict},         {"drain", drain},
    {"stop", drain},
};

enum pd_status pd_admin_run(struct pd_engine *engine, const struct pd_admin *admin, char **reply,
                            struct pd_error *error)
{
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(commands[i].name, admin->command) == 0) {
            return commands[i].run(engine, admin, reply, error);
        }
    }
    return pd_error_set(
        error, PD_EINVALID,
        "admin: unknown command '%s'; allowed: status, lr, step, schedule, history, workers, "
        "tensors, set-lr, lr-find, lr-curve, lr-cancel, pause, resume, checkpoint, evict, drain, "
        "stop",
        admin->command);
}
