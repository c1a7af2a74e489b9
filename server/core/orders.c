/* Rank 0's log: what all ranks do, in which order, and when a step closes. */
#include "common/assert.h"
#include "common/heap.h"
#include "server/core/engine_state.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* How often start-up says what it waits for. */
#define WAITING_FIRST_MS 2000u
#define WAITING_AGAIN_MS 5000u

/* ---- Life ---- */

enum pd_status pd_leader_create(struct pd_leader **out, const struct pd_config *config,
                                struct pd_error *error)
{
    *out = NULL;
    struct pd_leader *leader = pd_heap_zalloc(1, sizeof *leader);
    if (leader == NULL) {
        return pd_error_set(error, PD_ENOMEM, "leader: out of memory");
    }
    for (uint32_t rank = 0; rank < PD_RANK_COUNT_MAX; rank++) {
        leader->links[rank] = PD_CONNECTION_NONE;
    }
    for (uint32_t group = 0; group <= PD_GROUP_COUNT_MAX; group++) {
        leader->lr_overrides[group] = NAN;
    }
    if (pd_history_init(&leader->history, config->history, error) != PD_OK) {
        pd_heap_free(leader);
        return error->status;
    }
    pd_leader_watch_init(leader, config);
    leader->linked_count = 1;
    leader->outcome =
        (struct pd_step_outcome){.gradient_norm = NAN, .clipped_norm = NAN, .clip_scale = 1.0};
    leader->loss = NAN;
    leader->search.asker = PD_CONNECTION_NONE;
    leader->changed = true;
    *out = leader;
    return PD_OK;
}

void pd_leader_destroy(struct pd_leader *leader)
{
    if (leader != NULL) {
        pd_history_finish(&leader->history);
        pd_range_finish(&leader->search.test);
    }
    pd_heap_free(leader);
}

void pd_leader_model_loaded(struct pd_engine *engine)
{
    struct pd_leader *leader = engine->leader;

    leader->register_ordered = true;
    leader->publish_ordered = true;
    for (uint32_t lane = 0; lane < engine->lane_count; lane++) {
        if (engine->plan->lanes[lane].element_count > 0) {
            leader->lanes_needed |= 1ull << lane;
        }
    }
}

/* ---- Issuing ---- */

void pd_leader_issue(struct pd_engine *engine)
{
    struct pd_leader *leader = engine->leader;
    struct pd_order *order = &leader->issue.order;

    order->index = leader->order_next++;
    leader->changed = true;
    engine->issued = engine->topology->rank_count > 1;
    for (uint32_t rank = 1; rank < engine->topology->rank_count; rank++) {
        pd_engine_send(engine, leader->links[rank], &leader->issue);
    }
    pd_engine_enqueue(engine, order);
}

struct pd_order *pd_leader_new_order(struct pd_engine *engine, enum pd_order_kind kind)
{
    struct pd_leader *leader = engine->leader;
    struct pd_order *order = &leader->issue.order;

    leader->issue.kind = PD_MESSAGE_ORDER;
    order->kind = kind;
    order->step = leader->step_next;
    order->worker_id = 0;
    order->token = 0;
    order->name[0] = '\0';
    order->replica = 0;
    order->tensors = (struct pd_tensor_list){0};
    order->contributor_count = 0;
    order->samples = 0;
    order->lr_count = 0;
    order->momentum_count = 0;
    order->optimizer_step = 0;
    order->skip = false;
    order->stop = false;
    order->trial = false;
    order->foreseen = false;
    order->hessian = false;
    order->reason[0] = '\0';
    order->absent.byte_count = 0;
    return order;
}

uint64_t pd_leader_executed_by_all(const struct pd_engine *engine)
{
    uint64_t executed = engine->leader->executed[0];

    for (uint32_t rank = 1; rank < engine->topology->rank_count; rank++) {
        if (engine->leader->executed[rank] < executed) {
            executed = engine->leader->executed[rank];
        }
    }
    return executed;
}

/* ---- Rates ---- */

