/* Learning-rate schedules, by optimizer step.
 * config -> [schedule] -> orders (rank 0 puts the rates into the step-close order). Pure.
 *
 * Schedules run one after the other, each counting from its own beginning; the last goes on for
 * ever. Formulas are the closed forms of torch.optim.lr_scheduler. */
#ifndef PD_SERVER_CORE_SCHEDULE_H
#define PD_SERVER_CORE_SCHEDULE_H

#include "server/core/option.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum pd_schedule_kind {
    PD_SCHEDULE_CONSTANT,
    PD_SCHEDULE_STEP,
    PD_SCHEDULE_LINEAR,
    PD_SCHEDULE_COSINE,
};

struct pd_schedule {
    enum pd_schedule_kind kind;
    uint64_t steps;      /* how long it runs before the next one begins; 0: as the kind says */
    double factor;       /* constant */
    uint64_t step_size;  /* step */
    double gamma;        /* step */
    double start_factor; /* linear */
    double end_factor;   /* linear */
    uint64_t t_max;      /* cosine */
    double eta_min;      /* cosine */
};

struct pd_schedule_rule {
    const char *name;
    enum pd_schedule_kind kind;
    const struct pd_option *options; /* into struct pd_schedule */
    uint32_t option_count;
    double (*lr)(const struct pd_schedule *schedule, double base_lr, uint64_t step);
    uint64_t (*duration)(const struct pd_schedule *schedule); /* 0: for ever */
};

const struct pd_schedule_rule *pd_schedule_find(const char *name);
const struct pd_schedule_rule *pd_schedule_at(size_t index);

/* The rate of optimizer step `step` (counted from 0) under `count` schedules in sequence; with none
 * it is base_lr. */
double pd_schedule_lr(const struct pd_schedule *schedules, size_t count, double base_lr,
                      uint64_t step);

#endif
