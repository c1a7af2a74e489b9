#include "tests/simulation/cluster.h"

#include "common/assert.h"
#include "common/heap.h"
#include "server/core/engine_state.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TICK_US 250000u

/* Orders pass through here on their way into the queue of any rank (linked with --wrap). */
void __real_pd_engine_enqueue(struct pd_engine *engine, const struct pd_order *order);
void __wrap_pd_engine_enqueue(struct pd_engine *engine, const struct pd_order *order);

static struct sim_cluster *observed;

static void note_undone(struct sim_rank *rank);

void __wrap_pd_engine_enqueue(struct pd_engine *engine, const struct pd_order *order)
{
    for (uint32_t i = 0; observed != NULL && i < observed->rank_count; i++) {
        struct sim_rank *rank = &observed->ranks[i];
        if (rank->engine == engine && observed->observer.order != NULL) {
            note_undone(rank);
            observed->observer.order(observed->observer.context, rank, order);
        }
    }
    __real_pd_engine_enqueue(engine, order);
}

/* ---- Feeding an engine ---- */

static void carry_out(struct sim_rank *rank, const struct pd_action *action);
static void begin_exit(struct sim_rank *rank);

static void check_version(struct sim_rank *rank)
{
    uint64_t version;
    uint64_t element_begin;
    uint64_t element_count;

    if (pd_engine_parameters(rank->engine, &version, &element_begin, &element_count) == NULL ||
        (rank->has_version && rank->version == version)) {
        return;
    }
    rank->has_version = true;
    rank->version = version;
    if (rank->cluster->observer.version != NULL) {
        rank->cluster->observer.version(rank->cluster->observer.context, rank);
    }
}

/* Whether what is in a slot of the roster is whole, or is at this event, and used up in part. */
static bool is_spent(const struct sim_rank *rank, uint32_t slot, const struct pd_event *event)
{
    const struct pd_worker *worker = &rank->engine->roster->workers[slot];
    bool ends = event->kind == PD_EVENT_PAYLOAD && event->checksum_ok &&
                event->connection == worker->connection &&
                worker->contribution.state == PD_CONTRIBUTION_RECEIVING;

    return worker->present && (ends || worker->contribution.state == PD_CONTRIBUTION_HELD) &&
           pd_contribution_is_spent(&worker->contribution);
}

/* Whether the push that was in a slot before this event is taken back. A worker that leaves without
 * another push is struck off at once. */
static bool is_undone(const struct sim_rank *rank, uint32_t slot)
{
    const struct pd_worker *worker = &rank->engine->roster->workers[slot];
    const struct pd_contribution *contribution = &worker->contribution;

    if (rank->spent[slot] == UINT32_MAX || rank->engine->store.version != rank->spent_step) {
        return false;
    }
    bool gone = !worker->present || worker->id != rank->spent[slot];
    return gone || (contribution->state == PD_CONTRIBUTION_IDLE &&
                    contribution->next_step == contribution->push.step);
}

/* Look which pushes the rank has taken back at this event. */
static void note_undone(struct sim_rank *rank)
{
    const struct sim_observer *observer = &rank->cluster->observer;

    for (uint32_t slot = 0; slot < rank->spent_end && observer->undone != NULL; slot++) {
        if (is_undone(rank, slot)) {
            uint32_t worker_id = rank->spent[slot];
            rank->spent[slot] = UINT32_MAX;
            observer->undone(observer->context, rank, worker_id, rank->spent_step);
        }
    }
}

static void step_engine(struct sim_rank *rank, struct pd_event *event)
{
    const struct pd_roster *roster = rank->engine->roster;

    rank->spent_step = rank->engine->store.version;
    rank->spent_end = rank->engine->foreseen != NULL ? roster->slot_end : 0;
    for (uint32_t slot = 0; slot < rank->spent_end; slot++) {
        rank->spent[slot] = is_spent(rank, slot, event) ? roster->workers[slot].id : UINT32_MAX;
    }
    pd_engine_step(rank->engine, event, &rank->actions);
    note_undone(rank);
}

