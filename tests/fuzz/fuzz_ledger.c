/* SPDX-License-Identifier: Apache-2.0 */
/* Untrusted ledgers. Checksums are made right again for most inputs: a forger can do that, and behind them lies the
 * rest of the validation. */
#include "core/proto/ledger.h"

#include "core/base/bytes.h"
#include "core/model/layout.h"

#include <stdlib.h>
#include <string.h>

#define PAGES 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed(uint8_t *buf, size_t room);

size_t fuzz_seed(uint8_t *buf, size_t room)
{
    static const char layout[] = "as good as any";
    struct ledger_header arena = {.arena_id = 7, .generation = 1, .world_size = 2, .job = "j", .start_id = "s"};
    struct ledger_save s = {
        .state = LEDGER_FILLED, .save = 1, .step = 3, .incarnation = 1, .nparts = 3, .flags = LEDGER_PACKED};
    const uint32_t pages[] = {5, 6, 9};
    char *map = calloc(1, ledger_len(PAGES));
    uint64_t len = 0;

    if (!map)
        abort();
    ledger_init(map, &arena, PAGES);
    ledger_set_next_save(map, 2);
    s.digest = cairn_hash128(layout, sizeof layout);
    s.layout_len = sizeof layout;
    if (!ledger_put_layout(map, layout, sizeof layout, &s.layout_at))
        abort();
    for (uint32_t i = 0; i < 3; i++)
        ledger_set_page(map, pages[i], LEDGER_TAKEN, 0, i);
    ledger_put_save(map, 0, &s, pages);
    if (ledger_copy_len(ledger_header_of(map), ledger_len(PAGES), &len, NULL) < 0 || len > room ||
        ledger_check(map, len, NULL) < 0)
        abort();
    memcpy(buf, map, len);
    free(map);
    return len;
}

static void make_right(char *data, size_t len)
{
    struct ledger_header *h = (void *)data;
    size_t from = offsetof(struct ledger_save, word), to = offsetof(struct ledger_save, check);

    if (len < sizeof *h || h->saves_at % 8 || h->saves_at > len ||
        len - h->saves_at < LEDGER_SAVES * sizeof(struct ledger_save))
        return;
    h->check = cairn_hash64(h, offsetof(struct ledger_header, check), LEDGER_MAGIC);
    for (int i = 0; i < 2; i++) {
        struct ledger_save *s = (struct ledger_save *)(void *)(data + h->saves_at) + i;
        s->check = cairn_hash64((const char *)s + from, to - from, LEDGER_MAGIC);
    }
}

static void look_into(const void *data)
{
    for (int i = 0; i < LEDGER_SAVES; i++) {
        const struct ledger_save *s = ledger_save_at(data, i);
        uint32_t *pages = s ? malloc((s->nparts + 1) * sizeof *pages) : NULL;
        bool *kept = s ? malloc(s->nparts + 1) : NULL;
        uint32_t gone = 0;
        struct cairn_layout l;
        if (pages && kept && ledger_pages_of(data, i, pages, kept, &gone, NULL) == 0 && gone > s->nparts)
            abort();
        cairn_layout_init(&l);
        if (s)
            (void)cairn_layout_decode(&l, ledger_layout_of(data, s), s->layout_len, NULL);
        cairn_layout_free(&l);
        free(pages);
        free(kept);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char *copy = malloc(len + 8); /* aligned, and no byte more than it says for the sanitizer to see */
    uint64_t want = 0;

    if (!copy)
        return 0;
    memcpy(copy, data, len);
    if (len > 0 && data[len - 1] % 8)
        make_right(copy, len);
    if (len >= sizeof(struct ledger_header) &&
        ledger_copy_len(ledger_header_of(copy), ledger_header_of(copy)->len, &want, NULL) == 0 && want <= len &&
        ledger_check(copy, want, NULL) == 0)
        look_into(copy);
    (void)ledger_check(copy, len, NULL);
    free(copy);
    return 0;
}
