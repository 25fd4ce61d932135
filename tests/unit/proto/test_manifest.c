/* SPDX-License-Identifier: Apache-2.0 */
/* Manifests and roots: there and back, golden bytes, and what no honest node writes is refused. */
#include "core/proto/root.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void add(struct cairn_layout *l, const char *name, int dtype, uint64_t rows, uint64_t columns)
{
    uint64_t shape[2] = {rows, columns}, offset[2] = {rows / 2, 0}, length[2] = {rows - rows / 2, columns};
    struct cairn_tensor t = {
        .size = sizeof t, .name = name, .dtype = dtype, .ndim = 2, .shape = shape, .offset = offset, .length = length};

    assert_int_equal(cairn_layout_add(l, &t, NULL), 0);
}

/* Two tensors of two dtypes: 2.5 parts of F32 in two chunks, then one part of U8. */
static void sample(struct manifest *m)
{
    static const char *const peers[] = {"p0", "p1", "p2"};

    manifest_init(m);
    strcpy(m->job, "job");
    strcpy(m->node, "n1");
    m->step = 100;
    m->incarnation = 2;
    m->rank = 1;
    m->world_size = 4;
    m->npeers = 3;
    m->peers = calloc(3, sizeof *m->peers);
    for (unsigned i = 0; i < 3; i++)
        strcpy(m->peers[i], peers[i]);
    add(&m->layout, "w", CAIRN_F32, 2 * 640, 1024);
    add(&m->layout, "b", CAIRN_U8, 2 * 10, 100);
    assert_int_equal(cairn_layout_place(&m->layout, NULL), 0);
    assert_int_equal(m->layout.nparts, 4);
    m->nchunks = 3;
    m->chunks = calloc(3, sizeof *m->chunks);
    for (uint32_t i = 0, part = 0; i < 3; i++) {
        struct chunk_record *c = &m->chunks[i];
        c->first_part = part;
        c->k = i == 0 ? 2 : 1;
        c->m = 1;
        c->attempt = i;
        c->entry = (struct hash128){0x1000 + i, 0x2000 + i};
        for (unsigned j = 0; j < c->k; j++, part++) {
            uint32_t len = (uint32_t)cairn_layout_part_len(&m->layout, part);
            c->part[j] = (struct cairn_part_code){(uint16_t)(j % 2), 0, len, j % 2 ? len / 2 : len};
        }
        for (unsigned j = 0; j < (unsigned)c->k + c->m; j++)
            c->peer[j] = (uint8_t)((i + j) % 3);
    }
}

static int decode_again(const struct manifest *m, struct manifest *out, struct cairn_error *err)
{
    struct bytes b = {0};

    assert_int_equal(manifest_encode(m, &b, NULL), 0);
    manifest_init(out);
    int r = manifest_decode(out, b.data, b.len, err);
    bytes_free(&b);
    return r;
}

static void test_round_trip(void **state)
{
    struct manifest in, out;

    (void)state;
    sample(&in);
    assert_int_equal(decode_again(&in, &out, NULL), 0);
    assert_string_equal(out.job, "job");
    assert_string_equal(out.node, "n1");
    assert_int_equal(out.step, 100);
    assert_int_equal(out.incarnation, 2);
    assert_int_equal(out.rank, 1);
    assert_int_equal(out.world_size, 4);
    assert_int_equal(out.npeers, 3);
    assert_string_equal(out.peers[2], "p2");
    assert_int_equal(out.layout.nslices, 2);
    assert_string_equal(out.layout.slices[1].name, "b");
    assert_int_equal(out.layout.slices[1].image_offset, in.layout.slices[1].image_offset);
    assert_int_equal(out.layout.slices[0].box.offset[0], 640);
    assert_int_equal(out.nchunks, 3);
    for (unsigned i = 0; i < 3; i++) {
        const struct chunk_record *a = &in.chunks[i], *b = &out.chunks[i];
        assert_int_equal(a->first_part, b->first_part);
        assert_int_equal(a->attempt, b->attempt);
        assert_int_equal(a->k, b->k);
        assert_int_equal(a->m, b->m);
        assert_memory_equal(&a->entry, &b->entry, sizeof a->entry);
        assert_memory_equal(a->part, b->part, sizeof a->part);
        assert_memory_equal(a->peer, b->peer, sizeof a->peer);
    }
    manifest_free(&in);
    manifest_free(&out);
}

