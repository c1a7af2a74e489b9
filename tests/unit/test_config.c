/* A whole configuration: what it means, what it refuses and what it says then. */
#include "common/heap.h"
#include "server/core/config.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct pd_config *parse(const char *text, const char *setting)
{
    struct pd_config *config = NULL;
    struct pd_error error = {0};
    enum pd_status status =
        pd_config_create(&config, "f", text, &setting, setting == NULL ? 0 : 1, &error);

    ck_assert_msg(status == PD_OK, "%s", error.message);
    return config;
}

static void check_refused(const char *text, const char *setting, const char *message)
{
    struct pd_config *config = NULL;
    struct pd_error error = {0};

    ck_assert_int_eq(
        pd_config_create(&config, "f", text, &setting, setting == NULL ? 0 : 1, &error),
        PD_ECONFIG);
    ck_assert_ptr_null(config);
    ck_assert_str_eq(error.message, message);
    ck_assert_int_eq(error.status, PD_ECONFIG);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}

START_TEST(an_empty_file_is_all_defaults)
{
    struct pd_config *config = parse(NULL, NULL);

    ck_assert_str_eq(config->listen_host, "127.0.0.1");
    ck_assert_uint_eq(config->listen_port, 7070);
    ck_assert_str_eq(config->advertise, "");
    ck_assert(!config->insecure);
    ck_assert_int_eq(config->aggregation, PD_AGGREGATION_ALLREDUCE);
    ck_assert_uint_eq(config->lanes, 0);
    ck_assert_uint_eq(config->workers.expected, 1);
    ck_assert_int_eq(config->workers.mode, 0);
    ck_assert_double_eq(config->workers.lease_s, 60);
    ck_assert_double_eq(config->workers.resume_s, 15);
    ck_assert_double_eq(config->workers.register_s, 600);
    ck_assert_uint_eq(config->accumulation_steps, 1);
    ck_assert_int_eq(config->lr_scaling.rule, PD_LR_SCALING_NONE);
    ck_assert(isnan(config->clip.norm));
    ck_assert_double_eq(config->clip.norm_type, 2);
    ck_assert(isnan(config->clip.value));
    ck_assert_str_eq(config->model, "");
    ck_assert_uint_eq(config->block_size, 65536);
    ck_assert_double_eq(config->handshake_s, 10);
    ck_assert_double_eq(config->send_timeout_s, 30);
    ck_assert_double_eq(config->rank_timeout_s, 10);
    ck_assert_double_eq(config->drain_timeout_s, 10);
    ck_assert_str_eq(config->optimizer->name, "adamw");
    ck_assert_uint_eq(config->group_count, 1);
    ck_assert_str_eq(config->groups[0].name, "default");
    ck_assert_uint_eq(config->schedule_count, 0);
    pd_config_destroy(config);
}
END_TEST

START_TEST(sections_without_a_value_are_defaults)
{
    struct pd_config *config = parse("workers:\nclip: ~\noptimizer: null\ngroups:\nschedule: []\n"
                                     "checkpoint: null\nlr_scaling: {}\n",
                                     NULL);

    ck_assert_uint_eq(config->workers.expected, 1);
    ck_assert_str_eq(config->optimizer->name, "adamw");
    ck_assert_uint_eq(config->group_count, 1);
    ck_assert_uint_eq(config->schedule_count, 0);
    pd_config_destroy(config);
}
END_TEST

/* The example of the design, without its checkpoints. */
static const char full[] = "listen: 127.0.0.1:7071        # a comment\n"
                           "advertise: node7.example\n"
                           "aggregation: direct\n"
                           "workers: {expected: 2, mode: sync, lease_s: 0.5}\n"
                           "accumulation_steps: 4\n"
                           "lr_scaling: {rule: linear, base_batch: 256}\n"
                           "clip: {norm: 1.0, norm_type: inf, value: null}\n"
                           "optimizer: {name: adamw, lr: 1e-3, betas: [0.8, 0.99], eps: 1e-8,\n"
                           "            weight_decay: 0.1}\n"
                           "groups:\n"
                           "  - {match: [\"*.bias\", \"*norm*\"], weight_decay: 0}\n"
                           "  - {name: trunk, match: \"backbone.*\", lr: 1e-5}\n"
                           "  - {max_dims: 1, lr_multiplier: 0.5}\n"
                           "schedule:\n"
                           "  - {name: linear, start_factor: 0.01, steps: 500}\n"
                           "  - {name: cosine, t_max: 10000, eta_min: 1e-6}\n";

