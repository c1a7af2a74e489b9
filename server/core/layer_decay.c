#include "server/core/layer_decay.h"

#include "common/heap.h"

#include <fnmatch.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Digits that a layer's number may have. */
#define NUMBER_DIGITS_MAX 9

static bool matches(const struct pd_layer_patterns *patterns, const char *name)
{
    for (uint32_t i = 0; i < patterns->count; i++) {
        if (fnmatch(patterns->texts[i], name, 0) == 0) {
            return true;
        }
    }
    return false;
}

/* Whether a tensor is of a layer, and of which: the first number in its name with which a pattern
 * matches, once the mark stands in its place. */
static bool find_layer(const struct pd_layer_patterns *layers, const char *name, uint64_t *number)
{
    char marked[PD_TENSOR_NAME_BYTES_MAX + sizeof PD_LAYER_NUMBER_MARK];

    for (const char *at = name; *at != '\0';) {
        size_t digits = strspn(at, "0123456789");
        if (digits == 0 || digits > NUMBER_DIGITS_MAX) {
            at += digits > 0 ? digits : 1;
            continue;
        }
        snprintf(marked, sizeof marked, "%.*s%s%s", (int)(at - name), name, PD_LAYER_NUMBER_MARK,
                 at + digits);
        if (matches(layers, marked)) {
            *number = strtoull(at, NULL, 10);
            return true;
        }
        at += digits;
    }
    return false;
}

static uint64_t depth_of(const struct pd_layer_decay_options *options, const char *name,
                         uint64_t depth_max)
{
    uint64_t number;

    if (matches(&options->embeddings, name)) {
        return 0;
    }
    return find_layer(&options->layers, name, &number) ? number + 1 : depth_max;
}

enum pd_status pd_layer_decay_depth_max(const struct pd_layer_decay_options *options,
                                        const struct pd_tensor_list *model, uint64_t *depth_max,
                                        struct pd_error *error)
{
    const char *deepest_name = NULL;
    uint64_t deepest = 0;

    *depth_max = options->depth_max;
    if (isnan(options->decay)) {
        return PD_OK;
    }
    for (uint32_t i = 0; i < model->count; i++) {
        uint64_t depth = depth_of(options, model->tensors[i].name, 0);
        if (depth > deepest) {
            deepest = depth;
            deepest_name = model->tensors[i].name;
        }
    }
    if (deepest == 0) {
        return pd_error_set(error, PD_EMODEL,
                            "layer_decay.layers: '%.200s' matches no tensor of the model",
                            options->layers.texts[0]);
    }
    if (options->depth_max == 0) {
        *depth_max = deepest + 1;
    } else if (deepest > options->depth_max) {
        return pd_error_set(error, PD_EMODEL,
                            "layer_decay.depth_max: %" PRIu64 ", but tensor '%.200s' has depth "
                            "%" PRIu64 "; allowed: at least %" PRIu64,
                            options->depth_max, deepest_name, deepest, deepest);
    }
    return PD_OK;
}

enum pd_status pd_layer_decay_factors(double **out, const struct pd_layer_decay_options *options,
                                      const struct pd_tensor_list *model, struct pd_error *error)
{
    uint64_t depth_max;
    enum pd_status status = pd_layer_decay_depth_max(options, model, &depth_max, error);

    *out = NULL;
    if (status != PD_OK) {
        return status;
    }
    double *factors = pd_heap_zalloc(model->count, sizeof *factors);
    if (factors == NULL) {
        return pd_error_set(error, PD_ENOMEM, "out of memory for the rates of %" PRIu32 " tensors",
                            model->count);
    }
    for (uint32_t i = 0; i < model->count; i++) {
        uint64_t depth =
            isnan(options->decay) ? 0 : depth_of(options, model->tensors[i].name, depth_max);
        factors[i] = isnan(options->decay) ? 1 : pow(options->decay, (double)(depth_max - depth));
    }
    *out = factors;
    return PD_OK;
}
