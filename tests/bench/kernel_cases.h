/* The loops of a step that `kernel` measures, and for each the loop that memory is measured with.
 * kernel -> [kernel_cases] -> stream, the rules of server/core. */
#ifndef PD_TESTS_BENCH_KERNEL_CASES_H
#define PD_TESTS_BENCH_KERNEL_CASES_H

#include "common/checksum.h"
#include "common/tensor.h"
#include "server/core/config.h"
#include "tests/bench/stream.h"

#define KERNEL_CASE_COUNT_MAX 64u

/* What one thread works on. */
struct kernel_part {
    float *arrays[STREAM_ARRAY_COUNT_MAX]; /* in the order of the mix */
    uint64_t *checksum;                    /* takes in what a loop leaves elsewhere */
};

struct kernel_case {
    char name[32];
    struct stream_mix mix;
    uint32_t bytes; /* moved for each element */
    void (*run)(const struct kernel_case *kernel, const struct kernel_part *part, uint32_t count);
    void (*memory)(const struct kernel_case *kernel, const struct kernel_part *part,
                   uint32_t count);
    enum pd_dtype dtype; /* of a conversion */
    const struct pd_optimizer *rule;
    const struct pd_hyper *hyper;
    uint32_t pass; /* of the rule */
};

struct kernel_list {
    uint32_t count;
    struct kernel_case cases[KERNEL_CASE_COUNT_MAX];
    struct pd_config *configs[KERNEL_CASE_COUNT_MAX]; /* what hyperparameters lie in */
    uint32_t config_count;
};

/* On failure, finish is still needed. */
PD_MUST_CHECK
enum pd_status kernel_list_init(struct kernel_list *list, struct pd_error *error);
void kernel_list_finish(struct kernel_list *list);

#endif
