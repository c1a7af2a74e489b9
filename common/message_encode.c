/* Plain structs -> headers. See message.h.
 *
 * Encoding takes no memory: what protobuf-c packs are structs on the stack that point into the
 * message. A list of tensors is packed a few at a time, because the bytes of two messages of a
 * kind, one behind the other, are those of a message with the lists of both. */
#include "common/message.h"

#include "common/assert.h"

#include "paramd.pb-c.h"

#define TENSORS_AT_A_TIME 64u

/* Where packed bytes go; with NULL they are only counted. */
struct packer {
    uint8_t *bytes;
    size_t byte_count;
};

static void pack(struct packer *packer, const ProtobufCMessage *message)
{
    if (packer->bytes == NULL) {
        packer->byte_count += protobuf_c_message_get_packed_size(message);
    } else {
        packer->byte_count += protobuf_c_message_pack(message, packer->bytes + packer->byte_count);
    }
}

/* Generated structs have no const; packing only reads. */
static void *lend(const void *memory)
{
    return (void *)(uintptr_t)memory;
}

static void pack_hello(struct packer *packer, const struct pd_hello *from)
{
    Paramd__Hello to;
    paramd__hello__init(&to);
    to.client = lend(from->client);
    to.host = lend(from->host);
    to.token = from->token;
    to.run_id = from->run_id;
    if (from->has_worker_id) {
        to.worker_id_presence_case = PARAMD__HELLO__WORKER_ID_PRESENCE_WORKER_ID;
        to.worker_id = from->worker_id;
    }
    pack(packer, &to.base);
}

static void pack_welcome(struct packer *packer, const struct pd_welcome *from)
{
    Paramd__Welcome to;
    paramd__welcome__init(&to);
    to.run_id = from->run_id;
    to.rank = from->rank;
    to.rank_count = from->rank_count;
    to.leader = lend(from->leader);
    to.lease_ms = from->lease_ms;
    to.server = lend(from->server);
    to.next_step = from->next_step;
    to.next_micro_batch = from->next_micro_batch;
    if (from->has_version) {
        to.version_presence_case = PARAMD__WELCOME__VERSION_PRESENCE_VERSION;
        to.version = from->version;
    }
    pack(packer, &to.base);
}

static void pack_join(struct packer *packer, const struct pd_join *from)
{
    Paramd__Join to;
    paramd__join__init(&to);
    to.name = lend(from->name);
    to.nonce = from->nonce;
    pack(packer, &to.base);
}

static void pack_joined(struct packer *packer, const struct pd_joined *from)
{
    Paramd__Joined to;
    paramd__joined__init(&to);
    to.worker_id = from->worker_id;
    to.token = from->token;
    to.name = lend(from->name);
    to.accumulation_steps = from->accumulation_steps;
    pack(packer, &to.base);
}

/* Put `count` tensors into `to`, with pointers to them in `pointers`. */
static void lend_tensors(const struct pd_tensor *from, size_t count, Paramd__Tensor *to,
                         Paramd__Tensor **pointers)
{
    for (size_t i = 0; i < count; i++) {
        paramd__tensor__init(&to[i]);
        to[i].name = from[i].name;
        to[i].n_shape = from[i].dimension_count;
        to[i].shape = lend(from[i].shape);
        pointers[i] = &to[i];
    }
}

static size_t tensors_left(const struct pd_tensor_list *list, size_t begin)
{
    size_t left = list->count - begin;
    return left < TENSORS_AT_A_TIME ? left : TENSORS_AT_A_TIME;
}

static void pack_register(struct packer *packer, const struct pd_register *from)
{
    Paramd__Tensor tensors[TENSORS_AT_A_TIME];
    Paramd__Tensor *pointers[TENSORS_AT_A_TIME];

    for (size_t i = 0; i < from->tensors.count; i += TENSORS_AT_A_TIME) {
        Paramd__Register to;
        paramd__register__init(&to);
        to.n_tensors = tensors_left(&from->tensors, i);
        to.tensors = pointers;
        lend_tensors(from->tensors.tensors + i, to.n_tensors, tensors, pointers);
        pack(packer, &to.base);
    }
}

