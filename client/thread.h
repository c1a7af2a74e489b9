/* Threads of the library beside those of the program that uses it. */
#ifndef PD_CLIENT_THREAD_H
#define PD_CLIENT_THREAD_H

#include "common/error.h"

#include <pthread.h>

/* Start a thread that takes no signals: they are the program's. `purpose` is for the error: "to
 * renew the lease". Errors: PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_thread_start(pthread_t *thread, void *(*run)(void *argument), void *argument,
                               const char *purpose, struct pd_error *error);

#endif