START_TEST(every_section_of_a_full_file_is_read)
{
    struct pd_config *config = parse(full, NULL);

    ck_assert_uint_eq(config->listen_port, 7071);
    ck_assert_str_eq(config->advertise, "node7.example");
    ck_assert_int_eq(config->aggregation, PD_AGGREGATION_DIRECT);
    ck_assert_uint_eq(config->workers.expected, 2);
    ck_assert_double_eq(config->workers.lease_s, 0.5);
    ck_assert_uint_eq(config->accumulation_steps, 4);
    ck_assert_int_eq(config->lr_scaling.rule, PD_LR_SCALING_LINEAR);
    ck_assert_uint_eq(config->lr_scaling.base_batch, 256);
    ck_assert_double_eq(config->clip.norm, 1);
    ck_assert(isinf(config->clip.norm_type));
    ck_assert(isnan(config->clip.value));
    ck_assert_double_eq(config->groups[0].hyper.lr, 1e-3);
    ck_assert_double_eq(config->groups[0].hyper.betas[0], 0.8);
    ck_assert_double_eq(config->groups[0].hyper.betas[1], 0.99);
    ck_assert_double_eq(config->groups[0].hyper.eps, 1e-8);
    ck_assert_double_eq(config->groups[0].hyper.weight_decay, 0.1);
    ck_assert_uint_eq(config->schedule_count, 2);
    ck_assert_int_eq(config->schedules[0].kind, PD_SCHEDULE_LINEAR);
    ck_assert_uint_eq(config->schedules[0].steps, 500);
    ck_assert_double_eq(config->schedules[0].start_factor, 0.01);
    ck_assert_int_eq(config->schedules[1].kind, PD_SCHEDULE_COSINE);
    ck_assert_uint_eq(config->schedules[1].t_max, 10000);
    ck_assert_double_eq(config->schedules[1].eta_min, 1e-6);
    pd_config_destroy(config);
}
END_TEST

START_TEST(a_group_has_the_optimizers_values_but_its_own)
{
    struct pd_config *config = parse(full, NULL);
    const struct pd_group *groups = config->groups;

    ck_assert_uint_eq(config->group_count, 4);
    ck_assert_str_eq(groups[1].name, "group1");
    ck_assert_double_eq(groups[1].hyper.weight_decay, 0);
    ck_assert_double_eq(groups[1].hyper.lr, 1e-3);
    ck_assert_double_eq(groups[1].hyper.betas[1], 0.99);
    ck_assert_str_eq(groups[2].name, "trunk");
    ck_assert_double_eq(groups[2].hyper.lr, 1e-5);
    ck_assert_double_eq(groups[2].hyper.weight_decay, 0.1);
    ck_assert_double_eq(groups[3].hyper.lr, 0.5e-3);
    ck_assert_double_eq(groups[3].schedule_lr, 1e-3);
    ck_assert_double_eq(groups[3].lr_multiplier, 0.5);
    ck_assert_double_eq(groups[2].schedule_lr, 1e-5);
    ck_assert_double_eq(groups[2].lr_multiplier, 1);
    pd_config_destroy(config);
}
END_TEST

START_TEST(a_group_has_the_clip_of_the_whole_but_its_own_keys)
{
    struct pd_config *config = parse("clip: {norm: 2, norm_type: 1, value: 0.5}\n"
                                     "groups:\n"
                                     "  - {match: a}\n"
                                     "  - {match: b, clip: {norm: 0.5}}\n"
                                     "  - {match: c, clip: {norm: null, value: null}}\n"
                                     "  - {match: d, clip: {value: 3}, frozen: true}\n"
                                     "  - {match: e, clip: {norm_type: inf}}\n",
                                     NULL);
    static const struct {
        struct pd_clip_options clip;
        bool clips_alone;
    } expected[] = {
        {{2, 1, 0.5}, false},  {{2, 1, 0.5}, false}, {{0.5, 1, 0.5}, true},
        {{NAN, 1, NAN}, true}, {{2, 1, 3}, false},   {{2, INFINITY, 0.5}, true},
    };

    ck_assert_uint_eq(config->group_count, 6);
    for (uint32_t i = 0; i < 6; i++) {
        const struct pd_group *group = &config->groups[i];
        ck_assert(isnan(expected[i].clip.norm) ? isnan(group->clip.norm)
                                               : group->clip.norm == expected[i].clip.norm);
        ck_assert_double_eq(group->clip.norm_type, expected[i].clip.norm_type);
        ck_assert(isnan(expected[i].clip.value) ? isnan(group->clip.value)
                                                : group->clip.value == expected[i].clip.value);
        ck_assert_int_eq(group->clips_alone, expected[i].clips_alone);
        ck_assert_int_eq(group->frozen, i == 4);
    }
    pd_config_destroy(config);
}
END_TEST

