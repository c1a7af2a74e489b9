/* Steps of all ranks of a job in one process: the same bits for any number of shards, whatever the
 * rule needs to know of whole tensors, and no more collectives than it needs. */
#include "step_job.h"

#include "common/heap.h"
#include "common/kernel.h"
#include "server/core/step_state.h"

#include <check.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

START_TEST(a_rule_gives_the_same_bits_for_any_number_of_shards)
{
    static const uint32_t block_sizes[] = {10, 64, 256};
    static const uint32_t rank_counts[] = {2, 3, 4, RANK_COUNT_MAX};
    char text[512];

    for (size_t b = 0; b < sizeof block_sizes / sizeof block_sizes[0]; b++) {
        uint64_t count;
        if (strstr(step_job_rules[_i / 2], "state_bits") != NULL && block_sizes[b] % 256 != 0) {
            continue;
        }
        snprintf(text, sizeof text,
                 "{aggregation: direct, block_size: %u, clip: {norm: 1.0}, optimizer: %s, %s}",
                 block_sizes[b], step_job_rules[_i / 2],
                 _i % 2 == 0 ? "groups: []" : STEP_JOB_GROUPS);
        float *expected = step_job_train(text, 1, &count);
        for (size_t r = 0; r < sizeof rank_counts / sizeof rank_counts[0]; r++) {
            float *actual = step_job_train(text, rank_counts[r], &count);
            ck_assert_mem_eq(actual, expected, count * sizeof *actual);
            pd_heap_free(actual);
        }
        pd_heap_free(expected);
    }
}
END_TEST

START_TEST(a_tensor_without_a_gradient_stays_as_it_is)
{
    struct step_job job;
    char text[512];

    snprintf(text, sizeof text, "{aggregation: direct, block_size: 256, optimizer: %s}",
             step_job_rules[_i]);
    step_job_init(&job, text, 1);
    const struct pd_tensor *left_out = &job.model.tensors[1];
    float before[35];
    for (uint32_t step = 0; step <= ABSENT_STEP; step++) {
        const float *now = pd_param_store_served(&job.ranks[0].store) + left_out->element_begin;
        memcpy(before, now, sizeof before);
        step_job_step(&job, step);
        const float *after = pd_param_store_served(&job.ranks[0].store) + left_out->element_begin;
        ck_assert_int_eq(memcmp(after, before, sizeof before) == 0, step == ABSENT_STEP);
    }
    step_job_finish(&job);
}
END_TEST

START_TEST(a_frozen_tensor_stays_as_it_is)
{
    struct step_job job;
    char text[512];
    float before[35];

    snprintf(text, sizeof text,
             "{aggregation: direct, block_size: 256, optimizer: %s, "
             "groups: [{match: fc, frozen: true}]}",
             step_job_rules[_i]);
    step_job_init(&job, text, 1);
    const struct pd_tensor *frozen = &job.model.tensors[1];
    memcpy(before, pd_param_store_served(&job.ranks[0].store) + frozen->element_begin,
           sizeof before);
    for (uint32_t step = 0; step < STEP_COUNT; step++) {
        step_job_step(&job, step);
        const float *now = pd_param_store_served(&job.ranks[0].store) + frozen->element_begin;
        ck_assert_mem_eq(now, before, sizeof before);
    }
    step_job_finish(&job);
}
END_TEST

/* Bytes that a job allocates, of a model of one tensor if it is `large`. */
static size_t bytes_of_model(const char *text, uint64_t large)
{
    struct step_job job;

    step_job_init_grid(&job, text, 1, 1, large);
    size_t bytes = pd_heap_bytes_live();
    step_job_finish(&job);
    return bytes;
}

static size_t bytes_of(const char *text)
{
    return bytes_of_model(text, 0);
}

