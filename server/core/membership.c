/* Who takes part: joining, registering, contributing, leaving, and the eviction of the dead. */
#include "common/assert.h"
#include "server/core/engine_state.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static bool is(const struct pd_member *member, uint32_t worker_id)
{
    return member->state != PD_MEMBER_NONE && member->id == worker_id;
}

struct pd_member *pd_member_find(struct pd_leader *leader, uint32_t worker_id)
{
    struct pd_member *member = &leader->members[leader->slots[worker_id % PD_WORKER_COUNT_MAX]];

    if (is(member, worker_id)) {
        return member;
    }
    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        if (is(&leader->members[slot], worker_id)) {
            return &leader->members[slot];
        }
    }
    return NULL;
}

const char *pd_member_state_name(const struct pd_engine *engine, const struct pd_member *member)
{
    if (member->ranks_missing != 0 && member->state == PD_MEMBER_ACTIVE) {
        return "lost";
    }
    if (pd_admission_holds_back(engine, member)) {
        return "held back";
    }
    switch (member->state) {
    case PD_MEMBER_JOINING:
        return "joining";
    case PD_MEMBER_JOINED:
        return "joined";
    case PD_MEMBER_ACTIVE:
        return "active";
    case PD_MEMBER_LEAVING:
        return "leaving";
    case PD_MEMBER_NONE:
        break;
    }
    return "gone";
}

/* ---- Joining ---- */

static struct pd_member *free_slot(struct pd_leader *leader)
{
    for (uint32_t slot = 0; slot < PD_WORKER_COUNT_MAX; slot++) {
        if (leader->members[slot].state == PD_MEMBER_NONE) {
            leader->member_end = slot + 1 > leader->member_end ? slot + 1 : leader->member_end;
            return &leader->members[slot];
        }
    }
    return NULL;
}

static uint32_t members_of(const struct pd_leader *leader, uint32_t replica)
{
    uint32_t count = 0;
    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        const struct pd_member *member = &leader->members[slot];
        count += member->state != PD_MEMBER_NONE && member->replica == replica;
    }
    return count;
}

static bool replica_on_host(const struct pd_engine *engine, uint32_t replica, const char *host)
{
    for (uint32_t lane = 0; lane < engine->lane_count; lane++) {
        uint32_t rank = replica * engine->lane_count + lane;
        if (host[0] != '\0' && strcmp(engine->topology->hosts[rank], host) == 0) {
            return true;
        }
    }
    return false;
}

/* The replica on the worker's own host, the least loaded among several, the lowest among equals. */
static uint32_t choose_home(const struct pd_engine *engine, const char *host)
{
    uint32_t best = 0;
    bool best_near = false;
    uint32_t best_load = UINT32_MAX;

    for (uint32_t replica = 0; replica < engine->replica_count; replica++) {
        bool near = replica_on_host(engine, replica, host);
        uint32_t load = members_of(engine->leader, replica);
        if ((near && !best_near) || (near == best_near && load < best_load)) {
            best = replica;
            best_near = near;
            best_load = load;
        }
    }
    return best;
}

/* Ranks a worker of that home must be connected to: rank 0 and, once the model is known, its lanes.
 */
static uint64_t needed_ranks(const struct pd_engine *engine, uint32_t replica)
{
    uint64_t ranks = 1;

    for (uint32_t lane = 0; lane < engine->lane_count; lane++) {
        if ((engine->leader->lanes_needed >> lane) & 1u) {
            ranks |= 1ull << (replica * engine->lane_count + lane);
        }
    }
    return ranks;
}

bool pd_member_needs_rank(const struct pd_engine *engine, const struct pd_member *member,
                          uint32_t rank)
{
    return (needed_ranks(engine, member->replica) >> rank) & 1u;
}

static bool is_connected(const struct pd_engine *engine, const struct pd_member *member)
{
    const struct pd_worker *worker = pd_roster_find(engine->roster, member->id);
    return worker != NULL && worker->connection != PD_CONNECTION_NONE;
}

