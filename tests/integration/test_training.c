/* Workers train through real ranks, and the parameters are what a plain computation says. */
#include "tests/support/cluster.h"
#include "tests/support/peer.h"
#include "tests/support/reference.h"
#include "tests/support/suite.h"
#include "tests/support/training.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* float32 arithmetic in another order of additions, over the steps of one training. */
#define TOLERANCE 2e-5

#define STEP_COUNT 12u

static const struct reference_training plain = {
    .rule = REFERENCE_SGD,
    .lr = 0.1,
    .clip_norm_type = 2.0,
    .worker_count = 2,
    .micro_batch_count = 1,
    .step_count = STEP_COUNT,
};

/* Train as `reference` says with a daemon of that configuration; gives the parameters. */
static void train(const struct reference_training *reference, uint32_t rank_count, bool backwards,
                  const char *config, float *values)
{
    struct cluster cluster;
    struct training_options options;
    const char *addresses[PD_RANK_COUNT_MAX];

    cluster_start(&cluster, rank_count, "workers: {expected: %u}\naccumulation_steps: %u\n%s",
                  reference->worker_count, reference->micro_batch_count, config);
    for (uint32_t rank = 0; rank < cluster.rank_count; rank++) {
        addresses[rank] = cluster.addresses[rank];
    }
    training_options_init(&options, addresses, reference->worker_count, reference->step_count);
    options.address_count = cluster.rank_count;
    options.micro_batch_count = reference->micro_batch_count;
    options.push_dtype = (int)reference->wire;
    options.backwards = backwards;
    training_run(&options, values);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
}

static void check(const struct reference_training *reference, uint32_t rank_count,
                  const char *config)
{
    static double expected[REFERENCE_ELEMENT_COUNT];
    float values[REFERENCE_ELEMENT_COUNT];

    train(reference, rank_count, false, config, values);
    reference_train(reference, expected);
    double error = reference_error(values, expected);
    ck_assert_msg(error < TOLERANCE, "off by %g with %u ranks and %s", error, rank_count, config);
}

#define MOMENTUM "optimizer: {name: sgd, lr: 0.1, momentum: 0.9}\n"

static struct reference_training with_momentum(uint32_t worker_count)
{
    struct reference_training reference = plain;

    reference.momentum = 0.9;
    reference.worker_count = worker_count;
    return reference;
}

/* ---- Ranks and aggregations ---- */

static const struct {
    uint32_t rank_count;
    uint32_t worker_count;
    const char *config;
} grids[] = {
    {CLUSTER_ALONE, 2, "aggregation: allreduce\nblock_size: 100\n"},
    {CLUSTER_ALONE, 3, "aggregation: direct\n"},
    {1, 1, "aggregation: allreduce\n"},
    {1, 3, "aggregation: direct\nblock_size: 64\n"},
    {2, 3, "aggregation: allreduce\nblock_size: 64\n"},
    {2, 3, "aggregation: direct\nblock_size: 64\n"},
    {3, 2, "aggregation: allreduce\nblock_size: 100\n"},
    {3, 2, "aggregation: direct\nblock_size: 100\n"},
    {4, 5, "aggregation: allreduce\nblock_size: 64\n"},
    {4, 3, "aggregation: direct\nblock_size: 33\n"},
    {4, 3, "aggregation: allreduce\nlanes: 2\nblock_size: 64\n"},
};

/* Every aggregation at 1, 2, 3 and 4 ranks, with workers that do not divide by ranks. */
START_TEST(sums_are_those_of_a_plain_computation_whatever_the_ranks)
{
    struct reference_training reference = with_momentum(grids[_i].worker_count);
    char config[256];

    snprintf(config, sizeof config, "%s%s", MOMENTUM, grids[_i].config);
    check(&reference, grids[_i].rank_count, config);
}
END_TEST

START_TEST(ranks_without_a_block_take_part)
{
    struct reference_training reference = with_momentum(2);

    /* Six tensors of at most one block each, for eight ranks. */
    check(&reference, 8, MOMENTUM "aggregation: direct\nblock_size: 65536\nrank_timeout_s: 60\n");
}
END_TEST

START_TEST(replicas_without_a_block_take_part)
{
    struct reference_training reference = with_momentum(3);

    check(&reference, 4, MOMENTUM "aggregation: allreduce\nblock_size: 65536\n");
}
END_TEST

/* ---- Rules ---- */

