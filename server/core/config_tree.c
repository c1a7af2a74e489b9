#include "server/core/config_tree.h"

#include "common/assert.h"
#include "common/heap.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <yaml.h>

/* One YAML text on its way into a tree. */
struct reader {
    yaml_parser_t parser;
    struct pd_config_source source;
    size_t node_count;
    struct pd_error *error;
};

/* Put the place and, if there is one, the key before `what`. */
static void set_fault(const struct pd_config_source *source, size_t line, const char *path,
                      const char *what, struct pd_error *error)
{
    const char *colon = path[0] == '\0' ? "" : ": ";

    if (source->setting != NULL) {
        pd_error_set(error, PD_ECONFIG, "%s %.150s: %.100s%s%s",
                     source->taker != NULL ? source->taker : "--set", source->setting, path, colon,
                     what);
    } else {
        pd_error_set(error, PD_ECONFIG, "%.150s:%zu: %.100s%s%s", source->file, line, path, colon,
                     what);
    }
}

enum pd_status pd_node_fault(const struct pd_node *node, const char *path, struct pd_error *error,
                             const char *format, ...)
{
    char what[PD_ERROR_BYTES_MAX];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    set_fault(&node->source, node->line, path, what, error);
    return PD_ECONFIG;
}

static enum pd_status reader_fault(struct reader *reader, size_t line, const char *format, ...)
    PD_PRINTF(3, 4);

static enum pd_status reader_fault(struct reader *reader, size_t line, const char *format, ...)
{
    char what[PD_ERROR_BYTES_MAX];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    set_fault(&reader->source, line, "", what, reader->error);
    return PD_ECONFIG;
}

static enum pd_status out_of_memory(const struct pd_config_source *source, struct pd_error *error)
{
    pd_error_set(error, PD_ENOMEM, "configuration: %.200s",
                 source->setting != NULL ? source->setting : source->file);
    return PD_ENOMEM;
}

void pd_node_destroy(struct pd_node *node)
{
    if (node == NULL) {
        return;
    }
    for (size_t i = 0; i < node->count; i++) {
        pd_node_destroy(node->children[i]);
    }
    pd_heap_free(node->children);
    pd_heap_free(node->key);
    pd_heap_free(node->text);
    pd_heap_free(node);
}

bool pd_node_is_null(const struct pd_node *node)
{
    return node->kind == PD_NODE_SCALAR && !node->quoted &&
           (node->text[0] == '\0' || strcmp(node->text, "~") == 0 ||
            strcasecmp(node->text, "null") == 0);
}

const struct pd_node *pd_node_find(const struct pd_node *map, const char *key)
{
    PD_ASSERT(map->kind == PD_NODE_MAP);
    for (size_t i = 0; i < map->count; i++) {
        if (strcmp(map->children[i]->key, key) == 0) {
            return map->children[i];
        }
    }
    return NULL;
}

/* A new scalar with the text of `bytes` bytes, or an empty list or mapping; NULL: out of memory. */
static struct pd_node *node_create(enum pd_node_kind kind, const struct pd_config_source *source,
                                   size_t line, const char *text, size_t bytes)
{
    struct pd_node *node = pd_heap_zalloc(1, sizeof *node);

    if (node == NULL) {
        return NULL;
    }
    node->kind = kind;
    node->source = *source;
    node->line = line;
    if (kind == PD_NODE_SCALAR) {
        node->text = pd_heap_zalloc(bytes + 1, 1);
        if (node->text == NULL) {
            pd_heap_free(node);
            return NULL;
        }
        memcpy(node->text, text, bytes);
    }
    return node;
}

/* Room doubles whenever the count reaches a power of two. */
static bool node_append(struct pd_node *parent, struct pd_node *child)
{
    if ((parent->count & (parent->count - 1)) == 0) {
        size_t capacity = parent->count == 0 ? 1 : 2 * parent->count;
        struct pd_node **children =
            parent->children == NULL
                ? pd_heap_zalloc(capacity, sizeof *children)
                : pd_heap_realloc(parent->children, capacity * sizeof *children);

        if (children == NULL) {
            return false;
        }
        parent->children = children;
    }
    parent->children[parent->count++] = child;
    return true;
}

/* Turn libyaml's complaint into ours. */
static enum pd_status parser_fault(struct reader *reader)
{
    const yaml_parser_t *parser = &reader->parser;
    bool is_glob = parser->context != NULL && strstr(parser->context, "alias") != NULL;

