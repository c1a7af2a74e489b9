/* Collectives across real ranks: run under mpirun, as test_collectives LANES. */
#include "server/mpi/collectives.h"

#include <check.h>
#include <errno.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PART_MAX = 64, FLOOD_COUNT = 1000, DEADLINE_S = 60 };

static struct pd_world *world;
static uint32_t lane_count;
static uint32_t rank;
static uint32_t rank_count;
static uint32_t replica;
static uint32_t replica_count;
static struct pd_collectives *collectives;
static sem_t notified;

static void on_notify(void *context)
{
    (void)sem_post(context);
}

static void start(void)
{
    struct pd_error error = {0};
    ck_assert_int_eq(sem_init(&notified, 0, 0), 0);
    ck_assert_int_eq(pd_collectives_create(&collectives, world, on_notify, &notified, &error),
                     PD_OK);
}

static void stop(void)
{
    pd_collectives_destroy(collectives);
    (void)sem_destroy(&notified);
}

/* The next that is done, waiting for it. */
static const struct pd_collective *await_done(void)
{
    struct timespec deadline;
    (void)clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += DEADLINE_S;
    for (;;) {
        const struct pd_collective *done = pd_collectives_take_done(collectives);
        if (done != NULL) {
            return done;
        }
        ck_assert_msg(sem_timedwait(&notified, &deadline) == 0 || errno == EINTR,
                      "no collective done after %d s", DEADLINE_S);
    }
}

static void perform(const struct pd_collective *collective)
{
    pd_collectives_submit(collectives, collective);
    ck_assert_ptr_eq(await_done(), collective);
    ck_assert_ptr_null(pd_collectives_take_done(collectives));
}

/* Uneven, and empty for some. */
static int double_count_of(uint32_t of_rank)
{
    return (int)(of_rank * 3 % 4);
}

/* A replica keeps its own, and has nothing for some. */
static int slice_count(uint32_t from, uint32_t to)
{
    return from == to ? 0 : (int)((from + 2 * to) % 4);
}

static int part_count(uint32_t of_replica)
{
    return (int)((of_replica * 5 + 3) % 4) * 3;
}

START_TEST(every_rank_gets_the_doubles_of_all_by_rank)
{
    static struct pd_collective collective;
    double send[PART_MAX] = {0};
    double receive[PD_RANK_COUNT_MAX * PART_MAX];
    int offset = 1; /* a gap, which must stay as it was */
    memset(&collective, 0, sizeof collective);
    collective.kind = PD_COLLECTIVE_GATHER_DOUBLES;
    collective.send = send;
    collective.receive = receive;
    for (uint32_t i = 0; i < rank_count; i++) {
        collective.send_counts[i] = double_count_of(rank);
        collective.receive_counts[i] = double_count_of(i);
        collective.receive_offsets[i] = offset;
        offset += double_count_of(i) + 1;
    }
    for (int i = 0; i < double_count_of(rank); i++) {
        send[i] = 1000.0 * rank + i + 0.1;
    }
    for (size_t i = 0; i < sizeof receive / sizeof receive[0]; i++) {
        receive[i] = -1;
    }

    perform(&collective);

    int at = 0;
    for (uint32_t from = 0; from < rank_count; from++) {
        ck_assert_double_eq(receive[at++], -1);
        for (int i = 0; i < double_count_of(from); i++) {
            ck_assert_double_eq(receive[at++], 1000.0 * from + i + 0.1);
        }
    }
    ck_assert_double_eq(receive[at], -1);
}
END_TEST

static float slice_value(uint32_t lane, uint32_t from, uint32_t to, int index)
{
    return (float)(lane * 10000 + from * 1000 + to * 100 + (uint32_t)index) + 0.5F;
}

START_TEST(each_replica_gets_its_slice_of_every_replica_of_its_lane)
{
    static struct pd_collective collective;
    float send[PART_MAX * PD_RANK_COUNT_MAX];
    float receive[PART_MAX * PD_RANK_COUNT_MAX];
    int sent = 0;
    int received = 0;
    memset(&collective, 0, sizeof collective);
    collective.kind = PD_COLLECTIVE_EXCHANGE_FLOATS;
    collective.send = send;
    collective.receive = receive;
    for (uint32_t i = 0; i < replica_count; i++) {
        collective.send_counts[i] = slice_count(replica, i);
        collective.send_offsets[i] = sent;
        for (int k = 0; k < slice_count(replica, i); k++) {
            send[sent++] = slice_value(rank % lane_count, replica, i, k);
        }
        collective.receive_counts[i] = slice_count(i, replica);
        collective.receive_offsets[i] = received;
        received += slice_count(i, replica);
    }

    perform(&collective);

    int at = 0;
    for (uint32_t i = 0; i < replica_count; i++) {
        for (int k = 0; k < slice_count(i, replica); k++) {
            ck_assert_float_eq(receive[at++], slice_value(rank % lane_count, i, replica, k));
        }
    }
}
END_TEST

START_TEST(each_replica_gets_the_parts_of_all_in_place)
{
    static struct pd_collective collective;
    float receive[PART_MAX * PD_RANK_COUNT_MAX];
    int offset = 0;
    memset(&collective, 0, sizeof collective);
    memset(receive, 0, sizeof receive);
    collective.kind = PD_COLLECTIVE_GATHER_FLOATS;
    collective.receive = receive;
    for (uint32_t i = 0; i < replica_count; i++) {
        collective.receive_counts[i] = part_count(i);
        collective.receive_offsets[i] = offset;
        for (int k = 0; i == replica && k < part_count(i); k++) {
            receive[offset + k] = slice_value(rank % lane_count, i, 0, k);
        }
        offset += part_count(i);
    }

    perform(&collective);

    int at = 0;
    for (uint32_t i = 0; i < replica_count; i++) {
        for (int k = 0; k < part_count(i); k++) {
            ck_assert_float_eq(receive[at++], slice_value(rank % lane_count, i, 0, k));
        }
    }
}
END_TEST

