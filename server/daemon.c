#include "server/daemon.h"

#include "common/heap.h"
#include "server/core/engine.h"
#include "server/io/listener.h"
#include "server/io/log.h"
#include "server/io/loop.h"
#include "server/io/signals.h"
#include "server/model_file.h"
#include "server/mpi/collectives.h"
#include "server/mpi/world.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

enum { DESCRIPTORS_KEPT = 64 }; /* of the limit, for files, MPI and the loop itself */

/* What a rank holds while it lives, in the order in which it is made. Owner: the main thread. */
struct daemon {
    struct pd_world *world;
    struct pd_config *config;
    int listen_fd; /* -1: not open, or the loop's */
    uint32_t port;
    struct pd_topology topology;
    char addresses[PD_RANK_COUNT_MAX][PD_ADDRESS_BYTES_MAX + 1];
    char hosts[PD_RANK_COUNT_MAX][PD_HOST_BYTES_MAX + 1];
    char *ready_line;
    struct pd_engine *engine;
    struct pd_collectives *collectives;
    struct pd_loop *loop;
};

enum pd_status pd_daemon_read_config(char **out, const char *path, struct pd_error *error)
{
    enum pd_status status = PD_OK;
    *out = NULL;
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return pd_error_set(error, PD_EIO, "%s: %s", path, strerror(errno));
    }
    char *text = pd_heap_zalloc(PD_CONFIG_BYTES_MAX + 1, 1);
    if (text == NULL) {
        status = pd_error_set(error, PD_ENOMEM, "%s: out of memory", path);
        goto done_file;
    }
    size_t byte_count = fread(text, 1, PD_CONFIG_BYTES_MAX + 1, file);
    if (ferror(file)) {
        status = pd_error_set(error, PD_EIO, "%s: %s", path, strerror(errno));
    } else if (byte_count > PD_CONFIG_BYTES_MAX) {
        status = pd_error_set(error, PD_ELIMIT, "%s: over %u bytes", path, PD_CONFIG_BYTES_MAX);
    } else if (strlen(text) != byte_count) {
        status = pd_error_set(error, PD_ECONFIG, "%s: holds a zero byte", path);
    }
    if (status == PD_OK) {
        *out = text;
    } else {
        pd_heap_free(text);
    }

done_file:
    (void)fclose(file);
    return status;
}

/* Rank 0's words, on every rank: the others need not have the file, nor the same command line.
 * Ownership: *text is the caller's, of *byte_count bytes and a zero; NULL except on rank 0. */
static enum pd_status share_text(struct daemon *daemon, char **text, uint64_t *byte_count,
                                 struct pd_error *error)
{
    enum pd_status status = PD_OK;

    pd_world_broadcast(daemon->world, byte_count, sizeof *byte_count);
    if (*text == NULL) {
        *text = pd_heap_zalloc(*byte_count + 1, 1);
        if (*text == NULL) {
            status = pd_error_set(error, PD_ENOMEM, "config: %" PRIu64 " bytes", *byte_count);
        }
    }
    status = pd_world_agree(daemon->world, status, error);
    if (status == PD_OK) {
        pd_world_broadcast(daemon->world, *text, *byte_count);
    }
    return status;
}

/* The settings, one behind the other, each with its zero. */
static enum pd_status join_settings(const struct pd_arguments *arguments, char **out,
                                    uint64_t *byte_count, struct pd_error *error)
{
    *byte_count = 0;
    for (size_t i = 0; i < arguments->setting_count; i++) {
        *byte_count += strlen(arguments->settings[i]) + 1;
    }
    if (*byte_count > PD_CONFIG_BYTES_MAX) {
        return pd_error_set(error, PD_ELIMIT, "--set: over %u bytes in all", PD_CONFIG_BYTES_MAX);
    }
    *out = pd_heap_zalloc(*byte_count + 1, 1);
    if (*out == NULL) {
        return pd_error_set(error, PD_ENOMEM, "config: out of memory");
    }
    char *end = *out;
    for (size_t i = 0; i < arguments->setting_count; i++) {
        end = stpcpy(end, arguments->settings[i]) + 1;
    }
    return PD_OK;
}

/* Every rank parses the same words. `joined` holds `joined_bytes` of settings. */
static enum pd_status parse_config(struct daemon *daemon, const char *file, const char *text,
                                   const char *joined, uint64_t joined_bytes,
                                   struct pd_error *error)
{
    const char *settings[PD_CONFIG_SETTING_COUNT_MAX];
    size_t setting_count = 0;
    for (uint64_t at = 0; at < joined_bytes; at += strlen(joined + at) + 1) {
        settings[setting_count++] = joined + at;
    }
    return pd_config_create(&daemon->config, file == NULL ? "command line" : file, text, settings,
                            setting_count, error);
}

