/* The command line of paramd: words in, a struct out.
 * [arguments] -> main. Pure but for getopt's own state. */
#ifndef PD_SERVER_ARGUMENTS_H
#define PD_SERVER_ARGUMENTS_H

#include "common/error.h"

#include <stddef.h>

enum pd_command {
    PD_COMMAND_RUN,
    PD_COMMAND_CHECK_CONFIG, /* parse the file and say what it means */
    PD_COMMAND_HELP,
    PD_COMMAND_VERSION,
};

/* The texts are those of argv. */
struct pd_arguments {
    enum pd_command command;
    const char *config_file; /* NULL: none, so every key has its default */
    size_t setting_count;
    const char *settings[PD_CONFIG_SETTING_COUNT_MAX]; /* "key=value", in order */
};

/* Read the words after argv[0]. --help and --version win over everything else.
 * Errors: PD_EINVALID names the word and what is allowed. */
PD_MUST_CHECK
enum pd_status pd_arguments_parse(int argc, char **argv, struct pd_arguments *out,
                                  struct pd_error *error);

/* The text of --help, with every key of a configuration: new text, for pd_heap_free; NULL: out of
 * memory. */
char *pd_arguments_help(void);

#endif
