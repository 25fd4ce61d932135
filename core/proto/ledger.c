/* SPDX-License-Identifier: Apache-2.0 */
/* A page's entry is one word, so that it is never half-written:
 *
 *     bits 0..31 part   32..47 slot of the save + 1, or 0   48..55 enum ledger_page   56..63 zero */
#include "core/proto/ledger.h"

#include <string.h>

#include "core/base/bytes.h"
#include "core/base/error.h"
#include "core/model/units.h"

#define PAGES_AT CAIRN_BLOCK

_Static_assert(sizeof(struct ledger_header) <= PAGES_AT, "a ledger's header has its own block");
_Static_assert(sizeof(struct ledger_save) == 128, "a save's entry has no hidden padding");
_Static_assert(offsetof(struct ledger_header, check) % 8 == 0, "a ledger's header has no hidden padding");

static uint64_t saves_at(uint32_t npages)
{
    return round_up_u64(PAGES_AT + npages * sizeof(uint64_t), CAIRN_BLOCK);
}

static uint64_t heap_at(uint32_t npages)
{
    return round_up_u64(saves_at(npages) + LEDGER_SAVES * sizeof(struct ledger_save), CAIRN_BLOCK);
}

uint64_t ledger_len(uint32_t npages)
{
    return heap_at(npages) + LEDGER_HEAP;
}

static uint64_t header_check(const struct ledger_header *h)
{
    return cairn_hash64(h, offsetof(struct ledger_header, check), LEDGER_MAGIC);
}

static uint64_t save_check(const struct ledger_save *s)
{
    size_t from = offsetof(struct ledger_save, word);

    return cairn_hash64((const char *)s + from, offsetof(struct ledger_save, check) - from, LEDGER_MAGIC);
}

static uint64_t pages_sum(const uint32_t *pages, uint32_t n)
{
    return cairn_hash64(pages, n * sizeof *pages, LEDGER_MAGIC);
}

/* ---- writing --------------------------------------------------------------------------------- */

static struct ledger_save *slot_of(void *map, int slot)
{
    const struct ledger_header *h = map;

    return (struct ledger_save *)(void *)((char *)map + h->saves_at) + slot;
}

void ledger_init(void *map, const struct ledger_header *arena, uint32_t npages)
{
    struct ledger_header *h = map;

    *h = *arena;
    h->version = LEDGER_VERSION;
    h->header_len = sizeof *h;
    h->len = ledger_len(npages);
    h->pages_at = PAGES_AT;
    h->saves_at = saves_at(npages);
    h->heap_at = heap_at(npages);
    h->heap_len = LEDGER_HEAP;
    h->npages = npages;
    h->nsaves = LEDGER_SAVES;
    memset(h->pad, 0, sizeof h->pad);
    h->next_save = 1;
    h->heap_used = 0;
    h->magic = LEDGER_MAGIC;
    h->check = header_check(h);
}

void ledger_set_next_save(void *map, uint64_t next_save)
{
    struct ledger_header *h = map;

    __atomic_store_n(&h->next_save, next_save, __ATOMIC_RELEASE);
}

void ledger_set_page(void *map, uint32_t page, int state, int slot, uint32_t part)
{
    const struct ledger_header *h = map;
    uint64_t *entry = (uint64_t *)(void *)((char *)map + h->pages_at) + page;
    uint64_t v = (uint64_t)part | (uint64_t)(slot + 1) << 32 | (uint64_t)state << 48;

    __atomic_store_n(entry, state == LEDGER_FREE ? 0 : v, __ATOMIC_RELEASE);
}

bool ledger_find_layout(const void *map, struct hash128 digest, uint64_t *ret_at, uint64_t *ret_len)
{
    for (int i = 0; i < LEDGER_SAVES; i++) {
        const struct ledger_save *s = ledger_save_at(map, i);
        if (!s || s->digest.low != digest.low || s->digest.high != digest.high)
            continue;
        *ret_at = s->layout_at;
        *ret_len = s->layout_len;
        return true;
    }
    return false;
}

/* The first save's layout that lies in the way of [at, at + len), or NULL. */
static const struct ledger_save *in_the_way(const void *map, uint64_t at, uint64_t len)
{
    for (int i = 0; i < LEDGER_SAVES; i++) {
        const struct ledger_save *s = ledger_save_at(map, i);
        if (s && s->layout_at < at + len && at < s->layout_at + s->layout_len)
            return s;
    }
    return NULL;
}

