#include "client/paramctl.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdbool.h>
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
    "  lr-find             try learning rates from low to high, show the losses, suggest one;\n"
    "                      the training then goes on as if nothing had been\n"
    "  lr-curve            what the last lr-find has come to, or so far\n"
    "  lr-cancel           end a lr-find\n"
    "  pause, resume       close no further step; go on\n"
    "  checkpoint          write the state to disk\n"
    "  evict WORKER        go on without a worker, by its name or number\n"
    "  drain               end the running step and stop\n"
    "  stop                stop at once\n"
    "\n"
    "  --server HOST:PORT  any rank (default $PARAMD_SERVER or 127.0.0.1:7070)\n"
    "  --json              print the daemon's answer as one JSON object\n"
    "  --csv               history, lr-find, lr-curve: comma-separated values with a heading\n"
    "  --plot FILE.png     schedule, history, lr-find, lr-curve: draw it, with gnuplot\n"
    "  --group NAME        set-lr, lr-find: of one group; schedule: show one group\n"
    "  --begin STEP        schedule, history: first step to show (default: the next; the last)\n"
    "  --count N           schedule, history: how many steps to show (default: 20; 10000 with "
    "--plot)\n"
    "  --timeout SECONDS   give up after so long without an answer (default 10)\n"
    "  --help, --version\n"
    "\n"
    "lr-find takes as many steps of the workers as it tries rates:\n"
    "  --start LR          first learning rate (default 1e-7)\n"
    "  --end LR            last learning rate (default 10)\n"
    "  --steps N           rates from start to end (default 100)\n"
    "  --smooth-f F        weight of the last loss in the smoothed one (default 0.05)\n"
    "  --diverge-th X      multiple of the least smoothed loss that ends it (default 4)\n"
    "  --skip-start N      first points that are not suggested (default 10)\n"
    "  --skip-end N        last points that are not suggested (default 5)\n"
    "  --debias            smooth from 0 and make up for it, as fastai does\n"
    "  --exclude-end       stay one factor below --end\n"
    "\n"
    "Exit: 0 done, 1 failed or refused, 2 wrong usage.\n";

/* Steps drawn unless --count says how many: as many as the daemon gives at once. */
#define PLOT_COUNT 10000u

/* As many and as long as the daemon takes. */
#define SETTING_COUNT_MAX 16u
#define SETTING_BYTES_MAX 127u

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
    OPTION_SETTING,      /* of lr-find: its value goes to the daemon as it is */
    OPTION_SETTING_FLAG, /* the same, without a value */
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
    {"start", required_argument, NULL, OPTION_SETTING},
    {"end", required_argument, NULL, OPTION_SETTING},
    {"steps", required_argument, NULL, OPTION_SETTING},
    {"smooth-f", required_argument, NULL, OPTION_SETTING},
    {"diverge-th", required_argument, NULL, OPTION_SETTING},
    {"skip-start", required_argument, NULL, OPTION_SETTING},
    {"skip-end", required_argument, NULL, OPTION_SETTING},
    {"debias", no_argument, NULL, OPTION_SETTING_FLAG},
    {"exclude-end", no_argument, NULL, OPTION_SETTING_FLAG},
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
    {"status", ARGUMENT_NONE},   {"lr", ARGUMENT_NONE},         {"step", ARGUMENT_NONE},
    {"schedule", ARGUMENT_NONE}, {"history", ARGUMENT_NONE},    {"workers", ARGUMENT_NONE},
    {"tensors", ARGUMENT_NONE},  {"set-lr", ARGUMENT_RATE},     {"lr-find", ARGUMENT_NONE},
    {"lr-curve", ARGUMENT_NONE}, {"lr-cancel", ARGUMENT_NONE},  {"pause", ARGUMENT_NONE},
    {"resume", ARGUMENT_NONE},   {"checkpoint", ARGUMENT_NONE}, {"evict", ARGUMENT_WORKER},
    {"drain", ARGUMENT_NONE},    {"stop", ARGUMENT_NONE},
};

