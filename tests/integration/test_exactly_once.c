/* Connections break at every kind of message, and no push of a gradient or of an estimate of the
 * Hessian counts twice or goes missing: parameters are to the bit those of a training that nothing
 * disturbs. */
#include "tests/support/cluster.h"
#include "tests/support/proxy.h"
#include "tests/support/suite.h"
#include "tests/support/training.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKER_COUNT 3u
#define STEP_COUNT 12u
#define MICRO_BATCH_COUNT 2u
#define PUSH_BYTES (WORKER_COUNT * STEP_COUNT * MICRO_BATCH_COUNT * REFERENCE_ELEMENT_COUNT * 4ull)

static float undisturbed[REFERENCE_ELEMENT_COUNT];

static void start(struct cluster *cluster, uint32_t rank_count, const char *listen)
{
    cluster_start(cluster, rank_count,
                  "listen: %s\nadvertise: " PROXY_HOST "\naggregation: direct\nblock_size: 64\n"
                  "optimizer: {name: sophia_g, lr: 0.01, bs: 1000}\nclip: {norm: "
                  "0.5}\naccumulation_steps: %u\n"
                  "workers: {expected: %u}\n",
                  listen, MICRO_BATCH_COUNT, WORKER_COUNT);
}

static void prepare(void)
{
    struct proxy *proxy = proxy_start(1, NULL, NULL);
    struct cluster cluster;
    struct training_options options;
    const char *address = cluster.addresses[0];

    start(&cluster, 1, proxy_listen(proxy));
    training_options_init(&options, &address, WORKER_COUNT, STEP_COUNT);
    options.micro_batch_count = MICRO_BATCH_COUNT;
    options.hessian_every = 3;
    training_run(&options, undisturbed);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
    proxy_stop(proxy);
}

/* What a training with faults came to. */
struct outcome {
    struct proxy_count pushes; /* that reached a rank whole */
    uint32_t connection_count;
    uint32_t fault_count;
};

/* Which frames meet which fault. Under the proxy's lock. */
struct faults {
    bool to_rank;
    enum pd_message_kind kind;
    enum proxy_verdict verdict;
    uint32_t every; /* of so many frames of the kind, one */
    uint32_t limit; /* how often in all */
    uint32_t done;
};

static enum proxy_verdict judge(void *context, const struct proxy_frame *frame)
{
    struct faults *faults = context;

    if (frame->to_rank != faults->to_rank || frame->kind != faults->kind ||
        frame->index % faults->every != faults->every - 1 || faults->done == faults->limit) {
        return PROXY_PASS;
    }
    faults->done++;
    return faults->verdict;
}

/* Train through faults; whatever happens, the result must be the undisturbed one. */
static struct outcome train(uint32_t rank_count, bool apart, proxy_judge *judge_frame,
                            struct faults *faults)
{
    struct proxy *proxy = proxy_start(rank_count, judge_frame, faults);
    struct cluster cluster;
    struct training_options options;
    struct outcome outcome = {{0, 0}, 0, 0};
    float values[REFERENCE_ELEMENT_COUNT];
    const char *address = cluster.addresses[0];

    start(&cluster, rank_count, proxy_listen(proxy));
    training_options_init(&options, &address, WORKER_COUNT, STEP_COUNT);
    options.micro_batch_count = MICRO_BATCH_COUNT;
    options.hessian_every = 3;
    options.apart = apart;
    training_run(&options, values);
    ck_assert_mem_eq(values, undisturbed, sizeof values);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
    outcome.pushes = proxy_counted(proxy, true, PD_MESSAGE_PUSH);
    outcome.connection_count = proxy_connection_count(proxy);
    proxy_stop(proxy);
    outcome.fault_count = faults != NULL ? faults->done : 0;
    return outcome;
}

START_TEST(undisturbed_pushes_are_sent_once)
{
    struct outcome outcome = train(2, _i == 1, NULL, NULL);

    ck_assert_uint_eq(outcome.pushes.payload_bytes, PUSH_BYTES);
}
END_TEST

/* ---- Acknowledgements that are lost ---- */

static struct faults lost_acknowledgements[] = {
    {false, PD_MESSAGE_PUSHED, PROXY_CUT, 5, UINT32_MAX, 0},
    {false, PD_MESSAGE_PUSHED, PROXY_CUT_MIDDLE, 4, UINT32_MAX, 0},
    {false, PD_MESSAGE_PULLED, PROXY_CUT, 7, UINT32_MAX, 0},
    {false, PD_MESSAGE_PULLED, PROXY_CUT_MIDDLE, 6, UINT32_MAX, 0},
};

START_TEST(lost_acknowledgement_costs_no_payload)
{
    struct outcome outcome = train(2, _i < 2, judge, &lost_acknowledgements[_i]);

    ck_assert_uint_gt(outcome.fault_count, 3);
    ck_assert_uint_eq(outcome.pushes.payload_bytes, PUSH_BYTES);
}
END_TEST

