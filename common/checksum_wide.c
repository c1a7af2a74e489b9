#include "common/checksum_wide.h"

#include "common/kernel.h"

#include <string.h>

/* For XXH3_generateSecret_fromSeed. */
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#define STRIPE_COUNT (PD_XXH3_BLOCK_BYTES / PD_XXH3_STRIPE_BYTES)

/* Where in the secret the parts of a sum have theirs. */
#define SECRET_STRIDE_BYTES 8u /* from one stripe of a block to the next */
#define SECRET_OF_SCRAMBLE 128u
#define SECRET_OF_LAST_STRIPE 121u
#define SECRET_OF_MERGE 11u

#define PRIME32_1 0x9E3779B1u
#define PRIME32_2 0x85EBCA77u
#define PRIME32_3 0xC2B2AE3Du
#define PRIME64_1 0x9E3779B185EBCA87u
#define PRIME64_2 0xC2B2AE3D27D4EB4Fu
#define PRIME64_3 0x165667B19E3779F9u
#define PRIME64_4 0x85EBCA77C2B2AE63u
#define PRIME64_5 0x27D4EB2F165667C5u
#define PRIME_OF_AVALANCHE 0x165667919E3779F9u

/* A gradient that was not read before comes out of memory half as fast again for being asked for so
 * far ahead. */
#define AHEAD_BLOCK_COUNT 16u

void pd_checksum_wide_init(struct pd_checksum_wide *wide)
{
    static const uint64_t lanes[PD_XXH3_LANE_COUNT] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3,
                                                       PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};

    XXH3_generateSecret_fromSeed(wide->secret, 0);
    memcpy(wide->lanes, lanes, sizeof lanes);
    wide->byte_count = 0;
    wide->waiting_bytes = 0;
}

static uint64_t load(const uint8_t *bytes)
{
    uint64_t value;

    memcpy(&value, bytes, sizeof value);
    return value;
}

static void add_stripe(uint64_t lanes[PD_XXH3_LANE_COUNT], const uint8_t *bytes,
                       const uint8_t *secret)
{
    for (unsigned i = 0; i < PD_XXH3_LANE_COUNT; i++) {
        uint64_t value = load(bytes + sizeof value * i);
        uint64_t key = value ^ load(secret + sizeof value * i);
        lanes[i ^ 1] += value;
        lanes[i] += (key & 0xffffffffu) * (key >> 32);
    }
}

#ifdef PD_KERNEL_STREAMS

PD_KERNEL_STREAMS
static inline __m512i scramble(__m512i lanes, __m512i secret)
{
    const __m512i prime = _mm512_set1_epi32((int)PRIME32_1);
    __m512i mixed = _mm512_xor_si512(_mm512_xor_si512(lanes, _mm512_srli_epi64(lanes, 47)), secret);
    __m512i high = _mm512_mul_epu32(_mm512_srli_epi64(mixed, 32), prime);

    return _mm512_add_epi64(_mm512_mul_epu32(mixed, prime), _mm512_slli_epi64(high, 32));
}

PD_KERNEL_STREAMS
static void add_blocks(struct pd_checksum_wide *wide, const uint8_t *bytes, size_t block_count)
{
    __m512i secrets[STRIPE_COUNT];
    __m512i scrambled_with = _mm512_loadu_si512(wide->secret + SECRET_OF_SCRAMBLE);
    __m512i lanes = _mm512_loadu_si512(wide->lanes);

    for (unsigned i = 0; i < STRIPE_COUNT; i++) {
        secrets[i] = _mm512_loadu_si512(wide->secret + SECRET_STRIDE_BYTES * i);
    }
    for (; block_count > 0; block_count--) {
        const uint8_t *ahead =
            bytes + (block_count > AHEAD_BLOCK_COUNT ? AHEAD_BLOCK_COUNT * PD_XXH3_BLOCK_BYTES : 0);
        __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 16
        for (unsigned i = 0; i < STRIPE_COUNT; i++) {
            __builtin_prefetch(ahead + PD_XXH3_STRIPE_BYTES * i, 0, 2);
            __m512i data = _mm512_loadu_si512(bytes + PD_XXH3_STRIPE_BYTES * i);
            __m512i key = _mm512_xor_si512(data, secrets[i]);
            __m512i product = _mm512_mul_epu32(key, _mm512_shuffle_epi32(key, _MM_PERM_CDAB));
            lanes = _mm512_add_epi64(lanes, product);
            sum = _mm512_add_epi64(sum, data);
        }
        lanes = _mm512_add_epi64(lanes, _mm512_shuffle_epi32(sum, _MM_PERM_BADC));
        lanes = scramble(lanes, scrambled_with);
        bytes += PD_XXH3_BLOCK_BYTES;
    }
    _mm512_storeu_si512(wide->lanes, lanes);
}

