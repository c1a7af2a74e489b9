/* Every key of every optimizer and schedule reaches the arithmetic of a daemon: training with
 * another value of it comes to something else. What it should come to, replay and the unit tests
 * say; that no key is left out here, the tables of options. */
#include "server/core/optimizer.h"
#include "server/core/schedule.h"
#include "tests/support/suite.h"
#include "tests/support/trial.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEP_COUNT 6
#define RATE_COUNT 60

/* Another value of a key. */
struct change {
    const char *rule; /* NULL: any */
    const char *key;
    const char *beside; /* what else the rule is told, with it and without */
    const char *changed;
    const char *first; /* its value without the change; NULL: the default */
};

static const struct change *find_change(const struct change *changes, size_t count,
                                        const char *rule, const char *key)
{
    for (size_t i = 0; i < count; i++) {
        if ((changes[i].rule == NULL || strcmp(changes[i].rule, rule) == 0) &&
            strcmp(changes[i].key, key) == 0) {
            return &changes[i];
        }
    }
    ck_abort_msg("no other value of %s, a key of %s: add one", key, rule);
    return NULL;
}

/* ---- Optimizers ---- */

/* One with rows and columns enough to be factored, one that never has a gradient but 0. */
static const struct trial_tensor model[] = {
    {"matrix", 2, {18, 17}}, {"vector", 1, {5}}, {"still", 1, {3}}};
#define TENSOR_COUNT 3u
#define ELEMENT_COUNT 314u

