/* The same steps each time, for an instruction counter to look at: one rank's engine, with the
 * block kernels, fed with the events of one worker that pushes and pulls. Nothing here depends on
 * time. test_instructions.py -> [fixed_step] -> engine. */
#include "server/core/engine.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECTION 0u
#define ELEMENT_COUNT 200000u
#define BYTE_COUNT (ELEMENT_COUNT * sizeof(float))
/* What a socket gives at a time. */
#define PIECE_BYTES (256u * 1024u)

/* Unclipped, a block is stepped while later ones arrive; clipped, once the norm of all is known. */
static const struct {
    const char *name;
    const char *config;
} variants[] = {
    {"plain", "compute_ahead: 1\noptimizer: {name: adamw}\n"},
    {"clipped", "compute_ahead: 1\noptimizer: {name: adamw}\nclip: {norm: 1.0}\n"},
};

struct script {
    struct pd_engine *engine;
    struct pd_actions actions;
    uint64_t entropy;
    void *destination; /* of the announced payload */
    bool work_asked;
    bool payload_sent;
};

static _Noreturn void fail(const char *text)
{
    fprintf(stderr, "fixed_step: %s\n", text);
    exit(EXIT_FAILURE);
}

static void feed(struct script *script, struct pd_event *event)
{
    event->now_ms = 1000;
    event->entropy = ++script->entropy;
    event->connection = CONNECTION;
    pd_actions_reset(&script->actions);
    pd_engine_step(script->engine, event, &script->actions);
    for (size_t i = 0; i < script->actions.count; i++) {
        const struct pd_action *action = &script->actions.items[i];
        switch (action->kind) {
        case PD_ACTION_PLACE:
            script->destination = action->destination;
            break;
        case PD_ACTION_WORK:
            script->work_asked = true;
            break;
        case PD_ACTION_SEND:
            script->payload_sent = script->payload_sent || action->payload != NULL;
            break;
        case PD_ACTION_ABORT:
        case PD_ACTION_CLOSE:
            fail("the engine closed the connection");
        default:
            break;
        }
    }
}

static void work(struct script *script)
{
    while (script->work_asked) {
        struct pd_event event = {.kind = PD_EVENT_WORK};
        script->work_asked = false;
        feed(script, &event);
    }
}

/* A message, and its payload as it comes in from a socket; its bytes stay the zeros that the place
 * for it holds, because instructions do not depend on them. */
static void say(struct script *script, const struct pd_message *message, bool has_payload)
{
    struct pd_event event = {.kind = PD_EVENT_MESSAGE,
                             .message = message,
                             .payload_bytes = has_payload ? BYTE_COUNT : 0};

    script->destination = NULL;
    feed(script, &event);
    if (!has_payload) {
        work(script);
        return;
    }
    if (script->destination == NULL) {
        fail("no place for a payload");
    }
    for (size_t begin = 0; begin < BYTE_COUNT; begin += PIECE_BYTES) {
        size_t left = BYTE_COUNT - begin;
        size_t piece = left < PIECE_BYTES ? left : PIECE_BYTES;
        event = (struct pd_event){
            .kind = PD_EVENT_PROGRESS, .received = true, .payload_bytes = begin + piece};
        feed(script, &event);
        work(script);
    }
    event = (struct pd_event){.kind = PD_EVENT_PAYLOAD, .checksum_ok = true};
    feed(script, &event);
    work(script);
}

/* Join as the only worker and make the model. */
static void enlist(struct script *script)
{
    struct pd_event opened = {.kind = PD_EVENT_OPENED, .peer = "worker:1"};
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO};
    struct pd_message join = {.kind = PD_MESSAGE_JOIN, .join.name = "worker"};
    struct pd_message offer = {.kind = PD_MESSAGE_REGISTER};
    struct pd_message message = {.kind = PD_MESSAGE_VALUES, .values.element_count = ELEMENT_COUNT};
    struct pd_error error = {0};
    const uint64_t shape = ELEMENT_COUNT;

    if (pd_tensor_list_init(&offer.registration.tensors, 1, &error) != PD_OK ||
        pd_tensor_list_append(&offer.registration.tensors, "tensor", strlen("tensor"), 1, &shape,
                              &error) != PD_OK) {
        fail(error.message);
    }
    feed(script, &opened);
    say(script, &hello, false);
    say(script, &join, false);
    say(script, &offer, false);
    say(script, &message, true);
    pd_tensor_list_finish(&offer.registration.tensors);
}

static void take_steps(struct script *script, uint64_t step_count)
{
    uint64_t version = 0;
    uint64_t element_begin = 0;
    uint64_t element_count = 0;

    for (uint64_t step = 0; step < step_count; step++) {
        struct pd_event sent = {.kind = PD_EVENT_SENT};
        struct pd_message push = {.kind = PD_MESSAGE_PUSH,
                                  .push = {.step = step,
                                           .last = true,
                                           .samples = 1,
                                           .element_count = ELEMENT_COUNT,
                                           .pull = true,
                                           .ahead = true}};
        script->payload_sent = false;
        say(script, &push, true);
        if (!script->payload_sent) {
            fail("no parameters came back");
        }
        feed(script, &sent);
        work(script);
    }
    (void)pd_engine_parameters(script->engine, &version, &element_begin, &element_count);
    if (version != step_count) {
        fail("a step is missing");
    }
}

int main(int argc, char **argv)
{
    struct pd_topology topology = {
        .rank_count = 1, .run_id = 1, .secret = 1, .addresses = {"a:1"}, .hosts = {"a"}};
    struct pd_config *config = NULL;
    struct script script = {0};
    struct pd_error error = {0};

    const char *text = NULL;
    for (size_t i = 0; argc == 3 && i < sizeof variants / sizeof variants[0]; i++) {
        text = strcmp(argv[1], variants[i].name) == 0 ? variants[i].config : text;
    }
    if (text == NULL) {
        fail("two arguments: plain or clipped, and the number of steps");
    }
    if (pd_config_create(&config, "fixed_step", text, NULL, 0, &error) != PD_OK ||
        pd_engine_create(&script.engine, config, &topology, &error) != PD_OK) {
        fail(error.message);
    }
    pd_actions_init(&script.actions);
    enlist(&script);
    take_steps(&script, strtoull(argv[2], NULL, 10));
    pd_actions_finish(&script.actions);
    pd_engine_destroy(script.engine);
    pd_config_destroy(config);
    return EXIT_SUCCESS;
}