/* Source: Goyal et al. 2017 (linear), Krizhevsky 2014 (square root). */
static double batch_factor(const struct pd_config *config, uint64_t samples)
{
    double ratio = (double)samples / (double)config->lr_scaling.base_batch;

    if (samples == 0 || config->lr_scaling.rule == PD_LR_SCALING_NONE) {
        return 1.0;
    }
    return config->lr_scaling.rule == PD_LR_SCALING_LINEAR ? ratio : sqrt(ratio);
}

void pd_leader_lrs(const struct pd_engine *engine, uint64_t applied, uint64_t samples, double *lrs)
{
    const struct pd_config *config = engine->config;

    for (uint32_t group = 0; group < config->group_count; group++) {
        double override = engine->leader->lr_overrides[group];
        double scheduled = pd_schedule_lr_reduced(config->schedules, engine->leader->plateaus,
                                                  config->schedule_count,
                                                  config->groups[group].schedule_lr, applied) *
                           config->groups[group].lr_multiplier * batch_factor(config, samples);
        lrs[group] = isnan(override) ? scheduled : override;
    }
}

double pd_leader_lr_ratio(const struct pd_engine *engine, uint32_t group)
{
    const struct pd_group *groups = engine->config->groups;
    double base = groups[0].hyper.lr;

    return base > 0.0 ? groups[group].hyper.lr / base : 1.0;
}

double pd_leader_momentum(const struct pd_engine *engine, uint64_t applied, uint32_t group)
{
    const struct pd_config *config = engine->config;

    return pd_schedule_momentum(config->schedules, config->schedule_count,
                                &config->groups[group].momentum_range, applied);
}

/* The momenta of the next step, if a schedule sets them. */
static void fill_momenta(const struct pd_engine *engine, struct pd_order *order)
{
    uint64_t applied = engine->leader->applied_steps;

    if (isnan(pd_leader_momentum(engine, applied, 0))) {
        return;
    }
    order->momentum_count = order->lr_count;
    for (uint32_t group = 0; group < order->momentum_count; group++) {
        order->momenta[group] = pd_leader_momentum(engine, applied, group);
    }
}

/* ---- Closing a step ---- */

/* Whether nobody whose gradient belongs to the step in collection is still awaited. Asked at every
 * push: it begins with the one who was awaited last time, so that most answers take one look. */
static bool everybody_is_in(const struct pd_engine *engine, uint32_t *contributor_count)
{
    struct pd_leader *leader = engine->leader;

    *contributor_count = 0;
    for (uint32_t i = 0; i < leader->member_end; i++) {
        uint32_t slot = (leader->awaited + i) % leader->member_end;
        const struct pd_member *member = &leader->members[slot];
        if (pd_member_is_awaited(engine, member)) {
            leader->awaited = slot;
            return false;
        }
        *contributor_count += pd_member_contributes(engine, member);
    }
    return true;
}

/* What a member gives to a step. */
struct share {
    const struct pd_member *member;
    uint64_t samples;
    uint64_t unit_samples;
    const struct pd_tensor_set *absent;
};

