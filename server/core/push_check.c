/* What a rank asks of a push or of initial values before it takes them: by their header alone. */
#include "server/core/engine_state.h"

#include <inttypes.h>
#include <math.h>

/* Errors here begin with what is wrong; of what it is, the callers say before it. */
static enum pd_status check_range(const struct pd_engine *engine, uint64_t element_begin,
                                  uint64_t element_count, uint32_t dtype, uint64_t payload_bytes,
                                  struct pd_error *error)
{
    const struct pd_range *lane = &engine->store.lane;

    if (!pd_dtype_valid(dtype)) {
        return pd_error_set(error, PD_EMODEL, "dtype %u; allowed: 0 float32, 1 bfloat16, 2 float16",
                            dtype);
    }
    if (lane->element_count == 0) {
        return pd_error_set(error, PD_EMODEL, "rank %u holds no part of the model",
                            engine->topology->rank);
    }
    if (element_begin != lane->element_begin || element_count != lane->element_count) {
        return pd_error_set(error, PD_EMODEL,
                            "%" PRIu64 " elements from %" PRIu64 "; rank %u takes %" PRIu64
                            " from %" PRIu64,
                            element_count, element_begin, engine->topology->rank,
                            lane->element_count, lane->element_begin);
    }
    uint64_t expected = element_count * pd_dtype_bytes((enum pd_dtype)dtype);
    if (payload_bytes != expected) {
        return pd_error_set(
            error, PD_EMODEL,
            "payload of %" PRIu64 " bytes; %" PRIu64 " elements of %s are %" PRIu64 " bytes",
            payload_bytes, element_count, pd_dtype_name((enum pd_dtype)dtype), expected);
    }
    return PD_OK;
}

enum pd_status pd_push_check_values(const struct pd_engine *engine, const struct pd_values *values,
                                    uint64_t payload_bytes, struct pd_error *error)
{
    enum pd_status status = check_range(engine, values->element_begin, values->element_count,
                                        PD_DTYPE_FLOAT32, payload_bytes, error);

    return status == PD_OK ? PD_OK : pd_error_prefix(error, "values");
}

static enum pd_status check_push(const struct pd_engine *engine, const struct pd_worker *worker,
                                 const struct pd_push *push, uint64_t payload_bytes,
                                 struct pd_error *error)
{
    if (engine->drained) {
        return pd_error_set(error, PD_EDRAINING, "the daemon is draining: no step will close");
    }
    if (push->hessian && engine->config->optimizer->estimate == NULL) {
        return pd_error_set(error, PD_EREFUSED,
                            "the optimizer, %s, makes no use of an estimate of the Hessian",
                            engine->config->optimizer->name);
    }
    if (push->hessian && (push->pull || push->has_loss)) {
        return pd_error_set(error, PD_EINVALID, "`pull` and `loss` go with the gradient");
    }
    if (!engine->has_model || !engine->store.has_version) {
        return pd_error_set(error, PD_ESTEP, "there are no parameters yet: register first");
    }
    if (worker->replica != engine->replica) {
        return pd_error_set(error, PD_EMODEL, "rank %u is not of this worker's home",
                            engine->topology->rank);
    }
    if (push->pull && !push->last) {
        return pd_error_set(error, PD_EINVALID,
                            "`pull` goes with the last micro-batch only: %u is not",
                            push->micro_batch);
    }
    if (push->pull && !pd_dtype_valid(push->pull_dtype)) {
        return pd_error_set(error, PD_EINVALID,
                            "pull_dtype %u; allowed: 0 float32, 1 bfloat16, 2 float16",
                            push->pull_dtype);
    }
    if (push->samples > PD_SAMPLES_MAX) {
        return pd_error_set(error, PD_EINVALID, "%" PRIu64 " samples; allowed: 0 to %" PRIu64,
                            push->samples, (uint64_t)PD_SAMPLES_MAX);
    }
    if (engine->config->outer && push->absent.byte_count > 0) {
        return pd_error_set(error, PD_EINVALID,
                            "with `outer` every tensor is pushed; some are said to be absent");
    }
    if (!(push->scale >= 0.0) || isinf(push->scale)) {
        return pd_error_set(error, PD_EINVALID,
                            "loss scale %g; allowed: a finite number above 0, or 0 for none",
                            push->scale);
    }
    return check_range(engine, push->element_begin, push->element_count, push->dtype, payload_bytes,
                       error);
}

enum pd_status pd_push_check(const struct pd_engine *engine, const struct pd_worker *worker,
                             const struct pd_push *push, uint64_t payload_bytes,
                             struct pd_error *error)
{
    enum pd_status status = check_push(engine, worker, push, payload_bytes, error);

    if (status == PD_OK) {
        return PD_OK;
    }
    return pd_error_prefix(error, "%s of step %" PRIu64, push->hessian ? "hessian" : "push",
                           push->step);
}
