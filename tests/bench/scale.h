/* What a step costs as the model, the crew and the job grow.
 * main -> [scale] -> roundtrip. */
#ifndef PD_TESTS_BENCH_SCALE_H
#define PD_TESTS_BENCH_SCALE_H

#include "common/error.h"
#include "tests/bench/options.h"

PD_MUST_CHECK
enum pd_status scale_run(const struct bench_options *options, struct pd_error *error);

#endif
