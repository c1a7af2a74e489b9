#include "tests/bench/report.h"

#include "tests/bench/child.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Between lines of progress where they stay. */
#define PROGRESS_MS 5000

static int64_t progress_ms = INT64_MIN; /* when the last one was shown */

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left;
    double b = *(const double *)right;
    return (a > b) - (a < b);
}

struct report_times report_times_of(double *samples, size_t count)
{
    qsort(samples, count, sizeof *samples, compare);
    double upper = samples[count / 2];
    double lower = samples[(count - 1) / 2];
    return (struct report_times){
        .median = (lower + upper) / 2, .min = samples[0], .max = samples[count - 1]};
}

json_t *report_settings(const struct bench_options *options)
{
    json_t *clip = isnan(options->clip) ? json_null() : json_real(options->clip);
    json_t *staging_limit =
        options->staging_limit > 0 ? json_integer((json_int_t)options->staging_limit) : json_null();
    return json_pack(
        "{s:s, s:I, s:I, s:I, s:s, s:s, s:o, s:s, s:b, s:b, s:o, s:s, s:I, s:I, s:I}", "command",
        bench_command_name(options->command), "params", (json_int_t)options->parameters, "workers",
        (json_int_t)options->workers, "shards", (json_int_t)options->shards, "aggregation",
        options->aggregation, "optimizer", options->optimizer, "clip", clip, "wire",
        bench_wire_name(options->wire), "checksum", options->checksum, "busy_poll",
        options->busy_poll, "staging_limit", staging_limit, "limit",
        bench_limit_name(options->limit), "limit_workers", (json_int_t)options->limit_workers,
        "iters", (json_int_t)options->iterations, "seed", (json_int_t)options->seed);
}

void report_print_settings(const struct bench_options *options)
{
    printf("%s: %" PRIu64 " parameters, %" PRIu32 " worker%s, %" PRIu32 " shard%s, %s, %s, ",
           bench_command_name(options->command), options->parameters, options->workers,
           options->workers == 1 ? "" : "s", options->shards, options->shards == 1 ? "" : "s",
           options->aggregation, options->optimizer);
    if (!isnan(options->clip)) {
        printf("clip %g, ", options->clip);
    }
    if (options->staging_limit > 0) {
        printf("staging limit %" PRIu64 ", ", options->staging_limit);
    }
    printf("wire %s, checksum %s, busy poll %s\n", bench_wire_name(options->wire),
           options->checksum ? "on" : "off", options->busy_poll ? "on" : "off");
}

void report_print_json(json_t *object)
{
    (void)json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6));
    printf("\n");
    json_decref(object);
}

void report_progress(const char *format, ...)
{
    va_list arguments;
    bool terminal = isatty(STDERR_FILENO) != 0;
    int64_t now_ms = child_now_ms();

    if (!terminal && progress_ms != INT64_MIN && now_ms - progress_ms < PROGRESS_MS) {
        return;
    }
    progress_ms = now_ms;
    fputs(terminal ? "\r\033[K" : "", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputs(terminal ? "" : "\n", stderr);
}

void report_progress_end(void)
{
    if (isatty(STDERR_FILENO) != 0) {
        fputs("\r\033[K", stderr);
    }
    progress_ms = INT64_MIN;
}
