#include "client/exchange.h"

#include "client/socket.h"
#include "common/assert.h"
#include "common/heap.h"

#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define PD_RETRY_MS_MIN 20u
#define PD_RETRY_MS_MAX 2000u
#define PD_INTERRUPTED_POLL_MS 100u
/* How long a session is taken up between calls; a call that begins meanwhile waits for it. */
#define PD_RESUME_MS 500u

void pd_exchange_init(struct pd_exchange *exchange, uint64_t look_ns_max)
{
    memset(exchange, 0, sizeof *exchange);
    pd_busy_poll_init(&exchange->busy_poll, look_ns_max);
    if (gethostname(exchange->host, sizeof exchange->host - 1) != 0) {
        exchange->host[0] = '\0';
    }
    exchange->wake = -1;
    exchange->random = (uint64_t)getpid() << 32 ^ pd_clock_ms() ^ 0x9e3779b97f4a7c15u;
}

static void connection_destroy(struct pd_connection *connection)
{
    pd_socket_close(connection->socket);
    pd_zero_copy_finish(&connection->zero_copy);
    pd_sender_finish(&connection->sender);
    pd_receiver_finish(&connection->receiver);
    pd_heap_free(connection);
}

void pd_exchange_finish(struct pd_exchange *exchange)
{
    for (uint32_t i = 0; i < exchange->connection_count; i++) {
        connection_destroy(exchange->connections[i]);
    }
    exchange->connection_count = 0;
}

enum pd_status pd_exchange_contact(struct pd_exchange *exchange, const char *address,
                                   struct pd_connection **out, struct pd_error *error)
{
    PD_ASSERT(exchange->connection_count <= PD_RANK_COUNT_MAX);
    struct pd_connection *connection = pd_heap_zalloc(1, sizeof *connection);
    if (connection == NULL) {
        goto fail;
    }
    connection->socket = -1;
    pd_sender_init(&connection->sender);
    if (pd_receiver_init(&connection->receiver, error) != PD_OK) {
        goto fail_connection;
    }
    snprintf(connection->address, sizeof connection->address, "%s", address);
    exchange->connections[exchange->connection_count++] = connection;
    *out = connection;
    return PD_OK;

fail_connection:
    pd_sender_finish(&connection->sender);
    pd_heap_free(connection);
fail:
    *out = NULL;
    return pd_error_set(error, PD_ENOMEM, "out of memory for a connection to %s", address);
}

struct pd_connection *pd_exchange_find(const struct pd_exchange *exchange, uint32_t rank)
{
    for (uint32_t i = 0; i < exchange->connection_count; i++) {
        if (exchange->connections[i]->rank_known && exchange->connections[i]->rank == rank) {
            return exchange->connections[i];
        }
    }
    return NULL;
}

enum pd_status pd_exchange_connection(struct pd_exchange *exchange, uint32_t rank,
                                      const char *address, struct pd_connection **out,
                                      struct pd_error *error)
{
    *out = pd_exchange_find(exchange, rank);
    if (*out != NULL) {
        return PD_OK;
    }
    enum pd_status status = pd_exchange_contact(exchange, address, out, error);
    if (status == PD_OK) {
        (*out)->rank = rank;
        (*out)->rank_known = true;
    }
    return status;
}

void pd_exchange_drop(struct pd_exchange *exchange, struct pd_connection *connection)
{
    for (uint32_t i = 0; i < exchange->connection_count; i++) {
        if (exchange->connections[i] == connection) {
            exchange->connection_count--;
            exchange->connections[i] = exchange->connections[exchange->connection_count];
            connection_destroy(connection);
            return;
        }
    }
    PD_ASSERT(false);
}

/* "rank 1 at 127.0.0.1:7071" into `text`. */
static const char *where(const struct pd_connection *connection, char *text, size_t text_bytes)
{
    if (connection->rank_known) {
        snprintf(text, text_bytes, "rank %" PRIu32 " at %s", connection->rank, connection->address);
    } else {
        snprintf(text, text_bytes, "%s", connection->address);
    }
    return text;
}

