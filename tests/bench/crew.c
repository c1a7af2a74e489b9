#include "tests/bench/crew.h"

#include "client/include/paramd.h"
#include "common/heap.h"
#include "tests/bench/child.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* A model is cut into tensors of this size. */
#define TENSOR_ELEMENTS 1000000u
/* Steps of each kind before those that count. */
#define WARM_UP_STEPS 3u
/* Steps of one kind follow each other for about so long before the other's turn. */
#define TURN_NS 100000000
/* No step takes longer, unless something is broken. */
#define CALL_MS 60000
#define MEETING_S 90
#define END_MS 10000

/* ---- What the workers share ---- */

/* Where they wait for each other. */
struct meeting {
    _Atomic uint32_t arrived;
    _Atomic uint32_t round;
    _Atomic int64_t began_ns; /* when the last one came */
};

struct slot {
    int64_t ended_ns; /* of the worker's latest step */
    struct pd_error error;
};

struct crew_shared {
    struct meeting meeting;
    _Atomic uint32_t turn; /* steps of one kind in a row */
    struct slot slots[];
};

static long futex(_Atomic uint32_t *word, int operation, uint32_t value,
                  const struct timespec *timeout)
{
    return syscall(SYS_futex, word, operation, value, timeout, NULL, 0);
}

/* Wait until every worker is here. */
static enum pd_status meet(struct crew_shared *shared, uint32_t worker_count,
                           struct pd_error *error)
{
    struct meeting *meeting = &shared->meeting;
    const struct timespec timeout = {.tv_sec = MEETING_S};
    uint32_t round = atomic_load(&meeting->round);

    if (atomic_fetch_add(&meeting->arrived, 1) + 1 == worker_count) {
        atomic_store(&meeting->arrived, 0);
        atomic_store(&meeting->began_ns, child_now_ns());
        atomic_fetch_add(&meeting->round, 1);
        if (worker_count > 1) {
            (void)futex(&meeting->round, FUTEX_WAKE, INT32_MAX, NULL);
        }
        return PD_OK;
    }
    while (atomic_load(&meeting->round) == round) {
        if (futex(&meeting->round, FUTEX_WAIT, round, &timeout) != 0 && errno == ETIMEDOUT) {
            return pd_error_set(error, PD_ETIMEOUT, "the other workers did not come within %d s",
                                MEETING_S);
        }
    }
    return PD_OK;
}

/* ---- One worker ---- */

struct worker {
    const struct bench_options *options;
    const struct limit_servers *servers;
    struct crew_shared *shared;
    int samples; /* write end */
    uint32_t index;
    struct paramd_client *client;
    struct limit_client *limit; /* NULL: not one of its workers */
    uint32_t tensor_count;
    struct paramd_tensor *tensors;
    uint64_t *shapes;
    char (*names)[24];
    const float **gradients;
    float **values;
};

static enum pd_status paramd_fault(const struct paramd_error *from, struct pd_error *error)
{
    return pd_error_set(error, (enum pd_status)from->status, "%s", from->message);
}

/* Numbers in (-scale, scale), none so small that arithmetic with it is slow. */
static float *random_elements(uint64_t count, float scale, uint64_t seed)
{
    float *elements = pd_heap_zalloc(count, sizeof *elements);
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;

    for (uint64_t i = 0; elements != NULL && i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        elements[i] = scale * ((float)(int32_t)(state >> 32) / 2147483648.0f + 0x1p-33f);
    }
    return elements;
}

static enum pd_status allocate_model(struct worker *worker, struct pd_error *error)
{
    const struct bench_options *options = worker->options;
    uint64_t parameters = options->parameters;
    uint32_t count = (uint32_t)((parameters + TENSOR_ELEMENTS - 1) / TENSOR_ELEMENTS);
    float *gradient = random_elements(parameters, 0.01f, options->seed + worker->index + 1);
    float *values = random_elements(parameters, 0.1f, options->seed);

    worker->tensor_count = count;
    worker->tensors = pd_heap_zalloc(count, sizeof *worker->tensors);
    worker->shapes = pd_heap_zalloc(count, sizeof *worker->shapes);
    worker->names = pd_heap_zalloc(count, sizeof *worker->names);
    worker->gradients = pd_heap_zalloc(count, sizeof *worker->gradients);
    worker->values = pd_heap_zalloc(count, sizeof *worker->values);
    if (gradient == NULL || values == NULL || worker->tensors == NULL || worker->shapes == NULL ||
        worker->names == NULL || worker->gradients == NULL || worker->values == NULL) {
        return pd_error_set(error, PD_ENOMEM, "no memory for %" PRIu64 " parameters", parameters);
    }
    for (uint32_t i = 0; i < count; i++) {
        uint64_t begin = (uint64_t)i * TENSOR_ELEMENTS;
        uint64_t left = parameters - begin;
        snprintf(worker->names[i], sizeof worker->names[i], "tensor%" PRIu32, i);
        worker->shapes[i] = left < TENSOR_ELEMENTS ? left : TENSOR_ELEMENTS;
        worker->tensors[i] = (struct paramd_tensor){
            .name = worker->names[i], .dimension_count = 1, .shape = &worker->shapes[i]};
        worker->gradients[i] = gradient + begin;
        worker->values[i] = values + begin;
    }
    return PD_OK;
}

