/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/track/world.h"

#include <string.h>

#include "core/model/track.h"

enum { TENSORS = 3, PAGES = 5, PLACES = 7 }; /* a tensor is a part; the arena has PLACES of them */

struct tensor {
    uint32_t content[PAGES];
    int written[PAGES]; /* the kernel's bits */
    struct cairn_track track;
    uint32_t pauses, not_before;
};
struct world {
    struct tensor t[TENSORS];
    uint32_t arena[PLACES][PAGES];
    struct cairn_held held[PLACES];
    uint32_t epoch;
    uint64_t plan;
    uint32_t next_content;
    uint64_t skipped;
};

static void write_page(struct world *w, uint8_t which)
{
    struct tensor *t = &w->t[which % TENSORS];
    uint32_t page = which / TENSORS % PAGES;

    t->content[page] = ++w->next_content;
    t->written[page] = 1;
}

/* Other memory with other bytes: nothing is known of it. */
static void move(struct world *w, uint8_t which)
{
    struct tensor *t = &w->t[which % TENSORS];

    for (uint32_t p = 0; p < PAGES; p++)
        t->content[p] = ++w->next_content;
    cairn_track_free(&t->track);
}

static void scan(struct world *w, struct tensor *t, int fails)
{
    uint32_t changed = 0, fresh = !t->track.npages;

    if (fresh && w->epoch < t->not_before)
        return;
    if (fresh && cairn_track_start(&t->track, PAGES, w->epoch, NULL) < 0)
        return;
    for (uint32_t p = 0; p < PAGES && !(fails && p == PAGES / 2); p++) {
        changed += t->written[p] ? cairn_track_mark(&t->track, p, 1, w->epoch) : 0;
        t->written[p] = 0;
    }
    if (fails) {
        cairn_track_free(&t->track);
    } else if (!fresh && !cairn_track_is_worth(&t->track, changed)) {
        cairn_track_free(&t->track);
        t->not_before = w->epoch + cairn_track_pause(t->pauses++) / CAIRN_TRACK_PAUSE; /* sooner than in life */
    }
}

/* Stops after so many pages, as a process does that is killed or a thread that has not come so far. */
static void copy(struct world *w, uint32_t place, uint32_t part, uint32_t *budget)
{
    struct tensor *t = &w->t[(part + w->plan) % TENSORS]; /* what a part holds is the plan's */
    uint32_t since = cairn_held_since(&w->held[place], w->plan, part), at = 0, n = PAGES;

    cairn_held_drop(&w->held[place]);
    if (!t->track.npages)
        since = 0;
    for (uint32_t next = 0; next < PAGES; next = at + n) {
        if (since && !cairn_track_next(&t->track, next, PAGES, since, &at, &n)) {
            w->skipped += PAGES - next;
            break;
        }
        w->skipped += since ? at - next : 0;
        for (uint32_t p = since ? at : 0; p < (since ? at + n : PAGES); p++) {
            if (!*budget)
                return;
            --*budget;
            w->arena[place][p] = t->content[p];
        }
        if (!since)
            break;
    }
    if (*budget)
        cairn_held_set(&w->held[place], w->plan, part, w->epoch);
}

static int is_saved(const struct world *w, uint32_t place, uint32_t part)
{
    return memcmp(w->arena[place], w->t[(part + w->plan) % TENSORS].content, sizeof w->arena[0]) == 0;
}

/* how: where the parts go, which scan fails, and whether it ends early. */
static int save(struct world *w, uint8_t how, uint32_t budget)
{
    uint32_t fails = how / PLACES % 8;

    w->epoch++;
    for (uint32_t t = 0; t < TENSORS; t++)
        scan(w, &w->t[t], t == fails);
    for (uint32_t part = 0; part < TENSORS; part++) {
        uint32_t place = (how + 2 * part) % PLACES;
        copy(w, place, part, &budget);
        if (!budget)
            return 1;
        if (!is_saved(w, place, part))
            return 0;
    }
    return 1;
}

int track_world_run(const uint8_t *bytes, size_t len, uint64_t *ret_skipped)
{
    struct world w = {.plan = 1};
    int right = 1;

    for (size_t i = 0; right && i + 1 < len; i += 2) {
        uint8_t what = bytes[i], which = bytes[i + 1];
        if (what < 150)
            write_page(&w, which);
        else if (what < 230)
            right = save(&w, which, UINT32_MAX);
        else if (what < 240)
            right = save(&w, which, 1 + what % 11);
        else if (what < 250)
            move(&w, which);
        else
            w.plan++;
    }
    for (uint32_t t = 0; t < TENSORS; t++)
        cairn_track_free(&w.t[t].track);
    *ret_skipped = w.skipped;
    return right;
}
