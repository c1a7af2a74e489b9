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
/* What mappings are multiples of: of every machine's pages. */
#define PAGE_BYTES ((size_t)64 << 10)

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

/* What a large array takes: a page for its prelude, then whole pages. */
static size_t mapped_bytes(size_t bytes)
{
    return PAGE_BYTES + (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

/* Pages the kernel gives when they are first touched, in huge pieces where it can, so the array
 * begins where one may, and no huge one is touched for its prelude or its last bytes: no single
 * call pays for all of a large array, and one that is never used costs nothing. Returns where the
 * array begins, a page behind what is mapped. */
static char *map_pages(size_t array_bytes)
{
    size_t bytes = mapped_bytes(array_bytes);
    char *base = mmap(NULL, bytes + HUGE_PAGE_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return NULL;
    }
    size_t before =
        (HUGE_PAGE_BYTES - ((uintptr_t)base + PAGE_BYTES) % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    if (before > 0) {
        (void)munmap(base, before);
    }
    (void)munmap(base + before + bytes, HUGE_PAGE_BYTES - before);
    /* Advice only: without huge pages the memory works as well, more slowly. */
    (void)madvise(base + before, bytes, MADV_HUGEPAGE);
    return base + before + PAGE_BYTES;
}

/* Memory for `bytes` bytes; from MAP_BYTES_MIN on it is zero. */
static void *allocate(size_t bytes)
{
    if (fails_now() || bytes > SIZE_MAX / 2) {
        return NULL;
    }

    char *memory = NULL;
    void *base = NULL;
    if (bytes >= MAP_BYTES_MIN) {
        memory = map_pages(bytes);
    } else if (posix_memalign(&base, ALIGNMENT_BYTES, ALIGNMENT_BYTES + bytes) == 0) {
        memory = (char *)base + ALIGNMENT_BYTES;
    }
    if (memory == NULL) {
        return NULL;
    }

    struct prelude *prelude = (struct prelude *)(memory - ALIGNMENT_BYTES);
    prelude->bytes = bytes;
    prelude->seal = SEAL_LIVE;
    atomic_fetch_add_explicit(&blocks_live, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&bytes_live, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed);
    return memory;
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
        (void)munmap((char *)memory - PAGE_BYTES, mapped_bytes(prelude->bytes));
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