static enum pd_status prefix_where(const struct pd_connection *connection, struct pd_error *error)
{
    char text[PD_ADDRESS_BYTES_MAX + 32];
    return pd_error_prefix(error, "%s", where(connection, text, sizeof text));
}

/* It may be in the middle of something. */
static void close_connection(struct pd_connection *connection)
{
    pd_socket_abort(connection->socket);
    connection->socket = -1;
    connection->state = PD_CONNECTION_CLOSED;
    pd_zero_copy_reset(&connection->zero_copy);
    pd_sender_reset(&connection->sender);
    pd_receiver_reset(&connection->receiver);
    connection->pace = (struct pd_pace){0};
}

/* ---- Losing and opening ---- */

static uint64_t random_next(struct pd_exchange *exchange)
{
    exchange->random ^= exchange->random << 13;
    exchange->random ^= exchange->random >> 7;
    exchange->random ^= exchange->random << 17;
    return exchange->random;
}

/* Half of the doubled pause, and a random share of the other half. */
static uint64_t pause_ms(struct pd_exchange *exchange, uint32_t attempt)
{
    uint64_t pause = PD_RETRY_MS_MIN;

    for (uint32_t i = 0; i < attempt && pause < PD_RETRY_MS_MAX; i++) {
        pause *= 2;
    }
    pause = pause < PD_RETRY_MS_MAX ? pause : PD_RETRY_MS_MAX;
    return pause / 2 + random_next(exchange) % (pause / 2 + 1);
}

/* The connection is gone for the reason in `fault`. One that was good is made again at once; so is
 * one with another address to try. */
static void lost(struct pd_exchange *exchange, struct pd_connection *connection,
                 const struct pd_error *fault)
{
    bool was_ready = connection->state == PD_CONNECTION_READY;

    connection->fault = *fault;
    close_connection(connection);
    if (connection->request != NULL) {
        pd_request_lost(connection->request);
    }
    connection->retry_ms = 0;
    if (!was_ready && connection->address_index + 1 < connection->address_count) {
        connection->address_index++;
        return;
    }
    if (!was_ready || connection->attempt > 0) {
        connection->retry_ms = pd_clock_ms() + pause_ms(exchange, connection->attempt);
    }
    connection->address_index = 0;
    connection->attempt++;
}

/* Errors: PD_EINVALID, an address that is none; every other fault leaves it to be tried again. */
static enum pd_status open_connection(struct pd_exchange *exchange,
                                      struct pd_connection *connection, struct pd_error *error)
{
    struct pd_error fault = {0};
    enum pd_status status =
        pd_socket_open(&connection->socket, connection->address, connection->address_index,
                       &connection->address_count, &fault);

    if (status == PD_EINVALID) {
        *error = fault;
        return status;
    }
    if (status != PD_OK) {
        lost(exchange, connection, &fault);
    } else {
        connection->state = PD_CONNECTION_CONNECTING;
    }
    return PD_OK;
}

static enum pd_status send_hello(struct pd_exchange *exchange, struct pd_connection *connection,
                                 struct pd_error *error)
{
    struct pd_message message = {.kind = PD_MESSAGE_HELLO};
    struct pd_hello *hello = &message.hello;

    snprintf(hello->client, sizeof hello->client, "libparamd %s", PARAMD_VERSION);
    snprintf(hello->host, sizeof hello->host, "%s", exchange->host);
    hello->run_id = exchange->run_id;
    if (exchange->joined) {
        hello->has_worker_id = true;
        hello->worker_id = exchange->worker.worker_id;
        hello->token = exchange->worker.token;
    }
    connection->state = PD_CONNECTION_GREETING;
    return pd_sender_start(&connection->sender, &message, NULL, exchange->checksum, error);
}

/* ---- What comes in ---- */

