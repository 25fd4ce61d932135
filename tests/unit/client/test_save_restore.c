/* SPDX-License-Identifier: Apache-2.0 */
/* What is saved comes back, whatever its types, strides and sizes, and whoever asks. Against a test double of the
 * daemon that scatters pages, leaves rubbish in them and answers reads backwards. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>

#include <unistd.h>

#include "tests/unit/client/support.h"

static struct fake *f;

static int start(void **state)
{
    (void)state;
    f = fake_start();
    return 0;
}

static int stop(void **state)
{
    (void)state;
    fake_stop(f);
    return 0;
}

static void seal_and_commit(struct cairn_save *save)
{
    OK(cairn_save_seal(save, &err));
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 5000, &err));
    cairn_save_free(save);
}

/* ---- one rank, all kinds of tensors ---------------------------------------------------------- */

struct sample {
    const char *name;
    int dtype;
    uint32_t ndim;
    uint64_t shape[3];
};
static const struct sample samples[] = {
    {"weight", CAIRN_BF16, 2, {1500, 1001}}, /* several parts, an odd row */
    {"scalar", CAIRN_F32, 0, {0}},           {"empty", CAIRN_I64, 2, {0, 7}},      {"mask", CAIRN_BOOL, 1, {3}},
    {"moment", CAIRN_F32, 1, {1300000}}, /* over a chunk's end */
    {"blob", CAIRN_BYTES, 1, {1}},           {"complex", CAIRN_C64, 3, {3, 5, 7}}, {"ids", CAIRN_I64, 1, {100}},
    {"tail", CAIRN_BF16, 1, {33}},
};
#define NSAMPLES (sizeof(samples) / sizeof(samples[0]))

static size_t sample_bytes(const struct sample *s)
{
    size_t n = cairn_dtype_size(s->dtype);

    for (uint32_t d = 0; d < s->ndim; d++)
        n *= s->shape[d];
    return n;
}

static struct cairn_tensor sample_tensor(const struct sample *s, void *data)
{
    return (struct cairn_tensor){.size = sizeof(struct cairn_tensor),
                                 .name = s->name,
                                 .dtype = s->dtype,
                                 .ndim = s->ndim,
                                 .shape = s->shape,
                                 .data = data};
}

static void save_samples(struct cairn_session *s, uint64_t step, void **data)
{
    struct cairn_save *save;

    OK(begin(s, step, &save));
    for (size_t i = 0; i < NSAMPLES; i++) {
        data[i] = random_bytes(sample_bytes(&samples[i]), i + step);
        struct cairn_tensor t = sample_tensor(&samples[i], data[i]);
        OK(cairn_save_add(save, &t, &err));
    }
    seal_and_commit(save);
}

static void check_samples(struct cairn_session *s, uint64_t step, void **data)
{
    struct cairn_restore *r;
    void *back[NSAMPLES];

    OK(cairn_restore_open(s, step, 5000, &r, &err));
    for (size_t i = 0; i < NSAMPLES; i++) {
        back[i] = calloc(1, sample_bytes(&samples[i]) + 1);
        struct cairn_tensor t = sample_tensor(&samples[i], back[i]);
        OK(cairn_restore_add(r, &t, &err));
    }
    OK(cairn_restore_run(r, 5000, NULL, NULL, &err));
    for (size_t i = 0; i < NSAMPLES; i++) {
        assert_memory_equal(back[i], data[i], sample_bytes(&samples[i]));
        free(back[i]);
        free(data[i]);
    }
    cairn_restore_free(r);
}

static void test_round_trip(void **state)
{
    struct cairn_session *s;
    void *data[NSAMPLES];
    uint64_t step;

    (void)state;
    OK(open_rank(f, 0, 1, 64, 5000, &s));
    assert_int_equal(cairn_session_incarnation(s), 5);
    FAILS(CAIRN_E_NOT_FOUND, cairn_latest(s, &step, &err));
    for (uint64_t i = 1; i <= 3; i++) {
        save_samples(s, i * 10, data);
        check_samples(s, i == 2 ? CAIRN_LATEST : i * 10, data);
    }
    OK(cairn_latest(s, &step, &err));
    assert_int_equal(step, 30);
    /* Catches a layout that is sent with every save. */
    assert_int_equal(fake_count(f, LOCAL_LAYOUT), 1);
    assert_int_equal(fake_count(f, LOCAL_DROP), 0);
    cairn_session_close(s);
    no_complaint(f);
}

