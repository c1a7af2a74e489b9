#include "server/core/schedule.h"

#include "common/assert.h"

#include <math.h>
#include <string.h>

/* Rows of a rule's table of options: a field of struct pd_schedule. */
#define FIELD(name, path, kind, as_default, about)                                                 \
    .key = name, .type = PD_OPTION_##kind, .offset = offsetof(struct pd_schedule, path),           \
    .default_text = as_default, .unit = "", .help = about
#define NUMBER(name, path, as_default, least, about)                                               \
    {                                                                                              \
        FIELD(name, path, REAL, as_default, about), .low = least, .high = INFINITY, .high_open = 1 \
    }
#define POSITIVE(name, path, as_default, about)                                                    \
    {                                                                                              \
        FIELD(name, path, REAL, as_default, about), .low_open = 1, .high = INFINITY,               \
                                                    .high_open = 1                                 \
    }
#define COUNT(name, path, as_default, least, about)                                                \
    {                                                                                              \
        FIELD(name, path, UINT, as_default, about), .low = least, .high = COUNT_MAX                \
    }
#define WORD(name, path, as_default, words, about)                                                 \
    {                                                                                              \
        FIELD(name, path, CHOICE, as_default, about), .choices = words                             \
    }
#define FLAG(name, path, as_default, about)                                                        \
    {                                                                                              \
        FIELD(name, path, BOOL, as_default, about)                                                 \
    }
#define STEPS_OR_EVER COUNT("steps", steps, "0", 0, "when the next schedule begins; 0: never")

#define BELOW_ONE(name, path, as_default, about)                                                   \
    {                                                                                              \
        FIELD(name, path, REAL, as_default, about), .high = 1, .high_open = 1                      \
    }
#define CYCLE_MOMENTUM(least, most)                                                                \
    FLAG("cycle_momentum", cycle_momentum, "true",                                                 \
         "move momentum, or beta1 of the Adam family, against the learning rate"),                 \
        BELOW_ONE("base_momentum", base_momentum, least, "momentum where the rate is highest"),    \
        BELOW_ONE("max_momentum", max_momentum, most, "momentum where the rate is lowest")

/* Whole numbers are bounded as doubles. */
#define COUNT_MAX 9007199254740992.0

static double smaller(double a, double b)
{
    return a < b ? a : b;
}

/* From 1 at 0 to 0 at 1, along half a cosine. */
static double half_cosine(double progress)
{
    return (1 + cos(M_PI * progress)) / 2;
}

/* How far apart the times of two steps are, in the schedule's unit; for whole epochs, of two steps
 * at which the rate may change. */
static double step_length(const struct pd_schedule *schedule)
{
    return schedule->unit == PD_UNIT_EPOCHS ? 1 / (double)schedule->steps_per_epoch : 1;
}

static uint64_t duration_steps(const struct pd_schedule *schedule)
{
    return schedule->steps;
}

/* lr_t = base_lr * factor for t < steps, then base_lr; with steps = 0, base_lr * factor for ever.
 * Source: torch.optim.lr_scheduler.ConstantLR. */
static double constant_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    bool active = schedule->steps == 0 || at < (double)schedule->steps;
    return active ? base_lr * schedule->factor : base_lr;
}

static const struct pd_option constant_options[] = {
    NUMBER("factor", factor, "1.0", 0, "learning rate as a multiple of the optimizer's"),
    COUNT("steps", steps, "0", 0, "how long the factor holds; 0: for ever"),
};

/* lr_t = base_lr * gamma^floor(t / step_size).
 * Source: torch.optim.lr_scheduler.StepLR. */
static double step_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    return base_lr * pow(schedule->gamma, floor(at / (double)schedule->step_size));
}

static const struct pd_option step_options[] = {
    COUNT("step_size", step_size, "30", 1, "steps between two decays"),
    POSITIVE("gamma", gamma, "0.1", "factor of each decay"),
    STEPS_OR_EVER,
};

/* lr_t = base_lr * gamma^(milestones at or before t).
 * Source: torch.optim.lr_scheduler.MultiStepLR. */
