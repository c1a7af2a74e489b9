#include "server/core/engine.h"

#include "common/assert.h"
#include "common/heap.h"
#include "server/core/engine_state.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Beats between ranks, and the gap between two ticks after which this rank has itself been stopped.
 */
#define BEAT_MS 1000u
#define STOPPED_MS 2000u

/* ---- What the parts ask for ---- */

void pd_engine_want_work(struct pd_engine *engine)
{
    if (!engine->work_asked) {
        engine->work_asked = true;
        pd_actions_simple(engine->actions, PD_ACTION_WORK);
    }
}

void pd_engine_abort(struct pd_engine *engine, const char *format, ...)
{
    char text[2 * PD_ERROR_BYTES_MAX];
    va_list arguments;

    if (engine->exiting) {
        return;
    }
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    engine->exiting = true;
    pd_actions_abort(engine->actions, "%s", text);
}

void pd_engine_send(struct pd_engine *engine, pd_connection_id connection,
                    const struct pd_message *message)
{
    const struct pd_session *session = &engine->sessions[connection];

    if (session->state != PD_SESSION_NONE && session->state != PD_SESSION_CLOSING) {
        pd_actions_send(engine->actions, connection, message, NULL, 0, session->checksum);
    }
}

void pd_engine_report(struct pd_engine *engine, const struct pd_report *report)
{
    if (engine->exiting) {
        return;
    }
    if (engine->leader != NULL) {
        pd_leader_report(engine, 0, report);
        return;
    }
    struct pd_message message;
    message.kind = PD_MESSAGE_REPORT;
    message.report = *report;
    pd_engine_send(engine, engine->leader_connection, &message);
}

/* ---- The queue of orders ---- */

static bool queue_grow(struct pd_order_queue *queue)
{
    size_t capacity = queue->capacity == 0 ? 16 : 2 * queue->capacity;
    struct pd_order **items = pd_heap_zalloc(capacity, sizeof *items);
    struct pd_order **spare = pd_heap_zalloc(capacity, sizeof *spare);

    PD_ASSERT(queue->count <= queue->capacity);
    if (items == NULL || spare == NULL) {
        pd_heap_free(items);
        pd_heap_free(spare);
        return false;
    }
    for (size_t i = 0; i < queue->count; i++) {
        items[i] = queue->items[(queue->begin + i) % queue->capacity];
    }
    for (size_t i = 0; i < queue->spare_count; i++) {
        spare[i] = queue->spare[i];
    }
    pd_heap_free(queue->items);
    pd_heap_free(queue->spare);
    queue->items = items;
    queue->spare = spare;
    queue->capacity = capacity;
    queue->begin = 0;
    return true;
}

void pd_engine_enqueue(struct pd_engine *engine, const struct pd_order *order)
{
    struct pd_order_queue *queue = &engine->queue;
    struct pd_error error;
    struct pd_order *copy;

    if (queue->count == queue->capacity && !queue_grow(queue)) {
        pd_engine_abort(engine, "out of memory for %zu orders", queue->count + 1);
        return;
    }
    if (queue->spare_count > 0) {
        copy = queue->spare[--queue->spare_count];
    } else {
        copy = pd_heap_zalloc(1, sizeof *copy);
    }
    if (copy == NULL) {
        pd_engine_abort(engine, "out of memory for an order");
        return;
    }
    pd_order_copy(copy, order);
    if (order->tensors.count > 0 &&
        pd_tensor_list_copy(&copy->tensors, &order->tensors, &error) != PD_OK) {
        pd_heap_free(copy);
        pd_engine_abort(engine, "order %" PRIu64 ": %s", order->index, error.message);
        return;
    }
    queue->items[(queue->begin + queue->count) % queue->capacity] = copy;
    queue->count++;
}

void pd_engine_recycle(struct pd_engine *engine, struct pd_order *order)
{
    struct pd_order_queue *queue = &engine->queue;

    pd_tensor_list_finish(&order->tensors);
    if (queue->spare_count < queue->capacity) {
        queue->spare[queue->spare_count++] = order;
    } else {
        pd_heap_free(order);
    }
}

