/* The same steps each time, for an instruction counter to look at: one rank's engine, with the
 * block kernels, fed with the events of workers that push and pull. Nothing here depends on time.
 * test_instructions.py -> [fixed_step] -> engine. */
#include "server/core/engine.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a socket gives at a time. */
#define PIECE_BYTES (256u * 1024u)

/* Unclipped, a block is stepped while later ones arrive; clipped, once the norm of all is known. Of
 * few elements, the figure is what a step costs whatever its size; of many workers with few
 * elements, what it costs to have so many. */
static const struct variant {
    const char *name;
    uint32_t worker_count; /* each on the connection of its number */
    uint64_t element_count;
    const char *config;
} variants[] = {
    {"plain", 1, 200000, "compute_ahead: 1\noptimizer: {name: adamw}\n"},
    {"clipped", 1, 200000, "compute_ahead: 1\noptimizer: {name: adamw}\nclip: {norm: 1.0}\n"},
    {"small", 1, 16, "optimizer: {name: adamw}\n"},
    {"many", 256, 16, "workers: {expected: 256}\noptimizer: {name: adamw}\n"},
};

struct script {
    const struct variant *variant;
    struct pd_engine *engine;
    struct pd_actions actions;
    uint64_t entropy;
    uint64_t placed; /* bytes of the announced payload that have a place */
    bool work_asked;
    uint32_t payloads_sent;
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
    pd_actions_reset(&script->actions);
    pd_engine_step(script->engine, event, &script->actions);
    for (size_t i = 0; i < script->actions.count; i++) {
        const struct pd_action *action = &script->actions.items[i];
        switch (action->kind) {
        case PD_ACTION_PLACE:
            script->placed += action->place_bytes;
            break;
        case PD_ACTION_WORK:
            script->work_asked = true;
            break;
        case PD_ACTION_SEND:
            script->payloads_sent += action->payload != NULL;
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
static void say(struct script *script, pd_connection_id connection,
                const struct pd_message *message, bool has_payload)
{
    size_t byte_count = has_payload ? script->variant->element_count * sizeof(float) : 0;
    struct pd_event event = {.kind = PD_EVENT_MESSAGE,
                             .connection = connection,
                             .message = message,
                             .payload_bytes = byte_count};

    script->placed = 0;
    feed(script, &event);
    if (!has_payload) {
        work(script);
        return;
    }
    for (size_t begin = 0; begin < byte_count;) {
        size_t piece = script->placed - begin;
        piece = piece < PIECE_BYTES ? piece : PIECE_BYTES;
        if (piece == 0) {
            fail("no place for a payload");
        }
        begin += piece;
        event = (struct pd_event){.kind = PD_EVENT_PROGRESS,
                                  .connection = connection,
                                  .received = true,
                                  .payload_bytes = begin};
        feed(script, &event);
        work(script);
    }
    event =
        (struct pd_event){.kind = PD_EVENT_PAYLOAD, .connection = connection, .checksum_ok = true};
    feed(script, &event);
    work(script);
}

/* Join and offer the model; the first worker makes it. */
static void enlist(struct script *script, uint32_t worker)
{
    struct pd_event opened = {.kind = PD_EVENT_OPENED, .connection = worker, .peer = "worker:1"};
    struct pd_message hello = {.kind = PD_MESSAGE_HELLO};
    struct pd_message join = {.kind = PD_MESSAGE_JOIN};
    struct pd_message offer = {.kind = PD_MESSAGE_REGISTER};
    const uint64_t shape = script->variant->element_count;
    struct pd_message values = {.kind = PD_MESSAGE_VALUES, .values.element_count = shape};
    struct pd_error error = {0};

    if (pd_tensor_list_init(&offer.registration.tensors, 1, &error) != PD_OK ||
        pd_tensor_list_append(&offer.registration.tensors, "tensor", strlen("tensor"), 1, &shape,
                              &error) != PD_OK) {
        fail(error.message);
    }
    (void)snprintf(join.join.name, sizeof join.join.name, "worker%" PRIu32, worker);
    feed(script, &opened);
    say(script, worker, &hello, false);
    say(script, worker, &join, false);
    say(script, worker, &offer, false);
    if (worker == 0) {
        say(script, worker, &values, true);
    }
    pd_tensor_list_finish(&offer.registration.tensors);
}

static void take_step(struct script *script, uint64_t step)
{
    const struct variant *variant = script->variant;
    static struct pd_message push = {.kind = PD_MESSAGE_PUSH};

    push.push = (struct pd_push){.step = step,
                                 .last = true,
                                 .samples = 1,
                                 .element_count = variant->element_count,
                                 .pull = true,
                                 .ahead = true};

    script->payloads_sent = 0;
    for (uint32_t worker = 0; worker < variant->worker_count; worker++) {
        say(script, worker, &push, true);
    }
    if (script->payloads_sent < variant->worker_count) {
        fail("no parameters came back");
    }
    for (uint32_t worker = 0; worker < variant->worker_count; worker++) {
        struct pd_event sent = {.kind = PD_EVENT_SENT, .connection = worker};
        feed(script, &sent);
        work(script);
    }
}

static void take_steps(struct script *script, uint64_t step_count)
{
    uint64_t version = 0;
    uint64_t element_begin = 0;
    uint64_t element_count = 0;

    for (uint64_t step = 0; step < step_count; step++) {
        take_step(script, step);
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

    for (size_t i = 0; argc == 3 && i < sizeof variants / sizeof variants[0]; i++) {
        if (strcmp(argv[1], variants[i].name) == 0) {
            script.variant = &variants[i];
        }
    }
    if (script.variant == NULL) {
        fail("two arguments: plain, clipped, small or many, and the number of steps");
    }
    if (pd_config_create(&config, "fixed_step", script.variant->config, NULL, 0, &error) != PD_OK ||
        pd_engine_create(&script.engine, config, &topology, &error) != PD_OK) {
        fail(error.message);
    }
    pd_actions_init(&script.actions);
    for (uint32_t worker = 0; worker < script.variant->worker_count; worker++) {
        enlist(&script, worker);
    }
    take_steps(&script, strtoull(argv[2], NULL, 10));
    pd_actions_finish(&script.actions);
    pd_engine_destroy(script.engine);
    pd_config_destroy(config);
    return EXIT_SUCCESS;
}
