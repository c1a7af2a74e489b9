/* Headers -> plain structs. See message.h. */
#include "common/message.h"

#include "common/assert.h"
#include "common/heap.h"
#include "common/text.h"

#include "paramd.pb-c.h"

#include <inttypes.h>
#include <string.h>

/* Enough for every message of a step, so that decoding one takes nothing from the heap. */
#define ARENA_FIRST_BYTES 16384u
#define ARENA_CHUNK_BYTES 65536u
/* Memory that decoding may take for each byte that a header of its kind may have. A list of 8192
 * tensors takes less; a header of nothing but unknown two-byte fields would take more. */
#define ARENA_BYTES_PER_HEADER_BYTE 40u

struct arena_chunk {
    struct arena_chunk *next;
    _Alignas(16) uint8_t bytes[];
};

/* Memory for one decoding, given back all at once. */
struct arena {
    _Alignas(16) uint8_t first[ARENA_FIRST_BYTES];
    uint8_t *free_begin;
    size_t free_bytes;
    struct arena_chunk *chunks;
    size_t budget_bytes; /* what chunks may still take */
    bool over_budget;
    bool out_of_memory;
};

static void arena_init(struct arena *arena, size_t budget_bytes)
{
    arena->free_begin = arena->first;
    arena->free_bytes = sizeof arena->first;
    arena->chunks = NULL;
    arena->budget_bytes = budget_bytes;
    arena->over_budget = false;
    arena->out_of_memory = false;
}

static void arena_finish(struct arena *arena)
{
    while (arena->chunks != NULL) {
        struct arena_chunk *next = arena->chunks->next;
        pd_heap_free(arena->chunks);
        arena->chunks = next;
    }
}

static bool arena_grow(struct arena *arena, size_t byte_count)
{
    size_t chunk_bytes = byte_count > ARENA_CHUNK_BYTES ? byte_count : ARENA_CHUNK_BYTES;
    if (chunk_bytes > arena->budget_bytes) {
        chunk_bytes = byte_count;
    }
    if (chunk_bytes > arena->budget_bytes) {
        arena->over_budget = true;
        return false;
    }
    struct arena_chunk *chunk = pd_heap_zalloc(1, sizeof *chunk + chunk_bytes);
    if (chunk == NULL) {
        arena->out_of_memory = true;
        return false;
    }
    chunk->next = arena->chunks;
    arena->chunks = chunk;
    arena->budget_bytes -= chunk_bytes;
    arena->free_begin = chunk->bytes;
    arena->free_bytes = chunk_bytes;
    return true;
}

static void *arena_alloc(void *allocator_data, size_t byte_count)
{
    struct arena *arena = allocator_data;
    if (byte_count > SIZE_MAX / 2) {
        arena->over_budget = true;
        return NULL;
    }
    byte_count = (byte_count + 15) & ~(size_t)15;
    if (byte_count > arena->free_bytes && !arena_grow(arena, byte_count)) {
        return NULL;
    }
    void *memory = arena->free_begin;
    arena->free_begin += byte_count;
    arena->free_bytes -= byte_count;
    return memory;
}

static void arena_free(void *allocator_data, void *memory)
{
    (void)allocator_data;
    (void)memory;
}

/* Checks the fields of one message. The first fault stays. */
struct checker {
    const char *kind_name;
    enum pd_status status;
    struct pd_error *error;
};

static void check_text(struct checker *checker, const char *field, const char *from, char *to,
                       size_t to_bytes)
{
    size_t byte_count = strlen(from);
    if (checker->status != PD_OK) {
        return;
    }
    if (byte_count >= to_bytes) {
        checker->status =
            pd_error_set(checker->error, PD_ELIMIT, "%s: %s of %zu bytes, at most %zu",
                         checker->kind_name, field, byte_count, to_bytes - 1);
        return;
    }
    if (!pd_text_valid(from, byte_count)) {
        checker->status =
            pd_error_set(checker->error, PD_EPROTOCOL, "%s: %s is not printable utf-8 text",
                         checker->kind_name, field);
        return;
    }
    memcpy(to, from, byte_count + 1);
}