static enum pd_status on_welcome(struct pd_exchange *exchange, struct pd_connection *connection,
                                 const struct pd_welcome *welcome, struct pd_error *error)
{
    struct pd_request greet;
    struct pd_request *request = connection->request;

    if (connection->rank_known && welcome->rank != connection->rank) {
        return pd_error_set(error, PD_EPROTOCOL, "rank %" PRIu32 " answers there", welcome->rank);
    }
    if (welcome->rank >= PD_RANK_COUNT_MAX) {
        return pd_error_set(error, PD_EPROTOCOL, "rank %" PRIu32 "; allowed: below %u",
                            welcome->rank, PD_RANK_COUNT_MAX);
    }
    if (request == NULL) {
        pd_request_init_greet(&greet);
        request = &greet;
    }
    connection->rank = welcome->rank;
    connection->rank_known = true;
    connection->state = PD_CONNECTION_READY;
    connection->next.step = welcome->next_step;
    connection->next.micro_batch = welcome->next_micro_batch;
    exchange->welcome = *welcome;
    return pd_request_welcomed(request, welcome, exchange->run_id, error);
}

static enum pd_status on_draining(struct pd_exchange *exchange, const struct pd_draining *draining)
{
    exchange->draining = true;
    exchange->draining_step = draining->step;
    return PD_OK;
}

/* A message that no request waits for. */
static enum pd_status on_unasked(struct pd_connection *connection, const struct pd_message *message,
                                 struct pd_error *error)
{
    if (message->kind == PD_MESSAGE_ERROR && !message->error.fatal) {
        return PD_OK;
    }
    if (message->kind == PD_MESSAGE_SETTLED && message->settled.again) {
        connection->next = (struct pd_position){.step = message->settled.pulled.version - 1};
        return PD_OK;
    }
    if (message->kind == PD_MESSAGE_ERROR) {
        pd_error_set(&connection->fault, (enum pd_status)message->error.status, "%s",
                     message->error.text);
        return PD_OK;
    }
    return pd_error_set(error, PD_EPROTOCOL, "an answer that was not asked for: %s",
                        pd_message_kind_name(message->kind));
}

static enum pd_status on_message(struct pd_exchange *exchange, struct pd_connection *connection,
                                 struct pd_error *error)
{
    const struct pd_message *message = &connection->receiver.message;
    uint64_t payload_bytes = connection->receiver.prefix.payload_bytes;
    struct pd_request *request = connection->request;

    if (!connection->receiver.checksum_ok) {
        return pd_error_set(error, PD_ECHECKSUM, "%s does not match its checksum",
                            pd_message_kind_name(message->kind));
    }
    if (message->kind == PD_MESSAGE_DRAINING && payload_bytes == 0) {
        return on_draining(exchange, &message->draining);
    }
    if (connection->state == PD_CONNECTION_GREETING && message->kind == PD_MESSAGE_WELCOME &&
        payload_bytes == 0) {
        return on_welcome(exchange, connection, &message->welcome, error);
    }
    if (request == NULL || request->state == PD_REQUEST_DONE) {
        return on_unasked(connection, message, error);
    }
    enum pd_status status = pd_request_answered(request, message, payload_bytes, error);
    if (status != PD_OK || payload_bytes == 0) {
        return status;
    }
    if (request->state != PD_REQUEST_RECEIVING) {
        return pd_error_set(error, PD_EPROTOCOL, "%s with a payload of %" PRIu64 " bytes",
                            pd_message_kind_name(message->kind), payload_bytes);
    }
    struct pd_payload payload;
    status = pd_request_place(request, &payload, error);
    return status == PD_OK ? pd_receiver_place(&connection->receiver, &payload, error) : status;
}

/* What came ends the call. The stream is of use afterwards only if that was an answer after which
 * it stands between two frames: an Error that is not fatal. */
static void break_off(struct pd_connection *connection)
{
    const struct pd_message *message = &connection->receiver.message;
    bool answered = connection->request != NULL && connection->request->state == PD_REQUEST_DONE &&
                    message->kind == PD_MESSAGE_ERROR && !message->error.fatal;

    if (!answered || connection->state != PD_CONNECTION_READY) {
        close_connection(connection);
    }
}