static void feed(struct sim_rank *rank, struct pd_event *event)
{
    struct sim_agenda *agenda = rank->cluster->agenda;

    if (rank->state != SIM_RANK_RUNNING) {
        return;
    }
    event->now_ms = rank->clock_ms + agenda->now_us / 1000;
    event->entropy = sim_random(agenda);
    pd_actions_reset(&rank->actions);
    size_t allocations = pd_heap_allocations();
    step_engine(rank, event);
    rank->allocations += pd_heap_allocations() - allocations;
    for (size_t i = 0; i < rank->actions.count && rank->state == SIM_RANK_RUNNING; i++) {
        carry_out(rank, &rank->actions.items[i]);
    }
    if (rank->state == SIM_RANK_RUNNING) {
        check_version(rank);
    }
}

static uint64_t asleep_us(void *owner)
{
    const struct sim_rank *rank = owner;
    uint64_t now_us = rank->cluster->agenda->now_us;

    return rank->state == SIM_RANK_RUNNING && rank->wake_us > now_us ? rank->wake_us - now_us : 0;
}

/* ---- Collectives ---- */

/* The collective of the rank whose turn it is: that before it has been carried out. NULL: none. */
static const struct pd_collective *current(const struct sim_rank *rank)
{
    return rank->collectives_moved == rank->collectives_asked
               ? NULL
               : rank->collectives[rank->collectives_moved % SIM_COLLECTIVE_COUNT_MAX].collective;
}

static bool is_world(const struct pd_collective *collective)
{
    return collective->kind == PD_COLLECTIVE_GATHER_DOUBLES;
}

/* Whether `peer` takes part in the current collective of `rank`. */
static bool takes_part(const struct sim_rank *rank, const struct sim_rank *peer)
{
    const struct sim_cluster *cluster = rank->cluster;
    return is_world(current(rank)) ||
           rank->rank % cluster->lane_count == peer->rank % cluster->lane_count;
}

/* Where a rank stands among those that take part. */
static uint32_t place_of(const struct sim_rank *rank, const struct pd_collective *collective)
{
    return is_world(collective) ? rank->rank : rank->rank / rank->cluster->lane_count;
}

static uint32_t replica_count(const struct sim_rank *rank)
{
    return rank->cluster->rank_count / rank->cluster->lane_count;
}

static uint64_t hash(const void *bytes, size_t byte_count)
{
    const uint8_t *from = bytes;
    uint64_t value = 0;

    for (size_t i = 0; i < byte_count; i++) {
        value = sim_mix(value, from[i]);
    }
    return value;
}

/* What the rank gives away: it must stay as it is until the collective is done. */
static uint64_t hash_sent(const struct sim_rank *rank, const struct pd_collective *collective)
{
    const float *floats = collective->send;
    uint64_t value = 0;

    switch (collective->kind) {
    case PD_COLLECTIVE_GATHER_DOUBLES:
        return hash(collective->send, (size_t)collective->send_counts[rank->rank] * sizeof(double));
    case PD_COLLECTIVE_EXCHANGE_FLOATS:
        for (uint32_t i = 0; i < replica_count(rank); i++) {
            value ^= hash(floats + collective->send_offsets[i],
                          (size_t)collective->send_counts[i] * sizeof(float));
        }
        return value;
    case PD_COLLECTIVE_GATHER_FLOATS: {
        uint32_t own = place_of(rank, collective);
        return hash((const float *)collective->receive + collective->receive_offsets[own],
                    (size_t)collective->receive_counts[own] * sizeof(float));
    }
    case PD_COLLECTIVE_BROADCAST_FLOATS:
        break;
    }
    return 0;
}

/* What the rank is to be given is not there yet: whoever reads it too early gets no number. */
static void spoil_received(const struct sim_rank *rank, const struct pd_collective *collective)
{
    bool is_gather = collective->kind == PD_COLLECTIVE_GATHER_FLOATS;
    uint32_t own = place_of(rank, collective);

    if (!is_gather && collective->kind != PD_COLLECTIVE_EXCHANGE_FLOATS) {
        return;
    }
    for (uint32_t i = 0; i < replica_count(rank); i++) {
        if (!is_gather || i != own) {
            memset((float *)collective->receive + collective->receive_offsets[i], 0xff,
                   (size_t)collective->receive_counts[i] * sizeof(float));
        }
    }
}

