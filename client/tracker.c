/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tracker.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/dirty.h"
#include "core/base/error.h"

#define MIN_PAGES 16     /* smaller tensors cost more to ask about than to copy */
#define MAX_REGIONS 8192 /* each may split a mapping in three, and a process has 65,530 */
#define MAX_MOVES 3      /* without as many scans in between: its memory is another one in every save */
#define SETTLED_SCANS 8  /* in one place: earlier moves are forgotten */
#define NEVER CAIRN_TRACK_LAST

/* A slice and what is known about its memory. */
struct region {
    const char *data;         /* where the slice was in the save before; NULL: nowhere yet */
    uintptr_t first;          /* its first whole page */
    struct cairn_track track; /* no pages: it is not tracked */
    uint32_t scans;           /* since it is */
    uint32_t not_before;      /* this epoch it is tried (again) */
    uint8_t moves;            /* to another memory, lately */
    uint8_t pauses;
    bool watched;
    bool given_up; /* in this place */
};

struct tracker {
    pthread_mutex_t lock; /* held from begin to end of a save */
    struct dirty dirty;
    bool on;
    uint32_t epoch;
    uint64_t plan;          /* serial of the plan that regions belong to */
    struct region *regions; /* of each slice */
    uint32_t nregions;
    uint32_t ntracked;
    char why[TRACKER_TEXT]; /* not on */
};

/* ---- one region ------------------------------------------------------------------------------ */

static uintptr_t region_end(const struct tracker *t, const struct region *r)
{
    return r->first + r->track.npages * t->dirty.page;
}

static void region_stop(struct tracker *t, struct region *r)
{
    if (!r->track.npages)
        return;
    if (r->watched)
        dirty_forget(&t->dirty, r->first, region_end(t, r));
    r->watched = false;
    cairn_track_free(&r->track);
    t->ntracked--;
}

static void region_give_up(struct tracker *t, struct region *r)
{
    region_stop(t, r);
    r->given_up = true;
}

/* The whole pages of [data, data + bytes). */
static void whole_pages(const struct tracker *t, const char *data, uint64_t bytes, uintptr_t *ret_first,
                        uint64_t *ret_n)
{
    uintptr_t page = t->dirty.page;
    uintptr_t first = ((uintptr_t)data + page - 1) / page * page, end = ((uintptr_t)data + bytes) / page * page;

    *ret_first = first;
    *ret_n = end > first ? (end - first) / page : 0;
}

/* From now on it counts as written, until its first scan; region_watch is still to come. */
static void region_start(struct tracker *t, struct region *r, uint64_t bytes)
{
    uint64_t npages;

    whole_pages(t, r->data, bytes, &r->first, &npages);
    r->given_up = npages < MIN_PAGES || npages > UINT32_MAX || t->ntracked == MAX_REGIONS ||
                  cairn_track_start(&r->track, (uint32_t)npages, t->epoch, NULL) < 0;
    r->scans = 0;
    t->ntracked += !r->given_up;
}

static void region_watch(struct tracker *t, struct region *r)
{
    r->watched = dirty_watch(&t->dirty, r->first, region_end(t, r), NULL) == 0;
    if (!r->watched)
        region_give_up(t, r);
}

/* Its memory is another one now. */
static void region_moved(struct tracker *t, struct region *r)
{
    if (r->scans >= SETTLED_SCANS)
        r->moves = 0;
    region_stop(t, r);
    r->moves += r->moves <= MAX_MOVES;
    r->given_up = r->moves > MAX_MOVES;
}

struct marking {
    struct cairn_track *track;
    uint32_t epoch;
    uint32_t changed;
};

static void mark(void *arg, uint64_t first, uint64_t n)
{
    struct marking *m = arg;

    m->changed += cairn_track_mark(m->track, first, n, m->epoch);
}

/* Asked now and then, for it costs more than a scan: at first by the second scan, which has a copy behind it, so that
 * every page that can be there is. */
