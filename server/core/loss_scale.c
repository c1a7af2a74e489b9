#include "server/core/loss_scale.h"

#include <math.h>

void pd_loss_scale_init(struct pd_loss_scale *state, const struct pd_loss_scale_options *options)
{
    state->scale = isnan(options->init_scale) ? 1.0f : (float)options->init_scale;
    state->growth_tracker = 0;
}

void pd_loss_scale_update(struct pd_loss_scale *state, const struct pd_loss_scale_options *options,
                          bool found_nonfinite)
{
    if (isnan(options->init_scale) || !options->dynamic) {
        return;
    }
    if (found_nonfinite) {
        state->scale = state->scale * (float)options->backoff_factor;
        state->growth_tracker = 0;
        return;
    }
    state->growth_tracker++;
    if (state->growth_tracker == options->growth_interval) {
        float grown = state->scale * (float)options->growth_factor;
        /* As torch's CUDA kernel: a scale that would overflow stays. */
        state->scale = isfinite(grown) ? grown : state->scale;
        state->growth_tracker = 0;
    }
}

double pd_loss_scale_inverse(double scale)
{
    return (float)(1.0 / scale);
}
