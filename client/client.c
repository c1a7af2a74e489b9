/* Connecting, joining, leaving and asking: what a handle does with rank 0. */
#include "client/handle.h"

#include "client/socket.h"
#include "common/heap.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define PD_ADDRESS_DEFAULT "127.0.0.1:7070"
#define PD_TIMEOUT_MS_DEFAULT 60000
#define PD_CONNECT_TIMEOUT_MS_DEFAULT 10000
#define PD_BUSY_POLL_US_DEFAULT 50
#define PD_BUSY_POLL_US_MAX 10000

_Static_assert((int)PARAMD_EDUPLICATE == (int)PD_EDUPLICATE, "statuses are those of the protocol");
_Static_assert((int)PARAMD_EINTERRUPTED == (int)PD_STATUS_INTERRUPTED, "one number for both");
_Static_assert((int)PARAMD_FLOAT16 == (int)PD_DTYPE_FLOAT16, "types are those of the protocol");
_Static_assert(sizeof(((struct paramd_error *)NULL)->message) == PD_ERROR_BYTES_MAX,
               "a message fits whole");

void paramd_options_init(struct paramd_options *options)
{
    const char *server = getenv("PARAMD_SERVER");

    memset(options, 0, sizeof *options);
    options->address = server != NULL && server[0] != '\0' ? server : PD_ADDRESS_DEFAULT;
    options->push_dtype = PARAMD_FLOAT32;
    options->pull_dtype = PARAMD_FLOAT32;
    options->checksum = 1;
    options->timeout_ms = PD_TIMEOUT_MS_DEFAULT;
    options->connect_timeout_ms = PD_CONNECT_TIMEOUT_MS_DEFAULT;
    options->busy_poll_us = PD_BUSY_POLL_US_DEFAULT;
}

enum paramd_status pd_client_result(const struct pd_error *fault, struct paramd_error *error)
{
    if (error != NULL) {
        error->status = (int)fault->status;
        memcpy(error->message, fault->message, sizeof error->message);
    }
    return (enum paramd_status)fault->status;
}

bool pd_client_enter(struct paramd_client *client, const char *name, struct pd_error *error)
{
    if (client->overlap.begun) {
        pd_error_set(error, PD_EINVALID, "%s: a step has begun: end or cancel it first", name);
        return false;
    }
    pthread_mutex_lock(&client->lock);
    return true;
}

struct pd_call pd_client_call(const struct paramd_client *client, const char *name)
{
    uint64_t now_ms = pd_clock_ms();
    uint64_t deadline_ms =
        client->timeout_ms < 0 ? PD_NEVER_MS : now_ms + (uint64_t)client->timeout_ms;

    return (struct pd_call){.name = name,
                            .start_ms = now_ms,
                            .deadline_ms = deadline_ms,
                            .connect_deadline_ms = deadline_ms};
}

enum pd_status pd_client_ask_leader(struct paramd_client *client, const struct pd_call *call,
                                    struct pd_request *request, struct pd_error *error)
{
    struct pd_connection *connection;
    enum pd_status status =
        pd_exchange_connection(&client->exchange, 0, client->leader, &connection, error);

    if (status != PD_OK) {
        return status;
    }
    connection->request = request;
    return pd_exchange_run(&client->exchange, call, error);
}

/* ---- Connecting ---- */

static enum pd_status check_options(const struct paramd_options *options, struct pd_error *error)
{
    if (options->address == NULL || strlen(options->address) > PD_ADDRESS_BYTES_MAX) {
        return pd_error_set(error, PD_EINVALID,
                            "connect: an address of host:port is needed, at most %u bytes",
                            PD_ADDRESS_BYTES_MAX);
    }
    if (options->name != NULL && strlen(options->name) > PD_NAME_BYTES_MAX) {
        return pd_error_set(error, PD_EINVALID, "connect: a name of %zu bytes; allowed: up to %u",
                            strlen(options->name), PD_NAME_BYTES_MAX);
    }
    if (options->push_dtype < 0 || !pd_dtype_valid((uint32_t)options->push_dtype) ||
        options->pull_dtype < 0 || !pd_dtype_valid((uint32_t)options->pull_dtype)) {
        return pd_error_set(error, PD_EINVALID,
                            "connect: dtypes %d and %d; allowed: 0 float32, 1 bfloat16, 2 float16",
                            options->push_dtype, options->pull_dtype);
    }
    if (options->busy_poll_us < 0 || options->busy_poll_us > PD_BUSY_POLL_US_MAX) {
        return pd_error_set(error, PD_EINVALID,
                            "connect: busy_poll_us of %d; allowed: 0 to %d microseconds",
                            options->busy_poll_us, PD_BUSY_POLL_US_MAX);
    }
    return PD_OK;
}

