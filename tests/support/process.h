/* Child processes of a test: started, listened to, awaited with a deadline, and gone when it ends.
 * test -> [process] -> paramd, mpirun, paramctl, workers. Failures end the running Check test.
 *
 * A child gets SIGTERM when the thread that started it ends, however that happens, so nothing is
 * left behind by a test that fails. */
#ifndef PD_TESTS_SUPPORT_PROCESS_H
#define PD_TESTS_SUPPORT_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* How long anything may take that should come to an end; far beyond what a busy machine needs. */
#define PROCESS_DEADLINE_MS 90000

struct process; /* a thread of its own collects the output */

/* Start `argv[0]`, found along PATH, with the NULL-terminated words `argv`; standard input is
 * empty. Ownership: the caller's, for process_stop. */
struct process *process_start(const char *const *argv);

/* Kill the process and its group if it still runs, and free it; NULL is allowed. */
void process_stop(struct process *process);

pid_t process_pid(const struct process *process);

/* Send a signal to the process alone. */
void process_signal(const struct process *process, int number);

/* Wait for its end and return the exit code, 128 + the number of a signal that ended it. */
int process_wait(struct process *process);
/* Whether it ended within that time; -1 instead of the code if not. */
int process_wait_for(struct process *process, int64_t timeout_ms);

/* Wait until `text` has come on standard output (or standard error); the test fails if the process
 * ends without it. */
void process_await_output(struct process *process, const char *text);
void process_await_error(struct process *process, const char *text);
/* The same, and give the whole line it is in; the caller's, for free. */
char *process_await_output_line(struct process *process, const char *text);

/* What has come so far; complete once the process and its children have ended. For free. */
char *process_output(struct process *process);
char *process_errors(struct process *process);

/* What a command came to that runs to its end. */
struct process_result {
    int code;
    char *output;
    char *errors;
};

/* Wait for the end of a process, and free it; the test fails if that takes too long. */
struct process_result process_end(struct process *process);
/* Run to the end. */
struct process_result process_run(const char *const *argv);
void process_result_finish(struct process_result *result);

/* Milliseconds of a clock that only goes forward. */
int64_t process_now_ms(void);

/* Wait until a process that need not be a child is gone. */
void process_await_gone(pid_t pid);

/* Processor time the process has used so far, in seconds; negative when it is gone. */
double process_cpu_s(pid_t pid);

/* Whether the process exists and is no zombie. */
bool process_alive(pid_t pid);

#endif
