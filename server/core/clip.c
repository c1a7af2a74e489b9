#include "server/core/clip.h"

#include "common/assert.h"

#include <math.h>

/* What torch.nn.utils.clip_grad_norm_ adds to the norm it divides by. */
#define NORM_EPSILON 1e-6

double pd_clip_add(double power, double part, double norm_type)
{
    PD_ASSERT(norm_type > 0);
    if (!isinf(norm_type)) {
        return power + part;
    }
    return isnan(part) || part > power ? part : power;
}

double pd_clip_root(double power, double norm_type)
{
    if (isinf(norm_type) || norm_type == 1) {
        return power;
    }
    return norm_type == 2 ? sqrt(power) : pow(power, 1 / norm_type);
}

double pd_clip_power(double norm, double norm_type)
{
    if (isinf(norm_type) || norm_type == 1) {
        return norm;
    }
    return norm_type == 2 ? norm * norm : pow(norm, norm_type);
}

double pd_clip_scale(double total_norm, double max_norm)
{
    if (isnan(max_norm)) {
        return 1;
    }
    double scale = max_norm / (total_norm + NORM_EPSILON);
    return scale < 1 ? scale : 1;
}
