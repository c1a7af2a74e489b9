#include "tests/simulation/contact.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_US 20000u

static void advance(struct sim_contact *contact);
static const struct sim_end_calls worker_calls;

struct sim_contact *sim_contact_of(struct sim_worker *worker, uint32_t rank)
{
    for (uint32_t i = 0; i < worker->contact_count; i++) {
        if (worker->contacts[i].rank == rank) {
            return &worker->contacts[i];
        }
    }
    struct sim_contact *contact = &worker->contacts[worker->contact_count++];
    contact->worker = worker;
    contact->rank = rank;
    return contact;
}

/* ---- Connections ---- */

uint64_t sim_contact_asleep_us(void *owner)
{
    const struct sim_contact *contact = owner;
    uint64_t now_us = contact->worker->agenda->now_us;
    return contact->worker->wake_us > now_us ? contact->worker->wake_us - now_us : 0;
}

void sim_contact_say(struct sim_contact *contact, const struct pd_message *message,
                     const void *payload, uint64_t payload_bytes)
{
    contact->said_us = contact->worker->agenda->now_us;
    sim_link_say(contact->link, 0, message, payload, payload_bytes,
                 contact->worker->plan->checksum);
}

static void open_contact(struct sim_contact *contact)
{
    struct sim_worker *worker = contact->worker;
    struct sim_end opener = {.calls = &worker_calls, .owner = contact};
    struct sim_end acceptor = sim_rank_end(&worker->cluster->ranks[contact->rank]);

    contact->state = SIM_CONTACT_OPENING;
    contact->link = sim_connect(worker->network, &opener, &acceptor, true);
    contact->link->slow = worker->plan->slow;
}

static void retry(void *context, uint64_t incarnation)
{
    struct sim_contact *contact = context;
    struct sim_worker *worker = contact->worker;

    if (worker == NULL || worker->incarnation != incarnation) {
        return;
    }
    if (sim_contact_asleep_us(contact) > 0) {
        sim_after(worker->agenda, sim_contact_asleep_us(contact), retry, contact, incarnation);
        return;
    }
    advance(contact);
}

static void advance_later(struct sim_contact *contact)
{
    struct sim_worker *worker = contact->worker;
    sim_after(worker->agenda, 1 + sim_below(worker->agenda, RETRY_US), retry, contact,
              worker->incarnation);
}

static bool on_opened(void *owner, struct sim_link *link, int side)
{
    struct sim_contact *contact = owner;
    const struct sim_worker *worker = contact->worker;
    struct pd_message message = {.kind = PD_MESSAGE_HELLO};
    (void)side;

    snprintf(message.hello.client, sizeof message.hello.client, "simulated");
    snprintf(message.hello.host, sizeof message.hello.host, "%s", worker->plan->host);
    message.hello.has_worker_id = worker->joined;
    message.hello.worker_id = worker->worker_id;
    message.hello.token = worker->token;
    message.hello.run_id = worker->run_id;
    contact->link = link;
    contact->state = SIM_CONTACT_GREETING;
    sim_contact_say(contact, &message, NULL, 0);
    return true;
}

static void on_closed(void *owner, struct sim_link *link, int side, const char *why)
{
    struct sim_contact *contact = owner;
    (void)link;
    (void)side;
    (void)why;

    contact->link = NULL;
    contact->state = SIM_CONTACT_CLOSED;
    contact->asked_before = contact->asked_before || contact->asked;
    contact->asked = false;
    contact->repeated = false;
    if (contact->worker->draining || *contact->worker->drained) {
        sim_worker_end(contact->worker, true, false);
        return;
    }
    advance_later(contact);
}

static void on_progress(void *owner, struct sim_link *link, int side, bool received,
                        uint64_t payload_bytes)
{
    (void)payload_bytes;
    (void)owner;
    (void)link;
    (void)side;
    (void)received;
}

static void on_sent(void *owner, struct sim_link *link, int side)
{
    (void)owner;
    (void)link;
    (void)side;
}

/* ---- Asking ---- */

void sim_contact_request(struct sim_contact *contact, enum sim_request kind)
{
    contact->request = kind;
    contact->asked = false;
    contact->asked_before = false;
    contact->repeated = false;
    contact->done = false;
    advance(contact);
}

