#include "client/pace.h"

#include <stdbool.h>

/* A rank that gives no answer while it reads is taken to be so far behind what was sent. */
#define UNANSWERED_BYTES (1024u * 1024u)
/* How far the slowest rank's progress lets the others go. */
#define AHEAD_BYTES (2u * 1024u * 1024u)
/* What is allowed grows by so much at a time. */
#define PIECE_BYTES (64u * 1024u)
#define HELD_MS_MAX 100u

/* The share of its payload that a lane's rank is done with, as far as can be known. */
static double progress(const struct pd_pace_lane *lane)
{
    uint64_t taken = lane->sent > UNANSWERED_BYTES ? lane->sent - UNANSWERED_BYTES : 0;
    double share = (double)taken / (double)lane->byte_count;

    return lane->answered > share ? lane->answered : share;
}

static void hold(struct pd_pace *pace, bool held, uint64_t now_ms)
{
    if (!held) {
        pace->held_ms = 0;
    } else if (pace->held_ms == 0) {
        pace->held_ms = now_ms;
    } else if (now_ms >= pd_pace_due_ms(pace)) {
        *pace = (struct pd_pace){.allowed = UINT64_MAX};
    }
}

void pd_pace_lanes(struct pd_pace_lane *lanes, size_t lane_count, uint64_t now_ms)
{
    double least = 1.0;

    for (size_t i = 0; i < lane_count; i++) {
        double share = progress(&lanes[i]);
        least = share < least ? share : least;
    }
    for (size_t i = 0; i < lane_count; i++) {
        struct pd_pace *pace = lanes[i].pace;
        uint64_t allowed = (uint64_t)(least * (double)lanes[i].byte_count) + AHEAD_BYTES;
        allowed -= allowed % PIECE_BYTES;
        pace->allowed = allowed > pace->allowed ? allowed : pace->allowed;
        hold(pace, lanes[i].sent >= pace->allowed, now_ms);
    }
}

uint64_t pd_pace_due_ms(const struct pd_pace *pace)
{
    return pace->held_ms == 0 ? UINT64_MAX : pace->held_ms + HELD_MS_MAX;
}
