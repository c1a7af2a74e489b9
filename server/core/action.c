#include "server/core/action.h"

#include "common/assert.h"
#include "common/frame.h"
#include "common/heap.h"

#include <stdio.h>
#include <string.h>

void pd_actions_init(struct pd_actions *actions)
{
    memset(actions, 0, sizeof *actions);
}

void pd_actions_finish(struct pd_actions *actions)
{
    pd_heap_free(actions->items);
    pd_heap_free(actions->bytes);
    memset(actions, 0, sizeof *actions);
}

void pd_actions_reset(struct pd_actions *actions)
{
    actions->fresh = (struct pd_fresh){.payload = NULL};
    actions->count = 0;
    actions->bytes_used = 0;
}

const uint8_t *pd_actions_bytes(const struct pd_actions *actions, size_t offset)
{
    PD_ASSERT(offset < actions->bytes_used);
    return actions->bytes + offset;
}

static struct pd_action *append(struct pd_actions *actions, enum pd_action_kind kind)
{
    if (actions->count == actions->capacity) {
        size_t capacity = actions->capacity == 0 ? 64 : 2 * actions->capacity;
        struct pd_action *items =
            pd_heap_realloc(actions->items, capacity * sizeof *actions->items);
        PD_ASSERT(items != NULL);
        actions->items = items;
        actions->capacity = capacity;
    }
    struct pd_action *action = &actions->items[actions->count++];
    memset(action, 0, sizeof *action);
    action->kind = kind;
    return action;
}

/* Room for `byte_count` bytes at the end; returns their offset. */
static size_t reserve(struct pd_actions *actions, size_t byte_count)
{
    size_t needed = actions->bytes_used + byte_count;
    if (needed > actions->bytes_capacity) {
        size_t capacity = actions->bytes_capacity == 0 ? 4096 : actions->bytes_capacity;
        while (capacity < needed) {
            capacity *= 2;
        }
        uint8_t *bytes = pd_heap_realloc(actions->bytes, capacity);
        PD_ASSERT(bytes != NULL);
        actions->bytes = bytes;
        actions->bytes_capacity = capacity;
    }
    size_t offset = actions->bytes_used;
    actions->bytes_used = needed;
    return offset;
}

void pd_actions_send(struct pd_actions *actions, pd_connection_id connection,
                     const struct pd_message *message, const void *payload, uint64_t payload_bytes,
                     bool checksum)
{
    struct pd_error error;
    size_t header_bytes = pd_message_header_bytes(message);
    size_t offset = reserve(actions, PD_PREFIX_BYTES + header_bytes);
    struct pd_prefix prefix = {
        .kind = message->kind,
        .header_bytes = (uint32_t)header_bytes,
        .flags = checksum ? PD_FRAME_FLAG_CHECKSUM : 0,
        .payload_bytes = payload_bytes,
    };

    pd_prefix_encode(&prefix, actions->bytes + offset);
    enum pd_status status =
        pd_message_encode(message, actions->bytes + offset + PD_PREFIX_BYTES, header_bytes, &error);
    PD_ASSERT(status == PD_OK);
    struct pd_action *action = append(actions, PD_ACTION_SEND);
    action->connection = connection;
    action->frame_offset = offset;
    action->frame_bytes = PD_PREFIX_BYTES + header_bytes;
    action->payload = payload;
    action->payload_dtype = PD_DTYPE_FLOAT32;
    action->payload_bytes = payload_bytes;
    action->payload_ready = payload_bytes;
    action->checksum = checksum;
}

static struct pd_action *last_send(struct pd_actions *actions)
{
    PD_ASSERT(actions->count > 0);
    struct pd_action *action = &actions->items[actions->count - 1];
    PD_ASSERT(action->kind == PD_ACTION_SEND);
    return action;
}

void pd_actions_convert(struct pd_actions *actions, enum pd_dtype dtype)
{
    last_send(actions)->payload_dtype = dtype;
}

void pd_actions_hold_back(struct pd_actions *actions, uint64_t payload_ready)
{
    struct pd_action *action = last_send(actions);
    PD_ASSERT(payload_ready <= action->payload_bytes);
    action->payload_ready = payload_ready;
}

void pd_actions_release(struct pd_actions *actions, pd_connection_id connection,
                        uint64_t payload_ready)
{
    struct pd_action *action = append(actions, PD_ACTION_RELEASE);
    action->connection = connection;
    action->payload_ready = payload_ready;
}

void pd_actions_place(struct pd_actions *actions, pd_connection_id connection, void *destination,
                      uint64_t byte_count)
{
    struct pd_action *action = append(actions, PD_ACTION_PLACE);
    action->connection = connection;
    action->destination = destination;
    action->place_bytes = byte_count;
}

void pd_actions_drop(struct pd_actions *actions, pd_connection_id connection)
{
    append(actions, PD_ACTION_DROP)->connection = connection;
}

void pd_actions_close(struct pd_actions *actions, pd_connection_id connection, bool flush)
{
    struct pd_action *action = append(actions, PD_ACTION_CLOSE);
    action->connection = connection;
    action->flush = flush;
}

void pd_actions_collective(struct pd_actions *actions, const struct pd_collective *collective)
{
    append(actions, PD_ACTION_COLLECTIVE)->collective = collective;
}

void pd_actions_simple(struct pd_actions *actions, enum pd_action_kind kind)
{
    PD_ASSERT(kind == PD_ACTION_WORK || kind == PD_ACTION_READY);
    append(actions, kind);
}

void pd_actions_exit(struct pd_actions *actions, int exit_code)
{
    append(actions, PD_ACTION_EXIT)->exit_code = exit_code;
}

static void append_text(struct pd_actions *actions, enum pd_action_kind kind, const char *format,
                        va_list arguments)
{
    char text[2 * PD_ERROR_BYTES_MAX];
    vsnprintf(text, sizeof text, format, arguments);
    size_t text_bytes = strlen(text) + 1;
    size_t offset = reserve(actions, text_bytes);
    memcpy(actions->bytes + offset, text, text_bytes);
    append(actions, kind)->text_offset = offset;
}

void pd_actions_log(struct pd_actions *actions, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    append_text(actions, PD_ACTION_LOG, format, arguments);
    va_end(arguments);
}

void pd_actions_abort(struct pd_actions *actions, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    append_text(actions, PD_ACTION_ABORT, format, arguments);
    va_end(arguments);
}
