#include "tests/simulation/network.h"

#include "common/assert.h"
#include "common/frame.h"
#include "common/heap.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A close in good order takes no longer. */
#define FLUSH_US_MAX 5000000u

static void advance(struct sim_link *link, int from);

void sim_network_init(struct sim_network *network, struct sim_agenda *agenda)
{
    memset(network, 0, sizeof *network);
    network->agenda = agenda;
    network->delay_us_max = 1000;
    network->notice_us_max = 1000;
}

static void free_frame(struct sim_frame *frame)
{
    free(frame->bytes);
    free(frame->copy);
}

static void free_frames(struct sim_way *way)
{
    for (size_t i = way->begin; i < way->end; i++) {
        free_frame(&way->frames[i]);
    }
    way->begin = 0;
    way->end = 0;
    way->stage = SIM_STAGE_IDLE;
}

void sim_network_finish(struct sim_network *network)
{
    for (size_t i = 0; i < network->link_count; i++) {
        for (size_t side = 0; side < 2; side++) {
            free_frames(&network->links[i]->ways[side]);
            free(network->links[i]->ways[side].frames);
        }
        free(network->links[i]);
    }
    free(network->links);
    memset(network, 0, sizeof *network);
}

static uint64_t delay_us(const struct sim_link *link, int to)
{
    struct sim_network *network = link->network;
    uint64_t delay = 1 + sim_below(network->agenda, network->delay_us_max);

    if (sim_chance(network->agenda, network->straggle_one_in)) {
        delay *= sim_between(network->agenda, 2, 100);
    }
    return to == 0 && link->slow > 1 ? delay * link->slow : delay;
}

/* For how long the end takes nothing in. */
static uint64_t asleep_us(const struct sim_end *end)
{
    return end->gone ? 0 : end->calls->asleep_us(end->owner);
}

/* ---- Opening ---- */

static void lose(struct sim_link *link, uint64_t notice_us_max);

static void open_opener(void *context, uint64_t argument)
{
    struct sim_link *link = context;
    struct sim_end *end = &link->ends[0];
    (void)argument;

    if (link->cut || end->gone) {
        return;
    }
    if (asleep_us(end) > 0) {
        sim_after(link->network->agenda, asleep_us(end), open_opener, link, 0);
        return;
    }
    end->open = true;
    if (!end->calls->opened(end->owner, link, 0)) {
        lose(link, 1);
    }
    advance(link, 1);
}

static void open_acceptor(void *context, uint64_t argument)
{
    struct sim_link *link = context;
    struct sim_end *end = &link->ends[1];
    (void)argument;

    if (link->cut) {
        return;
    }
    if (asleep_us(end) > 0) {
        sim_after(link->network->agenda, asleep_us(end), open_acceptor, link, 0);
        return;
    }
    if (!end->calls->opened(end->owner, link, 1)) {
        end->gone = true;
        lose(link, 1);
        return;
    }
    end->open = true;
    sim_after(link->network->agenda, delay_us(link, 0), open_opener, link, 0);
}

struct sim_link *sim_connect(struct sim_network *network, const struct sim_end *opener,
                             const struct sim_end *acceptor, bool faulty)
{
    struct sim_link *link = sim_alloc(1, sizeof *link);

    network->links = sim_grow(network->links, network->link_count, &network->link_capacity,
                              sizeof(struct sim_link *));
    link->network = network;
    link->number = network->link_count;
    link->ends[0] = *opener;
    link->ends[1] = *acceptor;
    link->faulty = faulty;
    network->links[network->link_count++] = link;
    sim_after(network->agenda, delay_us(link, 1), open_acceptor, link, 0);
    return link;
}

/* ---- Ending ---- */

static void tell_closed(void *context, uint64_t side)
{
    struct sim_link *link = context;
    struct sim_end *end = &link->ends[side];

    if (end->gone) {
        return;
    }
    if (asleep_us(end) > 0) {
        sim_after(link->network->agenda, asleep_us(end), tell_closed, link, side);
        return;
    }
    end->gone = true;
    sim_trace(link->network->agenda, "link %" PRIu64 " side %d is closed", link->number, (int)side);
    end->calls->closed(end->owner, link, (int)side, "the connection is lost");
}