START_TEST(each_replica_gets_the_values_of_the_root)
{
    static struct pd_collective collective;
    for (uint32_t root = 0; root < replica_count; root++) {
        float receive[PART_MAX];
        memset(&collective, 0, sizeof collective);
        collective.kind = PD_COLLECTIVE_BROADCAST_FLOATS;
        collective.receive = receive;
        collective.root = (int)root;
        collective.receive_counts[0] = PART_MAX - (int)root;
        for (int k = 0; k < PART_MAX; k++) {
            receive[k] = replica == root ? slice_value(rank % lane_count, root, 1, k) : -1.0F;
        }

        perform(&collective);

        for (int k = 0; k < PART_MAX - (int)root; k++) {
            ck_assert_float_eq(receive[k], slice_value(rank % lane_count, root, 1, k));
        }
    }
}
END_TEST

/* ---- The queue ---- */

static struct pd_collective flood[FLOOD_COUNT];
static double flood_send[FLOOD_COUNT];
static double flood_receive[FLOOD_COUNT][PD_RANK_COUNT_MAX];

static void prepare_flood(void)
{
    for (uint32_t i = 0; i < FLOOD_COUNT; i++) {
        struct pd_collective *collective = &flood[i];
        memset(collective, 0, sizeof *collective);
        collective->kind = PD_COLLECTIVE_GATHER_DOUBLES;
        collective->order_index = i;
        collective->send = &flood_send[i];
        collective->receive = flood_receive[i];
        flood_send[i] = i;
        for (uint32_t j = 0; j < rank_count; j++) {
            collective->send_counts[j] = 1;
            collective->receive_counts[j] = 1;
            collective->receive_offsets[j] = (int)j;
        }
    }
}

/* As many at once as may wait, submitted at another pace on each rank, while results are taken at
 * yet another: every rank performs them in the order of submit, and nothing is lost or doubled. */
START_TEST(many_at_once_keep_their_order_on_all_ranks)
{
    uint64_t hash = 14695981039346656037u;
    uint32_t submitted = 0;
    uint32_t done_count = 0;
    unsigned int seed = 1 + rank;
    prepare_flood();

    while (done_count < FLOOD_COUNT) {
        for (int burst = rand_r(&seed) % 200; burst > 0 && submitted < FLOOD_COUNT; burst--) {
            pd_collectives_submit(collectives, &flood[submitted++]);
        }
        for (int burst = rand_r(&seed) % 150; burst > 0 && done_count < submitted; burst--) {
            const struct pd_collective *done = await_done();
            ck_assert_ptr_eq(done, &flood[done_count]);
            hash = (hash ^ done->order_index) * 1099511628211u;
            for (uint32_t j = 0; j < rank_count; j++) {
                ck_assert_double_eq(flood_receive[done_count][j], done_count);
            }
            done_count++;
        }
    }

    /* The same hash of the order everywhere. 32 bits of it are exact in a double. */
    flood_send[0] = (double)(uint32_t)(hash ^ hash >> 32);
    perform(&flood[0]);
    for (uint32_t j = 0; j < rank_count; j++) {
        ck_assert_double_eq(flood_receive[0][j], flood_send[0]);
    }
    ck_assert_ptr_null(pd_collectives_take_done(collectives));
}
END_TEST

START_TEST(what_is_queued_is_carried_out_before_the_thread_ends)
{
    prepare_flood();
    struct pd_collectives *own = NULL;
    struct pd_error error = {0};
    ck_assert_int_eq(pd_collectives_create(&own, world, on_notify, &notified, &error), PD_OK);
    for (uint32_t i = 0; i < 100; i++) {
        pd_collectives_submit(own, &flood[i]);
    }

    pd_collectives_destroy(own);

    for (uint32_t j = 0; j < rank_count; j++) {
        ck_assert_double_eq(flood_receive[99][j], 99);
    }
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("collectives");
    TCase *tcase = tcase_create("collectives");
    tcase_set_timeout(tcase, 2 * DEADLINE_S);
    tcase_add_checked_fixture(tcase, start, stop);
    tcase_add_test(tcase, every_rank_gets_the_doubles_of_all_by_rank);
    tcase_add_test(tcase, each_replica_gets_its_slice_of_every_replica_of_its_lane);
    tcase_add_test(tcase, each_replica_gets_the_parts_of_all_in_place);
    tcase_add_test(tcase, each_replica_gets_the_values_of_the_root);
    tcase_add_test(tcase, many_at_once_keep_their_order_on_all_ranks);
    tcase_add_test(tcase, what_is_queued_is_carried_out_before_the_thread_ends);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(int argc, char **argv)
{
    struct pd_error error = {0};
    if (argc != 2 || pd_world_create(&world, &error) != PD_OK) {
        (void)fprintf(stderr, "usage: test_collectives LANES %s\n", error.message);
        return EXIT_FAILURE;
    }
    lane_count = (uint32_t)atoi(argv[1]);
    rank = pd_world_rank(world);
    rank_count = pd_world_rank_count(world);
    replica = rank / lane_count;
    replica_count = rank_count / lane_count;
    pd_world_form_lanes(world, lane_count);

    SRunner *runner = srunner_create(make_suite());
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    if (failed > 0) {
        /* The other ranks wait for this one: only the launcher can end them. */
        _exit(EXIT_FAILURE);
    }
    pd_world_limit_end(DEADLINE_S);
    pd_world_destroy(world);
    return EXIT_SUCCESS;
}
