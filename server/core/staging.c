#include "server/core/staging.h"

#include "common/assert.h"
#include "common/heap.h"

#include <inttypes.h>
#include <string.h>

#define BUFFER_ELEMENT_BYTES sizeof(float) /* of the widest type */

static uint64_t largest_lane(const struct pd_shard_plan *plan)
{
    uint64_t largest = 0;

    for (uint32_t lane = 0; lane < plan->lane_count; lane++) {
        uint64_t count = plan->lanes[lane].element_count;
        largest = count > largest ? count : largest;
    }
    return largest;
}

static uint32_t buffers_per_place(const struct pd_config *config)
{
    return (config->accumulation_steps > 1 ? 2u : 1u) *
           (config->optimizer->estimate != NULL ? 2u : 1u);
}

static uint64_t bytes_per_place(const struct pd_config *config, const struct pd_shard_plan *plan)
{
    return buffers_per_place(config) * BUFFER_ELEMENT_BYTES * largest_lane(plan);
}

enum pd_status pd_staging_check(const struct pd_config *config, const struct pd_shard_plan *plan,
                                struct pd_error *error)
{
    uint64_t limit = config->workers.staging_limit;
    uint64_t needed = bytes_per_place(config, plan);

    if (limit > 0 && limit < needed) {
        return pd_error_set(error, PD_ELIMIT,
                            "workers.staging_limit: %" PRIu64 " bytes; allowed: at least %" PRIu64
                            ", what one worker's gradient takes of a rank: %u times 4 bytes for "
                            "each of %" PRIu64 " elements",
                            limit, needed, buffers_per_place(config), largest_lane(plan));
    }
    return PD_OK;
}

enum pd_status pd_staging_init(struct pd_staging *staging, const struct pd_config *config,
                               const struct pd_shard_plan *plan, uint64_t element_count,
                               struct pd_error *error)
{
    uint64_t limit = config->workers.staging_limit;

    if (pd_staging_check(config, plan, error) != PD_OK) {
        return error->status;
    }
    memset(staging, 0, sizeof *staging);
    staging->limited = limit > 0;
    staging->accumulates = config->accumulation_steps > 1;
    staging->element_count = element_count;
    staging->place_buffer_count = buffers_per_place(config);
    staging->place_bytes = bytes_per_place(config, plan);
    staging->place_count = PD_WORKER_COUNT_MAX;
    if (staging->limited && limit / PD_WORKER_COUNT_MAX < staging->place_bytes) {
        staging->place_count = (uint32_t)(limit / staging->place_bytes);
    }
    return PD_OK;
}

void pd_staging_finish(struct pd_staging *staging)
{
    pd_staging_shrink(staging, staging->spare_count);
    PD_ASSERT(staging->buffer_count == 0);
    memset(staging, 0, sizeof *staging);
}

void *pd_staging_take(struct pd_staging *staging)
{
    if (staging->spare_count > 0) {
        return staging->spare[--staging->spare_count];
    }
    PD_ASSERT(!staging->limited ||
              staging->buffer_count < staging->place_count * staging->place_buffer_count);
    PD_ASSERT(staging->buffer_count < PD_STAGING_BUFFER_COUNT_MAX);
    void *buffer = pd_heap_zalloc(staging->element_count, BUFFER_ELEMENT_BYTES);
    staging->buffer_count += buffer != NULL;
    return buffer;
}

void pd_staging_return(struct pd_staging *staging, void *buffer)
{
    if (buffer == NULL) {
        return;
    }
    PD_ASSERT(staging->spare_count < staging->buffer_count);
    staging->spare[staging->spare_count++] = buffer;
}

void pd_staging_shrink(struct pd_staging *staging, uint32_t buffer_count)
{
    for (uint32_t i = 0; i < buffer_count && staging->spare_count > 0; i++) {
        pd_heap_free(staging->spare[--staging->spare_count]);
        staging->buffer_count--;
    }
}