static void lose(struct sim_link *link, uint64_t notice_us_max)
{
    struct sim_agenda *agenda = link->network->agenda;

    if (link->cut) {
        return;
    }
    link->cut = true;
    for (int side = 0; side < 2; side++) {
        free_frames(&link->ways[side]);
        /* An acceptor that was never told of the connection does not hear of its end. */
        link->ends[side].gone = link->ends[side].gone || (side == 1 && !link->ends[side].open);
        if (!link->ends[side].gone) {
            sim_after(agenda, 1 + sim_below(agenda, notice_us_max), tell_closed, link,
                      (uint64_t)side);
        }
    }
}

void sim_link_cut(struct sim_link *link)
{
    if (!link->cut) {
        sim_trace(link->network->agenda, "link %" PRIu64 " is lost", link->number);
        link->network->cut_count++;
    }
    lose(link, link->network->notice_us_max);
}

static void end_flush(void *context, uint64_t side)
{
    (void)side;
    lose(context, 1000);
}

void sim_link_close(struct sim_link *link, int side, bool flush)
{
    struct sim_way *way = &link->ways[side];

    link->ends[side].shut = true;
    if (link->cut) {
        return;
    }
    if (!flush) {
        lose(link, 1000);
        return;
    }
    way->ending = true;
    if (way->begin == way->end) {
        sim_after(link->network->agenda, delay_us(link, 1 - side), end_flush, link, 0);
    }
    sim_after(link->network->agenda, FLUSH_US_MAX, end_flush, link, 0);
}

void sim_link_die(struct sim_link *link, int side)
{
    link->ends[side].gone = true;
    sim_link_cut(link);
}

/* ---- Frames ---- */

static int other(int side)
{
    return 1 - side;
}

/* The place in the argument of a call: the side that sends, and the frame. */
static uint64_t argument_of(int from, uint64_t serial)
{
    return serial << 1 | (uint64_t)from;
}

static struct sim_frame *head_of(struct sim_link *link, uint64_t argument)
{
    struct sim_way *way = &link->ways[argument & 1];

    if (link->cut || way->begin == way->end || way->frames[way->begin].serial != argument >> 1) {
        return NULL;
    }
    return &way->frames[way->begin];
}

/* True when both ends are awake; otherwise the call is put off. */
static bool awake(struct sim_link *link, sim_call *call, uint64_t argument)
{
    for (int side = 0; side < 2; side++) {
        uint64_t asleep = asleep_us(&link->ends[side]);
        if (asleep > 0) {
            sim_after(link->network->agenda, asleep, call, link, argument);
            return false;
        }
    }
    return true;
}

/* One of the moments at which a connection may be lost. */
static bool lost_now(struct sim_link *link)
{
    if (!link->faulty || !sim_chance(link->network->agenda, link->network->cut_one_in)) {
        return false;
    }
    sim_link_cut(link);
    return true;
}

static void tell_sent(struct sim_link *link, int from, struct sim_frame *frame)
{
    struct sim_end *end = &link->ends[from];

    if (frame->told || frame->payload_bytes == 0) {
        return;
    }
    frame->told = true;
    if (!end->gone && !end->shut) {
        end->calls->sent(end->owner, link, from);
    }
}

static void leave_early(void *context, uint64_t argument)
{
    struct sim_link *link = context;
    struct sim_way *way = &link->ways[argument & 1];

    if (link->cut || !awake(link, leave_early, argument)) {
        return;
    }
    for (size_t i = way->begin; i < way->end; i++) {
        if (way->frames[i].serial == argument >> 1) {
            tell_sent(link, (int)(argument & 1), &way->frames[i]);
            return;
        }
    }
}

static void pop(struct sim_link *link, int from)
{
    struct sim_way *way = &link->ways[from];

    free_frame(&way->frames[way->begin++]);
    way->stage = SIM_STAGE_IDLE;
    if (way->begin == way->end && way->ending) {
        sim_after(link->network->agenda, delay_us(link, other(from)), end_flush, link, 0);
    }
    advance(link, from);
}

