#include "server/core/contribution.h"

#include "common/assert.h"

#include <inttypes.h>
#include <string.h>

enum pd_status pd_contribution_equip(struct pd_contribution *contribution,
                                     struct pd_staging *staging, struct pd_error *error)
{
    if (contribution->payload != NULL) {
        return PD_OK;
    }
    contribution->element_count = staging->element_count;
    contribution->payload = pd_staging_take(staging);
    if (contribution->payload == NULL) {
        goto fail;
    }
    if (staging->accumulates) {
        contribution->sum = pd_staging_take(staging);
        if (contribution->sum == NULL) {
            goto fail;
        }
    }
    return PD_OK;

fail:
    pd_contribution_strip(contribution, staging);
    return pd_error_set(error, PD_ENOMEM,
                        "out of memory for a worker's gradient of %" PRIu64 " elements",
                        staging->element_count);
}

void pd_contribution_strip(struct pd_contribution *contribution, struct pd_staging *staging)
{
    pd_staging_return(staging, contribution->sum);
    pd_staging_return(staging, contribution->payload);
    contribution->payload = NULL;
    contribution->sum = NULL;
}

static bool accepted_before(const struct pd_contribution *contribution, const struct pd_push *push)
{
    if (!contribution->started) {
        return false;
    }
    return push->step < contribution->next_step ||
           (push->step == contribution->next_step &&
            push->micro_batch < contribution->next_micro_batch);
}

static const char *name_of(const struct pd_push *push)
{
    return push->hessian ? "hessian" : "push";
}

enum pd_push_verdict pd_contribution_judge(const struct pd_contribution *contribution,
                                           const struct pd_push *push, uint64_t version,
                                           uint64_t accumulation_steps, struct pd_error *error)
{
    if (push->micro_batch >= accumulation_steps) {
        pd_error_set(error, PD_EINVALID,
                     "%s of step %" PRIu64 ": micro-batch %u; allowed: 0 to %" PRIu64,
                     name_of(push), push->step, push->micro_batch, accumulation_steps - 1);
        return PD_PUSH_REFUSE;
    }
    if (push->micro_batch == accumulation_steps - 1 && !push->last) {
        pd_error_set(error, PD_EINVALID,
                     "%s of step %" PRIu64 ": micro-batch %u of %" PRIu64 " must have `last` set",
                     name_of(push), push->step, push->micro_batch, accumulation_steps);
        return PD_PUSH_REFUSE;
    }
    if (accepted_before(contribution, push)) {
        return PD_PUSH_DUPLICATE;
    }
    if (push->step != version) {
        pd_error_set(error, PD_ESTEP,
                     "%s of step %" PRIu64 " is from the %s: the step in collection is %" PRIu64
                     "; pull version %" PRIu64 " first",
                     name_of(push), push->step, push->step < version ? "past" : "future", version,
                     version);
        return PD_PUSH_REFUSE;
    }
    if (contribution->state == PD_CONTRIBUTION_HELD) {
        pd_error_set(error, PD_ESTEP,
                     "%s of step %" PRIu64 ": this worker's contribution to it is complete",
                     name_of(push), push->step);
        return PD_PUSH_REFUSE;
    }
    uint32_t expected = contribution->started && contribution->next_step == push->step
                            ? contribution->next_micro_batch
                            : 0;
    if (push->micro_batch != expected) {
        pd_error_set(error, PD_ESTEP,
                     "%s of step %" PRIu64 ": micro-batch %u came, %u is the next expected",
                     name_of(push), push->step, push->micro_batch, expected);
        return PD_PUSH_REFUSE;
    }
    return contribution->state == PD_CONTRIBUTION_IDLE ? PD_PUSH_ACCEPT : PD_PUSH_WAIT;
}

void pd_contribution_begin(struct pd_contribution *contribution, const struct pd_push *push,
                           bool repeatable)
{
    PD_ASSERT(contribution->state == PD_CONTRIBUTION_IDLE);
    pd_push_copy(&contribution->push, push);
    contribution->received = 0;
    contribution->placed = 0;
    contribution->repeatable = repeatable;
    contribution->spent = 0;
    contribution->run_count = 0;
    contribution->state = PD_CONTRIBUTION_RECEIVING;
}

/* The first element of a run that is not spent, and the one behind its last. */
static void unspent(const struct pd_contribution *contribution, uint32_t run, uint64_t *begin,
                    uint64_t *end)
{
    const struct pd_contribution_run *runs = contribution->runs;
    bool last = run + 1 == contribution->run_count;

    *begin = runs[run].begin > contribution->spent ? runs[run].begin : contribution->spent;
    *end = last ? contribution->placed : runs[run + 1].begin;
}

