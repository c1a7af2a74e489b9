/* Workers that train the reference model through the client library, one thread each, step by step
 * as the test lets them. test -> [training] -> libparamd -> daemon. */
#ifndef PD_TESTS_SUPPORT_TRAINING_H
#define PD_TESTS_SUPPORT_TRAINING_H

#include "client/include/paramd.h"
#include "tests/support/reference.h"

struct training_options {
    const char *const *addresses; /* one per worker, in turn; address_count of them */
    uint32_t address_count;
    uint32_t worker_count;
    uint32_t worker_begin; /* number of the first worker, which makes its name and gradients */
    uint64_t step_count;
    uint32_t micro_batch_count;
    int push_dtype;
    int pull_dtype;
    bool backwards;                   /* start the workers in reverse order */
    bool apart;                       /* push and pull by two calls, not one */
    int64_t timeout_ms;               /* of each call; 0: the deadline of tests */
    double (*loss_of)(uint64_t step); /* NULL: 1 / (step + 1); NaN: none is given */
    /* Steps between those with an estimate of the Hessian, from step 0 on; 0: none has. */
    uint64_t hessian_every;
    /* Steps that a search for a learning rate takes: those after them have the gradients that they
     * would have without it. */
    uint64_t trial_begin;
    uint64_t trial_count;
};

/* Fill in: one address, `worker_count` workers, `step_count` steps of one float32 micro-batch. */
void training_options_init(struct training_options *options, const char *const *address,
                           uint32_t worker_count, uint64_t step_count);

struct training; /* a thread per worker; locked */

/* Start the workers: they register, and wait. The strings in the options are borrowed until
 * training_finish. Ownership: the caller's, for training_finish. */
struct training *training_start(const struct training_options *options);

/* Let every worker go on until `step` steps are behind it, and wait until they are. */
void training_advance(struct training *training, uint64_t step);
/* Let them go on, without waiting. */
void training_allow(struct training *training, uint64_t step);

/* The parameters worker `index` has, while it waits. */
void training_values(struct training *training, uint32_t index, float *values);

/* Let every worker do its steps and leave; `values`, if not NULL, gets the parameters of the last
 * version, which all must have alike. The test fails if any call of any worker did. */
void training_finish(struct training *training, float *values);

/* The three in one. */
void training_run(const struct training_options *options, float *values);

/* What a worker's failed call said, once all have ended: for faults that workers are to be told.
 * Frees the training. Returns the status of worker `index`. */
int training_finish_failed(struct training *training, uint32_t index, struct paramd_error *error);

/* The name of worker `number`: its order is that of the numbers. */
void training_worker_name(char name[32], uint32_t number);

#endif
