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
#include "server/core/optimizers/elementwise.h"

/* The first of the state; the average of the gradient is the last. */
enum { S, BUF };

struct scalars {
    float scale, weight_decay, alpha, one_minus_alpha, eps_in, eps_out;
    float momentum;
    float buf_lr;    /* on the way into the buffer */
    float lr;        /* on the way out of it */
    float step_size; /* where there is none */
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    return 1u + (hyper->momentum != 0) + hyper->centered;
}

/* The gradient over its root mean square. */
static inline float direction(float g, float *s, struct scalars c)
{
    s[S] = c.alpha * s[S] + c.one_minus_alpha * g * g;
    return g / (sqrtf(s[S] + c.eps_in) + c.eps_out);
}

/* With the average of the gradient at `a` of the state. */
static inline float centered_direction(float g, float *s, uint32_t a, struct scalars c)
{
    s[S] = c.alpha * s[S] + c.one_minus_alpha * g * g;
    s[a] = c.alpha * s[a] + c.one_minus_alpha * g;
    return g / (sqrtf(s[S] - s[a] * s[a] + c.eps_in) + c.eps_out);
}

static inline float plain_element(float p, float grad, float *s, struct scalars c)
{
    return p - c.step_size * direction(grad * c.scale + c.weight_decay * p, s, c);
}

PD_ELEMENTWISE(plain_step, plain_element, 1)

static inline float centered_element(float p, float grad, float *s, struct scalars c)
{
    return p - c.step_size * centered_direction(grad * c.scale + c.weight_decay * p, s, 1, c);
}

PD_ELEMENTWISE(centered_step, centered_element, 2)

static inline float momentum_element(float p, float grad, float *s, struct scalars c)
{
    float d = direction(grad * c.scale + c.weight_decay * p, s, c);
    s[BUF] = c.momentum * s[BUF] + c.buf_lr * d;
    return p - c.lr * s[BUF];
}

PD_ELEMENTWISE(momentum_step, momentum_element, 2)

static inline float centered_momentum_element(float p, float grad, float *s, struct scalars c)
{
    float d = centered_direction(grad * c.scale + c.weight_decay * p, s, 2, c);
    s[BUF] = c.momentum * s[BUF] + c.buf_lr * d;
    return p - c.lr * s[BUF];
}

PD_ELEMENTWISE(centered_momentum_step, centered_momentum_element, 3)

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
        .step_size = (float)step->lr,
    };

    if (hyper->momentum != 0) {
        (hyper->centered ? centered_momentum_step : momentum_step)(block, c);
    } else {
        (hyper->centered ? centered_step : plain_step)(block, c);
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
    .beside = true,
    .state_count = state_count,
    .momentum_states = 1u << 1,
    .passes = {{.run = update}},
};
