#include "engine_fixture.h"

#include "common/frame.h"
#include "common/heap.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* No push is held back for others for longer. */
#define TICK_MS 250u
#define SECRET 77u

static void note_sent(struct engine_fixture *fixture, const struct pd_action *action)
{
    const uint8_t *frame = pd_actions_bytes(&fixture->actions, action->frame_offset);
    struct pd_error error = {0};
    struct pd_prefix prefix;

    ck_assert_uint_lt(fixture->sent_count, FIXTURE_SENT_COUNT_MAX);
    struct fixture_sent *sent = &fixture->sent[fixture->sent_count++];
    sent->connection = action->connection;
    sent->payload = action->payload;
    sent->payload_dtype = action->payload_dtype;
    sent->payload_bytes = action->payload_bytes;
    sent->message = calloc(1, sizeof *sent->message);
    ck_assert_ptr_nonnull(sent->message);
    ck_assert_int_eq(pd_prefix_decode(&prefix, frame, &error), PD_OK);
    ck_assert_uint_eq(prefix.payload_bytes, action->payload_bytes);
    ck_assert_int_eq(pd_message_decode(sent->message, prefix.kind, frame + PD_PREFIX_BYTES,
                                       prefix.header_bytes, &error),
                     PD_OK);
}

static void note(struct engine_fixture *fixture, const struct pd_action *action)
{
    const char *text = "";

    if (action->kind == PD_ACTION_LOG || action->kind == PD_ACTION_ABORT) {
        text = (const char *)pd_actions_bytes(&fixture->actions, action->text_offset);
    }
    switch (action->kind) {
    case PD_ACTION_SEND:
        note_sent(fixture, action);
        if (action->payload_bytes > 0) {
            fixture->may_leave[action->connection] = action->payload_ready;
        }
        break;
    case PD_ACTION_RELEASE:
        ck_assert_uint_ge(action->payload_ready, fixture->may_leave[action->connection]);
        fixture->may_leave[action->connection] = action->payload_ready;
        break;
    case PD_ACTION_PLACE:
        fixture->placed[action->connection] = action->destination;
        fixture->was_placed[action->connection] = true;
        fixture->place_begin[action->connection] = fixture->place_end[action->connection];
        fixture->place_end[action->connection] += action->place_bytes;
        break;
    case PD_ACTION_DROP:
        fixture->placed[action->connection] = NULL;
        fixture->was_placed[action->connection] = true;
        break;
    case PD_ACTION_CLOSE:
        fixture->closed[action->connection] = true;
        break;
    case PD_ACTION_COLLECTIVE:
        fixture->collective = action->collective;
        break;
    case PD_ACTION_WORK:
        fixture->work_asked = true;
        break;
    case PD_ACTION_LOG:
        snprintf(fixture->logged, sizeof fixture->logged, "%s", text);
        break;
    case PD_ACTION_READY:
        fixture->ready = true;
        break;
    case PD_ACTION_EXIT:
        fixture->exited = true;
        break;
    case PD_ACTION_ABORT:
        snprintf(fixture->aborted, sizeof fixture->aborted, "%s", text);
        break;
    }
}

void fixture_note(struct engine_fixture *fixture)
{
    for (size_t i = 0; i < fixture->actions.count; i++) {
        note(fixture, &fixture->actions.items[i]);
    }
}

static void feed(struct engine_fixture *fixture, struct pd_event *event)
{
    event->now_ms = fixture->now_ms;
    event->entropy = ++fixture->entropy;
    pd_actions_reset(&fixture->actions);
    pd_engine_step(fixture->engine, event, &fixture->actions);
    fixture_note(fixture);
}