/* A live worker may not lose its name. One that is gone makes way for its successor, at once or
 * when the gradient it has given is used. */
static enum pd_status claim_name(struct pd_engine *engine, const struct pd_member *claimant,
                                 const char *name, struct pd_error *error)
{
    struct pd_leader *leader = engine->leader;

    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        struct pd_member *holder = &leader->members[slot];
        if (holder == claimant || holder->state == PD_MEMBER_NONE ||
            holder->state == PD_MEMBER_LEAVING || strcmp(holder->name, name) != 0) {
            continue;
        }
        if (holder->state == PD_MEMBER_JOINING || is_connected(engine, holder)) {
            return pd_error_set(error, PD_EIDENTITY,
                                "join: the name '%s' belongs to worker %u, which is connected: "
                                "leave with that one first, or choose another name",
                                name, holder->id);
        }
        if (!pd_member_contributes(engine, holder)) {
            pd_member_depart(engine, holder,
                             "a new worker took its name after its connection was lost");
        }
    }
    return PD_OK;
}

/* The worker whose Join this is again, because its answer was lost; NULL for a new one. */
static struct pd_member *find_nonce(struct pd_leader *leader, uint64_t nonce)
{
    for (uint32_t slot = 0; slot < leader->member_end && nonce != 0; slot++) {
        struct pd_member *member = &leader->members[slot];
        bool awaits = member->state == PD_MEMBER_JOINING || member->state == PD_MEMBER_JOINED;
        if (awaits && member->nonce == nonce) {
            return member;
        }
    }
    return NULL;
}

/* The worker's connection is from now on the one this Join came on. */
static void await_answer(struct pd_engine *engine, struct pd_member *member,
                         pd_connection_id connection)
{
    struct pd_session *session = &engine->sessions[connection];

    member->state = PD_MEMBER_JOINING;
    member->join_connection = connection;
    member->join_serial = session->serial;
    session->joining = true;
    engine->leader->changed = true;
}

static void join_again(struct pd_engine *engine, struct pd_member *member,
                       pd_connection_id connection)
{
    const struct pd_worker *worker = pd_roster_find(engine->roster, member->id);

    if (worker != NULL && worker->connection != PD_CONNECTION_NONE) {
        pd_session_close(engine, worker->connection, false);
    }
    member->ranks_missing = 0;
    await_answer(engine, member, connection);
}

enum pd_status pd_member_join(struct pd_engine *engine, pd_connection_id connection,
                              const struct pd_join *join, struct pd_error *error)
{
    struct pd_leader *leader = engine->leader;
    struct pd_session *session = &engine->sessions[connection];

    if (leader->drain != PD_DRAIN_NONE) {
        return pd_error_set(error, PD_EDRAINING, "join: the daemon is draining: %s",
                            leader->drain_reason);
    }
    if (session->joining) {
        return pd_error_set(error, PD_EPROTOCOL,
                            "join before the answer to the one before has been read");
    }
    struct pd_member *member = find_nonce(leader, join->nonce);
    if (member != NULL) {
        join_again(engine, member, connection);
        return PD_OK;
    }
    if (join->name[0] != '\0' && claim_name(engine, NULL, join->name, error) != PD_OK) {
        return error->status;
    }
    member = free_slot(leader);
    if (member == NULL) {
        return pd_error_set(error, PD_ELIMIT, "join: %u workers are here already, the most allowed",
                            PD_WORKER_COUNT_MAX);
    }
    uint32_t home = choose_home(engine, session->host); /* before this one counts as a load */
    memset(member, 0, sizeof *member);
    member->id = leader->worker_id_next++;
    leader->slots[member->id % PD_WORKER_COUNT_MAX] = (uint16_t)(member - leader->members);
    if (join->name[0] != '\0') {
        snprintf(member->name, sizeof member->name, "%s", join->name);
    } else {
        snprintf(member->name, sizeof member->name, "worker-%u", member->id);
    }
    member->replica = home;
    member->step_next = leader->step_next;
    member->nonce = join->nonce;
    member->token = engine->entropy;
    await_answer(engine, member, connection);
    return PD_OK;
}

