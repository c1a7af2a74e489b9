/* The daemon that is measured: paramd beside this program, alone or under mpirun.
 * roundtrip -> [daemon] -> processes. It ends with this program, however that ends. */
#ifndef PD_TESTS_BENCH_DAEMON_H
#define PD_TESTS_BENCH_DAEMON_H

#include "common/error.h"
#include "tests/bench/options.h"

#include <sys/types.h>

struct daemon {
    pid_t pid; /* mpirun, or the daemon itself; 0: none */
    bool launched;
    uint32_t rank_count;
    int output; /* its standard output */
    char directory[64];
    char address[PD_ADDRESS_BYTES_MAX + 1]; /* of rank 0 */
};

/* Start it as the options say and wait until it is ready. On failure, stop is still needed. */
PD_MUST_CHECK
enum pd_status daemon_start(struct daemon *daemon, const struct bench_options *options,
                            struct pd_error *error);

/* Let it drain, kill it if it does not, and remove its files. */
void daemon_stop(struct daemon *daemon);

/* A fault if it has ended by itself, with the last line it said. */
PD_MUST_CHECK
enum pd_status daemon_check(struct daemon *daemon, struct pd_error *error);

/* The most memory of a rank that has been in RAM; 0 if it is gone. */
uint64_t daemon_resident_bytes(const struct daemon *daemon, uint32_t rank);

#endif