static void hash_order(struct pd_engine *engine, const struct pd_order *order)
{
    const uint64_t numbers[] = {
        order->index,     order->kind, order->step,           order->token, order->replica,
        order->worker_id, order->skip, order->optimizer_step, order->trial, order->samples};
    uint64_t hash = pd_checksum_add(engine->order_hash, numbers, sizeof numbers);

    hash = pd_checksum_add(hash, order->contributors,
                           order->contributor_count * sizeof order->contributors[0]);
    hash =
        pd_checksum_add(hash, order->weights, order->contributor_count * sizeof order->weights[0]);
    hash = pd_checksum_add(hash, order->lrs, order->lr_count * sizeof order->lrs[0]);
    hash = pd_checksum_add(hash, order->momenta, order->momentum_count * sizeof order->momenta[0]);
    engine->order_hash = pd_checksum_add(hash, order->absent.bytes, order->absent.byte_count);
}

/* ---- Carrying out orders ---- */

static void carry_out_join(struct pd_engine *engine, const struct pd_order *order)
{
    (void)pd_roster_add(engine->roster, order);
}

/* A worker that left may go on as a guest; an evicted one, or one in the middle of sending, may
 * not. */
static void part_session(struct pd_engine *engine, struct pd_worker *worker,
                         const struct pd_order *order)
{
    pd_connection_id connection = worker->connection;
    struct pd_session *session = &engine->sessions[connection];
    bool idle = session->payload == PD_SESSION_PAYLOAD_NONE && !session->push_parked;
    struct pd_error error = {0};

    if (session->payload == PD_SESSION_PAYLOAD_PUSH) {
        pd_contribution_drop_payload(pd_roster_contribution(worker, session->push.hessian));
    }
    worker->connection = PD_CONNECTION_NONE;
    if (order->reason[0] == '\0' && idle) {
        session->state = PD_SESSION_GUEST;
        session->left = true;
        session->host_workers = 0;
    } else {
        pd_error_set(&error, PD_EIDENTITY, "worker %u '%s' is gone since step %" PRIu64 ": %s",
                     worker->id, worker->name, order->step,
                     order->reason[0] != '\0' ? order->reason : "it left while it was sending");
        pd_session_refuse(engine, connection, &error, true);
    }
    pd_session_count_host(engine, session->host);
}

/* No push of the worker is accepted after this. One that had left may be struck off by a second
 * order, which means nothing to ranks that it had pushed nothing to. */
static void carry_out_depart(struct pd_engine *engine, const struct pd_order *order)
{
    struct pd_worker *worker = pd_roster_find(engine->roster, order->worker_id);

    if (worker == NULL) {
        return;
    }
    pd_ahead_lose(engine, worker);
    if (worker->connection != PD_CONNECTION_NONE) {
        part_session(engine, worker, order);
    }
    if (order->reason[0] != '\0') {
        pd_roster_remove(engine->roster, worker, order->reason);
    } else {
        pd_roster_leave(engine->roster, worker, engine->store.version);
    }
}

static enum pd_status adopt_model(struct pd_engine *engine, const struct pd_tensor_list *model,
                                  struct pd_error *error)
{
    enum pd_status status = pd_tensor_list_copy(&engine->model, model, error);
    if (status != PD_OK) {
        return status;
    }
    status =
        pd_shard_plan_create(&engine->plan, &engine->model, (uint32_t)engine->config->block_size,
                             engine->topology->rank_count, engine->lane_count, error);
    if (status != PD_OK) {
        goto fail_model;
    }
    status = pd_staging_init(
        &engine->roster->staging, engine->config, engine->plan,
        engine->plan->lanes[engine->topology->rank % engine->lane_count].element_count, error);
    if (status != PD_OK) {
        goto fail_plan;
    }
    status = pd_param_store_init(&engine->store, engine->plan, engine->topology->rank,
                                 engine->config, error);
    if (status != PD_OK) {
        goto fail_plan;
    }
    status = pd_step_create(&engine->step, engine->config, &engine->model, engine->plan,
                            &engine->store, engine->roster, engine->topology->rank, error);
    if (status != PD_OK) {
        goto fail_store;
    }
    engine->has_model = true;
    return PD_OK;

fail_store:
    pd_param_store_finish(&engine->store);
fail_plan:
    pd_shard_plan_destroy(engine->plan);
    engine->plan = NULL;
fail_model:
    pd_tensor_list_finish(&engine->model);
    return status;
}