static void assert_bytes(const struct bytes *b, const char *golden)
{
    char *text = calloc(1, 2 * b->len + 1);

    for (size_t i = 0; i < b->len; i++)
        sprintf(text + 2 * i, "%02x", b->data[i]);
    assert_string_equal(text, golden);
    free(text);
}

static void test_golden(void **state)
{
    struct manifest m;
    struct bytes b = {0};

    (void)state;
    sample(&m);
    assert_int_equal(manifest_encode(&m, &b, NULL), 0);
    assert_bytes(&b,
                 "080112036a6f6218642002280130043a026e314202703042027031420270324a160a017710121a04800a800822038005002a"
                 "04800580084a160a016210031a02146422020a002a020a64308080c001522f18012100100000000000002900200000000000"
                 "0032081880804020808040320a080118808040208080203a0300010252260802100118012101100000000000002901200000"
                 "00000000320818808020208080203a0201025224080310021801210210000000000000290220000000000000320618e80720"
                 "e8073a020200");
    bytes_free(&b);
    manifest_free(&m);
}

#define REFUSED(change_)                                                 \
    do {                                                                 \
        struct manifest m, out;                                          \
        struct cairn_error err = CAIRN_ERROR_INIT;                       \
        sample(&m);                                                      \
        change_;                                                         \
        assert_int_equal(decode_again(&m, &out, &err), CAIRN_E_CORRUPT); \
        assert_int_equal(err.code, CAIRN_E_CORRUPT);                     \
        assert_null(out.chunks); /* as after init */                     \
        assert_null(out.peers);                                          \
        assert_int_equal(out.layout.nslices, 0);                         \
        manifest_free(&m);                                               \
    } while (0)

static void test_refused(void **state)
{
    (void)state;
    REFUSED(m.job[0] = '/');
    REFUSED(m.node[0] = 0);
    REFUSED(strcpy(m.peers[1], ".."));
    REFUSED(m.rank = 4);
    REFUSED(m.world_size = 0);
    REFUSED(m.world_size = CAIRN_MAX_WORLD + 1);
    REFUSED(m.npeers = 1);                    /* a fragment on a peer that is not listed */
    REFUSED(m.nchunks = 2);                   /* chunks that do not cover */
    REFUSED(m.chunks[1].first_part = 1);      /* that overlap */
    REFUSED(m.chunks[1].first_part = 3);      /* that leave a gap */
    REFUSED(m.chunks[0].part[0].plain_len--); /* not the layout's length */
    REFUSED(m.chunks[0].part[0].coded_len = 0);
    REFUSED(m.chunks[0].part[0].coded_len = (1 << 20) + 1);
    REFUSED(m.layout.slices[1].image_offset += 64); /* placed by other rules */
    REFUSED(m.layout.slices[1].dtype = 99);
    REFUSED(m.layout.slices[1].shape[0] = 1); /* a slice beyond its tensor */
    REFUSED(m.layout.slices[1].box.ndim = 1);
    REFUSED(m.layout.slices[1].name[0] = '\n');
    REFUSED(m.chunks[1].k = 2; m.chunks[1].part[1] = m.chunks[2].part[0]; m.nchunks = 2); /* two dtypes in one chunk */
}

static void test_impossible_stripe_is_not_written(void **state)
{
    struct manifest m;
    struct bytes b = {0};

    (void)state;
    sample(&m);
    m.chunks[0].k = CAIRN_MAX_K + 1;
    assert_int_equal(manifest_encode(&m, &b, NULL), CAIRN_E_INVAL);
    m.chunks[0].k = 0;
    assert_int_equal(manifest_encode(&m, &b, NULL), CAIRN_E_INVAL);
    assert_int_equal(b.len, 0);
    manifest_free(&m);
}

