/* SPDX-License-Identifier: Apache-2.0 */
/* A device plugin beside the runtime's own copies, in one process and in turns: what bench/gpu knows of the plugin
 * without Python.
 *
 *   bench-gpu-copy --plugin FILE [--mib N] [--slice-mib N] [--many N] [--many-kib N] [--reps N] [--seconds N]
 *
 * Prints one JSON object: lists of seconds (copy and limit are pairs; ..._device_s as the device's clock has it), and
 * what was copied and skipped. What arrives is compared, byte by byte, outside of what is timed; what arrives packed is
 * unpacked for that by cairn-codec-float.so, which has to be beside the plugin. */
#include "bench/clock.h"
#include "bench/gpu_runtime.h"
#include <cairn/plugin.h>

#include <dlfcn.h>
#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PART ((uint64_t)1 << 20)
#define DEADLINE_S 60
#define ALONE (64 * PART) /* bytes of one copy of the limit: a power of two */
#define WEIGHTS (3 * PART + 8192)
#define GAP 512 /* bytes between small slices, as an allocator leaves: so that no two are one copy */

struct options {
    const char *plugin;
    uint64_t bytes, slice, many, many_bytes;
    unsigned reps;
    double seconds;
};

/* A state on the device: slices of one size, GAP apart, whose image is dense. */
struct state {
    uint32_t nslices, nparts;
    uint64_t slice, step; /* bytes of a slice; from one to the next on the device */
    uint64_t bytes;       /* of the image */
    char *device;
    struct cairn_device_plan *plan;
    const void **data;
    struct cairn_device_sum *sums; /* what each page holds, once a save has told */
    const char *pattern;           /* what slices are filled from: slice i begins i * 4096 into it, more or less */
    uint8_t width;                 /* of an element, when it is for packing; else 0 */
    uint32_t *packed;              /* of each page, as the last save has told */
};

struct bench {
    struct options o;
    struct gpu_runtime rt;
    const struct cairn_device_ops *ops;
    struct cairn_device *device;
    void *stream;
    char *pages; /* pinned by the plugin */
    uint64_t pages_bytes;
    void **page;
    char *pattern, *weights; /* random bytes; bf16 as in a model */
    uint64_t pattern_bytes;
    const struct cairn_codec_ops *codec;
    double begin;
    bool first; /* nothing was printed yet */
};

static int cuda(const struct bench *b, int code, const char *what)
{
    if (code == 0)
        return 0;
    fprintf(stderr, "%s: %s\n", what, b->rt.text(code));
    return -1;
}

static int failed(const char *what, const struct cairn_error *err)
{
    fprintf(stderr, "%s: %s\n", what, err->message);
    return -1;
}

static bool has_time(const struct bench *b, unsigned done)
{
    return done < b->o.reps && (done < 3 || now() - b->begin < b->o.seconds);
}

/* ---- output ---------------------------------------------------------------------------------- */

static void print_list(struct bench *b, const char *name, const double *values, unsigned n)
{
    printf("%s\"%s\": [", b->first ? "{" : ", ", name);
    for (unsigned i = 0; i < n; i++)
        printf("%s%.9f", i ? ", " : "", values[i]);
    printf("]");
    b->first = false;
}

static void print_number(struct bench *b, const char *name, uint64_t value)
{
    printf("%s\"%s\": %llu", b->first ? "{" : ", ", name, (unsigned long long)value);
    b->first = false;
}

/* ---- states ---------------------------------------------------------------------------------- */

static uint64_t pattern_at(const struct bench *b, const struct state *s, uint32_t i)
{
    return (uint64_t)i * 4096 % (b->pattern_bytes - s->slice);
}

static int fill(struct bench *b, struct state *s)
{
    for (uint32_t i = 0; i < s->nslices; i++) {
        if (cuda(b, b->rt.copy(s->device + i * s->step, s->pattern + pattern_at(b, s, i), s->slice, GPU_TO_DEVICE),
                 "fill the state") < 0)
            return -1;
    }
    return cuda(b, b->rt.wait(), "fill the state"); /* the stream that saves follow is ordered behind no other */
}

