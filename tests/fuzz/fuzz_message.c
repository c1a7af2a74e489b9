/* Fuzzes headers: what decodes must encode, and decode again to the same header.
 * The first input byte is the kind. */
#include "common/message.h"

#include "common/assert.h"
#include "common/heap.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t byte_count);

/* Encode into new memory; NULL if the header would be over its limit, which another way of writing
 * the same fields can be. */
static uint8_t *encode(const struct pd_message *message, size_t *byte_count)
{
    *byte_count = pd_message_header_bytes(message);
    uint8_t *header = pd_heap_zalloc(*byte_count, 1);
    PD_ASSERT(header != NULL);
    enum pd_status status = pd_message_encode(message, header, *byte_count, NULL);
    if (status != PD_OK) {
        PD_ASSERT(status == PD_ELIMIT);
        pd_heap_free(header);
        return NULL;
    }
    return header;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t byte_count)
{
    static struct pd_message message;
    struct pd_error error = {0};
    if (byte_count == 0) {
        return 0;
    }
    enum pd_message_kind kind = (enum pd_message_kind)bytes[0];
    if (pd_message_decode(&message, kind, bytes + 1, byte_count - 1, &error) != PD_OK) {
        PD_ASSERT(error.message[0] != '\0');
        PD_ASSERT(pd_heap_blocks_live() == 0);
        return 0;
    }

    size_t first_bytes = 0;
    size_t second_bytes = 0;
    uint8_t *first = encode(&message, &first_bytes);
    pd_message_finish(&message);
    if (first != NULL) {
        PD_ASSERT(pd_message_decode(&message, kind, first, first_bytes, &error) == PD_OK);
        uint8_t *second = encode(&message, &second_bytes);
        PD_ASSERT(second != NULL);
        PD_ASSERT(first_bytes == second_bytes);
        PD_ASSERT(memcmp(first, second, first_bytes) == 0);
        pd_heap_free(second);
        pd_message_finish(&message);
    }
    pd_heap_free(first);
    PD_ASSERT(pd_heap_blocks_live() == 0);
    return 0;
}
