/* The option tables of a configuration beside those that optimizers and schedules bring.
 * [config_options] -> config (parsing), config_text (example, --help). Pure. */
#ifndef PD_SERVER_CORE_CONFIG_OPTIONS_H
#define PD_SERVER_CORE_CONFIG_OPTIONS_H

#include "server/core/config.h"
#include "server/core/option.h"

/* What a group's keys say besides its hyperparameters, in the widths of an option. */
struct pd_group_settings {
    uint64_t min_dims;
    uint64_t max_dims;
};

/* A table for an array of structs at `base`. */
struct pd_option_table {
    const struct pd_option *options;
    size_t count;
};

/* Into struct pd_config; keys inside a section are "section.key". */
extern const struct pd_option_table pd_config_options;
/* `name` of an optimizer or schedule: into char[PD_NAME_BYTES_MAX + 1]. */
extern const struct pd_option_table pd_optimizer_name_options;
extern const struct pd_option_table pd_schedule_name_options;
/* Into struct pd_group, and into struct pd_group_settings. */
extern const struct pd_option_table pd_group_options;
extern const struct pd_option_table pd_group_settings_options;

/* Write the names of all optimizers or schedules, with commas, into `text`; returns `text`. */
const char *pd_optimizer_names(char *text, size_t text_bytes);
const char *pd_schedule_names(char *text, size_t text_bytes);

#endif
