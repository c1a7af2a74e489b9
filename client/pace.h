/* How far the lanes that one thread carries may be ahead of each other: those of ranks on this
 * host. exchange -> [pace]. Pure.
 *
 * Ranks and workers of one host share its cores. Without a pace each socket is given what it takes,
 * the rank whose core has fewer workers to run gets more done, and is idle in the end while
 * another still has a third of its lane to do. A lane that waits here for a slower one leaves the
 * slower rank the cores. None waits long: a rank must not take a worker for dead for it. */
#ifndef PD_CLIENT_PACE_H
#define PD_CLIENT_PACE_H

#include <stddef.h>
#include <stdint.h>

/* Of one lane; zero when its payload begins. */
struct pd_pace {
    uint64_t allowed; /* bytes of the payload that may leave by now, whole elements; never falls */
    uint64_t held_ms; /* since when it waits for slower lanes; 0: it does not */
};

/* A lane whose payload is on its way to a rank. */
struct pd_pace_lane {
    struct pd_pace *pace;
    uint64_t byte_count; /* of the payload; not 0 */
    uint64_t sent;       /* bytes of it that have left */
    double answered;     /* share of its answer that has come: the rank is done with so much */
};

/* Set what each lane is allowed. The slowest is always allowed more than has left. */
void pd_pace_lanes(struct pd_pace_lane *lanes, size_t lane_count, uint64_t now_ms);

/* When a lane is released at the latest; UINT64_MAX if it does not wait. */
uint64_t pd_pace_due_ms(const struct pd_pace *pace);

#endif
