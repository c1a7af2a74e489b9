/* The operator's signals, and the death of the launcher. kernel -> [signals] -> loop.
 * SIGTERM, SIGINT and SIGUSR1 ask for a drain; a second SIGTERM or SIGINT ends the rank at once.
 * Owner: the loop thread. */
#ifndef PD_SERVER_IO_SIGNALS_H
#define PD_SERVER_IO_SIGNALS_H

#include "server/io/loop.h"

struct pd_signals;

/* Whether mpirun started this process. */
bool pd_signals_launched(void);

/* Call once, first in main: an operator's signal is kept for the loop to come, and from now on this
 * process is told when the one that started it ends, and dies of that until a pd_signals takes it
 * over. SIGPIPE is ignored.
 * Errors: PD_EIO. */
PD_MUST_CHECK
enum pd_status pd_signals_prepare(bool launched, struct pd_error *error);

/* Errors: PD_ENOMEM, PD_EIO. */
PD_MUST_CHECK
enum pd_status pd_signals_create(struct pd_signals **out, struct pd_loop *loop, bool launched,
                                 struct pd_error *error);

/* Time has passed: look whether the launcher is still there, in case its signal was lost. */
void pd_signals_tick(struct pd_signals *signals);

/* It frees itself in a later turn of the loop, and the operator's signals are ignored from now on.
 * NULL is allowed. */
void pd_signals_destroy(struct pd_signals *signals);

#endif