static bool region_is_private(struct tracker *t, const struct region *r)
{
    bool alone = false;

    if (r->scans == 0 || (r->scans & (r->scans - 1)) != 0)
        return true;
    return dirty_is_private(&t->dirty, r->first, region_end(t, r), &alone, NULL) == 0 && alone;
}

static void region_pause(struct tracker *t, struct region *r)
{
    uint32_t pause = cairn_track_pause(r->pauses);

    region_stop(t, r);
    r->pauses += r->pauses < CAIRN_TRACK_MAX_PAUSES;
    r->not_before = t->epoch < NEVER - pause ? t->epoch + pause : NEVER;
}

static void region_scan(struct tracker *t, struct region *r)
{
    struct marking m = {.track = &r->track, .epoch = t->epoch};

    if (!region_is_private(t, r))
        region_give_up(t, r);
    else if (dirty_take(&t->dirty, r->first, region_end(t, r), mark, &m, NULL) < 0)
        region_moved(t, r); /* what lies there is not what was watched */
    else if (r->scans++ > 0 && !cairn_track_is_worth(&r->track, m.changed)) /* the first finds all that ever was */
        region_pause(t, r);
}

/* ---- all regions ----------------------------------------------------------------------------- */

static void forget_all(struct tracker *t)
{
    for (uint32_t i = 0; i < t->nregions; i++)
        region_stop(t, &t->regions[i]);
    free(t->regions);
    t->regions = NULL;
    t->nregions = 0;
    t->plan = 0;
}

static void turn_off(struct tracker *t, const char *why)
{
    forget_all(t);
    t->on = false;
    (void)snprintf(t->why, sizeof(t->why), "%s", why);
}

/* Another plan: other slices. */
static bool take_plan(struct tracker *t, const struct plan *plan)
{
    if (t->plan == plan->serial)
        return true;
    forget_all(t);
    t->regions = calloc(plan->layout.nslices ? plan->layout.nslices : 1, sizeof(*t->regions));
    if (!t->regions)
        return false;
    t->nregions = plan->layout.nslices;
    t->plan = plan->serial;
    return true;
}

/* Notes where a slice lies now; true when it is to be tracked and is not. */
static bool is_candidate(struct tracker *t, struct region *r, const struct image_source *s)
{
    bool may = s->data && !s->stride && !s->by_device;

    if (!may)
        region_give_up(t, r);
    else if (r->data && r->data != s->data)
        region_moved(t, r);
    else if (!r->data)
        r->given_up = false;
    r->data = may ? s->data : NULL;
    return !r->given_up && !r->track.npages && t->epoch >= r->not_before;
}

static int by_address(const void *a, const void *b)
{
    const struct region *x = *(struct region *const *)a, *y = *(struct region *const *)b;

    return x->first < y->first ? -1 : x->first > y->first;
}

/* Of two regions that share a page one is given up, for a scan of one would disarm the other: the one that is not
 * watched yet, or begins later. */
static void part_overlapping(struct tracker *t, struct region **sorted, uint32_t n)
{
    struct region *last = NULL;

    for (uint32_t i = 0; i < n; i++) {
        struct region *r = sorted[i];
        if (!last || r->first >= region_end(t, last)) {
            last = r;
        } else if (r->watched) { /* then last is not */
            region_give_up(t, last);
            last = r;
        } else {
            region_give_up(t, r);
        }
    }
}

static void watch_started(struct tracker *t)
{
    struct region **sorted = malloc((t->ntracked ? t->ntracked : 1) * sizeof(*sorted));
    uint32_t n = 0;

    if (!sorted) {
        turn_off(t, "no memory to sort the tensors");
        return;
    }
    for (uint32_t i = 0; i < t->nregions; i++)
        if (t->regions[i].track.npages)
            sorted[n++] = &t->regions[i];
    qsort(sorted, n, sizeof(struct region *), by_address);
    part_overlapping(t, sorted, n);
    for (uint32_t i = 0; i < n; i++)
        if (sorted[i]->track.npages && !sorted[i]->watched)
            region_watch(t, sorted[i]);
    free(sorted);
}

/* Tensors that are new, moved, or waited long enough. What is left is forgotten before anything is watched anew: one
 * tensor may now lie where another lay. */
