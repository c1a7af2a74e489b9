/* The frame of an integration program: a directory of its own, the suite, and the exit code.
 * main -> [suite] -> Check. */
#ifndef PD_TESTS_SUPPORT_SUITE_H
#define PD_TESTS_SUPPORT_SUITE_H

#include <check.h>
#include <stdbool.h>

/* Run the suite, each test forked, and remove the directory; returns what main returns. */
int suite_run(Suite *suite);

/* What suite_run does before and after, for a program that runs suites in another way: make the
 * directory, or say on standard error why not; and remove it with all that is in it. */
bool suite_directory_create(void);
void suite_directory_remove(void);

/* A directory for this program's files, which is also $TMPDIR of everything it starts. */
const char *suite_directory(void);

/* Write a new file there; returns its path, for free. */
char *suite_write_file(const char *name, const void *bytes, size_t byte_count);

/* A test case with a generous time limit, and what runs once before its tests, in the process that
 * forks them; NULL for nothing. */
TCase *suite_case(Suite *suite, const char *name, SFun prepare);

/* Add a test case of one test with a generous time limit. */
void suite_add(Suite *suite, const TTest *test);
/* The same, with a loop over [0, count). */
void suite_add_loop(Suite *suite, const TTest *test, int count);

#endif