/* Take in everything that is whole. A status other than PD_OK ends the call. */
static enum pd_status take_frames(struct pd_exchange *exchange, struct pd_connection *connection,
                                  struct pd_error *error)
{
    for (;;) {
        enum pd_status status = PD_OK;
        switch (pd_receiver_next(&connection->receiver, error)) {
        case PD_FRAME_MORE:
            return PD_OK;
        case PD_FRAME_MESSAGE:
            status = on_message(exchange, connection, error);
            break;
        case PD_FRAME_PAYLOAD:
            PD_ASSERT(connection->request != NULL);
            status =
                pd_request_received(connection->request, connection->receiver.checksum_ok, error);
            break;
        case PD_FRAME_FAILED:
            status = error->status;
            break;
        }
        if (status != PD_OK) {
            break_off(connection);
            return prefix_where(connection, error);
        }
    }
}

/* Receive once, up to PD_READ_BYTES_MAX; *byte_count is 0 when there was nothing. */
static enum pd_status receive_once(struct pd_exchange *exchange, struct pd_connection *connection,
                                   size_t *byte_count, struct pd_error *error)
{
    struct iovec pieces[PD_STREAM_PIECE_COUNT_MAX];
    size_t piece_count = pd_receiver_gather(&connection->receiver, pieces);
    struct pd_error fault;

    *byte_count = 0;
    if (pd_socket_receive(connection->socket, pieces, piece_count, byte_count, &fault) != PD_OK) {
        /* A fatal Error that came before the end, or a failed send, says more than the end. */
        if (connection->fault.status != PD_OK) {
            fault = connection->fault;
        }
        lost(exchange, connection, &fault);
        return PD_OK;
    }
    if (*byte_count == 0) {
        return PD_OK;
    }
    pd_receiver_filled(&connection->receiver, *byte_count);
    return take_frames(exchange, connection, error);
}

/* Receive what is there. A read between frames is small, so that what follows a header goes
 * straight to its place: with a payload behind it, that is read on at once. */
static enum pd_status receive(struct pd_exchange *exchange, struct pd_connection *connection,
                              struct pd_error *error)
{
    bool was_in_payload = pd_receiver_in_payload(&connection->receiver);
    size_t byte_count;
    enum pd_status status = receive_once(exchange, connection, &byte_count, error);

    if (status == PD_OK && !was_in_payload && byte_count > 0 &&
        pd_receiver_in_payload(&connection->receiver)) {
        status = receive_once(exchange, connection, &byte_count, error);
    }
    return status;
}

/* ---- What goes out ---- */

static void send_once(struct pd_connection *connection, uint64_t now_ms)
{
    struct iovec pieces[PD_STREAM_PIECE_COUNT_MAX];
    size_t byte_count;
    struct pd_error fault;

    connection->sender.copied = connection->zero_copy.refused;
    size_t piece_count = pd_sender_gather(&connection->sender, pieces);
    if (piece_count == 0) {
        return;
    }
    enum pd_status status =
        pd_sender_lends(&connection->sender)
            ? pd_zero_copy_send(&connection->zero_copy, connection->socket, pieces, piece_count,
                                &byte_count, &fault)
            : pd_socket_send(connection->socket, pieces, piece_count, &byte_count, &fault);
    if (status != PD_OK) {
        /* What the rank said before it closed may still be there to read; the end comes after it.
         */
        connection->fault = fault;
        pd_socket_shut(connection->socket);
        pd_zero_copy_reset(&connection->zero_copy);
        pd_sender_reset(&connection->sender);
        return;
    }
    if (byte_count > 0) {
        pd_sender_sent(&connection->sender, byte_count);
        connection->sent_ms = now_ms;
    }
}

/* When a ready connection that stays silent must say that its worker lives. */
static uint64_t ping_due_ms(const struct pd_exchange *exchange,
                            const struct pd_connection *connection)
{
    if (!exchange->joined || exchange->welcome.lease_ms == 0) {
        return PD_NEVER_MS;
    }
    return connection->sent_ms + exchange->welcome.lease_ms / 3 + 1;
}

