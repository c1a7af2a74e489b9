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
    return worker;
}

enum pd_status pd_roster_equip(struct pd_worker *worker, bool hessian, uint64_t element_count,
                               uint64_t accumulation_steps, struct pd_error *error)
{
    bool *has = hessian ? &worker->has_hessian : &worker->has_contribution;

    if (*has) {
        return PD_OK;
    }
    enum pd_status status = pd_contribution_init(pd_roster_contribution(worker, hessian),
                                                 element_count, accumulation_steps, error);
    *has = status == PD_OK;
    return status;
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

static void strike_off(struct pd_worker *worker)
{
    pd_contribution_finish(&worker->contribution);
    pd_contribution_finish(&worker->hessian);
    worker->has_contribution = false;
    worker->has_hessian = false;
    worker->present = false;
}

void pd_roster_remove(struct pd_roster *roster, struct pd_worker *worker, const char *reason)
{
    remember(roster, worker->id, reason);
    strike_off(worker);
}

void pd_roster_leave(struct pd_roster *roster, struct pd_worker *worker, uint64_t step)
{
    remember(roster, worker->id, "it left");
    if (worker->has_contribution && pd_contribution_has_pushes(&worker->contribution, step)) {
        worker->leaving = true;
    } else {
        strike_off(worker);
    }
}

void pd_roster_release(struct pd_roster *roster, const struct pd_order *order)
{
    for (uint32_t i = 0; i < order->contributor_count; i++) {
        struct pd_worker *worker = pd_roster_find(roster, order->contributors[i]);
        if (worker != NULL && worker->has_contribution) {
            pd_contribution_release(&worker->contribution);
            pd_contribution_release(&worker->hessian);
        }
    }
}

void pd_roster_sweep(struct pd_roster *roster)
{
    for (uint32_t slot = 0; slot < roster->slot_end; slot++) {
        struct pd_worker *worker = &roster->workers[slot];
        if (worker->present && worker->leaving) {
            strike_off(worker);
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
        pd_contribution_finish(&roster->workers[slot].contribution);
        pd_contribution_finish(&roster->workers[slot].hessian);
    }
    memset(roster, 0, sizeof *roster);
}
