/* Learning-rate schedules, by optimizer step.
 * config -> [schedule] -> orders (rank 0 puts the rates into the step-close order). Pure.
 *
 * Schedules run one after the other, each counting from its own beginning; the last goes on for
 * ever. One that is chained runs beside the one before it and has the other's rate as its base, so
 * that factors multiply; together they last as long as the longest of them. Formulas are the closed
 * forms of torch.optim.lr_scheduler unless a rule says otherwise. */
#ifndef PD_SERVER_CORE_SCHEDULE_H
#define PD_SERVER_CORE_SCHEDULE_H

#include "server/core/option.h"
#include "server/core/watch.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum pd_schedule_kind {
    PD_SCHEDULE_CONSTANT,
    PD_SCHEDULE_STEP,
    PD_SCHEDULE_MULTISTEP,
    PD_SCHEDULE_EXPONENTIAL,
    PD_SCHEDULE_LINEAR,
    PD_SCHEDULE_POLYNOMIAL,
    PD_SCHEDULE_COSINE,
    PD_SCHEDULE_COSINE_WARM_RESTARTS,
    PD_SCHEDULE_ONECYCLE,
    PD_SCHEDULE_CYCLIC,
    PD_SCHEDULE_INVERSE_SQRT,
    PD_SCHEDULE_WSD,
    PD_SCHEDULE_PIECEWISE,
    PD_SCHEDULE_COOLDOWN,
    PD_SCHEDULE_PLATEAU,
};

/* Words of CHOICE options, in their order. */
enum pd_schedule_anneal { PD_ANNEAL_COS, PD_ANNEAL_LINEAR };
enum pd_schedule_cycle { PD_CYCLE_TRIANGULAR, PD_CYCLE_TRIANGULAR2, PD_CYCLE_EXP_RANGE };
enum pd_schedule_ramp { PD_RAMP_LINEAR, PD_RAMP_COSINE, PD_RAMP_1_SQRT };
enum pd_schedule_interpolation {
    PD_INTERPOLATION_LINEAR,
    PD_INTERPOLATION_COSINE,
    PD_INTERPOLATION_NONE,
};
/* What a schedule counts: steps; epochs, of which a step is a part; or epochs that are over, so
 * that the rate changes only between them. */
enum pd_schedule_unit { PD_UNIT_STEPS, PD_UNIT_EPOCHS, PD_UNIT_WHOLE_EPOCHS };

/* Parameters of one schedule, under the field's names. A rule reads those its options name. "Steps"
 * of a rule are in the schedule's unit. */
struct pd_schedule {
    enum pd_schedule_kind kind;
    int unit;                 /* enum pd_schedule_unit */
    uint64_t steps_per_epoch; /* for units other than steps */
    bool chain;               /* runs beside the one before it */

    uint64_t steps;      /* how long it runs before the next one begins; 0: as the kind says */
    double factor;       /* constant */
    uint64_t step_size;  /* step */
    double gamma;        /* step, multistep, exponential, cyclic */
    double start_factor; /* linear */
    double end_factor;   /* linear, cooldown */
    uint64_t offset;     /* linear, cosine_warm_restarts */
    double power;        /* polynomial */
    double lr_end;       /* polynomial */
    uint64_t t_max;      /* cosine */
    double num_cycles;   /* cosine, wsd */
    double eta_min;      /* cosine, cosine_warm_restarts */
    struct {
        double t_0, t_mult, cycle_decay;
        uint64_t cycle_limit; /* 0: none */
    } restarts;
    struct {
        double max_lr, pct_start, div_factor, final_div_factor;
        uint64_t total_steps;
        int anneal_strategy; /* enum pd_schedule_anneal */
        bool three_phase;
    } onecycle;
    bool cycle_momentum; /* onecycle, cyclic */
    double base_momentum, max_momentum;
    struct {
        double base_lr, max_lr;
        uint64_t step_size_up;
        uint64_t step_size_down; /* 0: as up */
        int mode;                /* enum pd_schedule_cycle */
    } cyclic;
    double timescale; /* inverse_sqrt */
    struct {
        uint64_t num_warmup_steps, num_stable_steps, num_decay_steps;
        int warmup_type, decay_type; /* enum pd_schedule_ramp */
        double min_lr_ratio;
        bool warmup_from_min;
    } wsd;
    struct {
        char metric[PD_NAME_BYTES_MAX + 1];
        struct pd_watch_options watch;
        double factor, min_lr, eps;
        uint64_t cooldown; /* reports */
    } plateau;
    int shape;                         /* cooldown: enum pd_schedule_ramp */
    int interpolation;                 /* piecewise: enum pd_schedule_interpolation */
    struct pd_option_points points;    /* piecewise */
    struct pd_option_reals milestones; /* multistep */
};

