#include "tests/support/reference.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const struct reference_tensor reference_tensors[REFERENCE_TENSOR_COUNT] = {
    {"embedding.weight", 2, {37, 20}, 740},
    {"hidden.weight", 2, {41, 37}, 1517},
    {"hidden.bias", 1, {41, 0}, 41},
    {"norm.weight", 1, {3, 0}, 3},
    {"norm.bias", 1, {2, 0}, 2},
    {"temperature", 0, {0, 0}, 1},
};

void reference_model_init(struct pd_tensor_list *model)
{
    struct pd_error error = {0};

    ck_assert_int_eq(pd_tensor_list_init(model, REFERENCE_TENSOR_COUNT, &error), PD_OK);
    for (uint32_t i = 0; i < REFERENCE_TENSOR_COUNT; i++) {
        const struct reference_tensor *tensor = &reference_tensors[i];
        ck_assert_int_eq(pd_tensor_list_append(model, tensor->name, strlen(tensor->name),
                                               tensor->dimension_count, tensor->shape, &error),
                         PD_OK);
    }
    ck_assert_uint_eq(model->element_count, REFERENCE_ELEMENT_COUNT);
}

/* Source: Steele et al. 2014, SplitMix64. In [-1, 1). */
static double scattered(uint64_t seed, uint64_t index)
{
    uint64_t bits = (seed << 32) + index + 0x9e3779b97f4a7c15u;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    bits ^= bits >> 31;
    return (double)(bits >> 11) / 4503599627370496.0 - 1.0;
}

void reference_values(float *values)
{
    for (uint64_t i = 0; i < REFERENCE_ELEMENT_COUNT; i++) {
        values[i] = (float)scattered(1, i);
    }
}

void reference_gradient(float *gradient, uint32_t worker, uint64_t step, uint32_t micro_batch)
{
    uint64_t seed = 2 + micro_batch + 8 * (worker + 64 * step);

    for (uint64_t i = 0; i < REFERENCE_ELEMENT_COUNT; i++) {
        gradient[i] = (float)(0.3 * scattered(3, i) + 0.2 * scattered(seed, i));
    }
}

uint64_t reference_samples(uint32_t worker, uint64_t step, uint32_t micro_batch)
{
    return 5 + 3 * worker + micro_batch + step % 2;
}

/* ---- Plain training ---- */

struct state {
    const struct reference_training *training;
    double *parameters;
    double *gradient;
    double *first;  /* momentum buffer, or m */
    double *second; /* v */
};

static void average(const struct state *state, uint64_t step)
{
    const struct reference_training *training = state->training;
    static float gradient[REFERENCE_ELEMENT_COUNT];
    static float wire[REFERENCE_ELEMENT_COUNT];
    double sample_sum = 0.0;

    memset(state->gradient, 0, REFERENCE_ELEMENT_COUNT * sizeof *state->gradient);
    for (uint32_t worker = 0; worker < training->worker_count; worker++) {
        uint32_t micro_batch_count = training->micro_batches_of != NULL
                                         ? training->micro_batches_of(worker, step)
                                         : training->micro_batch_count;
        for (uint32_t micro = 0; micro < micro_batch_count; micro++) {
            double samples = (double)reference_samples(worker, step, micro);
            reference_gradient(gradient, worker, step, micro);
            pd_convert_from_float32(wire, training->wire, gradient, REFERENCE_ELEMENT_COUNT);
            pd_convert_to_float32(gradient, wire, training->wire, REFERENCE_ELEMENT_COUNT);
            for (uint64_t i = 0; i < REFERENCE_ELEMENT_COUNT; i++) {
                state->gradient[i] += samples * gradient[i];
            }
            sample_sum += samples;
        }
    }
    for (uint64_t i = 0; i < REFERENCE_ELEMENT_COUNT; i++) {
        state->gradient[i] /= sample_sum;
    }
}

static double norm_of(const double *elements, uint64_t count, double norm_type)
{
    double sum = 0.0;

    for (uint64_t i = 0; i < count; i++) {
        double magnitude = fabs(elements[i]);
        sum = isinf(norm_type) ? fmax(sum, magnitude) : sum + pow(magnitude, norm_type);
    }
    return isinf(norm_type) ? sum : pow(sum, 1.0 / norm_type);
}

static void clip(const struct state *state)
{
    const struct reference_training *training = state->training;
    double *gradient = state->gradient;

    for (uint64_t i = 0; training->clip_value > 0.0 && i < REFERENCE_ELEMENT_COUNT; i++) {
        gradient[i] = fmin(fmax(gradient[i], -training->clip_value), training->clip_value);
    }
    if (training->clip_norm > 0.0) {
        double norm = norm_of(gradient, REFERENCE_ELEMENT_COUNT, training->clip_norm_type);
        double scale = fmin(1.0, training->clip_norm / (norm + 1e-6));
        for (uint64_t i = 0; i < REFERENCE_ELEMENT_COUNT; i++) {
            gradient[i] *= scale;
        }
    }
}

