/* The limits of this machine, now: memory, TCP over loopback, MPI.
 * main -> [machine] -> stream, tcp, allreduce. */
#ifndef PD_TESTS_BENCH_MACHINE_H
#define PD_TESTS_BENCH_MACHINE_H

#include "common/error.h"
#include "tests/bench/options.h"

PD_MUST_CHECK
enum pd_status machine_run(const struct bench_options *options, struct pd_error *error);

#endif
