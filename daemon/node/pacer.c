/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/pacer.h"

#include "core/model/pace.h"
#include "core/model/units.h"
#include "daemon/node/link.h"

#include <stdlib.h>

#define BURST_MS 100 /* of a rate: what a timer's delay must not cost */

struct peer_rate {
    const struct link *link;
    struct cairn_bucket bucket;
};
struct pacer {
    struct loop *loop;
    struct cairn_bucket all;
    uint64_t peer_rate;
    struct peer_rate peer[LINKS_MAX];
    unsigned npeers;
    uint64_t reserved;
    struct loop_timer timer;
    bool set;
    void (*kick)(void *arg);
    void *arg;
};

static void pacer_fire(struct loop_timer *t)
{
    struct pacer *p = t->arg;

    p->set = false;
    p->kick(p->arg);
}

static void bucket_of_rate(struct cairn_bucket *b, uint64_t rate)
{
    cairn_bucket_init(b, rate, rate / 1000 * BURST_MS);
}

int pacer_new(struct loop *loop, const struct pacer_config *config, void (*kick)(void *arg), void *arg,
              struct pacer **ret_pacer, struct cairn_error *err)
{
    struct pacer *p = calloc(1, sizeof *p);

    if (!p)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a pacer");
    p->loop = loop;
    p->peer_rate = config->peer_rate;
    bucket_of_rate(&p->all, config->rate);
    p->kick = kick;
    p->arg = arg;
    p->timer = (struct loop_timer){.fire = pacer_fire, .arg = p};
    *ret_pacer = p;
    return 0;
}

void pacer_free(struct pacer *p)
{
    if (!p)
        return;
    loop_timer_cancel(p->loop, &p->timer);
    free(p);
}

uint64_t pacer_rate(const struct pacer *p)
{
    return !p ? 0 : p->all.rate ? p->all.rate : p->peer_rate;
}

void pacer_wake(struct pacer *p, uint64_t after_ns)
{
    if (!p)
        return;
    uint64_t at = loop_now_ns(p->loop) + after_ns;
    if (p->set && p->timer.at_ns <= at)
        return;
    p->set = true;
    loop_timer_set(p->loop, &p->timer, at);
}

/* NULL when there is no room for another peer: its rate is not bounded then. */
static struct cairn_bucket *bucket_of(struct pacer *p, const struct link *l)
{
    if (p->peer_rate == 0)
        return NULL;
    for (unsigned i = 0; i < p->npeers; i++)
        if (p->peer[i].link == l)
            return &p->peer[i].bucket;
    if (p->npeers == LINKS_MAX)
        return NULL;
    struct peer_rate *r = &p->peer[p->npeers++];
    r->link = l;
    bucket_of_rate(&r->bucket, p->peer_rate);
    return &r->bucket;
}

bool pacer_may(struct pacer *p, struct link *const *to, unsigned n)
{
    if (!p)
        return true;
    uint64_t now = loop_now_ns(p->loop), wait = cairn_bucket_wait_ns(&p->all, p->reserved, now);

    for (unsigned i = 0; i < n; i++) { /* what is reserved goes to all of them alike */
        const struct cairn_bucket *b = bucket_of(p, to[i]);
        uint64_t w = b ? cairn_bucket_wait_ns(b, p->reserved / n, now) : 0;
        wait = w > wait ? w : wait;
    }
    if (wait)
        pacer_wake(p, wait);
    return wait == 0;
}

void pacer_reserve(struct pacer *p, uint64_t bytes)
{
    if (p)
        p->reserved += bytes;
}

void pacer_release(struct pacer *p, uint64_t bytes)
{
    if (p)
        p->reserved -= bytes;
}

void pacer_charge(struct pacer *p, const struct link *to, uint64_t bytes)
{
    if (!p)
        return;
    struct cairn_bucket *b = bucket_of(p, to);
    cairn_bucket_charge(&p->all, bytes, loop_now_ns(p->loop));
    if (b)
        cairn_bucket_charge(b, bytes, loop_now_ns(p->loop));
}