/* Damage is the digest's to find; here: no crash, no leak, and what passes is a manifest within its limits. */
static void test_damaged(void **state)
{
    struct manifest m, out;
    struct bytes b = {0};

    (void)state;
    sample(&m);
    assert_int_equal(manifest_encode(&m, &b, NULL), 0);
    manifest_init(&out);
    for (size_t cut = 0; cut < b.len; cut++) {
        /* Cut before its first tensor it is a manifest of nothing, which a rank may have. */
        if (manifest_decode(&out, b.data, cut, NULL) == 0 && out.layout.nslices > 0)
            fail_msg("a manifest cut at %zu passes", cut);
        manifest_free(&out);
    }
    for (size_t i = 0; i < b.len; i++)
        for (unsigned bit = 0; bit < 8; bit++) {
            b.data[i] ^= (uint8_t)(1u << bit);
            if (manifest_decode(&out, b.data, b.len, NULL) == 0) {
                assert_true(out.rank < out.world_size);
                manifest_free(&out);
            }
            b.data[i] ^= (uint8_t)(1u << bit);
        }
    bytes_free(&b);
    manifest_free(&m);
}

static void test_version(void **state)
{
    struct manifest m, out;
    struct root root;
    struct bytes b = {0};
    struct cairn_error err = CAIRN_ERROR_INIT;

    (void)state;
    sample(&m);
    manifest_init(&out);
    root_init(&root);
    assert_int_equal(manifest_encode(&m, &b, NULL), 0);
    assert_int_equal(b.data[0], 0x08); /* the version comes first */
    b.data[1] = 4;
    assert_int_equal(manifest_decode(&out, b.data, b.len, &err), CAIRN_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "version 4"));
    for (uint8_t v = 2; v <= 3; v++) { /* says that there is a base */
        b.data[1] = v;
        assert_int_equal(manifest_decode(&out, b.data, b.len, &err), CAIRN_E_CORRUPT);
    }
    assert_int_equal(root_decode(&root, "\x08\x03", 2, &err), CAIRN_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "version 3"));
    bytes_free(&b);
    manifest_free(&m);
}

/* Catches a number that is lost, one that is made up where none was known, and a digest of a version that this reader
 * would take for its own. */
static void test_numerics(void **state)
{
    struct manifest in, out;
    struct bytes b = {0};

    (void)state;
    sample(&in);
    assert_int_equal(decode_again(&in, &out, NULL), 0);
    assert_null(out.numerics);
    manifest_free(&out);
    in.layout.slices[1].common = true;
    in.numerics = calloc(2, sizeof *in.numerics);
    in.numerics[1] = (struct cairn_numerics){true, {3, 997}, {0x1122, 0x3344}};
    assert_int_equal(decode_again(&in, &out, NULL), 0);
    assert_false(out.layout.slices[0].common);
    assert_true(out.layout.slices[1].common);
    assert_false(out.numerics[0].known);
    assert_true(out.numerics[1].known);
    assert_int_equal(out.numerics[1].bad.nan, 3);
    assert_int_equal(out.numerics[1].bad.inf, 997);
    assert_int_equal(out.numerics[1].digest.low, 0x1122);
    assert_int_equal(out.numerics[1].digest.high, 0x3344);
    manifest_free(&out);
    assert_int_equal(manifest_encode(&in, &b, NULL), 0);
    uint8_t *field = memmem(b.data, b.len, "\x38\x01\x40\x01\x48\x03", 6); /* common, numerics, nan */
    assert_non_null(field);
    field[3] = 2;
    assert_int_equal(manifest_decode(&out, b.data, b.len, NULL), 0);
    assert_null(out.numerics);
    manifest_free(&out);
    in.numerics[1].bad.nan = 4; /* of 1000 */
    assert_int_equal(decode_again(&in, &out, NULL), CAIRN_E_CORRUPT);
    bytes_free(&b);
    manifest_free(&in);
}

/* ---- bases ----------------------------------------------------------------------------------- */

/* Its first chunk is a delta against the same chunk of step 90. */
static void sample_delta(struct manifest *m)
{
    struct chunk_record *c;

    sample(m);
    c = &m->chunks[0];
    m->base.is_set = true;
    m->base.step = 90;
    m->base.incarnation = 2;
    strcpy(m->base.node, "n1");
    m->base.manifest.len = 333;
    memset(m->base.manifest.sha256, 0x77, SHA256_LEN);
    m->base.manifest.npeers = CAIRN_MAX_M + 1;
    for (unsigned i = 0; i <= CAIRN_MAX_M; i++)
        sprintf(m->base.manifest.peer[i], "p%u", i);
    c->part[1].params = CAIRN_PART_DELTA;
    c->delta = (struct cairn_delta){.step = 90, .incarnation = 2, .entry = {0x91, 0x92}, .depth = 2};
}

