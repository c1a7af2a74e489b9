/* What a rank may hold in memory, by the settings of a run.
 * roundtrip -> [memory] -> the rules of server/core. */
#ifndef PD_TESTS_BENCH_MEMORY_H
#define PD_TESTS_BENCH_MEMORY_H

#include "common/error.h"
#include "tests/bench/options.h"

/* Per parameter of its lane: 4 bytes that are stepped and 4 that are served; per parameter of its
 * shard: the state, twice where a step is computed beside the old one; the contributions in flight
 * to it, as wide as on the wire; and 64 MB for everything else. With a limit to staging: no more of
 * contributions than that, and the state once. */
PD_MUST_CHECK
enum pd_status memory_allowed(const struct bench_options *options, uint64_t *bytes,
                              struct pd_error *error);

#endif