static double multistep_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    uint32_t decays = 0;
    for (uint32_t i = 0; i < schedule->milestones.count; i++) {
        decays += schedule->milestones.values[i] <= at;
    }
    return base_lr * pow(schedule->gamma, decays);
}

static const struct pd_option multistep_options[] = {
    {FIELD("milestones", milestones, REALS, "[]", "steps of the decays"), .high = INFINITY,
     .high_open = 1},
    POSITIVE("gamma", gamma, "0.1", "factor of each decay"),
    STEPS_OR_EVER,
};

/* lr_t = base_lr * gamma^t.
 * Source: torch.optim.lr_scheduler.ExponentialLR. */
static double exponential_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    return base_lr * pow(schedule->gamma, at);
}

static const struct pd_option exponential_options[] = {
    POSITIVE("gamma", gamma, "0.99", "factor of each step"),
    STEPS_OR_EVER,
};

/* lr_t = base_lr * (start + (end - start) * min(t + offset, steps) / steps).
 * Source: torch.optim.lr_scheduler.LinearLR, whose total_iters is `steps`. Warmups by t / T begin
 * at 0, those by (t + 1) / T at 0 with an offset of 1. */
static double linear_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    double progress = smaller((at + (double)schedule->offset) / (double)schedule->steps, 1);
    double rise = schedule->end_factor - schedule->start_factor;
    return base_lr * (schedule->start_factor + rise * progress);
}

static const struct pd_option linear_options[] = {
    NUMBER("start_factor", start_factor, "0.3333333333333333", 0,
           "multiple of the optimizer's learning rate at the beginning"),
    NUMBER("end_factor", end_factor, "1.0", 0,
           "multiple of the optimizer's learning rate at the end"),
    COUNT("steps", steps, "5", 1, "steps from start_factor to end_factor"),
    COUNT("offset", offset, "0", 0, "steps of it that have passed when it begins"),
};

/* lr_t = lr_end + (base_lr - lr_end) * (1 - min(t, steps) / steps)^power.
 * Source: torch.optim.lr_scheduler.PolynomialLR, whose total_iters is `steps`; lr_end as in
 * transformers.get_polynomial_decay_schedule_with_warmup. */
static double polynomial_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    double left = 1 - smaller(at / (double)schedule->steps, 1);
    return schedule->lr_end + (base_lr - schedule->lr_end) * pow(left, schedule->power);
}

static const struct pd_option polynomial_options[] = {
    POSITIVE("power", power, "1.0", "exponent of what is left"),
    NUMBER("lr_end", lr_end, "0", 0, "learning rate at the end and after it"),
    COUNT("steps", steps, "5", 1, "steps from the optimizer's learning rate to lr_end"),
};

/* lr_t = eta_min + (base_lr - eta_min) * (1 + cos(2 * pi * num_cycles * t / t_max)) / 2, which
 * climbs again past t_max. Source: torch.optim.lr_scheduler.CosineAnnealingLR; num_cycles as in
 * transformers.get_cosine_schedule_with_warmup. */
static double cosine_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    double progress = 2 * schedule->num_cycles * at / (double)schedule->t_max;
    return schedule->eta_min + (base_lr - schedule->eta_min) * half_cosine(progress);
}

static uint64_t cosine_duration(const struct pd_schedule *schedule)
{
    return schedule->steps != 0 ? schedule->steps : schedule->t_max;
}

static const struct pd_option cosine_options[] = {
    COUNT("t_max", t_max, "10000", 1, "steps from the optimizer's learning rate to eta_min"),
    NUMBER("eta_min", eta_min, "0", 0, "least learning rate"),
    POSITIVE("num_cycles", num_cycles, "0.5", "waves in t_max steps; a half one ends at eta_min"),
    COUNT("steps", steps, "0", 0, "when the next schedule begins; 0: after t_max"),
};

