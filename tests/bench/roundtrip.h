/* The round trip: push, average, step and pull of real workers through a real daemon, in turn with
 * the limit.
 * main -> [roundtrip] -> daemon, limit, crew. */
#ifndef PD_TESTS_BENCH_ROUNDTRIP_H
#define PD_TESTS_BENCH_ROUNDTRIP_H

#include "common/error.h"
#include "tests/bench/options.h"
#include "tests/bench/report.h"

/* What a run came to. Units: milliseconds, bytes. */
struct roundtrip {
    struct report_times paramd;
    struct report_times limit;                  /* without a limit: zeros */
    uint64_t resident_bytes[PD_RANK_COUNT_MAX]; /* at most, over the run */
    uint64_t allowed_bytes;                     /* of each rank */
};

/* Measure; nothing is left behind, whatever happens. */
PD_MUST_CHECK
enum pd_status roundtrip_measure(struct roundtrip *roundtrip, const struct bench_options *options,
                                 struct pd_error *error);

/* The command: measure and print. */
PD_MUST_CHECK
enum pd_status roundtrip_run(const struct bench_options *options, struct pd_error *error);

#endif
