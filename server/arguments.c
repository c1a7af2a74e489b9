#include "server/arguments.h"

#include "common/heap.h"
#include "server/core/config.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

static const char usage[] =
    "paramd: a parameter server; see also paramctl --help\n"
    "\n"
    "  mpirun -np RANKS paramd --config FILE [--set key=value]...   serve with RANKS ranks\n"
    "  paramd --config FILE [--set key=value]...                    serve with one\n"
    "  paramd --check-config FILE [--set key=value]...              say what FILE means, and stop\n"
    "  paramd --help | --version\n"
    "\n"
    "  --config FILE      the configuration, in YAML; without it every key has its default\n"
    "  --set key=value    put a value over that of the file; the key is dotted, such as\n"
    "                     optimizer.lr or schedule.0.steps, and the value is YAML, such as\n"
    "                     'groups=[{match: \"*.bias\", weight_decay: 0}]' or "
    "'listen=\"[::1]:7070\"'\n"
    "\n";

enum { WORD_CONFIG = 'c', WORD_SET = 's', WORD_CHECK = 'k', WORD_HELP = 'h', WORD_VERSION = 'v' };

static const struct option words[] = {
    {"config", required_argument, NULL, WORD_CONFIG},
    {"set", required_argument, NULL, WORD_SET},
    {"check-config", required_argument, NULL, WORD_CHECK},
    {"help", no_argument, NULL, WORD_HELP},
    {"version", no_argument, NULL, WORD_VERSION},
    {NULL, 0, NULL, 0},
};

static enum pd_status take_file(struct pd_arguments *out, const char *file, struct pd_error *error)
{
    if (out->config_file != NULL) {
        return pd_error_set(error, PD_EINVALID,
                            "%.150s and %.150s; allowed: one configuration file", out->config_file,
                            file);
    }
    if (file[0] == '\0') {
        return pd_error_set(error, PD_EINVALID, "the name of the configuration file is empty");
    }
    out->config_file = file;
    return PD_OK;
}

static enum pd_status take_setting(struct pd_arguments *out, const char *setting,
                                   struct pd_error *error)
{
    if (out->setting_count == PD_CONFIG_SETTING_COUNT_MAX) {
        return pd_error_set(error, PD_EINVALID, "--set %.150s: too many; allowed: %u", setting,
                            PD_CONFIG_SETTING_COUNT_MAX);
    }
    if (strchr(setting, '=') == NULL) {
        return pd_error_set(error, PD_EINVALID, "--set %.150s: not a setting; allowed: key=value",
                            setting);
    }
    out->settings[out->setting_count++] = setting;
    return PD_OK;
}

/* Take the word getopt_long found; `word` is as written. */
static enum pd_status take_word(int found, const char *word, struct pd_arguments *out,
                                struct pd_error *error)
{
    switch (found) {
    case WORD_CONFIG:
        return take_file(out, optarg, error);
    case WORD_CHECK:
        out->command = PD_COMMAND_CHECK_CONFIG;
        return take_file(out, optarg, error);
    case WORD_SET:
        return take_setting(out, optarg, error);
    case ':':
        return pd_error_set(error, PD_EINVALID, "%.150s: needs a value; see --help", word);
    default:
        return pd_error_set(error, PD_EINVALID,
                            "%.150s: unknown; allowed: --config FILE, --set key=value, "
                            "--check-config FILE, --help, --version",
                            word);
    }
}

enum pd_status pd_arguments_parse(int argc, char **argv, struct pd_arguments *out,
                                  struct pd_error *error)
{
    struct pd_error first = {.status = PD_OK};
    enum pd_status status = PD_OK;

    memset(out, 0, sizeof *out);
    optind = 0; /* getopt starts afresh */
    opterr = 0;
    for (;;) {
        /* A leading '+' stops at the first word that is no option, ':' tells a missing value. */
        int at = optind == 0 ? 1 : optind;
        int found = getopt_long(argc, argv, "+:", words, NULL);
        if (found == -1) {
            break;
        }
        if (found == WORD_HELP || found == WORD_VERSION) {
            out->command = found == WORD_HELP ? PD_COMMAND_HELP : PD_COMMAND_VERSION;
            return PD_OK;
        }
        if (status == PD_OK) {
            status = take_word(found, argv[at], out, &first);
        }
    }
    if (status == PD_OK && optind < argc) {
        status = take_word('?', argv[optind], out, &first);
    }
    if (status != PD_OK && error != NULL) {
        *error = first;
    }
    return status;
}

char *pd_arguments_help(void)
{
    char *keys = pd_config_help();

    if (keys == NULL) {
        return NULL;
    }
    size_t bytes = sizeof usage + strlen(keys);
    char *text = pd_heap_zalloc(bytes, 1);
    if (text != NULL) {
        snprintf(text, bytes, "%s%s", usage, keys);
    }
    pd_heap_free(keys);
    return text;
}
