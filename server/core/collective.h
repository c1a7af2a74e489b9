/* What ranks do together. The engine describes it, server/mpi or the simulation carries it out.
 * Every rank issues the same kinds in the same order; they are carried out one at a time. Pure. */
#ifndef PD_SERVER_CORE_COLLECTIVE_H
#define PD_SERVER_CORE_COLLECTIVE_H

#include "common/limits.h"

#include <stdint.h>

enum pd_collective_kind {
    /* World: every rank gives send_counts[rank] doubles; all get all, by rank. */
    PD_COLLECTIVE_GATHER_DOUBLES,
    /* The replicas of a lane: replica j gets from each replica the slice send_*[j]. float32. */
    PD_COLLECTIVE_EXCHANGE_FLOATS,
    /* The replicas of a lane: all get the part of each, at receive_*. float32; a rank's own part is
     * already in its place in `receive`, and `send` is NULL. */
    PD_COLLECTIVE_GATHER_FLOATS,
    /* The replicas of a lane: all get the `receive` buffer of replica `root`. float32,
     * receive_counts[0] elements. */
    PD_COLLECTIVE_BROADCAST_FLOATS,
};

/* Counts and offsets are in elements, indexed by rank (doubles) or by replica (floats); they fit an
 * int because of PD_LANE_ELEMENT_COUNT_MAX. */
struct pd_collective {
    enum pd_collective_kind kind;
    uint64_t order_index; /* the order it belongs to: must be alike on all ranks */
    const void *send;
    void *receive;
    int send_counts[PD_RANK_COUNT_MAX];
    int send_offsets[PD_RANK_COUNT_MAX];
    int receive_counts[PD_RANK_COUNT_MAX];
    int receive_offsets[PD_RANK_COUNT_MAX];
    int root;
};

#endif
