/* Tests of common/shard_plan.c. */
#include "common/shard_plan.h"

#include "common/heap.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

static struct pd_error error;
static uint64_t random_state;

static uint64_t random_below(uint64_t limit)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (random_state >> 33) % limit;
}

/* A model of up to 12 tensors, small ones and large ones. */
static void make_model(struct pd_tensor_list *model, uint64_t seed)
{
    random_state = seed * 0x9e3779b97f4a7c15ull + 1;
    uint32_t count = 1 + (uint32_t)random_below(12);
    ck_assert_int_eq(pd_tensor_list_init(model, count, &error), PD_OK);
    for (uint32_t i = 0; i < count; i++) {
        char name[16];
        int name_bytes = snprintf(name, sizeof name, "t%u", i);
        uint64_t elements = 1 + random_below(random_below(2) == 0 ? 20 : 3000);
        ck_assert_int_eq(
            pd_tensor_list_append(model, name, (size_t)name_bytes, 1, &elements, &error), PD_OK);
    }
}

static struct pd_shard_plan *make_plan(const struct pd_tensor_list *model, uint32_t block_elements,
                                       uint32_t rank_count, uint32_t lane_count)
{
    struct pd_shard_plan *plan = NULL;
    ck_assert_int_eq(
        pd_shard_plan_create(&plan, model, block_elements, rank_count, lane_count, &error), PD_OK);
    return plan;
}

/* Like ck_assert, whose bookkeeping would take minutes over millions of blocks. */
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            ck_abort_msg("%s", #condition);                                                        \
        }                                                                                          \
    } while (0)

/* Blocks follow each other, stay within their tensor, and only a tensor's last one is short. */
static void check_blocks(const struct pd_shard_plan *plan, const struct pd_tensor_list *model,
                         uint32_t block_elements)
{
    uint64_t element = 0;
    for (uint32_t i = 0; i < model->count; i++) {
        REQUIRE(plan->tensor_blocks[i] < plan->tensor_blocks[i + 1]);
        for (uint64_t b = plan->tensor_blocks[i]; b < plan->tensor_blocks[i + 1]; b++) {
            bool last = b + 1 == plan->tensor_blocks[i + 1];
            REQUIRE(plan->blocks[b].tensor_index == i);
            REQUIRE(plan->blocks[b].element_begin == element);
            REQUIRE(plan->blocks[b].element_count >= 1);
            REQUIRE(plan->blocks[b].element_count <= block_elements);
            if (!last) {
                REQUIRE(plan->blocks[b].element_count == block_elements);
            }
            element += plan->blocks[b].element_count;
        }
        REQUIRE(element == model->tensors[i].element_begin + model->tensors[i].element_count);
    }
    REQUIRE(plan->tensor_blocks[model->count] == plan->block_count);
}

/* Parts follow each other through the whole, in blocks as in elements, and each is within one
 * block of the even share. */
static void check_parts(const struct pd_shard_plan *plan, const struct pd_range *whole,
                        const struct pd_range *parts, uint32_t part_count, uint32_t stride,
                        uint32_t block_elements)
{
    uint64_t block = whole->block_begin;
    uint64_t element = whole->element_begin;
    for (uint32_t i = 0; i < part_count; i++) {
        const struct pd_range *part = &parts[(size_t)i * stride];
        uint64_t elements = 0;
        for (uint64_t b = 0; b < part->block_count; b++) {
            elements += plan->blocks[part->block_begin + b].element_count;
        }
        REQUIRE(part->block_begin == block);
        REQUIRE(part->element_begin == element);
        REQUIRE(part->element_count == elements);
        block += part->block_count;
        element += part->element_count;

        double even = (double)whole->element_count / part_count;
        REQUIRE((double)elements <= even + block_elements);
        REQUIRE((double)elements >= even - block_elements);
    }
    REQUIRE(block == whole->block_begin + whole->block_count);
    REQUIRE(element == whole->element_begin + whole->element_count);
}

