/* Averages of the parameters over steps, beside the optimizer: weights to evaluate with (EMA, SWA),
 * and slow weights that the fast ones are pulled back to (Lookahead). optimizer -> [average] ->
 * param_store. Pure; steps are counted from 0 and skipped ones do not count. */
#ifndef PD_SERVER_CORE_AVERAGE_H
#define PD_SERVER_CORE_AVERAGE_H

#include <stdbool.h>
#include <stdint.h>

/* Of the configuration: at most one of ema_decay and swa_every is set. */
struct pd_average_options {
    double ema_decay; /* NaN: no EMA */
    bool ema_warmup;  /* the decay grows to ema_decay, as these three say */
    double ema_warmup_gamma;
    double ema_warmup_power;
    double ema_min_decay;
    uint64_t ema_copy_steps; /* so many first steps are copied instead of averaged */
    uint64_t swa_start;      /* first step that is averaged */
    uint64_t swa_every;      /* steps between averaged ones; 0: no SWA */
};

/* Which moment the slow weights are taken from, and when they are synchronised: */
enum pd_lookahead_variant {
    PD_LOOKAHEAD_PAPER, /* the initial weights; after steps k, 2k, ... (Zhang et al. 2019, algorithm
                           1) */
    PD_LOOKAHEAD_TIMM,  /* the weights after step k; after steps k, 2k, ... (timm) */
    PD_LOOKAHEAD_ALPHADL, /* the weights after step 1; after steps 1, k + 1, ... (lookahead.pytorch)
                           */
};

/* What becomes of the optimizer's momentum buffers then. */
enum pd_lookahead_momentum {
    PD_LOOKAHEAD_MOMENTUM_NONE,  /* they stay as they are */
    PD_LOOKAHEAD_MOMENTUM_RESET, /* they begin at zero again */
    PD_LOOKAHEAD_MOMENTUM_PULLBACK,
};

struct pd_lookahead_options {
    uint64_t k; /* 0: no Lookahead */
    double alpha;
    int variant;           /* enum pd_lookahead_variant */
    int pullback_momentum; /* enum pd_lookahead_momentum */
};

bool pd_average_enabled(const struct pd_average_options *options);

/* The weight of the parameters after step `step` in the new average, which is average + weight *
 * (parameters - average).
 * Source: timm.utils.ModelEmaV3.get_decay (EMA with warm-up), torch.optim.swa_utils.AveragedModel.
 */
double pd_average_weight(const struct pd_average_options *options, uint64_t step);

/* next = average + weight * (parameters - average); a weight of 1 copies the parameters, 0 the
 * average. No array overlaps another. */
void pd_average_block(float *next, const float *average, const float *parameters, double weight,
                      uint32_t count);

/* After step `step`: synchronise `slow` and `fast` if it is time, or take the slow weights from the
 * fast ones. */
void pd_lookahead_block(float *slow, float *fast, const struct pd_lookahead_options *options,
                        uint64_t step, uint32_t count);

/* What momentum buffers are multiplied by after step `step`; 1 leaves them alone.
 * Source: michaelrzhang/lookahead, whose pullback blends a buffer with what it kept of it at the
 * last synchronisation, zero at first: alpha * m + (1 - alpha) * kept. What it keeps is the buffer
 * itself, so that from the second time on, both are alpha * m by then. */
double pd_lookahead_momentum_factor(const struct pd_lookahead_options *options, uint64_t step);

#endif