/* The first change that suits a rule and key is taken. */
static const struct change optimizer_changes[] = {
    {"adafactor", "lr", "relative_step: false", "lr: 0.2", "lr: 0.1"},
    {"adafactor", "eps", "", "eps: [1e-3, 1e-1]", NULL},
    {"adafactor", "relative_step", "", "relative_step: false, lr: 0.05", NULL},
    {"adafactor_timm", "lr", "", "lr: 0.2", "lr: 0.1"},
    {"adafactor_timm", "eps", "", "eps: 1e-2", NULL},
    {"adafactor_timm", "eps_scale", "", "eps_scale: 4", NULL},
    {"adafactor_bv", "decay_rate", "", "decay_rate: 0.5", NULL},
    {"adafactor_bv", "momentum", "", "momentum: 0.5", NULL},
    {"adafactor_bv", "eps", "", "eps: 1e-2", NULL},
    {"adafactor_timm", "caution", "beta1: 0.9", "caution: true", NULL},
    {"adafactor_timm", "min_dim_size_to_factor", "", "min_dim_size_to_factor: 1000", NULL},
    {"adafactor_torch", "eps", "", "eps: [1e-2, 10]", NULL},
    {"adafactor_torch", "d", "", "d: 4", NULL},
    {"adagrad", "eps_inside_root", "eps: 0.1", "eps_inside_root: true", NULL},
    {"adan", "betas", "", "betas: [0.9, 0.8, 0.7]", NULL},
    {"lamb", "always_adapt", "weight_decay: 0", "always_adapt: true", NULL},
    {"lamb", "corrected_weight_decay", "decoupled_decay: true", "corrected_weight_decay: true",
     NULL},
    {"lars", "always_adapt", "weight_decay: 0", "always_adapt: true", NULL},
    {"lars", "trust_clip", "trust_coeff: 10", "trust_clip: true", NULL},
    {"rmsprop", "eps_inside_root", "eps: 0.1", "eps_inside_root: true", NULL},
    {"rmsprop_tf", "corrected_weight_decay", "decoupled_decay: true",
     "corrected_weight_decay: true", NULL},
    {"rmsprop_tf", "caution", "momentum: 0.5", "caution: true", NULL},
    {"rmsprop_tf", "lr_in_momentum", "momentum: 0.5", "lr_in_momentum: false", NULL},
    {"sgd", "state_bits", "momentum: 0.5", "state_bits: 8", NULL},
    {"sgdw", "caution", "momentum: 0.5", "caution: true", NULL},
    {"yogi", "eps", "", "eps: 0.1", NULL},
    {NULL, "adam", "", "adam: true", NULL},
    {NULL, "adam_w_mode", "", "adam_w_mode: false", NULL},
    {NULL, "alpha", "", "alpha: 0.5", NULL},
    {NULL, "amsgrad", "", "amsgrad: true", NULL},
    {NULL, "beta1", "", "beta1: 0.9", NULL},
    {NULL, "beta2_cap", "", "beta2_cap: 0.3", NULL},
    {NULL, "beta2_decay", "", "beta2_decay: -0.5", NULL},
    {NULL, "betas", "", "betas: [0.5, 0.7]", NULL},
    {NULL, "bias_correction", "", "bias_correction: false", NULL},
    {NULL, "bs", "", "bs: 64", NULL},
    {NULL, "caution", "", "caution: true", NULL},
    {NULL, "centered", "", "centered: true", NULL},
    {NULL, "clip_threshold", "", "clip_threshold: 0.1", NULL},
    {NULL, "clipping_threshold", "", "clipping_threshold: 0.1", NULL},
    {NULL, "corrected_weight_decay", "", "corrected_weight_decay: true", NULL},
    {NULL, "dampening", "momentum: 0.5", "dampening: 0.5", NULL},
    {NULL, "decay_after_step", "", "decay_after_step: true", NULL},
    {NULL, "decay_rate", "", "decay_rate: -0.5", NULL},
    {NULL, "decoupled_decay", "", "decoupled_decay: true", NULL},
    {NULL, "decoupled_weight_decay", "", "decoupled_weight_decay: true", NULL},
    {NULL, "eps", "", "eps: 1e-2", NULL},
    {NULL, "eps_before_correction", "eps: 0.1", "eps_before_correction: true", NULL},
    {NULL, "grad_averaging", "", "grad_averaging: false", NULL},
    {NULL, "initial_accumulator_value", "", "initial_accumulator_value: 0.5", NULL},
    {NULL, "lr", "", "lr: 0.2", NULL},
    {NULL, "lr_decay", "", "lr_decay: 0.5", NULL},
    {NULL, "lr_in_momentum", "momentum: 0.5", "lr_in_momentum: true", NULL},
    {NULL, "max_grad_norm", "", "max_grad_norm: 0.1", NULL},
    {NULL, "max_weight_norm", "", "max_weight_norm: 0.5", NULL},
    {NULL, "min_dim_size_to_factor", "", "min_dim_size_to_factor: 4", NULL},
    {NULL, "momentum", "", "momentum: 0.7", NULL},
    {NULL, "momentum_decay", "", "momentum_decay: 0.5", NULL},
    {NULL, "nesterov", "momentum: 0.5", "nesterov: true", NULL},
    {NULL, "no_prox", "", "no_prox: true", NULL},
    {NULL, "rho", "", "rho: 0.5", NULL},
    {NULL, "scale_parameter", "", "scale_parameter: false", NULL},
    {NULL, "state_bits", "", "state_bits: 8", NULL},
    {NULL, "trust_clip", "", "trust_clip: true", NULL},
    {NULL, "trust_coeff", "", "trust_coeff: 0.01", NULL},
    {NULL, "unscaled_wd", "", "unscaled_wd: true", NULL},
    {NULL, "warmup_init", "", "warmup_init: true", NULL},
    {NULL, "weight_decay", "", "weight_decay: 0.4", NULL},
    {NULL, "zero_norm_decay", "", "zero_norm_decay: false", NULL},
};

/* Gradients of every size, each step's unlike the others'. */
static void fill(float *gradient, uint32_t step)
{
    for (uint32_t i = 0; i < ELEMENT_COUNT; i++) {
        double angle = 1.7 * (i + 1) + 2.9 * (step + 1);
        gradient[i] = (float)(sin(angle) * (step % 3 == 0 ? 1 : 0.2) + 0.1 * cos(0.3 * i));
    }
    memset(gradient + ELEMENT_COUNT - 3, 0, 3 * sizeof *gradient);
}

