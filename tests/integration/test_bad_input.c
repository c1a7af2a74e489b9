/* Peers that say what they must not are told so in one line, and nobody else notices: the training
 * they disturb comes to the same bits as one that nobody disturbs. */
#include "tests/support/cluster.h"
#include "tests/support/peer.h"
#include "tests/support/suite.h"
#include "tests/support/training.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define RANK_COUNT 2u
#define WORKER_COUNT 2u
#define STEP_COUNT 20u

static float undisturbed[REFERENCE_ELEMENT_COUNT];
static struct pd_tensor_list model;
static struct cluster cluster;
static struct training *training;

/* ---- The training that is disturbed ---- */

static void start(const char *config)
{
    static const char *addresses[RANK_COUNT];
    struct training_options options;

    cluster_start(&cluster, RANK_COUNT,
                  "aggregation: direct\nblock_size: 64\nworkers: {expected: %u, resume_s: 5}\n"
                  "optimizer: {name: adam, lr: 0.01}\nclip: {norm: 0.5}\n%s",
                  WORKER_COUNT, config);
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        addresses[rank] = cluster.addresses[rank];
    }
    training_options_init(&options, addresses, WORKER_COUNT, STEP_COUNT);
    options.address_count = RANK_COUNT;
    training = training_start(&options);
}

static void prepare(void)
{
    reference_model_init(&model);
    start("");
    training_finish(training, undisturbed);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
}

/* Some steps are done, and more are under way. */
static void begin_with(const char *config)
{
    start(config);
    training_advance(training, 4);
    training_allow(training, 8);
}

static void begin(void)
{
    begin_with("");
}

static void end(void)
{
    float values[REFERENCE_ELEMENT_COUNT];

    training_finish(training, values);
    ck_assert_mem_eq(values, undisturbed, sizeof values);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
}

/* ---- No frame ---- */

START_TEST(garbage_is_answered_with_what_a_frame_starts_with)
{
    static const char question[] = "GET / HTTP/1.1\r\nHost: parameters\r\n\r\n";
    static uint8_t garbage[1u << 20];
    unsigned seed = 7;

    for (size_t i = 0; i < sizeof garbage; i++) {
        garbage[i] = (uint8_t)rand_r(&seed);
    }
    begin();
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        struct peer *peer = peer_connect(cluster.addresses[rank]);
        peer_send_bytes(peer, question, sizeof question);
        peer_expect_fatal(peer, PD_EPROTOCOL, "starts with 47 45 54 20, not with 50 52 4d 44");
        peer_close(peer);
        peer = peer_connect(cluster.addresses[rank]);
        peer_send_bytes(peer, garbage, sizeof garbage);
        peer_expect_fatal(peer, PD_EPROTOCOL, "not with 50 52 4d 44");
        peer_close(peer);
    }
    end();
}
END_TEST

/* A prefix, as it is or behind a good hello, and the end it must have. */
static void expect_prefix_refused(bool greeted, const char *magic, uint16_t version, uint16_t kind,
                                  uint32_t header_bytes, uint32_t flags, enum pd_status status,
                                  const char *text)
{
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        struct peer *peer = peer_connect(cluster.addresses[rank]);
        if (greeted) {
            (void)peer_hello(peer);
        }
        peer_send_prefix(peer, magic, version, kind, header_bytes, flags, 0);
        peer_expect_fatal(peer, status, text);
        peer_close(peer);
    }
}

START_TEST(wrong_magic_is_refused)
{
    begin();
    expect_prefix_refused(false, "PRMX", 1, PD_MESSAGE_HELLO, 0, 0, PD_EPROTOCOL,
                          "starts with 50 52 4d 58");
    expect_prefix_refused(true, "DMRP", 1, PD_MESSAGE_PING, 0, 0, PD_EPROTOCOL,
                          "starts with 44 4d 52 50");
    end();
}
END_TEST

START_TEST(another_version_is_refused_and_ours_named)
{
    begin();
    expect_prefix_refused(false, "PRMD", 9, PD_MESSAGE_HELLO, 0, 0, PD_EVERSION,
                          "version 9, this side speaks 1");
    expect_prefix_refused(true, "PRMD", 0, PD_MESSAGE_PING, 0, 0, PD_EVERSION, "version 0");
    end();
}
END_TEST

