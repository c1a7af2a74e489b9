#include "server/core/history.h"

#include "common/assert.h"
#include "common/heap.h"

#include <inttypes.h>

enum pd_status pd_history_init(struct pd_history *history, uint64_t capacity,
                               struct pd_error *error)
{
    PD_ASSERT(capacity > 0);
    *history = (struct pd_history){.capacity = capacity};
    history->rows = pd_heap_zalloc(capacity, sizeof *history->rows);
    if (history->rows == NULL) {
        return pd_error_set(error, PD_ENOMEM, "history: %" PRIu64 " steps", capacity);
    }
    return PD_OK;
}

void pd_history_finish(struct pd_history *history)
{
    pd_heap_free(history->rows);
    *history = (struct pd_history){0};
}

static struct pd_history_row *row_at(const struct pd_history *history, uint64_t index)
{
    PD_ASSERT(index < history->capacity);
    uint64_t at = history->begin + index;
    return &history->rows[at < history->capacity ? at : at - history->capacity];
}

void pd_history_add(struct pd_history *history, const struct pd_history_row *row)
{
    PD_ASSERT(history->count == 0 || row_at(history, history->count - 1)->step < row->step);
    if (history->count == history->capacity) {
        history->begin = history->begin + 1 < history->capacity ? history->begin + 1 : 0;
        history->count--;
    }
    struct pd_history_row *place = row_at(history, history->count++);
    *place = *row;
    place->metrics_known = 0;
}

void pd_history_note(struct pd_history *history, uint64_t version, uint32_t metric, double value)
{
    PD_ASSERT(metric < PD_METRIC_COUNT_MAX);
    uint64_t index = version > 0 ? pd_history_find(history, version - 1) : history->count;

    if (index < history->count && row_at(history, index)->step == version - 1) {
        struct pd_history_row *row = row_at(history, index);
        row->metrics_known |= UINT32_C(1) << metric;
        row->metrics[metric] = value;
    }
}

const struct pd_history_row *pd_history_at(const struct pd_history *history, uint64_t index)
{
    PD_ASSERT(index < history->count);
    return row_at(history, index);
}

uint64_t pd_history_find(const struct pd_history *history, uint64_t step)
{
    uint64_t low = 0;
    uint64_t high = history->count;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (row_at(history, middle)->step < step) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}