/* What training comes to with a rule of these keys, at a rate that is halved on the way. */
static void train(const char *rule, const char *beside, const char *changed, float *values)
{
    struct trial trial;
    float gradient[ELEMENT_COUNT];
    char config[512];

    snprintf(config, sizeof config,
             "block_size: 256\nclip: {norm: 100}\noptimizer: {name: %s%s%s%s%s}\n"
             "schedule: {name: step, step_size: 2, gamma: 0.5}\n",
             rule, beside[0] != '\0' ? ", " : "", beside, changed[0] != '\0' ? ", " : "", changed);
    trial_begin(&trial, CLUSTER_ALONE, "direct", config, model, TENSOR_COUNT);
    for (uint32_t step = 0; step < STEP_COUNT; step++) {
        fill(gradient, step);
        if (pd_optimizer_find(rule)->estimate != NULL && step % 3 == 0) {
            trial_push_hessian(&trial, gradient);
        }
        trial_step(&trial, gradient, 0);
    }
    memcpy(values, trial.values, ELEMENT_COUNT * sizeof *values);
    for (uint32_t i = 0; i < ELEMENT_COUNT; i++) {
        ck_assert(isfinite(values[i]));
    }
    trial_end(&trial);
}

static bool has_key(const struct pd_optimizer *optimizer, const char *key)
{
    for (uint32_t i = 0; i < optimizer->option_count; i++) {
        if (strcmp(optimizer->options[i].key, key) == 0) {
            return true;
        }
    }
    return false;
}

START_TEST(every_key_of_an_optimizer_changes_what_training_comes_to)
{
    const struct pd_optimizer *optimizer = pd_optimizer_at((size_t)_i);
    char last[256] = "nothing"; /* what `without` came from: most keys stand beside the same */
    float without[ELEMENT_COUNT];

    for (uint32_t i = 0; i < optimizer->option_count; i++) {
        const char *key = optimizer->options[i].key;
        const struct change *change =
            find_change(optimizer_changes, sizeof optimizer_changes / sizeof optimizer_changes[0],
                        optimizer->name, key);
        /* Most keys that say how parameters decay need some decay. */
        bool decays = has_key(optimizer, "weight_decay") && strcmp(key, "weight_decay") != 0 &&
                      strstr(change->beside, "weight_decay") == NULL;
        const char *first = change->first != NULL ? change->first : "";
        char beside[128];
        char all[256];
        float with[ELEMENT_COUNT];

        snprintf(beside, sizeof beside, "%s%s%s", change->beside,
                 decays && change->beside[0] != '\0' ? ", " : "",
                 decays ? "weight_decay: 0.1" : "");
        snprintf(all, sizeof all, "%s, %s", beside, first);
        if (strcmp(all, last) != 0) {
            train(optimizer->name, beside, first, without);
            memcpy(last, all, sizeof last);
        }
        train(optimizer->name, beside, change->changed, with);
        ck_assert_msg(memcmp(with, without, sizeof with) != 0, "%s: {%s, %s} changes nothing",
                      optimizer->name, beside, change->changed);
    }
}
END_TEST

/* ---- Schedules ---- */