/* The order of summation is by name, so that it does not hang on who joined first. */
static void insert_by_name(struct share *shares, uint32_t *count, const struct share *share)
{
    uint32_t low = 0;
    uint32_t high = *count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (strcmp(shares[middle].member->name, share->member->name) > 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    memmove(&shares[low + 1], &shares[low], (*count - low) * sizeof shares[0]);
    shares[low] = *share;
    (*count)++;
}

/* Fill in who is summed, with which weight; returns the samples. */
static uint64_t fill_contributors(struct pd_order *order, const struct share *shares,
                                  uint32_t count)
{
    uint64_t samples = 0;
    bool first = true;

    for (uint32_t i = 0; i < count; i++) {
        samples += shares[i].samples;
        if (shares[i].samples > 0 && first) {
            pd_tensor_set_copy(&order->absent, shares[i].absent);
            first = false;
        } else if (shares[i].samples > 0) {
            pd_tensor_set_intersect(&order->absent, shares[i].absent);
        }
    }
    order->contributor_count = count;
    for (uint32_t i = 0; i < count; i++) {
        order->contributors[i] = shares[i].member->id;
        order->weights[i] = (double)shares[i].unit_samples;
    }
    order->samples = samples;
    return samples;
}

/* Fill in all that a step takes from its contributors and the rates; returns the effective batch.
 */
static uint64_t fill_step(struct pd_engine *engine, struct pd_order *order,
                          const struct share *shares, uint32_t count)
{
    uint64_t samples = fill_contributors(order, shares, count);

    order->optimizer_step = engine->leader->applied_steps;
    order->lr_count = engine->config->group_count;
    pd_leader_lrs(engine, engine->leader->applied_steps, samples, order->lrs);
    fill_momenta(engine, order);
    return samples;
}

/* What members give to the step: gradients, or the estimates of the Hessian that come with them. */
static uint32_t collect_shares(struct pd_engine *engine, bool hessian, struct share *shares,
                               struct pd_collected *collected)
{
    struct pd_leader *leader = engine->leader;
    double loss_sum = 0.0;
    uint32_t count = 0;

    *collected = (struct pd_collected){.loss = NAN};
    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        const struct pd_member *member = &leader->members[slot];
        if (member->state == PD_MEMBER_NONE || !(hessian ? pd_member_estimates(engine, member)
                                                         : pd_member_contributes(engine, member))) {
            continue;
        }
        const struct pd_given *given = hessian ? &member->hessian : &member->gradient;
        const struct share share = {.member = member,
                                    .samples = given->samples,
                                    .unit_samples = given->unit_samples,
                                    .absent = &given->absent};
        insert_by_name(shares, &count, &share);
        loss_sum += given->loss_sum;
        collected->loss_samples += given->loss_samples;
    }
    if (collected->loss_samples > 0) {
        collected->loss = loss_sum / (double)collected->loss_samples;
    }
    return count;
}

void pd_leader_close_collection(struct pd_leader *leader)
{
    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        struct pd_member *member = &leader->members[slot];
        if (member->state == PD_MEMBER_NONE) {
            continue;
        }
        if (member->gradient.micro_batches > 0) {
            member->samples_total += member->gradient.samples;
            member->step_next = leader->step_next + 1;
        }
        pd_member_reset(member);
        if (member->state == PD_MEMBER_LEAVING) {
            member->state = PD_MEMBER_NONE;
        }
    }
    leader->step_next++;
}

/* Whether there is an order ahead of the step in collection. */
static bool is_foreseen(const struct pd_leader *leader)
{
    return leader->foreseen && leader->ahead.step == leader->step_next;
}

/* Tell the ranks what the next step will be. */
static void issue_ahead(struct pd_engine *engine, const struct pd_order *order)
{
    struct pd_leader *leader = engine->leader;

    leader->foreseen = true;
    pd_order_copy(&leader->ahead, order);
    pd_leader_issue(engine);
}

bool pd_leader_foresees(const struct pd_leader *leader, uint32_t worker_id)
{
    for (uint32_t i = 0; is_foreseen(leader) && i < leader->ahead.contributor_count; i++) {
        if (leader->ahead.contributors[i] == worker_id) {
            return true;
        }
    }
    return false;
}

void pd_leader_withdraw_ahead(struct pd_leader *leader)
{
    leader->foreseen = false;
    leader->barrier = leader->order_next + 1;
}

/* Whether a step is what the order ahead of it said. */
static bool is_as_foreseen(const struct pd_leader *leader, const struct pd_order *order)
{
    const struct pd_order *ahead = &leader->ahead;
    size_t count = order->contributor_count;

    return is_foreseen(leader) && order->kind == PD_ORDER_STEP && !order->skip &&
           ahead->contributor_count == order->contributor_count &&
           memcmp(ahead->contributors, order->contributors,
                  count * sizeof order->contributors[0]) == 0 &&
           memcmp(ahead->weights, order->weights, count * sizeof order->weights[0]) == 0 &&
           ahead->samples == order->samples && ahead->lr_count == order->lr_count &&
           memcmp(ahead->lrs, order->lrs, order->lr_count * sizeof order->lrs[0]) == 0 &&
           ahead->momentum_count == order->momentum_count &&
           memcmp(ahead->momenta, order->momenta,
                  order->momentum_count * sizeof order->momenta[0]) == 0 &&
           ahead->optimizer_step == order->optimizer_step &&
           ahead->absent.byte_count == order->absent.byte_count &&
           memcmp(ahead->absent.bytes, order->absent.bytes, order->absent.byte_count) == 0;
}