/* ---- Any message ---- */

static struct faults cuts[] = {
    {true, PD_MESSAGE_HELLO, PROXY_CUT, 3, UINT32_MAX, 0},
    {true, PD_MESSAGE_HELLO, PROXY_CUT_AFTER, 2, UINT32_MAX, 0},
    {false, PD_MESSAGE_WELCOME, PROXY_CUT, 3, UINT32_MAX, 0},
    {true, PD_MESSAGE_JOIN, PROXY_CUT, 2, UINT32_MAX, 0},
    {true, PD_MESSAGE_REGISTER, PROXY_CUT, 2, UINT32_MAX, 0},
    {true, PD_MESSAGE_REGISTER, PROXY_CUT_MIDDLE, 2, UINT32_MAX, 0},
    {true, PD_MESSAGE_VALUES, PROXY_CUT_MIDDLE, 1, 3, 0},
    {false, PD_MESSAGE_VALUES_STORED, PROXY_CUT, 1, 3, 0},
    {true, PD_MESSAGE_HESSIAN, PROXY_CUT, 3, UINT32_MAX, 0},
    {true, PD_MESSAGE_HESSIAN, PROXY_CUT_MIDDLE, 3, UINT32_MAX, 0},
    {true, PD_MESSAGE_HESSIAN, PROXY_CUT_AFTER, 3, UINT32_MAX, 0},
    {true, PD_MESSAGE_PUSH, PROXY_CUT, 7, UINT32_MAX, 0},
    {true, PD_MESSAGE_PUSH, PROXY_CUT_MIDDLE, 5, UINT32_MAX, 0},
    {true, PD_MESSAGE_PUSH, PROXY_CUT_AFTER, 5, UINT32_MAX, 0},
    {false, PD_MESSAGE_PULLED, PROXY_CUT_AFTER, 5, UINT32_MAX, 0},
    {true, PD_MESSAGE_LEAVE, PROXY_CUT, 2, UINT32_MAX, 0},
    {false, PD_MESSAGE_LEFT, PROXY_CUT, 2, UINT32_MAX, 0},
};

START_TEST(connection_cut_at_a_message_is_made_again)
{
    struct outcome outcome = train(2, _i % 2 == 0, judge, &cuts[_i]);

    ck_assert_uint_gt(outcome.fault_count, 0);
}
END_TEST

/* The answers to Joined and Registered say what no other message does: losing them is the hardest.
 */
static struct faults lost_answers[] = {
    {false, PD_MESSAGE_JOINED, PROXY_CUT, 2, UINT32_MAX, 0},
    {false, PD_MESSAGE_REGISTERED, PROXY_CUT, 2, UINT32_MAX, 0},
    {true, PD_MESSAGE_JOIN, PROXY_CUT_AFTER, 2, UINT32_MAX, 0},
    {true, PD_MESSAGE_REGISTER, PROXY_CUT_AFTER, 2, UINT32_MAX, 0},
};

START_TEST(answers_to_joining_and_registering_may_be_lost)
{
    struct outcome outcome = train(2, false, judge, &lost_answers[_i]);

    ck_assert_uint_gt(outcome.fault_count, 0);
}
END_TEST

/* ---- All at once ---- */

enum { SEED_COUNT = 6 };

struct chance {
    struct faults faults;
    unsigned seed;
};

static enum proxy_verdict judge_by_chance(void *context, const struct proxy_frame *frame)
{
    struct chance *chance = context;
    unsigned roll = (unsigned)rand_r(&chance->seed) % 40;

    (void)frame;
    if (roll > 2) {
        return PROXY_PASS;
    }
    chance->faults.done++;
    return (enum proxy_verdict)(PROXY_CUT + roll);
}

START_TEST(faults_anywhere_change_nothing)
{
    struct chance chance = {.seed = (unsigned)_i + 1};
    struct outcome outcome =
        train((uint32_t)_i % 3 + 1, _i % 2 == 0, judge_by_chance, &chance.faults);

    ck_assert_uint_gt(outcome.fault_count, 0);
    ck_assert_uint_ge(outcome.connection_count, WORKER_COUNT);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("exactly_once");
    TCase *all = suite_case(suite, "exactly_once", prepare);

    tcase_add_loop_test(all, undisturbed_pushes_are_sent_once, 0, 2);
    tcase_add_loop_test(all, lost_acknowledgement_costs_no_payload, 0,
                        sizeof lost_acknowledgements / sizeof lost_acknowledgements[0]);
    tcase_add_loop_test(all, connection_cut_at_a_message_is_made_again, 0,
                        sizeof cuts / sizeof cuts[0]);
    tcase_add_loop_test(all, answers_to_joining_and_registering_may_be_lost, 0,
                        sizeof lost_answers / sizeof lost_answers[0]);
    tcase_add_loop_test(all, faults_anywhere_change_nothing, 0, SEED_COUNT);
    return suite_run(suite);
}
