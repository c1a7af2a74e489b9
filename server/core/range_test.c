#include "server/core/range_test.h"

#include "common/assert.h"
#include "common/heap.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define RATE(name, field, as_default, about)                                                       \
    {                                                                                              \
        .key = name, .type = PD_OPTION_REAL, .offset = offsetof(struct pd_range_options, field),   \
        .default_text = as_default, .low_open = 1, .high = INFINITY, .high_open = 1, .help = about \
    }
#define COUNT(name, field, as_default, least, about)                                               \
    {                                                                                              \
        .key = name, .type = PD_OPTION_UINT, .offset = offsetof(struct pd_range_options, field),   \
        .default_text = as_default, .low = least, .high = PD_RANGE_STEPS_MAX, .help = about        \
    }
#define FLAG(name, field, about)                                                                   \
    {                                                                                              \
        .key = name, .type = PD_OPTION_BOOL, .offset = offsetof(struct pd_range_options, field),   \
        .default_text = "false", .help = about                                                     \
    }

static const struct pd_option rows[] = {
    RATE("start", start, "1e-7", "first learning rate"),
    RATE("end", end, "10", "last learning rate"),
    COUNT("steps", steps, "100", 2, "rates from start to end, a step each"),
    {.key = "smooth_f",
     .type = PD_OPTION_REAL,
     .offset = offsetof(struct pd_range_options, smooth_f),
     .default_text = "0.05",
     .low_open = 1,
     .high = 1,
     .help = "weight of the last loss in the smoothed one"},
    {.key = "diverge_th",
     .type = PD_OPTION_REAL,
     .offset = offsetof(struct pd_range_options, diverge_th),
     .default_text = "4",
     .low = 1,
     .low_open = 1,
     .high = INFINITY,
     .high_open = 1,
     .help = "multiple of the least smoothed loss that ends it"},
    COUNT("skip_start", skip_start, "10", 0, "first points that are not suggested"),
    COUNT("skip_end", skip_end, "5", 0, "last points that are not suggested"),
    FLAG("debias", debias, "smooth from 0, and make up for it"),
    FLAG("exclude_end", exclude_end, "stay one factor below end"),
};

#define ROW_COUNT (sizeof rows / sizeof rows[0])

static enum pd_status unknown_key(const struct pd_node *node, struct pd_error *error)
{
    char allowed[200] = "";
    size_t used = 0;

    for (size_t i = 0; i < ROW_COUNT && used < sizeof allowed; i++) {
        used += (size_t)snprintf(allowed + used, sizeof allowed - used, "%s%s", i > 0 ? ", " : "",
                                 rows[i].key);
    }
    return pd_node_fault(node, node->key, error, "unknown key; allowed: %s", allowed);
}

static enum pd_status read_key(struct pd_range_options *options, const struct pd_node *node,
                               struct pd_error *error)
{
    for (size_t i = 0; i < ROW_COUNT; i++) {
        if (strcmp(rows[i].key, node->key) == 0) {
            return pd_option_read(&rows[i], node->key, node, options, error);
        }
    }
    return unknown_key(node, error);
}

static enum pd_status read_settings(struct pd_range_options *options, struct pd_node *root,
                                    const char *const *settings, size_t setting_count,
                                    struct pd_error *error)
{
    enum pd_status status = PD_OK;

    for (size_t i = 0; status == PD_OK && i < setting_count; i++) {
        struct pd_config_source source = {.setting = settings[i], .taker = "lr-find"};
        status = pd_node_set(root, &source, error);
    }
    for (size_t i = 0; status == PD_OK && i < root->count; i++) {
        status = read_key(options, root->children[i], error);
    }
    if (status == PD_OK && options->end <= options->start) {
        return pd_error_set(error, PD_EINVALID,
                            "lr-find: end: %g with start %g; allowed: a number > start",
                            options->end, options->start);
    }
    return status;
}

