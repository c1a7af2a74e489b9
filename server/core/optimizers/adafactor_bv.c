/* Adafactor in the form of Big Vision: factored over the two largest dimensions, with a bounded
 * beta2 and momentum, and a plain learning rate.
 * Source: Zhai et al. 2022, section 3.4 (https://arxiv.org/abs/2106.04560), as in
 * timm.optim.AdafactorBigVision.
 *
 *   beta2 = min(beta2_cap, 1 - t^-decay_rate)
 *   R <- beta2 * R + (1 - beta2) * mean over the largest dimension of (g^2 + eps)
 *   C <- beta2 * C + (1 - beta2) * mean over the second largest
 *        if that is min_dim_size_to_factor at least; else v as in adafactor.c
 *   u =  g / sqrt(R / mean(R) * C), where that mean is over the second largest dimension if it
 *        comes before the largest; else, as the reference has it, over the one before it
 *   u <- u / max(1, RMS(u) / clipping_threshold)
 *   m <- momentum * m + (1 - momentum) * u, x = m, or cautiously; without momentum x = u
 *   p <- p - lr * weight_decay * p, unscaled_wd: p - weight_decay * p
 *   p <- p - lr * x */
#include "server/core/optimizers/factored.h"

static struct pd_factored_shape shape_of(const struct pd_hyper *hyper,
                                         const struct pd_tensor *tensor)
{
    uint32_t largest = 0;
    uint32_t second = 0;

    if (tensor->dimension_count < 2) {
        return (struct pd_factored_shape){.factored = false};
    }
    for (uint32_t i = 1; i < tensor->dimension_count; i++) {
        largest = tensor->shape[i] >= tensor->shape[largest] ? i : largest;
    }
    second = largest == 0 ? 1 : 0;
    for (uint32_t i = second + 1; i < tensor->dimension_count; i++) {
        second = i != largest && tensor->shape[i] >= tensor->shape[second] ? i : second;
    }
    if (tensor->shape[second] < hyper->min_dim_size_to_factor) {
        return (struct pd_factored_shape){.factored = false};
    }
    return pd_factored_shape_of(tensor, largest, second, second > largest ? second - 1 : second);
}

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    return !isnan(hyper->momentum) + !shape_of(hyper, tensor).factored;
}

static uint64_t vector_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    struct pd_factored_shape shape = shape_of(hyper, tensor);
    return pd_factored_vector_count(&shape);
}

static uint64_t sum_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    struct pd_factored_shape shape = shape_of(hyper, tensor);
    return pd_factored_sum_count(&shape);
}

static uint32_t spans(const struct pd_hyper *hyper, const struct pd_tensor *tensor, uint64_t begin,
                      uint32_t count, struct pd_optimizer_span *list)
{
    struct pd_factored_shape shape = shape_of(hyper, tensor);
    return pd_factored_spans(&shape, begin, count, list);
}

static struct pd_factored_average average_of(const struct pd_optimizer_step *step)
{
    const struct pd_hyper *hyper = step->hyper;
    return (struct pd_factored_average){
        .beta2 = fmin(hyper->beta2_cap, 1 - pow((double)step->number, -hyper->decay_rate)),
        .eps_added = hyper->eps,
    };
}

static void sum(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    struct pd_factored_shape shape = shape_of(step->hyper, block->tensor);
    pd_factored_sum(&shape, step, block);
}

static void begin_update(const struct pd_optimizer_step *step, const struct pd_tensor *tensor,
                         const double *sums, float *vectors)
{
    struct pd_factored_shape shape = shape_of(step->hyper, tensor);
    struct pd_factored_average average = average_of(step);
    pd_factored_begin(&shape, &average, sums, vectors);
}

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    struct pd_factored_shape shape = shape_of(step->hyper, block->tensor);
    struct pd_factored_average average = average_of(step);
    pd_factored_update(&shape, &average, step, block, block->state[!isnan(step->hyper->momentum)]);
}

static uint32_t pass_count(const struct pd_hyper *hyper)
{
    return hyper->caution && !isnan(hyper->momentum) ? 4 : 3;
}

static double kept(const struct pd_optimizer_step *step)
{
    double share = pd_optimizer_decay_share(step);
    bool unscaled = step->hyper->unscaled_wd && step->lr > 0;
    return 1 - (unscaled ? share / step->lr : share);
}

static void apply(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    struct pd_factored_application application = {
        .clip_threshold = hyper->clip_threshold,
        .before = 1,
        .momentum = hyper->momentum,
        .after = step->lr,
        .kept = kept(step),
        .caution = hyper->caution,
    };
    pd_factored_apply(&application, block);
}

static void apply_cautious(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    pd_optimizer_apply_cautious(block, (float)kept(step));
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1.0"),
    PD_HYPER_MIN_DIM("32", "factor only over dimensions of at least this size"),
    PD_HYPER_NUMBER(REAL, decay_rate, "0.8", 0, INFINITY, "beta2 is 1 - t^-decay_rate"),
    PD_HYPER_NUMBER(REAL, beta2_cap, "0.999", 0, 1, "the largest beta2"),
    PD_HYPER_FRACTION(momentum, "0.9", "decay rate of the average of updates; null: none is kept"),
    PD_HYPER_NUMBER(REAL, eps, "1e-30", 0, INFINITY, "added to squares"),
    PD_HYPER_WEIGHT_DECAY("0", "takes this share, times lr, off the parameter"),
    {.key = "clipping_threshold",
     .type = PD_OPTION_REAL,
     .offset = offsetof(struct pd_hyper, clip_threshold),
     .default_text = "null",
     .high = INFINITY,
     .low_open = 1,
     .high_open = 1,
     .nullable = 1,
     .unit = "",
     .help = "the largest root mean square of an update; null: any"},
    PD_HYPER_FLAG(unscaled_wd, "false", "do not multiply weight_decay by lr"),
    PD_HYPER_CAUTION,
    PD_HYPER_CORRECTED_DECAY,
};

const struct pd_optimizer pd_optimizer_adafactor_bv = {
    .name = "adafactor_bv",
    .help = "timm AdafactorBigVision",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .state_count = state_count,
    .vector_count = vector_count,
    .pass_count = pass_count,
    .passes = {{.run = sum, .sum_count = sum_count, .spans = spans},
               {.begin = begin_update, .run = update, .sum_count = pd_optimizer_two_sums},
               {.run = apply, .sum_count = pd_optimizer_two_sums},
               {.run = apply_cautious}},
};