START_TEST(unknown_flags_and_messages_are_refused)
{
    begin();
    expect_prefix_refused(false, "PRMD", 1, PD_MESSAGE_HELLO, 0, 6, PD_EPROTOCOL, "flags 0x6");
    expect_prefix_refused(false, "PRMD", 1, 99, 0, 0, PD_EPROTOCOL, "kind 99 is unknown");
    expect_prefix_refused(true, "PRMD", 1, 0, 0, 0, PD_EPROTOCOL, "kind 0 is unknown");
    expect_prefix_refused(true, "PRMD", 1, 65535, 0, 0, PD_EPROTOCOL, "kind 65535 is unknown");
    end();
}
END_TEST

START_TEST(header_over_its_limit_is_refused_before_it_comes)
{
    begin();
    expect_prefix_refused(false, "PRMD", 1, PD_MESSAGE_HELLO, 4097, 0, PD_ELIMIT,
                          "hello: header of 4097 bytes, at most 4096");
    expect_prefix_refused(true, "PRMD", 1, PD_MESSAGE_REGISTER, 65537, 0, PD_ELIMIT,
                          "header of 65537 bytes, at most 65536");
    expect_prefix_refused(true, "PRMD", 1, PD_MESSAGE_ADMIN, UINT32_MAX, 0, PD_ELIMIT,
                          "header of 4294967295 bytes");
    end();
}
END_TEST

START_TEST(header_that_is_no_message_is_refused)
{
    static const uint8_t nonsense[] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

    begin();
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        struct peer *peer = peer_connect(cluster.addresses[rank]);
        peer_send_prefix(peer, "PRMD", 1, PD_MESSAGE_HELLO, sizeof nonsense, 0, 0);
        peer_send_bytes(peer, nonsense, sizeof nonsense);
        peer_expect_fatal(peer, PD_EPROTOCOL, "hello");
        peer_close(peer);
    }
    end();
}
END_TEST

/* ---- Peers of their own ---- */

/* A worker beside those that train, which joins and leaves without ever counting. */
static void stranger_init(struct peer_worker *stranger)
{
    peer_worker_init(stranger, cluster.addresses[0], "stranger", &model, NULL);
}

static void stranger_leave(struct peer_worker *stranger)
{
    struct pd_message leave = {.kind = PD_MESSAGE_LEAVE,
                               .leave = {.step = stranger->registered.step}};

    peer_send(stranger->leader, &leave, NULL, 0);
    (void)peer_expect(stranger->leader, PD_MESSAGE_LEFT);
    peer_worker_finish(stranger);
}

/* Steps wait for a stranger that has registered: none is under way while it is here. */
static void begin_and_pause(void)
{
    start("");
    training_advance(training, 6);
}

START_TEST(payload_where_none_belongs_is_refused)
{
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO};
    struct pd_message ping = {.kind = PD_MESSAGE_PING};

    begin();
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        struct peer *peer = peer_connect(cluster.addresses[rank]);
        peer_send_head(peer, &hello, 1);
        peer_expect_fatal(peer, PD_ELIMIT, "hello: payload of 1 bytes; allowed: 0");
        peer_close(peer);
        peer = peer_connect(cluster.addresses[rank]);
        (void)peer_hello(peer);
        peer_send_head(peer, &ping, UINT64_MAX);
        peer_expect_fatal(peer, PD_ELIMIT, "ping: payload of 18446744073709551615 bytes");
        peer_close(peer);
    }
    end();
}
END_TEST

START_TEST(payload_over_the_lane_is_refused_before_it_comes)
{
    struct peer_worker stranger;

    begin_and_pause();
    stranger_init(&stranger);
    for (uint32_t lane = 0; lane < RANK_COUNT; lane++) {
        struct pd_message push = peer_worker_push_message(&stranger, lane, 6, 1);
        char text[64];
        snprintf(text, sizeof text, "elements of float32 are %lu bytes",
                 4 * (unsigned long)push.push.element_count);
        peer_send_head(stranger.lanes[lane], &push, 1ull << 60);
        peer_expect_error(stranger.lanes[lane], PD_EMODEL, false, text);
    }
    peer_worker_finish(&stranger);
    end();
}
END_TEST