static const struct change schedule_changes[] = {
    {"constant", "chain", "factor: 3", "chain: true", NULL},
    {"constant", "factor", "", "factor: 3", NULL},
    {"constant", "unit", "factor: 3, steps: 5", "unit: epochs", NULL},
    {"cosine", "eta_min", "", "eta_min: 0.01", NULL},
    {"cosine_warm_restarts", "cycle_limit", "", "cycle_limit: 1", NULL},
    {"cyclic", "max_lr", "", "max_lr: 0.4", NULL},
    {"cyclic", "mode", "step_size_up: 4", "mode: triangular2", NULL},
    {"cyclic", "gamma", "step_size_up: 4, mode: exp_range", "gamma: 0.9", NULL},
    {"exponential", "gamma", "", "gamma: 0.9", NULL},
    {"multistep", "chain", "milestones: [5]", "chain: true", NULL},
    {"multistep", "gamma", "milestones: [5]", "gamma: 0.5", NULL},
    {"onecycle", "anneal_strategy", "total_steps: 30", "anneal_strategy: linear", NULL},
    {"multistep", "unit", "milestones: [5]", "unit: epochs", NULL},
    {"piecewise", "chain", "points: [[0, 1], [9, 3]]", "chain: true", NULL},
    {"piecewise", "unit", "points: [[0, 1], [9, 3]]", "unit: epochs", NULL},
    {"plateau", "chain", "patience: 2, mode: max", "chain: true", NULL},
    {"plateau", "cooldown", "patience: 1", "cooldown: 3", NULL},
    {"plateau", "eps", "patience: 2", "eps: 0.5", NULL},
    {"plateau", "factor", "patience: 2", "factor: 0.5", NULL},
    {"plateau", "metric", "patience: 2", "metric: other", NULL},
    {"plateau", "min_lr", "patience: 2", "min_lr: 0.05", NULL},
    {"plateau", "mode", "patience: 2", "mode: max", NULL},
    {"plateau", "patience", "", "patience: 2", NULL},
    {"plateau", "threshold", "patience: 2", "threshold: 0.5", NULL},
    {"plateau", "threshold_mode", "patience: 2, threshold: 0.06", "threshold_mode: abs", NULL},
    {"plateau", "unit", "patience: 2, steps: 3", "unit: epochs", NULL},
    {"step", "gamma", "step_size: 5", "gamma: 0.5", NULL},
    {"wsd", "decay_type", "num_decay_steps: 20", "decay_type: linear", NULL},
    {"wsd", "num_cycles", "num_decay_steps: 20", "num_cycles: 1.5", NULL},
    {"wsd", "warmup_from_min", "num_warmup_steps: 8, num_decay_steps: 9, min_lr_ratio: 0.1",
     "warmup_from_min: false", NULL},
    {"wsd", "warmup_type", "num_warmup_steps: 8, num_decay_steps: 9", "warmup_type: cosine", NULL},
    {NULL, "base_lr", "", "base_lr: 0.02", NULL},
    {NULL, "base_momentum", "", "base_momentum: 0.4", NULL},
    {NULL, "cycle_decay", "", "cycle_decay: 0.5", NULL},
    {NULL, "cycle_momentum", "", "cycle_momentum: false", NULL},
    {NULL, "div_factor", "", "div_factor: 5", NULL},
    {NULL, "end_factor", "", "end_factor: 0.5", NULL},
    {NULL, "eta_min", "", "eta_min: 0.01", NULL},
    {NULL, "final_div_factor", "total_steps: 30", "final_div_factor: 5", NULL},
    {NULL, "interpolation", "points: [[0, 1], [9, 3]]", "interpolation: cosine", NULL},
    {NULL, "lr_end", "", "lr_end: 0.01", NULL},
    {NULL, "max_lr", "", "max_lr: 0.4", NULL},
    {NULL, "max_momentum", "", "max_momentum: 0.99", NULL},
    {NULL, "milestones", "", "milestones: [5, 9]", NULL},
    {NULL, "min_lr_ratio", "num_decay_steps: 20", "min_lr_ratio: 0.2", NULL},
    {NULL, "num_cycles", "t_max: 20", "num_cycles: 1.5", NULL},
    {NULL, "num_decay_steps", "", "num_decay_steps: 20", NULL},
    {NULL, "num_stable_steps", "num_decay_steps: 20", "num_stable_steps: 5", NULL},
    {NULL, "num_warmup_steps", "", "num_warmup_steps: 8", NULL},
    {NULL, "offset", "", "offset: 2", NULL},
    {NULL, "pct_start", "total_steps: 30", "pct_start: 0.6", NULL},
    {NULL, "points", "", "points: [[0, 1], [9, 3]]", NULL},
    {NULL, "power", "steps: 20", "power: 2", NULL},
    {NULL, "shape", "", "shape: 1-sqrt", NULL},
    {NULL, "start_factor", "", "start_factor: 0.7", NULL},
    {NULL, "step_size", "", "step_size: 7", NULL},
    {NULL, "step_size_down", "step_size_up: 4", "step_size_down: 9", NULL},
    {NULL, "step_size_up", "", "step_size_up: 4", NULL},
    {NULL, "steps", "", "steps: 12", "steps: 20"},
    {NULL, "t_0", "", "t_0: 7", NULL},
    {NULL, "t_max", "", "t_max: 20", NULL},
    {NULL, "t_mult", "", "t_mult: 2", NULL},
    {NULL, "three_phase", "total_steps: 30", "three_phase: true", NULL},
    {NULL, "timescale", "", "timescale: 10", NULL},
    {NULL, "total_steps", "", "total_steps: 30", NULL},
    {NULL, "unit", "", "unit: epochs", NULL},
    {NULL, "chain", "", "chain: true", NULL},
};

