#include "tests/replay/schedules.h"

#include "server/core/schedule.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* ---- Hyperparameters ---- */

static double number_of(const json_t *hyper, const char *key, double otherwise)
{
    const json_t *value = json_object_get(hyper, key);
    return json_is_number(value) ? json_number_value(value) : otherwise;
}

static bool is_true(const json_t *hyper, const char *key)
{
    return json_is_true(json_object_get(hyper, key));
}

/* A number as the configuration wants it: counts without a point. */
static json_t *number(double value)
{
    bool whole = value >= 0 && value < 1e15 && value == (double)(json_int_t)value;
    return whole ? json_integer((json_int_t)value) : json_real(value);
}

static json_t *schedule(json_t *list, const char *name)
{
    json_t *map = json_pack("{s:s}", "name", name);
    json_array_append_new(list, map);
    return map;
}

static void set(json_t *map, const char *key, double value)
{
    json_object_set_new(map, key, number(value));
}

/* The key if the case has it, under the product's name. */
static void copy(json_t *map, const char *key, const json_t *hyper, const char *reference_key)
{
    json_t *value = json_object_get(hyper, reference_key);
    if (value != NULL && !json_is_null(value)) {
        json_object_set(map, key, value);
    }
}

/* ---- torch.optim.lr_scheduler ---- */

/* Classes whose hyperparameters have the product's names in lower case, but for total_iters. */
static const struct {
    const char *class_name;
    const char *rule;
    const char *defaults; /* where the product's differ */
} torch_classes[] = {
    {"ConstantLR", "constant", "{\"factor\": 0.3333333333333333, \"steps\": 5}"},
    {"LinearLR", "linear", "{}"},
    {"StepLR", "step", "{}"},
    {"MultiStepLR", "multistep", "{}"},
    {"ExponentialLR", "exponential", "{}"},
    {"PolynomialLR", "polynomial", "{}"},
    {"CosineAnnealingLR", "cosine", "{}"},
    {"CosineAnnealingWarmRestarts", "cosine_warm_restarts", "{}"},
    {"OneCycleLR", "onecycle", "{}"},
    {"CyclicLR", "cyclic", "{}"},
    {"ReduceLROnPlateau", "plateau", "{}"},
};
#define TORCH_CLASS_COUNT (sizeof torch_classes / sizeof torch_classes[0])

static void copy_lower_case(json_t *map, json_t *hyper)
{
    const char *key = NULL;
    json_t *unused = NULL;

    json_object_foreach(hyper, key, unused)
    {
        char lower[64] = "";
        if (strcmp(key, "scale_mode") == 0) {
            continue; /* of functions, which no case has */
        }
        for (size_t i = 0; key[i] != '\0' && i + 1 < sizeof lower; i++) {
            lower[i] = (char)tolower((unsigned char)key[i]);
        }
        copy(map, strcmp(lower, "total_iters") == 0 ? "steps" : lower, hyper, key);
    }
}

static json_t *torch_class(json_t *list, const char *class_name, json_t *hyper)
{
    for (size_t i = 0; i < TORCH_CLASS_COUNT; i++) {
        if (strcmp(torch_classes[i].class_name, class_name) == 0) {
            json_t *map = schedule(list, torch_classes[i].rule);
            json_t *defaults = json_loads(torch_classes[i].defaults, 0, NULL);
            json_object_update(map, defaults);
            json_decref(defaults);
            copy_lower_case(map, hyper);
            return map;
        }
    }
    return NULL;
}

/* Let the last schedule of the list run for `steps`, and no longer; false if that cannot be said.
 * Those whose `steps` are how long they move are cut short, or followed by what they stay at. */
static bool run_for(json_t *list, json_t *map, double steps)
{
    const char *name = json_string_value(json_object_get(map, "name"));
    bool linear = strcmp(name, "linear") == 0;
    bool polynomial = strcmp(name, "polynomial") == 0;
    double moves = number_of(map, "steps", 5);

    if (!linear && !polynomial && strcmp(name, "constant") != 0) {
        set(map, "steps", steps);
        return true;
    }
    if (polynomial && moves > steps) {
        return false;
    }
    if (moves > steps) {
        double start = number_of(map, "start_factor", 1.0 / 3);
        double end = number_of(map, "end_factor", 1);
        if (linear) {
            set(map, "end_factor", start + (end - start) * steps / moves);
        }
        set(map, "steps", steps);
    } else if (moves < steps) {
        json_t *rest = schedule(list, "constant");
        set(rest, "factor", linear ? number_of(map, "end_factor", 1) : polynomial ? 0 : 1);
        set(rest, "steps", steps - moves);
    }
    return true;
}

