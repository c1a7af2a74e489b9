/* The checksum of a frame: XXH3-64 over its header and payload bytes, taken in pieces as they pass
 * while they are still in cache. Pure. */
#ifndef PD_COMMON_CHECKSUM_H
#define PD_COMMON_CHECKSUM_H

#include "common/error.h"

#include <stddef.h>
#include <stdint.h>

struct pd_checksum; /* owned by one frame reader or writer */

PD_MUST_CHECK
enum pd_status pd_checksum_create(struct pd_checksum **out, struct pd_error *error);
void pd_checksum_destroy(struct pd_checksum *checksum);

/* Start a new sum; also after create. */
void pd_checksum_reset(struct pd_checksum *checksum);
void pd_checksum_update(struct pd_checksum *checksum, const void *bytes, size_t byte_count);
/* The same for bytes that are not in a cache, asking memory ahead for those that come next: half as
 * fast again. Where nothing follows, it asks for what may be anything; nothing happens there. */
void pd_checksum_update_from_memory(struct pd_checksum *checksum, const void *bytes,
                                    size_t byte_count);
uint64_t pd_checksum_value(const struct pd_checksum *checksum);

#endif
