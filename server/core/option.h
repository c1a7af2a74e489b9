/* One row per setting: the single source of parsing, bounds, defaults, --help and the example file.
 * config and each optimizer and schedule bring their rows. Pure. */
#ifndef PD_SERVER_CORE_OPTION_H
#define PD_SERVER_CORE_OPTION_H

#include "server/core/config_tree.h"

#include <stddef.h>

enum pd_option_type {
    PD_OPTION_BOOL, /* bool */
    PD_OPTION_UINT, /* uint64_t, within [low, high] */
    PD_OPTION_REAL, /* double, within [low, high]; low_open/high_open exclude the bound */
    /* double[2], each within the bounds: betas. Nullable: each may be null, which is NaN. */
    PD_OPTION_REALS2,
    PD_OPTION_REALS3, /* double[3] */
    PD_OPTION_REALS,  /* struct pd_option_reals, each within the bounds: milestones */
    PD_OPTION_POINTS, /* struct pd_option_points, values within the bounds: points */
    PD_OPTION_TEXT,   /* char[high + 1], at most `high` bytes */
    PD_OPTION_TEXTS, /* uint32_t count, then char[low][high + 1]: a text or a list of up to `low` */
    PD_OPTION_CHOICE,  /* int: index of the word in `choices` */
    PD_OPTION_SECTION, /* no field: keys inside are "section.key", or read by code of their own */
};

#define PD_OPTION_REALS_MAX 64

/* The field of a REALS option. */
struct pd_option_reals {
    uint32_t count;
    double values[PD_OPTION_REALS_MAX];
};

/* The field of a POINTS option: pairs of a step, each beyond the one before, and a value. */
struct pd_option_points {
    uint32_t count;
    double pairs[PD_OPTION_REALS_MAX][2];
};

struct pd_option {
    const char *key;
    enum pd_option_type type;
    size_t offset; /* of the field in the struct the table is for */
    /* As in YAML. "null": none (a REAL becomes NaN, a list or TEXT empty, a UINT 0). NULL: none,
     * the key is a section or must be given. */
    const char *default_text;
    /* A `high` of INFINITY, not open, allows inf; one of 2^53 or more, open or beyond any use, is
     * shown as no bound. */
    double low, high;
    unsigned char low_open, high_open, nullable;
    const char *const *choices; /* CHOICE: NULL-terminated */
    const char *unit;           /* "s", "elements", "" */
    const char *help;           /* one line */
};

/* Set the option's field in the struct at `base` from what was written at `path`.
 * Errors: PD_ECONFIG says where, the key, the value and what is allowed. */
PD_MUST_CHECK
enum pd_status pd_option_read(const struct pd_option *option, const char *path,
                              const struct pd_node *node, void *base, struct pd_error *error);

/* Say where the value of `node` was written, its key, the value, what is wrong and what is allowed.
 * Returns PD_ECONFIG. */
enum pd_status pd_option_fault(const struct pd_node *node, const char *path, const char *what,
                               const char *allowed, struct pd_error *error);

/* Set every field of a table to its default. Errors: PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_option_defaults(const struct pd_option *options, size_t count, void *base,
                                  struct pd_error *error);

/* Write what is allowed, such as "a number >= 0 and < 1", into `text`; returns `text`. */
const char *pd_option_allowed(const struct pd_option *option, char *text, size_t text_bytes);

#endif
