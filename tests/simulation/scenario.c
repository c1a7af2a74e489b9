#include "tests/simulation/scenario.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATIENCE_US 120000000u

struct scenario *scenario_create(uint64_t seed, uint32_t rank_count, uint32_t worker_count,
                                 uint64_t steps, const char *config)
{
    struct scenario *scenario = sim_alloc(1, sizeof *scenario);
    sim_plan_init_calm(&scenario->plan, seed, rank_count, worker_count, steps, config);
    return scenario;
}

void scenario_start(struct scenario *scenario)
{
    sim_simulation_init(&scenario->simulation, &scenario->plan);
}

void scenario_destroy(struct scenario *scenario)
{
    sim_simulation_finish(&scenario->simulation);
    sim_plan_finish(&scenario->plan);
    free(scenario);
}

void scenario_finish(struct scenario *scenario)
{
    sim_simulation_run(&scenario->simulation);
    scenario_destroy(scenario);
}

static void next(struct scenario *scenario, uint64_t limit_us, const char *what)
{
    struct sim_agenda *agenda = &scenario->simulation.agenda;

    SIM_CHECK(agenda, sim_agenda_next(agenda) && agenda->now_us < limit_us, "never reached: %s",
              what);
}

void scenario_run_to(struct scenario *scenario, uint32_t worker, enum sim_phase phase,
                     uint64_t step)
{
    const struct sim_worker *followed = &scenario->simulation.workers[worker];
    uint64_t limit_us = scenario->simulation.agenda.now_us + PATIENCE_US;

    while (followed->phase != phase || followed->step != step) {
        next(scenario, limit_us, sim_phase_name(phase));
    }
}

void scenario_run_to_step(struct scenario *scenario, uint64_t step)
{
    uint64_t limit_us = scenario->simulation.agenda.now_us + PATIENCE_US;

    while (scenario_steps(scenario) < step) {
        next(scenario, limit_us, "the step");
    }
}

void scenario_run_for(struct scenario *scenario, uint64_t duration_us)
{
    sim_simulation_run_until(&scenario->simulation,
                             scenario->simulation.agenda.now_us + duration_us);
}

static uint32_t count_of(const struct scenario *scenario, const char *name, bool hessian)
{
    const struct sim_ledger *ledger = &scenario->simulation.ledger;
    uint32_t count = 0;

    for (size_t i = 0; i < ledger->contribution_count; i++) {
        for (size_t k = 0; k < ledger->member_count; k++) {
            count += ledger->contributions[i].counted &&
                     ledger->contributions[i].hessian == hessian &&
                     ledger->members[k].id == ledger->contributions[i].worker_id &&
                     strcmp(ledger->members[k].name, name) == 0;
        }
    }
    return count;
}

uint32_t scenario_counted(const struct scenario *scenario, const char *name)
{
    return count_of(scenario, name, false);
}

uint32_t scenario_estimates(const struct scenario *scenario, const char *name)
{
    return count_of(scenario, name, true);
}

uint64_t scenario_steps(const struct scenario *scenario)
{
    return scenario->simulation.ledger.steps_closed;
}

const char *scenario_ask(struct scenario *scenario, const char *command, const char *target,
                         const double *value)
{
    struct sim_simulation *simulation = &scenario->simulation;
    struct sim_command *asked = &scenario->plan.commands[simulation->caller_count];
    uint64_t limit_us = simulation->agenda.now_us + PATIENCE_US;

    snprintf(asked->command, sizeof asked->command, "%s", command);
    snprintf(asked->target, sizeof asked->target, "%s", target);
    asked->has_value = value != NULL;
    asked->value = value != NULL ? *value : 0.0;
    const struct sim_caller *caller = sim_simulation_call(simulation, asked);
    while (!caller->done) {
        next(scenario, limit_us, command);
    }
    return caller->reply != NULL ? caller->reply : caller->error;
}

/* ---- A peer without manners ---- */

