/* What a text may be: one line of UTF-8 without control characters, so that it can go into a log,
 * a terminal and JSON as it is. Used wherever a text comes from a peer or a user. Pure. */
#ifndef PD_COMMON_TEXT_H
#define PD_COMMON_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* Whether the bytes are well-formed UTF-8 (RFC 3629) without control characters. */
bool pd_text_valid(const char *text, size_t byte_count);

/* Make a NUL-terminated text valid in place: each byte that breaks the rule becomes '?', and a
 * character cut off at the end goes away. */
void pd_text_clean(char *text);

#endif
