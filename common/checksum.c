#include "common/checksum.h"

#include "common/assert.h"
#include "common/heap.h"

/* The state's layout is needed to keep it in memory of ours. */
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

/* Puts the functions that choose the instruction set in the place of the baseline's. */
#ifdef PARAMD_XXHASH_DISPATCH
#include <xxh_x86dispatch.h>
#endif

#define LINE_BYTES 64u
/* Bytes that are asked for in turn with summing, and how far ahead. */
#define PIECE_BYTES 4096u
#define AHEAD_BYTES (4u * PIECE_BYTES)

struct pd_checksum {
    XXH3_state_t state;
};

enum pd_status pd_checksum_create(struct pd_checksum **out, struct pd_error *error)
{
    *out = NULL;
    struct pd_checksum *checksum = pd_heap_zalloc(1, sizeof *checksum);
    if (checksum == NULL) {
        return pd_error_set(error, PD_ENOMEM, "checksum: %zu bytes", sizeof *checksum);
    }
    pd_checksum_reset(checksum);
    *out = checksum;
    return PD_OK;
}

void pd_checksum_destroy(struct pd_checksum *checksum)
{
    pd_heap_free(checksum);
}

void pd_checksum_reset(struct pd_checksum *checksum)
{
    PD_ASSERT(XXH3_64bits_reset(&checksum->state) == XXH_OK);
}

void pd_checksum_update(struct pd_checksum *checksum, const void *bytes, size_t byte_count)
{
    if (byte_count == 0) {
        return;
    }
    PD_ASSERT(XXH3_64bits_update(&checksum->state, bytes, byte_count) == XXH_OK);
}

/* Ask for the cache lines of a piece: into the second-level cache, as the first has no room. */
static void fetch(uintptr_t begin, size_t byte_count)
{
    for (size_t i = 0; i < byte_count; i += LINE_BYTES) {
        __builtin_prefetch((const void *)(begin + i), 0, 2);
    }
}

void pd_checksum_update_from_memory(struct pd_checksum *checksum, const void *bytes,
                                    size_t byte_count)
{
    const char *rest = bytes;

    while (byte_count > 0) {
        size_t piece_bytes = byte_count < PIECE_BYTES ? byte_count : PIECE_BYTES;
        fetch((uintptr_t)rest + AHEAD_BYTES, piece_bytes);
        pd_checksum_update(checksum, rest, piece_bytes);
        rest += piece_bytes;
        byte_count -= piece_bytes;
    }
}

uint64_t pd_checksum_value(const struct pd_checksum *checksum)
{
    return XXH3_64bits_digest(&checksum->state);
}
