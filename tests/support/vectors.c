#include "tests/support/vectors.h"

#include "common/heap.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
        for (size_t k = 0; k < json_array_size(shape); k++) {
            tensor->count *= (uint32_t)json_integer_value(json_array_get(shape, k));
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
    const json_t *tolerance = json_object_get(reference->document, "tolerance");

    reference->name = json_string_value(json_object_get(reference->document, "case"));
    reference->optimizer = json_string_value(json_object_get(reference->document, "optimizer"));
    reference->variant = json_string_value(json_object_get(reference->document, "variant"));
    reference->tolerance = json_number_value(json_object_get(tolerance, "k")) * 0x1p-23;
    read_tensors(reference);
    read_steps(reference);
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

const json_t *vectors_case_hyper(const struct vectors_case *reference, uint32_t group,
                                 const char *key)
{
    const json_t *groups = json_object_get(reference->document, "groups");
    const json_t *own = json_object_get(json_array_get(groups, group), "hyperparameters");
    const json_t *value = json_object_get(own, key);

    if (value != NULL) {
        return value;
    }
    return json_object_get(json_object_get(reference->document, "hyperparameters"), key);
}
