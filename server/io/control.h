/* The link of a rank to rank 0: connects to it, again and again until it answers or the time is up.
 * Ranks above 0 only. [control] -> loop. Owner: the loop thread. */
#ifndef PD_SERVER_IO_CONTROL_H
#define PD_SERVER_IO_CONTROL_H

#include "server/io/loop.h"

struct pd_control;

/* Start to connect to `leader`, "host:port"; the connection goes to pd_loop_adopt. The job is
 * aborted when there is none after `timeout_ms`. Ownership: `leader` is borrowed until destroy.
 * Errors: PD_ECONNECTION (no such host), PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_control_create(struct pd_control **out, struct pd_loop *loop, const char *leader,
                                 uint64_t timeout_ms, struct pd_error *error);

/* Stop trying; it frees itself in a later turn of the loop. NULL is allowed. */
void pd_control_destroy(struct pd_control *control);

#endif
