/* Numbers as people and programs read them.
 * roundtrip -> [report] -> standard output. */
#ifndef PD_TESTS_BENCH_REPORT_H
#define PD_TESTS_BENCH_REPORT_H

#include "tests/bench/options.h"

#include <jansson.h>
#include <stddef.h>

struct report_times {
    double median, min, max;
};

/* Sorts `samples`; `count` is at least 1. */
struct report_times report_times_of(double *samples, size_t count);

/* An object with the settings of a run. */
json_t *report_settings(const struct bench_options *options);

/* Settings in one line: "roundtrip: 25000000 parameters, 1 worker, ...". */
void report_print_settings(const struct bench_options *options);

/* Print the object in one line and free it. */
void report_print_json(json_t *object);

/* A line on standard error that says how far a run has come: over the last one on a terminal, else
 * now and then. An empty text ends it. */
void report_progress(const char *format, ...) __attribute__((format(printf, 1, 2)));
void report_progress_end(void);

#endif
