#include "server/core/optimizer.h"

#include "server/core/optimizers/elementwise.h"

#include <string.h>

/* Elements of a sum go round this many accumulators, whatever the width of the machine's vectors.
 */
#define LANE_COUNT 8u

/* Least share of agreeing elements that a cautious step makes up for. */
#define CAUTION_MEAN_MIN 1e-3

static const struct pd_optimizer *const rules[] = {
    &pd_optimizer_sgd,          &pd_optimizer_adam,
    &pd_optimizer_adamw,        &pd_optimizer_lamb,
    &pd_optimizer_lars,         &pd_optimizer_lion,
    &pd_optimizer_sophia_g,     &pd_optimizer_adagrad,
    &pd_optimizer_rmsprop,      &pd_optimizer_rmsprop_tf,
    &pd_optimizer_adadelta,     &pd_optimizer_adamax,
    &pd_optimizer_nadam,        &pd_optimizer_nadamw,
    &pd_optimizer_radam,        &pd_optimizer_adan,
    &pd_optimizer_yogi,         &pd_optimizer_sgdw,
    &pd_optimizer_adafactor,    &pd_optimizer_adafactor_timm,
    &pd_optimizer_adafactor_bv, &pd_optimizer_adafactor_torch,
};
#define RULE_COUNT (sizeof rules / sizeof rules[0])

const char *const pd_state_bits_words[] = {"32", "8", NULL};

const struct pd_optimizer *pd_optimizer_at(size_t index)
{
    return index < RULE_COUNT ? rules[index] : NULL;
}

const struct pd_optimizer *pd_optimizer_find(const char *name)
{
    for (size_t i = 0; i < RULE_COUNT; i++) {
        if (strcmp(rules[i]->name, name) == 0) {
            return rules[i];
        }
    }
    return NULL;
}

double *pd_optimizer_momentum(const struct pd_optimizer *optimizer, struct pd_hyper *hyper)
{
    for (uint32_t i = 0; i < optimizer->option_count; i++) {
        if (optimizer->options[i].offset == offsetof(struct pd_hyper, momentum)) {
            return &hyper->momentum;
        }
        if (optimizer->options[i].offset == offsetof(struct pd_hyper, betas)) {
            return &hyper->betas[0];
        }
    }
    return NULL;
}

double pd_optimizer_shown_lr(const struct pd_optimizer *optimizer, const struct pd_hyper *hyper,
                             double lr, uint64_t number)
{
    return isnan(lr) && optimizer->own_lr != NULL ? optimizer->own_lr(hyper, number) : lr;
}

uint32_t pd_optimizer_pass_count(const struct pd_optimizer *optimizer, const struct pd_hyper *hyper)
{
    uint32_t count = 0;

    if (optimizer->pass_count != NULL) {
        return optimizer->pass_count(hyper);
    }
    while (count < PD_OPTIMIZER_PASS_COUNT_MAX && optimizer->passes[count].run != NULL) {
        count++;
    }
    return count;
}

uint64_t pd_optimizer_sum_count(const struct pd_optimizer *optimizer, const struct pd_hyper *hyper,
                                uint32_t pass, const struct pd_tensor *tensor)
{
    bool gives = pass + 1 < pd_optimizer_pass_count(optimizer, hyper) &&
                 optimizer->passes[pass].sum_count != NULL;
    return gives ? optimizer->passes[pass].sum_count(hyper, tensor) : 0;
}

uint32_t pd_optimizer_spans(const struct pd_optimizer *optimizer, const struct pd_hyper *hyper,
                            uint32_t pass, const struct pd_tensor *tensor, uint64_t begin,
                            uint32_t count, struct pd_optimizer_span *spans)
{
    uint64_t sum_count = pd_optimizer_sum_count(optimizer, hyper, pass, tensor);

    if (sum_count == 0) {
        return 0;
    }
    if (optimizer->passes[pass].spans != NULL) {
        return optimizer->passes[pass].spans(hyper, tensor, begin, count, spans);
    }
    spans[0] = (struct pd_optimizer_span){0, sum_count};
    return 1;
}

double pd_optimizer_power(double base, uint64_t exponent)
{
    double result = 1;
    for (; exponent != 0; exponent >>= 1) {
        if (exponent & 1) {
            result *= base;
        }
        base *= base;
    }
    return result;
}

static inline __attribute__((always_inline)) void sum_squares(const float *a, bool decays,
                                                              float decay, const float *b,
                                                              uint32_t count, double sums[2])
{
    double a_lanes[LANE_COUNT] = {0};
    double b_lanes[LANE_COUNT] = {0};
    uint32_t i = 0;

    for (; i + LANE_COUNT <= count; i += LANE_COUNT) {
        for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
            double element = decays ? a[i + lane] - decay * a[i + lane] : a[i + lane];
            a_lanes[lane] += element * element;
        }
        for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
            double element = b[i + lane];
            b_lanes[lane] += element * element;
        }
    }
    for (uint32_t lane = 0; i < count; i++, lane++) {
        double element = decays ? a[i] - decay * a[i] : a[i];
        a_lanes[lane] += element * element;
        b_lanes[lane] += (double)b[i] * b[i];
    }
    sums[0] = 0;
    sums[1] = 0;
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        sums[0] += a_lanes[lane];
        sums[1] += b_lanes[lane];
    }
}

PD_KERNEL
void pd_optimizer_sum_squares(const float *a, const float *b, uint32_t count, double sums[2])
{
    sum_squares(a, false, 0, b, count, sums);
}

PD_KERNEL
void pd_optimizer_sum_squares_decayed(const float *a, float decay, const float *b, uint32_t count,
                                      double sums[2])
{
    sum_squares(a, true, decay, b, count, sums);
}

double pd_optimizer_decay_share(const struct pd_optimizer_step *step)
{
    const struct pd_hyper *hyper = step->hyper;
    double share = step->lr * hyper->weight_decay;

    if (hyper->corrected_weight_decay && step->initial_lr > 0) {
        share *= step->lr / step->initial_lr;
    }
    return share;
}

struct scalars {
    float kept, growth;
};

static inline float cautious_element(float p, float masked_step, float *s, struct scalars c)
{
    (void)s;
    return c.kept * p - c.growth * masked_step;
}

PD_ELEMENTWISE(cautious_step, cautious_element, 0)

double pd_optimizer_cautious_growth(const double sums[2])
{
    return 1 / fmax(sums[0] / sums[1], CAUTION_MEAN_MIN);
}

void pd_optimizer_apply_cautious(struct pd_optimizer_block *block, float kept)
{
    const struct scalars c = {.kept = kept,
                              .growth = (float)pd_optimizer_cautious_growth(block->sums)};

    cautious_step(block, c);
}

uint32_t pd_optimizer_cautious_pass_count(const struct pd_hyper *hyper)
{
    return hyper->caution ? 2 : 1;
}

uint64_t pd_optimizer_two_sums(const struct pd_hyper *hyper, const struct pd_tensor *tensor)
{
    (void)hyper;
    (void)tensor;
    return 2;
}