static void carry_out_register(struct pd_engine *engine, const struct pd_order *order)
{
    struct pd_error error = {0};

    engine->initializer = order->worker_id;
    engine->values_stored = false;
    if (order->tensors.count == 0) {
        return;
    }
    if (adopt_model(engine, &order->tensors, &error) != PD_OK) {
        pd_engine_abort(engine, "model: %s", error.message);
    } else if (engine->leader != NULL && engine->roster->staging.limited) {
        pd_actions_log(engine->actions,
                       "staging: a rank holds the gradients of %u workers at a time, %" PRIu64
                       " bytes each",
                       engine->roster->staging.place_count, engine->roster->staging.place_bytes);
    }
}

static void ask_collective(struct pd_engine *engine, const struct pd_collective *collective)
{
    engine->collectives_asked++;
    pd_actions_collective(engine->actions, collective);
}

/* The initial values are on the ranks of one replica: the others get theirs from it. */
static void begin_publish(struct pd_engine *engine, const struct pd_order *order)
{
    struct pd_collective *broadcast = &engine->broadcast;

    if (engine->replica_count == 1) {
        return;
    }
    memset(broadcast, 0, sizeof *broadcast);
    broadcast->kind = PD_COLLECTIVE_BROADCAST_FLOATS;
    broadcast->order_index = order->index;
    broadcast->receive = pd_param_store_served(&engine->store);
    broadcast->receive_counts[0] = (int)engine->store.lane.element_count;
    broadcast->root = (int)order->replica;
    ask_collective(engine, broadcast);
}

static void carry_out_drain(struct pd_engine *engine, const struct pd_order *order)
{
    struct pd_message message = {.kind = PD_MESSAGE_DRAINING, .draining = {.step = order->step}};

    engine->drained = true;
    pd_ahead_forget(engine);
    for (pd_connection_id id = 0; id < engine->session_end; id++) {
        struct pd_session *session = &engine->sessions[id];
        if (session->state == PD_SESSION_WORKER || session->state == PD_SESSION_GUEST) {
            session->pull_waiting = false;
            pd_engine_send(engine, id, &message);
            pd_push_unpark(engine, id);
        }
    }
}

static void carry_out_admit(struct pd_engine *engine, const struct pd_order *order)
{
    for (uint32_t i = 0; i < order->contributor_count; i++) {
        struct pd_worker *worker = pd_roster_find(engine->roster, order->contributors[i]);
        if (worker == NULL || worker->replica != engine->replica) {
            continue;
        }
        worker->admitted = true;
        if (worker->connection != PD_CONNECTION_NONE) {
            pd_push_unpark(engine, worker->connection);
        }
    }
}

static void carry_out_stop(struct pd_engine *engine, const struct pd_order *order)
{
    pd_actions_log(engine->actions, "stopped at step %" PRIu64 ": %s", order->step, order->reason);
    pd_actions_exit(engine->actions, 0);
    engine->exiting = true;
}

/* Whether it is carried out by the step machine, with contributions. */
static bool sums(const struct pd_order *order)
{
    return order->kind == PD_ORDER_STEP || order->kind == PD_ORDER_HESSIAN ||
           order->kind == PD_ORDER_TAKE;
}

/* Whether contributions are used up by it, or by what follows: they must be whole. */
static bool uses_contributions(const struct pd_order *order)
{
    return sums(order) || order->kind == PD_ORDER_RESTORE;
}

/* An order is done: remember it, and tell rank 0, which answers peers once all ranks have done it;
 * `fault` is why it could not be, or empty. Steps with collectives need no word: they end together.
 */
