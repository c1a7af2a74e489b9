#include "tests/replay/checks.h"

#include "common/heap.h"

#include <check.h>
#include <math.h>

/* Take in the error of one number, which may differ by `allowed`. */
static void take(struct replay_result *result, uint32_t step, const char *what, double actual,
                 double expected, double allowed)
{
    double error = actual == expected ? 0 : fabs(actual - expected) / allowed;

    error = isnan(error) ? INFINITY : error;
    if (replay_take_error(result, error)) {
        replay_say(result, REPLAY_FAILED, "step %u, %s: %.17g, not %.17g", step + 1, what, actual,
                   expected);
    }
}

/* The loss scale, to the bit, if the step says it under this key. */
static void check_loss_scale(const struct vectors_case *reference, uint32_t step, const char *key,
                             const struct paramd_client *client, struct replay_result *result)
{
    const json_t *scale = json_object_get(reference->steps[step].document, key);

    if (scale != NULL) {
        take(result, step, key, paramd_loss_scale(client), vectors_number(scale), 0);
    }
}

void checks_before(const struct vectors_case *reference, uint32_t step,
                   struct paramd_client *client, struct replay_result *result)
{
    check_loss_scale(reference, step, "scale_before", client, result);
}

/* ---- Status ---- */

static json_t *ask_status(struct paramd_client *client)
{
    struct paramd_command command = {.command = "status"};
    struct paramd_error error = {0};
    char *text = NULL;

    ck_assert_msg(paramd_admin(client, &command, &text, &error) == PARAMD_OK, "%s", error.message);
    json_t *status = json_loads(text, 0, NULL);
    paramd_free(text);
    ck_assert_ptr_nonnull(status);
    return status;
}

static uint32_t skipped_until(const struct vectors_case *reference, uint32_t step)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i <= step; i++) {
        const json_t *found = json_object_get(reference->steps[i].document, "found_inf");
        count += json_integer_value(found) != 0;
    }
    return count;
}

static void check_status(const struct vectors_case *reference, uint32_t step,
                         struct paramd_client *client, struct replay_result *result)
{
    const json_t *document = reference->steps[step].document;
    const json_t *norm = json_object_get(document, "total_norm");
    bool has_norm = norm != NULL && !json_is_null(norm);

    if (!has_norm && json_object_get(document, "found_inf") == NULL) {
        return;
    }
    json_t *status = ask_status(client);
    take(result, step, "skipped_steps", vectors_number(json_object_get(status, "skipped_steps")),
         skipped_until(reference, step), 0);
    if (has_norm) {
        double expected = vectors_number(norm);
        take(result, step, "grad_norm", vectors_number(json_object_get(status, "grad_norm")),
             expected, reference->tolerance * expected);
    }
    json_decref(status);
}

/* ---- Averages ---- */

static const json_t *average_of(const struct vectors_case *reference, uint32_t step,
                                uint32_t tensor)
{
    return json_object_get(json_object_get(reference->steps[step].document, "ema"),
                           reference->tensors[tensor].name);
}

static double magnitude_of(const struct vectors_case *reference, uint32_t tensor)
{
    double magnitude = 0;

    for (uint32_t step = 0; step < reference->step_count; step++) {
        const json_t *list = average_of(reference, step, tensor);
        for (size_t i = 0; i < json_array_size(list); i++) {
            magnitude = fmax(magnitude, fabs(vectors_number(json_array_get(list, i))));
        }
    }
    return magnitude;
}

static void compare_average(const struct vectors_case *reference, uint32_t step, uint32_t tensor,
                            const float *average, struct replay_result *result)
{
    uint32_t count = 0;
    uint32_t at = 0;
    float *expected = vectors_floats(average_of(reference, step, tensor), &count);
    double allowed = reference->tolerance * magnitude_of(reference, tensor);

    ck_assert_uint_eq(count, reference->tensors[tensor].count);
    double error = vectors_error(average, expected, count, allowed, &at);
    if (replay_take_error(result, error)) {
        replay_say(result, REPLAY_FAILED, "step %u, average of %s[%u]: %.9g, not %.9g", step + 1,
                   reference->tensors[tensor].name, at, (double)average[at], (double)expected[at]);
    }
    pd_heap_free(expected);
}

static void check_average(const struct vectors_case *reference, uint32_t step,
                          struct paramd_client *client, struct replay_result *result)
{
    uint32_t tensor_count = reference->tensor_count;
    struct paramd_error error = {0};
    uint64_t version = 0;

    if (json_object_get(reference->steps[step].document, "ema") == NULL) {
        return;
    }
    float **averages = pd_heap_zalloc(tensor_count, sizeof *averages);
    ck_assert_ptr_nonnull(averages);
    for (uint32_t i = 0; i < tensor_count; i++) {
        averages[i] = pd_heap_zalloc(reference->tensors[i].count, sizeof(float));
        ck_assert_ptr_nonnull(averages[i]);
    }
    ck_assert_msg(paramd_pull_average(client, averages, &version, &error) == PARAMD_OK, "%s",
                  error.message);
    ck_assert_uint_eq(version, step + 1);
    for (uint32_t i = 0; i < tensor_count; i++) {
        compare_average(reference, step, i, averages[i], result);
        pd_heap_free(averages[i]);
    }
    pd_heap_free(averages);
}

void checks_after(const struct vectors_case *reference, uint32_t step, struct paramd_client *client,
                  struct replay_result *result)
{
    check_loss_scale(reference, step, "scale_after", client, result);
    check_status(reference, step, client, result);
    check_average(reference, step, client, result);
}