START_TEST(a_frozen_tensor_has_no_state)
{
    size_t with = bytes_of("{compute_ahead: 0, optimizer: {name: adamw}, groups: [{match: fc}]}");
    size_t without = bytes_of(
        "{compute_ahead: 0, optimizer: {name: adamw}, groups: [{match: fc, frozen: true}]}");

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

/* Every rule, with a step that is absent for a tensor and one that is not finite: on all ranks,
 * where some ranks hold too little to go ahead, and where all do. */
START_TEST(a_step_begun_ahead_or_forgotten_makes_the_same_bits)
{
    static const struct {
        uint32_t rank_count;
        uint32_t compute_ahead;
        bool forgets;
    } cases[] = {{1, 1, false}, {3, 1, false},   {3, 1, true},
                 {7, 1, true},  {7, 450, false}, {1, 4000, false}};
    const char *name = pd_optimizer_at((size_t)_i)->name;
    struct step_job job;
    uint64_t count;
    char text[512];

    snprintf(text, sizeof text,
             "{aggregation: direct, block_size: 64, compute_ahead: 0, optimizer: {name: %s}, %s}",
             name, AHEAD_GROUPS);
    step_job_init(&job, text, 1);
    job.nan_step = 2;
    float *expected = step_job_run(&job, &count);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        snprintf(text, sizeof text,
                 "{aggregation: direct, block_size: 64, compute_ahead: %u, "
                 "optimizer: {name: %s}, %s}",
                 cases[i].compute_ahead, name, AHEAD_GROUPS);
        step_job_init(&job, text, cases[i].rank_count);
        bool all_the_way = goes_all_the_way(job.config);
        job.nan_step = 2;
        job.ahead = true;
        job.forgets = cases[i].forgets;
        float *actual = step_job_run(&job, &count);
        ck_assert_int_eq(job.ahead_count > 0, all_the_way && cases[i].compute_ahead <= count);
        ck_assert_mem_eq(actual, expected, count * sizeof *actual);
        pd_heap_free(actual);
    }
    pd_heap_free(expected);
}
END_TEST

/* The same of gradients added up one after the other, each as it was whole and not kept: blocks of
 * a lane that is fused, of one that is not, and where nothing may be ahead. */
START_TEST(gradients_added_up_ahead_one_by_one_make_the_same_bits)
{
    static const struct {
        uint32_t rank_count;
        uint32_t compute_ahead;
        bool forgets;
        bool adds;
    } cases[] = {{1, 4000, false, true},
                 {1, 4000, true, true},
                 {3, 1200, true, true},
                 {7, 500, false, true},
                 {7, 1200, false, false}};
    const char *name = pd_optimizer_at((size_t)_i)->name;
    struct step_job job;
    uint64_t count;
    char text[512];

    for (int clips = 0; clips < 2; clips++) {
        const char *clip = clips ? "clip: {norm: 0.5}, " : "";
        snprintf(text, sizeof text,
                 "{aggregation: direct, block_size: 64, compute_ahead: 0, %soptimizer: {name: %s}}",
                 clip, name);
        step_job_init(&job, text, 1);
        step_job_enlist(&job, 9);
        job.nan_step = 2;
        float *expected = step_job_run(&job, &count);
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            snprintf(text, sizeof text,
                     "{aggregation: direct, block_size: 64, compute_ahead: %u, %soptimizer: "
                     "{name: %s}}",
                     cases[i].compute_ahead, clip, name);
            step_job_init(&job, text, cases[i].rank_count);
            step_job_enlist(&job, 9);
            bool may = job.config->optimizer->estimate == NULL;
            job.nan_step = 2;
            job.ahead = true;
            job.forgets = cases[i].forgets;
            float *actual = step_job_run(&job, &count);
            ck_assert_int_eq(job.added_count > 0, may && cases[i].adds);
            ck_assert_uint_eq(job.ahead_count, 0);
            ck_assert_mem_eq(actual, expected, count * sizeof *actual);
            pd_heap_free(actual);
        }
        pd_heap_free(expected);
    }
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
    struct step_job job;
    uint64_t count;
    char text[512];

    snprintf(text, sizeof text, "{aggregation: direct, block_size: 256, compute_ahead: 0, %s}",
             parts[_i]);
    float *expected = step_job_train(text, 1, &count);
    snprintf(text, sizeof text, "{aggregation: direct, block_size: 256, compute_ahead: 1, %s}",
             parts[_i]);
    step_job_init(&job, text, 2);
    job.ahead = true;
    float *actual = step_job_run(&job, &count);
    ck_assert_uint_eq(job.ahead_count, 0);
    ck_assert_mem_eq(actual, expected, count * sizeof *actual);
    pd_heap_free(actual);
    pd_heap_free(expected);
}
END_TEST

