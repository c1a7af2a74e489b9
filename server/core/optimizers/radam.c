/* RAdam: Adam that leaves its divisor out until enough squares have been averaged.
 * Source: Liu et al. 2020, algorithm 2 (https://arxiv.org/abs/1908.03265), as in torch.optim.RAdam.
 *
 *   g     <- g + weight_decay * p; decoupled_weight_decay: p <- p * (1 - lr * weight_decay)
 *   m     <- beta1 * m + (1 - beta1) * g
 *   v     <- beta2 * v + (1 - beta2) * g^2
 *   R     =  2 / (1 - beta2) - 1
 *   rho   =  R - 2 * t * beta2^t / (1 - beta2^t)
 *   rho > 5:  r = sqrt((rho - 4) * (rho - 2) * R / ((R - 4) * (R - 2) * rho))
 *             p <- p - lr / (1 - beta1^t) * m * r * sqrt(1 - beta2^t) / (sqrt(v) + eps)
 *   else:     p <- p - lr / (1 - beta1^t) * m */
#include "server/core/optimizers/elementwise.h"

#define RHO_MIN 5

/* The state, in its order. */
enum { M, V };

struct scalars {
    float scale, weight_decay, kept, beta1, beta2, one_minus_beta1, one_minus_beta2, eps;
    float step_size; /* all that does not depend on the element */
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    (void)hyper;
    return 2;
}

static inline float rectified_element(float p, float grad, float *s, struct scalars c)
{
    float g = grad * c.scale + c.weight_decay * p;
    s[M] = c.beta1 * s[M] + c.one_minus_beta1 * g;
    s[V] = c.beta2 * s[V] + c.one_minus_beta2 * g * g;
    return c.kept * p - c.step_size * (s[M] / (sqrtf(s[V]) + c.eps));
}

PD_ELEMENTWISE(rectified_step, rectified_element, 2)

static inline float undivided_element(float p, float grad, float *s, struct scalars c)
{
    float g = grad * c.scale + c.weight_decay * p;
    s[M] = c.beta1 * s[M] + c.one_minus_beta1 * g;
    s[V] = c.beta2 * s[V] + c.one_minus_beta2 * g * g;
    return c.kept * p - c.step_size * s[M];
}

PD_ELEMENTWISE(undivided_step, undivided_element, 2)

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    double beta1 = hyper->betas[0];
    double beta2 = hyper->betas[1];
    double decay = hyper->weight_decay;
    double power2 = pd_optimizer_power(beta2, step->number);
    double rho_limit = 2 / (1 - beta2) - 1;
    double rho = rho_limit - 2 * (double)step->number * power2 / (1 - power2);
    double step_size = step->lr / (1 - pd_optimizer_power(beta1, step->number));

    if (rho > RHO_MIN) {
        double rectification = (rho - 4) * (rho - 2) * rho_limit;
        rectification /= (rho_limit - 4) * (rho_limit - 2) * rho;
        step_size *= sqrt(rectification) * sqrt(1 - power2);
    }
    struct scalars c = {
        .scale = (float)step->gradient_scale,
        .weight_decay = hyper->decoupled_weight_decay ? 0 : (float)decay,
        .kept = hyper->decoupled_weight_decay ? (float)(1 - step->lr * decay) : 1,
        .beta1 = (float)beta1,
        .beta2 = (float)beta2,
        .one_minus_beta1 = (float)(1 - beta1),
        .one_minus_beta2 = (float)(1 - beta2),
        .eps = (float)hyper->eps,
        .step_size = (float)step_size,
    };
    if (rho > RHO_MIN) {
        rectified_step(block, c);
    } else {
        undivided_step(block, c);
    }
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-3"),
    PD_HYPER_BETAS("[0.9, 0.999]"),
    PD_HYPER_EPS("1e-8"),
    PD_HYPER_WEIGHT_DECAY("0", "added to the gradient, times the parameter"),
    PD_HYPER_FLAG(decoupled_weight_decay, "false", "decay the parameter, as AdamW"),
};

const struct pd_optimizer pd_optimizer_radam = {
    .name = "radam",
    .help = "torch.optim.RAdam",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .beside = true,
    .state_count = state_count,
    .passes = {{.run = update}},
};
