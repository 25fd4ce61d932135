/* SPDX-License-Identifier: Apache-2.0 */
/* Messages between daemons: each goes there and back whole, its bytes do not change by accident, and nothing that a
 * stranger sends gets past the checks. */
#include "core/proto/wire.h"

#include "core/base/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct wire_message sample(int type)
{
    struct wire_message m;
    struct wire_status bad = {.code = CAIRN_E_NO_SPACE, .message = "full"};

    memset(&m, 0, sizeof m);
    m.type = type;
    m.session = type == WIRE_HELLO ? 0 : 0x0102030405060708;
    switch (type) {
    case WIRE_HELLO:
        strcpy(m.hello.node, "n1");
        m.hello.start = 0x1112131415161718;
        memcpy(m.hello.address, "\x00\x01\xff", 3);
        m.hello.address_len = 3;
        m.hello.slots = 16;
        m.hello.has_nonce = true;
        m.hello.nonce[3] = 5;
        break;
    case WIRE_CHALLENGE:
        strcpy(m.challenge.peer, "p1");
        m.challenge.start = 7;
        m.challenge.nonce[15] = 9;
        m.challenge.key_id = 3;
        m.challenge.tag[31] = 8;
        break;
    case WIRE_PROOF:
        m.proof.key_id = 4;
        m.proof.tag[0] = 1;
        break;
    case WIRE_WELCOME:
        strcpy(m.welcome.peer, "p1");
        m.welcome.start = 5;
        m.welcome.slots = 16;
        m.welcome.slot_bytes = FRAGMENT_MAX_RECORD;
        m.welcome.key = 0xffffffffffffffff;
        m.welcome.base = 0x7f0000000000;
        m.welcome.first_slot = 32;
        break;
    case WIRE_STREAM_OPEN:
        m.stream_open.stream = 1;
        strcpy(m.stream_open.job, "job");
        m.stream_open.step = 10;
        m.stream_open.incarnation = 2;
        strcpy(m.stream_open.node, "n1");
        m.stream_open.reserve_bytes = 1 << 20;
        m.stream_open.fence_incarnation = 1;
        break;
    case WIRE_STREAM_OPENED:
        m.stream_opened.stream = 1;
        m.stream_opened.status = bad;
        m.stream_opened.generation = 0xfedcba9876543210;
        break;
    case WIRE_STORED:
        m.stored.slot = 65535;
        m.stored.generation = 65535;
        m.stored.status = bad;
        m.stored.stream = 3;
        break;
    case WIRE_SYNC:
        m.sync.stream = 4;
        m.sync.sequence = 5;
        break;
    case WIRE_SYNCED:
        m.synced.stream = 4;
        m.synced.sequence = 5;
        m.synced.status = bad;
        break;
    case WIRE_STREAM_CLOSE:
        m.stream_close.stream = 6;
        break;
    case WIRE_READ:
        m.read.request = 77;
        m.read.key = (struct fragment_key){.job = "job",
                                           .node = "n1",
                                           .step = 10,
                                           .incarnation = 2,
                                           .kind = FRAGMENT_DATA,
                                           .rank = 3,
                                           .first_part = 4,
                                           .attempt = 5,
                                           .index = CAIRN_MAX_FRAGS - 1};
        m.read.check = true;
        m.read.address = 0x7f0000001000;
        m.read.remote_key = 9;
        m.read.room = FRAGMENT_MAX_RECORD;
        m.read.data = 0xffffffff;
        break;
    case WIRE_READ_DONE:
        m.read_done.request = 77;
        m.read_done.status = bad;
        break;
    case WIRE_FORGET:
        strcpy(m.forget.job, "job");
        m.forget.step = 10;
        m.forget.incarnation = 2;
        break;
    case WIRE_PING:
        m.ping.request = 8;
        break;
    case WIRE_PONG:
        m.pong.request = 8;
        m.pong.free_bytes = 1 << 30;
        break;
    case WIRE_BYE:
        strcpy(m.bye.reason, "bye");
        break;
    case WIRE_SCRUB:
        m.scrub.request = 9;
        strcpy(m.scrub.job, "job");
        break;
    case WIRE_SCRUB_DONE:
        m.scrub_done.request = 9;
        m.scrub_done.status = bad;
        m.scrub_done.files = 3;
        m.scrub_done.fragments = 70;
        m.scrub_done.bytes = 1 << 30;
        m.scrub_done.bad = 2;
        break;
    case WIRE_INVENTORY:
        m.inventory.request = 10;
        strcpy(m.inventory.job, "job");
        m.inventory.after = (struct wire_stream){.job = "job", .step = 10, .incarnation = 2, .node = "n1"};
        break;
    case WIRE_INVENTORY_ITEMS:
        m.inventory_items.request = 10;
        m.inventory_items.n = 2;
        m.inventory_items.items[0] = (struct wire_stream){.job = "job", .step = 10, .incarnation = 2, .node = "n1"};
        m.inventory_items.items[1] = (struct wire_stream){.job = "job", .step = 20, .incarnation = 2, .node = "n1"};
        m.inventory_items.last = true;
        strcpy(m.inventory_items.engine, "e1");
        break;
    case WIRE_ACCEPT_ENGINE:
        m.accept_engine.request = 11;
        strcpy(m.accept_engine.engine, "e1");
        break;
    case WIRE_ENGINE_ACCEPTED:
        m.engine_accepted.request = 11;
        m.engine_accepted.status = bad;
        break;
    default:
        fail();
    }
    return m;
}

