/* paramd: reads the command line and does what it says. */
#include "common/assert.h"
#include "common/heap.h"
#include "server/core/config.h"
#include "server/daemon.h"
#include "server/io/log.h"
#include "server/io/signals.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EXIT_USAGE = 2, EXIT_BUG = 3 };

/* A rank that has lost its way ends at once, and the launcher ends the others. */
static void on_assert(const char *condition, const char *file, int line)
{
    pd_log("bug: %s:%d: %s does not hold; ending the job", file, line, condition);
    _exit(EXIT_BUG);
}

static int print_help(void)
{
    char *text = pd_arguments_help();
    if (text == NULL) {
        return EXIT_FAILURE;
    }
    (void)fputs(text, stdout);
    pd_heap_free(text);
    return EXIT_SUCCESS;
}

static int check_config(const struct pd_arguments *arguments)
{
    struct pd_error error = {0};
    struct pd_config *config = NULL;
    char *text = NULL;

    enum pd_status status = pd_daemon_read_config(&text, arguments->config_file, &error);
    if (status == PD_OK) {
        status = pd_config_create(&config, arguments->config_file, text, arguments->settings,
                                  arguments->setting_count, &error);
        pd_heap_free(text);
    }
    if (status != PD_OK) {
        (void)fprintf(stderr, "paramd: %s\n", error.message);
        return EXIT_FAILURE;
    }
    char *summary = pd_config_summary(config);
    pd_config_destroy(config);
    if (summary == NULL) {
        return EXIT_FAILURE;
    }
    (void)printf("%s: valid\n%s", arguments->config_file, summary);
    pd_heap_free(summary);
    return EXIT_SUCCESS;
}

/* Under mpirun all ranks are given the same words: rank 0 speaks for them. */
static void complain(const struct pd_error *error)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (rank == NULL || strcmp(rank, "0") == 0) {
        (void)fprintf(stderr, "paramd: %s\n", error->message);
    }
}

int main(int argc, char **argv)
{
    struct pd_arguments arguments;
    struct pd_error error = {0};

    pd_assert_set_hook(on_assert);
    if (pd_signals_prepare(pd_signals_launched(), &error) != PD_OK) {
        complain(&error);
        return EXIT_FAILURE;
    }
    if (pd_arguments_parse(argc, argv, &arguments, &error) != PD_OK) {
        complain(&error);
        return EXIT_USAGE;
    }
    switch (arguments.command) {
    case PD_COMMAND_RUN:
        return pd_daemon_run(&arguments);
    case PD_COMMAND_CHECK_CONFIG:
        return check_config(&arguments);
    case PD_COMMAND_HELP:
        return print_help();
    case PD_COMMAND_VERSION:
        (void)printf("paramd %s\n", PARAMD_VERSION);
        return EXIT_SUCCESS;
    }
    return EXIT_USAGE;
}