START_TEST(every_grid_covers_the_model_in_even_contiguous_parts)
{
    uint32_t rank_count = (uint32_t)_i + 1;
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct pd_tensor_list model;
        make_model(&model, seed * 64 + rank_count);
        uint32_t block_elements = 1 + (uint32_t)random_below(200);
        for (uint32_t lane_count = 1; lane_count <= rank_count; lane_count++) {
            if (rank_count % lane_count != 0) {
                continue;
            }
            struct pd_shard_plan *plan = make_plan(&model, block_elements, rank_count, lane_count);
            struct pd_range whole = {.block_count = plan->block_count,
                                     .element_count = model.element_count};
            check_blocks(plan, &model, block_elements);
            check_parts(plan, &whole, plan->lanes, lane_count, 1, block_elements);
            for (uint32_t lane = 0; lane < lane_count; lane++) {
                check_parts(plan, &plan->lanes[lane], &plan->shards[lane], plan->replica_count,
                            lane_count, block_elements);
            }
            pd_shard_plan_destroy(plan);
        }
        pd_tensor_list_finish(&model);
    }
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(blocks_do_not_depend_on_the_number_of_ranks)
{
    struct pd_tensor_list model;
    make_model(&model, 5);
    struct pd_shard_plan *one = make_plan(&model, 64, 1, 1);
    struct pd_shard_plan *many = make_plan(&model, 64, 48, 12);
    ck_assert_uint_eq(one->block_count, many->block_count);
    ck_assert_mem_eq(one->blocks, many->blocks, one->block_count * sizeof *one->blocks);
    pd_shard_plan_destroy(one);
    pd_shard_plan_destroy(many);
    pd_tensor_list_finish(&model);
}
END_TEST

/* Blocks of the size asked for would be too few to share them evenly. */
/* Runs of whole blocks, each as long as it may be, cover the model. */
START_TEST(runs_end_where_blocks_do)
{
    struct pd_tensor_list model;
    make_model(&model, (uint64_t)_i);
    struct pd_shard_plan *plan = make_plan(&model, 64, 1, 1);
    uint64_t most = 1 + (uint64_t)_i * 20;
    uint64_t block = 0;

    for (uint64_t begin = 0; begin < model.element_count;) {
        uint64_t count = pd_shard_plan_run(plan, begin, model.element_count, most);
        uint64_t first = block;
        ck_assert_uint_eq(plan->blocks[block].element_begin, begin);
        begin += count;
        while (block < plan->block_count && plan->blocks[block].element_begin < begin) {
            block++;
        }
        ck_assert(count <= most || block == first + 1);
        ck_assert(block == plan->block_count || (plan->blocks[block].element_begin == begin &&
                                                 count + plan->blocks[block].element_count > most));
    }
    pd_shard_plan_destroy(plan);
    pd_tensor_list_finish(&model);
}
END_TEST

