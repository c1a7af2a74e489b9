/* Steps of all ranks of a job in one process: the same bits for any number of shards, whatever the
 * rule needs to know of whole tensors, and no more collectives than it needs. */
#include "common/heap.h"
#include "server/core/step.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RANK_COUNT_MAX 7u
#define WORKER_COUNT 2u
#define STEP_COUNT 6u
#define UNDER_WAY_MAX 16u
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
    uint32_t lane;
    uint32_t replica;
    /* Collectives asked for and not done, first to last. */
    const struct pd_collective *under_way[UNDER_WAY_MAX];
    uint32_t under_way_count;
};

struct job {
    struct pd_config *config;
    struct pd_tensor_list model;
    struct pd_shard_plan *plan;
    uint32_t rank_count;
    struct rank ranks[RANK_COUNT_MAX];
    uint32_t gather_count;     /* of numbers, in the last step */
    uint32_t exchange_count;   /* of gradients */
    uint32_t at_once;          /* the most collectives under way */
    bool ahead;                /* steps are begun before their order */
    bool forgets;              /* every second of them for nothing */
    uint32_t nan_step;         /* in which the last element is no number */
    uint64_t ahead_count;      /* elements brought on while gradients were coming in */
    struct pd_order *foreseen; /* lent to the ranks until they have the step's order */
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

/* Workers are spread over the replicas. */
static bool is_home(const struct job *job, const struct rank *rank, uint32_t worker)
{
    return worker % job->plan->replica_count == rank->replica;
}

static void init_rank(struct job *job, uint32_t index)
{
    struct rank *rank = &job->ranks[index];
    struct pd_error error = {0};

    rank->lane = index % job->plan->lane_count;
    rank->replica = index / job->plan->lane_count;
    ck_assert_int_eq(pd_param_store_init(&rank->store, job->plan, index, job->config, &error),
                     PD_OK);
    for (uint64_t i = 0; i < rank->store.lane.element_count; i++) {
        pd_param_store_served(&rank->store)[i] = noise(99, 0, rank->store.lane.element_begin + i);
    }
    pd_param_store_publish_first(&rank->store);
    rank->roster = pd_heap_zalloc(1, sizeof *rank->roster);
    ck_assert_int_eq(pd_staging_init(&rank->roster->staging, job->config, job->plan,
                                     rank->store.lane.element_count, &error),
                     PD_OK);
    for (uint32_t worker = 0; worker < WORKER_COUNT; worker++) {
        struct pd_order *join = pd_heap_zalloc(1, sizeof *join);
        join->worker_id = worker;
        (void)pd_roster_add(rank->roster, join);
        pd_heap_free(join);
    }
    ck_assert_msg(pd_step_create(&rank->step, job->config, &job->model, job->plan, &rank->store,
                                 rank->roster, index, &error) == PD_OK,
                  "%s", error.message);
}

/* Ranks in so many lanes; in direct aggregation every rank is one. */
static void job_init_lanes(struct job *job, const char *text, uint32_t rank_count,
                           uint32_t lane_count)
{
    struct pd_error error = {0};

    memset(job, 0, sizeof *job);
    job->rank_count = rank_count;
    job->nan_step = UINT32_MAX;
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
                                          (uint32_t)job->config->block_size, rank_count, lane_count,
                                          &error),
                     PD_OK);
    for (uint32_t i = 0; i < rank_count; i++) {
        init_rank(job, i);
    }
}

static void job_init(struct job *job, const char *text, uint32_t rank_count)
{
    job_init_lanes(job, text, rank_count, rank_count);
}

static void job_finish(struct job *job)
{
    for (uint32_t i = 0; i < job->rank_count; i++) {
        pd_step_destroy(job->ranks[i].step);
        pd_roster_finish(job->ranks[i].roster);
        pd_heap_free(job->ranks[i].roster);
        pd_param_store_finish(&job->ranks[i].store);
    }
    pd_heap_free(job->foreseen);
    pd_shard_plan_destroy(job->plan);
    pd_tensor_list_finish(&job->model);
    pd_config_destroy(job->config);
}

