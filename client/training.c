/* Registering, pushing and pulling: what a handle does with the lanes, all of them at once. */
#include "client/handle.h"
#include "client/parallel.h"

#include "common/assert.h"

#include <inttypes.h>
#include <string.h>

/* Where the next push stands after this one. */
static struct pd_position after(const struct pd_push *push)
{
    if (push->last) {
        return (struct pd_position){.step = push->step + 1, .micro_batch = 0};
    }
    return (struct pd_position){.step = push->step, .micro_batch = push->micro_batch + 1};
}

static enum pd_status attach_lanes(struct paramd_client *client, struct pd_error *error)
{
    for (uint32_t i = 0; i < client->lanes.lane_count; i++) {
        const struct pd_lane *lane = &client->lanes.lanes[i];
        struct pd_connection *connection;
        if (client->requests[i].state == PD_REQUEST_DONE) {
            continue;
        }
        enum pd_status status = pd_exchange_connection(&client->exchange, lane->rank, lane->address,
                                                       &connection, error);
        if (status != PD_OK) {
            return status;
        }
        connection->request = &client->requests[i];
    }
    return PD_OK;
}

/* Whatever the call came to, a push that a lane has accepted is not sent to it again, unless its
 * rank says that it needs it. */
static void note_accepted(struct paramd_client *client)
{
    for (uint32_t i = 0; i < client->lanes.lane_count; i++) {
        const struct pd_request *request = &client->requests[i];
        struct pd_connection *connection =
            pd_exchange_find(&client->exchange, client->lanes.lanes[i].rank);
        if (connection != NULL && request->kind == PD_REQUEST_PUSH && request->accepted &&
            !request->push.hessian) {
            connection->next = after(&request->push);
        }
    }
}

/* Carry out `requests` on all lanes, until what was pulled is of one version. */
static enum pd_status run_lanes(struct paramd_client *client, const struct pd_call *call,
                                struct pd_error *error)
{
    enum pd_status status;

    do {
        status = attach_lanes(client, error);
        if (status == PD_OK) {
            status = pd_parallel_run(&client->exchange, call, client->host_workers, error);
        }
        note_accepted(client);
    } while (status == PD_OK && pd_requests_settle(client->requests, client->lanes.lane_count) > 0);
    return status;
}

/* The lanes that hold a part of the model; the others are done before they begin. */
static bool lane_is_empty(struct paramd_client *client, uint32_t lane_index)
{
    if (client->lanes.lanes[lane_index].element_count > 0) {
        return false;
    }
    pd_request_init_greet(&client->requests[lane_index]);
    client->requests[lane_index].state = PD_REQUEST_DONE;
    return true;
}

/* Remember what the answers say of the version that all lanes brought. */
static void note_pulled(struct paramd_client *client)
{
    for (uint32_t i = 0; i < client->lanes.lane_count; i++) {
        const struct pd_request *request = &client->requests[i];
        if (client->lanes.lanes[i].element_count == 0) {
            continue;
        }
        client->has_version = true;
        client->version = request->pulled.version;
        client->lr_count = request->pulled.lr_count;
        memcpy(client->lrs, request->pulled.lrs, client->lr_count * sizeof client->lrs[0]);
        client->skipped_steps = request->pulled.skipped_steps;
        client->loss_scale = request->pulled.loss_scale;
        client->stop_advised = request->pulled.stop;
        client->host_workers = request->pulled.host_workers;
        break;
    }
    if (client->version > client->next.step) {
        client->next = (struct pd_position){.step = client->version, .micro_batch = 0};
    }
}

static void prepare_pull(struct paramd_client *client, uint64_t min_version, float *const *values,
                         enum pd_dtype dtype)
{
    struct pd_request_arrays arrays = {.model = &client->model, .targets = values};

    for (uint32_t i = 0; i < client->lanes.lane_count; i++) {
        if (!lane_is_empty(client, i)) {
            pd_request_init_pull(&client->requests[i], &client->lanes.lanes[i], &arrays,
                                 min_version, dtype);
        }
    }
}

static enum pd_status pull_lanes(struct paramd_client *client, const struct pd_call *call,
                                 uint64_t min_version, float *const *values, struct pd_error *error)
{
    prepare_pull(client, min_version, values, client->pull_dtype);
    enum pd_status status = run_lanes(client, call, error);
    if (status == PD_OK) {
        note_pulled(client);
    }
    return status;
}

