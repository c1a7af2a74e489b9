/* What a simulated worker has with one rank: a connection that it opens again when it is lost, what
 * it asks there, and what it makes of the answers. worker -> [contact] -> network, ledger, oracle.
 *
 *   CLOSED -> OPENING -> GREETING -> READY, and back to CLOSED from anywhere */
#ifndef PD_TESTS_SIMULATION_CONTACT_H
#define PD_TESTS_SIMULATION_CONTACT_H

#include "tests/simulation/worker.h"

/* The worker's contact with that rank, which is made if there is none. */
struct sim_contact *sim_contact_of(struct sim_worker *worker, uint32_t rank);

/* For how long the worker of the contact `owner` does nothing: 0 when it is awake. */
uint64_t sim_contact_asleep_us(void *owner);

void sim_contact_say(struct sim_contact *contact, const struct pd_message *message,
                     const void *payload, uint64_t payload_bytes);

/* Ask the rank for something, until it has answered: sim_worker_next_phase follows once all have.
 */
void sim_contact_request(struct sim_contact *contact, enum sim_request kind);
/* Ask every lane that has elements. */
void sim_contact_request_lanes(struct sim_worker *worker, enum sim_request kind);

/* The micro-batch being pushed, of gradients or of estimates. */
uint32_t sim_contact_pushed_micro_batch(const struct sim_worker *worker);

/* ---- worker: what a contact tells it ---- */

/* All that was asked for is there. */
void sim_worker_next_phase(struct sim_worker *worker);
/* It takes part from `step` on: see for how long. */
void sim_worker_plan_stay(struct sim_worker *worker);
/* The daemon has thrown it out, or drains. */
void sim_worker_told_gone(struct sim_worker *worker, const char *text);
/* This process is over; a new one may come. */
void sim_worker_end(struct sim_worker *worker, bool in_good_order, bool returns);

#endif
