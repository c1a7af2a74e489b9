#include "server/core/schedule.h"

#include "common/assert.h"

#include <math.h>
#include <string.h>

#define ROW(key, type, field, default_text, ...)                                                   \
    {                                                                                              \
        key, type, offsetof(struct pd_schedule, field), default_text, __VA_ARGS__                  \
    }
#define STEPS(default_text, low, help)                                                             \
    ROW("steps", PD_OPTION_UINT, steps, default_text, low, 9007199254740992.0, 0, 0, 0, NULL,      \
        "steps", help)

static uint64_t duration_steps(const struct pd_schedule *schedule)
{
    return schedule->steps;
}

/* lr_t = base_lr * factor for t < steps, then base_lr; with steps = 0, base_lr * factor for ever.
 * Source: torch.optim.lr_scheduler.ConstantLR. */
static double constant_lr(const struct pd_schedule *schedule, double base_lr, uint64_t step)
{
    bool active = schedule->steps == 0 || step < schedule->steps;
    return active ? base_lr * schedule->factor : base_lr;
}

static const struct pd_option constant_options[] = {
    ROW("factor", PD_OPTION_REAL, factor, "1.0", 0, INFINITY, 0, 1, 0, NULL, "",
        "learning rate as a multiple of the optimizer's"),
    STEPS("0", 0, "how long the factor holds; 0: for ever"),
};

/* lr_t = base_lr * gamma^floor(t / step_size).
 * Source: torch.optim.lr_scheduler.StepLR. */
static double step_lr(const struct pd_schedule *schedule, double base_lr, uint64_t step)
{
    return base_lr * pow(schedule->gamma, (double)(step / schedule->step_size));
}

static const struct pd_option step_options[] = {
    ROW("step_size", PD_OPTION_UINT, step_size, "30", 1, 9007199254740992.0, 0, 0, 0, NULL, "steps",
        "steps between two decays"),
    ROW("gamma", PD_OPTION_REAL, gamma, "0.1", 0, INFINITY, 1, 1, 0, NULL, "",
        "factor of each decay"),
    STEPS("0", 0, "when the next schedule begins; 0: never"),
};

/* lr_t = base_lr * (start + (end - start) * min(t, steps) / steps).
 * Source: torch.optim.lr_scheduler.LinearLR, whose total_iters is `steps`. */
static double linear_lr(const struct pd_schedule *schedule, double base_lr, uint64_t step)
{
    double progress = step < schedule->steps ? (double)step / (double)schedule->steps : 1;
    double rise = schedule->end_factor - schedule->start_factor;
    return base_lr * (schedule->start_factor + rise * progress);
}

static const struct pd_option linear_options[] = {
    ROW("start_factor", PD_OPTION_REAL, start_factor, "0.3333333333333333", 0, INFINITY, 0, 1, 0,
        NULL, "", "multiple of the optimizer's learning rate at the beginning"),
    ROW("end_factor", PD_OPTION_REAL, end_factor, "1.0", 0, INFINITY, 0, 1, 0, NULL, "",
        "multiple of the optimizer's learning rate at the end"),
    STEPS("5", 1, "steps from start_factor to end_factor"),
};

/* lr_t = eta_min + (base_lr - eta_min) * (1 + cos(pi * t / t_max)) / 2, which climbs again past
 * t_max. Source: torch.optim.lr_scheduler.CosineAnnealingLR. */
static double cosine_lr(const struct pd_schedule *schedule, double base_lr, uint64_t step)
{
    double angle = M_PI * (double)step / (double)schedule->t_max;
    return schedule->eta_min + (base_lr - schedule->eta_min) * (1 + cos(angle)) / 2;
}

static uint64_t cosine_duration(const struct pd_schedule *schedule)
{
    return schedule->steps != 0 ? schedule->steps : schedule->t_max;
}

static const struct pd_option cosine_options[] = {
    ROW("t_max", PD_OPTION_UINT, t_max, "10000", 1, 9007199254740992.0, 0, 0, 0, NULL, "steps",
        "steps from the optimizer's learning rate down to eta_min"),
    ROW("eta_min", PD_OPTION_REAL, eta_min, "0", 0, INFINITY, 0, 1, 0, NULL, "",
        "least learning rate"),
    STEPS("0", 0, "when the next schedule begins; 0: after t_max"),
};

#define RULE(name, kind, lr, duration)                                                             \
    {                                                                                              \
#name, kind, name##_options,                                                               \
            sizeof name##_options / sizeof name##_options[0], lr, duration                         \
    }

static const struct pd_schedule_rule rules[] = {
    RULE(constant, PD_SCHEDULE_CONSTANT, constant_lr, duration_steps),
    RULE(step, PD_SCHEDULE_STEP, step_lr, duration_steps),
    RULE(linear, PD_SCHEDULE_LINEAR, linear_lr, duration_steps),
    RULE(cosine, PD_SCHEDULE_COSINE, cosine_lr, cosine_duration),
};
#define RULE_COUNT (sizeof rules / sizeof rules[0])

const struct pd_schedule_rule *pd_schedule_at(size_t index)
{
    return index < RULE_COUNT ? &rules[index] : NULL;
}

const struct pd_schedule_rule *pd_schedule_find(const char *name)
{
    for (size_t i = 0; i < RULE_COUNT; i++) {
        if (strcmp(rules[i].name, name) == 0) {
            return &rules[i];
        }
    }
    return NULL;
}

double pd_schedule_lr(const struct pd_schedule *schedules, size_t count, double base_lr,
                      uint64_t step)
{
    for (size_t i = 0; i < count; i++) {
        const struct pd_schedule *schedule = &schedules[i];
        PD_ASSERT((size_t)schedule->kind < RULE_COUNT);
        const struct pd_schedule_rule *rule = &rules[schedule->kind];
        PD_ASSERT(rule->kind == schedule->kind);

        uint64_t duration = rule->duration(schedule);
        if (i + 1 == count || duration == 0 || step < duration) {
            return rule->lr(schedule, base_lr, step);
        }
        step -= duration;
    }
    return base_lr;
}