struct invocation {
    struct paramd_options connect;
    struct paramd_command command;
    const char *group;
    int json;
    int csv;
    const char *plot; /* file; NULL: none */
    char settings[SETTING_COUNT_MAX][SETTING_BYTES_MAX + 1];
    const char *setting_list[SETTING_COUNT_MAX + 1]; /* of the texts above */
    size_t setting_count;
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

/* Option `name` as a setting: "smooth-f" becomes "smooth_f=TEXT". */
static int take_setting(struct invocation *invocation, const char *name, const char *text)
{
    if (invocation->setting_count == SETTING_COUNT_MAX) {
        return misused(name, text, "one option too many");
    }
    char *setting = invocation->settings[invocation->setting_count];
    int bytes = snprintf(setting, SETTING_BYTES_MAX + 1, "%s=%s", name, text);
    if (bytes > (int)SETTING_BYTES_MAX) {
        return misused(name, text, "too long");
    }
    for (char *at = setting; *at != '='; at++) {
        *at = *at == '-' ? '_' : *at;
    }
    invocation->setting_list[invocation->setting_count++] = setting;
    invocation->command.settings = invocation->setting_list;
    return EXIT_NONE;
}

static int take_option(struct invocation *invocation, int option, const char *name,
                       const char *text)
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
    case OPTION_SETTING:
        return take_setting(invocation, name, text);
    case OPTION_SETTING_FLAG:
        return take_setting(invocation, name, "true");
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

static bool is_command(const struct invocation *invocation, const char *name)
{
    return strcmp(invocation->command.command, name) == 0;
}

/* Whether the options go with the command. */
static int check_options(const struct invocation *invocation)
{
    bool has_curve = is_command(invocation, "lr-find") || is_command(invocation, "lr-curve");
    bool has_history = is_command(invocation, "history");

    if (invocation->plot != NULL && !has_curve && !has_history &&
        !is_command(invocation, "schedule")) {
        return misused("--plot", "", "only with schedule, history, lr-find and lr-curve");
    }
    if (invocation->csv && !has_curve && !has_history) {
        return misused("--csv", "", "only with history, lr-find and lr-curve");
    }
    if (invocation->setting_count > 0 && !is_command(invocation, "lr-find")) {
        return misused(invocation->settings[0], "", "only with lr-find");
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
        if (check_options(invocation) != EXIT_NONE) {
            return EXIT_MISUSED;
        }
        if (commands[i].argument == ARGUMENT_WORKER) {
            invocation->command.target = words[1];
        } else if (is_command(invocation, "lr-find")) {
            invocation->command.target = invocation->group;
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
    int rendered =
        invocation->csv
            ? paramctl_render_csv(stdout, invocation->command.command, answer)
            : paramctl_render(stdout, invocation->command.command, answer, invocation->group);
    json_decref(answer);
    if (!rendered) {
        fprintf(stderr, "paramctl: nothing to show in the answer to %s; --json shows it\n",
                invocation->command.command);
        return EXIT_FAILED;
    }
    return EXIT_DONE;
}

static int ask(const struct invocation *invocation, struct paramd_client *client)
{
    struct paramd_error error = {0};
    char *answer = NULL;

    if (paramd_admin(client, &invocation->command, &answer, &error) != PARAMD_OK) {
        fprintf(stderr, "paramctl: %s\n", error.message);
        return EXIT_FAILED;
    }
    int code = print_answer(invocation, answer);
    paramd_free(answer);
    return code;
}

/* Text comes while the search goes on, JSON and CSV when it is over; a picture comes beside them.
 */
static int find(const struct invocation *invocation, struct paramd_client *client)
{
    FILE *shown = invocation->json || invocation->csv ? NULL : stdout;
    struct paramd_error error = {0};
    json_t *curve;
    int code = EXIT_DONE;

    enum paramd_status status = paramctl_find(client, &invocation->command, shown, &curve, &error);
    if (curve != NULL && invocation->json) {
        json_dumpf(curve, stdout, JSON_COMPACT);
        putchar('\n');
    } else if (curve != NULL && invocation->csv) {
        (void)paramctl_render_csv(stdout, "lr-curve", curve);
    } else if (curve != NULL) {
        paramctl_render_search_end(stdout, curve);
    }
    if (status != PARAMD_OK) {
        fprintf(stderr, "paramctl: %s\n", error.message);
        code = EXIT_FAILED;
    } else if (invocation->plot != NULL) {
        code = draw(invocation, curve);
    }
    json_decref(curve);
    return code;
}

static int run(const struct invocation *invocation)
{
    struct paramd_client *client = NULL;
    struct paramd_error error = {0};

    if (paramd_connect(&invocation->connect, &client, &error) != PARAMD_OK) {
        fprintf(stderr, "paramctl: %s\n", error.message);
        return EXIT_FAILED;
    }
    int code =
        is_command(invocation, "lr-find") ? find(invocation, client) : ask(invocation, client);
    paramd_close(client);
    return code;
}

int main(int argc, char **argv)
{
    struct invocation invocation = {0};
    int option;
    int index = 0;

    paramd_options_init(&invocation.connect);
    invocation.connect.observer = 1;
    invocation.connect.timeout_ms = 10000;
    invocation.connect.connect_timeout_ms = 0;
    while ((option = getopt_long(argc, argv, "", long_options, &index)) != -1) {
        int code = take_option(&invocation, option, long_options[index].name, optarg);
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
