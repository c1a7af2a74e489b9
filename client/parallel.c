#include "client/parallel.h"

#include "client/thread.h"
#include "common/heap.h"

#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

/* Fewer elements than this on every connection are not worth a thread. */
#define ELEMENT_COUNT_MIN (256u * 1024u)

/* What the parts of one call have in common. */
struct common {
    const struct pd_call *call;
    _Atomic bool failed; /* a part has: the others stop */
    int (*interrupted)(void *context);
    void *interrupted_context;
};

/* Some connections of the call, with a copy of what they share; the thread's until it is joined. */
struct part {
    struct common *common;
    struct pd_exchange exchange;
    enum pd_status status;
    struct pd_error error;
    pthread_t thread;
    bool started;
};

static int has_failed(void *context)
{
    const struct common *common = context;
    return atomic_load(&common->failed);
}

/* The program is asked in its own thread alone. */
static int has_failed_or_ask(void *context)
{
    const struct common *common = context;
    return atomic_load(&common->failed) ||
           (common->interrupted != NULL && common->interrupted(common->interrupted_context) != 0);
}

static void *run_part(void *argument)
{
    struct part *part = argument;

    part->status = pd_exchange_run(&part->exchange, part->common->call, &part->error);
    if (part->status != PD_OK) {
        atomic_store(&part->common->failed, true);
    }
    return NULL;
}

uint32_t pd_parallel_thread_count(uint32_t lane_count, uint32_t core_count, uint32_t sharer_count)
{
    uint32_t share = sharer_count > 1 ? core_count / sharer_count : core_count;

    share = share > 1 ? share : 1;
    return lane_count < share ? lane_count : share;
}

static uint32_t count_parts(const struct pd_exchange *exchange, const struct pd_call *call,
                            uint32_t host_workers)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < exchange->connection_count && call->gate == NULL; i++) {
        const struct pd_request *request = exchange->connections[i]->request;
        count += request != NULL && request->lane.element_count >= ELEMENT_COUNT_MIN;
    }
    long cores = count > 1 ? sysconf(_SC_NPROCESSORS_ONLN) : 1;
    return pd_parallel_thread_count(count, cores > 0 ? (uint32_t)cores : 1, host_workers);
}

/* Deal out the connections: those with requests in turn, the others to the first part. Threads that
 * look for answers would take the cores from each other, and from ranks on this host. */
static void deal_out(const struct pd_exchange *exchange, struct part *parts, uint32_t part_count,
                     struct common *common)
{
    uint32_t next = 0;

    for (uint32_t i = 0; i < part_count; i++) {
        struct pd_exchange *own = &parts[i].exchange;
        *own = *exchange;
        own->connection_count = 0;
        own->wake = i == 0 ? exchange->wake : -1;
        own->random += i;
        pd_busy_poll_init(&own->busy_poll, 0);
        own->interrupted = i == 0 ? has_failed_or_ask : has_failed;
        own->interrupted_context = common;
        parts[i].common = common;
    }
    for (uint32_t i = 0; i < exchange->connection_count; i++) {
        struct pd_connection *connection = exchange->connections[i];
        struct pd_exchange *own = &parts[0].exchange;
        if (connection->request != NULL) {
            own = &parts[next++ % part_count].exchange;
        }
        own->connections[own->connection_count++] = connection;
    }
}

/* What a part has learnt is what the handle knows. */
static void gather(struct pd_exchange *exchange, const struct part *part)
{
    exchange->welcome = part->exchange.welcome;
    exchange->random ^= part->exchange.random;
    if (part->exchange.draining) {
        exchange->draining = true;
        exchange->draining_step = part->exchange.draining_step;
    }
}

/* A part that was stopped because another failed says less than that one. */
static enum pd_status choose_error(const struct part *parts, uint32_t part_count,
                                   struct pd_error *error)
{
    const struct part *chosen = NULL;

    for (uint32_t i = 0; i < part_count; i++) {
        bool stopped = parts[i].status == PD_STATUS_INTERRUPTED;
        if (parts[i].status != PD_OK &&
            (chosen == NULL || (chosen->status == PD_STATUS_INTERRUPTED && !stopped))) {
            chosen = &parts[i];
        }
    }
    if (chosen == NULL) {
        return PD_OK;
    }
    *error = chosen->error;
    return chosen->status;
}

enum pd_status pd_parallel_run(struct pd_exchange *exchange, const struct pd_call *call,
                               uint32_t host_workers, struct pd_error *error)
{
    struct common common = {.call = call,
                            .interrupted = exchange->interrupted,
                            .interrupted_context = exchange->interrupted_context};
    uint32_t part_count = count_parts(exchange, call, host_workers);
    struct part *parts = part_count > 1 ? pd_heap_zalloc(part_count, sizeof *parts) : NULL;

    if (parts == NULL) {
        return pd_exchange_run(exchange, call, error);
    }
    deal_out(exchange, parts, part_count, &common);
    for (uint32_t i = 1; i < part_count; i++) {
        parts[i].started = pd_thread_start(&parts[i].thread, run_part, &parts[i], "to carry a lane",
                                           &parts[i].error) == PD_OK;
    }
    (void)run_part(&parts[0]);
    for (uint32_t i = 1; i < part_count; i++) {
        if (parts[i].started) {
            pthread_join(parts[i].thread, NULL);
        } else {
            (void)run_part(&parts[i]);
        }
    }
    for (uint32_t i = 0; i < part_count; i++) {
        gather(exchange, &parts[i]);
    }
    enum pd_status status = choose_error(parts, part_count, error);
    pd_heap_free(parts);
    return status;
}
