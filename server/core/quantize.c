#include "server/core/quantize.h"

#include "common/kernel.h"

#include <math.h>
#include <stdlib.h>

#define DECADE_COUNT 7u

/* Number `index` of `count` from 0.1 to 1, rounded as torch.linspace rounds it, so that the map is
 * that of the reference to the bit: numbers come in twice eight from a base, the last ones alone.
 */
static float boundary(uint32_t index, uint32_t count)
{
    float step = (1.0f - 0.1f) / (float)(count - 1);
    uint32_t base = index < count / 16 * 16 ? index / 8 * 8 : index;
    float at_base = base < count / 2 ? fmaf(step, (float)base, 0.1f)
                                     : fmaf(-step, (float)(count - 1 - base), 1.0f);
    return at_base + step * (float)(index - base);
}

static int compare(const void *a, const void *b)
{
    float left = *(const float *)a;
    float right = *(const float *)b;
    return (left > right) - (left < right);
}

void pd_quantize_map_init(struct pd_quantize_map *map, bool both_signs)
{
    static const float decades[DECADE_COUNT] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    uint32_t used = 0;

    for (uint32_t decade = 0; decade < DECADE_COUNT; decade++) {
        uint32_t count = both_signs ? 1u << decade : 2u << decade;
        for (uint32_t i = 0; i < count; i++) {
            float mean = (boundary(i, count + 1) + boundary(i + 1, count + 1)) / 2.0f;
            map->values[used++] = decades[decade] * mean;
            if (both_signs) {
                map->values[used++] = -(decades[decade] * mean);
            }
        }
    }
    map->values[used++] = 0.0f;
    map->values[used++] = 1.0f;
    qsort(map->values, used, sizeof map->values[0], compare);
}

PD_KERNEL
static float magnitude_of(const float *values, uint32_t count)
{
    float largest = 0;
    for (uint32_t i = 0; i < count; i++) {
        float magnitude = fabsf(values[i]);
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest == 0 ? 1 : largest;
}

/* The code whose value is nearest; the lower one of two that are equally near. */
static uint8_t nearest(const float *map, float value)
{
    uint32_t low = 0; /* the last code whose value is at most `value`, or 0 */
    for (uint32_t stride = 128; stride > 0; stride /= 2) {
        low += map[low + stride] <= value ? stride : 0;
    }
    bool higher = low < 255 && map[low + 1] - value < value - map[low];
    return (uint8_t)(low + higher);
}

float pd_quantize_run(const struct pd_quantize_map *map, uint8_t *codes, const float *values,
                      uint32_t count)
{
    float magnitude = magnitude_of(values, count);
    for (uint32_t i = 0; i < count; i++) {
        codes[i] = nearest(map->values, values[i] / magnitude);
    }
    return magnitude;
}

void pd_quantize_restore(const struct pd_quantize_map *map, float *values, const uint8_t *codes,
                         float magnitude, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        values[i] = map->values[codes[i]] * magnitude;
    }
}