/* Ask every lane that has elements. */
void sim_contact_request_lanes(struct sim_worker *worker, enum sim_request kind)
{
    for (uint32_t i = 0; i < worker->contact_count; i++) {
        worker->contacts[i].request = SIM_REQUEST_NONE;
        worker->contacts[i].done = true;
    }
    for (uint32_t i = 0; i < worker->contact_count; i++) {
        if (worker->contacts[i].element_count > 0) {
            sim_contact_request(&worker->contacts[i], kind);
        }
    }
}

/* The number of the micro-batch being pushed. */
uint32_t sim_contact_pushed_micro_batch(const struct sim_worker *worker)
{
    return worker->estimating ? worker->hessian_micro_batch : worker->micro_batch;
}

static void ask_push(struct sim_contact *contact)
{
    struct sim_worker *worker = contact->worker;
    size_t element_bytes = pd_dtype_bytes(worker->batch.dtype);
    struct pd_message message = {
        .kind = worker->estimating ? PD_MESSAGE_HESSIAN : PD_MESSAGE_PUSH,
        .push = {.hessian = worker->estimating,
                 .step = worker->step,
                 .micro_batch = sim_contact_pushed_micro_batch(worker),
                 .last = worker->batch.last,
                 .samples = worker->batch.samples,
                 .has_loss = !worker->estimating,
                 .loss = worker->estimating ? 0 : 1.5,
                 .dtype = worker->batch.dtype,
                 .element_begin = contact->element_begin,
                 .element_count = contact->element_count,
                 .pull = worker->batch.last && worker->plan->combined && !worker->estimating,
                 .pull_dtype = worker->plan->pull_dtype,
                 .ahead = worker->plan->ahead && !worker->estimating},
    };
    for (uint32_t i = 0; i < worker->oracle->model->count; i++) {
        if (worker->batch.absent >> i & 1u) {
            pd_tensor_set_add(&message.push.absent, i);
        }
    }
    const uint8_t *payload = worker->wire + contact->element_begin * element_bytes;

    sim_contact_say(contact, &message, payload, contact->element_count * element_bytes);
    if (!message.push.pull && sim_chance(worker->agenda, worker->plan->repeat_one_in)) {
        contact->repeated = true;
        sim_contact_say(contact, &message, payload, contact->element_count * element_bytes);
    }
}

static void ask_pull(struct sim_contact *contact, uint64_t version)
{
    struct pd_message message = {
        .kind = PD_MESSAGE_PULL,
        .pull = {.min_version = version, .dtype = contact->worker->plan->pull_dtype}};
    sim_contact_say(contact, &message, NULL, 0);
}

static void ask_register(struct sim_contact *contact)
{
    struct pd_message message = {.kind = PD_MESSAGE_REGISTER,
                                 .registration = {.tensors = *contact->worker->oracle->model}};
    sim_contact_say(contact, &message, NULL, 0);
}

static void ask_values(struct sim_contact *contact)
{
    struct pd_message message = {.kind = PD_MESSAGE_VALUES,
                                 .values = {.element_begin = contact->element_begin,
                                            .element_count = contact->element_count}};
    sim_contact_say(contact, &message, contact->worker->initial + contact->element_begin,
                    contact->element_count * sizeof(float));
}

static void ask(struct sim_contact *contact)
{
    struct sim_worker *worker = contact->worker;
    struct pd_message message = {0};

    contact->asked = true;
    switch (contact->request) {
    case SIM_REQUEST_NONE:
        break;
    case SIM_REQUEST_JOIN:
        message.kind = PD_MESSAGE_JOIN;
        snprintf(message.join.name, sizeof message.join.name, "%s", worker->plan->name);
        message.join.nonce = worker->nonce;
        sim_contact_say(contact, &message, NULL, 0);
        break;
    case SIM_REQUEST_REGISTER:
        ask_register(contact);
        break;
    case SIM_REQUEST_VALUES:
        ask_values(contact);
        break;
    case SIM_REQUEST_PUSH:
        ask_push(contact);
        break;
    case SIM_REQUEST_PULL:
        ask_pull(contact, worker->step);
        break;
    case SIM_REQUEST_LEAVE:
        message.kind = PD_MESSAGE_LEAVE;
        message.leave.step = worker->step;
        message.leave.micro_batch = worker->micro_batch;
        sim_ledger_leave(worker->ledger, worker->worker_id, worker->step);
        sim_contact_say(contact, &message, NULL, 0);
        break;
    }
}