void fixture_init(struct engine_fixture *fixture, uint32_t rank, uint32_t rank_count,
                  const char *config)
{
    static const char *const addresses[] = {"a:1", "a:2", "b:1", "b:2"};
    static const char *const hosts[] = {"a", "a", "b", "b"};
    struct pd_error error = {0};

    memset(fixture, 0, sizeof *fixture);
    fixture->now_ms = 1000;
    enum pd_status status = pd_config_create(&fixture->config, "test", config, NULL, 0, &error);
    ck_assert_msg(status == PD_OK, "%s", error.message);
    fixture->topology.rank = rank;
    fixture->topology.rank_count = rank_count;
    fixture->topology.run_id = 99;
    fixture->topology.secret = SECRET;
    for (uint32_t i = 0; i < 4; i++) {
        fixture->topology.addresses[i] = addresses[i];
        fixture->topology.hosts[i] = hosts[i];
    }
    ck_assert_int_eq(
        pd_engine_create(&fixture->engine, fixture->config, &fixture->topology, &error), PD_OK);
    pd_actions_init(&fixture->actions);
    ck_assert_int_eq(pd_tensor_list_init(&fixture->model, 2, &error), PD_OK);
    ck_assert_int_eq(
        pd_tensor_list_append(&fixture->model, "w", 1, 2, (const uint64_t[]){3, 2}, &error), PD_OK);
    ck_assert_int_eq(
        pd_tensor_list_append(&fixture->model, "b", 1, 1, (const uint64_t[]){2}, &error), PD_OK);
}

void fixture_finish(struct engine_fixture *fixture)
{
    fixture_forget(fixture);
    pd_tensor_list_finish(&fixture->model);
    pd_actions_finish(&fixture->actions);
    pd_engine_destroy(fixture->engine);
    pd_config_destroy(fixture->config);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

void fixture_forget(struct engine_fixture *fixture)
{
    for (uint32_t i = 0; i < fixture->sent_count; i++) {
        pd_message_finish(fixture->sent[i].message);
        free(fixture->sent[i].message);
    }
    fixture->sent_count = 0;
}

void fixture_open(struct engine_fixture *fixture, pd_connection_id connection)
{
    struct pd_event event = {.kind = PD_EVENT_OPENED, .connection = connection, .peer = "peer:9"};
    fixture->closed[connection] = false;
    feed(fixture, &event);
}

void fixture_close(struct engine_fixture *fixture, pd_connection_id connection)
{
    struct pd_error error = {.status = PD_ECONNECTION, .message = "connection reset"};
    struct pd_event event = {.kind = PD_EVENT_CLOSED, .connection = connection, .error = &error};
    feed(fixture, &event);
}

void fixture_say(struct engine_fixture *fixture, pd_connection_id connection,
                 const struct pd_message *message, uint64_t payload_bytes)
{
    struct pd_event event = {.kind = PD_EVENT_MESSAGE,
                             .connection = connection,
                             .message = message,
                             .payload_bytes = payload_bytes,
                             .has_checksum = true};
    fixture->was_placed[connection] = false;
    fixture->place_end[connection] = 0;
    feed(fixture, &event);
}

void fixture_payload(struct engine_fixture *fixture, pd_connection_id connection, const void *bytes,
                     uint64_t byte_count, bool checksum_ok)
{
    struct pd_event event = {
        .kind = PD_EVENT_PAYLOAD, .connection = connection, .checksum_ok = checksum_ok};

    ck_assert(fixture->was_placed[connection]);
    while (fixture->placed[connection] != NULL && bytes != NULL) {
        uint64_t begin = fixture->place_begin[connection];
        uint64_t end = fixture->place_end[connection];
        if (end >= byte_count) {
            memcpy(fixture->placed[connection], (const char *)bytes + begin, byte_count - begin);
            break;
        }
        fixture_receive(fixture, connection, bytes, begin, end);
        if (fixture->place_end[connection] == end) {
            fixture_wait(fixture, TICK_MS);
        }
    }
    feed(fixture, &event);
}

void fixture_receive(struct engine_fixture *fixture, pd_connection_id connection, const void *bytes,
                     uint64_t begin, uint64_t end)
{
    struct pd_event event = {.kind = PD_EVENT_PROGRESS, .connection = connection, .received = true};

    while (begin < end) {
        if (begin == fixture->place_end[connection]) {
            fixture_wait(fixture, TICK_MS);
        }
        uint64_t place_begin = fixture->place_begin[connection];
        uint64_t place_end = fixture->place_end[connection];
        uint64_t piece_end = end < place_end ? end : place_end;
        ck_assert_ptr_nonnull(fixture->placed[connection]);
        ck_assert_uint_lt(begin, piece_end);
        memcpy((char *)fixture->placed[connection] + (begin - place_begin),
               (const char *)bytes + begin, piece_end - begin);
        event.payload_bytes = piece_end;
        feed(fixture, &event);
        begin = piece_end;
    }
}

void fixture_sent_event(struct engine_fixture *fixture, pd_connection_id connection)
{
    struct pd_event event = {.kind = PD_EVENT_SENT, .connection = connection};
    feed(fixture, &event);
}

void fixture_progress(struct engine_fixture *fixture, pd_connection_id connection, bool received)
{
    struct pd_event event = {
        .kind = PD_EVENT_PROGRESS, .connection = connection, .received = received};
    feed(fixture, &event);
}

void fixture_work_once(struct engine_fixture *fixture)
{
    struct pd_event event = {.kind = PD_EVENT_WORK};
    ck_assert(fixture->work_asked);
    fixture->work_asked = false;
    feed(fixture, &event);
}

void fixture_work(struct engine_fixture *fixture)
{
    while (fixture->work_asked) {
        fixture_work_once(fixture);
    }
}

void fixture_wait(struct engine_fixture *fixture, uint64_t ms)
{
    uint64_t end_ms = fixture->now_ms + ms;

    while (fixture->now_ms < end_ms) {
        struct pd_event event = {.kind = PD_EVENT_TICK};
        fixture->now_ms += TICK_MS;
        feed(fixture, &event);
        fixture_work(fixture);
    }
}

const struct pd_message *fixture_last(const struct engine_fixture *fixture,
                                      pd_connection_id connection)
{
    for (uint32_t i = fixture->sent_count; i > 0; i--) {
        if (fixture->sent[i - 1].connection == connection) {
            return fixture->sent[i - 1].message;
        }
    }
    return NULL;
}

uint32_t fixture_count(const struct engine_fixture *fixture, pd_connection_id connection,
                       enum pd_message_kind kind)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < fixture->sent_count; i++) {
        count +=
            fixture->sent[i].connection == connection && fixture->sent[i].message->kind == kind;
    }
    return count;
}