/* One copy from our own arena, without a read. What does not verify there, or has moved, or cannot be, is read.
 * Catches: a chunk that is believed without its checksum, a page that is believed without a look. */
static void test_from_our_own_arena(void **state)
{
    struct cairn_session *s;
    void *data[NSAMPLES];

    (void)state;
    fake_places(f, 1);
    OK(open_rank(f, 0, 1, 64, 5000, &s));
    save_samples(s, 10, data);
    check_samples(s, 10, data);
    assert_int_equal(fake_count(f, LOCAL_READ), 0);
    save_samples(s, 20, data);
    fake_damage(f, 0);
    check_samples(s, 20, data);
    unsigned reads = fake_count(f, LOCAL_READ);
    assert_int_equal(reads, 1); /* of the one chunk */
    save_samples(s, 30, data);
    fake_fault(f, LOCAL_PLACES, FAKE_BAD_VALUE, 0, 2);
    check_samples(s, 30, data);
    assert_int_equal(fake_count(f, LOCAL_READ), ++reads);
    save_samples(s, 40, data);
    assert_int_equal(fake_count(f, LOCAL_PLACES), 6);
    fake_fault(f, LOCAL_PLACES, FAKE_UNSEALED, 0, 1); /* only the first answer: the second tells otherwise */
    check_samples(s, 40, data);
    assert_true(fake_count(f, LOCAL_READ) > reads);
    save_samples(s, 50, data);
    fake_fault(f, LOCAL_PLACES, FAKE_ERROR, CAIRN_E_NOMEM, 1);
    check_samples(s, 50, data);
    cairn_session_close(s);
    fake_knows(f, 0); /* it would hang up on what it does not know */
    unsigned asked = fake_count(f, LOCAL_PLACES);
    OK(open_rank(f, 0, 1, 64, 5000, &s));
    save_samples(s, 60, data);
    check_samples(s, 60, data);
    assert_int_equal(fake_count(f, LOCAL_PLACES), asked);
    cairn_session_close(s);
    fake_places(f, 0);
    no_complaint(f);
}

static int stop_slowly(void *arg, uint64_t done, uint64_t total)
{
    unsigned *calls = arg;

    (void)done;
    (void)total;
    ++*calls;
    usleep(150000); /* the next call would be due */
    return 1;
}

/* Catches a copy from our own arena that goes on to its end, however large that is, after the caller has ended it. */
static void test_our_own_arena_stops(void **state)
{
    struct cairn_session *s;
    struct cairn_restore *r;
    void *data[NSAMPLES], *back[NSAMPLES];
    unsigned calls = 0;

    (void)state;
    fake_places(f, 1);
    OK(open_rank(f, 0, 1, 64, 5000, &s));
    save_samples(s, 10, data);
    OK(cairn_restore_open(s, 10, 5000, &r, &err));
    for (size_t i = 0; i < NSAMPLES; i++) {
        back[i] = calloc(1, sample_bytes(&samples[i]) + 1);
        struct cairn_tensor t = sample_tensor(&samples[i], back[i]);
        OK(cairn_restore_add(r, &t, &err));
    }
    fake_fault(f, LOCAL_PLACES, FAKE_LATE, 0, 1);
    FAILS(CAIRN_E_INTR, cairn_restore_run(r, 60000, stop_slowly, &calls, &err));
    assert_int_equal(calls, 1);
    assert_int_equal(fake_count(f, LOCAL_READ), 0);
    OK(cairn_restore_run(r, 60000, NULL, NULL, &err)); /* it is all asked for still */
    for (size_t i = 0; i < NSAMPLES; i++) {
        assert_memory_equal(back[i], data[i], sample_bytes(&samples[i]));
        free(back[i]);
        free(data[i]);
    }
    cairn_restore_free(r);
    cairn_session_close(s);
    fake_places(f, 0);
    no_complaint(f);
}

