/* The texts that say what can be configured, all from the option tables. */
#include "server/core/config.h"

#include "common/assert.h"
#include "common/heap.h"
#include "server/core/config_options.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define COLUMNS 96

/* A text that grows. A failed allocation makes it NULL for good. */
struct writer {
    char *text;
    size_t bytes;
    size_t capacity;
    const char *prefix; /* of every line: "# " makes it a comment */
    int indent;         /* of keys */
};

static bool writer_init(struct writer *writer)
{
    *writer = (struct writer){.prefix = "", .capacity = 16384};
    writer->text = pd_heap_zalloc(writer->capacity, 1);
    return writer->text != NULL;
}

static void write_text(struct writer *writer, const char *format, ...) PD_PRINTF(2, 3);

static void write_text(struct writer *writer, const char *format, ...)
{
    char piece[1024];
    va_list arguments;

    va_start(arguments, format);
    int bytes = vsnprintf(piece, sizeof piece, format, arguments);
    va_end(arguments);
    PD_ASSERT(bytes >= 0 && (size_t)bytes < sizeof piece);
    if (writer->text == NULL) {
        return;
    }
    if (writer->bytes + (size_t)bytes + 1 > writer->capacity) {
        char *text = pd_heap_realloc(writer->text, 2 * writer->capacity);
        if (text == NULL) {
            pd_heap_free(writer->text);
            writer->text = NULL;
            return;
        }
        writer->text = text;
        writer->capacity *= 2;
    }
    memcpy(writer->text + writer->bytes, piece, (size_t)bytes + 1);
    writer->bytes += (size_t)bytes;
}

/* Write words, each line with `lead` before it and no longer than COLUMNS if words allow. */
static void write_wrapped(struct writer *writer, const char *lead, const char *words)
{
    size_t room = COLUMNS - strlen(lead);

    while (*words != '\0') {
        size_t bytes = strlen(words);
        if (bytes > room) {
            bytes = room;
            while (bytes > 0 && words[bytes] != ' ') {
                bytes--;
            }
            bytes = bytes > 0 ? bytes : strcspn(words, " ");
        }
        write_text(writer, "%s%.*s\n", lead, (int)bytes, words);
        words += bytes + strspn(words + bytes, " ");
    }
}

/* What an option is for and, on a line of its own, what it may be: `names`, if the option itself
 * does not know. */
static void write_description(struct writer *writer, const char *lead,
                              const struct pd_option *option, const char *names)
{
    char words[400];
    char allowed[200];
    bool has_unit = option->unit != NULL && option->unit[0] != '\0';

    snprintf(words, sizeof words, "%s%s%s%s", option->help, has_unit ? " (" : "",
             has_unit ? option->unit : "", has_unit ? ")" : "");
    write_wrapped(writer, lead, words);
    snprintf(words, sizeof words, "allowed: %s",
             names != NULL ? names : pd_option_allowed(option, allowed, sizeof allowed));
    write_wrapped(writer, lead, words);
}

static const char *comment_lead(const struct writer *writer, char lead[32])
{
    snprintf(lead, 32, "%s%*s# ", writer->prefix, writer->indent, "");
    return lead;
}

static void write_comment(struct writer *writer, const char *words)
{
    char lead[32];

    write_wrapped(writer, comment_lead(writer, lead), words);
}

static void write_key(struct writer *writer, const char *key, const char *value)
{
    write_text(writer, "%s%*s%s:%s%s\n", writer->prefix, writer->indent, "", key,
               value[0] == '\0' ? "" : " ", value);
}

/* A key with its comment above it. */
static void write_option(struct writer *writer, const struct pd_option *option, const char *names,
                         const char *value)
{
    char lead[32];
    const char *dot = strrchr(option->key, '.');

    write_description(writer, comment_lead(writer, lead), option, names);
    write_key(writer, dot == NULL ? option->key : dot + 1, value);
}

/* Keys with their comments; those inside a section further in, under what it is for. */
static void write_options(struct writer *writer, const struct pd_option *options, size_t count)
{
    int indent = writer->indent;

    for (size_t i = 0; i < count; i++) {
        writer->indent = strchr(options[i].key, '.') != NULL ? indent + 2 : indent;
        if (options[i].type == PD_OPTION_SECTION) {
            write_comment(writer, options[i].help);
            write_key(writer, options[i].key, "");
        } else {
            write_option(writer, &options[i], NULL, options[i].default_text);
        }
    }
    writer->indent = indent;
}

static void write_optimizer(struct writer *writer, const struct pd_optimizer *optimizer)
{
    char names[384];

    write_key(writer, "optimizer", "");
    writer->indent = 2;
    write_comment(writer, optimizer->help);
    write_option(writer, &pd_optimizer_name_options.options[0],
                 pd_optimizer_names(names, sizeof names), optimizer->name);
    write_options(writer, optimizer->options, optimizer->option_count);
    writer->indent = 0;
}

