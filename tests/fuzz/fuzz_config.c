/* Any bytes as a configuration: the file, then settings, each ended by a zero byte.
 * Either a whole configuration comes out or one line of text, and no memory is kept. */
#include "common/assert.h"
#include "common/heap.h"
#include "common/text.h"
#include "server/core/config.h"

#include <string.h>

#define SETTING_COUNT_MAX 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_config(struct pd_config *config)
{
    struct pd_error error = {0};
    uint32_t lanes = 0;

    PD_ASSERT(config->optimizer != NULL);
    PD_ASSERT(config->group_count >= 1 && config->group_count <= PD_GROUP_COUNT_MAX + 1);
    PD_ASSERT(config->schedule_count <= PD_SCHEDULE_COUNT_MAX);
    PD_ASSERT(pd_config_group_of(config, "layer.0.bias", 1) < config->group_count);
    PD_ASSERT(config->groups[0].hyper.lr >= 0);
    PD_ASSERT(pd_config_lanes(config, 4, &lanes, &error) != PD_OK || 4 % lanes == 0);

    char *summary = pd_config_summary(config);
    PD_ASSERT(summary != NULL);
    pd_heap_free(summary);
    pd_config_destroy(config);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *settings[SETTING_COUNT_MAX];
    size_t setting_count = 0;
    struct pd_config *config = NULL;
    struct pd_error error = {0};
    char *text = pd_heap_zalloc(size + 1, 1);

    PD_ASSERT(text != NULL);
    memcpy(text, data, size);
    for (size_t at = strlen(text) + 1; at < size && setting_count < SETTING_COUNT_MAX;) {
        settings[setting_count++] = text + at;
        at += strlen(text + at) + 1;
    }
    if (pd_config_create(&config, "f", text, settings, setting_count, &error) == PD_OK) {
        check_config(config);
    } else {
        PD_ASSERT(error.status == PD_ECONFIG && error.message[0] != '\0');
        PD_ASSERT(pd_text_valid(error.message, strlen(error.message)));
    }
    pd_heap_free(text);
    PD_ASSERT(pd_heap_blocks_live() == 0);
    return 0;
}