/* Cycle number i = 0, 1, ... has T_i = t_0 * t_mult^i steps, and at its step t
 * lr = eta_min + (base_lr * cycle_decay^i - eta_min) * (1 + cos(pi * t / T_i)) / 2;
 * after cycle_limit cycles lr = eta_min.
 * Source: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts; Loshchilov and Hutter 2017,
 * equation 5 (https://arxiv.org/abs/1608.03983); cycle_decay and cycle_limit as in
 * timm.scheduler.CosineLRScheduler, whose warmup without prefix is `offset`. */
static double cosine_warm_restarts_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    double length = schedule->restarts.t_0;
    double growth = schedule->restarts.t_mult;
    double left = at + (double)schedule->offset;
    double cycle = 0;

    if (growth == 1) {
        cycle = floor(left / length);
        left -= cycle * length;
    } else {
        /* Near the cycle in one leap, because there may be many, and exactly there by walking. */
        cycle = fmax(floor(log1p(left / length * (growth - 1)) / log(growth)) - 1, 0);
        left -= length * (pow(growth, cycle) - 1) / (growth - 1);
        length *= pow(growth, cycle);
    }
    while (left >= length) {
        left -= length;
        length *= growth;
        cycle += 1;
    }
    if (schedule->restarts.cycle_limit != 0 && cycle >= (double)schedule->restarts.cycle_limit) {
        return schedule->eta_min;
    }
    double top = base_lr * pow(schedule->restarts.cycle_decay, cycle);
    return schedule->eta_min + (top - schedule->eta_min) * half_cosine(left / length);
}

static const struct pd_option cosine_warm_restarts_options[] = {
    {FIELD("t_0", restarts.t_0, REAL, "10", "steps of the first cycle"), .low = 1,
     .high = COUNT_MAX},
    {FIELD("t_mult", restarts.t_mult, REAL, "1", "length of a cycle in lengths of the one before"),
     .low = 1, .high = INFINITY, .high_open = 1},
    NUMBER("eta_min", eta_min, "0", 0, "least learning rate"),
    POSITIVE("cycle_decay", restarts.cycle_decay, "1.0", "factor of the top of each next cycle"),
    COUNT("cycle_limit", restarts.cycle_limit, "0", 0, "cycles before it stays at eta_min; 0: any"),
    COUNT("offset", offset, "0", 0, "steps of it that have passed when it begins"),
    STEPS_OR_EVER,
};

static const char *const anneal_words[] = {"cos", "linear", NULL};

/* Up from max_lr / div_factor to max_lr in pct_start of total_steps and down to
 * max_lr / div_factor / final_div_factor at the end, where it stays; three_phase: down to where it
 * began in as many steps as up, and only then further down. The last step of a phase, not the first
 * of the next, has its end value. The momentum goes the other way: from max_momentum down to
 * base_momentum, up again, and stays.
 * Source: torch.optim.lr_scheduler.OneCycleLR. */
static double onecycle_at(const struct pd_schedule *schedule, const double values[4], double at)
{
    double total = (double)schedule->onecycle.total_steps;
    double rise = schedule->onecycle.pct_start * total;
    double step = step_length(schedule);
    const double ends[] = {rise - step,
                           schedule->onecycle.three_phase ? 2 * (rise - step) : total - step,
                           total - step};
    double begin = 0;

    for (size_t phase = 0; phase < 3; phase++) {
        if (at <= ends[phase] && ends[phase] > begin) {
            double progress = (at - begin) / (ends[phase] - begin);
            double left = schedule->onecycle.anneal_strategy == PD_ANNEAL_COS
                              ? half_cosine(progress)
                              : 1 - progress;
            return values[phase + 1] + (values[phase] - values[phase + 1]) * left;
        }
        begin = ends[phase];
    }
    return values[3];
}

static double onecycle_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    double max_lr = isnan(schedule->onecycle.max_lr) ? base_lr : schedule->onecycle.max_lr;
    double initial_lr = max_lr / schedule->onecycle.div_factor;
    double min_lr = initial_lr / schedule->onecycle.final_div_factor;
    const double lrs[] = {initial_lr, max_lr, schedule->onecycle.three_phase ? initial_lr : min_lr,
                          min_lr};

    return onecycle_at(schedule, lrs, at);
}

