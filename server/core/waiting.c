/* What the training waits for, in words: said in the log when it takes long, as those who wait
 * cannot know. */
#include "server/core/engine_state.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* How long a wait is when it is shown, when it is first said, and how often after that. */
#define SHOWN_MS 1000u
#define SAID_FIRST_MS 10000u
#define SAID_AGAIN_MS 60000u
#define NAMED_COUNT_MAX 3u
#define NAMES_BYTES (NAMED_COUNT_MAX * (PD_NAME_BYTES_MAX + 4u) + 32u)

typedef bool member_test(const struct pd_engine *engine, const struct pd_member *member);

static bool has_only_joined(const struct pd_engine *engine, const struct pd_member *member)
{
    (void)engine;
    return member->state == PD_MEMBER_JOINED && !member->registering;
}

static bool is_active(const struct pd_engine *engine, const struct pd_member *member)
{
    (void)engine;
    return member->state == PD_MEMBER_ACTIVE;
}

/* Whether the step cannot close without it; one that is not read waits itself. */
static bool keeps_step(const struct pd_engine *engine, const struct pd_member *member)
{
    return pd_member_is_awaited(engine, member) && !pd_admission_holds_back(engine, member);
}

/* How many members pass; the names of the first go to `names`. */
static uint32_t name_members(const struct pd_engine *engine, member_test *passes,
                             char names[NAMES_BYTES])
{
    const struct pd_leader *leader = engine->leader;
    uint32_t count = 0;
    size_t used = 0;

    names[0] = '\0';
    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        const struct pd_member *member = &leader->members[slot];
        if (member->state == PD_MEMBER_NONE || !passes(engine, member)) {
            continue;
        }
        if (count < NAMED_COUNT_MAX) {
            used += (size_t)snprintf(names + used, NAMES_BYTES - used, "%s'%s'",
                                     count > 0 ? ", " : "", member->name);
        }
        count++;
    }
    if (count > NAMED_COUNT_MAX) {
        snprintf(names + used, NAMES_BYTES - used, " and %" PRIu32 " more",
                 count - NAMED_COUNT_MAX);
    }
    return count;
}

/* Whether anybody has given something to the step, or waits on this rank for room to. */
static bool somebody_has_given(const struct pd_engine *engine)
{
    const struct pd_leader *leader = engine->leader;

    for (uint32_t slot = 0; slot < leader->member_end; slot++) {
        if (pd_member_contributes(engine, &leader->members[slot])) {
            return true;
        }
    }
    for (pd_connection_id id = 0; id < engine->session_end; id++) {
        if (engine->sessions[id].push_parked) {
            return true;
        }
    }
    return false;
}

static bool describe_model(const struct pd_engine *engine, char *text, size_t text_bytes)
{
    char names[NAMES_BYTES];
    bool asked = name_members(engine, pd_member_gives_values, names) > 0;
    bool joined = !asked && name_members(engine, has_only_joined, names) > 0;

    snprintf(text, text_bytes, "the model waits for %s %s",
             asked ? "the initial values of" : "the registration of", names);
    return asked || joined;
}

static bool describe_start(const struct pd_engine *engine, char *text, size_t text_bytes)
{
    char names[NAMES_BYTES];
    uint32_t active = name_members(engine, is_active, names);
    uint32_t joined = name_members(engine, has_only_joined, names);

    snprintf(text, text_bytes,
             "step %" PRIu64 " waits for %" PRIu64 " workers (workers.expected): %" PRIu32
             " registered%s%s",
             engine->leader->step_next, engine->config->workers.expected, active,
             joined > 0 ? ", only joined: " : "", names);
    return active > 0;
}

static bool describe_step(const struct pd_engine *engine, char *text, size_t text_bytes)
{
    char names[NAMES_BYTES];
    bool kept = name_members(engine, keeps_step, names) > 0;

    snprintf(text, text_bytes, "step %" PRIu64 " waits for %s", engine->leader->step_next, names);
    return kept && somebody_has_given(engine);
}

/* What somebody waits for, as one line; false when nobody does, or an operator wants it so. */
static bool describe(const struct pd_engine *engine, char *text, size_t text_bytes)
{
    const struct pd_leader *leader = engine->leader;

    if (leader->drain != PD_DRAIN_NONE || leader->paused) {
        return false;
    }
    if (!engine->store.has_version) {
        return describe_model(engine, text, text_bytes);
    }
    return leader->started ? describe_step(engine, text, text_bytes)
                           : describe_start(engine, text, text_bytes);
}

bool pd_waiting_describe(const struct pd_engine *engine, char *text, size_t text_bytes)
{
    const struct pd_waiting *waiting = &engine->leader->waiting;
    uint64_t waited_ms = engine->now_ms - waiting->since_ms;

    snprintf(text, text_bytes, "%.400s: %.0f s so far", waiting->text, (double)waited_ms / 1000.0);
    return waiting->text[0] != '\0' && waited_ms >= SHOWN_MS;
}

void pd_waiting_tick(struct pd_engine *engine)
{
    struct pd_waiting *waiting = &engine->leader->waiting;
    char text[PD_ERROR_BYTES_MAX];

    if (!describe(engine, text, sizeof text)) {
        waiting->text[0] = '\0';
        return;
    }
    if (strcmp(text, waiting->text) != 0) {
        snprintf(waiting->text, sizeof waiting->text, "%s", text);
        waiting->since_ms = engine->now_ms;
        waiting->due_ms = engine->now_ms + SAID_FIRST_MS;
    } else if (engine->now_ms >= waiting->due_ms) {
        waiting->due_ms = engine->now_ms + SAID_AGAIN_MS;
        (void)pd_waiting_describe(engine, text, sizeof text);
        pd_actions_log(engine->actions, "%s", text);
    }
}
