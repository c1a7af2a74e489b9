/* The configurations in deploy/recipes, loaded by a daemon: the rates at the steps that matter, by
 * the formulas of their sources, and the hyperparameters of each tensor that such a model has. */
#include "tests/support/suite.h"
#include "tests/support/trial.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TENSORS_MAX 12
#define STEPS_MAX 8

/* A tensor and what the recipe makes of it: shares of the rate of `rate`, and the decay. */
struct expectation {
    struct trial_tensor tensor;
    const char *group;
    double share;
    double weight_decay;
};

struct recipe {
    const char *file;
    uint64_t samples;                      /* that a step has */
    double (*rate)(uint64_t step);         /* of the first group */
    double momentum;                       /* or beta1 */
    uint64_t steps[STEPS_MAX];             /* that matter; ends in 0 */
    struct expectation items[TENSORS_MAX]; /* ends without a name */
};

/* Linear warmup from 0 at the step 0 to 1. */
static double warmup(double step, double steps)
{
    return step / steps;
}

/* WarmupCosineSchedule of the notes. */
static double warmup_cosine(double step, double warmup_steps, double total, double least)
{
    double progress = (step - warmup_steps) / (total - warmup_steps);

    return step < warmup_steps ? warmup(step, warmup_steps)
                               : least + (1 - least) * 0.5 * (1 + cos(M_PI * progress));
}

/* The LambdaLR of recipe 2. */
static double up_and_down(double step, double warmup_steps, double total)
{
    return fmin(warmup(step, warmup_steps), (total - step) / (total - warmup_steps));
}

/* LinearLR for five epochs, CosineAnnealingLR over 90. */
static double resnet_rate(uint64_t step)
{
    double epoch = (double)step / 5005;

    return epoch < 5 ? 0.1 * (0.1 + 0.9 * epoch / 5)
                     : 1e-5 + (0.1 - 1e-5) * (1 + cos(M_PI * (epoch - 5) / 90)) / 2;
}

static double bert_rate(uint64_t step)
{
    return 1e-4 * up_and_down((double)step, 10000, 100000);
}

static double vit_rate(uint64_t step)
{
    return 3e-3 * warmup_cosine((double)step, 15 * 1252, 300 * 1252, 0.01);
}

static double gan_rate(uint64_t step)
{
    (void)step;
    return 2e-4;
}

static double rnn_rate(uint64_t step)
{
    (void)step;
    return 1e-3;
}

static double lamb_rate(uint64_t step)
{
    return 1e-3 * sqrt(8192.0 / 256) * up_and_down((double)step, 1000, 10000);
}

static double fine_tuning_rate(uint64_t step)
{
    return 2e-5 * warmup_cosine((double)step, 500, 5000, 0);
}

static double discriminative_rate(uint64_t step)
{
    (void)step;
    return 1e-3 * pow(2.6, 3);
}

static double layers_rate(uint64_t step)
{
    return 1e-4 * warmup_cosine((double)step, 500, 5000, 0);
}

