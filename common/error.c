#include "common/error.h"

#include "common/assert.h"
#include "common/text.h"

#include <stdio.h>
#include <string.h>

static const char *const status_names[] = {
    [PD_OK] = "ok",
    [PD_ENOMEM] = "nomem",
    [PD_EPROTOCOL] = "protocol",
    [PD_EVERSION] = "version",
    [PD_ELIMIT] = "limit",
    [PD_ECHECKSUM] = "checksum",
    [PD_EINVALID] = "invalid",
    [PD_EMODEL] = "model",
    [PD_ESTEP] = "step",
    [PD_EIDENTITY] = "identity",
    [PD_EDRAINING] = "draining",
    [PD_ETIMEOUT] = "timeout",
    [PD_ECONNECTION] = "connection",
    [PD_ECONFIG] = "config",
    [PD_EIO] = "io",
    [PD_EREFUSED] = "refused",
    [PD_EDUPLICATE] = "duplicate",
};

#undef pd_error_set /* the analyzer's stand-in */
enum pd_status pd_error_set(struct pd_error *error, enum pd_status status, const char *format, ...)
{
    if (error == NULL) {
        return status;
    }

    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    pd_text_clean(error->message);
    error->status = status;
    return status;
}

enum pd_status pd_error_prefix(struct pd_error *error, const char *format, ...)
{
    PD_ASSERT(error != NULL);
    char first[PD_ERROR_BYTES_MAX];
    char both[PD_ERROR_BYTES_MAX * 2 + 2];

    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(first, sizeof first, format, arguments);
    va_end(arguments);
    (void)snprintf(both, sizeof both, "%s: %s", first, error->message);
    memcpy(error->message, both, sizeof error->message - 1);
    error->message[sizeof error->message - 1] = '\0';
    pd_text_clean(error->message);
    return error->status;
}

const char *pd_status_name(enum pd_status status)
{
    size_t index = (size_t)status;
    return index < sizeof status_names / sizeof status_names[0] ? status_names[index] : "unknown";
}
