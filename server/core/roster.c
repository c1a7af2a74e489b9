#include "server/core/roster.h"

#include "common/assert.h"

#include <stdio.h>
#include <string.h>

static bool is(const struct pd_worker *worker, uint32_t worker_id)
{
    return worker->present && worker->id == worker_id;
}

struct pd_worker *pd_roster_find(struct pd_roster *roster, uint32_t worker_id)
{
    struct pd_worker *worker = &roster->workers[roster->slots[worker_id % PD_WORKER_COUNT_MAX]];

    if (is(worker, worker_id)) {
        return worker;
    }
    for (uint32_t slot = 0; slot < roster->slot_end; slot++) {
        if (is(&roster->workers[slot], worker_id)) {
            return &roster->workers[slot];
        }
    }
    return NULL;
}

uint32_t pd_roster_count_begun(const struct pd_roster *roster, uint64_t step)
{
    uint32_t count = 0;

    for (uint32_t slot = 0; slot < roster->slot_end; slot++) {
        const struct pd_worker *worker = &roster->workers[slot];
        count += worker->present && worker->has_contribution &&
                 pd_contribution_is_single(&worker->contribution, step);
    }
    return count;
}

static void insert_by_name(struct pd_roster *roster, uint16_t slot)
{
    uint32_t i = roster->worker_count++;

    while (i > 0 &&
           strcmp(roster->workers[roster->by_name[i - 1]].name, roster->workers[slot].name) > 0) {
        roster->by_name[i] = roster->by_name[i - 1];
        i--;
    }
    roster->by_name[i] = slot;
}

static void remove_by_name(struct pd_roster *roster, const struct pd_worker *worker)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < roster->worker_count; i++) {
        if (&roster->workers[roster->by_name[i]] != worker) {
            roster->by_name[kept++] = roster->by_name[i];
        }
    }
    roster->worker_count = kept;
}

struct pd_worker *pd_roster_add(struct pd_roster *roster, const struct pd_order *order)
{
    uint32_t slot = 0;
    while (slot < roster->slot_end && roster->workers[slot].present) {
        slot++;
    }
    PD_ASSERT(slot < PD_WORKER_COUNT_MAX);
    if (slot == roster->slot_end) {
        roster->slot_end++;
    }
    roster->slots[order->worker_id % PD_WORKER_COUNT_MAX] = (uint16_t)slot;
    struct pd_worker *worker = &roster->workers[slot];
    memset(worker, 0, sizeof *worker);
    worker->present = true;
    worker->id = order->worker_id;
    worker->token = order->token;
    snprintf(worker->name, sizeof worker->name, "%s", order->name);
    worker->replica = order->replica;
    worker->connection = PD_CONNECTION_NONE;
    insert_by_name(roster, (uint16_t)slot);
    return worker;
}

bool pd_roster_admits(const struct pd_roster *roster, const struct pd_worker *worker)
{
    return !roster->staging.limited || worker->admitted;
}

enum pd_status pd_roster_equip(struct pd_roster *roster, struct pd_worker *worker, bool hessian,
                               struct pd_error *error)
{
    return pd_contribution_equip(pd_roster_contribution(worker, hessian), &roster->staging, error);
}

void pd_roster_begin(struct pd_worker *worker, const struct pd_push *push, bool repeatable)
{
    *(push->hessian ? &worker->has_hessian : &worker->has_contribution) = true;
    pd_contribution_begin(pd_roster_contribution(worker, push->hessian), push, repeatable);
}

struct pd_contribution *pd_roster_contribution(struct pd_worker *worker, bool hessian)
{
    return hessian ? &worker->hessian : &worker->contribution;
}

struct pd_contribution *pd_roster_folding(struct pd_roster *roster, struct pd_worker **worker)
{
    for (uint32_t slot = 0; slot < roster->slot_end; slot++) {
        *worker = &roster->workers[slot];
        for (int hessian = 0; hessian < 2; hessian++) {
            struct pd_contribution *contribution = pd_roster_contribution(*worker, hessian);
            if (contribution->state == PD_CONTRIBUTION_FOLDING) {
                return contribution;
            }
        }
    }
    return NULL;
}

static void remember(struct pd_roster *roster, uint32_t worker_id, const char *reason)
{
    struct pd_departed *departed = &roster->departed[roster->departed_count++ % PD_DEPARTED_COUNT];

    departed->id = worker_id;
    snprintf(departed->reason, sizeof departed->reason, "%s", reason);
}

/* The memory it had the use of goes with it. */
static void strike_off(struct pd_roster *roster, struct pd_worker *worker)
{
    uint32_t contribution_count = (uint32_t)worker->has_contribution + worker->has_hessian;

    pd_contribution_strip(&worker->contribution, &roster->staging);
    pd_contribution_strip(&worker->hessian, &roster->staging);
    pd_staging_shrink(&roster->staging,
                      contribution_count * (roster->staging.accumulates ? 2u : 1u));
    remove_by_name(roster, worker);
    memset(worker, 0, sizeof *worker);
}

void pd_roster_remove(struct pd_roster *roster, struct pd_worker *worker, const char *reason)
{
    remember(roster, worker->id, reason);
    strike_off(roster, worker);
}

void pd_roster_leave(struct pd_roster *roster, struct pd_worker *worker, uint64_t step)
{
    remember(roster, worker->id, "it left");
    if (worker->has_contribution && pd_contribution_has_pushes(&worker->contribution, step)) {
        worker->leaving = true;
    } else {
        strike_off(roster, worker);
    }
}

void pd_roster_take(struct pd_roster *roster, const struct pd_order *order)
{
    struct pd_worker *worker = pd_roster_find(roster, order->contributors[0]);

    if (worker == NULL || !worker->has_contribution) {
        return;
    }
    pd_contribution_release(&worker->hessian, &roster->staging);
    worker->hessian.taken = true;
    if (!order->hessian) {
        pd_contribution_release(&worker->contribution, &roster->staging);
        worker->contribution.taken = true;
    }
}

void pd_roster_release(struct pd_roster *roster, const struct pd_order *order)
{
    for (uint32_t i = 0; i < order->contributor_count; i++) {
        struct pd_worker *worker = pd_roster_find(roster, order->contributors[i]);
        if (worker != NULL && worker->has_contribution) {
            pd_contribution_release(&worker->contribution, &roster->staging);
            pd_contribution_release(&worker->hessian, &roster->staging);
        }
    }
}

void pd_roster_sweep(struct pd_roster *roster)
{
    for (uint32_t slot = 0; slot < roster->slot_end; slot++) {
        struct pd_worker *worker = &roster->workers[slot];
        worker->admitted = false;
        if (worker->present && worker->leaving) {
            strike_off(roster, worker);
        }
    }
}

enum pd_status pd_roster_explain(const struct pd_roster *roster, uint32_t worker_id,
                                 struct pd_error *error)
{
    for (uint32_t i = 0; i < PD_DEPARTED_COUNT && i < roster->departed_count; i++) {
        if (roster->departed[i].id == worker_id) {
            return pd_error_set(error, PD_EIDENTITY, "worker %u is gone: %s; join again", worker_id,
                                roster->departed[i].reason);
        }
    }
    return pd_error_set(error, PD_EIDENTITY, "worker %u is not known in this run: join again",
                        worker_id);
}

void pd_roster_finish(struct pd_roster *roster)
{
    for (uint32_t slot = 0; slot < roster->slot_end; slot++) {
        strike_off(roster, &roster->workers[slot]);
    }
    pd_staging_finish(&roster->staging);
    roster->slot_end = 0;
}
