/* Processes of the bench: started, watched, ended. Each is killed when its starter ends.
 * daemon, crew -> [child]. */
#ifndef PD_TESTS_BENCH_CHILD_H
#define PD_TESTS_BENCH_CHILD_H

#include "common/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Milliseconds and nanoseconds of a clock that only goes forward. */
int64_t child_now_ms(void);
int64_t child_now_ns(void);

/* From now on SIGINT and SIGTERM are remembered instead of ending this process. */
void child_catch_signals(void);
/* A fault once one has come: to be asked about wherever a command takes its time. */
PD_MUST_CHECK
enum pd_status child_interrupted(struct pd_error *error);

/* Run a program, found along PATH; *output reads its standard output, its errors go to the file.
 * It is asked to end (SIGTERM) when this process ends. */
PD_MUST_CHECK
enum pd_status child_exec(pid_t *pid, const char *const *words, int *output, const char *log_path,
                          struct pd_error *error);

/* Fork: *pid is 0 in the child, which is killed when this process ends. */
PD_MUST_CHECK
enum pd_status child_fork(pid_t *pid, struct pd_error *error);

/* Wait so long for its end; then `code` is its exit code, 128 + the number of a signal. */
bool child_ended(pid_t pid, int64_t timeout_ms, int *code);

/* Kill it and wait for its end. */
void child_kill(pid_t pid);

#endif
