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

#define PD_DTYPE_COUNT 3

/* Invariant: `users` counts the sends that read this buffer. */
struct pd_param_buffer {
    float *parameters;                  /* lane.element_count */
    uint16_t *halves[PD_DTYPE_COUNT];   /* bfloat16 and float16 copies, made on demand */
    uint64_t converted[PD_DTYPE_COUNT]; /* leading elements of `halves` that are up to date */
    float *average; /* with ema or swa: lane.element_count, of the same version */
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
/* The spare buffer is about to be written, from its beginning: copies of what it held are void. It
 * must have no users. */
void pd_param_store_begin_spare(struct pd_param_store *store);
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

/* What to send of a buffer for `dtype`, and how many of its leading elements are up to date:
 * convert brings on those of a two-byte type. NULL before the first convert. */
const void *pd_param_store_payload(const struct pd_param_store *store, uint32_t buffer_index,
                                   enum pd_dtype dtype, uint64_t *element_count);

/* Bring the copy in a two-byte type on to the first `element_end` elements of the buffer, which are
 * final.
 * Errors: PD_ENOMEM on the first use of a dtype. */
PD_MUST_CHECK
enum pd_status pd_param_store_convert(struct pd_param_store *store, uint32_t buffer_index,
                                      enum pd_dtype dtype, uint64_t element_end,
                                      struct pd_error *error);

#endif
