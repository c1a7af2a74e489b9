/* The checksum of a frame: CRC-64/XZ over its header and payload bytes, taken in pieces as they
 * pass while they are still in cache. The polynomial is that of ECMA-182, reflected, all bits set
 * before and flipped after: 0x995dc9bbdf1939fa for the nine bytes "123456789". Pure. */
#ifndef PD_COMMON_CHECKSUM_H
#define PD_COMMON_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* Of no bytes. */
#define PD_CHECKSUM_EMPTY UINT64_C(0)

/* The checksum of the bytes that `sum` is of, and of these behind them. */
uint64_t pd_checksum_add(uint64_t sum, const void *bytes, size_t byte_count);
/* The same for bytes that are not in a cache, asking memory ahead for those that come next: a
 * quarter faster. Where nothing follows, it asks for what may be anything; nothing happens there.
 */
uint64_t pd_checksum_add_from_memory(uint64_t sum, const void *bytes, size_t byte_count);

#endif
