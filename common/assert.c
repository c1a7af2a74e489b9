#include "common/assert.h"

#include <stdio.h>
#include <stdlib.h>

static void print_and_abort(const char *condition, const char *file, int line)
{
    (void)fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, condition);
    abort();
}

/* Set at start-up, before there are threads. */
static pd_assert_hook *hook = print_and_abort;

void pd_assert_set_hook(pd_assert_hook *new_hook)
{
    hook = new_hook != NULL ? new_hook : print_and_abort;
}

void pd_assert_fail(const char *condition, const char *file, int line)
{
    hook(condition, file, line);
    abort(); /* A hook that returns is a bug of its own. */
}
