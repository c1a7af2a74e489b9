/* A checksum of what each loop of a step leaves in memory, a line for each: the same on every
 * machine.
 * test_same_bits.py -> [digest] -> kernel_cases. */
#include "common/heap.h"
#include "tests/bench/kernel_cases.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define ELEMENT_COUNT 10007u /* no multiple of anything */
#define PASS_COUNT 3u

/* Numbers of many magnitudes; positive in the arrays that hold squares. */
static void fill(struct kernel_part *part)
{
    uint64_t state = 1;

    for (uint32_t array = 0; array < STREAM_ARRAY_COUNT_MAX; array++) {
        for (uint32_t i = 0; i < ELEMENT_COUNT; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            float magnitude = (float)(state >> 40) * (i % 7 == 0 ? 0x1p-40f : 0x1p-24f);
            part->arrays[array][i] = array < 2 && state % 2 == 0 ? -magnitude : magnitude;
        }
    }
}

static uint64_t digest_of(const struct kernel_case *kernel, const struct kernel_part *part)
{
    *part->checksum = PD_CHECKSUM_EMPTY;
    for (uint32_t pass = 0; pass < PASS_COUNT; pass++) {
        kernel->run(kernel, part, ELEMENT_COUNT);
    }
    for (uint32_t array = 0; array < STREAM_ARRAY_COUNT_MAX; array++) {
        *part->checksum = pd_checksum_add(*part->checksum, part->arrays[array],
                                          ELEMENT_COUNT * sizeof *part->arrays[array]);
    }
    return *part->checksum;
}

int main(void)
{
    struct kernel_list list;
    uint64_t checksum = PD_CHECKSUM_EMPTY;
    struct kernel_part part = {.checksum = &checksum};
    struct pd_error error = {0};

    for (uint32_t i = 0; i < STREAM_ARRAY_COUNT_MAX; i++) {
        part.arrays[i] = pd_heap_zalloc(ELEMENT_COUNT, sizeof *part.arrays[i]);
        if (part.arrays[i] == NULL) {
            fprintf(stderr, "digest: out of memory\n");
            return EXIT_FAILURE;
        }
    }
    if (kernel_list_init(&list, &error) != PD_OK) {
        fprintf(stderr, "digest: %s\n", error.message);
        return EXIT_FAILURE;
    }
    for (uint32_t i = 0; i < list.count; i++) {
        fill(&part);
        printf("%s: %016" PRIx64 "\n", list.cases[i].name, digest_of(&list.cases[i], &part));
    }
    kernel_list_finish(&list);
    for (uint32_t i = 0; i < STREAM_ARRAY_COUNT_MAX; i++) {
        pd_heap_free(part.arrays[i]);
    }
    return EXIT_SUCCESS;
}
