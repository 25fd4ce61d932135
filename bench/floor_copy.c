/* SPDX-License-Identifier: Apache-2.0 */
/* Stores that go past the cache, so that nothing is read of what is overwritten. Either in blocks of four pages, walked
 * side by side: as many open DRAM rows as four pages give; or line by line, as the hardware's own prefetch likes it.
 * What is shorter than a block, or than a line, goes through memcpy. */
#include "bench/floor_copy.h"

#include "bench/clock.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define PAGE ((size_t)4096)
#define BLOCK (4 * PAGE)
#define LINE ((size_t)64)
#define ROUNDS 4

struct task {
    enum floor_kind kind;
    const struct floor_piece *pieces;
    size_t n;
    size_t begin, end; /* of all pieces' bytes, one after the other */
    uint64_t sum;      /* of what was read, so that the reads are not left out */
};

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void blocks_avx512(char *to, const char *from, size_t len)
{
    for (size_t b = 0; b < len; b += BLOCK)
        for (size_t i = b; i < b + PAGE; i += 128) {
            for (size_t p = i; p < i + BLOCK; p += PAGE) {
                _mm_prefetch(from + p + 512, _MM_HINT_T0);
                _mm_prefetch(from + p + 576, _MM_HINT_T0);
            }
            for (size_t p = i; p < i + BLOCK; p += PAGE) {
                __m512i x = _mm512_loadu_si512(from + p), y = _mm512_loadu_si512(from + p + 64);
                _mm512_stream_si512((void *)(to + p), x);
                _mm512_stream_si512((void *)(to + p + 64), y);
            }
        }
    _mm_sfence();
}

__attribute__((target("avx2"))) static void blocks_avx2(char *to, const char *from, size_t len)
{
    for (size_t b = 0; b < len; b += BLOCK)
        for (size_t i = b; i < b + PAGE; i += 64)
            for (size_t p = i; p < i + BLOCK; p += PAGE) {
                __m256i x = _mm256_loadu_si256((const void *)(from + p));
                __m256i y = _mm256_loadu_si256((const void *)(from + p + 32));
                _mm_prefetch(from + p + 512, _MM_HINT_T0);
                _mm256_stream_si256((void *)(to + p), x);
                _mm256_stream_si256((void *)(to + p + 32), y);
            }
    _mm_sfence();
}

__attribute__((target("avx512f"))) static void lines_avx512(char *to, const char *from, size_t len)
{
    for (size_t i = 0; i < len; i += LINE)
        _mm512_stream_si512((void *)(to + i), _mm512_loadu_si512(from + i));
    _mm_sfence();
}

__attribute__((target("avx2"))) static void lines_avx2(char *to, const char *from, size_t len)
{
    for (size_t i = 0; i < len; i += LINE) {
        __m256i x = _mm256_loadu_si256((const void *)(from + i));
        __m256i y = _mm256_loadu_si256((const void *)(from + i + 32));
        _mm256_stream_si256((void *)(to + i), x);
        _mm256_stream_si256((void *)(to + i + 32), y);
    }
    _mm_sfence();
}
#endif

static void stream(enum floor_kind kind, char *to, const char *from, size_t len)
{
    size_t whole = 0;
#if defined(__x86_64__)
    bool wide = __builtin_cpu_supports("avx512f"), lines = kind == FLOOR_LINES;
    size_t unit = lines ? LINE : BLOCK;

    if (((uintptr_t)to & (LINE - 1)) == 0 && (wide || __builtin_cpu_supports("avx2"))) {
        whole = len / unit * unit;
        if (lines)
            (wide ? lines_avx512 : lines_avx2)(to, from, whole);
        else
            (wide ? blocks_avx512 : blocks_avx2)(to, from, whole);
    }
#else
    (void)kind;
#endif
    memcpy(to + whole, from + whole, len - whole);
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3")))
#endif
static uint64_t
read_all(const char *from, size_t len)
{
    uint64_t sum = 0, w;

    for (size_t i = 0; i + 8 <= len; i += 8) {
        memcpy(&w, from + i, 8);
        sum += w;
    }
    return sum;
}

/* Where pieces are cut is a multiple of a block from the piece's begin, so that both sides stay aligned. */
static size_t cut(size_t at, size_t len)
{
    return at >= len ? len : at / BLOCK * BLOCK;
}

static void *work(void *arg)
{
    struct task *t = arg;
    size_t at = 0;

    for (size_t i = 0; i < t->n && at < t->end; at += t->pieces[i].len, i++) {
        const struct floor_piece *p = &t->pieces[i];
        if (at + p->len <= t->begin)
            continue;
        size_t from = t->begin > at ? cut(t->begin - at, p->len) : 0;
        size_t to = cut(t->end - at, p->len);
        if (t->kind == FLOOR_READ)
            t->sum += read_all(p->from + from, to - from);
        else if (t->kind == FLOOR_MEMCPY)
            memcpy(p->to + from, p->from + from, to - from);
        else
            stream(t->kind, p->to + from, p->from + from, to - from);
    }
    return NULL;
}

double floor_run(enum floor_kind kind, const struct floor_piece *pieces, size_t n, unsigned threads)
{
    struct task tasks[FLOOR_MAX_THREADS];
    pthread_t ids[FLOOR_MAX_THREADS];
    size_t total = 0;
    unsigned made = 1;
    volatile uint64_t sum = 0;

    for (size_t i = 0; i < n; i++)
        total += pieces[i].len;
    if (threads < 1 || threads > FLOOR_MAX_THREADS)
        return -1;
    for (unsigned i = 0; i < threads; i++)
        tasks[i] =
            (struct task){kind, pieces, n, total / threads * i, i + 1 < threads ? total / threads * (i + 1) : total, 0};
    double begin = now();
    while (made < threads && pthread_create(&ids[made], NULL, work, &tasks[made]) == 0)
        made++;
    work(&tasks[0]);
    for (unsigned i = 1; i < made; i++)
        pthread_join(ids[i], NULL);
    double took = now() - begin;
    for (unsigned i = 0; i < made; i++)
        sum += tasks[i].sum;
    (void)sum; /* the reads must not be left out */
    return made == threads ? took : -1;
}

enum floor_kind floor_best(const struct floor_piece *pieces, size_t n, unsigned threads)
{
    double least[FLOOR_COPIES] = {0};
    unsigned best = 0;

    for (unsigned i = 0; i < ROUNDS * FLOOR_COPIES; i++) {
        unsigned kind = i % FLOOR_COPIES;
        double s = floor_run(kind, pieces, n, threads);
        if (i >= FLOOR_COPIES && s > 0 && (least[kind] == 0 || s < least[kind])) /* the first round warms up */
            least[kind] = s;
    }
    for (unsigned kind = 1; kind < FLOOR_COPIES; kind++)
        if (least[kind] > 0 && (least[best] == 0 || least[kind] < least[best]))
            best = kind;
    return best;
}

const char *floor_name(enum floor_kind kind)
{
    static const char *const names[] = {
        [FLOOR_PAGES] = "pages", [FLOOR_LINES] = "lines", [FLOOR_MEMCPY] = "memcpy", [FLOOR_READ] = "read"};

    return names[kind];
}