START_TEST(a_tensor_is_in_the_first_group_that_matches)
{
    struct pd_config *config = parse(full, NULL);

    ck_assert_uint_eq(pd_config_group_of(config, "backbone.fc.bias", 1), 1);
    ck_assert_uint_eq(pd_config_group_of(config, "layernorm.weight", 2), 1);
    ck_assert_uint_eq(pd_config_group_of(config, "backbone.fc.weight", 2), 2);
    ck_assert_uint_eq(pd_config_group_of(config, "backbone", 2), 0);
    ck_assert_uint_eq(pd_config_group_of(config, "scale", 1), 3);
    ck_assert_uint_eq(pd_config_group_of(config, "temperature", 0), 3);
    ck_assert_uint_eq(pd_config_group_of(config, "fc.weight", 2), 0);
    pd_config_destroy(config);
}
END_TEST

START_TEST(min_dims_and_max_dims_include_their_bounds)
{
    struct pd_config *config = parse("groups: [{min_dims: 2, max_dims: 3}]", NULL);

    for (uint32_t dimensions = 0; dimensions <= PD_TENSOR_DIMENSION_COUNT_MAX; dimensions++) {
        ck_assert_uint_eq(pd_config_group_of(config, "w", dimensions),
                          dimensions == 2 || dimensions == 3);
    }
    pd_config_destroy(config);
}
END_TEST

START_TEST(every_optimizer_can_be_named)
{
    for (size_t i = 0; pd_optimizer_at(i) != NULL; i++) {
        char setting[64];
        snprintf(setting, sizeof setting, "optimizer.name=%s", pd_optimizer_at(i)->name);
        struct pd_config *config = parse(NULL, setting);
        ck_assert_ptr_eq(config->optimizer, pd_optimizer_at(i));
        pd_config_destroy(config);
    }
}
END_TEST

START_TEST(every_schedule_can_be_named_without_a_list)
{
    for (size_t i = 0; pd_schedule_at(i) != NULL; i++) {
        char setting[64];
        snprintf(setting, sizeof setting, "schedule.name=%s", pd_schedule_at(i)->name);
        struct pd_config *config = parse(NULL, setting);
        ck_assert_uint_eq(config->schedule_count, 1);
        ck_assert_int_eq(config->schedules[0].kind, pd_schedule_at(i)->kind);
        pd_config_destroy(config);
    }
}
END_TEST

START_TEST(schedules_can_be_chained_and_count_epochs)
{
    struct pd_config *config = parse("steps_per_epoch: 50\n"
                                     "schedule:\n"
                                     "  - {name: linear, steps: 5, unit: epochs, offset: 1}\n"
                                     "  - {name: piecewise, points: [[0, 1], [30, 0.1]]}\n"
                                     "  - {name: step, chain: true}\n",
                                     NULL);

    ck_assert_uint_eq(pd_schedule_duration(config->schedules, 3), 250);
    ck_assert_uint_eq(config->schedules[0].offset, 1);
    ck_assert_uint_eq(config->schedules[1].points.count, 2);
    ck_assert_double_eq(config->schedules[1].points.pairs[1][1], 0.1);
    ck_assert(config->schedules[2].chain && !config->schedules[1].chain);
    ck_assert_uint_eq(pd_schedule_together(config->schedules + 1, 2), 2);
    pd_config_destroy(config);
}
END_TEST