static const int types[] = {
    WIRE_HELLO,         WIRE_WELCOME,        WIRE_STREAM_OPEN,  WIRE_STREAM_OPENED, WIRE_STORED,
    WIRE_SYNC,          WIRE_SYNCED,         WIRE_STREAM_CLOSE, WIRE_READ,          WIRE_READ_DONE,
    WIRE_FORGET,        WIRE_PING,           WIRE_PONG,         WIRE_BYE,           WIRE_CHALLENGE,
    WIRE_PROOF,         WIRE_SCRUB,          WIRE_SCRUB_DONE,   WIRE_INVENTORY,     WIRE_INVENTORY_ITEMS,
    WIRE_ACCEPT_ENGINE, WIRE_ENGINE_ACCEPTED};
#define NTYPES (sizeof types / sizeof types[0])

static const char *const golden[] = {
    "080152260a026e311118171615141312111a030001ff2010321000000005000000000000000000000000",
    "080118888e98a8c0e08081015a271a02703121050000000000000028103080a04039ffffffffffffffff4100000000007f00"
    "004820",
    "080118888e98a8c0e08081016215080112036a6f62180a20022a026e31308080403801",
    "080118888e98a8c0e08081016a1c080110f3ffffffffffffffff011a0466756c6c211032547698badcfe",
    "080118888e98a8c0e0808101721b08ffff0310ffff0318f3ffffffffffffffff01220466756c6c2803",
    "080118888e98a8c0e08081017a0408041005",
    "080118888e98a8c0e08081018201150804100518f3ffffffffffffffff01220466756c6c",
    "080118888e98a8c0e08081018a01020806",
    "080118888e98a8c0e0808101920139084d12170a036a6f62100a180222026e31280130033804400548171801210010000000"
    "7f00002909000000000000003080a04038ffffffff0f",
    "080118888e98a8c0e08081019a0113084d10f3ffffffffffffffff011a0466756c6c",
    "080118888e98a8c0e0808101a201090a036a6f62100a1802",
    "080118888e98a8c0e0808101aa01020808",
    "080118888e98a8c0e0808101b201080808108080808004",
    "080118888e98a8c0e0808101ba01050a03627965",
    "080118888e98a8c0e0808101f201430a0270311107000000000000001a100000000000000000000000000000000920032a2000000000000000"
    "0000000000"
    "0000000000000000000000000000000000000008",
    "080118888e98a8c0e0808101fa0124080412200100000000000000000000000000000000000000000000000000000000000000",
    "080118888e98a8c0e0808101c20207080912036a6f62",
    "080118888e98a8c0e0808101ca021f080910f3ffffffffffffffff011a0466756c6c200328463080808080043802",
    "080118888e98a8c0e0808101d20216080a12036a6f621a0d0a036a6f62100a180222026e31",
    "080118888e98a8c0e0808101da0226080a120d0a036a6f62100a180222026e31120d0a036a6f621014180222026e31180122026531",
    "080118888e98a8c0e0808101ea0206080b12026531",
    "080118888e98a8c0e0808101f20213080b10f3ffffffffffffffff011a0466756c6c",
};