static void check_number(struct checker *checker, const char *field, uint64_t value, uint64_t least,
                         uint64_t most)
{
    if (checker->status == PD_OK && (value < least || value > most)) {
        checker->status = pd_error_set(checker->error, PD_EPROTOCOL,
                                       "%s: %s is %" PRIu64 ", allowed are %" PRIu64 " to %" PRIu64,
                                       checker->kind_name, field, value, least, most);
    }
}

static void check_count(struct checker *checker, const char *field, size_t count, size_t most)
{
    if (checker->status == PD_OK && count > most) {
        checker->status = pd_error_set(checker->error, PD_ELIMIT, "%s: %zu %s, at most %zu",
                                       checker->kind_name, count, field, most);
    }
}

/* Fill `list`, unless there is a fault already. */
static void check_tensors(struct checker *checker, Paramd__Tensor *const *tensors, size_t count,
                          struct pd_tensor_list *list)
{
    check_count(checker, "tensors", count, PD_TENSOR_COUNT_MAX);
    if (checker->status != PD_OK) {
        return;
    }
    checker->status = pd_tensor_list_init(list, (uint32_t)count, checker->error);
    for (size_t i = 0; checker->status == PD_OK && i < count; i++) {
        const Paramd__Tensor *tensor = tensors[i];
        size_t dimension_count = tensor->n_shape;
        uint32_t bounded = dimension_count > UINT32_MAX ? UINT32_MAX : (uint32_t)dimension_count;
        checker->status = pd_tensor_list_append(list, tensor->name, strlen(tensor->name), bounded,
                                                tensor->shape, checker->error);
    }
    if (checker->status != PD_OK) {
        pd_tensor_list_finish(list);
    }
}

static void take_hello(struct checker *checker, const Paramd__Hello *from, struct pd_hello *to)
{
    check_text(checker, "client", from->client, to->client, sizeof to->client);
    check_text(checker, "host", from->host, to->host, sizeof to->host);
    to->has_worker_id =
        from->worker_id_presence_case == PARAMD__HELLO__WORKER_ID_PRESENCE_WORKER_ID;
    to->worker_id = to->has_worker_id ? from->worker_id : 0;
    to->token = from->token;
    to->run_id = from->run_id;
}

static void take_welcome(struct checker *checker, const Paramd__Welcome *from,
                         struct pd_welcome *to)
{
    check_number(checker, "rank_count", from->rank_count, 1, PD_RANK_COUNT_MAX);
    check_number(checker, "rank", from->rank, 0, (uint64_t)from->rank_count - 1);
    check_text(checker, "leader", from->leader, to->leader, sizeof to->leader);
    check_text(checker, "server", from->server, to->server, sizeof to->server);
    to->run_id = from->run_id;
    to->rank = from->rank;
    to->rank_count = from->rank_count;
    to->lease_ms = from->lease_ms;
    to->next_step = from->next_step;
    to->next_micro_batch = from->next_micro_batch;
    to->has_version = from->version_presence_case == PARAMD__WELCOME__VERSION_PRESENCE_VERSION;
    to->version = to->has_version ? from->version : 0;
}

static void take_joined(struct checker *checker, const Paramd__Joined *from, struct pd_joined *to)
{
    check_text(checker, "name", from->name, to->name, sizeof to->name);
    check_number(checker, "accumulation_steps", from->accumulation_steps, 1,
                 PD_ACCUMULATION_STEPS_MAX);
    to->worker_id = from->worker_id;
    to->token = from->token;
    to->accumulation_steps = from->accumulation_steps;
}

static void take_register(struct checker *checker, const Paramd__Register *from,
                          struct pd_register *to)
{
    if (from->n_tensors == 0) {
        checker->status =
            pd_error_set(checker->error, PD_EMODEL, "register: no tensors, at least 1");
        return;
    }
    check_tensors(checker, from->tensors, from->n_tensors, &to->tensors);
}

