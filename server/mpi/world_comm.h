/* The communicators of a world, for server/mpi alone. */
#ifndef PD_SERVER_MPI_WORLD_COMM_H
#define PD_SERVER_MPI_WORLD_COMM_H

#include "server/mpi/world.h"

#include <mpi.h>

MPI_Comm pd_world_comm(const struct pd_world *world);
/* The replicas of this rank's lane, by replica. */
MPI_Comm pd_world_lane_comm(const struct pd_world *world);

#endif
