#include "client/paramctl.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#define LABEL_WIDTH 15
#define CELL_BYTES_MAX 96u
#define COLUMN_COUNT_MAX 40u
#define POINT_WIDTH 12u

/* ---- Single values ---- */

/* A JSON value as people read it: numbers short, null as "-". */
static const char *format_value(const json_t *value, char *text, size_t text_bytes)
{
    if (json_is_string(value)) {
        snprintf(text, text_bytes, "%s", json_string_value(value));
    } else if (json_is_integer(value)) {
        snprintf(text, text_bytes, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    } else if (json_is_real(value)) {
        snprintf(text, text_bytes, "%.6g", json_real_value(value));
    } else if (json_is_boolean(value)) {
        snprintf(text, text_bytes, "%s", json_is_true(value) ? "yes" : "no");
    } else {
        snprintf(text, text_bytes, "-");
    }
    return text;
}

static const char *format_key(const json_t *object, const char *key, char *text, size_t text_bytes)
{
    return format_value(json_object_get(object, key), text, text_bytes);
}

static void print_row(FILE *out, const char *label, const char *text)
{
    fprintf(out, "%-*s %s\n", LABEL_WIDTH, label, text);
}

static void print_key(FILE *out, const json_t *object, const char *key, const char *label,
                      const char *unit)
{
    char value[CELL_BYTES_MAX];
    char text[CELL_BYTES_MAX + 32];
    const json_t *found = json_object_get(object, key);

    if (found == NULL) {
        return;
    }
    bool bare = json_is_null(found) || unit[0] == '\0';
    format_value(found, value, sizeof value);
    snprintf(text, sizeof text, "%s%s%s", value, bare ? "" : " ", bare ? "" : unit);
    print_row(out, label, text);
}

/* A text in full, if there is one. */
static void print_text(FILE *out, const json_t *object, const char *key, const char *label)
{
    const char *text = json_string_value(json_object_get(object, key));

    if (text != NULL) {
        print_row(out, label, text);
    }
}

/* Seconds as "2 h 03 min", "4 min 05 s" or "12.3 s". */
static void format_duration(double seconds, char *text, size_t text_bytes)
{
    if (seconds >= 3600.0) {
        snprintf(text, text_bytes, "%.0f h %02.0f min", floor(seconds / 3600.0),
                 floor(fmod(seconds, 3600.0) / 60.0));
    } else if (seconds >= 60.0) {
        snprintf(text, text_bytes, "%.0f min %02.0f s", floor(seconds / 60.0),
                 floor(fmod(seconds, 60.0)));
    } else {
        snprintf(text, text_bytes, "%.1f s", seconds);
    }
}

/* ---- Tables ---- */

struct column {
    const char *key;
    const char *title;
    bool right; /* numbers are set to the right */
};

/* A cell: a value, or an array as "[3, 4]". */
static const char *format_cell(const json_t *value, char *text, size_t text_bytes)
{
    size_t used = 1;

    if (!json_is_array(value)) {
        return format_value(value, text, text_bytes);
    }
    snprintf(text, text_bytes, "[");
    for (size_t i = 0; i < json_array_size(value) && used < text_bytes - 2; i++) {
        char item[CELL_BYTES_MAX];
        format_value(json_array_get(value, i), item, sizeof item);
        used += (size_t)snprintf(text + used, text_bytes - used, "%s%s", i > 0 ? ", " : "", item);
    }
    used = used < text_bytes - 2 ? used : text_bytes - 2;
    snprintf(text + used, text_bytes - used, "]");
    return text;
}

static void print_cell(FILE *out, const struct column *column, size_t width, bool final,
                       const char *text)
{
    if (column->right) {
        fprintf(out, "%*s", (int)width, text);
    } else {
        fprintf(out, "%-*s", final ? 0 : (int)width, text);
    }
    fputs(final ? "\n" : "  ", out);
}

static void print_table(FILE *out, const json_t *rows, const struct column *columns,
                        size_t column_count)
{
    size_t widths[COLUMN_COUNT_MAX];
    char text[CELL_BYTES_MAX];

    for (size_t c = 0; c < column_count; c++) {
        widths[c] = strlen(columns[c].title);
        for (size_t r = 0; r < json_array_size(rows); r++) {
            const json_t *row = json_array_get(rows, r);
            size_t width =
                strlen(format_cell(json_object_get(row, columns[c].key), text, sizeof text));
            widths[c] = width > widths[c] ? width : widths[c];
        }
    }
    for (size_t c = 0; c < column_count; c++) {
        print_cell(out, &columns[c], widths[c], c + 1 == column_count, columns[c].title);
    }
    for (size_t r = 0; r < json_array_size(rows); r++) {
        for (size_t c = 0; c < column_count; c++) {
            const json_t *row = json_array_get(rows, r);
            format_cell(json_object_get(row, columns[c].key), text, sizeof text);
            print_cell(out, &columns[c], widths[c], c + 1 == column_count, text);
        }
    }
}

static const struct column group_columns[] = {{"name", "group", false},
                                              {"lr", "lr", true},
                                              {"weight_decay", "weight decay", true},
                                              {"grad_norm", "gradient norm", true},
                                              {"clip_scale", "clip scale", true},
                                              {"frozen", "frozen", false}};
static const struct column worker_columns[] = {{"id", "id", true},
                                               {"name", "name", false},
                                               {"state", "state", false},
                                               {"step", "step", true},
                                               {"samples", "samples", true}};
static const struct column tensor_columns[] = {
    {"name", "tensor", false},  {"shape", "shape", false}, {"elements", "elements", true},
    {"group", "group", false},  {"lr", "lr", true},        {"grad_norm", "gradient norm", true},
    {"shards", "shards", false}};

#define PRINT_TABLE(out, rows, columns)                                                            \
    print_table((out), (rows), (columns), sizeof(columns) / sizeof((columns)[0]))

/* ---- Answers ---- */

static int render_status(FILE *out, const json_t *answer)
{
    char step[CELL_BYTES_MAX];
    char version[CELL_BYTES_MAX];
    char text[3 * CELL_BYTES_MAX];
    const json_t *workers = json_object_get(answer, "workers");
    const json_t *groups = json_object_get(answer, "groups");
    const json_t *uptime = json_object_get(answer, "uptime_s");

    print_key(out, answer, "state", "state", "");
    print_text(out, answer, "waiting", "waiting");
    snprintf(text, sizeof text, "%s (version %s)", format_key(answer, "step", step, sizeof step),
             format_key(answer, "version", version, sizeof version));
    print_row(out, "step", text);
    print_key(out, answer, "lr", "learning rate", "");
    print_key(out, answer, "loss", "loss", "");
    print_key(out, answer, "grad_norm", "gradient norm", "");
    print_key(out, answer, "clip_scale", "clip scale", "");
    print_key(out, answer, "loss_scale", "loss scale", "");
    print_key(out, answer, "effective_batch", "batch", "samples");
    print_key(out, answer, "skipped_steps", "skipped steps", "");
    print_text(out, answer, "last_skip_reason", "last skip");
    print_key(out, answer, "shards", "shards", "");
    print_key(out, answer, "aggregation", "aggregation", "");
    print_key(out, answer, "mode", "mode", "");
    print_key(out, answer, "checkpoint", "checkpoint", "");
    if (json_is_number(uptime)) {
        format_duration(json_number_value(uptime), text, sizeof text);
        print_row(out, "up", text);
    }
    if (json_array_size(groups) > 1) {
        fputc('\n', out);
        PRINT_TABLE(out, groups, group_columns);
    }
    if (json_array_size(workers) > 0) {
        fputc('\n', out);
        PRINT_TABLE(out, workers, worker_columns);
    }
    return json_object_get(answer, "step") != NULL;
}

static int render_lr(FILE *out, const json_t *answer)
{
    const json_t *groups = json_object_get(answer, "groups");

    print_key(out, answer, "step", "step", "");
    print_key(out, answer, "lr", "learning rate", "");
    if (json_array_size(groups) > 1) {
        fputc('\n', out);
        print_table(out, groups, group_columns, 2);
    }
    return json_object_get(answer, "lr") != NULL;
}

static int render_step(FILE *out, const json_t *answer)
{
    print_key(out, answer, "step", "step", "");
    print_key(out, answer, "version", "version", "");
    print_key(out, answer, "skipped_steps", "skipped steps", "");
    return json_object_get(answer, "step") != NULL;
}

/* Steps down, groups across. */
static int render_schedule(FILE *out, const json_t *answer, const char *group)
{
    const json_t *groups = json_object_get(answer, "groups");
    const json_t *lrs = json_object_get(answer, "lrs");
    json_int_t begin = json_integer_value(json_object_get(answer, "begin"));
    bool found = group == NULL;

    if (!json_is_array(groups) || !json_is_array(lrs)) {
        return 0;
    }
    fprintf(out, "%10s", "step");
    for (size_t g = 0; g < json_array_size(groups); g++) {
        const char *name = json_string_value(json_array_get(groups, g));
        if (name != NULL && (group == NULL || strcmp(name, group) == 0)) {
            fprintf(out, "  %12s", name);
            found = true;
        }
    }
    fputc('\n', out);
    for (size_t s = 0; s < json_array_size(lrs); s++) {
        const json_t *row = json_array_get(lrs, s);
        fprintf(out, "%10" JSON_INTEGER_FORMAT, begin + (json_int_t)s);
        for (size_t g = 0; g < json_array_size(row); g++) {
            const char *name = json_string_value(json_array_get(groups, g));
            if (name != NULL && (group == NULL || strcmp(name, group) == 0)) {
                fprintf(out, "  %12.6g", json_number_value(json_array_get(row, g)));
            }
        }
        fputc('\n', out);
    }
    return found;
}

static const struct column history_columns[] = {{"step", "step", true},
                                                {"lr", "lr", true},
                                                {"loss", "loss", true},
                                                {"grad_norm", "gradient norm", true},
                                                {"clipped_norm", "clipped", true},
                                                {"effective_batch", "batch", true},
                                                {"skipped", "skipped", false}};

/* The rows, each with its metrics as columns of their own. */
static json_t *flatten_history(const json_t *answer)
{
    json_t *rows = json_array();
    size_t i = 0;
    json_t *row = NULL;

    json_array_foreach(json_object_get(answer, "rows"), i, row)
    {
        json_t *flat = json_copy(row);
        json_object_update(flat, json_object_get(row, "metrics"));
        json_array_append_new(rows, flat);
    }
    return rows;
}

/* The columns of a history, and then its metrics. */
static size_t list_columns(const json_t *answer, struct column columns[COLUMN_COUNT_MAX])
{
    const json_t *metrics = json_object_get(answer, "metrics");
    size_t count = sizeof history_columns / sizeof history_columns[0];

    memcpy(columns, history_columns, sizeof history_columns);
    for (size_t i = 0; i < json_array_size(metrics) && count < COLUMN_COUNT_MAX; i++) {
        const char *name = json_string_value(json_array_get(metrics, i));
        columns[count++] = (struct column){name, name, true};
    }
    return count;
}

static int render_history(FILE *out, const json_t *answer)
{
    struct column columns[COLUMN_COUNT_MAX];
    size_t column_count = list_columns(answer, columns);

    if (!json_is_array(json_object_get(answer, "rows"))) {
        return 0;
    }
    if (json_array_size(json_object_get(answer, "rows")) == 0) {
        fprintf(out, "no step has closed\n");
        return 1;
    }
    json_t *rows = flatten_history(answer);
    print_table(out, rows, columns, column_count);
    json_decref(rows);
    return 1;
}

/* ---- Searches ---- */

static const struct column point_columns[] = {
    {"lr", "lr", true}, {"loss", "loss", true}, {"smoothed", "smoothed", true}};
#define POINT_COLUMN_COUNT (sizeof point_columns / sizeof point_columns[0])

static size_t list_point_columns(struct column columns[COLUMN_COUNT_MAX])
{
    memcpy(columns, point_columns, sizeof point_columns);
    return POINT_COLUMN_COUNT;
}

void paramctl_render_points_heading(FILE *out)
{
    for (size_t c = 0; c < POINT_COLUMN_COUNT; c++) {
        print_cell(out, &point_columns[c], POINT_WIDTH, c + 1 == POINT_COLUMN_COUNT,
                   point_columns[c].title);
    }
}

void paramctl_render_points(FILE *out, const json_t *answer)
{
    size_t i = 0;
    json_t *row = NULL;

    json_array_foreach(json_object_get(answer, "rows"), i, row)
    {
        for (size_t c = 0; c < POINT_COLUMN_COUNT; c++) {
            char text[CELL_BYTES_MAX];
            print_cell(out, &point_columns[c], POINT_WIDTH, c + 1 == POINT_COLUMN_COUNT,
                       format_key(row, point_columns[c].key, text, sizeof text));
        }
    }
}

void paramctl_render_search_end(FILE *out, const json_t *answer)
{
    const char *end = json_string_value(json_object_get(answer, "end"));
    const char *reason = json_string_value(json_object_get(answer, "reason"));
    char text[CELL_BYTES_MAX];
    char line[2 * CELL_BYTES_MAX];

    if (end == NULL || reason == NULL) {
        fprintf(out, "under way\n");
        return;
    }
    fprintf(out, "%s: %s\n", end, reason);
    fprintf(out,
            "version %" JSON_INTEGER_FORMAT " has the state of version %" JSON_INTEGER_FORMAT
            " again\n",
            json_integer_value(json_object_get(answer, "version")),
            json_integer_value(json_object_get(answer, "step")));
    snprintf(line, sizeof line, "%s (where the loss falls fastest)",
             format_key(answer, "suggestion", text, sizeof text));
    print_row(out, "suggestion", line);
    snprintf(line, sizeof line, "%s (a tenth of the rate with the least loss)",
             format_key(answer, "lr_min", text, sizeof text));
    print_row(out, "or", line);
}

static int render_curve(FILE *out, const json_t *answer)
{
    if (!json_is_array(json_object_get(answer, "rows"))) {
        return 0;
    }
    paramctl_render_points_heading(out);
    paramctl_render_points(out, answer);
    paramctl_render_search_end(out, answer);
    return 1;
}

/* A field in quotes if it needs them. */
static void print_csv_text(FILE *out, const char *text)
{
    if (strpbrk(text, ",\"") == NULL) {
        fputs(text, out);
        return;
    }
    fputc('"', out);
    for (; *text != '\0'; text++) {
        fputs(*text == '"' ? "\"\"" : (char[]){*text, '\0'}, out);
    }
    fputc('"', out);
}

int paramctl_render_csv(FILE *out, const char *command, const json_t *answer)
{
    struct column columns[COLUMN_COUNT_MAX];
    size_t column_count = strcmp(command, "history") == 0 ? list_columns(answer, columns)
                                                          : list_point_columns(columns);

    if (!json_is_array(json_object_get(answer, "rows"))) {
        return 0;
    }
    json_t *rows = flatten_history(answer);
    for (size_t c = 0; c < column_count; c++) {
        fputs(c > 0 ? "," : "", out);
        print_csv_text(out, columns[c].key);
    }
    fputc('\n', out);
    for (size_t r = 0; r < json_array_size(rows); r++) {
        for (size_t c = 0; c < column_count; c++) {
            const json_t *value = json_object_get(json_array_get(rows, r), columns[c].key);
            fputs(c > 0 ? "," : "", out);
            if (json_is_boolean(value)) {
                fputs(json_is_true(value) ? "1" : "0", out);
            } else if (json_is_integer(value)) {
                fprintf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
            } else if (json_is_real(value)) {
                fprintf(out, "%.17g", json_real_value(value));
            }
        }
        fputc('\n', out);
    }
    json_decref(rows);
    return 1;
}

static int render_rows(FILE *out, const json_t *answer, const char *key,
                       const struct column *columns, size_t column_count)
{
    const json_t *rows = json_object_get(answer, key);

    if (!json_is_array(rows)) {
        return 0;
    }
    if (json_array_size(rows) == 0) {
        fprintf(out, "no %s\n", key);
        return 1;
    }
    print_table(out, rows, columns, column_count);
    return 1;
}

/* A command that was carried out says so in one sentence. */
static int render_done(FILE *out, const json_t *answer)
{
    const char *text = json_string_value(json_object_get(answer, "text"));

    if (text == NULL) {
        return 0;
    }
    fprintf(out, "%s\n", text);
    return 1;
}

int paramctl_render(FILE *out, const char *command, const json_t *answer, const char *group)
{
    if (!json_is_object(answer)) {
        return 0;
    }
    if (strcmp(command, "status") == 0) {
        return render_status(out, answer);
    }
    if (strcmp(command, "lr") == 0) {
        return render_lr(out, answer);
    }
    if (strcmp(command, "step") == 0) {
        return render_step(out, answer);
    }
    if (strcmp(command, "schedule") == 0) {
        return render_schedule(out, answer, group);
    }
    if (strcmp(command, "history") == 0) {
        return render_history(out, answer);
    }
    if (strcmp(command, "lr-curve") == 0) {
        return render_curve(out, answer);
    }
    if (strcmp(command, "workers") == 0) {
        return render_rows(out, answer, "workers", worker_columns,
                           sizeof worker_columns / sizeof worker_columns[0]);
    }
    if (strcmp(command, "tensors") == 0) {
        return render_rows(out, answer, "tensors", tensor_columns,
                           sizeof tensor_columns / sizeof tensor_columns[0]);
    }
    return render_done(out, answer);
}
