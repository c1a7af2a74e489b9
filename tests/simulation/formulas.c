/* Legend: p parameter, g gradient, m and v running averages of g and of its square, t the optimizer
 * step counted from 1. */
#include "tests/simulation/formulas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Every micro-batch weighs its share of all samples. */
static void average(struct sim_oracle *oracle, const struct pd_order *order, double samples)
{
    uint64_t count = oracle->model->element_count;
    float *elements = sim_alloc(count, sizeof *elements);
    uint16_t *wire = sim_alloc(count, sizeof *wire);

    memset(oracle->average, 0, count * sizeof(double));
    for (uint32_t i = 0; i < order->contributor_count; i++) {
        const struct sim_contribution *contribution = sim_ledger_summed(oracle->ledger, order, i);
        const char *name = sim_ledger_member(oracle->ledger, order->contributors[i])->name;
        for (uint32_t k = 0; k < contribution->batch_count; k++) {
            const struct sim_batch *batch = &contribution->batches[k];
            if (batch->samples == 0 || batch->stored_lanes == 0) {
                continue;
            }
            sim_gradient_fill(oracle->ledger, name, order->step, contribution->hessian, k, batch,
                              elements);
            if (batch->dtype != PD_DTYPE_FLOAT32) {
                pd_convert_from_float32(wire, batch->dtype, elements, count);
                pd_convert_to_float32(elements, wire, batch->dtype, count);
            }
            for (uint64_t e = 0; e < count; e++) {
                oracle->average[e] += (double)batch->samples / samples * (double)elements[e];
            }
        }
    }
    free(wire);
    free(elements);
}

/* The norm of the tensors whose group is `group`, or of all groups that clip together if it does
 * not clip alone. */
static double norm(const struct sim_oracle *oracle, uint32_t group, double norm_type)
{
    const struct pd_group *groups = oracle->config->groups;
    double total = 0.0;

    for (uint32_t i = 0; i < oracle->model->count; i++) {
        const struct pd_tensor *tensor = &oracle->model->tensors[i];
        uint32_t own = oracle->groups[i];
        if (groups[group].clips_alone ? own != group : groups[own].clips_alone) {
            continue;
        }
        for (uint64_t k = 0; k < tensor->element_count; k++) {
            double size = fabs(oracle->average[tensor->element_begin + k]);
            total = isinf(norm_type) ? fmax(total, size) : total + pow(size, norm_type);
        }
    }
    return isinf(norm_type) ? total : pow(total, 1.0 / norm_type);
}

/* By value, then by norm; a frozen tensor counts in none. Returns the L2 norm of what is left. */
static double clip(struct sim_oracle *oracle)
{
    double scales[PD_GROUP_COUNT_MAX + 1];
    double squares = 0.0;

    for (uint32_t i = 0; i < oracle->model->count; i++) {
        const struct pd_tensor *tensor = &oracle->model->tensors[i];
        double value = oracle->config->groups[oracle->groups[i]].clip.value;
        for (uint64_t k = 0; k < tensor->element_count; k++) {
            double *element = &oracle->average[tensor->element_begin + k];
            *element = oracle->frozen >> i & 1u ? 0.0 : *element;
            *element = isnan(value) ? *element : fmax(-value, fmin(value, *element));
        }
    }
    for (uint32_t group = 0; group < oracle->config->group_count; group++) {
        const struct pd_clip_options *limit = &oracle->config->groups[group].clip;
        scales[group] =
            isnan(limit->norm)
                ? 1.0
                : fmin(1.0, limit->norm / (norm(oracle, group, limit->norm_type) + 1e-6));
    }
    for (uint32_t i = 0; i < oracle->model->count; i++) {
        const struct pd_tensor *tensor = &oracle->model->tensors[i];
        for (uint64_t k = 0; k < tensor->element_count; k++) {
            double *element = &oracle->average[tensor->element_begin + k];
            *element *= scales[oracle->groups[i]];
            squares += *element * *element;
        }
    }
    return sqrt(squares);
}

/* torch.optim.SGD */
static void sgd(const struct pd_hyper *hyper, double lr, double t, double *p, double g, double *buf)
{
    double d = g + hyper->weight_decay * *p;

    if (hyper->momentum > 0.0) {
        *buf = t > 1.5 ? hyper->momentum * *buf + (1.0 - hyper->dampening) * d : d;
        d = hyper->nesterov ? d + hyper->momentum * *buf : *buf;
    }
    *p -= lr * d;
}

/* Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2. */
static void adam(const struct pd_hyper *hyper, double lr, double t, bool decoupled, double *p,
                 double g, double *m, double *v)
{
    double d = decoupled ? g : g + hyper->weight_decay * *p;

    if (decoupled) {
        *p -= lr * hyper->weight_decay * *p;
    }
    *m = hyper->betas[0] * *m + (1.0 - hyper->betas[0]) * d;
    *v = hyper->betas[1] * *v + (1.0 - hyper->betas[1]) * d * d;
    double m_hat = *m / (1.0 - pow(hyper->betas[0], t));
    double v_hat = *v / (1.0 - pow(hyper->betas[1], t));
    *p -= lr * m_hat / (sqrt(v_hat) + hyper->eps);
}