static void pack_registered(struct packer *packer, const struct pd_registered *from)
{
    Paramd__Lane lanes[PD_RANK_COUNT_MAX];
    Paramd__Lane *pointers[PD_RANK_COUNT_MAX];

    PD_ASSERT(from->lane_count <= PD_RANK_COUNT_MAX);
    for (uint32_t i = 0; i < from->lane_count; i++) {
        paramd__lane__init(&lanes[i]);
        lanes[i].rank = from->lanes[i].rank;
        lanes[i].address = lend(from->lanes[i].address);
        lanes[i].element_begin = from->lanes[i].element_begin;
        lanes[i].element_count = from->lanes[i].element_count;
        pointers[i] = &lanes[i];
    }
    Paramd__Registered to;
    paramd__registered__init(&to);
    to.n_lanes = from->lane_count;
    to.lanes = pointers;
    to.values_needed = from->values_needed;
    to.block_elements = from->block_elements;
    to.step = from->step;
    pack(packer, &to.base);
}

static void pack_values(struct packer *packer, const struct pd_values *from)
{
    Paramd__Values to;
    paramd__values__init(&to);
    to.element_begin = from->element_begin;
    to.element_count = from->element_count;
    pack(packer, &to.base);
}

static ProtobufCBinaryData lend_set(const struct pd_tensor_set *set)
{
    return (ProtobufCBinaryData){.len = set->byte_count, .data = lend(set->bytes)};
}

static void pack_push(struct packer *packer, const struct pd_push *from)
{
    Paramd__Push to;
    paramd__push__init(&to);
    to.step = from->step;
    to.micro_batch = from->micro_batch;
    to.last = from->last;
    to.samples = from->samples;
    if (from->has_loss) {
        to.loss_presence_case = PARAMD__PUSH__LOSS_PRESENCE_LOSS;
        to.loss = from->loss;
    }
    to.dtype = from->dtype;
    to.element_begin = from->element_begin;
    to.element_count = from->element_count;
    to.pull = from->pull;
    to.pull_dtype = from->pull_dtype;
    to.absent = lend_set(&from->absent);
    to.scale = from->scale;
    to.ahead = from->ahead;
    pack(packer, &to.base);
}

static void pack_pushed(struct packer *packer, const struct pd_pushed *from)
{
    Paramd__Pushed to;
    paramd__pushed__init(&to);
    to.step = from->step;
    to.micro_batch = from->micro_batch;
    to.duplicate = from->duplicate;
    to.hessian = from->hessian;
    pack(packer, &to.base);
}

static void pack_pull(struct packer *packer, const struct pd_pull *from)
{
    Paramd__Pull to;
    paramd__pull__init(&to);
    to.min_version = from->min_version;
    to.dtype = from->dtype;
    to.averaged = from->averaged;
    pack(packer, &to.base);
}

static void lend_pulled(const struct pd_pulled *from, Paramd__Pulled *to)
{
    PD_ASSERT(from->lr_count <= PD_GROUP_COUNT_MAX + 1);
    paramd__pulled__init(to);
    to->version = from->version;
    to->dtype = from->dtype;
    to->element_begin = from->element_begin;
    to->element_count = from->element_count;
    to->n_lrs = from->lr_count;
    to->lrs = lend(from->lrs);
    to->skipped_steps = from->skipped_steps;
    to->loss_scale = from->loss_scale;
    to->host_workers = from->host_workers;
    to->stop = from->stop;
    to->averaged = from->averaged;
    to->ahead = from->ahead;
}

static void pack_pulled(struct packer *packer, const struct pd_pulled *from)
{
    Paramd__Pulled to;
    lend_pulled(from, &to);
    pack(packer, &to.base);
}

static void pack_settled(struct packer *packer, const struct pd_settled *from)
{
    Paramd__Settled to;
    Paramd__Pulled pulled;
    paramd__settled__init(&to);
    lend_pulled(&from->pulled, &pulled);
    to.applied = from->applied;
    to.again = from->again;
    to.pulled = &pulled;
    pack(packer, &to.base);
}

static void pack_leave(struct packer *packer, const struct pd_leave *from)
{
    Paramd__Leave to;
    paramd__leave__init(&to);
    to.step = from->step;
    to.micro_batch = from->micro_batch;
    pack(packer, &to.base);
}

