#include "server/core/config_options.h"

#include <math.h>
#include <stdio.h>

#define SECONDS_MAX 1e6
#define WHOLE_MAX 9007199254740992.0 /* 2^53: whole numbers are exact up to there */

#define TABLE(rows)                                                                                \
    {                                                                                              \
        (rows), sizeof(rows) / sizeof((rows)[0])                                                   \
    }
#define FIELD(name) .offset = offsetof(struct pd_config, name)
#define SECONDS(name)                                                                              \
    .type = PD_OPTION_REAL, FIELD(name), .low = 0, .low_open = 1, .high = SECONDS_MAX, .unit = "s"

_Static_assert(offsetof(struct pd_group, patterns) ==
                   offsetof(struct pd_group, pattern_count) + sizeof(uint32_t),
               "PD_OPTION_TEXTS keeps the texts right behind their count");

static const char *const aggregation_words[] = {"allreduce", "direct", NULL};
static const char *const mode_words[] = {"sync", NULL};
static const char *const lr_scaling_words[] = {"none", "linear", "sqrt", NULL};

static const char *const lookahead_words[] = {"paper", "timm", "alphadl", NULL};

static const struct pd_option config_rows[] = {
    {.key = "listen",
     .type = PD_OPTION_TEXT,
     FIELD(listen),
     .default_text = "127.0.0.1:7070",
     .high = PD_ADDRESS_BYTES_MAX,
     .help = "\"host:port\" or \"[v6]:port\"; a rank listens on port + its number, port 0: the "
             "kernel chooses"},
    {.key = "advertise",
     .type = PD_OPTION_TEXT,
     FIELD(advertise),
     .default_text = "null",
     .nullable = 1,
     .high = PD_HOST_BYTES_MAX,
     .help = "host name workers are told, when it is not that of listen"},
    {.key = "insecure",
     .type = PD_OPTION_BOOL,
     FIELD(insecure),
     .default_text = "false",
     .help = "allows listening beyond loopback, where anyone who connects may train"},
    {.key = "aggregation",
     .type = PD_OPTION_CHOICE,
     FIELD(aggregation),
     .default_text = "allreduce",
     .choices = aggregation_words,
     .help = "allreduce: a worker pushes to its home rank and MPI sums; direct: a worker pushes "
             "each slice to its owner"},
    {.key = "lanes",
     .type = PD_OPTION_UINT,
     FIELD(lanes),
     .default_text = "null",
     .nullable = 1,
     .low = 1,
     .high = PD_RANK_COUNT_MAX,
     .help = "slices a push is cut into, a divisor of the ranks; null: 1 for allreduce, all ranks "
             "for direct"},
    {.key = "workers", .type = PD_OPTION_SECTION, .help = "who trains"},
    {.key = "workers.expected",
     .type = PD_OPTION_UINT,
     FIELD(workers.expected),
     .default_text = "1",
     .low = 1,
     .high = PD_WORKER_COUNT_MAX,
     .help = "workers that must have joined before the first step"},
    {.key = "workers.mode",
     .type = PD_OPTION_CHOICE,
     FIELD(workers.mode),
     .default_text = "sync",
     .choices = mode_words,
     .help = "sync: a step waits for every worker"},
    {.key = "workers.lease_s",
     SECONDS(workers.lease_s),
     .default_text = "60",
     .help = "silence after which a worker is evicted"},
    {.key = "workers.resume_s",
     SECONDS(workers.resume_s),
     .default_text = "15",
     .help = "time a worker whose connection closed has to come back"},
    {.key = "accumulation_steps",
     .type = PD_OPTION_UINT,
     FIELD(accumulation_steps),
     .default_text = "1",
     .low = 1,
     .high = PD_ACCUMULATION_STEPS_MAX,
     .help = "micro-batches a worker pushes for one step"},
    {.key = "outer",
     .type = PD_OPTION_BOOL,
     FIELD(outer),
     .default_text = "false",
     .help = "workers push their parameters after local steps; what is served less their average "
             "is the gradient (DiLoCo, FedOpt)"},
    {.key = "lr_scaling",
     .type = PD_OPTION_SECTION,
     .help = "learning rate by effective batch: samples of one step over all workers"},
    {.key = "lr_scaling.rule",
     .type = PD_OPTION_CHOICE,
     FIELD(lr_scaling.rule),
     .default_text = "none",
     .choices = lr_scaling_words,
     .help = "linear: lr * batch / base_batch; sqrt: lr * sqrt(batch / base_batch)"},
    {.key = "lr_scaling.base_batch",
     .type = PD_OPTION_UINT,
     FIELD(lr_scaling.base_batch),
     .default_text = "null",
     .nullable = 1,
     .low = 1,
     .high = WHOLE_MAX,
     .unit = "samples",
     .help = "the batch lr was chosen for; needed by linear and sqrt"},
    {.key = "clip", .type = PD_OPTION_SECTION, .help = "clipping of the averaged gradient"},
    {.key = "clip.norm",
     .type = PD_OPTION_REAL,
     FIELD(clip.norm),
     .default_text = "null",
     .nullable = 1,
     .low = 0,
     .low_open = 1,
     .high = INFINITY,
     .high_open = 1,
     .help = "largest norm of the gradient over all parameters; null: not clipped"},
    {.key = "clip.norm_type",
     .type = PD_OPTION_REAL,
     FIELD(clip.norm_type),
     .default_text = "2",
     .low = 0,
     .low_open = 1,
     .high = INFINITY,
     .help = "p of the norm"},
    {.key = "clip.value",
     .type = PD_OPTION_REAL,
     FIELD(clip.value),
     .default_text = "null",
     .nullable = 1,
     .low = 0,
     .low_open = 1,
     .high = INFINITY,
     .high_open = 1,
     .help = "largest magnitude of an element, cut before the norm is taken; null: not cut"},
    {.key = "lookahead",
     .type = PD_OPTION_SECTION,
     .help = "slow weights that the optimizer's are pulled back to"},
    {.key = "lookahead.k",
     .type = PD_OPTION_UINT,
     FIELD(lookahead.k),
     .default_text = "null",
     .nullable = 1,
     .low = 1,
     .high = WHOLE_MAX,
     .unit = "steps",
     .help = "steps between synchronisations; null: no Lookahead"},
    {.key = "lookahead.alpha",
     .type = PD_OPTION_REAL,
     FIELD(lookahead.alpha),
     .default_text = "0.5",
     .low = 0,
     .high = 1,
     .help = "how far the slow weights go towards the fast ones"},
    {.key = "lookahead.variant",
     .type = PD_OPTION_CHOICE,
     FIELD(lookahead.variant),
     .default_text = "paper",
     .choices = lookahead_words,
     .help = "paper: slow weights begin as the initial ones; timm: as those after step k; alphadl: "
             "as those after step 1, from which the steps are counted"},
    {.key = "ema",
     .type = PD_OPTION_SECTION,
     .help = "exponential moving average of the parameters, to be pulled and evaluated"},
    {.key = "ema.decay",
     .type = PD_OPTION_REAL,
     FIELD(average.ema_decay),
     .default_text = "null",
     .nullable = 1,
     .low = 0,
     .high = 1,
     .high_open = 1,
     .help = "share of the old average; null: no EMA"},
    {.key = "ema.warmup",
     .type = PD_OPTION_BOOL,
     FIELD(average.ema_warmup),
     .default_text = "false",
     .help = "the decay grows as 1 - (1 + s)^(-2/3) with the steps averaged, up to ema.decay"},
    {.key = "ema.copy_steps",
     .type = PD_OPTION_UINT,
     FIELD(average.ema_copy_steps),
     .default_text = "1",
     .low = 0,
     .high = WHOLE_MAX,
     .unit = "steps",
     .help = "first steps that are copied; 0: the average begins as the initial parameters"},
    {.key = "swa",
     .type = PD_OPTION_SECTION,
     .help =
         "stochastic weight averaging: equal average of parameters, to be pulled and evaluated"},
    {.key = "swa.start",
     .type = PD_OPTION_UINT,
     FIELD(average.swa_start),
     .default_text = "0",
     .low = 0,
     .high = WHOLE_MAX,
     .unit = "steps",
     .help = "first step that is averaged, counted from 0"},
    {.key = "swa.every",
     .type = PD_OPTION_UINT,
     FIELD(average.swa_every),
     .default_text = "null",
     .nullable = 1,
     .low = 1,
     .high = WHOLE_MAX,
     .unit = "steps",
     .help = "steps between averaged ones; null: no SWA"},
    {.key = "loss_scale",
     .type = PD_OPTION_SECTION,
     .help = "the factor workers multiply their loss by, undone here: GradScaler of PyTorch"},
    {.key = "loss_scale.init_scale",
     .type = PD_OPTION_REAL,
     FIELD(loss_scale.init_scale),
     .default_text = "null",
     .nullable = 1,
     .low = 0,
     .low_open = 1,
     .high = 1e38,
     .help = "first scale; null: no loss scaling"},
    {.key = "loss_scale.dynamic",
     .type = PD_OPTION_BOOL,
     FIELD(loss_scale.dynamic),
     .default_text = "true",
     .help = "false: the scale stays as it is"},
    {.key = "loss_scale.growth_factor",
     .type = PD_OPTION_REAL,
     FIELD(loss_scale.growth_factor),
     .default_text = "2.0",
     .low = 1,
     .low_open = 1,
     .high = 1e6,
     .help = "what the scale grows by after growth_interval steps with finite gradients"},
    {.key = "loss_scale.backoff_factor",
     .type = PD_OPTION_REAL,
     FIELD(loss_scale.backoff_factor),
     .default_text = "0.5",
     .low = 0,
     .low_open = 1,
     .high = 1,
     .high_open = 1,
     .help = "what the scale shrinks by after a step with a non-finite gradient"},
    {.key = "loss_scale.growth_interval",
     .type = PD_OPTION_UINT,
     FIELD(loss_scale.growth_interval),
     .default_text = "2000",
     .low = 1,
     .high = WHOLE_MAX,
     .unit = "steps",
     .help = "steps in a row with finite gradients after which the scale grows"},
    {.key = "model",
     .type = PD_OPTION_TEXT,
     FIELD(model),
     .default_text = "null",
     .nullable = 1,
     .high = PD_PATH_BYTES_MAX,
     .help = "safetensors file with the initial values; null: the first worker brings them"},
    {.key = "block_size",
     .type = PD_OPTION_UINT,
     FIELD(block_size),
     .default_text = "65536",
     .low = 1,
     .high = PD_BLOCK_ELEMENT_COUNT_MAX,
     .unit = "elements",
     .help = "the unit of work, of summation and of sharding"},
    {.key = "handshake_s",
     SECONDS(handshake_s),
     .default_text = "10",
     .help = "time a new connection has to say hello"},
    {.key = "send_timeout_s",
     SECONDS(send_timeout_s),
     .default_text = "30",
     .help = "a peer that reads nothing for so long is cut off"},
    {.key = "rank_timeout_s",
     SECONDS(rank_timeout_s),
     .default_text = "10",
     .help = "a rank silent for so long, or a collective stuck for so long, ends the job"},
    {.key = "drain_timeout_s",
     SECONDS(drain_timeout_s),
     .default_text = "10",
     .help = "time a running step has to end when the daemon drains"},
    {.key = "optimizer", .type = PD_OPTION_SECTION, .help = "the update rule, with its own keys"},
    {.key = "groups",
     .type = PD_OPTION_SECTION,
     .help = "list of parameter groups with hyperparameters of their own; the first that matches "
             "a tensor has it"},
    {.key = "steps_per_epoch",
     .type = PD_OPTION_UINT,
     FIELD(steps_per_epoch),
     .default_text = "null",
     .nullable = 1,
     .low = 1,
     .high = 1e9,
     .unit = "steps",
     .help = "length of an epoch; needed by schedules whose unit is epochs"},
    {.key = "schedule",
     .type = PD_OPTION_SECTION,
     .help = "learning rate by step: one mapping, or a list of them run one after the other"},
    {.key = "checkpoint", .type = PD_OPTION_SECTION, .help = "not in this version: leave it out"},
};

