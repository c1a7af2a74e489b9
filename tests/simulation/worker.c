#include "tests/simulation/worker.h"

#include "tests/simulation/contact.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PING_US 100000u
/* In hessian_micro_batch: the estimate for the step has been pushed. */
#define ESTIMATE_COMPLETE UINT32_MAX

static void begin(void *context, uint64_t incarnation);

static const char *const phase_names[] = {"out",     "joining",  "registering",
                                          "feeding", "fetching", "computing",
                                          "pushing", "leaving",  "done"};

const char *sim_phase_name(enum sim_phase phase)
{
    return phase_names[phase];
}

void sim_worker_init(struct sim_worker *worker, struct sim_agenda *agenda,
                     struct sim_network *network, struct sim_cluster *cluster,
                     struct sim_ledger *ledger, struct sim_oracle *oracle,
                     const struct sim_worker_plan *plan, const float *initial, bool *drained)
{
    memset(worker, 0, sizeof *worker);
    worker->agenda = agenda;
    worker->network = network;
    worker->cluster = cluster;
    worker->ledger = ledger;
    worker->oracle = oracle;
    worker->plan = plan;
    worker->initial = initial;
    worker->drained = drained;
    worker->gradient = sim_alloc(oracle->model->element_count, sizeof(float));
    worker->wire = sim_alloc(oracle->model->element_count, sizeof(float));
}

static void free_contacts(struct sim_worker *worker)
{
    for (uint32_t i = 0; i < worker->contact_count; i++) {
        free(worker->contacts[i].received);
    }
    memset(worker->contacts, 0, sizeof worker->contacts);
    worker->contact_count = 0;
}

void sim_worker_finish(struct sim_worker *worker)
{
    free_contacts(worker);
    free(worker->gradient);
    free(worker->wire);
}

bool sim_worker_owns(const struct sim_worker *worker, const struct sim_link *link, uint32_t *lane)
{
    for (uint32_t i = 0; i < worker->contact_count; i++) {
        if (worker->contacts[i].link == link) {
            *lane = worker->contacts[i].lane;
            return true;
        }
    }
    return false;
}

/* ---- Ends and beginnings ---- */

static void drop_links(struct sim_worker *worker, bool in_good_order)
{
    for (uint32_t i = 0; i < worker->contact_count; i++) {
        struct sim_contact *contact = &worker->contacts[i];
        if (contact->link == NULL) {
            continue;
        }
        if (in_good_order) {
            contact->link->ends[0].gone = true;
            sim_link_close(contact->link, 0, true);
        } else {
            sim_link_die(contact->link, 0);
        }
        contact->link = NULL;
        contact->state = SIM_CONTACT_CLOSED;
    }
}

/* This process is over; a new one may come. */
void sim_worker_end(struct sim_worker *worker, bool in_good_order, bool returns)
{
    drop_links(worker, in_good_order);
    free_contacts(worker);
    worker->incarnation++;
    worker->joined = false;
    worker->phase = returns ? SIM_PHASE_OUT : SIM_PHASE_DONE;
    if (returns) {
        sim_after(worker->agenda, worker->plan->return_us, begin, worker, worker->incarnation);
    }
}

void sim_worker_crash(struct sim_worker *worker)
{
    sim_trace(worker->agenda, "worker '%s' crashes", worker->plan->name);
    worker->has_crashed = true;
    sim_worker_end(worker, false, worker->plan->return_us > 0 && !worker->draining);
}

static void crash(void *context, uint64_t incarnation)
{
    struct sim_worker *worker = context;

    if (worker->has_crashed || worker->phase == SIM_PHASE_DONE || worker->phase == SIM_PHASE_OUT ||
        (incarnation != 0 && incarnation != worker->incarnation)) {
        return;
    }
    sim_worker_crash(worker);
}

void sim_worker_hang(struct sim_worker *worker, uint64_t duration_us)
{
    sim_trace(worker->agenda, "worker '%s' hangs", worker->plan->name);
    worker->wake_us = worker->agenda->now_us + duration_us;
}

static void hang(void *context, uint64_t argument)
{
    struct sim_worker *worker = context;
    (void)argument;

    if (worker->phase != SIM_PHASE_DONE && worker->phase != SIM_PHASE_OUT) {
        sim_worker_hang(worker, worker->plan->hang_for_us);
    }
}

void sim_worker_start(struct sim_worker *worker)
{
    worker->incarnation = 1;
    sim_after(worker->agenda, worker->plan->start_us, begin, worker, 1);
    if (worker->plan->crash_us > 0) {
        sim_after(worker->agenda, worker->plan->crash_us, crash, worker, 0);
    }
    if (worker->plan->hang_us > 0) {
        sim_after(worker->agenda, worker->plan->hang_us, hang, worker, 0);
    }
}