START_TEST(small_model_has_smaller_blocks_of_which_each_rank_gets_as_many)
{
    static const struct {
        uint64_t elements;
        uint32_t block_elements_max;
        uint32_t block_elements;
    } cases[] = {
        {100000, 65536, 16384},         {64 * 16384, 65536, 16384}, {64 * 16384 + 1, 65536, 32768},
        {64 * 32768 + 1, 65536, 65536}, {25000000, 65536, 65536},   {100000, 10000, 10000},
    };
    struct pd_tensor_list model;
    ck_assert_int_eq(pd_tensor_list_init(&model, 1, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(&model, "t", 1, 1, &cases[_i].elements, &error), PD_OK);
    struct pd_shard_plan *plan = make_plan(&model, cases[_i].block_elements_max, 2, 2);
    ck_assert_uint_eq(plan->block_elements, cases[_i].block_elements);
    check_blocks(plan, &model, plan->block_elements);
    uint64_t half = cases[_i].elements / 2;
    ck_assert_uint_le(plan->shards[0].element_count, half + plan->block_elements / 2);
    ck_assert_uint_ge(plan->shards[0].element_count, half - plan->block_elements / 2);
    pd_shard_plan_destroy(plan);
    pd_tensor_list_finish(&model);
}
END_TEST

START_TEST(ranks_beyond_the_blocks_own_nothing)
{
    struct pd_tensor_list model;
    ck_assert_int_eq(pd_tensor_list_init(&model, 1, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(&model, "t", 1, 1, (uint64_t[]){30}, &error), PD_OK);
    struct pd_shard_plan *plan = make_plan(&model, 10, 64, 64);
    uint32_t owners = 0;
    for (uint32_t rank = 0; rank < 64; rank++) {
        owners += plan->shards[rank].element_count > 0;
    }
    ck_assert_uint_eq(owners, 3);
    pd_shard_plan_destroy(plan);
    pd_tensor_list_finish(&model);
}
END_TEST

/* Two ranks, three equal blocks: the middle is as near to 1 block as to 2. */
START_TEST(a_tie_goes_to_the_lower_boundary)
{
    struct pd_tensor_list model;
    ck_assert_int_eq(pd_tensor_list_init(&model, 1, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(&model, "t", 1, 1, (uint64_t[]){30}, &error), PD_OK);
    struct pd_shard_plan *plan = make_plan(&model, 10, 2, 2);
    ck_assert_uint_eq(plan->shards[0].element_count, 10);
    ck_assert_uint_eq(plan->shards[1].element_count, 20);
    pd_shard_plan_destroy(plan);
    pd_tensor_list_finish(&model);
}
END_TEST

START_TEST(a_rank_is_replica_times_lanes_plus_lane)
{
    struct pd_tensor_list model;
    make_model(&model, 9);
    struct pd_shard_plan *plan = make_plan(&model, 16, 6, 2);
    ck_assert_uint_eq(pd_shard_plan_lane_of(plan, 5), 1);
    ck_assert_uint_eq(pd_shard_plan_replica_of(plan, 5), 2);
    ck_assert_uint_eq(pd_shard_plan_lane_of(plan, 2), 0);
    ck_assert_uint_eq(pd_shard_plan_replica_of(plan, 2), 1);
    pd_shard_plan_destroy(plan);
    pd_tensor_list_finish(&model);
}
END_TEST

START_TEST(lanes_that_do_not_divide_the_ranks_are_refused)
{
    struct pd_tensor_list model;
    struct pd_shard_plan *plan = NULL;
    make_model(&model, 1);
    ck_assert_int_eq(pd_shard_plan_create(&plan, &model, 16, 6, 4, &error), PD_EINVALID);
    ck_assert_int_eq(pd_shard_plan_create(&plan, &model, 16, 6, 0, &error), PD_EINVALID);
    ck_assert_ptr_null(plan);
    pd_tensor_list_finish(&model);
}
END_TEST

START_TEST(a_lane_over_the_limit_is_refused_and_the_number_it_names_would_do)
{
    struct pd_tensor_list model;
    struct pd_shard_plan *plan = NULL;
    uint64_t elements = 3ull << 30;
    ck_assert_int_eq(pd_tensor_list_init(&model, 1, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(&model, "t", 1, 1, &elements, &error), PD_OK);
    ck_assert_int_eq(pd_shard_plan_create(&plan, &model, 1u << 20, 1, 1, &error), PD_ELIMIT);
    ck_assert_str_eq(error.message, "lane 0 of 1 would hold 3221225472 elements, at most "
                                    "2147483647; 2 ranks with a lane each would do");
    ck_assert_int_eq(pd_shard_plan_create(&plan, &model, 1u << 20, 2, 2, &error), PD_OK);
    pd_shard_plan_destroy(plan);
    pd_tensor_list_finish(&model);
}
END_TEST

START_TEST(create_survives_each_failed_allocation)
{
    struct pd_tensor_list model;
    struct pd_shard_plan *plan = NULL;
    make_model(&model, 3);
    size_t blocks = pd_heap_blocks_live();
    pd_heap_fail_at(_i);
    ck_assert_int_eq(pd_shard_plan_create(&plan, &model, 16, 6, 2, &error), PD_ENOMEM);
    ck_assert_ptr_null(plan);
    ck_assert_uint_eq(pd_heap_blocks_live(), blocks);
    pd_tensor_list_finish(&model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shard_plan");
    TCase *cases = tcase_create("shard_plan");
    tcase_set_timeout(cases, 60);
    tcase_add_loop_test(cases, every_grid_covers_the_model_in_even_contiguous_parts, 0, 64);
    tcase_add_test(cases, blocks_do_not_depend_on_the_number_of_ranks);
    tcase_add_loop_test(cases, runs_end_where_blocks_do, 0, 20);
    tcase_add_loop_test(cases, small_model_has_smaller_blocks_of_which_each_rank_gets_as_many, 0,
                        6);
    tcase_add_test(cases, ranks_beyond_the_blocks_own_nothing);
    tcase_add_test(cases, a_tie_goes_to_the_lower_boundary);
    tcase_add_test(cases, a_rank_is_replica_times_lanes_plus_lane);
    tcase_add_test(cases, lanes_that_do_not_divide_the_ranks_are_refused);
    tcase_add_test(cases, a_lane_over_the_limit_is_refused_and_the_number_it_names_would_do);
    tcase_add_loop_test(cases, create_survives_each_failed_allocation, 0, 5);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
