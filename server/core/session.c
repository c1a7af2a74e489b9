#include "server/core/session.h"

#include "common/assert.h"
#include "common/heap.h"
#include "server/core/engine_state.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static struct pd_session *session_at(struct pd_engine *engine, pd_connection_id connection)
{
    PD_ASSERT(connection < PD_CONNECTION_COUNT_MAX);
    return &engine->sessions[connection];
}

struct pd_worker *pd_session_worker(struct pd_engine *engine, const struct pd_session *session)
{
    if (session->state != PD_SESSION_WORKER) {
        return NULL;
    }
    return pd_roster_find(engine->roster, session->worker_id);
}

static const char *state_name(enum pd_session_state state)
{
    switch (state) {
    case PD_SESSION_GREETING:
        return "before hello";
    case PD_SESSION_GUEST:
        return "from a peer that has not joined";
    case PD_SESSION_WORKER:
        return "from a worker";
    case PD_SESSION_RANK:
    case PD_SESSION_LEADER:
        return "between ranks";
    case PD_SESSION_NONE:
    case PD_SESSION_CLOSING:
        break;
    }
    return "on a closed connection";
}

/* ---- Ends ---- */

/* A worker's connection is gone: rank 0 waits a while for it to come back. */
static void report_lost(struct pd_engine *engine, uint32_t worker_id, bool expired,
                        const char *text)
{
    struct pd_report report = {.kind = PD_REPORT_LOST, .worker_id = worker_id, .expired = expired};

    snprintf(report.text, sizeof report.text, "%s", text);
    pd_engine_report(engine, &report);
}

static bool is_worker_on(const struct pd_session *session, const char *host)
{
    return session->state == PD_SESSION_WORKER && strcmp(session->host, host) == 0;
}

void pd_session_count_host(struct pd_engine *engine, const char *host)
{
    uint32_t count = 0;

    for (pd_connection_id id = 0; id < engine->session_end; id++) {
        count += is_worker_on(&engine->sessions[id], host);
    }
    for (pd_connection_id id = 0; id < engine->session_end; id++) {
        if (is_worker_on(&engine->sessions[id], host)) {
            engine->sessions[id].host_workers = count;
        }
    }
}

/* Part the session from its worker, whose half-received push is dropped. False when it has none. */
static bool unbind(struct pd_engine *engine, pd_connection_id connection)
{
    struct pd_session *session = session_at(engine, connection);
    struct pd_worker *worker = pd_session_worker(engine, session);

    if (worker == NULL || worker->connection != connection) {
        return false;
    }
    worker->connection = PD_CONNECTION_NONE;
    if (session->payload == PD_SESSION_PAYLOAD_PUSH) {
        pd_contribution_drop_payload(pd_roster_contribution(worker, session->push.hessian));
        pd_ahead_lose(engine, worker);
    }
    return true;
}

static void close_because(struct pd_engine *engine, pd_connection_id connection, bool flush,
                          bool expired, const char *why)
{
    struct pd_session *session = session_at(engine, connection);

    if (session->state == PD_SESSION_CLOSING || session->state == PD_SESSION_NONE) {
        return;
    }
    bool was_worker = unbind(engine, connection);
    pd_ahead_leave(engine, connection);
    session->payload = PD_SESSION_PAYLOAD_NONE;
    session->push_parked = false;
    session->pull_waiting = false;
    session->state = PD_SESSION_CLOSING;
    pd_actions_close(engine->actions, connection, flush);
    if (was_worker) {
        pd_session_count_host(engine, session->host);
        report_lost(engine, session->worker_id, expired, why);
    }
}

void pd_session_close(struct pd_engine *engine, pd_connection_id connection, bool flush)
{
    close_because(engine, connection, flush, false, "closed by the daemon");
}

static void refuse_because(struct pd_engine *engine, pd_connection_id connection,
                           const struct pd_error *error, bool fatal, bool expired)
{
    struct pd_session *session = session_at(engine, connection);
    struct pd_message message = {.kind = PD_MESSAGE_ERROR,
                                 .error = {.status = error->status, .fatal = fatal}};

    snprintf(message.error.text, sizeof message.error.text, "%s", error->message);
    pd_engine_send(engine, connection, &message);
    if (fatal) {
        pd_actions_log(engine->actions, "closing %s: %s", session->peer, error->message);
        close_because(engine, connection, true, expired, error->message);
    }
}