/* Open what is closed, ask what is to be asked. A session is taken up again also where nothing is
 * asked at the moment: else the daemon would hold the worker for lost. */
static void advance(struct sim_contact *contact)
{
    bool asks = contact->request != SIM_REQUEST_NONE && !contact->done;
    bool needed = contact->rank == 0 || contact->element_count > 0;

    if (contact->state == SIM_CONTACT_CLOSED && (asks || (contact->worker->joined && needed))) {
        open_contact(contact);
    } else if (contact->state == SIM_CONTACT_READY && asks && !contact->asked) {
        ask(contact);
    }
}

static void finish_request(struct sim_contact *contact)
{
    struct sim_worker *worker = contact->worker;

    contact->done = true;
    worker->progress_us = worker->agenda->now_us;
    for (uint32_t i = 0; i < worker->contact_count; i++) {
        if (worker->contacts[i].request != SIM_REQUEST_NONE && !worker->contacts[i].done) {
            return;
        }
    }
    sim_worker_next_phase(worker);
}

/* ---- Answers ---- */

/* The push counts on this lane: what is left is to get what it makes. */
static void push_accepted(struct sim_contact *contact)
{
    struct sim_worker *worker = contact->worker;
    struct sim_batch *batch =
        sim_ledger_batch(worker->ledger, worker->worker_id, worker->step, worker->estimating,
                         sim_contact_pushed_micro_batch(worker));

    /* What was undone since, the worker is about to be told of. */
    SIM_CHECK(worker->agenda, ((batch->stored_lanes | batch->undone_lanes) >> contact->lane) & 1u,
              "rank %u accepts a push of '%s' that it has not got", contact->rank,
              worker->plan->name);
    batch->acked_lanes |= batch->stored_lanes & 1ull << contact->lane;
}

static void on_welcome(struct sim_contact *contact, const struct pd_welcome *welcome)
{
    struct sim_worker *worker = contact->worker;
    bool before =
        welcome->next_step > worker->step ||
        (welcome->next_step == worker->step && welcome->next_micro_batch > worker->micro_batch);

    SIM_CHECK(worker->agenda, welcome->rank == contact->rank, "rank %u answers for rank %u",
              welcome->rank, contact->rank);
    contact->state = SIM_CONTACT_READY;
    worker->run_id = welcome->run_id;
    worker->lease_ms = welcome->lease_ms;
    if (contact->request == SIM_REQUEST_PUSH && !contact->done && before && !worker->estimating) {
        push_accepted(contact);
        if (!worker->batch.last || !worker->plan->combined) {
            finish_request(contact);
            return;
        }
        contact->asked = true;
        ask_pull(contact, worker->step + 1);
        return;
    }
    if (contact->request == SIM_REQUEST_VALUES && contact->asked_before && welcome->has_version &&
        !contact->done) {
        finish_request(contact);
        return;
    }
    advance(contact);
}

static void on_joined(struct sim_contact *contact, const struct pd_joined *joined)
{
    struct sim_worker *worker = contact->worker;

    SIM_CHECK(worker->agenda, strcmp(joined->name, worker->plan->name) == 0, "'%s' joins as '%s'",
              worker->plan->name, joined->name);
    worker->joined = true;
    worker->worker_id = joined->worker_id;
    worker->token = joined->token;
    worker->accumulation_steps = joined->accumulation_steps;
    finish_request(contact);
}