static int make_plan(struct bench *b, struct state *s)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_slice *slices = calloc(s->nslices, sizeof *slices);
    uint32_t *part_len = calloc(s->nparts, sizeof *part_len);
    uint8_t *alone = malloc(s->nparts), *width = malloc(s->nparts);
    int r = -1;

    if (slices && part_len && alone && width) {
        for (uint32_t i = 0; i < s->nslices; i++)
            slices[i] = (struct cairn_device_slice){
                .dtype = CAIRN_U8, .ndim = 1, .length = &s->slice, .image_offset = i * s->slice, .bytes = s->slice};
        for (uint32_t i = 0; i < s->nparts; i++)
            part_len[i] = (uint32_t)(s->bytes - i * PART < PART ? s->bytes - i * PART : PART);
        memset(alone, 1, s->nparts);
        memset(width, s->width, s->nparts);
        struct cairn_device_layout layout = {sizeof layout, slices, s->nslices, s->nparts, part_len, alone, width};
        r = b->ops->plan(b->device, &layout, &s->plan, &err);
        if (r < 0)
            failed("make a plan", &err);
    }
    free(slices);
    free(part_len);
    free(alone);
    free(width);
    return r;
}

static void state_end(struct bench *b, struct state *s)
{
    if (s->plan)
        b->ops->plan_free(s->plan);
    if (s->device)
        b->rt.free(s->device);
    free(s->data);
    free(s->sums);
    free(s->packed);
}

static int state_begin(struct bench *b, struct state *s, uint32_t nslices, uint64_t slice, uint64_t gap, uint8_t width)
{
    *s = (struct state){
        .nslices = nslices, .slice = slice, .step = slice + gap, .bytes = nslices * slice, .width = width};
    s->nparts = (uint32_t)((s->bytes + PART - 1) / PART);
    s->data = calloc(nslices, sizeof *s->data);
    s->sums = calloc(s->nparts, sizeof *s->sums);
    s->packed = calloc(s->nparts, sizeof *s->packed);
    s->pattern = width ? b->weights : b->pattern;
    if (!s->data || !s->sums || !s->packed || s->bytes > b->pages_bytes) {
        fprintf(stderr, "make a state of %llu bytes: no memory\n", (unsigned long long)s->bytes);
        return -1;
    }
    if (cuda(b, b->rt.malloc((void **)&s->device, nslices * s->step), "take device memory for the state") < 0)
        return -1;
    for (uint32_t i = 0; i < nslices; i++)
        s->data[i] = s->device + i * s->step;
    if (fill(b, s) < 0)
        return -1;
    return make_plan(b, s);
}

/* Whether the pages hold the state; slices from `changed` on are all of one byte. */
static int compare(struct bench *b, struct state *s, uint32_t changed, int byte)
{
    for (uint32_t i = 0; i < s->nslices; i++) {
        const char *at = b->pages + i * s->slice;
        bool same = i < changed ? memcmp(at, s->pattern + pattern_at(b, s, i), s->slice) == 0
                                : *at == (char)byte && memcmp(at, at + 1, s->slice - 1) == 0;
        if (!same) {
            fprintf(stderr, "slice %u has arrived as something else\n", i);
            return -1;
        }
    }
    return 0;
}

/* The pages as they would be without packing. */
static int unpack(struct bench *b, struct state *s)
{
    static char plain[PART];

    for (uint32_t i = 0; i < s->nparts; i++) {
        uint64_t len = s->bytes - i * PART < PART ? s->bytes - i * PART : PART;
        char *page = b->pages + i * PART;
        if (s->packed[i] == 0)
            continue;
        if (!b->codec || b->codec->decode(page, s->packed[i], CAIRN_BF16, plain, len) < 0) {
            fprintf(stderr, "part %u cannot be unpacked%s\n", i, b->codec ? "" : ": no cairn-codec-float.so beside it");
            return -1;
        }
        memcpy(page, plain, len);
    }
    return 0;
}

/* ---- saves ----------------------------------------------------------------------------------- */

struct saved {
    double held_s, copy_s, device_s; /* of the calling thread; until all has arrived; of that on the device */
    uint64_t copied, skipped;
    bool sums, packed;
};

