/* Adamax: Adam with the largest recent gradient in place of the average of squares.
 * Source: Kingma and Ba 2015, algorithm 2 (https://arxiv.org/abs/1412.6980), as in
 * torch.optim.Adamax.
 *
 *   g <- g + weight_decay * p
 *   m <- beta1 * m + (1 - beta1) * g
 *   u <- max(beta2 * u, |g| + eps)
 *   p <- p - lr / (1 - beta1^t) * m / u */
#include "server/core/optimizers/elementwise.h"

/* The state, in its order. */
enum { M, U };

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

static inline float adamax_element(float p, float grad, float *s, struct scalars c)
{
    float g = grad * c.scale + c.weight_decay * p;
    float decayed = c.beta2 * s[U];
    float now = fabsf(g) + c.eps;
    s[M] = c.beta1 * s[M] + c.one_minus_beta1 * g;
    s[U] = decayed > now ? decayed : now;
    return p - c.step_size * (s[M] / s[U]);
}

PD_ELEMENTWISE(adamax_step, adamax_element, 2)

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

    adamax_step(block, c);
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
    .beside = true,
    .state_count = state_count,
    .passes = {{.run = update}},
};
