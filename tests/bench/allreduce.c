#include "tests/bench/allreduce.h"

#include "common/heap.h"
#include "tests/bench/child.h"
#include "tests/bench/report.h"

#include <inttypes.h>
#include <mpi.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WARM_UP_PASSES 2u
#define MEASURE_MS 60000
#define PATH_BYTES 4096

/* ---- One rank ---- */

static void time_passes(float *elements, const struct bench_options *options, double *ms)
{
    for (uint32_t pass = 0; pass < WARM_UP_PASSES + options->iterations; pass++) {
        MPI_Barrier(MPI_COMM_WORLD);
        double began_s = MPI_Wtime();
        MPI_Allreduce(MPI_IN_PLACE, elements, (int)options->parameters, MPI_FLOAT, MPI_SUM,
                      MPI_COMM_WORLD);
        MPI_Barrier(MPI_COMM_WORLD);
        if (pass >= WARM_UP_PASSES) {
            ms[pass - WARM_UP_PASSES] = (MPI_Wtime() - began_s) * 1e3;
        }
    }
}

enum pd_status allreduce_run(const struct bench_options *options, struct pd_error *error)
{
    int rank = 0;
    int rank_count = 1;
    float *elements = pd_heap_zalloc(options->parameters, sizeof *elements);
    double *ms = pd_heap_zalloc(options->iterations, sizeof *ms);

    if (elements == NULL || ms == NULL) {
        pd_heap_free(elements);
        pd_heap_free(ms);
        return pd_error_set(error, PD_ENOMEM, "no memory for %" PRIu64 " parameters",
                            options->parameters);
    }
    memset(elements, 0, options->parameters * sizeof *elements);
    (void)setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
    MPI_Init(NULL, NULL);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &rank_count);
    time_passes(elements, options, ms);
    if (rank == 0) {
        struct report_times times = report_times_of(ms, options->iterations);
        printf("allreduce %.6f ms median, %.6f min, %.6f max: %" PRIu64 " parameters on %d ranks\n",
               times.median, times.min, times.max, options->parameters, rank_count);
        (void)fflush(stdout);
    }
    MPI_Finalize();
    pd_heap_free(elements);
    pd_heap_free(ms);
    return PD_OK;
}

/* ---- All of them ---- */

static enum pd_status read_median(int output, double *median_ms, struct pd_error *error)
{
    char text[256] = "";
    size_t used = 0;
    struct pollfd readable = {.fd = output, .events = POLLIN};

    while (strchr(text, '\n') == NULL && used + 1 < sizeof text) {
        int found = poll(&readable, 1, MEASURE_MS);
        enum pd_status status = child_interrupted(error);
        if (status != PD_OK) {
            return status;
        }
        if (found == 0) {
            return pd_error_set(error, PD_ETIMEOUT,
                                "mpirun paramd-bench allreduce said nothing within %d s",
                                MEASURE_MS / 1000);
        }
        ssize_t bytes = read(output, text + used, sizeof text - 1 - used);
        if (bytes <= 0) {
            return pd_error_set(error, PD_EIO,
                                "mpirun paramd-bench allreduce ended without a result; is mpirun "
                                "installed?");
        }
        used += (size_t)bytes;
        text[used] = '\0';
    }
    return sscanf(text, "allreduce %lf ms", median_ms) == 1
               ? PD_OK
               : pd_error_set(error, PD_EPROTOCOL, "paramd-bench allreduce said '%s'", text);
}

enum pd_status allreduce_measure(const struct bench_options *options, double *median_ms,
                                 struct pd_error *error)
{
    char self[PATH_BYTES];
    char ranks[16];
    char parameters[32];
    char iterations[16];
    pid_t pid = 0;
    int output = -1;
    int code = 0;
    ssize_t bytes = readlink("/proc/self/exe", self, sizeof self - 1);

    self[bytes > 0 ? bytes : 0] = '\0';
    snprintf(ranks, sizeof ranks, "%" PRIu32, options->shards);
    snprintf(parameters, sizeof parameters, "%" PRIu64, options->parameters);
    snprintf(iterations, sizeof iterations, "%" PRIu32, options->iterations);
    const char *const words[] = {"mpirun",
                                 "--allow-run-as-root",
                                 "--bind-to",
                                 "none",
                                 "-np",
                                 ranks,
                                 "--oversubscribe",
                                 self,
                                 "allreduce",
                                 "--params",
                                 parameters,
                                 "--iters",
                                 iterations,
                                 NULL};
    enum pd_status status = child_exec(&pid, words, &output, "/dev/null", error);
    if (status != PD_OK) {
        return status;
    }
    status = read_median(output, median_ms, error);
    close(output);
    if (!child_ended(pid, status == PD_OK ? MEASURE_MS : 0, &code)) {
        (void)kill(pid, SIGTERM);
        if (!child_ended(pid, MEASURE_MS, &code)) {
            child_kill(pid);
        }
    }
    return status;
}