/* Rank 0 reads its file and its command line, and all make of them what it would alone. */
static enum pd_status start_config(struct daemon *daemon, const struct pd_arguments *arguments,
                                   struct pd_error *error)
{
    const bool reads = pd_world_rank(daemon->world) == 0;
    char *text = NULL;
    char *settings = NULL;
    uint64_t setting_bytes = 0;
    enum pd_status status = PD_OK;

    if (reads && arguments->config_file != NULL) {
        status = pd_daemon_read_config(&text, arguments->config_file, error);
    }
    if (reads && status == PD_OK) {
        status = join_settings(arguments, &settings, &setting_bytes, error);
    }
    status = pd_world_agree(daemon->world, status, error);
    if (status == PD_OK) {
        uint64_t text_bytes = text == NULL ? 0 : strlen(text);
        status = share_text(daemon, &text, &text_bytes, error);
    }
    if (status == PD_OK) {
        status = share_text(daemon, &settings, &setting_bytes, error);
    }
    if (status == PD_OK) {
        status = parse_config(daemon, arguments->config_file, text, settings, setting_bytes, error);
        status = pd_world_agree(daemon->world, status, error);
    }
    pd_heap_free(settings);
    pd_heap_free(text);
    return status;
}

/* Each rank's host name, and the address at which the others and the workers reach it. */
static void exchange_addresses(struct daemon *daemon)
{
    const struct pd_config *config = daemon->config;
    char host[PD_HOST_BYTES_MAX + 1] = "";
    char address[PD_ADDRESS_BYTES_MAX + 1] = "";

    (void)gethostname(host, sizeof host - 1);
    const char *reached = config->advertise;
    if (reached[0] == '\0') {
        reached = pd_listener_is_wildcard(config->listen_host) ? host : config->listen_host;
    }
    (void)snprintf(address, sizeof address, strchr(reached, ':') ? "[%s]:%" PRIu32 : "%s:%" PRIu32,
                   reached, daemon->port);
    pd_world_gather_texts(daemon->world, host, daemon->hosts[0], sizeof host);
    pd_world_gather_texts(daemon->world, address, daemon->addresses[0], sizeof address);
}

/* Listen before anybody is told where. */
static enum pd_status start_listening(struct daemon *daemon, struct pd_error *error)
{
    const struct pd_config *config = daemon->config;
    uint32_t port =
        config->listen_port == 0 ? 0 : config->listen_port + pd_world_rank(daemon->world);
    enum pd_status status =
        pd_listener_open(&daemon->listen_fd, &daemon->port, config->listen_host, port, error);
    status = pd_world_agree(daemon->world, status, error);
    if (status == PD_OK) {
        exchange_addresses(daemon);
    }
    return status;
}

/* "paramd ready: 2 ranks: 0 at HOST:PORT, 1 at HOST:PORT" */
static enum pd_status write_ready_line(struct daemon *daemon, struct pd_error *error)
{
    const struct pd_topology *topology = &daemon->topology;
    const size_t line_bytes = 64 + topology->rank_count * (sizeof daemon->addresses[0] + 16);
    daemon->ready_line = pd_heap_zalloc(line_bytes, 1);
    if (daemon->ready_line == NULL) {
        return pd_error_set(error, PD_ENOMEM, "daemon: out of memory");
    }
    int used = snprintf(daemon->ready_line, line_bytes,
                        "paramd ready: %" PRIu32 " rank%s:", topology->rank_count,
                        topology->rank_count == 1 ? "" : "s");
    for (uint32_t i = 0; i < topology->rank_count; i++) {
        used += snprintf(daemon->ready_line + used, line_bytes - (size_t)used,
                         "%s %" PRIu32 " at %s", i == 0 ? "" : ",", i, topology->addresses[i]);
    }
    return PD_OK;
}

static enum pd_status start_topology(struct daemon *daemon, struct pd_error *error)
{
    struct pd_topology *topology = &daemon->topology;
    uint64_t numbers[2] = {0};
    enum pd_status status = PD_OK;

    topology->rank = pd_world_rank(daemon->world);
    topology->rank_count = pd_world_rank_count(daemon->world);
    if (topology->rank == 0 && getrandom(numbers, sizeof numbers, 0) != sizeof numbers) {
        status = pd_error_set(error, PD_EIO, "getrandom: %s", strerror(errno));
    }
    pd_world_broadcast(daemon->world, numbers, sizeof numbers);
    topology->run_id = numbers[0];
    topology->secret = numbers[1];
    for (uint32_t i = 0; i < topology->rank_count; i++) {
        topology->addresses[i] = daemon->addresses[i];
        topology->hosts[i] = daemon->hosts[i];
    }
    if (status == PD_OK) {
        status = write_ready_line(daemon, error);
    }
    return pd_world_agree(daemon->world, status, error);
}