/* Copy what `from` gives to `to`. */
static void move_between(const struct sim_rank *to, const struct sim_rank *from)
{
    const struct pd_collective *out = current(from);
    const struct pd_collective *in = current(to);
    struct sim_agenda *agenda = to->cluster->agenda;
    uint32_t from_place = place_of(from, out);
    uint32_t to_place = place_of(to, in);
    float *floats = in->receive;

    switch (in->kind) {
    case PD_COLLECTIVE_GATHER_DOUBLES:
        SIM_CHECK(agenda, out->send_counts[from_place] == in->receive_counts[from_place],
                  "rank %u gives %d doubles, rank %u awaits %d", from->rank,
                  out->send_counts[from_place], to->rank, in->receive_counts[from_place]);
        memcpy((double *)in->receive + in->receive_offsets[from_place], out->send,
               (size_t)out->send_counts[from_place] * sizeof(double));
        break;
    case PD_COLLECTIVE_EXCHANGE_FLOATS:
        SIM_CHECK(agenda, out->send_counts[to_place] == in->receive_counts[from_place],
                  "rank %u gives %d floats, rank %u awaits %d", from->rank,
                  out->send_counts[to_place], to->rank, in->receive_counts[from_place]);
        memcpy(floats + in->receive_offsets[from_place],
               (const float *)out->send + out->send_offsets[to_place],
               (size_t)in->receive_counts[from_place] * sizeof(float));
        break;
    case PD_COLLECTIVE_GATHER_FLOATS:
        SIM_CHECK(agenda,
                  out->receive_counts[from_place] == in->receive_counts[from_place] &&
                      out->receive_offsets[from_place] == in->receive_offsets[from_place],
                  "ranks %u and %u disagree on the part of rank %u", from->rank, to->rank,
                  from->rank);
        if (to != from) {
            memcpy(floats + in->receive_offsets[from_place],
                   (const float *)out->receive + in->receive_offsets[from_place],
                   (size_t)in->receive_counts[from_place] * sizeof(float));
        }
        break;
    case PD_COLLECTIVE_BROADCAST_FLOATS:
        SIM_CHECK(agenda, out->root == in->root && out->receive_counts[0] == in->receive_counts[0],
                  "ranks %u and %u disagree on a broadcast", from->rank, to->rank);
        if (to != from && from_place == (uint32_t)in->root) {
            memcpy(floats, out->receive, (size_t)in->receive_counts[0] * sizeof(float));
        }
        break;
    }
}

/* The rank hears that the first of its collectives is done. */
static void collective_done(void *context, uint64_t argument)
{
    struct sim_rank *rank = context;
    struct pd_event event = {.kind = PD_EVENT_COLLECTIVE};
    (void)argument;

    if (rank->state != SIM_RANK_RUNNING) {
        return;
    }
    if (asleep_us(rank) > 0) {
        sim_after(rank->cluster->agenda, asleep_us(rank), collective_done, rank, 0);
        return;
    }
    const struct sim_collective *done =
        &rank->collectives[rank->collectives_done % SIM_COLLECTIVE_COUNT_MAX];
    SIM_CHECK(rank->cluster->agenda, hash_sent(rank, done->collective) == done->sent_hash,
              "rank %u changed what it was giving to a collective", rank->rank);
    rank->collectives_done++;
    feed(rank, &event);
}

/* Whether everybody that the current collective of `rank` needs has come to it. */
static bool all_are_in(const struct sim_rank *rank)
{
    const struct sim_cluster *cluster = rank->cluster;

    for (uint32_t i = 0; i < cluster->rank_count; i++) {
        const struct sim_rank *peer = &cluster->ranks[i];
        if (takes_part(rank, peer) && (peer->state != SIM_RANK_RUNNING || current(peer) == NULL ||
                                       is_world(current(peer)) != is_world(current(rank)))) {
            return false;
        }
    }
    return true;
}

static void move_all(const struct sim_rank *rank)
{
    const struct sim_cluster *cluster = rank->cluster;

    for (uint32_t i = 0; i < cluster->rank_count; i++) {
        const struct sim_rank *peer = &cluster->ranks[i];
        if (!takes_part(rank, peer)) {
            continue;
        }
        SIM_CHECK(cluster->agenda,
                  current(peer)->order_index == current(rank)->order_index &&
                      current(peer)->kind == current(rank)->kind,
                  "collective %d of order %" PRIu64 " on rank %u meets %d of order %" PRIu64
                  " on rank %u",
                  (int)current(rank)->kind, current(rank)->order_index, rank->rank,
                  (int)current(peer)->kind, current(peer)->order_index, peer->rank);
        for (uint32_t j = 0; j < cluster->rank_count; j++) {
            if (takes_part(rank, &cluster->ranks[j])) {
                move_between(peer, &cluster->ranks[j]);
            }
        }
    }
}