static void hex(const uint8_t *data, int len, char *text)
{
    for (int i = 0; i < len; i++)
        sprintf(text + 2 * i, "%02x", data[i]);
}

/* Every field is in the encoding (the golden bytes show it), so two messages are equal when their bytes are. */
static void assert_same(const struct wire_message *a, const struct wire_message *b)
{
    uint8_t x[WIRE_MAX], y[WIRE_MAX];
    int len = wire_encode(a, x, NULL);

    assert_int_equal(wire_encode(b, y, NULL), len);
    assert_memory_equal(x, y, (size_t)len);
}

static void test_round_trip(void **state)
{
    (void)state;
    for (size_t t = 0; t < NTYPES; t++) {
        struct wire_message in = sample(types[t]), out;
        uint8_t buf[WIRE_MAX];
        char text[2 * WIRE_MAX + 1];
        int len = wire_encode(&in, buf, NULL);

        assert_true(len > 0);
        hex(buf, len, text);
        assert_string_equal(text, golden[t]);
        assert_int_equal(wire_decode(buf, (size_t)len, &out, NULL), 0);
        assert_same(&in, &out);
    }
}

/* Its number is apart from the others'. */
static void test_forgotten(void **state)
{
    struct wire_message in = {.type = WIRE_FORGOTTEN, .session = 7}, out;
    uint8_t buf[WIRE_MAX];
    char text[2 * WIRE_MAX + 1];

    (void)state;
    strcpy(in.forget.job, "job");
    in.forget.step = 24;
    in.forget.incarnation = 2;
    int len = wire_encode(&in, buf, NULL);
    assert_true(len > 0);
    hex(buf, len, text);
    assert_string_equal(text, "08011807e203090a036a6f6210181802");
    assert_int_equal(wire_decode(buf, (size_t)len, &out, NULL), 0);
    assert_int_equal(out.type, WIRE_FORGOTTEN);
    assert_same(&in, &out);
    for (int cut = 0; cut < len; cut++)
        (void)wire_decode(buf, (size_t)cut, &out, NULL);
    strcpy(in.forget.job, "..");
    len = wire_encode(&in, buf, NULL);
    assert_int_equal(wire_decode(buf, (size_t)len, &out, NULL), CAIRN_E_PROTOCOL);
    assert_string_equal(wire_type_name(WIRE_FORGOTTEN), "FORGOTTEN");
}

/* Cut anywhere, or with any byte changed: decode answers, and what it lets pass is within the limits. */
static void test_damaged(void **state)
{
    (void)state;
    for (size_t t = 0; t < NTYPES; t++) {
        struct wire_message in = sample(types[t]), out;
        struct cairn_error err = CAIRN_ERROR_INIT;
        uint8_t buf[WIRE_MAX];
        int len = wire_encode(&in, buf, NULL);

        for (int cut = 0; cut < len; cut++)
            if (wire_decode(buf, (size_t)cut, &out, &err) < 0)
                assert_int_equal(err.code, CAIRN_E_PROTOCOL);
        for (int i = 0; i < len; i++)
            for (unsigned v = 0; v < 256; v++) {
                uint8_t was = buf[i];
                buf[i] = (uint8_t)v;
                int r = wire_decode(buf, (size_t)len, &out, &err);
                assert_true(r == 0 || r == CAIRN_E_PROTOCOL);
                if (r == 0 && out.type == WIRE_HELLO)
                    assert_true(strlen(out.hello.node) <= CAIRN_MAX_NAME && out.hello.address_len <= WIRE_MAX_ADDR);
                buf[i] = was;
            }
    }
}

static int decode_of(const struct wire_message *m)
{
    struct wire_message out;
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint8_t buf[WIRE_MAX];
    int len = wire_encode(m, buf, NULL);

    assert_true(len > 0);
    int r = wire_decode(buf, (size_t)len, &out, &err);
    assert_int_equal(err.code, r);
    assert_true(r == 0 || err.message[0]);
    return r;
}

#define REFUSED(type_, change_)                            \
    do {                                                   \
        struct wire_message m = sample(type_);             \
        assert_int_equal(decode_of(&m), 0);                \
        change_;                                           \
        assert_int_equal(decode_of(&m), CAIRN_E_PROTOCOL); \
    } while (0)

