/* The C client of paramd: give gradients, get parameters.
 *
 *     struct paramd_options options;
 *     paramd_options_init(&options);
 *     options.address = "127.0.0.1:7070";
 *     paramd_connect(&options, &client, &error);              joins as a worker
 *     paramd_register(client, tensors, count, values, &error);   values: initial, then current
 *     for (;;) {
 *         ... compute gradients from values ...
 *         paramd_step(client, gradients, samples, &loss, 0, values, &info, &error);
 *     }
 *     paramd_leave(client, &error);
 *     paramd_close(client);
 *
 * Every call blocks until it is done, its deadline passes or it is interrupted; on failure it
 * returns a status other than PARAMD_OK and fills `error` (NULL is allowed) with one line that says
 * what failed, where, and what is allowed. A lost connection is made again within the deadline, and
 * whatever was in doubt is settled with the daemon: no gradient counts twice, none that was
 * acknowledged is lost. A call that failed with PARAMD_ETIMEOUT, PARAMD_ECONNECTION or
 * PARAMD_EINTERRUPTED may be repeated with the same arguments.
 *
 * Threads: a handle is used by one thread at a time; different handles are independent. A thread
 * of the library renews the worker's lease while the program computes. Signals: the library never
 * raises SIGPIPE and blocks all signals in its own thread. A handle does not survive fork().
 *
 * Arrays: one per tensor in the order of registration, row-major, contiguous, float32 in memory
 * whatever the type on the wire. They are borrowed until the call returns and are neither copied
 * nor kept. When a call that fills arrays fails, their contents are unspecified. */
#ifndef PARAMD_H
#define PARAMD_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PARAMD_API __attribute__((visibility("default")))

/* What a call came to. The numbers up to 99 are those of the protocol and are never renumbered. */
enum paramd_status {
    PARAMD_OK = 0,
    PARAMD_ENOMEM = 1,     /* an allocation failed */
    PARAMD_EPROTOCOL = 2,  /* the peer does not speak the protocol, or out of order */
    PARAMD_EVERSION = 3,   /* the peer speaks another version of it */
    PARAMD_ELIMIT = 4,     /* a length or count over its limit */
    PARAMD_ECHECKSUM = 5,  /* bytes were damaged on the way, repeatedly */
    PARAMD_EINVALID = 6,   /* an argument that is not allowed */
    PARAMD_EMODEL = 7,     /* the tensors disagree with the model the daemon has */
    PARAMD_ESTEP = 8,      /* a step from the past or the future */
    PARAMD_EIDENTITY = 9,  /* evicted, the name is taken, or the daemon was restarted: join again */
    PARAMD_EDRAINING = 10, /* the daemon is stopping: no further step will close */
    PARAMD_ETIMEOUT = 11,  /* the deadline passed */
    PARAMD_ECONNECTION = 12,   /* no connection could be made */
    PARAMD_ECONFIG = 13,       /* the daemon's configuration does not allow it */
    PARAMD_EIO = 14,           /* a file or device failed at the daemon */
    PARAMD_EREFUSED = 15,      /* understood, but not offered in this state or version */
    PARAMD_EDUPLICATE = 16,    /* done already; nothing changed */
    PARAMD_EINTERRUPTED = 100, /* `interrupted` returned non-zero; of this library, never sent */
};

/* Invariant: `message` is one line without a newline, NUL-terminated; empty with PARAMD_OK. */
struct paramd_error {
    int status; /* enum paramd_status */
    char message[512];
};

/* Element types on the wire. Parameters and optimizer state are float32 in the daemon. */
enum paramd_dtype {
    PARAMD_FLOAT32 = 0,
    PARAMD_BFLOAT16 = 1,
    PARAMD_FLOAT16 = 2,
};

/* One connected worker or observer. */
struct paramd_client;

/* How to connect. Fill with paramd_options_init, then change what should differ.
 * Ownership: everything pointed to is copied by paramd_connect, except `interrupted_context`. */
