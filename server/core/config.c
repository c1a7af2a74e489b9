#include "server/core/config.h"

#include "common/assert.h"
#include "common/heap.h"
#include "server/core/config_options.h"
#include "server/core/quantize.h"

#include <fnmatch.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define KEY_PATH_BYTES 160

/* A table of options and the struct its fields are in. */
struct target {
    struct pd_option_table table;
    void *base;
};

/* The mapping being read: which keys it may have and where their values go. */
struct section {
    const struct pd_node *map;
    const char *path;   /* as in --set; "" for the whole file */
    const char *prefix; /* of the keys in the tables, such as "clip." */
    const char *owner;  /* the rule the keys belong to, for messages; NULL: none */
    struct target targets[3];
    size_t target_count;
};

static void join_path(char path[KEY_PATH_BYTES], const char *parent, const char *key)
{
    snprintf(path, KEY_PATH_BYTES, "%.90s%s%.60s", parent, parent[0] == '\0' ? "" : ".", key);
}

/* The option's key as seen from inside the section, or NULL if it is of another. */
static const char *local_key(const struct section *section, const struct pd_option *option)
{
    size_t prefix_bytes = strlen(section->prefix);

    if (strncmp(option->key, section->prefix, prefix_bytes) != 0 ||
        strchr(option->key + prefix_bytes, '.') != NULL) {
        return NULL;
    }
    return option->key + prefix_bytes;
}

/* Edits that make one word of another: insertions, deletions and replacements. */
static size_t edit_distance(const char *from, const char *to)
{
    size_t row[64];
    size_t to_bytes = strlen(to);

    PD_ASSERT(to_bytes < sizeof row / sizeof row[0]);
    for (size_t j = 0; j <= to_bytes; j++) {
        row[j] = j;
    }
    for (size_t i = 0; from[i] != '\0'; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 1; j <= to_bytes; j++) {
            size_t replaced = diagonal + (from[i] != to[j - 1]);
            size_t other = 1 + (row[j] < row[j - 1] ? row[j] : row[j - 1]);
            diagonal = row[j];
            row[j] = replaced < other ? replaced : other;
        }
    }
    return row[to_bytes];
}

static enum pd_status unknown_key(const struct section *section, const struct pd_node *node,
                                  const char *path, struct pd_error *error)
{
    char allowed[400] = "";
    size_t used = 0;
    const char *nearest = NULL;
    size_t nearest_distance = SIZE_MAX;

    for (size_t t = 0; t < section->target_count; t++) {
        const struct pd_option_table *table = &section->targets[t].table;
        for (size_t i = 0; i < table->count; i++) {
            const char *key = local_key(section, &table->options[i]);
            if (key == NULL) {
                continue;
            }
            size_t distance = edit_distance(node->key, key);
            if (distance < nearest_distance) {
                nearest = key;
                nearest_distance = distance;
            }
            if (used < sizeof allowed) {
                used += (size_t)snprintf(allowed + used, sizeof allowed - used, "%s%s",
                                         used == 0 ? "" : ", ", key);
            }
        }
    }
    return pd_node_fault(node, path, error, "unknown key%s%s; did you mean %s? allowed: %s",
                         section->owner != NULL ? " for " : "",
                         section->owner != NULL ? section->owner : "", nearest, allowed);
}

static const struct pd_option *find_option(const struct section *section, const char *key,
                                           void **base)
{
    for (size_t t = 0; t < section->target_count; t++) {
        const struct pd_option_table *table = &section->targets[t].table;
        for (size_t i = 0; i < table->count; i++) {
            const char *local = local_key(section, &table->options[i]);
            if (local != NULL && strcmp(local, key) == 0) {
                *base = section->targets[t].base;
                return &table->options[i];
            }
        }
    }
    return NULL;
}