/* Begin what is to be sent next, if nothing is on its way. */
static enum pd_status start_sending(struct pd_exchange *exchange, struct pd_connection *connection,
                                    uint64_t now_ms, struct pd_error *error)
{
    struct pd_message message;
    struct pd_payload payload;

    if (!pd_sender_idle(&connection->sender)) {
        return PD_OK;
    }
    if (connection->request != NULL && connection->request->state == PD_REQUEST_ASKING) {
        pd_request_send(connection->request, &message, &payload);
        connection->pace = (struct pd_pace){0};
        return pd_sender_start(&connection->sender, &message, &payload, exchange->checksum, error);
    }
    if (now_ms >= ping_due_ms(exchange, connection)) {
        message.kind = PD_MESSAGE_PING;
        return pd_sender_start(&connection->sender, &message, NULL, false, error);
    }
    return PD_OK;
}

/* Hold back the lanes of this host's ranks that are ahead of others. Not while the program computes
 * what is sent: a lane whose turn has not come is not slow. */
static void pace_lanes(struct pd_exchange *exchange, const struct pd_call *call, uint64_t now_ms)
{
    struct pd_pace_lane lanes[PD_RANK_COUNT_MAX + 1];
    struct pd_connection *paced[PD_RANK_COUNT_MAX + 1];
    size_t count = 0;

    for (uint32_t i = 0; i < exchange->connection_count && call->gate == NULL; i++) {
        struct pd_connection *connection = exchange->connections[i];
        struct pd_pace_lane *lane = &lanes[count];
        if (connection->local && pd_sender_in_payload(&connection->sender, &lane->sent)) {
            lane->pace = &connection->pace;
            lane->byte_count = connection->sender.payload.byte_count;
            lane->answered = pd_receiver_share(&connection->receiver);
            paced[count++] = connection;
        }
    }
    pd_pace_lanes(lanes, count, now_ms);
    for (size_t i = 0; i < count; i++) {
        paced[i]->sender.allowed = paced[i]->pace.allowed;
    }
}

/* ---- The loop ---- */

/* `deadline_ms` of a call, moved to where its time began to run. */
static uint64_t moved(const struct pd_call *call, uint64_t deadline_ms)
{
    if (call->gate == NULL || deadline_ms == PD_NEVER_MS) {
        return deadline_ms;
    }
    uint64_t opened_ms = atomic_load(&call->gate->opened_ms);
    return opened_ms == 0 ? PD_NEVER_MS : opened_ms + (deadline_ms - call->start_ms);
}

static bool pending(const struct pd_connection *connection)
{
    return connection->request != NULL && connection->request->state != PD_REQUEST_DONE;
}

/* The one table of moves that need no event: open what is closed, send what is ready. */
static enum pd_status advance(struct pd_exchange *exchange, struct pd_connection *connection,
                              const struct pd_call *call, uint64_t now_ms, struct pd_error *error)
{
    enum pd_status status = PD_OK;

    if (connection->state == PD_CONNECTION_CLOSED && pending(connection)) {
        if (connection->attempt > 0 && now_ms >= moved(call, call->connect_deadline_ms)) {
            *error = connection->fault;
            return prefix_where(connection, error);
        }
        return now_ms < connection->retry_ms ? PD_OK : open_connection(exchange, connection, error);
    }
    if (connection->state == PD_CONNECTION_READY) {
        status = start_sending(exchange, connection, now_ms, error);
    }
    if (status != PD_OK) {
        return prefix_where(connection, error);
    }
    if (connection->state >= PD_CONNECTION_GREETING) {
        send_once(connection, now_ms);
    }
    return PD_OK;
}

/* Parameters that come ahead of their step are not read while the program computes: it may still
 * need those that are there. */
static bool reads(const struct pd_connection *connection, const struct pd_call *call)
{
    const struct pd_request *request = connection->request;

    return request == NULL || !request->push.ahead || call->gate == NULL ||
           atomic_load(&call->gate->opened_ms) != 0;
}

static short events_of(const struct pd_connection *connection, const struct pd_call *call)
{
    switch (connection->state) {
    case PD_CONNECTION_CLOSED:
        return 0;
    case PD_CONNECTION_CONNECTING:
        return POLLOUT;
    case PD_CONNECTION_GREETING:
    case PD_CONNECTION_READY:
        break;
    }
    int read = connection->state < PD_CONNECTION_READY || reads(connection, call) ? POLLIN : 0;
    return (short)(pd_sender_blocked(&connection->sender) ? read : read | POLLOUT);
}

