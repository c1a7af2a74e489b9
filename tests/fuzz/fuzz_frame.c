/* Fuzzes the frame reader: any bytes, cut anywhere, payloads kept or dropped, must end in whole
 * messages or a clear fault, and never outside the memory given.
 * The first input byte says how the rest is cut. */
#include "common/frame.h"

#include "common/assert.h"
#include "common/heap.h"

#include <string.h>

#define PLACE_BYTES_MAX 65536u
#define PART_BYTES 100u

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t byte_count);

/* Give the next part of a payload its place, or none to one that is too long. */
static void place_some(struct pd_frame_reader *reader, uint8_t *place)
{
    uint64_t received = pd_frame_reader_payload_received(reader);
    uint64_t left = pd_frame_reader_payload_bytes(reader) - received;

    if (place == NULL) {
        pd_frame_reader_drop(reader);
    } else {
        pd_frame_reader_place(reader, place + received, left < PART_BYTES ? left : PART_BYTES);
    }
}

/* Take what is whole; false when the stream is no use any more. `place` holds the payload read. */
static bool take_events(struct pd_frame_reader *reader, uint8_t **place)
{
    struct pd_error error = {0};
    for (;;) {
        switch (pd_frame_reader_next(reader, &error)) {
        case PD_FRAME_MORE:
            if (!pd_frame_reader_waits(reader)) {
                return true;
            }
            place_some(reader, *place);
            break;
        case PD_FRAME_FAILED:
            PD_ASSERT(error.status != PD_OK);
            PD_ASSERT(error.message[0] != '\0');
            return false;
        case PD_FRAME_MESSAGE: {
            uint64_t payload_bytes = pd_frame_reader_payload_bytes(reader);
            if (payload_bytes > 0) {
                PD_ASSERT(pd_frame_reader_waits(reader));
                *place = payload_bytes <= PLACE_BYTES_MAX ? pd_heap_zalloc(payload_bytes, 1) : NULL;
                place_some(reader, *place);
            }
            break;
        }
        case PD_FRAME_PAYLOAD:
            pd_heap_free(*place);
            *place = NULL;
            break;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t byte_count)
{
    struct pd_frame_reader *reader = NULL;
    uint8_t *place = NULL;
    if (byte_count == 0 || pd_frame_reader_create(&reader, NULL) != PD_OK) {
        return 0;
    }

    size_t piece = (size_t)bytes[0] + 1;
    for (size_t offset = 1; offset < byte_count;) {
        struct iovec pieces[PD_FRAME_PIECE_COUNT_MAX];
        size_t piece_count = pd_frame_reader_gather(reader, pieces);
        size_t left = byte_count - offset < piece ? byte_count - offset : piece;
        size_t taken = 0;
        PD_ASSERT(piece_count > 0);
        for (size_t i = 0; i < piece_count && left > 0; i++) {
            size_t take = left < pieces[i].iov_len ? left : pieces[i].iov_len;
            memcpy(pieces[i].iov_base, bytes + offset + taken, take);
            taken += take;
            left -= take;
        }
        offset += taken;
        pd_frame_reader_filled(reader, taken);
        if (!take_events(reader, &place)) {
            break;
        }
    }
    pd_frame_reader_destroy(reader);
    pd_heap_free(place);
    PD_ASSERT(pd_heap_blocks_live() == 0);
    return 0;
}
