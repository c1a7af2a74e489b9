#include "server/io/signals.h"

#include "common/heap.h"
#include "server/io/log.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { OPERATOR_SIGNAL_COUNT = 3, HANDLE_COUNT = 4 };

static const struct {
    int number;
    const char *name;
} operator_signals[OPERATOR_SIGNAL_COUNT] = {
    {SIGTERM, "SIGTERM"}, {SIGINT, "SIGINT"}, {SIGUSR1, "SIGUSR1"}};

/* The process that started this one, as it was at the start. Set once by pd_signals_prepare. */
static pid_t launcher;

/* Owner: the loop thread. */
struct pd_signals {
    uv_signal_t handles[HANDLE_COUNT];
    struct pd_loop *loop;
    uint32_t handles_open;
    bool launched;
    bool asked; /* a SIGTERM or SIGINT came before */
};

/* The operator's signal that came before there was a loop to tell; 0: none. */
static volatile sig_atomic_t early_signal;

static void note_early(int number)
{
    if (early_signal != 0 && number != SIGUSR1) {
        _exit(1);
    }
    early_signal = number;
}

/* A real-time signal nobody else sends. */
static int launcher_signal(void)
{
    return SIGRTMIN + 7;
}

bool pd_signals_launched(void)
{
    return getenv("OMPI_COMM_WORLD_SIZE") != NULL;
}

void pd_signals_prepare(bool launched)
{
    (void)signal(SIGPIPE, SIG_IGN);
    for (uint32_t i = 0; i < OPERATOR_SIGNAL_COUNT; i++) {
        (void)signal(operator_signals[i].number, note_early);
    }
    launcher = getppid();
    if (launched) {
        (void)prctl(PR_SET_PDEATHSIG, launcher_signal());
    }
}

static void ask_to_drain(struct pd_signals *signals, int number)
{
    struct pd_event event = {.kind = PD_EVENT_DRAIN};

    for (uint32_t i = 0; i < OPERATOR_SIGNAL_COUNT; i++) {
        if (operator_signals[i].number == number) {
            event.text = operator_signals[i].name;
        }
    }
    if (number != SIGUSR1) {
        if (signals->asked) {
            pd_log("a second %s: stopping at once", event.text);
            _exit(1);
        }
        signals->asked = true;
    }
    pd_loop_emit(signals->loop, &event);
}

void pd_signals_tick(struct pd_signals *signals)
{
    if (early_signal != 0) {
        int number = early_signal;
        early_signal = 0;
        ask_to_drain(signals, number);
    }
    if (signals->launched && getppid() != launcher) {
        pd_log("mpirun is gone: stopping");
        _exit(1);
    }
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct pd_signals *signals = handle->data;

    if (number == launcher_signal()) {
        pd_signals_tick(signals);
        return;
    }
    ask_to_drain(signals, number);
    pd_loop_settle(signals->loop);
}

enum pd_status pd_signals_create(struct pd_signals **out, struct pd_loop *loop, bool launched,
                                 struct pd_error *error)
{
    *out = NULL;
    struct pd_signals *signals = pd_heap_zalloc(1, sizeof *signals);
    if (signals == NULL) {
        return pd_error_set(error, PD_ENOMEM, "signals: out of memory");
    }
    signals->loop = loop;
    signals->launched = launched;
    for (uint32_t i = 0; i < HANDLE_COUNT; i++) {
        uv_signal_t *handle = &signals->handles[i];
        int number = i < OPERATOR_SIGNAL_COUNT ? operator_signals[i].number : launcher_signal();
        handle->data = signals;
        int result = uv_signal_init(pd_loop_uv(loop), handle);
        if (result == 0) {
            signals->handles_open++;
            result = uv_signal_start(handle, on_signal, number);
        }
        if (result != 0) {
            pd_signals_destroy(signals);
            return pd_error_set(error, PD_EIO, "signals: %s", uv_strerror(result));
        }
    }
    *out = signals;
    return PD_OK;
}

static void on_closed(uv_handle_t *handle)
{
    struct pd_signals *signals = handle->data;
    signals->handles_open--;
    if (signals->handles_open == 0) {
        pd_heap_free(signals);
    }
}

void pd_signals_destroy(struct pd_signals *signals)
{
    if (signals == NULL) {
        return;
    }
    if (signals->handles_open == 0) {
        pd_heap_free(signals);
        return;
    }
    for (uint32_t i = signals->handles_open; i > 0; i--) {
        uv_close((uv_handle_t *)&signals->handles[i - 1], on_closed);
    }
    /* The job ends by rank 0's word: the same signal may reach a slower rank only now. */
    for (uint32_t i = 0; i < OPERATOR_SIGNAL_COUNT; i++) {
        (void)signal(operator_signals[i].number, SIG_IGN);
    }
}
