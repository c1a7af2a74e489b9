#include "client/handle.h"

#include "client/socket.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
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
    sigset_t all;
    sigset_t before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int fault = pthread_create(&client->keeper, NULL, keep_alive, client);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (fault != 0) {
        return pd_error_set(error, PD_ENOMEM, "no thread to renew the lease: %s", strerror(fault));
    }
    client->keeping_alive = true;
    return PD_OK;
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
