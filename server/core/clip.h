/* Global-norm clipping: block partials of all ranks -> total norm -> one scale.
 * reduce -> [clip] -> optimizer. Pure. */
#ifndef PD_SERVER_CORE_CLIP_H
#define PD_SERVER_CORE_CLIP_H

#include <stdint.h>

/* Combine block partials (see pd_reduce_norms) in block order: powers[2 * i] of `block_count`
 * blocks. Returns the p-norm; NaN if any partial is. */
double pd_clip_total_norm(const double *powers, uint64_t block_count, double norm_type);

/* Source: torch.nn.utils.clip_grad_norm_: min(1, max_norm / (total_norm + 1e-6)).
 * max_norm NaN means no clipping: 1. */
double pd_clip_scale(double total_norm, double max_norm);

#endif
