/* paramd-bench: how fast paramd is, beside what the machine allows.
 * options -> [main] -> one command. */
#include "tests/bench/allreduce.h"
#include "tests/bench/child.h"
#include "tests/bench/kernel.h"
#include "tests/bench/machine.h"
#include "tests/bench/options.h"
#include "tests/bench/roundtrip.h"
#include "tests/bench/scale.h"

#include <stdio.h>
#include <stdlib.h>

enum { EXIT_MISUSED = 2 };

int main(int argc, char **argv)
{
    struct bench_options options;
    struct pd_error error = {0};
    enum pd_status status = PD_OK;

    switch (bench_options_parse(&options, argc, argv)) {
    case BENCH_OPTIONS_HELP:
        return EXIT_SUCCESS;
    case BENCH_OPTIONS_MISUSED:
        return EXIT_MISUSED;
    case BENCH_OPTIONS_RUN:
        break;
    }
    child_catch_signals();
    switch (options.command) {
    case BENCH_LIMITS:
        status = machine_run(&options, &error);
        break;
    case BENCH_KERNEL:
        status = kernel_run(&options, &error);
        break;
    case BENCH_ROUNDTRIP:
        status = roundtrip_run(&options, &error);
        break;
    case BENCH_SCALE:
        status = scale_run(&options, &error);
        break;
    case BENCH_ALLREDUCE:
        status = allreduce_run(&options, &error);
        break;
    case BENCH_COMMAND_COUNT:
        break;
    }
    if (status != PD_OK) {
        (void)fprintf(stderr, "paramd-bench: %s\n", error.message);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
