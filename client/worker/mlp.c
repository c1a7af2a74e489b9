#include "client/worker/mlp.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

uint64_t mlp_random(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    uint64_t bits = *state;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    return bits ^ bits >> 31;
}

static void describe(struct mlp *mlp, int tensor, const char *name, uint32_t dimension_count,
                     uint64_t rows, uint64_t columns)
{
    mlp->names[tensor] = name;
    mlp->dimension_counts[tensor] = dimension_count;
    mlp->shapes[tensor][0] = rows;
    mlp->shapes[tensor][1] = columns;
    mlp->counts[tensor] = (size_t)(rows * columns);
}

/* Uniform in [-a, a] with variance a^2 / 3 = 2 / inputs. */
static void draw(float *weights, size_t count, uint32_t input_count, uint64_t *state)
{
    double bound = sqrt(6.0 / input_count);

    for (size_t i = 0; i < count; i++) {
        double unit = (double)(mlp_random(state) >> 11) * 0x1p-53;
        weights[i] = (float)(bound * (2.0 * unit - 1.0));
    }
}

int mlp_init(struct mlp *mlp, uint32_t hidden_count, uint64_t seed)
{
    int complete;

    memset(mlp, 0, sizeof *mlp);
    mlp->hidden_count = hidden_count;
    describe(mlp, MLP_HIDDEN_WEIGHT, "hidden.weight", 2, hidden_count, DIGITS_PIXEL_COUNT);
    describe(mlp, MLP_HIDDEN_BIAS, "hidden.bias", 1, hidden_count, 1);
    describe(mlp, MLP_OUTPUT_WEIGHT, "output.weight", 2, DIGITS_CLASS_COUNT, hidden_count);
    describe(mlp, MLP_OUTPUT_BIAS, "output.bias", 1, DIGITS_CLASS_COUNT, 1);
    mlp->hidden = calloc(hidden_count, sizeof *mlp->hidden);
    mlp->hidden_gradient = calloc(hidden_count, sizeof *mlp->hidden_gradient);
    complete = mlp->hidden != NULL && mlp->hidden_gradient != NULL;
    for (int t = 0; t < MLP_TENSOR_COUNT; t++) {
        mlp->values[t] = calloc(mlp->counts[t], sizeof **mlp->values);
        mlp->gradients[t] = calloc(mlp->counts[t], sizeof **mlp->gradients);
        complete = complete && mlp->values[t] != NULL && mlp->gradients[t] != NULL;
    }
    if (!complete) {
        mlp_finish(mlp);
        return 0;
    }
    draw(mlp->values[MLP_HIDDEN_WEIGHT], mlp->counts[MLP_HIDDEN_WEIGHT], DIGITS_PIXEL_COUNT, &seed);
    draw(mlp->values[MLP_OUTPUT_WEIGHT], mlp->counts[MLP_OUTPUT_WEIGHT], hidden_count, &seed);
    return 1;
}

void mlp_finish(struct mlp *mlp)
{
    for (int t = 0; t < MLP_TENSOR_COUNT; t++) {
        free(mlp->values[t]);
        free(mlp->gradients[t]);
    }
    free(mlp->hidden);
    free(mlp->hidden_gradient);
    memset(mlp, 0, sizeof *mlp);
}

/* h and z of one image. */
static void forward(struct mlp *mlp, const float *x, float z[DIGITS_CLASS_COUNT])
{
    const float *w1 = mlp->values[MLP_HIDDEN_WEIGHT];
    const float *b1 = mlp->values[MLP_HIDDEN_BIAS];
    const float *w2 = mlp->values[MLP_OUTPUT_WEIGHT];
    const float *b2 = mlp->values[MLP_OUTPUT_BIAS];
    uint32_t hidden_count = mlp->hidden_count;

    for (uint32_t j = 0; j < hidden_count; j++) {
        float sum = b1[j];
        for (uint32_t i = 0; i < DIGITS_PIXEL_COUNT; i++) {
            sum += w1[j * DIGITS_PIXEL_COUNT + i] * x[i];
        }
        mlp->hidden[j] = sum > 0.0f ? sum : 0.0f;
    }
    for (uint32_t k = 0; k < DIGITS_CLASS_COUNT; k++) {
        float sum = b2[k];
        for (uint32_t j = 0; j < hidden_count; j++) {
            sum += w2[k * hidden_count + j] * mlp->hidden[j];
        }
        z[k] = sum;
    }
}

