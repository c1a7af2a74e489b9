/* Steps of all ranks of a job in one process: the same bits for any number of shards, whatever the
 * rule needs to know of whole tensors, and no more collectives than it needs. */
#include "common/heap.h"
#include "server/core/step.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RANK_COUNT_MAX 7u
#define WORKER_COUNT 2u
#define STEP_COUNT 6u
#define ABSENT_STEP 3u /* in which the second tensor has no gradient */

static const struct {
    const char *name;
    uint32_t dimension_count;
    uint64_t shape[4];
} tensors[] = {
    {"embed", 2, {33, 17}},      {"fc", 2, {7, 5}}, {"bias", 1, {41}},
    {"conv", 4, {18, 20, 2, 2}}, {"scale", 0, {0}}, {"wide", 2, {3, 90}},
    {"deep", 3, {2, 21, 19}},
};
#define TENSOR_COUNT (sizeof tensors / sizeof tensors[0])

struct rank {
    struct pd_param_store store;
    struct pd_roster *roster;
    struct pd_step_machine *step;
};

/* A job in direct aggregation: every rank is a lane. */
struct job {
    struct pd_config *config;
    struct pd_tensor_list model;
    struct pd_shard_plan *plan;
    uint32_t rank_count;
    struct rank ranks[RANK_COUNT_MAX];
    uint32_t gather_count; /* collectives of the last step */
};

/* The same number for the same place, about 0 and of every size from 1e-3 to 1. */
static float noise(uint32_t step, uint32_t worker, uint64_t element)
{
    uint64_t x = (element + 1) * 0x9e3779b97f4a7c15u + step * 0xbf58476d1ce4e5b9u + worker * 77u;
    x ^= x >> 31;
    x *= 0x94d049bb133111ebu;
    x ^= x >> 29;
    float size = (float)(x >> 40) / (float)(1u << 24);
    return (x & 1 ? size : -size) * ((x >> 1) % 7 == 0 ? 1.0f : 1e-2f);
}

static void init_rank(struct job *job, uint32_t index)
{
    struct rank *rank = &job->ranks[index];
    struct pd_error error = {0};

    ck_assert_int_eq(pd_param_store_init(&rank->store, job->plan, index, job->config, &error),
                     PD_OK);
    for (uint64_t i = 0; i < rank->store.lane.element_count; i++) {
        pd_param_store_served(&rank->store)[i] = noise(99, 0, rank->store.lane.element_begin + i);
    }
    pd_param_store_publish_first(&rank->store);
    rank->roster = pd_heap_zalloc(1, sizeof *rank->roster);
    for (uint32_t worker = 0; worker < WORKER_COUNT; worker++) {
        struct pd_order *join = pd_heap_zalloc(1, sizeof *join);
        join->worker_id = worker;
        struct pd_worker *entry = pd_roster_add(rank->roster, join);
        for (int hessian = 0; hessian < 2; hessian++) {
            ck_assert_int_eq(
                pd_roster_equip(entry, hessian, rank->store.lane.element_count, 1, &error), PD_OK);
        }
        pd_heap_free(join);
    }
    ck_assert_msg(pd_step_create(&rank->step, job->config, &job->model, job->plan, &rank->store,
                                 rank->roster, index, &error) == PD_OK,
                  "%s", error.message);
}

static void job_init(struct job *job, const char *text, uint32_t rank_count)
{
    struct pd_error error = {0};

    memset(job, 0, sizeof *job);
    job->rank_count = rank_count;
    ck_assert_msg(pd_config_create(&job->config, "test", text, NULL, 0, &error) == PD_OK, "%s",
                  error.message);
    ck_assert_int_eq(pd_tensor_list_init(&job->model, TENSOR_COUNT, &error), PD_OK);
    for (size_t i = 0; i < TENSOR_COUNT; i++) {
        ck_assert_int_eq(pd_tensor_list_append(&job->model, tensors[i].name,
                                               strlen(tensors[i].name), tensors[i].dimension_count,
                                               tensors[i].shape, &error),
                         PD_OK);
    }
    ck_assert_int_eq(pd_shard_plan_create(&job->plan, &job->model,
                                          (uint32_t)job->config->block_size, rank_count, rank_count,
                                          &error),
                     PD_OK);
    for (uint32_t i = 0; i < rank_count; i++) {
        init_rank(job, i);
    }
}

