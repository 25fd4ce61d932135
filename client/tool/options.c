/* SPDX-License-Identifier: Apache-2.0 */
/* The command line: one table of what takes a word, and where the word goes. */
#include "client/tool/tool.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { OPTION_RANK = 256, OPTION_TIMEOUT, OPTION_STEP, OPTION_SHARD, OPTION_ARENA, OPTION_HELP, OPTION_VERSION };

static const struct option options[] = {{"socket", 1, NULL, 's'},
                                        {"to", 1, NULL, 'o'},
                                        {"format", 1, NULL, 'F'},
                                        {"only", 1, NULL, 'O'},
                                        {"strip", 1, NULL, 'S'},
                                        {"json", 0, NULL, 'j'},
                                        {"merge", 0, NULL, 'm'},
                                        {"force", 0, NULL, 'f'},
                                        {"documents", 0, NULL, 'd'},
                                        {"unchecked", 0, NULL, 'u'},
                                        {"rank", 1, NULL, OPTION_RANK},
                                        {"timeout", 1, NULL, OPTION_TIMEOUT},
                                        {"step", 1, NULL, OPTION_STEP},
                                        {"shard-size", 1, NULL, OPTION_SHARD},
                                        {"arena", 1, NULL, OPTION_ARENA},
                                        {"help", 0, NULL, OPTION_HELP},
                                        {"version", 0, NULL, OPTION_VERSION},
                                        {NULL, 0, NULL, 0}};

int tool_read_number(const char *name, const char *text, uint64_t max, uint64_t *ret)
{
    char *end;

    errno = 0;
    uint64_t v = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || v > max) {
        fprintf(stderr, "cairn: %s %s: a number from 0 to %llu is wanted\n", name, text, (unsigned long long)max);
        return -1;
    }
    *ret = v;
    return 0;
}

/* 0 for what is no unit. "G" and "GiB" count in 1024, "GB" as disks are sold and Hugging Face writes it. */
static uint64_t unit(const char *suffix)
{
    static const char letters[] = "KMGT";
    const char *letter = *suffix ? strchr(letters, *suffix & ~0x20) : NULL;
    uint64_t binary = 1, decimal = 1;

    if (!*suffix || strcasecmp(suffix, "B") == 0)
        return 1;
    for (const char *l = letters; letter && l <= letter; l++) {
        binary *= 1024;
        decimal *= 1000;
    }
    if (!letter)
        return 0;
    if (!suffix[1] || strcasecmp(suffix + 1, "iB") == 0)
        return binary;
    return strcasecmp(suffix + 1, "B") == 0 ? decimal : 0;
}

int tool_read_size(const char *name, const char *text, uint64_t *ret)
{
    char *end;

    errno = 0;
    uint64_t v = strtoull(text, &end, 10), times = unit(end);
    if (text[0] < '0' || text[0] > '9' || errno || v == 0 || times == 0 || v > INT64_MAX / times) {
        fprintf(stderr, "cairn: %s %s: a size is wanted, as 500M, 5G or 5GB\n", name, text);
        return -1;
    }
    *ret = v * times;
    return 0;
}

static void set_word(struct tool *t, int option)
{
    switch (option) {
    case 's':
        t->socket = optarg;
        break;
    case 'o':
        t->to = optarg;
        break;
    case 'F':
        t->format = optarg;
        break;
    case 'O':
        t->only = optarg;
        break;
    case 'S':
        t->strip = optarg;
        break;
    }
}

static void set_flag(struct tool *t, int option)
{
    t->json |= option == 'j';
    t->merge |= option == 'm';
    t->force |= option == 'f';
    t->documents |= option == 'd';
    t->unchecked |= option == 'u';
}

static int set_number(struct tool *t, int option)
{
    uint64_t number = 0;
    int r = 0;

    switch (option) {
    case OPTION_RANK:
        r = tool_read_number("--rank", optarg, 1 << 20, &number);
        t->rank = (int64_t)number;
        return r;
    case OPTION_TIMEOUT:
        r = tool_read_number("--timeout", optarg, 86400, &number);
        t->timeout_ms = (uint32_t)number * 1000;
        return r;
    case OPTION_STEP:
        t->step = optarg;
        return tool_read_number("--step", optarg, CAIRN_LATEST - 1, &number);
    case OPTION_SHARD:
        return tool_read_size("--shard-size", optarg, &t->shard_bytes);
    case OPTION_ARENA:
        return tool_read_size("--arena", optarg, &t->arena_bytes);
    default: /* '?': getopt has said what it does not know */
        return -1;
    }
}

int tool_options(struct tool *t, int argc, char **argv)
{
    int c, help = 0;

    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (c == 'h' || c == OPTION_HELP)
            help = 1;
        else if (c == OPTION_VERSION)
            help = 2;
        else if (c < OPTION_RANK && c != '?')
            optarg ? set_word(t, c) : set_flag(t, c);
        else if (set_number(t, c) < 0)
            return -1;
    }
    t->argc = argc - optind;
    t->argv = argv + optind;
    return help;
}
