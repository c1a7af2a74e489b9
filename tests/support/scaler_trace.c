#include "tests/support/scaler_trace.h"

#include "server/core/loss_scale.h"
#include "tests/support/vectors.h"

#include <inttypes.h>
#include <stdio.h>

static struct pd_loss_scale_options read_options(const json_t *document)
{
    const json_t *hyper = json_object_get(document, "hyperparameters");
    return (struct pd_loss_scale_options){
        .init_scale = vectors_number(json_object_get(hyper, "init_scale")),
        .growth_factor = vectors_number(json_object_get(hyper, "growth_factor")),
        .backoff_factor = vectors_number(json_object_get(hyper, "backoff_factor")),
        .growth_interval = (uint64_t)json_integer_value(json_object_get(hyper, "growth_interval")),
        .dynamic = true,
    };
}

static bool is_state(const struct pd_loss_scale *state, double scale, json_int_t tracker,
                     size_t update, char *text, size_t text_bytes)
{
    if ((double)state->scale == scale && state->growth_tracker == (uint64_t)tracker) {
        return true;
    }
    snprintf(text, text_bytes,
             "after %zu updates: scale %.9g, tracker %" PRIu64 ", not %.9g, %" JSON_INTEGER_FORMAT,
             update, (double)state->scale, state->growth_tracker, scale, tracker);
    return false;
}

/* Every update written out: the scale and the tracker before the first and after each. */
static bool full_trace_holds(const json_t *document, char *text, size_t text_bytes)
{
    struct pd_loss_scale_options options = read_options(document);
    const json_t *found = json_object_get(document, "found_inf");
    const json_t *scales = json_object_get(document, "scale");
    const json_t *trackers = json_object_get(document, "growth_tracker");
    struct pd_loss_scale state;

    pd_loss_scale_init(&state, &options);
    for (size_t i = 0; i < json_array_size(scales); i++) {
        if (!is_state(&state, vectors_number(json_array_get(scales, i)),
                      json_integer_value(json_array_get(trackers, i)), i, text, text_bytes)) {
            return false;
        }
        pd_loss_scale_update(&state, &options, json_integer_value(json_array_get(found, i)) != 0);
    }
    return true;
}

/* Only what happens: updates with non-finite gradients, and those that change the scale. */
static bool sparse_trace_holds(const json_t *document, char *text, size_t text_bytes)
{
    struct pd_loss_scale_options options = read_options(document);
    const json_t *found = json_object_get(document, "found_inf_steps");
    const json_t *changes = json_object_get(document, "scale_changes");
    size_t count = (size_t)json_integer_value(json_object_get(document, "n"));
    double expected = options.init_scale;
    size_t next_found = 0;
    size_t next_change = 0;
    struct pd_loss_scale state;

    pd_loss_scale_init(&state, &options);
    for (size_t i = 0; i < count; i++) {
        const json_t *change = json_array_get(changes, next_change);
        bool is_found = next_found < json_array_size(found) &&
                        (size_t)json_integer_value(json_array_get(found, next_found)) == i;
        next_found += is_found;
        pd_loss_scale_update(&state, &options, is_found);
        if (change != NULL && (size_t)json_integer_value(json_array_get(change, 0)) == i + 1) {
            expected = vectors_number(json_array_get(change, 1));
            next_change++;
        }
        if (!is_state(&state, expected, (json_int_t)state.growth_tracker, i + 1, text,
                      text_bytes)) {
            return false;
        }
    }
    return is_state(&state, expected,
                    json_integer_value(json_object_get(document, "final_growth_tracker")), count,
                    text, text_bytes);
}

bool scaler_trace_holds(const json_t *document, char *text, size_t text_bytes)
{
    bool full = json_object_get(document, "found_inf") != NULL;

    text[0] = '\0';
    return full ? full_trace_holds(document, text, text_bytes)
                : sparse_trace_holds(document, text, text_bytes);
}