/* Carry out the current collective of `rank`, and those of all that can go on then. */
static void try_collective(struct sim_rank *rank)
{
    struct sim_cluster *cluster = rank->cluster;
    bool took_part[PD_RANK_COUNT_MAX] = {false};

    if (current(rank) == NULL || !all_are_in(rank)) {
        return;
    }
    move_all(rank);
    for (uint32_t i = 0; i < cluster->rank_count; i++) {
        took_part[i] = takes_part(rank, &cluster->ranks[i]);
    }
    for (uint32_t i = 0; i < cluster->rank_count; i++) {
        struct sim_rank *peer = &cluster->ranks[i];
        if (took_part[i]) {
            peer->collectives_moved++;
            peer->collective_us = cluster->agenda->now_us;
            sim_after(cluster->agenda,
                      1 + sim_below(cluster->agenda, peer->slow * cluster->collective_us_max),
                      collective_done, peer, 0);
        }
    }
    for (uint32_t i = 0; i < cluster->rank_count; i++) {
        if (took_part[i]) {
            try_collective(&cluster->ranks[i]);
        }
    }
}

static void enter_collective(struct sim_rank *rank, const struct pd_collective *collective)
{
    uint64_t at_once = rank->collectives_asked - rank->collectives_done + 1;

    SIM_CHECK(rank->cluster->agenda, at_once <= SIM_COLLECTIVE_COUNT_MAX,
              "rank %u has %" PRIu64 " collectives under way", rank->rank, at_once);
    sim_trace(rank->cluster->agenda, "rank %u enters collective %d of order %" PRIu64, rank->rank,
              (int)collective->kind, collective->order_index);
    if (current(rank) == NULL) {
        rank->collective_us = rank->cluster->agenda->now_us;
    }
    rank->collectives_at_once =
        at_once > rank->collectives_at_once ? at_once : rank->collectives_at_once;
    rank->collectives[rank->collectives_asked++ % SIM_COLLECTIVE_COUNT_MAX] =
        (struct sim_collective){collective, hash_sent(rank, collective)};
    spoil_received(rank, collective);
    try_collective(rank);
}

/* ---- Actions ---- */

static void on_work(void *context, uint64_t argument)
{
    struct sim_rank *rank = context;
    struct pd_event event = {.kind = PD_EVENT_WORK};
    (void)argument;

    if (asleep_us(rank) > 0) {
        sim_after(rank->cluster->agenda, asleep_us(rank), on_work, rank, 0);
        return;
    }
    rank->work_asked = false;
    feed(rank, &event);
}

static void end_rank(struct sim_rank *rank, enum sim_rank_state state, const char *text)
{
    struct sim_cluster *cluster = rank->cluster;

    rank->state = state;
    snprintf(rank->end_text, sizeof rank->end_text, "%s", text);
    sim_trace(cluster->agenda, "rank %u ends: %s", rank->rank, text);
    for (uint32_t id = 0; id < SIM_CONNECTION_COUNT_MAX; id++) {
        if (rank->links[id] == NULL) {
            continue;
        }
        if (state == SIM_RANK_EXITED) {
            rank->links[id]->ends[rank->sides[id]].gone = true;
            sim_link_close(rank->links[id], rank->sides[id], true);
        } else {
            sim_link_die(rank->links[id], rank->sides[id]);
        }
    }
    if (cluster->observer.ended != NULL) {
        cluster->observer.ended(cluster->observer.context, rank);
    }
}

static void begin_exit(struct sim_rank *rank)
{
    SIM_CHECK(rank->cluster->agenda, rank->collectives_done == rank->collectives_asked,
              "rank %u exits inside a collective", rank->rank);
    end_rank(rank, SIM_RANK_EXITED, rank->last_log);
}