#else

static void add_blocks(struct pd_checksum_wide *wide, const uint8_t *bytes, size_t block_count)
{
    for (; block_count > 0; block_count--) {
        for (unsigned i = 0; i < STRIPE_COUNT; i++) {
            add_stripe(wide->lanes, bytes + PD_XXH3_STRIPE_BYTES * i,
                       wide->secret + SECRET_STRIDE_BYTES * i);
        }
        for (unsigned i = 0; i < PD_XXH3_LANE_COUNT; i++) {
            uint64_t lane = wide->lanes[i];
            lane ^= lane >> 47;
            lane ^= load(wide->secret + SECRET_OF_SCRAMBLE + sizeof lane * i);
            wide->lanes[i] = lane * PRIME32_1;
        }
        bytes += PD_XXH3_BLOCK_BYTES;
    }
}

#endif

/* Add blocks and remember their last stripe. */
static void take_blocks(struct pd_checksum_wide *wide, const uint8_t *bytes, size_t block_count)
{
    add_blocks(wide, bytes, block_count);
    bytes += block_count * PD_XXH3_BLOCK_BYTES;
    memcpy(wide->last_stripe, bytes - PD_XXH3_STRIPE_BYTES, PD_XXH3_STRIPE_BYTES);
}

static void wait(struct pd_checksum_wide *wide, const uint8_t *bytes, size_t byte_count)
{
    memcpy(wide->waiting + wide->waiting_bytes, bytes, byte_count);
    wide->waiting_bytes += byte_count;
}

void pd_checksum_wide_update(struct pd_checksum_wide *wide, const uint8_t *bytes, size_t byte_count)
{
    size_t room_bytes = PD_XXH3_BLOCK_BYTES - wide->waiting_bytes;

    wide->byte_count += byte_count;
    if (byte_count > room_bytes && wide->waiting_bytes > 0) {
        wait(wide, bytes, room_bytes);
        take_blocks(wide, wide->waiting, 1);
        wide->waiting_bytes = 0;
        bytes += room_bytes;
        byte_count -= room_bytes;
    }
    if (byte_count > PD_XXH3_BLOCK_BYTES) {
        size_t block_count = (byte_count - 1) / PD_XXH3_BLOCK_BYTES;
        take_blocks(wide, bytes, block_count);
        bytes += block_count * PD_XXH3_BLOCK_BYTES;
        byte_count -= block_count * PD_XXH3_BLOCK_BYTES;
    }
    wait(wide, bytes, byte_count);
}

__extension__ typedef unsigned __int128 uint128;

static uint64_t fold(uint64_t a, uint64_t b)
{
    uint128 product = (uint128)a * b;

    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t merge(const uint64_t lanes[PD_XXH3_LANE_COUNT], const uint8_t *secret,
                      uint64_t begin)
{
    uint64_t value = begin;

    for (unsigned i = 0; i < PD_XXH3_LANE_COUNT; i += 2) {
        value += fold(lanes[i] ^ load(secret + sizeof value * i),
                      lanes[i + 1] ^ load(secret + sizeof value * (i + 1)));
    }
    value ^= value >> 37;
    value *= PRIME_OF_AVALANCHE;
    return value ^ value >> 32;
}

uint64_t pd_checksum_wide_value(const struct pd_checksum_wide *wide)
{
    uint64_t lanes[PD_XXH3_LANE_COUNT];
    uint8_t last_stripe[PD_XXH3_STRIPE_BYTES];

    if (wide->byte_count <= PD_XXH3_BLOCK_BYTES) {
        return XXH3_64bits(wide->waiting, wide->waiting_bytes);
    }
    memcpy(lanes, wide->lanes, sizeof lanes);
    for (size_t i = 0; i < (wide->waiting_bytes - 1) / PD_XXH3_STRIPE_BYTES; i++) {
        add_stripe(lanes, wide->waiting + PD_XXH3_STRIPE_BYTES * i,
                   wide->secret + SECRET_STRIDE_BYTES * i);
    }
    size_t end_bytes =
        wide->waiting_bytes < PD_XXH3_STRIPE_BYTES ? wide->waiting_bytes : PD_XXH3_STRIPE_BYTES;
    size_t before_bytes = PD_XXH3_STRIPE_BYTES - end_bytes;
    memcpy(last_stripe, wide->last_stripe + end_bytes, before_bytes);
    memcpy(last_stripe + before_bytes, wide->waiting + wide->waiting_bytes - end_bytes, end_bytes);
    add_stripe(lanes, last_stripe, wide->secret + SECRET_OF_LAST_STRIPE);
    return merge(lanes, wide->secret + SECRET_OF_MERGE, wide->byte_count * PRIME64_1);
}