static void test_info_and_slices(void **state)
{
    struct cairn_session *s;
    struct cairn_restore *r;
    void *data[NSAMPLES];
    struct cairn_checkpoint_info info = {.size = sizeof(info)};
    uint64_t bytes = 0;

    (void)state;
    OK(open_rank(f, 0, 1, 64, 5000, &s));
    save_samples(s, 4, data);
    OK(cairn_restore_open(s, 4, 5000, &r, &err));
    OK(cairn_restore_info(r, &info));
    for (size_t i = 0; i < NSAMPLES; i++) {
        struct cairn_tensor t;
        uint32_t rank = 9;
        char *back = calloc(1, sample_bytes(&samples[i]) + 1);
        bytes += sample_bytes(&samples[i]);
        OK(cairn_restore_slice(r, i, &rank, &t));
        assert_int_equal(rank, 0);
        assert_string_equal(t.name, samples[i].name);
        assert_int_equal(t.dtype, samples[i].dtype);
        assert_int_equal(t.ndim, samples[i].ndim);
        assert_memory_equal(t.length, samples[i].shape, t.ndim * sizeof(uint64_t));
        OK(cairn_restore_add_slice(r, i, back, &err));
        OK(cairn_restore_run(r, 5000, NULL, NULL, &err)); /* again and again */
        assert_memory_equal(back, data[i], sample_bytes(&samples[i]));
        free(back);
        free(data[i]);
    }
    assert_int_equal(info.step, 4);
    assert_int_equal(info.world_size, 1);
    assert_int_equal(info.incarnation, 5);
    assert_int_equal(info.slices, NSAMPLES);
    assert_int_equal(info.bytes, bytes);
    assert_int_equal(cairn_restore_slice(r, NSAMPLES, NULL, NULL), CAIRN_E_NOT_FOUND);
    cairn_restore_free(r);
    cairn_session_close(s);
    no_complaint(f);
}

/* The rest of the ways in which pieces lie, from our own arena: with strides, dense and many to a part. */
static void test_strides(void **state);
static void test_many_tiny_from(unsigned reads);
static void test_hot_forms(void **state)
{
    fake_places(f, 1);
    test_strides(state);
    assert_int_equal(fake_count(f, LOCAL_READ), 0);
    test_many_tiny_from(0);
    fake_places(f, 0);
}

/* ---- strides --------------------------------------------------------------------------------- */