static void start_candidates(struct tracker *t, const struct plan *plan, const struct image_source *sources)
{
    bool started = false;

    for (uint32_t i = 0; i < plan->npieces; i++) {
        const struct plan_piece *p = &plan->pieces[i];
        struct region *r = &t->regions[p->slice];
        if (!is_candidate(t, r, &sources[p->slice]))
            continue;
        region_start(t, r, p->end - p->begin);
        started |= !r->given_up;
    }
    if (started)
        watch_started(t);
}

/* ---- a save ---------------------------------------------------------------------------------- */

void tracker_begin(struct tracker *t, const struct plan *plan, const struct image_source *sources,
                   struct tracked *ret_tracked)
{
    pthread_mutex_lock(&t->lock);
    *ret_tracked = (struct tracked){.tracker = t};
    if (!t->on)
        return;
    if (t->epoch == CAIRN_TRACK_LAST - 1) {
        turn_off(t, "too many saves were made");
        return;
    }
    ret_tracked->epoch = ++t->epoch;
    if (!take_plan(t, plan)) {
        turn_off(t, "no memory for the tensors' epochs");
        ret_tracked->epoch = 0;
        return;
    }
    start_candidates(t, plan, sources);
    for (uint32_t i = 0; i < t->nregions; i++)
        if (t->regions[i].track.npages)
            region_scan(t, &t->regions[i]);
    if (!t->on)
        ret_tracked->epoch = 0;
}

void tracker_end(struct tracked *tracked)
{
    pthread_mutex_unlock(&tracked->tracker->lock);
}

const struct cairn_track *tracked_pages(const struct tracked *tracked, uint32_t slice, uint64_t *ret_first)
{
    const struct tracker *t = tracked->tracker;

    if (slice >= t->nregions || !t->regions[slice].track.npages)
        return NULL;
    const struct region *r = &t->regions[slice];
    *ret_first = r->first - (uintptr_t)r->data;
    return &r->track;
}

size_t tracked_page_bytes(const struct tracked *tracked)
{
    return tracked->tracker->dirty.page;
}

void tracked_is_wrong(struct tracked *tracked, const char *tensor)
{
    char why[TRACKER_TEXT];

    (void)snprintf(why, sizeof(why),
                   "tensor \"%.128s\" was written behind the kernel's back, by a device or another process", tensor);
    turn_off(tracked->tracker, why);
    tracked->epoch = 0;
}

/* ---- open, close ----------------------------------------------------------------------------- */

int tracker_new(struct tracker **ret_tracker, struct cairn_error *err)
{
    struct cairn_error why = CAIRN_ERROR_INIT;
    struct tracker *t = calloc(1, sizeof(*t));
    int e = t ? pthread_mutex_init(&t->lock, NULL) : 0;

    if (!t || e) {
        free(t);
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a tracker");
    }
    t->on = dirty_open(&t->dirty, &why) == 0;
    (void)snprintf(t->why, sizeof(t->why), "%.*s", TRACKER_TEXT - 1, why.message);
    *ret_tracker = t;
    return 0;
}

void tracker_free(struct tracker *t, bool forked)
{
    if (!t)
        return;
    for (uint32_t i = 0; i < t->nregions; i++) {
        if (!forked) /* a child may keep the descriptor open, and with it the watches */
            region_stop(t, &t->regions[i]);
        cairn_track_free(&t->regions[i].track);
    }
    free(t->regions);
    dirty_close(&t->dirty);
    if (!forked)
        pthread_mutex_destroy(&t->lock);
    free(t);
}

void tracker_describe(struct tracker *t, char *ret_text, uint64_t *ret_bytes)
{
    uint64_t bytes = 0;

    pthread_mutex_lock(&t->lock);
    for (uint32_t i = 0; i < t->nregions; i++)
        bytes += t->regions[i].track.npages * (uint64_t)t->dirty.page;
    (void)snprintf(ret_text, TRACKER_TEXT, "%s", t->on ? "on" : t->why);
    pthread_mutex_unlock(&t->lock);
    *ret_bytes = bytes;
}