static void complete(struct pd_engine *engine, struct pd_order *order, const char *fault)
{
    bool told_by_collectives = sums(order) && order->kind != PD_ORDER_TAKE && !order->skip;

    hash_order(engine, order);
    engine->orders_executed = order->index + 1;
    if (order->kind == PD_ORDER_AHEAD) {
        pd_ahead_begin(engine, order);
    } else {
        pd_engine_recycle(engine, order);
    }
    if (!told_by_collectives) {
        struct pd_report report = {.kind = PD_REPORT_EXECUTED,
                                   .order_index = engine->orders_executed - 1};
        snprintf(report.text, sizeof report.text, "%s", fault);
        pd_engine_report(engine, &report);
    }
}

/* Begin the next order; those without a wait are done at once. False when there is none to begin.
 */
static bool carry_out_next(struct pd_engine *engine)
{
    struct pd_order_queue *queue = &engine->queue;

    if (engine->running != NULL || engine->exiting || queue->count == 0) {
        return false;
    }
    struct pd_order *order = queue->items[queue->begin];
    struct pd_worker *worker;
    if (uses_contributions(order) && pd_roster_folding(engine->roster, &worker) != NULL) {
        pd_engine_want_work(engine);
        return false;
    }
    queue->begin = (queue->begin + 1) % queue->capacity;
    queue->count--;
    PD_ASSERT(order->index == engine->orders_executed);
    switch (order->kind) {
    case PD_ORDER_JOIN:
        carry_out_join(engine, order);
        break;
    case PD_ORDER_DEPART:
        carry_out_depart(engine, order);
        break;
    case PD_ORDER_REGISTER:
        carry_out_register(engine, order);
        break;
    case PD_ORDER_PUBLISH:
        engine->running = order;
        begin_publish(engine, order);
        return true;
    case PD_ORDER_STEP:
    case PD_ORDER_HESSIAN:
    case PD_ORDER_TAKE:
        engine->running = order;
        pd_ahead_confirm(engine, order);
        return true;
    case PD_ORDER_SNAPSHOT:
    case PD_ORDER_RESTORE:
        engine->running = order;
        pd_ahead_forget(engine);
        pd_restore_begin(engine);
        return true;
    case PD_ORDER_FORGET:
        pd_restore_forget(engine);
        break;
    case PD_ORDER_ADMIT:
        carry_out_admit(engine, order);
        break;
    case PD_ORDER_DRAIN:
        carry_out_drain(engine, order);
        break;
    case PD_ORDER_STOP:
        carry_out_stop(engine, order);
        break;
    case PD_ORDER_AHEAD:
        break; /* it begins as it completes */
    }
    complete(engine, order, "");
    return true;
}

/* ---- Progress of the running order ---- */

static void report_nonfinite(struct pd_engine *engine, const struct pd_order *order)
{
    struct pd_report report = {.kind = PD_REPORT_NONFINITE,
                               .step = order->step,
                               .hessian = order->kind == PD_ORDER_HESSIAN};

    if (pd_step_find_nonfinite(engine->step, order, &report.worker_id, report.text,
                               sizeof report.text)) {
        pd_engine_report(engine, &report);
    }
}

/* A rule that sets its rates itself has them from the step it takes. */
static void remember_lrs(struct pd_engine *engine, const struct pd_order *order)
{
    const struct pd_config *config = engine->config;

    engine->lr_count = config->group_count;
    for (uint32_t i = 0; i < config->group_count; i++) {
        engine->lrs[i] = pd_optimizer_shown_lr(config->optimizer, &config->groups[i].hyper,
                                               order->lrs[i], order->optimizer_step + 1);
    }
}

static void close_step(struct pd_engine *engine)
{
    struct pd_order *order = engine->running;

    if (pd_step_nonfinite(engine->step)) {
        report_nonfinite(engine, order);
    }
    struct pd_step_outcome outcome = pd_step_finish(engine->step);
    pd_roster_sweep(engine->roster);
    if (!outcome.skipped || outcome.nonfinite) {
        pd_loss_scale_update(&engine->loss_scale, &engine->config->loss_scale, outcome.nonfinite);
    }
    engine->stop_advised = order->stop;
    if (outcome.skipped) {
        engine->skipped_steps += !order->trial;
    }
    remember_lrs(engine, order);
    if (engine->leader != NULL) {
        pd_leader_step_closed(engine, order, outcome);
    }
    engine->running = NULL;
    pd_ahead_settle(engine, !outcome.skipped);
    complete(engine, order, "");
    pd_serve_answer_all(engine);
}