static void take_registered(struct checker *checker, const Paramd__Registered *from,
                            struct pd_registered *to)
{
    check_number(checker, "lane count", from->n_lanes, 1, PD_RANK_COUNT_MAX);
    check_number(checker, "block_elements", from->block_elements, 1, PD_BLOCK_ELEMENT_COUNT_MAX);
    uint64_t element_end = 0;
    for (size_t i = 0; checker->status == PD_OK && i < from->n_lanes; i++) {
        const Paramd__Lane *lane = from->lanes[i];
        check_number(checker, "rank of a lane", lane->rank, 0, PD_RANK_COUNT_MAX - 1);
        check_number(checker, "element_begin of a lane", lane->element_begin, element_end,
                     element_end);
        check_number(checker, "element_count of a lane", lane->element_count, 0,
                     PD_LANE_ELEMENT_COUNT_MAX);
        check_text(checker, "address of a lane", lane->address, to->lanes[i].address,
                   sizeof to->lanes[i].address);
        to->lanes[i].rank = lane->rank;
        to->lanes[i].element_begin = lane->element_begin;
        to->lanes[i].element_count = lane->element_count;
        element_end += lane->element_count;
    }
    to->lane_count = (uint32_t)from->n_lanes;
    to->values_needed = from->values_needed != 0;
    to->block_elements = from->block_elements;
    to->step = from->step;
}

static void take_set(struct checker *checker, const ProtobufCBinaryData *from,
                     struct pd_tensor_set *to)
{
    check_count(checker, "bytes of absent tensors", from->len, PD_TENSOR_SET_BYTES_MAX);
    if (checker->status == PD_OK) {
        to->byte_count = (uint32_t)from->len;
        if (from->len > 0) {
            memcpy(to->bytes, from->data, from->len);
        }
    }
}

static void take_push(struct checker *checker, const Paramd__Push *from, struct pd_push *to)
{
    to->step = from->step;
    to->micro_batch = from->micro_batch;
    to->last = from->last != 0;
    to->samples = from->samples;
    to->has_loss = from->loss_presence_case == PARAMD__PUSH__LOSS_PRESENCE_LOSS;
    to->dtype = from->dtype;
    to->element_begin = from->element_begin;
    to->element_count = from->element_count;
    to->pull = from->pull != 0;
    to->pull_dtype = from->pull_dtype;
    to->scale = from->scale;
    to->ahead = from->ahead != 0;
    to->loss = to->has_loss ? from->loss : 0;
    take_set(checker, &from->absent, &to->absent);
}

static void take_pulled(struct checker *checker, const Paramd__Pulled *from, struct pd_pulled *to)
{
    check_count(checker, "learning rates", from->n_lrs, PD_GROUP_COUNT_MAX + 1);
    if (checker->status != PD_OK) {
        return;
    }
    to->version = from->version;
    to->dtype = from->dtype;
    to->element_begin = from->element_begin;
    to->element_count = from->element_count;
    to->lr_count = (uint32_t)from->n_lrs;
    for (size_t i = 0; i < from->n_lrs; i++) {
        to->lrs[i] = from->lrs[i];
    }
    to->skipped_steps = from->skipped_steps;
    to->loss_scale = from->loss_scale;
    to->host_workers = from->host_workers;
    to->stop = from->stop != 0;
    to->averaged = from->averaged != 0;
    to->ahead = from->ahead != 0;
}

static void take_settled(struct checker *checker, const Paramd__Settled *from,
                         struct pd_settled *to)
{
    if (from->pulled == NULL) {
        checker->status = pd_error_set(checker->error, PD_EPROTOCOL, "settled: no pulled in it");
        return;
    }
    to->applied = from->applied != 0;
    to->again = from->again != 0;
    take_pulled(checker, from->pulled, &to->pulled);
}

static void take_error(struct checker *checker, const Paramd__Error *from,
                       struct pd_error_message *to)
{
    check_text(checker, "text", from->text, to->text, sizeof to->text);
    to->status = from->status;
    to->fatal = from->fatal != 0;
}

static void take_metric(struct checker *checker, const Paramd__Metric *from, struct pd_metric *to)
{
    check_text(checker, "name", from->name, to->name, sizeof to->name);
    to->value = from->value;
    to->step = from->step;
}