static int wait_for(struct bench *b, struct cairn_device_copy *copy, struct cairn_device_progress *p)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    double end = now() + DEADLINE_S;

    for (;;) {
        p->size = sizeof *p;
        int r = b->ops->progress(copy, p, &err);
        if (p->ended)
            return r < 0 ? failed("copy", &err) : 0;
        if (now() > end) {
            fprintf(stderr, "copy: not within %d s\n", DEADLINE_S);
            _exit(1); /* memory is still in use */
        }
        sched_yield();
    }
}

static int save(struct bench *b, struct state *s, uint32_t flags, struct saved *ret)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_copy *copy = NULL;
    struct cairn_device_progress p = {.ended = 0};
    struct cairn_device_save request = {.size = sizeof request,
                                        .data = s->data,
                                        .page = b->page,
                                        .stream = b->stream,
                                        .flags = flags,
                                        .seed = 1,
                                        .held = flags & CAIRN_DEVICE_SKIP ? s->sums : NULL};
    double begin = now();
    int r = b->ops->save(s->plan, &request, &copy, &err);

    if (r < 0)
        return failed("save", &err);
    ret->held_s = now() - begin;
    r = wait_for(b, copy, &p);
    ret->copy_s = now() - begin;
    ret->copied = p.copied_bytes;
    ret->skipped = p.skipped_bytes;
    ret->device_s = (double)p.device_ns / 1e9;
    ret->sums = p.sums != NULL;
    ret->packed = p.packed != NULL;
    if (r == 0 && p.sums)
        memcpy(s->sums, p.sums, s->nparts * sizeof *s->sums);
    memset(s->packed, 0, s->nparts * sizeof *s->packed);
    if (r == 0 && p.packed)
        memcpy(s->packed, p.packed, s->nparts * sizeof *s->packed);
    b->ops->copy_free(copy);
    return r;
}

/* In pieces: no copy of the runtime's may lead from one registration to the next, and plugins register in pieces. */
static int copy_alone(struct bench *b, const struct state *s, int direction, double *ret_s)
{
    double begin = now();
    int code = 0;

    for (uint64_t at = 0; code == 0 && at < s->bytes; at += ALONE) {
        uint64_t len = s->bytes - at < ALONE ? s->bytes - at : ALONE;
        code = direction == GPU_TO_HOST ? b->rt.copy_async(b->pages + at, s->device + at, len, direction, b->stream)
                                        : b->rt.copy_async(s->device + at, b->pages + at, len, direction, b->stream);
    }
    if (cuda(b, code, "copy alone") < 0 || cuda(b, b->rt.stream_wait(b->stream), "copy alone") < 0)
        return -1;
    *ret_s = now() - begin;
    return 0;
}

/* So that what does not arrive is found: a byte of each small page. */
static void spoil(struct bench *b, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += 4096)
        b->pages[at] = (char)~b->pages[at];
}

#define MOST 200

/* After one that is compared, and warms up: copies in turns with the runtime's own of the same bytes to the same pages.
 */
static int copies(struct bench *b, struct state *s, uint32_t flags, const char *name, bool limit)
{
    double held[MOST], copy[MOST], device[MOST], alone[MOST];
    char text[64];
    unsigned n = 0;
    struct saved done = {0};

    spoil(b, s->bytes);
    if (save(b, s, flags, &done) < 0 || unpack(b, s) < 0 || compare(b, s, s->nslices, 0) < 0)
        return -1;
    if ((flags & CAIRN_DEVICE_PACK) && !done.packed)
        return 1;
    for (b->begin = now(); has_time(b, n); n++) {
        if (limit && n % 2 && copy_alone(b, s, GPU_TO_HOST, &alone[n]) < 0)
            return -1;
        if (save(b, s, flags, &done) < 0)
            return -1;
        held[n] = done.held_s;
        copy[n] = done.copy_s;
        device[n] = done.device_s;
        if (limit && n % 2 == 0 && copy_alone(b, s, GPU_TO_HOST, &alone[n]) < 0)
            return -1;
    }
    snprintf(text, sizeof text, "%s_held_s", name);
    print_list(b, text, held, n);
    snprintf(text, sizeof text, "%s_s", name);
    print_list(b, text, copy, n);
    snprintf(text, sizeof text, "%s_device_s", name);
    print_list(b, text, device, n);
    snprintf(text, sizeof text, "%s_bytes", name);
    print_number(b, text, s->bytes);
    snprintf(text, sizeof text, "%s_copied_bytes", name);
    print_number(b, text, done.copied);
    if (limit)
        print_list(b, "d2h_limit_s", alone, n);
    return done.sums || !(flags & CAIRN_DEVICE_SUMS) ? 0 : 1;
}

