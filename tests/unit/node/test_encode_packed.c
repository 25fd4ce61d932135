/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding a chunk whose parts came as their device packed them: what is stored is what is stored of the same bytes
 * that came as they are, and the pages are plain then. */
#include "core/base/bytes.h"
#include "core/model/units.h"
#include "daemon/node/encode.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

struct world {
    struct plugins *plugins;
    struct codec *lz4, *floats;
    char *record[6], *again[6];
    char *target;
};

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);

    assert_int_equal(plugins_new(PLUGIN_DIR, &w->plugins, NULL), 0);
    assert_int_equal(plugins_codec(w->plugins, "lz4", &w->lz4, NULL), 0);
    assert_int_equal(plugins_codec(w->plugins, "float", &w->floats, NULL), 0);
    for (unsigned i = 0; i < 6; i++) {
        w->record[i] = malloc(FRAGMENT_MAX_RECORD);
        w->again[i] = malloc(FRAGMENT_MAX_RECORD);
    }
    w->target = malloc(CAIRN_PART);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;

    for (unsigned i = 0; i < 6; i++) {
        free(w->record[i]);
        free(w->again[i]);
    }
    free(w->target);
    plugins_free(w->plugins);
    free(w);
    return 0;
}

struct packed_chunk {
    struct encode e;
    char *plain[4]; /* what was packed */
    char *page[4];
    uint32_t len[4];
};

/* Numbers as a model has them: much alike in their highest byte. Every page but the second is packed, as a device packs
 * it. */
static void pack_chunk(struct world *w, struct packed_chunk *c, int dtype, unsigned width, char **record)
{
    uint64_t r = (uint64_t)dtype + 1;

    *c = (struct packed_chunk){.e = {.k = 4,
                                     .m = 2,
                                     .dtype = dtype,
                                     .ncodecs = 3,
                                     .before = CAIRN_CHOICES,
                                     .path = {.k = 4, .m = 2},
                                     .packer = w->floats}};
    for (unsigned i = 0; i < 3; i++)
        c->e.codec[i].speed = 1ull << 40; /* the smaller one is taken */
    c->e.codec[1].codec = w->lz4;
    c->e.codec[2].codec = w->floats;
    for (unsigned i = 0; i < 4; i++) {
        c->plain[i] = malloc(CAIRN_PART);
        c->page[i] = malloc(CAIRN_PART);
        for (size_t at = 0; at < CAIRN_PART; at++) {
            r = r * 6364136223846793005ull + 1442695040888963407ull;
            c->plain[i][at] = (char)(at % width == width - 1 ? 0x3c + (r >> 40) % 3 : r >> 56);
        }
        c->len[i] = i == 3 ? 12345 : CAIRN_PART;
        int64_t n = codec_encode(w->floats, c->plain[i], c->len[i], dtype, c->page[i], c->len[i] * 19 / 20);
        assert_true(n > 0);
        c->e.packed[i] = i == 1 ? 0 : (uint32_t)n;
        if (i == 1)
            memcpy(c->page[i], c->plain[i], CAIRN_PART);
        c->e.plain[i] = c->e.page[i] = c->page[i];
        c->e.plain_len[i] = c->len[i];
    }
    for (unsigned i = 0; i < 6; i++)
        c->e.record[i] = record[i];
}

static void free_chunk(struct packed_chunk *c)
{
    for (unsigned i = 0; i < 4; i++) {
        free(c->plain[i]);
        free(c->page[i]);
    }
}

/* The same chunk as it would be without packing. */
static struct encode encode_unpacked(struct world *w, const struct packed_chunk *c)
{
    struct encode e = c->e;

    memset(e.packed, 0, sizeof e.packed);
    for (unsigned i = 0; i < 4; i++)
        e.plain[i] = c->plain[i];
    for (unsigned i = 0; i < 6; i++)
        e.record[i] = w->again[i];
    encode_chunk(&e);
    assert_int_equal(e.code, 0);
    return e;
}

static void same_chunk(const struct encode *a, const struct encode *b)
{
    assert_memory_equal(&a->entry, &b->entry, sizeof a->entry);
    assert_memory_equal(a->part, b->part, a->k * sizeof a->part[0]);
    for (unsigned i = 0; i < a->k + a->m; i++) {
        size_t padded = fragment_record_len(a->payload_len[i]) - FRAGMENT_HEADER;
        assert_int_equal(a->payload_len[i], b->payload_len[i]);
        assert_true(a->payload_sum[i] == b->payload_sum[i]);
        assert_memory_equal(a->record[i] + FRAGMENT_HEADER, b->record[i] + FRAGMENT_HEADER, padded);
    }
}

