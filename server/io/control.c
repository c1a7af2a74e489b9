#include "server/io/control.h"

#include "common/heap.h"
#include "server/io/log.h"

#include <inttypes.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    RETRY_MS = 100,
    SAY_AFTER_MS = 2000, /* then it says what it waits for */
};

/* One socket at a time: it is made for a try and closed after it; what has become connected is
 * handed on as a file descriptor of its own. Owner: the loop thread. */
struct pd_control {
    uv_timer_t timer;
    uv_tcp_t tcp;
    uv_connect_t connect;
    struct pd_loop *loop;
    const char *leader;
    struct sockaddr_storage address;
    uint64_t started_ms;
    uint64_t timeout_ms;
    uint32_t handles_open;
    bool said;
    bool trying;
    bool ended;
    int last_error; /* of libuv, for the message */
};

static void on_handle_closed(uv_handle_t *handle)
{
    struct pd_control *control = handle->data;
    control->handles_open--;
    if (handle == (uv_handle_t *)&control->tcp) {
        control->trying = false;
    }
    if (control->ended && control->handles_open == 0) {
        pd_heap_free(control);
    }
}

void pd_control_destroy(struct pd_control *control)
{
    if (control == NULL || control->ended) {
        return;
    }
    control->ended = true;
    uv_close((uv_handle_t *)&control->timer, on_handle_closed);
    if (control->trying && !uv_is_closing((uv_handle_t *)&control->tcp)) {
        uv_close((uv_handle_t *)&control->tcp, on_handle_closed);
    }
}

static void hand_on(struct pd_control *control)
{
    uv_os_fd_t fd = -1;
    (void)uv_fileno((uv_handle_t *)&control->tcp, &fd);
    int own_fd = dup(fd);
    if (own_fd < 0) {
        pd_loop_abort("no file descriptor for the link to rank 0");
    }
    (void)uv_timer_stop(&control->timer);
    pd_loop_adopt(control->loop, own_fd, true);
}

static void on_connect(uv_connect_t *request, int status)
{
    struct pd_control *control = request->data;
    struct pd_loop *loop = control->loop;

    if (control->ended) {
        return;
    }
    if (status == 0) {
        hand_on(control);
    } else {
        control->last_error = status;
    }
    if (!control->ended) {
        uv_close((uv_handle_t *)&control->tcp, on_handle_closed);
    }
    pd_loop_settle(loop);
}

static void try_once(struct pd_control *control)
{
    int result = uv_tcp_init(pd_loop_uv(control->loop), &control->tcp);
    if (result != 0) {
        control->last_error = result;
        return;
    }
    control->trying = true;
    control->handles_open++;
    control->tcp.data = control;
    control->connect.data = control;
    result = uv_tcp_connect(&control->connect, &control->tcp,
                            (const struct sockaddr *)&control->address, on_connect);
    if (result != 0) {
        control->last_error = result;
        uv_close((uv_handle_t *)&control->tcp, on_handle_closed);
    }
}

static void on_retry(uv_timer_t *timer)
{
    struct pd_control *control = timer->data;
    char text[PD_ERROR_BYTES_MAX];
    uint64_t waited_ms = pd_loop_now_ms() - control->started_ms;

    if (waited_ms >= control->timeout_ms) {
        (void)snprintf(text, sizeof text, "no link to rank 0 at %s after %" PRIu64 " s: %s",
                       control->leader, waited_ms / 1000,
                       control->last_error == 0 ? "no answer" : uv_strerror(control->last_error));
        pd_loop_abort(text);
    }
    if (waited_ms >= SAY_AFTER_MS && !control->said) {
        control->said = true;
        pd_log("waiting for rank 0 at %s", control->leader);
    }
    if (!control->trying) {
        try_once(control);
    }
}

/* "host:port" or "[host]:port" to an address. */
static enum pd_status resolve(struct sockaddr_storage *out, const char *leader,
                              struct pd_error *error)
{
    char host[PD_ADDRESS_BYTES_MAX + 1];
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *address = NULL;
    (void)snprintf(host, sizeof host, "%s", leader);

    char *colon = strrchr(host, ':');
    if (colon == NULL) {
        return pd_error_set(error, PD_ECONNECTION, "rank 0: %s has no port", leader);
    }
    *colon = '\0';
    char *start = host;
    if (host[0] == '[' && colon > host && colon[-1] == ']') {
        start = host + 1;
        colon[-1] = '\0';
    }
    int result = getaddrinfo(start, colon + 1, &hints, &address);
    if (result != 0) {
        return pd_error_set(error, PD_ECONNECTION, "rank 0: host %s: %s", start,
                            gai_strerror(result));
    }
    memcpy(out, address->ai_addr, address->ai_addrlen);
    freeaddrinfo(address);
    return PD_OK;
}

enum pd_status pd_control_create(struct pd_control **out, struct pd_loop *loop, const char *leader,
                                 uint64_t timeout_ms, struct pd_error *error)
{
    *out = NULL;
    struct pd_control *control = pd_heap_zalloc(1, sizeof *control);
    if (control == NULL) {
        return pd_error_set(error, PD_ENOMEM, "control: out of memory");
    }
    enum pd_status status = resolve(&control->address, leader, error);
    if (status != PD_OK) {
        pd_heap_free(control);
        return status;
    }
    control->loop = loop;
    control->leader = leader;
    control->timeout_ms = timeout_ms;
    control->started_ms = pd_loop_now_ms();
    control->handles_open = 1;
    (void)uv_timer_init(pd_loop_uv(loop), &control->timer);
    control->timer.data = control;
    (void)uv_timer_start(&control->timer, on_retry, 0, RETRY_MS);
    *out = control;
    return PD_OK;
}
