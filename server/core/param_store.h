/* What a rank keeps of the model's parameters: those it serves, twice, and what is made of them.
 * optimizer -> [param_store] -> serve. Pure. Owner: the loop thread.
 *
 * Parameters are double-buffered: a step writes the spare buffer while the served one is sent from.
 * A buffer holds the rank's whole lane; its own shard is a part of it. */
#ifndef PD_SERVER_CORE_PARAM_STORE_H
#define PD_SERVER_CORE_PARAM_STORE_H

#include "common/shard_plan.h"
#include "server/core/config.h"
#include "server/core/snapshot.h"

/* Invariant: `users` counts the sends that read this buffer. */
struct pd_param_buffer {
    float *parameters; /* lane.element_count */
    float *average;    /* with ema or swa: lane.element_count, of the same version */
    uint32_t users;
};

struct pd_param_store {
    struct pd_range lane;
    struct pd_range shard;
    struct pd_param_buffer buffers[2];
    uint32_t served; /* index of the buffer that holds `version` */
    bool has_version;
    uint64_t version; /* closed steps, skipped ones too */
    float *slow;      /* with lookahead: shard.element_count */
};

/* Allocate for one rank's part of the plan; no version yet.
 * Errors: PD_ENOMEM; nothing to finish then. */
PD_MUST_CHECK
enum pd_status pd_param_store_init(struct pd_param_store *store, const struct pd_shard_plan *plan,
                                   uint32_t rank, const struct pd_config *config,
                                   struct pd_error *error);
void pd_param_store_finish(struct pd_param_store *store);

float *pd_param_store_served(struct pd_param_store *store);
float *pd_param_store_spare(struct pd_param_store *store);

/* Serve the first version, which is in the served buffer; averages and slow weights begin with it.
 */
void pd_param_store_publish_first(struct pd_param_store *store);
/* Whether nobody is sent the spare buffer any more: only then may it be written. */
bool pd_param_store_spare_free(const struct pd_param_store *store);
/* Serve what the spare buffer holds as the next version. */
void pd_param_store_publish_spare(struct pd_param_store *store);
/* The next version has the same parameters. */
void pd_param_store_publish_same(struct pd_param_store *store);

/* Add what belongs to a version to what a snapshot keeps, the parameters and averages being those
 * of buffer `index`. */
void pd_param_store_list(const struct pd_param_store *store, uint32_t index,
                         struct pd_snapshot *snapshot);

/* The averaged parameters of the version served, or NULL without ema or swa. */
const float *pd_param_store_average(const struct pd_param_store *store);

#endif
