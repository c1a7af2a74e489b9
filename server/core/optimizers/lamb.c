/* LAMB: Adam's update with a learning rate of its own for every tensor.
 * Source: You et al. 2020, algorithm 2 (https://arxiv.org/abs/1904.00962), with the semantics of
 * timm.optim.Lamb.
 *
 *   g <- g / max(1, |all g| / max_grad_norm)
 *   g <- g + weight_decay * p, only without adam_w_mode, as apex has it
 *   m <- beta1 * m + beta3 * g, where beta3 = 1 - beta1, or 1 without grad_averaging
 *   v <- beta2 * v + (1 - beta2) * g^2
 *   u =  (m / (1 - beta1^t)) / (sqrt(v) / sqrt(1 - beta2^t) + eps)
 *        with caution u * mask / its mean, as in rules.h
 *   u <- u + weight_decay * p, in adam_w_mode
 *        decoupled_decay: p <- p - lr * weight_decay * p, and none of the other two decays
 *   r =  min(|p|, max_weight_norm) / |u| over the tensor; 1 if either norm is 0, or if there is
 *        neither weight_decay nor always_adapt, or with adam, as cybertronai has it; trust_clip:
 *        at most 1
 *   p <- p - lr * r * u
 *
 * The first pass leaves u in the place of the gradient and sums p^2 and u^2. With caution it
 * leaves u without its decay, masked, and sums the mask; a second one makes u of it. */
#include "server/core/optimizers/elementwise.h"

/* Independent accumulators of a sum: enough that additions do not wait for each other. */
#define LANE_COUNT 32u

struct scalars {
    float scale, beta1, beta2, beta3, one_minus_beta2;
    float unbiasing;      /* 1 / (1 - beta1^t) */
    float root_unbiasing; /* 1 / sqrt(1 - beta2^t) */
    float eps;
    float gradient_decay; /* one of these three takes the weight decay */
    float update_decay;
    float decoupled_decay; /* times lr */
    float step_size;       /* lr * r */
};

static uint32_t state_count(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)tensor;
    (void)hyper;
    return 2;
}

static inline float decayed(float p, struct scalars c)
{
    return p - c.decoupled_decay * p;
}

/* Leaves u in `grad`. */
static inline __attribute__((always_inline)) void raw_update(const float *restrict p,
                                                             float *restrict grad,
                                                             float *restrict m, float *restrict v,
                                                             size_t count, struct scalars c)
{
    for (size_t i = 0; i < count; i++) {
        float g = grad[i] * c.scale + c.gradient_decay * p[i];
        m[i] = c.beta1 * m[i] + c.beta3 * g;
        v[i] = c.beta2 * v[i] + c.one_minus_beta2 * g * g;
        float u = m[i] * c.unbiasing / (sqrtf(v[i]) * c.root_unbiasing + c.eps);
        grad[i] = u + c.update_decay * p[i];
    }
}

/* The same, with sums[0] = sum of the decayed p^2 and sums[1] = sum of u^2: taken on the way,
 * because memory leaves the time for it. Elements go round the lanes, so the order of additions is
 * the same on every instruction set. */
PD_KERNEL
static void raw_update_and_sums(const float *restrict p, float *restrict grad, float *restrict m,
                                float *restrict v, size_t count, struct scalars c, double sums[2])
{
    double p_lanes[LANE_COUNT] = {0};
    double u_lanes[LANE_COUNT] = {0};
    size_t i = 0;

    for (; i + LANE_COUNT <= count; i += LANE_COUNT) {
        for (size_t line = i; line < i + LANE_COUNT; line += PD_LINE_ELEMENTS) {
            pd_kernel_ask_ahead(p + line);
            pd_kernel_ask_ahead(grad + line);
            pd_kernel_ask_ahead(m + line);
            pd_kernel_ask_ahead(v + line);
        }
        raw_update(p + i, grad + i, m + i, v + i, LANE_COUNT, c);
        for (size_t lane = 0; lane < LANE_COUNT; lane++) {
            double element = decayed(p[i + lane], c);
            p_lanes[lane] += element * element;
        }
        for (size_t lane = 0; lane < LANE_COUNT; lane++) {
            double element = grad[i + lane];
            u_lanes[lane] += element * element;
        }
    }
    raw_update(p + i, grad + i, m + i, v + i, count - i, c);
    for (size_t lane = 0; i < count; i++, lane++) {
        double element = decayed(p[i], c);
        p_lanes[lane] += element * element;
        u_lanes[lane] += (double)grad[i] * grad[i];
    }
    sums[0] = 0;
    sums[1] = 0;
    for (size_t lane = 0; lane < LANE_COUNT; lane++) {
        sums[0] += p_lanes[lane];
        sums[1] += u_lanes[lane];
    }
}

/* Leaves the masked u in `grad`, without decay; returns the sum of the mask. */
PD_KERNEL
static uint32_t cautious_update(const float *restrict p, float *restrict grad, float *restrict m,
                                float *restrict v, uint32_t count, struct scalars c)
{
    uint32_t agreeing = 0;
    for (uint32_t i = 0; i < count; i++) {
        float g = grad[i] * c.scale + c.gradient_decay * p[i];
        m[i] = c.beta1 * m[i] + c.beta3 * g;
        v[i] = c.beta2 * v[i] + c.one_minus_beta2 * g * g;
        float u = m[i] * c.unbiasing / (sqrtf(v[i]) * c.root_unbiasing + c.eps);
        agreeing += u * g > 0;
        grad[i] = u * g > 0 ? u : 0.0f;
    }
    return agreeing;
}

PD_KERNEL
static void grow_and_decay(const float *restrict p, float *restrict u, uint32_t count, float growth,
                           float update_decay)
{
    for (uint32_t i = 0; i < count; i++) {
        u[i] = growth * u[i] + update_decay * p[i];
    }
}

