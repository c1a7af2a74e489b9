#include "tests/bench/roundtrip.h"

#include "common/heap.h"
#include "tests/bench/child.h"
#include "tests/bench/crew.h"
#include "tests/bench/daemon.h"
#include "tests/bench/limit.h"
#include "tests/bench/memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define POLL_MS 200
/* Without any step for so long, a run has failed. */
#define STALL_MS 120000

struct run {
    const struct bench_options *options;
    struct daemon daemon;
    struct limit_servers servers;
    pid_t server_pids[LIMIT_SERVER_COUNT_MAX];
    struct crew crew;
    double *samples[CREW_KIND_COUNT];
    uint32_t sample_counts[CREW_KIND_COUNT];
};

/* ---- Parts that run ---- */

static enum pd_status start_servers(struct run *run, struct pd_error *error)
{
    const struct bench_options *options = run->options;
    uint64_t elements = options->parameters * options->workers / options->limit_workers;
    enum pd_status status = limit_servers_listen(&run->servers, options->limit,
                                                 options->limit_workers, elements, error);

    for (uint32_t i = 0; i < run->servers.count && status == PD_OK; i++) {
        status = child_fork(&run->server_pids[i], error);
        if (status == PD_OK && run->server_pids[i] == 0) {
            /* It ends when the workers have closed their connections. */
            struct pd_error fault = {0};
            if (limit_serve(&run->servers, i, &fault) != PD_ECONNECTION) {
                fprintf(stderr, "paramd-bench: %s\n", fault.message);
            }
            _exit(0);
        }
    }
    return status;
}

static enum pd_status start(struct run *run, struct pd_error *error)
{
    report_progress("starting paramd");
    enum pd_status status = daemon_start(&run->daemon, run->options, error);
    if (status == PD_OK) {
        status = start_servers(run, error);
    }
    if (status == PD_OK) {
        status = crew_start(&run->crew, run->options, run->daemon.address, &run->servers, error);
    }
    return status;
}

static void stop(struct run *run)
{
    crew_stop(&run->crew);
    for (uint32_t i = 0; i < run->servers.count; i++) {
        if (run->server_pids[i] > 0) {
            child_kill(run->server_pids[i]);
        }
        close(run->servers.listening[i]);
    }
    daemon_stop(&run->daemon);
    report_progress_end();
}

/* ---- Samples ---- */

static void take_sample(struct run *run, const struct crew_sample *sample)
{
    static const char *const names[] = {[CREW_PARAMD] = "paramd", [CREW_LIMIT] = "limit"};
    uint32_t *count = &run->sample_counts[sample->kind];

    if (sample->measured) {
        run->samples[sample->kind][(*count)++] = sample->ms;
    }
    report_progress("%s: %s %" PRIu32 " of %" PRIu32 " steps: %.2f ms",
                    sample->measured ? "measuring" : "warming up", names[sample->kind], *count,
                    run->options->iterations, sample->ms);
}

static void note_memory(struct run *run, struct roundtrip *roundtrip)
{
    for (uint32_t rank = 0; rank < run->options->shards; rank++) {
        roundtrip->resident_bytes[rank] = daemon_resident_bytes(&run->daemon, rank);
    }
}

/* A fault if the run cannot go on: nothing has been heard of the workers since `heard_ms`. */
static enum pd_status check(struct run *run, int64_t heard_ms, struct pd_error *error)
{
    if (child_now_ms() - heard_ms > STALL_MS) {
        return pd_error_set(error, PD_ETIMEOUT, "no step within %d s", STALL_MS / 1000);
    }
    return daemon_check(&run->daemon, error);
}

/* Until the workers are done. */
static enum pd_status collect(struct run *run, struct roundtrip *roundtrip, struct pd_error *error)
{
    int64_t heard_ms = child_now_ms();

    for (;;) {
        struct crew_sample sample;
        enum crew_news news = CREW_SILENT;
        enum pd_status status = crew_next(&run->crew, POLL_MS, &news, &sample, error);
        /* Ctrl-C ends the workers, too: that is not their fault. */
        if (child_interrupted(error) != PD_OK) {
            return PD_EIO;
        }
        if (status == PD_OK && news == CREW_SILENT) {
            status = check(run, heard_ms, error);
        }
        if (status != PD_OK || news == CREW_ENDED) {
            return status;
        }
        if (news == CREW_SAMPLE) {
            heard_ms = child_now_ms();
            take_sample(run, &sample);
        }
        if (news == CREW_SAMPLE && sample.kind == CREW_PARAMD &&
            run->sample_counts[CREW_PARAMD] == run->options->iterations) {
            note_memory(run, roundtrip);
        }
    }
}

