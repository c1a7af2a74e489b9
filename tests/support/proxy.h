/* A network between workers and ranks that a test can make fail, frame by frame.
 * client library -> [proxy] -> rank. A thread per connection and direction.
 *
 * The daemon listens where proxy_listen says and advertises PROXY_HOST: workers that go to an
 * address of the daemon's come through the proxy without knowing. */
#ifndef PD_TESTS_SUPPORT_PROXY_H
#define PD_TESTS_SUPPORT_PROXY_H

#include "common/message.h"

/* The loopback address at which the proxy stands for every rank. */
#define PROXY_HOST "127.0.0.2"

/* One frame on its way, seen before any of it is passed on. */
struct proxy_frame {
    uint32_t rank;
    bool to_rank; /* else from it */
    enum pd_message_kind kind;
    uint64_t payload_bytes;
    uint32_t index; /* of this kind, direction and rank, from 0, over all connections */
};

enum proxy_verdict {
    PROXY_PASS,
    PROXY_CUT,        /* pass nothing of it: break the connection */
    PROXY_CUT_MIDDLE, /* pass about half of it, then break the connection */
    PROXY_CUT_AFTER,  /* pass it, then break the connection */
};

/* Called for frames of workers, one at a time; connections between ranks are left alone. */
typedef enum proxy_verdict proxy_judge(void *context, const struct proxy_frame *frame);

struct proxy;

/* Stand for `rank_count` ranks. Ownership: the caller's, for proxy_stop. */
struct proxy *proxy_start(uint32_t rank_count, proxy_judge *judge, void *context);
void proxy_stop(struct proxy *proxy);

/* "host:port" for the daemon's `listen`. */
const char *proxy_listen(const struct proxy *proxy);

/* What has gone by in whole frames that were passed on. */
struct proxy_count {
    uint64_t frames;
    uint64_t payload_bytes;
};
struct proxy_count proxy_counted(struct proxy *proxy, bool to_rank, enum pd_message_kind kind);
uint32_t proxy_connection_count(struct proxy *proxy);

#endif
