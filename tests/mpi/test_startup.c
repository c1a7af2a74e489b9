/* The beginning and end of real daemons under mpirun: what fails is said by whom, and nothing hangs
 * or stays behind. */
#include "server/io/listener.h"
#include "tests/support/process.h"

#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MPIRUN "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np"
#define ANY_PORT "--set", "listen=127.0.0.1:0"

static void sleep_ms(long ms)
{
    const struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    (void)nanosleep(&pause, NULL);
}

static uint32_t count_of(const char *text, const char *part)
{
    uint32_t count = 0;
    for (const char *at = strstr(text, part); at != NULL; at = strstr(at + 1, part)) {
        count++;
    }
    return count;
}

START_TEST(rank_0_says_once_where_all_listen)
{
    const char *const words[] = {MPIRUN, "3", PARAMD, ANY_PORT, NULL};
    struct process *process = process_start(words);
    char *line = process_await_output_line(process, "paramd ready: ");
    unsigned ports[3] = {0};

    ck_assert_int_eq(sscanf(line,
                            "paramd ready: 3 ranks: 0 at 127.0.0.1:%u, 1 at 127.0.0.1:%u, "
                            "2 at 127.0.0.1:%u",
                            &ports[0], &ports[1], &ports[2]),
                     3);
    process_signal(process, SIGUSR1);
    ck_assert_int_eq(process_wait(process), 0);

    char *output = process_output(process);
    ck_assert_uint_eq(count_of(output, "paramd ready"), 1);
    ck_assert_uint_ne(ports[0], ports[1]);
    free(output);
    free(line);
    process_stop(process);
}
END_TEST

START_TEST(a_daemon_without_mpirun_is_one_rank)
{
    const char *const words[] = {PARAMD, ANY_PORT, NULL};
    struct process *process = process_start(words);
    process_await_output(process, "paramd ready: 1 rank: 0 at 127.0.0.1:");
    process_signal(process, SIGTERM);
    ck_assert_int_eq(process_wait(process), 0);
    process_stop(process);
}
END_TEST

/* Finds three ports in a row that are free, and holds the last. */
static int hold_third_port(uint32_t *first)
{
    for (;;) {
        struct pd_error error = {0};
        int fds[3] = {-1, -1, -1};
        uint32_t port = 0;
        ck_assert_int_eq(pd_listener_open(&fds[2], &port, "127.0.0.1", 0, &error), PD_OK);
        *first = port - 2;
        bool free_before =
            pd_listener_open(&fds[0], &port, "127.0.0.1", *first, &error) == PD_OK &&
            pd_listener_open(&fds[1], &port, "127.0.0.1", *first + 1, &error) == PD_OK;
        for (int i = 0; i < (free_before ? 2 : 3); i++) {
            if (fds[i] >= 0) {
                (void)close(fds[i]);
            }
        }
        if (free_before) {
            return fds[2];
        }
    }
}

START_TEST(a_port_in_use_on_one_rank_ends_all_with_its_message)
{
    char listen[64];
    char expected[128];
    uint32_t first = 0;
    int fd = hold_third_port(&first);
    (void)snprintf(listen, sizeof listen, "listen=127.0.0.1:%u", (unsigned)first);
    (void)snprintf(expected, sizeof expected,
                   "paramd: rank 2: listen: 127.0.0.1 port %u: Address already in use",
                   (unsigned)first + 2);
    const char *const words[] = {MPIRUN, "4", PARAMD, "--set", listen, NULL};

    struct process_result result = process_run(words);

    ck_assert_int_eq(result.code, 1);
    ck_assert_msg(count_of(result.errors, expected) == 1, "%s", result.errors);
    ck_assert_str_eq(result.output, "");
    process_result_finish(&result);
    (void)close(fd);
}
END_TEST

START_TEST(a_bad_setting_is_said_once_by_rank_0)
{
    const char *const words[] = {MPIRUN, "3", PARAMD, ANY_PORT, "--set", "clip.norms=1", NULL};

    struct process_result result = process_run(words);

    ck_assert_int_eq(result.code, 1);
    ck_assert_msg(count_of(result.errors, "clip.norms: unknown key") == 1, "%s", result.errors);
    process_result_finish(&result);
}
END_TEST

