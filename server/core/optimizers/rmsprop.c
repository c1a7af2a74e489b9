/* RMSprop: steps divided by the root of a running average of squared gradients.
 * Source: Tieleman and Hinton 2012, lecture 6.5; centered: Graves 2013, equations 38 to 45
 * (https://arxiv.org/abs/1308.0850); as in torch.optim.RMSprop.
 *
 *   g   <- g + weight_decay * p
 *   s   <- alpha * s + (1 - alpha) * g^2
 *   a   <- alpha * a + (1 - alpha) * g, if centered, else 0
 *   d   =  g / (sqrt(s - a^2) + eps); eps_inside_root: g / sqrt(s - a^2 + eps)
 *   buf <- momentum * buf + d;        lr_in_momentum: momentum * buf + lr * d
 *   p   <- p - lr * buf;              lr_in_momentum: p - buf */
#include "server/core/optimizers/rules.h"

struct scalars {
    float scale, weight_decay, alpha, one_minus_alpha, eps_in, eps_out;
    float momentum;
    float buf_lr; /* on the way into the buffer */
    float lr;     /* on the way out of it */
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    return 1u + (hyper->momentum != 0) + hyper->centered;
}

PD_KERNEL
static void plain_direction(float *restrict d, const float *restrict p, float *restrict s,
                            uint32_t count, struct scalars c)
{
    for (uint32_t i = 0; i < count; i++) {
        float g = d[i] * c.scale + c.weight_decay * p[i];
        s[i] = c.alpha * s[i] + c.one_minus_alpha * g * g;
        d[i] = g / (sqrtf(s[i] + c.eps_in) + c.eps_out);
    }
}

PD_KERNEL
static void centered_direction(float *restrict d, const float *restrict p, float *restrict s,
                               float *restrict a, uint32_t count, struct scalars c)
{
    for (uint32_t i = 0; i < count; i++) {
        float g = d[i] * c.scale + c.weight_decay * p[i];
        s[i] = c.alpha * s[i] + c.one_minus_alpha * g * g;
        a[i] = c.alpha * a[i] + c.one_minus_alpha * g;
        d[i] = g / (sqrtf(s[i] - a[i] * a[i] + c.eps_in) + c.eps_out);
    }
}

PD_KERNEL
static void plain_step(float *restrict p_next, const float *restrict p, const float *restrict d,
                       uint32_t count, float lr)
{
    for (uint32_t i = 0; i < count; i++) {
        p_next[i] = p[i] - lr * d[i];
    }
}

PD_KERNEL
static void momentum_step(float *restrict p_next, const float *restrict p, const float *restrict d,
                          float *restrict buf, uint32_t count, struct scalars c)
{
    for (uint32_t i = 0; i < count; i++) {
        buf[i] = c.momentum * buf[i] + c.buf_lr * d[i];
        p_next[i] = p[i] - c.lr * buf[i];
    }
}

/* Two loops over a block that is in cache; the first leaves d in the place of the gradient. */
static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    struct scalars c = {
        .scale = (float)step->gradient_scale,
        .weight_decay = (float)hyper->weight_decay,
        .alpha = (float)hyper->alpha,
        .one_minus_alpha = (float)(1 - hyper->alpha),
        .eps_in = hyper->eps_inside_root ? (float)hyper->eps : 0,
        .eps_out = hyper->eps_inside_root ? 0 : (float)hyper->eps,
        .momentum = (float)hyper->momentum,
        .buf_lr = hyper->lr_in_momentum ? (float)step->lr : 1,
        .lr = hyper->lr_in_momentum ? 1 : (float)step->lr,
    };

    if (hyper->centered) {
        float *average = block->state[hyper->momentum != 0 ? 2 : 1];
        centered_direction(block->gradient, block->parameters, block->state[0], average,
                           block->count, c);
    } else {
        plain_direction(block->gradient, block->parameters, block->state[0], block->count, c);
    }
    if (hyper->momentum != 0) {
        momentum_step(block->parameters_next, block->parameters, block->gradient, block->state[1],
                      block->count, c);
    } else {
        plain_step(block->parameters_next, block->parameters, block->gradient, block->count,
                   (float)step->lr);
    }
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-2"),
    PD_HYPER_NUMBER(REAL, alpha, "0.99", 0, INFINITY, "decay rate of the average of squares"),
    PD_HYPER_EPS("1e-8"),
    PD_HYPER_WEIGHT_DECAY("0", "added to the gradient, times the parameter"),
    PD_HYPER_NUMBER(REAL, momentum, "0", 0, INFINITY, "decay rate of the momentum buffer; 0: none"),
    PD_HYPER_FLAG(centered, "false", "divide by an estimate of the variance, not of the square"),
    PD_HYPER_FLAG(eps_inside_root, "false", "add eps under the root instead of to it"),
    PD_HYPER_FLAG(lr_in_momentum, "false", "multiply lr into the momentum buffer, not its result"),
};

const struct pd_optimizer pd_optimizer_rmsprop = {
    .name = "rmsprop",
    .help = "torch.optim.RMSprop",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .state_count = state_count,
    .momentum_states = 1u << 1,
    .passes = {{.run = update}},
};
