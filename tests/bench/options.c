#include "tests/bench/options.h"

#include "client/include/paramd.h"
#include "common/limits.h"
#include "server/core/optimizer.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: paramd-bench COMMAND [option]...\n"
    "Measure paramd on this machine beside what the machine allows, in one run.\n"
    "\n"
    "  limits                memory, TCP and MPI on this machine\n"
    "  kernel                the loops of a step beside memory, on one thread and two\n"
    "  roundtrip             push, average, step and pull through a real daemon\n"
    "  scale                 round trips with more parameters, workers and shards, and a fit\n"
    "  allreduce             one rank of a sum over MPI: limits starts it with mpirun\n"
    "\n"
    "  --params N            parameters, such as 25M or 100k (default 25M)\n"
    "  --workers N           worker processes (default 1)\n"
    "  --shards N            ranks of the daemon, under mpirun when more than one (default 2)\n"
    "  --aggregation WAY     direct or allreduce (default direct)\n"
    "  --optimizer NAME      the update rule (default adamw)\n"
    "  --clip NORM           clip to this global norm (default: not clipped)\n"
    "  --wire TYPE           float32, bfloat16 or float16, both ways (default float32)\n"
    "  --checksum on|off     sum payloads at both ends (default on)\n"
    "  --busy-poll on|off    workers look for an answer before they sleep (default on)\n"
    "  --staging-limit N     bytes of gradients a rank holds, such as 200M (default: no limit)\n"
    "  --limit KIND          pair: two plain-socket servers with half of the parameters each,\n"
    "                        which take an AdamW step; echo: one that sends back what it got;\n"
    "                        none (default pair)\n"
    "  --limit-workers N     workers of the limit, which move as many bytes (default: --workers)\n"
    "  --iters N             measured steps (default 20)\n"
    "  --seed N              of gradients and parameters (default 1)\n"
    "  --json                print one JSON object\n"
    "  --help, --version\n"
    "\n"
    "Exit: 0 done, 1 failed, 2 wrong usage.\n";

enum {
    OPTION_PARAMS = 1,
    OPTION_WORKERS,
    OPTION_SHARDS,
    OPTION_AGGREGATION,
    OPTION_OPTIMIZER,
    OPTION_CLIP,
    OPTION_WIRE,
    OPTION_CHECKSUM,
    OPTION_BUSY_POLL,
    OPTION_STAGING_LIMIT,
    OPTION_LIMIT,
    OPTION_LIMIT_WORKERS,
    OPTION_ITERS,
    OPTION_SEED,
    OPTION_JSON,
    OPTION_HELP,
    OPTION_VERSION,
};

static const struct option long_options[] = {
    {"params", required_argument, NULL, OPTION_PARAMS},
    {"workers", required_argument, NULL, OPTION_WORKERS},
    {"shards", required_argument, NULL, OPTION_SHARDS},
    {"aggregation", required_argument, NULL, OPTION_AGGREGATION},
    {"optimizer", required_argument, NULL, OPTION_OPTIMIZER},
    {"clip", required_argument, NULL, OPTION_CLIP},
    {"wire", required_argument, NULL, OPTION_WIRE},
    {"checksum", required_argument, NULL, OPTION_CHECKSUM},
    {"busy-poll", required_argument, NULL, OPTION_BUSY_POLL},
    {"staging-limit", required_argument, NULL, OPTION_STAGING_LIMIT},
    {"limit", required_argument, NULL, OPTION_LIMIT},
    {"limit-workers", required_argument, NULL, OPTION_LIMIT_WORKERS},
    {"iters", required_argument, NULL, OPTION_ITERS},
    {"seed", required_argument, NULL, OPTION_SEED},
    {"json", no_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, OPTION_HELP},
    {"version", no_argument, NULL, OPTION_VERSION},
    {NULL, 0, NULL, 0},
};

static const char *const commands[] = {[BENCH_LIMITS] = "limits",
                                       [BENCH_KERNEL] = "kernel",
                                       [BENCH_ROUNDTRIP] = "roundtrip",
                                       [BENCH_SCALE] = "scale",
                                       [BENCH_ALLREDUCE] = "allreduce"};