/* Estimates are in the optimizer's state, or left out, or a contribution is taken; the step that
 * they come with is an order by itself. */
static void close_part(struct pd_engine *engine)
{
    struct pd_order *order = engine->running;

    if (pd_step_nonfinite(engine->step)) {
        report_nonfinite(engine, order);
    }
    (void)pd_step_finish(engine->step);
    engine->running = NULL;
    complete(engine, order, "");
}

static void advance_step(struct pd_engine *engine)
{
    enum pd_step_want want = pd_step_advance(engine->step);
    const struct pd_collective *collective;
    while ((collective = pd_step_take_collective(engine->step)) != NULL) {
        ask_collective(engine, collective);
    }
    pd_ahead_send(engine);
    switch (want) {
    case PD_STEP_WANTS_WORK:
        pd_engine_want_work(engine);
        break;
    case PD_STEP_WANTS_COLLECTIVE:
        break;
    case PD_STEP_WANTS_BUFFER:
        pd_serve_reclaim_spare(engine);
        break;
    case PD_STEP_WANTS_NOTHING:
        if (engine->running->kind == PD_ORDER_STEP) {
            close_step(engine);
        } else {
            close_part(engine);
        }
        break;
    }
}

static void close_publish(struct pd_engine *engine)
{
    struct pd_order *order = engine->running;

    pd_param_store_publish_first(&engine->store);
    engine->running = NULL;
    complete(engine, order, "");
    pd_serve_answer_all(engine);
}

static void advance_restore(struct pd_engine *engine, bool turn)
{
    struct pd_order *order = engine->running;

    if (pd_restore_advance(engine, turn)) {
        engine->running = NULL;
        complete(engine, order, order->kind == PD_ORDER_SNAPSHOT ? engine->kept.fault : "");
        pd_serve_answer_all(engine);
    }
}

/* Take the running order on, unless it waits for its turn. */
static void advance_running(struct pd_engine *engine, bool turn)
{
    if (engine->running == NULL || engine->exiting) {
        return;
    }
    if (engine->running->kind == PD_ORDER_PUBLISH) {
        if (engine->collectives_asked == 0) {
            close_publish(engine);
        }
        return;
    }
    if (!sums(engine->running)) {
        advance_restore(engine, turn);
        return;
    }
    enum pd_step_state state = pd_step_state(engine->step);
    if (state == PD_STEP_BUFFER && engine->issued) {
        /* The others are to have the order before this rank works on it. */
        pd_engine_want_work(engine);
    } else if (turn || state == PD_STEP_BUFFER || state == PD_STEP_DONE) {
        advance_step(engine);
    }
}

/* ---- Events ---- */

static void on_collective(struct pd_engine *engine)
{
    PD_ASSERT(engine->running != NULL);
    PD_ASSERT(engine->collectives_asked > 0);
    engine->collectives_asked--;
    if (sums(engine->running)) {
        pd_step_collective_done(engine->step);
    }
    advance_running(engine, true);
}

static void on_work(struct pd_engine *engine)
{
    engine->work_asked = false;
    if (pd_push_work(engine)) {
        pd_engine_want_work(engine);
    } else {
        advance_running(engine, true);
    }
}

/* A stopped or dead rank 0 shows by its silence. */
static void watch_leader(struct pd_engine *engine)
{
    double silent_s = (double)(engine->now_ms - engine->leader_heard_ms) / 1000.0;

    if (silent_s > engine->config->rank_timeout_s) {
        pd_engine_abort(engine,
                        "rank 0 at %s has not been heard for %.1f s (rank_timeout_s is %g): "
                        "ending the job",
                        engine->topology->addresses[0], silent_s, engine->config->rank_timeout_s);
    }
}

static void send_beats(struct pd_engine *engine)
{
    struct pd_message message = {.kind = PD_MESSAGE_BEAT};

    if (engine->now_ms - engine->beat_ms < BEAT_MS) {
        return;
    }
    engine->beat_ms = engine->now_ms;
    for (pd_connection_id id = 0; id < engine->session_end; id++) {
        enum pd_session_state state = engine->sessions[id].state;
        if (state == PD_SESSION_RANK || state == PD_SESSION_LEADER) {
            pd_engine_send(engine, id, &message);
        }
    }
}

