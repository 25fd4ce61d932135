/* SPDX-License-Identifier: Apache-2.0 */
/* Random lives of a job whose checkpoints are stored against older ones: whatever is deleted, in whatever order, and
 * wherever the deleting daemon dies, no committed checkpoint is left without what it needs, nor is one that may still
 * commit; and nothing stays for ever. Compiled once more with CAIRN_BUG_DELETES_BASE, which must fail. */
#include "core/checkpoint/retention.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MANY 64
#define CHAIN 4

struct life {
    struct retention_item item[MANY];
    unsigned depth[MANY];
    size_t n;
    uint64_t step;
};

static ptrdiff_t find(const struct life *l, uint64_t step)
{
    for (size_t i = 0; i < l->n; i++)
        if (l->item[i].step == step)
            return (ptrdiff_t)i;
    return -1;
}

static ptrdiff_t newest(const struct life *l)
{
    ptrdiff_t best = -1;

    for (size_t i = 0; i < l->n; i++)
        if (l->item[i].committed && (best < 0 || l->item[i].step > l->item[best].step))
            best = (ptrdiff_t)i;
    return best;
}

/* An intent, often with the newest committed one as its base. */
static void begin(struct life *l)
{
    ptrdiff_t base = newest(l);
    bool delta = base >= 0 && l->depth[base] < CHAIN && rand() % 4;

    if (l->n == MANY)
        return;
    l->item[l->n] =
        (struct retention_item){.step = ++l->step, .incarnation = 1, .lives = true, .full = true, .has_base = delta};
    l->depth[l->n] = delta ? l->depth[base] + 1 : 0;
    if (delta) {
        l->item[l->n].base_step = l->item[base].step;
        l->item[l->n].base_incarnation = 1;
    }
    l->n++;
}

static void decide(struct life *l)
{
    for (size_t i = 0; i < l->n; i++)
        if (l->item[i].lives && !l->item[i].committed && rand() % 2) {
            l->item[i].committed = rand() % 4 > 0;
            l->item[i].lives = l->item[i].committed;
        }
}

static void forget(struct life *l, size_t at)
{
    l->n--;
    l->item[at] = l->item[l->n];
    l->depth[at] = l->depth[l->n];
}

static void check(const struct life *l)
{
    for (size_t i = 0; i < l->n; i++) {
        const struct retention_item *item = &l->item[i];
        ptrdiff_t base = item->lives && item->has_base ? find(l, item->base_step) : 0;
        if (base < 0 || (item->lives && item->has_base && !l->item[base].committed))
            fail_msg("step %llu is there and its base %llu is not", (unsigned long long)item->step,
                     (unsigned long long)item->base_step);
    }
}

/* One pass: what it chose goes one by one, and between any two the daemon may die. */
static size_t pass(struct life *l, bool may_die)
{
    struct retention rule = {.last = 2};
    bool gone[MANY];
    uint64_t steps[MANY];
    size_t n = 0;

    retention_choose(&rule, l->item, l->n, 0, gone);
    for (size_t i = 0; i < l->n; i++)
        if (gone[i])
            steps[n++] = l->item[i].step;
    for (size_t i = 0; i < n; i++) {
        if (may_die && rand() % 4 == 0)
            return i;
        forget(l, (size_t)find(l, steps[i]));
        check(l);
    }
    return n;
}

static void nothing_loses_its_base(void **state)
{
    (void)state;
    srand(11);
    for (unsigned round = 0; round < 500; round++) {
        struct life l = {.n = 0};
        for (unsigned i = 0; i < 200; i++) {
            if (rand() % 2)
                begin(&l);
            decide(&l);
            check(&l);
            if (rand() % 2)
                pass(&l, true);
            for (size_t a = 0; a < l.n; a++) /* aborted ones go in time */
                if (!l.item[a].lives && rand() % 2)
                    forget(&l, a--);
        }
        while (pass(&l, false) > 0)
            ;
        size_t committed = 0;
        for (size_t i = 0; i < l.n; i++)
            committed += l.item[i].committed;
        assert_true(committed <= 2 + CHAIN + CHAIN); /* the last two, and what they and those under way need */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_loses_its_base)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
