/* One worker that trains a few small tensors in a real daemon, a step at a time, and asks it
 * things. test -> [trial] -> cluster, client library. Failures end the running Check test. */
#ifndef PD_TESTS_SUPPORT_TRIAL_H
#define PD_TESTS_SUPPORT_TRIAL_H

#include "client/include/paramd.h"
#include "tests/support/cluster.h"

#include <jansson.h>

#define TRIAL_TENSOR_COUNT_MAX 64u
#define TRIAL_ELEMENT_COUNT_MAX 1024u

/* A tensor of the model; all its elements are 1 at first. */
struct trial_tensor {
    const char *name;
    uint32_t dimension_count;
    uint64_t shape[4];
};

struct trial {
    struct cluster cluster;
    struct paramd_client *client;
    uint64_t samples; /* of the next micro-batch; 1 at first */
    unsigned flags;   /* of paramd_step, with it */
    uint32_t tensor_count;
    uint64_t begins[TRIAL_TENSOR_COUNT_MAX + 1]; /* of each tensor's elements */
    float values[TRIAL_ELEMENT_COUNT_MAX];       /* of all tensors, one after the other */
};

/* Start a daemon, join and register. `config` is what the configuration says beside aggregation and
 * block_size, which is small unless it says one, so that tensors span shards. */
void trial_begin(struct trial *trial, uint32_t rank_count, const char *aggregation,
                 const char *config, const struct trial_tensor *tensors, uint32_t tensor_count);

/* One micro-batch, or a step where that is all, with that gradient, flat; bit i of `absent` leaves
 * tensor i out. */
struct paramd_step_info trial_step(struct trial *trial, const float *gradient, uint64_t absent);
/* The same with every element of the gradient `element`. */
struct paramd_step_info trial_step_all(struct trial *trial, float element);

/* An estimate of the Hessian for the next step, flat. */
void trial_push_hessian(struct trial *trial, const float *estimate);

/* The reply to a command; new, for json_decref. */
json_t *trial_ask(struct trial *trial, const char *command, uint64_t begin, uint64_t count);

/* What a key of an item of a list in a reply is; the item is found by its name. */
const json_t *trial_item(const json_t *reply, const char *list, const char *name, const char *key);

/* Leave, drain and stop. */
void trial_end(struct trial *trial);

#endif
