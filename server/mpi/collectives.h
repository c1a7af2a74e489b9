/* Carries out collectives, one after the other, on a thread of its own: waiting inside MPI burns a
 * core and would stop the loop. loop -> [collectives] -> loop. Two queues, in and out, because a
 * wake-up stands for any number of entries. Owner: submit, take_done and destroy are the loop
 * thread's; MPI is the MPI thread's meanwhile. */
#ifndef PD_SERVER_MPI_COLLECTIVES_H
#define PD_SERVER_MPI_COLLECTIVES_H

#include "server/core/collective.h"
#include "server/mpi/world.h"

struct pd_collectives;

/* `notify` is called on the MPI thread after each collective; it must be safe there.
 * Ownership: `world` is borrowed until destroy and not to be used by others until then; its lanes
 * have been formed. Local, not collective. Errors: PD_ENOMEM, PD_EIO. */
PD_MUST_CHECK
enum pd_status pd_collectives_create(struct pd_collectives **out, struct pd_world *world,
                                     void (*notify)(void *context), void *context,
                                     struct pd_error *error);

/* Queue one; every rank queues the same kinds in the same order. At most
 * PD_COLLECTIVE_QUEUE_COUNT_MAX may be between submit and take_done.
 * Ownership: `collective` and its buffers are borrowed until take_done has returned it. */
void pd_collectives_submit(struct pd_collectives *collectives,
                           const struct pd_collective *collective);

/* The next that is done, in the order of submit; NULL if none is. */
const struct pd_collective *pd_collectives_take_done(struct pd_collectives *collectives);

/* Finish what is queued and end the thread. NULL is allowed. */
void pd_collectives_destroy(struct pd_collectives *collectives);

#endif
