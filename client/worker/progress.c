#include "client/worker/progress.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LIVE_INTERVAL_S 0.1
#define RATE_SMOOTHING 0.1

static double clock_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

int progress_init(struct progress *progress, const char *name, uint64_t step_end, uint32_t line,
                  uint32_t every, const char *log_path)
{
    memset(progress, 0, sizeof *progress);
    progress->name = name;
    progress->step_end = step_end;
    progress->line = line;
    progress->every = every;
    progress->terminal = isatty(STDOUT_FILENO);
    progress->start_s = progress->step_s = clock_s();
    if (log_path == NULL) {
        return 1;
    }
    progress->log = fopen(log_path, "w");
    if (progress->log == NULL) {
        return 0;
    }
    fputs("step,seconds,loss,lr,gradient_norm,samples_per_s,skipped_steps\n", progress->log);
    return 1;
}

/* On a terminal one line is written over, above the cursor if others share the screen: in one
 * write, so that they do not mix. */
static void print_line(const struct progress *progress, const char *text)
{
    char bytes[512];
    int length;

    if (!progress->terminal) {
        length = snprintf(bytes, sizeof bytes, "%s\n", text);
    } else if (progress->line == 0) {
        length = snprintf(bytes, sizeof bytes, "\r\033[2K%s", text);
    } else {
        length = snprintf(bytes, sizeof bytes, "\0337\033[%" PRIu32 "A\r\033[2K%s\0338",
                          progress->line, text);
    }
    fwrite(bytes, 1, (size_t)length, stdout);
    fflush(stdout);
}

static int is_due(struct progress *progress, uint64_t step, double now_s)
{
    if (step >= progress->step_end) {
        return 1;
    }
    if (!progress->terminal) {
        return step % progress->every == 0;
    }
    if (now_s - progress->shown_s < LIVE_INTERVAL_S) {
        return 0;
    }
    progress->shown_s = now_s;
    return 1;
}

void progress_show(struct progress *progress, const struct progress_step *step)
{
    double now_s = clock_s();
    double rate = (double)step->samples / (now_s - progress->step_s + 1e-9);

    progress->rate =
        progress->rate == 0.0 ? rate : progress->rate + RATE_SMOOTHING * (rate - progress->rate);
    progress->step_s = now_s;
    if (progress->log != NULL) {
        fprintf(progress->log, "%" PRIu64 ",%.3f,%.6g,%.6g,%.6g,%.0f,%" PRIu64 "\n", step->step,
                now_s - progress->start_s, step->loss, step->lr, step->gradient_norm,
                progress->rate, step->skipped_steps);
    }
    if (is_due(progress, step->step, now_s)) {
        char text[256];
        snprintf(text, sizeof text,
                 "worker %s step %" PRIu64 "/%" PRIu64 " loss %.3f lr %.1e %.0f samples/s",
                 progress->name, step->step, progress->step_end, step->loss, step->lr,
                 progress->rate);
        print_line(progress, text);
    }
}

void progress_finish(struct progress *progress)
{
    if (progress->terminal && progress->line == 0) {
        fputc('\n', stdout);
    }
    if (progress->log != NULL) {
        fclose(progress->log);
        progress->log = NULL;
    }
}
