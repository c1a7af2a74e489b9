#include "server/io/loop.h"

#include "common/assert.h"
#include "common/checksum.h"
#include "common/frame.h"
#include "common/heap.h"
#include "server/io/connection.h"
#include "server/io/control.h"
#include "server/io/listener.h"
#include "server/io/log.h"
#include "server/io/signals.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    TICK_MS = 250,
    SCRATCH_BYTES = 64 * 1024,
    ROOM_BYTES = 128 * 1024, /* of what is converted at a time: a block of the largest size */
    ENTROPY_COUNT = 64,      /* random numbers fetched from the kernel at a time */
    ABORT_EXIT_CODE = 3,
    COLLECTIVE_GRACE_MS = 2000, /* longer than a rank may be silent, which is noticed by name */
    NETWORK_BYTES_PER_MS_MIN = 10 * 1000, /* 10 MB/s: slower ones are taken for stuck */
    FULL_SAID_MS = 5000,        /* how often the log says that connections are turned away */
    SHARED_BYTES_MAX = 1 << 20, /* payloads up to here are summed before any of it leaves */
};

/* Owner: the loop thread, but for `notify`. */
struct pd_loop {
    uv_loop_t uv;
    uv_timer_t tick;
    uv_idle_t work;
    uv_async_t notify;
    uv_prepare_t flush;
    struct pd_loop_options options;
    struct pd_listener *listener;
    struct pd_control *control;
    struct pd_signals *signals;

    struct pd_actions actions;
    bool carrying_out;
    bool sum_known; /* of the last SEND of these actions: */
    uint64_t sum;
    bool exiting;
    int exit_code;

    /* Connections that owe events, first to last. */
    struct pd_connection *owing_first;
    struct pd_connection *owing_last;

    struct pd_connection *delayed; /* has collected what it is to write; NULL: none has */

    /* Collectives under way, number n at n modulo their count; and since when the first of them has
     * had its turn. */
    const struct pd_collective *collectives[PD_COLLECTIVE_QUEUE_COUNT_MAX];
    uint32_t collectives_asked;
    uint32_t collectives_done;
    uint64_t collective_started_ms;

    uint64_t full_said_ms; /* when the log last said that there is no room */
    uint32_t connection_count;
    uint32_t free_count;
    pd_connection_id free_ids[PD_CONNECTION_COUNT_MAX]; /* a stack */
    struct pd_connection *connections[PD_CONNECTION_COUNT_MAX];
    bool owes[PD_CONNECTION_COUNT_MAX];

    uint32_t entropy_left;
    uint64_t entropy[ENTROPY_COUNT];
    char scratch[SCRATCH_BYTES];
    struct pd_send_room room; /* of `converted` */
    uint16_t converted[ROOM_BYTES / sizeof(uint16_t)];
};

uint64_t pd_loop_now_ms(void)
{
    return uv_hrtime() / 1000000;
}

uv_loop_t *pd_loop_uv(struct pd_loop *loop)
{
    return &loop->uv;
}

uv_buf_t pd_loop_scratch(struct pd_loop *loop)
{
    return uv_buf_init(loop->scratch, sizeof loop->scratch);
}

struct pd_send_room *pd_loop_room(struct pd_loop *loop)
{
    return &loop->room;
}

void pd_loop_notify(struct pd_loop *loop)
{
    (void)uv_async_send(&loop->notify);
}

void pd_loop_abort(const char *text)
{
    pd_log("%s", text);
    /* MPI_Abort is for the MPI thread, which may be stuck; the launcher ends the job at this as
     * well. */
    _exit(ABORT_EXIT_CODE);
}

static uint64_t next_entropy(struct pd_loop *loop)
{
    if (loop->entropy_left == 0) {
        ssize_t got = getrandom(loop->entropy, sizeof loop->entropy, 0);
        PD_ASSERT(got == (ssize_t)sizeof loop->entropy);
        loop->entropy_left = ENTROPY_COUNT;
    }
    return loop->entropy[--loop->entropy_left];
}

static const char *collective_name(enum pd_collective_kind kind)
{
    switch (kind) {
    case PD_COLLECTIVE_GATHER_DOUBLES:
        return "gather of numbers";
    case PD_COLLECTIVE_EXCHANGE_FLOATS:
        return "exchange of gradients";
    case PD_COLLECTIVE_GATHER_FLOATS:
        return "gather of parameters";
    case PD_COLLECTIVE_BROADCAST_FLOATS:
        return "broadcast of parameters";
    }
    return "unknown collective";
}

