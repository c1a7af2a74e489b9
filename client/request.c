#include "client/request.h"

#include "common/assert.h"
#include "common/heap.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void init(struct pd_request *request, enum pd_request_kind kind)
{
    memset(request, 0, sizeof *request);
    request->kind = kind;
}

void pd_request_init_greet(struct pd_request *request)
{
    init(request, PD_REQUEST_GREET);
}

void pd_request_init_join(struct pd_request *request, const char *name, uint64_t nonce)
{
    init(request, PD_REQUEST_JOIN);
    request->name = name;
    request->nonce = nonce;
}

void pd_request_init_register(struct pd_request *request, const struct pd_tensor_list *model,
                              struct pd_registered *registered)
{
    init(request, PD_REQUEST_REGISTER);
    request->arrays.model = model;
    request->registered = registered;
}

void pd_request_init_values(struct pd_request *request, const struct pd_lane *lane,
                            const struct pd_request_arrays *arrays)
{
    init(request, PD_REQUEST_VALUES);
    request->lane = *lane;
    request->arrays = *arrays;
}

bool pd_position_is_after(struct pd_position position, uint64_t step, uint32_t micro_batch)
{
    return position.step > step || (position.step == step && position.micro_batch > micro_batch);
}

/* The push counts: what is left is to pull what it makes, if that was wanted. */
static void accept_push(struct pd_request *request)
{
    request->accepted = true;
    request->state = request->push.pull ? PD_REQUEST_ASKING : PD_REQUEST_DONE;
    request->pull.min_version = request->push.step + 1;
    request->pull.dtype = request->push.pull_dtype;
}

void pd_request_init_push(struct pd_request *request, const struct pd_lane *lane,
                          const struct pd_request_arrays *arrays, const struct pd_push *push,
                          struct pd_position next)
{
    PD_ASSERT(arrays->sources != NULL);
    PD_ASSERT(!push->pull || arrays->targets != NULL);
    init(request, PD_REQUEST_PUSH);
    request->lane = *lane;
    request->arrays = *arrays;
    pd_push_copy(&request->push, push);
    request->push.element_begin = lane->element_begin;
    request->push.element_count = lane->element_count;
    if (pd_position_is_after(next, push->step, push->micro_batch)) {
        accept_push(request);
    }
}

void pd_request_init_pull(struct pd_request *request, const struct pd_lane *lane,
                          const struct pd_request_arrays *arrays, uint64_t min_version,
                          enum pd_dtype dtype)
{
    PD_ASSERT(arrays->targets != NULL);
    init(request, PD_REQUEST_PULL);
    request->lane = *lane;
    request->arrays = *arrays;
    request->pull.min_version = min_version;
    request->pull.dtype = dtype;
}

void pd_request_init_leave(struct pd_request *request, struct pd_position position)
{
    init(request, PD_REQUEST_LEAVE);
    request->left_at = position;
}

void pd_request_init_metric(struct pd_request *request, const struct pd_metric *metric)
{
    init(request, PD_REQUEST_METRIC);
    request->metric = metric;
}

void pd_request_init_admin(struct pd_request *request, const struct pd_admin *admin)
{
    init(request, PD_REQUEST_ADMIN);
    request->admin = admin;
}

/* Whether what is asked for now is parameters alone. */
static bool asks_pull(const struct pd_request *request)
{
    return request->kind == PD_REQUEST_PULL ||
           (request->kind == PD_REQUEST_PUSH && request->accepted);
}

static void send_push(const struct pd_request *request, struct pd_message *message,
                      struct pd_payload *payload)
{
    message->kind = request->push.hessian ? PD_MESSAGE_HESSIAN : PD_MESSAGE_PUSH;
    pd_push_copy(&message->push, &request->push);
    pd_payload_init_sources(payload, request->arrays.model, request->arrays.sources,
                            (enum pd_dtype)request->push.dtype, request->lane.element_begin,
                            request->lane.element_count);
    payload->gate = request->arrays.gate;
}