static void test_limits(void **state)
{
    (void)state;
    REFUSED(WIRE_HELLO, m.hello.address_len = 0);
    REFUSED(WIRE_HELLO, m.hello.node[0] = '/');
    REFUSED(WIRE_HELLO, m.hello.node[0] = 0);
    REFUSED(WIRE_HELLO, strcpy(m.hello.node, ".."));
    REFUSED(WIRE_HELLO, m.hello.slots = (1 << 16) + 1);
    REFUSED(WIRE_WELCOME, m.welcome.slots = 0);
    REFUSED(WIRE_WELCOME, m.welcome.first_slot = 65535);
    REFUSED(WIRE_WELCOME, m.welcome.slots = UINT32_MAX);
    REFUSED(WIRE_WELCOME, m.welcome.slot_bytes = 4096);
    REFUSED(WIRE_WELCOME, m.welcome.slot_bytes = UINT64_MAX);
    REFUSED(WIRE_WELCOME, m.welcome.status.code = 1);
    REFUSED(WIRE_WELCOME, m.welcome.peer[0] = ' ');
    REFUSED(WIRE_STREAM_OPEN, m.stream_open.job[0] = '\n');
    REFUSED(WIRE_STREAM_OPEN, m.stream_open.node[0] = 0);
    REFUSED(WIRE_STREAM_OPEN, m.stream_open.reserve_bytes = UINT64_MAX);
    REFUSED(WIRE_STORED, m.stored.status.code = 7);
    REFUSED(WIRE_STORED, m.stored.slot = 65536);
    REFUSED(WIRE_STORED, m.stored.generation = 65536);
    REFUSED(WIRE_SYNCED, m.synced.status.code = -100000);
    REFUSED(WIRE_READ, m.read.key.kind = 0);
    REFUSED(WIRE_READ, m.read.key.kind = 5);
    REFUSED(WIRE_READ, m.read.key.index = CAIRN_MAX_FRAGS);
    REFUSED(WIRE_READ, m.read.key.job[1] = '/');
    REFUSED(WIRE_READ, m.read.key.node[0] = 0);
    REFUSED(WIRE_FORGET, strcpy(m.forget.job, "."));
    REFUSED(WIRE_SCRUB, strcpy(m.scrub.job, "a/b"));
    REFUSED(WIRE_SCRUB_DONE, m.scrub_done.status.code = 1);
    REFUSED(WIRE_INVENTORY, m.inventory.after.job[0] = 0);
    REFUSED(WIRE_INVENTORY, strcpy(m.inventory.after.node, ".."));
    REFUSED(WIRE_INVENTORY_ITEMS, m.inventory_items.items[1].node[0] = 0);
    REFUSED(WIRE_INVENTORY_ITEMS, strcpy(m.inventory_items.engine, "/"));
    REFUSED(WIRE_ACCEPT_ENGINE, m.accept_engine.engine[0] = 0);
    REFUSED(WIRE_ENGINE_ACCEPTED, m.engine_accepted.status.code = -100000);
}

/* The longest inventory fits a message; one item more is refused on both sides. */
static void test_full_inventory(void **state)
{
    struct wire_message m = {.type = WIRE_INVENTORY_ITEMS};
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint8_t buf[WIRE_MAX];

    (void)state;
    m.inventory_items.request = UINT64_MAX;
    m.inventory_items.n = WIRE_ITEMS;
    memset(m.inventory_items.engine, 'e', CAIRN_MAX_NAME);
    for (unsigned i = 0; i < WIRE_ITEMS; i++) {
        struct wire_stream *s = &m.inventory_items.items[i];
        memset(s->job, 'j', CAIRN_MAX_NAME);
        memset(s->node, 'n', CAIRN_MAX_NAME);
        s->step = s->incarnation = UINT64_MAX;
    }
    assert_int_equal(decode_of(&m), 0);
    int len = wire_encode(&m, buf, NULL);
    m.inventory_items.n = WIRE_ITEMS + 1;
    assert_int_equal(wire_encode(&m, buf, &err), CAIRN_E_INVAL);
    /* 11 small items, as a stranger sends them: an item is { job "j", node "n" } */
    uint8_t raw[256] = {0x08, 0x01, 0xda, 0x02, 11 * 8};
    for (unsigned i = 0; i < 11; i++)
        memcpy(raw + 5 + i * 8, "\x12\x06\x0a\x01j\x22\x01n", 8);
    assert_int_equal(wire_decode(raw, 5 + 11 * 8, &m, &err), CAIRN_E_PROTOCOL);
    raw[4] = 10 * 8;
    assert_int_equal(wire_decode(raw, 5 + 10 * 8, &m, &err), 0);
    assert_true(len > 0);
}

