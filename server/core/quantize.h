/* Optimizer state in 8 bits: runs of 256 numbers as codes of a map, times the largest magnitude of
 * the run. optimizer_state <-> [quantize]. Pure; deterministic to the bit on every instruction set.
 * Source: Dettmers et al. 2022, sections 2 and 3 (https://arxiv.org/abs/2110.02861), as in
 * bitsandbytes. */
#ifndef PD_SERVER_CORE_QUANTIZE_H
#define PD_SERVER_CORE_QUANTIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Elements that share a magnitude. */
#define PD_QUANTIZE_RUN 256u

/* What the codes stand for, in ascending order. */
struct pd_quantize_map {
    float values[256];
};

/* The dynamic map: as many bits as a number is small say by which power of ten, the others say
 * where in its decade. For numbers of both signs, or of one. */
void pd_quantize_map_init(struct pd_quantize_map *map, bool both_signs);

/* Write the codes nearest to `values` and return their magnitude; 1 if all values are 0. */
float pd_quantize_run(const struct pd_quantize_map *map, uint8_t *codes, const float *values,
                      uint32_t count);

void pd_quantize_restore(const struct pd_quantize_map *map, float *values, const uint8_t *codes,
                         float magnitude, uint32_t count);

#endif