void pd_session_refuse(struct pd_engine *engine, pd_connection_id connection,
                       const struct pd_error *error, bool fatal)
{
    refuse_because(engine, connection, error, fatal, false);
}

void pd_session_opened(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_session *session = session_at(engine, event->connection);

    PD_ASSERT(session->state == PD_SESSION_NONE);
    memset(session, 0, sizeof *session);
    snprintf(session->peer, sizeof session->peer, "%s", event->peer);
    session->serial = ++engine->session_serial;
    session->opened_ms = engine->now_ms;
    session->received_ms = engine->now_ms;
    session->sent_ms = engine->now_ms;
    session->state = PD_SESSION_GREETING;
    if (event->connection >= engine->session_end) {
        engine->session_end = event->connection + 1;
    }
    if (event->outgoing) {
        struct pd_message message = {
            .kind = PD_MESSAGE_RANK_HELLO,
            .rank_hello = {.rank = engine->topology->rank, .secret = engine->topology->secret},
        };
        session->state = PD_SESSION_LEADER;
        engine->leader_connection = event->connection;
        engine->leader_heard_ms = engine->now_ms;
        pd_engine_send(engine, event->connection, &message);
        if (engine->early_drain.kind == PD_REPORT_DRAIN) {
            pd_engine_report(engine, &engine->early_drain);
        }
    }
}

void pd_session_closed(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_session *session = session_at(engine, event->connection);
    const char *why = event->error != NULL && event->error->status != PD_OK ? event->error->message
                                                                            : "connection closed";

    PD_ASSERT(session->state != PD_SESSION_NONE);
    bool was_worker = unbind(engine, event->connection);
    uint32_t worker_id = session->worker_id;
    pd_serve_release(engine, event->connection);
    pd_heap_free(session->reply);
    if (session->state == PD_SESSION_RANK) {
        pd_engine_abort(engine, "rank %u at %s is gone (%s): ending the job", session->rank,
                        engine->topology->addresses[session->rank], why);
    } else if (session->state == PD_SESSION_LEADER) {
        pd_engine_abort(engine, "rank 0 at %s is gone (%s): ending the job",
                        engine->topology->addresses[0], why);
    }
    session->state = PD_SESSION_NONE;
    if (was_worker) {
        pd_session_count_host(engine, session->host);
    }
    memset(session, 0, sizeof *session);
    if (engine->leader != NULL) {
        pd_search_connection_closed(engine, event->connection);
    }
    if (was_worker) {
        report_lost(engine, worker_id, false, why);
    }
}

void pd_session_failed(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_session *session = session_at(engine, event->connection);

    if (session->state == PD_SESSION_CLOSING) {
        return;
    }
    if (session->state == PD_SESSION_RANK || session->state == PD_SESSION_LEADER) {
        pd_engine_abort(engine, "the connection between ranks broke: %s", event->error->message);
        return;
    }
    pd_session_refuse(engine, event->connection, event->error, true);
}

/* ---- Greeting ---- */

static void send_welcome(struct pd_engine *engine, pd_connection_id connection,
                         const struct pd_worker *worker)
{
    struct pd_message message = {
        .kind = PD_MESSAGE_WELCOME,
        .welcome = {.run_id = engine->topology->run_id,
                    .rank = engine->topology->rank,
                    .rank_count = engine->topology->rank_count,
                    .lease_ms = (uint32_t)(engine->config->workers.lease_s * 1000.0),
                    .has_version = engine->store.has_version,
                    .version = engine->store.version},
    };
    struct pd_welcome *welcome = &message.welcome;

    snprintf(welcome->leader, sizeof welcome->leader, "%s", engine->topology->addresses[0]);
    snprintf(welcome->server, sizeof welcome->server, "paramd %s", PARAMD_VERSION);
    if (worker != NULL) {
        const struct pd_contribution *contribution = &worker->contribution;
        welcome->next_step =
            contribution->started ? contribution->next_step : engine->store.version;
        welcome->next_micro_batch = contribution->started ? contribution->next_micro_batch : 0;
    }
    pd_engine_send(engine, connection, &message);
}

/* A connection takes up the session of a worker. An older connection of it on this rank is one the
 * worker has given up. */
