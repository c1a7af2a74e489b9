#include "tests/bench/kernel.h"

#include "common/heap.h"
#include "tests/bench/child.h"
#include "tests/bench/kernel_cases.h"
#include "tests/bench/report.h"
#include "tests/bench/team.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

/* Elements a loop is given at a time, as in a step. */
#define BLOCK_ELEMENTS 65536u
#define WARM_UP_PASSES 2u

/* What is measured now, and the arrays it is measured on. */
struct bench {
    const struct bench_options *options;
    const struct kernel_case *kernel;
    uint32_t thread_count;
    float *arrays[STREAM_ARRAY_COUNT_MAX]; /* options->parameters elements */
};

struct result {
    double kernel_gb_s;
    double memory_gb_s;
};

/* One thread's share of one pass: the kernel and its loop for memory take turns. */
static void run_part(void *context, uint32_t thread, uint32_t pass)
{
    const struct bench *bench = context;
    const struct kernel_case *kernel = bench->kernel;
    uint64_t count = bench->options->parameters;
    uint64_t end = count * (thread + 1) / bench->thread_count;

    for (uint64_t begin = count * thread / bench->thread_count; begin < end;
         begin += BLOCK_ELEMENTS) {
        uint64_t left = end - begin;
        uint32_t block = left < BLOCK_ELEMENTS ? (uint32_t)left : BLOCK_ELEMENTS;
        uint64_t checksum = PD_CHECKSUM_EMPTY;
        struct kernel_part part = {.checksum = &checksum};
        for (uint32_t i = 0; i < STREAM_ARRAY_COUNT_MAX; i++) {
            part.arrays[i] = bench->arrays[i] + begin;
        }
        (pass % 2 == 0 ? kernel->run : kernel->memory)(kernel, &part, block);
    }
}

static enum pd_status measure(struct bench *bench, double *ms, struct result *result,
                              struct pd_error *error)
{
    uint32_t pairs = WARM_UP_PASSES + bench->options->iterations;
    enum pd_status status = team_time(bench->thread_count, 2 * pairs, run_part, bench, ms, error);

    if (status != PD_OK) {
        return status;
    }
    double *kernel_ms = ms;
    double *memory_ms = ms + 2 * pairs;
    for (uint32_t i = WARM_UP_PASSES; i < pairs; i++) {
        memory_ms[i - WARM_UP_PASSES] = ms[2 * i + 1];
        kernel_ms[i - WARM_UP_PASSES] = ms[2 * i];
    }
    double mb = (double)bench->options->parameters * bench->kernel->bytes / 1e6;
    result->kernel_gb_s = mb / report_times_of(kernel_ms, bench->options->iterations).median;
    result->memory_gb_s = mb / report_times_of(memory_ms, bench->options->iterations).median;
    return PD_OK;
}

/* ---- Output ---- */

static void print_case(const struct bench *bench, const struct result *result)
{
    printf("%-16s %7" PRIu32 " %8" PRIu32 " %8.1f %8.1f %8.2f\n", bench->kernel->name,
           bench->kernel->bytes, bench->thread_count, result->kernel_gb_s, result->memory_gb_s,
           result->kernel_gb_s / result->memory_gb_s);
    (void)fflush(stdout);
}

static json_t *json_case(const struct bench *bench, const struct result *result)
{
    return json_pack("{s:s, s:i, s:i, s:f, s:f, s:f}", "name", bench->kernel->name, "bytes",
                     (int)bench->kernel->bytes, "threads", (int)bench->thread_count, "gb_s",
                     result->kernel_gb_s, "limit_gb_s", result->memory_gb_s, "ratio",
                     result->kernel_gb_s / result->memory_gb_s);
}

static enum pd_status measure_all(struct bench *bench, const struct kernel_list *list, double *ms,
                                  json_t *rows, struct pd_error *error)
{
    uint32_t thread_count_max = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? TEAM_THREAD_COUNT_MAX : 1;

    for (uint32_t i = 0; i < list->count; i++) {
        bench->kernel = &list->cases[i];
        for (uint32_t threads = 1; threads <= thread_count_max; threads++) {
            struct result result;
            report_progress("kernel %" PRIu32 " of %" PRIu32 ": %s", i + 1, list->count,
                            bench->kernel->name);
            bench->thread_count = threads;
            enum pd_status status = measure(bench, ms, &result, error);
            if (status == PD_OK) {
                status = child_interrupted(error);
            }
            if (status != PD_OK) {
                return status;
            }
            report_progress_end();
            if (bench->options->json) {
                json_array_append_new(rows, json_case(bench, &result));
            } else {
                print_case(bench, &result);
            }
        }
    }
    return PD_OK;
}

/* ---- Arrays ---- */

static enum pd_status allocate(struct bench *bench, double **ms, struct pd_error *error)
{
    uint64_t count = bench->options->parameters;
    bool whole = true;

    for (uint32_t i = 0; i < STREAM_ARRAY_COUNT_MAX; i++) {
        bench->arrays[i] = pd_heap_zalloc(count, sizeof(float));
        whole = whole && bench->arrays[i] != NULL;
        for (uint64_t k = 0; whole && k < count; k++) {
            bench->arrays[i][k] = 0.01f + 1e-5f * (float)((k + i) % 1000);
        }
    }
    *ms = pd_heap_zalloc(4 * ((size_t)WARM_UP_PASSES + bench->options->iterations), sizeof **ms);
    if (!whole || *ms == NULL) {
        return pd_error_set(error, PD_ENOMEM, "no memory for %u arrays of %" PRIu64 " elements",
                            STREAM_ARRAY_COUNT_MAX, count);
    }
    return PD_OK;
}

static void release(struct bench *bench, double *ms)
{
    for (uint32_t i = 0; i < STREAM_ARRAY_COUNT_MAX; i++) {
        pd_heap_free(bench->arrays[i]);
    }
    pd_heap_free(ms);
}

enum pd_status kernel_run(const struct bench_options *options, struct pd_error *error)
{
    struct bench bench = {.options = options};
    struct kernel_list list;
    double *ms = NULL;
    json_t *rows = json_array();
    enum pd_status status = kernel_list_init(&list, error);

    if (status == PD_OK) {
        status = allocate(&bench, &ms, error);
    }
    if (status == PD_OK && !options->json) {
        printf("%-16s %7s %8s %8s %8s %8s   %" PRIu64 " elements, medians of %" PRIu32 "\n",
               "kernel", "bytes", "threads", "GB/s", "memory", "ratio", options->parameters,
               options->iterations);
    }
    if (status == PD_OK) {
        status = measure_all(&bench, &list, ms, rows, error);
    }
    if (status == PD_OK && options->json) {
        json_t *object = report_settings(options);
        json_object_set(object, "kernels", rows);
        report_print_json(object);
    }
    json_decref(rows);
    release(&bench, ms);
    kernel_list_finish(&list);
    return status;
}
