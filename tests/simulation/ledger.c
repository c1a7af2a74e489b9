#include "tests/simulation/ledger.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void sim_ledger_init(struct sim_ledger *ledger, struct sim_agenda *agenda,
                     const struct pd_tensor_list *model, uint64_t data_seed)
{
    memset(ledger, 0, sizeof *ledger);
    ledger->agenda = agenda;
    ledger->model = model;
    ledger->data_seed = data_seed;
    ledger->drained_version = UINT64_MAX;
}

void sim_ledger_finish(struct sim_ledger *ledger)
{
    free(ledger->contributions);
    free(ledger->members);
    memset(ledger, 0, sizeof *ledger);
}

struct sim_member *sim_ledger_member(struct sim_ledger *ledger, uint32_t worker_id)
{
    for (size_t i = 0; i < ledger->member_count; i++) {
        if (ledger->members[i].id == worker_id) {
            return &ledger->members[i];
        }
    }
    sim_fail(ledger->agenda, "worker %u has never joined", worker_id);
}

struct sim_contribution *sim_ledger_find(struct sim_ledger *ledger, uint32_t worker_id,
                                         uint64_t step, bool hessian)
{
    for (size_t i = ledger->contribution_count; i > 0; i--) {
        struct sim_contribution *contribution = &ledger->contributions[i - 1];
        if (contribution->worker_id == worker_id && contribution->step == step &&
            contribution->hessian == hessian) {
            return contribution;
        }
    }
    return NULL;
}

struct sim_contribution *sim_ledger_summed(struct sim_ledger *ledger, const struct pd_order *order,
                                           uint32_t index)
{
    return sim_ledger_find(ledger, order->contributors[index], order->step,
                           order->kind == PD_ORDER_HESSIAN);
}

struct sim_batch *sim_ledger_batch(struct sim_ledger *ledger, uint32_t worker_id, uint64_t step,
                                   bool hessian, uint32_t micro_batch)
{
    struct sim_contribution *contribution = sim_ledger_find(ledger, worker_id, step, hessian);

    SIM_CHECK(ledger->agenda, micro_batch < SIM_BATCH_COUNT_MAX, "too many micro-batches");
    if (contribution == NULL) {
        ledger->contributions = sim_grow(ledger->contributions, ledger->contribution_count,
                                         &ledger->contribution_capacity, sizeof *contribution);
        contribution = &ledger->contributions[ledger->contribution_count++];
        memset(contribution, 0, sizeof *contribution);
        contribution->worker_id = worker_id;
        contribution->step = step;
        contribution->hessian = hessian;
    }
    if (micro_batch >= contribution->batch_count) {
        contribution->batch_count = micro_batch + 1;
    }
    return &contribution->batches[micro_batch];
}

bool sim_batch_whole(const struct sim_ledger *ledger, const struct sim_batch *batch)
{
    return (batch->stored_lanes & ledger->needed_lanes) == ledger->needed_lanes;
}

static bool acked(const struct sim_ledger *ledger, const struct sim_batch *batch)
{
    return (batch->acked_lanes & ledger->needed_lanes) == ledger->needed_lanes;
}

uint64_t sim_contribution_samples(const struct sim_contribution *contribution)
{
    uint64_t samples = 0;
    for (uint32_t i = 0; i < contribution->batch_count; i++) {
        samples +=
            contribution->batches[i].stored_lanes != 0 ? contribution->batches[i].samples : 0;
    }
    return samples;
}

uint64_t sim_contribution_unit(const struct sim_contribution *contribution)
{
    for (uint32_t i = 0; i < contribution->batch_count; i++) {
        if (contribution->batches[i].samples > 0 && contribution->batches[i].stored_lanes != 0) {
            return contribution->batches[i].samples;
        }
    }
    return 0;
}

void sim_ledger_stored(struct sim_ledger *ledger, uint32_t worker_id, const struct pd_push *push,
                       uint32_t lane)
{
    struct sim_contribution *contribution =
        sim_ledger_find(ledger, worker_id, push->step, push->hessian);

    SIM_CHECK(ledger->agenda, contribution != NULL && push->micro_batch < contribution->batch_count,
              "lane %u stores a push that nobody sent", lane);
    struct sim_batch *batch = &contribution->batches[push->micro_batch];
    SIM_CHECK(ledger->agenda, (batch->stored_lanes >> lane & 1u) == 0,
              "lane %u stores step %" PRIu64 ", micro-batch %u of worker %u twice", lane,
              push->step, push->micro_batch, worker_id);
    batch->stored_lanes |= 1ull << lane;
    contribution->stored_us = ledger->agenda->now_us;
}

