/* The sums of checksum.h for machines where pd_kernel_streams(), to the bit those of libxxhash.
 * checksum -> [checksum_wide]. Pure.
 *
 * The library's loop waits for the unit that shuffles, twice a stripe: it adds what it reads with
 * the lanes of each pair swapped. Here that is added as it is, and swapped once a block, which
 * takes a fifth less time; and memory is asked for further ahead. Sums of a block at most are the
 * library's own.
 * Source: XXH3 for long inputs, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md. */
#ifndef PD_COMMON_CHECKSUM_WIDE_H
#define PD_COMMON_CHECKSUM_WIDE_H

#include <stddef.h>
#include <stdint.h>

#define PD_XXH3_LANE_COUNT 8u
#define PD_XXH3_STRIPE_BYTES 64u
#define PD_XXH3_BLOCK_BYTES 1024u
#define PD_XXH3_SECRET_BYTES 192u

struct pd_checksum_wide {
    uint64_t lanes[PD_XXH3_LANE_COUNT]; /* of the blocks so far */
    uint8_t secret[PD_XXH3_SECRET_BYTES];
    uint64_t byte_count;
    uint8_t last_stripe[PD_XXH3_STRIPE_BYTES]; /* of those blocks */
    /* What follows them, empty only if the sum is: how the end is summed is not known before. */
    uint8_t waiting[PD_XXH3_BLOCK_BYTES];
    size_t waiting_bytes;
};

void pd_checksum_wide_init(struct pd_checksum_wide *wide);
void pd_checksum_wide_update(struct pd_checksum_wide *wide, const uint8_t *bytes,
                             size_t byte_count);
uint64_t pd_checksum_wide_value(const struct pd_checksum_wide *wide);

#endif
