/* SPDX-License-Identifier: Apache-2.0 */
/* device-cuda's kernels alone, on device memory: checksums, and codec-float's packing and unpacking, which no save uses
 * yet: whether it is worth it is what this tells.
 *
 *   bench-gpu-kernels [--parts N] [--part-kib N] [--reps N]
 *
 * Prints one JSON object: lists of seconds, and bytes. The state is bf16 weights. What is packed is compared with what
 * the processor packs, and what is unpacked with what it was, byte by byte. */
#include "bench/clock.h"
#include "bench/gpu_runtime.h"
#include "part.h"
#include "plugins/device-cuda/kernels/image.h"
#include "plugins/device-cuda/kernels/kernels.h"

#include <cairn/cairn.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DISTINCT 16u /* parts, that repeat */
#define MOST 100

struct tables { /* one allocation on the host, and the same on the device */
    struct gpu_part *part;
    const void **base;
    uint8_t *width;
    uint64_t *to;
    uint32_t *room, *len;
    struct cairn_device_sum *sums;
};

struct bench {
    struct gpu_runtime rt;
    uint32_t parts, part_bytes;
    unsigned reps;
    uint64_t bytes;
    void *sums, *pack, *unpack; /* kernels */
    uint8_t *sample;            /* DISTINCT parts */
    char *plain, *packed;       /* of the device */
    uint8_t *back;              /* on the host: all of one of them */
    char *host, *there;
    uint64_t tables_bytes;
    struct tables on_host, on_device;
};

static int cuda(const struct bench *b, int code, const char *what)
{
    if (code == 0)
        return 0;
    fprintf(stderr, "%s: %s\n", what, b->rt.text(code));
    return -1;
}

/* About normal, as weights are: the sum of eight uniform numbers, cut to 16 bits. */
static void fill_weights(uint8_t *p, uint64_t len)
{
    uint64_t x = 88172645463325252u;

    for (uint64_t i = 0; i + 2 <= len; i += 2) {
        float sum = 0;
        uint32_t bits;
        for (int k = 0; k < 8; k++) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            sum += (float)(x >> 40) / (float)(1 << 24) - 0.5f;
        }
        sum *= 0.02f;
        memcpy(&bits, &sum, 4);
        p[i] = (uint8_t)(bits >> 16);
        p[i + 1] = (uint8_t)(bits >> 24);
    }
}

static int load_kernels(struct bench *b)
{
    const void *image = b->rt.double_image ? b->rt.double_image : cairn_kernels_image_len ? cairn_kernels_image : NULL;
    void *library = NULL;
    const struct {
        const char *name;
        void **to;
    } table[] = {{GPU_SUMS, &b->sums}, {GPU_PACK, &b->pack}, {GPU_UNPACK, &b->unpack}};

    if (!image || !b->rt.library_load || !b->rt.library_kernel || !b->rt.launch) {
        fprintf(stderr, "no kernels: %s\n", image ? "the runtime is older than 12.8" : "built without nvcc");
        return -1;
    }
    if (cuda(b, b->rt.library_load(&library, image, NULL, NULL, 0, NULL, NULL, 0), "load the kernels") < 0)
        return -1;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (cuda(b, b->rt.library_kernel(table[i].to, library, table[i].name), table[i].name) < 0)
            return -1;
    return 0;
}

/* ---- tables ---------------------------------------------------------------------------------- */

static void *place(char *base, uint64_t *at, uint64_t bytes)
{
    void *p = base + *at;

    *at += (bytes + 255) / 256 * 256;
    return p;
}

static uint64_t lay_out(struct tables *t, char *base, uint32_t n)
{
    uint64_t at = 0;

    t->part = place(base, &at, n * sizeof *t->part);
    t->base = place(base, &at, sizeof *t->base);
    t->width = place(base, &at, n);
    t->to = place(base, &at, n * sizeof *t->to);
    t->room = place(base, &at, n * sizeof *t->room);
    t->len = place(base, &at, n * sizeof *t->len);
    t->sums = place(base, &at, n * sizeof *t->sums);
    return at;
}

