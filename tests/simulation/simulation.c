#include "tests/simulation/simulation.h"

#include "common/heap.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATIENCE_US 60000000u

/* ---- What the cluster tells ---- */

static struct sim_worker *worker_called(struct sim_simulation *simulation, const char *name)
{
    for (uint32_t i = 0; i < simulation->plan->worker_count; i++) {
        if (strcmp(simulation->plan->workers[i].name, name) == 0) {
            return &simulation->workers[i];
        }
    }
    sim_fail(&simulation->agenda, "no worker is called '%s'", name);
}

/* A worker that pings loses its lease only when it has been silent: a rank must hear it whatever it
 * does with its push. */
static void check_lease(struct sim_simulation *simulation, const struct pd_order *order)
{
    uint64_t lease_us = (uint64_t)(simulation->config->workers.lease_s * 1e6);
    uint64_t now_us = simulation->agenda.now_us;

    for (uint32_t i = 0; i < simulation->plan->worker_count; i++) {
        const struct sim_worker *worker = &simulation->workers[i];
        bool present = worker->joined && worker->worker_id == order->worker_id;
        bool was_silent = worker->wake_us > 0 && now_us < worker->wake_us + 2 * lease_us;
        SIM_CHECK(&simulation->agenda, !present || was_silent,
                  "worker %u '%s' loses its lease, and has not been silent", order->worker_id,
                  worker->plan->name);
    }
}

static void on_order(void *context, struct sim_rank *rank, const struct pd_order *order)
{
    struct sim_simulation *simulation = context;

    if (rank->rank != 0) {
        return;
    }
    sim_trace(&simulation->agenda,
              "order %" PRIu64 " kind %d step %" PRIu64 " worker %u, %u contributors: %s",
              order->index, (int)order->kind, order->step, order->worker_id,
              order->contributor_count, order->reason);
    sim_ledger_order(&simulation->ledger, order);
    if (order->kind == PD_ORDER_DEPART && strstr(order->reason, "the lease is over") != NULL) {
        check_lease(simulation, order);
    }
    if (order->kind == PD_ORDER_REGISTER) {
        simulation->initializer = order->worker_id;
    } else if (order->kind == PD_ORDER_PUBLISH) {
        const char *name = sim_ledger_member(&simulation->ledger, simulation->initializer)->name;
        sim_oracle_begin(&simulation->oracle, worker_called(simulation, name)->initial);
        simulation->publish_count++;
    } else if (order->kind == PD_ORDER_HESSIAN) {
        sim_oracle_estimate(&simulation->oracle, order);
    } else if (order->kind == PD_ORDER_STEP) {
        sim_oracle_step(&simulation->oracle, order);
    } else if (order->kind == PD_ORDER_SNAPSHOT) {
        sim_oracle_keep(&simulation->oracle);
    } else if (order->kind == PD_ORDER_RESTORE) {
        sim_oracle_restore(&simulation->oracle, order);
    }
}

static void on_version(void *context, struct sim_rank *rank)
{
    struct sim_simulation *simulation = context;
    uint64_t version;
    uint64_t begin;
    uint64_t count;
    char where[16];
    const float *values = pd_engine_parameters(rank->engine, &version, &begin, &count);

    snprintf(where, sizeof where, "rank %u", rank->rank);
    sim_trace(&simulation->agenda, "rank %u serves version %" PRIu64, rank->rank, version);
    sim_oracle_check(&simulation->oracle, version, begin, count, PD_DTYPE_FLOAT32, values, where);
}

static void on_stored(void *context, struct sim_rank *rank, uint32_t worker_id,
                      const struct pd_push *push)
{
    struct sim_simulation *simulation = context;
    sim_ledger_stored(&simulation->ledger, worker_id, push,
                      rank->rank % simulation->cluster.lane_count);
}

static void on_undone(void *context, struct sim_rank *rank, uint32_t worker_id, uint64_t step)
{
    struct sim_simulation *simulation = context;
    sim_ledger_undone(&simulation->ledger, worker_id, step,
                      rank->rank % simulation->cluster.lane_count);
}