static enum pd_status check_map(const struct pd_node *node, const char *path,
                                struct pd_error *error)
{
    if (node->kind != PD_NODE_MAP) {
        return pd_node_fault(node, path, error, "%s; allowed: a mapping of keys",
                             node->kind == PD_NODE_LIST ? "a list" : "a single value");
    }
    return PD_OK;
}

/* Read every key of the mapping but sections inside it. */
static enum pd_status read_section(const struct section *section, struct pd_error *error)
{
    for (size_t i = 0; i < section->map->count; i++) {
        const struct pd_node *node = section->map->children[i];
        char path[KEY_PATH_BYTES];
        void *base;

        join_path(path, section->path, node->key);
        const struct pd_option *option = find_option(section, node->key, &base);
        if (option == NULL) {
            return unknown_key(section, node, path, error);
        }
        enum pd_status status = pd_option_read(option, path, node, base, error);
        if (status != PD_OK) {
            return status;
        }
    }
    return PD_OK;
}

/* The child, or NULL if it is missing or null, which is the same. */
static const struct pd_node *find_given(const struct pd_node *map, const char *key)
{
    const struct pd_node *node = pd_node_find(map, key);

    return node == NULL || pd_node_is_null(node) ? NULL : node;
}

/* The text of a scalar; empty for anything else. */
static const char *scalar_of(const struct pd_node *node)
{
    return node->kind == PD_NODE_SCALAR ? node->text : "";
}

/* Where a key of a section was written; the nearest thing above it if it was not. */
static const struct pd_node *find_nearest(const struct pd_node *root, const char *section,
                                          const char *key)
{
    const struct pd_node *map = find_given(root, section);

    if (map == NULL) {
        return root;
    }
    const struct pd_node *node = pd_node_find(map, key);
    return node == NULL ? map : node;
}

/* Read the keys of the file and of its plain sections. */
static enum pd_status read_plain(struct pd_config *config, const struct pd_node *root,
                                 struct pd_error *error)
{
    static const char *const names[] = {"workers",     "lr_scaling", "clip",
                                        "layer_decay", "lookahead",  "ema",
                                        "swa",         "loss_scale", "early_stop"};
    struct section section = {.map = root, .path = "", .prefix = ""};

    section.targets[0] = (struct target){pd_config_options, config};
    section.target_count = 1;
    enum pd_status status = check_map(root, "", error);
    if (status != PD_OK) {
        return status;
    }
    config->early_stop.watch.threshold_mode = PD_WATCH_ABS;
    status = read_section(&section, error);
    for (size_t i = 0; status == PD_OK && i < sizeof names / sizeof names[0]; i++) {
        char prefix[16];

        section.map = find_given(root, names[i]);
        section.path = names[i];
        section.prefix = prefix;
        snprintf(prefix, sizeof prefix, "%s.", names[i]);
        if (section.map == NULL) {
            continue;
        }
        status = check_map(section.map, names[i], error);
        if (status == PD_OK) {
            status = read_section(&section, error);
        }
    }
    return status;
}

/* Let the rule check what a group's hyperparameters say together. */
static enum pd_status check_hyper(const struct pd_config *config, const struct pd_hyper *hyper,
                                  const struct pd_node *map, const char *path,
                                  struct pd_error *error)
{
    const char *fault = config->optimizer->check != NULL ? config->optimizer->check(hyper) : NULL;

    return fault == NULL ? PD_OK : pd_node_fault(map, path, error, "%s", fault);
}

/* Read the optimizer's section into group 0. */
static enum pd_status read_optimizer(struct pd_config *config, const struct pd_node *root,
                                     struct pd_error *error)
{
    static const struct pd_node empty = {.kind = PD_NODE_MAP};
    char name[PD_NAME_BYTES_MAX + 1];
    char names[384];
    const struct pd_node *map = find_given(root, "optimizer");
    enum pd_status status = pd_option_defaults(pd_optimizer_name_options.options, 1, name, error);