START_TEST(wrong_lengths_and_places_are_refused)
{
    struct peer_worker stranger;
    float gradient[REFERENCE_ELEMENT_COUNT] = {0};

    begin_and_pause();
    stranger_init(&stranger);
    for (uint32_t lane = 0; lane < RANK_COUNT; lane++) {
        struct pd_message push = peer_worker_push_message(&stranger, lane, 6, 1);
        size_t payload_bytes = push.push.element_count * sizeof(float);
        struct peer *peer = stranger.lanes[lane];
        peer_send(peer, &push, gradient, payload_bytes - 4);
        peer_expect_error(peer, PD_EMODEL, false, "payload of");
        peer_send(peer, &push, NULL, 0);
        peer_expect_error(peer, PD_EMODEL, false, "payload of 0 bytes");
        push.push.element_count--;
        peer_send(peer, &push, gradient, payload_bytes - 4);
        peer_expect_error(peer, PD_EMODEL, false, "takes");
        push.push.element_count++;
        push.push.element_begin++;
        peer_send(peer, &push, gradient, payload_bytes);
        peer_expect_error(peer, PD_EMODEL, false, "elements from");
    }
    stranger_leave(&stranger);
    end();
}
END_TEST

START_TEST(unknown_types_are_refused_and_the_known_named)
{
    struct peer_worker stranger;
    struct pd_message pull = {.kind = PD_MESSAGE_PULL, .pull = {.dtype = 3}};
    float gradient[REFERENCE_ELEMENT_COUNT] = {0};

    begin_and_pause();
    stranger_init(&stranger);
    for (uint32_t lane = 0; lane < RANK_COUNT; lane++) {
        struct pd_message push = peer_worker_push_message(&stranger, lane, 6, 1);
        size_t payload_bytes = push.push.element_count * sizeof(float);
        struct peer *peer = stranger.lanes[lane];
        push.push.dtype = 7;
        peer_send(peer, &push, gradient, payload_bytes);
        peer_expect_error(peer, PD_EMODEL, false,
                          "dtype 7; allowed: 0 float32, 1 bfloat16, 2 float16");
        push.push.dtype = PD_DTYPE_BFLOAT16;
        peer_send(peer, &push, gradient, payload_bytes);
        peer_expect_error(peer, PD_EMODEL, false, "elements of bfloat16 are");
        push.push.dtype = PD_DTYPE_FLOAT32;
        push.push.pull = true;
        push.push.pull_dtype = 4;
        peer_send(peer, &push, gradient, payload_bytes);
        peer_expect_error(peer, PD_EINVALID, false, "pull_dtype 4; allowed: 0 float32");
        peer_send(peer, &pull, NULL, 0);
        peer_expect_error(peer, PD_EINVALID, false, "3");
    }
    stranger_leave(&stranger);
    end();
}
END_TEST

START_TEST(damaged_bytes_do_not_count)
{
    struct peer_worker stranger;
    float gradient[REFERENCE_ELEMENT_COUNT] = {1.0f};

    begin_and_pause();
    stranger_init(&stranger);
    for (uint32_t lane = 0; lane < RANK_COUNT; lane++) {
        struct pd_message push = peer_worker_push_message(&stranger, lane, 6, 1);
        struct pd_message ping = {.kind = PD_MESSAGE_PING};
        peer_send_summed(stranger.lanes[lane], &push, gradient,
                         push.push.element_count * sizeof(float), 1);
        peer_expect_error(stranger.lanes[lane], PD_ECHECKSUM, false,
                          "push of step 6, micro-batch 0: the bytes do not match their checksum");
        struct peer *peer = peer_connect(cluster.addresses[lane]);
        (void)peer_hello(peer);
        peer_send_summed(peer, &ping, NULL, 0, 1);
        peer_expect_fatal(peer, PD_ECHECKSUM, "does not match its checksum");
        peer_close(peer);
    }
    stranger_leave(&stranger);
    end();
}
END_TEST

