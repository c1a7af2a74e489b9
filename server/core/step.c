#include "server/core/step_state.h"

#include "common/assert.h"
#include "common/heap.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Lanes up to here lie in the second-level cache with their state, also when it is there twice. */
#define FUSED_SMALL_MAX 32768u

/* Small gradients of many workers, together of so many times compute_ahead elements, are no longer
 * in the caches when the last of them is in. */
#define GRADIENTS_AHEAD_FACTOR 4u

/* ---- Life ---- */

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Which group every tensor is in. */
static bool find_groups(struct pd_step_machine *machine)
{
    const struct pd_tensor_list *model = machine->model;

    machine->tensor_groups = pd_heap_zalloc(model->count, sizeof(uint32_t));
    for (uint32_t i = 0; machine->tensor_groups != NULL && i < model->count; i++) {
        machine->tensor_groups[i] = pd_config_group_of(machine->config, model->tensors[i].name,
                                                       model->tensors[i].dimension_count);
    }
    return machine->tensor_groups != NULL;
}

/* Places for sums, where they have one of their own. */
static bool allocate_sums(struct pd_step_machine *machine)
{
    const struct pd_config *config = machine->config;

    if (machine->fused) {
        machine->gradient = pd_heap_zalloc(config->block_size, sizeof(float));
        return machine->gradient != NULL;
    }
    if (config->workers.staging_limit > 0 && config->optimizer->estimate != NULL) {
        machine->estimates = pd_heap_zalloc(machine->store->lane.element_count, sizeof(float));
        return machine->estimates != NULL;
    }
    return true;
}

/* Whether blocks ahead are stepped, too. */
static bool goes_all_the_way(const struct pd_step_machine *machine)
{
    return machine->fused &&
           pd_step_may_go_ahead(machine->config, machine->plan, machine->store->lane.element_count);
}

/* Whether what a step writes and sends ahead is out of the caches, while a turn's blocks have room
 * in them. */
static bool needs_fresh(const struct pd_step_machine *machine)
{
    return goes_all_the_way(machine) && machine->plan->block_elements <= PD_STEP_TURN_ELEMENTS &&
           pd_optimizer_state_is_streamed(&machine->optimizer_state);
}

static bool allocate(struct pd_step_machine *machine)
{
    const struct pd_shard_plan *plan = machine->plan;
    const struct pd_param_store *store = machine->store;

    machine->tensor_misses = pd_heap_zalloc(machine->model->count, sizeof(uint64_t));
    machine->sources = pd_heap_zalloc(PD_WORKER_COUNT_MAX, sizeof *machine->sources);
    machine->contributions = pd_heap_zalloc(PD_WORKER_COUNT_MAX, sizeof *machine->contributions);
    machine->source_workers = pd_heap_zalloc(PD_WORKER_COUNT_MAX, sizeof(uint32_t));
    if (needs_fresh(machine)) {
        machine->fresh_elements = pd_heap_zalloc(PD_STEP_TURN_ELEMENTS, sizeof(float));
        if (machine->fresh_elements == NULL) {
            return false;
        }
    }
    machine->partials = pd_heap_zalloc(
        larger(PD_NORM_PART_COUNT * store->shard.block_count, machine->sums.shard_count_max),
        sizeof(double));
    machine->gathered = machine->partials;
    if (plan->rank_count > 1) {
        machine->gathered = pd_heap_zalloc(
            larger(PD_NORM_PART_COUNT * plan->block_count, machine->sums.all_count_max),
            sizeof(double));
    }
    if (plan->replica_count > 1 && !pd_step_allocate_buckets(machine)) {
        return false;
    }
    return allocate_sums(machine) && machine->tensor_misses != NULL && machine->sources != NULL &&
           machine->contributions != NULL && machine->source_workers != NULL &&
           machine->partials != NULL && machine->gathered != NULL;
}

/* Whether steps may be computed beside what is served, before they are known to count. */
static bool may_go_beside(const struct pd_config *config, const struct pd_shard_plan *plan)
{
    /* What an estimate of the Hessian changes of the state, a step begun before would not have. */
    return config->compute_ahead > 0 && plan->replica_count == 1 &&
           config->optimizer->estimate == NULL && config->workers.staging_limit == 0;
}

