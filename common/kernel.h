/* How loops over tensors are compiled: PD_KERNEL before a function makes a version of it for each
 * instruction set, and the machine picks one when the program starts. The results are the same to
 * the bit, because floating-point contraction is off everywhere.
 *
 * Empty where the compiler has no function versions, and under sanitizers, whose run-time is not up
 * yet when the versions are picked. */
#ifndef PD_COMMON_KERNEL_H
#define PD_COMMON_KERNEL_H

#ifdef PD_KERNEL
/* Given by a test that compares the versions with plain code. */
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) &&                           \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define PD_KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PD_KERNEL
#endif

#endif
