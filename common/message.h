/* The messages of the protocol as plain structs, and their bytes.
 * frame -> [message] -> session (server) and request (client). Pure; only message_decode.c and
 * message_encode.c include the code generated from proto/paramd.proto, whose comments give meaning,
 * units and order. */
#ifndef PD_COMMON_MESSAGE_H
#define PD_COMMON_MESSAGE_H

#include "common/tensor.h"
#include "common/tensor_set.h"

enum pd_message_kind {
    PD_MESSAGE_NONE = 0, /* of a message that holds nothing; never on the wire */
    PD_MESSAGE_HELLO = 1,
    PD_MESSAGE_WELCOME = 2,
    PD_MESSAGE_JOIN = 3,
    PD_MESSAGE_JOINED = 4,
    PD_MESSAGE_REGISTER = 5,
    PD_MESSAGE_REGISTERED = 6,
    PD_MESSAGE_VALUES = 7,
    PD_MESSAGE_VALUES_STORED = 8,
    PD_MESSAGE_PUSH = 9,
    PD_MESSAGE_PUSHED = 10,
    PD_MESSAGE_PULL = 11,
    PD_MESSAGE_PULLED = 12,
    PD_MESSAGE_LEAVE = 13,
    PD_MESSAGE_LEFT = 14,
    PD_MESSAGE_PING = 15,
    PD_MESSAGE_ERROR = 16,
    PD_MESSAGE_ADMIN = 17,
    PD_MESSAGE_ADMIN_REPLY = 18,
    PD_MESSAGE_DRAINING = 19,
    PD_MESSAGE_METRIC = 20,
    PD_MESSAGE_METRIC_STORED = 21,
    PD_MESSAGE_SETTLED = 22,
    PD_MESSAGE_HESSIAN = 23,
    PD_MESSAGE_RANK_HELLO = 32,
    PD_MESSAGE_ORDER = 33,
    PD_MESSAGE_REPORT = 34,
    PD_MESSAGE_BEAT = 35,
};

enum pd_order_kind {
    PD_ORDER_JOIN = 1,
    PD_ORDER_DEPART = 2,
    PD_ORDER_REGISTER = 3,
    PD_ORDER_PUBLISH = 4,
    PD_ORDER_STEP = 5,
    PD_ORDER_DRAIN = 6,
    PD_ORDER_STOP = 7,
    PD_ORDER_SNAPSHOT = 8,
    PD_ORDER_RESTORE = 9,
    PD_ORDER_FORGET = 10,
    PD_ORDER_AHEAD = 11,
    PD_ORDER_HESSIAN = 12,
    PD_ORDER_ADMIT = 13,
    PD_ORDER_TAKE = 14,
};

enum pd_report_kind {
    PD_REPORT_EXECUTED = 1,
    PD_REPORT_CONTRIBUTED = 2,
    PD_REPORT_LOST = 3,
    PD_REPORT_FOUND = 4,
    PD_REPORT_VALUES = 5,
    PD_REPORT_NONFINITE = 6,
    PD_REPORT_DRAIN = 7,
    PD_REPORT_UNDONE = 8,
};

/* Texts are NUL-terminated and hold no control characters; a longer one does not decode. */
struct pd_hello {
    char client[PD_NAME_BYTES_MAX + 1];
    char host[PD_HOST_BYTES_MAX + 1];
    bool has_worker_id;
    uint32_t worker_id;
    uint64_t token;
    uint64_t run_id;
};

struct pd_welcome {
    uint64_t run_id;
    uint32_t rank;
    uint32_t rank_count;
    char leader[PD_ADDRESS_BYTES_MAX + 1];
    uint32_t lease_ms;
    char server[PD_NAME_BYTES_MAX + 1];
    uint64_t next_step;
    uint32_t next_micro_batch;
    bool has_version;
    uint64_t version;
};

struct pd_join {
    char name[PD_NAME_BYTES_MAX + 1];
    uint64_t nonce;
};

struct pd_joined {
    uint32_t worker_id;
    uint64_t token;
    char name[PD_NAME_BYTES_MAX + 1];
    uint32_t accumulation_steps;
};

struct pd_register {
    struct pd_tensor_list tensors; /* owned by the message */
};

struct pd_lane {
    uint32_t rank;
    char address[PD_ADDRESS_BYTES_MAX + 1];
    uint64_t element_begin;
    uint64_t element_count;
};

struct pd_registered {
    uint32_t lane_count; /* 1 to PD_RANK_COUNT_MAX */
    struct pd_lane lanes[PD_RANK_COUNT_MAX];
    bool values_needed;
    uint32_t block_elements;
    uint64_t step;
};

struct pd_leave {
    uint64_t step;
    uint32_t micro_batch;
};

struct pd_values {
    uint64_t element_begin;
    uint64_t element_count;
};

/* Of a gradient, or of an estimate of the Hessian: the message's kind says which. */
struct pd_push {
    bool hessian;
    uint64_t step;
    uint32_t micro_batch;
    bool last;
    uint64_t samples;
    bool has_loss;
    double loss;
    uint32_t dtype; /* any number: the session says what is allowed */
    uint64_t element_begin;
    uint64_t element_count;
    bool pull;
    uint32_t pull_dtype;
    double scale; /* loss scale, 0 is 1 */
    bool ahead;
    struct pd_tensor_set absent; /* last: pd_push_copy takes of it what is in use */
};

struct pd_pushed {
    uint64_t step;
    uint32_t micro_batch;
    bool duplicate;
    bool hessian;
};

struct pd_pull {
    uint64_t min_version;
    uint32_t dtype;
    bool averaged;
};