START_TEST(a_schedule_that_cycles_momentum_gives_one_to_a_rule_without)
{
    struct pd_config *config = parse("optimizer: {name: sgd}\ngroups: [{match: a, momentum: 0.5}]\n"
                                     "schedule: {name: cyclic, max_momentum: 0.7}\n",
                                     NULL);
    struct pd_config *still =
        parse("optimizer: {name: sgd}\nschedule: {name: cyclic, cycle_momentum: false}\n", NULL);

    ck_assert_double_eq(config->groups[0].hyper.momentum, 0.7);
    ck_assert_double_eq(config->groups[1].hyper.momentum, 0.5);
    ck_assert_double_eq(still->groups[0].hyper.momentum, 0);
    pd_config_destroy(config);
    pd_config_destroy(still);
}
END_TEST

START_TEST(settings_lie_over_the_file_in_their_order)
{
    const char *settings[] = {"workers.expected=3",   "workers.expected=4", "schedule.0.steps=7",
                              "schedule.1.eta_min=0", "clip={value: 5}",    "groups="};
    struct pd_config *config = NULL;
    struct pd_error error = {0};

    ck_assert_int_eq(pd_config_create(&config, "f", full, settings, 6, &error), PD_OK);
    ck_assert_uint_eq(config->workers.expected, 4);
    ck_assert_double_eq(config->workers.lease_s, 0.5);
    ck_assert_uint_eq(config->schedules[0].steps, 7);
    ck_assert_double_eq(config->schedules[0].start_factor, 0.01);
    ck_assert_double_eq(config->schedules[1].eta_min, 0);
    ck_assert(isnan(config->clip.norm));
    ck_assert_double_eq(config->clip.value, 5);
    ck_assert_uint_eq(config->group_count, 1);
    pd_config_destroy(config);
}
END_TEST

static const struct {
    const char *setting;
    const char *host;
    uint32_t port;
} addresses[] = {
    {"listen=127.0.0.1:0", "127.0.0.1", 0},
    {"listen=127.255.0.9:65535", "127.255.0.9", 65535},
    {"listen=localhost:1", "localhost", 1},
    {"listen=\"[::1]:7070\"", "::1", 7070},
};

START_TEST(loopback_needs_no_permission)
{
    struct pd_config *config = parse(NULL, addresses[_i].setting);

    ck_assert_str_eq(config->listen_host, addresses[_i].host);
    ck_assert_uint_eq(config->listen_port, addresses[_i].port);
    pd_config_destroy(config);
}
END_TEST

static const char *const open_addresses[] = {
    "0.0.0.0:7070",        "192.168.1.5:7070", "[::]:7070",
    "[fe80::1%eth0]:7070", "example.org:7070", "127.evil.com:70",
    "127.0.0.1.a:7070",    "128.0.0.1:7070",   "localhost.com:70",
};

START_TEST(listening_beyond_loopback_needs_insecure)
{
    char text[128];
    char message[300];

    snprintf(text, sizeof text, "\nlisten: \"%s\"\n", open_addresses[_i]);
    snprintf(
        message, sizeof message,
        "f:2: listen: %s: beyond loopback anyone who connects may train, as there are no keys; "
        "allowed: 127.0.0.0/8, ::1, localhost, or any with insecure: true",
        open_addresses[_i]);
    check_refused(text, NULL, message);
    struct pd_config *config = parse(text, "insecure=true");
    pd_config_destroy(config);
}
END_TEST

static const char *const bad_addresses[] = {
    "7070",     ":7070",          "host",     "host:",     "host:65536", "host:-1",
    "host:1x",  "host:123456789", "::1:7070", "[::1:7070", "[::1]7070",  "[]:7070",
    "a b:7070", "host/x:7070",    "[::1]",    "[::1]:",    "host:7070:", "host:+7",
};

START_TEST(what_is_no_address_is_refused)
{
    char text[128];
    char message[300];

    snprintf(text, sizeof text, "insecure: true\nlisten: \"%s\"\n", bad_addresses[_i]);
    snprintf(
        message, sizeof message,
        "f:2: listen: %s: not an address; allowed: host:port or \"[v6]:port\", port 0 to 65535",
        bad_addresses[_i]);
    check_refused(text, NULL, message);
}
END_TEST