static const char *const aggregations[] = {"allreduce", "direct"};
static const char *const wires[] = {
    [PARAMD_FLOAT32] = "float32", [PARAMD_BFLOAT16] = "bfloat16", [PARAMD_FLOAT16] = "float16"};
static const char *const limits[] = {
    [BENCH_LIMIT_PAIR] = "pair", [BENCH_LIMIT_ECHO] = "echo", [BENCH_LIMIT_NONE] = "none"};
static const char *const switches[] = {"off", "on"};

#define COUNT_OF(array) (sizeof(array) / sizeof(array)[0])

const char *bench_command_name(enum bench_command command)
{
    return commands[command];
}

const char *bench_limit_name(enum bench_limit limit)
{
    return limits[limit];
}

const char *bench_wire_name(int wire)
{
    return wires[wire];
}

/* A whole number, which may end in k, M or G. */
static bool parse_number(const char *option, const char *text, uint64_t low, uint64_t high,
                         uint64_t *out)
{
    char *end;
    uint64_t unit = 1;

    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    bool read = errno == 0 && end != text && text[0] != '-';
    if (*end == 'k' || *end == 'M' || *end == 'G') {
        unit = *end == 'k' ? 1000 : (*end == 'M' ? 1000000 : 1000000000);
        end++;
    }
    if (!read || *end != '\0' || value > high / unit || value * unit < low) {
        fprintf(stderr, "paramd-bench: %s %s: not a whole number from %" PRIu64 " to %" PRIu64 "\n",
                option, text, low, high);
        return false;
    }
    *out = value * unit;
    return true;
}

static bool parse_count(const char *option, const char *text, uint32_t high, uint32_t *out)
{
    uint64_t value = 0;
    bool parsed = parse_number(option, text, 1, high, &value);

    *out = (uint32_t)value;
    return parsed;
}

/* The index of `text` among `words`. */
static bool parse_word(const char *option, const char *text, const char *const *words, size_t count,
                       size_t *out)
{
    for (*out = 0; *out < count; (*out)++) {
        if (strcmp(text, words[*out]) == 0) {
            return true;
        }
    }
    fprintf(stderr, "paramd-bench: %s %s: not ", option, text);
    for (size_t i = 0; i < count; i++) {
        fprintf(stderr, "%s%s", i == 0 ? "" : (i + 1 < count ? ", " : " or "), words[i]);
    }
    fputc('\n', stderr);
    return false;
}

static bool parse_optimizer(const char *text, const char **out)
{
    const struct pd_optimizer *optimizer = pd_optimizer_find(text);

    if (optimizer == NULL) {
        fprintf(stderr,
                "paramd-bench: --optimizer %s: not a rule of paramd; paramd --help lists "
                "them\n",
                text);
        return false;
    }
    *out = optimizer->name;
    return true;
}

static bool parse_clip(const char *text, double *out)
{
    char *end;

    errno = 0;
    *out = strtod(text, &end);
    if (errno != 0 || end == text || *end != '\0' || !isfinite(*out) || *out <= 0) {
        fprintf(stderr, "paramd-bench: --clip %s: not a norm above 0\n", text);
        return false;
    }
    return true;
}

static bool take_word(struct bench_options *options, int option, const char *text)
{
    size_t index = 0;

    switch (option) {
    case OPTION_AGGREGATION:
        if (!parse_word("--aggregation", text, aggregations, COUNT_OF(aggregations), &index)) {
            return false;
        }
        options->aggregation = aggregations[index];
        return true;
    case OPTION_WIRE:
        if (!parse_word("--wire", text, wires, COUNT_OF(wires), &index)) {
            return false;
        }
        options->wire = (int)index;
        return true;
    case OPTION_CHECKSUM:
        if (!parse_word("--checksum", text, switches, COUNT_OF(switches), &index)) {
            return false;
        }
        options->checksum = index == 1;
        return true;
    case OPTION_BUSY_POLL:
        if (!parse_word("--busy-poll", text, switches, COUNT_OF(switches), &index)) {
            return false;
        }
        options->busy_poll = index == 1;
        return true;
    default:
        if (!parse_word("--limit", text, limits, COUNT_OF(limits), &index)) {
            return false;
        }
        options->limit = (enum bench_limit)index;
        return true;
    }
}

