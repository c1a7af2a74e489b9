#include "client/paramctl.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: paramctl [option]... COMMAND [argument]\n"
    "Ask a paramd daemon how it stands, and change it while it runs.\n"
    "\n"
    "  status              state, step, learning rate, workers and more\n"
    "  lr                  the learning rate of each parameter group\n"
    "  step                the step and the version of the parameters\n"
    "  schedule            the learning rates to come\n"
    "  history             what the last steps came to: rate, loss, gradient norm, metrics\n"
    "  workers             who is connected\n"
    "  tensors             the model and the shards that hold it\n"
    "  set-lr VALUE        set the learning rate; 'schedule' returns to the schedule\n"
    "  pause, resume       close no further step; go on\n"
    "  checkpoint          write the state to disk\n"
    "  evict WORKER        go on without a worker, by its name or number\n"
    "  drain               end the running step and stop\n"
    "  stop                stop at once\n"
    "\n"
    "  --server HOST:PORT  any rank (default $PARAMD_SERVER or 127.0.0.1:7070)\n"
    "  --json              print the daemon's answer as one JSON object\n"
    "  --csv               history: comma-separated values with a heading\n"
    "  --plot FILE.png     schedule, history: draw it, with gnuplot\n"
    "  --group NAME        set-lr: of one group; schedule: show one group\n"
    "  --begin STEP        schedule, history: first step to show (default: the next; the last)\n"
    "  --count N           schedule, history: how many steps to show (default: 20; 10000 with "
    "--plot)\n"
    "  --timeout SECONDS   give up after so long (default 10)\n"
    "  --help, --version\n"
    "\n"
    "Exit: 0 done, 1 failed or refused, 2 wrong usage.\n";

/* Steps drawn unless --count says how many: as many as the daemon gives at once. */
#define PLOT_COUNT 10000u

enum {
    EXIT_DONE = 0,
    EXIT_FAILED = 1,
    EXIT_MISUSED = 2,
    EXIT_NONE = -1, /* go on */
};

enum {
    OPTION_SERVER = 1,
    OPTION_JSON,
    OPTION_CSV,
    OPTION_PLOT,
    OPTION_GROUP,
    OPTION_BEGIN,
    OPTION_COUNT,
    OPTION_TIMEOUT,
    OPTION_HELP,
    OPTION_VERSION,
};

static const struct option long_options[] = {
    {"server", required_argument, NULL, OPTION_SERVER},
    {"json", no_argument, NULL, OPTION_JSON},
    {"csv", no_argument, NULL, OPTION_CSV},
    {"plot", required_argument, NULL, OPTION_PLOT},
    {"group", required_argument, NULL, OPTION_GROUP},
    {"begin", required_argument, NULL, OPTION_BEGIN},
    {"count", required_argument, NULL, OPTION_COUNT},
    {"timeout", required_argument, NULL, OPTION_TIMEOUT},
    {"help", no_argument, NULL, OPTION_HELP},
    {"version", no_argument, NULL, OPTION_VERSION},
    {NULL, 0, NULL, 0},
};

/* What each command takes after its name. */
enum argument {
    ARGUMENT_NONE,
    ARGUMENT_RATE,
    ARGUMENT_WORKER,
};

static const struct {
    const char *name;
    enum argument argument;
} commands[] = {
    {"status", ARGUMENT_NONE},   {"lr", ARGUMENT_NONE},      {"step", ARGUMENT_NONE},
    {"schedule", ARGUMENT_NONE}, {"history", ARGUMENT_NONE}, {"workers", ARGUMENT_NONE},
    {"tensors", ARGUMENT_NONE},  {"set-lr", ARGUMENT_RATE},  {"pause", ARGUMENT_NONE},
    {"resume", ARGUMENT_NONE},   {"evict", ARGUMENT_WORKER}, {"checkpoint", ARGUMENT_NONE},
    {"drain", ARGUMENT_NONE},    {"stop", ARGUMENT_NONE},
};

struct invocation {
    struct paramd_options connect;
    struct paramd_command command;
    const char *group;
    int json;
    int csv;
    const char *plot; /* file; NULL: none */
};

static int misused(const char *what, const char *text, const char *allowed)
{
    fprintf(stderr, "paramctl: %s%s%s: %s\n", what, text[0] != '\0' ? " " : "", text, allowed);
    return EXIT_MISUSED;
}

static int parse_count(const char *option, const char *text, uint64_t *out)
{
    char *end;

    errno = 0;
    *out = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || text[0] == '-') {
        return misused(option, text, "not a whole number");
    }
    return EXIT_NONE;
}

static int parse_real(const char *text, double *out)
{
    char *end;

    errno = 0;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*out);
}

