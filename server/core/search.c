/* Rank 0's search for a learning rate: a range test driven by the workers' own steps, on a state
 * that all ranks have back afterwards. admin, orders -> [search] -> range_test, orders.
 *
 * The last step of a search closes with a restore instead of a trial: its loss is all that was
 * wanted of it, and no worker ever computes on from what a search made. What rank 0 itself decides
 * by - counts, metrics, plateaus, history - is not touched by trials, so there is nothing to undo.
 */
#include "common/assert.h"
#include "server/core/engine_state.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#define ALL_GROUPS UINT32_MAX

bool pd_search_active(const struct pd_leader *leader)
{
    return leader->search.state != PD_SEARCH_NONE && leader->search.state != PD_SEARCH_OVER;
}

bool pd_search_sweeps(const struct pd_leader *leader)
{
    return leader->search.state == PD_SEARCH_SWEEP;
}

bool pd_search_made(const struct pd_leader *leader, uint64_t version)
{
    const struct pd_search *search = &leader->search;

    return search->state != PD_SEARCH_NONE && version > search->step && version < search->back;
}

/* Whether anybody's gradients are waited for. */
static bool anybody_trains(const struct pd_leader *leader)
{
    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        enum pd_member_state state = leader->members[slot].state;
        if (state == PD_MEMBER_ACTIVE || state == PD_MEMBER_LEAVING) {
            return true;
        }
    }
    return false;
}

/* ---- The beginning ---- */

static enum pd_status check_moment(const struct pd_engine *engine, struct pd_error *error)
{
    const struct pd_leader *leader = engine->leader;

    if (leader->drain != PD_DRAIN_NONE) {
        return pd_error_set(error, PD_EREFUSED, "lr-find: the daemon is draining: %s",
                            leader->drain_reason);
    }
    if (pd_search_active(leader)) {
        return pd_error_set(error, PD_EREFUSED,
                            "lr-find: the search that began at step %" PRIu64
                            " is not over: lr-curve shows it, lr-cancel ends it",
                            leader->search.step);
    }
    if (leader->paused) {
        return pd_error_set(error, PD_EREFUSED, "lr-find: the daemon is paused: resume first");
    }
    if (!engine->store.has_version || !leader->started || !anybody_trains(leader)) {
        return pd_error_set(error, PD_EREFUSED,
                            "lr-find: no worker trains now, and it needs their losses");
    }
    return PD_OK;
}

enum pd_status pd_search_begin(struct pd_engine *engine, const struct pd_range_options *options,
                               const char *group_name, struct pd_error *error)
{
    struct pd_leader *leader = engine->leader;
    struct pd_range_test test;
    uint32_t group = ALL_GROUPS;

    if (check_moment(engine, error) != PD_OK ||
        (group_name[0] != '\0' &&
         pd_leader_find_group(engine, "lr-find", group_name, &group, error) != PD_OK) ||
        pd_range_init(&test, options, error) != PD_OK) {
        return error->status;
    }
    pd_range_finish(&leader->search.test);
    leader->search = (struct pd_search){
        .state = PD_SEARCH_SNAPSHOT,
        .test = test,
        .group = group,
        .asker = engine->connection,
        .step = leader->step_next,
        .back = UINT64_MAX,
        .wait_index = leader->order_next,
    };
    pd_leader_new_order(engine, PD_ORDER_SNAPSHOT);
    pd_leader_withdraw_ahead(leader);
    pd_leader_issue(engine);
    pd_actions_log(engine->actions,
                   "lr-find: %" PRIu64 " learning rates from %g to %g, from step %" PRIu64 " on",
                   options->steps, options->start, options->end, leader->search.step);
    return PD_OK;
}

/* ---- The end ---- */

static void end(struct pd_engine *engine, enum pd_search_end how, const char *format, ...)
    PD_PRINTF(3, 4);

/* The first reason stays. */
static void end(struct pd_engine *engine, enum pd_search_end how, const char *format, ...)
{
    struct pd_search *search = &engine->leader->search;
    va_list arguments;

    if (search->end != PD_SEARCH_GOES_ON) {
        return;
    }
    search->end = how;
    va_start(arguments, format);
    vsnprintf(search->reason, sizeof search->reason, format, arguments);
    va_end(arguments);
    engine->leader->changed = true;
}

/* The order that is being made ends the search; `back` is the version that has its state again. */
static void enter_ending(struct pd_leader *leader, uint64_t back)
{
    leader->search.state = PD_SEARCH_ENDING;
    leader->search.back = back;
    leader->search.wait_index = leader->order_next;
}

static void forget(struct pd_engine *engine)
{
    enter_ending(engine->leader, engine->leader->search.step);
    pd_leader_new_order(engine, PD_ORDER_FORGET);
    pd_leader_issue(engine);
}

/* Without contributors: nobody trains, or will again. */
static void restore_now(struct pd_engine *engine)
{
    struct pd_leader *leader = engine->leader;
    struct pd_order *order = pd_leader_new_order(engine, PD_ORDER_RESTORE);

    enter_ending(leader, leader->step_next + 1);
    order->stop = leader->stop_advised;
    leader->barrier = leader->order_next + 1;
    pd_leader_issue(engine);
    pd_leader_close_collection(leader);
}

void pd_search_cancel(struct pd_engine *engine, const char *reason)
{
    if (pd_search_active(engine->leader)) {
        end(engine, PD_SEARCH_CANCELLED, "%s", reason);
    }
}