/* Nothing has changed: sums alone. Then half of the slices change. */
static int unchanged(struct bench *b, struct state *s)
{
    double taken[MOST];
    uint32_t half = s->nslices / 2;
    unsigned n = 0;
    struct saved done = {0};

    for (b->begin = now(); has_time(b, n); n++) {
        if (save(b, s, CAIRN_DEVICE_SKIP, &done) < 0)
            return -1;
        taken[n] = done.copy_s;
    }
    print_list(b, "unchanged_s", taken, n);
    print_number(b, "unchanged_bytes", s->bytes);
    print_number(b, "unchanged_copied_bytes", done.copied);
    for (uint32_t i = half; i < s->nslices; i++) {
        if (cuda(b, b->rt.memset_async(s->device + i * s->step, 0x5a, s->slice, b->stream), "change the state") < 0)
            return -1;
    }
    if (cuda(b, b->rt.wait(), "change the state") < 0 || save(b, s, CAIRN_DEVICE_SKIP, &done) < 0 ||
        compare(b, s, half, 0x5a) < 0)
        return -1;
    print_number(b, "half_changed_bytes", (s->nslices - half) * s->slice);
    print_number(b, "half_copied_bytes", done.copied);
    print_number(b, "half_skipped_bytes", done.skipped);
    return 0;
}

/* ---- restores -------------------------------------------------------------------------------- */

static int load_all(struct bench *b, struct state *s, struct cairn_device_loader *loader)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    double end = now() + DEADLINE_S;
    uint64_t ticket = 0;
    int r = 0;

    for (uint32_t i = 0; i < s->nslices;) {
        struct cairn_device_run run = {b->pages + i * s->slice, s->device + i * s->step, s->slice, 1, 1, 0};
        r = b->ops->load(loader, &run, 1, &ticket, &err);
        if (r == CAIRN_E_BUSY && now() < end)
            sched_yield();
        else if (r < 0)
            return failed("load", &err);
        else
            i++;
        if (r == CAIRN_E_BUSY && (r = b->ops->loaded(loader, ticket, &err)) < 0)
            return failed("load", &err);
    }
    while ((r = b->ops->loaded(loader, ticket, &err)) == 0) {
        if (now() > end) {
            fprintf(stderr, "load: not within %d s\n", DEADLINE_S);
            _exit(1);
        }
        sched_yield();
    }
    return r < 0 ? failed("load", &err) : 0;
}

static int loads(struct bench *b, struct state *s)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_loader *loader = NULL;
    double taken[MOST], alone[MOST];
    unsigned n = 0;
    int r = b->ops->loader(b->device, &loader, &err);

    if (r < 0)
        return failed("make a loader", &err);
    for (b->begin = now(); r == 0 && has_time(b, n); n++) {
        r = copy_alone(b, s, GPU_TO_DEVICE, &alone[n]);
        double begin = now();
        if (r == 0)
            r = load_all(b, s, loader);
        taken[n] = now() - begin;
    }
    b->ops->loader_free(loader);
    if (r == 0) {
        print_list(b, "load_s", taken, n);
        print_list(b, "h2d_limit_s", alone, n);
        print_number(b, "load_bytes", s->bytes);
    }
    return r;
}

/* ---- setting up ------------------------------------------------------------------------------ */

/* Without it nothing that is packed can be compared. */
static void find_codec(struct bench *b)
{
    const struct cairn_plugin *(*entry)(void) = NULL;
    const char *name = strrchr(b->o.plugin, '/');
    char path[4096];

    snprintf(path, sizeof path, "%.*scairn-codec-float.so", name ? (int)(name + 1 - b->o.plugin) : 0, b->o.plugin);
    void *dso = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (dso)
        *(void **)&entry = dlsym(dso, "cairn_plugin_entry");
    const struct cairn_plugin *plugin = entry ? entry() : NULL;
    b->codec = plugin && plugin->kind == CAIRN_PLUGIN_CODEC ? plugin->ops : NULL;
}

