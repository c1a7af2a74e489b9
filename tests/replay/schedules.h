/* A reference schedule as the daemon's configuration says it.
 * settings -> [schedules]. Pure. */
#ifndef PD_TESTS_REPLAY_SCHEDULES_H
#define PD_TESTS_REPLAY_SCHEDULES_H

#include "tests/replay/case.h"

/* The list of schedules that gives the rates of a schedule case; new, for json_decref. NULL if the
 * product does not offer it; the result says what is missing. */
json_t *schedules_of(const json_t *document, struct replay_result *result);

#endif