/* All that a step changes of one rank. */
static void keep_everything(struct step_rank *rank, struct pd_snapshot *snapshot)
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
    struct step_job job;

    step_job_init(&job,
                  "{aggregation: direct, block_size: 64, compute_ahead: 1, ema: {decay: 0.9}, "
                  "optimizer: {name: adamw, amsgrad: true}}",
                  1);
    job.ahead = true;
    step_job_step(&job, 0);
    struct step_rank *rank = &job.ranks[0];
    *ahead = *job.foreseen;
    ahead->step = 1;
    ahead->optimizer_step = 1;
    keep_everything(rank, &before);
    step_job_announce(&job, rank, 1, false);
    ck_assert(pd_step_foresee(rank->step, ahead));
    step_job_end_pushes(&job, rank, 1, false);
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
    step_job_finish(&job);
}
END_TEST

/* ---- Gradients in 16 bits ---- */

enum {
    LARGE = (1 << 20) + 4 * 65536 + 77, /* written past the caches */
};

static struct pd_contribution *contribution_of(struct step_rank *rank, uint32_t worker)
{
    return pd_roster_contribution(pd_roster_find(rank->roster, worker), false);
}

/* An order ahead for those first workers. */
static struct pd_order *order_ahead(uint32_t contributor_count)
{
    struct pd_order *order = pd_heap_zalloc(1, sizeof *order);

    order->kind = PD_ORDER_AHEAD;
    order->contributor_count = contributor_count;
    for (uint32_t i = 0; i < contributor_count; i++) {
        order->contributors[i] = i;
        order->weights[i] = 1;
    }
    order->samples = contributor_count;
    order->lr_count = 1;
    order->lrs[0] = 0.1;
    return order;
}

/* Round what was pushed to `dtype`, and leave it as that or, `widened`, as the float32 which that
 * is. */
static void round_payload(struct pd_contribution *contribution, enum pd_dtype dtype, bool widened)
{
    uint64_t count = contribution->element_count;
    void *rounded = pd_heap_zalloc(count, pd_dtype_bytes(dtype));

    pd_convert_from_float32(rounded, dtype, contribution->payload, count);
    if (widened) {
        pd_convert_to_float32(contribution->payload, rounded, dtype, count);
    } else {
        memcpy(contribution->payload, rounded, count * pd_dtype_bytes(dtype));
        contribution->push.dtype = dtype;
    }
    pd_heap_free(rounded);
}

/* A step of one worker: its gradient is rounded to `dtype`, and pushed as that or, `widened`, as
 * the float32 which that is. Leaves all that the step has changed, and the norm, to the caller, and
 * returns whether the rule has read it as it came. */
static bool step_narrow(const char *text, uint64_t large, enum pd_dtype dtype, bool widened,
                        struct pd_snapshot *after, double *norm)
{
    struct pd_order *order = order_ahead(1);
    struct step_job job;

    step_job_init_grid(&job, text, 1, 1, large);
    struct step_rank *rank = &job.ranks[0];
    order->kind = PD_ORDER_STEP;
    order->lr_count = job.config->group_count;
    order->lrs[order->lr_count - 1] = 0.1;
    step_job_announce(&job, rank, 0, false);
    step_job_end_pushes(&job, rank, 0, false);
    round_payload(contribution_of(rank, 0), dtype, widened);
    pd_step_begin(rank->step, order);
    bool reads = rank->step->lone != NULL && !widened;
    while (pd_step_advance(rank->step) == PD_STEP_WANTS_WORK) {
    }
    *norm = pd_step_finish(rank->step).gradient_norm;
    keep_everything(rank, after);
    step_job_finish(&job);
    pd_heap_free(order);
    return reads;
}

