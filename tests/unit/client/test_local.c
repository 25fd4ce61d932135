/* SPDX-License-Identifier: Apache-2.0 */
/* local_check refuses every message that is not exactly one of its types. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/proto/local.h"

union any {
    struct local_header h;
    struct local_open open;
    struct local_opened opened;
    struct local_layout layout;
    struct local_begin begin;
    struct local_grant grant;
    struct local_save save;
    struct local_event event;
    struct local_text text;
    struct local_error error;
    struct local_latest latest;
    struct local_restore_open restore_open;
    struct local_restore_opened restore_opened;
    struct local_read read;
    struct local_read_done read_done;
    struct local_query query;
    struct local_command command;
    struct local_hand_back hand_back;
    struct local_resume resume;
    struct local_parts parts;
    struct local_sums sums;
    struct local_packed packed;
    char bytes[LOCAL_MAX_MESSAGE];
};

struct type {
    int type;
    size_t len;
    unsigned nfds;
};
static const struct type types[] = {
    {LOCAL_OPEN, sizeof(struct local_open), 0},
    {LOCAL_LAYOUT, sizeof(struct local_layout), 1},
    {LOCAL_BEGIN, sizeof(struct local_begin), 0},
    {LOCAL_FILLED, sizeof(struct local_save), 0},
    {LOCAL_DROP, sizeof(struct local_drop), 0},
    {LOCAL_WHY, sizeof(struct local_save), 0},
    {LOCAL_LATEST, sizeof(struct local_latest), 0},
    {LOCAL_RESTORE_OPEN, sizeof(struct local_restore_open), 0},
    {LOCAL_READ, sizeof(struct local_read), 0},
    {LOCAL_RESTORE_CLOSE, sizeof(struct local_restore_close), 0},
    {LOCAL_QUERY, sizeof(struct local_query), 0},
    {LOCAL_COMMAND, sizeof(struct local_command), 0},
    {LOCAL_HAND_BACK, sizeof(struct local_hand_back), 2},
    {LOCAL_RESUME, sizeof(struct local_resume), 0},
    {LOCAL_PLACES, sizeof(struct local_places), 0},
    {LOCAL_WAIT, sizeof(struct local_save), 0},
    {LOCAL_PARTS, sizeof(struct local_parts), 0},
    {LOCAL_SUMS, sizeof(struct local_sums), 1},
    {LOCAL_PACKED, sizeof(struct local_packed) + 2 * sizeof(uint32_t), 0},
    {LOCAL_ERROR, sizeof(struct local_error), 0},
    {LOCAL_OK, sizeof(struct local_ok), 0},
    {LOCAL_OPENED, sizeof(struct local_opened), 2},
    {LOCAL_GRANT, sizeof(struct local_grant) + 2 * sizeof(struct local_run), 0},
    {LOCAL_EVENT, sizeof(struct local_event), 0},
    {LOCAL_TEXT, sizeof(struct local_text), 0},
    {LOCAL_LATEST_IS, sizeof(struct local_latest_is), 0},
    {LOCAL_RESTORE_OPENED, sizeof(struct local_restore_opened), 2},
    {LOCAL_READ_DONE, sizeof(struct local_read_done), 0},
    {LOCAL_ANSWER, sizeof(struct local_answer), 1},
    {LOCAL_PLACES_ARE, sizeof(struct local_places_are), 1},
};
#define NTYPES (sizeof(types) / sizeof(types[0]))

static union any m;

/* The smallest good message of a type. */
static void good(const struct type *t)
{
    memset(&m, 0, sizeof(m));
    local_header_init(&m.h, t->type, t->len, t->type == LOCAL_EVENT ? 0 : 1);
    switch (t->type) {
    case LOCAL_LAYOUT:
        m.layout.len = 1;
        break;
    case LOCAL_FILLED:
    case LOCAL_WHY:
    case LOCAL_WAIT:
        m.save.save = 1;
        break;
    case LOCAL_RESUME:
        m.resume.save = 1;
        break;
    case LOCAL_PARTS:
        m.parts.save = m.parts.parts = 1;
        break;
    case LOCAL_SUMS:
        m.sums.save = 1;
        break;
    case LOCAL_PACKED:
        m.packed.save = 1;
        m.packed.n = 2;
        break;
    case LOCAL_READ:
        m.read.part_mask = 1;
        break;
    case LOCAL_QUERY:
        m.query.kind = CAIRN_QUERY_LIST;
        break;
    case LOCAL_ERROR:
        m.error.code = CAIRN_E_BUSY;
        break;
    case LOCAL_EVENT:
        m.event.save = 1;
        m.event.state = CAIRN_DURABLE;
        break;
    case LOCAL_GRANT:
        m.grant.save = 1;
        m.grant.nruns = 2;
        m.grant.runs[0] = (struct local_run){5, 1};
        m.grant.runs[1] = (struct local_run){0, 2};
        break;
    case LOCAL_RESTORE_OPENED:
        m.restore_opened.slots = m.restore_opened.slot_parts = 4;
        m.restore_opened.catalog_bytes = 1;
        break;
    default:
        break;
    }
}

