/* Adafactor: steps scaled by factored averages of squares, and by the size of the parameters.
 * Source: Shazeer and Stern 2018, algorithms 4 and 5 (https://arxiv.org/abs/1804.04235), as in
 * transformers.Adafactor and fairseq.
 *
 *   beta2 = 1 - t^decay_rate
 *   R <- beta2 * R + (1 - beta2) * mean over the last dimension of (g^2 + eps[0])
 *   C <- beta2 * C + (1 - beta2) * mean over the last but one
 *   u =  g / sqrt(R / mean(R) * C); with fewer than two dimensions g / sqrt(v), where
 *        v <- beta2 * v + (1 - beta2) * (g^2 + eps[0])
 *   u <- u / max(1, RMS(u) / clip_threshold)
 *   rho = lr; relative_step: min(1e-2, 1 / sqrt(t)), warmup_init: min(1e-6 * t, 1 / sqrt(t))
 *   a =  rho; scale_parameter: max(eps[1], RMS(p)) * rho
 *   x =  a * u; with beta1: m <- beta1 * m + (1 - beta1) * a * u, x = m
 *   p <- p - a * weight_decay * p - x
 *
 * A rate that is given all the same, by an operator or an absolute schedule, takes the place of
 * the relative one. */
#include "server/core/optimizers/factored.h"

static struct pd_factored_shape shape_of(const struct pd_hyper *hyper,
                                         const struct pd_tensor *tensor)
{
    uint32_t count = tensor->dimension_count;

    (void)hyper;
    if (count < 2) {
        return (struct pd_factored_shape){.factored = false};
    }
    return pd_factored_shape_of(tensor, count - 1, count - 2, count - 2);
}

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    return !isnan(hyper->beta1) + !shape_of(hyper, tensor).factored;
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
    return (struct pd_factored_average){
        .beta2 = 1 - pow((double)step->number, step->hyper->decay_rate),
        .eps_added = step->hyper->eps_pair[0],
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
    pd_factored_update(&shape, &average, step, block, block->state[!isnan(step->hyper->beta1)]);
}

static double own_lr(const struct pd_hyper *hyper, uint64_t number)
{
    return fmin(hyper->warmup_init ? 1e-6 * (double)number : 1e-2, 1 / sqrt((double)number));
}

static void apply(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    double lr = isnan(step->lr) ? own_lr(hyper, step->number) : step->lr;

    if (hyper->scale_parameter) {
        lr *= fmax(hyper->eps_pair[1], pd_factored_rms(block->tensor, block->sums[0]));
    }
    struct pd_factored_application application = {
        .clip_threshold = hyper->clip_threshold,
        .before = lr,
        .momentum = hyper->beta1,
        .after = 1,
        .kept = 1 - lr * hyper->weight_decay,
    };
    pd_factored_apply(&application, block);
}

static const char *check(const struct pd_hyper *hyper)
{
    if (isnan(hyper->lr) != hyper->relative_step) {
        return hyper->relative_step ? "lr together with relative_step: true; allowed: lr: null, or "
                                      "relative_step: false"
                                    : "relative_step: false without lr; allowed: a number as lr";
    }
    if (hyper->warmup_init && !hyper->relative_step) {
        return "warmup_init: true needs relative_step: true";
    }
    return NULL;
}

static const struct pd_option options[] = {
    PD_HYPER_OWN_LR,
    {.key = "eps",
     .type = PD_OPTION_REALS2,
     .offset = offsetof(struct pd_hyper, eps_pair),
     .default_text = "[1e-30, 1e-3]",
     .high = INFINITY,
     .high_open = 1,
     .unit = "",
     .help = "added to squares; and the least size of the parameters for scale_parameter"},
    PD_HYPER_LIMIT(clip_threshold, "1.0", "the largest root mean square of an update"),
    PD_HYPER_DECAY_RATE(decay_rate, "-0.8"),
    PD_HYPER_FRACTION(beta1, "null", "decay rate of the average of updates; null: none is kept"),
    PD_HYPER_WEIGHT_DECAY("0", "takes this share, times the rate, off the parameter"),
    PD_HYPER_FLAG(scale_parameter, "true", "multiply the rate by the size of the parameters"),
    PD_HYPER_FLAG(relative_step, "true", "without lr: a rate of its own, from the step's number"),
    PD_HYPER_FLAG(warmup_init, "false", "let that rate of its own begin small"),
};

const struct pd_optimizer pd_optimizer_adafactor = {
    .name = "adafactor",
    .help = "transformers and fairseq Adafactor",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .check = check,
    .own_lr = own_lr,
    .state_count = state_count,
    .vector_count = vector_count,
    .passes = {{.run = sum, .sum_count = sum_count, .spans = spans},
               {.begin = begin_update, .run = update, .sum_count = pd_optimizer_two_sums},
               {.run = apply}},
};
