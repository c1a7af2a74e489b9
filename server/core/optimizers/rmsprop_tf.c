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
#include "server/core/optimizers/elementwise.h"

/* The first of the state; the average of the gradient is the last. */
enum { S, BUF };

struct scalars {
    float scale, weight_decay, decoupled_decay, one_minus_alpha, eps, momentum;
    float start;  /* 1 in a tensor's first step, else 0 */
    float buf_lr; /* on the way into the buffer */
    float lr;     /* on the way out of it */
    float growth; /* of a masked step */
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    return 1u + (hyper->momentum != 0) + hyper->centered;
}

/* The gradient over its root mean square. */
static inline float direction(float g, float *s, struct scalars c)
{
    float before = s[S] + c.start;
    s[S] = before + c.one_minus_alpha * (g * g - before);
    return g / sqrtf(s[S] + c.eps);
}

/* With the average of the gradient at `a` of the state. */
static inline float centered_direction(float g, float *s, uint32_t a, struct scalars c)
{
    float before = s[S] + c.start;
    s[S] = before + c.one_minus_alpha * (g * g - before);
    s[a] = s[a] + c.one_minus_alpha * (g - s[a]);
    return g / sqrtf(s[S] - s[a] * s[a] + c.eps);
}

static inline float decayed(float p, struct scalars c)
{
    return p - c.decoupled_decay * p;
}

static inline float plain_element(float p, float grad, float *s, struct scalars c)
{
    float d = direction(grad * c.scale + c.weight_decay * p, s, c);
    return decayed(p, c) - c.lr * (c.buf_lr * d);
}

PD_ELEMENTWISE(plain_step, plain_element, 1)

static inline float centered_element(float p, float grad, float *s, struct scalars c)
{
    float d = centered_direction(grad * c.scale + c.weight_decay * p, s, 1, c);
    return decayed(p, c) - c.lr * (c.buf_lr * d);
}

PD_ELEMENTWISE(centered_step, centered_element, 2)

static inline float momentum_element(float p, float grad, float *s, struct scalars c)
{
    float d = direction(grad * c.scale + c.weight_decay * p, s, c);
    s[BUF] = c.momentum * s[BUF] + c.buf_lr * d;
    return decayed(p, c) - c.lr * s[BUF];
}

PD_ELEMENTWISE(momentum_step, momentum_element, 2)

static inline float centered_momentum_element(float p, float grad, float *s, struct scalars c)
{
    float d = centered_direction(grad * c.scale + c.weight_decay * p, s, 2, c);
    s[BUF] = c.momentum * s[BUF] + c.buf_lr * d;
    return decayed(p, c) - c.lr * s[BUF];
}

PD_ELEMENTWISE(centered_momentum_step, centered_momentum_element, 3)

/* Leaves the masked step in the gradient; returns the sum of the mask. */
static inline __attribute__((always_inline)) uint32_t mask(const struct pd_optimizer_block *block,
                                                           bool centered, struct scalars c)
{
    const float *restrict p = block->parameters;
    float *restrict grad = block->gradient;
    float *restrict square = block->state[S];
    float *restrict buf = block->state[BUF];
    float *restrict average = block->state[centered ? 2 : 0];
    uint32_t agreeing = 0;

    for (uint32_t i = 0; i < block->count; i++) {
        float s[] = {square[i], 0, centered ? average[i] : 0};
        float g = grad[i] * c.scale + c.weight_decay * p[i];
        float d = centered ? centered_direction(g, s, 2, c) : direction(g, s, c);
        square[i] = s[S];
        if (centered) {
            average[i] = s[2];
        }
        buf[i] = c.momentum * buf[i] + c.buf_lr * d;
        agreeing += buf[i] * g > 0;
        grad[i] = buf[i] * g > 0 ? c.lr * buf[i] : 0.0f;
    }
    return agreeing;
}

PD_KERNEL
static uint32_t cautious_step(const struct pd_optimizer_block *block, struct scalars c)
{
    return mask(block, false, c);
}

PD_KERNEL
static uint32_t cautious_centered_step(const struct pd_optimizer_block *block, struct scalars c)
{
    return mask(block, true, c);
}

static inline float masked_element(float p, float masked_step, float *s, struct scalars c)
{
    (void)s;
    return decayed(p, c) - c.growth * masked_step;
}

PD_ELEMENTWISE(masked_step, masked_element, 0)

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

    if (hyper->momentum == 0) {
        (hyper->centered ? centered_step : plain_step)(block, c);
    } else if (hyper->caution) {
        block->partial[0] = (hyper->centered ? cautious_centered_step : cautious_step)(block, c);
        block->partial[1] = block->count;
    } else {
        (hyper->centered ? centered_momentum_step : momentum_step)(block, c);
    }
}

static void apply(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    struct scalars c = scalars_of(step);

    c.growth = (float)pd_optimizer_cautious_growth(block->sums);
    masked_step(block, c);
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
    .beside = true,
    .state_count = state_count,
    .momentum_states = 1u << 1,
    .pass_count = pass_count,
    .passes = {{.run = update, .sum_count = pd_optimizer_two_sums}, {.run = apply}},
};