/* Catches rows and columns that change places, and memory between the elements that is touched. */
static void test_strides(void **state)
{
    enum { ROWS = 700, COLS = 900, PITCH = 1000 };
    uint64_t shape[2] = {ROWS, COLS}, turned[2] = {COLS, ROWS};
    int64_t pitched[2] = {PITCH * 4, 4}, transposed[2] = {4, PITCH * 4}, backwards[2] = {-PITCH * 4, 4};
    uint32_t *data = random_bytes(ROWS * PITCH * 4, 3), *back = calloc(ROWS * PITCH, 4);
    struct cairn_tensor t = {.size = sizeof(t), .dtype = CAIRN_F32, .ndim = 2, .shape = shape};
    struct cairn_session *s;
    struct cairn_save *save;
    struct cairn_restore *r;

    (void)state;
    OK(open_rank(f, 0, 1, 64, 5000, &s));
    OK(begin(s, 1, &save));
    t.name = "pitched", t.data = data, t.stride_bytes = pitched;
    OK(cairn_save_add(save, &t, &err));
    t.name = "transposed", t.shape = turned, t.stride_bytes = transposed;
    OK(cairn_save_add(save, &t, &err));
    t.name = "backwards", t.shape = shape, t.stride_bytes = backwards, t.data = data + (ROWS - 1) * PITCH;
    OK(cairn_save_add(save, &t, &err));
    seal_and_commit(save);

    OK(cairn_restore_open(s, 1, 5000, &r, &err));
    t.name = "pitched", t.data = back, t.stride_bytes = NULL; /* saved strided, restored dense */
    OK(cairn_restore_add(r, &t, &err));
    OK(cairn_restore_run(r, 5000, NULL, NULL, &err));
    for (size_t i = 0; i < ROWS; i++)
        assert_memory_equal(back + i * COLS, data + i * PITCH, COLS * 4);
    t.name = "transposed", t.shape = turned, t.stride_bytes = transposed;
    memset(back, 0x33, ROWS * PITCH * 4);
    OK(cairn_restore_add(r, &t, &err));
    OK(cairn_restore_run(r, 5000, NULL, NULL, &err));
    for (size_t i = 0; i < ROWS; i++) {
        assert_memory_equal(back + i * PITCH, data + i * PITCH, COLS * 4);
        for (size_t j = COLS; j < PITCH; j++)
            assert_int_equal(back[i * PITCH + j], 0x33333333);
    }
    t.name = "backwards", t.shape = shape, t.stride_bytes = pitched;
    OK(cairn_restore_add(r, &t, &err));
    OK(cairn_restore_run(r, 5000, NULL, NULL, &err));
    for (size_t i = 0; i < ROWS; i++)
        assert_memory_equal(back + i * PITCH, data + (ROWS - 1 - i) * PITCH, COLS * 4);
    cairn_restore_free(r);
    cairn_session_close(s);
    free(data);
    free(back);
    no_complaint(f);
}

/* ---- many ------------------------------------------------------------------------------------ */

static int count_progress(void *arg, uint64_t done, uint64_t total)
{
    uint64_t *last = arg;

    assert_true(done >= last[0] && done <= total);
    last[0] = done;
    last[1] = total;
    return 0;
}

static void test_many_tiny_from(unsigned reads)
{
    enum { N = 10000 };
    static char names[N][16];
    static uint64_t lens[N];
    static uint32_t values[N], back[N];
    struct cairn_session *s;
    struct cairn_save *save;
    struct cairn_restore *r;
    uint64_t progress[2] = {0};

    OK(open_rank(f, 0, 1, 16, 5000, &s));
    OK(begin(s, 1, &save));
    for (size_t i = 0; i < N; i++) {
        (void)snprintf(names[i], sizeof(names[i]), "t%zu", i);
        lens[i] = 1 + i % 4;
        values[i] = (uint32_t)(i * 2654435761u);
        struct cairn_tensor t = bytes_tensor(names[i], &lens[i], &values[i]);
        OK(cairn_save_add(save, &t, &err));
    }
    seal_and_commit(save);
    OK(cairn_restore_open(s, 1, 5000, &r, &err));
    for (size_t i = N; i-- > 0;) {
        back[i] = values[i];
        memset(&back[i], 0, lens[i]);
        struct cairn_tensor t = bytes_tensor(names[i], &lens[i], &back[i]);
        OK(cairn_restore_add(r, &t, &err));
    }
    OK(cairn_restore_run(r, 5000, count_progress, progress, &err));
    assert_memory_equal(back, values, sizeof(values));
    assert_int_equal(progress[0], progress[1]);
    assert_int_equal(progress[1], N / 4 * (1 + 2 + 3 + 4));
    /* Catches a read per tensor: 10,000 slices of 64 bytes are one part. */
    assert_int_equal(fake_count(f, LOCAL_READ), reads);
    cairn_restore_free(r);
    cairn_session_close(s);
    no_complaint(f);
}

/* All at once, both ways. Catches: a table that is read at another distance than its structs have, a refused one of
 * which some stays, a step that nobody gives up. */