/* Read as it came or converted first, streamed or not, with norms taken by the way or not. */
START_TEST(a_gradient_in_16_bits_makes_the_bits_of_its_float32)
{
    static const struct {
        const char *text;
        uint64_t large;
        bool reads;
    } cases[] = {
        {"{compute_ahead: 1, optimizer: {name: adamw}}", LARGE, true},
        {"{compute_ahead: 1, optimizer: {name: adamw}}", 0, true},
        {"{compute_ahead: 1, block_size: 64, optimizer: {name: lion}, "
         "groups: [{match: fc, frozen: true}]}",
         0, true},
        {"{compute_ahead: 1, optimizer: {name: sgd}, groups: [{match: fc, clip: {value: 0.1}}]}", 0,
         false},
        {"{compute_ahead: 1, optimizer: {name: adamw}, clip: {norm_type: 1}}", LARGE, false},
        {"{compute_ahead: 1, optimizer: {name: lamb}}", 0, false},
        {"{compute_ahead: 0, optimizer: {name: adamw}}", 0, false},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (uint32_t dtype = PD_DTYPE_BFLOAT16; dtype <= PD_DTYPE_FLOAT16; dtype++) {
            struct pd_snapshot expected;
            struct pd_snapshot actual;
            double norms[2];
            (void)step_narrow(cases[i].text, cases[i].large, (enum pd_dtype)dtype, true, &expected,
                              &norms[0]);
            bool reads = step_narrow(cases[i].text, cases[i].large, (enum pd_dtype)dtype, false,
                                     &actual, &norms[1]);
            ck_assert_int_eq(reads, cases[i].reads && pd_kernel_streams());
            ck_assert_uint_eq(actual.copy_bytes, expected.copy_bytes);
            ck_assert_mem_eq(actual.copy, expected.copy, expected.copy_bytes);
            ck_assert_double_eq(norms[1], norms[0]);
            pd_snapshot_finish(&expected);
            pd_snapshot_finish(&actual);
        }
    }
}
END_TEST

/* One that is used up ahead, with an element that is not finite: where a block is read by lines,
 * and behind its last line. */
static void step_over_nonfinite(enum pd_dtype dtype, float value, uint64_t element)
{
    struct pd_order *order = order_ahead(1);
    struct step_job job;
    uint32_t worker_id = UINT32_MAX;
    char text[128];
    char expected[64];

    step_job_init_grid(&job, "{block_size: 50, compute_ahead: 1, optimizer: {name: adamw}}", 1, 1,
                       130);
    struct step_rank *rank = &job.ranks[0];
    struct pd_contribution *contribution = contribution_of(rank, 1);
    order->contributors[0] = 1;
    step_job_announce(&job, rank, 0, false);
    step_job_end_pushes(&job, rank, 0, false);
    ((float *)contribution->payload)[element] = value;
    round_payload(contribution, dtype, false);
    contribution->repeatable = true;
    const float *served = pd_param_store_served(&rank->store);
    ck_assert(pd_step_foresee(rank->step, order));
    while (pd_step_work_ahead(rank->step)) {
    }
    ck_assert_uint_eq(contribution->spent, contribution->element_count);
    ck_assert_int_eq(rank->step->lone != NULL, pd_kernel_streams());
    order->kind = PD_ORDER_STEP;
    order->foreseen = true;
    pd_step_begin(rank->step, order);
    while (pd_step_advance(rank->step) == PD_STEP_WANTS_WORK) {
    }
    ck_assert(pd_step_nonfinite(rank->step));
    ck_assert(pd_step_find_nonfinite(rank->step, order, &worker_id, text, sizeof text));
    snprintf(expected, sizeof expected, "tensor 'large', element %" PRIu64, element);
    ck_assert_str_eq(text, expected);
    ck_assert_uint_eq(worker_id, 1);
    ck_assert(pd_step_finish(rank->step).skipped);
    ck_assert_ptr_eq(pd_param_store_served(&rank->store), served);
    pd_heap_free(order);
    step_job_finish(&job);
}

START_TEST(what_is_not_finite_in_16_bits_that_are_used_up_is_told_by_name)
{
    static const float values[] = {NAN, INFINITY, -INFINITY};
    static const uint64_t elements[] = {0, 20, 49, 70, 99, 129};

    for (size_t v = 0; v < sizeof values / sizeof values[0]; v++) {
        for (size_t i = 0; i < sizeof elements / sizeof elements[0]; i++) {
            step_over_nonfinite(PD_DTYPE_BFLOAT16, values[v], elements[i]);
            step_over_nonfinite(PD_DTYPE_FLOAT16, values[v], elements[i]);
        }
    }
}
END_TEST

/* ---- What is fresh ---- */