START_TEST(push_from_the_past_or_the_future_is_refused)
{
    struct peer_worker stranger;
    float gradient[REFERENCE_ELEMENT_COUNT] = {1.0f};
    struct pd_message pull = {.kind = PD_MESSAGE_PULL, .pull = {.min_version = 9}};

    begin_and_pause();
    stranger_init(&stranger);
    ck_assert_uint_eq(stranger.registered.step, 6);
    peer_worker_push(&stranger, 5, 1, gradient, false);
    peer_worker_push(&stranger, 7, 1, gradient, false);
    for (uint32_t lane = 0; lane < RANK_COUNT; lane++) {
        struct pd_message push = peer_worker_push_message(&stranger, lane, 6, 1);
        struct peer *peer = stranger.lanes[lane];
        peer_expect_error(peer, PD_ESTEP, false,
                          "push of step 5 is from the past: the step in collection is 6");
        peer_expect_error(peer, PD_ESTEP, false, "push of step 7 is from the future");
        push.push.micro_batch = 1;
        peer_send(peer, &push, gradient, push.push.element_count * sizeof(float));
        peer_expect_error(peer, PD_EINVALID, false, "micro-batch 1; allowed: 0 to 0");
        push.push.micro_batch = 0;
        push.push.last = false;
        peer_send(peer, &push, gradient, push.push.element_count * sizeof(float));
        peer_expect_error(peer, PD_EINVALID, false, "must have `last` set");
        peer_send(peer, &pull, NULL, 0);
        peer_expect_error(peer, PD_ESTEP, false, "9");
    }
    stranger_leave(&stranger);
    end();
}
END_TEST

/* Closed within the prefix, the header and the payload; what came of a push counts nowhere. */
START_TEST(cut_off_frames_count_for_nothing)
{
    struct peer_worker stranger;
    float gradient[REFERENCE_ELEMENT_COUNT] = {1.0f};

    begin_and_pause();
    stranger_init(&stranger);
    for (uint32_t lane = 0; lane < RANK_COUNT; lane++) {
        struct pd_message push = peer_worker_push_message(&stranger, lane, 6, 1);
        struct peer *peer = peer_connect(cluster.addresses[lane]);
        peer_send_bytes(peer, "PRMD", 4);
        peer_close(peer);
        peer = peer_connect(cluster.addresses[lane]);
        peer_send_prefix(peer, "PRMD", 1, PD_MESSAGE_HELLO, 20, 0, 0);
        peer_send_bytes(peer, "\x0a\x04half", 6);
        peer_reset(peer);
        peer_send_head(stranger.lanes[lane], &push, push.push.element_count * sizeof(float));
        peer_send_bytes(stranger.lanes[lane], gradient, 100);
    }
    peer_worker_finish(&stranger);
    training_advance(training, 7);
    process_await_error(cluster.process, "'stranger' evicted at step 6");
    end();
}
END_TEST

/* ---- Messages out of order ---- */

static void expect_refused(struct peer *peer, enum pd_message_kind kind, enum pd_status status,
                           const char *text)
{
    struct pd_message message = {.kind = kind};

    peer_send(peer, &message, NULL, 0);
    peer_expect_fatal(peer, status, text);
    peer_close(peer);
}

START_TEST(nothing_is_heard_before_hello)
{
    static const enum pd_message_kind kinds[] = {
        PD_MESSAGE_JOIN, PD_MESSAGE_LEAVE, PD_MESSAGE_PULL,  PD_MESSAGE_PUSH,
        PD_MESSAGE_PING, PD_MESSAGE_ADMIN, PD_MESSAGE_ORDER, PD_MESSAGE_BEAT};

    begin();
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
            struct pd_message message = {.kind = kinds[i]};
            struct peer *peer = peer_connect(cluster.addresses[rank]);
            if (message.kind == PD_MESSAGE_ORDER) {
                message.order.kind = PD_ORDER_STOP;
            }
            peer_send(peer, &message, NULL, 0);
            peer_expect_fatal(peer, PD_EPROTOCOL,
                              "before hello is out of order: hello comes first");
            peer_close(peer);
        }
    }
    end();
}
END_TEST

