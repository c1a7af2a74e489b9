#include "server/mpi/world_comm.h"

#include "common/assert.h"
#include "common/heap.h"

#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Owner: the main thread. */
struct pd_world {
    MPI_Comm comm;
    MPI_Comm lane_comm;
    uint32_t rank;
    uint32_t rank_count;
};

/* Open MPI reads these when it starts; what the user has set stays. */
static void set_defaults(void)
{
    /* A rank that waits inside a collective lets the others have the core. */
    (void)setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    if (getenv("OMPI_COMM_WORLD_SIZE") == NULL) {
        /* Without mpirun: do not start a launcher for children we never have, nor make a directory
         * for what they would share; all such processes of a host would have the same one, and two
         * that start at once would trip over it. Nor look for networks: that alone takes 0.2 s. */
        (void)setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
        (void)setenv("OMPI_MCA_orte_create_session_dirs", "0", 0);
        (void)setenv("OMPI_MCA_pml", "ob1", 0);
        (void)setenv("OMPI_MCA_btl", "self", 0);
    }
}

enum pd_status pd_world_create(struct pd_world **out, struct pd_error *error)
{
    int provided = 0;
    int rank = 0;
    int rank_count = 0;
    *out = NULL;

    struct pd_world *world = pd_heap_zalloc(1, sizeof *world);
    if (world == NULL) {
        return pd_error_set(error, PD_ENOMEM, "world: out of memory");
    }
    set_defaults();
    MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided);
    MPI_Comm_dup(MPI_COMM_WORLD, &world->comm);
    MPI_Comm_rank(world->comm, &rank);
    MPI_Comm_size(world->comm, &rank_count);
    world->lane_comm = MPI_COMM_NULL;
    world->rank = (uint32_t)rank;
    world->rank_count = (uint32_t)rank_count;

    enum pd_status status = PD_OK;
    if (provided < MPI_THREAD_SERIALIZED) {
        status = pd_error_set(error, PD_EINVALID, "mpi: this build has no thread support");
    } else if (world->rank_count > PD_RANK_COUNT_MAX) {
        status = pd_error_set(error, PD_EINVALID, "%u ranks; at most %u are supported",
                              (unsigned)world->rank_count, PD_RANK_COUNT_MAX);
    }
    if (status != PD_OK) {
        pd_world_destroy(world);
        return status;
    }
    *out = world;
    return PD_OK;
}

static void on_end_timeout(int number)
{
    static const char text[] = "mpi: the other ranks did not come to the end; leaving\n";
    ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
    (void)ignored;
    (void)number;
    _exit(3);
}

void pd_world_limit_end(uint32_t timeout_s)
{
    (void)signal(SIGALRM, on_end_timeout);
    (void)alarm(timeout_s);
}

void pd_world_destroy(struct pd_world *world)
{
    if (world == NULL) {
        return;
    }
    if (world->lane_comm != MPI_COMM_NULL) {
        MPI_Comm_free(&world->lane_comm);
    }
    MPI_Comm_free(&world->comm);
    MPI_Finalize();
    (void)alarm(0);
    pd_heap_free(world);
}

uint32_t pd_world_rank(const struct pd_world *world)
{
    return world->rank;
}

uint32_t pd_world_rank_count(const struct pd_world *world)
{
    return world->rank_count;
}

MPI_Comm pd_world_comm(const struct pd_world *world)
{
    return world->comm;
}

MPI_Comm pd_world_lane_comm(const struct pd_world *world)
{
    PD_ASSERT(world->lane_comm != MPI_COMM_NULL);
    return world->lane_comm;
}

enum pd_status pd_world_agree(struct pd_world *world, enum pd_status status, struct pd_error *error)
{
    /* The first rank that failed, or rank_count: the smallest wins. */
    int first = status == PD_OK ? (int)world->rank_count : (int)world->rank;
    MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, world->comm);
    if (first == (int)world->rank_count) {
        return PD_OK;
    }
    struct pd_error outcome = *error;
    outcome.status = status;
    MPI_Bcast(&outcome, (int)sizeof outcome, MPI_BYTE, first, world->comm);
    *error = outcome;
    if (first > 0) {
        (void)pd_error_prefix(error, "rank %d", first);
    }
    return error->status;
}

void pd_world_broadcast(struct pd_world *world, void *bytes, size_t byte_count)
{
    PD_ASSERT(byte_count <= INT_MAX);
    MPI_Bcast(bytes, (int)byte_count, MPI_BYTE, 0, world->comm);
}

void pd_world_gather_texts(struct pd_world *world, const char *mine, char *all, size_t text_bytes)
{
    PD_ASSERT(text_bytes <= INT_MAX);
    MPI_Allgather(mine, (int)text_bytes, MPI_CHAR, all, (int)text_bytes, MPI_CHAR, world->comm);
}

void pd_world_form_lanes(struct pd_world *world, uint32_t lane_count)
{
    PD_ASSERT(world->lane_comm == MPI_COMM_NULL);
    PD_ASSERT(lane_count > 0);
    PD_ASSERT(world->rank_count % lane_count == 0);
    MPI_Comm_split(world->comm, (int)(world->rank % lane_count), (int)(world->rank / lane_count),
                   &world->lane_comm);
}
