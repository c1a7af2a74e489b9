/* A step begun while its contributions arrive, on this rank: what an order ahead foresees is
 * computed and sent block by block; the step's order then confirms it, or it is void. See step.h
 * for the computing, proto/README.md for what a worker sees. */
#include "common/assert.h"
#include "server/core/engine_state.h"

/* A push comes piece by piece: so many, or of so many elements, and at least one block. */
#define PIECE_COUNT_MIN 64u
#define PIECE_ELEMENTS_MAX 65536u
/* How many pieces of a push may have come that the step has no use for yet, as others are behind.
 * One that has so many waits for them while they bring the step on, each within that time, but not
 * unread for longer than that: its worker must not be taken for dead. */
#define LEAD_PIECE_COUNT 2u
#define HOLD_MS 100u

enum pd_step_ahead pd_ahead_kind(const struct pd_engine *engine, uint32_t worker_count)
{
    return pd_step_ahead_kind(engine->config, engine->plan, engine->store.lane.element_count,
                              worker_count);
}

void pd_ahead_begin(struct pd_engine *engine, struct pd_order *order)
{
    pd_ahead_forget(engine);
    if (order->step == engine->store.version &&
        pd_ahead_kind(engine, order->contributor_count) != PD_STEP_AHEAD_NONE &&
        pd_step_foresee(engine->step, order)) {
        engine->foreseen = order;
        engine->ahead_elements = UINT64_MAX;
        return;
    }
    pd_engine_recycle(engine, order);
}

bool pd_ahead_may_spend(const struct pd_engine *engine, const struct pd_push *push)
{
    return pd_step_spends(engine->step, engine->roster->worker_count) && push->pull &&
           push->ahead && push->last && push->micro_batch == 0 && !push->hessian;
}

bool pd_ahead_adds_gradients(const struct pd_engine *engine)
{
    return pd_ahead_kind(engine, engine->roster->worker_count) == PD_STEP_AHEAD_GRADIENTS;
}

static uint64_t piece_elements(const struct pd_engine *engine)
{
    uint64_t count = engine->store.lane.element_count / PIECE_COUNT_MIN;

    return count < PIECE_ELEMENTS_MAX ? count : PIECE_ELEMENTS_MAX;
}

void pd_ahead_place(struct pd_engine *engine, pd_connection_id connection,
                    struct pd_contribution *contribution)
{
    const struct pd_range *lane = &engine->store.lane;
    size_t element_bytes = pd_dtype_bytes((enum pd_dtype)contribution->push.dtype);
    uint64_t count = lane->element_count - contribution->placed;

    /* What need not be kept comes a block, or several small ones, at a time: in turns to the same
     * place, if it is used up as it comes. */
    if (contribution->repeatable && !pd_ahead_adds_gradients(engine)) {
        count =
            pd_shard_plan_run(engine->plan, lane->element_begin + contribution->placed,
                              lane->element_begin + lane->element_count, piece_elements(engine));
    }
    void *place = pd_contribution_place(contribution, count);
    pd_actions_place(engine->actions, connection, place, count * element_bytes);
}

/* What is read before the others' is no longer in cache when theirs is; what is not read yet lies
 * in the worker's memory, or in the socket. */
static bool waits_for_others(struct pd_engine *engine, const struct pd_session *session,
                             const struct pd_contribution *contribution)
{
    if (!contribution->repeatable || engine->foreseen == NULL ||
        !pd_step_is_collected(engine->step)) {
        return false;
    }
    uint64_t elements = pd_step_summed_elements(engine->step);
    if (elements != engine->ahead_elements) {
        engine->ahead_elements = elements;
        engine->ahead_ms = engine->now_ms;
    }
    uint64_t since_ms =
        session->received_ms < engine->ahead_ms ? session->received_ms : engine->ahead_ms;
    return contribution->placed > elements &&
           contribution->placed - elements >= LEAD_PIECE_COUNT * piece_elements(engine) &&
           engine->now_ms < since_ms + HOLD_MS;
}

void pd_ahead_go_on(struct pd_engine *engine, pd_connection_id connection)
{
    const struct pd_session *session = &engine->sessions[connection];

    if (session->payload != PD_SESSION_PAYLOAD_PUSH) {
        return;
    }
    struct pd_worker *worker = pd_roster_find(engine->roster, session->worker_id);
    struct pd_contribution *contribution = pd_roster_contribution(worker, session->push.hessian);
    if (contribution->placed == 0 || !pd_contribution_wants_place(contribution)) {
        return;
    }
    if (waits_for_others(engine, session, contribution)) {
        engine->ahead_holds = true;
        return;
    }
    pd_ahead_place(engine, connection, contribution);
}