static void send_values(const struct pd_request *request, struct pd_message *message,
                        struct pd_payload *payload)
{
    message->kind = PD_MESSAGE_VALUES;
    message->values.element_begin = request->lane.element_begin;
    message->values.element_count = request->lane.element_count;
    pd_payload_init_sources(payload, request->arrays.model, request->arrays.sources,
                            PD_DTYPE_FLOAT32, request->lane.element_begin,
                            request->lane.element_count);
}

void pd_request_send(struct pd_request *request, struct pd_message *message,
                     struct pd_payload *payload)
{
    PD_ASSERT(request->state == PD_REQUEST_ASKING);
    memset(payload, 0, sizeof *payload);
    switch (request->kind) {
    case PD_REQUEST_GREET:
        PD_ASSERT(false);
        break;
    case PD_REQUEST_JOIN:
        message->kind = PD_MESSAGE_JOIN;
        snprintf(message->join.name, sizeof message->join.name, "%s", request->name);
        message->join.nonce = request->nonce;
        break;
    case PD_REQUEST_REGISTER:
        message->kind = PD_MESSAGE_REGISTER;
        message->registration.tensors = *request->arrays.model;
        break;
    case PD_REQUEST_VALUES:
        send_values(request, message, payload);
        break;
    case PD_REQUEST_PUSH:
        if (!request->accepted) {
            send_push(request, message, payload);
            break;
        }
        message->kind = PD_MESSAGE_PULL;
        message->pull = request->pull;
        break;
    case PD_REQUEST_PULL:
        message->kind = PD_MESSAGE_PULL;
        message->pull = request->pull;
        break;
    case PD_REQUEST_LEAVE:
        message->kind = PD_MESSAGE_LEAVE;
        message->leave.step = request->left_at.step;
        message->leave.micro_batch = request->left_at.micro_batch;
        break;
    case PD_REQUEST_METRIC:
        message->kind = PD_MESSAGE_METRIC;
        message->metric = *request->metric;
        break;
    case PD_REQUEST_ADMIN:
        message->kind = PD_MESSAGE_ADMIN;
        message->admin = *request->admin;
        break;
    }
    request->state = PD_REQUEST_WAITING;
}

void pd_request_lost(struct pd_request *request)
{
    if (request->state == PD_REQUEST_DONE) {
        return;
    }
    if (request->state != PD_REQUEST_ASKING) {
        request->asked_before = true;
    }
    request->state = PD_REQUEST_ASKING;
}

enum pd_status pd_request_welcomed(struct pd_request *request, const struct pd_welcome *welcome,
                                   uint64_t run_id, struct pd_error *error)
{
    struct pd_position next = {.step = welcome->next_step,
                               .micro_batch = welcome->next_micro_batch};

    if (run_id != 0 && welcome->run_id != run_id) {
        return pd_error_set(error, PD_EIDENTITY,
                            "the daemon was restarted (run %016" PRIx64 ", was %016" PRIx64
                            "): join again",
                            welcome->run_id, run_id);
    }
    if (request->state != PD_REQUEST_ASKING) {
        return PD_OK;
    }
    if (request->kind == PD_REQUEST_GREET ||
        (request->kind == PD_REQUEST_VALUES && request->asked_before && welcome->has_version)) {
        request->state = PD_REQUEST_DONE;
    } else if (request->kind == PD_REQUEST_PUSH && !request->push.hessian) {
        /* What was accepted before may have been taken back. */
        request->accepted = false;
        if (pd_position_is_after(next, request->push.step, request->push.micro_batch)) {
            accept_push(request);
        }
    }
    return PD_OK;
}

/* Damaged on the way to the rank or back: ask again, but not for ever. */
static enum pd_status ask_again(struct pd_request *request, const char *where,
                                struct pd_error *error)
{
    request->damaged++;
    if (request->damaged >= PD_REQUEST_DAMAGED_MAX) {
        return pd_error_set(error, PD_ECHECKSUM,
                            "the payload did not match its checksum %s, %u times in a row", where,
                            request->damaged);
    }
    request->state = PD_REQUEST_ASKING;
    return PD_OK;
}

static enum pd_status take_error(struct pd_request *request, const struct pd_error_message *message,
                                 struct pd_error *error)
{
    enum pd_status status =
        message->status == PD_OK ? PD_EPROTOCOL : (enum pd_status)message->status;