/* The copy is of the `count` parameters that end with element `end`, as `dtype`. */
static void expect_copy(const struct pd_fresh *fresh, const float *parameters, uint64_t end,
                        uint64_t count, enum pd_dtype dtype)
{
    uint64_t element_bytes = pd_dtype_bytes(dtype);
    void *converted = pd_heap_zalloc(count, sizeof(float));

    pd_convert_from_float32(converted, dtype, parameters + end - count, count);
    ck_assert_ptr_eq(fresh->payload, parameters);
    ck_assert_ptr_ne(fresh->bytes, parameters + end - count);
    ck_assert_uint_eq(fresh->dtype, dtype);
    ck_assert_uint_eq(fresh->end, end * element_bytes);
    ck_assert_uint_eq(fresh->end - fresh->begin, count * element_bytes);
    ck_assert_mem_eq(fresh->bytes, converted, count * element_bytes);
    pd_heap_free(converted);
}

/* Of what the step has ready, the last so many parameters are in the copy. */
static void expect_fresh(struct step_rank *rank, enum pd_dtype dtype)
{
    struct pd_fresh fresh = pd_step_fresh(rank->step);

    expect_copy(&fresh, pd_param_store_spare(&rank->store), pd_step_next_elements(rank->step),
                PD_STEP_TURN_ELEMENTS, dtype);
}

/* Foresee, with all of the gradients in; then the order comes in the middle of SUM. */
START_TEST(what_a_turn_has_streamed_is_fresh_until_the_next)
{
    struct pd_order *order = order_ahead(1);
    enum pd_dtype dtype = (enum pd_dtype)_i;
    struct step_job job;

    step_job_init_grid(&job, "{compute_ahead: 1, optimizer: {name: adamw}}", 1, 1, LARGE);
    struct step_rank *rank = &job.ranks[0];
    step_job_announce(&job, rank, 0, false);
    contribution_of(rank, 0)->push.pull = true;
    contribution_of(rank, 0)->push.pull_dtype = dtype;
    step_job_end_pushes(&job, rank, 0, false);
    ck_assert(pd_step_foresee(rank->step, order));
    ck_assert_ptr_null(pd_step_fresh(rank->step).payload);
    ck_assert(pd_step_work_ahead(rank->step));
    if (pd_kernel_streams()) {
        expect_fresh(rank, dtype);
    } else {
        ck_assert_ptr_null(pd_step_fresh(rank->step).payload);
    }
    order->kind = PD_ORDER_STEP;
    order->foreseen = true;
    pd_step_begin(rank->step, order);
    for (uint32_t turn = 1; turn < LARGE / PD_STEP_TURN_ELEMENTS && pd_kernel_streams(); turn++) {
        ck_assert_int_eq(pd_step_advance(rank->step), PD_STEP_WANTS_WORK);
        expect_fresh(rank, dtype);
    }
    while (pd_step_advance(rank->step) == PD_STEP_WANTS_WORK) {
    }
    if (pd_kernel_streams()) {
        /* The last turn has served what it has computed. */
        struct pd_fresh fresh = pd_step_fresh(rank->step);
        expect_copy(&fresh, pd_param_store_served(&rank->store), LARGE,
                    LARGE % PD_STEP_TURN_ELEMENTS, dtype);
    }
    (void)pd_step_finish(rank->step);
    pd_heap_free(order);
    step_job_finish(&job);
}
END_TEST

/* Forgotten once all of it is computed, then skipped for an element that is no number. */
START_TEST(nothing_is_fresh_of_a_step_that_does_not_count)
{
    struct pd_order *order = order_ahead(1);
    struct step_job job;

    step_job_init_grid(&job, "{compute_ahead: 1, optimizer: {name: adamw}}", 1, 1, LARGE);
    struct step_rank *rank = &job.ranks[0];
    step_job_announce(&job, rank, 0, false);
    step_job_end_pushes(&job, rank, 0, false);
    ((float *)contribution_of(rank, 0)->payload)[LARGE - 1] = NAN;
    ck_assert(pd_step_foresee(rank->step, order));
    while (pd_step_work_ahead(rank->step)) {
    }
    ck_assert_int_eq(pd_step_fresh(rank->step).payload != NULL, pd_kernel_streams());
    pd_step_forget(rank->step);
    ck_assert_ptr_null(pd_step_fresh(rank->step).payload);
    /* The step is decided in the turn that computes the last block. */
    order->kind = PD_ORDER_STEP;
    pd_step_begin(rank->step, order);
    while (pd_step_advance(rank->step) == PD_STEP_WANTS_WORK) {
    }
    ck_assert(pd_step_finish(rank->step).skipped);
    ck_assert_ptr_null(pd_step_fresh(rank->step).payload);
    pd_heap_free(order);
    step_job_finish(&job);
}
END_TEST

