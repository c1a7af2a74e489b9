#include "step_job.h"

#include "common/heap.h"
#include "server/core/step_state.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

const char *const step_job_rules[STEP_JOB_RULE_COUNT] = {
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
    "{name: adafactor_timm, lr: 0.01, beta1: 0.9, caution: true}",
    "{name: adafactor_bv, lr: 0.01, min_dim_size_to_factor: 5, clipping_threshold: 1}",
    "{name: adafactor_torch, weight_decay: 0.1}",
};
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
static bool is_home(const struct step_job *job, const struct step_rank *rank, uint32_t worker)
{
    return worker % job->plan->replica_count == rank->replica;
}

static void init_rank(struct step_job *job, uint32_t index)
{
    struct step_rank *rank = &job->ranks[index];
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
    ck_assert_msg(pd_step_create(&rank->step, job->config, &job->model, job->plan, &rank->store,
                                 rank->roster, index, &error) == PD_OK,
                  "%s", error.message);
}

static void init_model(struct step_job *job, uint64_t large)
{
    struct pd_error error = {0};

    ck_assert_int_eq(pd_tensor_list_init(&job->model, TENSOR_COUNT, &error), PD_OK);
    if (large > 0) {
        ck_assert_int_eq(pd_tensor_list_append(&job->model, "large", 5, 1, &large, &error), PD_OK);
        return;
    }
    for (size_t i = 0; i < TENSOR_COUNT; i++) {
        ck_assert_int_eq(pd_tensor_list_append(&job->model, tensors[i].name,
                                               strlen(tensors[i].name), tensors[i].dimension_count,
                                               tensors[i].shape, &error),
                         PD_OK);
    }
}

void step_job_init_grid(struct step_job *job, const char *text, uint32_t rank_count,
                        uint32_t lane_count, uint64_t large)
{
    struct pd_error error = {0};

    memset(job, 0, sizeof *job);
    job->rank_count = rank_count;
    job->nan_step = UINT32_MAX;
    ck_assert_msg(pd_config_create(&job->config, "test", text, NULL, 0, &error) == PD_OK, "%s",
                  error.message);
    init_model(job, large);
    ck_assert_int_eq(pd_shard_plan_create(&job->plan, &job->model,
                                          (uint32_t)job->config->block_size, rank_count, lane_count,
                                          &error),
                     PD_OK);
    for (uint32_t i = 0; i < rank_count; i++) {
        init_rank(job, i);
    }
    step_job_enlist(job, WORKER_COUNT);
}

void step_job_enlist(struct step_job *job, uint32_t worker_count)
{
    struct pd_order *join = pd_heap_zalloc(1, sizeof *join);

    for (; job->worker_count < worker_count; job->worker_count++) {
        join->worker_id = job->worker_count;
        (void)snprintf(join->name, sizeof join->name, "worker%u", job->worker_count);
        for (uint32_t i = 0; i < job->rank_count; i++) {
            (void)pd_roster_add(job->ranks[i].roster, join);
        }
    }
    pd_heap_free(join);
}

void step_job_init_lanes(struct step_job *job, const char *text, uint32_t rank_count,
                         uint32_t lane_count)
{
    step_job_init_grid(job, text, rank_count, lane_count, 0);
}

void step_job_init(struct step_job *job, const char *text, uint32_t rank_count)
{
    step_job_init_lanes(job, text, rank_count, rank_count);
}

void step_job_finish(struct step_job *job)
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

static struct pd_contribution *contribution_of(struct step_rank *rank, uint32_t worker,
                                               bool hessian)
{
    return pd_roster_contribution(pd_roster_find(rank->roster, worker), hessian);
}

static void announce(const struct step_job *job, struct step_rank *rank, uint32_t step,
                     uint32_t worker, bool hessian)
{
    struct pd_worker *entry = pd_roster_find(rank->roster, worker);
    struct pd_contribution *contribution = pd_roster_contribution(entry, hessian);
    struct pd_push *header = pd_heap_zalloc(1, sizeof *header);
    struct pd_error error = {0};

    ck_assert_int_eq(pd_roster_equip(rank->roster, entry, hessian, &error), PD_OK);
    header->step = step;
    header->last = true;
    header->samples = 1;
    header->hessian = hessian;
    pd_roster_begin(entry, header, job->worker_count > WORKER_COUNT);
    memset(pd_contribution_place(contribution, contribution->element_count), 0xff,
           contribution->element_count * sizeof(float));
    pd_heap_free(header);
}

/* The workers begin to push to one rank: what is not in yet may be anything. */
void step_job_announce(const struct step_job *job, struct step_rank *rank, uint32_t step,
                       bool hessian)
{
    for (uint32_t worker = 0; worker < job->worker_count; worker++) {
        if (is_home(job, rank, worker)) {
            announce(job, rank, step, worker, hessian);
        }
    }
}

