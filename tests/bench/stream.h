/* How fast this machine's memory is for loops that do as good as no arithmetic, by how many arrays
 * they read, change and write: what a kernel with as many can reach at most.
 * kernel, machine -> [stream]. */
#ifndef PD_TESTS_BENCH_STREAM_H
#define PD_TESTS_BENCH_STREAM_H

#include <stdint.h>

#define STREAM_ARRAY_COUNT_MAX 9u

/* Arrays of float32. */
struct stream_mix {
    uint32_t read;
    uint32_t changed; /* read and written in place */
    uint32_t written; /* 0 or 1 */
};

/* Run over arrays that come in the order read, changed, written. What is changed keeps its values.
 * The mix is one of those in stream.c's table. */
void stream_run(struct stream_mix mix, float *const *arrays, uint32_t count);

/* An array of 16-bit elements to one of 32-bit elements, and back. */
void stream_widen(void *to, const void *from, uint32_t count);
void stream_narrow(void *to, const void *from, uint32_t count);

/* Bytes that a mix moves for each element. */
uint32_t stream_bytes(struct stream_mix mix);

#endif
