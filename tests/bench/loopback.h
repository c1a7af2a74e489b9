/* TCP connections over loopback, tuned as paramd tunes its own.
 * limit, tcp -> [loopback] -> sockets. */
#ifndef PD_TESTS_BENCH_LOOPBACK_H
#define PD_TESTS_BENCH_LOOPBACK_H

#include "common/error.h"

/* Listen on a port of the kernel's choice. */
PD_MUST_CHECK
enum pd_status loopback_listen(int *fd, uint16_t *port, struct pd_error *error);

PD_MUST_CHECK
enum pd_status loopback_connect(int *fd, uint16_t port, struct pd_error *error);

/* No delay, and no congestion control made for long ways: best effort. */
void loopback_tune(int fd);

#endif