enum pd_status roundtrip_measure(struct roundtrip *roundtrip, const struct bench_options *options,
                                 struct pd_error *error)
{
    struct run run = {.options = options, .daemon.output = -1, .crew.samples = -1};
    enum pd_status status = PD_OK;

    memset(roundtrip, 0, sizeof *roundtrip);
    for (int kind = 0; kind < CREW_KIND_COUNT; kind++) {
        run.samples[kind] = pd_heap_zalloc(options->iterations, sizeof *run.samples[kind]);
        if (run.samples[kind] == NULL) {
            status = pd_error_set(error, PD_ENOMEM, "no memory for %" PRIu32 " samples",
                                  options->iterations);
        }
    }
    if (status == PD_OK) {
        status = memory_allowed(options, &roundtrip->allowed_bytes, error);
    }
    if (status == PD_OK) {
        status = start(&run, error);
    }
    if (status == PD_OK) {
        status = collect(&run, roundtrip, error);
    }
    stop(&run);
    if (status == PD_OK) {
        roundtrip->paramd = report_times_of(run.samples[CREW_PARAMD], options->iterations);
    }
    if (status == PD_OK && options->limit != BENCH_LIMIT_NONE) {
        roundtrip->limit = report_times_of(run.samples[CREW_LIMIT], options->iterations);
    }
    for (int kind = 0; kind < CREW_KIND_COUNT; kind++) {
        pd_heap_free(run.samples[kind]);
    }
    return status;
}

/* ---- Output ---- */

static void print_times(const char *name, const struct report_times *times)
{
    printf("%-8s %10.3f %10.3f %10.3f\n", name, times->median, times->min, times->max);
}

static void print_text(const struct bench_options *options, const struct roundtrip *roundtrip)
{
    report_print_settings(options);
    printf("%-8s %10s %10s %10s   ms, %" PRIu32 " steps\n", "", "median", "min", "max",
           options->iterations);
    print_times("paramd", &roundtrip->paramd);
    if (options->limit != BENCH_LIMIT_NONE) {
        print_times("limit", &roundtrip->limit);
        printf("%-8s %10.3f %10.3f\n", "ratio", roundtrip->paramd.median / roundtrip->limit.median,
               roundtrip->paramd.min / roundtrip->limit.min);
    }
    for (uint32_t rank = 0; rank < options->shards; rank++) {
        printf("rank %" PRIu32 ": %.0f MB resident, %.0f MB allowed\n", rank,
               (double)roundtrip->resident_bytes[rank] / 1e6,
               (double)roundtrip->allowed_bytes / 1e6);
    }
}

static void print_json(const struct bench_options *options, const struct roundtrip *roundtrip)
{
    json_t *object = report_settings(options);
    json_t *memory = json_array();

    json_object_set_new(object, "median_ms", json_real(roundtrip->paramd.median));
    json_object_set_new(object, "min_ms", json_real(roundtrip->paramd.min));
    json_object_set_new(object, "max_ms", json_real(roundtrip->paramd.max));
    if (options->limit != BENCH_LIMIT_NONE) {
        json_object_set_new(object, "limit_median_ms", json_real(roundtrip->limit.median));
        json_object_set_new(object, "limit_min_ms", json_real(roundtrip->limit.min));
        json_object_set_new(object, "limit_max_ms", json_real(roundtrip->limit.max));
        json_object_set_new(object, "ratio",
                            json_real(roundtrip->paramd.median / roundtrip->limit.median));
        json_object_set_new(object, "min_ratio",
                            json_real(roundtrip->paramd.min / roundtrip->limit.min));
    }
    for (uint32_t rank = 0; rank < options->shards; rank++) {
        json_array_append_new(
            memory, json_pack("{s:I, s:I, s:I}", "rank", (json_int_t)rank, "resident_bytes",
                              (json_int_t)roundtrip->resident_bytes[rank], "allowed_bytes",
                              (json_int_t)roundtrip->allowed_bytes));
    }
    json_object_set_new(object, "memory", memory);
    report_print_json(object);
}

enum pd_status roundtrip_run(const struct bench_options *options, struct pd_error *error)
{
    struct roundtrip roundtrip;
    enum pd_status status = roundtrip_measure(&roundtrip, options, error);

    if (status != PD_OK) {
        return status;
    }
    if (options->json) {
        print_json(options, &roundtrip);
    } else {
        print_text(options, &roundtrip);
    }
    return PD_OK;
}