void fixture_expect_error(const struct engine_fixture *fixture, pd_connection_id connection,
                          enum pd_status status, bool fatal, const char *text)
{
    const struct pd_message *message = fixture_last(fixture, connection);

    ck_assert_ptr_nonnull(message);
    ck_assert_int_eq(message->kind, PD_MESSAGE_ERROR);
    ck_assert_uint_eq(message->error.status, status);
    ck_assert_msg(strstr(message->error.text, text) != NULL, "%s", message->error.text);
    ck_assert_int_eq(message->error.fatal, fatal);
    ck_assert_int_eq(fixture->closed[connection], fatal);
}

void fixture_greet(struct engine_fixture *fixture, pd_connection_id connection)
{
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO};

    fixture_open(fixture, connection);
    fixture_say(fixture, connection, &hello, 0);
    ck_assert_int_eq(fixture_last(fixture, connection)->kind, PD_MESSAGE_WELCOME);
}

uint32_t fixture_join(struct engine_fixture *fixture, pd_connection_id connection, const char *name)
{
    struct pd_message join = {.kind = PD_MESSAGE_JOIN};

    fixture_greet(fixture, connection);
    snprintf(join.join.name, sizeof join.join.name, "%s", name);
    fixture_say(fixture, connection, &join, 0);
    fixture_ranks_execute(fixture);
    ck_assert_int_eq(fixture_last(fixture, connection)->kind, PD_MESSAGE_JOINED);
    return fixture_last(fixture, connection)->joined.worker_id;
}