static const struct pd_option optimizer_name_rows[] = {
    {.key = "name",
     .type = PD_OPTION_TEXT,
     .default_text = "adamw",
     .high = PD_NAME_BYTES_MAX,
     .help = "the rule"},
};

static const struct pd_option schedule_name_rows[] = {
    {.key = "name", .type = PD_OPTION_TEXT, .high = PD_NAME_BYTES_MAX, .help = "the rule"},
};

static const struct pd_option group_rows[] = {
    {.key = "name",
     .type = PD_OPTION_TEXT,
     .offset = offsetof(struct pd_group, name),
     .default_text = "null",
     .nullable = 1,
     .high = PD_NAME_BYTES_MAX,
     .help = "what status calls it; null: group1, group2..."},
    {.key = "match",
     .type = PD_OPTION_TEXTS,
     .offset = offsetof(struct pd_group, pattern_count),
     .default_text = "null",
     .nullable = 1,
     .low = PD_GROUP_PATTERN_COUNT_MAX,
     .high = PD_TENSOR_NAME_BYTES_MAX,
     .help = "globs on tensor names, in quotes; null: any name"},
};

static const struct pd_option group_settings_rows[] = {
    {.key = "min_dims",
     .type = PD_OPTION_UINT,
     .offset = offsetof(struct pd_group_settings, min_dims),
     .default_text = "0",
     .low = 0,
     .high = PD_TENSOR_DIMENSION_COUNT_MAX,
     .help = "fewest dimensions of a tensor that matches"},
    {.key = "max_dims",
     .type = PD_OPTION_UINT,
     .offset = offsetof(struct pd_group_settings, max_dims),
     .default_text = "8",
     .low = 0,
     .high = PD_TENSOR_DIMENSION_COUNT_MAX,
     .help = "most dimensions of a tensor that matches"},
    {.key = "lr_multiplier",
     .type = PD_OPTION_REAL,
     .offset = offsetof(struct pd_group_settings, lr_multiplier),
     .default_text = "1",
     .low = 0,
     .high = INFINITY,
     .high_open = 1,
     .help = "times the optimizer's lr; not together with lr"},
};