static struct pd_contribution *contribution_of(struct rank *rank, uint32_t worker, bool hessian)
{
    return pd_roster_contribution(pd_roster_find(rank->roster, worker), hessian);
}

/* The workers begin to push to one rank: what is not in yet may be anything. */
static void announce(const struct job *job, struct rank *rank, uint32_t step, bool hessian)
{
    for (uint32_t worker = 0; worker < WORKER_COUNT; worker++) {
        if (!is_home(job, rank, worker)) {
            continue;
        }
        struct pd_contribution *contribution = contribution_of(rank, worker, hessian);
        struct pd_error error = {0};
        ck_assert_int_eq(
            pd_roster_equip(rank->roster, pd_roster_find(rank->roster, worker), hessian, &error),
            PD_OK);
        struct pd_push *header = pd_heap_zalloc(1, sizeof *header);
        header->step = step;
        header->last = true;
        header->samples = 1;
        pd_contribution_begin(contribution, header);
        memset(contribution->payload, 0xff, contribution->element_count * sizeof(float));
        pd_heap_free(header);
    }
}

/* The elements before `end` of one worker's push are in. */
static void receive(const struct job *job, struct rank *rank, uint32_t step, uint32_t worker,
                    bool hessian, uint64_t end)
{
    struct pd_contribution *contribution = contribution_of(rank, worker, hessian);
    float *elements = contribution->payload;

    for (uint64_t i = contribution->received / sizeof(float); i < end; i++) {
        uint64_t element = rank->store.lane.element_begin + i;
        elements[i] = noise(step, worker + 1 + 100 * hessian, element);
        if (!hessian && step == job->nan_step && element + 1 == job->model.element_count) {
            elements[i] = NAN;
        }
    }
    pd_contribution_receive(contribution, end * sizeof(float));
}

/* All of the pushes is in: gradients, or estimates of the Hessian. */
static void end_pushes(const struct job *job, struct rank *rank, uint32_t step, bool hessian)
{
    for (uint32_t worker = 0; worker < WORKER_COUNT; worker++) {
        if (is_home(job, rank, worker)) {
            receive(job, rank, step, worker, hessian, rank->store.lane.element_count);
            pd_contribution_finish_payload(contribution_of(rank, worker, hessian));
        }
    }
}

/* Bytes come in, from the second worker later than from the first: a rank takes what is in from
 * both, and nothing that is not. The last quarter is still to come. */
static void work_ahead(struct job *job, struct rank *rank, uint32_t step)
{
    uint64_t count = rank->store.lane.element_count;

    for (uint64_t quarter = 1; quarter <= 3; quarter++) {
        receive(job, rank, step, 0, false, count * quarter / 4);
        ck_assert(!pd_step_work_ahead(rank->step));
        receive(job, rank, step, 1, false, count * (2 * quarter - 1) / 8);
        while (pd_step_work_ahead(rank->step)) {
        }
        ck_assert_uint_le(pd_step_next_elements(rank->step), count * (2 * quarter - 1) / 8);
    }
    job->ahead_count += pd_step_next_elements(rank->step);
}

static bool is_forgotten(const struct job *job, uint64_t step)
{
    return job->forgets && step % 2 == 0;
}

/* Push, and have each rank do what it can before the order is there; `step` is foreseen, but for
 * the rate where it is to be forgotten. */
static void begin_ahead(struct job *job, const struct pd_order *step)
{
    struct pd_order *ahead = pd_heap_zalloc(1, sizeof *ahead);
    bool forgets = is_forgotten(job, step->step);

    *ahead = *step;
    ahead->kind = PD_ORDER_AHEAD;
    ahead->lrs[0] *= forgets ? 3.0 : 1.0;
    for (uint32_t i = 0; i < job->rank_count; i++) {
        struct rank *rank = &job->ranks[i];
        announce(job, rank, (uint32_t)step->step, false);
        if (!pd_step_may_go_ahead(job->config, job->plan, rank->store.lane.element_count)) {
            continue;
        }
        ck_assert(pd_step_foresee(rank->step, ahead));
        work_ahead(job, rank, (uint32_t)step->step);
        if (forgets) {
            pd_step_forget(rank->step);
            ck_assert_int_eq(pd_step_state(rank->step), PD_STEP_IDLE);
        }
    }
    for (uint32_t i = 0; i < job->rank_count; i++) {
        struct rank *rank = &job->ranks[i];
        end_pushes(job, rank, (uint32_t)step->step, false);
        if (pd_step_state(rank->step) == PD_STEP_IDLE) {
            continue;
        }
        while (pd_step_work_ahead(rank->step)) {
        }
    }
    pd_heap_free(job->foreseen);
    job->foreseen = ahead;
}