static bool torch_sequence(json_t *list, const json_t *hyper)
{
    const json_t *schedulers = json_object_get(hyper, "schedulers");
    const json_t *milestones = json_object_get(hyper, "milestones");
    double begin = 0;

    for (size_t i = 0; i < json_array_size(schedulers); i++) {
        const json_t *item = json_array_get(schedulers, i);
        const char *class_name = json_string_value(json_array_get(item, 0));
        json_t *map = torch_class(list, class_name, json_array_get(item, 1));
        if (map == NULL) {
            return false;
        }
        if (i < json_array_size(milestones)) {
            double end = json_number_value(json_array_get(milestones, i));
            if (!run_for(list, map, end - begin)) {
                return false;
            }
            begin = end;
        }
    }
    return true;
}

/* Whether a class multiplies the rates that others have made. Others set theirs, or, as cosine with
 * eta_min, go by what was made of them at every step before. */
static bool multiplies(const char *class_name, const json_t *hyper)
{
    static const char *const others[] = {"CosineAnnealingWarmRestarts", "OneCycleLR", "CyclicLR",
                                         "ReduceLROnPlateau"};

    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (strcmp(class_name, others[i]) == 0) {
            return false;
        }
    }
    return strcmp(class_name, "CosineAnnealingLR") != 0 || !(number_of(hyper, "eta_min", 0) > 0);
}

/* All at once, each on the rates of the one before. */
static bool torch_chain(json_t *list, const json_t *hyper)
{
    const json_t *schedulers = json_object_get(hyper, "schedulers");

    for (size_t i = 0; i < json_array_size(schedulers); i++) {
        const json_t *item = json_array_get(schedulers, i);
        const char *class_name = json_string_value(json_array_get(item, 0));
        json_t *map = torch_class(list, class_name, json_array_get(item, 1));
        if (map == NULL || !multiplies(class_name, json_array_get(item, 1))) {
            return false;
        }
        if (i > 0) {
            json_object_set_new(map, "chain", json_true());
        }
    }
    return true;
}

/* From the optimizer's rate to swa_lr, which stays. */
static void torch_swa(json_t *list, const json_t *hyper, double base_lr)
{
    const char *shape = json_string_value(json_object_get(hyper, "anneal_strategy"));
    double steps = number_of(hyper, "anneal_epochs", 10);
    double swa_lr = number_of(hyper, "swa_lr", 0);

    if (steps == 0) {
        set(schedule(list, "constant"), "factor", swa_lr / base_lr);
        return;
    }
    if (shape != NULL && strcmp(shape, "linear") == 0) {
        json_t *map = schedule(list, "linear");
        set(map, "start_factor", 1);
        set(map, "end_factor", swa_lr / base_lr);
        set(map, "steps", steps);
        return;
    }
    json_t *map = schedule(list, "cosine");
    set(map, "t_max", steps);
    set(map, "eta_min", swa_lr);
    map = schedule(list, "constant");
    set(map, "factor", swa_lr / base_lr);
}

static bool torch_schedule(json_t *list, const char *name, const json_t *document)
{
    json_t *hyper = json_object_get(document, "hyperparameters");
    double base_lr = number_of(document, "base_lr", 0);

    if (strcmp(name, "SequentialLR") == 0) {
        return torch_sequence(list, hyper);
    }
    if (strcmp(name, "ChainedScheduler") == 0) {
        return torch_chain(list, hyper);
    }
    if (strcmp(name, "SWALR") == 0) {
        torch_swa(list, hyper, base_lr);
        return true;
    }
    json_t *map = torch_class(list, name, hyper);
    const json_t *bounds = map != NULL ? json_object_get(map, "min_lr") : NULL;
    if (json_is_array(bounds)) { /* one for each group, and these cases have one */
        set(map, "min_lr", json_number_value(json_array_get(bounds, 0)));
    }
    if (map != NULL && json_object_get(map, "steps_per_epoch") != NULL) {
        set(map, "total_steps", number_of(map, "steps_per_epoch", 1) * number_of(map, "epochs", 1));
        json_object_del(map, "steps_per_epoch");
        json_object_del(map, "epochs");
    }
    if (map != NULL && json_object_get(document, "momentum") != NULL &&
        json_object_get(map, "cycle_momentum") == NULL) {
        json_object_set_new(map, "cycle_momentum", json_true());
    }
    return map != NULL;
}