uint32_t fixture_enlist(struct engine_fixture *fixture, pd_connection_id connection,
                        const char *name)
{
    static const float values[FIXTURE_ELEMENTS] = {1, 2, 3, 4, 5, 6, 7, 8};
    uint32_t worker_id = fixture_join(fixture, connection, name);
    struct pd_message offer = {.kind = PD_MESSAGE_REGISTER,
                               .registration = {.tensors = fixture->model}};

    fixture_say(fixture, connection, &offer, 0);
    ck_assert_int_eq(fixture_last(fixture, connection)->kind, PD_MESSAGE_REGISTERED);
    if (fixture_last(fixture, connection)->registered.values_needed) {
        struct pd_message message = {.kind = PD_MESSAGE_VALUES,
                                     .values = {.element_count = FIXTURE_ELEMENTS}};
        fixture_say(fixture, connection, &message, sizeof values);
        fixture_payload(fixture, connection, values, sizeof values, true);
        ck_assert_uint_eq(fixture_count(fixture, connection, PD_MESSAGE_VALUES_STORED), 1);
    }
    return worker_id;
}

static void push_elements(struct engine_fixture *fixture, pd_connection_id connection,
                          const struct pd_push *header, float element)
{
    float elements[FIXTURE_ELEMENTS];
    struct pd_message push = {.kind = PD_MESSAGE_PUSH, .push = *header};

    for (uint32_t i = 0; i < FIXTURE_ELEMENTS; i++) {
        elements[i] = element;
    }
    uint32_t pushed = fixture_count(fixture, connection, PD_MESSAGE_PUSHED);
    fixture_say(fixture, connection, &push, sizeof elements);
    ck_assert_ptr_nonnull(fixture->placed[connection]);
    fixture_payload(fixture, connection, elements, sizeof elements, true);
    ck_assert_uint_eq(fixture_count(fixture, connection, PD_MESSAGE_PUSHED), pushed + 1);
    fixture_work(fixture);
}

void fixture_push(struct engine_fixture *fixture, pd_connection_id connection, uint64_t step,
                  float element, uint64_t samples)
{
    struct pd_push push = {
        .step = step, .last = true, .samples = samples, .element_count = FIXTURE_ELEMENTS};

    push_elements(fixture, connection, &push, element);
}

void fixture_push_loss(struct engine_fixture *fixture, pd_connection_id connection, uint64_t step,
                       float element, uint64_t samples, double loss)
{
    struct pd_push push = {.step = step,
                           .last = true,
                           .samples = samples,
                           .has_loss = true,
                           .loss = loss,
                           .element_count = FIXTURE_ELEMENTS};

    push_elements(fixture, connection, &push, element);
}

void fixture_link_ranks(struct engine_fixture *fixture)
{
    for (uint32_t rank = 1; rank < fixture->topology.rank_count; rank++) {
        struct pd_message hello = {.kind = PD_MESSAGE_RANK_HELLO,
                                   .rank_hello = {.rank = rank, .secret = SECRET}};
        fixture_open(fixture, 40 + rank);
        fixture_say(fixture, 40 + rank, &hello, 0);
    }
}

void fixture_ranks_execute(struct engine_fixture *fixture)
{
    for (uint32_t rank = 1; rank < fixture->topology.rank_count; rank++) {
        const struct pd_message *last = fixture_last(fixture, 40 + rank);
        if (last == NULL || last->kind != PD_MESSAGE_ORDER) {
            continue;
        }
        struct pd_message report = {
            .kind = PD_MESSAGE_REPORT,
            .report = {.kind = PD_REPORT_EXECUTED, .order_index = last->order.index}};
        fixture_say(fixture, 40 + rank, &report, 0);
    }
}