/* Close everything in good order; the loop ends when the last connection is gone. */
static void begin_exit(struct pd_loop *loop, int exit_code)
{
    if (loop->exiting) {
        return;
    }
    loop->exiting = true;
    loop->exit_code = exit_code;
    pd_listener_destroy(loop->listener);
    loop->listener = NULL;
    pd_control_destroy(loop->control);
    loop->control = NULL;
    for (uint32_t id = 0; id < PD_CONNECTION_COUNT_MAX; id++) {
        if (loop->connections[id] != NULL) {
            pd_connection_close(loop->connections[id], true);
        }
    }
}

static void on_work(uv_idle_t *idle)
{
    struct pd_loop *loop = idle->data;
    struct pd_event event = {.kind = PD_EVENT_WORK};
    (void)uv_idle_stop(idle);
    pd_loop_emit(loop, &event);
    pd_loop_settle(loop);
}

static struct pd_connection *connection_of(struct pd_loop *loop, const struct pd_action *action)
{
    PD_ASSERT(action->connection < PD_CONNECTION_COUNT_MAX);
    struct pd_connection *connection = loop->connections[action->connection];
    PD_ASSERT(connection != NULL);
    return connection;
}

static const struct pd_collective *first_collective(const struct pd_loop *loop)
{
    return loop->collectives_done == loop->collectives_asked
               ? NULL
               : loop->collectives[loop->collectives_done % PD_COLLECTIVE_QUEUE_COUNT_MAX];
}

static void submit(struct pd_loop *loop, const struct pd_collective *collective)
{
    const struct pd_loop_collectives *collectives = &loop->options.collectives;

    PD_ASSERT(loop->collectives_asked - loop->collectives_done < PD_COLLECTIVE_QUEUE_COUNT_MAX);
    if (first_collective(loop) == NULL) {
        loop->collective_started_ms = pd_loop_now_ms();
    }
    loop->collectives[loop->collectives_asked++ % PD_COLLECTIVE_QUEUE_COUNT_MAX] = collective;
    collectives->submit(collectives->context, collective);
}

/* Whether an action is a SEND of the same bytes, to be summed, as the one after it. */
static bool goes_out_again(const struct pd_loop *loop, size_t index)
{
    const struct pd_actions *actions = &loop->actions;
    const struct pd_action *one = &actions->items[index];
    const struct pd_action *next = one + 1;

    return index + 1 < actions->count && one->kind == PD_ACTION_SEND &&
           next->kind == PD_ACTION_SEND && one->checksum && next->checksum &&
           one->payload == next->payload && one->payload_dtype == next->payload_dtype &&
           one->payload_bytes == next->payload_bytes && one->payload_ready == one->payload_bytes &&
           next->payload_ready == one->payload_bytes && one->frame_bytes == next->frame_bytes &&
           memcmp(pd_actions_bytes(actions, one->frame_offset),
                  pd_actions_bytes(actions, next->frame_offset), one->frame_bytes) == 0;
}

static uint64_t sum_of(struct pd_loop *loop, const struct pd_action *action, const uint8_t *frame)
{
    uint64_t sum = pd_checksum_add(PD_CHECKSUM_EMPTY, frame + PD_PREFIX_BYTES,
                                   action->frame_bytes - PD_PREFIX_BYTES);

    for (uint64_t begin = 0; begin < action->payload_bytes;) {
        uint64_t end = action->payload_bytes;
        const void *piece =
            pd_send_room_convert(&loop->room, action->payload, action->payload_dtype, begin, &end);
        sum = pd_checksum_add(sum, piece, (size_t)(end - begin));
        begin = end;
    }
    return sum;
}

/* What all workers get is summed once. A large payload is not, as its pieces are summed while they
 * are in cache to be sent. */
static void carry_out_send(struct pd_loop *loop, size_t index)
{
    const struct pd_action *action = &loop->actions.items[index];
    const uint8_t *frame = pd_actions_bytes(&loop->actions, action->frame_offset);
    bool again = action->payload_bytes <= SHARED_BYTES_MAX && goes_out_again(loop, index);

    if (again && !loop->sum_known) {
        loop->sum = sum_of(loop, action, frame);
        loop->sum_known = true;
    }
    pd_connection_send(connection_of(loop, action), action, frame,
                       loop->sum_known ? &loop->sum : NULL);
    loop->sum_known = again;
}

