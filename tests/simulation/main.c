/* simulate [FIRST-LAST]: run whole clusters, one for each seed, and check them.
 * Without an argument the seeds are those of PARAMD_SIMULATION_SEEDS, or 1 to 300. */
#include "tests/simulation/simulation.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int parse(const char *text, uint64_t *first, uint64_t *last)
{
    char *end;

    *first = strtoull(text, &end, 10);
    *last = *first;
    if (end != text && *end == '-') {
        const char *second = end + 1;
        *last = strtoull(second, &end, 10);
        return end != second && *end == '\0' && *last >= *first;
    }
    return end != text && *end == '\0';
}

int main(int argument_count, char **arguments)
{
    const char *seeds = argument_count > 1 ? arguments[1] : getenv("PARAMD_SIMULATION_SEEDS");
    uint64_t first;
    uint64_t last;
    uint64_t steps = 0;

    if (!parse(seeds != NULL ? seeds : "1-300", &first, &last)) {
        fprintf(stderr, "usage: simulate [FIRST-LAST]\n");
        return 2;
    }
    for (uint64_t seed = first; seed <= last; seed++) {
        struct sim_plan plan;
        sim_plan_init(&plan, seed);
        steps += sim_simulate(&plan);
        sim_plan_finish(&plan);
    }
    printf("%" PRIu64 " clusters from seeds %" PRIu64 "-%" PRIu64 ", %" PRIu64 " steps, no fault\n",
           last - first + 1, first, last, steps);
    return 0;
}