static uint64_t peer_asleep_us(void *owner)
{
    (void)owner;
    return 0;
}

static bool peer_opened(void *owner, struct sim_link *link, int side)
{
    struct scenario_peer *peer = owner;
    (void)side;

    peer->link = link;
    peer->opened = true;
    return true;
}

static void peer_message(void *owner, struct sim_link *link, int side,
                         const struct pd_message *message, uint64_t payload_bytes,
                         bool has_checksum)
{
    struct scenario_peer *peer = owner;
    (void)has_checksum;

    peer->kind = message->kind;
    peer->answer_count++;
    if (message->kind == PD_MESSAGE_ERROR) {
        peer->status = (enum pd_status)message->error.status;
        snprintf(peer->text, sizeof peer->text, "%s", message->error.text);
    } else if (message->kind == PD_MESSAGE_JOINED) {
        peer->joined = message->joined;
    } else if (message->kind == PD_MESSAGE_WELCOME) {
        peer->welcome = message->welcome;
    }
    if (payload_bytes > 0 && !peer->stalls) {
        free(peer->payload);
        peer->payload = sim_alloc(payload_bytes, 1);
        sim_link_place(link, side, peer->payload, payload_bytes);
    }
}

static void peer_payload(void *owner, struct sim_link *link, int side, bool checksum_ok)
{
    (void)owner;
    (void)link;
    (void)side;
    (void)checksum_ok;
}

static void peer_progress(void *owner, struct sim_link *link, int side, bool received,
                          uint64_t payload_bytes)
{
    (void)payload_bytes;
    (void)owner;
    (void)link;
    (void)side;
    (void)received;
}

static void peer_sent(void *owner, struct sim_link *link, int side)
{
    (void)owner;
    (void)link;
    (void)side;
}

static void peer_closed(void *owner, struct sim_link *link, int side, const char *why)
{
    struct scenario_peer *peer = owner;
    (void)link;
    (void)side;
    (void)why;
    peer->closed = true;
}

static const struct sim_end_calls peer_calls = {
    .asleep_us = peer_asleep_us,
    .opened = peer_opened,
    .message = peer_message,
    .payload = peer_payload,
    .progress = peer_progress,
    .sent = peer_sent,
    .closed = peer_closed,
};

void scenario_peer_ask(struct scenario *scenario, struct scenario_peer *peer,
                       const struct pd_message *message, const void *payload,
                       uint64_t payload_bytes)
{
    uint32_t answer_count = peer->answer_count;
    uint64_t limit_us = scenario->simulation.agenda.now_us + PATIENCE_US;

    sim_link_say(peer->link, 0, message, payload, payload_bytes, true);
    while (peer->answer_count == answer_count && !peer->closed) {
        next(scenario, limit_us, "an answer");
    }
}

struct scenario_peer *scenario_peer_create(struct scenario *scenario, uint32_t rank, bool greets)
{
    struct scenario_peer *peer = sim_alloc(1, sizeof *peer);
    struct sim_end opener = {.calls = &peer_calls, .owner = peer};
    struct sim_end acceptor = sim_rank_end(&scenario->simulation.cluster.ranks[rank]);
    uint64_t limit_us = scenario->simulation.agenda.now_us + PATIENCE_US;

    peer->simulation = &scenario->simulation;
    peer->link = sim_connect(&scenario->simulation.network, &opener, &acceptor, false);
    peer->link->lazy = true;
    while (!peer->opened) {
        next(scenario, limit_us, "a connection");
    }
    if (greets) {
        struct pd_message hello = {.kind = PD_MESSAGE_HELLO};
        scenario_peer_ask(scenario, peer, &hello, NULL, 0);
    }
    return peer;
}

void scenario_peer_destroy(struct scenario_peer *peer)
{
    if (!peer->closed) {
        sim_link_die(peer->link, 0);
    }
    free(peer->payload);
    free(peer);
}