/* The estimates of the Hessian that come with the step go before it: those of the workers that gave
 * one. */
static void issue_hessian(struct pd_engine *engine)
{
    struct pd_order *order = pd_leader_new_order(engine, PD_ORDER_HESSIAN);
    struct share shares[PD_WORKER_COUNT_MAX];
    struct pd_collected collected;
    uint32_t count = collect_shares(engine, true, shares, &collected);

    if (fill_contributors(order, shares, count) > 0) {
        pd_leader_issue(engine);
    }
}

/* Whether a step has to be foreseen anew. What the ranks have used up ahead is of no use for one
 * that is other than they were told: they say which pushes have to come again. */
static bool needs_ahead(const struct pd_engine *engine, const struct pd_order *order)
{
    return is_foreseen(engine->leader) && !order->foreseen && !order->skip &&
           pd_step_spends(engine->step, engine->leader->ahead.contributor_count);
}

static void issue_step(struct pd_engine *engine)
{
    struct pd_leader *leader = engine->leader;
    struct pd_order *order = pd_leader_new_order(engine, PD_ORDER_STEP);
    struct share shares[PD_WORKER_COUNT_MAX];
    struct pd_collected collected;

    uint32_t count = collect_shares(engine, false, shares, &collected);
    collected.samples = fill_step(engine, order, shares, count);
    order->stop = leader->stop_advised;
    if (collected.samples == 0) {
        order->skip = true;
        snprintf(order->reason, sizeof order->reason, "no worker had samples");
    }
    order->foreseen = is_as_foreseen(leader, order);
    if (needs_ahead(engine, order)) {
        pd_leader_withdraw_ahead(leader);
        order->kind = PD_ORDER_AHEAD;
        issue_ahead(engine, order);
        return;
    }
    if (pd_search_sweeps(leader)) {
        pd_search_fill_order(engine, order, &collected);
    } else {
        leader->loss = collected.loss;
        leader->effective_batch = collected.samples;
    }
    if (order->skip || order->kind != PD_ORDER_STEP) {
        leader->barrier = leader->order_next + 1;
    }
    pd_leader_issue(engine);
    pd_leader_close_collection(leader);
}

bool pd_leader_steps_are_open(const struct pd_engine *engine)
{
    const struct pd_leader *leader = engine->leader;

    return engine->store.has_version && engine->store.version == leader->step_next &&
           leader->started && !leader->paused && leader->drain < PD_DRAIN_ORDERED &&
           pd_leader_executed_by_all(engine) >= leader->barrier;
}

static bool step_is_due(struct pd_engine *engine)
{
    uint32_t contributor_count;

    return pd_leader_steps_are_open(engine) && everybody_is_in(engine, &contributor_count) &&
           contributor_count > 0;
}

/* ---- Ahead of a step ---- */

/* What the step in collection will be made of, if everybody has begun to push for it in one
 * micro-batch; 0 shares when that is not so. */
static uint32_t foresee_shares(struct pd_engine *engine, struct share *shares)
{
    const struct pd_leader *leader = engine->leader;
    uint32_t active = 0;
    uint32_t count = 0;

    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        active += leader->members[slot].state == PD_MEMBER_ACTIVE;
    }
    if (pd_roster_count_begun(engine->roster, leader->step_next) < active) {
        return 0;
    }
    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        const struct pd_member *member = &leader->members[slot];
        if (member->state != PD_MEMBER_ACTIVE && member->state != PD_MEMBER_LEAVING) {
            continue;
        }
        const struct pd_worker *worker = pd_roster_find(engine->roster, member->id);
        if (member->state == PD_MEMBER_LEAVING || worker == NULL || !worker->has_contribution ||
            !pd_contribution_is_single(&worker->contribution, leader->step_next)) {
            return 0;
        }
        const struct pd_push *push = &worker->contribution.push;
        const struct share share = {.member = member,
                                    .samples = push->samples,
                                    .unit_samples = push->samples,
                                    .absent = &push->absent};
        insert_by_name(shares, &count, &share);
    }
    return count;
}