static void carry_out(struct sim_rank *rank, const struct pd_action *action)
{
    struct sim_agenda *agenda = rank->cluster->agenda;
    struct sim_link *link = rank->links[action->connection];
    int side = rank->sides[action->connection];
    const char *text = "";

    if (action->kind == PD_ACTION_LOG || action->kind == PD_ACTION_ABORT) {
        text = (const char *)pd_actions_bytes(&rank->actions, action->text_offset);
    }
    switch (action->kind) {
    case PD_ACTION_SEND:
        SIM_CHECK(agenda, link != NULL, "rank %u sends on a closed connection", rank->rank);
        sim_link_send(link, side, pd_actions_bytes(&rank->actions, action->frame_offset),
                      action->frame_bytes, action->payload, action->payload_dtype,
                      action->payload_bytes, action->payload_ready, action->checksum);
        break;
    case PD_ACTION_RELEASE:
        SIM_CHECK(agenda, link != NULL, "rank %u sends on a closed connection", rank->rank);
        sim_link_release(link, side, action->payload_ready);
        break;
    case PD_ACTION_PLACE:
        SIM_CHECK(agenda, link != NULL, "rank %u places on a closed connection", rank->rank);
        sim_link_place(link, side, action->destination, action->place_bytes);
        break;
    case PD_ACTION_DROP:
        SIM_CHECK(agenda, link != NULL, "rank %u drops on a closed connection", rank->rank);
        sim_link_drop(link, side);
        break;
    case PD_ACTION_CLOSE:
        SIM_CHECK(agenda, link != NULL, "rank %u closes a closed connection", rank->rank);
        sim_link_close(link, side, action->flush);
        break;
    case PD_ACTION_COLLECTIVE:
        enter_collective(rank, action->collective);
        break;
    case PD_ACTION_WORK:
        SIM_CHECK(agenda, !rank->work_asked, "rank %u asks for work twice", rank->rank);
        rank->work_asked = true;
        sim_after(agenda, 1 + sim_below(agenda, rank->slow * rank->cluster->work_us_max), on_work,
                  rank, 0);
        break;
    case PD_ACTION_LOG:
        snprintf(rank->last_log, sizeof rank->last_log, "%s", text);
        sim_trace(agenda, "rank %u says: %s", rank->rank, text);
        break;
    case PD_ACTION_READY:
        rank->ready = true;
        break;
    case PD_ACTION_EXIT:
        SIM_CHECK(agenda, action->exit_code == 0, "rank %u exits with %d", rank->rank,
                  action->exit_code);
        begin_exit(rank);
        break;
    case PD_ACTION_ABORT:
        end_rank(rank, SIM_RANK_ABORTED, text);
        break;
    }
}

/* ---- What the network tells ---- */

static bool on_opened(void *owner, struct sim_link *link, int side)
{
    struct sim_rank *rank = owner;

    if (rank->state != SIM_RANK_RUNNING || rank->free_count == 0) {
        return false;
    }
    uint32_t id = rank->free_ids[--rank->free_count];
    char peer[32];
    struct pd_event event = {
        .kind = PD_EVENT_OPENED, .connection = id, .outgoing = side == 0, .peer = peer};
    snprintf(peer, sizeof peer, "peer:%" PRIu64, link->number);
    link->ends[side].id = id;
    rank->links[id] = link;
    rank->sides[id] = side;
    feed(rank, &event);
    return true;
}

static void on_message(void *owner, struct sim_link *link, int side,
                       const struct pd_message *message, uint64_t payload_bytes, bool has_checksum)
{
    struct sim_rank *rank = owner;
    uint32_t id = link->ends[side].id;
    struct pd_event event = {.kind = PD_EVENT_MESSAGE,
                             .connection = link->ends[side].id,
                             .message = message,
                             .payload_bytes = payload_bytes,
                             .has_checksum = has_checksum};

    rank->pushing[id] = message->kind == PD_MESSAGE_PUSH || message->kind == PD_MESSAGE_HESSIAN;
    if (rank->pushing[id]) {
        rank->pushes[id] = message->push;
    }
    feed(rank, &event);
}

static void on_payload(void *owner, struct sim_link *link, int side, bool checksum_ok)
{
    struct sim_rank *rank = owner;
    const struct sim_observer *observer = &rank->cluster->observer;
    uint32_t id = link->ends[side].id;
    struct pd_event event = {
        .kind = PD_EVENT_PAYLOAD, .connection = id, .checksum_ok = checksum_ok};

    if (rank->state == SIM_RANK_RUNNING && checksum_ok && rank->pushing[id] &&
        link->ways[1 - side].destination != NULL && observer->stored != NULL) {
        observer->stored(observer->context, rank, rank->engine->sessions[id].worker_id,
                         &rank->pushes[id]);
    }
    rank->pushing[id] = false;
    feed(rank, &event);
}