static enum pd_status resume(struct pd_engine *engine, pd_connection_id connection,
                             const struct pd_hello *hello, struct pd_error *error)
{
    struct pd_session *session = session_at(engine, connection);
    struct pd_worker *worker = pd_roster_find(engine->roster, hello->worker_id);

    if (hello->run_id != engine->topology->run_id) {
        return pd_error_set(error, PD_EIDENTITY,
                            "worker %u belongs to run %016" PRIx64 ", this is run %016" PRIx64
                            ": join again",
                            hello->worker_id, hello->run_id, engine->topology->run_id);
    }
    if (worker == NULL || worker->leaving) {
        return pd_roster_explain(engine->roster, hello->worker_id, error);
    }
    if (hello->token != worker->token) {
        return pd_error_set(error, PD_EIDENTITY,
                            "worker %u is '%s', and this is not the token it was given", worker->id,
                            worker->name);
    }
    if (worker->connection != PD_CONNECTION_NONE) {
        pd_connection_id given_up = worker->connection;
        (void)unbind(engine, given_up);
        pd_session_close(engine, given_up, false);
    }
    worker->connection = connection;
    session->state = PD_SESSION_WORKER;
    session->worker_id = worker->id;
    pd_session_count_host(engine, session->host);
    struct pd_report report = {.kind = PD_REPORT_FOUND, .worker_id = worker->id};
    pd_engine_report(engine, &report);
    send_welcome(engine, connection, worker);
    return PD_OK;
}

static void on_hello(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_session *session = session_at(engine, event->connection);
    const struct pd_hello *hello = &event->message->hello;
    struct pd_error error = {0};

    session->checksum = event->has_checksum;
    snprintf(session->host, sizeof session->host, "%s", hello->host);
    if (!hello->has_worker_id) {
        session->state = PD_SESSION_GUEST;
        send_welcome(engine, event->connection, NULL);
        return;
    }
    if (resume(engine, event->connection, hello, &error) != PD_OK) {
        pd_session_refuse(engine, event->connection, &error, true);
    }
}

static void on_rank_hello(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_session *session = session_at(engine, event->connection);
    const struct pd_rank_hello *hello = &event->message->rank_hello;
    struct pd_error error = {0};

    if (engine->leader == NULL || hello->secret != engine->topology->secret || hello->rank == 0 ||
        hello->rank >= engine->topology->rank_count ||
        engine->leader->links[hello->rank] != PD_CONNECTION_NONE) {
        pd_error_set(&error, PD_EIDENTITY, "rank hello: this peer is no rank of this job");
        pd_session_refuse(engine, event->connection, &error, true);
        return;
    }
    session->state = PD_SESSION_RANK;
    session->rank = hello->rank;
    pd_leader_linked(engine, hello->rank, event->connection);
}

/* ---- Payloads ---- */

void pd_session_drop_payload(struct pd_engine *engine, const struct pd_event *event)
{
    if (event->payload_bytes == 0) {
        return;
    }
    session_at(engine, event->connection)->payload = PD_SESSION_PAYLOAD_DROPPED;
    pd_actions_drop(engine->actions, event->connection);
}

static void on_values(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_session *session = session_at(engine, event->connection);
    const struct pd_values *values = &event->message->values;
    const struct pd_worker *worker = pd_session_worker(engine, session);
    struct pd_message stored = {.kind = PD_MESSAGE_VALUES_STORED};
    struct pd_error error = {0};

    if (!engine->has_model || worker->id != engine->initializer ||
        worker->replica != engine->replica) {
        pd_error_set(&error, PD_EREFUSED, "values: rank %u needs no values from this worker",
                     engine->topology->rank);
    } else if (pd_push_check_values(engine, values, event->payload_bytes, &error) == PD_OK) {
        if (engine->values_stored) {
            pd_session_drop_payload(engine, event);
            pd_engine_send(engine, event->connection, &stored);
            return;
        }
        session->payload = PD_SESSION_PAYLOAD_VALUES;
        pd_actions_place(engine->actions, event->connection, pd_param_store_served(&engine->store),
                         event->payload_bytes);
        return;
    }
    pd_session_drop_payload(engine, event);
    pd_session_refuse(engine, event->connection, &error, false);
}