/* Tell the ranks what the next step will be, so that they begin it while its gradients arrive. Rank
 * 0 sees every push as it begins, because there is one replica. Of a step that it does not begin
 * ahead itself it could not tell whether another rank has used gradients up. */
static void foresee_step(struct pd_engine *engine)
{
    struct pd_leader *leader = engine->leader;
    struct share shares[PD_WORKER_COUNT_MAX];

    if (!pd_leader_steps_are_open(engine) || leader->drain != PD_DRAIN_NONE ||
        pd_search_sweeps(leader) ||
        pd_ahead_kind(engine, engine->roster->worker_count) == PD_STEP_AHEAD_NONE ||
        is_foreseen(leader)) {
        return;
    }
    uint32_t count = foresee_shares(engine, shares);
    if (count == 0 || pd_ahead_kind(engine, count) == PD_STEP_AHEAD_NONE) {
        return;
    }
    struct pd_order *order = pd_leader_new_order(engine, PD_ORDER_AHEAD);
    if (fill_step(engine, order, shares, count) > 0) {
        issue_ahead(engine, order);
    }
}

static void keep_history(struct pd_engine *engine, const struct pd_order *order,
                         struct pd_step_outcome outcome)
{
    const struct pd_history_row row = {
        .step = order->step,
        .lr = engine->lrs[0],
        .gradient_norm = outcome.gradient_norm,
        .clipped_norm = outcome.clipped_norm,
        .loss = engine->leader->loss,
        .effective_batch = engine->leader->effective_batch,
        .skipped = outcome.skipped,
    };

    pd_history_add(&engine->leader->history, &row);
}

void pd_leader_step_closed(struct pd_engine *engine, const struct pd_order *order,
                           struct pd_step_outcome outcome)
{
    struct pd_leader *leader = engine->leader;

    leader->changed = true;
    if (order->trial) {
        pd_search_step_closed(engine, order, outcome);
        return;
    }
    leader->outcome = outcome;
    keep_history(engine, order, outcome);
    memcpy(leader->lrs, order->lrs, order->lr_count * sizeof order->lrs[0]);
    if (!outcome.skipped) {
        leader->applied_steps++;
        return;
    }
    if (leader->skip_explained_step != order->step + 1) {
        snprintf(leader->last_skip_reason, sizeof leader->last_skip_reason,
                 "step %" PRIu64 ": %.400s", order->step,
                 outcome.nonfinite ? "the gradient is not finite" : order->reason);
        pd_actions_log(engine->actions, "skipped %s", leader->last_skip_reason);
    }
}

/* ---- Reports ---- */

static void on_values(struct pd_engine *engine, uint32_t rank, const struct pd_report *report)
{
    struct pd_leader *leader = engine->leader;
    struct pd_member *member = pd_member_find(leader, report->worker_id);

    if (member == NULL || !pd_member_gives_values(engine, member)) {
        return;
    }
    member->asked_ms = engine->now_ms;
    leader->values_lanes |= 1ull << (rank % engine->lane_count);
    if ((leader->values_lanes & leader->lanes_needed) != leader->lanes_needed) {
        return;
    }
    leader->publish_ordered = true;
    pd_leader_new_order(engine, PD_ORDER_PUBLISH)->replica = member->replica;
    pd_leader_issue(engine);
}

static void on_nonfinite(struct pd_engine *engine, const struct pd_report *report)
{
    struct pd_leader *leader = engine->leader;
    const struct pd_member *member = pd_member_find(leader, report->worker_id);

    if (report->hessian) {
        pd_actions_log(engine->actions,
                       "step %" PRIu64 ": left out the estimate of the Hessian, as that of worker "
                       "%u '%.127s' is not finite: %.300s",
                       report->step, report->worker_id, member != NULL ? member->name : "",
                       report->text);
        return;
    }
    if (leader->skip_explained_step == report->step + 1 ||
        pd_search_made(leader, report->step + 1)) {
        return;
    }
    leader->skip_explained_step = report->step + 1;
    snprintf(leader->last_skip_reason, sizeof leader->last_skip_reason,
             "step %" PRIu64 ": the gradient of worker %u '%.127s' is not finite: %.300s",
             report->step, report->worker_id, member != NULL ? member->name : "", report->text);
    pd_actions_log(engine->actions, "skipped %s", leader->last_skip_reason);
}