bool pd_step_may_go_ahead(const struct pd_config *config, const struct pd_shard_plan *plan,
                          uint64_t element_count)
{
    return may_go_beside(config, plan) && element_count >= config->compute_ahead;
}

enum pd_step_ahead pd_step_ahead_kind(const struct pd_config *config,
                                      const struct pd_shard_plan *plan, uint64_t element_count,
                                      uint32_t worker_count)
{
    uint64_t first_count = plan->lanes[0].element_count;

    if (may_go_beside(config, plan) && first_count < config->compute_ahead &&
        first_count * worker_count >= GRADIENTS_AHEAD_FACTOR * config->compute_ahead) {
        return PD_STEP_AHEAD_GRADIENTS;
    }
    return pd_step_may_go_ahead(config, plan, element_count) ? PD_STEP_AHEAD_BLOCKS
                                                             : PD_STEP_AHEAD_NONE;
}

/* Where a step goes ahead, a block is brought on while it is in cache. A small lane is there
 * anyway: its squares are summed while the rule waits for divisions. */
static bool may_fuse(const struct pd_config *config, const struct pd_shard_plan *plan,
                     uint64_t element_count)
{
    for (uint32_t group = 0; group < config->group_count; group++) {
        if (!isnan(config->groups[group].clip.norm)) {
            return false;
        }
    }
    return may_go_beside(config, plan) &&
           (element_count <= FUSED_SMALL_MAX || element_count >= config->compute_ahead) &&
           isnan(config->clip.norm) && config->lookahead.k == 0 &&
           pd_optimizer_state_allows_twice(config);
}

enum pd_status pd_step_create(struct pd_step_machine **out, const struct pd_config *config,
                              const struct pd_tensor_list *model, const struct pd_shard_plan *plan,
                              struct pd_param_store *store, struct pd_roster *roster, uint32_t rank,
                              struct pd_error *error)
{
    *out = NULL;
    struct pd_step_machine *machine = pd_heap_zalloc(1, sizeof *machine);
    if (machine == NULL) {
        goto fail;
    }
    machine->config = config;
    machine->model = model;
    machine->plan = plan;
    machine->store = store;
    machine->roster = roster;
    machine->rank = rank;
    machine->lane = pd_shard_plan_lane_of(plan, rank);
    machine->replica = pd_shard_plan_replica_of(plan, rank);
    machine->fused = may_fuse(config, plan, store->lane.element_count);
    if (!find_groups(machine)) {
        goto fail_machine;
    }
    enum pd_status status =
        pd_layer_decay_factors(&machine->lr_factors, &config->layer_decay, model, error);
    if (status == PD_OK) {
        status = pd_gradient_norms_init(&machine->norms, config, plan, model->count,
                                        machine->tensor_groups, error);
    }
    if (status == PD_OK) {
        status =
            pd_optimizer_state_init(&machine->optimizer_state, config, model, plan, &store->shard,
                                    machine->tensor_groups, machine->fused, error);
    }
    if (status == PD_OK) {
        status = pd_tensor_sums_init(&machine->sums, config, model, plan, &store->shard,
                                     machine->tensor_groups, error);
    }
    if (status != PD_OK) {
        pd_step_destroy(machine);
        return status;
    }
    if (!allocate(machine)) {
        goto fail_machine;
    }
    *out = machine;
    return PD_OK;

fail_machine:
    pd_step_destroy(machine);
fail:
    return pd_error_set(error, PD_ENOMEM, "out of memory for the gradients of %" PRIu64 " elements",
                        store->lane.element_count);
}

void pd_step_destroy(struct pd_step_machine *machine)
{
    if (machine == NULL) {
        return;
    }
    pd_step_free_buckets(machine);
    if (machine->gathered != machine->partials) {
        pd_heap_free(machine->gathered);
    }
    pd_heap_free(machine->partials);
    pd_heap_free(machine->estimates);
    pd_heap_free(machine->gradient);
    pd_heap_free(machine->fresh_elements);
    pd_heap_free(machine->source_workers);
    pd_heap_free(machine->contributions);
    pd_heap_free(machine->sources);
    pd_heap_free(machine->tensor_misses);
    pd_tensor_sums_finish(&machine->sums);
    pd_optimizer_state_finish(&machine->optimizer_state);
    pd_gradient_norms_finish(&machine->norms);
    pd_heap_free(machine->lr_factors);
    pd_heap_free(machine->tensor_groups);
    pd_heap_free(machine);
}