static void carry_out(struct pd_loop *loop, size_t index)
{
    const struct pd_action *action = &loop->actions.items[index];
    switch (action->kind) {
    case PD_ACTION_SEND:
        carry_out_send(loop, index);
        break;
    case PD_ACTION_RELEASE:
        pd_connection_release(connection_of(loop, action), action->payload_ready);
        break;
    case PD_ACTION_PLACE:
        pd_connection_place(connection_of(loop, action), action->destination, action->place_bytes);
        break;
    case PD_ACTION_DROP:
        pd_connection_drop(connection_of(loop, action));
        break;
    case PD_ACTION_CLOSE:
        pd_connection_close(connection_of(loop, action), action->flush);
        break;
    case PD_ACTION_COLLECTIVE:
        submit(loop, action->collective);
        break;
    case PD_ACTION_WORK:
        (void)uv_idle_start(&loop->work, on_work);
        break;
    case PD_ACTION_LOG:
        pd_log("%s", (const char *)pd_actions_bytes(&loop->actions, action->text_offset));
        break;
    case PD_ACTION_READY:
        (void)printf("%s\n", loop->options.ready_line);
        (void)fflush(stdout);
        break;
    case PD_ACTION_EXIT:
        begin_exit(loop, action->exit_code);
        break;
    case PD_ACTION_ABORT:
        pd_loop_abort((const char *)pd_actions_bytes(&loop->actions, action->text_offset));
    }
}

/* Only a Join makes a token: a push costs no call for one. */
static bool may_make_tokens(const struct pd_event *event)
{
    return event->kind == PD_EVENT_MESSAGE && event->payload_bytes == 0;
}

void pd_loop_emit(struct pd_loop *loop, struct pd_event *event)
{
    if (loop->exiting) {
        return;
    }
    PD_ASSERT(!loop->carrying_out);
    loop->carrying_out = true;
    event->now_ms = uv_now(&loop->uv);
    event->entropy = may_make_tokens(event) ? next_entropy(loop) : 0;
    pd_actions_reset(&loop->actions);
    pd_send_room_clear(&loop->room);
    pd_engine_step(loop->options.engine, event, &loop->actions);
    pd_send_room_freshen(&loop->room, &loop->actions.fresh);
    for (size_t i = 0; i < loop->actions.count; i++) {
        carry_out(loop, i);
    }
    pd_send_room_freshen(&loop->room, NULL);
    loop->carrying_out = false;
}

void pd_loop_owe(struct pd_loop *loop, struct pd_connection *connection)
{
    pd_connection_id id = pd_connection_number(connection);
    if (loop->owes[id]) {
        return;
    }
    loop->owes[id] = true;
    *pd_connection_owing_link(connection) = NULL;
    if (loop->owing_first == NULL) {
        loop->owing_first = connection;
    } else {
        *pd_connection_owing_link(loop->owing_last) = connection;
    }
    loop->owing_last = connection;
}

void pd_loop_delay(struct pd_loop *loop, struct pd_connection *connection)
{
    PD_ASSERT(loop->delayed == NULL || loop->delayed == connection);
    loop->delayed = connection;
}

static void on_flush(uv_prepare_t *prepare)
{
    struct pd_loop *loop = prepare->data;
    struct pd_connection *connection = loop->delayed;

    loop->delayed = NULL;
    if (connection != NULL) {
        pd_connection_flush(connection);
        pd_loop_settle(loop);
    }
}

void pd_loop_settle(struct pd_loop *loop)
{
    while (loop->owing_first != NULL) {
        struct pd_connection *connection = loop->owing_first;
        loop->owing_first = *pd_connection_owing_link(connection);
        loop->owes[pd_connection_number(connection)] = false;
        pd_connection_advance(connection);
    }
    if (loop->exiting && loop->connection_count == 0) {
        uv_stop(&loop->uv);
    }
}

