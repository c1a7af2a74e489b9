#include "tests/support/vectors.h"

#include "common/heap.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a variant of an optimizer calls otherwise, or, with a NULL key, does without being told, or,
 * with a NULL option, says twice. */
struct translation {
    const char *optimizer;
    const char *variant;
    const char *key;
    const char *option;
    const char *value; /* JSON of a built-in value; NULL: the key's */
};

static const struct translation translations[] = {
    {"adamw", "hf", "correct_bias", "bias_correction", NULL},
    {"adamw", "hf", NULL, "eps_before_correction", "true"},
    {"adamw", "hf", NULL, "decay_after_step", "true"},
    {"lamb", "apex", "use_nvlamb", "always_adapt", NULL},
    {"lamb", "cybertronai", NULL, "bias_correction", "false"},
    {"lamb", "cybertronai", NULL, "max_grad_norm", "null"},
    {"lamb", "cybertronai", NULL, "max_weight_norm", "10"},
    {"lamb", "cybertronai", NULL, "always_adapt", "true"},
    {"lars", "apex-larc", "trust_coefficient", "trust_coeff", NULL},
    {"lars", "apex-larc", "clip", "trust_clip", NULL},
    {"lars", "apex-larc", "larc_eps", "eps", NULL},
    {"lars", "apex-larc", NULL, "always_adapt", "true"},
    {"lars", "apex-larc", NULL, "zero_norm_decay", "false"},
    {"lion", "lucidrains", "decoupled_wd", "decoupled_weight_decay", NULL},
    {"nadam", "timm", "schedule_decay", "momentum_decay", NULL},
    {"adafactor_timm", "timm", "relative_step", NULL, NULL},
    {"adafactor_bv", "timm-bigvision", "decay_offset", NULL, NULL}, /* which it makes no use of */
    {"adamw", "bitsandbytes", NULL, "state_bits", "8"},
    {"lion", "bitsandbytes", NULL, "state_bits", "8"},
    {"sgd", "bitsandbytes", NULL, "state_bits", "8"},
};
#define TRANSLATION_COUNT (sizeof translations / sizeof translations[0])

/* Variants that are rules of their own. */
static const struct {
    const char *optimizer;
    const char *variant;
    const char *rule;
} rules[] = {
    {"adafactor", "timm", "adafactor_timm"},
    {"adafactor", "timm-bigvision", "adafactor_bv"},
    {"adafactor", "torch-main", "adafactor_torch"},
    {"adam_8bit_blockwise", "bitsandbytes", "adamw"},
    {"lion_8bit_blockwise", "bitsandbytes", "lion"},
    {"momentum_8bit_blockwise", "bitsandbytes", "sgd"},
};

/* The tolerance of a case that states none, in units of 2^-23. */
#define TOLERANCE_UNITS 16

static _Noreturn void fail(const char *what, const char *name)
{
    fprintf(stderr, "vectors: %s: %s\n", name, what);
    exit(EXIT_FAILURE);
}

static void *allocate(size_t count, size_t item_bytes)
{
    void *memory = pd_heap_zalloc(count, item_bytes);
    if (memory == NULL) {
        fail("out of memory", "allocation");
    }
    return memory;
}

json_t *vectors_load(const char *directory, const char *case_name)
{
    char path[4096];
    json_error_t error;

    snprintf(path, sizeof path, "%s/%s.json", directory, case_name);
    json_t *document = json_load_file(path, 0, &error);
    if (document == NULL) {
        fail(error.text, path);
    }
    return document;
}

double vectors_number(const json_t *value)
{
    if (json_is_number(value)) {
        return json_number_value(value);
    }
    const char *text = json_string_value(value);
    if (text == NULL || strcmp(text, "NaN") == 0) {
        return NAN;
    }
    return text[0] == '-' ? -INFINITY : INFINITY;
}

float *vectors_floats(const json_t *list, uint32_t *count)
{
    if (!json_is_array(list)) {
        fail("not a list of numbers", "value");
    }
    *count = (uint32_t)json_array_size(list);
    float *floats = allocate(*count, sizeof *floats);
    for (uint32_t i = 0; i < *count; i++) {
        floats[i] = (float)vectors_number(json_array_get(list, i));
    }
    return floats;
}

/* Floats of one tensor, NULL if the mapping lacks it. */
static float *tensor_floats(const struct vectors_case *reference, const char *key,
                            const json_t *map, const struct vectors_tensor *tensor)
{
    uint32_t count = 0;
    const json_t *list = json_object_get(json_object_get(map, key), tensor->name);

    if (list == NULL) {
        return NULL;
    }
    float *floats = vectors_floats(list, &count);
    if (count != tensor->count) {
        fail("a tensor whose values do not fit its shape", reference->name);
    }
    return floats;
}

