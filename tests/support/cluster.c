#include "tests/support/cluster.h"

#include "tests/support/proc.h"
#include "tests/support/suite.h"

#include <check.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_BYTES = 65536, WORD_COUNT_MAX = 32 };

static const char *paramd_program = PARAMD_PROGRAM;

void cluster_use_paramd(const char *program)
{
    paramd_program = program;
}

/* ---- Starting ---- */

/* The configuration as a file; its path is for free. */
static char *write_config(const char *format, va_list arguments)
{
    char text[CONFIG_BYTES];
    char whole[CONFIG_BYTES + 64];

    int used = vsnprintf(text, sizeof text, format, arguments);
    ck_assert_int_lt(used, (int)sizeof text);
    bool listens = strncmp(text, "listen:", 7) == 0 || strstr(text, "\nlisten:") != NULL;
    snprintf(whole, sizeof whole, "%s%s\n", listens ? "" : "listen: 127.0.0.1:0\n", text);
    return suite_write_file("config.yaml", whole, strlen(whole));
}

static void launch(struct cluster *cluster, uint32_t rank_count, const char *format,
                   va_list arguments)
{
    char ranks[16];
    char *config = write_config(format, arguments);
    snprintf(ranks, sizeof ranks, "%u", rank_count);
    /* No search for networks, which takes longer than a test. What MPI shares lies with the
     * program's own files, so that it goes away with them. */
    const char *const words[] = {"mpirun",
                                 "--allow-run-as-root",
                                 "--oversubscribe",
                                 "--bind-to",
                                 "none",
                                 "--mca",
                                 "pml",
                                 "ob1",
                                 "--mca",
                                 "btl",
                                 "self,vader",
                                 "--mca",
                                 "btl_vader_backing_directory",
                                 suite_directory(),
                                 "-np",
                                 ranks,
                                 paramd_program,
                                 "--config",
                                 config,
                                 NULL};
    const size_t alone_at = sizeof words / sizeof words[0] - 4;

    memset(cluster, 0, sizeof *cluster);
    cluster->launched = rank_count != CLUSTER_ALONE;
    cluster->rank_count = cluster->launched ? rank_count : 1;
    cluster->process = process_start(cluster->launched ? words : words + alone_at);
    free(config);
}

/* "paramd ready: 2 ranks: 0 at HOST:PORT, 1 at HOST:PORT" */
static void await_ready(struct cluster *cluster)
{
    char *line = process_await_output_line(cluster->process, "paramd ready: ");
    char expected[64];
    char *rest = NULL;

    snprintf(expected, sizeof expected, "paramd ready: %u rank%s: ", cluster->rank_count,
             cluster->rank_count == 1 ? "" : "s");
    ck_assert_msg(strncmp(line, expected, strlen(expected)) == 0, "'%s'", line);
    char *entry = strtok_r(line + strlen(expected), ",", &rest);
    for (uint32_t rank = 0; rank < cluster->rank_count; rank++) {
        unsigned said;
        ck_assert_ptr_nonnull(entry);
        ck_assert_int_eq(sscanf(entry, " %u at %300s", &said, cluster->addresses[rank]), 2);
        ck_assert_uint_eq(said, rank);
        entry = strtok_r(NULL, ",", &rest);
    }
    free(line);
}

void cluster_launch(struct cluster *cluster, uint32_t rank_count, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    launch(cluster, rank_count, format, arguments);
    va_end(arguments);
}

void cluster_start(struct cluster *cluster, uint32_t rank_count, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    launch(cluster, rank_count, format, arguments);
    va_end(arguments);
    await_ready(cluster);
}

/* ---- Ranks ---- */

pid_t cluster_rank_pid(const struct cluster *cluster, uint32_t rank)
{
    pid_t launcher = process_pid(cluster->process);

    if (!cluster->launched) {
        return launcher;
    }
    pid_t found = proc_rank_pid(launcher, rank);
    ck_assert_msg(found != 0, "no process of rank %u", rank);
    return found;
}

/* ---- Ending ---- */

void cluster_drain(struct cluster *cluster)
{
    process_signal(cluster->process, SIGUSR1);
    int code = process_wait(cluster->process);
    if (code != 0) {
        ck_abort_msg("exit code %d; errors: %.3000s", code, process_errors(cluster->process));
    }
}

/* mpirun would take two seconds to end them. */
static void kill_ranks(const struct cluster *cluster)
{
    for (uint32_t rank = 0; rank < cluster->rank_count; rank++) {
        pid_t pid = proc_rank_pid(process_pid(cluster->process), rank);
        if (pid != 0) {
            (void)kill(pid, SIGKILL);
        }
    }
}

void cluster_stop(struct cluster *cluster)
{
    if (cluster->process == NULL) {
        return;
    }
    if (cluster->launched && process_wait_for(cluster->process, 0) < 0) {
        kill_ranks(cluster);
    }
    process_stop(cluster->process);
    cluster->process = NULL;
}

/* ---- paramctl ---- */

static struct process_result run_paramctl(const char *address, bool json, const char *const *words)
{
    const char *all[WORD_COUNT_MAX] = {PARAMCTL_PROGRAM, "--server", address};
    size_t count = 3;

    if (json) {
        all[count++] = "--json";
    }
    for (; *words != NULL; words++) {
        ck_assert_uint_lt(count, WORD_COUNT_MAX - 1);
        all[count++] = *words;
    }
    return process_run(all);
}

struct process_result cluster_paramctl(const char *address, const char *const *words)
{
    return run_paramctl(address, false, words);
}

char *cluster_ask(const struct cluster *cluster, const char *const *words)
{
    struct process_result result = run_paramctl(cluster->addresses[0], true, words);

    ck_assert_msg(result.code == 0, "%s: exit code %d: %s", words[0], result.code, result.errors);
    free(result.errors);
    return result.output;
}
