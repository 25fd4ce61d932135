/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/tool.h"
#include "client/tool/watch.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/name.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

enum {
    LIKE = 256,
    PATTERN,
    MARKER,
    RENAME,
    SETTLE,
    RANK,
    WORLD,
    START,
    ARENA,
    KEEP,
    ONCE,
    SOCKET,
    JSON,
    TIMEOUT,
    HELP,
    VERSION
};

static const struct option options[] = {{"like", 1, NULL, LIKE},     {"pattern", 1, NULL, PATTERN},
                                        {"marker", 1, NULL, MARKER}, {"rename", 0, NULL, RENAME},
                                        {"settle", 1, NULL, SETTLE}, {"rank", 1, NULL, RANK},
                                        {"world", 1, NULL, WORLD},   {"start", 1, NULL, START},
                                        {"arena", 1, NULL, ARENA},   {"keep", 1, NULL, KEEP},
                                        {"once", 0, NULL, ONCE},     {"socket", 1, NULL, SOCKET},
                                        {"json", 0, NULL, JSON},     {"timeout", 1, NULL, TIMEOUT},
                                        {"help", 0, NULL, HELP},     {"version", 0, NULL, VERSION},
                                        {NULL, 0, NULL, 0}};

void watch_print_options(FILE *f)
{
    fputs("      --like FRAMEWORK   hf, deepspeed, megatron, orbax or dcp: sets the four below\n"
          "      --pattern GLOB     names of the steps' directories; the last * is the step's digits\n"
          "      --marker NAME      a file in it that is written last\n"
          "      --rename           it has its name when it is complete\n"
          "      --settle SECONDS   nothing changes for so long (behind the marker, or alone)\n"
          "      --rank N           of this node's directory, when every node has its own (0)\n"
          "      --world N          how many watchers make one checkpoint (1)\n"
          "      --start ID         names this start; the same on all ranks, needed with --world\n"
          "      --arena SIZE       memory, as 20G; auto: what the checkpoints need, twice\n"
          "      --keep N           directories that stay when they are committed (0: all)\n"
          "      --once             take up what is complete, and end\n",
          f);
}

/* The first word that is no option; main's options with a word are skipped with it. */
bool watch_is_asked(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "watch") == 0)
            return true;
        if (argv[i][0] != '-')
            return false;
        if (strcmp(argv[i], "--socket") == 0 || strcmp(argv[i], "--timeout") == 0)
            i++;
    }
    return false;
}

static int read_arena(const char *text, uint64_t *ret)
{
    if (strcmp(text, "auto") != 0)
        return tool_read_size("--arena", text, ret);
    *ret = 0;
    return 0;
}

struct given { /* what the command line says about completeness */
    const char *like, *pattern, *marker;
    bool rename, settle;
    uint64_t settle_s;
};

static int take_option(struct watch_options *o, struct given *g, int c)
{
    uint64_t v = 0;
    int r = 0;

    switch (c) {
    case LIKE:
        g->like = optarg;
        break;
    case PATTERN:
        g->pattern = optarg;
        break;
    case MARKER:
        g->marker = optarg;
        break;
    case RENAME:
        g->rename = true;
        break;
    case SETTLE:
        g->settle = true;
        return tool_read_number("--settle", optarg, 86400, &g->settle_s);
    case RANK:
        r = tool_read_number("--rank", optarg, 1 << 20, &v);
        o->rank = (uint32_t)v;
        break;
    case WORLD:
        r = tool_read_number("--world", optarg, 1 << 20, &v);
        o->world = (uint32_t)v;
        break;
    case START:
        o->start = optarg;
        break;
    case ARENA:
        return read_arena(optarg, &o->arena_bytes);
    case KEEP:
        return tool_read_number("--keep", optarg, 1000000000, &o->keep);
    case ONCE:
        o->once = true;
        break;
    case SOCKET:
        o->tool.socket = optarg;
        break;
    case JSON:
        o->tool.json = true;
        break;
    case TIMEOUT:
        r = tool_read_number("--timeout", optarg, 86400, &v);
        o->tool.timeout_ms = (uint32_t)v * 1000;
        break;
    default:
        return -1; /* getopt has said it */
    }
    return r;
}

static int say(const char *what)
{
    fprintf(stderr, "cairn: watch: %s\n", what);
    return -1;
}

static int make_rule(struct watch_rule *rule, const struct given *g)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    const struct watch_rule *preset = g->like ? watch_preset(g->like) : NULL;

    if (g->like && !preset) {
        fprintf(stderr, "cairn: --like %s: %s is wanted\n", g->like, watch_presets());
        return -1;
    }
    if (g->rename && g->marker)
        return say("--marker and --rename are two ways to say when a directory is complete: one of them is wanted");
    if (!preset && (!g->pattern || (!g->marker && !g->rename && !g->settle_s)))
        return say("--like is wanted, or --pattern with one of --marker, --rename and --settle");
    *rule = preset ? *preset : (struct watch_rule){.marker = WATCH_SETTLE};
    if (g->pattern)
        rule->pattern = g->pattern;
    if (g->rename || g->marker) {
        rule->marker = g->rename ? WATCH_RENAME : WATCH_FILE;
        rule->file = g->marker;
        rule->step_in = NULL;
    }
    if (g->settle)
        rule->settle_ms = (int64_t)g->settle_s * 1000;
    if (watch_pattern_check(rule->pattern, &err) < 0)
        return say(err.message);
    if (g->marker && (strchr(g->marker, '/') || !*g->marker))
        return say("--marker is the name of a file in the step's directory");
    return 0;
}

static int check(const struct watch_options *o)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (cairn_name_check("job", o->job, &err) < 0)
        return say(err.message);
    if (o->start && cairn_name_check("start id", o->start, &err) < 0)
        return say(err.message);
    if (o->world == 0 || o->rank >= o->world)
        return say("--rank is to be less than --world");
    if (o->world > 1 && !o->start)
        return say("--start is wanted with --world: a name of this start that is the same on all ranks");
    return 0;
}

int watch_options_read(struct watch_options *o, int argc, char **argv)
{
    struct given g = {0};
    int c;

    *o = (struct watch_options){.world = 1, .tool.rank = -1};
    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (c == 'h' || c == HELP || c == VERSION)
            return c == VERSION ? 2 : 1;
        if (take_option(o, &g, c) < 0)
            return -1;
    }
    if (argc - optind != 3)
        return say("a job and a directory are wanted");
    o->job = argv[optind + 1];
    o->directory = argv[optind + 2];
    return make_rule(&o->rule, &g) < 0 ? -1 : check(o);
}
