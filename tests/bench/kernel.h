/* The loops a step is made of, beside the bandwidth of memory for loops with as many arrays.
 * main -> [kernel] -> stream, the rules of server/core. */
#ifndef PD_TESTS_BENCH_KERNEL_H
#define PD_TESTS_BENCH_KERNEL_H

#include "common/error.h"
#include "tests/bench/options.h"

PD_MUST_CHECK
enum pd_status kernel_run(const struct bench_options *options, struct pd_error *error);

#endif
