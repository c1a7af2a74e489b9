/* Dynamic loss scaling: the factor workers multiply their loss by, so that small gradients survive
 * a narrow type on the wire.
 * step -> [loss_scale] -> serve (workers are told the next scale). Pure; the same on every rank.
 *
 * Source: torch.cuda.amp.GradScaler. */
#ifndef PD_SERVER_CORE_LOSS_SCALE_H
#define PD_SERVER_CORE_LOSS_SCALE_H

#include <stdbool.h>
#include <stdint.h>

/* Of the configuration. */
struct pd_loss_scale_options {
    double init_scale; /* NaN: no loss scaling */
    double growth_factor;
    double backoff_factor;
    uint64_t growth_interval;
    bool dynamic; /* false: the scale stays init_scale */
};

struct pd_loss_scale {
    float scale; /* 1 without loss scaling */
    uint64_t growth_tracker;
};

void pd_loss_scale_init(struct pd_loss_scale *state, const struct pd_loss_scale_options *options);

/* A step has closed: back off after a non-finite gradient, grow after growth_interval steps in a
 * row without one. */
void pd_loss_scale_update(struct pd_loss_scale *state, const struct pd_loss_scale_options *options,
                          bool found_nonfinite);

/* What a gradient pushed at `scale` is multiplied by: 1/scale, rounded to float32. */
double pd_loss_scale_inverse(double scale);

#endif