static enum pd_status create(struct paramd_client **out, const struct paramd_options *options,
                             struct pd_error *error)
{
    pthread_condattr_t monotonic;
    struct paramd_client *client = pd_heap_zalloc(1, sizeof *client);

    *out = NULL;
    if (client == NULL) {
        return pd_error_set(error, PD_ENOMEM, "connect: out of memory for a handle");
    }
    pd_exchange_init(&client->exchange, (uint64_t)options->busy_poll_us * 1000);
    client->exchange.checksum = options->checksum != 0;
    client->exchange.interrupted = options->interrupted;
    client->exchange.interrupted_context = options->interrupted_context;
    client->timeout_ms = options->timeout_ms;
    client->push_dtype = (enum pd_dtype)options->push_dtype;
    client->pull_dtype = (enum pd_dtype)options->pull_dtype;
    pthread_mutex_init(&client->lock, NULL);
    pthread_mutex_init(&client->overlap.lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&client->stop, &monotonic);
    pthread_cond_init(&client->overlap.ended, &monotonic);
    pthread_condattr_destroy(&monotonic);
    *out = client;
    return PD_OK;
}

/* Whoever answers at the address says where rank 0 is. */
static enum pd_status find_leader(struct paramd_client *client, const char *address,
                                  const struct pd_call *call, struct pd_error *error)
{
    struct pd_exchange *exchange = &client->exchange;
    struct pd_connection *connection;
    struct pd_request greet;

    enum pd_status status = pd_exchange_contact(exchange, address, &connection, error);
    if (status != PD_OK) {
        return status;
    }
    pd_request_init_greet(&greet);
    connection->request = &greet;
    status = pd_exchange_run(exchange, call, error);
    if (status != PD_OK) {
        return status;
    }
    /* The address that worked is kept for rank 0 itself, whatever it calls itself. */
    snprintf(client->leader, sizeof client->leader, "%s",
             connection->rank == 0 ? address : exchange->welcome.leader);
    client->run_id = exchange->welcome.run_id;
    client->rank_count = exchange->welcome.rank_count;
    if (connection->rank != 0) {
        pd_exchange_drop(exchange, connection);
    }
    return PD_OK;
}

static enum pd_status join(struct paramd_client *client, const char *name,
                           const struct pd_call *call, struct pd_error *error)
{
    struct pd_request request;
    uint64_t nonce;

    if (getrandom(&nonce, sizeof nonce, 0) != (ssize_t)sizeof nonce) {
        return pd_error_set(error, PD_EIO, "the kernel gives no random number");
    }
    pd_request_init_join(&request, name != NULL ? name : "", nonce);
    enum pd_status status = pd_client_ask_leader(client, call, &request, error);
    if (status != PD_OK) {
        return status;
    }
    client->exchange.worker = request.joined;
    client->exchange.joined = true;
    client->exchange.run_id = client->exchange.welcome.run_id;
    return pd_keeper_start(client, error);
}

enum paramd_status paramd_connect(const struct paramd_options *options, struct paramd_client **out,
                                  struct paramd_error *error)
{
    struct pd_error fault = {0};
    struct paramd_client *client = NULL;

    *out = NULL;
    enum pd_status status = check_options(options, &fault);
    if (status == PD_OK) {
        status = create(&client, options, &fault);
    }
    if (status != PD_OK) {
        return pd_client_result(&fault, error);
    }
    struct pd_call call = pd_client_call(client, "connect");
    uint64_t connect_deadline_ms =
        call.start_ms +
        (uint64_t)(options->connect_timeout_ms > 0 ? options->connect_timeout_ms : 0);
    if (connect_deadline_ms < call.connect_deadline_ms) {
        call.connect_deadline_ms = connect_deadline_ms;
    }
    status = find_leader(client, options->address, &call, &fault);
    if (status == PD_OK && !options->observer) {
        call.name = "join";
        status = join(client, options->name, &call, &fault);
    }
    if (status != PD_OK) {
        paramd_close(client);
        return pd_client_result(&fault, error);
    }
    *out = client;
    return pd_client_result(&fault, error);
}