static void test_base_round_trip(void **state)
{
    struct manifest in, out;
    struct bytes b = {0};

    (void)state;
    sample_delta(&in);
    assert_int_equal(decode_again(&in, &out, NULL), 0);
    assert_memory_equal(&in.base, &out.base, sizeof in.base);
    assert_true(cairn_delta_equal(&in.chunks[0].delta, &out.chunks[0].delta));
    assert_int_equal(out.chunks[0].part[1].params, CAIRN_PART_DELTA);
    assert_int_equal(out.chunks[1].delta.depth, 0);
    assert_int_equal(manifest_encode(&in, &b, NULL), 0);
    assert_int_equal(b.data[1], 2); /* a reader that knows version 1 only refuses it */
    bytes_free(&b);
    manifest_free(&in);
    manifest_free(&out);
}

#define DELTA_REFUSED(change_)                                           \
    do {                                                                 \
        struct manifest m, out;                                          \
        struct cairn_error err = CAIRN_ERROR_INIT;                       \
        sample_delta(&m);                                                \
        change_;                                                         \
        assert_int_equal(decode_again(&m, &out, &err), CAIRN_E_CORRUPT); \
        assert_null(out.chunks);                                         \
        assert_false(out.base.is_set);                                   \
        manifest_free(&m);                                               \
    } while (0)

static void test_base_refused(void **state)
{
    (void)state;
    DELTA_REFUSED(m.chunks[0].delta.depth = CAIRN_MAX_CHAIN + 1);
    DELTA_REFUSED(m.chunks[0].delta.depth = 0);     /* its part says delta */
    DELTA_REFUSED(m.chunks[0].part[1].params = 0);  /* nothing needs the base */
    DELTA_REFUSED(m.chunks[1].part[0].params = 1);  /* a delta against nothing */
    DELTA_REFUSED(m.chunks[1].delta.entry.low = 1); /* a base's checksum and no base */
    DELTA_REFUSED(m.base.is_set = false);           /* deltas of what is not said */
    DELTA_REFUSED(m.chunks[0].delta = (struct cairn_delta){.depth = 0}; m.chunks[0].part[1].params = 0);
    DELTA_REFUSED(m.base.step = 100); /* itself */
    DELTA_REFUSED(m.base.step = 101); /* the future */
    DELTA_REFUSED(m.base.incarnation = 3);
    DELTA_REFUSED(m.base.manifest.len = 0);
    DELTA_REFUSED(m.base.manifest.len = UINT64_MAX);
    DELTA_REFUSED(m.base.node[0] = '/');
    DELTA_REFUSED(m.base.manifest.peer[2][0] = 0);
}

/* Its first chunk is that of step 90. */
static void sample_same(struct manifest *m)
{
    struct chunk_record *c;

    sample_delta(m);
    c = &m->chunks[0];
    c->same = true;
    c->m = 0;
    c->delta.entry = c->entry;
    c->delta.depth = 1;
    for (unsigned i = 0; i < c->k; i++)
        c->part[i] = (struct cairn_part_code){0, 0, c->part[i].plain_len, c->part[i].plain_len};
}

#define SAME_REFUSED(change_)                                            \
    do {                                                                 \
        struct manifest m, out;                                          \
        struct cairn_error err = CAIRN_ERROR_INIT;                       \
        sample_same(&m);                                                 \
        change_;                                                         \
        assert_int_equal(decode_again(&m, &out, &err), CAIRN_E_CORRUPT); \
        assert_null(out.chunks);                                         \
        manifest_free(&m);                                               \
    } while (0)

