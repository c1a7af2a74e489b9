/* What the tests of steps begun ahead have in common: a lone rank, and two workers with a gradient
 * each. test -> [ahead_fixture] -> engine_fixture. */
#ifndef PD_TESTS_UNIT_AHEAD_FIXTURE_H
#define PD_TESTS_UNIT_AHEAD_FIXTURE_H

#include "engine_fixture.h"

#include <check.h>

#define CONFIG "compute_ahead: 1\n" PLAIN
#define PLAIN                                                                                      \
    "aggregation: direct\nblock_size: 4\nsend_timeout_s: 4\n"                                      \
    "workers: {expected: 2, lease_s: 8, resume_s: 2}\noptimizer: {name: sgd, lr: 1}\n"

enum {
    A = 3,
    B = 4,
    C = 5,
    ADMIN = 9,
    BYTES = FIXTURE_ELEMENTS * sizeof(float),
    FIRST_BLOCK = 4 * sizeof(float),
    SECOND_BLOCK = 6 * sizeof(float), /* the blocks so far: "w" ends there */
};

static const float gradient_a[FIXTURE_ELEMENTS] = {1, 2, 3, 4, 5, 6, 7, 8};
static const float gradient_b[FIXTURE_ELEMENTS] = {3, 2, 1, 0, -1, -2, -3, -4};
/* What both make of the values 1 to 8 at a rate of 1. */
static const float together[FIXTURE_ELEMENTS] = {-1, 0, 1, 2, 3, 4, 5, 6};

static struct engine_fixture f;

static inline void begin(const char *config)
{
    fixture_init(&f, 0, 1, config);
    fixture_enlist(&f, A, "a");
    fixture_enlist(&f, B, "b");
    fixture_forget(&f);
}

static inline void setup(void)
{
    begin(CONFIG);
}

static inline void teardown(void)
{
    fixture_finish(&f);
}

static inline struct pd_message push_of(uint64_t step, bool ahead)
{
    return (struct pd_message){.kind = PD_MESSAGE_PUSH,
                               .push = {.step = step,
                                        .last = true,
                                        .samples = 1,
                                        .element_count = FIXTURE_ELEMENTS,
                                        .pull = true,
                                        .ahead = ahead}};
}

/* Announce a push that may be answered ahead. */
static inline void announce(pd_connection_id connection, uint64_t step)
{
    const struct pd_message push = push_of(step, true);
    fixture_say(&f, connection, &push, BYTES);
    ck_assert_ptr_nonnull(f.placed[connection]);
}

/* Both have begun to push for step 0, and their first blocks are in. */
static inline void begin_both(void)
{
    announce(A, 0);
    announce(B, 0);
    fixture_receive(&f, A, gradient_a, 0, FIRST_BLOCK);
    fixture_receive(&f, B, gradient_b, 0, FIRST_BLOCK);
    ck_assert_ptr_nonnull(f.engine->foreseen);
}

static inline void end(pd_connection_id connection, const float *gradient)
{
    fixture_payload(&f, connection, gradient, BYTES, true);
    fixture_work(&f);
}

static inline const struct fixture_sent *last_payload(pd_connection_id connection)
{
    for (uint32_t i = f.sent_count; i > 0; i--) {
        if (f.sent[i - 1].connection == connection && f.sent[i - 1].payload_bytes > 0) {
            return &f.sent[i - 1];
        }
    }
    ck_abort_msg("no payload on connection %u", connection);
    return NULL;
}

/* An open answer to step 0 of which `ready` bytes may leave. */
static inline void expect_ahead(pd_connection_id connection, uint64_t ready)
{
    const struct fixture_sent *sent = last_payload(connection);

    ck_assert_int_eq(sent->message->kind, PD_MESSAGE_PULLED);
    ck_assert(sent->message->pulled.ahead);
    ck_assert_uint_eq(sent->message->pulled.version, 1);
    ck_assert_uint_eq(f.may_leave[connection], ready);
    ck_assert_uint_eq(fixture_count(&f, connection, PD_MESSAGE_SETTLED), 0);
}

/* Told so often that what came ahead is void; nothing of the last payload is held back. */
static inline void expect_void(pd_connection_id connection, uint64_t version)
{
    const struct pd_message *message = NULL;

    for (uint32_t i = 0; i < f.sent_count; i++) {
        if (f.sent[i].connection == connection && f.sent[i].message->kind == PD_MESSAGE_SETTLED) {
            ck_assert_ptr_null(message);
            message = f.sent[i].message;
        }
    }
    ck_assert_ptr_nonnull(message);
    ck_assert(!message->settled.applied);
    ck_assert_uint_eq(message->settled.pulled.version, version);
    ck_assert_uint_eq(f.may_leave[connection], last_payload(connection)->payload_bytes);
}

/* Told that with what came ahead its push is void, too. */
static inline void expect_void_and_again(pd_connection_id connection, uint64_t version)
{
    expect_void(connection, version);
    for (uint32_t i = 0; i < f.sent_count; i++) {
        if (f.sent[i].connection == connection && f.sent[i].message->kind == PD_MESSAGE_SETTLED) {
            ck_assert(f.sent[i].message->settled.again);
        }
    }
}

static inline void push_again(pd_connection_id connection, const float *gradient)
{
    fixture_sent_event(&f, connection);
    announce(connection, 0);
    end(connection, gradient);
}

static inline void expect_parameters(uint64_t version, const float *expected)
{
    ck_assert_uint_eq(f.engine->store.version, version);
    ck_assert_mem_eq(pd_param_store_served(&f.engine->store), expected, BYTES);
}

/* Answered without anything ahead: the served version. */
static inline void expect_plain_answer(pd_connection_id connection, uint64_t version)
{
    const struct fixture_sent *sent = last_payload(connection);

    ck_assert_int_eq(sent->message->kind, PD_MESSAGE_PULLED);
    ck_assert(!sent->message->pulled.ahead);
    ck_assert_uint_eq(sent->message->pulled.version, version);
    ck_assert_uint_eq(f.may_leave[connection], sent->payload_bytes);
}

static inline const float *initial(void)
{
    static const float values[FIXTURE_ELEMENTS] = {1, 2, 3, 4, 5, 6, 7, 8};
    return values;
}

static inline const struct pd_contribution *contribution_of(pd_connection_id connection)
{
    return &pd_roster_find(f.engine->roster, f.engine->sessions[connection].worker_id)
                ->contribution;
}

static inline void expect_only_a(uint64_t version)
{
    float alone[FIXTURE_ELEMENTS];

    for (uint32_t i = 0; i < FIXTURE_ELEMENTS; i++) {
        alone[i] = initial()[i] - gradient_a[i];
    }
    expect_parameters(version, alone);
}

#endif
