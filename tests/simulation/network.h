/* Connections between ranks and workers in virtual time: frames in order on each connection, at
 * random speed, and with the faults of a plan: losses at any moment, damaged payloads. worker,
 * cluster -> [network] -> cluster, worker. */
#ifndef PD_TESTS_SIMULATION_NETWORK_H
#define PD_TESTS_SIMULATION_NETWORK_H

#include "common/message.h"
#include "tests/simulation/agenda.h"

struct sim_link;

/* What an end is told. `side` is its own: 0 opened the connection, 1 accepted it. */
struct sim_end_calls {
    /* For how long it takes nothing in: 0 when it is awake. */
    uint64_t (*asleep_us)(void *owner);
    /* False refuses the connection. */
    bool (*opened)(void *owner, struct sim_link *link, int side);
    /* With payload_bytes > 0 the stream waits for sim_link_place or drop, and again whenever a
     * place is full. */
    void (*message)(void *owner, struct sim_link *link, int side, const struct pd_message *message,
                    uint64_t payload_bytes, bool has_checksum);
    void (*payload)(void *owner, struct sim_link *link, int side, bool checksum_ok);
    /* `payload_bytes` have come of the payload, when `received`. */
    void (*progress)(void *owner, struct sim_link *link, int side, bool received,
                     uint64_t payload_bytes);
    /* The payload of its last frame has left. */
    void (*sent)(void *owner, struct sim_link *link, int side);
    void (*closed)(void *owner, struct sim_link *link, int side, const char *why);
};

struct sim_end {
    const struct sim_end_calls *calls;
    void *owner;
    uint32_t id; /* the owner's own */
    bool open;   /* has been told that it is */
    bool shut;   /* closes: takes nothing in any more */
    bool gone;   /* has been told that it is closed, or does not care */
};

struct sim_frame {
    uint8_t *bytes; /* prefix and header */
    size_t byte_count;
    const void *payload;         /* the sender's until it is told, or `copy` */
    enum pd_dtype payload_dtype; /* what the sender's is converted to on its way */
    uint8_t *copy;
    uint64_t payload_bytes;
    uint64_t payload_ready; /* what the sender lets go */
    uint64_t serial;
    bool checksum;
    bool told; /* the sender knows that it has left */
};

enum sim_stage {
    SIM_STAGE_IDLE,
    SIM_STAGE_MESSAGE, /* the header is on its way */
    SIM_STAGE_PLACE,   /* the receiver has yet to say where the payload goes */
    SIM_STAGE_PAYLOAD,
};

/* The frames from one end to the other. */
struct sim_way {
    struct sim_frame *frames; /* [begin, end) wait; the first is the one on its way */
    size_t begin;
    size_t end;
    size_t capacity;
    enum sim_stage stage;
    uint8_t *destination; /* of the next byte */
    uint64_t placed;      /* bytes of the payload that have a place, or are dropped */
    uint64_t delivered;   /* bytes of the payload */
    bool stalled;         /* all that may go has gone */
    bool ending;          /* its sender has closed: nothing follows what is queued */
};

struct sim_link {
    struct sim_network *network;
    uint64_t number;
    struct sim_end ends[2];
    struct sim_way ways[2]; /* by sender */
    bool faulty;            /* may be lost or damage payloads */
    bool cut;
    bool lazy;     /* takes payloads over from their sender only as they are read */
    uint32_t slow; /* side 0 takes that many times longer to read */
};

struct sim_network {
    struct sim_agenda *agenda;
    uint64_t delay_us_max;    /* of a frame, usually */
    uint64_t straggle_one_in; /* frames that take up to a hundred times longer */
    uint64_t cut_one_in;      /* losses, by moment of a frame's way */
    uint64_t damage_one_in;   /* payloads */
    uint64_t notice_us_max;   /* until an end sees that the connection is lost */
    struct sim_link **links;
    size_t link_count;
    size_t link_capacity;
    uint64_t frame_serial;
    uint64_t cut_count;
    uint64_t damage_count;
    struct pd_message message; /* scratch */
};

void sim_network_init(struct sim_network *network, struct sim_agenda *agenda);
void sim_network_finish(struct sim_network *network);

/* Open a connection: the acceptor is told first; a refusal closes it. Ownership: the network's. */
struct sim_link *sim_connect(struct sim_network *network, const struct sim_end *opener,
                             const struct sim_end *acceptor, bool faulty);

/* Send prefix and header, which are copied, and a payload, which is borrowed until `sent` or
 * `closed` and converted as it is read; beyond its first `payload_ready` bytes it is held back
 * until released. */
void sim_link_send(struct sim_link *link, int side, const uint8_t *bytes, size_t byte_count,
                   const void *payload, enum pd_dtype payload_dtype, uint64_t payload_bytes,
                   uint64_t payload_ready, bool checksum);
void sim_link_release(struct sim_link *link, int side, uint64_t payload_ready);
/* Send a message of a peer's: encoded here. The payload is copied. */
void sim_link_say(struct sim_link *link, int side, const struct pd_message *message,
                  const void *payload, uint64_t payload_bytes, bool checksum);

/* So many more bytes of the payload announced to `side` go there. */
void sim_link_place(struct sim_link *link, int side, void *destination, uint64_t byte_count);
/* What has not come of that payload is dropped. */
void sim_link_drop(struct sim_link *link, int side);

/* Close from one side, after what is queued when `flush`. That side is told, too. */
void sim_link_close(struct sim_link *link, int side, bool flush);
/* Side `side` has died: it is told nothing any more. */
void sim_link_die(struct sim_link *link, int side);
/* Lose the connection; both sides notice in their own time. */
void sim_link_cut(struct sim_link *link);

#endif