static double onecycle_height(const struct pd_schedule *schedule, double at)
{
    static const double heights[] = {0, 1, 0, 0};

    return onecycle_at(schedule, heights, at);
}

static uint64_t onecycle_duration(const struct pd_schedule *schedule)
{
    return schedule->onecycle.total_steps;
}

static const struct pd_option onecycle_options[] = {
    {FIELD("max_lr", onecycle.max_lr, REAL, "null",
           "learning rate at the top, for all groups; null: each group's lr"),
     .nullable = 1, .low_open = 1, .high = INFINITY, .high_open = 1},
    COUNT("total_steps", onecycle.total_steps, "10000", 1, "steps of the whole cycle"),
    {FIELD("pct_start", onecycle.pct_start, REAL, "0.3", "share of the steps that goes up"),
     .high = 1},
    WORD("anneal_strategy", onecycle.anneal_strategy, "cos", anneal_words, "shape of both ways"),
    POSITIVE("div_factor", onecycle.div_factor, "25", "max_lr over the first learning rate"),
    POSITIVE("final_div_factor", onecycle.final_div_factor, "1e4",
             "first learning rate over the last"),
    FLAG("three_phase", onecycle.three_phase, "false", "come down in two phases"),
    CYCLE_MOMENTUM("0.85", "0.95"),
};

static const char *const cycle_words[] = {"triangular", "triangular2", "exp_range", NULL};

/* Cycle c = 0, 1, ... climbs in step_size_up steps from base_lr to max_lr and falls in
 * step_size_down steps, its height times 1 (triangular), 2^-c (triangular2) or gamma^t (exp_range).
 * The momentum falls from max_momentum to base_momentum while the rate climbs, by the same share.
 * Source: torch.optim.lr_scheduler.CyclicLR. */
static double cyclic_height(const struct pd_schedule *schedule, double at)
{
    double up = (double)schedule->cyclic.step_size_up;
    double down =
        schedule->cyclic.step_size_down != 0 ? (double)schedule->cyclic.step_size_down : up;
    double cycle = floor(at / (up + down));
    double in_cycle = at - cycle * (up + down);
    double height = in_cycle <= up ? in_cycle / up : (up + down - in_cycle) / down;

    if (schedule->cyclic.mode == PD_CYCLE_TRIANGULAR2) {
        height *= pow(2, -cycle);
    } else if (schedule->cyclic.mode == PD_CYCLE_EXP_RANGE) {
        height *= pow(schedule->gamma, at);
    }
    return height;
}

static double cyclic_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    double max_lr = isnan(schedule->cyclic.max_lr) ? base_lr : schedule->cyclic.max_lr;
    double range = max_lr - schedule->cyclic.base_lr;

    return schedule->cyclic.base_lr + range * cyclic_height(schedule, at);
}

static const struct pd_option cyclic_options[] = {
    NUMBER("base_lr", cyclic.base_lr, "1e-3", 0, "least learning rate, for all groups"),
    {FIELD("max_lr", cyclic.max_lr, REAL, "null",
           "learning rate at the top of the first cycle, for all groups; null: each group's lr"),
     .nullable = 1, .high = INFINITY, .high_open = 1},
    COUNT("step_size_up", cyclic.step_size_up, "2000", 1, "steps that climb"),
    COUNT("step_size_down", cyclic.step_size_down, "0", 0, "steps that fall; 0: as many as climb"),
    WORD("mode", cyclic.mode, "triangular", cycle_words, "how tops change"),
    POSITIVE("gamma", gamma, "1.0", "factor of each step in exp_range"),
    CYCLE_MOMENTUM("0.8", "0.9"),
    STEPS_OR_EVER,
};

/* lr_t = base_lr / sqrt((t + timescale) / timescale).
 * Source: transformers.get_inverse_sqrt_schedule after its warmup. */
static double inverse_sqrt_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    return base_lr / sqrt((at + schedule->timescale) / schedule->timescale);
}

static const struct pd_option inverse_sqrt_options[] = {
    POSITIVE("timescale", timescale, "10000",
             "a third of the steps to half of the learning rate, such as those of the warmup"),
    STEPS_OR_EVER,
};

