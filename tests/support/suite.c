#include "tests/support/suite.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Far beyond what a busy machine needs, and a little under the limit ctest has. */
#define TEST_LIMIT_S 280.0

static char directory[64];

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *walk)
{
    (void)status;
    (void)type;
    (void)walk;
    (void)remove(path);
    return 0;
}

bool suite_directory_create(void)
{
    snprintf(directory, sizeof directory, "/tmp/paramd-test-XXXXXX");
    if (mkdtemp(directory) == NULL || setenv("TMPDIR", directory, 1) != 0) {
        perror(directory);
        return false;
    }
    return true;
}

void suite_directory_remove(void)
{
    (void)nftw(directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

int suite_run(Suite *suite)
{
    SRunner *runner = srunner_create(suite);

    if (!suite_directory_create()) {
        return EXIT_FAILURE;
    }
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    suite_directory_remove();
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

const char *suite_directory(void)
{
    return directory;
}

char *suite_write_file(const char *name, const void *bytes, size_t byte_count)
{
    char path[256];

    snprintf(path, sizeof path, "%s/%d-%s", directory, (int)getpid(), name);
    FILE *file = fopen(path, "wb");
    ck_assert_msg(file != NULL, "%s", path);
    ck_assert_uint_eq(fwrite(bytes, 1, byte_count, file), byte_count);
    ck_assert_int_eq(fclose(file), 0);
    return strdup(path);
}

TCase *suite_case(Suite *suite, const char *name, SFun prepare)
{
    TCase *test_case = tcase_create(name);

    tcase_set_timeout(test_case, TEST_LIMIT_S);
    if (prepare != NULL) {
        tcase_add_unchecked_fixture(test_case, prepare, NULL);
    }
    suite_add_tcase(suite, test_case);
    return test_case;
}

void suite_add(Suite *suite, const TTest *test)
{
    suite_add_loop(suite, test, 1);
}

void suite_add_loop(Suite *suite, const TTest *test, int count)
{
    tcase_add_loop_test(suite_case(suite, test->name, NULL), test, 0, count);
}
