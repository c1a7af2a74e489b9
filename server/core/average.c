#include "server/core/average.h"

#include "common/kernel.h"

#include <math.h>
#include <string.h>

bool pd_average_enabled(const struct pd_average_options *options)
{
    return !isnan(options->ema_decay) || options->swa_every > 0;
}

static double ema_weight(const struct pd_average_options *options, uint64_t step)
{
    if (step < options->ema_copy_steps) {
        return 1.0;
    }
    if (!options->ema_warmup) {
        return 1.0 - options->ema_decay;
    }
    double averaged = (double)(step - options->ema_copy_steps + 1);
    double decay =
        1.0 - pow(1.0 + averaged / options->ema_warmup_gamma, -options->ema_warmup_power);
    return 1.0 - fmax(fmin(decay, options->ema_decay), options->ema_min_decay);
}

double pd_average_weight(const struct pd_average_options *options, uint64_t step)
{
    if (!isnan(options->ema_decay)) {
        return ema_weight(options, step);
    }
    if (step < options->swa_start || (step - options->swa_start) % options->swa_every != 0) {
        return 0.0;
    }
    uint64_t averaged = (step - options->swa_start) / options->swa_every;
    return 1.0 / (double)(averaged + 1);
}

PD_KERNEL
static void blend(float *restrict next, const float *restrict from, const float *restrict to,
                  float weight, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        next[i] = from[i] + weight * (to[i] - from[i]);
    }
}

void pd_average_block(float *next, const float *average, const float *parameters, double weight,
                      uint32_t count)
{
    if (weight == 1.0 || weight == 0.0) {
        memcpy(next, weight == 1.0 ? parameters : average, count * sizeof *next);
        return;
    }
    blend(next, average, parameters, (float)weight, count);
}

PD_KERNEL
static void synchronise(float *restrict slow, float *restrict fast, float alpha, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        slow[i] = slow[i] + alpha * (fast[i] - slow[i]);
        fast[i] = slow[i];
    }
}

/* Which synchronisation there is after step `step`, counted from 1; 0: none. */
static uint64_t synchronisation(const struct pd_lookahead_options *options, uint64_t step)
{
    uint64_t number = step + 1;
    uint64_t first = options->variant == PD_LOOKAHEAD_ALPHADL ? 1 : options->k;

    if (number < first || (number - first) % options->k != 0) {
        return 0;
    }
    return 1 + (number - first) / options->k;
}

void pd_lookahead_block(float *slow, float *fast, const struct pd_lookahead_options *options,
                        uint64_t step, uint32_t count)
{
    uint64_t which = synchronisation(options, step);

    if (which == 0) {
        return;
    }
    if (which == 1 && options->variant != PD_LOOKAHEAD_PAPER) {
        memcpy(slow, fast, count * sizeof *slow);
        return;
    }
    synchronise(slow, fast, (float)options->alpha, count);
}

double pd_lookahead_momentum_factor(const struct pd_lookahead_options *options, uint64_t step)
{
    if (options->pullback_momentum == PD_LOOKAHEAD_MOMENTUM_NONE ||
        synchronisation(options, step) == 0) {
        return 1;
    }
    if (options->pullback_momentum == PD_LOOKAHEAD_MOMENTUM_RESET) {
        return 0;
    }
    return options->alpha * (synchronisation(options, step) == 1 ? 1 : 2 - options->alpha);
}