static enum pd_status on_connected(struct pd_exchange *exchange, struct pd_connection *connection,
                                   struct pd_error *error)
{
    struct pd_error fault = {0};

    if (pd_socket_connected(connection->socket, &fault) != PD_OK) {
        lost(exchange, connection, &fault);
        return PD_OK;
    }
    connection->fault.status = PD_OK;
    connection->local = pd_socket_is_local(connection->socket);
    return send_hello(exchange, connection, error);
}

/* When poll must return at the latest. */
static uint64_t wake_ms(const struct pd_exchange *exchange, const struct pd_call *call)
{
    uint64_t wake = moved(call, call->deadline_ms);

    if (exchange->interrupted != NULL && wake > exchange->asked_ms + PD_INTERRUPTED_POLL_MS) {
        wake = exchange->asked_ms + PD_INTERRUPTED_POLL_MS;
    }
    for (uint32_t i = 0; i < exchange->connection_count; i++) {
        const struct pd_connection *connection = exchange->connections[i];
        uint64_t due = PD_NEVER_MS;
        if (connection->state == PD_CONNECTION_CLOSED && pending(connection)) {
            due = connection->retry_ms;
        } else if (connection->state == PD_CONNECTION_READY &&
                   pd_sender_idle(&connection->sender)) {
            due = ping_due_ms(exchange, connection);
        } else {
            due = pd_pace_due_ms(&connection->pace);
        }
        wake = due < wake ? due : wake;
    }
    return wake;
}

static int wait_bound_ms(uint64_t wake, uint64_t now_ms)
{
    if (wake == PD_NEVER_MS) {
        return -1;
    }
    uint64_t wait = wake > now_ms ? wake - now_ms : 0;
    return wait < 60000 ? (int)wait : 60000;
}

/* Ask the caller whether to go on: when a signal came, and from time to time. */
static bool interrupted(struct pd_exchange *exchange, bool signalled)
{
    if (exchange->interrupted == NULL) {
        return false;
    }
    uint64_t now_ms = pd_clock_ms();
    if (!signalled && now_ms < exchange->asked_ms + PD_INTERRUPTED_POLL_MS) {
        return false;
    }
    exchange->asked_ms = now_ms;
    return exchange->interrupted(exchange->interrupted_context) != 0;
}

/* Whether everything has been sent, and no part of an answer has come yet. */
static bool awaits_answers(const struct pd_exchange *exchange, const struct pollfd *polled)
{
    for (uint32_t i = 0; i < exchange->connection_count; i++) {
        if ((polled[i].events & POLLOUT) != 0 ||
            pd_receiver_in_payload(&exchange->connections[i]->receiver)) {
            return false;
        }
    }
    return true;
}

/* Wait for an answer; first look for it as long as was found to pay. A core that somebody else has
 * use for, such as the rank that is to answer, is given away meanwhile. */
static int poll_for_answers(struct pd_busy_poll *busy_poll, struct pollfd *polled, nfds_t count,
                            int bound_ms)
{
    uint64_t begin_ns = pd_clock_ns();
    uint64_t bound_ns = bound_ms < 0 ? UINT64_MAX : (uint64_t)bound_ms * 1000000;
    uint64_t took_ns = 0;
    int ready = 0;

    while (ready == 0 && took_ns < busy_poll->look_ns && took_ns < bound_ns) {
        ready = poll(polled, count, 0);
        if (ready == 0) {
            (void)sched_yield();
        }
        took_ns = pd_clock_ns() - begin_ns;
    }
    if (ready == 0) {
        uint64_t left_ns = took_ns < bound_ns ? bound_ns - took_ns : 0;
        ready = poll(polled, count, bound_ms < 0 ? -1 : (int)(left_ns / 1000000));
        took_ns = pd_clock_ns() - begin_ns;
    }
    pd_busy_poll_waited(busy_poll, took_ns);
    return ready;
}

/* Wait for the sockets and serve those that are ready. While a program computes the rest of its
 * gradients, its cores are not for looking. */
