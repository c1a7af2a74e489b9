/* AdamW: Adam with the weight decay taken off the parameter instead of added to the gradient.
 * Source: Loshchilov and Hutter 2019, algorithm 2 (https://arxiv.org/abs/1711.05101), as in
 * torch.optim.AdamW; decay_after_step with eps_before_correction is transformers.AdamW.
 *
 *   p <- p * (1 - lr * weight_decay)
 *   m <- beta1 * m + (1 - beta1) * g
 *   v <- beta2 * v + (1 - beta2) * g^2
 *   s =  v; amsgrad: v_max <- max(v_max, v), s = v_max
 *   p <- p - lr / (1 - beta1^t) * m / (sqrt(s) / sqrt(1 - beta2^t) + eps)
 *        eps_before_correction: ... / ((sqrt(s) + eps) / sqrt(1 - beta2^t))
 *   Without bias_correction the two 1 - beta^t are 1. With decay_after_step the first line comes
 *   last. */
#include "server/core/optimizers/elementwise.h"

/* The state, in its order. */
enum { M, V, V_MAX };

struct scalars {
    float scale, beta1, beta2, one_minus_beta1, one_minus_beta2;
    float kept;           /* before the step: 1 - lr * weight_decay, or 1 */
    float decay_after;    /* lr * weight_decay, or 0 */
    float step_size;      /* lr / (1 - beta1^t) */
    float root_unbiasing; /* 1 / sqrt(1 - beta2^t) */
    float eps;
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    return hyper->amsgrad ? 3 : 2;
}

static inline float adamw_element(float p, float grad, float *s, struct scalars c)
{
    float g = grad * c.scale;
    s[M] = c.beta1 * s[M] + c.one_minus_beta1 * g;
    s[V] = c.beta2 * s[V] + c.one_minus_beta2 * g * g;
    float d = s[M] / (sqrtf(s[V]) * c.root_unbiasing + c.eps);
    float next = c.kept * p - c.step_size * d;
    return next - c.decay_after * next;
}

PD_ELEMENTWISE(adamw_step, adamw_element, 2)

static inline float amsgrad_element(float p, float grad, float *s, struct scalars c)
{
    float g = grad * c.scale;
    s[M] = c.beta1 * s[M] + c.one_minus_beta1 * g;
    s[V] = c.beta2 * s[V] + c.one_minus_beta2 * g * g;
    s[V_MAX] = s[V] > s[V_MAX] ? s[V] : s[V_MAX];
    float d = s[M] / (sqrtf(s[V_MAX]) * c.root_unbiasing + c.eps);
    float next = c.kept * p - c.step_size * d;
    return next - c.decay_after * next;
}

PD_ELEMENTWISE(amsgrad_step, amsgrad_element, 3)

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    double beta1 = hyper->betas[0];
    double beta2 = hyper->betas[1];
    double bias1 = 1;
    double bias2 = 1;

    if (hyper->bias_correction) {
        bias1 -= pd_optimizer_power(beta1, step->number);
        bias2 -= pd_optimizer_power(beta2, step->number);
    }
    double decay = step->lr * hyper->weight_decay;
    double eps_scale = hyper->eps_before_correction ? 1 / sqrt(bias2) : 1;
    struct scalars c = {
        .scale = (float)step->gradient_scale,
        .kept = hyper->decay_after_step ? 1 : (float)(1 - decay),
        .decay_after = hyper->decay_after_step ? (float)decay : 0,
        .beta1 = (float)beta1,
        .beta2 = (float)beta2,
        .one_minus_beta1 = (float)(1 - beta1),
        .one_minus_beta2 = (float)(1 - beta2),
        .step_size = (float)(step->lr / bias1),
        .root_unbiasing = (float)(1 / sqrt(bias2)),
        .eps = (float)(hyper->eps * eps_scale),
    };

    if (hyper->amsgrad) {
        amsgrad_step(block, c);
    } else {
        adamw_step(block, c);
    }
}

static const char *check(const struct pd_hyper *hyper)
{
    return hyper->amsgrad && hyper->state_bits == PD_STATE_BITS_8
               ? "amsgrad: true with state_bits: 8; allowed: one of them"
               : NULL;
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-3"),
    PD_HYPER_BETAS("[0.9, 0.999]"),
    PD_HYPER_EPS("1e-8"),
    PD_HYPER_WEIGHT_DECAY("0.01", "takes this share, times lr, off the parameter"),
    PD_HYPER_FLAG(amsgrad, "false", "divide by the largest average of squares so far"),
    PD_HYPER_STATE_BITS,
    PD_HYPER_FLAG(bias_correction, "true", "make up for averages that start from zero"),
    PD_HYPER_FLAG(eps_before_correction, "false", "add eps to the root before it is corrected"),
    PD_HYPER_FLAG(decay_after_step, "false", "decay the parameter after its step"),
};

const struct pd_optimizer pd_optimizer_adamw = {
    .name = "adamw",
    .help = "torch.optim.AdamW: weight decay of the parameter",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .beside = true,
    .check = check,
    .state_count = state_count,
    .signed_states = 1u << 0,
    .passes = {{.run = update}},
};