void sim_ledger_undone(struct sim_ledger *ledger, uint32_t worker_id, uint64_t step, uint32_t lane)
{
    struct sim_batch *batch = sim_ledger_batch(ledger, worker_id, step, false, 0);

    SIM_CHECK(ledger->agenda, batch->stored_lanes >> lane & 1u,
              "lane %u takes back a push of worker %u that it has not got", lane, worker_id);
    SIM_CHECK(ledger->agenda, !sim_ledger_find(ledger, worker_id, step, false)->counted,
              "lane %u takes back a push of worker %u that has counted", lane, worker_id);
    const struct sim_member *member = sim_ledger_member(ledger, worker_id);
    SIM_CHECK(ledger->agenda, member->departed || !member->left || member->left_step <= step,
              "lane %u takes back a push of worker %u that was acknowledged before it left", lane,
              worker_id);
    batch->stored_lanes &= ~(1ull << lane);
    batch->acked_lanes &= ~(1ull << lane);
    batch->undone_lanes |= 1ull << lane;
}

void sim_ledger_leave(struct sim_ledger *ledger, uint32_t worker_id, uint64_t step)
{
    struct sim_member *member = sim_ledger_member(ledger, worker_id);

    member->left = true;
    member->left_step = step;
}

/* ---- Orders ---- */

static void on_join(struct sim_ledger *ledger, const struct pd_order *order)
{
    ledger->members = sim_grow(ledger->members, ledger->member_count, &ledger->member_capacity,
                               sizeof *ledger->members);
    struct sim_member *member = &ledger->members[ledger->member_count++];
    memset(member, 0, sizeof *member);
    member->id = order->worker_id;
    member->replica = order->replica;
    snprintf(member->name, sizeof member->name, "%s", order->name);
    for (size_t i = 0; i + 1 < ledger->member_count; i++) {
        const struct sim_member *earlier = &ledger->members[i];
        SIM_CHECK(ledger->agenda, earlier->id != order->worker_id, "worker id %u is used again",
                  order->worker_id);
        SIM_CHECK(ledger->agenda,
                  earlier->departed || earlier->left_ordered ||
                      strcmp(earlier->name, order->name) != 0,
                  "two workers are called '%s'", order->name);
    }
}

/* Whole on every lane, to its end. */
static bool complete(const struct sim_ledger *ledger, const struct sim_contribution *contribution)
{
    for (uint32_t i = 0; i < contribution->batch_count; i++) {
        if (!sim_batch_whole(ledger, &contribution->batches[i])) {
            return false;
        }
        if (contribution->batches[i].last) {
            return true;
        }
    }
    return false;
}

static void on_depart(struct sim_ledger *ledger, const struct pd_order *order)
{
    struct sim_member *member = sim_ledger_member(ledger, order->worker_id);
    const struct sim_contribution *contribution =
        sim_ledger_find(ledger, order->worker_id, order->step, false);

    if (order->reason[0] == '\0') {
        SIM_CHECK(ledger->agenda, member->left, "worker %u is said to have left", order->worker_id);
        member->left_ordered = true;
        return;
    }
    member->departed = true;
    member->departed_step = order->step;
    ledger->evicted++;
    bool pushed_out = strstr(order->reason, "administrator") != NULL ||
                      strstr(order->reason, "took its name") != NULL;
    SIM_CHECK(ledger->agenda, !pushed_out || !member->left_ordered,
              "worker %u is evicted after it has left: %s", order->worker_id, order->reason);
    if (contribution == NULL || pushed_out || contribution->counted || contribution->taken ||
        !complete(ledger, contribution)) {
        return;
    }
    /* Of one that left, rank 0 has heard all. */
    SIM_CHECK(ledger->agenda,
              !member->left_ordered &&
                  ledger->agenda->now_us - contribution->stored_us < ledger->report_us_max,
              "worker %u departs and its whole gradient of step %" PRIu64 " with it: %s",
              order->worker_id, order->step, order->reason);
}