void pd_step_list_state(struct pd_step_machine *machine, struct pd_snapshot *snapshot)
{
    pd_snapshot_add(snapshot, machine->tensor_misses,
                    machine->model->count * sizeof machine->tensor_misses[0]);
    pd_optimizer_state_list(&machine->optimizer_state, snapshot);
    pd_gradient_norms_list(&machine->norms, snapshot);
}

enum pd_step_state pd_step_state(const struct pd_step_machine *machine)
{
    return machine->state;
}

/* ---- Moves ---- */

static void enter(struct pd_step_machine *machine, enum pd_step_state state)
{
    machine->state = state;
    machine->next_block = 0;
}

/* Whether the order writes to the spare buffer. A take does not when its contribution is not here,
 * or is one of estimates, whose sums have a place of their own. */
static bool needs_spare(const struct pd_step_machine *machine)
{
    return machine->order->kind != PD_ORDER_TAKE ||
           (machine->source_count > 0 && lane_sums(machine) != machine->estimates);
}

static void enter_sum(struct pd_step_machine *machine)
{
    PD_ASSERT(pd_param_store_spare_free(machine->store));
    if (machine->fused) {
        machine->pass = 0;
        pd_step_prepare_update(machine, NULL);
    }
    pd_step_begin_buckets(machine);
    enter(machine, PD_STEP_SUM);
}

/* Elements of the lane before the block that is next. */
static uint64_t elements_before_next(const struct pd_step_machine *machine)
{
    const struct pd_range *lane = &machine->store->lane;

    return machine->next_block == lane->block_count
               ? lane->element_count
               : in_lane(machine, &machine->plan->blocks[lane->block_begin + machine->next_block]);
}

static void begin_turn(struct pd_step_machine *machine)
{
    machine->turn_elements = 0;
    machine->fresh.payload = NULL;
}

static enum pd_step_ahead ahead_kind(const struct pd_step_machine *machine, uint32_t worker_count)
{
    return pd_step_ahead_kind(machine->config, machine->plan, machine->store->lane.element_count,
                              worker_count);
}

bool pd_step_foresee(struct pd_step_machine *machine, const struct pd_order *order)
{
    const struct pd_param_store *store = machine->store;
    enum pd_step_ahead kind = ahead_kind(machine, order->contributor_count);

    PD_ASSERT(machine->state == PD_STEP_IDLE);
    PD_ASSERT(order->kind == PD_ORDER_AHEAD);
    PD_ASSERT(order->step == store->version);
    PD_ASSERT(kind != PD_STEP_AHEAD_NONE);
    if (!pd_param_store_spare_free(store)) {
        return false;
    }
    machine->order = order;
    machine->ahead = true;
    machine->collected = false;
    machine->by_gradient = kind == PD_STEP_AHEAD_GRADIENTS;
    machine->added = 0;
    enter_sum(machine);
    return true;
}

bool pd_step_work_ahead(struct pd_step_machine *machine)
{
    PD_ASSERT(machine->ahead);
    if (!pd_step_collect_ahead(machine)) {
        return false;
    }
    begin_turn(machine);
    if (machine->by_gradient) {
        return pd_step_add_gradients(machine);
    }
    uint64_t end = pd_step_blocks_in(machine);
    pd_step_turn_sum(machine, end);
    return machine->next_block < end;
}

bool pd_step_is_collected(const struct pd_step_machine *machine)
{
    return machine->ahead && machine->collected;
}

uint64_t pd_step_summed_elements(const struct pd_step_machine *machine)
{
    return machine->state == PD_STEP_SUM ? elements_before_next(machine)
                                         : machine->store->lane.element_count;
}

void pd_step_forget(struct pd_step_machine *machine)
{
    PD_ASSERT(machine->ahead);
    pd_step_forget_taken(machine);
    machine->ahead = false;
    machine->by_gradient = false;
    machine->lone = NULL;
    machine->fresh.payload = NULL;
    machine->order = NULL;
    machine->state = PD_STEP_IDLE;
}