static const struct recipe recipes[] = {
    {.file = "resnet50-imagenet.yaml",
     .samples = 256,
     .rate = resnet_rate,
     .momentum = 0.9,
     .steps = {1, 2 * 5005, 5 * 5005 - 1, 5 * 5005, 50 * 5005, 90 * 5005 - 1},
     .items = {{{"conv1.weight", 4, {2, 1, 3, 3}}, "default", 1, 1e-4},
               {{"layer1.0.bn1.weight", 1, {2}}, "default", 1, 1e-4},
               {{"layer4.2.conv3.weight", 4, {3, 2, 1, 1}}, "default", 1, 1e-4},
               {{"fc.bias", 1, {3}}, "default", 1, 1e-4}}},
    {.file = "bert-pretraining.yaml",
     .samples = 256,
     .rate = bert_rate,
     .momentum = 0.9,
     .steps = {1, 5000, 9999, 10000, 10001, 55000, 99999},
     .items =
         {{{"bert.embeddings.word_embeddings.weight", 2, {4, 3}}, "default", 1, 0.01},
          {{"bert.embeddings.LayerNorm.weight", 1, {3}}, "no_decay", 1, 0},
          {{"bert.encoder.layer.0.attention.self.query.weight", 2, {3, 3}}, "default", 1, 0.01},
          {{"bert.encoder.layer.0.attention.self.query.bias", 1, {3}}, "no_decay", 1, 0},
          {{"bert.encoder.layer.11.output.LayerNorm.bias", 1, {3}}, "no_decay", 1, 0},
          {{"cls.predictions.bias", 1, {4}}, "no_decay", 1, 0}}},
    {.file = "vit-b16-imagenet.yaml",
     .samples = 1024,
     .rate = vit_rate,
     .momentum = 0.9,
     .steps = {1, 9000, 15 * 1252 - 1, 15 * 1252, 157 * 1252, 300 * 1252 - 1},
     .items = {{{"conv_proj.weight", 4, {3, 1, 2, 2}}, "default", 1, 0.3},
               {{"class_token", 3, {1, 1, 3}}, "default", 1, 0.3},
               {{"encoder.layers.encoder_layer_0.ln_1.weight", 1, {3}}, "no_decay", 1, 0},
               {{"encoder.layers.encoder_layer_0.self_attention.in_proj_weight", 2, {9, 3}},
                "default",
                1,
                0.3},
               {{"heads.head.bias", 1, {3}}, "no_decay", 1, 0}}},
    {.file = "dcgan.yaml",
     .samples = 128,
     .rate = gan_rate,
     .momentum = 0.5,
     .steps = {1, 100000},
     .items = {{{"generator.main.0.weight", 4, {3, 2, 2, 2}}, "generator", 1, 0},
               {{"generator.main.1.bias", 1, {2}}, "generator", 1, 0},
               {{"discriminator.main.0.weight", 4, {2, 1, 2, 2}}, "discriminator", 1, 0}}},
    {.file = "rnn.yaml",
     .samples = 32,
     .rate = rnn_rate,
     .momentum = 0,
     .steps = {1, 100000},
     .items = {{{"rnn.weight_hh_l0", 2, {4, 4}}, "default", 1, 0},
               {{"fc.bias", 1, {2}}, "default", 1, 0}}},
    {.file = "lamb-large-batch.yaml",
     .samples = 8192,
     .rate = lamb_rate,
     .momentum = 0.9,
     .steps = {1, 500, 999, 1000, 1001, 5500, 9999},
     .items = {{{"bert.encoder.layer.0.output.dense.weight", 2, {3, 3}}, "default", 1, 0.01},
               {{"bert.encoder.layer.0.output.dense.bias", 1, {3}}, "no_decay", 1, 0}}},
    {.file = "fine-tuning-bert.yaml",
     .samples = 32,
     .rate = fine_tuning_rate,
     .momentum = 0.9,
     .steps = {1, 250, 499, 500, 501, 2750, 4999},
     .items = {{{"bert.encoder.layer.0.output.dense.weight", 2, {3, 3}}, "default", 1, 0.01},
               {{"classifier.weight", 2, {2, 3}}, "classifier", 10, 0.01},
               {{"classifier.bias", 1, {2}}, "classifier", 10, 0.01}}},
    {.file = "fine-tuning-discriminative.yaml",
     .samples = 32,
     .rate = discriminative_rate,
     .momentum = 0.9,
     .steps = {1, 5000},
     .items = {{{"layer1.0.conv1.weight", 4, {2, 2, 1, 1}}, "default", 1 / (2.6 * 2.6 * 2.6), 0.01},
               {{"layer2.0.conv1.weight", 4, {2, 2, 1, 1}}, "default", 1 / (2.6 * 2.6), 0.01},
               {{"layer3.5.bn2.bias", 1, {2}}, "default", 1 / 2.6, 0.01},
               {{"head.weight", 2, {2, 2}}, "default", 1, 0.01}}},
    {.file = "fine-tuning-layers.yaml",
     .samples = 32,
     .rate = layers_rate,
     .momentum = 0.9,
     .steps = {1, 250, 499, 500, 501, 2750, 4999},
     .items = {{{"bert.embeddings.word_embeddings.weight", 2, {4, 3}},
                "default",
                0.95 * 0.95 * 0.95 * 0.95,
                0.01},
               {{"bert.encoder.layer.0.output.dense.weight", 2, {3, 3}},
                "default",
                0.95 * 0.95 * 0.95,
                0.01},
               {{"bert.encoder.layer.2.output.dense.bias", 1, {3}}, "default", 0.95, 0.01},
               {{"classifier.weight", 2, {2, 3}}, "default", 1, 0.01}}},
};
#define RECIPE_COUNT ((int)(sizeof recipes / sizeof recipes[0]))

