/* Virtual time: what is to happen, and when, and all chance, from one seed.
 * plan -> [agenda] -> network, cluster, worker. */
#ifndef PD_TESTS_SIMULATION_AGENDA_H
#define PD_TESTS_SIMULATION_AGENDA_H

#include "common/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef void sim_call(void *context, uint64_t argument);

/* Something to happen. Things of one moment happen in the order they were entered. */
struct sim_entry {
    uint64_t time_us;
    uint64_t serial;
    sim_call *call;
    void *context;
    uint64_t argument;
};

struct sim_agenda {
    uint64_t seed;
    uint64_t random; /* state of the generator */
    uint64_t now_us;
    uint64_t serial;
    uint64_t happened;
    bool traced;               /* every event to standard output */
    struct sim_entry *entries; /* heap, the next one first */
    size_t count;
    size_t capacity;
};

void sim_agenda_init(struct sim_agenda *agenda, uint64_t seed);
void sim_agenda_finish(struct sim_agenda *agenda);

/* Enter a call `delay_us` from now. */
void sim_after(struct sim_agenda *agenda, uint64_t delay_us, sim_call *call, void *context,
               uint64_t argument);

/* Let the next thing happen; false when there is nothing. */
bool sim_agenda_next(struct sim_agenda *agenda);

/* A random number; one below `bound` > 0; one from `low` to `high`; true once in `one_in`, 0:
 * never. */
uint64_t sim_random(struct sim_agenda *agenda);
uint64_t sim_below(struct sim_agenda *agenda, uint64_t bound);
uint64_t sim_between(struct sim_agenda *agenda, uint64_t low, uint64_t high);
bool sim_chance(struct sim_agenda *agenda, uint64_t one_in);

/* Mix two numbers into one that looks random. */
uint64_t sim_mix(uint64_t a, uint64_t b);

/* Zeroed memory, which the tests count apart from the engine's; never NULL. */
void *sim_alloc(size_t count, size_t item_bytes);
/* Room for one more item in an array of `*capacity`, grown by doubling. */
void *sim_grow(void *items, size_t count, size_t *capacity, size_t item_bytes);

/* The run under way is wrong: print the seed, the time, why and how to see it again, and abort. */
_Noreturn void sim_fail(const struct sim_agenda *agenda, const char *format, ...) PD_PRINTF(2, 3);

/* A line with the time, when the run is traced. */
void sim_trace(const struct sim_agenda *agenda, const char *format, ...) PD_PRINTF(2, 3);

/* The run that a failed assertion of the engine is blamed on; NULL: none. */
void sim_blame(const struct sim_agenda *agenda);

#define SIM_CHECK(agenda, condition, ...) ((condition) ? (void)0 : sim_fail((agenda), __VA_ARGS__))

#endif
