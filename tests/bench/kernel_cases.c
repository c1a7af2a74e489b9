#include "tests/bench/kernel_cases.h"

#include "common/assert.h"
#include "server/core/reduce.h"

#include <stdio.h>
#include <string.h>

/* Pieces in which a frame's checksum is taken. */
#define PIECE_BYTES 16384u

/* ---- Loops ---- */

static void run_memory(const struct kernel_case *kernel, const struct kernel_part *part,
                       uint32_t count)
{
    stream_run(kernel->mix, part->arrays, count);
}

/* The arrays are the parameters, the gradient, the state and the new parameters. */
static void run_rule(const struct kernel_case *kernel, const struct kernel_part *part,
                     uint32_t count)
{
    static const double sums[2] = {1, 1};
    double partial[2] = {0, 0};
    uint32_t state_count = kernel->mix.read + kernel->mix.changed - 2;
    const struct pd_tensor tensor = {
        .dimension_count = 1, .shape = {count}, .element_count = count};
    const struct pd_optimizer_step step = {.hyper = kernel->hyper,
                                           .lr = 1e-3,
                                           .number = 100,
                                           .group_number = 100,
                                           .gradient_scale = 1,
                                           .gradient_norm = 1};
    struct pd_optimizer_block block = {.tensor = &tensor,
                                       .count = count,
                                       .parameters = part->arrays[0],
                                       .gradient = part->arrays[1],
                                       .parameters_next = part->arrays[2 + state_count],
                                       .streamed = true,
                                       .sums = sums,
                                       .partial = partial};

    for (uint32_t i = 0; i < state_count; i++) {
        block.state[i] = part->arrays[2 + i];
        block.state_next[i] = part->arrays[2 + i];
    }
    kernel->rule->passes[kernel->pass].run(&step, &block);
    *part->checksum = pd_checksum_add(*part->checksum, partial, sizeof partial);
}

static void run_sum(const struct kernel_case *kernel, const struct kernel_part *part,
                    uint32_t count)
{
    struct pd_source sources[STREAM_ARRAY_COUNT_MAX];
    uint32_t source_count = kernel->mix.read;

    for (uint32_t i = 0; i < source_count; i++) {
        sources[i] = (struct pd_source){.elements = part->arrays[i],
                                        .dtype = PD_DTYPE_FLOAT32,
                                        .weight = 1 / (float)source_count};
    }
    pd_reduce_block(part->arrays[source_count], sources, source_count, count);
}

static void run_norm(const struct kernel_case *kernel, const struct kernel_part *part,
                     uint32_t count)
{
    double powers[2];

    (void)kernel;
    pd_reduce_norms(part->arrays[0], count, 2, powers);
    *part->checksum = pd_checksum_add(*part->checksum, powers, sizeof powers);
}

static void run_finite(const struct kernel_case *kernel, const struct kernel_part *part,
                       uint32_t count)
{
    (void)kernel;
    (void)pd_reduce_find_nonfinite(part->arrays[0], PD_DTYPE_FLOAT32, count);
}

static void run_checksum(const struct kernel_case *kernel, const struct kernel_part *part,
                         uint32_t count)
{
    const char *bytes = (const char *)part->arrays[0];
    size_t left = count * sizeof(float);

    (void)kernel;
    while (left > 0) {
        size_t piece = left < PIECE_BYTES ? left : PIECE_BYTES;
        *part->checksum = pd_checksum_add(*part->checksum, bytes, piece);
        bytes += piece;
        left -= piece;
    }
}

static void run_from_wire(const struct kernel_case *kernel, const struct kernel_part *part,
                          uint32_t count)
{
    pd_convert_to_float32(part->arrays[1], part->arrays[0], kernel->dtype, count);
}

static void run_from_wire_streamed(const struct kernel_case *kernel, const struct kernel_part *part,
                                   uint32_t count)
{
    pd_convert_to_float32_streamed(part->arrays[1], part->arrays[0], kernel->dtype, count);
}

static void run_to_wire(const struct kernel_case *kernel, const struct kernel_part *part,
                        uint32_t count)
{
    pd_convert_from_float32(part->arrays[1], kernel->dtype, part->arrays[0], count);
}

static void run_widen(const struct kernel_case *kernel, const struct kernel_part *part,
                      uint32_t count)
{
    (void)kernel;
    stream_widen(part->arrays[1], part->arrays[0], count);
}

static void run_narrow(const struct kernel_case *kernel, const struct kernel_part *part,
                       uint32_t count)
{
    (void)kernel;
    stream_narrow(part->arrays[1], part->arrays[0], count);
}

/* ---- The list ---- */

