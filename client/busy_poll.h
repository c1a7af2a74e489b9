/* Whether a wait for an answer begins by looking for it again and again, before it sleeps.
 * exchange -> [busy_poll] and back: asked before each wait, told afterwards how long it took. Pure:
 * the clock is exchange's. Owner: whoever holds the handle's lock.
 *
 *              a short wait
 *     .----------------------------.
 *     |                            v
 *   SLEEP                        LOOK <-.
 *     ^                          |  |   | the answer in time
 *     `--------------------------'  `---'
 *       too late: not again before
 *       2, 4, 8, ... waits have slept
 *
 * To sleep and be woken takes tens of microseconds, as long as a rank needs for a step of a small
 * model. Looking for as long as that and then sleeping takes twice the time of the better of the
 * two at most. Source: Karlin, Li, Manasse, Owicki, "Empirical studies of competitive spinning for
 * a shared-memory multiprocessor", SOSP 1991. Where it is of no use, as with long steps, or with
 * more processes than cores, it comes to less than a thousandth of the waits. */
#ifndef PD_CLIENT_BUSY_POLL_H
#define PD_CLIENT_BUSY_POLL_H

#include <stdint.h>

/* Invariant: look_ns is 0 or limit_ns. */
struct pd_busy_poll {
    uint64_t limit_ns;
    uint64_t look_ns;    /* how long the next wait is to look; 0: sleep at once */
    uint32_t late_count; /* looks in vain less looks in time, from 0 to a limit */
    uint32_t pause;      /* waits that are to sleep yet, whatever they take */
};

/* No wait looks longer than `limit_ns`; 0: none looks. */
void pd_busy_poll_init(struct pd_busy_poll *busy_poll, uint64_t limit_ns);

/* A wait, which was to look for look_ns, was over after `took_ns`. */
void pd_busy_poll_waited(struct pd_busy_poll *busy_poll, uint64_t took_ns);

#endif
