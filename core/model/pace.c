/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/pace.h"

#define SECOND_NS 1000000000u

/* ---- a bucket -------------------------------------------------------------------------------- */

/* Rounded up, so that many small pieces do not add up to more than the rate. */
static uint64_t time_of(uint64_t rate, uint64_t bytes)
{
    double ns = (double)bytes * SECOND_NS / (double)rate;

    return ns < 1e18 ? (uint64_t)ns + 1 : (uint64_t)1e18;
}

void cairn_bucket_init(struct cairn_bucket *b, uint64_t rate, uint64_t burst)
{
    *b = (struct cairn_bucket){.rate = rate, .slack_ns = rate ? time_of(rate, burst) : 0};
}

uint64_t cairn_bucket_wait_ns(const struct cairn_bucket *b, uint64_t reserved, uint64_t now_ns)
{
    uint64_t settled = b->settled_ns > now_ns ? b->settled_ns : now_ns;

    if (b->rate == 0)
        return 0;
    if (reserved)
        settled += time_of(b->rate, reserved);
    return settled - now_ns > b->slack_ns ? settled - now_ns - b->slack_ns : 0;
}

void cairn_bucket_charge(struct cairn_bucket *b, uint64_t bytes, uint64_t now_ns)
{
    if (b->rate == 0)
        return;
    if (b->settled_ns < now_ns)
        b->settled_ns = now_ns;
    b->settled_ns += time_of(b->rate, bytes);
}

/* ---- a cadence ------------------------------------------------------------------------------- */

void cairn_cadence_add(struct cairn_cadence *c, uint64_t now_ns)
{
    uint64_t expected = cairn_cadence_expected_ns(c), interval = now_ns - c->last_ns;
    bool first = c->last_ns == 0;

    if (!first && now_ns <= c->last_ns)
        return;
    c->last_ns = now_ns;
    if (first)
        return;
    if (expected && interval / CAIRN_CADENCE_GAP > expected) {
        c->n = c->next = 0;
        return;
    }
    c->interval_ns[c->next] = interval;
    c->next = (c->next + 1) % CAIRN_CADENCE_KEPT;
    if (c->n < CAIRN_CADENCE_KEPT)
        c->n++;
}

uint64_t cairn_cadence_expected_ns(const struct cairn_cadence *c)
{
    uint64_t least = UINT64_MAX;

    for (unsigned i = 0; i < c->n; i++)
        if (c->interval_ns[i] < least)
            least = c->interval_ns[i];
    return c->n < CAIRN_CADENCE_ENOUGH ? 0 : least;
}

/* ---- a pace ---------------------------------------------------------------------------------- */

const char *cairn_pace_why_text(int why)
{
    static const char *const texts[] = {
        [CAIRN_PACE_OFF] = "[pace] spread is 0",
        [CAIRN_PACED] = "",
        [CAIRN_PACE_FIRST] = "when the next save begins is not known yet",
        [CAIRN_PACE_SHORT] = "the next save is near",
        [CAIRN_PACE_WAITED] = "a client waits for it",
        [CAIRN_PACE_ROOM] = "a save waits for room in the arena",
        [CAIRN_PACE_OLDER] = "a later save has begun",
        [CAIRN_PACE_ENDING] = "its process has ended, or its start of the job",
    };

    return why >= 0 && why < (int)(sizeof texts / sizeof texts[0]) ? texts[why] : "";
}

void cairn_pace_full(struct cairn_pace *p, uint64_t total, int why)
{
    *p = (struct cairn_pace){.total = total, .why = why};
}

void cairn_pace_plan(struct cairn_pace *p, const struct cairn_cadence *c, uint64_t total, uint64_t begun_ns,
                     uint64_t now_ns, uint32_t deadline_ms)
{
    uint64_t expected = cairn_cadence_expected_ns(c);
    uint64_t end = begun_ns + expected / 100 * CAIRN_PACE_SHARE_PERCENT;
    uint64_t latest = now_ns + (uint64_t)deadline_ms * 1000000 / CAIRN_PACE_DEADLINE_SHARE;

    cairn_pace_full(p, total, expected ? CAIRN_PACE_SHORT : CAIRN_PACE_FIRST);
    if (end > latest)
        end = latest;
    if (expected == 0 || end <= now_ns)
        return;
    p->begin_ns = now_ns;
    p->end_ns = end;
    p->why = CAIRN_PACED;
}

bool cairn_pace_hurry(struct cairn_pace *p, int why)
{
    if (p->why != CAIRN_PACED)
        return false;
    p->why = why;
    return true;
}

/* When as much as was taken should have been. */
static uint64_t due_ns(const struct cairn_pace *p)
{
    double share = p->taken < p->total ? (double)p->taken / (double)p->total : 1;

    return p->begin_ns + (uint64_t)(share * (double)(p->end_ns - p->begin_ns));
}

uint64_t cairn_pace_wait_ns(const struct cairn_pace *p, uint64_t now_ns)
{
    if (p->why != CAIRN_PACED)
        return 0;
    uint64_t due = due_ns(p);
    return due > now_ns ? due - now_ns : 0;
}

void cairn_pace_take(struct cairn_pace *p, uint64_t bytes)
{
    p->taken += bytes;
}

int64_t cairn_pace_ahead_ns(const struct cairn_pace *p, uint64_t now_ns)
{
    if (p->why != CAIRN_PACED || p->taken >= p->total)
        return 0;
    return (int64_t)(due_ns(p) - now_ns);
}
