/* SPDX-License-Identifier: Apache-2.0 */
/* bench-codec FILE DTYPE [--runs N] [--mib N]: each codec over a file of raw elements in parts of 1 MiB, one thread,
 * beside a loop that only reads the same bytes and a memcpy. Prints one JSON object; speeds are bytes of plain state a
 * second. */
#include "part.h"

#include <cairn/plugin.h>

#include <lz4.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <time.h>

#define PART ((size_t)1 << 20)
#define MAX_RUNS 101

struct data {
    uint8_t *plain;
    size_t nparts;
    int dtype;
    uint8_t *coded; /* room for each part */
    int64_t *coded_len;
    uint8_t *back;
    unsigned runs;
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static void print_speed(const char *name, double *bytes_per_s, unsigned n)
{
    qsort(bytes_per_s, n, sizeof *bytes_per_s, by_value);
    printf("\"%s\":{\"min\":%.0f,\"median\":%.0f,\"max\":%.0f}", name, bytes_per_s[0], bytes_per_s[n / 2],
           bytes_per_s[n - 1]);
}

/* ---- what codecs are compared with ----------------------------------------------------------- */

#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static uint64_t
read_all(const uint8_t *p, size_t len)
{
    const uint64_t *w = (const uint64_t *)(const void *)p;
    uint64_t sum = 0;

    for (size_t i = 0; i < len / 8; i++)
        sum += w[i];
    return sum;
}

static void bench_floors(const struct data *d)
{
    double reads[MAX_RUNS], copies[MAX_RUNS];
    volatile uint64_t sink = 0; /* read_all must not be left out */
    size_t len = d->nparts * PART;

    for (unsigned r = 0; r < d->runs; r++) {
        double t = now();
        for (size_t i = 0; i < d->nparts; i++)
            sink += read_all(d->plain + i * PART, PART);
        reads[r] = (double)len / (now() - t);
        t = now();
        for (size_t i = 0; i < d->nparts; i++)
            memcpy(d->back, d->plain + i * PART, PART);
        copies[r] = (double)len / (now() - t);
    }
    (void)sink;
    print_speed("read", reads, d->runs);
    printf(",");
    print_speed("memcpy_to_cache", copies, d->runs);
}

/* ---- codecs ---------------------------------------------------------------------------------- */

struct tried {
    const char *name;
    const struct kernel *kernel; /* NULL: lz4 */
    int codes;
};

/* As the daemon does: what does not shrink by a twentieth stays raw, and its estimate was still paid for. */
static int64_t encode_one(const struct data *d, const struct tried *c, size_t i)
{
    const uint8_t *src = d->plain + i * PART;
    uint8_t *dst = d->coded + i * PART;
    size_t worth = PART / 20 * 19;

    if (!c->kernel)
        return LZ4_compress_fast((const char *)src, (char *)dst, (int)PART, (int)worth, 1);
    if (part_estimate(src, PART, d->dtype, c->codes) >= worth)
        return 0;
    return part_encode(c->kernel, src, PART, d->dtype, c->codes, dst, worth);
}

static int decode_one(const struct data *d, const struct tried *c, size_t i)
{
    const uint8_t *src = d->coded + i * PART;

    if (d->coded_len[i] == 0) {
        memcpy(d->back, d->plain + i * PART, PART);
        return 0;
    }
    if (!c->kernel)
        return LZ4_decompress_safe((const char *)src, (char *)d->back, (int)d->coded_len[i], (int)PART) == (int)PART
                   ? 0
                   : -1;
    return part_decode(c->kernel, src, (size_t)d->coded_len[i], d->dtype, d->back, PART);
}

static int bench_one(const struct data *d, const struct tried *c)
{
    double encodes[MAX_RUNS], decodes[MAX_RUNS], len = (double)(d->nparts * PART);
    uint64_t coded = 0;

    for (unsigned r = 0; r < d->runs; r++) {
        double t = now();
        for (size_t i = 0; i < d->nparts; i++)
            d->coded_len[i] = encode_one(d, c, i);
        encodes[r] = len / (now() - t);
        t = now();
        for (size_t i = 0; i < d->nparts; i++)
            if (decode_one(d, c, i) < 0)
                return -1;
        decodes[r] = len / (now() - t);
    }
    for (size_t i = 0; i < d->nparts; i++) {
        coded += d->coded_len[i] ? (uint64_t)d->coded_len[i] : PART;
        if (decode_one(d, c, i) < 0 || memcmp(d->back, d->plain + i * PART, PART) != 0)
            return -1;
    }
    printf(",\"%s\":{\"ratio\":%.4f,", c->name, (double)coded / len);
    print_speed("encode", encodes, d->runs);
    printf(",");
    print_speed("decode", decodes, d->runs);
    printf("}");
    return 0;
}

static int bench_all(const struct data *d)
{
    const struct tried tried[] = {
        {"lz4", NULL, 0},
        {"float", kernel_best(), 0},
        {"dense", kernel_best(), 1},
        {"float_avx2", kernel_named("avx2"), 0},
        {"float_portable", kernel_named("portable"), 0},
        {"dense_portable", kernel_named("portable"), 1},
    };

    for (unsigned i = 0; i < sizeof tried / sizeof tried[0]; i++) {
        if (i > 0 && !tried[i].kernel)
            continue; /* not on this processor */
        if (bench_one(d, &tried[i]) < 0) {
            fprintf(stderr, "bench-codec: %s does not give back what it was given\n", tried[i].name);
            return -1;
        }
    }
    return 0;
}

/* ---- input ----------------------------------------------------------------------------------- */

static int dtype_named(const char *name)
{
    static const struct {
        const char *name;
        int dtype;
    } known[] = {{"bf16", CAIRN_BF16},  {"f16", CAIRN_F16},     {"f32", CAIRN_F32}, {"f64", CAIRN_F64},
                 {"f8", CAIRN_F8_E4M3}, {"bytes", CAIRN_BYTES}, {"i64", CAIRN_I64}};

    for (unsigned i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcasecmp(name, known[i].name) == 0)
            return known[i].dtype;
    return 0;
}

static int read_file(struct data *d, const char *path, size_t most)
{
    FILE *f = fopen(path, "rb");

    if (!f)
        return -1;
    d->nparts = fread(d->plain, PART, most, f);
    fclose(f);
    return d->nparts ? 0 : -1;
}

static void *big(size_t len)
{
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    (void)madvise(p, len, MADV_HUGEPAGE);
    memset(p, 1, len);
    return p;
}

int main(int argc, char **argv)
{
    struct data d = {.runs = 5, .dtype = argc > 2 ? dtype_named(argv[2]) : 0};
    size_t mib = 256;

    for (int i = 3; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--runs") == 0)
            d.runs = (unsigned)strtoul(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--mib") == 0)
            mib = strtoul(argv[i + 1], NULL, 10);
        else
            d.dtype = 0;
    }
    if (!d.dtype || d.runs < 1 || d.runs > MAX_RUNS || mib < 1 || mib > 4096) {
        fprintf(stderr, "usage: bench-codec FILE bf16|f16|f32|f64|f8|i64|bytes [--runs N] [--mib N]\n");
        return 2;
    }
    d.plain = big(mib * PART);
    d.coded = big(mib * PART);
    d.back = big(PART);
    d.coded_len = calloc(mib, sizeof *d.coded_len);
    if (!d.plain || !d.coded || !d.back || !d.coded_len || read_file(&d, argv[1], mib) < 0) {
        fprintf(stderr, "bench-codec: no memory, or %s has less than 1 MiB to read\n", argv[1]);
        return 1;
    }
    printf("{\"file\":\"%s\",\"dtype\":\"%s\",\"bytes\":%zu,\"kernel\":\"%s\",", argv[1], argv[2], d.nparts * PART,
           kernel_best()->name);
    bench_floors(&d);
    int r = bench_all(&d);
    printf("}\n");
    return r < 0;
}
