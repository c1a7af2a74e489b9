#include "server/core/clip.h"

#include "common/assert.h"

#include <math.h>

/* What torch.nn.utils.clip_grad_norm_ adds to the norm it divides by. */
#define NORM_EPSILON 1e-6

double pd_clip_total_norm(const double *powers, uint64_t block_count, double norm_type)
{
    double total = 0;

    PD_ASSERT(norm_type > 0);
    for (uint64_t i = 0; i < block_count; i++) {
        double power = powers[2 * i];
        if (isnan(power)) {
            return NAN;
        }
        if (isinf(norm_type)) {
            total = power > total ? power : total;
        } else {
            total += power;
        }
    }
    if (isinf(norm_type) || norm_type == 1) {
        return total;
    }
    return norm_type == 2 ? sqrt(total) : pow(total, 1 / norm_type);
}

double pd_clip_scale(double total_norm, double max_norm)
{
    if (isnan(max_norm)) {
        return 1;
    }
    double scale = max_norm / (total_norm + NORM_EPSILON);
    return scale < 1 ? scale : 1;
}
