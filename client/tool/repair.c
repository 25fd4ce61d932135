/* SPDX-License-Identifier: Apache-2.0 */
/* Commands that look after what is stored: repair, scrub, rebuild. */
#include "client/tool/tool.h"

#include <stdio.h>
#include <string.h>

#define EACH(array_, o_) \
    size_t i_;           \
    json_t *o_;          \
    json_array_foreach(array_, i_, o_)

static long long number(const json_t *o, const char *key)
{
    return (long long)tool_number(o, key);
}

/* ---- repair ---------------------------------------------------------------------------------- */

static void print_repair(json_t *a)
{
    const char *peer;
    char size[32];
    json_t *n;

    printf("%12s %12s %10s %8s %8s %9s %9s %6s  %s\n", "STEP", "INCARNATION", "FRAGMENTS", "MISSING", "CORRUPT",
           "REPAIRED", "UNPLACED", "LOST", "ERROR");
    EACH(json_object_get(a, "checkpoints"), k)
    {
        printf("%12lld %12lld %10lld %8lld %8lld %9lld %9lld %6lld  %s\n", number(k, "step"), number(k, "incarnation"),
               number(k, "fragments"), number(k, "missing"), number(k, "corrupt"), number(k, "repaired"),
               number(k, "unplaced"), number(k, "lost_chunks"), tool_text(k, "error"));
    }
    printf("\n%lld fragments were made again, %lld copies of manifests added, %s written\n", number(a, "repaired"),
           number(a, "copies_added"), tool_size(tool_number(a, "bytes"), size));
    json_object_foreach(json_object_get(a, "peers"), peer, n) printf("  %s: %lld\n", peer, number(n, "fragments"));
}

/* Whether a checkpoint of the answer could not be read, or is not whole now. */
static bool is_left_damaged(json_t *a)
{
    bool damaged = number(a, "lost_chunks") > 0 || number(a, "unplaced") > 0 || number(a, "copies_missing") > 0;

    EACH(json_object_get(a, "checkpoints"), k)
    {
        damaged |= tool_text(k, "error")[0] != 0;
    }
    return damaged;
}

int cmd_repair(struct tool *t)
{
    uint64_t step = CAIRN_LATEST;
    json_t *a;

    if (t->argc < 2 || t->argc > 3 || (t->argc == 3 && tool_parse_step(t->argv[2], &step) < 0))
        return EXIT_USAGE;
    if (step == CAIRN_LATEST_FINITE) {
        fprintf(stderr, "cairn: latest-finite is not taken here: give the step, or none for all\n");
        return EXIT_USAGE;
    }
    int r = tool_command(t, CAIRN_COMMAND_REPAIR, t->argv[1], step, t->argc == 3 ? NULL : "all", &a);
    if (r == EXIT_OK && !t->json)
        print_repair(a);
    if (r == EXIT_OK && is_left_damaged(a))
        r = EXIT_CORRUPT;
    json_decref(a);
    return r;
}

/* ---- scrub ----------------------------------------------------------------------------------- */

static void print_scrub(json_t *a)
{
    char size[32];

    printf("%-16s %8s %10s %12s %8s  %s\n", "PEER", "FILES", "FRAGMENTS", "READ", "DAMAGED", "ERROR");
    EACH(json_object_get(a, "peers"), p)
    {
        printf("%-16s %8lld %10lld %12s %8lld  %s\n", tool_text(p, "peer"), number(p, "files"), number(p, "fragments"),
               tool_size(tool_number(p, "bytes"), size), number(p, "bad"), tool_text(p, "error"));
    }
}

int cmd_scrub(struct tool *t)
{
    json_t *a;

    if (t->argc > 2)
        return EXIT_USAGE;
    int r = tool_command(t, CAIRN_COMMAND_SCRUB, t->argc == 2 ? t->argv[1] : NULL, 0, NULL, &a);
    if (r == EXIT_OK && !t->json)
        print_scrub(a);
    if (r == EXIT_OK && number(a, "bad") > 0)
        r = EXIT_CORRUPT;
    else if (r == EXIT_OK && !json_is_true(json_object_get(a, "complete")))
        r = EXIT_UNAVAILABLE;
    json_decref(a);
    return r;
}

/* ---- rebuild --------------------------------------------------------------------------------- */

static void print_rebuild(json_t *a)
{
    printf("%-24s %12s %12s %-10s  %s\n", "JOB", "STEP", "INCARNATION", "STATE", "ERROR");
    EACH(json_object_get(a, "checkpoints"), k)
    {
        printf("%-24s %12lld %12lld %-10s  %s\n", tool_text(k, "job"), number(k, "step"), number(k, "incarnation"),
               tool_text(k, "state"), tool_text(k, "error"));
    }
    printf(
        "\n%lld decisions were written, %lld were there, %lld checkpoints are undecided; %lld of %zu peers accept this "
        "metadata engine\n",
        number(a, "written"), number(a, "present"), number(a, "undecided"), number(a, "accepted"),
        json_array_size(json_object_get(a, "peers")));
}

int cmd_rebuild(struct tool *t)
{
    json_t *a;

    if (t->argc > 2)
        return EXIT_USAGE;
    int r = tool_command(t, CAIRN_COMMAND_REBUILD, t->argc == 2 ? t->argv[1] : NULL, 0, NULL, &a);
    if (r == EXIT_OK && !t->json)
        print_rebuild(a);
    if (r == EXIT_OK && !json_is_true(json_object_get(a, "complete")))
        r = EXIT_UNAVAILABLE;
    json_decref(a);
    return r;
}
