/* SPDX-License-Identifier: Apache-2.0 */
/* sim-scale: what one checkpoint of a large job costs its coordinator, counted on the real machine, the real reports
 * and the real letters: writes to the metadata, messages, bytes. No time passes and nothing fails; each node's letters
 * go up the tree of fan-in 64 once and their verdicts come down. */
#include "core/base/bytes.h"
#include "core/checkpoint/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RANKS 8 /* of a node */

struct scale {
    struct commit c;
    uint8_t *ranks;
    uint32_t nodes;
    int asked; /* enum commit_effect without an answer */
    unsigned long writes, letters, letter_bytes, arrivals, verdicts, verdict_bytes;
    bool drains, ended;
};

static void scale_take(struct scale *s, const struct commit_effects *fx)
{
    for (unsigned i = 0; i < fx->n; i++) {
        int what = fx->what[i];
        s->drains |= what == COMMIT_START_DRAINS;
        s->ended |= what == COMMIT_END;
        s->writes += what == COMMIT_WRITE_INTENT || what == COMMIT_PUT_COMMIT || what == COMMIT_PUT_ABORT;
        if (what == COMMIT_WRITE_INTENT || what == COMMIT_STORE_ROOT || what == COMMIT_PUT_COMMIT)
            s->asked = what;
    }
}

static void scale_step(struct scale *s, const struct commit_event *e)
{
    struct commit_effects fx;

    commit_step(&s->c, e, &fx);
    scale_take(s, &fx);
}

static void scale_answer(struct scale *s, int type)
{
    s->asked = 0;
    scale_step(s, &(struct commit_event){.type = type});
}

static unsigned letter_len(const struct crew_letter *l)
{
    struct bytes b = {0};
    int r = crew_encode(l, &b, NULL);
    size_t len = b.len;

    bytes_free(&b);
    if (r < 0) {
        fprintf(stderr, "a letter could not be encoded: %d\n", r);
        exit(1);
    }
    return (unsigned)len;
}

static void letter_begin(struct crew_letter *l, int type, uint32_t node)
{
    memset(l, 0, sizeof *l);
    l->type = type;
    snprintf(l->job, sizeof l->job, "scale");
    snprintf(l->from.node, sizeof l->from.node, "node%05u", node);
    l->from.start = 1;
    l->from.len = 16;
}

static void entry_fill(struct crew_entry *e, uint32_t node, uint32_t rank, int state)
{
    *e = (struct crew_entry){.rank = rank, .state = state, .pin_number = 1};
    snprintf(e->shard.node, sizeof e->shard.node, "node%05u", node);
    e->shard.rank = rank;
    if (state != REPORT_DURABLE)
        return;
    e->shard.manifest.len = 4096;
    e->shard.manifest.npeers = 3;
    for (unsigned i = 0; i < 3; i++)
        snprintf(e->shard.manifest.peer[i], sizeof e->shard.manifest.peer[i], "peer%05u", node + i);
    e->shard.plain_bytes = e->shard.stored_bytes = 1ull << 34;
}

/* One letter of a node with all its ranks in one state, passed on by every parent above it. */
static void scale_report(struct scale *s, uint32_t node, int state)
{
    static struct crew_letter l; /* large */
    struct commit_event events[REPORT_MAX_EVENTS];
    unsigned hops = 1;

    letter_begin(&l, CREW_REPORT, node);
    l.report.step = 1000;
    l.report.incarnation = 1;
    l.report.nentries = RANKS;
    for (uint32_t i = 0; i < RANKS; i++)
        entry_fill(&l.report.entries[i], node, node * RANKS + i, state);
    for (uint32_t slot = report_parent(node); slot != REPORT_COORDINATOR; slot = report_parent(slot))
        hops++;
    s->letters += hops;
    s->arrivals++;
    s->letter_bytes += (unsigned long)hops * letter_len(&l);
    for (uint32_t i = 0; i < RANKS; i++) {
        struct report r = {.rank = node * RANKS + i, .state = state};
        unsigned n = report_events(&s->c, &r, events);
        for (unsigned k = 0; k < n; k++)
            scale_step(s, &events[k]);
    }
}

static void scale_verdict(struct scale *s, int verdict)
{
    static struct crew_letter l;

    for (uint32_t node = 0; node < s->nodes; node++) {
        letter_begin(&l, CREW_VERDICT, node);
        l.verdict.step = 1000;
        l.verdict.incarnation = 1;
        l.verdict.verdict = verdict;
        s->verdicts++;
        s->verdict_bytes += letter_len(&l);
    }
}

static int scale_run(uint32_t nodes)
{
    struct scale s = {.nodes = nodes, .ranks = calloc(nodes, RANKS)};
    struct commit_effects fx;

    if (!s.ranks)
        return 1;
    commit_init(&s.c, 1000, nodes * RANKS, 600000, s.ranks, &fx);
    scale_take(&s, &fx);
    scale_report(&s, 0, REPORT_BEGUN);
    scale_answer(&s, COMMIT_ON_INTENT_WRITTEN);
    for (uint32_t node = 0; node < nodes; node++)
        scale_report(&s, node, REPORT_FILLED);
    scale_verdict(&s, VERDICT_INTENT);
    for (uint32_t node = 0; node < nodes; node++)
        scale_report(&s, node, REPORT_DURABLE);
    scale_answer(&s, COMMIT_ON_ROOT_STORED);
    scale_answer(&s, COMMIT_ON_APPLIED);
    scale_verdict(&s, report_verdict(&s.c));
    printf("| %u | %u | %s | %lu | %lu | %lu | %.1f | %lu | %.1f |\n", nodes, nodes * RANKS,
           commit_state_name(s.c.state), s.writes, s.arrivals, s.letters, (double)s.letter_bytes / 1e6, s.verdicts,
           (double)s.verdict_bytes / 1e6);
    free(s.ranks);
    return s.c.state == COMMIT_COMMITTED && s.writes <= 3 && s.ended && s.drains ? 0 : 1;
}

int main(void)
{
    static const uint32_t sizes[] = {1, 64, 1000, 10000};
    int r = 0;

    printf("| nodes | ranks | outcome | metadata writes | reports | letters with hops | MB | verdicts | MB |\n"
           "|---|---|---|---|---|---|---|---|---|\n");
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        r |= scale_run(sizes[i]);
    return r;
}
