/* What a rank does with the orders of a learning-rate search that are no steps: keep a copy of all
 * that steps change, have it back, or forget it. engine -> [restore] -> snapshot, param_store.
 *
 * What rank 0 decides by changes with metrics and orders, not with steps: there is no copy of it.
 */
#include "common/assert.h"
#include "server/core/engine_state.h"

#include <stdio.h>
#include <string.h>

/* What one turn copies. */
#define TURN_BYTES (1024u * 1024u)

static void list_state(struct pd_engine *engine, uint32_t buffer)
{
    pd_param_store_list(&engine->store, buffer, &engine->kept.snapshot);
    pd_step_list_state(engine->step, &engine->kept.snapshot);
}

void pd_restore_begin(struct pd_engine *engine)
{
    struct pd_kept_state *kept = &engine->kept;
    struct pd_error error = {0};

    if (engine->running->kind == PD_ORDER_RESTORE) {
        pd_snapshot_clear_parts(&kept->snapshot);
        list_state(engine, 1 - engine->store.served);
        pd_snapshot_bring_back(&kept->snapshot);
        return;
    }
    list_state(engine, engine->store.served);
    kept->lr_count = engine->lr_count;
    memcpy(kept->lrs, engine->lrs, sizeof kept->lrs);
    kept->loss_scale = engine->loss_scale;
    kept->fault[0] = '\0';
    if (pd_snapshot_keep(&kept->snapshot, &error) != PD_OK) {
        snprintf(kept->fault, sizeof kept->fault, "%s", error.message);
    }
}

/* The state is back in place: it is the next version's, and the gradients of the step that this
 * closes are not used. */
static void close_restored(struct pd_engine *engine)
{
    const struct pd_order *order = engine->running;

    pd_param_store_publish_spare(&engine->store);
    pd_roster_release(engine->roster, order);
    pd_step_forget_taken(engine->step);
    pd_roster_sweep(engine->roster);
    engine->lr_count = engine->kept.lr_count;
    memcpy(engine->lrs, engine->kept.lrs, sizeof engine->lrs);
    engine->loss_scale = engine->kept.loss_scale;
    engine->stop_advised = order->stop;
    pd_restore_forget(engine);
}

bool pd_restore_advance(struct pd_engine *engine, bool turn)
{
    bool back = engine->running->kind == PD_ORDER_RESTORE;

    if (!back && engine->kept.fault[0] != '\0') {
        return true;
    }
    if (back && !pd_param_store_spare_free(&engine->store)) {
        pd_serve_reclaim_spare(engine);
        return false;
    }
    if (!turn || !pd_snapshot_copy(&engine->kept.snapshot, TURN_BYTES)) {
        pd_engine_want_work(engine);
        return false;
    }
    if (back) {
        close_restored(engine);
    }
    return true;
}

void pd_restore_forget(struct pd_engine *engine)
{
    pd_snapshot_finish(&engine->kept.snapshot);
}
