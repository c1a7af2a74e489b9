/* Sophia-G: steps along an average of gradients, each element divided by its curvature and cut.
 * Source: Liu et al. 2023, algorithm 3 (https://arxiv.org/abs/2305.14342), as in
 * Liuhong99/Sophia, SophiaG. e is the estimate of the Hessian that comes with some steps: the
 * gradient of the loss at labels drawn from the model's own predictions (Gauss-Newton-Bartlett,
 * algorithm 2), whose square is that of the Hessian's diagonal but for the batch size, bs.
 *
 *   with an estimate: h <- beta2 * h + (1 - beta2) * e^2
 *   p <- p * (1 - lr * weight_decay)
 *   m <- beta1 * m + (1 - beta1) * g
 *   p <- p - lr * sign(m) * min(|m| / (rho * bs * h + 1e-15), 1) */
#include "server/core/optimizers/elementwise.h"

/* Keeps the divisor away from zero, as in the reference, where it is no hyperparameter either. */
#define EPS 1e-15f

struct scalars {
    float scale, kept, beta1, one_minus_beta1, curvature, lr;
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    (void)hyper;
    return 2;
}

PD_KERNEL
static void estimate_step(float *restrict h, const float *restrict e, uint32_t count, float beta2,
                          float one_minus_beta2)
{
    for (uint32_t i = 0; i < count; i++) {
        h[i] = beta2 * h[i] + one_minus_beta2 * (e[i] * e[i]);
    }
}

static void estimate(const struct pd_hyper *hyper, struct pd_optimizer_block *block)
{
    estimate_step(block->state[1], block->gradient, block->count, (float)hyper->betas[1],
                  (float)(1 - hyper->betas[1]));
}

PD_KERNEL
static void sophia_step(float *p_next, const float *restrict p, const float *grad,
                        float *restrict m, const float *restrict h, uint32_t count,
                        struct scalars c)
{
    PD_INDEPENDENT
    for (uint32_t i = 0; i < count; i++) {
        m[i] = c.beta1 * m[i] + c.one_minus_beta1 * (grad[i] * c.scale);
        float u = m[i] / (c.curvature * h[i] + EPS);
        u = u > 1.0f ? 1.0f : u;
        u = u < -1.0f ? -1.0f : u;
        p_next[i] = c.kept * p[i] - c.lr * u;
    }
}

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    struct scalars c = {
        .scale = (float)step->gradient_scale,
        .kept = (float)(1 - step->lr * hyper->weight_decay),
        .beta1 = (float)hyper->betas[0],
        .one_minus_beta1 = (float)(1 - hyper->betas[0]),
        .curvature = (float)(hyper->rho * hyper->bs),
        .lr = (float)step->lr,
    };

    sophia_step(block->parameters_next, block->parameters, block->gradient, block->state[0],
                block->state[1], block->count, c);
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-4"),
    PD_HYPER_NUMBER(REALS2, betas, "[0.965, 0.99]", 0, 1,
                    "decay rates of the averages of the gradient and of the Hessian"),
    PD_HYPER_NUMBER(REAL, rho, "0.04", 0, INFINITY,
                    "cuts a step at 1: larger, fewer elements are cut"),
    PD_HYPER_NUMBER(REAL, bs, "5120", 0, INFINITY,
                    "samples, or tokens, that the gradients are the means of"),
    PD_HYPER_WEIGHT_DECAY("0.1", "takes this share, times lr, off the parameter"),
};

const struct pd_optimizer pd_optimizer_sophia_g = {
    .name = "sophia_g",
    .help = "Sophia-G: workers push a Hessian estimate with some steps",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .state_count = state_count,
    .estimate = estimate,
    .passes = {{.run = update}},
};