static void on_progress(void *owner, struct sim_link *link, int side, bool received,
                        uint64_t payload_bytes)
{
    struct pd_event event = {.kind = PD_EVENT_PROGRESS,
                             .connection = link->ends[side].id,
                             .received = received,
                             .payload_bytes = payload_bytes};
    feed(owner, &event);
}

static void on_sent(void *owner, struct sim_link *link, int side)
{
    struct pd_event event = {.kind = PD_EVENT_SENT, .connection = link->ends[side].id};
    feed(owner, &event);
}

static void on_closed(void *owner, struct sim_link *link, int side, const char *why)
{
    struct sim_rank *rank = owner;
    uint32_t id = link->ends[side].id;
    struct pd_error error = {.status = PD_ECONNECTION};
    struct pd_event event = {.kind = PD_EVENT_CLOSED, .connection = id, .error = &error};

    if (!link->ends[side].open) { /* the opener's try failed */
        SIM_CHECK(rank->cluster->agenda, rank->state != SIM_RANK_RUNNING || side == 1,
                  "rank %u could not link to rank 0", rank->rank);
        return;
    }
    snprintf(error.message, sizeof error.message, "%s", why);
    rank->links[id] = NULL;
    feed(rank, &event);
    rank->free_ids[rank->free_count++] = id;
}

static const struct sim_end_calls rank_calls = {
    .asleep_us = asleep_us,
    .opened = on_opened,
    .message = on_message,
    .payload = on_payload,
    .progress = on_progress,
    .sent = on_sent,
    .closed = on_closed,
};

struct sim_end sim_rank_end(struct sim_rank *rank)
{
    return (struct sim_end){.calls = &rank_calls, .owner = rank};
}

struct sim_rank *sim_rank_at(struct sim_cluster *cluster, const char *address)
{
    for (uint32_t i = 0; i < cluster->rank_count; i++) {
        if (strcmp(cluster->addresses[i], address) == 0) {
            return &cluster->ranks[i];
        }
    }
    return NULL;
}

/* ---- Life ---- */

static void init_rank(struct sim_cluster *cluster, uint32_t number, uint64_t run_id,
                      uint64_t secret)
{
    struct sim_rank *rank = &cluster->ranks[number];
    struct pd_error error = {0};

    rank->cluster = cluster;
    rank->rank = number;
    rank->slow = sim_chance(cluster->agenda, 5) ? sim_between(cluster->agenda, 2, 200) : 1;
    rank->topology.rank = number;
    rank->topology.rank_count = cluster->rank_count;
    rank->topology.run_id = run_id;
    rank->topology.secret = secret;
    for (uint32_t i = 0; i < cluster->rank_count; i++) {
        rank->topology.addresses[i] = cluster->addresses[i];
        rank->topology.hosts[i] = cluster->hosts[i];
    }
    rank->clock_ms = sim_between(cluster->agenda, 1, 1000000000);
    for (uint32_t i = 0; i < SIM_CONNECTION_COUNT_MAX; i++) {
        rank->free_ids[i] = SIM_CONNECTION_COUNT_MAX - 1 - i;
    }
    rank->free_count = SIM_CONNECTION_COUNT_MAX;
    pd_actions_init(&rank->actions);
    if (pd_engine_create(&rank->engine, cluster->config, &rank->topology, &error) != PD_OK) {
        sim_fail(cluster->agenda, "rank %u: %s", number, error.message);
    }
}

void sim_cluster_init(struct sim_cluster *cluster, struct sim_agenda *agenda,
                      struct sim_network *network, const struct pd_config *config,
                      uint32_t rank_count)
{
    struct pd_error error = {0};

    memset(cluster, 0, sizeof *cluster);
    cluster->agenda = agenda;
    cluster->network = network;
    cluster->config = config;
    cluster->rank_count = rank_count;
    cluster->work_us_max = 200;
    cluster->collective_us_max = 500;
    if (pd_config_lanes(config, rank_count, &cluster->lane_count, &error) != PD_OK) {
        sim_fail(agenda, "%s", error.message);
    }
    cluster->ranks = sim_alloc(rank_count, sizeof *cluster->ranks);
    for (uint32_t i = 0; i < rank_count; i++) {
        snprintf(cluster->addresses[i], sizeof cluster->addresses[i], "10.0.0.%u:7070", i + 1);
        snprintf(cluster->hosts[i], sizeof cluster->hosts[i], "host%u", i / 2);
    }
    uint64_t run_id = sim_random(agenda);
    uint64_t secret = sim_random(agenda);
    for (uint32_t i = 0; i < rank_count; i++) {
        init_rank(cluster, i, run_id, secret);
    }
    observed = cluster;
}