/* When this rank was itself stopped for a while, what it did not hear then proves nothing. Noticed
 * at the first event after it, which may come before a tick. */
static void forgive_silence(struct pd_engine *engine)
{
    if (engine->tick_ms == 0 || engine->now_ms - engine->tick_ms <= STOPPED_MS) {
        return;
    }
    engine->tick_ms = engine->now_ms;
    engine->leader_heard_ms = engine->now_ms;
    for (pd_connection_id id = 0; id < engine->session_end; id++) {
        engine->sessions[id].received_ms = engine->now_ms;
        engine->sessions[id].sent_ms = engine->now_ms;
    }
    if (engine->leader != NULL) {
        pd_member_forgive_silence(engine);
    }
}

static void on_tick(struct pd_engine *engine)
{
    engine->tick_ms = engine->now_ms;
    send_beats(engine);
    pd_session_tick(engine);
    if (engine->leader != NULL) {
        pd_leader_tick(engine);
    } else if (engine->leader_connection != PD_CONNECTION_NONE) {
        watch_leader(engine);
    }
}

static void on_drain(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_report report = {.kind = PD_REPORT_DRAIN};

    snprintf(report.text, sizeof report.text, "%s", event->text);
    if (engine->leader == NULL && engine->leader_connection == PD_CONNECTION_NONE) {
        engine->early_drain = report;
        return;
    }
    pd_engine_report(engine, &report);
}

static void heard(struct pd_engine *engine, const struct pd_event *event)
{
    if (event->connection == engine->leader_connection && engine->leader == NULL) {
        engine->leader_heard_ms = engine->now_ms;
    }
}

static void dispatch(struct pd_engine *engine, const struct pd_event *event)
{
    switch (event->kind) {
    case PD_EVENT_OPENED:
        pd_session_opened(engine, event);
        break;
    case PD_EVENT_MESSAGE:
        heard(engine, event);
        pd_session_message(engine, event);
        break;
    case PD_EVENT_PAYLOAD:
        pd_session_payload(engine, event);
        break;
    case PD_EVENT_PROGRESS:
        pd_session_progress(engine, event);
        break;
    case PD_EVENT_SENT:
        pd_session_sent(engine, event);
        break;
    case PD_EVENT_FAILED:
        pd_session_failed(engine, event);
        break;
    case PD_EVENT_CLOSED:
        pd_session_closed(engine, event);
        break;
    case PD_EVENT_COLLECTIVE:
        on_collective(engine);
        break;
    case PD_EVENT_WORK:
        on_work(engine);
        break;
    case PD_EVENT_TICK:
        on_tick(engine);
        break;
    case PD_EVENT_DRAIN:
        on_drain(engine, event);
        break;
    }
}

void pd_engine_step(struct pd_engine *engine, const struct pd_event *event,
                    struct pd_actions *actions)
{
    if (engine->started_ms == 0) {
        engine->started_ms = event->now_ms;
    }
    engine->now_ms = event->now_ms;
    engine->entropy = event->entropy;
    engine->connection = event->connection;
    engine->actions = actions;
    engine->issued = false;
    forgive_silence(engine);
    dispatch(engine, event);
    do {
        if (engine->leader != NULL && !engine->exiting) {
            pd_leader_advance(engine);
        }
        advance_running(engine, false);
    } while (carry_out_next(engine) ||
             (engine->leader != NULL && engine->leader->changed && !engine->exiting));
    pd_ahead_advance(engine);
    if (engine->step != NULL) {
        actions->fresh = pd_step_fresh(engine->step);
    }
    if (event->kind == PD_EVENT_PROGRESS && event->received) {
        pd_ahead_go_on(engine, event->connection);
    }
    pd_ahead_go_on_all(engine);
    engine->actions = NULL;
}

/* ---- Life ---- */

