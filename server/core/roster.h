/* The workers as one rank knows them from the ordered log: who they are, where their home is, and,
 * on the ranks of that home, their contributions. orders -> [roster] -> session, step. Pure. Owner:
 * the loop thread. */
#ifndef PD_SERVER_CORE_ROSTER_H
#define PD_SERVER_CORE_ROSTER_H

#include "server/core/contribution.h"
#include "server/core/event.h"

#define PD_CONNECTION_NONE UINT32_MAX
#define PD_DEPARTED_COUNT 64u

struct pd_worker {
    bool present;
    bool leaving; /* it has left, and stays until the step that it has pushed for is closed */
    uint32_t id;
    uint64_t token;
    char name[PD_NAME_BYTES_MAX + 1];
    uint32_t replica;
    pd_connection_id connection; /* PD_CONNECTION_NONE: none on this rank */
    bool admitted; /* what it pushes for the step in collection is read, if that is limited */
    bool has_contribution; /* its home is here and it has pushed */
    struct pd_contribution contribution;
    bool has_hessian; /* and has given an estimate of the Hessian */
    struct pd_contribution hessian;
};

/* Why a worker is no longer here, for the message to one that comes back. */
struct pd_departed {
    uint32_t id;
    char reason[PD_ERROR_BYTES_MAX];
};

/* Slots are reused; ids never are. Workers are summed by name: see orders.c. */
struct pd_roster {
    struct pd_worker workers[PD_WORKER_COUNT_MAX];
    struct pd_staging staging;
    uint32_t slot_end; /* one beyond the last slot ever used */
    uint32_t worker_count;
    uint16_t by_name[PD_WORKER_COUNT_MAX]; /* slots of the workers present, in order of summation */
    /* Where to look first for an id: the slot that the last one equal to it modulo their number
     * got. */
    uint16_t slots[PD_WORKER_COUNT_MAX];
    struct pd_departed departed[PD_DEPARTED_COUNT];
    uint32_t departed_count; /* ever; the ring keeps the last ones */
};

/* NULL when no such worker is present. */
struct pd_worker *pd_roster_find(struct pd_roster *roster, uint32_t worker_id);

/* Workers that have begun, or completed, a contribution to that step in one micro-batch here.
 * Cheap: to be asked at every push before workers are looked up one by one. */
uint32_t pd_roster_count_begun(const struct pd_roster *roster, uint64_t step);

/* Enter the worker of a join order. There is room: rank 0 sees to it. */
struct pd_worker *pd_roster_add(struct pd_roster *roster, const struct pd_order *order);

/* Whether there is room for what the worker pushes now. */
bool pd_roster_admits(const struct pd_roster *roster, const struct pd_worker *worker);

/* Make room, if there is none yet, for a worker's gradients, or for its estimates of the Hessian.
 * Errors: PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_roster_equip(struct pd_roster *roster, struct pd_worker *worker, bool hessian,
                               struct pd_error *error);

/* The worker has an accepted push on its way. */
void pd_roster_begin(struct pd_worker *worker, const struct pd_push *push, bool repeatable);

/* Its contribution of gradients, or of estimates of the Hessian. */
struct pd_contribution *pd_roster_contribution(struct pd_worker *worker, bool hessian);

/* The first contribution with a micro-batch still to be added, and whose it is; NULL: none. */
struct pd_contribution *pd_roster_folding(struct pd_roster *roster, struct pd_worker **worker);

/* Strike a worker off; `reason` is kept for a while. */
void pd_roster_remove(struct pd_roster *roster, struct pd_worker *worker, const char *reason);

/* Let a worker go that has left: at once, or when the step is closed if it has pushed for it. */
void pd_roster_leave(struct pd_roster *roster, struct pd_worker *worker, uint64_t step);
/* What a take order names has been added up, if it was here. With a worker's gradient go estimates
 * that are not whole. */
void pd_roster_take(struct pd_roster *roster, const struct pd_order *order);
/* The step of an order is closed: its contributors' gradients on this rank are used up, and
 * whatever estimates came with them. */
void pd_roster_release(struct pd_roster *roster, const struct pd_order *order);
/* A step is closed: strike off those that stayed for it, and admit nobody yet to the next. */
void pd_roster_sweep(struct pd_roster *roster);

/* One line for a worker that is not present: why, if that is still known. */
enum pd_status pd_roster_explain(const struct pd_roster *roster, uint32_t worker_id,
                                 struct pd_error *error);

void pd_roster_finish(struct pd_roster *roster);

#endif