    map = map != NULL ? map : &empty;
    if (status == PD_OK) {
        status = check_map(map, "optimizer", error);
    }
    if (status != PD_OK) {
        return status;
    }
    const struct pd_node *name_node = pd_node_find(map, "name");
    config->optimizer = pd_optimizer_find(name_node == NULL ? name : scalar_of(name_node));
    if (config->optimizer == NULL) {
        return pd_option_fault(name_node, "optimizer.name", "unknown",
                               pd_optimizer_names(names, sizeof names), error);
    }

    struct pd_group *group = &config->groups[0];
    struct pd_option_table options = {config->optimizer->options, config->optimizer->option_count};
    struct section section = {
        .map = map,
        .path = "optimizer",
        .prefix = "",
        .owner = config->optimizer->name,
        .targets = {{pd_optimizer_name_options, name}, {options, &group->hyper}},
        .target_count = 2,
    };
    snprintf(group->name, sizeof group->name, "default");
    group->dimensions_max = PD_TENSOR_DIMENSION_COUNT_MAX;
    group->clip = config->clip;
    group->lr_multiplier = 1;
    group->momentum_range = (struct pd_momentum_range){NAN, NAN};
    config->group_count = 1;
    status = pd_option_defaults(options.options, options.count, &group->hyper, error);
    if (status == PD_OK) {
        status = read_section(&section, error);
    }
    group->schedule_lr = group->hyper.lr;
    return status == PD_OK ? check_hyper(config, &group->hyper, map, "optimizer", error) : status;
}

/* Check what a group's keys say together, and give it the name it lacks. */
static enum pd_status check_group(struct pd_config *config, const struct pd_node *map,
                                  const char *path, const struct pd_group_settings *settings,
                                  struct pd_error *error)
{
    uint32_t index = config->group_count;
    struct pd_group *group = &config->groups[index];

    if (group->name[0] == '\0') {
        snprintf(group->name, sizeof group->name, "group%" PRIu32, index);
    }
    for (uint32_t i = 0; i < index; i++) {
        if (strcmp(config->groups[i].name, group->name) == 0) {
            return pd_node_fault(map, path, error, "name %s: taken by another group", group->name);
        }
    }
    if (settings->min_dims > settings->max_dims) {
        return pd_node_fault(map, path, error,
                             "min_dims %" PRIu64 " above max_dims %" PRIu64 ": matches nothing",
                             settings->min_dims, settings->max_dims);
    }
    if (pd_node_find(map, "lr") != NULL && pd_node_find(map, "lr_multiplier") != NULL) {
        return pd_node_fault(map, path, error, "lr and lr_multiplier; allowed: one of them");
    }
    if (pd_node_find(map, "lr_multiplier") != NULL && isnan(group->hyper.lr)) {
        return pd_node_fault(map, path, error,
                             "lr_multiplier, but %s sets its own lr; allowed with it: optimizer.lr",
                             config->optimizer->name);
    }
    group->dimensions_min = (uint32_t)settings->min_dims;
    group->dimensions_max = (uint32_t)settings->max_dims;
    group->schedule_lr = group->hyper.lr;
    group->hyper.lr *= group->lr_multiplier;
    return check_hyper(config, &group->hyper, map, path, error);
}

/* Read the clip section of a group over that of the whole. */
static enum pd_status read_group_clip(struct pd_group *group, const struct pd_node *map,
                                      const char *path, struct pd_error *error)
{
    char clip_path[KEY_PATH_BYTES];
    const struct pd_node *clip = find_given(map, "clip");
    struct section section = {
        .map = clip,
        .path = clip_path,
        .prefix = "clip.",
        .targets = {{pd_group_options, group}},
        .target_count = 1,
    };

    if (clip == NULL) {
        return PD_OK;
    }
    join_path(clip_path, path, "clip");
    enum pd_status status = check_map(clip, clip_path, error);
    if (status != PD_OK) {
        return status;
    }
    group->clips_alone =
        pd_node_find(clip, "norm") != NULL || pd_node_find(clip, "norm_type") != NULL;
    return read_section(&section, error);
}

