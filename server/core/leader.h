/* What rank 0 knows and decides for all: the ordered log, the members, the rates, the life of the
 * job. session (Join, Register, Leave, Admin, Report) -> [leader] -> orders for every rank. Pure.
 * Parts: orders.c (the log and when a step closes), admission.c (who is
 * read), search.c (trials of learning rates), metrics.c
 * (what workers measure), membership.c (who takes part), waiting.c (who is waited for), admin.c
 * (commands), status.c (what they answer). Owner: the loop thread of rank 0. */
#ifndef PD_SERVER_CORE_LEADER_H
#define PD_SERVER_CORE_LEADER_H

#include "server/core/event.h"
#include "server/core/history.h"
#include "server/core/range_test.h"
#include "server/core/step.h"

struct pd_engine;

/*   JOINING -all ranks know it-> JOINED -Registered-> ACTIVE -Leave-> LEAVING -Depart order->
 * (gone)
 *      `------------------ lease or resume time over: evicted ------------------^ */
enum pd_member_state {
    PD_MEMBER_NONE,
    PD_MEMBER_JOINING,
    PD_MEMBER_JOINED,  /* takes part in no step yet */
    PD_MEMBER_ACTIVE,  /* every step waits for it */
    PD_MEMBER_LEAVING, /* pushes no more; what it has pushed still counts */
};

/* What the ranks have reported that one member has given to the step in collection. */
struct pd_given {
    uint32_t lane_micro_batches[PD_RANK_COUNT_MAX]; /* whole on that lane */
    uint64_t lanes_last;                            /* bit per lane that has the last one */
    uint32_t micro_batches;                         /* whole on some lane */
    uint64_t samples;
    uint64_t unit_samples; /* of the first micro-batch that has any */
    double loss_sum;       /* weighted by samples */
    uint64_t loss_samples;
    bool undone;                 /* what was whole on some lane is so on none any more */
    struct pd_tensor_set absent; /* from every micro-batch that has samples */
};

struct pd_member {
    enum pd_member_state state;
    uint32_t id;
    char name[PD_NAME_BYTES_MAX + 1];
    uint32_t replica;
    uint64_t token;
    uint64_t nonce; /* of its Join; 0: none */
    bool join_ordered;
    uint64_t join_index; /* index of its join order */
    pd_connection_id join_connection;
    uint64_t join_serial;
    bool registering;       /* a Register waits for its answer */
    uint64_t asked_ms;      /* since when it is to register, or to give the initial values */
    uint64_t ranks_missing; /* bit per rank whose connection to it is not there */
    uint64_t missing_since_ms;
    bool expired; /* its lease is over */
    char missing_text[PD_ERROR_BYTES_MAX];
    bool leave_ordered;   /* LEAVING */
    uint64_t leave_index; /* index of its depart order: after it no push is accepted */

    struct pd_given gradient;
    struct pd_given hessian; /* its estimate of the Hessian, if it gives one with the step */

    bool admitted; /* its pushes to the step in collection are read, if that is limited */
    bool taken;    /* its gradient is ordered to be added up: it counts, whatever happens */

    uint64_t step_next;     /* step after its last complete contribution */
    uint64_t samples_total; /* in closed steps */
};

/* What the training waits for, said when it takes long. */
struct pd_waiting {
    char text[PD_ERROR_BYTES_MAX]; /* empty: nothing */
    uint64_t since_ms;
    uint64_t due_ms; /* when it is to be said next */
};

enum pd_drain_state {
    PD_DRAIN_NONE,
    PD_DRAIN_WAITING, /* for the running step to close, until drain_ms */
    PD_DRAIN_ORDERED, /* the drain order is out */
    PD_DRAIN_STOPPED, /* the stop order is out */
};

/*   NONE -lr-find-> SNAPSHOT -all ranks keep their state-> SWEEP -restore order-> ENDING
 *   -all ranks have it back-> OVER -lr-find-> SNAPSHOT ...
 * A search that ends before its first trial goes from SNAPSHOT or SWEEP to ENDING by a forget
 * order. Steps are trials in SWEEP, and none closes in SNAPSHOT. */
enum pd_search_state {
    PD_SEARCH_NONE,
    PD_SEARCH_SNAPSHOT,
    PD_SEARCH_SWEEP,
    PD_SEARCH_ENDING,
    PD_SEARCH_OVER,
};

/* Why a search ends; words for status. */
enum pd_search_end {
    PD_SEARCH_GOES_ON,
    PD_SEARCH_FINISHED,
    PD_SEARCH_DIVERGED,
    PD_SEARCH_CANCELLED,
    PD_SEARCH_FAILED,
};