static void on_ended(void *context, struct sim_rank *rank)
{
    struct sim_simulation *simulation = context;

    if (rank->state == SIM_RANK_KILLED) {
        simulation->killed = true;
        return;
    }
    if (rank->state == SIM_RANK_EXITED) {
        return;
    }
    SIM_CHECK(&simulation->agenda, simulation->killed, "rank %u aborts: %s", rank->rank,
              rank->end_text);
    if (simulation->first_abort[0] == '\0') {
        snprintf(simulation->first_abort, sizeof simulation->first_abort, "%s", rank->end_text);
        simulation->first_abort_us = simulation->agenda.now_us;
    }
}

/* ---- The administrator ---- */

static uint64_t caller_asleep_us(void *owner)
{
    (void)owner;
    return 0;
}

static bool caller_opened(void *owner, struct sim_link *link, int side)
{
    struct sim_caller *caller = owner;
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO};
    struct pd_message admin = {.kind = PD_MESSAGE_ADMIN};
    const struct sim_command *command = caller->command;
    (void)side;

    snprintf(hello.hello.client, sizeof hello.hello.client, "administrator");
    sim_link_say(link, 0, &hello, NULL, 0, true);
    snprintf(admin.admin.command, sizeof admin.admin.command, "%s", command->command);
    snprintf(admin.admin.target, sizeof admin.admin.target, "%s", command->target);
    admin.admin.has_value = command->has_value;
    admin.admin.value = command->value;
    if (strcmp(command->command, "lr-find") == 0) {
        admin.admin.setting_count = 3;
        snprintf(admin.admin.settings[0], sizeof admin.admin.settings[0], "start=1e-4");
        snprintf(admin.admin.settings[1], sizeof admin.admin.settings[1], "end=0.02");
        snprintf(admin.admin.settings[2], sizeof admin.admin.settings[2], "steps=%" PRIu64,
                 command->steps);
    }
    sim_link_say(link, 0, &admin, NULL, 0, true);
    return true;
}

static void hang_up(void *context, uint64_t argument)
{
    struct sim_caller *caller = context;
    (void)argument;

    if (!caller->closed) {
        caller->closed = true;
        caller->link->ends[0].gone = true;
        sim_link_close(caller->link, 0, true);
    }
}

static void caller_message(void *owner, struct sim_link *link, int side,
                           const struct pd_message *message, uint64_t payload_bytes,
                           bool has_checksum)
{
    struct sim_caller *caller = owner;
    (void)side;
    (void)has_checksum;

    if (message->kind == PD_MESSAGE_ADMIN_REPLY) {
        caller->reply = sim_alloc(payload_bytes + 1, 1);
        caller->reply_bytes = payload_bytes;
        sim_link_place(link, 0, caller->reply, payload_bytes);
    } else if (message->kind == PD_MESSAGE_ERROR) {
        snprintf(caller->error, sizeof caller->error, "%s", message->error.text);
        caller->done = true;
        hang_up(caller, 0);
    }
}

/* An administrator's rate is in force from the step that the answer names. */
static void note_rate(struct sim_caller *caller)
{
    struct sim_oracle *oracle = &caller->simulation->oracle;
    const struct pd_config *config = caller->simulation->config;
    const struct sim_command *command = caller->command;
    const char *at = strstr(caller->reply, "\"step\":");
    double base = config->groups[0].hyper.lr;

    SIM_CHECK(oracle->agenda, at != NULL, "set-lr answers without a step: %s", caller->reply);
    for (uint32_t group = 0; group < config->group_count; group++) {
        bool all = command->target[0] == '\0';
        if (!all && strcmp(config->groups[group].name, command->target) != 0) {
            continue;
        }
        double ratio = all ? config->groups[group].hyper.lr / base : 1.0;
        oracle->overrides[oracle->override_count++] = (struct sim_override){
            .step = strtoull(at + strlen("\"step\":"), NULL, 10),
            .group = group,
            .lr = command->has_value ? command->value * ratio : NAN,
        };
    }
}

static void caller_payload(void *owner, struct sim_link *link, int side, bool checksum_ok)
{
    struct sim_caller *caller = owner;
    (void)link;
    (void)side;
    (void)checksum_ok;

    SIM_CHECK(&caller->simulation->agenda,
              caller->reply[0] == '{' && caller->reply[caller->reply_bytes - 1] == '}',
              "%s answers %s", caller->command->command, caller->reply);
    sim_trace(&caller->simulation->agenda, "%s: %s", caller->command->command, caller->reply);
    if (strcmp(caller->command->command, "set-lr") == 0) {
        note_rate(caller);
    }
    caller->done = true;
    sim_after(&caller->simulation->agenda, caller->command->after_us, hang_up, caller, 0);
}