static void deliver_some(void *context, uint64_t argument);

/* Bytes of a payload that arrive at a time: half of it, or what the sender lets go, or what the
 * receiver has a place for. */
static uint64_t next_end(const struct sim_way *way, const struct sim_frame *frame)
{
    uint64_t half = frame->payload_bytes / 2;
    uint64_t end = way->delivered < half ? half : frame->payload_bytes;
    end = end < way->placed ? end : way->placed;
    return end < frame->payload_ready ? end : frame->payload_ready;
}

/* What goes out of the payload from `begin` up to `end`. */
static void copy_out(uint8_t *to, const struct sim_frame *frame, uint64_t begin, uint64_t end)
{
    if (frame->payload_dtype == PD_DTYPE_FLOAT32) {
        memcpy(to, (const uint8_t *)frame->payload + begin, end - begin);
        return;
    }
    size_t element_bytes = pd_dtype_bytes(frame->payload_dtype);
    uint64_t first = begin / element_bytes;
    uint64_t count = (end + element_bytes - 1) / element_bytes - first;
    uint8_t *converted = sim_alloc(count, element_bytes);
    pd_convert_from_float32(converted, frame->payload_dtype, (const float *)frame->payload + first,
                            count);
    memcpy(to, converted + (begin - first * element_bytes), end - begin);
    free(converted);
}

static void take_in(struct sim_link *link, int from, const struct sim_frame *frame, uint64_t end)
{
    struct sim_way *way = &link->ways[from];

    if (way->destination != NULL && !link->ends[other(from)].shut) {
        copy_out(way->destination, frame, way->delivered, end);
        way->destination += end - way->delivered;
    }
    way->delivered = end;
}

static void finish_payload(struct sim_link *link, int from, struct sim_frame *frame)
{
    struct sim_way *way = &link->ways[from];
    struct sim_end *end = &link->ends[other(from)];
    bool ok = true;

    if (way->destination != NULL && !end->shut && link->faulty && frame->checksum &&
        sim_chance(link->network->agenda, link->network->damage_one_in)) {
        way->destination[-1] ^= 0x41;
        link->network->damage_count++;
        ok = false;
    }
    tell_sent(link, from, frame);
    if (!link->cut) {
        pop(link, from);
    }
    if (!end->shut && !end->gone) {
        end->calls->payload(end->owner, link, other(from), ok);
        (void)lost_now(link);
    }
}

static void tell_progress(struct sim_link *link, int from)
{
    struct sim_end *end = &link->ends[other(from)];
    struct sim_end *sender = &link->ends[from];

    if (!end->shut && !end->gone) {
        end->calls->progress(end->owner, link, other(from), true, link->ways[from].delivered);
    }
    if (!sender->shut && !sender->gone) {
        sender->calls->progress(sender->owner, link, from, false, 0);
    }
}

/* An end that closes takes nothing in any more, and has no places for it. */
static void drop_if_shut(struct sim_link *link, int from)
{
    if (!link->cut && link->ends[other(from)].shut && link->ways[from].stage == SIM_STAGE_PLACE) {
        sim_link_drop(link, other(from));
    }
}

static void deliver_some(void *context, uint64_t argument)
{
    struct sim_link *link = context;
    struct sim_frame *frame = head_of(link, argument);
    int from = (int)(argument & 1);
    struct sim_way *way = &link->ways[from];

    if (frame == NULL || !awake(link, deliver_some, argument) || lost_now(link)) {
        return;
    }
    take_in(link, from, frame, next_end(way, frame));
    if (way->delivered == frame->payload_bytes) {
        finish_payload(link, from, frame);
        return;
    }
    way->stalled = way->delivered == frame->payload_ready;
    if (way->delivered == way->placed) {
        way->stage = SIM_STAGE_PLACE;
    } else if (!way->stalled) {
        sim_after(link->network->agenda, delay_us(link, other(from)), deliver_some, link, argument);
    }
    tell_progress(link, from);
    drop_if_shut(link, from);
}