static void on_registered(struct sim_contact *contact, const struct pd_registered *registered)
{
    struct sim_worker *worker = contact->worker;

    worker->registered = *registered;
    worker->values_needed = registered->values_needed;
    worker->step = registered->step;
    sim_worker_plan_stay(worker);
    worker->micro_batch = 0;
    worker->hessian_micro_batch = 0;
    for (uint32_t lane = 0; lane < registered->lane_count; lane++) {
        const struct sim_rank *rank = sim_rank_at(worker->cluster, registered->lanes[lane].address);
        SIM_CHECK(worker->agenda, rank != NULL && rank->rank == registered->lanes[lane].rank,
                  "lane %u is at no rank's address", lane);
        struct sim_contact *to = sim_contact_of(worker, rank->rank);
        to->lane = lane;
        to->element_begin = registered->lanes[lane].element_begin;
        to->element_count = registered->lanes[lane].element_count;
        free(to->received);
        to->received = sim_alloc(to->element_count, sizeof(float));
    }
    finish_request(contact);
}

static void on_pulled(struct sim_contact *contact, const struct pd_pulled *pulled,
                      uint64_t payload_bytes)
{
    struct sim_worker *worker = contact->worker;
    if (worker->phase == SIM_PHASE_LEAVING) {
        sim_link_drop(contact->link, 0);
        return;
    }
    uint64_t expected_version =
        contact->request == SIM_REQUEST_PUSH ? worker->step + 1 : worker->step;

    SIM_CHECK(worker->agenda,
              sim_ledger_may_give(worker->ledger, pulled->version, expected_version) &&
                  pulled->element_begin == contact->element_begin &&
                  pulled->element_count == contact->element_count &&
                  pulled->dtype == worker->plan->pull_dtype &&
                  payload_bytes ==
                      contact->element_count * pd_dtype_bytes(worker->plan->pull_dtype),
              "rank %u gives '%s' version %" PRIu64 ", it waits for %" PRIu64, contact->rank,
              worker->plan->name, pulled->version, expected_version);
    SIM_CHECK(worker->agenda,
              !pulled->ahead || (worker->plan->ahead && contact->request == SIM_REQUEST_PUSH),
              "'%s' gets parameters ahead of their step, unasked", worker->plan->name);
    if (contact->request == SIM_REQUEST_PUSH && !pulled->ahead) {
        push_accepted(contact);
    }
    contact->pulled = *pulled;
    sim_link_place(contact->link, 0, contact->received, payload_bytes);
}

static bool waits_for_payload(const struct sim_contact *contact)
{
    return contact->request == SIM_REQUEST_PULL || contact->request == SIM_REQUEST_PUSH;
}

/* What was pulled is here: as the oracle has it, unless it was damaged on the way. */
static void take_parameters(struct sim_contact *contact, bool intact)
{
    struct sim_worker *worker = contact->worker;
    char where[PD_NAME_BYTES_MAX + 32];

    if (!intact) {
        ask_pull(contact, contact->pulled.version);
        return;
    }
    snprintf(where, sizeof where, "worker '%s'", worker->plan->name);
    sim_oracle_check(worker->oracle, contact->pulled.version, contact->element_begin,
                     contact->element_count, worker->plan->pull_dtype, contact->received, where);
    finish_request(contact);
}

static void on_payload(void *owner, struct sim_link *link, int side, bool checksum_ok)
{
    struct sim_contact *contact = owner;
    struct sim_worker *worker = contact->worker;
    (void)link;
    (void)side;

    if (worker->phase == SIM_PHASE_LEAVING) {
        return;
    }
    SIM_CHECK(worker->agenda, waits_for_payload(contact) && !contact->done,
              "'%s' gets parameters it did not ask for", worker->plan->name);
    if (contact->pulled.ahead) {
        contact->intact = checksum_ok;
        return;
    }
    take_parameters(contact, checksum_ok);
}

static void on_settled(struct sim_contact *contact, const struct pd_settled *settled)
{
    struct sim_worker *worker = contact->worker;

    if (worker->phase == SIM_PHASE_LEAVING) {
        return;
    }
    SIM_CHECK(worker->agenda,
              contact->request == SIM_REQUEST_PUSH && !contact->done &&
                  (contact->pulled.ahead || settled->again) &&
                  settled->pulled.version == worker->step + 1,
              "'%s' is told that version %" PRIu64 " is settled", worker->plan->name,
              settled->pulled.version);
    worker->voided += !settled->applied;
    contact->pulled.ahead = false;
    if (settled->again) {
        SIM_CHECK(worker->agenda, worker->plan->ahead && !settled->applied,
                  "'%s' is to push again what it can not", worker->plan->name);
        worker->undone++;
        contact->asked = false;
        advance(contact);
        return;
    }
    if (!settled->applied) {
        return;
    }
    worker->applied++;
    push_accepted(contact);
    take_parameters(contact, contact->intact);
}

