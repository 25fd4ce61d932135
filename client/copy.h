/* SPDX-License-Identifier: Apache-2.0 */
/* The copy into the arena: the bytes are not read again by this core, so large copies go past its caches with
 * non-temporal stores. */
#ifndef CAIRN_CLIENT_COPY_H
#define CAIRN_CLIENT_COPY_H

#include <stdbool.h>
#include <stddef.h>

enum copy_path {
    COPY_PORTABLE,
    COPY_AVX2, /* four pages side by side */
    COPY_AVX512,
    COPY_AVX512_LINES, /* one line after the other */
};

/* The fastest path of this machine. */
enum copy_path copy_best(void);
bool copy_supported(enum copy_path path);
/* Like memcpy. Its stores are weakly ordered: copy_fence before telling anybody. */
void copy_stream(enum copy_path path, void *dst, const void *src, size_t len);
/* When somebody else reads the bytes first, so that they come from cache: how many at a time, and how far ahead they
 * are to be asked for. */
size_t copy_cached_bytes(enum copy_path path);
size_t copy_cached_ahead(enum copy_path path); /* 0: not at all */
void copy_prefetch(const char *src, size_t len);
/* Orders all streamed stores of this thread before its later ones. */
void copy_fence(void);

#endif