static void order_join(struct pd_engine *engine, struct pd_member *member)
{
    struct pd_order *order = pd_leader_new_order(engine, PD_ORDER_JOIN);

    order->worker_id = member->id;
    order->token = member->token;
    order->replica = member->replica;
    snprintf(order->name, sizeof order->name, "%s", member->name);
    member->join_ordered = true;
    member->join_index = engine->leader->order_next;
    pd_leader_issue(engine);
}

/* Every rank knows the worker: bind it to the connection it joined on and tell it. */
static void finish_join(struct pd_engine *engine, struct pd_member *member)
{
    struct pd_session *session = &engine->sessions[member->join_connection];
    struct pd_worker *worker = pd_roster_find(engine->roster, member->id);
    struct pd_message message = {.kind = PD_MESSAGE_JOINED};

    PD_ASSERT(worker != NULL);
    member->state = PD_MEMBER_JOINED;
    if (session->state != PD_SESSION_GUEST || session->serial != member->join_serial) {
        member->ranks_missing = 1;
        member->missing_since_ms = engine->now_ms;
        snprintf(member->missing_text, sizeof member->missing_text,
                 "its connection closed while it joined");
        return;
    }
    member->asked_ms = engine->now_ms;
    session->joining = false;
    session->left = false;
    session->state = PD_SESSION_WORKER;
    session->worker_id = member->id;
    pd_session_count_host(engine, session->host);
    worker->connection = member->join_connection;
    message.joined.worker_id = member->id;
    message.joined.token = member->token;
    message.joined.accumulation_steps = (uint32_t)engine->config->accumulation_steps;
    snprintf(message.joined.name, sizeof message.joined.name, "%s", member->name);
    pd_engine_send(engine, member->join_connection, &message);
    pd_actions_log(engine->actions, "worker %u '%s' joined from %s, home replica %u", member->id,
                   member->name, session->peer, member->replica);
}

/* ---- Registering ---- */

static void order_registration(struct pd_engine *engine, const struct pd_member *member,
                               const struct pd_tensor_list *tensors)
{
    struct pd_leader *leader = engine->leader;
    struct pd_order *order = pd_leader_new_order(engine, PD_ORDER_REGISTER);

    order->worker_id = member->id;
    if (tensors != NULL) {
        order->tensors = *tensors;
    }
    leader->register_ordered = true;
    leader->has_initializer = true;
    leader->initializer = member->id;
    leader->values_lanes = 0;
    leader->register_index = leader->order_next;
    pd_leader_issue(engine);
    order->tensors = (struct pd_tensor_list){0};
}

static void send_registered(struct pd_engine *engine, const struct pd_member *member,
                            bool values_needed)
{
    const struct pd_worker *worker = pd_roster_find(engine->roster, member->id);
    struct pd_message message = {.kind = PD_MESSAGE_REGISTERED};
    struct pd_registered *registered = &message.registered;

    if (worker->connection == PD_CONNECTION_NONE) {
        return;
    }
    registered->lane_count = engine->lane_count;
    registered->values_needed = values_needed;
    registered->block_elements = engine->plan->block_elements;
    registered->step = engine->leader->step_next;
    for (uint32_t lane = 0; lane < engine->lane_count; lane++) {
        uint32_t rank = member->replica * engine->lane_count + lane;
        registered->lanes[lane].rank = rank;
        snprintf(registered->lanes[lane].address, sizeof registered->lanes[lane].address, "%s",
                 engine->topology->addresses[rank]);
        registered->lanes[lane].element_begin = engine->plan->lanes[lane].element_begin;
        registered->lanes[lane].element_count = engine->plan->lanes[lane].element_count;
    }
    pd_engine_send(engine, worker->connection, &message);
}

