#include "common/message.h"

#include "common/assert.h"

#include <stddef.h>
#include <string.h>

static const struct {
    const char *name;
    uint32_t header_bytes_max;
} kinds[] = {
    [PD_MESSAGE_HELLO] = {"hello", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_WELCOME] = {"welcome", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_JOIN] = {"join", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_JOINED] = {"joined", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_REGISTER] = {"register", PD_REGISTER_HEADER_BYTES_MAX},
    [PD_MESSAGE_REGISTERED] = {"registered", PD_REGISTER_HEADER_BYTES_MAX},
    [PD_MESSAGE_VALUES] = {"values", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_VALUES_STORED] = {"values-stored", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_PUSH] = {"push", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_PUSHED] = {"pushed", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_PULL] = {"pull", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_PULLED] = {"pulled", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_LEAVE] = {"leave", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_LEFT] = {"left", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_PING] = {"ping", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_ERROR] = {"error", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_ADMIN] = {"admin", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_ADMIN_REPLY] = {"admin-reply", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_DRAINING] = {"draining", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_METRIC] = {"metric", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_METRIC_STORED] = {"metric-stored", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_SETTLED] = {"settled", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_HESSIAN] = {"hessian", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_RANK_HELLO] = {"rank-hello", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_ORDER] = {"order", PD_CONTROL_HEADER_BYTES_MAX},
    [PD_MESSAGE_REPORT] = {"report", PD_HEADER_BYTES_MAX},
    [PD_MESSAGE_BEAT] = {"beat", PD_HEADER_BYTES_MAX},
};

bool pd_message_kind_valid(uint32_t kind)
{
    return kind < sizeof kinds / sizeof kinds[0] && kinds[kind].name != NULL;
}

const char *pd_message_kind_name(uint32_t kind)
{
    return pd_message_kind_valid(kind) ? kinds[kind].name : "unknown";
}

uint32_t pd_message_header_bytes_max(enum pd_message_kind kind)
{
    PD_ASSERT(pd_message_kind_valid(kind));
    return kinds[kind].header_bytes_max;
}

void pd_push_copy(struct pd_push *to, const struct pd_push *from)
{
    memcpy(to, from, offsetof(struct pd_push, absent));
    pd_tensor_set_copy(&to->absent, &from->absent);
}

void pd_report_init(struct pd_report *report, enum pd_report_kind kind)
{
    memset(report, 0, offsetof(struct pd_report, text));
    report->kind = kind;
    report->text[0] = '\0';
    report->absent.byte_count = 0;
}

void pd_order_copy(struct pd_order *to, const struct pd_order *from)
{
    memcpy(to, from, offsetof(struct pd_order, absent));
    to->tensors = (struct pd_tensor_list){0};
    pd_tensor_set_copy(&to->absent, &from->absent);
    memcpy(to->contributors, from->contributors,
           from->contributor_count * sizeof from->contributors[0]);
    memcpy(to->weights, from->weights, from->contributor_count * sizeof from->weights[0]);
    memcpy(to->lrs, from->lrs, from->lr_count * sizeof from->lrs[0]);
    memcpy(to->momenta, from->momenta, from->momentum_count * sizeof from->momenta[0]);
}

void pd_message_finish(struct pd_message *message)
{
    if (message->kind == PD_MESSAGE_REGISTER) {
        pd_tensor_list_finish(&message->registration.tensors);
    } else if (message->kind == PD_MESSAGE_ORDER) {
        pd_tensor_list_finish(&message->order.tensors);
    }
    message->kind = PD_MESSAGE_NONE;
}