static bool take(struct bench_options *options, int option, const char *text)
{
    switch (option) {
    case OPTION_PARAMS:
        return parse_number("--params", text, 2, PD_LANE_ELEMENT_COUNT_MAX, &options->parameters);
    case OPTION_WORKERS:
        return parse_count("--workers", text, BENCH_WORKER_COUNT_MAX, &options->workers);
    case OPTION_SHARDS:
        return parse_count("--shards", text, PD_RANK_COUNT_MAX, &options->shards);
    case OPTION_OPTIMIZER:
        return parse_optimizer(text, &options->optimizer);
    case OPTION_CLIP:
        return parse_clip(text, &options->clip);
    case OPTION_STAGING_LIMIT:
        return parse_number("--staging-limit", text, 1, 1ull << 53, &options->staging_limit);
    case OPTION_LIMIT_WORKERS:
        return parse_count("--limit-workers", text, BENCH_WORKER_COUNT_MAX,
                           &options->limit_workers);
    case OPTION_ITERS:
        return parse_count("--iters", text, BENCH_ITERATION_COUNT_MAX, &options->iterations);
    case OPTION_SEED:
        return parse_number("--seed", text, 0, UINT64_MAX, &options->seed);
    case OPTION_JSON:
        options->json = true;
        return true;
    case OPTION_AGGREGATION:
    case OPTION_WIRE:
    case OPTION_CHECKSUM:
    case OPTION_BUSY_POLL:
    case OPTION_LIMIT:
        return take_word(options, option, text);
    default:
        fputs("paramd-bench: try --help\n", stderr);
        return false;
    }
}

/* What follows the options: one command. */
static bool take_command(struct bench_options *options, int count, char **words)
{
    size_t index = 0;

    if (count == 0) {
        fputs("paramd-bench: no command; try --help\n", stderr);
        return false;
    }
    if (count > 1) {
        fprintf(stderr, "paramd-bench: %s: one command at a time; try --help\n", words[1]);
        return false;
    }
    if (!parse_word("command", words[0], commands, COUNT_OF(commands), &index)) {
        return false;
    }
    options->command = (enum bench_command)index;
    return true;
}

enum bench_options_result bench_options_parse(struct bench_options *options, int argc, char **argv)
{
    int option;

    *options = (struct bench_options){
        .parameters = 25000000,
        .workers = 1,
        .shards = 2,
        .aggregation = "direct",
        .optimizer = "adamw",
        .clip = NAN,
        .wire = PARAMD_FLOAT32,
        .checksum = true,
        .busy_poll = true,
        .limit = BENCH_LIMIT_PAIR,
        .iterations = 20,
        .seed = 1,
    };
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (option == OPTION_HELP) {
            fputs(usage, stdout);
            return BENCH_OPTIONS_HELP;
        }
        if (option == OPTION_VERSION) {
            printf("paramd-bench %s\n", paramd_library_version());
            return BENCH_OPTIONS_HELP;
        }
        if (!take(options, option, optarg)) {
            return BENCH_OPTIONS_MISUSED;
        }
    }
    if (!take_command(options, argc - optind, argv + optind)) {
        return BENCH_OPTIONS_MISUSED;
    }
    if (options->limit_workers == 0) {
        options->limit_workers = options->workers;
    }
    if (options->limit_workers > options->workers) {
        fprintf(stderr,
                "paramd-bench: --limit-workers %" PRIu32 ": more than --workers %" PRIu32 "\n",
                options->limit_workers, options->workers);
        return BENCH_OPTIONS_MISUSED;
    }
    return BENCH_OPTIONS_RUN;
}