static const struct {
    const char *text;
    const char *setting;
    const char *message;
} refusals[] = {
    {"\n\nclipp: 1\n", NULL,
     "f:3: clipp: unknown key; did you mean clip? allowed: listen, advertise, insecure, "
     "aggregation, lanes, workers, accumulation_steps, outer, lr_scaling, clip, layer_decay, "
     "lookahead, ema, swa, "
     "loss_scale, model, "
     "block_size, "
     "compute_ahead, handshake_s, send_timeout_s, rank_timeout_s, drain_timeout_s, optimizer, "
     "groups, "
     "early_stop, history, steps_per_epoch, schedule, checkpoint"},
    {"workers:\n  expectd: 2\n", NULL,
     "f:2: workers.expectd: unknown key; did you mean expected? allowed: expected, mode, lease_s, "
     "resume_s, register_s, staging_limit"},
    {"workers: {staging_limit: 0}", NULL,
     "f:1: workers.staging_limit: 0: out of range; allowed: a whole number >= 1, or null"},
    {"workers: {expected: two}", NULL,
     "f:1: workers.expected: two: not a whole number; allowed: a whole number from 1 to 1024"},
    {"workers: {mode: async}", NULL,
     "f:1: workers.mode: async: not one of the words; allowed: sync"},
    {"workers: 2", NULL, "f:1: workers: a single value; allowed: a mapping of keys"},
    {"workers: [2]", NULL, "f:1: workers: a list; allowed: a mapping of keys"},
    {"optimizer: adamw", NULL, "f:1: optimizer: a single value; allowed: a mapping of keys"},
    {"- a", NULL, "f:1: a list; allowed: a mapping of keys"},
    {"hello", NULL, "f:1: a single value; allowed: a mapping of keys"},
    {"accumulation_steps: 65537", NULL,
     "f:1: accumulation_steps: 65537: out of range; allowed: a whole number from 1 to 65536"},
    {"accumulation_steps: 0", NULL,
     "f:1: accumulation_steps: 0: out of range; allowed: a whole number from 1 to 65536"},
    {"optimizer: {lr: -1}", NULL, "f:1: optimizer.lr: -1: out of range; allowed: a number >= 0"},
    {"optimizer: {lr: .nan}", NULL,
     "f:1: optimizer.lr: .nan: not a number; allowed: a number >= 0"},
    {"optimizer: {lr: inf}", NULL, "f:1: optimizer.lr: inf: out of range; allowed: a number >= 0"},
    {"optimizer:\n  betas: [0.9, 1]\n", NULL,
     "f:2: optimizer.betas: 1: out of range; allowed: a list of 2 numbers >= 0 and < 1"},
    {"lr_scaling:\n  rule: sqrt\n", NULL,
     "f:2: lr_scaling.base_batch: missing; allowed: a whole number >= 1"},
    {"lr_scaling: {rule: linear, base_batch: 0}", NULL,
     "f:1: lr_scaling.base_batch: 0: out of range; allowed: a whole number >= 1, or null"},
    {"clip: {norm: 0}", NULL, "f:1: clip.norm: 0: out of range; allowed: a number > 0, or null"},
    {"groups: [{clip: {norm: 0}}]", NULL,
     "f:1: groups.0.clip.norm: 0: out of range; allowed: a number > 0, or null"},
    {"groups: [{clip: {norms: 1}}]", NULL,
     "f:1: groups.0.clip.norms: unknown key; did you mean norm? allowed: norm, norm_type, value"},
    {"groups: [{clip: 1}]", NULL, "f:1: groups.0.clip: a single value; allowed: a mapping of keys"},
    {"checkpoint: {dir: ckpt}", NULL,
     "f:1: checkpoint: checkpoints are not in this version; leave the section out"},
    {"advertise: node:7070", NULL,
     "f:1: advertise: node:7070: not a host; allowed: a name or an address, without port"},
    {"groups: {match: a}", NULL, "f:1: groups: not a list; allowed: a list of mappings"},
    {"groups:\n  - {}\n  - 5\n", NULL, "f:3: groups.1: a single value; allowed: a mapping of keys"},
    {"groups:\n  - {name: a}\n  - {name: a}\n", NULL,
     "f:3: groups.1: name a: taken by another group"},
    {"groups: [{name: default}]", NULL, "f:1: groups.0: name default: taken by another group"},
    {"groups: [{min_dims: 3, max_dims: 2}]", NULL,
     "f:1: groups.0: min_dims 3 above max_dims 2: matches nothing"},
    {"groups: [{lr: 1, lr_multiplier: 1}]", NULL,
     "f:1: groups.0: lr and lr_multiplier; allowed: one of them"},
    {"{block_size: 1000, groups: [{state_bits: 8}]}", NULL,
     "f:1: block_size: 1000 with state_bits: 8; allowed: a multiple of 256"},
    {"optimizer: {state_bits: 16}", NULL,
     "f:1: optimizer.state_bits: 16: not one of the words; allowed: 32, 8"},
    {"optimizer: {state_bits: 8, amsgrad: true}", NULL,
     "f:1: optimizer: amsgrad: true with state_bits: 8; allowed: one of them"},
    {"optimizer: {name: adafactor, lr: 0.1}", NULL,
     "f:1: optimizer: lr together with relative_step: true; allowed: lr: null, or relative_step: "
     "false"},
    {"optimizer: {name: adafactor, relative_step: false}", NULL,
     "f:1: optimizer: relative_step: false without lr; allowed: a number as lr"},
    {"layer_decay: {decay: 0.5}", NULL,
     "f:1: layer_decay.layers: missing; allowed: globs with {} for the number of the layer"},
    {"layer_decay:\n  decay: 0.5\n  layers: [\"a.{}\", b]\n", NULL,
     "f:3: layer_decay.layers: b: not one {}; allowed: globs with {} for the number of the layer"},
    {"layer_decay: {decay: 0.5, layers: \"{}.{}\"}", NULL,
     "f:1: layer_decay.layers: {}.{}: not one {}; allowed: globs with {} for the number of the "
     "layer"},
    {"layer_decay: {decay: 1.5}", NULL,
     "f:1: layer_decay.decay: 1.5: out of range; allowed: a number > 0 and <= 1, or null"},
    {"{optimizer: {name: adafactor}, layer_decay: {decay: 0.5, layers: \"{}\"}}", NULL,
     "f:1: layer_decay.decay: given, but adafactor sets its own lr; allowed with it: optimizer.lr"},
    {"optimizer: {name: sgd}\ngroups:\n  - {match: a}\n  - {max_momentum: 0.5}\n", NULL,
     "f:4: groups.1: base_momentum or max_momentum, but no schedule cycles the momentum; allowed "
     "with one: null"},
    {"{optimizer: {name: adafactor}, groups: [{lr_multiplier: 2}]}", NULL,
     "f:1: groups.0: lr_multiplier, but adafactor sets its own lr; allowed with it: optimizer.lr"},
    {"optimizer: {name: adafactor_torch, eps: null}", NULL,
     "f:1: optimizer.eps: no value; allowed: a list of 2 numbers >= 0, each or null"},
    {"schedule: cosine", NULL, "f:1: schedule: a single value; allowed: a mapping of keys"},
    {"schedule:\n  t_max: 5\n", NULL,
     "f:1: schedule.name: missing; allowed: constant, step, multistep, exponential, linear, "
     "polynomial, cosine, "
     "cosine_warm_restarts, onecycle, cyclic, inverse_sqrt, wsd, piecewise, cooldown, "
     "plateau"},
    {"schedule: [{name: cosin}]", NULL,
     "f:1: schedule.0.name: cosin: unknown; allowed: constant, step, multistep, exponential, "
     "linear, polynomial, cosine, "
     "cosine_warm_restarts, onecycle, cyclic, inverse_sqrt, wsd, piecewise, cooldown, "
     "plateau"},
    {"schedule:\n- {name: constant}\n- {name: cosine}\n", NULL,
     "f:2: schedule.0: constant runs for ever, so nothing can follow it; give it steps"},
    {"early_stop: {patience: 0}", NULL,
     "f:1: early_stop.patience: 0: out of range; allowed: a whole number >= 1"},
    {"schedule:\n- {name: cosine, chain: true}\n", NULL,
     "f:2: schedule.0.chain: true, but there is no schedule before it; allowed for the first: "
     "false"},
    {"schedule:\n- {name: linear}\n- {name: step, chain: true}\n- {name: cosine}\n", NULL,
     "f:3: schedule.1: step runs for ever, so nothing can follow it; give it steps"},
    {"schedule: {name: step, unit: whole_epochs}", NULL,
     "f:1: schedule.unit: epochs, whose length is not given; allowed: steps, or any with "
     "steps_per_epoch"},
    {"optimizer: {name: adagrad}\nschedule:\n- {name: onecycle}\n", NULL,
     "f:3: schedule.0.cycle_momentum: true, but adagrad has no momentum; allowed with it: false"},
    {NULL, "optimizer.lr=fast",
     "--set optimizer.lr=fast: optimizer.lr: fast: not a number; allowed: a number >= 0"},
    {NULL, "schedule.0.steps=5",
     "--set schedule.0.steps=5: schedule.0.name: missing; allowed: constant, step, multistep, "
     "exponential, linear, polynomial, cosine, "
     "cosine_warm_restarts, onecycle, cyclic, inverse_sqrt, wsd, piecewise, cooldown, "
     "plateau"},
    {"schedule: [{name: cosine}]", "schedule.0.t_max=0",
     "--set schedule.0.t_max=0: schedule.0.t_max: 0: out of range; allowed: a whole number >= 1"},
    {NULL, "listen=0.0.0.0:1",
     "--set listen=0.0.0.0:1: listen: 0.0.0.0:1: beyond loopback anyone who connects may train, as "
     "there are no keys; allowed: 127.0.0.0/8, ::1, localhost, or any with insecure: true"},
};