/* Averaged parameters are to look at: they say nothing about the step the worker is at. */
static enum pd_status pull_average(struct paramd_client *client, const struct pd_call *call,
                                   float *const *values, uint64_t *version, struct pd_error *error)
{
    prepare_pull(client, PARAMD_CURRENT, values, PD_DTYPE_FLOAT32);
    for (uint32_t i = 0; i < client->lanes.lane_count; i++) {
        client->requests[i].pull.averaged = true;
    }
    enum pd_status status = run_lanes(client, call, error);
    for (uint32_t i = 0; i < client->lanes.lane_count && version != NULL; i++) {
        if (status == PD_OK && client->lanes.lanes[i].element_count > 0) {
            *version = client->requests[i].pulled.version;
        }
    }
    return status;
}

/* ---- Registering ---- */

static enum pd_status copy_model(struct pd_tensor_list *model, const struct paramd_tensor *tensors,
                                 uint32_t count, struct pd_error *error)
{
    if (count == 0 || count > PD_TENSOR_COUNT_MAX) {
        return pd_error_set(error, PD_ELIMIT, "%u tensors; allowed: 1 to %u", count,
                            PD_TENSOR_COUNT_MAX);
    }
    enum pd_status status = pd_tensor_list_init(model, count, error);
    for (uint32_t i = 0; i < count && status == PD_OK; i++) {
        const struct paramd_tensor *tensor = &tensors[i];
        if (tensor->name == NULL || (tensor->shape == NULL && tensor->dimension_count > 0)) {
            return pd_error_set(error, PD_EINVALID, "tensor %u has no name or no shape", i);
        }
        status = pd_tensor_list_append(model, tensor->name, strlen(tensor->name),
                                       tensor->dimension_count, tensor->shape, error);
    }
    return status;
}

static enum pd_status send_values(struct paramd_client *client, const struct pd_call *call,
                                  float *const *values, struct pd_error *error)
{
    const float *const *sources = (const float *const *)values;
    struct pd_request_arrays arrays = {.model = &client->model, .sources = sources};

    for (uint32_t i = 0; i < client->lanes.lane_count; i++) {
        if (!lane_is_empty(client, i)) {
            pd_request_init_values(&client->requests[i], &client->lanes.lanes[i], &arrays);
        }
    }
    return run_lanes(client, call, error);
}

static enum pd_status offer_model(struct paramd_client *client, float *const *values,
                                  struct pd_error *error)
{
    struct pd_call call = pd_client_call(client, "register");
    struct pd_request request;

    pd_request_init_register(&request, &client->model, &client->lanes);
    enum pd_status status = pd_client_ask_leader(client, &call, &request, error);
    if (status == PD_OK && client->lanes.values_needed) {
        status = send_values(client, &call, values, error);
    }
    if (status != PD_OK) {
        return status;
    }
    client->next = (struct pd_position){.step = client->lanes.step, .micro_batch = 0};
    for (uint32_t i = 0; i < client->exchange.connection_count; i++) {
        client->exchange.connections[i]->next = (struct pd_position){0};
    }
    return pull_lanes(client, &call, client->lanes.step, values, error);
}

static enum pd_status register_model(struct paramd_client *client,
                                     const struct paramd_tensor *tensors, uint32_t count,
                                     float *const *values, struct pd_error *error)
{
    if (!client->exchange.joined || client->registered) {
        return pd_error_set(error, PD_EINVALID, "register: %s",
                            client->registered ? "done already with this handle"
                                               : "only a worker that has joined can");
    }
    if (tensors == NULL || values == NULL) {
        return pd_error_set(error, PD_EINVALID, "register: no tensors or no values given");
    }
    enum pd_status status = copy_model(&client->model, tensors, count, error);
    if (status != PD_OK) {
        pd_error_prefix(error, "register");
    } else {
        status = offer_model(client, values, error);
    }
    if (status != PD_OK) {
        pd_tensor_list_finish(&client->model);
        memset(&client->lanes, 0, sizeof client->lanes);
        return status;
    }
    client->registered = true;
    return PD_OK;
}

enum paramd_status paramd_register(struct paramd_client *client,
                                   const struct paramd_tensor *tensors, uint32_t count,
                                   float *const *values, struct paramd_error *error)
{
    struct pd_error fault = {0};

    if (!pd_client_enter(client, "register", &fault)) {
        return pd_client_result(&fault, error);
    }
    enum pd_status status = register_model(client, tensors, count, values, &fault);
    pthread_mutex_unlock(&client->lock);
    (void)status;
    return pd_client_result(&fault, error);
}

/* ---- Pushing and pulling ---- */

