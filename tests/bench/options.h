/* The command line of paramd-bench. */
#ifndef PD_TESTS_BENCH_OPTIONS_H
#define PD_TESTS_BENCH_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#define BENCH_WORKER_COUNT_MAX 1024u
#define BENCH_ITERATION_COUNT_MAX 100000u

enum bench_command {
    BENCH_LIMITS,
    BENCH_KERNEL,
    BENCH_ROUNDTRIP,
    BENCH_SCALE,
    BENCH_ALLREDUCE,
    BENCH_COMMAND_COUNT,
};

/* What a round trip is compared with. */
enum bench_limit {
    BENCH_LIMIT_PAIR, /* two plain-socket servers with half of the parameters each */
    BENCH_LIMIT_ECHO, /* one plain-socket server that sends back what it got */
    BENCH_LIMIT_NONE,
};

struct bench_options {
    enum bench_command command;
    uint64_t parameters;
    uint32_t workers;
    uint32_t shards;
    const char *aggregation; /* allreduce or direct */
    const char *optimizer;   /* the name of a rule */
    double clip;             /* largest global norm; NAN: none */
    int wire;                /* enum paramd_dtype, both ways */
    bool checksum;           /* at both ends */
    bool busy_poll;          /* workers look for answers before they sleep */
    uint64_t staging_limit;  /* bytes of gradients a rank holds; 0: no limit */
    enum bench_limit limit;
    uint32_t limit_workers; /* of the limit, with as many bytes in all */
    uint32_t iterations;
    uint64_t seed;
    bool json;
};

/* What main does with the outcome. */
enum bench_options_result {
    BENCH_OPTIONS_RUN,
    BENCH_OPTIONS_HELP,    /* shown: exit 0 */
    BENCH_OPTIONS_MISUSED, /* explained in one line on stderr: exit 2 */
};

enum bench_options_result bench_options_parse(struct bench_options *options, int argc, char **argv);

const char *bench_command_name(enum bench_command command);
const char *bench_limit_name(enum bench_limit limit);
const char *bench_wire_name(int wire);

#endif
