#include "client/paramctl.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

/* A text in single quotes, as gnuplot reads it. */
static void print_quoted(FILE *out, const char *text)
{
    fputc('\'', out);
    for (; *text != '\0'; text++) {
        fputs(*text == '\'' ? "''" : (char[]){*text, '\0'}, out);
    }
    fputc('\'', out);
}

static void print_number(FILE *out, const json_t *value)
{
    if (json_is_number(value)) {
        fprintf(out, " %.17g", json_number_value(value));
    } else {
        fputs(" NaN", out);
    }
}

static void print_heading(FILE *out, const char *file, int height)
{
    fprintf(out, "set terminal pngcairo size 900,%d font 'sans,11' linewidth 1.5\nset output ",
            height);
    print_quoted(out, file);
    fputs("\nset datafile missing 'NaN'\nset grid linecolor rgb '#e0e0e0'\nset border 3\n"
          "set tics nomirror\nset key top right noenhanced\nset xlabel 'step'\n",
          out);
}

static int plot_schedule(FILE *out, const json_t *answer, const char *file)
{
    const json_t *groups = json_object_get(answer, "groups");
    const json_t *lrs = json_object_get(answer, "lrs");
    json_int_t begin = json_integer_value(json_object_get(answer, "begin"));

    if (!json_is_array(groups) || json_array_size(lrs) == 0) {
        return 0;
    }
    print_heading(out, file, 450);
    fputs("set ylabel 'learning rate'\n$data << EOD\n", out);
    for (size_t i = 0; i < json_array_size(lrs); i++) {
        fprintf(out, "%" JSON_INTEGER_FORMAT, begin + (json_int_t)i);
        for (size_t g = 0; g < json_array_size(groups); g++) {
            print_number(out, json_array_get(json_array_get(lrs, i), g));
        }
        fputc('\n', out);
    }
    fputs("EOD\nplot ", out);
    for (size_t g = 0; g < json_array_size(groups); g++) {
        const char *name = json_string_value(json_array_get(groups, g));
        fprintf(out, "%s$data using 1:%zu with lines linewidth 2 title ", g > 0 ? ", " : "", g + 2);
        print_quoted(out, name != NULL ? name : "");
    }
    fputc('\n', out);
    return 1;
}

/* A column of $data, in the plot that has begun or a new one; gnuplot refuses to draw one without
 * any number. Returns whether a plot has begun. */
static bool print_series(FILE *out, const json_t *rows, const char *key, size_t column, bool begun)
{
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        if (json_is_number(json_object_get(row, key)) ||
            json_is_number(json_object_get(json_object_get(row, "metrics"), key))) {
            fprintf(out, "%s $data using 1:%zu with linespoints pointsize 0.3 title ",
                    begun ? "," : "plot", column);
            print_quoted(out, key);
            return true;
        }
    }
    return begun;
}

static int plot_history(FILE *out, const json_t *answer, const char *file)
{
    static const char *const keys[] = {"step", "loss", "lr", "grad_norm", "clipped_norm"};
    const json_t *rows = json_object_get(answer, "rows");
    const json_t *metrics = json_object_get(answer, "metrics");

    if (json_array_size(rows) == 0) {
        return 0;
    }
    print_heading(out, file, 900);
    fputs("$data << EOD\n", out);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
            print_number(out, json_object_get(row, keys[k]));
        }
        for (size_t m = 0; m < json_array_size(metrics); m++) {
            const char *name = json_string_value(json_array_get(metrics, m));
            print_number(out, json_object_get(json_object_get(row, "metrics"), name));
        }
        fputc('\n', out);
    }
    fputs("EOD\nset multiplot layout 3,1\n", out);
    bool begun = print_series(out, rows, "loss", 2, false);
    for (size_t m = 0; m < json_array_size(metrics); m++) {
        const char *name = json_string_value(json_array_get(metrics, m));
        begun = print_series(out, rows, name, m + 6, begun);
    }
    fputc('\n', out);
    (void)print_series(out, rows, "lr", 3, false);
    fputc('\n', out);
    begun = print_series(out, rows, "grad_norm", 4, false);
    (void)print_series(out, rows, "clipped_norm", 5, begun);
    fputs("\nunset multiplot\n", out);
    return 1;
}

/* Losses over rates. A loss that explodes is left beyond the upper edge: the smoothed one tells. */
static int plot_curve(FILE *out, const json_t *answer, const char *file)
{
    const json_t *rows = json_object_get(answer, "rows");
    const json_t *suggestion = json_object_get(answer, "suggestion");
    double highest = 0;

    if (json_array_size(rows) == 0) {
        return 0;
    }
    print_heading(out, file, 450);
    fputs("set xlabel 'learning rate'\nset ylabel 'loss'\nset key top left\nset logscale x\nset "
          "format x '%.0e'\n"
          "$data << EOD\n",
          out);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        print_number(out, json_object_get(row, "lr"));
        print_number(out, json_object_get(row, "loss"));
        print_number(out, json_object_get(row, "smoothed"));
        fputc('\n', out);
        highest = fmax(highest, json_number_value(json_object_get(row, "smoothed")));
    }
    fputs("EOD\n", out);
    if (highest > 0) {
        fprintf(out, "set yrange [*:%.17g]\n", 1.1 * highest);
    }
    if (json_is_number(suggestion)) {
        double lr = json_number_value(suggestion);
        fprintf(out,
                "set arrow from first %.17g, graph 0 to first %.17g, graph 1 nohead dashtype 2\n"
                "set label 'suggestion %.3g' at first %.17g, graph 0.05 offset 0.5,0\n",
                lr, lr, lr, lr);
    }
    fputs("plot $data using 1:2 with points pointtype 7 pointsize 0.4 linecolor rgb '#a0a0a0' "
          "title 'loss', "
          "$data using 1:3 with lines linewidth 2 title 'smoothed'\n",
          out);
    return 1;
}

int paramctl_plot(FILE *out, const char *command, const json_t *answer, const char *file)
{
    if (strcmp(command, "history") == 0) {
        return plot_history(out, answer, file);
    }
    return strcmp(command, "schedule") == 0 ? plot_schedule(out, answer, file)
                                            : plot_curve(out, answer, file);
}
