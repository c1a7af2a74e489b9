#include "server/core/engine_state.h"

#include "common/assert.h"

#include <inttypes.h>
#include <string.h>

/* Rank 0 may collect a step while this rank has the one before the last still to close, and a
 * worker that joins is told to begin with what that makes. */
#define VERSIONS_AHEAD 2u

enum pd_status pd_serve_pull(struct pd_engine *engine, pd_connection_id connection,
                             uint64_t min_version, uint32_t dtype, bool averaged,
                             struct pd_error *error)
{
    struct pd_session *session = &engine->sessions[connection];
    const struct pd_param_store *store = &engine->store;

    if (session->pull_waiting || (session->sending && session->ahead != PD_SESSION_AHEAD_VOID)) {
        return pd_error_set(error, PD_EPROTOCOL,
                            "pull before the answer to the one before has been read");
    }
    if (!pd_dtype_valid(dtype)) {
        return pd_error_set(error, PD_EINVALID,
                            "pull: dtype %u; allowed: 0 float32, 1 bfloat16, 2 float16", dtype);
    }
    if (averaged && !pd_average_enabled(&engine->config->average)) {
        return pd_error_set(error, PD_EREFUSED,
                            "pull: there are no averaged parameters: the configuration sets "
                            "neither ema.decay nor swa.every");
    }
    if (averaged && dtype != PD_DTYPE_FLOAT32) {
        return pd_error_set(error, PD_EINVALID, "pull: averaged parameters come as float32 only");
    }
    if (min_version > (store->has_version ? store->version + VERSIONS_AHEAD : VERSIONS_AHEAD - 1)) {
        return pd_error_set(error, PD_ESTEP,
                            "pull of version %" PRIu64 " is from the future: %s is %" PRIu64,
                            min_version, store->has_version ? "the next" : "the first",
                            store->has_version ? store->version + 1 : 0);
    }
    session->pull_waiting = true;
    session->pull_ahead = false;
    session->pull.min_version = min_version;
    session->pull.dtype = dtype;
    session->pull.averaged = averaged;
    return PD_OK;
}

void pd_serve_describe(const struct pd_engine *engine, const struct pd_session *session,
                       const struct pd_pull *pull, struct pd_pulled *pulled)
{
    const struct pd_param_store *store = &engine->store;

    pulled->version = store->version;
    pulled->dtype = pull->dtype;
    pulled->element_begin = store->lane.element_begin;
    pulled->element_count = store->lane.element_count;
    pulled->lr_count = engine->lr_count;
    memcpy(pulled->lrs, engine->lrs, engine->lr_count * sizeof engine->lrs[0]);
    pulled->skipped_steps = engine->skipped_steps;
    pulled->loss_scale = engine->loss_scale.scale;
    pulled->host_workers = session->host_workers;
    pulled->averaged = pull->averaged;
    pulled->stop = engine->stop_advised;
    pulled->ahead = false;
}

static void send_parameters(struct pd_engine *engine, pd_connection_id connection,
                            const struct pd_pull *pull, uint32_t buffer_index)
{
    struct pd_session *session = &engine->sessions[connection];
    struct pd_param_store *store = &engine->store;
    struct pd_param_buffer *buffer = &store->buffers[buffer_index];
    struct pd_message message;

    message.kind = PD_MESSAGE_PULLED;
    pd_serve_describe(engine, session, pull, &message.pulled);
    if (buffer_index != store->served) {
        message.pulled.ahead = true;
        message.pulled.version++;
    }
    enum pd_dtype dtype = (enum pd_dtype)pull->dtype;
    uint64_t payload_bytes = store->lane.element_count * pd_dtype_bytes(dtype);
    const float *payload = pull->averaged ? pd_param_store_average(store) : buffer->parameters;

    PD_ASSERT(!session->sending);
    session->sent_ms = engine->now_ms;
    if (payload_bytes > 0) {
        session->sending = true;
        session->sending_users = buffer_index + 1;
        buffer->users++;
    }
    pd_actions_send(engine->actions, connection, &message, payload_bytes > 0 ? payload : NULL,
                    payload_bytes, session->checksum);
    pd_actions_convert(engine->actions, dtype);
}

void pd_serve_send(struct pd_engine *engine, pd_connection_id connection, uint32_t buffer_index,
                   enum pd_dtype dtype)
{
    const struct pd_pull pull = {.dtype = dtype};
    send_parameters(engine, connection, &pull, buffer_index);
}

/* A session whose pull can be answered as far as versions go. */
static bool due(const struct pd_engine *engine, const struct pd_session *session)
{
    return session->pull_waiting && !session->sending && session->state != PD_SESSION_CLOSING &&
           engine->store.has_version && session->pull.min_version <= engine->store.version;
}

void pd_serve_answer(struct pd_engine *engine, pd_connection_id connection)
{
    struct pd_session *session = &engine->sessions[connection];

    if (due(engine, session)) {
        session->pull_waiting = false;
        send_parameters(engine, connection, &session->pull, engine->store.served);
    }
}

void pd_serve_answer_all(struct pd_engine *engine)
{
    for (pd_connection_id id = 0; id < engine->session_end; id++) {
        pd_serve_answer(engine, id);
    }
}

void pd_serve_let_go(struct pd_engine *engine, pd_connection_id connection)
{
    struct pd_session *session = &engine->sessions[connection];

    if (session->sending_users > 0) {
        struct pd_param_buffer *buffer = &engine->store.buffers[session->sending_users - 1];
        PD_ASSERT(buffer->users > 0);
        buffer->users--;
    }
    session->sending_users = 0;
}

void pd_serve_release(struct pd_engine *engine, pd_connection_id connection)
{
    pd_serve_let_go(engine, connection);
    engine->sessions[connection].sending = false;
}

void pd_serve_reclaim_spare(struct pd_engine *engine)
{
    uint32_t spare_users = 1 - engine->store.served + 1;

    for (pd_connection_id id = 0; id < engine->session_end; id++) {
        struct pd_session *session = &engine->sessions[id];
        if (session->state != PD_SESSION_CLOSING && session->state != PD_SESSION_NONE &&
            session->sending && session->sending_users == spare_users) {
            pd_actions_log(engine->actions,
                           "closing %s: it is still reading version %" PRIu64
                           ", whose memory the step after next needs",
                           session->peer, engine->store.version - 1);
            pd_session_close(engine, id, false);
        }
    }
}