/* Raw envelopes, as a stranger or a later version would send them. */
static void test_strangers(void **state)
{
    static const struct {
        const char *what;
        size_t len;
        const char *bytes;
        const char *message;
    } raw[] = {
        {"version 2", 5, "\x08\x02\xaa\x01\x00", "version 2"},
        {"a required feature", 7, "\x08\x01\x10\x04\xaa\x01\x00", "features 0x4"},
        {"no body", 2, "\x08\x01", "without a body"},
        {"a later body", 5, "\x08\x01\xf2\x05\x00", "without a body"},
        {"nothing", 0, "", "version 0"},
        {"noise", 4, "\xff\xff\xff\xff", "no message"},
    };
    uint8_t big[WIRE_MAX + 1] = {0};
    struct wire_message m;
    struct cairn_error err = CAIRN_ERROR_INIT;

    (void)state;
    for (unsigned i = 0; i < sizeof raw / sizeof raw[0]; i++) {
        assert_int_equal(wire_decode(raw[i].bytes, raw[i].len, &m, &err), CAIRN_E_PROTOCOL);
        if (!strstr(err.message, raw[i].message))
            fail_msg("%s: %s", raw[i].what, err.message);
    }
    assert_int_equal(wire_decode(big, sizeof big, &m, &err), CAIRN_E_PROTOCOL);
    m.type = 9;
    assert_int_equal(wire_encode(&m, big, &err), CAIRN_E_INVAL);
    assert_string_equal(wire_type_name(9), "UNKNOWN");
    assert_string_equal(wire_type_name(WIRE_BYE), "BYE");
}

/* An address that is longer than the struct's room must not be copied into it. */
static void test_long_address(void **state)
{
    uint8_t buf[WIRE_MAX] = {0x08, 0x01, 0x52, 0x86 | 0x80, 0x02, 0x0a, 0x01, 'n', 0x1a, 0x80, 0x02};
    struct wire_message m;

    (void)state;
    /* Hello { node "n", address of 256 bytes }: 3 + 3 + 256 bytes */
    assert_int_equal(wire_decode(buf, 5 + 262, &m, NULL), CAIRN_E_PROTOCOL);
    buf[3] = 0x86;
    buf[4] = 0x01;
    buf[9] = 0x80;
    buf[10] = 0x01;
    assert_int_equal(wire_decode(buf, 5 + 134, &m, NULL), 0);
    assert_int_equal(m.hello.address_len, WIRE_MAX_ADDR);
}

/* A reader ignores fields that it does not know: neighbouring releases share a wire. */
static void test_later_fields(void **state)
{
    struct wire_message in = sample(WIRE_PING), out;
    uint8_t buf[WIRE_MAX];
    int len = wire_encode(&in, buf, NULL);

    (void)state;
    memcpy(buf + len, "\xf8\x07\x01", 3); /* field 127 of the envelope */
    assert_int_equal(wire_decode(buf, (size_t)len + 3, &out, NULL), 0);
    assert_same(&in, &out);
}

static void test_status(void **state)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct wire_status s;

    (void)state;
    memset(err.message, 'x', sizeof err.message - 1);
    wire_status_set(&s, CAIRN_E_IO, &err);
    assert_int_equal(s.code, CAIRN_E_IO);
    assert_int_equal(strlen(s.message), WIRE_TEXT - 1);
    wire_status_set(&s, 0, &err);
    assert_int_equal(s.code, 0);
    assert_string_equal(s.message, "");
    wire_status_set(&s, CAIRN_E_IO, NULL);
    assert_string_equal(s.message, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_damaged),        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_strangers),  cmocka_unit_test(test_long_address),   cmocka_unit_test(test_later_fields),
        cmocka_unit_test(test_status),     cmocka_unit_test(test_full_inventory), cmocka_unit_test(test_forgotten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