void sim_link_release(struct sim_link *link, int side, uint64_t payload_ready)
{
    struct sim_way *way = &link->ways[side];

    for (size_t i = way->begin; !link->cut && i < way->end; i++) {
        struct sim_frame *frame = &way->frames[i];
        if (frame->payload_ready == frame->payload_bytes) {
            continue;
        }
        PD_ASSERT(payload_ready >= frame->payload_ready && payload_ready <= frame->payload_bytes);
        frame->payload_ready = payload_ready;
        if (i == way->begin && way->stalled) {
            way->stalled = false;
            if (way->stage == SIM_STAGE_PAYLOAD) {
                sim_after(link->network->agenda, delay_us(link, other(side)), deliver_some, link,
                          argument_of(side, frame->serial));
            }
        }
        return;
    }
}

/* The payload goes on, unless its sender holds it back. */
static void go_on(struct sim_link *link, int side)
{
    struct sim_way *way = &link->ways[other(side)];

    way->stage = SIM_STAGE_PAYLOAD;
    if (!way->stalled) {
        sim_after(link->network->agenda, delay_us(link, side), deliver_some, link,
                  argument_of(other(side), way->frames[way->begin].serial));
    }
}

void sim_link_place(struct sim_link *link, int side, void *destination, uint64_t byte_count)
{
    struct sim_way *way = &link->ways[other(side)];

    if (link->cut) {
        return;
    }
    PD_ASSERT(way->stage == SIM_STAGE_PLACE);
    PD_ASSERT(way->placed == way->delivered);
    PD_ASSERT(byte_count <= way->frames[way->begin].payload_bytes - way->delivered);
    way->destination = destination;
    way->placed += byte_count;
    go_on(link, side);
}

void sim_link_drop(struct sim_link *link, int side)
{
    struct sim_way *way = &link->ways[other(side)];

    if (link->cut || (way->stage != SIM_STAGE_PLACE && way->stage != SIM_STAGE_PAYLOAD)) {
        return;
    }
    way->destination = NULL;
    way->placed = way->frames[way->begin].payload_bytes;
    if (way->stage == SIM_STAGE_PLACE) {
        go_on(link, side);
    }
}

/* Take a frame's header apart as a reader would. */
static bool decode(struct sim_link *link, const struct sim_frame *frame, struct pd_message *message)
{
    struct sim_agenda *agenda = link->network->agenda;
    struct pd_prefix prefix;
    struct pd_error error = {0};

    if (pd_prefix_decode(&prefix, frame->bytes, &error) != PD_OK) {
        sim_fail(agenda, "prefix: %s", error.message);
    }
    SIM_CHECK(agenda, prefix.header_bytes + PD_PREFIX_BYTES == frame->byte_count,
              "a header of %u bytes in a frame of %zu", prefix.header_bytes, frame->byte_count);
    SIM_CHECK(agenda, prefix.payload_bytes == frame->payload_bytes, "payload lengths differ");
    SIM_CHECK(agenda, ((prefix.flags & PD_FRAME_FLAG_CHECKSUM) != 0) == frame->checksum,
              "checksum flags differ");
    if (pd_message_decode(message, prefix.kind, frame->bytes + PD_PREFIX_BYTES, prefix.header_bytes,
                          &error) != PD_OK) {
        sim_fail(agenda, "%s: %s", pd_message_kind_name(prefix.kind), error.message);
    }
    return true;
}

