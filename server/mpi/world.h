/* The ranks of a job: MPI's start and end, and what they tell each other before the loop runs.
 * daemon -> [world] -> collectives. Owner: the main thread; every call is collective unless it says
 * otherwise, and busy-waits, which is why none is made once the loop runs. */
#ifndef PD_SERVER_MPI_WORLD_H
#define PD_SERVER_MPI_WORLD_H

#include "common/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pd_world;

/* Start MPI. Collectives run on a thread that is not the one which starts and ends MPI, but never
 * at the same time as this one's calls: MPI_THREAD_SERIALIZED is enough. Errors: PD_EINVALID (more
 * than PD_RANK_COUNT_MAX ranks, no thread support), PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_world_create(struct pd_world **out, struct pd_error *error);

/* The end begins: if MPI has not ended on this rank within `timeout_s`, because another does not
 * come or a collective is stuck, the process ends with exit code 3. Local. */
void pd_world_limit_end(uint32_t timeout_s);

/* End MPI: waits for all ranks. NULL is allowed. */
void pd_world_destroy(struct pd_world *world);

/* Local. */
uint32_t pd_world_rank(const struct pd_world *world);
uint32_t pd_world_rank_count(const struct pd_world *world);

/* Learn whether a phase that may fail went well everywhere: every rank calls it with its own
 * outcome, and all get the same, PD_OK or that of the first rank that failed, its message prefixed
 * with that rank's number if it is not 0. */
PD_MUST_CHECK
enum pd_status pd_world_agree(struct pd_world *world, enum pd_status status,
                              struct pd_error *error);

/* Copy rank 0's bytes to all ranks. */
void pd_world_broadcast(struct pd_world *world, void *bytes, size_t byte_count);

/* Give every rank the text of each: `all` has rank_count entries of `text_bytes`, `mine` too. */
void pd_world_gather_texts(struct pd_world *world, const char *mine, char *all, size_t text_bytes);

/* Form the lanes, rank = replica * lane_count + lane, for the collectives within a lane. */
void pd_world_form_lanes(struct pd_world *world, uint32_t lane_count);

#endif