struct pd_search {
    enum pd_search_state state;
    struct pd_range_test test;
    uint32_t group;         /* the only one swept; UINT32_MAX: all, in their ratio to group 0 */
    pd_connection_id asker; /* the search ends with this connection */
    enum pd_search_end end;
    char reason[PD_ERROR_BYTES_MAX];
    uint64_t step;       /* the first trial: the state is that of this version */
    uint64_t back;       /* the version that has this state again; UINT64_MAX: not known yet */
    bool tried;          /* a trial has been ordered */
    uint64_t applied;    /* trials that changed the parameters */
    uint64_t wait_index; /* SNAPSHOT, ENDING: the order all ranks have to carry out */
};

struct pd_leader {
    /* The log. */
    uint64_t order_next;                  /* index of the next order */
    uint64_t executed[PD_RANK_COUNT_MAX]; /* orders reported as carried out, by rank */
    pd_connection_id links[PD_RANK_COUNT_MAX];
    uint32_t linked_count; /* ranks linked, rank 0 too */
    bool ready;
    uint64_t links_said_ms;  /* when start-up last said which ranks it waits for */
    struct pd_message issue; /* scratch: the order being issued */
    bool changed;            /* something happened that may make something due */
    bool pushed;             /* a push has begun or come in, which may make a step due */

    /* The members. */
    struct pd_member members[PD_WORKER_COUNT_MAX];
    uint32_t member_end;
    /* Where to look first for an id: the slot that the last one equal to it modulo their number
     * got. */
    uint16_t slots[PD_WORKER_COUNT_MAX];
    uint32_t awaited; /* slot of a member that the step in collection was last seen to wait for */
    uint32_t worker_id_next;
    bool started; /* workers.expected have been active together */

    /* The model. */
    bool register_ordered;
    bool publish_ordered;
    uint64_t register_index;
    bool has_initializer;
    uint32_t initializer;  /* the worker that supplies the initial values */
    uint64_t values_lanes; /* bit per lane that holds the initial values */
    uint64_t lanes_needed; /* bit per lane that has elements */

    /* Steps. */
    uint64_t step_next;     /* the step in collection */
    bool foreseen;          /* the order ahead of that step is out: */
    struct pd_order ahead;  /* what it says */
    uint64_t barrier;       /* orders that all ranks carry out before another step: one without
                               collectives holds nobody back by itself */
    uint64_t applied_steps; /* without the skipped ones */
    double lr_overrides[PD_GROUP_COUNT_MAX + 1]; /* NaN: the schedule's */
    double lrs[PD_GROUP_COUNT_MAX + 1];          /* of the last step */
    bool paused;
    struct pd_step_outcome outcome;
    uint64_t effective_batch; /* samples of the last step */
    double loss;              /* of the last step; NaN when nobody said */
    char last_skip_reason[PD_ERROR_BYTES_MAX];
    uint64_t skip_explained_step; /* 1 + the step last_skip_reason explains; 0: none */

    struct pd_waiting waiting;

    struct pd_search search;

    /* Metrics. */
    uint32_t metric_count;
    struct pd_metric metrics[PD_METRIC_COUNT_MAX];     /* the latest of each name */
    struct pd_plateau plateaus[PD_SCHEDULE_COUNT_MAX]; /* of each schedule */
    struct pd_history history;
    struct pd_watch early_stop;
    bool stop_advised;

    enum pd_drain_state drain;
    uint64_t drain_ms;
    char drain_reason[PD_NAME_BYTES_MAX + 1];
};

/* Errors: PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_leader_create(struct pd_leader **out, const struct pd_config *config,
                                struct pd_error *error);
void pd_leader_destroy(struct pd_leader *leader);

/* ---- orders ---- */

/* The model and its values came from a file: nothing to register. */
void pd_leader_model_loaded(struct pd_engine *engine);
/* Issue what is due: replies whose orders all ranks have carried out, the next step, the drain. */
void pd_leader_advance(struct pd_engine *engine);
/* An empty order of that kind at the step in collection, in leader->issue: to be filled and issued.
 */
struct pd_order *pd_leader_new_order(struct pd_engine *engine, enum pd_order_kind kind);
/* The parts of an order are in leader->issue: give it its index, send it, queue it here. */
void pd_leader_issue(struct pd_engine *engine);
/* Whether there is an order ahead of the step in collection that counts on that worker. */
bool pd_leader_foresees(const struct pd_leader *leader, uint32_t worker_id);
/* The order that is made next has all ranks forget what is foreseen. No step closes before they
 * have done so, and said which pushes have to come again. */
