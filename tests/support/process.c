#include "tests/support/process.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { STREAM_OUTPUT, STREAM_ERROR, STREAM_COUNT };

#define READ_BYTES 65536u

/* What came on one stream. Owner: whoever holds the lock of the process. */
struct stream {
    int fd; /* the reader's */
    char *text;
    size_t byte_count;
    bool ended;
};

struct process {
    pid_t pid;
    int pid_fd; /* readable once the process has ended */
    bool reaped;
    int code;
    pthread_t reader;
    int stop_fds[2]; /* closing the second ends the reader */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct stream streams[STREAM_COUNT];
};

int64_t process_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---- Output ---- */

/* Take in what can be read; at the end, close. */
static void take(struct process *process, struct stream *stream)
{
    char bytes[READ_BYTES];
    ssize_t count = read(stream->fd, bytes, sizeof bytes);

    if (count < 0 && errno == EINTR) {
        return;
    }
    pthread_mutex_lock(&process->lock);
    if (count <= 0) {
        stream->ended = true;
    } else {
        char *grown = realloc(stream->text, stream->byte_count + (size_t)count + 1);
        if (grown == NULL) {
            abort();
        }
        memcpy(grown + stream->byte_count, bytes, (size_t)count);
        stream->text = grown;
        stream->byte_count += (size_t)count;
        stream->text[stream->byte_count] = '\0';
    }
    pthread_cond_broadcast(&process->changed);
    pthread_mutex_unlock(&process->lock);
}

static void *collect(void *argument)
{
    struct process *process = argument;

    for (;;) {
        struct pollfd fds[STREAM_COUNT + 1] = {{0}};
        bool any = false;
        for (int i = 0; i < STREAM_COUNT; i++) {
            fds[i].fd = process->streams[i].ended ? -1 : process->streams[i].fd;
            fds[i].events = POLLIN;
            any = any || fds[i].fd >= 0;
        }
        fds[STREAM_COUNT].fd = process->stop_fds[0];
        fds[STREAM_COUNT].events = POLLIN;
        if (!any) {
            return NULL;
        }
        if (poll(fds, STREAM_COUNT + 1, -1) < 0) {
            continue;
        }
        for (int i = 0; i < STREAM_COUNT; i++) {
            if (fds[i].revents != 0) {
                take(process, &process->streams[i]);
            }
        }
        if (fds[STREAM_COUNT].revents != 0) {
            return NULL;
        }
    }
}

static char *copy_of(struct process *process, int which)
{
    pthread_mutex_lock(&process->lock);
    const struct stream *stream = &process->streams[which];
    char *copy = strdup(stream->text != NULL ? stream->text : "");
    pthread_mutex_unlock(&process->lock);
    return copy;
}

char *process_output(struct process *process)
{
    return copy_of(process, STREAM_OUTPUT);
}

char *process_errors(struct process *process)
{
    return copy_of(process, STREAM_ERROR);
}

static struct timespec deadline_in(int64_t timeout_ms)
{
    int64_t at_ms = process_now_ms() + timeout_ms;
    return (struct timespec){.tv_sec = at_ms / 1000, .tv_nsec = at_ms % 1000 * 1000000};
}

/* The line `text` is in, once that line is whole. */
static char *find_line(const struct stream *stream, const char *text)
{
    const char *found = stream->text != NULL ? strstr(stream->text, text) : NULL;
    const char *end = found != NULL ? strchr(found, '\n') : NULL;

    if (end == NULL) {
        return NULL;
    }
    while (found > stream->text && found[-1] != '\n') {
        found--;
    }
    return strndup(found, (size_t)(end - found));
}

static char *await(struct process *process, int which, const char *text)
{
    struct timespec deadline = deadline_in(PROCESS_DEADLINE_MS);
    struct stream *stream = &process->streams[which];
    char *line = NULL;
    int late = 0;

    pthread_mutex_lock(&process->lock);
    for (;;) {
        line = find_line(stream, text);
        if (line != NULL || stream->ended || late != 0) {
            break;
        }
        late = pthread_cond_timedwait(&process->changed, &process->lock, &deadline);
    }
    pthread_mutex_unlock(&process->lock);
    if (line == NULL) {
        char *output = process_output(process);
        char *errors = process_errors(process);
        ck_abort_msg("no '%s' %s; output: %.1000s; errors: %.3000s", text,
                     late != 0 ? "in time" : "before the end", output, errors);
    }
    return line;
}

void process_await_output(struct process *process, const char *text)
{
    free(await(process, STREAM_OUTPUT, text));
}

void process_await_error(struct process *process, const char *text)
{
    free(await(process, STREAM_ERROR, text));
}

char *process_await_output_line(struct process *process, const char *text)
{
    return await(process, STREAM_OUTPUT, text);
}

/* ---- Start and end ---- */

/* Between fork and exec: nothing but system calls. */
static _Noreturn void become(const char *const *argv, const int *pipes, pid_t parent)
{
    sigset_t none;
    union {
        const char *const *given;
        char *const *taken;
    } words = {.given = argv};

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) {
        _exit(127);
    }
    int empty = open("/dev/null", O_RDONLY);
    dup2(empty, STDIN_FILENO);
    dup2(pipes[1], STDOUT_FILENO);
    dup2(pipes[3], STDERR_FILENO);
    execvp(words.taken[0], words.taken);
    _exit(127);
}