static enum pd_status read_group(struct pd_config *config, const struct pd_node *map,
                                 const char *path, struct pd_error *error)
{
    struct pd_group *group = &config->groups[config->group_count];
    struct pd_group_settings settings;
    struct section section = {
        .map = map,
        .path = path,
        .prefix = "",
        .owner = config->optimizer->name,
        .targets = {{pd_group_options, group},
                    {pd_group_settings_options, &settings},
                    {{config->optimizer->options, config->optimizer->option_count}, &group->hyper}},
        .target_count = 3,
    };
    enum pd_status status = check_map(map, path, error);

    if (status == PD_OK) {
        status = pd_option_defaults(pd_group_options.options, pd_group_options.count, group, error);
    }
    if (status == PD_OK) {
        status = pd_option_defaults(pd_group_settings_options.options,
                                    pd_group_settings_options.count, &settings, error);
    }
    if (status != PD_OK) {
        return status;
    }
    group->hyper = config->groups[0].hyper;
    group->clip = config->clip;
    status = read_section(&section, error);
    if (status == PD_OK) {
        status = read_group_clip(group, map, path, error);
    }
    if (status == PD_OK) {
        status = check_group(config, map, path, &settings, error);
    }
    if (status == PD_OK) {
        config->group_count++;
    }
    return status;
}

static enum pd_status read_groups(struct pd_config *config, const struct pd_node *root,
                                  struct pd_error *error)
{
    const struct pd_node *list = find_given(root, "groups");

    if (list == NULL) {
        return PD_OK;
    }
    if (list->kind != PD_NODE_LIST) {
        return pd_node_fault(list, "groups", error, "not a list; allowed: a list of mappings");
    }
    if (list->count > PD_GROUP_COUNT_MAX) {
        return pd_node_fault(list, "groups", error, "%zu groups; allowed: at most %u", list->count,
                             PD_GROUP_COUNT_MAX);
    }
    for (size_t i = 0; i < list->count; i++) {
        char path[KEY_PATH_BYTES];

        snprintf(path, sizeof path, "groups.%zu", i);
        enum pd_status status = read_group(config, list->children[i], path, error);
        if (status != PD_OK) {
            return status;
        }
    }
    return PD_OK;
}

/* A schedule that moves the momentum needs a rule that has one, and its buffer from the first step
 * on: where it is configured as 0, it begins as torch.optim.lr_scheduler.OneCycleLR sets it. */
static enum pd_status check_momentum(struct pd_config *config, const struct pd_schedule *schedule,
                                     const struct pd_node *map, const char *path,
                                     struct pd_error *error)
{
    char key[KEY_PATH_BYTES];
    const struct pd_node *at = pd_node_find(map, "cycle_momentum");

    if (!pd_schedule_cycles_momentum(schedule)) {
        return PD_OK;
    }
    join_path(key, path, "cycle_momentum");
    for (uint32_t group = 0; group < config->group_count; group++) {
        double *momentum = pd_optimizer_momentum(config->optimizer, &config->groups[group].hyper);
        double most =
            pd_schedule_momentum_range(schedule, &config->groups[group].momentum_range).max;
        if (momentum == NULL || isnan(*momentum)) {
            return pd_node_fault(at != NULL ? at : map, key, error,
                                 "true, but %s has no momentum; allowed with it: false",
                                 config->optimizer->name);
        }
        *momentum = *momentum == 0 ? most : *momentum;
    }
    return PD_OK;
}