START_TEST(a_wrong_configuration_is_refused_with_one_clear_line)
{
    check_refused(refusals[_i].text, refusals[_i].setting, refusals[_i].message);
}
END_TEST

START_TEST(an_unknown_optimizer_is_told_the_known_ones)
{
    struct pd_config *config = NULL;
    struct pd_error error = {0};

    ck_assert_int_eq(pd_config_create(&config, "f", "optimizer: {name: sgdd}", NULL, 0, &error),
                     PD_ECONFIG);
    ck_assert_ptr_nonnull(strstr(error.message, "f:1: optimizer.name: sgdd: unknown; allowed: "));
    for (size_t i = 0; pd_optimizer_at(i) != NULL; i++) {
        ck_assert_ptr_nonnull(strstr(error.message, pd_optimizer_at(i)->name));
    }
}
END_TEST

START_TEST(a_key_of_another_optimizer_is_unknown_to_this_one)
{
    struct pd_config *config = NULL;
    struct pd_error error = {0};

    ck_assert_int_eq(pd_config_create(&config, "f", "optimizer: {name: sgd,\n betas: [0.9, 0.99]}",
                                      NULL, 0, &error),
                     PD_ECONFIG);
    ck_assert_ptr_nonnull(strstr(error.message, "f:2: optimizer.betas: unknown key for sgd"));
}
END_TEST

