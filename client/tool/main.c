/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/tool.h"
#include "client/tool/watch.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct command commands[] = {
    {"status", "", cmd_status, "the daemon, its peers, sessions and jobs"},
    {"ls", "[JOB]", cmd_ls, "the jobs, or the checkpoints of one"},
    {"show", "JOB STEP", cmd_show, "one checkpoint: shards, tensors, where fragments lie"},
    {"verify", "JOB [STEP]", cmd_verify, "reads and checks every fragment where it lies"},
    {"restore", "JOB [STEP|latest|latest-finite] --to DIR", cmd_restore,
     "writes a checkpoint as files of a format that others read"},
    {"watch", "JOB DIR", cmd_watch, "takes up the checkpoints that a framework writes into a directory"},
    {"import", "PATH JOB", cmd_import, "takes files of another format into a job, as a checkpoint"},
    {"repair", "JOB [STEP]", cmd_repair, "makes again what peers have lost of a job's checkpoints"},
    {"scrub", "[JOB]", cmd_scrub, "lets every peer read and check what it stores"},
    {"rebuild", "[JOB]", cmd_rebuild, "writes the catalog again from what the peers store"},
    {"pin", "JOB STEP [LABEL]", cmd_pin, "holds a checkpoint: it is not deleted"},
    {"unpin", "JOB STEP [LABEL]", cmd_unpin, "gives that hold up"},
    {"delete", "JOB STEP", cmd_delete, "deletes a checkpoint; never the newest"},
    {"retain", "JOB RULE", cmd_retain, "what the job keeps, as \"last=3 every=1000 for=24h\""},
};
#define NCOMMANDS (sizeof commands / sizeof commands[0])

static void print_options(FILE *f)
{
    fputs("options:\n"
          "      --socket PATH      the daemon's socket ($CAIRN_SOCKET, /run/cairn/cairnd.sock)\n"
          "      --json             print JSON, for scripts\n"
          "      --timeout SECONDS  give up after so long (60; what reads checkpoints 3600)\n"
          "      --help             print this\n"
          "      --version          print the version\n",
          f);
}

static void print_usage(FILE *f)
{
    fputs("usage: cairn COMMAND [ARGUMENT...] [OPTION...]\n\n", f);
    for (size_t i = 0; i < NCOMMANDS; i++)
        fprintf(f, "  %-8s %-28s %s\n", commands[i].name, commands[i].arguments, commands[i].help);
    fputs("\n", f);
    print_options(f);
    fputs("exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 unavailable or late, 5 corrupt or not verified\n", f);
}

static void print_command_usage(FILE *f, const struct command *c)
{
    fprintf(f, "usage: cairn %s %s\n%s\n\n", c->name, c->arguments, c->help);
    if (c->run == cmd_restore)
        fputs("      --to DIR           where the files go; made when it is missing\n"
              "      --format FORMAT    safetensors (the default), torch, dcp, or files: what \"cairn watch\" took up\n"
              "      --merge            one file of whole tensors instead of one for each rank\n"
              "      --shard-size SIZE  with --merge: several files of so much and an index, as Hugging Face has them\n"
              "      --only PREFIX      only tensors whose names begin with it\n"
              "      --strip PREFIX     take it from the front of names\n"
              "      --documents        with --merge: also what is no tensor (.cairn/...), as bytes\n"
              "      --rank N           only this rank's file\n"
              "      --force            overwrite files that are there\n",
              f);
    if (c->run == cmd_import)
        fputs("      --format FORMAT    auto (the default), dcp, torch or safetensors\n"
              "      --step N           the step that it becomes (what the files say, or 0)\n"
              "      --arena SIZE       how much is on its way at once (256M)\n"
              "      --unchecked        do not compare the checksums in torch.save files\n",
              f);
    if (c->run == cmd_watch)
        watch_print_options(f);
    print_options(f);
}

static int exit_code_of(int code)
{
    switch (code) {
    case CAIRN_E_NOT_FOUND:
        return EXIT_NOT_FOUND;
    case CAIRN_E_UNAVAILABLE:
    case CAIRN_E_TIMEOUT:
    case CAIRN_E_BUSY:
        return EXIT_UNAVAILABLE;
    case CAIRN_E_CORRUPT:
        return EXIT_CORRUPT;
    default:
        return EXIT_FAILED;
    }
}

int tool_fail(const struct tool *t, const char *what, const struct cairn_error *err)
{
    fprintf(stderr, "cairn: %s: %s\n", what, err->message);
    if (t->json) {
        json_t *o = json_pack("{s:i, s:{s:s, s:s}}", "v", 1, "error", "code", cairn_code_name(err->code), "message",
                              err->message);
        if (o && json_dumpf(o, stdout, JSON_COMPACT) == 0)
            puts("");
        json_decref(o);
    }
    return exit_code_of(err->code);
}

int tool_fail_open(const struct tool *t, const struct cairn_error *err)
{
    return tool_fail(t, err->code == CAIRN_E_INVAL ? t->argv[0] : "connect", err);
}

