/* Bytes that are lent to a socket: all arrive in order, however little the socket takes at a time,
 * and where they cannot be lent they are copied. */
#include "client/zero_copy.h"

#include <arpa/inet.h>
#include <check.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BYTE_COUNT = 3 * 1000 * 1000 + 7, PIECES_MAX = 5 };

static struct pd_zero_copy zero_copy;
static int near; /* lends */
static int far;  /* reads */
static uint8_t *source;
static uint8_t *arrived;
static size_t arrived_bytes;
static uint64_t random_state;
static struct pd_error error;

static size_t random_below(size_t limit)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (size_t)(random_state >> 33) % limit;
}

static void setup(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t address_bytes = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM, 0);

    ck_assert_int_eq(bind(listening, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(listen(listening, 1), 0);
    ck_assert_int_eq(getsockname(listening, (struct sockaddr *)&address, &address_bytes), 0);
    near = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_eq(connect(near, (struct sockaddr *)&address, sizeof address), 0);
    far = accept(listening, NULL, NULL);
    ck_assert_int_ge(far, 0);
    close(listening);
    ck_assert_int_eq(fcntl(near, F_SETFL, O_NONBLOCK), 0);
    ck_assert_int_eq(fcntl(far, F_SETFL, O_NONBLOCK), 0);
    memset(&zero_copy, 0, sizeof zero_copy);
    random_state = 1;
    source = malloc(BYTE_COUNT);
    arrived = malloc(BYTE_COUNT);
    arrived_bytes = 0;
    for (size_t i = 0; i < BYTE_COUNT; i++) {
        source[i] = (uint8_t)(i * 31 + i / 257);
    }
}

static void teardown(void)
{
    pd_zero_copy_finish(&zero_copy);
    close(near);
    close(far);
    free(source);
    free(arrived);
}

/* Cut what follows `begin` into pieces; returns how many. */
static size_t cut(size_t begin, size_t piece_bytes_max, struct iovec pieces[PIECES_MAX])
{
    size_t count = 0;

    while (count < PIECES_MAX && begin < BYTE_COUNT) {
        size_t now = 1 + random_below(piece_bytes_max);
        now = now < BYTE_COUNT - begin ? now : BYTE_COUNT - begin;
        pieces[count++] = (struct iovec){.iov_base = source + begin, .iov_len = now};
        begin += now;
    }
    return count;
}

static size_t send_some(size_t begin, size_t piece_bytes_max)
{
    struct iovec pieces[PIECES_MAX];
    size_t piece_count = cut(begin, piece_bytes_max, pieces);
    size_t sent;

    ck_assert_int_eq(pd_zero_copy_send(&zero_copy, near, pieces, piece_count, &sent, &error),
                     PD_OK);
    return sent;
}

static void receive_some(size_t byte_count_max)
{
    size_t room = BYTE_COUNT - arrived_bytes;
    ssize_t got =
        recv(far, arrived + arrived_bytes, room < byte_count_max ? room : byte_count_max, 0);

    arrived_bytes += got > 0 ? (size_t)got : 0;
}

static void carry_over(size_t piece_bytes_max)
{
    size_t sent = 0;

    while (arrived_bytes < BYTE_COUNT) {
        if (sent < BYTE_COUNT) {
            sent += send_some(sent, piece_bytes_max);
        }
        receive_some(1 + random_below(200000));
    }
    ck_assert_uint_eq(zero_copy.held, 0);
    ck_assert_mem_eq(arrived, source, BYTE_COUNT);
}

START_TEST(pieces_of_all_lengths_arrive_in_order)
{
    static const size_t longest[] = {1000, 16000, 60000, 1000000};

    carry_over(longest[_i]);
    ck_assert_int_eq(zero_copy.open, longest[_i] > 16 * 1024);
}
END_TEST

/* That is what lending is: the far end reads what is there when it reads. */
START_TEST(what_is_lent_is_not_copied)
{
    size_t sent = send_some(0, BYTE_COUNT);

    ck_assert_uint_gt(sent, 0);
    memset(source, 'n', sent);
    while (arrived_bytes < sent) {
        receive_some(sent);
    }
    ck_assert_mem_eq(arrived, source, sent);
}
END_TEST

START_TEST(without_a_pipe_all_is_copied)
{
    struct rlimit few;

    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &few), 0);
    few.rlim_cur = (rlim_t)far + 1;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
    carry_over(1000000);
    ck_assert(zero_copy.refused);
}
END_TEST

/* splice would raise SIGPIPE, which ends a program that has no handler: at once, or when it no
 * longer blocks it. */
START_TEST(a_peer_that_is_gone_is_an_error_and_no_signal)
{
    struct iovec pieces[PIECES_MAX];
    sigset_t broken_pipe;
    size_t sent;
    enum pd_status status = PD_OK;

    sigemptyset(&broken_pipe);
    sigaddset(&broken_pipe, SIGPIPE);
    ck_assert_int_eq(sigprocmask(_i == 1 ? SIG_BLOCK : SIG_UNBLOCK, &broken_pipe, NULL), 0);
    close(far);
    far = -1;
    for (int i = 0; i < 10 && status == PD_OK; i++) {
        status =
            pd_zero_copy_send(&zero_copy, near, pieces, cut(0, BYTE_COUNT, pieces), &sent, &error);
    }
    ck_assert_int_eq(status, PD_ECONNECTION);
    ck_assert_int_eq(sigprocmask(SIG_UNBLOCK, &broken_pipe, NULL), 0);
    pd_zero_copy_reset(&zero_copy);
    ck_assert_uint_eq(zero_copy.held, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("zero_copy");
    TCase *tcase = tcase_create("zero_copy");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, pieces_of_all_lengths_arrive_in_order, 0, 4);
    tcase_add_test(tcase, what_is_lent_is_not_copied);
    tcase_add_test(tcase, without_a_pipe_all_is_copied);
    tcase_add_loop_test(tcase, a_peer_that_is_gone_is_an_error_and_no_signal, 0, 2);
    suite_add_tcase(suite, tcase);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