/* ---- Leaving ---- */

static enum pd_status leave(struct paramd_client *client, struct pd_error *error)
{
    struct pd_call call = pd_client_call(client, "leave");
    struct pd_request request;

    if (!client->exchange.joined) {
        return PD_OK;
    }
    pd_request_init_leave(&request, client->next);
    enum pd_status status = pd_client_ask_leader(client, &call, &request, error);
    if (status == PD_OK) {
        client->exchange.joined = false;
        client->registered = false;
    }
    return status;
}

enum paramd_status paramd_leave(struct paramd_client *client, struct paramd_error *error)
{
    struct pd_error fault = {0};

    if (!pd_client_enter(client, "leave", &fault)) {
        return pd_client_result(&fault, error);
    }
    enum pd_status status = leave(client, &fault);
    pthread_mutex_unlock(&client->lock);
    (void)status;
    return pd_client_result(&fault, error);
}

void paramd_close(struct paramd_client *client)
{
    if (client == NULL) {
        return;
    }
    pd_overlap_finish(client);
    pd_keeper_stop(client);
    pd_exchange_finish(&client->exchange);
    pd_tensor_list_finish(&client->model);
    pthread_cond_destroy(&client->overlap.ended);
    pthread_cond_destroy(&client->stop);
    pthread_mutex_destroy(&client->overlap.lock);
    pthread_mutex_destroy(&client->lock);
    pd_heap_free(client);
}

/* ---- Metrics ---- */

static enum pd_status report_metric(struct paramd_client *client, const char *name, double value,
                                    uint64_t step, struct pd_error *error)
{
    struct pd_metric metric = {.value = value, .step = step};
    struct pd_request request;

    if (name == NULL || name[0] == '\0' || strlen(name) > PD_NAME_BYTES_MAX) {
        return pd_error_set(error, PD_EINVALID,
                            "report_metric: the name is a text of 1 to %u bytes",
                            PD_NAME_BYTES_MAX);
    }
    snprintf(metric.name, sizeof metric.name, "%s", name);
    struct pd_call call = pd_client_call(client, "report_metric");
    pd_request_init_metric(&request, &metric);
    return pd_client_ask_leader(client, &call, &request, error);
}

enum paramd_status paramd_report_metric(struct paramd_client *client, const char *name,
                                        double value, uint64_t step, struct paramd_error *error)
{
    struct pd_error fault = {0};

    if (!pd_client_enter(client, "report_metric", &fault)) {
        return pd_client_result(&fault, error);
    }
    enum pd_status status = report_metric(client, name, value, step, &fault);
    pthread_mutex_unlock(&client->lock);
    (void)status;
    return pd_client_result(&fault, error);
}

/* ---- Admin ---- */

static enum pd_status fill_settings(struct pd_admin *admin, const char *const *settings,
                                    struct pd_error *error)
{
    for (; settings != NULL && *settings != NULL; settings++) {
        if (admin->setting_count == PD_ADMIN_SETTING_COUNT_MAX ||
            strlen(*settings) > PD_NAME_BYTES_MAX) {
            return pd_error_set(error, PD_EINVALID,
                                "admin: settings are at most %u texts of at most %u bytes",
                                PD_ADMIN_SETTING_COUNT_MAX, PD_NAME_BYTES_MAX);
        }
        snprintf(admin->settings[admin->setting_count], sizeof admin->settings[0], "%s", *settings);
        admin->setting_count++;
    }
    return PD_OK;
}

static enum pd_status fill_admin(struct pd_admin *admin, const struct paramd_command *command,
                                 struct pd_error *error)
{
    const char *target = command->target != NULL ? command->target : "";