/* ---- transformers.optimization ---- */

static void warmup(json_t *list, double start_factor, double steps)
{
    if (steps > 0) {
        json_t *map = schedule(list, "linear");
        set(map, "start_factor", start_factor);
        set(map, "end_factor", 1);
        set(map, "steps", steps);
    }
}

static void hf_wsd(json_t *list, json_t *hyper, bool current)
{
    json_t *map = schedule(list, "wsd");
    double warmup_steps = number_of(hyper, "num_warmup_steps", 0);
    double decay_steps = number_of(hyper, "num_decay_steps", 0);

    copy_lower_case(map, hyper);
    if (json_object_get(map, "num_training_steps") != NULL) {
        double all_steps = number_of(map, "num_training_steps", 0);
        set(map, "num_stable_steps", all_steps - warmup_steps - decay_steps);
        json_object_del(map, "num_training_steps");
    }
    json_object_set_new(map, "warmup_from_min", json_boolean(current));
}

static void hf_cosine(json_t *list, const json_t *hyper, double base_lr, double steps)
{
    json_t *map = schedule(list, "cosine");

    set(map, "t_max", steps);
    copy(map, "num_cycles", hyper, "num_cycles");
    set(map, "eta_min", number_of(hyper, "min_lr", base_lr * number_of(hyper, "min_lr_rate", 0)));
}

static void hf_restarts(json_t *list, const json_t *hyper, double steps)
{
    json_t *map = schedule(list, "cosine_warm_restarts");
    double cycles = number_of(hyper, "num_cycles", 1);

    set(map, "t_0", steps / cycles);
    set(map, "cycle_limit", cycles);
}

static void hf_polynomial(json_t *list, const json_t *hyper, double steps)
{
    json_t *map = schedule(list, "polynomial");

    set(map, "steps", steps);
    set(map, "lr_end", number_of(hyper, "lr_end", 1e-7));
    copy(map, "power", hyper, "power");
}

static void hf_linear(json_t *list, double steps)
{
    json_t *map = schedule(list, "linear");

    set(map, "start_factor", 1);
    set(map, "end_factor", 0);
    set(map, "steps", steps);
}

static bool hf_schedule(json_t *list, const char *name, const json_t *document, bool current)
{
    json_t *hyper = json_object_get(document, "hyperparameters");
    double base_lr = number_of(document, "base_lr", 0);
    double warmup_steps = number_of(hyper, "num_warmup_steps", 0);
    double steps = number_of(hyper, "num_training_steps", 0) - warmup_steps;

    if (strcmp(name, "get_wsd_schedule") == 0) {
        hf_wsd(list, hyper, current);
        return true;
    }
    warmup(list, 0, warmup_steps);
    if (strcmp(name, "get_constant_schedule") == 0 ||
        strcmp(name, "get_constant_schedule_with_warmup") == 0) {
        schedule(list, "constant");
    } else if (strcmp(name, "get_linear_schedule_with_warmup") == 0) {
        hf_linear(list, steps);
    } else if (strcmp(name, "get_cosine_schedule_with_warmup") == 0 ||
               strcmp(name, "get_cosine_with_min_lr_schedule_with_warmup") == 0) {
        hf_cosine(list, hyper, base_lr, steps);
    } else if (strcmp(name, "get_cosine_with_hard_restarts_schedule_with_warmup") == 0) {
        hf_restarts(list, hyper, steps);
    } else if (strcmp(name, "get_inverse_sqrt_schedule") == 0) {
        set(schedule(list, "inverse_sqrt"), "timescale",
            number_of(hyper, "timescale", warmup_steps > 0 ? warmup_steps : 10000));
    } else if (strcmp(name, "get_polynomial_decay_schedule_with_warmup") == 0) {
        hf_polynomial(list, hyper, steps);
    } else {
        return false;
    }
    return true;
}