static uint32_t group_of(const json_t *groups, const char *tensor_name)
{
    for (uint32_t group = 0; group < json_array_size(groups); group++) {
        const json_t *names = json_object_get(json_array_get(groups, group), "tensors");
        for (size_t i = 0; i < json_array_size(names); i++) {
            if (strcmp(json_string_value(json_array_get(names, i)), tensor_name) == 0) {
                return group;
            }
        }
    }
    return 0;
}

static void read_tensors(struct vectors_case *reference)
{
    const json_t *list = json_object_get(reference->document, "tensors");
    const json_t *groups = json_object_get(reference->document, "groups");

    reference->group_count = groups != NULL ? (uint32_t)json_array_size(groups) : 1;
    reference->tensor_count = (uint32_t)json_array_size(list);
    reference->tensors = allocate(reference->tensor_count, sizeof *reference->tensors);
    for (uint32_t i = 0; i < reference->tensor_count; i++) {
        struct vectors_tensor *tensor = &reference->tensors[i];
        const json_t *item = json_array_get(list, i);
        const json_t *shape = json_object_get(item, "shape");
        const json_t *init = json_object_get(item, "init");

        tensor->name = json_string_value(json_object_get(item, "name"));
        tensor->group = group_of(groups, tensor->name);
        tensor->count = 1;
        tensor->dimension_count = (uint32_t)json_array_size(shape);
        if (tensor->dimension_count > PD_TENSOR_DIMENSION_COUNT_MAX) {
            fail("a tensor of too many dimensions", tensor->name);
        }
        for (uint32_t k = 0; k < tensor->dimension_count; k++) {
            tensor->shape[k] = (uint64_t)json_integer_value(json_array_get(shape, k));
            tensor->count *= (uint32_t)tensor->shape[k];
        }
        if (init != NULL) {
            tensor->init = vectors_floats(init, &tensor->count);
        }
    }
}

static double *read_rates(const struct vectors_case *reference, const json_t *step)
{
    const json_t *lr = json_object_get(step, "lr");
    double *rates = allocate(reference->group_count, sizeof *rates);

    for (uint32_t group = 0; group < reference->group_count; group++) {
        rates[group] = vectors_number(json_is_array(lr) ? json_array_get(lr, group) : lr);
    }
    return rates;
}

static void read_steps(struct vectors_case *reference)
{
    const json_t *list = json_object_get(reference->document, "steps");

    reference->step_count = (uint32_t)json_array_size(list);
    reference->steps = allocate(reference->step_count, sizeof *reference->steps);
    for (uint32_t s = 0; s < reference->step_count; s++) {
        struct vectors_step *step = &reference->steps[s];
        step->document = json_array_get(list, s);
        step->lr = read_rates(reference, step->document);
        step->gradients = allocate(reference->tensor_count, sizeof *step->gradients);
        step->parameters = allocate(reference->tensor_count, sizeof *step->parameters);
        for (uint32_t i = 0; i < reference->tensor_count; i++) {
            struct vectors_tensor *tensor = &reference->tensors[i];
            step->gradients[i] = tensor_floats(reference, "grads", step->document, tensor);
            step->parameters[i] = tensor_floats(reference, "params", step->document, tensor);
            for (uint32_t k = 0; step->parameters[i] != NULL && k < tensor->count; k++) {
                tensor->magnitude = fmax(tensor->magnitude, fabs((double)step->parameters[i][k]));
            }
        }
    }
}

void vectors_case_init(struct vectors_case *reference, const char *directory, const char *case_name)
{
    *reference = (struct vectors_case){.document = vectors_load(directory, case_name)};
    const json_t *units = json_object_get(json_object_get(reference->document, "tolerance"), "k");

    reference->name = json_string_value(json_object_get(reference->document, "case"));
    reference->optimizer = json_string_value(json_object_get(reference->document, "optimizer"));
    reference->variant = json_string_value(json_object_get(reference->document, "variant"));
    for (size_t i = 0; reference->variant != NULL && i < sizeof rules / sizeof rules[0]; i++) {
        if (strcmp(rules[i].optimizer, reference->optimizer) == 0 &&
            strcmp(rules[i].variant, reference->variant) == 0) {
            reference->optimizer = rules[i].rule;
        }
    }
    reference->tolerance =
        (json_is_number(units) ? json_number_value(units) : TOLERANCE_UNITS) * 0x1p-23;
    read_tensors(reference);
    read_steps(reference);
}