    switch (parser->error) {
    case YAML_MEMORY_ERROR:
        return out_of_memory(&reader->source, reader->error);
    case YAML_READER_ERROR:
        return reader_fault(reader, parser->mark.line + 1, "not YAML: %s at byte %zu",
                            parser->problem, parser->problem_offset);
    default:
        return reader_fault(reader, parser->problem_mark.line + 1, "not YAML: %s%s%s%s",
                            parser->context != NULL ? parser->context : "",
                            parser->context != NULL ? ", " : "",
                            parser->problem != NULL ? parser->problem : "unreadable",
                            is_glob ? "; a text that begins with * needs quotes" : "");
    }
}

static enum pd_status next_event(struct reader *reader, yaml_event_t *event)
{
    if (!yaml_parser_parse(&reader->parser, event)) {
        return parser_fault(reader);
    }
    return PD_OK;
}

/* What YAML offers and a configuration does not need is refused, not ignored. */
static enum pd_status check_event(struct reader *reader, const yaml_event_t *event)
{
    const yaml_char_t *anchor = NULL;
    const yaml_char_t *tag = NULL;
    size_t line = event->start_mark.line + 1;

    switch (event->type) {
    case YAML_ALIAS_EVENT:
        return reader_fault(reader, line,
                            "alias *%.60s: not allowed; a text that begins with * needs quotes",
                            (const char *)event->data.alias.anchor);
    case YAML_SCALAR_EVENT:
        anchor = event->data.scalar.anchor;
        tag = event->data.scalar.tag;
        if (strlen((const char *)event->data.scalar.value) != event->data.scalar.length) {
            return reader_fault(reader, line, "text with a zero byte: not allowed");
        }
        break;
    case YAML_SEQUENCE_START_EVENT:
        anchor = event->data.sequence_start.anchor;
        tag = event->data.sequence_start.tag;
        break;
    case YAML_MAPPING_START_EVENT:
        anchor = event->data.mapping_start.anchor;
        tag = event->data.mapping_start.tag;
        break;
    default:
        break;
    }
    if (anchor != NULL) {
        return reader_fault(reader, line,
                            "anchor &%.60s: not allowed; a text that begins with & needs quotes",
                            (const char *)anchor);
    }
    if (tag != NULL) {
        return reader_fault(reader, line,
                            "tag %.60s: not allowed; a text that begins with ! needs quotes",
                            (const char *)tag);
    }
    if (++reader->node_count > PD_CONFIG_NODE_COUNT_MAX) {
        return reader_fault(reader, line, "too many values; allowed: %u", PD_CONFIG_NODE_COUNT_MAX);
    }
    return PD_OK;
}

static enum pd_status read_node(struct reader *reader, const yaml_event_t *event, unsigned depth,
                                struct pd_node **out);

/* Read the key that `event` begins and give the text it owns to *key. */
static enum pd_status read_key(struct reader *reader, const yaml_event_t *event,
                               const struct pd_node *map, char **key)
{
    size_t line = event->start_mark.line + 1;
    enum pd_status status = check_event(reader, event);

    if (status != PD_OK) {
        return status;
    }
    if (event->type != YAML_SCALAR_EVENT) {
        return reader_fault(reader, line, "a key that is a list or a mapping; allowed: a word");
    }
    const char *text = (const char *)event->data.scalar.value;
    const struct pd_node *first = pd_node_find(map, text);
    if (first != NULL) {
        return reader_fault(reader, line, "%.60s: given twice, first in line %zu", text,
                            first->line);
    }
    *key = pd_heap_strdup(text);
    if (*key == NULL) {
        return out_of_memory(&reader->source, reader->error);
    }
    return PD_OK;
}

/* Read the next child of `parent`, or see its end. */
static enum pd_status read_child(struct reader *reader, struct pd_node *parent, unsigned depth,
                                 bool *end)
{
    yaml_event_t event;
    struct pd_node *child = NULL;
    char *key = NULL;
    size_t line;
    enum pd_status status = next_event(reader, &event);

    if (status != PD_OK) {
        return status;
    }
    *end = event.type == YAML_SEQUENCE_END_EVENT || event.type == YAML_MAPPING_END_EVENT;
    if (*end) {
        goto fail_event;
    }
    line = event.start_mark.line + 1;
    if (parent->kind == PD_NODE_MAP) {
        status = read_key(reader, &event, parent, &key);
        if (status != PD_OK) {
            goto fail_event;
        }
        yaml_event_delete(&event);
        status = next_event(reader, &event);
        if (status != PD_OK) {
            goto fail_key;
        }
    }
    status = read_node(reader, &event, depth, &child);
    if (status != PD_OK) {
        goto fail_event;
    }
    child->key = key;
    key = NULL;
    child->line = line;
    if (!node_append(parent, child)) {
        pd_node_destroy(child);
        status = out_of_memory(&reader->source, reader->error);
    }

fail_event:
    yaml_event_delete(&event);
fail_key:
    pd_heap_free(key);
    return status;
}