/* Tell a peer that there is no room for it, as far as its socket takes it at once. */
static void turn_away(struct pd_loop *loop, int fd)
{
    struct pd_error error = {0};
    struct pd_message message = {.kind = PD_MESSAGE_ERROR,
                                 .error = {.status = PD_ELIMIT, .fatal = true}};
    uint64_t now_ms = pd_loop_now_ms();
    uint8_t *frame = NULL;
    size_t frame_bytes = 0;

    (void)snprintf(message.error.text, sizeof message.error.text,
                   "%" PRIu32 " connections are open, the most allowed: try again later",
                   loop->connection_count);
    if (pd_frame_encode(&frame, &frame_bytes, &message, 0, 0, &error) == PD_OK) {
        (void)send(fd, frame, frame_bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        pd_heap_free(frame);
    }
    if (loop->full_said_ms == 0 || now_ms - loop->full_said_ms >= FULL_SAID_MS) {
        loop->full_said_ms = now_ms;
        pd_log("turning connections away: %s", message.error.text);
    }
}

void pd_loop_adopt(struct pd_loop *loop, int fd, bool outgoing)
{
    struct pd_error error = {0};
    struct pd_connection *connection = NULL;

    if (!loop->exiting && loop->connection_count >= loop->options.connection_count_max) {
        turn_away(loop, fd);
    }
    if (loop->exiting || loop->connection_count >= loop->options.connection_count_max) {
        (void)close(fd);
        return;
    }
    pd_connection_id id = loop->free_ids[loop->free_count - 1];
    if (pd_connection_create(&connection, loop, id, fd, outgoing, &error) != PD_OK) {
        pd_log("a connection was refused: %s", error.message);
        (void)close(fd);
        return;
    }
    loop->free_count--;
    loop->connection_count++;
    loop->connections[id] = connection;
    struct pd_event event = {.kind = PD_EVENT_OPENED,
                             .connection = id,
                             .outgoing = outgoing,
                             .peer = pd_connection_peer(connection)};
    pd_loop_emit(loop, &event);
    pd_loop_owe(loop, connection);
}

void pd_loop_forget(struct pd_loop *loop, pd_connection_id id)
{
    PD_ASSERT(loop->connections[id] != NULL);
    PD_ASSERT(!loop->owes[id]);
    if (loop->delayed == loop->connections[id]) {
        loop->delayed = NULL;
    }
    loop->connections[id] = NULL;
    loop->connection_count--;
    loop->free_ids[loop->free_count++] = id;
}

/* What a collective may take: the rank timeout, the time of its bytes on a slow network, and a
 * grace: a rank that has stopped keeps a collective waiting as soon as it keeps others without a
 * beat, and is to be found by its silence, as only that tells which one it is. */
static uint64_t collective_ms_max(const struct pd_loop *loop,
                                  const struct pd_collective *collective)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < PD_RANK_COUNT_MAX; i++) {
        bytes += (uint64_t)collective->receive_counts[i] * sizeof(double);
    }
    return loop->options.rank_timeout_ms + bytes / NETWORK_BYTES_PER_MS_MIN + COLLECTIVE_GRACE_MS;
}

static void check_collective(struct pd_loop *loop, uint64_t now_ms)
{
    const struct pd_collective *collective = first_collective(loop);
    char text[PD_ERROR_BYTES_MAX];
    if (collective == NULL ||
        now_ms < loop->collective_started_ms + collective_ms_max(loop, collective)) {
        return;
    }
    (void)snprintf(text, sizeof text,
                   "%s of order %" PRIu64 " stuck for %.1f s: some rank does not take part",
                   collective_name(collective->kind), collective->order_index,
                   (double)(now_ms - loop->collective_started_ms) / 1000);
    pd_loop_abort(text);
}

static void on_tick(uv_timer_t *timer)
{
    struct pd_loop *loop = timer->data;
    struct pd_event event = {.kind = PD_EVENT_TICK};
    uint64_t now_ms = pd_loop_now_ms();

    if (loop->signals != NULL) {
        pd_signals_tick(loop->signals);
    }
    if (loop->listener != NULL) {
        pd_listener_tick(loop->listener);
    }
    check_collective(loop, now_ms);
    for (uint32_t id = 0; id < PD_CONNECTION_COUNT_MAX; id++) {
        if (loop->connections[id] != NULL) {
            pd_connection_tick(loop->connections[id], now_ms);
        }
    }
    pd_loop_emit(loop, &event);
    pd_loop_settle(loop);
}

