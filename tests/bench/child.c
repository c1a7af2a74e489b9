#include "tests/bench/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EXIT_NOT_STARTED 127

int64_t child_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t child_now_ms(void)
{
    return child_now_ns() / 1000000;
}

static volatile sig_atomic_t signal_caught;

static void on_signal(int number)
{
    signal_caught = number;
}

void child_catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};

    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
}

enum pd_status child_interrupted(struct pd_error *error)
{
    return signal_caught == 0
               ? PD_OK
               : pd_error_set(error, PD_EIO, "interrupted: %s", strsignal(signal_caught));
}

static enum pd_status system_fault(struct pd_error *error, const char *call)
{
    return pd_error_set(error, PD_EIO, "%s: %s", call, strerror(errno));
}

/* In the child: end with the parent, and take signals as any program does. */
static void end_with_parent(pid_t parent, int signal_number)
{
    sigset_t none;

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    (void)signal(SIGINT, SIG_DFL);
    (void)signal(SIGTERM, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, signal_number);
    if (getppid() != parent) {
        _exit(EXIT_NOT_STARTED);
    }
}

static _Noreturn void become(const char *const *words, int output, const char *log_path,
                             pid_t parent)
{
    union {
        const char *const *given;
        char *const *taken;
    } argv = {.given = words};

    end_with_parent(parent, SIGTERM);
    /* A group of its own: Ctrl-C at the terminal is the bench's to handle. */
    setpgid(0, 0);
    int empty = open("/dev/null", O_RDONLY);
    int log = open(log_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(empty, STDIN_FILENO);
    dup2(output, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execvp(argv.taken[0], argv.taken);
    (void)!write(STDERR_FILENO, argv.taken[0], strlen(argv.taken[0]));
    (void)!write(STDERR_FILENO, ": not found\n", strlen(": not found\n"));
    _exit(EXIT_NOT_STARTED);
}

enum pd_status child_exec(pid_t *pid, const char *const *words, int *output, const char *log_path,
                          struct pd_error *error)
{
    pid_t parent = getpid();
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) != 0) {
        return system_fault(error, "pipe");
    }
    *pid = fork();
    if (*pid == 0) {
        become(words, ends[1], log_path, parent);
    }
    close(ends[1]);
    *output = ends[0];
    if (*pid < 0) {
        *pid = 0;
        return system_fault(error, "fork");
    }
    return PD_OK;
}

enum pd_status child_fork(pid_t *pid, struct pd_error *error)
{
    pid_t parent = getpid();

    *pid = fork();
    if (*pid < 0) {
        return system_fault(error, "fork");
    }
    if (*pid == 0) {
        end_with_parent(parent, SIGKILL);
    }
    return PD_OK;
}

bool child_ended(pid_t pid, int64_t timeout_ms, int *code)
{
    int status = 0;

    if (waitpid(pid, &status, WNOHANG) != pid) {
        struct pollfd ended = {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};
        int found = timeout_ms > 0 ? poll(&ended, 1, (int)timeout_ms) : 0;
        close(ended.fd);
        if (found <= 0 || waitpid(pid, &status, 0) != pid) {
            return false;
        }
    }
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return true;
}

void child_kill(pid_t pid)
{
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
}