bool ledger_put_layout(void *map, const void *layout, uint64_t len, uint64_t *ret_at)
{
    struct ledger_header *h = map;
    const struct ledger_save *other;
    uint64_t at = 0;

    if (len == 0 || len > h->heap_len)
        return false;
    while (at <= h->heap_len - len && (other = in_the_way(map, at, len)))
        at = round_up_u64(other->layout_at + other->layout_len, 64);
    if (at > h->heap_len - len)
        return false;
    memcpy((char *)map + h->heap_at + at, layout, len);
    if (at + len > h->heap_used)
        __atomic_store_n(&h->heap_used, at + len, __ATOMIC_RELEASE);
    *ret_at = at;
    return true;
}

void ledger_put_save(void *map, int slot, struct ledger_save *s, const uint32_t *pages)
{
    struct ledger_save *to = slot_of(map, slot);
    uint32_t state = s->state;

    s->pad = 0;
    memset(s->reserved, 0, sizeof s->reserved);
    s->pages_sum = pages_sum(pages, s->nparts);
    s->check = save_check(s);
    s->state = LEDGER_EMPTY;
    *to = *s;
    s->state = state;
    ledger_set_state(map, slot, (int)state);
}

void ledger_set_state(void *map, int slot, int state)
{
    __atomic_store_n(&slot_of(map, slot)->state, (uint32_t)state, __ATOMIC_RELEASE);
}

int ledger_free_slot(const void *map)
{
    for (int i = 0; i < LEDGER_SAVES; i++)
        if (!ledger_save_at(map, i))
            return i;
    return -1;
}

/* ---- reading --------------------------------------------------------------------------------- */

static int bad(struct cairn_error *err, const char *what)
{
    return cairn_fail(err, CAIRN_E_CORRUPT, "the ledger does not verify: %s", what);
}

static int check_header(const struct ledger_header *h, uint64_t file_len, struct cairn_error *err)
{
    if (h->magic != LEDGER_MAGIC)
        return cairn_fail(err, CAIRN_E_CORRUPT, "this is no ledger: magic %016llx", (unsigned long long)h->magic);
    if (h->version != LEDGER_VERSION)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "a ledger of version %u, this cairnd reads %d", h->version,
                          LEDGER_VERSION);
    if (h->header_len != sizeof *h || h->check != header_check(h))
        return bad(err, "its header's checksum");
    if (h->npages == 0 || h->npages > CAIRN_MAX_IMAGE / CAIRN_PART || h->nsaves != LEDGER_SAVES)
        return bad(err, "its counts");
    if (h->pages_at != PAGES_AT || h->saves_at != saves_at(h->npages) || h->heap_at != heap_at(h->npages) ||
        h->heap_len != LEDGER_HEAP || h->len != ledger_len(h->npages) || h->len != file_len)
        return bad(err, "its lengths");
    if (!memchr(h->job, 0, sizeof h->job) || !memchr(h->start_id, 0, sizeof h->start_id))
        return bad(err, "a string is not terminated");
    if (h->rank >= h->world_size || h->generation == 0 || h->next_save == 0 || h->heap_used > h->heap_len)
        return bad(err, "its numbers");
    return 0;
}

int ledger_copy_len(const struct ledger_header *h, uint64_t file_len, uint64_t *ret_len, struct cairn_error *err)
{
    int r = check_header(h, file_len, err);

    if (r == 0)
        *ret_len = h->heap_at + h->heap_used;
    return r;
}

const struct ledger_save *ledger_save_at(const void *data, int slot)
{
    const struct ledger_header *h = data;
    const struct ledger_save *s = (const struct ledger_save *)(const void *)((const char *)data + h->saves_at) + slot;

    return __atomic_load_n(&s->state, __ATOMIC_ACQUIRE) == LEDGER_EMPTY ? NULL : s;
}

const void *ledger_layout_of(const void *data, const struct ledger_save *s)
{
    return (const char *)data + ledger_header_of(data)->heap_at + s->layout_at;
}