static inline float apply_element(float p, float u, float *s, struct scalars c)
{
    (void)s;
    return decayed(p, c) - c.step_size * u;
}

PD_ELEMENTWISE(apply_step, apply_element, 0)

static float decoupled_decay(const struct pd_optimizer_step *step)
{
    const struct pd_hyper *hyper = step->hyper;
    return hyper->decoupled_decay ? (float)pd_optimizer_decay_share(step) : 0;
}

static struct scalars scalars_of(const struct pd_optimizer_step *step)
{
    const struct pd_hyper *hyper = step->hyper;
    double beta1 = hyper->betas[0];
    double beta2 = hyper->betas[1];
    double bias1 = 1;
    double bias2 = 1;
    double excess = 1;

    if (hyper->bias_correction) {
        bias1 -= pd_optimizer_power(beta1, step->group_number);
        bias2 -= pd_optimizer_power(beta2, step->group_number);
    }
    if (step->gradient_norm > hyper->max_grad_norm) {
        excess = step->gradient_norm / hyper->max_grad_norm;
    }
    float decay = hyper->decoupled_decay ? 0 : (float)hyper->weight_decay;
    return (struct scalars){
        .scale = (float)(step->gradient_scale / excess),
        .beta1 = (float)beta1,
        .beta2 = (float)beta2,
        .beta3 = hyper->grad_averaging ? (float)(1 - beta1) : 1,
        .one_minus_beta2 = (float)(1 - beta2),
        .unbiasing = (float)(1 / bias1),
        .root_unbiasing = (float)(1 / sqrt(bias2)),
        .eps = (float)hyper->eps,
        .gradient_decay = hyper->adam_w_mode ? 0 : decay,
        .update_decay = hyper->adam_w_mode ? decay : 0,
        .decoupled_decay = decoupled_decay(step),
    };
}

static void update(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    if (step->hyper->caution) {
        block->partial[0] = cautious_update(block->parameters, block->gradient, block->state[0],
                                            block->state[1], block->count, scalars_of(step));
        block->partial[1] = block->count;
    } else {
        raw_update_and_sums(block->parameters, block->gradient, block->state[0], block->state[1],
                            block->count, scalars_of(step), block->partial);
    }
}

static void apply(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    const struct pd_hyper *hyper = step->hyper;
    const double *sums = block->sums;
    double ratio = 1;

    bool adapts = (hyper->weight_decay != 0 || hyper->always_adapt) && !hyper->adam;
    if (adapts && sums[0] > 0 && sums[1] > 0) {
        /* fmin passes over a max_weight_norm that is NaN: none. */
        ratio = fmin(sqrt(sums[0]), hyper->max_weight_norm) / sqrt(sums[1]);
    }
    if (hyper->trust_clip && ratio > 1) {
        ratio = 1;
    }
    const struct scalars c = {.decoupled_decay = decoupled_decay(step),
                              .step_size = (float)(step->lr * ratio)};
    apply_step(block, c);
}

static void finish_cautious_update(const struct pd_optimizer_step *step,
                                   struct pd_optimizer_block *block)
{
    struct scalars c = scalars_of(step);

    grow_and_decay(block->parameters, block->gradient, block->count,
                   (float)pd_optimizer_cautious_growth(block->sums), c.update_decay);
    pd_optimizer_sum_squares_decayed(block->parameters, c.decoupled_decay, block->gradient,
                                     block->count, block->partial);
}

/* The second pass of three with caution, the last of two without. */
static void second(const struct pd_optimizer_step *step, struct pd_optimizer_block *block)
{
    if (step->hyper->caution) {
        finish_cautious_update(step, block);
    } else {
        apply(step, block);
    }
}

static uint32_t pass_count(const struct pd_hyper *hyper)
{
    return hyper->caution ? 3 : 2;
}

static const struct pd_option options[] = {
    PD_HYPER_LR("1e-3"),
    PD_HYPER_BETAS("[0.9, 0.999]"),
    PD_HYPER_EPS("1e-6"),
    PD_HYPER_WEIGHT_DECAY("0.01", "added to the update, times the parameter"),
    PD_HYPER_FLAG(bias_correction, "true", "make up for averages that start from zero"),
    PD_HYPER_FLAG(grad_averaging, "true", "weight a gradient by 1 - beta1 in its average"),
    PD_HYPER_LIMIT(max_grad_norm, "1.0", "clip the global gradient norm to this first; null: none"),
    PD_HYPER_LIMIT(max_weight_norm, "null", "the largest norm in a trust ratio; null: none"),
    PD_HYPER_FLAG(trust_clip, "false", "let no trust ratio exceed 1"),
    PD_HYPER_FLAG(always_adapt, "false", "use the trust ratio also without weight decay"),
    PD_HYPER_FLAG(adam_w_mode, "true", "false: add weight decay to the clipped gradient"),
    PD_HYPER_FLAG(decoupled_decay, "false", "decay the parameter, as AdamW, not the update"),
    PD_HYPER_CORRECTED_DECAY,
    PD_HYPER_CAUTION,
    PD_HYPER_FLAG(adam, "false", "let every trust ratio be 1"),
};

const struct pd_optimizer pd_optimizer_lamb = {
    .name = "lamb",
    .help = "timm Lamb; apex FusedLAMB by its keys",
    .options = options,
    .option_count = PD_OPTION_COUNT(options),
    .state_count = state_count,
    .pass_count = pass_count,
    .passes = {{.run = update, .sum_count = pd_optimizer_two_sums},
               {.run = second, .sum_count = pd_optimizer_two_sums},
               {.run = apply}},
};
