/* A worker in a process of its own, for tests that stop or kill it.
 *
 *   integration_worker ADDRESS NUMBER STEPS PAUSE
 *
 * Trains the reference model as worker NUMBER, up to PAUSE steps; then prints "waiting" and waits
 * for SIGUSR1, and goes on to STEPS. Prints what a call that failed said; exit 1 then. */
#include "tests/support/training.h"

#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

static char **words;

static uint64_t number_of(const char *word)
{
    return strtoull(word, NULL, 10);
}

/* A test, because what it uses may end only a test. */
START_TEST(train)
{
    struct training_options options;
    struct paramd_error error;
    sigset_t go_on;
    int number;

    sigemptyset(&go_on);
    sigaddset(&go_on, SIGUSR1);
    sigprocmask(SIG_BLOCK, &go_on, NULL);
    const char *address = words[1];
    training_options_init(&options, &address, 1, number_of(words[3]));
    options.worker_begin = (uint32_t)number_of(words[2]);
    struct training *training = training_start(&options);
    training_advance(training, number_of(words[4]));
    puts("waiting");
    (void)fflush(stdout);
    sigwait(&go_on, &number);
    int status = training_finish_failed(training, 0, &error);
    ck_assert_msg(status == PARAMD_OK, "%s: %s", paramd_status_name(status), error.message);
}
END_TEST

int main(int argc, char **argv)
{
    Suite *suite = suite_create("worker");
    TCase *test_case = tcase_create("worker");

    if (argc != 5) {
        return EXIT_FAILURE;
    }
    words = argv;
    /* What is chosen of the tests that start this one is not chosen of its own. */
    (void)unsetenv("CK_RUN_SUITE");
    (void)unsetenv("CK_RUN_CASE");
    tcase_add_test(test_case, train);
    suite_add_tcase(suite, test_case);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