static void test_all_at_once(void **state)
{
    enum { N = 10000 };
    struct longer {
        struct cairn_tensor t;
        uint64_t later; /* a field of a later version, at rest */
    };
    static struct longer table[N];
    static char names[N][16];
    static const uint64_t one[1] = {1};
    static uint64_t values[N], back[N];
    struct cairn_save_options o = {.size = sizeof(o), .step = 1};
    struct cairn_session *s;
    struct cairn_save *save = NULL;
    struct cairn_restore *r;

    (void)state;
    OK(open_rank(f, 0, 1, 16, 5000, &s));
    for (size_t i = 0; i < N; i++) {
        (void)snprintf(names[i], sizeof(names[i]), "t%zu", i);
        values[i] = i * 0x9e3779b97f4a7c15u;
        table[i].t = bytes_tensor(names[i], one, &values[i]);
        table[i].t.dtype = CAIRN_U64;
        table[i].t.size = sizeof(table[i]);
    }
    table[N / 2].t.dtype = 99;
    FAILS(CAIRN_E_INVAL, cairn_save_all(s, &o, &table[0].t, N, &save, &err));
    assert_non_null(strstr(err.message, "t5000"));
    table[N / 2].t.dtype = CAIRN_U64;
    table[N / 2].t.data = NULL;
    FAILS(CAIRN_E_INVAL, cairn_save_all(s, &o, &table[0].t, N, &save, &err));
    FAILS(CAIRN_E_INVAL, cairn_save_all(s, &o, NULL, N, &save, &err));
    assert_null(save);
    table[N / 2].t.data = &values[N / 2];
    for (o.step = 2; o.step <= 3; o.step++) {
        OK(cairn_save_all(s, &o, &table[0].t, N, &save, &err));
        OK(cairn_save_wait(save, CAIRN_COMMITTED, 5000, &err));
        cairn_save_free(save);
    }
    assert_int_equal(fake_count(f, LOCAL_DROP), 3);
    assert_int_equal(fake_count(f, LOCAL_LAYOUT), 1);

    OK(cairn_restore_open(s, 3, 5000, &r, &err));
    for (size_t i = 0; i < N; i++)
        table[i].t.data = &back[i];
    table[N - 1].t.name = "nobody";
    FAILS(CAIRN_E_NOT_FOUND, cairn_restore_add_all(r, &table[0].t, N, &err));
    OK(cairn_restore_run(r, 5000, NULL, NULL, &err)); /* nothing was added */
    assert_int_equal(back[0], 0);
    assert_int_equal(back[1], 0);
    table[N - 1].t.name = names[N - 1];
    FAILS(CAIRN_E_INVAL, cairn_restore_add_all(r, NULL, N, &err));
    OK(cairn_restore_add_all(r, NULL, 0, &err));
    OK(cairn_restore_add_all(r, &table[0].t, N, &err));
    OK(cairn_restore_run(r, 5000, NULL, NULL, &err));
    assert_memory_equal(back, values, sizeof(values));
    cairn_restore_free(r);
    cairn_session_close(s);
    no_complaint(f);
}

static void test_many_tiny(void **state)
{
    (void)state;
    test_many_tiny_from(1);
}

/* ---- resharding ------------------------------------------------------------------------------ */

#define ROWS 1021
#define COLS 511

/* Two ranks save the upper and the lower rows of a matrix, and each a replica of a vector. */
static void save_two_ranks(uint32_t *matrix, uint32_t *vector)
{
    uint64_t shape[2] = {ROWS, COLS}, vshape[1] = {1000};

    for (uint32_t rank = 0; rank < 2; rank++) {
        uint64_t offset[2] = {rank ? 600 : 0, 0}, length[2] = {rank ? ROWS - 600 : 600, COLS};
        struct cairn_session *s;
        struct cairn_save *save;
        struct cairn_tensor t = {.size = sizeof(t),
                                 .name = "matrix",
                                 .dtype = CAIRN_F32,
                                 .ndim = 2,
                                 .shape = shape,
                                 .offset = offset,
                                 .length = length,
                                 .data = matrix + offset[0] * COLS};
        OK(open_rank(f, rank, 2, 16, 5000, &s));
        OK(begin(s, 8, &save));
        OK(cairn_save_add(save, &t, &err));
        t = (struct cairn_tensor){
            .size = sizeof(t), .name = "vector", .dtype = CAIRN_U32, .ndim = 1, .shape = vshape, .data = vector};
        OK(cairn_save_add(save, &t, &err));
        seal_and_commit(save);
        cairn_session_close(s);
    }
}