    if (status == PD_ECHECKSUM && !message->fatal) {
        return ask_again(request, "when it arrived at the rank", error);
    }
    /* The first copy was heard, only its answer was lost. */
    if (status == PD_EIDENTITY && request->kind == PD_REQUEST_LEAVE && request->asked_before) {
        request->state = PD_REQUEST_DONE;
        return PD_OK;
    }
    request->state = PD_REQUEST_DONE;
    return pd_error_set(error, status, "%s", message->text);
}

static enum pd_status take_pulled(struct pd_request *request, const struct pd_pulled *pulled,
                                  uint64_t payload_bytes, struct pd_error *error)
{
    bool combined = request->kind == PD_REQUEST_PUSH && !request->accepted;
    uint32_t dtype = combined ? request->push.pull_dtype : request->pull.dtype;
    uint64_t min_version = combined ? request->push.step + 1 : request->pull.min_version;
    uint64_t expected_bytes = request->lane.element_count * pd_dtype_bytes((enum pd_dtype)dtype);
    bool averaged = !combined && request->pull.averaged;

    if (pulled->dtype != dtype || pulled->element_begin != request->lane.element_begin ||
        pulled->element_count != request->lane.element_count || payload_bytes != expected_bytes) {
        return pd_error_set(error, PD_EPROTOCOL,
                            "got %" PRIu64 " elements from %" PRIu64 " of dtype %u in %" PRIu64
                            " bytes, asked for %" PRIu64 " from %" PRIu64 " of dtype %u",
                            pulled->element_count, pulled->element_begin, pulled->dtype,
                            payload_bytes, request->lane.element_count, request->lane.element_begin,
                            dtype);
    }
    if (pulled->averaged != averaged) {
        return pd_error_set(error, PD_EPROTOCOL, "got %s, asked for %s",
                            pulled->averaged ? "averaged parameters" : "parameters",
                            averaged ? "averaged ones" : "those of the step");
    }
    if (pulled->version < min_version) {
        return pd_error_set(error, PD_EPROTOCOL,
                            "got version %" PRIu64 ", asked for %" PRIu64 " or later",
                            pulled->version, min_version);
    }
    if (pulled->ahead && !(combined && request->push.ahead)) {
        return pd_error_set(error, PD_EPROTOCOL,
                            "got parameters ahead of their step, which was not asked for");
    }
    if (combined && !pulled->ahead) {
        accept_push(request);
    }
    request->pulled = *pulled;
    request->state = PD_REQUEST_RECEIVING;
    return PD_OK;
}

/* The rank says whether what it sent ahead counts, or that it needs the push again. */
static enum pd_status take_settled(struct pd_request *request, const struct pd_settled *settled,
                                   struct pd_error *error)
{
    if (settled->pulled.version != request->push.step + 1) {
        return pd_error_set(error, PD_EPROTOCOL,
                            "settled was version %" PRIu64 ", pushed for was version %" PRIu64,
                            settled->pulled.version, request->push.step + 1);
    }
    if (settled->again) {
        request->accepted = false;
        request->state = PD_REQUEST_ASKING;
        return PD_OK;
    }
    if (!settled->applied) {
        request->state = PD_REQUEST_WAITING;
        return PD_OK;
    }
    accept_push(request);
    if (!request->intact) {
        return ask_again(request, "when it arrived here", error);
    }
    request->pulled = settled->pulled;
    request->state = PD_REQUEST_DONE;
    return PD_OK;
}

/* A push may be asked for again before anything has come ahead, too, or while it is about to be
 * pulled what it makes. */
static bool is_settled_by(const struct pd_request *request, const struct pd_message *message)
{
    bool asked_again =
        request->kind == PD_REQUEST_PUSH && request->push.ahead && message->settled.again;

    return message->kind == PD_MESSAGE_SETTLED &&
           (request->state == PD_REQUEST_SETTLING || asked_again);
}

