/* The log: one line per fact on stderr, with the time and the rank.
 * loop, daemon -> [log]. The only writer of stderr once the daemon runs; any thread may call it. */
#ifndef PD_SERVER_IO_LOG_H
#define PD_SERVER_IO_LOG_H

#include "common/error.h"

#include <stdint.h>

/* Say whose lines these are; before it is called lines carry no rank. */
void pd_log_set_rank(uint32_t rank);

/* Write "TIME rank N: TEXT" in one piece, so that lines of several ranks do not mix. */
void pd_log(const char *format, ...) PD_PRINTF(1, 2);

#endif
