#include "client/worker/options.h"

#include "client/include/paramd.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
    "usage: paramd-worker [option]...\n"
    "Train a small network on handwritten digits through a paramd daemon.\n"
    "\n"
    "  --server HOST:PORT    any rank of the daemon (default $PARAMD_SERVER or 127.0.0.1:7070)\n"
    "  --name NAME           unique among workers, orders the sum (default: the daemon chooses)\n"
    "  --steps N             train until step N (default 400)\n"
    "  --epochs N            instead, N passes over this worker's images\n"
    "  --batch N             images in a micro-batch (default 32)\n"
    "  --hidden N            units of the hidden layer (default 128)\n"
    "  --seed N              of initial weights and the order of images (default 1)\n"
    "  --worker INDEX/COUNT  train on every COUNT-th image from number INDEX on (default 0/1)\n"
    "  --wire TYPE           float32, bfloat16 or float16 on the wire (default float32)\n"
    "  --data FILE           images (default $PARAMD_DIGITS, or share/paramd/digits.csv beside\n"
    "                        the directory of this program)\n"
    "  --log FILE            write step, loss, learning rate and more as CSV\n"
    "  --line N              on a terminal, show progress N lines above the cursor (default 0)\n"
    "  --every N             otherwise, a line of progress every N steps (default 50)\n"
    "  --timeout SECONDS     give up a call after so long (default 60)\n"
    "  --help, --version\n";

enum {
    OPTION_SERVER = 1,
    OPTION_NAME,
    OPTION_STEPS,
    OPTION_EPOCHS,
    OPTION_BATCH,
    OPTION_HIDDEN,
    OPTION_SEED,
    OPTION_WORKER,
    OPTION_WIRE,
    OPTION_DATA,
    OPTION_LOG,
    OPTION_LINE,
    OPTION_EVERY,
    OPTION_TIMEOUT,
    OPTION_HELP,
    OPTION_VERSION,
};

static const struct option long_options[] = {
    {"server", required_argument, NULL, OPTION_SERVER},
    {"name", required_argument, NULL, OPTION_NAME},
    {"steps", required_argument, NULL, OPTION_STEPS},
    {"epochs", required_argument, NULL, OPTION_EPOCHS},
    {"batch", required_argument, NULL, OPTION_BATCH},
    {"hidden", required_argument, NULL, OPTION_HIDDEN},
    {"seed", required_argument, NULL, OPTION_SEED},
    {"worker", required_argument, NULL, OPTION_WORKER},
    {"wire", required_argument, NULL, OPTION_WIRE},
    {"data", required_argument, NULL, OPTION_DATA},
    {"log", required_argument, NULL, OPTION_LOG},
    {"line", required_argument, NULL, OPTION_LINE},
    {"every", required_argument, NULL, OPTION_EVERY},
    {"timeout", required_argument, NULL, OPTION_TIMEOUT},
    {"help", no_argument, NULL, OPTION_HELP},
    {"version", no_argument, NULL, OPTION_VERSION},
    {NULL, 0, NULL, 0},
};

/* A whole number from `low` to `high`; 0 and a line on stderr if it is none. */
static int parse_number(const char *option, const char *text, uint64_t low, uint64_t high,
                        uint64_t *out)
{
    char *end;

    errno = 0;
    *out = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || text[0] == '-' || *out < low || *out > high) {
        fprintf(stderr, "paramd-worker: %s %s: not a whole number from %llu to %llu\n", option,
                text, (unsigned long long)low, (unsigned long long)high);
        return 0;
    }
    return 1;
}

static int parse_count(const char *option, const char *text, uint32_t low, uint32_t high,
                       uint32_t *out)
{
    uint64_t value;

    if (!parse_number(option, text, low, high, &value)) {
        return 0;
    }
    *out = (uint32_t)value;
    return 1;
}

static int parse_part(const char *text, struct worker_options *options)
{
    int used = 0;
    int found = sscanf(text, "%u/%u%n", &options->part_index, &options->part_count, &used);

    if (found != 2 || text[used] != '\0' || options->part_count == 0 ||
        options->part_count > 1024 || options->part_index >= options->part_count) {
        fprintf(stderr,
                "paramd-worker: --worker %s: not INDEX/COUNT with INDEX below COUNT, at most "
                "1024\n",
                text);
        return 0;
    }
    return 1;
}

