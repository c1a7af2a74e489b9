/* A peer that says exactly what a test wants said, right or wrong, byte by byte.
 * test -> [peer] -> a rank's port. Blocking, with a deadline on every call; failures end the
 * running Check test. */
#ifndef PD_TESTS_SUPPORT_PEER_H
#define PD_TESTS_SUPPORT_PEER_H

#include "common/frame.h"

struct peer; /* one connection */

/* Connect to "host:port". Ownership: the caller's, for peer_close. */
struct peer *peer_connect(const char *address);
/* The same, with the smallest receive buffer, so that what is not read soon stops the sender. */
struct peer *peer_connect_narrow(const char *address);
/* NULL is allowed. */
void peer_close(struct peer *peer);
/* Close so that the other end sees a reset. */
void peer_reset(struct peer *peer);
int peer_fd(const struct peer *peer);

/* ---- Saying ---- */

void peer_send_bytes(struct peer *peer, const void *bytes, size_t byte_count);
/* A frame as it should be; `payload` may be NULL. */
void peer_send(struct peer *peer, const struct pd_message *message, const void *payload,
               size_t payload_bytes);
/* The same with a checksum behind it, exclusive-or'ed with `damage`. */
void peer_send_summed(struct peer *peer, const struct pd_message *message, const void *payload,
                      size_t payload_bytes, uint64_t damage);
/* Prefix and header of a frame that announces `payload_bytes`, and nothing more. */
void peer_send_head(struct peer *peer, const struct pd_message *message, uint64_t payload_bytes);
/* A prefix with any numbers in it. */
void peer_send_prefix(struct peer *peer, const char magic[4], uint16_t version, uint16_t kind,
                      uint32_t header_bytes, uint32_t flags, uint64_t payload_bytes);
/* No more will be sent; reading goes on. */
void peer_shut(struct peer *peer);

/* ---- Hearing ---- */

/* The next message, with its payload in peer_payload; NULL when the other end closed. The peer's,
 * until the next one. */
const struct pd_message *peer_receive(struct peer *peer);
const void *peer_payload(const struct peer *peer);
size_t peer_payload_bytes(const struct peer *peer);

/* The next message, which must be of that kind. */
const struct pd_message *peer_expect(struct peer *peer, enum pd_message_kind kind);
/* The next message must be an Error of that status whose text contains `text`. */
void peer_expect_error(struct peer *peer, enum pd_status status, bool fatal, const char *text);
/* The same, and the connection must be closed behind it. */
void peer_expect_fatal(struct peer *peer, enum pd_status status, const char *text);
/* The connection must be closed, without another message. */
void peer_expect_closed(struct peer *peer);

/* ---- Conversations ---- */

/* Hello as a guest. */
const struct pd_welcome *peer_hello(struct peer *peer);
/* Hello as the worker of a Joined. */
const struct pd_welcome *peer_resume(struct peer *peer, const struct pd_joined *joined,
                                     uint64_t run_id);
/* Hello and Join; `run_id` may be NULL. */
struct pd_joined peer_join(struct peer *peer, const char *name, uint64_t *run_id);

/* A worker that has joined and registered, with a connection to each lane that has elements. */
struct peer_worker {
    struct pd_joined joined;
    struct pd_registered registered;
    uint64_t run_id;
    struct peer *leader;
    struct peer *lanes[PD_RANK_COUNT_MAX]; /* may be `leader` itself; NULL where there is nothing */
};

/* Join at rank 0's address, register `model` and, if asked for, supply `values`; wait until there
 * are parameters. */
void peer_worker_init(struct peer_worker *worker, const char *address, const char *name,
                      const struct pd_tensor_list *model, const float *values);
void peer_worker_finish(struct peer_worker *worker);

/* Push a whole contribution of float32 elements for `step` to every lane; it is not awaited. */
void peer_worker_push(struct peer_worker *worker, uint64_t step, uint64_t samples,
                      const float *gradient, bool pull);
/* The Push message of one lane, as it should be. */
struct pd_message peer_worker_push_message(const struct peer_worker *worker, uint32_t lane,
                                           uint64_t step, uint64_t samples);

#endif