void pd_search_end_now(struct pd_engine *engine)
{
    const struct pd_search *search = &engine->leader->search;

    if (search->state == PD_SEARCH_SWEEP && search->tried) {
        restore_now(engine);
    }
}

void pd_search_snapshot_failed(struct pd_engine *engine, uint32_t rank, const char *text)
{
    end(engine, PD_SEARCH_FAILED, "rank %" PRIu32 " at %s: %s", rank,
        engine->topology->addresses[rank], text);
}

void pd_search_connection_closed(struct pd_engine *engine, pd_connection_id connection)
{
    struct pd_search *search = &engine->leader->search;

    if (search->asker == connection) {
        search->asker = PD_CONNECTION_NONE;
        pd_search_cancel(engine, "the connection of the administrator who asked is closed");
    }
}

/* ---- Trials ---- */

void pd_search_lrs(const struct pd_engine *engine, uint64_t samples, double *lrs)
{
    const struct pd_leader *leader = engine->leader;
    const struct pd_search *search = &leader->search;
    double lr = pd_range_lr(&search->test);

    pd_leader_lrs(engine, leader->applied_steps, samples, lrs);
    for (uint32_t group = 0; group < engine->config->group_count; group++) {
        if (search->group == ALL_GROUPS) {
            lrs[group] = lr * pd_leader_lr_ratio(engine, group);
        } else if (search->group == group) {
            lrs[group] = lr;
        }
    }
}

/* Take the loss of the step that closes, which is that of the parameters before its trial. */
static void take_loss(struct pd_engine *engine, const struct pd_collected *collected)
{
    struct pd_range_test *test = &engine->leader->search.test;
    double lr = pd_range_lr(test);

    if (collected->loss_samples == 0) {
        end(engine, PD_SEARCH_FAILED,
            "no worker gave the loss of step %" PRIu64
            " with its gradient, and the search goes by it",
            engine->leader->step_next);
    } else if (!pd_range_take(test, collected->loss)) {
        if (isfinite(collected->loss)) {
            end(engine, PD_SEARCH_DIVERGED,
                "the loss is %g at the learning rate %g, and smoothed over %g times its least, %g",
                collected->loss, lr, test->options.diverge_th, test->best);
        } else {
            end(engine, PD_SEARCH_DIVERGED, "the loss is %g at the learning rate %g",
                collected->loss, lr);
        }
    } else if (test->point_count == test->options.steps) {
        end(engine, PD_SEARCH_FINISHED, "every learning rate had its turn");
    }
}

void pd_search_fill_order(struct pd_engine *engine, struct pd_order *order,
                          const struct pd_collected *collected)
{
    struct pd_leader *leader = engine->leader;
    struct pd_search *search = &leader->search;

    PD_ASSERT(search->state == PD_SEARCH_SWEEP);
    pd_search_lrs(engine, collected->samples, order->lrs);
    if (search->end == PD_SEARCH_GOES_ON && collected->samples > 0) {
        take_loss(engine, collected);
    }
    if (search->end == PD_SEARCH_GOES_ON) {
        order->trial = true;
        order->optimizer_step += search->applied;
        search->tried = true;
        return;
    }
    enter_ending(leader, leader->step_next + 1);
    order->kind = PD_ORDER_RESTORE;
    order->lr_count = 0;
    order->momentum_count = 0;
    order->skip = false;
    order->reason[0] = '\0';
}

void pd_search_step_closed(struct pd_engine *engine, const struct pd_order *order,
                           struct pd_step_outcome outcome)
{
    const struct pd_loss_scale_options *scaling = &engine->config->loss_scale;
    struct pd_search *search = &engine->leader->search;
    bool scales = !isnan(scaling->init_scale) && scaling->dynamic;

    if (!outcome.skipped) {
        search->applied++;
    } else if (outcome.nonfinite && !scales) {
        end(engine, PD_SEARCH_DIVERGED,
            "the gradient of step %" PRIu64 ", for the learning rate %g, is not finite",
            order->step, search->test.points[search->test.point_count - 1].lr);
    }
}

/* ---- Time passes ---- */

/* All ranks have the state back, or never left it. */
static void enter_over(struct pd_engine *engine)
{
    struct pd_search *search = &engine->leader->search;

    search->state = PD_SEARCH_OVER;
    pd_actions_log(engine->actions,
                   "lr-find: over after %" PRIu64 " learning rates: %.300s; version %" PRIu64
                   " has the state of version %" PRIu64,
                   search->test.point_count, search->reason, search->back, search->step);
}

void pd_search_advance(struct pd_engine *engine)
{
    struct pd_leader *leader = engine->leader;
    struct pd_search *search = &leader->search;
    bool waited = pd_leader_executed_by_all(engine) > search->wait_index;

    if (pd_search_active(leader) && !anybody_trains(leader)) {
        end(engine, PD_SEARCH_FAILED, "no worker is left");
    }
    switch (search->state) {
    case PD_SEARCH_SNAPSHOT:
        if (search->end != PD_SEARCH_GOES_ON) {
            forget(engine);
        } else if (waited) {
            search->state = PD_SEARCH_SWEEP;
        }
        break;
    case PD_SEARCH_SWEEP:
        if (search->end != PD_SEARCH_GOES_ON && !search->tried) {
            forget(engine);
        } else if (!anybody_trains(leader)) {
            restore_now(engine);
        }
        break;
    case PD_SEARCH_ENDING:
        if (waited) {
            enter_over(engine);
        }
        break;
    case PD_SEARCH_NONE:
    case PD_SEARCH_OVER:
        break;
    }
}