/* The elements before `end` of one worker's push are in. */
static void receive(const struct step_job *job, struct step_rank *rank, uint32_t step,
                    uint32_t worker, bool hessian, uint64_t end)
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

static void end_push(const struct step_job *job, struct step_rank *rank, uint32_t step,
                     uint32_t worker, bool hessian)
{
    receive(job, rank, step, worker, hessian, rank->store.lane.element_count);
    pd_contribution_finish_payload(contribution_of(rank, worker, hessian));
}

/* All of the pushes that is not in yet: gradients, or estimates of the Hessian. */
void step_job_end_pushes(const struct step_job *job, struct step_rank *rank, uint32_t step,
                         bool hessian)
{
    for (uint32_t worker = 0; worker < job->worker_count; worker++) {
        if (is_home(job, rank, worker) &&
            contribution_of(rank, worker, hessian)->state == PD_CONTRIBUTION_RECEIVING) {
            end_push(job, rank, step, worker, hessian);
        }
    }
}

/* Bytes come in, from the second worker later than from the first: a rank takes what is in from
 * both, and nothing that is not. The last quarter is still to come. */
static void work_ahead(struct step_job *job, struct step_rank *rank, uint32_t step)
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

/* Gradients become whole, the second before the first, but for the last: those are added that
 * nothing is missing before. Their memory is free then. */
static void work_by_gradient(struct step_job *job, struct step_rank *rank, uint32_t step)
{
    end_push(job, rank, step, 1, false);
    ck_assert(!pd_step_work_ahead(rank->step));
    ck_assert_uint_eq(rank->step->added, 0);
    end_push(job, rank, step, 0, false);
    for (uint32_t worker = 2; worker + 1 < job->worker_count; worker++) {
        end_push(job, rank, step, worker, false);
        while (pd_step_work_ahead(rank->step)) {
        }
        ck_assert_uint_eq(rank->step->added,
                          (worker + 1) / PD_REDUCE_TERM_COUNT * PD_REDUCE_TERM_COUNT);
    }
    ck_assert_uint_eq(rank->roster->staging.spare_count, rank->step->added);
    ck_assert_uint_eq(pd_step_next_elements(rank->step), 0);
    job->added_count += rank->step->added;
}

/* What was used up has to be pushed again. */
static void push_again(const struct step_job *job, struct step_rank *rank, uint32_t step)
{
    for (uint32_t worker = 0; worker < job->worker_count; worker++) {
        struct pd_contribution *contribution = contribution_of(rank, worker, false);
        if (pd_contribution_is_spent(contribution)) {
            pd_contribution_take_back(contribution);
            announce(job, rank, step, worker, false);
        }
    }
}

static bool is_forgotten(const struct step_job *job, uint64_t step)
{
    return job->forgets && step % 2 == 0;
}

/* Push, and have each rank do what it can before the order is there; `step` is foreseen, but for
 * the rate where it is to be forgotten. */