/* Give `to` what it gets of `from` in the collective that is first for both. */
static void move(const struct job *job, const struct rank *to, const struct rank *from)
{
    const struct pd_collective *mine = to->under_way[0];
    const struct pd_collective *theirs = from->under_way[0];
    const float *floats =
        theirs->kind == PD_COLLECTIVE_EXCHANGE_FLOATS
            ? (const float *)theirs->send + theirs->send_offsets[to->replica]
            : (const float *)theirs->receive + mine->receive_offsets[from->replica];
    ptrdiff_t giver = from - job->ranks;

    ck_assert_int_eq(mine->kind, theirs->kind);
    if (mine->kind == PD_COLLECTIVE_GATHER_DOUBLES) {
        ck_assert_int_eq(mine->receive_counts[giver], theirs->send_counts[to - job->ranks]);
        memcpy((double *)mine->receive + mine->receive_offsets[giver], theirs->send,
               (size_t)mine->receive_counts[giver] * sizeof(double));
    } else if (to != from && to->lane == from->lane) {
        ck_assert(mine->kind != PD_COLLECTIVE_EXCHANGE_FLOATS ||
                  mine->receive_counts[from->replica] == theirs->send_counts[to->replica]);
        memcpy((float *)mine->receive + mine->receive_offsets[from->replica], floats,
               (size_t)mine->receive_counts[from->replica] * sizeof(float));
    }
}

/* Carry out the collective that is first for every rank. */
static void carry_out_first(struct job *job)
{
    enum pd_collective_kind kind = job->ranks[0].under_way[0]->kind;

    for (uint32_t to = 0; to < job->rank_count; to++) {
        for (uint32_t from = 0; from < job->rank_count; from++) {
            move(job, &job->ranks[to], &job->ranks[from]);
        }
    }
    for (uint32_t i = 0; i < job->rank_count; i++) {
        struct rank *rank = &job->ranks[i];
        rank->under_way_count--;
        memmove(rank->under_way, rank->under_way + 1,
                rank->under_way_count * sizeof rank->under_way[0]);
        pd_step_collective_done(rank->step);
    }
    job->gather_count += kind == PD_COLLECTIVE_GATHER_DOUBLES;
    job->exchange_count += kind == PD_COLLECTIVE_EXCHANGE_FLOATS;
}

/* What others give is not there before the collective is done: who reads it before gets no number.
 */
static void spoil(const struct rank *rank, const struct pd_collective *collective,
                  uint32_t replica_count)
{
    for (uint32_t i = 0; collective->kind != PD_COLLECTIVE_GATHER_DOUBLES && i < replica_count;
         i++) {
        if (i != rank->replica) {
            memset((float *)collective->receive + collective->receive_offsets[i], 0xff,
                   (size_t)collective->receive_counts[i] * sizeof(float));
        }
    }
}

/* Let every rank work until it wants a collective or nothing; the same on all. */
static enum pd_step_want work(struct job *job)
{
    enum pd_step_want want = PD_STEP_WANTS_NOTHING;

    for (uint32_t i = 0; i < job->rank_count; i++) {
        struct rank *rank = &job->ranks[i];
        const struct pd_collective *collective;
        enum pd_step_want own = PD_STEP_WANTS_WORK;
        while (own == PD_STEP_WANTS_WORK) {
            own = pd_step_advance(rank->step);
        }
        while ((collective = pd_step_take_collective(rank->step)) != NULL) {
            ck_assert_uint_lt(rank->under_way_count, UNDER_WAY_MAX);
            rank->under_way[rank->under_way_count++] = collective;
            spoil(rank, collective, job->plan->replica_count);
        }
        ck_assert(i == 0 || own == want);
        ck_assert_uint_eq(rank->under_way_count, job->ranks[0].under_way_count);
        want = own;
    }
    if (job->ranks[0].under_way_count > job->at_once) {
        job->at_once = job->ranks[0].under_way_count;
    }
    return want;
}

