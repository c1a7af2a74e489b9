#include "server/io/connection.h"

#include "common/assert.h"
#include "common/frame.h"
#include "common/heap.h"
#include "server/io/send_queue.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

enum {
    FLUSH_MS_MAX = 5000,       /* a close in good order takes no longer */
    LINGER_MS_MAX = 1000,      /* of which so much waits for the peer's end */
    STAGE_BYTES = 4096,        /* of what must not move in a write that does not end at once */
    TRY_BYTES_MAX = 64 * 1024, /* frames up to here are written without a turn of the loop */
    /* Of one connection in one turn of the loop, each of up to PD_READ_BYTES_MAX: what several
     * workers push of the same block is then still in the second-level cache when all have. */
    READS_MAX = 2,
};

enum connection_state {
    STATE_OPEN,      /* reads and writes */
    STATE_FAILED,    /* can not be read any more: waits for the engine's CLOSE */
    STATE_FLUSHING,  /* closed by the engine: drops what comes, sends what is queued */
    STATE_LINGERING, /* all sent, end of stream too: waits for the peer's */
    STATE_CLOSING,   /* libuv closes it: CLOSED follows */
    STATE_COUNT,
};

static const bool allowed_moves[STATE_COUNT][STATE_COUNT] = {
    [STATE_OPEN] = {[STATE_FAILED] = true, [STATE_FLUSHING] = true, [STATE_CLOSING] = true},
    [STATE_FAILED] = {[STATE_FLUSHING] = true, [STATE_CLOSING] = true},
    [STATE_FLUSHING] = {[STATE_LINGERING] = true, [STATE_CLOSING] = true},
    [STATE_LINGERING] = {[STATE_CLOSING] = true},
};

/* Owner: the loop thread. */
struct pd_connection {
    uv_tcp_t tcp;
    int fd; /* the handle's */
    struct pd_loop *loop;
    struct pd_connection *owing_next;
    pd_connection_id id;
    enum connection_state state;
    bool outgoing;
    bool reading;
    bool peer_ended; /* its end of stream came while flushing */
    bool writing;    /* `write` is under way, with writing_bytes */
    bool received_owed;
    bool sent_owed;
    uint32_t payloads_owed; /* SENT events to feed */
    uint64_t deadline_ms;   /* FLUSHING, LINGERING */
    struct pd_error error;  /* why it closes: the first reason */
    struct pd_frame_reader *reader;
    struct pd_send_queue queue;
    uv_write_t write;
    size_t writing_bytes;
    uv_shutdown_t shutdown;
    char peer[PD_ADDRESS_BYTES_MAX + 1];
    uint8_t stage[STAGE_BYTES]; /* of `write`: a header, as the queue's may move, and what was
                                   converted */
};

static void write_more(struct pd_connection *connection);

static void state_move(struct pd_connection *connection, enum connection_state to)
{
    PD_ASSERT(allowed_moves[connection->state][to]);
    connection->state = to;
}

struct pd_connection **pd_connection_owing_link(struct pd_connection *connection)
{
    return &connection->owing_next;
}

pd_connection_id pd_connection_number(const struct pd_connection *connection)
{
    return connection->id;
}

const char *pd_connection_peer(const struct pd_connection *connection)
{
    return connection->peer;
}

static void on_closed(uv_handle_t *handle)
{
    struct pd_connection *connection = handle->data;
    struct pd_loop *loop = connection->loop;
    struct pd_event event = {
        .kind = PD_EVENT_CLOSED, .connection = connection->id, .error = &connection->error};

    pd_loop_emit(loop, &event);
    pd_loop_forget(loop, connection->id);
    pd_send_queue_finish(&connection->queue);
    pd_frame_reader_destroy(connection->reader);
    pd_heap_free(connection);
    pd_loop_settle(loop);
}

/* Close without further words. The reason is kept if it is the first. */
static void end(struct pd_connection *connection, enum pd_status status, const char *reason)
{
    if (connection->state == STATE_CLOSING) {
        return;
    }
    if (connection->error.status == PD_OK) {
        (void)pd_error_set(&connection->error, status, "%s", reason);
    }
    state_move(connection, STATE_CLOSING);
    connection->reading = false;
    uv_close((uv_handle_t *)&connection->tcp, on_closed);
}

static bool drops_input(const struct pd_connection *connection)
{
    return connection->state == STATE_FLUSHING || connection->state == STATE_LINGERING;
}

/* A peer that asks without reading the answers waits; rank 0's orders are always taken, so that two
 * ranks never wait for one another. */