enum pd_status pd_member_register(struct pd_engine *engine, struct pd_member *member,
                                  const struct pd_tensor_list *tensors, struct pd_error *error)
{
    struct pd_leader *leader = engine->leader;

    if (member->state == PD_MEMBER_LEAVING) {
        return pd_error_set(error, PD_EPROTOCOL, "register: worker %u has left", member->id);
    }
    if (leader->register_ordered && !engine->has_model) {
        return pd_error_set(error, PD_EREFUSED,
                            "register: another worker's registration is under way: try again");
    }
    if (leader->register_ordered) {
        enum pd_status status = pd_tensor_list_compare(&engine->model, tensors, error);
        if (status != PD_OK) {
            return status;
        }
    } else {
        struct pd_shard_plan *plan;
        uint64_t depth_max;
        enum pd_status status =
            pd_layer_decay_depth_max(&engine->config->layer_decay, tensors, &depth_max, error);
        if (status != PD_OK) {
            return status;
        }
        status = pd_shard_plan_create(&plan, tensors, (uint32_t)engine->config->block_size,
                                      engine->topology->rank_count, engine->lane_count, error);
        if (status != PD_OK) {
            return status;
        }
        status = pd_staging_check(engine->config, plan, error);
        if (status != PD_OK) {
            pd_shard_plan_destroy(plan);
            return status;
        }
        for (uint32_t lane = 0; lane < engine->lane_count; lane++) {
            leader->lanes_needed |= (uint64_t)(plan->lanes[lane].element_count > 0) << lane;
        }
        pd_shard_plan_destroy(plan);
        order_registration(engine, member, tensors);
    }
    if (member->state == PD_MEMBER_ACTIVE) {
        /* The answer was lost with a connection. */
        send_registered(engine, member,
                        leader->initializer == member->id && !leader->publish_ordered);
        return PD_OK;
    }
    member->registering = true;
    leader->changed = true;
    return PD_OK;
}

void pd_member_asks_again(struct pd_engine *engine, struct pd_member *member)
{
    member->registering = false;
    member->asked_ms = engine->now_ms;
}

/* From its answer on, a worker's lanes must be connected within the time to resume. */
static void activate(struct pd_engine *engine, struct pd_member *member)
{
    const struct pd_worker *worker = pd_roster_find(engine->roster, member->id);
    uint64_t rank_0 = worker->connection != PD_CONNECTION_NONE ? 1u : 0u;
    struct pd_leader *leader = engine->leader;
    uint64_t active = 0;

    member->registering = false;
    member->state = PD_MEMBER_ACTIVE;
    member->step_next = leader->step_next;
    member->ranks_missing = needed_ranks(engine, member->replica) & ~rank_0;
    member->missing_since_ms = engine->now_ms;
    member->asked_ms = engine->now_ms;
    snprintf(member->missing_text, sizeof member->missing_text, "it did not connect to its lanes");
    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        active += leader->members[slot].state == PD_MEMBER_ACTIVE;
    }
    leader->started = leader->started || active >= engine->config->workers.expected;
}

/* Answer a registration once there are values, or this worker is to supply them. When nobody is
 * left to supply them, whoever waits does. */
static void advance_registration(struct pd_engine *engine, struct pd_member *member)
{
    struct pd_leader *leader = engine->leader;

    if (!member->registering) {
        return;
    }
    if (engine->store.has_version && !pd_admission_allows(engine, member)) {
        return;
    }
    if (engine->store.has_version) {
        send_registered(engine, member, false);
        activate(engine, member);
    } else if (leader->publish_ordered ||
               pd_leader_executed_by_all(engine) <= leader->register_index) {
        return;
    } else if (!leader->has_initializer) {
        order_registration(engine, member, NULL);
    } else if (leader->initializer == member->id) {
        send_registered(engine, member, true);
        activate(engine, member);
    }
}

