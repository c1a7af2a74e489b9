#include "common/checksum.h"

#include "common/assert.h"
#include "common/checksum_wide.h"
#include "common/heap.h"
#include "common/kernel.h"

/* The state's layout is needed to keep it in memory of ours. */
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

/* Puts the functions that choose the instruction set in the place of the baseline's. */
#ifdef PARAMD_XXHASH_DISPATCH
#include <xxh_x86dispatch.h>
#endif

/* The state's place is the wide form's on machines that write past the caches. */
struct pd_checksum {
    union {
        XXH3_state_t state;
        struct pd_checksum_wide wide;
    };
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
    if (pd_kernel_streams()) {
        pd_checksum_wide_init(&checksum->wide);
    } else {
        PD_ASSERT(XXH3_64bits_reset(&checksum->state) == XXH_OK);
    }
}

void pd_checksum_update(struct pd_checksum *checksum, const void *bytes, size_t byte_count)
{
    if (byte_count == 0) {
        return;
    }
    if (pd_kernel_streams()) {
        pd_checksum_wide_update(&checksum->wide, bytes, byte_count);
    } else {
        PD_ASSERT(XXH3_64bits_update(&checksum->state, bytes, byte_count) == XXH_OK);
    }
}

uint64_t pd_checksum_value(const struct pd_checksum *checksum)
{
    return pd_kernel_streams() ? pd_checksum_wide_value(&checksum->wide)
                               : XXH3_64bits_digest(&checksum->state);
}
