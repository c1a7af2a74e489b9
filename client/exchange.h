/* The connections of one handle, and the loop that carries requests over all of them at once.
 * client -> request -> [exchange] -> stream -> socket. Shell: it waits in poll, and looks before it
 * does as busy_poll says.
 * Owner: whoever holds the handle's lock.
 *
 * A connection:
 *
 *             open             writable             Welcome
 *   CLOSED ----------> CONNECTING ------> GREETING ---------> READY
 *      ^                   |                  |                 |
 *      `------- lost ------+------------------+-----------------'
 *
 * During a call a lost connection is opened again, after a pause that doubles from 20 ms to 2 s
 * with a random part, until the call's deadline. */
#ifndef PD_CLIENT_EXCHANGE_H
#define PD_CLIENT_EXCHANGE_H

#include "client/busy_poll.h"
#include "client/pace.h"
#include "client/request.h"
#include "client/stream.h"
#include "client/zero_copy.h"

/* Of this library alone; equal to PARAMD_EINTERRUPTED. */
#define PD_STATUS_INTERRUPTED ((enum pd_status)100)

/* No deadline. */
#define PD_NEVER_MS UINT64_MAX

enum pd_connection_state {
    PD_CONNECTION_CLOSED,
    PD_CONNECTION_CONNECTING,
    PD_CONNECTION_GREETING,
    PD_CONNECTION_READY,
};

/* Ownership: made by pd_exchange_connection, freed by pd_exchange_finish. */
struct pd_connection {
    enum pd_connection_state state;
    bool rank_known; /* false until the first Welcome of the address the user gave */
    uint32_t rank;
    char address[PD_ADDRESS_BYTES_MAX + 1];
    int socket;
    bool local; /* the rank is on this host */
    struct pd_pace pace;
    struct pd_zero_copy zero_copy; /* of the socket */
    struct pd_sender sender;
    struct pd_receiver receiver;
    struct pd_request *request; /* NULL: no part in the call */
    uint32_t address_index;     /* of those the address stands for: the one tried now */
    uint32_t address_count;
    uint32_t attempt;        /* failures in a row */
    uint64_t retry_ms;       /* CLOSED: not before */
    uint64_t sent_ms;        /* when something last left: a lease runs from here */
    struct pd_position next; /* as the rank said last: all pushes before it are accepted */
    struct pd_error fault;   /* why it was lost last */
};

/* What all connections of a handle have in common. */
struct pd_exchange {
    bool checksum;
    int (*interrupted)(void *context);
    void *interrupted_context;
    uint64_t asked_ms; /* when `interrupted` was called last */
    int wake; /* an eventfd that ends a wait: more may be sent, or the call be ended; -1: none */
    char host[PD_HOST_BYTES_MAX + 1];
    struct pd_joined worker; /* once joined */
    bool joined;
    uint64_t run_id;           /* once joined; 0: any will do */
    struct pd_welcome welcome; /* the last one */
    bool draining;             /* the daemon said so */
    uint64_t draining_step;
    uint64_t random;
    struct pd_busy_poll busy_poll;
    struct pd_connection *connections[PD_RANK_COUNT_MAX + 1];
    uint32_t connection_count;
};

/* One call, from its start to its deadline. */
struct pd_call {
    const char *name; /* "pull", before every message */
    uint64_t start_ms;
    uint64_t deadline_ms;
    uint64_t connect_deadline_ms; /* as long as nobody answers at an address */
    const struct pd_gate *gate; /* its deadlines run from when this is open; NULL: from start_ms */
};

/* No wait for an answer looks for it longer than `look_ns_max`; 0: none does. */
void pd_exchange_init(struct pd_exchange *exchange, uint64_t look_ns_max);
void pd_exchange_finish(struct pd_exchange *exchange);

/* The connection to a rank, closed at first; every call with that rank gives the same one.
 * Errors: PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_exchange_connection(struct pd_exchange *exchange, uint32_t rank,
                                      const char *address, struct pd_connection **out,
                                      struct pd_error *error);

/* The same if there is one already, or NULL. */
struct pd_connection *pd_exchange_find(const struct pd_exchange *exchange, uint32_t rank);

/* The connection to whatever rank answers at the address; its Welcome says which.
 * Errors: PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_exchange_contact(struct pd_exchange *exchange, const char *address,
                                   struct pd_connection **out, struct pd_error *error);

/* Close and forget a connection. */
void pd_exchange_drop(struct pd_exchange *exchange, struct pd_connection *connection);

/* Carry out the requests that the connections hold, all at once; afterwards none holds one. On
 * failure, connections that are in the middle of something are closed, to be resumed by the next
 * call. Errors: those of the requests; PD_ETIMEOUT, PD_ECONNECTION, PD_EDRAINING,
 * PD_STATUS_INTERRUPTED. */
PD_MUST_CHECK
enum pd_status pd_exchange_run(struct pd_exchange *exchange, const struct pd_call *call,
                               struct pd_error *error);

/* Between calls of a worker: send a Ping on each connection that has been silent for a third of the
 * lease, and resume those that were lost; returns when to come back. */
uint64_t pd_exchange_keep_alive(struct pd_exchange *exchange, uint64_t now_ms);

#endif
