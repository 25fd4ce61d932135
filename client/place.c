/* SPDX-License-Identifier: Apache-2.0 */
/* Where a staged slice lies. The arena is mapped and faulted in already, and most slices lie in pages that follow one
 * another: they are given as they are. One whose parts are scattered is given in a second mapping, where the whole
 * image is in one piece; the memory is the same. */
#include "client/save.h"
#include "core/base/error.h"
#include "core/model/units.h"

/* Whether all of the slice's pages follow one another in the arena. */
static bool is_in_one_piece(const struct cairn_save *s, const struct cairn_slice *slice)
{
    uint64_t first = slice->image_offset / CAIRN_PART, last = (slice->image_offset + slice->bytes - 1) / CAIRN_PART;

    for (uint64_t p = first; p < last; p++)
        if (s->pages[p + 1] != s->pages[p] + 1)
            return false;
    return true;
}

static int place_slice(struct cairn_save *s, const struct cairn_slice *slice, void **ret_data, struct cairn_error *err)
{
    if (slice->bytes == 0) {
        *ret_data = arena_page(s->arena, 0); /* an address, and nothing there */
        return 0;
    }
    if (is_in_one_piece(s, slice)) {
        *ret_data = arena_page(s->arena, s->pages[slice->image_offset / CAIRN_PART]) + slice->image_offset % CAIRN_PART;
        return 0;
    }
    int r = s->view ? 0 : arena_view(s->arena, s->pages, s->plan->layout.nparts, &s->view, err);
    if (r == 0)
        *ret_data = s->view + slice->image_offset;
    return r;
}

int cairn_save_place(struct cairn_save *save, uint64_t i, void **ret_data, struct cairn_error *err)
{
    if (!save)
        return cairn_fail(err, CAIRN_E_INVAL, "there is no save");
    int r = session_check(save->session, err);
    if (r < 0)
        return r;
    if (!save->placed)
        return cairn_fail(err, CAIRN_E_INVAL, "step %llu is not staged: nothing of it lies in the arena",
                          (unsigned long long)save->step);
    if (i >= save->nsources)
        return cairn_fail(err, CAIRN_E_NOT_FOUND, "slice %llu of %u", (unsigned long long)i, save->nsources);
    const struct cairn_slice *slice = save_slice(save, i);
    r = place_slice(save, slice, ret_data, err);
    return r < 0 ? cairn_wrap(err, r, "place tensor \"%.200s\"", slice->name) : 0;
}

void save_unmap_view(struct cairn_save *s)
{
    if (s->view)
        arena_view_unmap(s->view, s->plan->layout.nparts);
    s->view = NULL;
}
