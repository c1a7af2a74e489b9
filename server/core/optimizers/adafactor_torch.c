/* Adafactor in the form of torch.optim.Adafactor: lr bounds the relative step, and eps[0] bounds
 * the estimates instead of being added to squares.
 * Source: Shazeer and Stern 2018 (https://arxiv.org/abs/1804.04235), as in torch.
 *
 *   beta2 = 1 - t^beta2_decay
 *   R, C: as in adafactor.c, without eps
 *   V =  R * C / max(mean(R), eps[0]); with fewer than two dimensions v as there, without eps
 *   u =  g / sqrt(max(V, eps[0]^2)), clipped by d as there
 *   a =  max(eps[1], RMS(p)) * min(lr, 1 / sqrt(t))
 *   p <- p - lr * weight_decay * p - a * u */
#include "server/core/optimizers/factored.h"

#include <float.h>

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
    return !shape_of(hyper, tensor).factored;
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
        .beta2 = 1 - pow((double)step->number, hyper->decay_rate),
        .eps_floor = isnan(hyper->eps_pair[0]) ? (double)FLT_EPSILON : hyper->eps_pair[0],
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
    pd_factored_update(&shape, &average, step, block, block->state[0]);
}

static void apply(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    double size = fmax(hyper->eps_pair[1], pd_factored_rms(block->tensor, block->sums[0]));
    struct pd_factored_application application = {
        .clip_threshold = hyper->clip_threshold,
        .before = size * fmin(step->lr, 1 / sqrt((double)step->number)),
        .momentum = NAN,
        .after = 1,
        .kept = 1 - step->lr * hyper->weight_decay,
    };
    pd_factored_apply(&application, block);
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-2"),
    PD_HYPER_DECAY_RATE(beta2_decay, "-0.8"),
    {.key = "eps",
     .type = PD_OPTION_REALS2,
     .offset = offsetof(struct pd_hyper, eps_pair),
     .default_text = "[null, 1e-3]",
     .high = INFINITY,
     .high_open = 1,
     .nullable = 1,
     .unit = "",
     .help = "least estimate, null: 2^-23; and the least size of the parameters"},
    {.key = "d",
     .type = PD_OPTION_REAL,
     .offset = offsetof(struct pd_hyper, clip_threshold),
     .default_text = "1.0",
     .low = 1,
     .high = INFINITY,
     .high_open = 1,
     .unit = "",
     .help = "the largest root mean square of an update"},
    PD_HYPER_WEIGHT_DECAY("0", "takes this share, times lr, off the parameter"),
};

const struct pd_optimizer pd_optimizer_adafactor_torch = {
    .name = "adafactor_torch",
    .help = "torch.optim.Adafactor",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .state_count = state_count,
    .vector_count = vector_count,
    .passes = {{.run = sum, .sum_count = sum_count, .spans = spans},
               {.begin = begin_update, .run = update, .sum_count = pd_optimizer_two_sums},
               {.run = apply}},
};
