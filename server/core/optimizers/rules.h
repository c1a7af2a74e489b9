/* What the rules share: their list, rows of options that several have, and integer powers.
 * optimizer.c <- [rules] <- one file per rule. Included nowhere else. */
#ifndef PD_SERVER_CORE_OPTIMIZERS_RULES_H
#define PD_SERVER_CORE_OPTIMIZERS_RULES_H

#include "common/kernel.h"
#include "server/core/optimizer.h"

#include <math.h>

extern const struct pd_optimizer pd_optimizer_sgd;
extern const struct pd_optimizer pd_optimizer_adam;
extern const struct pd_optimizer pd_optimizer_adamw;
extern const struct pd_optimizer pd_optimizer_lamb;

/* base^exponent by squaring: the same bits on every machine, which pow() does not promise. */
double pd_optimizer_power(double base, uint64_t exponent);

/* sums[0] = sum a^2, sums[1] = sum b^2, in double and in one order on every instruction set. */
void pd_optimizer_sum_squares(const float *a, const float *b, uint32_t count, double sums[2]);

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

#define PD_HYPER_LR(as_default)                                                                    \
    PD_HYPER_NUMBER(REAL, lr, as_default, 0, INFINITY, "learning rate, before any schedule")
#define PD_HYPER_BETAS(as_default)                                                                 \
    PD_HYPER_NUMBER(REALS2, betas, as_default, 0, 1,                                               \
                    "decay rates of the averages of the gradient and of its square")
#define PD_HYPER_EPS(as_default)                                                                   \
    PD_HYPER_NUMBER(REAL, eps, as_default, 0, INFINITY, "keeps the divisor away from zero")
#define PD_HYPER_WEIGHT_DECAY(as_default, about)                                                   \
    PD_HYPER_NUMBER(REAL, weight_decay, as_default, 0, INFINITY, about)

#define PD_OPTION_COUNT(table) (sizeof(table) / sizeof((table)[0]))

#endif