/* Catches a reader of an older version that takes it for a chunk without fragments, and what no writer writes. */
static void test_same(void **state)
{
    struct manifest in, out;
    struct bytes b = {0};

    (void)state;
    sample_same(&in);
    assert_int_equal(decode_again(&in, &out, NULL), 0);
    assert_true(out.chunks[0].same && !out.chunks[1].same);
    assert_int_equal(chunk_record_fragments(&out.chunks[0]), 0);
    assert_int_equal(chunk_record_fragments(&out.chunks[1]), 2);
    assert_true(cairn_delta_equal(&in.chunks[0].delta, &out.chunks[0].delta));
    assert_int_equal(manifest_encode(&in, &b, NULL), 0);
    assert_int_equal(b.data[1], 3);
    b.data[1] = 2;
    manifest_free(&out);
    assert_int_equal(manifest_decode(&out, b.data, b.len, NULL), CAIRN_E_CORRUPT);
    bytes_free(&b);
    in.chunks[0].m = 1;
    assert_int_equal(manifest_encode(&in, &b, NULL), CAIRN_E_INVAL);
    manifest_free(&in);
}

static void test_same_refused(void **state)
{
    (void)state;
    SAME_REFUSED(m.chunks[0].delta = (struct cairn_delta){.depth = 0});
    SAME_REFUSED(m.chunks[0].delta.depth = CAIRN_MAX_CHAIN + 1);
    SAME_REFUSED(m.chunks[0].delta.entry.low++);
    SAME_REFUSED(m.chunks[0].part[1].params = CAIRN_PART_DELTA);
    SAME_REFUSED(m.base.is_set = false);
    SAME_REFUSED(m.base.step = 100);
}

/* The base of sample_delta, with the chunk's own base in turn. */
static void sample_base(struct manifest *m)
{
    sample(m);
    m->step = 90;
    m->chunks[0].entry = (struct hash128){0x91, 0x92};
    m->chunks[0].delta = (struct cairn_delta){.step = 80, .incarnation = 2, .depth = 1};
    m->chunks[0].part[0].params = CAIRN_PART_DELTA;
}

static void test_base_is_found(void **state)
{
    struct manifest m, base;

    (void)state;
    sample_delta(&m);
    sample_base(&base);
    assert_null(manifest_base_chunk(&m, &m.chunks[0])); /* nobody has read it yet */
    assert_int_equal(manifest_put_under(&m, &base, NULL), 0);
    assert_null(base.chunks); /* taken over */
    assert_ptr_equal(manifest_base_chunk(&m, &m.chunks[0]), &m.under->chunks[0]);
    assert_null(manifest_base_chunk(&m, &m.chunks[1])); /* it is full */
    manifest_free(&base);
    manifest_free(&m);
}

/* The bytes of a chunk that is the same twice over are two bases down. */
static void test_same_is_found(void **state)
{
    struct manifest m, base, last;
    const struct manifest *of = &m;

    (void)state;
    sample_same(&m);
    m.chunks[0].delta.depth = 2;
    sample_same(&base);
    base.step = 90;
    base.base.step = base.chunks[0].delta.step = 80;
    sample(&last);
    last.step = 80;
    assert_null(manifest_chunk_of(&of, &m.chunks[0])); /* nobody has read it yet */
    assert_int_equal(manifest_put_under(&base, &last, NULL), 0);
    assert_int_equal(manifest_put_under(&m, &base, NULL), 0);
    of = &m;
    assert_ptr_equal(manifest_chunk_of(&of, &m.chunks[0]), &m.under->under->chunks[0]);
    assert_ptr_equal(of, m.under->under);
    of = &m;
    assert_ptr_equal(manifest_chunk_of(&of, &m.chunks[1]), &m.chunks[1]);
    assert_ptr_equal(of, &m);
    manifest_free(&m);
    sample_same(&m);
    sample(&base);
    base.step = 90;
    base.chunks[0].entry.low++;
    assert_int_equal(manifest_put_under(&m, &base, NULL), CAIRN_E_CORRUPT);
    manifest_free(&base);
    manifest_free(&m);
}

#define BASE_REFUSED(change_)                                                   \
    do {                                                                        \
        struct manifest m, base;                                                \
        sample_delta(&m);                                                       \
        sample_base(&base);                                                     \
        change_;                                                                \
        assert_int_equal(manifest_put_under(&m, &base, NULL), CAIRN_E_CORRUPT); \
        assert_null(m.under);                                                   \
        manifest_free(&m);                                                      \
        manifest_free(&base);                                                   \
    } while (0)