/* ---- Contributing ---- */

/* Nothing of what was given is on any lane any more: what comes now is all there is. */
static void begin_anew(struct pd_given *given)
{
    given->undone = false;
    given->micro_batches = 0;
    given->samples = 0;
    given->unit_samples = 0;
    given->loss_sum = 0.0;
    given->loss_samples = 0;
}

static void collect(struct pd_given *given, uint32_t lane, const struct pd_report *report)
{
    if (given->undone) {
        begin_anew(given);
    }
    given->lane_micro_batches[lane] = report->micro_batch + 1;
    if (report->last) {
        given->lanes_last |= 1ull << lane;
    }
    if (report->micro_batch < given->micro_batches) {
        return;
    }
    given->micro_batches = report->micro_batch + 1;
    given->samples += report->samples;
    if (given->unit_samples == 0) {
        given->unit_samples = report->samples;
        pd_tensor_set_copy(&given->absent, &report->absent);
    } else if (report->samples > 0) {
        pd_tensor_set_intersect(&given->absent, &report->absent);
    }
    if (report->has_loss) {
        given->loss_sum += report->loss * (double)report->samples;
        given->loss_samples += report->samples;
    }
}

void pd_member_contributed(struct pd_engine *engine, struct pd_member *member, uint32_t lane,
                           const struct pd_report *report)
{
    bool takes_part = member->state == PD_MEMBER_ACTIVE || member->state == PD_MEMBER_LEAVING;

    if (!takes_part || report->step != engine->leader->step_next) {
        char reason[PD_ERROR_BYTES_MAX];
        snprintf(reason, sizeof reason,
                 takes_part ? "it pushed for step %" PRIu64 ", but takes part from step %" PRIu64
                              " on"
                            : "it pushed for step %" PRIu64
                              " without having registered, when step %" PRIu64 " was in collection",
                 report->step, engine->leader->step_next);
        pd_member_depart(engine, member, reason);
        return;
    }
    collect(report->hessian ? &member->hessian : &member->gradient, lane, report);
}

void pd_member_undone(struct pd_member *member, uint32_t lane)
{
    struct pd_given *given = &member->gradient;

    given->lanes_last &= ~(1ull << lane);
    given->lane_micro_batches[lane] = 0;
    given->undone = true;
    for (uint32_t i = 0; i < PD_RANK_COUNT_MAX; i++) {
        given->undone = given->undone && given->lane_micro_batches[i] == 0;
    }
}

static bool is_whole(const struct pd_engine *engine, const struct pd_given *given)
{
    uint64_t needed = engine->leader->lanes_needed;
    return needed != 0 && (given->lanes_last & needed) == needed;
}

bool pd_member_complete(const struct pd_engine *engine, const struct pd_member *member)
{
    return is_whole(engine, &member->gradient);
}

/* Whether every lane has got as many micro-batches as any. */
static bool lanes_agree(const struct pd_engine *engine, const struct pd_given *given)
{
    for (uint32_t lane = 0; lane < engine->lane_count; lane++) {
        if (((engine->leader->lanes_needed >> lane) & 1u) &&
            given->lane_micro_batches[lane] != given->micro_batches) {
            return false;
        }
    }
    return true;
}

bool pd_member_settled(const struct pd_engine *engine, const struct pd_member *member)
{
    if (member->state != PD_MEMBER_LEAVING) {
        return pd_member_complete(engine, member);
    }
    return member->leave_ordered && pd_leader_executed_by_all(engine) > member->leave_index;
}

bool pd_member_contributes(const struct pd_engine *engine, const struct pd_member *member)
{
    if (member->state == PD_MEMBER_ACTIVE) {
        return pd_member_complete(engine, member);
    }
    return member->state == PD_MEMBER_LEAVING && member->gradient.micro_batches > 0 &&
           pd_member_settled(engine, member) &&
           (member->taken || lanes_agree(engine, &member->gradient));
}

