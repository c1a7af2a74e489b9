/* One row per setting: the single source of parsing, bounds, defaults, --help and the example file.
 * config and each optimizer and schedule bring their rows. Pure. */
#ifndef PD_SERVER_CORE_OPTION_H
#define PD_SERVER_CORE_OPTION_H

#include <stddef.h>

enum pd_option_type {
    PD_OPTION_BOOL,   /* bool */
    PD_OPTION_UINT,   /* uint64_t, within [low, high] */
    PD_OPTION_REAL,   /* double, within [low, high]; low_open/high_open exclude the bound */
    PD_OPTION_REALS2, /* double[2], each within the bounds: betas */
    PD_OPTION_REALS3, /* double[3] */
    PD_OPTION_TEXT,   /* char[high + 1], at most `high` bytes */
    PD_OPTION_CHOICE, /* int: index of the word in `choices` */
};

struct pd_option {
    const char *key;
    enum pd_option_type type;
    size_t offset;            /* of the field in the struct the table is for */
    const char *default_text; /* as in YAML; "null": none (a REAL becomes NaN, a TEXT empty, a UINT
                                 0) */
    double low, high;
    unsigned char low_open, high_open, nullable;
    const char *const *choices; /* CHOICE: NULL-terminated */
    const char *unit;           /* "s", "elements", "" */
    const char *help;           /* one line */
};

#endif