static int open_plugin(struct bench *b)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    const struct cairn_plugin *(*entry)(void) = NULL;
    void *dso = dlopen(b->o.plugin, RTLD_NOW | RTLD_LOCAL);
    char text[512] = "";

    if (dso)
        *(void **)&entry = dlsym(dso, "cairn_plugin_entry");
    const struct cairn_plugin *plugin = entry ? entry() : NULL;
    if (!plugin || plugin->kind != CAIRN_PLUGIN_DEVICE) {
        fprintf(stderr, "open %s: %s\n", b->o.plugin, dso ? "it is no device plugin" : dlerror());
        return -1;
    }
    b->ops = plugin->ops;
    find_codec(b);
    struct cairn_device_options options = {.size = sizeof options, .staging_bytes = 256 * PART};
    if (b->ops->open(&options, &b->device, &err) < 0)
        return failed("open the device", &err);
    b->ops->describe(b->device, text, sizeof text);
    fprintf(stderr, "%s\n", text);
    return 0;
}

/* About normal, the highest bytes of floats; the same again and again, as making them takes time. */
static void fill_weights(char *to, uint64_t bytes)
{
    uint64_t x = 1442695040888963407u, made = bytes < WEIGHTS ? bytes : WEIGHTS;

    for (uint64_t i = 0; i + 2 <= made; i += 2) {
        float sum = 0;
        uint32_t bits;
        for (int k = 0; k < 4; k++) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            sum += (float)(int32_t)(uint32_t)x / 2147483648.0f * 0.02f;
        }
        memcpy(&bits, &sum, sizeof bits);
        to[i] = (char)(bits >> 16);
        to[i + 1] = (char)(bits >> 24);
    }
    for (uint64_t i = made, n; i < bytes; i += n) {
        n = bytes - i < made ? bytes - i : made;
        memcpy(to + i, to, n);
    }
}

static int make_pages(struct bench *b)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t n = b->pages_bytes / PART;
    double seconds;

    b->pages = mmap(NULL, b->pages_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    b->page = calloc(n, sizeof *b->page);
    b->pattern = malloc(b->pattern_bytes);
    b->weights = malloc(b->pattern_bytes);
    if (b->pages == MAP_FAILED || !b->page || !b->pattern || !b->weights) {
        fprintf(stderr, "take %llu MiB of memory: %s\n", (unsigned long long)(b->pages_bytes >> 20), strerror(errno));
        return -1;
    }
    madvise(b->pages, b->pages_bytes, MADV_HUGEPAGE);
    memset(b->pages, 0, b->pages_bytes);
    for (uint64_t i = 0; i < n; i++)
        b->page[i] = b->pages + i * PART;
    uint64_t x = 88172645463325252u;
    for (uint64_t i = 0; i + 8 <= b->pattern_bytes; i += 8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(b->pattern + i, &x, 8);
    }
    fill_weights(b->weights, b->pattern_bytes);
    seconds = now();
    if (b->ops->pin(b->device, b->pages, b->pages_bytes, &err) < 0)
        return failed("pin memory", &err);
    seconds = now() - seconds;
    print_list(b, "pin_s", &seconds, 1);
    print_number(b, "pin_bytes", b->pages_bytes);
    return 0;
}

static int measure_large(struct bench *b)
{
    struct state s;
    int r = state_begin(b, &s, (uint32_t)(b->o.bytes / b->o.slice), b->o.slice, 0, 0);

    if (r == 0)
        r = copies(b, &s, 0, "copy", true);
    if (r == 0)
        r = loads(b, &s);
    if (r == 0)
        r = copies(b, &s, CAIRN_DEVICE_SUMS, "summed", false);
    if (r == 0)
        r = unchanged(b, &s);
    else if (r > 0) { /* without kernels nothing more can be had, and it is no error */
        fprintf(stderr, "the plugin gives no sums here\n");
        r = 0;
    }
    state_end(b, &s);
    return r;
}

