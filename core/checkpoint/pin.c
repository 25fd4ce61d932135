/* SPDX-License-Identifier: Apache-2.0 */
/*
 *     older intents? --under way--> WAIT --decided--+
 *          |  \--nobody's--> ABORT ------decided----+--> ask again
 *          | none left
 *          v
 *     newest committed? --none at all--> NONE: pinned, start from scratch
 *          |         \--all unreadable--> UNREADABLE: an error, nothing is pinned
 *          v
 *         TRY --readable--> pinned --> FOLLOW by every rank
 *          \--not--> marked unreadable, ask again: the next older one
 *
 * Once pinned only what cannot be read moves it, to an older one and under a higher number. */
#include "core/checkpoint/pin.h"

static ptrdiff_t pin_find(const struct known *k, size_t n, const struct record_pin *pin)
{
    for (size_t i = 0; i < n; i++)
        if (k[i].step == pin->step && k[i].incarnation == pin->ckpt_incarnation && k[i].fate == KNOWN_COMMITTED)
            return (ptrdiff_t)i;
    return -1;
}

/* Older than limit (NULL: any) and of no newer incarnation than this. */
static ptrdiff_t pin_candidate(const struct known *k, size_t n, uint64_t incarnation, const struct known *limit)
{
    ptrdiff_t best = -1;

    for (size_t i = 0; i < n; i++) {
        if (k[i].fate != KNOWN_COMMITTED || k[i].unreadable || k[i].incarnation > incarnation)
            continue;
        if (limit && known_compare(&k[i], limit) >= 0)
            continue;
#ifdef CAIRN_BUG_PIN_TAKES_OLDEST
        if (best < 0 || known_compare(&k[i], &k[best]) < 0)
#else
        if (best < 0 || known_compare(&k[i], &k[best]) > 0)
#endif
            best = (ptrdiff_t)i;
    }
    return best;
}

static struct pin_move pin_follow(const struct known *k, size_t n, const struct record_pin *pin)
{
    ptrdiff_t at = pin->none ? -1 : pin_find(k, n, pin);

    if (!pin->none && at < 0)
        return (struct pin_move){PIN_LOST, -1};
    if (pin->none || !k[at].unreadable)
        return (struct pin_move){PIN_FOLLOW, at};
    ptrdiff_t older = pin_candidate(k, n, pin->incarnation, &k[at]);
    return (struct pin_move){older < 0 ? PIN_UNREADABLE : PIN_TRY, older};
}

struct pin_move pin_next(const struct known *k, size_t n, const struct record_pin *pin, uint64_t incarnation)
{
    ptrdiff_t wait = -1;
    bool any = false;

    if (pin && pin->incarnation > incarnation)
        return (struct pin_move){PIN_FENCED, -1};
    if (pin && pin->incarnation == incarnation)
        return pin_follow(k, n, pin);
    for (size_t i = 0; i < n; i++) {
        any |= k[i].fate == KNOWN_COMMITTED && k[i].incarnation <= incarnation;
        if (k[i].fate != KNOWN_UNDECIDED || k[i].incarnation >= incarnation)
            continue;
#ifdef CAIRN_BUG_PIN_SKIPS_UNDECIDED
        continue;
#endif
        if (!k[i].under_way)
            return (struct pin_move){PIN_ABORT, (ptrdiff_t)i};
        wait = (ptrdiff_t)i;
    }
    if (wait >= 0)
        return (struct pin_move){PIN_WAIT, wait};
    ptrdiff_t best = pin_candidate(k, n, incarnation, NULL);
    if (best >= 0)
        return (struct pin_move){PIN_TRY, best};
    return (struct pin_move){any ? PIN_UNREADABLE : PIN_NONE, -1};
}

struct record_pin pin_record(const struct record_pin *old, uint64_t incarnation, const struct known *tried)
{
#ifdef CAIRN_BUG_PIN_NUMBER_KEPT
    uint64_t number = old ? old->number : 1;
#else
    uint64_t number = old ? old->number + 1 : 1;
#endif
    struct record_pin r = {.number = number, .incarnation = incarnation, .none = !tried};

    if (tried) {
        r.step = tried->step;
        r.ckpt_incarnation = tried->incarnation;
    }
    return r;
}