static void values_arrived(struct pd_engine *engine, pd_connection_id connection, bool checksum_ok)
{
    struct pd_session *session = session_at(engine, connection);
    struct pd_message message = {.kind = PD_MESSAGE_VALUES_STORED};
    struct pd_error error = {0};

    if (!checksum_ok) {
        pd_error_set(&error, PD_ECHECKSUM,
                     "values: the bytes do not match their checksum: send them again");
        pd_session_refuse(engine, connection, &error, false);
        return;
    }
    struct pd_report report = {.kind = PD_REPORT_VALUES, .worker_id = session->worker_id};
    engine->values_stored = true;
    pd_engine_send(engine, connection, &message);
    pd_engine_report(engine, &report);
}

void pd_session_payload(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_session *session = session_at(engine, event->connection);
    enum pd_session_payload payload = session->payload;

    session->payload = PD_SESSION_PAYLOAD_NONE;
    session->received_ms = engine->now_ms;
    if (session->ahead == PD_SESSION_AHEAD_VOID) {
        session->sent_ms = engine->now_ms; /* from now on it has to read */
    }
    if (payload == PD_SESSION_PAYLOAD_PUSH) {
        pd_push_arrived(engine, event->connection, event->checksum_ok);
    } else if (payload == PD_SESSION_PAYLOAD_VALUES) {
        values_arrived(engine, event->connection, event->checksum_ok);
    }
}

/* ---- Rank 0's business ---- */

static void on_join(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_error error = {0};

    if (pd_member_join(engine, event->connection, &event->message->join, &error) != PD_OK) {
        pd_session_refuse(engine, event->connection, &error, false);
    }
}

/* The member of a worker's session; refuses when its eviction is ordered, but not yet carried out.
 */
static struct pd_member *member_of(struct pd_engine *engine, const struct pd_event *event)
{
    const struct pd_session *session = session_at(engine, event->connection);
    struct pd_member *member = pd_member_find(engine->leader, session->worker_id);
    struct pd_error error = {0};

    if (member == NULL) {
        pd_error_set(&error, PD_EIDENTITY, "%s: worker %u is being struck off: join again",
                     pd_message_kind_name(event->message->kind), session->worker_id);
        pd_session_refuse(engine, event->connection, &error, false);
    }
    return member;
}

static void on_register(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_member *member = member_of(engine, event);
    struct pd_error error = {0};

    if (member != NULL && pd_member_register(engine, member, &event->message->registration.tensors,
                                             &error) != PD_OK) {
        pd_session_refuse(engine, event->connection, &error, false);
    }
}

/* One whose first word or its answer was lost says it again, and may have left meanwhile. */
static void on_leave(struct pd_engine *engine, const struct pd_event *event)
{
    bool left = session_at(engine, event->connection)->left;
    struct pd_member *member = left ? NULL : member_of(engine, event);
    struct pd_message message = {.kind = PD_MESSAGE_LEFT};

    if (left) {
        pd_engine_send(engine, event->connection, &message);
    } else if (member != NULL) {
        pd_member_leave(engine, member, &event->message->leave);
        pd_engine_send(engine, event->connection, &message);
    }
}

static void on_metric(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_message message = {.kind = PD_MESSAGE_METRIC_STORED};
    struct pd_error error = {0};

    if (pd_leader_metric(engine, &event->message->metric, &message.metric_stored.duplicate,
                         &error) != PD_OK) {
        pd_session_refuse(engine, event->connection, &error, false);
        return;
    }
    pd_engine_send(engine, event->connection, &message);
}

static void on_admin(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_session *session = session_at(engine, event->connection);
    struct pd_message message = {.kind = PD_MESSAGE_ADMIN_REPLY};
    struct pd_error error = {0};
    char *reply = NULL;

    if (session->sending || session->pull_waiting) {
        pd_error_set(&error, PD_EPROTOCOL,
                     "admin before the answer to the request before has been read");
        pd_session_refuse(engine, event->connection, &error, true);
        return;
    }
    if (pd_admin_run(engine, &event->message->admin, &reply, &error) != PD_OK) {
        pd_session_refuse(engine, event->connection, &error, false);
        return;
    }
    session->reply = reply;
    session->sending = true;
    session->sending_users = 0;
    session->sent_ms = engine->now_ms;
    pd_actions_send(engine->actions, event->connection, &message, reply, strlen(reply),
                    session->checksum);
}

