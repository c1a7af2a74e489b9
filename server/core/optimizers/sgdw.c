/* SGDW: momentum SGD with the weight decay taken off the parameter, not added to the gradient.
 * Source: Loshchilov and Hutter 2019, algorithm 1 (https://arxiv.org/abs/1711.05101), as in
 * timm.optim.SGDW.
 *
 *   p   <- p * (1 - lr * weight_decay)
 *   buf <- momentum * buf + (1 - dampening) * g, where the first step takes buf <- g
 *   d   =  buf; nesterov: g + momentum * buf; without momentum: g
 *   p   <- p - lr * d, or, with momentum, cautiously */
#include "server/core/optimizers/elementwise.h"

/* The state, in its order. */
enum { BUF };

struct scalars {
    float scale, kept, momentum, undamped, lr;
    float from_buf;  /* of d: momentum for nesterov, else 1 */
    float from_grad; /* of d: 1 for nesterov, else 0 */
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    return hyper->momentum != 0 ? 1 : 0;
}

static inline float plain_element(float p, float grad, float *s, struct scalars c)
{
    (void)s;
    return c.kept * p - c.lr * (grad * c.scale);
}

PD_ELEMENTWISE(plain_step, plain_element, 0)

static inline float momentum_element(float p, float grad, float *s, struct scalars c)
{
    float g = grad * c.scale;
    s[BUF] = c.momentum * s[BUF] + c.undamped * g;
    return c.kept * p - c.lr * (c.from_grad * g + c.from_buf * s[BUF]);
}

PD_ELEMENTWISE(momentum_step, momentum_element, 1)

/* Leaves the masked step in `grad`; returns the sum of the mask. */
PD_KERNEL
static uint32_t cautious_step(float *restrict grad, float *restrict buf, uint32_t count,
                              struct scalars c)
{
    uint32_t agreeing = 0;
    for (uint32_t i = 0; i < count; i++) {
        float g = grad[i] * c.scale;
        buf[i] = c.momentum * buf[i] + c.undamped * g;
        float d = c.from_grad * g + c.from_buf * buf[i];
        agreeing += d * g > 0;
        grad[i] = d * g > 0 ? c.lr * d : 0.0f;
    }
    return agreeing;
}

static uint32_t pass_count(const struct pd_hyper *hyper)
{
    return hyper->caution && hyper->momentum != 0 ? 2 : 1;
}

static float kept(const struct pd_optimizer_step *step)
{
    return (float)(1 - pd_optimizer_decay_share(step));
}

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    struct scalars c = {
        .scale = (float)step->gradient_scale,
        .kept = kept(step),
        .momentum = (float)hyper->momentum,
        .undamped = step->number == 1 ? 1 : (float)(1 - hyper->dampening),
        .lr = (float)step->lr,
        .from_buf = hyper->nesterov ? (float)hyper->momentum : 1,
        .from_grad = hyper->nesterov ? 1 : 0,
    };

    if (hyper->momentum == 0) {
        plain_step(block, c);
    } else if (hyper->caution) {
        block->partial[0] = cautious_step(block->gradient, block->state[0], block->count, c);
        block->partial[1] = block->count;
    } else {
        momentum_step(block, c);
    }
}

static void apply(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    pd_optimizer_apply_cautious(block, kept(step));
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-3"),
    PD_HYPER_NUMBER(REAL, momentum, "0", 0, INFINITY, "decay rate of the momentum buffer; 0: none"),
    PD_HYPER_NUMBER(REAL, dampening, "0", 0, INFINITY,
                    "takes this share off a gradient added to the momentum buffer"),
    PD_HYPER_WEIGHT_DECAY("0", "takes this share, times lr, off the parameter"),
    PD_HYPER_FLAG(nesterov, "false", "step along the gradient plus momentum times the buffer"),
    PD_HYPER_CORRECTED_DECAY,
    PD_HYPER_CAUTION,
};

const struct pd_optimizer pd_optimizer_sgdw = {
    .name = "sgdw",
    .help = "timm SGDW: SGD with decoupled weight decay",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .beside = true,
    .state_count = state_count,
    .momentum_states = 1u << 0,
    .pass_count = pass_count,
    .passes = {{.run = update, .sum_count = pd_optimizer_two_sums}, {.run = apply}},
};
