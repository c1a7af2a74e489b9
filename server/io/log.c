#include "server/io/log.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES_MAX = 2048 };

/* Process-wide, set once at start-up. */
static char rank_text[24];

void pd_log_set_rank(uint32_t rank)
{
    (void)snprintf(rank_text, sizeof rank_text, " rank %u:", (unsigned)rank);
}

static size_t write_time(char *line, size_t line_bytes)
{
    struct timespec now;
    struct tm parts;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    (void)gmtime_r(&now.tv_sec, &parts);
    size_t used = strftime(line, line_bytes, "%Y-%m-%dT%H:%M:%S", &parts);
    return used +
           (size_t)snprintf(line + used, line_bytes - used, ".%03dZ", (int)(now.tv_nsec / 1000000));
}

void pd_log(const char *format, ...)
{
    char line[LINE_BYTES_MAX];
    size_t used = write_time(line, sizeof line);
    used += (size_t)snprintf(line + used, sizeof line - used, "%s ", rank_text);

    va_list arguments;
    va_start(arguments, format);
    int text_bytes = vsnprintf(line + used, sizeof line - used - 1, format, arguments);
    va_end(arguments);
    if (text_bytes > 0) {
        size_t room = sizeof line - used - 2;
        used += (size_t)text_bytes < room ? (size_t)text_bytes : room;
    }
    line[used++] = '\n';
    /* A log that cannot be written has nobody to be told. */
    ssize_t ignored = write(STDERR_FILENO, line, used);
    (void)ignored;
}
