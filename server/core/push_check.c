/* What a rank asks of a push or of initial values before it takes them: by their header alone. */
#include "server/core/engine_state.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

enum pd_status pd_push_check_range(const struct pd_engine *engine, const char *what,
                                   uint64_t element_begin, uint64_t element_count, uint32_t dtype,
                                   uint64_t payload_bytes, struct pd_error *error)
{
    const struct pd_range *lane = &engine->store.lane;

    if (!pd_dtype_valid(dtype)) {
        return pd_error_set(error, PD_EMODEL,
                            "%s: dtype %u; allowed: 0 float32, 1 bfloat16, 2 float16", what, dtype);
    }
    if (lane->element_count == 0) {
        return pd_error_set(error, PD_EMODEL, "%s: rank %u holds no part of the model", what,
                            engine->topology->rank);
    }
    if (element_begin != lane->element_begin || element_count != lane->element_count) {
        return pd_error_set(error, PD_EMODEL,
                            "%s: %" PRIu64 " elements from %" PRIu64 "; rank %u takes %" PRIu64
                            " from %" PRIu64,
                            what, element_count, element_begin, engine->topology->rank,
                            lane->element_count, lane->element_begin);
    }
    uint64_t expected = element_count * pd_dtype_bytes((enum pd_dtype)dtype);
    if (payload_bytes != expected) {
        return pd_error_set(
            error, PD_EMODEL,
            "%s: payload of %" PRIu64 " bytes; %" PRIu64 " elements of %s are %" PRIu64 " bytes",
            what, payload_bytes, element_count, pd_dtype_name((enum pd_dtype)dtype), expected);
    }
    return PD_OK;
}

enum pd_status pd_push_check(const struct pd_engine *engine, const struct pd_worker *worker,
                             const struct pd_push *push, uint64_t payload_bytes,
                             struct pd_error *error)
{
    char what[64];

    snprintf(what, sizeof what, "%s of step %" PRIu64, push->hessian ? "hessian" : "push",
             push->step);
    if (engine->drained) {
        return pd_error_set(error, PD_EDRAINING, "%s: the daemon is draining: no step will close",
                            what);
    }
    if (push->hessian && engine->config->optimizer->estimate == NULL) {
        return pd_error_set(error, PD_EREFUSED,
                            "%s: the optimizer, %s, makes no use of an estimate of the Hessian",
                            what, engine->config->optimizer->name);
    }
    if (push->hessian && (push->pull || push->has_loss)) {
        return pd_error_set(error, PD_EINVALID, "%s: `pull` and `loss` go with the gradient", what);
    }
    if (!engine->has_model || !engine->store.has_version) {
        return pd_error_set(error, PD_ESTEP, "%s: there are no parameters yet: register first",
                            what);
    }
    if (worker->replica != engine->replica) {
        return pd_error_set(error, PD_EMODEL, "%s: rank %u is not of this worker's home", what,
                            engine->topology->rank);
    }
    if (push->pull && !push->last) {
        return pd_error_set(error, PD_EINVALID,
                            "%s: `pull` goes with the last micro-batch only: %u is not", what,
                            push->micro_batch);
    }
    if (push->pull && !pd_dtype_valid(push->pull_dtype)) {
        return pd_error_set(error, PD_EINVALID,
                            "%s: pull_dtype %u; allowed: 0 float32, 1 bfloat16, 2 float16", what,
                            push->pull_dtype);
    }
    if (push->samples > PD_SAMPLES_MAX) {
        return pd_error_set(error, PD_EINVALID, "%s: %" PRIu64 " samples; allowed: 0 to %" PRIu64,
                            what, push->samples, (uint64_t)PD_SAMPLES_MAX);
    }
    if (engine->config->outer && push->absent.byte_count > 0) {
        return pd_error_set(error, PD_EINVALID,
                            "%s: with `outer` every tensor is pushed; some are said to be absent",
                            what);
    }
    if (!(push->scale >= 0.0) || isinf(push->scale)) {
        return pd_error_set(error, PD_EINVALID,
                            "%s: loss scale %g; allowed: a finite number above 0, or 0 for none",
                            what, push->scale);
    }
    return pd_push_check_range(engine, what, push->element_begin, push->element_count, push->dtype,
                               payload_bytes, error);
}
