/* Threads that do the same together, pass by pass, against the clock.
 * kernel, machine -> [team]. */
#ifndef PD_TESTS_BENCH_TEAM_H
#define PD_TESTS_BENCH_TEAM_H

#include "common/error.h"

#define TEAM_THREAD_COUNT_MAX 2u

/* `run` does thread number `thread`'s part of pass number `pass`. */
typedef void (*team_run)(void *context, uint32_t thread, uint32_t pass);

/* Milliseconds from the common start of each pass to the end of its last thread. */
PD_MUST_CHECK
enum pd_status team_time(uint32_t thread_count, uint32_t pass_count, team_run run, void *context,
                         double *ms, struct pd_error *error);

#endif