/* ---- timm.scheduler ---- */

static bool timm_schedule(json_t *list, const char *name, const json_t *document)
{
    const json_t *hyper = json_object_get(document, "hyperparameters");
    double base_lr = number_of(document, "base_lr", 0);
    double warmup_steps = number_of(hyper, "warmup_t", 0);
    bool cosine = strcmp(name, "CosineLRScheduler") == 0;
    bool overlaps = !is_true(hyper, "warmup_prefix") && warmup_steps > 0;

    if (number_of(hyper, "k_decay", 1) != 1 || (!cosine && strcmp(name, "PolyLRScheduler") != 0)) {
        return false;
    }
    warmup(list, number_of(hyper, "warmup_lr_init", 0) / base_lr, warmup_steps);
    if (cosine) {
        json_t *map = schedule(list, "cosine_warm_restarts");
        set(map, "t_0", number_of(hyper, "t_initial", 0));
        set(map, "t_mult", number_of(hyper, "cycle_mul", 1));
        set(map, "eta_min", number_of(hyper, "lr_min", 0));
        set(map, "cycle_decay", number_of(hyper, "cycle_decay", 1));
        set(map, "cycle_limit", number_of(hyper, "cycle_limit", 1));
        set(map, "offset", overlaps ? warmup_steps : 0);
        return true;
    }
    json_t *map = schedule(list, "polynomial");
    set(map, "power", number_of(hyper, "power", 0.5));
    set(map, "lr_end", number_of(hyper, "lr_min", 0));
    set(map, "steps", number_of(hyper, "t_initial", 0));
    return !overlaps && number_of(hyper, "cycle_limit", 1) == 1;
}

/* ---- What the product offers ---- */

static bool has_option(const struct pd_schedule_rule *rule, const char *key)
{
    for (uint32_t i = 0; i < rule->option_count; i++) {
        if (strcmp(rule->options[i].key, key) == 0) {
            return true;
        }
    }
    for (size_t i = 0; i < pd_schedule_common_option_count; i++) {
        if (strcmp(pd_schedule_common_options[i].key, key) == 0) {
            return true;
        }
    }
    return strcmp(key, "name") == 0;
}

/* Whether the rules have all that is asked for; a key that says no to what they do not have goes.
 */
static bool is_offered(const json_t *list, struct replay_result *result)
{
    size_t index = 0;
    json_t *map = NULL;

    json_array_foreach(list, index, map)
    {
        const char *name = json_string_value(json_object_get(map, "name"));
        const struct pd_schedule_rule *rule = pd_schedule_find(name);
        const char *key = NULL;
        json_t *value = NULL;
        void *next = NULL;
        if (rule == NULL) {
            replay_say(result, REPLAY_SKIPPED, "no schedule is named %s", name);
            return false;
        }
        json_object_foreach_safe(map, next, key, value)
        {
            if (has_option(rule, key)) {
                continue;
            }
            if (!json_is_false(value)) {
                replay_say(result, REPLAY_SKIPPED, "schedule %s does not offer %s", name, key);
                return false;
            }
            json_object_del(map, key);
        }
    }
    return true;
}

json_t *schedules_of(const json_t *document, struct replay_result *result)
{
    const char *name = json_string_value(json_object_get(document, "schedule"));
    const char *dot = strchr(name, '.');
    const char *rest = dot != NULL ? dot + 1 : name;
    json_t *list = json_array();
    bool known = false;

    if (strncmp(name, "torch.", 6) == 0) {
        known = torch_schedule(list, rest, document);
    } else if (strncmp(name, "timm.", 5) == 0) {
        known = timm_schedule(list, rest, document);
    } else if (strncmp(name, "hf", 2) == 0) {
        known = hf_schedule(list, rest, document, strncmp(name, "hfnew.", 6) == 0);
    }
    if (!known) {
        replay_say(result, REPLAY_SKIPPED, "nothing gives the rates of %s", name);
    }
    if (!known || !is_offered(list, result)) {
        json_decref(list);
        return NULL;
    }
    return list;
}
