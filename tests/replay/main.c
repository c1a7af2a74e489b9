/* paramd-replay: reference trajectories through a live daemon.
 * arguments -> cases, a process for each -> lines and a sum. */
#include "tests/replay/case.h"
#include "tests/support/cluster.h"
#include "tests/support/suite.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Far beyond what a case needs on a busy machine. */
#define CASE_LIMIT_S 240u

#define CASE_COUNT_MAX 4096u
#define NAME_BYTES_MAX 120u

static const char usage[] =
    "Usage: paramd-replay [OPTION]... DIR...\n"
    "\n"
    "Replay the reference cases (*.json) of the directories through a daemon on loopback, and say "
    "of\n"
    "each its largest error in units of its tolerance. The last line is \"N passed, N failed,\n"
    "N skipped\"; exit 1 if any failed or there was none.\n"
    "\n"
    "  --shards S           ranks of the daemon, under mpirun when there are several (1)\n"
    "  --workers W          workers of cases that do not say how many (1)\n"
    "  --aggregation WORD   allreduce or direct (allreduce)\n"
    "  --filter GLOB        only cases whose names match\n"
    "  --jobs N             cases at the same time (the number of processors)\n"
    "  --list-skipped       start nothing: print the cases that are skipped, and why\n";

/* One case and the process that replays it. */
struct item {
    const char *directory;
    char name[NAME_BYTES_MAX + 1];
    pid_t pid; /* 0: not started or ended */
    int pipe;  /* its result comes here */
    bool ended;
    struct replay_result result;
};

struct program {
    struct replay_options options;
    const char *filter;
    uint32_t job_count;
    size_t item_count;
    struct item items[CASE_COUNT_MAX];
    char daemon[PATH_MAX];
};

static _Noreturn void refuse(const char *what, const char *value)
{
    fprintf(stderr, "paramd-replay: %s: %s\n", value, what);
    exit(2);
}

/* ---- Arguments ---- */

static uint32_t parse_count(const char *text, uint32_t most)
{
    char *end;
    unsigned long count = strtoul(text, &end, 10);

    if (*end != '\0' || end == text || count < 1 || count > most) {
        refuse("not a count in range", text);
    }
    return (uint32_t)count;
}

static void find_daemon(struct program *program)
{
    ssize_t count = readlink("/proc/self/exe", program->daemon, sizeof program->daemon - 1);
    char *slash = count > 0 ? memrchr(program->daemon, '/', (size_t)count) : NULL;

    if (slash == NULL || (size_t)(slash - program->daemon) + sizeof "/paramd" > PATH_MAX) {
        refuse("where does this program lie?", "/proc/self/exe");
    }
    memcpy(slash, "/paramd", sizeof "/paramd");
    cluster_use_paramd(program->daemon);
}