static enum pd_status take_pushed(struct pd_request *request, const struct pd_pushed *pushed,
                                  struct pd_error *error)
{
    if (pushed->step != request->push.step || pushed->micro_batch != request->push.micro_batch ||
        pushed->hessian != request->push.hessian) {
        return pd_error_set(error, PD_EPROTOCOL,
                            "acknowledged step %" PRIu64
                            ", micro-batch %u; pushed was step %" PRIu64 ", micro-batch %u",
                            pushed->step, pushed->micro_batch, request->push.step,
                            request->push.micro_batch);
    }
    accept_push(request);
    return PD_OK;
}

/* The message that answers what is asked for now. */
static bool answers(const struct pd_request *request, enum pd_message_kind kind)
{
    if (asks_pull(request)) {
        return kind == PD_MESSAGE_PULLED;
    }
    switch (request->kind) {
    case PD_REQUEST_JOIN:
        return kind == PD_MESSAGE_JOINED;
    case PD_REQUEST_REGISTER:
        return kind == PD_MESSAGE_REGISTERED;
    case PD_REQUEST_VALUES:
        return kind == PD_MESSAGE_VALUES_STORED;
    case PD_REQUEST_PUSH:
        return kind == (request->push.pull ? PD_MESSAGE_PULLED : PD_MESSAGE_PUSHED);
    case PD_REQUEST_LEAVE:
        return kind == PD_MESSAGE_LEFT;
    case PD_REQUEST_METRIC:
        return kind == PD_MESSAGE_METRIC_STORED;
    case PD_REQUEST_ADMIN:
        return kind == PD_MESSAGE_ADMIN_REPLY;
    case PD_REQUEST_GREET:
    case PD_REQUEST_PULL:
        break;
    }
    return false;
}

static enum pd_status take_registered(struct pd_request *request,
                                      const struct pd_registered *registered,
                                      struct pd_error *error)
{
    uint64_t element = 0;

    for (uint32_t i = 0; i < registered->lane_count; i++) {
        if (registered->lanes[i].element_begin != element ||
            registered->lanes[i].rank >= PD_RANK_COUNT_MAX) {
            break;
        }
        element += registered->lanes[i].element_count;
    }
    if (element != request->arrays.model->element_count) {
        return pd_error_set(error, PD_EPROTOCOL,
                            "the shard map covers %" PRIu64 " of %" PRIu64 " elements in order",
                            element, request->arrays.model->element_count);
    }
    *request->registered = *registered;
    request->state = PD_REQUEST_DONE;
    return PD_OK;
}

static enum pd_status take_reply(struct pd_request *request, uint64_t payload_bytes,
                                 struct pd_error *error)
{
    if (payload_bytes == 0 || payload_bytes > PD_ADMIN_PAYLOAD_BYTES_MAX) {
        return pd_error_set(error, PD_ELIMIT, "a reply of %" PRIu64 " bytes; allowed: 1 to %u",
                            payload_bytes, PD_ADMIN_PAYLOAD_BYTES_MAX);
    }
    request->reply_bytes = payload_bytes;
    request->state = PD_REQUEST_RECEIVING;
    return PD_OK;
}

enum pd_status pd_request_answered(struct pd_request *request, const struct pd_message *message,
                                   uint64_t payload_bytes, struct pd_error *error)
{
    if (message->kind == PD_MESSAGE_ERROR) {
        return take_error(request, &message->error, error);
    }
    if (is_settled_by(request, message) && payload_bytes == 0) {
        return take_settled(request, &message->settled, error);
    }
    if (request->state != PD_REQUEST_WAITING || !answers(request, message->kind)) {
        return pd_error_set(error, PD_EPROTOCOL, "an answer that was not asked for: %s",
                            pd_message_kind_name(message->kind));
    }
    bool payload_allowed =
        message->kind == PD_MESSAGE_PULLED || message->kind == PD_MESSAGE_ADMIN_REPLY;
    if (payload_bytes > 0 && !payload_allowed) {
        return pd_error_set(error, PD_EPROTOCOL, "%s with a payload of %" PRIu64 " bytes",
                            pd_message_kind_name(message->kind), payload_bytes);
    }
    switch (message->kind) {
    case PD_MESSAGE_PULLED:
        return take_pulled(request, &message->pulled, payload_bytes, error);
    case PD_MESSAGE_PUSHED:
        return take_pushed(request, &message->pushed, error);
    case PD_MESSAGE_REGISTERED:
        return take_registered(request, &message->registered, error);
    case PD_MESSAGE_ADMIN_REPLY:
        return take_reply(request, payload_bytes, error);
    case PD_MESSAGE_JOINED:
        request->joined = message->joined;
        break;
    default:
        break;
    }
    request->state = PD_REQUEST_DONE;
    return PD_OK;
}

