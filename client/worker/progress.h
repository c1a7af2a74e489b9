/* How training goes, told as it goes: a live line on a terminal, plain lines elsewhere, and a CSV
 * log. main -> [progress] -> stdout, file. */
#ifndef WORKER_PROGRESS_H
#define WORKER_PROGRESS_H

#include <stdint.h>
#include <stdio.h>

struct progress {
    const char *name; /* the worker's */
    uint64_t step_end;
    uint32_t line;  /* lines above the cursor */
    uint32_t every; /* steps between plain lines */
    int terminal;
    FILE *log; /* NULL: none */
    double shown_s;
    double start_s;
    double rate;   /* samples a second, smoothed */
    double step_s; /* when the last step ended */
};

/* One closed step. */
struct progress_step {
    uint64_t step; /* steps closed so far */
    double loss;
    double lr;
    double gradient_norm; /* of this worker's last micro-batch */
    uint64_t samples;     /* this worker's */
    uint64_t skipped_steps;
};

/* Errors: 0 when the log cannot be written; errno says why. */
int progress_init(struct progress *progress, const char *name, uint64_t step_end, uint32_t line,
                  uint32_t every, const char *log_path);
void progress_show(struct progress *progress, const struct progress_step *step);
/* End the live line and the log. */
void progress_finish(struct progress *progress);

#endif