static const char *const ramp_words[] = {"linear", "cosine", "1-sqrt", NULL};

/* Share of the way up (progress 0 to 1) that a warmup has made, and that a decay still has to go.
 */
static double warmup_share(int ramp, double progress)
{
    switch (ramp) {
    case PD_RAMP_COSINE:
        return half_cosine(1 - progress);
    case PD_RAMP_1_SQRT:
        return 1 - sqrt(1 - progress);
    default:
        return progress;
    }
}

static double decay_share(int ramp, double num_cycles, double progress)
{
    switch (ramp) {
    case PD_RAMP_COSINE:
        return half_cosine(2 * num_cycles * progress);
    case PD_RAMP_1_SQRT:
        return 1 - sqrt(progress);
    default:
        return 1 - progress;
    }
}

/* Warmup to base_lr, base_lr for num_stable_steps, decay to base_lr * min_lr_ratio, which stays.
 * Source: transformers.get_wsd_schedule; without warmup_from_min as up to its version 4.44. */
static double wsd_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    double warmup = (double)schedule->wsd.num_warmup_steps;
    double stable = (double)schedule->wsd.num_stable_steps;
    double decay = (double)schedule->wsd.num_decay_steps;
    double least = schedule->wsd.min_lr_ratio;

    if (at < warmup) {
        double from = schedule->wsd.warmup_from_min ? least : 0;
        double share = warmup_share(schedule->wsd.warmup_type, at / warmup);
        return base_lr * (from + (1 - from) * share);
    }
    at -= warmup;
    if (at < stable) {
        return base_lr;
    }
    at -= stable;
    if (at < decay) {
        double share = decay_share(schedule->wsd.decay_type, schedule->num_cycles, at / decay);
        return base_lr * (least + (1 - least) * share);
    }
    return base_lr * least;
}

static uint64_t wsd_duration(const struct pd_schedule *schedule)
{
    return schedule->wsd.num_warmup_steps + schedule->wsd.num_stable_steps +
           schedule->wsd.num_decay_steps;
}

static const struct pd_option wsd_options[] = {
    COUNT("num_warmup_steps", wsd.num_warmup_steps, "0", 0, "steps up"),
    COUNT("num_stable_steps", wsd.num_stable_steps, "0", 0, "steps at the learning rate"),
    COUNT("num_decay_steps", wsd.num_decay_steps, "10000", 1, "steps down"),
    WORD("warmup_type", wsd.warmup_type, "linear", ramp_words, "shape of the way up"),
    WORD("decay_type", wsd.decay_type, "cosine", ramp_words, "shape of the way down"),
    {FIELD("min_lr_ratio", wsd.min_lr_ratio, REAL, "0", "learning rate at the end, as a share"),
     .high = 1},
    POSITIVE("num_cycles", num_cycles, "0.5", "waves of a cosine decay; a half one ends low"),
    FLAG("warmup_from_min", wsd.warmup_from_min, "true", "begin at min_lr_ratio instead of zero"),
};

static const char *const interpolation_words[] = {"linear", "cosine", "none", NULL};

/* lr = base_lr times the value at t, on the way from the point before to the next one: along a line
 * or half a cosine, or without any way. Before the first point it is the first's, after the last
 * the last's. */
static double piecewise_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    const struct pd_option_points *points = &schedule->points;
    uint32_t next = 0;

    while (next < points->count && points->pairs[next][0] <= at) {
        next++;
    }
    if (points->count == 0) {
        return base_lr;
    }
    const double *to = points->pairs[next < points->count ? next : next - 1];
    const double *from = points->pairs[next > 0 ? next - 1 : 0];
    if (to == from || schedule->interpolation == PD_INTERPOLATION_NONE) {
        return base_lr * from[1];
    }
    double progress = (at - from[0]) / (to[0] - from[0]);
    double left =
        schedule->interpolation == PD_INTERPOLATION_COSINE ? half_cosine(progress) : 1 - progress;
    return base_lr * (to[1] + (from[1] - to[1]) * left);
}