static void caller_progress(void *owner, struct sim_link *link, int side, bool received,
                            uint64_t payload_bytes)
{
    (void)payload_bytes;
    (void)owner;
    (void)link;
    (void)side;
    (void)received;
}

static void caller_sent(void *owner, struct sim_link *link, int side)
{
    (void)owner;
    (void)link;
    (void)side;
}

static void caller_closed(void *owner, struct sim_link *link, int side, const char *why)
{
    struct sim_caller *caller = owner;
    (void)link;
    (void)side;

    snprintf(caller->error, sizeof caller->error, "%s", why);
    caller->done = true;
    caller->closed = true;
}

static const struct sim_end_calls caller_calls = {
    .asleep_us = caller_asleep_us,
    .opened = caller_opened,
    .message = caller_message,
    .payload = caller_payload,
    .progress = caller_progress,
    .sent = caller_sent,
    .closed = caller_closed,
};

struct sim_caller *sim_simulation_call(struct sim_simulation *simulation,
                                       const struct sim_command *command)
{
    struct sim_caller *caller = &simulation->callers[simulation->caller_count++];
    struct sim_end opener = {.calls = &caller_calls, .owner = caller};
    struct sim_end acceptor = sim_rank_end(&simulation->cluster.ranks[0]);

    caller->simulation = simulation;
    caller->command = command;
    if (strcmp(command->command, "drain") == 0 || strcmp(command->command, "stop") == 0) {
        simulation->drained = true;
    }
    caller->link = sim_connect(&simulation->network, &opener, &acceptor, false);
    return caller;
}

static bool callers_done(const struct sim_simulation *simulation)
{
    for (uint32_t i = 0; i < simulation->caller_count; i++) {
        if (!simulation->callers[i].done) {
            return false;
        }
    }
    return true;
}

/* One call at a time: of two, nobody could say which came first. The last one, which lets go on
 * what was paused, comes last however long another had to wait. */
static void call_planned(void *context, uint64_t index)
{
    struct sim_simulation *simulation = context;

    if (simulation->drained || simulation->killed) {
        return;
    }
    bool is_last = index + 1 == simulation->plan->command_count;
    if (!callers_done(simulation) || (is_last && simulation->caller_count < index)) {
        sim_after(&simulation->agenda, 1000, call_planned, simulation, index);
        return;
    }
    sim_simulation_call(simulation, &simulation->plan->commands[index]);
}

/* ---- Misfortunes of ranks ---- */

static void kill_rank(void *context, uint64_t argument)
{
    struct sim_simulation *simulation = context;
    (void)argument;

    if (!simulation->drained) {
        sim_rank_kill(&simulation->cluster.ranks[simulation->plan->kill_rank]);
    }
}

static void stop_rank(void *context, uint64_t argument)
{
    struct sim_simulation *simulation = context;
    (void)argument;
    sim_rank_stop(&simulation->cluster.ranks[simulation->plan->stop_rank],
                  simulation->plan->stop_for_us);
}

/* ---- Life ---- */

static void init_ledger(struct sim_simulation *simulation)
{
    const struct sim_plan *plan = simulation->plan;
    struct pd_shard_plan *shards;
    struct pd_error error = {0};

    sim_ledger_init(&simulation->ledger, &simulation->agenda, &plan->model, plan->data_seed);
    simulation->ledger.report_us_max = 1000000;
    if (pd_shard_plan_create(&shards, &plan->model, (uint32_t)simulation->config->block_size,
                             plan->rank_count, simulation->cluster.lane_count, &error) != PD_OK) {
        sim_fail(&simulation->agenda, "%s", error.message);
    }
    for (uint32_t lane = 0; lane < simulation->cluster.lane_count; lane++) {
        if (shards->lanes[lane].element_count > 0) {
            simulation->ledger.needed_lanes |= 1ull << lane;
        }
    }
    pd_shard_plan_destroy(shards);
}

