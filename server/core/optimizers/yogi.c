/* Yogi: Adam whose average of squares moves by at most the square of the gradient.
 * Source: Zaheer et al. 2018, algorithm 2 (https://papers.nips.cc/paper/8186), with the bias
 * corrections and initial values of torch_optimizer.Yogi.
 *
 *   g <- g + weight_decay * p
 *   m <- beta1 * m + (1 - beta1) * g, from initial_accumulator_value
 *   v <- v - (1 - beta2) * sign(v - g^2) * g^2, from initial_accumulator_value
 *   p <- p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps) */
#include "server/core/optimizers/elementwise.h"

/* The state, in its order. */
enum { M, V };

struct scalars {
    float scale, weight_decay, start, beta1, one_minus_beta1, one_minus_beta2, eps;
    float step_size;      /* lr / (1 - beta1^t) */
    float root_unbiasing; /* 1 / sqrt(1 - beta2^t) */
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    (void)hyper;
    return 2;
}

static inline float yogi_element(float p, float grad, float *s, struct scalars c)
{
    float g = grad * c.scale + c.weight_decay * p;
    float square = g * g;
    float before = s[V] + c.start;
    float change = c.one_minus_beta2 * square;
    s[M] = c.beta1 * (s[M] + c.start) + c.one_minus_beta1 * g;
    change = before < square ? -change : change;
    s[V] = before == square ? before : before - change;
    return p - c.step_size * (s[M] / (sqrtf(s[V]) * c.root_unbiasing + c.eps));
}

PD_ELEMENTWISE(yogi_step, yogi_element, 2)

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    double beta1 = hyper->betas[0];
    double beta2 = hyper->betas[1];
    struct scalars c = {
        .scale = (float)step->gradient_scale,
        .weight_decay = (float)hyper->weight_decay,
        .start = step->number == 1 ? (float)hyper->initial_accumulator_value : 0,
        .beta1 = (float)beta1,
        .one_minus_beta1 = (float)(1 - beta1),
        .one_minus_beta2 = (float)(1 - beta2),
        .eps = (float)hyper->eps,
        .step_size = (float)(step->lr / (1 - pd_optimizer_power(beta1, step->number))),
        .root_unbiasing = (float)(1 / sqrt(1 - pd_optimizer_power(beta2, step->number))),
    };

    yogi_step(block, c);
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-2"),
    PD_HYPER_BETAS("[0.9, 0.999]"),
    PD_HYPER_EPS("1e-3"),
    PD_HYPER_NUMBER(REAL, initial_accumulator_value, "1e-6", 0, INFINITY,
                    "both averages to begin with"),
    PD_HYPER_WEIGHT_DECAY("0", "added to the gradient, times the parameter"),
};

const struct pd_optimizer pd_optimizer_yogi = {
    .name = "yogi",
    .help = "torch_optimizer Yogi",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .beside = true,
    .state_count = state_count,
    .passes = {{.run = update}},
};
