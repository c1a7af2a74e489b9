/* NAdamW: AdamW that looks one gradient ahead in its first average.
 * Source: Dozat 2016 without the momentum schedule, as in timm.optim.NAdamW.
 *
 *   p <- p * (1 - lr * weight_decay)
 *   m <- beta1 * m + (1 - beta1) * g
 *   v <- beta2 * v + (1 - beta2) * g^2
 *   n =  beta1 * m + (1 - beta1) * g
 *   p <- p - lr / (1 - beta1^t) * n / (sqrt(v) / sqrt(1 - beta2^t) + eps), or cautiously */
#include "server/core/optimizers/elementwise.h"

/* The state, in its order. */
enum { M, V };

struct scalars {
    float scale, kept, beta1, beta2, one_minus_beta1, one_minus_beta2, eps;
    float step_size;      /* lr / (1 - beta1^t) */
    float root_unbiasing; /* 1 / sqrt(1 - beta2^t) */
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    (void)hyper;
    return 2;
}

static inline float nadamw_element(float p, float grad, float *s, struct scalars c)
{
    float g = grad * c.scale;
    s[M] = c.beta1 * s[M] + c.one_minus_beta1 * g;
    s[V] = c.beta2 * s[V] + c.one_minus_beta2 * g * g;
    float n = c.beta1 * s[M] + c.one_minus_beta1 * g;
    return c.kept * p - c.step_size * (n / (sqrtf(s[V]) * c.root_unbiasing + c.eps));
}

PD_ELEMENTWISE(nadamw_step, nadamw_element, 2)

/* Leaves the masked step in `grad`; returns the sum of the mask. */
PD_KERNEL
static uint32_t cautious_step(float *restrict grad, float *restrict m, float *restrict v,
                              uint32_t count, struct scalars c)
{
    uint32_t agreeing = 0;
    for (uint32_t i = 0; i < count; i++) {
        float g = grad[i] * c.scale;
        m[i] = c.beta1 * m[i] + c.one_minus_beta1 * g;
        v[i] = c.beta2 * v[i] + c.one_minus_beta2 * g * g;
        float n = c.beta1 * m[i] + c.one_minus_beta1 * g;
        float d = c.step_size * (n / (sqrtf(v[i]) * c.root_unbiasing + c.eps));
        agreeing += n * g > 0;
        grad[i] = n * g > 0 ? d : 0.0f;
    }
    return agreeing;
}

static float kept(const struct pd_optimizer_step *step)
{
    return (float)(1 - pd_optimizer_decay_share(step));
}

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    double beta1 = hyper->betas[0];
    double beta2 = hyper->betas[1];
    struct scalars c = {
        .scale = (float)step->gradient_scale,
        .kept = kept(step),
        .beta1 = (float)beta1,
        .beta2 = (float)beta2,
        .one_minus_beta1 = (float)(1 - beta1),
        .one_minus_beta2 = (float)(1 - beta2),
        .eps = (float)hyper->eps,
        .step_size = (float)(step->lr / (1 - pd_optimizer_power(beta1, step->number))),
        .root_unbiasing = (float)(1 / sqrt(1 - pd_optimizer_power(beta2, step->number))),
    };

    if (hyper->caution) {
        block->partial[0] =
            cautious_step(block->gradient, block->state[0], block->state[1], block->count, c);
        block->partial[1] = block->count;
    } else {
        nadamw_step(block, c);
    }
}

static void apply(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    pd_optimizer_apply_cautious(block, kept(step));
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-3"),
    PD_HYPER_BETAS("[0.9, 0.999]"),
    PD_HYPER_EPS("1e-8"),
    PD_HYPER_WEIGHT_DECAY("0.01", "takes this share, times lr, off the parameter"),
    PD_HYPER_CORRECTED_DECAY,
    PD_HYPER_CAUTION,
};

const struct pd_optimizer pd_optimizer_nadamw = {
    .name = "nadamw",
    .help = "timm NAdamW: without a schedule of the momentum",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .beside = true,
    .state_count = state_count,
    .pass_count = pd_optimizer_cautious_pass_count,
    .passes = {{.run = update, .sum_count = pd_optimizer_two_sums}, {.run = apply}},
};