struct pd_pulled {
    uint64_t version;
    uint32_t dtype;
    uint64_t element_begin;
    uint64_t element_count;
    uint32_t lr_count; /* 0 for version 0 */
    double lrs[PD_GROUP_COUNT_MAX + 1];
    uint64_t skipped_steps;
    double loss_scale;
    uint32_t host_workers; /* on the receiver's host, itself included; 0: it is no worker */
    bool averaged;
    bool stop;
    bool ahead;
};

struct pd_settled {
    bool applied;
    bool again; /* not applied, and the push is to be sent again */
    struct pd_pulled pulled;
};

struct pd_error_message {
    uint32_t status;
    char text[PD_ERROR_BYTES_MAX];
    bool fatal;
};

struct pd_draining {
    uint64_t step;
};

struct pd_metric {
    char name[PD_NAME_BYTES_MAX + 1];
    double value;
    uint64_t step;
};

struct pd_metric_stored {
    bool duplicate;
};

struct pd_admin {
    char command[PD_NAME_BYTES_MAX + 1];
    bool has_value;
    double value;
    char target[PD_NAME_BYTES_MAX + 1];
    uint64_t count;
    uint64_t begin;
    uint32_t setting_count;
    char settings[PD_ADMIN_SETTING_COUNT_MAX][PD_NAME_BYTES_MAX + 1]; /* "key=value" */
};

struct pd_rank_hello {
    uint32_t rank;
    uint64_t secret;
};

/* The arrays that can be long stand last: pd_order_copy takes of them what is in use. */
struct pd_order {
    uint64_t index;
    enum pd_order_kind kind;
    uint64_t step;
    uint32_t worker_id;
    uint64_t token;
    char name[PD_NAME_BYTES_MAX + 1];
    uint32_t replica;
    struct pd_tensor_list tensors; /* owned by the message */
    uint64_t samples;              /* of all contributors */
    uint64_t optimizer_step;
    bool skip;
    bool stop;
    bool trial;
    bool foreseen;
    bool hessian;
    char reason[PD_ERROR_BYTES_MAX];
    uint32_t contributor_count;
    uint32_t lr_count;
    uint32_t momentum_count; /* lr_count, or 0 */
    struct pd_tensor_set absent;
    uint32_t contributors[PD_WORKER_COUNT_MAX];
    double weights[PD_WORKER_COUNT_MAX]; /* samples of the unit of each */
    double lrs[PD_GROUP_COUNT_MAX + 1];
    double momenta[PD_GROUP_COUNT_MAX + 1];
};

struct pd_report {
    enum pd_report_kind kind;
    uint64_t order_index;
    uint32_t worker_id;
    uint64_t step;
    uint32_t micro_batch;
    bool last;
    uint64_t samples;
    bool has_loss;
    double loss;
    bool expired;
    bool hessian;
    char text[PD_ERROR_BYTES_MAX]; /* this and what follows: pd_report_init leaves it empty */
    struct pd_tensor_set absent;
};

struct pd_message {
    enum pd_message_kind kind;
    union {
        struct pd_hello hello;
        struct pd_welcome welcome;
        struct pd_join join;
        struct pd_joined joined;
        struct pd_register registration;
        struct pd_registered registered;
        struct pd_leave leave;
        struct pd_values values;
        struct pd_push push; /* PUSH, HESSIAN */
        struct pd_pushed pushed;
        struct pd_pull pull;
        struct pd_pulled pulled;
        struct pd_settled settled;
        struct pd_error_message error;
        struct pd_metric metric;
        struct pd_metric_stored metric_stored;
        struct pd_admin admin;
        struct pd_draining draining;
        struct pd_rank_hello rank_hello;
        struct pd_order order;
        struct pd_report report;
    };
};

/* "push" for PD_MESSAGE_PUSH; "unknown" for a number outside the list. */
const char *pd_message_kind_name(uint32_t kind);
bool pd_message_kind_valid(uint32_t kind);

/* Longest header of that kind, in bytes. */
uint32_t pd_message_header_bytes_max(enum pd_message_kind kind);

/* Decode a header. Every text, count and enum is checked; a message decodes whole or not at all.
 * Every field of the kind is set, whatever was in `message`; of arrays what is in use.
 * Ownership: on PD_OK `message` may own memory: call pd_message_finish.
 * Errors: PD_EPROTOCOL, PD_ELIMIT, PD_EMODEL (a tensor list), PD_ENOMEM; nothing to finish then. */
PD_MUST_CHECK
enum pd_status pd_message_decode(struct pd_message *message, enum pd_message_kind kind,
                                 const void *header, size_t header_bytes, struct pd_error *error);

/* Bytes that encode needs for this message's header. */
size_t pd_message_header_bytes(const struct pd_message *message);

/* Encode into `header_bytes` bytes, which is what pd_message_header_bytes said.
 * Errors: PD_ELIMIT if the header would be over its kind's limit; nothing is written then. */
PD_MUST_CHECK
enum pd_status pd_message_encode(const struct pd_message *message, void *header,
                                 size_t header_bytes, struct pd_error *error);

void pd_push_copy(struct pd_push *to, const struct pd_push *from);

/* Begin a report: all numbers zero, no text, nothing absent. */
void pd_report_init(struct pd_report *report, enum pd_report_kind kind);

/* Copy an order, but not its tensors: the copy has none. */
void pd_order_copy(struct pd_order *to, const struct pd_order *from);

/* Free what a decoded message owns: it is of no kind then. One of no kind is allowed. */
void pd_message_finish(struct pd_message *message);

#endif
