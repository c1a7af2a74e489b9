/* NAdam: Adam with Nesterov's momentum, whose decay rate grows with the step.
 * Source: Dozat 2016 (https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ), as in
 * torch.optim.NAdam from 2.0 on.
 *
 *   g    <- g + weight_decay * p; decoupled_weight_decay: p <- p * (1 - lr * weight_decay)
 *   mu_t =  beta1 * (1 - 0.96^(t * momentum_decay) / 2)
 *   M_t  =  mu_1 * mu_2 * ... * mu_t
 *   m    <- beta1 * m + (1 - beta1) * g
 *   v    <- beta2 * v + (1 - beta2) * g^2
 *   d    =  sqrt(v / (1 - beta2^t)) + eps
 *   p    <- p - lr * (1 - mu_t) / (1 - M_t) * g / d - lr * mu_(t+1) / (1 - M_(t+1)) * m / d */
#include "server/core/optimizers/elementwise.h"

#define DECAY_BASE 0.96
/* Terms of a series that at least halves from one to the next: enough for a double. */
#define SERIES_TERMS 64

/* The state, in its order. */
enum { M, V };

struct scalars {
    float scale, weight_decay, kept, beta1, beta2, one_minus_beta1, one_minus_beta2, eps;
    float root_unbiasing; /* 1 / sqrt(1 - beta2^t) */
    float gradient_lr;    /* lr * (1 - mu_t) / (1 - M_t) */
    float average_lr;     /* lr * mu_(t+1) / (1 - M_(t+1)) */
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    (void)hyper;
    return 2;
}

static inline float nadam_element(float p, float grad, float *s, struct scalars c)
{
    float g = grad * c.scale + c.weight_decay * p;
    s[M] = c.beta1 * s[M] + c.one_minus_beta1 * g;
    s[V] = c.beta2 * s[V] + c.one_minus_beta2 * g * g;
    float d = sqrtf(s[V]) * c.root_unbiasing + c.eps;
    return c.kept * p - c.gradient_lr * (g / d) - c.average_lr * (s[M] / d);
}

PD_ELEMENTWISE(nadam_step, nadam_element, 2)

static double momentum_at(const struct pd_hyper *hyper, uint64_t t)
{
    return hyper->betas[0] * (1 - 0.5 * pow(DECAY_BASE, (double)t * hyper->momentum_decay));
}

/* M_t without a loop over steps: with q = 0.96^momentum_decay,
 * log(M_t / beta1^t) = sum over i <= t of log(1 - q^i / 2)
 *                    = - sum over k of 2^-k / k * (q^k + q^(2k) + ... + q^(tk)). */
static double momentum_product(const struct pd_hyper *hyper, uint64_t t)
{
    double log_q = log(DECAY_BASE) * hyper->momentum_decay;
    double series = 0;
    double half_power = 1;

    for (int k = 1; k <= SERIES_TERMS; k++) {
        double geometric = (double)t;
        if (log_q != 0) {
            geometric = exp(k * log_q) * expm1(k * (double)t * log_q) / expm1(k * log_q);
        }
        half_power *= 0.5;
        series += half_power / k * geometric;
    }
    return pd_optimizer_power(hyper->betas[0], t) * exp(-series);
}

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    uint64_t t = step->number;
    double beta1 = hyper->betas[0];
    double beta2 = hyper->betas[1];
    double decay = hyper->weight_decay;
    double product = momentum_product(hyper, t);
    double momentum = momentum_at(hyper, t);
    double next_momentum = momentum_at(hyper, t + 1);
    struct scalars c = {
        .scale = (float)step->gradient_scale,
        .weight_decay = hyper->decoupled_weight_decay ? 0 : (float)decay,
        .kept = hyper->decoupled_weight_decay ? (float)(1 - step->lr * decay) : 1,
        .beta1 = (float)beta1,
        .beta2 = (float)beta2,
        .one_minus_beta1 = (float)(1 - beta1),
        .one_minus_beta2 = (float)(1 - beta2),
        .eps = (float)hyper->eps,
        .root_unbiasing = (float)(1 / sqrt(1 - pd_optimizer_power(beta2, t))),
        .gradient_lr = (float)(step->lr * (1 - momentum) / (1 - product)),
        .average_lr = (float)(step->lr * next_momentum / (1 - product * next_momentum)),
    };

    nadam_step(block, c);
}

static const struct pd_option options[] = {
    PD_HYPER_LR("2e-3"),
    PD_HYPER_BETAS("[0.9, 0.999]"),
    PD_HYPER_EPS("1e-8"),
    PD_HYPER_WEIGHT_DECAY("0", "added to the gradient, times the parameter"),
    PD_HYPER_NUMBER(REAL, momentum_decay, "4e-3", 0, INFINITY,
                    "how fast the momentum rises from half of beta1 to beta1"),
    PD_HYPER_FLAG(decoupled_weight_decay, "false", "decay the parameter, as AdamW"),
};

const struct pd_optimizer pd_optimizer_nadam = {
    .name = "nadam",
    .help = "torch.optim.NAdam of torch 2",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .beside = true,
    .state_count = state_count,
    .passes = {{.run = update}},
};