/* Check what the keys of every schedule need: an epoch, and a schedule to be chained to. */
static enum pd_status check_place(const struct pd_config *config,
                                  const struct pd_schedule *schedule, const struct pd_node *map,
                                  const char *path, struct pd_error *error)
{
    char key[KEY_PATH_BYTES];

    if (schedule->unit != PD_UNIT_STEPS && config->steps_per_epoch == 0) {
        join_path(key, path, "unit");
        return pd_node_fault(pd_node_find(map, "unit"), key, error,
                             "epochs, whose length is not given; allowed: steps, or any with "
                             "steps_per_epoch");
    }
    if (schedule->chain && config->schedule_count == 0) {
        join_path(key, path, "chain");
        return pd_node_fault(pd_node_find(map, "chain"), key, error,
                             "true, but there is no schedule before it; allowed for the first: "
                             "false");
    }
    return PD_OK;
}

static enum pd_status read_schedule(struct pd_config *config, const struct pd_node *map,
                                    const char *path, struct pd_error *error)
{
    struct pd_schedule *schedule = &config->schedules[config->schedule_count];
    char name[PD_NAME_BYTES_MAX + 1];
    char name_path[KEY_PATH_BYTES];
    char names[384];
    enum pd_status status = check_map(map, path, error);

    if (status != PD_OK) {
        return status;
    }
    join_path(name_path, path, "name");
    const struct pd_node *name_node = pd_node_find(map, "name");
    if (name_node == NULL) {
        return pd_node_fault(map, name_path, error, "missing; allowed: %s",
                             pd_schedule_names(names, sizeof names));
    }
    const struct pd_schedule_rule *rule = pd_schedule_find(scalar_of(name_node));
    if (rule == NULL) {
        return pd_option_fault(name_node, name_path, "unknown",
                               pd_schedule_names(names, sizeof names), error);
    }

    struct section section = {
        .map = map,
        .path = path,
        .prefix = "",
        .owner = rule->name,
        .targets = {{pd_schedule_name_options, name},
                    {{rule->options, rule->option_count}, schedule},
                    {{pd_schedule_common_options, pd_schedule_common_option_count}, schedule}},
        .target_count = 3,
    };
    schedule->kind = rule->kind;
    schedule->steps_per_epoch = config->steps_per_epoch;
    status = pd_option_defaults(rule->options, rule->option_count, schedule, error);
    if (status == PD_OK) {
        status = pd_option_defaults(pd_schedule_common_options, pd_schedule_common_option_count,
                                    schedule, error);
    }
    if (status == PD_OK) {
        status = read_section(&section, error);
    }
    if (status == PD_OK) {
        status = check_place(config, schedule, map, path, error);
    }
    if (status == PD_OK) {
        status = check_momentum(config, schedule, map, path, error);
    }
    if (status == PD_OK) {
        config->schedule_count++;
    }
    return status;
}

/* Check that schedules which another one follows end. */
static enum pd_status check_sequence(const struct pd_config *config, const struct pd_node *list,
                                     struct pd_error *error)
{
    uint32_t count = config->schedule_count;
    uint32_t last = 0; /* the first of those that run last */

    for (uint32_t i = 0; i < count; i++) {
        last = config->schedules[i].chain ? last : i;
    }
    for (uint32_t i = 0; i < last; i++) {
        if (pd_schedule_duration(&config->schedules[i], 1) == 0) {
            char path[KEY_PATH_BYTES];

            snprintf(path, sizeof path, "schedule.%" PRIu32, i);
            return pd_node_fault(list->children[i], path, error,
                                 "%s runs for ever, so nothing can follow it; give it steps",
                                 pd_schedule_at(config->schedules[i].kind)->name);
        }
    }
    return PD_OK;
}

/* Read one schedule, or a list of them in which all but those that run last must end. */
static enum pd_status read_schedules(struct pd_config *config, const struct pd_node *root,
                                     struct pd_error *error)
{
    const struct pd_node *list = find_given(root, "schedule");

