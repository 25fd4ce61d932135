/* SPDX-License-Identifier: Apache-2.0 */
/* A strip of blocks to its encoded bytes and back: what is in the works stays in the cache. */
#ifndef CAIRN_CODEC_FLOAT_STRIP_H
#define CAIRN_CODEC_FLOAT_STRIP_H

#include "kernel.h"

/* What a kernel may read and write behind the bytes of a plane is there, too. */
struct strip {
    uint8_t plane[MAX_WIDTH][STRIP + BLOCK]; /* or what its first level has no codes for */
    uint8_t group[MAX_WIDTH][GROUP + BLOCK];
    uint8_t rest[2][STRIP + BLOCK]; /* from level to level */
};

struct input {
    const uint8_t *at, *end;
};

/* So many bytes from the input; NULL: it has less. */
static inline const uint8_t *take(struct input *in, size_t n)
{
    const uint8_t *p = in->at;

    if ((size_t)(in->end - in->at) < n)
        return NULL;
    in->at += n;
    return p;
}

/* At most STRIP_BLOCKS blocks at src. Writes nothing behind end. Returns where the bytes end, NULL: they do not fit. */
uint8_t *strip_encode(struct strip *s, const struct kernel *k, const struct part *p, const uint8_t *src, size_t nblocks,
                      uint8_t *to, const uint8_t *end);
/* Untrusted bytes: 0 or -1. */
int strip_decode(struct strip *s, const struct kernel *k, const struct part *p, struct input *in, size_t nblocks,
                 uint8_t *dst);

#endif