static const struct {
    const char *config;
    struct reference_training reference;
} rules[] = {
    {"optimizer: {name: sgd, lr: 0.1, weight_decay: 0.01}\n",
     {.rule = REFERENCE_SGD, .lr = 0.1, .weight_decay = 0.01}},
    {"optimizer: {name: sgd, lr: 0.1, momentum: 0.9, dampening: 0.2}\nclip: {norm: 0.5}\n",
     {.rule = REFERENCE_SGD, .lr = 0.1, .momentum = 0.9, .dampening = 0.2, .clip_norm = 0.5}},
    {"optimizer: {name: sgd, lr: 0.1, momentum: 0.8, nesterov: true}\n"
     "clip: {norm: 0.1, norm_type: .inf}\n",
     {.rule = REFERENCE_SGD,
      .lr = 0.1,
      .momentum = 0.8,
      .nesterov = true,
      .clip_norm = 0.1,
      .clip_norm_type = INFINITY}},
    {"optimizer: {name: adam, lr: 0.01, weight_decay: 0.1}\nclip: {value: 0.05}\n",
     {.rule = REFERENCE_ADAM,
      .lr = 0.01,
      .betas = {0.9, 0.999},
      .eps = 1e-8,
      .weight_decay = 0.1,
      .clip_value = 0.05}},
    {"optimizer: {name: adamw, lr: 0.01, betas: [0.8, 0.95], eps: 1e-6, weight_decay: 0.2}\n"
     "clip: {norm: 3, norm_type: 1.5}\n",
     {.rule = REFERENCE_ADAMW,
      .lr = 0.01,
      .betas = {0.8, 0.95},
      .eps = 1e-6,
      .weight_decay = 0.2,
      .clip_norm = 3.0,
      .clip_norm_type = 1.5}},
    {"optimizer: {name: lamb, lr: 0.01, max_grad_norm: null}\nclip: {norm: 1}\n"
     "schedule: [{name: linear, start_factor: 0.1, steps: 5}]\n",
     {.rule = REFERENCE_LAMB,
      .lr = 0.01,
      .betas = {0.9, 0.999},
      .eps = 1e-6,
      .weight_decay = 0.01,
      .clip_norm = 1.0,
      .warmup_steps = 5}},
};

START_TEST(every_rule_steps_as_its_paper_says)
{
    struct reference_training reference = rules[_i].reference;
    char config[512];

    reference.clip_norm_type = reference.clip_norm_type > 0.0 ? reference.clip_norm_type : 2.0;
    reference.worker_count = 3;
    reference.micro_batch_count = 1;
    reference.step_count = STEP_COUNT;
    snprintf(config, sizeof config, "%saggregation: %s\nblock_size: 50\n", rules[_i].config,
             _i % 2 == 0 ? "direct" : "allreduce");
    check(&reference, 2, config);
}
END_TEST

/* ---- Wire and accumulation ---- */

START_TEST(gradients_travel_in_every_type)
{
    struct reference_training reference = with_momentum(2);

    reference.wire = (enum pd_dtype)_i;
    check(&reference, 2, MOMENTUM "aggregation: direct\nblock_size: 100\n");
}
END_TEST

START_TEST(micro_batches_are_averaged_by_their_samples)
{
    struct reference_training reference = with_momentum(3);

    reference.micro_batch_count = 3;
    reference.wire = _i == 0 ? PD_DTYPE_FLOAT32 : PD_DTYPE_BFLOAT16;
    check(&reference, 2,
          _i == 0 ? MOMENTUM "aggregation: allreduce\nblock_size: 100\n"
                  : MOMENTUM "aggregation: direct\nblock_size: 100\n");
}
END_TEST

/* Parameters arrive as the float32 ones converted to the type asked for. */
START_TEST(parameters_travel_in_every_type)
{
    struct cluster cluster;
    struct training_options options;
    float exact[REFERENCE_ELEMENT_COUNT];
    float pulled[REFERENCE_ELEMENT_COUNT];
    float wire[REFERENCE_ELEMENT_COUNT];
    enum pd_dtype dtype = (enum pd_dtype)_i;
    const char *address = cluster.addresses[0];

    train(&plain, 2, false, "optimizer: {name: sgd, lr: 0.1}\nblock_size: 64\n", exact);
    cluster_start(&cluster, 2,
                  "workers: {expected: 2}\noptimizer: {name: sgd, lr: 0.1}\nblock_size: 64\n");
    training_options_init(&options, &address, 2, STEP_COUNT);
    options.pull_dtype = (int)dtype;
    options.apart = _i % 2 == 1;
    training_run(&options, pulled);
    cluster_drain(&cluster);
    cluster_stop(&cluster);

    pd_convert_from_float32(wire, dtype, exact, REFERENCE_ELEMENT_COUNT);
    pd_convert_to_float32(exact, wire, dtype, REFERENCE_ELEMENT_COUNT);
    ck_assert_mem_eq(pulled, exact, sizeof exact);
}
END_TEST

/* ---- Gradients that are not finite ---- */