struct paramd_options {
    const char *address; /* "host:port" of any rank; default $PARAMD_SERVER or "127.0.0.1:7070" */
    const char *name;    /* unique among live workers, orders the sum; NULL: the daemon chooses */
    int observer;       /* non-zero: do not join; only paramd_admin and paramd_report_metric work */
    int push_dtype;     /* enum paramd_dtype of gradients on the wire; default PARAMD_FLOAT32 */
    int pull_dtype;     /* of parameters on the wire; default PARAMD_FLOAT32 */
    int checksum;       /* sum payloads at both ends; default 1. Large arrays of float32 go to a
                           rank on the same host without a copy, and a relay on this host, such as
                           `ssh -L`, may read what is written to them after a call failed: with 0
                           the rank behind it takes that for what was pushed */
    int64_t timeout_ms; /* deadline of each call; -1: none; default 60,000 */
    int64_t connect_timeout_ms; /* how long paramd_connect tries an address that nobody answers at;
                                   0: each of its addresses once; default 10,000 */
    /* For how many microseconds a call may look for its answer before it sleeps, up to 10,000;
     * 0: not at all; default 50. To be woken takes as long as a rank needs for a step of some
     * 10,000 parameters, so that steps of small models are faster. It is done as long as answers
     * come in time: with longer steps less than one wait in a thousand looks. Steps that
     * paramd_step_begin began, and large models, never do. */
    int busy_poll_us;
    /* Called about ten times a second while a call waits, and when a signal wakes it; non-zero
     * ends the call with PARAMD_EINTERRUPTED. NULL: never. Must not call the library. */
    int (*interrupted)(void *context);
    void *interrupted_context;
};

PARAMD_API void paramd_options_init(struct paramd_options *options);

/* Find rank 0 through the address, and join as a worker unless `observer` is set.
 * Ownership: *out is the caller's, for paramd_close; NULL on failure.
 * Errors: PARAMD_ECONNECTION, PARAMD_ETIMEOUT, PARAMD_EIDENTITY (the name is taken),
 * PARAMD_EINVALID, PARAMD_EDRAINING. Host names are looked up by getaddrinfo, whose time is not
 * bounded by the deadline. */
PARAMD_API enum paramd_status paramd_connect(const struct paramd_options *options,
                                             struct paramd_client **out,
                                             struct paramd_error *error);

/* One tensor of the model. */
struct paramd_tensor {
    const char *name;         /* 1 to 255 bytes, unique in the model */
    uint32_t dimension_count; /* 0 (a scalar) to 8 */
    const uint64_t *shape;    /* dimension_count of them, each at least 1 */
};

/* Offer the model and learn where its parts are kept. The first worker's offer makes the model, and
 * its values the initial parameters; every other must agree in names, shapes and order. Waits until
 * there are parameters. Once per handle.
 * Shape: `values` holds `count` arrays; afterwards they hold the current parameters.
 * Ownership: names and shapes are copied.
 * Errors: PARAMD_EMODEL names the first tensor that differs; PARAMD_ELIMIT. */
PARAMD_API enum paramd_status paramd_register(struct paramd_client *client,
                                              const struct paramd_tensor *tensors, uint32_t count,
                                              float *const *values, struct paramd_error *error);

/* Flags of paramd_push and paramd_step. */
/* Close the contribution with this micro-batch, though more were expected. */
#define PARAMD_LAST 1u
/* The gradients are those of the loss times paramd_loss_scale. */
#define PARAMD_SCALED 2u

/* Give the gradient of one micro-batch: the mean over its samples. A NULL array says that its
 * tensor has no gradient; a tensor that no worker has one for is left alone by the step. The
 * library counts them; the paramd_accumulation_steps-th of a step closes the contribution. The next
 * push belongs to the next step, whose parameters must have been pulled first. Units: `samples` is
 * the weight in the average; `loss` the mean over the samples, or NULL. Errors: PARAMD_ESTEP,
 * PARAMD_EIDENTITY, PARAMD_EDRAINING, PARAMD_EINVALID (not registered). */
PARAMD_API enum paramd_status paramd_push(struct paramd_client *client,
                                          const float *const *gradients, uint64_t samples,
                                          const double *loss, unsigned flags,
                                          struct paramd_error *error);

/* Give one micro-batch of an estimate of the Hessian with the step that the next push is for, as
 * some optimizers (sophia_g) want every few steps: call it before that step's last paramd_push or
 * paramd_step. The daemon averages over the workers that give one, as it does gradients but without
 * clipping, and the step is taken with it; a step without estimates goes on with the last one. So
 * workers need not agree, but should: paramd_next_step is the same for all. Of a worker that dies
 * before its gradient is complete, the estimate is lost as well.
 *
 * For sophia_g `estimates` are the gradients of the loss at labels drawn from the model's own
 * predictions, the mean over the samples; the daemon squares their average. A NULL array leaves the
 * tensor's estimate as it is. Micro-batches are counted apart from those of gradients;
 * PARAMD_LAST and PARAMD_SCALED mean the same. A call that failed may be repeated: nothing counts
 * twice. Errors: those of paramd_push, PARAMD_EREFUSED if the optimizer uses no such estimate,
 * PARAMD_ESTEP after the last micro-batch of the estimate or of the gradient. */
