#include "tests/bench/machine.h"

#include "common/heap.h"
#include "tests/bench/allreduce.h"
#include "tests/bench/child.h"
#include "tests/bench/report.h"
#include "tests/bench/stream.h"
#include "tests/bench/tcp.h"
#include "tests/bench/team.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BLOCK_ELEMENTS 65536u
#define WARM_UP_PASSES 2u
#define ARRAY_COUNT 3u
/* Exchanges for a latency: as many as take a moment. */
#define LATENCY_FACTOR 50u
#define SMALL_BYTES 4u
#define MEDIUM_BYTES 40000u

struct machine {
    const struct bench_options *options;
    double *ms; /* of passes */
    json_t *values;
    /* Of memory. */
    float *arrays[ARRAY_COUNT];
    uint32_t thread_count;
    bool copies; /* memcpy instead of a loop */
    struct stream_mix mix;
};

static void say(struct machine *machine, const char *name, double value, const char *unit)
{
    report_progress_end();
    if (machine->options->json) {
        json_object_set_new(machine->values, name, json_real(value));
    } else {
        printf("%-34s %10.2f %s\n", name, value, unit);
        (void)fflush(stdout);
    }
}

/* ---- Memory ---- */

static void run_memory(void *context, uint32_t thread, uint32_t pass)
{
    const struct machine *machine = context;
    uint64_t count = machine->options->parameters;
    uint64_t end = count * (thread + 1) / machine->thread_count;

    (void)pass;
    for (uint64_t begin = count * thread / machine->thread_count; begin < end;
         begin += BLOCK_ELEMENTS) {
        uint64_t left = end - begin;
        uint32_t block = left < BLOCK_ELEMENTS ? (uint32_t)left : BLOCK_ELEMENTS;
        float *const arrays[ARRAY_COUNT] = {machine->arrays[0] + begin, machine->arrays[1] + begin,
                                            machine->arrays[2] + begin};
        if (machine->copies) {
            memcpy(arrays[1], arrays[0], block * sizeof(float));
        } else {
            stream_run(machine->mix, arrays, block);
        }
    }
}

static enum pd_status measure_memory(struct machine *machine, const char *name, bool copies,
                                     struct stream_mix mix, struct pd_error *error)
{
    uint32_t thread_count_max = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? TEAM_THREAD_COUNT_MAX : 1;
    uint32_t count = machine->options->iterations;
    double mb = (double)machine->options->parameters * stream_bytes(mix) / 1e6;

    machine->copies = copies;
    machine->mix = mix;
    for (uint32_t threads = 1; threads <= thread_count_max; threads++) {
        char title[64];
        machine->thread_count = threads;
        enum pd_status status =
            team_time(threads, WARM_UP_PASSES + count, run_memory, machine, machine->ms, error);
        if (status == PD_OK) {
            status = child_interrupted(error);
        }
        if (status != PD_OK) {
            return status;
        }
        snprintf(title, sizeof title, "%s_%" PRIu32 "_threads", name, threads);
        say(machine, title, mb / report_times_of(machine->ms + WARM_UP_PASSES, count).median,
            "GB/s");
    }
    return PD_OK;
}

static enum pd_status measure_memories(struct machine *machine, struct pd_error *error)
{
    uint64_t count = machine->options->parameters;
    enum pd_status status = PD_OK;

    report_progress("limits: memory");
    for (uint32_t i = 0; i < ARRAY_COUNT; i++) {
        machine->arrays[i] = pd_heap_zalloc(count, sizeof(float));
        if (machine->arrays[i] == NULL) {
            status = pd_error_set(error, PD_ENOMEM, "no memory for %" PRIu64 " elements", count);
        } else {
            memset(machine->arrays[i], 0, count * sizeof(float));
        }
    }
    if (status == PD_OK) {
        status = measure_memory(machine, "read", false, (struct stream_mix){1, 0, 0}, error);
    }
    if (status == PD_OK) {
        status = measure_memory(machine, "triad", false, (struct stream_mix){2, 0, 1}, error);
    }
    if (status == PD_OK) {
        status = measure_memory(machine, "memcpy", true, (struct stream_mix){1, 0, 1}, error);
    }
    for (uint32_t i = 0; i < ARRAY_COUNT; i++) {
        pd_heap_free(machine->arrays[i]);
    }
    return status;
}