/* len: of each part; NULL: whole ones. */
static int send_tables(struct bench *b, const void *base, const uint32_t *len)
{
    struct tables *t = &b->on_host;

    t->base[0] = base;
    for (uint32_t i = 0; i < b->parts; i++) {
        t->part[i] = (struct gpu_part){(uint64_t)i * b->part_bytes, 0, len ? len[i] : b->part_bytes, i, 0};
        t->width[i] = 2;
        t->to[i] = (uint64_t)i * b->part_bytes;
        t->room[i] = b->part_bytes;
    }
    return cuda(b, b->rt.copy(b->there, b->host, b->tables_bytes, GPU_TO_DEVICE), "send tables");
}

static int setup(struct bench *b)
{
    b->bytes = (uint64_t)b->parts * b->part_bytes;
    b->tables_bytes = lay_out(&b->on_host, NULL, b->parts);
    b->host = calloc(1, b->tables_bytes);
    b->sample = malloc((uint64_t)DISTINCT * b->part_bytes);
    b->back = malloc(b->bytes);
    if (!b->host || !b->sample || !b->back) {
        fprintf(stderr, "no memory\n");
        return -1;
    }
    lay_out(&b->on_host, b->host, b->parts);
    if (cuda(b, b->rt.malloc((void **)&b->plain, b->bytes), "take device memory") < 0 ||
        cuda(b, b->rt.malloc((void **)&b->packed, b->bytes), "take device memory") < 0 ||
        cuda(b, b->rt.malloc((void **)&b->there, b->tables_bytes), "take device memory") < 0)
        return -1;
    lay_out(&b->on_device, b->there, b->parts);
    fill_weights(b->sample, (uint64_t)DISTINCT * b->part_bytes);
    for (uint32_t i = 0; i < b->parts; i++)
        if (cuda(b,
                 b->rt.copy(b->plain + (uint64_t)i * b->part_bytes,
                            b->sample + (uint64_t)(i % DISTINCT) * b->part_bytes, b->part_bytes, GPU_TO_DEVICE),
                 "fill the state") < 0)
            return -1;
    return 0;
}

/* ---- runs ------------------------------------------------------------------------------------ */

static int timed(struct bench *b, const char *name, void *kernel, uint32_t blocks, uint32_t threads, void *arg)
{
    void *args[] = {arg};
    double seconds[MOST];

    for (unsigned i = 0; i <= b->reps; i++) { /* the first loads the code */
        double begin = now();
        if (cuda(b,
                 b->rt.launch(kernel, (struct gpu_dim){blocks, 1, 1}, (struct gpu_dim){threads, 1, 1}, args, 0, NULL),
                 name) < 0 ||
            cuda(b, b->rt.wait(), name) < 0)
            return -1;
        if (i)
            seconds[i - 1] = now() - begin;
    }
    printf("\"%s_s\": [", name);
    for (unsigned i = 0; i < b->reps; i++)
        printf("%s%.9f", i ? ", " : "", seconds[i]);
    printf("], ");
    return 0;
}

static int check_packed(struct bench *b, uint64_t *ret_packed)
{
    uint8_t *want = malloc(b->part_bytes);
    int r = want ? cuda(b, b->rt.copy(b->back, b->packed, b->bytes, GPU_TO_HOST), "fetch what was packed") : -1;

    if (r == 0)
        r = cuda(b, b->rt.copy(b->on_host.len, b->on_device.len, b->parts * sizeof *b->on_host.len, GPU_TO_HOST),
                 "fetch lengths");
    for (uint32_t i = 0; r == 0 && i < b->parts; i++) {
        uint32_t len = b->on_host.len[i];
        *ret_packed += len ? len : b->part_bytes;
        if (i >= DISTINCT)
            continue;
        int64_t n = part_encode(kernel_best(), b->sample + (uint64_t)i * b->part_bytes, b->part_bytes, CAIRN_BF16, 0,
                                want, b->part_bytes);
        if (n != len || memcmp(want, b->back + (uint64_t)i * b->part_bytes, len) != 0) {
            fprintf(stderr, "part %u is packed differently: %u bytes, the processor makes %lld\n", i, len,
                    (long long)n);
            r = -1;
        }
    }
    free(want);
    return r;
}

