/* How a daemon starts: what the command line and the configuration say, a model from a file, and
 * failures that say what and where, with nothing left running. */
#include "tests/support/cluster.h"
#include "tests/support/peer.h"
#include "tests/support/suite.h"
#include "tests/support/training.h"
#include "tests/support/trial.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WORDS(...)                                                                                 \
    (const char *const[])                                                                          \
    {                                                                                              \
        PARAMD_PROGRAM, __VA_ARGS__, NULL                                                          \
    }

static struct cluster cluster;

/* paramd must end with that code; the text is on standard output for 0, else on standard error. */
static void expect_end(const char *const *words, int code, const char *text)
{
    struct process_result result = process_run(words);
    const char *said = code == 0 ? result.output : result.errors;

    ck_assert_msg(result.code == code, "exit code %d: %s", result.code, result.errors);
    ck_assert_msg(strstr(said, text) != NULL, "no '%s' in '%s'", text, said);
    if (code != 0) {
        const char *line_end = strchr(said, '\n');
        ck_assert_msg(line_end != NULL && line_end[1] == '\0', "not one line: '%s'", said);
        ck_assert_str_eq(result.output, "");
    }
    process_result_finish(&result);
}

static char *write_config(const char *text)
{
    return suite_write_file("test.yaml", text, strlen(text));
}

/* ---- Command line ---- */

START_TEST(help_and_version_are_printed)
{
    expect_end(WORDS("--version"), 0, "paramd " PARAMD_VERSION);
    expect_end(WORDS("--help"), 0, "--check-config FILE");
    expect_end(WORDS("--help"), 0, "accumulation_steps = 1");
    expect_end(WORDS("--help", "--nonsense"), 0, "--config FILE");
}
END_TEST

START_TEST(words_that_are_none_are_named_with_those_allowed)
{
    expect_end(WORDS("--nonsense"), 2, "--nonsense: unknown; allowed: --config FILE");
    expect_end(WORDS("serve"), 2, "serve: unknown; allowed: --config FILE");
    expect_end(WORDS("--config"), 2, "--config: needs a value");
    expect_end(WORDS("--set", "block_size"), 2, "block_size: not a setting; allowed: key=value");
    expect_end(WORDS("--config", "/a", "--config", "/b"), 2, "allowed: one configuration file");
}
END_TEST

START_TEST(check_config_says_what_a_file_means_and_starts_nothing)
{
    char *path = write_config("optimizer: {name: lamb, lr: 0.25}\naggregation: direct\n"
                              "workers: {expected: 7}\n");

    expect_end(WORDS("--check-config", path), 0, "valid");
    expect_end(WORDS("--check-config", path), 0, "optimizer: lamb, lr 0.25");
    expect_end(WORDS("--check-config", path), 0, "aggregation: direct");
    expect_end(WORDS("--check-config", path), 0, "7 expected");
    expect_end(WORDS("--check-config", path, "--set", "optimizer.lr=0.5"), 0, "lamb, lr 0.5");
    expect_end(WORDS("--check-config", "/no/such/file"), 1,
               "/no/such/file: No such file or directory");
    free(path);
}
END_TEST

/* ---- Configuration ---- */

static const struct {
    const char *config;
    const char *said; /* behind the name of the file */
} faults[] = {
    {"block_size: 64\nblocksize: 64\n", ":2: blocksize: unknown key; did you mean block_size?"},
    {"block_size: many\n", ":1: block_size: many: "},
    {"\nblock_size: 0\n", ":2: block_size: 0: out of range; allowed: a whole number from 1 to"},
    {"workers: {expected: 2, expectd: 3}\n", ":1: workers.expectd: unknown key"},
    {"workers: 3\n", ":1: workers: "},
    {"aggregation: gossip\n", ":1: aggregation: gossip: "},
    {"optimizer: {name: sgdx}\n", ":1: optimizer.name: sgdx: unknown; allowed: sgd"},
    {"optimizer: {name: sgd, betas: [0.9, 0.99]}\n", ":1: optimizer.betas: "},
    {"optimizer: {lr: -1}\n", ":1: optimizer.lr: -1: out of range"},
    {"schedule: [{name: linear}, {name: spiral}]\n", ":1: schedule.1.name: spiral: unknown"},
    {"clip: {norm: 1\n", ":2: not YAML: "},
    {"listen: 0.0.0.0:0\n", ":1: listen: 0.0.0.0:0: beyond loopback"},
    {"checkpoint: {dir: ckpt}\n", ":1: checkpoint: checkpoints are not in this version"},
};