static void on_notify(uv_async_t *async)
{
    struct pd_loop *loop = async->data;
    const struct pd_loop_collectives *collectives = &loop->options.collectives;
    struct pd_event event = {.kind = PD_EVENT_COLLECTIVE};

    for (;;) {
        const struct pd_collective *done = collectives->take_done(collectives->context);
        if (done == NULL) {
            break;
        }
        PD_ASSERT(done == first_collective(loop));
        loop->collectives_done++;
        loop->collective_started_ms = pd_loop_now_ms();
        pd_loop_emit(loop, &event);
    }
    pd_loop_settle(loop);
}

/* Ends every handle; the loop then runs until they are gone. */
static void close_handles(struct pd_loop *loop)
{
    begin_exit(loop, 0);
    for (uint32_t id = 0; id < PD_CONNECTION_COUNT_MAX; id++) {
        if (loop->connections[id] != NULL) {
            pd_connection_cut(loop->connections[id]);
        }
    }
    pd_signals_destroy(loop->signals);
    loop->signals = NULL;
    uv_close((uv_handle_t *)&loop->tick, NULL);
    uv_close((uv_handle_t *)&loop->work, NULL);
    uv_close((uv_handle_t *)&loop->notify, NULL);
    uv_close((uv_handle_t *)&loop->flush, NULL);
    pd_loop_settle(loop);
    while (uv_run(&loop->uv, UV_RUN_DEFAULT) != 0) {
    }
}

static enum pd_status create_parts(struct pd_loop *loop, struct pd_error *error)
{
    const struct pd_loop_options *options = &loop->options;
    enum pd_status status = pd_signals_create(&loop->signals, loop, options->launched, error);
    if (status == PD_OK && options->leader != NULL) {
        status = pd_control_create(&loop->control, loop, options->leader, options->rank_timeout_ms,
                                   error);
    }
    if (status == PD_OK && options->listen_fd >= 0) {
        status =
            pd_listener_create(&loop->listener, loop, options->listen_fd, options->lease_ms, error);
    }
    return status;
}

enum pd_status pd_loop_create(struct pd_loop **out, const struct pd_loop_options *options,
                              struct pd_error *error)
{
    *out = NULL;
    PD_ASSERT(options->connection_count_max <= PD_CONNECTION_COUNT_MAX);
    struct pd_loop *loop = pd_heap_zalloc(1, sizeof *loop);
    if (loop == NULL) {
        return pd_error_set(error, PD_ENOMEM, "loop: out of memory");
    }
    loop->options = *options;
    pd_send_room_init(&loop->room, loop->converted, sizeof loop->converted);
    for (uint32_t i = 0; i < PD_CONNECTION_COUNT_MAX; i++) {
        loop->free_ids[i] = PD_CONNECTION_COUNT_MAX - 1 - i;
    }
    loop->free_count = PD_CONNECTION_COUNT_MAX;
    int result = uv_loop_init(&loop->uv);
    if (result != 0) {
        pd_heap_free(loop);
        return pd_error_set(error, PD_EIO, "loop: %s", uv_strerror(result));
    }
    pd_actions_init(&loop->actions);
    (void)uv_timer_init(&loop->uv, &loop->tick);
    (void)uv_idle_init(&loop->uv, &loop->work);
    (void)uv_prepare_init(&loop->uv, &loop->flush);
    result = uv_async_init(&loop->uv, &loop->notify, on_notify);
    PD_ASSERT(result == 0);
    loop->tick.data = loop;
    loop->work.data = loop;
    loop->notify.data = loop;
    loop->flush.data = loop;
    (void)uv_timer_start(&loop->tick, on_tick, 0, TICK_MS);
    (void)uv_prepare_start(&loop->flush, on_flush);
    enum pd_status status = create_parts(loop, error);
    if (status != PD_OK) {
        pd_loop_destroy(loop);
        return status;
    }
    *out = loop;
    return PD_OK;
}

int pd_loop_run(struct pd_loop *loop)
{
    (void)uv_run(&loop->uv, UV_RUN_DEFAULT);
    PD_ASSERT(loop->exiting);
    return loop->exit_code;
}

void pd_loop_destroy(struct pd_loop *loop)
{
    if (loop == NULL) {
        return;
    }
    close_handles(loop);
    pd_actions_finish(&loop->actions);
    int result = uv_loop_close(&loop->uv);
    PD_ASSERT(result == 0);
    pd_heap_free(loop);
}
