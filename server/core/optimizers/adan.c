/* Adan: averages of the gradient, of its change, and of the square of the gradient looked ahead to.
 * Source: Xie et al. 2022, algorithm 1 (https://arxiv.org/abs/2208.06677), as in timm.optim.Adan,
 * whose betas are 1 minus those of the paper. h is the gradient of the step before.
 *
 *   m <- beta1 * m + (1 - beta1) * g
 *   w <- beta2 * w + (1 - beta2) * (g - h), where the first step has h = g
 *   v <- beta3 * v + (1 - beta3) * (g + beta2 * (g - h))^2
 *   d =  sqrt(v) / sqrt(1 - beta3^t) + eps
 *   p <- (p - lr / (1 - beta1^t) * m / d - lr * beta2 / (1 - beta2^t) * w / d)
 *        / (1 + lr * weight_decay)
 *   no_prox: p <- p * (1 - lr * weight_decay) - the same
 *   With caution the step along m, but not that along w, is cautious. */
#include "server/core/optimizers/elementwise.h"

/* The state, in its order. */
enum { M, V, W, H };

struct scalars {
    float scale, beta1, beta2, beta3, one_minus_beta1, one_minus_beta2, one_minus_beta3, eps;
    float has_before;     /* 0 in a tensor's first step, else 1 */
    float root_unbiasing; /* 1 / sqrt(1 - beta3^t) */
    float average_lr;     /* lr / (1 - beta1^t) */
    float change_lr;      /* lr * beta2 / (1 - beta2^t) */
    float kept;           /* with no_prox 1 - lr * weight_decay, else 1 */
    float divisor;        /* with no_prox 1, else 1 + lr * weight_decay */
    float growth;         /* of a masked step */
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    (void)hyper;
    return 4;
}

static inline float adan_element(float p, float grad, float *s, struct scalars c)
{
    float g = grad * c.scale;
    float change = (g - s[H]) * c.has_before;
    float ahead = g + c.beta2 * change;
    s[M] = c.beta1 * s[M] + c.one_minus_beta1 * g;
    s[W] = c.beta2 * s[W] + c.one_minus_beta2 * change;
    s[V] = c.beta3 * s[V] + c.one_minus_beta3 * ahead * ahead;
    s[H] = g;
    float d = sqrtf(s[V]) * c.root_unbiasing + c.eps;
    float next = c.kept * p - c.average_lr * (s[M] / d) - c.change_lr * (s[W] / d);
    return next / c.divisor;
}

PD_ELEMENTWISE(adan_step, adan_element, 4)

/* Leaves the masked step in `grad`; returns the sum of the mask. */
PD_KERNEL
static uint32_t cautious_step(float *restrict grad, float *restrict m, float *restrict v,
                              float *restrict w, float *restrict h, uint32_t count,
                              struct scalars c)
{
    uint32_t agreeing = 0;
    for (uint32_t i = 0; i < count; i++) {
        float g = grad[i] * c.scale;
        float change = (g - h[i]) * c.has_before;
        float ahead = g + c.beta2 * change;
        m[i] = c.beta1 * m[i] + c.one_minus_beta1 * g;
        w[i] = c.beta2 * w[i] + c.one_minus_beta2 * change;
        v[i] = c.beta3 * v[i] + c.one_minus_beta3 * ahead * ahead;
        h[i] = g;
        float d = sqrtf(v[i]) * c.root_unbiasing + c.eps;
        agreeing += m[i] * g > 0;
        grad[i] = m[i] * g > 0 ? c.average_lr * (m[i] / d) / c.divisor : 0.0f;
    }
    return agreeing;
}

/* What is left of the step, with the averages as that one left them. */
PD_KERNEL
static void apply_step(float *p_next, const float *restrict p, const float *masked_step,
                       const float *restrict v, const float *restrict w, uint32_t count,
                       struct scalars c)
{
    PD_INDEPENDENT
    for (uint32_t i = 0; i < count; i++) {
        float d = sqrtf(v[i]) * c.root_unbiasing + c.eps;
        float next = (c.kept * p[i] - c.change_lr * (w[i] / d)) / c.divisor;
        p_next[i] = next - c.growth * masked_step[i];
    }
}

static struct scalars scalars_of(const struct pd_optimizer_step *step)
{
    const struct pd_hyper *hyper = step->hyper;
    const double *betas = hyper->betas;
    uint64_t t = step->group_number;
    double decay = step->lr * hyper->weight_decay;

    return (struct scalars){
        .scale = (float)step->gradient_scale,
        .beta1 = (float)betas[0],
        .beta2 = (float)betas[1],
        .beta3 = (float)betas[2],
        .one_minus_beta1 = (float)(1 - betas[0]),
        .one_minus_beta2 = (float)(1 - betas[1]),
        .one_minus_beta3 = (float)(1 - betas[2]),
        .eps = (float)hyper->eps,
        .has_before = step->number == 1 ? 0 : 1,
        .root_unbiasing = (float)(1 / sqrt(1 - pd_optimizer_power(betas[2], t))),
        .average_lr = (float)(step->lr / (1 - pd_optimizer_power(betas[0], t))),
        .change_lr = (float)(step->lr * betas[1] / (1 - pd_optimizer_power(betas[1], t))),
        .kept = hyper->no_prox ? (float)(1 - decay) : 1,
        .divisor = hyper->no_prox ? 1 : (float)(1 + decay),
    };
}

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    if (step->hyper->caution) {
        block->partial[0] =
            cautious_step(block->gradient, block->state[M], block->state[V], block->state[W],
                          block->state[H], block->count, scalars_of(step));
        block->partial[1] = block->count;
    } else {
        adan_step(block, scalars_of(step));
    }
}

static void apply(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    struct scalars c = scalars_of(step);

    c.growth = (float)pd_optimizer_cautious_growth(block->sums);
    apply_step(block->parameters_next, block->parameters, block->gradient, block->state[V],
               block->state[W], block->count, c);
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-3"),
    PD_HYPER_NUMBER(REALS3, betas, "[0.98, 0.92, 0.99]", 0, 1,
                    "decay rates of the averages of the gradient, its change and its square"),
    PD_HYPER_EPS("1e-8"),
    PD_HYPER_WEIGHT_DECAY("0", "takes this share, times lr, off the parameter"),
    PD_HYPER_FLAG(no_prox, "false", "decay before the step, as AdamW, not by dividing after it"),
    PD_HYPER_CAUTION,
};

const struct pd_optimizer pd_optimizer_adan = {
    .name = "adan",
    .help = "timm Adan",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .beside = true,
    .state_count = state_count,
    .pass_count = pd_optimizer_cautious_pass_count,
    .passes = {{.run = update, .sum_count = pd_optimizer_two_sums}, {.run = apply}},
};