bool pd_member_is_awaited(const struct pd_engine *engine, const struct pd_member *member)
{
    return (member->state == PD_MEMBER_ACTIVE && !pd_member_complete(engine, member)) ||
           (member->state == PD_MEMBER_LEAVING && !pd_member_settled(engine, member));
}

bool pd_member_gives_values(const struct pd_engine *engine, const struct pd_member *member)
{
    const struct pd_leader *leader = engine->leader;

    return member->state == PD_MEMBER_ACTIVE && leader->has_initializer &&
           leader->initializer == member->id && !leader->publish_ordered;
}

bool pd_member_estimates(const struct pd_engine *engine, const struct pd_member *member)
{
    return pd_member_contributes(engine, member) && is_whole(engine, &member->hessian) &&
           lanes_agree(engine, &member->hessian);
}

static void reset_given(struct pd_given *given)
{
    memset(given, 0, offsetof(struct pd_given, absent));
    given->absent.byte_count = 0;
}

void pd_member_reset(struct pd_member *member)
{
    reset_given(&member->gradient);
    reset_given(&member->hessian);
    member->admitted = false;
    member->taken = false;
}

/* ---- Leaving ---- */

static void order_departure(struct pd_engine *engine, const struct pd_member *member,
                            const char *reason)
{
    struct pd_leader *leader = engine->leader;
    struct pd_order *order = pd_leader_new_order(engine, PD_ORDER_DEPART);

    order->worker_id = member->id;
    snprintf(order->reason, sizeof order->reason, "%s", reason);
    if (pd_leader_foresees(leader, member->id)) {
        pd_leader_withdraw_ahead(leader);
    }
    if (leader->has_initializer && leader->initializer == member->id) {
        leader->has_initializer = false;
    }
    pd_leader_issue(engine);
}

void pd_member_leave(struct pd_engine *engine, struct pd_member *member,
                     const struct pd_leave *leave)
{
    if (member->state == PD_MEMBER_LEAVING) {
        return;
    }
    pd_actions_log(engine->actions,
                   "worker %u '%s' leaves before its push of step %" PRIu64 ", micro-batch %u",
                   member->id, member->name, leave->step, leave->micro_batch);
    member->state = PD_MEMBER_LEAVING;
    member->leave_ordered = false;
    member->registering = false;
    engine->leader->changed = true;
}

void pd_member_depart(struct pd_engine *engine, struct pd_member *member, const char *reason)
{
    pd_actions_log(engine->actions, "worker %u '%s' evicted at step %" PRIu64 ": %s", member->id,
                   member->name, engine->leader->step_next, reason);
    if (member->taken) {
        member->state = PD_MEMBER_LEAVING;
        member->leave_ordered = true;
        member->leave_index = engine->leader->order_next;
    } else {
        member->state = PD_MEMBER_NONE;
    }
    order_departure(engine, member, reason);
}

/* Whether initial values of it are on their way to this rank. */
static bool is_giving(const struct pd_engine *engine, const struct pd_member *member)
{
    const struct pd_worker *worker = pd_roster_find(engine->roster, member->id);

    return worker != NULL && worker->connection != PD_CONNECTION_NONE &&
           engine->sessions[worker->connection].payload == PD_SESSION_PAYLOAD_VALUES;
}

/* A worker that lives, and does not do what it alone can, is not waited for without end. */
static enum pd_status check_asked(const struct pd_engine *engine, const struct pd_member *member,
                                  struct pd_error *error)
{
    double limit_s = engine->config->workers.register_s;
    bool to_register = member->state == PD_MEMBER_JOINED && !member->registering;

    if ((to_register || (pd_member_gives_values(engine, member) && !is_giving(engine, member))) &&
        (double)(engine->now_ms - member->asked_ms) > limit_s * 1000.0) {
        return pd_error_set(error, PD_ETIMEOUT, "it did not %s within %g s (workers.register_s)",
                            to_register ? "register" : "give the initial values", limit_s);
    }
    return PD_OK;
}