static enum pd_status connect_paramd(struct worker *worker, const char *address,
                                     struct pd_error *error)
{
    struct paramd_options options;
    struct paramd_error fault = {0};
    char name[32];

    snprintf(name, sizeof name, "worker%04" PRIu32, worker->index);
    paramd_options_init(&options);
    options.address = address;
    options.name = name;
    options.push_dtype = worker->options->wire;
    options.pull_dtype = worker->options->wire;
    options.checksum = worker->options->checksum;
    options.timeout_ms = CALL_MS;
    if (!worker->options->busy_poll) {
        options.busy_poll_us = 0;
    }
    if (paramd_connect(&options, &worker->client, &fault) != PARAMD_OK ||
        paramd_register(worker->client, worker->tensors, worker->tensor_count, worker->values,
                        &fault) != PARAMD_OK) {
        return paramd_fault(&fault, error);
    }
    return PD_OK;
}

static enum pd_status connect_limit(struct worker *worker, struct pd_error *error)
{
    uint64_t count = worker->servers->element_count;

    if (worker->servers->count == 0 || worker->index >= worker->servers->worker_count) {
        return PD_OK;
    }
    float *gradient = random_elements(count, 0.01f, worker->options->seed + worker->index + 1);
    float *values = random_elements(count, 0.1f, worker->options->seed);
    if (gradient == NULL || values == NULL) {
        return pd_error_set(error, PD_ENOMEM, "no memory for %" PRIu64 " parameters", count);
    }
    return limit_client_create(&worker->limit, worker->servers, gradient, values, error);
}

static enum pd_status step_paramd(struct worker *worker, struct pd_error *error)
{
    struct paramd_step_info info = {0};
    struct paramd_error fault = {0};

    if (paramd_step(worker->client, worker->gradients, 1, NULL, 0, worker->values, &info, &fault) !=
        PARAMD_OK) {
        return paramd_fault(&fault, error);
    }
    if (!info.pulled || info.skipped_steps != 0) {
        return pd_error_set(error, PD_ESTEP, "step %" PRIu64 " was skipped", info.version);
    }
    return PD_OK;
}

/* Worker 0 tells how long a step took that all have ended. */
static enum pd_status report(const struct worker *worker, enum crew_kind kind, bool measured,
                             int64_t began_ns, int64_t *took_ns, struct pd_error *error)
{
    int64_t ended_ns = 0;

    for (uint32_t i = 0; i < worker->options->workers; i++) {
        int64_t at_ns = worker->shared->slots[i].ended_ns;
        ended_ns = at_ns > ended_ns ? at_ns : ended_ns;
    }
    *took_ns = ended_ns - began_ns;
    struct crew_sample sample = {.kind = kind, .measured = measured, .ms = (double)*took_ns / 1e6};
    if (write(worker->samples, &sample, sizeof sample) != sizeof sample) {
        return pd_error_set(error, PD_EIO, "pipe: %s", strerror(errno));
    }
    return PD_OK;
}

/* One step of all workers. */
static enum pd_status take_step(struct worker *worker, enum crew_kind kind, bool measured,
                                int64_t *took_ns, struct pd_error *error)
{
    uint32_t worker_count = worker->options->workers;
    enum pd_status status = meet(worker->shared, worker_count, error);
    int64_t began_ns = atomic_load(&worker->shared->meeting.began_ns);

    if (status == PD_OK && kind == CREW_PARAMD) {
        status = step_paramd(worker, error);
    } else if (status == PD_OK && worker->limit != NULL) {
        status = limit_client_step(worker->limit, error);
    }
    if (status != PD_OK) {
        return status;
    }
    worker->shared->slots[worker->index].ended_ns = child_now_ns();
    status = meet(worker->shared, worker_count, error);
    if (status == PD_OK && worker->index == 0) {
        status = report(worker, kind, measured, began_ns, took_ns, error);
    }
    return status;
}

static enum pd_status take_turn(struct worker *worker, uint32_t step_count, bool measured,
                                struct pd_error *error)
{
    uint32_t kinds = worker->servers->count > 0 ? CREW_KIND_COUNT : CREW_LIMIT;
    enum pd_status status = PD_OK;
    int64_t took_ns = 0;
    int64_t longest_ns = 1;

    for (uint32_t kind = 0; kind < kinds; kind++) {
        for (uint32_t i = 0; i < step_count && status == PD_OK; i++) {
            status = take_step(worker, (enum crew_kind)kind, measured, &took_ns, error);
        }
        longest_ns = took_ns > longest_ns ? took_ns : longest_ns;
    }
    if (worker->index == 0 && !measured) {
        int64_t turn = TURN_NS / longest_ns;
        atomic_store(&worker->shared->turn, turn > 1 ? (uint32_t)turn : 1);
    }
    return status;
}