/* Every worker would begin with other values, so that a mixture shows. */
static void init_worker(struct sim_simulation *simulation, uint32_t index)
{
    uint64_t count = simulation->plan->model.element_count;
    float *initial = sim_alloc(count, sizeof *initial);

    for (uint64_t i = 0; i < count; i++) {
        uint64_t drawn = sim_mix(simulation->plan->data_seed, sim_mix(index, i)) >> 11;
        initial[i] = (float)(0.5 + (double)drawn * 0x1p-53) * (drawn & 1u ? 1.0f : -1.0f);
    }
    simulation->initial[index] = initial;
    sim_worker_init(&simulation->workers[index], &simulation->agenda, &simulation->network,
                    &simulation->cluster, &simulation->ledger, &simulation->oracle,
                    &simulation->plan->workers[index], initial, &simulation->drained);
}

void sim_simulation_init(struct sim_simulation *simulation, const struct sim_plan *plan)
{
    struct pd_error error = {0};

    memset(simulation, 0, sizeof *simulation);
    simulation->blocks_live = pd_heap_blocks_live();
    simulation->plan = plan;
    sim_agenda_init(&simulation->agenda, plan->seed);
    sim_blame(&simulation->agenda);
    if (pd_config_create(&simulation->config, "plan", plan->config, NULL, 0, &error) != PD_OK) {
        sim_fail(&simulation->agenda, "%s\n%s", error.message, plan->config);
    }
    sim_network_init(&simulation->network, &simulation->agenda);
    simulation->network.delay_us_max = plan->delay_us_max;
    simulation->network.straggle_one_in = plan->straggle_one_in;
    simulation->network.cut_one_in = plan->cut_one_in;
    simulation->network.damage_one_in = plan->damage_one_in;
    simulation->network.notice_us_max = plan->notice_us_max;
    sim_cluster_init(&simulation->cluster, &simulation->agenda, &simulation->network,
                     simulation->config, plan->rank_count);
    simulation->cluster.work_us_max = plan->work_us_max;
    init_ledger(simulation);
    sim_oracle_init(&simulation->oracle, &simulation->agenda, &simulation->ledger,
                    simulation->config, &plan->model,
                    plan->rank_count / simulation->cluster.lane_count);
    simulation->cluster.observer = (struct sim_observer){.context = simulation,
                                                         .order = on_order,
                                                         .version = on_version,
                                                         .stored = on_stored,
                                                         .undone = on_undone,
                                                         .ended = on_ended};
    for (uint32_t i = 0; i < plan->worker_count; i++) {
        init_worker(simulation, i);
    }
    sim_cluster_start(&simulation->cluster);
    for (uint32_t i = 0; i < plan->worker_count; i++) {
        sim_worker_start(&simulation->workers[i]);
    }
    for (uint32_t i = 0; i < plan->command_count; i++) {
        sim_after(&simulation->agenda, plan->commands[i].time_us, call_planned, simulation, i);
    }
    if (plan->kill_us > 0) {
        sim_after(&simulation->agenda, plan->kill_us, kill_rank, simulation, 0);
    }
    if (plan->stop_us > 0) {
        sim_after(&simulation->agenda, plan->stop_us, stop_rank, simulation, 0);
    }
}

void sim_simulation_finish(struct sim_simulation *simulation)
{
    sim_cluster_finish(&simulation->cluster);
    for (uint32_t i = 0; i < simulation->plan->worker_count; i++) {
        sim_worker_finish(&simulation->workers[i]);
        free(simulation->initial[i]);
    }
    for (uint32_t i = 0; i < simulation->caller_count; i++) {
        free(simulation->callers[i].reply);
    }
    sim_oracle_finish(&simulation->oracle);
    sim_ledger_finish(&simulation->ledger);
    sim_network_finish(&simulation->network);
    pd_config_destroy(simulation->config);
    SIM_CHECK(&simulation->agenda, pd_heap_blocks_live() == simulation->blocks_live,
              "%zu blocks of memory are lost", pd_heap_blocks_live() - simulation->blocks_live);
    sim_blame(NULL);
    sim_agenda_finish(&simulation->agenda);
}

/* ---- The run ---- */

