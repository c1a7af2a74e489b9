/* Copying what is not needed again soon.
 * step -> [copy] -> memory. Pure. */
#ifndef PD_COMMON_COPY_H
#define PD_COMMON_COPY_H

#include <stddef.h>

/* Copy `count` floats past the caches where the machine can: the destination's lines are not read
 * first, and what the caches hold stays there. The two do not overlap. */
void pd_copy_past_cache(float *restrict to, const float *restrict from, size_t count);

#endif