enum pd_status pd_engine_create(struct pd_engine **out, const struct pd_config *config,
                                const struct pd_topology *topology, struct pd_error *error)
{
    enum pd_status status = PD_ENOMEM;

    *out = NULL;
    struct pd_engine *engine = pd_heap_zalloc(1, sizeof *engine);
    if (engine == NULL) {
        goto fail;
    }
    engine->config = config;
    engine->topology = topology;
    engine->leader_connection = PD_CONNECTION_NONE;
    status = pd_config_lanes(config, topology->rank_count, &engine->lane_count, error);
    if (status != PD_OK) {
        pd_heap_free(engine);
        return status;
    }
    engine->replica_count = topology->rank_count / engine->lane_count;
    engine->replica = topology->rank / engine->lane_count;
    pd_loss_scale_init(&engine->loss_scale, &config->loss_scale);
    engine->sessions = pd_heap_zalloc(PD_CONNECTION_COUNT_MAX, sizeof *engine->sessions);
    engine->roster = pd_heap_zalloc(1, sizeof *engine->roster);
    if (engine->sessions == NULL || engine->roster == NULL || !queue_grow(&engine->queue)) {
        goto fail_engine;
    }
    if (topology->rank == 0 && pd_leader_create(&engine->leader, config, error) != PD_OK) {
        goto fail_engine;
    }
    *out = engine;
    return PD_OK;

fail_engine:
    pd_engine_destroy(engine);
fail:
    return pd_error_set(error, PD_ENOMEM, "engine: out of memory");
}

void pd_engine_destroy(struct pd_engine *engine)
{
    if (engine == NULL) {
        return;
    }
    pd_leader_destroy(engine->leader);
    for (size_t i = 0; i < engine->queue.count; i++) {
        struct pd_order *order =
            engine->queue.items[(engine->queue.begin + i) % engine->queue.capacity];
        pd_tensor_list_finish(&order->tensors);
        pd_heap_free(order);
    }
    for (size_t i = 0; i < engine->queue.spare_count; i++) {
        pd_heap_free(engine->queue.spare[i]);
    }
    pd_heap_free(engine->queue.items);
    pd_heap_free(engine->queue.spare);
    pd_heap_free(engine->running);
    pd_restore_forget(engine);
    pd_heap_free(engine->foreseen);
    pd_step_destroy(engine->step);
    pd_param_store_finish(&engine->store);
    pd_shard_plan_destroy(engine->plan);
    pd_tensor_list_finish(&engine->model);
    if (engine->roster != NULL) {
        pd_roster_finish(engine->roster);
    }
    pd_heap_free(engine->roster);
    for (uint32_t id = 0; engine->sessions != NULL && id < engine->session_end; id++) {
        pd_heap_free(engine->sessions[id].reply);
    }
    pd_heap_free(engine->sessions);
    pd_heap_free(engine);
}

enum pd_status pd_engine_load_model(struct pd_engine *engine, const struct pd_tensor_list *model,
                                    struct pd_error *error)
{
    PD_ASSERT(!engine->has_model);
    enum pd_status status = adopt_model(engine, model, error);
    if (status != PD_OK) {
        return status;
    }
    pd_param_store_publish_first(&engine->store);
    engine->values_stored = true;
    if (engine->leader != NULL) {
        pd_leader_model_loaded(engine);
    }
    return PD_OK;
}

float *pd_engine_values(struct pd_engine *engine, uint64_t *element_begin, uint64_t *element_count)
{
    PD_ASSERT(engine->has_model && engine->store.version == 0);
    *element_begin = engine->store.lane.element_begin;
    *element_count = engine->store.lane.element_count;
    return pd_param_store_served(&engine->store);
}

uint64_t pd_engine_order_hash(const struct pd_engine *engine)
{
    return engine->order_hash;
}

uint64_t pd_engine_orders_executed(const struct pd_engine *engine)
{
    return engine->orders_executed;
}

const float *pd_engine_parameters(const struct pd_engine *engine, uint64_t *version,
                                  uint64_t *element_begin, uint64_t *element_count)
{
    const struct pd_param_store *store = &engine->store;

    if (!store->has_version) {
        return NULL;
    }
    *version = store->version;
    *element_begin = store->lane.element_begin;
    *element_count = store->lane.element_count;
    return store->buffers[store->served].parameters;
}