static void take_admin(struct checker *checker, const Paramd__Admin *from, struct pd_admin *to)
{
    check_text(checker, "command", from->command, to->command, sizeof to->command);
    check_text(checker, "target", from->target, to->target, sizeof to->target);
    to->has_value = from->value_presence_case == PARAMD__ADMIN__VALUE_PRESENCE_VALUE;
    to->value = to->has_value ? from->value : 0;
    to->count = from->count;
    to->begin = from->begin;
    to->setting_count = 0;
    check_count(checker, "settings", from->n_settings, PD_ADMIN_SETTING_COUNT_MAX);
    for (size_t i = 0; checker->status == PD_OK && i < from->n_settings; i++) {
        check_text(checker, "setting", from->settings[i], to->settings[i], sizeof to->settings[i]);
        to->setting_count++;
    }
}

static void take_order(struct checker *checker, const Paramd__Order *from, struct pd_order *to)
{
    check_number(checker, "kind", from->kind, PD_ORDER_JOIN, PD_ORDER_TAKE);
    check_text(checker, "name", from->name, to->name, sizeof to->name);
    check_text(checker, "reason", from->reason, to->reason, sizeof to->reason);
    check_number(checker, "replica", from->replica, 0, PD_RANK_COUNT_MAX - 1);
    check_count(checker, "contributors", from->n_contributors, PD_WORKER_COUNT_MAX);
    check_number(checker, "number of weights", from->n_weights, from->n_contributors,
                 from->n_contributors);
    check_count(checker, "learning rates", from->n_lrs, PD_GROUP_COUNT_MAX + 1);
    if (from->n_momenta > 0) {
        check_number(checker, "number of momenta", from->n_momenta, from->n_lrs, from->n_lrs);
    }
    if (checker->status != PD_OK) {
        return;
    }

    to->index = from->index;
    to->kind = (enum pd_order_kind)from->kind;
    to->step = from->step;
    to->worker_id = from->worker_id;
    to->token = from->token;
    to->replica = from->replica;
    to->contributor_count = (uint32_t)from->n_contributors;
    for (size_t i = 0; i < from->n_contributors; i++) {
        to->contributors[i] = from->contributors[i];
        to->weights[i] = from->weights[i];
    }
    to->samples = from->samples;
    to->lr_count = (uint32_t)from->n_lrs;
    for (size_t i = 0; i < from->n_lrs; i++) {
        to->lrs[i] = from->lrs[i];
    }
    to->momentum_count = (uint32_t)from->n_momenta;
    for (size_t i = 0; i < from->n_momenta; i++) {
        to->momenta[i] = from->momenta[i];
    }
    to->optimizer_step = from->optimizer_step;
    to->skip = from->skip != 0;
    to->stop = from->stop != 0;
    to->trial = from->trial != 0;
    to->foreseen = from->foreseen != 0;
    to->hessian = from->hessian != 0;
    take_set(checker, &from->absent, &to->absent);
    to->tensors = (struct pd_tensor_list){0};
    if (from->n_tensors > 0) {
        check_tensors(checker, from->tensors, from->n_tensors, &to->tensors);
    }
}

static void take_report(struct checker *checker, const Paramd__Report *from, struct pd_report *to)
{
    check_number(checker, "kind", from->kind, PD_REPORT_EXECUTED, PD_REPORT_UNDONE);
    check_text(checker, "text", from->text, to->text, sizeof to->text);
    to->kind = (enum pd_report_kind)from->kind;
    to->order_index = from->order_index;
    to->worker_id = from->worker_id;
    to->step = from->step;
    to->micro_batch = from->micro_batch;
    to->last = from->last != 0;
    to->samples = from->samples;
    to->has_loss = from->loss_presence_case == PARAMD__REPORT__LOSS_PRESENCE_LOSS;
    to->loss = to->has_loss ? from->loss : 0;
    to->expired = from->expired != 0;
    to->hessian = from->hessian != 0;
    take_set(checker, &from->absent, &to->absent);
}