static void pack_error(struct packer *packer, const struct pd_error_message *from)
{
    Paramd__Error to;
    paramd__error__init(&to);
    to.status = from->status;
    to.text = lend(from->text);
    to.fatal = from->fatal;
    pack(packer, &to.base);
}

static void pack_metric(struct packer *packer, const struct pd_metric *from)
{
    Paramd__Metric to;
    paramd__metric__init(&to);
    to.name = lend(from->name);
    to.value = from->value;
    to.step = from->step;
    pack(packer, &to.base);
}

static void pack_metric_stored(struct packer *packer, const struct pd_metric_stored *from)
{
    Paramd__MetricStored to;
    paramd__metric_stored__init(&to);
    to.duplicate = from->duplicate;
    pack(packer, &to.base);
}

static void pack_admin(struct packer *packer, const struct pd_admin *from)
{
    char *settings[PD_ADMIN_SETTING_COUNT_MAX];
    Paramd__Admin to;

    PD_ASSERT(from->setting_count <= PD_ADMIN_SETTING_COUNT_MAX);
    paramd__admin__init(&to);
    to.command = lend(from->command);
    if (from->has_value) {
        to.value_presence_case = PARAMD__ADMIN__VALUE_PRESENCE_VALUE;
        to.value = from->value;
    }
    to.target = lend(from->target);
    to.count = from->count;
    to.begin = from->begin;
    to.n_settings = from->setting_count;
    to.settings = settings;
    for (uint32_t i = 0; i < from->setting_count; i++) {
        settings[i] = lend(from->settings[i]);
    }
    pack(packer, &to.base);
}

static void pack_draining(struct packer *packer, const struct pd_draining *from)
{
    Paramd__Draining to;
    paramd__draining__init(&to);
    to.step = from->step;
    pack(packer, &to.base);
}

static void pack_rank_hello(struct packer *packer, const struct pd_rank_hello *from)
{
    Paramd__RankHello to;
    paramd__rank_hello__init(&to);
    to.rank = from->rank;
    to.secret = from->secret;
    pack(packer, &to.base);
}

static void pack_order(struct packer *packer, const struct pd_order *from)
{
    PD_ASSERT(from->contributor_count <= PD_WORKER_COUNT_MAX);
    PD_ASSERT(from->lr_count <= PD_GROUP_COUNT_MAX + 1);
    PD_ASSERT(from->momentum_count == 0 || from->momentum_count == from->lr_count);
    Paramd__Order to;
    paramd__order__init(&to);
    to.index = from->index;
    to.kind = from->kind;
    to.step = from->step;
    to.worker_id = from->worker_id;
    to.token = from->token;
    to.name = lend(from->name);
    to.replica = from->replica;
    to.n_contributors = from->contributor_count;
    to.contributors = lend(from->contributors);
    to.n_weights = from->contributor_count;
    to.weights = lend(from->weights);
    to.samples = from->samples;
    to.n_lrs = from->lr_count;
    to.lrs = lend(from->lrs);
    to.n_momenta = from->momentum_count;
    to.momenta = lend(from->momenta);
    to.stop = from->stop;
    to.trial = from->trial;
    to.foreseen = from->foreseen;
    to.hessian = from->hessian;
    to.optimizer_step = from->optimizer_step;
    to.skip = from->skip;
    to.reason = lend(from->reason);
    to.absent = lend_set(&from->absent);
    pack(packer, &to.base);

    Paramd__Tensor tensors[TENSORS_AT_A_TIME];
    Paramd__Tensor *pointers[TENSORS_AT_A_TIME];
    for (size_t i = 0; i < from->tensors.count; i += TENSORS_AT_A_TIME) {
        Paramd__Order more;
        paramd__order__init(&more);
        more.n_tensors = tensors_left(&from->tensors, i);
        more.tensors = pointers;
        lend_tensors(from->tensors.tensors + i, more.n_tensors, tensors, pointers);
        pack(packer, &more.base);
    }
}

