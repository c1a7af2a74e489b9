#include "tests/replay/case.h"

#include "tests/support/vectors.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

void replay_say(struct replay_result *result, enum replay_verdict verdict, const char *format, ...)
{
    va_list arguments;

    result->verdict = verdict;
    va_start(arguments, format);
    vsnprintf(result->text, sizeof result->text, format, arguments);
    va_end(arguments);
    for (char *at = result->text; *at != '\0'; at++) {
        *at = *at == '\n' ? ' ' : *at;
    }
}

bool replay_take_error(struct replay_result *result, double error)
{
    bool first = error > 1 && !(result->worst_error > 1);

    result->worst_error = fmax(result->worst_error, error);
    return first;
}

bool replay_is_case(const json_t *document)
{
    return json_is_string(json_object_get(document, "case"));
}

void replay_case(const struct replay_options *options, const char *directory, const char *name,
                 struct replay_result *result)
{
    json_t *document = vectors_load(directory, name);

    *result = (struct replay_result){.verdict = REPLAY_PASSED, .worst_error = NAN};
    if (json_object_get(document, "op") != NULL) {
        replay_calls(options, document, result);
    } else if (json_object_get(document, "schedule") != NULL) {
        replay_rates(options, document, result);
    } else if (json_object_get(document, "steps") != NULL) {
        replay_trajectory(options, directory, name, result);
    } else {
        replay_say(result, REPLAY_FAILED, "neither op, schedule nor steps: a case of unknown kind");
    }
    json_decref(document);
}