const struct pd_option_table pd_config_options = TABLE(config_rows);
const struct pd_option_table pd_optimizer_name_options = TABLE(optimizer_name_rows);
const struct pd_option_table pd_schedule_name_options = TABLE(schedule_name_rows);
const struct pd_option_table pd_group_options = TABLE(group_rows);
const struct pd_option_table pd_group_settings_options = TABLE(group_settings_rows);

static size_t append_name(char *text, size_t text_bytes, size_t used, const char *name)
{
    if (used < text_bytes) {
        used +=
            (size_t)snprintf(text + used, text_bytes - used, "%s%s", used == 0 ? "" : ", ", name);
    }
    return used;
}

const char *pd_optimizer_names(char *text, size_t text_bytes)
{
    size_t used = 0;

    text[0] = '\0';
    for (size_t i = 0; pd_optimizer_at(i) != NULL; i++) {
        used = append_name(text, text_bytes, used, pd_optimizer_at(i)->name);
    }
    return text;
}

const char *pd_schedule_names(char *text, size_t text_bytes)
{
    size_t used = 0;

    text[0] = '\0';
    for (size_t i = 0; pd_schedule_at(i) != NULL; i++) {
        used = append_name(text, text_bytes, used, pd_schedule_at(i)->name);
    }
    return text;
}
