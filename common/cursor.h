/* Cursors that read and write little-endian integers and bytes within bounds.
 * Used by fixed layouts: the frame's prefix, checksums, files. Pure.
 *
 * A cursor keeps its first fault: after it every read gives zero and every write does nothing, so a
 * layout is read or written straight through and checked once at the end. */
#ifndef PD_COMMON_CURSOR_H
#define PD_COMMON_CURSOR_H

#include "common/error.h"

#include <stddef.h>
#include <stdint.h>

struct pd_read_cursor {
    const uint8_t *bytes;
    size_t byte_count;
    size_t offset;         /* of the next byte; at a fault, of what did not fit */
    enum pd_status status; /* PD_OK, or PD_EPROTOCOL once a read went past the end */
};

struct pd_write_cursor {
    uint8_t *bytes;
    size_t byte_count;
    size_t offset;
    enum pd_status status; /* PD_OK, or PD_ELIMIT once a write went past the end */
};

/* The bytes are borrowed for as long as the cursor is used. */
void pd_read_cursor_init(struct pd_read_cursor *cursor, const void *bytes, size_t byte_count);
void pd_write_cursor_init(struct pd_write_cursor *cursor, void *bytes, size_t byte_count);

uint8_t pd_cursor_read_u8(struct pd_read_cursor *cursor);
uint16_t pd_cursor_read_u16(struct pd_read_cursor *cursor);
uint32_t pd_cursor_read_u32(struct pd_read_cursor *cursor);
uint64_t pd_cursor_read_u64(struct pd_read_cursor *cursor);
/* Copy the next `byte_count` bytes; all or, at a fault, none. */
void pd_cursor_read_bytes(struct pd_read_cursor *cursor, void *to, size_t byte_count);

void pd_cursor_write_u8(struct pd_write_cursor *cursor, uint8_t value);
void pd_cursor_write_u16(struct pd_write_cursor *cursor, uint16_t value);
void pd_cursor_write_u32(struct pd_write_cursor *cursor, uint32_t value);
void pd_cursor_write_u64(struct pd_write_cursor *cursor, uint64_t value);
void pd_cursor_write_bytes(struct pd_write_cursor *cursor, const void *from, size_t byte_count);

#endif