static void on_pull(struct pd_engine *engine, const struct pd_event *event)
{
    const struct pd_pull *pull = &event->message->pull;
    struct pd_error error;

    if (session_at(engine, event->connection)->told_again &&
        pull->min_version == engine->store.version + 1) {
        return;
    }
    enum pd_status status = pd_serve_pull(engine, event->connection, pull->min_version, pull->dtype,
                                          pull->averaged, &error);

    if (status != PD_OK) {
        pd_session_refuse(engine, event->connection, &error, status == PD_EPROTOCOL);
        return;
    }
    pd_serve_answer(engine, event->connection);
}

static void on_order(struct pd_engine *engine, const struct pd_event *event)
{
    pd_engine_enqueue(engine, &event->message->order);
}

static void on_report(struct pd_engine *engine, const struct pd_event *event)
{
    const struct pd_session *session = session_at(engine, event->connection);
    pd_leader_report(engine, session->rank, &event->message->report);
}

static void on_nothing(struct pd_engine *engine, const struct pd_event *event)
{
    (void)engine;
    (void)event;
}

/* ---- Who may say what ---- */

#define GREETING (1u << PD_SESSION_GREETING)
#define GUEST (1u << PD_SESSION_GUEST)
#define WORKER (1u << PD_SESSION_WORKER)
#define RANK (1u << PD_SESSION_RANK)
#define LEADER (1u << PD_SESSION_LEADER)

struct rule {
    enum pd_message_kind kind;
    unsigned states;  /* in which it may come */
    bool leader_only; /* on rank 0 */
    bool payload;     /* may have one */
    void (*handle)(struct pd_engine *engine, const struct pd_event *event);
};

static const struct rule rules[] = {
    {PD_MESSAGE_HELLO, GREETING, false, false, on_hello},
    {PD_MESSAGE_RANK_HELLO, GREETING, true, false, on_rank_hello},
    {PD_MESSAGE_JOIN, GUEST, true, false, on_join},
    {PD_MESSAGE_REGISTER, WORKER, true, false, on_register},
    {PD_MESSAGE_LEAVE, WORKER, true, false, on_leave},
    {PD_MESSAGE_METRIC, GUEST | WORKER, true, false, on_metric},
    {PD_MESSAGE_ADMIN, GUEST | WORKER, true, false, on_admin},
    {PD_MESSAGE_VALUES, WORKER, false, true, on_values},
    {PD_MESSAGE_PUSH, WORKER, false, true, pd_push_announced},
    {PD_MESSAGE_HESSIAN, WORKER, false, true, pd_push_announced},
    {PD_MESSAGE_PULL, GUEST | WORKER, false, false, on_pull},
    {PD_MESSAGE_PING, GUEST | WORKER, false, false, on_nothing},
    {PD_MESSAGE_ORDER, LEADER, false, false, on_order},
    {PD_MESSAGE_REPORT, RANK, true, false, on_report},
    {PD_MESSAGE_BEAT, RANK | LEADER, false, false, on_nothing},
};

static const struct rule *rule_of(enum pd_message_kind kind)
{
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        if (rules[i].kind == kind) {
            return &rules[i];
        }
    }
    return NULL;
}

/* Whether a message may come on this connection now. */
static enum pd_status check_order(const struct pd_engine *engine, const struct pd_session *session,
                                  const struct pd_event *event, const struct rule *rule,
                                  struct pd_error *error)
{
    const char *name = pd_message_kind_name(event->message->kind);

    if (rule == NULL) {
        return pd_error_set(error, PD_EPROTOCOL, "%s is a message from a rank, not to one", name);
    }
    bool repeats = session->left && rule->kind == PD_MESSAGE_LEAVE;
    if ((rule->states & (1u << session->state)) == 0 && !repeats) {
        return pd_error_set(error, PD_EPROTOCOL, "%s %s is out of order%s", name,
                            state_name(session->state),
                            session->state == PD_SESSION_GREETING ? ": hello comes first" : "");
    }
    if (rule->leader_only && engine->leader == NULL) {
        return pd_error_set(error, PD_EPROTOCOL, "%s goes to rank 0 at %s, this is rank %u", name,
                            engine->topology->addresses[0], engine->topology->rank);
    }
    if (event->payload_bytes > 0 && !rule->payload) {
        return pd_error_set(error, PD_ELIMIT,
                            "%s: payload of %" PRIu64 " bytes; allowed: 0, it has none", name,
                            event->payload_bytes);
    }
    return PD_OK;
}

