/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/io/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* The one exception to "no globals": a process has one standard error. Set once, before threads start. */
static enum log_level log_max = LOG_NOTICE;
static char log_name[64];
static bool log_for_journal;

/* systemd names the device and inode of the stream that it reads: a child may have redirected its own elsewhere. */
static bool journal_reads_stderr(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long dev, ino;
    struct stat st;

    return stream && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 && fstat(STDERR_FILENO, &st) == 0 &&
           st.st_dev == dev && st.st_ino == ino;
}

/* Text that came from elsewhere must not begin a line of its own. */
static void keep_one_line(char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)text[i] < ' ' || text[i] == 0x7f)
            text[i] = ' ';
}

void log_setup(enum log_level max, const char *name)
{
    log_max = max;
    log_for_journal = journal_reads_stderr();
    snprintf(log_name, sizeof(log_name), "%s", name);
}

void log_line(enum log_level level, const char *fmt, ...)
{
    char line[1024];
    int at;
    va_list ap;

    if (level > log_max)
        return;
    at = log_for_journal ? snprintf(line, sizeof(line), "<%d>", level)
                         : snprintf(line, sizeof(line), "cairnd %s: ", log_name);
    va_start(ap, fmt);
    int len = vsnprintf(line + at, sizeof(line) - (size_t)at, fmt, ap);
    va_end(ap);
    at += len > 0 ? len : 0;
    if ((size_t)at > sizeof(line) - 2)
        at = sizeof(line) - 2;
    keep_one_line(line, (size_t)at);
    line[at] = '\n';
    /* One write a line: lines of several threads do not mix. A log that cannot be written has nobody to tell. */
    if (write(STDERR_FILENO, line, (size_t)at + 1) < 0)
        return;
}