/* Why a member's time is over, or PD_OK. One whose gradient counts stays until its step closes. */
static enum pd_status check_member(const struct pd_engine *engine, const struct pd_member *member,
                                   struct pd_error *error)
{
    double missing_s = (double)(engine->now_ms - member->missing_since_ms) / 1000.0;

    if (member->ranks_missing == 0 || pd_member_contributes(engine, member)) {
        return PD_OK;
    }
    if (member->expired) {
        return pd_error_set(error, PD_EIDENTITY, "%s", member->missing_text);
    }
    if (missing_s > engine->config->workers.resume_s) {
        return pd_error_set(error, PD_EIDENTITY, "%.300s, and it did not come back within %g s",
                            member->missing_text, engine->config->workers.resume_s);
    }
    return PD_OK;
}

/* Once every rank has carried out its depart order, all its pushes are reported: they count in the
 * next step if the lanes have got the same ones. */
static void advance_leaving(struct pd_engine *engine, struct pd_member *member)
{
    if (!member->leave_ordered) {
        member->leave_ordered = true;
        member->leave_index = engine->leader->order_next;
        order_departure(engine, member, "");
    } else if (!pd_member_settled(engine, member)) {
        return;
    } else if (member->gradient.micro_batches == 0) {
        member->state = PD_MEMBER_NONE;
    } else if (!member->taken && !lanes_agree(engine, &member->gradient)) {
        pd_member_depart(engine, member, "it left, and its last push did not reach every lane");
    }
}

/* Whether the worker it succeeds is still there. */
static bool name_is_held(const struct pd_engine *engine, const struct pd_member *member)
{
    const struct pd_leader *leader = engine->leader;

    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        const struct pd_member *other = &leader->members[slot];
        if (other != member && other->state != PD_MEMBER_NONE &&
            strcmp(other->name, member->name) == 0) {
            return true;
        }
    }
    return false;
}

static void advance_joining(struct pd_engine *engine, struct pd_member *member)
{
    struct pd_session *session = &engine->sessions[member->join_connection];
    struct pd_error error = {0};

    if (member->join_ordered) {
        if (pd_leader_executed_by_all(engine) > member->join_index) {
            finish_join(engine, member);
        }
    } else if (session->state != PD_SESSION_GUEST || session->serial != member->join_serial) {
        member->state = PD_MEMBER_NONE; /* it gave up before anybody knew it */
    } else if (claim_name(engine, member, member->name, &error) != PD_OK) {
        member->state = PD_MEMBER_NONE; /* the worker it was to succeed came back */
        session->joining = false;
        pd_session_refuse(engine, member->join_connection, &error, false);
    } else if (!name_is_held(engine, member)) {
        order_join(engine, member);
    }
}

static void advance_member(struct pd_engine *engine, struct pd_member *member)
{
    struct pd_error error;

    switch (member->state) {
    case PD_MEMBER_NONE:
        return;
    case PD_MEMBER_JOINING:
        advance_joining(engine, member);
        return;
    case PD_MEMBER_LEAVING:
        advance_leaving(engine, member);
        return;
    case PD_MEMBER_JOINED:
        advance_registration(engine, member);
        break;
    case PD_MEMBER_ACTIVE:
        break;
    }
    if (check_member(engine, member, &error) != PD_OK ||
        check_asked(engine, member, &error) != PD_OK) {
        pd_member_depart(engine, member, error.message);
    }
}

void pd_member_advance(struct pd_engine *engine)
{
    struct pd_leader *leader = engine->leader;

    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        advance_member(engine, &leader->members[slot]);
    }
}

void pd_member_forgive_silence(struct pd_engine *engine)
{
    struct pd_leader *leader = engine->leader;

    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        leader->members[slot].missing_since_ms = engine->now_ms;
        leader->members[slot].asked_ms = engine->now_ms;
    }
}