static enum pd_status start_engine(struct daemon *daemon, struct pd_error *error)
{
    uint32_t lane_count = 0;
    enum pd_status status =
        pd_config_lanes(daemon->config, daemon->topology.rank_count, &lane_count, error);
    if (status == PD_OK) {
        status = pd_engine_create(&daemon->engine, daemon->config, &daemon->topology, error);
    }
    if (status == PD_OK && daemon->config->model[0] != '\0') {
        status = pd_model_file_load(daemon->engine, daemon->config->model, error);
    }
    status = pd_world_agree(daemon->world, status, error);
    if (status == PD_OK) {
        pd_world_form_lanes(daemon->world, lane_count);
    }
    return status;
}

static void on_collective_done(void *context)
{
    struct daemon *daemon = context;
    pd_loop_notify(daemon->loop);
}

static void submit_collective(void *context, const struct pd_collective *collective)
{
    struct daemon *daemon = context;
    pd_collectives_submit(daemon->collectives, collective);
}

static const struct pd_collective *take_done_collective(void *context)
{
    struct daemon *daemon = context;
    return pd_collectives_take_done(daemon->collectives);
}

/* As many descriptors as this process may have; returns how many of them connections may use. */
static uint32_t raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return PD_CONNECTION_COUNT_MAX;
    }
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur >= PD_CONNECTION_COUNT_MAX + DESCRIPTORS_KEPT) {
        return PD_CONNECTION_COUNT_MAX;
    }
    return limit.rlim_cur > 2 * DESCRIPTORS_KEPT ? (uint32_t)limit.rlim_cur - DESCRIPTORS_KEPT
                                                 : DESCRIPTORS_KEPT;
}

static enum pd_status start_loop(struct daemon *daemon, struct pd_error *error)
{
    const struct pd_loop_options options = {
        .engine = daemon->engine,
        .collectives = {submit_collective, take_done_collective, daemon},
        .listen_fd = daemon->listen_fd,
        .leader = daemon->topology.rank == 0 ? NULL : daemon->topology.addresses[0],
        .ready_line = daemon->ready_line,
        .rank_timeout_ms = (uint64_t)(daemon->config->rank_timeout_s * 1000),
        .lease_ms = (uint64_t)(daemon->config->workers.lease_s * 1000),
        .connection_count_max = raise_descriptor_limit(),
        .launched = pd_signals_launched(),
    };
    enum pd_status status = pd_loop_create(&daemon->loop, &options, error);
    if (status == PD_OK) {
        daemon->listen_fd = -1;
        status = pd_collectives_create(&daemon->collectives, daemon->world, on_collective_done,
                                       daemon, error);
    }
    return pd_world_agree(daemon->world, status, error);
}

/* The start, in order. Every rank takes part in every phase until one fails somewhere. */
static enum pd_status start(struct daemon *daemon, const struct pd_arguments *arguments,
                            struct pd_error *error)
{
    enum pd_status status = start_config(daemon, arguments, error);
    if (status == PD_OK) {
        status = start_listening(daemon, error);
    }
    if (status == PD_OK) {
        status = start_topology(daemon, error);
    }
    if (status == PD_OK) {
        status = start_engine(daemon, error);
    }
    if (status == PD_OK) {
        status = start_loop(daemon, error);
    }
    return status;
}

/* The end, in order: no more MPI calls, no more events, then what they used. */
static void finish(struct daemon *daemon)
{
    if (daemon->config != NULL) {
        pd_world_limit_end(1 + (uint32_t)daemon->config->rank_timeout_s);
    }
    pd_collectives_destroy(daemon->collectives);
    pd_loop_destroy(daemon->loop);
    pd_engine_destroy(daemon->engine);
    pd_heap_free(daemon->ready_line);
    if (daemon->listen_fd >= 0) {
        (void)close(daemon->listen_fd);
    }
    pd_config_destroy(daemon->config);
    pd_world_destroy(daemon->world);
}

int pd_daemon_run(const struct pd_arguments *arguments)
{
    struct pd_error error = {0};
    int exit_code = EXIT_FAILURE;

    struct daemon *daemon = pd_heap_zalloc(1, sizeof *daemon);
    if (daemon == NULL) {
        pd_log("daemon: out of memory");
        return EXIT_FAILURE;
    }
    daemon->listen_fd = -1;
    if (pd_world_create(&daemon->world, &error) != PD_OK) {
        (void)fprintf(stderr, "paramd: %s\n", error.message);
        goto done_daemon;
    }
    pd_log_set_rank(pd_world_rank(daemon->world));
    if (start(daemon, arguments, &error) == PD_OK) {
        exit_code = pd_loop_run(daemon->loop);
    } else if (pd_world_rank(daemon->world) == 0) {
        (void)fprintf(stderr, "paramd: %s\n", error.message);
    }
    finish(daemon);

done_daemon:
    pd_heap_free(daemon);
    return exit_code;
}