static const ProtobufCMessageDescriptor *descriptor_of(enum pd_message_kind kind)
{
    switch (kind) {
    case PD_MESSAGE_NONE:
        break;
    case PD_MESSAGE_HELLO:
        return &paramd__hello__descriptor;
    case PD_MESSAGE_WELCOME:
        return &paramd__welcome__descriptor;
    case PD_MESSAGE_JOIN:
        return &paramd__join__descriptor;
    case PD_MESSAGE_JOINED:
        return &paramd__joined__descriptor;
    case PD_MESSAGE_REGISTER:
        return &paramd__register__descriptor;
    case PD_MESSAGE_REGISTERED:
        return &paramd__registered__descriptor;
    case PD_MESSAGE_VALUES:
        return &paramd__values__descriptor;
    case PD_MESSAGE_VALUES_STORED:
        return &paramd__values_stored__descriptor;
    case PD_MESSAGE_PUSH:
    case PD_MESSAGE_HESSIAN:
        return &paramd__push__descriptor;
    case PD_MESSAGE_PUSHED:
        return &paramd__pushed__descriptor;
    case PD_MESSAGE_PULL:
        return &paramd__pull__descriptor;
    case PD_MESSAGE_PULLED:
        return &paramd__pulled__descriptor;
    case PD_MESSAGE_SETTLED:
        return &paramd__settled__descriptor;
    case PD_MESSAGE_LEAVE:
        return &paramd__leave__descriptor;
    case PD_MESSAGE_LEFT:
        return &paramd__left__descriptor;
    case PD_MESSAGE_PING:
        return &paramd__ping__descriptor;
    case PD_MESSAGE_ERROR:
        return &paramd__error__descriptor;
    case PD_MESSAGE_ADMIN:
        return &paramd__admin__descriptor;
    case PD_MESSAGE_ADMIN_REPLY:
        return &paramd__admin_reply__descriptor;
    case PD_MESSAGE_DRAINING:
        return &paramd__draining__descriptor;
    case PD_MESSAGE_METRIC:
        return &paramd__metric__descriptor;
    case PD_MESSAGE_METRIC_STORED:
        return &paramd__metric_stored__descriptor;
    case PD_MESSAGE_RANK_HELLO:
        return &paramd__rank_hello__descriptor;
    case PD_MESSAGE_ORDER:
        return &paramd__order__descriptor;
    case PD_MESSAGE_REPORT:
        return &paramd__report__descriptor;
    case PD_MESSAGE_BEAT:
        return &paramd__beat__descriptor;
    }
    return NULL;
}

/* Copy what was unpacked from a header of kind to->kind into `to`. */
static void take(struct checker *checker, const void *from, struct pd_message *to)
{
    switch (to->kind) {
    case PD_MESSAGE_NONE:
        PD_ASSERT(false);
        break;
    case PD_MESSAGE_HELLO:
        take_hello(checker, from, &to->hello);
        break;
    case PD_MESSAGE_WELCOME:
        take_welcome(checker, from, &to->welcome);
        break;
    case PD_MESSAGE_JOIN:
        check_text(checker, "name", ((const Paramd__Join *)from)->name, to->join.name,
                   sizeof to->join.name);
        to->join.nonce = ((const Paramd__Join *)from)->nonce;
        break;
    case PD_MESSAGE_JOINED:
        take_joined(checker, from, &to->joined);
        break;
    case PD_MESSAGE_REGISTER:
        take_register(checker, from, &to->registration);
        break;
    case PD_MESSAGE_REGISTERED:
        take_registered(checker, from, &to->registered);
        break;
    case PD_MESSAGE_VALUES:
        to->values.element_begin = ((const Paramd__Values *)from)->element_begin;
        to->values.element_count = ((const Paramd__Values *)from)->element_count;
        break;
    case PD_MESSAGE_PUSH:
    case PD_MESSAGE_HESSIAN:
        take_push(checker, from, &to->push);
        to->push.hessian = to->kind == PD_MESSAGE_HESSIAN;
        break;
    case PD_MESSAGE_PUSHED:
        to->pushed.step = ((const Paramd__Pushed *)from)->step;
        to->pushed.micro_batch = ((const Paramd__Pushed *)from)->micro_batch;
        to->pushed.duplicate = ((const Paramd__Pushed *)from)->duplicate != 0;
        to->pushed.hessian = ((const Paramd__Pushed *)from)->hessian != 0;
        break;
    case PD_MESSAGE_PULL:
        to->pull.min_version = ((const Paramd__Pull *)from)->min_version;
        to->pull.dtype = ((const Paramd__Pull *)from)->dtype;
        to->pull.averaged = ((const Paramd__Pull *)from)->averaged != 0;
        break;
    case PD_MESSAGE_PULLED:
        take_pulled(checker, from, &to->pulled);
        break;
    case PD_MESSAGE_SETTLED:
        take_settled(checker, from, &to->settled);
        break;
    case PD_MESSAGE_LEAVE:
        to->leave.step = ((const Paramd__Leave *)from)->step;
        to->leave.micro_batch = ((const Paramd__Leave *)from)->micro_batch;
        break;
    case PD_MESSAGE_ERROR:
        take_error(checker, from, &to->error);
        break;
    case PD_MESSAGE_METRIC:
        take_metric(checker, from, &to->metric);
        break;
    case PD_MESSAGE_METRIC_STORED:
        to->metric_stored.duplicate = ((const Paramd__MetricStored *)from)->duplicate != 0;
        break;
    case PD_MESSAGE_ADMIN:
        take_admin(checker, from, &to->admin);
        break;
    case PD_MESSAGE_DRAINING:
        to->draining.step = ((const Paramd__Draining *)from)->step;
        break;
    case PD_MESSAGE_RANK_HELLO:
        check_number(checker, "rank", ((const Paramd__RankHello *)from)->rank, 0,
                     PD_RANK_COUNT_MAX - 1);
        to->rank_hello.rank = ((const Paramd__RankHello *)from)->rank;
        to->rank_hello.secret = ((const Paramd__RankHello *)from)->secret;
        break;
    case PD_MESSAGE_ORDER:
        take_order(checker, from, &to->order);
        break;
    case PD_MESSAGE_REPORT:
        take_report(checker, from, &to->report);
        break;
    case PD_MESSAGE_VALUES_STORED:
    case PD_MESSAGE_LEFT:
    case PD_MESSAGE_PING:
    case PD_MESSAGE_ADMIN_REPLY:
    case PD_MESSAGE_BEAT:
        break; /* They say all by their kind. */
    }
}

