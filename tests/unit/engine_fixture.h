/* One engine under the hands of a test: events go in one by one, what it sends is kept decoded.
 * test -> [engine_fixture] -> engine. For what a whole simulated cluster is too coarse for. */
#ifndef PD_TESTS_UNIT_ENGINE_FIXTURE_H
#define PD_TESTS_UNIT_ENGINE_FIXTURE_H

#include "server/core/engine_state.h"

#define FIXTURE_SENT_COUNT_MAX 256u
#define FIXTURE_ELEMENTS 8u /* of the model: "w" [3, 2] and "b" [2] */

/* Something the engine sent. */
struct fixture_sent {
    pd_connection_id connection;
    struct pd_message *message;
    const void *payload;
    enum pd_dtype payload_dtype;
    uint64_t payload_bytes;
};

struct engine_fixture {
    struct pd_config *config;
    struct pd_topology topology;
    struct pd_engine *engine;
    struct pd_actions actions; /* of the last event */
    uint64_t now_ms;
    uint64_t entropy;
    struct fixture_sent sent[FIXTURE_SENT_COUNT_MAX];
    uint32_t sent_count;
    bool work_asked;
    bool ready;
    bool exited;
    char aborted[2 * PD_ERROR_BYTES_MAX];
    char logged[2 * PD_ERROR_BYTES_MAX]; /* the last line */
    const struct pd_collective *collective;
    void *placed[64]; /* by connection: where the next bytes of its payload go; NULL: dropped */
    bool was_placed[64];
    uint64_t place_begin[64]; /* the bytes of the payload that go there */
    uint64_t place_end[64];
    bool closed[64];        /* asked to be */
    uint64_t may_leave[64]; /* bytes that may leave of the last payload sent there */
    struct pd_tensor_list model;
};

/* An engine of rank `rank` of `rank_count`; `config` is YAML. */
void fixture_init(struct engine_fixture *fixture, uint32_t rank, uint32_t rank_count,
                  const char *config);
void fixture_finish(struct engine_fixture *fixture);

void fixture_open(struct engine_fixture *fixture, pd_connection_id connection);
void fixture_close(struct engine_fixture *fixture, pd_connection_id connection);
void fixture_say(struct engine_fixture *fixture, pd_connection_id connection,
                 const struct pd_message *message, uint64_t payload_bytes);
/* The payload that was placed is in; `bytes` may be NULL. */
void fixture_payload(struct engine_fixture *fixture, pd_connection_id connection, const void *bytes,
                     uint64_t byte_count, bool checksum_ok);
/* Bytes [begin, end) of it come in. */
void fixture_receive(struct engine_fixture *fixture, pd_connection_id connection, const void *bytes,
                     uint64_t begin, uint64_t end);
void fixture_sent_event(struct engine_fixture *fixture, pd_connection_id connection);
void fixture_progress(struct engine_fixture *fixture, pd_connection_id connection, bool received);
void fixture_work_once(struct engine_fixture *fixture);
/* Turns until none is asked for. */
void fixture_work(struct engine_fixture *fixture);
/* Let that much time pass, with ticks. */
void fixture_wait(struct engine_fixture *fixture, uint64_t ms);

/* Take in what an event that the test fed itself has led to. */
void fixture_note(struct engine_fixture *fixture);

/* The last message sent on that connection; NULL when there is none. */
const struct pd_message *fixture_last(const struct engine_fixture *fixture,
                                      pd_connection_id connection);
uint32_t fixture_count(const struct engine_fixture *fixture, pd_connection_id connection,
                       enum pd_message_kind kind);
/* Forget what was sent so far. */
void fixture_forget(struct engine_fixture *fixture);
/* The last message on that connection is an Error of that status that says so. */
void fixture_expect_error(const struct engine_fixture *fixture, pd_connection_id connection,
                          enum pd_status status, bool fatal, const char *text);

/* Open and greet as a guest. */
void fixture_greet(struct engine_fixture *fixture, pd_connection_id connection);
/* Greet and join; returns the worker's id. */
uint32_t fixture_join(struct engine_fixture *fixture, pd_connection_id connection,
                      const char *name);
/* Join, register and supply values if asked: on a lone rank the worker then takes part. */
uint32_t fixture_enlist(struct engine_fixture *fixture, pd_connection_id connection,
                        const char *name);
/* Push a whole contribution of equal elements, whole. */
void fixture_push(struct engine_fixture *fixture, pd_connection_id connection, uint64_t step,
                  float element, uint64_t samples);
/* The same, with its loss. */
void fixture_push_loss(struct engine_fixture *fixture, pd_connection_id connection, uint64_t step,
                       float element, uint64_t samples, double loss);
/* Play the other ranks: link them on connections 40 + rank. */
void fixture_link_ranks(struct engine_fixture *fixture);
/* They report every order sent so far as carried out. */
void fixture_ranks_execute(struct engine_fixture *fixture);

#endif
