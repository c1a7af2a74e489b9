/* Adamax: Adam with the largest recent gradient in place of the average of squares.
 * Source: Kingma and Ba 2015, algorithm 2 (https://arxiv.org/abs/1412.6980), as in
 * torch.optim.Adamax.
 *
 *   g <- g + weight_decay * p
 *   m <- beta1 * m + (1 - beta1) * g
 *   u <- max(beta2 * u, |g| + eps)
 *   p <- p - lr / (1 - beta1^t) * m / u */
#include "server/core/optimizers/rules.h"

struct scalars {
    float scale, weight_decay, beta1, beta2, one_minus_beta1, eps;
    float step_size; /* lr / (1 - beta1^t) */
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    (void)hyper;
    return 2;
}

PD_KERNEL
static void adamax_step(float *restrict p_next, const float *restrict p, const float *restrict grad,
                        float *restrict m, float *restrict u, uint32_t count, struct scalars c)
{
    for (uint32_t i = 0; i < count; i++) {
        float g = grad[i] * c.scale + c.weight_decay * p[i];
        float decayed = c.beta2 * u[i];
        float now = fabsf(g) + c.eps;
        m[i] = c.beta1 * m[i] + c.one_minus_beta1 * g;
        u[i] = decayed > now ? decayed : now;
        p_next[i] = p[i] - c.step_size * (m[i] / u[i]);
    }
}

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    double beta1 = hyper->betas[0];
    struct scalars c = {
        .scale = (float)step->gradient_scale,
        .weight_decay = (float)hyper->weight_decay,
        .beta1 = (float)beta1,
        .beta2 = (float)hyper->betas[1],
        .one_minus_beta1 = (float)(1 - beta1),
        .eps = (float)hyper->eps,
        .step_size = (float)(step->lr / (1 - pd_optimizer_power(beta1, step->number))),
    };

    adamax_step(block->parameters_next, block->parameters, block->gradient, block->state[0],
                block->state[1], block->count, c);
}

static const struct pd_option options[] = {
    PD_HYPER_LR("2e-3"),
    PD_HYPER_BETAS("[0.9, 0.999]"),
    PD_HYPER_EPS("1e-8"),
    PD_HYPER_WEIGHT_DECAY("0", "added to the gradient, times the parameter"),
};

const struct pd_optimizer pd_optimizer_adamax = {
    .name = "adamax",
    .help = "torch.optim.Adamax",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .state_count = state_count,
    .passes = {{.run = update}},
};