static int take_option(struct invocation *invocation, int option, const char *text)
{
    double seconds;

    switch (option) {
    case OPTION_SERVER:
        invocation->connect.address = text;
        return EXIT_NONE;
    case OPTION_JSON:
        invocation->json = 1;
        return EXIT_NONE;
    case OPTION_CSV:
        invocation->csv = 1;
        return EXIT_NONE;
    case OPTION_PLOT:
        if (text[0] == '\0' || strpbrk(text, "\n\r") != NULL) {
            return misused("--plot", text, "not the name of a file");
        }
        invocation->plot = text;
        return EXIT_NONE;
    case OPTION_GROUP:
        invocation->group = text;
        return EXIT_NONE;
    case OPTION_BEGIN:
        return parse_count("--begin", text, &invocation->command.begin);
    case OPTION_COUNT:
        return parse_count("--count", text, &invocation->command.count);
    case OPTION_TIMEOUT:
        if (!parse_real(text, &seconds) || seconds <= 0.0 || seconds > 1e6) {
            return misused("--timeout", text, "not a number of seconds above 0");
        }
        invocation->connect.timeout_ms = (int64_t)(seconds * 1000.0);
        return EXIT_NONE;
    case OPTION_HELP:
        fputs(usage, stdout);
        return EXIT_DONE;
    case OPTION_VERSION:
        printf("paramctl %s\n", paramd_library_version());
        return EXIT_DONE;
    default:
        fputs("paramctl: try --help\n", stderr);
        return EXIT_MISUSED;
    }
}

static int take_rate(struct invocation *invocation, const char *text)
{
    struct paramd_command *command = &invocation->command;

    command->target = invocation->group;
    if (strcmp(text, "schedule") == 0) {
        return EXIT_NONE;
    }
    command->has_value = 1;
    if (!parse_real(text, &command->value) || command->value < 0.0) {
        return misused("set-lr", text, "not a rate of 0 or more, nor 'schedule'");
    }
    return EXIT_NONE;
}

/* The command and its argument, which follow the options. */
static int take_command(struct invocation *invocation, int count, char **words)
{
    if (count == 0) {
        fputs(usage, stderr);
        return EXIT_MISUSED;
    }
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(words[0], commands[i].name) != 0) {
            continue;
        }
        int wanted = commands[i].argument == ARGUMENT_NONE ? 1 : 2;
        if (count != wanted) {
            return misused(words[0], "", wanted == 1 ? "takes no argument" : "needs one argument");
        }
        invocation->command.command = commands[i].name;
        if (invocation->plot != NULL && invocation->command.count == 0) {
            invocation->command.count = PLOT_COUNT;
        }
        if (invocation->plot != NULL && strcmp(words[0], "history") != 0 &&
            strcmp(words[0], "schedule") != 0) {
            return misused("--plot", "", "only with schedule and history");
        }
        if (invocation->csv && strcmp(words[0], "history") != 0) {
            return misused("--csv", "", "only with history");
        }
        if (commands[i].argument == ARGUMENT_WORKER) {
            invocation->command.target = words[1];
        }
        return commands[i].argument == ARGUMENT_RATE ? take_rate(invocation, words[1]) : EXIT_NONE;
    }
    return misused(words[0], "", "no such command; try --help");
}

/* Let gnuplot draw the answer. */
static int draw(const struct invocation *invocation, const json_t *answer)
{
    FILE *gnuplot = popen("gnuplot", "w");

    if (gnuplot == NULL) {
        perror("paramctl: gnuplot");
        return EXIT_FAILED;
    }
    int drawn = paramctl_plot(gnuplot, invocation->command.command, answer, invocation->plot);
    int status = pclose(gnuplot);
    if (!drawn) {
        fprintf(stderr, "paramctl: nothing to draw yet\n");
        return EXIT_FAILED;
    }
    if (status != 0) {
        fprintf(stderr, "paramctl: gnuplot did not draw %s\n", invocation->plot);
        return EXIT_FAILED;
    }
    return EXIT_DONE;
}

static int print_answer(const struct invocation *invocation, const char *text)
{
    json_error_t fault;

    if (invocation->json) {
        puts(text);
        return EXIT_DONE;
    }
    json_t *answer = json_loads(text, 0, &fault);
    if (answer == NULL) {
        fprintf(stderr, "paramctl: the answer is no JSON: %s\n", fault.text);
        return EXIT_FAILED;
    }
    if (invocation->plot != NULL) {
        int code = draw(invocation, answer);
        json_decref(answer);
        return code;
    }
    int rendered = invocation->csv ? paramctl_render_csv(stdout, answer)
                                   : paramctl_render(stdout, invocation->command.command, answer,
                                                     invocation->group);
    json_decref(answer);
    if (!rendered) {
        fprintf(stderr, "paramctl: nothing to show in the answer to %s; --json shows it\n",
                invocation->command.command);
        return EXIT_FAILED;
    }
    return EXIT_DONE;
}

static int run(const struct invocation *invocation)
{
    struct paramd_client *client = NULL;
    struct paramd_error error = {0};
    char *answer = NULL;
    int code = EXIT_FAILED;

    if (paramd_connect(&invocation->connect, &client, &error) != PARAMD_OK ||
        paramd_admin(client, &invocation->command, &answer, &error) != PARAMD_OK) {
        fprintf(stderr, "paramctl: %s\n", error.message);
    } else {
        code = print_answer(invocation, answer);
    }
    paramd_free(answer);
    paramd_close(client);
    return code;
}

int main(int argc, char **argv)
{
    struct invocation invocation = {0};
    int option;

    paramd_options_init(&invocation.connect);
    invocation.connect.observer = 1;
    invocation.connect.timeout_ms = 10000;
    invocation.connect.connect_timeout_ms = 0;
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        int code = take_option(&invocation, option, optarg);
        if (code != EXIT_NONE) {
            return code;
        }
    }
    int code = take_command(&invocation, argc - optind, argv + optind);
    if (code != EXIT_NONE) {
        return code;
    }
    code = run(&invocation);
    return fflush(stdout) == 0 ? code : EXIT_FAILED;
}