static int check_unpacked(struct bench *b)
{
    if (cuda(b, b->rt.copy(b->back, b->plain, b->bytes, GPU_TO_HOST), "fetch what was unpacked") < 0)
        return -1;
    for (uint32_t i = 0; i < b->parts; i++)
        if (memcmp(b->back + (uint64_t)i * b->part_bytes, b->sample + (uint64_t)(i % DISTINCT) * b->part_bytes,
                   b->part_bytes) != 0) {
            fprintf(stderr, "part %u is not what was packed\n", i);
            return -1;
        }
    return 0;
}

static int measure(struct bench *b)
{
    const struct tables *t = &b->on_device;
    struct gpu_sums sums = {t->part, t->base, t->sums, 1, b->parts, 0};
    struct gpu_pack pack = {t->part, t->base, t->width, t->to, t->room, b->packed, t->len, 0, b->parts, NULL, 0};
    struct gpu_unpack unpack = {t->part, t->base, t->width, t->to, t->room, b->plain, t->len, b->parts, 0};
    uint64_t packed = 0;

    if (send_tables(b, b->plain, NULL) < 0 ||
        timed(b, "sums", b->sums, gpu_sums_blocks(b->parts), GPU_SUMS_THREADS, &sums) < 0 ||
        timed(b, "pack", b->pack, gpu_pack_blocks(b->parts), GPU_PACK_THREADS, &pack) < 0 ||
        check_packed(b, &packed) < 0)
        return -1;
    printf("\"packed_bytes\": %llu, ", (unsigned long long)packed);
    uint32_t *len = malloc(b->parts * sizeof *len);
    if (!len)
        return -1;
    memcpy(len, b->on_host.len, b->parts * sizeof *len);
    int r = send_tables(b, b->packed, len);
    free(len);
    if (r < 0 || cuda(b, b->rt.memset_async(b->plain, 0, b->bytes, NULL), "clear the state") < 0 ||
        timed(b, "unpack", b->unpack, gpu_unpack_blocks(b->parts), GPU_UNPACK_THREADS, &unpack) < 0)
        return -1;
    return check_unpacked(b);
}

static void end(struct bench *b)
{
    if (b->rt.free) {
        b->rt.free(b->plain);
        b->rt.free(b->packed);
        b->rt.free(b->there);
    }
    free(b->host);
    free(b->sample);
    free(b->back);
}

int main(int argc, char **argv)
{
    static const struct option names[] = {{"parts", required_argument, NULL, 'n'},
                                          {"part-kib", required_argument, NULL, 'k'},
                                          {"reps", required_argument, NULL, 'r'},
                                          {NULL, 0, NULL, 0}};
    struct bench b = {.parts = 2048, .part_bytes = 1 << 20, .reps = 10};
    int c;

    while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
        uint32_t v = c == '?' ? 0 : (uint32_t)strtoul(optarg, NULL, 10);
        if (c == 'n')
            b.parts = v;
        else if (c == 'k')
            b.part_bytes = v << 10;
        else if (c == 'r')
            b.reps = v;
        else
            b.reps = 0;
    }
    if (b.parts < DISTINCT || b.parts > 65536 || b.part_bytes < 1024 || b.part_bytes > 16 << 20 || !b.reps ||
        b.reps > MOST) {
        fprintf(stderr, "usage: bench-gpu-kernels [--parts 16..65536] [--part-kib 1..16384] [--reps 1..%d]\n", MOST);
        return 2;
    }
    printf("{");
    int r = gpu_runtime_open(&b.rt);
    if (r == 0)
        r = cuda(&b, b.rt.set_device(0), "use the device");
    if (r == 0)
        r = load_kernels(&b);
    if (r == 0)
        r = setup(&b);
    if (r == 0)
        r = measure(&b);
    printf("\"plain_bytes\": %llu}\n", (unsigned long long)b.bytes);
    end(&b);
    return r < 0 ? 1 : 0;
}