static const struct type *find(int type)
{
    for (size_t i = 0; i < NTYPES; i++)
        if (types[i].type == type)
            return &types[i];
    fail();
    return NULL;
}

static void refused(const struct type *t)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    assert_int_equal(local_check(&m, t->len, t->nfds, &err), CAIRN_E_PROTOCOL);
    assert_true(strlen(err.message) > 0);
}

static void test_good(void **state)
{
    (void)state;
    for (size_t i = 0; i < NTYPES; i++) {
        good(&types[i]);
        assert_int_equal(local_check(&m, types[i].len, types[i].nfds, NULL), types[i].type);
        assert_string_not_equal(local_type_name(types[i].type), "unknown");
    }
    assert_string_equal(local_type_name(-1), "unknown");
    assert_string_equal(local_type_name(60), "unknown");
    assert_string_equal(local_type_name(1 << 20), "unknown");
}

/* Catches a length that is only compared in one direction, and a header that is trusted over the datagram. */
static void test_lengths(void **state)
{
    (void)state;
    for (size_t i = 0; i < NTYPES; i++) {
        const struct type *t = &types[i];
        for (int d = -8; d <= 8; d += 4) {
            if (d == 0)
                continue;
            good(t);
            m.h.len = (uint32_t)((int)t->len + d);
            assert_int_equal(local_check(&m, m.h.len, t->nfds, NULL), CAIRN_E_PROTOCOL);
            assert_int_equal(local_check(&m, t->len, t->nfds, NULL), CAIRN_E_PROTOCOL);
        }
        good(t);
        for (size_t len = 0; len < sizeof(m.h); len++)
            assert_int_equal(local_check(&m, len, t->nfds, NULL), CAIRN_E_PROTOCOL);
    }
    assert_int_equal(local_check(&m, LOCAL_MAX_MESSAGE + 1, 0, NULL), CAIRN_E_PROTOCOL);
}

static void test_headers(void **state)
{
    (void)state;
    for (size_t i = 0; i < NTYPES; i++) {
        const struct type *t = &types[i];
        good(t);
        m.h.magic ^= 1;
        refused(t);
        good(t);
        m.h.version++;
        refused(t);
        good(t);
        assert_int_equal(local_check(&m, t->len, t->nfds + 1, NULL), CAIRN_E_PROTOCOL);
        good(t);
        m.h.id = t->type == LOCAL_EVENT ? 1 : 0;
        if (t->type != LOCAL_ERROR)
            refused(t);
    }
    for (int type = 0; type < 200; type++) {
        good(&types[0]);
        m.h.type = (uint16_t)type;
        bool known = false;
        for (size_t i = 0; i < NTYPES; i++)
            known |= types[i].type == type;
        if (!known)
            refused(&types[0]);
    }
}

static void test_descriptors(void **state)
{
    (void)state;
    good(find(LOCAL_LAYOUT));
    assert_int_equal(local_check(&m, sizeof(m.layout), 0, NULL), CAIRN_E_PROTOCOL);
    good(find(LOCAL_SUMS));
    assert_int_equal(local_check(&m, sizeof(m.sums), 0, NULL), CAIRN_E_PROTOCOL);
    good(find(LOCAL_OPENED)); /* an observer has no arena */
    assert_int_equal(local_check(&m, sizeof(m.opened), 0, NULL), LOCAL_OPENED);
    good(find(LOCAL_RESTORE_OPENED));
    assert_int_equal(local_check(&m, sizeof(m.restore_opened), 1, NULL), CAIRN_E_PROTOCOL);
}

#define REFUSED(type_, change_) \
    do {                        \
        good(find(type_));      \
        change_;                \
        refused(find(type_));   \
    } while (0)
#define UNTERMINATED(type_, field_) REFUSED(type_, memset(field_, 'x', sizeof(field_)))

static void test_strings(void **state)
{
    (void)state;
    UNTERMINATED(LOCAL_OPEN, m.open.job);
    UNTERMINATED(LOCAL_OPEN, m.open.start_id);
    UNTERMINATED(LOCAL_OPENED, m.opened.node);
    UNTERMINATED(LOCAL_EVENT, m.event.message);
    UNTERMINATED(LOCAL_TEXT, m.text.text);
    UNTERMINATED(LOCAL_ERROR, m.error.message);
    UNTERMINATED(LOCAL_RESTORE_OPEN, m.restore_open.job);
    UNTERMINATED(LOCAL_QUERY, m.query.job);
    UNTERMINATED(LOCAL_COMMAND, m.command.job);
    UNTERMINATED(LOCAL_COMMAND, m.command.argument);
}

