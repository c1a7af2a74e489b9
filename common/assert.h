/* Assertions that stay in release builds: they state what our own code must keep true.
 * A failed one calls the hook, which `main` points at MPI_Abort so that no rank is left waiting. */
#ifndef PD_COMMON_ASSERT_H
#define PD_COMMON_ASSERT_H

typedef void pd_assert_hook(const char *condition, const char *file, int line);

/* Replace what a failed assertion does. The hook must not return; the default prints and aborts. */
void pd_assert_set_hook(pd_assert_hook *hook);

_Noreturn void pd_assert_fail(const char *condition, const char *file, int line);

#define PD_ASSERT(condition)                                                                       \
    ((condition) ? (void)0 : pd_assert_fail(#condition, __FILE__, __LINE__))

#endif