    if (list == NULL) {
        return PD_OK;
    }
    if (list->kind != PD_NODE_LIST) {
        return read_schedule(config, list, "schedule", error);
    }
    if (list->count > PD_SCHEDULE_COUNT_MAX) {
        return pd_node_fault(list, "schedule", error, "%zu schedules; allowed: at most %u",
                             list->count, PD_SCHEDULE_COUNT_MAX);
    }
    for (size_t i = 0; i < list->count; i++) {
        char path[KEY_PATH_BYTES];

        snprintf(path, sizeof path, "schedule.%zu", i);
        enum pd_status status = read_schedule(config, list->children[i], path, error);
        if (status != PD_OK) {
            return status;
        }
    }
    return check_sequence(config, list, error);
}

/* A number of the port part, which must be the whole text. */
static bool parse_port(const char *text, uint32_t *port)
{
    uint32_t value = 0;
    size_t digits = strspn(text, "0123456789");

    if (digits == 0 || digits > 5 || text[digits] != '\0') {
        return false;
    }
    for (size_t i = 0; i < digits; i++) {
        value = 10 * value + (uint32_t)(text[i] - '0');
    }
    *port = value;
    return value <= 65535;
}

/* Whether the text is what a host name, an IPv4 address or, with colons, an IPv6 address is made
 * of. */
static bool is_host(const char *text, size_t bytes)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:%";

    return bytes > 0 && bytes <= PD_HOST_BYTES_MAX && strspn(text, letters) >= bytes;
}

/* Split "host:port" or "[v6]:port". */
static bool split_address(const char *address, char host[PD_HOST_BYTES_MAX + 1], uint32_t *port)
{
    const char *begin = address;
    const char *end;
    const char *colon;

    if (*address == '[') {
        begin = address + 1;
        end = strchr(begin, ']');
        colon = end == NULL ? NULL : end + 1;
    } else {
        end = strchr(begin, ':');
        colon = end;
    }
    if (colon == NULL || *colon != ':' || !is_host(begin, (size_t)(end - begin)) ||
        !parse_port(colon + 1, port)) {
        return false;
    }
    memcpy(host, begin, (size_t)(end - begin));
    host[end - begin] = '\0';
    return true;
}

/* Whether only this machine can reach the host: 127.0.0.0/8, ::1 or localhost. */
static bool is_loopback(const char *host)
{
    unsigned parts[4];
    int used = 0;

    if (strcmp(host, "::1") == 0 || strcmp(host, "localhost") == 0) {
        return true;
    }
    return sscanf(host, "127.%3u.%3u.%3u%n", &parts[1], &parts[2], &parts[3], &used) == 3 &&
           host[used] == '\0';
}

static enum pd_status check_listen(struct pd_config *config, const struct pd_node *root,
                                   struct pd_error *error)
{
    const struct pd_node *at = pd_node_find(root, "listen");

    if (!split_address(config->listen, config->listen_host, &config->listen_port)) {
        return pd_node_fault(at, "listen", error,
                             "%.100s: not an address; allowed: host:port or \"[v6]:port\", port 0 "
                             "to 65535",
                             config->listen);
    }
    if (!is_loopback(config->listen_host) && !config->insecure) {
        return pd_node_fault(at, "listen", error,
                             "%.100s: beyond loopback anyone who connects may train, as there are "
                             "no keys; allowed: 127.0.0.0/8, ::1, localhost, or any with insecure: "
                             "true",
                             config->listen);
    }
    const char *advertise = config->advertise;
    const char *colon = strchr(advertise, ':');
    bool has_port = colon != NULL && strchr(colon + 1, ':') == NULL;
    if (advertise[0] != '\0' && (has_port || !is_host(advertise, strlen(advertise)))) {
        return pd_node_fault(pd_node_find(root, "advertise"), "advertise", error,
                             "%.100s: not a host; allowed: a name or an address, without port",
                             advertise);
    }
    return PD_OK;
}

