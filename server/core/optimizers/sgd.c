/* Stochastic gradient descent, with momentum, dampening and Nesterov's look-ahead.
 * Source: torch.optim.SGD.
 *
 *   g   <- g + weight_decay * p
 *   buf <- momentum * buf + (1 - dampening) * g, where the first step takes buf <- g
 *   d   =  buf; nesterov: g + momentum * buf; without momentum: g
 *   p   <- p - lr * d */
#include "server/core/optimizers/rules.h"

static uint32_t state_count(const struct pd_hyper *hyper)
{
    return hyper->momentum != 0 ? 1 : 0;
}

PD_KERNEL
static void plain_step(float *restrict p_next, const float *restrict p, const float *restrict grad,
                       uint32_t count, float scale, float weight_decay, float lr)
{
    for (uint32_t i = 0; i < count; i++) {
        float g = grad[i] * scale + weight_decay * p[i];
        p_next[i] = p[i] - lr * g;
    }
}

PD_KERNEL
static void momentum_step(float *restrict p_next, const float *restrict p,
                          const float *restrict grad, float *restrict buf, uint32_t count,
                          float scale, float weight_decay, float momentum, float undamped, float lr)
{
    for (uint32_t i = 0; i < count; i++) {
        float g = grad[i] * scale + weight_decay * p[i];
        buf[i] = momentum * buf[i] + undamped * g;
        p_next[i] = p[i] - lr * buf[i];
    }
}

PD_KERNEL
static void nesterov_step(float *restrict p_next, const float *restrict p,
                          const float *restrict grad, float *restrict buf, uint32_t count,
                          float scale, float weight_decay, float momentum, float undamped, float lr)
{
    for (uint32_t i = 0; i < count; i++) {
        float g = grad[i] * scale + weight_decay * p[i];
        buf[i] = momentum * buf[i] + undamped * g;
        p_next[i] = p[i] - lr * (g + momentum * buf[i]);
    }
}

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block,
                   double *sums)
{
    const struct pd_hyper *hyper = step->hyper;
    float scale = (float)step->gradient_scale;
    float weight_decay = (float)hyper->weight_decay;
    float momentum = (float)hyper->momentum;
    float undamped = step->number == 1 ? 1 : (float)(1 - hyper->dampening);
    float lr = (float)step->lr;

    (void)sums;
    if (hyper->momentum == 0) {
        plain_step(block->parameters_next, block->parameters, block->gradient, block->count, scale,
                   weight_decay, lr);
    } else if (hyper->nesterov) {
        nesterov_step(block->parameters_next, block->parameters, block->gradient, block->state[0],
                      block->count, scale, weight_decay, momentum, undamped, lr);
    } else {
        momentum_step(block->parameters_next, block->parameters, block->gradient, block->state[0],
                      block->count, scale, weight_decay, momentum, undamped, lr);
    }
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-3"),
    PD_HYPER_NUMBER(REAL, momentum, "0", 0, INFINITY, "decay rate of the momentum buffer; 0: none"),
    PD_HYPER_NUMBER(REAL, dampening, "0", 0, INFINITY,
                    "takes this share off a gradient added to the momentum buffer"),
    PD_HYPER_WEIGHT_DECAY("0", "added to the gradient, times the parameter"),
    PD_HYPER_FLAG(nesterov, "false", "step along the gradient plus momentum times the buffer"),
};

const struct pd_optimizer pd_optimizer_sgd = {
    .name = "sgd",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .state_count = state_count,
    .update = update,
};
