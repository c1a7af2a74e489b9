/* One rank's life: start what it needs in order, run, undo it in the opposite order.
 * main -> [daemon] -> world, listener, engine, collectives, loop. Owner: the main thread. */
#ifndef PD_SERVER_DAEMON_H
#define PD_SERVER_DAEMON_H

#include "server/arguments.h"

/* Serve until the job ends; returns the process's exit code. */
int pd_daemon_run(const struct pd_arguments *arguments);

/* Read a whole configuration file, of at most PD_CONFIG_BYTES_MAX bytes.
 * Ownership: *out is the caller's, for pd_heap_free.
 * Errors: PD_EIO, PD_ELIMIT, PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_daemon_read_config(char **out, const char *path, struct pd_error *error);

#endif
