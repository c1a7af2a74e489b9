#include "common/heap.h"

#include "common/assert.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ALIGNMENT_BYTES ((size_t)64)
/* From the size of one huge page on an array has pages of its own. */
#define HUGE_PAGE_BYTES ((size_t)2 << 20)
#define MAP_BYTES_MIN HUGE_PAGE_BYTES

/* Stands in the cache line before each block. */
struct prelude {
    size_t bytes;
    uint64_t seal;
};

_Static_assert(sizeof(struct prelude) <= ALIGNMENT_BYTES, "the block after it stays aligned");

#define SEAL_LIVE 0x6c697665626c6f63ull
#define SEAL_FREED 0x66726565642e2e2eull

static atomic_long fail_countdown = -1;
static atomic_size_t blocks_live = 0;
static atomic_size_t bytes_live = 0;
static atomic_size_t allocations = 0;

/* Whether this is the allocation that a test wants to fail. */
static bool fails_now(void)
{
    long left = atomic_load_explicit(&fail_countdown, memory_order_relaxed);
    if (left < 0) {
        return false;
    }
    atomic_store_explicit(&fail_countdown, left - 1, memory_order_relaxed);
    return left == 0;
}

static struct prelude *prelude_of(void *memory)
{
    struct prelude *prelude = (struct prelude *)((char *)memory - ALIGNMENT_BYTES);
    PD_ASSERT(prelude->seal == SEAL_LIVE);
    return prelude;
}

/* What a large array takes: whole huge pages. */
static size_t mapped_bytes(size_t bytes)
{
    return (bytes + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
}

/* Pages the kernel gives when they are first touched, in huge pieces where it can, so they begin
 * where one may: no single call pays for all of a large array, and one that is never used costs
 * nothing. */
static void *map_pages(size_t whole_bytes)
{
    size_t bytes = mapped_bytes(whole_bytes);
    char *base = mmap(NULL, bytes + HUGE_PAGE_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return NULL;
    }
    size_t before = (HUGE_PAGE_BYTES - (uintptr_t)base % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    if (before > 0) {
        (void)munmap(base, before);
    }
    (void)munmap(base + before + bytes, HUGE_PAGE_BYTES - before);
    base += before;
    /* Advice only: without huge pages the memory works as well, more slowly. */
    (void)madvise(base, bytes, MADV_HUGEPAGE);
    return base;
}

/* Memory for `bytes` bytes; from MAP_BYTES_MIN on it is zero. */
static void *allocate(size_t bytes)
{
    if (fails_now() || bytes > SIZE_MAX / 2) {
        return NULL;
    }

    size_t whole_bytes = bytes + ALIGNMENT_BYTES;
    void *base = NULL;
    if (bytes >= MAP_BYTES_MIN) {
        base = map_pages(whole_bytes);
    } else if (posix_memalign(&base, ALIGNMENT_BYTES, whole_bytes) != 0) {
        base = NULL;
    }
    if (base == NULL) {
        return NULL;
    }

    struct prelude *prelude = base;
    prelude->bytes = bytes;
    prelude->seal = SEAL_LIVE;
    atomic_fetch_add_explicit(&blocks_live, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&bytes_live, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed);
    return (char *)base + ALIGNMENT_BYTES;
}

void *pd_heap_zalloc(size_t count, size_t item_bytes)
{
    size_t bytes = 0;
    if (__builtin_mul_overflow(count, item_bytes, &bytes)) {
        return NULL;
    }

    void *memory = allocate(bytes);
    if (memory != NULL && bytes < MAP_BYTES_MIN) {
        memset(memory, 0, bytes);
    }
    return memory;
}

void *pd_heap_realloc(void *memory, size_t bytes)
{
    void *moved = allocate(bytes);
    if (moved == NULL || memory == NULL) {
        return moved;
    }

    size_t old_bytes = prelude_of(memory)->bytes;
    memcpy(moved, memory, old_bytes < bytes ? old_bytes : bytes);
    pd_heap_free(memory);
    return moved;
}

char *pd_heap_strdup(const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = allocate(bytes);
    if (copy != NULL) {
        memcpy(copy, text, bytes);
    }
    return copy;
}

void pd_heap_free(void *memory)
{
    if (memory == NULL) {
        return;
    }

    struct prelude *prelude = prelude_of(memory);
    prelude->seal = SEAL_FREED;
    atomic_fetch_sub_explicit(&blocks_live, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&bytes_live, prelude->bytes, memory_order_relaxed);
    if (prelude->bytes >= MAP_BYTES_MIN) {
        (void)munmap(prelude, mapped_bytes(prelude->bytes + ALIGNMENT_BYTES));
    } else {
        free(prelude);
    }
}

void pd_heap_fail_at(long index)
{
    atomic_store_explicit(&fail_countdown, index, memory_order_relaxed);
}

size_t pd_heap_blocks_live(void)
{
    return atomic_load_explicit(&blocks_live, memory_order_relaxed);
}

size_t pd_heap_bytes_live(void)
{
    return atomic_load_explicit(&bytes_live, memory_order_relaxed);
}

size_t pd_heap_allocations(void)
{
    return atomic_load_explicit(&allocations, memory_order_relaxed);
}