/* Have all workers push for the order and carry it out. */
static void carry_out(struct job *job, const struct pd_order *order)
{
    bool hessian = order->kind == PD_ORDER_HESSIAN;
    bool nan = !hessian && order->step == job->nan_step;

    job->gather_count = 0;
    job->exchange_count = 0;
    if (job->ahead && !hessian) {
        begin_ahead(job, order);
    }
    for (uint32_t i = 0; i < job->rank_count; i++) {
        if (!job->ahead || hessian) {
            announce(job, &job->ranks[i], (uint32_t)order->step, hessian);
            end_pushes(job, &job->ranks[i], (uint32_t)order->step, hessian);
        }
        pd_step_begin(job->ranks[i].step, order);
    }
    while (work(job) == PD_STEP_WANTS_COLLECTIVE) {
        carry_out_first(job);
    }
    for (uint32_t i = 0; i < job->rank_count; i++) {
        ck_assert_int_eq(pd_step_nonfinite(job->ranks[i].step), nan);
        ck_assert_int_eq(pd_step_finish(job->ranks[i].step).skipped, nan);
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
        order->weights[worker] = 1.0;
    }
    order->samples = WORKER_COUNT;
    order->lr_count = job->config->group_count;
    for (uint32_t group = 0; group < order->lr_count; group++) {
        order->lrs[group] = job->config->groups[group].hyper.lr;
    }
    order->foreseen = job->ahead && !is_forgotten(job, step);
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

/* The parameters after all steps, of the whole model; then the job is over. */
static float *run_job(struct job *job, uint64_t *count)
{
    for (uint32_t step = 0; step < STEP_COUNT; step++) {
        job_step(job, step);
    }
    *count = job->model.element_count;
    float *parameters = pd_heap_zalloc(*count, sizeof *parameters);
    for (uint32_t i = 0; i < job->rank_count; i++) {
        struct rank *rank = &job->ranks[i];
        float *lane = parameters + rank->store.lane.element_begin;
        size_t bytes = rank->store.lane.element_count * sizeof *parameters;
        if (rank->replica == 0) {
            memcpy(lane, pd_param_store_served(&rank->store), bytes);
        }
        ck_assert_mem_eq(lane, pd_param_store_served(&rank->store), bytes);
    }
    job_finish(job);
    return parameters;
}

static float *train(const char *text, uint32_t rank_count, uint64_t *count)
{
    struct job job;

    job_init(&job, text, rank_count);
    return run_job(&job, count);
}

/* Clips for every group: frozen, alone in another norm, by value, alone without limit. */
#define GROUPS                                                                                     \
    "groups: [{match: fc, frozen: true}, {match: embed, clip: {norm: 0.3, norm_type: 3}}, "        \
    "{match: \"[bs]*\", clip: {value: 0.1}}, {match: wide, clip: {norm: null}}]"

static const char *const rules[] = {
    "{name: sgd, lr: 0.1, momentum: 0.9}",
    "{name: adamw, lr: 0.1, amsgrad: true}",
    "{name: lamb, lr: 0.1}",
    "{name: lamb, lr: 0.1, caution: true}",
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

/* A replica has the gradient of one worker at most, so the order of summation is theirs. */
START_TEST(a_rule_gives_the_same_bits_for_any_number_of_replicas)
{
    static const uint32_t block_sizes[] = {10, 256};
    static const uint32_t grids[][2] = {{2, 1}, {3, 1}, {6, 2}};
    char text[512];

    for (size_t b = 0; b < sizeof block_sizes / sizeof block_sizes[0]; b++) {
        uint64_t count;
        if (strstr(rules[_i / 2], "state_bits") != NULL && block_sizes[b] % 256 != 0) {
            continue;
        }
        snprintf(text, sizeof text,
                 "{block_size: %u, compute_ahead: 1, clip: {norm: 1.0}, optimizer: %s, %s}",
                 block_sizes[b], rules[_i / 2],
                 _i % 2 == 0 ? "groups: [], ema: {decay: 0.9}, lookahead: {k: 2}" : GROUPS);
        float *expected = train(text, 1, &count);
        for (size_t g = 0; g < sizeof grids / sizeof grids[0]; g++) {
            struct job job;
            job_init_lanes(&job, text, grids[g][0], grids[g][1]);
            float *actual = run_job(&job, &count);
            ck_assert_mem_eq(actual, expected, count * sizeof *actual);
            pd_heap_free(actual);
        }
        pd_heap_free(expected);
    }
}
END_TEST

/* 3146 elements: a bucket has 8 blocks of 10 of each of two replicas, the last may reach beyond. */
START_TEST(a_bucket_is_summed_while_the_one_before_is_exchanged)
{
    struct job job;

    job_init_lanes(&job, "{block_size: 10, optimizer: {name: adamw}}", 2, 1);
    job_step(&job, 0);
    ck_assert_uint_eq(job.exchange_count, 20);
    ck_assert_uint_eq(job.gather_count, 1);
    ck_assert_uint_ge(job.at_once, 2);
    job_finish(&job);
}
END_TEST

START_TEST(replicas_leave_out_a_step_that_is_not_finite)
{
    struct job job;
    uint64_t count;
    float *expected;

    job_init(&job, "{block_size: 10, optimizer: {name: adamw}}", 1);
    job.nan_step = 2;
    expected = run_job(&job, &count);
    job_init_lanes(&job, "{block_size: 10, optimizer: {name: adamw}}", 4, 2);
    job.nan_step = 2;
    float *actual = run_job(&job, &count);
    ck_assert_mem_eq(actual, expected, count * sizeof *actual);
    pd_heap_free(actual);
    pd_heap_free(expected);
}
END_TEST

/* No sum of the whole lane, nor what the other replicas have of the shard: buckets alone. */
START_TEST(replicas_hold_the_gradient_of_their_shard_and_two_buckets)
{
    const char *text = "{block_size: 10, optimizer: {name: sgd}}";
    struct job job;
    size_t bytes[2];

    for (uint32_t lanes = 1; lanes <= 2; lanes++) {
        job_init_lanes(&job, text, 2, lanes);
        bytes[lanes - 1] = pd_heap_bytes_live();
        job_finish(&job);
    }
    /* Each of two ranks: the other half of the parameters, twice, and for two buckets two pieces of
     * 80 to 89 elements that are given, and two that are taken. It has as much of one worker as it
     * had of two. */
    size_t half = 3146 / 2 * sizeof(float);
    size_t buckets = (2 * 2 * 2 * 89 + 10) * sizeof(float);
    ck_assert_uint_ge(bytes[0] - bytes[1], 2 * 2 * half);
    ck_assert_uint_le(bytes[0] - bytes[1], 2 * (2 * half + buckets));
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

/* ---- Ahead of the order ---- */

/* Some rest, some are cut by value: none of that keeps a step from going all the way. */
#define AHEAD_GROUPS                                                                               \
    "groups: [{match: fc, frozen: true}, {match: \"[bs]*\", clip: {value: 0.1}}], "                \
    "ema: {decay: 0.9}"

/* Whether parameters are brought on while gradients come in. */
static bool goes_all_the_way(const struct pd_config *config)
{
    for (uint32_t group = 0; group < config->group_count; group++) {
        if (pd_optimizer_pass_count(config->optimizer, &config->groups[group].hyper) > 1) {
            return false;
        }
    }
    return config->optimizer->vector_count == NULL && config->optimizer->estimate == NULL;
}

/* Every rule, with a step that is absent for a tensor and one that is not finite: on all ranks, and
 * where some ranks hold too little to go ahead. */
START_TEST(a_step_begun_ahead_or_forgotten_makes_the_same_bits)
{
    static const struct {
        uint32_t rank_count;
        uint32_t compute_ahead;
        bool forgets;
    } cases[] = {{1, 1, false}, {3, 1, false}, {3, 1, true}, {7, 1, true}, {7, 450, false}};
    const char *name = pd_optimizer_at((size_t)_i)->name;
    struct job job;
    uint64_t count;
    char text[512];

    snprintf(text, sizeof text,
             "{aggregation: direct, block_size: 64, compute_ahead: 0, optimizer: {name: %s}, %s}",
             name, AHEAD_GROUPS);
    job_init(&job, text, 1);
    job.nan_step = 2;
    float *expected = run_job(&job, &count);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        snprintf(text, sizeof text,
                 "{aggregation: direct, block_size: 64, compute_ahead: %u, "
                 "optimizer: {name: %s}, %s}",
                 cases[i].compute_ahead, name, AHEAD_GROUPS);
        job_init(&job, text, cases[i].rank_count);
        bool all_the_way = goes_all_the_way(job.config);
        job.nan_step = 2;
        job.ahead = true;
        job.forgets = cases[i].forgets;
        float *actual = run_job(&job, &count);
        ck_assert_int_eq(job.ahead_count > 0, all_the_way);
        ck_assert_mem_eq(actual, expected, count * sizeof *actual);
        pd_heap_free(actual);
    }
    pd_heap_free(expected);
}
END_TEST

/* Sums go ahead with any clip and rule; with a norm, Lookahead or more than a pass, parameters do
 * not. */
START_TEST(what_needs_more_than_a_block_only_sums_ahead)
{
    static const char *const parts[] = {
        "clip: {norm: 0.5}, optimizer: {name: adamw}",
        "optimizer: {name: adamw}, groups: [{match: bias, clip: {norm: 0.1}}]",
        "optimizer: {name: adamw}, lookahead: {k: 2}",
        "optimizer: {name: adamw, state_bits: 8}",
        "optimizer: {name: lion}, groups: [{match: bias, caution: true}]",
    };
    struct job job;
    uint64_t count;
    char text[512];

    snprintf(text, sizeof text, "{aggregation: direct, block_size: 256, compute_ahead: 0, %s}",
             parts[_i]);
    float *expected = train(text, 1, &count);
    snprintf(text, sizeof text, "{aggregation: direct, block_size: 256, compute_ahead: 1, %s}",
             parts[_i]);
    job_init(&job, text, 2);
    job.ahead = true;
    float *actual = run_job(&job, &count);
    ck_assert_uint_eq(job.ahead_count, 0);
    ck_assert_mem_eq(actual, expected, count * sizeof *actual);
    pd_heap_free(actual);
    pd_heap_free(expected);
}
END_TEST

/* All that a step changes of one rank. */
static void keep_everything(struct rank *rank, struct pd_snapshot *snapshot)
{
    struct pd_error error = {0};

    memset(snapshot, 0, sizeof *snapshot);
    pd_param_store_list(&rank->store, rank->store.served, snapshot);
    pd_step_list_state(rank->step, snapshot);
    ck_assert_int_eq(pd_snapshot_keep(snapshot, &error), PD_OK);
    ck_assert(pd_snapshot_copy(snapshot, UINT64_MAX));
}

START_TEST(a_forgotten_step_leaves_parameters_and_state_untouched)
{
    struct pd_order *ahead = pd_heap_zalloc(1, sizeof *ahead);
    struct pd_snapshot before;
    struct pd_snapshot after;
    struct job job;

    job_init(&job,
             "{aggregation: direct, block_size: 64, compute_ahead: 1, ema: {decay: 0.9}, "
             "optimizer: {name: adamw, amsgrad: true}}",
             1);
    job.ahead = true;
    job_step(&job, 0);
    struct rank *rank = &job.ranks[0];
    *ahead = *job.foreseen;
    ahead->step = 1;
    ahead->optimizer_step = 1;
    keep_everything(rank, &before);
    announce(&job, rank, 1, false);
    ck_assert(pd_step_foresee(rank->step, ahead));
    end_pushes(&job, rank, 1, false);
    while (pd_step_work_ahead(rank->step)) {
    }
    ck_assert_uint_eq(pd_step_next_elements(rank->step), job.model.element_count);
    pd_step_forget(rank->step);
    ck_assert_uint_eq(pd_step_next_elements(rank->step), 0);
    keep_everything(rank, &after);
    ck_assert_uint_eq(after.copy_bytes, before.copy_bytes);
    ck_assert_mem_eq(after.copy, before.copy, before.copy_bytes);
    pd_snapshot_finish(&after);
    pd_snapshot_finish(&before);
    pd_heap_free(ahead);
    job_finish(&job);
}
END_TEST

START_TEST(a_step_is_not_begun_ahead_where_the_version_before_is_still_read)
{
    struct pd_order *ahead = pd_heap_zalloc(1, sizeof *ahead);
    struct job job;

    job_init(&job, "{aggregation: direct, compute_ahead: 1}", 1);
    ahead->kind = PD_ORDER_AHEAD;
    job.ranks[0].store.buffers[1].users = 1;
    ck_assert(!pd_step_foresee(job.ranks[0].step, ahead));
    ck_assert_int_eq(pd_step_state(job.ranks[0].step), PD_STEP_IDLE);
    job.ranks[0].store.buffers[1].users = 0;
    ck_assert(pd_step_foresee(job.ranks[0].step, ahead));
    pd_step_forget(job.ranks[0].step);
    pd_heap_free(ahead);
    job_finish(&job);
}
END_TEST

START_TEST(state_is_kept_twice_only_where_steps_go_all_the_way)
{
    const size_t state_bytes = 2 * 3146 * sizeof(float);
    const size_t block_bytes = 64 * sizeof(float);
    const size_t gradient_bytes = 3146 * sizeof(float);
    size_t once = bytes_of("{block_size: 64, compute_ahead: 0, optimizer: {name: adamw}}");

    ck_assert_uint_eq(bytes_of("{block_size: 64, compute_ahead: 3146, optimizer: {name: adamw}}"),
                      once + state_bytes + block_bytes - gradient_bytes);
    ck_assert_uint_eq(bytes_of("{block_size: 64, compute_ahead: 3147, optimizer: {name: adamw}}"),
                      once);
    ck_assert_uint_eq(bytes_of("{block_size: 64, compute_ahead: 1, clip: {norm: 1}, "
                               "optimizer: {name: adamw}}"),
                      once);
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

static int optimizer_count(void)
{
    int count = 0;
    while (pd_optimizer_at((size_t)count) != NULL) {
        count++;
    }
    return count;
}

int main(void)
{
    Suite *suite = suite_create("step");
    TCase *tests = tcase_create("step");

    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, a_rule_gives_the_same_bits_for_any_number_of_shards, 0,
                        2 * RULE_COUNT);
    tcase_add_loop_test(tests, a_rule_gives_the_same_bits_for_any_number_of_replicas, 0,
                        2 * RULE_COUNT);
    tcase_add_test(tests, a_bucket_is_summed_while_the_one_before_is_exchanged);
    tcase_add_test(tests, replicas_leave_out_a_step_that_is_not_finite);
    tcase_add_test(tests, replicas_hold_the_gradient_of_their_shard_and_two_buckets);
    tcase_add_loop_test(tests, a_tensor_without_a_gradient_stays_as_it_is, 0, RULE_COUNT);
    tcase_add_loop_test(tests, a_frozen_tensor_stays_as_it_is, 0, RULE_COUNT);
    tcase_add_test(tests, a_frozen_tensor_has_no_state);
    tcase_add_loop_test(tests, a_step_begun_ahead_or_forgotten_makes_the_same_bits, 0,
                        optimizer_count());
    tcase_add_loop_test(tests, what_needs_more_than_a_block_only_sums_ahead, 0, 5);
    tcase_add_test(tests, a_forgotten_step_leaves_parameters_and_state_untouched);
    tcase_add_test(tests, a_step_is_not_begun_ahead_where_the_version_before_is_still_read);
    tcase_add_test(tests, state_is_kept_twice_only_where_steps_go_all_the_way);
    tcase_add_loop_test(tests, ranks_gather_sums_only_for_hyperparameters_that_need_them, 0, 10);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