/* All that is there of a contribution is on every lane; and that is all of it unless the worker
 * `left`. */
static void check_whole(const struct sim_ledger *ledger,
                        const struct sim_contribution *contribution, bool left)
{
    SIM_CHECK(ledger->agenda, left || complete(ledger, contribution),
              "step %" PRIu64 " counts worker %u, which is not whole", contribution->step,
              contribution->worker_id);
    for (uint32_t i = 0; i < contribution->batch_count; i++) {
        const struct sim_batch *batch = &contribution->batches[i];
        SIM_CHECK(ledger->agenda, batch->stored_lanes == 0 || sim_batch_whole(ledger, batch),
                  "step %" PRIu64 " counts worker %u, whose micro-batch %u is not on every lane",
                  contribution->step, contribution->worker_id, i);
    }
}

/* What is added up before its step closes can not be taken back: it is whole, and those of its home
 * are added up in the order of their names. */
static void on_take(struct sim_ledger *ledger, const struct pd_order *order)
{
    uint32_t worker_id = order->contributors[0];
    const struct sim_member *member = sim_ledger_member(ledger, worker_id);
    struct sim_contribution *contribution =
        sim_ledger_find(ledger, worker_id, order->step, order->hessian);

    SIM_CHECK(ledger->agenda,
              order->step == ledger->steps_closed && contribution != NULL && !contribution->taken &&
                  !member->departed,
              "step %" PRIu64 " takes what worker %u did not give", order->step, worker_id);
    check_whole(ledger, contribution, member->left && !order->hessian);
    for (size_t i = 0; i < ledger->contribution_count; i++) {
        const struct sim_contribution *other = &ledger->contributions[i];
        const struct sim_member *giver = sim_ledger_member(ledger, other->worker_id);
        SIM_CHECK(ledger->agenda,
                  !other->taken || other->step != order->step ||
                      giver->replica != member->replica || strcmp(giver->name, member->name) <= 0,
                  "step %" PRIu64 " takes worker %u after worker %u", order->step, worker_id,
                  other->worker_id);
    }
    contribution->taken = true;
    ledger->taken++;
}

/* A contributor's gradient is whole; one that left may have sent less than a whole contribution. */
static void check_contributor(struct sim_ledger *ledger, const struct pd_order *order,
                              uint32_t index)
{
    uint32_t worker_id = order->contributors[index];
    const struct sim_member *member = sim_ledger_member(ledger, worker_id);
    struct sim_contribution *contribution = sim_ledger_summed(ledger, order, index);

    SIM_CHECK(ledger->agenda, contribution != NULL && (!member->departed || contribution->taken),
              "step %" PRIu64 " counts worker %u, which gave nothing", order->step, worker_id);
    SIM_CHECK(ledger->agenda, !contribution->counted, "step %" PRIu64 " counts worker %u twice",
              order->step, worker_id);
    contribution->counted = true;
    ledger->counted++;
    check_whole(ledger, contribution, member->left && !contribution->hessian);
}

static void check_weights(struct sim_ledger *ledger, const struct pd_order *order)
{
    uint64_t samples = 0;

    for (uint32_t i = 0; i < order->contributor_count; i++) {
        samples += sim_contribution_samples(sim_ledger_summed(ledger, order, i));
    }
    SIM_CHECK(ledger->agenda, order->skip == (samples == 0), "step %" PRIu64 ": skip is %d",
              order->step, (int)order->skip);
    SIM_CHECK(ledger->agenda, order->samples == samples,
              "step %" PRIu64 " has %" PRIu64 " samples, and %" PRIu64 " would be right",
              order->step, order->samples, samples);
    for (uint32_t i = 0; i < order->contributor_count; i++) {
        uint64_t unit = sim_contribution_unit(sim_ledger_summed(ledger, order, i));
        SIM_CHECK(ledger->agenda, !(fabs((double)unit - order->weights[i]) > 0.0),
                  "step %" PRIu64 ": worker %u weighs %g, and %" PRIu64 " would be right",
                  order->step, order->contributors[i], order->weights[i], unit);
    }
}

