#include "client/busy_poll.h"

#include <stdbool.h>

/* What it takes to be woken, at most: a wait that slept might have been told so much earlier. */
#define WAKE_NS 70000u
/* At most 2 to the power of this many waits sleep for one that looked in vain. */
#define LATE_COUNT_MAX 10u

void pd_busy_poll_init(struct pd_busy_poll *busy_poll, uint64_t limit_ns)
{
    *busy_poll = (struct pd_busy_poll){.limit_ns = limit_ns};
}

void pd_busy_poll_waited(struct pd_busy_poll *busy_poll, uint64_t took_ns)
{
    bool looked = busy_poll->look_ns > 0;

    if (looked && took_ns <= busy_poll->look_ns) {
        busy_poll->late_count -= busy_poll->late_count > 0;
        return;
    }
    if (looked) {
        busy_poll->late_count += busy_poll->late_count < LATE_COUNT_MAX;
        busy_poll->pause = 1u << busy_poll->late_count;
    } else if (busy_poll->pause > 0) {
        busy_poll->pause--;
    }
    bool is_short = took_ns <= busy_poll->limit_ns + WAKE_NS;
    busy_poll->look_ns = is_short && busy_poll->pause == 0 ? busy_poll->limit_ns : 0;
}
