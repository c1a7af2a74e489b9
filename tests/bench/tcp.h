/* What TCP over loopback takes between two processes.
 * machine -> [tcp] -> sockets. */
#ifndef PD_TESTS_BENCH_TCP_H
#define PD_TESTS_BENCH_TCP_H

#include "common/error.h"

#include <sys/types.h>

/* The near end; the far one is a process of its own. */
struct tcp {
    pid_t pid;
    int fd;
    char *buffer; /* buffer_bytes */
    uint64_t buffer_bytes;
};

/* For exchanges of at most that many bytes each way. On failure, stop is still needed. */
PD_MUST_CHECK
enum pd_status tcp_start(struct tcp *tcp, uint64_t byte_count_max, struct pd_error *error);
void tcp_stop(struct tcp *tcp);

/* Send so many bytes and wait for so many in return. */
PD_MUST_CHECK
enum pd_status tcp_exchange(struct tcp *tcp, uint64_t sent, uint64_t returned, double *ms,
                            struct pd_error *error);

#endif
