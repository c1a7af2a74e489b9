/* A real daemon: paramd under mpirun, or alone, with a configuration of the test's.
 * test -> [cluster] -> process. Failures end the running Check test; a cluster that is not stopped
 * ends with the process of the test. */
#ifndef PD_TESTS_SUPPORT_CLUSTER_H
#define PD_TESTS_SUPPORT_CLUSTER_H

#include "common/limits.h"
#include "tests/support/process.h"

struct cluster {
    struct process *process; /* mpirun, or the daemon itself */
    uint32_t rank_count;     /* at least 1 */
    bool launched;           /* by mpirun */
    char addresses[PD_RANK_COUNT_MAX][PD_ADDRESS_BYTES_MAX + 1];
};

/* Number of ranks that stands for one without mpirun. */
#define CLUSTER_ALONE 0u

/* Run this daemon instead of the one that was built with the tests; kept, not copied. */
void cluster_use_paramd(const char *program);

/* Start the ranks and wait until they are ready. `format` makes the configuration; it listens on a
 * port of the kernel's choice unless it says `listen` itself. */
void cluster_start(struct cluster *cluster, uint32_t rank_count, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Start them without waiting: what should fail to start. */
void cluster_launch(struct cluster *cluster, uint32_t rank_count, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The process of a rank. */
pid_t cluster_rank_pid(const struct cluster *cluster, uint32_t rank);

/* Ask for a drain as an operator would; the exit code must be 0. */
void cluster_drain(struct cluster *cluster);

/* Kill what is left. */
void cluster_stop(struct cluster *cluster);

/* paramctl with the NULL-terminated `words` behind --server ADDRESS. */
struct process_result cluster_paramctl(const char *address, const char *const *words);

/* paramctl --json: the reply to `words`, with exit code 0; for free. */
char *cluster_ask(const struct cluster *cluster, const char *const *words);

#endif
