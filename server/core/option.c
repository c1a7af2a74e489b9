#include "server/core/option.h"

#include "common/assert.h"
#include "common/text.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Whole numbers above this are not exact as doubles, in which bounds are kept. */
#define WHOLE_MAX 9007199254740992.0

/* Write "a number >= 0 and < 1", with the bounds that bind. */
static void describe_bounds(const struct pd_option *option, const char *what, double unbounded,
                            char *text, size_t text_bytes)
{
    bool has_low = option->low > -unbounded;
    bool has_high = option->high < unbounded;
    char low[40] = "";
    char high[40] = "";

    if (has_low && has_high && !option->low_open && !option->high_open) {
        snprintf(text, text_bytes, "%s from %.15g to %.15g", what, option->low, option->high);
        return;
    }
    if (has_low) {
        snprintf(low, sizeof low, " %s %.15g", option->low_open ? ">" : ">=", option->low);
    }
    if (has_high) {
        snprintf(high, sizeof high, " %s %.15g", option->high_open ? "<" : "<=", option->high);
    }
    snprintf(text, text_bytes, "%s%s%s%s%s", what, low, has_low && has_high ? " and" : "", high,
             isinf(option->high) && !option->high_open ? ", or inf" : "");
}

static void describe_choices(const struct pd_option *option, char *text, size_t text_bytes)
{
    size_t used = 0;

    text[0] = '\0';
    for (size_t i = 0; option->choices[i] != NULL && used < text_bytes; i++) {
        used += (size_t)snprintf(text + used, text_bytes - used, "%s%s", i == 0 ? "" : ", ",
                                 option->choices[i]);
    }
}

/* Whether null is for the numbers of a list, not for the list. */
static bool is_list_of_fixed_length(const struct pd_option *option)
{
    return option->type == PD_OPTION_REALS2 || option->type == PD_OPTION_REALS3;
}

const char *pd_option_allowed(const struct pd_option *option, char *text, size_t text_bytes)
{
    switch (option->type) {
    case PD_OPTION_BOOL:
        snprintf(text, text_bytes, "true or false");
        break;
    case PD_OPTION_UINT:
        describe_bounds(option, "a whole number", WHOLE_MAX, text, text_bytes);
        break;
    case PD_OPTION_REAL:
        describe_bounds(option, "a number", DBL_MAX, text, text_bytes);
        break;
    case PD_OPTION_REALS2:
        describe_bounds(option, "a list of 2 numbers", DBL_MAX, text, text_bytes);
        break;
    case PD_OPTION_REALS3:
        describe_bounds(option, "a list of 3 numbers", DBL_MAX, text, text_bytes);
        break;
    case PD_OPTION_REALS:
        describe_bounds(option, "a list of numbers", DBL_MAX, text, text_bytes);
        break;
    case PD_OPTION_POINTS:
        describe_bounds(option, "a list of pairs [step, number], steps rising, number", DBL_MAX,
                        text, text_bytes);
        break;
    case PD_OPTION_TEXT:
        snprintf(text, text_bytes, "a text of at most %.0f bytes", option->high);
        break;
    case PD_OPTION_TEXTS:
        snprintf(text, text_bytes, "a text, or a list of at most %.0f, of at most %.0f bytes each",
                 option->low, option->high);
        break;
    case PD_OPTION_CHOICE:
        describe_choices(option, text, text_bytes);
        break;
    case PD_OPTION_SECTION:
        snprintf(text, text_bytes, "keys of its own");
        break;
    }
    if (option->nullable) {
        size_t used = strlen(text);
        snprintf(text + used, text_bytes - used, "%s",
                 is_list_of_fixed_length(option) ? ", each or null" : ", or null");
    }
    return text;
}

