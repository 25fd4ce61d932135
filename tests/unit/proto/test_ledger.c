/* SPDX-License-Identifier: Apache-2.0 */
/* Catches: a ledger that is believed though a byte of it changed, a half-written update that cannot be read, layouts
 * that overwrite each other. */
#include "core/proto/ledger.h"

#include "core/base/error.h"
#include "core/model/units.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PAGES 8

struct world {
    char *map;
    uint64_t len; /* of what is worth copying */
    struct cairn_error err;
};

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    struct ledger_header arena = {
        .arena_id = 7, .generation = 3, .rank = 1, .world_size = 2, .uid = 5, .job = "j", .start_id = "s"};

    w->map = calloc(1, ledger_len(PAGES));
    w->err = (struct cairn_error)CAIRN_ERROR_INIT;
    ledger_init(w->map, &arena, PAGES);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;

    free(w->map);
    free(w);
    return 0;
}

static int check(struct world *w)
{
    int r = ledger_copy_len(ledger_header_of(w->map), ledger_len(PAGES), &w->len, &w->err);

    return r < 0 ? r : ledger_check(w->map, w->len, &w->err);
}

/* A save of three parts on these pages. */
static struct ledger_save put(struct world *w, int slot, uint64_t id, const char *layout, const uint32_t pages[3])
{
    struct ledger_save s = {.state = LEDGER_BEGUN,
                            .word = (uint32_t)id,
                            .save = id,
                            .step = id * 10,
                            .incarnation = 2,
                            .digest = cairn_hash128(layout, strlen(layout)),
                            .layout_len = strlen(layout),
                            .nparts = 3,
                            .attempt = 256};

    if (!ledger_find_layout(w->map, s.digest, &s.layout_at, &s.layout_len))
        assert_true(ledger_put_layout(w->map, layout, s.layout_len, &s.layout_at));
    ledger_set_next_save(w->map, id + 1);
    for (uint32_t i = 0; i < 3; i++)
        ledger_set_page(w->map, pages[i], LEDGER_TAKEN, slot, i);
    ledger_put_save(w->map, slot, &s, pages);
    return s;
}

static void test_what_was_written_is_read(void **state)
{
    struct world *w = *state;
    const uint32_t pages[] = {4, 1, 2};
    uint32_t got[3], gone;
    bool kept[3];

    assert_int_equal(check(w), 0);
    put(w, ledger_free_slot(w->map), 1, "layout", pages);
    assert_int_equal(ledger_free_slot(w->map), 1);
    ledger_set_state(w->map, 0, LEDGER_FILLED);
    ledger_set_page(w->map, 1, LEDGER_KEPT, 0, 1);
    assert_int_equal(check(w), 0);
    const struct ledger_save *s = ledger_save_at(w->map, 0);
    assert_int_equal(s->state, LEDGER_FILLED);
    assert_int_equal(s->step, 10);
    assert_int_equal(s->attempt, 256);
    assert_memory_equal(ledger_layout_of(w->map, s), "layout", 6);
    assert_int_equal(ledger_pages_of(w->map, 0, got, kept, &gone, &w->err), 0);
    assert_memory_equal(got, pages, sizeof pages);
    assert_int_equal(gone, 0);
    assert_true(kept[1] && !kept[0] && !kept[2]);
    assert_null(ledger_save_at(w->map, 1));
    assert_int_equal(ledger_header_of(w->map)->generation, 3);
}

/* Catches a flag that is lost, one that another version's daemon would need to know. */
static void test_flags(void **state)
{
    struct world *w = *state;
    const uint32_t pages[] = {4, 1, 2};
    struct ledger_save s = put(w, 0, 1, "layout", pages);

    assert_int_equal(ledger_save_at(w->map, 0)->flags, 0);
    s.flags = LEDGER_PACKED;
    s.pad = 7;
    ledger_put_save(w->map, 0, &s, pages);
    assert_int_equal(check(w), 0);
    assert_int_equal(ledger_save_at(w->map, 0)->flags, LEDGER_PACKED);
    s.flags = 2;
    ledger_put_save(w->map, 0, &s, pages);
    assert_int_equal(check(w), CAIRN_E_CORRUPT);
    assert_non_null(strstr(w->err.message, "unknown flags"));
}

static void test_equal_layouts_are_stored_once_and_others_beside(void **state)
{
    struct world *w = *state;
    const uint32_t a[] = {0, 1, 2}, b[] = {3, 4, 5};
    struct ledger_save first = put(w, 0, 1, "layout", a), second = put(w, 1, 2, "layout", b);

    assert_int_equal(first.layout_at, second.layout_at);
    ledger_set_state(w->map, 1, LEDGER_EMPTY);
    second = put(w, 1, 2, "another one", b);
    assert_true(second.layout_at >= 6);
    assert_int_equal(check(w), 0);
    ledger_set_state(w->map, 0, LEDGER_EMPTY); /* its room is free again, beside the other's */
    first = put(w, 0, 3, "third", a);
    assert_int_equal(first.layout_at, 0);
    assert_int_equal(check(w), 0);
}

