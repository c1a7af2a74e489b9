/* The daemon's configuration: YAML text -> [config] -> engine, daemon. Pure (text in, struct out).
 * One table of options (config.c) gives parsing, bounds, defaults, --help and the example file. */
#ifndef PD_SERVER_CORE_CONFIG_H
#define PD_SERVER_CORE_CONFIG_H

#include "common/error.h"
#include "server/core/average.h"
#include "server/core/clip.h"
#include "server/core/layer_decay.h"
#include "server/core/loss_scale.h"
#include "server/core/optimizer.h"
#include "server/core/schedule.h"

enum pd_aggregation { PD_AGGREGATION_ALLREDUCE, PD_AGGREGATION_DIRECT };
enum pd_lr_scaling { PD_LR_SCALING_NONE, PD_LR_SCALING_LINEAR, PD_LR_SCALING_SQRT };

/* A parameter group: tensors that match, and their own hyperparameters. */
struct pd_group {
    char name[PD_NAME_BYTES_MAX + 1]; /* "default" for group 0, else given, else "group1"... */
    uint32_t pattern_count;           /* `match`: globs on tensor names; none matches every name */
    char patterns[PD_GROUP_PATTERN_COUNT_MAX][PD_TENSOR_NAME_BYTES_MAX + 1];
    uint32_t dimensions_min; /* `min_dims`, `max_dims`: by number of dimensions */
    uint32_t dimensions_max;
    bool frozen;      /* its tensors stay as they are, and have no state */
    bool clips_alone; /* its norm is of its own tensors, which then do not count in the whole's */
    struct pd_clip_options clip; /* the whole's, with this group's keys in their place */
    struct pd_hyper hyper; /* the optimizer's, likewise; its lr is what training begins with */
    double schedule_lr;    /* what schedules start from; times lr_multiplier comes after them */
    double lr_multiplier;
    struct pd_momentum_range momentum_range; /* where schedules move it; NaN: as they say */
};

struct pd_config {
    char listen[PD_ADDRESS_BYTES_MAX + 1]; /* as written */
    char listen_host[PD_HOST_BYTES_MAX + 1];
    uint32_t listen_port;                  /* rank r listens on port + r; 0: the kernel chooses */
    char advertise[PD_HOST_BYTES_MAX + 1]; /* empty: the listen host */
    bool insecure;                         /* allows listening beyond loopback without keys */
    int aggregation;                       /* enum pd_aggregation */
    uint64_t lanes;                        /* 0: 1 for allreduce, all ranks for direct */
    struct {
        uint64_t expected;      /* workers that must have registered before the first step */
        int mode;               /* 0 sync */
        double lease_s;         /* silence after which a worker is evicted */
        double resume_s;        /* time a worker whose connection closed has to come back */
        double register_s;      /* time to register, and to give initial values if asked to */
        uint64_t staging_limit; /* bytes of pushed gradients that a rank holds; 0: no limit */
    } workers;
    uint64_t accumulation_steps;
    bool outer; /* workers push parameters: the gradient is what is served less their average */
    struct {
        int rule; /* enum pd_lr_scaling */
        uint64_t base_batch;
    } lr_scaling;
    struct pd_clip_options clip;
    struct pd_loss_scale_options loss_scale;
    struct pd_layer_decay_options layer_decay;
    struct pd_lookahead_options lookahead;
    struct pd_average_options average;
    char model[PD_PATH_BYTES_MAX + 1]; /* safetensors file with the initial values; "" none */
    uint64_t block_size;               /* elements */
    uint64_t compute_ahead; /* elements of a rank from which on its steps begin ahead; 0: never */
    double handshake_s;     /* time a new connection has to say hello */
    double send_timeout_s;  /* a peer that reads nothing for so long is cut off */
    double rank_timeout_s;  /* a rank silent for so long, or a collective stuck, ends the job */
    double drain_timeout_s; /* time a running step has to end when the daemon drains */
    const struct pd_optimizer *optimizer;
    uint32_t group_count; /* at least 1: group 0 is for tensors no other group matches */
    struct pd_group groups[PD_GROUP_COUNT_MAX + 1];
    struct {
        char metric[PD_NAME_BYTES_MAX + 1]; /* empty: off */
        struct pd_watch_options watch;      /* the threshold is a difference */
    } early_stop;
    uint64_t history;         /* steps */
    uint64_t steps_per_epoch; /* 0: not given */
    uint32_t schedule_count;
    struct pd_schedule schedules[PD_SCHEDULE_COUNT_MAX];
};

/* Parse `text`, then each "key=value" of `settings` (dotted keys, YAML values) over it.
 * `file` names the text in messages; NULL text is an empty file. *out is the caller's, for
 * pd_config_destroy. Errors: PD_ECONFIG, one line: "FILE:LINE: key: what; allowed: ..."; PD_ENOMEM.
 */
PD_MUST_CHECK
enum pd_status pd_config_create(struct pd_config **out, const char *file, const char *text,
                                const char *const *settings, size_t setting_count,
                                struct pd_error *error);
void pd_config_destroy(struct pd_config *config);

/* Group of a tensor: the first whose patterns and dimensions match, from 1; else 0. */
uint32_t pd_config_group_of(const struct pd_config *config, const char *tensor_name,
                            uint32_t dimension_count);

/* Lanes for that many ranks. Errors: PD_ECONFIG if `lanes` does not divide it. */
PD_MUST_CHECK
enum pd_status pd_config_lanes(const struct pd_config *config, uint32_t rank_count, uint32_t *lanes,
                               struct pd_error *error);

/* The commented example file, which parses to the defaults; the key list of --help; and the few
 * lines of --check-config on what a configuration says. New text, for pd_heap_free; NULL: out of
 * memory. */
char *pd_config_example(void);
char *pd_config_help(void);
char *pd_config_summary(const struct pd_config *config);

#endif
