#include "tests/replay/settings.h"

#include "server/core/config.h"
#include "server/core/quantize.h"
#include "tests/replay/schedules.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- What the product offers ---- */

/* What a reference does that the product does not, though it has a rule of that name. */
static const struct {
    const char *optimizer;
    const char *variant;
    const char *key; /* when this hyperparameter asks for something; NULL: always */
    const char *reason;
} refused[] = {
    {"nadam", "torch", NULL,
     "the product of momenta counts each twice, an error mended in torch 2"},
    {"adafactor_bv", "timm-bigvision", "clipping_threshold",
     "small updates grow to the threshold, and large ones are not clipped"},
};

static const struct pd_option *find_option(const struct pd_optimizer *optimizer, const char *key)
{
    for (uint32_t i = 0; i < optimizer->option_count; i++) {
        if (strcmp(optimizer->options[i].key, key) == 0) {
            return &optimizer->options[i];
        }
    }
    return NULL;
}

/* Whether a value asks for nothing, so that a rule need not know its key. */
static bool is_off(const json_t *value)
{
    return json_is_null(value) || json_is_false(value) ||
           (json_is_number(value) && json_number_value(value) == 0) ||
           (json_is_string(value) && strcmp(json_string_value(value), "none") == 0);
}

/* ---- Common ---- */

json_t *settings_create(const struct replay_options *options, uint32_t worker_count)
{
    return json_pack("{s:s, s:i, s:{s:i}}", "aggregation", options->aggregation, "block_size",
                     REPLAY_BLOCK_SIZE, "workers", "expected", (int)worker_count);
}

/* A value as YAML, which JSON is but for infinity. */
static void write_value(FILE *stream, const json_t *value)
{
    static const char infinity[] = ": \"Infinity\"";
    char *json = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    const char *rest = json;

    for (const char *at; (at = strstr(rest, infinity)) != NULL; rest = at + strlen(infinity)) {
        fprintf(stream, "%.*s: inf", (int)(at - rest), rest);
    }
    fputs(rest, stream);
    free(json);
}

char *settings_text(const json_t *settings, struct replay_result *result)
{
    char *text = NULL;
    size_t byte_count = 0;
    const char *key = NULL;
    json_t *value = NULL;
    struct pd_config *config = NULL;
    struct pd_error error = {0};
    FILE *stream = open_memstream(&text, &byte_count);
    union {
        const json_t *given;
        json_t *taken;
    } map = {.given = settings};

    json_object_foreach(map.taken, key, value)
    {
        fprintf(stream, "%s: ", key);
        write_value(stream, value);
        fputs("\n", stream);
    }
    (void)fclose(stream);
    enum pd_status status = pd_config_create(&config, "settings", text, NULL, 0, &error);
    pd_config_destroy(config);
    if (status != PD_OK) {
        replay_say(result, REPLAY_FAILED, "%s", error.message);
        free(text);
        return NULL;
    }
    return text;
}

/* ---- Optimizers ---- */

/* Keys of composites that are no hyperparameters of a rule. */
static const struct {
    const char *key;
    const char
        *setting; /* where the value goes: "section.key" or "key"; NULL: it is in the steps */
} composite_keys[] = {
    {"K", "accumulation_steps"},
    {"max_norm", "clip.norm"},
    {"norm_type", "clip.norm_type"},
    {"clip_value", "clip.value"},
    {"base_lr", "optimizer.lr"},
    {"la_steps", "lookahead.k"},
    {"la_alpha", "lookahead.alpha"},
    {"pullback_momentum", "lookahead.pullback_momentum"},
    {"k", "lookahead.k"},
    {"alpha", "lookahead.alpha"},
    {"decay", "ema.decay"},
    {"start", "swa.start"},
    {"every", "swa.every"},
    {"scaler", "loss_scale"},
    /* The rule that is wrapped, what its groups repeat, and what is found elsewhere. */
    {"inner", NULL},
    {"lookahead_k", NULL},
    {"lookahead_alpha", NULL},
    {"ema", NULL},
    {"ema_hp", NULL},
    {"swa_lr", NULL},
    /* The number of workers, and of steps; the rates of each step and the decay of each group are
     * written out. */
    {"W", NULL},
    {"T", NULL},
    {"wd", NULL},
    {"layer_decay", NULL},
    {"total", NULL},
    {"warmup", NULL},
    {"warmup_lr", NULL},
    {"lr_min", NULL},
    {"num_warmup_steps", NULL},
    {"num_training_steps", NULL},
};
#define COMPOSITE_KEY_COUNT (sizeof composite_keys / sizeof composite_keys[0])

