/* A copy of memory that changes, to have it back later, to the bit.
 * param_store, step, optimizer_state -> [snapshot] -> restore. Pure. Owner: the loop thread.
 *
 * Whoever owns memory adds its parts, each time in the same order; what is copied back may go to
 * other places of the same sizes. Copying is done a turn at a time, so that sockets do not wait. */
#ifndef PD_SERVER_CORE_SNAPSHOT_H
#define PD_SERVER_CORE_SNAPSHOT_H

#include "common/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pd_snapshot_part {
    uint8_t *live;
    uint64_t byte_count;
};

/* A zeroed one is empty. */
struct pd_snapshot {
    struct pd_snapshot_part *parts;
    size_t part_count;
    size_t part_capacity;
    bool out_of_memory; /* for a part */
    uint8_t *copy;      /* of all parts, one behind the other; NULL: none is kept */
    uint64_t copy_bytes;
    bool back;          /* copying goes from the copy to the parts */
    size_t next_part;   /* where copying stands */
    uint64_t next_byte; /* in that part */
    uint64_t copied;    /* bytes of all parts */
};

/* Add a part that stays where it is until the copying is over; one without bytes may be NULL. */
void pd_snapshot_add(struct pd_snapshot *snapshot, void *live, uint64_t byte_count);

/* Begin to keep a copy of the parts added. Errors: PD_ENOMEM; the snapshot is then empty. */
PD_MUST_CHECK
enum pd_status pd_snapshot_keep(struct pd_snapshot *snapshot, struct pd_error *error);

/* Forget the parts, not the copy: they are to be added anew. */
void pd_snapshot_clear_parts(struct pd_snapshot *snapshot);
/* Begin to copy what was kept back to the parts added. */
void pd_snapshot_bring_back(struct pd_snapshot *snapshot);

/* Copy up to `byte_count` more bytes; true when all is copied. */
PD_MUST_CHECK
bool pd_snapshot_copy(struct pd_snapshot *snapshot, uint64_t byte_count);

/* Give the memory back; the snapshot is then empty. */
void pd_snapshot_finish(struct pd_snapshot *snapshot);

#endif
