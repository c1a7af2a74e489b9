/* What a case says of a step besides its parameters: the loss scale, whether it is skipped, the
 * norm of its gradient, and the average of the parameters after it. trajectory -> [checks]. The
 * running Check test fails if the daemon does not answer. */
#ifndef PD_TESTS_REPLAY_CHECKS_H
#define PD_TESTS_REPLAY_CHECKS_H

#include "client/include/paramd.h"
#include "tests/replay/case.h"
#include "tests/support/vectors.h"

/* Before a worker pushes for the step. */
void checks_before(const struct vectors_case *reference, uint32_t step,
                   struct paramd_client *client, struct replay_result *result);

/* After a worker has pulled what the step came to. */
void checks_after(const struct vectors_case *reference, uint32_t step, struct paramd_client *client,
                  struct replay_result *result);

#endif