static int check_save(const void *data, const struct ledger_save *s, struct cairn_error *err)
{
    const struct ledger_header *h = data;

    if (s->state >= LEDGER_STATES)
        return bad(err, "a save's state");
    if (s->check != save_check(s))
        return bad(err, "a save's checksum");
    if (s->word >= LOCAL_FILLED_WORDS || s->save == 0 || s->save >= h->next_save || s->nparts > h->npages)
        return bad(err, "a save's numbers");
    if (s->layout_len == 0 || s->layout_len > CAIRN_MAX_LAYOUT || s->layout_at > h->heap_used ||
        s->layout_len > h->heap_used - s->layout_at)
        return bad(err, "a save's layout lies outside");
    if (s->flags & ~(uint32_t)LEDGER_PACKED)
        return bad(err, "a save has unknown flags");
    for (size_t i = 0; i < sizeof s->reserved / sizeof s->reserved[0]; i++)
        if (s->reserved[i] || s->pad)
            return bad(err, "a reserved field is not zero");
    struct hash128 digest = cairn_hash128(ledger_layout_of(data, s), s->layout_len);
    if (digest.low != s->digest.low || digest.high != s->digest.high)
        return bad(err, "a save's layout is not the one it names");
    return 0;
}

/* Ids name saves; a word tells one save that it is filled, so no two under way may share it. */
static bool clash(const struct ledger_save *a, const struct ledger_save *b)
{
    return a->save == b->save || (a->word == b->word && a->state != LEDGER_DONE && b->state != LEDGER_DONE);
}

static int check_saves(const void *data, struct cairn_error *err)
{
    for (int i = 0; i < LEDGER_SAVES; i++) {
        const struct ledger_save *s = ledger_save_at(data, i);
        int r = s ? check_save(data, s, err) : 0;
        if (r < 0)
            return r;
        for (int k = 0; s && k < i; k++) {
            const struct ledger_save *other = ledger_save_at(data, k);
            if (other && clash(s, other))
                return bad(err, "two saves share an id or a word");
        }
    }
    return 0;
}

static uint64_t page_entry(const void *data, uint32_t page)
{
    const uint64_t *pages = (const uint64_t *)(const void *)((const char *)data + ledger_header_of(data)->pages_at);

    return __atomic_load_n(&pages[page], __ATOMIC_ACQUIRE);
}

static int page_slot(uint64_t entry)
{
    return (int)((entry >> 32) & 0xffff) - 1;
}

static int check_pages(const void *data, struct cairn_error *err)
{
    for (uint32_t p = 0; p < ledger_header_of(data)->npages; p++) {
        uint64_t e = page_entry(data, p);
        int slot = page_slot(e);
        if (e >> 56 || ((e >> 48) & 0xff) > LEDGER_KEPT || slot >= LEDGER_SAVES)
            return bad(err, "a page's entry");
        const struct ledger_save *s = slot >= 0 ? ledger_save_at(data, slot) : NULL;
        if (s && (uint32_t)e >= s->nparts)
            return bad(err, "a page holds a part that its save does not have");
    }
    return 0;
}

int ledger_check(const void *data, uint64_t len, struct cairn_error *err)
{
    const struct ledger_header *h = data;

    if (len < sizeof *h)
        return cairn_fail(err, CAIRN_E_CORRUPT, "a ledger of %llu bytes", (unsigned long long)len);
    int r = check_header(h, h->len, err);
    if (r == 0 && len != h->heap_at + h->heap_used)
        r = bad(err, "its length");
    if (r == 0)
        r = check_saves(data, err);
    return r < 0 ? r : check_pages(data, err);
}

int ledger_pages_of(const void *data, int slot, uint32_t *pages, bool *kept, uint32_t *ret_gone,
                    struct cairn_error *err)
{
    const struct ledger_save *s = ledger_save_at(data, slot);
    uint32_t found = 0;

    for (uint32_t part = 0; part < s->nparts; part++)
        pages[part] = LEDGER_NO_PAGE;
    for (uint32_t p = 0; p < ledger_header_of(data)->npages; p++) {
        uint64_t e = page_entry(data, p);
        uint32_t part = (uint32_t)e;
        if (page_slot(e) != slot)
            continue;
        if (pages[part] != LEDGER_NO_PAGE)
            return bad(err, "two pages hold the same part");
        pages[part] = p;
        if (kept)
            kept[part] = ((e >> 48) & 0xff) == LEDGER_KEPT;
        found++;
    }
    *ret_gone = s->nparts - found;
    if (found == s->nparts && pages_sum(pages, s->nparts) != s->pages_sum)
        return bad(err, "a save's pages are not those it was granted");
    return 0;
}