static const struct pd_option piecewise_options[] = {
    {FIELD("points", points, POINTS, "[[0, 1]]",
           "steps, and multiples of the optimizer's learning rate there"),
     .high = INFINITY, .high_open = 1},
    WORD("interpolation", interpolation, "linear", interpolation_words,
         "way from one point to the next"),
    STEPS_OR_EVER,
};

/* From the rate that the schedule before ends with down to end_factor times that, which stays. */
static double cooldown_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    double progress = smaller(at / (double)schedule->steps, 1);
    double share = decay_share(schedule->shape, 0.5, progress);

    return base_lr * (schedule->end_factor + (1 - schedule->end_factor) * share);
}

static const struct pd_option cooldown_options[] = {
    COUNT("steps", steps, "1000", 1, "steps from the rate before it to end_factor"),
    WORD("shape", shape, "linear", ramp_words, "shape of the way down"),
    NUMBER("end_factor", end_factor, "0", 0, "learning rate at the end, as a share of the first"),
};

/* The optimizer's rate times `factor` for each reduction, but not below min_lr; a reduction of less
 * than eps is none.
 * Source: torch.optim.lr_scheduler.ReduceLROnPlateau. */
static double plateau_lr(const struct pd_schedule *schedule, double base_lr, double at)
{
    uint64_t reduction_count = (uint64_t)at;

    for (uint64_t reduction = 0; reduction < reduction_count; reduction++) {
        double reduced = fmax(base_lr * schedule->plateau.factor, schedule->plateau.min_lr);
        if (!(base_lr - reduced > schedule->plateau.eps)) {
            break;
        }
        base_lr = reduced;
    }
    return base_lr;
}

static const struct pd_option plateau_options[] = {
    {FIELD("metric", plateau.metric, TEXT, "val_loss", "what workers report that it goes by"),
     .high = PD_NAME_BYTES_MAX},
    WORD("mode", plateau.watch.mode, "min", pd_watch_modes, "whether less or more is better"),
    BELOW_ONE("factor", plateau.factor, "0.1", "what the learning rate is multiplied by"),
    COUNT("patience", plateau.watch.patience, "10", 0,
          "reports in a row without improvement that are put up with"),
    NUMBER("threshold", plateau.watch.threshold, "1e-4", 0, "least improvement that counts"),
    WORD("threshold_mode", plateau.watch.threshold_mode, "rel", pd_watch_threshold_modes,
         "rel: the threshold is a share of the best; abs: a difference"),
    COUNT("cooldown", plateau.cooldown, "0", 0, "reports after a reduction that are not counted"),
    NUMBER("min_lr", plateau.min_lr, "0", 0, "least learning rate"),
    NUMBER("eps", plateau.eps, "1e-8", 0, "least reduction"),
    STEPS_OR_EVER,
};

static const char *const unit_words[] = {"steps", "epochs", "whole_epochs", NULL};

const struct pd_option pd_schedule_common_options[] = {
    WORD("unit", unit, "steps", unit_words,
         "what its steps are: steps; epochs, the rate changing with every step; whole_epochs, the "
         "rate changing between epochs only"),
    FLAG("chain", chain, "false",
         "run together with the schedule before it, multiplying its rates, not after it"),
};
const size_t pd_schedule_common_option_count =
    sizeof pd_schedule_common_options / sizeof pd_schedule_common_options[0];

#define RULE(rule_name, rule_kind, about, ...)                                                     \
    {                                                                                              \
        .name = #rule_name, .help = about, .kind = rule_kind, .options = rule_name##_options,      \
        .option_count = sizeof rule_name##_options / sizeof rule_name##_options[0],                \
        .lr = rule_name##_lr, __VA_ARGS__                                                          \
    }