static void test_values(void **state)
{
    (void)state;
    REFUSED(LOCAL_OPEN, m.open.flags = 4);
    REFUSED(LOCAL_OPEN, m.open.pad[1] = 1);
    REFUSED(LOCAL_OPEN, m.open.reserved[7] = 1);
    REFUSED(LOCAL_OPENED, m.opened.reserved[0] = 1);
    REFUSED(LOCAL_LAYOUT, m.layout.len = 0);
    REFUSED(LOCAL_BEGIN, m.begin.flags = 2);
    REFUSED(LOCAL_BEGIN, m.begin.reserved[3] = 1);
    REFUSED(LOCAL_GRANT, m.grant.save = 0);
    REFUSED(LOCAL_GRANT, m.grant.filled_word = LOCAL_FILLED_WORDS);
    REFUSED(LOCAL_GRANT, m.grant.nruns = 1);
    REFUSED(LOCAL_GRANT, m.grant.nruns = 3);
    REFUSED(LOCAL_GRANT, m.grant.nruns = UINT32_MAX);
    REFUSED(LOCAL_GRANT, m.grant.runs[1].npages = 0);
    REFUSED(LOCAL_GRANT, (m.grant.runs[0] = (struct local_run){UINT32_MAX, 2}));
    REFUSED(LOCAL_FILLED, m.save.save = 0);
    REFUSED(LOCAL_EVENT, m.event.save = 0);
    REFUSED(LOCAL_EVENT, m.event.state = 4);
    REFUSED(LOCAL_EVENT, m.event.state = 0);
    REFUSED(LOCAL_EVENT, m.event.code = 1);
    REFUSED(LOCAL_ERROR, m.error.code = 0);
    REFUSED(LOCAL_LATEST, m.latest.pad = 1);
    REFUSED(LOCAL_RESTORE_OPEN, m.restore_open.pad[0] = 1);
    REFUSED(LOCAL_RESTORE_OPENED, m.restore_opened.slots = 0);
    REFUSED(LOCAL_RESTORE_OPENED, m.restore_opened.slot_parts = 33);
    REFUSED(LOCAL_RESTORE_OPENED, m.restore_opened.catalog_bytes = 0);
    REFUSED(LOCAL_PARTS, m.parts.save = 0);
    REFUSED(LOCAL_PARTS, m.parts.parts = 0);
    REFUSED(LOCAL_PARTS, m.parts.pad = 1);
    REFUSED(LOCAL_SUMS, m.sums.save = 0);
    REFUSED(LOCAL_PACKED, m.packed.save = 0);
    REFUSED(LOCAL_PACKED, m.packed.n = 0);
    REFUSED(LOCAL_PACKED, m.packed.n = 1);
    REFUSED(LOCAL_PACKED, m.packed.n = 3);
    REFUSED(LOCAL_PACKED, m.packed.n = UINT32_MAX);
    REFUSED(LOCAL_PACKED, m.packed.n = (1u << 30) + 2);
    REFUSED(LOCAL_PACKED, m.packed.first = UINT32_MAX - 1);
    REFUSED(LOCAL_READ, m.read.part_mask = 0);
    REFUSED(LOCAL_READ, m.read.pad = 1);
    REFUSED(LOCAL_READ_DONE, m.read_done.pad = 1);
    REFUSED(LOCAL_QUERY, m.query.kind = 5);
    REFUSED(LOCAL_QUERY, m.query.pad2 = 1);
    REFUSED(LOCAL_COMMAND, m.command.pad[2] = 1);
    REFUSED(LOCAL_COMMAND, m.command.pad2 = 1);
}

/* What a newer client may ask: refused by its type alone, without an end of the connection (catches: a known type, an
 * answer, or bytes that are no message, that are taken for one). */
static void test_unknown_requests(void **state)
{
    (void)state;
    for (size_t i = 0; i < NTYPES; i++) {
        good(&types[i]);
        assert_false(local_is_unknown_request(&m, types[i].len));
    }
    memset(&m, 0, sizeof(m));
    local_header_init(&m.h, LOCAL_ERROR - 1, sizeof(m.save), 7);
    assert_true(local_is_unknown_request(&m, sizeof(m.save)));
    assert_int_equal(local_check(&m, sizeof(m.save), 0, NULL), CAIRN_E_PROTOCOL);
    assert_false(local_is_unknown_request(&m, sizeof(m.h) - 1));
    assert_false(local_is_unknown_request(&m, sizeof(m.save) + 1)); /* its length is not what it says */
    m.h.id = 0;
    assert_false(local_is_unknown_request(&m, sizeof(m.save)));
    local_header_init(&m.h, LOCAL_ERROR + 40, sizeof(m.save), 7); /* an answer */
    assert_false(local_is_unknown_request(&m, sizeof(m.save)));
    local_header_init(&m.h, 0, sizeof(m.save), 7);
    assert_false(local_is_unknown_request(&m, sizeof(m.save)));
    local_header_init(&m.h, LOCAL_ERROR - 1, sizeof(m.save), 7);
    m.h.version = LOCAL_VERSION + 1;
    assert_false(local_is_unknown_request(&m, sizeof(m.save)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_descriptors),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_unknown_requests),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