void pd_ahead_go_on_all(struct pd_engine *engine)
{
    if (!engine->ahead_holds) {
        return;
    }
    engine->ahead_holds = false;
    for (uint32_t slot = 0; slot < engine->roster->slot_end; slot++) {
        const struct pd_worker *worker = &engine->roster->workers[slot];
        if (worker->present && worker->connection != PD_CONNECTION_NONE) {
            pd_ahead_go_on(engine, worker->connection);
        }
    }
}

void pd_ahead_advance(struct pd_engine *engine)
{
    if (engine->foreseen == NULL) {
        return;
    }
    if (engine->issued || pd_step_work_ahead(engine->step)) {
        pd_engine_want_work(engine);
    }
    pd_ahead_send(engine);
}

/* ---- Sending ---- */

static bool contributes(const struct pd_order *order, const struct pd_worker *worker)
{
    for (uint32_t i = 0; i < order->contributor_count; i++) {
        if (order->contributors[i] == worker->id) {
            return true;
        }
    }
    return false;
}

/* Whether the worker's push for that step, which is here or on its way on its connection, asked to
 * be answered ahead, and in which type. One whose push is no part of the step gets nothing of it:
 * with that push the step would be another. */
static bool asks_ahead(const struct pd_engine *engine, const struct pd_worker *worker,
                       const struct pd_order *order, enum pd_dtype *dtype)
{
    const struct pd_session *session = &engine->sessions[worker->connection];
    const struct pd_push *push = &worker->contribution.push;
    bool asks = false;

    if (!worker->has_contribution ||
        !pd_contribution_is_single(&worker->contribution, order->step)) {
        return false;
    }
    if (session->pull_waiting) {
        asks = session->pull_ahead && session->pull.min_version == order->step + 1;
        *dtype = (enum pd_dtype)session->pull.dtype;
    } else if (session->payload == PD_SESSION_PAYLOAD_PUSH) {
        asks = push->pull && push->ahead;
        *dtype = (enum pd_dtype)push->pull_dtype;
    }
    return asks && contributes(order, worker);
}

static uint64_t ready_bytes(uint64_t elements, uint32_t dtype)
{
    return elements * pd_dtype_bytes((enum pd_dtype)dtype);
}

static void begin_sending(struct pd_engine *engine, pd_connection_id connection,
                          enum pd_dtype dtype)
{
    struct pd_session *session = &engine->sessions[connection];

    session->pull_waiting = false;
    session->ahead = PD_SESSION_AHEAD_OPEN;
    session->ahead_dtype = dtype;
    session->ahead_ready = ready_bytes(pd_step_next_elements(engine->step), dtype);
    pd_serve_send(engine, connection, 1 - engine->store.served, dtype);
    pd_actions_hold_back(engine->actions, session->ahead_ready);
}

/* The first `elements` of the buffer that is being sent are final. */
static void go_on_sending(struct pd_engine *engine, pd_connection_id connection, uint64_t elements)
{
    struct pd_session *session = &engine->sessions[connection];
    uint64_t ready = ready_bytes(elements, session->ahead_dtype);

    if (ready > session->ahead_ready) {
        session->ahead_ready = ready;
        session->sent_ms = engine->now_ms;
        pd_actions_release(engine->actions, connection, ready);
    }
}

void pd_ahead_send(struct pd_engine *engine)
{
    const struct pd_order *order = pd_step_order(engine->step);

    if (order == NULL || pd_step_next_elements(engine->step) == 0 ||
        !pd_step_may_go_ahead(engine->config, engine->plan, engine->store.lane.element_count)) {
        return;
    }
    for (uint32_t slot = 0; slot < engine->roster->slot_end; slot++) {
        const struct pd_worker *worker = &engine->roster->workers[slot];
        if (!worker->present || worker->connection == PD_CONNECTION_NONE) {
            continue;
        }
        const struct pd_session *session = &engine->sessions[worker->connection];
        enum pd_dtype dtype = PD_DTYPE_FLOAT32;
        if (session->ahead == PD_SESSION_AHEAD_OPEN) {
            go_on_sending(engine, worker->connection, pd_step_next_elements(engine->step));
        } else if (!session->sending && asks_ahead(engine, worker, order, &dtype)) {
            begin_sending(engine, worker->connection, dtype);
        }
    }
}

/* ---- The end ---- */

/* What is left of the payload goes out as it is: the worker throws it away. Its push, once it is
 * whole, is answered as any other, unless it has to come again. */
static void make_void(struct pd_engine *engine, const struct pd_worker *worker, uint64_t version,
                      bool again)
{
    struct pd_session *session = &engine->sessions[worker->connection];

    pd_ahead_leave(engine, worker->connection);
    struct pd_message message;
    message.kind = PD_MESSAGE_SETTLED;
    message.settled = (struct pd_settled){.again = again, .pulled = {.version = version}};
    pd_engine_send(engine, worker->connection, &message);
    if (pd_contribution_has_pushes(&worker->contribution, version - 1)) {
        session->pull_waiting = true;
        session->pull = (struct pd_pull){.min_version = version, .dtype = session->ahead_dtype};
        session->pull_ahead = true;
    }
}