/* No run of elements whose state shares a magnitude may lie on two ranks. */
static enum pd_status check_block_size(const struct pd_config *config, const struct pd_node *root,
                                       struct pd_error *error)
{
    for (uint32_t group = 0; group < config->group_count; group++) {
        if (config->groups[group].hyper.state_bits == PD_STATE_BITS_8 &&
            config->block_size % PD_QUANTIZE_RUN != 0) {
            return pd_node_fault(pd_node_find(root, "block_size"), "block_size", error,
                                 "%" PRIu64 " with state_bits: 8; allowed: a multiple of %u",
                                 config->block_size, PD_QUANTIZE_RUN);
        }
    }
    return PD_OK;
}

/* Patterns of layers say where the number stands, and the rates they scale are told. */
static enum pd_status check_layer_decay(const struct pd_config *config, const struct pd_node *root,
                                        struct pd_error *error)
{
    const struct pd_layer_patterns *layers = &config->layer_decay.layers;
    const struct pd_node *at = find_nearest(root, "layer_decay", "layers");

    if (isnan(config->layer_decay.decay)) {
        return PD_OK;
    }
    if (layers->count == 0) {
        return pd_node_fault(at, "layer_decay.layers", error,
                             "missing; allowed: globs with {} for the number of the layer");
    }
    for (uint32_t i = 0; i < layers->count; i++) {
        const char *mark = strstr(layers->texts[i], PD_LAYER_NUMBER_MARK);
        if (mark == NULL || strstr(mark + 1, PD_LAYER_NUMBER_MARK) != NULL) {
            return pd_node_fault(at, "layer_decay.layers", error,
                                 "%.100s: not one {}; allowed: globs with {} for the number of the "
                                 "layer",
                                 layers->texts[i]);
        }
    }
    if (isnan(config->groups[0].hyper.lr)) {
        return pd_node_fault(find_nearest(root, "layer_decay", "decay"), "layer_decay.decay", error,
                             "given, but %s sets its own lr; allowed with it: optimizer.lr",
                             config->optimizer->name);
    }
    return PD_OK;
}

/* A range of the momentum is of no use unless a schedule moves it. */
static enum pd_status check_momentum_ranges(const struct pd_config *config,
                                            const struct pd_node *root, struct pd_error *error)
{
    bool cycled = false;

    for (uint32_t i = 0; i < config->schedule_count; i++) {
        cycled = cycled || pd_schedule_cycles_momentum(&config->schedules[i]);
    }
    for (uint32_t group = 1; group < config->group_count && !cycled; group++) {
        const struct pd_momentum_range *range = &config->groups[group].momentum_range;
        if (!isnan(range->base) || !isnan(range->max)) {
            char path[KEY_PATH_BYTES];
            snprintf(path, sizeof path, "groups.%" PRIu32, group - 1);
            return pd_node_fault(pd_node_find(root, "groups")->children[group - 1], path, error,
                                 "base_momentum or max_momentum, but no schedule cycles the "
                                 "momentum; allowed with one: null");
        }
    }
    return PD_OK;
}

/* Check what keys say together. */
static enum pd_status check_config(struct pd_config *config, const struct pd_node *root,
                                   struct pd_error *error)
{
    const struct pd_node *checkpoint = find_given(root, "checkpoint");

    if (checkpoint != NULL) {
        return pd_node_fault(checkpoint, "checkpoint", error,
                             "checkpoints are not in this version; leave the section out");
    }
    if (config->lr_scaling.rule != PD_LR_SCALING_NONE && config->lr_scaling.base_batch == 0) {
        return pd_node_fault(find_nearest(root, "lr_scaling", "rule"), "lr_scaling.base_batch",
                             error, "missing; allowed: a whole number >= 1");
    }
    enum pd_status status = check_block_size(config, root, error);
    if (status == PD_OK) {
        status = check_layer_decay(config, root, error);
    }
    if (status == PD_OK) {
        status = check_momentum_ranges(config, root, error);
    }
    return status == PD_OK ? check_listen(config, root, error) : status;
}

