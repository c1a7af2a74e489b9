/* The handwritten digits: images of 8 x 8 grey values and what they show.
 * digits.csv -> [digits] -> mlp. */
#ifndef WORKER_DIGITS_H
#define WORKER_DIGITS_H

#include <stddef.h>
#include <stdint.h>

#define DIGITS_PIXEL_COUNT 64u
#define DIGITS_CLASS_COUNT 10u
/* Every fifth image, from the first on, is for testing only. */
#define DIGITS_TEST_EVERY 5u

struct digits {
    uint32_t count;
    float *pixels;   /* count x 64, 0 white to 1 black */
    uint8_t *labels; /* count, 0 to 9 */
};

/* Read a file of lines of 64 grey values from 0 to 16 and a digit, separated by commas, and split
 * it. Ownership: both are the caller's, for digits_finish. Errors: false, and one line in
 * `message`; both are empty then. */
int digits_load(struct digits *train, struct digits *test, const char *path, char *message,
                size_t message_bytes);

/* Keep of the images only those of one worker: number `index`, `index` + `count`, ... */
void digits_keep_part(struct digits *digits, uint32_t index, uint32_t count);

/* A zeroed one is allowed. */
void digits_finish(struct digits *digits);

#endif