static enum pd_status poll_once(struct pd_exchange *exchange, const struct pd_call *call,
                                uint64_t now_ms, struct pd_error *error)
{
    struct pollfd polled[PD_RANK_COUNT_MAX + 2];
    uint32_t count = exchange->connection_count;

    for (uint32_t i = 0; i < count; i++) {
        polled[i].fd = exchange->connections[i]->socket;
        polled[i].events = events_of(exchange->connections[i], call);
        polled[i].revents = 0;
    }
    polled[count] = (struct pollfd){.fd = exchange->wake, .events = POLLIN};
    int bound_ms = wait_bound_ms(wake_ms(exchange, call), now_ms);
    int ready = call->gate == NULL && awaits_answers(exchange, polled)
                    ? poll_for_answers(&exchange->busy_poll, polled, count + 1, bound_ms)
                    : poll(polled, count + 1, bound_ms);
    bool woken = ready > 0 && polled[count].revents != 0;
    if (woken) {
        eventfd_t times;
        (void)eventfd_read(exchange->wake, &times);
    }
    if (interrupted(exchange, ready < 0 || woken)) {
        return pd_error_set(error, PD_STATUS_INTERRUPTED, "interrupted");
    }
    for (uint32_t i = 0; i < count && ready > 0; i++) {
        struct pd_connection *connection = exchange->connections[i];
        enum pd_status status = PD_OK;
        if (polled[i].revents == 0) {
            continue;
        }
        if (connection->state == PD_CONNECTION_CONNECTING) {
            status = on_connected(exchange, connection, error);
        } else if ((polled[i].revents & ~POLLOUT) != 0) {
            status = receive(exchange, connection, error);
        }
        if (status != PD_OK) {
            return status;
        }
    }
    return PD_OK;
}

/* The first request that is not done; NULL when all are. */
static const struct pd_connection *first_pending(const struct pd_exchange *exchange)
{
    for (uint32_t i = 0; i < exchange->connection_count; i++) {
        if (pending(exchange->connections[i])) {
            return exchange->connections[i];
        }
    }
    return NULL;
}

static enum pd_status explain_deadline(const struct pd_connection *connection,
                                       const struct pd_call *call, struct pd_error *error)
{
    char place[PD_ADDRESS_BYTES_MAX + 32];
    char missing[96];
    double waited_s = (double)(call->deadline_ms - call->start_ms) / 1000.0;

    where(connection, place, sizeof place);
    if (connection->state == PD_CONNECTION_CLOSED && connection->fault.status != PD_OK) {
        return pd_error_set(error, PD_ECONNECTION, "%s: %s; gave up after %.1f s", place,
                            connection->fault.message, waited_s);
    }
    return pd_error_set(error, PD_ETIMEOUT, "%s after %.1f s from %s",
                        connection->state == PD_CONNECTION_READY
                            ? pd_request_missing(connection->request, missing, sizeof missing)
                            : "no welcome",
                        waited_s, place);
}

/* Whether the daemon's drain ends the call: nothing it waits for will come. */
static bool ended_by_draining(const struct pd_exchange *exchange)
{
    const struct pd_connection *connection = first_pending(exchange);

    if (!exchange->draining || connection == NULL) {
        return false;
    }
    return pd_request_ends_with_draining(connection->request) ||
           connection->state == PD_CONNECTION_CLOSED;
}

/* Read what has come since the last call: a lost connection shows before a payload is wasted on it,
 * and an old error is not taken for the answer to come. */
static void catch_up(struct pd_exchange *exchange)
{
    for (uint32_t i = 0; i < exchange->connection_count; i++) {
        struct pd_connection *connection = exchange->connections[i];
        struct pd_request *request = connection->request;
        size_t byte_count = 1;
        connection->request = NULL;
        while (connection->state == PD_CONNECTION_READY && byte_count > 0) {
            struct pd_error fault = {0};
            if (receive_once(exchange, connection, &byte_count, &fault) != PD_OK) {
                connection->fault = fault;
            }
        }
        connection->request = request;
    }
}

/* Workers begin with different ranks, so that all of these have something to do from the start. */
static struct pd_connection *in_turn(const struct pd_exchange *exchange, uint32_t turn)
{
    uint32_t first = exchange->worker.worker_id % exchange->connection_count;

