/* What is fresh, through a running loop: as much of it as the socket takes leaves from the copy,
 * and no more than that. */
#include "tests/support/peer.h"
#include "tests/support/process.h"
#include "tests/support/scripted_engine.h"

#include <check.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

/* The copy is of the payload's bytes [begin, end). The first of them are right only there: every
 * socket takes so many. */
enum { ONLY_THERE_BYTES = 2000 };

static const struct fresh_case {
    size_t payload_bytes;
    size_t begin;
    size_t end;
} cases[] = {
    {5000, 1000, 3000},
    {5000, 0, 5000},
    {32 << 20, 0, (32 << 20) - 1000}, /* more than a socket holds */
};

static const struct fresh_case *now;
static uint8_t *payload;
static uint8_t *copy;

static uint8_t byte_at(size_t i)
{
    return (uint8_t)(i * 23 + i / 253);
}

/* Announce a payload, let it go, say a last word: after a message each. The engine's next step
 * overwrites what was fresh. */
static void react(struct pd_engine *engine, const struct pd_event *event,
                  struct pd_actions *actions)
{
    const struct pd_message reply = {.kind = PD_MESSAGE_ADMIN_REPLY};
    const struct pd_message last = {.kind = PD_MESSAGE_ERROR, .error = {.status = PD_EPROTOCOL}};
    uint32_t count = engine->counts[PD_EVENT_MESSAGE];

    if (event->kind == PD_EVENT_CLOSED) {
        pd_actions_exit(actions, 7);
    } else if (event->kind != PD_EVENT_MESSAGE) {
        return;
    } else if (count == 1) {
        pd_actions_send(actions, event->connection, &reply, payload, now->payload_bytes, true);
        pd_actions_hold_back(actions, 0);
    } else if (count == 2) {
        pd_actions_release(actions, event->connection, now->payload_bytes);
        actions->fresh = (struct pd_fresh){
            .payload = payload, .bytes = copy, .begin = now->begin, .end = now->end};
    } else {
        memset(copy, 0, now->end - now->begin);
        pd_actions_send(actions, event->connection, &last, NULL, 0, false);
    }
}

static void converse(struct scripted_rank *rank)
{
    const struct pd_message ping = {.kind = PD_MESSAGE_PING};
    struct peer *peer = peer_connect(rank->address);
    struct pollfd head = {.fd = peer_fd(peer), .events = POLLIN};

    peer_send(peer, &ping, NULL, 0);
    ck_assert_int_eq(poll(&head, 1, PROCESS_DEADLINE_MS), 1);
    peer_send(peer, &ping, NULL, 0);
    peer_send(peer, &ping, NULL, 0);
    (void)peer_expect(peer, PD_MESSAGE_ADMIN_REPLY);
    ck_assert_uint_eq(peer_payload_bytes(peer), now->payload_bytes);
    const uint8_t *bytes = peer_payload(peer);
    for (size_t i = 0; i < now->payload_bytes; i++) {
        if (bytes[i] != byte_at(i)) {
            ck_abort_msg("byte %zu is another", i);
        }
    }
    (void)peer_expect(peer, PD_MESSAGE_ERROR);
    peer_close(peer);
}

/* The peer checks the sum. */
START_TEST(what_leaves_at_once_is_the_copy_and_the_rest_the_payload)
{
    struct scripted_rank rank;
    now = &cases[_i];
    payload = malloc(now->payload_bytes);
    copy = malloc(now->end - now->begin);
    for (size_t i = 0; i < now->payload_bytes; i++) {
        payload[i] = byte_at(i);
    }
    memcpy(copy, payload + now->begin, now->end - now->begin);
    memset(payload + now->begin, 0, ONLY_THERE_BYTES);
    scripted_rank_init(&rank, react);

    ck_assert_int_eq(scripted_rank_run(&rank, converse), 7);

    ck_assert_uint_eq(rank.engine.counts[PD_EVENT_SENT], 1);
    free(copy);
    free(payload);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fresh");
    TCase *tcase = tcase_create("fresh");
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, what_leaves_at_once_is_the_copy_and_the_rest_the_payload, 0,
                        sizeof cases / sizeof cases[0]);
    suite_add_tcase(suite, tcase);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