static enum pd_status work(struct worker *worker, const char *address, struct pd_error *error)
{
    struct paramd_error fault = {0};
    uint32_t left = worker->options->iterations;
    enum pd_status status = allocate_model(worker, error);

    if (status == PD_OK) {
        status = connect_paramd(worker, address, error);
    }
    if (status == PD_OK) {
        status = connect_limit(worker, error);
    }
    if (status == PD_OK) {
        status = take_turn(worker, WARM_UP_STEPS, false, error);
    }
    if (status == PD_OK) {
        status = meet(worker->shared, worker->options->workers, error);
    }
    uint32_t turn = atomic_load(&worker->shared->turn);
    while (status == PD_OK && left > 0) {
        uint32_t count = turn < left ? turn : left;
        status = take_turn(worker, count, true, error);
        left -= count;
    }
    if (status == PD_OK && paramd_leave(worker->client, &fault) != PARAMD_OK) {
        status = paramd_fault(&fault, error);
    }
    return status;
}

/* ---- All of them ---- */

/* The process of a worker: its memory and connections end with it. */
static _Noreturn void be_worker(struct crew *crew, const struct bench_options *options,
                                const char *address, const struct limit_servers *servers,
                                uint32_t index, int samples)
{
    struct worker worker = {.options = options,
                            .servers = servers,
                            .shared = crew->shared,
                            .samples = samples,
                            .index = index};
    struct pd_error *error = &crew->shared->slots[index].error;

    _exit(work(&worker, address, error) == PD_OK ? 0 : 1);
}

enum pd_status crew_start(struct crew *crew, const struct bench_options *options,
                          const char *address, const struct limit_servers *servers,
                          struct pd_error *error)
{
    int ends[2];
    uint32_t count = options->workers;

    *crew = (struct crew){.worker_count = count, .samples = -1};
    crew->shared_bytes = sizeof *crew->shared + count * sizeof crew->shared->slots[0];
    crew->pids = pd_heap_zalloc(count, sizeof *crew->pids);
    crew->shared =
        mmap(NULL, crew->shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (crew->shared == MAP_FAILED) {
        crew->shared = NULL;
    }
    if (crew->pids == NULL || crew->shared == NULL) {
        return pd_error_set(error, PD_ENOMEM, "no memory for %" PRIu32 " workers", count);
    }
    if (pipe(ends) != 0) {
        return pd_error_set(error, PD_EIO, "pipe: %s", strerror(errno));
    }
    crew->samples = ends[0];
    enum pd_status status = PD_OK;
    for (uint32_t i = 0; i < count && status == PD_OK; i++) {
        status = child_fork(&crew->pids[i], error);
        if (status == PD_OK && crew->pids[i] == 0) {
            be_worker(crew, options, address, servers, i, ends[1]);
        }
    }
    close(ends[1]);
    return status;
}

/* A fault if a worker has failed, or has not ended within `timeout_ms` unless that is 0. */
static enum pd_status check_workers(struct crew *crew, int64_t timeout_ms, struct pd_error *error)
{
    for (uint32_t i = 0; i < crew->worker_count; i++) {
        const struct pd_error *said = &crew->shared->slots[i].error;
        int code = 0;
        if (crew->pids[i] <= 0) {
            continue;
        }
        if (!child_ended(crew->pids[i], timeout_ms, &code)) {
            if (timeout_ms > 0) {
                return pd_error_set(error, PD_ETIMEOUT, "worker %" PRIu32 " does not end", i);
            }
            continue;
        }
        crew->pids[i] = 0;
        if (code != 0 && said->message[0] != '\0') {
            return pd_error_set(error, said->status, "worker %" PRIu32 ": %.400s", i,
                                said->message);
        }
        if (code != 0) {
            return pd_error_set(error, PD_EIO, "worker %" PRIu32 " ended with exit code %d", i,
                                code);
        }
    }
    return PD_OK;
}

enum pd_status crew_next(struct crew *crew, int64_t timeout_ms, enum crew_news *news,
                         struct crew_sample *sample, struct pd_error *error)
{
    struct pollfd readable = {.fd = crew->samples, .events = POLLIN};

    *news = CREW_SILENT;
    if (poll(&readable, 1, (int)timeout_ms) <= 0) {
        return check_workers(crew, 0, error);
    }
    if (read(crew->samples, sample, sizeof *sample) == sizeof *sample) {
        *news = CREW_SAMPLE;
        return PD_OK;
    }
    /* Every worker has closed its end of the pipe. */
    *news = CREW_ENDED;
    return check_workers(crew, END_MS, error);
}

void crew_stop(struct crew *crew)
{
    for (uint32_t i = 0; crew->pids != NULL && i < crew->worker_count; i++) {
        if (crew->pids[i] > 0) {
            child_kill(crew->pids[i]);
        }
    }
    pd_heap_free(crew->pids);
    if (crew->shared != NULL) {
        (void)munmap(crew->shared, crew->shared_bytes);
    }
    if (crew->samples >= 0) {
        close(crew->samples);
    }
}