/* Liu et al. 2023, algorithm 3; h is what sim_formulas_estimate has made of it. */
static void sophia(const struct pd_hyper *hyper, double lr, double *p, double g, double *m,
                   double h)
{
    *p -= lr * hyper->weight_decay * *p;
    *m = hyper->betas[0] * *m + (1.0 - hyper->betas[0]) * g;
    *p -= lr * fmax(-1.0, fmin(1.0, *m / (hyper->rho * hyper->bs * h + 1e-15)));
}

/* You et al. 2020, algorithm 2, with timm.optim.Lamb's clipping of the gradient beforehand. */
static void lamb(const struct pd_hyper *hyper, double lr, double t, double excess, double *p,
                 const double *g, double *m, double *v, double *u, uint64_t count)
{
    double p_norm = 0.0;
    double u_norm = 0.0;

    for (uint64_t i = 0; i < count; i++) {
        double d = g[i] / excess;
        m[i] = hyper->betas[0] * m[i] + (1.0 - hyper->betas[0]) * d;
        v[i] = hyper->betas[1] * v[i] + (1.0 - hyper->betas[1]) * d * d;
        double m_hat = m[i] / (1.0 - pow(hyper->betas[0], t));
        double v_hat = v[i] / (1.0 - pow(hyper->betas[1], t));
        u[i] = m_hat / (sqrt(v_hat) + hyper->eps) + hyper->weight_decay * p[i];
        p_norm += p[i] * p[i];
        u_norm += u[i] * u[i];
    }
    bool adapts = hyper->weight_decay > 0.0 && p_norm > 0.0 && u_norm > 0.0;
    double ratio = adapts ? sqrt(p_norm / u_norm) : 1.0;
    for (uint64_t i = 0; i < count; i++) {
        p[i] -= lr * ratio * u[i];
    }
}

static void step_tensor(struct sim_oracle *oracle, const struct pd_order *order, uint32_t index,
                        double total_norm)
{
    const struct pd_tensor *tensor = &oracle->model->tensors[index];
    uint32_t group = oracle->groups[index];
    const struct pd_hyper *hyper = &oracle->config->groups[group].hyper;
    const char *rule = oracle->config->optimizer->name;
    double lr = order->lrs[group];
    double t = (double)(oracle->applied + 1 - oracle->misses[index]);
    uint64_t begin = tensor->element_begin;

    if (strcmp(rule, "lamb") == 0) {
        /* timm counts the steps of the group. */
        t = (double)(oracle->applied + 1);
        double excess = isnan(hyper->max_grad_norm) ? 1.0 : total_norm / hyper->max_grad_norm;
        lamb(hyper, lr, t, fmax(1.0, excess), oracle->exact + begin, oracle->average + begin,
             oracle->first + begin, oracle->second + begin, oracle->update + begin,
             tensor->element_count);
        return;
    }
    for (uint64_t i = begin; i < begin + tensor->element_count; i++) {
        if (strcmp(rule, "sgd") == 0) {
            sgd(hyper, lr, t, &oracle->exact[i], oracle->average[i], &oracle->first[i]);
        } else if (strcmp(rule, "sophia_g") == 0) {
            sophia(hyper, lr, &oracle->exact[i], oracle->average[i], &oracle->first[i],
                   oracle->second[i]);
        } else {
            adam(hyper, lr, t, strcmp(rule, "adamw") == 0, &oracle->exact[i], oracle->average[i],
                 &oracle->first[i], &oracle->second[i]);
        }
    }
}

bool sim_formulas_known(const struct pd_optimizer *optimizer)
{
    static const char *const known[] = {"sgd", "adam", "adamw", "lamb", "sophia_g"};

    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(known[i], optimizer->name) == 0) {
            return true;
        }
    }
    return false;
}

static double samples_of(const struct sim_oracle *oracle, const struct pd_order *order)
{
    double samples = 0.0;

    for (uint32_t i = 0; i < order->contributor_count; i++) {
        samples += (double)sim_contribution_samples(sim_ledger_summed(oracle->ledger, order, i));
    }
    return samples;
}

void sim_formulas_estimate(struct sim_oracle *oracle, const struct pd_order *order)
{
    average(oracle, order, samples_of(oracle, order));
    for (uint32_t i = 0; i < oracle->model->count; i++) {
        const struct pd_tensor *tensor = &oracle->model->tensors[i];
        const struct pd_hyper *hyper = &oracle->config->groups[oracle->groups[i]].hyper;
        for (uint64_t k = 0; k < tensor->element_count && !sim_oracle_rests(oracle, i); k++) {
            double e = oracle->average[tensor->element_begin + k];
            double *h = &oracle->second[tensor->element_begin + k];
            *h = hyper->betas[1] * *h + (1.0 - hyper->betas[1]) * e * e;
        }
    }
}

void sim_formulas_step(struct sim_oracle *oracle, const struct pd_order *order)
{
    average(oracle, order, samples_of(oracle, order));
    double total_norm = clip(oracle);
    for (uint32_t i = 0; i < oracle->model->count; i++) {
        if (!sim_oracle_rests(oracle, i)) {
            step_tensor(oracle, order, i, total_norm);
        }
    }
}