START_TEST(fault_in_a_file_is_named_with_line_and_key_and_nothing_starts)
{
    char *path = write_config(faults[_i].config);
    char text[512];

    snprintf(text, sizeof text, "paramd: %s%s", path, faults[_i].said);
    expect_end(WORDS("--check-config", path), 1, text);
    expect_end(WORDS("--config", path), 1, text);
    free(path);
}
END_TEST

START_TEST(setting_goes_over_the_file)
{
    char *path = write_config("listen: 127.0.0.1:1\nblock_size: 64\n");

    expect_end(WORDS("--config", path, "--set", "block_size=0"), 1,
               "--set block_size=0: block_size: 0: out of range");
    struct process *daemon = process_start(
        WORDS("--config", path, "--set", "listen=127.0.0.1:0", "--set", "workers.expected=3"));
    process_await_output(daemon, "paramd ready: 1 rank: 0 at 127.0.0.1:");
    process_stop(daemon);
    free(path);
}
END_TEST

/* Beyond loopback, workers are told the name that is advertised, and come by it. */
START_TEST(workers_come_by_the_name_that_is_advertised)
{
    static const struct trial_tensor model[] = {{"w", 1, {8}}};
    struct trial trial;

    trial_begin(&trial, 2, "direct",
                "listen: 0.0.0.0:0\ninsecure: true\nadvertise: localhost\n"
                "optimizer: {name: sgd, lr: 0.5}\n",
                model, 1);
    for (uint32_t rank = 0; rank < 2; rank++) {
        const char *address = trial.cluster.addresses[rank];
        ck_assert_msg(strncmp(address, "localhost:", 10) == 0, "%s", address);
    }
    trial_step_all(&trial, 1);
    ck_assert_float_eq(trial.values[7], 0.5f);
    trial_end(&trial);
}
END_TEST

/* ---- Failures under mpirun ---- */

/* The job must end with code 1 and say `text` once, without having been ready. */
static void expect_no_start(const char *text)
{
    int code = process_wait(cluster.process);
    char *output = process_output(cluster.process);
    process_await_error(cluster.process, text);
    char *errors = process_errors(cluster.process);

    ck_assert_msg(code == 1, "exit code %d: %s", code, errors);
    ck_assert_msg(strstr(output, "ready") == NULL, "%s", output);
    ck_assert_msg(strstr(strstr(errors, text) + 1, text) == NULL, "said twice: %s", errors);
    free(output);
    free(errors);
    cluster_stop(&cluster);
}

START_TEST(bad_configuration_starts_no_rank)
{
    cluster_launch(&cluster, 3, "block_size: 0\n");
    expect_no_start("block_size: 0: out of range");
    cluster_launch(&cluster, 3, "lanes: 2\n");
    expect_no_start("lanes: 2 on 3 ranks; allowed: a divisor of 3");
}
END_TEST

/* Rank 0 finds its port taken, or the rank behind it does. */
START_TEST(port_in_use_is_named)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t address_bytes = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(listen(fd, 1), 0);
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&address, &address_bytes), 0);
    cluster_launch(&cluster, 2, "listen: 127.0.0.1:%d\n", ntohs(address.sin_port) - _i);
    expect_no_start("Address already in use");
    close(fd);
}
END_TEST

START_TEST(missing_or_broken_model_file_is_named)
{
    char *path = suite_write_file("broken.safetensors", "not a model at all", 18);

    cluster_launch(&cluster, 2, "model: /no/such/model.safetensors\n");
    expect_no_start("/no/such/model.safetensors: No such file or directory");
    cluster_launch(&cluster, 2, "model: %s\n", path);
    expect_no_start(path);
    free(path);
}
END_TEST

/* ---- A model from a file ---- */