    return exchange->connections[(first + turn) % exchange->connection_count];
}

static enum pd_status loop(struct pd_exchange *exchange, const struct pd_call *call,
                           struct pd_error *error)
{
    enum pd_status status = PD_OK;

    while (status == PD_OK && first_pending(exchange) != NULL) {
        uint64_t now_ms = pd_clock_ms();
        if (ended_by_draining(exchange)) {
            return pd_error_set(error, PD_EDRAINING,
                                "the daemon is draining: the last step closed was %" PRIu64
                                ", no other will",
                                exchange->draining_step);
        }
        if (now_ms >= moved(call, call->deadline_ms)) {
            return explain_deadline(first_pending(exchange), call, error);
        }
        for (uint32_t i = 0; i < exchange->connection_count && status == PD_OK; i++) {
            status = advance(exchange, in_turn(exchange, i), call, now_ms, error);
        }
        /* With all that has left: a lane that is held back from now on has to be woken. */
        pace_lanes(exchange, call, now_ms);
        if (status == PD_OK) {
            status = poll_once(exchange, call, now_ms, error);
        }
    }
    return status;
}

enum pd_status pd_exchange_run(struct pd_exchange *exchange, const struct pd_call *call,
                               struct pd_error *error)
{
    exchange->asked_ms = call->start_ms;
    catch_up(exchange);
    enum pd_status status = loop(exchange, call, error);
    for (uint32_t i = 0; i < exchange->connection_count; i++) {
        struct pd_connection *connection = exchange->connections[i];
        bool unfinished = pending(connection) && connection->request->state != PD_REQUEST_ASKING;
        /* A rank answers what it has already by its header: then the rest of the arrays, which are
         * the caller's again, is on its way though all is well. */
        bool sending = connection->request != NULL && !pd_sender_idle(&connection->sender);
        if (sending ||
            (status != PD_OK && (unfinished || connection->state < PD_CONNECTION_READY))) {
            close_connection(connection);
        }
        connection->request = NULL;
        connection->retry_ms = 0;
        connection->attempt = 0;
    }
    return status == PD_OK ? PD_OK : pd_error_prefix(error, "%s", call->name);
}

/* Take up the sessions of connections that were lost between calls, before the daemon evicts the
 * worker; what fails is left for the next round or call. */
static void resume_lost(struct pd_exchange *exchange, uint64_t now_ms)
{
    struct pd_request greet[PD_RANK_COUNT_MAX + 1];
    struct pd_call call = {.name = "keep-alive",
                           .start_ms = now_ms,
                           .deadline_ms = now_ms + PD_RESUME_MS,
                           .connect_deadline_ms = now_ms};
    bool any = false;

    for (uint32_t i = 0; i < exchange->connection_count; i++) {
        if (exchange->connections[i]->state == PD_CONNECTION_CLOSED) {
            pd_request_init_greet(&greet[i]);
            exchange->connections[i]->request = &greet[i];
            any = true;
        }
    }
    if (any && !exchange->draining) {
        struct pd_error fault = {0};
        int (*ask)(void *) = exchange->interrupted;
        exchange->interrupted = NULL;
        enum pd_status status = pd_exchange_run(exchange, &call, &fault);
        exchange->interrupted = ask;
        (void)status;
    }
}

uint64_t pd_exchange_keep_alive(struct pd_exchange *exchange, uint64_t now_ms)
{
    uint64_t next_ms = PD_NEVER_MS;

    catch_up(exchange);
    resume_lost(exchange, now_ms);
    for (uint32_t i = 0; i < exchange->connection_count; i++) {
        struct pd_connection *connection = exchange->connections[i];
        struct pd_error fault = {0};
        uint64_t due_ms = now_ms + exchange->welcome.lease_ms / 3 + 1;
        if (connection->state == PD_CONNECTION_READY) {
            if (start_sending(exchange, connection, now_ms, &fault) == PD_OK) {
                send_once(connection, now_ms);
            }
            due_ms = ping_due_ms(exchange, connection);
        }
        next_ms = due_ms < next_ms ? due_ms : next_ms;
    }
    return next_ms > now_ms ? next_ms : now_ms + 1;
}
