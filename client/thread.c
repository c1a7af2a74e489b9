#include "client/thread.h"

#include <signal.h>
#include <string.h>

enum pd_status pd_thread_start(pthread_t *thread, void *(*run)(void *argument), void *argument,
                               const char *purpose, struct pd_error *error)
{
    sigset_t all;
    sigset_t before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int fault = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (fault != 0) {
        return pd_error_set(error, PD_ENOMEM, "no thread %s: %s", purpose, strerror(fault));
    }
    return PD_OK;
}