/* Parse the text and lay the settings over it. */
static enum pd_status read_tree(struct pd_node **out, const char *file, const char *text,
                                const char *const *settings, size_t setting_count,
                                struct pd_error *error)
{
    struct pd_config_source source = {.file = file != NULL ? file : "defaults"};
    enum pd_status status = pd_node_parse(out, &source, text != NULL ? text : "", error);

    if (status == PD_OK && pd_node_is_null(*out)) {
        (*out)->kind = PD_NODE_MAP; /* A document that says nothing is an empty one. */
    }
    for (size_t i = 0; status == PD_OK && i < setting_count; i++) {
        source.setting = settings[i];
        status = pd_node_set(*out, &source, error);
    }
    return status;
}

enum pd_status pd_config_create(struct pd_config **out, const char *file, const char *text,
                                const char *const *settings, size_t setting_count,
                                struct pd_error *error)
{
    struct pd_node *root = NULL;
    enum pd_status status;

    *out = NULL;
    struct pd_config *config = pd_heap_zalloc(1, sizeof *config);
    if (config == NULL) {
        return pd_error_set(error, PD_ENOMEM, "configuration: %zu bytes", sizeof *config);
    }
    status = read_tree(&root, file, text, settings, setting_count, error);
    if (status == PD_OK) {
        status =
            pd_option_defaults(pd_config_options.options, pd_config_options.count, config, error);
    }
    if (status == PD_OK) {
        status = read_plain(config, root, error);
    }
    if (status == PD_OK) {
        status = read_optimizer(config, root, error);
    }
    if (status == PD_OK) {
        status = read_groups(config, root, error);
    }
    if (status == PD_OK) {
        status = read_schedules(config, root, error);
    }
    if (status == PD_OK) {
        status = check_config(config, root, error);
    }
    pd_node_destroy(root);
    if (status != PD_OK) {
        pd_config_destroy(config);
        return status;
    }
    *out = config;
    return PD_OK;
}

void pd_config_destroy(struct pd_config *config)
{
    pd_heap_free(config);
}

static bool name_matches(const struct pd_group *group, const char *tensor_name)
{
    for (uint32_t i = 0; i < group->pattern_count; i++) {
        if (fnmatch(group->patterns[i], tensor_name, 0) == 0) {
            return true;
        }
    }
    return group->pattern_count == 0;
}

uint32_t pd_config_group_of(const struct pd_config *config, const char *tensor_name,
                            uint32_t dimension_count)
{
    for (uint32_t i = 1; i < config->group_count; i++) {
        const struct pd_group *group = &config->groups[i];
        if (dimension_count >= group->dimensions_min && dimension_count <= group->dimensions_max &&
            name_matches(group, tensor_name)) {
            return i;
        }
    }
    return 0;
}

enum pd_status pd_config_lanes(const struct pd_config *config, uint32_t rank_count, uint32_t *lanes,
                               struct pd_error *error)
{
    PD_ASSERT(rank_count >= 1);
    *lanes = config->lanes != 0                             ? (uint32_t)config->lanes
             : config->aggregation == PD_AGGREGATION_DIRECT ? rank_count
                                                            : 1;
    if (config->aggregation == PD_AGGREGATION_DIRECT && *lanes != rank_count) {
        return pd_error_set(error, PD_ECONFIG,
                            "lanes: %" PRIu32 " with aggregation direct on %" PRIu32
                            " ranks; allowed: %" PRIu32 " or null",
                            *lanes, rank_count, rank_count);
    }
    if (rank_count % *lanes != 0) {
        return pd_error_set(error, PD_ECONFIG,
                            "lanes: %" PRIu32 " on %" PRIu32
                            " ranks; allowed: a divisor of %" PRIu32,
                            *lanes, rank_count, rank_count);
    }
    return PD_OK;
}