int tool_open(const struct tool *t, const char *job, struct cairn_session **ret, struct cairn_error *err)
{
    struct cairn_session_options so = {.size = sizeof so,
                                       .job = job,
                                       .socket_path = t->socket,
                                       .timeout_ms = tool_timeout(t, TOOL_SHORT_MS),
                                       .flags = CAIRN_OBSERVER};

    return cairn_session_open(&so, ret, err);
}

static int take_answer(const struct tool *t, char *text, json_t **ret_answer)
{
    json_error_t why;

    *ret_answer = json_loads(text, JSON_REJECT_DUPLICATES, &why);
    if (t->json)
        puts(text);
    free(text);
    if (*ret_answer)
        return EXIT_OK;
    fprintf(stderr, "cairn: the daemon's answer is no JSON: %s\n", why.text);
    return EXIT_FAILED;
}

int tool_query(const struct tool *t, int kind, const char *job, uint64_t step, json_t **ret_answer)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_session *session;
    char *text = NULL;

    *ret_answer = NULL;
    if (tool_open(t, job, &session, &err) < 0)
        return tool_fail_open(t, &err);
    uint32_t preset_ms = kind == CAIRN_QUERY_VERIFY ? TOOL_LONG_MS : TOOL_SHORT_MS;
    int r = cairn_query(session, kind, job, step, tool_timeout(t, preset_ms), &text, &err);
    cairn_session_close(session);
    if (r < 0)
        return tool_fail(t, t->argv[0], &err);
    return take_answer(t, text, ret_answer);
}

int tool_command(const struct tool *t, int kind, const char *job, uint64_t step, const char *argument,
                 json_t **ret_answer)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_session *session;
    char *text = NULL;

    *ret_answer = NULL;
    if (tool_open(t, job, &session, &err) < 0)
        return tool_fail_open(t, &err);
    int r = cairn_command(session, kind, job, step, argument, tool_timeout(t, TOOL_LONG_MS), &text, &err);
    cairn_session_close(session);
    if (r < 0)
        return tool_fail(t, t->argv[0], &err);
    return take_answer(t, text, ret_answer);
}

int tool_parse_step(const char *text, uint64_t *ret_step)
{
    char *end;

    if (strcmp(text, "latest") == 0) {
        *ret_step = CAIRN_LATEST;
        return 0;
    }
    if (strcmp(text, "latest-finite") == 0) {
        *ret_step = CAIRN_LATEST_FINITE;
        return 0;
    }
    errno = 0;
    *ret_step = strtoull(text, &end, 10);
    if (text[0] >= '0' && text[0] <= '9' && !*end && !errno)
        return 0;
    fprintf(stderr, "cairn: \"%s\" is no step: a number, \"latest\" or \"latest-finite\" is wanted\n", text);
    return -1;
}

const char *tool_size(json_int_t bytes, char buf[32])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = (double)bytes;
    unsigned u = 0;

    for (; v >= 1024 && u < 5; u++)
        v /= 1024;
    snprintf(buf, 32, u ? "%.1f %s" : "%.0f %s", v, units[u]);
    return buf;
}

uint32_t tool_timeout(const struct tool *t, uint32_t preset_ms)
{
    return t->timeout_ms ? t->timeout_ms : preset_ms;
}

const char *tool_text(json_t *o, const char *key)
{
    json_t *value = json_object_get(o, key);
    const char *s = json_string_value(value);
    _cleanup_free_ char *clean = s ? strdup(s) : NULL;

    for (char *c = clean; c && *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    if (!clean || json_string_set(value, clean) < 0)
        return "";
    return json_string_value(value);
}

json_int_t tool_number(const json_t *o, const char *key)
{
    return json_integer_value(json_object_get(o, key));
}

static const struct command *find_command(const char *name)
{
    for (size_t i = 0; i < NCOMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

/* Words that are no command line of this command: main has read options of others in front of it. */
int cmd_watch(struct tool *t)
{
    (void)t;
    return EXIT_USAGE;
}

static int run_watch(int argc, char **argv)
{
    struct watch_options o;
    int r = watch_options_read(&o, argc, argv);

    if (r == 0)
        return watch_run(&o);
    if (r == 2)
        printf("cairn %s\n", CAIRN_VERSION);
    else
        print_command_usage(r == 1 ? stdout : stderr, find_command("watch"));
    return r < 0 ? EXIT_USAGE : EXIT_OK;
}

int main(int argc, char **argv)
{
    if (watch_is_asked(argc, argv))
        return run_watch(argc, argv);
    struct tool t = {.rank = -1};
    int help = tool_options(&t, argc, argv); /* getopt moves options to the front */
    const struct command *c = t.argc > 0 && help >= 0 ? find_command(t.argv[0]) : NULL;

    if (help == 2) {
        printf("cairn %s\n", CAIRN_VERSION);
        return EXIT_OK;
    }
    if (help == 1) {
        if (c)
            print_command_usage(stdout, c);
        else
            print_usage(stdout);
        return EXIT_OK;
    }
    if (!c) {
        if (t.argc > 0 && help == 0)
            fprintf(stderr, "cairn: there is no command \"%s\"\n", t.argv[0]);
        print_usage(stderr);
        return EXIT_USAGE;
    }
    int r = c->run(&t);
    if (r == EXIT_USAGE)
        print_command_usage(stderr, c);
    return r;
}
