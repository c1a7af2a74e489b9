/* The tree of a configuration: what YAML is taken, what is refused and where settings go. */
#include "common/heap.h"
#include "server/core/config_tree.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct pd_config_source file = {.file = "f"};

static struct pd_node *parse(const char *text)
{
    struct pd_node *root = NULL;
    struct pd_error error = {0};

    ck_assert_msg(pd_node_parse(&root, &file, text, &error) == PD_OK, "%s", error.message);
    return root;
}

static void set(struct pd_node *root, const char *setting)
{
    struct pd_config_source source = {.file = "f", .setting = setting};
    struct pd_error error = {0};

    ck_assert_msg(pd_node_set(root, &source, &error) == PD_OK, "%s", error.message);
}

/* Write a tree as flow YAML without spaces. */
static void print(const struct pd_node *node, char *text, size_t text_bytes)
{
    char inner[256];

    if (node->kind == PD_NODE_SCALAR) {
        snprintf(text, text_bytes, "%s", node->text);
        return;
    }
    size_t bytes = (size_t)snprintf(text, text_bytes, node->kind == PD_NODE_MAP ? "{" : "[");
    for (size_t i = 0; i < node->count; i++) {
        const struct pd_node *child = node->children[i];
        print(child, inner, sizeof inner);
        bytes += (size_t)snprintf(text + bytes, text_bytes - bytes, "%s%s%s%s", i > 0 ? "," : "",
                                  child->key != NULL ? child->key : "",
                                  child->key != NULL ? ":" : "", inner);
    }
    snprintf(text + bytes, text_bytes - bytes, node->kind == PD_NODE_MAP ? "}" : "]");
}

static void check_tree(const struct pd_node *root, const char *expected)
{
    char text[512];

    print(root, text, sizeof text);
    ck_assert_str_eq(text, expected);
}