bool pd_step_spends(const struct pd_step_machine *machine, uint32_t worker_count)
{
    enum pd_step_ahead kind = ahead_kind(machine, worker_count);

    /* A lone gradient that is not stepped at once is its own sum. */
    return kind == PD_STEP_AHEAD_GRADIENTS ||
           (kind == PD_STEP_AHEAD_BLOCKS && (machine->fused || worker_count > 1));
}

const struct pd_order *pd_step_order(const struct pd_step_machine *machine)
{
    return machine->order;
}

uint64_t pd_step_next_elements(const struct pd_step_machine *machine)
{
    const struct pd_range *lane = &machine->store->lane;
    bool last_pass =
        machine->state == PD_STEP_UPDATE && machine->pass + 1 == machine->sums.pass_count;

    if (machine->plan->replica_count > 1) {
        return machine->state == PD_STEP_AVERAGE ? lane->element_count : 0;
    }
    if (machine->state == PD_STEP_AVERAGE || (machine->fused && machine->state == PD_STEP_NORMS)) {
        return lane->element_count;
    }
    if (!last_pass && !(machine->fused && machine->state == PD_STEP_SUM)) {
        return 0;
    }
    return elements_before_next(machine);
}

struct pd_fresh pd_step_fresh(const struct pd_step_machine *machine)
{
    return machine->fresh;
}

void pd_step_begin(struct pd_step_machine *machine, const struct pd_order *order)
{
    PD_ASSERT(machine->ahead ? order->foreseen : machine->state == PD_STEP_IDLE);
    PD_ASSERT(order->kind == PD_ORDER_STEP || order->kind == PD_ORDER_HESSIAN ||
              order->kind == PD_ORDER_TAKE);
    PD_ASSERT(order->step == machine->store->version);
    PD_ASSERT(order->kind != PD_ORDER_STEP || order->lr_count == machine->config->group_count);
    if (machine->ahead && !pd_step_collect_ahead(machine)) {
        /* A worker has pushed in one micro-batch to rank 0, and in several here. */
        pd_step_forget(machine);
    }
    machine->order = order;
    machine->outcome = (struct pd_step_outcome){
        .skipped = order->skip, .gradient_norm = NAN, .clipped_norm = NAN, .clip_scale = 1.0};
    if (machine->ahead) {
        machine->ahead = false;
        return;
    }
    pd_step_collect(machine);
    enter(machine, order->skip ? PD_STEP_DONE : PD_STEP_BUFFER);
    if (order->skip) {
        pd_gradient_norms_clear(&machine->norms);
        pd_param_store_publish_same(machine->store);
    }
}

static enum pd_step_want enter_norms(struct pd_step_machine *machine)
{
    enter(machine, PD_STEP_NORMS);
    if (machine->plan->rank_count > 1) {
        pd_step_ask_norms(machine);
    }
    return PD_STEP_WANTS_WORK;
}

static enum pd_step_want turn_sum(struct pd_step_machine *machine)
{
    if (machine->plan->replica_count > 1) {
        enum pd_step_want want = pd_step_turn_buckets(machine);
        return want == PD_STEP_WANTS_NOTHING ? enter_norms(machine) : want;
    }
    if (machine->by_gradient && machine->added < machine->source_count) {
        (void)pd_step_add_gradients(machine);
        return PD_STEP_WANTS_WORK;
    }
    pd_step_turn_sum(machine, machine->store->lane.block_count);
    return machine->next_block == machine->store->lane.block_count ? enter_norms(machine)
                                                                   : PD_STEP_WANTS_WORK;
}

static enum pd_step_want enter_pass(struct pd_step_machine *machine, uint32_t pass)
{
    machine->pass = pass;
    pd_step_begin_pass(machine);
    enter(machine, PD_STEP_UPDATE);
    return PD_STEP_WANTS_WORK;
}

static bool parts_are_finite(const struct pd_step_machine *machine)
{
    for (uint64_t block = 0; block < machine->plan->block_count; block++) {
        if (!isfinite(machine->gathered[PD_NORM_PART_COUNT * block])) {
            return false;
        }
    }
    return true;
}

