/* SPDX-License-Identifier: Apache-2.0 */
/* cairn watch: a directory that a framework writes checkpoints into, taken up as it writes them. It has options of its
 * own, so it reads its own command line. */
#ifndef CAIRN_CLIENT_TOOL_WATCH_H
#define CAIRN_CLIENT_TOOL_WATCH_H

#include "client/tool/tool.h"
#include "client/tool/watch_rules.h"

#include <stdio.h>

struct watch_options {
    struct tool tool; /* socket, json, timeout_ms */
    const char *job, *directory;
    const char *start; /* NULL: made up, for a world of 1 */
    struct watch_rule rule;
    uint32_t rank, world;
    uint64_t arena_bytes; /* 0: auto */
    uint64_t keep;        /* 0: all stay */
    bool once;
};

/* Whether the command line is of this command. */
bool watch_is_asked(int argc, char **argv);
/* Its whole command line. 0 go on, 1 print help, 2 print the version, -1 usage error. */
int watch_options_read(struct watch_options *o, int argc, char **argv);
/* For --help. */
void watch_print_options(FILE *f);
/* Runs until a signal, or with --once until nothing is left to do. An exit code. */
int watch_run(const struct watch_options *o);

#endif