static void begin_ahead(struct step_job *job, const struct pd_order *step)
{
    struct pd_order *ahead = pd_heap_zalloc(1, sizeof *ahead);
    bool forgets = is_forgotten(job, step->step);

    *ahead = *step;
    ahead->kind = PD_ORDER_AHEAD;
    ahead->lrs[0] *= forgets ? 3.0 : 1.0;
    for (uint32_t i = 0; i < job->rank_count; i++) {
        struct step_rank *rank = &job->ranks[i];
        step_job_announce(job, rank, (uint32_t)step->step, false);
        enum pd_step_ahead kind = pd_step_ahead_kind(
            job->config, job->plan, rank->store.lane.element_count, job->worker_count);
        if (kind == PD_STEP_AHEAD_NONE) {
            continue;
        }
        ck_assert(pd_step_foresee(rank->step, ahead));
        if (kind == PD_STEP_AHEAD_BLOCKS) {
            work_ahead(job, rank, (uint32_t)step->step);
        } else {
            work_by_gradient(job, rank, (uint32_t)step->step);
        }
        if (forgets) {
            pd_step_forget(rank->step);
            push_again(job, rank, (uint32_t)step->step);
            ck_assert_int_eq(pd_step_state(rank->step), PD_STEP_IDLE);
        }
    }
    for (uint32_t i = 0; i < job->rank_count; i++) {
        struct step_rank *rank = &job->ranks[i];
        step_job_end_pushes(job, rank, (uint32_t)step->step, false);
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
static void move(const struct step_job *job, const struct step_rank *to,
                 const struct step_rank *from)
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

static uint64_t mix(uint64_t value, const void *bytes, size_t byte_count)
{
    const uint8_t *from = bytes;

    for (size_t i = 0; i < byte_count; i++) {
        value = (value ^ from[i]) * 0x100000001b3u;
    }
    return value;
}

/* A hash of the floats that the rank gives to others. */
static uint64_t hash_given(const struct step_rank *rank, const struct pd_collective *collective,
                           uint32_t replica_count)
{
    const float *floats = collective->send;
    uint64_t value = 0;

    if (collective->kind == PD_COLLECTIVE_GATHER_FLOATS) {
        floats = collective->receive;
        return mix(value, floats + collective->receive_offsets[rank->replica],
                   (size_t)collective->receive_counts[rank->replica] * sizeof *floats);
    }
    for (uint32_t i = 0; collective->kind == PD_COLLECTIVE_EXCHANGE_FLOATS && i < replica_count;
         i++) {
        value = mix(value, floats + collective->send_offsets[i],
                    (size_t)collective->send_counts[i] * sizeof *floats);
    }
    return value;
}

/* Carry out the collective that is first for every rank. */
static void carry_out_first(struct step_job *job)
{
    enum pd_collective_kind kind = job->ranks[0].under_way[0]->kind;

    for (uint32_t to = 0; to < job->rank_count; to++) {
        for (uint32_t from = 0; from < job->rank_count; from++) {
            move(job, &job->ranks[to], &job->ranks[from]);
        }
    }
    for (uint32_t i = 0; i < job->rank_count; i++) {
        struct step_rank *rank = &job->ranks[i];
        ck_assert_uint_eq(hash_given(rank, rank->under_way[0], job->plan->replica_count),
                          rank->given[0]);
        rank->under_way_count--;
        memmove(rank->under_way, rank->under_way + 1,
                rank->under_way_count * sizeof rank->under_way[0]);
        memmove(rank->given, rank->given + 1, rank->under_way_count * sizeof rank->given[0]);
        pd_step_collective_done(rank->step);
    }
    job->gather_count += kind == PD_COLLECTIVE_GATHER_DOUBLES;
    job->exchange_count += kind == PD_COLLECTIVE_EXCHANGE_FLOATS;
}

/* What others give is not there before the collective is done: who reads it before gets no number.
 */
static void spoil(const struct step_rank *rank, const struct pd_collective *collective,
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

/* Take what the rank asks for after a turn. */
static void take_collectives(struct step_job *job, struct step_rank *rank)
{
    const struct pd_collective *collective;

    while ((collective = pd_step_take_collective(rank->step)) != NULL) {
        ck_assert_uint_lt(rank->under_way_count, UNDER_WAY_MAX);
        rank->given[rank->under_way_count] = hash_given(rank, collective, job->plan->replica_count);
        rank->under_way[rank->under_way_count++] = collective;
        spoil(rank, collective, job->plan->replica_count);
        job->early_count += collective->kind == PD_COLLECTIVE_GATHER_FLOATS &&
                            pd_step_state(rank->step) == PD_STEP_UPDATE;
    }
}

/* Let every rank work until it wants a collective or nothing; the same on all. */
static enum pd_step_want work(struct step_job *job)
{
    enum pd_step_want want = PD_STEP_WANTS_NOTHING;

    for (uint32_t i = 0; i < job->rank_count; i++) {
        struct step_rank *rank = &job->ranks[i];
        enum pd_step_want own = PD_STEP_WANTS_WORK;
        while (own == PD_STEP_WANTS_WORK) {
            own = pd_step_advance(rank->step);
            take_collectives(job, rank);
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
static void carry_out(struct step_job *job, const struct pd_order *order)
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
            step_job_announce(job, &job->ranks[i], (uint32_t)order->step, hessian);
            step_job_end_pushes(job, &job->ranks[i], (uint32_t)order->step, hessian);
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
void step_job_step(struct step_job *job, uint32_t step)
{
    struct pd_order *order = pd_heap_zalloc(1, sizeof *order);

    order->index = step;
    order->kind = PD_ORDER_STEP;
    order->step = step;
    order->optimizer_step = step;
    order->contributor_count = job->worker_count;
    for (uint32_t worker = 0; worker < job->worker_count; worker++) {
        order->contributors[worker] = worker;
        order->weights[worker] = 1.0;
    }
    order->samples = job->worker_count;
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
float *step_job_run(struct step_job *job, uint64_t *count)
{
    for (uint32_t step = 0; step < STEP_COUNT; step++) {
        step_job_step(job, step);
    }
    *count = job->model.element_count;
    float *parameters = pd_heap_zalloc(*count, sizeof *parameters);
    for (uint32_t i = 0; i < job->rank_count; i++) {
        struct step_rank *rank = &job->ranks[i];
        float *lane = parameters + rank->store.lane.element_begin;
        size_t bytes = rank->store.lane.element_count * sizeof *parameters;
        if (rank->replica == 0) {
            memcpy(lane, pd_param_store_served(&rank->store), bytes);
        }
        ck_assert_mem_eq(lane, pd_param_store_served(&rank->store), bytes);
    }
    step_job_finish(job);
    return parameters;
}

float *step_job_train(const char *text, uint32_t rank_count, uint64_t *count)
{
    struct step_job job;

    step_job_init(&job, text, rank_count);
    return step_job_run(&job, count);
}
