/* Lion: steps of one size, in the sign of an average of gradients.
 * Source: Chen et al. 2023, algorithm 2 (https://arxiv.org/abs/2302.06675), as in timm.optim.Lion.
 *
 *   p <- p * (1 - lr * weight_decay); decoupled_weight_decay, as in lucidrains/lion-pytorch:
 *        p * (1 - lr / (lr before any schedule) * weight_decay)
 *   u =  sign(beta1 * m + (1 - beta1) * g)
 *   m <- beta2 * m + (1 - beta2) * g
 *   p <- p - lr * u, or cautiously */
#include "server/core/optimizers/elementwise.h"

/* The state, in its order. */
enum { M };

struct scalars {
    float scale, kept, beta1, beta2, one_minus_beta1, one_minus_beta2, lr;
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    (void)hyper;
    return 1;
}

static inline float sign(float x)
{
    return x > 0 ? 1.0f : (x < 0 ? -1.0f : 0.0f);
}

static inline float lion_element(float p, float grad, float *s, struct scalars c)
{
    float g = grad * c.scale;
    float u = sign(c.beta1 * s[M] + c.one_minus_beta1 * g);
    s[M] = c.beta2 * s[M] + c.one_minus_beta2 * g;
    return c.kept * p - c.lr * u;
}

PD_ELEMENTWISE(lion_step, lion_element, 1)

/* Leaves the masked step in `grad`; returns the sum of the mask. */
PD_KERNEL
static uint32_t cautious_step(float *restrict grad, float *restrict m, uint32_t count,
                              struct scalars c)
{
    uint32_t agreeing = 0;
    for (uint32_t i = 0; i < count; i++) {
        float g = grad[i] * c.scale;
        float u = sign(c.beta1 * m[i] + c.one_minus_beta1 * g);
        m[i] = c.beta2 * m[i] + c.one_minus_beta2 * g;
        agreeing += u * g > 0;
        grad[i] = u * g > 0 ? c.lr * u : 0.0f;
    }
    return agreeing;
}

static float kept(const struct pd_optimizer_step *step)
{
    double share = pd_optimizer_decay_share(step);
    bool relative = step->hyper->decoupled_weight_decay && step->initial_lr > 0;
    return (float)(1 - (relative ? share / step->initial_lr : share));
}

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    struct scalars c = {
        .scale = (float)step->gradient_scale,
        .kept = kept(step),
        .beta1 = (float)hyper->betas[0],
        .beta2 = (float)hyper->betas[1],
        .one_minus_beta1 = (float)(1 - hyper->betas[0]),
        .one_minus_beta2 = (float)(1 - hyper->betas[1]),
        .lr = (float)step->lr,
    };

    if (hyper->caution) {
        block->partial[0] = cautious_step(block->gradient, block->state[0], block->count, c);
        block->partial[1] = block->count;
    } else {
        lion_step(block, c);
    }
}

static void apply(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    pd_optimizer_apply_cautious(block, kept(step));
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-4"),
    PD_HYPER_NUMBER(REALS2, betas, "[0.9, 0.99]", 0, 1,
                    "decay rates of the average in the step and of the one that is kept"),
    PD_HYPER_WEIGHT_DECAY("0", "takes this share, times lr, off the parameter"),
    PD_HYPER_FLAG(decoupled_weight_decay, "false", "divide weight_decay by the initial lr"),
    PD_HYPER_STATE_BITS,
    PD_HYPER_CORRECTED_DECAY,
    PD_HYPER_CAUTION,
};

const struct pd_optimizer pd_optimizer_lion = {
    .name = "lion",
    .help = "timm Lion; Cautious Lion with caution",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .beside = true,
    .state_count = state_count,
    .signed_states = 1u << 0,
    .pass_count = pd_optimizer_cautious_pass_count,
    .passes = {{.run = update, .sum_count = pd_optimizer_two_sums}, {.run = apply}},
};
