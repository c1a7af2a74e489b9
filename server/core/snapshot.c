#include "server/core/snapshot.h"

#include "common/assert.h"
#include "common/heap.h"

#include <inttypes.h>
#include <string.h>

void pd_snapshot_add(struct pd_snapshot *snapshot, void *live, uint64_t byte_count)
{
    if (byte_count == 0) {
        return;
    }
    if (snapshot->part_count == snapshot->part_capacity) {
        size_t capacity = snapshot->part_capacity == 0 ? 64 : 2 * snapshot->part_capacity;
        struct pd_snapshot_part *parts = pd_heap_realloc(snapshot->parts, capacity * sizeof *parts);
        if (parts == NULL) {
            snapshot->out_of_memory = true;
            return;
        }
        snapshot->parts = parts;
        snapshot->part_capacity = capacity;
    }
    snapshot->parts[snapshot->part_count++] = (struct pd_snapshot_part){live, byte_count};
}

void pd_snapshot_clear_parts(struct pd_snapshot *snapshot)
{
    snapshot->part_count = 0;
}

static uint64_t count_bytes(const struct pd_snapshot *snapshot)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < snapshot->part_count; i++) {
        bytes += snapshot->parts[i].byte_count;
    }
    return bytes;
}

static void begin(struct pd_snapshot *snapshot, bool back)
{
    snapshot->back = back;
    snapshot->next_part = 0;
    snapshot->next_byte = 0;
    snapshot->copied = 0;
}

enum pd_status pd_snapshot_keep(struct pd_snapshot *snapshot, struct pd_error *error)
{
    uint64_t bytes = count_bytes(snapshot);

    PD_ASSERT(snapshot->copy == NULL);
    if (!snapshot->out_of_memory) {
        snapshot->copy = pd_heap_zalloc(bytes, 1);
    }
    if (snapshot->copy == NULL) {
        pd_snapshot_finish(snapshot);
        return pd_error_set(error, PD_ENOMEM, "out of memory for a snapshot of %" PRIu64 " bytes",
                            bytes);
    }
    snapshot->copy_bytes = bytes;
    begin(snapshot, false);
    return PD_OK;
}

void pd_snapshot_bring_back(struct pd_snapshot *snapshot)
{
    PD_ASSERT(snapshot->copy != NULL);
    PD_ASSERT(!snapshot->out_of_memory);
    PD_ASSERT(count_bytes(snapshot) == snapshot->copy_bytes);
    begin(snapshot, true);
}

bool pd_snapshot_copy(struct pd_snapshot *snapshot, uint64_t byte_count)
{
    PD_ASSERT(snapshot->copy != NULL);
    while (byte_count > 0 && snapshot->next_part < snapshot->part_count) {
        const struct pd_snapshot_part *part = &snapshot->parts[snapshot->next_part];
        uint64_t left = part->byte_count - snapshot->next_byte;
        uint64_t count = left < byte_count ? left : byte_count;
        uint8_t *live = part->live + snapshot->next_byte;
        uint8_t *copy = snapshot->copy + snapshot->copied;
        memcpy(snapshot->back ? live : copy, snapshot->back ? copy : live, count);
        snapshot->copied += count;
        snapshot->next_byte += count;
        byte_count -= count;
        if (snapshot->next_byte == part->byte_count) {
            snapshot->next_part++;
            snapshot->next_byte = 0;
        }
    }
    return snapshot->copied == snapshot->copy_bytes;
}

void pd_snapshot_finish(struct pd_snapshot *snapshot)
{
    pd_heap_free(snapshot->parts);
    pd_heap_free(snapshot->copy);
    memset(snapshot, 0, sizeof *snapshot);
}
