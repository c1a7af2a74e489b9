/* Worker processes that take steps together: through paramd and, in turn with it, through the
 * limit. A step lasts from their common start until the last of them holds the new parameters.
 * roundtrip -> [crew] -> client library, limit. */
#ifndef PD_TESTS_BENCH_CREW_H
#define PD_TESTS_BENCH_CREW_H

#include "tests/bench/limit.h"

#include <sys/types.h>

enum crew_kind {
    CREW_PARAMD,
    CREW_LIMIT,
    CREW_KIND_COUNT,
};

/* One step, as it is reported while the crew works. */
struct crew_sample {
    enum crew_kind kind;
    bool measured; /* no warm-up */
    double ms;
};

struct crew {
    uint32_t worker_count;
    struct crew_shared *shared;
    uint64_t shared_bytes;
    pid_t *pids;
    int samples; /* read end of the pipe on which they come */
};

/* Start the workers; they begin at once. With `servers->count` 0 only paramd is measured. On
 * failure, stop is still needed. */
PD_MUST_CHECK
enum pd_status crew_start(struct crew *crew, const struct bench_options *options,
                          const char *address, const struct limit_servers *servers,
                          struct pd_error *error);

/* What a crew has to say. */
enum crew_news {
    CREW_SILENT, /* nothing for the time that was waited */
    CREW_SAMPLE,
    CREW_ENDED, /* all workers are done */
};

/* Wait for the next sample. Errors: those of a worker that failed. */
PD_MUST_CHECK
enum pd_status crew_next(struct crew *crew, int64_t timeout_ms, enum crew_news *news,
                         struct crew_sample *sample, struct pd_error *error);

/* Kill what is left. */
void crew_stop(struct crew *crew);

#endif
