/* Feeds each file of the directories given to a fuzz target once, so that the corpus is tested by
 * every compiler, without libFuzzer. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define INPUT_BYTES_MAX ((size_t)1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t byte_count);

static int replay_file(const char *path)
{
    static uint8_t input[INPUT_BYTES_MAX];
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        (void)fprintf(stderr, "%s: cannot be opened\n", path);
        return -1;
    }
    size_t byte_count = fread(input, 1, sizeof input, file);
    (void)fclose(file);

    /* A block of just that length, so that a sanitizer sees a read past its end. */
    uint8_t *exact = malloc(byte_count > 0 ? byte_count : 1);
    if (exact == NULL) {
        return -1;
    }
    for (size_t i = 0; i < byte_count; i++) {
        exact[i] = input[i];
    }
    (void)LLVMFuzzerTestOneInput(exact, byte_count);
    free(exact);
    return 0;
}

/* The number of files replayed, or -1. */
static int replay_directory(const char *directory_path)
{
    int replayed = 0;
    DIR *directory = opendir(directory_path);
    if (directory == NULL) {
        (void)fprintf(stderr, "%s: cannot be opened\n", directory_path);
        return -1;
    }
    for (struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory)) {
        char path[4096];
        struct stat info;
        (void)snprintf(path, sizeof path, "%s/%s", directory_path, entry->d_name);
        if (stat(path, &info) != 0 || !S_ISREG(info.st_mode)) {
            continue;
        }
        if (replay_file(path) != 0) {
            replayed = -1;
            break;
        }
        replayed++;
    }
    (void)closedir(directory);
    return replayed;
}

int main(int argument_count, char **arguments)
{
    int total = 0;
    for (int i = 1; i < argument_count; i++) {
        int replayed = replay_directory(arguments[i]);
        if (replayed <= 0) {
            return EXIT_FAILURE; /* An empty corpus tests nothing. */
        }
        total += replayed;
    }
    (void)printf("%d inputs replayed\n", total);
    return total > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
