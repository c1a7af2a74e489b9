#include "tests/simulation/agenda.h"

#include "common/assert.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct sim_agenda *blamed;

void sim_agenda_init(struct sim_agenda *agenda, uint64_t seed)
{
    memset(agenda, 0, sizeof *agenda);
    agenda->seed = seed;
    agenda->random = sim_mix(seed, 0x5eed);
    agenda->traced = getenv("PARAMD_SIMULATION_TRACE") != NULL;
}

void sim_agenda_finish(struct sim_agenda *agenda)
{
    free(agenda->entries);
    memset(agenda, 0, sizeof *agenda);
}

static bool before(const struct sim_entry *a, const struct sim_entry *b)
{
    return a->time_us < b->time_us || (a->time_us == b->time_us && a->serial < b->serial);
}

void sim_after(struct sim_agenda *agenda, uint64_t delay_us, sim_call *call, void *context,
               uint64_t argument)
{
    struct sim_entry entry = {.time_us = agenda->now_us + delay_us,
                              .serial = agenda->serial++,
                              .call = call,
                              .context = context,
                              .argument = argument};

    agenda->entries =
        sim_grow(agenda->entries, agenda->count, &agenda->capacity, sizeof *agenda->entries);
    size_t at = agenda->count++;
    while (at > 0 && before(&entry, &agenda->entries[(at - 1) / 2])) {
        agenda->entries[at] = agenda->entries[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    agenda->entries[at] = entry;
}

static struct sim_entry take_first(struct sim_agenda *agenda)
{
    struct sim_entry first = agenda->entries[0];
    struct sim_entry last = agenda->entries[--agenda->count];
    size_t at = 0;

    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= agenda->count) {
            break;
        }
        if (child + 1 < agenda->count &&
            before(&agenda->entries[child + 1], &agenda->entries[child])) {
            child++;
        }
        if (!before(&agenda->entries[child], &last)) {
            break;
        }
        agenda->entries[at] = agenda->entries[child];
        at = child;
    }
    agenda->entries[at] = last;
    return first;
}

bool sim_agenda_next(struct sim_agenda *agenda)
{
    if (agenda->count == 0) {
        return false;
    }
    struct sim_entry entry = take_first(agenda);
    agenda->now_us = entry.time_us;
    agenda->happened++;
    entry.call(entry.context, entry.argument);
    return true;
}

/* Source: Steele, Lea and Flood 2014, SplitMix64. */
uint64_t sim_random(struct sim_agenda *agenda)
{
    agenda->random += 0x9e3779b97f4a7c15u;
    return sim_mix(agenda->random, 0);
}

uint64_t sim_mix(uint64_t a, uint64_t b)
{
    uint64_t mixed = a ^ (b * 0xd1342543de82ef95u + 0x2545f4914f6cdd1du);

    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
    return mixed ^ (mixed >> 31);
}

uint64_t sim_below(struct sim_agenda *agenda, uint64_t bound)
{
    PD_ASSERT(bound > 0);
    return sim_random(agenda) % bound;
}

uint64_t sim_between(struct sim_agenda *agenda, uint64_t low, uint64_t high)
{
    return low + sim_below(agenda, high - low + 1);
}

bool sim_chance(struct sim_agenda *agenda, uint64_t one_in)
{
    return one_in > 0 && sim_below(agenda, one_in) == 0;
}

void *sim_alloc(size_t count, size_t item_bytes)
{
    void *memory = calloc(count > 0 ? count : 1, item_bytes);
    PD_ASSERT(memory != NULL);
    return memory;
}

void *sim_grow(void *items, size_t count, size_t *capacity, size_t item_bytes)
{
    if (count < *capacity) {
        return items;
    }
    size_t grown_capacity = *capacity == 0 ? 16 : 2 * *capacity;
    char *grown = realloc(items, grown_capacity * item_bytes);
    PD_ASSERT(grown != NULL);
    memset(grown + *capacity * item_bytes, 0, (grown_capacity - *capacity) * item_bytes);
    *capacity = grown_capacity;
    return grown;
}

static _Noreturn void give_up(const struct sim_agenda *agenda, const char *text)
{
    fflush(stdout);
    fprintf(stderr,
            "simulation: seed %" PRIu64 " failed at %.6f s: %s\n"
            "again: simulate %" PRIu64 "-%" PRIu64
            " (PARAMD_SIMULATION_TRACE=1 shows every event)\n",
            agenda->seed, (double)agenda->now_us / 1e6, text, agenda->seed, agenda->seed);
    abort();
}

void sim_fail(const struct sim_agenda *agenda, const char *format, ...)
{
    char text[4 * PD_ERROR_BYTES_MAX];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    give_up(agenda, text);
}

void sim_trace(const struct sim_agenda *agenda, const char *format, ...)
{
    va_list arguments;

    if (!agenda->traced) {
        return;
    }
    printf("%12.6f ", (double)agenda->now_us / 1e6);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
}

static void on_failed_assertion(const char *condition, const char *file, int line)
{
    char text[PD_ERROR_BYTES_MAX];

    snprintf(text, sizeof text, "assertion %s, %s:%d", condition, file, line);
    if (blamed != NULL) {
        give_up(blamed, text);
    }
    fprintf(stderr, "%s\n", text);
    abort();
}

void sim_blame(const struct sim_agenda *agenda)
{
    blamed = agenda;
    pd_assert_set_hook(on_failed_assertion);
}