/* Those who pull nothing with their push have no say; where the others differ it is float32. */
START_TEST(what_is_fresh_is_of_the_type_that_all_are_answered_in)
{
    static const struct {
        bool pulls[WORKER_COUNT];
        enum pd_dtype dtypes[WORKER_COUNT];
        enum pd_dtype expected;
    } cases[] = {
        {{true, true}, {PD_DTYPE_FLOAT16, PD_DTYPE_FLOAT16}, PD_DTYPE_FLOAT16},
        {{true, true}, {PD_DTYPE_FLOAT16, PD_DTYPE_BFLOAT16}, PD_DTYPE_FLOAT32},
        {{true, true}, {PD_DTYPE_FLOAT32, PD_DTYPE_BFLOAT16}, PD_DTYPE_FLOAT32},
        {{false, true}, {PD_DTYPE_FLOAT32, PD_DTYPE_BFLOAT16}, PD_DTYPE_BFLOAT16},
        {{true, false}, {PD_DTYPE_BFLOAT16, PD_DTYPE_FLOAT32}, PD_DTYPE_BFLOAT16},
        {{false, false}, {PD_DTYPE_BFLOAT16, PD_DTYPE_BFLOAT16}, PD_DTYPE_FLOAT32},
    };
    struct pd_order *order = order_ahead(WORKER_COUNT);
    struct step_job job;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        step_job_init(&job, "{compute_ahead: 1, optimizer: {name: adamw}}", 1);
        struct step_rank *rank = &job.ranks[0];
        step_job_announce(&job, rank, 0, false);
        for (uint32_t worker = 0; worker < WORKER_COUNT; worker++) {
            contribution_of(rank, worker)->push.pull = cases[i].pulls[worker];
            contribution_of(rank, worker)->push.pull_dtype = cases[i].dtypes[worker];
        }
        step_job_end_pushes(&job, rank, 0, false);
        ck_assert(pd_step_foresee(rank->step, order));
        (void)pd_step_work_ahead(rank->step);
        ck_assert_uint_eq(rank->step->fresh_dtype, cases[i].expected);
        step_job_finish(&job);
    }
    pd_heap_free(order);
}
END_TEST

/* Where nothing is streamed, or nothing leaves ahead, or a block is more than the copy holds. */
START_TEST(nothing_else_is_fresh)
{
    static const struct {
        const char *text;
        uint64_t elements;
    } cases[] = {
        {"{compute_ahead: 1, optimizer: {name: adamw}}", 1000},
        {"{compute_ahead: 1, optimizer: {name: adamw}, clip: {norm: 1}}", LARGE},
        {"{compute_ahead: 0, optimizer: {name: adamw}}", LARGE},
        {"{compute_ahead: 1, optimizer: {name: lamb}}", LARGE},
        {"{compute_ahead: 1, block_size: 1048576, optimizer: {name: adamw}}", (1 << 24) + 1},
    };
    struct step_job job;

    step_job_init_grid(&job, cases[_i].text, 1, 1, cases[_i].elements);
    ck_assert_ptr_null(job.ranks[0].step->fresh_elements);
    job.ahead = true;
    if (_i < 4) {
        step_job_step(&job, 0);
        ck_assert_ptr_null(pd_step_fresh(job.ranks[0].step).payload);
    }
    step_job_finish(&job);
}
END_TEST

START_TEST(a_step_is_not_begun_ahead_where_the_version_before_is_still_read)
{
    struct pd_order *ahead = pd_heap_zalloc(1, sizeof *ahead);
    struct step_job job;

    step_job_init(&job, "{aggregation: direct, compute_ahead: 1}", 1);
    ahead->kind = PD_ORDER_AHEAD;
    job.ranks[0].store.buffers[1].users = 1;
    ck_assert(!pd_step_foresee(job.ranks[0].step, ahead));
    ck_assert_int_eq(pd_step_state(job.ranks[0].step), PD_STEP_IDLE);
    job.ranks[0].store.buffers[1].users = 0;
    ck_assert(pd_step_foresee(job.ranks[0].step, ahead));
    pd_step_forget(job.ranks[0].step);
    pd_heap_free(ahead);
    step_job_finish(&job);
}
END_TEST

