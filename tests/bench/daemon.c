#include "tests/bench/daemon.h"

#include "tests/bench/child.h"
#include "tests/support/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define START_MS 60000
#define DRAIN_MS 20000
#define KILL_MS 10000
#define PATH_BYTES 4096

static enum pd_status file_fault(struct pd_error *error, const char *path)
{
    return pd_error_set(error, PD_EIO, "%s: %s", path, strerror(errno));
}

/* ---- Files: the configuration, the log, and what ranks share ---- */

static enum pd_status make_directory(struct daemon *daemon, struct pd_error *error)
{
    /* In memory where there is such a place, as MPI would have it. */
    bool shared = access("/dev/shm", W_OK) == 0;

    snprintf(daemon->directory, sizeof daemon->directory, "%s/paramd-bench.XXXXXX",
             shared ? "/dev/shm" : "/tmp");
    if (mkdtemp(daemon->directory) == NULL) {
        enum pd_status status = file_fault(error, daemon->directory);
        daemon->directory[0] = '\0';
        return status;
    }
    return PD_OK;
}

static const char *file_path(const struct daemon *daemon, const char *name, char *path)
{
    snprintf(path, PATH_BYTES, "%s/%s", daemon->directory, name);
    return path;
}

static enum pd_status write_config(const struct daemon *daemon, const struct bench_options *options,
                                   struct pd_error *error)
{
    char path[PATH_BYTES];
    FILE *file = fopen(file_path(daemon, "paramd.yaml", path), "w");

    if (file == NULL) {
        return file_fault(error, path);
    }
    fprintf(file, "listen: 127.0.0.1:0\naggregation: %s\n", options->aggregation);
    fprintf(file, "workers: {expected: %" PRIu32, options->workers);
    if (options->staging_limit > 0) {
        fprintf(file, ", staging_limit: %" PRIu64, options->staging_limit);
    }
    fprintf(file, "}\n");
    fprintf(file, "optimizer: {name: %s}\n", options->optimizer);
    if (!isnan(options->clip)) {
        fprintf(file, "clip: {norm: %.9g}\n", options->clip);
    }
    return fclose(file) == 0 ? PD_OK : file_fault(error, path);
}

