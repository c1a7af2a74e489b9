/* Who is read. With workers.staging_limit a rank has places for the contributions of so many
 * workers at a time. Rank 0 gives them away in the order of summation, by admit orders; a worker
 * that has none is not read, on no rank. While somebody waits, the first contribution that is whole
 * on every lane is added up by a take order, and its place is free. Of every home the next one in
 * that order always has a place, so that none is waited for by those that hold all of them. */
#include "server/core/engine_state.h"

#include <stdlib.h>
#include <string.h>

/* The members of one home. */
struct home {
    struct pd_member *next; /* the first of those that give something and are not taken */
    uint32_t place_count;   /* that are given away */
    uint32_t waiting_count; /* members that take part and have none */
};

static bool holds_place(const struct pd_member *member)
{
    return member->admitted && !member->taken;
}

static bool waits(const struct pd_member *member)
{
    return member->state == PD_MEMBER_ACTIVE && !member->admitted;
}

static bool is_member(const struct pd_member *member)
{
    return member->state == PD_MEMBER_ACTIVE || member->state == PD_MEMBER_LEAVING;
}

bool pd_admission_allows(const struct pd_engine *engine, const struct pd_member *member)
{
    const struct pd_leader *leader = engine->leader;
    uint32_t place_count = 0;
    bool before_one_read = false;

    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        const struct pd_member *other = &leader->members[slot];
        if (!is_member(other) || other->replica != member->replica || !other->admitted) {
            continue;
        }
        bool before = strcmp(member->name, other->name) < 0;
        if (before && other->taken) {
            return false;
        }
        before_one_read = before_one_read || before;
        place_count += holds_place(other);
    }
    return !before_one_read || place_count < engine->roster->staging.place_count;
}

bool pd_admission_holds_back(const struct pd_engine *engine, const struct pd_member *member)
{
    return engine->roster->staging.limited && engine->leader->started && waits(member);
}

static void survey(struct pd_leader *leader, struct home *homes)
{
    memset(homes, 0, PD_RANK_COUNT_MAX * sizeof *homes);
    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        struct pd_member *member = &leader->members[slot];
        struct home *home = &homes[member->replica];
        if (!is_member(member)) {
            continue;
        }
        home->place_count += holds_place(member);
        home->waiting_count += waits(member);
        if ((holds_place(member) || waits(member)) &&
            (home->next == NULL || strcmp(member->name, home->next->name) < 0)) {
            home->next = member;
        }
    }
}

static int compare_names(const void *a, const void *b)
{
    const struct pd_member *const *first = a;
    const struct pd_member *const *second = b;

    return strcmp((*first)->name, (*second)->name);
}

/* Give free places of a home to those that wait, in the order of summation. */
static void admit(struct pd_leader *leader, uint32_t replica, uint32_t free_count,
                  struct pd_order *order)
{
    struct pd_member *waiting[PD_WORKER_COUNT_MAX];
    uint32_t count = 0;

    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        struct pd_member *member = &leader->members[slot];
        if (member->replica == replica && waits(member)) {
            waiting[count++] = member;
        }
    }
    qsort(waiting, count, sizeof waiting[0], compare_names);
    for (uint32_t i = 0; i < count && i < free_count; i++) {
        waiting[i]->admitted = true;
        order->contributors[order->contributor_count] = waiting[i]->id;
        order->weights[order->contributor_count++] = 0.0;
    }
}

static void admit_all(struct pd_engine *engine, const struct home *homes)
{
    uint32_t place_count = engine->roster->staging.place_count;
    struct pd_order *order = pd_leader_new_order(engine, PD_ORDER_ADMIT);

    for (uint32_t replica = 0; replica < engine->replica_count; replica++) {
        if (homes[replica].waiting_count > 0 && homes[replica].place_count < place_count) {
            admit(engine->leader, replica, place_count - homes[replica].place_count, order);
        }
    }
    if (order->contributor_count > 0) {
        pd_leader_issue(engine);
    }
}

static void order_take(struct pd_engine *engine, const struct pd_member *member, bool hessian)
{
    struct pd_order *order = pd_leader_new_order(engine, PD_ORDER_TAKE);
    const struct pd_given *given = hessian ? &member->hessian : &member->gradient;

    order->hessian = hessian;
    order->contributor_count = 1;
    order->contributors[0] = member->id;
    order->weights[0] = (double)given->unit_samples;
    pd_tensor_set_copy(&order->absent, &given->absent);
    pd_leader_issue(engine);
}

/* Have what a member gives added up, if somebody waits for its place; false when that is not so, or
 * when it is not whole. */
static bool take(struct pd_engine *engine, const struct home *home)
{
    struct pd_member *member = home->next;

    if (home->waiting_count == 0 || member == NULL || !member->admitted ||
        !pd_member_contributes(engine, member)) {
        return false;
    }
    if (pd_member_estimates(engine, member)) {
        order_take(engine, member, true);
    }
    order_take(engine, member, false);
    member->taken = true;
    return true;
}

void pd_admission_advance(struct pd_engine *engine)
{
    struct pd_leader *leader = engine->leader;
    struct home homes[PD_RANK_COUNT_MAX];
    bool taken = true;

    if (!engine->roster->staging.limited || !leader->started || leader->drain >= PD_DRAIN_ORDERED) {
        return;
    }
    while (taken) {
        survey(leader, homes);
        admit_all(engine, homes);
        survey(leader, homes);
        taken = false;
        for (uint32_t replica = 0;
             replica < engine->replica_count && pd_leader_steps_are_open(engine); replica++) {
            taken |= take(engine, &homes[replica]);
        }
    }
}