enum pd_status pd_request_place(struct pd_request *request, struct pd_payload *payload,
                                struct pd_error *error)
{
    PD_ASSERT(request->state == PD_REQUEST_RECEIVING);
    if (request->kind != PD_REQUEST_ADMIN) {
        pd_payload_init_targets(payload, request->arrays.model, request->arrays.targets,
                                (enum pd_dtype)request->pulled.dtype, request->lane.element_begin,
                                request->lane.element_count);
        return PD_OK;
    }
    pd_heap_free(request->reply);
    request->reply = pd_heap_zalloc(request->reply_bytes + 1, 1);
    if (request->reply == NULL) {
        return pd_error_set(error, PD_ENOMEM, "out of memory for a reply of %" PRIu64 " bytes",
                            request->reply_bytes);
    }
    pd_payload_init_bytes(payload, (uint8_t *)request->reply, request->reply_bytes);
    return PD_OK;
}

enum pd_status pd_request_received(struct pd_request *request, bool checksum_ok,
                                   struct pd_error *error)
{
    PD_ASSERT(request->state == PD_REQUEST_RECEIVING);
    if (request->pulled.ahead && request->kind == PD_REQUEST_PUSH) {
        request->intact = checksum_ok;
        request->state = PD_REQUEST_SETTLING;
        return PD_OK;
    }
    if (!checksum_ok) {
        return ask_again(request, "when it arrived here", error);
    }
    request->state = PD_REQUEST_DONE;
    return PD_OK;
}

const char *pd_request_missing(const struct pd_request *request, char *text, size_t text_bytes)
{
    if (asks_pull(request) || (request->kind == PD_REQUEST_PUSH && request->push.pull)) {
        uint64_t version = request->accepted || request->kind == PD_REQUEST_PULL
                               ? request->pull.min_version
                               : request->push.step + 1;
        snprintf(text, text_bytes, "no version %" PRIu64, version);
        return text;
    }
    switch (request->kind) {
    case PD_REQUEST_GREET:
        return "no welcome";
    case PD_REQUEST_JOIN:
        return "not joined";
    case PD_REQUEST_REGISTER:
        return "no parameters yet";
    case PD_REQUEST_VALUES:
        return "initial values not stored";
    case PD_REQUEST_PUSH:
        snprintf(text, text_bytes, "%sstep %" PRIu64 ", micro-batch %u not acknowledged",
                 request->push.hessian ? "Hessian of " : "", request->push.step,
                 request->push.micro_batch);
        return text;
    case PD_REQUEST_LEAVE:
    case PD_REQUEST_METRIC:
        return "not acknowledged";
    case PD_REQUEST_ADMIN:
    case PD_REQUEST_PULL:
        break;
    }
    return "no answer";
}

bool pd_request_ends_with_draining(const struct pd_request *request)
{
    return request->kind != PD_REQUEST_ADMIN && request->kind != PD_REQUEST_LEAVE &&
           request->kind != PD_REQUEST_METRIC && request->kind != PD_REQUEST_GREET;
}

/* Whether a finished request brought parameters. */
static bool has_pulled(const struct pd_request *request)
{
    return request->state == PD_REQUEST_DONE && asks_pull(request) &&
           (request->kind == PD_REQUEST_PULL || request->push.pull);
}

uint32_t pd_requests_settle(struct pd_request *requests, uint32_t count)
{
    uint64_t newest = 0;
    uint32_t reopened = 0;

    for (uint32_t i = 0; i < count; i++) {
        if (has_pulled(&requests[i]) && requests[i].pulled.version > newest) {
            newest = requests[i].pulled.version;
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        if (has_pulled(&requests[i]) && requests[i].pulled.version < newest) {
            requests[i].pull.min_version = newest;
            requests[i].state = PD_REQUEST_ASKING;
            reopened++;
        }
    }
    return reopened;
}