/* A push that is used up in part is as if it had never come. False when nothing of it is. */
static bool take_back(struct pd_engine *engine, struct pd_worker *worker)
{
    struct pd_contribution *contribution = &worker->contribution;
    struct pd_report report = {
        .kind = PD_REPORT_UNDONE, .worker_id = worker->id, .step = contribution->push.step};

    if (!pd_contribution_is_spent(contribution)) {
        return false;
    }
    if (contribution->state == PD_CONTRIBUTION_RECEIVING) {
        engine->sessions[worker->connection].payload = PD_SESSION_PAYLOAD_DROPPED;
        pd_actions_drop(engine->actions, worker->connection);
        pd_contribution_drop_payload(contribution);
        return true;
    }
    pd_contribution_take_back(contribution);
    pd_engine_report(engine, &report);
    if (worker->connection != PD_CONNECTION_NONE) {
        engine->sessions[worker->connection].pull_waiting = false;
        engine->sessions[worker->connection].told_again = true;
    }
    return true;
}

void pd_ahead_leave(struct pd_engine *engine, pd_connection_id connection)
{
    struct pd_session *session = &engine->sessions[connection];

    if (session->ahead != PD_SESSION_AHEAD_OPEN) {
        return;
    }
    session->ahead = PD_SESSION_AHEAD_NONE;
    if (session->sending) {
        session->ahead = PD_SESSION_AHEAD_VOID;
        session->sent_ms = engine->now_ms;
        pd_serve_let_go(engine, connection);
        pd_actions_release(engine->actions, connection,
                           ready_bytes(engine->store.lane.element_count, session->ahead_dtype));
    }
}

static void send_applied(struct pd_engine *engine, pd_connection_id connection)
{
    struct pd_session *session = &engine->sessions[connection];
    const struct pd_pull pull = {.dtype = session->ahead_dtype};
    struct pd_message message;

    message.kind = PD_MESSAGE_SETTLED;
    message.settled.applied = true;
    message.settled.again = false;
    pd_serve_describe(engine, session, &pull, &message.settled.pulled);
    go_on_sending(engine, connection, engine->store.lane.element_count);
    session->ahead = PD_SESSION_AHEAD_NONE;
    session->sent_ms = engine->now_ms;
    pd_engine_send(engine, connection, &message);
}

void pd_ahead_settle(struct pd_engine *engine, bool applied)
{
    for (uint32_t slot = 0; slot < engine->roster->slot_end; slot++) {
        const struct pd_worker *worker = &engine->roster->workers[slot];
        pd_connection_id connection = worker->present ? worker->connection : PD_CONNECTION_NONE;
        if (connection == PD_CONNECTION_NONE ||
            engine->sessions[connection].ahead != PD_SESSION_AHEAD_OPEN) {
            continue;
        }
        if (applied) {
            send_applied(engine, connection);
        } else {
            make_void(engine, worker, engine->store.version, false);
        }
    }
}

/* `undone`: what it has used up is needed again. */
static void forget(struct pd_engine *engine, bool undone)
{
    if (engine->foreseen == NULL) {
        return;
    }
    pd_step_forget(engine->step);
    pd_engine_recycle(engine, engine->foreseen);
    engine->foreseen = NULL;
    for (uint32_t slot = 0; slot < engine->roster->slot_end; slot++) {
        struct pd_worker *worker = &engine->roster->workers[slot];
        bool again = worker->present && undone && take_back(engine, worker);
        pd_connection_id connection = worker->present ? worker->connection : PD_CONNECTION_NONE;
        if (connection != PD_CONNECTION_NONE &&
            (again || engine->sessions[connection].ahead == PD_SESSION_AHEAD_OPEN)) {
            make_void(engine, worker, engine->store.version + 1, again);
        }
    }
}

void pd_ahead_forget(struct pd_engine *engine)
{
    forget(engine, true);
}

void pd_ahead_confirm(struct pd_engine *engine, const struct pd_order *order)
{
    if (!order->foreseen) {
        forget(engine, !order->skip);
    }
    pd_step_begin(engine->step, order);
    if (engine->foreseen != NULL) {
        pd_engine_recycle(engine, engine->foreseen);
        engine->foreseen = NULL;
        pd_engine_want_work(engine);
    }
}

void pd_ahead_lose(struct pd_engine *engine, const struct pd_worker *worker)
{
    if (engine->foreseen != NULL && contributes(engine->foreseen, worker)) {
        pd_ahead_forget(engine);
    }
}