/* A sum that is not finite would stay in the state: it is left out. */
static enum pd_step_want leave_norms_of_estimate(struct pd_step_machine *machine)
{
    machine->outcome.nonfinite = !parts_are_finite(machine);
    enter(machine, machine->outcome.nonfinite ? PD_STEP_DONE : PD_STEP_ESTIMATE);
    return machine->outcome.nonfinite ? PD_STEP_WANTS_NOTHING : PD_STEP_WANTS_WORK;
}

static enum pd_step_want leave_norms(struct pd_step_machine *machine)
{
    if (is_estimate(machine->order)) {
        return leave_norms_of_estimate(machine);
    }
    pd_step_decide(machine);
    if (machine->outcome.skipped) {
        machine->fresh.payload = NULL;
        pd_param_store_publish_same(machine->store);
        enter(machine, PD_STEP_DONE);
        return PD_STEP_WANTS_NOTHING;
    }
    if (machine->fused) {
        pd_optimizer_state_commit(&machine->optimizer_state, &machine->order->absent);
        enter(machine, PD_STEP_GATHER);
        return PD_STEP_WANTS_WORK;
    }
    pd_step_prepare_update(machine, &machine->norms);
    return enter_pass(machine, 0);
}

static enum pd_step_want leave_update(struct pd_step_machine *machine)
{
    if (machine->pass + 1 == machine->sums.pass_count) {
        enter(machine, PD_STEP_GATHER);
        return PD_STEP_WANTS_WORK;
    }
    if (!pd_tensor_sums_any(&machine->sums, machine->pass)) {
        return enter_pass(machine, machine->pass + 1);
    }
    enter(machine, PD_STEP_TENSOR_SUMS);
    if (machine->plan->rank_count > 1) {
        pd_step_ask_tensor_sums(machine);
    }
    return PD_STEP_WANTS_WORK;
}

/* Whether the state goes on once all collectives asked for are done. */
static bool waits_for_all(enum pd_step_state state)
{
    return state == PD_STEP_NORMS || state == PD_STEP_TENSOR_SUMS || state == PD_STEP_GATHER;
}

static enum pd_step_want advance_once(struct pd_step_machine *machine)
{
    if (machine->state == PD_STEP_GATHER) {
        pd_step_gather_buckets(machine);
    }
    if (waits_for_all(machine->state) && pd_step_awaits(machine)) {
        return PD_STEP_WANTS_COLLECTIVE;
    }
    switch (machine->state) {
    case PD_STEP_BUFFER:
        if (needs_spare(machine) && !pd_param_store_spare_free(machine->store)) {
            return PD_STEP_WANTS_BUFFER;
        }
        if (machine->order->kind == PD_ORDER_TAKE) {
            enter(machine, PD_STEP_TAKE);
        } else {
            enter_sum(machine);
        }
        return PD_STEP_WANTS_WORK;
    case PD_STEP_TAKE:
        if (!pd_step_turn_take(machine)) {
            return PD_STEP_WANTS_WORK;
        }
        enter(machine, PD_STEP_DONE);
        return PD_STEP_WANTS_NOTHING;
    case PD_STEP_SUM:
        return turn_sum(machine);
    case PD_STEP_NORMS:
        return leave_norms(machine);
    case PD_STEP_ESTIMATE:
        if (!pd_step_turn_estimate(machine)) {
            return PD_STEP_WANTS_WORK;
        }
        enter(machine, PD_STEP_DONE);
        return PD_STEP_WANTS_NOTHING;
    case PD_STEP_UPDATE:
        return pd_step_turn_update(machine) ? leave_update(machine) : PD_STEP_WANTS_WORK;
    case PD_STEP_TENSOR_SUMS:
        pd_tensor_sums_add(&machine->sums, machine->pass, machine->gathered);
        return enter_pass(machine, machine->pass + 1);
    case PD_STEP_GATHER:
        enter(machine, PD_STEP_AVERAGE);
        return PD_STEP_WANTS_WORK;
    case PD_STEP_AVERAGE:
        if (pd_average_enabled(&machine->config->average) && !pd_step_turn_average(machine)) {
            return PD_STEP_WANTS_WORK;
        }
        pd_step_count_misses(machine);
        pd_param_store_publish_spare(machine->store);
        enter(machine, PD_STEP_DONE);
        return PD_STEP_WANTS_NOTHING;
    case PD_STEP_IDLE:
    case PD_STEP_DONE:
        break;
    }
    return PD_STEP_WANTS_NOTHING;
}