START_TEST(mappings_lists_and_scalars_keep_order_and_line)
{
    struct pd_node *root = parse("# comment\na: 1\nb:\n  - x\n  - {c: 'y', d: }\n\ne: >\n  two\n");

    check_tree(root, "{a:1,b:[x,{c:y,d:}],e:two\n}");
    ck_assert_uint_eq(root->children[0]->line, 2);
    ck_assert_uint_eq(root->children[1]->line, 3);
    ck_assert_uint_eq(root->children[1]->children[1]->line, 5);
    ck_assert_uint_eq(root->children[2]->line, 7);
    ck_assert_ptr_eq(pd_node_find(root, "b"), root->children[1]);
    ck_assert_ptr_null(pd_node_find(root, "c"));
    pd_node_destroy(root);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(a_file_without_content_is_an_empty_mapping)
{
    static const char *const texts[] = {"", "\n\n", "# only a comment", "\xef\xbb\xbf", "---\n"};
    struct pd_node *root = parse(texts[_i]);

    ck_assert(root->kind == PD_NODE_MAP || pd_node_is_null(root));
    pd_node_destroy(root);
}
END_TEST

START_TEST(only_an_unquoted_nothing_is_null)
{
    struct pd_node *root = parse("[~, null, NULL, Null, '', \"null\", nil, 0]");

    for (size_t i = 0; i < root->count; i++) {
        ck_assert_int_eq(pd_node_is_null(root->children[i]), i < root->count - 4);
    }
    pd_node_destroy(root);
}
END_TEST

static const struct {
    const char *text;
    const char *message;
} refusals[] = {
    {"a: 1\nb: &x 2\n", "f:2: anchor &x: not allowed; a text that begins with & needs quotes"},
    {"a: 1\nb: *x\n", "f:2: alias *x: not allowed; a text that begins with * needs quotes"},
    {"m: *.bias\n", "f:1: not YAML: while scanning an alias, did not find expected alphabetic or "
                    "numeric character; a text that begins with * needs quotes"},
    {"a: !!int 2\n", "f:1: tag tag:yaml.org,2002:int: not allowed; a text that begins with ! needs "
                     "quotes"},
    {"a: 1\n---\nb: 2\n", "f:2: a second document; allowed: one"},
    {"a: 1\nb: 2\na: 3\n", "f:3: a: given twice, first in line 1"},
    {"a: {b: 1, b: 2}\n", "f:1: b: given twice, first in line 1"},
    {"? [a]\n: 1\n", "f:1: a key that is a list or a mapping; allowed: a word"},
    {"a: [[[[[[[1]]]]]]]", "f:1: nested too deeply; allowed: 6 levels"},
    {"a: \"x\\0y\"", "f:1: text with a zero byte: not allowed"},
    {"\"a\\0b\": 1", "f:1: text with a zero byte: not allowed"},
    {"a: 1\n b: 2\n", "f:2: not YAML: mapping values are not allowed in this context"},
    {"a: [1\nb: 2\n", "f:2: not YAML: while parsing a flow sequence, did not find expected ',' or "
                      "']'"},
    {"a: 1\n\tb: 2\n", "f:2: not YAML: while scanning a plain scalar, found a tab character that "
                       "violates indentation"},
    {"a: '1\n", "f:2: not YAML: while scanning a quoted scalar, found unexpected end of stream"},
    {"%YAML 2.0\n---\na: 1\n", "f:1: not YAML: found incompatible YAML document"},
};

START_TEST(what_a_configuration_does_not_need_is_refused_with_its_line)
{
    struct pd_node *root = NULL;
    struct pd_error error = {0};

    ck_assert_int_eq(pd_node_parse(&root, &file, refusals[_i].text, &error), PD_ECONFIG);
    ck_assert_str_eq(error.message, refusals[_i].message);
    ck_assert_ptr_null(root);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(bytes_that_are_not_utf8_are_refused)
{
    static const char *const texts[] = {"a: \xff\n", "a: \xc0\x80\n",     "\xfe\xff",
                                        "\xff\xfe",  "a: \xed\xa0\x80\n", "a: \x01\n"};
    struct pd_node *root = NULL;
    struct pd_error error = {0};

    ck_assert_int_eq(pd_node_parse(&root, &file, texts[_i], &error), PD_ECONFIG);
    ck_assert_msg(strncmp(error.message, "f:1: not YAML: ", 15) == 0, "%s", error.message);
}
END_TEST

START_TEST(a_file_over_the_limit_is_refused_unread)
{
    char *text = malloc((size_t)PD_CONFIG_BYTES_MAX + 2);
    struct pd_node *root = NULL;
    struct pd_error error = {0};

    memset(text, '#', (size_t)PD_CONFIG_BYTES_MAX + 1);
    text[PD_CONFIG_BYTES_MAX] = '\0';
    root = parse(text);
    pd_node_destroy(root);
    text[PD_CONFIG_BYTES_MAX] = '#';
    text[PD_CONFIG_BYTES_MAX + 1] = '\0';
    ck_assert_int_eq(pd_node_parse(&root, &file, text, &error), PD_ECONFIG);
    ck_assert_str_eq(error.message, "f:1: longer than 1048576 bytes");
    free(text);
}
END_TEST

START_TEST(more_values_than_the_limit_are_refused)
{
    size_t bytes = 2 * (size_t)PD_CONFIG_NODE_COUNT_MAX;
    char *text = malloc(bytes + 1);
    struct pd_node *root = NULL;
    struct pd_error error = {0};

    for (size_t i = 0; i < bytes; i += 2) {
        text[i] = i == 0 ? '[' : ',';
        text[i + 1] = 'a';
    }
    text[bytes] = '\0';
    ck_assert_int_eq(pd_node_parse(&root, &file, text, &error), PD_ECONFIG);
    ck_assert_str_eq(error.message, "f:1: too many values; allowed: 8192");
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
    free(text);
}
END_TEST

static const struct {
    const char *text;
    const char *setting;
    const char *tree;
} settings[] = {
    {"", "a=1", "{a:1}"},
    {"a: 1\nb: 2", "a=3", "{a:3,b:2}"},
    {"", "a.b.c=1", "{a:{b:{c:1}}}"},
    {"a:", "a.b=1", "{a:{b:1}}"},
    {"a: {b: 1, c: 2}", "a.b=3", "{a:{b:3,c:2}}"},
    {"a: {b: 1, c: 2}", "a={d: 3}", "{a:{d:3}}"},
    {"a: [x, y]", "a.1=z", "{a:[x,z]}"},
    {"a: [x, y]", "a.2=z", "{a:[x,y,z]}"},
    {"a: [{b: 1}]", "a.0.b=2", "{a:[{b:2}]}"},
    {"a: {b: 1}", "a.0.b=2", "{a:{b:2}}"},
    {"", "a.0.b=2", "{a:[{b:2}]}"},
    {"", "a=[x, {y: z}]", "{a:[x,{y:z}]}"},
    {"a: [x]", "a=", "{a:}"},
    {"", "a=b=c", "{a:b=c}"},
    {"", "a='b: c'", "{a:b: c}"},
    {"", "a=/some/path.x", "{a:/some/path.x}"},
};

START_TEST(a_setting_goes_where_its_key_says)
{
    struct pd_node *root = parse(settings[_i].text);

    set(root, settings[_i].setting);
    check_tree(root, settings[_i].tree);
    pd_node_destroy(root);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

static const struct {
    const char *text;
    const char *setting;
    const char *message;
} bad_settings[] = {
    {"", "a", "--set a: not a setting; allowed: key=value"},
    {"", "=1", "--set =1: not a setting; allowed: key=value"},
    {"", "a.=1", "--set a.=1: an empty word in the key"},
    {"", ".a=1", "--set .a=1: an empty word in the key"},
    {"", "a..b=1", "--set a..b=1: an empty word in the key"},
    {"", "a.b.c.d.e.f.g=1", "--set a.b.c.d.e.f.g=1: a key of too many words; allowed: 6"},
    {"a: 1", "a.b=1", "--set a.b=1: a: a single value, with nothing inside it"},
    {"a: [x]", "a.b=1", "--set a.b=1: a: a list: name an item by its index, as in a.0"},
    {"a: [x]", "a.2=1", "--set a.2=1: a: no item 2; the list has 1"},
    {"a: {b: 1}", "a.1.b=1", "--set a.1.b=1: a: no item 1; the list has 1"},
    {"a: [x]", "a.99999999999999999999999=1",
     "--set a.99999999999999999999999=1: a: no item 99999999999999999999; the list has 1"},
    {"", "a=[1",
     "--set a=[1: not YAML: while parsing a flow sequence, did not find expected ',' or "
     "']'"},
    {"", "a=*.x",
     "--set a=*.x: not YAML: while scanning an alias, did not find expected alphabetic "
     "or numeric character; a text that begins with * needs quotes"},
    {"", "a={b: 1, b: 2}", "--set a={b: 1, b: 2}: b: given twice, first in line 1"},
};

START_TEST(a_wrong_setting_is_refused_by_its_text)
{
    struct pd_node *root = parse(bad_settings[_i].text);
    struct pd_config_source source = {.file = "f", .setting = bad_settings[_i].setting};
    struct pd_error error = {0};

    ck_assert_int_eq(pd_node_set(root, &source, &error), PD_ECONFIG);
    ck_assert_str_eq(error.message, bad_settings[_i].message);
    pd_node_destroy(root);
    ck_assert_uint_eq(pd_heap_blocks_live(), 0);
}
END_TEST

START_TEST(parse_and_set_survive_each_failed_allocation)
{
    struct pd_config_source source = {.file = "f", .setting = "b.2.c.d=[1, {e: 2}]"};
    struct pd_node *root = NULL;
    bool failed = true;

    for (long i = 0; failed; i++) {
        struct pd_error error = {0};
        pd_heap_fail_at(i);
        enum pd_status status = pd_node_parse(&root, &file, "a: x\nb: [1, {c: 2}]\n", &error);
        if (status == PD_OK) {
            status = pd_node_set(root, &source, &error);
            pd_node_destroy(root);
        }
        failed = status != PD_OK;
        pd_heap_fail_at(-1);
        ck_assert(!failed || status == PD_ENOMEM);
        ck_assert_uint_eq(pd_heap_blocks_live(), 0);
        ck_assert_int_lt(i, 200);
    }
}
END_TEST

#define COUNT(table) (int)(sizeof(table) / sizeof((table)[0]))

int main(void)
{
    Suite *suite = suite_create("config_tree");
    TCase *tcase = tcase_create("tree");

    tcase_add_test(tcase, mappings_lists_and_scalars_keep_order_and_line);
    tcase_add_loop_test(tcase, a_file_without_content_is_an_empty_mapping, 0, 5);
    tcase_add_test(tcase, only_an_unquoted_nothing_is_null);
    tcase_add_loop_test(tcase, what_a_configuration_does_not_need_is_refused_with_its_line, 0,
                        COUNT(refusals));
    tcase_add_loop_test(tcase, bytes_that_are_not_utf8_are_refused, 0, 6);
    tcase_add_test(tcase, a_file_over_the_limit_is_refused_unread);
    tcase_add_test(tcase, more_values_than_the_limit_are_refused);
    tcase_add_loop_test(tcase, a_setting_goes_where_its_key_says, 0, COUNT(settings));
    tcase_add_loop_test(tcase, a_wrong_setting_is_refused_by_its_text, 0, COUNT(bad_settings));
    tcase_add_test(tcase, parse_and_set_survive_each_failed_allocation);
    suite_add_tcase(suite, tcase);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