START_TEST(a_missing_file_is_named_once)
{
    const char *const words[] = {MPIRUN, "2", PARAMD, "--config", "/no/such/file.yaml", NULL};

    struct process_result result = process_run(words);

    ck_assert_int_eq(result.code, 1);
    ck_assert_msg(
        count_of(result.errors, "paramd: /no/such/file.yaml: No such file or directory\n") == 1,
        "%s", result.errors);
    process_result_finish(&result);
}
END_TEST

START_TEST(lanes_that_do_not_divide_the_ranks_are_refused)
{
    const char *const words[] = {MPIRUN, "3", PARAMD, ANY_PORT, "--set", "lanes=2", NULL};

    struct process_result result = process_run(words);

    ck_assert_int_eq(result.code, 1);
    ck_assert_msg(count_of(result.errors, "lanes") >= 1, "%s", result.errors);
    process_result_finish(&result);
}
END_TEST

/* ---- The launcher ---- */

START_TEST(the_launcher_drains_on_a_signal)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGUSR1};
    const char *const words[] = {LAUNCHER, "-n", "2", "--", ANY_PORT, NULL};
    (void)setenv("PARAMD", PARAMD, 1);
    struct process *process = process_start(words);
    process_await_output(process, "paramd ready: 2 ranks: ");

    process_signal(process, numbers[_i]);

    ck_assert_int_eq(process_wait(process), 0);
    process_stop(process);
}
END_TEST

START_TEST(the_launcher_returns_the_exit_code)
{
    const char *const words[] = {LAUNCHER, "-n", "2", "--", "--set", "nonsense=1", NULL};
    (void)setenv("PARAMD", PARAMD, 1);

    struct process_result result = process_run(words);

    ck_assert_int_eq(result.code, 1);
    process_result_finish(&result);
}
END_TEST

/* The number of a rank's process, from the children of mpirun. */
static pid_t child_of(pid_t parent)
{
    char path[64];
    int child = 0;
    (void)snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)parent, (int)parent);
    FILE *file = fopen(path, "r");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_ge(fscanf(file, "%d", &child), 1);
    (void)fclose(file);
    return child;
}

static bool gone_within(pid_t pid, int64_t timeout_ms)
{
    int64_t end_ms = process_now_ms() + timeout_ms;
    while (process_alive(pid)) {
        if (process_now_ms() > end_ms) {
            return false;
        }
        sleep_ms(20);
    }
    return true;
}

START_TEST(no_rank_survives_a_killed_mpirun)
{
    const char *const words[] = {MPIRUN, "2", PARAMD, ANY_PORT, NULL};
    struct process *process = process_start(words);
    process_await_output(process, "paramd ready: ");
    pid_t rank = child_of(process_pid(process));
    ck_assert(process_alive(rank));

    process_signal(process, SIGKILL);

    ck_assert(gone_within(rank, 3000));
    process_stop(process);
}
END_TEST

START_TEST(a_killed_rank_ends_the_job)
{
    const char *const words[] = {MPIRUN, "3", PARAMD, ANY_PORT, NULL};
    struct process *process = process_start(words);
    process_await_output(process, "paramd ready: ");
    int64_t killed_ms = process_now_ms();

    (void)kill(child_of(process_pid(process)), SIGKILL);

    ck_assert_int_ne(process_wait(process), 0);
    ck_assert_int_lt(process_now_ms() - killed_ms, 5000);
    process_stop(process);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("startup");
    TCase *tcase = tcase_create("startup");
    tcase_set_timeout(tcase, 150);
    tcase_add_test(tcase, rank_0_says_once_where_all_listen);
    tcase_add_test(tcase, a_daemon_without_mpirun_is_one_rank);
    tcase_add_test(tcase, a_port_in_use_on_one_rank_ends_all_with_its_message);
    tcase_add_test(tcase, a_bad_setting_is_said_once_by_rank_0);
    tcase_add_test(tcase, a_missing_file_is_named_once);
    tcase_add_test(tcase, lanes_that_do_not_divide_the_ranks_are_refused);
    tcase_add_loop_test(tcase, the_launcher_drains_on_a_signal, 0, 3);
    tcase_add_test(tcase, the_launcher_returns_the_exit_code);
    tcase_add_test(tcase, no_rank_survives_a_killed_mpirun);
    tcase_add_test(tcase, a_killed_rank_ends_the_job);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
