/* Adadelta: steps in the ratio of the running sizes of past steps and of gradients.
 * Source: Zeiler 2012, algorithm 1 (https://arxiv.org/abs/1212.5701), as in torch.optim.Adadelta.
 *
 *   g <- g + weight_decay * p
 *   s <- rho * s + (1 - rho) * g^2
 *   d =  sqrt(a + eps) / sqrt(s + eps) * g
 *   a <- rho * a + (1 - rho) * d^2
 *   p <- p - lr * d */
#include "server/core/optimizers/elementwise.h"

/* The state, in its order. */
enum { S, A };

struct scalars {
    float scale, weight_decay, rho, one_minus_rho, eps, lr;
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    (void)hyper;
    return 2;
}

static inline float adadelta_element(float p, float grad, float *s, struct scalars c)
{
    float g = grad * c.scale + c.weight_decay * p;
    s[S] = c.rho * s[S] + c.one_minus_rho * g * g;
    float d = sqrtf(s[A] + c.eps) / sqrtf(s[S] + c.eps) * g;
    s[A] = c.rho * s[A] + c.one_minus_rho * d * d;
    return p - c.lr * d;
}

PD_ELEMENTWISE(adadelta_step, adadelta_element, 2)

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    struct scalars c = {
        .scale = (float)step->gradient_scale,
        .weight_decay = (float)hyper->weight_decay,
        .rho = (float)hyper->rho,
        .one_minus_rho = (float)(1 - hyper->rho),
        .eps = (float)hyper->eps,
        .lr = (float)step->lr,
    };

    adadelta_step(block, c);
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1.0"),
    PD_HYPER_NUMBER(REAL, rho, "0.9", 0, 1, "decay rate of the two averages of squares"),
    PD_HYPER_EPS("1e-6"),
    PD_HYPER_WEIGHT_DECAY("0", "added to the gradient, times the parameter"),
};

const struct pd_optimizer pd_optimizer_adadelta = {
    .name = "adadelta",
    .help = "torch.optim.Adadelta",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .beside = true,
    .state_count = state_count,
    .passes = {{.run = update}},
};
