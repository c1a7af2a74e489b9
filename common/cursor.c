#include "common/cursor.h"

#include <string.h>

void pd_read_cursor_init(struct pd_read_cursor *cursor, const void *bytes, size_t byte_count)
{
    *cursor = (struct pd_read_cursor){.bytes = bytes, .byte_count = byte_count};
}

void pd_write_cursor_init(struct pd_write_cursor *cursor, void *bytes, size_t byte_count)
{
    *cursor = (struct pd_write_cursor){.bytes = bytes, .byte_count = byte_count};
}

/* The next `byte_count` bytes, or NULL at a fault. */
static const uint8_t *take(struct pd_read_cursor *cursor, size_t byte_count)
{
    if (cursor->status != PD_OK) {
        return NULL;
    }
    if (byte_count > cursor->byte_count - cursor->offset) {
        cursor->status = PD_EPROTOCOL;
        return NULL;
    }
    const uint8_t *bytes = cursor->bytes + cursor->offset;
    cursor->offset += byte_count;
    return bytes;
}

static uint64_t read_integer(struct pd_read_cursor *cursor, size_t byte_count)
{
    const uint8_t *bytes = take(cursor, byte_count);
    uint64_t value = 0;
    for (size_t i = 0; bytes != NULL && i < byte_count; i++) {
        value |= (uint64_t)bytes[i] << (8 * i);
    }
    return value;
}

uint8_t pd_cursor_read_u8(struct pd_read_cursor *cursor)
{
    return (uint8_t)read_integer(cursor, 1);
}

uint16_t pd_cursor_read_u16(struct pd_read_cursor *cursor)
{
    return (uint16_t)read_integer(cursor, 2);
}

uint32_t pd_cursor_read_u32(struct pd_read_cursor *cursor)
{
    return (uint32_t)read_integer(cursor, 4);
}

uint64_t pd_cursor_read_u64(struct pd_read_cursor *cursor)
{
    return read_integer(cursor, 8);
}

void pd_cursor_read_bytes(struct pd_read_cursor *cursor, void *to, size_t byte_count)
{
    const uint8_t *bytes = take(cursor, byte_count);
    if (bytes != NULL && byte_count > 0) {
        memcpy(to, bytes, byte_count);
    }
}

void pd_cursor_write_bytes(struct pd_write_cursor *cursor, const void *from, size_t byte_count)
{
    if (cursor->status != PD_OK) {
        return;
    }
    if (byte_count > cursor->byte_count - cursor->offset) {
        cursor->status = PD_ELIMIT;
        return;
    }
    if (byte_count > 0) {
        memcpy(cursor->bytes + cursor->offset, from, byte_count);
    }
    cursor->offset += byte_count;
}

static void write_integer(struct pd_write_cursor *cursor, uint64_t value, size_t byte_count)
{
    uint8_t bytes[8];
    for (size_t i = 0; i < byte_count; i++) {
        bytes[i] = (uint8_t)(value >> (8 * i));
    }
    pd_cursor_write_bytes(cursor, bytes, byte_count);
}

void pd_cursor_write_u8(struct pd_write_cursor *cursor, uint8_t value)
{
    write_integer(cursor, value, 1);
}

void pd_cursor_write_u16(struct pd_write_cursor *cursor, uint16_t value)
{
    write_integer(cursor, value, 2);
}

void pd_cursor_write_u32(struct pd_write_cursor *cursor, uint32_t value)
{
    write_integer(cursor, value, 4);
}

void pd_cursor_write_u64(struct pd_write_cursor *cursor, uint64_t value)
{
    write_integer(cursor, value, 8);
}
