/* Pushes of a worker on one connection of this rank: which are taken, when and where they are read,
 * and how they are answered. */
#include "server/core/engine_state.h"

#include <inttypes.h>

/* What one turn adds of micro-batches to their sums. */
#define TURN_ELEMENTS (256u * 1024u)

static void send_pushed(struct pd_engine *engine, pd_connection_id connection,
                        const struct pd_push *push, bool duplicate)
{
    struct pd_message message;

    message.kind = PD_MESSAGE_PUSHED;
    message.pushed = (struct pd_pushed){.step = push->step,
                                        .micro_batch = push->micro_batch,
                                        .duplicate = duplicate,
                                        .hessian = push->hessian};
    pd_engine_send(engine, connection, &message);
}

/* The answer to an accepted push: at once, or the version it asks for. */
static void answer_push(struct pd_engine *engine, pd_connection_id connection,
                        const struct pd_push *push, bool duplicate)
{
    struct pd_error error;

    if (!push->pull) {
        send_pushed(engine, connection, push, duplicate);
        return;
    }
    if (pd_serve_pull(engine, connection, push->step + 1, push->pull_dtype, false, &error) !=
        PD_OK) {
        pd_session_refuse(engine, connection, &error, true);
        return;
    }
    engine->sessions[connection].pull_ahead = push->ahead;
    pd_serve_answer(engine, connection);
}

/* An estimate of the Hessian comes before the contribution it belongs to is complete: after that
 * the step may close at any time. */
static enum pd_push_verdict verdict_of(const struct pd_engine *engine, struct pd_worker *worker,
                                       const struct pd_push *push, struct pd_error *error)
{
    enum pd_push_verdict verdict =
        pd_contribution_judge(pd_roster_contribution(worker, push->hessian), push,
                              engine->store.version, engine->config->accumulation_steps, error);

    if (verdict == PD_PUSH_ACCEPT && push->hessian &&
        pd_contribution_is_complete(&worker->contribution, push->step)) {
        pd_error_set(error, PD_ESTEP,
                     "hessian of step %" PRIu64
                     ": this worker's gradient of it is complete; the estimate comes before its "
                     "last micro-batch",
                     push->step);
        return PD_PUSH_REFUSE;
    }
    return verdict;
}

/* One that was parked is judged again, and kept already. */
static void keep_push(struct pd_session *session, const struct pd_push *push)
{
    if (push != &session->push) {
        pd_push_copy(&session->push, push);
    }
}

/* The peer is not read on until the push is taken up again. */
static void park_push(struct pd_engine *engine, pd_connection_id connection,
                      const struct pd_push *push)
{
    struct pd_session *session = &engine->sessions[connection];

    session->push_parked = true;
    keep_push(session, push);
}

static void refuse_push(struct pd_engine *engine, pd_connection_id connection,
                        const struct pd_error *error)
{
    engine->sessions[connection].payload = PD_SESSION_PAYLOAD_DROPPED;
    pd_actions_drop(engine->actions, connection);
    pd_session_refuse(engine, connection, error, false);
}

/* A worker's first push is what its memory is taken for: joining alone costs a rank nothing. */
static void place_push(struct pd_engine *engine, struct pd_worker *worker,
                       struct pd_contribution *contribution)
{
    struct pd_error error;

    if (pd_roster_equip(engine->roster, worker, contribution->push.hessian, &error) == PD_OK) {
        pd_ahead_place(engine, worker->connection, contribution);
        return;
    }
    pd_contribution_drop_payload(contribution);
    pd_ahead_lose(engine, worker);
    refuse_push(engine, worker->connection, &error);
}

/* Gradients that are added up ahead whole are read in the order in which they are: those that came
 * first would lie in memory until it is their turn. */
static bool has_a_turn(const struct pd_engine *engine, const struct pd_contribution *contribution)
{
    return contribution->repeatable && contribution->push.element_count > 0 &&
           pd_ahead_adds_gradients(engine);
}

/* Whoever has begun to wait is read, whether or not gradients are still added up that way. */
static bool waits_for_turn(const struct pd_contribution *contribution)
{
    return contribution->state == PD_CONTRIBUTION_RECEIVING && contribution->placed == 0 &&
           contribution->push.element_count > 0;
}

/* Read the next pushes that wait for their turn, as many as are added up at once. All that have
 * come get theirs, whoever is still missing. True while there are more. */
static bool read_in_turn(struct pd_engine *engine)
{
    struct pd_roster *roster = engine->roster;
    uint32_t count = 0;

    for (uint32_t i = 0; i < roster->worker_count; i++) {
        struct pd_worker *worker = &roster->workers[roster->by_name[i]];
        if (worker->connection == PD_CONNECTION_NONE || !waits_for_turn(&worker->contribution)) {
            continue;
        }
        if (count++ == PD_REDUCE_TERM_COUNT) {
            return true;
        }
        /* It could not be heard until now. */
        engine->sessions[worker->connection].received_ms = engine->now_ms;
        place_push(engine, worker, &worker->contribution);
    }
    return false;
}