/* One of world ranks asks for its columns, and for the vector. */
static void check_columns(uint32_t rank, uint32_t world, const uint32_t *matrix, const uint32_t *vector)
{
    uint64_t shape[2] = {ROWS, COLS}, vshape[1] = {1000};
    uint64_t from = COLS * rank / world, to = COLS * (rank + 1) / world;
    uint64_t offset[2] = {0, from}, length[2] = {ROWS, to - from};
    uint32_t *back = calloc(ROWS * COLS, 4), *vback = calloc(1000, 4);
    struct cairn_session *s;
    struct cairn_restore *r;
    struct cairn_tensor t = {.size = sizeof(t),
                             .name = "matrix",
                             .dtype = CAIRN_F32,
                             .ndim = 2,
                             .shape = shape,
                             .offset = offset,
                             .length = length,
                             .data = back};

    OK(open_rank(f, rank, world, 16, 5000, &s));
    OK(cairn_restore_open(s, CAIRN_LATEST, 5000, &r, &err));
    OK(cairn_restore_add(r, &t, &err));
    t = (struct cairn_tensor){
        .size = sizeof(t), .name = "vector", .dtype = CAIRN_U32, .ndim = 1, .shape = vshape, .data = vback};
    OK(cairn_restore_add(r, &t, &err));
    OK(cairn_restore_run(r, 5000, NULL, NULL, &err));
    for (size_t i = 0; i < ROWS; i++)
        assert_memory_equal(back + i * (to - from), matrix + i * COLS + from, (to - from) * 4);
    assert_memory_equal(vback, vector, 4000);
    cairn_restore_free(r);
    cairn_session_close(s);
    free(back);
    free(vback);
}

static void test_resharding(void **state)
{
    uint32_t *matrix = random_bytes(ROWS * COLS * 4, 5), *vector = random_bytes(4000, 6);

    (void)state;
    save_two_ranks(matrix, vector);
    for (uint32_t world = 1; world <= 3; world++)
        for (uint32_t rank = 0; rank < world; rank++)
            check_columns(rank, world, matrix, vector);
    free(matrix);
    free(vector);
    no_complaint(f);
}

static void test_restore_errors(void **state)
{
    static uint32_t matrix[ROWS * COLS], vector[1000];
    uint64_t shape[2] = {ROWS, COLS}, other[2] = {ROWS, COLS + 1};
    struct cairn_session *s;
    struct cairn_restore *r;
    struct cairn_tensor t = {.size = sizeof(t), .name = "matrix", .dtype = CAIRN_F32, .ndim = 2, .shape = shape};

    (void)state;
    save_two_ranks(matrix, vector);
    OK(open_rank(f, 0, 1, 16, 5000, &s));
    FAILS(CAIRN_E_NOT_FOUND, cairn_restore_open(s, 99, 5000, &r, &err));
    OK(cairn_restore_open(s, 8, 5000, &r, &err));
    FAILS(CAIRN_E_INVAL, cairn_restore_add(r, &t, &err)); /* no memory */
    t.data = matrix;
    t.dtype = CAIRN_I32;
    FAILS(CAIRN_E_INVAL, cairn_restore_add(r, &t, &err));
    t.dtype = CAIRN_F32;
    t.shape = other;
    FAILS(CAIRN_E_INVAL, cairn_restore_add(r, &t, &err));
    assert_non_null(strstr(err.message, "511"));
    t.shape = shape;
    t.name = "nobody";
    FAILS(CAIRN_E_NOT_FOUND, cairn_restore_add(r, &t, &err));
    assert_non_null(strstr(err.message, "nobody"));
    FAILS(CAIRN_E_NOT_FOUND, cairn_restore_add_slice(r, 4, matrix, &err));
    OK(cairn_restore_run(r, 0, NULL, NULL, &err)); /* nothing was added: nothing to wait for */
    cairn_restore_free(r);
    cairn_session_close(s);
    no_complaint(f);
}