static void init_locks(struct process *process)
{
    pthread_condattr_t attributes;

    pthread_mutex_init(&process->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&process->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

struct process *process_start(const char *const *argv)
{
    struct process *process = calloc(1, sizeof *process);
    pid_t parent = getpid();
    int pipes[4];

    ck_assert_ptr_nonnull(process);
    ck_assert_int_eq(pipe2(&pipes[0], O_CLOEXEC), 0);
    ck_assert_int_eq(pipe2(&pipes[2], O_CLOEXEC), 0);
    ck_assert_int_eq(pipe2(process->stop_fds, O_CLOEXEC), 0);
    init_locks(process);
    process->pid = fork();
    ck_assert_int_ge(process->pid, 0);
    if (process->pid == 0) {
        become(argv, pipes, parent);
    }
    process->pid_fd = (int)syscall(SYS_pidfd_open, process->pid, 0);
    ck_assert_int_ge(process->pid_fd, 0);
    close(pipes[1]);
    close(pipes[3]);
    process->streams[STREAM_OUTPUT].fd = pipes[0];
    process->streams[STREAM_ERROR].fd = pipes[2];
    ck_assert_int_eq(pthread_create(&process->reader, NULL, collect, process), 0);
    return process;
}

pid_t process_pid(const struct process *process)
{
    return process->pid;
}

void process_signal(const struct process *process, int number)
{
    ck_assert_msg(!process->reaped, "signal %d for a process that has ended", number);
    ck_assert_int_eq(kill(process->pid, number), 0);
}

int process_wait_for(struct process *process, int64_t timeout_ms)
{
    int64_t deadline_ms = process_now_ms() + timeout_ms;
    struct pollfd ended = {.fd = process->pid_fd, .events = POLLIN};
    int status = 0;

    while (!process->reaped) {
        int64_t left_ms = deadline_ms - process_now_ms();
        int found = poll(&ended, 1, left_ms > 0 ? (int)left_ms : 0);
        if (found == 0) {
            return -1;
        }
        if (found > 0 && waitpid(process->pid, &status, 0) == process->pid) {
            process->reaped = true;
            process->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
    }
    return process->code;
}

int process_wait(struct process *process)
{
    int code = process_wait_for(process, PROCESS_DEADLINE_MS);

    if (code < 0) {
        char *output = process_output(process);
        char *errors = process_errors(process);
        ck_abort_msg("process %d did not end in time; output: %.1000s; errors: %.3000s",
                     (int)process->pid, output, errors);
    }
    return code;
}

/* What is still in the pipes of a process that has ended belongs to its output, unless somebody it
 * started holds them open for long. */
static void await_ends(struct process *process)
{
    struct timespec deadline = deadline_in(10000);
    int late = 0;

    pthread_mutex_lock(&process->lock);
    while (late == 0 &&
           !(process->streams[STREAM_OUTPUT].ended && process->streams[STREAM_ERROR].ended)) {
        late = pthread_cond_timedwait(&process->changed, &process->lock, &deadline);
    }
    pthread_mutex_unlock(&process->lock);
}

void process_stop(struct process *process)
{
    if (process == NULL) {
        return;
    }
    if (!process->reaped) {
        kill(-process->pid, SIGKILL);
        kill(process->pid, SIGKILL);
        (void)process_wait(process);
    }
    close(process->stop_fds[1]);
    pthread_join(process->reader, NULL);
    close(process->stop_fds[0]);
    close(process->pid_fd);
    for (int i = 0; i < STREAM_COUNT; i++) {
        close(process->streams[i].fd);
        free(process->streams[i].text);
    }
    pthread_mutex_destroy(&process->lock);
    pthread_cond_destroy(&process->changed);
    free(process);
}

struct process_result process_end(struct process *process)
{
    struct process_result result = {.code = process_wait(process)};

    await_ends(process);
    result.output = process_output(process);
    result.errors = process_errors(process);
    process_stop(process);
    return result;
}

struct process_result process_run(const char *const *argv)
{
    return process_end(process_start(argv));
}

void process_result_finish(struct process_result *result)
{
    free(result->output);
    free(result->errors);
    memset(result, 0, sizeof *result);
}

/* ---- /proc ---- */

/* Read /proc/PID/stat behind the name of the command, which may hold spaces. */
static bool read_stat(pid_t pid, char *text, size_t text_bytes, const char **rest)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t count = fd >= 0 ? read(fd, text, text_bytes - 1) : -1;

    if (fd >= 0) {
        close(fd);
    }
    if (count <= 0) {
        return false;
    }
    text[count] = '\0';
    const char *end = strrchr(text, ')');
    *rest = end != NULL ? end + 2 : NULL;
    return end != NULL;
}

double process_cpu_s(pid_t pid)
{
    char text[1024];
    const char *rest;
    unsigned long user;
    unsigned long system;

    if (!read_stat(pid, text, sizeof text, &rest) ||
        sscanf(rest, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2) {
        return -1.0;
    }
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

void process_await_gone(pid_t pid)
{
    int pid_fd = (int)syscall(SYS_pidfd_open, pid, 0);
    struct pollfd ended = {.fd = pid_fd, .events = POLLIN};

    if (pid_fd < 0) {
        ck_assert_int_eq(errno, ESRCH);
        return;
    }
    int found = poll(&ended, 1, PROCESS_DEADLINE_MS);
    close(pid_fd);
    ck_assert_msg(found > 0 || !process_alive(pid), "process %d is still there", (int)pid);
}

bool process_alive(pid_t pid)
{
    char text[1024];
    const char *rest;

    return read_stat(pid, text, sizeof text, &rest) && rest[0] != 'Z' && rest[0] != 'X';
}
