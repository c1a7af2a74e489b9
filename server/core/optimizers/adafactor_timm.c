/* Adafactor in the form of timm.optim.Adafactor: it factors only where it pays, scales by the size
 * of the parameters only with a rate of its own, and can be cautious.
 * Source: Shazeer and Stern 2018 (https://arxiv.org/abs/1804.04235), as in timm.
 *
 *   beta2 = 1 - t^decay_rate
 *   R, C: as in adafactor.c, over two dimensions larger than min_dim_size_to_factor: with three or
 *         more the first two, else the last two, else v as there
 *   u, clipped: as there
 *   a =  lr; relative_step: max(eps_scale, RMS(p)) * rho, rho as there
 *   x =  a * u; with beta1: m <- beta1 * m + (1 - beta1) * a * u, x = m, or cautiously
 *   p <- p - a * weight_decay * p - x */
#include "server/core/optimizers/factored.h"

static struct pd_factored_shape shape_of(const struct pd_hyper *hyper,
                                         const struct pd_tensor *tensor)
{
    uint32_t count = tensor->dimension_count;
    uint64_t least = hyper->min_dim_size_to_factor;
    const uint64_t *sizes = tensor->shape;

    if (count > 2 && sizes[0] > least && sizes[1] > least) {
        return pd_factored_shape_of(tensor, 1, 0, 0);
    }
    if (count >= 2 && sizes[count - 2] > least && sizes[count - 1] > least) {
        return pd_factored_shape_of(tensor, count - 1, count - 2, count - 2);
    }
    return (struct pd_factored_shape){.factored = false};
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
        .eps_added = step->hyper->eps,
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

static uint32_t pass_count(const struct pd_hyper *hyper)
{
    return hyper->caution && !isnan(hyper->beta1) ? 4 : 3;
}

static double own_lr(const struct pd_hyper *hyper, uint64_t number)
{
    return fmin(hyper->warmup_init ? 1e-6 * (double)number : 1e-2, 1 / sqrt((double)number));
}

/* a; without lr by the sum of the squares of the tensor's parameters. */
static double rate(const struct pd_optimizer_step *step, const struct pd_tensor *tensor,
                   const double *squares)
{
    const struct pd_hyper *hyper = step->hyper;

    if (!isnan(step->lr)) {
        return step->lr;
    }
    double size = fmax(hyper->eps_scale, pd_factored_rms(tensor, *squares));
    return own_lr(hyper, step->number) * (hyper->scale_parameter ? size : 1);
}

/* Of pass 3, with caution: those of the mask and of the elements, and without lr once more that of
 * the squares of the parameters, by which pass 4 has a. */
enum { MASK, ELEMENTS, SQUARES, CAUTIOUS_SUM_COUNT };

static uint64_t cautious_sum_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    return isnan(hyper->lr) ? CAUTIOUS_SUM_COUNT : pd_optimizer_two_sums(hyper, tensor);
}

static void apply(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    double lr = rate(step, block->tensor, block->sums);
    struct pd_factored_application application = {
        .clip_threshold = hyper->clip_threshold,
        .before = lr,
        .momentum = hyper->beta1,
        .after = 1,
        .kept = 1 - lr * hyper->weight_decay,
        .caution = hyper->caution,
    };
    pd_factored_apply(&application, block);
    if (pass_count(hyper) == 4 && isnan(hyper->lr)) {
        double squares[2];
        pd_optimizer_sum_squares(block->parameters, block->parameters, block->count, squares);
        block->partial[SQUARES] = squares[0];
    }
}

static void apply_cautious(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    double lr = rate(step, block->tensor, block->sums + SQUARES);
    pd_optimizer_apply_cautious(block, (float)(1 - lr * step->hyper->weight_decay));
}

static const char *check(const struct pd_hyper *hyper)
{
    return hyper->warmup_init && !isnan(hyper->lr) ? "warmup_init: true needs lr: null" : NULL;
}

static const struct pd_option options[] = {
    PD_HYPER_OWN_LR,
    PD_HYPER_NUMBER(REAL, eps, "1e-30", 0, INFINITY, "added to squares"),
    PD_HYPER_NUMBER(REAL, eps_scale, "1e-3", 0, INFINITY,
                    "the least size of the parameters for scale_parameter"),
    PD_HYPER_LIMIT(clip_threshold, "1.0", "the largest root mean square of an update"),
    PD_HYPER_DECAY_RATE(decay_rate, "-0.8"),
    PD_HYPER_FRACTION(beta1, "null", "decay rate of the average of updates; null: none is kept"),
    PD_HYPER_WEIGHT_DECAY("0", "takes this share, times the rate, off the parameter"),
    PD_HYPER_FLAG(scale_parameter, "true",
                  "without lr: multiply the rate by the size of the parameters"),
    PD_HYPER_FLAG(warmup_init, "false", "without lr: let the rate of its own begin small"),
    PD_HYPER_MIN_DIM("16", "factor only over dimensions larger than this"),
    PD_HYPER_CAUTION,
};

const struct pd_optimizer pd_optimizer_adafactor_timm = {
    .name = "adafactor_timm",
    .help = "timm Adafactor",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .check = check,
    .own_lr = own_lr,
    .state_count = state_count,
    .vector_count = vector_count,
    .pass_count = pass_count,
    .passes = {{.run = sum, .sum_count = sum_count, .spans = spans},
               {.begin = begin_update, .run = update, .sum_count = pd_optimizer_two_sums},
               {.run = apply, .sum_count = cautious_sum_count},
               {.run = apply_cautious}},
};