PARAMD_API enum paramd_status paramd_push_hessian(struct paramd_client *client,
                                                  const float *const *estimates, uint64_t samples,
                                                  unsigned flags, struct paramd_error *error);

#define PARAMD_CURRENT ((uint64_t)0) /* for min_version: whatever is served now */
#define PARAMD_NEXT UINT64_MAX       /* one more than the version this handle got last */

/* Get the parameters of one whole version, at least `min_version`, waiting for it if need be.
 * `version` (NULL is allowed) gets the version they are of.
 * Errors: PARAMD_ESTEP if min_version is more than one beyond what exists; PARAMD_EDRAINING. */
PARAMD_API enum paramd_status paramd_pull(struct paramd_client *client, uint64_t min_version,
                                          float *const *values, uint64_t *version,
                                          struct paramd_error *error);

/* Get the averaged parameters (ema or swa of the configuration) of the version served now, whose
 * number goes to `version` (NULL is allowed). The next step is not affected.
 * Errors: PARAMD_EREFUSED if the daemon keeps no average. */
PARAMD_API enum paramd_status paramd_pull_average(struct paramd_client *client,
                                                  float *const *values, uint64_t *version,
                                                  struct paramd_error *error);

/* What a step came to. */
struct paramd_step_info {
    int pulled;             /* 1: values were filled; 0: more micro-batches of this step to come */
    uint64_t version;       /* of the values this handle got last: steps closed until then */
    double lr;              /* of the first group in the step that made that version */
    uint64_t skipped_steps; /* so far: closed without an update (non-finite gradients) */
    double loss_scale;      /* to multiply the loss of the next step by; 1 without loss scaling */
    int stop;               /* 1: the daemon's early_stop advises to end the training */
};

/* Push, and with the last micro-batch of a step wait for the new parameters, in one round trip.
 * `info` may be NULL. `values` is untouched unless info->pulled; after a failure it may hold parts
 * of a new version. Its arrays may be those of `gradients`, tensor by tensor; otherwise the two do
 * not overlap: what comes back is written while gradients are still being sent. Errors: those of
 * paramd_push and paramd_pull. */
PARAMD_API enum paramd_status paramd_step(struct paramd_client *client,
                                          const float *const *gradients, uint64_t samples,
                                          const double *loss, unsigned flags, float *const *values,
                                          struct paramd_step_info *info,
                                          struct paramd_error *error);

/* A step whose gradients leave while the program computes the rest of them:
 *
 *     paramd_step_begin(client, gradients, samples, &loss, 0, values, &error);
 *     for each tensor, in the order of registration: compute its gradient, then
 *         paramd_step_ready(client, how many of the first gradients are final);
 *     paramd_step_end(client, &info, &error);
 *
 * A thread of the library sends; `values` is not written before the end. The deadline runs from
 * paramd_step_end. Between begin and end the handle takes no other call than these and
 * paramd_close.
 *
 * Begin: as paramd_step, but `gradients`, the arrays it points to, and `values` are borrowed until
 * the end. NULL in `gradients` says, now and for good, that the tensor has no gradient; any other
 * pointer may be replaced until the tensor is ready. Errors: PARAMD_EINVALID, PARAMD_ENOMEM. */
PARAMD_API enum paramd_status paramd_step_begin(struct paramd_client *client,
                                                const float *const *gradients, uint64_t samples,
                                                const double *loss, unsigned flags,
                                                float *const *values, struct paramd_error *error);
/* The gradients of the first `tensor_count` tensors are final. Never waits. */
PARAMD_API void paramd_step_ready(struct paramd_client *client, uint32_t tensor_count);
/* All are final: wait for the outcome, as paramd_step does. After a failure nothing is begun any
 * more, and paramd_step may be called with the same arguments. */
PARAMD_API enum paramd_status paramd_step_end(struct paramd_client *client,
                                              struct paramd_step_info *info,
                                              struct paramd_error *error);
/* Take it back: nothing of it counts, and the next step may have other gradients. Without a step
 * that was begun nothing happens. */
PARAMD_API void paramd_step_cancel(struct paramd_client *client);

/* Report a number measured with the parameters of version `step`, such as a validation loss: the
 * daemon's plateau schedules and early stopping go by it. Each name is reported by one worker or
 * observer, in rising order of steps; a report of a step that the daemon has one of already changes
 * nothing, so that it may be repeated.
 * Errors: PARAMD_EINVALID (the name), PARAMD_ESTEP (a version that does not exist yet),
 * PARAMD_ELIMIT (too many names). */