static void job_finish(struct job *job)
{
    for (uint32_t i = 0; i < job->rank_count; i++) {
        pd_step_destroy(job->ranks[i].step);
        pd_roster_finish(job->ranks[i].roster);
        pd_heap_free(job->ranks[i].roster);
        pd_param_store_finish(&job->ranks[i].store);
    }
    pd_shard_plan_destroy(job->plan);
    pd_tensor_list_finish(&job->model);
    pd_config_destroy(job->config);
}

/* What the workers have pushed to one rank for a step: gradients, or estimates of the Hessian. */
static void push(struct rank *rank, uint32_t step, bool hessian)
{
    for (uint32_t worker = 0; worker < WORKER_COUNT; worker++) {
        struct pd_contribution *contribution =
            pd_roster_contribution(pd_roster_find(rank->roster, worker), hessian);
        struct pd_push *header = pd_heap_zalloc(1, sizeof *header);
        header->step = step;
        header->last = true;
        header->samples = 1;
        pd_contribution_begin(contribution, header);
        for (uint64_t i = 0; i < contribution->element_count; i++) {
            ((float *)contribution->payload)[i] =
                noise(step, worker + 1 + 100 * hessian, rank->store.lane.element_begin + i);
        }
        pd_contribution_finish_payload(contribution);
        pd_heap_free(header);
    }
}

/* Carry out the gather that every rank has come to. */
static void gather(struct job *job)
{
    for (uint32_t to = 0; to < job->rank_count; to++) {
        const struct pd_collective *mine = pd_step_collective(job->ranks[to].step);
        ck_assert_int_eq(mine->kind, PD_COLLECTIVE_GATHER_DOUBLES);
        for (uint32_t from = 0; from < job->rank_count; from++) {
            const struct pd_collective *theirs = pd_step_collective(job->ranks[from].step);
            ck_assert_int_eq(mine->receive_counts[from], theirs->send_counts[to]);
            memcpy((double *)mine->receive + mine->receive_offsets[from], theirs->send,
                   (size_t)theirs->send_counts[to] * sizeof(double));
        }
    }
    job->gather_count++;
}

/* Let every rank work until it wants a collective or nothing; the same on all. */
static enum pd_step_want work(struct job *job)
{
    enum pd_step_want want = PD_STEP_WANTS_NOTHING;

    for (uint32_t i = 0; i < job->rank_count; i++) {
        enum pd_step_want own = PD_STEP_WANTS_WORK;
        while (own == PD_STEP_WANTS_WORK) {
            own = pd_step_advance(job->ranks[i].step);
        }
        ck_assert(i == 0 || own == want);
        want = own;
    }
    return want;
}

/* Have all workers push for the order and carry it out. */
static void carry_out(struct job *job, const struct pd_order *order)
{
    job->gather_count = 0;
    for (uint32_t i = 0; i < job->rank_count; i++) {
        push(&job->ranks[i], (uint32_t)order->step, order->kind == PD_ORDER_HESSIAN);
        pd_step_begin(job->ranks[i].step, order);
    }
    while (work(job) == PD_STEP_WANTS_COLLECTIVE) {
        gather(job);
    }
    for (uint32_t i = 0; i < job->rank_count; i++) {
        ck_assert(!pd_step_nonfinite(job->ranks[i].step));
        ck_assert(!pd_step_finish(job->ranks[i].step).skipped);
    }
}