static void set(json_t *settings, const char *path, const json_t *value)
{
    const char *dot = strchr(path, '.');
    char section[64];

    if (dot == NULL) {
        json_object_set_new(settings, path, json_deep_copy(value));
        return;
    }
    snprintf(section, sizeof section, "%.*s", (int)(dot - path), path);
    if (json_object_get(settings, section) == NULL) {
        json_object_set_new(settings, section, json_object());
    }
    json_object_set_new(json_object_get(settings, section), dot + 1, json_deep_copy(value));
}

/* Whether the key is one of composites; carry it out if the whole case says it. */
static bool take_composite_key(json_t *settings, const char *key, const json_t *value)
{
    for (size_t i = 0; i < COMPOSITE_KEY_COUNT; i++) {
        if (strcmp(composite_keys[i].key, key) == 0) {
            if (settings != NULL && composite_keys[i].setting != NULL && !json_is_null(value)) {
                set(settings, composite_keys[i].setting, value);
            }
            return true;
        }
    }
    return false;
}

/* What a wrapper around a rule does without being told. */
static const struct {
    const char *key;   /* of the case, or of its hyperparameters */
    const char *value; /* what says which wrapper it is */
    const char *setting;
    const char *json;
} wrappers[] = {
    {"variant", "michaelrzhang", "lookahead.variant", "\"paper\""},
    {"variant", "alphadl", "lookahead.variant", "\"alphadl\""},
    {"variant", "timm", "lookahead.variant", "\"timm\""},
    {"ema", "AveragedModelEMA", "ema.copy_steps", "1"},
    {"ema", "ModelEmaV2", "ema.copy_steps", "0"},
};

/* Of timm.utils.ModelEmaV3. */
static const struct {
    const char *key;
    const char *setting;
} ema_keys[] = {
    {"decay", "ema.decay"},
    {"min_decay", "ema.min_decay"},
    {"use_warmup", "ema.warmup"},
    {"warmup_gamma", "ema.warmup_gamma"},
    {"warmup_power", "ema.warmup_power"},
};

static void add_wrapper(json_t *settings, const struct vectors_case *reference)
{
    const json_t *hyper = json_object_get(reference->document, "hyperparameters");
    const json_t *model_ema = json_object_get(hyper, "ema_hp");
    bool lookahead = strcmp(reference->optimizer, "lookahead") == 0;

    for (size_t i = 0; i < sizeof wrappers / sizeof wrappers[0]; i++) {
        bool by_variant = strcmp(wrappers[i].key, "variant") == 0;
        const json_t *word =
            json_object_get(by_variant ? reference->document : hyper, wrappers[i].key);
        if (json_is_string(word) && (lookahead || !by_variant) &&
            strcmp(json_string_value(word), wrappers[i].value) == 0) {
            json_t *value = json_loads(wrappers[i].json, JSON_DECODE_ANY, NULL);
            set(settings, wrappers[i].setting, value);
            json_decref(value);
        }
    }
    if (model_ema != NULL) {
        /* timm copies while its step is at most update_after_step + 1, counted from 0. */
        json_int_t after = json_integer_value(json_object_get(model_ema, "update_after_step"));
        json_t *copy_steps = json_integer(after + 2);
        for (size_t i = 0; i < sizeof ema_keys / sizeof ema_keys[0]; i++) {
            const json_t *value = json_object_get(model_ema, ema_keys[i].key);
            if (value != NULL) {
                set(settings, ema_keys[i].setting, value);
            }
        }
        set(settings, "ema.copy_steps", copy_steps);
        json_decref(copy_steps);
    }
}

/* The rule's name, of the one that is wrapped if it is a wrapper's case. */
static const char *optimizer_name(const struct vectors_case *reference)
{
    const json_t *hyper = json_object_get(reference->document, "hyperparameters");
    const char *inner = json_string_value(json_object_get(hyper, "inner"));

    return inner != NULL ? inner : reference->optimizer;
}

/* Move a group's hyperparameters into a mapping of the configuration. `settings` is NULL for a
 * group of its own. */
static bool add_hyperparameters(json_t *settings, json_t *to, const struct vectors_case *reference,
                                uint32_t group, struct replay_result *result)
{
    const struct pd_optimizer *optimizer = pd_optimizer_find(optimizer_name(reference));
    json_t *values = vectors_case_options(reference, group);
    const char *key = NULL;
    json_t *value = NULL;
    bool offered = true;

    json_object_foreach(values, key, value)
    {
        const struct pd_option *option = find_option(optimizer, key);
        if (strcmp(key, "lr_scale") == 0) {
            json_object_set(to, "lr_multiplier", value);
        } else if (option != NULL && !(json_is_null(value) && !option->nullable)) {
            json_object_set(to, key, value);
        } else if (option == NULL && !take_composite_key(settings, key, value) && !is_off(value)) {
            replay_say(result, REPLAY_SKIPPED, "%s does not offer %s", optimizer->name, key);
            offered = false;
            break;
        }
    }
    if (json_object_get(to, "lr_multiplier") != NULL) {
        json_object_del(to, "lr");
    }
    json_decref(values);
    return offered;
}