static char *read_recipe(const char *name)
{
    char path[PATH_MAX];
    char *text = calloc(1, 65536);

    snprintf(path, sizeof path, "%s/%s", RECIPES_DIRECTORY, name);
    FILE *file = fopen(path, "r");
    ck_assert_msg(file != NULL && text != NULL, "%s", path);
    ck_assert_uint_lt(fread(text, 1, 65535, file), 65535);
    (void)fclose(file);
    return text;
}

static uint32_t count_items(const struct recipe *recipe)
{
    uint32_t count = 0;

    while (count < TENSORS_MAX && recipe->items[count].tensor.name != NULL) {
        count++;
    }
    return count;
}

/* What a rate may differ by, as it is computed in another order: a share of the highest. */
static double tolerance_of(const struct recipe *recipe)
{
    double highest = 0;

    for (size_t i = 0; i < STEPS_MAX && recipe->steps[i] != 0; i++) {
        highest = fmax(highest, recipe->rate(recipe->steps[i]));
    }
    return 1e-12 * highest;
}

static void check_rates(struct trial *trial, const struct recipe *recipe)
{
    for (size_t i = 0; i < STEPS_MAX && recipe->steps[i] != 0; i++) {
        json_t *reply = trial_ask(trial, "schedule", recipe->steps[i], 1);
        const json_t *lrs = json_array_get(json_object_get(reply, "lrs"), 0);
        const json_t *momenta = json_array_get(json_object_get(reply, "momenta"), 0);
        ck_assert_double_eq_tol(json_number_value(json_array_get(lrs, 0)),
                                recipe->rate(recipe->steps[i]), tolerance_of(recipe));
        ck_assert_double_eq(json_number_value(json_array_get(momenta, 0)), recipe->momentum);
        json_decref(reply);
    }
}

static void check_tensors(struct trial *trial, const struct recipe *recipe)
{
    json_t *tensors = trial_ask(trial, "tensors", 0, 0);
    json_t *status = trial_ask(trial, "status", 0, 0);

    for (uint32_t i = 0; i < count_items(recipe); i++) {
        const struct expectation *item = &recipe->items[i];
        const char *name = item->tensor.name;
        ck_assert_str_eq(json_string_value(trial_item(tensors, "tensors", name, "group")),
                         item->group);
        ck_assert_double_eq_tol(json_number_value(trial_item(tensors, "tensors", name, "lr")),
                                item->share * recipe->rate(1), tolerance_of(recipe));
        ck_assert_double_eq(
            json_number_value(trial_item(status, "groups", item->group, "weight_decay")),
            item->weight_decay);
    }
    json_decref(status);
    json_decref(tensors);
}

START_TEST(a_recipe_gives_the_rates_and_groups_of_its_source)
{
    const struct recipe *recipe = &recipes[_i];
    struct trial_tensor model[TENSORS_MAX];
    struct trial trial;
    char *text = read_recipe(recipe->file);

    for (uint32_t i = 0; i < count_items(recipe); i++) {
        model[i] = recipe->items[i].tensor;
    }
    trial_begin(&trial, 2, "direct", text, model, count_items(recipe));
    trial.samples = recipe->samples;
    while (!trial_step_all(&trial, 0.01f).pulled) {
    }
    check_rates(&trial, recipe);
    check_tensors(&trial, recipe);
    trial_end(&trial);
    free(text);
}
END_TEST

START_TEST(every_recipe_is_tested)
{
    DIR *directory = opendir(RECIPES_DIRECTORY);
    int found = 0;

    ck_assert_ptr_nonnull(directory);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        bool known = entry->d_name[0] == '.';
        for (int i = 0; i < RECIPE_COUNT; i++) {
            known = known || strcmp(recipes[i].file, entry->d_name) == 0;
        }
        ck_assert_msg(known, "%s", entry->d_name);
        found += entry->d_name[0] != '.';
    }
    closedir(directory);
    ck_assert_int_eq(found, RECIPE_COUNT);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("recipes");

    suite_add(suite, every_recipe_is_tested);
    suite_add_loop(suite, a_recipe_gives_the_rates_and_groups_of_its_source, RECIPE_COUNT);
    return suite_run(suite);
}
