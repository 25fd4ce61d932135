/* SPDX-License-Identifier: Apache-2.0 */
/* What files there are: for whoever goes through all of them. */
#include "daemon/peer/keep_internal.h"

#include "core/base/error.h"

#include <stdlib.h>
#include <string.h>

static bool of_job(const struct kept_stream *s, const char *job)
{
    return !job[0] || strcmp(s->id.job, job) == 0;
}

/* One whose header does not read belongs to no job that we know: it is named to whoever asks for all. */
static bool is_listed(const struct kept_stream *s, const char *job)
{
    return s->state != STREAM_WRITING && (s->broken ? !job[0] : of_job(s, job));
}

int keep_names(struct keep *k, const char *job, char ***ret_names, size_t *ret_n, struct cairn_error *err)
{
    size_t n = 0, room = 0;

    list_for_each (it, &k->streams)
        room += is_listed(container_of(it, struct kept_stream, link), job);
    char **names = calloc(room + 1, sizeof *names);
    list_for_each (it, &k->streams) {
        const struct kept_stream *s = container_of(it, struct kept_stream, link);
        if (names && n < room && is_listed(s, job) && (names[n] = strdup(s->name)))
            n++;
    }
    if (names && n == room) {
        *ret_names = names;
        *ret_n = n;
        return 0;
    }
    for (size_t i = 0; i < n; i++)
        free(names[i]);
    free(names);
    return cairn_fail(err, CAIRN_E_NOMEM, "list %zu stream files", room);
}

static int compare_ids(const struct cairn_stream_id *a, const struct cairn_stream_id *b)
{
    int by_job = strcmp(a->job, b->job);

    if (by_job)
        return by_job;
    if (a->step != b->step)
        return a->step < b->step ? -1 : 1;
    if (a->incarnation != b->incarnation)
        return a->incarnation < b->incarnation ? -1 : 1;
    return strcmp(a->node, b->node);
}

/* Puts it in its place among the n smallest so far. */
static unsigned take_id(const struct cairn_stream_id *id, struct cairn_stream_id *ids, unsigned n, unsigned max)
{
    unsigned at = n;

    while (at > 0 && compare_ids(id, &ids[at - 1]) < 0)
        at--;
    if (at == max || (at > 0 && compare_ids(id, &ids[at - 1]) == 0))
        return n;
    if (n == max)
        n--;
    memmove(&ids[at + 1], &ids[at], (n - at) * sizeof *ids);
    ids[at] = *id;
    return n + 1;
}

unsigned keep_ids(const struct keep *k, const char *job, const struct cairn_stream_id *after, unsigned max,
                  struct cairn_stream_id *ret_ids)
{
    unsigned n = 0;

    list_for_each (it, &k->streams) {
        const struct kept_stream *s = container_of(it, struct kept_stream, link);
        if (!s->broken && of_job(s, job) && (!after || compare_ids(&s->id, after) > 0))
            n = take_id(&s->id, ret_ids, n, max);
    }
    return n;
}

bool keep_next_job(const struct keep *k, const char *after, char ret_job[CAIRN_MAX_NAME + 1], uint64_t *ret_highest)
{
    const struct cairn_stream_id *best = NULL;
    uint64_t highest = 0;

    list_for_each (it, &k->streams) {
        const struct kept_stream *s = container_of(it, struct kept_stream, link);
        if (s->broken || strcmp(s->id.job, after) <= 0)
            continue;
        int order = best ? strcmp(s->id.job, best->job) : -1;
        if (order < 0) {
            best = &s->id;
            highest = 0;
        }
        if (order <= 0 && s->id.incarnation > highest)
            highest = s->id.incarnation;
    }
    if (best) {
        memcpy(ret_job, best->job, CAIRN_MAX_NAME + 1);
        *ret_highest = highest;
    }
    return best != NULL;
}