void pd_leader_withdraw_ahead(struct pd_leader *leader);
/* How many orders, from the first, every rank has carried out. */
uint64_t pd_leader_executed_by_all(const struct pd_engine *engine);
/* A rank has linked up. */
void pd_leader_linked(struct pd_engine *engine, uint32_t rank, pd_connection_id connection);
void pd_leader_report(struct pd_engine *engine, uint32_t rank, const struct pd_report *report);
/* Rank 0 itself has closed a step. */
void pd_leader_step_closed(struct pd_engine *engine, const struct pd_order *order,
                           struct pd_step_outcome outcome);
/* The rates of optimizer step `applied` at an effective batch of `samples`; by group. */
void pd_leader_lrs(const struct pd_engine *engine, uint64_t applied, uint64_t samples, double *lrs);
/* The momentum of a group in optimizer step `applied`; NaN: as configured. */
double pd_leader_momentum(const struct pd_engine *engine, uint64_t applied, uint32_t group);
/* The rate of a group in rates of group 0, as configured; 1 when that one is 0. */
double pd_leader_lr_ratio(const struct pd_engine *engine, uint32_t group);
/* Errors: PD_EINVALID, for `command`. */
PD_MUST_CHECK
enum pd_status pd_leader_find_group(const struct pd_engine *engine, const char *command,
                                    const char *name, uint32_t *group, struct pd_error *error);
/* Whether steps close as soon as everybody is in. */
bool pd_leader_steps_are_open(const struct pd_engine *engine);
/* The step in collection is ordered: another one begins. */
void pd_leader_close_collection(struct pd_leader *leader);
/* End the job: after the running step when `wait`, else at once. */
void pd_leader_drain(struct pd_engine *engine, const char *reason, bool wait);
void pd_leader_tick(struct pd_engine *engine);

/* ---- admission ---- */

/* Whether the member may take part in the step in collection. */
bool pd_admission_allows(const struct pd_engine *engine, const struct pd_member *member);
/* Whether it takes part, and is not read for want of room. */
bool pd_admission_holds_back(const struct pd_engine *engine, const struct pd_member *member);
/* Admit workers to places that are free, and free places of gradients that can be added up. */
void pd_admission_advance(struct pd_engine *engine);

/* ---- search ---- */

/* What the contributions to a step come to. */
struct pd_collected {
    uint64_t samples;
    uint64_t loss_samples; /* of those, the ones that somebody gave a loss for */
    double loss;           /* NaN when nobody did */
};

/* Begin a search for whoever the event comes from, of the group of that name, or "".
 * Errors: PD_EREFUSED (not now), PD_EINVALID (no such group), PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_search_begin(struct pd_engine *engine, const struct pd_range_options *options,
                               const char *group_name, struct pd_error *error);
/* Whether the training waits for a search to be over. */
bool pd_search_active(const struct pd_leader *leader);
/* Whether steps are trials. */
bool pd_search_sweeps(const struct pd_leader *leader);
/* Whether the parameters of that version are a search's and not the training's. */
bool pd_search_made(const struct pd_leader *leader, uint64_t version);
/* The rates of the next trial at an effective batch of `samples`; by group. */
void pd_search_lrs(const struct pd_engine *engine, uint64_t samples, double *lrs);
/* Make the order that closes a step, which has its contributors, one of a trial; or of the restore
 * that ends the search. */
void pd_search_fill_order(struct pd_engine *engine, struct pd_order *order,
                          const struct pd_collected *collected);
/* Rank 0 has closed a trial. */
void pd_search_step_closed(struct pd_engine *engine, const struct pd_order *order,
                           struct pd_step_outcome outcome);
/* A rank could not keep its state. */
void pd_search_snapshot_failed(struct pd_engine *engine, uint32_t rank, const char *text);
/* End an active search, with the step in collection if trials were made. */
void pd_search_cancel(struct pd_engine *engine, const char *reason);
/* The job ends, and workers have been told: have the state back without waiting for the step in
 * collection. */
void pd_search_end_now(struct pd_engine *engine);
void pd_search_connection_closed(struct pd_engine *engine, pd_connection_id connection);
void pd_search_advance(struct pd_engine *engine);

/* ---- metrics ---- */

/* Nothing has been reported yet. */
void pd_leader_watch_init(struct pd_leader *leader, const struct pd_config *config);
/* Take a report; `duplicate` is whether it, or a later one of its name, came before.
 * Errors: PD_EINVALID, PD_ESTEP, PD_ELIMIT. */
