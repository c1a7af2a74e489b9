/* An engine that does what a test says, and a rank around it: the shell on its own.
 * peer -> shell -> [scripted_engine]. The loop runs in the test's thread, the peer in another; the
 * test looks at what was counted when both are done. */
#ifndef PD_TESTS_SUPPORT_SCRIPTED_ENGINE_H
#define PD_TESTS_SUPPORT_SCRIPTED_ENGINE_H

#include "server/core/engine.h"
#include "server/io/loop.h"

/* Stands in for the engine of server/core, which is not linked. */
struct pd_engine {
    /* What follows from an event; the test's. */
    void (*react)(struct pd_engine *engine, const struct pd_event *event,
                  struct pd_actions *actions);
    uint32_t counts[PD_EVENT_DRAIN + 1]; /* by event kind */
    struct pd_error closed_error;        /* of the last CLOSED */
    bool inside;
    bool nested; /* an event came while another was taken in */
};

struct scripted_rank {
    struct pd_engine engine;
    struct pd_loop_options options;
    struct pd_loop *loop;
    char address[PD_ADDRESS_BYTES_MAX + 1];
};

/* Listen on loopback; `options` may be changed until run. */
void scripted_rank_init(struct scripted_rank *rank,
                        void (*react)(struct pd_engine *engine, const struct pd_event *event,
                                      struct pd_actions *actions));

/* A socket connected to it that has no reader behind it. Ownership: the caller's, for close. */
int scripted_rank_connect(const struct scripted_rank *rank);

/* For the end of a reaction: EXIT with code 7 once a connection is closed. */
void scripted_exit_when_closed(const struct pd_event *event, struct pd_actions *actions);

/* Run the loop here and `converse` in a thread (NULL: none) until the engine's EXIT and the
 * thread's end, then undo everything. Returns the exit code. Checks that no event was nested. */
int scripted_rank_run(struct scripted_rank *rank, void (*converse)(struct scripted_rank *rank));

#endif