/* A row without the fields of rules. */
#define LOOP(title, reads, writes, moved, kernel, limit, type)                                     \
    {                                                                                              \
        .name = title, .mix = {.read = reads, .written = writes}, .bytes = moved, .run = kernel,   \
        .memory = limit, .dtype = type                                                             \
    }

static const struct kernel_case others[] = {
    LOOP("sum of 2", 2, 1, 12, run_sum, run_memory, PD_DTYPE_FLOAT32),
    LOOP("sum of 4", 4, 1, 20, run_sum, run_memory, PD_DTYPE_FLOAT32),
    LOOP("sum of 8", 8, 1, 36, run_sum, run_memory, PD_DTYPE_FLOAT32),
    LOOP("norm", 1, 0, 4, run_norm, run_memory, PD_DTYPE_FLOAT32),
    LOOP("finite", 1, 0, 4, run_finite, run_memory, PD_DTYPE_FLOAT32),
    LOOP("checksum", 1, 0, 4, run_checksum, run_memory, PD_DTYPE_FLOAT32),
    LOOP("from bfloat16", 1, 1, 6, run_from_wire, run_widen, PD_DTYPE_BFLOAT16),
    LOOP("bfloat16, streamed", 1, 1, 6, run_from_wire_streamed, run_widen, PD_DTYPE_BFLOAT16),
    LOOP("to bfloat16", 1, 1, 6, run_to_wire, run_narrow, PD_DTYPE_BFLOAT16),
    LOOP("from float16", 1, 1, 6, run_from_wire, run_widen, PD_DTYPE_FLOAT16),
    LOOP("float16, streamed", 1, 1, 6, run_from_wire_streamed, run_widen, PD_DTYPE_FLOAT16),
    LOOP("to float16", 1, 1, 6, run_to_wire, run_narrow, PD_DTYPE_FLOAT16),
};

static void add_pass(struct kernel_list *list, const char *name, struct stream_mix mix,
                     const struct pd_optimizer *rule, const struct pd_hyper *hyper, uint32_t pass)
{
    struct kernel_case *kernel = &list->cases[list->count++];

    PD_ASSERT(list->count <= KERNEL_CASE_COUNT_MAX);
    snprintf(kernel->name, sizeof kernel->name, "%s", name);
    kernel->mix = mix;
    kernel->bytes = stream_bytes(mix);
    kernel->run = run_rule;
    kernel->memory = run_memory;
    kernel->rule = rule;
    kernel->hyper = hyper;
    kernel->pass = pass;
}

/* A rule that goes over a tensor once, or LAMB. The passes of others depend on the tensor's shape.
 */
static enum pd_status add_rule(struct kernel_list *list, const struct pd_optimizer *rule,
                               const char *name, const char *settings, struct pd_error *error)
{
    const struct pd_tensor tensor = {.dimension_count = 1, .shape = {1}, .element_count = 1};
    char text[128];

    snprintf(text, sizeof text, "optimizer: {name: %s%s}\n", rule->name, settings);
    enum pd_status status =
        pd_config_create(&list->configs[list->config_count], name, text, NULL, 0, error);
    if (status != PD_OK) {
        return status;
    }
    const struct pd_hyper *hyper = &list->configs[list->config_count++]->groups[0].hyper;
    uint32_t states = rule->state_count(hyper, &tensor);
    if (strcmp(rule->name, "lamb") == 0) {
        /* The first pass leaves the update in the place of the gradient. */
        add_pass(list, "lamb, pass 1", (struct stream_mix){1, states + 1, 0}, rule, hyper, 0);
        add_pass(list, "lamb, pass 2", (struct stream_mix){2, 0, 1}, rule, hyper, 1);
    } else if (pd_optimizer_pass_count(rule, hyper) == 1) {
        add_pass(list, name, (struct stream_mix){2, states, 1}, rule, hyper, 0);
    }
    return PD_OK;
}

enum pd_status kernel_list_init(struct kernel_list *list, struct pd_error *error)
{
    const struct pd_optimizer *rule;
    enum pd_status status = PD_OK;

    memset(list, 0, sizeof *list);
    for (size_t i = 0; (rule = pd_optimizer_at(i)) != NULL && status == PD_OK; i++) {
        status = add_rule(list, rule, rule->name, "", error);
    }
    if (status == PD_OK) {
        status =
            add_rule(list, pd_optimizer_find("sgd"), "sgd, momentum", ", momentum: 0.9", error);
    }
    for (size_t i = 0; i < sizeof others / sizeof others[0] && status == PD_OK; i++) {
        PD_ASSERT(list->count < KERNEL_CASE_COUNT_MAX);
        list->cases[list->count++] = others[i];
    }
    return status;
}

void kernel_list_finish(struct kernel_list *list)
{
    for (uint32_t i = 0; i < list->config_count; i++) {
        pd_config_destroy(list->configs[i]);
    }
}