uint64_t sim_ledger_absent(struct sim_ledger *ledger, const struct pd_order *order)
{
    uint64_t absent = UINT64_MAX;

    for (uint32_t i = 0; i < order->contributor_count; i++) {
        const struct sim_contribution *contribution = sim_ledger_summed(ledger, order, i);
        for (uint32_t k = 0; k < contribution->batch_count; k++) {
            const struct sim_batch *batch = &contribution->batches[k];
            if (batch->stored_lanes != 0 && batch->samples > 0) {
                absent &= batch->absent;
            }
        }
    }
    return absent;
}

static void check_absent(struct sim_ledger *ledger, const struct pd_order *order)
{
    uint64_t absent = sim_ledger_absent(ledger, order);

    for (uint32_t i = 0; i < ledger->model->count && !order->skip; i++) {
        SIM_CHECK(ledger->agenda, pd_tensor_set_has(&order->absent, i) == ((absent >> i & 1u) != 0),
                  "step %" PRIu64 ": tensor %u is taken for absent, or is and is not", order->step,
                  i);
    }
}

/* Contributors of an order about the step in collection: what each gave is whole. */
static void check_contributors(struct sim_ledger *ledger, const struct pd_order *order)
{
    SIM_CHECK(ledger->agenda, order->step == ledger->steps_closed,
              "step %" PRIu64 " is ordered after %" PRIu64 " steps", order->step,
              ledger->steps_closed);
    for (uint32_t i = 0; i < order->contributor_count; i++) {
        check_contributor(ledger, order, i);
        SIM_CHECK(ledger->agenda,
                  i == 0 || strcmp(sim_ledger_member(ledger, order->contributors[i - 1])->name,
                                   sim_ledger_member(ledger, order->contributors[i])->name) < 0,
                  "step %" PRIu64 ": contributors are not in the order of their names",
                  order->step);
    }
}

/* Estimates are counted with the gradients they come with, whole, or not at all. */
static void check_estimates(struct sim_ledger *ledger, uint64_t step)
{
    uint64_t counted_samples = 0;
    uint64_t left_out_samples = 0;

    for (size_t i = 0; i < ledger->contribution_count; i++) {
        const struct sim_contribution *estimate = &ledger->contributions[i];
        if (!estimate->hessian || estimate->step != step) {
            continue;
        }
        const struct sim_contribution *gradient =
            sim_ledger_find(ledger, estimate->worker_id, step, false);
        bool belongs = gradient != NULL && gradient->counted;
        SIM_CHECK(ledger->agenda, belongs || !estimate->counted,
                  "step %" PRIu64 " counts an estimate of worker %u, but no gradient", step,
                  estimate->worker_id);
        if (estimate->counted) {
            counted_samples += sim_contribution_samples(estimate);
        } else if (belongs && complete(ledger, estimate)) {
            left_out_samples += sim_contribution_samples(estimate);
        }
    }
    SIM_CHECK(ledger->agenda, left_out_samples == 0,
              "step %" PRIu64 " leaves out whole estimates of %" PRIu64 " samples and counts "
              "%" PRIu64,
              step, left_out_samples, counted_samples);
}

/* The step of an order is over: all that was pushed for it in full has counted. */
static void close_step(struct sim_ledger *ledger, const struct pd_order *order)
{
    check_contributors(ledger, order);
    ledger->steps_closed++;
    for (size_t i = 0; i < ledger->contribution_count; i++) {
        const struct sim_contribution *contribution = &ledger->contributions[i];
        SIM_CHECK(ledger->agenda,
                  contribution->step != order->step || contribution->hessian ||
                      contribution->counted || !complete(ledger, contribution) ||
                      (sim_ledger_member(ledger, contribution->worker_id)->departed &&
                       !contribution->taken),
                  "step %" PRIu64 " leaves out the whole gradient of worker %u", order->step,
                  contribution->worker_id);
    }
    check_estimates(ledger, order->step);
}

static void on_step(struct sim_ledger *ledger, const struct pd_order *order)
{
    close_step(ledger, order);
    check_weights(ledger, order);
    check_absent(ledger, order);
}

static void on_hessian(struct sim_ledger *ledger, const struct pd_order *order)
{
    check_contributors(ledger, order);
    check_weights(ledger, order);
    check_absent(ledger, order);
}

/* The last step of a search counts for its loss alone. One that ends with the job, or because
 * nobody is left, takes nothing in, and leaves nothing out. */