PARAMD_API enum paramd_status paramd_report_metric(struct paramd_client *client, const char *name,
                                                   double value, uint64_t step,
                                                   struct paramd_error *error);

/* An operator's command; what is left zero is absent. */
struct paramd_command {
    const char *command; /* status lr step schedule history workers tensors set-lr lr-find lr-curve
                            lr-cancel pause resume checkpoint evict drain stop */
    const char *target;  /* set-lr, lr-find: a group, NULL: all; evict: a worker's name or number */
    int has_value;       /* set-lr: 0 returns to the schedule */
    double value;        /* set-lr: the rate */
    uint64_t begin;      /* schedule, history: first step to show; lr-curve: first point */
    uint64_t count;      /* schedule, history: how many; 0: as the daemon chooses */
    const char *const *settings; /* lr-find: "key=value" each, at most 16, then NULL; or NULL */
};

/* Ask or tell the daemon something; workers and observers both may.
 * lr-find begins a search that lasts as long as its steps do, or this handle's connection: ask
 * lr-curve until it says "over".
 * Ownership: *json, one JSON object as NUL-terminated text, is the caller's, for paramd_free.
 * Errors: PARAMD_EINVALID, PARAMD_EREFUSED, PARAMD_ECONNECTION, PARAMD_ETIMEOUT. */
PARAMD_API enum paramd_status paramd_admin(struct paramd_client *client,
                                           const struct paramd_command *command, char **json,
                                           struct paramd_error *error);
PARAMD_API void paramd_free(void *memory);

/* Say that this worker pushes no more. What every lane acknowledged still counts; the others go on
 * without it. An observer may, too: nothing happens. */
PARAMD_API enum paramd_status paramd_leave(struct paramd_client *client,
                                           struct paramd_error *error);

/* Close the connections and free the handle; NULL is allowed. A worker that did not leave is held
 * for lost and evicted after the configured time. */
PARAMD_API void paramd_close(struct paramd_client *client);

/* Replace the deadline of the calls to come; -1: none. */
PARAMD_API void paramd_set_timeout(struct paramd_client *client, int64_t timeout_ms);

/* What the handle knows, without asking the daemon. Returned pointers are the handle's. */
PARAMD_API uint32_t paramd_worker_id(const struct paramd_client *client);
PARAMD_API const char *paramd_worker_name(const struct paramd_client *client);
PARAMD_API uint64_t paramd_run_id(const struct paramd_client *client);
/* The step and micro-batch that the next push is for. */
PARAMD_API uint64_t paramd_next_step(const struct paramd_client *client);
/* Learning rates of the parameter groups, in the order of the daemon's configuration, in the step
 * that made the version this handle got last; 0 groups before the first step.
 * `index` < paramd_group_count. */
PARAMD_API uint32_t paramd_group_count(const struct paramd_client *client);
PARAMD_API double paramd_group_lr(const struct paramd_client *client, uint32_t index);
/* What to multiply the loss by, as the last pull said; 1 without loss scaling. Gradients of a
 * scaled loss are pushed with PARAMD_SCALED, and the daemon divides them by this scale. */
PARAMD_API double paramd_loss_scale(const struct paramd_client *client);
PARAMD_API uint32_t paramd_next_micro_batch(const struct paramd_client *client);
/* Micro-batches of one contribution, at least 1. */
PARAMD_API uint32_t paramd_accumulation_steps(const struct paramd_client *client);
PARAMD_API uint32_t paramd_rank_count(const struct paramd_client *client);

/* The model, once registered: 0 tensors before. `index` < paramd_tensor_count. */
PARAMD_API uint32_t paramd_tensor_count(const struct paramd_client *client);
PARAMD_API struct paramd_tensor paramd_tensor_at(const struct paramd_client *client,
                                                 uint32_t index);

/* Where a part of the flat model is kept: tensors in order, nothing between them. */
struct paramd_lane {
    uint32_t rank;
    const char *address; /* "host:port" */
    uint64_t element_begin;
    uint64_t element_count;
};

PARAMD_API uint32_t paramd_lane_count(const struct paramd_client *client);
PARAMD_API struct paramd_lane paramd_lane_at(const struct paramd_client *client, uint32_t index);

/* The status as a word, such as "timeout"; "unknown" for a number outside the list. */
PARAMD_API const char *paramd_status_name(int status);
/* The library's version, "0.1.0". */
PARAMD_API const char *paramd_library_version(void);

#ifdef __cplusplus
}
#endif

#endif
