/* paramctl: asks the daemon and tells it what to do.
 * command line -> [paramctl] -> paramd_admin -> text for people. */
#ifndef PD_CLIENT_PARAMCTL_H
#define PD_CLIENT_PARAMCTL_H

#include "client/include/paramd.h"

#include <jansson.h>
#include <stdio.h>

/* Text of an answer for people, on `out`. `group` (NULL is allowed) limits a schedule to one group.
 * Errors: 0 if the answer does not look as the command's should. */
int paramctl_render(FILE *out, const char *command, const json_t *answer, const char *group);

/* The rows of a history as CSV with a heading; an empty field is a number that does not exist.
 * Errors: 0 if the answer is no history. */
int paramctl_render_csv(FILE *out, const json_t *answer);

/* The commands for gnuplot that draw the answer to `schedule` or `history` into a PNG file.
 * Errors: 0 if there is nothing to draw; nothing is written then. */
int paramctl_plot(FILE *out, const char *command, const json_t *answer, const char *file);

#endif