START_TEST(guests_say_only_what_guests_may)
{
    static const enum pd_message_kind kinds[] = {PD_MESSAGE_HELLO,  PD_MESSAGE_REGISTER,
                                                 PD_MESSAGE_LEAVE,  PD_MESSAGE_PUSH,
                                                 PD_MESSAGE_VALUES, PD_MESSAGE_BEAT};
    static const enum pd_message_kind answers[] = {PD_MESSAGE_PUSHED, PD_MESSAGE_LEFT,
                                                   PD_MESSAGE_SETTLED, PD_MESSAGE_DRAINING,
                                                   PD_MESSAGE_ERROR};

    begin();
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
            struct peer *peer = peer_connect(cluster.addresses[rank]);
            struct pd_message message = {.kind = kinds[i]};
            (void)peer_hello(peer);
            if (message.kind == PD_MESSAGE_REGISTER) {
                message.registration.tensors = model;
            }
            peer_send(peer, &message, NULL, 0);
            peer_expect_fatal(peer, PD_EPROTOCOL,
                              "from a peer that has not joined is out of order");
            peer_close(peer);
        }
        for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
            struct peer *peer = peer_connect(cluster.addresses[rank]);
            (void)peer_hello(peer);
            expect_refused(peer, answers[i], PD_EPROTOCOL, "is a message from a rank, not to one");
        }
    }
    end();
}
END_TEST

START_TEST(what_is_for_rank_0_is_sent_there)
{
    struct peer *peer;

    begin();
    peer = peer_connect(cluster.addresses[1]);
    ck_assert_str_eq(peer_hello(peer)->leader, cluster.addresses[0]);
    expect_refused(peer, PD_MESSAGE_JOIN, PD_EPROTOCOL, cluster.addresses[0]);
    peer = peer_connect(cluster.addresses[1]);
    (void)peer_hello(peer);
    expect_refused(peer, PD_MESSAGE_ADMIN, PD_EPROTOCOL, "goes to rank 0");
    end();
}
END_TEST

START_TEST(strangers_are_no_ranks)
{
    struct pd_message hello = {.kind = PD_MESSAGE_RANK_HELLO, .rank_hello = {.rank = 1}};
    struct peer *peer;

    begin();
    for (uint64_t secret = 0; secret < 3; secret++) {
        hello.rank_hello.secret = secret;
        peer = peer_connect(cluster.addresses[0]);
        peer_send(peer, &hello, NULL, 0);
        peer_expect_fatal(peer, PD_EIDENTITY, "this peer is no rank of this job");
        peer_close(peer);
    }
    peer = peer_connect(cluster.addresses[1]);
    expect_refused(peer, PD_MESSAGE_RANK_HELLO, PD_EPROTOCOL, "goes to rank 0");
    end();
}
END_TEST

START_TEST(questions_wait_for_answers)
{
    struct peer_worker stranger;
    struct pd_message join = {.kind = PD_MESSAGE_JOIN};
    struct pd_message registration = {.kind = PD_MESSAGE_REGISTER};
    struct pd_message pull = {.kind = PD_MESSAGE_PULL, .pull = {.min_version = 7}};
    struct pd_message values = {.kind = PD_MESSAGE_VALUES};
    float zeros[REFERENCE_ELEMENT_COUNT] = {0};

    begin_and_pause();
    stranger_init(&stranger);
    registration.registration.tensors = model;
    peer_send(stranger.leader, &registration, NULL, 0);
    (void)peer_expect(stranger.leader, PD_MESSAGE_REGISTERED);
    values.values.element_count = stranger.registered.lanes[1].element_count;
    values.values.element_begin = stranger.registered.lanes[1].element_begin;
    peer_send(stranger.lanes[1], &values, zeros, values.values.element_count * sizeof(float));
    peer_expect_error(stranger.lanes[1], PD_EREFUSED, false, "needs no values from this worker");
    stranger_leave(&stranger);

    struct peer *peer = peer_connect(cluster.addresses[1]);
    (void)peer_hello(peer);
    peer_send(peer, &pull, NULL, 0);
    peer_send(peer, &pull, NULL, 0);
    peer_expect_fatal(peer, PD_EPROTOCOL, "pull");
    peer_close(peer);
    peer = peer_connect(cluster.addresses[0]);
    (void)peer_join(peer, "twice", NULL);
    peer_send(peer, &join, NULL, 0);
    peer_expect_fatal(peer, PD_EPROTOCOL, "join from a worker is out of order");
    peer_close(peer);
    end();
}
END_TEST

