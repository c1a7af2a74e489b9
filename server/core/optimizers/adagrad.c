/* Adagrad: steps divided by the root of the sum of squares of all gradients so far.
 * Source: Duchi et al. 2011 (https://jmlr.org/papers/v12/duchi11a.html), as in torch.optim.Adagrad.
 *
 *   g   <- g + weight_decay * p
 *   sum <- sum + g^2, from initial_accumulator_value
 *   p   <- p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(sum) + eps)
 *          eps_inside_root: ... * g / sqrt(sum + eps) */
#include "server/core/optimizers/elementwise.h"

/* The state, in its order. */
enum { SUM };

struct scalars {
    float scale, weight_decay, start, lr, eps_in, eps_out;
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    (void)hyper;
    return 1;
}

static inline float adagrad_element(float p, float grad, float *s, struct scalars c)
{
    float g = grad * c.scale + c.weight_decay * p;
    s[SUM] = s[SUM] + c.start + g * g;
    return p - c.lr * (g / (sqrtf(s[SUM] + c.eps_in) + c.eps_out));
}

PD_ELEMENTWISE(adagrad_step, adagrad_element, 1)

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    double slowdown = 1 + (double)(step->number - 1) * hyper->lr_decay;
    struct scalars c = {
        .scale = (float)step->gradient_scale,
        .weight_decay = (float)hyper->weight_decay,
        .start = step->number == 1 ? (float)hyper->initial_accumulator_value : 0,
        .lr = (float)(step->lr / slowdown),
        .eps_in = hyper->eps_inside_root ? (float)hyper->eps : 0,
        .eps_out = hyper->eps_inside_root ? 0 : (float)hyper->eps,
    };

    adagrad_step(block, c);
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-2"),
    PD_HYPER_NUMBER(REAL, lr_decay, "0", 0, INFINITY, "divides lr by 1 + (t - 1) times this"),
    PD_HYPER_WEIGHT_DECAY("0", "added to the gradient, times the parameter"),
    PD_HYPER_NUMBER(REAL, initial_accumulator_value, "0", 0, INFINITY,
                    "the sum of squares to begin with"),
    PD_HYPER_EPS("1e-10"),
    PD_HYPER_FLAG(eps_inside_root, "false", "add eps under the root instead of to it"),
};

const struct pd_optimizer pd_optimizer_adagrad = {
    .name = "adagrad",
    .help = "torch.optim.Adagrad",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .beside = true,
    .state_count = state_count,
    .passes = {{.run = update}},
};
