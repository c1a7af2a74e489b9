/* Stochastic gradient descent, with momentum, dampening and Nesterov's look-ahead.
 * Source: torch.optim.SGD.
 *
 *   g   <- g + weight_decay * p
 *   buf <- momentum * buf + (1 - dampening) * g, where the first step takes buf <- g
 *   d   =  buf; nesterov: g + momentum * buf; without momentum: g
 *   p   <- p - lr * d
 *   lr_in_momentum, as in Sutskever et al. 2013, equations 1 to 4: lr multiplies g, not d. */
#include "server/core/optimizers/elementwise.h"

/* The state, in its order. */
enum { BUF };

struct scalars {
    float scale, weight_decay, momentum, undamped;
    float buf_lr; /* on the way into the buffer */
    float lr;     /* on the way out of it */
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    return hyper->momentum != 0 ? 1 : 0;
}

static inline float plain_element(float p, float grad, float *s, struct scalars c)
{
    (void)s;
    float g = c.buf_lr * (grad * c.scale + c.weight_decay * p);
    return p - c.lr * g;
}

PD_ELEMENTWISE(plain_step, plain_element, 0)

static inline float momentum_element(float p, float grad, float *s, struct scalars c)
{
    float g = c.buf_lr * (grad * c.scale + c.weight_decay * p);
    s[BUF] = c.momentum * s[BUF] + c.undamped * g;
    return p - c.lr * s[BUF];
}

PD_ELEMENTWISE(momentum_step, momentum_element, 1)

static inline float nesterov_element(float p, float grad, float *s, struct scalars c)
{
    float g = c.buf_lr * (grad * c.scale + c.weight_decay * p);
    s[BUF] = c.momentum * s[BUF] + c.undamped * g;
    return p - c.lr * (g + c.momentum * s[BUF]);
}

PD_ELEMENTWISE(nesterov_step, nesterov_element, 1)

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    struct scalars c = {
        .scale = (float)step->gradient_scale,
        .weight_decay = (float)hyper->weight_decay,
        .momentum = (float)hyper->momentum,
        .undamped = step->number == 1 ? 1 : (float)(1 - hyper->dampening),
        .buf_lr = hyper->lr_in_momentum ? (float)step->lr : 1,
        .lr = hyper->lr_in_momentum ? 1 : (float)step->lr,
    };

    if (hyper->momentum == 0) {
        plain_step(block, c);
    } else if (hyper->nesterov) {
        nesterov_step(block, c);
    } else {
        momentum_step(block, c);
    }
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-3"),
    PD_HYPER_NUMBER(REAL, momentum, "0", 0, INFINITY, "decay rate of the momentum buffer; 0: none"),
    PD_HYPER_NUMBER(REAL, dampening, "0", 0, INFINITY,
                    "takes this share off a gradient added to the momentum buffer"),
    PD_HYPER_WEIGHT_DECAY("0", "added to the gradient, times the parameter"),
    PD_HYPER_FLAG(nesterov, "false", "step along the gradient plus momentum times the buffer"),
    PD_HYPER_STATE_BITS,
    PD_HYPER_FLAG(lr_in_momentum, "false", "multiply lr into the momentum buffer, not its result"),
};

const struct pd_optimizer pd_optimizer_sgd = {
    .name = "sgd",
    .help = "torch.optim.SGD: momentum, Nesterov",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .beside = true,
    .state_count = state_count,
    .momentum_states = 1u << 0,
    .signed_states = 1u << 0,
    .passes = {{.run = update}},
};
