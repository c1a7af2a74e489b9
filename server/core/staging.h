/* Memory for pushed gradients on one rank: buffers of the size of its lane, shared by all workers
 * that have their home here. One goes with a contribution from the push that begins it until it is
 * added up. config, shard_plan -> [staging] -> roster -> contribution. Pure. Owner: the loop
 * thread.
 *
 * With workers.staging_limit there are only so many, in places: a place is what the contribution of
 * one worker to one step takes. Rank 0 says who has one: see admission.c. */
#ifndef PD_SERVER_CORE_STAGING_H
#define PD_SERVER_CORE_STAGING_H

#include "common/shard_plan.h"
#include "server/core/config.h"

/* Of a worker: a micro-batch and the sum of those before it, of gradients and of estimates. */
#define PD_STAGING_PLACE_BUFFER_COUNT_MAX 4u
#define PD_STAGING_BUFFER_COUNT_MAX (PD_STAGING_PLACE_BUFFER_COUNT_MAX * PD_WORKER_COUNT_MAX)

/* Invariant: spare_count <= buffer_count <= place_count * place_buffer_count if limited. */
struct pd_staging {
    bool limited;
    uint32_t place_count; /* workers that can be read at a time; the same on every rank */
    uint64_t place_bytes; /* of the largest lane; the same on every rank */
    uint32_t place_buffer_count;
    bool accumulates;       /* a contribution has a sum beside its payload */
    uint64_t element_count; /* a buffer holds so many of up to 4 bytes */
    uint32_t buffer_count;  /* made, in use or spare */
    uint32_t spare_count;
    void *spare[PD_STAGING_BUFFER_COUNT_MAX];
};

/* Whether the limit leaves room for one worker on every rank. Errors: PD_ELIMIT. */
PD_MUST_CHECK
enum pd_status pd_staging_check(const struct pd_config *config, const struct pd_shard_plan *plan,
                                struct pd_error *error);

/* For a rank whose lane has `element_count` elements. Nothing is allocated yet.
 * Errors: PD_ELIMIT, as check. */
PD_MUST_CHECK
enum pd_status pd_staging_init(struct pd_staging *staging, const struct pd_config *config,
                               const struct pd_shard_plan *plan, uint64_t element_count,
                               struct pd_error *error);
/* All buffers have been returned. */
void pd_staging_finish(struct pd_staging *staging);

/* A buffer, one that was returned if there is any; NULL when memory is out.
 * Ownership: the caller's, until it returns it. */
void *pd_staging_take(struct pd_staging *staging);
/* NULL is allowed. */
void pd_staging_return(struct pd_staging *staging, void *buffer);
/* So many buffers fewer will be needed: free those of them that are spare. */
void pd_staging_shrink(struct pd_staging *staging, uint32_t buffer_count);

#endif