static bool is_held_back(const struct pd_connection *connection)
{
    return !connection->outgoing &&
           pd_send_queue_bytes(&connection->queue) > PD_SEND_QUEUE_BYTES_PAUSE;
}

static bool wants_input(const struct pd_connection *connection)
{
    if (connection->state == STATE_OPEN) {
        return !pd_frame_reader_waits(connection->reader) && !is_held_back(connection);
    }
    return drops_input(connection) && !connection->peer_ended;
}

/* No room for libuv to read into: it only says, as UV_ENOBUFS, that there is something to read. It
 * is read here, a payload and what follows it in one call. */
static void on_space(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    (void)handle;
    (void)suggested;
    *buffer = uv_buf_init(NULL, 0);
}

static void on_end_of_stream(struct pd_connection *connection)
{
    if (connection->state == STATE_FLUSHING) {
        connection->peer_ended = true;
    } else if (connection->state == STATE_LINGERING || pd_frame_reader_idle(connection->reader)) {
        end(connection, PD_ECONNECTION, "connection closed by the peer");
    } else {
        end(connection, PD_ECONNECTION, "connection closed in the middle of a frame");
    }
}

/* Room for the next read: in the reader, or, for what nobody wants, in the loop's scratch. */
static size_t gather_room(struct pd_connection *connection,
                          struct iovec pieces[PD_FRAME_PIECE_COUNT_MAX])
{
    if (!drops_input(connection)) {
        return pd_frame_reader_gather(connection->reader, pieces);
    }
    uv_buf_t scratch = pd_loop_scratch(connection->loop);
    pieces[0] = (struct iovec){.iov_base = scratch.base, .iov_len = scratch.len};
    return 1;
}

/* Read once; whether there may be more, because all the room was used. */
static bool read_once(struct pd_connection *connection)
{
    struct iovec pieces[PD_FRAME_PIECE_COUNT_MAX];
    size_t piece_count = gather_room(connection, pieces);
    size_t room = 0;
    ssize_t byte_count;

    PD_ASSERT(piece_count > 0);
    for (size_t i = 0; i < piece_count; i++) {
        room += pieces[i].iov_len;
    }
    do {
        byte_count = readv(connection->fd, pieces, (int)piece_count);
    } while (byte_count < 0 && errno == EINTR);
    if (byte_count == 0) {
        on_end_of_stream(connection);
    } else if (byte_count < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
        end(connection, PD_ECONNECTION, uv_strerror(uv_translate_sys_error(errno)));
    } else if (byte_count > 0 && connection->state == STATE_OPEN) {
        pd_frame_reader_filled(connection->reader, (size_t)byte_count);
        connection->received_owed = true;
    }
    return byte_count > 0 && (size_t)byte_count == room;
}

static void on_readable(uv_stream_t *stream, ssize_t status, const uv_buf_t *buffer)
{
    struct pd_connection *connection = stream->data;
    bool more = true;
    (void)status;
    (void)buffer;

    for (uint32_t i = 0; more && connection->reading && i < READS_MAX; i++) {
        more = read_once(connection);
        pd_loop_owe(connection->loop, connection);
        pd_loop_settle(connection->loop);
    }
}

static void update_reading(struct pd_connection *connection)
{
    bool wanted = wants_input(connection);
    if (connection->state == STATE_CLOSING || wanted == connection->reading) {
        return;
    }
    if (wanted) {
        int result = uv_read_start((uv_stream_t *)&connection->tcp, on_space, on_readable);
        if (result != 0) {
            end(connection, PD_ECONNECTION, uv_strerror(result));
            return;
        }
    } else {
        (void)uv_read_stop((uv_stream_t *)&connection->tcp);
    }
    connection->reading = wanted;
}

/* Bytes of the first frame have left. */
static void note_written(struct pd_connection *connection, size_t byte_count)
{
    if (pd_send_queue_advance(&connection->queue, byte_count)) {
        connection->payloads_owed++;
    }
    connection->sent_owed = true;
    pd_loop_owe(connection->loop, connection);
}

static void on_written(uv_write_t *request, int status)
{
    struct pd_connection *connection = request->data;

    connection->writing = false;
    if (connection->state == STATE_CLOSING) {
        return;
    }
    if (status < 0) {
        end(connection, PD_ECONNECTION, uv_strerror(status));
    } else {
        if (connection->writing_bytes > 0) {
            note_written(connection, connection->writing_bytes);
        }
        write_more(connection);
    }
    pd_loop_settle(connection->loop);
}

