#include "tests/support/scripted_engine.h"

#include "server/io/listener.h"
#include "server/io/signals.h"

#include <arpa/inet.h>
#include <check.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

struct conversation {
    struct scripted_rank *rank;
    void (*converse)(struct scripted_rank *rank);
};

void pd_engine_step(struct pd_engine *engine, const struct pd_event *event,
                    struct pd_actions *actions)
{
    engine->nested |= engine->inside;
    engine->inside = true;
    engine->counts[event->kind]++;
    if (event->kind == PD_EVENT_CLOSED) {
        engine->closed_error = *event->error;
    }
    engine->react(engine, event, actions);
    engine->inside = false;
}

static void submit_nothing(void *context, const struct pd_collective *collective)
{
    (void)context;
    (void)collective;
}

static const struct pd_collective *take_nothing(void *context)
{
    (void)context;
    return NULL;
}

void scripted_rank_init(struct scripted_rank *rank,
                        void (*react)(struct pd_engine *engine, const struct pd_event *event,
                                      struct pd_actions *actions))
{
    struct pd_error error = {0};
    uint32_t port = 0;

    memset(rank, 0, sizeof *rank);
    rank->engine.react = react;
    rank->options = (struct pd_loop_options){
        .engine = &rank->engine,
        .collectives = {submit_nothing, take_nothing, NULL},
        .ready_line = "ready",
        .rank_timeout_ms = 60000,
        .lease_ms = 60000,
        .connection_count_max = PD_CONNECTION_COUNT_MAX,
    };
    ck_assert_msg(pd_listener_open(&rank->options.listen_fd, &port, "127.0.0.1", 0, &error) ==
                      PD_OK,
                  "%s", error.message);
    (void)snprintf(rank->address, sizeof rank->address, "127.0.0.1:%" PRIu32, port);
}

int scripted_rank_connect(const struct scripted_rank *rank)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons((uint16_t)atoi(strrchr(rank->address, ':') + 1));
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

void scripted_exit_when_closed(const struct pd_event *event, struct pd_actions *actions)
{
    if (event->kind == PD_EVENT_CLOSED) {
        pd_actions_exit(actions, 7);
    }
}

static void *run_conversation(void *argument)
{
    const struct conversation *conversation = argument;
    conversation->converse(conversation->rank);
    return NULL;
}

int scripted_rank_run(struct scripted_rank *rank, void (*converse)(struct scripted_rank *rank))
{
    struct pd_error error = {0};
    struct conversation conversation = {rank, converse};
    pthread_t thread;

    ck_assert_msg(pd_signals_prepare(rank->options.launched, &error) == PD_OK, "%s", error.message);
    ck_assert_msg(pd_loop_create(&rank->loop, &rank->options, &error) == PD_OK, "%s",
                  error.message);
    if (converse != NULL) {
        ck_assert_int_eq(pthread_create(&thread, NULL, run_conversation, &conversation), 0);
    }
    int exit_code = pd_loop_run(rank->loop);
    if (converse != NULL) {
        ck_assert_int_eq(pthread_join(thread, NULL), 0);
    }
    pd_loop_destroy(rank->loop);
    ck_assert(!rank->engine.nested);
    return exit_code;
}
