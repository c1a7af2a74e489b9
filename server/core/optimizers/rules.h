/* What the rules share: their list, rows of options that several have, and integer powers.
 * optimizer.c <- [rules] <- one file per rule. Included nowhere else. */
#ifndef PD_SERVER_CORE_OPTIMIZERS_RULES_H
#define PD_SERVER_CORE_OPTIMIZERS_RULES_H

#include "common/kernel.h"
#include "server/core/optimizer.h"

#include <math.h>

/* Before a loop: state that changes in place is the same array twice, and so are a gradient and the
 * parameters that take its place, which the compiler cannot know to be no hindrance. */
#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed" /* where the checks of a sanitizer prevent it */
#define PD_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define PD_INDEPENDENT _Pragma("GCC ivdep")
#endif

extern const struct pd_optimizer pd_optimizer_sgd;
extern const struct pd_optimizer pd_optimizer_adam;
extern const struct pd_optimizer pd_optimizer_adamw;
extern const struct pd_optimizer pd_optimizer_lamb;
extern const struct pd_optimizer pd_optimizer_lars;
extern const struct pd_optimizer pd_optimizer_lion;
extern const struct pd_optimizer pd_optimizer_sophia_g;
extern const struct pd_optimizer pd_optimizer_adagrad;
extern const struct pd_optimizer pd_optimizer_rmsprop;
extern const struct pd_optimizer pd_optimizer_rmsprop_tf;
extern const struct pd_optimizer pd_optimizer_adadelta;
extern const struct pd_optimizer pd_optimizer_adamax;
extern const struct pd_optimizer pd_optimizer_nadam;
extern const struct pd_optimizer pd_optimizer_nadamw;
extern const struct pd_optimizer pd_optimizer_radam;
extern const struct pd_optimizer pd_optimizer_adan;
extern const struct pd_optimizer pd_optimizer_yogi;
extern const struct pd_optimizer pd_optimizer_sgdw;
extern const struct pd_optimizer pd_optimizer_adafactor;
extern const struct pd_optimizer pd_optimizer_adafactor_timm;
extern const struct pd_optimizer pd_optimizer_adafactor_bv;
extern const struct pd_optimizer pd_optimizer_adafactor_torch;

/* base^exponent by squaring: the same bits on every machine, which pow() does not promise. */
double pd_optimizer_power(double base, uint64_t exponent);

/* sums[0] = sum a^2, sums[1] = sum b^2, in double and in one order on every instruction set. */
void pd_optimizer_sum_squares(const float *a, const float *b, uint32_t count, double sums[2]);
/* The same with a - decay * a in the place of a. */
void pd_optimizer_sum_squares_decayed(const float *a, float decay, const float *b, uint32_t count,
                                      double sums[2]);

/* The share that decoupled weight decay takes off a parameter: lr * weight_decay, or with
 * corrected_weight_decay lr^2 / (lr before any schedule) * weight_decay.
 * Source: timm; Defazio 2025 (https://arxiv.org/abs/2506.02285). */
double pd_optimizer_decay_share(const struct pd_optimizer_step *step);

/* Caution: parts of a step that point against the gradient are left out, and the rest grows to make
 * up for them. Source: Liang et al. 2024, algorithm 1 (https://arxiv.org/abs/2411.16085), as in
 * timm.
 *
 *   mask = 1 where step * g > 0, else 0
 *   p   <- p - step * mask / max(mean of mask over the tensor, 1e-3)
 *
 * A rule that offers it leaves step * mask in the place of the gradient; its first two sums are
 * those of the mask and of the elements. In its next pass, which it has only with caution, it takes
 * what is left there, grown, off what p is without the step. This is that pass where the latter is
 * kept * p. */
void pd_optimizer_apply_cautious(struct pd_optimizer_block *block, float kept);
/* What a masked step grows by, from those two sums. */
double pd_optimizer_cautious_growth(const double sums[2]);
/* Passes of a rule that has the second only for caution. */
uint32_t pd_optimizer_cautious_pass_count(const struct pd_hyper *hyper);

/* The sum_count of a pass with two sums. */
uint64_t pd_optimizer_two_sums(const struct pd_hyper *hyper, const struct pd_tensor *tensor);

/* Rows of a rule's table of options: a field of struct pd_hyper, its default as written in YAML,
 * its bounds and what it does. */