/* The daemon has thrown it out, or drains. */
void sim_worker_told_gone(struct sim_worker *worker, const char *text)
{
    sim_trace(worker->agenda, "worker '%s' is told: %s", worker->plan->name, text);
    worker->evictions++;
    sim_worker_end(worker, true, worker->plan->return_us > 0 && !worker->draining);
}
/* ---- The course of things ---- */

static void keep_alive(void *context, uint64_t incarnation)
{
    struct sim_worker *worker = context;
    struct pd_message message = {.kind = PD_MESSAGE_PING};

    if (worker->incarnation != incarnation) {
        return;
    }
    uint64_t silent_us = worker->lease_ms * 1000ull / 3;
    for (uint32_t i = 0; i < worker->contact_count; i++) {
        struct sim_contact *contact = &worker->contacts[i];
        if (contact->state == SIM_CONTACT_READY && sim_contact_asleep_us(contact) == 0 &&
            worker->agenda->now_us - contact->said_us >= silent_us) {
            sim_contact_say(contact, &message, NULL, 0);
        }
    }
    sim_after(worker->agenda, PING_US, keep_alive, worker, incarnation);
}

static void begin(void *context, uint64_t incarnation)
{
    struct sim_worker *worker = context;

    if (worker->incarnation != incarnation) {
        return;
    }
    if (*worker->drained) {
        worker->phase = SIM_PHASE_DONE;
        return;
    }
    worker->phase = SIM_PHASE_JOINING;
    worker->progress_us = worker->agenda->now_us;
    worker->run_id = 0;
    worker->nonce = sim_chance(worker->agenda, 3) ? 0 : sim_random(worker->agenda);
    sim_after(worker->agenda, PING_US, keep_alive, worker, incarnation);
    sim_contact_request(sim_contact_of(worker, 0), SIM_REQUEST_JOIN);
}

void sim_worker_plan_stay(struct sim_worker *worker)
{
    const struct sim_worker_plan *plan = worker->plan;

    worker->leave_step = plan->last_step;
    if (plan->stay_steps > 0 && worker->step + plan->stay_steps < plan->last_step) {
        worker->leave_step = worker->step + plan->stay_steps;
    }
}

/* Make the micro-batch that comes next and enter it into the ledger. What it holds hangs on the
 * data's seed alone, not on when it is made. */
static void make_batch(struct sim_worker *worker)
{
    const struct sim_worker_plan *plan = worker->plan;
    const struct pd_tensor_list *model = worker->oracle->model;
    struct sim_batch *batch = &worker->batch;
    struct sim_agenda draw;

    uint32_t micro_batch = sim_contact_pushed_micro_batch(worker);

    sim_agenda_init(&draw, sim_ledger_draw(worker->ledger, plan->name, worker->step,
                                           worker->estimating, micro_batch));
    memset(batch, 0, sizeof *batch);
    batch->samples = sim_chance(&draw, plan->empty_one_in) ? 0 : sim_between(&draw, 1, 64);
    batch->dtype = plan->push_dtype;
    batch->last = micro_batch + 1 == worker->accumulation_steps ||
                  (worker->step < plan->last_step && sim_chance(&draw, plan->short_one_in));
    if (sim_chance(&draw, plan->poison_one_in)) {
        batch->poison = sim_chance(&draw, 2) ? SIM_POISON_NAN : SIM_POISON_INFINITY;
    }
    for (uint32_t i = 0; i < model->count; i++) {
        batch->absent |= (uint64_t)sim_chance(&draw, plan->absent_one_in) << i;
    }
    sim_agenda_finish(&draw);
    sim_gradient_fill(worker->ledger, plan->name, worker->step, worker->estimating, micro_batch,
                      batch, worker->gradient);
    pd_convert_from_float32(worker->wire, batch->dtype, worker->gradient, model->element_count);
    *sim_ledger_batch(worker->ledger, worker->worker_id, worker->step, worker->estimating,
                      micro_batch) = *batch;
}

/* Whether a micro-batch of an estimate comes next: of the steps that have one, all of it before the
 * gradient. */
static bool is_to_estimate(const struct sim_worker *worker)
{
    struct sim_agenda draw;

    if (worker->oracle->config->optimizer->estimate == NULL || worker->micro_batch > 0 ||
        worker->hessian_micro_batch == ESTIMATE_COMPLETE) {
        return false;
    }
    sim_agenda_init(&draw,
                    sim_ledger_draw(worker->ledger, worker->plan->name, worker->step, true, 0) + 1);
    bool has_estimate = sim_chance(&draw, worker->plan->hessian_one_in);
    sim_agenda_finish(&draw);
    return has_estimate;
}