/* Source: torch.optim.SGD. */
static void step_sgd(const struct state *state, uint64_t number, double scheduled_lr)
{
    const struct reference_training *training = state->training;

    for (uint64_t i = 0; i < REFERENCE_ELEMENT_COUNT; i++) {
        double lr = training->lr_of != NULL ? training->lr_of(number - 1, i) : scheduled_lr;
        double grad = state->gradient[i] + training->weight_decay * state->parameters[i];
        double *buffer = &state->first[i];
        *buffer =
            number == 1 ? grad : training->momentum * *buffer + (1.0 - training->dampening) * grad;
        double direction = training->nesterov ? grad + training->momentum * *buffer : *buffer;
        state->parameters[i] -= lr * (training->momentum > 0.0 ? direction : grad);
    }
}

/* Adam's direction; also fills m and v. */
static double adam_direction(const struct state *state, uint64_t i, double grad, uint64_t number)
{
    const double *betas = state->training->betas;

    state->first[i] = betas[0] * state->first[i] + (1.0 - betas[0]) * grad;
    state->second[i] = betas[1] * state->second[i] + (1.0 - betas[1]) * grad * grad;
    double mean = state->first[i] / (1.0 - pow(betas[0], (double)number));
    double square = state->second[i] / (1.0 - pow(betas[1], (double)number));
    return mean / (sqrt(square) + state->training->eps);
}

/* Source: torch.optim.Adam and AdamW. */
static void step_adam(const struct state *state, uint64_t number, double lr)
{
    const struct reference_training *training = state->training;
    bool decoupled = training->rule == REFERENCE_ADAMW;

    for (uint64_t i = 0; i < REFERENCE_ELEMENT_COUNT; i++) {
        double *parameter = &state->parameters[i];
        double grad = state->gradient[i];
        if (decoupled) {
            *parameter -= lr * training->weight_decay * *parameter;
        } else {
            grad += training->weight_decay * *parameter;
        }
        *parameter -= lr * adam_direction(state, i, grad, number);
    }
}

/* Source: You et al. 2020, algorithm 2, without its own clipping. */
static void step_lamb(const struct state *state, uint64_t number, double lr)
{
    uint64_t begin = 0;

    for (uint32_t tensor = 0; tensor < REFERENCE_TENSOR_COUNT; tensor++) {
        uint64_t count = reference_tensors[tensor].element_count;
        double *parameters = state->parameters + begin;
        double *update = state->gradient + begin;
        for (uint64_t i = 0; i < count; i++) {
            update[i] = adam_direction(state, begin + i, update[i], number) +
                        state->training->weight_decay * parameters[i];
        }
        double parameter_norm = norm_of(parameters, count, 2.0);
        double update_norm = norm_of(update, count, 2.0);
        double ratio =
            parameter_norm > 0.0 && update_norm > 0.0 ? parameter_norm / update_norm : 1.0;
        for (uint64_t i = 0; i < count; i++) {
            parameters[i] -= lr * ratio * update[i];
        }
        begin += count;
    }
}

static double lr_at(const struct reference_training *training, uint64_t step)
{
    if (step >= training->warmup_steps) {
        return training->lr;
    }
    return training->lr * (0.1 + 0.9 * (double)step / (double)training->warmup_steps);
}

void reference_train(const struct reference_training *training, double *parameters)
{
    static float values[REFERENCE_ELEMENT_COUNT];
    static double arrays[3][REFERENCE_ELEMENT_COUNT];
    struct state state = {training, parameters, arrays[0], arrays[1], arrays[2]};

    memset(arrays, 0, sizeof arrays);
    reference_values(values);
    for (uint64_t i = 0; i < REFERENCE_ELEMENT_COUNT; i++) {
        parameters[i] = values[i];
    }
    for (uint64_t step = 0; step < training->step_count; step++) {
        double lr = lr_at(training, step);
        average(&state, step);
        clip(&state);
        if (training->rule == REFERENCE_SGD) {
            step_sgd(&state, step + 1, lr);
        } else if (training->rule == REFERENCE_LAMB) {
            step_lamb(&state, step + 1, lr);
        } else {
            step_adam(&state, step + 1, lr);
        }
    }
}

double reference_error(const float *actual, const double *expected)
{
    double worst = 0.0;
    uint64_t begin = 0;

    for (uint32_t tensor = 0; tensor < REFERENCE_TENSOR_COUNT; tensor++) {
        uint64_t count = reference_tensors[tensor].element_count;
        double magnitude = norm_of(expected + begin, count, INFINITY);
        for (uint64_t i = begin; i < begin + count; i++) {
            double error = fabs((double)actual[i] - expected[i]) / magnitude;
            if (isnan(error)) {
                return INFINITY;
            }
            worst = fmax(worst, error);
        }
        begin += count;
    }
    return worst;
}
