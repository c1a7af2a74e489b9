/* LARS: momentum SGD with a learning rate of its own for every tensor.
 * Source: You et al. 2017, algorithm 1 (https://arxiv.org/abs/1708.03888), with the semantics of
 * timm.optim.Lars, which are those of LARC with trust_clip.
 *
 *   r   =  trust_coeff * |p| / (|g| + weight_decay * |p| + eps) over the tensor
 *          1 if either norm is 0; trust_clip: min(r / lr, 1)
 *   g   <- r * (g + weight_decay * p)
 *          unchanged if there is neither weight_decay nor always_adapt
 *          without zero_norm_decay, as in apex.parallel.LARC: r * g if either norm is 0
 *   buf <- momentum * buf + (1 - dampening) * g, where the first step takes buf <- g
 *   d   =  buf; nesterov: g + momentum * buf; without momentum: g
 *   p   <- p - lr * d
 *
 * The first pass scales the gradient in its place and sums p^2 and g^2. */
#include "server/core/optimizers/elementwise.h"

/* The state, in its order. */
enum { BUF };

struct scalars {
    float ratio, weight_decay, momentum, undamped, lr;
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    return hyper->momentum != 0 ? 1 : 0;
}

PD_KERNEL
static void scale_gradient(float *restrict grad, uint32_t count, float scale)
{
    for (uint32_t i = 0; i < count; i++) {
        grad[i] *= scale;
    }
}

static inline float plain_element(float p, float grad, float *s, struct scalars c)
{
    (void)s;
    return p - c.lr * ((grad + c.weight_decay * p) * c.ratio);
}

PD_ELEMENTWISE(plain_step, plain_element, 0)

static inline float momentum_element(float p, float grad, float *s, struct scalars c)
{
    float g = (grad + c.weight_decay * p) * c.ratio;
    s[BUF] = c.momentum * s[BUF] + c.undamped * g;
    return p - c.lr * s[BUF];
}

PD_ELEMENTWISE(momentum_step, momentum_element, 1)

static inline float nesterov_element(float p, float grad, float *s, struct scalars c)
{
    float g = (grad + c.weight_decay * p) * c.ratio;
    s[BUF] = c.momentum * s[BUF] + c.undamped * g;
    return p - c.lr * (g + c.momentum * s[BUF]);
}

PD_ELEMENTWISE(nesterov_step, nesterov_element, 1)

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    scale_gradient(block->gradient, block->count, (float)step->gradient_scale);
    pd_optimizer_sum_squares(block->parameters, block->gradient, block->count, block->partial);
}

static double trust_ratio(const struct pd_optimizer_step *step, const double *sums)
{
    const struct pd_hyper *hyper = step->hyper;
    double p_norm = sqrt(sums[0]);
    double g_norm = sqrt(sums[1]);
    double ratio = 1;

    if (hyper->weight_decay == 0 && !hyper->always_adapt) {
        return 1;
    }
    if (p_norm > 0 && g_norm > 0) {
        ratio = hyper->trust_coeff * p_norm / (g_norm + p_norm * hyper->weight_decay + hyper->eps);
    }
    return hyper->trust_clip ? fmin(ratio / step->lr, 1) : ratio;
}

static void apply(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    const double *sums = block->sums;
    bool decays = hyper->zero_norm_decay || (sums[0] > 0 && sums[1] > 0);
    struct scalars c = {
        .ratio = (float)trust_ratio(step, sums),
        .weight_decay = decays ? (float)hyper->weight_decay : 0,
        .momentum = (float)hyper->momentum,
        .undamped = step->number == 1 ? 1 : (float)(1 - hyper->dampening),
        .lr = (float)step->lr,
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
    PD_HYPER_LR("1.0"),
    PD_HYPER_NUMBER(REAL, momentum, "0", 0, INFINITY, "decay rate of the momentum buffer; 0: none"),
    PD_HYPER_NUMBER(REAL, dampening, "0", 0, INFINITY,
                    "takes this share off a gradient added to the momentum buffer"),
    PD_HYPER_WEIGHT_DECAY("0", "added to the gradient, times the parameter"),
    PD_HYPER_FLAG(nesterov, "false", "step along the gradient plus momentum times the buffer"),
    PD_HYPER_NUMBER(REAL, trust_coeff, "1e-3", 0, INFINITY, "factor of every trust ratio"),
    PD_HYPER_EPS("1e-8"),
    PD_HYPER_FLAG(trust_clip, "false", "let no tensor's learning rate exceed lr, as LARC does"),
    PD_HYPER_FLAG(always_adapt, "false", "use the trust ratio also without weight decay"),
    PD_HYPER_FLAG(zero_norm_decay, "true", "decay also a tensor whose norm or gradient is zero"),
};

const struct pd_optimizer pd_optimizer_lars = {
    .name = "lars",
    .help = "timm Lars; LARC with trust_clip",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .state_count = state_count,
    .momentum_states = 1u << 0,
    .passes = {{.run = update, .sum_count = pd_optimizer_two_sums}, {.run = apply}},
};