/* Between what a schedule moves the momentum: at the highest rate and at the lowest; NaN: as the
 * schedule says. */
struct pd_momentum_range {
    double base;
    double max;
};

struct pd_schedule_rule {
    const char *name;
    const char *help; /* one line: whose rule it is */
    enum pd_schedule_kind kind;
    const struct pd_option *options; /* into struct pd_schedule */
    uint32_t option_count;
    /* Whether its base rate is the one that the schedules before it end with, instead of the
     * optimizer's. */
    bool continues;
    /* The rate at its own time `at`: in its unit, or of a plateau the reductions so far. */
    double (*lr)(const struct pd_schedule *schedule, double base_lr, double at);
    /* How far the rate has then come from its lowest to its highest, 0 to 1; the momentum, or beta1
     * of the Adam family, is as far on its way back. NULL: it is never set. */
    double (*height)(const struct pd_schedule *schedule, double at);
    uint64_t (*duration)(const struct pd_schedule *schedule); /* in its unit; 0: for ever */
};

const struct pd_schedule_rule *pd_schedule_find(const char *name);
const struct pd_schedule_rule *pd_schedule_at(size_t index);

/* Options that every schedule has, into struct pd_schedule. */
extern const struct pd_option pd_schedule_common_options[];
extern const size_t pd_schedule_common_option_count;

/* The rate of optimizer step `step` (counted from 0) under `count` schedules in sequence; with none
 * it is base_lr. */
double pd_schedule_lr(const struct pd_schedule *schedules, size_t count, double base_lr,
                      uint64_t step);

/* What a plateau has come to. */
struct pd_plateau {
    struct pd_watch watch;
    uint64_t cooling;    /* reports to come that are not counted */
    uint64_t reductions; /* of the rate, so far */
};

void pd_plateau_init(struct pd_plateau *plateau, const struct pd_schedule *schedule);
/* Take a report of the plateau's metric; true if the rate is to be reduced from now on.
 * Source: torch.optim.lr_scheduler.ReduceLROnPlateau. */
bool pd_plateau_take(struct pd_plateau *plateau, const struct pd_schedule *schedule, double value);

/* pd_schedule_lr with the plateaus among the schedules where they are; `plateaus` has one item for
 * each schedule. */
double pd_schedule_lr_reduced(const struct pd_schedule *schedules,
                              const struct pd_plateau *plateaus, size_t count, double base_lr,
                              uint64_t step);

/* Whether the schedule at `index` runs in that step. */
bool pd_schedule_runs(const struct pd_schedule *schedules, size_t count, size_t index,
                      uint64_t step);

/* The momentum of that step within `range`, or NaN where it stays as configured. */
double pd_schedule_momentum(const struct pd_schedule *schedules, size_t count,
                            const struct pd_momentum_range *range, uint64_t step);
/* The range with the schedule's own bounds for those it leaves open. */
struct pd_momentum_range pd_schedule_momentum_range(const struct pd_schedule *schedule,
                                                    const struct pd_momentum_range *range);

/* Whether a schedule sets the momentum in some step. */
bool pd_schedule_cycles_momentum(const struct pd_schedule *schedule);

/* How many of the schedules run together from the beginning of the first; and for how many steps, 0
 * is for ever. */
size_t pd_schedule_together(const struct pd_schedule *schedules, size_t count);
uint64_t pd_schedule_duration(const struct pd_schedule *schedules, size_t count);

#endif