enum pd_status pd_range_read(struct pd_range_options *options, const char *const *settings,
                             size_t setting_count, struct pd_error *error)
{
    const struct pd_config_source source = {.file = "lr-find"};
    struct pd_node *root;

    memset(options, 0, sizeof *options);
    enum pd_status status = pd_option_defaults(rows, ROW_COUNT, options, error);
    if (status == PD_OK) {
        status = pd_node_parse(&root, &source, "{}", error);
    }
    if (status != PD_OK) {
        return status;
    }
    status = read_settings(options, root, settings, setting_count, error);
    pd_node_destroy(root);
    if (status == PD_ECONFIG) {
        error->status = status = PD_EINVALID; /* it is the command that is wrong */
    }
    return status;
}

enum pd_status pd_range_init(struct pd_range_test *test, const struct pd_range_options *options,
                             struct pd_error *error)
{
    *test = (struct pd_range_test){.options = *options, .best = INFINITY};
    test->points = pd_heap_zalloc(options->steps, sizeof *test->points);
    if (test->points == NULL) {
        return pd_error_set(error, PD_ENOMEM, "lr-find: out of memory for %llu points",
                            (unsigned long long)options->steps);
    }
    return PD_OK;
}

void pd_range_finish(struct pd_range_test *test)
{
    pd_heap_free(test->points);
    memset(test, 0, sizeof *test);
}

double pd_range_lr(const struct pd_range_test *test)
{
    const struct pd_range_options *options = &test->options;
    uint64_t factors = options->steps - (options->exclude_end ? 0 : 1);

    PD_ASSERT(test->point_count < options->steps);
    return options->start *
           pow(options->end / options->start, (double)test->point_count / (double)factors);
}

/* The smoothed loss with `loss` as the latest. */
static double smooth(struct pd_range_test *test, double loss)
{
    const struct pd_range_options *options = &test->options;
    double keep = 1 - options->smooth_f;

    if (test->point_count == 0 && !options->debias) {
        test->average = loss;
    } else {
        test->average = options->smooth_f * loss + keep * test->average;
    }
    return options->debias ? test->average / (1 - pow(keep, (double)test->point_count + 1))
                           : test->average;
}

bool pd_range_take(struct pd_range_test *test, double loss)
{
    double smoothed = smooth(test, loss);
    /* So that losses below 0 do not end it at once: diverge_th * best for those above. */
    double limit = test->best + (test->options.diverge_th - 1) * fabs(test->best);

    PD_ASSERT(test->point_count < test->options.steps);
    if (!isfinite(smoothed) || smoothed > limit) {
        return false;
    }
    test->best = fmin(test->best, smoothed);
    test->points[test->point_count] =
        (struct pd_range_point){.lr = pd_range_lr(test), .loss = loss, .smoothed = smoothed};
    test->point_count++;
    return true;
}

/* Source: numpy.gradient, at `index` of `count` points, of which there are at least 2. */
static double gradient(const struct pd_range_point *points, uint64_t count, uint64_t index)
{
    uint64_t before = index > 0 ? index - 1 : 0;
    uint64_t after = index + 1 < count ? index + 1 : index;

    return (points[after].smoothed - points[before].smoothed) / (double)(after - before);
}

double pd_range_steepest(const struct pd_range_test *test)
{
    const struct pd_range_options *options = &test->options;
    double least = 0;
    double lr = NAN;

    if (test->point_count < options->skip_start + options->skip_end + 2) {
        return NAN;
    }
    const struct pd_range_point *points = test->points + options->skip_start;
    uint64_t count = test->point_count - options->skip_start - options->skip_end;
    for (uint64_t i = 0; i < count; i++) {
        if (gradient(points, count, i) < least) {
            least = gradient(points, count, i);
            lr = points[i].lr;
        }
    }
    return lr;
}

double pd_range_below_least(const struct pd_range_test *test)
{
    double lr = NAN;

    for (uint64_t i = test->point_count; i > 0; i--) {
        if (test->points[i - 1].smoothed <= test->best) {
            lr = test->points[i - 1].lr / 10;
        }
    }
    return lr;
}