/* What went wrong when protobuf-c gave nothing back. */
static enum pd_status unpack_fault(const struct arena *arena, const char *kind_name,
                                   size_t header_bytes, struct pd_error *error)
{
    if (arena->out_of_memory) {
        return pd_error_set(error, PD_ENOMEM, "%s: header of %zu bytes", kind_name, header_bytes);
    }
    if (arena->over_budget) {
        return pd_error_set(error, PD_ELIMIT,
                            "%s: header of %zu bytes has too many fields to decode", kind_name,
                            header_bytes);
    }
    return pd_error_set(error, PD_EPROTOCOL, "%s: header of %zu bytes is no such message",
                        kind_name, header_bytes);
}

enum pd_status pd_message_decode(struct pd_message *message, enum pd_message_kind kind,
                                 const void *header, size_t header_bytes, struct pd_error *error)
{
    message->kind = PD_MESSAGE_NONE;
    const char *kind_name = pd_message_kind_name(kind);
    if (!pd_message_kind_valid(kind)) {
        return pd_error_set(error, PD_EPROTOCOL, "message of unknown kind %u", (unsigned)kind);
    }
    size_t header_bytes_max = pd_message_header_bytes_max(kind);
    if (header_bytes > header_bytes_max) {
        return pd_error_set(error, PD_ELIMIT, "%s: header of %zu bytes, at most %zu", kind_name,
                            header_bytes, header_bytes_max);
    }

    struct arena arena;
    arena_init(&arena, header_bytes_max * ARENA_BYTES_PER_HEADER_BYTE);
    ProtobufCAllocator allocator = {
        .alloc = arena_alloc, .free = arena_free, .allocator_data = &arena};
    const uint8_t nothing = 0;
    ProtobufCMessage *unpacked = protobuf_c_message_unpack(
        descriptor_of(kind), &allocator, header_bytes, header_bytes > 0 ? header : &nothing);

    struct checker checker = {.kind_name = kind_name, .status = PD_OK, .error = error};
    if (unpacked == NULL) {
        checker.status = unpack_fault(&arena, kind_name, header_bytes, error);
    } else {
        message->kind = kind;
        take(&checker, unpacked, message);
    }
    arena_finish(&arena);
    if (checker.status != PD_OK) {
        message->kind = PD_MESSAGE_NONE;
    }
    return checker.status;
}
