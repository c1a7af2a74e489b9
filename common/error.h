/* Statuses and the one-line message that goes with them.
 * Set by whoever detects a fault, passed up unchanged, shown to a peer or a user at the end. */
#ifndef PD_COMMON_ERROR_H
#define PD_COMMON_ERROR_H

#include "common/limits.h"

#include <stdarg.h>

#define PD_MUST_CHECK __attribute__((warn_unused_result))
#define PD_PRINTF(format_index, first_argument)                                                    \
    __attribute__((format(printf, format_index, first_argument)))

/* The numbers go over the wire in an ERROR message (proto/README.md): never renumber. */
enum pd_status {
    PD_OK = 0,
    PD_ENOMEM = 1,       /* an allocation failed */
    PD_EPROTOCOL = 2,    /* bytes that are no frame, no message, or one out of order */
    PD_EVERSION = 3,     /* a protocol version this build does not speak */
    PD_ELIMIT = 4,       /* a length or count over its limit */
    PD_ECHECKSUM = 5,    /* payload bytes do not match their checksum */
    PD_EINVALID = 6,     /* a value that is not allowed */
    PD_EMODEL = 7,       /* names, shapes, types or lengths that disagree with the model */
    PD_ESTEP = 8,        /* a step from the past or the future */
    PD_EIDENTITY = 9,    /* an unknown or evicted worker, or a name another worker holds */
    PD_EDRAINING = 10,   /* the daemon is stopping */
    PD_ETIMEOUT = 11,    /* a deadline passed */
    PD_ECONNECTION = 12, /* a connection could not be made or was lost */
    PD_ECONFIG = 13,     /* a configuration that is not allowed */
    PD_EIO = 14,         /* a file or device failed */
    PD_EREFUSED = 15,    /* understood, but not offered in this state or version */
    PD_EDUPLICATE = 16,  /* done already; nothing changed */
};

/* Invariant: `message` is one line without a newline, NUL-terminated; empty when PD_OK. */
struct pd_error {
    enum pd_status status;
    char message[PD_ERROR_BYTES_MAX];
};

/* Fill `error` (NULL is allowed) and return `status`, so that a caller can return it at once. */
enum pd_status pd_error_set(struct pd_error *error, enum pd_status status, const char *format, ...)
    PD_PRINTF(3, 4);

/* Put `format` and ": " before the message of an error that is already set. */
enum pd_status pd_error_prefix(struct pd_error *error, const char *format, ...) PD_PRINTF(2, 3);

#ifdef __clang_analyzer__
/* The analyzer looks at one file at a time: without this it takes a fault set for PD_OK. */
#define pd_error_set(error, status, ...)                                                           \
    ((void)(pd_error_set)(error, status, __VA_ARGS__), (status))
#endif

/* The status as a word, such as "checksum"; "unknown" for a number outside the list. */
const char *pd_status_name(enum pd_status status);

#endif