START_TEST(unknown_commands_are_refused_and_the_known_named)
{
    struct pd_message admin = {.kind = PD_MESSAGE_ADMIN, .admin = {.command = "reboot"}};
    struct peer *peer;

    begin();
    peer = peer_connect(cluster.addresses[0]);
    (void)peer_hello(peer);
    peer_send(peer, &admin, NULL, 0);
    peer_expect_error(peer, PD_EINVALID, false, "unknown command 'reboot'; allowed: status, lr");
    peer_close(peer);
    end();
}
END_TEST

/* ---- Registration ---- */

/* Register the tensors in that order, the first of them changed, which must be refused for what
 * `text` says. */
static void expect_model_refused(uint32_t count, const uint32_t *order, const char *name,
                                 uint64_t first_shape, const char *text)
{
    struct pd_message message = {.kind = PD_MESSAGE_REGISTER};
    struct pd_error error = {0};
    struct peer *peer = peer_connect(cluster.addresses[0]);

    (void)peer_join(peer, "", NULL);
    ck_assert_int_eq(pd_tensor_list_init(&message.registration.tensors, count, &error), PD_OK);
    for (uint32_t i = 0; i < count; i++) {
        const struct reference_tensor *tensor = &reference_tensors[order[i]];
        uint64_t shape[2] = {tensor->shape[0], tensor->shape[1]};
        const char *called = i == 0 && name != NULL ? name : tensor->name;
        shape[0] = i == 0 && first_shape > 0 ? first_shape : shape[0];
        ck_assert_int_eq(pd_tensor_list_append(&message.registration.tensors, called,
                                               strlen(called), tensor->dimension_count, shape,
                                               &error),
                         PD_OK);
    }
    peer_send(peer, &message, NULL, 0);
    peer_expect_error(peer, PD_EMODEL, false, text);
    struct pd_message leave = {.kind = PD_MESSAGE_LEAVE};
    peer_send(peer, &leave, NULL, 0);
    (void)peer_expect(peer, PD_MESSAGE_LEFT);
    peer_close(peer);
    pd_tensor_list_finish(&message.registration.tensors);
}

START_TEST(other_models_are_refused_and_the_difference_named)
{
    static const uint32_t in_order[] = {0, 1, 2, 3, 4, 5};
    static const uint32_t swapped[] = {0, 2, 1, 3, 4, 5};

    begin();
    expect_model_refused(6, in_order, "embedding.wait", 0, "embedding.wait");
    expect_model_refused(6, in_order, NULL, 38, "[38, 20]");
    expect_model_refused(6, swapped, NULL, 0, "hidden.bias");
    expect_model_refused(5, in_order, NULL, 0, "5");
    end();
}
END_TEST

/* ---- Identity ---- */

START_TEST(name_of_a_live_worker_is_taken)
{
    struct pd_message join = {.kind = PD_MESSAGE_JOIN};
    struct peer *peer;

    begin();
    peer = peer_connect(cluster.addresses[0]);
    (void)peer_hello(peer);
    training_worker_name(join.join.name, 1);
    peer_send(peer, &join, NULL, 0);
    peer_expect_error(peer, PD_EIDENTITY, false, "the name 'worker 00001' belongs to worker");
    peer_close(peer);
    end();
}
END_TEST

