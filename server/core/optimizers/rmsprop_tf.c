/* RMSprop as TensorFlow has it: the average starts at one, eps is under the root, and the learning
 * rate goes into the momentum buffer.
 * Source: timm.optim.RMSpropTF.
 *
 *   g   <- g + weight_decay * p; decoupled_decay: p <- p - lr * weight_decay * p
 *   s   <- s + (1 - alpha) * (g^2 - s), from 1
 *   a   <- a + (1 - alpha) * (g - a), if centered, else 0
 *   d   =  g / sqrt(s - a^2 + eps)
 *   buf <- momentum * buf + lr * d; without lr_in_momentum: momentum * buf + d
 *   p   <- p - buf;                 without lr_in_momentum: p - lr * buf
 *   Without momentum p <- p - lr * d; with momentum the step can be cautious. */
#include "server/core/optimizers/rules.h"

struct scalars {
    float scale, weight_decay, decoupled_decay, one_minus_alpha, eps, momentum;
    float start;  /* 1 in a tensor's first step, else 0 */
    float buf_lr; /* on the way into the buffer */
    float lr;     /* on the way out of it */
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    return 1u + (hyper->momentum != 0) + hyper->centered;
}

/* The two leave g in `grad` and d in `d`. */
PD_KERNEL
static void plain_direction(float *restrict d, float *restrict grad, const float *restrict p,
                            float *restrict s, uint32_t count, struct scalars c)
{
    for (uint32_t i = 0; i < count; i++) {
        float g = grad[i] * c.scale + c.weight_decay * p[i];
        float before = s[i] + c.start;
        grad[i] = g;
        s[i] = before + c.one_minus_alpha * (g * g - before);
        d[i] = g / sqrtf(s[i] + c.eps);
    }
}

PD_KERNEL
static void centered_direction(float *restrict d, float *restrict grad, const float *restrict p,
                               float *restrict s, float *restrict a, uint32_t count,
                               struct scalars c)
{
    for (uint32_t i = 0; i < count; i++) {
        float g = grad[i] * c.scale + c.weight_decay * p[i];
        float before = s[i] + c.start;
        grad[i] = g;
        s[i] = before + c.one_minus_alpha * (g * g - before);
        a[i] = a[i] + c.one_minus_alpha * (g - a[i]);
        d[i] = g / sqrtf(s[i] - a[i] * a[i] + c.eps);
    }
}

/* The three find d in `p_next`. */
PD_KERNEL
static void plain_step(float *restrict p_next, const float *restrict p, uint32_t count,
                       struct scalars c)
{
    for (uint32_t i = 0; i < count; i++) {
        p_next[i] = p[i] - c.decoupled_decay * p[i] - c.lr * (c.buf_lr * p_next[i]);
    }
}

PD_KERNEL
static void momentum_step(float *restrict p_next, const float *restrict p, float *restrict buf,
                          uint32_t count, struct scalars c)
{
    for (uint32_t i = 0; i < count; i++) {
        buf[i] = c.momentum * buf[i] + c.buf_lr * p_next[i];
        p_next[i] = p[i] - c.decoupled_decay * p[i] - c.lr * buf[i];
    }
}

/* Leaves the masked step in `grad`; returns the sum of the mask. */
PD_KERNEL
static uint32_t cautious_step(float *restrict p_next, const float *restrict p, float *restrict grad,
                              float *restrict buf, uint32_t count, struct scalars c)
{
    uint32_t agreeing = 0;
    for (uint32_t i = 0; i < count; i++) {
        buf[i] = c.momentum * buf[i] + c.buf_lr * p_next[i];
        agreeing += buf[i] * grad[i] > 0;
        grad[i] = buf[i] * grad[i] > 0 ? c.lr * buf[i] : 0.0f;
        p_next[i] = p[i] - c.decoupled_decay * p[i];
    }
    return agreeing;
}

static uint32_t pass_count(const struct pd_hyper *hyper)
{
    return hyper->caution && hyper->momentum != 0 ? 2 : 1;
}

static struct scalars scalars_of(const struct pd_optimizer_step *step)
{
    const struct pd_hyper *hyper = step->hyper;
    return (struct scalars){
        .scale = (float)step->gradient_scale,
        .weight_decay = hyper->decoupled_decay ? 0 : (float)hyper->weight_decay,
        .decoupled_decay = hyper->decoupled_decay ? (float)pd_optimizer_decay_share(step) : 0,
        .one_minus_alpha = (float)(1 - hyper->alpha),
        .eps = (float)hyper->eps,
        .momentum = (float)hyper->momentum,
        .start = step->number == 1 ? 1 : 0,
        .buf_lr = hyper->lr_in_momentum ? (float)step->lr : 1,
        .lr = hyper->lr_in_momentum ? 1 : (float)step->lr,
    };
}

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    struct scalars c = scalars_of(step);

    if (hyper->centered) {
        float *average = block->state[hyper->momentum != 0 ? 2 : 1];
        centered_direction(block->parameters_next, block->gradient, block->parameters,
                           block->state[0], average, block->count, c);
    } else {
        plain_direction(block->parameters_next, block->gradient, block->parameters, block->state[0],
                        block->count, c);
    }
    if (hyper->momentum == 0) {
        plain_step(block->parameters_next, block->parameters, block->count, c);
    } else if (hyper->caution) {
        block->partial[0] = cautious_step(block->parameters_next, block->parameters,
                                          block->gradient, block->state[1], block->count, c);
        block->partial[1] = block->count;
    } else {
        momentum_step(block->parameters_next, block->parameters, block->state[1], block->count, c);
    }
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-2"),
    PD_HYPER_NUMBER(REAL, alpha, "0.9", 0, INFINITY, "decay rate of the average of squares"),
    PD_HYPER_EPS("1e-10"),
    PD_HYPER_WEIGHT_DECAY("0", "added to the gradient, times the parameter"),
    PD_HYPER_NUMBER(REAL, momentum, "0", 0, INFINITY, "decay rate of the momentum buffer; 0: none"),
    PD_HYPER_FLAG(centered, "false", "divide by an estimate of the variance, not of the square"),
    PD_HYPER_FLAG(decoupled_decay, "false", "decay the parameter, as AdamW"),
    PD_HYPER_CORRECTED_DECAY,
    PD_HYPER_FLAG(lr_in_momentum, "true", "multiply lr into the momentum buffer, not its result"),
    PD_HYPER_CAUTION,
};

const struct pd_optimizer pd_optimizer_rmsprop_tf = {
    .name = "rmsprop_tf",
    .help = "timm RMSpropTF: eps inside the root, as TensorFlow has it",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .state_count = state_count,
    .momentum_states = 1u << 1,
    .pass_count = pass_count,
    .passes = {{.run = update, .sum_count = pd_optimizer_two_sums},
               {.run = pd_optimizer_apply_cautious}},
};
