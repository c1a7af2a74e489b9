/* Schedule cases: the rates and momenta the daemon announces against those of the reference. */
#include "client/include/paramd.h"
#include "tests/replay/case.h"
#include "tests/replay/settings.h"
#include "tests/support/cluster.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>

/* Of the base rate: references step by recursion, whose rounding errors add up. */
#define TOLERANCE 1e-12

#define ASK_COUNT 1000u /* rates asked for at once */

/* Rates and momenta from step `begin` on; new, for json_decref. */
static json_t *ask(struct paramd_client *client, uint64_t begin, uint64_t count)
{
    struct paramd_command command = {.command = "schedule", .begin = begin, .count = count};
    struct paramd_error error = {0};
    char *text = NULL;

    ck_assert_msg(paramd_admin(client, &command, &text, &error) == PARAMD_OK, "%s", error.message);
    json_t *reply = json_loads(text, 0, NULL);
    paramd_free(text);
    ck_assert_ptr_nonnull(reply);
    return reply;
}

/* Take in the error of one number of a step, whose size is about `scale`. */
static void compare_number(struct replay_result *result, const char *what, size_t step,
                           const json_t *given, const json_t *expected, double scale)
{
    double number = json_is_number(given) ? json_number_value(given) : NAN;
    double right = vectors_number(expected);
    double error = fabs(number - right) / (TOLERANCE * scale);

    error = isnan(error) ? INFINITY : error;
    if (replay_take_error(result, error)) {
        replay_say(result, REPLAY_FAILED, "step %zu: %s %.17g, not %.17g", step, what, number,
                   right);
    }
}

/* Train one number by gradients of zero, reporting the case's metric of every step, and compare the
 * rates that follow. */
static void compare_plateau(struct paramd_client *client, const json_t *document,
                            struct replay_result *result)
{
    static const float gradient = 0;
    const struct paramd_tensor tensor = {.name = "w"};
    const json_t *expected = json_object_get(document, "lr");
    const json_t *metrics = json_object_get(document, "metrics");
    double base_lr = json_number_value(json_object_get(document, "base_lr"));
    const float *const gradients = &gradient;
    float number = 0;
    float *const values = &number;
    struct paramd_error error = {0};

    enum paramd_status status = paramd_register(client, &tensor, 1, &values, &error);
    for (size_t i = 0; status == PARAMD_OK && i < json_array_size(expected); i++) {
        json_t *reply = ask(client, 0, 1);
        const json_t *lrs = json_array_get(json_object_get(reply, "lrs"), 0);
        compare_number(result, "rate", i, json_array_get(lrs, 0), json_array_get(expected, i),
                       base_lr);
        json_decref(reply);
        status = paramd_step(client, &gradients, 1, NULL, 0, &values, NULL, &error);
        if (status == PARAMD_OK && i < json_array_size(metrics)) {
            status = paramd_report_metric(
                client, "val_loss", vectors_number(json_array_get(metrics, i)), i + 1, &error);
        }
    }
    ck_assert_msg(status == PARAMD_OK, "%s", error.message);
}

static void compare(struct paramd_client *client, const json_t *document,
                    struct replay_result *result)
{
    const json_t *expected = json_object_get(document, "lr");
    const json_t *hyper = json_object_get(document, "hyperparameters");
    bool cycles = !json_is_false(json_object_get(hyper, "cycle_momentum"));
    const json_t *momenta = cycles ? json_object_get(document, "momentum") : NULL;
    double base_lr = json_number_value(json_object_get(document, "base_lr"));

    for (size_t begin = 0; begin < json_array_size(expected); begin += ASK_COUNT) {
        json_t *reply = ask(client, begin, ASK_COUNT);
        for (size_t i = 0; i < ASK_COUNT && begin + i < json_array_size(expected); i++) {
            const json_t *lrs = json_array_get(json_object_get(reply, "lrs"), i);
            const json_t *row = json_array_get(json_object_get(reply, "momenta"), i);
            compare_number(result, "rate", begin + i, json_array_get(lrs, 0),
                           json_array_get(expected, begin + i), base_lr);
            if (momenta != NULL) {
                compare_number(result, "momentum", begin + i, json_array_get(row, 0),
                               json_array_get(momenta, begin + i), 1);
            }
        }
        json_decref(reply);
    }
}

void replay_rates(const struct replay_options *options, const json_t *document,
                  struct replay_result *result)
{
    json_t *settings = settings_create(options, 1);
    char *text =
        settings_add_schedule(settings, document, result) ? settings_text(settings, result) : NULL;
    struct paramd_options asking;
    struct paramd_client *client = NULL;
    struct paramd_error error = {0};
    struct cluster cluster;
    bool by_metric = json_object_get(document, "metrics") != NULL;

    json_decref(settings);
    if (text == NULL || options->list_skipped) {
        free(text);
        return;
    }
    cluster_start(&cluster, options->shard_count == 1 ? CLUSTER_ALONE : options->shard_count, "%s",
                  text);
    paramd_options_init(&asking);
    asking.address = cluster.addresses[0];
    asking.observer = !by_metric;
    ck_assert_msg(paramd_connect(&asking, &client, &error) == PARAMD_OK, "%s", error.message);
    if (by_metric) {
        compare_plateau(client, document, result);
        ck_assert(paramd_leave(client, &error) == PARAMD_OK);
    } else {
        compare(client, document, result);
    }
    paramd_close(client);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
    free(text);
}