/* ---- TCP ---- */

/* Median time of exchanges of that size. */
static enum pd_status time_exchanges(struct machine *machine, struct tcp *tcp, uint32_t count,
                                     uint64_t sent, uint64_t returned, double *median_ms,
                                     struct pd_error *error)
{
    enum pd_status status = PD_OK;

    for (uint32_t i = 0; i < WARM_UP_PASSES + count && status == PD_OK; i++) {
        status = child_interrupted(error);
        if (status == PD_OK) {
            status = tcp_exchange(tcp, sent, returned, &machine->ms[i], error);
        }
    }
    if (status == PD_OK) {
        *median_ms = report_times_of(machine->ms + WARM_UP_PASSES, count).median;
    }
    return status;
}

static enum pd_status measure_tcp(struct machine *machine, struct pd_error *error)
{
    struct tcp tcp;
    uint64_t bytes = machine->options->parameters * sizeof(float);
    uint32_t count = machine->options->iterations;
    double ms = 0;

    report_progress("limits: TCP");
    enum pd_status status = tcp_start(&tcp, bytes > MEDIUM_BYTES ? bytes : MEDIUM_BYTES, error);
    if (status == PD_OK) {
        status = time_exchanges(machine, &tcp, count, bytes, 1, &ms, error);
    }
    if (status == PD_OK) {
        say(machine, "tcp", (double)bytes / 1e6 / ms, "GB/s");
        status = time_exchanges(machine, &tcp, LATENCY_FACTOR * count, SMALL_BYTES, SMALL_BYTES,
                                &ms, error);
    }
    if (status == PD_OK) {
        say(machine, "ping_pong_4_bytes", ms * 1e3, "us");
        status = time_exchanges(machine, &tcp, LATENCY_FACTOR * count, MEDIUM_BYTES, MEDIUM_BYTES,
                                &ms, error);
    }
    if (status == PD_OK) {
        say(machine, "ping_pong_40000_bytes", ms * 1e3, "us");
    }
    tcp_stop(&tcp);
    return status;
}

/* ---- MPI, and all ---- */

static enum pd_status measure_mpi(struct machine *machine, struct pd_error *error)
{
    double ms = 0;

    report_progress("limits: MPI");
    enum pd_status status = allreduce_measure(machine->options, &ms, error);
    if (status == PD_OK) {
        char title[64];
        snprintf(title, sizeof title, "mpi_allreduce_%" PRIu32 "_ranks", machine->options->shards);
        say(machine, title, ms, "ms");
    }
    return status;
}

enum pd_status machine_run(const struct bench_options *options, struct pd_error *error)
{
    struct machine machine = {.options = options, .values = json_object()};
    enum pd_status status = PD_OK;

    machine.ms = pd_heap_zalloc(WARM_UP_PASSES + (size_t)LATENCY_FACTOR * options->iterations,
                                sizeof *machine.ms);
    if (machine.ms == NULL) {
        status = pd_error_set(error, PD_ENOMEM, "no memory for the times");
    }
    if (status == PD_OK && !options->json) {
        printf("limits: %" PRIu64 " parameters (%.0f MB), medians of %" PRIu32 "\n",
               options->parameters, (double)options->parameters * sizeof(float) / 1e6,
               options->iterations);
    }
    if (status == PD_OK) {
        status = measure_memories(&machine, error);
    }
    if (status == PD_OK) {
        status = measure_tcp(&machine, error);
    }
    if (status == PD_OK) {
        status = measure_mpi(&machine, error);
    }
    if (status == PD_OK && options->json) {
        json_t *object = report_settings(options);
        json_object_set(object, "limits", machine.values);
        report_print_json(object);
    }
    json_decref(machine.values);
    pd_heap_free(machine.ms);
    return status;
}