static void on_lost(struct pd_engine *engine, uint32_t rank, const struct pd_report *report)
{
    struct pd_member *member = pd_member_find(engine->leader, report->worker_id);

    if (member == NULL || !pd_member_needs_rank(engine, member, rank)) {
        return;
    }
    if (member->ranks_missing == 0) {
        member->missing_since_ms = engine->now_ms;
    }
    member->ranks_missing |= 1ull << rank;
    member->expired = member->expired || report->expired;
    snprintf(member->missing_text, sizeof member->missing_text, "%s", report->text);
}

void pd_leader_report(struct pd_engine *engine, uint32_t rank, const struct pd_report *report)
{
    struct pd_leader *leader = engine->leader;
    struct pd_member *member = pd_member_find(leader, report->worker_id);

    if (report->kind == PD_REPORT_CONTRIBUTED) {
        leader->pushed = true;
    } else {
        leader->changed = true;
    }
    switch (report->kind) {
    case PD_REPORT_EXECUTED:
        leader->executed[rank] = report->order_index + 1;
        if (report->text[0] != '\0') {
            pd_search_snapshot_failed(engine, rank, report->text);
        }
        break;
    case PD_REPORT_CONTRIBUTED:
        if (member != NULL) {
            pd_member_contributed(engine, member, rank % engine->lane_count, report);
        }
        break;
    case PD_REPORT_LOST:
        on_lost(engine, rank, report);
        break;
    case PD_REPORT_FOUND:
        if (member != NULL) {
            member->ranks_missing &= ~(1ull << rank);
            if (member->registering && rank == 0) {
                pd_member_asks_again(engine, member);
            }
            member->expired = member->expired && member->ranks_missing != 0;
        }
        break;
    case PD_REPORT_VALUES:
        on_values(engine, rank, report);
        break;
    case PD_REPORT_NONFINITE:
        on_nonfinite(engine, report);
        break;
    case PD_REPORT_UNDONE:
        if (member != NULL && report->step == leader->step_next) {
            pd_member_undone(member, rank % engine->lane_count);
        }
        break;
    case PD_REPORT_DRAIN:
        pd_leader_drain(engine, report->text, true);
        break;
    }
}

/* ---- Links ---- */

void pd_leader_linked(struct pd_engine *engine, uint32_t rank, pd_connection_id connection)
{
    struct pd_leader *leader = engine->leader;

    leader->links[rank] = connection;
    leader->linked_count++;
    leader->changed = true;
}

static void list_missing(const struct pd_engine *engine, char *text, size_t text_bytes)
{
    size_t used = 0;

    text[0] = '\0';
    for (uint32_t rank = 1; rank < engine->topology->rank_count && used < text_bytes; rank++) {
        if (engine->leader->links[rank] == PD_CONNECTION_NONE) {
            used += (size_t)snprintf(text + used, text_bytes - used, "%s%u", used > 0 ? ", " : "",
                                     rank);
        }
    }
}

static void watch_links(struct pd_engine *engine)
{
    struct pd_leader *leader = engine->leader;
    uint64_t waited_ms = engine->now_ms - engine->started_ms;
    double limit_ms = engine->config->rank_timeout_s * 1000.0;
    char missing[256];

    if (leader->ready) {
        return;
    }
    list_missing(engine, missing, sizeof missing);
    if ((double)waited_ms > limit_ms) {
        pd_engine_abort(engine, "ranks %s have not connected within %g s (rank_timeout_s)", missing,
                        engine->config->rank_timeout_s);
    } else if (waited_ms >= WAITING_FIRST_MS &&
               (leader->links_said_ms == 0 ||
                engine->now_ms - leader->links_said_ms >= WAITING_AGAIN_MS)) {
        leader->links_said_ms = engine->now_ms;
        pd_actions_log(engine->actions, "waiting for ranks %s to connect", missing);
    }
}

