/* SPDX-License-Identifier: Apache-2.0 */
/* Canonical Huffman codes of at most 11 bits for bytes, in four streams side by side.
 *
 *     128 bytes: the length of each code, 4 bits each, low nibble first; 0: the byte does not occur
 *     3 x u32:   bytes of the first three streams (the fourth ends with the section)
 *     4 streams: each a quarter of the bytes; bits from the lowest of each byte up, the rest of the last byte 0
 *
 * Codes are numbered canonically (by length, then by byte) and written with their first bit lowest. A byte that is
 * alone has a code of one bit. Why our own: the bytes must be the same with every version of a library, and decoding
 * several symbols by one look into a table is what exponents, of two to three bits each, want.
 */
#ifndef CAIRN_CODEC_FLOAT_HUFFMAN_H
#define CAIRN_CODEC_FLOAT_HUFFMAN_H

#include <stddef.h>
#include <stdint.h>

#define HUFFMAN_STREAMS 4
#define HUFFMAN_FIXED ((size_t)128 + 4 * (HUFFMAN_STREAMS - 1))

/* n: a multiple of 4. Returns the section's bytes, 0: they are more than room. */
struct kernel;
size_t huffman_encode(const struct kernel *k, const uint8_t *src, size_t n, uint8_t *dst, size_t room);
/* A section of exactly len bytes; 0, or -1: it is none of n bytes. */
int huffman_decode(const uint8_t *src, size_t len, uint8_t *dst, size_t n);

#endif