/* The reference model with values of its own, some tensors in 16 bits; the path is for free. */
static char *write_model(float *values)
{
    static uint8_t file[65536];
    char header[4096];
    size_t used = 1;
    size_t payload_bytes = 0;
    static uint8_t payload[REFERENCE_ELEMENT_COUNT * 4];
    static const char *const names[] = {"F32", "BF16", "F16"};
    float *next = values;

    header[0] = '{';
    for (uint32_t i = 0; i < REFERENCE_TENSOR_COUNT; i++) {
        const struct reference_tensor *tensor = &reference_tensors[i];
        enum pd_dtype dtype = (enum pd_dtype)(i % 3);
        size_t begin = payload_bytes;
        for (uint64_t k = 0; k < tensor->element_count; k++) {
            next[k] = (float)((int)(k % 17) - 8) * 0.25f + (float)i;
        }
        pd_convert_from_float32(payload + begin, dtype, next, tensor->element_count);
        next += tensor->element_count;
        payload_bytes += tensor->element_count * pd_dtype_bytes(dtype);
        used += (size_t)snprintf(header + used, sizeof header - used,
                                 "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i > 0 ? "," : "",
                                 tensor->name, names[dtype]);
        for (uint32_t d = 0; d < tensor->dimension_count; d++) {
            used += (size_t)snprintf(header + used, sizeof header - used, "%s%lu", d > 0 ? "," : "",
                                     (unsigned long)tensor->shape[d]);
        }
        used += (size_t)snprintf(header + used, sizeof header - used,
                                 "],\"data_offsets\":[%zu,%zu]}", begin, payload_bytes);
    }
    header[used++] = '}';
    while (used % 8 != 0) {
        header[used++] = ' ';
    }
    memset(file, 0, 8);
    file[0] = (uint8_t)used;
    file[1] = (uint8_t)(used >> 8);
    memcpy(file + 8, header, used);
    memcpy(file + 8 + used, payload, payload_bytes);
    return suite_write_file("model.safetensors", file, 8 + used + payload_bytes);
}

static const struct {
    uint32_t rank_count;
    const char *aggregation;
} grids[] = {{CLUSTER_ALONE, "allreduce"}, {2, "allreduce"}, {3, "direct"}};

START_TEST(model_file_gives_the_initial_values)
{
    float expected[REFERENCE_ELEMENT_COUNT];
    float values[REFERENCE_ELEMENT_COUNT];
    char *path = write_model(expected);
    struct training_options options;
    const char *address = cluster.addresses[0];

    cluster_start(&cluster, grids[_i].rank_count,
                  "model: %s\naggregation: %s\nblock_size: 64\nworkers: {expected: 2}\n", path,
                  grids[_i].aggregation);
    training_options_init(&options, &address, 2, 3);
    struct training *training = training_start(&options);
    for (uint32_t worker = 0; worker < 2; worker++) {
        training_values(training, worker, values);
        ck_assert_mem_eq(values, expected, sizeof values);
    }
    training_finish(training, values);
    ck_assert_mem_ne(values, expected, sizeof values);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
    free(path);
}
END_TEST

START_TEST(worker_that_disagrees_with_the_file_is_told)
{
    float expected[REFERENCE_ELEMENT_COUNT];
    char *path = write_model(expected);
    struct pd_message message = {.kind = PD_MESSAGE_REGISTER};
    struct pd_error error = {0};
    uint64_t shape[2] = {37, 21};

    cluster_start(&cluster, 2, "model: %s\n", path);
    struct peer *peer = peer_connect(cluster.addresses[0]);
    (void)peer_join(peer, "worker", NULL);
    ck_assert_int_eq(pd_tensor_list_init(&message.registration.tensors, 1, &error), PD_OK);
    ck_assert_int_eq(pd_tensor_list_append(&message.registration.tensors, "embedding.weight", 16, 2,
                                           shape, &error),
                     PD_OK);
    peer_send(peer, &message, NULL, 0);
    peer_expect_error(peer, PD_EMODEL, false, "");
    pd_tensor_list_finish(&message.registration.tensors);
    peer_close(peer);
    cluster_drain(&cluster);
    cluster_stop(&cluster);
    free(path);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("start");

    suite_add(suite, help_and_version_are_printed);
    suite_add(suite, words_that_are_none_are_named_with_those_allowed);
    suite_add(suite, check_config_says_what_a_file_means_and_starts_nothing);
    suite_add_loop(suite, fault_in_a_file_is_named_with_line_and_key_and_nothing_starts,
                   sizeof faults / sizeof faults[0]);
    suite_add(suite, setting_goes_over_the_file);
    suite_add(suite, workers_come_by_the_name_that_is_advertised);
    suite_add(suite, bad_configuration_starts_no_rank);
    suite_add_loop(suite, port_in_use_is_named, 2);
    suite_add(suite, missing_or_broken_model_file_is_named);
    suite_add_loop(suite, model_file_gives_the_initial_values, 3);
    suite_add(suite, worker_that_disagrees_with_the_file_is_told);
    return suite_run(suite);
}
