#include "server/io/signals.h"

#include "common/assert.h"
#include "common/heap.h"
#include "server/io/log.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { OPERATOR_SIGNAL_COUNT = 3 };

static const struct {
    int number;
    const char *name;
} operator_signals[OPERATOR_SIGNAL_COUNT] = {
    {SIGTERM, "SIGTERM"}, {SIGINT, "SIGINT"}, {SIGUSR1, "SIGUSR1"}};

/* The process that started this one, as it was at the start. Set once by pd_signals_prepare. */
static pid_t launcher;

/* A handler writes the number of its signal into the second, the loop reads it from the first. They
 * outlive every pd_signals, so that a handler can run at any time and on any thread; and so do the
 * handlers: what libuv does when it takes a handler back leaves a moment in which the signal kills.
 * Set once by pd_signals_prepare. */
static int pipe_fds[2] = {-1, -1};

/* A SIGTERM or SIGINT came before. */
static volatile sig_atomic_t asked;

/* Owner: the loop thread. */
struct pd_signals {
    uv_poll_t poll;
    struct pd_loop *loop;
    bool launched;
};

static void note(int number)
{
    /* NOLINTNEXTLINE(bugprone-signal-handler,cert-sig30-c): POSIX allows errno here. */
    const int kept_errno = errno;
    const uint8_t byte = (uint8_t)number;
    /* When the pipe is full, the loop has more than enough to read. */
    ssize_t ignored = write(pipe_fds[1], &byte, 1);
    (void)ignored;
    errno = kept_errno;
}

static void note_operator(int number)
{
    static const char text[] = "paramd: a second signal: stopping at once\n";

    if (number != SIGUSR1) {
        if (asked != 0) {
            ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
            (void)ignored;
            _exit(1);
        }
        asked = 1;
    }
    note(number);
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

enum pd_status pd_signals_prepare(bool launched, struct pd_error *error)
{
    if (pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK) != 0) {
        return pd_error_set(error, PD_EIO, "signals: pipe: %s", strerror(errno));
    }
    (void)signal(SIGPIPE, SIG_IGN);
    for (uint32_t i = 0; i < OPERATOR_SIGNAL_COUNT; i++) {
        (void)signal(operator_signals[i].number, note_operator);
    }
    launcher = getppid();
    if (launched) {
        (void)prctl(PR_SET_PDEATHSIG, launcher_signal());
    }
    return PD_OK;
}

void pd_signals_tick(struct pd_signals *signals)
{
    if (signals->launched && getppid() != launcher) {
        pd_log("mpirun is gone: stopping");
        _exit(1);
    }
}

static void take(struct pd_signals *signals, int number)
{
    struct pd_event event = {.kind = PD_EVENT_DRAIN};

    if (number == launcher_signal()) {
        pd_signals_tick(signals);
        return;
    }
    for (uint32_t i = 0; i < OPERATOR_SIGNAL_COUNT; i++) {
        if (operator_signals[i].number == number) {
            event.text = operator_signals[i].name;
        }
    }
    pd_loop_emit(signals->loop, &event);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct pd_signals *signals = poll->data;
    uint8_t numbers[16];
    (void)status;
    (void)events;

    ssize_t count = read(pipe_fds[0], numbers, sizeof numbers);
    for (ssize_t i = 0; i < count; i++) {
        take(signals, numbers[i]);
    }
    pd_loop_settle(signals->loop);
}

enum pd_status pd_signals_create(struct pd_signals **out, struct pd_loop *loop, bool launched,
                                 struct pd_error *error)
{
    *out = NULL;
    PD_ASSERT(pipe_fds[0] >= 0);
    struct pd_signals *signals = pd_heap_zalloc(1, sizeof *signals);
    if (signals == NULL) {
        return pd_error_set(error, PD_ENOMEM, "signals: out of memory");
    }
    signals->loop = loop;
    signals->launched = launched;
    signals->poll.data = signals;
    int result = uv_poll_init(pd_loop_uv(loop), &signals->poll, pipe_fds[0]);
    if (result != 0) {
        pd_heap_free(signals);
        return pd_error_set(error, PD_EIO, "signals: %s", uv_strerror(result));
    }
    (void)uv_poll_start(&signals->poll, UV_READABLE, on_readable);
    (void)signal(launcher_signal(), note);
    *out = signals;
    return PD_OK;
}

static void on_closed(uv_handle_t *handle)
{
    pd_heap_free(handle->data);
}

void pd_signals_destroy(struct pd_signals *signals)
{
    if (signals == NULL) {
        return;
    }
    /* The job ends by rank 0's word: the same signal may reach a slower rank only now. */
    for (uint32_t i = 0; i < OPERATOR_SIGNAL_COUNT; i++) {
        (void)signal(operator_signals[i].number, SIG_IGN);
    }
    (void)signal(launcher_signal(), SIG_DFL);
    uv_close((uv_handle_t *)&signals->poll, on_closed);
}