/* Put the last line of its log behind a message. */
static void append_last_line(const struct daemon *daemon, struct pd_error *error)
{
    char path[PATH_BYTES];
    char line[PD_ERROR_BYTES_MAX] = "";
    char next[PD_ERROR_BYTES_MAX];
    FILE *file = fopen(file_path(daemon, "paramd.log", path), "r");

    while (file != NULL && fgets(next, sizeof next, file) != NULL) {
        /* mpirun's own words are framed by empty lines and rules. */
        if (strncmp(next, "paramd", 6) == 0 || line[0] == '\0') {
            memcpy(line, next, sizeof line);
        }
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    line[strcspn(line, "\n")] = '\0';
    size_t used = strlen(error->message);
    snprintf(error->message + used, sizeof error->message - used, "%s%.300s",
             line[0] != '\0' ? ": " : "", line);
}

/* ---- Start ---- */

/* The program beside this one. */
static enum pd_status find_program(char path[PATH_BYTES], struct pd_error *error)
{
    static const char name[] = "paramd";
    ssize_t bytes = readlink("/proc/self/exe", path, PATH_BYTES - sizeof name);

    path[bytes > 0 ? bytes : 0] = '\0';
    char *slash = strrchr(path, '/');
    memcpy(slash != NULL ? slash + 1 : path, name, sizeof name);
    return access(path, X_OK) == 0 ? PD_OK : file_fault(error, path);
}

static enum pd_status launch(struct daemon *daemon, struct pd_error *error)
{
    char program[PATH_BYTES];
    char config[PATH_BYTES];
    char log[PATH_BYTES];
    char ranks[16];
    enum pd_status status = find_program(program, error);

    if (status != PD_OK) {
        return status;
    }
    file_path(daemon, "paramd.yaml", config);
    file_path(daemon, "paramd.log", log);
    snprintf(ranks, sizeof ranks, "%" PRIu32, daemon->rank_count);
    const char *const words[] = {"mpirun",
                                 "--allow-run-as-root",
                                 "--oversubscribe",
                                 "--bind-to",
                                 "none",
                                 "--mca",
                                 "btl",
                                 "self,vader",
                                 "--mca",
                                 "btl_vader_backing_directory",
                                 daemon->directory,
                                 "-np",
                                 ranks,
                                 program,
                                 "--config",
                                 config,
                                 NULL};
    const size_t alone_at = sizeof words / sizeof words[0] - 4;
    return child_exec(&daemon->pid, daemon->launched ? words : words + alone_at, &daemon->output,
                      log, error);
}

/* "paramd ready: 2 ranks: 0 at HOST:PORT, 1 at HOST:PORT" */
static enum pd_status await_ready(struct daemon *daemon, struct pd_error *error)
{
    char text[PD_RANK_COUNT_MAX * (PD_ADDRESS_BYTES_MAX + 16)];
    size_t used = 0;
    int64_t deadline_ms = child_now_ms() + START_MS;

    while (used == 0 || memchr(text, '\n', used) == NULL) {
        struct pollfd readable = {.fd = daemon->output, .events = POLLIN};
        int64_t left_ms = deadline_ms - child_now_ms();
        if (left_ms <= 0 || used + 1 == sizeof text) {
            return pd_error_set(error, PD_ETIMEOUT, "paramd was not ready within %d s",
                                START_MS / 1000);
        }
        if (poll(&readable, 1, (int)left_ms) <= 0) {
            enum pd_status status = child_interrupted(error);
            if (status != PD_OK) {
                return status;
            }
            continue;
        }
        ssize_t bytes = read(daemon->output, text + used, sizeof text - 1 - used);
        if (bytes <= 0) {
            return pd_error_set(error, PD_EIO, "paramd did not start");
        }
        used += (size_t)bytes;
    }
    text[used] = '\0';
    const char *first = strstr(text, ": 0 at ");
    if (first == NULL || sscanf(first, ": 0 at %300[^, \n]", daemon->address) != 1) {
        return pd_error_set(error, PD_EPROTOCOL, "paramd said '%.200s' instead of its addresses",
                            text);
    }
    return PD_OK;
}

enum pd_status daemon_start(struct daemon *daemon, const struct bench_options *options,
                            struct pd_error *error)
{
    *daemon = (struct daemon){
        .launched = options->shards > 1, .rank_count = options->shards, .output = -1};
    enum pd_status status = make_directory(daemon, error);
    if (status == PD_OK) {
        status = write_config(daemon, options, error);
    }
    if (status == PD_OK) {
        status = launch(daemon, error);
    }
    if (status == PD_OK) {
        status = await_ready(daemon, error);
        if (status != PD_OK) {
            append_last_line(daemon, error);
        }
    }
    return status;
}

/* ---- While it runs, and the end ---- */

enum pd_status daemon_check(struct daemon *daemon, struct pd_error *error)
{
    int code = 0;

    if (daemon->pid == 0 || !child_ended(daemon->pid, 0, &code)) {
        return PD_OK;
    }
    daemon->pid = 0;
    enum pd_status status = pd_error_set(error, PD_EIO, "paramd ended with exit code %d", code);
    append_last_line(daemon, error);
    return status;
}

uint64_t daemon_resident_bytes(const struct daemon *daemon, uint32_t rank)
{
    return proc_peak_bytes(daemon->launched ? proc_rank_pid(daemon->pid, rank) : daemon->pid);
}

static void remove_files(const struct daemon *daemon)
{
    static const char *const names[] = {"paramd.yaml", "paramd.log"};
    char path[PATH_BYTES];

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        (void)unlink(file_path(daemon, names[i], path));
    }
    (void)rmdir(daemon->directory);
}

void daemon_stop(struct daemon *daemon)
{
    int code = 0;

    if (daemon->pid != 0) {
        /* mpirun hands SIGUSR1 on; SIGTERM makes it kill its ranks. */
        (void)kill(daemon->pid, SIGUSR1);
        if (!child_ended(daemon->pid, DRAIN_MS, &code)) {
            (void)kill(daemon->pid, SIGTERM);
            if (!child_ended(daemon->pid, KILL_MS, &code)) {
                child_kill(daemon->pid);
            }
        }
        daemon->pid = 0;
    }
    if (daemon->output >= 0) {
        close(daemon->output);
    }
    if (daemon->directory[0] != '\0') {
        remove_files(daemon);
    }
}