#define PD_HYPER_FLAG(field, as_default, about)                                                    \
    {                                                                                              \
        .key = #field, .type = PD_OPTION_BOOL, .offset = offsetof(struct pd_hyper, field),         \
        .default_text = as_default, .unit = "", .help = about                                      \
    }

/* `kind` is REAL, REALS2 or REALS3; each number is at least `least` and below `bound`. */
#define PD_HYPER_NUMBER(kind, field, as_default, least, bound, about)                              \
    {                                                                                              \
        .key = #field, .type = PD_OPTION_##kind, .offset = offsetof(struct pd_hyper, field),       \
        .default_text = as_default, .low = least, .high = bound, .high_open = 1, .unit = "",       \
        .help = about                                                                              \
    }

/* A positive number or null, which is NaN: no limit. */
#define PD_HYPER_LIMIT(field, as_default, about)                                                   \
    {                                                                                              \
        .key = #field, .type = PD_OPTION_REAL, .offset = offsetof(struct pd_hyper, field),         \
        .default_text = as_default, .high = INFINITY, .low_open = 1, .high_open = 1,               \
        .nullable = 1, .unit = "", .help = about                                                   \
    }

/* A share or null, which is NaN: none. */
#define PD_HYPER_FRACTION(field, as_default, about)                                                \
    {                                                                                              \
        .key = #field, .type = PD_OPTION_REAL, .offset = offsetof(struct pd_hyper, field),         \
        .default_text = as_default, .high = 1, .high_open = 1, .nullable = 1, .unit = "",          \
        .help = about                                                                              \
    }

/* The exponent of t in 1 - beta2, under the reference's name for it. */
#define PD_HYPER_DECAY_RATE(name, as_default)                                                      \
    {                                                                                              \
        .key = #name, .type = PD_OPTION_REAL, .offset = offsetof(struct pd_hyper, decay_rate),     \
        .default_text = as_default, .low = -100, .high = 0, .unit = "",                            \
        .help = "beta2 is 1 - t^" #name                                                            \
    }

#define PD_HYPER_MIN_DIM(as_default, about)                                                        \
    {                                                                                              \
        .key = "min_dim_size_to_factor", .type = PD_OPTION_UINT,                                   \
        .offset = offsetof(struct pd_hyper, min_dim_size_to_factor), .default_text = as_default,   \
        .high = 9007199254740992.0, .unit = "", .help = about                                      \
    }

extern const char *const pd_state_bits_words[];

#define PD_HYPER_STATE_BITS                                                                        \
    {                                                                                              \
        .key = "state_bits", .type = PD_OPTION_CHOICE,                                             \
        .offset = offsetof(struct pd_hyper, state_bits), .default_text = "32",                     \
        .choices = pd_state_bits_words, .unit = "",                                                \
        .help = "8: keep the state in a quarter of the memory"                                     \
    }

/* Null, which is NaN, lets the rule set its own rate. */
#define PD_HYPER_OWN_LR                                                                            \
    {                                                                                              \
        .key = "lr", .type = PD_OPTION_REAL, .offset = offsetof(struct pd_hyper, lr),              \
        .default_text = "null", .high = INFINITY, .high_open = 1, .nullable = 1, .unit = "",       \
        .help = "learning rate, before any schedule; null: a rate of its own, "                    \
                "which no schedule changes"                                                        \
    }

#define PD_HYPER_LR(as_default)                                                                    \
    PD_HYPER_NUMBER(REAL, lr, as_default, 0, INFINITY, "learning rate, before any schedule")
#define PD_HYPER_BETAS(as_default)                                                                 \
    PD_HYPER_NUMBER(REALS2, betas, as_default, 0, 1,                                               \
                    "decay rates of the averages of the gradient and of its square")
#define PD_HYPER_EPS(as_default)                                                                   \
    PD_HYPER_NUMBER(REAL, eps, as_default, 0, INFINITY, "keeps the divisor away from zero")
#define PD_HYPER_WEIGHT_DECAY(as_default, about)                                                   \
    PD_HYPER_NUMBER(REAL, weight_decay, as_default, 0, INFINITY, about)

#define PD_HYPER_CAUTION                                                                           \
    PD_HYPER_FLAG(caution, "false", "leave out the parts of a step that go against the gradient")
#define PD_HYPER_CORRECTED_DECAY                                                                   \
    PD_HYPER_FLAG(corrected_weight_decay, "false",                                                 \
                  "scale weight decay by the schedule once more: lr^2 / initial lr")

#define PD_OPTION_COUNT(table) (sizeof(table) / sizeof((table)[0]))

#endif
