/* What replaying one reference case needs and comes to.
 * main -> [case] -> trajectory, rates, calls. */
#ifndef PD_TESTS_REPLAY_CASE_H
#define PD_TESTS_REPLAY_CASE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Elements of a block: few, so that the tensors of the cases span shards. */
#define REPLAY_BLOCK_SIZE 8

struct replay_options {
    uint32_t shard_count;    /* at least 1 */
    uint32_t worker_count;   /* of cases that do not say how many; at least 1 */
    const char *aggregation; /* "allreduce" or "direct" */
    bool list_skipped;       /* decide what is skipped, and replay nothing */
};

enum replay_verdict { REPLAY_PASSED, REPLAY_FAILED, REPLAY_SKIPPED };

struct replay_result {
    enum replay_verdict verdict;
    double worst_error; /* in units of the tolerance; NaN: nothing was compared */
    char text[1500];    /* where it first failed, or why it was skipped; may be empty */
};

/* Give the verdict and the reason of it; one line, as printf. */
void replay_say(struct replay_result *result, enum replay_verdict verdict, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Take in one error, in units of the tolerance. Returns whether it is the first that is too large:
 * the caller is to say where it is. */
bool replay_take_error(struct replay_result *result, double error);

/* Whether the file, as read, is a case at all. */
bool replay_is_case(const json_t *document);

/* Replay `directory`/`name`.json. The running Check test fails if a daemon or a worker does. */
void replay_case(const struct replay_options *options, const char *directory, const char *name,
                 struct replay_result *result);

/* The kinds of cases, by the files that replay them: optimizers and composites, schedules, and what
 * is no trajectory. `document` is the file, borrowed. */
void replay_trajectory(const struct replay_options *options, const char *directory,
                       const char *name, struct replay_result *result);
void replay_rates(const struct replay_options *options, const json_t *document,
                  struct replay_result *result);
void replay_calls(const struct replay_options *options, const json_t *document,
                  struct replay_result *result);

#endif