void sim_cluster_finish(struct sim_cluster *cluster)
{
    observed = NULL;
    for (uint32_t i = 0; i < cluster->rank_count; i++) {
        pd_engine_destroy(cluster->ranks[i].engine);
        pd_actions_finish(&cluster->ranks[i].actions);
    }
    free(cluster->ranks);
    memset(cluster, 0, sizeof *cluster);
}

/* The loop ends the job when a collective is stuck: so does its stand-in. */
static void watch_collective(struct sim_rank *rank)
{
    uint64_t limit_us = (uint64_t)(rank->cluster->config->rank_timeout_s * 1e6);

    if (current(rank) != NULL && rank->cluster->agenda->now_us - rank->collective_us > limit_us) {
        end_rank(rank, SIM_RANK_ABORTED, "a collective is stuck");
    }
}

static void on_tick(void *context, uint64_t argument)
{
    struct sim_rank *rank = context;
    struct pd_event event = {.kind = PD_EVENT_TICK};
    (void)argument;

    if (rank->state != SIM_RANK_RUNNING) {
        return;
    }
    if (asleep_us(rank) > 0) {
        sim_after(rank->cluster->agenda, asleep_us(rank), on_tick, rank, 0);
        return;
    }
    watch_collective(rank);
    feed(rank, &event);
    sim_after(rank->cluster->agenda, TICK_US, on_tick, rank, 0);
}

static void link_up(void *context, uint64_t argument)
{
    struct sim_rank *rank = context;
    struct sim_end opener = {.calls = &rank_calls, .owner = rank};
    struct sim_end acceptor = sim_rank_end(&rank->cluster->ranks[0]);
    (void)argument;

    sim_connect(rank->cluster->network, &opener, &acceptor, false);
}

void sim_cluster_start(struct sim_cluster *cluster)
{
    for (uint32_t i = 0; i < cluster->rank_count; i++) {
        sim_after(cluster->agenda, sim_below(cluster->agenda, TICK_US), on_tick, &cluster->ranks[i],
                  0);
        if (i > 0) {
            sim_after(cluster->agenda, sim_below(cluster->agenda, 3 * TICK_US), link_up,
                      &cluster->ranks[i], 0);
        }
    }
}

void sim_rank_kill(struct sim_rank *rank)
{
    if (rank->state == SIM_RANK_RUNNING) {
        end_rank(rank, SIM_RANK_KILLED, "killed");
    }
}

void sim_rank_stop(struct sim_rank *rank, uint64_t duration_us)
{
    sim_trace(rank->cluster->agenda, "rank %u is stopped", rank->rank);
    rank->wake_us = rank->cluster->agenda->now_us + duration_us;
}

void sim_rank_drain(struct sim_rank *rank, const char *text)
{
    struct pd_event event = {.kind = PD_EVENT_DRAIN, .text = text};
    feed(rank, &event);
}

uint32_t sim_cluster_count(const struct sim_cluster *cluster, enum sim_rank_state state)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < cluster->rank_count; i++) {
        count += cluster->ranks[i].state == state;
    }
    return count;
}

void sim_cluster_check_orders(const struct sim_cluster *cluster)
{
    const struct pd_engine *first = cluster->ranks[0].engine;

    for (uint32_t i = 1; i < cluster->rank_count; i++) {
        const struct pd_engine *engine = cluster->ranks[i].engine;
        SIM_CHECK(cluster->agenda,
                  pd_engine_orders_executed(engine) == pd_engine_orders_executed(first),
                  "rank %u has executed %" PRIu64 " orders, rank 0 %" PRIu64, i,
                  pd_engine_orders_executed(engine), pd_engine_orders_executed(first));
        SIM_CHECK(cluster->agenda, pd_engine_order_hash(engine) == pd_engine_order_hash(first),
                  "rank %u has executed other orders than rank 0", i);
    }
}