/* Catches a request that is answered although nobody saved all of it. */
static void test_missing_elements(void **state)
{
    uint64_t shape[1] = {100}, offset[1] = {0}, length[1] = {60};
    static char data[100];
    struct cairn_tensor t = {.size = sizeof(t),
                             .name = "half",
                             .dtype = CAIRN_U8,
                             .ndim = 1,
                             .shape = shape,
                             .offset = offset,
                             .length = length,
                             .data = data};
    struct cairn_session *s;
    struct cairn_save *save;
    struct cairn_restore *r;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 5000, &s));
    OK(begin(s, 1, &save));
    OK(cairn_save_add(save, &t, &err));
    seal_and_commit(save);
    OK(cairn_restore_open(s, 1, 5000, &r, &err));
    OK(cairn_restore_add(r, &t, &err));
    offset[0] = 10;
    length[0] = 90;
    FAILS(CAIRN_E_NOT_FOUND, cairn_restore_add(r, &t, &err));
    assert_non_null(strstr(err.message, "60:100"));
    OK(cairn_restore_run(r, 5000, NULL, NULL, &err));
    cairn_restore_free(r);
    cairn_session_close(s);
    no_complaint(f);
}

/* Rank 0 saves one F32, rank 1 two F64, under one name. Catches bytes of another tensor in the memory of the one that
 * was asked for: too few, or, worse, too many. */
static void test_one_name_two_tensors(void **state)
{
    uint64_t one[1] = {1}, two[1] = {2};
    float single = 1.5f, got_single = 0;
    double pair[2] = {2.5, 3.5}, got_pair[2] = {0, 0};
    struct cairn_tensor t[2] = {
        {.size = sizeof(t[0]), .name = "x", .dtype = CAIRN_F32, .ndim = 1, .shape = one, .data = &single},
        {.size = sizeof(t[0]), .name = "x", .dtype = CAIRN_F64, .ndim = 1, .shape = two, .data = pair}};
    struct cairn_session *s;
    struct cairn_save *save;
    struct cairn_restore *r;

    (void)state;
    for (uint32_t rank = 0; rank < 2; rank++) {
        OK(open_rank(f, rank, 2, 4, 5000, &s));
        OK(begin(s, 1, &save));
        OK(cairn_save_add(save, &t[rank], &err));
        seal_and_commit(save);
        cairn_session_close(s);
    }
    t[0].data = &got_single;
    t[1].data = got_pair;
    for (uint32_t rank = 0; rank < 2; rank++) { /* both find both, whoever saved it */
        OK(open_rank(f, rank, 2, 4, 5000, &s));
        OK(cairn_restore_open(s, 1, 5000, &r, &err));
        OK(cairn_restore_add(r, &t[0], &err));
        OK(cairn_restore_add(r, &t[1], &err));
        OK(cairn_restore_run(r, 5000, NULL, NULL, &err));
        assert_memory_equal(&got_single, &single, sizeof(single));
        assert_memory_equal(got_pair, pair, sizeof(pair));
        t[0].shape = two;
        FAILS(CAIRN_E_INVAL, cairn_restore_add(r, &t[0], &err));
        t[0].shape = one;
        cairn_restore_free(r);
        cairn_session_close(s);
    }
    no_complaint(f);
}

/* Three ranks save the same 100 bytes and each its own half of others. Who asks gets its own where it has them, else
 * the lowest rank's; catches: the first that is found, a rank that is taken for its place in the catalog. */
