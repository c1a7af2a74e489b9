/* The text of a configuration as a tree of mappings, lists and scalars that know their line.
 * YAML text, "key=value" settings -> [config_tree] -> option, config. Pure.
 *
 * YAML 1.1 as far as a configuration needs it: one document, no anchors, aliases or tags, no key
 * twice, bounded in size, depth and number of nodes. Scalars stay text: the option they are for
 * says what they mean. */
#ifndef PD_SERVER_CORE_CONFIG_TREE_H
#define PD_SERVER_CORE_CONFIG_TREE_H

#include "common/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum pd_node_kind { PD_NODE_SCALAR, PD_NODE_LIST, PD_NODE_MAP };

/* Where a node was written, for messages. The texts are borrowed and outlive the tree. */
struct pd_config_source {
    const char *file;
    const char *setting; /* "key=value" of the command line; NULL: from the file */
    const char *taker;   /* of a setting: who takes it; NULL: --set */
};

/* Open, because the readers of a tree walk it. Read-only outside config_tree.c. */
struct pd_node {
    enum pd_node_kind kind;
    struct pd_config_source source;
    size_t line;  /* from 1, in the file */
    char *key;    /* as the child of a mapping, else NULL */
    char *text;   /* of a scalar */
    bool quoted;  /* a scalar in quotes: never null, a number or a truth value */
    size_t count; /* of a list or mapping */
    struct pd_node **children;
};

/* Parse `text`; an empty one gives an empty mapping, or null as the value of a setting. *out is the
 * caller's, for pd_node_destroy. Errors: PD_ECONFIG "FILE:LINE: what"; PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_node_parse(struct pd_node **out, const struct pd_config_source *source,
                             const char *text, struct pd_error *error);
void pd_node_destroy(struct pd_node *node);

/* Put the value of a setting "a.b=value" or "a.0.b=value" where its key says, making the mappings
 * and lists on the way. An index may be that of an item or one past the last; a mapping stands for
 * a list of one.
 * Ownership: `source->setting` is the setting. Errors: PD_ECONFIG "--set a.b=value: what";
 * PD_ENOMEM; the tree is then still valid, but may have new empty nodes. */
PD_MUST_CHECK
enum pd_status pd_node_set(struct pd_node *root, const struct pd_config_source *source,
                           struct pd_error *error);

/* Whether it is a scalar that says nothing: empty, "~" or "null" without quotes. */
bool pd_node_is_null(const struct pd_node *node);

/* The child of a mapping with that key, or NULL. */
const struct pd_node *pd_node_find(const struct pd_node *map, const char *key);

/* Fill `error` with PD_ECONFIG and one line that begins with where the node was written and, if
 * `path` is not empty, the key: "FILE:LINE: path: ..." or "--set key=value: path: ...", or the
 * taker of the setting in place of --set. */
enum pd_status pd_node_fault(const struct pd_node *node, const char *path, struct pd_error *error,
                             const char *format, ...) PD_PRINTF(4, 5);

#endif