/* A pattern that matches this name alone. */
static json_t *exact_pattern(const char *name)
{
    char pattern[512];
    size_t used = 0;

    for (; *name != '\0' && used + 2 < sizeof pattern; name++) {
        if (strchr("*?[\\", *name) != NULL) {
            pattern[used++] = '\\';
        }
        pattern[used++] = *name;
    }
    pattern[used] = '\0';
    return json_string(pattern);
}

static bool add_group(json_t *settings, const struct vectors_case *reference, uint32_t group,
                      struct replay_result *result)
{
    json_t *list = json_object_get(settings, "groups");
    json_t *patterns = json_array();
    char name[32];

    snprintf(name, sizeof name, "group%u", group);
    for (uint32_t i = 0; i < reference->tensor_count; i++) {
        if (reference->tensors[i].group == group) {
            json_array_append_new(patterns, exact_pattern(reference->tensors[i].name));
        }
    }
    json_t *map = json_pack("{s:s, s:o}", "name", name, "match", patterns);
    json_array_append_new(list, map);
    return add_hyperparameters(NULL, map, reference, group, result);
}

bool settings_add_optimizer(json_t *settings, const struct vectors_case *reference,
                            struct replay_result *result)
{
    const char *name = optimizer_name(reference);
    const char *variant = reference->variant != NULL ? reference->variant : "";

    const json_t *hyper = json_object_get(reference->document, "hyperparameters");
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        const json_t *value =
            refused[i].key != NULL ? json_object_get(hyper, refused[i].key) : NULL;
        bool asked = refused[i].key == NULL || (value != NULL && !is_off(value));
        if (asked && strcmp(refused[i].optimizer, name) == 0 &&
            strcmp(refused[i].variant, variant) == 0) {
            replay_say(result, REPLAY_SKIPPED, "%s", refused[i].reason);
            return false;
        }
    }
    if (pd_optimizer_find(name) == NULL) {
        replay_say(result, REPLAY_SKIPPED, "no optimizer is named %s", name);
        return false;
    }
    json_object_set_new(settings, "optimizer", json_pack("{s:s}", "name", name));
    if (!add_hyperparameters(settings, json_object_get(settings, "optimizer"), reference,
                             reference->group_count, result)) {
        return false;
    }
    add_wrapper(settings, reference);
    if (json_object_get(json_object_get(settings, "optimizer"), "state_bits") != NULL) {
        json_object_set_new(settings, "block_size", json_integer(PD_QUANTIZE_RUN));
    }
    if (json_object_get(reference->document, "groups") == NULL) {
        return true;
    }
    json_object_set_new(settings, "groups", json_array());
    for (uint32_t group = 0; group < reference->group_count; group++) {
        if (!add_group(settings, reference, group, result)) {
            return false;
        }
    }
    return true;
}

double settings_rate(const json_t *settings, uint32_t group)
{
    const json_t *groups = json_object_get(settings, "groups");
    const json_t *map =
        groups != NULL ? json_array_get(groups, group) : json_object_get(settings, "optimizer");
    const json_t *rate = json_object_get(map, "lr");

    return json_is_number(rate) ? json_number_value(rate) : NAN;
}

/* ---- Schedules ---- */

bool settings_add_schedule(json_t *settings, const json_t *document, struct replay_result *result)
{
    const json_t *base_lr = json_object_get(document, "base_lr");
    const json_t *optimizer = json_object_get(document, "optimizer");
    const char *kind = json_string_value(json_object_get(optimizer, "kind"));
    json_t *schedules = schedules_of(document, result);

    json_object_set_new(settings, "optimizer",
                        json_pack("{s:s, s:f}", "name", kind != NULL ? kind : "sgd", "lr",
                                  json_number_value(base_lr)));
    for (size_t i = 0; optimizer != NULL && i < 2; i++) {
        static const char *const keys[] = {"momentum", "betas"};
        const json_t *value = json_object_get(optimizer, keys[i]);
        if (value != NULL) {
            json_object_set_new(json_object_get(settings, "optimizer"), keys[i],
                                json_deep_copy(value));
        }
    }
    if (schedules == NULL) {
        return false;
    }
    json_object_set_new(settings, "schedule", schedules);
    return true;
}