static void pack_report(struct packer *packer, const struct pd_report *from)
{
    Paramd__Report to;
    paramd__report__init(&to);
    to.kind = from->kind;
    to.order_index = from->order_index;
    to.worker_id = from->worker_id;
    to.step = from->step;
    to.micro_batch = from->micro_batch;
    to.last = from->last;
    to.samples = from->samples;
    if (from->has_loss) {
        to.loss_presence_case = PARAMD__REPORT__LOSS_PRESENCE_LOSS;
        to.loss = from->loss;
    }
    to.expired = from->expired;
    to.hessian = from->hessian;
    to.text = lend(from->text);
    to.absent = lend_set(&from->absent);
    pack(packer, &to.base);
}

static void pack_message(struct packer *packer, const struct pd_message *message)
{
    switch (message->kind) {
    case PD_MESSAGE_NONE:
        PD_ASSERT(false);
        break;
    case PD_MESSAGE_HELLO:
        pack_hello(packer, &message->hello);
        break;
    case PD_MESSAGE_WELCOME:
        pack_welcome(packer, &message->welcome);
        break;
    case PD_MESSAGE_JOIN:
        pack_join(packer, &message->join);
        break;
    case PD_MESSAGE_JOINED:
        pack_joined(packer, &message->joined);
        break;
    case PD_MESSAGE_REGISTER:
        pack_register(packer, &message->registration);
        break;
    case PD_MESSAGE_REGISTERED:
        pack_registered(packer, &message->registered);
        break;
    case PD_MESSAGE_VALUES:
        pack_values(packer, &message->values);
        break;
    case PD_MESSAGE_PUSH:
    case PD_MESSAGE_HESSIAN:
        pack_push(packer, &message->push);
        break;
    case PD_MESSAGE_PUSHED:
        pack_pushed(packer, &message->pushed);
        break;
    case PD_MESSAGE_PULL:
        pack_pull(packer, &message->pull);
        break;
    case PD_MESSAGE_PULLED:
        pack_pulled(packer, &message->pulled);
        break;
    case PD_MESSAGE_SETTLED:
        pack_settled(packer, &message->settled);
        break;
    case PD_MESSAGE_LEAVE:
        pack_leave(packer, &message->leave);
        break;
    case PD_MESSAGE_ERROR:
        pack_error(packer, &message->error);
        break;
    case PD_MESSAGE_METRIC:
        pack_metric(packer, &message->metric);
        break;
    case PD_MESSAGE_METRIC_STORED:
        pack_metric_stored(packer, &message->metric_stored);
        break;
    case PD_MESSAGE_ADMIN:
        pack_admin(packer, &message->admin);
        break;
    case PD_MESSAGE_DRAINING:
        pack_draining(packer, &message->draining);
        break;
    case PD_MESSAGE_RANK_HELLO:
        pack_rank_hello(packer, &message->rank_hello);
        break;
    case PD_MESSAGE_ORDER:
        pack_order(packer, &message->order);
        break;
    case PD_MESSAGE_REPORT:
        pack_report(packer, &message->report);
        break;
    case PD_MESSAGE_VALUES_STORED:
    case PD_MESSAGE_LEFT:
    case PD_MESSAGE_PING:
    case PD_MESSAGE_ADMIN_REPLY:
    case PD_MESSAGE_BEAT:
        break; /* They say all by their kind: no bytes. */
    }
}

size_t pd_message_header_bytes(const struct pd_message *message)
{
    PD_ASSERT(pd_message_kind_valid(message->kind));
    struct packer packer = {0};
    pack_message(&packer, message);
    return packer.byte_count;
}

enum pd_status pd_message_encode(const struct pd_message *message, void *header,
                                 size_t header_bytes, struct pd_error *error)
{
    size_t header_bytes_max = pd_message_header_bytes_max(message->kind);
    if (header_bytes > header_bytes_max) {
        return pd_error_set(error, PD_ELIMIT, "%s: header of %zu bytes, at most %zu",
                            pd_message_kind_name(message->kind), header_bytes, header_bytes_max);
    }
    if (header_bytes == 0) {
        return PD_OK;
    }

    struct packer packer = {.bytes = header};
    pack_message(&packer, message);
    PD_ASSERT(packer.byte_count == header_bytes);
    return PD_OK;
}