static void on_pushed(struct sim_contact *contact, const struct pd_pushed *pushed)
{
    struct sim_worker *worker = contact->worker;

    if (worker->phase == SIM_PHASE_LEAVING) {
        return;
    }
    if (contact->done || contact->request != SIM_REQUEST_PUSH || pushed->step != worker->step ||
        pushed->micro_batch != sim_contact_pushed_micro_batch(worker) ||
        pushed->hessian != worker->estimating) {
        worker->duplicates++;
        SIM_CHECK(worker->agenda, pushed->duplicate, "'%s' gets an answer it did not ask for",
                  worker->plan->name);
        return;
    }
    push_accepted(contact);
    finish_request(contact);
}

static void on_error(struct sim_contact *contact, const struct pd_error_message *error)
{
    struct sim_worker *worker = contact->worker;

    sim_trace(worker->agenda, "worker '%s' is refused: %s", worker->plan->name, error->text);
    snprintf(worker->last_error, sizeof worker->last_error, "%s", error->text);
    if (worker->phase == SIM_PHASE_LEAVING && contact->request != SIM_REQUEST_LEAVE) {
        return; /* to the push that it did not wait for */
    }
    if (error->status == PD_ECHECKSUM && !contact->done) {
        contact->asked = false;
        advance(contact);
        return;
    }
    if (error->status == PD_ECHECKSUM && worker->plan->repeat_one_in > 0) {
        return;
    }
    if (error->status == PD_EIDENTITY && contact->request == SIM_REQUEST_JOIN) {
        worker->refusals++;
        contact->asked = false;
        advance_later(contact);
        return;
    }
    if (error->status == PD_EIDENTITY && contact->request == SIM_REQUEST_LEAVE &&
        contact->asked_before) {
        finish_request(contact);
        return;
    }
    if (error->status == PD_EIDENTITY || error->status == PD_ETIMEOUT ||
        error->status == PD_EDRAINING) {
        worker->draining = worker->draining || error->status == PD_EDRAINING;
        sim_worker_told_gone(worker, error->text);
        return;
    }
    worker->refusals++;
    SIM_CHECK(worker->agenda, worker->tolerant, "worker '%s', %s: %s", worker->plan->name,
              sim_phase_name(worker->phase), error->text);
}

static void on_message(void *owner, struct sim_link *link, int side,
                       const struct pd_message *message, uint64_t payload_bytes, bool has_checksum)
{
    struct sim_contact *contact = owner;
    struct sim_worker *worker = contact->worker;
    (void)link;
    (void)side;
    (void)has_checksum;

    switch (message->kind) {
    case PD_MESSAGE_WELCOME:
        on_welcome(contact, &message->welcome);
        break;
    case PD_MESSAGE_JOINED:
        on_joined(contact, &message->joined);
        break;
    case PD_MESSAGE_REGISTERED:
        on_registered(contact, &message->registered);
        break;
    case PD_MESSAGE_VALUES_STORED:
        finish_request(contact);
        break;
    case PD_MESSAGE_PUSHED:
        on_pushed(contact, &message->pushed);
        break;
    case PD_MESSAGE_PULLED:
        on_pulled(contact, &message->pulled, payload_bytes);
        break;
    case PD_MESSAGE_SETTLED:
        on_settled(contact, &message->settled);
        break;
    case PD_MESSAGE_LEFT:
        finish_request(contact);
        break;
    case PD_MESSAGE_ERROR:
        on_error(contact, &message->error);
        break;
    case PD_MESSAGE_DRAINING:
        worker->draining = true;
        break;
    default:
        sim_fail(worker->agenda, "'%s' gets %s", worker->plan->name,
                 pd_message_kind_name(message->kind));
    }
}

static const struct sim_end_calls worker_calls = {
    .asleep_us = sim_contact_asleep_us,
    .opened = on_opened,
    .message = on_message,
    .payload = on_payload,
    .progress = on_progress,
    .sent = on_sent,
    .closed = on_closed,
};
