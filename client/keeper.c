#include "client/handle.h"

#include "client/socket.h"
#include "client/thread.h"

#include <errno.h>
#include <time.h>

static void sleep_until(struct paramd_client *client, uint64_t wake_ms)
{
    struct timespec wake = {.tv_sec = (time_t)(wake_ms / 1000),
                            .tv_nsec = (long)(wake_ms % 1000) * 1000000};

    if (wake_ms == PD_NEVER_MS) {
        pthread_cond_wait(&client->stop, &client->lock);
    } else {
        pthread_cond_timedwait(&client->stop, &client->lock, &wake);
    }
}

/* Waiting for `stop` gives the lock away; a call that runs keeps it and pings by itself. */
static void *keep_alive(void *argument)
{
    struct paramd_client *client = argument;

    pthread_mutex_lock(&client->lock);
    while (!client->stopping) {
        uint64_t wake_ms = pd_exchange_keep_alive(&client->exchange, pd_clock_ms());
        sleep_until(client, wake_ms);
    }
    pthread_mutex_unlock(&client->lock);
    return NULL;
}

enum pd_status pd_keeper_start(struct paramd_client *client, struct pd_error *error)
{
    enum pd_status status =
        pd_thread_start(&client->keeper, keep_alive, client, "to renew the lease", error);

    client->keeping_alive = status == PD_OK;
    return status;
}

void pd_keeper_stop(struct paramd_client *client)
{
    if (!client->keeping_alive) {
        return;
    }
    pthread_mutex_lock(&client->lock);
    client->stopping = true;
    pthread_cond_signal(&client->stop);
    pthread_mutex_unlock(&client->lock);
    pthread_join(client->keeper, NULL);
    client->keeping_alive = false;
}
