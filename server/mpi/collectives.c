#include "server/mpi/collectives.h"

#include "common/assert.h"
#include "common/heap.h"
#include "server/mpi/world_comm.h"

#include <pthread.h>
#include <string.h>

/* Entries first to last; guarded by the lock of its owner. */
struct queue {
    const struct pd_collective *items[PD_COLLECTIVE_QUEUE_COUNT_MAX];
    uint32_t begin;
    uint32_t count;
};

/* Shared by the loop thread and the MPI thread under `lock`; the rest never changes. */
struct pd_collectives {
    struct pd_world *world;
    void (*notify)(void *context);
    void *context;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* `waiting` has an entry, or `ending` */
    struct queue waiting;
    struct queue done;
    bool ending;
};

static void queue_push(struct queue *queue, const struct pd_collective *collective)
{
    PD_ASSERT(queue->count < PD_COLLECTIVE_QUEUE_COUNT_MAX);
    queue->items[(queue->begin + queue->count) % PD_COLLECTIVE_QUEUE_COUNT_MAX] = collective;
    queue->count++;
}

static const struct pd_collective *queue_take(struct queue *queue)
{
    if (queue->count == 0) {
        return NULL;
    }
    const struct pd_collective *collective = queue->items[queue->begin];
    queue->begin = (queue->begin + 1) % PD_COLLECTIVE_QUEUE_COUNT_MAX;
    queue->count--;
    return collective;
}

static void carry_out(const struct pd_world *world, const struct pd_collective *collective)
{
    const MPI_Comm lane = pd_world_lane_comm(world);
    switch (collective->kind) {
    case PD_COLLECTIVE_GATHER_DOUBLES:
        MPI_Allgatherv(collective->send, collective->send_counts[pd_world_rank(world)], MPI_DOUBLE,
                       collective->receive, collective->receive_counts, collective->receive_offsets,
                       MPI_DOUBLE, pd_world_comm(world));
        break;
    case PD_COLLECTIVE_EXCHANGE_FLOATS:
        MPI_Alltoallv(collective->send, collective->send_counts, collective->send_offsets,
                      MPI_FLOAT, collective->receive, collective->receive_counts,
                      collective->receive_offsets, MPI_FLOAT, lane);
        break;
    case PD_COLLECTIVE_GATHER_FLOATS:
        MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_FLOAT, collective->receive, collective->receive_counts,
                       collective->receive_offsets, MPI_FLOAT, lane);
        break;
    case PD_COLLECTIVE_BROADCAST_FLOATS:
        MPI_Bcast(collective->receive, collective->receive_counts[0], MPI_FLOAT, collective->root,
                  lane);
        break;
    }
}

static void *run(void *argument)
{
    struct pd_collectives *collectives = argument;

    for (;;) {
        (void)pthread_mutex_lock(&collectives->lock);
        while (collectives->waiting.count == 0 && !collectives->ending) {
            (void)pthread_cond_wait(&collectives->changed, &collectives->lock);
        }
        const struct pd_collective *collective = queue_take(&collectives->waiting);
        (void)pthread_mutex_unlock(&collectives->lock);
        if (collective == NULL) {
            return NULL;
        }
        carry_out(collectives->world, collective);
        (void)pthread_mutex_lock(&collectives->lock);
        queue_push(&collectives->done, collective);
        (void)pthread_mutex_unlock(&collectives->lock);
        collectives->notify(collectives->context);
    }
}

enum pd_status pd_collectives_create(struct pd_collectives **out, struct pd_world *world,
                                     void (*notify)(void *context), void *context,
                                     struct pd_error *error)
{
    *out = NULL;
    struct pd_collectives *collectives = pd_heap_zalloc(1, sizeof *collectives);
    if (collectives == NULL) {
        return pd_error_set(error, PD_ENOMEM, "collectives: out of memory");
    }
    collectives->world = world;
    collectives->notify = notify;
    collectives->context = context;
    (void)pthread_mutex_init(&collectives->lock, NULL);
    (void)pthread_cond_init(&collectives->changed, NULL);
    int result = pthread_create(&collectives->thread, NULL, run, collectives);
    if (result != 0) {
        (void)pthread_cond_destroy(&collectives->changed);
        (void)pthread_mutex_destroy(&collectives->lock);
        pd_heap_free(collectives);
        return pd_error_set(error, PD_EIO, "collectives: thread: %s", strerror(result));
    }
    *out = collectives;
    return PD_OK;
}

void pd_collectives_submit(struct pd_collectives *collectives,
                           const struct pd_collective *collective)
{
    (void)pthread_mutex_lock(&collectives->lock);
    PD_ASSERT(!collectives->ending);
    queue_push(&collectives->waiting, collective);
    (void)pthread_cond_signal(&collectives->changed);
    (void)pthread_mutex_unlock(&collectives->lock);
}

const struct pd_collective *pd_collectives_take_done(struct pd_collectives *collectives)
{
    (void)pthread_mutex_lock(&collectives->lock);
    const struct pd_collective *collective = queue_take(&collectives->done);
    (void)pthread_mutex_unlock(&collectives->lock);
    return collective;
}

void pd_collectives_destroy(struct pd_collectives *collectives)
{
    if (collectives == NULL) {
        return;
    }
    (void)pthread_mutex_lock(&collectives->lock);
    collectives->ending = true;
    (void)pthread_cond_signal(&collectives->changed);
    (void)pthread_mutex_unlock(&collectives->lock);
    (void)pthread_join(collectives->thread, NULL);
    (void)pthread_cond_destroy(&collectives->changed);
    (void)pthread_mutex_destroy(&collectives->lock);
    pd_heap_free(collectives);
}