/* Whether nothing that is still needed lies in those elements of the buffer. */
static bool is_free(const struct pd_contribution *contribution, uint64_t offset, uint64_t count)
{
    for (uint32_t run = 0; run < contribution->run_count; run++) {
        uint64_t base = contribution->runs[run].offset;
        uint64_t begin;
        uint64_t end;
        unspent(contribution, run, &begin, &end);
        begin += base - contribution->runs[run].begin;
        end += base - contribution->runs[run].begin;
        if (begin < offset + count && offset < end) {
            return false;
        }
    }
    return true;
}

static void forget_spent_runs(struct pd_contribution *contribution)
{
    struct pd_contribution_run *runs = contribution->runs;

    if (contribution->spent == contribution->placed) {
        contribution->run_count = 0;
    }
    while (contribution->run_count > 1 && runs[1].begin <= contribution->spent) {
        contribution->run_count--;
        memmove(&runs[0], &runs[1], contribution->run_count * sizeof runs[0]);
    }
}

void *pd_contribution_place(struct pd_contribution *contribution, uint64_t element_count)
{
    struct pd_contribution_run *runs = contribution->runs;
    uint64_t placed = contribution->placed;

    PD_ASSERT(contribution->state == PD_CONTRIBUTION_RECEIVING);
    PD_ASSERT(contribution->payload != NULL);
    PD_ASSERT(element_count <= contribution->element_count - placed);
    forget_spent_runs(contribution);
    uint32_t count = contribution->run_count;
    uint64_t behind = count > 0 ? runs[count - 1].offset + placed - runs[count - 1].begin : 0;
    if (count == 0 ||
        (count + 1 < PD_CONTRIBUTION_RUN_COUNT_MAX && is_free(contribution, 0, element_count))) {
        runs[contribution->run_count++] = (struct pd_contribution_run){.begin = placed};
        behind = 0;
    } else if (!is_free(contribution, behind, element_count)) {
        /* No element lies behind its number: from there on all is free. */
        PD_ASSERT(count < PD_CONTRIBUTION_RUN_COUNT_MAX);
        runs[contribution->run_count++] =
            (struct pd_contribution_run){.begin = placed, .offset = placed};
        behind = placed;
    }
    contribution->placed += element_count;
    return (char *)contribution->payload +
           behind * pd_dtype_bytes((enum pd_dtype)contribution->push.dtype);
}

bool pd_contribution_wants_place(const struct pd_contribution *contribution)
{
    size_t element_bytes = pd_dtype_bytes((enum pd_dtype)contribution->push.dtype);

    return contribution->placed < contribution->element_count &&
           contribution->received == contribution->placed * element_bytes;
}

void pd_contribution_spend(struct pd_contribution *contribution, uint64_t element_end)
{
    PD_ASSERT(contribution->repeatable);
    PD_ASSERT(element_end >= contribution->spent);
    PD_ASSERT(element_end <= contribution->placed);
    contribution->spent = element_end;
}

bool pd_contribution_is_spent(const struct pd_contribution *contribution)
{
    return contribution->state != PD_CONTRIBUTION_IDLE && contribution->spent > 0;
}

void pd_contribution_take_back(struct pd_contribution *contribution)
{
    PD_ASSERT(contribution->state == PD_CONTRIBUTION_HELD);
    PD_ASSERT(contribution->repeatable);
    contribution->next_step = contribution->push.step;
    contribution->next_micro_batch = 0;
    contribution->state = PD_CONTRIBUTION_IDLE;
}

void pd_contribution_receive(struct pd_contribution *contribution, uint64_t byte_count)
{
    PD_ASSERT(contribution->state == PD_CONTRIBUTION_RECEIVING);
    PD_ASSERT(byte_count >= contribution->received);
    contribution->received = byte_count;
}

bool pd_contribution_is_single(const struct pd_contribution *contribution, uint64_t step)
{
    const struct pd_push *push = &contribution->push;

    return (contribution->state == PD_CONTRIBUTION_RECEIVING ||
            contribution->state == PD_CONTRIBUTION_HELD) &&
           push->step == step && push->micro_batch == 0 && push->last;
}

uint64_t pd_contribution_elements_in(const struct pd_contribution *contribution)
{
    if (contribution->state == PD_CONTRIBUTION_RECEIVING) {
        return contribution->received / pd_dtype_bytes((enum pd_dtype)contribution->push.dtype);
    }
    return contribution->state == PD_CONTRIBUTION_HELD ? contribution->element_count : 0;
}