static void deliver_message(void *context, uint64_t argument)
{
    struct sim_link *link = context;
    struct sim_frame *frame = head_of(link, argument);
    int from = (int)(argument & 1);
    struct sim_way *way = &link->ways[from];
    struct sim_end *end = &link->ends[other(from)];

    if (frame == NULL || !awake(link, deliver_message, argument) || lost_now(link)) {
        return;
    }
    if (end->shut || end->gone) {
        tell_sent(link, from, frame);
        if (!link->cut) {
            pop(link, from);
        }
        return;
    }
    struct pd_message *message = &link->network->message;
    uint64_t payload_bytes = frame->payload_bytes;
    decode(link, frame, message);
    sim_trace(link->network->agenda, "link %" PRIu64 " side %d gets %s, %" PRIu64 " bytes",
              link->number, other(from), pd_message_kind_name(message->kind), payload_bytes);
    way->stage = SIM_STAGE_PLACE;
    way->destination = NULL;
    way->placed = 0;
    way->delivered = 0;
    way->stalled = false;
    end->calls->message(end->owner, link, other(from), message, payload_bytes, frame->checksum);
    pd_message_finish(message);
    if (!link->cut && payload_bytes == 0) {
        pop(link, from);
    }
    if (payload_bytes > 0) {
        drop_if_shut(link, from);
    }
    (void)lost_now(link);
}

static void advance(struct sim_link *link, int from)
{
    struct sim_way *way = &link->ways[from];

    if (link->cut || way->stage != SIM_STAGE_IDLE || way->begin == way->end ||
        !link->ends[other(from)].open) {
        return;
    }
    way->stage = SIM_STAGE_MESSAGE;
    sim_after(link->network->agenda, delay_us(link, other(from)), deliver_message, link,
              argument_of(from, way->frames[way->begin].serial));
}

/* Take the payload over from its sender. */
static void copy_payload(struct sim_frame *frame)
{
    frame->copy = sim_alloc(frame->payload_bytes, 1);
    copy_out(frame->copy, frame, 0, frame->payload_bytes);
    frame->payload = frame->copy;
    frame->payload_dtype = PD_DTYPE_FLOAT32;
}

void sim_link_send(struct sim_link *link, int side, const uint8_t *bytes, size_t byte_count,
                   const void *payload, enum pd_dtype payload_dtype, uint64_t payload_bytes,
                   uint64_t payload_ready, bool checksum)
{
    struct sim_network *network = link->network;
    struct sim_way *way = &link->ways[side];
    struct sim_frame frame = {.byte_count = byte_count,
                              .payload = payload,
                              .payload_dtype = payload_dtype,
                              .payload_bytes = payload_bytes,
                              .payload_ready = payload_ready,
                              .serial = ++network->frame_serial,
                              .checksum = checksum};

    if (link->cut || link->ends[side].shut) {
        return;
    }
    frame.bytes = sim_alloc(byte_count, 1);
    memcpy(frame.bytes, bytes, byte_count);
    if (payload_bytes > 0 && payload_ready == payload_bytes && !link->lazy &&
        sim_chance(network->agenda, 2)) {
        copy_payload(&frame);
        sim_after(network->agenda, delay_us(link, other(side)), leave_early, link,
                  argument_of(side, frame.serial));
    }
    if (way->begin == way->end) {
        way->begin = 0;
        way->end = 0;
    }
    way->frames = sim_grow(way->frames, way->end, &way->capacity, sizeof *way->frames);
    way->frames[way->end++] = frame;
    advance(link, side);
}

void sim_link_say(struct sim_link *link, int side, const struct pd_message *message,
                  const void *payload, uint64_t payload_bytes, bool checksum)
{
    uint8_t *bytes;
    size_t byte_count;
    struct pd_error error = {0};

    if (link->cut || link->ends[side].shut) {
        return;
    }
    if (pd_frame_encode(&bytes, &byte_count, message, checksum ? PD_FRAME_FLAG_CHECKSUM : 0,
                        payload_bytes, &error) != PD_OK) {
        sim_fail(link->network->agenda, "%s: %s", pd_message_kind_name(message->kind),
                 error.message);
    }
    sim_link_send(link, side, bytes, byte_count, payload, PD_DTYPE_FLOAT32, payload_bytes,
                  payload_bytes, checksum);
    pd_heap_free(bytes);
    struct sim_way *way = &link->ways[side];
    struct sim_frame *frame = &way->frames[way->end - 1];
    if (payload_bytes > 0 && frame->copy == NULL) {
        copy_payload(frame);
    }
}