START_TEST(identity_needs_its_token_and_its_run)
{
    begin();
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        struct peer *guest = peer_connect(cluster.addresses[rank]);
        uint64_t run_id = peer_hello(guest)->run_id;
        struct pd_message hello = {
            .kind = PD_MESSAGE_HELLO,
            .hello = {.has_worker_id = true, .worker_id = 0, .token = 12345, .run_id = run_id}};
        peer_close(guest);
        for (uint32_t id = 0; id < WORKER_COUNT; id++) {
            struct peer *peer = peer_connect(cluster.addresses[rank]);
            hello.hello.worker_id = id;
            peer_send(peer, &hello, NULL, 0);
            peer_expect_fatal(peer, PD_EIDENTITY, "");
            peer_close(peer);
        }
        struct peer *peer = peer_connect(cluster.addresses[rank]);
        hello.hello.worker_id = 4000;
        peer_send(peer, &hello, NULL, 0);
        peer_expect_fatal(peer, PD_EIDENTITY, "4000");
        peer_close(peer);
        peer = peer_connect(cluster.addresses[rank]);
        hello.hello.run_id++;
        peer_send(peer, &hello, NULL, 0);
        peer_expect_fatal(peer, PD_EIDENTITY, "join again");
        peer_close(peer);
    }
    end();
}
END_TEST

/* ---- Peers that do nothing ---- */

START_TEST(silent_connections_are_closed_when_hello_is_overdue)
{
    struct peer *silent[RANK_COUNT];
    struct peer *halfway[RANK_COUNT];

    begin_with("handshake_s: 1");
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        silent[rank] = peer_connect(cluster.addresses[rank]);
        halfway[rank] = peer_connect(cluster.addresses[rank]);
        peer_send_bytes(halfway[rank], "PRMD\1\0", 6);
    }
    for (uint32_t rank = 0; rank < RANK_COUNT; rank++) {
        peer_expect_fatal(silent[rank], PD_ETIMEOUT, "no hello within 1 s");
        peer_expect_fatal(halfway[rank], PD_ETIMEOUT, "no hello within 1 s");
        peer_close(silent[rank]);
        peer_close(halfway[rank]);
    }
    end();
}
END_TEST

enum { IDLE_COUNT = 1000 };

START_TEST(a_thousand_idle_connections_do_not_matter)
{
    static struct peer *idle[IDLE_COUNT];
    struct rlimit limit;
    struct pd_message pull = {.kind = PD_MESSAGE_PULL};

    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    begin();
    for (uint32_t i = 0; i < IDLE_COUNT; i++) {
        idle[i] = peer_connect(cluster.addresses[i % RANK_COUNT]);
        if (i % 4 < 2) {
            (void)peer_hello(idle[i]);
        }
    }
    training_advance(training, 16);
    for (uint32_t i = 0; i < 2; i++) {
        peer_send(idle[i], &pull, NULL, 0);
        (void)peer_expect(idle[i], PD_MESSAGE_PULLED);
    }
    end();
    for (uint32_t i = 0; i < IDLE_COUNT; i++) {
        peer_close(idle[i]);
    }
}
END_TEST

/* Requests without end whose answers nobody reads, for a while. */
START_TEST(peer_that_asks_without_reading_is_held_back)
{
    struct pd_message admin = {.kind = PD_MESSAGE_ADMIN, .admin = {.command = "reboot"}};
    struct peer *peer;

    begin();
    peer = peer_connect_narrow(cluster.addresses[0]);
    (void)peer_hello(peer);
    for (int i = 0; i < 2000; i++) {
        peer_send(peer, &admin, NULL, 0);
    }
    training_advance(training, 16);
    for (int i = 0; i < 2000; i++) {
        peer_expect_error(peer, PD_EINVALID, false, "unknown command 'reboot'");
    }
    peer_close(peer);
    end();
}
END_TEST

#define LARGE_ELEMENT_COUNT (4u << 20)
#define LARGE_STEP_COUNT 4u

/* One worker trains a model beyond what a socket holds; `disturb` is called after its first step.
 */