PD_MUST_CHECK
enum pd_status pd_leader_metric(struct pd_engine *engine, const struct pd_metric *metric,
                                bool *duplicate, struct pd_error *error);

/* ---- membership ---- */

struct pd_member *pd_member_find(struct pd_leader *leader, uint32_t worker_id);
/* Errors: PD_EIDENTITY (name taken), PD_ELIMIT, PD_EDRAINING. */
PD_MUST_CHECK
enum pd_status pd_member_join(struct pd_engine *engine, pd_connection_id connection,
                              const struct pd_join *join, struct pd_error *error);
/* Errors: PD_EMODEL, PD_ELIMIT. */
PD_MUST_CHECK
enum pd_status pd_member_register(struct pd_engine *engine, struct pd_member *member,
                                  const struct pd_tensor_list *tensors, struct pd_error *error);
/* Its connection to rank 0 is a new one, on which it asks again for what it asked for. */
void pd_member_asks_again(struct pd_engine *engine, struct pd_member *member);
/* Whether a worker of its home needs a connection to that rank. */
bool pd_member_needs_rank(const struct pd_engine *engine, const struct pd_member *member,
                          uint32_t rank);
void pd_member_leave(struct pd_engine *engine, struct pd_member *member,
                     const struct pd_leave *leave);
/* What came of its gradient on that lane is void, and comes again. */
void pd_member_undone(struct pd_member *member, uint32_t lane);
/* A worker that pushes for a step it takes no part in is evicted. */
void pd_member_contributed(struct pd_engine *engine, struct pd_member *member, uint32_t lane,
                           const struct pd_report *report);
/* Strike a member off by a depart order; `reason` is empty for one that left. */
void pd_member_depart(struct pd_engine *engine, struct pd_member *member, const char *reason);
/* Whether its contribution to the step in collection is whole on every lane. */
bool pd_member_complete(const struct pd_engine *engine, const struct pd_member *member);
/* LEAVING: whether all that it was acknowledged has been reported; and whether it comes to
 * anything. */
bool pd_member_settled(const struct pd_engine *engine, const struct pd_member *member);
bool pd_member_contributes(const struct pd_engine *engine, const struct pd_member *member);
/* Whether an estimate of the Hessian, whole on every lane, comes with what it contributes. */
bool pd_member_estimates(const struct pd_engine *engine, const struct pd_member *member);
/* Whether the step in collection cannot close before more comes of it. */
bool pd_member_is_awaited(const struct pd_engine *engine, const struct pd_member *member);
/* Whether it has been asked for the initial values, and they are not here. */
bool pd_member_gives_values(const struct pd_engine *engine, const struct pd_member *member);
/* The step in collection was closed: start anew. */
void pd_member_reset(struct pd_member *member);
/* Evict those whose time is over, answer joins and registrations that have become possible. */
void pd_member_advance(struct pd_engine *engine);
/* Rank 0 was stopped for a while: those it waits for have their time anew. */
void pd_member_forgive_silence(struct pd_engine *engine);
const char *pd_member_state_name(const struct pd_engine *engine, const struct pd_member *member);

/* ---- waiting ---- */

/* Time has passed: say in the log what has been waited for for long. */
void pd_waiting_tick(struct pd_engine *engine);
/* What has been waited for for more than a moment, and how long, as one line; false: nothing. */
bool pd_waiting_describe(const struct pd_engine *engine, char *text, size_t text_bytes);

/* ---- admin and status ---- */

/* Carry out a command; *reply is a JSON text, the caller's, for pd_heap_free.
 * Errors: PD_EINVALID, PD_EREFUSED, PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_admin_run(struct pd_engine *engine, const struct pd_admin *admin, char **reply,
                            struct pd_error *error);

/* The objects of the queries; NULL when memory is out. */
char *pd_status_json(struct pd_engine *engine);
char *pd_status_lr_json(struct pd_engine *engine);
char *pd_status_step_json(struct pd_engine *engine);
char *pd_status_schedule_json(struct pd_engine *engine, uint64_t begin, uint64_t count);
/* `count` steps from `begin` on; the last ones if `begin` is 0. */
char *pd_status_history_json(struct pd_engine *engine, uint64_t begin, uint64_t count);
/* The last search, with its points from `begin` on. */
char *pd_status_lr_curve_json(struct pd_engine *engine, uint64_t begin);
char *pd_status_workers_json(struct pd_engine *engine);
char *pd_status_tensors_json(struct pd_engine *engine);
/* {"command": ..., "step": ..., "text": ...} */
char *pd_status_done_json(const char *command, uint64_t step, const char *text);

#endif