/* Read the node that `event` begins, with all inside it. */
static enum pd_status read_node(struct reader *reader, const yaml_event_t *event, unsigned depth,
                                struct pd_node **out)
{
    size_t line = event->start_mark.line + 1;
    enum pd_node_kind kind = event->type == YAML_SCALAR_EVENT           ? PD_NODE_SCALAR
                             : event->type == YAML_SEQUENCE_START_EVENT ? PD_NODE_LIST
                                                                        : PD_NODE_MAP;
    enum pd_status status = check_event(reader, event);

    if (status != PD_OK) {
        return status;
    }
    if (kind != PD_NODE_SCALAR && depth == PD_CONFIG_DEPTH_MAX) {
        return reader_fault(reader, line, "nested too deeply; allowed: %u levels",
                            PD_CONFIG_DEPTH_MAX);
    }
    struct pd_node *node =
        kind == PD_NODE_SCALAR
            ? node_create(kind, &reader->source, line, (const char *)event->data.scalar.value,
                          event->data.scalar.length)
            : node_create(kind, &reader->source, line, NULL, 0);
    if (node == NULL) {
        return out_of_memory(&reader->source, reader->error);
    }
    if (kind == PD_NODE_SCALAR) {
        node->quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    }
    for (bool end = kind == PD_NODE_SCALAR; !end;) {
        status = read_child(reader, node, depth + 1, &end);
        if (status != PD_OK) {
            pd_node_destroy(node);
            return status;
        }
    }
    *out = node;
    return PD_OK;
}

/* Read the next of the events that frame a document; a second document is refused. */
static enum pd_status read_document(struct reader *reader, struct pd_node **out)
{
    yaml_event_t event;
    enum pd_status status;

    for (bool end = false; !end;) {
        status = next_event(reader, &event);
        if (status != PD_OK) {
            return status;
        }
        switch (event.type) {
        case YAML_STREAM_END_EVENT:
            end = true;
            break;
        case YAML_STREAM_START_EVENT:
        case YAML_DOCUMENT_END_EVENT:
            break;
        case YAML_DOCUMENT_START_EVENT:
            if (*out != NULL) {
                status = reader_fault(reader, event.start_mark.line + 1,
                                      "a second document; allowed: one");
            }
            break;
        default:
            status = read_node(reader, &event, 0, out);
            break;
        }
        yaml_event_delete(&event);
        if (status != PD_OK) {
            return status;
        }
    }
    return PD_OK;
}

enum pd_status pd_node_parse(struct pd_node **out, const struct pd_config_source *source,
                             const char *text, struct pd_error *error)
{
    struct reader reader = {.source = *source, .error = error};
    size_t bytes = strnlen(text, (size_t)PD_CONFIG_BYTES_MAX + 1);

    *out = NULL;
    if (bytes > PD_CONFIG_BYTES_MAX) {
        return reader_fault(&reader, 1, "longer than %u bytes", PD_CONFIG_BYTES_MAX);
    }
    if (!yaml_parser_initialize(&reader.parser)) {
        return out_of_memory(source, error);
    }
    yaml_parser_set_encoding(&reader.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)text, bytes);

    struct pd_node *root = NULL;
    enum pd_status status = read_document(&reader, &root);
    yaml_parser_delete(&reader.parser);
    if (status == PD_OK && root == NULL) {
        root = source->setting != NULL ? node_create(PD_NODE_SCALAR, source, 0, "", 0)
                                       : node_create(PD_NODE_MAP, source, 1, NULL, 0);
        status = root != NULL ? PD_OK : out_of_memory(source, error);
    }
    if (status != PD_OK) {
        pd_node_destroy(root);
        return status;
    }
    *out = root;
    return PD_OK;
}

/* Let `node`, which keeps its key, become what `value` is; `value` is used up. */
static void node_replace(struct pd_node *node, struct pd_node *value)
{
    struct pd_node old = *node;

    *node = *value;
    node->key = old.key;
    *value = old;
    value->key = NULL;
    pd_node_destroy(value);
}

/* Whether the word is an index, which is then in *index; a number too large to be one is clamped.
 */