static void train_large(float *values, void (*disturb)(void))
{
    static float gradient[LARGE_ELEMENT_COUNT];
    struct peer_worker worker;
    struct pd_tensor_list large;
    struct pd_error error = {0};
    uint64_t shape = LARGE_ELEMENT_COUNT;

    cluster_start(&cluster, RANK_COUNT, "optimizer: {name: adam}\nsend_timeout_s: 1\n");
    ck_assert_int_eq(pd_tensor_list_init(&large, 1, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(&large, "large", 5, 1, &shape, &error), PD_OK);
    memset(gradient, 0, sizeof gradient);
    peer_worker_init(&worker, cluster.addresses[0], "worker", &large, gradient);
    for (uint64_t step = 0; step < LARGE_STEP_COUNT; step++) {
        for (uint32_t i = 0; i < LARGE_ELEMENT_COUNT; i++) {
            gradient[i] = (float)((i * 7 + step) % 13) - 5.0f;
        }
        peer_worker_push(&worker, step, 1, gradient, true);
        (void)peer_expect(worker.lanes[0], PD_MESSAGE_PULLED);
        if (step == 0 && disturb != NULL) {
            disturb();
        }
    }
    ck_assert_uint_eq(peer_payload_bytes(worker.lanes[0]), LARGE_ELEMENT_COUNT * sizeof *values);
    memcpy(values, peer_payload(worker.lanes[0]), LARGE_ELEMENT_COUNT * sizeof *values);
    pd_tensor_list_finish(&large);
    peer_worker_finish(&worker);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
}

static struct peer *reader;

static void ask_and_read_nothing(void)
{
    struct pd_message pull = {.kind = PD_MESSAGE_PULL};

    reader = peer_connect_narrow(cluster.addresses[0]);
    (void)peer_hello(reader);
    peer_send(reader, &pull, NULL, 0);
}

static void ask_and_read_nothing_for_long(void)
{
    ask_and_read_nothing();
    process_await_error(cluster.process, "nothing was read of an answer for 1 s");
}

START_TEST(peer_that_reads_nothing_is_cut_off)
{
    static float alone[LARGE_ELEMENT_COUNT];
    static float disturbed[LARGE_ELEMENT_COUNT];

    train_large(alone, NULL);
    train_large(disturbed, _i == 0 ? ask_and_read_nothing : ask_and_read_nothing_for_long);
    ck_assert_mem_eq(disturbed, alone, sizeof alone);
    ck_assert_ptr_null(peer_receive(reader));
    peer_close(reader);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bad_input");
    TCase *all = suite_case(suite, "bad_input", prepare);

    tcase_add_test(all, garbage_is_answered_with_what_a_frame_starts_with);
    tcase_add_test(all, wrong_magic_is_refused);
    tcase_add_test(all, another_version_is_refused_and_ours_named);
    tcase_add_test(all, unknown_flags_and_messages_are_refused);
    tcase_add_test(all, header_over_its_limit_is_refused_before_it_comes);
    tcase_add_test(all, header_that_is_no_message_is_refused);
    tcase_add_test(all, payload_where_none_belongs_is_refused);
    tcase_add_test(all, payload_over_the_lane_is_refused_before_it_comes);
    tcase_add_test(all, wrong_lengths_and_places_are_refused);
    tcase_add_test(all, unknown_types_are_refused_and_the_known_named);
    tcase_add_test(all, damaged_bytes_do_not_count);
    tcase_add_test(all, push_from_the_past_or_the_future_is_refused);
    tcase_add_test(all, cut_off_frames_count_for_nothing);
    tcase_add_test(all, nothing_is_heard_before_hello);
    tcase_add_test(all, guests_say_only_what_guests_may);
    tcase_add_test(all, what_is_for_rank_0_is_sent_there);
    tcase_add_test(all, strangers_are_no_ranks);
    tcase_add_test(all, questions_wait_for_answers);
    tcase_add_test(all, unknown_commands_are_refused_and_the_known_named);
    tcase_add_test(all, other_models_are_refused_and_the_difference_named);
    tcase_add_test(all, name_of_a_live_worker_is_taken);
    tcase_add_test(all, identity_needs_its_token_and_its_run);
    tcase_add_test(all, silent_connections_are_closed_when_hello_is_overdue);
    tcase_add_test(all, a_thousand_idle_connections_do_not_matter);
    tcase_add_test(all, peer_that_asks_without_reading_is_held_back);
    suite_add_loop(suite, peer_that_reads_nothing_is_cut_off, 2);
    return suite_run(suite);
}