static void push(void *context, uint64_t incarnation)
{
    struct sim_worker *worker = context;

    if (worker->incarnation != incarnation) {
        return;
    }
    if (worker->wake_us > worker->agenda->now_us) {
        sim_after(worker->agenda, worker->wake_us - worker->agenda->now_us, push, worker,
                  incarnation);
        return;
    }
    if (!worker->has_pushed && worker->plan->crash_after_us > 0) {
        sim_after(worker->agenda, worker->plan->crash_after_us, crash, worker, worker->incarnation);
    }
    worker->has_pushed = true;
    worker->estimating = is_to_estimate(worker);
    make_batch(worker);
    worker->phase = SIM_PHASE_PUSHING;
    sim_contact_request_lanes(worker, SIM_REQUEST_PUSH);
}

static void leave(struct sim_worker *worker)
{
    sim_contact_request_lanes(worker, SIM_REQUEST_NONE);
    worker->phase = SIM_PHASE_LEAVING;
    sim_contact_request(sim_contact_of(worker, 0), SIM_REQUEST_LEAVE);
}

static void leave_hastily(void *context, uint64_t incarnation)
{
    struct sim_worker *worker = context;

    if (worker->incarnation == incarnation && worker->phase == SIM_PHASE_PUSHING) {
        leave(worker);
    }
}

/* Compute the next micro-batch, unless this was the last. */
static void go_on(struct sim_worker *worker)
{
    const struct sim_worker_plan *plan = worker->plan;
    uint32_t leave_batches =
        worker->accumulation_steps > plan->leave_batches ? plan->leave_batches : 0;

    if (worker->draining) {
        return;
    }
    if (worker->step > worker->leave_step ||
        (worker->step == worker->leave_step && worker->micro_batch >= leave_batches)) {
        if (plan->hasty && worker->step == worker->leave_step) {
            push(worker, worker->incarnation);
            sim_after(worker->agenda, sim_below(worker->agenda, 3 * worker->network->delay_us_max),
                      leave_hastily, worker, worker->incarnation);
        } else {
            leave(worker);
        }
        return;
    }
    worker->phase = SIM_PHASE_COMPUTING;
    sim_after(worker->agenda, 1 + sim_below(worker->agenda, 2 * plan->compute_us), push, worker,
              worker->incarnation);
}

static void after_push(struct sim_worker *worker)
{
    if (worker->estimating) {
        worker->hessian_micro_batch =
            worker->batch.last ? ESTIMATE_COMPLETE : worker->hessian_micro_batch + 1;
        go_on(worker);
        return;
    }
    if (!worker->batch.last) {
        worker->micro_batch++;
        go_on(worker);
        return;
    }
    worker->step++;
    worker->micro_batch = 0;
    worker->hessian_micro_batch = 0;
    worker->steps_done++;
    if (worker->plan->combined) {
        go_on(worker);
        return;
    }
    worker->phase = SIM_PHASE_FETCHING;
    sim_contact_request_lanes(worker, SIM_REQUEST_PULL);
}

/* Every request of the phase has its answer. */
void sim_worker_next_phase(struct sim_worker *worker)
{
    switch (worker->phase) {
    case SIM_PHASE_JOINING:
        worker->phase = SIM_PHASE_REGISTERING;
        sim_contact_request(sim_contact_of(worker, 0), SIM_REQUEST_REGISTER);
        break;
    case SIM_PHASE_REGISTERING:
        worker->phase = worker->values_needed ? SIM_PHASE_FEEDING : SIM_PHASE_FETCHING;
        sim_contact_request_lanes(worker,
                                  worker->values_needed ? SIM_REQUEST_VALUES : SIM_REQUEST_PULL);
        break;
    case SIM_PHASE_FEEDING:
        worker->phase = SIM_PHASE_FETCHING;
        sim_contact_request_lanes(worker, SIM_REQUEST_PULL);
        break;
    case SIM_PHASE_FETCHING:
        go_on(worker);
        break;
    case SIM_PHASE_PUSHING:
        after_push(worker);
        break;
    case SIM_PHASE_LEAVING:
        sim_worker_end(worker, true, worker->step < worker->plan->last_step && !worker->draining);
        break;
    case SIM_PHASE_OUT:
    case SIM_PHASE_COMPUTING:
    case SIM_PHASE_DONE:
        break;
    }
}