void pd_session_message(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_session *session = session_at(engine, event->connection);
    const struct rule *rule = rule_of(event->message->kind);
    struct pd_error error;

    if (session->state == PD_SESSION_CLOSING) {
        return;
    }
    session->received_ms = engine->now_ms;
    if (check_order(engine, session, event, rule, &error) != PD_OK) {
        struct pd_event failed = *event;
        failed.error = &error;
        pd_session_failed(engine, &failed);
        return;
    }
    rule->handle(engine, event);
}

/* ---- Time ---- */

void pd_session_progress(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_session *session = session_at(engine, event->connection);

    if (event->received) {
        session->received_ms = engine->now_ms;
        if (session->payload == PD_SESSION_PAYLOAD_PUSH) {
            struct pd_worker *worker = pd_session_worker(engine, session);
            pd_contribution_receive(pd_roster_contribution(worker, session->push.hessian),
                                    event->payload_bytes);
        }
    } else {
        session->sent_ms = engine->now_ms;
    }
}

void pd_session_sent(struct pd_engine *engine, const struct pd_event *event)
{
    struct pd_session *session = session_at(engine, event->connection);

    session->sent_ms = engine->now_ms;
    pd_serve_release(engine, event->connection);
    pd_heap_free(session->reply);
    session->reply = NULL;
    if (session->ahead == PD_SESSION_AHEAD_VOID) {
        session->ahead = PD_SESSION_AHEAD_NONE;
        pd_serve_answer(engine, event->connection);
    }
}

static bool over(uint64_t now_ms, uint64_t since_ms, double limit_s)
{
    return (double)(now_ms - since_ms) > limit_s * 1000.0;
}

/* Whether the peer has an answer to read, and nothing else to do. One that is still pushing need
 * not read what comes ahead, void or not, before it is done: its program may be computing. */
static bool has_to_read(const struct pd_session *session)
{
    return session->sending && session->ahead != PD_SESSION_AHEAD_OPEN &&
           !(session->ahead == PD_SESSION_AHEAD_VOID &&
             session->payload != PD_SESSION_PAYLOAD_NONE);
}

/* The deadline a session is over, as an error; PD_OK when it is in time. */
static enum pd_status check_time(const struct pd_engine *engine, const struct pd_session *session,
                                 struct pd_error *error)
{
    const struct pd_config *config = engine->config;

    if (session->state == PD_SESSION_GREETING &&
        over(engine->now_ms, session->opened_ms, config->handshake_s)) {
        return pd_error_set(error, PD_ETIMEOUT, "no hello within %g s", config->handshake_s);
    }
    if (has_to_read(session) && over(engine->now_ms, session->sent_ms, config->send_timeout_s)) {
        return pd_error_set(error, PD_ETIMEOUT, "nothing was read of an answer for %g s",
                            config->send_timeout_s);
    }
    if (!has_to_read(session) && !pd_push_is_held_back(engine, session) &&
        over(engine->now_ms, session->received_ms, config->workers.lease_s)) {
        return pd_error_set(
            error, PD_ETIMEOUT,
            "the lease is over: nothing was heard for %g s; a peer that computes sends "
            "Ping",
            config->workers.lease_s);
    }
    return PD_OK;
}

void pd_session_tick(struct pd_engine *engine)
{
    for (pd_connection_id id = 0; id < engine->session_end; id++) {
        struct pd_session *session = &engine->sessions[id];
        struct pd_error error = {0};
        if (session->state != PD_SESSION_GREETING && session->state != PD_SESSION_GUEST &&
            session->state != PD_SESSION_WORKER) {
            continue;
        }
        if (check_time(engine, session, &error) == PD_OK) {
            continue;
        }
        if (session->sending) {
            pd_actions_log(engine->actions, "closing %s: %s", session->peer, error.message);
            close_because(engine, id, false, !has_to_read(session), error.message);
        } else {
            refuse_because(engine, id, &error, true, true);
        }
    }
}