/* A step; every second one with estimates of the Hessian, where the rule takes them. */
static void job_step(struct job *job, uint32_t step)
{
    struct pd_order *order = pd_heap_zalloc(1, sizeof *order);

    order->index = step;
    order->kind = PD_ORDER_STEP;
    order->step = step;
    order->optimizer_step = step;
    order->contributor_count = WORKER_COUNT;
    for (uint32_t worker = 0; worker < WORKER_COUNT; worker++) {
        order->contributors[worker] = worker;
        order->weights[worker] = 1.0 / WORKER_COUNT;
    }
    order->lr_count = job->config->group_count;
    for (uint32_t group = 0; group < order->lr_count; group++) {
        order->lrs[group] = job->config->groups[group].hyper.lr;
    }
    if (step == ABSENT_STEP) {
        pd_tensor_set_add(&order->absent, 1);
    }
    if (job->config->optimizer->estimate != NULL && step % 2 == 0) {
        order->kind = PD_ORDER_HESSIAN;
        carry_out(job, order);
        order->kind = PD_ORDER_STEP;
    }
    carry_out(job, order);
    pd_heap_free(order);
}

/* The parameters after all steps, of the whole model. */
static float *train(const char *text, uint32_t rank_count, uint64_t *count)
{
    struct job job;

    job_init(&job, text, rank_count);
    for (uint32_t step = 0; step < STEP_COUNT; step++) {
        job_step(&job, step);
    }
    *count = job.model.element_count;
    float *parameters = pd_heap_zalloc(*count, sizeof *parameters);
    for (uint32_t i = 0; i < rank_count; i++) {
        memcpy(parameters + job.ranks[i].store.lane.element_begin,
               pd_param_store_served(&job.ranks[i].store),
               job.ranks[i].store.lane.element_count * sizeof *parameters);
    }
    job_finish(&job);
    return parameters;
}

/* Clips for every group: frozen, alone in another norm, by value, alone without limit. */
#define GROUPS                                                                                     \
    "groups: [{match: fc, frozen: true}, {match: embed, clip: {norm: 0.3, norm_type: 3}}, "        \
    "{match: \"[bs]*\", clip: {value: 0.1}}, {match: wide, clip: {norm: null}}]"

static const char *const rules[] = {
    "{name: sgd, lr: 0.1, momentum: 0.9}",
    "{name: adamw, lr: 0.1, amsgrad: true}",
    "{name: lamb, lr: 0.1}",
    "{name: lars, lr: 0.1, momentum: 0.9}",
    "{name: lion, lr: 0.01, caution: true}",
    "{name: sophia_g, lr: 0.01, bs: 1000}",
    "{name: adamw, lr: 0.1, state_bits: 8}",
    "{name: lion, lr: 0.01, caution: true, state_bits: 8}",
    "{name: adafactor}",
    "{name: adafactor, lr: 0.01, relative_step: false, beta1: 0.9}",
    "{name: adafactor_timm, beta1: 0.9, caution: true}",
    "{name: adafactor_bv, lr: 0.01, min_dim_size_to_factor: 5, clipping_threshold: 1}",
    "{name: adafactor_torch, weight_decay: 0.1}",
};
#define RULE_COUNT ((int)(sizeof rules / sizeof rules[0]))

START_TEST(a_rule_gives_the_same_bits_for_any_number_of_shards)
{
    static const uint32_t block_sizes[] = {10, 64, 256};
    static const uint32_t rank_counts[] = {2, 3, 4, RANK_COUNT_MAX};
    char text[512];

    for (size_t b = 0; b < sizeof block_sizes / sizeof block_sizes[0]; b++) {
        uint64_t count;
        if (strstr(rules[_i / 2], "state_bits") != NULL && block_sizes[b] % 256 != 0) {
            continue;
        }
        snprintf(text, sizeof text,
                 "{aggregation: direct, block_size: %u, clip: {norm: 1.0}, optimizer: %s, %s}",
                 block_sizes[b], rules[_i / 2], _i % 2 == 0 ? "groups: []" : GROUPS);
        float *expected = train(text, 1, &count);
        for (size_t r = 0; r < sizeof rank_counts / sizeof rank_counts[0]; r++) {
            float *actual = train(text, rank_counts[r], &count);
            ck_assert_mem_eq(actual, expected, count * sizeof *actual);
            pd_heap_free(actual);
        }
        pd_heap_free(expected);
    }
}
END_TEST

