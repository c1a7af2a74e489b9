/* The command line of paramd-worker. */
#ifndef WORKER_OPTIONS_H
#define WORKER_OPTIONS_H

#include <stdint.h>

#define WORKER_PATH_BYTES_MAX 4096u

struct worker_options {
    const char *server; /* NULL: as the library finds it */
    const char *name;   /* NULL: the daemon chooses */
    const char *log_path;
    char data_path[WORKER_PATH_BYTES_MAX];
    uint64_t steps;  /* train until this step */
    uint64_t epochs; /* non-zero: instead, passes over this worker's images */
    uint32_t batch;  /* images in a micro-batch */
    uint32_t hidden; /* units of the hidden layer */
    uint64_t seed;
    uint32_t part_index; /* which part of the training images is this worker's */
    uint32_t part_count;
    int wire_dtype; /* enum paramd_dtype, both ways */
    uint32_t line;  /* lines above the cursor where progress is shown on a terminal */
    uint32_t every; /* steps between lines when not a terminal */
    int64_t timeout_ms;
};

/* What main does with the outcome. */
enum worker_options_result {
    WORKER_OPTIONS_RUN,
    WORKER_OPTIONS_HELP,    /* shown: exit 0 */
    WORKER_OPTIONS_MISUSED, /* explained on stderr: exit 2 */
};

enum worker_options_result worker_options_parse(struct worker_options *options, int argc,
                                                char **argv);

#endif