static int parse_wire(const char *text, int *dtype)
{
    static const char *const names[] = {"float32", "bfloat16", "float16"};

    for (int i = 0; i < 3; i++) {
        if (strcmp(text, names[i]) == 0) {
            *dtype = i;
            return 1;
        }
    }
    fprintf(stderr, "paramd-worker: --wire %s: not float32, bfloat16 or float16\n", text);
    return 0;
}

static int take(struct worker_options *options, int option, const char *text)
{
    uint64_t seconds;

    switch (option) {
    case OPTION_SERVER:
        options->server = text;
        return 1;
    case OPTION_NAME:
        options->name = text;
        return 1;
    case OPTION_STEPS:
        return parse_number("--steps", text, 1, UINT32_MAX, &options->steps);
    case OPTION_EPOCHS:
        return parse_number("--epochs", text, 1, 1000000, &options->epochs);
    case OPTION_BATCH:
        return parse_count("--batch", text, 1, 65536, &options->batch);
    case OPTION_HIDDEN:
        return parse_count("--hidden", text, 1, 1u << 20, &options->hidden);
    case OPTION_SEED:
        return parse_number("--seed", text, 0, UINT64_MAX, &options->seed);
    case OPTION_WORKER:
        return parse_part(text, options);
    case OPTION_WIRE:
        return parse_wire(text, &options->wire_dtype);
    case OPTION_DATA:
        snprintf(options->data_path, sizeof options->data_path, "%s", text);
        return 1;
    case OPTION_LOG:
        options->log_path = text;
        return 1;
    case OPTION_LINE:
        return parse_count("--line", text, 0, 1000, &options->line);
    case OPTION_EVERY:
        return parse_count("--every", text, 1, 1000000, &options->every);
    case OPTION_TIMEOUT:
        if (!parse_number("--timeout", text, 1, 1000000, &seconds)) {
            return 0;
        }
        options->timeout_ms = (int64_t)seconds * 1000;
        return 1;
    default:
        fputs("paramd-worker: try --help\n", stderr);
        return 0;
    }
}

/* share/paramd/digits.csv beside the directory this program is in: right in a build tree as well as
 * once installed. */
static void default_data_path(char path[WORKER_PATH_BYTES_MAX])
{
    static const char relative[] = "../share/paramd/digits.csv";
    const char *given = getenv("PARAMD_DIGITS");

    if (given != NULL && given[0] != '\0') {
        snprintf(path, WORKER_PATH_BYTES_MAX, "%s", given);
        return;
    }
    ssize_t bytes = readlink("/proc/self/exe", path, WORKER_PATH_BYTES_MAX - sizeof relative);
    path[bytes > 0 ? bytes : 0] = '\0';
    char *slash = strrchr(path, '/');
    memcpy(slash != NULL ? slash + 1 : path, relative, sizeof relative);
}

enum worker_options_result worker_options_parse(struct worker_options *options, int argc,
                                                char **argv)
{
    int option;

    memset(options, 0, sizeof *options);
    options->steps = 400;
    options->batch = 32;
    options->hidden = 128;
    options->seed = 1;
    options->part_count = 1;
    options->wire_dtype = PARAMD_FLOAT32;
    options->every = 50;
    options->timeout_ms = 60000;
    default_data_path(options->data_path);
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (option == OPTION_HELP) {
            fputs(usage, stdout);
            return WORKER_OPTIONS_HELP;
        }
        if (option == OPTION_VERSION) {
            printf("paramd-worker %s\n", paramd_library_version());
            return WORKER_OPTIONS_HELP;
        }
        if (!take(options, option, optarg)) {
            return WORKER_OPTIONS_MISUSED;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "paramd-worker: %s: no such argument; try --help\n", argv[optind]);
        return WORKER_OPTIONS_MISUSED;
    }
    return WORKER_OPTIONS_RUN;
}