/* The bytes are those of models that never are stepped beside, and how many more they are then. */
START_TEST(state_is_kept_twice_only_where_steps_go_all_the_way)
{
    static const struct {
        const char *text;
        uint64_t elements;
        bool twice;
    } cases[] = {
        {"compute_ahead: 40000", 40000, true},
        {"compute_ahead: 40001", 40000, false},
        {"compute_ahead: 40000, clip: {norm: 1}", 40000, false},
        {"compute_ahead: 40000", 32768, true}, /* in cache, one way or the other */
        {"compute_ahead: 40000", 32769, false},
        {"compute_ahead: 40000, clip: {norm: 1}", 32768, false},
    };
    const size_t block_elements = 64;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t elements = cases[i].elements;
        char text[128];
        snprintf(text, sizeof text, "{block_size: 64, optimizer: {name: adamw}, %s}",
                 cases[i].text);
        size_t once = bytes_of_model("{block_size: 64, compute_ahead: 0}", elements);
        size_t more = (2 * elements + block_elements) * sizeof(float);
        ck_assert_uint_eq(bytes_of_model(text, elements), once + (cases[i].twice ? more : 0));
    }
}
END_TEST

/* Where a step is not computed beside the old one: twice the parameters, and twice for AdamW's or
 * LAMB's state. */
START_TEST(what_is_summed_takes_no_memory_of_its_own)
{
    static const char *const texts[] = {
        "{optimizer: {name: adamw}, clip: {norm: 1}}",
        "{optimizer: {name: lamb}}",
        "{optimizer: {name: adamw}, workers: {staging_limit: 100000000}}",
    };
    const uint64_t elements = 4 * 65536;
    size_t once = bytes_of_model(texts[_i], elements);
    size_t twice = bytes_of_model(texts[_i], 2 * elements);

    ck_assert_uint_ge(twice - once, 4 * elements * sizeof(float));
    ck_assert_uint_lt(twice - once, 4 * elements * sizeof(float) + elements);
}
END_TEST

START_TEST(nothing_is_taken_while_the_version_before_is_still_read)
{
    struct pd_order *order = pd_heap_zalloc(1, sizeof *order);
    struct step_job job;

    step_job_init(&job, "{aggregation: direct, workers: {staging_limit: 1000000}}", 1);
    struct step_rank *rank = &job.ranks[0];
    float *spare = pd_param_store_spare(&rank->store);
    order->kind = PD_ORDER_TAKE;
    order->contributor_count = 1;
    order->weights[0] = 1;
    step_job_announce(&job, rank, 0, false);
    step_job_end_pushes(&job, rank, 0, false);
    spare[0] = 123.0f;
    rank->store.buffers[1].users = 1;
    pd_step_begin(rank->step, order);
    ck_assert_int_eq(pd_step_advance(rank->step), PD_STEP_WANTS_BUFFER);
    ck_assert_int_eq(pd_step_state(rank->step), PD_STEP_BUFFER);
    ck_assert_float_eq(spare[0], 123.0f);
    rank->store.buffers[1].users = 0;
    ck_assert_int_eq(pd_step_advance(rank->step), PD_STEP_WANTS_NOTHING);
    ck_assert_float_ne(spare[0], 123.0f);
    (void)pd_step_finish(rank->step);
    pd_heap_free(order);
    step_job_finish(&job);
}
END_TEST

