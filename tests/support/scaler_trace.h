/* GradScaler's traces against the product's loss scale.
 * vectors -> [scaler_trace] -> unit tests, paramd-replay. */
#ifndef PD_TESTS_SUPPORT_SCALER_TRACE_H
#define PD_TESTS_SUPPORT_SCALER_TRACE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* Whether the scale follows the trace, a "grad_scaler" case, to the bit; if not, `text` gets where
 * it first does not. */
bool scaler_trace_holds(const json_t *document, char *text, size_t text_bytes);

#endif