static unsigned make_buffers(const struct pd_send_pieces *pieces, uv_buf_t buffers[3])
{
    const uint8_t *const starts[3] = {pieces->header, pieces->payload, pieces->trailer};
    const size_t counts[3] = {pieces->header_bytes, pieces->payload_bytes, pieces->trailer_bytes};
    unsigned buffer_count = 0;
    for (unsigned i = 0; i < 3; i++) {
        if (counts[i] > 0) {
            /* libuv takes one type for both directions; it does not write to these. */
            union {
                const uint8_t *in;
                char *out;
            } start = {.in = starts[i]};
            buffers[buffer_count++] = uv_buf_init(start.out, (unsigned)counts[i]);
        }
    }
    return buffer_count;
}

/* Move to the stage what does not stay where it is until it is written, as much as it holds: what
 * is behind that is written later. */
static void set_up_stage(struct pd_connection *connection, struct pd_send_pieces *pieces)
{
    if (pieces->header_bytes > 0) {
        if (pieces->header_bytes > STAGE_BYTES) {
            pieces->header_bytes = STAGE_BYTES;
            pieces->payload_bytes = 0;
            pieces->trailer_bytes = 0;
        }
        memcpy(connection->stage, pieces->header, pieces->header_bytes);
        pieces->header = connection->stage;
    }
    if (pieces->fleeting) {
        size_t room_bytes = STAGE_BYTES - pieces->header_bytes;
        if (pieces->payload_bytes > room_bytes) {
            pieces->payload_bytes = room_bytes;
            pieces->trailer_bytes = 0;
        }
        memcpy(connection->stage + pieces->header_bytes, pieces->payload, pieces->payload_bytes);
        pieces->payload = connection->stage + pieces->header_bytes;
    }
}

/* Hand the next pieces to libuv; on_written follows. */
static void start_write(struct pd_connection *connection, struct pd_send_pieces *pieces)
{
    uv_buf_t buffers[3];

    set_up_stage(connection, pieces);
    connection->writing_bytes =
        pieces->header_bytes + pieces->payload_bytes + pieces->trailer_bytes;
    connection->write.data = connection;
    unsigned buffer_count = make_buffers(pieces, buffers);
    int result = uv_write(&connection->write, (uv_stream_t *)&connection->tcp, buffers,
                          buffer_count, on_written);
    if (result != 0) {
        end(connection, PD_ECONNECTION, uv_strerror(result));
        return;
    }
    connection->writing = true;
    /* All has left, but libuv says so only on its next turn: the peer may have read it by then, and
     * its next request must not be taken for one made before. */
    if (uv_stream_get_write_queue_size((uv_stream_t *)&connection->tcp) == 0) {
        note_written(connection, connection->writing_bytes);
        connection->writing_bytes = 0;
    }
}

static void on_shutdown(uv_shutdown_t *request, int status)
{
    struct pd_connection *connection = request->data;

    if (status < 0 || connection->peer_ended) {
        end(connection, PD_ECONNECTION, "connection closed by the peer");
    }
    pd_loop_settle(connection->loop);
}

/* All is sent: send the end of the stream, and give the peer time to read what came before it.
 * Closing with unread bytes in the socket would throw away what is on its way to the peer. */
static void linger(struct pd_connection *connection)
{
    state_move(connection, STATE_LINGERING);
    uint64_t deadline_ms = pd_loop_now_ms() + LINGER_MS_MAX;
    if (deadline_ms < connection->deadline_ms) {
        connection->deadline_ms = deadline_ms;
    }
    connection->shutdown.data = connection;
    int result = uv_shutdown(&connection->shutdown, (uv_stream_t *)&connection->tcp, on_shutdown);
    if (result != 0) {
        end(connection, PD_ECONNECTION, uv_strerror(result));
    }
}

/* Whether to write what the socket takes at once, without libuv: the whole rest of a small frame,
 * and what is fleeting, up to the bytes of a large write. libuv would need it for longer than it is
 * there. */
static bool tries(const struct pd_connection *connection, const struct pd_send_pieces *pieces,
                  size_t tried_bytes)
{
    return pd_send_queue_first_bytes(&connection->queue) <= TRY_BYTES_MAX ||
           (pieces->fleeting && tried_bytes < PD_WRITE_BYTES_MAX);
}

