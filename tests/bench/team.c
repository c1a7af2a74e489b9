#include "tests/bench/team.h"

#include "common/assert.h"
#include "tests/bench/child.h"

#include <pthread.h>
#include <string.h>

struct team {
    pthread_barrier_t barrier;
    uint32_t pass_count;
    team_run run;
    void *context;
    double *ms;
};

struct member {
    struct team *team;
    uint32_t thread;
};

static void *take_part(void *argument)
{
    const struct member *member = argument;
    struct team *team = member->team;

    for (uint32_t pass = 0; pass < team->pass_count; pass++) {
        pthread_barrier_wait(&team->barrier);
        int64_t began_ns = child_now_ns();
        team->run(team->context, member->thread, pass);
        pthread_barrier_wait(&team->barrier);
        if (member->thread == 0) {
            team->ms[pass] = (double)(child_now_ns() - began_ns) / 1e6;
        }
    }
    return NULL;
}

enum pd_status team_time(uint32_t thread_count, uint32_t pass_count, team_run run, void *context,
                         double *ms, struct pd_error *error)
{
    struct team team = {.pass_count = pass_count, .run = run, .context = context, .ms = ms};
    struct member members[TEAM_THREAD_COUNT_MAX];
    pthread_t other;

    PD_ASSERT(thread_count >= 1 && thread_count <= TEAM_THREAD_COUNT_MAX);
    pthread_barrier_init(&team.barrier, NULL, thread_count);
    for (uint32_t thread = 0; thread < thread_count; thread++) {
        members[thread] = (struct member){.team = &team, .thread = thread};
    }
    int fault = thread_count > 1 ? pthread_create(&other, NULL, take_part, &members[1]) : 0;
    if (fault == 0) {
        (void)take_part(&members[0]);
    }
    if (fault == 0 && thread_count > 1) {
        pthread_join(other, NULL);
    }
    pthread_barrier_destroy(&team.barrier);
    return fault == 0 ? PD_OK : pd_error_set(error, PD_EIO, "thread: %s", strerror(fault));
}