START_TEST(more_groups_and_schedules_than_the_limits_are_refused)
{
    static char text[8192];
    char message[100];
    size_t bytes = (size_t)snprintf(text, sizeof text, "groups:\n");

    for (unsigned i = 0; i < PD_GROUP_COUNT_MAX; i++) {
        bytes += (size_t)snprintf(text + bytes, sizeof text - bytes, "  - {match: w%u}\n", i);
    }
    struct pd_config *config = parse(text, NULL);
    ck_assert_uint_eq(config->group_count, PD_GROUP_COUNT_MAX + 1);
    pd_config_destroy(config);
    snprintf(text + bytes, sizeof text - bytes, "  - {}\n");
    snprintf(message, sizeof message, "f:1: groups: %u groups; allowed: at most %u",
             PD_GROUP_COUNT_MAX + 1, PD_GROUP_COUNT_MAX);
    check_refused(text, NULL, message);

    bytes = (size_t)snprintf(text, sizeof text, "schedule:\n");
    for (unsigned i = 0; i < PD_SCHEDULE_COUNT_MAX; i++) {
        bytes += (size_t)snprintf(text + bytes, sizeof text - bytes, "  - {name: linear}\n");
    }
    config = parse(text, NULL);
    ck_assert_uint_eq(config->schedule_count, PD_SCHEDULE_COUNT_MAX);
    pd_config_destroy(config);
    snprintf(text + bytes, sizeof text - bytes, "  - {name: linear}\n");
    snprintf(message, sizeof message, "f:1: schedule: %u schedules; allowed: at most %u",
             PD_SCHEDULE_COUNT_MAX + 1, PD_SCHEDULE_COUNT_MAX);
    check_refused(text, NULL, message);
}
END_TEST