static void write_more(struct pd_connection *connection)
{
    struct pd_send_pieces pieces;
    uv_buf_t buffers[3];
    size_t tried_bytes = 0;

    while (!connection->writing && connection->state <= STATE_FLUSHING &&
           !pd_send_queue_blocked(&connection->queue)) {
        pd_send_queue_peek(&connection->queue, pd_loop_room(connection->loop), &pieces);
        if (tries(connection, &pieces, tried_bytes)) {
            unsigned buffer_count = make_buffers(&pieces, buffers);
            int result = uv_try_write((uv_stream_t *)&connection->tcp, buffers, buffer_count);
            if (result > 0) {
                tried_bytes += (size_t)result;
                note_written(connection, (size_t)result);
                continue;
            }
            if (result != UV_EAGAIN) {
                end(connection, PD_ECONNECTION, uv_strerror(result));
                return;
            }
        }
        start_write(connection, &pieces);
    }
    if (connection->state == STATE_FLUSHING && pd_send_queue_empty(&connection->queue)) {
        linger(connection);
    }
}

void pd_connection_send(struct pd_connection *connection, const struct pd_action *action,
                        const uint8_t *frame, const uint64_t *sum)
{
    struct pd_error error;
    const struct pd_send_frame entry = {
        .frame_bytes = action->frame_bytes,
        .payload = action->payload,
        .payload_dtype = action->payload_dtype,
        .payload_bytes = action->payload_bytes,
        .payload_ready = action->payload_ready,
        .checksum = action->checksum,
        .summed = sum != NULL,
        .sum = sum != NULL ? *sum : 0,
    };

    if (connection->state > STATE_FAILED) {
        return;
    }
    if (pd_send_queue_push(&connection->queue, &entry, frame, &error) != PD_OK) {
        end(connection, error.status, error.message);
        return;
    }
    if (connection->outgoing) {
        /* Reports to rank 0, one for each push: all of a turn of the loop go in few writes. */
        pd_loop_delay(connection->loop, connection);
    } else {
        write_more(connection);
    }
}

void pd_connection_flush(struct pd_connection *connection)
{
    write_more(connection);
}

void pd_connection_release(struct pd_connection *connection, uint64_t payload_ready)
{
    if (connection->state > STATE_FAILED) {
        return;
    }
    pd_send_queue_release(&connection->queue, payload_ready);
    write_more(connection);
}

void pd_connection_place(struct pd_connection *connection, void *destination, uint64_t byte_count)
{
    if (connection->state != STATE_OPEN) {
        return;
    }
    pd_frame_reader_place(connection->reader, destination, byte_count);
    /* What came with the header may have filled it. */
    connection->received_owed |= pd_frame_reader_waits(connection->reader);
    pd_loop_owe(connection->loop, connection);
}

void pd_connection_drop(struct pd_connection *connection)
{
    if (connection->state == STATE_OPEN) {
        pd_frame_reader_drop(connection->reader);
        pd_loop_owe(connection->loop, connection);
    }
}

void pd_connection_close(struct pd_connection *connection, bool flush)
{
    if (connection->state > STATE_FAILED) {
        return;
    }
    if (connection->error.status == PD_OK) {
        (void)pd_error_set(&connection->error, PD_ECONNECTION, "closed by this rank");
    }
    if (!flush) {
        end(connection, PD_ECONNECTION, "closed by this rank");
        return;
    }
    state_move(connection, STATE_FLUSHING);
    connection->deadline_ms = pd_loop_now_ms() + FLUSH_MS_MAX;
    write_more(connection);
    pd_loop_owe(connection->loop, connection);
}

void pd_connection_cut(struct pd_connection *connection)
{
    end(connection, PD_ECONNECTION, "closed by this rank");
}

/* A socket does not tell of its end before it is read. With POLLRDHUP look for any, with 0 for one
 * by which the peer has thrown away what it sent. What is unread goes with it: nothing of a payload
 * counts before it is whole. */
static void look_for_end(struct pd_connection *connection, short events)
{
    struct pollfd look = {.fd = connection->fd, .events = events};
    int fault = 0;
    socklen_t fault_bytes = sizeof fault;

    if (poll(&look, 1, 0) <= 0) {
        return;
    }
    (void)getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &fault, &fault_bytes);
    end(connection, PD_ECONNECTION,
        fault == 0 ? "connection closed by the peer" : uv_strerror(uv_translate_sys_error(fault)));
}

void pd_connection_tick(struct pd_connection *connection, uint64_t now_ms)
{
    if (drops_input(connection) && now_ms >= connection->deadline_ms) {
        end(connection, PD_ETIMEOUT, "the peer does not read");
    } else if (connection->state == STATE_OPEN && pd_frame_reader_waits(connection->reader)) {
        look_for_end(connection, POLLRDHUP);
    }
}

static bool is_fed(const struct pd_connection *connection)
{
    return connection->state == STATE_OPEN || connection->state == STATE_FAILED;
}

