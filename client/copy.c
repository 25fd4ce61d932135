/* SPDX-License-Identifier: Apache-2.0 */
/* A streaming copy: the head up to an aligned destination, blocks of four pages walked side by side (so that four DRAM
 * pages are open and the prefetchers see four streams) where that is faster, single lines, and the tail. */
#include "client/copy.h"

#include <stdint.h>
#include <string.h>

#define LINE ((size_t)64)
#define PAGE ((size_t)4096)
#define PAGES ((size_t)4)        /* walked side by side */
#define AHEAD ((size_t)512)      /* bytes that the prefetch runs ahead of the loads */
#define SMALL ((size_t)32 << 10) /* below it the caches win */
#define SMALL_LINES ((size_t)2 << 10)
#define CACHED ((size_t)64 << 10)

#if defined(__x86_64__)
#include <immintrin.h>

/* One pair of lines from each of the four pages of the block. */
__attribute__((target("avx512f"))) static void block_avx512(char *dst, const char *src)
{
    for (size_t at = 0; at < PAGE; at += 2 * LINE) {
        for (size_t p = 0; p < PAGES; p++) {
            _mm_prefetch(src + p * PAGE + at + AHEAD, _MM_HINT_T0);
            _mm_prefetch(src + p * PAGE + at + AHEAD + LINE, _MM_HINT_T0);
        }
        for (size_t p = 0; p < PAGES; p++) {
            const char *from = src + p * PAGE + at;
            char *to = dst + p * PAGE + at;
            __m512i a = _mm512_loadu_si512(from);
            __m512i b = _mm512_loadu_si512(from + LINE);
            _mm512_stream_si512((void *)to, a);
            _mm512_stream_si512((void *)(to + LINE), b);
        }
    }
}

__attribute__((target("avx512f"))) static void line_avx512(char *dst, const char *src)
{
    _mm512_stream_si512((void *)dst, _mm512_loadu_si512(src));
}

__attribute__((target("avx2"))) static void line_avx2(char *dst, const char *src)
{
    __m256i a = _mm256_loadu_si256((const void *)src);
    __m256i b = _mm256_loadu_si256((const void *)(src + LINE / 2));

    _mm256_stream_si256((void *)dst, a);
    _mm256_stream_si256((void *)(dst + LINE / 2), b);
}

__attribute__((target("avx2"))) static void block_avx2(char *dst, const char *src)
{
    for (size_t at = 0; at < PAGE; at += LINE) {
        for (size_t p = 0; p < PAGES; p++)
            _mm_prefetch(src + p * PAGE + at + AHEAD, _MM_HINT_T0);
        for (size_t p = 0; p < PAGES; p++)
            line_avx2(dst + p * PAGE + at, src + p * PAGE + at);
    }
}

/* The same walk for all; always inlined into a function of the same target. */
#define DEFINE_STREAM(name_, target_, blocks_, block_, line_)                                  \
    __attribute__((target(target_))) static void name_(char *dst, const char *src, size_t len) \
    {                                                                                          \
        size_t head = (size_t)(-(uintptr_t)dst & (LINE - 1));                                  \
        size_t at = head;                                                                      \
                                                                                               \
        memcpy(dst, src, head);                                                                \
        for (; blocks_ && len - at >= PAGES * PAGE; at += PAGES * PAGE)                        \
            block_(dst + at, src + at);                                                        \
        for (; len - at >= LINE; at += LINE)                                                   \
            line_(dst + at, src + at);                                                         \
        memcpy(dst + at, src + at, len - at);                                                  \
    }
DEFINE_STREAM(stream_avx512, "avx512f", true, block_avx512, line_avx512)
DEFINE_STREAM(stream_avx512_lines, "avx512f", false, block_avx512, line_avx512)
DEFINE_STREAM(stream_avx2, "avx2", true, block_avx2, line_avx2)

/* Which walk feeds memory better is the maker's. One thread, 284 MiB into huge pages: Zen 5 takes 22 GB/s line by line
 * and 17 from four pages, an Intel of four years before 9 and 12. */
static bool likes_lines(void)
{
    return __builtin_cpu_is("amd");
}

bool copy_supported(enum copy_path path)
{
    switch (path) {
    case COPY_AVX512:
    case COPY_AVX512_LINES:
        return __builtin_cpu_supports("avx512f");
    case COPY_AVX2:
        return __builtin_cpu_supports("avx2");
    default:
        return true;
    }
}

void copy_stream(enum copy_path path, void *dst, const void *src, size_t len)
{
    if (len < (path == COPY_AVX512_LINES ? SMALL_LINES : SMALL) || path == COPY_PORTABLE)
        memcpy(dst, src, len);
    else if (path == COPY_AVX512_LINES)
        stream_avx512_lines(dst, src, len);
    else if (path == COPY_AVX512)
        stream_avx512(dst, src, len);
    else
        stream_avx2(dst, src, len);
}

void copy_fence(void)
{
    _mm_sfence();
}

#else

static bool likes_lines(void)
{
    return false;
}

bool copy_supported(enum copy_path path)
{
    return path == COPY_PORTABLE;
}

void copy_stream(enum copy_path path, void *dst, const void *src, size_t len)
{
    (void)path;
    memcpy(dst, src, len);
}

void copy_fence(void)
{
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

#endif

/* Line by line 2 KiB are enough, and two such pieces ahead, a checksum and the copy run side by side: 0.93 of a plain
 * copy on Zen 5, where 64 KiB give 0.62 and 4 KiB 0.75. Four pages side by side need more. */
size_t copy_cached_bytes(enum copy_path path)
{
    return path == COPY_AVX512_LINES ? SMALL_LINES : CACHED;
}

size_t copy_cached_ahead(enum copy_path path)
{
    return path == COPY_AVX512_LINES ? 2 * SMALL_LINES : 0;
}

void copy_prefetch(const char *src, size_t len)
{
    for (size_t at = 0; at < len; at += LINE)
        __builtin_prefetch(src + at);
}

enum copy_path copy_best(void)
{
    if (copy_supported(COPY_AVX512))
        return likes_lines() ? COPY_AVX512_LINES : COPY_AVX512;
    return copy_supported(COPY_AVX2) ? COPY_AVX2 : COPY_PORTABLE;
}
