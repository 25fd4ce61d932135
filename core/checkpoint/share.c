/* SPDX-License-Identifier: Apache-2.0 */
#include "core/checkpoint/share.h"

static bool is_base(const struct share *s, const struct ckpt_base *b)
{
    return s->base.is_set && b->is_set && s->base.step == b->step && s->base.incarnation == b->incarnation;
}

struct ckpt_base share_choose(const struct share *s, uint64_t step, uint64_t incarnation)
{
    if (s->base.is_set && ckpt_base_is_older(s->base.step, s->base.incarnation, step, incarnation))
        return s->base;
    return (struct ckpt_base){.is_set = false};
}

static void stop(struct share *s)
{
    s->base = (struct ckpt_base){.is_set = false};
}

/* Twice as long each time: what never pays is hardly tried. */
static void pause(struct share *s)
{
    s->next_pause = s->next_pause == 0 ? 1 : s->next_pause * 2 > SHARE_PAUSE_MAX ? SHARE_PAUSE_MAX : s->next_pause * 2;
    s->pause = s->next_pause;
    stop(s);
}

static void shared(struct share *s, uint64_t stored_bytes, unsigned limit)
{
    bool worth = stored_bytes <= s->stored_bytes - s->stored_bytes / SHARE_WORTH;

    s->used++;
    if (!worth && s->used == 1) {
        pause(s);
        return;
    }
    s->next_pause = 0;
    if (!worth || s->used >= limit)
        stop(s);
}

void share_committed(struct share *s, const struct ckpt_base *self, const struct ckpt_base *base, uint64_t revision,
                     uint64_t stored_bytes, unsigned limit)
{
    if (limit == 0)
        return;
    if (is_base(s, base)) {
        shared(s, stored_bytes, limit);
    } else if (base->is_set) {
        ; /* with one that has been replaced since */
    } else if (s->pause > 0) {
        s->pause--;
    } else if (!s->base.is_set) {
        s->base = *self;
        s->revision = revision;
        s->stored_bytes = stored_bytes;
        s->used = 0;
    }
}

bool share_left_behind(const struct ckpt_base *b, const struct record_pin *pin)
{
    return b->is_set && b->incarnation < pin->incarnation &&
           (pin->none || ckpt_base_is_older(pin->step, pin->ckpt_incarnation, b->step, b->incarnation));
}

void share_refused(struct share *s, const struct ckpt_base *base)
{
    if (is_base(s, base))
        stop(s);
}