static void save_three_ranks(char data[3][100])
{
    static const uint64_t all[1] = {100}, half[1] = {50}, offset[3][1] = {{0}, {50}, {50}};

    for (uint32_t rank = 0; rank < 3; rank++) {
        struct cairn_tensor t[3] = {bytes_tensor("same", all, data[rank]), bytes_tensor("halves", all, data[rank]),
                                    bytes_tensor("shape", all, data[rank])};
        struct cairn_save_options o = {.size = sizeof(o), .step = 1};
        struct cairn_session *s;
        struct cairn_save *save;
        t[1].offset = offset[rank];
        t[1].length = half;
        t[2].shape = rank == 1 ? half : all;
        t[2].dtype = rank == 1 ? CAIRN_U8 : CAIRN_BYTES;
        memset(data[rank], 'a' + (int)rank, 100);
        OK(open_rank(f, rank, 3, 8, 5000, &s));
        OK(cairn_save_all(s, &o, t, 3, &save, &err));
        OK(cairn_save_wait(save, CAIRN_COMMITTED, 5000, &err));
        cairn_save_free(save);
        cairn_session_close(s);
    }
}

static void check_preference(struct cairn_session *s, char same, char first, char second, uint64_t shape)
{
    static const uint64_t all[1] = {100};
    char got[2][100], want[2][100];
    struct cairn_tensor t[2] = {bytes_tensor("same", all, got[0]), bytes_tensor("halves", all, got[1])}, found;
    struct cairn_restore *r;

    memset(want[0], same, 100);
    memset(want[1], first, 50);
    memset(want[1] + 50, second, 50);
    OK(cairn_restore_open(s, 1, 5000, &r, &err));
    OK(cairn_restore_add_all(r, t, 2, &err));
    OK(cairn_restore_run(r, 5000, NULL, NULL, &err));
    assert_memory_equal(got, want, sizeof(got));
    OK(cairn_restore_find(r, "shape", &found, &err));
    assert_string_equal(found.name, "shape");
    assert_int_equal(found.ndim, 1);
    assert_int_equal(found.shape[0], shape);
    assert_int_equal(found.dtype, shape == 50 ? CAIRN_U8 : CAIRN_BYTES);
    assert_true(!found.data && !found.offset && !found.length && !found.stride_bytes);
    FAILS(CAIRN_E_NOT_FOUND, cairn_restore_find(r, "nobody", &found, &err));
    assert_non_null(strstr(err.message, "nobody"));
    FAILS(CAIRN_E_INVAL, cairn_restore_find(r, NULL, &found, &err));
    cairn_restore_free(r);
    cairn_session_close(s);
}

static void test_own_rank_is_preferred(void **state)
{
    struct cairn_session_options observer = {
        .size = sizeof(observer), .job = "job", .socket_path = fake_path(f), .flags = CAIRN_OBSERVER, .rank = 2};
    char data[3][100];
    struct cairn_session *s;

    (void)state;
    save_three_ranks(data);
    OK(open_rank(f, 0, 3, 8, 5000, &s));
    check_preference(s, 'a', 'a', 'b', 100);
    OK(open_rank(f, 1, 2, 8, 5000, &s)); /* in a world of another size */
    check_preference(s, 'b', 'a', 'b', 50);
    OK(open_rank(f, 2, 3, 8, 5000, &s));
    check_preference(s, 'c', 'a', 'c', 100);
    OK(open_rank(f, 3, 4, 8, 5000, &s)); /* which nobody was */
    check_preference(s, 'a', 'a', 'b', 100);
    OK(cairn_session_open(&observer, &s, &err));
    check_preference(s, 'a', 'a', 'b', 100);
    no_complaint(f);
}

int main(void)
{
#define TEST(name_) cmocka_unit_test_setup_teardown(name_, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(test_round_trip),
        TEST(test_from_our_own_arena),
        TEST(test_our_own_arena_stops),
        TEST(test_hot_forms),
        TEST(test_info_and_slices),
        TEST(test_strides),
        TEST(test_many_tiny),
        TEST(test_resharding),
        TEST(test_restore_errors),
        TEST(test_missing_elements),
        TEST(test_one_name_two_tensors),
        TEST(test_all_at_once),
        TEST(test_own_rank_is_preferred),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