START_TEST(lanes_follow_the_aggregation_unless_told)
{
    struct pd_config *config = parse(NULL, NULL);
    struct pd_error error = {0};
    uint32_t lanes = 0;

    ck_assert_int_eq(pd_config_lanes(config, 4, &lanes, &error), PD_OK);
    ck_assert_uint_eq(lanes, 1);
    config->lanes = 2;
    ck_assert_int_eq(pd_config_lanes(config, 4, &lanes, &error), PD_OK);
    ck_assert_uint_eq(lanes, 2);
    ck_assert_int_eq(pd_config_lanes(config, 3, &lanes, &error), PD_ECONFIG);
    ck_assert_str_eq(error.message, "lanes: 2 on 3 ranks; allowed: a divisor of 3");
    config->aggregation = PD_AGGREGATION_DIRECT;
    ck_assert_int_eq(pd_config_lanes(config, 4, &lanes, &error), PD_ECONFIG);
    ck_assert_str_eq(error.message,
                     "lanes: 2 with aggregation direct on 4 ranks; allowed: 4 or null");
    config->lanes = 0;
    ck_assert_int_eq(pd_config_lanes(config, 64, &lanes, &error), PD_OK);
    ck_assert_uint_eq(lanes, 64);
    pd_config_destroy(config);
}
END_TEST

START_TEST(create_survives_each_failed_allocation)
{
    const char *settings[] = {"workers.expected=3", "schedule.2.name=constant",
                              "groups.0.name=small"};
    struct pd_config *config = NULL;
    size_t begin = pd_heap_allocations();

    ck_assert_int_eq(pd_config_create(&config, "f", full, settings, 3, NULL), PD_OK);
    size_t allocations = pd_heap_allocations() - begin;
    pd_config_destroy(config);
    for (size_t i = 0; i < allocations; i++) {
        struct pd_error error = {0};
        pd_heap_fail_at((long)i);
        ck_assert_int_eq(pd_config_create(&config, "f", full, settings, 3, &error), PD_ENOMEM);
        ck_assert_ptr_null(config);
        ck_assert_msg(strncmp(error.message, "configuration: ", 15) == 0, "%s", error.message);
        ck_assert_uint_eq(pd_heap_blocks_live(), 0);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("config");
    TCase *tcase = tcase_create("config");

    tcase_add_loop_test(tcase, an_empty_file_is_all_defaults, 0, 6);
    tcase_add_test(tcase, sections_without_a_value_are_defaults);
    tcase_add_test(tcase, every_section_of_a_full_file_is_read);
    tcase_add_test(tcase, a_group_has_the_optimizers_values_but_its_own);
    tcase_add_test(tcase, a_group_has_the_clip_of_the_whole_but_its_own_keys);
    tcase_add_test(tcase, a_tensor_is_in_the_first_group_that_matches);
    tcase_add_test(tcase, min_dims_and_max_dims_include_their_bounds);
    tcase_add_test(tcase, every_optimizer_can_be_named);
    tcase_add_test(tcase, every_schedule_can_be_named_without_a_list);
    tcase_add_test(tcase, schedules_can_be_chained_and_count_epochs);
    tcase_add_test(tcase, a_schedule_that_cycles_momentum_gives_one_to_a_rule_without);
    tcase_add_test(tcase, settings_lie_over_the_file_in_their_order);
    tcase_add_loop_test(tcase, loopback_needs_no_permission, 0,
                        (int)(sizeof addresses / sizeof addresses[0]));
    tcase_add_loop_test(tcase, listening_beyond_loopback_needs_insecure, 0,
                        (int)(sizeof open_addresses / sizeof open_addresses[0]));
    tcase_add_loop_test(tcase, what_is_no_address_is_refused, 0,
                        (int)(sizeof bad_addresses / sizeof bad_addresses[0]));
    tcase_add_loop_test(tcase, a_wrong_configuration_is_refused_with_one_clear_line, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_test(tcase, an_unknown_optimizer_is_told_the_known_ones);
    tcase_add_test(tcase, a_key_of_another_optimizer_is_unknown_to_this_one);
    tcase_add_test(tcase, more_groups_and_schedules_than_the_limits_are_refused);
    tcase_add_test(tcase, lanes_follow_the_aggregation_unless_told);
    tcase_add_test(tcase, create_survives_each_failed_allocation);
    tcase_set_timeout(tcase, 60);
    suite_add_tcase(suite, tcase);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
