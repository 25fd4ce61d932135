/* SPDX-License-Identifier: Apache-2.0 */
/* The tool `cairn`: what its commands share. */
#ifndef CAIRN_CLIENT_TOOL_TOOL_H
#define CAIRN_CLIENT_TOOL_TOOL_H

#include <cairn/cairn.h>
#include <jansson.h>
#include <stdbool.h>

/* For scripts; cairn(1) documents them. */
enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_NOT_FOUND = 3, EXIT_UNAVAILABLE = 4, EXIT_CORRUPT = 5 };

struct tool {
    const char *socket; /* NULL: libcairn's default */
    bool json;
    uint32_t timeout_ms; /* 0: the command's own */
    /* of the command */
    int argc;
    char **argv;
    const char *to;           /* --to */
    const char *format;       /* --format; NULL: the command's own */
    const char *only, *strip; /* --only, --strip: fronts of tensors' names; NULL: none */
    const char *step;         /* --step: digits; NULL: the command's own */
    bool merge, force, documents, unchecked;
    uint64_t shard_bytes; /* --shard-size; 0: one file */
    uint64_t arena_bytes; /* --arena; 0: the command's own */
    int64_t rank;         /* --rank; -1: all */
};

struct command {
    const char *name;
    const char *arguments;
    int (*run)(struct tool *t);
    const char *help;
};

#define TOOL_SHORT_MS 60000  /* for a question */
#define TOOL_LONG_MS 3600000 /* for what reads a whole checkpoint */
uint32_t tool_timeout(const struct tool *t, uint32_t preset_ms);

/* Reads the command line. 0 go on, 1 print help, 2 print the version, -1 usage error. */
int tool_options(struct tool *t, int argc, char **argv);

/* Prints "cairn: what: message", and with --json the error as an object; gives the exit code of the error. */
int tool_fail(const struct tool *t, const char *what, const struct cairn_error *err);
/* The same of tool_open: a job's name that is none is the command's error. */
int tool_fail_open(const struct tool *t, const struct cairn_error *err);
/* An observer's session for a job; NULL job for none. */
int tool_open(const struct tool *t, const char *job, struct cairn_session **ret, struct cairn_error *err);
/* Asks, and prints the answer when --json was given. Returns an exit code; ret_answer is NULL when there is nothing
 * left to print. */
int tool_query(const struct tool *t, int kind, const char *job, uint64_t step, json_t **ret_answer);
/* The same for a command that changes something; long. */
int tool_command(const struct tool *t, int kind, const char *job, uint64_t step, const char *argument,
                 json_t **ret_answer);
/* What an option was given: a number, a size ("500M", "5GiB"; "5GB" counts in 1000). A complaint is printed. */
int tool_read_number(const char *name, const char *text, uint64_t max, uint64_t *ret);
int tool_read_size(const char *name, const char *text, uint64_t *ret);
/* A step, "latest" or "latest-finite". */
int tool_parse_step(const char *text, uint64_t *ret_step);
/* "12.3 MiB" */
const char *tool_size(json_int_t bytes, char buf[32]);
/* A string; "" when it is missing. Its control characters became '?': what others named must not steer the terminal. */
const char *tool_text(json_t *o, const char *key);
json_int_t tool_number(const json_t *o, const char *key);

int cmd_status(struct tool *t);
int cmd_ls(struct tool *t);
int cmd_show(struct tool *t);
int cmd_verify(struct tool *t);
int cmd_restore(struct tool *t);
int cmd_watch(struct tool *t);
int cmd_import(struct tool *t);
int cmd_repair(struct tool *t);
int cmd_scrub(struct tool *t);
int cmd_rebuild(struct tool *t);
int cmd_pin(struct tool *t);
int cmd_unpin(struct tool *t);
int cmd_delete(struct tool *t);
int cmd_retain(struct tool *t);

#endif
