#include "tests/support/proc.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Whether the environment of a process has `setting`, "KEY=value". */
static bool has_setting(pid_t pid, const char *setting)
{
    char path[64];
    char bytes[65536];
    bool found = false;

    snprintf(path, sizeof path, "/proc/%d/environ", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t count = fd >= 0 ? read(fd, bytes, sizeof bytes - 1) : 0;
    if (fd >= 0) {
        close(fd);
    }
    bytes[count > 0 ? count : 0] = '\0';
    for (const char *at = bytes; at < bytes + count && !found; at += strlen(at) + 1) {
        found = strcmp(at, setting) == 0;
    }
    return found;
}

static pid_t parent_of(pid_t pid)
{
    char path[64];
    char text[1024];
    int parent = 0;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    size_t count = file != NULL ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file != NULL) {
        (void)fclose(file);
    }
    text[count] = '\0';
    const char *rest = strrchr(text, ')');
    if (rest == NULL || sscanf(rest, ") %*c %d", &parent) != 1) {
        return 0;
    }
    return parent;
}

pid_t proc_rank_pid(pid_t launcher, uint32_t rank)
{
    pid_t found = 0;
    char setting[64];

    snprintf(setting, sizeof setting, "OMPI_COMM_WORLD_RANK=%" PRIu32, rank);
    DIR *processes = opendir("/proc");
    if (processes == NULL) {
        return 0;
    }
    for (const struct dirent *entry = readdir(processes); entry != NULL && found == 0;
         entry = readdir(processes)) {
        pid_t pid = (pid_t)atoi(entry->d_name);
        if (pid > 0 && parent_of(pid) == launcher && has_setting(pid, setting)) {
            found = pid;
        }
    }
    (void)closedir(processes);
    return found;
}

uint64_t proc_peak_bytes(pid_t pid)
{
    char path[64];
    char line[256];
    uint64_t kilobytes = 0;

    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return 0;
    }
    while (kilobytes == 0 && fgets(line, sizeof line, file) != NULL) {
        (void)sscanf(line, "VmHWM: %" SCNu64, &kilobytes);
    }
    (void)fclose(file);
    return kilobytes * 1024;
}