static void test_another_base_is_refused(void **state)
{
    (void)state;
    BASE_REFUSED(base.step = 91);
    BASE_REFUSED(base.incarnation = 1);
    BASE_REFUSED(base.rank = 2);
    BASE_REFUSED(base.job[0] = 'x');
    BASE_REFUSED(base.node[0] = 'x');
    BASE_REFUSED(base.layout.slices[0].name[0] = 'x');
    BASE_REFUSED(base.chunks[0].entry.high++);
    BASE_REFUSED(base.chunks[0].delta.depth = 0); /* the chain is not as long as was said */
    BASE_REFUSED(base.chunks[0].delta.depth = 2); /* or does not end */
    BASE_REFUSED(base.chunks[0].k = 1);
    BASE_REFUSED(base.chunks[0].part[1].plain_len--);
    BASE_REFUSED(base.chunks[0].first_part = 1);
    BASE_REFUSED(base.nchunks = 0);
}

/* ---- roots ----------------------------------------------------------------------------------- */

static void sample_root(struct root *r)
{
    root_init(r);
    strcpy(r->job, "job");
    strcpy(r->node, "n0");
    r->step = 100;
    r->incarnation = 2;
    r->world_size = 2;
    r->created_unix_ms = 1700000000000;
    r->shards = calloc(2, sizeof *r->shards);
    for (uint32_t i = 0; i < 2; i++) {
        struct shard_ref *s = &r->shards[i];
        s->rank = i;
        sprintf(s->node, "n%u", i);
        s->plain_bytes = 1000 + i;
        s->stored_bytes = 2000 + i;
        s->manifest.len = 300 + i;
        memset(s->manifest.sha256, (int)(0xa0 + i), SHA256_LEN);
        s->manifest.npeers = i == 0 ? CAIRN_MAX_M + 1 : 0;
        for (uint32_t j = 0; j < s->manifest.npeers; j++)
            sprintf(s->manifest.peer[j], "p%u", j);
    }
}

static int root_again(const struct root *r, struct root *out, struct cairn_error *err)
{
    struct bytes b = {0};

    assert_int_equal(root_encode(r, &b, NULL), 0);
    root_init(out);
    int code = root_decode(out, b.data, b.len, err);
    bytes_free(&b);
    return code;
}

static void test_root_round_trip(void **state)
{
    struct root in, out;
    struct bytes b = {0};

    (void)state;
    sample_root(&in);
    assert_int_equal(root_again(&in, &out, NULL), 0);
    assert_string_equal(out.job, "job");
    assert_string_equal(out.node, "n0");
    assert_int_equal(out.step, 100);
    assert_int_equal(out.incarnation, 2);
    assert_int_equal(out.world_size, 2);
    assert_int_equal(out.created_unix_ms, 1700000000000);
    assert_memory_equal(in.shards, out.shards, 2 * sizeof *in.shards);
    assert_int_equal(root_encode(&in, &b, NULL), 0);
    assert_bytes(&b,
                 "080112036a6f6218642002280232026e303a5312026e3018ac022220a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0"
                 "a0a0a0a0a0a0a0a0a0a02a0270302a0270312a0270322a0270332a0270342a0270352a0270362a0270372a02703830e80738"
                 "d00f3a31080112026e3118ad022220a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a130e907"
                 "38d10f4080d095ffbc31");
    bytes_free(&b);
    root_free(&in);
    root_free(&out);
}

#define ROOT_REFUSED(change_)                                          \
    do {                                                               \
        struct root r, out;                                            \
        struct cairn_error err = CAIRN_ERROR_INIT;                     \
        sample_root(&r);                                               \
        change_;                                                       \
        assert_int_equal(root_again(&r, &out, &err), CAIRN_E_CORRUPT); \
        assert_int_equal(err.code, CAIRN_E_CORRUPT);                   \
        assert_null(out.shards);                                       \
        root_free(&r);                                                 \
    } while (0)

static void test_root_refused(void **state)
{
    (void)state;
    ROOT_REFUSED(r.job[0] = 0);
    ROOT_REFUSED(r.node[0] = '/');
    ROOT_REFUSED(r.shards[1].rank = 0); /* a rank twice */
    ROOT_REFUSED(r.shards[0].node[0] = ' ');
    ROOT_REFUSED(r.shards[0].manifest.len = 0);
    ROOT_REFUSED(r.shards[0].manifest.len = UINT64_MAX);
    ROOT_REFUSED(r.shards[0].manifest.peer[3][0] = 0);
    ROOT_REFUSED(r.world_size = 0);
}

