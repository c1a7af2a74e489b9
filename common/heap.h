/* Every allocation of the project, so that tests can count them and fail each one.
 * Large arrays have pages of their own, huge ones where the kernel has them, given at first touch.
 */
#ifndef PD_COMMON_HEAP_H
#define PD_COMMON_HEAP_H

#include <stddef.h>

/* Zeroed memory for `count` items of `item_bytes`, aligned to 64 bytes; NULL when out of memory
 * or when the product overflows. A zero product gives a valid pointer to free. */
void *pd_heap_zalloc(size_t count, size_t item_bytes);

/* Grow or shrink what zalloc gave, or allocate when `memory` is NULL; the bytes beyond the old size
 * are not zeroed. A NULL result leaves the old memory as it was. */
void *pd_heap_realloc(void *memory, size_t bytes);

char *pd_heap_strdup(const char *text);

/* NULL is allowed. */
void pd_heap_free(void *memory);

/* Tests: fail the allocation number `index` from now (0 is the next); -1 never fails. */
void pd_heap_fail_at(long index);
/* Tests: blocks allocated and not yet freed, the bytes asked for in them, and allocations ever
 * made, in this process. */
size_t pd_heap_blocks_live(void);
size_t pd_heap_bytes_live(void);
size_t pd_heap_allocations(void);

#endif
