/* What plain sockets allow: servers that do nothing but average, take an AdamW step and send the
 * result, block by block while the block is in cache, each with a part of the parameters; and their
 * client. One thread a server, one connection to each from each worker.
 * crew -> [limit] -> sockets. A round trip of paramd is compared with it. */
#ifndef PD_TESTS_BENCH_LIMIT_H
#define PD_TESTS_BENCH_LIMIT_H

#include "common/error.h"
#include "tests/bench/options.h"

#include <sys/types.h>

#define LIMIT_SERVER_COUNT_MAX 2u

/* The servers as their starter sees them. */
struct limit_servers {
    enum bench_limit kind;
    uint32_t count;
    uint32_t worker_count;
    uint64_t element_count; /* of all servers together */
    int listening[LIMIT_SERVER_COUNT_MAX];
    uint16_t ports[LIMIT_SERVER_COUNT_MAX];
};

/* Listen on loopback, on ports of the kernel's choice. */
PD_MUST_CHECK
enum pd_status limit_servers_listen(struct limit_servers *servers, enum bench_limit kind,
                                    uint32_t worker_count, uint64_t element_count,
                                    struct pd_error *error);

/* Be server number `index`: wait for the workers, then serve them until the first closes its
 * connection. */
PD_MUST_CHECK
enum pd_status limit_serve(const struct limit_servers *servers, uint32_t index,
                           struct pd_error *error);

struct limit_client;

/* Connect to every server; the arrays hold element_count elements and are borrowed. */
PD_MUST_CHECK
enum pd_status limit_client_create(struct limit_client **out, const struct limit_servers *servers,
                                   const float *gradient, float *values, struct pd_error *error);
void limit_client_destroy(struct limit_client *client);

/* Push the gradient and pull what became of it. */
PD_MUST_CHECK
enum pd_status limit_client_step(struct limit_client *client, struct pd_error *error);

#endif