/* The coming rates and momenta. */
static char *coming_rates(struct trial *trial)
{
    json_t *reply = trial_ask(trial, "schedule", 0, RATE_COUNT);
    char *text = json_dumps(reply, 0);

    json_decref(reply);
    return text;
}

/* The rates of steps whose metrics first get better by much, then stay; another only gets better.
 */
static char *taken_rates(struct trial *trial)
{
    json_t *rates = json_array();
    struct paramd_error error = {0};

    for (uint32_t at = 0; at < RATE_COUNT / 2; at++) {
        json_array_append_new(rates, json_real(trial_step_all(trial, 0.1f).lr));
        ck_assert_int_eq(paramd_report_metric(trial->client, "val_loss",
                                              at < 8 ? 0.584 - 0.028 * at : 0.42, at + 1, &error),
                         PARAMD_OK);
        ck_assert_int_eq(paramd_report_metric(trial->client, "other", 9 - 0.1 * at, at + 1, &error),
                         PARAMD_OK);
    }
    char *text = json_dumps(rates, 0);
    json_decref(rates);
    return text;
}

/* What the rates are under a schedule of these keys after another one, and before a third if it is
 * to end; as JSON, for free. */
static char *rates_of(const char *rule, const char *beside, const char *changed)
{
    struct trial trial;
    char config[1024];
    bool ends = strstr(beside, "steps: ") != NULL || strstr(changed, "steps: ") != NULL;

    snprintf(config, sizeof config,
             "optimizer: {name: adam, lr: 0.1}\nsteps_per_epoch: 3\n"
             "schedule:\n  - {name: constant, factor: 0.5, steps: 4}\n  - {name: %s%s%s%s%s}\n%s",
             rule, beside[0] != '\0' ? ", " : "", beside, changed[0] != '\0' ? ", " : "", changed,
             ends ? "  - {name: constant, factor: 7}\n" : "");
    trial_begin(&trial, CLUSTER_ALONE, "direct", config, model, TENSOR_COUNT);
    char *text = strcmp(rule, "plateau") == 0 ? taken_rates(&trial) : coming_rates(&trial);
    trial_end(&trial);
    return text;
}

START_TEST(every_key_of_a_schedule_changes_the_rates_or_momenta)
{
    const struct pd_schedule_rule *rule = pd_schedule_at((size_t)_i);

    for (uint32_t i = 0; i < rule->option_count + pd_schedule_common_option_count; i++) {
        const char *key = i < rule->option_count
                              ? rule->options[i].key
                              : pd_schedule_common_options[i - rule->option_count].key;
        const struct change *change =
            find_change(schedule_changes, sizeof schedule_changes / sizeof schedule_changes[0],
                        rule->name, key);
        char *without =
            rates_of(rule->name, change->beside, change->first != NULL ? change->first : "");
        char *with = rates_of(rule->name, change->beside, change->changed);
        ck_assert_msg(strcmp(with, without) != 0, "%s: {%s, %s} changes nothing", rule->name,
                      change->beside, change->changed);
        free(with);
        free(without);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("options");
    int optimizer_count = 0;
    int schedule_count = 0;

    while (pd_optimizer_at((size_t)optimizer_count) != NULL) {
        optimizer_count++;
    }
    suite_add_loop(suite, every_key_of_an_optimizer_changes_what_training_comes_to,
                   optimizer_count);
    while (pd_schedule_at((size_t)schedule_count) != NULL) {
        schedule_count++;
    }
    suite_add_loop(suite, every_key_of_a_schedule_changes_the_rates_or_momenta, schedule_count);
    return suite_run(suite);
}