static void pages_are_plain(const struct packed_chunk *c)
{
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(c->e.packed[i], 0);
        assert_memory_equal(c->page[i], c->plain[i], c->len[i]);
    }
}

static const struct {
    int dtype;
    unsigned width;
} widths[] = {{CAIRN_F8_E4M3, 1}, {CAIRN_BF16, 2}, {CAIRN_F32, 4}, {CAIRN_F64, 8}};

/* Catches fragments that are not those of the same bytes encoded here, which repair and a spare peer mix; a page that
 * stays packed, or is unpacked too far; a chunk that cannot be encoded again. */
static void test_packed_parts(void **state)
{
    struct world *w = *state;

    for (size_t d = 0; d < sizeof widths / sizeof widths[0]; d++) {
        struct packed_chunk c;
        bool narrow = widths[d].width == 1; /* of one byte nothing is alike but what is in it */
        pack_chunk(w, &c, widths[d].dtype, narrow ? 2 : widths[d].width, w->record);
        struct encode want = encode_unpacked(w, &c);
        memset(c.page[3] + c.len[3], 0x5a, 64);
        encode_chunk(&c.e);
        assert_int_equal(c.e.code, 0);
        assert_int_equal(c.e.kept, 2 * CAIRN_PART + 12345);
        assert_int_equal(c.e.cost[2].plain, CAIRN_PART); /* the one that was encoded here */
        for (unsigned i = 0; i < 4; i++) {
            assert_int_equal(c.e.part[i].codec, CAIRN_CODEC_FLOAT);
            assert_int_equal(c.e.came[i], i == 1 ? 0 : c.e.part[i].coded_len);
        }
        same_chunk(&c.e, &want);
        pages_are_plain(&c);
        assert_int_equal(c.page[3][c.len[3]], 0x5a);
        struct encode again = c.e;
        again.as_recorded = want.part;
        encode_chunk(&again);
        assert_int_equal(again.code, 0);
        same_chunk(&again, &want);
        free_chunk(&c);
    }
}

/* Catches bytes that are taken as packed though nothing comes of them, a part that is named wrongly, and one that is
 * unpacked twice when the chunk is tried again. */
static void test_packed_parts_that_do_not_decode(void **state)
{
    struct world *w = *state;
    struct packed_chunk c;

    pack_chunk(w, &c, CAIRN_BF16, 2, w->record);
    c.page[2][5]++; /* its length */
    encode_chunk(&c.e);
    assert_int_equal(c.e.code, CAIRN_E_CORRUPT);
    assert_int_equal(c.e.undecoded, 3);
    assert_true(c.e.packed[0] == 0 && c.e.packed[2] > 0 && c.e.packed[3] > 0);
    assert_memory_equal(c.page[0], c.plain[0], CAIRN_PART);
    c.page[2][5]--;
    struct encode want = encode_unpacked(w, &c);
    encode_chunk(&c.e); /* what is unpacked is encoded here */
    assert_int_equal(c.e.code, 0);
    assert_int_equal(c.e.undecoded, 0);
    same_chunk(&c.e, &want);
    pages_are_plain(&c);
    free_chunk(&c);
    pack_chunk(w, &c, CAIRN_BF16, 2, w->record);
    c.e.packed[0]--;
    encode_chunk(&c.e);
    assert_true(c.e.code == CAIRN_E_CORRUPT && c.e.undecoded == 1);
    c.e.packed[0]++;
    c.e.packer = NULL;
    encode_chunk(&c.e);
    assert_true(c.e.code == CAIRN_E_CORRUPT && c.e.undecoded == 1);
    free_chunk(&c);
}