/* As CAIRN_PACK asks for it; a quarter of the bytes, as the emulator of tests takes its time. */
static int measure_packed(struct bench *b)
{
    struct state s;
    uint64_t n = b->o.bytes / 4 / b->o.slice;
    int r = state_begin(b, &s, n > 2 ? (uint32_t)n : 2, b->o.slice, 0, 2);

    if (r == 0)
        r = copies(b, &s, CAIRN_DEVICE_PACK | CAIRN_DEVICE_SUMS, "packed", false);
    if (r > 0)
        fprintf(stderr, "the plugin packs nothing here\n");
    state_end(b, &s);
    return r < 0 ? r : 0;
}

static int measure_many(struct bench *b)
{
    struct state s;
    int r = state_begin(b, &s, (uint32_t)b->o.many, b->o.many_bytes, GAP, 0);

    if (r == 0)
        r = copies(b, &s, 0, "many", false);
    state_end(b, &s);
    return r;
}

static int measure(struct bench *b)
{
    uint64_t many = b->o.many * b->o.many_bytes, most = b->o.bytes > many ? b->o.bytes : many;

    b->pages_bytes = (most + 2 * PART - 1) / PART * PART;
    b->pattern_bytes = 2 * (b->o.slice > b->o.many_bytes ? b->o.slice : b->o.many_bytes);
    if (gpu_runtime_open(&b->rt) < 0 || cuda(b, b->rt.set_device(0), "use the device") < 0 || open_plugin(b) < 0)
        return -1;
    if (cuda(b, b->rt.stream_create(&b->stream, 1), "make a stream") < 0 || make_pages(b) < 0)
        return -1;
    int r = measure_large(b);
    if (r == 0)
        r = measure_packed(b);
    if (r == 0)
        r = measure_many(b);
    b->rt.stream_destroy(b->stream);
    b->ops->unpin(b->device, b->pages, b->pages_bytes);
    b->ops->close(b->device);
    munmap(b->pages, b->pages_bytes);
    free(b->page);
    free(b->pattern);
    free(b->weights);
    return r;
}

static bool parse(struct options *o, int argc, char **argv)
{
    static const struct option names[] = {
        {"plugin", required_argument, NULL, 'p'},    {"mib", required_argument, NULL, 'm'},
        {"slice-mib", required_argument, NULL, 's'}, {"many", required_argument, NULL, 'n'},
        {"many-kib", required_argument, NULL, 'k'},  {"reps", required_argument, NULL, 'r'},
        {"seconds", required_argument, NULL, 't'},   {NULL, 0, NULL, 0}};
    int c;

    while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
        uint64_t v = c == 'p' || c == '?' ? 0 : strtoull(optarg, NULL, 10);
        switch (c) {
        case 'p':
            o->plugin = optarg;
            break;
        case 'm':
            o->bytes = v * PART;
            break;
        case 's':
            o->slice = v * PART;
            break;
        case 'n':
            o->many = v;
            break;
        case 'k':
            o->many_bytes = v << 10;
            break;
        case 'r':
            o->reps = (unsigned)v;
            break;
        case 't':
            o->seconds = (double)v;
            break;
        default:
            return false;
        }
    }
    return o->plugin && o->slice && o->bytes >= 2 * o->slice && o->many && o->many_bytes && o->reps && o->reps <= MOST;
}

int main(int argc, char **argv)
{
    struct bench b = {.first = true,
                      .o = {.bytes = 8192 * PART,
                            .slice = 64 * PART,
                            .many = 10000,
                            .many_bytes = 256 << 10,
                            .reps = 15,
                            .seconds = 5}};

    if (!parse(&b.o, argc, argv)) {
        fprintf(
            stderr,
            "usage: bench-gpu-copy --plugin FILE [--mib N] [--slice-mib N] [--many N] [--many-kib N] [--reps 1..%d] "
            "[--seconds N]\n",
            MOST);
        return 2;
    }
    int r = measure(&b);
    printf("%s\n", b.first ? "{}" : "}");
    return r < 0 ? 1 : 0;
}