enum pd_status pd_client_check_registered(const struct paramd_client *client, const char *call,
                                          const void *arrays, struct pd_error *error)
{
    if (!client->registered) {
        return pd_error_set(error, PD_EINVALID, "%s: register first", call);
    }
    if (arrays == NULL) {
        return pd_error_set(error, PD_EINVALID, "%s: no arrays given", call);
    }
    return PD_OK;
}

static void note_absent(const struct paramd_client *client, const struct pd_request_arrays *arrays,
                        struct pd_push *push)
{
    push->absent.byte_count = 0;
    for (uint32_t i = 0; i < client->model.count; i++) {
        if (arrays->sources[i] == NULL) {
            pd_tensor_set_add(&push->absent, i);
        }
    }
}

/* What a lane has accepted, as it said in an answer or in the Welcome after a reconnect. */
static struct pd_position accepted_by(struct paramd_client *client, uint32_t lane_index)
{
    const struct pd_connection *connection =
        pd_exchange_find(&client->exchange, client->lanes.lanes[lane_index].rank);

    return connection != NULL ? connection->next : (struct pd_position){0};
}

/* Whether parameters may be written while gradients are still being sent: they are not if an array
 * is both, as when parameters are pushed. */
static bool may_go_ahead(const struct paramd_client *client, const struct pd_request_arrays *arrays)
{
    for (uint32_t i = 0; i < client->model.count; i++) {
        if (arrays->sources[i] == arrays->targets[i]) {
            return false;
        }
    }
    return true;
}

void pd_client_prepare_push(struct paramd_client *client, const struct pd_request_arrays *arrays,
                            struct pd_push *push)
{
    struct pd_position position = push->hessian ? client->next_hessian : client->next;

    push->step = position.step;
    push->micro_batch = position.micro_batch;
    push->last = push->last || push->micro_batch + 1 >= paramd_accumulation_steps(client);
    push->dtype = client->push_dtype;
    push->pull = push->last && arrays->targets != NULL;
    push->pull_dtype = client->pull_dtype;
    push->ahead = push->pull && may_go_ahead(client, arrays);
    note_absent(client, arrays, push);
    for (uint32_t i = 0; i < client->lanes.lane_count; i++) {
        if (!lane_is_empty(client, i)) {
            struct pd_position accepted = {0};
            if (!push->hessian) {
                accepted = accepted_by(client, i);
            }
            pd_request_init_push(&client->requests[i], &client->lanes.lanes[i], arrays, push,
                                 accepted);
        }
    }
}

enum pd_status pd_client_run_push(struct paramd_client *client, const struct pd_call *call,
                                  const struct pd_push *push, struct pd_error *error)
{
    enum pd_status status = run_lanes(client, call, error);

    if (status != PD_OK) {
        return status;
    }
    client->next = after(push);
    if (push->pull) {
        note_pulled(client);
    }
    return PD_OK;
}

struct pd_push pd_client_describe_push(const struct paramd_client *client, uint64_t samples,
                                       const double *loss, unsigned flags)
{
    return (struct pd_push){
        .last = (flags & PARAMD_LAST) != 0,
        .samples = samples,
        .has_loss = loss != NULL,
        .loss = loss != NULL ? *loss : 0.0,
        .scale = (flags & PARAMD_SCALED) != 0 ? paramd_loss_scale(client) : 0.0,
    };
}

enum paramd_status paramd_push(struct paramd_client *client, const float *const *gradients,
                               uint64_t samples, const double *loss, unsigned flags,
                               struct paramd_error *error)
{
    struct pd_error fault = {0};

    if (!pd_client_enter(client, "push", &fault)) {
        return pd_client_result(&fault, error);
    }
    struct pd_push push = pd_client_describe_push(client, samples, loss, flags);
    enum pd_status status = pd_client_check_registered(client, "push", gradients, &fault);
    if (status == PD_OK) {
        struct pd_call call = pd_client_call(client, "push");
        struct pd_request_arrays arrays = {.model = &client->model, .sources = gradients};
        pd_client_prepare_push(client, &arrays, &push);
        status = pd_client_run_push(client, &call, &push, &fault);
    }
    pthread_mutex_unlock(&client->lock);
    (void)status;
    return pd_client_result(&fault, error);
}

/* The next estimate is for the step the next push is for: begin it anew if that is a later one. */
static enum pd_status place_hessian(struct paramd_client *client, struct pd_error *error)
{
    if (client->next_hessian.step > client->next.step) {
        return pd_error_set(error, PD_ESTEP,
                            "push_hessian: the estimate for step %" PRIu64
                            " is complete; the next is for the next step",
                            client->next.step);
    }
    if (client->next_hessian.step < client->next.step) {
        client->next_hessian = (struct pd_position){.step = client->next.step, .micro_batch = 0};
    }
    return PD_OK;
}

