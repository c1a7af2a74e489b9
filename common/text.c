#include "common/text.h"

#include <stdint.h>
#include <string.h>

/* Bytes of the character at the start of `bytes`; 0 if it is ill-formed or a control character.
 * `cut` says whether it is ill-formed only because the bytes end too soon. */
static size_t character_bytes(const uint8_t *bytes, size_t byte_count, bool *cut)
{
    *cut = false;
    uint8_t lead = bytes[0];
    if (lead < 0x80) {
        return lead >= 0x20 && lead != 0x7f ? 1 : 0;
    }

    size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4) {
        return 0;
    }
    for (size_t i = 1; i < length; i++) {
        if (i == byte_count) {
            *cut = true;
            return 0;
        }
        if ((bytes[i] & 0xc0) != 0x80) {
            return 0;
        }
    }

    bool control = lead == 0xc2 && bytes[1] < 0xa0; /* C1 */
    bool overlong = (lead == 0xe0 && bytes[1] < 0xa0) || (lead == 0xf0 && bytes[1] < 0x90);
    bool surrogate = lead == 0xed && bytes[1] >= 0xa0;
    bool beyond = lead == 0xf4 && bytes[1] >= 0x90;
    return control || overlong || surrogate || beyond ? 0 : length;
}

bool pd_text_valid(const char *text, size_t byte_count)
{
    const uint8_t *bytes = (const uint8_t *)text;
    bool cut = false;

    for (size_t i = 0; i < byte_count;) {
        size_t length = character_bytes(bytes + i, byte_count - i, &cut);
        if (length == 0) {
            return false;
        }
        i += length;
    }
    return true;
}

void pd_text_clean(char *text)
{
    uint8_t *bytes = (uint8_t *)text;
    size_t byte_count = strlen(text);
    bool cut = false;

    for (size_t i = 0; i < byte_count;) {
        size_t length = character_bytes(bytes + i, byte_count - i, &cut);
        if (cut) {
            bytes[i] = '\0';
            return;
        }
        if (length == 0) {
            bytes[i] = '?';
            length = 1;
        }
        i += length;
    }
}
