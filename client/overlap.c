/* Sending gradients while the program computes the rest of them.
 * paramd.h -> [overlap] -> training. The call that pushes and pulls is the ordinary one, carried
 * out in a thread; a gate in its payload holds back what is not final yet. */
#include "client/handle.h"

#include "client/socket.h"
#include "client/thread.h"
#include "common/assert.h"

#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* How often a program that waits for the end is asked whether it still wants to. */
#define PD_OVERLAP_POLL_NS 100000000

static int is_cancelled(void *context)
{
    const struct pd_overlap *overlap = context;
    return atomic_load(&overlap->cancelled);
}

static void wake(const struct paramd_client *client)
{
    (void)eventfd_write(client->exchange.wake, 1);
}

static void run(struct paramd_client *client)
{
    struct pd_overlap *overlap = &client->overlap;
    struct pd_exchange *exchange = &client->exchange;

    exchange->interrupted = is_cancelled;
    exchange->interrupted_context = overlap;
    enum pd_status status =
        pd_client_run_push(client, &overlap->call, &overlap->push, &overlap->fault);
    exchange->interrupted = overlap->ask;
    exchange->interrupted_context = overlap->ask_context;
    if (status == PD_OK) {
        pd_client_fill_info(client, &overlap->push, &overlap->info);
    }
}

static void *overlap_main(void *argument)
{
    struct paramd_client *client = argument;
    struct pd_overlap *overlap = &client->overlap;

    pthread_mutex_lock(&client->lock);
    run(client);
    pthread_mutex_unlock(&client->lock);
    pthread_mutex_lock(&overlap->lock);
    overlap->has_ended = true;
    pthread_cond_signal(&overlap->ended);
    pthread_mutex_unlock(&overlap->lock);
    return NULL;
}

static enum pd_status start_thread(struct paramd_client *client, struct pd_error *error)
{
    struct pd_overlap *overlap = &client->overlap;
    if (client->exchange.wake < 0) {
        client->exchange.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
    if (client->exchange.wake < 0) {
        return pd_error_set(error, PD_ENOMEM, "step: no eventfd to wake its thread");
    }
    overlap->has_ended = false;
    enum pd_status status =
        pd_thread_start(&overlap->thread, overlap_main, client, "to send with", error);
    overlap->begun = status == PD_OK;
    return status == PD_OK ? PD_OK : pd_error_prefix(error, "step");
}

static enum pd_status prepare(struct paramd_client *client, const float *const *gradients,
                              uint64_t samples, const double *loss, unsigned flags,
                              float *const *values, struct pd_error *error)
{
    struct pd_overlap *overlap = &client->overlap;
    struct pd_request_arrays arrays = {
        .model = &client->model, .sources = gradients, .targets = values, .gate = &overlap->gate};

    enum pd_status status =
        pd_client_check_registered(client, "step", values == NULL ? NULL : gradients, error);
    if (status != PD_OK) {
        return status;
    }
    atomic_store(&overlap->gate.elements, 0);
    atomic_store(&overlap->gate.opened_ms, 0);
    atomic_store(&overlap->cancelled, false);
    memset(&overlap->fault, 0, sizeof overlap->fault);
    overlap->ask = client->exchange.interrupted;
    overlap->ask_context = client->exchange.interrupted_context;
    overlap->push = pd_client_describe_push(client, samples, loss, flags);
    overlap->call = pd_client_call(client, "step");
    overlap->call.gate = &overlap->gate;
    pd_client_prepare_push(client, &arrays, &overlap->push);
    return PD_OK;
}

enum paramd_status paramd_step_begin(struct paramd_client *client, const float *const *gradients,
                                     uint64_t samples, const double *loss, unsigned flags,
                                     float *const *values, struct paramd_error *error)
{
    struct pd_error fault = {0};

    if (!pd_client_enter(client, "step", &fault)) {
        return pd_client_result(&fault, error);
    }
    enum pd_status status = prepare(client, gradients, samples, loss, flags, values, &fault);
    pthread_mutex_unlock(&client->lock);
    if (status == PD_OK) {
        status = start_thread(client, &fault);
    }
    (void)status;
    return pd_client_result(&fault, error);
}

void paramd_step_ready(struct paramd_client *client, uint32_t tensor_count)
{
    struct pd_gate *gate = &client->overlap.gate;
    const struct pd_tensor_list *model = &client->model;

    if (!client->overlap.begun) {
        return;
    }
    uint64_t elements = tensor_count < model->count ? model->tensors[tensor_count].element_begin
                                                    : model->element_count;
    if (elements > atomic_load(&gate->elements)) {
        atomic_store_explicit(&gate->elements, elements, memory_order_release);
        wake(client);
    }
}

/* Whether it ended before the program is to be asked again. */
static bool wait_a_while(struct pd_overlap *overlap)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += PD_OVERLAP_POLL_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&overlap->lock);
    while (!overlap->has_ended &&
           pthread_cond_timedwait(&overlap->ended, &overlap->lock, &until) == 0) {
    }
    bool has_ended = overlap->has_ended;
    pthread_mutex_unlock(&overlap->lock);
    return has_ended;
}

static void cancel(struct paramd_client *client)
{
    atomic_store(&client->overlap.cancelled, true);
    wake(client);
}

static void join(struct paramd_client *client)
{
    pthread_join(client->overlap.thread, NULL);
    client->overlap.begun = false;
}

enum paramd_status paramd_step_end(struct paramd_client *client, struct paramd_step_info *info,
                                   struct paramd_error *error)
{
    struct pd_overlap *overlap = &client->overlap;
    struct pd_error fault = {0};

    if (!overlap->begun) {
        pd_error_set(&fault, PD_EINVALID, "step: none has begun");
        return pd_client_result(&fault, error);
    }
    atomic_store_explicit(&overlap->gate.opened_ms, pd_clock_ms(), memory_order_release);
    wake(client);
    while (!wait_a_while(overlap)) {
        if (overlap->ask != NULL && overlap->ask(overlap->ask_context) != 0) {
            cancel(client);
        }
    }
    join(client);
    if (info != NULL && overlap->fault.status == PD_OK) {
        *info = overlap->info;
    }
    return pd_client_result(&overlap->fault, error);
}

void paramd_step_cancel(struct paramd_client *client)
{
    if (client->overlap.begun) {
        cancel(client);
        join(client);
    }
}

void pd_overlap_finish(struct paramd_client *client)
{
    paramd_step_cancel(client);
    if (client->exchange.wake >= 0) {
        close(client->exchange.wake);
        client->exchange.wake = -1;
    }
}