static void parse_arguments(struct program *program, int argc, char **argv)
{
    static const struct option options[] = {
        {"shards", required_argument, NULL, 's'},
        {"workers", required_argument, NULL, 'w'},
        {"aggregation", required_argument, NULL, 'a'},
        {"filter", required_argument, NULL, 'f'},
        {"jobs", required_argument, NULL, 'j'},
        {"list-skipped", no_argument, NULL, 'l'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    long processors = sysconf(_SC_NPROCESSORS_ONLN);

    program->options =
        (struct replay_options){.shard_count = 1, .worker_count = 1, .aggregation = "allreduce"};
    program->job_count = processors > 0 ? (uint32_t)processors : 1;
    for (int option; (option = getopt_long(argc, argv, "j:", options, NULL)) != -1;) {
        switch (option) {
        case 's':
            program->options.shard_count = parse_count(optarg, PD_RANK_COUNT_MAX);
            break;
        case 'w':
            program->options.worker_count = parse_count(optarg, PD_WORKER_COUNT_MAX);
            break;
        case 'a':
            program->options.aggregation = optarg;
            if (strcmp(optarg, "allreduce") != 0 && strcmp(optarg, "direct") != 0) {
                refuse("no aggregation; allowed: allreduce, direct", optarg);
            }
            break;
        case 'f':
            program->filter = optarg;
            break;
        case 'j':
            program->job_count = parse_count(optarg, 1000);
            break;
        case 'l':
            program->options.list_skipped = true;
            break;
        case 'h':
            (void)fputs(usage, stdout);
            exit(EXIT_SUCCESS);
        default:
            (void)fputs(usage, stderr);
            exit(2);
        }
    }
    if (optind == argc) {
        (void)fputs(usage, stderr);
        exit(2);
    }
}

/* ---- Cases ---- */

static void add_case(struct program *program, const char *directory, const char *file)
{
    size_t name_bytes = strlen(file) - strlen(".json");
    char path[PATH_MAX];
    char name[NAME_BYTES_MAX + 1];

    if (name_bytes > NAME_BYTES_MAX || program->item_count == CASE_COUNT_MAX) {
        refuse("a name too long, or too many cases", file);
    }
    snprintf(name, sizeof name, "%.*s", (int)name_bytes, file);
    if (program->filter != NULL && fnmatch(program->filter, name, 0) != 0) {
        return;
    }
    snprintf(path, sizeof path, "%s/%s", directory, file);
    json_t *document = json_load_file(path, 0, NULL);
    if (document == NULL || replay_is_case(document)) {
        struct item *item = &program->items[program->item_count++];
        *item = (struct item){.directory = directory};
        memcpy(item->name, name, sizeof name);
    }
    json_decref(document);
}

static int has_ending(const struct dirent *entry)
{
    size_t count = strlen(entry->d_name);
    return count > 5 && strcmp(entry->d_name + count - 5, ".json") == 0;
}

static void find_cases(struct program *program, const char *directory)
{
    struct dirent **entries = NULL;
    int count = scandir(directory, &entries, has_ending, alphasort);

    if (count < 0) {
        refuse(strerror(errno), directory);
    }
    for (int i = 0; i < count; i++) {
        add_case(program, directory, entries[i]->d_name);
        free(entries[i]);
    }
    free((void *)entries);
}

/* ---- A process for each case ---- */

/* Of the process of one case: what the test below replays. */
static struct {
    const struct replay_options *options;
    struct item *item;
} current;

START_TEST(the_trajectory_is_that_of_the_reference)
{
    replay_case(current.options, current.item->directory, current.item->name,
                &current.item->result);
}
END_TEST

/* A case is a test of Check's, so that the harness of the tests serves here as well. */
static void run_test(struct item *item)
{
    Suite *suite = suite_create("replay");
    TCase *test_case = tcase_create("case");

    /* What daemons print when they fail may be long. */
    (void)setenv("CK_MAX_MSG_SIZE", "1000000", 1);
    tcase_add_test(test_case, the_trajectory_is_that_of_the_reference);
    suite_add_tcase(suite, test_case);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_SILENT);
    if (srunner_ntests_failed(runner) > 0) {
        TestResult **failures = srunner_failures(runner);
        replay_say(&item->result, REPLAY_FAILED, "%s", tr_msg(failures[0]));
        free((void *)failures);
    }
    srunner_free(runner);
}

/* In a directory of its own: of two mpiruns that share one, the first to end takes away what the
 * other has just begun to use. */
static void replay_item(struct item *item)
{
    if (!suite_directory_create()) {
        replay_say(&item->result, REPLAY_FAILED, "no directory for its files");
        return;
    }
    run_test(item);
    suite_directory_remove();
}

static void start(struct program *program, struct item *item)
{
    int ends[2];

    if (pipe(ends) != 0 || (item->pid = fork()) < 0) {
        refuse(strerror(errno), item->name);
    }
    if (item->pid == 0) {
        close(ends[0]);
        alarm(CASE_LIMIT_S);
        current.options = &program->options;
        current.item = item;
        replay_item(item);
        ssize_t written = write(ends[1], &item->result, sizeof item->result);
        _exit(written == (ssize_t)sizeof item->result ? EXIT_SUCCESS : EXIT_FAILURE);
    }
    close(ends[1]);
    item->pipe = ends[0];
}

/* Wait for one of the running processes, and take its result. */
static void take_one(struct program *program)
{
    int status = 0;
    pid_t pid = waitpid(-1, &status, 0);

    for (size_t i = 0; i < program->item_count; i++) {
        struct item *item = &program->items[i];
        if (item->pid != pid || item->ended) {
            continue;
        }
        if (read(item->pipe, &item->result, sizeof item->result) != sizeof item->result) {
            item->result.worst_error = NAN;
            replay_say(&item->result, REPLAY_FAILED, "ended by itself with %s %d",
                       WIFSIGNALED(status) ? "signal" : "exit code",
                       WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        }
        close(item->pipe);
        item->ended = true;
    }
}

/* ---- Output ---- */

static const char *const verdicts[] = {
    [REPLAY_PASSED] = "passed", [REPLAY_FAILED] = "failed", [REPLAY_SKIPPED] = "skipped"};

static void print_result(const struct program *program, const struct item *item)
{
    const struct replay_result *result = &item->result;
    bool skipped = result->verdict == REPLAY_SKIPPED;
    char error[32] = "";

    if (program->options.list_skipped && result->verdict == REPLAY_PASSED) {
        return;
    }
    if (!isnan(result->worst_error) && !skipped) {
        snprintf(error, sizeof error, "%.3g", result->worst_error);
    }
    printf("%-8s %-38s %8s%s%s\n", verdicts[result->verdict], item->name, error,
           result->text[0] != '\0' ? "  " : "", result->text);
    (void)fflush(stdout);
}

/* Replay all cases, a few at a time; lines come in the order of the cases. */
static void replay_all(struct program *program, size_t counts[3])
{
    size_t started = 0;
    size_t running = 0;
    size_t printed = 0;

    while (printed < program->item_count) {
        for (; running < program->job_count && started < program->item_count; running++) {
            start(program, &program->items[started++]);
        }
        take_one(program);
        running--;
        for (; printed < program->item_count && program->items[printed].ended; printed++) {
            print_result(program, &program->items[printed]);
            counts[program->items[printed].result.verdict]++;
        }
    }
}

int main(int argc, char **argv)
{
    static struct program program;
    size_t counts[3] = {0};

    parse_arguments(&program, argc, argv);
    find_daemon(&program);
    for (int i = optind; i < argc; i++) {
        find_cases(&program, argv[i]);
    }
    replay_all(&program, counts);
    if (!program.options.list_skipped) {
        printf("%zu passed, %zu failed, %zu skipped\n", counts[REPLAY_PASSED],
               counts[REPLAY_FAILED], counts[REPLAY_SKIPPED]);
    }
    return counts[REPLAY_FAILED] == 0 && program.item_count > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
