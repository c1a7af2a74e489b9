/* What MPI takes to sum the parameters over ranks, in place.
 * main -> [allreduce] under mpirun; machine -> [allreduce] -> mpirun. */
#ifndef PD_TESTS_BENCH_ALLREDUCE_H
#define PD_TESTS_BENCH_ALLREDUCE_H

#include "common/error.h"
#include "tests/bench/options.h"

/* The command, as one of the ranks; rank 0 prints. */
PD_MUST_CHECK
enum pd_status allreduce_run(const struct bench_options *options, struct pd_error *error);

/* Start the command on options->shards ranks of this machine and take its median. */
PD_MUST_CHECK
enum pd_status allreduce_measure(const struct bench_options *options, double *median_ms,
                                 struct pd_error *error);

#endif
