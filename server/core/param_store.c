#include "server/core/param_store.h"

#include "common/assert.h"
#include "common/heap.h"

#include <string.h>

enum pd_status pd_param_store_init(struct pd_param_store *store, const struct pd_shard_plan *plan,
                                   uint32_t rank, const struct pd_config *config,
                                   struct pd_error *error)
{
    memset(store, 0, sizeof *store);
    store->lane = plan->lanes[pd_shard_plan_lane_of(plan, rank)];
    store->shard = plan->shards[rank];
    for (size_t i = 0; i < 2; i++) {
        store->buffers[i].parameters = pd_heap_zalloc(store->lane.element_count, sizeof(float));
        if (store->buffers[i].parameters == NULL) {
            goto fail;
        }
        if (pd_average_enabled(&config->average)) {
            store->buffers[i].average = pd_heap_zalloc(store->lane.element_count, sizeof(float));
            if (store->buffers[i].average == NULL) {
                goto fail;
            }
        }
    }
    if (config->lookahead.k > 0) {
        store->slow = pd_heap_zalloc(store->shard.element_count, sizeof(float));
        if (store->slow == NULL) {
            goto fail;
        }
    }
    return PD_OK;

fail:
    pd_error_set(error, PD_ENOMEM, "out of memory for %llu parameters to serve",
                 (unsigned long long)store->lane.element_count);
    pd_param_store_finish(store);
    return PD_ENOMEM;
}

void pd_param_store_finish(struct pd_param_store *store)
{
    for (size_t i = 0; i < 2; i++) {
        pd_heap_free(store->buffers[i].parameters);
        pd_heap_free(store->buffers[i].average);
    }
    pd_heap_free(store->slow);
    memset(store, 0, sizeof *store);
}

float *pd_param_store_served(struct pd_param_store *store)
{
    return store->buffers[store->served].parameters;
}

float *pd_param_store_spare(struct pd_param_store *store)
{
    return store->buffers[1 - store->served].parameters;
}

void pd_param_store_publish_first(struct pd_param_store *store)
{
    const struct pd_param_buffer *buffer = &store->buffers[store->served];

    PD_ASSERT(!store->has_version);
    if (buffer->average != NULL) {
        memcpy(buffer->average, buffer->parameters, store->lane.element_count * sizeof(float));
    }
    if (store->slow != NULL) {
        memcpy(store->slow,
               buffer->parameters + (store->shard.element_begin - store->lane.element_begin),
               store->shard.element_count * sizeof(float));
    }
    store->has_version = true;
    store->version = 0;
}

bool pd_param_store_spare_free(const struct pd_param_store *store)
{
    return store->buffers[1 - store->served].users == 0;
}

void pd_param_store_publish_spare(struct pd_param_store *store)
{
    PD_ASSERT(store->has_version);
    store->served = 1 - store->served;
    store->version++;
}

void pd_param_store_publish_same(struct pd_param_store *store)
{
    PD_ASSERT(store->has_version);
    store->version++;
}

void pd_param_store_list(const struct pd_param_store *store, uint32_t index,
                         struct pd_snapshot *snapshot)
{
    const struct pd_param_buffer *buffer = &store->buffers[index];
    uint64_t lane_bytes = store->lane.element_count * sizeof(float);

    pd_snapshot_add(snapshot, buffer->parameters, lane_bytes);
    if (buffer->average != NULL) {
        pd_snapshot_add(snapshot, buffer->average, lane_bytes);
    }
    if (store->slow != NULL) {
        pd_snapshot_add(snapshot, store->slow, store->shard.element_count * sizeof(float));
    }
}

const float *pd_param_store_average(const struct pd_param_store *store)
{
    return store->buffers[store->served].average;
}
