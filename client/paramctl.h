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

/* The rows of a history or curve as CSV with a heading; an empty field is a number that does not
 * exist. Errors: 0 if the answer has no rows. */
int paramctl_render_csv(FILE *out, const char *command, const json_t *answer);

/* Of an answer to lr-curve: the heading of its points, its points, and what came out. */
void paramctl_render_points_heading(FILE *out);
void paramctl_render_points(FILE *out, const json_t *answer);
void paramctl_render_search_end(FILE *out, const json_t *answer);

/* Drive a search for a learning rate to its end, showing its points on `out` as they come; NULL:
 * nothing is shown. *curve, for json_decref, is the answer to lr-curve then.
 * Errors: as paramd_admin; PARAMD_EREFUSED, with a curve, if the search failed or was cancelled. */
enum paramd_status paramctl_find(struct paramd_client *client, const struct paramd_command *find,
                                 FILE *out, json_t **curve, struct paramd_error *error);

/* The commands for gnuplot that draw the answer to schedule, history or lr-curve into a PNG file.
 * Errors: 0 if there is nothing to draw; nothing is written then. */
int paramctl_plot(FILE *out, const char *command, const json_t *answer, const char *file);

#endif