double vectors_error(const float *actual, const float *expected, uint32_t count, double allowed,
                     uint32_t *worst)
{
    double largest = 0;

    *worst = 0;
    for (uint32_t i = 0; i < count; i++) {
        double error = fabs((double)actual[i] - (double)expected[i]);
        if (error == 0) {
            continue;
        }
        error = isnan(error) || allowed == 0 ? INFINITY : error / allowed;
        if (error > largest) {
            largest = error;
            *worst = i;
        }
    }
    return largest;
}

double vectors_case_error(const struct vectors_case *reference, uint32_t step, uint32_t tensor,
                          const float *parameters, uint32_t *worst)
{
    const struct vectors_tensor *what = &reference->tensors[tensor];

    return vectors_error(parameters, reference->steps[step].parameters[tensor], what->count,
                         reference->tolerance * what->magnitude, worst);
}

void vectors_case_finish(struct vectors_case *reference)
{
    for (uint32_t s = 0; s < reference->step_count; s++) {
        struct vectors_step *step = &reference->steps[s];
        for (uint32_t i = 0; i < reference->tensor_count; i++) {
            pd_heap_free(step->gradients[i]);
            pd_heap_free(step->parameters[i]);
        }
        pd_heap_free(step->gradients);
        pd_heap_free(step->parameters);
        pd_heap_free(step->lr);
    }
    for (uint32_t i = 0; i < reference->tensor_count; i++) {
        pd_heap_free(reference->tensors[i].init);
    }
    pd_heap_free(reference->steps);
    pd_heap_free(reference->tensors);
    json_decref(reference->document);
}

static bool is_for(const struct translation *translation, const struct vectors_case *reference)
{
    return reference->variant != NULL &&
           strcmp(translation->optimizer, reference->optimizer) == 0 &&
           strcmp(translation->variant, reference->variant) == 0;
}

static const char *option_of(const struct vectors_case *reference, const char *key)
{
    for (size_t i = 0; i < TRANSLATION_COUNT; i++) {
        const struct translation *translation = &translations[i];
        if (is_for(translation, reference) && translation->key != NULL &&
            strcmp(translation->key, key) == 0) {
            return translation->option;
        }
    }
    return key;
}

static bool is_quantized(const struct vectors_case *reference)
{
    return reference->variant != NULL && strcmp(reference->variant, "bitsandbytes") == 0;
}

/* Whether the key says how state in 8 bits is kept, in the only way there is. */
static bool is_of_quantization(const struct vectors_case *reference, const char *key)
{
    return is_quantized(reference) && (strcmp(key, "blocksize") == 0 || strcmp(key, "qmap1") == 0 ||
                                       strcmp(key, "qmap2") == 0);
}

/* Whether the key asks for what momentum is anyhow: float32, or nothing when there is none. */
static bool is_default_type(const json_t *hyperparameters, const char *key)
{
    const char *type = json_string_value(json_object_get(hyperparameters, key));

    return strcmp(key, "momentum_dtype") == 0 && type != NULL &&
           (json_is_null(json_object_get(hyperparameters, "momentum")) ||
            strstr(type, "float32") != NULL);
}

/* Add hyperparameters under the product's keys. */
static void add_options(const struct vectors_case *reference, json_t *hyperparameters,
                        json_t *options)
{
    const char *key = NULL;
    json_t *value = NULL;

    json_object_foreach(hyperparameters, key, value)
    {
        if (option_of(reference, key) == NULL || is_default_type(hyperparameters, key) ||
            is_of_quantization(reference, key)) {
            continue;
        }
        if (is_quantized(reference) && strcmp(reference->optimizer, "sgd") == 0 &&
            strcmp(key, "betas") == 0) {
            json_object_set(options, "momentum", json_array_get(value, 0));
            continue;
        }
        bool truth = strcmp(key, "adam_w_mode") == 0 && json_is_integer(value);
        json_object_set_new(options, option_of(reference, key),
                            truth ? json_boolean(json_integer_value(value) != 0)
                                  : json_deep_copy(value));
    }
}

json_t *vectors_case_options(const struct vectors_case *reference, uint32_t group)
{
    const json_t *groups = json_object_get(reference->document, "groups");
    json_t *options = json_object();

    add_options(reference, json_object_get(reference->document, "hyperparameters"), options);
    add_options(reference, json_object_get(json_array_get(groups, group), "hyperparameters"),
                options);
    for (size_t i = 0; i < TRANSLATION_COUNT; i++) {
        const struct translation *translation = &translations[i];
        if (is_for(translation, reference) && translation->key == NULL) {
            json_object_set_new(options, translation->option,
                                json_loads(translation->value, JSON_DECODE_ANY, NULL));
        }
    }
    return options;
}