/* Turn z into dloss / dz = softmax(z) - onehot(label); returns the loss of the image. */
static double softmax_loss(float z[DIGITS_CLASS_COUNT], uint32_t label)
{
    float largest = z[0];
    double sum = 0.0;

    for (uint32_t k = 1; k < DIGITS_CLASS_COUNT; k++) {
        largest = z[k] > largest ? z[k] : largest;
    }
    for (uint32_t k = 0; k < DIGITS_CLASS_COUNT; k++) {
        sum += exp((double)(z[k] - largest));
    }
    double loss = log(sum) - (double)(z[label] - largest);
    for (uint32_t k = 0; k < DIGITS_CLASS_COUNT; k++) {
        double probability = exp((double)(z[k] - largest)) / sum;
        z[k] = (float)(probability - (k == label ? 1.0 : 0.0));
    }
    return loss;
}

/* Add `scale` times the gradient of one image's loss, given dloss / dz. */
static void backward(struct mlp *mlp, const float *x, const float dz[DIGITS_CLASS_COUNT],
                     float scale)
{
    const float *w2 = mlp->values[MLP_OUTPUT_WEIGHT];
    float *dw1 = mlp->gradients[MLP_HIDDEN_WEIGHT];
    float *db1 = mlp->gradients[MLP_HIDDEN_BIAS];
    float *dw2 = mlp->gradients[MLP_OUTPUT_WEIGHT];
    float *db2 = mlp->gradients[MLP_OUTPUT_BIAS];
    uint32_t hidden_count = mlp->hidden_count;

    memset(mlp->hidden_gradient, 0, hidden_count * sizeof *mlp->hidden_gradient);
    for (uint32_t k = 0; k < DIGITS_CLASS_COUNT; k++) {
        float d = scale * dz[k];
        db2[k] += d;
        for (uint32_t j = 0; j < hidden_count; j++) {
            dw2[k * hidden_count + j] += d * mlp->hidden[j];
            mlp->hidden_gradient[j] += d * w2[k * hidden_count + j];
        }
    }
    for (uint32_t j = 0; j < hidden_count; j++) {
        if (mlp->hidden[j] <= 0.0f) {
            continue;
        }
        float d = mlp->hidden_gradient[j];
        db1[j] += d;
        for (uint32_t i = 0; i < DIGITS_PIXEL_COUNT; i++) {
            dw1[j * DIGITS_PIXEL_COUNT + i] += d * x[i];
        }
    }
}

double mlp_gradient(struct mlp *mlp, const struct digits *digits, const uint32_t *indices,
                    uint32_t count)
{
    double loss = 0.0;

    for (int t = 0; t < MLP_TENSOR_COUNT; t++) {
        memset(mlp->gradients[t], 0, mlp->counts[t] * sizeof **mlp->gradients);
    }
    for (uint32_t n = 0; n < count; n++) {
        const float *x = digits->pixels + (size_t)indices[n] * DIGITS_PIXEL_COUNT;
        float z[DIGITS_CLASS_COUNT];
        forward(mlp, x, z);
        loss += softmax_loss(z, digits->labels[indices[n]]);
        backward(mlp, x, z, 1.0f / (float)count);
    }
    return loss / count;
}

uint32_t mlp_count_right(struct mlp *mlp, const struct digits *digits)
{
    uint32_t right = 0;

    for (uint32_t n = 0; n < digits->count; n++) {
        float z[DIGITS_CLASS_COUNT];
        uint32_t best = 0;
        forward(mlp, digits->pixels + (size_t)n * DIGITS_PIXEL_COUNT, z);
        for (uint32_t k = 1; k < DIGITS_CLASS_COUNT; k++) {
            best = z[k] > z[best] ? k : best;
        }
        right += best == digits->labels[n];
    }
    return right;
}
