/* What /proc says of processes.
 * test, bench -> [proc]. */
#ifndef PD_TESTS_SUPPORT_PROC_H
#define PD_TESTS_SUPPORT_PROC_H

#include <stdint.h>
#include <sys/types.h>

/* The process of a rank that `launcher`, an mpirun, started; 0 if there is none. */
pid_t proc_rank_pid(pid_t launcher, uint32_t rank);

/* The most memory of a process that has been in RAM; 0 if it is gone. Units: bytes. */
uint64_t proc_peak_bytes(pid_t pid);

#endif