static bool parse_index(const char *word, size_t bytes, size_t *index)
{
    size_t value = 0;

    for (size_t i = 0; i < bytes; i++) {
        if (word[i] < '0' || word[i] > '9') {
            return false;
        }
        value = value > PD_CONFIG_NODE_COUNT_MAX ? value : 10 * value + (size_t)(word[i] - '0');
    }
    *index = value;
    return bytes > 0;
}

/* Append an empty child for a setting to fill. */
static enum pd_status append_empty(struct pd_node *parent, const struct pd_config_source *source,
                                   const char *key, size_t key_bytes, struct pd_error *error)
{
    struct pd_node *child = node_create(PD_NODE_SCALAR, source, 0, "", 0);

    if (child == NULL) {
        goto fail;
    }
    if (key != NULL) {
        child->key = pd_heap_zalloc(key_bytes + 1, 1);
        if (child->key == NULL) {
            goto fail_child;
        }
        memcpy(child->key, key, key_bytes);
    }
    if (!node_append(parent, child)) {
        goto fail_child;
    }
    return PD_OK;

fail_child:
    pd_node_destroy(child);
fail:
    return out_of_memory(source, error);
}

static struct pd_node *find_bytes(const struct pd_node *map, const char *key, size_t bytes)
{
    for (size_t i = 0; i < map->count; i++) {
        if (strlen(map->children[i]->key) == bytes &&
            memcmp(map->children[i]->key, key, bytes) == 0) {
            return map->children[i];
        }
    }
    return NULL;
}

/* Go from *node to its child named by one word of a setting's key, making it if need be. `path` is
 * the key as far as *node. */
static enum pd_status descend(struct pd_node **node, const struct pd_config_source *source,
                              const char *path, const char *word, size_t bytes,
                              struct pd_error *error)
{
    struct pd_node *parent = *node;
    struct pd_node at = {.source = *source};
    size_t index = 0;
    bool is_index = parse_index(word, bytes, &index);

    if (bytes == 0) {
        return pd_node_fault(&at, "", error, "an empty word in the key");
    }
    if (pd_node_is_null(parent)) {
        parent->kind = is_index ? PD_NODE_LIST : PD_NODE_MAP;
    }
    if (parent->kind == PD_NODE_SCALAR) {
        return pd_node_fault(&at, path, error, "a single value, with nothing inside it");
    }
    if (is_index && parent->kind == PD_NODE_MAP && index == 0) {
        return PD_OK;
    }
    if (is_index) {
        size_t count = parent->kind == PD_NODE_MAP ? 1 : parent->count;
        if (index > count || parent->kind == PD_NODE_MAP) {
            return pd_node_fault(&at, path, error, "no item %.*s; the list has %zu",
                                 bytes > 20 ? 20 : (int)bytes, word, count);
        }
    } else if (parent->kind == PD_NODE_LIST) {
        return pd_node_fault(&at, path, error, "a list: name an item by its index, as in %.60s.0",
                             path);
    }

    struct pd_node *child = is_index ? (index < parent->count ? parent->children[index] : NULL)
                                     : find_bytes(parent, word, bytes);
    if (child == NULL) {
        enum pd_status status = append_empty(parent, source, is_index ? NULL : word, bytes, error);
        if (status != PD_OK) {
            return status;
        }
        child = parent->children[parent->count - 1];
    }
    *node = child;
    return PD_OK;
}

enum pd_status pd_node_set(struct pd_node *root, const struct pd_config_source *source,
                           struct pd_error *error)
{
    const char *setting = source->setting;
    const char *equals = strchr(setting, '=');
    struct pd_node at = {.source = *source};
    struct pd_node *node = root;
    struct pd_node *value;

    if (equals == NULL || equals == setting) {
        return pd_node_fault(&at, "", error, "not a setting; allowed: key=value");
    }
    unsigned depth = 0;
    for (const char *word = setting; word <= equals;) {
        size_t bytes = strcspn(word, ".=");
        char path[101];

        if (depth++ == PD_CONFIG_DEPTH_MAX) {
            return pd_node_fault(&at, "", error, "a key of too many words; allowed: %u",
                                 PD_CONFIG_DEPTH_MAX);
        }
        snprintf(path, sizeof path, "%.*s", word == setting ? 0 : (int)(word - setting - 1),
                 setting);
        enum pd_status status = descend(&node, source, path, word, bytes, error);
        if (status != PD_OK) {
            return status;
        }
        word += bytes + 1;
    }
    enum pd_status status = pd_node_parse(&value, source, equals + 1, error);
    if (status != PD_OK) {
        return status;
    }
    PD_ASSERT(value != NULL);
    node_replace(node, value);
    return PD_OK;
}
