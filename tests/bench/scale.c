#include "tests/bench/scale.h"

#include "tests/bench/report.h"
#include "tests/bench/roundtrip.h"

#include <inttypes.h>
#include <stdio.h>

#define POINT_COUNT 3u
/* A model so small that only messages cost. */
#define SMALL_PARAMETERS 10000u

/* One thing varied, everything else as the options say. */
struct series {
    const char *name;
    const char *unit; /* of the slope */
    double factor;    /* from ms per one more to that unit */
    uint64_t values[POINT_COUNT];
    double ms[POINT_COUNT];
    /* ms = fixed + slope * value, by least squares. */
    double fixed;
    double slope;
};

enum { VARY_PARAMETERS, VARY_WORKERS, VARY_SHARDS, SERIES_COUNT };

static void fit(struct series *series)
{
    double x_mean = 0;
    double y_mean = 0;
    double products = 0;
    double squares = 0;

    for (uint32_t i = 0; i < POINT_COUNT; i++) {
        x_mean += (double)series->values[i] / POINT_COUNT;
        y_mean += series->ms[i] / POINT_COUNT;
    }
    for (uint32_t i = 0; i < POINT_COUNT; i++) {
        double x = (double)series->values[i] - x_mean;
        products += x * (series->ms[i] - y_mean);
        squares += x * x;
    }
    series->slope = products / squares;
    series->fixed = y_mean - series->slope * x_mean;
}

/* The settings of a point of a series. */
static struct bench_options settings_of(const struct bench_options *options, int vary,
                                        uint64_t value)
{
    struct bench_options settings = *options;

    settings.limit = BENCH_LIMIT_NONE;
    switch (vary) {
    case VARY_PARAMETERS:
        settings.parameters = value;
        break;
    case VARY_WORKERS:
        settings.workers = (uint32_t)value;
        break;
    default:
        settings.shards = (uint32_t)value;
        settings.parameters = SMALL_PARAMETERS;
        break;
    }
    settings.limit_workers = settings.workers;
    return settings;
}

static enum pd_status measure(struct series *series, int vary, const struct bench_options *options,
                              struct pd_error *error)
{
    for (uint32_t i = 0; i < POINT_COUNT; i++) {
        struct bench_options settings = settings_of(options, vary, series->values[i]);
        struct roundtrip roundtrip;
        enum pd_status status = roundtrip_measure(&roundtrip, &settings, error);
        if (status != PD_OK) {
            return pd_error_prefix(error, "%" PRIu64 " %s", series->values[i], series->name);
        }
        series->ms[i] = roundtrip.paramd.median;
        if (!options->json) {
            printf("%-10s %10" PRIu64 " %10.3f ms\n", series->name, series->values[i],
                   series->ms[i]);
            (void)fflush(stdout);
        }
    }
    fit(series);
    return PD_OK;
}

static void print_fit(const struct series *series)
{
    printf("%-10s %10.3f ms and %.3f %s\n", series->name, series->fixed,
           series->slope * series->factor, series->unit);
}

static json_t *json_series(const struct series *series)
{
    json_t *points = json_array();

    for (uint32_t i = 0; i < POINT_COUNT; i++) {
        json_array_append_new(points,
                              json_pack("{s:I, s:f}", "value", (json_int_t)series->values[i],
                                        "median_ms", series->ms[i]));
    }
    return json_pack("{s:s, s:o, s:f, s:f, s:s}", "vary", series->name, "points", points,
                     "fixed_ms", series->fixed, "slope", series->slope * series->factor, "unit",
                     series->unit);
}

enum pd_status scale_run(const struct bench_options *options, struct pd_error *error)
{
    uint64_t parameters = options->parameters > 8 ? options->parameters : 8;
    uint64_t workers = options->workers;
    struct series series[SERIES_COUNT] = {
        [VARY_PARAMETERS] = {.name = "params",
                             .unit = "ns for each parameter",
                             .factor = 1e6,
                             .values = {parameters / 4, parameters / 2, parameters}},
        [VARY_WORKERS] = {.name = "workers",
                          .unit = "ns for each parameter of one more worker",
                          .factor = 1e6 / (double)options->parameters,
                          .values = {workers, 2 * workers, 4 * workers}},
        [VARY_SHARDS] = {.name = "shards",
                         .unit = "us for one more shard, of a small model",
                         .factor = 1e3,
                         .values = {1, 2, 4}},
    };
    enum pd_status status = PD_OK;

    if (workers > BENCH_WORKER_COUNT_MAX / 4) {
        return pd_error_set(error, PD_EINVALID, "--workers %" PRIu64 ": at most %u with scale",
                            workers, BENCH_WORKER_COUNT_MAX / 4);
    }
    if (!options->json) {
        report_print_settings(options);
    }
    for (int vary = 0; vary < SERIES_COUNT && status == PD_OK; vary++) {
        status = measure(&series[vary], vary, options, error);
    }
    if (status != PD_OK) {
        return status;
    }
    json_t *fits = json_array();
    for (int vary = 0; vary < SERIES_COUNT; vary++) {
        if (options->json) {
            json_array_append_new(fits, json_series(&series[vary]));
        } else {
            print_fit(&series[vary]);
        }
    }
    if (options->json) {
        json_t *object = report_settings(options);
        json_object_set(object, "series", fits);
        report_print_json(object);
    }
    json_decref(fits);
    return PD_OK;
}