static const struct pd_optimizer *default_optimizer(void)
{
    const struct pd_optimizer *optimizer =
        pd_optimizer_find(pd_optimizer_name_options.options[0].default_text);

    PD_ASSERT(optimizer != NULL);
    return optimizer;
}

/* The default optimizer, then the others as comments. */
static void write_optimizers(struct writer *writer)
{
    const struct pd_optimizer *optimizer = default_optimizer();

    write_optimizer(writer, optimizer);
    for (size_t i = 0; pd_optimizer_at(i) != NULL; i++) {
        if (pd_optimizer_at(i) != optimizer) {
            write_text(writer, "\n");
            writer->prefix = "# ";
            write_optimizer(writer, pd_optimizer_at(i));
            writer->prefix = "";
        }
    }
}

/* No groups, then one as a comment. */
static void write_groups(struct writer *writer)
{
    const struct pd_optimizer *optimizer = default_optimizer();

    write_key(writer, "groups", "[]");
    write_text(writer, "\n# groups:\n"
                       "#   - match: [\"*.bias\", \"*norm*\"]\n"
                       "#     weight_decay: 0\n"
                       "#   - match: \"backbone.*\"\n"
                       "#     lr_multiplier: 0.1\n\n");
    writer->prefix = "# ";
    write_text(writer, "# groups:\n#   -\n");
    writer->indent = 4;
    write_options(writer, pd_group_options.options, pd_group_options.count);
    write_options(writer, pd_group_settings_options.options, pd_group_settings_options.count);
    write_comment(writer, "and any key of the optimizer, in place of the optimizer's own:");
    for (size_t i = 0; i < optimizer->option_count; i++) {
        if (strcmp(optimizer->options[i].key, "lr") != 0) {
            write_key(writer, optimizer->options[i].key, optimizer->options[i].default_text);
        }
    }
    writer->indent = 0;
    writer->prefix = "";
}

/* No schedule, then a list and each rule as comments. */
static void write_schedules(struct writer *writer)
{
    char names[384];

    write_key(writer, "schedule", "[]");
    write_text(writer, "\n# schedule:\n"
                       "#   - {name: linear, start_factor: 0.01, steps: 500}\n"
                       "#   - {name: cosine, t_max: 10000, eta_min: 1e-6}\n");
    pd_schedule_names(names, sizeof names);
    for (size_t i = 0; pd_schedule_at(i) != NULL; i++) {
        const struct pd_schedule_rule *rule = pd_schedule_at(i);

        write_text(writer, "\n");
        writer->prefix = "# ";
        write_key(writer, "schedule", "");
        writer->indent = 2;
        write_comment(writer, rule->help);
        write_option(writer, &pd_schedule_name_options.options[0], names, rule->name);
        write_options(writer, rule->options, rule->option_count);
        if (i == 0) {
            write_comment(writer, "and, as of every schedule:");
            write_options(writer, pd_schedule_common_options, pd_schedule_common_option_count);
        }
        writer->indent = 0;
        writer->prefix = "";
    }
}

char *pd_config_example(void)
{
    struct writer writer;

    if (!writer_init(&writer)) {
        return NULL;
    }
    write_comment(&writer, "A configuration of paramd: every key, with its default. A key left out "
                           "has its default, so most files need a few lines of this.");
    for (size_t i = 0; i < pd_config_options.count; i++) {
        const struct pd_option *option = &pd_config_options.options[i];
        bool inside = strchr(option->key, '.') != NULL;

        writer.indent = inside ? 2 : 0;
        write_text(&writer, "%s", inside ? "" : "\n");
        if (option->type != PD_OPTION_SECTION) {
            write_option(&writer, option, NULL, option->default_text);
            continue;
        }
        write_comment(&writer, option->help);
        if (strcmp(option->key, "optimizer") == 0) {
            write_optimizers(&writer);
        } else if (strcmp(option->key, "groups") == 0) {
            write_groups(&writer);
        } else if (strcmp(option->key, "schedule") == 0) {
            write_schedules(&writer);
        } else if (strcmp(option->key, "checkpoint") == 0) {
            write_key(&writer, option->key, "null");
        } else {
            write_key(&writer, option->key, "");
        }
    }
    return writer.text;
}

/* "  key = default" with what it is below. */
static void write_help(struct writer *writer, const char *parent, const struct pd_option *option,
                       const char *names)
{
    if (option->type == PD_OPTION_SECTION) {
        return;
    }
    write_text(writer, "  %s%s%s%s\n", parent, option->key,
               option->default_text == NULL ? "" : " = ",
               option->default_text == NULL ? "" : option->default_text);
    write_description(writer, "      ", option, names);
}