enum pd_status pd_option_fault(const struct pd_node *node, const char *path, const char *what,
                               const char *allowed, struct pd_error *error)
{
    switch (node->kind) {
    case PD_NODE_LIST:
        return pd_node_fault(node, path, error, "a list of %zu: %s; allowed: %s", node->count, what,
                             allowed);
    case PD_NODE_MAP:
        return pd_node_fault(node, path, error, "a mapping: %s; allowed: %s", what, allowed);
    case PD_NODE_SCALAR:
        break;
    }
    if (pd_node_is_null(node)) {
        return pd_node_fault(node, path, error, "no value; allowed: %s", allowed);
    }
    if (node->quoted) {
        return pd_node_fault(node, path, error, "\"%.60s\": %s; allowed: %s", node->text, what,
                             allowed);
    }
    return pd_node_fault(node, path, error, "%.60s: %s; allowed: %s", node->text, what, allowed);
}

/* Say what is wrong with the value of `node` and what the option allows. */
static enum pd_status value_fault(const struct pd_option *option, const char *path,
                                  const struct pd_node *node, const char *what,
                                  struct pd_error *error)
{
    char allowed[200];

    pd_option_allowed(option, allowed, sizeof allowed);
    return pd_option_fault(node, path, what, allowed, error);
}

static bool is_word(const struct pd_node *node, const char *const *words)
{
    for (size_t i = 0; words[i] != NULL; i++) {
        if (strcasecmp(node->text, words[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* Whether the text is a decimal number, with a point and an exponent or without; the exponent may
 * stand without a point, which YAML 1.1 itself would not take as a number. */
static bool is_decimal(const char *text)
{
    size_t digits;

    text += *text == '-' || *text == '+';
    digits = strspn(text, "0123456789");
    text += digits;
    if (*text == '.') {
        size_t fraction = strspn(text + 1, "0123456789");
        digits += fraction;
        text += 1 + fraction;
    }
    if (digits == 0) {
        return false;
    }
    if (*text == 'e' || *text == 'E') {
        text += 1;
        text += *text == '-' || *text == '+';
        digits = strspn(text, "0123456789");
        text += digits;
    }
    return *text == '\0' && digits > 0;
}

/* Read a number of any kind. Errors: a phrase saying what is wrong; NULL if nothing is. */
static const char *parse_number(const struct pd_node *node, double *out)
{
    static const char *const infinities[] = {".inf", "+.inf", "inf", "+inf", NULL};
    static const char *const minus_infinities[] = {"-.inf", "-inf", NULL};

    if (node->kind != PD_NODE_SCALAR || node->quoted) {
        return "not a number";
    }
    if (is_word(node, infinities)) {
        *out = INFINITY;
        return NULL;
    }
    if (is_word(node, minus_infinities)) {
        *out = -INFINITY;
        return NULL;
    }
    if (!is_decimal(node->text)) {
        return "not a number";
    }
    errno = 0;
    *out = strtod(node->text, NULL);
    return errno == ERANGE ? "beyond what a float64 holds" : NULL;
}

static bool in_bounds(const struct pd_option *option, double value)
{
    return (option->low_open ? value > option->low : value >= option->low) &&
           (option->high_open ? value < option->high : value <= option->high);
}

static enum pd_status read_bool(const struct pd_option *option, const char *path,
                                const struct pd_node *node, bool *out, struct pd_error *error)
{
    static const char *const yes[] = {"true", "yes", "on", NULL};
    static const char *const no[] = {"false", "no", "off", NULL};

    if (node->kind == PD_NODE_SCALAR && !node->quoted) {
        if (is_word(node, yes) || is_word(node, no)) {
            *out = is_word(node, yes);
            return PD_OK;
        }
    }
    return value_fault(option, path, node, "neither true nor false", error);
}

static enum pd_status read_uint(const struct pd_option *option, const char *path,
                                const struct pd_node *node, uint64_t *out, struct pd_error *error)
{
    double value;

    /* YAML 1.1 reads 010 as eight; neither reading is safe. */
    if (parse_number(node, &value) != NULL || value != trunc(value) ||
        (node->text[0] == '0' && node->text[1] >= '0' && node->text[1] <= '9')) {
        return value_fault(option, path, node, "not a whole number", error);
    }
    if (!in_bounds(option, value) || value < 0 || value > WHOLE_MAX) {
        return value_fault(option, path, node, "out of range", error);
    }
    *out = (uint64_t)value;
    return PD_OK;
}

static enum pd_status read_real(const struct pd_option *option, const char *path,
                                const struct pd_node *node, double *out, struct pd_error *error)
{
    double value;
    const char *fault = parse_number(node, &value);

    if (fault != NULL) {
        return value_fault(option, path, node, fault, error);
    }
    if (!in_bounds(option, value)) {
        return value_fault(option, path, node, "out of range", error);
    }
    *out = value;
    return PD_OK;
}

static enum pd_status read_reals(const struct pd_option *option, const char *path,
                                 const struct pd_node *node, double *out, size_t count,
                                 struct pd_error *error)
{
    if (node->kind != PD_NODE_LIST || node->count != count) {
        return value_fault(option, path, node, "not that many numbers", error);
    }
    for (size_t i = 0; i < count; i++) {
        if (option->nullable && pd_node_is_null(node->children[i])) {
            out[i] = NAN;
            continue;
        }
        enum pd_status status = read_real(option, path, node->children[i], &out[i], error);
        if (status != PD_OK) {
            return status;
        }
    }
    return PD_OK;
}

static enum pd_status read_real_list(const struct pd_option *option, const char *path,
                                     const struct pd_node *node, struct pd_option_reals *out,
                                     struct pd_error *error)
{
    if (node->kind != PD_NODE_LIST) {
        return value_fault(option, path, node, "not a list", error);
    }
    if (node->count > PD_OPTION_REALS_MAX) {
        return value_fault(option, path, node, "too many", error);
    }
    out->count = (uint32_t)node->count;
    return read_reals(option, path, node, out->values, node->count, error);
}

static enum pd_status read_points(const struct pd_option *option, const char *path,
                                  const struct pd_node *node, struct pd_option_points *out,
                                  struct pd_error *error)
{
    if (node->kind != PD_NODE_LIST) {
        return value_fault(option, path, node, "not a list", error);
    }
    if (node->count > PD_OPTION_REALS_MAX) {
        return value_fault(option, path, node, "too many", error);
    }
    out->count = (uint32_t)node->count;
    for (uint32_t i = 0; i < out->count; i++) {
        const struct pd_node *pair = node->children[i];
        double *step = &out->pairs[i][0];

        if (pair->kind != PD_NODE_LIST || pair->count != 2) {
            return value_fault(option, path, pair, "not a pair", error);
        }
        if (parse_number(pair->children[0], step) != NULL || *step != trunc(*step) || *step < 0 ||
            *step > WHOLE_MAX) {
            return value_fault(option, path, pair->children[0], "not a step", error);
        }
        if (i > 0 && *step <= out->pairs[i - 1][0]) {
            return value_fault(option, path, pair->children[0], "not beyond the step before",
                               error);
        }
        enum pd_status status =
            read_real(option, path, pair->children[1], &out->pairs[i][1], error);
        if (status != PD_OK) {
            return status;
        }
    }
    return PD_OK;
}

static enum pd_status read_text(const struct pd_option *option, const char *path,
                                const struct pd_node *node, char *out, struct pd_error *error)
{
    if (node->kind != PD_NODE_SCALAR || pd_node_is_null(node)) {
        return value_fault(option, path, node, "not a text", error);
    }
    if (node->text[0] == '\0') {
        return value_fault(option, path, node, "empty", error);
    }
    if (strlen(node->text) > (size_t)option->high) {
        return value_fault(option, path, node, "too long", error);
    }
    if (!pd_text_valid(node->text, strlen(node->text))) {
        return value_fault(option, path, node, "not one line of UTF-8", error);
    }
    memcpy(out, node->text, strlen(node->text) + 1);
    return PD_OK;
}

static enum pd_status read_texts(const struct pd_option *option, const char *path,
                                 const struct pd_node *node, uint32_t *count,
                                 struct pd_error *error)
{
    char *texts = (char *)(count + 1);
    size_t text_bytes = (size_t)option->high + 1;

    if (node->kind != PD_NODE_LIST) {
        *count = 1;
        return read_text(option, path, node, texts, error);
    }
    if (node->count > (size_t)option->low) {
        return value_fault(option, path, node, "too many", error);
    }
    for (size_t i = 0; i < node->count; i++) {
        enum pd_status status =
            read_text(option, path, node->children[i], texts + i * text_bytes, error);
        if (status != PD_OK) {
            return status;
        }
    }
    *count = (uint32_t)node->count;
    return PD_OK;
}

static enum pd_status read_choice(const struct pd_option *option, const char *path,
                                  const struct pd_node *node, int *out, struct pd_error *error)
{
    for (int i = 0; node->kind == PD_NODE_SCALAR && option->choices[i] != NULL; i++) {
        if (strcmp(node->text, option->choices[i]) == 0) {
            *out = i;
            return PD_OK;
        }
    }
    return value_fault(option, path, node, "not one of the words", error);
}

/* Null in the field of a nullable option. */
static void clear(const struct pd_option *option, void *field)
{
    switch (option->type) {
    case PD_OPTION_REAL:
        *(double *)field = NAN;
        break;
    case PD_OPTION_UINT:
        *(uint64_t *)field = 0;
        break;
    case PD_OPTION_REALS:
        ((struct pd_option_reals *)field)->count = 0;
        break;
    case PD_OPTION_POINTS:
        ((struct pd_option_points *)field)->count = 0;
        break;
    case PD_OPTION_TEXT:
        *(char *)field = '\0';
        break;
    case PD_OPTION_TEXTS:
        *(uint32_t *)field = 0;
        break;
    case PD_OPTION_BOOL:
    case PD_OPTION_REALS2:
    case PD_OPTION_REALS3:
    case PD_OPTION_CHOICE:
    case PD_OPTION_SECTION:
        PD_ASSERT(option->type == PD_OPTION_SECTION);
        break;
    }
}

enum pd_status pd_option_read(const struct pd_option *option, const char *path,
                              const struct pd_node *node, void *base, struct pd_error *error)
{
    void *field = (char *)base + option->offset;

    if (option->nullable && !is_list_of_fixed_length(option) && pd_node_is_null(node)) {
        clear(option, field);
        return PD_OK;
    }
    switch (option->type) {
    case PD_OPTION_BOOL:
        return read_bool(option, path, node, field, error);
    case PD_OPTION_UINT:
        return read_uint(option, path, node, field, error);
    case PD_OPTION_REAL:
        return read_real(option, path, node, field, error);
    case PD_OPTION_REALS2:
        return read_reals(option, path, node, field, 2, error);
    case PD_OPTION_REALS3:
        return read_reals(option, path, node, field, 3, error);
    case PD_OPTION_REALS:
        return read_real_list(option, path, node, field, error);
    case PD_OPTION_POINTS:
        return read_points(option, path, node, field, error);
    case PD_OPTION_TEXT:
        return read_text(option, path, node, field, error);
    case PD_OPTION_TEXTS:
        return read_texts(option, path, node, field, error);
    case PD_OPTION_CHOICE:
        return read_choice(option, path, node, field, error);
    case PD_OPTION_SECTION:
        break;
    }
    return PD_OK;
}

enum pd_status pd_option_defaults(const struct pd_option *options, size_t count, void *base,
                                  struct pd_error *error)
{
    for (size_t i = 0; i < count; i++) {
        struct pd_config_source source = {.file = "default"};
        struct pd_node *node;

        if (options[i].default_text == NULL) {
            continue;
        }
        enum pd_status status = pd_node_parse(&node, &source, options[i].default_text, error);
        if (status != PD_OK) {
            PD_ASSERT(status == PD_ENOMEM);
            return status;
        }
        if (pd_node_is_null(node)) {
            clear(&options[i], (char *)base + options[i].offset);
        } else {
            status = pd_option_read(&options[i], options[i].key, node, base, error);
        }
        pd_node_destroy(node);
        PD_ASSERT(status == PD_OK);
    }
    return PD_OK;
}