static void test_no_room_for_a_layout(void **state)
{
    struct world *w = *state;
    uint64_t at;

    assert_false(ledger_put_layout(w->map, w->map, LEDGER_HEAP + 1, &at));
    assert_false(ledger_put_layout(w->map, w->map, 0, &at));
}

/* The daemon died between taking a page and writing the save, or between giving the save up and freeing its pages. */
static void test_pages_of_an_empty_save_are_nobodys(void **state)
{
    struct world *w = *state;
    const uint32_t pages[] = {0, 1, 2};

    ledger_set_page(w->map, 5, LEDGER_TAKEN, 4, 7);
    assert_int_equal(check(w), 0);
    put(w, 0, 1, "layout", pages);
    ledger_set_state(w->map, 0, LEDGER_EMPTY);
    assert_int_equal(check(w), 0);
    assert_null(ledger_save_at(w->map, 0));
}

static void test_a_page_that_went_to_another_save_is_gone(void **state)
{
    struct world *w = *state;
    const uint32_t a[] = {0, 1, 2}, b[] = {2, 3, 4};
    uint32_t got[3], gone;

    put(w, 0, 1, "layout", a);
    ledger_set_state(w->map, 0, LEDGER_DONE);
    put(w, 1, 2, "layout", b);
    assert_int_equal(check(w), 0);
    assert_int_equal(ledger_pages_of(w->map, 0, got, NULL, &gone, &w->err), 0);
    assert_int_equal(gone, 1);
    assert_int_equal(got[2], LEDGER_NO_PAGE);
    assert_int_equal(ledger_pages_of(w->map, 1, got, NULL, &gone, &w->err), 0);
    assert_int_equal(gone, 0);
}

static void test_every_changed_byte_is_seen(void **state)
{
    struct world *w = *state;
    const uint32_t pages[] = {4, 1, 2};
    const struct ledger_header *h = ledger_header_of(w->map);
    uint32_t got[3], gone;

    put(w, 0, 1, "layout", pages);
    assert_int_equal(check(w), 0);
    const struct {
        uint64_t at, len;
    } ranges[] = {{0, offsetof(struct ledger_header, next_save)},
                  {h->saves_at + 4, sizeof(struct ledger_save) - 4},
                  {h->heap_at, 6}};
    for (unsigned r = 0; r < 3; r++) {
        for (uint64_t at = ranges[r].at; at < ranges[r].at + ranges[r].len; at++) {
            w->map[at] ^= 4;
            assert_true(ledger_check(w->map, w->len, &w->err) < 0);
            w->map[at] ^= 4;
        }
    }
    /* A page's entry has no checksum of its own: the save's pages have one together. */
    ledger_set_page(w->map, 4, LEDGER_TAKEN, 0, 1);
    ledger_set_page(w->map, 1, LEDGER_TAKEN, 0, 0);
    assert_int_equal(check(w), 0);
    assert_int_equal(ledger_pages_of(w->map, 0, got, NULL, &gone, &w->err), CAIRN_E_CORRUPT);
    ledger_set_page(w->map, 1, LEDGER_TAKEN, 0, 1);
    assert_int_equal(ledger_pages_of(w->map, 0, got, NULL, &gone, &w->err), CAIRN_E_CORRUPT); /* twice part 1 */
    ledger_set_page(w->map, 1, LEDGER_TAKEN, 0, 3);
    assert_int_equal(check(w), CAIRN_E_CORRUPT);
}

static void test_what_two_saves_cannot_share(void **state)
{
    struct world *w = *state;
    const uint32_t a[] = {0, 1, 2}, b[] = {3, 4, 5};

    put(w, 0, 1, "layout", a);
    put(w, 1, 1, "layout", b);
    assert_int_equal(check(w), CAIRN_E_CORRUPT);
}

static void test_another_version_says_which(void **state)
{
    struct world *w = *state;

    ((struct ledger_header *)(void *)w->map)->version = 9;
    assert_int_equal(check(w), CAIRN_E_UNSUPPORTED);
    assert_non_null(strstr(w->err.message, "version 9"));
}

static void test_lengths_are_checked_before_they_are_used(void **state)
{
    struct world *w = *state;
    uint64_t len;

    assert_true(ledger_copy_len(ledger_header_of(w->map), ledger_len(PAGES) - 1, &len, &w->err) < 0);
    assert_int_equal(check(w), 0);
    assert_true(ledger_check(w->map, w->len - 1, &w->err) < 0);
    assert_true(ledger_check(w->map, 10, &w->err) < 0);
    ((struct ledger_header *)(void *)w->map)->heap_used = LEDGER_HEAP + 1;
    assert_true(ledger_copy_len(ledger_header_of(w->map), ledger_len(PAGES), &len, &w->err) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_was_written_is_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flags, setup, teardown),
        cmocka_unit_test_setup_teardown(test_equal_layouts_are_stored_once_and_others_beside, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_room_for_a_layout, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pages_of_an_empty_save_are_nobodys, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_page_that_went_to_another_save_is_gone, setup, teardown),
        cmocka_unit_test_setup_teardown(test_every_changed_byte_is_seen, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_two_saves_cannot_share, setup, teardown),
        cmocka_unit_test_setup_teardown(test_another_version_says_which, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lengths_are_checked_before_they_are_used, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