/* Feed what the stream holds, until it holds nothing whole or the engine has other wishes. */
static void feed_input(struct pd_connection *connection)
{
    struct pd_error error;
    struct pd_event event = {.connection = connection->id};

    while (connection->state == STATE_OPEN && !is_held_back(connection)) {
        switch (pd_frame_reader_next(connection->reader, &error)) {
        case PD_FRAME_MORE:
            return;
        case PD_FRAME_MESSAGE:
            event.kind = PD_EVENT_MESSAGE;
            event.message = pd_frame_reader_message(connection->reader);
            event.payload_bytes = pd_frame_reader_payload_bytes(connection->reader);
            event.has_checksum = pd_frame_reader_has_checksum(connection->reader);
            break;
        case PD_FRAME_PAYLOAD:
            if (!pd_frame_reader_has_checksum(connection->reader)) {
                /* Its bytes may have been read where the peer had them, after it gave up. */
                look_for_end(connection, 0);
            }
            event.kind = PD_EVENT_PAYLOAD;
            event.checksum_ok = pd_frame_reader_checksum_ok(connection->reader);
            break;
        case PD_FRAME_FAILED:
            state_move(connection, STATE_FAILED);
            connection->error = error;
            event.kind = PD_EVENT_FAILED;
            event.error = &connection->error;
            break;
        }
        if (connection->state != STATE_CLOSING) {
            pd_loop_emit(connection->loop, &event);
        }
    }
}

void pd_connection_advance(struct pd_connection *connection)
{
    struct pd_event event = {.connection = connection->id};

    /* What is done about it may make it owed again: a place that is full at once. */
    bool received = connection->received_owed;
    connection->received_owed = false;
    if (received && is_fed(connection)) {
        event.kind = PD_EVENT_PROGRESS;
        event.received = true;
        event.payload_bytes = pd_frame_reader_payload_received(connection->reader);
        pd_loop_emit(connection->loop, &event);
    }
    if (connection->sent_owed && is_fed(connection)) {
        connection->sent_owed = false;
        event.kind = PD_EVENT_PROGRESS;
        event.received = false;
        pd_loop_emit(connection->loop, &event);
    }
    while (connection->payloads_owed > 0 && is_fed(connection)) {
        connection->payloads_owed--;
        event.kind = PD_EVENT_SENT;
        pd_loop_emit(connection->loop, &event);
    }
    feed_input(connection);
    update_reading(connection);
}

static void name_peer(struct pd_connection *connection)
{
    struct sockaddr_storage address;
    int address_bytes = sizeof address;
    char host[NI_MAXHOST];
    char port[NI_MAXSERV];
    (void)snprintf(connection->peer, sizeof connection->peer, "unknown");

    if (uv_tcp_getpeername(&connection->tcp, (struct sockaddr *)&address, &address_bytes) != 0 ||
        getnameinfo((struct sockaddr *)&address, (socklen_t)address_bytes, host, sizeof host, port,
                    sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        return;
    }
    (void)snprintf(connection->peer, sizeof connection->peer,
                   address.ss_family == AF_INET6 ? "[%.200s]:%.16s" : "%.200s:%.16s", host, port);
    if (strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0) {
        /* Some machines default to a congestion control that loses half of loopback's speed. */
        (void)setsockopt(connection->fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", strlen("cubic"));
    }
}

enum pd_status pd_connection_create(struct pd_connection **out, struct pd_loop *loop,
                                    pd_connection_id id, int fd, bool outgoing,
                                    struct pd_error *error)
{
    *out = NULL;
    enum pd_status status = PD_ENOMEM;
    struct pd_connection *connection = pd_heap_zalloc(1, sizeof *connection);
    if (connection == NULL) {
        return pd_error_set(error, status, "connection: out of memory");
    }
    connection->loop = loop;
    connection->id = id;
    connection->fd = fd;
    connection->outgoing = outgoing;
    status = pd_frame_reader_create(&connection->reader, error);
    if (status != PD_OK) {
        goto fail_connection;
    }
    status = pd_send_queue_init(&connection->queue, error);
    if (status != PD_OK) {
        goto fail_reader;
    }
    /* Neither fails for a fresh handle and a socket that is in no other. */
    int result = uv_tcp_init(pd_loop_uv(loop), &connection->tcp);
    PD_ASSERT(result == 0);
    connection->tcp.data = connection;
    result = uv_tcp_open(&connection->tcp, fd);
    PD_ASSERT(result == 0);
    (void)uv_tcp_nodelay(&connection->tcp, 1);
    name_peer(connection);
    *out = connection;
    return PD_OK;

fail_reader:
    pd_frame_reader_destroy(connection->reader);
fail_connection:
    pd_heap_free(connection);
    return status;
}