/* What is not here, and estimates, which are added up in a place of their own. */
START_TEST(a_take_that_writes_nothing_there_does_not_wait_for_readers)
{
    struct pd_order *order = pd_heap_zalloc(1, sizeof *order);
    bool hessian = _i == 1;
    struct step_job job;

    step_job_init(&job,
                  "{aggregation: direct, workers: {staging_limit: 1000000}, "
                  "optimizer: {name: sophia_g}}",
                  1);
    struct step_rank *rank = &job.ranks[0];
    order->kind = PD_ORDER_TAKE;
    order->hessian = hessian;
    order->contributor_count = 1;
    order->weights[0] = 1;
    if (hessian) {
        step_job_announce(&job, rank, 0, true);
        step_job_end_pushes(&job, rank, 0, true);
    }
    rank->store.buffers[1].users = 1;
    pd_param_store_spare(&rank->store)[0] = 123.0f;
    pd_step_begin(rank->step, order);
    ck_assert_int_eq(pd_step_advance(rank->step), PD_STEP_WANTS_NOTHING);
    ck_assert_int_eq(pd_step_state(rank->step), PD_STEP_DONE);
    ck_assert_float_eq(pd_param_store_spare(&rank->store)[0], 123.0f);
    (void)pd_step_finish(rank->step);
    ck_assert_int_eq(rank->step->taken[1].samples > 0.0, hessian);
    pd_heap_free(order);
    step_job_finish(&job);
}
END_TEST

/* Without lr the rate is by the size of the parameters, also in the pass that caution adds. */
START_TEST(a_cautious_adafactor_gathers_sizes_only_without_lr)
{
    static const struct {
        const char *text;
        uint64_t sum_count; /* of a block */
    } cases[] = {
        {"{optimizer: {name: adafactor_timm, beta1: 0.9, caution: true}}", 3},
        {"{optimizer: {name: adafactor_timm, beta1: 0.9, caution: true, lr: 0.1}}", 2},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct step_job job;
        step_job_init(&job, cases[i].text, 1);
        struct pd_optimizer_span parts =
            pd_tensor_sums_parts(&job.ranks[0].step->sums, 2, 0, job.plan->block_count);
        ck_assert_uint_eq(parts.count, cases[i].sum_count * job.plan->block_count);
        step_job_finish(&job);
    }
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
    struct step_job job;

    snprintf(text, sizeof text, "{aggregation: direct, block_size: 64, %s}", cases[_i].text);
    step_job_init(&job, text, 3);
    step_job_step(&job, 0);
    ck_assert_uint_eq(job.gather_count, cases[_i].gather_count);
    step_job_finish(&job);
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
                        2 * STEP_JOB_RULE_COUNT);
    tcase_add_loop_test(tests, a_tensor_without_a_gradient_stays_as_it_is, 0, STEP_JOB_RULE_COUNT);
    tcase_add_loop_test(tests, a_frozen_tensor_stays_as_it_is, 0, STEP_JOB_RULE_COUNT);
    tcase_add_test(tests, a_frozen_tensor_has_no_state);
    tcase_add_loop_test(tests, a_step_begun_ahead_or_forgotten_makes_the_same_bits, 0,
                        optimizer_count());
    tcase_add_loop_test(tests, gradients_added_up_ahead_one_by_one_make_the_same_bits, 0,
                        optimizer_count());
    tcase_add_loop_test(tests, what_needs_more_than_a_block_only_sums_ahead, 0, 5);
    tcase_add_test(tests, a_forgotten_step_leaves_parameters_and_state_untouched);
    tcase_add_test(tests, a_gradient_in_16_bits_makes_the_bits_of_its_float32);
    tcase_add_test(tests, what_is_not_finite_in_16_bits_that_are_used_up_is_told_by_name);
    tcase_add_loop_test(tests, what_a_turn_has_streamed_is_fresh_until_the_next, 0, 3);
    tcase_add_test(tests, nothing_is_fresh_of_a_step_that_does_not_count);
    tcase_add_test(tests, what_is_fresh_is_of_the_type_that_all_are_answered_in);
    tcase_add_loop_test(tests, nothing_else_is_fresh, 0, 5);
    tcase_add_test(tests, a_step_is_not_begun_ahead_where_the_version_before_is_still_read);
    tcase_add_test(tests, state_is_kept_twice_only_where_steps_go_all_the_way);
    tcase_add_loop_test(tests, what_is_summed_takes_no_memory_of_its_own, 0, 3);
    tcase_add_test(tests, nothing_is_taken_while_the_version_before_is_still_read);
    tcase_add_loop_test(tests, a_take_that_writes_nothing_there_does_not_wait_for_readers, 0, 2);
    tcase_add_test(tests, a_cautious_adafactor_gathers_sizes_only_without_lr);
    tcase_add_loop_test(tests, ranks_gather_sums_only_for_hyperparameters_that_need_them, 0, 10);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