/* Catches sums, a base's checksum, deltas and numerics that are made of what was packed. */
static void test_packed_parts_in_every_way(void **state)
{
    struct world *w = *state;
    struct packed_chunk c;
    struct hash128 sums[4];

    pack_chunk(w, &c, CAIRN_BF16, 2, w->record);
    struct encode want = encode_unpacked(w, &c);
    c.e.maybe = (struct cairn_delta){.step = 7, .incarnation = 1, .entry = want.entry, .depth = 1};
    encode_chunk(&c.e);
    assert_true(c.e.code == 0 && c.e.same && c.e.kept == 0);
    pages_are_plain(&c);
    free_chunk(&c);
    for (unsigned wrong = 0; wrong <= 4; wrong++) {
        pack_chunk(w, &c, CAIRN_BF16, 2, w->record);
        for (unsigned i = 0; i < 4; i++)
            sums[i] = cairn_hash128_seeded(c.plain[i], c.len[i], 5);
        if (wrong < 4)
            sums[wrong].high++;
        c.e.sums = sums;
        c.e.sums_seed = 5;
        encode_chunk(&c.e);
        assert_int_equal(c.e.code, wrong < 4 ? CAIRN_E_CORRUPT : 0);
        assert_int_equal(c.e.differs, wrong < 4 ? wrong + 1 : 0);
        pages_are_plain(&c);
        free_chunk(&c);
    }
    pack_chunk(w, &c, CAIRN_BF16, 2, w->record);
    char *base[4];
    struct hash_stream *h = hash_stream_new();
    for (unsigned i = 0; i < 4; i++) { /* the third has nothing to do with its base */
        c.e.base[i] = base[i] = memcpy(malloc(CAIRN_PART), c.plain[i == 2 ? 0 : i], CAIRN_PART);
        base[i][i * 1000] ^= 1;
        hash_stream_add(h, base[i], c.len[i]);
    }
    c.e.delta = (struct cairn_delta){.step = 1, .incarnation = 1, .entry = hash_stream_end(h), .depth = 1};
    want = encode_unpacked(w, &c);
    encode_chunk(&c.e);
    assert_int_equal(c.e.code, 0);
    same_chunk(&c.e, &want);
    assert_true(c.e.part[0].params == CAIRN_PART_DELTA && c.e.part[2].params == 0);
    assert_int_equal(c.e.kept, CAIRN_PART);
    pages_are_plain(&c);
    hash_stream_free(h);
    for (unsigned i = 0; i < 4; i++)
        free(base[i]);
    free_chunk(&c);
}

/* In a page of memory that somebody else has mapped, too: among the first mantissas, which lie there as they are, so
 * that it can be decoded whatever they become. */
enum { MANTISSAS = 192, NMANTISSAS = 256 };
struct scribbler {
    char *page;
    bool stop;
};

static void *scribble(void *arg)
{
    struct scribbler *s = arg;

    for (size_t at = 0; !__atomic_load_n(&s->stop, __ATOMIC_ACQUIRE); at = (at + 1) % NMANTISSAS)
        s->page[MANTISSAS + at]++;
    return NULL;
}

/* Catches a page that is read twice: what is stored has to be what was hashed, or be refused. */
static void test_a_packed_page_that_is_written_to(void **state)
{
    struct world *w = *state;
    struct packed_chunk c;
    struct scribbler s = {.stop = false};
    int fd = memfd_create("page", MFD_CLOEXEC);
    pthread_t t;
    unsigned stored = 0;

    assert_int_equal(ftruncate(fd, CAIRN_PART), 0);
    char *page = mmap(NULL, CAIRN_PART, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    s.page = mmap(NULL, CAIRN_PART, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(page != MAP_FAILED && s.page != MAP_FAILED);
    pack_chunk(w, &c, CAIRN_BF16, 2, w->record);
    assert_int_equal(pthread_create(&t, NULL, scribble, &s), 0);
    for (unsigned n = 0; n < 20; n++) {
        struct encode e = c.e;
        memset(e.packed, 0, sizeof e.packed);
        e.packed[0] = c.e.packed[0];
        e.plain[0] = e.page[0] = memcpy(page, c.page[0], CAIRN_PART);
        for (unsigned i = 1; i < 4; i++)
            e.plain[i] = c.plain[i];
        encode_chunk(&e);
        if (e.code < 0) {
            assert_true(e.code == CAIRN_E_CORRUPT && e.undecoded == 1);
            continue;
        }
        stored++;
        struct hash_stream *h = hash_stream_new();
        for (unsigned i = 0; i < 4; i++) {
            assert_int_equal(e.part[i].codec, CAIRN_CODEC_FLOAT);
            assert_int_equal(codec_decode(w->floats, e.record[i] + FRAGMENT_HEADER, e.payload_len[i], e.dtype,
                                          w->target, e.plain_len[i]),
                             0);
            assert_true(cairn_hash64(e.record[i] + FRAGMENT_HEADER, e.payload_len[i], 0) == e.payload_sum[i]);
            hash_stream_add(h, w->target, e.plain_len[i]);
        }
        struct hash128 sum = hash_stream_end(h);
        assert_memory_equal(&sum, &e.entry, sizeof sum);
        hash_stream_free(h);
    }
    __atomic_store_n(&s.stop, true, __ATOMIC_RELEASE);
    pthread_join(t, NULL);
    assert_true(stored > 0);
    munmap(page, CAIRN_PART);
    munmap(s.page, CAIRN_PART);
    close(fd);
    free_chunk(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packed_parts),
        cmocka_unit_test(test_packed_parts_that_do_not_decode),
        cmocka_unit_test(test_packed_parts_in_every_way),
        cmocka_unit_test(test_a_packed_page_that_is_written_to),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