static void write_table_help(struct writer *writer, const char *parent,
                             const struct pd_option *options, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        write_help(writer, parent, &options[i], NULL);
    }
}

char *pd_config_help(void)
{
    struct writer writer;
    char names[384];

    if (!writer_init(&writer)) {
        return NULL;
    }
    write_text(&writer, "Keys, as in --set, with their defaults:\n");
    write_table_help(&writer, "", pd_config_options.options, pd_config_options.count);
    write_help(&writer, "optimizer.", &pd_optimizer_name_options.options[0],
               pd_optimizer_names(names, sizeof names));
    for (size_t i = 0; pd_optimizer_at(i) != NULL; i++) {
        const struct pd_optimizer *optimizer = pd_optimizer_at(i);
        write_text(&writer, "\nOf the optimizer %s:\n", optimizer->name);
        write_wrapped(&writer, "  ", optimizer->help);
        write_table_help(&writer, "optimizer.", optimizer->options, optimizer->option_count);
    }
    write_text(&writer, "\nOf a group, beside any key of the optimizer:\n");
    write_table_help(&writer, "groups.0.", pd_group_options.options, pd_group_options.count);
    write_table_help(&writer, "groups.0.", pd_group_settings_options.options,
                     pd_group_settings_options.count);
    write_text(&writer, "\nOf a schedule:\n");
    write_help(&writer, "schedule.0.", &pd_schedule_name_options.options[0],
               pd_schedule_names(names, sizeof names));
    write_table_help(&writer, "schedule.0.", pd_schedule_common_options,
                     pd_schedule_common_option_count);
    for (size_t i = 0; pd_schedule_at(i) != NULL; i++) {
        const struct pd_schedule_rule *rule = pd_schedule_at(i);
        write_text(&writer, "\nOf the schedule %s:\n", rule->name);
        write_wrapped(&writer, "  ", rule->help);
        write_table_help(&writer, "schedule.0.", rule->options, rule->option_count);
    }
    return writer.text;
}

static void write_schedule_summary(struct writer *writer, const struct pd_config *config)
{
    write_text(writer, "schedule: %s", config->schedule_count == 0 ? "none, the rate is lr" : "");
    for (uint32_t i = 0; i < config->schedule_count;) {
        const struct pd_schedule *schedule = &config->schedules[i];
        uint32_t left = config->schedule_count - i;
        uint32_t together = (uint32_t)pd_schedule_together(schedule, left);

        write_text(writer, "%s", i == 0 ? "" : ", then ");
        for (uint32_t k = 0; k < together; k++) {
            write_text(writer, "%s%s", k == 0 ? "" : " times ",
                       pd_schedule_at(schedule[k].kind)->name);
        }
        if (together < left) {
            write_text(writer, " for %" PRIu64 " steps", pd_schedule_duration(schedule, left));
        }
        i += together;
    }
    write_text(writer, "\n");
}

static void write_group_summary(struct writer *writer, const struct pd_group *group)
{
    if (group->frozen) {
        write_text(writer, "%s frozen", group->name);
        return;
    }
    write_text(writer, "%s lr %.9g", group->name, group->hyper.lr);
    if (group->clips_alone && !isnan(group->clip.norm)) {
        write_text(writer, " clipped to norm %.9g of type %.9g", group->clip.norm,
                   group->clip.norm_type);
    }
}

char *pd_config_summary(const struct pd_config *config)
{
    struct writer writer;

    if (!writer_init(&writer)) {
        return NULL;
    }
    write_text(&writer, "optimizer: %s, lr %.9g", config->optimizer->name,
               config->groups[0].hyper.lr);
    for (uint32_t i = 1; i < config->group_count; i++) {
        write_text(&writer, "%s", i == 1 ? "; groups: " : ", ");
        write_group_summary(&writer, &config->groups[i]);
    }
    write_text(&writer, "\n");
    if (!isnan(config->layer_decay.decay)) {
        write_text(&writer, "layer decay: %.9g from layer to layer of %s\n",
                   config->layer_decay.decay, config->layer_decay.layers.texts[0]);
    }
    write_schedule_summary(&writer, config);
    write_text(&writer, "aggregation: %s\n",
               config->aggregation == PD_AGGREGATION_DIRECT ? "direct" : "allreduce");
    write_text(&writer, "workers: %" PRIu64 " expected, %" PRIu64 " micro-batch%s a step\n",
               config->workers.expected, config->accumulation_steps,
               config->accumulation_steps == 1 ? "" : "es");
    if (!isnan(config->clip.norm)) {
        write_text(&writer, "clip: norm %.9g of type %.9g\n", config->clip.norm,
                   config->clip.norm_type);
    }
    write_text(&writer, "listen: %s\n", config->listen);
    return writer.text;
}