static void watch_ranks(struct pd_engine *engine)
{
    struct pd_leader *leader = engine->leader;

    for (uint32_t rank = 1; rank < engine->topology->rank_count; rank++) {
        if (leader->links[rank] == PD_CONNECTION_NONE) {
            continue;
        }
        uint64_t heard_ms = engine->sessions[leader->links[rank]].received_ms;
        double silent_s = (double)(engine->now_ms - heard_ms) / 1000.0;
        if (silent_s > engine->config->rank_timeout_s) {
            pd_engine_abort(engine,
                            "rank %u at %s has not been heard for %.1f s (rank_timeout_s is %g): "
                            "ending the job",
                            rank, engine->topology->addresses[rank], silent_s,
                            engine->config->rank_timeout_s);
            return;
        }
    }
}

void pd_leader_tick(struct pd_engine *engine)
{
    engine->leader->changed = true;
    watch_links(engine);
    watch_ranks(engine);
    pd_waiting_tick(engine);
}

/* ---- The end ---- */

void pd_leader_drain(struct pd_engine *engine, const char *reason, bool wait)
{
    struct pd_leader *leader = engine->leader;
    double limit_ms = wait ? engine->config->drain_timeout_s * 1000.0 : 0.0;

    if (leader->drain >= PD_DRAIN_ORDERED || (leader->drain == PD_DRAIN_WAITING && wait)) {
        return;
    }
    leader->changed = true;
    leader->drain = PD_DRAIN_WAITING;
    leader->drain_ms = engine->now_ms + (uint64_t)limit_ms;
    snprintf(leader->drain_reason, sizeof leader->drain_reason, "%.127s", reason);
    pd_actions_log(engine->actions, "draining at step %" PRIu64 ": %s", leader->step_next, reason);
    pd_search_cancel(engine, "the daemon drains");
}

/* A step is running when it is ordered, or when somebody has pushed for it. */
static bool step_is_running(const struct pd_engine *engine)
{
    const struct pd_leader *leader = engine->leader;

    if (engine->store.has_version && engine->store.version != leader->step_next) {
        return true;
    }
    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        if (leader->members[slot].state != PD_MEMBER_NONE &&
            leader->members[slot].gradient.micro_batches > 0) {
            return true;
        }
    }
    return false;
}

static void advance_drain(struct pd_engine *engine)
{
    struct pd_leader *leader = engine->leader;

    if (leader->drain == PD_DRAIN_WAITING &&
        (!step_is_running(engine) || engine->now_ms >= leader->drain_ms || leader->paused)) {
        struct pd_order *order = pd_leader_new_order(engine, PD_ORDER_DRAIN);
        snprintf(order->reason, sizeof order->reason, "%s", leader->drain_reason);
        leader->drain = PD_DRAIN_ORDERED;
        pd_leader_issue(engine);
        pd_search_end_now(engine);
    } else if (leader->drain == PD_DRAIN_ORDERED &&
               pd_leader_executed_by_all(engine) == leader->order_next) {
        struct pd_order *order = pd_leader_new_order(engine, PD_ORDER_STOP);
        snprintf(order->reason, sizeof order->reason, "%s", leader->drain_reason);
        leader->drain = PD_DRAIN_STOPPED;
        pd_leader_issue(engine);
    }
}

/* Close the step in collection if it is complete, or foresee it; until then, see to who is read. */
static void advance_step(struct pd_engine *engine)
{
    engine->leader->pushed = false;
    pd_admission_advance(engine);
    if (step_is_due(engine)) {
        issue_hessian(engine);
        issue_step(engine);
    } else {
        foresee_step(engine);
    }
}

void pd_leader_advance(struct pd_engine *engine)
{
    struct pd_leader *leader = engine->leader;

    if (!leader->changed) {
        if (leader->pushed && leader->ready) {
            advance_step(engine);
        }
        return;
    }
    leader->changed = false;
    if (!leader->ready) {
        if (leader->linked_count < engine->topology->rank_count) {
            return;
        }
        leader->ready = true;
        pd_actions_simple(engine->actions, PD_ACTION_READY);
    }
    pd_member_advance(engine);
    pd_search_advance(engine);
    advance_step(engine);
    advance_drain(engine);
}