void sim_simulation_run_until(struct sim_simulation *simulation, uint64_t until_us)
{
    while (simulation->agenda.count > 0 && simulation->agenda.entries[0].time_us <= until_us) {
        (void)sim_agenda_next(&simulation->agenda);
    }
    simulation->agenda.now_us = until_us;
}

static uint32_t workers_at_work(const struct sim_simulation *simulation)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < simulation->plan->worker_count; i++) {
        count += simulation->workers[i].phase != SIM_PHASE_DONE;
    }
    return count;
}

/* Nothing hangs: say who does. */
static void check_time(struct sim_simulation *simulation, uint64_t limit_us, const char *what)
{
    char text[1024] = "";
    size_t used = 0;

    if (simulation->agenda.now_us <= limit_us) {
        return;
    }
    for (uint32_t i = 0; i < simulation->plan->worker_count && used < sizeof text; i++) {
        const struct sim_worker *worker = &simulation->workers[i];
        used += (size_t)snprintf(text + used, sizeof text - used,
                                 "; worker '%s' (%u) is %s at step %" PRIu64 ", batch %u",
                                 worker->plan->name, worker->worker_id,
                                 sim_phase_name(worker->phase), worker->step, worker->micro_batch);
    }
    for (uint32_t i = 0; i < simulation->plan->rank_count && used < sizeof text; i++) {
        const struct sim_rank *rank = &simulation->cluster.ranks[i];
        used += (size_t)snprintf(text + used, sizeof text - used,
                                 "; rank %u is in state %d at version %" PRIu64, i,
                                 (int)rank->state, rank->version);
    }
    sim_fail(&simulation->agenda, "%s hangs%s", what, text);
}

/* A rank has died: all others end soon, the first with a message that names it. */
static void finish_killed(struct sim_simulation *simulation)
{
    struct sim_agenda *agenda = &simulation->agenda;
    uint64_t limit_us = agenda->now_us + PATIENCE_US;
    char name[16];

    while (sim_cluster_count(&simulation->cluster, SIM_RANK_RUNNING) > 0 &&
           sim_agenda_next(agenda)) {
        check_time(simulation, limit_us, "the end of a job that lost a rank");
    }
    snprintf(name, sizeof name, "rank %u ", simulation->plan->kill_rank);
    SIM_CHECK(agenda, strstr(simulation->first_abort, name) != NULL,
              "rank %u died, and the others say: %s", simulation->plan->kill_rank,
              simulation->first_abort);
}

static void finish_drained(struct sim_simulation *simulation)
{
    struct sim_agenda *agenda = &simulation->agenda;
    uint64_t limit_us = agenda->now_us + PATIENCE_US;

    while ((sim_cluster_count(&simulation->cluster, SIM_RANK_RUNNING) > 0 ||
            workers_at_work(simulation) > 0 || !callers_done(simulation)) &&
           sim_agenda_next(agenda)) {
        check_time(simulation, limit_us, "the drain");
        if (simulation->killed) {
            finish_killed(simulation);
            return;
        }
    }
    sim_cluster_check_orders(&simulation->cluster);
    sim_ledger_check(&simulation->ledger);
    sim_oracle_check_rates(&simulation->oracle);
}

void sim_simulation_run(struct sim_simulation *simulation)
{
    const struct sim_plan *plan = simulation->plan;
    uint64_t drain_us =
        plan->drained_early ? sim_between(&simulation->agenda, 1000000, 5000000) : UINT64_MAX;

    while ((workers_at_work(simulation) > 0 || !callers_done(simulation)) &&
           simulation->agenda.now_us < drain_us && !simulation->killed &&
           sim_agenda_next(&simulation->agenda)) {
        check_time(simulation, plan->time_us_max, "the run");
    }
    if (simulation->killed) {
        finish_killed(simulation);
        return;
    }
    snprintf(simulation->drain.command, sizeof simulation->drain.command, "drain");
    sim_simulation_call(simulation, &simulation->drain);
    finish_drained(simulation);
}

uint64_t sim_simulate(const struct sim_plan *plan)
{
    struct sim_simulation *simulation = sim_alloc(1, sizeof *simulation);

    sim_simulation_init(simulation, plan);
    sim_simulation_run(simulation);
    uint64_t steps = simulation->ledger.steps_closed;
    sim_simulation_finish(simulation);
    free(simulation);
    return steps;
}
