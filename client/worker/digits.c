#include "client/worker/digits.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_BYTES_MAX 512u
#define IMAGE_COUNT_MAX 100000u
#define GREY_MAX 16u

/* Add one image; the arrays grow by doubling. */
static int append(struct digits *digits, const unsigned values[DIGITS_PIXEL_COUNT + 1])
{
    uint32_t count = digits->count;

    if ((count & (count - 1)) == 0) {
        size_t capacity = count == 0 ? 1 : 2 * (size_t)count;
        float *pixels = realloc(digits->pixels, capacity * DIGITS_PIXEL_COUNT * sizeof *pixels);
        if (pixels == NULL) {
            return 0;
        }
        digits->pixels = pixels;
        uint8_t *labels = realloc(digits->labels, capacity);
        if (labels == NULL) {
            return 0;
        }
        digits->labels = labels;
    }
    for (uint32_t i = 0; i < DIGITS_PIXEL_COUNT; i++) {
        digits->pixels[(size_t)count * DIGITS_PIXEL_COUNT + i] = (float)values[i] / GREY_MAX;
    }
    digits->labels[count] = (uint8_t)values[DIGITS_PIXEL_COUNT];
    digits->count++;
    return 1;
}

/* Numbers separated by commas; whether there are as many as needed, all in range. */
static int parse_line(const char *line, unsigned values[DIGITS_PIXEL_COUNT + 1])
{
    for (uint32_t i = 0; i <= DIGITS_PIXEL_COUNT; i++) {
        char *end;
        unsigned long value = strtoul(line, &end, 10);
        unsigned long limit = i < DIGITS_PIXEL_COUNT ? GREY_MAX : DIGITS_CLASS_COUNT - 1;
        if (end == line || line[0] == '-' || value > limit) {
            return 0;
        }
        if (i < DIGITS_PIXEL_COUNT && *end != ',') {
            return 0;
        }
        values[i] = (unsigned)value;
        line = end + (i < DIGITS_PIXEL_COUNT);
    }
    return line[strspn(line, "\r\n")] == '\0';
}

static int read_images(struct digits *train, struct digits *test, FILE *file, const char *path,
                       char *message, size_t message_bytes)
{
    char line[LINE_BYTES_MAX];
    unsigned values[DIGITS_PIXEL_COUNT + 1];
    uint32_t image = 0;

    while (fgets(line, sizeof line, file) != NULL) {
        if (!parse_line(line, values) || image == IMAGE_COUNT_MAX) {
            snprintf(message, message_bytes,
                     "%s, line %u: not 64 grey values from 0 to 16 and a digit", path, image + 1);
            return 0;
        }
        struct digits *part = image % DIGITS_TEST_EVERY == 0 ? test : train;
        if (!append(part, values)) {
            snprintf(message, message_bytes, "out of memory for %u images", image + 1);
            return 0;
        }
        image++;
    }
    if (ferror(file) || image <= 1) {
        snprintf(message, message_bytes, "%s: %s", path,
                 ferror(file) ? strerror(errno) : "fewer than two images");
        return 0;
    }
    return 1;
}

int digits_load(struct digits *train, struct digits *test, const char *path, char *message,
                size_t message_bytes)
{
    memset(train, 0, sizeof *train);
    memset(test, 0, sizeof *test);
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        snprintf(message, message_bytes, "%s: %s", path, strerror(errno));
        return 0;
    }
    int loaded = read_images(train, test, file, path, message, message_bytes);
    fclose(file);
    if (!loaded) {
        digits_finish(train);
        digits_finish(test);
    }
    return loaded;
}

void digits_keep_part(struct digits *digits, uint32_t index, uint32_t count)
{
    uint32_t kept = 0;

    for (uint32_t i = index; i < digits->count; i += count) {
        memmove(digits->pixels + (size_t)kept * DIGITS_PIXEL_COUNT,
                digits->pixels + (size_t)i * DIGITS_PIXEL_COUNT,
                DIGITS_PIXEL_COUNT * sizeof *digits->pixels);
        digits->labels[kept] = digits->labels[i];
        kept++;
    }
    digits->count = kept;
}

void digits_finish(struct digits *digits)
{
    free(digits->pixels);
    free(digits->labels);
    memset(digits, 0, sizeof *digits);
}