START_TEST(a_tensor_without_a_gradient_stays_as_it_is)
{
    struct job job;
    char text[512];

    snprintf(text, sizeof text, "{aggregation: direct, block_size: 256, optimizer: %s}", rules[_i]);
    job_init(&job, text, 1);
    const struct pd_tensor *left_out = &job.model.tensors[1];
    float before[35];
    for (uint32_t step = 0; step <= ABSENT_STEP; step++) {
        const float *now = pd_param_store_served(&job.ranks[0].store) + left_out->element_begin;
        memcpy(before, now, sizeof before);
        job_step(&job, step);
        const float *after = pd_param_store_served(&job.ranks[0].store) + left_out->element_begin;
        ck_assert_int_eq(memcmp(after, before, sizeof before) == 0, step == ABSENT_STEP);
    }
    job_finish(&job);
}
END_TEST

START_TEST(a_frozen_tensor_stays_as_it_is)
{
    struct job job;
    char text[512];
    float before[35];

    snprintf(text, sizeof text,
             "{aggregation: direct, block_size: 256, optimizer: %s, "
             "groups: [{match: fc, frozen: true}]}",
             rules[_i]);
    job_init(&job, text, 1);
    const struct pd_tensor *frozen = &job.model.tensors[1];
    memcpy(before, pd_param_store_served(&job.ranks[0].store) + frozen->element_begin,
           sizeof before);
    for (uint32_t step = 0; step < STEP_COUNT; step++) {
        job_step(&job, step);
        const float *now = pd_param_store_served(&job.ranks[0].store) + frozen->element_begin;
        ck_assert_mem_eq(now, before, sizeof before);
    }
    job_finish(&job);
}
END_TEST

/* Bytes that a job allocates. */
static size_t bytes_of(const char *text)
{
    struct job job;

    job_init(&job, text, 1);
    size_t bytes = pd_heap_bytes_live();
    job_finish(&job);
    return bytes;
}

START_TEST(a_frozen_tensor_has_no_state)
{
    size_t with = bytes_of("{optimizer: {name: adamw}, groups: [{match: fc}]}");
    size_t without = bytes_of("{optimizer: {name: adamw}, groups: [{match: fc, frozen: true}]}");

    ck_assert_uint_eq(with - without, 2 * 35 * sizeof(float));
}
END_TEST

START_TEST(ranks_gather_sums_only_for_hyperparameters_that_need_them)
{
    static const struct {
        const char *text;
        uint32_t gather_count;
    } cases[] = {
        {"optimizer: {name: adamw}", 1},
        {"optimizer: {name: lamb}", 2},
        {"optimizer: {name: lion}", 1},
        {"optimizer: {name: lion, caution: true}", 2},
        {"optimizer: {name: lion}, groups: [{match: bias, caution: true}]", 2},
        {"optimizer: {name: adafactor}", 3},
        {"optimizer: {name: adafactor_timm, beta1: 0.9, caution: true}", 4},
        {"optimizer: {name: adafactor_timm, min_dim_size_to_factor: 1000}", 2},
        {"optimizer: {name: lion}, groups: [{match: nothing, caution: true}]", 1},
        {"optimizer: {name: lion}, groups: [{match: bias, caution: true, frozen: true}]", 1},
    };
    char text[512];
    struct job job;

    snprintf(text, sizeof text, "{aggregation: direct, block_size: 64, %s}", cases[_i].text);
    job_init(&job, text, 3);
    job_step(&job, 0);
    ck_assert_uint_eq(job.gather_count, cases[_i].gather_count);
    job_finish(&job);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("step");
    TCase *tests = tcase_create("step");

    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, a_rule_gives_the_same_bits_for_any_number_of_shards, 0,
                        2 * RULE_COUNT);
    tcase_add_loop_test(tests, a_tensor_without_a_gradient_stays_as_it_is, 0, RULE_COUNT);
    tcase_add_loop_test(tests, a_frozen_tensor_stays_as_it_is, 0, RULE_COUNT);
    tcase_add_test(tests, a_frozen_tensor_has_no_state);
    tcase_add_loop_test(tests, ranks_gather_sums_only_for_hyperparameters_that_need_them, 0, 10);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