bool pd_push_is_held_back(const struct pd_engine *engine, const struct pd_session *session)
{
    if (session->payload != PD_SESSION_PAYLOAD_PUSH) {
        return session->push_parked;
    }
    struct pd_worker *worker = pd_roster_find(engine->roster, session->worker_id);
    return waits_for_turn(pd_roster_contribution(worker, session->push.hessian));
}

static void judge_push(struct pd_engine *engine, pd_connection_id connection,
                       struct pd_worker *worker, const struct pd_push *push)
{
    struct pd_session *session = &engine->sessions[connection];
    struct pd_contribution *contribution = pd_roster_contribution(worker, push->hessian);
    struct pd_error error;

    switch (verdict_of(engine, worker, push, &error)) {
    case PD_PUSH_ACCEPT:
        if (!pd_roster_admits(engine->roster, worker)) {
            park_push(engine, connection, push);
            return;
        }
        pd_roster_begin(worker, push, pd_ahead_may_spend(engine, push));
        keep_push(session, push);
        session->told_again = false;
        session->payload = PD_SESSION_PAYLOAD_PUSH;
        if (has_a_turn(engine, contribution)) {
            pd_engine_want_work(engine);
        } else {
            place_push(engine, worker, contribution);
        }
        if (engine->leader != NULL) {
            engine->leader->pushed = true;
        }
        return;
    case PD_PUSH_WAIT:
        park_push(engine, connection, push);
        return;
    case PD_PUSH_DUPLICATE:
        session->payload = PD_SESSION_PAYLOAD_DROPPED;
        pd_actions_drop(engine->actions, connection);
        answer_push(engine, connection, push, true);
        return;
    case PD_PUSH_REFUSE:
        refuse_push(engine, connection, &error);
        return;
    }
}

void pd_push_unpark(struct pd_engine *engine, pd_connection_id connection)
{
    struct pd_session *session = &engine->sessions[connection];
    struct pd_worker *worker = pd_session_worker(engine, session);
    const struct pd_push push = session->push;
    struct pd_error error = {0};

    if (worker == NULL || !session->push_parked) {
        return;
    }
    session->push_parked = false;
    session->received_ms = engine->now_ms; /* it could not be heard while it was not read */
    if (pd_push_check(engine, worker, &push,
                      push.element_count * pd_dtype_bytes((enum pd_dtype)push.dtype),
                      &error) != PD_OK) {
        refuse_push(engine, connection, &error);
        return;
    }
    judge_push(engine, connection, worker, &push);
}

void pd_push_announced(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_session *session = &engine->sessions[event->connection];
    struct pd_worker *worker = pd_session_worker(engine, session);
    const struct pd_push *push = &event->message->push;
    struct pd_error error;

    if (pd_push_check(engine, worker, push, event->payload_bytes, &error) != PD_OK) {
        pd_session_drop_payload(engine, event);
        pd_session_refuse(engine, event->connection, &error, false);
        return;
    }
    judge_push(engine, event->connection, worker, push);
}

void pd_push_arrived(struct pd_engine *engine, pd_connection_id connection, bool checksum_ok)
{
    struct pd_session *session = &engine->sessions[connection];
    struct pd_worker *worker = pd_session_worker(engine, session);
    const struct pd_push *push = &session->push;
    struct pd_contribution *contribution = pd_roster_contribution(worker, push->hessian);
    struct pd_report report;
    struct pd_error error;

    if (!checksum_ok) {
        pd_contribution_drop_payload(contribution);
        pd_ahead_lose(engine, worker);
        pd_error_set(&error, PD_ECHECKSUM,
                     "%s of step %" PRIu64 ", micro-batch %u: the bytes do not match their "
                     "checksum; nothing of it counts: send it again",
                     push->hessian ? "hessian" : "push", push->step, push->micro_batch);
        pd_session_refuse(engine, connection, &error, false);
        return;
    }
    pd_contribution_finish_payload(contribution);
    if (contribution->state == PD_CONTRIBUTION_FOLDING) {
        pd_engine_want_work(engine);
    }
    pd_report_init(&report, PD_REPORT_CONTRIBUTED);
    report.worker_id = worker->id;
    report.step = push->step;
    report.micro_batch = push->micro_batch;
    report.last = push->last;
    report.samples = push->samples;
    report.has_loss = push->has_loss;
    report.loss = push->loss;
    report.hessian = push->hessian;
    pd_tensor_set_copy(&report.absent, &push->absent);
    if (session->ahead != PD_SESSION_AHEAD_OPEN) {
        answer_push(engine, connection, push, false);
    }
    pd_engine_report(engine, &report);
}

bool pd_push_work(struct pd_engine *engine)
{
    struct pd_worker *worker;
    struct pd_contribution *contribution = pd_roster_folding(engine->roster, &worker);

    if (contribution == NULL) {
        return engine->has_model && read_in_turn(engine);
    }
    if (!pd_contribution_fold(contribution, TURN_ELEMENTS) ||
        worker->connection == PD_CONNECTION_NONE) {
        return true;
    }
    pd_push_unpark(engine, worker->connection);
    return true;
}