static const struct pd_schedule_rule rules[] = {
    RULE(constant, PD_SCHEDULE_CONSTANT, "torch ConstantLR", .duration = duration_steps),
    RULE(step, PD_SCHEDULE_STEP, "torch StepLR", .duration = duration_steps),
    RULE(multistep, PD_SCHEDULE_MULTISTEP, "torch MultiStepLR", .duration = duration_steps),
    RULE(exponential, PD_SCHEDULE_EXPONENTIAL, "torch ExponentialLR", .duration = duration_steps),
    RULE(linear, PD_SCHEDULE_LINEAR, "torch LinearLR: warmup, or a way down",
         .duration = duration_steps),
    RULE(polynomial, PD_SCHEDULE_POLYNOMIAL, "torch PolynomialLR; lr_end as in transformers",
         .duration = duration_steps),
    RULE(cosine, PD_SCHEDULE_COSINE, "torch CosineAnnealingLR; num_cycles as in transformers",
         .duration = cosine_duration),
    RULE(cosine_warm_restarts, PD_SCHEDULE_COSINE_WARM_RESTARTS,
         "torch CosineAnnealingWarmRestarts; timm CosineLRScheduler by its keys",
         .duration = duration_steps),
    RULE(onecycle, PD_SCHEDULE_ONECYCLE, "torch OneCycleLR", .height = onecycle_height,
         .duration = onecycle_duration),
    RULE(cyclic, PD_SCHEDULE_CYCLIC, "torch CyclicLR", .height = cyclic_height,
         .duration = duration_steps),
    RULE(inverse_sqrt, PD_SCHEDULE_INVERSE_SQRT,
         "transformers get_inverse_sqrt_schedule, after its warmup", .duration = duration_steps),
    RULE(wsd, PD_SCHEDULE_WSD, "transformers get_wsd_schedule: warmup, stable, decay",
         .duration = wsd_duration),
    RULE(piecewise, PD_SCHEDULE_PIECEWISE, "from point to point", .duration = duration_steps),
    RULE(cooldown, PD_SCHEDULE_COOLDOWN, "down from the rate of the schedule before it",
         .continues = true, .duration = duration_steps),
    RULE(plateau, PD_SCHEDULE_PLATEAU, "torch ReduceLROnPlateau, by a metric that workers report",
         .duration = duration_steps),
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

static const struct pd_schedule_rule *rule_of(const struct pd_schedule *schedule)
{
    PD_ASSERT((size_t)schedule->kind < RULE_COUNT);
    PD_ASSERT(rules[schedule->kind].kind == schedule->kind);
    return &rules[schedule->kind];
}

/* The schedule's own time at its step `step`. */
static double own_time(const struct pd_schedule *schedule, uint64_t step)
{
    switch (schedule->unit) {
    case PD_UNIT_EPOCHS:
        return (double)step / (double)schedule->steps_per_epoch;
    case PD_UNIT_WHOLE_EPOCHS:
        return (double)(step / schedule->steps_per_epoch);
    default:
        return (double)step;
    }
}

static uint64_t steps_of(const struct pd_schedule *schedule)
{
    uint64_t duration = rule_of(schedule)->duration(schedule);
    uint64_t unit = schedule->unit == PD_UNIT_STEPS ? 1 : schedule->steps_per_epoch;

    return duration > UINT64_MAX / unit ? UINT64_MAX : duration * unit;
}

size_t pd_schedule_together(const struct pd_schedule *schedules, size_t count)
{
    size_t together = count > 0;

    while (together < count && schedules[together].chain) {
        together++;
    }
    return together;
}

uint64_t pd_schedule_duration(const struct pd_schedule *schedules, size_t count)
{
    size_t together = pd_schedule_together(schedules, count);
    uint64_t longest = 0;

    for (size_t i = 0; i < together; i++) {
        uint64_t steps = steps_of(&schedules[i]);
        if (steps == 0) {
            return 0;
        }
        longest = steps > longest ? steps : longest;
    }
    return longest;
}

/* The rate of `count` schedules that run together, at their step `step`. */
static double lr_together(const struct pd_schedule *schedules, const struct pd_plateau *plateaus,
                          size_t count, double base_lr, uint64_t step)
{
    for (size_t i = 0; i < count; i++) {
        double at = own_time(&schedules[i], step);
        if (schedules[i].kind == PD_SCHEDULE_PLATEAU) {
            at = plateaus != NULL ? (double)plateaus[i].reductions : 0;
        }
        base_lr = rule_of(&schedules[i])->lr(&schedules[i], base_lr, at);
    }
    return base_lr;
}

double pd_schedule_lr_reduced(const struct pd_schedule *schedules,
                              const struct pd_plateau *plateaus, size_t count, double base_lr,
                              uint64_t step)
{
    double before_lr = base_lr; /* what the schedules so far end with */
    size_t together;

    for (size_t i = 0; i < count; i += together) {
        const struct pd_schedule *first = &schedules[i];
        const struct pd_plateau *reduced = plateaus != NULL ? &plateaus[i] : NULL;
        uint64_t duration = pd_schedule_duration(first, count - i);
        double begin_lr = rule_of(first)->continues ? before_lr : base_lr;

        together = pd_schedule_together(first, count - i);
        if (i + together == count || duration == 0 || step < duration) {
            return lr_together(first, reduced, together, begin_lr, step);
        }
        before_lr = lr_together(first, reduced, together, begin_lr, duration);
        step -= duration;
    }
    return base_lr;
}

double pd_schedule_lr(const struct pd_schedule *schedules, size_t count, double base_lr,
                      uint64_t step)
{
    return pd_schedule_lr_reduced(schedules, NULL, count, base_lr, step);
}

/* The schedules that run together in `*step`, which becomes their own step; gives the first. */
static size_t find_running(const struct pd_schedule *schedules, size_t count, uint64_t *step,
                           size_t *together)
{
    size_t first = 0;

    *together = pd_schedule_together(schedules, count);
    while (first + *together < count) {
        uint64_t duration = pd_schedule_duration(schedules + first, count - first);
        if (duration == 0 || *step < duration) {
            break;
        }
        *step -= duration;
        first += *together;
        *together = pd_schedule_together(schedules + first, count - first);
    }
    return first;
}

bool pd_schedule_runs(const struct pd_schedule *schedules, size_t count, size_t index,
                      uint64_t step)
{
    size_t together;
    size_t first = find_running(schedules, count, &step, &together);

    return index >= first && index < first + together;
}

bool pd_schedule_cycles_momentum(const struct pd_schedule *schedule)
{
    return rule_of(schedule)->height != NULL && schedule->cycle_momentum;
}

struct pd_momentum_range pd_schedule_momentum_range(const struct pd_schedule *schedule,
                                                    const struct pd_momentum_range *range)
{
    return (struct pd_momentum_range){
        .base = isnan(range->base) ? schedule->base_momentum : range->base,
        .max = isnan(range->max) ? schedule->max_momentum : range->max,
    };
}

double pd_schedule_momentum(const struct pd_schedule *schedules, size_t count,
                            const struct pd_momentum_range *range, uint64_t step)
{
    double momentum = NAN;
    size_t together;
    size_t first = find_running(schedules, count, &step, &together);

    for (size_t i = first; i < first + together; i++) {
        if (pd_schedule_cycles_momentum(&schedules[i])) {
            struct pd_momentum_range own = pd_schedule_momentum_range(&schedules[i], range);
            double height =
                rule_of(&schedules[i])->height(&schedules[i], own_time(&schedules[i], step));
            momentum = own.max - (own.max - own.base) * height;
        }
    }
    return momentum;
}

/* ---- Plateaus ---- */

void pd_plateau_init(struct pd_plateau *plateau, const struct pd_schedule *schedule)
{
    *plateau = (struct pd_plateau){0};
    pd_watch_init(&plateau->watch, &schedule->plateau.watch);
}

bool pd_plateau_take(struct pd_plateau *plateau, const struct pd_schedule *schedule, double value)
{
    pd_watch_take(&plateau->watch, &schedule->plateau.watch, value);
    if (plateau->cooling > 0) {
        plateau->cooling--;
        plateau->watch.bad_count = 0;
    }
    if (plateau->watch.bad_count <= schedule->plateau.watch.patience) {
        return false;
    }
    plateau->reductions++;
    plateau->cooling = schedule->plateau.cooldown;
    plateau->watch.bad_count = 0;
    return true;
}