static void test_root_base(void **state)
{
    struct root in, out;
    struct bytes b = {0};
    struct cairn_error err = CAIRN_ERROR_INIT;

    (void)state;
    sample_root(&in);
    in.base = (struct ckpt_base){.is_set = true, .step = 99, .incarnation = 2};
    assert_int_equal(root_again(&in, &out, NULL), 0);
    assert_true(out.base.is_set);
    assert_int_equal(out.base.step, 99);
    assert_int_equal(out.base.incarnation, 2);
    root_free(&out);
    assert_int_equal(root_encode(&in, &b, NULL), 0);
    assert_int_equal(b.data[1], 2);
    bytes_free(&b);
    in.base.step = 100; /* itself */
    assert_int_equal(root_again(&in, &out, &err), CAIRN_E_CORRUPT);
    in.base = (struct ckpt_base){.is_set = true, .step = 1, .incarnation = 3}; /* the future */
    assert_int_equal(root_again(&in, &out, &err), CAIRN_E_CORRUPT);
    root_free(&in);
}

static void test_root_numerics(void **state)
{
    struct root in, out;
    uint64_t n = 7;

    (void)state;
    sample_root(&in);
    assert_false(root_nonfinite(&in, &n));
    in.shards[0].numerics = (struct shard_numerics){true, {5, 6}, 1, {UINT64_MAX, 2}, {3, UINT64_MAX}};
    assert_false(root_nonfinite(&in, &n)); /* of one rank nothing is known */
    in.shards[1].numerics = (struct shard_numerics){.known = true};
    assert_int_equal(root_again(&in, &out, NULL), 0);
    const struct shard_numerics *got = &out.shards[0].numerics;
    assert_true(got->known && got->set.low == UINT64_MAX && got->set.high == 2);
    assert_true(got->common == 1 && got->sums.low == 3 && got->sums.high == UINT64_MAX);
    assert_true(out.shards[1].numerics.known && out.shards[1].numerics.common == 0);
    assert_true(root_nonfinite(&out, &n));
    assert_int_equal(n, 11);
    out.shards[1].numerics.bad.inf = UINT64_MAX - 3;
    assert_true(root_nonfinite(&out, &n));
    assert_int_equal(n, INT64_MAX);
    out.shards[1].numerics.bad = (struct cairn_nonfinite){INT64_MAX, INT64_MAX};
    assert_true(root_nonfinite(&out, &n));
    assert_int_equal(n, INT64_MAX);
    root_free(&in);
    root_free(&out);
}

static void test_root_damaged(void **state)
{
    struct root r, out;
    struct bytes b = {0};

    (void)state;
    sample_root(&r);
    assert_int_equal(root_encode(&r, &b, NULL), 0);
    root_init(&out);
    for (size_t i = 0; i < b.len; i++)
        for (unsigned bit = 0; bit < 8; bit++) {
            b.data[i] ^= (uint8_t)(1u << bit);
            if (root_decode(&out, b.data, b.len, NULL) == 0) {
                assert_int_equal(out.shards[out.world_size - 1].rank, out.world_size - 1);
                root_free(&out);
            }
            assert_null(out.shards);
            b.data[i] ^= (uint8_t)(1u << bit);
        }
    bytes_free(&b);
    root_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_impossible_stripe_is_not_written),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_version),
        cmocka_unit_test(test_base_round_trip),
        cmocka_unit_test(test_base_refused),
        cmocka_unit_test(test_base_is_found),
        cmocka_unit_test(test_another_base_is_refused),
        cmocka_unit_test(test_root_round_trip),
        cmocka_unit_test(test_root_refused),
        cmocka_unit_test(test_same),
        cmocka_unit_test(test_same_refused),
        cmocka_unit_test(test_same_is_found),
        cmocka_unit_test(test_root_base),
        cmocka_unit_test(test_root_damaged),
        cmocka_unit_test(test_numerics),
        cmocka_unit_test(test_root_numerics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
