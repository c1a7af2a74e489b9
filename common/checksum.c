#include "common/checksum.h"

#include <isa-l/crc64.h>

#define LINE_BYTES 64u
/* Bytes that are asked for in turn with summing, and how far ahead. */
#define PIECE_BYTES 4096u
#define AHEAD_BYTES (4u * PIECE_BYTES)

uint64_t pd_checksum_add(uint64_t sum, const void *bytes, size_t byte_count)
{
    return byte_count > 0 ? crc64_ecma_refl(sum, bytes, byte_count) : sum;
}

/* Ask for the cache lines of a piece: into the second-level cache, as the first has no room. */
static void fetch(uintptr_t begin, size_t byte_count)
{
    for (size_t i = 0; i < byte_count; i += LINE_BYTES) {
        __builtin_prefetch((const void *)(begin + i), 0, 2);
    }
}

uint64_t pd_checksum_add_from_memory(uint64_t sum, const void *bytes, size_t byte_count)
{
    const char *rest = bytes;

    while (byte_count > 0) {
        size_t piece_bytes = byte_count < PIECE_BYTES ? byte_count : PIECE_BYTES;
        fetch((uintptr_t)rest + AHEAD_BYTES, piece_bytes);
        sum = pd_checksum_add(sum, rest, piece_bytes);
        rest += piece_bytes;
        byte_count -= piece_bytes;
    }
    return sum;
}
