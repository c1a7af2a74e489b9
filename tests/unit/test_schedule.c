/* Schedules against the reference's learning rates, alone and in sequence. */
#include "server/core/schedule.h"
#include "tests/support/vectors.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Of the base rate: the references step by recursion, whose rounding errors add up. */
#define TOLERANCE 1e-13

/* One reference case as a configuration would say it. */
struct schedule_case {
    const char *name;
    size_t count;
    struct pd_schedule schedules[3];
};

#define WARMUP(share, count)                                                                       \
    {                                                                                              \
        .kind = PD_SCHEDULE_LINEAR, .start_factor = (share), .end_factor = 1, .steps = (count)     \
    }
#define COSINE(steps, least)                                                                       \
    {                                                                                              \
        .kind = PD_SCHEDULE_COSINE, .t_max = (steps), .eta_min = (least), .num_cycles = 0.5        \
    }
#define RESTARTS(...) .kind = PD_SCHEDULE_COSINE_WARM_RESTARTS, .restarts = {__VA_ARGS__}
#define ONECYCLE(...)                                                                              \
    {                                                                                              \
        .kind = PD_SCHEDULE_ONECYCLE, MOMENTA(0.85, 0.95), .onecycle = {                           \
            .total_steps = 200,                                                                    \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }
#define WSD(...)                                                                                   \
    {                                                                                              \
        .kind = PD_SCHEDULE_WSD, .num_cycles = 0.5, .wsd = {                                       \
            .num_warmup_steps = 20,                                                                \
            .num_stable_steps = 100,                                                               \
            .num_decay_steps = 60,                                                                 \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

#define MOMENTA(least, most)                                                                       \
    .cycle_momentum = true, .base_momentum = (least), .max_momentum = (most)

static const struct schedule_case cases[] = {
    {"sched_constant", 1, {{.kind = PD_SCHEDULE_CONSTANT, .factor = 0.25, .steps = 40}}},
    {"sched_step", 1, {{.kind = PD_SCHEDULE_STEP, .step_size = 30, .gamma = 0.1}}},
    {"sched_multistep",
     1,
     {{.kind = PD_SCHEDULE_MULTISTEP, .milestones = {4, {30, 80, 81, 150}}, .gamma = 0.3}}},
    {"sched_exponential", 1, {{.kind = PD_SCHEDULE_EXPONENTIAL, .gamma = 0.97}}},
    {"sched_linear", 1, {WARMUP(0.1, 50)}},
    {"sched_polynomial", 1, {{.kind = PD_SCHEDULE_POLYNOMIAL, .steps = 150, .power = 2}}},
    {"sched_cosine", 1, {COSINE(200, 1e-4)}},
    {"sched_cosine_past_tmax", 1, {COSINE(60, 0)}},
    {"sched_sequential_linear_cosine", 2, {WARMUP(0.01, 20), COSINE(180, 1e-5)}},
    {"sched_chained_constant_exponential",
     2,
     {{.kind = PD_SCHEDULE_CONSTANT, .factor = 0.1, .steps = 10},
      {.kind = PD_SCHEDULE_EXPONENTIAL, .gamma = 0.98, .chain = true}}},
    {"sched_warm_restarts_1",
     1,
     {{RESTARTS(.t_0 = 40, .t_mult = 1, .cycle_decay = 1), .eta_min = 1e-3}}},
    {"sched_warm_restarts_2", 1, {{RESTARTS(.t_0 = 15, .t_mult = 2, .cycle_decay = 1)}}},
    {"sched_swalr",
     1,
     {{RESTARTS(.t_0 = 30, .t_mult = 1, .cycle_decay = 1, .cycle_limit = 1), .eta_min = 0.02}}},
    {"sched_timm_cosine",
     2,
     {WARMUP(1e-5, 20),
      {RESTARTS(.t_0 = 150, .t_mult = 1, .cycle_decay = 1, .cycle_limit = 1), .offset = 20,
       .eta_min = 1e-5}}},
    {"sched_timm_cosine_prefix_cycles",
     2,
     {WARMUP(1e-3, 10),
      {RESTARTS(.t_0 = 40, .t_mult = 1.5, .cycle_decay = 0.5, .cycle_limit = 3), .eta_min = 1e-4}}},
    {"sched_timm_poly",
     2,
     {WARMUP(0, 10), {.kind = PD_SCHEDULE_POLYNOMIAL, .steps = 180, .power = 0.9, .lr_end = 1e-5}}},
    {"sched_onecycle_cos",
     1,
     {ONECYCLE(.max_lr = 0.5, .pct_start = 0.3, .div_factor = 25, .final_div_factor = 1e4)}},
    {"sched_onecycle_cos_3phase",
     1,
     {ONECYCLE(.max_lr = 0.2, .pct_start = 0.3, .div_factor = 25, .final_div_factor = 1e4,
               .three_phase = true)}},
    {"sched_onecycle_linear",
     1,
     {ONECYCLE(.max_lr = 0.5, .pct_start = 0.4, .div_factor = 10, .final_div_factor = 100,
               .anneal_strategy = PD_ANNEAL_LINEAR)}},
    {"sched_onecycle_linear_3phase",
     1,
     {{.kind = PD_SCHEDULE_ONECYCLE,
       MOMENTA(0.8, 0.97),
       .onecycle = {.max_lr = 0.2,
                    .total_steps = 200,
                    .pct_start = 0.3,
                    .div_factor = 25,
                    .final_div_factor = 1e4,
                    .anneal_strategy = PD_ANNEAL_LINEAR,
                    .three_phase = true}}}},
    {"sched_cyclic_triangular",
     1,
     {{.kind = PD_SCHEDULE_CYCLIC,
       MOMENTA(0.8, 0.9),
       .cyclic = {.base_lr = 1e-3, .max_lr = 0.1, .step_size_up = 20}}}},
    {"sched_cyclic_triangular2",
     1,
     {{.kind = PD_SCHEDULE_CYCLIC,
       MOMENTA(0.8, 0.9),
       .cyclic = {1e-3, 0.1, 15, .step_size_down = 25, .mode = PD_CYCLE_TRIANGULAR2}}}},
    {"sched_cyclic_exp_range",
     1,
     {{.kind = PD_SCHEDULE_CYCLIC,
       MOMENTA(0.8, 0.9),
       .gamma = 0.99,
       .cyclic = {0.01, 0.1, 25, .mode = PD_CYCLE_EXP_RANGE}}}},
    {"sched_hf_constant_warmup", 1, {WARMUP(0, 25)}},
    {"sched_hf_linear",
     2,
     {WARMUP(0, 20), {.kind = PD_SCHEDULE_LINEAR, .start_factor = 1, .steps = 160}}},
    {"sched_hf_cosine", 2, {WARMUP(0, 20), COSINE(160, 0)}},
    {"sched_hf_cosine_cycles",
     2,
     {WARMUP(0, 10), {.kind = PD_SCHEDULE_COSINE, .t_max = 180, .num_cycles = 1.5}}},
    {"sched_hf_cosine_min_lr", 2, {WARMUP(0, 10), COSINE(180, 1e-4)}},
    {"sched_hf_cosine_restarts",
     2,
     {WARMUP(0, 10), {RESTARTS(.t_0 = 60, .t_mult = 1, .cycle_decay = 1, .cycle_limit = 3)}}},
    {"sched_hf_inverse_sqrt",
     2,
     {WARMUP(0, 30), {.kind = PD_SCHEDULE_INVERSE_SQRT, .timescale = 30}}},
    {"sched_hf_polynomial",
     2,
     {WARMUP(0, 15), {.kind = PD_SCHEDULE_POLYNOMIAL, .steps = 155, .power = 2, .lr_end = 1e-6}}},
    {"sched_hf_wsd_444", 1, {WSD(.decay_type = PD_RAMP_COSINE, .min_lr_ratio = 0.1)}},
    {"sched_hf_wsd_cosine",
     1,
     {WSD(.decay_type = PD_RAMP_COSINE, .min_lr_ratio = 0.1, .warmup_from_min = true)}},
    {"sched_hf_wsd_linear", 1, {WSD(.decay_type = PD_RAMP_LINEAR, .warmup_from_min = true)}},
    {"sched_hf_wsd_1sqrt",
     1,
     {WSD(.decay_type = PD_RAMP_1_SQRT, .min_lr_ratio = 0.01, .warmup_from_min = true)}},
};
#define CASE_COUNT ((int)(sizeof cases / sizeof cases[0]))

START_TEST(a_schedule_gives_the_rates_of_its_reference)
{
    const struct schedule_case *schedule_case = &cases[_i];
    json_t *document = vectors_load(PD_VECTORS, schedule_case->name);
    double base_lr = json_number_value(json_object_get(document, "base_lr"));
    const json_t *rates = json_object_get(document, "lr");

    ck_assert_uint_gt(json_array_size(rates), 0);
    for (size_t step = 0; step < json_array_size(rates); step++) {
        double expected = vectors_number(json_array_get(rates, step));
        double rate = pd_schedule_lr(schedule_case->schedules, schedule_case->count, base_lr, step);
        ck_assert_msg(fabs(rate - expected) <= TOLERANCE * base_lr, "%s step %zu: %.17g, not %.17g",
                      schedule_case->name, step, rate, expected);
    }
    json_decref(document);
}
END_TEST

/* As the schedule says. */
static const struct pd_momentum_range own = {NAN, NAN};

START_TEST(a_schedule_gives_the_momenta_of_its_reference)
{
    const struct schedule_case *schedule_case = &cases[_i];
    json_t *document = vectors_load(PD_VECTORS, schedule_case->name);
    const json_t *momenta = json_object_get(document, "momentum");

    for (size_t step = 0; step < json_array_size(json_object_get(document, "lr")); step++) {
        double momentum =
            pd_schedule_momentum(schedule_case->schedules, schedule_case->count, &own, step);
        if (momenta == NULL) {
            ck_assert(isnan(momentum));
            continue;
        }
        double expected = vectors_number(json_array_get(momenta, step));
        ck_assert_msg(fabs(momentum - expected) <= TOLERANCE, "%s step %zu: %.17g, not %.17g",
                      schedule_case->name, step, momentum, expected);
    }
    json_decref(document);
}
END_TEST

START_TEST(a_momentum_is_set_only_in_the_steps_of_the_schedule_that_cycles_it)
{
    struct pd_schedule schedules[] = {
        {.kind = PD_SCHEDULE_CONSTANT, .factor = 1, .steps = 3},
        ONECYCLE(.max_lr = 0.5, .pct_start = 0.3, .div_factor = 25, .final_div_factor = 1e4),
        {.kind = PD_SCHEDULE_CONSTANT, .factor = 1},
    };

    ck_assert(isnan(pd_schedule_momentum(schedules, 3, &own, 2)));
    ck_assert_double_eq(pd_schedule_momentum(schedules, 3, &own, 3), 0.95);
    ck_assert(isnan(pd_schedule_momentum(schedules, 3, &own, 203)));
    ck_assert(isnan(pd_schedule_momentum(NULL, 0, &own, 3)));
    schedules[1].cycle_momentum = false;
    ck_assert(isnan(pd_schedule_momentum(schedules, 3, &own, 3)));
}
END_TEST

START_TEST(a_group_may_have_a_range_of_its_own_for_the_momentum)
{
    struct pd_schedule schedule =
        ONECYCLE(.max_lr = 0.5, .pct_start = 0.3, .div_factor = 25, .final_div_factor = 1e4);
    const struct pd_momentum_range range = {0.25, 0.75};
    const struct pd_momentum_range upper = {NAN, 0.75};

    for (uint64_t step = 0; step < 250; step++) {
        double share = (0.95 - pd_schedule_momentum(&schedule, 1, &own, step)) / (0.95 - 0.85);
        ck_assert_double_eq_tol(pd_schedule_momentum(&schedule, 1, &range, step),
                                0.75 - 0.5 * share, 1e-12);
        ck_assert_double_eq_tol(pd_schedule_momentum(&schedule, 1, &upper, step),
                                0.75 - (0.75 - 0.85) * share, 1e-12);
    }
}
END_TEST

START_TEST(without_a_top_of_its_own_a_cycle_climbs_to_the_rate_of_the_group)
{
    struct pd_schedule onecycle =
        ONECYCLE(.max_lr = 0.5, .pct_start = 0.3, .div_factor = 25, .final_div_factor = 1e4);
    struct pd_schedule cyclic = {.kind = PD_SCHEDULE_CYCLIC,
                                 .cyclic = {.base_lr = 0.1, .max_lr = 0.5, .step_size_up = 4}};

    for (uint64_t step = 0; step < 250; step++) {
        double once = pd_schedule_lr(&onecycle, 1, 9, step);
        double often = pd_schedule_lr(&cyclic, 1, 9, step);
        struct pd_schedule open_onecycle = onecycle;
        struct pd_schedule open_cyclic = cyclic;
        open_onecycle.onecycle.max_lr = NAN;
        open_cyclic.cyclic.max_lr = NAN;
        ck_assert_double_eq(pd_schedule_lr(&open_onecycle, 1, 0.5, step), once);
        ck_assert_double_eq(pd_schedule_lr(&open_cyclic, 1, 0.5, step), often);
    }
}
END_TEST

START_TEST(without_a_schedule_the_rate_stays)
{
    ck_assert_double_eq(pd_schedule_lr(NULL, 0, 0.3, 0), 0.3);
    ck_assert_double_eq(pd_schedule_lr(NULL, 0, 0.3, 1000000), 0.3);
}
END_TEST

START_TEST(a_sequence_counts_each_schedule_from_its_own_beginning)
{
    const struct pd_schedule schedules[] = {
        {.kind = PD_SCHEDULE_CONSTANT, .factor = 0.5, .steps = 3},
        {.kind = PD_SCHEDULE_STEP, .step_size = 2, .gamma = 0.5, .steps = 4},
        {.kind = PD_SCHEDULE_CONSTANT, .factor = 0.125},
    };
    const double expected[] = {0.5, 0.5, 0.5, 1, 1, 0.5, 0.5, 0.125, 0.125};

    for (uint64_t step = 0; step < sizeof expected / sizeof expected[0]; step++) {
        ck_assert_double_eq(pd_schedule_lr(schedules, 3, 1, step), expected[step]);
    }
    ck_assert_double_eq(pd_schedule_lr(schedules, 3, 1, UINT64_MAX), 0.125);
}
END_TEST

START_TEST(schedules_that_run_together_last_as_long_as_the_longest)
{
    const struct pd_schedule schedules[] = {
        {.kind = PD_SCHEDULE_CONSTANT, .factor = 0.5, .steps = 2},
        {.kind = PD_SCHEDULE_STEP, .step_size = 3, .gamma = 0.5, .steps = 4, .chain = true},
        {.kind = PD_SCHEDULE_CONSTANT, .factor = 0.125},
        {.kind = PD_SCHEDULE_STEP, .step_size = 1, .gamma = 0.5, .chain = true},
    };
    const double expected[] = {0.5, 0.5, 1, 0.5, 0.125, 0.0625, 0.03125};

    ck_assert_uint_eq(pd_schedule_together(schedules, 4), 2);
    ck_assert_uint_eq(pd_schedule_duration(schedules, 4), 4);
    ck_assert_uint_eq(pd_schedule_duration(schedules + 2, 2), 0);
    for (uint64_t step = 0; step < sizeof expected / sizeof expected[0]; step++) {
        ck_assert_double_eq(pd_schedule_lr(schedules, 4, 1, step), expected[step]);
    }
}
END_TEST

/* A scheduler that is stepped once an epoch: the rate holds for the epoch's steps. */
START_TEST(whole_epochs_change_the_rate_between_epochs_only)
{
    struct pd_schedule schedules[] = {
        {.kind = PD_SCHEDULE_MULTISTEP, .milestones = {2, {1, 3}}, .gamma = 0.5, .steps = 4},
        {.kind = PD_SCHEDULE_EXPONENTIAL, .gamma = 0.5},
    };
    const double epochs[] = {1, 0.5, 0.5, 0.25, 1, 0.5, 0.25};

    for (size_t i = 0; i < 2; i++) {
        schedules[i].unit = PD_UNIT_WHOLE_EPOCHS;
        schedules[i].steps_per_epoch = 10;
    }
    ck_assert_uint_eq(pd_schedule_duration(schedules, 2), 40);
    for (uint64_t step = 0; step < 70; step++) {
        ck_assert_double_eq(pd_schedule_lr(schedules, 2, 1, step), epochs[step / 10]);
    }
}
END_TEST

/* Lengths in epochs, as a scheduler that is stepped with every batch has them. */
START_TEST(epochs_are_so_many_steps)
{
    for (size_t i = 0; i < CASE_COUNT; i++) {
        struct pd_schedule in_steps[3];
        struct pd_schedule in_epochs[3];
        memcpy(in_steps, cases[i].schedules, sizeof in_steps);
        memcpy(in_epochs, cases[i].schedules, sizeof in_epochs);
        if (in_steps[0].kind != PD_SCHEDULE_ONECYCLE && in_steps[0].kind != PD_SCHEDULE_COSINE) {
            continue;
        }
        in_steps[0].onecycle.total_steps = 200;
        in_steps[0].t_max = 60;
        in_epochs[0].onecycle.total_steps = 20;
        in_epochs[0].t_max = 6;
        in_epochs[0].unit = PD_UNIT_EPOCHS;
        in_epochs[0].steps_per_epoch = 10;
        ck_assert_uint_eq(pd_schedule_duration(in_steps, 1), pd_schedule_duration(in_epochs, 1));
        for (uint64_t step = 0; step < 220; step++) {
            ck_assert_double_eq_tol(pd_schedule_lr(in_steps, 1, 0.1, step),
                                    pd_schedule_lr(in_epochs, 1, 0.1, step), 1e-12);
        }
    }
}
END_TEST

START_TEST(a_linear_warmup_counts_from_zero_or_from_one)
{
    struct pd_schedule warmup = {
        .kind = PD_SCHEDULE_LINEAR, .start_factor = 0, .end_factor = 1, .steps = 5};

    for (uint64_t step = 0; step < 7; step++) {
        double at = (double)step;
        warmup.offset = 0;
        ck_assert_double_eq(pd_schedule_lr(&warmup, 1, 1, step), fmin(at / 5, 1));
        warmup.offset = 1;
        ck_assert_double_eq(pd_schedule_lr(&warmup, 1, 1, step), fmin((at + 1) / 5, 1));
    }
}
END_TEST

START_TEST(piecewise_goes_through_its_points)
{
    struct pd_schedule schedule = {.kind = PD_SCHEDULE_PIECEWISE,
                                   .points = {3, {{2, 0.5}, {6, 1}, {8, 0}}}};
    const double expected[3][10] = {
        {0.5, 0.5, 0.5, 0.625, 0.75, 0.875, 1, 0.5, 0, 0},
        {0.5, 0.5, 0.5, 0.75 - M_SQRT2 / 8, 0.75, 0.75 + M_SQRT2 / 8, 1, 0.5, 0, 0},
        {0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1, 1, 0, 0},
    };

    schedule.interpolation = _i;
    for (uint64_t step = 0; step < 10; step++) {
        ck_assert_double_eq_tol(pd_schedule_lr(&schedule, 1, 2, step), 2 * expected[_i][step],
                                1e-15);
    }
    schedule.points.count = 0;
    ck_assert_double_eq(pd_schedule_lr(&schedule, 1, 2, 5), 2);
}
END_TEST

START_TEST(a_cooldown_begins_where_the_schedules_before_it_end)
{
    const struct pd_schedule schedules[] = {
        {.kind = PD_SCHEDULE_CONSTANT, .factor = 0.5, .steps = 3},
        {.kind = PD_SCHEDULE_EXPONENTIAL, .gamma = 0.5, .steps = 2},
        {.kind = PD_SCHEDULE_COOLDOWN, .steps = 4, .end_factor = 0.5},
        {.kind = PD_SCHEDULE_COOLDOWN, .steps = 2, .shape = PD_RAMP_COSINE},
    };
    const double expected[] = {0.5,    0.5,     0.5,   1,      0.5, 0.25, 0.21875,
                               0.1875, 0.15625, 0.125, 0.0625, 0,   0};

    for (uint64_t step = 0; step < sizeof expected / sizeof expected[0]; step++) {
        ck_assert_double_eq_tol(pd_schedule_lr(schedules, 4, 1, step), expected[step], 1e-15);
    }
}
END_TEST

static const struct {
    const char *name;
    struct pd_schedule schedule;
} plateaus[] = {
    {"sched_plateau_min_rel",
     {.kind = PD_SCHEDULE_PLATEAU,
      .plateau = {.watch = {.threshold = 0.01, .patience = 5}, .factor = 0.5, .eps = 1e-8}}},
    {"sched_plateau_max_abs",
     {.kind = PD_SCHEDULE_PLATEAU,
      .plateau = {.watch = {PD_WATCH_MAX, 0.005, PD_WATCH_ABS, 4},
                  .factor = 0.3,
                  .cooldown = 6,
                  .min_lr = 1e-4,
                  .eps = 1e-8}}},
    {"sched_plateau_cooldown",
     {.kind = PD_SCHEDULE_PLATEAU,
      .plateau = {.watch = {PD_WATCH_MIN, 1e-3, PD_WATCH_ABS, 3},
                  .factor = 0.1,
                  .cooldown = 10,
                  .min_lr = 1e-3,
                  .eps = 1e-8}}},
};

START_TEST(a_plateau_gives_the_rates_of_its_reference)
{
    const struct pd_schedule *schedule = &plateaus[_i].schedule;
    json_t *document = vectors_load(PD_VECTORS, plateaus[_i].name);
    const json_t *metrics = json_object_get(document, "metrics");
    const json_t *rates = json_object_get(document, "lr");
    double base_lr = json_number_value(json_object_get(document, "base_lr"));
    struct pd_plateau plateau;
    size_t reductions = 0;

    pd_plateau_init(&plateau, schedule);
    for (size_t i = 0; i < json_array_size(rates); i++) {
        double expected = vectors_number(json_array_get(rates, i));
        double rate = pd_schedule_lr_reduced(schedule, &plateau, 1, base_lr, 0);
        ck_assert_msg(fabs(rate - expected) <= TOLERANCE * base_lr, "%s report %zu: %.17g, not %g",
                      plateaus[_i].name, i, rate, expected);
        if (i < json_array_size(metrics)) {
            reductions +=
                pd_plateau_take(&plateau, schedule, vectors_number(json_array_get(metrics, i)));
        }
    }
    ck_assert_uint_gt(reductions, 1);
    ck_assert_double_eq(pd_schedule_lr(schedule, 1, base_lr, 0), base_lr);
    json_decref(document);
}
END_TEST

START_TEST(a_report_that_is_no_number_is_not_better)
{
    const struct pd_schedule schedule = {.kind = PD_SCHEDULE_PLATEAU,
                                         .plateau = {.watch = {.patience = 1}, .factor = 0.5}};
    struct pd_plateau plateau;

    pd_plateau_init(&plateau, &schedule);
    ck_assert(!pd_plateau_take(&plateau, &schedule, 1));
    ck_assert(!pd_plateau_take(&plateau, &schedule, NAN));
    ck_assert(pd_plateau_take(&plateau, &schedule, NAN));
    ck_assert_double_eq(plateau.watch.best, 1);
}
END_TEST

START_TEST(a_plateau_multiplies_the_schedule_it_is_chained_to_while_it_runs)
{
    const struct pd_schedule schedules[] = {
        {.kind = PD_SCHEDULE_STEP, .step_size = 2, .gamma = 0.5, .steps = 4},
        {.kind = PD_SCHEDULE_PLATEAU, .chain = true, .steps = 4, .plateau = {.factor = 0.1}},
        {.kind = PD_SCHEDULE_CONSTANT, .factor = 1},
    };
    const struct pd_plateau at[3] = {{.reductions = 0}, {.reductions = 1}};
    const double expected[] = {0.1, 0.1, 0.05, 0.05, 1};

    for (uint64_t step = 0; step < 5; step++) {
        ck_assert_double_eq_tol(pd_schedule_lr_reduced(schedules, at, 3, 1, step), expected[step],
                                1e-15);
        ck_assert(pd_schedule_runs(schedules, 3, 1, step) == (step < 4));
        ck_assert(pd_schedule_runs(schedules, 3, 2, step) == (step == 4));
    }
}
END_TEST

START_TEST(warm_restarts_begin_at_the_exact_step_however_many_there_were)
{
    const struct pd_schedule doubling = {RESTARTS(.t_0 = 3, .t_mult = 2, .cycle_decay = 1)};
    const struct pd_schedule slow = {RESTARTS(.t_0 = 3, .t_mult = 1 + 1e-15, .cycle_decay = 1)};

    for (uint64_t cycle = 0; cycle < 40; cycle++) {
        uint64_t begin = 3 * ((1ull << cycle) - 1);
        ck_assert_double_eq(pd_schedule_lr(&doubling, 1, 0.5, begin), 0.5);
        ck_assert_double_lt(pd_schedule_lr(&doubling, 1, 0.5, begin + (1ull << cycle)), 0.4);
    }
    ck_assert(isfinite(pd_schedule_lr(&slow, 1, 0.5, 1ull << 50)));
}
END_TEST

/* Read one option of a rule from YAML text. */
static enum pd_status read_option(const char *rule_name, const char *key, const char *text,
                                  struct pd_schedule *schedule, struct pd_error *error)
{
    const struct pd_schedule_rule *rule = pd_schedule_find(rule_name);
    const struct pd_config_source source = {.file = "test"};
    struct pd_node *node = NULL;
    uint32_t row = 0;

    while (strcmp(rule->options[row].key, key) != 0) {
        row++;
        ck_assert_uint_lt(row, rule->option_count);
    }
    ck_assert_int_eq(pd_node_parse(&node, &source, text, error), PD_OK);
    enum pd_status status = pd_option_read(&rule->options[row], key, node, schedule, error);
    pd_node_destroy(node);
    return status;
}

START_TEST(milestones_are_a_list_of_steps_in_any_order)
{
    struct pd_schedule schedule = {.kind = PD_SCHEDULE_MULTISTEP, .gamma = 0.5};
    struct pd_error error = {0};

    ck_assert_int_eq(read_option("multistep", "milestones", "[4, 2]", &schedule, &error), PD_OK);
    ck_assert_double_eq(pd_schedule_lr(&schedule, 1, 1, 1), 1);
    ck_assert_double_eq(pd_schedule_lr(&schedule, 1, 1, 2), 0.5);
    ck_assert_double_eq(pd_schedule_lr(&schedule, 1, 1, 4), 0.25);
    ck_assert_int_eq(read_option("multistep", "milestones", "[]", &schedule, &error), PD_OK);
    ck_assert_double_eq(pd_schedule_lr(&schedule, 1, 1, 4), 1);
}
END_TEST

START_TEST(a_wrong_list_of_milestones_names_the_key_and_what_is_allowed)
{
    static const char *const texts[] = {"30", "[1, x]", "[-1]", "[.inf]"};
    struct pd_schedule schedule = {.kind = PD_SCHEDULE_MULTISTEP};
    struct pd_error error = {0};

    ck_assert_int_eq(read_option("multistep", "milestones", texts[_i], &schedule, &error),
                     PD_ECONFIG);
    ck_assert_ptr_nonnull(strstr(error.message, "milestones"));
    ck_assert_msg(strstr(error.message, "a list of numbers >= 0") != NULL, "%s", error.message);
}
END_TEST

START_TEST(a_list_of_milestones_is_bounded)
{
    char text[4 * (PD_OPTION_REALS_MAX + 1) + 2] = "[";
    struct pd_schedule schedule = {.kind = PD_SCHEDULE_MULTISTEP};
    struct pd_error error = {0};

    for (int i = 0; i < PD_OPTION_REALS_MAX; i++) {
        strcat(text, i == 0 ? "7" : ", 7");
    }
    size_t length = strlen(text);
    strcpy(text + length, "]");
    ck_assert_int_eq(read_option("multistep", "milestones", text, &schedule, &error), PD_OK);
    strcpy(text + length, ", 7]");
    ck_assert_int_eq(read_option("multistep", "milestones", text, &schedule, &error), PD_ECONFIG);
}
END_TEST

START_TEST(points_are_pairs_of_a_step_and_a_number)
{
    struct pd_schedule schedule = {.kind = PD_SCHEDULE_PIECEWISE};
    struct pd_error error = {0};

    ck_assert_int_eq(
        read_option("piecewise", "points", "[[0, 1], [10, 0.5], [1e3, 0]]", &schedule, &error),
        PD_OK);
    ck_assert_uint_eq(schedule.points.count, 3);
    ck_assert_double_eq(schedule.points.pairs[1][0], 10);
    ck_assert_double_eq(schedule.points.pairs[1][1], 0.5);
}
END_TEST

static const struct {
    const char *text;
    const char *value;
    const char *what;
} wrong_points[] = {
    {"5", "5", "not a list"},
    {"[5]", "5", "not a pair"},
    {"[[0, 1], [2]]", "a list of 1", "not a pair"},
    {"[[0.5, 1]]", "0.5", "not a step"},
    {"[[-1, 1]]", "-1", "not a step"},
    {"[[x, 1]]", "x", "not a step"},
    {"[[3, 1], [3, 2]]", "3", "not beyond the step before"},
    {"[[3, -1]]", "-1", "out of range"},
};

START_TEST(wrong_points_are_refused_with_the_key_the_value_and_what_is_allowed)
{
    struct pd_schedule schedule = {.kind = PD_SCHEDULE_PIECEWISE};
    struct pd_error error = {0};
    char message[200];

    snprintf(message, sizeof message,
             "test:1: points: %s: %s; allowed: a list of pairs [step, number], steps rising, "
             "number >= 0",
             wrong_points[_i].value, wrong_points[_i].what);
    ck_assert_int_eq(read_option("piecewise", "points", wrong_points[_i].text, &schedule, &error),
                     PD_ECONFIG);
    ck_assert_str_eq(error.message, message);
}
END_TEST

START_TEST(the_table_is_found_by_name_and_its_kinds_are_its_indices)
{
    size_t count = 0;
    for (; pd_schedule_at(count) != NULL; count++) {
        const struct pd_schedule_rule *rule = pd_schedule_at(count);
        struct pd_schedule schedule = {.kind = rule->kind};
        struct pd_error error = {0};

        ck_assert_ptr_eq(pd_schedule_find(rule->name), rule);
        ck_assert_uint_eq(rule->kind, count);
        ck_assert_int_eq(pd_option_defaults(rule->options, rule->option_count, &schedule, &error),
                         PD_OK);
        ck_assert(isfinite(pd_schedule_lr(&schedule, 1, 0.1, 0)));
        ck_assert(isfinite(pd_schedule_lr(&schedule, 1, 0.1, 1ull << 40)));
    }
    ck_assert_uint_ge(count, 12);
    ck_assert_ptr_null(pd_schedule_find("cosin"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("schedule");
    TCase *tests = tcase_create("schedule");

    tcase_add_loop_test(tests, a_schedule_gives_the_rates_of_its_reference, 0, CASE_COUNT);
    tcase_add_loop_test(tests, a_schedule_gives_the_momenta_of_its_reference, 0, CASE_COUNT);
    tcase_add_test(tests, a_momentum_is_set_only_in_the_steps_of_the_schedule_that_cycles_it);
    tcase_add_test(tests, a_group_may_have_a_range_of_its_own_for_the_momentum);
    tcase_add_test(tests, without_a_top_of_its_own_a_cycle_climbs_to_the_rate_of_the_group);
    tcase_add_test(tests, without_a_schedule_the_rate_stays);
    tcase_add_test(tests, a_sequence_counts_each_schedule_from_its_own_beginning);
    tcase_add_test(tests, schedules_that_run_together_last_as_long_as_the_longest);
    tcase_add_test(tests, whole_epochs_change_the_rate_between_epochs_only);
    tcase_add_test(tests, epochs_are_so_many_steps);
    tcase_add_test(tests, a_linear_warmup_counts_from_zero_or_from_one);
    tcase_add_loop_test(tests, piecewise_goes_through_its_points, 0, 3);
    tcase_add_test(tests, a_cooldown_begins_where_the_schedules_before_it_end);
    tcase_add_loop_test(tests, a_plateau_gives_the_rates_of_its_reference, 0, 3);
    tcase_add_test(tests, a_report_that_is_no_number_is_not_better);
    tcase_add_test(tests, a_plateau_multiplies_the_schedule_it_is_chained_to_while_it_runs);
    tcase_add_test(tests, warm_restarts_begin_at_the_exact_step_however_many_there_were);
    tcase_add_test(tests, milestones_are_a_list_of_steps_in_any_order);
    tcase_add_loop_test(tests, a_wrong_list_of_milestones_names_the_key_and_what_is_allowed, 0, 4);
    tcase_add_test(tests, a_list_of_milestones_is_bounded);
    tcase_add_test(tests, points_are_pairs_of_a_step_and_a_number);
    tcase_add_loop_test(tests, wrong_points_are_refused_with_the_key_the_value_and_what_is_allowed,
                        0, (int)(sizeof wrong_points / sizeof wrong_points[0]));
    tcase_add_test(tests, the_table_is_found_by_name_and_its_kinds_are_its_indices);
    suite_add_tcase(suite, tests);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
