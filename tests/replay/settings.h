/* A case's settings as the daemon's configuration: which of them the product offers.
 * vectors -> [settings] -> trajectory, rates. Decided by the product's own tables of options. */
#ifndef PD_TESTS_REPLAY_SETTINGS_H
#define PD_TESTS_REPLAY_SETTINGS_H

#include "tests/replay/case.h"
#include "tests/support/vectors.h"

/* Everything but the optimizer and the schedule: shards, blocks, workers. New, for json_decref. */
json_t *settings_create(const struct replay_options *options, uint32_t worker_count);

/* Add the optimizer and its groups, group i of the case as "group<i>", and what else the case asks
 * for in its hyperparameters: clipping, accumulation. False if the product does not offer one of
 * them; the result says which. */
bool settings_add_optimizer(json_t *settings, const struct vectors_case *reference,
                            struct replay_result *result);

/* The rate a group of the case begins with; NaN if the settings do not give it. */
double settings_rate(const json_t *settings, uint32_t group);

/* Add a schedule case's base rate and schedules, in the same way. */
bool settings_add_schedule(json_t *settings, const json_t *document, struct replay_result *result);

/* The configuration as YAML, for free; NULL if the product refuses it, and the result says why. */
char *settings_text(const json_t *settings, struct replay_result *result);

#endif