enum pd_step_want pd_step_advance(struct pd_step_machine *machine)
{
    enum pd_step_want want = PD_STEP_WANTS_WORK;

    begin_turn(machine);
    while (want == PD_STEP_WANTS_WORK && machine->turn_elements < PD_STEP_TURN_ELEMENTS) {
        want = advance_once(machine);
    }
    return want;
}

const struct pd_gradient_norms *pd_step_norms(const struct pd_step_machine *machine)
{
    return &machine->norms;
}

double pd_step_lr_factor(const struct pd_step_machine *machine, uint32_t tensor)
{
    return machine->lr_factors[tensor];
}

bool pd_step_nonfinite(const struct pd_step_machine *machine)
{
    PD_ASSERT(machine->state == PD_STEP_DONE);
    return machine->outcome.nonfinite;
}

struct pd_step_outcome pd_step_finish(struct pd_step_machine *machine)
{
    PD_ASSERT(machine->state == PD_STEP_DONE);
    if (machine->order->kind == PD_ORDER_TAKE) {
        pd_roster_take(machine->roster, machine->order);
    } else if (machine->order->kind == PD_ORDER_STEP) {
        pd_roster_release(machine->roster, machine->order);
        pd_step_forget_taken(machine);
    }
    machine->by_gradient = false;
    machine->lone = NULL;
    machine->order = NULL;
    machine->state = PD_STEP_IDLE;
    return machine->outcome;
}

/* ---- Help with NaNs ---- */

uint32_t pd_step_find_in_block(const struct pd_step_machine *machine,
                               const struct pd_tensor_set *absent,
                               const struct pd_contribution *contribution,
                               const struct pd_block *block)
{
    struct pd_source source = pd_contribution_source(contribution, 1.0);

    if (pd_gradient_norms_rests(&machine->norms, block->tensor_index, absent)) {
        return block->element_count;
    }
    return pd_reduce_find_nonfinite(pd_contribution_elements(contribution, in_lane(machine, block)),
                                    source.dtype, block->element_count);
}

static void describe(const struct pd_step_machine *machine, const struct pd_block *block,
                     uint32_t element, char *text, size_t text_bytes)
{
    const struct pd_tensor *tensor = &machine->model->tensors[block->tensor_index];

    snprintf(text, text_bytes, "tensor '%s', element %" PRIu64, tensor->name,
             block->element_begin + element - tensor->element_begin);
}

bool pd_step_find_nonfinite(const struct pd_step_machine *machine, const struct pd_order *order,
                            uint32_t *worker_id, char *text, size_t text_bytes)
{
    const struct pd_range *lane = &machine->store->lane;
    const struct pd_taken *taken = &machine->taken[is_estimate(order)];

    if (taken->nonfinite &&
        !pd_gradient_norms_rests(&machine->norms, taken->block->tensor_index, &order->absent)) {
        *worker_id = taken->worker_id;
        describe(machine, taken->block, taken->element, text, text_bytes);
        return true;
    }
    for (uint32_t i = 0; i < order->contributor_count; i++) {
        struct pd_worker *worker = pd_step_contributor(machine, order, i);
        if (worker == NULL || !(order->weights[i] > 0.0)) {
            continue;
        }
        const struct pd_contribution *contribution =
            pd_roster_contribution(worker, is_estimate(order));
        for (uint64_t index = 0; index < lane->block_count; index++) {
            const struct pd_block *block = &machine->plan->blocks[lane->block_begin + index];
            if (in_lane(machine, block) < contribution->spent) {
                continue;
            }
            uint32_t at = pd_step_find_in_block(machine, &order->absent, contribution, block);
            if (at < block->element_count) {
                *worker_id = worker->id;
                describe(machine, block, at, text, text_bytes);
                return true;
            }
        }
    }
    return false;
}
