/* Copies that go past the caches are copies, wherever they begin and end. */
#include "common/copy.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 64u

START_TEST(any_run_is_copied_and_nothing_beside_it)
{
    float from[COUNT];
    float to[COUNT];
    float expected[COUNT];
    size_t begin = (size_t)_i % 8;

    for (size_t i = 0; i < COUNT; i++) {
        from[i] = (float)i + 0.5f;
    }
    for (size_t count = 0; begin + count <= COUNT; count++) {
        memset(to, 0, sizeof to);
        memset(expected, 0, sizeof expected);
        memcpy(expected + begin, from, count * sizeof(float));
        pd_copy_past_cache(to + begin, from, count);
        ck_assert_mem_eq(to, expected, sizeof to);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("copy");
    TCase *tests = tcase_create("copy");

    tcase_add_loop_test(tests, any_run_is_copied_and_nothing_beside_it, 0, 8);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
