#include "tests/bench/memory.h"

#include "common/tensor.h"
#include "server/core/config.h"
#include "server/core/optimizer_state.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define REST_BYTES 64000000u

static uint64_t divide_up(uint64_t dividend, uint64_t divisor)
{
    return (dividend + divisor - 1) / divisor;
}

enum pd_status memory_allowed(const struct bench_options *options, uint64_t *bytes,
                              struct pd_error *error)
{
    const struct pd_tensor tensor = {.dimension_count = 1, .shape = {1}, .element_count = 1};
    struct pd_config *config = NULL;
    char text[128];
    bool direct = strcmp(options->aggregation, "direct") == 0;
    uint64_t shard = divide_up(options->parameters, options->shards);
    uint64_t lane = direct ? shard : options->parameters;
    uint64_t pushers = direct ? options->workers : divide_up(options->workers, options->shards);

    snprintf(text, sizeof text, "optimizer: {name: %s}\n", options->optimizer);
    enum pd_status status = pd_config_create(&config, "defaults", text, NULL, 0, error);
    if (status != PD_OK) {
        return status;
    }
    uint64_t state_bytes =
        sizeof(float) * config->optimizer->state_count(&config->groups[0].hyper, &tensor);
    bool limited = options->staging_limit > 0;
    bool beside = (direct || options->shards == 1) && !limited && isnan(options->clip);
    state_bytes *= beside && pd_optimizer_state_allows_twice(config) ? 2 : 1;
    pd_config_destroy(config);
    uint64_t staged = pushers * lane * pd_dtype_bytes((enum pd_dtype)options->wire);
    if (limited && staged > options->staging_limit) {
        staged = options->staging_limit;
    }
    *bytes = lane * 2 * sizeof(float) + shard * state_bytes + staged + REST_BYTES;
    return PD_OK;
}