static enum pd_status push_hessian(struct paramd_client *client, const float *const *estimates,
                                   uint64_t samples, unsigned flags, struct pd_error *error)
{
    struct pd_call call = pd_client_call(client, "push_hessian");
    struct pd_push push = pd_client_describe_push(client, samples, NULL, flags);
    struct pd_request_arrays arrays = {.model = &client->model, .sources = estimates};

    enum pd_status status = place_hessian(client, error);
    if (status != PD_OK) {
        return status;
    }
    push.hessian = true;
    pd_client_prepare_push(client, &arrays, &push);
    status = run_lanes(client, &call, error);
    if (status == PD_OK) {
        client->next_hessian = after(&push);
    }
    return status;
}

enum paramd_status paramd_push_hessian(struct paramd_client *client, const float *const *estimates,
                                       uint64_t samples, unsigned flags, struct paramd_error *error)
{
    struct pd_error fault = {0};

    if (!pd_client_enter(client, "push_hessian", &fault)) {
        return pd_client_result(&fault, error);
    }
    enum pd_status status = pd_client_check_registered(client, "push_hessian", estimates, &fault);
    if (status == PD_OK) {
        status = push_hessian(client, estimates, samples, flags, &fault);
    }
    pthread_mutex_unlock(&client->lock);
    (void)status;
    return pd_client_result(&fault, error);
}

enum paramd_status paramd_pull(struct paramd_client *client, uint64_t min_version,
                               float *const *values, uint64_t *version, struct paramd_error *error)
{
    struct pd_error fault = {0};

    if (!pd_client_enter(client, "pull", &fault)) {
        return pd_client_result(&fault, error);
    }
    enum pd_status status = pd_client_check_registered(client, "pull", values, &fault);
    if (status == PD_OK) {
        struct pd_call call = pd_client_call(client, "pull");
        uint64_t wanted = min_version == PARAMD_NEXT ? client->version + 1 : min_version;
        status = pull_lanes(client, &call, wanted, values, &fault);
    }
    if (status == PD_OK && version != NULL) {
        *version = client->version;
    }
    pthread_mutex_unlock(&client->lock);
    return pd_client_result(&fault, error);
}

enum paramd_status paramd_pull_average(struct paramd_client *client, float *const *values,
                                       uint64_t *version, struct paramd_error *error)
{
    struct pd_error fault = {0};

    if (!pd_client_enter(client, "pull", &fault)) {
        return pd_client_result(&fault, error);
    }
    enum pd_status status = pd_client_check_registered(client, "pull", values, &fault);
    if (status == PD_OK) {
        struct pd_call call = pd_client_call(client, "pull");
        status = pull_average(client, &call, values, version, &fault);
    }
    pthread_mutex_unlock(&client->lock);
    (void)status;
    return pd_client_result(&fault, error);
}

void pd_client_fill_info(const struct paramd_client *client, const struct pd_push *push,
                         struct paramd_step_info *info)
{
    info->pulled = push->pull;
    info->version = client->version;
    info->lr = client->lrs[0];
    info->skipped_steps = client->skipped_steps;
    info->loss_scale = paramd_loss_scale(client);
    info->stop = client->stop_advised;
}

enum paramd_status paramd_step(struct paramd_client *client, const float *const *gradients,
                               uint64_t samples, const double *loss, unsigned flags,
                               float *const *values, struct paramd_step_info *info,
                               struct paramd_error *error)
{
    struct pd_error fault = {0};

    if (!pd_client_enter(client, "step", &fault)) {
        return pd_client_result(&fault, error);
    }
    struct pd_push push = pd_client_describe_push(client, samples, loss, flags);
    enum pd_status status =
        pd_client_check_registered(client, "step", values == NULL ? NULL : gradients, &fault);
    if (status == PD_OK) {
        struct pd_call call = pd_client_call(client, "step");
        struct pd_request_arrays arrays = {
            .model = &client->model, .sources = gradients, .targets = values};
        pd_client_prepare_push(client, &arrays, &push);
        status = pd_client_run_push(client, &call, &push, &fault);
    }
    if (status == PD_OK && info != NULL) {
        pd_client_fill_info(client, &push, info);
    }
    pthread_mutex_unlock(&client->lock);
    return pd_client_result(&fault, error);
}