    memset(admin, 0, sizeof *admin);
    if (command->command == NULL || strlen(command->command) > PD_NAME_BYTES_MAX ||
        strlen(target) > PD_NAME_BYTES_MAX) {
        return pd_error_set(error, PD_EINVALID,
                            "admin: command and target are texts of at most %u bytes",
                            PD_NAME_BYTES_MAX);
    }
    snprintf(admin->command, sizeof admin->command, "%s", command->command);
    snprintf(admin->target, sizeof admin->target, "%s", target);
    admin->has_value = command->has_value != 0;
    admin->value = command->value;
    admin->begin = command->begin;
    admin->count = command->count;
    return fill_settings(admin, command->settings, error);
}

static enum pd_status admin(struct paramd_client *client, const struct paramd_command *command,
                            char **json, struct pd_error *error)
{
    struct pd_admin message;
    struct pd_request request;

    enum pd_status status = fill_admin(&message, command, error);
    if (status != PD_OK) {
        return status;
    }
    struct pd_call call = pd_client_call(client, "admin");
    pd_request_init_admin(&request, &message);
    status = pd_client_ask_leader(client, &call, &request, error);
    if (status != PD_OK) {
        pd_heap_free(request.reply);
        return status;
    }
    *json = request.reply;
    return PD_OK;
}

enum paramd_status paramd_admin(struct paramd_client *client, const struct paramd_command *command,
                                char **json, struct paramd_error *error)
{
    struct pd_error fault = {0};

    *json = NULL;
    if (!pd_client_enter(client, "admin", &fault)) {
        return pd_client_result(&fault, error);
    }
    enum pd_status status = admin(client, command, json, &fault);
    pthread_mutex_unlock(&client->lock);
    (void)status;
    return pd_client_result(&fault, error);
}

void paramd_free(void *memory)
{
    pd_heap_free(memory);
}

/* ---- What the handle knows ---- */

void paramd_set_timeout(struct paramd_client *client, int64_t timeout_ms)
{
    client->timeout_ms = timeout_ms;
}

uint32_t paramd_worker_id(const struct paramd_client *client)
{
    return client->exchange.worker.worker_id;
}

const char *paramd_worker_name(const struct paramd_client *client)
{
    return client->exchange.worker.name;
}

uint64_t paramd_run_id(const struct paramd_client *client)
{
    return client->run_id;
}

uint64_t paramd_next_step(const struct paramd_client *client)
{
    return client->next.step;
}

double paramd_loss_scale(const struct paramd_client *client)
{
    return client->loss_scale > 0.0 ? client->loss_scale : 1.0;
}

uint32_t paramd_next_micro_batch(const struct paramd_client *client)
{
    return client->next.micro_batch;
}

uint32_t paramd_accumulation_steps(const struct paramd_client *client)
{
    uint32_t steps = client->exchange.worker.accumulation_steps;
    return steps > 0 ? steps : 1;
}

uint32_t paramd_group_count(const struct paramd_client *client)
{
    return client->lr_count;
}

double paramd_group_lr(const struct paramd_client *client, uint32_t index)
{
    return client->lrs[index];
}

uint32_t paramd_rank_count(const struct paramd_client *client)
{
    return client->rank_count;
}

uint32_t paramd_tensor_count(const struct paramd_client *client)
{
    return client->model.count;
}

struct paramd_tensor paramd_tensor_at(const struct paramd_client *client, uint32_t index)
{
    const struct pd_tensor *tensor = &client->model.tensors[index];
    return (struct paramd_tensor){
        .name = tensor->name, .dimension_count = tensor->dimension_count, .shape = tensor->shape};
}

uint32_t paramd_lane_count(const struct paramd_client *client)
{
    return client->lanes.lane_count;
}

struct paramd_lane paramd_lane_at(const struct paramd_client *client, uint32_t index)
{
    const struct pd_lane *lane = &client->lanes.lanes[index];
    return (struct paramd_lane){.rank = lane->rank,
                                .address = lane->address,
                                .element_begin = lane->element_begin,
                                .element_count = lane->element_count};
}

const char *paramd_status_name(int status)
{
    return status == PARAMD_EINTERRUPTED ? "interrupted" : pd_status_name((enum pd_status)status);
}

const char *paramd_library_version(void)
{
    return PARAMD_VERSION;
}