static void on_restore(struct sim_ledger *ledger, const struct pd_order *order)
{
    if (order->contributor_count > 0) {
        close_step(ledger, order);
        return;
    }
    check_contributors(ledger, order);
    ledger->steps_closed++;
    for (size_t i = 0; i < ledger->contribution_count; i++) {
        struct sim_contribution *contribution = &ledger->contributions[i];
        contribution->counted = contribution->counted || contribution->step == order->step;
    }
}

void sim_ledger_order(struct sim_ledger *ledger, const struct pd_order *order)
{
    switch (order->kind) {
    case PD_ORDER_JOIN:
        on_join(ledger, order);
        break;
    case PD_ORDER_DEPART:
        on_depart(ledger, order);
        break;
    case PD_ORDER_STEP:
        on_step(ledger, order);
        break;
    case PD_ORDER_RESTORE:
        on_restore(ledger, order);
        break;
    case PD_ORDER_HESSIAN:
        on_hessian(ledger, order);
        break;
    case PD_ORDER_TAKE:
        on_take(ledger, order);
        break;
    case PD_ORDER_DRAIN:
        ledger->drained_version = ledger->steps_closed;
        break;
    case PD_ORDER_ADMIT:
    case PD_ORDER_REGISTER:
    case PD_ORDER_PUBLISH:
    case PD_ORDER_SNAPSHOT:
    case PD_ORDER_FORGET:
    case PD_ORDER_STOP:
    case PD_ORDER_AHEAD:
        break;
    }
}

bool sim_ledger_may_give(const struct sim_ledger *ledger, uint64_t version, uint64_t awaited)
{
    return version == awaited || (version == awaited + 1 && awaited == ledger->drained_version);
}

void sim_ledger_check(struct sim_ledger *ledger)
{
    for (size_t i = 0; i < ledger->contribution_count; i++) {
        const struct sim_contribution *contribution = &ledger->contributions[i];
        const struct sim_member *member = sim_ledger_member(ledger, contribution->worker_id);
        bool all_acked = contribution->batch_count > 0;
        for (uint32_t k = 0; k < contribution->batch_count; k++) {
            all_acked = all_acked && acked(ledger, &contribution->batches[k]);
        }
        bool whole =
            contribution->batches[contribution->batch_count - 1].last || member->left_ordered;
        SIM_CHECK(ledger->agenda,
                  contribution->hessian || contribution->counted || !all_acked || !whole ||
                      (member->departed && contribution->step >= member->departed_step) ||
                      contribution->step >= ledger->steps_closed,
                  "step %" PRIu64 " of worker %u was acknowledged everywhere and did not count",
                  contribution->step, contribution->worker_id);
    }
}

/* ---- Gradients ---- */

static uint64_t hash_name(const char *name)
{
    uint64_t value = 0;
    for (; *name != '\0'; name++) {
        value = sim_mix(value, (uint8_t)*name);
    }
    return value;
}

uint64_t sim_ledger_draw(const struct sim_ledger *ledger, const char *name, uint64_t step,
                         bool hessian, uint32_t micro_batch)
{
    uint64_t place = micro_batch + (hessian ? SIM_BATCH_COUNT_MAX : 0);
    return sim_mix(sim_mix(sim_mix(ledger->data_seed, hash_name(name)), step), place);
}

/* Every element keeps its sign, so that no average comes near zero: there Adam's rules make much of
 * little rounding. */
void sim_gradient_fill(const struct sim_ledger *ledger, const char *name, uint64_t step,
                       bool hessian, uint32_t micro_batch, const struct sim_batch *batch,
                       float *out)
{
    uint64_t mine = sim_ledger_draw(ledger, name, step, hessian, micro_batch);

    for (uint64_t i = 0; i < ledger->model->element_count; i++) {
        bool negative = sim_mix(ledger->data_seed, i) & 1u;
        double size = 0.25 + (double)(sim_mix(mine, i) >> 11) * 0x1p-53;
        out[i] = (float)(negative ? -size : size);
    }
    if (batch->poison != SIM_POISON_NONE) {
        out[0] = batch->poison == SIM_POISON_NAN ? NAN : INFINITY;
    }
    for (uint32_t i = 0; i < ledger->model->count; i++) {
        const struct pd_tensor *tensor = &ledger->model->tensors[i];
        if (batch->absent >> i & 1u) {
            memset(out + tensor->element_begin, 0, tensor->element_count * sizeof *out);
        }
    }
}
