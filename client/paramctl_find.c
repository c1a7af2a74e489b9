#include "client/paramctl.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Between two questions how far the search is. */
#define POLL_NS 100000000L

static enum paramd_status ask(struct paramd_client *client, const struct paramd_command *command,
                              json_t **answer, struct paramd_error *error)
{
    char *text = NULL;
    json_error_t fault;

    *answer = NULL;
    enum paramd_status status = paramd_admin(client, command, &text, error);
    if (status != PARAMD_OK) {
        return status;
    }
    *answer = json_loads(text, 0, &fault);
    paramd_free(text);
    if (!json_is_object(*answer)) {
        json_decref(*answer);
        *answer = NULL;
        error->status = PARAMD_EPROTOCOL;
        snprintf(error->message, sizeof error->message, "%s: the answer is no JSON object",
                 command->command);
        return PARAMD_EPROTOCOL;
    }
    return PARAMD_OK;
}

/* Ask for the points beyond those that have been shown, until the search is over. */
static enum paramd_status follow(struct paramd_client *client, FILE *out,
                                 struct paramd_error *error)
{
    struct paramd_command command = {.command = "lr-curve"};
    const struct timespec pause = {.tv_nsec = POLL_NS};

    for (;;) {
        json_t *answer;
        enum paramd_status status = ask(client, &command, &answer, error);
        if (status != PARAMD_OK) {
            return status;
        }
        bool over = json_is_true(json_object_get(answer, "over"));
        command.begin += json_array_size(json_object_get(answer, "rows"));
        if (out != NULL) {
            paramctl_render_points(out, answer);
            fflush(out);
        }
        json_decref(answer);
        if (over) {
            return PARAMD_OK;
        }
        nanosleep(&pause, NULL);
    }
}

/* Whether the search came to something. */
static enum paramd_status check_end(const json_t *curve, struct paramd_error *error)
{
    const char *end = json_string_value(json_object_get(curve, "end"));
    const char *reason = json_string_value(json_object_get(curve, "reason"));

    if (end != NULL && (strcmp(end, "finished") == 0 || strcmp(end, "diverged") == 0)) {
        return PARAMD_OK;
    }
    error->status = PARAMD_EREFUSED;
    snprintf(error->message, sizeof error->message, "lr-find %s: %.400s",
             end != NULL ? end : "has no end", reason != NULL ? reason : "no reason is given");
    return PARAMD_EREFUSED;
}

enum paramd_status paramctl_find(struct paramd_client *client, const struct paramd_command *find,
                                 FILE *out, json_t **curve, struct paramd_error *error)
{
    const struct paramd_command whole = {.command = "lr-curve"};
    json_t *begun;

    *curve = NULL;
    enum paramd_status status = ask(client, find, &begun, error);
    if (status != PARAMD_OK) {
        return status;
    }
    if (out != NULL) {
        (void)paramctl_render(out, find->command, begun, NULL);
        paramctl_render_points_heading(out);
    }
    json_decref(begun);
    status = follow(client, out, error);
    if (status == PARAMD_OK) {
        status = ask(client, &whole, curve, error);
    }
    return status == PARAMD_OK ? check_end(*curve, error) : status;
}
