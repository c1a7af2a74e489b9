/* Tests of common/checksum_wide.c. */
#include "common/checksum_wide.h"

#include "common/kernel.h"

#include <check.h>
#include <stdlib.h>
#include <xxhash.h>

#define BYTES_MAX 70000u

static unsigned char bytes[BYTES_MAX];
static uint64_t random_state;
static struct pd_checksum_wide wide;

static size_t random_below(size_t limit)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (size_t)(random_state >> 33) % limit;
}

static void setup(void)
{
    random_state = 1;
    for (size_t i = 0; i < BYTES_MAX; i++) {
        bytes[i] = (unsigned char)random_below(256);
    }
}

/* Its instructions may be none of this machine's. */
static bool runs_here(void)
{
#ifdef PD_KERNEL_STREAMS
    return pd_kernel_streams();
#else
    return true;
#endif
}

/* Sum bytes from `begin` on, in pieces of at most `piece_bytes_max`. */
static uint64_t sum_of(size_t begin, size_t byte_count, size_t piece_bytes_max)
{
    size_t piece_bytes;

    pd_checksum_wide_init(&wide);
    for (size_t i = 0; i < byte_count; i += piece_bytes) {
        piece_bytes = 1 + random_below(piece_bytes_max);
        piece_bytes = piece_bytes < byte_count - i ? piece_bytes : byte_count - i;
        pd_checksum_wide_update(&wide, bytes + begin + i, piece_bytes);
    }
    return pd_checksum_wide_value(&wide);
}

static const size_t pieces_max[] = {90, 1500, 10000, BYTES_MAX};

/* Up to a few blocks every number of bytes, as their ends are summed differently. */
START_TEST(sums_are_those_of_the_library_in_whatever_pieces)
{
    size_t count = 0;
    size_t piece_bytes_max = pieces_max[_i];

    for (; runs_here() && count < BYTES_MAX - 1; count += count < 4200 ? 1 : 977) {
        size_t begin = count % 2;
        if (sum_of(begin, count, piece_bytes_max) != XXH3_64bits(bytes + begin, count)) {
            ck_abort_msg("%zu bytes in pieces of up to %zu", count, piece_bytes_max);
        }
    }
}
END_TEST

START_TEST(a_value_may_be_asked_for_in_between)
{
    if (runs_here()) {
        pd_checksum_wide_init(&wide);
        pd_checksum_wide_update(&wide, bytes, 5000);
        ck_assert_uint_eq(pd_checksum_wide_value(&wide), XXH3_64bits(bytes, 5000));
        pd_checksum_wide_update(&wide, bytes + 5000, 5000);
        ck_assert_uint_eq(pd_checksum_wide_value(&wide), XXH3_64bits(bytes, 10000));
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("checksum_wide");
    TCase *cases = tcase_create("checksum_wide");
    tcase_set_timeout(cases, 60);
    tcase_add_checked_fixture(cases, setup, NULL);
    tcase_add_loop_test(cases, sums_are_those_of_the_library_in_whatever_pieces, 0,
                        (int)(sizeof pieces_max / sizeof pieces_max[0]));
    tcase_add_test(cases, a_value_may_be_asked_for_in_between);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