/* One worker gives STEP_COUNT gradients, and one with a NaN before number `bad_step`. */
static void train_with_bad_step(uint64_t bad_step, float *values, char **status)
{
    static const char *const words[] = {"status", NULL};
    struct cluster cluster;
    struct pd_tensor_list model;
    struct peer_worker worker;
    float gradient[REFERENCE_ELEMENT_COUNT];

    cluster_start(&cluster, 2, "aggregation: direct\nblock_size: 64\n" MOMENTUM);
    reference_model_init(&model);
    reference_values(values);
    peer_worker_init(&worker, cluster.addresses[0], "worker", &model, values);
    uint64_t step = 0;
    for (uint64_t number = 0; number < STEP_COUNT; number++) {
        bool bad = step == bad_step;
        reference_gradient(gradient, 0, number, 0);
        gradient[REFERENCE_ELEMENT_COUNT - 2] = bad ? NAN : gradient[REFERENCE_ELEMENT_COUNT - 2];
        number -= bad; /* it is given in addition */
        peer_worker_push(&worker, step++, 1, gradient, true);
        for (uint32_t lane = 0; lane < 2; lane++) {
            const struct pd_pulled *pulled =
                &peer_expect(worker.lanes[lane], PD_MESSAGE_PULLED)->pulled;
            ck_assert_uint_eq(pulled->version, step);
            ck_assert_uint_eq(pulled->skipped_steps, step > bad_step ? 1 : 0);
            memcpy(values + pulled->element_begin, peer_payload(worker.lanes[lane]),
                   peer_payload_bytes(worker.lanes[lane]));
        }
    }
    *status = cluster_ask(&cluster, words);
    peer_worker_finish(&worker);
    pd_tensor_list_finish(&model);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
}

START_TEST(step_with_a_nan_is_skipped_on_every_rank_and_counted)
{
    float clean[REFERENCE_ELEMENT_COUNT];
    float values[REFERENCE_ELEMENT_COUNT];
    char *status;

    train_with_bad_step(UINT64_MAX, clean, &status);
    ck_assert_ptr_nonnull(strstr(status, "\"skipped_steps\":0,"));
    free(status);
    train_with_bad_step(4, values, &status);
    ck_assert_mem_eq(values, clean, sizeof values);
    ck_assert_ptr_nonnull(strstr(status, "\"skipped_steps\":1,"));
    ck_assert_msg(strstr(status, "step 4: the gradient of worker 0 'worker' is not finite: "
                                 "tensor 'norm.bias', element 1") != NULL,
                  "%s", status);
    free(status);
}
END_TEST

/* ---- Bitwise ---- */

#define LAMB "optimizer: {name: lamb, lr: 0.01}\nclip: {norm: 0.5}\nblock_size: 64\n"
#define BITWISE_STEP_COUNT 50u

static const struct reference_training lamb = {
    .worker_count = 3, .micro_batch_count = 2, .step_count = BITWISE_STEP_COUNT};

START_TEST(direct_is_the_same_to_the_bit_for_any_ranks_and_order_of_arrival)
{
    float alone[REFERENCE_ELEMENT_COUNT];
    float values[REFERENCE_ELEMENT_COUNT];

    train(&lamb, 1, false, LAMB "aggregation: direct\n", alone);
    for (uint32_t rank_count = 1; rank_count <= 4; rank_count++) {
        train(&lamb, rank_count, true, LAMB "aggregation: direct\n", values);
        ck_assert_mem_eq(values, alone, sizeof values);
    }
    for (uint32_t rank_count = 2; rank_count <= 4; rank_count++) {
        train(&lamb, rank_count, false, LAMB "aggregation: direct\n", values);
        ck_assert_mem_eq(values, alone, sizeof values);
    }
}
END_TEST

START_TEST(allreduce_is_repeatable_to_the_bit)
{
    float first[REFERENCE_ELEMENT_COUNT];
    float values[REFERENCE_ELEMENT_COUNT];
    uint32_t rank_count = 2 + (uint32_t)_i;

    train(&lamb, rank_count, false, LAMB "aggregation: allreduce\n", first);
    for (int i = 0; i < 2; i++) {
        train(&lamb, rank_count, false, LAMB "aggregation: allreduce\n", values);
        ck_assert_mem_eq(values, first, sizeof values);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("training");

    suite_add_loop(suite, sums_are_those_of_a_plain_computation_whatever_the_ranks,
                   sizeof grids / sizeof grids[0]);
    suite_add(suite, ranks_without_a_block_take_part);
    suite_add(suite, replicas_without_a_block_take_part);
    suite_add_loop(suite, every_rule_steps_as_its_paper_says, sizeof rules / sizeof rules[0]);
    suite_add_loop(suite, gradients_travel_in_every_type, 3);
    suite_add_loop(suite, micro_batches_are_averaged_by_their_samples, 2);
    suite_add_loop(suite, parameters_travel_in_every_type, 3);
    suite_add(suite, step_with_a_nan_is_skipped_on_every_rank_and_counted);
    suite_add(suite, direct_is_the_same_to_the_bit_for_any_ranks_and_order_of_arrival);
    suite_add_loop(suite, allreduce_is_repeatable_to_the_bit, 3);
    return suite_run(suite);
}
