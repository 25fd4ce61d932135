/* SPDX-License-Identifier: Apache-2.0 */
/* Reading and writing little-endian formats: a bounded cursor that remembers its first failure, so that a parser checks
 * once at its end. */
#ifndef CAIRN_CORE_BASE_BYTES_H
#define CAIRN_CORE_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytes_reader {
    const uint8_t *data;
    size_t len;
    size_t at;
    bool bad; /* read past the end; every later read gives 0 */
};
uint8_t bytes_get_u8(struct bytes_reader *r);
uint16_t bytes_get_u16(struct bytes_reader *r);
uint32_t bytes_get_u32(struct bytes_reader *r);
uint64_t bytes_get_u64(struct bytes_reader *r);
/* A pointer to the next len bytes, or NULL. */
const void *bytes_get(struct bytes_reader *r, size_t len);

/* A growing buffer. After a failed allocation bad is set and every later put does nothing. */
struct bytes {
    uint8_t *data;
    size_t len;
    size_t room;
    bool bad;
};
void bytes_free(struct bytes *b);
void bytes_put(struct bytes *b, const void *data, size_t len);
void bytes_put_u8(struct bytes *b, uint8_t v);
void bytes_put_u16(struct bytes *b, uint16_t v);
void bytes_put_u32(struct bytes *b, uint32_t v);
void bytes_put_u64(struct bytes *b, uint64_t v);

static inline uint64_t round_up_u64(uint64_t v, uint64_t to)
{
    return (v + to - 1) / to * to;
}

#endif