void pd_contribution_drop_payload(struct pd_contribution *contribution)
{
    PD_ASSERT(contribution->state == PD_CONTRIBUTION_RECEIVING);
    contribution->state = PD_CONTRIBUTION_IDLE;
}

void pd_contribution_finish_payload(struct pd_contribution *contribution)
{
    const struct pd_push *push = &contribution->push;

    PD_ASSERT(contribution->state == PD_CONTRIBUTION_RECEIVING);
    contribution->started = true;
    contribution->next_step = push->last ? push->step + 1 : push->step;
    contribution->next_micro_batch = push->last ? 0 : push->micro_batch + 1;
    if (push->micro_batch == 0) {
        contribution->unit_samples = 0;
        contribution->in_sum = false;
    }
    if (push->micro_batch == 0 && push->last) {
        contribution->unit_samples = push->samples;
        contribution->state = PD_CONTRIBUTION_HELD;
        return;
    }
    PD_ASSERT(contribution->sum != NULL);
    contribution->folded = 0;
    contribution->state = PD_CONTRIBUTION_FOLDING;
}

static double inverse_scale(const struct pd_push *push)
{
    return push->scale > 0.0 ? pd_loss_scale_inverse(push->scale) : 1.0;
}

bool pd_contribution_has_pushes(const struct pd_contribution *contribution, uint64_t step)
{
    return contribution->started &&
           (contribution->next_step > step ||
            (contribution->next_step == step && contribution->next_micro_batch > 0));
}

bool pd_contribution_is_complete(const struct pd_contribution *contribution, uint64_t step)
{
    return contribution->started && contribution->next_step > step;
}

bool pd_contribution_fold(struct pd_contribution *contribution, uint64_t element_count)
{
    const struct pd_push *push = &contribution->push;

    PD_ASSERT(contribution->state == PD_CONTRIBUTION_FOLDING);
    /* A micro-batch without samples has no weight, whatever its elements are. */
    bool first = contribution->unit_samples == 0;
    if (push->samples > 0) {
        uint64_t left = contribution->element_count - contribution->folded;
        uint64_t count = left < element_count ? left : element_count;
        double unit = first ? (double)push->samples : (double)contribution->unit_samples;
        struct pd_source source = {
            .elements = (const char *)contribution->payload +
                        contribution->folded * pd_dtype_bytes(push->dtype),
            .dtype = push->dtype,
            .weight = (float)((double)push->samples / unit * inverse_scale(push)),
        };
        pd_reduce_add(contribution->sum + contribution->folded, &source, first, (uint32_t)count);
        contribution->folded += count;
        if (contribution->folded < contribution->element_count) {
            return false;
        }
        contribution->in_sum = true;
        contribution->unit_samples = first ? push->samples : contribution->unit_samples;
    }
    contribution->state = push->last ? PD_CONTRIBUTION_HELD : PD_CONTRIBUTION_IDLE;
    return true;
}

void *pd_contribution_elements(const struct pd_contribution *contribution, uint64_t begin)
{
    if (contribution->in_sum) {
        return contribution->sum + begin;
    }
    PD_ASSERT(begin >= contribution->spent);
    PD_ASSERT(contribution->run_count > 0);
    uint32_t run = contribution->run_count - 1;
    while (contribution->runs[run].begin > begin) {
        PD_ASSERT(run > 0);
        run--;
    }
    uint64_t offset = contribution->runs[run].offset + begin - contribution->runs[run].begin;
    return (char *)contribution->payload +
           offset * pd_dtype_bytes((enum pd_dtype)contribution->push.dtype);
}

struct pd_source pd_contribution_source(const struct pd_contribution *contribution, double weight)
{
    struct pd_source source = {.weight = (float)weight, .dtype = PD_DTYPE_FLOAT32};

    if (!contribution->in_sum) {
        source.dtype = contribution->push.dtype;
        source.weight = (float)(weight * inverse_scale(&contribution->push));
    }
    return source;
}

void pd_contribution_release(struct pd_contribution *contribution, struct pd_staging *staging)
{
    PD_ASSERT(contribution->state == PD_CONTRIBUTION_HELD ||
              contribution->state == PD_CONTRIBUTION_IDLE);
    pd_contribution_strip(contribution, staging);
    contribution->state = PD_CONTRIBUTION_IDLE;
    contribution->in_sum = false;
    contribution->unit_samples = 0;
    contribution->taken = false;
}
