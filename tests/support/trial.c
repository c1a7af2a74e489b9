#include "tests/support/trial.h"

#include <check.h>
#include <string.h>

static void connect_worker(struct trial *trial, const struct trial_tensor *tensors)
{
    struct paramd_tensor model[TRIAL_TENSOR_COUNT_MAX];
    float *values[TRIAL_TENSOR_COUNT_MAX];
    struct paramd_options options;
    struct paramd_error error = {0};

    for (uint32_t i = 0; i < trial->tensor_count; i++) {
        model[i] = (struct paramd_tensor){
            .name = tensors[i].name,
            .dimension_count = tensors[i].dimension_count,
            .shape = tensors[i].shape,
        };
        values[i] = trial->values + trial->begins[i];
    }
    paramd_options_init(&options);
    options.address = trial->cluster.addresses[0];
    options.timeout_ms = PROCESS_DEADLINE_MS;
    ck_assert_msg(paramd_connect(&options, &trial->client, &error) == PARAMD_OK &&
                      paramd_register(trial->client, model, trial->tensor_count, values, &error) ==
                          PARAMD_OK,
                  "%s", error.message);
}

void trial_begin(struct trial *trial, uint32_t rank_count, const char *aggregation,
                 const char *config, const struct trial_tensor *tensors, uint32_t tensor_count)
{
    ck_assert_uint_le(tensor_count, TRIAL_TENSOR_COUNT_MAX);
    memset(trial, 0, sizeof *trial);
    trial->samples = 1;
    trial->tensor_count = tensor_count;
    for (uint32_t i = 0; i < tensor_count; i++) {
        uint64_t count = 1;
        for (uint32_t d = 0; d < tensors[i].dimension_count; d++) {
            count *= tensors[i].shape[d];
        }
        trial->begins[i + 1] = trial->begins[i] + count;
    }
    ck_assert_uint_le(trial->begins[tensor_count], TRIAL_ELEMENT_COUNT_MAX);
    for (uint64_t i = 0; i < trial->begins[tensor_count]; i++) {
        trial->values[i] = 1;
    }
    cluster_start(&trial->cluster, rank_count, "aggregation: %s\n%s%s", aggregation,
                  strstr(config, "block_size") == NULL ? "block_size: 2\n" : "", config);
    connect_worker(trial, tensors);
}

struct paramd_step_info trial_step(struct trial *trial, const float *gradient, uint64_t absent)
{
    const float *gradients[TRIAL_TENSOR_COUNT_MAX];
    float *values[TRIAL_TENSOR_COUNT_MAX];
    struct paramd_step_info info;
    struct paramd_error error = {0};

    for (uint32_t i = 0; i < trial->tensor_count; i++) {
        gradients[i] = (absent >> i & 1) != 0 ? NULL : gradient + trial->begins[i];
        values[i] = trial->values + trial->begins[i];
    }
    ck_assert_msg(paramd_step(trial->client, gradients, trial->samples, NULL, trial->flags, values,
                              &info, &error) == PARAMD_OK,
                  "%s", error.message);
    return info;
}

struct paramd_step_info trial_step_all(struct trial *trial, float element)
{
    float gradient[TRIAL_ELEMENT_COUNT_MAX];

    for (uint32_t i = 0; i < TRIAL_ELEMENT_COUNT_MAX; i++) {
        gradient[i] = element;
    }
    return trial_step(trial, gradient, 0);
}

void trial_push_hessian(struct trial *trial, const float *estimate)
{
    const float *estimates[TRIAL_TENSOR_COUNT_MAX];
    struct paramd_error error = {0};

    for (uint32_t i = 0; i < trial->tensor_count; i++) {
        estimates[i] = estimate + trial->begins[i];
    }
    ck_assert_msg(paramd_push_hessian(trial->client, estimates, trial->samples, PARAMD_LAST,
                                      &error) == PARAMD_OK,
                  "%s", error.message);
}

json_t *trial_ask(struct trial *trial, const char *command, uint64_t begin, uint64_t count)
{
    struct paramd_command admin = {.command = command, .begin = begin, .count = count};
    struct paramd_error error = {0};
    char *text = NULL;

    ck_assert_msg(paramd_admin(trial->client, &admin, &text, &error) == PARAMD_OK, "%s",
                  error.message);
    json_t *reply = json_loads(text, 0, NULL);
    paramd_free(text);
    ck_assert_ptr_nonnull(reply);
    return reply;
}

const json_t *trial_item(const json_t *reply, const char *list, const char *name, const char *key)
{
    const json_t *items = json_object_get(reply, list);

    for (size_t i = 0; i < json_array_size(items); i++) {
        const json_t *item = json_array_get(items, i);
        if (strcmp(json_string_value(json_object_get(item, "name")), name) == 0) {
            ck_assert_ptr_nonnull(json_object_get(item, key));
            return json_object_get(item, key);
        }
    }
    ck_abort_msg("no %s in %s", name, list);
    return NULL;
}

void trial_end(struct trial *trial)
{
    struct paramd_error error = {0};

    ck_assert_msg(paramd_leave(trial->client, &error) == PARAMD_OK, "%s", error.message);
    paramd_close(trial->client);
    cluster_drain(&trial->cluster);
    cluster_stop(&trial->cluster);
}
