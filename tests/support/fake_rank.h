/* A rank that says to a client exactly what a test wants said.
 * test -> [fake rank] -> the client library. A script runs in a thread and serves one connection at
 * a time; whatever it did not expect ends the process, and so the test. */
#ifndef PD_TESTS_SUPPORT_FAKE_RANK_H
#define PD_TESTS_SUPPORT_FAKE_RANK_H

#include "common/frame.h"

#include <pthread.h>

struct fake_rank;
typedef void fake_script(struct fake_rank *fake, void *context);

struct fake_rank {
    uint32_t rank;
    uint64_t run_id;   /* of its Welcome */
    uint32_t lease_ms; /* of its Welcome */
    char leader[64];   /* of its Welcome; its own address at first */
    char address[64];
    int listener;
    int socket; /* -1: no connection */
    struct pd_frame_reader *reader;
    uint8_t *payload; /* of the message received last */
    size_t payload_bytes;
    bool checksum_ok;
    uint32_t pings; /* passed over so far */
    uint64_t payload_bytes_total;
    pthread_t thread;
    fake_script *script;
    void *context;
};

/* Listen on a port of the kernel's choice. */
void fake_rank_init(struct fake_rank *fake, uint32_t rank);
/* Hold a port at which nobody answers: as long as it is held nobody else does. */
void fake_rank_init_deaf(struct fake_rank *fake);
/* Run the script in a thread. */
void fake_rank_run(struct fake_rank *fake, fake_script *script, void *context);
/* Wait for the end of the script and close everything. */
void fake_rank_finish(struct fake_rank *fake);

/* ---- In a script ---- */

void fake_accept(struct fake_rank *fake);
void fake_hang_up(struct fake_rank *fake);
/* The client must close the connection, after pings alone. */
void fake_expect_end(struct fake_rank *fake);

/* The next message but pings, which must be of that kind; the rank's until the next one. */
const struct pd_message *fake_receive(struct fake_rank *fake, enum pd_message_kind kind);
/* Wait until something has come, and leave it there. */
void fake_await(struct fake_rank *fake);
/* Read raw bytes and throw them away. */
void fake_swallow(struct fake_rank *fake, size_t byte_count);
/* Pass over pings for so long. */
void fake_idle(struct fake_rank *fake, uint32_t ms);

/* A frame with a checksum that is exclusive-or'ed with `damage`. */
void fake_send(struct fake_rank *fake, const struct pd_message *message, const void *payload,
               size_t payload_bytes, uint64_t damage);
void fake_send_kind(struct fake_rank *fake, enum pd_message_kind kind);
void fake_send_error(struct fake_rank *fake, enum pd_status status, const char *text, bool fatal);

/* Accept, and answer Hello with a Welcome that expects this push next. The Hello is returned. */
struct pd_hello fake_welcome(struct fake_rank *fake, uint64_t next_step, uint32_t next_micro_batch);
/* Answer Join. */
void fake_join(struct fake_rank *fake, uint32_t accumulation_steps);
/* Answer Register with these lanes. */
void fake_register(struct fake_rank *fake, const struct pd_lane *lanes, uint32_t lane_count,
                   bool values_needed, uint64_t step);
/* Send this version of a lane's parameters. */
void fake_send_pulled(struct fake_rank *fake, const struct pd_lane *lane, uint64_t version,
                      const float *values, uint64_t damage);
/* Acknowledge the push that was received last. */
void fake_send_pushed(struct fake_rank *fake, bool duplicate);

#endif
